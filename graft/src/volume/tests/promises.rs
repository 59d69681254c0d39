use std::sync::atomic::{AtomicU64, Ordering};

use rand::{Rng, SeedableRng, rngs::StdRng};

use super::*;
use crate::fetch::fetch;
use crate::ids::key;
use crate::pull::PullError;
use crate::remote::{Answer, Counting, Counts, Fault, Faulty, Layer, RemoteError, Request};
use crate::store::{Batch, FjallStore, MemoryStore, ReplicaStore, Space};

fn random_bytes(seed: u64, len: usize) -> Bytes {
    let mut bytes = vec![0; len];
    StdRng::seed_from_u64(seed).fill(&mut bytes[..]);
    bytes.into()
}

/// Commits a mebibyte that does not compress.
fn write_large(volume: &Volume) -> BTreeMap<PageIdx, Bytes> {
    let size = volume.page_size().bytes();
    let pages = ((1 << 20) / size) as u32;
    let changes: BTreeMap<_, _> =
        (1..=pages).map(|idx| (page(idx), random_bytes(idx.into(), size))).collect();
    let change = Change { changes: changes.clone(), pages, payload: Bytes::new() };
    volume.commit(&volume.tip(), change).unwrap();
    changes
}

fn requests(counts: Counts) -> [u64; 5] {
    [counts.gets, counts.ranges, counts.creates, counts.lists, counts.deletes]
}

#[test]
fn every_step_costs_what_the_documents_say() {
    let remote = Counting::new(created(4096));
    let a = open(&*remote, in_memory());
    // The metadata, and one listing each of the log and of checkpoints.
    assert_eq!(requests(remote.reset()), [1, 0, 0, 2, 0]);
    write(&a, 3, &[(1, 1), (2, 2), (3, 3)]);
    assert_eq!(requests(remote.reset()), [0; 5]);
    push_all(&*remote, &a, 1).unwrap();
    // A small commit is one create.
    let pushed = remote.reset();
    assert_eq!(requests(pushed), [0, 0, 1, 0, 0]);
    assert!(pushed.bytes_up < 1000, "{pushed:?}");
    push_all(&*remote, &a, 1).unwrap();
    assert_eq!(requests(remote.reset()), [0; 5], "nothing to push asks nothing");
    let large = write_large(&a);
    push_all(&*remote, &a, 1).unwrap();
    // A segment and the commit.
    assert_eq!(requests(remote.reset()), [0, 0, 2, 0, 0]);
    for round in 0..5 {
        write(&a, 256, &[(7, round), (250, round)]);
        push_all(&*remote, &a, 1).unwrap();
    }
    remote.reset();

    // Opening: metadata, two listings, one prefix for each of the seven commits, and the rest of the
    // large one's head: 256 page hashes are longer than the prefix.
    let b = open(&*remote, in_memory());
    let opened = remote.reset();
    assert_eq!(requests(opened), [1, 8, 0, 2, 0]);
    assert!(opened.bytes_down < 8 * 4096 + 100, "a pull moves no pages: {opened:?}");
    // One frame holds pages 1 to 64 of the large commit: one range for all that lie in it.
    let tip = b.tip();
    block_on(fetch(&*remote, &b, &tip, &PageSet::from_ranges([1..=6, 8..=64]))).unwrap();
    assert_eq!(requests(remote.reset()), [0, 1, 0, 0, 0]);
    for idx in (1..=6).chain(8..=64) {
        assert_eq!(b.read(&tip, page(idx)).unwrap(), large[&page(idx)], "page {idx}");
    }
    // Both pages of a small commit lie in one frame; so does a page of the large one beside it.
    block_on(fetch(&*remote, &b, &tip, &PageSet::from_ranges([7..=7, 250..=250, 1..=1]))).unwrap();
    assert_eq!(requests(remote.reset()), [0, 1, 0, 0, 0]);
    // What is here costs nothing.
    block_on(fetch(&*remote, &b, &tip, &PageSet::from_ranges([1..=64]))).unwrap();
    assert_eq!(requests(remote.reset()), [0; 5]);

    write(&a, 256, &[(9, 9)]);
    push_all(&*remote, &a, 1).unwrap();
    write(&a, 256, &[(9, 10)]);
    push_all(&*remote, &a, 1).unwrap();
    remote.reset();
    // A pull of k commits: a listing and k prefixes. Of none: a listing.
    assert_eq!(catch_up(&*remote, &b), PageSet::from_ranges([9..=9]));
    assert_eq!(requests(remote.reset()), [0, 2, 0, 1, 0]);
    assert!(catch_up(&*remote, &b).is_empty());
    assert_eq!(requests(remote.reset()), [0, 0, 0, 1, 0]);
}

#[test]
fn a_push_that_loses_or_hears_nothing_reads_once() {
    let store = created(4096);
    let (remote, faulty) = (Counting::new(store.clone()), Faulty::new(store.clone(), 1));
    let (a, b) = (open(&*store, in_memory()), open(&*store, in_memory()));
    write(&a, 1, &[(1, 1)]);
    write(&b, 1, &[(1, 2)]);
    push_all(&*store, &a, 1).unwrap();
    let lost = push_all(&*remote, &b, 2).unwrap_err();
    assert!(matches!(lost, PushError::Publish(PublishError::Rejected { lsn: Lsn(1) })), "{lost}");
    assert_eq!(requests(remote.reset()), [0, 1, 1, 0, 0]);
    assert_eq!((b.status().ahead, b.status().pending), (1, false), "a rejected push keeps local commits");
    write(&a, 1, &[(1, 3)]);
    faulty.fail_next(Request::Create, Fault::FailAfter);
    assert_eq!(push_all(&*faulty, &a, 1).unwrap(), Pushed::Durable(Lsn(2)), "read back and found");
}

#[test]
fn a_segment_that_is_not_stored_leaves_no_log_entry() {
    let store = created(4096);
    let faulty = Faulty::new(store.clone(), 1);
    let a = open(&*store, in_memory());
    let large = write_large(&a);
    for fault in [Fault::FailBefore, Fault::FailAfter, Fault::Delay { requests: 2 }] {
        faulty.fail_next(Request::Create, fault);
        let error = push_all(&*faulty, &a, 1).unwrap_err();
        assert!(matches!(error, PushError::Publish(PublishError::Upload { lsn: Lsn(1), .. })), "{error}");
        let log = store.objects().into_iter().filter(|(key, _)| key.contains("/log/")).count();
        assert_eq!((log, a.status().pending), (0, true), "{fault:?}");
    }
    assert_eq!(push_all(&*faulty, &a, 1).unwrap(), Pushed::Durable(Lsn(1)));
    let b = open(&*store, in_memory());
    for (idx, bytes) in &large {
        assert_eq!(read(&*store, &b, &b.tip(), idx.get()), *bytes);
    }
}

#[test]
fn pages_cut_off_and_grown_again_read_as_zeroes_everywhere() {
    let store = created(512);
    let a = open(&*store, in_memory());
    write(&a, 6, &[(1, 1), (2, 2), (3, 3), (4, 4), (5, 5), (6, 6)]);
    push_all(&*store, &a, 1).unwrap();
    let old = a.tip();
    // In two local commits that are rolled up into one.
    write(&a, 2, &[(1, 9)]);
    write(&a, 7, &[(5, 8)]);
    let expected = [9, 2, 0, 0, 8, 0, 0];
    assert_eq!(bytes_of(&*store, &a), expected);
    push_all(&*store, &a, 1).unwrap();
    assert_eq!(bytes_of(&*store, &a), expected, "after the push");
    // Again, in two commits of the log.
    let b = open(&*store, in_memory());
    assert_eq!(bytes_of(&*store, &b), expected, "by a newcomer");
    write(&a, 1, &[]);
    push_all(&*store, &a, 1).unwrap();
    write(&a, 5, &[]);
    push_all(&*store, &a, 1).unwrap();
    let graft = catch_up(&*store, &b);
    assert_eq!(graft, PageSet::from_ranges([2..=7]));
    for volume in [&a, &b, &open(&*store, in_memory())] {
        assert_eq!(bytes_of(&*store, volume), [9, 0, 0, 0, 0]);
    }
    let kept: Vec<u8> = (1..=6).map(|idx| read(&*store, &a, &old, idx)[0]).collect();
    assert_eq!(kept, [1, 2, 3, 4, 5, 6], "a snapshot keeps what it showed");
}

#[test]
fn a_commit_on_an_old_snapshot_is_refused_and_changes_nothing() {
    let store = created(512);
    let a = open(&*store, in_memory());
    let before = a.tip();
    write(&a, 1, &[(1, 1)]);
    let change =
        Change { changes: BTreeMap::from([(page(1), filled(512, 2))]), pages: 1, payload: Bytes::new() };
    assert!(matches!(a.commit(&before, change.clone()), Err(CommitError::Stale)));
    assert_eq!((a.status().ahead, bytes_of(&*store, &a)), (1, vec![1]));
    // A reset brings the old content back, and not the old version.
    a.reset().unwrap();
    assert!(matches!(a.commit(&before, change), Err(CommitError::Stale)));
}

/// Two writers race for every LSN from two threads. Whoever loses pulls and tries again; each commit
/// adds 1 to a counter in page 1, so a commit on an old base would lose an addition.
#[test]
fn of_two_racing_replicas_exactly_one_wins_each_lsn() {
    const EACH: u64 = 60;
    let store = created(512);
    let writer = |id: u8| {
        let volume = open(&*store, in_memory());
        let (mut won, mut next) = (0, ids(id));
        while won < EACH {
            catch_up(&*store, &volume);
            let tip = volume.tip();
            let before =
                if tip.pages() == 0 { Bytes::from(vec![0; 512]) } else { read(&*store, &volume, &tip, 1) };
            let count = u64::from_le_bytes(*before.first_chunk().unwrap()) + 1;
            let mut after = before.to_vec();
            after[..8].copy_from_slice(&count.to_le_bytes());
            let change = Change {
                changes: BTreeMap::from([(page(1), after.into())]),
                pages: 1,
                payload: Bytes::new(),
            };
            volume.commit(&tip, change).unwrap();
            match block_on(push(&*store, &volume, |_| Bytes::new(), &mut next, 1)) {
                Ok(_) => won += 1,
                Err(PushError::Publish(PublishError::Rejected { .. })) => drop(volume.reset().unwrap()),
                Err(error) => panic!("{error}"),
            }
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(|| writer(1));
        scope.spawn(|| writer(2));
    });
    let volume = open(&*store, in_memory());
    assert_eq!(volume.status().lsn, Lsn(2 * EACH));
    let count = read(&*store, &volume, &volume.tip(), 1);
    assert_eq!(u64::from_le_bytes(*count.first_chunk().unwrap()), 2 * EACH);
}

fn stores() -> Vec<(SharedStore, Option<tempfile::TempDir>)> {
    let dir = tempfile::tempdir().unwrap();
    let fjall = FjallStore::open(dir.path()).unwrap();
    vec![(Arc::new(MemoryStore::new()), None), (Arc::new(fjall), Some(dir))]
}

#[test]
fn a_pending_push_survives_a_restart_and_is_settled() {
    for (store, _dir) in stores() {
        let options = || Options { store: Some(store.clone()), ..Options::default() };
        for (landed, raced) in [(true, false), (false, false), (false, true)] {
            let remote = created(512);
            let faulty = Faulty::new(remote.clone(), 1);
            let a = open(&*remote, options());
            a.reset().unwrap();
            write(&a, 2, &[(1, 1), (2, 2)]);
            // The create's fate is not heard, and neither is what is there.
            faulty.fail_next(Request::Create, if landed { Fault::FailAfter } else { Fault::FailBefore });
            faulty.fail_next(Request::GetRange, Fault::FailBefore);
            let error = push_all(&*faulty, &a, 1).unwrap_err();
            assert!(
                matches!(error, PushError::Publish(PublishError::Unknown { lsn: Lsn(1), .. })),
                "{error}"
            );
            let sent = a.pending().unwrap();
            drop(a);
            if raced {
                let b = open(&*remote, in_memory());
                write(&b, 1, &[(1, 77)]);
                push_all(&*remote, &b, 2).unwrap();
            }
            let a = open(&*remote, options());
            assert_eq!(*a.pending().unwrap(), *sent, "byte for byte");
            assert_eq!(bytes_of(&*remote, &a), [1, 2]);
            write(&a, 2, &[(2, 3)]);
            match push_all(&*remote, &a, 3) {
                Ok(pushed) => assert_eq!((pushed, raced), (Pushed::Durable(Lsn(2)), false)),
                Err(PushError::Publish(PublishError::Rejected { lsn: Lsn(1) })) => {
                    assert!(raced);
                    assert_eq!((a.status().ahead, a.status().pending), (2, false));
                    assert_eq!(bytes_of(&*remote, &a), [1, 3], "what lost stays until it is reset");
                    assert_eq!(a.reset().unwrap().len(), 2);
                    catch_up(&*remote, &a);
                }
                Err(error) => panic!("{error}"),
            }
            let expected: &[u8] = if raced { &[77] } else { &[1, 3] };
            assert_eq!(bytes_of(&*remote, &a), expected);
            drop(a);
            let a = open(&*remote, options());
            assert_eq!(
                (bytes_of(&*remote, &a), a.status().ahead, a.status().pending),
                (expected.to_vec(), 0, false)
            );
            // The next round has another bucket: this replica's state goes, as its error would say.
            drop(a);
            clear(&*store);
        }
    }
}

fn clear(store: &dyn ReplicaStore) {
    let mut batch = Batch::default();
    for space in Space::ALL {
        for (key, _) in store.scan(space, b"").unwrap() {
            batch.remove(space, key);
        }
    }
    store.write(batch, Durability::Sync).unwrap();
}

/// A store whose writes fail once it is told so.
#[derive(Debug, Default)]
struct FullDisk {
    inner: MemoryStore,
    full: std::sync::atomic::AtomicBool,
}

impl ReplicaStore for FullDisk {
    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        self.inner.get(space, key)
    }
    fn scan(&self, space: Space, prefix: &[u8]) -> Result<Vec<(Bytes, Bytes)>, StoreError> {
        self.inner.scan(space, prefix)
    }
    fn write(&self, batch: Batch, durability: Durability) -> Result<(), StoreError> {
        if self.full.load(std::sync::atomic::Ordering::Relaxed) {
            return Err(StoreError::Failed { dir: "full".into(), message: "no space left".into() });
        }
        self.inner.write(batch, durability)
    }
}

/// An absorb whose store failed half-way once left the base moved on and the tip behind it: the next
/// commit was made on the old tip and published as if it had been made on the new base.
#[test]
fn when_the_local_store_fails_nothing_has_moved() {
    let remote = created(512);
    let b = open(&*remote, in_memory());
    let disk = Arc::new(FullDisk::default());
    let a = open(&*remote, Options { store: Some(disk.clone()), ..Options::default() });
    write(&a, 1, &[(1, 1)]);
    push_all(&*remote, &a, 1).unwrap();
    catch_up(&*remote, &b);
    for round in 2..5 {
        write(&b, 1, &[(1, round)]);
        push_all(&*remote, &b, 2).unwrap();
    }
    let full = |full| disk.full.store(full, std::sync::atomic::Ordering::Relaxed);
    let (status, version) = (a.status(), a.tip().version());
    let pulled = block_on(a.pull(&*remote)).unwrap();
    full(true);
    assert!(a.absorb(pulled.clone()).is_err());
    assert_eq!((a.status(), a.tip().version(), bytes_of(&*remote, &a)), (status, version, vec![1]));
    full(false);
    assert_eq!(a.absorb(pulled).unwrap(), PageSet::from_ranges([1..=1]));
    assert_eq!(bytes_of(&*remote, &a), [4]);

    write(&a, 1, &[(1, 5)]);
    let status = a.status();
    full(true);
    let change = Change { changes: BTreeMap::new(), pages: 9, payload: Bytes::new() };
    assert!(matches!(a.commit(&a.tip(), change), Err(CommitError::Store(_))));
    assert!(a.seal(1, Bytes::new(), CommitId([9; 16]), 1).is_err());
    assert!(a.reset().is_err());
    assert_eq!((a.status(), bytes_of(&*remote, &a)), (status, vec![5]));
    full(false);
    let prepared = a.seal(1, Bytes::new(), CommitId([9; 16]), 1).unwrap().unwrap();
    let published = block_on(publish(&*remote, &prepared)).unwrap();
    full(true);
    assert!(a.confirm(published).is_err());
    full(false);
    assert_eq!(a.status().ahead, 1);
    a.confirm(published).unwrap();
    assert_eq!((a.status().ahead, a.status().lsn, bytes_of(&*remote, &a)), (0, Lsn(5), vec![5]));
}

/// A replica that keeps no local commits moved the base on under those that another program had left
/// in the same directory; opened by that program again they lay on pages they were not made on.
#[test]
fn unpushed_local_commits_are_not_passed_over() {
    let remote = created(512);
    let store: SharedStore = Arc::new(MemoryStore::new());
    let keeping = |locals| Options { store: Some(store.clone()), locals, ..Options::default() };
    let a = open(&*remote, keeping(Some(Durability::Sync)));
    write(&a, 1, &[(1, 1)]);
    drop(a);
    let error = block_on(Volume::open(&*remote, VOLUME, keeping(None))).unwrap_err();
    assert!(matches!(error, OpenError::Unpushed { locals: 1, .. }), "{error}");
    let a = open(&*remote, keeping(Some(Durability::Sync)));
    push_all(&*remote, &a, 1).unwrap();
    drop(a);
    assert_eq!(bytes_of(&*remote, &open(&*remote, keeping(None))), [1]);
}

/// A page set has several valid encodings, and a commit's hash is over the one that its writer chose.
#[test]
fn a_head_encoded_by_another_writer_keeps_its_hash_across_a_restart() {
    use splinter_rs::{Encodable as _, Splinter};
    let remote = created(512);
    let a = open(&*remote, in_memory());
    let all: Vec<(u32, u8)> = (1..=40).map(|idx| (idx, idx as u8)).collect();
    write(&a, 40, &all);
    push_all(&*remote, &a, 1).unwrap();
    let key = key::log(VOLUME, Lsn(1));
    let object = block_on(remote.get(&key)).unwrap();
    let head = Head::decode(VOLUME, Lsn(1), &object).unwrap();
    let ours = head.set.bytes().clone();
    // The same set, not optimised: valid, and longer.
    let theirs = head.set.iter().map(PageIdx::get).collect::<Splinter>().encode_to_bytes();
    assert_ne!(ours, theirs);
    let mut rewritten = object.to_vec();
    rewritten.splice(160..160 + ours.len(), theirs.iter().copied());
    rewritten[96..100].copy_from_slice(&(theirs.len() as u32).to_le_bytes());
    let head_bytes = head.encoded.len() - ours.len() + theirs.len();
    let mut hasher = blake3::Hasher::new();
    hasher.update(&rewritten[..128]);
    hasher.update(&rewritten[160..head_bytes]);
    rewritten[128..160].copy_from_slice(hasher.finalize().as_bytes());
    remote.overwrite(&key, rewritten);

    let store: SharedStore = Arc::new(MemoryStore::new());
    let keeping = || Options { store: Some(store.clone()), ..Options::default() };
    let b = open(&*remote, keeping());
    write(&b, 40, &[(3, 99)]);
    push_all(&*remote, &b, 2).unwrap();
    drop(b);
    let b = open(&*remote, keeping());
    assert_eq!(b.status().lsn, Lsn(2));
    let expected: Vec<u8> = (1..=40).map(|idx| if idx == 3 { 99 } else { idx }).collect();
    assert_eq!(bytes_of(&*remote, &b), expected);
    assert_eq!(bytes_of(&*remote, &open(&*remote, in_memory())), expected);
}

/// The second of two threads that settle one rejected push must not forget a push sealed since.
#[test]
fn forgetting_a_lost_push_leaves_the_next_one() {
    let remote = created(512);
    let a = open(&*remote, in_memory());
    write(&a, 1, &[(1, 1)]);
    let first = a.seal(1, Bytes::new(), CommitId([1; 16]), 1).unwrap().unwrap();
    a.forget_pending(&first).unwrap();
    let second = a.seal(1, Bytes::new(), CommitId([2; 16]), 1).unwrap().unwrap();
    a.forget_pending(&first).unwrap();
    assert_eq!(a.pending().unwrap().head.id, second.head.id);
}

#[test]
fn a_cache_smaller_than_a_frame_still_reads_what_was_asked_for_last() {
    let remote = created(512);
    let a = open(&*remote, in_memory());
    let all: Vec<(u32, u8)> = (1..=300).map(|idx| (idx, idx as u8)).collect();
    write(&a, 300, &all);
    push_all(&*remote, &a, 1).unwrap();
    let b = open(&*remote, Options { cache_bytes: 130 * 512, ..in_memory() });
    for _ in 0..2 {
        let expected: Vec<u8> = (1..=300u32).map(|idx| idx as u8).collect();
        assert_eq!(bytes_of(&*remote, &b), expected);
    }
}

/// Local commits and a pending push larger than a part of a stored value survive a restart at any step,
/// and leave nothing behind when they are settled.
#[test]
fn large_local_commits_and_pushes_are_kept_in_parts() {
    let (remote, store) = (MemoryRemote::new(), Arc::new(MemoryStore::new()));
    let id = VolumeId([6; 16]);
    let meta = Meta { page_size: PageSize::new(65536).unwrap(), parent: None };
    block_on(catalog::create(&remote, &"large".parse().unwrap(), id, meta)).unwrap();
    let options = || Options { store: Some(store.clone()), ..Options::default() };
    let open = || Volume::load(id, meta.page_size, options()).unwrap().volume;
    // Random bytes, so that the push is as large as the commit.
    let page = |seed: u32| {
        let mut out = vec![0; 65536];
        blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut out);
        Bytes::from(out)
    };
    let pages = 200;
    let volume = open();
    let changes = (1..=pages).map(|idx| (PageIdx::new(idx).unwrap(), page(idx))).collect();
    volume.commit(&volume.tip(), Change { changes, pages, payload: Bytes::from_static(b"p") }).unwrap();
    let whole = |volume: &Volume| {
        for idx in 1..=pages {
            assert_eq!(
                volume.read(&volume.tip(), PageIdx::new(idx).unwrap()).unwrap(),
                page(idx),
                "page {idx}"
            );
        }
    };
    drop(volume);
    let volume = open();
    whole(&volume);
    let sealed = volume.seal(1, Bytes::new(), CommitId([1; 16]), 1).unwrap().unwrap();
    drop(volume);
    let volume = open();
    assert_eq!(volume.pending().as_deref(), Some(&*sealed));
    let published = block_on(publish(&remote, &sealed)).unwrap();
    volume.confirm(published).unwrap();
    drop(volume);
    let volume = open();
    assert_eq!(volume.status().ahead, 0);
    whole(&volume);
    assert!(store.scan(Space::Local, b"").unwrap().is_empty());
    let left = store.scan(Space::State, &id.0).unwrap();
    assert!(left.iter().all(|(key, _)| !matches!(key[16], b'p' | b'q' | b'u')), "parts of the push are left");
    // And where it is dropped instead.
    let changes = (1..=pages).map(|idx| (PageIdx::new(idx).unwrap(), page(idx + 1000))).collect();
    volume.commit(&volume.tip(), Change { changes, pages, payload: Bytes::new() }).unwrap();
    volume.seal(1, Bytes::new(), CommitId([2; 16]), 2).unwrap().unwrap();
    volume.reset().unwrap();
    assert!(store.scan(Space::Local, b"").unwrap().is_empty());
    let left = store.scan(Space::State, &id.0).unwrap();
    assert!(left.iter().all(|(key, _)| !matches!(key[16], b'p' | b'q' | b'u')), "parts of the push are left");
}

/// A store that fails every tenth read of a head.
#[derive(Debug)]
struct Tenth {
    inner: Arc<MemoryRemote>,
    asked: AtomicU64,
    answered: AtomicU64,
}

impl Layer for Tenth {
    fn inner(&self) -> &dyn Remote {
        &*self.inner
    }

    fn around<'a, T: Send + 'a>(
        &'a self,
        request: Request,
        key: &'a str,
        sent: Answer<'a, T>,
    ) -> Answer<'a, T> {
        Box::pin(async move {
            if request == Request::GetRange {
                if self.asked.fetch_add(1, Ordering::Relaxed) % 10 == 9 {
                    return Err(RemoteError::Unavailable { key: key.into(), message: "the tenth".into() });
                }
                self.answered.fetch_add(1, Ordering::Relaxed);
            }
            sent.await
        })
    }
}

/// A test of two coordinators on a store that failed one request of ten stood still: a pull of fifty commits
/// never came through, and each try began anew.
#[test]
fn a_pull_goes_on_where_the_last_one_failed() {
    const COMMITS: u64 = 100;
    let store = created(512);
    let (a, b) = (open(&*store, in_memory()), open(&*store, in_memory()));
    for n in 1..=COMMITS {
        write(&a, 1, &[(1, n as u8)]);
        push_all(&*store, &a, 1).unwrap();
    }
    let failing = Tenth { inner: store, asked: AtomicU64::new(0), answered: AtomicU64::new(0) };
    let mut failed = 0;
    let pulled = loop {
        match block_on(b.pull(&failing)) {
            Ok(pulled) => break pulled,
            Err(PullError::Remote(_)) => failed += 1,
            Err(error) => panic!("{error}"),
        }
        assert!(failed <= 4, "what is under way with one that fails is not given up");
    };
    assert!(failed > 1, "it was to fail");
    assert_eq!(failing.answered.load(Ordering::Relaxed), COMMITS, "each head is read once");
    b.absorb(pulled).unwrap();
    assert_eq!(b.status().lsn, Lsn(COMMITS));
    // Nothing is kept of it.
    write(&a, 1, &[(1, 0)]);
    push_all(&failing, &a, 1).unwrap();
    assert_eq!(catch_up(&failing, &b), PageSet::from_ranges([1..=1]));
    assert_eq!(failing.answered.load(Ordering::Relaxed), COMMITS + 1);
}
