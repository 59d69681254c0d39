//! Cold, over the network: every measure begins with an empty folder and a store that delays each request.
//!
//! Each system gets the same rows its own best way, and is then asked in new processes. Data is loaded,
//! and history made, without the delay.

use std::path::PathBuf;
use std::time::Duration;

use super::engine::{Answer, Engine};
use super::report::{Figure, Group, Row, Unit};
use super::s3::{BUCKET, Store};
use super::systems::Place;
use super::workload;
use crate::Order;
use crate::peers::{Peer, Peers, engines, skipped};
use crate::server::scratch;

/// Point queries of the measure "100 random".
const RANDOM: u64 = 100;
/// Updates whose mean is shown.
const UPDATES: u64 = 10;
/// How often opening is measured; the median counts.
const OPENS: u64 = 3;
/// A store to which nobody has written for this long is settled.
const QUIET: Duration = Duration::from_secs(3);

/// What is done to a system that others are not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Ours,
    Upstream,
    Litestream,
    Turbolite,
}

struct Contestant {
    kind: Kind,
    name: String,
    /// Its program, what that calls the system, and the extension it loads.
    program: PathBuf,
    system: &'static str,
    extension: Option<PathBuf>,
    page_bytes: u32,
}

/// What a system was found to take: a figure for each of [`MEASURES`].
type Found = Vec<Option<Figure>>;

const MEASURES: [(&str, &str); 9] = [
    ("open", ""),
    ("cold point query", "≤ 100 ms"),
    ("100 random rows", "≤ 350 ms"),
    ("full scan", "≤ turbolite"),
    ("one-row update, durable", "≤ 35 ms, 1 PUT"),
    ("open after the pushes", "≤ 150 ms"),
    ("cold point query then", ""),
    ("full scan then", ""),
    ("stored", ""),
];

/// Measures.
pub async fn run(order: &Order, peers: &mut Peers) -> anyhow::Result<Group> {
    let store = Store::start().await?;
    let delay = Duration::from_millis(order.delay_ms);
    let mut group = Group {
        title: format!(
            "Cold, {} ms for each request: {} rows (id, indexed number, {} bytes of text), then {} pushes",
            order.delay_ms,
            order.rows,
            workload::BODY_BYTES,
            order.pushes
        ),
        systems: Vec::new(),
        rows: MEASURES.iter().map(|(name, target)| Row {
            name: (*name).into(),
            unit: if *name == "stored" { Unit::Bytes } else { Unit::Ms },
            target,
            figures: Vec::new(),
        }).collect(),
        notes: vec![
            "In brackets: requests and bytes, both ways. × is that system's figure in multiples of ours.".into(),
            "Each of the first four begins in a new process with an empty folder; the query's figure is without opening.".into(),
        ],
    };
    for contestant in contestants(peers).await? {
        let found = measure(&contestant, &store, order, delay).await;
        store.delay(Duration::ZERO);
        store.clear("");
        let found = match found {
            Ok(found) => found,
            Err(error) if contestant.kind == Kind::Ours => return Err(error.context("graft")),
            Err(error) => {
                skipped(&contestant.name, &error);
                group.notes.push(format!("Left out: {}: {error:#}", contestant.name));
                continue;
            }
        };
        group.systems.push(contestant.name.clone());
        group.rows.iter_mut().zip(found).for_each(|(row, figure)| row.figures.push(figure));
        group.notes.push(durable(contestant.kind).into());
    }
    // The history's measures say how long it is.
    group.rows[5].name = format!("open after {} pushes", order.pushes);
    Ok(group)
}

async fn contestants(peers: &mut Peers) -> anyhow::Result<Vec<Contestant>> {
    let own = std::env::current_exe()?;
    let mut found = vec![Contestant {
        kind: Kind::Ours,
        name: "graft".into(),
        program: own.clone(),
        system: "graft",
        extension: Some(super::extension()?),
        page_bytes: 4096,
    }];
    if let Some(path) = peers.engine(Peer::UpstreamGraft).await {
        found.push(Contestant {
            kind: Kind::Upstream,
            name: format!("upstream Graft {}", engines::UPSTREAM),
            program: path,
            system: "upstream",
            extension: None,
            page_bytes: 4096,
        });
    }
    if let Some(path) = peers.engine(Peer::Litestream).await {
        found.push(Contestant {
            kind: Kind::Litestream,
            name: format!("Litestream VFS {}", engines::LITESTREAM),
            program: own,
            system: "litestream",
            extension: Some(path),
            page_bytes: 4096,
        });
    }
    if let Some(path) = peers.engine(Peer::Turbolite).await {
        found.push(Contestant {
            kind: Kind::Turbolite,
            name: format!("turbolite {}", engines::TURBOLITE),
            program: path,
            system: "turbolite",
            extension: None,
            page_bytes: 65536,
        });
    }
    Ok(found)
}

fn durable(kind: Kind) -> &'static str {
    match kind {
        Kind::Ours => "graft, durable: pushed; the commit is an object in the store.",
        Kind::Upstream => "upstream Graft, durable: pushed; a segment and a commit are objects in the store.",
        Kind::Litestream => {
            "Litestream: its background sync uploads within a second and nothing waits for it, so there is no figure for a durable update, nor for a push each."
        }
        Kind::Turbolite => {
            "turbolite, durable: the WAL checkpointed, which uploads the page groups and the manifest. It keeps no history, so there is nothing to open after pushes. Pages of 64 KiB, its own importer, plans foretold."
        }
    }
}

struct Runner<'a> {
    contestant: &'a Contestant,
    store: &'a Store,
    rows: u64,
    note: String,
}

impl Runner<'_> {
    /// A process in an empty folder.
    fn start(&self) -> anyhow::Result<(Engine, tempfile::TempDir)> {
        let dir = scratch()?;
        let place = Place {
            dir: dir.path().into(),
            extension: self.contestant.extension.clone(),
            note: self.note.clone(),
            rows: self.rows,
        };
        let url = self.store.url();
        let replica = format!("s3://{BUCKET}/litestream?endpoint={url}&forcePathStyle=true&region=us-east-1");
        let variables = [
            ("AWS_ACCESS_KEY_ID", "bench".to_string()),
            ("AWS_SECRET_ACCESS_KEY", "bench".into()),
            ("AWS_REGION", "us-east-1".into()),
            ("AWS_ENDPOINT_URL", url.clone()),
            ("AWS_ENDPOINT", url),
            ("AWS_ALLOW_HTTP", "true".into()),
            ("AWS_EC2_METADATA_DISABLED", "true".into()),
            ("LITESTREAM_REPLICA_URL", replica),
            ("LITESTREAM_ACCESS_KEY_ID", "bench".into()),
            ("LITESTREAM_SECRET_ACCESS_KEY", "bench".into()),
            (
                "LITESTREAM_WRITE_ENABLED",
                (self.contestant.kind == Kind::Litestream && self.note.is_empty()).to_string(),
            ),
            ("LITESTREAM_BUFFER_PATH", dir.path().join("buffer").display().to_string()),
        ];
        let variables = variables.map(|(name, value)| (name.to_string(), value));
        let engine = Engine::start(&self.contestant.program, self.contestant.system, &place, &variables);
        let engine = engine.map_err(|error| error.context(format!("in {}", dir.path().display())))?;
        Ok((engine, dir))
    }

    /// An order, with what it took of the store.
    async fn timed(&self, engine: &mut Engine, order: &str, times: u64) -> anyhow::Result<Figure> {
        self.store.take();
        let Answer { ms, .. } = engine.order(order).await?;
        let counts = self.store.take();
        if counts.refused > 0 {
            anyhow::bail!("{} requests of `{order}` are unknown to the bench's store", counts.refused);
        }
        Ok(Figure { value: ms / times as f64, counts: Some(counts), times })
    }

    /// A new process in an empty folder: opens, and does `order`.
    async fn cold(&self, order: &str, seen: &mut Vec<Figure>) -> anyhow::Result<Figure> {
        let (mut engine, _dir) = self.start()?;
        seen.push(self.timed(&mut engine, "open", 1).await?);
        let figure = self.timed(&mut engine, order, 1).await?;
        engine.end().await?;
        Ok(figure)
    }

    /// Waits until nobody writes.
    async fn settle(&self) {
        loop {
            self.store.take();
            tokio::time::sleep(QUIET).await;
            if self.store.take().puts == 0 {
                return;
            }
        }
    }
}

async fn measure(
    contestant: &Contestant,
    store: &Store,
    order: &Order,
    delay: Duration,
) -> anyhow::Result<Found> {
    println!("… {}: {} rows", contestant.name, order.rows);
    let mut runner = Runner { contestant, store, rows: order.rows, note: String::new() };
    let files = scratch()?;
    let file = files.path().join("source.db");
    workload::make_file(&file, order.rows, contestant.page_bytes)?;
    let (mut engine, _dir) = runner.start()?;
    let imported = engine.order(&format!("import {}", file.display())).await?;
    if contestant.kind == Kind::Litestream {
        runner.settle().await;
    }
    engine.end().await?;
    runner.note = if imported.note.is_empty() { "imported".into() } else { imported.note };
    let stored = store.stored("").0 as f64;

    store.delay(delay);
    let mut opens = Vec::new();
    let point = runner.cold("point 1", &mut opens).await?;
    let random = runner.cold(&format!("random {RANDOM} 2"), &mut opens).await?;
    let (mut engine, _dir) = runner.start()?;
    opens.push(runner.timed(&mut engine, "open", 1).await?);
    let scan = runner.timed(&mut engine, "scan", 1).await?;
    let durable = matches!(contestant.kind, Kind::Ours | Kind::Upstream | Kind::Turbolite);
    let update = match durable {
        true => Some(runner.timed(&mut engine, &format!("update {UPDATES} 3"), UPDATES).await?),
        false => None,
    };
    let mut after = [None; 3];
    if matches!(contestant.kind, Kind::Ours | Kind::Upstream) && order.pushes > 0 {
        println!("… {}: {} pushes", contestant.name, order.pushes);
        store.delay(Duration::ZERO);
        // In portions, so that a slow system is seen to be slow and not taken for dead.
        for portion in 0..order.pushes.div_ceil(PORTION) {
            let count = PORTION.min(order.pushes - portion * PORTION);
            engine.order(&format!("update {count} {}", 4 + portion)).await?;
        }
        engine.end().await?;
        store.delay(delay);
        let mut later = Vec::new();
        after[1] = Some(runner.cold("point 5", &mut later).await?);
        after[2] = Some(runner.cold("scan", &mut later).await?);
        after[0] = median(later);
    } else {
        engine.end().await?;
    }
    let [open_after, point_after, scan_after] = after;
    for _ in opens.len() as u64..OPENS {
        let (mut engine, _dir) = runner.start()?;
        opens.push(runner.timed(&mut engine, "open", 1).await?);
    }
    Ok(vec![
        median(opens),
        Some(point),
        Some(random),
        Some(scan),
        update,
        open_after,
        point_after,
        scan_after,
        Some(Figure::of(stored)),
    ])
}

/// Pushes that are one order.
const PORTION: u64 = 500;

fn median(mut figures: Vec<Figure>) -> Option<Figure> {
    figures.sort_by(|a, b| a.value.total_cmp(&b.value));
    figures.get(figures.len() / 2).copied()
}

/// The size of a database of `rows` rows, the most memory of a process that reads it whole from an empty
/// folder, and how long that takes in ms.
pub async fn memory_of_scan(rows: u64) -> anyhow::Result<(f64, f64, f64)> {
    let store = Store::start().await?;
    let contestant = Contestant {
        kind: Kind::Ours,
        name: "graft".into(),
        program: std::env::current_exe()?,
        system: "graft",
        extension: Some(super::extension()?),
        page_bytes: 4096,
    };
    let runner = Runner { contestant: &contestant, store: &store, rows, note: "imported".into() };
    let files = scratch()?;
    let file = files.path().join("source.db");
    println!("… making a file of {rows} rows");
    workload::make_file(&file, rows, contestant.page_bytes)?;
    let data = std::fs::metadata(&file)?.len();
    let (mut engine, _dir) = runner.start()?;
    engine.order(&format!("import {}", file.display())).await?;
    engine.end().await?;
    drop(files);
    let (mut engine, _dir) = runner.start()?;
    let opened = engine.order("open").await?.ms;
    let scanned = engine.order("scan").await?.ms;
    let peak = engine.order("memory").await?.number;
    engine.end().await?;
    Ok((data as f64, peak as f64, opened + scanned))
}
