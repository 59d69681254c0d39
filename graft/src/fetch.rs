//! Fetching: bringing pages that a read faulted on into a replica's cache.
//!
//! Costs one ranged GET for each frame that holds a page asked for and is not cached; before that, what
//! [`crate::chunks`] says, where parts of the page table were not read yet.
//!
//! Invariants: what is cached was checked against its hash; a fetch that fails leaves what it had
//! fetched before in the cache, and everything else as it was.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use futures::{StreamExt as _, TryStreamExt as _};

use crate::chunks;
use crate::format::Damaged;
use crate::page_set::PageSet;
use crate::remote::{Remote, RemoteError, SharedRemote};
use crate::snapshot::{FrameRef, Location, Snapshot};
use crate::store::StoreError;
use crate::volume::Volume;

/// Frames fetched at the same time.
const CONCURRENT_FETCHES: usize = 16;

/// Why pages were not fetched. Those that were are cached.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum FetchError {
    /// The store failed; safe to try again.
    #[error(transparent)]
    Remote(#[from] RemoteError),
    /// A frame is damaged.
    #[error(transparent)]
    Damaged(#[from] Damaged),
    /// The local store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Fetches `pages` of `snapshot` into `volume`'s cache: one ranged GET for each frame that is missing.
pub async fn fetch(
    remote: &dyn Remote,
    volume: &Volume,
    snapshot: &Snapshot,
    pages: &PageSet,
) -> Result<(), FetchError> {
    chunks::load(remote, volume, snapshot, pages).await?;
    let mut frames: HashMap<*const FrameRef, Arc<FrameRef>> = HashMap::new();
    for page in volume.missing(snapshot, pages)?.iter() {
        if let Location::Frame(frame, _) = snapshot.location(page) {
            frames.insert(Arc::as_ptr(frame), frame.clone());
        }
    }
    let mut frames: Vec<Arc<FrameRef>> = frames.into_values().collect();
    frames.sort_by(|a, b| (&a.key, a.offset).cmp(&(&b.key, b.offset)));
    let fetched = frames.into_iter().map(|frame| async move {
        let range = frame.offset..frame.offset.saturating_add(u64::from(frame.bytes));
        let bytes = remote.get_range(&frame.key, range).await?;
        volume.put_fetched(&frame, &bytes)
    });
    futures::stream::iter(fetched).buffer_unordered(CONCURRENT_FETCHES).try_collect().await
}

/// Fetches pages for code that cannot wait asynchronously: SQLite's callbacks.
pub trait Fetch: Send + Sync + fmt::Debug {
    /// Brings `pages` of `snapshot` into `volume`'s cache, or says why not. May block.
    fn fetch(&self, volume: &Volume, snapshot: &Snapshot, pages: &PageSet) -> Result<(), FetchError>;
}

/// A [`Fetch`] that blocks on a remote.
#[derive(Debug)]
pub struct RemoteFetch {
    remote: SharedRemote,
    #[cfg(feature = "native")]
    runtime: Option<tokio::runtime::Handle>,
}

impl RemoteFetch {
    /// Blocks the calling thread, which must not be one that runs tokio tasks. A remote that needs
    /// tokio (S3) is driven by the runtime that is current here.
    pub fn new(remote: SharedRemote) -> RemoteFetch {
        RemoteFetch {
            remote,
            #[cfg(feature = "native")]
            runtime: tokio::runtime::Handle::try_current().ok(),
        }
    }
}

impl Fetch for RemoteFetch {
    fn fetch(&self, volume: &Volume, snapshot: &Snapshot, pages: &PageSet) -> Result<(), FetchError> {
        let fetch = fetch(&*self.remote, volume, snapshot, pages);
        #[cfg(feature = "native")]
        if let Some(runtime) = &self.runtime {
            return runtime.block_on(fetch);
        }
        futures::executor::block_on(fetch)
    }
}
