//! Upkeep of a volume's stored form: compaction with what this layer remembers of the volume.
//!
//! [`graft::compact`] moves pages; the checkpoint that publishes them must hold the ledger at exactly
//! its commit, which is kept here. Works on a replica of its own, so that whoever serves the volume goes on.
//!
//! Invariants: nothing is published where nothing moved; losing a checkpoint's number to another writer
//! costs a pull and another try, never a second upload.

mod followed;

use graft::checkpoint::Written;
use graft::compact::{self, CompactError, Policy, Scattered, Scope};
use graft::remote::Remote;
use graft::volume::Options;
use graft::{CommitId, Lsn, Seq, VolumeId};

pub use self::followed::{FollowError, Followed};
use crate::layout::ByContent;

/// Times that a compaction is published anew because another checkpoint came first.
const TRIES_MAX: usize = 16;
/// Bytes of pages in memory beside what the compaction works on.
const CACHE_BYTES: usize = 32 << 20;

/// What is asked of a compaction.
#[derive(Debug, Clone, Copy)]
pub struct Request {
    /// Which pages move.
    pub scope: Scope,
    /// Compact only where this says so.
    pub policy: Option<Policy>,
    /// Fresh and random; names the new segments.
    pub id: CommitId,
}

/// How a compaction ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compacted {
    /// Nothing lies badly, or the policy does not ask for it yet. Nothing was written.
    NotDue(Scattered),
    /// The pages are where readers want them.
    Stored {
        /// The checkpoint that says so.
        seq: Seq,
        /// Its commit.
        lsn: Lsn,
        /// Pages moved.
        pages: u64,
        /// New segments.
        segments: u32,
        /// Their bytes.
        bytes: u64,
    },
}

/// Why a volume was not compacted. It is as it was; segments that were uploaded are garbage.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UpkeepError {
    /// The volume could not be opened, or what others committed meanwhile could not be read.
    #[error(transparent)]
    Follow(#[from] FollowError),
    /// See there.
    #[error(transparent)]
    Compact(#[from] CompactError),
    /// Other writers made every checkpoint first. Run it again.
    #[error("{TRIES_MAX} checkpoints were made by other writers first; compact again when there are fewer")]
    Contended,
}

/// Compacts `volume`. Costs opening it, reading its page table, what [`compact::gather`] says, and one
/// create; `progress` hears pages done and pages in all.
///
/// # Errors
///
/// [`UpkeepError`]; all of them may be met by running it again.
pub async fn compact(
    remote: &dyn Remote,
    volume: VolumeId,
    request: Request,
    progress: &(dyn Fn(u64, u64) + Send + Sync),
) -> Result<Compacted, UpkeepError> {
    let options = Options { cache_bytes: CACHE_BYTES, ..Options::default() };
    let mut followed = Followed::open(remote, volume, options).await?;
    let volume = followed.volume().clone();
    let scattered = compact::scattered(remote, &volume).await?;
    if request.policy.is_some_and(|policy| !policy.is_due(&scattered)) {
        return Ok(Compacted::NotDue(scattered));
    }
    let moved = compact::gather(remote, &volume, &ByContent, request.scope, request.id, progress).await?;
    if moved.pages() == 0 {
        return Ok(Compacted::NotDue(scattered));
    }
    for _ in 0..TRIES_MAX {
        match compact::publish(remote, &volume, &volume.base(), &moved, followed.ledger().encode()).await? {
            Written::Stored { seq, lsn } => {
                return Ok(Compacted::Stored {
                    seq,
                    lsn,
                    pages: moved.pages() as u64,
                    segments: moved.segments,
                    bytes: moved.bytes,
                });
            }
            Written::Lost { .. } | Written::Current { .. } => {}
        }
        followed.pull(remote).await?;
    }
    Err(UpkeepError::Contended)
}

#[cfg(test)]
mod tests;
