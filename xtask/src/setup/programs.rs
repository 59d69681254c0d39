//! Small programs of Debian's that tests run. Wanted by `cargo xtask test` alone.
//!
//! Invariant: a machine that cannot have them still runs every other test; only CI must have them.

use std::path::Path;

use super::Apt;

/// A program, which is the package's name too.
struct Program {
    name: &'static str,
    path: &'static str,
    why: &'static str,
    /// The tests that are skipped without it.
    tests: &'static str,
}

const EXTENSION: &str = "tests of the SQLite extension";

/// Other Pythons may not load extensions, so it is Debian's own.
const PROGRAMS: [Program; 3] = [
    Program {
        name: "sqlite3",
        path: "/usr/bin/sqlite3",
        why: "the SQLite extension is tested in it",
        tests: EXTENSION,
    },
    Program {
        name: "python3",
        path: "/usr/bin/python3",
        why: "the SQLite extension is tested in it",
        tests: EXTENSION,
    },
    Program {
        name: "strace",
        path: "/usr/bin/strace",
        why: "it shows that commits are synced before they are acknowledged",
        tests: "tests of power loss",
    },
];

/// Finds or installs them; says so where it cannot, and which tests will be skipped.
///
/// # Errors
///
/// One cannot be had, and `CI=true`: there, nothing may be skipped.
pub fn find_or_install(apt: &mut Apt) -> anyhow::Result<()> {
    for program in PROGRAMS {
        if Path::new(program.path).is_file() {
            super::found(program.name, program.path);
            continue;
        }
        // Only Linux has it.
        if program.name == "strace" && !cfg!(target_os = "linux") {
            continue;
        }
        match apt.install(program.path, program.why, &[&[program.name]]) {
            Ok(()) => {}
            Err(error) if std::env::var("CI").as_deref() == Ok("true") => return Err(error),
            Err(error) => {
                let why = format!("{error:#}");
                println!("setup: {}", why.lines().next().unwrap_or_default());
                println!("setup: {} will be SKIPPED", program.tests);
            }
        }
    }
    Ok(())
}
