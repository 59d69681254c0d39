//! Compaction: rewriting pages into dense segments, laid out for readers.
//!
//! A long history leaves a volume's pages scattered: each in the commit that wrote it last, a frame for
//! each commit, most of the frame out of date. A compaction reads the pages that lie badly, writes them
//! into new segments in the order that a [`Layout`] gives, and publishes a checkpoint whose page table
//! points there. Nothing is changed in place: readers of older states go on, and garbage collection
//! takes what nobody names any more.
//!
//! ```text
//!   gather   which pages lie badly, in which order            reads what the layout asks for
//!   upload   their frames, in segments of 16 MiB              reads the pages, a few MiB at a time
//!   publish  a checkpoint with the new places                 one conditional create
//! ```
//!
//! A page that was written again while this went on keeps its newer place: the *version* is what is
//! moved, not the page. So a compaction may take hours beside writers, and publishing it is tried again
//! on whatever checkpoint is newest, as long as its epoch lasts (see [`crate::gc`]).
//!
//! Invariants: no reader sees a difference but in cost; every frame is checked when it is read and its
//! pages keep their hashes; a crash leaves segments that nothing names.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use crate::checkpoint::{self, CheckpointError, Written};
use crate::chunks;
use crate::fetch::{FetchError, fetch};
use crate::format::chunk::{FrameRef, Object, ObjectKind, Slot};
use crate::format::frame::{self, FRAME_PAGES_MAX};
use crate::gc::list_all;
use crate::ids::{CommitId, Epoch, PageIdx, Seq, key};
use crate::page_set::PageSet;
use crate::remote::{Remote, RemoteError};
use crate::replan;
use crate::snapshot::{Location, Snapshot};
use crate::store::StoreError;
use crate::volume::{ReadError, Volume};

/// Pages in a frame that one reader at a time wants one page of: small, so that a point query reads
/// and decompresses little. Scans read many such frames in one request.
const LEAF_FRAME_PAGES: usize = 16;
/// A segment is closed once it has this many bytes.
const SEGMENT_BYTES: usize = 16 << 20;
/// Bytes of pages in memory at a time.
const BATCH_BYTES: usize = 8 << 20;
/// Rounds in which a layout may ask for pages. A b-tree of 2^32 pages has fewer levels.
const ROUNDS_MAX: usize = 64;
/// Times that one page is fetched.
const READS_MAX: u32 = 8;
/// A compacted segment of which at least this share of bytes is live stays as it is, in percent.
const DENSE_PERCENT: u64 = 50;

/// Pages that readers want together, in the order in which they want them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// The pages.
    pub pages: Vec<PageIdx>,
    /// Whether nearly every reader wants all of them: they are fetched when the volume is opened.
    pub hot: bool,
}

/// The pages of the snapshot that is laid out.
pub trait Source {
    /// How many pages there are.
    fn pages(&self) -> u32;
    /// A page's bytes; `None` for one that is not at hand. It is fetched, and the layout asked again.
    fn page(&mut self, page: PageIdx) -> Option<Bytes>;
}

/// How pages are grouped. The layer above knows what they hold.
pub trait Layout: Send + Sync {
    /// Every page from 1 to `source.pages()`, each in one group.
    fn groups(&self, source: &mut dyn Source) -> Vec<Group>;
}

/// Pages by number: right for what is not a database.
#[derive(Debug, Default, Clone, Copy)]
pub struct ByNumber;

impl Layout for ByNumber {
    fn groups(&self, source: &mut dyn Source) -> Vec<Group> {
        vec![Group { pages: (1..=source.pages()).filter_map(PageIdx::new).collect(), hot: false }]
    }
}

/// Pages that were written to new places, and are not published yet.
#[derive(Debug, Clone)]
pub struct Moved {
    pages: BTreeMap<PageIdx, (Arc<FrameRef>, u8)>,
    epoch: Epoch,
    hot: PageSet,
    /// Bytes of the new segments.
    pub bytes: u64,
    /// How many segments there are.
    pub segments: u32,
}

impl Moved {
    /// How many pages have a new place.
    pub fn pages(&self) -> usize {
        self.pages.len()
    }

    /// A bug for the simulation to find: takes a compaction for one that began in the present epoch.
    #[cfg(feature = "plants")]
    #[doc(hidden)]
    pub fn in_the_epoch_of(mut self, volume: &Volume) -> Moved {
        let base = volume.base();
        let own = base.checkpoint().filter(|root| root.volume == volume.id());
        self.epoch = own.map_or(Epoch::default(), |root| root.epoch);
        self
    }
}

/// Why a compaction ended early. The volume is as it was; segments that were uploaded are garbage.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum CompactError {
    /// A page could not be read.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// A segment could not be stored, or the list of them not be read.
    #[error(transparent)]
    Remote(#[from] RemoteError),
    /// The checkpoint could not be written; publish again.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// Garbage collection ended the epoch, and may have deleted the new segments. Begin again.
    #[error("garbage collection took this compaction for abandoned; begin it again")]
    Abandoned,
    /// The local store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Other readers drive pages out of the cache as fast as they are fetched.
    #[error("{page:?} was fetched and gone again {READS_MAX} times; give the volume a larger cache")]
    Cache {
        /// Which page.
        page: PageIdx,
    },
    /// The layout named a page twice, one that does not exist, or not all.
    #[error("the layout does not name every page once: {0}")]
    Layout(String),
}

/// Which pages a compaction rewrites.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Scope {
    /// Those that lie badly: inside commits, in their segments, or in a segment mostly out of date.
    #[default]
    Sparse,
    /// All of them.
    All,
}

/// How a volume's pages lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Scattered {
    /// Pages that are stored.
    pub stored: u64,
    /// Those of them that no compaction has laid out since they were written.
    pub outside: u64,
    /// The commits in which these lie: a reader of all of them asks so many objects at least.
    pub commits: u64,
}

/// When a compaction is due: when two of the three hold. So few pages are never moved, nor many that
/// lie together and are a small part; what lies in very many objects is, before it is half of all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// At least so many pages lie outside compacted segments.
    pub pages: u64,
    /// They lie in at least so many commits.
    pub commits: u64,
    /// They are more than this share of all stored pages, in percent.
    pub percent: u64,
    /// Whether one is due is looked at again after so many commits: looking costs an open.
    pub every: u64,
}

impl Default for Policy {
    fn default() -> Policy {
        Policy { pages: 1000, commits: 512, percent: 50, every: 256 }
    }
}

impl Policy {
    /// Whether a volume that lies like this is to be compacted.
    pub fn is_due(&self, how: &Scattered) -> bool {
        let most = how.outside.saturating_mul(100) > how.stored.saturating_mul(self.percent);
        let holds = [how.outside >= self.pages, how.commits >= self.commits, most];
        how.outside > 0 && holds.into_iter().filter(|holds| *holds).count() >= 2
    }
}

/// How the pages of `volume`'s base lie. Reads what it has not read of the page table.
pub async fn scattered(remote: &dyn Remote, volume: &Volume) -> Result<Scattered, CompactError> {
    let everything = |base: &Snapshot| (1..=base.pages()).filter_map(PageIdx::new).collect();
    let snapshot = replan::base(remote, volume, everything).await?;
    let all: PageSet = everything(&snapshot);
    let mut how = Scattered::default();
    let mut commits = std::collections::HashSet::new();
    for page in all.iter() {
        let Location::Frame(frame, _) = snapshot.location(page) else { continue };
        how.stored += 1;
        match frame.object.kind {
            ObjectKind::CompactedSegment(_) => {}
            ObjectKind::Commit(lsn) | ObjectKind::CommitSegment(lsn) => {
                how.outside += 1;
                commits.insert((frame.object.volume, lsn));
            }
        }
    }
    how.commits = commits.len() as u64;
    Ok(how)
}

/// Pages in memory at a time: a few MiB, and never more than half of the volume's cache.
fn batch_pages(volume: &Volume) -> usize {
    (BATCH_BYTES.min(volume.cache_bytes() / 2) / volume.page_size().bytes()).max(1)
}

/// Pages that the layout asked for, and those that it asked for in vain. They are kept as long as it
/// works: interior pages of b-trees, a hundredth of a database.
struct Replica<'a> {
    volume: &'a Volume,
    snapshot: &'a Snapshot,
    held: HashMap<PageIdx, Bytes>,
    missing: PageSet,
}

impl Source for Replica<'_> {
    fn pages(&self) -> u32 {
        self.snapshot.pages()
    }
    fn page(&mut self, page: PageIdx) -> Option<Bytes> {
        if let Some(bytes) = self.held.get(&page) {
            return Some(bytes.clone());
        }
        match self.volume.read(self.snapshot, page) {
            Ok(bytes) => {
                self.held.insert(page, bytes.clone());
                Some(bytes)
            }
            Err(ReadError::Fault(_) | ReadError::Store(_)) => {
                self.missing.insert(page);
                None
            }
            Err(ReadError::PastEnd { .. }) => None,
        }
    }
}

/// The groups of `layout`, every page in exactly one.
async fn groups(
    remote: &dyn Remote,
    volume: &Volume,
    snapshot: &Snapshot,
    layout: &dyn Layout,
) -> Result<Vec<Group>, CompactError> {
    let mut source = Replica { volume, snapshot, held: HashMap::new(), missing: PageSet::new() };
    for _ in 0..ROUNDS_MAX {
        let groups = layout.groups(&mut source);
        if source.missing.is_empty() {
            let mut seen = PageSet::new();
            for page in groups.iter().flat_map(|group| &group.pages) {
                if page.get() > snapshot.pages() || seen.contains(*page) {
                    return Err(CompactError::Layout(format!("{page:?} is named twice or is past the end")));
                }
                seen.insert(*page);
            }
            if seen.len() != u64::from(snapshot.pages()) {
                return Err(CompactError::Layout(format!("{} of {} pages", seen.len(), snapshot.pages())));
            }
            return Ok(groups);
        }
        let missing: Vec<PageIdx> = std::mem::take(&mut source.missing).iter().collect();
        for part in missing.chunks(batch_pages(volume)) {
            fetch(remote, volume, snapshot, &part.iter().copied().collect()).await?;
            for page in part {
                source.page(*page);
            }
        }
        source.missing = PageSet::new();
    }
    Err(CompactError::Layout(format!("it asked for pages {ROUNDS_MAX} times")))
}

/// The pages of `snapshot` that lie badly.
async fn sparse(remote: &dyn Remote, snapshot: &Snapshot, scope: Scope) -> Result<PageSet, CompactError> {
    let mut live: HashMap<Arc<str>, u64> = HashMap::new();
    // By address: a pointer would keep the future on one thread.
    let mut counted: std::collections::HashSet<usize> = std::collections::HashSet::new();
    let mut compacted: BTreeMap<PageIdx, Arc<str>> = BTreeMap::new();
    let mut bad = PageSet::new();
    let mut stored = 0u64;
    for page in (1..=snapshot.pages()).filter_map(PageIdx::new) {
        let Location::Frame(frame, _) = snapshot.location(page) else { continue };
        stored += 1;
        if !matches!(frame.object.kind, ObjectKind::CompactedSegment(_)) || scope == Scope::All {
            bad.insert(page);
            continue;
        }
        if counted.insert(Arc::as_ptr(frame).addr()) {
            let share = frame.slots.len() as u64 * u64::from(frame.bytes) / u64::from(frame.count.max(1));
            *live.entry(frame.key.clone()).or_default() += share;
        }
        compacted.insert(page, frame.key.clone());
    }
    if compacted.is_empty() {
        return Ok(bad);
    }
    let mut sizes: HashMap<String, u64> = HashMap::new();
    for (volume, _) in snapshot.volumes().volumes() {
        let rows = list_all(remote, &key::segments_prefix(*volume)).await?;
        sizes.extend(rows.into_iter().map(|row| (row.key, row.bytes)));
    }
    let dense = |key: &Arc<str>| {
        let size = sizes.get(&**key).copied().unwrap_or(u64::MAX);
        live.get(key).is_some_and(|live| live.saturating_mul(100) >= size.saturating_mul(DENSE_PERCENT))
    };
    bad.extend(compacted.into_iter().filter(|(_, key)| !dense(key)).map(|(page, _)| page));
    // Where most must move, all may: the order is then that of the whole layout again.
    if bad.len() * 2 > stored {
        bad = (1..=snapshot.pages()).filter_map(PageIdx::new).collect();
    }
    Ok(bad)
}

/// Writes the pages of `volume`'s base that lie badly into new segments. Publishes nothing.
///
/// Reads each of those pages once, in ranges as large as they lie together, and keeps no more than a few
/// MiB of them in memory beside the volume's cache. One PUT for each 16 MiB. `id` is fresh and random;
/// `progress` hears pages done and pages in all.
pub async fn gather(
    remote: &dyn Remote,
    volume: &Volume,
    layout: &dyn Layout,
    scope: Scope,
    id: CommitId,
    progress: &(dyn Fn(u64, u64) + Send + Sync),
) -> Result<Moved, CompactError> {
    let everything = |base: &Snapshot| (1..=base.pages()).filter_map(PageIdx::new).collect();
    let snapshot = replan::base(remote, volume, everything).await?;
    let own = snapshot.checkpoint().filter(|root| root.volume == volume.id());
    let epoch = own.map_or(Epoch::default(), |root| root.epoch);
    let chosen = sparse(remote, &snapshot, scope).await?;
    let mut moved = Moved { pages: BTreeMap::new(), epoch, hot: PageSet::new(), bytes: 0, segments: 0 };
    if chosen.is_empty() {
        moved.hot = own.map(|root| root.hot.clone()).unwrap_or_default();
        return Ok(moved);
    }
    let mut writer = Writer { remote, volume, id, epoch, buffer: BytesMut::new(), open: Vec::new(), moved };
    let total = chosen.len();
    let mut done = 0;
    for group in groups(remote, volume, &snapshot, layout).await? {
        if group.hot {
            writer.moved.hot.extend(group.pages.iter().copied());
        }
        let frame_pages = if group.hot { FRAME_PAGES_MAX } else { LEAF_FRAME_PAGES };
        let stored = |page: &PageIdx| matches!(snapshot.location(*page), Location::Frame(..));
        let pages: Vec<PageIdx> =
            group.pages.into_iter().filter(|page| chosen.contains(*page)).filter(stored).collect();
        let batch = batch_pages(volume).max(frame_pages) / frame_pages * frame_pages;
        for pages in pages.chunks(batch) {
            fetch(remote, volume, &snapshot, &pages.iter().copied().collect()).await?;
            for pages in pages.chunks(frame_pages) {
                writer.frame(&snapshot, pages).await?;
            }
            done += pages.len() as u64;
            progress(done, total);
        }
    }
    writer.close().await?;
    Ok(writer.moved)
}

/// Frames on their way into segments.
struct Writer<'a> {
    remote: &'a dyn Remote,
    volume: &'a Volume,
    id: CommitId,
    epoch: Epoch,
    buffer: BytesMut,
    /// The frames in the buffer: offset, length and pages.
    open: Vec<(u64, u32, Vec<Slot>)>,
    moved: Moved,
}

impl Writer<'_> {
    async fn frame(&mut self, snapshot: &Snapshot, pages: &[PageIdx]) -> Result<(), CompactError> {
        let mut slots = Vec::with_capacity(pages.len());
        let mut bytes = Vec::with_capacity(pages.len());
        for (page, place) in pages.iter().zip(0u8..) {
            let Location::Frame(_, slot) = snapshot.location(*page) else { continue };
            slots.push(Slot { slot: place, ..*slot });
            bytes.push(self.read(snapshot, *page).await?);
        }
        let frame = frame::encode(bytes.iter());
        self.open.push((self.buffer.len() as u64, frame.len() as u32, slots));
        self.buffer.extend_from_slice(&frame);
        if self.buffer.len() >= SEGMENT_BYTES { self.close().await } else { Ok(()) }
    }

    /// A page that was fetched a moment ago; once more if a small cache dropped it since.
    async fn read(&self, snapshot: &Snapshot, page: PageIdx) -> Result<Bytes, CompactError> {
        let mut tries = 0;
        loop {
            match self.volume.read(snapshot, page) {
                Ok(bytes) => return Ok(bytes),
                Err(ReadError::Fault(missing)) if tries < READS_MAX => {
                    tries += 1;
                    fetch(self.remote, self.volume, snapshot, &missing).await?;
                }
                Err(ReadError::Fault(_)) => return Err(CompactError::Cache { page }),
                Err(ReadError::Store(error)) => return Err(error.into()),
                Err(error @ ReadError::PastEnd { .. }) => {
                    return Err(CompactError::Layout(error.to_string()));
                }
            }
        }
    }

    /// Stores the open segment.
    async fn close(&mut self) -> Result<(), CompactError> {
        if self.open.is_empty() {
            return Ok(());
        }
        self.moved.segments += 1;
        let object = Object {
            volume: self.volume.id(),
            kind: ObjectKind::CompactedSegment(self.epoch),
            id: self.id,
            part: self.moved.segments,
        };
        let key: Arc<str> = object.key().into();
        let body = self.buffer.split().freeze();
        self.moved.bytes += body.len() as u64;
        match self.remote.create(&key, body).await {
            // Its key carries our random id: whatever is there, we wrote it.
            Ok(()) | Err(RemoteError::AlreadyExists { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        for (offset, bytes, mut slots) in self.open.drain(..) {
            let count = slots.len() as u32;
            slots.sort_by_key(|slot| slot.page);
            let frame = Arc::new(FrameRef { key: key.clone(), object, offset, bytes, count, slots });
            for (slot, place) in frame.slots.iter().zip(0u8..) {
                self.moved.pages.insert(slot.page, (frame.clone(), place));
            }
        }
        Ok(())
    }
}

/// Publishes a compaction as the next checkpoint of `volume`, of `base`, which is its base or was, with
/// what the layer above remembers at exactly that LSN.
///
/// After [`Written::Lost`] another checkpoint was made meanwhile: pull, and publish the same again.
///
/// # Errors
///
/// [`CompactError::Abandoned`]: it took so long that garbage collection counted it as dead.
pub async fn publish(
    remote: &dyn Remote,
    volume: &Volume,
    base: &Snapshot,
    moved: &Moved,
    state: Bytes,
) -> Result<Written, CompactError> {
    let own = base.checkpoint().filter(|root| root.volume == volume.id());
    if own.map_or(Epoch::default(), |root| root.epoch) != moved.epoch {
        return Err(CompactError::Abandoned);
    }
    let all: PageSet = moved.pages.keys().copied().collect();
    if let Err(error) = chunks::load(remote, volume, base, &all).await {
        replan::elsewhere(remote, volume, base, &PageSet::new(), error).await?;
        // The volume goes on from the newest checkpoint now.
        let seq = own.map_or(Seq::ZERO, |root| root.seq).next();
        return Ok(Written::Lost { seq });
    }
    let (snapshot, _) = base.moved(&moved.pages);
    Ok(checkpoint::write_next(remote, volume, &snapshot, state, moved.hot.clone()).await?)
}

#[cfg(test)]
mod tests;
