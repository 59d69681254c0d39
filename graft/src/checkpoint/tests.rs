//! What opening costs, whatever came before, and who wins where two write at once.

use std::collections::BTreeMap;

use futures::executor::block_on;

use super::*;
use crate::catalog;
use crate::fetch::fetch;
use crate::format::meta::Meta;
use crate::format::tombstone::{Of, Tombstone};
use crate::ids::{CommitId, PageIdx, PageSize, VolumeId};
use crate::page_set::PageSet;
use crate::remote::{Counting, Counts, Fault, Faulty, MemoryRemote, Request};
use crate::store::{MemoryStore, SharedStore};
use crate::volume::{Change, OpenError, Opened, Options, ReadError, push};

const VOLUME: VolumeId = VolumeId([3; 16]);
const PAGE: usize = 512;

fn page(idx: u32) -> PageIdx {
    PageIdx::new(idx).unwrap()
}

fn created() -> Arc<MemoryRemote> {
    let remote = Arc::new(MemoryRemote::new());
    let meta = Meta { page_size: PageSize::new(PAGE as u32).unwrap(), parent: None };
    block_on(catalog::create(&*remote, &"v".parse().unwrap(), VOLUME, meta)).unwrap();
    remote
}

fn in_memory() -> Options {
    Options { store: None, locals: None, cache_bytes: 16 << 20, ..Options::default() }
}

fn open(remote: &dyn Remote, options: Options) -> Opened {
    block_on(Volume::open(remote, VOLUME, options)).unwrap()
}

/// Pages of one byte each, which is their number's and the round's.
fn commit(remote: &dyn Remote, volume: &Volume, pages: u32, written: &[u32], round: u64) {
    let content = |idx: u32| Bytes::from(vec![(u64::from(idx) * 7 + round) as u8; PAGE]);
    let changes: BTreeMap<_, _> = written.iter().map(|idx| (page(*idx), content(*idx))).collect();
    volume.commit(&volume.tip(), Change { changes, pages, payload: Bytes::new() }).unwrap();
    let id = || CommitId((u128::from(round) + 1).to_be_bytes());
    block_on(push(remote, volume, |_| Bytes::new(), id, round as i64)).unwrap();
}

fn checkpoint(remote: &dyn Remote, volume: &Volume, state: &str) -> Written {
    block_on(write(remote, volume, &volume.base(), Bytes::copy_from_slice(state.as_bytes()))).unwrap()
}

fn read(remote: &dyn Remote, volume: &Volume, idx: u32) -> u8 {
    let tip = volume.tip();
    match volume.read(&tip, page(idx)) {
        Ok(bytes) => bytes[0],
        Err(ReadError::Fault(missing)) => {
            block_on(fetch(remote, volume, &tip, &missing)).unwrap();
            volume.read(&tip, page(idx)).unwrap()[0]
        }
        Err(error) => panic!("{error}"),
    }
}

fn requests(counts: Counts) -> [u64; 5] {
    [counts.gets, counts.ranges, counts.creates, counts.lists, counts.deletes]
}

/// Regression of what sinks others: opening after 20,000 one-row commits once read them all.
#[test]
fn opening_costs_the_same_after_any_history() {
    const SINCE: u64 = 37;
    let remote = Counting::new(created());
    let writer = open(&*remote, in_memory()).volume;
    let policy = Policy::default();
    let mut costs = Vec::new();
    let mut round = 0;
    for commits in [1_000, 20_000] {
        while round < commits {
            round += 1;
            commit(&*remote, &writer, 3_000, &[(round * 7919 % 3_000) as u32 + 1], round);
            if round > commits - SINCE {
                continue;
            }
            if round == commits - SINCE {
                checkpoint(&*remote, &writer, "state");
            } else if writer.checkpoint_due(&policy) {
                let before = remote.snapshot();
                checkpoint(&*remote, &writer, "state");
                // One create; what it stores again was in memory.
                assert_eq!(requests(remote.snapshot() - before), [0, 0, 1, 0, 0]);
            }
        }
        remote.reset();
        let opened = open(&*remote, in_memory());
        let cost = remote.reset();
        let written = |round: u64| (round * 7919 % 3_000) as u32 + 1;
        // Metadata, two listings; the root; a head for each commit since, and beside them page 1, which the
        // short history has not written yet.
        let first = u64::from((1..=commits - SINCE).any(|round| written(round) == 1));
        assert_eq!(
            (requests(cost), first),
            ([1, 1 + SINCE + first, 0, 2, 0], u64::from(commits > 1_000)),
            "after {commits} commits"
        );
        assert_eq!((opened.start.lsn.0, opened.heads.len() as u64), (commits - SINCE, SINCE));
        assert_eq!(&opened.start.state[..], b"state");
        // A page that was written long ago: the table came with the root, so its frame alone.
        let last = (1..=commits).rev().find(|round| written(*round) == written(1)).unwrap();
        let expected = (u64::from(written(1)) * 7 + last) as u8;
        assert_eq!(read(&*remote, &opened.volume, written(1)), expected);
        assert_eq!(requests(remote.reset()), [0, 1, 0, 0, 0]);
        costs.push(cost.bytes_down);
    }
    // The chunks of 3,000 pages and 300 earlier checkpoints fit the prefix, whatever the history.
    let (short, long) = (costs[0], costs[1]);
    assert!(long <= short + crate::format::checkpoint::PREFIX_BYTES, "{short} and then {long} bytes");
}

/// A table of many chunks is read by the chunk, and a checkpoint stores what was touched.
#[test]
fn a_large_table_costs_what_is_touched() {
    const CHUNKS: u32 = 300;
    let remote = Counting::new(created());
    let writer = open(&*remote, in_memory()).volume;
    let pages = CHUNKS * 256;
    for first in (1..=pages).step_by(6400) {
        let written: Vec<u32> = (first..first + 6400).filter(|idx| *idx <= pages).collect();
        commit(&*remote, &writer, pages, &written, 1_000_000 + u64::from(first));
    }
    remote.reset();
    checkpoint(&*remote, &writer, "s");
    let whole = remote.reset();
    assert_eq!(requests(whole), [0, 0, 1, 0, 0]);
    assert!(whole.bytes_up > chunks::WHOLE_BYTES_MAX, "{whole:?}");
    for round in 1..=5 {
        commit(&*remote, &writer, pages, &[700], round);
    }
    remote.reset();
    checkpoint(&*remote, &writer, "s");
    let touched = remote.reset();
    assert_eq!(requests(touched), [0, 0, 1, 0, 0]);
    // The root names all chunks in 44 bytes each; two of them are stored, that of page 1 again.
    assert!(touched.bytes_up < u64::from(CHUNKS) * 44 + 16_000, "{touched:?}");

    let reader = open(&*remote, in_memory()).volume;
    // With the root came where page 1 is, which was read beside the heads.
    assert_eq!(requests(remote.reset()), [1, 2, 0, 2, 0]);
    read(&*remote, &reader, 1);
    assert_eq!(requests(remote.reset()), [0; 5]);
    // One page of an untouched chunk: its chunk, its frame.
    read(&*remote, &reader, 50_000);
    let cold = remote.reset();
    assert_eq!(requests(cold), [0, 2, 0, 0, 0]);
    assert!(cold.bytes_down < 12_000, "{cold:?}");
    // Its neighbour in the frame costs nothing; the touched one came with the root.
    read(&*remote, &reader, 50_001);
    assert_eq!(requests(remote.reset()), [0; 5]);
    assert_eq!(read(&*remote, &reader, 700), (700 * 7 + 5) as u8);
    assert_eq!(requests(remote.reset()), [0, 1, 0, 0, 0]);
    // A reader that writes: its checkpoint reads the chunk that it touches, and no other.
    commit(&*remote, &reader, pages, &[30_000], 9);
    remote.reset();
    assert_eq!(checkpoint(&*remote, &reader, "s"), Written::Stored { seq: Seq(3), lsn: reader.base().lsn() });
    assert_eq!(requests(remote.reset()), [0, 1, 1, 0, 0]);
    for volume in [&reader, &open(&*remote, in_memory()).volume] {
        let found = [700, 30_000, 50_000].map(|idx| read(&*remote, volume, idx));
        assert_eq!(found[..2], [(700 * 7 + 5) as u8, (30_000u32 * 7 + 9) as u8]);
        assert_ne!(found[2], 0);
    }
}

#[test]
fn of_two_that_write_one_checkpoint_one_wins_and_the_other_goes_on_from_it() {
    let remote = created();
    let (a, b) = (open(&*remote, in_memory()).volume, open(&*remote, in_memory()).volume);
    for round in 1..=3 {
        commit(&*remote, &a, 10, &[1, 2, round as u32 + 2], round);
    }
    let pulled = block_on(b.pull(&*remote)).unwrap();
    b.absorb(pulled).unwrap();
    let version = b.tip().version();
    assert_eq!(checkpoint(&*remote, &a, "a"), Written::Stored { seq: Seq(1), lsn: Lsn(3) });
    assert_eq!(checkpoint(&*remote, &b, "b"), Written::Lost { seq: Seq(1) });
    assert_eq!(b.tip().version(), version, "the content is the same");
    assert_eq!(checkpoint(&*remote, &b, "b"), Written::Current { seq: Seq(1), lsn: Lsn(3) });
    commit(&*remote, &b, 4, &[1], 4);
    assert_eq!(checkpoint(&*remote, &b, "b4"), Written::Stored { seq: Seq(2), lsn: Lsn(4) });
    let opened = open(&*remote, in_memory());
    assert_eq!((&opened.start.state[..], opened.start.lsn), (&b"b4"[..], Lsn(4)));
    let root = opened.start.checkpoint.as_ref().unwrap();
    assert_eq!(root.history, [Past { seq: Seq(1), lsn: Lsn(3), time_ms: 3 }]);
    let bytes: Vec<u8> = (1..=4).map(|idx| read(&*remote, &opened.volume, idx)).collect();
    assert_eq!(bytes, [7 + 4, 14 + 3, 21 + 1, 28 + 2]);
    // `a` is behind both: it pulls the commit, loses, and goes on from the newest.
    let pulled = block_on(a.pull(&*remote)).unwrap();
    a.absorb(pulled).unwrap();
    assert_eq!(checkpoint(&*remote, &a, "a"), Written::Lost { seq: Seq(2) });
    assert_eq!(checkpoint(&*remote, &a, "a"), Written::Current { seq: Seq(2), lsn: Lsn(4) });
}

/// A replica that had read the log from its beginning, and went on from a checkpoint of before pages were
/// cut off, showed those pages again once it had grown. The model of forks found it.
#[test]
fn a_checkpoint_of_before_a_cut_does_not_bring_back_what_was_cut_off() {
    let remote = created();
    let (a, b) = (open(&*remote, in_memory()).volume, open(&*remote, in_memory()).volume);
    commit(&*remote, &a, 600, &[1, 3, 300, 600], 1);
    let pulled = block_on(b.pull(&*remote)).unwrap();
    b.absorb(pulled).unwrap();
    commit(&*remote, &a, 1, &[], 2);
    commit(&*remote, &a, 600, &[2, 301], 3);
    checkpoint(&*remote, &b, "of lsn 1");
    assert_eq!(checkpoint(&*remote, &a, "of lsn 3"), Written::Lost { seq: Seq(1) });
    assert_eq!(a.base().checkpoint().unwrap().lsn, Lsn(1));
    let expected: Vec<u8> =
        [1, 2, 3, 300, 301, 600].map(|idx| read(&*remote, &open(&*remote, in_memory()).volume, idx)).into();
    for _ in 0..2 {
        let found: Vec<u8> = [1, 2, 3, 300, 301, 600].map(|idx| read(&*remote, &a, idx)).into();
        assert_eq!(found, expected);
        assert_eq!((found[2], found[3], found[5]), (0, 0, 0));
        checkpoint(&*remote, &a, "of lsn 3");
    }
}

/// A stalled checkpointer's create must not publish locations that are gone since.
#[test]
fn a_checkpoint_that_comes_late_meets_a_tombstone_and_loses() {
    let remote = created();
    let stalled = open(&*remote, in_memory()).volume;
    commit(&*remote, &stalled, 3, &[1, 2, 3], 1);
    let other = open(&*remote, in_memory()).volume;
    checkpoint(&*remote, &other, "1");
    commit(&*remote, &other, 3, &[2], 2);
    checkpoint(&*remote, &other, "2");
    let left = Tombstone { of: Of::Checkpoint(Seq(1)), id: CommitId([0; 16]), hash: ChainHash([1; 32]) };
    remote.overwrite(&key::checkpoint(VOLUME, Seq(1)), left.encode(VOLUME));
    assert_eq!(checkpoint(&*remote, &stalled, "late"), Written::Lost { seq: Seq(1) });
    let opened = open(&*remote, in_memory());
    assert_eq!(&opened.start.state[..], b"2");
}

#[test]
fn a_create_without_an_answer_is_settled_by_reading() {
    let store = created();
    let faulty = Faulty::new(store.clone(), 1);
    let a = open(&*store, in_memory()).volume;
    commit(&*store, &a, 2, &[1], 1);
    faulty.fail_next(Request::Create, Fault::FailAfter);
    assert_eq!(checkpoint(&*faulty, &a, "a"), Written::Stored { seq: Seq(1), lsn: Lsn(1) });
    commit(&*store, &a, 2, &[2], 2);
    faulty.fail_next(Request::Create, Fault::FailBefore);
    let error = block_on(write(&*faulty, &a, &a.base(), Bytes::new())).unwrap_err();
    assert!(matches!(error, CheckpointError::Unknown { seq: Seq(2), .. }), "{error}");
    // It lands later: the next try loses to it and goes on from there.
    faulty.fail_next(Request::Create, Fault::Delay { requests: 100 });
    let error = block_on(write(&*faulty, &a, &a.base(), Bytes::from_static(b"late"))).unwrap_err();
    assert!(matches!(error, CheckpointError::Unknown { seq: Seq(2), .. }), "{error}");
    block_on(faulty.land_all()).unwrap();
    assert_eq!(checkpoint(&*faulty, &a, "again"), Written::Lost { seq: Seq(2) });
    assert_eq!(&open(&*store, in_memory()).start.state[..], b"late");
}

#[test]
fn local_commits_have_no_checkpoint_and_an_empty_volume_needs_none() {
    let remote = created();
    let a = open(&*remote, in_memory()).volume;
    assert_eq!(checkpoint(&*remote, &a, ""), Written::Current { seq: Seq::ZERO, lsn: Lsn::ZERO });
    commit(&*remote, &a, 2, &[1], 1);
    let changes = BTreeMap::from([(page(2), Bytes::from(vec![1; PAGE]))]);
    a.commit(&a.tip(), Change { changes, pages: 2, payload: Bytes::new() }).unwrap();
    let error = block_on(write(&*remote, &a, &a.tip(), Bytes::new())).unwrap_err();
    assert!(matches!(error, CheckpointError::NotDurable), "{error}");
    // Its base has one, while local commits lie on top.
    assert!(matches!(checkpoint(&*remote, &a, ""), Written::Stored { .. }));
    assert_eq!((a.status().ahead, read(&*remote, &a, 2)), (1, 1));
}

#[test]
fn a_replica_far_behind_jumps() {
    let store: SharedStore = Arc::new(MemoryStore::new());
    let remote = Counting::new(created());
    let keeping = || Options { store: Some(store.clone()), cache_bytes: 1 << 20, ..Options::default() };
    let (a, b) = (open(&*remote, in_memory()).volume, open(&*remote, keeping()).volume);
    commit(&*remote, &a, 600, &[1, 300, 600], 1);
    let pulled = block_on(b.pull(&*remote)).unwrap();
    b.absorb(pulled).unwrap();
    for round in 2..=200 {
        commit(&*remote, &a, 600, &[300], round);
        if round == 190 {
            checkpoint(&*remote, &a, "190");
        }
    }
    remote.reset();
    let pulled = block_on(b.pull(&*remote)).unwrap();
    // Both newest keys, the root, our own commit, and ten heads.
    assert_eq!(requests(remote.reset()), [0, 12, 0, 2, 0]);
    assert_eq!((pulled.jump.as_ref().unwrap().lsn, pulled.heads.len()), (Lsn(190), 10));
    let graft = b.absorb(pulled).unwrap();
    assert!(graft.contains(page(300)));
    assert_eq!((b.status().lsn, read(&*remote, &b, 300)), (Lsn(200), (300u32 * 7 + 200) as u8));
    let known = (b.base().hash(), b.base().time_ms());
    assert_eq!(known, (a.base().hash(), a.base().time_ms()));
    drop(b);
    // What the local store has of it: the root, its chunks and ten heads. No request but the newest key.
    remote.reset();
    let opened = open(&*remote, keeping());
    assert_eq!(requests(remote.reset()), [1, 0, 0, 1, 0]);
    assert_eq!((opened.start.lsn, opened.heads.len(), &opened.start.state[..]), (Lsn(190), 10, &b"190"[..]));
    assert_eq!(read(&*remote, &opened.volume, 300), (300u32 * 7 + 200) as u8);
    assert_eq!(read(&*remote, &opened.volume, 1), 7 + 1);
    // Pushing goes on from there, and so does its own checkpoint.
    commit(&*remote, &opened.volume, 600, &[5], 201);
    assert_eq!(checkpoint(&*remote, &opened.volume, "b"), Written::Stored { seq: Seq(2), lsn: Lsn(201) });
    drop(opened);
    let opened = open(&*remote, keeping());
    assert_eq!((opened.start.lsn, opened.heads.len()), (Lsn(201), 0));
    assert_eq!(read(&*remote, &opened.volume, 5), (35u32 + 201) as u8);
}

/// A replica whose history the store never had must not be moved onto another by a jump.
#[test]
fn a_jump_never_leads_to_another_history() {
    let (ours, theirs) = (created(), created());
    let a = open(&*ours, in_memory()).volume;
    commit(&*ours, &a, 2, &[1], 1);
    let b = open(&*theirs, in_memory()).volume;
    for round in 2..=140 {
        commit(&*theirs, &b, 2, &[2], round);
    }
    checkpoint(&*theirs, &b, "theirs");
    let error = block_on(a.pull(&*theirs)).unwrap_err();
    assert!(matches!(error, PullError::Diverged { lsn: Lsn(1), .. }), "{error}");
    // Where the commit is a tombstone, that says whether it was ours.
    let own = a.base().hash();
    for (hash, same) in [(own, true), (ChainHash([1; 32]), false)] {
        let left = Tombstone { of: Of::Commit(Lsn(1)), id: CommitId([9; 16]), hash };
        theirs.overwrite(&key::log(VOLUME, Lsn(1)), left.encode(VOLUME));
        assert_eq!(block_on(a.pull(&*theirs)).is_ok(), same);
    }
    block_on(theirs.delete(&key::log(VOLUME, Lsn(1)))).unwrap();
    let error = block_on(a.pull(&*theirs)).unwrap_err();
    assert!(matches!(error, PullError::Expired { lsn: Lsn(1), .. }), "{error}");
}

#[test]
fn commits_deleted_below_a_checkpoint_are_not_missed() {
    let remote = created();
    let behind = open(&*remote, in_memory()).volume;
    let a = open(&*remote, in_memory()).volume;
    for round in 1..=5 {
        commit(&*remote, &a, 3, &[1 + (round as u32) % 3], round);
        if round == 1 {
            let pulled = block_on(behind.pull(&*remote)).unwrap();
            behind.absorb(pulled).unwrap();
        }
        if round == 4 {
            checkpoint(&*remote, &a, "4");
        }
    }
    for lsn in 1..=4 {
        let head = block_on(crate::pull::read_head(&*remote, VOLUME, Lsn(lsn))).unwrap();
        let left = Tombstone { of: Of::Commit(Lsn(lsn)), id: head.id, hash: head.hash };
        remote.overwrite(&key::log(VOLUME, Lsn(lsn)), left.encode(VOLUME));
    }
    let pulled = block_on(behind.pull(&*remote)).unwrap();
    assert!(pulled.jump.is_some());
    behind.absorb(pulled).unwrap();
    assert_eq!(behind.status().lsn, Lsn(5));
    assert_eq!(open(&*remote, in_memory()).volume.status().lsn, Lsn(5));
    // A page whose frame was in a commit that is gone: its reader is told, not given zeroes.
    let error = block_on(fetch(&*remote, &behind, &behind.tip(), &PageSet::from_ranges([1..=3])));
    assert!(error.is_err());
}

#[test]
fn damage_anywhere_in_a_checkpoint_is_an_error_or_harmless() {
    let remote = created();
    let a = open(&*remote, in_memory()).volume;
    for round in 1..=4 {
        commit(&*remote, &a, 700, &[1, 300 + round as u32, 650], round);
    }
    checkpoint(&*remote, &a, "the state");
    let expected: Vec<u8> = (1..=700).map(|idx| read(&*remote, &a, idx)).collect();
    let at = key::checkpoint(VOLUME, Seq(1));
    let right = block_on(remote.get(&at)).unwrap();
    let try_all = |what: &str| match block_on(Volume::open(&*remote, VOLUME, in_memory())) {
        Ok(opened) => {
            assert_eq!(&opened.start.state[..], b"the state");
            let tip = opened.volume.tip();
            let all = PageSet::from_ranges([1..=700]);
            if block_on(fetch(&*remote, &opened.volume, &tip, &all)).is_ok() {
                for (idx, byte) in (1..).zip(&expected) {
                    assert_eq!(opened.volume.read(&tip, page(idx)).unwrap()[0], *byte, "{what}");
                }
            }
        }
        Err(OpenError::Pull(PullError::Damaged(damaged))) => assert_eq!(damaged.key, at, "{what}"),
        Err(error) => panic!("{what}: {error}"),
    };
    for byte in 0..right.len() {
        let mut flipped = right.to_vec();
        flipped[byte] ^= 0x08;
        remote.overwrite(&at, flipped);
        try_all(&format!("byte {byte} of {}", right.len()));
        remote.overwrite(&at, right.slice(..byte));
        try_all(&format!("cut at {byte} of {}", right.len()));
    }
}
