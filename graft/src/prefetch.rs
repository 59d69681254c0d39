//! What to fetch before it is asked for.
//!
//! [`Leap`] is the majority-trend prefetcher of Al Maruf and Chowdhury, "Effectively Prefetching
//! Remote Memory with Leap" (USENIX ATC 2020), for page faults on object storage. It watches the
//! differences between successive accesses and asks which one has the majority, first among the
//! newest few, then among twice as many, up to the whole window of 32: noise does not hide a trend,
//! and a trend that ended is forgotten soon. How far it reads ahead follows what its last prefetch was
//! worth: it grows with pages that were read, and halves when they were not.
//!
//! Two things differ from the paper. Round trips to object storage cost thousands of pages' copying,
//! so the window grows by four times what was read and up to megabytes instead of to eight pages. And
//! where no single difference has the majority but short steps forward do, as when two b-trees grew
//! side by side in one file, it reads the range ahead.
//!
//! [`Prefetch`] is the hook for whoever knows better: a page set, a range, or an app's own function.
//!
//! Invariants: no I/O, no clock, no allocation that grows; no input makes it panic.

use std::fmt;

use crate::ids::PageIdx;
use crate::page_set::PageSet;
use crate::snapshot::Snapshot;

/// Differences remembered.
pub const HISTORY: usize = 32;
/// The first vote is among so many of the newest.
const FIRST_VOTE: usize = 8;
/// Steps forward up to this long count as near.
const NEAR_MAX: i64 = 16;
/// The least window once there is a trend, in pages: one frame.
const WINDOW_MIN: u32 = 64;

/// Names pages to fetch together with those of a fault.
pub trait Prefetch: Send + Sync + fmt::Debug {
    /// More pages, when `fault` is about to be fetched. Pages that are cached or past the end may be
    /// among them. Called at every fetch, so it must be quick.
    fn next(&self, fault: &PageSet, snapshot: &Snapshot) -> PageSet;
}

/// A hint: these pages, with the first fault.
impl Prefetch for PageSet {
    fn next(&self, _fault: &PageSet, _snapshot: &Snapshot) -> PageSet {
        self.clone()
    }
}

/// An app's own function as a [`Prefetch`].
pub struct PrefetchFn<F>(pub F);

impl<F> fmt::Debug for PrefetchFn<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrefetchFn")
    }
}

impl<F: Fn(&PageSet, &Snapshot) -> PageSet + Send + Sync> Prefetch for PrefetchFn<F> {
    fn next(&self, fault: &PageSet, snapshot: &Snapshot) -> PageSet {
        (self.0)(fault, snapshot)
    }
}

/// Which way accesses go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trend {
    /// Every so many pages; negative towards the front, never 0.
    Stride(i64),
    /// In short steps of different lengths towards the end.
    Forward,
}

/// The majority-trend prefetcher of one stream of accesses. See the module.
#[derive(Debug, Clone)]
pub struct Leap {
    /// Differences, as a ring; `next` is where the next one goes.
    deltas: [i64; HISTORY],
    next: usize,
    len: usize,
    last: Option<PageIdx>,
    /// Accesses since the last prefetch that the caches answered.
    hits: u32,
    window: u32,
}

impl Default for Leap {
    fn default() -> Leap {
        Leap { deltas: [0; HISTORY], next: 0, len: 0, last: None, hits: 0, window: 0 }
    }
}

impl Leap {
    /// A page that was brought unasked was read for the first time.
    pub fn hit(&mut self, page: PageIdx) {
        self.hits = self.hits.saturating_add(1);
        self.access(page);
    }

    /// So many more were, long enough ago that which ones does not matter.
    pub fn hits(&mut self, count: u32) {
        self.hits = self.hits.saturating_add(count);
    }

    /// A read faulted. Answers which pages to fetch with it, at most `window_max`, none past page
    /// `pages`.
    pub fn fault(&mut self, page: PageIdx, window_max: u32, pages: u32) -> PageSet {
        self.access(page);
        let trend = self.trend();
        let hits = std::mem::take(&mut self.hits);
        let half = self.window / 2;
        let grown = match trend {
            None => half,
            // The window follows what was read of the last one, and falls by no more than half.
            Some(_) => hits.saturating_mul(4).max(half).max(WINDOW_MIN),
        };
        self.window = grown.min(window_max);
        match trend {
            None => PageSet::new(),
            Some(trend) => self.ahead(page, trend, pages),
        }
    }

    fn access(&mut self, page: PageIdx) {
        if let Some(last) = self.last.replace(page) {
            let delta = i64::from(page.get()) - i64::from(last.get());
            // Reading on in the same page says nothing about the next.
            if delta != 0 {
                self.deltas[self.next] = delta;
                self.next = (self.next + 1) % HISTORY;
                self.len = (self.len + 1).min(HISTORY);
            }
        }
    }

    /// The newest first.
    fn newest(&self, count: usize) -> impl Iterator<Item = i64> + '_ {
        (1..=count.min(self.len)).map(move |back| self.deltas[(self.next + HISTORY - back) % HISTORY])
    }

    /// The trend of the accesses so far, if they have one.
    pub fn trend(&self) -> Option<Trend> {
        let mut count = FIRST_VOTE;
        while count <= HISTORY {
            // Fewer than half a vote's worth of accesses are no trend.
            if self.len >= count / 2 {
                if let Some(delta) = self.majority(count) {
                    return Some(Trend::Stride(delta));
                }
                let voters = count.min(self.len);
                let near = self.newest(count).filter(|delta| (1..=NEAR_MAX).contains(delta)).count();
                if near * 4 > voters * 3 {
                    return Some(Trend::Forward);
                }
            }
            count *= 2;
        }
        None
    }

    /// Boyer and Moore's vote, then the count.
    fn majority(&self, count: usize) -> Option<i64> {
        let (mut candidate, mut lead) = (None, 0u32);
        for delta in self.newest(count) {
            if lead == 0 {
                (candidate, lead) = (Some(delta), 1);
            } else if candidate == Some(delta) {
                lead += 1;
            } else {
                lead -= 1;
            }
        }
        let candidate = candidate?;
        let votes = self.newest(count).filter(|delta| *delta == candidate).count();
        (votes * 2 > count.min(self.len)).then_some(candidate)
    }

    fn ahead(&self, page: PageIdx, trend: Trend, pages: u32) -> PageSet {
        let from = page.get();
        let mut set = PageSet::new();
        match trend {
            Trend::Forward | Trend::Stride(1) => {
                if let Some(first) = from.checked_add(1) {
                    set.insert_range(first, from.saturating_add(self.window).min(pages));
                }
            }
            Trend::Stride(-1) => {
                set.insert_range(from.saturating_sub(self.window), (from - 1).min(pages));
            }
            Trend::Stride(delta) => {
                let mut at = i64::from(from);
                for _ in 0..self.window {
                    at += delta;
                    match u32::try_from(at).ok().filter(|at| *at <= pages).and_then(PageIdx::new) {
                        Some(page) => set.insert(page),
                        None => break,
                    };
                }
            }
        }
        set
    }
}

#[cfg(test)]
mod tests;
