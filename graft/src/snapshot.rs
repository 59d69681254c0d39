//! Snapshots: a read view of a volume, and the page table that answers "where is page P" in O(1).
//!
//! The table is copy-on-write in chunks of 256 pages: taking a snapshot clones one pointer, a commit
//! copies the chunks that it touches. It grows with the pages that have ever been written, not with
//! the length of the history.
//!
//! Invariants: a snapshot never changes; two snapshots with equal [`Snapshot::version`] of one
//! replica have equal content; every location is below the page count.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

use crate::format::commit::Head;
use crate::format::frame::PageHash;
use crate::ids::{Lsn, PageIdx, PageSize, key};
use crate::page_set::PageSet;

const CHUNK: usize = 256;

/// A stored frame: where it is and what must come out of it.
#[derive(Debug, PartialEq)]
pub struct FrameRef {
    /// The object that holds it.
    pub key: String,
    /// Its first byte in the object.
    pub offset: u64,
    /// Its compressed length.
    pub bytes: u32,
    /// The commit that wrote it.
    pub lsn: Lsn,
    /// Its pages, in order.
    pub pages: Vec<PageIdx>,
    /// Their hashes.
    pub hashes: Vec<PageHash>,
}

/// Where the newest version of a page is.
#[derive(Clone, Debug)]
pub enum Location {
    /// In a stored frame.
    Frame(Arc<FrameRef>),
    /// In memory: a local commit that the remote does not have.
    Local(Bytes),
}

type Chunk = Vec<Option<Location>>;

/// Page → location. Cloning copies one pointer.
#[derive(Clone, Default)]
pub struct PageTable {
    chunks: Arc<Vec<Option<Arc<Chunk>>>>,
}

impl PageTable {
    /// The location of `idx`, if a commit has written it.
    pub fn get(&self, idx: PageIdx) -> Option<&Location> {
        let at = idx.get() as usize - 1;
        self.chunks.get(at / CHUNK)?.as_ref()?[at % CHUNK].as_ref()
    }

    fn set(&mut self, idx: PageIdx, location: Location) {
        let at = idx.get() as usize - 1;
        let chunks = Arc::make_mut(&mut self.chunks);
        if chunks.len() <= at / CHUNK {
            chunks.resize(at / CHUNK + 1, None);
        }
        let chunk = chunks[at / CHUNK].get_or_insert_with(|| Arc::new(vec![None; CHUNK]));
        Arc::make_mut(chunk)[at % CHUNK] = Some(location);
    }

    /// Forgets pages after `last`, so that they read as zeroes if the volume grows again.
    fn truncate(&mut self, last: u32) {
        let last = last as usize;
        if self.chunks.len() * CHUNK <= last {
            return;
        }
        let chunks = Arc::make_mut(&mut self.chunks);
        chunks.truncate(last.div_ceil(CHUNK));
        if !last.is_multiple_of(CHUNK)
            && let Some(Some(chunk)) = chunks.last_mut()
        {
            Arc::make_mut(chunk)[last % CHUNK..].fill(None);
        }
    }
}

/// A read view of one volume.
#[derive(Clone)]
pub struct Snapshot(Arc<View>);

#[derive(Clone)]
struct View {
    version: u64,
    lineage: u64,
    lsn: Lsn,
    pages: u32,
    page_size: PageSize,
    table: PageTable,
}

impl fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Snapshot({}, version {}, {} pages)", self.0.lsn, self.0.version, self.0.pages)
    }
}

impl Snapshot {
    /// The volume before its first commit.
    pub(crate) fn empty(page_size: PageSize) -> Snapshot {
        Snapshot(Arc::new(View {
            version: 0,
            lineage: 0,
            lsn: Lsn::ZERO,
            pages: 0,
            page_size,
            table: PageTable::default(),
        }))
    }

    /// Differs between any two states of one replica that may differ in content, and is never reused.
    pub fn version(&self) -> u64 {
        self.0.version
    }

    /// Equal for snapshots of which one grew out of the other. Changes when local commits were
    /// dropped: what a reader derived from an earlier lineage may hold for nothing in this one.
    pub fn lineage(&self) -> u64 {
        self.0.lineage
    }

    /// The durable commit it stands on; local commits may lie on top.
    pub fn lsn(&self) -> Lsn {
        self.0.lsn
    }

    /// How many pages the volume has in it.
    pub fn pages(&self) -> u32 {
        self.0.pages
    }

    /// Bytes in each page.
    pub fn page_size(&self) -> PageSize {
        self.0.page_size
    }

    /// Where page `idx` is; `None` for one that no commit has written (it reads as zeroes) or that
    /// is past the end.
    pub fn location(&self, idx: PageIdx) -> Option<&Location> {
        if idx.get() > self.0.pages { None } else { self.0.table.get(idx) }
    }

    /// The snapshot after a durable commit, and the frames' locations.
    pub(crate) fn with_commit(&self, head: &Head, version: u64) -> Snapshot {
        let mut view = (*self.0).clone();
        view.version = version;
        view.lsn = head.lsn;
        view.table.truncate(view.pages.min(head.pages));
        for frame in frame_refs(head) {
            let frame = Arc::new(frame);
            for idx in &frame.pages {
                view.table.set(*idx, Location::Frame(frame.clone()));
            }
        }
        view.pages = head.pages;
        Snapshot(Arc::new(view))
    }

    /// The snapshot after a local commit.
    pub(crate) fn with_local<'a>(
        &self,
        changes: impl Iterator<Item = (PageIdx, &'a Bytes)>,
        pages: u32,
        version: u64,
    ) -> Snapshot {
        let mut view = (*self.0).clone();
        view.version = version;
        view.table.truncate(view.pages.min(pages));
        for (idx, page) in changes {
            view.table.set(idx, Location::Local(page.clone()));
        }
        view.pages = pages;
        Snapshot(Arc::new(view))
    }

    /// The same content in a new lineage: what lay on top of it was dropped.
    pub(crate) fn after_reset(&self, version: u64) -> Snapshot {
        let mut view = (*self.0).clone();
        view.version = version;
        view.lineage = version;
        Snapshot(Arc::new(view))
    }
}

fn frame_refs(head: &Head) -> impl Iterator<Item = FrameRef> + '_ {
    let body = head.encoded.len() as u64;
    head.frame_pages().into_iter().map(move |(entry, pages, hashes)| {
        let (key, base) = match entry.segment {
            0 => (key::log(head.volume, head.lsn), body),
            part => (key::segment(head.volume, head.lsn, head.id, part), 0),
        };
        FrameRef {
            key,
            offset: base.saturating_add(entry.offset),
            bytes: entry.bytes,
            lsn: head.lsn,
            pages,
            hashes,
        }
    })
}

/// The graft between two page counts and a write set: the pages written, and those cut off.
pub fn graft(set: &PageSet, pages_before: u32, pages_after: u32) -> PageSet {
    let mut graft = set.clone();
    if let Some(first_cut) = pages_after.checked_add(1) {
        graft.insert_range(first_cut, pages_before);
    }
    graft
}

#[cfg(test)]
mod tests;
