//! What reaches the store in which batch, and what a commit or a push that did not end leaves there.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{OnceLock, Weak};

use super::*;
use crate::fork;
use crate::history::{self, History};
use crate::publish::publish;
use crate::store::{Batch, ByteFile, MemoryStore, ReplicaStore, Space};

const PAGE: usize = 65536;

/// A store whose next but so many writes fail, and that keeps what a power cut would.
#[derive(Debug, Default)]
struct Disk {
    /// What a reader finds.
    seen: MemoryStore,
    /// What is found after a power cut.
    durable: MemoryStore,
    unsynced: Mutex<Vec<Batch>>,
    /// Bytes of the largest batch that was to be durable.
    largest: Mutex<usize>,
    /// Writes until one fails.
    until: AtomicI64,
    /// Writes that fail then.
    fail: AtomicI64,
}

impl Disk {
    fn new() -> Arc<Disk> {
        Arc::new(Disk { until: AtomicI64::new(i64::MAX), ..Disk::default() })
    }

    /// After `until` more writes `fail` fail.
    fn fail_after(&self, until: i64, fail: i64) {
        self.until.store(until, Ordering::Relaxed);
        self.fail.store(fail, Ordering::Relaxed);
    }

    /// The keys of parts of local commits.
    fn parts(&self) -> usize {
        self.seen.scan(Space::Local, b"part").unwrap().len()
    }

    /// The keys of a push.
    fn of_push(&self) -> usize {
        let rows = self.seen.scan(Space::State, &VOLUME.0).unwrap();
        rows.iter().filter(|(key, _)| matches!(key[16], b'p' | b'q' | b'u')).count()
    }

    fn notes(&self) -> usize {
        self.seen.scan(Space::State, &[&VOLUME.0[..], b"l"].concat()).unwrap().len()
    }
}

impl ReplicaStore for Disk {
    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        self.seen.get(space, key)
    }
    fn scan(&self, space: Space, prefix: &[u8]) -> Result<Vec<(Bytes, Bytes)>, StoreError> {
        self.seen.scan(space, prefix)
    }
    fn write(&self, batch: Batch, durability: Durability) -> Result<(), StoreError> {
        if self.until.fetch_sub(1, Ordering::Relaxed) <= 0 && self.fail.fetch_sub(1, Ordering::Relaxed) > 0 {
            return Err(StoreError::Failed { dir: "disk".into(), message: "full".into() });
        }
        let mut unsynced = self.unsynced.lock();
        unsynced.push(batch.clone());
        self.seen.write(batch.clone(), durability)?;
        if durability == Durability::Sync {
            let bytes = |(_, key, value): &(Space, Bytes, Option<Bytes>)| {
                key.len() + value.as_ref().map_or(0, Bytes::len)
            };
            let mut largest = self.largest.lock();
            *largest = batch.changes.iter().map(bytes).sum::<usize>().max(*largest);
            for batch in unsynced.drain(..) {
                self.durable.write(batch, durability)?;
            }
        }
        Ok(())
    }
}

fn options(disk: &Arc<Disk>) -> Options {
    Options { store: Some(disk.clone()), disk_bytes: 0, ..Options::default() }
}

fn load(disk: &Arc<Disk>) -> Volume {
    Volume::load(VOLUME, PageSize::new(PAGE as u32).unwrap(), options(disk)).unwrap().volume
}

fn noise(seed: u32) -> Bytes {
    let mut out = vec![0; PAGE];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut out);
    out.into()
}

fn noisy(seed: u32, pages: u32) -> Change {
    let changes = (1..=pages).map(|idx| (page(idx), noise(seed + idx))).collect();
    Change { changes, pages, payload: Bytes::new() }
}

/// A store takes back a small batch that it could not sync; a large one may be there after an error. So
/// what decides whether a commit or a push is there is small, whatever its size.
#[test]
fn no_commit_or_push_is_decided_by_a_large_batch() {
    let mut unlike = 0;
    for pages in [1, 7, 8, 9, 15, 16, 17, 40, 63, 64, 65, 130] {
        let disk = Disk::new();
        let volume = load(&disk);
        volume.commit(&volume.tip(), noisy(0, pages)).unwrap();
        volume.seal(1, vec![1; pages as usize * PAGE].into(), CommitId([1; 16]), 1).unwrap().unwrap();
        let largest = *disk.largest.lock();
        assert!(largest < 600 << 10, "{pages} pages: a batch of {largest} bytes");
        drop(volume);
        let volume = load(&disk);
        for idx in 1..=pages {
            assert_eq!(volume.read(&volume.tip(), page(idx)).unwrap(), noise(idx));
        }
        assert!(volume.pending().is_some());
        unlike += disk.parts();
        volume.reset().unwrap();
        assert_eq!((disk.parts(), disk.of_push(), disk.notes()), (0, 0, 0), "{pages} pages");
    }
    assert!(unlike > 9, "commits lie in parts");
}

/// A large commit that fails at any write leaves nothing, once another was made or the replica opened.
#[test]
fn a_large_commit_that_failed_leaves_no_parts() {
    for (small, fail) in [(false, 1), (true, 1), (true, 2), (false, 2), (true, 99), (false, 99)] {
        for until in 0..5 {
            let disk = Disk::new();
            let volume = load(&disk);
            volume.commit(&volume.tip(), noisy(500, 1)).unwrap();
            disk.fail_after(until, fail);
            // A note, three parts and the commit's own value.
            assert!(volume.commit(&volume.tip(), noisy(0, 140)).is_err(), "{until} {fail}");
            // The process goes on, or ends.
            disk.fail_after(i64::MAX, 0);
            let volume = if fail == 99 {
                drop(volume);
                load(&disk)
            } else {
                volume
            };
            assert_eq!(volume.status().ahead, 1);
            let pages = if small { 1 } else { 70 };
            volume.commit(&volume.tip(), noisy(1000, pages)).unwrap();
            assert_eq!(disk.parts(), if small { 0 } else { 2 }, "{until} {fail}");
            assert_eq!(disk.notes(), 0);
            drop(volume);
            let volume = load(&disk);
            assert_eq!(volume.read(&volume.tip(), page(1)).unwrap(), noise(1001));
            volume.reset().unwrap();
            assert_eq!(disk.parts(), 0);
        }
    }
}

/// Nor does one whose process died after earlier local commits had been pushed, so that the next opening
/// counts from the beginning.
#[test]
fn opening_removes_the_parts_of_a_commit_under_any_number() {
    let (remote, disk) = (created(PAGE as u32), Disk::new());
    let volume = open(&*remote, options(&disk));
    for round in 0..3 {
        volume.commit(&volume.tip(), noisy(round, 1)).unwrap();
    }
    push_all(&*remote, &volume, 1).unwrap();
    disk.fail_after(3, i64::MAX);
    assert!(volume.commit(&volume.tip(), noisy(9, 140)).is_err());
    assert_eq!((disk.parts(), disk.notes()), (2, 1));
    drop(volume);
    disk.fail_after(i64::MAX, 0);
    assert_eq!(load(&disk).status().lsn, Lsn(1));
    assert_eq!((disk.parts(), disk.notes()), (0, 0));
}

/// A seal that fails leaves nothing, nor does an opening that dies while it removes what a seal left.
#[test]
fn a_seal_that_failed_leaves_no_parts() {
    let mut failed = 0;
    for until in 0..8 {
        let disk = Disk::new();
        let volume = load(&disk);
        volume.commit(&volume.tip(), noisy(0, 300)).unwrap();
        disk.fail_after(until, 1);
        failed += u32::from(volume.seal(1, Bytes::new(), CommitId([1; 16]), 1).is_err());
        assert_eq!(disk.of_push() > 0, volume.pending().is_some(), "{until}");

        // The process dies in it.
        let disk = Disk::new();
        let volume = load(&disk);
        volume.commit(&volume.tip(), noisy(0, 300)).unwrap();
        disk.fail_after(until, i64::MAX);
        _ = volume.seal(1, Bytes::new(), CommitId([1; 16]), 1);
        let sealed = volume.pending().is_some();
        drop(volume);
        // The next one dies after it removed so much.
        for removed in 0..3 {
            disk.fail_after(removed, i64::MAX);
            _ = Volume::load(VOLUME, PageSize::new(PAGE as u32).unwrap(), options(&disk));
        }
        disk.fail_after(i64::MAX, 0);
        assert_eq!(load(&disk).pending().is_some(), sealed);
        assert_eq!(disk.of_push() > 0, sealed, "{until}");
    }
    assert!((5..8).contains(&failed), "{failed} of 8 failed: after all of its parts, too");
}

/// Local commits that may be lost to a power cut, and a push of them that may be in the log: after one
/// of those the push is known, or it would look like another writer's.
#[test]
fn a_pending_push_is_on_disk_before_it_is_sent() {
    for locals in [Durability::Buffered, Durability::Sync] {
        let (remote, disk) = (created(PAGE as u32), Disk::new());
        let volume = open(&*remote, Options { locals: Some(locals), ..options(&disk) });
        volume.commit(&volume.tip(), noisy(0, 2)).unwrap();
        let sealed = volume.seal(1, Bytes::new(), CommitId([1; 16]), 1).unwrap().unwrap();
        block_on(publish(&*remote, &sealed)).unwrap();
        drop(volume);
        let disk = Arc::into_inner(disk).unwrap();
        let store = Some(Arc::new(disk.durable) as SharedStore);
        let after = Options { store, locals: Some(locals), ..Options::default() };
        let volume = open(&*remote, after);
        assert_eq!(volume.pending().as_deref(), Some(&*sealed), "{locals:?}");
        assert_eq!(push_all(&*remote, &volume, 2).unwrap(), Pushed::Durable(Lsn(1)));
    }
}

/// A store that notes, when an ancestor's file is looked for, whether readers of the replica must wait.
#[derive(Debug, Default)]
struct Watched {
    inner: MemoryStore,
    volume: OnceLock<Weak<Volume>>,
    free: Mutex<Vec<bool>>,
}

impl ReplicaStore for Watched {
    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        self.inner.get(space, key)
    }
    fn scan(&self, space: Space, prefix: &[u8]) -> Result<Vec<(Bytes, Bytes)>, StoreError> {
        self.inner.scan(space, prefix)
    }
    fn write(&self, batch: Batch, durability: Durability) -> Result<(), StoreError> {
        self.inner.write(batch, durability)
    }
    fn file(&self, name: &str) -> Result<Option<Arc<dyn ByteFile>>, StoreError> {
        self.inner.file(name)
    }
    fn existing_file(&self, name: &str) -> Result<Option<Arc<dyn ByteFile>>, StoreError> {
        let volume = self.volume.get().and_then(Weak::upgrade);
        self.free.lock().extend(volume.map(|volume| volume.state.try_lock().is_some()));
        self.inner.existing_file(name)
    }
}

/// Readers of a fork do not wait for the files of what it was made from.
#[test]
fn an_ancestors_pages_are_looked_for_while_readers_go_on() {
    let remote = created(512);
    let parent = open(&*remote, in_memory());
    write(&parent, 1, &[(1, 1)]);
    push_all(&*remote, &parent, 1).unwrap();
    let child = VolumeId([5; 16]);
    block_on(fork::create(&*remote, VOLUME, At::Newest, child, &"fork".parse().unwrap())).unwrap();
    let store = Arc::new(Watched::default());
    let options = Options { store: Some(store.clone()), ..Options::default() };
    let volume = Arc::new(Volume::load(child, PageSize::new(512).unwrap(), options).unwrap().volume);
    store.volume.set(Arc::downgrade(&volume)).unwrap();
    let History { start, heads, .. } = block_on(history::read(&*remote, child, None)).unwrap();
    volume.absorb(Pulled { from: Lsn::ZERO, jump: Some(Box::new(start)), heads }).unwrap();
    assert_eq!(*store.free.lock(), [true]);
}
