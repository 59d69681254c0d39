//! A remote that counts what it is asked, so that tests can assert exact costs.

use std::ops::{Range, Sub};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use async_trait::async_trait;
use bytes::Bytes;

use super::{Listed, Remote, RemoteError, SharedRemote, Tag};

/// Requests by kind and bytes each way. Two of them subtract to what happened between.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Whole reads, tagged ones too.
    pub gets: u64,
    /// Ranged reads.
    pub ranges: u64,
    /// Creates, also those that lost.
    pub creates: u64,
    /// Unconditional writes.
    pub puts: u64,
    /// Updates, also those that lost.
    pub updates: u64,
    /// Pages of listings: one for each 1,000 rows or part of them, at least one.
    pub lists: u64,
    /// Deletes.
    pub deletes: u64,
    /// Bytes of bodies read.
    pub bytes_down: u64,
    /// Bytes of bodies sent, also by creates and updates that lost.
    pub bytes_up: u64,
}

impl Counts {
    /// All requests.
    pub fn requests(&self) -> u64 {
        self.gets + self.ranges + self.creates + self.puts + self.updates + self.lists + self.deletes
    }
}

impl Sub for Counts {
    type Output = Counts;
    fn sub(self, earlier: Counts) -> Counts {
        Counts {
            gets: self.gets - earlier.gets,
            ranges: self.ranges - earlier.ranges,
            creates: self.creates - earlier.creates,
            puts: self.puts - earlier.puts,
            updates: self.updates - earlier.updates,
            lists: self.lists - earlier.lists,
            deletes: self.deletes - earlier.deletes,
            bytes_down: self.bytes_down - earlier.bytes_down,
            bytes_up: self.bytes_up - earlier.bytes_up,
        }
    }
}

/// Counts every request to the remote inside it, failed ones too. One atomic addition each.
#[derive(Debug)]
pub struct Counting {
    inner: SharedRemote,
    gets: AtomicU64,
    ranges: AtomicU64,
    creates: AtomicU64,
    puts: AtomicU64,
    updates: AtomicU64,
    lists: AtomicU64,
    deletes: AtomicU64,
    bytes_down: AtomicU64,
    bytes_up: AtomicU64,
}

impl Counting {
    /// Counts from zero.
    pub fn new(inner: SharedRemote) -> Arc<Counting> {
        Arc::new(Counting {
            inner,
            gets: AtomicU64::new(0),
            ranges: AtomicU64::new(0),
            creates: AtomicU64::new(0),
            puts: AtomicU64::new(0),
            updates: AtomicU64::new(0),
            lists: AtomicU64::new(0),
            deletes: AtomicU64::new(0),
            bytes_down: AtomicU64::new(0),
            bytes_up: AtomicU64::new(0),
        })
    }

    /// The counts since the start or the last [`reset`](Counting::reset).
    pub fn snapshot(&self) -> Counts {
        self.read(|count| count.load(Relaxed))
    }

    /// Starts again from zero; gives what was counted.
    pub fn reset(&self) -> Counts {
        self.read(|count| count.swap(0, Relaxed))
    }

    fn read(&self, read: impl Fn(&AtomicU64) -> u64) -> Counts {
        Counts {
            gets: read(&self.gets),
            ranges: read(&self.ranges),
            creates: read(&self.creates),
            puts: read(&self.puts),
            updates: read(&self.updates),
            lists: read(&self.lists),
            deletes: read(&self.deletes),
            bytes_down: read(&self.bytes_down),
            bytes_up: read(&self.bytes_up),
        }
    }

    fn received(&self, body: Result<Bytes, RemoteError>) -> Result<Bytes, RemoteError> {
        if let Ok(body) = &body {
            self.bytes_down.fetch_add(body.len() as u64, Relaxed);
        }
        body
    }
}

#[async_trait]
impl Remote for Counting {
    async fn get(&self, key: &str) -> Result<Bytes, RemoteError> {
        self.gets.fetch_add(1, Relaxed);
        self.received(self.inner.get(key).await)
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, RemoteError> {
        self.ranges.fetch_add(1, Relaxed);
        self.received(self.inner.get_range(key, range).await)
    }

    async fn create(&self, key: &str, body: Bytes) -> Result<(), RemoteError> {
        self.creates.fetch_add(1, Relaxed);
        self.bytes_up.fetch_add(body.len() as u64, Relaxed);
        self.inner.create(key, body).await
    }

    async fn put(&self, key: &str, body: Bytes) -> Result<(), RemoteError> {
        self.puts.fetch_add(1, Relaxed);
        self.bytes_up.fetch_add(body.len() as u64, Relaxed);
        self.inner.put(key, body).await
    }

    async fn get_tagged(&self, key: &str) -> Result<(Bytes, Tag), RemoteError> {
        self.gets.fetch_add(1, Relaxed);
        let (body, tag) = self.inner.get_tagged(key).await?;
        self.bytes_down.fetch_add(body.len() as u64, Relaxed);
        Ok((body, tag))
    }

    async fn update(&self, key: &str, body: Bytes, tag: &Tag) -> Result<Tag, RemoteError> {
        self.updates.fetch_add(1, Relaxed);
        self.bytes_up.fetch_add(body.len() as u64, Relaxed);
        self.inner.update(key, body, tag).await
    }

    async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Listed>, RemoteError> {
        let rows = self.inner.list(prefix, after, limit).await;
        let pages = rows.as_ref().map_or(1, |rows| rows.len().div_ceil(1000).max(1));
        self.lists.fetch_add(pages as u64, Relaxed);
        rows
    }

    async fn delete(&self, key: &str) -> Result<(), RemoteError> {
        self.deletes.fetch_add(1, Relaxed);
        self.inner.delete(key).await
    }

    fn url(&self) -> String {
        self.inner.url()
    }

    fn place(&self) -> String {
        self.inner.place()
    }
}
