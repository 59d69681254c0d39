//! Time travel: which commit a moment means, and opening a volume as it was there.
//!
//! Commits' times ascend, so that a moment means the newest commit that is not later. Finding it costs
//! the roots of a few checkpoints, whose histories say when each was made, and a prefix read for each
//! halving of the commits between two of them.

use std::fmt;

use crate::catalog::{self, CatalogError};
use crate::format::Damaged;
use crate::history::{self, HistoryError, checkpoint_below, newest_checkpoint, newest_lsn};
use crate::ids::{Lsn, VolumeId};
use crate::pull::{PullError, read_head};
use crate::remote::{Remote, RemoteError};
use crate::store::StoreError;

/// A state of a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum At {
    /// The newest one.
    Newest,
    /// After this commit.
    Lsn(Lsn),
    /// At this moment, ms since 1970.
    TimeMs(i64),
}

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            At::Newest => f.write_str("the newest commit"),
            At::Lsn(lsn) => write!(f, "lsn {lsn}"),
            At::TimeMs(ms) => write!(f, "{ms} ms since 1970"),
        }
    }
}

/// Why a state could not be found.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum AtError {
    /// There is no such commit yet.
    #[error("volume {volume} has no lsn {lsn}: its newest is {newest}")]
    NotYet {
        /// Which volume.
        volume: VolumeId,
        /// The commit asked for.
        lsn: Lsn,
        /// The newest there is.
        newest: Lsn,
    },
    /// Every commit is later.
    #[error("volume {volume} has no commit as old as {at}; its log may begin later, or no longer reach back")]
    TooEarly {
        /// Which volume.
        volume: VolumeId,
        /// What was asked for.
        at: At,
    },
    /// A volume's metadata could not be read.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// Its log or a checkpoint could not be read.
    #[error(transparent)]
    Pull(#[from] PullError),
    /// The local store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<HistoryError> for AtError {
    fn from(error: HistoryError) -> AtError {
        match error {
            HistoryError::Catalog(error) => error.into(),
            HistoryError::Pull(error) => error.into(),
        }
    }
}
impl From<RemoteError> for AtError {
    fn from(error: RemoteError) -> AtError {
        AtError::Pull(error.into())
    }
}
impl From<Damaged> for AtError {
    fn from(error: Damaged) -> AtError {
        AtError::Pull(error.into())
    }
}

/// A commit, and the volume whose log it is in: `volume` or one of its ancestors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// The commit; 0 for a volume without any.
    pub lsn: Lsn,
    /// In whose log it is.
    pub origin: VolumeId,
}

/// Which commit of `volume` is meant.
///
/// Two requests where it is an LSN or the newest; as many more for each ancestor that it lies in.
pub async fn find(remote: &dyn Remote, volume: VolumeId, at: At) -> Result<Found, AtError> {
    let (mut origin, mut upto) = (volume, None);
    for _ in 0..crate::format::chunk::LINEAGE_MAX {
        let meta = async { catalog::meta(remote, origin).await.map_err(AtError::from) };
        let newest = async {
            match upto {
                Some(upto) => Ok(upto),
                None => newest_lsn(remote, origin).await.map_err(AtError::from),
            }
        };
        let (meta, newest) = futures::try_join!(meta, newest)?;
        let (parent, forked_at) = meta.parent.map_or((None, Lsn::ZERO), |(id, lsn)| (Some(id), lsn));
        let newest = if upto.is_none() { newest.max(forked_at) } else { newest };
        let found = match at {
            At::Newest => newest,
            At::Lsn(lsn) if lsn <= newest => lsn,
            At::Lsn(lsn) => return Err(AtError::NotYet { volume, lsn, newest }),
            At::TimeMs(time_ms) => at_time(remote, origin, forked_at, newest, time_ms).await?,
        };
        match parent {
            Some(parent) if found <= forked_at => {
                (origin, upto) = (parent, Some(forked_at.min(upto.unwrap_or(forked_at))));
                if let At::Newest = at {
                    return find_origin(remote, parent, found).await;
                }
            }
            Some(_) | None if found == Lsn::ZERO && matches!(at, At::TimeMs(_)) => {
                return Err(AtError::TooEarly { volume, at });
            }
            Some(_) | None => return Ok(Found { lsn: found, origin }),
        }
    }
    Err(Damaged::new(&crate::ids::key::meta(volume), "it has more ancestors than a volume can").into())
}

/// The volume, `volume` or an ancestor, in whose log `lsn` is.
async fn find_origin(remote: &dyn Remote, volume: VolumeId, lsn: Lsn) -> Result<Found, AtError> {
    let mut origin = volume;
    for _ in 0..crate::format::chunk::LINEAGE_MAX {
        match catalog::meta(remote, origin).await?.parent {
            Some((parent, forked_at)) if lsn <= forked_at => origin = parent,
            Some(_) | None => return Ok(Found { lsn, origin }),
        }
    }
    Err(Damaged::new(&crate::ids::key::meta(volume), "it has more ancestors than a volume can").into())
}

/// The newest commit of `volume`'s own log, after `low` and up to `high`, that is not later than
/// `time_ms`; `low` where every one is.
async fn at_time(
    remote: &dyn Remote,
    volume: VolumeId,
    low: Lsn,
    high: Lsn,
    time_ms: i64,
) -> Result<Lsn, AtError> {
    let newest = newest_checkpoint(remote, volume).await?;
    let start = checkpoint_below(remote, volume, newest, |lsn, time| lsn <= high && time <= time_ms).await?;
    let mut low = start.map_or(low, |start| start.lsn.max(low)).0;
    let mut high = high.0.max(low);
    // Invariant: the answer is at least `low` and at most `high`.
    while low < high {
        let middle = low + (high - low).div_ceil(2);
        let earlier = match read_head(remote, volume, Lsn(middle)).await {
            Ok(head) => head.time_ms <= time_ms,
            // Older than what is retained.
            Err(PullError::Expired { .. } | PullError::Remote(RemoteError::NotFound { .. })) => true,
            Err(error) => return Err(error.into()),
        };
        if earlier { low = middle } else { high = middle - 1 }
    }
    Ok(Lsn(low))
}

/// Reads what is to be known of `volume` as it was at `at`.
pub(crate) async fn read_at(
    remote: &dyn Remote,
    volume: VolumeId,
    at: At,
) -> Result<history::History, AtError> {
    let upto = match at {
        At::Newest => None,
        at => Some(find(remote, volume, at).await?.lsn),
    };
    Ok(history::read(remote, volume, upto).await?)
}
