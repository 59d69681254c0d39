//! Cached pages in a file: fixed slots, found by an index in memory, under a strict budget.
//!
//! | offset | bytes | holds |
//! |-------:|------:|-------|
//! |      0 |  4096 | header: magic `GPF1`, page size u32, volume 16 bytes; the rest zero |
//! |   4096 |       | groups, one after another: |
//! |        |  4096 | · 256 entries of 16 bytes: page u32 (0: free), zero u32, lsn u64 |
//! |        | 256 × page size | · their pages |
//!
//! Little-endian. Whoever reads a page gives the hash that the log has for it, so an entry and its page
//! that do not belong together, for whatever reason (a crash between two writes, a power cut, a flipped
//! bit, a bucket that was replaced), are found when they are read and count as not there. That is why
//! nothing here is ever fsynced: all of it can be fetched again.
//!
//! The file never grows beyond its budget: a full one gives slots of old pages to new ones, by the
//! rules of [`Clock`]. Reading a page is one `pread` and its hash; opening reads the entries, 16
//! bytes for each page.
//!
//! Invariants: local commits and everything else that exists here alone is elsewhere; a page read
//! from here is the one that was put.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;

use super::StoreError;
use crate::format::frame::PageHash;
use crate::ids::{Lsn, PageIdx, PageSize, VolumeId};
use crate::volume::cache::clock::{Clock, Version};

const MAGIC: [u8; 4] = *b"GPF1";
const BLOCK: u64 = 4096;
const ENTRY: usize = 16;
/// Slots in a group.
const GROUP: u32 = BLOCK as u32 / ENTRY as u32;

/// A file of bytes that a store keeps beside its keys, for what can be made again.
pub trait ByteFile: Send + Sync + fmt::Debug {
    /// Its length.
    fn len(&self) -> Result<u64, StoreError>;

    /// Whether it has no bytes.
    fn is_empty(&self) -> Result<bool, StoreError> {
        Ok(self.len()? == 0)
    }

    /// Fills `into` from `offset`; answers how many bytes there were.
    fn read(&self, offset: u64, into: &mut [u8]) -> Result<usize, StoreError>;

    /// Writes at `offset`; what lies between the end and there reads as zeroes.
    fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), StoreError>;

    /// Makes it so long: cut off, or with zeroes at its end.
    fn set_len(&self, len: u64) -> Result<(), StoreError>;
}

/// The cached pages of one volume in a [`ByteFile`].
pub(crate) struct PageFile {
    file: Arc<dyn ByteFile>,
    volume: VolumeId,
    page_size: PageSize,
    slots: Mutex<Clock>,
}

impl fmt::Debug for PageFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PageFile({}, {:?})", self.volume, self.file)
    }
}

/// How many pages fit into a file of `budget` bytes.
fn capacity(budget: u64, page_size: PageSize) -> u64 {
    let page = u64::from(page_size.get());
    let group = BLOCK + u64::from(GROUP) * page;
    let room = budget.saturating_sub(BLOCK);
    room / group * u64::from(GROUP) + (room % group).saturating_sub(BLOCK) / page
}

impl PageFile {
    /// The pages of `volume` in `file`, which is begun anew where it holds anything else. `None` where
    /// `budget` bytes have no room for a page; the file is emptied then.
    pub(crate) fn open(
        file: Arc<dyn ByteFile>,
        volume: VolumeId,
        page_size: PageSize,
        budget: u64,
    ) -> Result<Option<PageFile>, StoreError> {
        let capacity = capacity(budget, page_size).min(u64::from(u32::MAX));
        if capacity == 0 {
            file.set_len(0)?;
            return Ok(None);
        }
        let mut slots = Clock::new(usize::try_from(capacity).unwrap_or(usize::MAX));
        let header = header(volume, page_size);
        let mut found = vec![0; BLOCK as usize];
        let page_file = |slots| PageFile { file: file.clone(), volume, page_size, slots: Mutex::new(slots) };
        if file.read(0, &mut found)? != found.len() || found != header {
            file.set_len(0)?;
            file.write(0, &header)?;
            return Ok(Some(page_file(slots)));
        }
        let len = file.len()?;
        let mut block = vec![0; BLOCK as usize];
        'groups: for group in 0.. {
            let at = offsets(page_size, group * GROUP).0;
            if at >= len {
                break;
            }
            let had = file.read(at, &mut block)?;
            for (slot, entry) in (group * GROUP..).zip(block[..had].chunks_exact(ENTRY)) {
                let page_at = offsets(page_size, slot).1;
                if u64::from(slot) >= capacity || page_at + u64::from(page_size.get()) > len {
                    break 'groups;
                }
                slots.restore(slot, read_entry(entry));
            }
        }
        // What a larger budget left.
        let end = offsets(page_size, (capacity - 1) as u32).1 + u64::from(page_size.get());
        if len > end {
            file.set_len(end)?;
        }
        Ok(Some(page_file(slots)))
    }

    /// How many pages fit.
    pub(crate) fn capacity(&self) -> usize {
        self.slots.lock().capacity()
    }

    /// How many pages are there.
    pub(crate) fn len(&self) -> usize {
        self.slots.lock().len()
    }

    /// Whether `version` is there, as far as the index knows. No I/O.
    pub(crate) fn contains(&self, version: Version) -> bool {
        self.slots.lock().find(version).is_some()
    }

    /// The page, if it is there and has this hash.
    pub(crate) fn get(&self, version: Version, hash: PageHash) -> Result<Option<Bytes>, StoreError> {
        let Some(slot) = self.slots.lock().read(version) else { return Ok(None) };
        let page = read_page(&*self.file, self.page_size, slot, version, hash);
        if page.is_none() {
            // Its slot went to another page while we read, or what is there is damaged.
            self.slots.lock().remove(version, slot);
        }
        Ok(page)
    }

    /// Keeps pages; answers those that gave up their slots for them. On an error none of them is
    /// there, and others may have gone.
    pub(crate) fn put(&self, pages: &[(Version, Bytes)]) -> Result<Vec<Version>, StoreError> {
        let mut slots = self.slots.lock();
        let mut evicted = Vec::new();
        let mut placed: Vec<(u32, Version, &Bytes)> = Vec::with_capacity(pages.len());
        for (version, bytes) in pages {
            let inserted = slots.insert(*version, false);
            evicted.extend(inserted.evicted);
            if !inserted.present {
                // More pages than slots: a page of this very call may have lost its own again.
                placed.retain(|(slot, ..)| *slot != inserted.slot);
                placed.push((inserted.slot, *version, bytes));
            }
        }
        placed.sort_unstable_by_key(|(slot, ..)| *slot);
        let written = self.write(&placed);
        if written.is_err() {
            for (slot, version, _) in &placed {
                slots.remove(*version, *slot);
            }
        }
        written.map(|()| evicted)
    }

    fn write(&self, placed: &[(u32, Version, &Bytes)]) -> Result<(), StoreError> {
        // Runs of neighbours in one group are one write of pages and one of entries.
        let follows = |(a, ..): &(u32, Version, &Bytes), (b, ..): &(u32, Version, &Bytes)| {
            *b == a + 1 && a / GROUP == b / GROUP
        };
        let (mut pages, mut entries) = (Vec::new(), Vec::new());
        for run in placed.chunk_by(follows) {
            pages.clear();
            entries.clear();
            for (_, version, bytes) in run {
                pages.extend_from_slice(bytes);
                entries.extend_from_slice(&version.0.get().to_le_bytes());
                entries.extend_from_slice(&[0; 4]);
                entries.extend_from_slice(&version.1.0.to_le_bytes());
            }
            let Some((first, ..)) = run.first() else { continue };
            let (group, page) = offsets(self.page_size, *first);
            self.file.write(page, &pages)?;
            self.file.write(group + u64::from(first % GROUP) * ENTRY as u64, &entries)?;
        }
        Ok(())
    }

    /// `version` was replaced by a newer one.
    pub(crate) fn demote(&self, versions: impl Iterator<Item = Version>) {
        let mut slots = self.slots.lock();
        versions.for_each(|version| slots.demote(version));
    }
}

/// The pages that another volume's file holds of versions that a fork of it reads, too. It is only read,
/// and may change meanwhile: what is no longer there is found by its hash and counts as not there.
pub(crate) struct Inherited {
    file: Arc<dyn ByteFile>,
    page_size: PageSize,
    slots: Mutex<HashMap<Version, u32>>,
}

impl Inherited {
    /// The pages of `volume` in `file` that commits up to `last` wrote. `None` where it holds none.
    pub(crate) fn open(
        file: Arc<dyn ByteFile>,
        volume: VolumeId,
        last: Lsn,
        page_size: PageSize,
    ) -> Result<Option<Inherited>, StoreError> {
        let mut block = vec![0; BLOCK as usize];
        if file.read(0, &mut block)? != block.len() || block != header(volume, page_size) {
            return Ok(None);
        }
        let len = file.len()?;
        let mut slots = HashMap::new();
        for group in 0..u32::MAX / GROUP {
            let at = offsets(page_size, group * GROUP).0;
            if at >= len {
                break;
            }
            let had = file.read(at, &mut block)?;
            for (slot, entry) in (group * GROUP..).zip(block[..had].chunks_exact(ENTRY)) {
                if let Some(version) = read_entry(entry).filter(|(_, lsn)| *lsn <= last) {
                    slots.insert(version, slot);
                }
            }
        }
        let inherited = Inherited { file, page_size, slots: Mutex::new(slots) };
        Ok(Some(inherited).filter(|inherited| !inherited.slots.lock().is_empty()))
    }

    /// Whether `version` is there, as far as the index knows. No I/O.
    pub(crate) fn contains(&self, version: Version) -> bool {
        self.slots.lock().contains_key(&version)
    }

    /// The page, if it is there and has this hash.
    pub(crate) fn get(&self, version: Version, hash: PageHash) -> Option<Bytes> {
        let slot = self.slots.lock().get(&version).copied()?;
        let page = read_page(&*self.file, self.page_size, slot, version, hash);
        if page.is_none() {
            self.slots.lock().remove(&version);
        }
        page
    }
}

fn header(volume: VolumeId, page_size: PageSize) -> Vec<u8> {
    let mut header = vec![0; BLOCK as usize];
    header[..4].copy_from_slice(&MAGIC);
    header[4..8].copy_from_slice(&page_size.get().to_le_bytes());
    header[8..24].copy_from_slice(&volume.0);
    header
}

/// The page in `slot`, if it has this hash. A file that cannot be read is a miss: the page can be
/// fetched again.
fn read_page(
    file: &dyn ByteFile,
    page_size: PageSize,
    slot: u32,
    version: Version,
    hash: PageHash,
) -> Option<Bytes> {
    let mut page = BytesMut::zeroed(page_size.bytes());
    let had = file.read(offsets(page_size, slot).1, &mut page).unwrap_or(0);
    (had == page.len() && PageHash::of(version.0, &page) == hash).then(|| page.freeze())
}

/// Where the entries of `slot`'s group begin, and where its page does.
fn offsets(page_size: PageSize, slot: u32) -> (u64, u64) {
    let page = u64::from(page_size.get());
    let group = BLOCK + u64::from(slot / GROUP) * (BLOCK + u64::from(GROUP) * page);
    (group, group + BLOCK + u64::from(slot % GROUP) * page)
}

fn read_entry(entry: &[u8]) -> Option<Version> {
    let page = PageIdx::new(u32::from_le_bytes(*entry.first_chunk()?))?;
    let lsn = Lsn(u64::from_le_bytes(*entry.get(8..)?.first_chunk()?));
    Some((page, lsn))
}

#[cfg(test)]
mod tests;
