//! From page sets to frames to ranged GETs. No I/O.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use crate::ids::{PageIdx, PageSize};
use crate::page_set::PageSet;
use crate::snapshot::{FrameRef, Location, Snapshot};

/// Two frames of one object with at most so much between them come with one GET. At 100 MB/s these
/// bytes take a millisecond; a request takes ten and more.
pub const GAP_BYTES_MAX: u64 = 128 << 10;
/// A GET is not extended once it has so many bytes: more of them come side by side.
pub const RANGE_BYTES_MAX: u64 = 4 << 20;
/// Nor is one that somebody waits for by what nobody does, once it has so many.
pub const WAITED_BYTES_MAX: u64 = 512 << 10;
/// What one more object costs, in bytes of pages: it is a request of its own.
const OBJECT_BYTES: u64 = 1 << 20;

/// Where a frame is: object and offset; and the first page read from it, since a frame that reaches over
/// the end of a chunk of the page table is named by two, each with the pages of its own.
pub(crate) type Place = (Arc<str>, u64, u32);

/// Frames by their place: each once.
pub(crate) type Frames = BTreeMap<Place, Arc<FrameRef>>;

pub(crate) fn place(frame: &FrameRef) -> Place {
    (frame.key.clone(), frame.offset, frame.slots.first().map_or(0, |slot| slot.page.get()))
}

/// The frames that hold `pages` of `snapshot`.
pub(crate) fn frames_of(snapshot: &Snapshot, pages: &PageSet) -> Frames {
    let mut frames = Frames::new();
    let mut last: Option<*const FrameRef> = None;
    for page in pages.iter() {
        // Neighbours are nearly always in one frame: look that up once.
        if let Location::Frame(frame, _) = snapshot.location(page)
            && last.replace(Arc::as_ptr(frame)) != Some(Arc::as_ptr(frame))
        {
            frames.entry(place(frame)).or_insert_with(|| frame.clone());
        }
    }
    frames
}

/// How many of `pages` are stored.
pub(crate) fn stored_pages(snapshot: &Snapshot, pages: &PageSet) -> u64 {
    let stored = |page: &PageIdx| matches!(snapshot.location(*page), Location::Frame(..));
    pages.iter().filter(stored).count() as u64
}

/// What a reader of `reads` lacks: the frames to send or fetch, ordered by object and offset. Pages of
/// `have` are the reader's already; pages past the end, never written or not yet durable are in no
/// frame, and neither are those whose part of the page table was not read: [`crate::chunks::load`] reads
/// it.
///
/// Costs O(pages of `reads` within the snapshot).
pub fn plan(snapshot: &Snapshot, reads: &PageSet, have: &PageSet) -> Vec<Arc<FrameRef>> {
    let mut lacks = reads.clone();
    lacks.clip(snapshot.pages());
    lacks.subtract(have);
    frames_of(snapshot, &lacks).into_values().collect()
}

/// One ranged GET: bytes `start..end` of an object, which hold `frames`.
#[derive(Debug)]
pub struct Range {
    /// The object.
    pub key: Arc<str>,
    /// Its first byte.
    pub start: u64,
    /// The byte after its last.
    pub end: u64,
    /// The frames in it, ascending.
    pub frames: Vec<Arc<FrameRef>>,
}

impl Range {
    /// The part of its bytes that is `frame`; shorter where the object ended early.
    pub(crate) fn part<'a>(&self, frame: &FrameRef, bytes: &'a Bytes) -> &'a [u8] {
        let at = |offset: u64| usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
        let start = frame.offset.saturating_sub(self.start);
        &bytes[at(start)..at(start.saturating_add(u64::from(frame.bytes)))]
    }
}

/// The GETs that bring these frames, by [`GAP_BYTES_MAX`] and [`RANGE_BYTES_MAX`]. What `waited` says
/// that somebody waits for is not held up by what only lies beside it: [`WAITED_BYTES_MAX`].
pub(crate) fn ranges(frames: Frames, waited: impl Fn(&Place) -> bool) -> Vec<Range> {
    let mut ranges: Vec<Range> = Vec::new();
    // Of the last range: whether it has frames that somebody waits for, and others.
    let (mut has_waited, mut has_others) = (false, false);
    for (place, frame) in frames {
        let is_waited = waited(&place);
        let (key, start, _) = place;
        let end = start.saturating_add(u64::from(frame.bytes));
        let mixes = if is_waited { has_others } else { has_waited };
        let most = if mixes { WAITED_BYTES_MAX } else { RANGE_BYTES_MAX };
        match ranges.last_mut() {
            Some(last)
                if last.key == key
                    && start <= last.end.saturating_add(GAP_BYTES_MAX)
                    && last.end - last.start < most =>
            {
                last.end = last.end.max(end);
                last.frames.push(frame);
                (has_waited, has_others) = (has_waited | is_waited, has_others | !is_waited);
            }
            _ => {
                ranges.push(Range { key, start, end, frames: vec![frame] });
                (has_waited, has_others) = (is_waited, !is_waited);
            }
        }
    }
    ranges
}

/// What frames cost to fetch, in bytes of pages: theirs, and each object's request.
pub(crate) fn cost<'a>(frames: impl Iterator<Item = &'a Arc<FrameRef>>, page_size: PageSize) -> u64 {
    let mut last: Option<&str> = None;
    let costs = frames.map(|frame| {
        let object = if last.replace(&frame.key) == Some(&*frame.key) { 0 } else { OBJECT_BYTES };
        object + u64::from(frame.count) * u64::from(page_size.get())
    });
    costs.sum()
}

/// The frames nearest to `at` by where they are stored, until they cost `bytes`: compaction stores a
/// b-tree's leaves beside each other, so these are of its b-tree first, and of its keys' neighbours.
pub(crate) fn around(frames: &Frames, at: &Place, bytes: u64, page_size: PageSize) -> Frames {
    let mut found = Frames::new();
    let mut sides = [
        (0, &at.0, Box::new(frames.range(at..)) as Box<dyn Iterator<Item = (&Place, &Arc<FrameRef>)>>),
        (0, &at.0, Box::new(frames.range(..at).rev())),
    ];
    let mut done = [false; 2];
    while found.len() < frames.len() && sides[0].0 + sides[1].0 < bytes {
        // The side that has brought less.
        let side = match done {
            [false, false] => usize::from(sides[1].0 < sides[0].0),
            [true, true] => break,
            [first_done, _] => usize::from(first_done),
        };
        let (spent, key, more) = &mut sides[side];
        match more.next() {
            None => done[side] = true,
            Some((place, frame)) => {
                *spent += u64::from(frame.count) * u64::from(page_size.get());
                if ***key != *place.0 {
                    *spent += OBJECT_BYTES;
                    *key = &place.0;
                }
                found.insert(place.clone(), frame.clone());
            }
        }
    }
    found
}
