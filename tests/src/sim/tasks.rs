//! Futures without an executor: polled by hand whenever the world may have moved them.

use std::collections::BTreeMap;
use std::fmt;
use std::task::{Context, Poll};

use futures::future::LocalBoxFuture;
use futures::task::noop_waker_ref;

/// Running futures, each with the owner that it ends with.
pub struct Tasks<O, T> {
    next: u64,
    running: BTreeMap<u64, (O, LocalBoxFuture<'static, T>)>,
}

impl<O, T> Default for Tasks<O, T> {
    fn default() -> Self {
        Tasks { next: 0, running: BTreeMap::new() }
    }
}

impl<O: fmt::Debug, T> fmt::Debug for Tasks<O, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.running.values().map(|(owner, _)| owner)).finish()
    }
}

impl<O: Copy + PartialEq, T> Tasks<O, T> {
    /// Starts a task; it first runs at the next [`Tasks::poll`].
    pub fn spawn(&mut self, owner: O, task: impl Future<Output = T> + 'static) {
        self.next += 1;
        self.running.insert(self.next, (owner, Box::pin(task)));
    }

    /// Polls every task once whose owner is `awake`, oldest first, and answers those that ended.
    pub fn poll(&mut self, awake: impl Fn(O) -> bool) -> Vec<(O, T)> {
        let mut ended = Vec::new();
        let mut context = Context::from_waker(noop_waker_ref());
        self.running.retain(|_, (owner, task)| {
            if !awake(*owner) {
                return true;
            }
            match task.as_mut().poll(&mut context) {
                Poll::Pending => true,
                Poll::Ready(result) => {
                    ended.push((*owner, result));
                    false
                }
            }
        });
        ended
    }

    /// Drops every task of `owner` where it stands.
    pub fn cancel(&mut self, owner: O) {
        self.running.retain(|_, (of, _)| *of != owner);
    }

    /// Whether none runs.
    pub fn is_empty(&self) -> bool {
        self.running.is_empty()
    }
}
