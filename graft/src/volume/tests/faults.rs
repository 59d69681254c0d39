//! Several writers and readers of one volume whose every request may go wrong, against a model.
//!
//! Each *site* is a replica behind a [`Faulty`] of its own: requests and answers are lost, delivered
//! twice or much later, overtaken, torn, damaged; pushes are cut off in mid-air; sites crash, with
//! their local store or without. The sites of a round run at the same time, so their requests
//! interleave wherever one is held up.
//!
//! Sites also write checkpoints, compact and collect garbage with no grace at all. A compaction may
//! be gathered now and published many steps later. Old snapshots may expire then; that they say.
//!
//! The oracle is the store itself, without faults, and one note: what a commit of this id must contain.
//! At every moment a read that succeeds gives what the note says of its snapshot; an error is only
//! ever seen after a fault. At the end, once faults stop: every acknowledged commit is in the log
//! once, every rejected one is not, each follows from the one before, and all replicas are equal.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::ops::Range;
use std::pin::pin;
use std::rc::Rc;

use futures::FutureExt as _;
use futures::future::{Either, join_all, select};
use rand::{Rng, SeedableRng, rngs::StdRng};

use super::*;
use crate::checkpoint::{self, CheckpointError, Written};
use crate::compact::{self, ByNumber, CompactError, Moved, Scope};
use crate::fetch::FetchError;
use crate::format::tombstone::{Of, Tombstone};
use crate::gc::{self, GcError, Retention};
use crate::ids::key;
use crate::pull::PullError;
use crate::remote::{Faults, Faulty, Layer, RemoteError, SharedRemote};
use crate::store::MemoryStore;

/// Pages of large volumes do not compress, so that commits of a few go to segments.
fn content(byte: u8, page_size: usize) -> Bytes {
    if byte == 0 || page_size < LARGE {
        return filled(page_size, byte);
    }
    let mut bytes = vec![0; page_size];
    blake3::Hasher::new().update(&[byte]).finalize_xof().fill(&mut bytes);
    bytes.into()
}

const LARGE: usize = 65536;

/// Page → the byte it is filled from, and how many pages there are.
#[derive(Debug, Clone, Default, PartialEq)]
struct Db {
    pages: u32,
    bytes: BTreeMap<u32, u8>,
}

impl Db {
    fn byte(&self, idx: u32) -> u8 {
        self.bytes.get(&idx).copied().unwrap_or(0)
    }
}

/// What is known of a sealed commit.
#[derive(Debug, Clone)]
struct Note {
    db: Db,
    /// The commit it was made on.
    on: Option<CommitId>,
}

struct Shared {
    truth: Arc<MemoryRemote>,
    notes: RefCell<HashMap<CommitId, Note>>,
    acked: RefCell<Vec<(Lsn, CommitId)>>,
    rejected: RefCell<HashSet<CommitId>>,
    next_id: Cell<u128>,
    /// Checkpoints, compactions, objects deleted.
    kept: Cell<(usize, usize, usize)>,
}

impl Shared {
    /// Who holds this LSN in truth.
    fn holder(&self, lsn: Lsn) -> Option<CommitId> {
        // Inside an executor already; memory answers at once.
        let bytes = self.truth.get(&key::log(VOLUME, lsn)).now_or_never()?.ok()?;
        if Tombstone::is_one(&bytes) {
            return Some(Tombstone::decode(VOLUME, Of::Commit(lsn), &bytes).unwrap().id);
        }
        Some(Head::decode(VOLUME, lsn, &bytes).unwrap().id)
    }

    fn count(&self, checkpoints: usize, compactions: usize, deleted: usize) {
        let (a, b, c) = self.kept.get();
        self.kept.set((a + checkpoints, b + compactions, c + deleted));
    }

    /// What the volume holds at this LSN.
    fn at(&self, lsn: Lsn) -> Db {
        if lsn == Lsn::ZERO {
            return Db::default();
        }
        let id = self.holder(lsn).unwrap_or_else(|| panic!("{lsn:?} is not in the log"));
        self.notes.borrow()[&id].db.clone()
    }
}

struct Site {
    shared: Rc<Shared>,
    rng: StdRng,
    remote: Arc<Faulty>,
    /// Kept by crashes; without it local commits are lost.
    store: Option<Arc<MemoryStore>>,
    volume: Option<Volume>,
    /// What the tip must hold.
    tip: Db,
    held: Vec<(Snapshot, Db)>,
    /// A compaction that is not published yet.
    moved: Option<Moved>,
    story: Vec<String>,
}

/// A future that is dropped after so many polls: its task was cancelled, or its process killed.
async fn cut_off<T>(turns: u32, work: impl Future<Output = T>) -> Option<T> {
    let mut left = turns;
    let timer = std::future::poll_fn(|context| {
        if left == 0 {
            return std::task::Poll::Ready(());
        }
        left -= 1;
        context.waker().wake_by_ref();
        std::task::Poll::Pending
    });
    match select(pin!(work), pin!(timer)).await {
        Either::Left((done, _)) => Some(done),
        Either::Right(((), _)) => None,
    }
}

impl Site {
    fn options(&self) -> Options {
        match &self.store {
            Some(store) => Options {
                store: Some(store.clone()),
                locals: Some(Durability::Sync),
                cache_bytes: 8 << 20,
                ..Options::default()
            },
            None => Options { store: None, locals: None, cache_bytes: 8 << 20, ..Options::default() },
        }
    }

    /// An error is only ever the fault of a fault.
    fn excuse(&self, injected: u64, error: &dyn std::fmt::Debug) {
        assert!(self.remote.injected() > injected, "no fault, and yet {error:?}");
    }

    async fn open(&mut self) {
        let injected = self.remote.injected();
        match Volume::open(&*self.remote, VOLUME, self.options()).await {
            Ok(opened) => {
                if opened.volume.status().ahead == 0 {
                    self.tip = self.shared.at(opened.volume.status().lsn);
                }
                assert!(self.store.is_some() || opened.volume.status().ahead == 0);
                self.volume = Some(opened.volume);
            }
            Err(error) => self.excuse(injected, &error),
        }
    }

    fn write(&mut self) {
        let Some(volume) = &self.volume else { return };
        let size = volume.page_size().bytes();
        let most = if size == LARGE { 9 } else { 4 };
        let mut after = self.tip.clone();
        after.pages = match self.rng.random_range(0..8) {
            0 => self.rng.random_range(0..=after.pages),
            1..=3 => (after.pages + self.rng.random_range(1..most)).min(40),
            _ => after.pages.max(1),
        };
        let pages = after.pages;
        after.bytes.retain(|idx, _| *idx <= pages);
        let mut changes = BTreeMap::new();
        for _ in 0..if pages == 0 { 0 } else { self.rng.random_range(1..most) } {
            let (idx, byte) = (self.rng.random_range(1..=pages), self.rng.random());
            after.bytes.insert(idx, byte);
            changes.insert(page(idx), content(byte, size));
        }
        volume.commit(&volume.tip(), Change { changes, pages, payload: Bytes::new() }).unwrap();
        self.tip = after;
    }

    async fn push(&mut self) {
        let Some(volume) = &self.volume else { return };
        let (injected, tip) = (self.remote.injected(), self.tip.clone());
        let latest = Cell::new(volume.pending().map(|pending| pending.head.id));
        let shared = self.shared.clone();
        let fresh = || {
            shared.next_id.set(shared.next_id.get() + 1);
            let id = CommitId(shared.next_id.get().to_be_bytes());
            // A pending push was confirmed before this is asked for, so the base is what it is made on.
            let on = (volume.status().lsn != Lsn::ZERO).then(|| shared.holder(volume.status().lsn));
            shared.notes.borrow_mut().insert(id, Note { db: tip.clone(), on: on.flatten() });
            latest.set(Some(id));
            id
        };
        let turns = if self.rng.random_bool(0.2) { self.rng.random_range(0..4) } else { u32::MAX };
        let pushed = cut_off(turns, push(&*self.remote, volume, |_| Bytes::new(), fresh, 5)).await;
        self.story.push(format!("push: {pushed:?}"));
        match pushed {
            None | Some(Ok(Pushed::Nothing)) => {}
            Some(Ok(Pushed::Durable(lsn))) => {
                let holder = shared.holder(lsn).expect("acknowledged, and nothing holds its LSN");
                assert_eq!(shared.notes.borrow()[&holder].db, self.tip, "another's commit was acknowledged");
                shared.acked.borrow_mut().push((lsn, holder));
            }
            Some(Err(PushError::Publish(PublishError::Rejected { lsn }))) => {
                let lost = latest.get().expect("something was pushed");
                assert!(shared.holder(lsn).is_some_and(|holder| holder != lost), "rejected, and it won");
                shared.rejected.borrow_mut().insert(lost);
                volume.reset().unwrap();
                self.tip = shared.at(volume.status().lsn);
                self.held.clear();
                self.pull().await;
            }
            Some(Err(error)) => self.excuse(injected, &error),
        }
    }

    async fn pull(&mut self) {
        let Some(volume) = &self.volume else { return };
        let injected = self.remote.injected();
        match volume.pull(&*self.remote).await {
            Ok(pulled) => {
                let before = volume.tip();
                let graft = volume.absorb(pulled).unwrap();
                if volume.status().ahead == 0 {
                    let (old, new) = (self.tip.clone(), self.shared.at(volume.status().lsn));
                    for idx in 1..=old.pages.min(new.pages) {
                        let told = graft.contains(page(idx)) || old.byte(idx) == new.byte(idx);
                        assert!(told, "page {idx} changed and {graft:?} does not say so after {before:?}");
                    }
                    self.tip = new;
                }
            }
            Err(error) => self.excuse(injected, &error),
        }
    }

    async fn read(&mut self) {
        let Some(volume) = &self.volume else { return };
        let (snapshot, db) = match self.rng.random_range(0..=self.held.len()) {
            0 => (volume.tip(), &self.tip),
            at => (self.held[at - 1].0.clone(), &self.held[at - 1].1),
        };
        assert_eq!(snapshot.pages(), db.pages, "{snapshot:?}");
        if db.pages == 0 {
            return;
        }
        let wanted: PageSet =
            (0..self.rng.random_range(1..4)).map(|_| page(self.rng.random_range(1..=db.pages))).collect();
        let injected = self.remote.injected();
        let expired = match fetch(&*self.remote, volume, &snapshot, &wanted).await {
            Ok(()) => false,
            Err(FetchError::Expired { .. }) => true,
            Err(error) => {
                self.excuse(injected, &error);
                false
            }
        };
        // Only garbage collection makes a state expire, and never the newest.
        assert!(!expired || self.shared.kept.get().2 > 0, "nothing was deleted, and {snapshot:?} expired");
        for idx in wanted.iter() {
            match volume.read(&snapshot, idx) {
                Ok(bytes) => {
                    let expected = content(db.byte(idx.get()), volume.page_size().bytes());
                    assert!(
                        bytes == expected,
                        "{idx:?} of {snapshot:?} holds {} and not {}",
                        bytes[0],
                        expected[0]
                    );
                }
                Err(ReadError::Fault(_)) if expired => {}
                Err(ReadError::Fault(missing)) => self.excuse(injected, &missing),
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// Cut off in mid-air, now and then.
    fn turns(&mut self) -> u32 {
        if self.rng.random_bool(0.2) { self.rng.random_range(0..8) } else { u32::MAX }
    }

    async fn checkpoint(&mut self) {
        let turns = self.turns();
        let Some(volume) = &self.volume else { return };
        let (injected, base) = (self.remote.injected(), volume.base());
        match cut_off(turns, checkpoint::write(&*self.remote, volume, &base, Bytes::new())).await {
            Some(Ok(Written::Stored { .. })) => self.shared.count(1, 0, 0),
            None | Some(Ok(Written::Lost { .. } | Written::Current { .. })) => {}
            Some(Err(CheckpointError::Fetch(FetchError::Expired { .. }))) if base.lsn() < self.newest() => {}
            Some(Err(CheckpointError::Pull(PullError::Expired { .. }))) if base.lsn() < self.newest() => {}
            Some(Err(error)) => self.excuse(injected, &error),
        }
    }

    /// The newest commit in truth.
    fn newest(&self) -> Lsn {
        let mut lsn = Lsn::ZERO;
        while self.shared.holder(lsn.next()).is_some() {
            lsn = lsn.next();
        }
        lsn
    }

    async fn gather(&mut self) {
        let turns = self.turns();
        let scope = if self.rng.random() { Scope::All } else { Scope::Sparse };
        let id = CommitId(self.rng.random());
        let Some(volume) = &self.volume else { return };
        let (injected, base) = (self.remote.injected(), volume.base());
        let gathered = compact::gather(&*self.remote, volume, &ByNumber, scope, id, &|_, _| {});
        match cut_off(turns, gathered).await {
            None => {}
            Some(Ok(moved)) => self.moved = Some(moved).filter(|moved| moved.pages() > 0),
            Some(Err(CompactError::Fetch(FetchError::Expired { .. }))) if base.lsn() < self.newest() => {}
            Some(Err(error)) => self.excuse(injected, &error),
        }
    }

    async fn publish_moved(&mut self) {
        let turns = self.turns();
        let (Some(volume), Some(moved)) = (&self.volume, &self.moved) else { return };
        let (injected, base) = (self.remote.injected(), volume.base());
        match cut_off(turns, compact::publish(&*self.remote, volume, &volume.base(), moved, Bytes::new()))
            .await
        {
            Some(Ok(Written::Stored { .. })) => {
                self.shared.count(0, 1, 0);
                self.moved = None;
            }
            Some(Err(CompactError::Abandoned)) => self.moved = None,
            None | Some(Ok(Written::Lost { .. } | Written::Current { .. })) => {}
            Some(Err(CompactError::Fetch(FetchError::Expired { .. }))) if base.lsn() < self.newest() => {}
            Some(Err(CompactError::Checkpoint(CheckpointError::Fetch(FetchError::Expired { .. }))))
                if base.lsn() < self.newest() => {}
            Some(Err(error)) => self.excuse(injected, &error),
        }
    }

    async fn collect(&mut self) {
        let turns = self.turns();
        let keep_commits = self.rng.random_range(0..4);
        let retention = Retention { keep_ms: 0, keep_commits, grace_ms: 0 };
        let injected = self.remote.injected();
        match cut_off(turns, gc::collect(&*self.remote, VOLUME, retention, 1_000_000, &|_, _| {})).await {
            None => {}
            Some(Ok(plan)) => self.shared.count(0, 0, plan.doomed.len()),
            // Another collector was faster.
            Some(Err(GcError::Pull(PullError::Expired { .. }))) => {}
            Some(Err(error)) => self.excuse(injected, &error),
        }
    }

    fn hold(&mut self) {
        if let Some(volume) = &self.volume {
            self.held.push((volume.tip(), self.tip.clone()));
        }
    }

    fn crash(&mut self) {
        self.volume = None;
        self.held.clear();
    }

    async fn step(&mut self) {
        if self.volume.is_none() {
            return self.open().await;
        }
        let op = self.rng.random_range(0..100);
        self.story.push(format!("op {op}"));
        match op {
            0..=25 => self.write(),
            26..=51 => self.push().await,
            52..=63 => self.pull().await,
            64..=76 => self.read().await,
            77..=80 => self.checkpoint().await,
            81..=83 => self.gather().await,
            84..=86 => self.publish_moved().await,
            87..=90 => self.collect().await,
            91..=93 => self.hold(),
            _ => self.crash(),
        }
    }

    /// Without faults: settles what is under way and catches up.
    async fn settle(&mut self) {
        while self.volume.is_none() {
            self.open().await;
        }
        // Rejected at most once: nobody else is at work.
        for _ in 0..3 {
            self.push().await;
        }
        self.pull().await;
        let status = self.volume.as_ref().map(Volume::status);
        assert!(status.is_some_and(|status| status.ahead == 0 && !status.pending), "{status:?}");
    }
}

/// Everything may happen, nothing too often for work to be done.
fn weather(rng: &mut StdRng) -> Faults {
    let mut odds = |most: f64| if rng.random_bool(0.6) { rng.random_range(0.0..most) } else { 0.0 };
    Faults {
        fail_before: odds(0.15),
        fail_after: odds(0.15),
        duplicate: odds(0.2),
        delay: odds(0.2),
        delay_requests_max: 25,
        echo: odds(0.2),
        slow: odds(0.5),
        slow_turns_max: 4,
        flip: odds(0.1),
        truncate: odds(0.1),
    }
}

/// What a world saw, to know that it was worth running.
#[derive(Debug, Default)]
struct Seen {
    commits: usize,
    acked: usize,
    rejected: usize,
    segments: usize,
    faults: u64,
    checkpoints: usize,
    compactions: usize,
    deleted: usize,
}

/// One world of this seed; `wrap` puts something between the sites' faults and the store.
fn run(seed: u64, wrap: impl Fn(Arc<MemoryRemote>) -> SharedRemote) -> Seen {
    let mut rng = StdRng::seed_from_u64(seed);
    let page_size = if seed.is_multiple_of(20) { LARGE as u32 } else { 512 };
    let truth = created(page_size);
    let shared = Rc::new(Shared {
        truth: truth.clone(),
        notes: RefCell::default(),
        acked: RefCell::default(),
        rejected: RefCell::default(),
        next_id: Cell::new(0),
        kept: Cell::default(),
    });
    let mut sites: Vec<Site> = (0..3_u64)
        .map(|at| Site {
            shared: shared.clone(),
            rng: StdRng::seed_from_u64(seed.wrapping_mul(31).wrapping_add(at)),
            remote: Faulty::with_faults(wrap(truth.clone()), seed.wrapping_add(at << 32), weather(&mut rng)),
            store: (at != 0).then(Arc::default),
            volume: None,
            tip: Db::default(),
            held: Vec::new(),
            moved: None,
            story: Vec::new(),
        })
        .collect();
    block_on(async {
        for _ in 0..30 {
            join_all(sites.iter_mut().map(Site::step)).await;
        }
        for site in &sites {
            site.remote.set_faults(Faults::default());
            site.remote.land_all().await.unwrap();
        }
        for site in &mut sites {
            site.settle().await;
        }
        for site in &mut sites {
            site.pull().await;
        }
    });
    let mut log = Vec::new();
    while let Some(id) = shared.holder(Lsn(log.len() as u64 + 1)) {
        let note = shared.notes.borrow()[&id].clone();
        assert_eq!(note.on, log.last().copied(), "{id:?} was made on another commit than it follows");
        assert!(!shared.rejected.borrow().contains(&id), "{id:?} was rejected and is in the log");
        assert!(!log.contains(&id), "{id:?} is in the log twice");
        log.push(id);
    }
    for (lsn, id) in shared.acked.borrow().iter() {
        assert_eq!(log.get(lsn.0 as usize - 1), Some(id), "acknowledged, and gone");
    }
    let newest = shared.at(Lsn(log.len() as u64));
    let newcomer = open(&*truth, in_memory());
    for volume in sites.iter().map(|site| site.volume.as_ref().unwrap()).chain([&newcomer]) {
        let tip = volume.tip();
        assert_eq!(tip.pages(), newest.pages, "{volume:?}");
        for idx in 1..=newest.pages {
            let expected = content(newest.byte(idx), page_size as usize);
            assert!(read(&*truth, volume, &tip, idx) == expected, "page {idx} of {volume:?}");
        }
    }
    let report = block_on(crate::verify::verify(&*truth, VOLUME, &|_| {})).unwrap();
    assert!(report.is_sound(), "{:?}", report.findings);
    let (checkpoints, compactions, deleted) = shared.kept.get();
    let (acked, rejected) = (shared.acked.borrow().len(), shared.rejected.borrow().len());
    Seen {
        commits: log.len(),
        acked,
        rejected,
        segments: truth.objects().iter().filter(|(key, _)| key.contains("/segments/")).count(),
        faults: sites.iter().map(|site| site.remote.injected()).sum(),
        checkpoints,
        compactions,
        deleted,
    }
}

fn run_all(seeds: Range<u64>) {
    let (count, mut sum) = ((seeds.end - seeds.start) as usize, Seen::default());
    for seed in seeds {
        let seen = std::panic::catch_unwind(|| run(seed, |truth| truth)).unwrap_or_else(|panic| {
            println!("seed {seed}: run({seed}, |truth| truth) again");
            std::panic::resume_unwind(panic);
        });
        sum.commits += seen.commits;
        sum.acked += seen.acked;
        sum.rejected += seen.rejected;
        sum.segments += seen.segments;
        sum.faults += seen.faults;
        sum.checkpoints += seen.checkpoints;
        sum.compactions += seen.compactions;
        sum.deleted += seen.deleted;
    }
    println!("{count} seeds: {sum:?}");
    assert!(sum.commits > 2 * count && sum.acked > 2 * count && sum.rejected > 2 * count, "{sum:?}");
    assert!(
        sum.checkpoints > count / 2 && sum.compactions > count / 20 && sum.deleted > count / 20,
        "{sum:?}"
    );
    assert!(sum.segments > count / 20 && sum.faults > 5 * count as u64, "{sum:?}");
}

#[test]
fn no_fault_of_a_request_loses_doubles_or_mixes_a_commit() {
    run_all(0..1_500);
}

#[test]
fn no_fault_of_a_request_loses_doubles_or_mixes_a_commit_either() {
    run_all(10_000..11_500);
}

/// A store that looks like one and lets every creator win.
#[derive(Debug)]
struct Overwrites(Arc<MemoryRemote>);

#[async_trait::async_trait]
impl Layer for Overwrites {
    fn inner(&self) -> &dyn Remote {
        &*self.0
    }
    async fn create(&self, key: &str, body: Bytes) -> Result<(), RemoteError> {
        self.0.put(key, body).await
    }
}

/// The oracle must be able to fail: here it does within a few seeds.
#[test]
fn a_store_that_is_not_exclusive_is_found_out() {
    let found = (0..50)
        .find(|seed| std::panic::catch_unwind(|| run(*seed, |truth| Arc::new(Overwrites(truth)))).is_err());
    let found = found.expect("50 seeds of a store that loses commits looked right");
    println!("found at seed {found}; on the true store it passes:");
    run(found, |truth| truth);
}
