//! From a mutation to another subscriber: how long until each of N subscribers has the changed row.
//!
//! One client writes at a fixed rate, the others subscribe. A sample is the time from the call of
//! `mutate` to the moment a subscriber has applied the delta, in one process with all clients. The
//! subscriber sees the accepted state; the time until the writer hears *durable* stands beside it.

use std::sync::Arc;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use serde_json::json;
use sqlsync_layer::client::SubscriptionEvent;

use crate::server::Server;
use crate::{ms, percentile};

const SECONDS: u64 = 5;

pub async fn run() -> anyhow::Result<()> {
    println!("\nmutation to other subscribers, {SECONDS} s each\n");
    println!(
        "{:>11}  {:>8}  {:>8}  {:>8}  {:>8}  {:>8}  {:>14}  {:>14}",
        "subscribers", "writes/s", "samples", "p50 ms", "p99 ms", "max ms", "durable p50 ms", "durable p99 ms"
    );
    for (subscribers, rate) in [(1, 20), (5, 20), (20, 50), (20, 500)] {
        measure(subscribers, rate).await?;
    }
    Ok(())
}

async fn measure(subscribers: usize, rate: u64) -> anyhow::Result<()> {
    let server = Server::start().await?;
    let writer = server.client().await?;
    writer.mutate("add_task", json!({"id": "t", "list": "l", "title": "0"})).await?.durable().await?;
    let count = rate * SECONDS;
    // When each title was sent; index 0 is the row above.
    let sent: Arc<Mutex<Vec<Instant>>> = Arc::new(Mutex::new(vec![Instant::now()]));
    let mut watchers = Vec::new();
    for _ in 0..subscribers {
        let client = server.client().await?;
        let mut rows = client.subscribe("select id, title from tasks where id = 't'", Default::default(), None).await?;
        let sent = sent.clone();
        watchers.push(tokio::spawn(async move {
            let mut samples = Vec::new();
            loop {
                let event = rows.next().await.map_err(|end| anyhow::anyhow!("{end:?}"))?;
                let now = Instant::now();
                let title = rows.rows().rows().first().and_then(|row| row.get(1)).and_then(|t| t.as_str());
                let number: usize = title.unwrap_or("0").parse()?;
                if let (SubscriptionEvent::Delta(_), Some(at)) = (event, sent.lock().expect("no panics").get(number)) {
                    samples.push(now - *at);
                }
                if number as u64 == count {
                    drop(client);
                    return anyhow::Ok(samples);
                }
            }
        }));
    }
    let mut durable = Vec::new();
    let mut tick = tokio::time::interval(Duration::from_secs_f64(1.0 / rate as f64));
    for number in 1..=count {
        tick.tick().await;
        let at = Instant::now();
        sent.lock().expect("no panics").push(at);
        let mutation = writer.mutate("rename_task", json!({"id": "t", "title": number.to_string()})).await?;
        durable.push(tokio::spawn(async move { mutation.durable().await.map(|_| at.elapsed()) }));
    }
    let mut samples: Vec<Duration> = Vec::new();
    for watcher in watchers {
        samples.extend(tokio::time::timeout(Duration::from_secs(30), watcher).await???);
    }
    let mut waits = Vec::new();
    for wait in durable {
        waits.push(wait.await??);
    }
    let p = |samples: &mut Vec<Duration>, share| ms(percentile(samples, share));
    println!(
        "{subscribers:>11}  {rate:>8}  {:>8}  {:>8}  {:>8}  {:>8}  {:>14}  {:>14}",
        samples.len(),
        p(&mut samples, 0.5),
        p(&mut samples, 0.99),
        p(&mut samples, 1.0),
        p(&mut waits, 0.5),
        p(&mut waits, 0.99)
    );
    Ok(())
}
