//! The page table: page → where its newest version is, in O(1) and copy-on-write.
//!
//! A tree of nodes of 16 over chunks of 256 pages, as high as the highest chunk asks for: one level up
//! to 4096 pages, two up to 65,536. A chunk is what the newest checkpoint stored of it (its *base*,
//! read when it is first needed and shared by all snapshots) with the entries of later commits on top,
//! in groups of 16. So a commit of one page copies one small node for each level, one chunk's pointers
//! to its groups and one group, whatever else the volume holds.
//!
//! Invariants: an entry on top wins over the base; where a page was cut off, an entry says so, so that
//! the base does not show through; every chunk lies as deep as the tree is high.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;

use crate::format::checkpoint::ChunkRef;
use crate::format::chunk::{CHUNK_PAGES, Chunk, FrameRef, Slot};
use crate::ids::{Lsn, PageIdx};
use crate::page_set::PageSet;

/// Children of a node, as bits of a chunk's index.
const FANOUT_BITS: u32 = 4;
const FANOUT: usize = 1 << FANOUT_BITS;
/// Entries that are copied together.
const GROUP: usize = 16;

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

/// The entries of [`GROUP`] pages.
type Group = [Entry; GROUP];

/// 256 pages.
#[derive(Clone, Debug, Default)]
pub(super) struct TableChunk {
    base: Option<Arc<RemoteChunk>>,
    /// A group that is not there says what the base says.
    own: [Option<Arc<Group>>; CHUNK_PAGES / GROUP],
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
    fn entry(&self, at: usize) -> &Entry {
        match self.own.get(at / GROUP) {
            Some(Some(group)) => &group[at % GROUP],
            Some(None) | None => &Entry::Base,
        }
    }

    fn get(&self, at: usize) -> Location<'_> {
        match self.entry(at) {
            Entry::Zero => Location::Zero,
            Entry::Frame(frame, slot) => match frame.slots.get(usize::from(*slot)) {
                Some(slot) => Location::Frame(frame, slot),
                None => Location::Zero,
            },
            Entry::Local(bytes) => Location::Local(bytes),
            Entry::Base => match &self.base {
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
        let group = self.own[at / GROUP].get_or_insert_with(|| Arc::new([const { Entry::Base }; GROUP]));
        Arc::make_mut(group)[at % GROUP] = entry;
    }

    /// Forgets pages from `first` on.
    fn cut(&mut self, first: usize) {
        let bare = self.base.is_none();
        for (group, start) in self.own.iter_mut().zip((0..).step_by(GROUP)) {
            if bare && first <= start {
                *group = None;
            } else if start + GROUP > first && (group.is_some() || !bare) {
                let cut = if bare { Entry::Base } else { Entry::Zero };
                let group = group.get_or_insert_with(|| Arc::new([const { Entry::Base }; GROUP]));
                Arc::make_mut(group)[first.saturating_sub(start)..].fill(cut);
            }
        }
    }

    /// The chunk of these entries.
    fn of(base: Option<Arc<RemoteChunk>>, mut entries: impl Iterator<Item = Entry>) -> TableChunk {
        let own = std::array::from_fn(|_| {
            let group: Group = std::array::from_fn(|_| entries.next().unwrap_or(Entry::Base));
            let says = group.iter().any(|entry| !matches!(entry, Entry::Base));
            says.then(|| Arc::new(group))
        });
        TableChunk { base, own }
    }

    /// The base that a checkpoint would name again: `None` where commits lie on top.
    pub(super) fn untouched(&self) -> Option<&Arc<RemoteChunk>> {
        self.base.as_ref().filter(|_| self.own.iter().all(Option::is_none))
    }

    pub(super) fn base(&self) -> Option<&Arc<RemoteChunk>> {
        self.base.as_ref()
    }

    /// Every page with where it is.
    pub(super) fn locations(&self) -> impl Iterator<Item = Location<'_>> {
        (0..CHUNK_PAGES).map(|at| self.get(at))
    }

    fn entries(&self) -> impl Iterator<Item = &Entry> {
        (0..CHUNK_PAGES).map(|at| self.entry(at))
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
            return TableChunk::of(None, self.entries().map(keep));
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
        let entries = self.entries().enumerate().map(keep);
        TableChunk::of(Some(base.clone()), entries)
    }
}

#[derive(Clone)]
enum Node {
    Inner([Option<Arc<Node>>; FANOUT]),
    Chunk(TableChunk),
}

/// Which child of a node at `level` leads to chunk `index`.
fn digit(index: u32, level: u32) -> usize {
    (index >> (FANOUT_BITS * (level - 1))) as usize % FANOUT
}

impl Node {
    /// An empty one: a chunk at level 0.
    fn empty(level: u32) -> Node {
        if level == 0 { Node::Chunk(TableChunk::default()) } else { Node::Inner([const { None }; FANOUT]) }
    }

    /// Chunk `index` below `slot`, which is at `level`; it is made where it is not there.
    fn chunk_mut(slot: &mut Option<Arc<Node>>, level: u32, index: u32) -> &mut TableChunk {
        match Arc::make_mut(slot.get_or_insert_with(|| Arc::new(Node::empty(level)))) {
            Node::Chunk(chunk) => chunk,
            Node::Inner(children) => Node::chunk_mut(&mut children[digit(index, level)], level - 1, index),
        }
    }

    /// Drops the chunks after `index`, and the pages of that one from place `first` on.
    fn truncate(slot: &mut Option<Arc<Node>>, level: u32, index: u32, first: usize) {
        let Some(node) = slot else { return };
        match Arc::make_mut(node) {
            Node::Chunk(chunk) => chunk.cut(first),
            Node::Inner(children) => {
                let at = digit(index, level);
                children[at + 1..].fill(None);
                Node::truncate(&mut children[at], level - 1, index, first);
            }
        }
    }
}

/// Page → location. Cloning copies one pointer.
#[derive(Clone, Default)]
pub(super) struct PageTable {
    root: Option<Arc<Node>>,
    /// Levels of nodes above the chunks.
    height: u32,
}

/// The chunk that a page is in, and its place in it.
fn split(idx: PageIdx) -> (u32, usize) {
    let at = idx.get() - 1;
    (at / CHUNK_PAGES as u32, at as usize % CHUNK_PAGES)
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

    /// Whether a tree of this height has a place for chunk `index`.
    fn reaches(&self, index: u32) -> bool {
        index.checked_shr(FANOUT_BITS * self.height).unwrap_or(0) == 0
    }

    pub(super) fn chunk(&self, index: u32) -> Option<&TableChunk> {
        if !self.reaches(index) {
            return None;
        }
        let (mut node, mut level) = (self.root.as_deref()?, self.height);
        loop {
            match node {
                Node::Chunk(chunk) => return Some(chunk),
                Node::Inner(children) => node = children[digit(index, level)].as_deref()?,
            }
            level -= 1;
        }
    }

    fn chunk_mut(&mut self, index: u32) -> &mut TableChunk {
        while !self.reaches(index) {
            if let Some(root) = self.root.take() {
                let mut children = [const { None }; FANOUT];
                children[0] = Some(root);
                self.root = Some(Arc::new(Node::Inner(children)));
            }
            self.height += 1;
        }
        Node::chunk_mut(&mut self.root, self.height, index)
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
        // Nothing beyond: nothing is copied.
        if self.reaches(index) && self.chunks_between(index, u32::MAX).next().is_some() {
            Node::truncate(&mut self.root, self.height, index, at + 1);
        }
    }

    /// Every chunk that is not empty, by index.
    pub(super) fn chunks(&self) -> impl Iterator<Item = (u32, &TableChunk)> {
        self.chunks_between(0, u32::MAX)
    }

    /// Those from `first` to `last`.
    pub(super) fn chunks_between(&self, first: u32, last: u32) -> impl Iterator<Item = (u32, &TableChunk)> {
        // Nodes still to be looked into, the next one last: the first index below each, and its level.
        let mut nodes: Vec<(u32, u32, &Node)> =
            self.root.iter().map(|root| (0, self.height, root.as_ref())).collect();
        std::iter::from_fn(move || {
            loop {
                let (start, level, node) = nodes.pop()?;
                match node {
                    Node::Chunk(chunk) if (first..=last).contains(&start) => return Some((start, chunk)),
                    Node::Chunk(_) => {}
                    Node::Inner(children) => {
                        let width = 1u32 << (FANOUT_BITS * (level - 1));
                        let children = children.iter().enumerate().rev();
                        nodes.extend(children.filter_map(|(at, child)| {
                            let start = start + at as u32 * width;
                            let within = start <= last && start + (width - 1) >= first;
                            Some((start, level - 1, child.as_deref().filter(|_| within)?))
                        }));
                    }
                }
            }
        })
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
