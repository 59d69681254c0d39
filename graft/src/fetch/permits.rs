//! How many requests are under way at once: a semaphore in the order of asking, for any executor.

use std::collections::VecDeque;
use std::sync::Arc;

use futures::channel::oneshot;
use parking_lot::Mutex;

#[derive(Clone)]
pub(crate) struct Permits(Arc<Mutex<State>>);

struct State {
    free: usize,
    /// A permit goes through the channel itself: to a waiter that is gone it comes back by its drop.
    waiting: VecDeque<oneshot::Sender<Permit>>,
}

/// Gives its place to the next in line when dropped.
pub(crate) struct Permit(Option<Permits>);

impl Permits {
    pub(crate) fn new(permits: usize) -> Permits {
        Permits(Arc::new(Mutex::new(State { free: permits.max(1), waiting: VecDeque::new() })))
    }

    pub(crate) async fn acquire(&self) -> Permit {
        loop {
            let waiter = {
                let mut state = self.0.lock();
                if state.free > 0 {
                    state.free -= 1;
                    return Permit(Some(self.clone()));
                }
                let (sender, waiter) = oneshot::channel();
                state.waiting.push_back(sender);
                waiter
            };
            if let Ok(permit) = waiter.await {
                return permit;
            }
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let Some(permits) = self.0.take() else { return };
        loop {
            let next = {
                let mut state = permits.0.lock();
                match state.waiting.pop_front() {
                    Some(next) => next,
                    None => {
                        state.free += 1;
                        return;
                    }
                }
            };
            match next.send(Permit(Some(permits.clone()))) {
                Ok(()) => return,
                // Gone meanwhile: on to the next, without a drop inside a drop.
                Err(mut back) => back.0 = None,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::executor::block_on;
    use futures::future::FutureExt as _;

    use super::*;

    #[test]
    fn permits_are_bounded_and_come_back_from_waiters_that_left() {
        let permits = Permits::new(2);
        let (a, b) = (block_on(permits.acquire()), block_on(permits.acquire()));
        let mut gone = Box::pin(permits.acquire());
        let mut waits = Box::pin(permits.acquire());
        assert!((&mut gone).now_or_never().is_none() && (&mut waits).now_or_never().is_none());
        drop(gone);
        drop(a);
        let c = (&mut waits).now_or_never().expect("the next in line has it");
        assert!(permits.acquire().now_or_never().is_none(), "two are out");
        drop((b, c));
        let free = permits.0.lock().free;
        assert_eq!(free, 2);

        // Given to a waiter that leaves without looking.
        let (a, b) = (block_on(permits.acquire()), block_on(permits.acquire()));
        let mut gone = Box::pin(permits.acquire());
        assert!((&mut gone).now_or_never().is_none());
        drop((a, b));
        drop(gone);
        assert_eq!(permits.0.lock().free, 2);
    }
}
