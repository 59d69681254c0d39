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
//! before it: then the forker sees the horizon and gives up. A removal announces itself in the same way, and
//! takes all marks away after the volume's metadata: the forker looks for the one and then for the other. A child names the volume in whose log the
//! commit is, so that each pin is under the volume that it keeps. A name is created after the fork that it
//! names is whole, and nothing of a fork is deleted while a try may still name it. Tries that meant states of
//! different volumes may leave a pin under each; the one under the volume that the metadata does not name
//! goes by garbage collection.

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
    /// The id stands for another fork already: an earlier try with it meant another commit.
    #[error("fork {child} was begun at lsn {lsn}, not at {wanted}; fork again, with a fresh id")]
    Differs {
        /// The fork's id.
        child: VolumeId,
        /// Where it was begun.
        lsn: Lsn,
        /// What was asked for now.
        wanted: Lsn,
    },
    /// An earlier try with this id was not finished for longer than the grace, and was given up.
    #[error("fork {child} was not finished in time and its pages are not kept; fork again, with a fresh id")]
    Reaped {
        /// The fork's id.
        child: VolumeId,
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

impl ForkError {
    /// What to tell a person who forked volume `parent` at `at`: by its name, and with what to do next.
    pub fn told(&self, parent: &VolumeName, at: At) -> String {
        match self {
            ForkError::At(error) => error.told(parent, at),
            ForkError::Expired { lsn, horizon, .. } => format!(
                "volume `{parent}` does not keep lsn {lsn} any more: what can be forked begins at lsn {horizon}"
            ),
            ForkError::Removed { .. } => {
                format!("volume `{parent}` is being removed; nothing can be forked from it any more")
            }
            ForkError::Catalog(_) | ForkError::Differs { .. } | ForkError::Reaped { .. } => self.to_string(),
        }
    }
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
/// May be called any number of times with the same id, whatever became of the tries before, also with
/// another name: where an earlier one has made the volume, this one goes on with it, and answers the state
/// that it was forked at, which for a moment is the one that it meant then. It deletes nothing, because a
/// delete that arrives late would undo what a later try does. Whoever uses the id no more after an error
/// calls [`abandon`].
///
/// # Errors
///
/// [`ForkError`]. The name is not created then, but where the store failed: then it may be there, now or
/// later, and names this fork, which is whole.
pub async fn create(
    remote: &dyn Remote,
    parent: VolumeId,
    at: At,
    child: VolumeId,
    name: &VolumeName,
) -> Result<Found, ForkError> {
    // Most often a taken name shows here, before anything is stored.
    match catalog::resolve(remote, name).await {
        Ok(found) if found == child => {
            let made = earlier(remote, child).await?.ok_or(ForkError::Reaped { child })?;
            let (origin, lsn) = made.parent.unwrap_or((child, Lsn::ZERO));
            return is_meant(child, lsn, at).map(|()| Found { lsn, origin });
        }
        Ok(found) => return Err(CatalogError::Exists { name: name.clone(), found }.into()),
        Err(CatalogError::NoSuchVolume { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    let Found { mut lsn, mut origin } = find(remote, parent, at).await?;
    let key = key::fork_pin(origin, child);
    let pinned = Pin { lsn, seq: None, until_ms: Pin::FOR_EVER };
    let mut made = None;
    match remote.create(&key, pinned.encode(&key)).await {
        Ok(()) => {}
        // An earlier try's: what it keeps is what is forked.
        Err(RemoteError::AlreadyExists { .. }) => {
            made = earlier(remote, child).await?;
            if made.is_none() {
                let kept = Pin::decode(&key, &remote.get(&key).await?)?.lsn;
                is_meant(child, kept, at)?;
                lsn = kept;
            }
        }
        Err(error) => return Err(error.into()),
    }
    if made.is_none() {
        let floor = gc::published(remote, origin).await.map_err(AtError::from)?;
        if floor == gc::Floor::CLOSED {
            return Err(ForkError::Removed { volume: origin });
        }
        if lsn < floor.lsn {
            return Err(ForkError::Expired { volume: origin, lsn, horizon: floor.lsn });
        }
        // Not sooner: a removal takes the marks away last, after the metadata.
        let page_size = match catalog::meta(remote, origin).await {
            Ok(meta) => meta.page_size,
            Err(CatalogError::Remote(RemoteError::NotFound { .. })) => {
                return Err(ForkError::Removed { volume: origin });
            }
            Err(error) => return Err(error.into()),
        };
        let meta = Meta { page_size, parent: Some((origin, lsn)) };
        match remote.create(&key::meta(child), meta.encode(child)).await {
            Ok(()) => {}
            // An earlier try's, also one that meant a commit of another volume: or gc's.
            Err(RemoteError::AlreadyExists { .. }) => made = earlier(remote, child).await?,
            Err(error) => return Err(error.into()),
        }
    }
    if let Some(made) = made {
        let Some(state) = made.parent else { return Err(ForkError::Reaped { child }) };
        (origin, lsn) = state;
        is_meant(child, lsn, at)?;
    }
    catalog::name(remote, name, child).await?;
    Ok(Found { lsn, origin })
}

/// As [`create`], once: `child` is fresh, and used no more where this fails. Nothing is left behind then
/// but, where the store failed, what garbage collection takes.
///
/// # Errors
///
/// As [`create`].
pub async fn create_once(
    remote: &dyn Remote,
    parent: VolumeId,
    at: At,
    child: VolumeId,
    name: &VolumeName,
) -> Result<Found, ForkError> {
    let made = create(remote, parent, at, child, name).await;
    if let Err(
        ForkError::Expired { .. }
        | ForkError::Removed { .. }
        | ForkError::Catalog(CatalogError::Exists { .. }),
    ) = &made
        && let Err(error) = abandon(remote, parent, child).await
    {
        tracing::warn!(%child, %error, "left over from a fork that was not made");
    }
    made
}

/// Whether a fork that was begun at `lsn` may be the answer to `at`. A time may mean another commit by now.
fn is_meant(child: VolumeId, lsn: Lsn, at: At) -> Result<(), ForkError> {
    match at {
        At::Lsn(wanted) if wanted != lsn => Err(ForkError::Differs { child, lsn, wanted }),
        At::Lsn(_) | At::Newest | At::TimeMs(_) => Ok(()),
    }
}

/// The metadata of `child`, where an earlier try has made it.
async fn earlier(remote: &dyn Remote, child: VolumeId) -> Result<Option<Meta>, ForkError> {
    let key = key::meta(child);
    match remote.get(&key).await {
        Ok(bytes) if gc::is_reaped(&bytes) => Err(ForkError::Reaped { child }),
        Ok(bytes) => Ok(Some(Meta::decode(child, &bytes)?)),
        Err(RemoteError::NotFound { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Takes back what [`create`] left of a fork of `parent` that failed, and that nobody will try again: its
/// id must not be used any more. A fork that has a name is not for this: see [`catalog::remove`].
///
/// Five requests. Where they fail, a pin without a fork goes by garbage collection; a fork without a name
/// keeps what it was made from.
///
/// # Errors
///
/// The store failed, or an object is damaged.
pub async fn abandon(remote: &dyn Remote, parent: VolumeId, child: VolumeId) -> Result<(), CatalogError> {
    let mut origin = Some(parent);
    // The metadata first: a fork without its pin must not be.
    remote.delete(&key::meta(child)).await?;
    for _ in 0..crate::format::chunk::LINEAGE_MAX {
        let Some(volume) = origin else { return Ok(()) };
        remote.delete(&key::fork_pin(volume, child)).await?;
        origin = catalog::meta(remote, volume).await?.parent.map(|(volume, _)| volume);
    }
    Ok(())
}

#[cfg(test)]
mod tests;
