//! Pages in memory: two generations under a byte budget.
//!
//! New and re-read pages are in the young generation. When it holds half the budget it becomes the
//! old one and the old one's pages are dropped: what was not read for a whole generation is gone.
//! Only durable pages come here, so dropping one costs a fetch and nothing else.

use std::collections::HashMap;

use bytes::Bytes;

use crate::ids::{Lsn, PageIdx};

pub(super) struct PageCache {
    young: HashMap<(PageIdx, Lsn), Bytes>,
    old: HashMap<(PageIdx, Lsn), Bytes>,
    young_bytes: usize,
    budget_bytes: usize,
}

impl PageCache {
    pub(super) fn new(budget_bytes: usize) -> PageCache {
        PageCache { young: HashMap::new(), old: HashMap::new(), young_bytes: 0, budget_bytes }
    }

    pub(super) fn get(&mut self, page: PageIdx, lsn: Lsn) -> Option<Bytes> {
        if let Some(bytes) = self.young.get(&(page, lsn)) {
            return Some(bytes.clone());
        }
        let bytes = self.old.remove(&(page, lsn))?;
        self.put(page, lsn, bytes.clone());
        Some(bytes)
    }

    pub(super) fn put(&mut self, page: PageIdx, lsn: Lsn, bytes: Bytes) {
        self.young_bytes += bytes.len();
        if let Some(before) = self.young.insert((page, lsn), bytes) {
            self.young_bytes -= before.len();
        }
        if self.young_bytes > self.budget_bytes / 2 {
            self.old = std::mem::take(&mut self.young);
            self.young_bytes = 0;
        }
    }
}
