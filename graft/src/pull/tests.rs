use futures::executor::block_on;

use super::*;
use crate::ids::{CommitId, PageIdx};
use crate::publish::{Draft, Prepared, prepare, publish};
use crate::remote::memory::MemoryRemote;
use crate::remote::{Counting, Fault, Faulty, Request};

const VOLUME: VolumeId = VolumeId([4; 16]);

/// A log of so many commits, all by writer `id`.
fn log(remote: &dyn Remote, id: u8, commits: u64, payload: usize) -> Vec<Prepared> {
    let mut all: Vec<Prepared> = Vec::new();
    for lsn in 1..=commits {
        let draft = Draft {
            volume: VOLUME,
            lsn: Lsn(lsn),
            id: CommitId([id; 16]),
            parent: all.last().map_or(ChainHash::ZERO, |last| last.head.hash),
            parent_time_ms: 0,
            now_ms: 1,
            pages: 1,
            payload: vec![id; payload].into(),
            locals: 1,
            checkpoint: Lsn::ZERO,
        };
        let prepared = prepare(draft, &[(PageIdx::FIRST, vec![lsn as u8; 512].into())]);
        block_on(publish(remote, &prepared)).unwrap();
        all.push(prepared);
    }
    all
}

fn all(remote: &dyn Remote) -> Result<Pulled, PullError> {
    block_on(pull(remote, VOLUME, Lsn::ZERO, ChainHash::ZERO))
}

#[test]
fn a_log_longer_than_a_listing_comes_whole_and_in_order() {
    let remote = Counting::new(std::sync::Arc::new(MemoryRemote::new()));
    let log = log(&*remote, 1, 2300, 10);
    remote.reset();
    let pulled = all(&*remote).unwrap();
    let counts = remote.reset();
    assert_eq!((counts.lists, counts.ranges, counts.requests()), (3, 2300, 2303));
    assert!(pulled.heads.iter().eq(log.iter().map(|p| &p.head)));
    // The newest alone: one page of the listing, whatever the history.
    let known = &log[2298].head;
    let pulled = block_on(pull(&*remote, VOLUME, known.lsn, known.hash)).unwrap();
    assert_eq!(pulled.heads, [log[2299].head.clone()]);
    assert_eq!(remote.reset().requests(), 2);
}

#[test]
fn a_head_longer_than_its_prefix_costs_a_second_read() {
    for (payload, reads) in [(10, 1), (3000, 1), (5000, 2), (300_000, 2)] {
        let remote = Counting::new(std::sync::Arc::new(MemoryRemote::new()));
        let log = log(&*remote, 1, 1, payload);
        remote.reset();
        assert_eq!(all(&*remote).unwrap().heads, [log[0].head.clone()]);
        assert_eq!(remote.reset().ranges, reads, "payload of {payload} bytes");
    }
}

#[test]
fn a_gap_or_a_foreign_object_in_the_log_is_named() {
    let remote = MemoryRemote::new();
    let log_ = log(&remote, 1, 5, 10);
    block_on(remote.delete(&key::log(VOLUME, Lsn(3)))).unwrap();
    let Err(PullError::Damaged(damaged)) = all(&remote) else { panic!("a gap passes") };
    assert_eq!(damaged.key, key::log(VOLUME, Lsn(3)));
    // Whoever is past the gap does not see it.
    let known = &log_[2].head;
    assert_eq!(block_on(pull(&remote, VOLUME, known.lsn, known.hash)).unwrap().heads.len(), 2);

    for garbage in ["0", "fffffffffffffff0.tmp", "zz", "x/y", "FFFFFFFFFFFFFFF0"] {
        let remote = MemoryRemote::new();
        log(&remote, 1, 2, 10);
        let key = format!("{}{garbage}", key::log_prefix(VOLUME));
        remote.overwrite(&key, "garbage");
        match all(&remote) {
            Err(PullError::Damaged(damaged)) => assert_eq!(damaged.key, key),
            // It sorts behind the first commit, where nobody looks.
            Ok(pulled) => {
                assert_eq!((pulled.heads.len(), garbage > "fffffffffffffffe"), (2, true), "{garbage}")
            }
            Err(error) => panic!("{garbage}: {error}"),
        }
    }
}

/// A bucket that was emptied or restored from an old copy looked like "nothing new" to whoever knew
/// the newer log, and its next commit left a gap for everyone else.
#[test]
fn a_log_that_is_not_the_one_known_has_diverged() {
    let (known, other) = (MemoryRemote::new(), MemoryRemote::new());
    let ours = log(&known, 1, 4, 10);
    log(&other, 2, 6, 10);
    let from = |at: usize, remote: &dyn Remote| {
        let head = &ours[at].head;
        block_on(pull(remote, VOLUME, head.lsn, head.hash))
    };
    assert!(from(3, &known).unwrap().heads.is_empty());
    assert!(matches!(from(3, &other), Err(PullError::Diverged { lsn: Lsn(5), .. })));
    for shorter in 0..3 {
        let restored = MemoryRemote::new();
        log(&restored, 1, shorter, 10);
        let error = from(3, &restored).unwrap_err();
        assert!(matches!(error, PullError::Diverged { lsn, .. } if lsn == Lsn(shorter + 1)), "{error}");
        assert!(error.to_string().contains("data directory"));
    }
    // Two commits of one log, the second of another.
    let remote = MemoryRemote::new();
    log(&remote, 1, 2, 10);
    let foreign = block_on(other.get(&key::log(VOLUME, Lsn(3)))).unwrap();
    remote.overwrite(&key::log(VOLUME, Lsn(3)), foreign);
    assert!(matches!(all(&remote), Err(PullError::Diverged { lsn: Lsn(3), .. })));
}

#[test]
fn a_store_that_fails_or_cuts_is_never_a_shorter_log() {
    let store = std::sync::Arc::new(MemoryRemote::new());
    let log = log(&*store, 1, 20, 5000);
    for seed in 0..300 {
        let faults =
            crate::remote::Faults { truncate: 0.1, flip: 0.1, fail_before: 0.02, ..Default::default() };
        let remote = Faulty::with_faults(store.clone(), seed, faults);
        if let Ok(pulled) = all(&*remote) {
            assert!(pulled.heads.iter().eq(log.iter().map(|p| &p.head)), "seed {seed}");
        }
        remote.set_faults(Default::default());
        remote.fail_next(Request::List, Fault::FailBefore);
        assert!(matches!(all(&*remote), Err(PullError::Remote(_))));
    }
}
