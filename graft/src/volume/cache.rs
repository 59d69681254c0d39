//! Cached pages of one volume: in memory and, where the replica has a store with files, on disk, each
//! under a strict byte budget.
//!
//! Only durable pages come here, so losing one costs a fetch and nothing else: eviction cannot touch
//! what was not pushed. Both tiers evict by [`clock`]: versions that newer commits replaced go first,
//! unless a snapshot here still reads them; then what was not read lately. A page is in memory, on
//! disk, or both; one found on disk alone comes into memory.
//!
//! What was brought without being asked for (a frame's other pages, prefetched pages) is remembered
//! until it is first read: that is how the prefetcher sees a scan it serves, and what its waste is
//! counted by.
//!
//! A fork also reads what the same store holds of its ancestors' pages, as it was when the fork was opened.
//!
//! Invariants: a page's bytes were checked against its hash before they came here; the budgets bound
//! the pages' bytes in memory (at least one page) and the whole file on disk.

pub(crate) mod clock;

use std::collections::{HashSet, VecDeque};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use bytes::Bytes;
use futures::channel::oneshot;
use parking_lot::Mutex;

use self::clock::{Clock, Version};
use super::{Options, Volume};
use crate::fetch::flights::Flights;
use crate::format::chunk::{CHUNK_PAGES, Lineage, Slot};
use crate::format::commit::Head;
use crate::format::frame::PageHash;
use crate::format::{Damaged, frame};
use crate::ids::{Lsn, PageIdx, PageSize, VolumeId};
use crate::page_set::PageSet;
use crate::prefetch::Leap;
use crate::prefetch::spread::Spread;
use crate::snapshot::{FrameRef, Location, Snapshot};
use crate::store::pages::{Inherited, PageFile};
use crate::store::{SharedStore, StoreError};

/// Buffers of evicted pages kept for those that come next: two frames' worth.
const SPARE_MAX: usize = 128;
/// First reads remembered for the prefetcher.
const TOUCHED_MAX: usize = 64;

/// What reading and fetching cost one replica, since it was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub struct Metrics {
    /// Ranged GETs sent, hedges too.
    pub requests: u64,
    /// Bytes they brought.
    pub bytes: u64,
    /// Times that a fetch waited for another one's request instead of sending its own.
    pub shared: u64,
    /// Second requests sent because the first took long, and those that answered first.
    pub hedges: u64,
    /// See `hedges`.
    pub hedges_won: u64,
    /// Reads of durable pages answered from memory.
    pub memory_hits: u64,
    /// Reads answered from disk.
    pub disk_hits: u64,
    /// Reads that faulted.
    pub misses: u64,
    /// Pages fetched ahead.
    pub prefetch_issued: u64,
    /// Of these, pages that were read.
    pub prefetch_used: u64,
    /// Of these, pages that were evicted unread.
    pub prefetch_wasted: u64,
    /// Pages evicted from memory.
    pub evicted_memory: u64,
    /// Pages evicted from disk.
    pub evicted_disk: u64,
    /// Bytes of pages in memory now.
    pub memory_bytes: u64,
    /// Bytes of pages on disk now.
    pub disk_bytes: u64,
}

/// What fetches count.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) requests: AtomicU64,
    pub(crate) bytes: AtomicU64,
    pub(crate) shared: AtomicU64,
    pub(crate) hedges: AtomicU64,
    pub(crate) hedges_won: AtomicU64,
}

struct Entry {
    page: Bytes,
    /// Not read since it came.
    fresh: bool,
}

struct Memory {
    clock: Clock,
    /// By slot.
    entries: Vec<Entry>,
    /// Evicted pages, whose buffers the next frame is decoded into: threads that decode would otherwise
    /// each fill an arena of the allocator with what others freed.
    spare: Vec<Bytes>,
    /// Pages fetched ahead and not read yet, in either tier.
    ahead: HashSet<Version>,
    /// Pages that came unasked, in the order of their first reads; the newest.
    touched: VecDeque<PageIdx>,
    /// Those that were forgotten for newer ones.
    touched_before: u32,
    /// Whom to tell after so many more first reads.
    marker: Option<(u32, oneshot::Sender<()>)>,
    counts: Metrics,
}

impl Memory {
    fn first_read(&mut self, version: Version) {
        if self.touched.len() == TOUCHED_MAX {
            self.touched.pop_front();
            self.touched_before = self.touched_before.saturating_add(1);
        }
        self.touched.push_back(version.0);
        if let Some((left, _)) = &mut self.marker {
            *left = left.saturating_sub(1);
            if *left == 0
                && let Some((_, waiting)) = self.marker.take()
            {
                // Nobody waits any more where it cannot be told.
                _ = waiting.send(());
            }
        }
        if self.ahead.remove(&version) {
            self.counts.prefetch_used += 1;
        }
    }

    fn put(&mut self, version: Version, page: Bytes, asked: bool, disk: Option<&PageFile>) {
        let inserted = self.clock.insert(version, asked);
        if inserted.present {
            return;
        }
        if let Some(gone) = inserted.evicted {
            self.counts.evicted_memory += 1;
            if self.ahead.contains(&gone) && disk.is_none_or(|disk| !disk.contains(gone)) {
                self.waste(gone);
            }
        }
        let entry = Entry { page, fresh: !asked };
        match self.entries.get_mut(inserted.slot as usize) {
            Some(slot) => {
                let before = std::mem::replace(slot, entry).page;
                if self.spare.len() < SPARE_MAX {
                    self.spare.push(before);
                }
            }
            // Slots come into use one after another.
            None => self.entries.push(entry),
        }
    }

    fn waste(&mut self, gone: Version) {
        if self.ahead.remove(&gone) {
            self.counts.prefetch_wasted += 1;
        }
    }
}

/// Why pages come into the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Coming {
    /// Some of the pages were asked for; the others lie in the same frame.
    Asked,
    /// None was asked for yet.
    Ahead,
    /// They are to be kept rather than read now: into memory only where there is no disk.
    Kept,
}

pub(crate) struct PageCache {
    page_size: PageSize,
    memory: Mutex<Memory>,
    disk: Option<PageFile>,
    /// Why the disk did not take pages, the last time.
    unkept: Mutex<Option<StoreError>>,
    /// What the files of a fork's ancestors held when it was opened.
    inherited: OnceLock<Vec<Inherited>>,
    /// What the fetch module keeps for each volume.
    pub(crate) counters: Counters,
    pub(crate) flights: Mutex<Flights>,
    pub(crate) leap: Mutex<Leap>,
    pub(crate) spread: Mutex<Spread>,
}

impl PageCache {
    pub(super) fn open(
        volume: VolumeId,
        page_size: PageSize,
        options: &Options,
    ) -> Result<PageCache, StoreError> {
        let file = match &options.store {
            Some(store) => store.file(&file_name(volume))?,
            None => None,
        };
        let disk = match file {
            Some(file) => PageFile::open(file, volume, page_size, options.disk_bytes)?,
            None => None,
        };
        let clock = Clock::new(options.cache_bytes / page_size.bytes());
        let memory = Memory {
            clock,
            entries: Vec::new(),
            spare: Vec::new(),
            ahead: HashSet::new(),
            touched: VecDeque::new(),
            touched_before: 0,
            marker: None,
            counts: Metrics::default(),
        };
        Ok(PageCache {
            page_size,
            memory: Mutex::new(memory),
            disk,
            unkept: Mutex::default(),
            inherited: OnceLock::new(),
            counters: Counters::default(),
            flights: Mutex::default(),
            leap: Mutex::default(),
            spread: Mutex::default(),
        })
    }

    /// The page, if it is here. `hash` is what its bytes must have, where they come from disk.
    pub(super) fn get(&self, version: Version, hash: PageHash) -> Result<Option<Bytes>, StoreError> {
        {
            let mut memory = self.memory.lock();
            if let Some(slot) = memory.clock.read(version) {
                memory.counts.memory_hits += 1;
                let entry = &mut memory.entries[slot as usize];
                let page = entry.page.clone();
                if std::mem::take(&mut entry.fresh) {
                    memory.first_read(version);
                }
                return Ok(Some(page));
            }
            if self.disk.is_none() {
                memory.counts.misses += 1;
                return Ok(None);
            }
        }
        let Some(disk) = &self.disk else { return Ok(None) };
        let mut found = disk.get(version, hash)?;
        if found.is_none() {
            found = self.inherited().iter().find_map(|ancestor| ancestor.get(version, hash));
        }
        let mut memory = self.memory.lock();
        match &found {
            Some(page) => {
                memory.counts.disk_hits += 1;
                if memory.ahead.contains(&version) {
                    memory.first_read(version);
                }
                memory.put(version, page.clone(), true, Some(disk));
            }
            None => memory.counts.misses += 1,
        }
        Ok(found)
    }

    /// It is known of which volumes the replica is made: those that it is a fork of may have left pages in
    /// the same store. Only the first call counts.
    pub(super) fn inherit(&self, store: Option<&SharedStore>, volumes: &Lineage) {
        let (Some(store), Some((_, ancestors))) = (store, volumes.volumes().split_last()) else { return };
        if ancestors.is_empty() || self.disk.is_none() || self.inherited.get().is_some() {
            return;
        }
        let open = |(volume, last): &(VolumeId, Lsn)| {
            let Some(file) = store.existing_file(&file_name(*volume))? else { return Ok(None) };
            Inherited::open(file, *volume, *last, self.page_size)
        };
        let found = ancestors.iter().rev().filter_map(|ancestor| {
            open(ancestor).unwrap_or_else(|error: StoreError| {
                tracing::warn!(volume = %ancestor.0, %error, "the pages of an ancestor are not used");
                None
            })
        });
        // Set meanwhile is as good.
        _ = self.inherited.set(found.collect());
    }

    fn inherited(&self) -> &[Inherited] {
        self.inherited.get().map_or(&[], Vec::as_slice)
    }

    /// Keeps pages. Those that `asked` names are the last to go.
    fn put(&self, pages: Vec<(Version, Bytes)>, coming: Coming, asked: &dyn Fn(PageIdx) -> bool) {
        let disk = self.disk.as_ref();
        let evicted = disk.map(|disk| disk.put(&pages)).transpose().unwrap_or_else(|error| {
            // The disk is a cache here: the page was read, and can be fetched again.
            tracing::warn!(%error, "a fetched page could not be kept");
            *self.unkept.lock() = Some(error);
            None
        });
        let mut memory = self.memory.lock();
        let memory = &mut *memory;
        if coming == Coming::Ahead {
            for (version, _) in &pages {
                if memory.clock.find(*version).is_none() && memory.ahead.insert(*version) {
                    memory.counts.prefetch_issued += 1;
                }
            }
        }
        for gone in evicted.into_iter().flatten() {
            memory.counts.evicted_disk += 1;
            if memory.clock.find(gone).is_none() {
                memory.waste(gone);
            }
        }
        if coming == Coming::Kept && disk.is_some() {
            return;
        }
        let (first, last): (Vec<_>, Vec<_>) = pages.into_iter().partition(|(version, _)| !asked(version.0));
        for (version, page) in first {
            memory.put(version, page, false, disk);
        }
        for (version, page) in last {
            memory.put(version, page, true, disk);
        }
    }

    /// Forgets that the disk did not take pages.
    pub(crate) fn begin_keeping(&self) {
        *self.unkept.lock() = None;
    }

    /// Puts those of `pages` on disk that are in memory alone. Fails where the disk did not take these, or
    /// others since [`begin_keeping`](PageCache::begin_keeping). Without a disk nothing is to be done.
    pub(crate) fn keep(&self, snapshot: &Snapshot, pages: &PageSet) -> Result<(), StoreError> {
        let Some(disk) = &self.disk else { return Ok(()) };
        let only_here: Vec<(Version, Bytes)> = {
            let memory = self.memory.lock();
            let version = |page| match snapshot.location(page) {
                Location::Frame(_, slot) => Some((page, slot.lsn)),
                Location::Zero | Location::Local(_) | Location::Unknown(_) => None,
            };
            let versions = pages.iter().filter_map(version).filter(|version| !disk.contains(*version));
            let page =
                |version| Some((version, memory.entries[memory.clock.find(version)? as usize].page.clone()));
            versions.filter_map(page).collect()
        };
        let evicted = disk.put(&only_here)?;
        self.memory.lock().counts.evicted_disk += evicted.len() as u64;
        self.unkept.lock().take().map_or(Ok(()), Err)
    }

    /// Keeps pages of ours that became durable.
    pub(super) fn put_own(&self, pages: Vec<(Version, Bytes)>) {
        self.put(pages, Coming::Asked, &|_| true);
    }

    /// Checks a frame's bytes and keeps its pages.
    pub(crate) fn put_frame(
        &self,
        frame: &FrameRef,
        bytes: &[u8],
        coming: Coming,
        asked: &PageSet,
    ) -> Result<(), Damaged> {
        let mut spare = {
            let mut memory = self.memory.lock();
            let left = memory.spare.len().saturating_sub(frame.slots.len());
            memory.spare.split_off(left)
        };
        let pages = open_frame(frame, bytes, self.page_size, &mut spare)?;
        self.put(pages, coming, &|page| coming == Coming::Asked && asked.contains(page));
        Ok(())
    }

    /// The commit `head` comes on top of `before`: the versions that it replaces go first.
    pub(super) fn replaced(&self, before: &Snapshot, head: &Head) {
        // Only what a commit wrote can be here: not every number up to a page count.
        let first = head.pages / CHUNK_PAGES as u32;
        let chunks = before.chunks_between(first, u32::MAX / CHUNK_PAGES as u32);
        let cut = chunks.filter(|_| head.pages < before.pages()).flat_map(|view| view.pages());
        let cut = cut.filter(|page| (head.pages + 1..=before.pages()).contains(&page.get()));
        let versions: Vec<Version> = head
            .set
            .iter()
            .chain(cut)
            .filter_map(|page| match before.location(page) {
                Location::Frame(_, slot) => Some((page, slot.lsn)),
                Location::Zero | Location::Local(_) | Location::Unknown(_) => None,
            })
            .collect();
        if versions.is_empty() {
            return;
        }
        let mut memory = self.memory.lock();
        versions.iter().for_each(|version| memory.clock.demote(*version));
        drop(memory);
        if let Some(disk) = &self.disk {
            disk.demote(versions.into_iter());
        }
    }

    /// Tells the prefetcher which pages that came unasked were read since the last call: the newest by
    /// name, in the order of their reads, others by number.
    pub(crate) fn tell(&self, leap: &mut Leap) {
        let (before, touched) = {
            let mut memory = self.memory.lock();
            (std::mem::take(&mut memory.touched_before), std::mem::take(&mut memory.touched))
        };
        leap.hits(before);
        touched.into_iter().for_each(|page| leap.hit(page));
    }

    /// Is ready after so many more first reads of pages that came unasked; never, if another one is asked
    /// for first.
    #[cfg(feature = "native")]
    pub(crate) fn after_first_reads(&self, count: u32) -> oneshot::Receiver<()> {
        let (sender, receiver) = oneshot::channel();
        let before = self.memory.lock().marker.replace((count, sender));
        // Wakes who waited for it: outside of the lock.
        drop(before);
        receiver
    }

    /// Reads of durable pages so far, and the pages fetched ahead that were among them.
    pub(crate) fn reads(&self) -> (u64, u64) {
        let counts = self.memory.lock().counts;
        (counts.memory_hits + counts.disk_hits + counts.misses, counts.prefetch_used)
    }

    /// How many pages may be fetched ahead at once without driving out what is here.
    pub(crate) fn room_ahead(&self) -> u32 {
        let slots = self.capacity_pages() / 4;
        let bytes = crate::fetch::AHEAD_BYTES_MAX / self.page_size.bytes();
        u32::try_from(slots.min(bytes)).unwrap_or(u32::MAX)
    }

    /// How many bytes of pages fit.
    pub(crate) fn room_bytes(&self) -> u64 {
        self.capacity_pages() as u64 * self.page_size.bytes() as u64
    }

    /// The pages of `pages` that a read of `snapshot` would fault on. No I/O.
    pub(crate) fn missing(&self, snapshot: &Snapshot, pages: &PageSet) -> PageSet {
        let mut missing = PageSet::new();
        let memory = self.memory.lock();
        for page in pages.iter() {
            match snapshot.location(page) {
                Location::Zero | Location::Local(_) => {}
                Location::Frame(_, slot) => {
                    if !self.is_here(&memory, (page, slot.lsn)) {
                        missing.insert(page);
                    }
                }
                Location::Unknown(_) => {
                    missing.insert(page);
                }
            }
        }
        missing
    }

    fn is_here(&self, memory: &Memory, version: Version) -> bool {
        memory.clock.find(version).is_some()
            || self.disk.as_ref().is_some_and(|disk| disk.contains(version))
            || self.inherited().iter().any(|ancestor| ancestor.contains(version))
    }

    /// Whether every page of a frame is here.
    pub(crate) fn holds(&self, frame: &FrameRef) -> bool {
        let memory = self.memory.lock();
        frame.slots.iter().all(|slot| self.is_here(&memory, (slot.page, slot.lsn)))
    }

    /// How many pages fit into memory.
    pub(crate) fn memory_pages(&self) -> usize {
        self.memory.lock().clock.capacity()
    }

    /// How many pages fit, on disk where there is one, in memory where there is none.
    pub(crate) fn capacity_pages(&self) -> usize {
        match &self.disk {
            Some(disk) => disk.capacity(),
            None => self.memory_pages(),
        }
    }

    fn metrics(&self) -> Metrics {
        let memory = self.memory.lock();
        let page = self.page_size.bytes() as u64;
        Metrics {
            requests: self.counters.requests.load(Relaxed),
            bytes: self.counters.bytes.load(Relaxed),
            shared: self.counters.shared.load(Relaxed),
            hedges: self.counters.hedges.load(Relaxed),
            hedges_won: self.counters.hedges_won.load(Relaxed),
            memory_bytes: memory.clock.len() as u64 * page,
            disk_bytes: self.disk.as_ref().map_or(0, |disk| disk.len() as u64 * page),
            ..memory.counts
        }
    }
}

fn file_name(volume: VolumeId) -> String {
    format!("pages-{volume}")
}

/// A frame's pages, each checked against its hash, in buffers of `spare` as far as they go.
pub(crate) fn open_frame(
    frame: &FrameRef,
    bytes: &[u8],
    page_size: PageSize,
    spare: &mut Vec<Bytes>,
) -> Result<Vec<(Version, Bytes)>, Damaged> {
    if bytes.len() != frame.bytes as usize {
        let reason = format!("a frame of {} bytes ends after {}", frame.bytes, bytes.len());
        return Err(Damaged::new(&frame.key, reason));
    }
    let pages = frame::decode_into(bytes, page_size, frame.count, &frame.slots, spare)
        .map_err(|reason| Damaged::new(&frame.key, reason))?;
    Ok(frame.slots.iter().map(|slot| (slot.page, slot.lsn)).zip(pages).collect())
}

impl Volume {
    /// Keeps those of `frames` of which the base still reads a page. A damaged one is read again by who
    /// needs it.
    pub(super) fn keep_early(&self, frames: &[(std::sync::Arc<FrameRef>, Bytes)]) {
        let base = self.base();
        let mut asked = base.checkpoint().map(|root| root.hot.clone()).unwrap_or_default();
        asked.insert(PageIdx::FIRST);
        let is_read = |slot: &Slot| {
            let location = base.location(slot.page);
            matches!(location, Location::Frame(_, found) if found.lsn == slot.lsn)
        };
        for (frame, bytes) in frames.iter().filter(|(frame, _)| frame.slots.iter().any(is_read)) {
            if let Err(error) = self.cache.put_frame(frame, bytes, Coming::Asked, &asked) {
                tracing::debug!(%error, "a frame that came with the heads is not kept");
            }
        }
    }

    /// What reading and fetching have cost since it was opened.
    pub fn metrics(&self) -> Metrics {
        self.cache.metrics()
    }

    pub(crate) fn page_cache(&self) -> &std::sync::Arc<PageCache> {
        &self.cache
    }
}

#[cfg(test)]
mod tests;
