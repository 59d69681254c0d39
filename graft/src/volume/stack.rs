//! The stack of local commits as a whole: building another one aside, and putting it in place.
//!
//! What a lost race leaves behind is settled beside the replica: [`Volume::aside`] is a replica in
//! memory that stands on the pulled commits and shares the page cache. When its stack of local commits
//! is whole, [`Volume::replace_locals`] puts it in place of the old one, and moves the base, in one
//! batch of the store. A local commit that is in both stacks is neither copied nor stored again: of a
//! stack that nobody touched only the base moves.
//!
//! Invariants: a replica has the old base and stack or the new ones, in memory and on disk, never a
//! mixture; nothing is replaced that was not seen by whoever built the new stack; numbers of local
//! commits ascend, and one is given again only to what takes the place of the commit that had it.

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

/// One local commit of a new stack. Both kinds have the number of a commit of the old stack.
#[derive(Debug, Clone)]
pub enum Placed {
    /// That commit as it is. Where it does not change the page count, its page count is that of what it
    /// lies on now; where it does, it must lie on the count that it was made on.
    Kept(u64),
    /// Another in the place of the one whose number it has. It lies on the page count that it says.
    Changed(LocalCommit),
}

impl Placed {
    fn number(&self) -> u64 {
        match self {
            Placed::Kept(number) => *number,
            Placed::Changed(local) => local.number,
        }
    }
}

/// A new stack, and what of the old one is not in it.
struct Restacked {
    locals: Vec<Arc<LocalCommit>>,
    /// Dropped, or replaced under their number.
    gone: Vec<Arc<LocalCommit>>,
    /// Indexes in `locals` of those that replace one.
    changed: Vec<usize>,
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
        let mut writer = self.writer.lock();
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
        self.store_local(&mut writer, &local, also)?;
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
    /// commits is stored, nor the checkpoint that it goes on from where places were collected: the store
    /// says where this one stands. It must not pull, push or confirm. Costs the pulled commits' metadata.
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
            is_aside: true,
            sealing: Mutex::default(),
            writer: Mutex::default(),
            state: Mutex::new(state),
            cache: Arc::clone(&self.cache),
            read_before: crate::history::ReadBefore::default(),
            confirmed: self.confirmed.clone(),
            _claim: None,
        }
    }

    /// Puts these local commits as they are on top of a volume [`aside`](Volume::aside), whose stack they
    /// must fit: their numbers ascend from its last, each lies on the page count of the one before it.
    /// One move of the tip, whatever their number.
    ///
    /// # Errors
    ///
    /// [`CommitError::Stale`] where they do not fit; nothing has changed.
    pub fn extend_aside(&self, locals: &[LocalCommit]) -> Result<(), CommitError> {
        let _writer = self.writer.lock();
        let mut state = self.state.lock();
        let mut pages = state.tip.pages();
        for local in locals {
            let fits = local.pages_before == pages
                && local.changes.keys().next_back().is_none_or(|page| page.get() <= local.pages_after);
            if !fits {
                return Err(CommitError::Stale);
            }
            pages = local.pages_after;
        }
        let version = state.next_version();
        state.tip = state.tip.with_locals(locals, version);
        state.locals.extend(locals.iter().cloned().map(Arc::new));
        Ok(())
    }

    /// Moves the base onto `pulled` and puts `placed` on it in place of the local commits, whose numbers
    /// are `seen` and whose lineage ([`Snapshot::lineage`]) is `lineage`; `also` goes into the same
    /// batch. Answers the graft of the pulled commits. Stores what is new and removes what is gone; what
    /// is kept costs nothing but its place in the page table.
    ///
    /// # Errors
    ///
    /// Any [`ReplaceError`]: base, stack and store are as they were. [`ReplaceError::Stale`] also where
    /// `placed` does not fit what was seen: a number that is not in it or not in order, one that
    /// cannot lie where it is put.
    pub fn replace_locals(
        &self,
        lineage: u64,
        seen: &[u64],
        pulled: Pulled,
        placed: Vec<Placed>,
        also: Batch,
    ) -> Result<PageSet, ReplaceError> {
        let _writer = self.writer.lock();
        let (before, old, moved) = {
            let mut state = self.state.lock();
            if state.tip.lineage() != lineage
                || !state.locals.iter().map(|local| local.number).eq(seen.iter().copied())
            {
                return Err(ReplaceError::Stale);
            }
            if state.pending.is_some() {
                return Err(ReplaceError::Pending);
            }
            let moved = state.follow(pulled, self.page_size);
            (state.base.clone(), state.locals.clone(), moved)
        };
        let pages = moved.bases.last().map_or(before.pages(), Snapshot::pages);
        let Restacked { locals, gone, changed: new } = restacked(&old, placed, pages)?;
        let new: Vec<&LocalCommit> = new.into_iter().map(|at| &*locals[at]).collect();
        self.store_replaced(&before, moved.jump.as_deref(), &moved.heads, &gone, &new, also)?;
        moved.tell(&self.cache);
        let mut state = self.state.lock();
        let changed = state.advance(moved);
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
        changes: Arc::new(change.changes),
        payload: change.payload,
    }
}

/// The stack that `placed` makes of the local commits `old`, on a base of `pages` pages.
fn restacked(
    old: &[Arc<LocalCommit>],
    placed: Vec<Placed>,
    mut pages: u32,
) -> Result<Restacked, ReplaceError> {
    let mut old = old.iter();
    let mut new =
        Restacked { locals: Vec::with_capacity(placed.len()), gone: Vec::new(), changed: Vec::new() };
    for placed in placed {
        let number = placed.number();
        let was = loop {
            match old.next() {
                Some(local) if local.number == number => break local,
                Some(local) if local.number < number => new.gone.push(local.clone()),
                Some(_) | None => return Err(ReplaceError::Stale),
            }
        };
        let local = match placed {
            Placed::Kept(_) if was.pages_before == pages => was.clone(),
            Placed::Kept(_) => Arc::new(moved_onto(was, pages).ok_or(ReplaceError::Stale)?),
            Placed::Changed(local) if local.pages_before == pages => {
                new.gone.push(was.clone());
                new.changed.push(new.locals.len());
                Arc::new(local)
            }
            Placed::Changed(_) => return Err(ReplaceError::Stale),
        };
        pages = local.pages_after;
        new.locals.push(local);
    }
    new.gone.extend(old.cloned());
    Ok(new)
}

/// A local commit as it is, on another state of `pages` pages; `None` where it does not fit there.
pub(super) fn moved_onto(local: &LocalCommit, pages: u32) -> Option<LocalCommit> {
    let resizes = local.pages_before != local.pages_after;
    let pages_after = if resizes { local.pages_after } else { pages };
    let within = local.changes.keys().next_back().is_none_or(|page| page.get() <= pages_after);
    let fits = within && (!resizes || local.pages_before == pages);
    fits.then(|| LocalCommit { pages_before: pages, pages_after, ..local.clone() })
}
