//! Pushes of many segments: kept in the store as they are made, the same bytes after every crash, and
//! nobody waits for them who only reads.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use super::*;
use crate::publish::{PublishError, publish};
use crate::store::{Batch, MemoryStore, ReplicaStore, Space};

/// Bytes that do not compress.
fn noise(seed: u32, page_size: usize) -> Bytes {
    let mut out = vec![0; page_size];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut out);
    out.into()
}

const PAGE: usize = 65536;
/// Two segments and a bit.
const PAGES: u32 = 560;

fn large_volume() -> Arc<MemoryRemote> {
    created(PAGE as u32)
}

fn noisy(seed: u32) -> Change {
    let changes = (1..=PAGES).map(|idx| (page(idx), noise(seed + idx, PAGE))).collect();
    Change { changes, pages: PAGES, payload: Bytes::new() }
}

fn kept_in(store: &SharedStore) -> Options {
    Options { store: Some(store.clone()), cache_bytes: 1 << 20, disk_bytes: 0, ..Options::default() }
}

fn load(store: &SharedStore) -> Volume {
    Volume::load(VOLUME, PageSize::new(PAGE as u32).unwrap(), kept_in(store)).unwrap().volume
}

fn segments_of(remote: &MemoryRemote) -> Vec<String> {
    remote.objects().into_iter().map(|(key, _)| key).filter(|key| key.contains("/segments/")).collect()
}

/// What a push has in the store.
fn left(store: &dyn ReplicaStore) -> usize {
    let rows = store.scan(Space::State, &VOLUME.0).unwrap();
    rows.iter().filter(|(key, _)| matches!(key[16], b'p' | b'q' | b'u')).count()
}

/// A newcomer reads what was written.
fn holds(remote: &MemoryRemote, seed: u32) {
    let reader = open(remote, in_memory());
    assert_eq!(reader.tip().pages(), PAGES);
    for idx in (1..=PAGES).step_by(61) {
        assert!(read(remote, &reader, &reader.tip(), idx) == noise(seed + idx, PAGE), "page {idx}");
    }
}

/// A store that carries out so many writes and is gone then; with `done` the next one is carried out,
/// too, and not answered.
#[derive(Debug)]
struct Cut {
    inner: SharedStore,
    left: AtomicI64,
    done: bool,
}

impl ReplicaStore for Cut {
    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        self.inner.get(space, key)
    }
    fn scan(&self, space: Space, prefix: &[u8]) -> Result<Vec<(Bytes, Bytes)>, StoreError> {
        self.inner.scan(space, prefix)
    }
    fn write(&self, batch: Batch, durability: Durability) -> Result<(), StoreError> {
        let left = self.left.fetch_sub(1, Ordering::Relaxed);
        if left > 0 || (left == 0 && self.done) {
            self.inner.write(batch, durability)?;
        }
        let gone = || StoreError::Failed { dir: "cut".into(), message: "cut off".into() };
        if left > 0 { Ok(()) } else { Err(gone()) }
    }
}

/// The process ends at the store's nth write while a push is sealed: what is found afterwards is no
/// push, and nothing was sent, or a whole one. Either way it goes out once, and leaves nothing.
#[test]
fn a_seal_that_stops_at_any_write_leaves_no_push_or_a_whole_one() {
    let (mut without, mut whole) = (0, 0);
    for stop in 0i64.. {
        let remote = large_volume();
        let inner: SharedStore = Arc::new(MemoryStore::new());
        let first = load(&inner);
        first.commit(&first.tip(), noisy(0)).unwrap();
        drop(first);
        let cut = Cut { inner: inner.clone(), left: AtomicI64::new(stop / 2), done: stop % 2 == 1 };
        let dying = load(&(Arc::new(cut) as SharedStore));
        let sealed = dying.seal(1, Bytes::new(), CommitId([1; 16]), 1);
        let ended = sealed.is_ok();
        drop((dying, sealed));
        assert!(segments_of(&remote).is_empty());

        let volume = load(&inner);
        assert_eq!(volume.status().ahead, 1, "stop {stop}");
        let prepared = match volume.pending() {
            Some(pending) => {
                whole += 1;
                assert_eq!(pending.head.id, CommitId([1; 16]));
                pending
            }
            None => {
                without += 1;
                assert!(!ended, "stop {stop}");
                assert_eq!(left(&*inner), 0, "stop {stop}: opening removes what a seal left");
                volume.seal(1, Bytes::new(), CommitId([2; 16]), 1).unwrap().unwrap()
            }
        };
        assert_eq!(prepared.segments.len(), 3);
        volume.confirm(block_on(publish(&*remote, &prepared)).unwrap()).unwrap();
        assert_eq!((left(&*inner), segments_of(&remote).len()), (0, 3), "stop {stop}");
        drop(volume);
        assert_eq!(load(&inner).status(), Status { lsn: Lsn(1), ahead: 0, pending: false, pages: PAGES });
        holds(&remote, 0);
        if ended {
            break;
        }
    }
    assert!(without >= 18 && whole >= 2, "{without} without, {whole} with a push");
}

/// The process ends after every number of segments, and after the commit: the next one sends the same
/// bytes under the same names.
#[test]
fn a_push_that_stops_after_any_object_goes_on_with_the_same_bytes() {
    for sent in 0..=4 {
        let remote = large_volume();
        let store: SharedStore = Arc::new(MemoryStore::new());
        let volume = load(&store);
        volume.commit(&volume.tip(), noisy(7)).unwrap();
        let sealed = volume.seal(1, Bytes::new(), CommitId([1; 16]), 1).unwrap().unwrap();
        let before: Vec<Bytes> = sealed.segments.iter().map(|segment| segment.bytes().unwrap()).collect();
        for (segment, bytes) in sealed.segments.iter().zip(&before).take(sent) {
            block_on(remote.create(&segment.key, bytes.clone())).unwrap();
        }
        if sent > sealed.segments.len() {
            block_on(remote.create(&crate::ids::key::log(VOLUME, Lsn(1)), sealed.body.clone())).unwrap();
        }
        drop(volume);
        let volume = load(&store);
        let again = volume.pending().unwrap();
        assert_eq!((&again, again.body.clone()), (&sealed, sealed.body.clone()));
        for (segment, bytes) in again.segments.iter().zip(&before) {
            assert!(segment.bytes().unwrap() == bytes, "{}", segment.key);
        }
        volume.confirm(block_on(publish(&*remote, &again)).unwrap()).unwrap();
        assert_eq!((segments_of(&remote).len(), left(&*store)), (3, 0));
        holds(&remote, 7);
    }
}

/// A store that damaged or lost a segment of a push: nothing of it is sent, and the error says so.
#[test]
fn a_damaged_copy_of_a_segment_is_never_sent() {
    for damage in [None, Some(Bytes::from_static(b"other"))] {
        let remote = large_volume();
        let store: SharedStore = Arc::new(MemoryStore::new());
        let volume = load(&store);
        volume.commit(&volume.tip(), noisy(1)).unwrap();
        let sealed = volume.seal(1, Bytes::new(), CommitId([1; 16]), 1).unwrap().unwrap();
        let mut parts = store.scan(Space::State, &[&VOLUME.0[..], b"u"].concat()).unwrap();
        let (key, _) = parts.remove(0);
        let mut batch = Batch::default();
        batch.changes.push((Space::State, key, damage));
        store.write(batch, Durability::Sync).unwrap();
        let error = block_on(publish(&*remote, &sealed)).unwrap_err();
        assert!(matches!(error, PublishError::Local { lsn: Lsn(1), .. }), "{error}");
        assert!(error.to_string().contains(&sealed.segments[0].key), "{error}");
        assert_eq!(segments_of(&remote), Vec::<String>::new());
        assert_eq!(open(&*remote, in_memory()).status().lsn, Lsn::ZERO);
    }
}

/// Without a store the segments beyond 32 MiB are made again for each try.
#[test]
fn segments_that_nobody_keeps_are_made_again_alike() {
    let remote = large_volume();
    let volume = open(&*remote, in_memory());
    volume.commit(&volume.tip(), noisy(3)).unwrap();
    let sealed = volume.seal(1, Bytes::new(), CommitId([1; 16]), 1).unwrap().unwrap();
    assert_eq!(sealed.segments.len(), 3);
    for segment in &sealed.segments {
        // Each checks its hash.
        assert!(segment.bytes().unwrap() == segment.bytes().unwrap(), "{}", segment.key);
    }
    volume.confirm(block_on(publish(&*remote, &sealed)).unwrap()).unwrap();
    holds(&remote, 3);
}

/// A store whose next write says that it began and waits until it is let go.
#[derive(Debug)]
struct Slow {
    inner: MemoryStore,
    waits: Mutex<Option<(Sender<()>, Receiver<()>)>>,
}

/// How long a write waits to be let go before the test fails.
const PATIENCE: Duration = Duration::from_secs(60);

impl Slow {
    fn new() -> Arc<Slow> {
        Arc::new(Slow { inner: MemoryStore::new(), waits: Mutex::new(None) })
    }

    /// The next write waits. Answers what hears that it began, and what lets it go.
    fn wait(&self) -> (Receiver<()>, Sender<()>) {
        let (begins, began) = channel();
        let (go, goes) = channel();
        *self.waits.lock() = Some((begins, goes));
        (began, go)
    }
}

impl ReplicaStore for Slow {
    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        self.inner.get(space, key)
    }
    fn scan(&self, space: Space, prefix: &[u8]) -> Result<Vec<(Bytes, Bytes)>, StoreError> {
        self.inner.scan(space, prefix)
    }
    fn write(&self, batch: Batch, durability: Durability) -> Result<(), StoreError> {
        let waits = self.waits.lock().take();
        if let Some((begins, goes)) = waits {
            begins.send(()).unwrap();
            let failed = |_| StoreError::Failed { dir: "slow".into(), message: "nobody let it go".into() };
            goes.recv_timeout(PATIENCE).map_err(failed)?;
        }
        self.inner.write(batch, durability)
    }
}

/// While the store takes its time over a local commit, a push or its end, readers read, and see nothing
/// of what is not stored yet.
#[test]
fn readers_wait_for_no_write_of_the_store() {
    let (remote, slow) = (created(512), Slow::new());
    let volume = open(&*remote, Options { store: Some(slow.clone()), ..Options::default() });
    write(&volume, 1, &[(1, 1)]);
    let looks = |ahead: usize, pending: bool, byte: u8| {
        let status = volume.status();
        assert_eq!((status.ahead, status.pending, volume.locals().len()), (ahead, pending, ahead));
        assert_eq!((volume.pending().is_some(), volume.base().pages()), (pending, 0));
        assert_eq!(bytes_of(&*remote, &volume), [byte]);
    };
    std::thread::scope(|scope| {
        let (began, go) = slow.wait();
        let commit = scope.spawn(|| write(&volume, 1, &[(1, 2)]));
        began.recv_timeout(PATIENCE).unwrap();
        looks(1, false, 1);
        go.send(()).unwrap();
        commit.join().unwrap();
        looks(2, false, 2);

        let (began, go) = slow.wait();
        let seal = scope.spawn(|| volume.seal(2, Bytes::new(), CommitId([1; 16]), 1).unwrap().unwrap());
        began.recv_timeout(PATIENCE).unwrap();
        looks(2, false, 2);
        go.send(()).unwrap();
        let sealed = seal.join().unwrap();
        looks(2, true, 2);

        let published = block_on(publish(&*remote, &sealed)).unwrap();
        let (began, go) = slow.wait();
        let volume = &volume;
        let confirm = scope.spawn(move || volume.confirm(published).unwrap());
        began.recv_timeout(PATIENCE).unwrap();
        looks(2, true, 2);
        go.send(()).unwrap();
        confirm.join().unwrap();
    });
    assert_eq!((volume.status().ahead, bytes_of(&*remote, &volume)), (0, vec![2]));
}

/// While a large push is prepared, local commits go on, on top of what it rolls up.
#[test]
fn local_commits_go_on_while_a_push_is_prepared() {
    let (remote, slow) = (large_volume(), Slow::new());
    let volume = open(&*remote, kept_in(&(slow.clone() as SharedStore)));
    volume.commit(&volume.tip(), noisy(0)).unwrap();
    let sealed = std::thread::scope(|scope| {
        // It waits at its first segment.
        let (began, go) = slow.wait();
        let seal = scope.spawn(|| volume.seal(1, Bytes::new(), CommitId([1; 16]), 1).unwrap());
        began.recv_timeout(PATIENCE).unwrap();
        write(&volume, PAGES, &[(3, 99)]);
        go.send(()).unwrap();
        seal.join().unwrap().unwrap()
    });
    assert_eq!((sealed.locals, volume.status().ahead), (1, 2));
    volume.confirm(block_on(publish(&*remote, &sealed)).unwrap()).unwrap();
    assert_eq!((volume.status().ahead, volume.status().lsn), (1, Lsn(1)));
    assert_eq!(read(&*remote, &volume, &volume.tip(), 3), filled(PAGE, 99));
    holds(&remote, 0);
}

/// Local commits that are replaced while a push of them is prepared are not pushed.
#[test]
fn a_push_of_local_commits_that_were_replaced_meanwhile_is_none() {
    let (remote, slow) = (large_volume(), Slow::new());
    let volume = open(&*remote, kept_in(&(slow.clone() as SharedStore)));
    volume.commit(&volume.tip(), noisy(0)).unwrap();
    let seen: Vec<u64> = volume.locals().iter().map(|local| local.number).collect();
    let sealed = std::thread::scope(|scope| {
        let (began, go) = slow.wait();
        let seal = scope.spawn(|| volume.seal(1, Bytes::new(), CommitId([1; 16]), 1).unwrap());
        began.recv_timeout(PATIENCE).unwrap();
        let pulled = block_on(volume.pull(&*remote)).unwrap();
        let lineage = volume.tip().lineage();
        let Change { changes, pages, payload } = noisy(9);
        let (number, changes) = (seen[0], Arc::new(changes));
        let other = LocalCommit { number, pages_before: 0, pages_after: pages, changes, payload };
        let stack = vec![Placed::Changed(other)];
        volume.replace_locals(lineage, &seen, pulled, stack, Batch::default()).unwrap();
        go.send(()).unwrap();
        seal.join().unwrap()
    });
    assert_eq!(sealed, None);
    assert_eq!((left(&*slow), volume.status().ahead, volume.status().pending), (0, 1, false));
    assert_eq!(push_all(&*remote, &volume, 2).unwrap(), Pushed::Durable(Lsn(1)));
    holds(&remote, 9);
}
