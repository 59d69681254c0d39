//! Virtual time: what will happen, ordered by when, then by when it was decided.

use std::collections::BTreeMap;

/// Future events. Time is in milliseconds since the world began.
#[derive(Debug)]
pub struct Queue<E> {
    now: u64,
    order: u64,
    /// By time; those put off come first; then by when it was decided.
    events: BTreeMap<(u64, bool, u64), E>,
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
        self.events.insert((time.max(self.now), true, self.order), event);
    }

    /// Puts off an event that was to happen now: it stays before those that come later by themselves.
    pub fn put_off(&mut self, time: u64, event: E) {
        self.order += 1;
        self.events.insert((time.max(self.now), false, self.order), event);
    }

    /// Moves time to the next event and answers it.
    pub fn pop(&mut self) -> Option<E> {
        let ((time, ..), event) = self.events.pop_first()?;
        self.now = time;
        Some(event)
    }
}
