//! A store whose creates wait at a gate: while it is closed, a coordinator accepts and cannot publish.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use graft::remote::{Layer, Remote, RemoteError, SharedRemote};
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
impl Layer for Gate {
    fn inner(&self) -> &dyn Remote {
        &*self.inner
    }

    async fn create(&self, key: &str, body: Bytes) -> Result<(), RemoteError> {
        // The sender lives as long as this.
        drop(self.open.subscribe().wait_for(|open| *open).await);
        self.inner.create(key, body).await
    }
}
