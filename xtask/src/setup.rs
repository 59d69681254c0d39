//! What the build needs beyond Rust: found, or installed, or asked for.
//!
//! | need | for |
//! | --- | --- |
//! | libclang with its headers | bindgen, which `sqlite-plugin` runs |
//! | clang that compiles for wasm32, llvm-ar | SQLite's C in the wasm32 build |
//! | the wasm32 target | reducers, and `graft` and `sqlsync-layer` for the browser |
//! | an S3 server (Ceph) | the tests of `s3://` stores; only [`setup_for_tests`] asks for it |
//! | Chromium | the browser tests; likewise |
//! | `sqlite3`, Debian's Python, `strace` | the tests of the SQLite extension and of power loss; likewise |
//!
//! Invariants: what is there is used and never installed again, so a second run only looks; nothing
//! is installed without saying what and why; `apt-get update` runs at most once, and only before an
//! installation. Without root or apt, nothing is changed and the error names the packages.

mod apt;
mod ceph;
pub mod chromium;
mod libclang;
mod programs;
mod wasm;

use std::path::{Path, PathBuf};

use crate::run::Run;
use apt::Apt;

/// What [`setup`] found, as the environment of the cargo commands to come.
pub struct Tools {
    /// The workspace's folder.
    pub root: PathBuf,
    libclang: PathBuf,
    wasm: wasm::Target,
}

impl Tools {
    /// A cargo command for this machine. It writes to `target/`, wherever the caller's cargo would.
    pub fn cargo<const N: usize>(&self, args: [&str; N]) -> Run {
        Run::cargo(&self.root, args)
            .env("CARGO_TARGET_DIR", self.root.join("target"))
            .env("LIBCLANG_PATH", &self.libclang)
    }

    /// A cargo command for `wasm32-unknown-unknown`. It writes to [`Tools::wasm_target_dir`]: its rustc may
    /// be another version, and two versions that share a folder rebuild everything at each change.
    pub fn wasm_cargo<const N: usize>(&self, args: [&str; N]) -> Run {
        self.wasm
            .cargo(&self.root)
            .args(args)
            .args(["--target", wasm::TRIPLE])
            .env("CARGO_TARGET_DIR", self.wasm_target_dir())
            .env("LIBCLANG_PATH", &self.libclang)
    }

    /// Where [`Tools::wasm_cargo`] builds.
    pub fn wasm_target_dir(&self) -> PathBuf {
        self.root.join("target/wasm")
    }

    /// The folder below [`Tools::wasm_target_dir`] that holds what `profile` built.
    pub fn wasm_output(&self, profile: &str) -> PathBuf {
        self.wasm_target_dir().join(wasm::TRIPLE).join(profile)
    }
}

/// Finds everything, installing what is missing.
///
/// # Errors
///
/// Something is missing and cannot be installed here: the message names what to install and why.
pub fn setup(root: &Path) -> anyhow::Result<Tools> {
    find(root, |_| Ok(()))
}

/// As [`setup`], and what only tests need.
///
/// # Errors
///
/// As [`setup`]; without an S3 server or Chromium only where `CI=true`.
pub fn setup_for_tests(root: &Path) -> anyhow::Result<Tools> {
    find(root, |apt| {
        ceph::find_or_install(apt)?;
        programs::find_or_install(apt)?;
        chromium::find_or_install(apt)
    })
}

fn find(root: &Path, more: impl FnOnce(&mut Apt) -> anyhow::Result<()>) -> anyhow::Result<Tools> {
    let mut apt = Apt::new(root);
    let libclang = libclang::find_or_install(&mut apt)?;
    found("libclang", &libclang.display().to_string());
    let wasm = wasm::find_or_install(root, &mut apt)?;
    found("clang for wasm32", &wasm.clang.display().to_string());
    found("wasm32 target", &wasm.to_string());
    more(&mut apt)?;
    if apt.changed {
        println!("setup: done");
    } else {
        println!("setup: everything is there");
    }
    Ok(Tools { root: root.into(), libclang, wasm })
}

fn found(what: &str, is: &str) {
    println!("setup: {what:<16} {is}");
}

/// LLVM's folders as Debian and Homebrew lay them out, newest version first.
fn llvm_dirs() -> Vec<PathBuf> {
    let mut versions: Vec<(u32, PathBuf)> = Vec::new();
    for entry in std::fs::read_dir("/usr/lib").into_iter().flatten().flatten() {
        let name = entry.file_name();
        if let Some(version) = name.to_str().and_then(|n| n.strip_prefix("llvm-")?.parse().ok()) {
            versions.push((version, entry.path()));
        }
    }
    versions.sort_by_key(|(version, _)| std::cmp::Reverse(*version));
    let homebrew = ["/opt/homebrew/opt/llvm", "/usr/local/opt/llvm", "/usr/local"].map(PathBuf::from);
    versions.into_iter().map(|(_, dir)| dir).chain(homebrew).collect()
}
