//! The object store as the engine sees it: create once, read ranges, list in key order.
//!
//! Four operations are enough for durability, and all four exist on every store: a *conditional
//! create* (exactly one of several racing creators wins), a ranged read, a list in key order and,
//! for garbage, a delete. [`open`] turns a URL into a [`Remote`].
//!
//! Invariants every implementation keeps, checked by one conformance suite: an object is visible
//! whole or not at all; after `create` returns `Ok`, every later read and list sees the object,
//! also after a power loss; a key that exists is never changed by `create`.
//!
//! Not here: retries with back-off (the driver owns time), what the objects mean
//! ([`crate::format`]).

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

/// Why a request to the object store did not do what was asked.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum RemoteError {
    /// Nothing has this key.
    #[error("object `{key}` does not exist")]
    NotFound {
        /// The key asked for.
        key: String,
    },
    /// `create` found the key taken. The object there may be our own from an earlier, unanswered try.
    #[error("object `{key}` exists already")]
    AlreadyExists {
        /// The key asked for.
        key: String,
    },
    /// The request failed or its answer was lost. A `create` may or may not have happened.
    #[error("object store failed on `{key}`: {message}; check that it is reachable, then try again")]
    Unavailable {
        /// The key asked for.
        key: String,
        /// What the store or the network said.
        message: String,
    },
    /// The store will not serve us as it is configured; trying again cannot help.
    #[error("object store refused `{key}`: {message}")]
    Refused {
        /// The key asked for.
        key: String,
        /// What the store said, and what to do.
        message: String,
    },
}

/// One row of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// The object's key, relative to the remote's prefix.
    pub key: String,
    /// Its length in bytes.
    pub bytes: u64,
}

/// An object store. Keys are relative, `/`-separated, without `.` and `..` parts.
#[async_trait]
pub trait Remote: Send + Sync + fmt::Debug {
    /// The whole object.
    async fn get(&self, key: &str) -> Result<Bytes, RemoteError>;

    /// Bytes `range` of the object; fewer where the object ends earlier, none where it ends
    /// before `range.start`. One request.
    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, RemoteError>;

    /// Creates the object unless its key exists. Of racing creators exactly one gets `Ok`.
    ///
    /// # Errors
    ///
    /// [`RemoteError::AlreadyExists`]: the key is taken and unchanged.
    /// [`RemoteError::Unavailable`]: unknown; the object may exist now or appear later.
    async fn create(&self, key: &str, body: Bytes) -> Result<(), RemoteError>;

    /// Up to `limit` objects whose keys begin with `prefix` and are greater than `after`,
    /// in ascending key order. `prefix` is empty or ends in `/`. One request for up to 1,000 rows.
    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize)
    -> Result<Vec<Listed>, RemoteError>;

    /// Removes the object; one that does not exist is no error.
    async fn delete(&self, key: &str) -> Result<(), RemoteError>;

    /// The URL this remote was opened by, without credentials, for messages.
    fn url(&self) -> String;
}

/// A shared remote.
pub type SharedRemote = Arc<dyn Remote>;
