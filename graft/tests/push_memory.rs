//! How much memory a push of a very large local commit takes, counted at the allocator.
//!
//! The local store of this test keeps values in files, so that what is counted is the engine's own. One
//! test in this file: another beside it would be counted, too.
#![allow(unsafe_code, reason = "an allocator that counts")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures::executor::block_on;
use graft::format::meta::Meta;
use graft::remote::directory::DirectoryRemote;
use graft::store::{Batch, Durability, ReplicaStore, Space, StoreError};
use graft::volume::{Change, Options, Pushed, Volume, push};
use graft::{CommitId, Lsn, PageIdx, PageSize, VolumeId, catalog};

struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

fn grown(bytes: usize) {
    let now = NOW.fetch_add(bytes, Relaxed) + bytes;
    MOST.fetch_max(now, Relaxed);
}

// SAFETY: every call goes to the system's allocator as it came; counting touches no memory of its own.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        grown(layout.size());
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(at, layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        grown(layout.size());
        // SAFETY: as the caller promises.
        unsafe { System.alloc_zeroed(layout) }
    }
    // `realloc` is the trait's own: a new allocation, a copy, and the old one freed, so that growing counts
    // as both at once.
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Keys in memory, values in files.
#[derive(Debug)]
struct Files {
    dir: PathBuf,
    keys: Mutex<(BTreeMap<(Space, Bytes), u64>, u64)>,
}

impl Files {
    fn failed(error: std::io::Error) -> StoreError {
        StoreError::Failed { dir: "files".into(), message: error.to_string() }
    }

    fn value(&self, number: u64) -> Result<Bytes, StoreError> {
        std::fs::read(self.dir.join(number.to_string())).map(Bytes::from).map_err(Files::failed)
    }
}

impl ReplicaStore for Files {
    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        let number = self.keys.lock().unwrap().0.get(&(space, Bytes::copy_from_slice(key))).copied();
        number.map(|number| self.value(number)).transpose()
    }
    fn scan(&self, space: Space, prefix: &[u8]) -> Result<Vec<(Bytes, Bytes)>, StoreError> {
        let keys = self.keys.lock().unwrap();
        let found = keys.0.iter().filter(|((at, key), _)| *at == space && key.starts_with(prefix));
        found.map(|((_, key), number)| Ok((key.clone(), self.value(*number)?))).collect()
    }
    fn write(&self, batch: Batch, _durability: Durability) -> Result<(), StoreError> {
        let mut keys = self.keys.lock().unwrap();
        for (space, key, value) in batch.changes {
            if let Some(number) = keys.0.remove(&(space, key.clone())) {
                std::fs::remove_file(self.dir.join(number.to_string())).map_err(Files::failed)?;
            }
            if let Some(value) = value {
                keys.1 += 1;
                std::fs::write(self.dir.join(keys.1.to_string()), &value).map_err(Files::failed)?;
                let number = keys.1;
                keys.0.insert((space, key), number);
            }
        }
        Ok(())
    }
}

const PAGE: usize = 4096;
/// 128 MiB.
const PAGES: u32 = 32_768;
/// What a push may hold beside the local commit itself: a segment that is filled, one frame, one part on
/// its way to the store, the commit's head and page table, and the budget of the page cache.
const BOUND: usize = 64 << 20;
const CACHE: usize = 8 << 20;

fn noise(seed: u32) -> Bytes {
    let mut out = vec![0; PAGE];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut out);
    out.into()
}

#[test]
fn a_push_takes_a_few_segments_of_memory_whatever_its_size() {
    let dir = tempfile::tempdir().unwrap();
    let remote = DirectoryRemote::open(&dir.path().join("remote")).unwrap();
    let files = dir.path().join("files");
    std::fs::create_dir(&files).unwrap();
    let store = Arc::new(Files { dir: files, keys: Mutex::default() });
    let volume = VolumeId([5; 16]);
    let meta = Meta { page_size: PageSize::new(PAGE as u32).unwrap(), parent: None };
    block_on(catalog::create(&remote, &"large".parse().unwrap(), volume, meta)).unwrap();
    let options = Options { store: Some(store.clone()), cache_bytes: CACHE, ..Options::default() };
    let volume = block_on(Volume::open(&remote, volume, options)).unwrap().volume;
    // Many local commits that write the same pages: rolled up, each page is there once.
    let half = |from: u32, seed: u32| Change {
        changes: (from..from + PAGES / 2).map(|idx| (PageIdx::new(idx).unwrap(), noise(seed + idx))).collect(),
        pages: PAGES,
        payload: Bytes::new(),
    };
    let most_of = |work: &mut dyn FnMut()| {
        let before = NOW.load(Relaxed);
        MOST.store(before, Relaxed);
        work();
        MOST.load(Relaxed) - before
    };
    let page_bytes = PAGES as usize / 2 * PAGE;
    let committing = most_of(&mut || drop(volume.commit(&volume.tip(), half(1, 0)).unwrap()));
    volume.commit(&volume.tip(), half(PAGES / 2 + 1, 0)).unwrap();
    let pushing = most_of(&mut || {
        let id = || CommitId([1; 16]);
        let pushed = block_on(push(&remote, &volume, |_| Bytes::new(), id, 1)).unwrap();
        assert_eq!(pushed, Pushed::Durable(Lsn(1)));
    });
    let mib = |bytes: usize| bytes >> 20;
    println!(
        "committing {} MiB took {} MiB beside them, pushing {} MiB took {} MiB",
        mib(page_bytes),
        mib(committing.saturating_sub(page_bytes)),
        mib(2 * page_bytes),
        mib(pushing)
    );
    assert!(pushing < BOUND, "a push of {} MiB took {} MiB", mib(2 * page_bytes), mib(pushing));
    assert!(committing < page_bytes + BOUND / 2, "a commit took {} MiB", mib(committing));
    // What is left of the local commits is the cache's budget.
    let left: usize = store.keys.lock().unwrap().0.keys().filter(|(space, _)| *space == Space::Local).count();
    assert_eq!(left, 0);
    assert!(PAGES as usize * PAGE > 2 * BOUND);
}
