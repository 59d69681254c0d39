//! Where the bytes of a prepared commit's segments are until they are stored.
//!
//! A push of many pages has more bytes than should be in memory at once. So a [`Prepared`](super::Prepared)
//! commit names its segments, and [`publish`](super::publish) asks for the bytes of one after another:
//!
//! - in memory: few bytes, or a commit that nobody keeps;
//! - in the local store, which took each segment as it was made ([`crate::volume`]): also after a crash
//!   they are the same bytes, whatever would compress the pages then;
//! - made again from the pages, where there is no local store and so no other process that could go on
//!   with the push.
//!
//! Invariant: what is answered is, byte for byte, what was made when the commit was prepared. Its hash
//! says so, and bytes that differ are an error, never an upload.

use std::fmt;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use bytes::{Bytes, BytesMut};

use super::Segment;
use crate::format::commit::Head;
use crate::format::frame::{self, FRAME_PAGES_MAX};
use crate::ids::key;
use crate::store::StoreError;

/// Segments of a push that are held in memory where there is no local store; of a larger one the rest
/// is made again when it is asked for.
const HELD_BYTES_MAX: usize = 32 << 20;

/// Gives the bytes of a prepared commit's segments, any number of times.
pub trait SegmentSource: Send + Sync + fmt::Debug {
    /// The bytes of the segment with number `part`, from 1. May block on a disk.
    ///
    /// # Errors
    ///
    /// The local store failed, or does not hold it.
    fn load(&self, part: u32) -> Result<Bytes, StoreError>;
}

#[derive(Debug, Clone)]
enum Content {
    Here(Bytes),
    Elsewhere(Arc<dyn SegmentSource>),
}

/// A segment of a prepared commit.
#[derive(Debug, Clone)]
pub struct Upload {
    /// The object's key.
    pub key: String,
    part: u32,
    len: u64,
    hash: [u8; 16],
    content: Content,
}

impl PartialEq for Upload {
    /// By key and hash, wherever the bytes are.
    fn eq(&self, other: &Upload) -> bool {
        (&self.key, self.len, self.hash) == (&other.key, other.len, other.hash)
    }
}

impl Upload {
    /// One that is in memory, with number `part`.
    pub(crate) fn here(part: u32, (key, bytes): Segment) -> Upload {
        let (len, hash) = (bytes.len() as u64, hash_of(&bytes));
        Upload { key, part, len, hash, content: Content::Here(bytes) }
    }

    /// The same one, its bytes left to `source`.
    pub(crate) fn elsewhere(self, source: Arc<dyn SegmentSource>) -> Upload {
        Upload { content: Content::Elsewhere(source), ..self }
    }

    /// One that `source` has, as a record says.
    pub(crate) fn recorded(
        head: &Head,
        part: u32,
        len: u64,
        hash: [u8; 16],
        source: Arc<dyn SegmentSource>,
    ) -> Upload {
        let key = key::segment(head.volume, head.lsn, head.id, part);
        Upload { key, part, len, hash, content: Content::Elsewhere(source) }
    }

    /// Its length.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether it has no bytes, which no segment does.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(crate) fn hash(&self) -> [u8; 16] {
        self.hash
    }

    /// Its bytes. May block on a disk; holds nothing afterwards that it did not hold before.
    ///
    /// # Errors
    ///
    /// Its source failed, or what it gave is not what was made. Nothing may be stored then.
    pub fn bytes(&self) -> Result<Bytes, StoreError> {
        let source = match &self.content {
            Content::Here(bytes) => return Ok(bytes.clone()),
            Content::Elsewhere(source) => source,
        };
        let bytes = source.load(self.part)?;
        if bytes.len() as u64 != self.len || hash_of(&bytes) != self.hash {
            let message = format!(
                "its copy of segment `{}` of the pending push is damaged; export what you need of the local commits, then drop them",
                self.key
            );
            return Err(StoreError::Failed { dir: "pending push".into(), message });
        }
        Ok(bytes)
    }
}

fn hash_of(bytes: &[u8]) -> [u8; 16] {
    let mut hash = [0; 16];
    hash.copy_from_slice(&blake3::hash(bytes).as_bytes()[..16]);
    hash
}

/// A commit's pages by frames and its frames by segments.
#[derive(Debug, Default)]
struct Made {
    frames: Vec<Vec<Bytes>>,
    segments: Vec<Range<usize>>,
}

/// Makes segments again from their pages: the same compressor in the same process gives the same bytes.
#[derive(Debug, Default)]
struct Again(OnceLock<Made>);

impl SegmentSource for Again {
    fn load(&self, part: u32) -> Result<Bytes, StoreError> {
        let frames = self.0.get().and_then(|made| {
            let at = (part as usize).checked_sub(1)?;
            made.frames.get(made.segments.get(at)?.clone())
        });
        let mut out = BytesMut::new();
        for pages in frames.unwrap_or_default() {
            out.extend_from_slice(&frame::encode(pages.iter()));
        }
        Ok(out.freeze())
    }
}

/// Notes what goes into which segment, and holds the first of their bytes.
#[derive(Debug, Default)]
pub(super) struct Noted {
    made: Made,
    uploads: Vec<Upload>,
    again: Arc<Again>,
    held: usize,
}

impl Noted {
    /// A page went into the frame that is being filled.
    pub(super) fn push(&mut self, page: Bytes) {
        match self.made.frames.last_mut().filter(|frame| frame.len() < FRAME_PAGES_MAX) {
            Some(frame) => frame.push(page),
            None => self.made.frames.push(vec![page]),
        }
    }

    /// A segment ended with the frame of the newest page.
    pub(super) fn end_segment(&mut self, segment: Segment) {
        let first = self.made.segments.last().map_or(0, |frames| frames.end);
        self.made.segments.push(first..self.made.frames.len());
        self.held += segment.1.len();
        let upload = Upload::here(self.made.segments.len() as u32, segment);
        let kept = self.held <= HELD_BYTES_MAX;
        self.uploads.push(if kept { upload } else { upload.elsewhere(self.again.clone()) });
    }

    /// The segments.
    pub(super) fn finish(self) -> Vec<Upload> {
        if self.held > HELD_BYTES_MAX {
            self.again.0.get_or_init(|| self.made);
        }
        self.uploads
    }
}
