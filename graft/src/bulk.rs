//! Bulk commits: one commit of any number of pages, stored as the pages come.
//!
//! [`prepare`] takes all pages of a commit at once. A [`Bulk`] takes them one by one, ascending, and
//! stores a segment whenever 16 MiB of frames have come together, so that memory holds one segment,
//! one frame of pages and 16 bytes for each page, whatever the size of the commit. A commit that turns
//! out small becomes the same one object that [`prepare`] makes.
//!
//! Invariants: nothing is visible before the log entry is created, which is the caller's last step by
//! [`publish`](crate::publish::publish); what a caller leaves unfinished are segments under its
//! commit's own random id, which nothing names.

use bytes::Bytes;

use crate::format::commit::{FrameEntry, HEAD_BYTES_MAX, Head};
use crate::format::frame::{self, FRAME_PAGES_MAX, PageHash};
use crate::ids::{ChainHash, Lsn, PageIdx, key};
use crate::page_set::PageSet;
use crate::publish::{Draft, Prepared, prepare};
use crate::remote::{Remote, RemoteError};

/// A segment is stored once it has this many bytes.
const SEGMENT_BYTES: usize = 16 << 20;
/// Pages up to this many bytes are held back: they may fit into the commit itself.
const SMALL_BYTES: usize = 1 << 20;

/// Why a bulk commit cannot go on. Nothing is visible of it; begin again.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum BulkError {
    /// A segment could not be stored.
    #[error(transparent)]
    Remote(#[from] RemoteError),
    /// Its head would be longer than readers accept: about 16 bytes for each page.
    #[error("one commit cannot hold so many pages: its head would have {bytes} bytes, and readers take 256 MiB")]
    TooLarge {
        /// The head's length.
        bytes: u64,
    },
}

/// A commit in the making.
#[derive(Debug)]
pub struct Bulk {
    draft: Draft,
    /// Pages since the last frame; while nothing is stored yet, all of them.
    waiting: Vec<(PageIdx, Bytes)>,
    waiting_bytes: usize,
    streaming: bool,
    set: PageSet,
    hashes: Vec<PageHash>,
    frames: Vec<FrameEntry>,
    segment: Vec<u8>,
    segments: Vec<u64>,
}

impl Bulk {
    /// Begins the commit that `draft` describes; its page count is given at the end.
    pub fn new(draft: Draft) -> Bulk {
        Bulk {
            draft,
            waiting: Vec::new(),
            waiting_bytes: 0,
            streaming: false,
            set: PageSet::new(),
            hashes: Vec::new(),
            frames: Vec::new(),
            segment: Vec::new(),
            segments: Vec::new(),
        }
    }

    /// Adds page `idx`, which is greater than all before it. Stores a segment when one is full: one
    /// request for every 16 MiB of compressed pages.
    pub async fn push(&mut self, remote: &dyn Remote, idx: PageIdx, page: Bytes) -> Result<(), BulkError> {
        debug_assert!(self.waiting.last().is_none_or(|(last, _)| *last < idx));
        self.waiting_bytes += page.len();
        self.waiting.push((idx, page));
        if !self.streaming && self.waiting_bytes > SMALL_BYTES {
            self.streaming = true;
            for chunk in std::mem::take(&mut self.waiting).chunks(FRAME_PAGES_MAX) {
                if chunk.len() < FRAME_PAGES_MAX {
                    self.waiting = chunk.to_vec();
                } else {
                    self.frame(chunk);
                }
            }
        } else if self.streaming && self.waiting.len() == FRAME_PAGES_MAX {
            let chunk = std::mem::take(&mut self.waiting);
            self.frame(&chunk);
        }
        if self.segment.len() >= SEGMENT_BYTES {
            self.store(remote).await?;
        }
        Ok(())
    }

    /// How many pages it has so far.
    pub fn len(&self) -> usize {
        self.hashes.len() + self.waiting.len()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn frame(&mut self, chunk: &[(PageIdx, Bytes)]) {
        let frame = frame::encode(chunk.iter().map(|(_, page)| page));
        self.frames.push(FrameEntry {
            segment: self.segments.len() as u32 + 1,
            offset: self.segment.len() as u64,
            bytes: frame.len() as u32,
            pages: chunk.len() as u32,
        });
        self.segment.extend_from_slice(&frame);
        for (idx, page) in chunk {
            self.set.insert(*idx);
            self.hashes.push(PageHash::of(*idx, page));
        }
    }

    async fn store(&mut self, remote: &dyn Remote) -> Result<(), BulkError> {
        let part = self.segments.len() as u32 + 1;
        let key = key::segment(self.draft.volume, self.draft.lsn, self.draft.id, part);
        let bytes = Bytes::from(std::mem::take(&mut self.segment));
        self.segments.push(bytes.len() as u64);
        match remote.create(&key, bytes).await {
            // Its key carries our random id: whatever is there, we wrote it.
            Ok(()) | Err(RemoteError::AlreadyExists { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Stores what is left, and answers the commit, to be published: every segment is stored, the log
    /// entry is not. `pages` is the volume's page count after it.
    pub async fn finish(mut self, remote: &dyn Remote, pages: u32) -> Result<Prepared, BulkError> {
        self.draft.pages = pages;
        if !self.streaming {
            return Ok(prepare(self.draft, &self.waiting));
        }
        let rest = std::mem::take(&mut self.waiting);
        if !rest.is_empty() {
            self.frame(&rest);
        }
        if !self.segment.is_empty() {
            self.store(remote).await?;
        }
        let draft = self.draft;
        let mut head = Head {
            volume: draft.volume,
            lsn: draft.lsn,
            id: draft.id,
            parent: draft.parent,
            hash: ChainHash::ZERO,
            time_ms: draft.now_ms.max(draft.parent_time_ms.saturating_add(1)),
            checkpoint: Lsn::ZERO,
            pages,
            set: self.set,
            hashes: self.hashes,
            frames: self.frames,
            segments: self.segments,
            payload: draft.payload,
            encoded: Bytes::new(),
        };
        let body = head.encode();
        if body.len() as u64 > HEAD_BYTES_MAX {
            return Err(BulkError::TooLarge { bytes: body.len() as u64 });
        }
        Ok(Prepared { head, body, segments: Vec::new(), locals: draft.locals })
    }
}

#[cfg(test)]
mod tests {
    use futures::executor::block_on;

    use super::*;
    use crate::catalog;
    use crate::fetch::fetch;
    use crate::format::meta::Meta;
    use crate::ids::{CommitId, PageSize, VolumeId};
    use crate::publish::publish;
    use crate::remote::MemoryRemote;
    use crate::volume::{Options, Volume};

    fn draft(volume: VolumeId) -> Draft {
        Draft {
            volume,
            lsn: Lsn(1),
            id: CommitId([7; 16]),
            parent: ChainHash::ZERO,
            parent_time_ms: 0,
            now_ms: 5,
            pages: 0,
            payload: Bytes::from_static(b"x"),
            locals: 0,
        }
    }

    /// Pages that do not compress, so that segments fill.
    fn page(idx: u32) -> Bytes {
        let mut out = vec![0; 4096];
        let mut hasher = blake3::Hasher::new();
        hasher.update(&idx.to_le_bytes());
        hasher.finalize_xof().fill(&mut out);
        out.into()
    }

    #[test]
    fn whatever_its_size_a_bulk_commit_reads_back() {
        // A commit inside its log entry, one frame short of streaming, one that streams, several segments.
        for count in [0u32, 1, 40, 256, 257, 300, 10_000] {
            let (remote, volume) = (MemoryRemote::new(), VolumeId([9; 16]));
            let mut bulk = Bulk::new(draft(volume));
            // Gaps, since pages of zeroes are left out.
            for idx in (1..=count).map(|at| at * 2) {
                block_on(bulk.push(&remote, PageIdx::new(idx).unwrap(), page(idx))).unwrap();
            }
            assert_eq!(bulk.len(), count as usize);
            let prepared = block_on(bulk.finish(&remote, count * 2 + 1)).unwrap();
            assert_eq!(prepared.head.segments.len() > 1, count == 10_000);
            block_on(publish(&remote, &prepared)).unwrap();
            let meta = Meta { page_size: PageSize::DEFAULT, parent: None };
            block_on(catalog::create(&remote, &"v".parse().unwrap(), volume, meta)).unwrap();
            let opened = block_on(Volume::open(&remote, volume, Options::default())).unwrap().volume;
            let tip = opened.tip();
            assert_eq!(tip.pages(), count * 2 + 1);
            for idx in (1..=count * 2 + 1).step_by(if count > 1000 { 997 } else { 1 }) {
                let at = PageIdx::new(idx).unwrap();
                block_on(fetch(&remote, &opened, &tip, &PageSet::from_iter([at]))).unwrap();
                let expected = if idx % 2 == 0 { page(idx) } else { Bytes::from(vec![0; 4096]) };
                assert_eq!(opened.read(&tip, at).unwrap(), expected, "page {idx} of {count}");
            }
        }
    }
}
