//! `cargo xtask test`: every check in order, each timed, stopping at the first that fails.
//!
//! Tests run under `cargo test`, which every Rust installation has. Its output passes through as it
//! comes; the sums over all test programs, and over the tests of `client/` and of the browser, are
//! printed at the end.
//!
//! Invariants: the exit code is 0 only if every step succeeded and at least one test ran; within the
//! step `tests` all test programs run, so that one run shows every failure.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use crate::artifacts;
use crate::run::Run;
use crate::setup;
use crate::web;

/// Runs everything, or with a filter only what those tests need.
pub fn run(root: &Path, args: &[String]) -> anyhow::Result<()> {
    let mut quick = false;
    let mut filter = None;
    for arg in args {
        match arg.as_str() {
            "--quick" => quick = true,
            flag if flag.starts_with('-') => {
                bail!("there is no flag `{flag}`; `cargo xtask help` lists them")
            }
            name if filter.is_none() => filter = Some(name),
            extra => bail!("unexpected `{extra}`: one FILTER at most, a part of a test's name"),
        }
    }
    let mut steps = Steps::default();
    let mut counts = Counts::default();
    let result = all(root, quick || filter.is_some(), filter, &mut steps, &mut counts);
    steps.print_table();
    println!("{} passed, {} failed, {} skipped", counts.passed, counts.failed, counts.skipped);
    result
}

fn all(
    root: &Path,
    quick: bool,
    filter: Option<&str>,
    steps: &mut Steps,
    counts: &mut Counts,
) -> anyhow::Result<()> {
    let tools = steps.run("setup", || {
        let tools = setup::setup_for_tests(root)?;
        if filter.is_none() {
            web::install(root)?;
        }
        Ok(tools)
    })?;
    if !quick {
        steps.run("fmt", || Run::cargo(root, ["fmt", "--all", "--check"]).check())?;
        steps.run("clippy", || {
            tools.cargo(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]).check()
        })?;
        steps.run("wasm32 libraries", || artifacts::wasm_libraries(&tools))?;
    }
    let modules = steps.run("reducers", || artifacts::reducers(&tools))?;
    let graft = steps.run("graft", || artifacts::graft(&tools, false))?;
    let extension = steps.run("sqlite-ext", || artifacts::sqlite_extension(&tools))?;
    steps.run("tests", || {
        let test = tools
            .cargo(["test", "--workspace", "--no-fail-fast"])
            .args(filter)
            .env("GRAFT_BIN", &graft)
            .env("GRAFT_REDUCERS", &modules)
            .env("GRAFT_EXTENSION", &extension);
        cargo_test(&test, counts, &mut std::io::stdout().lock())
    })?;
    if filter.is_some() {
        return Ok(());
    }
    steps.run("client", || {
        let mut ran = web::Counts::default();
        let result = web::test(root, &graft, &modules, &mut ran);
        counts.add_web(&ran);
        result
    })?;
    steps.run("browser", || {
        let Some(chromium) = setup::chromium::find() else {
            println!("SKIPPED: there is no Chromium; see the step `setup`");
            counts.skipped += 1;
            return Ok(());
        };
        let mut ran = web::Counts::default();
        let result = web::test_browser(root, &graft, &modules, &chromium, &mut ran);
        counts.add_web(&ran);
        result
    })
}

/// Runs `cargo test`, copying its output to `out` as it comes and adding up what its programs report.
fn cargo_test(test: &Run, counts: &mut Counts, out: &mut dyn Write) -> anyhow::Result<()> {
    let mut child = test.command().stdout(Stdio::piped()).spawn().with_context(|| test.cannot_start())?;
    let mut lines = BufReader::new(child.stdout.take().context("cargo test has no output")?);
    let mut line = Vec::new();
    while lines.read_until(b'\n', &mut line)? > 0 {
        out.write_all(&line)?;
        out.flush()?;
        counts.add(&String::from_utf8_lossy(&line));
        line.clear();
    }
    let status = child.wait()?;
    if !status.success() {
        let failed = counts.failed;
        bail!("cargo test failed ({status}), {failed} tests failed; to repeat it:\n  {test}");
    }
    if counts.passed == 0 {
        bail!("no test ran; to look why:\n  {test}");
    }
    Ok(())
}

/// Sums over all test programs.
#[derive(Debug, Default, PartialEq, Eq)]
struct Counts {
    passed: u64,
    failed: u64,
    skipped: u64,
}

impl Counts {
    fn add_web(&mut self, ran: &web::Counts) {
        self.passed += ran.passed;
        self.failed += ran.failed;
        self.skipped += ran.skipped;
    }

    /// Adds a line such as `test result: ok. 3 passed; 0 failed; 1 ignored; …`; others count nothing.
    fn add(&mut self, line: &str) {
        let Some((_, result)) = line.split_once("test result: ") else { return };
        for part in result.split([';', '.']) {
            let mut words = part.split_whitespace();
            let (Some(number), Some(what)) = (words.next(), words.next()) else { continue };
            let Ok(number) = number.parse::<u64>() else { continue };
            match what {
                "passed" => self.passed += number,
                "failed" => self.failed += number,
                "ignored" => self.skipped += number,
                _ => {}
            }
        }
    }
}

/// What ran so far and how long it took.
#[derive(Default)]
struct Steps {
    done: Vec<(&'static str, Duration, bool)>,
}

impl Steps {
    fn run<T>(&mut self, name: &'static str, step: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
        println!("\n=== {name}");
        let start = Instant::now();
        let result = step();
        let took = start.elapsed();
        println!("=== {name}: {} in {:.1} s", word(result.is_ok()), took.as_secs_f64());
        self.done.push((name, took, result.is_ok()));
        result.with_context(|| format!("step `{name}`"))
    }

    fn print_table(&self) {
        println!("\n{:<18} {:>8}  result", "step", "seconds");
        for (name, took, ok) in &self.done {
            println!("{name:<18} {:>8.1}  {}", took.as_secs_f64(), word(*ok));
        }
        let total: Duration = self.done.iter().map(|(_, took, _)| *took).sum();
        println!("{:<18} {:>8.1}\n", "all", total.as_secs_f64());
    }
}

fn word(ok: bool) -> &'static str {
    if ok { "ok" } else { "FAILED" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_summed_over_programs() {
        let mut counts = Counts::default();
        for line in [
            "running 4 tests\n",
            "test a ... ok\n",
            "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 7 filtered out; finished in 0.25s\n",
            "test result: FAILED. 10 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.00s\n",
            "test passed_is_in_my_name ... FAILED\n",
        ] {
            counts.add(line);
        }
        assert_eq!(counts, Counts { passed: 13, failed: 2, skipped: 1 });
    }

    /// A program that fails makes the step fail, whatever it printed, and so does one that runs no test.
    #[test]
    fn failure_and_emptiness_are_errors() {
        let sh = |script: &str| Run::new(Path::new("/"), "sh").args(["-c", script]);
        let ok = "echo 'test result: ok. 1 passed; 0 failed; 0 ignored'";
        let mut shown = Vec::new();
        let mut run = |script: &str| cargo_test(&sh(script), &mut Counts::default(), &mut shown);
        assert!(run(ok).is_ok());
        assert!(run(&format!("{ok}; exit 101")).is_err());
        assert!(run("true").is_err());
        assert_eq!(shown, b"test result: ok. 1 passed; 0 failed; 0 ignored\n".repeat(2));
    }
}
