//! Leases of long-lived readers: an old state stays readable for as long as somebody reads it.
//!
//! ```text
//!   take: PUT the lease ─ read the floor ─┬─ at or below the state: Held ── renew ──▶ Held
//!                                         └─ above it: Expired, the lease is deleted    │ not renewed for TERM_MS
//!   release: DELETE  ◀───────────────────────────────────────────────────────────── Lapsed ── renew: as take
//! ```
//!
//! Renewing reads the lease and replaces that very one. Where a collector has deleted it, which a reader
//! whose clock goes wrong does not expect, there is nothing to renew: it is taken anew, or is `Lapsed`.
//!
//! A reader needs none for what it reads within the grace that garbage collection leaves anyhow. One that
//! stays on a state for longer writes a *lease* (a [`Pin`] that ends) under the volume in whose log the
//! state is, and writes it again every third of its term. [`gc`] keeps what a lease names. What a fork reads
//! through its ancestors, its own pins keep there.
//!
//! Invariants: the lease is stored before the floor is read. A collector publishes its floor before it
//! lists leases, so that whichever comes second sees the first: a reader either finds the floor above its
//! state and gives up, or is seen. A lease ends, by its reader's clock, one term after the *sending* of the
//! last renewal that was answered, which is before it ends by the store's stamps; a reader that is told
//! `Held` is kept, whatever the collector's clock shows, up to [`gc::SKEW_MS`] of difference, if its own
//! goes on evenly; if not, it is told so at the next renewal. Leases are for
//! convenience: a reader whose lease lapsed reads right pages, or is told `Expired`.
//!
//! This is the half without clock and task; `reader::keeper` (feature `native`) is the half with them.

#[cfg(feature = "native")]
pub mod keeper;

#[cfg(feature = "native")]
pub use self::keeper::{Holding, Keeper};

use crate::format::pin::Pin;
use crate::gc;
use crate::ids::{LeaseId, Lsn, Seq, VolumeId, key};
use crate::pull::PullError;
use crate::remote::{Remote, RemoteError};
use crate::snapshot::Snapshot;

/// How long a lease holds after its last renewal: a quarter of an hour.
pub const TERM_MS: i64 = 900_000;
/// How often it is renewed: so that two renewals may fail.
pub const RENEW_MS: i64 = TERM_MS / 3;

/// Why there is no lease. Reading goes on without one: what garbage collection takes away meanwhile
/// answers `Expired`.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum LeaseError {
    /// Garbage collection has given this state up. It may still be readable for as long as the grace, and
    /// for longer where a fork begins there. Open a newer one.
    #[error("volume {volume}: lsn {lsn} is older than what the volume retains, which begins at {floor}")]
    Expired {
        /// In whose log it is: the volume read or an ancestor.
        volume: VolumeId,
        /// The state.
        lsn: Lsn,
        /// The oldest that is retained.
        floor: Lsn,
    },
    /// This remote takes no writes from us, and no lease therefore. Trying again cannot help.
    #[error("no lease can be written here: {source}")]
    ReadOnly {
        /// What it said.
        source: RemoteError,
    },
    /// The store failed. A lease may be there or not; take it again, with the same id.
    #[error("the lease of a reader could not be written or checked: {source}")]
    Remote {
        /// What it said.
        source: RemoteError,
    },
    /// The floor could not be read.
    #[error(transparent)]
    Pull(PullError),
}

impl From<RemoteError> for LeaseError {
    fn from(source: RemoteError) -> LeaseError {
        match source {
            RemoteError::Refused { .. } => LeaseError::ReadOnly { source },
            source => LeaseError::Remote { source },
        }
    }
}

impl From<PullError> for LeaseError {
    fn from(error: PullError) -> LeaseError {
        match error {
            PullError::Remote(error) => error.into(),
            error => LeaseError::Pull(error),
        }
    }
}

/// Where a lease stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It holds. Renew it at `renew_ms`.
    Held {
        /// By the clock that the lease was taken with.
        renew_ms: i64,
        /// When it lapses, if it is not renewed.
        until_ms: i64,
    },
    /// It holds, and is to be renewed now.
    Due {
        /// When it lapses, if it is not renewed.
        until_ms: i64,
    },
    /// It was not renewed in time. What it kept may be gone; renewing it takes it anew.
    Lapsed,
}

/// The lease of one reader on one state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    id: LeaseId,
    /// In whose log the state is.
    volume: VolumeId,
    lsn: Lsn,
    /// The checkpoint that the reader's page table comes from; 0: from the volume's first commit.
    seq: Seq,
    /// When the last renewal that was answered was sent.
    sent_ms: i64,
    /// The newest time that was given. An earlier one is not believed: for the lease, time stands still until
    /// the caller's clock is there again. So that clock must not go back; the keeper's does not.
    now_ms: i64,
}

impl Lease {
    /// Takes a lease on what `snapshot` reads. `id` is fresh and random, or that of a try that failed;
    /// `now_ms` is the wall clock, ms since 1970, and must go on evenly from here to the lease's release.
    ///
    /// One PUT and one LIST of one row.
    ///
    /// # Errors
    ///
    /// [`LeaseError`]. Nothing is left behind but, where the store failed, a lease that lapses.
    pub async fn take(
        remote: &dyn Remote,
        snapshot: &Snapshot,
        id: LeaseId,
        now_ms: i64,
    ) -> Result<Lease, LeaseError> {
        let (lsn, volume) = (snapshot.lsn(), snapshot.volumes().origin(snapshot.lsn()));
        // A table that comes from an ancestor's checkpoint has all of this volume's commits on top.
        let seq =
            snapshot.checkpoint().filter(|root| root.volume == volume).map_or(Seq::ZERO, |root| root.seq);
        let mut lease = Lease { id, volume, lsn, seq, sent_ms: i64::MIN, now_ms };
        lease.acquire(remote, now_ms).await?;
        Ok(lease)
    }

    /// Renews it. One GET and one conditional PUT; where it had lapsed, or was deleted, what [`Lease::take`]
    /// costs.
    ///
    /// # Errors
    ///
    /// [`LeaseError`]: it stands as it stood, and [`Lease::standing`] says for how long yet; where it was
    /// deleted, it has lapsed.
    pub async fn renew(&mut self, remote: &dyn Remote, now_ms: i64) -> Result<(), LeaseError> {
        match self.standing(now_ms) {
            Standing::Lapsed => self.acquire(remote, now_ms).await,
            Standing::Held { .. } | Standing::Due { .. } => match self.replace(remote).await {
                // A collector has taken it for dead, and may have swept what it kept.
                Err(RemoteError::NotFound { .. }) => {
                    self.sent_ms = i64::MIN;
                    self.acquire(remote, now_ms).await
                }
                renewed => Ok(renewed?),
            },
        }
    }

    /// Writes the lease that is there again. `NotFound` where none is; `Changed` where it was deleted, or
    /// written by an earlier try of ours, since it was read.
    async fn replace(&mut self, remote: &dyn Remote) -> Result<(), RemoteError> {
        let key = self.key();
        let sent_ms = self.now_ms;
        let (_, tag) = remote.get_tagged(&key).await?;
        remote.update(&key, self.pin().encode(&key), &tag).await?;
        self.sent_ms = sent_ms;
        Ok(())
    }

    /// What it says if it is written now.
    fn pin(&self) -> Pin {
        let until_ms = self.now_ms.saturating_add(TERM_MS);
        Pin { lsn: self.lsn, seq: Some(self.seq), until_ms }
    }

    /// Where it stands at `now_ms`.
    pub fn standing(&mut self, now_ms: i64) -> Standing {
        self.now_ms = self.now_ms.max(now_ms);
        let until_ms = self.sent_ms.saturating_add(TERM_MS);
        let renew_ms = self.sent_ms.saturating_add(RENEW_MS);
        if self.now_ms >= until_ms {
            Standing::Lapsed
        } else if self.now_ms >= renew_ms {
            Standing::Due { until_ms }
        } else {
            Standing::Held { renew_ms, until_ms }
        }
    }

    /// Gives it up: what it alone kept goes with the next collection. One DELETE.
    ///
    /// # Errors
    ///
    /// The store failed: it lapses by itself.
    pub async fn release(self, remote: &dyn Remote) -> Result<(), RemoteError> {
        remote.delete(&self.key()).await
    }

    /// Its key.
    pub fn key(&self) -> String {
        key::reader(self.volume, self.id)
    }

    async fn write(&mut self, remote: &dyn Remote, now_ms: i64) -> Result<(), LeaseError> {
        self.now_ms = self.now_ms.max(now_ms);
        let key = self.key();
        let sent_ms = self.now_ms;
        remote.put(&key, self.pin().encode(&key)).await?;
        self.sent_ms = sent_ms;
        Ok(())
    }

    /// The lease, then a look at the floor.
    async fn acquire(&mut self, remote: &dyn Remote, now_ms: i64) -> Result<(), LeaseError> {
        let before = self.sent_ms;
        self.write(remote, now_ms).await?;
        let refused = match gc::published(remote, self.volume).await {
            Ok(floor) if self.lsn < floor.lsn || self.seq < floor.seq => {
                LeaseError::Expired { volume: self.volume, lsn: self.lsn, floor: floor.lsn }
            }
            Ok(_) => return Ok(()),
            Err(error) => error.into(),
        };
        // It does not hold. What it would keep is not to be kept for a whole term.
        self.sent_ms = before;
        if let Err(error) = remote.delete(&self.key()).await {
            tracing::debug!(volume = %self.volume, %error, "a lease that was not taken lapses by itself");
        }
        Err(refused)
    }
}

#[cfg(test)]
mod tests;
