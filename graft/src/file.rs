//! Volumes as files: bytes instead of pages, for anything that is not SQLite.
//!
//! | page | holds |
//! |-----:|-------|
//! |    1 | magic `GFF1`, zero u32, length u64 in bytes, both little-endian; the rest zero |
//! | 2, 3, … | the file's bytes; page n holds those from (n − 2) × page size |
//!
//! A file is sparse: a page that was never written, or only with zeroes, is stored nowhere and costs
//! nothing. Its length is exact. Everything else is the volume's: a change is one commit and is seen
//! whole or not at all, old versions stay readable, readers fetch what they read.
//!
//! | for | use |
//! | --- | --- |
//! | reading ranges | [`FileView`] |
//! | changing ranges | [`FileEdit`], a local commit that is pushed like any other |
//! | a whole file in | [`put()`]: streamed, one commit, only what changed |
//! | a whole file out | [`get()`]: streamed, resumable, only what differs |
//!
//! Invariants: a volume that holds anything else is neither read nor written here; bytes past the end
//! of the file are zero in its last page, so that growing it shows zeroes.

mod get;
mod put;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};

pub use self::get::{GetProgress, get};
pub use self::put::{Put, PutError, PutProgress, put};
use crate::fetch::{FetchError, Fetcher};
use crate::ids::{PageIdx, PageSize, VolumeId};
use crate::page_set::PageSet;
use crate::snapshot::{Location, Snapshot};
use crate::store::StoreError;
use crate::volume::{Change, CommitError, ReadError, Volume};

const MAGIC: [u8; 4] = *b"GFF1";
/// Times that a page is fetched before its read fails: a cache smaller than a frame, and many readers.
const FETCHES_MAX: usize = 4;

/// Why a file was not read or changed.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum FileError {
    /// Its volume holds something else, or nothing yet.
    #[error("volume {volume} holds no file: {found}; put one into a volume of its own")]
    NotAFile {
        /// Which volume.
        volume: VolumeId,
        /// What is there instead.
        found: &'static str,
    },
    /// More bytes than the pages of a volume can hold.
    #[error("a file of {bytes} bytes does not fit a volume of pages of {page_size}: at most {most}")]
    TooLong {
        /// The length asked for.
        bytes: u64,
        /// The volume's page size.
        page_size: u32,
        /// The longest.
        most: u64,
    },
    /// Pages could not be fetched.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// The local store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Pages that were fetched are not in the cache any more.
    #[error("{page:?} was fetched and is gone again: give the cache more than {cache_bytes} bytes")]
    CacheTooSmall {
        /// The page.
        page: PageIdx,
        /// The budget.
        cache_bytes: u64,
    },
}

/// The longest file that a volume of such pages can hold.
pub fn length_max(page_size: PageSize) -> u64 {
    u64::from(u32::MAX - 1) * u64::from(page_size.get())
}

fn check_length(bytes: u64, page_size: PageSize) -> Result<(), FileError> {
    let most = length_max(page_size);
    if bytes > most { Err(FileError::TooLong { bytes, page_size: page_size.get(), most }) } else { Ok(()) }
}

/// How many pages a volume has for a file of this length.
fn pages_for(length: u64, page_size: PageSize) -> u32 {
    1 + u32::try_from(length.div_ceil(u64::from(page_size.get()))).unwrap_or(u32::MAX - 1)
}

/// The page that holds byte `at`.
fn page_of(at: u64, page_size: PageSize) -> PageIdx {
    let page = u32::try_from(at / u64::from(page_size.get())).unwrap_or(u32::MAX - 2);
    PageIdx::new(page.saturating_add(2)).unwrap_or(PageIdx::FIRST)
}

fn first_page(length: u64, page_size: PageSize) -> Bytes {
    let mut page = BytesMut::zeroed(page_size.bytes());
    page[..4].copy_from_slice(&MAGIC);
    page[8..16].copy_from_slice(&length.to_le_bytes());
    page.freeze()
}

/// Whether anything may be stored for this page.
fn is_stored(snapshot: &Snapshot, page: PageIdx) -> bool {
    match snapshot.location(page) {
        Location::Zero => false,
        Location::Frame(..) | Location::Local(_) | Location::Unknown(_) => true,
    }
}

fn zeroes(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}

async fn read_page(
    fetcher: &Fetcher,
    volume: &Volume,
    snapshot: &Snapshot,
    page: PageIdx,
) -> Result<Bytes, FileError> {
    for _ in 0..FETCHES_MAX {
        match volume.read(snapshot, page) {
            Ok(bytes) => return Ok(bytes),
            Err(ReadError::Fault(pages)) => fetcher.fetch(volume, snapshot, &pages).await?,
            Err(ReadError::PastEnd { .. }) => return Ok(Bytes::from(vec![0; snapshot.page_size().bytes()])),
            Err(ReadError::Store(error)) => return Err(error.into()),
        }
    }
    Err(FileError::CacheTooSmall { page, cache_bytes: volume.metrics().memory_bytes })
}

/// The file's length in a snapshot; `None` for a volume without any page.
async fn length(fetcher: &Fetcher, volume: &Volume, snapshot: &Snapshot) -> Result<Option<u64>, FileError> {
    if snapshot.pages() == 0 {
        return Ok(None);
    }
    let not_a_file = |found| FileError::NotAFile { volume: volume.id(), found };
    let page = read_page(fetcher, volume, snapshot, PageIdx::FIRST).await?;
    if page[..4] != MAGIC {
        return Err(not_a_file("its first page is not a file's"));
    }
    let length = page[8..16].first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
    if length > length_max(snapshot.page_size())
        || pages_for(length, snapshot.page_size()) != snapshot.pages()
    {
        return Err(not_a_file("its first page names another length than its pages have"));
    }
    Ok(Some(length))
}

/// A file at one snapshot.
#[derive(Debug, Clone)]
pub struct FileView<'a> {
    volume: &'a Volume,
    snapshot: Snapshot,
    length: u64,
}

impl<'a> FileView<'a> {
    /// The file in `volume` at `snapshot`. Costs one frame where that is not cached.
    ///
    /// # Errors
    ///
    /// [`FileError::NotAFile`] also for a volume that nothing was ever committed to.
    pub async fn open(
        fetcher: &Fetcher,
        volume: &'a Volume,
        snapshot: Snapshot,
    ) -> Result<FileView<'a>, FileError> {
        match length(fetcher, volume, &snapshot).await? {
            Some(length) => Ok(FileView { volume, snapshot, length }),
            None => Err(FileError::NotAFile { volume: volume.id(), found: "it is empty" }),
        }
    }

    /// Its exact length in bytes.
    pub fn len(&self) -> u64 {
        self.length
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Bytes `offset..offset + len` of the file; fewer where it ends before. The result is in memory:
    /// read what is long piece by piece.
    pub async fn read(&self, fetcher: &Fetcher, offset: u64, len: usize) -> Result<Bytes, FileError> {
        let end = offset.saturating_add(len as u64).min(self.length);
        if offset >= end {
            return Ok(Bytes::new());
        }
        let size = self.snapshot.page_size();
        let (first, last) = (page_of(offset, size), page_of(end - 1, size));
        let mut out = BytesMut::with_capacity((end - offset) as usize);
        for group in groups(first, last, self.volume.page_cache().memory_pages() / 2) {
            fetcher.fetch(self.volume, &self.snapshot, &group).await?;
            for page in group.iter() {
                let bytes = read_page(fetcher, self.volume, &self.snapshot, page).await?;
                let at = u64::from(page.get() - 2) * u64::from(size.get());
                let from = offset.saturating_sub(at) as usize;
                let to = (end - at).min(u64::from(size.get())) as usize;
                out.extend_from_slice(&bytes[from..to]);
            }
        }
        Ok(out.freeze())
    }
}

/// `first..=last` in groups of so many pages at most.
fn groups(first: PageIdx, last: PageIdx, most: usize) -> impl Iterator<Item = PageSet> {
    let most = u32::try_from(most).unwrap_or(u32::MAX).clamp(1, 1 << 20);
    (first.get()..=last.get())
        .step_by(most as usize)
        .map(move |from| PageSet::from_ranges([from..=from.saturating_add(most - 1).min(last.get())]))
}

/// A change of a file: writes of ranges and of its length, committed together. What it writes is held
/// in memory until then; [`put()`] streams.
#[derive(Debug)]
pub struct FileEdit<'a> {
    volume: &'a Volume,
    snapshot: Snapshot,
    length: u64,
    /// The least length on the way: what the snapshot holds after it is cut off.
    low: u64,
    pages: BTreeMap<PageIdx, BytesMut>,
}

impl<'a> FileEdit<'a> {
    /// Begins on the volume's tip. An empty volume is a file of length 0.
    pub async fn begin(fetcher: &Fetcher, volume: &'a Volume) -> Result<FileEdit<'a>, FileError> {
        let snapshot = volume.tip();
        let length = length(fetcher, volume, &snapshot).await?.unwrap_or(0);
        Ok(FileEdit { volume, snapshot, length, low: length, pages: BTreeMap::new() })
    }

    /// The length with the changes so far.
    pub fn len(&self) -> u64 {
        self.length
    }

    /// Whether it has no bytes now.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Writes `bytes` at `offset`; the file grows where they end past it, and what lies between reads
    /// as zeroes. Costs a fetch where a page is changed in part and is not cached.
    pub async fn write(&mut self, fetcher: &Fetcher, offset: u64, bytes: &[u8]) -> Result<(), FileError> {
        let size = self.snapshot.page_size();
        let end = offset.saturating_add(bytes.len() as u64);
        check_length(end, size)?;
        let mut rest = bytes;
        let mut at = offset;
        while !rest.is_empty() {
            let page = page_of(at, size);
            let from = (at % u64::from(size.get())) as usize;
            let part = rest.len().min(size.bytes() - from);
            if part == size.bytes() {
                self.pages.insert(page, BytesMut::from(&rest[..part]));
            } else {
                let old = self.page(fetcher, page).await?;
                old[from..from + part].copy_from_slice(&rest[..part]);
            }
            rest = &rest[part..];
            at += part as u64;
        }
        self.length = self.length.max(if bytes.is_empty() { 0 } else { end });
        Ok(())
    }

    /// Cuts the file off at `length`, or grows it with zeroes.
    pub async fn set_len(&mut self, fetcher: &Fetcher, length: u64) -> Result<(), FileError> {
        let size = self.snapshot.page_size();
        check_length(length, size)?;
        if length < self.length {
            let kept = (length % u64::from(size.get())) as usize;
            if kept > 0 {
                self.page(fetcher, page_of(length, size)).await?[kept..].fill(0);
            }
            let cut = pages_for(length, size);
            self.pages.retain(|page, _| page.get() <= cut);
            self.low = self.low.min(length);
        }
        self.length = length;
        Ok(())
    }

    /// The page with the changes so far, to be changed.
    async fn page(&mut self, fetcher: &Fetcher, page: PageIdx) -> Result<&mut BytesMut, FileError> {
        if !self.pages.contains_key(&page) {
            let size = self.snapshot.page_size();
            let bytes = if page.get() > pages_for(self.low, size) {
                BytesMut::zeroed(size.bytes())
            } else {
                BytesMut::from(read_page(fetcher, self.volume, &self.snapshot, page).await?)
            };
            self.pages.insert(page, bytes);
        }
        Ok(self.pages.entry(page).or_default())
    }

    /// Commits locally; [`crate::volume::push`] makes it durable. Answers the new tip, or the old one
    /// where nothing changed.
    ///
    /// # Errors
    ///
    /// [`CommitError::Stale`]: the volume moved on since [`FileEdit::begin`]. Begin again.
    pub fn commit(self) -> Result<Snapshot, CommitError> {
        let size = self.snapshot.page_size();
        let pages = pages_for(self.length, size);
        let mut changes: BTreeMap<PageIdx, Bytes> = BTreeMap::new();
        for (page, bytes) in self.pages {
            if is_stored(&self.snapshot, page) || !zeroes(&bytes) {
                changes.insert(page, bytes.freeze());
            }
        }
        // Cut off and grown again: what was stored there must not show through.
        let low = pages_for(self.low, size);
        for page in (low + 1..=pages.min(self.snapshot.pages())).filter_map(PageIdx::new) {
            if is_stored(&self.snapshot, page) {
                changes.entry(page).or_insert_with(|| Bytes::from(vec![0; size.bytes()]));
            }
        }
        let first = first_page(self.length, size);
        let was = self.snapshot.pages() != 0
            && self.volume.read(&self.snapshot, PageIdx::FIRST).ok() == Some(first.clone());
        if changes.is_empty() && was {
            return Ok(self.snapshot);
        }
        if !was {
            changes.insert(PageIdx::FIRST, first);
        }
        self.volume.commit(&self.snapshot, Change { changes, pages, payload: Bytes::new() })
    }
}
