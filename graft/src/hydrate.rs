//! Hydration: bringing every page of a volume here, once or from then on.
//!
//! Goes through the volume in windows, three at a time, so that memory is bounded by their size and
//! not by the volume's. What is cached already is not fetched again: a hydration that was interrupted,
//! by an error or by the end of its process, goes on where it was when it is started again. Pages come
//! in the coalesced ranges of [`crate::fetch`]; where the replica has a disk they go there and drive
//! nothing out of memory.
//!
//! *Following* is a pull, then fetching what it changed: [`follow`] does one round, and its driver
//! decides when the next is due.
//!
//! Invariants: a hydration that ends well leaves every stored page of its snapshot in the cache, on disk where
//! the replica has one; one whose volume cannot fit is refused as soon as that is known, and what it fetched
//! stays.

use futures::StreamExt as _;

use crate::chunks;
use crate::fetch::plan::stored_pages;
use crate::fetch::{FetchError, Fetcher};
use crate::page_set::PageSet;
use crate::pull::PullError;
use crate::snapshot::Snapshot;
use crate::store::StoreError;
use crate::volume::Volume;

/// Bytes of pages in one window.
const WINDOW_BYTES: usize = 16 << 20;
/// Windows under way at once.
const WINDOWS: usize = 3;

/// How far a hydration is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub struct Progress {
    /// Pages of the snapshot.
    pub pages: u32,
    /// Of these, passed: they are here, or nothing is stored for them.
    pub done: u32,
    /// Of these, fetched by this hydration.
    pub fetched: u64,
}

/// Why a volume is not wholly here. What was fetched stays.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum HydrateError {
    /// See there; hydrate again, and it goes on.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// The volume is larger than the cache may become.
    #[error(
        "the volume has more than {room_bytes} bytes of pages, which is all that may be cached; give a larger budget (disk_bytes with a data directory, cache_bytes without)"
    )]
    TooSmall {
        /// What fits.
        room_bytes: u64,
    },
    /// The log could not be read.
    #[error(transparent)]
    Pull(#[from] PullError),
    /// The local store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Brings every stored page of `snapshot` into the cache; `progress` is told after each window.
///
/// Costs the ranges of what is missing: for pages that lie one after another in segments of S bytes,
/// one GET for each 4 MiB of each segment.
pub async fn hydrate(
    fetcher: &Fetcher,
    volume: &Volume,
    snapshot: &Snapshot,
    progress: &mut (dyn FnMut(Progress) + Send),
) -> Result<Progress, HydrateError> {
    let pages = snapshot.pages();
    bring(fetcher, volume, snapshot, &PageSet::from_ranges([1..=pages]), progress).await
}

/// One round of following: pulls, and fetches what that changed. Answers the graft: empty where
/// nothing was new, or where local commits hold the replica at its base.
///
/// `missed`: what an earlier round could not fetch is tried again, by giving its error's graft here; an
/// empty set else. After a whole [`hydrate`] every page of the tip is here after every round that
/// ends well.
pub async fn follow(
    fetcher: &Fetcher,
    volume: &Volume,
    missed: &mut PageSet,
    progress: &mut (dyn FnMut(Progress) + Send),
) -> Result<PageSet, HydrateError> {
    let pulled = volume.pull(&**fetcher.remote()).await?;
    let graft = volume.absorb(pulled)?;
    missed.union_with(&graft);
    if !missed.is_empty() {
        let snapshot = volume.tip();
        missed.clip(snapshot.pages());
        bring(fetcher, volume, &snapshot, missed, progress).await?;
        *missed = PageSet::new();
    }
    Ok(graft)
}

async fn bring(
    fetcher: &Fetcher,
    volume: &Volume,
    snapshot: &Snapshot,
    pages: &PageSet,
    progress: &mut (dyn FnMut(Progress) + Send),
) -> Result<Progress, HydrateError> {
    let cache = volume.page_cache();
    cache.begin_keeping();
    let room = cache.capacity_pages() as u64;
    let page_bytes = snapshot.page_size().bytes();
    let window = u32::try_from(WINDOW_BYTES / page_bytes).unwrap_or(u32::MAX).max(1);
    let mut state = Progress { pages: u32::try_from(pages.len()).unwrap_or(u32::MAX), ..Progress::default() };
    let mut stored = 0;
    let mut fetched = futures::stream::iter(windows(pages, window))
        .map(|range| async move {
            let set = PageSet::from_ranges([range.clone()]);
            chunks::load(&**fetcher.remote(), volume, snapshot, &set).await?;
            let missing = volume.missing(snapshot, &set).map_err(FetchError::from)?.len();
            if missing <= room {
                fetcher.keep_pages(volume, snapshot, &set).await?;
                cache.keep(snapshot, &set)?;
            }
            let there = stored_pages(snapshot, &set);
            Ok::<_, HydrateError>((range.end() - range.start() + 1, missing, there))
        })
        .buffered(WINDOWS);
    while let Some(window) = fetched.next().await {
        let (passed, missing, there) = window?;
        stored += there;
        if stored > room {
            return Err(HydrateError::TooSmall { room_bytes: room * page_bytes as u64 });
        }
        state.done += passed;
        state.fetched += missing;
        progress(state);
    }
    Ok(state)
}

/// The runs of a set, cut into windows.
fn windows(pages: &PageSet, window: u32) -> impl Iterator<Item = std::ops::RangeInclusive<u32>> + '_ {
    pages.ranges().flat_map(move |run| {
        let (first, last) = (*run.start(), *run.end());
        (0..=(last - first) / window).map(move |n| {
            let from = first + n * window;
            from..=from.saturating_add(window - 1).min(last)
        })
    })
}

#[cfg(test)]
mod tests;
