//! SQLite's clock and randomness while a mutation runs.
//!
//! A mutation records its wall clock and its random seed once; `datetime('now')`, `random()` and
//! `randomblob()` answer from them, on the first run and on every replay. The registered VFS's clock
//! and the connection's `random` functions ask [`now_ms`] and [`next_u64`], which answer from the
//! innermost [`Scope`] of the thread. SQLite calls them on the thread that runs the statement.
//!
//! The generator is splitmix64 (Steele, Lea, Flood, OOPSLA 2014), seeded with the mutation's seed:
//! eight lines that any language can repeat.

use std::cell::Cell;
use std::marker::PhantomData;

thread_local! {
    static CURRENT: Cell<Option<(i64, u64)>> = const { Cell::new(None) };
    static CLOCK_READS: Cell<u64> = const { Cell::new(0) };
}

/// While it lives, this thread's SQLite answers from a mutation's clock and seed.
#[derive(Debug)]
pub struct Scope {
    outer: Option<(i64, u64)>,
    // The scope belongs to its thread.
    _not_send: PhantomData<*const ()>,
}

impl Scope {
    /// Enters the scope of a mutation recorded at `now_ms` (ms since 1970) with `seed`.
    pub fn enter(now_ms: i64, seed: u64) -> Scope {
        Scope { outer: CURRENT.replace(Some((now_ms, seed))), _not_send: PhantomData }
    }
}

impl Drop for Scope {
    fn drop(&mut self) {
        CURRENT.set(self.outer);
    }
}

/// The scope's clock; `None` outside every scope.
pub fn now_ms() -> Option<i64> {
    CURRENT.get().map(|(now_ms, _)| now_ms)
}

/// How often SQLite on this thread has asked for the time, in a scope or outside.
pub fn clock_reads() -> u64 {
    CLOCK_READS.get()
}

pub(super) fn count_clock_read() {
    CLOCK_READS.set(CLOCK_READS.get().wrapping_add(1));
}

/// The scope's next random number; `None` outside every scope.
pub fn next_u64() -> Option<u64> {
    let (now_ms, state) = CURRENT.get()?;
    let state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    CURRENT.set(Some((now_ms, state)));
    let mut z = state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    Some(z ^ (z >> 31))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_nest_and_end() {
        assert_eq!((now_ms(), next_u64()), (None, None));
        let outer = Scope::enter(1, 0);
        // The published first outputs of splitmix64 for seed 0.
        assert_eq!(next_u64(), Some(0xe220_a839_7b1d_cdaf));
        {
            let _inner = Scope::enter(2, 0);
            assert_eq!((now_ms(), next_u64()), (Some(2), Some(0xe220_a839_7b1d_cdaf)));
        }
        assert_eq!((now_ms(), next_u64()), (Some(1), Some(0x6e78_9e6a_a1b9_65f4)));
        drop(outer);
        assert_eq!(now_ms(), None);
    }
}
