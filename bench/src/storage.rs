//! The storage engine beside others: `storage`, or one of its parts by name.
//!
//! | module | measures or holds |
//! | --- | --- |
//! | `cold` | opening, reading and pushing where each request takes 30 ms |
//! | `warm` | local transactions and reads beside plain SQLite |
//! | `speedtest` | SQLite's own benchmark, on our VFS and on others |
//! | `memory` | memory while reading more than the cache may hold |
//! | `s3` | the object store that all of them talk to: it delays and counts |
//! | `workload`, `systems`, `engine` | what is done, by whom, in processes of their own |
//! | `report` | tables |

mod cold;
mod engine;
mod memory;
mod report;
mod s3;
mod speedtest;
mod systems;
mod warm;
mod workload;

use std::path::PathBuf;

use anyhow::{Context as _, bail};

use self::report::Group;
use crate::Order;
use crate::peers::Peers;
use crate::server::built;

pub use self::systems::{run as run_engine, run_speedtest};

/// The parts, in the order in which they run. `memory` runs only with `--big`.
pub const PARTS: [&str; 4] = ["cold", "warm", "speedtest1", "memory"];

/// Measures the parts that are asked for, and writes the files that are.
pub async fn run(order: &Order, peers: &mut Peers) -> anyhow::Result<()> {
    let mut groups: Vec<Group> = Vec::new();
    let mut show = |group: Group| {
        group.print();
        groups.push(group);
    };
    if order.wants_part("cold") {
        show(cold::run(order, peers).await?);
    }
    if order.wants_part("warm") {
        show(warm::run(order).await?);
    }
    if order.wants_part("speedtest1") {
        show(speedtest::run(order, peers).await?);
    }
    if order.big && order.wants_part("memory") {
        show(memory::run().await?);
    }
    if let Some(path) = &order.json {
        write(path, &serde_json::to_string_pretty(&groups)?)?;
    }
    if let Some(path) = &order.markdown {
        write(path, &groups.iter().map(Group::markdown).collect::<Vec<_>>().join("\n"))?;
    }
    Ok(())
}

fn write(path: &PathBuf, text: &str) -> anyhow::Result<()> {
    std::fs::write(path, text).with_context(|| format!("{} cannot be written", path.display()))
}

/// Our loadable extension.
fn extension() -> anyhow::Result<PathBuf> {
    let path = built("GRAFT_EXTENSION", "target/release/libgraft_sqlite.so");
    if !path.exists() {
        bail!(
            "{} is not there; run `cargo build --release -p sqlite-ext`, as `cargo xtask bench` does",
            path.display()
        );
    }
    Ok(path)
}
