//! What a local commit made by SQLite carries beside its pages: marks, reads, and a layer's own note.
//!
//! It is the payload of the local commit, and is never published: what a push publishes is made from
//! it ([`crate::payload`]). One byte tells the forms apart; integers are little-endian.
//!
//! | form | bytes |
//! | --- | --- |
//! | `m` | marks |
//! | `n` | marks, flags (1: the reads are complete, 2: it read allocator state), u32 length of the encoded reads, the reads, the rest is the note |
//!
//! A payload of another form (or none) says nothing, so whoever reads it must take both marks as
//! changed and the reads as unknown.

use bytes::{BufMut as _, Bytes, BytesMut};
use graft::PageSet;

use super::Marks;

const COMPLETE: u8 = 1;
const ALLOCATOR: u8 = 2;

/// What is known of a local commit beside its pages.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Note {
    /// What it changed of page 1.
    pub marks: Marks,
    /// What it read, page 1 left out; `None` where that is not wholly known.
    pub reads: Option<PageSet>,
    /// Whether it read allocator state (page counts, free pages): then it does not merge.
    pub reads_allocator: bool,
    /// What the layer above enclosed.
    pub enclosed: Bytes,
}

impl Note {
    /// The payload of a local commit.
    pub fn encode(&self) -> Bytes {
        if self.reads.is_none() && !self.reads_allocator && self.enclosed.is_empty() {
            return Bytes::copy_from_slice(&[b'm', self.marks.to_byte()]);
        }
        let reads = self.reads.as_ref().map(PageSet::encode).unwrap_or_default();
        let complete = if self.reads.is_some() { COMPLETE } else { 0 };
        let allocator = if self.reads_allocator { ALLOCATOR } else { 0 };
        let mut out = BytesMut::with_capacity(7 + reads.len() + self.enclosed.len());
        out.put_slice(&[b'n', self.marks.to_byte(), complete | allocator]);
        out.put_u32_le(reads.len() as u32);
        out.extend_from_slice(&reads);
        out.extend_from_slice(&self.enclosed);
        out.freeze()
    }

    /// What a payload says. Safe on hostile bytes: what cannot be read says nothing.
    pub fn decode(payload: &Bytes) -> Note {
        let unknown = Note { marks: Marks::BOTH, ..Note::default() };
        match &payload[..] {
            [b'm', marks] => Note { marks: Marks::from_byte(*marks), ..Note::default() },
            [b'n', marks, flags, a, b, c, d, rest @ ..] => {
                let length = u32::from_le_bytes([*a, *b, *c, *d]) as usize;
                let Some((reads, enclosed)) = rest.split_at_checked(length) else { return unknown };
                let reads = match flags & COMPLETE {
                    0 => None,
                    _ => match PageSet::decode(reads) {
                        Ok(reads) => Some(reads),
                        Err(_) => return unknown,
                    },
                };
                Note {
                    marks: Marks::from_byte(*marks),
                    reads,
                    reads_allocator: flags & ALLOCATOR != 0,
                    enclosed: payload.slice_ref(enclosed),
                }
            }
            _ => unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_come_back_equal_and_damaged_ones_say_nothing() {
        for reads in [None, Some(PageSet::new()), Some(PageSet::from_ranges([2..=9, 40..=41]))] {
            for reads_allocator in [false, true] {
                for enclosed in [Bytes::new(), Bytes::from_static(b"note")] {
                    let marks = Marks { allocator: true, schema: false };
                    let note = Note { marks, reads: reads.clone(), reads_allocator, enclosed };
                    let payload = note.encode();
                    assert_eq!(Note::decode(&payload), note);
                    for cut in 0..payload.len().saturating_sub(note.enclosed.len()) {
                        assert_eq!(Note::decode(&payload.slice(..cut)).reads, None, "{cut}");
                    }
                }
            }
        }
        let unknown = Note { marks: Marks::BOTH, ..Note::default() };
        assert_eq!(Note::decode(&Bytes::from_static(b"x")), unknown);
        assert_eq!(Note::decode(&Bytes::from_static(b"n\x00\x01\x02\x00\x00\x00zz")), unknown);
    }
}
