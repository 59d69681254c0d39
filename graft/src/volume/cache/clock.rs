//! CLOCK: which slot a page is in, and which page gives its slot up to the next.
//!
//! A fixed number of slots in a circle. A page that is read gets its mark; the hand takes the next
//! page without one, and takes the marks of those it passes. New pages have no mark, so that a scan
//! longer than the cache passes through without driving out what is read again and again. Pages that
//! were replaced by newer versions ([`Clock::demote`]) give their slots up before any other.
//!
//! A look-up is one hash and one bit, and moves nothing. What the slots hold is the caller's: pages
//! in memory, or places in a file.
//!
//! Invariants: never more pages than slots; a page is in one slot; an insertion costs at most two
//! rounds of the hand, over a run of insertions less than two steps each.

use std::collections::{HashMap, VecDeque};

use crate::ids::{Lsn, PageIdx};

/// A page and the commit that wrote it: what never changes.
pub(crate) type Version = (PageIdx, Lsn);

#[derive(Clone, Copy, Default)]
struct Slot {
    version: Option<Version>,
    read: bool,
    stale: bool,
}

/// See the module.
pub(crate) struct Clock {
    capacity: usize,
    index: HashMap<Version, u32>,
    slots: Vec<Slot>,
    free: Vec<u32>,
    /// Slots whose pages were demoted, oldest first; some were read or removed since.
    stale: VecDeque<u32>,
    hand: usize,
}

/// Where [`Clock::insert`] put a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Inserted {
    /// Its slot, below the capacity.
    pub(crate) slot: u32,
    /// Whose slot it was until now.
    pub(crate) evicted: Option<Version>,
    /// Whether it was there already.
    pub(crate) present: bool,
}

impl Clock {
    /// `capacity` slots, at least one and at most 2^32 − 1. Memory grows with the slots in use.
    pub(crate) fn new(capacity: usize) -> Clock {
        Clock {
            capacity: capacity.clamp(1, u32::MAX as usize),
            index: HashMap::new(),
            slots: Vec::new(),
            free: Vec::new(),
            stale: VecDeque::new(),
            hand: 0,
        }
    }

    /// How many slots there are.
    pub(crate) fn capacity(&self) -> usize {
        self.capacity
    }

    /// How many pages there are.
    pub(crate) fn len(&self) -> usize {
        self.index.len()
    }

    /// The slot of `version`, which counts as a read of it.
    pub(crate) fn read(&mut self, version: Version) -> Option<u32> {
        let slot = *self.index.get(&version)?;
        let state = &mut self.slots[slot as usize];
        // Whoever reads a replaced version still needs it.
        (state.read, state.stale) = (true, false);
        Some(slot)
    }

    /// The slot of `version`, which does not count as a read.
    pub(crate) fn find(&self, version: Version) -> Option<u32> {
        self.index.get(&version).copied()
    }

    /// Gives `version` a slot; another page's where none is free. `read`: it counts as read.
    pub(crate) fn insert(&mut self, version: Version, read: bool) -> Inserted {
        if let Some(slot) = self.find(version) {
            self.slots[slot as usize].read |= read;
            return Inserted { slot, evicted: None, present: true };
        }
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None if self.slots.len() < self.capacity => {
                self.slots.push(Slot::default());
                (self.slots.len() - 1) as u32
            }
            None => self.victim(),
        };
        let before = std::mem::replace(
            &mut self.slots[slot as usize],
            Slot { version: Some(version), read, stale: false },
        );
        if let Some(evicted) = before.version {
            self.index.remove(&evicted);
        }
        self.index.insert(version, slot);
        Inserted { slot, evicted: before.version, present: false }
    }

    /// The slot to give up. Only where all are taken.
    fn victim(&mut self) -> u32 {
        while let Some(slot) = self.stale.pop_front() {
            if self.slots[slot as usize].stale {
                return slot;
            }
        }
        loop {
            // Ends in the second round at the latest: the first takes every mark.
            let at = self.hand;
            self.hand = (at + 1) % self.slots.len();
            if !std::mem::take(&mut self.slots[at].read) {
                return at as u32;
            }
        }
    }

    /// `version` was replaced by a newer one: it goes before any other, unless it is read again.
    pub(crate) fn demote(&mut self, version: Version) {
        if let Some(slot) = self.find(version) {
            let state = &mut self.slots[slot as usize];
            if !state.stale {
                (state.read, state.stale) = (false, true);
                self.stale.push_back(slot);
            }
        }
        // Slots that were read since they were demoted, or left: no more of them than slots.
        if self.stale.len() > 2 * self.capacity {
            let slots = &self.slots;
            self.stale.retain(|slot| slots[*slot as usize].stale);
        }
    }

    /// Forgets `version`, if it is in `slot`.
    pub(crate) fn remove(&mut self, version: Version, slot: u32) {
        if self.find(version) == Some(slot) {
            self.index.remove(&version);
            self.slots[slot as usize] = Slot::default();
            self.free.push(slot);
        }
    }

    /// Puts `version` into `slot`, for a clock that is filled from what a file holds; slots ascend.
    /// Says whether it is there now: not where another slot has it or there is no such slot.
    pub(crate) fn restore(&mut self, slot: u32, version: Option<Version>) -> bool {
        if slot as usize >= self.capacity {
            return false;
        }
        while self.slots.len() <= slot as usize {
            self.free.push(self.slots.len() as u32);
            self.slots.push(Slot::default());
        }
        let Some(version) = version else { return false };
        if self.index.contains_key(&version) || self.slots[slot as usize].version.is_some() {
            return false;
        }
        if self.free.last() == Some(&slot) {
            self.free.pop();
        } else {
            self.free.retain(|free| *free != slot);
        }
        self.slots[slot as usize].version = Some(version);
        self.index.insert(version, slot);
        true
    }
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng, rngs::StdRng};

    use super::*;

    fn version(page: u32, lsn: u64) -> Version {
        (PageIdx::new(page).unwrap(), Lsn(lsn))
    }

    /// However it is used, a clock holds at most its slots, each page in one of its own.
    #[test]
    fn a_clock_is_bounded_and_consistent() {
        for seed in 0..40 {
            let mut rng = StdRng::seed_from_u64(seed);
            let capacity = rng.random_range(1..40);
            let mut clock = Clock::new(capacity);
            let mut held: HashMap<Version, u32> = HashMap::new();
            for step in 0..2000 {
                let v = version(rng.random_range(1..60), rng.random_range(1..3));
                match rng.random_range(0..10) {
                    0..5 => {
                        let inserted = clock.insert(v, rng.random());
                        assert_eq!(inserted.present, held.contains_key(&v), "seed {seed}, step {step}");
                        if let Some(evicted) = inserted.evicted {
                            assert_eq!(held.remove(&evicted), Some(inserted.slot), "seed {seed}");
                        }
                        held.insert(v, inserted.slot);
                    }
                    5..8 => assert_eq!(clock.read(v), held.get(&v).copied(), "seed {seed}, step {step}"),
                    8 => clock.demote(v),
                    _ => {
                        if let Some(slot) = held.remove(&v) {
                            clock.remove(v, slot);
                        }
                    }
                }
                assert_eq!(clock.len(), held.len(), "seed {seed}, step {step}");
                assert!(clock.len() <= capacity && clock.stale.len() <= 2 * capacity + 1, "seed {seed}");
                let slots: std::collections::HashSet<_> = held.values().collect();
                assert_eq!(slots.len(), held.len(), "seed {seed}: one slot each");
                assert!(held.values().all(|slot| (*slot as usize) < capacity));
            }
        }
    }

    #[test]
    fn replaced_versions_go_first_and_what_is_read_stays() {
        let mut clock = Clock::new(4);
        for page in 1..=4 {
            clock.insert(version(page, 1), false);
        }
        clock.read(version(1, 1));
        clock.read(version(2, 1));
        clock.demote(version(2, 1));
        clock.demote(version(4, 1));
        // A snapshot still reads the old version of page 2.
        clock.read(version(2, 1));
        assert_eq!(clock.insert(version(4, 2), false).evicted, Some(version(4, 1)));
        // Then the one that nobody read.
        assert_eq!(clock.insert(version(5, 2), false).evicted, Some(version(3, 1)));
    }

    /// A scan of a hundred times the cache leaves what is read between its steps.
    #[test]
    fn a_scan_does_not_drive_out_what_is_read_again() {
        let mut clock = Clock::new(64);
        for page in 1..=8 {
            clock.insert(version(page, 1), true);
        }
        for page in 100..6500 {
            clock.insert(version(page, 1), false);
            let hot = version(page % 8 + 1, 1);
            assert!(clock.read(hot).is_some(), "{hot:?} left at {page}");
        }
    }
}
