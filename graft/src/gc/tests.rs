//! Histories of writers, checkpoints, compactions, collectors, pins and actors that stall at every step,
//! against a model of the volume: nobody ever reads anything else than what was committed.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::executor::block_on;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

use super::bottom::Confirmed;
use super::*;
use crate::compact::{self, ByNumber, CompactError, Group, Layout, Moved, Scope, Source};
use crate::fetch::fetch;
use crate::fork::{self, ForkError};
use crate::format::meta::Meta;
use crate::history::Start;
use crate::ids::{PageIdx, PageSize};
use crate::page_set::PageSet;
use crate::publish::{Prepared, PublishError, publish};
use crate::remote::MemoryRemote;
use crate::snapshot::Snapshot;
use crate::time::At;
use crate::volume::{Change, Options, Volume, push};
use crate::{catalog, checkpoint};

mod late;

const VOLUME: VolumeId = VolumeId([9; 16]);
const PAGE: usize = 16_384;

/// A volume's content: one byte for each page; `None` for one that was never written.
type Content = Vec<Option<u8>>;

fn page(idx: u32) -> PageIdx {
    PageIdx::new(idx).unwrap()
}

fn options() -> Options {
    Options { store: None, locals: None, cache_bytes: 16 << 20, ..Options::default() }
}

/// Pages in an order that has nothing to do with their numbers.
struct Shuffled(u64);
impl Layout for Shuffled {
    fn groups(&self, source: &mut dyn Source) -> Vec<Group> {
        let mut pages: Vec<PageIdx> = (1..=source.pages()).map(page).collect();
        pages.sort_by_key(|page| u64::from(page.get()).wrapping_mul(self.0 | 1) % 257);
        let hot = pages.split_off(pages.len() - pages.len() / 5);
        for page in hot.iter().take(3) {
            source.page(*page);
        }
        vec![Group { pages: hot, hot: true }, Group { pages, hot: false }]
    }
}

/// Tombstones go early, so that many a late create meets a key that is free again.
const BURIAL: Burial = Burial { commits: 3, checkpoints: 2, ms: 200_000 };
/// How many may sleep at a time, and how many of them, the first, until the end.
const STALLED_MAX: usize = 4;
const SLEEP_ON: usize = 2;

struct World {
    remote: Arc<MemoryRemote>,
    rng: StdRng,
    now_ms: i64,
    next_id: u128,
    /// The content at each LSN.
    model: BTreeMap<Lsn, Content>,
    /// Commits that were prepared, and whose writers sleep since then.
    stalled_commits: Vec<(Arc<Prepared>, i64)>,
    /// Checkpointers that sleep before their creates.
    stalled_checkpoints: Vec<(Volume, Snapshot)>,
    /// Compactions that sleep before their creates, and the replicas that made them.
    stalled_compactions: Vec<(Volume, Moved)>,
    /// Pins that were accepted.
    pins: Vec<Pin>,
    /// Forks and what is in them.
    forks: Vec<(VolumeId, Content)>,
    counts: BTreeMap<&'static str, u32>,
}

impl World {
    fn new(seed: u64) -> World {
        let remote = Arc::new(MemoryRemote::new());
        let meta = Meta { page_size: PageSize::new(PAGE as u32).unwrap(), parent: None };
        block_on(catalog::create(&*remote, &"v".parse().unwrap(), VOLUME, meta)).unwrap();
        World {
            remote,
            rng: StdRng::seed_from_u64(seed),
            now_ms: 1_000,
            next_id: 1,
            model: BTreeMap::from([(Lsn::ZERO, Content::new())]),
            stalled_commits: Vec::new(),
            stalled_checkpoints: Vec::new(),
            stalled_compactions: Vec::new(),
            pins: Vec::new(),
            forks: Vec::new(),
            counts: BTreeMap::new(),
        }
    }

    fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    fn id(&mut self) -> CommitId {
        self.next_id += 1;
        CommitId(self.next_id.to_be_bytes())
    }

    fn open(&self) -> Volume {
        block_on(Volume::open(&*self.remote, VOLUME, options())).unwrap().volume
    }

    fn newest(&self) -> (Lsn, Content) {
        self.model.last_key_value().map(|(lsn, content)| (*lsn, content.clone())).unwrap()
    }

    /// A random change of the newest content, sealed and not sent.
    fn prepare(&mut self) -> (Arc<Prepared>, Content) {
        let volume = self.open();
        let (lsn, mut content) = self.newest();
        assert_eq!(volume.base().lsn(), lsn);
        let pages = match self.rng.random_range(0..10) {
            0 => self.rng.random_range(0..=content.len()),
            1..5 => content.len() + self.rng.random_range(1..40),
            _ => content.len().max(1),
        };
        content.resize(pages, None);
        let mut changes = BTreeMap::new();
        for _ in 0..self.rng.random_range(0..40usize).min(pages * 2) {
            let idx = self.rng.random_range(1..=pages);
            let byte = self.rng.random();
            content[idx - 1] = Some(byte);
            // Some commits are too large to carry their frames, and have segments.
            let mut bytes = vec![byte; PAGE];
            if lsn.0.is_multiple_of(3) {
                self.rng.fill(&mut bytes[1..]);
            }
            changes.insert(page(idx as u32), Bytes::from(bytes));
        }
        volume.commit(&volume.tip(), Change { changes, pages: pages as u32, payload: Bytes::new() }).unwrap();
        let id = self.id();
        let prepared = volume.seal(1, Bytes::new(), id, self.now_ms).unwrap().unwrap();
        (prepared, content)
    }

    fn commit(&mut self) {
        let (prepared, content) = self.prepare();
        let published = block_on(publish(&*self.remote, &prepared)).unwrap();
        self.model.insert(published.lsn, content);
    }

    fn step(&mut self, seed: u64) {
        self.now_ms += self.rng.random_range(0..50_000);
        self.remote.set_now_ms(self.now_ms);
        match self.rng.random_range(0..100) {
            0..32 => self.commit(),
            32..36 => self.fork(),
            36..40 => self.work_in_a_fork(),
            40..52 => {
                let volume = self.open();
                block_on(checkpoint::write(&*self.remote, &volume, &volume.base(), Bytes::new())).unwrap();
            }
            52..58 => {
                let volume = self.open();
                let (id, scope) = (self.id(), if self.rng.random() { Scope::All } else { Scope::Sparse });
                let layout: &dyn Layout = if self.rng.random() { &ByNumber } else { &Shuffled(seed) };
                let moved = compact::gather(&*self.remote, &volume, layout, scope, id, &|_, _| {});
                let moved = block_on(moved).unwrap();
                if self.rng.random_bool(0.4) {
                    self.stalled_compactions.push((volume, moved));
                    self.stalled_compactions.truncate(STALLED_MAX);
                } else if moved.pages() > 0 {
                    block_on(compact::publish(&*self.remote, &volume, &volume.base(), &moved, Bytes::new()))
                        .unwrap();
                    self.count("compactions");
                }
            }
            58..70 => self.collect(),
            70..76 => self.pin(),
            76..80 => {
                // It has uploaded its segments, and sleeps before its create.
                let prepared = self.prepare().0;
                for segment in &prepared.segments {
                    block_on(self.remote.create(&segment.key, segment.bytes().unwrap())).unwrap();
                }
                self.stalled_commits.push((prepared, self.now_ms));
                self.stalled_commits.truncate(STALLED_MAX);
                if self.rng.random() {
                    self.collect();
                    self.wake_commit(SLEEP_ON);
                }
            }
            80..86 => self.wake_commit(SLEEP_ON),
            86..90 => {
                let volume = self.open();
                self.stalled_checkpoints.push((self.open(), volume.base()));
                self.stalled_checkpoints.truncate(STALLED_MAX);
            }
            90..93 => self.wake_checkpoint(SLEEP_ON),
            _ => self.wake_compaction(SLEEP_ON),
        }
    }

    fn wake_checkpoint(&mut self, sleep_on: usize) {
        if self.stalled_checkpoints.len() <= sleep_on {
            return;
        }
        let at = self.rng.random_range(sleep_on..self.stalled_checkpoints.len());
        let (volume, snapshot) = self.stalled_checkpoints.swap_remove(at);
        // The reader's page table may be gone by now; what is there must be right.
        let written = checkpoint::write(&*self.remote, &volume, &snapshot, Bytes::new());
        if let Ok(checkpoint::Written::Stored { seq, .. }) = block_on(written) {
            let stray = seq <= block_on(bottom::bottom(&*self.remote, VOLUME)).unwrap().seq;
            self.count(if stray { "stray checkpoints" } else { "late checkpoints" });
        }
    }

    fn wake_compaction(&mut self, sleep_on: usize) {
        if self.stalled_compactions.len() <= sleep_on {
            return;
        }
        let at = self.rng.random_range(sleep_on..self.stalled_compactions.len());
        let (volume, moved) = self.stalled_compactions.swap_remove(at);
        // It may have slept right before its create, and look at nothing more.
        if self.rng.random() {
            let Ok(pulled) = block_on(volume.pull(&*self.remote)) else { return };
            volume.absorb(pulled).unwrap();
        }
        match block_on(compact::publish(&*self.remote, &volume, &volume.base(), &moved, Bytes::new())) {
            Ok(checkpoint::Written::Stored { seq, .. }) => {
                let stray = seq <= block_on(bottom::bottom(&*self.remote, VOLUME)).unwrap().seq;
                self.count(if stray { "stray compactions" } else { "late compactions" });
            }
            Ok(_) => {}
            Err(CompactError::Abandoned) => self.count("abandoned"),
            Err(CompactError::Fetch(_) | CompactError::Checkpoint(_)) => {}
            Err(error) => panic!("{error}"),
        }
    }

    /// A collector that keeps as little as it may, after a dry run.
    fn collect(&mut self) {
        let retention = Retention {
            keep_ms: self.rng.random_range(0..500_000),
            keep_commits: self.rng.random_range(0..10),
            grace_ms: 0,
        };
        let now = self.now_ms;
        let before = block_on(plan_burying(&*self.remote, VOLUME, retention, BURIAL, now)).unwrap();
        let plan = collect_burying(&*self.remote, VOLUME, retention, BURIAL, now, &|_, _| {});
        let plan = block_on(plan).unwrap();
        assert_eq!(before.doomed, plan.doomed, "a dry run says what a run does");
        for doomed in plan.doomed {
            self.count(match doomed.why {
                Why::Commit => "commits",
                Why::Checkpoint => "checkpoints",
                Why::Segment => "segments",
                Why::Tombstone => "tombstones",
                Why::Floor => "floors",
                Why::Lease => "leases",
                Why::Abandoned => "abandoned forks",
            });
        }
    }

    /// As a forker does: the pin, then a look at the floor.
    fn pin(&mut self) {
        let volume = self.open();
        let base = volume.base();
        let seq = base.checkpoint().map_or(Seq::ZERO, |root| root.seq);
        // Others work between our reading and our pin.
        for _ in 0..self.rng.random_range(0..3) {
            self.commit();
        }
        let lease = crate::ids::LeaseId(self.id().0);
        let until_ms = if self.rng.random() { Pin::FOR_EVER } else { self.now_ms + TERM_MS };
        let pin = Pin { lsn: base.lsn(), seq: Some(seq), until_ms };
        let key = key::reader(VOLUME, lease);
        block_on(self.remote.create(&key, pin.encode(&key))).unwrap();
        let floor = block_on(published(&*self.remote, VOLUME)).unwrap();
        if pin.lsn < floor.lsn || seq < floor.seq {
            block_on(self.remote.delete(&key)).unwrap();
        } else {
            self.pins.push(pin);
        }
    }

    /// A fork of the newest state, of an older one, or of a fork.
    fn fork(&mut self) {
        let child = VolumeId(self.id().0);
        let name = format!("fork-{child}").parse().unwrap();
        let (parent, at, content) = match self.rng.random_range(0..3) {
            0 if !self.forks.is_empty() => {
                let (parent, content) = self.forks[self.rng.random_range(0..self.forks.len())].clone();
                (parent, At::Newest, content)
            }
            1 => {
                let lsn = Lsn(self.rng.random_range(0..=self.newest().0.0));
                (VOLUME, At::Lsn(lsn), self.model[&lsn].clone())
            }
            _ => (VOLUME, At::Newest, self.newest().1),
        };
        match block_on(fork::create(&*self.remote, parent, at, child, &name)) {
            Ok(_) => {
                self.count("forks");
                self.forks.push((child, content));
            }
            Err(ForkError::Expired { .. } | ForkError::At(_)) => self.count("refused forks"),
            Err(error) => panic!("{error}"),
        }
    }

    /// A fork gets a commit, a page table of its own, a compaction; or its maker's crash is played.
    fn work_in_a_fork(&mut self) {
        if self.rng.random_bool(0.2) {
            // Its maker died between the pin and the metadata.
            let child = VolumeId(self.id().0);
            let key = key::fork_pin(VOLUME, child);
            let pin = Pin { lsn: self.newest().0, seq: None, until_ms: Pin::FOR_EVER };
            return block_on(self.remote.create(&key, pin.encode(&key))).unwrap();
        }
        if self.forks.is_empty() {
            return;
        }
        let at = self.rng.random_range(0..self.forks.len());
        let (child, mut content) = self.forks[at].clone();
        let volume = block_on(Volume::open(&*self.remote, child, options())).unwrap().volume;
        if self.rng.random() && !content.is_empty() {
            let idx = self.rng.random_range(0..content.len());
            let byte = self.rng.random();
            content[idx] = Some(byte);
            let changes = BTreeMap::from([(page(idx as u32 + 1), Bytes::from(vec![byte; PAGE]))]);
            let change = Change { changes, pages: content.len() as u32, payload: Bytes::new() };
            volume.commit(&volume.tip(), change).unwrap();
            let id = self.id();
            block_on(push(&*self.remote, &volume, |_| Bytes::new(), || id, self.now_ms)).unwrap();
            self.forks[at].1 = content;
        }
        match self.rng.random_range(0..4) {
            0 => {}
            1 => {
                let id = self.id();
                let moved = compact::gather(&*self.remote, &volume, &ByNumber, Scope::Sparse, id, &|_, _| {});
                let moved = block_on(moved).unwrap();
                block_on(compact::publish(&*self.remote, &volume, &volume.base(), &moved, Bytes::new()))
                    .unwrap();
            }
            _ => {
                block_on(checkpoint::write(&*self.remote, &volume, &volume.base(), Bytes::new())).unwrap();
                self.count("forks' checkpoints");
            }
        }
    }

    fn check_forks(&self) {
        for (child, content) in &self.forks {
            let volume = block_on(Volume::open(&*self.remote, *child, options())).unwrap().volume;
            let expected: Content = content.iter().map(|b| Some(b.unwrap_or(0))).collect();
            assert_eq!(self.read_all(&volume.base()), expected, "fork {child}");
        }
    }

    /// A writer that slept through anything wakes and sends what it had prepared; the first `sleep_on`
    /// do not wake.
    fn wake_commit(&mut self, sleep_on: usize) {
        if self.stalled_commits.len() <= sleep_on {
            return;
        }
        let at = self.rng.random_range(sleep_on..self.stalled_commits.len());
        let (mut prepared, since_ms) = self.stalled_commits.swap_remove(at);
        let (newest, _) = self.newest();
        let lsn = prepared.head.lsn;
        // The create alone, in half of the cases: what it had uploaded must still be there.
        if self.rng.random() {
            let key = key::log(VOLUME, lsn);
            if block_on(self.remote.create(&key, prepared.body.clone())).is_ok() {
                if lsn <= block_on(bottom::bottom(&*self.remote, VOLUME)).unwrap().lsn {
                    // Nobody acknowledges it, and nobody may come upon it.
                    return self.count("stray commits");
                }
                assert_eq!(lsn, newest.next(), "a commit into the past");
                self.count("late commits");
                let content = self.read_all(&self.open().base());
                self.model.insert(lsn, content);
                return;
            }
        }
        if self.now_ms - since_ms > BURIAL.ms / 2 {
            // What a clock says to a writer that sleeps for longer than half an hour in a day.
            Arc::make_mut(&mut prepared).confirmed = Confirmed::default();
        }
        match block_on(publish(&*self.remote, &prepared)) {
            Ok(published) => {
                assert_eq!(published.lsn, newest.next(), "a commit into the past");
                self.count("late commits");
                self.model.insert(published.lsn, Content::new());
                // What it changed is not remembered here: read it back below.
                let content = self.read_all(&self.open().base());
                self.model.insert(published.lsn, content);
            }
            Err(PublishError::Rejected { lsn }) => {
                assert!(lsn <= newest);
                self.count("rejected");
            }
            Err(PublishError::Forgotten { lsn, bottom }) => {
                assert!(lsn <= bottom && bottom < newest);
                self.count("forgotten");
            }
            Err(error) => panic!("{error}"),
        }
    }

    /// All that sleep wake at last, and a collector comes once more.
    fn end(&mut self) {
        while !self.stalled_commits.is_empty() {
            self.wake_commit(0);
        }
        while !self.stalled_checkpoints.is_empty() {
            self.wake_checkpoint(0);
        }
        while !self.stalled_compactions.is_empty() {
            self.wake_compaction(0);
        }
        self.check_forks();
        self.collect();
        self.check(&self.open().base());
        self.check_forks();
    }

    fn read_all(&self, snapshot: &Snapshot) -> Content {
        let volume = self.open();
        let all: PageSet = (1..=snapshot.pages()).map(page).collect();
        block_on(fetch(&*self.remote, &volume, snapshot, &all)).unwrap();
        let byte = |idx| volume.read(snapshot, page(idx)).unwrap()[0];
        (1..=snapshot.pages()).map(|idx| Some(byte(idx))).collect()
    }

    fn check(&self, snapshot: &Snapshot) {
        let expected: Content = self.model[&snapshot.lsn()].iter().map(|b| Some(b.unwrap_or(0))).collect();
        assert_eq!(self.read_all(snapshot), expected, "at lsn {}", snapshot.lsn());
    }

    /// What a pin keeps is read as its reader reads it: from its checkpoint on.
    fn check_pin(&self, pin: Pin) {
        let start = match pin.seq.unwrap() {
            Seq::ZERO => Start::empty(crate::format::chunk::Lineage::of(VOLUME)),
            seq => block_on(read_checkpoint(&*self.remote, VOLUME, seq)).unwrap(),
        };
        let mut snapshot = match &start.checkpoint {
            None => Snapshot::empty(PageSize::new(PAGE as u32).unwrap(), start.volumes.clone()),
            Some(root) => Snapshot::of_checkpoint(root, &start.chunks, start.volumes.clone(), 0, 0),
        };
        for lsn in start.lsn.0 + 1..=pin.lsn.0 {
            let head = block_on(read_head(&*self.remote, VOLUME, Lsn(lsn))).unwrap();
            snapshot = snapshot.with_commit(&head, 0);
        }
        self.check(&snapshot);
    }
}

#[test]
fn no_history_of_stalls_and_sweeps_changes_what_is_read() {
    let seeds =
        std::env::var("GRAFT_SEED").ok().and_then(|seed| seed.parse().ok()).map_or(0..12, |s| s..s + 1);
    let mut counts: BTreeMap<&'static str, u32> = BTreeMap::new();
    for seed in seeds {
        println!("seed {seed}: GRAFT_SEED={seed} cargo test -p graft no_history_of_stalls");
        let mut world = World::new(seed);
        for step in 0..120 {
            world.step(seed);
            world.check(&world.open().base());
            if step % 10 == 0 {
                world.check_forks();
            }
            let now = world.now_ms;
            world.pins.retain(|pin| pin.until_ms >= now);
        }
        world.end();
        for pin in world.pins.clone() {
            world.check_pin(pin);
        }
        world.counts.iter().for_each(|(what, n)| *counts.entry(what).or_default() += n);
    }
    println!("{counts:?}");
    for what in [
        "abandoned",
        "abandoned forks",
        "forks",
        "forks' checkpoints",
        "refused forks",
        "checkpoints",
        "commits",
        "compactions",
        "floors",
        "late checkpoints",
        "late commits",
        "late compactions",
        "leases",
        "forgotten",
        "rejected",
        "segments",
        "stray checkpoints",
        "stray commits",
        "stray compactions",
        "tombstones",
    ] {
        assert!(
            counts.contains_key(what) || std::env::var("GRAFT_SEED").is_ok(),
            "never seen: {what}: {counts:?}"
        );
    }
}

mod long_lives {
    use super::*;

    fn keep_little() -> Retention {
        Retention { keep_ms: 0, keep_commits: 4, grace_ms: 0 }
    }

    fn put_page(w: &mut World, volume: &Volume, idx: u32, byte: u8) {
        let pages = volume.tip().pages().max(idx);
        let changes = BTreeMap::from([(page(idx), Bytes::from(vec![byte; PAGE]))]);
        volume.commit(&volume.tip(), Change { changes, pages, payload: Bytes::new() }).unwrap();
        let id = w.id();
        w.now_ms += 10;
        block_on(push(&*w.remote, volume, |_| Bytes::new(), || id, w.now_ms)).unwrap();
    }

    fn checkpoint(w: &World, volume: &Volume) {
        block_on(checkpoint::write(&*w.remote, volume, &volume.base(), Bytes::new())).unwrap();
    }

    /// A fork of a state that more than 512 checkpoints lie behind.
    #[test]
    fn old_fork_stays_readable() {
        let mut w = World::new(1);
        let parent = w.open();
        put_page(&mut w, &parent, 1, 7);
        checkpoint(&w, &parent);
        let child = VolumeId([77; 16]);
        block_on(fork::create(&*w.remote, VOLUME, At::Newest, child, &"c".parse().unwrap())).unwrap();
        for n in 0..540u32 {
            put_page(&mut w, &parent, 1, n as u8);
            checkpoint(&w, &parent);
        }
        let now = w.now_ms;
        println!("before gc: {:?}", block_on(Volume::open(&*w.remote, child, options())).map(|_| ()));
        let p = block_on(collect(&*w.remote, VOLUME, keep_little(), now, &|_, _| {})).unwrap();
        println!("doomed {} floor {:?}", p.doomed.len(), p.sweep);
        let opened = block_on(Volume::open(&*w.remote, child, options()));
        println!("after gc: {:?}", opened.as_ref().map(|_| ()));
        assert!(opened.is_ok());
    }

    /// Retention that reaches further back than the 512 checkpoints that the newest names.
    #[test]
    fn gc_publishes_a_floor_on_a_busy_volume() {
        let mut w = World::new(1);
        let parent = w.open();
        for n in 0..540u32 {
            put_page(&mut w, &parent, 1, n as u8);
            checkpoint(&w, &parent);
        }
        // The first ten checkpoints are older than this.
        let now = w.now_ms;
        let retention = Retention { keep_ms: 10 * 520, keep_commits: 1, grace_ms: 0 };
        let p = block_on(collect(&*w.remote, VOLUME, retention, now, &|_, _| {})).unwrap();
        println!("{:?} doomed {}", p.publish, p.doomed.len());
        assert!(p.publish.is_some());
    }

    /// A replica of a fork that is open while its parent is compacted at the very LSN and swept.
    #[test]
    fn open_fork_reads_on_after_its_parent_was_compacted() {
        let mut w = World::new(1);
        let parent = w.open();
        for n in 1..=20 {
            put_page(&mut w, &parent, n, n as u8);
        }
        checkpoint(&w, &parent);
        let child = VolumeId([77; 16]);
        block_on(fork::create(&*w.remote, VOLUME, At::Newest, child, &"c".parse().unwrap())).unwrap();
        let replica = block_on(Volume::open(&*w.remote, child, options())).unwrap().volume;
        let id = w.id();
        let moved = compact::gather(&*w.remote, &parent, &ByNumber, Scope::All, id, &|_, _| {});
        let moved = block_on(moved).unwrap();
        println!(
            "{:?}",
            block_on(compact::publish(&*w.remote, &parent, &parent.base(), &moved, Bytes::new()))
        );
        for n in 1..=20 {
            put_page(&mut w, &parent, n, 100);
        }
        checkpoint(&w, &parent);
        let now = w.now_ms;
        let p = block_on(collect(&*w.remote, VOLUME, keep_little(), now, &|_, _| {})).unwrap();
        println!("doomed {} {:?}", p.doomed.len(), p.sweep);
        let anew = block_on(Volume::open(&*w.remote, child, options())).unwrap().volume;
        let all: PageSet = (1..=20).map(page).collect();
        block_on(fetch(&*w.remote, &anew, &anew.base(), &all)).expect("opened anew");
        for round in 0..3 {
            let pulled = block_on(replica.pull(&*w.remote)).unwrap();
            replica.absorb(pulled).unwrap();
            let read = block_on(fetch(&*w.remote, &replica, &replica.base(), &all));
            println!("round {round}: {read:?}");
        }
        println!(
            "checkpoint: {:?}",
            block_on(checkpoint::write(&*w.remote, &replica, &replica.base(), Bytes::new()))
        );
        block_on(fetch(&*w.remote, &replica, &replica.base(), &all)).expect("the open replica");
    }

    /// `remove` that failed half-way, then a collector.
    #[test]
    fn a_failed_remove_does_not_let_gc_eat_the_volume() {
        let mut w = World::new(1);
        let parent = w.open();
        for n in 1..=20 {
            put_page(&mut w, &parent, n, n as u8);
            checkpoint(&w, &parent);
        }
        let closed = key::closed(VOLUME, 1);
        block_on(w.remote.create(&closed, Bytes::new())).unwrap();
        let now = w.now_ms;
        let p = block_on(collect(&*w.remote, VOLUME, Retention::default(), now + 10_000_000_000, &|_, _| {}));
        println!("{:?}", p.map(|p| p.doomed.len()));
        let anew = block_on(Volume::open(&*w.remote, VOLUME, options())).unwrap().volume;
        let all: PageSet = (1..=20).map(page).collect();
        block_on(fetch(&*w.remote, &anew, &anew.base(), &all)).expect("all is there");
    }
}

mod tables {
    use super::*;

    fn world512() -> (Arc<MemoryRemote>, Volume) {
        let remote = Arc::new(MemoryRemote::new());
        let meta = Meta { page_size: PageSize::new(512).unwrap(), parent: None };
        block_on(catalog::create(&*remote, &"v".parse().unwrap(), VOLUME, meta)).unwrap();
        let writer = block_on(Volume::open(&*remote, VOLUME, options())).unwrap().volume;
        (remote, writer)
    }

    fn write(remote: &MemoryRemote, volume: &Volume, pages: std::ops::RangeInclusive<u32>, n: u128) {
        let changes: BTreeMap<_, _> = pages
            .map(|idx| {
                (page(idx), Bytes::from([idx.to_le_bytes(), (n as u32).to_le_bytes()].concat().repeat(64)))
            })
            .collect();
        let count = volume.tip().pages().max(changes.keys().last().unwrap().get());
        volume.commit(&volume.tip(), Change { changes, pages: count, payload: Bytes::new() }).unwrap();
        let id = CommitId(n.to_be_bytes());
        block_on(push(remote, volume, |_| Bytes::new(), || id, n as i64)).unwrap();
    }

    fn stale() -> (Arc<MemoryRemote>, Volume) {
        let (remote, writer) = world512();
        write(&remote, &writer, 1..=8000, 1);
        block_on(checkpoint::write(&*remote, &writer, &writer.base(), Bytes::new())).unwrap();
        let replica = block_on(Volume::open(&*remote, VOLUME, options())).unwrap().volume;
        let id = CommitId([9; 16]);
        let moved =
            block_on(compact::gather(&*remote, &writer, &ByNumber, Scope::All, id, &|_, _| {})).unwrap();
        block_on(compact::publish(&*remote, &writer, &writer.base(), &moved, Bytes::new())).unwrap();
        for n in 2..12 {
            write(&remote, &writer, 1..=1, n);
        }
        block_on(checkpoint::write(&*remote, &writer, &writer.base(), Bytes::new())).unwrap();
        let keep = Retention { keep_ms: 0, keep_commits: 4, grace_ms: 0 };
        let p = block_on(collect(&*remote, VOLUME, keep, 1_000_000, &|_, _| {})).unwrap();
        println!("doomed {} {:?}", p.doomed.len(), p.sweep);
        let pulled = block_on(replica.pull(&*remote)).unwrap();
        println!("jump {}", pulled.jump.is_some());
        replica.absorb(pulled).unwrap();
        (remote, replica)
    }

    #[test]
    fn first_read_of_a_newest_state_after_gc() {
        let (remote, replica) = stale();
        let set: PageSet = [page(7900)].into_iter().collect();
        let first = block_on(fetch(&*remote, &replica, &replica.base(), &set));
        println!("first {first:?}");
        println!("second {:?}", block_on(fetch(&*remote, &replica, &replica.base(), &set)));
        first.unwrap();
    }

    /// A reader that took its snapshot before reads on in it, also where no part of its table was read.
    #[test]
    fn a_snapshot_outlives_its_page_table() {
        let (remote, replica) = stale();
        let snapshot = replica.tip();
        let fetcher = crate::fetch::Fetcher::new(remote.clone());
        for idx in [7900, 7901, 4000, 1] {
            let set: PageSet = [page(idx)].into_iter().collect();
            block_on(fetcher.fetch(&replica, &snapshot, &set)).unwrap();
            let bytes = replica.read(&snapshot, page(idx)).unwrap();
            assert_eq!(bytes, replica.read(&replica.tip(), page(idx)).unwrap());
        }
    }

    #[test]
    fn hydrate_and_checkpoint_after_gc() {
        let (remote, replica) = stale();
        let fetcher = crate::fetch::Fetcher::new(remote.clone());
        for _ in 0..3 {
            let h = block_on(crate::hydrate::hydrate(&fetcher, &replica, &replica.base(), &mut |_| {}));
            println!("hydrate {h:?}");
        }
        write(&remote, &replica, 7950..=7950, 50);
        for _ in 0..3 {
            println!(
                "checkpoint {:?}",
                block_on(checkpoint::write(&*remote, &replica, &replica.base(), Bytes::new()))
            );
        }
        let g = block_on(compact::gather(
            &*remote,
            &replica,
            &ByNumber,
            Scope::All,
            CommitId([3; 16]),
            &|_, _| {},
        ));
        println!("gather {:?}", g.map(|_| ()));
        let h = block_on(crate::hydrate::hydrate(&fetcher, &replica, &replica.base(), &mut |_| {}));
        h.unwrap();
    }

    struct Asks;
    impl Layout for Asks {
        fn groups(&self, source: &mut dyn Source) -> Vec<Group> {
            let pages: Vec<PageIdx> = (1..=source.pages()).map(page).collect();
            for p in pages.iter().take(600) {
                source.page(*p);
            }
            vec![Group { pages, hot: false }]
        }
    }

    #[test]
    fn compaction_with_a_cache_smaller_than_the_interior_pages() {
        let (remote, writer) = world512();
        write(&remote, &writer, 1..=4000, 1);
        let small = Options { cache_bytes: 512 * 512, ..options() };
        let replica = block_on(Volume::open(&*remote, VOLUME, small)).unwrap().volume;
        let g =
            block_on(compact::gather(&*remote, &replica, &Asks, Scope::All, CommitId([3; 16]), &|_, _| {}));
        println!("{:?}; {:?}", g.as_ref().map(|_| ()), replica.metrics());
        g.unwrap();
    }

    /// A checkpoint that stays for one chunk alone names chunks that are gone.
    #[test]
    fn verify_after_gc_kept_a_checkpoint_for_one_chunk() {
        let (remote, writer) = world512();
        let mark =
            |_: ()| block_on(checkpoint::write(&*remote, &writer, &writer.base(), Bytes::new())).unwrap();
        write(&remote, &writer, 1..=8000, 1);
        mark(());
        write(&remote, &writer, 300..=300, 2);
        mark(());
        let changes: BTreeMap<_, _> = (1..=8000u32)
            .step_by(100)
            .filter(|p| !(257..=512).contains(p))
            .chain([7999])
            .map(|p| (page(p), Bytes::from(vec![p as u8; 512])))
            .collect();
        writer.commit(&writer.tip(), Change { changes, pages: 8000, payload: Bytes::new() }).unwrap();
        block_on(push(&*remote, &writer, |_| Bytes::new(), || CommitId([4; 16]), 3)).unwrap();
        mark(());
        for n in 4..12 {
            write(&remote, &writer, 1..=1, n);
        }
        mark(());
        let keep = Retention { keep_ms: 0, keep_commits: 4, grace_ms: 0 };
        let before = block_on(crate::verify::verify(&*remote, VOLUME, &|_| {})).unwrap();
        println!("before: {:?}", before.findings);
        let p = block_on(collect(&*remote, VOLUME, keep, 1_000_000, &|_, _| {})).unwrap();
        println!("doomed {:?} {:?}", p.doomed.iter().map(|d| &d.key).collect::<Vec<_>>(), p.sweep);
        let report = block_on(crate::verify::verify(&*remote, VOLUME, &|_| {})).unwrap();
        println!("after: {:?}", report.findings);
        assert!(report.is_sound());
    }
}

/// Found by the simulation (seed 134): a writer that had uploaded a segment lost its LSN, the LSN was
/// forked, and the segment stayed for as long as the fork.
#[test]
fn a_pin_does_not_keep_the_segments_of_those_who_lost_its_lsn() {
    let mut world = World::new(1);
    (0..3).for_each(|_| world.commit());
    let (lsn, content) = world.newest();
    let lost = key::segment(VOLUME, lsn, CommitId([7; 16]), 1);
    block_on(world.remote.create(&lost, Bytes::from_static(b"of a writer that came second"))).unwrap();
    let child = VolumeId([1; 16]);
    block_on(fork::create(&*world.remote, VOLUME, At::Newest, child, &"child".parse().unwrap())).unwrap();
    world.forks.push((child, content));
    (0..3).for_each(|_| world.commit());
    let volume = world.open();
    block_on(checkpoint::write(&*world.remote, &volume, &volume.base(), Bytes::new())).unwrap();
    let nothing = Retention { keep_ms: 0, keep_commits: 0, grace_ms: 0 };
    block_on(collect(&*world.remote, VOLUME, nothing, 1_000_000, &|_, _| {})).unwrap();
    let left = block_on(world.remote.get(&lost));
    assert!(matches!(left, Err(RemoteError::NotFound { .. })), "{left:?}");
    world.check_forks();
}
