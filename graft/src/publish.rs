//! Publication: turns a prepared commit into one durable log entry, or learns that it lost.
//!
//! A small commit is one request: the log entry, only if absent, with its frames inside. A large one
//! writes its segments first, under names that carry the commit's id and are never reused, one after
//! another, so that no more than one is in memory ([`segment`]). Only the log entry can lose a race, and
//! a loser leaves nothing but unreferenced segments.
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

use self::segment::Noted;
pub use self::segment::{SegmentSource, Upload};
use crate::format::Damaged;
use crate::format::commit::{FrameEntry, HEAD_BYTES_MAX, Head};
use crate::format::frame::{self, FRAME_PAGES_MAX, PageHash};
use crate::gc::bottom::{Confirmed, Moment, settle};
use crate::ids::{ChainHash, CommitId, Lsn, PageIdx, VolumeId, key};
use crate::page_set::PageSet;
use crate::pull::{Entry, PullError, read_entry};
use crate::remote::{Remote, RemoteError};
use crate::store::StoreError;

pub mod segment;

/// Frames up to this many bytes in all ride inside the commit; more go to segments.
pub const INLINE_BYTES_MAX: usize = 256 << 10;

/// The most that a caller may give as a commit's payload.
pub const PAYLOAD_BYTES_MAX: usize = 64 << 20;

/// A segment is closed once it has this many bytes.
const SEGMENT_BYTES: usize = 16 << 20;

/// A commit ready to be stored: the exact bytes of all its objects, or where they are.
#[derive(Debug, Clone, PartialEq)]
pub struct Prepared {
    /// Its head, as others will read it.
    pub head: Head,
    /// The log entry's bytes.
    pub body: Bytes,
    /// Its segments.
    pub segments: Vec<Upload>,
    /// How many local commits of the replica it rolls up.
    pub locals: usize,
    /// When the log's head was last seen: see [`crate::gc::bottom`].
    pub confirmed: Confirmed,
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

/// Compresses and hashes pages into a commit. `pages` ascend and lie within `draft.pages`. Of its
/// segments it holds up to 32 MiB; the rest is made again, from the pages, each time it is published.
///
/// # Panics
///
/// As [`Builder::finish`].
pub fn prepare(draft: Draft, pages: &[(PageIdx, Bytes)]) -> Prepared {
    let mut builder = Builder::new(draft);
    let mut noted = Noted::default();
    for (page, bytes) in pages {
        noted.push(bytes.clone());
        if let Some(segment) = builder.push(*page, bytes.clone()) {
            noted.end_segment(segment);
        }
    }
    let (last, mut prepared) = builder.finish();
    if let Some(last) = last {
        noted.end_segment(last);
    }
    prepared.segments = noted.finish();
    prepared
}

/// A segment's key and bytes.
pub type Segment = (String, Bytes);

/// Makes a commit of pages that come one after another, in bounded memory: [`push`](Builder::push)
/// answers each segment as it is full, to be stored before the commit is published.
#[derive(Debug)]
pub struct Builder {
    draft: Draft,
    set: PageSet,
    hashes: Vec<PageHash>,
    entries: Vec<FrameEntry>,
    frame: Vec<Bytes>,
    /// The segment that is being filled.
    open: Vec<u8>,
    /// The lengths of those that are full.
    full: Vec<u64>,
}

impl Builder {
    /// An empty commit.
    pub fn new(draft: Draft) -> Builder {
        let (set, hashes, entries) = (PageSet::new(), Vec::new(), Vec::new());
        Builder { draft, set, hashes, entries, frame: Vec::new(), open: Vec::new(), full: Vec::new() }
    }

    /// Adds a page; pages ascend. Answers a segment that is full now, if one is.
    pub fn push(&mut self, page: PageIdx, bytes: Bytes) -> Option<Segment> {
        debug_assert!(self.set.last().is_none_or(|last| last < page), "pages ascend");
        self.set.insert(page);
        self.hashes.push(PageHash::of(page, &bytes));
        self.frame.push(bytes);
        if self.frame.len() == FRAME_PAGES_MAX { self.end_frame() } else { None }
    }

    /// Ends the frame: the next page begins another, so that the two are fetched apart.
    pub fn end_frame(&mut self) -> Option<Segment> {
        if self.frame.is_empty() {
            return None;
        }
        let frame = frame::encode(self.frame.iter());
        self.entries.push(FrameEntry {
            segment: self.full.len() as u32 + 1,
            offset: self.open.len() as u64,
            bytes: frame.len() as u32,
            pages: self.frame.len() as u32,
        });
        self.frame.clear();
        let needed = self.open.len() + frame.len();
        if needed > INLINE_BYTES_MAX && self.open.capacity() < SEGMENT_BYTES {
            // Once for the whole segment: growing as it goes would hold it twice.
            self.open.reserve_exact((SEGMENT_BYTES + SEGMENT_BYTES / 16).max(needed) - self.open.len());
        }
        self.open.extend_from_slice(&frame);
        if self.open.len() >= SEGMENT_BYTES { Some(self.end_segment()) } else { None }
    }

    /// How many pages it holds.
    pub fn pages(&self) -> usize {
        self.hashes.len()
    }

    fn end_segment(&mut self) -> Segment {
        let bytes = Bytes::from(std::mem::take(&mut self.open));
        self.full.push(bytes.len() as u64);
        let part = self.full.len() as u32;
        (key::segment(self.draft.volume, self.draft.lsn, self.draft.id, part), bytes)
    }

    /// The last segment, where there is one, and the commit. Its list of segments is empty: whoever
    /// took them from here stores them, or puts them there for [`publish`] to store.
    ///
    /// # Panics
    ///
    /// If the head would be longer than readers accept (256 MiB): such a commit would make the volume
    /// unreadable for ever. The layers above bound payloads ([`PAYLOAD_BYTES_MAX`]) and transactions.
    pub fn finish(mut self) -> (Option<Segment>, Prepared) {
        let mut last = self.end_frame();
        let inline = self.full.is_empty() && self.open.len() <= INLINE_BYTES_MAX;
        let mut body = Vec::new();
        if inline {
            body = std::mem::take(&mut self.open);
            self.entries.iter_mut().for_each(|entry| entry.segment = 0);
        } else if !self.open.is_empty() {
            last = Some(self.end_segment());
        }
        let draft = self.draft;
        let mut head = Head {
            volume: draft.volume,
            lsn: draft.lsn,
            id: draft.id,
            parent: draft.parent,
            hash: ChainHash::ZERO,
            time_ms: draft.now_ms.max(draft.parent_time_ms.saturating_add(1)),
            checkpoint: draft.checkpoint,
            pages: draft.pages,
            set: (&self.set).into(),
            hashes: self.hashes.into_iter().collect(),
            frames: self.entries,
            segments: self.full,
            payload: draft.payload,
            encoded: Bytes::new(),
        };
        let mut object = head.encode().to_vec();
        let bytes = object.len();
        assert!(bytes as u64 <= HEAD_BYTES_MAX, "a head of {bytes} bytes: nobody could read it");
        object.extend_from_slice(&body);
        (
            last,
            Prepared {
                head,
                body: object.into(),
                segments: Vec::new(),
                locals: draft.locals,
                confirmed: Confirmed::default(),
            },
        )
    }
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
    /// The local store did not give a segment that it keeps, so no log entry was tried; nor does the
    /// log have the commit from an earlier try, as far as could be seen.
    #[error("a segment for lsn {lsn} is not to be had from the local store: {source}")]
    Local {
        /// The LSN meant.
        lsn: Lsn,
        /// What the store said.
        source: StoreError,
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
    /// The LSN lies so far below what the volume retains that the log says no more whose it was. It was
    /// ours or another's: pull, and let the ledger or the pages that changed since decide; what they
    /// cannot decide becomes a fork. Never run it again unasked.
    #[error(
        "lsn {lsn} is so old that the log, which begins at {bottom} now, does not say any more whose it was"
    )]
    Forgotten {
        /// The LSN meant.
        lsn: Lsn,
        /// The bottom of the log.
        bottom: Lsn,
    },
    /// The LSN is occupied by bytes that are no commit. Someone must look.
    #[error(transparent)]
    Damaged(#[from] Damaged),
}

/// Stores a prepared commit. One request where its frames ride inside and the create is answered;
/// one more for each segment; one read (two where the head there is longer than 4 KiB) where the
/// create was not answered or found the key taken, or where the local store does not give a segment.
/// One LIST where the log's head was not seen for half an hour, or never by this process: see
/// [`crate::gc::bottom`].
///
/// May be called any number of times with the same commit.
pub async fn publish(remote: &dyn Remote, prepared: &Prepared) -> Result<Published, PublishError> {
    let sent = Moment::now();
    let mut created = false;
    let outcome = send(remote, prepared, &mut created).await;
    settle(remote, prepared, created.then_some(sent), outcome).await
}

/// `created` says whether the create itself was answered now; else what is there was read back.
async fn send(
    remote: &dyn Remote,
    prepared: &Prepared,
    created: &mut bool,
) -> Result<Published, PublishError> {
    let lsn = prepared.head.lsn;
    for segment in &prepared.segments {
        let bytes = match segment.bytes() {
            Ok(bytes) => bytes,
            // What was sent before may have landed, and then its segments are stored.
            Err(source) => {
                let said = look(remote, prepared).await;
                return said.unwrap_or(Err(PublishError::Local { lsn, source }));
            }
        };
        match remote.create(&segment.key, bytes).await {
            // Its key carries our random id: whatever is there, we wrote it.
            Ok(()) | Err(RemoteError::AlreadyExists { .. }) => {}
            Err(source) => return Err(PublishError::Upload { lsn, source }),
        }
    }
    let key = key::log(prepared.head.volume, lsn);
    let source = match remote.create(&key, prepared.body.clone()).await {
        Ok(()) => {
            *created = true;
            return Ok(Published { lsn, hash: prepared.head.hash });
        }
        #[cfg(feature = "plants")]
        Err(RemoteError::AlreadyExists { .. }) if crate::plants::has(crate::plants::Bug::NoReadBack) => {
            return Err(PublishError::Rejected { lsn });
        }
        Err(source) => source,
    };
    // Not seen occupied, or not seen at all: neither proves that the create will not land.
    look(remote, prepared).await.unwrap_or(Err(PublishError::Unknown { lsn, source }))
}

/// What the log says of the commit; `None` where it was not read, or the LSN is not seen occupied.
async fn look(remote: &dyn Remote, prepared: &Prepared) -> Option<Result<Published, PublishError>> {
    let lsn = prepared.head.lsn;
    // The whole head, whose hash vouches for it: a bit that flipped in our own commit's id must not
    // make it look like another writer's.
    Some(match read_entry(remote, prepared.head.volume, lsn).await {
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
        Err(PullError::Remote(_) | PullError::Diverged { .. } | PullError::Expired { .. }) => return None,
    })
}

#[cfg(test)]
mod tests;
