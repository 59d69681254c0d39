//! Runs the whole-system simulation: `sim [--seed N] [--steps M] [--count K] [--plant NAME] [--any-route] [--history]`.
//!
//! Runs the seeds N, N+1, … N+K-1 (0 and 20 where not given), M steps each (4,000), and prints a line for
//! each. The first failure ends it with exit code 1, after its history and the command that repeats it.

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context as _, bail};
use tests::sim::plant::Plant;
use tests::sim::{Config, Summary, run};

struct Args {
    config: Config,
    count: u64,
}

fn parse(mut args: impl Iterator<Item = String>) -> anyhow::Result<Args> {
    let mut config = Config::new(0, 4_000);
    let mut count = None;
    let mut one_seed = false;
    while let Some(arg) = args.next() {
        let mut value = || args.next().with_context(|| format!("{arg} needs a value"));
        match arg.as_str() {
            "--seed" => {
                config.seed = value()?.parse().context("--seed takes a number")?;
                one_seed = true;
            }
            "--steps" => config.steps = value()?.parse().context("--steps takes a number")?,
            "--count" => count = Some(value()?.parse().context("--count takes a number")?),
            "--plant" => config.plant = Some(value()?.parse::<Plant>()?),
            "--any-route" => config.any_route = true,
            "--history" => config.loud = true,
            other => bail!(
                "unknown `{other}`; use --seed N --steps M --count K --plant NAME --any-route --history"
            ),
        }
    }
    Ok(Args { config, count: count.unwrap_or(if one_seed { 1 } else { 20 }) })
}

#[allow(clippy::disallowed_methods, reason = "a driver: it says how long the run took")]
fn main() -> anyhow::Result<ExitCode> {
    let Args { config, count } = parse(std::env::args().skip(1))?;
    let begin = Instant::now();
    let mut total = Summary::default();
    for seed in config.seed..config.seed.saturating_add(count) {
        let start = Instant::now();
        match run(Config { seed, ..config }) {
            Ok(summary) => {
                println!("seed {seed}: {summary}; {:.1} s", start.elapsed().as_secs_f64());
                total.add(&summary);
            }
            Err(failure) => {
                println!("{failure}");
                return Ok(ExitCode::FAILURE);
            }
        }
    }
    println!("{count} seeds: {total}; {:.1} s", begin.elapsed().as_secs_f64());
    Ok(ExitCode::SUCCESS)
}
