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
//! | [`peers`] | the systems beside ours: how they come here, how they are started |
//! | [`process`], [`server`] | processes that end with the bench; ours among them |
//!
//! Invariants: whatever was started is stopped, also on an error and on Ctrl-C; a peer that cannot be had
//! is left out aloud; a system whose data is wrong at the end fails the run.

mod fanout;
mod peers;
mod process;
mod server;
mod table;
mod throughput;
mod transfers;

use anyhow::{Context as _, bail};
use peers::{Install, Peer, Peers};
use tokio::signal::unix::{SignalKind, signal};

const USAGE: &str = "\
cargo xtask bench [NAME…] [OPTIONS]

  throughput   durable mutations per second, beside plain SQLite
  fanout       from a write to other subscribers: y-websocket, zero, spacetimedb
  transfers    two-row transfers per second: spacetimedb, postgres, sqlite, zero

Without a NAME, all of them.

  --seconds N              how long each measurement lasts (default 3)
  --accounts N             accounts that transfers are between (default 10000)
  --peers A,B              only these peers; `--peers none` for ours alone (default: all)
  --no-install             use only what is installed
  --install-spacetimedb    build SpacetimeDB's server if it is missing: half an hour";

const NAMES: [&str; 3] = ["throughput", "fanout", "transfers"];

/// What is to be measured, and how long.
#[derive(Debug)]
pub struct Order {
    names: Vec<String>,
    /// Of each measurement.
    pub seconds: u64,
    /// Accounts that transfers are between; at least 2.
    pub accounts: usize,
    peers: Vec<Peer>,
    install: Install,
}

/// Reads the command line; `None` where help was asked for.
fn parse(args: impl Iterator<Item = String>) -> anyhow::Result<Option<Order>> {
    let install = Install { packages: true, spacetimedb: false };
    let mut order =
        Order { names: Vec::new(), seconds: 3, accounts: 10_000, peers: Peer::ALL.into(), install };
    let mut args = args;
    while let Some(arg) = args.next() {
        let mut value = || args.next().with_context(|| format!("{arg} needs a value\n\n{USAGE}"));
        match arg.as_str() {
            "--help" | "-h" => return Ok(None),
            "--seconds" => order.seconds = number(&arg, &value()?, 1)?,
            "--accounts" => order.accounts = number(&arg, &value()?, 2)? as usize,
            "--peers" => {
                let list = value()?;
                let names = list.split(',').filter(|name| *name != "none");
                order.peers = names.map(str::parse).collect::<anyhow::Result<_>>()?;
            }
            "--no-install" => order.install.packages = false,
            "--install-spacetimedb" => order.install.spacetimedb = true,
            name if NAMES.contains(&name) => order.names.push(name.into()),
            other => bail!("there is no benchmark and no option `{other}`\n\n{USAGE}"),
        }
    }
    if order.install.spacetimedb && !order.install.packages {
        bail!("--no-install and --install-spacetimedb contradict each other");
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
        for wrong in [
            "latency",
            "--seconds",
            "--seconds 0",
            "--accounts 1",
            "--peers convex",
            "--no-install --install-spacetimedb",
        ] {
            assert!(parsed(wrong).is_err(), "{wrong}");
        }
    }
}
