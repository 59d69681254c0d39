//! Durable mutations per second, by connections and depth.
//!
//! *Depth* is how many mutations a connection has without an answer. Acknowledged means durable: the
//! commit is in the store, fsynced. Beside it, the same row inserted in a transaction of its own by
//! plain SQLite in this process (WAL, synchronous=FULL): one fsync a transaction, no network, no
//! sandbox, no conflict handling; the floor that the disk sets.

use std::time::{Duration, Instant};

use futures::stream::{FuturesUnordered, StreamExt as _};
use serde_json::json;

use crate::Order;
use crate::server::{Server, scratch};
use crate::table::{Percentiles, ms, print};

/// Measures and prints.
pub async fn run(order: &Order) -> anyhow::Result<()> {
    let until = Duration::from_secs(order.seconds);
    println!("\n# throughput: durable mutations per second (todo's add_task), {} s each\n", order.seconds);
    let floor = sqlite(until)?;
    let mut rows = Vec::new();
    for (connections, depth) in [(1, 1), (4, 1), (4, 40), (16, 40)] {
        let server = Server::todo().await?;
        let mut clients = Vec::new();
        for _ in 0..connections {
            clients.push(server.client().await?);
        }
        clients[0].mutate("create_list", json!({"id": "l", "name": "list"})).await?.durable().await?;
        let began = Instant::now();
        let runs = clients.iter().enumerate().map(|(number, client)| async move {
            let mut waits = Vec::new();
            let mut open = FuturesUnordered::new();
            let mut sent = 0u64;
            loop {
                while open.len() < depth && began.elapsed() < until {
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
        let found = Percentiles::of(&mut waits);
        let shape = (connections.to_string(), depth.to_string());
        rows.push(vec![
            shape.0,
            shape.1,
            format!("{rate:.0}"),
            ms(found.p50),
            ms(found.p99),
            format!("{:.2}", rate / floor),
        ]);
    }
    print(&["connections", "depth", "mutations/s", "p50 ms", "p99 ms", "x SQLite WAL FULL"], &rows);
    println!("\nSQLite WAL FULL, one connection, depth 1: {floor:.0} transactions/s");
    Ok(())
}

/// Transactions per second of plain SQLite on the same disk.
fn sqlite(until: Duration) -> anyhow::Result<f64> {
    let dir = scratch()?;
    let db = rusqlite::Connection::open(dir.path().join("peer.db"))?;
    db.execute_batch(
        "pragma journal_mode = wal; pragma synchronous = full;
         create table tasks(id text primary key not null, list text, title text, done integer, position real) without rowid;
         create index by_list on tasks(list, position);",
    )?;
    let began = Instant::now();
    let mut count = 0;
    while began.elapsed() < until {
        db.execute("insert into tasks values(?1, 'l', 'a task', 0, ?2)", (format!("p-{count}"), count))?;
        count += 1;
    }
    Ok(f64::from(count) / began.elapsed().as_secs_f64())
}
