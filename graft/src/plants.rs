//! Bugs for the simulation to find, and its time. Only with the feature `plants`, which nothing but tests has, and only
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

/// Time as a simulation plays it, where what takes days takes minutes.
#[derive(Debug, Clone, Copy)]
pub struct Played {
    /// What this thread's clocks show, in milliseconds.
    pub now_ms: u64,
    /// How long a look at the log vouches for its head.
    pub recent_ms: u64,
    /// When tombstones go: so many commits and checkpoints below the floor, so many milliseconds later.
    pub burial: (u64, u64, i64),
}

thread_local! {
    static PLAYED: Cell<Option<Played>> = const { Cell::new(None) };
}

/// From now on this thread lives in such a time; in the machine's where it is `None`.
pub fn play(time: Option<Played>) {
    PLAYED.set(time);
}

pub(crate) fn played() -> Option<Played> {
    PLAYED.get()
}
