//! Debian's `sqlite3` shell and Python: the hosts that the loadable extension is tested in. Wanted by
//! `cargo xtask test` alone.
//!
//! Invariant: a machine that cannot have them still runs every other test; only CI must have them.

use std::path::Path;

use super::Apt;

/// What is looked for, where, and in which package. Other Pythons may not load extensions, so it is
/// Debian's own.
const HOSTS: [(&str, &str); 2] = [("sqlite3", "/usr/bin/sqlite3"), ("python3", "/usr/bin/python3")];

/// Finds or installs them; says so where it cannot, and that tests will be skipped.
///
/// # Errors
///
/// One cannot be had, and `CI=true`: there, nothing may be skipped.
pub fn find_or_install(apt: &mut Apt) -> anyhow::Result<()> {
    for (package, path) in HOSTS {
        if Path::new(path).is_file() {
            super::found(package, path);
            continue;
        }
        match apt.install(path, "the SQLite extension is tested in it", &[&[package]]) {
            Ok(()) => {}
            Err(error) if std::env::var("CI").as_deref() == Ok("true") => return Err(error),
            Err(error) => {
                let why = format!("{error:#}");
                println!("setup: {}", why.lines().next().unwrap_or_default());
                println!("setup: tests of the SQLite extension will be SKIPPED");
            }
        }
    }
    Ok(())
}
