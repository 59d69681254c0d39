//! Objects in a map behind a mutex. Every future is ready at its first poll.

use std::collections::BTreeMap;
use std::ops::{Bound, Range};

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;

use super::{Listed, Remote, RemoteError, check_key, check_prefix, slice};

/// An object store in memory: as exclusive and consistent as a real one, and gone with its handle.
#[derive(Default)]
pub struct MemoryRemote {
    objects: Mutex<BTreeMap<String, Bytes>>,
}

impl MemoryRemote {
    /// An empty store.
    pub fn new() -> MemoryRemote {
        MemoryRemote::default()
    }

    /// Every object, in key order. For tests: costs no request and copies no bodies.
    pub fn objects(&self) -> Vec<(String, Bytes)> {
        self.objects.lock().iter().map(|(key, body)| (key.clone(), body.clone())).collect()
    }

    /// Replaces or makes an object, as no client can. For tests that damage what is stored.
    pub fn overwrite(&self, key: &str, body: impl Into<Bytes>) {
        self.objects.lock().insert(key.into(), body.into());
    }
}

impl std::fmt::Debug for MemoryRemote {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "MemoryRemote({} objects)", self.objects.lock().len())
    }
}

#[async_trait]
impl Remote for MemoryRemote {
    async fn get(&self, key: &str) -> Result<Bytes, RemoteError> {
        check_key(key)?;
        self.objects.lock().get(key).cloned().ok_or_else(|| RemoteError::not_found(key))
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, RemoteError> {
        Ok(slice(&self.get(key).await?, range))
    }

    async fn create(&self, key: &str, body: Bytes) -> Result<(), RemoteError> {
        check_key(key)?;
        let mut objects = self.objects.lock();
        if objects.contains_key(key) {
            return Err(RemoteError::already_exists(key));
        }
        objects.insert(key.into(), body);
        Ok(())
    }

    async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Listed>, RemoteError> {
        check_prefix(prefix)?;
        let from = match after {
            Some(after) if after >= prefix => Bound::Excluded(after),
            _ => Bound::Included(prefix),
        };
        let objects = self.objects.lock();
        let rows = objects.range::<str, _>((from, Bound::Unbounded));
        let rows = rows.take_while(|(key, _)| key.starts_with(prefix)).take(limit);
        Ok(rows.map(|(key, body)| Listed { key: key.clone(), bytes: body.len() as u64 }).collect())
    }

    async fn delete(&self, key: &str) -> Result<(), RemoteError> {
        check_key(key)?;
        self.objects.lock().remove(key);
        Ok(())
    }

    fn url(&self) -> String {
        "memory:".into()
    }
}
