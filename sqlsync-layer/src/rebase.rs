//! What becomes of each local commit when the history moved under it, as a state machine.
//!
//! ```text
//!   old base ─ A ─ B ─ C        pulled: old base ─ x ─ y
//!   new base (y) ─ A'─ …        for each local commit in order, one of:
//!
//!   Confirmed   its outcome is in the log already: drop it
//!   Transplant  nobody touched what it read or wrote: keep its pages
//!   Replay      run its mutation again
//!   Branch      plain SQL that cannot be run again, or the policy says so: keep it aside, and report
//! ```
//!
//! The default chain is *merge, else replay, else branch* ([`Policy::Merge`]). A commit that follows one
//! which was confirmed, dropped or run again keeps its pages only if it also misses what that one wrote
//! before and what it writes now: [`Rebase`] collects both while it goes.
//!
//! It knows neither SQLite nor clocks: its driver ([`crate::document`]) carries out each [`Step`] on a
//! volume aside and says what came of it. It may stop between any two steps, and be dropped: nothing has
//! changed until the driver puts the new stack in place.
//!
//! Invariants: every local commit gets exactly one step, in order; a mutation is never branched but by
//! the policy or the app's [`Handler`]; work without a mutation is never dropped.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::merge::{Condition, Conflict, Footprint, Validation, Writes, verdict};
use crate::protocol::Reason;

#[cfg(test)]
mod tests;

/// What to do with local work when the history moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Policy {
    /// Merge, else replay, else branch.
    #[default]
    Merge,
    /// Run every mutation again, also those whose pages nobody touched; branch what cannot be run.
    Replay,
    /// Any commit by others sends all local work to a branch of its own.
    Fork,
}

/// What stands behind a local commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// A mutation of this client: can be run again.
    Mutation {
        /// Its seq.
        seq: u64,
    },
    /// A deploy: can be run again.
    Deploy,
    /// Plain SQL: only its pages are left.
    Sql,
}

/// A local commit that is not known to be in the log.
#[derive(Debug, Clone, PartialEq)]
pub struct Pending {
    /// Its number in the replica.
    pub number: u64,
    /// What made it.
    pub work: Work,
    /// What it read and wrote.
    pub footprint: Footprint,
}

/// What the driver is to do with one local commit.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// Its outcome is in the log: leave it out.
    Confirmed(Arc<Pending>),
    /// Put its pages on the new stack.
    Transplant(Arc<Pending>),
    /// Run its mutation on the new stack; answer with [`Rebase::replayed`].
    Replay(Arc<Pending>, Conflict),
    /// Leave it out of the new stack, and keep the old one up to it as a branch.
    Branch(Arc<Pending>, Conflict),
    /// Ask the app; answer with [`Rebase::resolved`].
    Ask(Arc<Pending>, Conflict),
}

/// What the app decided about a conflict.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum Resolution {
    /// The default chain: replay, else branch.
    #[default]
    Default,
    /// Run the mutation again with other arguments.
    Edit {
        /// The reducer.
        reducer: String,
        /// Its arguments.
        args: serde_json::Map<String, serde_json::Value>,
    },
    /// Give it up. A mutation is recorded as rejected; plain SQL goes to a branch.
    Discard,
    /// Keep it as a branch.
    Branch,
}

/// One row that differs between two states.
#[derive(Debug, Clone, PartialEq)]
pub struct RowChange {
    /// Which table.
    pub table: String,
    /// Its rowid, or its primary key's values where it has no rowid.
    pub key: Vec<reducers_abi::Value>,
    /// The row before; `None` where it was not there.
    pub before: Option<Vec<reducers_abi::Value>>,
    /// The row after; `None` where it is gone.
    pub after: Option<Vec<reducers_abi::Value>>,
}

/// Rows that differ, table by table.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct RowChanges {
    /// In the order of tables and keys.
    pub rows: Vec<RowChange>,
    /// There are more: the comparison stopped at its bound.
    pub truncated: bool,
}

/// A conflict, as the app sees it.
#[derive(Debug)]
pub struct Dispute<'a> {
    /// The local commit.
    pub pending: &'a Pending,
    /// Its mutation, where it has one.
    pub mutation: Option<&'a crate::payload::Mutation>,
    /// What is in the way.
    pub conflict: &'a Conflict,
    /// What was written since, by others and by earlier local commits that changed.
    pub theirs: &'a Writes,
    /// How many local commits are behind it.
    pub behind: usize,
    /// Every mutation without a final answer as the app made it, oldest first, this one among them.
    pub waiting: &'a [crate::payload::Mutation],
    /// Rows that the others changed, and rows that all local commits changed.
    pub rows: &'a dyn DisputedRows,
}

/// Row-level differences, made when asked for: they cost a scan of every table.
pub trait DisputedRows: std::fmt::Debug {
    /// What others changed, from the state that local work began on.
    fn theirs(&self) -> Result<RowChanges, Reason>;
    /// What local work changed, from the same state.
    fn ours(&self) -> Result<RowChanges, Reason>;
}

/// Decides conflicts for an app. Must not block for long, and must not call the document.
pub trait Handler: Send + Sync {
    /// What to do with a local commit that cannot keep its pages.
    fn resolve(&self, dispute: &Dispute<'_>) -> Resolution;
}

/// The plan of one rebase; see the module.
#[derive(Debug)]
pub struct Rebase {
    policy: Policy,
    validation: Validation,
    asks: bool,
    /// Every seq of this client up to this one has its outcome in the log.
    settled: u64,
    /// What a commit must miss to keep its pages.
    touched: Writes,
    queue: VecDeque<Arc<Pending>>,
    /// The commit whose answer is awaited, and why it could not keep its pages.
    asked: Option<(Arc<Pending>, Conflict)>,
}

impl Rebase {
    /// A plan for `pending`, oldest first, after `theirs` was pulled. `settled` is this client's last seq
    /// in the log now; `asks` whether the app decides conflicts.
    pub fn new(
        policy: Policy,
        validation: Validation,
        asks: bool,
        settled: u64,
        theirs: Writes,
        pending: impl IntoIterator<Item = Arc<Pending>>,
    ) -> Rebase {
        let queue = pending.into_iter().collect();
        Rebase { policy, validation, asks, settled, touched: theirs, queue, asked: None }
    }

    /// More local commits were made on the old stack meanwhile.
    pub fn extend(&mut self, pending: impl IntoIterator<Item = Arc<Pending>>) {
        self.queue.extend(pending);
    }

    /// What was written since, as far as the plan has come.
    pub fn touched(&self) -> &Writes {
        &self.touched
    }

    /// Local commits that have no step yet.
    pub fn left(&self) -> usize {
        self.queue.len()
    }

    /// The next step; `None` once every local commit had one.
    pub fn next_step(&mut self) -> Option<Step> {
        let pending = self.queue.pop_front()?;
        if let Work::Mutation { seq } = pending.work
            && seq <= self.settled
        {
            self.gone(&pending.footprint.writes);
            return Some(Step::Confirmed(pending));
        }
        let verdict = match self.policy {
            Policy::Merge => verdict(&pending.footprint, &self.touched, self.validation),
            Policy::Replay | Policy::Fork => Err(Conflict::Policy),
        };
        Some(match verdict {
            Ok(()) => Step::Transplant(pending),
            Err(conflict) if self.asks => {
                self.asked = Some((pending.clone(), conflict.clone()));
                Step::Ask(pending, conflict)
            }
            Err(conflict) => self.by_policy(pending, conflict),
        })
    }

    fn by_policy(&mut self, pending: Arc<Pending>, conflict: Conflict) -> Step {
        match (self.policy, pending.work) {
            (Policy::Merge | Policy::Replay, Work::Mutation { .. } | Work::Deploy) => {
                self.gone(&pending.footprint.writes);
                Step::Replay(pending, conflict)
            }
            (Policy::Merge | Policy::Replay, Work::Sql) | (Policy::Fork, _) => {
                self.gone(&pending.footprint.writes);
                Step::Branch(pending, conflict)
            }
        }
    }

    /// The app has decided about the commit of the last [`Step::Ask`]: what to do with it. An edited
    /// mutation is a [`Step::Replay`]; a discarded one too, which the driver records as rejected.
    pub fn resolved(&mut self, resolution: &Resolution) -> Option<Step> {
        let (pending, conflict) = self.asked.take()?;
        let is_sql = pending.work == Work::Sql;
        Some(match resolution {
            Resolution::Default => self.by_policy(pending, conflict),
            Resolution::Edit { .. } | Resolution::Discard if !is_sql => {
                self.gone(&pending.footprint.writes);
                Step::Replay(pending, conflict)
            }
            Resolution::Edit { .. } | Resolution::Discard | Resolution::Branch => {
                self.gone(&pending.footprint.writes);
                Step::Branch(pending, conflict)
            }
        })
    }

    /// A replay ended; `new` is what it wrote this time.
    pub fn replayed(&mut self, new: &Writes) {
        self.gone(new);
    }

    /// What a commit wrote is not there any more, or is new.
    fn gone(&mut self, writes: &Writes) {
        if self.validation.checks(Condition::Chains) {
            self.touched.union_with(writes);
        }
    }
}
