//! The TypeScript side: npm packages, the checks and tests of `client/`, the todo example's page, and the
//! browser tests.
//!
//! Node is asked for, not installed: what Debian has may be older than the tools need.
//!
//! Invariants: packages are exactly those of `package-lock.json` (`npm ci`), and are installed again only
//! when that file changed; a step whose tests did not run fails.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde_json::Value;

use crate::run::Run;

/// What `package.json` asks for, as (major, minor).
const NODE_MIN: (u32, u32) = (20, 19);

/// How many tests ran.
#[derive(Default)]
pub struct Counts {
    /// Those that succeeded.
    pub passed: u64,
    /// Those that did not.
    pub failed: u64,
    /// Those that were left out.
    pub skipped: u64,
}

/// Installs the packages that `package-lock.json` names, unless they are there.
///
/// # Errors
///
/// Node is missing or too old: the message says what to install. Or `npm ci` failed.
pub fn install(root: &Path) -> anyhow::Result<()> {
    let node = node_version(root)?;
    println!("setup: {:<16} {node}", "node");
    let wanted = root.join("package-lock.json");
    let wanted = std::fs::read(&wanted).with_context(|| format!("{} cannot be read", wanted.display()))?;
    // A copy of what was installed from, written last: an installation that broke off leaves none.
    let stamp = root.join("node_modules/.installed-from");
    if std::fs::read(&stamp).is_ok_and(|installed| installed == wanted) {
        return Ok(());
    }
    println!("setup: npm ci — the TypeScript compiler, Vitest, React and what package-lock.json names else");
    Run::new(root, "npm").args(["ci"]).check_quietly()?;
    std::fs::write(&stamp, &wanted).with_context(|| format!("{} cannot be written", stamp.display()))
}

/// Builds the page of `examples/todo/web` and the client that it uses: its folder. Where there is no Node,
/// says so, and there is no page.
///
/// # Errors
///
/// Node is there, and `npm ci` or the build failed.
pub fn page(root: &Path) -> anyhow::Result<Option<PathBuf>> {
    if let Err(error) = node_version(root) {
        println!("\nWithout the page of examples/todo/web: {error:#}");
        return Ok(None);
    }
    install(root)?;
    build_page(root).map(Some)
}

fn build_page(root: &Path) -> anyhow::Result<PathBuf> {
    Run::new(root, "npm").args(["run", "build", "-w", "client", "-w", "examples/todo/web"]).check()?;
    let page = root.join("examples/todo/web/dist");
    if !page.join("index.html").is_file() {
        bail!("npm built examples/todo/web, but {} holds no index.html", page.display());
    }
    Ok(page)
}

/// Compiles `client/` and runs its tests against `graft` and the modules. The counts are also there where
/// tests failed.
///
/// # Errors
///
/// A compile error, a failed test, or none that ran.
pub fn test(root: &Path, graft: &Path, modules: &Path, counts: &mut Counts) -> anyhow::Result<()> {
    let npm = |args: &[&str]| Run::new(&root.join("client"), "npm").args(args);
    npm(&["run", "check"]).check()?;
    npm(&["run", "build"]).check()?;
    let test = npm(&["test"]).env("GRAFT_BIN", graft).env("GRAFT_REDUCERS", modules);
    vitest(root, "client", test, counts)
}

/// Builds the page and runs it in `chromium`, against `graft` and the modules. Pictures are kept in
/// `target/screenshots`. The counts are also there where tests failed.
///
/// # Errors
///
/// A compile error, a failed test, or none that ran.
pub fn test_browser(
    root: &Path,
    graft: &Path,
    modules: &Path,
    chromium: &Path,
    counts: &mut Counts,
) -> anyhow::Result<()> {
    build_page(root)?;
    let npm = |args: &[&str]| Run::new(&root.join("tests/browser"), "npm").args(args);
    npm(&["run", "check"]).check()?;
    let test =
        npm(&["test"]).env("GRAFT_BIN", graft).env("GRAFT_REDUCERS", modules).env("GRAFT_CHROMIUM", chromium);
    vitest(root, "browser", test, counts)
}

/// Runs `test`, which ends in Vitest, and counts.
fn vitest(root: &Path, name: &str, test: Run, counts: &mut Counts) -> anyhow::Result<()> {
    let report = root.join("target").join(format!("{name}-tests.json"));
    remove(&report)?;
    let test = test
        .args(["--", "--reporter=default", "--reporter=json"])
        .args([format!("--outputFile.json={}", report.display())]);
    let result = test.check();
    if let Ok(text) = std::fs::read(&report) {
        *counts = read_report(&text).with_context(|| format!("{} is no report", report.display()))?;
    }
    result?;
    if counts.passed == 0 {
        bail!("no test ran in the step `{name}`; to look why:\n  {test}");
    }
    Ok(())
}

/// What Vitest wrote.
fn read_report(text: &[u8]) -> anyhow::Result<Counts> {
    let report: Value = serde_json::from_slice(text)?;
    let count = |name: &str| report[name].as_u64().with_context(|| format!("`{name}` is not there"));
    Ok(Counts {
        passed: count("numPassedTests")?,
        failed: count("numFailedTests")?,
        skipped: count("numPendingTests")? + count("numTodoTests")?,
    })
}

fn remove(path: &Path) -> anyhow::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("{} cannot be removed", path.display()))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Node's version, if it will do.
fn node_version(root: &Path) -> anyhow::Result<String> {
    let (major, minor) = NODE_MIN;
    let advice =
        format!("client/ needs Node {major}.{minor} or later with npm; install it and put it on PATH");
    let Some(version) = Run::new(root, "node").args(["--version"]).output() else {
        bail!("`node` cannot be started. {advice}");
    };
    let version = version.trim().to_string();
    if parse_version(&version).is_none_or(|found| found < NODE_MIN) {
        bail!("`node --version` says {version}. {advice}");
    }
    Ok(version)
}

/// `v20.19.1` as (20, 19).
fn parse_version(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.strip_prefix('v')?.split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_as_numbers() {
        assert!(parse_version("v20.20.2").is_some_and(|found| found >= NODE_MIN));
        assert!(parse_version("v100.1.0").is_some_and(|found| found >= NODE_MIN));
        assert!(parse_version("v18.19.0").is_some_and(|found| found < NODE_MIN));
        assert!(parse_version("v20.9.0").is_some_and(|found| found < NODE_MIN));
        for strange in ["", "20.19", "v20", "vx.y"] {
            assert_eq!(parse_version(strange), None, "{strange}");
        }
    }

    #[test]
    fn a_report_is_read_or_refused() {
        let text = br#"{"numPassedTests":5,"numFailedTests":1,"numPendingTests":2,"numTodoTests":1}"#;
        let counts = read_report(text).unwrap();
        assert_eq!((counts.passed, counts.failed, counts.skipped), (5, 1, 3));
        assert!(read_report(b"{}").is_err());
        assert!(read_report(b"").is_err());
    }
}
