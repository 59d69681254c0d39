//! The object store as the engine sees it: create once, read ranges, list in key order.
//!
//! Four operations are enough for durability, and all four exist on every store: a *conditional
//! create* (exactly one of several racing creators wins), a ranged read, a list in key order and,
//! for garbage, a delete. Two more replace an object: `put` whatever is there (tombstones, reader
//! leases), `update` only what was read (the owner's lease). [`open`] turns a URL into a [`Remote`].
//!
//! Invariants every implementation keeps, checked by one conformance suite: an object is visible
//! whole or not at all; what a `create`, `put` or `update` that returned `Ok` wrote, every later read
//! and list sees, also after a power loss; a key that exists is never changed by `create`; of racing
//! `update`s with one tag exactly one wins.
//!
//! | module | holds |
//! | --- | --- |
//! | [`memory`] | a map, for tests and the browser |
//! | `directory` | files, made by link and fsync (feature `native`) |
//! | [`object`] | any store of the crate `object_store`; `s3` builds the one for S3 (feature `native`) |
//! | `http` | the store behind a coordinator (feature `native`) |
//! | [`counting`], [`faulty`], [`delayed`] | wrappers: exact costs, injected faults, a distance |
//! | [`layer`] | what a wrapper need not say: all that it does not change |
//! | [`mod@probe`] | does this store really keep a second creator out? |
//! | [`conformance`] | the suite that every implementation passes |
//!
//! Not here: retries with back-off (the driver owns time), what the objects mean (`format`).

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

#[doc(hidden)]
pub mod conformance;
pub mod counting;
pub mod delayed;
#[cfg(feature = "native")]
pub mod directory;
pub mod faulty;
#[cfg(feature = "native")]
pub mod http;
pub mod layer;
pub mod memory;
pub mod object;
pub mod probe;
#[cfg(feature = "native")]
pub mod s3;

pub use counting::{Counting, Counts};
pub use delayed::Delayed;
#[cfg(feature = "native")]
pub use directory::DirectoryRemote;
pub use faulty::{Fault, Faults, Faulty};
#[cfg(feature = "native")]
pub use http::HttpRemote;
pub use layer::{Answer, Layer};
pub use memory::MemoryRemote;
pub use object::ObjectRemote;
pub use probe::{ProbeError, Probed, probe, probe_once};

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
    /// `update` found another object than the one its tag is of, or none. It may be our own from an
    /// earlier, unanswered try.
    #[error("object `{key}` is not what was read any more; read it again")]
    Changed {
        /// The key asked for.
        key: String,
    },
    /// The request failed or its answer was lost. A `create`, `put`, `update` or `delete` may have
    /// happened, or may happen yet.
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
    /// When it was last written, in ms since 1970 by the store's own clock. Comparable with other
    /// rows of the same store, and with no other clock.
    pub modified_ms: i64,
}

/// What an object was when it was read: handed back by [`Remote::get_tagged`] and
/// [`Remote::update`], and meant for the next `update` of the same key in the same store.
///
/// A tag is of the contents: in most stores equal bodies have equal tags, so an object that was
/// changed and changed back counts as unchanged. Whoever minds puts a counter into the body.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Tag(String);

impl Tag {
    /// The tag that `text` is, which came from [`Tag::as_str`].
    pub fn new(text: impl Into<String>) -> Tag {
        Tag(text.into())
    }

    /// The tag as text, for a store that is itself reached through another.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// For stores that have no tags of their own.
    fn of(body: &[u8]) -> Tag {
        Tag(blake3::hash(body).to_hex().as_str().into())
    }
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

    /// Writes the object, whatever is there. Readers see the old object or the new one, whole.
    ///
    /// A `put` that was given up may land after a later one.
    async fn put(&self, key: &str, body: Bytes) -> Result<(), RemoteError>;

    /// The whole object, and its tag for an [`update`](Remote::update). One request.
    async fn get_tagged(&self, key: &str) -> Result<(Bytes, Tag), RemoteError>;

    /// Replaces the object if it still is what `tag` was read of; gives the new one's tag. Of racing
    /// updates with one tag exactly one gets `Ok`.
    ///
    /// # Errors
    ///
    /// [`RemoteError::Changed`]: the object is another one, or gone; nothing was written.
    /// [`RemoteError::Unavailable`]: unknown; the update may have happened or happen later.
    async fn update(&self, key: &str, body: Bytes, tag: &Tag) -> Result<Tag, RemoteError>;

    /// Up to `limit` objects whose keys begin with `prefix` and are greater than `after`,
    /// in ascending key order. `prefix` is empty or ends in `/`. One request for up to 1,000 rows.
    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize)
    -> Result<Vec<Listed>, RemoteError>;

    /// Removes the object; one that does not exist is no error.
    async fn delete(&self, key: &str) -> Result<(), RemoteError>;

    /// The URL this remote was opened by, without credentials, for messages.
    fn url(&self) -> String;

    /// Where requests go: the URL and, where that leaves it open, the server. What was found out
    /// about a store at one place says nothing about another.
    fn place(&self) -> String {
        self.url()
    }
}

/// A shared remote.
pub type SharedRemote = Arc<dyn Remote>;

/// The kinds of request there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Request {
    /// [`Remote::get`] and [`Remote::get_tagged`]
    Get,
    /// [`Remote::get_range`]
    GetRange,
    /// [`Remote::create`]
    Create,
    /// [`Remote::put`]
    Put,
    /// [`Remote::update`]
    Update,
    /// [`Remote::list`]
    List,
    /// [`Remote::delete`]
    Delete,
}

/// Why [`open`] gave no remote. Nothing was created or sent.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum OpenRemoteError {
    /// No store of ours goes by this scheme.
    #[error(
        "`{url}` is not a store this build knows: give a directory, file:///DIR, memory:, s3://BUCKET/PREFIX or http://HOST:PORT"
    )]
    Scheme {
        /// The URL as given, without credentials.
        url: String,
    },
    /// The URL does not parse or lacks a part.
    #[error("store URL `{url}`: {message}")]
    Malformed {
        /// The URL as given, without credentials.
        url: String,
        /// What is wrong, and what to write instead.
        message: String,
    },
    /// The directory cannot hold objects.
    #[error("store directory `{url}`: {message}")]
    Directory {
        /// The URL or path as given.
        url: String,
        /// What the file system said, and what to do.
        message: String,
    },
    /// The environment does not say how to reach the bucket.
    #[error(
        "store `{url}`: {message}; see AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION, AWS_ENDPOINT_URL"
    )]
    Configuration {
        /// The URL as given, without credentials.
        url: String,
        /// Which setting is wrong, and what to do.
        message: String,
    },
}

/// Opens the store that `url` names.
///
/// | URL | store |
/// | --- | --- |
/// | `memory:` | a new, empty map, gone with the last handle |
/// | `file:///DIR`, `/DIR`, `./DIR`, `DIR` | a directory, made at its first object |
/// | `s3://BUCKET/PREFIX` | S3 and look-alikes; credentials, region and endpoint from `AWS_*` variables |
/// | `http://HOST:PORT`, `https://HOST` | the store of the coordinator there |
///
/// Sends no request, so an unreachable store shows at first use.
///
/// # Errors
///
/// [`OpenRemoteError`] names the URL, without credentials, and the next step.
pub fn open(url: &str) -> Result<SharedRemote, OpenRemoteError> {
    let shown = without_credentials(url);
    match url.split_once(':') {
        Some(("memory", "")) => Ok(Arc::new(MemoryRemote::new())),
        Some(("memory", _)) => Err(OpenRemoteError::Malformed {
            url: shown,
            message: "nothing can follow `memory:`; every open is a new, empty store".into(),
        }),
        _ => open_native(url, shown),
    }
}

#[cfg(feature = "native")]
fn open_native(url: &str, shown: String) -> Result<SharedRemote, OpenRemoteError> {
    match url.split_once("://") {
        Some(("s3", _)) => Ok(Arc::new(s3::open(url, shown)?)),
        Some(("http" | "https", _)) => Ok(Arc::new(HttpRemote::open_shown(url, shown)?)),
        // A URL's query, fragment and line ends are no part of its path: another directory would be used.
        Some(("file", path)) if path.contains(['?', '#', '\t', '\n', '\r']) => {
            Err(OpenRemoteError::Malformed {
                url: shown,
                message:
                    "write ? as %3F, # as %23, a tab as %09 and a line end as %0A; or give the path without \
                          file://"
                        .into(),
            })
        }
        Some(("file", _)) => {
            let path = url::Url::parse(url).ok().and_then(|url| url.to_file_path().ok());
            let path = path.ok_or_else(|| OpenRemoteError::Malformed {
                url: shown.clone(),
                message: "expected file:///DIR with an absolute path and no host".into(),
            })?;
            Ok(Arc::new(DirectoryRemote::open(&path)?))
        }
        Some(_) => Err(OpenRemoteError::Scheme { url: shown }),
        // `file:x`, `S3:x`: no path that anybody means; `./file:x` is one.
        None if url.is_empty() || url.split('/').next().is_some_and(|first| first.contains(':')) => {
            Err(OpenRemoteError::Scheme { url: shown })
        }
        None => Ok(Arc::new(DirectoryRemote::open(std::path::Path::new(url))?)),
    }
}

#[cfg(not(feature = "native"))]
fn open_native(_url: &str, shown: String) -> Result<SharedRemote, OpenRemoteError> {
    Err(OpenRemoteError::Scheme { url: shown })
}

/// Says once which implementation of TLS's ciphers this process uses: ring. Without it the first
/// request would panic. A process that chose before keeps its choice.
#[cfg(feature = "native")]
fn install_tls() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        if rustls::crypto::ring::default_provider().install_default().is_err() {
            tracing::debug!("another rustls provider is installed already; using it");
        }
    });
}

/// `url` with what stands before the `@` of its authority replaced.
fn without_credentials(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.into() };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    match authority.rsplit_once('@') {
        Some((secret, _)) => format!("{scheme}://***{}", &rest[secret.len()..]),
        None => url.into(),
    }
}

/// Refuses a key that some store could not hold: 1 to 900 bytes in parts of 1 to 255 bytes
/// separated by `/`, none of them `.` or `..`, no control characters.
///
/// # Errors
///
/// [`RemoteError::Refused`] names the key, its control characters escaped.
pub fn check_key(key: &str) -> Result<(), RemoteError> {
    let part_fits = |part: &str| (1..=255).contains(&part.len()) && part != "." && part != "..";
    let fits = key.len() <= 900 && key.split('/').all(part_fits) && !key.chars().any(char::is_control);
    if fits {
        return Ok(());
    }
    Err(RemoteError::Refused {
        key: key.escape_debug().to_string(),
        message: "not a key: give relative parts of 1 to 255 bytes separated by `/`, without `.`, `..` or \
                  control characters"
            .into(),
    })
}

/// Refuses a prefix that is neither empty nor a key followed by `/`.
fn check_prefix(prefix: &str) -> Result<(), RemoteError> {
    match prefix.strip_suffix('/') {
        Some(key) => check_key(key),
        None if prefix.is_empty() => Ok(()),
        None => Err(RemoteError::Refused {
            key: prefix.escape_debug().to_string(),
            message: "not a prefix: it must end in `/`".into(),
        }),
    }
}

/// The part of `body` that `range` covers: short or empty where the body ends earlier.
fn slice(body: &Bytes, range: Range<u64>) -> Bytes {
    let bound = |at: u64| usize::try_from(at).unwrap_or(usize::MAX).min(body.len());
    let (start, end) = (bound(range.start), bound(range.end));
    if start < end { body.slice(start..end) } else { Bytes::new() }
}

impl RemoteError {
    /// The key the request was about.
    pub fn key(&self) -> &str {
        match self {
            RemoteError::NotFound { key }
            | RemoteError::AlreadyExists { key }
            | RemoteError::Changed { key }
            | RemoteError::Unavailable { key, .. }
            | RemoteError::Refused { key, .. } => key,
        }
    }

    /// Whether the same request may succeed later.
    pub fn is_transient(&self) -> bool {
        matches!(self, RemoteError::Unavailable { .. })
    }

    fn unavailable(key: &str, message: impl fmt::Display) -> RemoteError {
        RemoteError::Unavailable { key: key.into(), message: message.to_string() }
    }

    fn not_found(key: &str) -> RemoteError {
        RemoteError::NotFound { key: key.into() }
    }

    fn already_exists(key: &str) -> RemoteError {
        RemoteError::AlreadyExists { key: key.into() }
    }

    fn changed(key: &str) -> RemoteError {
        RemoteError::Changed { key: key.into() }
    }
}

#[cfg(test)]
mod tests;
