//! From a write to every other subscriber: how long until each shows it.
//!
//! One client writes the numbers 1, 2, 3… into one note at a steady rate, the others subscribe to it, all
//! of them in one process. A sample is, for one number and one subscriber, the time from the call until
//! the subscriber shows that number *or a later one*, so that leaving numbers out is no gain. The time
//! until the writer's call is acknowledged stands beside it, since systems differ in what that means; in
//! ours subscribers see the accepted state, and the acknowledgement is *durable*.
//!
//! Ours is measured through the Rust client and through the TypeScript client, and each peer is compared
//! with the one that is like its own. `bench/peers/fanout.mjs` is this file for JavaScript.

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::json;
use sqlsync_layer::client::{Client, SessionEnd, Subscription, SubscriptionEnd};
use tokio::sync::mpsc;

use crate::Order;
use crate::peers::spacetimedb::{self, SpacetimeDb};
use crate::peers::zero::Zero;
use crate::peers::{OURS_ACKNOWLEDGED, Peer, Peers, node, skipped};
use crate::server::{Server, scratch};
use crate::table::{Percentiles, ms, print, ratio};

const NOTE: u32 = 1;
const CELLS: [(usize, u64); 3] = [(5, 20), (20, 50), (20, 500)];
/// How long after the last write it may take until everybody shows it; what is missing then is reported.
const ARRIVE_MAX: Duration = Duration::from_secs(30);

/// What one measurement found.
#[derive(Debug, Deserialize)]
struct Figures {
    /// Until a subscriber shows a write.
    rows: Percentiles,
    /// Until the writer has its acknowledgement.
    ack: Percentiles,
    samples: usize,
    /// Writes times subscribers that were never shown.
    missing: usize,
}

/// One line of the table.
struct Line {
    system: &'static str,
    client: &'static str,
    ours: bool,
    figures: Figures,
}

/// Measures and prints one table for each cell.
pub async fn run(order: &Order, peers: &mut Peers) -> anyhow::Result<()> {
    println!("\n# fanout: from a write to the other subscribers' rows");
    let seconds = order.seconds;
    for (subscribers, rate) in CELLS {
        let mut lines = Vec::new();
        let ask = |adapter: &str, url: &str| {
            let order = json!({"adapter": adapter, "url": url, "subscribers": subscribers, "rate": rate, "seconds": seconds});
            ("fanout.mjs", order)
        };
        {
            let server = Server::bench().await?;
            let figures = measure(async || Ours::new(&server).await, subscribers, rate, seconds).await?;
            lines.push(Line { system: "graft", client: "Rust", ours: true, figures });
        }
        if peers.has(Peer::SpacetimeDb).await {
            let found = async {
                let server = SpacetimeDb::start().await?;
                measure(async || server.client().await, subscribers, rate, seconds).await
            };
            push(&mut lines, "SpacetimeDB 1.2.0", "Rust", found.await);
        }
        if let Some(node) = peers.node().await {
            let found = async {
                let server = Server::bench().await?;
                let (script, order) = ask("graft", &server.url);
                node.ask(script, order).await
            };
            lines.push(Line { system: "graft", client: "Node", ours: true, figures: found.await? });
            if peers.has(Peer::SpacetimeDb).await {
                let found = async {
                    let server = SpacetimeDb::start().await?;
                    let (script, order) = ask("spacetimedb", &server.url());
                    node.ask(script, order).await
                };
                push(&mut lines, "SpacetimeDB 1.2.0", "Node", found.await);
            }
            if peers.has(Peer::YWebsocket).await {
                let found = async {
                    let dir = scratch()?;
                    let (_server, url) = node::y_websocket(&node, dir.path()).await?;
                    let (script, order) = ask("y-websocket", &url);
                    node.ask(script, order).await
                };
                push(&mut lines, "y-websocket 2.1", "Node", found.await);
            }
            if peers.has(Peer::Zero).await {
                let found = async {
                    let zero = Zero::start(&node, "INSERT INTO note VALUES (1, '0')").await?;
                    let (script, order) = ask("zero", &zero.url);
                    node.ask(script, order).await
                };
                push(&mut lines, "Zero 1.9 + Postgres", "Node", found.await);
            }
        }
        println!("\n{subscribers} subscribers, {rate} writes/s, {seconds} s; milliseconds\n");
        show(&lines);
    }
    println!("\nacknowledged means:");
    println!("  graft: {OURS_ACKNOWLEDGED}; subscribers see a write once it is accepted, before that");
    for peer in [Peer::SpacetimeDb, Peer::YWebsocket, Peer::Zero] {
        if peers.has(peer).await {
            println!("  {peer}: {}", peer.acknowledged());
        }
    }
    println!("x graft: the peer's median in multiples of ours through the same kind of client");
    Ok(())
}

/// A peer that fails is left out aloud; the others go on.
fn push(lines: &mut Vec<Line>, system: &'static str, client: &'static str, found: anyhow::Result<Figures>) {
    match found {
        Ok(figures) => lines.push(Line { system, client, ours: false, figures }),
        Err(error) => skipped(system, &error),
    }
}

fn show(lines: &[Line]) {
    let rows = lines.iter().map(|line| {
        let like = lines.iter().find(|other| other.ours && other.client == line.client);
        let ours = like.and_then(|like| like.figures.rows.p50);
        let Figures { rows, ack, samples, missing } = &line.figures;
        vec![
            line.system.into(),
            line.client.into(),
            ms(rows.p50),
            ms(rows.p90),
            ms(rows.p99),
            ms(rows.max),
            ratio(rows.p50, ours),
            ms(ack.p50),
            ms(ack.p99),
            samples.to_string(),
            missing.to_string(),
        ]
    });
    let head = [
        "system", "client", "p50", "p90", "p99", "max", "x graft", "ack p50", "ack p99", "samples", "missing",
    ];
    print(&head, &rows.collect::<Vec<_>>());
}

/// An acknowledgement to come.
type Ack = Pin<Box<dyn Future<Output = anyhow::Result<()>> + Send>>;

/// A client in Rust: one note, written and watched.
trait Notes {
    /// Texts of the note as they change; ends after the error that ends it.
    async fn watch(&self, id: u32) -> anyhow::Result<mpsc::UnboundedReceiver<String>>;
    /// Hands a write over, and answers the wait for its acknowledgement.
    async fn write(&self, id: u32, text: String) -> anyhow::Result<Ack>;
}

struct Ours(Client);

impl Ours {
    async fn new(server: &Server) -> anyhow::Result<Ours> {
        Ok(Ours(server.client().await?))
    }
}

impl Notes for Ours {
    async fn watch(&self, id: u32) -> anyhow::Result<mpsc::UnboundedReceiver<String>> {
        let sql = format!("SELECT id, text FROM notes WHERE id = {id}");
        let mut rows: Subscription = self.0.subscribe(&sql, Default::default(), None).await?;
        let (texts, shown) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            loop {
                match rows.next().await {
                    Ok(_) => {}
                    // The measurement is over.
                    Err(SubscriptionEnd::Closed(SessionEnd::Closed)) => return,
                    Err(end) => {
                        eprintln!("a subscription ended: {end:?}");
                        return;
                    }
                }
                let text =
                    rows.rows().rows().first().and_then(|row| row.get(1)).and_then(|text| text.as_str());
                if texts.send(text.unwrap_or("0").to_string()).is_err() {
                    return;
                }
            }
        });
        Ok(shown)
    }

    async fn write(&self, id: u32, text: String) -> anyhow::Result<Ack> {
        let mutation = self.0.mutate("write_note", json!({"id": id, "text": text})).await?;
        Ok(Box::pin(async move { Ok(mutation.durable().await.map(drop)?) }))
    }
}

impl Notes for spacetimedb::Client {
    async fn watch(&self, id: u32) -> anyhow::Result<mpsc::UnboundedReceiver<String>> {
        self.watch(id)
    }

    async fn write(&self, id: u32, text: String) -> anyhow::Result<Ack> {
        Ok(Box::pin(self.call("write_note", spacetimedb::args::write_note(id, &text))))
    }
}

async fn measure<C: Notes>(
    connect: impl AsyncFn() -> anyhow::Result<C>,
    subscribers: usize,
    rate: u64,
    seconds: u64,
) -> anyhow::Result<Figures> {
    let count = (rate * seconds) as usize;
    let writer = connect().await?;
    writer.write(NOTE, "0".into()).await?.await?;
    // When each number was sent; index 0 is the row above.
    let sent = Arc::new(Mutex::new(vec![Instant::now()]));
    let mut clients = Vec::new();
    let mut watchers = Vec::new();
    for _ in 0..subscribers {
        let client = connect().await?;
        let mut texts = client.watch(NOTE).await?;
        // The rows as they were: from here on it is subscribed.
        texts.recv().await.ok_or_else(|| anyhow::anyhow!("a subscription ended before it began"))?;
        clients.push(client);
        let sent = sent.clone();
        let samples = Arc::new(Mutex::new(Vec::with_capacity(count)));
        let gathered = samples.clone();
        let task = tokio::spawn(async move {
            let mut shown = 0;
            while shown < count {
                let Some(text) = texts.recv().await else { return };
                let now = Instant::now();
                let number: usize = text.parse().unwrap_or(shown);
                let sent = sent.lock();
                gathered
                    .lock()
                    .extend((shown + 1..=number).filter_map(|number| Some(now - *sent.get(number)?)));
                shown = shown.max(number);
            }
        });
        watchers.push((task, samples));
    }

    let mut acks = Vec::new();
    let mut tick = tokio::time::interval(Duration::from_secs_f64(1.0 / rate as f64));
    for number in 1..=count {
        tick.tick().await;
        let at = Instant::now();
        sent.lock().push(at);
        let ack = writer.write(NOTE, number.to_string()).await?;
        acks.push(tokio::spawn(async move { ack.await.map(|()| at.elapsed()) }));
    }
    let deadline = tokio::time::Instant::now() + ARRIVE_MAX;
    let mut samples = Vec::new();
    for (mut task, gathered) in watchers {
        if let Ok(ended) = tokio::time::timeout_at(deadline, &mut task).await {
            ended?;
        }
        task.abort();
        samples.append(&mut *gathered.lock());
    }
    let mut waits = Vec::new();
    for ack in acks {
        waits.push(ack.await??);
    }
    let missing = count * subscribers - samples.len();
    Ok(Figures {
        rows: Percentiles::of(&mut samples),
        ack: Percentiles::of(&mut waits),
        samples: samples.len(),
        missing,
    })
}
