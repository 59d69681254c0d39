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
use super::{Change, CommitError, LocalCommit, Options, State, Volume, stack};
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

impl Moved {
    /// Tells `cache` which versions are replaced.
    pub(super) fn tell(&self, cache: &PageCache) {
        self.bases.iter().zip(&self.heads).for_each(|(base, head)| cache.replaced(base, head));
    }
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
    /// left behind.
    pub(super) fn advance(&mut self, moved: Moved) -> PageSet {
        let mut changed = PageSet::new();
        for (base, head) in moved.bases.iter().zip(&moved.heads) {
            changed.union_with(&graft(head.set.to_set(), base.pages(), head.pages));
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
        let _writer = self.writer.lock();
        let (tip, number) = {
            let state = self.state.lock();
            if self.fixed {
                return Err(CommitError::ReadOnly { volume: self.id, lsn: state.base.lsn() });
            }
            (state.tip.clone(), state.numbers + 1)
        };
        if tip.version() != on.version() {
            return Err(CommitError::Stale);
        }
        let local = local(change, tip.pages(), number);
        self.store_local(&local, also)?;
        let version = {
            let mut state = self.state.lock();
            state.numbers = number;
            state.next_version()
        };
        let pages = local.changes.iter().map(|(i, p)| (*i, p));
        let tip = tip.with_local(pages, local.pages_after, version);
        let mut state = self.state.lock();
        state.tip = tip.clone();
        state.locals.push(Arc::new(local));
        Ok(tip)
    }

    /// A replica in memory of the same volume: its base is this one's and `pulled` on top of it, its
    /// local commits are this one's first `locals`. It reads and fills the same caches; nothing it
    /// commits is stored. It must not pull, push or confirm. Costs the pulled commits' metadata.
    ///
    /// With `pulled` it is where a new stack is built, without it a look at an earlier state.
    pub fn aside(&self, pulled: Option<&Pulled>, locals: usize) -> Volume {
        let (base, checkpointed_bytes, numbers, kept) = {
            let state = self.state.lock();
            let locals = state.locals[..locals.min(state.locals.len())].to_vec();
            (state.base.clone(), state.checkpointed_bytes, state.numbers, locals)
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
            state.advance(moved);
        }
        state.locals = kept;
        let version = state.next_version();
        state.tip = stack(&state.base, &state.locals, version);
        Volume {
            id: self.id,
            page_size: self.page_size,
            options: Options { locals: None, ..self.options.clone() },
            fixed: false,
            sealing: Mutex::default(),
            writer: Mutex::default(),
            state: Mutex::new(state),
            cache: Arc::clone(&self.cache),
        }
    }

    /// Moves the base onto `pulled` and puts `changes` on it in place of the local commits, whose numbers
    /// are `seen`; `also` goes into the same batch. Answers the graft of the pulled commits.
    ///
    /// # Errors
    ///
    /// Any [`ReplaceError`]: base, stack and store are as they were.
    pub fn replace_locals(
        &self,
        seen: &[u64],
        pulled: Pulled,
        changes: Vec<Change>,
        also: Batch,
    ) -> Result<PageSet, ReplaceError> {
        let _writer = self.writer.lock();
        let (before, old, moved, numbers) = {
            let mut state = self.state.lock();
            if !state.locals.iter().map(|local| local.number).eq(seen.iter().copied()) {
                return Err(ReplaceError::Stale);
            }
            if state.pending.is_some() {
                return Err(ReplaceError::Pending);
            }
            let moved = state.follow(pulled, self.page_size);
            (state.base.clone(), state.locals.clone(), moved, state.numbers)
        };
        let mut pages = moved.bases.last().map_or(before.pages(), Snapshot::pages);
        let mut locals = Vec::with_capacity(changes.len());
        for (change, number) in changes.into_iter().zip(numbers + 1..) {
            let local = local(change, pages, number);
            pages = local.pages_after;
            locals.push(Arc::new(local));
        }
        let jump = moved.jump.as_deref();
        self.store_replaced(&before, jump, &moved.heads, &old, &locals, also)?;
        moved.tell(&self.cache);
        let mut state = self.state.lock();
        let changed = state.advance(moved);
        state.numbers = locals.last().map_or(state.numbers, |local| local.number);
        let version = state.next_version();
        if !old.is_empty() {
            state.base = state.base.after_reset(version);
        }
        state.locals = locals;
        let version = state.next_version();
        state.tip = if state.locals.is_empty() {
            state.base.clone()
        } else {
            stack(&state.base, &state.locals, version)
        };
        Ok(changed)
    }
}

fn local(change: Change, pages_before: u32, number: u64) -> LocalCommit {
    LocalCommit {
        number,
        pages_before,
        pages_after: change.pages,
        changes: change.changes,
        payload: change.payload,
    }
}
