//! Objects in a map behind a mutex. Every future is ready at its first poll.

use std::collections::BTreeMap;
use std::ops::{Bound, Range};
use std::sync::atomic::{AtomicI64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;

use super::{Listed, Remote, RemoteError, Tag, check_key, check_prefix, slice};

/// An object store in memory: as exclusive and consistent as a real one, and gone with its handle.
///
/// It has no clock: objects are stamped with the time it was told last, at first 0.
#[derive(Default)]
pub struct MemoryRemote {
    objects: Mutex<BTreeMap<String, Object>>,
    now_ms: AtomicI64,
}

struct Object {
    body: Bytes,
    modified_ms: i64,
}

impl MemoryRemote {
    /// An empty store.
    pub fn new() -> MemoryRemote {
        MemoryRemote::default()
    }

    /// Every object, in key order. For tests: costs no request and copies no bodies.
    pub fn objects(&self) -> Vec<(String, Bytes)> {
        self.objects.lock().iter().map(|(key, object)| (key.clone(), object.body.clone())).collect()
    }

    /// From now on the store's clock stands at `now_ms` (ms since 1970), until it is set again.
    pub fn set_now_ms(&self, now_ms: i64) {
        self.now_ms.store(now_ms, Ordering::Relaxed);
    }

    /// Replaces or makes an object, as no client can. For tests that damage what is stored.
    pub fn overwrite(&self, key: &str, body: impl Into<Bytes>) {
        let object = self.object(body.into());
        self.objects.lock().insert(key.into(), object);
    }

    fn object(&self, body: Bytes) -> Object {
        Object { body, modified_ms: self.now_ms.load(Ordering::Relaxed) }
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
        let objects = self.objects.lock();
        objects.get(key).map(|object| object.body.clone()).ok_or_else(|| RemoteError::not_found(key))
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
        objects.insert(key.into(), self.object(body));
        Ok(())
    }

    async fn put(&self, key: &str, body: Bytes) -> Result<(), RemoteError> {
        check_key(key)?;
        self.overwrite(key, body);
        Ok(())
    }

    async fn get_tagged(&self, key: &str) -> Result<(Bytes, Tag), RemoteError> {
        let body = self.get(key).await?;
        let tag = Tag::of(&body);
        Ok((body, tag))
    }

    async fn update(&self, key: &str, body: Bytes, tag: &Tag) -> Result<Tag, RemoteError> {
        check_key(key)?;
        let mut objects = self.objects.lock();
        match objects.get_mut(key) {
            Some(object) if Tag::of(&object.body) == *tag => {
                let written = Tag::of(&body);
                *object = self.object(body);
                Ok(written)
            }
            Some(_) | None => Err(RemoteError::changed(key)),
        }
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
        let rows = rows.map(|(key, object)| Listed {
            key: key.clone(),
            bytes: object.body.len() as u64,
            modified_ms: object.modified_ms,
        });
        Ok(rows.collect())
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
