//! Fetching: bringing pages that a read faulted on, and what the prefetcher adds, into a replica's
//! cache.
//!
//! ```text
//!   fault ──► + pages ahead ──► − what is cached ──► frames ──► − frames in flight ──► ranges ──► GETs
//! ```
//!
//! What is fetched ahead follows the trend of the reads ([`Leap`](crate::prefetch::Leap)), or, where
//! there is none, spreads around the misses ([`Spread`](crate::prefetch::spread::Spread)). Along a trend
//! a *stream* goes on in the background: when half of what it brought was read it fetches the next part,
//! and the reader meets pages that are here or under way.
//!
//! A *frame* (at most 64 pages) is the least that is fetched. Frames that lie close together in one
//! object become one ranged GET ([`plan`]): the gap between two of them is at most
//! [`plan::GAP_BYTES_MAX`], and a GET ends with the frame that takes it to [`plan::RANGE_BYTES_MAX`].
//! A GET that a reader waits for is short, and what comes with it lies in others beside it. Readers that
//! miss the same frame at the same time share one request. At most 64 requests of one [`Fetcher`] are
//! under way at once, and 16 MiB of what is fetched ahead; those that somebody waits for go first.
//!
//! | module | holds |
//! | --- | --- |
//! | [`plan`] | from page sets to frames to ranges |
//! | `flights` | what is under way, and sharing it |
//! | [`hedge`] | a second request where the first takes long |
//! | `permits` | how many at once |
//!
//! Costs: one ranged GET for each range; a cold read of one page is one. Before that, what
//! [`crate::chunks`] says, where parts of the page table were not read yet. A hedge is one more.
//!
//! Invariants: what is cached was checked against its hash; a fetch that fails leaves what it had
//! fetched before in the cache, and everything else as it was; that pages ahead could not be fetched
//! is nobody's error. What was moved by a compaction and deleted since is fetched from where it is now
//! ([`crate::replan`]). Retries are the driver's.

pub(crate) mod flights;
pub mod hedge;
mod permits;
pub mod plan;
#[cfg(test)]
pub(crate) mod tests;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use futures::{StreamExt as _, TryStreamExt as _};

use self::flights::Flight;
use self::hedge::Hedge;
use self::permits::Permits;
use self::plan::{Frames, around, cost, frames_of, ranges};
use crate::chunks;
use crate::format::Damaged;
use crate::ids::PageIdx;
use crate::page_set::PageSet;
use crate::prefetch::Prefetch;
use crate::prefetch::spread::Standing;
use crate::remote::{Remote, RemoteError, SharedRemote};
use crate::replan;
use crate::snapshot::{Location, Snapshot};
use crate::store::StoreError;
use crate::volume::Volume;
use crate::volume::cache::{Coming, PageCache};

pub use crate::volume::cache::Metrics;

/// Requests of one fetcher under way at once.
const CONCURRENT_FETCHES: usize = 64;
/// The most that is fetched ahead at once, before compression.
pub const AHEAD_BYTES_MAX: usize = 64 << 20;
/// The most of it along a trend, where half as much again may still be under way.
const STREAM_BYTES_MAX: usize = 32 << 20;
/// Where a part of the page table is read along a trend, the parts of so many more pages come with it.
const TABLE_PAGES_AHEAD: u32 = 64 << 10;
/// A page table of up to so many bytes is read whole before misses are spread.
const SPREAD_TABLE_BYTES_MAX: u64 = 8 << 20;

/// Why pages were not fetched. Those that were are cached.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum FetchError {
    /// The store failed; safe to try again.
    #[error(transparent)]
    Remote(#[from] RemoteError),
    /// A frame is damaged.
    #[error(transparent)]
    Damaged(#[from] Damaged),
    /// The local store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What the snapshot names was deleted by garbage collection, and is nowhere else: the snapshot is
    /// older than what the volume retains.
    #[error(
        "the snapshot expired: `{key}` was deleted by garbage collection; pull, and read the newest state"
    )]
    Expired {
        /// The object that is gone.
        key: String,
    },
}

/// Fetches exactly `pages` of `snapshot` into `volume`'s cache, with the rest of their frames: nothing
/// ahead, nothing shared. For a caller that has a remote of its own for each request; others want a
/// [`Fetcher`].
pub async fn fetch(
    remote: &dyn Remote,
    volume: &Volume,
    snapshot: &Snapshot,
    pages: &PageSet,
) -> Result<(), FetchError> {
    let reseeded = volume.reseeded(snapshot);
    let snapshot = reseeded.as_ref().unwrap_or(snapshot);
    match fetch_now(remote, volume, snapshot, pages).await {
        Ok(()) => Ok(()),
        Err(error) => {
            let moved = replan::elsewhere(remote, volume, snapshot, pages, error).await?;
            fetch_now(remote, volume, &moved, pages).await
        }
    }
}

async fn fetch_now(
    remote: &dyn Remote,
    volume: &Volume,
    snapshot: &Snapshot,
    pages: &PageSet,
) -> Result<(), FetchError> {
    chunks::load(remote, volume, snapshot, pages).await?;
    let missing = volume.missing(snapshot, pages)?;
    let (cache, missing) = (volume.page_cache(), &missing);
    let fetched = ranges(frames_of(snapshot, missing), |_| true).into_iter().map(|range| async move {
        let bytes = remote.get_range(&range.key, range.start..range.end).await?;
        cache.counters.requests.fetch_add(1, Relaxed);
        cache.counters.bytes.fetch_add(bytes.len() as u64, Relaxed);
        for frame in &range.frames {
            cache.put_frame(frame, range.part(frame, &bytes), Coming::Asked, missing)?;
        }
        Ok(())
    });
    futures::stream::iter(fetched).buffer_unordered(CONCURRENT_FETCHES).try_collect().await
}

/// What a [`Fetcher`] fetches beside the pages of a fault.
#[derive(Debug, Clone, Default)]
pub enum Ahead {
    /// What [`crate::prefetch`] makes of the reads so far: along their trend, or around them.
    #[default]
    Leap,
    /// Nothing: exact costs.
    Nothing,
    /// What the app says.
    App(Arc<dyn Prefetch>),
}

/// Fetches for any number of volumes of one remote. Cloning it copies pointers.
///
/// Requests in flight are shared by all that read one [`Volume`], whichever fetcher they use.
#[derive(Clone)]
pub struct Fetcher {
    remote: SharedRemote,
    ahead: Ahead,
    hedge: Option<Hedge>,
    permits: Permits,
    /// Where fetches ahead go on after the fault they came with was served.
    #[cfg(feature = "native")]
    background: Option<tokio::runtime::Handle>,
}

impl fmt::Debug for Fetcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fetcher({}, ahead: {:?}, hedge: {:?})", self.remote.url(), self.ahead, self.hedge)
    }
}

impl Fetcher {
    /// Prefetches by trend, does not hedge. Where a tokio runtime is current it goes on with what is
    /// fetched ahead in the background; elsewhere a fault waits for that too.
    pub fn new(remote: SharedRemote) -> Fetcher {
        Fetcher {
            remote,
            ahead: Ahead::default(),
            hedge: None,
            permits: Permits::new(CONCURRENT_FETCHES),
            #[cfg(feature = "native")]
            background: tokio::runtime::Handle::try_current().ok(),
        }
    }

    /// Fetches ahead as `ahead` says.
    #[must_use]
    pub fn with_ahead(mut self, ahead: Ahead) -> Fetcher {
        self.ahead = ahead;
        self
    }

    /// Sends a second request where the first takes long. Not for directories and memory, where the
    /// second would wait for the same disk.
    #[must_use]
    pub fn with_hedge(mut self, hedge: Hedge) -> Fetcher {
        self.hedge = Some(hedge);
        self
    }

    /// Waits for what is fetched ahead, too, so that costs are exact.
    #[must_use]
    pub fn in_foreground(mut self) -> Fetcher {
        #[cfg(feature = "native")]
        {
            self.background = None;
        }
        self.permits = Permits::new(CONCURRENT_FETCHES);
        self
    }

    /// The remote it fetches from.
    pub fn remote(&self) -> &SharedRemote {
        &self.remote
    }

    /// Serves a fault: brings `pages` of `snapshot` into `volume`'s cache, and what the prefetcher
    /// names beside them.
    ///
    /// # Errors
    ///
    /// [`FetchError`] where one of `pages` could not be fetched. Those that were are cached.
    pub async fn fetch(
        &self,
        volume: &Volume,
        snapshot: &Snapshot,
        pages: &PageSet,
    ) -> Result<(), FetchError> {
        let reseeded = volume.reseeded(snapshot);
        let snapshot = reseeded.as_ref().unwrap_or(snapshot);
        match self.serve(volume, snapshot, pages).await {
            Ok(()) => Ok(()),
            Err(error) => {
                let moved = replan::elsewhere(&*self.remote, volume, snapshot, pages, error).await?;
                self.bring_now(volume, &moved, pages, Coming::Asked, |_| Frames::new()).await
            }
        }
    }

    async fn serve(&self, volume: &Volume, snapshot: &Snapshot, pages: &PageSet) -> Result<(), FetchError> {
        let cache = volume.page_cache();
        if cache.missing(snapshot, pages).is_empty() {
            return Ok(());
        }
        let (ahead, spreads) = self.pages_ahead(cache, snapshot, pages);
        let mut table = ahead.clone();
        table.union_with(pages);
        if let Some(last) = ahead.last()
            && !volume.unloaded(snapshot, &table)?.is_empty()
        {
            // Not with every window: a table that is read by its parts is waited for.
            let far = last.get().saturating_add(TABLE_PAGES_AHEAD).min(snapshot.pages());
            table.insert_range(last.get(), far);
        }
        let bytes = snapshot.checkpoint().map_or(0, |root| root.table_bytes());
        if spreads && bytes <= SPREAD_TABLE_BYTES_MAX {
            table.insert_range(1, snapshot.pages());
        }
        self.load_chunks(volume, snapshot, pages, &table).await?;
        let frames = |wanted: &Frames| {
            let mut frames = frames_of(snapshot, &lacking(cache, snapshot, &ahead));
            if spreads {
                frames.append(&mut spread(cache, snapshot, wanted));
            }
            frames
        };
        self.bring_now(volume, snapshot, pages, Coming::Asked, frames).await?;
        self.go_on(cache, snapshot);
        Ok(())
    }

    /// Along a trend: fetches on in the background as the reader comes nearer to the end of what is here.
    fn go_on(&self, cache: &Arc<PageCache>, snapshot: &Snapshot) {
        #[cfg(feature = "native")]
        if let (Some(runtime), Ahead::Leap) = (&self.background, &self.ahead) {
            let Some(after) = cache.leap.lock().onward_after() else { return };
            let marker = cache.after_first_reads(after);
            let stream = stream(self.clone(), Arc::downgrade(cache), snapshot.clone(), marker);
            runtime.spawn(stream);
        }
        #[cfg(not(feature = "native"))]
        let _ = (cache, snapshot);
    }

    /// Brings exactly `pages` into the cache, with the rest of their frames: query-shaped hydration,
    /// where `pages` is what a query read elsewhere. What is cached is not fetched again.
    pub async fn fetch_pages(
        &self,
        volume: &Volume,
        snapshot: &Snapshot,
        pages: &PageSet,
    ) -> Result<(), FetchError> {
        self.bring(volume, snapshot, pages, Coming::Asked).await
    }

    /// As [`Fetcher::fetch_pages`], for pages that are to be kept rather than read now: where there is
    /// a disk they go there alone and drive nothing out of memory.
    pub async fn keep_pages(
        &self,
        volume: &Volume,
        snapshot: &Snapshot,
        pages: &PageSet,
    ) -> Result<(), FetchError> {
        self.bring(volume, snapshot, pages, Coming::Kept).await
    }

    /// Reads the parts of the page table that say where these pages are. Those ahead are nobody's error.
    async fn load_chunks(
        &self,
        volume: &Volume,
        snapshot: &Snapshot,
        asked: &PageSet,
        ahead: &PageSet,
    ) -> Result<(), FetchError> {
        let mut all = asked.clone();
        all.union_with(ahead);
        match chunks::load(&*self.remote, volume, snapshot, &all).await {
            Ok(()) => Ok(()),
            // It may have been those of the pages ahead, which are nobody's error.
            Err(_) if !ahead.is_empty() => chunks::load(&*self.remote, volume, snapshot, asked).await,
            Err(error) => Err(error),
        }
    }

    /// What to fetch beside a fault: pages, and whether to look around it, too.
    fn pages_ahead(&self, cache: &PageCache, snapshot: &Snapshot, pages: &PageSet) -> (PageSet, bool) {
        let room = cache.room_ahead();
        let (mut ahead, spreads) = match (&self.ahead, pages.first()) {
            (Ahead::Nothing, _) | (Ahead::Leap, None) => return (PageSet::new(), false),
            (Ahead::App(app), _) => (app.next(pages, snapshot), false),
            (Ahead::Leap, Some(page)) => {
                let under_way = is_under_way(cache, snapshot, page);
                let mut leap = cache.leap.lock();
                cache.tell(&mut leap);
                let window = stream_pages(cache, snapshot);
                let ahead = leap.fault(page, under_way, window, snapshot.pages());
                // The read that faulted was counted already.
                let reads = cache.reads().0.saturating_sub(1);
                let spreads = cache.spread.lock().miss(reads, leap.trend().is_some());
                (ahead, spreads)
            }
        };
        ahead.clip(snapshot.pages());
        (bounded(ahead, room), spreads)
    }

    /// Fetches what is missing of `asked` and waits for it. What was moved meanwhile is fetched from
    /// where it is now.
    async fn bring(
        &self,
        volume: &Volume,
        snapshot: &Snapshot,
        asked: &PageSet,
        coming: Coming,
    ) -> Result<(), FetchError> {
        let now = async {
            if volume.missing(snapshot, asked)?.is_empty() {
                return Ok(());
            }
            self.load_chunks(volume, snapshot, asked, &PageSet::new()).await?;
            self.bring_now(volume, snapshot, asked, coming, |_| Frames::new()).await
        };
        match now.await {
            Ok(()) => Ok(()),
            Err(error) => {
                let moved = replan::elsewhere(&*self.remote, volume, snapshot, asked, error).await?;
                self.bring_now(volume, &moved, asked, coming, |_| Frames::new()).await
            }
        }
    }

    /// Fetches what is missing of `asked` and waits for it, and the frames that `ahead` names when it is
    /// told those of the pages asked for. The page table says where all of them are.
    async fn bring_now(
        &self,
        volume: &Volume,
        snapshot: &Snapshot,
        asked: &PageSet,
        coming: Coming,
        ahead: impl FnOnce(&Frames) -> Frames,
    ) -> Result<(), FetchError> {
        let cache = volume.page_cache();
        let asked = Arc::new(volume.missing(snapshot, asked)?);
        let wanted = frames_of(snapshot, &asked);
        let mut frames = ahead(&wanted);
        frames.extend(wanted.iter().map(|(place, frame)| (place.clone(), frame.clone())));
        let (waiting, mut later) = self.launch(cache, frames, &wanted, &asked, coming);
        #[cfg(feature = "native")]
        if let Some(runtime) = &self.background {
            for flight in later.drain(..) {
                runtime.spawn(async move { drop(flight.land().await) });
            }
        }
        let (landed, _) = futures::join!(
            futures::future::join_all(waiting.into_iter().map(Flight::land)),
            futures::future::join_all(later.drain(..).map(Flight::land)),
        );
        for landed in landed {
            landed.check(&wanted)?;
        }
        Ok(())
    }

    /// Starts the requests for `frames` that are neither under way nor here by now. Answers those that bring one of `wanted`,
    /// under way or not, and the others that were started.
    fn launch(
        &self,
        cache: &Arc<PageCache>,
        mut frames: Frames,
        wanted: &Frames,
        asked: &Arc<PageSet>,
        coming: Coming,
    ) -> (Vec<Flight>, Vec<Flight>) {
        let (mut waiting, mut later) = (Vec::new(), Vec::new());
        // Dropped after the lock: one that everybody else left meanwhile takes itself out of the table.
        let mut under_way: Vec<Flight> = Vec::new();
        let mut flights = cache.flights.lock();
        frames.retain(|place, frame| match flights.find(place) {
            // What landed since it was found missing left the table after its pages were cached.
            None => !cache.holds(frame),
            Some(flight) => {
                if wanted.contains_key(place) && flight.is_new_among(&waiting) {
                    cache.counters.shared.fetch_add(1, Relaxed);
                    waiting.push(flight.clone());
                }
                under_way.push(flight);
                false
            }
        });
        for range in ranges(frames, |place| wanted.contains_key(place)) {
            let is_asked = range.frames.iter().any(|frame| wanted.contains_key(&plan::place(frame)));
            let flight = flights.start(
                self.remote.clone(),
                cache.clone(),
                self.permits.clone(),
                self.hedge.clone().filter(|_| is_asked),
                range,
                asked.clone(),
                coming,
                is_asked,
            );
            if is_asked { waiting.push(flight) } else { later.push(flight) }
        }
        drop(flights);
        waiting.iter().for_each(Flight::urge);
        drop(under_way);
        (waiting, later)
    }
}

/// Whether the frame of `page` is being fetched.
fn is_under_way(cache: &PageCache, snapshot: &Snapshot, page: PageIdx) -> bool {
    let Location::Frame(frame, _) = snapshot.location(page) else { return false };
    let flight = cache.flights.lock().find(&plan::place(frame));
    // Dropped here, outside of the lock.
    flight.is_some()
}

/// What is not here of `ahead`, of which the prefetcher hears.
fn lacking(cache: &PageCache, snapshot: &Snapshot, ahead: &PageSet) -> PageSet {
    let missing = cache.missing(snapshot, ahead);
    let here = ahead.len().saturating_sub(missing.len());
    cache.leap.lock().were_here(u32::try_from(here).unwrap_or(u32::MAX));
    missing
}

/// How many pages along a trend are fetched at once.
fn stream_pages(cache: &PageCache, snapshot: &Snapshot) -> u32 {
    let most = STREAM_BYTES_MAX / snapshot.page_size().bytes();
    cache.room_ahead().min(u32::try_from(most).unwrap_or(u32::MAX))
}

/// The frames around those of a fault that [`crate::prefetch::spread`] asks for.
fn spread(cache: &PageCache, snapshot: &Snapshot, wanted: &Frames) -> Frames {
    let Some((at, _)) = wanted.first_key_value() else { return Frames::new() };
    let (room, used) = (cache.room_bytes(), cache.reads().1);
    // Before anything that takes longer the larger the volume is.
    if cache.spread.lock().room(room, used) == 0 {
        return Frames::new();
    }
    let all = PageSet::from_ranges([1..=snapshot.pages()]);
    let mut away = frames_of(snapshot, &cache.missing(snapshot, &all));
    let mut under_way: Vec<Flight> = Vec::new();
    {
        let flights = cache.flights.lock();
        away.retain(|place, _| match flights.find(place) {
            Some(flight) => {
                under_way.push(flight);
                false
            }
            None => !wanted.contains_key(place),
        });
    }
    drop(under_way);
    let left = cost(away.values(), snapshot.page_size());
    let standing = Standing { left, room, used };
    let step = cache.spread.lock().step(standing);
    around(&away, at, step, snapshot.page_size())
}

/// Goes on along a trend until it ends, another fault has a stream of its own, or nobody has the cache.
#[cfg(feature = "native")]
async fn stream(
    fetcher: Fetcher,
    cache: std::sync::Weak<PageCache>,
    snapshot: Snapshot,
    mut marker: futures::channel::oneshot::Receiver<()>,
) {
    let nothing = Arc::new(PageSet::new());
    while marker.await.is_ok() {
        let Some(cache) = cache.upgrade() else { return };
        let ahead = {
            let mut leap = cache.leap.lock();
            cache.tell(&mut leap);
            leap.onward(stream_pages(&cache, &snapshot), snapshot.pages())
        };
        let frames = frames_of(&snapshot, &lacking(&cache, &snapshot, &ahead));
        let Some(after) = cache.leap.lock().onward_after() else { return };
        marker = cache.after_first_reads(after);
        let (_, flights) = fetcher.launch(&cache, frames, &Frames::new(), &nothing, Coming::Ahead);
        for flight in flights {
            tokio::spawn(async move { drop(flight.land().await) });
        }
    }
}

/// The first `most` pages of a set.
fn bounded(mut set: PageSet, most: u32) -> PageSet {
    let mut left = u64::from(most);
    let mut clip = None;
    for run in set.ranges() {
        let pages = u64::from(run.end() - run.start()) + 1;
        if pages > left {
            clip = Some(run.start() + left as u32);
            break;
        }
        left -= pages;
    }
    if let Some(first) = clip {
        set.remove_range(first, u32::MAX);
    }
    set
}

/// Fetches pages for code that cannot wait asynchronously: SQLite's callbacks.
pub trait Fetch: Send + Sync + fmt::Debug {
    /// Brings `pages` of `snapshot` into `volume`'s cache, or says why not. May block.
    fn fetch(&self, volume: &Volume, snapshot: &Snapshot, pages: &PageSet) -> Result<(), FetchError>;
}

/// A [`Fetch`] that blocks on a remote.
#[derive(Debug)]
pub struct RemoteFetch {
    fetcher: Fetcher,
    #[cfg(feature = "native")]
    runtime: Option<tokio::runtime::Handle>,
}

impl RemoteFetch {
    /// Blocks the calling thread, which must not be one that runs tokio tasks. A remote that needs
    /// tokio (S3) is driven by the runtime that is current here. A remote beyond a network is asked
    /// twice where its answer takes long.
    pub fn new(remote: SharedRemote) -> RemoteFetch {
        let fetcher = Fetcher::new(remote);
        #[cfg(feature = "native")]
        if fetcher.background.is_some() && !is_local(&fetcher.remote.url()) {
            return RemoteFetch::with(fetcher.with_hedge(Hedge::native()));
        }
        RemoteFetch::with(fetcher)
    }

    /// The same with a fetcher of the caller's making.
    pub fn with(fetcher: Fetcher) -> RemoteFetch {
        RemoteFetch {
            fetcher,
            #[cfg(feature = "native")]
            runtime: tokio::runtime::Handle::try_current().ok(),
        }
    }

    /// The fetcher inside.
    pub fn fetcher(&self) -> &Fetcher {
        &self.fetcher
    }
}

/// Whether a remote is on this machine.
#[cfg(feature = "native")]
fn is_local(url: &str) -> bool {
    !url.contains("://") || url.starts_with("file://")
}

impl Fetch for RemoteFetch {
    fn fetch(&self, volume: &Volume, snapshot: &Snapshot, pages: &PageSet) -> Result<(), FetchError> {
        let fetch = self.fetcher.fetch(volume, snapshot, pages);
        #[cfg(feature = "native")]
        if let Some(runtime) = &self.runtime {
            return runtime.block_on(fetch);
        }
        futures::executor::block_on(fetch)
    }
}
