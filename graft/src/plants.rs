//! Bugs for the simulation to find. Only with the feature `plants`, which nothing but tests has, and only
//! in threads that ask for one.

use std::cell::Cell;

/// A bug.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bug {
    /// A segment's key does not carry its commit's id: two commits under one LSN share it.
    SharedSegmentKeys,
    /// A publisher that finds its LSN taken does not look by whom.
    NoReadBack,
}

thread_local! {
    static PLANTED: Cell<Option<Bug>> = const { Cell::new(None) };
}

/// From now on this thread has `bug`, and no other.
pub fn plant(bug: Option<Bug>) {
    PLANTED.set(bug);
}

/// Whether this thread has `bug`.
pub(crate) fn has(bug: Bug) -> bool {
    PLANTED.get() == Some(bug)
}
