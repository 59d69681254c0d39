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
//! side by side in one file, it reads the range ahead. And it does not wait until its window is used
//! up: when half of what it asked for was read, the next part is due ([`Leap::onward`]), so that a scan
//! runs as fast as bytes come and not one round trip for each window.
//!
//! Reads without a trend are [`spread`]'s. [`Prefetch`] is the hook for whoever knows better: a page set, a range, or an app's own function.
//!
//! Invariants: no I/O, no clock, no allocation that grows; no input makes it panic.

pub mod spread;

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
    /// What was asked for along the trend, until the trend ends: from behind a page to another.
    frontier: Option<(Trend, i64, i64)>,
    /// Pages asked for along the trend and not read yet.
    waiting: u32,
}

impl Default for Leap {
    fn default() -> Leap {
        Leap {
            deltas: [0; HISTORY],
            next: 0,
            len: 0,
            last: None,
            hits: 0,
            window: 0,
            frontier: None,
            waiting: 0,
        }
    }
}

impl Leap {
    /// A page that was brought unasked was read for the first time.
    pub fn hit(&mut self, page: PageIdx) {
        self.hits(1);
        self.access(page);
    }

    /// So many more were, long enough ago that which ones does not matter.
    pub fn hits(&mut self, count: u32) {
        self.hits = self.hits.saturating_add(count);
        self.waiting = self.waiting.saturating_sub(count);
    }

    /// A read faulted. Answers which pages to fetch with it, at most `window_max`, none past page
    /// `pages`. Where the page was asked for along the trend and is still `under_way`, they lie behind all
    /// that was.
    pub fn fault(&mut self, page: PageIdx, under_way: bool, window_max: u32, pages: u32) -> PageSet {
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
        let Some(trend) = trend else {
            (self.frontier, self.waiting) = (None, 0);
            return PageSet::new();
        };
        let from = i64::from(page.get());
        let between = |first: i64, last: i64| (first.min(last)..=first.max(last)).contains(&from);
        let on = self.frontier.filter(|(then, first, last)| *then == trend && between(*first, *last));
        match on.filter(|_| under_way) {
            Some((_, first, last)) => self.ahead(first, last, trend, pages),
            None => {
                self.waiting = 0;
                self.ahead(from, from, trend, pages)
            }
        }
    }

    /// Half of what was asked for along a trend was read ([`Leap::onward_after`] said when): what to
    /// fetch behind it, at most `window_max` pages. Nothing where the trend ended or has reached an end.
    pub fn onward(&mut self, window_max: u32, pages: u32) -> PageSet {
        let Some((trend, first, last)) = self.frontier.filter(|(then, ..)| self.trend() == Some(*then))
        else {
            self.frontier = None;
            return PageSet::new();
        };
        let hits = std::mem::take(&mut self.hits);
        self.window = self.window.max(hits).saturating_mul(4).clamp(1, window_max.max(1));
        self.ahead(first, last, trend, pages)
    }

    /// Of what was asked for along the trend, so many pages were here before.
    pub fn were_here(&mut self, count: u32) {
        self.waiting = self.waiting.saturating_sub(count);
    }

    /// After how many more first reads the next part along the trend is due; `None` without a trend.
    pub fn onward_after(&self) -> Option<u32> {
        self.frontier.map(|_| (self.waiting - self.waiting.min(self.window / 2)).max(1))
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

    /// The window behind page `from`, which may be beyond either end; `first` is where the run began.
    fn ahead(&mut self, first: i64, from: i64, trend: Trend, pages: u32) -> PageSet {
        let mut set = PageSet::new();
        let window = i64::from(self.window);
        let clip = |at: i64| u32::try_from(at.clamp(0, i64::from(pages))).unwrap_or(pages);
        let end = match trend {
            Trend::Forward | Trend::Stride(1) => {
                if from < i64::from(pages) {
                    set.insert_range(clip(from) + 1, clip(from + window));
                }
                from + window
            }
            Trend::Stride(-1) => {
                set.insert_range(clip((from - window).max(1)), clip(from - 1));
                from - window
            }
            Trend::Stride(delta) => {
                let mut at = from;
                for _ in 0..self.window {
                    at += delta;
                    match u32::try_from(at).ok().filter(|at| *at <= pages).and_then(PageIdx::new) {
                        Some(page) => set.insert(page),
                        None => break,
                    };
                }
                at
            }
        };
        self.waiting = self.waiting.saturating_add(u32::try_from(set.len()).unwrap_or(u32::MAX));
        self.frontier = (!set.is_empty()).then_some((trend, first, end));
        set
    }
}

#[cfg(test)]
mod tests;
