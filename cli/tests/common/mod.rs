//! Running the program that was built, without what the environment would tell it.

#![allow(dead_code, reason = "each test program uses a part")]

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

const DOC: &str = include_str!("../../../docs/cli.md");

/// `graft` with `args`, not started.
pub fn graft(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_graft"));
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| name.starts_with("GRAFT_") || name == "RUST_LOG") {
            command.env_remove(name);
        }
    }
    command.args(args).stdin(Stdio::null());
    command
}

/// Runs it to its end.
pub fn run(args: &[&str]) -> Output {
    graft(args).output().unwrap()
}

/// Runs it; what it printed, which is JSON.
///
/// # Panics
///
/// If it failed.
pub fn ok(args: &[&str]) -> Value {
    let output = run(args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Runs it; what it said when it failed, as all errors do, with 1.
///
/// # Panics
///
/// If it did not.
pub fn fails(args: &[&str]) -> String {
    let output = run(args);
    assert_eq!(output.status.code(), Some(1), "{args:?}");
    String::from_utf8(output.stderr).unwrap()
}

/// The module of an example.
///
/// # Panics
///
/// If it has not been built.
pub fn wasm(example: &str) -> PathBuf {
    let folder = std::env::var_os("GRAFT_REDUCERS").map(PathBuf::from);
    let folder =
        folder.unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target/reducers"));
    let path = folder.join(format!("{example}.wasm"));
    assert!(
        path.exists(),
        "{} is not there; run `cargo xtask build`, or set GRAFT_REDUCERS to its folder",
        path.display()
    );
    path
}

/// The example that `docs/cli.md` has under `tag`.
///
/// # Panics
///
/// If there is none, or it is no JSON.
pub fn example(tag: &str) -> Value {
    let block = DOC.split_once(&format!("```json {tag}\n")).unwrap_or_else(|| panic!("no example `{tag}`")).1;
    let (text, _) = block.split_once("\n```").unwrap();
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{tag}: {error}"))
}

/// The names in `line`, and in the first row of each list of objects, are those shown under `tag`.
///
/// # Panics
///
/// If they are not.
pub fn is_documented(tag: &str, line: &Value) {
    let shown = example(tag);
    let names = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(line), names(&shown), "{tag}");
    for (name, value) in line.as_object().unwrap() {
        if let (Some(row @ Value::Object(_)), Some(example)) = (value.get(0), shown[name].get(0)) {
            assert_eq!(names(row), names(example), "{tag}, {name}");
        }
    }
}
