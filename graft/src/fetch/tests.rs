//! Exact costs, sharing, hedging, prefetching: against remotes that count, wait and fail.

use std::collections::BTreeMap;
use std::ops::Range as Bounds;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::executor::block_on;
use futures::future::{BoxFuture, FutureExt as _};
use parking_lot::Mutex;
use rand::{Rng, SeedableRng, rngs::StdRng};

use super::hedge::{Patience, Timer};
use super::plan::{GAP_BYTES_MAX, RANGE_BYTES_MAX, plan};
use super::*;
use crate::catalog;
use crate::format::meta::Meta;
use crate::ids::{CommitId, PageIdx, PageSize, VolumeId, VolumeName};
use crate::prefetch::PrefetchFn;
use crate::remote::{Counting, Counts, Layer, MemoryRemote};
use crate::store::{MemoryStore, SharedStore};
use crate::volume::{Change, Options, ReadError, push};

pub(crate) const VOLUME: VolumeId = VolumeId([5; 16]);

pub(crate) fn idx(page: u32) -> PageIdx {
    PageIdx::new(page).unwrap()
}

/// What page `page` holds after round `round`: does not compress, much.
pub(crate) fn content(page: u32, round: u64, size: usize) -> Bytes {
    let mut bytes = vec![0; size];
    let mut state = u64::from(page) << 20 | round;
    for word in bytes.chunks_exact_mut(8) {
        // splitmix64: a seeded generator for each page is too slow for the large volumes here.
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word.copy_from_slice(&(z ^ (z >> 31)).to_le_bytes());
    }
    bytes.into()
}

pub(crate) fn in_memory(cache_bytes: usize) -> Options {
    Options { store: None, locals: None, cache_bytes, ..Options::default() }
}

pub(crate) fn open(remote: &SharedRemote, options: Options) -> Arc<Volume> {
    Arc::new(block_on(Volume::open(&**remote, VOLUME, options)).unwrap().volume)
}

/// Commits and pushes round `round` of these pages.
pub(crate) fn publish(remote: &SharedRemote, writer: &Volume, pages: &PageSet, round: u64) {
    let size = writer.page_size().bytes();
    let changes: BTreeMap<_, _> = pages.iter().map(|page| (page, content(page.get(), round, size))).collect();
    let count = writer.tip().pages().max(pages.last().map_or(0, PageIdx::get));
    writer.commit(&writer.tip(), Change { changes, pages: count, payload: Bytes::new() }).unwrap();
    let mut id = u128::from(round) << 32;
    let ids = || {
        id += 1;
        CommitId(id.to_be_bytes())
    };
    block_on(push(&**remote, writer, |_| Bytes::new(), ids, 1000)).unwrap();
}

/// A volume whose pages `1..=pages` were written by one commit; its remote counts.
pub(crate) fn written(page_size: u32, pages: u32) -> (Arc<Counting>, SharedRemote, Arc<Volume>) {
    let counting = Counting::new(Arc::new(MemoryRemote::new()));
    let remote: SharedRemote = counting.clone();
    let name: VolumeName = "v".parse().unwrap();
    let meta = Meta { page_size: PageSize::new(page_size).unwrap(), parent: None };
    block_on(catalog::create(&*remote, &name, VOLUME, meta)).unwrap();
    let writer = open(&remote, in_memory(64 << 20));
    publish(&remote, &writer, &PageSet::from_ranges([1..=pages]), 1);
    counting.reset();
    (counting, remote, writer)
}

fn exactly(remote: &SharedRemote) -> Fetcher {
    Fetcher::new(remote.clone()).with_ahead(Ahead::Nothing)
}

/// Reads as SQLite does: a page at a time, through a fetcher.
pub(crate) fn read(fetcher: &Fetcher, volume: &Volume, page: u32) -> Bytes {
    let tip = volume.tip();
    for _ in 0..3 {
        match volume.read(&tip, idx(page)) {
            Ok(bytes) => return bytes,
            Err(ReadError::Fault(missing)) => block_on(fetcher.fetch(volume, &tip, &missing)).unwrap(),
            Err(error) => panic!("{error}"),
        }
    }
    panic!("page {page} was fetched and is not here")
}

fn ranged(counts: Counts) -> (u64, u64) {
    assert_eq!(counts.requests(), counts.ranges, "nothing but ranged reads");
    (counts.ranges, counts.bytes_down)
}

#[test]
fn a_cold_read_of_a_page_is_one_get_of_one_frame() {
    let (counting, remote, _) = written(4096, 1000);
    let reader = open(&remote, in_memory(64 << 20));
    counting.reset();
    let tip = reader.tip();
    let frames = plan(&tip, &PageSet::from_ranges([500..=500]), &PageSet::new());
    assert_eq!(frames.len(), 1);
    assert_eq!(read(&exactly(&remote), &reader, 500), content(500, 1, 4096));
    assert_eq!(ranged(counting.reset()), (1, u64::from(frames[0].bytes)));
    // The frame's 64 pages are here: 449 to 512.
    (449..=512).for_each(|page| drop(read(&exactly(&remote), &reader, page)));
    assert_eq!(counting.reset().requests(), 0);
    let metrics = reader.metrics();
    assert_eq!((metrics.requests, metrics.bytes, metrics.misses), (1, u64::from(frames[0].bytes), 1));
    assert_eq!((metrics.memory_hits, metrics.memory_bytes), (65, 64 * 4096));
}

/// Pages of one commit lie one after another: R GETs bring F frames, each GET as many frames as take
/// it to 4 MiB.
#[test]
fn a_cold_scan_costs_one_get_for_each_4_mib() {
    let (counting, remote, _) = written(4096, 5000);
    let reader = open(&remote, in_memory(64 << 20));
    let tip = reader.tip();
    let all = PageSet::from_ranges([1..=5000]);
    let frames = plan(&tip, &all, &PageSet::new());
    assert_eq!(frames.len(), 5000_usize.div_ceil(64));
    let (mut expected, mut open_range) = (0, None::<(&str, u64)>);
    for frame in &frames {
        let fits = open_range.filter(|(key, bytes)| **key == *frame.key && *bytes < RANGE_BYTES_MAX);
        expected += u64::from(fits.is_none());
        open_range = Some((&frame.key, fits.map_or(0, |(_, bytes)| bytes) + u64::from(frame.bytes)));
    }
    counting.reset();
    block_on(exactly(&remote).fetch_pages(&reader, &tip, &all)).unwrap();
    let bytes = frames.iter().map(|frame| u64::from(frame.bytes)).sum::<u64>();
    assert_eq!(ranged(counting.reset()), (expected, bytes));
    // A segment of 16 MiB is four, the 4 MB after it one.
    assert_eq!(expected, 5);
    block_on(exactly(&remote).fetch_pages(&reader, &tip, &all)).unwrap();
    assert_eq!(counting.reset().requests(), 0, "what is here is not fetched again");
}

/// A scan page by page, as SQLite does it: the prefetcher turns 79 faults into a handful.
#[test]
fn a_scan_by_faults_streams() {
    let (counting, remote, _) = written(4096, 5000);
    let reader = open(&remote, in_memory(64 << 20));
    let fetcher = Fetcher::new(remote.clone()).in_foreground();
    counting.reset();
    for page in 1..=5000 {
        assert_eq!(read(&fetcher, &reader, page), content(page, 1, 4096), "{page}");
    }
    let metrics = reader.metrics();
    // 64 | 64 + 252 | 1,264… | the rest.
    assert!(metrics.misses <= 5, "{metrics:?}");
    assert!(counting.reset().ranges <= 12, "{metrics:?}");
    assert_eq!(metrics.prefetch_used, metrics.prefetch_issued);
    assert_eq!((metrics.prefetch_wasted, metrics.shared), (0, 0));
    assert_eq!(metrics.prefetch_issued, 5000 - 64 * metrics.misses, "all but the frames of faults");
}

#[test]
fn frames_far_apart_are_apart_and_near_ones_together() {
    let (counting, remote, _) = written(4096, 1280);
    let reader = open(&remote, in_memory(64 << 20));
    counting.reset();
    // 64 incompressible pages are 256 KiB, more than the gap; 16 frames apart is two requests.
    const { assert!(GAP_BYTES_MAX < 256 << 10) };
    let pages = PageSet::from_ranges([1..=1, 65..=65, 700..=700]);
    block_on(exactly(&remote).fetch_pages(&reader, &reader.tip(), &pages)).unwrap();
    assert_eq!(counting.reset().ranges, 2);
}

#[test]
fn a_query_shaped_fetch_brings_its_reads_less_what_is_had() {
    let (_, remote, writer) = written(512, 300);
    let tip = writer.tip();
    let reads = PageSet::from_ranges([10..=20, 100..=100, 290..=400]);
    let have = PageSet::from_ranges([1..=64]);
    let pages: Vec<u32> = plan(&tip, &reads, &have).iter().map(|f| f.slots[0].page.get()).collect();
    assert_eq!(pages, [65, 257], "frames of pages 100 and 290 to 300; 10 to 20 are had, the rest is no page");
    let _ = remote;
}

/// What a [`Hooked`] remote does before it reads a range, and to what was read.
#[async_trait]
trait Hook: Send + Sync + std::fmt::Debug {
    async fn before(&self, key: &str, range: &Bounds<u64>) -> Result<(), RemoteError>;
    fn after(&self, _range: &Bounds<u64>, _bytes: &mut Vec<u8>) {}
}

/// A remote whose ranged reads go through a hook.
#[derive(Debug)]
struct Hooked<H> {
    inner: SharedRemote,
    hook: H,
}

impl<H: Hook + 'static> Hooked<H> {
    fn of(inner: &SharedRemote, hook: H) -> Arc<Hooked<H>> {
        Arc::new(Hooked { inner: inner.clone(), hook })
    }
}

#[async_trait]
impl<H: Hook> Layer for Hooked<H> {
    fn inner(&self) -> &dyn Remote {
        &*self.inner
    }
    async fn get_range(&self, key: &str, range: Bounds<u64>) -> Result<Bytes, RemoteError> {
        self.hook.before(key, &range).await?;
        let mut bytes = self.inner.get_range(key, range.clone()).await?.to_vec();
        self.hook.after(&range, &mut bytes);
        Ok(bytes.into())
    }
}

/// Lets reads through once it is opened.
#[derive(Debug, Default)]
struct Gate {
    open: Mutex<bool>,
    waiting: Mutex<Vec<futures::channel::oneshot::Sender<()>>>,
}

impl Gate {
    fn open(&self) {
        *self.open.lock() = true;
        self.waiting.lock().drain(..).for_each(|waiter| _ = waiter.send(()));
    }
}

#[async_trait]
impl Hook for Gate {
    async fn before(&self, _key: &str, _range: &Bounds<u64>) -> Result<(), RemoteError> {
        let waiter = {
            let (sender, waiter) = futures::channel::oneshot::channel();
            let open = self.open.lock();
            if !*open {
                self.waiting.lock().push(sender);
            }
            (!*open).then_some(waiter)
        };
        if let Some(waiter) = waiter {
            _ = waiter.await;
        }
        Ok(())
    }
}

#[test]
fn readers_of_one_frame_share_its_request() {
    let (counting, remote, _) = written(4096, 640);
    let gate = Hooked::of(&remote, Gate::default());
    let reader = open(&remote, in_memory(64 << 20));
    counting.reset();
    let tip = reader.tip();
    // Two fetchers: what is shared is by volume. Pages 1 to 3 are of one frame, 70 is of another.
    let fetchers = [exactly(&(gate.clone() as SharedRemote)), exactly(&(gate.clone() as SharedRemote))];
    let sets: Vec<PageSet> =
        [1..=1, 2..=2, 3..=3, 3..=70].into_iter().map(|r| PageSet::from_ranges([r])).collect();
    let mut waiting: Vec<_> =
        (0..).zip(&sets).map(|(n, set)| fetchers[n % 2].fetch(&reader, &tip, set).boxed()).collect();
    for fetch in &mut waiting {
        assert!(fetch.now_or_never_ref().is_none());
    }
    gate.hook.open();
    for fetch in waiting {
        block_on(fetch).unwrap();
    }
    assert_eq!(counting.reset().ranges, 2, "one for each frame");
    assert_eq!(reader.metrics().shared, 3);
    assert!(
        reader
            .page_cache()
            .flights
            .lock()
            .find(&plan::place(&plan(&tip, &sets[0], &PageSet::new())[0]))
            .is_none()
    );
}

/// Polls a boxed future once and keeps it.
trait Poll {
    fn now_or_never_ref(&mut self) -> Option<Result<(), FetchError>>;
}
impl Poll for BoxFuture<'_, Result<(), FetchError>> {
    fn now_or_never_ref(&mut self) -> Option<Result<(), FetchError>> {
        self.now_or_never()
    }
}

/// A reader that gives up takes nothing from those who wait for the same frame, and the last one to
/// leave ends the request.
#[test]
fn a_reader_that_leaves_does_not_disturb_the_others() {
    let (counting, remote, _) = written(4096, 64);
    let gate = Hooked::of(&remote, Gate::default());
    let reader = open(&remote, in_memory(64 << 20));
    counting.reset();
    let tip = reader.tip();
    let fetcher = exactly(&(gate.clone() as SharedRemote));
    let page = PageSet::from_ranges([1..=1]);
    let mut first = fetcher.fetch(&reader, &tip, &page).boxed();
    let mut second = fetcher.fetch(&reader, &tip, &page).boxed();
    assert!(first.now_or_never_ref().is_none() && second.now_or_never_ref().is_none());
    drop(first);
    gate.hook.open();
    block_on(second).unwrap();
    assert_eq!(counting.reset().ranges, 1);

    let again = open(&remote, in_memory(64 << 20));
    let gate = Hooked::of(&remote, Gate::default());
    let fetcher = exactly(&(gate.clone() as SharedRemote));
    let tip = again.tip();
    let mut only = fetcher.fetch(&again, &tip, &page).map(drop).boxed();
    assert!((&mut only).now_or_never().is_none());
    drop(only);
    assert!(gate.hook.waiting.lock()[0].is_canceled(), "nobody waits, nothing is under way");
    gate.hook.open();
    assert_eq!(read(&fetcher, &again, 1), content(1, 1, 4096));
}

/// What could not be fetched ahead is no error of the fault it came with.
#[test]
fn pages_ahead_that_fail_or_are_damaged_disturb_nobody() {
    let (_, remote, _) = written(512, 6400);
    let reader = open(&remote, in_memory(64 << 20));
    let tip = reader.tip();
    let ahead = PageSet::from_ranges([3000..=3000, 65..=65]);
    let frames = plan(&tip, &ahead, &PageSet::new());
    // Page 65's frame comes in one range with page 1's.
    let damaged = Hooked::of(&remote, Damaging { offset: frames[0].offset, fail_above: 1 << 20 });
    let fetcher = Fetcher::new(damaged).with_ahead(Ahead::App(Arc::new(ahead))).in_foreground();
    assert_eq!(read(&fetcher, &reader, 1), content(1, 1, 512));
    assert_eq!(reader.metrics().requests, 2);
    let error = block_on(fetcher.fetch(&reader, &tip, &PageSet::from_ranges([65..=65]))).unwrap_err();
    assert!(matches!(error, FetchError::Damaged(_)), "{error}");
    let error = block_on(fetcher.fetch(&reader, &tip, &PageSet::from_ranges([3000..=3000]))).unwrap_err();
    assert!(matches!(error, FetchError::Remote(_)), "{error}");
}

/// Flips a byte of the frame at `offset`, and fails what begins at `fail_above` or later.
#[derive(Debug)]
struct Damaging {
    offset: u64,
    fail_above: u64,
}

#[async_trait]
impl Hook for Damaging {
    async fn before(&self, key: &str, range: &Bounds<u64>) -> Result<(), RemoteError> {
        if range.start < self.fail_above {
            return Ok(());
        }
        Err(RemoteError::Unavailable { key: key.into(), message: "as told".into() })
    }
    fn after(&self, range: &Bounds<u64>, bytes: &mut Vec<u8>) {
        if range.contains(&self.offset) {
            bytes[(self.offset - range.start) as usize + 20] ^= 1;
        }
    }
}

#[test]
fn an_apps_own_function_says_what_comes_along() {
    let (counting, remote, _) = written(4096, 1280);
    let reader = open(&remote, in_memory(64 << 20));
    counting.reset();
    let profile = |fault: &PageSet, _: &Snapshot| {
        if fault.contains(idx(1)) { PageSet::from_ranges([1000..=1010]) } else { PageSet::new() }
    };
    let fetcher =
        Fetcher::new(remote.clone()).with_ahead(Ahead::App(Arc::new(PrefetchFn(profile)))).in_foreground();
    read(&fetcher, &reader, 1);
    assert_eq!(counting.reset().ranges, 2);
    (1000..=1010).for_each(|page| drop(read(&fetcher, &reader, page)));
    assert_eq!(counting.reset().ranges, 0);
    let metrics = reader.metrics();
    assert_eq!((metrics.prefetch_issued, metrics.prefetch_used), (64, 11));
}

/// Who sleeps until when.
type Sleepers = Vec<(Duration, futures::channel::oneshot::Sender<()>)>;

/// A clock that a test moves; sleepers wake when it passes them.
#[derive(Debug, Default)]
struct TestTimer {
    state: Mutex<(Duration, Sleepers)>,
}

impl TestTimer {
    fn advance(&self, by: Duration) {
        let mut state = self.state.lock();
        state.0 += by;
        let now = state.0;
        let (due, later) = std::mem::take(&mut state.1).into_iter().partition(|(at, _)| *at <= now);
        state.1 = later;
        drop(state);
        let due: Vec<(Duration, futures::channel::oneshot::Sender<()>)> = due;
        due.into_iter().for_each(|(_, waker)| _ = waker.send(()));
    }
}

impl Timer for TestTimer {
    fn now(&self) -> Duration {
        self.state.lock().0
    }
    fn sleep(&self, time: Duration) -> BoxFuture<'static, ()> {
        let (sender, waiter) = futures::channel::oneshot::channel();
        let mut state = self.state.lock();
        let at = state.0 + time;
        state.1.push((at, sender));
        waiter.map(drop).boxed()
    }
}

/// The first request hangs for ever, all others are answered at once.
#[derive(Debug, Default)]
struct FirstHangs {
    asked: AtomicUsize,
}

#[async_trait]
impl Hook for FirstHangs {
    async fn before(&self, _key: &str, _range: &Bounds<u64>) -> Result<(), RemoteError> {
        if self.asked.fetch_add(1, SeqCst) == 0 {
            futures::future::pending::<()>().await;
        }
        Ok(())
    }
}

#[test]
fn a_request_that_hangs_is_sent_again_and_the_first_answer_counts() {
    let (_, remote, _) = written(4096, 64);
    let reader = open(&remote, in_memory(64 << 20));
    let timer = Arc::new(TestTimer::default());
    let hangs = Hooked::of(&remote, FirstHangs::default());
    let patience = Patience::Fixed(Duration::from_millis(80));
    let fetcher = exactly(&(hangs.clone() as SharedRemote)).with_hedge(Hedge::new(patience, timer.clone()));
    let tip = reader.tip();
    let page = PageSet::from_ranges([1..=1]);
    let mut fetch = fetcher.fetch(&reader, &tip, &page).boxed();
    assert!(fetch.now_or_never_ref().is_none());
    timer.advance(Duration::from_millis(79));
    assert!(fetch.now_or_never_ref().is_none());
    assert_eq!(hangs.hook.asked.load(SeqCst), 1, "not before its time");
    timer.advance(Duration::from_millis(1));
    fetch.now_or_never_ref().expect("the second answered").unwrap();
    let metrics = reader.metrics();
    assert_eq!((metrics.requests, metrics.hedges, metrics.hedges_won), (2, 1, 1));
}

#[test]
fn patience_follows_the_slowest_twentieth() {
    let timer = Arc::new(TestTimer::default());
    let patience = Patience::P95 { at_least: Duration::from_millis(5) };
    let hedge = Hedge::new(patience, timer);
    assert_eq!(hedge.after(), None, "nothing is known yet");
    (1..=19).for_each(|_| hedge.record(Duration::from_millis(1)));
    assert_eq!(hedge.after(), None);
    (0..81).for_each(|n| hedge.record(Duration::from_millis(n)));
    // The newest hundred: 19 of 1 ms, and 0 to 80 ms.
    assert_eq!(hedge.after(), Some(Duration::from_millis(75)));
    (0..100).for_each(|_| hedge.record(Duration::from_millis(1)));
    assert_eq!(hedge.after(), Some(Duration::from_millis(5)));
}

/// Any reads, writes by others, restarts and budgets: every page reads as the log says, memory and
/// disk stay within their budgets.
#[test]
fn reads_through_any_cache_are_right_and_within_budget() {
    for seed in 0..12 {
        let mut rng = StdRng::seed_from_u64(seed);
        let page_size = 512 << rng.random_range(0..4);
        let pages = rng.random_range(100..1500);
        let (_, remote, writer) = written(page_size, pages);
        let mut rounds = vec![1; pages as usize + 1];
        let store: Option<SharedStore> = if rng.random() { Some(Arc::new(MemoryStore::new())) } else { None };
        let (cache_bytes, disk_bytes) =
            (rng.random_range(1..200) * page_size as usize, rng.random_range(1..1 << 20));
        let options = || Options { store: store.clone(), locals: None, cache_bytes, disk_bytes };
        let mut reader = open(&remote, options());
        let fetcher = Fetcher::new(remote.clone()).in_foreground();
        let mut at = 1;
        for step in 0..300 {
            match rng.random_range(0..30) {
                0 => {
                    let first = rng.random_range(1..=pages);
                    let last = (first + rng.random_range(0..100)).min(pages);
                    publish(&remote, &writer, &PageSet::from_ranges([first..=last]), step + 2);
                    (first..=last).for_each(|page| rounds[page as usize] = step + 2);
                }
                1 => {
                    drop(reader);
                    reader = open(&remote, options());
                }
                _ => {}
            }
            let pulled = block_on(reader.pull(&*remote)).unwrap();
            reader.absorb(pulled).unwrap();
            at = if rng.random_bool(0.7) { at % pages + 1 } else { rng.random_range(1..=pages) };
            let expected = content(at, rounds[at as usize], page_size as usize);
            assert_eq!(read(&fetcher, &reader, at), expected, "seed {seed}, step {step}, page {at}");
            let metrics = reader.metrics();
            assert!(metrics.memory_bytes <= cache_bytes as u64, "seed {seed}: {metrics:?}");
            assert!(metrics.disk_bytes <= disk_bytes, "seed {seed}: {metrics:?}");
        }
    }
}

/// Rows here and there of what would be a database of a million: misses grow into ranges around them
/// until everything is here or under way, instead of a round trip for each row.
#[test]
fn random_reads_become_few_round_trips() {
    const PAGES: u32 = 28_000;
    let (counting, remote, _) = written(4096, PAGES);
    for seed in 0..3 {
        let mut rng = StdRng::seed_from_u64(seed);
        let reader = open(&remote, in_memory(256 << 20));
        let fetcher = Fetcher::new(remote.clone()).in_foreground();
        counting.reset();
        for _ in 0..100 {
            let page = rng.random_range(1..=PAGES);
            assert_eq!(read(&fetcher, &reader, page), content(page, 1, 4096), "seed {seed}");
        }
        let metrics = reader.metrics();
        let counts = counting.reset();
        assert!(metrics.misses <= 9, "seed {seed}: {metrics:?}");
        assert!(counts.ranges <= 48, "seed {seed}: {counts:?}");
        // Nothing comes twice.
        assert!(counts.bytes_down <= u64::from(PAGES) * 4160, "seed {seed}: {counts:?}");
    }
}

/// What a question costs: its pages' frames, and not a byte beside them. Seven is an update by key of a
/// row with an index, and one to spare.
#[test]
fn the_first_seven_misses_bring_their_frames_alone() {
    for pages in [1050, 20_000] {
        let (counting, remote, _) = written(4096, pages);
        let reader = open(&remote, in_memory(256 << 20));
        let fetcher = Fetcher::new(remote.clone()).in_foreground();
        counting.reset();
        let tip = reader.tip();
        let frames = |page| plan(&tip, &PageSet::from_ranges([page..=page]), &PageSet::new());
        let bytes = |page| frames(page).iter().map(|frame| u64::from(frame.bytes)).sum::<u64>();
        for page in [2, 900, 150, 300, 800, 550, 700] {
            let page = page * (pages / 1050);
            read(&fetcher, &reader, page);
            assert_eq!(ranged(counting.reset()), (1, bytes(page)), "page {page} of {pages}");
        }
        read(&fetcher, &reader, 400 * (pages / 1050));
        let (requests, bytes) = ranged(counting.reset());
        if pages == 1050 {
            // Nine of its seventeen frames, in ranges between those that are here, and the one asked for.
            assert_eq!((requests, reader.metrics().prefetch_issued), (8, 1050 - 8 * 64));
        } else {
            // 64 MiB at most, and half of what is not here: ranges of at most 4 MiB and a frame.
            assert!(requests <= 20 && bytes <= (40 << 20) + 3 * (260 << 10), "{requests}, {bytes} bytes");
        }
    }
}

/// A volume that a few requests bring comes whole, and what a reader asks meanwhile is under way.
#[test]
fn a_small_volume_comes_whole() {
    let (counting, remote, _) = written(4096, 3200);
    let reader = open(&remote, in_memory(64 << 20));
    let fetcher = Fetcher::new(remote.clone()).in_foreground();
    counting.reset();
    for page in [1, 2000, 700, 3, 1234, 3199, 64, 2500, 300, 1800, 900, 100, 2900, 1500] {
        read(&fetcher, &reader, page);
    }
    assert_eq!(reader.metrics().misses, 8);
    assert!(counting.reset().ranges <= 7 + 9);
}

/// Where tokio runs, the stream fetches before the reader comes: hardly a fault waits for a whole window.
#[cfg(feature = "native")]
#[test]
fn a_scan_streams_in_the_background() {
    let (counting, remote, _) = written(4096, 16_000);
    let reader = open(&remote, in_memory(256 << 20));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let fetch = {
        let _entered = runtime.enter();
        RemoteFetch::new(remote.clone())
    };
    counting.reset();
    let tip = reader.tip();
    let mut faults = 0;
    for page in 1..=16_000 {
        let found = loop {
            match reader.read(&tip, idx(page)) {
                Ok(bytes) => break bytes,
                Err(ReadError::Fault(missing)) => {
                    faults += 1;
                    fetch.fetch(&reader, &tip, &missing).unwrap();
                }
                Err(error) => panic!("{error}"),
            }
        };
        assert_eq!(found, content(page, 1, 4096), "{page}");
    }
    let (requests, bytes) = ranged(counting.reset());
    let metrics = reader.metrics();
    // Each of four segments in ranges of 4 MiB, and the small ones of faults.
    assert!(requests <= 16 + 2 * faults + 8, "{requests} requests, {faults} faults, {metrics:?}");
    assert!(bytes <= 16_000 * 4100, "nothing comes twice: {bytes}");
    assert!(metrics.prefetch_used >= 15_000, "{metrics:?}");
}

/// A fork in the same data directory reads what its parent left there, and only that: the pages that the
/// parent wrote after the fork have the same numbers and are others.
#[test]
fn a_fork_reads_its_parents_file() {
    let (counting, remote, writer) = written(4096, 640);
    let store: SharedStore = Arc::new(MemoryStore::new());
    let options = || Options { store: Some(store.clone()), locals: None, ..Options::default() };
    let child = VolumeId([6; 16]);
    let name: VolumeName = "w".parse().unwrap();
    block_on(crate::fork::create(&*remote, VOLUME, crate::time::At::Newest, child, &name)).unwrap();
    publish(&remote, &writer, &PageSet::from_ranges([1..=1]), 2);
    {
        let parent = open(&remote, options());
        let tip = parent.tip();
        block_on(exactly(&remote).fetch_pages(&parent, &tip, &PageSet::from_ranges([1..=320]))).unwrap();
    }
    let fork = |options| Arc::new(block_on(Volume::open(&*remote, child, options)).unwrap().volume);
    publish(&remote, &fork(in_memory(64 << 20)), &PageSet::from_ranges([1..=1]), 3);
    let fork = fork(options());
    counting.reset();
    for page in 2..=320 {
        assert_eq!(read(&exactly(&remote), &fork, page), content(page, 1, 4096), "{page}");
    }
    assert_eq!(counting.reset().requests(), 0);
    assert_eq!(read(&exactly(&remote), &fork, 1), content(1, 3, 4096));
    assert_eq!(read(&exactly(&remote), &fork, 321), content(321, 1, 4096));
    assert_eq!(counting.reset().requests(), 2);
}
