//! A store whose creates wait at a gate: while it is closed, a coordinator accepts and cannot publish.

use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use graft::remote::{Listed, Remote, RemoteError, SharedRemote, Tag};
use tokio::sync::watch;

/// Passes everything on; creates only while open.
#[derive(Debug)]
pub struct Gate {
    inner: SharedRemote,
    open: watch::Sender<bool>,
}

impl Gate {
    /// An open gate before `inner`.
    pub fn before(inner: SharedRemote) -> Arc<Gate> {
        Arc::new(Gate { inner, open: watch::Sender::new(true) })
    }

    /// Closes it, or opens it and lets what waits through.
    pub fn open(&self, open: bool) {
        self.open.send_replace(open);
    }
}

#[async_trait]
impl Remote for Gate {
    async fn get(&self, key: &str) -> Result<Bytes, RemoteError> {
        self.inner.get(key).await
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, RemoteError> {
        self.inner.get_range(key, range).await
    }

    async fn create(&self, key: &str, body: Bytes) -> Result<(), RemoteError> {
        // The sender lives as long as this.
        drop(self.open.subscribe().wait_for(|open| *open).await);
        self.inner.create(key, body).await
    }

    async fn put(&self, key: &str, body: Bytes) -> Result<(), RemoteError> {
        self.inner.put(key, body).await
    }

    async fn get_tagged(&self, key: &str) -> Result<(Bytes, Tag), RemoteError> {
        self.inner.get_tagged(key).await
    }

    async fn update(&self, key: &str, body: Bytes, tag: &Tag) -> Result<Tag, RemoteError> {
        self.inner.update(key, body, tag).await
    }

    async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Listed>, RemoteError> {
        self.inner.list(prefix, after, limit).await
    }

    async fn delete(&self, key: &str) -> Result<(), RemoteError> {
        self.inner.delete(key).await
    }

    fn url(&self) -> String {
        self.inner.url()
    }
}
