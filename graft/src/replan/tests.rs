use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use bytes::Bytes;
use futures::executor::block_on;

use super::*;
use crate::catalog;
use crate::checkpoint::{Written, write};
use crate::compact::{self, ByNumber, Scope};
use crate::fetch::{Fetcher, fetch};
use crate::format::meta::Meta;
use crate::format::tombstone::{Of, Tombstone};
use crate::ids::{ChainHash, CommitId, Lsn, PageIdx, PageSize, VolumeId, key};
use crate::pull::read_head;
use crate::remote::{Answer, Counting, Layer, MemoryRemote, Request, SharedRemote};
use crate::volume::{Change, Options, ReadError, push};

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

fn open(remote: &dyn Remote) -> Volume {
    let options = Options { store: None, locals: None, ..Options::default() };
    block_on(Volume::open(remote, VOLUME, options)).unwrap().volume
}

fn commit(remote: &dyn Remote, volume: &Volume, pages: u32, written: impl Iterator<Item = u32>, byte: u8) {
    let changes: BTreeMap<_, _> =
        written.map(|idx| (page(idx), Bytes::from(vec![byte ^ idx as u8; PAGE]))).collect();
    volume.commit(&volume.tip(), Change { changes, pages, payload: Bytes::new() }).unwrap();
    block_on(push(remote, volume, |_| Bytes::new(), || CommitId([byte; 16]), 1)).unwrap();
}

fn checkpoint(remote: &dyn Remote, volume: &Volume) -> Written {
    block_on(write(remote, volume, &volume.base(), Bytes::new())).unwrap()
}

/// What a collector leaves of a commit.
fn bury(remote: &MemoryRemote, lsn: u64) {
    let head = block_on(read_head(remote, VOLUME, Lsn(lsn))).unwrap();
    let left = Tombstone { of: Of::Commit(Lsn(lsn)), id: head.id, hash: head.hash };
    remote.overwrite(&key::log(VOLUME, Lsn(lsn)), left.encode(VOLUME));
}

/// A frame that reaches over a chunk's end is in two chunks, with other pages in each. Fetching pages of
/// both in one request once cached those of one alone.
#[test]
fn a_frame_in_two_chunks_comes_with_one_request_and_whole() {
    let remote = Counting::new(created());
    let writer = open(&*remote);
    commit(&*remote, &writer, 400, 230..=293, 1);
    checkpoint(&*remote, &writer);
    let shared: SharedRemote = remote.clone();
    for fetcher in [false, true] {
        let reader = open(&*remote);
        let tip = reader.tip();
        remote.reset();
        let pages = PageSet::from_ranges([256..=257]);
        if fetcher {
            let ahead = crate::fetch::Ahead::Nothing;
            let fetcher = Fetcher::new(shared.clone()).with_ahead(ahead);
            block_on(fetcher.fetch(&reader, &tip, &pages)).unwrap();
        } else {
            block_on(fetch(&*remote, &reader, &tip, &pages)).unwrap();
        }
        assert_eq!(remote.reset().ranges, 1);
        for idx in 256..=257 {
            assert_eq!(reader.read(&tip, page(idx)).unwrap()[0], 1 ^ idx as u8);
        }
    }
}

/// A reader, whose 700 pages were moved since it opened, and the checkpoint that says where to.
fn moved_under_a_reader() -> (Arc<MemoryRemote>, Volume, Seq) {
    let remote = created();
    let writer = open(&*remote);
    commit(&*remote, &writer, 700, 1..=700, 1);
    checkpoint(&*remote, &writer);
    let reader = open(&*remote);
    let moved = compacted(&remote, &writer);
    bury(&remote, 1);
    (remote, reader, moved)
}

/// A reader holds a snapshot whose pages another process has moved and deleted: it reads on.
#[test]
fn a_snapshot_whose_pages_were_moved_reads_on() {
    let (remote, reader, moved) = moved_under_a_reader();
    let before = reader.tip();
    for idx in [65, 256, 257, 700] {
        let error = reader.read(&before, page(idx)).unwrap_err();
        assert!(matches!(error, ReadError::Fault(_)), "{error}");
        block_on(fetch(&*remote, &reader, &before, &PageSet::from_ranges([idx..=idx]))).unwrap();
        assert_eq!(reader.read(&before, page(idx)).unwrap()[0], 1 ^ idx as u8);
    }
    // And it goes on from the new places.
    assert_eq!(reader.base().checkpoint().unwrap().seq, moved);
    assert_eq!(reader.tip().version(), before.version());
}

/// Where the version is nowhere any more, the reader is told, and never given a newer one.
#[test]
fn a_snapshot_whose_versions_are_gone_has_expired() {
    let remote = created();
    let writer = open(&*remote);
    commit(&*remote, &writer, 3, 1..=3, 1);
    let reader = open(&*remote);
    let before = reader.tip();
    commit(&*remote, &writer, 3, 1..=3, 2);
    checkpoint(&*remote, &writer);
    bury(&remote, 1);
    for _ in 0..2 {
        let error = block_on(fetch(&*remote, &reader, &before, &PageSet::from_ranges([2..=2]))).unwrap_err();
        assert!(matches!(error, FetchError::Expired { .. }), "{error}");
        assert!(error.to_string().contains("pull"), "{error}");
    }
    let pulled = block_on(reader.pull(&*remote)).unwrap();
    reader.absorb(pulled).unwrap();
    block_on(fetch(&*remote, &reader, &reader.tip(), &PageSet::from_ranges([2..=2]))).unwrap();
    assert_eq!(reader.read(&reader.tip(), page(2)).unwrap()[0], 2 ^ 2);
}

/// A store that does not answer the second request of those with this key.
#[derive(Debug)]
struct SecondLost {
    inner: Arc<MemoryRemote>,
    key: String,
    requests: AtomicU32,
}

impl Layer for SecondLost {
    fn inner(&self) -> &dyn Remote {
        &*self.inner
    }

    fn around<'a, T: Send + 'a>(&'a self, _: Request, key: &'a str, sent: Answer<'a, T>) -> Answer<'a, T> {
        match key == self.key && self.requests.fetch_add(1, Relaxed) == 1 {
            true => {
                Box::pin(async { Err(RemoteError::Unavailable { key: key.into(), message: "lost".into() }) })
            }
            false => sent,
        }
    }
}

/// Simulation, seed 50068: whether there is a tombstone could not be asked, and what was collected was called
/// damaged.
#[test]
fn what_may_have_been_moved_is_not_called_damaged_while_the_store_is_away() {
    let (remote, reader, _) = moved_under_a_reader();
    let before = reader.tip();
    let lossy = SecondLost { inner: remote, key: key::log(VOLUME, Lsn(1)), requests: AtomicU32::new(0) };
    let try_fetch = || block_on(fetch(&lossy, &reader, &before, &PageSet::from_ranges([65..=65])));
    let error = try_fetch().unwrap_err();
    assert!(matches!(error, FetchError::Remote(RemoteError::Unavailable { .. })), "{error}");
    try_fetch().unwrap();
    assert_eq!(reader.read(&before, page(65)).unwrap()[0], 1 ^ 65);
}

/// Simulation, seed 50068: a part of the page table was collected unread, and the only newer table is of a
/// later state. The pages were fetched again and again, and the snapshot could not find them.
#[test]
fn a_snapshot_that_cannot_say_which_versions_it_has_any_more_has_expired() {
    for is_newest in [true, false] {
        let remote = created();
        let writer = open(&*remote);
        commit(&*remote, &writer, 4000, 1..=4000, 1);
        checkpoint(&*remote, &writer);
        commit(&*remote, &writer, 4000, 1..=1, 2);
        checkpoint(&*remote, &writer);
        // Of its table all but the first part is in the first checkpoint.
        let reader = open(&*remote);
        let before = reader.tip();
        if !is_newest {
            commit(&*remote, &writer, 4000, 2..=2, 3);
            reader.absorb(block_on(reader.pull(&*remote)).unwrap()).unwrap();
            compacted(&remote, &writer);
        }
        let old = if is_newest { before } else { reader.tip() };
        commit(&*remote, &writer, 4000, 3..=3, 4);
        if is_newest {
            compacted(&remote, &writer);
        } else {
            reader.absorb(block_on(reader.pull(&*remote)).unwrap()).unwrap();
        }
        let left = Tombstone { of: Of::Checkpoint(Seq(1)), id: CommitId([0; 16]), hash: ChainHash([0; 32]) };
        remote.overwrite(&key::checkpoint(VOLUME, Seq(1)), left.encode(VOLUME));
        let pages = PageSet::from_ranges([300..=300]);
        assert!(matches!(old.location(page(300)), Location::Unknown(_)));
        let error = block_on(fetch(&*remote, &reader, &old, &pages)).unwrap_err();
        assert!(matches!(error, FetchError::Expired { .. }), "{error}");
        let pulled = block_on(reader.pull(&*remote)).unwrap();
        reader.absorb(pulled).unwrap();
        let tip = reader.tip();
        block_on(fetch(&*remote, &reader, &tip, &pages)).unwrap();
        assert_eq!(reader.read(&tip, page(300)).unwrap()[0], 1 ^ (300 % 256) as u8);
    }
}

/// Damage stays damage.
#[test]
fn what_is_damaged_is_not_taken_for_moved() {
    let remote = created();
    let writer = open(&*remote);
    commit(&*remote, &writer, 3, 1..=3, 1);
    let reader = open(&*remote);
    checkpoint(&*remote, &writer);
    let at = key::log(VOLUME, Lsn(1));
    let right = block_on(remote.get(&at)).unwrap();
    remote.overwrite(&at, right.slice(..right.len() - 3));
    let tip = reader.tip();
    let error = block_on(fetch(&*remote, &reader, &tip, &PageSet::from_ranges([2..=2]))).unwrap_err();
    assert!(matches!(error, FetchError::Damaged(_)), "{error}");
}

/// Lays every page out anew, and answers the checkpoint that says where.
fn compacted(remote: &MemoryRemote, volume: &Volume) -> Seq {
    let id = CommitId([9; 16]);
    let moved = compact::gather(remote, volume, &ByNumber, Scope::All, id, &|_, _| {});
    let moved = block_on(moved).unwrap();
    match block_on(compact::publish(remote, volume, &volume.base(), &moved, Bytes::new())).unwrap() {
        Written::Stored { seq, .. } => seq,
        other => panic!("{other:?}"),
    }
}
