//! The committed frames of a write-ahead log, read from the file itself.
//!
//! Layout, all big-endian (<https://sqlite.org/fileformat2.html#the_write_ahead_log>):
//!
//! | offset | bytes | field |
//! |-------:|------:|-------|
//! |      0 |     4 | magic `377f0682`, or `…83` where checksums are over big-endian words |
//! |      4 |     4 | format version |
//! |      8 |     4 | page size |
//! |     12 |     4 | checkpoint sequence number |
//! |     16 |     8 | salts: they name this generation of the WAL |
//! |     24 |     8 | checksum of the first 24 bytes |
//!
//! then frames: page number, page count after a commit (0 in other frames), the salts, a checksum that
//! runs on from the frame before, and the page. Which frames are committed the WAL's index says (the
//! `-shm` file), which SQLite itself goes by: [`Index`].
//!
//! Invariant: a frame counts only where the salts are its generation's and the running checksum holds,
//! so a WAL that is overwritten under us is noticed, and never mixed.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

const HEADER_BYTES: u64 = 32;
const FRAME_HEADER_BYTES: u64 = 24;

/// What the WAL's index says: how many frames of which generation are committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Index {
    /// The generation.
    pub salts: [u8; 8],
    /// Its committed frames.
    pub frames: u32,
    /// The database's pages after the last of them.
    pub pages: u32,
}

impl Index {
    /// Reads the index's header; `None` while a writer is changing it.
    pub fn read(shm: &File) -> io::Result<Option<Index>> {
        let mut copies = [0; 96];
        shm.read_exact_at(&mut copies, 0)?;
        let (one, two) = copies.split_at(48);
        if one != two || one[12] == 0 {
            return Ok(None);
        }
        let word = |at: usize| u32::from_ne_bytes([one[at], one[at + 1], one[at + 2], one[at + 3]]);
        let mut salts = [0; 8];
        salts.copy_from_slice(&one[32..40]);
        Ok(Some(Index { salts, frames: word(16), pages: word(20) }))
    }
}

/// Committed frames read so far, and where reading goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frames {
    salts: [u8; 8],
    count: u32,
    checksum: (u32, u32),
    big_endian: bool,
    page_bytes: usize,
    /// Page → where its newest version lies in the WAL.
    newest: HashMap<u32, u64>,
}

impl Frames {
    /// Begins with the WAL's header. `None` where the file is not (any more) of generation `salts`.
    pub fn begin(wal: &File, salts: [u8; 8], page_bytes: usize) -> io::Result<Option<Frames>> {
        let Some(header) = header(wal)? else { return Ok(None) };
        let word =
            |at: usize| u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let big_endian = match word(0) {
            0x377f_0682 => false,
            0x377f_0683 => true,
            _ => return Ok(None),
        };
        let checksum = run(big_endian, (0, 0), &header[..24]);
        let page_size = if word(8) == 1 { 65536 } else { word(8) as usize };
        if header[16..24] != salts || checksum != (word(24), word(28)) || page_size != page_bytes {
            return Ok(None);
        }
        Ok(Some(Frames { salts, count: 0, checksum, big_endian, page_bytes, newest: HashMap::new() }))
    }

    /// Whether they are of this generation.
    pub fn is_of(&self, salts: [u8; 8]) -> bool {
        self.salts == salts
    }

    /// How many there are.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// Reads on to frame `upto`; answers the pages of the frames read. `None` where the WAL does not go
    /// so far in this generation: it was restarted.
    pub fn extend(&mut self, wal: &File, upto: u32) -> io::Result<Option<Vec<u32>>> {
        let frame_bytes = FRAME_HEADER_BYTES + self.page_bytes as u64;
        let mut frame = vec![0; frame_bytes as usize];
        let mut pages = Vec::new();
        while self.count < upto {
            let at = HEADER_BYTES + u64::from(self.count) * frame_bytes;
            match wal.read_exact_at(&mut frame, at) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
                Err(error) => return Err(error),
            }
            let word =
                |at: usize| u32::from_be_bytes([frame[at], frame[at + 1], frame[at + 2], frame[at + 3]]);
            let checksum = run(self.big_endian, self.checksum, &frame[..8]);
            let checksum = run(self.big_endian, checksum, &frame[FRAME_HEADER_BYTES as usize..]);
            if frame[8..16] != self.salts || checksum != (word(16), word(20)) {
                return Ok(None);
            }
            self.checksum = checksum;
            self.count += 1;
            self.newest.insert(word(0), at + FRAME_HEADER_BYTES);
            pages.push(word(0));
        }
        Ok(Some(pages))
    }

    /// Where page `page` lies in the WAL, if there.
    pub fn offset(&self, page: u32) -> Option<u64> {
        self.newest.get(&page).copied()
    }

    /// Whether the WAL is still of this generation.
    pub fn holds(&self, wal: &File) -> io::Result<bool> {
        Ok(header(wal)?.is_some_and(|header| header[16..24] == self.salts))
    }
}

fn header(wal: &File) -> io::Result<Option<[u8; HEADER_BYTES as usize]>> {
    let mut header = [0; HEADER_BYTES as usize];
    match wal.read_exact_at(&mut header, 0) {
        Ok(()) => Ok(Some(header)),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(error),
    }
}

/// The running checksum over a multiple of eight bytes.
fn run(big_endian: bool, (mut s0, mut s1): (u32, u32), bytes: &[u8]) -> (u32, u32) {
    let word = |bytes: &[u8]| {
        let bytes = [bytes[0], bytes[1], bytes[2], bytes[3]];
        if big_endian { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) }
    };
    for pair in bytes.chunks_exact(8) {
        s0 = s0.wrapping_add(word(&pair[..4])).wrapping_add(s1);
        s1 = s1.wrapping_add(word(&pair[4..])).wrapping_add(s0);
    }
    (s0, s1)
}
