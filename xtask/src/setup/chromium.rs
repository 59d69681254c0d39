//! Chromium, for the browser tests. Wanted by `cargo xtask test` alone.
//!
//! Invariant: a machine that cannot have it still runs every other test; only CI must have it.

use std::path::PathBuf;

use super::Apt;
use super::wasm::on_path;

/// Names it goes by.
const PROGRAMS: [&str; 4] = ["chromium", "chromium-browser", "google-chrome-stable", "google-chrome"];

/// Where it is: what `GRAFT_CHROMIUM` names, or else the first on PATH.
pub fn find() -> Option<PathBuf> {
    let given = std::env::var_os("GRAFT_CHROMIUM").map(PathBuf::from);
    given.or_else(|| PROGRAMS.into_iter().find_map(on_path))
}

/// Finds or installs it; says so where it cannot, and that tests will be skipped.
///
/// # Errors
///
/// It cannot be had, and `CI=true`: there, nothing may be skipped.
pub fn find_or_install(apt: &mut Apt) -> anyhow::Result<()> {
    if let Some(chromium) = find() {
        super::found("Chromium", &chromium.display().to_string());
        return Ok(());
    }
    match apt.install("Chromium", "the browser tests run in it", &[&["chromium"]]) {
        Ok(()) => Ok(()),
        Err(error) if std::env::var("CI").as_deref() == Ok("true") => Err(error),
        Err(error) => {
            // The rest of the message is advice for what the build cannot do without.
            let why = format!("{error:#}");
            println!("setup: {}", why.lines().next().unwrap_or_default());
            println!(
                "setup: the browser tests will be SKIPPED; to have them, install Chromium and put it on PATH, or name it in GRAFT_CHROMIUM"
            );
            Ok(())
        }
    }
}
