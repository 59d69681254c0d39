//! How many requests are under way at once: a semaphore over requests and bytes, for any executor.
//!
//! Whoever is waited for goes before what is fetched ahead, which leaves some places free for that;
//! among equals the order is that of asking. A request that is waited for only later, by a reader
//! that came to where it was fetched ahead for, becomes *urgent* where it stands ([`Permits::urge`]).
//!
//! Invariants: never more requests than there are places; what is fetched ahead is never more than
//! [`AHEAD_BYTES`] at once, but for a single longer request; a waiter that left holds nothing up. A
//! request's bytes count until its pages are cached, so that this bounds what is in memory beside the cache.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use futures::channel::oneshot;
use parking_lot::Mutex;

/// Bytes under way for what is fetched ahead, and not cached yet: four requests of full length.
const AHEAD_BYTES: u64 = 16 << 20;

#[derive(Clone)]
pub(crate) struct Permits(Arc<Mutex<State>>);

struct State {
    free: usize,
    /// Places that only urgent requests take.
    reserved: usize,
    /// Of requests that were not urgent when they began.
    ahead_bytes: u64,
    /// A permit goes through the channel itself: to a waiter that is gone it comes back by its drop.
    waiting: VecDeque<Waiter>,
}

struct Waiter {
    urgent: Arc<AtomicBool>,
    bytes: u64,
    sender: oneshot::Sender<Permit>,
}

/// Gives its place to the next in line when dropped.
pub(crate) struct Permit {
    of: Option<Permits>,
    ahead_bytes: u64,
}

impl State {
    fn admits(&self, urgent: bool, bytes: u64) -> bool {
        if urgent {
            return self.free > 0;
        }
        self.free > self.reserved
            && (self.ahead_bytes == 0 || self.ahead_bytes.saturating_add(bytes) <= AHEAD_BYTES)
    }

    /// Who is next, if anybody may go.
    fn next(&mut self) -> Option<Waiter> {
        let urgent = self.waiting.iter().position(|waiter| waiter.urgent.load(SeqCst));
        let at = urgent.or_else(|| (!self.waiting.is_empty()).then_some(0))?;
        let waiter = self.waiting.get(at)?;
        if !self.admits(urgent.is_some(), waiter.bytes) {
            return None;
        }
        self.waiting.remove(at)
    }

    fn take(&mut self, urgent: bool, bytes: u64) -> u64 {
        let ahead_bytes = if urgent { 0 } else { bytes };
        self.free -= 1;
        self.ahead_bytes += ahead_bytes;
        ahead_bytes
    }
}

impl Permits {
    /// So many requests, of which an eighth is kept for urgent ones.
    pub(crate) fn new(permits: usize) -> Permits {
        let free = permits.max(1);
        let state = State { free, reserved: free / 8, ahead_bytes: 0, waiting: VecDeque::new() };
        Permits(Arc::new(Mutex::new(state)))
    }

    /// Waits for a place for a request of so many bytes.
    pub(crate) async fn acquire(&self, bytes: u64, urgent: &Arc<AtomicBool>) -> Permit {
        loop {
            let waiter = {
                let mut state = self.0.lock();
                let is_urgent = urgent.load(SeqCst);
                // Nobody is passed by its equals.
                let first = is_urgent || state.waiting.is_empty();
                if first && state.admits(is_urgent, bytes) {
                    let ahead_bytes = state.take(is_urgent, bytes);
                    return Permit { of: Some(self.clone()), ahead_bytes };
                }
                let (sender, waiter) = oneshot::channel();
                state.waiting.push_back(Waiter { urgent: urgent.clone(), bytes, sender });
                waiter
            };
            if let Ok(permit) = waiter.await {
                return permit;
            }
        }
    }

    /// Somebody waits for this request now.
    pub(crate) fn urge(&self, urgent: &AtomicBool) {
        if !urgent.swap(true, SeqCst) {
            self.admit();
        }
    }

    /// Lets in who may go.
    fn admit(&self) {
        loop {
            let (waiter, ahead_bytes) = {
                let mut state = self.0.lock();
                let Some(waiter) = state.next() else { return };
                let ahead_bytes = state.take(waiter.urgent.load(SeqCst), waiter.bytes);
                (waiter, ahead_bytes)
            };
            if let Err(mut back) = waiter.sender.send(Permit { of: Some(self.clone()), ahead_bytes }) {
                // Gone meanwhile: on to the next, without a drop inside a drop.
                back.of = None;
                self.put_back(ahead_bytes);
            }
        }
    }

    fn put_back(&self, ahead_bytes: u64) {
        let mut state = self.0.lock();
        state.free += 1;
        state.ahead_bytes -= ahead_bytes;
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(permits) = self.of.take() {
            permits.put_back(self.ahead_bytes);
            permits.admit();
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::executor::block_on;
    use futures::future::FutureExt as _;

    use super::*;

    fn urgent() -> Arc<AtomicBool> {
        Arc::new(AtomicBool::new(true))
    }

    fn ahead() -> Arc<AtomicBool> {
        Arc::default()
    }

    #[test]
    fn permits_are_bounded_and_come_back_from_waiters_that_left() {
        let permits = Permits::new(2);
        let asked = urgent();
        let acquire = || permits.acquire(1, &asked);
        let (a, b) = (block_on(acquire()), block_on(acquire()));
        let mut gone = Box::pin(acquire());
        let mut waits = Box::pin(acquire());
        assert!((&mut gone).now_or_never().is_none() && (&mut waits).now_or_never().is_none());
        drop(gone);
        drop(a);
        let c = (&mut waits).now_or_never().expect("the next in line has it");
        assert!(acquire().now_or_never().is_none(), "two are out");
        drop((b, c));
        let free = permits.0.lock().free;
        assert_eq!(free, 2);

        // Given to a waiter that leaves without looking.
        let (a, b) = (block_on(acquire()), block_on(acquire()));
        let mut gone = Box::pin(acquire());
        assert!((&mut gone).now_or_never().is_none());
        drop((a, b));
        drop(gone);
        let free = permits.0.lock().free;
        assert_eq!(free, 2);
    }

    #[test]
    fn what_is_waited_for_passes_what_is_not() {
        let permits = Permits::new(8);
        let (asked, later) = (urgent(), ahead());
        let mut out: Vec<Permit> = (0..7).map(|_| block_on(permits.acquire(1, &later))).collect();
        let mut first = Box::pin(permits.acquire(1, &later));
        assert!((&mut first).now_or_never().is_none(), "the eighth place is for urgent ones");
        let one = permits.acquire(1 << 40, &asked).now_or_never().expect("whatever its length");
        let mut second = Box::pin(permits.acquire(1, &asked));
        assert!((&mut second).now_or_never().is_none());
        drop(one);
        let two = (&mut second).now_or_never().expect("before the one that asked first");
        drop(two);
        out.pop();
        assert!((&mut first).now_or_never().is_some());
    }

    #[test]
    fn bytes_ahead_are_bounded_until_somebody_waits_for_them() {
        let permits = Permits::new(64);
        let (later, becomes) = (ahead(), ahead());
        let long = block_on(permits.acquire(2 * AHEAD_BYTES, &later));
        let mut waits = Box::pin(permits.acquire(1, &becomes));
        assert!((&mut waits).now_or_never().is_none(), "a long one goes alone");
        permits.urge(&becomes);
        assert!((&mut waits).now_or_never().is_some());
        let mut next = Box::pin(permits.acquire(AHEAD_BYTES, &later));
        assert!((&mut next).now_or_never().is_none());
        drop(long);
        assert!((&mut next).now_or_never().is_some());
        assert_eq!(permits.0.lock().ahead_bytes, 0);
    }
}
