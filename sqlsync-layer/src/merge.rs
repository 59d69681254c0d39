//! The merge verdict: may a local commit keep its pages on top of what others committed?
//!
//! A local commit was made on some state; meanwhile others committed. Where nothing that it read or
//! wrote was written by them, running its transaction again would read the same and so write the same:
//! its pages can be *transplanted*. That is optimistic concurrency control validated backward
//! (Kung & Robinson, TODS 1981), on pages instead of records, and it is serializable.
//!
//! | condition | without it |
//! | --- | --- |
//! | reads ∪ writes miss their writes, not writes alone | an append that splits a leaf writes its parent and the new leaf, but not the leaf it split: b-trees out of order |
//! | the reads are complete: begun cold, nothing aborted | a warm cache hides reads |
//! | a page that was written with the bytes that it had counts as read | a free page, taken without reading it and filled with what it held before: who writes it too is not noticed |
//! | page 1 by marks: the allocator changed by one side only | two allocations of one page |
//! | page 1 by marks: the schema not changed by them | an index that lacks rows |
//! | pages cut off count as written | a write to a page that is gone |
//! | reads are clipped to the final page count | pages that came and went within the transaction conflict with nothing |
//! | what reads allocator state does not merge | a page count that is not the count |
//! | chains ([`crate::rebase`]) | a commit that stands on one that is gone |
//!
//! [`Validation::WRITES_ONLY`] is for volumes that hold something other than SQLite: snapshot isolation
//! on pages, where page 1 is a page like any other.
//!
//! Invariants: a verdict depends on its arguments alone; what is not known counts as a conflict.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use graft::format::commit::Head;
use graft::snapshot::graft;
use graft::volume::LocalCommit;
use graft::{PageIdx, PageSet};

use crate::payload::{Op, Outcome, Payload};
use crate::vfs::{Marks, Note, WriteSet, page1};

#[cfg(test)]
mod hazard;
#[cfg(test)]
mod tests;

/// One condition of the table above, as a planted bug leaves it out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Condition {
    /// Reads are looked at.
    Reads = 1,
    /// Unknown reads conflict.
    Complete = 2,
    /// The allocator mark.
    Allocator = 4,
    /// The schema mark.
    Schema = 8,
    /// Pages cut off count as written.
    Truncation = 16,
    /// Reads are clipped.
    Clip = 32,
    /// Readers of allocator state conflict.
    AllocatorReads = 64,
    /// Commits that were dropped, confirmed or run again count, too.
    Chains = 128,
}

/// By which conditions a merge is judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validation {
    sqlite: bool,
    left_out: u8,
}

impl Validation {
    /// Every condition: for SQLite. Serializable.
    pub const READS: Validation = Validation { sqlite: true, left_out: 0 };

    /// Disjoint writes are enough, and page 1 is a page like any other: for volumes that hold something
    /// other than SQLite. This is snapshot isolation, and it admits write skew.
    pub const WRITES_ONLY: Validation = Validation { sqlite: false, left_out: 0 };

    /// With one condition left out: a planted bug.
    #[cfg(any(test, feature = "planted"))]
    #[must_use]
    pub fn without(self, condition: Condition) -> Validation {
        Validation { left_out: self.left_out | condition as u8, ..self }
    }

    /// Whether a condition is looked at.
    pub(crate) fn checks(self, condition: Condition) -> bool {
        self.left_out & condition as u8 == 0
    }
}

/// What a commit, or several, changed.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Writes {
    /// Pages that read differently afterwards, page 1 left out, pages cut off included.
    pub pages: PageSet,
    /// What changed of page 1, as SQLite's.
    pub marks: Marks,
    /// Whether page 1 was written at all.
    pub first: bool,
    /// Whether the page count changed.
    pub resized: bool,
}

impl Writes {
    /// What a local commit changed.
    pub fn of_local(local: &LocalCommit, validation: Validation) -> Writes {
        Writes::marked(local, Note::decode(&local.payload).marks, validation)
    }

    fn marked(local: &LocalCommit, marks: Marks, validation: Validation) -> Writes {
        let set = local.changes.keys().copied().collect();
        Writes::new(set, marks, (local.pages_before, local.pages_after), validation)
    }

    /// What a pulled commit changed on a volume of `pages_before` pages. A commit that put a module in
    /// force counts as one that changed the schema: what ran before it may run otherwise after it.
    pub fn of_pulled(head: &Head, payload: &Payload, pages_before: u32, validation: Validation) -> Writes {
        let deploys = |record: &crate::payload::Record| {
            matches!(record.op, Op::Deploy { .. }) && record.outcome == Outcome::Applied
        };
        let first = head.set.contains(PageIdx::FIRST);
        let mut marks = if first { payload.marks() } else { Marks::default() };
        marks.schema |= payload.records.iter().any(deploys);
        Writes::new(head.set.to_set(), marks, (pages_before, head.pages), validation)
    }

    /// Of commits that were not read one by one, up to a volume of `pages` pages: they may have changed
    /// anything.
    pub fn anything(pages: u32) -> Writes {
        let mut all = PageSet::new();
        all.insert_range(2, pages);
        Writes { pages: all, marks: Marks::BOTH, first: true, resized: true }
    }

    fn new(set: PageSet, marks: Marks, (before, after): (u32, u32), validation: Validation) -> Writes {
        let first = set.contains(PageIdx::FIRST);
        let mut pages =
            if validation.checks(Condition::Truncation) { graft(set, before, after) } else { set };
        pages.remove(PageIdx::FIRST);
        Writes { pages, marks, first, resized: before != after }
    }

    /// Adds what others changed.
    pub fn union_with(&mut self, other: &Writes) {
        self.pages.union_with(&other.pages);
        self.marks = self.marks.union(other.marks);
        self.first |= other.first;
        self.resized |= other.resized;
    }

    /// Nothing.
    pub fn is_empty(&self) -> bool {
        self.pages.is_empty() && !self.first && !self.resized && self.marks == Marks::default()
    }

    fn allocator(&self) -> bool {
        self.marks.allocator || self.resized
    }

    /// The same, as live queries see it.
    pub fn to_write_set(&self) -> WriteSet {
        WriteSet { pages: self.pages.clone(), marks: self.marks }
    }
}

/// What a local commit read and wrote.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Footprint {
    /// Pages read, page 1 left out; `None` where that is not wholly known.
    pub reads: Option<PageSet>,
    /// It read allocator state.
    pub reads_allocator: bool,
    /// What it changed.
    pub writes: Writes,
}

impl Footprint {
    /// A local commit's.
    pub fn of_local(local: &LocalCommit, validation: Validation) -> Footprint {
        Footprint::noted(local, Note::decode(&local.payload), validation)
    }

    /// The same, where the note that its payload holds was decoded.
    pub(crate) fn noted(local: &LocalCommit, note: Note, validation: Validation) -> Footprint {
        let Note { marks, reads, reads_allocator, enclosed: _ } = note;
        let reads = reads.map(|mut reads| {
            if validation.checks(Condition::Clip) {
                // Beyond the first count it read what itself had written, beyond the last what is gone.
                reads.clip(local.pages_before.min(local.pages_after));
            }
            reads.remove(PageIdx::FIRST);
            reads
        });
        Footprint { reads, reads_allocator, writes: Writes::marked(local, marks, validation) }
    }
}

/// Why a local commit cannot keep its pages.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Conflict {
    /// What it read is not known: it was not recorded, or a read failed.
    Unrecorded,
    /// It read page counts or free pages.
    AllocatorRead,
    /// They changed the schema, or the module in force.
    Schema,
    /// Both allocated or freed pages.
    Allocator,
    /// It read these pages, which they wrote.
    Read(PageSet),
    /// Both wrote these pages.
    Written(PageSet),
    /// The app's policy asks for it.
    Policy,
}

impl std::fmt::Display for Conflict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Conflict::Unrecorded => f.write_str("what it read is not known"),
            Conflict::AllocatorRead => f.write_str("it read page counts or free pages"),
            Conflict::Schema => f.write_str("the schema or the module changed"),
            Conflict::Allocator => f.write_str("both sides allocated or freed pages"),
            Conflict::Read(pages) => write!(f, "it read {} pages that were written since", pages.len()),
            Conflict::Written(pages) => write!(f, "{} of its pages were written since", pages.len()),
            Conflict::Policy => f.write_str("the policy does not merge"),
        }
    }
}

/// Whether a commit with footprint `own` may keep its pages after `theirs`. O(runs · log runs).
///
/// # Errors
///
/// The first [`Conflict`] found.
pub fn verdict(own: &Footprint, theirs: &Writes, validation: Validation) -> Result<(), Conflict> {
    if theirs.is_empty() {
        return Ok(());
    }
    let meeting = |set: &PageSet| Some(set.intersection(&theirs.pages)).filter(|both| !both.is_empty());
    if !validation.sqlite {
        if own.writes.first && theirs.first {
            return Err(Conflict::Written(PageSet::from_iter([PageIdx::FIRST])));
        }
        if own.writes.resized && theirs.resized {
            return Err(Conflict::Allocator);
        }
        return meeting(&own.writes.pages).map_or(Ok(()), |both| Err(Conflict::Written(both)));
    }
    if own.reads.is_none() && validation.checks(Condition::Complete) {
        return Err(Conflict::Unrecorded);
    }
    if own.reads_allocator && validation.checks(Condition::AllocatorReads) {
        return Err(Conflict::AllocatorRead);
    }
    if theirs.marks.schema && validation.checks(Condition::Schema) {
        return Err(Conflict::Schema);
    }
    if own.writes.allocator() && theirs.allocator() && validation.checks(Condition::Allocator) {
        return Err(Conflict::Allocator);
    }
    if validation.checks(Condition::Reads)
        && let Some(both) = own.reads.as_ref().and_then(meeting)
    {
        return Err(Conflict::Read(both));
    }
    meeting(&own.writes.pages).map_or(Ok(()), |both| Err(Conflict::Written(both)))
}

/// Whether [`transplant`] must know page 1 of the state that a local commit is put on.
pub fn needs_first(local: &LocalCommit, validation: Validation) -> bool {
    validation.sqlite && local.changes.contains_key(&PageIdx::FIRST)
}

/// A local commit on another state, once [`verdict`] allowed it.
///
/// `pages` is that state's page count, `first` its page 1 as stored (empty where it has none; looked at
/// only where [`needs_first`] says so). The reads that were recorded stay valid and go along. The answer
/// shares its map of pages with `local` ([`LocalCommit::changes`] is the same `Arc`) where no page differs:
/// there nothing is copied, and only the page counts may be others.
pub fn transplant(local: &LocalCommit, pages: u32, first: &[u8], validation: Validation) -> LocalCommit {
    let pages_after = if local.pages_before == local.pages_after { pages } else { local.pages_after };
    let mut moved = LocalCommit { pages_before: pages, pages_after, ..local.clone() };
    if local.changes.keys().next_back().is_some_and(|page| page.get() > pages_after) {
        let changes: &mut BTreeMap<PageIdx, Bytes> = Arc::make_mut(&mut moved.changes);
        changes.retain(|page, _| page.get() <= pages_after);
    }
    if validation.sqlite
        && let Some(own) = moved.changes.get(&PageIdx::FIRST)
    {
        let page = compose(first, own, Note::decode(&local.payload).marks);
        if page != *own {
            Arc::make_mut(&mut moved.changes).insert(PageIdx::FIRST, page);
        }
    }
    moved
}

/// Page 1 of `theirs` with the units that `marks` names taken from `own`.
fn compose(theirs: &[u8], own: &Bytes, marks: Marks) -> Bytes {
    if theirs.len() != own.len() {
        return own.clone();
    }
    let mut page = BytesMut::from(if marks.schema { &own[..] } else { theirs });
    let allocator = if marks.allocator { &own[..] } else { theirs };
    page1::copy_allocator(allocator, &mut page);
    page.freeze()
}
