//! `PageSet`: a set of page indexes, and the algebra that the whole design rests on.

use std::collections::BTreeSet;

use crate::ids::PageIdx;

/// A set of page indexes.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct PageSet(BTreeSet<u32>);

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
    /// Adds `page`; says whether it was new.
    pub fn insert(&mut self, page: PageIdx) -> bool {
        self.0.insert(page.get())
    }
    /// Adds every page of `first..=last`; nothing if `first > last`. 0 is skipped.
    pub fn insert_range(&mut self, first: u32, last: u32) {
        self.0.extend(first.max(1)..=last);
    }
    /// Removes `page`; says whether it was there.
    pub fn remove(&mut self, page: PageIdx) -> bool {
        self.0.remove(&page.get())
    }
    /// Whether `page` is in the set.
    pub fn contains(&self, page: PageIdx) -> bool {
        self.0.contains(&page.get())
    }
    /// How many pages.
    pub fn len(&self) -> u64 {
        self.0.len() as u64
    }
    /// No pages.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
    /// Whether the two sets share a page.
    pub fn intersects(&self, other: &PageSet) -> bool {
        !self.0.is_disjoint(&other.0)
    }
    /// Adds all of `other`.
    pub fn union_with(&mut self, other: &PageSet) {
        self.0.extend(&other.0);
    }
    /// Removes all of `other`.
    pub fn subtract(&mut self, other: &PageSet) {
        self.0.retain(|p| !other.0.contains(p));
    }
    /// The pages in both.
    #[must_use]
    pub fn intersection(&self, other: &PageSet) -> PageSet {
        PageSet(self.0.intersection(&other.0).copied().collect())
    }
    /// Keeps only pages up to `last`.
    pub fn clip(&mut self, last: u32) {
        self.0.retain(|p| *p <= last);
    }
    /// Pages in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = PageIdx> + '_ {
        self.0.iter().filter_map(|p| PageIdx::new(*p))
    }
    /// The greatest page.
    pub fn last(&self) -> Option<PageIdx> {
        self.0.last().and_then(|p| PageIdx::new(*p))
    }
    /// The bytes that [`decode`](PageSet::decode) reads.
    pub fn encode(&self) -> bytes::Bytes {
        self.0.iter().flat_map(|p| p.to_le_bytes()).collect()
    }
    /// Reads an encoded set; safe on hostile bytes.
    pub fn decode(bytes: &[u8]) -> Result<PageSet, PageSetError> {
        let (pages, rest) = bytes.as_chunks::<4>();
        if !rest.is_empty() {
            return Err(PageSetError { reason: "length" });
        }
        Ok(PageSet(pages.iter().map(|p| u32::from_le_bytes(*p)).collect()))
    }
}

impl FromIterator<PageIdx> for PageSet {
    fn from_iter<I: IntoIterator<Item = PageIdx>>(pages: I) -> PageSet {
        PageSet(pages.into_iter().map(PageIdx::get).collect())
    }
}
