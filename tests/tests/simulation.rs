//! The whole-system simulation over a fixed batch of seeds, and the bugs that it must find.
//!
//! More seeds, and one seed again: `cargo xtask sim` (see `docs/simulation.md`).

use tests::sim::plant::Plant;
use tests::sim::{Config, Summary, run};

/// Events of each storm.
const STEPS: u64 = 2_000;

fn batch(seeds: std::ops::Range<u64>) {
    let mut total = Summary::default();
    for seed in seeds.clone() {
        match run(Config::new(seed, STEPS)) {
            Ok(summary) => {
                println!("seed {seed}: {summary}");
                total.add(&summary);
            }
            Err(failure) => panic!("{failure}"),
        }
    }
    println!("seeds {seeds:?}: {total}");
    // A batch in which little happens shows nothing.
    let rich = [
        total.crashes,
        total.checkpoints,
        total.faults,
        total.direct,
        total.lsns_lost,
        total.rejected,
        total.shown_checked,
        total.stalls,
        total.collections,
        total.deleted,
        total.compactions,
        total.forks,
        total.fork_commits,
    ];
    assert!(rich.iter().all(|count| *count > 15), "{total}");
    let documents = total.documents;
    let rich = [
        documents.documents,
        documents.commits,
        documents.rebases,
        documents.transplanted,
        documents.replayed,
        documents.confirmed,
        documents.reads,
        documents.txns,
        documents.edges,
    ];
    assert!(rich.iter().all(|count| *count > 30), "{documents}");
    let rare = [
        total.frames_lost,
        total.frozen,
        total.partitions,
        total.power_cuts,
        total.disk_full,
        total.owners,
        total.handed_over,
        total.routed,
        total.verified,
        total.removed,
        total.reads,
        documents.cut,
        documents.branches,
        documents.published,
    ];
    assert!(rare.iter().all(|count| *count > 1), "{total}");
}

#[test]
fn the_whole_system_equals_a_serial_replay() {
    batch(0..25);
}

#[test]
fn the_whole_system_equals_a_serial_replay_again() {
    batch(1_000..1_025);
}

#[test]
fn equal_seeds_have_equal_histories() {
    for seed in [3, 7] {
        let (first, second) = (run(Config::new(seed, 1_000)), run(Config::new(seed, 1_000)));
        assert_eq!(
            first.map_err(|failure| failure.to_string()),
            second.map_err(|failure| failure.to_string())
        );
    }
    let fingerprint = |seed| run(Config::new(seed, 300)).map(|summary| summary.fingerprint).ok();
    assert_ne!(fingerprint(3), fingerprint(7), "a fingerprint that is always the same shows nothing");
}

/// The simulation can fail: it finds each planted bug within a few seeds.
#[test]
fn planted_bugs_are_found() {
    const SEEDS_MAX: u64 = 40;
    for plant in Plant::ALL {
        let found = (0..SEEDS_MAX).find_map(|seed| {
            let config = Config { plant: Some(plant), ..Config::new(seed, 1_500) };
            run(config).err().map(|failure| (seed, failure))
        });
        match found {
            Some((seed, failure)) => {
                let what: String = failure.what.chars().take(150).collect();
                println!("{plant}: found by seed {seed} ({} seeds): {what}", seed + 1);
            }
            None => panic!("{plant} was not found by {SEEDS_MAX} seeds"),
        }
    }
}

/// The check for serializability alone, which sees no log and no replay, finds merges that it must not
/// allow, and prints the cycle.
#[test]
fn a_merge_that_does_not_look_at_reads_is_found_as_a_cycle() {
    for plant in [Plant::MergeSkipsReads, Plant::MergeWritesOnly] {
        const SEEDS_MAX: u64 = 20;
        let found = (0..SEEDS_MAX).find_map(|seed| {
            let config = Config { plant: Some(plant), ..Config::new(seed, 1_500) };
            let what = run(config).err()?.what;
            (what.contains("not serializable (G") && what.contains("-rw->")).then_some((seed, what))
        });
        let Some((seed, what)) = found else { panic!("{plant} shows no cycle within {SEEDS_MAX} seeds") };
        println!("{plant}: seed {seed}: {what}");
    }
}
