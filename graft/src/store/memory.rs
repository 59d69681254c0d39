//! Spaces as maps behind one lock. As atomic as the one on disk, and gone with its last handle.

use std::collections::BTreeMap;

use bytes::Bytes;
use parking_lot::RwLock;

use super::{Batch, Durability, ReplicaStore, Space, StoreError};

/// A replica store in memory.
#[derive(Default)]
pub struct MemoryStore {
    /// By space; a batch takes the lock once.
    entries: RwLock<BTreeMap<(Space, Bytes), Bytes>>,
}

impl MemoryStore {
    /// An empty store.
    pub fn new() -> MemoryStore {
        MemoryStore::default()
    }
}

impl std::fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "MemoryStore({} entries)", self.entries.read().len())
    }
}

impl ReplicaStore for MemoryStore {
    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        Ok(self.entries.read().get(&(space, Bytes::copy_from_slice(key))).cloned())
    }

    fn scan(&self, space: Space, prefix: &[u8]) -> Result<Vec<(Bytes, Bytes)>, StoreError> {
        let entries = self.entries.read();
        let rows = entries.range((space, Bytes::copy_from_slice(prefix))..);
        let rows = rows.take_while(|((at, key), _)| *at == space && key.starts_with(prefix));
        Ok(rows.map(|((_, key), value)| (key.clone(), value.clone())).collect())
    }

    /// Nothing to wait for: `durability` makes no difference.
    fn write(&self, batch: Batch, _durability: Durability) -> Result<(), StoreError> {
        batch.check_keys("memory")?;
        let mut entries = self.entries.write();
        for (key, value) in batch.into_last_changes() {
            match value {
                Some(value) => drop(entries.insert(key, value)),
                None => drop(entries.remove(&key)),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::conformance;
    use super::*;

    #[test]
    fn memory_conforms() {
        conformance::check(&mut |_| Ok(Arc::new(MemoryStore::new())));
    }
}
