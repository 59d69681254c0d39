//! Benchmarks: ours beside its peers, in one run on one machine.
//!
//! Every figure is taken from the running product, the `graft` program as its own process on loopback
//! with a directory store whose every commit is fsynced. What an acknowledgement means is printed for
//! each system. `docs/bench.md` says how the peers are run.
//!
//! The machine's noise is in every number: read ratios, and compare runs only with runs beside them.
//!
//! | module | measures |
//! | --- | --- |
//! | [`throughput`] | durable mutations per second of the to-do example |
//! | [`fanout`] | from a write to the other subscribers |
//! | [`transfers`] | two-row transfers per second |
//! | [`rebase`] | pending mutations on a pulled change, by merge and by replay |
//! | [`storage`] | the storage engine, cold over a slow store and warm on this disk |
//! | [`peers`] | the systems beside ours: how they come here, how they are started |
//! | [`process`], [`server`] | processes that end with the bench; ours among them |
//!
//! Invariants: whatever was started is stopped, also on an error and on Ctrl-C; a peer that cannot be had
//! is left out aloud; a system whose data is wrong at the end fails the run.

#![allow(clippy::disallowed_methods, reason = "a benchmark reads the clock, and waits for foreign servers")]

mod fanout;
mod peers;
mod process;
mod rebase;
mod server;
mod storage;
mod table;
mod throughput;
mod transfers;

use std::path::PathBuf;

use anyhow::{Context as _, bail};
use peers::{Install, Peer, Peers};
use tokio::signal::unix::{SignalKind, signal};

const USAGE: &str = "\
cargo xtask bench [NAME…] [OPTIONS]

  throughput   durable mutations per second, beside plain SQLite
  fanout       from a write to other subscribers: y-websocket, zero, spacetimedb
  transfers    two-row transfers per second: spacetimedb, postgres, sqlite, zero
  rebase       pending mutations on a pulled change, in memory: replicache
  storage      the storage engine; or one part of it:
    cold         30 ms for each request: upstream-graft, litestream, turbolite
    warm         local transactions and reads, and the directory's size, beside SQLite
    speedtest1   SQLite's own benchmark, beside SQLite and upstream-graft
    memory       memory while scanning 1 GB; with --big only

Without a NAME, all of them.

  --seconds N              how long each measurement lasts (default 3)
  --accounts N             accounts that transfers are between (default 10000)
  --pending N              mutations that rebase brings over (default 10000)
  --peers A,B              only these peers; `--peers none` for ours alone (default: all)
  --no-install             use only what is installed
  --install-spacetimedb    build SpacetimeDB's server if it is missing: half an hour
  --install-turbolite      build turbolite if it is missing: ten minutes
  --install-upstream-graft the same for upstream Graft

Of storage:
  --rows N                 rows of the table (default 100000)
  --pushes N               pushes of the history that is opened (default 1000; 0: none)
  --delay-ms N             what each request waits (default 30)
  --big                    also what takes a gigabyte
  --json FILE              write the figures
  --markdown FILE          write the tables as the README has them";

const NAMES: [&str; 5] = ["throughput", "fanout", "transfers", "rebase", "storage"];

/// What is to be measured, and how long.
#[derive(Debug)]
pub struct Order {
    names: Vec<String>,
    /// Of each measurement.
    pub seconds: u64,
    /// Accounts that transfers are between; at least 2.
    pub accounts: usize,
    /// Mutations that are pending in the rebase benchmark; at least 1.
    pub pending: u64,
    /// Rows of the storage benchmark's table; at least 1.
    pub rows: u64,
    /// Pushes of the history that it opens.
    pub pushes: u64,
    /// What each request waits there.
    pub delay_ms: u64,
    /// Whether to do what takes a gigabyte.
    pub big: bool,
    /// Where its figures go.
    pub json: Option<PathBuf>,
    /// Where its tables go.
    pub markdown: Option<PathBuf>,
    peers: Vec<Peer>,
    install: Install,
}

impl Order {
    /// Whether this part of the storage benchmark is asked for.
    pub fn wants_part(&self, part: &str) -> bool {
        self.names.is_empty() || self.names.iter().any(|name| name == "storage" || name == part)
    }
}

/// Reads the command line; `None` where help was asked for.
fn parse(args: impl Iterator<Item = String>) -> anyhow::Result<Option<Order>> {
    let install = Install { packages: true, spacetimedb: false, turbolite: false, upstream: false };
    let mut order = Order {
        names: Vec::new(),
        seconds: 3,
        accounts: 10_000,
        pending: 10_000,
        rows: 100_000,
        pushes: 1_000,
        delay_ms: 30,
        big: false,
        json: None,
        markdown: None,
        peers: Peer::ALL.into(),
        install,
    };
    let mut args = args;
    while let Some(arg) = args.next() {
        let mut value = || args.next().with_context(|| format!("{arg} needs a value\n\n{USAGE}"));
        match arg.as_str() {
            "--help" | "-h" => return Ok(None),
            "--seconds" => order.seconds = number(&arg, &value()?, 1)?,
            "--accounts" => order.accounts = number(&arg, &value()?, 2)? as usize,
            "--pending" => order.pending = rebase::pending(number(&arg, &value()?, 1)?)?,
            "--peers" => {
                let list = value()?;
                let names = list.split(',').filter(|name| *name != "none");
                order.peers = names.map(str::parse).collect::<anyhow::Result<_>>()?;
            }
            "--no-install" => order.install.packages = false,
            "--install-spacetimedb" => order.install.spacetimedb = true,
            "--install-turbolite" => order.install.turbolite = true,
            "--install-upstream-graft" => order.install.upstream = true,
            "--rows" => order.rows = number(&arg, &value()?, 1)?,
            "--pushes" => order.pushes = number(&arg, &value()?, 0)?,
            "--delay-ms" => order.delay_ms = number(&arg, &value()?, 0)?,
            "--big" => order.big = true,
            "--json" => order.json = Some(value()?.into()),
            "--markdown" => order.markdown = Some(value()?.into()),
            name if NAMES.contains(&name) || storage::PARTS.contains(&name) => order.names.push(name.into()),
            other => bail!("there is no benchmark and no option `{other}`\n\n{USAGE}"),
        }
    }
    let Install { packages, spacetimedb, turbolite, upstream } = order.install;
    if (spacetimedb || turbolite || upstream) && !packages {
        bail!("--no-install contradicts --install-…");
    }
    Ok(Some(order))
}

fn number(option: &str, text: &str, min: u64) -> anyhow::Result<u64> {
    match text.parse() {
        Ok(number) if number >= min => Ok(number),
        _ => bail!("{option} takes a number from {min}, not `{text}`"),
    }
}

fn main() -> anyhow::Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["engine", system, place] => return storage::run_engine(system, place),
        ["speedtest1", system, place, library, size] => {
            return storage::run_speedtest(system, place, library.as_ref(), size);
        }
        _ => {}
    }
    let Some(order) = parse(std::env::args().skip(1))? else {
        println!("{USAGE}");
        return Ok(());
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let mut terminated = signal(SignalKind::terminate())?;
        // Whatever the dropped branch had started is stopped by its destructors.
        tokio::select! {
            result = run(&order) => result,
            _ = tokio::signal::ctrl_c() => bail!("interrupted"),
            _ = terminated.recv() => bail!("terminated"),
        }
    })
}

async fn run(order: &Order) -> anyhow::Result<()> {
    let mut peers = Peers::new(order.peers.clone(), order.install);
    let wanted = |name: &str| order.names.is_empty() || order.names.iter().any(|asked| asked == name);
    if wanted("throughput") {
        throughput::run(order).await?;
    }
    if wanted("fanout") {
        fanout::run(order, &mut peers).await?;
    }
    if wanted("transfers") {
        transfers::run(order, &mut peers).await?;
    }
    if wanted("rebase") {
        rebase::run(order, &mut peers).await?;
    }
    if wanted("storage") || storage::PARTS.iter().any(|part| order.names.iter().any(|asked| asked == part)) {
        storage::run(order, &mut peers).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> anyhow::Result<Option<Order>> {
        parse(line.split_whitespace().map(String::from))
    }

    #[test]
    fn the_command_line_is_read_or_refused() {
        let order = parsed("fanout --seconds 2 --peers zero,sqlite --no-install").unwrap().unwrap();
        assert_eq!((order.names.as_slice(), order.seconds), (&["fanout".to_string()][..], 2));
        assert_eq!(order.peers, [Peer::Zero, Peer::Sqlite]);
        assert!(!order.install.packages);
        assert!(parsed("--peers none").unwrap().unwrap().peers.is_empty());
        assert!(parsed("fanout -h").unwrap().is_none());
        let order = parsed("cold --rows 5 --pushes 0 --markdown t.md --install-turbolite").unwrap().unwrap();
        assert_eq!((order.rows, order.pushes, order.install.turbolite), (5, 0, true));
        assert!(order.wants_part("cold") && !order.wants_part("warm"));
        assert!(parsed("storage").unwrap().unwrap().wants_part("warm"));
        for wrong in [
            "latency",
            "--seconds",
            "--seconds 0",
            "--accounts 1",
            "--peers convex",
            "--no-install --install-spacetimedb",
            "--no-install --install-turbolite",
            "--rows 0",
            "--pending 0",
            "--pending 30001",
        ] {
            assert!(parsed(wrong).is_err(), "{wrong}");
        }
    }
}
