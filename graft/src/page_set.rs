//! `PageSet`: a set of page indexes, and the algebra that the whole design rests on.
//!
//! In memory a set is its *runs*: maximal ranges of consecutive pages, in a map from first to
//! last. So a whole database is one run, and every operation costs runs, never pages. That bound
//! is what makes it safe to compute with sets that somebody else encoded: 25 bytes may describe
//! four billion pages.
//!
//! Encoded, a set is a *splinter*, the format of the crate `splinter-rs`, which writes it. What is
//! read comes from a store and is hostile, so it is read by our own [`codec`]: the crate's reader
//! panics on crafted bytes, and where two sets are stored in different ways its operations visit
//! every page (see `a_hostile_set_costs_its_runs_not_its_pages`). The codec also writes where the
//! crate cannot: on 32-bit targets, and sets so large that visiting their pages would cost too much.
//! Property tests hold the two against each other in both directions; the reasons and figures are in
//! `docs/decisions/0003-page-sets-as-runs.md`.
//!
//! A set that is only asked, not computed with, need not be decoded: [`EncodedSet`] reads it in place.
//!
//! Invariants: runs are not empty, ascend, and do not touch; 0 is in none. Equal sets are equal
//! values, and on one target equal bytes.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::RangeInclusive;

use bytes::Bytes;

use crate::ids::PageIdx;

mod codec;
mod encoded;

pub use self::encoded::EncodedSet;
pub(crate) use self::encoded::{Summary, check};

/// A set with more pages is encoded by our own codec, whose cost does not grow with them.
#[cfg(target_pointer_width = "64")]
const SPLINTER_PAGES_MAX: u64 = 1 << 14;

/// A set of page indexes.
///
/// Costs below are in runs: *n* of this set, *m* of the other.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct PageSet {
    /// First page of each run → its last.
    runs: BTreeMap<u32, u32>,
}

/// Bytes were not an encoded page set.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("damaged page set: {reason}")]
pub struct PageSetError {
    /// What did not hold.
    pub reason: &'static str,
}

impl PageSet {
    /// The empty set.
    pub fn new() -> PageSet {
        PageSet::default()
    }

    /// The pages of all these ranges; 0 and empty ranges are skipped.
    pub fn from_ranges(ranges: impl IntoIterator<Item = RangeInclusive<u32>>) -> PageSet {
        let mut set = PageSet::new();
        for range in ranges {
            set.insert_range(*range.start(), *range.end());
        }
        set
    }

    /// Adds `page`; says whether it was new. O(log n).
    pub fn insert(&mut self, page: PageIdx) -> bool {
        let new = !self.contains(page);
        if new {
            self.insert_range(page.get(), page.get());
        }
        new
    }

    /// Adds every page of `first..=last`; nothing if `first > last`. 0 is skipped.
    /// O(log n) and the runs it swallows, however wide.
    pub fn insert_range(&mut self, first: u32, last: u32) {
        let mut first = first.max(1);
        let mut last = last;
        if first > last {
            return;
        }
        // A run that reaches `first` or ends just before it becomes part of the new one…
        if let Some((&start, &end)) = self.runs.range(..=first).next_back()
            && end >= first - 1
        {
            first = start;
            last = last.max(end);
        }
        // …and so do those that start within it or just after it.
        while let Some((&start, &end)) = self.runs.range(first..=last.saturating_add(1)).next() {
            self.runs.remove(&start);
            last = last.max(end);
        }
        self.runs.insert(first, last);
    }

    /// Removes `page`; says whether it was there. O(log n).
    pub fn remove(&mut self, page: PageIdx) -> bool {
        let there = self.contains(page);
        if there {
            self.remove_range(page.get(), page.get());
        }
        there
    }

    /// Removes every page of `first..=last`. O(log n) and the runs it cuts away.
    pub fn remove_range(&mut self, first: u32, last: u32) {
        if first > last {
            return;
        }
        loop {
            // Each round ends one run that reaches into the range, so there is a last round.
            let Some((start, end)) = self.overlaps(first, last).next() else { return };
            self.runs.remove(&start);
            if start < first {
                self.runs.insert(start, first - 1);
            }
            if end > last {
                self.runs.insert(last + 1, end);
            }
        }
    }

    /// Whether `page` is in the set. O(log n).
    pub fn contains(&self, page: PageIdx) -> bool {
        self.overlaps(page.get(), page.get()).next().is_some()
    }

    /// How many pages. O(n).
    pub fn len(&self) -> u64 {
        self.runs.iter().map(|(start, end)| u64::from(end - start) + 1).sum()
    }

    /// No pages.
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// Whether the two sets share a page. O(min(n, m) · log max(n, m)), less when they do.
    pub fn intersects(&self, other: &PageSet) -> bool {
        let (few, many) = if self.runs.len() <= other.runs.len() { (self, other) } else { (other, self) };
        few.runs.iter().any(|(start, end)| many.overlaps(*start, *end).next().is_some())
    }

    /// Adds all of `other`. O(min(n, m) · log max(n, m)), and a copy of `other` where it is the
    /// one with more runs.
    pub fn union_with(&mut self, other: &PageSet) {
        let mut fewer = None;
        if self.runs.len() < other.runs.len() {
            fewer = Some(std::mem::replace(self, other.clone()));
        }
        for (start, end) in &fewer.as_ref().unwrap_or(other).runs {
            self.insert_range(*start, *end);
        }
    }

    /// Removes all of `other`. O(min(n, m) · log max(n, m)) and the runs in both.
    pub fn subtract(&mut self, other: &PageSet) {
        for (start, end) in self.intersection(other).runs {
            self.remove_range(start, end);
        }
    }

    /// The pages in both. O(min(n, m) · log max(n, m)) and the runs of the result.
    #[must_use]
    pub fn intersection(&self, other: &PageSet) -> PageSet {
        let (few, many) = if self.runs.len() <= other.runs.len() { (self, other) } else { (other, self) };
        let shared = |(first, last): (&u32, &u32)| {
            let (first, last) = (*first, *last);
            many.overlaps(first, last).map(move |(start, end)| (start.max(first), end.min(last)))
        };
        // Cut from runs that do not touch, the pieces do not touch either.
        PageSet { runs: few.runs.iter().flat_map(shared).collect() }
    }

    /// Keeps only pages up to `last`.
    pub fn clip(&mut self, last: u32) {
        if let Some(above) = last.checked_add(1) {
            self.remove_range(above, u32::MAX);
        }
    }

    /// Pages in ascending order. As many as [`len`](PageSet::len) says, so bound it first where
    /// the set is somebody else's.
    pub fn iter(&self) -> impl Iterator<Item = PageIdx> + '_ {
        self.ranges().flatten().filter_map(PageIdx::new)
    }

    /// The runs: maximal ranges of pages, ascending.
    pub fn ranges(&self) -> impl ExactSizeIterator<Item = RangeInclusive<u32>> + DoubleEndedIterator + '_ {
        self.runs.iter().map(|(start, end)| *start..=*end)
    }

    /// The least page.
    pub fn first(&self) -> Option<PageIdx> {
        self.runs.first_key_value().and_then(|(start, _)| PageIdx::new(*start))
    }

    /// The greatest page.
    pub fn last(&self) -> Option<PageIdx> {
        self.runs.last_key_value().and_then(|(_, end)| PageIdx::new(*end))
    }

    /// The bytes that [`decode`](PageSet::decode) reads: 13 for no page, 21 for one, never more than
    /// 17 and 8 for each run. O(pages) up to 16,384 pages, O(runs) beyond.
    pub fn encode(&self) -> Bytes {
        #[cfg(target_pointer_width = "64")]
        if self.len() <= SPLINTER_PAGES_MAX {
            use splinter_rs::{Encodable as _, Optimizable as _, Splinter};
            let mut splinter: Splinter = self.iter().map(PageIdx::get).collect();
            splinter.optimize();
            return splinter.encode_to_bytes();
        }
        codec::encode(self.ranges())
    }

    /// Reads an encoded set; safe on hostile bytes. O(bytes) in time and memory, whatever the
    /// number of pages they describe.
    ///
    /// # Errors
    ///
    /// The bytes are no splinter, or one that names page 0.
    pub fn decode(bytes: &[u8]) -> Result<PageSet, PageSetError> {
        check(bytes)?;
        Ok(PageSet { runs: encoded::runs(bytes).collect() })
    }

    /// The first run that ends at `from` or after it. O(log n).
    fn run_from(&self, from: u32) -> Option<(u32, u32)> {
        self.overlaps(from, u32::MAX).next()
    }

    /// The runs that share a page with `first..=last`, ascending.
    fn overlaps(&self, first: u32, last: u32) -> impl Iterator<Item = (u32, u32)> + '_ {
        let reaching = self.runs.range(..first).next_back().filter(|(_, end)| **end >= first);
        reaching
            .into_iter()
            .chain(self.runs.range(first..=last.max(first)))
            .map(|(start, end)| (*start, *end))
    }
}

impl fmt::Debug for PageSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut set = f.debug_set();
        for (start, end) in self.runs.iter().take(20) {
            set.entry(&format_args!("{start}..={end}"));
        }
        if self.runs.len() > 20 {
            set.entry(&format_args!("… {} runs in all", self.runs.len()));
        }
        set.finish()
    }
}

impl FromIterator<PageIdx> for PageSet {
    fn from_iter<I: IntoIterator<Item = PageIdx>>(pages: I) -> PageSet {
        let mut set = PageSet::new();
        set.extend(pages);
        set
    }
}

impl Extend<PageIdx> for PageSet {
    fn extend<I: IntoIterator<Item = PageIdx>>(&mut self, pages: I) {
        for page in pages {
            self.insert(page);
        }
    }
}

#[cfg(test)]
mod tests;
