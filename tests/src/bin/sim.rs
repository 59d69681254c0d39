//! Runs the whole-system simulation: `sim [--seed N] [--steps M] [--count K] [--plant NAME] [--history] [--hunt]`.
//!
//! Runs the seeds N, N+1, … N+K-1 (0 and 20 where not given), M steps each (4,000), and prints a line for
//! each. The first failure ends it with exit code 1, after its history and the command that repeats it.
//!
//! With `--hunt` the seeds are tried until one finds the plant by a symptom that the plant is meant to have; without
//! `--plant`, all plants one after the other. Every failure on the way is printed.

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context as _, bail};
use tests::sim::plant::{Found, Hunt, Plant};
use tests::sim::{Config, Summary, run};

struct Args {
    config: Config,
    count: u64,
    hunts: bool,
}

fn parse(mut args: impl Iterator<Item = String>) -> anyhow::Result<Args> {
    let mut config = Config::new(0, 4_000);
    let mut count = None;
    let (mut one_seed, mut hunts) = (false, false);
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
            "--history" => config.loud = true,
            "--hunt" => hunts = true,
            other => {
                bail!("unknown `{other}`; use --seed N --steps M --count K --plant NAME --history --hunt")
            }
        }
    }
    Ok(Args { config, count: count.unwrap_or(if one_seed { 1 } else { 20 }), hunts })
}

/// Looks for planted bugs. Fails where one is not found.
fn hunt_all(config: Config, count: u64) -> ExitCode {
    let plants = config.plant.map_or(Plant::ALL.to_vec(), |plant| vec![plant]);
    let (mut missed, mut hunt) = (0, Hunt::new(config.steps));
    for plant in plants {
        let seeds = config.seed..config.seed.saturating_add(count);
        let found = hunt.find(plant, plant.causes(), seeds, |seed, failure, verdict| {
            let what: String = failure.what.chars().take(300).collect();
            println!("{plant}: seed {seed}: {verdict}: {:?}: {what}", failure.symptoms());
        });
        match found {
            Some(Found { seed, tried, symptoms }) => {
                println!("{plant}: found by seed {seed}, {tried} seeds: {symptoms:?}");
            }
            None => {
                println!("{plant}: NOT FOUND by {count} seeds");
                missed += 1;
            }
        }
    }
    if missed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[allow(clippy::disallowed_methods, reason = "a driver: it says how long the run took")]
fn main() -> anyhow::Result<ExitCode> {
    let Args { config, count, hunts } = parse(std::env::args().skip(1))?;
    if hunts {
        return Ok(hunt_all(config, count));
    }
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
