//! [`EncodedSet`]: a page set read in place, in the bytes it was fetched in.
//!
//! Most sets that a replica fetches are asked a question or two (how many pages, which is the last,
//! is page 1 among them, does it meet that other set) and never changed. Such a set stays as it is:
//! one pass over the bytes checks everything that later reads rest on, and nothing is built.
//!
//! Invariants: the bytes passed [`check`], so every read finds what the index of its tree promises.
//! Reads are total all the same: nothing is indexed without asking, and where bytes were not as
//! checked, an answer would be wrong, not a panic. Why `splinter_rs::SplinterRef` does not read them:
//! `docs/decisions/0009-page-sets-read-in-place.md`.

use std::fmt;
use std::ops::RangeInclusive;

use bytes::Bytes;

use super::codec::{self, Part, Run, damaged, next_bit, number, number_max};
use super::{PageSet, PageSetError};
use crate::ids::PageIdx;

/// The root holds numbers of four bytes.
const ROOT: usize = 4;

/// A page set in its encoded form. Clones share the bytes.
///
/// Costs below are in encoded bytes. Two are equal where their bytes are: a set has more than one
/// encoding.
#[derive(Clone, PartialEq, Eq)]
pub struct EncodedSet {
    bytes: Bytes,
    summary: Summary,
}

/// What the check of a set's bytes finds out on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Summary {
    /// How many pages.
    pub(crate) len: u64,
    /// The greatest.
    pub(crate) last: Option<PageIdx>,
}

/// Checks that `bytes` are an encoded set: all that [`EncodedSet`] rests on. O(bytes) in time;
/// allocates nothing.
pub(crate) fn check(bytes: &[u8]) -> Result<Summary, PageSetError> {
    let Some(body) = codec::body(bytes)? else { return Ok(Summary { len: 0, last: None }) };
    let (len, before) = codec::check(ROOT, body)?;
    if !before.is_empty() {
        return damaged("bytes before the root");
    }
    if holds(ROOT, body, 0) {
        return damaged("page 0");
    }
    Ok(Summary { len, last: last(ROOT, body, 0).and_then(PageIdx::new) })
}

/// The maximal runs of an encoded set that passed [`check`].
pub(super) fn runs(bytes: &[u8]) -> impl Iterator<Item = Run> + '_ {
    let mut runs = Runs { body: codec::checked_body(bytes), leaf: None, from: 0, ahead: None };
    std::iter::from_fn(move || runs.next_run())
}

impl EncodedSet {
    /// The set that `bytes` describe; safe on hostile bytes. O(bytes) in time; allocates nothing.
    ///
    /// # Errors
    ///
    /// As [`PageSet::decode`].
    pub fn new(bytes: Bytes) -> Result<EncodedSet, PageSetError> {
        let summary = check(&bytes)?;
        Ok(EncodedSet { bytes, summary })
    }

    /// The set of `bytes`, of which [`check`] answered `summary`.
    pub(crate) fn checked(bytes: Bytes, summary: Summary) -> EncodedSet {
        EncodedSet { bytes, summary }
    }

    /// The bytes that [`PageSet::decode`] reads.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// How many pages. O(1).
    pub fn len(&self) -> u64 {
        self.summary.len
    }

    /// No pages. O(1).
    pub fn is_empty(&self) -> bool {
        self.summary.len == 0
    }

    /// The least page. O(log bytes), but for a bitmap that begins with zeroes.
    pub fn first(&self) -> Option<PageIdx> {
        self.at_or_after(0).and_then(PageIdx::new)
    }

    /// The greatest page. O(1).
    pub fn last(&self) -> Option<PageIdx> {
        self.summary.last
    }

    /// Whether `page` is in the set. O(log bytes).
    pub fn contains(&self, page: PageIdx) -> bool {
        self.body().is_some_and(|body| holds(ROOT, body, page.get()))
    }

    /// Whether the two sets share a page. Each step passes a run of `other` or a gap of it, and costs
    /// O(log bytes) and the zeroes of a bitmap that it passes.
    pub fn intersects(&self, other: &PageSet) -> bool {
        let mut from = 0;
        while let Some((start, end)) = other.run_from(from) {
            match self.at_or_after(start.max(from)) {
                None => return false,
                Some(page) if page <= end => return true,
                Some(page) => from = page,
            }
        }
        false
    }

    /// The runs: maximal ranges of pages, ascending. O(bytes) for all of them; allocates nothing.
    pub fn ranges(&self) -> impl Iterator<Item = RangeInclusive<u32>> + '_ {
        runs(&self.bytes).map(|(first, last)| first..=last)
    }

    /// Pages in ascending order: as many as [`len`](EncodedSet::len) says.
    pub fn iter(&self) -> impl Iterator<Item = PageIdx> + '_ {
        self.ranges().flatten().filter_map(PageIdx::new)
    }

    /// The same set, to be computed with. O(bytes) in time and memory.
    pub fn to_set(&self) -> PageSet {
        PageSet { runs: runs(&self.bytes).collect() }
    }

    fn body(&self) -> Option<&[u8]> {
        codec::checked_body(&self.bytes)
    }

    fn at_or_after(&self, from: u32) -> Option<u32> {
        let (first, _) = find(ROOT, self.body()?, 0, from)?.next_run()?;
        Some(first.max(from))
    }
}

impl From<&PageSet> for EncodedSet {
    fn from(set: &PageSet) -> EncodedSet {
        EncodedSet { bytes: set.encode(), summary: Summary { len: set.len(), last: set.last() } }
    }
}

impl fmt::Debug for EncodedSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.to_set().fmt(f)
    }
}

/// Whether the partition that `bytes` ends in holds `wanted`.
fn holds(width: usize, bytes: &[u8], wanted: u32) -> bool {
    let Ok((part, _)) = Part::at_end(width, bytes) else { return false };
    match part {
        Part::Full => true,
        Part::Bitmap(bits) => {
            bits.get(wanted as usize / 8).is_some_and(|byte| byte & (1 << (wanted % 8)) != 0)
        }
        Part::Vec(numbers) => number(numbers, width, place(numbers, width, 1, 0, wanted)) == Some(wanted),
        Part::Run(runs) => {
            let at = place(runs, width, 2, 1, wanted);
            number(runs, width, 2 * at).is_some_and(|first| first <= wanted)
        }
        Part::Tree(tree) => {
            let shift = 8 * (width - 1);
            match tree.seek(wanted >> shift) {
                Some((at, segment)) if segment == wanted >> shift => tree
                    .child(at)
                    .is_some_and(|child| holds(width - 1, child, wanted & number_max(width - 1))),
                Some(_) | None => false,
            }
        }
    }
}

/// The greatest number, plus `base`, of the partition that `bytes` ends in.
fn last(width: usize, bytes: &[u8], base: u32) -> Option<u32> {
    let (part, _) = Part::at_end(width, bytes).ok()?;
    match part {
        Part::Full => Some(base | number_max(width)),
        Part::Bitmap(bits) => {
            let at = bits.iter().rposition(|byte| *byte != 0)?;
            Some(base | (at as u32 * 8 + bits.get(at)?.ilog2()))
        }
        Part::Vec(numbers) | Part::Run(numbers) => {
            Some(base | number(numbers, width, (numbers.len() / width).checked_sub(1)?)?)
        }
        Part::Tree(tree) => {
            let (at, segment) = tree.seek_last()?;
            last(width - 1, tree.child(at)?, base | segment << (8 * (width - 1)))
        }
    }
}

/// How many groups of `group` numbers come before the first whose number at place `of` is not below
/// `wanted`.
fn place(numbers: &[u8], width: usize, group: usize, of: usize, wanted: u32) -> usize {
    let (mut low, mut high) = (0, numbers.len() / (group * width));
    while low < high {
        let middle = low + (high - low) / 2;
        if number(numbers, width, middle * group + of).is_some_and(|number| number < wanted) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    low
}

/// A partition without children, and how much of it was read.
struct Leaf<'a> {
    width: usize,
    /// Of its numbers.
    base: u32,
    part: Part<'a>,
    /// Of a vec or run, the next group; else the next number.
    at: u64,
}

/// The first leaf with a number not below `from`, in the partition that `bytes` ends in, whose numbers
/// are counted from `base`; the leaf's next run reaches `from` or begins after it.
fn find<'a>(width: usize, bytes: &'a [u8], base: u32, from: u32) -> Option<Leaf<'a>> {
    let (part, _) = Part::at_end(width, bytes).ok()?;
    let at = match part {
        Part::Full => u64::from(from),
        Part::Bitmap(bits) => next_bit(bits, u64::from(from))?,
        Part::Vec(numbers) => {
            let at = place(numbers, width, 1, 0, from);
            number(numbers, width, at).map(|_| at as u64)?
        }
        Part::Run(runs) => {
            let at = place(runs, width, 2, 1, from);
            number(runs, width, 2 * at).map(|_| at as u64)?
        }
        Part::Tree(tree) => {
            let shift = 8 * (width - 1);
            let child = |(at, segment): (usize, u32), from| {
                find(width - 1, tree.child(at)?, base | segment << shift, from)
            };
            let wanted = from >> shift;
            let first = tree.seek(wanted)?;
            if first.1 > wanted {
                return child(first, 0);
            }
            return child(first, from & number_max(width - 1)).or_else(|| child(tree.seek(wanted + 1)?, 0));
        }
    };
    Some(Leaf { width, base, part, at })
}

impl Leaf<'_> {
    /// The next run, not always maximal.
    fn next_run(&mut self) -> Option<Run> {
        let (first, last) = match self.part {
            Part::Full => {
                let (first, last) = (u32::try_from(self.at).ok()?, number_max(self.width));
                if first > last {
                    return None;
                }
                self.at = u64::from(last) + 1;
                (first, last)
            }
            Part::Bitmap(bits) => {
                let first = next_bit(bits, self.at)?;
                let here = bits.get(usize::try_from(first / 8).ok()?)? >> (first % 8);
                self.at = first + u64::from(here.trailing_ones());
                (u32::try_from(first).ok()?, u32::try_from(self.at - 1).ok()?)
            }
            Part::Vec(numbers) => {
                let number = number(numbers, self.width, usize::try_from(self.at).ok()?)?;
                self.at += 1;
                (number, number)
            }
            Part::Run(runs) => {
                let at = usize::try_from(self.at).ok()?.checked_mul(2)?;
                self.at += 1;
                (number(runs, self.width, at)?, number(runs, self.width, at + 1)?)
            }
            Part::Tree(_) => return None,
        };
        Some((self.base | first, self.base | last))
    }
}

/// Goes through a set's leaves, one after another.
struct Runs<'a> {
    body: Option<&'a [u8]>,
    leaf: Option<Leaf<'a>>,
    /// Where the leaf after this one begins, at the least.
    from: u64,
    /// Read while the run before it was put together.
    ahead: Option<Run>,
}

impl Runs<'_> {
    fn next_run(&mut self) -> Option<Run> {
        let (first, mut last) = self.ahead.take().or_else(|| self.next_piece())?;
        while let Some(piece) = self.next_piece() {
            if last.checked_add(1) != Some(piece.0) {
                self.ahead = Some(piece);
                break;
            }
            last = piece.1;
        }
        Some((first, last))
    }

    fn next_piece(&mut self) -> Option<Run> {
        loop {
            if let Some(leaf) = &mut self.leaf {
                if let Some(piece) = leaf.next_run() {
                    return Some(piece);
                }
                self.from = u64::from(leaf.base) + u64::from(number_max(leaf.width)) + 1;
                self.leaf = None;
            }
            let from = u32::try_from(self.from).ok()?;
            self.leaf = Some(find(ROOT, self.body?, 0, from)?);
        }
    }
}

#[cfg(test)]
mod tests;
