//! Pending mutations brought on top of a pulled change, by merge and by replay, beside Replicache.
//!
//! A client has made mutations that nobody has confirmed; somebody else's change is pulled. The clock runs
//! from the call that pulls until the client's live query shows the pulled change, with every pending
//! mutation on top of it. No network and no disk, on either side: our store and object store are in
//! memory, and so are Replicache's key-value pairs.
//!
//! | by | what becomes of a pending mutation |
//! | --- | --- |
//! | merge | it keeps its pages, where the change touched none that it read or wrote; else it runs again |
//! | replay | it runs again |
//!
//! The second table asks how often a merge can keep a mutation at all, the more of the table the other
//! writer changes.
//!
//! Invariants: after every rebase all mutations are still pending; at the end the content is what a serial
//! order gives, or the run fails; what is called merged was transplanted to the last mutation, and what is
//! called replayed ran again. `rebase/scene.rs` holds the documents and reducers.

mod scene;

use std::time::Duration;

use anyhow::{Context as _, ensure};
use rand::rngs::SmallRng;
use rand::seq::index;
use rand::{Rng as _, SeedableRng as _};
use serde::Deserialize;
use serde_json::json;
use sqlsync_layer::rebase::Policy;

use self::scene::{Reducers, Scene};
use crate::Order;
use crate::peers::{Peer, Peers, skipped};
use crate::table::{Percentiles, ms, print, ratio};

/// Rows of the table. Pending mutations change every other one from the first on, the pulled change the
/// last, so they never share a leaf of the tree.
const ROWS: u64 = 60_000;
/// How often a stack is rebased; the median counts.
const TIMES: usize = 3;
/// How much of the table the other writer changes.
const SHARES: [f64; 4] = [0.001, 0.01, 0.1, 0.5];

/// Checks `--pending`: each has a row of its own.
pub fn pending(number: u64) -> anyhow::Result<u64> {
    ensure!(number <= ROWS / 2, "--pending takes at most {}, not {number}", ROWS / 2);
    Ok(number)
}

/// Measures and prints.
pub async fn run(order: &Order, peers: &mut Peers) -> anyhow::Result<()> {
    let pending = order.pending;
    println!(
        "\n# rebase: {pending} pending mutations (todo's set_done; {ROWS} tasks) on a pulled change, median of {TIMES}\n"
    );
    // Ours first, and nothing beside it.
    let (ours, contention) = tokio::task::spawn_blocking(move || ours(pending)).await??;
    let theirs = replicache(pending, peers).await;
    let each = |found: Option<f64>| found.map(|ms| ms * 1e3 / pending as f64);
    let line = |system: &str, by: &str, found: Option<f64>, ratio: String, ambition: &str| {
        vec![system.into(), by.into(), ms(found), ms(each(found)), ratio, ambition.into()]
    };
    let mut rows: Vec<Vec<String>> = Vec::new();
    for rebased in &ours {
        let ambition = if rebased.policy == Policy::Merge { "50" } else { "5" };
        let times = ratio(theirs, rebased.median);
        let by = format!("{}, {}", named(rebased.policy), rebased.reducers.name());
        rows.push(line("graft", &by, rebased.median, times, ambition));
    }
    if theirs.is_some() {
        rows.push(line("replicache", "replay, JavaScript", theirs, "1.00".into(), ""));
    }
    print(&["system", "by", "ms", "µs each", "replicache / it", "ambition"], &rows);
    println!(
        "
graft includes: the pull and its decoding; for each mutation the check of its read and write set (merge), or
  SQLite with its reads recorded (replay), and its place in the page table; what changed, in one batch of the
  store (in memory): a mutation that keeps its pages keeps its record, too; the live query.
replicache includes: the pull, for each mutation its function on a key-value tree in memory, and the
  subscription; nothing is kept beyond its Node process (kvStore: 'mem')."
    );
    println!("\n## merge against contention: who keeps its pages when rows are changed at random, native\n");
    print(&["table", "changed rows", "of them pending too", "transplanted", "replayed", "ms"], &contention);
    println!(
        "
`transplanted` is the share of the pending mutations that were not run again; at best it is what is left
of `pending too`. Validation is by page: a changed row makes every mutation of its page run again.
The to-do example's table is WITHOUT ROWID: its inner pages hold rows, too, and a change of one of those
makes all run again that went through it; an ordinary table has no rows there."
    );
    Ok(())
}

fn named(policy: Policy) -> &'static str {
    match policy {
        Policy::Merge => "merge",
        Policy::Replay => "replay",
        Policy::Fork => "fork",
    }
}

/// One stack's rebases.
struct Rebased {
    policy: Policy,
    reducers: Reducers,
    median: Option<f64>,
}

/// All of ours; blocks.
fn ours(pending: u64) -> anyhow::Result<(Vec<Rebased>, Vec<Vec<String>>)> {
    let mut found = Vec::new();
    for reducers in [Reducers::Wasm, Reducers::Native] {
        for policy in [Policy::Merge, Policy::Replay] {
            found.push(untouched(pending, reducers, policy)?);
        }
    }
    let mut contention = Vec::new();
    for reducers in [Reducers::Native, Reducers::NativeRowid] {
        for share in SHARES {
            contention.push(contended(pending, reducers, share)?);
        }
    }
    Ok((found, contention))
}

/// Rebases a stack on changes that touch none of its pages.
fn untouched(pending: u64, reducers: Reducers, policy: Policy) -> anyhow::Result<Rebased> {
    let mut scene = Scene::new(ROWS, reducers, policy)?;
    scene.make((0..pending).map(|at| at * 2))?;
    let mut samples: Vec<Duration> = Vec::new();
    for at in 0..TIMES {
        scene.change([ROWS - 1], &format!("pulled {at}"))?;
        samples.push(scene.rebase(pending)?);
    }
    let (counts, all) = (scene.counts(), pending * TIMES as u64);
    let expected = if policy == Policy::Merge { (all, 0) } else { (0, all) };
    ensure!(
        (counts.transplanted, counts.replayed) == expected,
        "{policy:?} did {counts:?}, not {expected:?}"
    );
    let done = scene.done()?;
    ensure!(done == pending + 1, "{done} tasks are done, not {pending} and the pulled one");
    Ok(Rebased { policy, reducers, median: Percentiles::of(&mut samples).p50 })
}

/// Rebases by merge, with `share` of the rows changed by another: a line of the table.
fn contended(pending: u64, reducers: Reducers, share: f64) -> anyhow::Result<Vec<String>> {
    let seed = rand::rng().random();
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut some = |count: u64| {
        let rows = index::sample(&mut rng, ROWS as usize, count as usize).into_iter().map(|row| row as u64);
        rows.collect::<std::collections::BTreeSet<u64>>()
    };
    let changed = some((ROWS as f64 * share).round() as u64);
    let mine = some(pending);
    let mut scene = Scene::new(ROWS, reducers, Policy::Merge)?;
    scene.make(mine.iter().copied())?;
    // The last row as well: it is the one that the live query shows.
    scene.change(changed.iter().copied().chain([ROWS - 1]), "pulled")?;
    let took = scene.rebase(pending)?;
    let counts = scene.counts();
    ensure!(counts.transplanted + counts.replayed == pending, "seed {seed}: {counts:?} of {pending}");
    let done = scene.done()?;
    let mut expected = changed.clone();
    expected.extend(mine.iter().copied().chain([ROWS - 1]));
    ensure!(done == expected.len() as u64, "seed {seed}: {done} tasks are done, not {}", expected.len());
    let percent = |count: u64| format!("{:.1} %", count as f64 * 100.0 / pending as f64);
    let shared = mine.intersection(&changed).count() as u64;
    let table = if reducers == Reducers::NativeRowid { "rowid" } else { "without rowid" };
    Ok(vec![
        table.into(),
        format!("{:.1} %", share * 100.0),
        percent(shared),
        percent(counts.transplanted),
        counts.replayed.to_string(),
        ms(Some(took.as_secs_f64() * 1e3)),
    ])
}

/// Replicache's median in milliseconds. Why there is none is printed.
async fn replicache(pending: u64, peers: &mut Peers) -> Option<f64> {
    #[derive(Deserialize)]
    struct Answer {
        rebases: Vec<f64>,
    }
    if !peers.has(Peer::Replicache).await {
        return None;
    }
    let node = peers.node().await?;
    let order = json!({ "rows": ROWS, "pending": pending, "times": TIMES });
    let answer = node.ask::<Answer>("replicache.mjs", order).await.context("replicache's rebase");
    let answer = answer.map_err(|error| skipped("replicache", &error)).ok()?;
    let mut samples: Vec<Duration> =
        answer.rebases.iter().map(|ms| Duration::from_secs_f64(ms / 1e3)).collect();
    Percentiles::of(&mut samples).p50
}
