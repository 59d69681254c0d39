//! Publication: turns a prepared commit into one durable log entry, or learns that it lost.
//!
//! A small commit is one request: the log entry, only if absent, with its frames inside. A large one
//! writes its segments first, under names that carry the commit's id and are never reused. Only the
//! log entry can lose a race, and a loser leaves nothing but unreferenced segments.
//!
//! *Did it happen?* A commit happened iff the log holds it under its LSN; nothing else decides. A
//! time-out or an error proves nothing, so the log is read back: our own id there means won, another
//! means rejected, and while the LSN is not seen occupied the outcome stays unknown. The caller then
//! publishes the same [`Prepared`] again: identical bytes, so that whichever try lands is the same
//! commit. Where garbage collection has passed meanwhile, the tombstone under the key says whose it was.
//!
//! Invariants: a log entry never names a segment that is not stored; an unknown outcome is never
//! reported as a lost or a won one. Waiting between tries is the caller's business.

use bytes::Bytes;

use crate::format::Damaged;
use crate::format::commit::{FrameEntry, HEAD_BYTES_MAX, Head};
use crate::format::frame::{self, FRAME_PAGES_MAX, PageHash};
use crate::ids::{ChainHash, CommitId, Lsn, PageIdx, VolumeId, key};
use crate::page_set::PageSet;
use crate::pull::{Entry, PullError, read_entry};
use crate::remote::{Remote, RemoteError};

/// Frames up to this many bytes in all ride inside the commit; more go to segments.
pub const INLINE_BYTES_MAX: usize = 256 << 10;

/// The most that a caller may give as a commit's payload.
pub const PAYLOAD_BYTES_MAX: usize = 64 << 20;

/// A segment is closed once it has this many bytes.
const SEGMENT_BYTES: usize = 16 << 20;

/// A commit ready to be stored: the exact bytes of all its objects.
#[derive(Debug, Clone, PartialEq)]
pub struct Prepared {
    /// Its head, as others will read it.
    pub head: Head,
    /// The log entry's bytes.
    pub body: Bytes,
    /// Its segments: key and bytes.
    pub segments: Vec<(String, Bytes)>,
    /// How many local commits of the replica it rolls up.
    pub locals: usize,
}

/// What a commit will say; see [`prepare`].
#[derive(Debug, Clone)]
pub struct Draft {
    /// The volume.
    pub volume: VolumeId,
    /// Its place: the newest known commit's next.
    pub lsn: Lsn,
    /// A fresh random id.
    pub id: CommitId,
    /// The hash of the commit before.
    pub parent: ChainHash,
    /// The time of the commit before; 0 for none.
    pub parent_time_ms: i64,
    /// The writer's clock, ms since 1970.
    pub now_ms: i64,
    /// The page count after it.
    pub pages: u32,
    /// Opaque.
    pub payload: Bytes,
    /// How many local commits it rolls up.
    pub locals: usize,
    /// The newest checkpoint's LSN that the writer knows; 0 for none.
    pub checkpoint: Lsn,
}

/// Compresses and hashes pages into a commit. `pages` ascend and lie within `draft.pages`.
///
/// # Panics
///
/// If the head would be longer than readers accept (256 MiB): such a commit would make the volume
/// unreadable for ever. The layers above bound payloads ([`PAYLOAD_BYTES_MAX`]) and transactions.
pub fn prepare(draft: Draft, pages: &[(PageIdx, Bytes)]) -> Prepared {
    let chunks: Vec<&[(PageIdx, Bytes)]> = pages.chunks(FRAME_PAGES_MAX).collect();
    let frames: Vec<Bytes> =
        chunks.iter().map(|chunk| frame::encode(chunk.iter().map(|(_, page)| page))).collect();
    let inline = frames.iter().map(Bytes::len).sum::<usize>() <= INLINE_BYTES_MAX;

    let mut entries = Vec::with_capacity(frames.len());
    let mut segments: Vec<Vec<u8>> = Vec::new();
    let mut body = Vec::new();
    for (chunk, frame) in chunks.iter().zip(frames) {
        let (segment, target) = if inline {
            (0, &mut body)
        } else {
            if segments.last().is_none_or(|open| open.len() >= SEGMENT_BYTES) {
                segments.push(Vec::new());
            }
            let part = segments.len() as u32;
            (part, segments.last_mut().expect("one was pushed just above"))
        };
        let offset = target.len() as u64;
        entries.push(FrameEntry { segment, offset, bytes: frame.len() as u32, pages: chunk.len() as u32 });
        target.extend_from_slice(&frame);
    }
    let mut head = Head {
        volume: draft.volume,
        lsn: draft.lsn,
        id: draft.id,
        parent: draft.parent,
        hash: ChainHash::ZERO,
        time_ms: draft.now_ms.max(draft.parent_time_ms.saturating_add(1)),
        checkpoint: draft.checkpoint,
        pages: draft.pages,
        set: pages.iter().map(|(idx, _)| *idx).collect::<PageSet>(),
        hashes: pages.iter().map(|(idx, page)| PageHash::of(*idx, page)).collect(),
        frames: entries,
        segments: segments.iter().map(|s| s.len() as u64).collect(),
        payload: draft.payload,
        encoded: Bytes::new(),
    };
    let mut object = head.encode().to_vec();
    assert!(object.len() as u64 <= HEAD_BYTES_MAX, "a head of {} bytes: nobody could read it", object.len());
    object.extend_from_slice(&body);
    let segments = segments
        .into_iter()
        .zip(1..)
        .map(|(bytes, part)| (key::segment(draft.volume, draft.lsn, draft.id, part), bytes.into()))
        .collect();
    Prepared { head, body: object.into(), segments, locals: draft.locals }
}

/// A commit is in the log, durably.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Published {
    /// Its place.
    pub lsn: Lsn,
    /// Its hash.
    pub hash: ChainHash,
}

/// Why a commit was not acknowledged.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum PublishError {
    /// Another writer has this LSN. Nothing of ours is in the log, and nothing of this commit ever
    /// will be: pull, then replay or merge.
    #[error("lsn {lsn} went to another writer")]
    Rejected {
        /// The LSN that was lost.
        lsn: Lsn,
    },
    /// A segment could not be stored, so no log entry was tried. Publish the same commit again.
    #[error("segment upload for lsn {lsn} failed: {source}")]
    Upload {
        /// The LSN meant.
        lsn: Lsn,
        /// What the store said.
        source: RemoteError,
    },
    /// The log write neither visibly succeeded nor failed: the LSN may be ours, now or later.
    /// Publish the same commit again until the LSN is seen occupied.
    #[error("outcome of writing lsn {lsn} is unknown: {source}")]
    Unknown {
        /// The LSN meant.
        lsn: Lsn,
        /// What the store said.
        source: RemoteError,
    },
    /// The LSN is occupied by bytes that are no commit. Someone must look.
    #[error(transparent)]
    Damaged(#[from] Damaged),
}

/// Stores a prepared commit. One request where its frames ride inside and the create is answered;
/// one more for each segment; one read (two where the head there is longer than 4 KiB) where the
/// create was not answered or found the key taken.
///
/// May be called any number of times with the same commit.
pub async fn publish(remote: &dyn Remote, prepared: &Prepared) -> Result<Published, PublishError> {
    let lsn = prepared.head.lsn;
    for (key, bytes) in &prepared.segments {
        match remote.create(key, bytes.clone()).await {
            // Its key carries our random id: whatever is there, we wrote it.
            Ok(()) | Err(RemoteError::AlreadyExists { .. }) => {}
            Err(source) => return Err(PublishError::Upload { lsn, source }),
        }
    }
    let key = key::log(prepared.head.volume, lsn);
    let source = match remote.create(&key, prepared.body.clone()).await {
        Ok(()) => return Ok(Published { lsn, hash: prepared.head.hash }),
        Err(source) => source,
    };
    // The whole head, whose hash vouches for it: a bit that flipped in our own commit's id must not
    // make it look like another writer's.
    match read_entry(remote, prepared.head.volume, lsn).await {
        Ok(Entry::Commit(found)) if found.hash == prepared.head.hash => {
            Ok(Published { lsn, hash: found.hash })
        }
        Ok(Entry::Commit(_)) => Err(PublishError::Rejected { lsn }),
        // So long ago that it was deleted since; what is left of it says whose it was.
        Ok(Entry::Gone(left)) if left.id == prepared.head.id && left.hash == prepared.head.hash => {
            Ok(Published { lsn, hash: left.hash })
        }
        Ok(Entry::Gone(_)) => Err(PublishError::Rejected { lsn }),
        Err(PullError::Damaged(damaged)) => Err(damaged.into()),
        // Not seen occupied, or not seen at all: neither proves that the create will not land.
        Err(PullError::Remote(_) | PullError::Diverged { .. } | PullError::Expired { .. }) => {
            Err(PublishError::Unknown { lsn, source })
        }
    }
}

#[cfg(test)]
mod tests;
