//! Frames: up to 64 pages compressed together with zstd, each page with its own hash.
//!
//! A frame is the unit of a fetch: one ranged GET. It holds its pages' bytes one after another, in
//! ascending page order; which pages they are, and their hashes, stand in the commit's head. A
//! page's hash covers its index too, so that two swapped pages do not pass.

use bytes::Bytes;

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
        let mut hasher = blake3::Hasher::new();
        hasher.update(&idx.get().to_le_bytes());
        hasher.update(bytes);
        let mut hash = [0; 16];
        hash.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
        PageHash(hash)
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

/// Decompresses a frame into its pages and checks every hash. Safe on hostile bytes: no more than
/// the pages' own size is allocated.
///
/// # Errors
///
/// What did not hold, as text for [`super::Damaged`].
pub fn decode(
    bytes: &[u8],
    page_size: PageSize,
    pages: &[PageIdx],
    hashes: &[PageHash],
) -> Result<Vec<Bytes>, String> {
    let expected = pages.len() * page_size.bytes();
    let raw =
        zstd::bulk::decompress(bytes, expected).map_err(|e| format!("a frame does not decompress ({e})"))?;
    if raw.len() != expected {
        return Err(format!("a frame holds {} bytes instead of {expected}", raw.len()));
    }
    let mut out = Vec::with_capacity(pages.len());
    for (slot, (idx, hash)) in pages.iter().zip(hashes).enumerate() {
        // A copy of its own: one cached page must not keep the whole frame in memory.
        let page = Bytes::copy_from_slice(&raw[slot * page_size.bytes()..(slot + 1) * page_size.bytes()]);
        if PageHash::of(*idx, &page) != *hash {
            return Err(format!("{idx:?} does not match its hash"));
        }
        out.push(page);
    }
    Ok(out)
}
