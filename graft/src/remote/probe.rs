//! Does this store really keep a second creator out? Several S3 look-alikes do not.
//!
//! One client at a time is asked here. A store that is exclusive for one and not under a race
//! exists too; the racing form comes with the S3 work.

use bytes::Bytes;

use super::{Remote, RemoteError};

/// Why a store is not known to be fit for a log.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum ProbeError {
    /// A second create of one key was accepted. A log kept here would lose commits.
    #[error(
        "store `{url}` accepts a second create of one key, so two writers could both win a commit; use a \
         store that honours `If-None-Match: *` (S3, R2, Ceph RGW, a local directory)"
    )]
    NotExclusive {
        /// The store.
        url: String,
    },
    /// The second create was refused and yet changed the object, or the object cannot be read back.
    #[error("store `{url}` does not give back what was created at `{key}`; use another store")]
    NotKept {
        /// The store.
        url: String,
        /// The probe's key; it is left there to be looked at.
        key: String,
    },
    /// Somebody else probes with this name.
    #[error("probe `{key}` exists in store `{url}`: try again with another name")]
    Taken {
        /// The store.
        url: String,
        /// The probe's key.
        key: String,
    },
    /// The store failed before it showed anything.
    #[error("store `{url}` could not be probed: {source}")]
    Failed {
        /// The store.
        url: String,
        /// What failed.
        source: RemoteError,
    },
}

/// Creates `probe/{name}` twice and says whether the second create lost, as it must.
///
/// `name` is random and the caller's, who owns randomness. Four requests; the object is deleted
/// again. A store without an answer to this must not hold a log.
///
/// # Errors
///
/// [`ProbeError`]; all but `Failed` and `Taken` are final for this store.
pub async fn probe(remote: &dyn Remote, name: &str) -> Result<(), ProbeError> {
    let (url, key) = (remote.url(), format!("probe/{name}"));
    let failed = |source| ProbeError::Failed { url: url.clone(), source };
    let first = Bytes::from(format!("first of {name}"));
    match remote.create(&key, first.clone()).await {
        Ok(()) => {}
        Err(RemoteError::AlreadyExists { .. }) => return Err(ProbeError::Taken { url, key }),
        Err(source) => return Err(failed(source)),
    }
    let second = remote.create(&key, Bytes::from(format!("second of {name}"))).await;
    let kept = remote.get(&key).await;
    match second {
        Err(RemoteError::AlreadyExists { .. }) => {}
        Ok(()) => {
            remote.delete(&key).await.map_err(failed)?;
            return Err(ProbeError::NotExclusive { url });
        }
        Err(source) => return Err(failed(source)),
    }
    match kept {
        Ok(body) if body == first => remote.delete(&key).await.map_err(failed),
        Ok(_) | Err(RemoteError::NotFound { .. }) => Err(ProbeError::NotKept { url, key }),
        Err(source) => Err(failed(source)),
    }
}
