//! A commit: the object `volumes/{vid}/log/{!lsn}`. Little-endian.
//!
//! | offset | bytes | field       | meaning                                                  |
//! |-------:|------:|-------------|----------------------------------------------------------|
//! |      0 |     4 | magic       | `GFC1`; the digit is the format version                  |
//! |      4 |     4 | pages       | the volume's page count after this commit                |
//! |      8 |     8 | lsn         | at least 1, equal to the object key's                    |
//! |     16 |    16 | volume      | equal to the object key's                                |
//! |     32 |    16 | id          | random; tells a writer its own commit from another's     |
//! |     48 |    32 | parent      | hash of the commit before; zero for lsn 1                |
//! |     80 |     8 | time        | ms since 1970; `max(parent + 1, the writer's clock)`     |
//! |     88 |     8 | checkpoint  | newest checkpoint the writer knew, 0 for none            |
//! |     96 |     4 | set         | bytes of the write set                                   |
//! |    100 |     4 | frames      | how many frames                                          |
//! |    104 |     4 | segments    | how many segments                                        |
//! |    108 |     4 | payload     | bytes of the payload                                     |
//! |    112 |    16 | reserved    | zero                                                     |
//! |    128 |    32 | hash        | BLAKE3 of the whole head with this field left out        |
//! |    160 |       | write set   | a [`PageSet`], encoded                                   |
//! |        |       | page hashes | 16 bytes for each page of the write set                  |
//! |        |       | frame table | 20 bytes each: segment u32 (0 = inline), offset u64, bytes u32, pages u32 |
//! |        |       | segment sizes | u64 each                                               |
//! |        |       | payload     | opaque to the engine                                     |
//! |        |       | *body*      | inline frames; a frame's offset counts from here         |
//!
//! The *head* is everything before the body: a reader that wants metadata alone reads a prefix. The
//! frames cover the write set's pages in ascending order, one frame after another. Since the hash
//! covers the parent's hash, the page count, the write set, every page's hash and the payload, it
//! chains the volume's whole history and content.
//!
//! A decoded head is its bytes: write set, page hashes and payload are slices of them, read in place, so
//! that a head of many pages costs a check of its bytes and three allocations at most.
//!
//! Invariants of a decoded head: no page of the write set is beyond `pages`; the frames' pages add
//! up to the write set's; no frame has more than [`FRAME_PAGES_MAX`] pages.

use bytes::{Bytes, BytesMut};

use super::frame::{FRAME_PAGES_MAX, PageHash, PageHashes};
use super::{Damaged, Reader, Short};
use crate::ids::{ChainHash, CommitId, Lsn, PageIdx, VolumeId, key};
use crate::page_set::{self, EncodedSet};

const MAGIC: [u8; 4] = *b"GFC1";
/// Bytes of the fixed header.
pub const HEADER_BYTES: usize = 160;
/// What a reader asks for first: the heads of nearly all commits are shorter.
pub const PREFIX_BYTES: u64 = 4096;
const HASH_AT: usize = 128;
const FRAME_ENTRY_BYTES: usize = 20;
/// A head longer than this is damage, not data: it describes 60 GiB of pages.
pub(crate) const HEAD_BYTES_MAX: u64 = 256 << 20;

/// Where one frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameEntry {
    /// 0: in the commit's own body; n: in the commit's nth segment.
    pub segment: u32,
    /// Bytes before it in the body or the segment.
    pub offset: u64,
    /// Its compressed length.
    pub bytes: u32,
    /// How many pages it holds.
    pub pages: u32,
}

/// A commit without its body.
#[derive(Debug, Clone, PartialEq)]
pub struct Head {
    /// The volume.
    pub volume: VolumeId,
    /// Its place in the log.
    pub lsn: Lsn,
    /// The writer's random id for it.
    pub id: CommitId,
    /// The hash of the commit before.
    pub parent: ChainHash,
    /// Its own hash.
    pub hash: ChainHash,
    /// Milliseconds since 1970.
    pub time_ms: i64,
    /// The newest checkpoint that its writer knew; 0 for none.
    pub checkpoint: Lsn,
    /// The volume's page count after it.
    pub pages: u32,
    /// The pages it holds.
    pub set: EncodedSet,
    /// Their hashes, in page order.
    pub hashes: PageHashes,
    /// Their frames, in page order.
    pub frames: Vec<FrameEntry>,
    /// The length of each of its segments.
    pub segments: Vec<u64>,
    /// What the layer above stored with it.
    pub payload: Bytes,
    /// Its exact bytes, in front of the object's body; filled in by `encode`. Its hash is over these.
    pub encoded: Bytes,
}

impl Head {
    /// The head's bytes; fills in `self.hash` and `self.encoded`.
    pub fn encode(&mut self) -> Bytes {
        let set = self.set.bytes();
        let mut out = BytesMut::with_capacity(
            HEADER_BYTES + set.len() + self.hashes.bytes().len() + self.payload.len() + 64,
        );
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&self.pages.to_le_bytes());
        out.extend_from_slice(&self.lsn.0.to_le_bytes());
        out.extend_from_slice(&self.volume.0);
        out.extend_from_slice(&self.id.0);
        out.extend_from_slice(&self.parent.0);
        out.extend_from_slice(&self.time_ms.to_le_bytes());
        out.extend_from_slice(&self.checkpoint.0.to_le_bytes());
        for length in [set.len(), self.frames.len(), self.segments.len(), self.payload.len()] {
            let length = u32::try_from(length).expect("the writer bounds a commit's parts to 4 GiB");
            out.extend_from_slice(&length.to_le_bytes());
        }
        out.extend_from_slice(&[0; 48]);
        out.extend_from_slice(set);
        out.extend_from_slice(self.hashes.bytes());
        for frame in &self.frames {
            out.extend_from_slice(&frame.segment.to_le_bytes());
            out.extend_from_slice(&frame.offset.to_le_bytes());
            out.extend_from_slice(&frame.bytes.to_le_bytes());
            out.extend_from_slice(&frame.pages.to_le_bytes());
        }
        for bytes in &self.segments {
            out.extend_from_slice(&bytes.to_le_bytes());
        }
        out.extend_from_slice(&self.payload);
        self.hash = hash_of(&out);
        out[HASH_AT..HEADER_BYTES].copy_from_slice(&self.hash.0);
        self.encoded = out.freeze();
        self.encoded.clone()
    }

    /// Reads a head from the first bytes of the object of `volume` at `lsn`, and copies those that are
    /// the head's. Safe on hostile bytes.
    ///
    /// # Errors
    ///
    /// [`HeadError::Incomplete`]: the bytes end before the head does; ask for as many as it says.
    /// [`HeadError::Damaged`]: no number of further bytes would make it a commit of this key.
    pub fn decode(volume: VolumeId, lsn: Lsn, bytes: &[u8]) -> Result<Head, HeadError> {
        Head::read(volume, lsn, bytes, Bytes::copy_from_slice)
    }

    /// As [`decode`](Head::decode), but the head shares `bytes` with the caller where it is at least
    /// half of them; where it is less it is copied, so that it does not keep the rest in memory.
    ///
    /// # Errors
    ///
    /// As [`decode`](Head::decode).
    pub fn decode_in_place(volume: VolumeId, lsn: Lsn, bytes: &Bytes) -> Result<Head, HeadError> {
        Head::read(volume, lsn, bytes, |head| {
            if head.len() >= bytes.len() / 2 { bytes.slice_ref(head) } else { Bytes::copy_from_slice(head) }
        })
    }

    fn read(
        volume: VolumeId,
        lsn: Lsn,
        bytes: &[u8],
        keep: impl FnOnce(&[u8]) -> Bytes,
    ) -> Result<Head, HeadError> {
        let damaged = |reason: String| HeadError::Damaged(Damaged::new(&key::log(volume, lsn), reason));
        let header = Header::decode(bytes).map_err(|e| damaged(e.0))?;
        if header.volume != volume || header.lsn != lsn {
            return Err(damaged(format!("it is volume {} lsn {}", header.volume, header.lsn)));
        }
        let head_bytes = header.fixed_bytes();
        if head_bytes > HEAD_BYTES_MAX {
            return Err(damaged(format!("its head claims {head_bytes} bytes")));
        }
        // The write set must be checked to know how many hashes follow it.
        let Some(set) = bytes.get(HEADER_BYTES..HEADER_BYTES + header.set as usize) else {
            return Err(HeadError::Incomplete { need: head_bytes });
        };
        let set = page_set::check(set).map_err(|e| damaged(format!("its write set: {e}")))?;
        let need = head_bytes.saturating_add(set.len.saturating_mul(PageHashes::EACH as u64));
        if need > HEAD_BYTES_MAX {
            return Err(damaged(format!("its head claims {need} bytes")));
        }
        if (bytes.len() as u64) < need {
            return Err(HeadError::Incomplete { need });
        }
        let bytes = &bytes[..need as usize];
        if hash_of(bytes) != header.hash {
            return Err(damaged("its head does not match its hash".into()));
        }
        header.body(set, keep(bytes)).map_err(damaged)
    }

    /// The pages of each frame, with their hashes.
    pub fn frame_pages(&self) -> Vec<(FrameEntry, Vec<PageIdx>, Vec<PageHash>)> {
        let mut pages = self.set.iter();
        let mut hashes = self.hashes.iter();
        let frames = self.frames.iter().map(|frame| {
            let count = frame.pages as usize;
            (*frame, pages.by_ref().take(count).collect(), hashes.by_ref().take(count).collect())
        });
        frames.collect()
    }
}

/// Why bytes are not a head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HeadError {
    /// `need` bytes from the object's start hold the next part of the head at least.
    Incomplete {
        /// How many bytes.
        need: u64,
    },
    /// It is not a commit of this key.
    Damaged(Damaged),
}

/// BLAKE3 of a head without its hash field.
fn hash_of(head: &[u8]) -> ChainHash {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&head[..HASH_AT]);
    hasher.update(&head[HEADER_BYTES..]);
    ChainHash(*hasher.finalize().as_bytes())
}

struct Header {
    pages: u32,
    lsn: Lsn,
    volume: VolumeId,
    id: CommitId,
    parent: ChainHash,
    time_ms: i64,
    checkpoint: Lsn,
    set: u32,
    frames: u32,
    segments: u32,
    payload: u32,
    hash: ChainHash,
}

struct HeaderError(String);
impl From<Short> for HeaderError {
    fn from(short: Short) -> HeaderError {
        HeaderError(format!("it ends before its {}", short.0))
    }
}

impl Header {
    fn decode(bytes: &[u8]) -> Result<Header, HeaderError> {
        let mut reader = Reader::new(bytes);
        let magic: [u8; 4] = reader.array("magic")?;
        if magic != MAGIC {
            return Err(HeaderError("its magic is not GFC1: not a commit, or of a newer version".into()));
        }
        let header = Header {
            pages: reader.u32("page count")?,
            lsn: Lsn(reader.u64("lsn")?),
            volume: VolumeId(reader.array("volume")?),
            id: CommitId(reader.array("id")?),
            parent: ChainHash(reader.array("parent")?),
            time_ms: i64::from_le_bytes(reader.array("time")?),
            checkpoint: Lsn(reader.u64("checkpoint")?),
            set: reader.u32("set length")?,
            frames: reader.u32("frame count")?,
            segments: reader.u32("segment count")?,
            payload: reader.u32("payload length")?,
            hash: {
                reader.take(16, "reserved field")?;
                ChainHash(reader.array("hash")?)
            },
        };
        Ok(header)
    }

    /// The head's length without its page hashes.
    fn fixed_bytes(&self) -> u64 {
        HEADER_BYTES as u64
            + u64::from(self.set)
            + FRAME_ENTRY_BYTES as u64 * u64::from(self.frames)
            + 8 * u64::from(self.segments)
            + u64::from(self.payload)
    }

    /// Reads what follows the header. `set` is what the check of the write set found.
    fn body(&self, set: page_set::Summary, encoded: Bytes) -> Result<Head, String> {
        let short = |short: Short| format!("it ends before its {}", short.0);
        let mut reader = Reader::new(encoded.get(HEADER_BYTES..).unwrap_or_default());
        if set.last.is_some_and(|last| last.get() > self.pages) {
            return Err("its write set has pages beyond its page count".into());
        }
        let write_set = encoded.slice_ref(reader.take(self.set as usize, "write set").map_err(short)?);
        let hashes = set.len as usize * PageHashes::EACH;
        let hashes = encoded.slice_ref(reader.take(hashes, "page hashes").map_err(short)?);
        let mut frames = Vec::with_capacity(self.frames as usize);
        let mut framed = 0u64;
        for _ in 0..self.frames {
            let frame = FrameEntry {
                segment: reader.u32("frame table").map_err(short)?,
                offset: reader.u64("frame table").map_err(short)?,
                bytes: reader.u32("frame table").map_err(short)?,
                pages: reader.u32("frame table").map_err(short)?,
            };
            framed += u64::from(frame.pages);
            if frame.pages == 0 || frame.pages as usize > FRAME_PAGES_MAX {
                return Err(format!("a frame claims {} pages", frame.pages));
            }
            if frame.segment > self.segments || frame.offset.checked_add(u64::from(frame.bytes)).is_none() {
                return Err("a frame is outside every segment".into());
            }
            frames.push(frame);
        }
        if framed != set.len {
            return Err(format!("its frames hold {framed} pages, its write set {}", set.len));
        }
        let mut segments = Vec::with_capacity(self.segments as usize);
        for _ in 0..self.segments {
            segments.push(reader.u64("segment sizes").map_err(short)?);
        }
        let payload = encoded.slice_ref(reader.take(self.payload as usize, "payload").map_err(short)?);
        Ok(Head {
            volume: self.volume,
            lsn: self.lsn,
            id: self.id,
            parent: self.parent,
            hash: self.hash,
            time_ms: self.time_ms,
            checkpoint: self.checkpoint,
            pages: self.pages,
            set: EncodedSet::checked(write_set, set),
            hashes: PageHashes::of(hashes),
            frames,
            segments,
            payload,
            encoded,
        })
    }
}

#[cfg(test)]
mod tests;
