//! What is known of each local commit: what made it, what it read and wrote.
//!
//! It stands in the commit's payload, and decoding that costs more than a merge does, so it is decoded
//! once: when the commit is made, or when the replica is opened.
//!
//! Invariant: what is answered of a local commit is what its payload and pages say. Memory follows the
//! local commits; an entry of one that is gone stays until the next [`Known::follow`].

use std::sync::Arc;

use graft::ModuleHash;
use graft::volume::LocalCommit;

use crate::merge::{Footprint, Validation};
use crate::payload::{Op, Outcome, Record};
use crate::rebase::{Pending, Work};
use crate::vfs::Note;

/// See the module.
pub(super) struct Known {
    validation: Validation,
    /// By number.
    entries: Vec<Entry>,
}

struct Entry {
    local: LocalCommit,
    pending: Arc<Pending>,
}

impl Entry {
    fn read(local: &LocalCommit, validation: Validation) -> Entry {
        let note = Note::decode(&local.payload);
        let work = match Record::enclosed_in(&note).map(|record| record.op) {
            None => Work::Sql,
            Some(Op::Deploy { .. }) => Work::Deploy,
            Some(Op::Mutation(mutation)) => Work::Mutation { seq: mutation.seq },
        };
        let footprint = Footprint::noted(local, note, validation);
        Entry { local: local.clone(), pending: Arc::new(Pending { number: local.number, work, footprint }) }
    }

    /// Whether it is what [`Entry::read`] would make of `local`, which may lie on another page count than
    /// when it was made: what it read and wrote is the same there.
    fn is_of(&self, local: &LocalCommit) -> bool {
        let mine = &self.local;
        let resizes = mine.pages_before != mine.pages_after;
        let counts = (mine.pages_before, mine.pages_after) == (local.pages_before, local.pages_after);
        mine.number == local.number
            && mine.payload.as_ptr() == local.payload.as_ptr()
            && mine.payload.len() == local.payload.len()
            && (Arc::ptr_eq(&mine.changes, &local.changes) || mine.changes.keys().eq(local.changes.keys()))
            && (counts || !resizes && local.pages_before == local.pages_after)
    }
}

impl Known {
    /// Of no local commit.
    pub(super) fn new(validation: Validation) -> Known {
        Known { validation, entries: Vec::new() }
    }

    /// A local commit was made on top.
    pub(super) fn add(&mut self, local: &LocalCommit) {
        if self.entries.last().is_none_or(|last| last.local.number < local.number) {
            self.entries.push(Entry::read(local, self.validation));
        }
    }

    /// The local commits are these now. Reads those that are new.
    pub(super) fn follow(&mut self, locals: &[LocalCommit]) {
        let mut old = std::mem::take(&mut self.entries).into_iter().peekable();
        self.entries.reserve_exact(locals.len());
        for local in locals {
            while old.next_if(|entry| entry.local.number < local.number).is_some() {}
            let entry = match old.next_if(|entry| entry.is_of(local)) {
                // Of those that were moved, the pages as they are now.
                Some(Entry { pending, .. }) => Entry { local: local.clone(), pending },
                None => Entry::read(local, self.validation),
            };
            self.entries.push(entry);
        }
    }

    /// What is known of each, in order.
    pub(super) fn pending(&self) -> impl Iterator<Item = &Arc<Pending>> {
        self.entries.iter().map(|entry| &entry.pending)
    }

    /// The module and schema version that the last deploy among them put in force.
    pub(super) fn deployed(&self) -> Option<(ModuleHash, u32)> {
        let deploys = self.entries.iter().rev().filter(|entry| entry.pending.work == Work::Deploy);
        deploys.into_iter().find_map(|entry| match Record::behind(&entry.local)? {
            Record { op: Op::Deploy { module, schema, .. }, outcome: Outcome::Applied } => {
                Some((module, schema))
            }
            Record { op: Op::Deploy { .. } | Op::Mutation(_), outcome: _ } => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use bytes::Bytes;
    use graft::{PageIdx, PageSet};

    use super::*;

    fn commit(number: u64, reads: u32, (before, after): (u32, u32)) -> LocalCommit {
        let note = Note { reads: Some(PageSet::from_ranges([reads..=reads])), ..Note::default() };
        let page = PageIdx::new(2).unwrap();
        LocalCommit {
            number,
            pages_before: before,
            pages_after: after,
            changes: Arc::new(BTreeMap::from([(page, Bytes::from_static(b"page"))])),
            payload: note.encode(),
        }
    }

    fn reads(known: &Known) -> Vec<(u64, u32)> {
        let first = |pending: &Arc<Pending>| {
            let reads = pending.footprint.reads.as_ref().and_then(PageSet::first);
            (pending.number, reads.map_or(0, PageIdx::get))
        };
        known.pending().map(first).collect()
    }

    /// Whatever is added, dropped, moved or replaced under its number: it says what reading anew says.
    #[test]
    fn it_says_of_the_local_commits_what_their_payloads_say() {
        let mut known = Known::new(Validation::READS);
        let stack = [commit(1, 3, (9, 9)), commit(2, 4, (9, 9)), commit(5, 6, (9, 9))];
        known.add(&stack[0]);
        known.add(&stack[1]);
        assert_eq!(reads(&known), [(1, 3), (2, 4)]);
        known.follow(&stack);
        assert_eq!(reads(&known), [(1, 3), (2, 4), (5, 6)]);
        // The second is another one now, under its number; the first is gone.
        let replaced = [commit(2, 7, (9, 9)), stack[2].clone()];
        known.follow(&replaced);
        assert_eq!(reads(&known), [(2, 7), (5, 6)]);
        // Kept on fewer pages: what it read beyond them was not cut away from under it by anybody.
        let before: Vec<Arc<Pending>> = known.pending().cloned().collect();
        let moved: Vec<LocalCommit> = replaced
            .iter()
            .map(|local| LocalCommit { pages_before: 12, pages_after: 12, ..local.clone() })
            .collect();
        known.follow(&moved);
        assert!(known.pending().zip(&before).all(|(a, b)| Arc::ptr_eq(a, b)));
        // One that resizes is read anew where its counts are others: pages cut off count as written.
        let (was, is) = (commit(7, 3, (9, 4)), commit(7, 3, (9, 6)));
        let is = LocalCommit { payload: was.payload.clone(), changes: was.changes.clone(), ..is };
        known.follow(std::slice::from_ref(&was));
        known.follow(std::slice::from_ref(&is));
        let fresh = Footprint::of_local(&is, Validation::READS);
        assert_eq!(known.pending().next().map(|pending| &pending.footprint), Some(&fresh));
        known.follow(&[]);
        assert!(reads(&known).is_empty());
    }
}
