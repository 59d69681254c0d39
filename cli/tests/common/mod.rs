//! Running the program that was built, without what the environment would tell it.

use std::process::{Command, Output, Stdio};

use serde_json::Value;

/// `graft` with `args`, not started.
pub fn graft(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_graft"));
    for name in ["GRAFT_STORE", "GRAFT_DATA", "GRAFT_DISK_BYTES", "GRAFT_VOLUME", "RUST_LOG"] {
        command.env_remove(name);
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
