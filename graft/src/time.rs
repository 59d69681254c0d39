//! Time travel: which commit a moment means, and opening a volume as it was there.
//!
//! Commits' times ascend, so that a moment means the newest commit that is not later. Finding it costs
//! the roots of a few checkpoints, whose histories say when each was made, and a prefix read for each
//! halving of the commits between two of them.

use std::fmt;

use crate::catalog::{self, CatalogError};
use crate::format::Damaged;
use crate::history::{self, HistoryError, checkpoint_below, newest_checkpoint, newest_lsn};
use crate::ids::{Lsn, VolumeId, VolumeName};
use crate::pull::{PullError, read_head};
use crate::remote::{Remote, RemoteError};
use crate::store::StoreError;

mod typed;

pub use typed::NotAMoment;

/// A state of a volume. Parsed from what a person types: an LSN or a time.
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
            At::TimeMs(ms) => Utc(*ms).fmt(f),
        }
    }
}

/// A time in ms since 1970, as a person reads it: `2026-11-22 03:04:05.678 UTC`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Utc(pub i64);

impl fmt::Display for Utc {
    /// By Howard Hinnant's civil-from-days.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (days, ms) = (self.0.div_euclid(86_400_000), self.0.rem_euclid(86_400_000));
        let shifted = days + 719_468;
        let era = shifted.div_euclid(146_097);
        let day_of_era = shifted.rem_euclid(146_097);
        let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let shifted_month = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
        let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
        let year = year_of_era + era * 400 + i64::from(month <= 2);
        let (h, m, s) = (ms / 3_600_000, ms / 60_000 % 60, ms / 1000 % 60);
        write!(f, "{year:04}-{month:02}-{day:02} {h:02}:{m:02}:{s:02}.{:03} UTC", ms % 1000)
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

impl AtError {
    /// What to tell a person who asked for volume `name` at `at`: by its name, and with what to do next.
    pub fn told(&self, name: &VolumeName, at: At) -> String {
        match self {
            AtError::NotYet { lsn, newest: Lsn::ZERO, .. } => {
                format!("volume `{name}` has no lsn {lsn}: it has no commits yet")
            }
            AtError::NotYet { lsn, newest, .. } => {
                format!("volume `{name}` has no lsn {lsn} yet: its newest is {newest}")
            }
            AtError::TooEarly { .. } => format!(
                "volume `{name}` has no commit as old as {at}: it began later, or does not keep so much; \
                 `graft volume log {name}` lists its commits"
            ),
            AtError::Pull(PullError::Expired { .. }) => format!(
                "volume `{name}` does not keep {at} any more; `graft volume log {name}` lists its commits"
            ),
            AtError::Catalog(_) | AtError::Pull(_) | AtError::Store(_) => self.to_string(),
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_utc_dates() {
        for (ms, text) in [
            (0, "1970-01-01 00:00:00.000 UTC"),
            (-1, "1969-12-31 23:59:59.999 UTC"),
            (951_782_400_000, "2000-02-29 00:00:00.000 UTC"),
            (1_795_316_645_678, "2026-11-22 03:04:05.678 UTC"),
            (4_107_542_400_000, "2100-03-01 00:00:00.000 UTC"),
        ] {
            assert_eq!(Utc(ms).to_string(), text);
        }
        for ms in [i64::MIN, i64::MAX] {
            assert!(Utc(ms).to_string().ends_with(" UTC"), "hostile input is no panic");
        }
    }
}
