//! Forks: a new volume that begins as another one was, without copying anything.
//!
//! ```text
//!   parent   1 ─ 2 ─ 3 ─ 4 ─ 5 …
//!                    └ child: 4' ─ 5' …      meta.parent = (parent, 3)
//! ```
//!
//! The child's log goes on where it was forked; what is before it, it reads through its parent. Costs a
//! fixed number of requests, whatever the size of the volume.
//!
//! Invariants: the *pin* under the parent is stored before the child's metadata, so that garbage
//! collection, which announces its horizon before it lists pins, either sees the pin or was announced
//! before it: then the forker sees the horizon and gives up. A child names the volume in whose log the
//! commit is, so that each pin is under the volume that it keeps.

use crate::catalog::{self, CatalogError};
use crate::format::Damaged;
use crate::format::meta::Meta;
use crate::format::pin::Pin;
use crate::gc;
use crate::ids::{Lsn, VolumeId, VolumeName, key};
use crate::remote::{Remote, RemoteError};
use crate::time::{At, AtError, Found, find};

/// Why there is no fork.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum ForkError {
    /// The state to fork at was not found.
    #[error(transparent)]
    At(#[from] AtError),
    /// The name is taken, or the catalog failed.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// It is being removed.
    #[error("volume {volume} is being removed; nothing can be forked from it any more")]
    Removed {
        /// Which volume.
        volume: VolumeId,
    },
    /// Garbage collection has passed this commit.
    #[error("volume {volume}: lsn {lsn} is older than what the volume retains, which begins at {horizon}")]
    Expired {
        /// Which volume.
        volume: VolumeId,
        /// The commit to fork at.
        lsn: Lsn,
        /// The oldest that can be.
        horizon: Lsn,
    },
}

impl From<RemoteError> for ForkError {
    fn from(error: RemoteError) -> ForkError {
        ForkError::Catalog(error.into())
    }
}
impl From<Damaged> for ForkError {
    fn from(error: Damaged) -> ForkError {
        ForkError::Catalog(error.into())
    }
}

/// Forks `parent` at `at` into the new volume `child`, a fresh random id, called `name`.
///
/// Eight requests for the newest state or an LSN of the parent's own log; what [`find`] says on top for
/// a time or an ancestor's LSN. No page and no part of the page table is read.
///
/// # Errors
///
/// [`ForkError`]. The name is not created then; what else was is removed again, and where that fails,
/// nothing names it. Only where the store failed, the outcome may be unknown: try again, with *another*
/// fresh id. Should the first try's name arrive at last, it names the first try's fork, which is whole;
/// with the same id, the second try could remove what that name means.
pub async fn create(
    remote: &dyn Remote,
    parent: VolumeId,
    at: At,
    child: VolumeId,
    name: &VolumeName,
) -> Result<Found, ForkError> {
    // Most often a taken name shows here, before anything is stored.
    match catalog::resolve(remote, name).await {
        Ok(found) => return Err(CatalogError::Exists { name: name.clone(), found }.into()),
        Err(CatalogError::NoSuchVolume { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    let found = find(remote, parent, at).await?;
    let Found { lsn, origin } = found;
    let page_size = catalog::meta(remote, origin).await?.page_size;
    let pin = key::fork_pin(origin, child);
    let pinned = Pin { lsn, seq: None, until_ms: Pin::FOR_EVER };
    match remote.create(&pin, pinned.encode(&pin)).await {
        // Its key carries our random id: whatever is there, we wrote it.
        Ok(()) | Err(RemoteError::AlreadyExists { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    let made = async {
        let horizon = gc::published(remote, origin).await.map_err(AtError::from)?.lsn;
        if horizon == Lsn(u64::MAX) {
            return Err(ForkError::Removed { volume: origin });
        }
        if lsn < horizon {
            return Err(ForkError::Expired { volume: origin, lsn, horizon });
        }
        let meta = Meta { page_size, parent: Some((origin, lsn)) };
        catalog::create(remote, name, child, meta).await?;
        Ok(found)
    };
    match made.await {
        Err(
            error @ (ForkError::Expired { .. }
            | ForkError::Removed { .. }
            | ForkError::Catalog(CatalogError::Exists { .. })),
        ) => {
            // Nobody knows the child: nothing of it is to stay, the pin least of all.
            for key in [key::meta(child), pin] {
                if let Err(error) = remote.delete(&key).await {
                    tracing::warn!(%key, %error, "left over from a fork that was not made");
                }
            }
            Err(error)
        }
        made => made,
    }
}

#[cfg(test)]
mod tests;
