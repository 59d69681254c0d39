//! Logs whose bottom is gone: what they cost, what still works on them, and who comes too late.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use super::*;
use crate::history;
use crate::ids::ChainHash;
use crate::pull::pull;
use crate::remote::{Answer, Counting, Layer, Request};
use crate::store::{Durability, MemoryStore, SharedStore};
use crate::volume::{PushError, Pushed};

const PAGE: usize = 512;
/// Between two commits.
const STEP_MS: i64 = 120_000;

struct Log {
    remote: Arc<MemoryRemote>,
    writer: Volume,
    n: u64,
}

impl Log {
    fn new() -> Log {
        let remote = Arc::new(MemoryRemote::new());
        let meta = Meta { page_size: PageSize::new(PAGE as u32).unwrap(), parent: None };
        block_on(catalog::create(&*remote, &"v".parse().unwrap(), VOLUME, meta)).unwrap();
        let writer = block_on(Volume::open(&*remote, VOLUME, options())).unwrap().volume;
        Log { remote, writer, n: 0 }
    }

    fn now_ms(&self) -> i64 {
        self.n as i64 * STEP_MS
    }

    /// Commits until `upto`, with a checkpoint every 16.
    fn grow(&mut self, upto: u64) {
        while self.n < upto {
            self.n += 1;
            self.remote.set_now_ms(self.now_ms());
            write(&self.writer, self.n);
            let (id, now_ms) = (CommitId(u128::from(self.n).to_be_bytes()), self.now_ms());
            block_on(push(&*self.remote, &self.writer, |_| Bytes::new(), || id, now_ms)).unwrap();
            if self.n.is_multiple_of(16) {
                let base = self.writer.base();
                block_on(checkpoint::write(&*self.remote, &self.writer, &base, Bytes::new())).unwrap();
            }
        }
    }

    fn collect(&self, remote: &dyn Remote) -> Plan {
        let retention = Retention { keep_ms: 0, keep_commits: 100, grace_ms: 0 };
        block_on(collect(remote, VOLUME, retention, self.now_ms(), &|_, _| {})).unwrap()
    }

    fn bottom(&self) -> Floor {
        block_on(bottom::bottom(&*self.remote, VOLUME)).unwrap()
    }

    /// What is in the bucket for everybody is whole.
    fn is_sound(&self) {
        let anew = block_on(Volume::open(&*self.remote, VOLUME, options())).unwrap().volume;
        self.reads_newest(&anew);
        let report = block_on(crate::verify::verify(&*self.remote, VOLUME, &|_| {})).unwrap();
        assert!(report.is_sound(), "{:?}", report.findings);
    }

    fn reads_newest(&self, volume: &Volume) {
        let tip = volume.tip();
        assert_eq!(tip.lsn(), Lsn(self.n));
        block_on(fetch(&*self.remote, volume, &tip, &PageSet::from_iter([page(1)]))).unwrap();
        assert_eq!(volume.read(&tip, page(1)).unwrap()[..8], self.n.to_le_bytes());
    }
}

/// One page, with a number in it.
fn write(volume: &Volume, n: u64) {
    let changes = BTreeMap::from([(page(1), Bytes::from(n.to_le_bytes().repeat(PAGE / 8)))]);
    volume.commit(&volume.tip(), Change { changes, pages: 1, payload: Bytes::new() }).unwrap();
}

/// Tombstones kept for ever made every collection list the whole log.
#[test]
fn a_collection_costs_the_same_after_any_history() {
    let mut log = Log::new();
    let (mut lists, mut objects) = (BTreeMap::new(), BTreeMap::new());
    for n in (250..=6000).step_by(250) {
        log.grow(n);
        let counting = Counting::new(log.remote.clone());
        log.collect(&*counting);
        lists.insert(n, counting.snapshot().lists as usize);
        objects.insert(n, log.remote.objects().len());
    }
    let most =
        |counts: &BTreeMap<u64, usize>, from, to| *counts.range(from..to).map(|(_, n)| n).max().unwrap();
    // Two for the log: what is kept, 1,024 commits further down, and what two collections leave between.
    assert_eq!(most(&lists, 2000, u64::MAX), 12, "{lists:?}");
    assert_eq!(most(&lists, 2000, 4000), most(&lists, 4000, u64::MAX), "{lists:?}");
    assert!(most(&objects, 4000, u64::MAX) <= most(&objects, 2000, 4000) + 16, "{objects:?}");
    assert!(log.bottom().lsn > Lsn(4000) && log.bottom().seq > Seq(200), "{:?}", log.bottom());
    log.is_sound();
}

#[test]
fn everything_still_works_above_the_bottom() {
    let mut log = Log::new();
    log.grow(5);
    let store: SharedStore = Arc::new(MemoryStore::new());
    let kept = || Options { store: Some(store.clone()), ..options() };
    drop(block_on(Volume::open(&*log.remote, VOLUME, kept())).unwrap());
    let old = block_on(Volume::open(&*log.remote, VOLUME, options())).unwrap().volume;
    let head = block_on(read_head(&*log.remote, VOLUME, Lsn(5))).unwrap();
    for n in (200..=3000).step_by(200) {
        log.grow(n);
        log.collect(&*log.remote);
    }
    let (bottom, floor) = (log.bottom(), block_on(published(&*log.remote, VOLUME)).unwrap());
    assert!(Lsn(5) < bottom.lsn && bottom.lsn < floor.lsn, "{bottom:?} {floor:?}");
    assert!(log.remote.objects().iter().all(|(key, _)| *key != key::log(VOLUME, Lsn(5))));
    let late_before = late_commit(&log, Lsn(5), &head);
    for late in [false, true] {
        if late {
            // And where a late writer's create has landed down there.
            block_on(log.remote.create(&key::log(VOLUME, Lsn(5)), late_before.body.clone())).unwrap();
            block_on(
                log.remote.create(&key::log(VOLUME, bottom.lsn), late_commit(&log, bottom.lsn, &head).body),
            )
            .unwrap();
        }
        log.is_sound();
        // A replica that slept all the while, in memory and on disk.
        let pulled = block_on(old.pull(&*log.remote)).unwrap();
        assert!(pulled.jump.is_some());
        if late {
            old.absorb(pulled).unwrap();
            log.reads_newest(&old);
            log.reads_newest(&block_on(Volume::open(&*log.remote, VOLUME, kept())).unwrap().volume);
        }
        let heads = block_on(history::log(&*log.remote, VOLUME, usize::MAX)).unwrap();
        assert_eq!(heads.first().unwrap().lsn, Lsn(3000));
        assert!(heads.last().unwrap().lsn <= floor.lsn.next(), "{:?}", heads.last().unwrap().lsn);
        let gone = block_on(pull(&*log.remote, VOLUME, Lsn(5), head.hash));
        assert!(matches!(gone, Err(PullError::Expired { .. })), "{gone:?}");
        let gone = block_on(pull(&*log.remote, VOLUME, Lsn::ZERO, ChainHash::ZERO));
        assert!(matches!(gone, Err(PullError::Expired { .. })), "{gone:?}");
        let at =
            |at| block_on(Volume::open_at(&*log.remote, VOLUME, at, 1 << 20)).map(|o| o.volume.tip().lsn());
        for lsn in [floor.lsn, Lsn(2999), Lsn(3000)] {
            assert_eq!(at(At::Lsn(lsn)).unwrap(), lsn);
            assert_eq!(at(At::TimeMs(lsn.0 as i64 * STEP_MS + 1)).unwrap(), lsn);
        }
        for lsn in [Lsn(1), Lsn(5), Lsn(6), bottom.lsn, bottom.lsn.next()] {
            for moment in [At::Lsn(lsn), At::TimeMs(lsn.0 as i64 * STEP_MS + 1)] {
                let gone = at(moment).unwrap_err().to_string();
                assert!(gone.contains("retains") || gone.contains("as old as"), "{moment}: {gone}");
            }
        }
        let name = "f".parse().unwrap();
        let forked = fork::create_once(&*log.remote, VOLUME, At::Lsn(Lsn(5)), VolumeId([8; 16]), &name);
        assert!(matches!(block_on(forked), Err(ForkError::Expired { .. })));
    }
    // What the late ones left goes as everything else does: a tombstone first, and that a day later.
    let stray = key::log(VOLUME, Lsn(5));
    let plan = log.collect(&*log.remote);
    assert!(plan.doomed.iter().any(|doomed| doomed.key == stray && doomed.why == Why::Commit));
    for n in (3200..=4400).step_by(200) {
        log.grow(n);
        log.collect(&*log.remote);
    }
    assert!(log.remote.objects().iter().all(|(key, _)| *key != stray));
    log.is_sound();
}

/// A commit of LSN `lsn` by somebody who knew `parent` as the one before it.
fn late_commit(log: &Log, lsn: Lsn, parent: &crate::format::commit::Head) -> Prepared {
    let draft = crate::publish::Draft {
        volume: VOLUME,
        lsn,
        id: CommitId([0xee; 16]),
        parent: parent.hash,
        parent_time_ms: 0,
        now_ms: log.now_ms(),
        pages: 1,
        payload: Bytes::new(),
        locals: 0,
        checkpoint: Lsn::ZERO,
    };
    crate::publish::prepare(draft, &[(page(1), Bytes::from(vec![0xee; PAGE]))])
}

/// A writer that sealed a commit and then slept: its create succeeds, and it must not say so.
#[test]
fn a_create_where_a_tombstone_was_is_not_acknowledged() {
    let mut log = Log::new();
    log.grow(9);
    let late = block_on(Volume::open(&*log.remote, VOLUME, options())).unwrap().volume;
    write(&late, 666);
    let mut sealed = late.seal(1, Bytes::new(), CommitId([6; 16]), log.now_ms()).unwrap().unwrap();
    for n in (200..=3000).step_by(200) {
        log.grow(n);
        log.collect(&*log.remote);
    }
    assert!(log.bottom().lsn > Lsn(10));
    Arc::make_mut(&mut sealed).confirmed = Confirmed::default();
    let forgotten = block_on(publish(&*log.remote, &sealed));
    assert!(matches!(forgotten, Err(PublishError::Forgotten { lsn: Lsn(10), .. })), "{forgotten:?}");
    // The create itself went through, or this would not show anything.
    assert_eq!(block_on(read_head(&*log.remote, VOLUME, Lsn(10))).unwrap().id, CommitId([6; 16]));
    // Its own commit read back is no proof either.
    let forgotten = block_on(publish(&*log.remote, &sealed));
    assert!(matches!(forgotten, Err(PublishError::Forgotten { .. })), "{forgotten:?}");
    log.is_sound();
}

/// A writer that was restarted with a push whose answer it had not heard. While a tombstone is left it
/// says who won; after that, nothing can, and so nothing is concluded.
#[test]
fn an_old_pending_push_is_settled_by_its_tombstone_or_not_at_all() {
    for won in [true, false] {
        let mut log = Log::new();
        log.grow(9);
        let store: SharedStore = Arc::new(MemoryStore::new());
        let kept = || Options { store: Some(store.clone()), locals: Some(Durability::Sync), ..options() };
        let writer = block_on(Volume::open(&*log.remote, VOLUME, kept())).unwrap().volume;
        write(&writer, 10);
        let sealed = writer.seal(1, Bytes::new(), CommitId([6; 16]), log.now_ms()).unwrap().unwrap();
        drop(writer);
        // What a process finds that is started on the same directory.
        let restarted = || {
            let writer = Volume::load(VOLUME, PageSize::new(PAGE as u32).unwrap(), kept()).unwrap().volume;
            writer.pending().unwrap()
        };
        if won {
            // The answer is lost, and others go on from there.
            block_on(publish(&*log.remote, &sealed)).unwrap();
            let pulled = block_on(log.writer.pull(&*log.remote)).unwrap();
            log.writer.absorb(pulled).unwrap();
            log.n = 10;
        }
        log.grow(400);
        log.collect(&*log.remote);
        assert!(log.bottom() == Floor::default());
        if !won {
            let counting = Counting::new(log.remote.clone());
            let lost = block_on(publish(&*counting, &restarted()));
            assert!(matches!(lost, Err(PublishError::Rejected { .. })), "{lost:?}");
            let counts = counting.snapshot();
            assert_eq!((counts.creates, counts.ranges, counts.lists), (1, 1, 1), "{counts:?}");
            continue;
        }
        assert_eq!(block_on(publish(&*log.remote, &restarted())).unwrap().lsn, Lsn(10));
        for n in (600..=3000).step_by(200) {
            log.grow(n);
            log.collect(&*log.remote);
        }
        assert!(log.bottom().lsn > Lsn(10));
        let again = || {
            let writer = block_on(Volume::open(&*log.remote, VOLUME, kept())).unwrap().volume;
            (block_on(push(&*log.remote, &writer, |_| Bytes::new(), || CommitId([7; 16]), 0)), writer)
        };
        let (forgotten, writer) = again();
        assert!(
            matches!(forgotten, Err(PushError::Publish(PublishError::Forgotten { lsn: Lsn(10), .. }))),
            "{forgotten:?}"
        );
        // The local commit is as it was: it can be made a branch.
        assert_eq!((writer.status().ahead, writer.status().pending), (1, true));
        log.is_sound();
    }
}

/// A day passes for nobody but the store: a collector's clock makes no tombstone go earlier, and neither does
/// one stamp of the future.
#[test]
fn tombstones_age_by_the_stores_clock_alone() {
    let mut log = Log::new();
    for n in (200..=1600).step_by(200) {
        log.grow(n);
        let retention = Retention { keep_ms: 0, keep_commits: 100, grace_ms: 0 };
        // Its clock is years ahead.
        block_on(collect(&*log.remote, VOLUME, retention, i64::MAX, &|_, _| {})).unwrap();
    }
    assert!(block_on(published(&*log.remote, VOLUME)).unwrap().lsn > Lsn(1024 + 400));
    let spent = (1600 - 200) * STEP_MS;
    assert!(spent > 86_400_000, "some of them are older than a day");
    let youngest_freed = log.bottom().lsn;
    assert!(youngest_freed > Lsn::ZERO && youngest_freed <= Lsn(1600 - 1024), "{youngest_freed:?}");
    // A file of the future, and a collector whose clock is right.
    let tombstones = || {
        let burial = Burial { commits: 0, checkpoints: 0, ms: 86_400_000 };
        let retention = Retention { keep_ms: 0, keep_commits: 100, grace_ms: 0 };
        let plan = plan_burying(&*log.remote, VOLUME, retention, burial, log.now_ms());
        let doomed = block_on(plan).unwrap().doomed;
        doomed.into_iter().filter(|doomed| doomed.why == Why::Tombstone).count()
    };
    let old = tombstones();
    log.remote.set_now_ms(i64::MAX);
    let odd = key::segment(VOLUME, Lsn(9999), CommitId([1; 16]), 1);
    block_on(log.remote.create(&odd, Bytes::from_static(b"upload"))).unwrap();
    log.remote.set_now_ms(log.now_ms());
    assert_eq!(tombstones(), old, "no more of them are a day old");
    block_on(log.remote.delete(&odd)).unwrap();
    // Nothing is written any more: the store's clock is not seen to go on, and nothing ages.
    let before = log.remote.objects().len();
    let retention = Retention { keep_ms: 0, keep_commits: 100, grace_ms: 0 };
    let plan = block_on(collect(&*log.remote, VOLUME, retention, i64::MAX, &|_, _| {})).unwrap();
    assert!(plan.doomed.iter().all(|doomed| doomed.why != Why::Tombstone), "{:?}", plan.doomed);
    assert_eq!(log.remote.objects().len(), before);
    let fresh = block_on(Volume::open(&*log.remote, VOLUME, options())).unwrap().volume;
    write(&fresh, 1601);
    let counting = Counting::new(log.remote.clone());
    let pushed = block_on(push(&*counting, &fresh, |_| Bytes::new(), || CommitId([5; 16]), 0)).unwrap();
    assert_eq!(pushed, Pushed::Durable(Lsn(1601)));
    // Who has looked at the log looks no second time.
    assert_eq!((counting.snapshot().requests(), counting.snapshot().creates), (1, 1));
}

/// A compaction that slept right before its create, since before everything: its segments are swept, and
/// its number would be the one after the checkpoint that a fork was made from. Were that free again, the
/// fork would begin at it, and find nothing where its pages should be.
#[test]
fn a_late_compaction_does_not_pass_for_the_checkpoint_of_a_fork() {
    let mut log = Log::new();
    log.grow(3);
    block_on(checkpoint::write(&*log.remote, &log.writer, &log.writer.base(), Bytes::new())).unwrap();
    let late = block_on(Volume::open(&*log.remote, VOLUME, options())).unwrap().volume;
    let id = CommitId([3; 16]);
    let moved = compact::gather(&*log.remote, &late, &ByNumber, Scope::All, id, &|_, _| {});
    let moved = block_on(moved).unwrap();
    assert!(moved.pages() > 0);
    log.grow(4);
    let child = VolumeId([8; 16]);
    block_on(fork::create(&*log.remote, VOLUME, At::Newest, child, &"f".parse().unwrap())).unwrap();
    for n in (200..=4000).step_by(200) {
        log.grow(n);
        log.collect(&*log.remote);
    }
    let segments = key::segments_prefix(VOLUME);
    assert!(log.remote.objects().iter().all(|(key, _)| !key.starts_with(&segments)), "they were swept");
    assert!(log.bottom().seq > Seq(2), "{:?}", log.bottom());
    let base = late.base();
    let published = block_on(compact::publish(&*log.remote, &late, &base, &moved, Bytes::new()));
    assert!(!matches!(published, Ok(checkpoint::Written::Stored { .. })), "{published:?}");
    let fork = block_on(Volume::open(&*log.remote, child, options())).unwrap().volume;
    let tip = fork.tip();
    block_on(fetch(&*log.remote, &fork, &tip, &PageSet::from_iter([page(1)]))).unwrap();
    assert_eq!(fork.read(&tip, page(1)).unwrap()[..8], 4u64.to_le_bytes());
}

/// A process that froze for days after its create had landed unanswered, and thaws: that its commit is read
/// back says nothing of the LSNs after it, which may be free again soon.
#[test]
fn a_push_that_is_read_back_vouches_for_nothing() {
    let mut log = Log::new();
    log.grow(9);
    let store: SharedStore = Arc::new(MemoryStore::new());
    let kept = Options { store: Some(store), locals: Some(Durability::Sync), ..options() };
    let writer = block_on(Volume::open(&*log.remote, VOLUME, kept)).unwrap().volume;
    write(&writer, 10);
    let sealed = writer.seal(1, Bytes::new(), CommitId([6; 16]), log.now_ms()).unwrap().unwrap();
    block_on(log.remote.create(&key::log(VOLUME, Lsn(10)), sealed.body.clone())).unwrap();
    let pulled = block_on(log.writer.pull(&*log.remote)).unwrap();
    log.writer.absorb(pulled).unwrap();
    log.n = 10;
    log.grow(400);
    log.collect(&*log.remote);
    log.grow(2500);
    assert!(log.bottom() == Floor::default());
    sealed.confirmed.sleep();
    let pending = writer.pending().unwrap();
    let done = block_on(publish(&*log.remote, &pending)).unwrap();
    writer.confirm(done).unwrap();
    // Seconds later, what lies after its commit is freed.
    log.collect(&*log.remote);
    assert!(log.bottom().lsn > Lsn(11), "{:?}", log.bottom());
    write(&writer, 666);
    let late = block_on(push(&*log.remote, &writer, |_| Bytes::new(), || CommitId([7; 16]), 0));
    assert!(
        matches!(late, Err(PushError::Publish(PublishError::Forgotten { lsn: Lsn(11), .. }))),
        "{late:?}"
    );
}

/// `graft volume rm` writes its mark, finds that a fork needs the volume, and deletes the mark again: a
/// collection without grace that began before must not take the mark for a floor.
#[test]
fn the_mark_of_a_removal_is_no_floor() {
    let mut log = Log::new();
    log.grow(40);
    let retention = Retention { keep_ms: 0, keep_commits: 100, grace_ms: 0 };
    let publish = block_on(wanted(&*log.remote, VOLUME, retention, log.now_ms())).unwrap();
    let mark = key::closed(VOLUME, 1);
    block_on(log.remote.create(&mark, Bytes::new())).unwrap();
    let plan = sweep_plan(&*log.remote, VOLUME, retention, Burial::after(0), log.now_ms(), publish);
    let plan = block_on(plan);
    assert!(matches!(plan, Err(GcError::Removed { volume: VOLUME })), "{plan:?}");
}

/// The grace is counted from the store's stamp by the collector's clock.
#[test]
fn a_collector_that_is_ahead_by_the_grace_does_not_sweep_what_it_has_just_published() {
    let retention = Retention { keep_ms: 0, keep_commits: 100, grace_ms: 1_000_000 };
    let run = |log: &Log, now_ms| block_on(collect(&*log.remote, VOLUME, retention, now_ms, &|_, _| {}));
    for ahead in [retention.grace_ms, SKEW_MS] {
        let mut log = Log::new();
        log.grow(200);
        let plan = run(&log, log.now_ms() + ahead).unwrap();
        assert!(plan.publish.is_some() && plan.doomed.is_empty(), "{ahead}: {plan:?}");
        log.is_sound();
    }
    let mut log = Log::new();
    log.grow(200);
    let wrong = run(&log, log.now_ms() + SKEW_MS + 1);
    assert!(matches!(wrong, Err(GcError::Clock { ahead_ms, .. }) if ahead_ms == SKEW_MS + 1), "{wrong:?}");
    // Behind by years it only waits.
    log.grow(400);
    let plan = run(&log, 0).unwrap();
    assert!(plan.doomed.is_empty(), "{plan:?}");
}

/// What comes back after the grace deletes what was announced, and announces nothing more.
#[test]
fn a_sweep_of_what_was_announced_announces_nothing() {
    let retention = Retention { keep_ms: 0, keep_commits: 100, grace_ms: STEP_MS };
    let mut log = Log::new();
    let sweep = |log: &Log| {
        block_on(sweep_announced(&*log.remote, VOLUME, retention, log.now_ms(), &|_, _| {})).unwrap()
    };
    log.grow(200);
    assert_eq!(sweep(&log), Plan::default(), "nothing was announced");
    let announced = block_on(collect(&*log.remote, VOLUME, retention, log.now_ms(), &|_, _| {})).unwrap();
    let floor = announced.publish.unwrap();
    assert!(announced.doomed.is_empty());
    log.grow(400);
    let swept = sweep(&log);
    assert_eq!((swept.publish, swept.sweep), (None, floor));
    assert!(swept.doomed.iter().any(|doomed| doomed.why == Why::Commit));
    assert_eq!(block_on(published(&*log.remote, VOLUME)).unwrap(), floor);
    assert_eq!(sweep(&log).doomed, []);
    log.is_sound();
}

/// A collector stands still behind its listing, and another one gives up every checkpoint that is in it:
/// what the newer ones name is not in sight, and must not be taken for garbage.
#[test]
fn a_list_without_a_living_checkpoint_decides_nothing() {
    let mut log = Log::new();
    log.grow(40);
    let inventory = block_on(Inventory::take(&*log.remote, VOLUME, log.now_ms())).unwrap();
    let newest = *inventory.checkpoints.keys().next_back().unwrap();
    let floor = Floor { lsn: Lsn(16), seq: *inventory.checkpoints.keys().next().unwrap() };
    let mark = || block_on(Readable::mark(&*log.remote, VOLUME, &inventory, floor, std::iter::empty()));
    assert!(mark().is_ok_and(|readable| readable.marks.checkpoints.contains(&newest)));
    let above = Floor { lsn: Lsn(48), seq: Seq(newest.0 + 1) };
    let unseen = block_on(Readable::mark(&*log.remote, VOLUME, &inventory, above, std::iter::empty()));
    assert!(matches!(unseen, Err(GcError::Pull(PullError::Expired { .. }))), "a floor that is not listed");
    log.grow(400);
    log.collect(&*log.remote);
    assert!(block_on(history::read_checkpoint(&*log.remote, VOLUME, newest)).is_err(), "it is given up");
    let mark = block_on(Readable::mark(&*log.remote, VOLUME, &inventory, floor, std::iter::empty()));
    assert!(matches!(mark, Err(GcError::Pull(PullError::Expired { .. }))));
    log.is_sound();
}

/// Simulation, seed 20087: the pin of a fork that had been removed long before arrived late. The newest
/// checkpoint below it named a part of the page table in an older one, which was collected already; no
/// collection came to an end any more, and verification called it damage.
#[test]
fn a_late_pin_of_a_state_that_is_half_collected_stops_nobody() {
    let mut log = Log::new();
    log.grow(16);
    // Checkpoint 2 names the page table of checkpoint 1.
    block_on(end_epoch(&*log.remote, VOLUME)).unwrap();
    log.grow(200);
    // A collector announced its floor, and was killed after its first deletion.
    block_on(log.remote.create(&key::horizon(VOLUME, Lsn(96), Seq(6)), Bytes::new())).unwrap();
    let first = key::checkpoint(VOLUME, Seq(1));
    let bury = How::Bury(Of::Checkpoint(Seq(1)));
    let doomed = Doomed { key: first, bytes: 0, why: Why::Checkpoint, how: bury };
    block_on(sweep(&*log.remote, VOLUME, &doomed)).unwrap();
    let pinned = key::fork_pin(VOLUME, VolumeId([77; 16]));
    let pin = Pin { lsn: Lsn(20), seq: None, until_ms: Pin::FOR_EVER };
    block_on(log.remote.create(&pinned, pin.encode(&pinned))).unwrap();
    log.is_sound();
    assert!(!log.collect(&*log.remote).doomed.is_empty());
    log.is_sound();
    assert!(log.remote.objects().iter().all(|(key, _)| *key != pinned), "nobody made that fork");
}

/// A store where a log entry is buried after its first read.
#[derive(Debug)]
struct Buries {
    inner: Arc<MemoryRemote>,
    doomed: Doomed,
    reads: AtomicU32,
}

impl Layer for Buries {
    fn inner(&self) -> &dyn Remote {
        &*self.inner
    }

    fn around<'a, T: Send + 'a>(&'a self, _: Request, key: &'a str, sent: Answer<'a, T>) -> Answer<'a, T> {
        Box::pin(async move {
            let answer = sent.await;
            if key == self.doomed.key && self.reads.fetch_add(1, Relaxed) == 0 {
                sweep(&*self.inner, VOLUME, &self.doomed).await.unwrap();
            }
            answer
        })
    }
}

/// Simulation, seed 20269: a head that takes two requests was collected between them, and called damaged.
#[test]
fn a_long_head_that_is_collected_while_it_is_read_is_gone_and_not_damaged() {
    let remote = Arc::new(MemoryRemote::new());
    let meta = Meta { page_size: PageSize::new(PAGE as u32).unwrap(), parent: None };
    block_on(catalog::create(&*remote, &"v".parse().unwrap(), VOLUME, meta)).unwrap();
    let writer = block_on(Volume::open(&*remote, VOLUME, options())).unwrap().volume;
    write(&writer, 1);
    let long = || Bytes::from(vec![7; 9000]);
    block_on(push(&*remote, &writer, |_| long(), || CommitId([1; 16]), 1)).unwrap();
    let how = How::Bury(Of::Commit(Lsn(1)));
    let doomed = Doomed { key: key::log(VOLUME, Lsn(1)), bytes: 0, why: Why::Commit, how };
    let reads = AtomicU32::new(0);
    let buries = Buries { inner: remote, doomed, reads };
    let read = block_on(read_head(&buries, VOLUME, Lsn(1)));
    assert!(matches!(read, Err(PullError::Expired { lsn: Lsn(1), .. })), "{read:?}");
}
