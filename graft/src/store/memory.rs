//! Spaces as maps behind one lock. As atomic as the one on disk, and gone with its last handle.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};

use super::{Batch, ByteFile, Durability, ReplicaStore, Space, StoreError};

/// A replica store in memory.
#[derive(Default)]
pub struct MemoryStore {
    /// By space; a batch takes the lock once.
    entries: RwLock<BTreeMap<(Space, Bytes), Bytes>>,
    files: Mutex<BTreeMap<String, Arc<MemoryFile>>>,
}

/// A file of a [`MemoryStore`].
#[derive(Default)]
pub struct MemoryFile {
    bytes: RwLock<Vec<u8>>,
}

impl std::fmt::Debug for MemoryFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "MemoryFile({} bytes)", self.bytes.read().len())
    }
}

impl ByteFile for MemoryFile {
    fn len(&self) -> Result<u64, StoreError> {
        Ok(self.bytes.read().len() as u64)
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> Result<usize, StoreError> {
        let bytes = self.bytes.read();
        let from = usize::try_from(offset).ok().and_then(|offset| bytes.get(offset..)).unwrap_or_default();
        let had = from.len().min(into.len());
        into[..had].copy_from_slice(&from[..had]);
        Ok(had)
    }

    fn write(&self, offset: u64, new: &[u8]) -> Result<(), StoreError> {
        let mut bytes = self.bytes.write();
        let failed = || StoreError::Failed { dir: "memory".into(), message: "no room".into() };
        let start = usize::try_from(offset).map_err(|_| failed())?;
        let end = start.checked_add(new.len()).ok_or_else(failed)?;
        if bytes.len() < end {
            bytes.resize(end, 0);
        }
        bytes[start..end].copy_from_slice(new);
        Ok(())
    }

    fn set_len(&self, len: u64) -> Result<(), StoreError> {
        let failed = |_| StoreError::Failed { dir: "memory".into(), message: "no room".into() };
        self.bytes.write().resize(usize::try_from(len).map_err(failed)?, 0);
        Ok(())
    }
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

    fn file(&self, name: &str) -> Result<Option<Arc<dyn ByteFile>>, StoreError> {
        let mut files = self.files.lock();
        Ok(Some(files.entry(name.into()).or_default().clone()))
    }

    fn existing_file(&self, name: &str) -> Result<Option<Arc<dyn ByteFile>>, StoreError> {
        Ok(self.files.lock().get(name).map(|file| file.clone() as Arc<dyn ByteFile>))
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
