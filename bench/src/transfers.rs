//! Two-row transfers per second: read two accounts, check the payer's balance, write both.
//!
//! *Depth* is how many transfers a connection has without an acknowledgement. Payer, payee and amount are
//! random. Nobody is ever too poor, so every transfer must be acknowledged, and at the end every account
//! must hold exactly what the acknowledged transfers leave it: a system that loses, doubles or invents
//! money fails the run.
//!
//! All connections are in this process, or, where the table says so, in one Node process
//! (`bench/peers/transfers.mjs`). PostgreSQL works on one transaction at a time in a connection,
//! so it gets a connection for each transfer under way, at most [`CONNECTIONS_MAX`]. SQLite has one
//! connection, in this process, at depth 1: the floor that the disk sets.

mod banks;

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use futures::stream::{FuturesUnordered, StreamExt as _};
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};
use serde::Deserialize;
use serde_json::json;

use self::banks::{Bank, SqliteBank};
use crate::Order;
use crate::peers::node::Node;
use crate::peers::postgres::{CONNECTIONS_MAX, Cluster};
use crate::peers::spacetimedb::SpacetimeDb;
use crate::peers::zero::Zero;
use crate::peers::{OURS_ACKNOWLEDGED, Peer, Peers, skipped};
use crate::server::Server;
use crate::table::{Percentiles, ms, print};

/// Connections and depth.
const CELLS: [(usize, usize); 3] = [(4, 1), (4, 40), (16, 40)];
/// More than all transfers of a run could take from one account.
const BALANCE: i64 = 1_000_000_000;
const AMOUNT_MAX: i64 = 10;

/// One transfer.
#[derive(Debug, Clone, Copy)]
pub struct Transfer {
    /// The payer's account.
    pub from: usize,
    /// The payee's.
    pub to: usize,
    /// How much.
    pub amount: i64,
}

/// What one measurement found.
#[derive(Debug, Deserialize)]
struct Figures {
    /// Transfers acknowledged.
    count: usize,
    /// Seconds from the first call to the last acknowledgement.
    elapsed: f64,
    waits: Percentiles,
    /// What each account gained by them.
    gained: Vec<i64>,
}

/// What one run is to do.
#[derive(Debug, Clone, Copy)]
struct Load {
    accounts: usize,
    connections: usize,
    depth: usize,
    seconds: u64,
    seed: u64,
}

/// One line of the table.
struct Line {
    system: String,
    client: &'static str,
    figures: Figures,
}

/// Measures and prints one table for each cell.
pub async fn run(order: &Order, peers: &mut Peers) -> anyhow::Result<()> {
    let seed = rand::random();
    println!("\n# transfers: two rows each, over {} accounts (seed {seed})", order.accounts);
    for (connections, depth) in CELLS {
        let load = Load { accounts: order.accounts, connections, depth, seconds: order.seconds, seed };
        let mut lines = Vec::new();
        let mut add =
            |system: &str, client, figures| lines.push(Line { system: system.into(), client, figures });
        add("graft", "Rust", ours(load).await?);
        if peers.has(Peer::SpacetimeDb).await
            && let Some(figures) = or_skip("SpacetimeDB 1.2.0", spacetimedb(load).await)?
        {
            add("SpacetimeDB 1.2.0", "Rust", figures);
        }
        if peers.has(Peer::Postgres).await
            && let Some(figures) = or_skip("PostgreSQL", postgres(load).await)?
        {
            let pool = (connections * depth).min(CONNECTIONS_MAX);
            add(&format!("PostgreSQL, {pool} connections"), "Rust", figures);
        }
        if peers.has(Peer::Sqlite).await {
            add("SQLite, 1 connection", "in process", sqlite(load).await?);
        }
        if let Some(node) = peers.node().await {
            add("graft", "Node", ours_in_node(&node, load).await?);
            if peers.has(Peer::SpacetimeDb).await
                && let Some(figures) = or_skip("SpacetimeDB 1.2.0", spacetimedb_in_node(&node, load).await)?
            {
                add("SpacetimeDB 1.2.0", "Node", figures);
            }
            if peers.has(Peer::Zero).await
                && let Some(figures) = or_skip("Zero 1.9 + Postgres", zero(&node, load).await)?
            {
                add("Zero 1.9 + Postgres", "Node", figures);
            }
        }
        println!("\n{connections} connections, depth {depth}, {} s\n", load.seconds);
        show(&lines);
    }
    println!("\nEvery balance of every system is what its acknowledged transfers make it.");
    println!("acknowledged means:\n  graft: {OURS_ACKNOWLEDGED}");
    for peer in [Peer::SpacetimeDb, Peer::Postgres, Peer::Sqlite, Peer::Zero] {
        if peers.has(peer).await {
            println!("  {peer}: {}", peer.acknowledged());
        }
    }
    println!("graft x: our rate in multiples of theirs, through the same kind of client");
    Ok(())
}

fn show(lines: &[Line]) {
    let rate = |line: &Line| line.figures.count as f64 / line.figures.elapsed;
    let rows = lines.iter().map(|line| {
        let kind = if line.client == "Node" { "Node" } else { "Rust" };
        let like = lines.iter().find(|other| other.system == "graft" && other.client == kind);
        let times = like.map_or_else(|| "–".into(), |ours| format!("{:.2}", rate(ours) / rate(line)));
        vec![
            line.system.clone(),
            line.client.into(),
            format!("{:.0}", rate(line)),
            times,
            ms(line.figures.waits.p50),
            ms(line.figures.waits.p99),
        ]
    });
    let head = ["system", "client", "transfers/s", "graft x", "p50 ms", "p99 ms"];
    print(&head, &rows.collect::<Vec<_>>());
}

/// Wrong money, which fails the run whoever it is.
#[derive(Debug, thiserror::Error)]
#[error(
    "{system} has account {account} at {found:?}, but the transfers that it acknowledged make it {expected}"
)]
struct WrongMoney {
    system: &'static str,
    account: usize,
    found: Option<i64>,
    expected: i64,
}

/// A peer that fails is left out aloud, unless it lost money.
fn or_skip(system: &str, found: anyhow::Result<Figures>) -> anyhow::Result<Option<Figures>> {
    match found {
        Ok(figures) => Ok(Some(figures)),
        Err(error) if error.is::<WrongMoney>() => Err(error),
        Err(error) => {
            skipped(system, &error);
            Ok(None)
        }
    }
}

/// Compares every account with what it must hold.
fn check(system: &'static str, gained: &[i64], balances: &[(usize, i64)]) -> anyhow::Result<()> {
    let mut found = vec![None; gained.len()];
    for (account, balance) in balances {
        let slot = found.get_mut(*account).with_context(|| format!("{system} has an account {account}"))?;
        if slot.replace(*balance).is_some() {
            bail!("{system} answered account {account} twice");
        }
    }
    for (account, (found, gained)) in found.into_iter().zip(gained).enumerate() {
        let expected = BALANCE + gained;
        if found != Some(expected) {
            return Err(WrongMoney { system, account, found, expected }.into());
        }
    }
    Ok(())
}

/// Keeps `depth` transfers under way at each connection until the time is over, and waits for the rest.
async fn drive<B: Bank>(load: Load, banks: &[B]) -> anyhow::Result<Figures> {
    let began = Instant::now();
    let until = Duration::from_secs(load.seconds);
    let runs = banks.iter().enumerate().map(|(number, bank)| async move {
        let mut random = SmallRng::seed_from_u64(load.seed ^ number as u64);
        let mut gained = vec![0; load.accounts];
        let mut waits = Vec::new();
        let mut open = FuturesUnordered::new();
        loop {
            while open.len() < load.depth && began.elapsed() < until {
                let from = random.random_range(0..load.accounts);
                let to = (from + random.random_range(1..load.accounts)) % load.accounts;
                let transfer = Transfer { from, to, amount: random.random_range(1..=AMOUNT_MAX) };
                open.push(async move {
                    let at = Instant::now();
                    bank.transfer(transfer).await.map(|()| (transfer, at.elapsed()))
                });
            }
            let Some(done) = open.next().await else {
                return anyhow::Ok((waits, gained));
            };
            let (transfer, wait) = done?;
            waits.push(wait);
            gained[transfer.from] -= transfer.amount;
            gained[transfer.to] += transfer.amount;
        }
    });
    let mut waits = Vec::new();
    let mut gained = vec![0; load.accounts];
    for run in futures::future::join_all(runs).await {
        let (more, theirs) = run?;
        waits.extend(more);
        gained.iter_mut().zip(theirs).for_each(|(sum, gain)| *sum += gain);
    }
    let elapsed = began.elapsed().as_secs_f64();
    Ok(Figures { count: waits.len(), elapsed, waits: Percentiles::of(&mut waits), gained })
}

async fn ours(load: Load) -> anyhow::Result<Figures> {
    let server = Server::bench().await?;
    banks::open_ours(&server, load.accounts, BALANCE).await?;
    let mut banks = Vec::new();
    for _ in 0..load.connections {
        banks.push(server.client().await?);
    }
    let figures = drive(load, &banks).await?;
    check("graft", &figures.gained, &banks::balances_of_ours(&server, load.accounts).await?)?;
    Ok(figures)
}

async fn spacetimedb(load: Load) -> anyhow::Result<Figures> {
    let server = SpacetimeDb::start().await?;
    banks::open_spacetimedb(&server, load.accounts, BALANCE).await?;
    let mut banks = Vec::new();
    for _ in 0..load.connections {
        banks.push(server.client().await?);
    }
    let figures = drive(load, &banks).await?;
    check("SpacetimeDB", &figures.gained, &server.balances().await?)?;
    Ok(figures)
}

async fn postgres(load: Load) -> anyhow::Result<Figures> {
    let cluster = Cluster::start().await?;
    let client = cluster.client().await?;
    client.batch_execute(&banks::open_in_postgres(load.accounts, BALANCE)).await?;
    let under_way = load.connections * load.depth;
    let mut banks = Vec::new();
    for _ in 0..under_way.min(CONNECTIONS_MAX) {
        banks.push(banks::PostgresBank::new(cluster.client().await?).await?);
    }
    let depth = under_way.div_ceil(banks.len());
    let figures = drive(Load { depth, ..load }, &banks).await?;
    check("PostgreSQL", &figures.gained, &banks::balances_of_postgres(&client).await?)?;
    Ok(figures)
}

async fn sqlite(load: Load) -> anyhow::Result<Figures> {
    let bank = SqliteBank::open(load.accounts, BALANCE)?;
    let figures = drive(Load { depth: 1, ..load }, std::slice::from_ref(&bank)).await?;
    check("SQLite", &figures.gained, &bank.balances()?)?;
    Ok(figures)
}

async fn ours_in_node(node: &Node, load: Load) -> anyhow::Result<Figures> {
    let server = Server::bench().await?;
    banks::open_ours(&server, load.accounts, BALANCE).await?;
    let figures = in_node(node, load, "graft", &server.url).await?;
    check("graft", &figures.gained, &banks::balances_of_ours(&server, load.accounts).await?)?;
    Ok(figures)
}

async fn spacetimedb_in_node(node: &Node, load: Load) -> anyhow::Result<Figures> {
    let server = SpacetimeDb::start().await?;
    banks::open_spacetimedb(&server, load.accounts, BALANCE).await?;
    let figures = in_node(node, load, "spacetimedb", &server.url()).await?;
    check("SpacetimeDB", &figures.gained, &server.balances().await?)?;
    Ok(figures)
}

async fn zero(node: &Node, load: Load) -> anyhow::Result<Figures> {
    let zero = Zero::start(node, &banks::open_in_postgres(load.accounts, BALANCE)).await?;
    let figures = in_node(node, load, "zero", &zero.url).await?;
    check("Zero", &figures.gained, &banks::balances_of_postgres(&zero.postgres.client().await?).await?)?;
    Ok(figures)
}

async fn in_node(node: &Node, load: Load, adapter: &str, url: &str) -> anyhow::Result<Figures> {
    let Load { accounts, connections, depth, seconds, seed: _ } = load;
    let order = json!({
        "adapter": adapter, "url": url, "accounts": accounts,
        "connections": connections, "depth": depth, "seconds": seconds,
    });
    node.ask("transfers.mjs", order).await
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A bench that loses money must fail, and so must one that forgets or repeats an account.
    #[test]
    fn wrong_balances_are_found() {
        let gained = [-3, 3];
        assert!(check("X", &gained, &[(1, BALANCE + 3), (0, BALANCE - 3)]).is_ok());
        let wrong = [
            &[(0, BALANCE), (1, BALANCE)][..],
            &[(0, BALANCE - 3)],
            &[(0, BALANCE - 3), (1, BALANCE + 3), (1, BALANCE + 3)],
            &[(0, BALANCE - 3), (1, BALANCE + 3), (2, BALANCE)],
        ];
        for balances in wrong {
            assert!(check("X", &gained, balances).is_err(), "{balances:?}");
        }
    }

    #[test]
    fn lost_money_is_not_skipped() {
        let found = check("X", &[0], &[(0, 1)]).map(|()| unreachable!("it is wrong"));
        assert!(or_skip("X", found).is_err());
        assert!(matches!(or_skip("X", Err(anyhow::anyhow!("it does not start"))), Ok(None)));
    }
}
