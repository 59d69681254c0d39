//! Where tests find what they need: the project, built programs and modules, test data.
//!
//! `cargo xtask test` builds the programs and names them in the environment. A plain `cargo test`
//! finds what an earlier `cargo xtask test` left in `target/`, and otherwise says what to run.

use std::path::{Path, PathBuf};

/// The workspace's folder.
pub fn root() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().unwrap_or(tests).to_path_buf()
}

/// The `graft` program: `GRAFT_BIN`, or the debug build.
///
/// # Panics
///
/// If it has not been built.
pub fn graft_bin() -> PathBuf {
    built("GRAFT_BIN", "target/debug/graft")
}

/// The reducer module of an example, such as `todo`: in `GRAFT_REDUCERS`, or in `target/reducers`.
///
/// # Panics
///
/// If it has not been built.
pub fn reducer_module(example: &str) -> PathBuf {
    let module = built("GRAFT_REDUCERS", "target/reducers").join(format!("{example}.wasm"));
    assert!(module.is_file(), "{} does not exist; run `cargo xtask build`", module.display());
    module
}

/// The loadable SQLite extension: `GRAFT_EXTENSION`, or the debug build.
///
/// # Panics
///
/// If it has not been built.
pub fn sqlite_extension() -> PathBuf {
    let name = format!("{}graft_sqlite{}", std::env::consts::DLL_PREFIX, std::env::consts::DLL_SUFFIX);
    built("GRAFT_EXTENSION", &format!("target/debug/{name}"))
}

/// The `sqlite3` shell; `None`, with a line that says so, where there is none.
pub fn sqlite3() -> Option<PathBuf> {
    found("sqlite3", "/usr/bin/sqlite3")
}

/// A Python whose SQLite loads extensions, which Debian's does; `None`, with a line that says so, where
/// there is none.
pub fn python3() -> Option<PathBuf> {
    found("python3", "/usr/bin/python3")
}

/// `strace`; `None`, with a line that says so, where there is none.
pub fn strace() -> Option<PathBuf> {
    found("strace", "/usr/bin/strace")
}

/// # Panics
///
/// In CI, where nothing may be skipped.
fn found(what: &str, path: &str) -> Option<PathBuf> {
    let path = PathBuf::from(path);
    if path.is_file() {
        return Some(path);
    }
    assert!(std::env::var("CI").as_deref() != Ok("true"), "{} is missing", path.display());
    println!("SKIPPED: {} is missing; install the package {what}", path.display());
    None
}

fn built(variable: &str, usual: &str) -> PathBuf {
    let path = std::env::var_os(variable).map_or_else(|| root().join(usual), PathBuf::from);
    assert!(
        path.exists(),
        "{} does not exist ({variable} says where else it is); run `cargo xtask test`",
        path.display()
    );
    path
}

/// The sqllogictest files, which are not part of the project: `GRAFT_SQLLOGICTEST`, or beside the
/// project in `shared/data/sqllogictest`. `None`, with a line that says so, where there are none.
pub fn sqllogictest_dir() -> Option<PathBuf> {
    let given = std::env::var_os("GRAFT_SQLLOGICTEST").map(PathBuf::from);
    let beside = root().join("../shared/data/sqllogictest");
    let usual = PathBuf::from("/work/shared/data/sqllogictest");
    let found = given.into_iter().chain([beside, usual]).find(|dir| dir.is_dir());
    if found.is_none() {
        println!("SKIPPED: no sqllogictest files here; set GRAFT_SQLLOGICTEST to their folder");
    }
    found
}

/// Copies a folder with all that is in it.
///
/// # Panics
///
/// If a file cannot be read or written.
pub fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), to).unwrap();
        }
    }
}
