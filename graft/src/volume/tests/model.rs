//! Two replicas of one volume under random work, faults and crashes, against a model.
//!
//! The model is a map of pages for each commit in the log and for each local commit. Which sealed
//! commit has an LSN is read from the store by its id alone; what it must contain was noted when it
//! was sealed.

use std::collections::HashMap;

use rand::{Rng, SeedableRng, rngs::StdRng};

use super::*;
use crate::checkpoint::{self, CheckpointError, Written};
use crate::ids::key;
use crate::remote::{Fault, Faulty, Request};
use crate::store::{FjallStore, MemoryStore};

/// A database: page → what it was filled from; a page that is absent is zeroes.
#[derive(Debug, Clone, Default, PartialEq)]
struct Db {
    pages: u32,
    tags: BTreeMap<u32, u64>,
}

impl Db {
    fn tag(&self, idx: u32) -> u64 {
        self.tags.get(&idx).copied().unwrap_or(0)
    }
}

/// The bytes of a page: 0 is zeroes, an odd tag compresses well, an even one does not.
fn content(tag: u64, page_size: usize) -> Bytes {
    match tag {
        0 => vec![0; page_size].into(),
        _ if tag % 2 == 1 => tag.to_le_bytes().repeat(page_size / 8).into(),
        _ => {
            let mut bytes = vec![0; page_size];
            blake3::Hasher::new().update(&tag.to_le_bytes()).finalize_xof().fill(&mut bytes);
            bytes.into()
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Keeping {
    /// No store: a crash loses everything that is not in the log.
    Nothing,
    /// A store for what is durable; local commits are lost by a crash.
    Durable,
    /// Local commits are kept in memory maps that outlive the replica.
    Memory,
    /// Local commits are kept on disk.
    Disk(Durability),
}

struct Replica {
    keeping: Keeping,
    dir: Option<tempfile::TempDir>,
    memory: Arc<MemoryStore>,
    remote: Arc<Faulty>,
    volume: Option<Volume>,
    /// The model: LSN and content of the base, content after each local commit.
    base: usize,
    locals: Vec<Db>,
    /// How many local commits the pending push has.
    pending: Option<usize>,
    held: Vec<(Snapshot, Db)>,
    versions: HashMap<u64, Db>,
}

impl Replica {
    fn volume(&self) -> &Volume {
        self.volume.as_ref().unwrap()
    }

    fn options(&self) -> Options {
        let (cache_bytes, disk_bytes) = (8 << 20, 1 << 20);
        match self.keeping {
            Keeping::Nothing => Options { store: None, locals: None, cache_bytes, disk_bytes },
            Keeping::Durable => {
                Options { store: Some(self.memory.clone()), locals: None, cache_bytes, disk_bytes }
            }
            Keeping::Memory => Options {
                store: Some(self.memory.clone()),
                locals: Some(Durability::Sync),
                cache_bytes,
                disk_bytes,
            },
            Keeping::Disk(durability) => {
                let store = FjallStore::open(self.dir.as_ref().unwrap().path()).unwrap();
                Options { store: Some(Arc::new(store)), locals: Some(durability), cache_bytes, disk_bytes }
            }
        }
    }
}

struct World {
    rng: StdRng,
    page_size: usize,
    remote: Arc<MemoryRemote>,
    /// Content at each LSN; 0 is the empty volume.
    log: Vec<Db>,
    /// What a sealed commit must contain.
    sealed: HashMap<CommitId, Db>,
    replicas: Vec<Replica>,
    tags: u64,
    story: Vec<String>,
}

impl World {
    fn new(seed: u64, keeping: [Keeping; 2]) -> World {
        let mut rng = StdRng::seed_from_u64(seed);
        let page_size = [512, 512, 512, 4096, 4096, 65536][rng.random_range(0..6)];
        let remote = created(page_size);
        let replicas = keeping
            .into_iter()
            .map(|keeping| {
                let mut replica = Replica {
                    keeping,
                    dir: matches!(keeping, Keeping::Disk(_)).then(|| tempfile::tempdir().unwrap()),
                    memory: Arc::new(MemoryStore::new()),
                    remote: Faulty::new(remote.clone(), seed),
                    volume: None,
                    base: 0,
                    locals: Vec::new(),
                    pending: None,
                    held: Vec::new(),
                    versions: HashMap::new(),
                };
                replica.volume = Some(open(&*remote, replica.options()));
                replica
            })
            .collect();
        World {
            rng,
            page_size: page_size as usize,
            remote,
            log: vec![Db::default()],
            sealed: HashMap::new(),
            replicas,
            tags: 0,
            story: Vec::new(),
        }
    }

    /// The model of a replica's tip.
    fn tip(&self, at: usize) -> &Db {
        let replica = &self.replicas[at];
        replica.locals.last().unwrap_or(&self.log[replica.base])
    }

    /// Learns from the store which commits are in the log: a create that was delayed lands when it will.
    fn learn(&mut self) {
        loop {
            let lsn = Lsn(self.log.len() as u64);
            let key = key::log(VOLUME, lsn);
            let Ok(bytes) = block_on(self.remote.get(&key)) else { return };
            let head = Head::decode(VOLUME, lsn, &bytes).unwrap();
            self.log.push(self.sealed[&head.id].clone());
        }
    }

    fn in_log(&self, lsn: Lsn) -> Option<CommitId> {
        let bytes = block_on(self.remote.get(&key::log(VOLUME, lsn))).ok()?;
        Some(Head::decode(VOLUME, lsn, &bytes).unwrap().id)
    }

    fn random_change(&mut self, before: &Db) -> (Db, Change) {
        let mut after = before.clone();
        let most = if self.page_size == 65536 { 14 } else { 600 };
        after.pages = match self.rng.random_range(0..10) {
            0 => self.rng.random_range(0..=before.pages),
            1 => self.rng.random_range(0..=most),
            2..=4 => before.pages.saturating_add(self.rng.random_range(1..5)).min(most),
            _ => before.pages.max(1),
        };
        let cut = before.pages.min(after.pages);
        after.tags.retain(|idx, _| *idx <= cut);
        let mut changes = BTreeMap::new();
        let writes = match self.rng.random_range(0..20) {
            0 => 0,
            1 => after.pages.min(200),
            _ => self.rng.random_range(1..6),
        };
        let incompressible = self.rng.random_bool(0.2);
        for _ in 0..if after.pages == 0 { 0 } else { writes } {
            let idx = self.rng.random_range(1..=after.pages);
            self.tags += 2;
            let tag = match self.rng.random_range(0..10) {
                0 => 0,
                _ if incompressible => self.tags,
                _ => self.tags + 1,
            };
            after.tags.insert(idx, tag);
            changes.insert(page(idx), content(tag, self.page_size));
        }
        (after.clone(), Change { changes, pages: after.pages, payload: Bytes::from_static(b"p") })
    }

    fn check_pages(&self, at: usize, snapshot: &Snapshot, db: &Db, pages: impl Iterator<Item = u32>) {
        assert_eq!(snapshot.pages(), db.pages);
        let volume = self.replicas[at].volume();
        for idx in pages {
            let found = read(&*self.remote, volume, snapshot, idx);
            assert!(found == content(db.tag(idx), self.page_size), "page {idx} at {snapshot:?}");
        }
        assert!(matches!(volume.read(snapshot, page(db.pages + 1)), Err(ReadError::PastEnd { .. })));
    }

    fn check(&mut self, at: usize, all: bool) {
        let (tip, base) = (self.tip(at).clone(), self.log[self.replicas[at].base].clone());
        let volume = self.replicas[at].volume();
        let status = volume.status();
        let replica = &self.replicas[at];
        let expected = Status {
            lsn: Lsn(replica.base as u64),
            ahead: replica.locals.len(),
            pending: replica.pending.is_some(),
            pages: tip.pages,
        };
        assert_eq!(status, expected);
        let views = [(volume.tip(), tip), (volume.base(), base)];
        for (snapshot, db) in &views {
            let known = self.replicas[at].versions.entry(snapshot.version()).or_insert_with(|| db.clone());
            assert_eq!(known, db, "one version, two contents");
        }
        let held = self.replicas[at].held.clone();
        for (snapshot, db) in views.iter().chain(&held) {
            if all {
                self.check_pages(at, snapshot, db, 1..=db.pages);
            } else if db.pages > 0 {
                let some: Vec<u32> = (0..4).map(|_| self.rng.random_range(1..=db.pages)).collect();
                self.check_pages(at, snapshot, db, some.into_iter());
            }
        }
    }

    fn commit(&mut self, at: usize) {
        let before = self.tip(at).clone();
        let (after, change) = self.random_change(&before);
        let replica = &mut self.replicas[at];
        let volume = replica.volume.as_ref().unwrap();
        if let Some((stale, _)) =
            replica.held.iter().find(|(held, _)| held.version() != volume.tip().version())
        {
            assert!(matches!(volume.commit(stale, change.clone()), Err(CommitError::Stale)));
        }
        volume.commit(&volume.tip(), change).unwrap();
        replica.locals.push(after);
    }

    fn seal(&mut self, at: usize) {
        let replica = &mut self.replicas[at];
        let count = self.rng.random_range(0..=replica.locals.len() + 1);
        let id = CommitId(self.rng.random());
        let sealed = replica.volume().seal(count, Bytes::from_static(b"sealed"), id, 5).unwrap();
        let count = count.min(replica.locals.len());
        assert_eq!(sealed.is_some(), count > 0 && replica.pending.is_none());
        if sealed.is_some() {
            self.sealed.insert(id, replica.locals[count - 1].clone());
            replica.pending = Some(count);
        }
    }

    fn publish(&mut self, at: usize) {
        let replica = &self.replicas[at];
        let Some(pending) = replica.volume().pending() else { return };
        let fault = match self.rng.random_range(0..9) {
            0 => Some((Request::Create, Fault::FailBefore)),
            1 => Some((Request::Create, Fault::FailAfter)),
            2 => Some((Request::Create, Fault::Duplicate)),
            3 => Some((Request::Create, Fault::Delay { requests: self.rng.random_range(1..12) })),
            _ => None,
        };
        if let Some((request, fault)) = fault {
            replica.remote.fail_next(request, fault);
            if self.rng.random_bool(0.3) {
                replica.remote.fail_next(Request::GetRange, Fault::FailBefore);
            }
        }
        let injected = replica.remote.injected();
        let landed = self.in_log(pending.head.lsn) == Some(pending.head.id);
        let outcome = block_on(publish(&*replica.remote, &pending));
        let injected = replica.remote.injected() > injected;
        self.story.push(format!("  {fault:?} -> {outcome:?}"));
        self.learn();
        let (id, lsn) = (pending.head.id, pending.head.lsn);
        match outcome {
            Ok(published) => {
                assert_eq!((published.lsn, published.hash), (lsn, pending.head.hash));
                assert_eq!(self.in_log(lsn), Some(id), "acknowledged and not in the log");
                // Sometimes the process dies before it can note this.
                if self.rng.random_bool(0.8) {
                    let replica = &mut self.replicas[at];
                    let before = replica.volume().tip().version();
                    replica.volume().confirm(published).unwrap();
                    assert_eq!(replica.volume().tip().version(), before);
                    replica.locals.drain(..replica.pending.take().unwrap());
                    replica.base += 1;
                    assert_eq!(lsn.0, replica.base as u64);
                } else {
                    self.crash(at);
                }
            }
            Err(PublishError::Rejected { lsn: lost }) => {
                assert_eq!(lost, lsn);
                let winner = self.in_log(lsn);
                assert!(winner.is_some_and(|winner| winner != id), "rejected, and the log says otherwise");
                let replica = &mut self.replicas[at];
                if self.rng.random_bool(0.5) {
                    replica.volume().forget_pending(&pending).unwrap();
                    replica.pending = None;
                } else {
                    self.reset(at);
                    self.pull(at);
                }
            }
            Err(PublishError::Upload { .. }) => {
                assert!(!pending.segments.is_empty());
                // An earlier try whose answer was lost may have landed whole.
                assert!(landed || self.in_log(lsn) != Some(id), "a log entry before its segments");
            }
            Err(PublishError::Unknown { .. }) => assert!(injected),
            Err(error @ (PublishError::Damaged(_) | PublishError::Local { .. } | PublishError::Forgotten { .. })) => panic!("{error}"),
        }
    }

    fn reset(&mut self, at: usize) {
        let replica = &mut self.replicas[at];
        let before = replica.volume().tip();
        let dropped = replica.volume().reset().unwrap();
        assert_eq!(dropped.len(), replica.locals.len());
        let after = replica.volume().tip();
        assert_eq!(dropped.is_empty(), before.lineage() == after.lineage());
        replica.locals.clear();
        replica.pending = None;
    }

    fn pull(&mut self, at: usize) {
        let replica = &self.replicas[at];
        let pulled = block_on(replica.volume().pull(&*self.remote)).unwrap();
        self.learn();
        let newest = self.log.len() - 1;
        let replica = &mut self.replicas[at];
        let from = pulled.jump.as_ref().map_or(replica.base, |start| start.lsn.0 as usize);
        assert_eq!(pulled.heads.len(), newest - from);
        let graft = replica.volume().absorb(pulled).unwrap();
        if !replica.locals.is_empty() {
            assert!(graft.is_empty());
            return;
        }
        let (old, new) = (&self.log[replica.base], &self.log[newest]);
        for idx in 1..=old.pages.max(new.pages) {
            let (inside_old, inside_new) = (idx <= old.pages, idx <= new.pages);
            let differs = inside_old && (!inside_new || old.tag(idx) != new.tag(idx))
                || inside_new && new.tag(idx) != 0 && !inside_old;
            assert!(!differs || graft.contains(page(idx)), "page {idx} changed and is not in the graft");
        }
        replica.base = newest;
    }

    /// Writes a checkpoint of the base, whatever lies on top. Its state says which LSN it is of.
    fn checkpoint(&mut self, at: usize) {
        let replica = &self.replicas[at];
        let base = replica.volume().base();
        let version = replica.volume().tip().version();
        let fault = match self.rng.random_range(0..6) {
            0 => Some(Fault::FailBefore),
            1 => Some(Fault::FailAfter),
            2 => Some(Fault::Delay { requests: self.rng.random_range(1..12) }),
            _ => None,
        };
        let current = base.checkpoint().map_or(Lsn::ZERO, |root| root.lsn) == base.lsn();
        let fault = fault.filter(|_| !current);
        if let Some(fault) = fault {
            replica.remote.fail_next(Request::Create, fault);
        }
        let state = Bytes::copy_from_slice(&base.lsn().0.to_le_bytes());
        let written = block_on(checkpoint::write(&*replica.remote, replica.volume(), &base, state));
        self.story.push(format!("  {fault:?} -> {written:?}"));
        match written {
            Ok(Written::Stored { lsn, .. }) => assert_eq!(lsn, base.lsn()),
            Ok(Written::Lost { .. } | Written::Current { .. }) => {}
            Err(CheckpointError::Unknown { .. }) => assert!(fault.is_some()),
            Err(error) => panic!("{error}"),
        }
        assert_eq!(replica.volume().tip().version(), version);
        if let Some(root) = replica.volume().base().checkpoint() {
            assert!(root.lsn <= base.lsn());
        }
    }

    fn crash(&mut self, at: usize) {
        let replica = &mut self.replicas[at];
        replica.volume = None;
        replica.held.clear();
        replica.versions.clear();
        match replica.keeping {
            Keeping::Nothing => {
                replica.base = 0;
                replica.locals.clear();
                replica.pending = None;
            }
            Keeping::Durable => {
                replica.locals.clear();
                replica.pending = None;
            }
            Keeping::Memory | Keeping::Disk(_) => {}
        }
        let options = replica.options();
        let page_size = PageSize::new(self.page_size as u32).unwrap();
        let offline = self.rng.random_bool(0.5);
        let opened = if offline {
            Volume::load(VOLUME, page_size, options).unwrap()
        } else {
            block_on(Volume::open(&*self.remote, VOLUME, options)).unwrap()
        };
        if !offline && replica.locals.is_empty() {
            replica.base = self.log.len() - 1;
        }
        assert_eq!(opened.start.lsn.0 as usize + opened.heads.len(), replica.base);
        if opened.start.lsn > Lsn::ZERO {
            assert_eq!(opened.start.state[..], opened.start.lsn.0.to_le_bytes());
        }
        replica.volume = Some(opened.volume);
    }

    fn step(&mut self) {
        let at = self.rng.random_range(0..self.replicas.len());
        let op = self.rng.random_range(0..100);
        self.story.push(format!("replica {at}, op {op}"));
        match op {
            0..=39 => self.commit(at),
            40..=59 => self.seal(at),
            60..=79 => self.publish(at),
            80..=84 => self.pull(at),
            // With a push under way a reset is for the rejected; the publish above does those.
            85 if self.replicas[at].pending.is_none() => self.reset(at),
            88..=93 => self.crash(at),
            86..=87 => self.checkpoint(at),
            94..=97 => {
                let tip = self.tip(at).clone();
                let replica = &mut self.replicas[at];
                let snapshot = replica.volume().tip();
                replica.held.push((snapshot, tip));
            }
            _ => {
                let landed = block_on(self.replicas[at].remote.land_all()).unwrap();
                self.story.push(format!("  landed {landed}"));
            }
        }
        self.learn();
        self.check(at, false);
    }
}

fn run(seed: u64, keeping: [Keeping; 2], steps: usize) {
    let mut world = World::new(seed, keeping);
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        for _ in 0..steps {
            world.step();
        }
        for at in 0..2 {
            world.check(at, true);
        }
        // A newcomer reads the same as the log says.
        let volume = open(&*world.remote, in_memory());
        let db = world.log.last().unwrap();
        let tip = volume.tip();
        assert_eq!(tip.pages(), db.pages);
        for idx in 1..=db.pages {
            let found = read(&*world.remote, &volume, &tip, idx);
            assert!(found == content(db.tag(idx), world.page_size), "a newcomer's page {idx}");
        }
    }));
    if let Err(panic) = outcome {
        let tail = world.story.len().saturating_sub(12);
        println!("seed {seed}, {keeping:?}, after {} steps:\n{}", steps, world.story[tail..].join("\n"));
        std::panic::resume_unwind(panic);
    }
}

#[test]
fn replicas_in_memory_read_like_their_model() {
    for seed in 0..120 {
        run(seed, [Keeping::Nothing, Keeping::Memory], 80);
    }
}

#[test]
fn replicas_whose_local_commits_die_with_them_read_like_their_model() {
    for seed in 1000..1100 {
        run(seed, [Keeping::Durable, Keeping::Memory], 80);
    }
}

#[test]
fn replicas_on_disk_read_like_their_model() {
    for seed in 2000..2030 {
        run(seed, [Keeping::Disk(Durability::Buffered), Keeping::Memory], 60);
    }
    for seed in 3000..3003 {
        run(seed, [Keeping::Disk(Durability::Sync), Keeping::Disk(Durability::Sync)], 40);
    }
}
