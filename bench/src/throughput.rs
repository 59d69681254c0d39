//! Durable mutations per second, by connections and depth.
//!
//! *Depth* is how many mutations a connection has without an answer. Acknowledged means durable: the
//! commit is in the store, fsynced. Beside it, the same row inserted in a transaction of its own by
//! plain SQLite in this process (WAL, synchronous=FULL): one fsync a transaction, no network, no
//! sandbox, no conflict handling; the floor that the disk sets.

use std::time::{Duration, Instant};

use futures::stream::{FuturesUnordered, StreamExt as _};
use serde_json::json;

use crate::server::Server;
use crate::{ms, percentile};

const SECONDS: u64 = 5;

pub async fn run() -> anyhow::Result<()> {
    println!("\ndurable mutations per second (todo's add_task), {SECONDS} s each\n");
    println!("{:>11}  {:>5}  {:>10}  {:>8}  {:>8}  {:>18}", "connections", "depth", "mutations/s", "p50 ms", "p99 ms", "x SQLite WAL FULL");
    let floor = sqlite()?;
    for (connections, depth) in [(1, 1), (4, 1), (4, 40), (16, 40)] {
        let server = Server::start().await?;
        let mut clients = Vec::new();
        for _ in 0..connections {
            clients.push(server.client().await?);
        }
        let began = Instant::now();
        let runs = clients.iter().enumerate().map(|(number, client)| async move {
            let mut waits = Vec::new();
            let mut open = FuturesUnordered::new();
            let mut sent = 0u64;
            loop {
                let more = began.elapsed() < Duration::from_secs(SECONDS);
                while more && open.len() < depth {
                    let args = json!({"id": format!("{number}-{sent}"), "list": "l", "title": "a task"});
                    sent += 1;
                    let at = Instant::now();
                    let mutation = client.mutate("add_task", args).await?;
                    open.push(async move { mutation.durable().await.map(|_| at.elapsed()) });
                }
                match open.next().await {
                    Some(wait) => waits.push(wait?),
                    None => return anyhow::Ok(waits),
                }
            }
        });
        let mut waits: Vec<Duration> = Vec::new();
        for run in futures::future::join_all(runs).await {
            waits.extend(run?);
        }
        let rate = waits.len() as f64 / began.elapsed().as_secs_f64();
        let (p50, p99) = (ms(percentile(&mut waits, 0.5)), ms(percentile(&mut waits, 0.99)));
        println!("{connections:>11}  {depth:>5}  {rate:>11.0}  {p50:>8}  {p99:>8}  {:>18.2}", rate / floor);
    }
    println!("\nSQLite WAL FULL, one connection, depth 1: {floor:.0} transactions/s");
    Ok(())
}

/// Transactions per second of plain SQLite on the same disk.
fn sqlite() -> anyhow::Result<f64> {
    let dir = tempfile::tempdir_in(std::path::PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target"))?;
    let db = rusqlite::Connection::open(dir.path().join("peer.db"))?;
    db.execute_batch(
        "pragma journal_mode = wal; pragma synchronous = full;
         create table tasks(id text primary key not null, list text, title text, done integer, position real) without rowid;
         create index by_list on tasks(list, position);",
    )?;
    let began = Instant::now();
    let mut count = 0;
    while began.elapsed() < Duration::from_secs(SECONDS) {
        db.execute("insert into tasks values(?1, 'l', 'a task', 0, ?2)", (format!("p-{count}"), count))?;
        count += 1;
    }
    Ok(f64::from(count) / began.elapsed().as_secs_f64())
}
