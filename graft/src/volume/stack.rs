//! The stack of local commits as a whole: building another one aside, and putting it in place.
//!
//! What a lost race leaves behind is settled beside the replica: [`Volume::aside`] is a replica in
//! memory that stands on the pulled commits and shares the page cache. When its stack of local commits
//! is whole, [`Volume::replace_locals`] puts it in place of the old one, and moves the base, in one
//! batch of the store.
//!
//! Invariants: a replica has the old base and stack or the new ones, in memory and on disk, never a
//! mixture; nothing is replaced that was not seen by whoever built the new stack; numbers of local
//! commits are never used twice.

use std::sync::Arc;

use parking_lot::Mutex;

use super::cache::PageCache;
use super::{Change, CommitError, LocalCommit, Options, State, Volume};
use crate::format::commit::Head;
use crate::history::Start;
use crate::ids::{Lsn, PageSize};
use crate::page_set::PageSet;
use crate::pull::Pulled;
use crate::snapshot::{Snapshot, graft};
use crate::store::{Batch, StoreError};

/// Why a stack of local commits was not replaced. Nothing has changed.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum ReplaceError {
    /// The stack is not the one that was seen: local commits were added or dropped since.
    #[error("the local commits changed while their replacement was built; build it on from there")]
    Stale,
    /// A push was sent whose outcome is not known: it may hold the local commits that would go.
    #[error("a push is under way; settle it first")]
    Pending,
    /// The local store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What was pulled, fitted to a base: where the base is afterwards, and over which commits.
pub(super) struct Moved {
    /// The checkpoint that was jumped to, if one was.
    pub(super) jump: Option<Box<Start>>,
    /// The commits since, each following the one before.
    pub(super) heads: Vec<Head>,
    /// The base after each of them, and first of all the one that they begin on.
    bases: Vec<Snapshot>,
}

impl State {
    /// Fits `pulled` to the base: commits that it has already are passed over. Moves nothing.
    pub(super) fn follow(&mut self, pulled: Pulled, page_size: PageSize) -> Moved {
        let before = self.base.clone();
        let jump = pulled.jump.filter(|start| start.lsn > before.lsn() || before.lsn() == Lsn::ZERO);
        let first = match &jump {
            None => before,
            Some(start) => match &start.checkpoint {
                None => Snapshot::empty(page_size, start.volumes.clone()),
                Some(root) => {
                    let version = self.next_version();
                    let volumes = start.volumes.clone();
                    Snapshot::of_checkpoint(root, &start.chunks, volumes, version, before.lineage())
                }
            },
        };
        let (mut bases, mut heads) = (vec![first], Vec::with_capacity(pulled.heads.len()));
        for head in pulled.heads {
            let base = &bases[bases.len() - 1];
            if head.lsn != base.lsn().next() || head.parent != base.hash() {
                continue;
            }
            let next = base.with_commit(&head, self.next_version());
            bases.push(next);
            heads.push(head);
        }
        Moved { jump, heads, bases }
    }

    /// Moves the base; answers what may read differently, which after a jump is conservative. The tip is
    /// left behind. `cache` hears which versions were replaced.
    pub(super) fn advance(&mut self, moved: Moved, cache: Option<&PageCache>) -> PageSet {
        let mut changed = PageSet::new();
        for (base, head) in moved.bases.iter().zip(&moved.heads) {
            changed.union_with(&graft(head.set.to_set(), base.pages(), head.pages));
            if let Some(cache) = cache {
                cache.replaced(base, head);
            }
        }
        let Some(base) = moved.bases.into_iter().next_back() else { return changed };
        if moved.jump.is_some() {
            changed = self.base.difference(&base);
            self.checkpointed_bytes = 0;
        }
        self.base = base;
        changed
    }
}

impl Volume {
    /// [`commit`](Volume::commit), and `also` in the same batch of the store (where local commits are
    /// kept at all; elsewhere it is dropped). For what the layer above must not lose or have alone: its
    /// timeline.
    pub fn commit_with(&self, on: &Snapshot, change: Change, also: Batch) -> Result<Snapshot, CommitError> {
        debug_assert!(
            change.changes.iter().all(|(i, p)| i.get() <= change.pages && p.len() == self.page_size.bytes())
        );
        let mut state = self.state.lock();
        if self.fixed {
            return Err(CommitError::ReadOnly { volume: self.id, lsn: state.base.lsn() });
        }
        if state.tip.version() != on.version() {
            return Err(CommitError::Stale);
        }
        let local = state.local(change, state.tip.pages(), state.numbers + 1);
        self.store_local(&local, also)?;
        state.numbers = local.number;
        let version = state.next_version();
        let pages = local.changes.iter().map(|(i, p)| (*i, p));
        state.tip = state.tip.with_local(pages, local.pages_after, version);
        state.locals.push(local);
        Ok(state.tip.clone())
    }

    /// A replica in memory of the same volume: its base is this one's and `pulled` on top of it, its
    /// local commits are this one's first `locals`. It reads and fills the same caches; nothing it
    /// commits is stored. It must not pull, push or confirm. Costs the pulled commits' metadata.
    ///
    /// With `pulled` it is where a new stack is built, without it a look at an earlier state.
    pub fn aside(&self, pulled: Option<&Pulled>, locals: usize) -> Volume {
        let (base, checkpointed_bytes, numbers, stack) = {
            let state = self.state.lock();
            let stack = state.locals[..locals.min(state.locals.len())].to_vec();
            (state.base.clone(), state.checkpointed_bytes, state.numbers, stack)
        };
        let mut state = State {
            tip: base.clone(),
            versions: base.version(),
            base,
            checkpointed_bytes,
            locals: Vec::new(),
            pending: None,
            numbers,
        };
        if let Some(pulled) = pulled {
            let moved = state.follow(pulled.clone(), self.page_size);
            state.advance(moved, None);
        }
        state.locals = stack;
        let version = state.next_version();
        state.tip = state.stack(version);
        Volume {
            id: self.id,
            page_size: self.page_size,
            options: Options { locals: None, ..self.options.clone() },
            fixed: false,
            state: Mutex::new(state),
            cache: Arc::clone(&self.cache),
            confirmed: self.confirmed.clone(),
        }
    }

    /// Moves the base onto `pulled` and puts `stack` on it in place of the local commits, whose numbers
    /// are `seen`; `also` goes into the same batch. Answers the graft of the pulled commits.
    ///
    /// # Errors
    ///
    /// Any [`ReplaceError`]: base, stack and store are as they were.
    pub fn replace_locals(
        &self,
        seen: &[u64],
        pulled: Pulled,
        stack: Vec<Change>,
        also: Batch,
    ) -> Result<PageSet, ReplaceError> {
        let mut state = self.state.lock();
        if !state.locals.iter().map(|local| local.number).eq(seen.iter().copied()) {
            return Err(ReplaceError::Stale);
        }
        if state.pending.is_some() {
            return Err(ReplaceError::Pending);
        }
        let before = state.base.clone();
        let moved = state.follow(pulled, self.page_size);
        let mut pages = moved.bases.last().map_or(before.pages(), Snapshot::pages);
        let mut locals = Vec::with_capacity(stack.len());
        for (change, number) in stack.into_iter().zip(state.numbers + 1..) {
            let local = state.local(change, pages, number);
            pages = local.pages_after;
            locals.push(local);
        }
        let jump = moved.jump.as_deref();
        self.store_replaced(&before, jump, &moved.heads, &state.locals, &locals, also)?;
        let changed = state.advance(moved, Some(&self.cache));
        state.numbers = locals.last().map_or(state.numbers, |local| local.number);
        let version = state.next_version();
        if !state.locals.is_empty() {
            state.base = state.base.after_reset(version);
        }
        state.locals = locals;
        let version = state.next_version();
        state.tip = if state.locals.is_empty() { state.base.clone() } else { state.stack(version) };
        Ok(changed)
    }
}

impl State {
    fn local(&self, change: Change, pages_before: u32, number: u64) -> LocalCommit {
        LocalCommit {
            number,
            pages_before,
            pages_after: change.pages,
            changes: change.changes,
            payload: change.payload,
        }
    }
}
