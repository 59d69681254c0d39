//! Warm, on this disk alone: what the VFS and the local store cost beside the same SQLite in WAL mode.
//!
//! The systems take turns, so that the machine's noise falls on all; the median of the rounds counts.

use std::path::Path;

use super::engine::Engine;
use super::report::{Figure, Group, Row, Unit};
use super::systems::Place;
use super::workload;
use crate::Order;
use crate::server::scratch;

const ROUNDS: usize = 3;
/// One-row transactions of a round: with an fsync each, and without.
const SYNCED: u64 = 2_000;
const BUFFERED: u64 = 10_000;
/// Point queries and scans of a round.
const POINTS: u64 = 50_000;
const SCANS: u64 = 5;
/// One-row transactions after which the directory is measured.
pub const GROWN: u64 = 100_000;

/// Our settings beside SQLite's: equal durability in each pair.
const PAIRS: [(&str, &str); 2] = [("graft-sync", "sqlite-full"), ("graft-buffered", "sqlite-normal")];

struct Running {
    engine: Engine,
    dir: tempfile::TempDir,
}

async fn start(system: &str, rows: u64) -> anyhow::Result<Running> {
    let dir = scratch()?;
    let place = Place { dir: dir.path().into(), extension: None, note: String::new(), rows };
    let engine = Engine::start(&std::env::current_exe()?, system, &place, &[])?;
    Ok(Running { engine, dir })
}

/// Measures.
pub async fn run(order: &Order) -> anyhow::Result<Group> {
    let mut rows = Vec::new();
    let files = scratch()?;
    let file = files.path().join("source.db");
    workload::make_file(&file, order.rows, 4096)?;
    let mut add = |name: String, unit, target, figures: [f64; 2]| {
        let figures = figures.map(|value| Some(Figure::of(value))).into();
        rows.push(Row { name, unit, target, figures });
    };
    let orders = |count: u64| [format!("insert {count}"), format!("random {POINTS} 7"), "scan".to_string()];
    for (pair, count) in PAIRS.iter().zip([SYNCED, BUFFERED]) {
        println!("… {} and {}", pair.0, pair.1);
        let mut both = [start(pair.0, order.rows).await?, start(pair.1, order.rows).await?];
        for running in &mut both {
            running.engine.order(&format!("import {}", file.display())).await?;
        }
        let mut found: [[Vec<f64>; 2]; 3] = Default::default();
        for _ in 0..ROUNDS {
            for (what, order) in orders(count).iter().enumerate() {
                for (who, running) in both.iter_mut().enumerate() {
                    let mut ms = running.engine.order(order).await?.ms;
                    if what == 2 {
                        for _ in 1..SCANS {
                            ms += running.engine.order(order).await?.ms;
                        }
                    }
                    found[what][who].push(ms);
                }
            }
        }
        let synced = pair.0 == "graft-sync";
        let [inserts, points, scans] = found.map(|both| both.map(median));
        let (name, target) = if synced {
            ("with an fsync each", "≤ 1.2× SQLite's")
        } else {
            ("without fsync", "≤ 2× SQLite's")
        };
        add(format!("{count} one-row transactions, {name}"), Unit::Ms, target, inserts);
        // Reading does not hang on how commits are kept.
        if synced {
            add(format!("{POINTS} point queries, warm"), Unit::Ms, "≤ 1.1× SQLite's", points);
            add(format!("{SCANS} full scans, warm"), Unit::Ms, "≤ 1.1× SQLite's", scans);
        }
        for running in both {
            running.engine.end().await?;
        }
    }
    println!("… directories after {GROWN} one-row transactions");
    let mut sizes = [0.0; 2];
    for (system, size) in [PAIRS[1].0, PAIRS[1].1].into_iter().zip(&mut sizes) {
        *size = grown(system, order.rows, &file).await?;
    }
    add(
        format!("directory after {GROWN} one-row transactions, settled"),
        Unit::Bytes,
        "≤ 1.3× the data + 128 MiB",
        sizes,
    );
    Ok(Group {
        title: format!("Warm, local: {} rows, through the VFS and the local store", order.rows),
        systems: vec!["graft".into(), "SQLite, WAL".into()],
        rows,
        notes: vec![
            "× is SQLite's figure in multiples of ours; a target of 1.2× its time is met from ×0.83 on.".into(),
            "With an fsync: ours waits for the local store's journal, SQLite is synchronous=FULL; both survive power loss.".into(),
            "Without: ours is in the system's buffers, SQLite is synchronous=NORMAL; both survive the process's end alone.".into(),
            "The directory is measured after ten pushes, when its process has ended, was opened again, read all, and ended.".into(),
            format!("One SQLite for both, the same rows; median of {ROUNDS} rounds in turns."),
        ],
    })
}

/// The size of a system's directory once its process has ended, was opened again, and ended.
async fn grown(system: &str, rows: u64, file: &Path) -> anyhow::Result<f64> {
    let mut running = start(system, rows).await?;
    running.engine.order(&format!("import {}", file.display())).await?;
    // In tens: what is pushed is no longer a local commit.
    for _ in 0..10 {
        running.engine.order(&format!("insert {}", GROWN / 10)).await?;
        running.engine.order("publish").await?;
    }
    running.engine.end().await?;
    let place = Place { dir: running.dir.path().into(), extension: None, note: String::new(), rows };
    let mut again = Engine::start(&std::env::current_exe()?, system, &place, &[])?;
    again.order("open").await?;
    again.order("scan").await?;
    again.end().await?;
    // The directory store beside it is not local state.
    let data = running.dir.path().join("data");
    Ok(size(if data.exists() { &data } else { running.dir.path() })? as f64)
}

/// Bytes on disk of everything under `path`.
fn size(path: &Path) -> anyhow::Result<u64> {
    use std::os::unix::fs::MetadataExt as _;
    let mut sum = 0;
    for entry in std::fs::read_dir(path)? {
        let entry = entry?;
        let found = entry.metadata()?;
        sum += if found.is_dir() { size(&entry.path())? } else { found.blocks() * 512 };
    }
    Ok(sum)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
