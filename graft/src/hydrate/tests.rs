use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;

use bytes::Bytes;
use futures::executor::block_on;

use super::*;
use crate::fetch::Ahead;
use crate::fetch::tests::{content, idx, in_memory, open, publish, read, written};
use crate::remote::{Fault, Faulty, Request};
use crate::store::{Batch, ByteFile, Durability, MemoryStore, ReplicaStore, SharedStore, Space};
use crate::volume::Options;

fn on_disk(store: &SharedStore, disk_bytes: u64) -> Options {
    Options { store: Some(store.clone()), locals: None, cache_bytes: 64 << 10, disk_bytes }
}

/// A hydration that fails and whose process ends goes on where it was: no byte comes twice.
#[test]
fn hydration_resumes() {
    let (counting, remote, _) = written(4096, 20_000);
    let store: SharedStore = Arc::new(MemoryStore::new());
    let reader = open(&remote, on_disk(&store, 200 << 20));
    counting.reset();
    let faulty = Faulty::new(remote.clone(), 1);
    let fetcher = Fetcher::new(faulty.clone()).with_ahead(Ahead::Nothing);
    let mut told = Vec::new();
    let mut failing = |progress: Progress| {
        told.push(progress.done);
        // A window of 4,096 pages is five requests.
        faulty.fail_next(Request::GetRange, Fault::FailBefore);
    };
    let error = block_on(hydrate(&fetcher, &reader, &reader.tip(), &mut failing)).unwrap_err();
    assert!(matches!(error, HydrateError::Fetch(FetchError::Remote(_))), "{error}");
    assert!(!told.is_empty() && told.len() < 5, "{told:?}");
    let first = counting.reset().bytes_down;
    drop((fetcher, reader));

    let reader = open(&remote, on_disk(&store, 200 << 20));
    counting.reset();
    let fetcher = Fetcher::new(remote.clone());
    let done = block_on(hydrate(&fetcher, &reader, &reader.tip(), &mut |_| {})).unwrap();
    assert_eq!((done.done, done.pages), (20_000, 20_000));
    assert!(done.fetched > 0 && done.fetched < 20_000, "{done:?}");
    let second = counting.reset().bytes_down;
    // Random bytes do not compress; frames add a little.
    let all = 20_000 * 4096;
    assert!((all..all + all / 100).contains(&(first + second)), "{first} + {second} of {all}");
    let done = block_on(hydrate(&fetcher, &reader, &reader.tip(), &mut |_| {})).unwrap();
    assert_eq!((done.fetched, counting.reset().requests()), (0, 0));
    for page in [1, 777, 20_000] {
        assert_eq!(read(&fetcher, &reader, page), content(page, 1, 4096));
    }
    assert_eq!(counting.reset().requests(), 0);
    assert!(reader.metrics().memory_bytes <= 64 << 10);
}

#[test]
fn a_volume_that_cannot_fit_is_refused() {
    let (_, remote, _) = written(4096, 20_000);
    let store: SharedStore = Arc::new(MemoryStore::new());
    let reader = open(&remote, on_disk(&store, 40 << 20));
    let fetcher = Fetcher::new(remote);
    let error = block_on(hydrate(&fetcher, &reader, &reader.tip(), &mut |_| {})).unwrap_err();
    assert!(matches!(error, HydrateError::TooSmall { .. }), "{error}");
    assert!(reader.metrics().disk_bytes <= 40 << 20);
}

/// A disk on which pages fit or not, as one that is full.
#[derive(Debug, Default)]
struct Disk {
    inner: MemoryStore,
    full: Arc<AtomicBool>,
}

#[derive(Debug)]
struct FileOnDisk(Arc<dyn ByteFile>, Arc<AtomicBool>);

impl ByteFile for FileOnDisk {
    fn read(&self, at: u64, out: &mut [u8]) -> Result<usize, StoreError> {
        self.0.read(at, out)
    }
    fn write(&self, at: u64, bytes: &[u8]) -> Result<(), StoreError> {
        if self.1.load(Relaxed) {
            return Err(StoreError::Failed {
                dir: "pages".into(),
                message: "No space left on device".into(),
            });
        }
        self.0.write(at, bytes)
    }
    fn len(&self) -> Result<u64, StoreError> {
        self.0.len()
    }
    fn set_len(&self, bytes: u64) -> Result<(), StoreError> {
        self.0.set_len(bytes)
    }
}

impl ReplicaStore for Disk {
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
        let file = self.inner.file(name)?;
        Ok(file.map(|file| Arc::new(FileOnDisk(file, self.full.clone())) as Arc<dyn ByteFile>))
    }
}

/// What a full disk did not take is not here: the hydration fails, and goes on when there is room. What is in
/// memory alone by then is put on disk, too.
#[test]
fn a_full_disk_fails_a_hydration() {
    let (_, remote, _) = written(4096, 2_000);
    let disk = Disk::default();
    let full = disk.full.clone();
    let store: SharedStore = Arc::new(disk);
    let reader = open(&remote, on_disk(&store, 200 << 20));
    let fetcher = Fetcher::new(remote.clone());
    full.store(true, Relaxed);
    read(&fetcher, &reader, 1_000);
    let error = block_on(hydrate(&fetcher, &reader, &reader.tip(), &mut |_| {})).unwrap_err();
    assert!(matches!(error, HydrateError::Store(_)) && error.to_string().contains("No space"), "{error}");
    full.store(false, Relaxed);
    let done = block_on(hydrate(&fetcher, &reader, &reader.tip(), &mut |_| {})).unwrap();
    assert!(done.fetched < 2_000, "{done:?}: what was read is in memory");
    drop(reader);
    let reader = open(&remote, on_disk(&store, 200 << 20));
    let all = PageSet::from_ranges([1..=2_000]);
    assert!(reader.missing(&reader.tip(), &all).unwrap().is_empty());
}

/// After every round of following, nothing of the tip is missing; a failed round is made up for.
#[test]
fn following_keeps_everything_here() {
    let (counting, remote, writer) = written(512, 2000);
    let reader = open(&remote, in_memory(4 << 20));
    let faulty = Faulty::new(remote.clone(), 1);
    let fetcher = Fetcher::new(faulty.clone());
    block_on(hydrate(&fetcher, &reader, &reader.tip(), &mut |_| {})).unwrap();
    let mut missed = PageSet::new();
    for round in 2..6 {
        publish(&remote, &writer, &PageSet::from_ranges([5..=9, 1000..=1000 + round as u32]), round);
        if round == 4 {
            // What this pull brought is still to be fetched.
            missed = reader.absorb(block_on(reader.pull(&*remote)).unwrap()).unwrap();
            faulty.fail_next(Request::GetRange, Fault::FailBefore);
            let failed = block_on(follow(&fetcher, &reader, &mut missed, &mut |_| {}));
            assert!(matches!(failed, Err(HydrateError::Fetch(_))), "{failed:?}");
            assert!(missed.contains(idx(5)));
        }
        block_on(follow(&fetcher, &reader, &mut missed, &mut |_| {})).unwrap();
        assert!(missed.is_empty());
        let all = PageSet::from_ranges([1..=reader.tip().pages()]);
        assert!(reader.missing(&reader.tip(), &all).unwrap().is_empty());
    }
    counting.reset();
    assert!(block_on(follow(&fetcher, &reader, &mut missed, &mut |_| {})).unwrap().is_empty());
    assert_eq!(counting.reset().requests(), 1, "a listing");
}
