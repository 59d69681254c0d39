//! A chunk of a page table: where 256 neighbouring pages are. Little-endian, compressed with zstd.
//!
//! Chunk `n` is of pages `256 n + 1` to `256 n + 256`. Before compression:
//!
//! | offset | bytes | field    | meaning                                                       |
//! |-------:|------:|----------|---------------------------------------------------------------|
//! |      0 |     2 | objects  | how many objects it names, at most 256                        |
//! |      2 |     2 | frames   | how many frames, at most 256                                  |
//! |      4 |    32 | present  | bit i of byte i/8: page 256 n + 1 + i was written             |
//! |     36 |       | objects  | 33 bytes each: volume u32 (its place in the root's table), kind u8 (0 commit, 1 segment of a commit, 2 segment of a compaction), number u64 (LSN or epoch), id 16, part u32 |
//! |        |       | frames   | 16 bytes each: object u16, pages u16, offset u64, bytes u32   |
//! |        |       | frame    | u8 for each page present: which frame                         |
//! |        |       | slot     | u8 for each page present: its place in the frame              |
//! |        |       | lsn      | u64 for each page present: the commit that wrote it           |
//! |        |       | hash     | 16 bytes for each page present                                |
//!
//! A page's *version* is the volume and LSN that wrote it. Compaction moves a version to another
//! object, and it stays what it is: caches know it again.
//!
//! Invariants of a decoded chunk: every page lies in the chunk; no two pages have one slot of one
//! frame; every frame has 1 to 64 pages and an end that does not overflow.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;

use super::frame::{FRAME_PAGES_MAX, PageHash};
use super::{Reader, Short};
use crate::ids::{CommitId, Epoch, Lsn, PageIdx, VolumeId, key};

/// Pages in one chunk.
pub const CHUNK_PAGES: usize = 256;
/// A chunk is never longer than this before it is compressed.
const RAW_BYTES_MAX: usize = 36 + 256 * (33 + 16 + 1 + 1 + 8 + 16);
/// Nor longer than this after: zstd adds little to what does not compress.
pub const CHUNK_BYTES_MAX: usize = RAW_BYTES_MAX + 1024;
const ZSTD_LEVEL: i32 = 3;

/// What kind of object holds a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ObjectKind {
    /// A commit: the frame rides inside.
    Commit(Lsn),
    /// A segment made for the commit of this LSN.
    CommitSegment(Lsn),
    /// A segment that a compaction made in this epoch.
    CompactedSegment(Epoch),
}

/// An object that holds frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Object {
    /// The volume it lies under.
    pub volume: VolumeId,
    /// What it is.
    pub kind: ObjectKind,
    /// The id of the commit or compaction that made it.
    pub id: CommitId,
    /// Which of its segments, from 1; 0 for a commit.
    pub part: u32,
}

impl Object {
    /// Its key.
    pub fn key(&self) -> String {
        match self.kind {
            ObjectKind::Commit(lsn) => key::log(self.volume, lsn),
            ObjectKind::CommitSegment(lsn) => key::segment(self.volume, lsn, self.id, self.part),
            ObjectKind::CompactedSegment(epoch) => {
                key::compacted_segment(self.volume, epoch, self.id, self.part)
            }
        }
    }
}

/// A page that is read from a frame.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Slot {
    /// Which page.
    pub page: PageIdx,
    /// The commit that wrote this version of it.
    pub lsn: Lsn,
    /// Its place in the frame, from 0.
    pub slot: u8,
    /// The hash that its bytes must have.
    pub hash: PageHash,
}

/// A stored frame: where it is and what is read from it.
///
/// Only live pages are listed. Two of these may name one frame with different pages: a frame that
/// reaches over a chunk's end is in both chunks.
#[derive(Debug, Clone, PartialEq)]
pub struct FrameRef {
    /// The object's key.
    pub key: Arc<str>,
    /// The object that holds it.
    pub object: Object,
    /// Its first byte in the object.
    pub offset: u64,
    /// Its compressed length.
    pub bytes: u32,
    /// How many pages were compressed together.
    pub count: u32,
    /// The pages read from it, ascending.
    pub slots: Vec<Slot>,
}

/// The volumes whose logs make one volume's history, oldest first: its ancestors and itself.
///
/// A fork's log begins where it was forked, so each LSN belongs to exactly one of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lineage {
    volumes: Vec<(VolumeId, Lsn)>,
}

/// More ancestors than this are damage, not data.
pub const LINEAGE_MAX: usize = 1024;

impl Lineage {
    /// Of a volume that is no fork.
    pub fn of(volume: VolumeId) -> Lineage {
        Lineage { volumes: vec![(volume, Lsn(u64::MAX))] }
    }

    /// Of `child`, forked from the last of these at `lsn`.
    #[must_use]
    pub fn fork(&self, lsn: Lsn, child: VolumeId) -> Lineage {
        let mut volumes = self.volumes.clone();
        while volumes.len() > 1 && volumes[volumes.len() - 2].1 >= lsn {
            volumes.pop();
        }
        if let Some(last) = volumes.last_mut() {
            last.1 = lsn;
        }
        volumes.push((child, Lsn(u64::MAX)));
        Lineage { volumes }
    }

    /// The volume itself.
    pub fn own(&self) -> VolumeId {
        self.volumes.last().map_or(VolumeId([0; 16]), |(volume, _)| *volume)
    }

    /// The LSN it was forked at; 0 for none.
    pub fn forked_at(&self) -> Lsn {
        match self.volumes.len() {
            0 | 1 => Lsn::ZERO,
            more => self.volumes[more - 2].1,
        }
    }

    /// The volume in whose log `lsn` is.
    pub fn origin(&self, lsn: Lsn) -> VolumeId {
        self.volumes.iter().find(|(_, last)| lsn <= *last).map_or(self.own(), |(volume, _)| *volume)
    }

    /// Every volume with the last LSN that is read of it, oldest first.
    pub fn volumes(&self) -> &[(VolumeId, Lsn)] {
        &self.volumes
    }

    /// From parts; `None` where they are no lineage.
    pub fn from_volumes(volumes: Vec<(VolumeId, Lsn)>) -> Option<Lineage> {
        let ascending = volumes.windows(2).all(|two| two[0].1 < two[1].1);
        let ends = volumes.last().is_some_and(|(_, last)| *last == Lsn(u64::MAX));
        (ascending && ends && volumes.len() <= LINEAGE_MAX).then_some(Lineage { volumes })
    }

    fn place(&self, volume: VolumeId) -> Option<u32> {
        self.volumes.iter().position(|(found, _)| *found == volume).and_then(|at| u32::try_from(at).ok())
    }
}

/// A chunk in memory: for each of its pages where it is, if it was ever written.
#[derive(Debug, PartialEq)]
pub struct Chunk {
    pages: Vec<Option<(Arc<FrameRef>, u8)>>,
}

impl Chunk {
    /// Where the `at`th page of the chunk is.
    pub fn get(&self, at: usize) -> Option<(&Arc<FrameRef>, &Slot)> {
        let (frame, slot) = self.pages.get(at)?.as_ref()?;
        Some((frame, frame.slots.get(usize::from(*slot))?))
    }

    /// Its frames, each as often as it has pages here.
    pub fn frames(&self) -> impl Iterator<Item = &Arc<FrameRef>> {
        self.pages.iter().flatten().map(|(frame, _)| frame)
    }
}

/// The first page of chunk `index`, 1-based. `None` for a chunk that no page lies in.
pub fn first_page(index: u32) -> Option<u32> {
    index.checked_mul(CHUNK_PAGES as u32)?.checked_add(1)
}

/// Compresses chunk `index`: for each page that was written, its frame and slot. Ascending pages.
///
/// `None` where a page lies outside the chunk or an object outside the lineage: a bug of the caller's.
pub fn encode<'a>(
    index: u32,
    lineage: &Lineage,
    pages: impl Iterator<Item = (&'a FrameRef, &'a Slot)>,
) -> Option<Bytes> {
    let first = first_page(index)?;
    let mut present = [0u8; CHUNK_PAGES / 8];
    let (mut objects, mut frames) = (Vec::new(), Vec::new());
    let mut object_at: HashMap<Object, u16> = HashMap::new();
    let mut frame_at: HashMap<(u16, u64), u8> = HashMap::new();
    let [mut in_frame, mut slots, mut lsns, mut hashes] = [const { Vec::new() }; 4];
    for (frame, slot) in pages {
        let at = slot.page.get().checked_sub(first)? as usize;
        *present.get_mut(at / 8)? |= 1 << (at % 8);
        let object = match object_at.get(&frame.object) {
            Some(object) => *object,
            None => {
                let (kind, number) = match frame.object.kind {
                    ObjectKind::Commit(lsn) => (0u8, lsn.0),
                    ObjectKind::CommitSegment(lsn) => (1, lsn.0),
                    ObjectKind::CompactedSegment(epoch) => (2, u64::from(epoch.0)),
                };
                objects.extend(lineage.place(frame.object.volume)?.to_le_bytes());
                objects.push(kind);
                objects.extend(number.to_le_bytes());
                objects.extend(frame.object.id.0);
                objects.extend(frame.object.part.to_le_bytes());
                let object = u16::try_from(object_at.len()).ok()?;
                object_at.insert(frame.object, object);
                object
            }
        };
        let in_object = match frame_at.get(&(object, frame.offset)) {
            Some(frame) => *frame,
            None => {
                frames.extend(object.to_le_bytes());
                frames.extend(u16::try_from(frame.count).ok()?.to_le_bytes());
                frames.extend(frame.offset.to_le_bytes());
                frames.extend(frame.bytes.to_le_bytes());
                let at = u8::try_from(frame_at.len()).ok()?;
                frame_at.insert((object, frame.offset), at);
                at
            }
        };
        in_frame.push(in_object);
        slots.push(slot.slot);
        lsns.extend(slot.lsn.0.to_le_bytes());
        hashes.extend(slot.hash.0);
    }
    let mut raw = Vec::new();
    raw.extend(u16::try_from(object_at.len()).ok()?.to_le_bytes());
    raw.extend(u16::try_from(frame_at.len()).ok()?.to_le_bytes());
    raw.extend(present);
    for part in [objects, frames, in_frame, slots, lsns, hashes] {
        raw.extend(part);
    }
    Some(zstd::bulk::compress(&raw, ZSTD_LEVEL).ok()?.into())
}

/// The first 16 bytes of BLAKE3 over the chunk's index (u32) and its compressed bytes.
pub fn hash(index: u32, compressed: &[u8]) -> [u8; 16] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&index.to_le_bytes());
    hasher.update(compressed);
    let mut hash = [0; 16];
    hash.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    hash
}

/// Decompresses chunk `index`. Safe on hostile bytes. The hash is the caller's to check.
///
/// # Errors
///
/// What did not hold, as text for [`super::Damaged`].
pub fn decode(index: u32, lineage: &Lineage, compressed: &[u8]) -> Result<Chunk, String> {
    let raw = zstd::bulk::decompress(compressed, RAW_BYTES_MAX)
        .map_err(|e| format!("a chunk does not decompress ({e})"))?;
    parse(index, lineage, &raw).map_err(|short| format!("a chunk ends before its {}", short.0))?
}

fn parse(index: u32, lineage: &Lineage, raw: &[u8]) -> Result<Result<Chunk, String>, Short> {
    let damaged = |reason: &str| Ok(Err(format!("a chunk {reason}")));
    let Some(first) = first_page(index) else { return damaged("is beyond every page") };
    let mut reader = Reader::new(raw);
    let object_count = u16::from_le_bytes(reader.array("object count")?);
    let frame_count = u16::from_le_bytes(reader.array("frame count")?);
    let present: [u8; CHUNK_PAGES / 8] = reader.array("presence bits")?;
    if object_count > 256 || frame_count > 256 {
        return damaged("claims more than 256 objects or frames");
    }
    let mut objects = Vec::with_capacity(object_count.into());
    for _ in 0..object_count {
        let place = reader.u32("objects")? as usize;
        let [kind] = reader.array("objects")?;
        let number = reader.u64("objects")?;
        let (id, part) = (CommitId(reader.array("objects")?), reader.u32("objects")?);
        let Some((volume, _)) = lineage.volumes().get(place) else {
            return damaged("names a volume that its root does not");
        };
        let kind = match kind {
            0 => ObjectKind::Commit(Lsn(number)),
            1 => ObjectKind::CommitSegment(Lsn(number)),
            2 => match u32::try_from(number) {
                Ok(epoch) => ObjectKind::CompactedSegment(Epoch(epoch)),
                Err(_) => return damaged("names an epoch that is none"),
            },
            _ => return damaged("names an object of an unknown kind"),
        };
        let object = Object { volume: *volume, kind, id, part };
        objects.push((Arc::<str>::from(object.key()), object));
    }
    let mut frames = Vec::with_capacity(frame_count.into());
    for _ in 0..frame_count {
        let object = u16::from_le_bytes(reader.array("frames")?);
        let count = u32::from(u16::from_le_bytes(reader.array("frames")?));
        let (offset, bytes) = (reader.u64("frames")?, reader.u32("frames")?);
        let Some((key, object)) = objects.get(usize::from(object)) else {
            return damaged("has a frame in no object");
        };
        if count == 0 || count as usize > FRAME_PAGES_MAX || offset.checked_add(bytes.into()).is_none() {
            return damaged("has a frame that cannot be one");
        }
        frames.push(FrameRef { key: key.clone(), object: *object, offset, bytes, count, slots: Vec::new() });
    }
    let count: usize = present.iter().map(|byte| byte.count_ones() as usize).sum();
    let in_frame = reader.take(count, "frames of pages")?;
    let slots = reader.take(count, "slots")?;
    let mut lsns = Reader::new(reader.take(8 * count, "lsns")?);
    let mut hashes = Reader::new(reader.take(16 * count, "page hashes")?);
    if reader.array::<1>("end").is_ok() {
        return damaged("goes on after its end");
    }
    let mut places: Vec<Option<(usize, u8)>> = vec![None; CHUNK_PAGES];
    let written = (0..CHUNK_PAGES).filter(|at| present[at / 8] & (1 << (at % 8)) != 0);
    for ((at, in_frame), slot) in written.zip(in_frame).zip(slots) {
        let page = u32::try_from(at).ok().and_then(|at| first.checked_add(at)).and_then(PageIdx::new);
        let Some(page) = page else { return damaged("has a page beyond every page") };
        let (lsn, hash) = (Lsn(lsns.u64("lsns")?), PageHash(hashes.array("page hashes")?));
        let Some(frame) = frames.get_mut(usize::from(*in_frame)) else {
            return damaged("has a page in no frame");
        };
        if u32::from(*slot) >= frame.count || frame.slots.iter().any(|other| other.slot == *slot) {
            return damaged("has a page in a slot that is not there, or twice");
        }
        let Ok(place) = u8::try_from(frame.slots.len()) else { return damaged("has a frame too full") };
        places[at] = Some((usize::from(*in_frame), place));
        frame.slots.push(Slot { page, lsn, slot: *slot, hash });
    }
    let frames: Vec<Arc<FrameRef>> = frames.into_iter().map(Arc::new).collect();
    let pages = places.into_iter().map(|place| place.map(|(frame, slot)| (frames[frame].clone(), slot)));
    Ok(Ok(Chunk { pages: pages.collect() }))
}

#[cfg(test)]
mod tests;
