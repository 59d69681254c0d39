//! Pulling: reading which commits others have added. Moves metadata only, never pages.
//!
//! Costs one LIST of the newest keys and one prefix read for each new commit (a second read for one
//! whose head is longer than 4 KiB). A replica that lacks many commits jumps to a checkpoint instead:
//! see [`crate::history`].
//!
//! Invariants: the heads answered follow each other without gaps and each names its predecessor's
//! hash; the first names the hash that the caller already has.

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};

use crate::format::Damaged;
use crate::format::commit::{Head, HeadError, PREFIX_BYTES};
use crate::format::tombstone::{Of, Tombstone};
use crate::gc::bottom::bottom;
use crate::history::Start;
use crate::ids::{ChainHash, Lsn, VolumeId, key};
use crate::remote::{Remote, RemoteError};

/// Heads read at the same time.
const CONCURRENT_READS: usize = 64;
/// Rows asked for in one LIST: what stores answer at most.
const LIST_ROWS: usize = 1000;

/// The commits after the one that the caller knew, oldest first.
#[derive(Debug, Clone, PartialEq)]
pub struct Pulled {
    /// The commit that the caller knew.
    pub from: Lsn,
    /// A newer checkpoint, from which `heads` go on; then what lies between is not known commit by
    /// commit.
    pub jump: Option<Box<Start>>,
    /// What came after it.
    pub heads: Vec<Head>,
}

impl Pulled {
    /// The newest commit that is known now.
    pub fn newest(&self) -> Lsn {
        let jumped = self.jump.as_ref().map_or(self.from, |start| start.lsn.max(self.from));
        self.heads.last().map_or(jumped, |head| head.lsn)
    }
}

/// Why a pull failed. Nothing has changed; see each for what to do.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum PullError {
    /// The store failed; safe to try again.
    #[error(transparent)]
    Remote(#[from] RemoteError),
    /// A commit object is damaged.
    #[error(transparent)]
    Damaged(#[from] Damaged),
    /// The log is not a continuation of what this replica holds: the bucket was reset or restored.
    #[error(
        "volume {volume}: the log at lsn {lsn} does not continue this replica's history; remove the replica's data directory and open the volume anew"
    )]
    Diverged {
        /// Which volume.
        volume: VolumeId,
        /// Where they part.
        lsn: Lsn,
    },
    /// What is to be read was deleted by garbage collection: it is older than what the volume retains.
    #[error(
        "volume {volume}: lsn {lsn} is older than what the volume retains; pull, or open the volume anew"
    )]
    Expired {
        /// Which volume.
        volume: VolumeId,
        /// A commit that is gone; 0 where it was a checkpoint.
        lsn: Lsn,
    },
}

/// Reads every commit after `from`, whose hash is `hash`, however many they are.
pub async fn pull(
    remote: &dyn Remote,
    volume: VolumeId,
    from: Lsn,
    hash: ChainHash,
) -> Result<Pulled, PullError> {
    let lsns = list_after(remote, volume, from).await?;
    let heads: Vec<Head> = futures::stream::iter(lsns.into_iter().map(|lsn| read_head(remote, volume, lsn)))
        .buffered(CONCURRENT_READS)
        .try_collect()
        .await?;
    let mut parent = hash;
    for head in &heads {
        if head.parent != parent {
            return Err(PullError::Diverged { volume, lsn: head.lsn });
        }
        parent = head.hash;
    }
    Ok(Pulled { from, jump: None, heads })
}

/// The LSNs after `from`, ascending and without gaps. A log whose newest commit is older than `from`
/// is not the one that this replica knew.
async fn list_after(remote: &dyn Remote, volume: VolumeId, from: Lsn) -> Result<Vec<Lsn>, PullError> {
    let prefix = key::log_prefix(volume);
    let mut lsns: Vec<Lsn> = Vec::new();
    let mut after: Option<String> = None;
    let mut newest: Option<Lsn> = None;
    'pages: loop {
        let rows = remote.list(&prefix, after.as_deref(), LIST_ROWS).await?;
        let full = rows.len() == LIST_ROWS;
        for row in rows {
            let lsn = row.key.strip_prefix(&prefix).and_then(Lsn::from_key_part);
            let Some(lsn) = lsn else {
                return Err(Damaged { key: row.key, reason: "its key is not a log entry's".into() }.into());
            };
            newest.get_or_insert(lsn);
            if lsn <= from {
                break 'pages;
            }
            lsns.push(lsn);
            after = Some(row.key);
        }
        if !full {
            break;
        }
    }
    let newest = newest.unwrap_or(Lsn::ZERO);
    if newest < from {
        return Err(PullError::Diverged { volume, lsn: newest.next() });
    }
    lsns.reverse();
    for (expected, lsn) in (from.0 + 1..).zip(&lsns) {
        if lsn.0 != expected {
            if Lsn(expected) <= bottom(remote, volume).await?.lsn {
                return Err(PullError::Expired { volume, lsn: Lsn(expected) });
            }
            let reason = format!("missing: the log goes from {} to {lsn}", expected - 1);
            return Err(Damaged { key: key::log(volume, Lsn(expected)), reason }.into());
        }
    }
    Ok(lsns)
}

/// What a log key holds.
#[derive(Debug, Clone, PartialEq)]
pub enum Entry {
    /// A commit.
    Commit(Box<Head>),
    /// What is left of one.
    Gone(Tombstone),
}

/// Reads one commit's head: one request, two where it is longer than the prefix.
///
/// # Errors
///
/// [`PullError::Expired`] where garbage collection has passed.
pub async fn read_head(remote: &dyn Remote, volume: VolumeId, lsn: Lsn) -> Result<Head, PullError> {
    match read_entry(remote, volume, lsn).await? {
        Entry::Commit(head) => Ok(*head),
        Entry::Gone(_) => Err(PullError::Expired { volume, lsn }),
    }
}

/// Reads what the log has under `lsn`: one request, two for a head that is longer than the prefix.
pub async fn read_entry(remote: &dyn Remote, volume: VolumeId, lsn: Lsn) -> Result<Entry, PullError> {
    let key = key::log(volume, lsn);
    let mut bytes: Bytes = remote.get_range(&key, 0..PREFIX_BYTES).await?;
    if Tombstone::is_one(&bytes) {
        return Ok(Entry::Gone(Tombstone::decode(volume, Of::Commit(lsn), &bytes)?));
    }
    loop {
        match Head::decode_in_place(volume, lsn, &bytes) {
            Ok(head) => return Ok(Entry::Commit(Box::new(head))),
            Err(HeadError::Damaged(damaged)) => return Err(damaged.into()),
            Err(HeadError::Incomplete { need }) => {
                let had = bytes.len() as u64;
                let rest = remote.get_range(&key, had..need).await?;
                if rest.is_empty() {
                    // It may have been collected between the two requests.
                    let start = remote.get_range(&key, 0..PREFIX_BYTES).await?;
                    if Tombstone::is_one(&start) {
                        return Ok(Entry::Gone(Tombstone::decode(volume, Of::Commit(lsn), &start)?));
                    }
                    return Err(
                        Damaged { key, reason: format!("it has {had} bytes, its head {need}") }.into()
                    );
                }
                bytes = [bytes, rest].concat().into();
            }
        }
    }
}

#[cfg(test)]
mod tests;
