//! Where libclang is. Bindgen loads it to read `sqlite3.h`.
//!
//! A library alone is not enough: without clang's own headers (`stddef.h`) bindgen fails later with
//! a message that does not lead here. So an LLVM folder counts only with both.

use std::path::{Path, PathBuf};

use anyhow::Context;

use super::apt::Apt;
use crate::run::Run;

/// The folder to put into `LIBCLANG_PATH`.
pub fn find_or_install(apt: &mut Apt) -> anyhow::Result<PathBuf> {
    if let Some(dir) = find() {
        return Ok(dir);
    }
    let why = "bindgen, which sqlite-plugin runs, reads sqlite3.h with it";
    apt.install("libclang", why, &[&["libclang-22-dev"], &["libclang-dev"]])?;
    find().context("libclang was installed but is not found; set LIBCLANG_PATH to the folder that holds it")
}

fn find() -> Option<PathBuf> {
    if let Some(given) = std::env::var_os("LIBCLANG_PATH").map(PathBuf::from) {
        // Bindgen takes a folder or the library itself.
        if given.is_file() || holds_libclang(&given) {
            return Some(given);
        }
        println!("setup: LIBCLANG_PATH={} holds no libclang; looking elsewhere", given.display());
    }
    let llvm = super::llvm_dirs().into_iter().map(|dir| dir.join("lib"));
    if let Some(dir) = llvm.into_iter().find(|dir| holds_libclang(dir) && has_headers(dir)) {
        return Some(dir);
    }
    let others = ["/usr/lib64", "/usr/lib", "/Library/Developer/CommandLineTools/usr/lib"].map(PathBuf::from);
    let linked = Run::new(Path::new("/"), "ldconfig").args(["-p"]).output().unwrap_or_default();
    others.into_iter().chain(from_ldconfig(&linked)).find(|dir| holds_libclang(dir) && has_headers(dir))
}

/// Folders of the libclangs that `ldconfig -p` lists, with symbolic links followed.
fn from_ldconfig(text: &str) -> Vec<PathBuf> {
    let paths = text.lines().filter_map(|line| line.split_once("=>").map(|(_, path)| path.trim()));
    let files = paths.map(Path::new).filter(|path| path.file_name().is_some_and(is_libclang));
    files
        .filter_map(|file| {
            let file = std::fs::canonicalize(file).unwrap_or_else(|_| file.into());
            file.parent().map(PathBuf::from)
        })
        .collect()
}

fn holds_libclang(dir: &Path) -> bool {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name()).any(|name| is_libclang(&name))
}

/// `libclang.so`, `libclang-22.so.1`, `libclang.dylib`; not `libclang-cpp.so`, which is another library.
fn is_libclang(name: &std::ffi::OsStr) -> bool {
    let Some(rest) = name.to_str().and_then(|n| n.strip_prefix("libclang")) else { return false };
    let versioned = rest.strip_prefix('-').is_some_and(|r| r.starts_with(|c: char| c.is_ascii_digit()));
    (rest.starts_with('.') || versioned) && (rest.contains(".so") || rest.ends_with(".dylib"))
}

/// Whether clang's headers lie beside `lib`, as `clang/22/include/stddef.h`.
fn has_headers(lib: &Path) -> bool {
    let versions = std::fs::read_dir(lib.join("clang")).into_iter().flatten().flatten();
    versions.map(|version| version.path().join("include/stddef.h")).any(|header| header.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_libclang() {
        for (name, is) in [
            ("libclang.so", true),
            ("libclang.so.1", true),
            ("libclang-22.so.22", true),
            ("libclang-22.so", true),
            ("libclang.dylib", true),
            ("libclang-cpp.so.22", false),
            ("libclangBasic.a", false),
            ("libclang.a", false),
            ("libLLVM.so", false),
        ] {
            assert_eq!(is_libclang(name.as_ref()), is, "{name}");
        }
    }

    #[test]
    fn ldconfig_names_folders() {
        let text = "2 libs found\n\tlibclang-22.so.22 (libc6,x86-64) => /nowhere/llvm/lib/libclang-22.so.22\n\
            \tlibc.so.6 (libc6,x86-64) => /lib/x86_64-linux-gnu/libc.so.6\n";
        assert_eq!(from_ldconfig(text), [PathBuf::from("/nowhere/llvm/lib")]);
    }

    /// A library without clang's headers would fail later, far from here.
    #[test]
    fn a_library_without_headers_does_not_count() {
        let dir = std::env::temp_dir().join(format!("xtask-libclang-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("libclang-22.so.1"), "").unwrap();
        assert!(holds_libclang(&dir) && !has_headers(&dir));
        std::fs::create_dir_all(dir.join("clang/22/include")).unwrap();
        std::fs::write(dir.join("clang/22/include/stddef.h"), "").unwrap();
        assert!(has_headers(&dir));
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
