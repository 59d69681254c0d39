//! Snapshots: a read view of a volume, and the page table that answers "where is page P" in O(1).
//!
//! The table is copy-on-write in groups of 16 pages ([`table`]): taking a snapshot clones one pointer,
//! a commit copies the groups that it touches and the way to them. Memory follows the chunks that were touched or read, not
//! the size of the volume nor the length of its history.
//!
//! Invariants: a snapshot never changes; two snapshots with equal [`Snapshot::version`] of one
//! replica have equal content; no location beyond the page count is answered.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

use self::table::{Entry, PageTable};
use crate::format::checkpoint::Root;
use crate::format::chunk::{CHUNK_PAGES, Lineage, Object, ObjectKind, first_page};
use crate::format::commit::Head;
use crate::ids::{ChainHash, Lsn, PageIdx, PageSize};
use crate::page_set::PageSet;
use crate::volume::LocalCommit;

pub mod table;

pub use self::table::{Location, RemoteChunk};
pub use crate::format::chunk::{FrameRef, Slot};

/// A read view of one volume.
#[derive(Clone)]
pub struct Snapshot(Arc<View>);

#[derive(Clone)]
struct View {
    version: u64,
    lineage: u64,
    lsn: Lsn,
    hash: ChainHash,
    time_ms: i64,
    pages: u32,
    page_size: PageSize,
    volumes: Arc<Lineage>,
    checkpoint: Option<Arc<Root>>,
    /// Bytes of the heads of all commits since the replica was opened.
    log_bytes: u64,
    table: PageTable,
}

impl fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Snapshot({}, version {}, {} pages)", self.0.lsn, self.0.version, self.0.pages)
    }
}

impl Snapshot {
    /// The volume before its first commit.
    pub(crate) fn empty(page_size: PageSize, volumes: Lineage) -> Snapshot {
        Snapshot(Arc::new(View {
            version: 0,
            lineage: 0,
            lsn: Lsn::ZERO,
            hash: ChainHash::ZERO,
            time_ms: 0,
            pages: 0,
            page_size,
            volumes: Arc::new(volumes),
            checkpoint: None,
            log_bytes: 0,
            table: PageTable::default(),
        }))
    }

    /// The state at a checkpoint. `volumes` are those of the volume that reads it, which may be a fork
    /// of the checkpoint's.
    pub(crate) fn of_checkpoint(
        root: &Arc<Root>,
        chunks: &[Arc<RemoteChunk>],
        volumes: Lineage,
        version: u64,
        lineage: u64,
    ) -> Snapshot {
        Snapshot(Arc::new(View {
            version,
            lineage,
            lsn: root.lsn,
            hash: root.chain,
            time_ms: root.time_ms,
            pages: root.pages,
            page_size: root.page_size,
            volumes: Arc::new(volumes),
            checkpoint: Some(root.clone()),
            log_bytes: 0,
            table: PageTable::of(chunks.iter().cloned()),
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

    /// That commit's hash.
    pub fn hash(&self) -> ChainHash {
        self.0.hash
    }

    /// That commit's time, ms since 1970; 0 before the first.
    pub fn time_ms(&self) -> i64 {
        self.0.time_ms
    }

    /// How many pages the volume has in it.
    pub fn pages(&self) -> u32 {
        self.0.pages
    }

    /// Bytes in each page.
    pub fn page_size(&self) -> PageSize {
        self.0.page_size
    }

    /// The volumes that it is made of.
    pub fn volumes(&self) -> &Lineage {
        &self.0.volumes
    }

    /// The checkpoint that its table is seeded from.
    pub fn checkpoint(&self) -> Option<&Arc<Root>> {
        self.0.checkpoint.as_ref()
    }

    pub(crate) fn log_bytes(&self) -> u64 {
        self.0.log_bytes
    }

    /// Where page `idx` is. A page past the end is nowhere.
    pub fn location(&self, idx: PageIdx) -> Location<'_> {
        if idx.get() > self.0.pages { Location::Zero } else { self.0.table.get(idx) }
    }

    /// Every chunk of the table: its index, the base that it is without anything on top, and its pages.
    pub(crate) fn chunks(&self) -> impl Iterator<Item = ChunkView<'_>> {
        self.0.table.chunks().map(|(index, chunk)| ChunkView { index, chunk })
    }

    /// The same for the chunks from `first` to `last`.
    pub(crate) fn chunks_between(&self, first: u32, last: u32) -> impl Iterator<Item = ChunkView<'_>> {
        self.0.table.chunks_between(first, last).map(|(index, chunk)| ChunkView { index, chunk })
    }

    /// The snapshot after a durable commit, and the frames' locations.
    pub(crate) fn with_commit(&self, head: &Head, version: u64) -> Snapshot {
        let mut view = (*self.0).clone();
        view.version = version;
        view.lsn = head.lsn;
        view.hash = head.hash;
        view.time_ms = head.time_ms;
        view.log_bytes = view.log_bytes.saturating_add(head.encoded.len() as u64);
        if head.pages < view.pages {
            view.table.truncate(head.pages);
        }
        for frame in frame_refs(head) {
            let frame = Arc::new(frame);
            for (slot, place) in frame.slots.iter().zip(0u8..) {
                view.table.set(slot.page, Entry::Frame(frame.clone(), place));
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
        if pages < view.pages {
            view.table.truncate(pages);
        }
        for (idx, page) in changes {
            view.table.set(idx, Entry::Local(page.clone()));
        }
        view.pages = pages;
        Snapshot(Arc::new(view))
    }

    /// The snapshot after several local commits, oldest first. Each chunk of the table is copied once,
    /// however many of them touch it.
    pub(crate) fn with_locals<'a>(
        &self,
        locals: impl IntoIterator<Item = &'a LocalCommit>,
        version: u64,
    ) -> Snapshot {
        let mut view = (*self.0).clone();
        view.version = version;
        for local in locals {
            if local.pages_after < view.pages {
                view.table.truncate(local.pages_after);
            }
            for (idx, page) in local.changes.iter() {
                view.table.set(*idx, Entry::Local(page.clone()));
            }
            view.pages = local.pages_after;
        }
        Snapshot(Arc::new(view))
    }

    /// The same content in a new lineage: what lay on top of it was dropped.
    pub(crate) fn after_reset(&self, version: u64) -> Snapshot {
        let mut view = (*self.0).clone();
        view.version = version;
        view.lineage = version;
        Snapshot(Arc::new(view))
    }

    /// The same content, seeded from checkpoint `root`, which is not newer. `chunks` are its chunks.
    pub(crate) fn rebased(&self, root: &Arc<Root>, chunks: &[Arc<RemoteChunk>]) -> Snapshot {
        let mut view = (*self.0).clone();
        view.table = view.table.rebased(root.lsn, |index, before| {
            let at = chunks.binary_search_by_key(&index, |chunk| chunk.at.index).ok()?;
            let found = chunks.get(at)?;
            if let Some(before) = before
                && before.at.hash == found.at.hash
            {
                // What was read before need not be read again, wherever it is stored now.
                found.share(before);
            }
            Some(found.clone())
        });
        view.checkpoint = Some(root.clone());
        Snapshot(Arc::new(view))
    }

    /// The same content, read from other places: each of `moved` that is still the version that was
    /// moved. Answers how many are.
    pub(crate) fn moved(&self, moved: &BTreeMap<PageIdx, (Arc<FrameRef>, u8)>) -> (Snapshot, usize) {
        let mut view = (*self.0).clone();
        let mut count = 0;
        for (page, (frame, place)) in moved {
            let same = match (self.location(*page), frame.slots.get(usize::from(*place))) {
                (Location::Frame(_, now), Some(then)) => now.lsn == then.lsn,
                _ => false,
            };
            if same {
                view.table.set(*page, Entry::Frame(frame.clone(), *place));
                count += 1;
            }
        }
        (Snapshot(Arc::new(view)), count)
    }

    /// The pages that may read differently in `other`: conservative, by whole chunks.
    pub(crate) fn difference(&self, other: &Snapshot) -> PageSet {
        let mut pages = self.0.table.difference(&other.0.table);
        let (low, high) = (self.0.pages.min(other.0.pages), self.0.pages.max(other.0.pages));
        if let Some(first) = low.checked_add(1).filter(|first| *first <= high) {
            pages.insert_range(first, high);
        }
        pages.clip(high);
        pages
    }
}

/// A chunk of a snapshot's table.
pub(crate) struct ChunkView<'a> {
    pub(crate) index: u32,
    chunk: &'a table::TableChunk,
}

impl<'a> ChunkView<'a> {
    /// The stored chunk, where no later commit touched it.
    pub(crate) fn untouched(&self) -> Option<&'a Arc<RemoteChunk>> {
        self.chunk.untouched()
    }

    /// The stored chunk below, touched or not.
    pub(crate) fn base(&self) -> Option<&'a Arc<RemoteChunk>> {
        self.chunk.base()
    }

    /// Its 256 pages.
    pub(crate) fn pages(&self) -> impl Iterator<Item = PageIdx> + use<> {
        let first = first_page(self.index).unwrap_or(u32::MAX);
        (first..=first.saturating_add(CHUNK_PAGES as u32 - 1)).filter_map(PageIdx::new)
    }

    /// Where each of its 256 pages is, also of those past the end.
    pub(crate) fn locations(&self) -> impl Iterator<Item = Location<'a>> + use<'a> {
        self.chunk.locations()
    }
}

fn frame_refs(head: &Head) -> impl Iterator<Item = FrameRef> + '_ {
    let body = head.encoded.len() as u64;
    let mut last: Option<(u32, Arc<str>)> = None;
    head.frame_pages().into_iter().map(move |(entry, pages, hashes)| {
        let (kind, base) = match entry.segment {
            0 => (ObjectKind::Commit(head.lsn), body),
            _ => (ObjectKind::CommitSegment(head.lsn), 0),
        };
        let object = Object { volume: head.volume, kind, id: head.id, part: entry.segment };
        let key = match &last {
            Some((part, key)) if *part == entry.segment => key.clone(),
            _ => Arc::from(object.key()),
        };
        last = Some((entry.segment, key.clone()));
        let slots = pages.into_iter().zip(hashes).zip(0u8..);
        let slots = slots.map(|((page, hash), slot)| Slot { page, lsn: head.lsn, slot, hash });
        FrameRef {
            key,
            object,
            offset: base.saturating_add(entry.offset),
            bytes: entry.bytes,
            count: entry.pages,
            slots: slots.collect(),
        }
    })
}

/// The graft between two page counts and a write set: the pages written, and those cut off.
pub fn graft(mut set: PageSet, pages_before: u32, pages_after: u32) -> PageSet {
    if let Some(first_cut) = pages_after.checked_add(1) {
        set.insert_range(first_cut, pages_before);
    }
    set
}

#[cfg(test)]
mod tests;
