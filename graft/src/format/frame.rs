//! Frames: up to 64 pages compressed together with zstd, each page with its own hash.
//!
//! A frame is the unit of a fetch: one ranged GET. It holds its pages' bytes one after another, in
//! ascending page order; which pages they are, and their hashes, stand in the commit's head or in a
//! checkpoint's chunks. A
//! page's hash covers its index too, so that two swapped pages do not pass.

use std::cell::RefCell;
use std::fmt;

use bytes::{Bytes, BytesMut};
use zstd::bulk::Decompressor;

use super::chunk::Slot;
use crate::ids::{PageIdx, PageSize};

/// Most pages in one frame.
pub const FRAME_PAGES_MAX: usize = 64;

/// zstd's level: 3 is its default, and levels above gain little on 4 KiB b-tree pages.
const ZSTD_LEVEL: i32 = 3;

/// The first 16 bytes of BLAKE3 over the page's index (u32, little-endian) and its bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PageHash(pub [u8; 16]);

impl PageHash {
    /// The hash of page `idx` with these bytes.
    pub fn of(idx: PageIdx, bytes: &[u8]) -> PageHash {
        // In one piece: after four bytes of its own the hasher takes a page 1 KiB at a time, in one piece
        // four and more of them side by side, which is two to three times as fast.
        const USUAL: usize = 4096;
        let (mut usual, mut long) = ([0; 4 + USUAL], Vec::new());
        let whole = match usual.get_mut(..4 + bytes.len()) {
            Some(whole) => whole,
            None => {
                long.resize(4 + bytes.len(), 0);
                &mut long[..]
            }
        };
        let (first, rest) = whole.split_at_mut(4);
        first.copy_from_slice(&idx.get().to_le_bytes());
        rest.copy_from_slice(bytes);
        let mut hash = [0; 16];
        hash.copy_from_slice(&blake3::hash(whole).as_bytes()[..16]);
        PageHash(hash)
    }
}

/// Hashes of pages one after another, as a commit's head has them. Clones share the bytes.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct PageHashes(Bytes);

impl PageHashes {
    /// Bytes of each.
    pub const EACH: usize = 16;

    /// The hashes that `bytes` hold; what is left over at the end is none.
    pub(crate) fn of(bytes: Bytes) -> PageHashes {
        PageHashes(bytes)
    }

    /// All of them.
    pub fn bytes(&self) -> &Bytes {
        &self.0
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.0.len() / PageHashes::EACH
    }

    /// None.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// One after another.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = PageHash> + '_ {
        self.0.as_chunks().0.iter().copied().map(PageHash)
    }
}

impl FromIterator<PageHash> for PageHashes {
    fn from_iter<I: IntoIterator<Item = PageHash>>(hashes: I) -> PageHashes {
        PageHashes(hashes.into_iter().flat_map(|hash| hash.0).collect())
    }
}

impl fmt::Debug for PageHashes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// Compresses pages into a frame.
pub fn encode<'a>(pages: impl Iterator<Item = &'a Bytes>) -> Bytes {
    let mut raw = Vec::new();
    pages.for_each(|page| raw.extend_from_slice(page));
    zstd::bulk::compress(&raw, ZSTD_LEVEL)
        .expect("zstd compresses any bytes into a buffer of its own bound")
        .into()
}

/// Decompresses a frame of `count` pages, takes the pages of `slots` from it, in their order, and checks
/// their hashes. Safe on hostile bytes: no more than the pages' own size is allocated.
///
/// # Errors
///
/// What did not hold, as text for [`super::Damaged`].
pub fn decode(bytes: &[u8], page_size: PageSize, count: u32, slots: &[Slot]) -> Result<Vec<Bytes>, String> {
    decode_into(bytes, page_size, count, slots, &mut Vec::new())
}

/// As [`decode`], into buffers of `spare` first: pages that nobody has any more.
pub(crate) fn decode_into(
    bytes: &[u8],
    page_size: PageSize,
    count: u32,
    slots: &[Slot],
    spare: &mut Vec<Bytes>,
) -> Result<Vec<Bytes>, String> {
    let expected = count as usize * page_size.bytes();
    SCRATCH.with_borrow_mut(|(zstd, raw)| {
        let failed = |e: std::io::Error| format!("a frame does not decompress ({e})");
        let zstd = match zstd {
            Some(zstd) => zstd,
            None => zstd.insert(Decompressor::new().map_err(failed)?),
        };
        raw.clear();
        raw.reserve(expected);
        zstd.decompress_to_buffer(bytes, raw).map_err(failed)?;
        if raw.len() != expected {
            return Err(format!("a frame holds {} bytes instead of {expected}", raw.len()));
        }
        pages_of(raw, page_size, slots, spare)
    })
}

thread_local! {
    /// What decoding a frame would have to allocate and hand back each time: zstd's state, and the
    /// frame's bytes, at most 64 pages.
    static SCRATCH: RefCell<(Option<Decompressor<'static>>, Vec<u8>)> = const { RefCell::new((None, Vec::new())) };
}

fn refill(mut buffer: BytesMut, page: &[u8]) -> Bytes {
    buffer.clear();
    buffer.extend_from_slice(page);
    buffer.freeze()
}

fn pages_of(
    raw: &[u8],
    page_size: PageSize,
    slots: &[Slot],
    spare: &mut Vec<Bytes>,
) -> Result<Vec<Bytes>, String> {
    let size = page_size.bytes();
    let mut out = Vec::with_capacity(slots.len());
    for slot in slots {
        let at = usize::from(slot.slot) * size;
        let page = raw.get(at..at + size).ok_or_else(|| format!("a frame has no slot {}", slot.slot))?;
        // A copy of its own: one cached page must not keep the whole frame in memory.
        let page = match spare.pop().map(Bytes::try_into_mut) {
            Some(Ok(buffer)) if buffer.capacity() == size => refill(buffer, page),
            // None left, or somebody still reads it.
            Some(_) | None => Bytes::copy_from_slice(page),
        };
        if PageHash::of(slot.page, &page) != slot.hash {
            return Err(format!("{:?} does not match its hash", slot.page));
        }
        out.push(page);
    }
    Ok(out)
}
