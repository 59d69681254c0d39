//! The page table: page → where its newest version is, in O(1) and copy-on-write.
//!
//! A tree of three levels of 256 over chunks of 256 pages, so that the highest page there can be
//! costs a few kilobytes, not an array as long as its number. A chunk is what the newest checkpoint
//! stored of it (its *base*, read when it is first needed and shared by all snapshots) with the
//! entries of later commits on top.
//!
//! Invariants: an entry on top wins over the base; where a page was cut off, an entry says so, so that
//! the base does not show through.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;

use crate::format::checkpoint::ChunkRef;
use crate::format::chunk::{CHUNK_PAGES, Chunk, FrameRef, Slot};
use crate::ids::{Lsn, PageIdx};
use crate::page_set::PageSet;

const FANOUT: usize = 256;

/// A chunk that a checkpoint stored, and its content once somebody has read it.
#[derive(Debug)]
pub struct RemoteChunk {
    /// Where it is stored.
    pub at: ChunkRef,
    content: OnceLock<Arc<Content>>,
}

#[derive(Debug)]
struct Content {
    chunk: Chunk,
    /// The stored bytes, where the whole table is small enough to be stored again.
    compressed: Option<Bytes>,
}

impl PartialEq for RemoteChunk {
    /// By place and hash: what was read of it does not matter.
    fn eq(&self, other: &RemoteChunk) -> bool {
        self.at == other.at
    }
}

impl RemoteChunk {
    /// One that has not been read.
    pub fn new(at: ChunkRef) -> RemoteChunk {
        RemoteChunk { at, content: OnceLock::new() }
    }

    /// Its content, if it was read.
    pub fn get(&self) -> Option<&Chunk> {
        self.content.get().map(|content| &content.chunk)
    }

    /// Its stored bytes, if they were kept.
    pub(crate) fn compressed(&self) -> Option<&Bytes> {
        self.content.get()?.compressed.as_ref()
    }

    /// It was read. What another thread read before is as good.
    pub(crate) fn fill(&self, chunk: Chunk, compressed: Option<Bytes>) {
        let _ = self.content.set(Arc::new(Content { chunk, compressed }));
    }

    /// Takes over what was read of the same chunk at another place.
    pub(crate) fn share(&self, other: &RemoteChunk) {
        if let Some(content) = other.content.get() {
            let _ = self.content.set(content.clone());
        }
    }
}

/// An entry on top of a chunk's base.
#[derive(Clone, Debug)]
pub(super) enum Entry {
    /// What the base says.
    Base,
    /// Never written since it was last cut off.
    Zero,
    /// In a stored frame, in this of its slots.
    Frame(Arc<FrameRef>, u8),
    /// In memory.
    Local(Bytes),
}

/// 256 pages.
#[derive(Clone, Debug, Default)]
pub(super) struct TableChunk {
    base: Option<Arc<RemoteChunk>>,
    /// Empty, or one for each page.
    own: Vec<Entry>,
}

/// Where the newest version of a page is.
#[derive(Clone, Copy, Debug)]
pub enum Location<'a> {
    /// Nowhere: it reads as zeroes.
    Zero,
    /// In a stored frame.
    Frame(&'a Arc<FrameRef>, &'a Slot),
    /// In memory: a local commit that the remote does not have.
    Local(&'a Bytes),
    /// Not known before this chunk is read; see [`crate::chunks`].
    Unknown(&'a Arc<RemoteChunk>),
}

impl TableChunk {
    fn get(&self, at: usize) -> Location<'_> {
        match self.own.get(at) {
            Some(Entry::Zero) => Location::Zero,
            Some(Entry::Frame(frame, slot)) => match frame.slots.get(usize::from(*slot)) {
                Some(slot) => Location::Frame(frame, slot),
                None => Location::Zero,
            },
            Some(Entry::Local(bytes)) => Location::Local(bytes),
            Some(Entry::Base) | None => match &self.base {
                None => Location::Zero,
                Some(base) => match base.get() {
                    None => Location::Unknown(base),
                    Some(chunk) => {
                        chunk.get(at).map_or(Location::Zero, |(frame, slot)| Location::Frame(frame, slot))
                    }
                },
            },
        }
    }

    fn set(&mut self, at: usize, entry: Entry) {
        if self.own.is_empty() {
            self.own = vec![Entry::Base; CHUNK_PAGES];
        }
        self.own[at] = entry;
    }

    /// Forgets pages from `first` on.
    fn cut(&mut self, first: usize) {
        if self.base.is_some() && self.own.is_empty() {
            self.own = vec![Entry::Base; CHUNK_PAGES];
        }
        let cut = if self.base.is_some() { Entry::Zero } else { Entry::Base };
        if let Some(own) = self.own.get_mut(first..) {
            own.fill(cut);
        }
    }

    /// The base that a checkpoint would name again: `None` where commits lie on top.
    pub(super) fn untouched(&self) -> Option<&Arc<RemoteChunk>> {
        self.base.as_ref().filter(|_| self.own.is_empty())
    }

    pub(super) fn base(&self) -> Option<&Arc<RemoteChunk>> {
        self.base.as_ref()
    }

    /// Every page with where it is.
    pub(super) fn locations(&self) -> impl Iterator<Item = Location<'_>> {
        (0..CHUNK_PAGES).map(|at| self.get(at))
    }

    /// The same content on the base of a checkpoint at `lsn`, which is not newer: entries that it holds
    /// are dropped.
    fn rebased(&self, base: Option<Arc<RemoteChunk>>, lsn: Lsn) -> TableChunk {
        let Some(base) = base else {
            // The checkpoint knows nothing here: nor does what lies below.
            let keep = |entry: &Entry| match entry {
                Entry::Base | Entry::Zero => Entry::Base,
                Entry::Frame(..) | Entry::Local(_) => entry.clone(),
            };
            return TableChunk { base: None, own: self.own.iter().map(keep).collect() };
        };
        // Without a base below, what no entry names was never written or was cut off since, and the
        // checkpoint may be of before that.
        let bare = self.base.is_none();
        let zero = |at: usize| match base.get() {
            Some(chunk) if chunk.get(at).is_none() => Entry::Base,
            Some(_) | None => Entry::Zero,
        };
        let keep = |(at, entry): (usize, &Entry)| match entry {
            Entry::Base if bare => zero(at),
            Entry::Base => Entry::Base,
            Entry::Frame(frame, slot) => match frame.slots.get(usize::from(*slot)) {
                Some(slot) if slot.lsn > lsn => entry.clone(),
                Some(_) | None => Entry::Base,
            },
            Entry::Zero => zero(at),
            Entry::Local(bytes) => Entry::Local(bytes.clone()),
        };
        let mut own: Vec<Entry> = self.own.iter().enumerate().map(keep).collect();
        if own.iter().all(|entry| matches!(entry, Entry::Base)) {
            own = Vec::new();
        }
        TableChunk { base: Some(base), own }
    }
}

#[derive(Debug)]
struct Node<T>(Vec<Option<Arc<T>>>);

impl<T> Clone for Node<T> {
    fn clone(&self) -> Node<T> {
        Node(self.0.clone())
    }
}
impl<T> Default for Node<T> {
    fn default() -> Node<T> {
        Node(Vec::new())
    }
}

impl<T: Clone + Default> Node<T> {
    fn get(&self, at: usize) -> Option<&T> {
        self.0.get(at)?.as_deref()
    }

    fn get_mut(&mut self, at: usize) -> &mut T {
        if self.0.len() <= at {
            self.0.resize(at + 1, None);
        }
        Arc::make_mut(self.0[at].get_or_insert_with(Arc::default))
    }

    /// Drops what is after `last`, and answers what is at it.
    fn truncate(&mut self, last: usize) -> Option<&mut T> {
        self.0.truncate(last + 1);
        self.0.get_mut(last)?.as_mut().map(Arc::make_mut)
    }

    fn iter(&self) -> impl Iterator<Item = (usize, &T)> {
        self.0.iter().enumerate().filter_map(|(at, child)| Some((at, child.as_deref()?)))
    }
}

/// Page → location. Cloning copies one pointer.
#[derive(Clone, Default)]
pub(super) struct PageTable {
    root: Arc<Node<Node<Node<TableChunk>>>>,
}

/// The chunk that a page is in, and its place in it.
fn split(idx: PageIdx) -> (u32, usize) {
    let at = idx.get() - 1;
    (at / CHUNK_PAGES as u32, at as usize % CHUNK_PAGES)
}

fn path(index: u32) -> [usize; 3] {
    let index = index as usize;
    [index / FANOUT / FANOUT, index / FANOUT % FANOUT, index % FANOUT]
}

impl PageTable {
    /// The table that a checkpoint stored.
    pub(super) fn of(chunks: impl Iterator<Item = Arc<RemoteChunk>>) -> PageTable {
        let mut table = PageTable::default();
        for chunk in chunks {
            let index = chunk.at.index;
            table.chunk_mut(index).base = Some(chunk);
        }
        table
    }

    pub(super) fn get(&self, idx: PageIdx) -> Location<'_> {
        let (index, at) = split(idx);
        self.chunk(index).map_or(Location::Zero, |chunk| chunk.get(at))
    }

    pub(super) fn chunk(&self, index: u32) -> Option<&TableChunk> {
        let [a, b, c] = path(index);
        self.root.get(a)?.get(b)?.get(c)
    }

    fn chunk_mut(&mut self, index: u32) -> &mut TableChunk {
        let [a, b, c] = path(index);
        Arc::make_mut(&mut self.root).get_mut(a).get_mut(b).get_mut(c)
    }

    pub(super) fn set(&mut self, idx: PageIdx, entry: Entry) {
        let (index, at) = split(idx);
        self.chunk_mut(index).set(at, entry);
    }

    /// Forgets pages after `last`, so that they read as zeroes if the volume grows again.
    pub(super) fn truncate(&mut self, last: u32) {
        let Some(last) = PageIdx::new(last) else {
            *self = PageTable::default();
            return;
        };
        let (index, at) = split(last);
        let [a, b, c] = path(index);
        // Nothing beyond: nothing is copied.
        if self.last_index().is_none_or(|highest| highest < index) {
            return;
        }
        let root = Arc::make_mut(&mut self.root);
        let chunk = root.truncate(a).and_then(|node| node.truncate(b)).and_then(|node| node.truncate(c));
        if let Some(chunk) = chunk
            && at + 1 < CHUNK_PAGES
        {
            chunk.cut(at + 1);
        }
    }

    fn last_index(&self) -> Option<u32> {
        fn last<T>(node: &Node<T>) -> Option<(usize, &T)> {
            let at = node.0.iter().rposition(Option::is_some)?;
            Some((at, node.0[at].as_deref()?))
        }
        let (a, node) = last(&self.root)?;
        let (b, node) = last(node)?;
        let (c, _) = last(node)?;
        u32::try_from((a * FANOUT + b) * FANOUT + c).ok()
    }

    /// Every chunk that is not empty, by index.
    pub(super) fn chunks(&self) -> impl Iterator<Item = (u32, &TableChunk)> {
        self.chunks_between(0, u32::MAX)
    }

    /// Those from `first` to `last`.
    pub(super) fn chunks_between(&self, first: u32, last: u32) -> impl Iterator<Item = (u32, &TableChunk)> {
        let (first, last) = (first as usize, last as usize);
        let within = move |from: usize, width: usize| from <= last && from + (width - 1) >= first;
        self.root.iter().filter(move |(a, _)| within(a * FANOUT * FANOUT, FANOUT * FANOUT)).flat_map(
            move |(a, node)| {
                let a = a * FANOUT * FANOUT;
                node.iter().filter(move |(b, _)| within(a + b * FANOUT, FANOUT)).flat_map(move |(b, node)| {
                    let b = a + b * FANOUT;
                    node.iter()
                        .filter(move |(c, _)| within(b + c, 1))
                        .map(move |(c, chunk)| ((b + c) as u32, chunk))
                })
            },
        )
    }

    /// The same content on the table of a checkpoint at `lsn`, which is not newer than this one.
    /// `base` answers its chunks.
    pub(super) fn rebased(
        &self,
        lsn: Lsn,
        mut base: impl FnMut(u32, Option<&Arc<RemoteChunk>>) -> Option<Arc<RemoteChunk>>,
    ) -> PageTable {
        let mut table = PageTable::default();
        // A chunk that is not here was cut off since: the checkpoint's must not come back.
        for (index, chunk) in self.chunks() {
            *table.chunk_mut(index) = chunk.rebased(base(index, chunk.base()), lsn);
        }
        table
    }

    /// The pages that may differ between two tables: those of every chunk that is not one and the same.
    pub(super) fn difference(&self, other: &PageTable) -> PageSet {
        let mut pages = PageSet::new();
        let same = |a: &TableChunk, b: &TableChunk| {
            let hash = |chunk: &TableChunk| chunk.untouched().map(|base| base.at.hash);
            hash(a).is_some() && hash(a) == hash(b)
        };
        let mut differ = |index: u32| {
            let first = index * CHUNK_PAGES as u32 + 1;
            pages.insert_range(first, first.saturating_add(CHUNK_PAGES as u32 - 1));
        };
        for (index, chunk) in self.chunks() {
            if other.chunk(index).is_none_or(|other| !same(chunk, other)) {
                differ(index);
            }
        }
        for (index, _) in other.chunks() {
            if self.chunk(index).is_none() {
                differ(index);
            }
        }
        pages
    }
}
