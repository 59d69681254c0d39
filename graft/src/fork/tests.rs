//! Forks and time travel: what they cost, and that they read like a model of them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use futures::executor::block_on;
use rand::{Rng, SeedableRng, rngs::StdRng};

use super::*;
use crate::Seq;
use crate::checkpoint::{self, Written};
use crate::fetch::fetch;
use crate::ids::{CommitId, PageIdx, PageSize};
use crate::pull::PullError;
use crate::remote::{Answer, Counting, Faults, Faulty, Layer, MemoryRemote, Request};
use crate::store::{Durability, MemoryStore};
use crate::volume::{Change, CommitError, Options, ReadError, Volume, push};

const FIRST: VolumeId = VolumeId([1; 16]);
const PAGE: usize = 512;

fn id(n: u8) -> VolumeId {
    VolumeId([n; 16])
}

fn name(n: u8) -> VolumeName {
    format!("v{n}").parse().unwrap()
}

fn page(idx: u32) -> PageIdx {
    PageIdx::new(idx).unwrap()
}

fn created(remote: &dyn Remote) {
    let meta = Meta { page_size: PageSize::new(PAGE as u32).unwrap(), parent: None };
    block_on(catalog::create(remote, &name(1), FIRST, meta)).unwrap();
}

fn in_memory() -> Options {
    Options { store: None, locals: None, cache_bytes: 16 << 20, ..Options::default() }
}

fn open(remote: &dyn Remote, volume: VolumeId) -> Volume {
    block_on(Volume::open(remote, volume, in_memory())).unwrap().volume
}

/// Commits and pushes pages filled with one byte each; the commit's time is what `now_ms` says.
fn commit(remote: &dyn Remote, volume: &Volume, pages: u32, written: &[(u32, u8)], now_ms: i64) {
    let fill = |byte: u8| Bytes::from(vec![byte; PAGE]);
    let changes: BTreeMap<_, _> = written.iter().map(|(idx, byte)| (page(*idx), fill(*byte))).collect();
    volume.commit(&volume.tip(), Change { changes, pages, payload: Bytes::new() }).unwrap();
    let seed = u128::from(volume.status().lsn.0) << 64 | u128::from(volume.id().0[0]);
    block_on(push(remote, volume, |_| Bytes::new(), || CommitId(seed.to_be_bytes()), now_ms)).unwrap();
}

/// The first byte of every page of the tip.
fn bytes_of(remote: &dyn Remote, volume: &Volume) -> Vec<u8> {
    let tip = volume.tip();
    let read = |idx: u32| loop {
        match volume.read(&tip, page(idx)) {
            Ok(bytes) => return bytes[0],
            Err(ReadError::Fault(missing)) => block_on(fetch(remote, volume, &tip, &missing)).unwrap(),
            Err(error) => panic!("{error}"),
        }
    };
    (1..=tip.pages()).map(read).collect()
}

fn checkpointed(remote: &dyn Remote, volume: &Volume) -> Written {
    let state = Bytes::copy_from_slice(&volume.base().lsn().0.to_le_bytes());
    block_on(checkpoint::write(remote, volume, &volume.base(), state)).unwrap()
}

#[test]
fn a_fork_costs_the_same_whatever_it_is_of() {
    let remote = Counting::new(Arc::new(MemoryRemote::new()));
    created(&*remote);
    let parent = open(&*remote, FIRST);
    let mut child = 2;
    for commits in [1u32, 10, 300] {
        for round in 0..commits {
            let all: Vec<(u32, u8)> = (1..=commits * 4).map(|idx| (idx, round as u8)).collect();
            commit(&*remote, &parent, commits * 4, &all, 1);
        }
        for at in [At::Newest, At::Lsn(Lsn(1))] {
            remote.reset();
            block_on(create(&*remote, FIRST, at, id(child), &name(child))).unwrap();
            let cost = remote.reset();
            // The name, twice the metadata, horizon; pin, metadata, name; the newest key.
            assert_eq!((cost.gets, cost.lists, cost.creates, cost.requests()), (3, 2, 3, 8), "{at:?}");
            assert!(cost.bytes_up < 300, "{cost:?}");
            child += 1;
        }
        // And opening it, where the parent has a checkpoint, what opening the parent does (the root, page
        // 1), and its own.
        checkpointed(&*remote, &parent);
        block_on(create(&*remote, FIRST, At::Newest, id(child), &name(child))).unwrap();
        remote.reset();
        let opened = block_on(Volume::open(&*remote, id(child), in_memory())).unwrap();
        let cost = remote.reset();
        assert_eq!((cost.gets, cost.lists, cost.ranges, cost.requests()), (2, 3, 2, 7));
        assert_eq!((opened.heads.len(), opened.start.lsn), (0, parent.status().lsn));
        child += 1;
    }
}

#[test]
fn a_fork_goes_its_own_way_and_so_does_its_parent() {
    let remote = MemoryRemote::new();
    created(&remote);
    let parent = open(&remote, FIRST);
    commit(&remote, &parent, 3, &[(1, 1), (2, 2), (3, 3)], 10);
    commit(&remote, &parent, 3, &[(2, 20)], 20);
    commit(&remote, &parent, 4, &[(3, 30)], 30);
    let found = block_on(create(&remote, FIRST, At::Lsn(Lsn(2)), id(2), &name(2))).unwrap();
    assert_eq!(found, Found { lsn: Lsn(2), origin: FIRST });
    let child = open(&remote, id(2));
    assert_eq!(bytes_of(&remote, &child), [1, 20, 3]);
    assert_eq!(child.status().lsn, Lsn(2));
    // Its log goes on where it was forked; the chain, too.
    commit(&remote, &child, 3, &[(1, 100)], 5);
    let head = block_on(crate::pull::read_head(&remote, id(2), Lsn(3))).unwrap();
    let at_fork = block_on(crate::pull::read_head(&remote, FIRST, Lsn(2))).unwrap();
    assert_eq!((head.parent, head.time_ms), (at_fork.hash, 21), "later than what it follows");
    commit(&remote, &parent, 4, &[(1, 111)], 40);
    assert_eq!(bytes_of(&remote, &open(&remote, id(2))), [100, 20, 3]);
    assert_eq!(bytes_of(&remote, &open(&remote, FIRST)), [111, 20, 30, 0]);
    // A fork of the fork, before and after where that was forked.
    for (lsn, origin, expected) in [(1, FIRST, vec![1, 2, 3]), (3, id(2), vec![100, 20, 3])] {
        let n = 2 + lsn as u8;
        let found = block_on(create(&remote, id(2), At::Lsn(Lsn(lsn)), id(n), &name(n))).unwrap();
        assert_eq!(found, Found { lsn: Lsn(lsn), origin });
        let grandchild = open(&remote, id(n));
        assert_eq!(bytes_of(&remote, &grandchild), expected);
        commit(&remote, &grandchild, 3, &[(3, 200)], 50);
        assert_eq!(bytes_of(&remote, &open(&remote, id(n)))[2], 200);
    }
    let error = block_on(create(&remote, id(2), At::Lsn(Lsn(9)), id(9), &name(9))).unwrap_err();
    assert!(matches!(error, ForkError::At(AtError::NotYet { newest: Lsn(3), .. })), "{error}");
    let error = block_on(create(&remote, FIRST, At::Newest, id(9), &name(2))).unwrap_err();
    assert!(matches!(error, ForkError::Catalog(CatalogError::Exists { .. })), "{error}");
}

#[test]
fn a_fork_of_an_empty_volume_is_empty_and_may_be_written() {
    let remote = MemoryRemote::new();
    created(&remote);
    block_on(create(&remote, FIRST, At::Newest, id(2), &name(2))).unwrap();
    let parent = open(&remote, FIRST);
    commit(&remote, &parent, 1, &[(1, 1)], 1);
    let child = open(&remote, id(2));
    assert_eq!(child.status().lsn, Lsn::ZERO);
    commit(&remote, &child, 1, &[(1, 2)], 1);
    assert_eq!(bytes_of(&remote, &open(&remote, id(2))), [2]);
    assert_eq!(bytes_of(&remote, &open(&remote, FIRST)), [1]);
}

/// A fork that is made while garbage collection announces its horizon gives up, and leaves nothing.
#[test]
fn a_fork_below_the_horizon_gives_up() {
    let remote = MemoryRemote::new();
    created(&remote);
    let parent = open(&remote, FIRST);
    for round in 1..=4 {
        commit(&remote, &parent, 1, &[(1, round)], round.into());
    }
    block_on(remote.create(&key::horizon(FIRST, Lsn(3), Seq(1)), Bytes::new())).unwrap();
    let before = remote.objects();
    let error = block_on(create(&remote, FIRST, At::Lsn(Lsn(2)), id(2), &name(2))).unwrap_err();
    assert!(matches!(error, ForkError::Expired { lsn: Lsn(2), horizon: Lsn(3), .. }), "{error}");
    block_on(abandon(&remote, FIRST, id(2))).unwrap();
    assert_eq!(remote.objects(), before);
    block_on(create(&remote, FIRST, At::Lsn(Lsn(3)), id(2), &name(2))).unwrap();
    let pin = block_on(remote.get(&key::fork_pin(FIRST, id(2)))).unwrap();
    let expected = Pin { lsn: Lsn(3), seq: None, until_ms: Pin::FOR_EVER };
    assert_eq!(Pin::decode(&key::fork_pin(FIRST, id(2)), &pin), Ok(expected));
}

#[test]
fn a_volume_with_forks_is_not_removed_and_then_it_is() {
    let remote = MemoryRemote::new();
    created(&remote);
    let parent = open(&remote, FIRST);
    commit(&remote, &parent, 1, &[(1, 1)], 1);
    checkpointed(&remote, &parent);
    for n in [2, 3] {
        block_on(create(&remote, FIRST, At::Newest, id(n), &name(n))).unwrap();
    }
    let before = remote.objects();
    let error = block_on(catalog::remove(&remote, &name(1), 1)).unwrap_err();
    assert!(error.to_string().contains("v2, v3"), "{error}");
    assert_eq!(remote.objects(), before);
    for n in [3, 2, 1] {
        block_on(catalog::remove(&remote, &name(n), 1)).unwrap();
        let left = remote.objects();
        assert!(left.iter().all(|(key, _)| !key.contains(&id(n).to_string())), "{left:?}");
        assert!(matches!(
            block_on(catalog::resolve(&remote, &name(n))),
            Err(CatalogError::NoSuchVolume { .. })
        ));
    }
    assert!(remote.objects().is_empty());
}

/// A store in which a volume is removed, from beginning to end, just before the nth request of a forker.
#[derive(Debug)]
struct RemovedBefore {
    inner: MemoryRemote,
    request: usize,
    seen: AtomicUsize,
}

#[async_trait::async_trait]
impl Layer for RemovedBefore {
    fn inner(&self) -> &dyn Remote {
        &self.inner
    }
    fn around<'a, T: Send + 'a>(&'a self, _: Request, _: &'a str, sent: Answer<'a, T>) -> Answer<'a, T> {
        Box::pin(async move {
            if self.seen.fetch_add(1, Ordering::Relaxed) + 1 == self.request {
                match catalog::remove(&self.inner, &name(1), 1).await {
                    Ok(_) | Err(CatalogError::HasForks { .. }) => {}
                    Err(other) => panic!("{other}"),
                }
            }
            sent.await
        })
    }
}

/// Simulation, seed 6300: a forker had read the metadata of a volume and stood still while that was removed,
/// with the mark that it takes no forks. Its fork was acknowledged, and read through nothing.
#[test]
fn a_removal_between_any_two_steps_of_a_fork_leaves_one_of_the_two() {
    let (mut forked, mut refused) = (0, 0);
    for request in 1.. {
        let inner = MemoryRemote::new();
        created(&inner);
        let parent = open(&inner, FIRST);
        commit(&inner, &parent, 1, &[(1, 1)], 1);
        let remote = RemovedBefore { inner, request, seen: 0.into() };
        let made = block_on(create_once(&remote, FIRST, At::Newest, id(2), &name(2)));
        let volume = block_on(catalog::resolve(&remote.inner, &name(1)));
        match made {
            Ok(_) => {
                assert_eq!(volume.unwrap(), FIRST, "before request {request}");
                assert_eq!(
                    bytes_of(&remote.inner, &open(&remote.inner, id(2))),
                    [1],
                    "before request {request}"
                );
                forked += 1;
            }
            Err(error) => {
                assert!(matches!(volume, Err(CatalogError::NoSuchVolume { .. })), "{request}: {error}");
                let left = remote.inner.objects();
                assert!(left.is_empty(), "before request {request}, {error}: {left:?}");
                refused += 1;
            }
        }
        if remote.seen.load(Ordering::Relaxed) < request {
            break;
        }
    }
    println!("{forked} forks, {refused} refused");
    assert!(forked > 1 && refused > 3, "{forked} {refused}");
}

#[test]
fn a_moment_means_the_newest_commit_that_is_not_later() {
    for checkpoints in [false, true] {
        let remote = Counting::new(Arc::new(MemoryRemote::new()));
        created(&*remote);
        let parent = open(&*remote, FIRST);
        for round in 1..=100 {
            commit(&*remote, &parent, 1, &[(1, round)], 1000 * i64::from(round));
            if checkpoints && round % 30 == 0 {
                checkpointed(&*remote, &parent);
            }
            if round == 60 {
                block_on(create(&*remote, FIRST, At::Newest, id(2), &name(2))).unwrap();
            }
        }
        let child = open(&*remote, id(2));
        commit(&*remote, &child, 1, &[(1, 200)], 90_000);
        let at = |volume, time_ms| block_on(Volume::open_at(&*remote, volume, At::TimeMs(time_ms), 1 << 20));
        for (volume, time_ms, byte) in [
            (FIRST, 1000, 1),
            (FIRST, 1999, 1),
            (FIRST, 2000, 2),
            (FIRST, 59_500, 59),
            (FIRST, 60_000, 60),
            (FIRST, 61_000, 61),
            (FIRST, i64::MAX, 100),
            (id(2), 89_999, 60),
            (id(2), 90_000, 200),
            (id(2), 30_500, 30),
        ] {
            remote.reset();
            let opened = at(volume, time_ms).unwrap();
            let cost = remote.reset();
            assert!(!checkpoints || cost.requests() < 60, "{time_ms}: {cost:?}");
            assert_eq!(bytes_of(&*remote, &opened.volume), [byte], "{volume} at {time_ms}");
            let change = Change { changes: BTreeMap::new(), pages: 5, payload: Bytes::new() };
            let error = opened.volume.commit(&opened.volume.tip(), change).unwrap_err();
            assert!(matches!(error, CommitError::ReadOnly { .. }), "{error}");
            let pulled = block_on(opened.volume.pull(&*remote)).unwrap();
            assert!(opened.volume.absorb(pulled).unwrap().is_empty(), "it stays where it is");
            assert_eq!(bytes_of(&*remote, &opened.volume), [byte]);
        }
        for volume in [FIRST, id(2)] {
            let error = at(volume, 999).unwrap_err();
            assert!(matches!(error, AtError::TooEarly { .. }), "{error}");
        }
    }
}

/// What garbage collection has taken is an error with a next step, not damage.
#[test]
fn a_past_that_is_gone_is_expired() {
    use crate::format::tombstone::{Of, Tombstone};
    let remote = MemoryRemote::new();
    created(&remote);
    let parent = open(&remote, FIRST);
    for round in 1..=10 {
        commit(&remote, &parent, 1, &[(1, round)], round.into());
        if round == 3 || round == 8 {
            checkpointed(&remote, &parent);
        }
    }
    block_on(remote.create(&key::horizon(FIRST, Lsn(8), Seq(1)), Bytes::new())).unwrap();
    for lsn in 3..=7 {
        let head = block_on(crate::pull::read_head(&remote, FIRST, Lsn(lsn))).unwrap();
        let left = Tombstone { of: Of::Commit(Lsn(lsn)), id: head.id, hash: head.hash };
        remote.overwrite(&key::log(FIRST, Lsn(lsn)), left.encode(FIRST));
    }
    for lsn in 1..=2 {
        block_on(remote.delete(&key::log(FIRST, Lsn(lsn)))).unwrap();
    }
    block_on(remote.delete(&key::checkpoint(FIRST, crate::ids::Seq(1)))).unwrap();
    for lsn in 1..=7 {
        let error = block_on(Volume::open_at(&remote, FIRST, At::Lsn(Lsn(lsn)), 1 << 20)).unwrap_err();
        assert!(matches!(error, AtError::Pull(PullError::Expired { .. })), "lsn {lsn}: {error}");
    }
    for lsn in 8..=10 {
        let opened = block_on(Volume::open_at(&remote, FIRST, At::Lsn(Lsn(lsn)), 1 << 20)).unwrap();
        assert_eq!(bytes_of(&remote, &opened.volume).len(), 1);
    }
}

/// What each volume was at each LSN of its own log or an ancestor's.
type Log = BTreeMap<u64, BTreeMap<u32, u8>>;

struct Family {
    rng: StdRng,
    remote: MemoryRemote,
    logs: Vec<Log>,
    stores: Vec<Arc<MemoryStore>>,
    shared: Arc<MemoryStore>,
}

impl Family {
    fn id(at: usize) -> VolumeId {
        id(at as u8 + 1)
    }

    fn options(&mut self, at: usize) -> Options {
        let store: Option<Arc<MemoryStore>> = match self.rng.random_range(0..3) {
            0 => None,
            1 => Some(self.stores[at].clone()),
            // One data directory for the whole family: pages of ancestors are shared in it.
            _ => Some(self.shared.clone()),
        };
        let store = store.map(|store| store as crate::store::SharedStore);
        let locals = store.is_some().then_some(Durability::Buffered);
        Options { store, locals, cache_bytes: 64 << 10, ..Options::default() }
    }

    fn check(&self, volume: &Volume, model: &BTreeMap<u32, u8>) {
        let found = bytes_of(&self.remote, volume);
        let expected: Vec<u8> = (1..=found.len() as u32).map(|idx| model[&idx]).collect();
        assert_eq!(found, expected, "{volume:?}");
        assert_eq!(found.len(), model.len());
    }

    fn write(&mut self, at: usize) {
        let options = self.options(at);
        let opened = block_on(Volume::open(&self.remote, Family::id(at), options)).unwrap();
        let (lsn, model) = self.logs[at].last_key_value().map(|(lsn, db)| (*lsn, db.clone())).unwrap();
        let volume = opened.volume;
        assert_eq!(volume.status().lsn, Lsn(lsn));
        assert_eq!(opened.start.lsn.0 + opened.heads.len() as u64, lsn);
        if opened.start.lsn > Lsn::ZERO {
            assert_eq!(opened.start.state[..], opened.start.lsn.0.to_le_bytes());
        }
        self.check(&volume, &model);
        let mut model = model;
        for _ in 0..self.rng.random_range(1..6) {
            let before = model.len() as u32;
            let pages = match self.rng.random_range(0..6) {
                0 => self.rng.random_range(0..=before),
                1 => self.rng.random_range(0..700),
                _ => before.max(3),
            };
            model.retain(|idx, _| *idx <= pages);
            model.extend((before + 1..=pages).map(|idx| (idx, 0)));
            let mut written = Vec::new();
            for _ in 0..if pages == 0 { 0 } else { self.rng.random_range(1..5) } {
                let (idx, byte) = (self.rng.random_range(1..=pages), self.rng.random());
                model.insert(idx, byte);
                written.retain(|(other, _)| *other != idx);
                written.push((idx, byte));
            }
            let now_ms = volume.base().time_ms() + self.rng.random_range(0..5);
            commit(&self.remote, &volume, pages, &written, now_ms);
            self.logs[at].insert(volume.status().lsn.0, model.clone());
            if self.rng.random_bool(0.3) {
                checkpointed(&self.remote, &volume);
            }
        }
        self.check(&volume, &model);
    }

    fn fork(&mut self, at: usize) {
        let last = *self.logs[at].last_key_value().unwrap().0;
        let lsn = self.rng.random_range(0..=last);
        let child = self.logs.len();
        let at_lsn = if lsn == last && self.rng.random() { At::Newest } else { At::Lsn(Lsn(lsn)) };
        let (child_id, child_name) = (Family::id(child), name(child as u8 + 1));
        let found = block_on(create(&self.remote, Family::id(at), at_lsn, child_id, &child_name)).unwrap();
        assert_eq!(found.lsn, Lsn(lsn));
        let log = self.logs[at].range(..=lsn).map(|(lsn, db)| (*lsn, db.clone())).collect();
        self.logs.push(log);
        self.stores.push(Arc::new(MemoryStore::new()));
    }

    fn travel(&mut self, at: usize) {
        let last = *self.logs[at].last_key_value().unwrap().0;
        let lsn = self.rng.random_range(0..=last);
        let at_lsn = At::Lsn(Lsn(lsn));
        let opened = block_on(Volume::open_at(&self.remote, Family::id(at), at_lsn, 1 << 20)).unwrap();
        self.check(&opened.volume, &self.logs[at][&lsn]);
        // By the commit's own time, and just before the next one's.
        let time_ms = opened.volume.base().time_ms();
        if lsn > 0 {
            let by_time =
                block_on(Volume::open_at(&self.remote, Family::id(at), At::TimeMs(time_ms), 1 << 20))
                    .unwrap();
            assert_eq!(by_time.volume.base().lsn(), Lsn(lsn));
        }
    }
}

/// Any family of forks, written, checkpointed and looked back at in any order, reads as its model says.
#[test]
fn a_family_of_forks_reads_like_its_model() {
    for seed in 0..60 {
        let mut family = Family {
            rng: StdRng::seed_from_u64(seed),
            remote: MemoryRemote::new(),
            logs: vec![BTreeMap::from([(0, BTreeMap::new())])],
            stores: vec![Arc::new(MemoryStore::new())],
            shared: Arc::new(MemoryStore::new()),
        };
        created(&family.remote);
        let ran = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for _ in 0..25 {
                let at = family.rng.random_range(0..family.logs.len());
                match family.rng.random_range(0..10) {
                    0..=4 => family.write(at),
                    5..=6 if family.logs.len() < 8 => family.fork(at),
                    _ => family.travel(at),
                }
            }
            for at in 0..family.logs.len() {
                let volume = open(&family.remote, Family::id(at));
                let model = family.logs[at].last_key_value().unwrap().1.clone();
                family.check(&volume, &model);
            }
        }));
        if let Err(panic) = ran {
            println!("seed {seed}");
            std::panic::resume_unwind(panic);
        }
    }
}

/// `create` called again with the same id, whatever became of the tries before and of the requests that
/// were on their way: a name never leads nowhere, and a fork never stands without its pin. It used to
/// clean up after itself, and so took away what an earlier try's name, which arrived late, led to.
#[test]
fn a_fork_may_be_tried_again_with_the_same_id() {
    let (mut made, mut gave_up, mut renamed, mut moved) = (0, 0, 0, 0);
    for seed in 0..600 {
        let mut rng = StdRng::seed_from_u64(seed);
        let store = Arc::new(MemoryRemote::new());
        created(&*store);
        let parent = open(&*store, FIRST);
        let mut model: Vec<Vec<u8>> = vec![vec![]];
        let grow = |model: &mut Vec<Vec<u8>>| {
            let byte = model.len() as u8;
            commit(&*store, &parent, 1, &[(1, byte)], byte.into());
            model.push(vec![byte]);
        };
        (0..3).for_each(|_| grow(&mut model));
        let faults = Faults {
            fail_before: 0.1,
            fail_after: 0.1,
            delay: 0.15,
            duplicate: 0.05,
            echo: 0.05,
            delay_requests_max: 20,
            ..Faults::default()
        };
        let faulty = Faulty::with_faults(store.clone(), seed, faults);
        let at = if rng.random() { At::Newest } else { At::Lsn(Lsn(3)) };
        let (child, mut wanted, mut result) = (id(2), name(2), None);
        for round in 0..8 {
            if round == 6 {
                faulty.set_faults(Faults::default());
            }
            match block_on(create(&*faulty, FIRST, at, child, &wanted)) {
                Ok(found) => {
                    moved += u32::from(result.is_none() && found.lsn < Lsn(model.len() as u64 - 1));
                    assert!(
                        result.is_none_or(|before| before == found),
                        "seed {seed}: {result:?}, {found:?}"
                    );
                    result = Some(found);
                }
                Err(ForkError::Catalog(CatalogError::Exists { .. })) => {
                    wanted = name(3 + round);
                    renamed += 1;
                }
                Err(_) => {}
            }
            match rng.random_range(0..8) {
                0..3 => grow(&mut model),
                3 if round < 4 => {
                    let newest = block_on(crate::history::newest_lsn(&*store, FIRST)).unwrap();
                    block_on(store.create(&key::horizon(FIRST, newest, Seq(1)), Bytes::new())).ok();
                }
                4 if round < 4 => {
                    let meta = Meta { page_size: PageSize::new(PAGE as u32).unwrap(), parent: None };
                    block_on(catalog::create(&*store, &wanted, id(100 + round), meta)).ok();
                }
                _ => {}
            }
        }
        block_on(faulty.land_all()).unwrap();
        made += u32::from(result.is_some());
        gave_up += u32::from(result.is_none());
        for named in block_on(catalog::list(&*store)).unwrap() {
            let found = block_on(catalog::resolve(&*store, &named)).unwrap();
            if found != child {
                continue;
            }
            let fork = open(&*store, child);
            let lsn = fork.status().lsn;
            assert_eq!(bytes_of(&*store, &fork), model[lsn.0 as usize], "seed {seed}, {named}");
            let pin = block_on(store.get(&key::fork_pin(FIRST, child)));
            assert!(pin.is_ok(), "seed {seed}: {named} leads to a fork that nothing keeps");
            assert!(result.is_none_or(|found| found.lsn == lsn), "seed {seed}");
        }
        if let Some(found) = result {
            assert_eq!(
                block_on(catalog::resolve(&*store, &wanted)).unwrap(),
                child,
                "seed {seed}, {found:?}"
            );
        }
    }
    assert!(made > 300 && gave_up > 5 && renamed > 20 && moved > 20, "{made} {gave_up} {renamed} {moved}");
}

/// A first try that meant the parent wrote its pin and no more; by the second, "the newest" of the parent is
/// the same but an older LSN is its ancestor's. The pin that nothing reads through does not stay for ever.
#[test]
fn a_pin_under_a_volume_that_the_fork_does_not_name_goes() {
    let remote = MemoryRemote::new();
    created(&remote);
    let first = open(&remote, FIRST);
    commit(&remote, &first, 1, &[(1, 1)], 10);
    commit(&remote, &first, 1, &[(1, 2)], 20);
    block_on(create(&remote, FIRST, At::Newest, id(2), &name(2))).unwrap();
    let second = open(&remote, id(2));
    commit(&remote, &second, 1, &[(1, 3)], 30);
    // The first try, at LSN 2 of the first volume, ended here.
    let stray = key::fork_pin(FIRST, id(3));
    let pin = Pin { lsn: Lsn(2), seq: None, until_ms: Pin::FOR_EVER };
    block_on(remote.create(&stray, pin.encode(&stray))).unwrap();
    let found = block_on(create(&remote, id(2), At::Newest, id(3), &name(3))).unwrap();
    assert_eq!(found, Found { lsn: Lsn(3), origin: id(2) });
    let retention = gc::Retention { keep_ms: 0, keep_commits: 0, grace_ms: 0 };
    for volume in [FIRST, id(2)] {
        block_on(gc::collect(&remote, volume, retention, 1_000, &|_, _| {})).unwrap();
    }
    assert!(matches!(block_on(remote.get(&stray)), Err(RemoteError::NotFound { .. })));
    for (volume, fork) in [(FIRST, id(2)), (id(2), id(3))] {
        assert!(block_on(remote.get(&key::fork_pin(volume, fork))).is_ok(), "the pins that count stay");
    }
    assert_eq!(bytes_of(&remote, &open(&remote, id(3))), [3]);
    // Now nothing but forks that are there keeps anything.
    for n in [3, 2, 1] {
        block_on(catalog::remove(&remote, &name(n), 1)).unwrap();
    }
}

/// A fork that has its name already is no answer to another LSN either.
#[test]
fn a_named_fork_is_not_forked_again_at_another_lsn() {
    let remote = MemoryRemote::new();
    created(&remote);
    let parent = open(&remote, FIRST);
    (1..=3).for_each(|n| commit(&remote, &parent, 1, &[(1, n)], i64::from(n)));
    let at = |lsn| block_on(create(&remote, FIRST, At::Lsn(Lsn(lsn)), id(2), &name(2)));
    assert_eq!(at(2).unwrap().lsn, Lsn(2));
    assert_eq!(at(2).unwrap().lsn, Lsn(2));
    let other = at(3);
    assert!(matches!(other, Err(ForkError::Differs { lsn: Lsn(2), wanted: Lsn(3), .. })), "{other:?}");
    assert_eq!(block_on(create(&remote, FIRST, At::Newest, id(2), &name(2))).unwrap().lsn, Lsn(2));
}
