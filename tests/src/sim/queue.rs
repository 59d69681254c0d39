//! Virtual time: what will happen, ordered by when, then by when it was decided.

use std::collections::BTreeMap;

/// Future events. Time is in milliseconds since the world began.
#[derive(Debug)]
pub struct Queue<E> {
    now: u64,
    order: u64,
    events: BTreeMap<(u64, u64), E>,
}

impl<E> Default for Queue<E> {
    fn default() -> Self {
        Queue { now: 0, order: 0, events: BTreeMap::new() }
    }
}

impl<E> Queue<E> {
    /// The time, in milliseconds since the world began.
    pub fn now(&self) -> u64 {
        self.now
    }

    /// Lets `event` happen in `delay` milliseconds.
    pub fn after(&mut self, delay: u64, event: E) {
        self.at(self.now + delay, event);
    }

    /// Lets `event` happen at `time`, or now where that is past. Events of one time happen in the order
    /// in which they were put here.
    pub fn at(&mut self, time: u64, event: E) {
        self.order += 1;
        self.events.insert((time.max(self.now), self.order), event);
    }

    /// Moves time to the next event and answers it.
    pub fn pop(&mut self) -> Option<E> {
        let ((time, _), event) = self.events.pop_first()?;
        self.now = time;
        Some(event)
    }
}
