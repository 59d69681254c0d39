//! The journal: batches in the order of their writing, in a file that is overwritten in place.
//!
//! A file that grows makes every fsync write the file system's own journal too; one that is
//! overwritten does not. So the file is of two *halves* of fixed size, filled in turns. When one is
//! full, writing goes on in the other, whose batches are in the table below by then
//! ([`super::journaled`]).
//!
//! | offset | bytes | holds |
//! |-------:|------:|-------|
//! |      0 |  4096 | what was withdrawn: magic `GJW1`, zero u32, number u64, salt u64, XXH3-128 of these; or zeroes |
//! |   4096 |  half | records |
//! | 4096 + half | half | records |
//!
//! A record begins on a block of 4096 bytes and ends with zeroes up to the next:
//!
//! | offset | bytes | field | meaning |
//! |-------:|------:|-------|---------|
//! |      0 |     4 | magic | `GJR1` |
//! |      4 |     4 | bytes | u32, of the body |
//! |      8 |     8 | number | u64, of the batch; from 1 |
//! |     16 |     8 | durable | u64: when this was written, every batch up to this number was on disk |
//! |     24 |     8 | salt | u64, random at each opening |
//! |     32 |    16 | before | the *check* of the record written before this one |
//! |     48 |    16 | hash | XXH3-128 of the body |
//! |     64 |    16 | check | XXH3-128 of the 64 bytes above |
//! |     80 |       | body | u32 count; then for each change space u8, key length u16, value length u32 (`FFFFFFFF`: removed), key, value |
//!
//! Little-endian. The file is as long as what was used of it; the rest of a half counts as zeroes.
//!
//! **Who believes what.** The table names the last batch that is in it, `applied`. Reading begins at
//! the half whose first record is the newest of those not later than `applied + 1`, and follows
//! `before` from record to record, into the other half at the end. A record counts if it follows the
//! one before it in the file and its number is at most `applied` or the next after what is known
//! already. The first that does not count ends the reading, and with it everything later.
//!
//! Invariants, each with its reason:
//!
//! - *What is known is a prefix.* Numbers have no gaps, in the table and the records together, so if a
//!   batch is there, all before it are. A batch that went to the table alone takes a number too: if the
//!   table loses it, what follows in the journal does not count.
//! - *What is on disk is never written again* until its half is used anew: the next record takes the
//!   next block, so that a power cut in the middle of it cannot reach what was acknowledged.
//! - *A half is used anew only when the table has all of it*, on disk if anything in it was synced; and
//!   nothing is synced while anything that is in neither half is in the table and not on its disk.
//! - *What was not believed once is never believed later.* `check` covers `before` and the salt, so a
//!   record of an earlier opening follows nothing that is written now. Where that is not enough (at
//!   the end of what is known, and at the beginning of the other half) it is erased on disk before
//!   anything is written.
//! - *A torn end and damage are told apart by `durable`*: if any whole header says that a batch was on
//!   disk which is not known now, it was acknowledged, and opening is refused. Only damage to the last
//!   synced batches, after which nothing was written, looks like a torn end.
//! - *A batch whose write or fsync failed is withdrawn*: its number and this opening's salt are put into
//!   the first block and synced; from then on it and what this opening wrote after it do not count. If
//!   that fails as well, nothing on this disk can tell, and the error says that the outcome is unknown.
//!   What is read back from the system's cache after a failed fsync may not be on disk, though a new
//!   fsync succeeds; so each opening writes everything that counts once more, to be synced with the
//!   first durable batch at the latest (the process may have ended before it withdrew), and before the
//!   withdrawal is taken away. (Taking it away may fail in the same manner, which does no harm: other
//!   openings have other salts.)
//!
//! A failed write or fsync ends all writing here; the caller keeps to that.

use std::ops::Range;

use bytes::{Bytes, BytesMut};

use super::{Batch, ByteFile, Space, StoreError};

/// Records and halves are multiples of it, and no two records share one.
pub(crate) const BLOCK: u64 = 4096;
/// Before the body.
const HEADER: usize = 80;
const MAGIC: [u8; 4] = *b"GJR1";
const WITHDRAWN: [u8; 4] = *b"GJW1";
/// The file grows by what it has, between these, so that a small replica stays small.
const GROWTH: Range<u64> = 64 << 10..1 << 20;
const REMOVED: u32 = u32::MAX;

type Check = [u8; 16];

/// One change of a batch, its bytes being views of the record.
pub(crate) type Change = (Space, Bytes, Option<Bytes>);

/// The journal's file.
pub(crate) trait JournalFile: ByteFile {
    /// Waits until everything written is on disk.
    fn sync(&self) -> Result<(), StoreError>;
}

/// Why a journal could not be opened.
#[derive(Debug)]
pub(crate) enum JournalError {
    /// Its file failed.
    Store(StoreError),
    /// Batch `.0` was on disk, and is not there any more.
    Lost(u64),
    /// Batch `.0` is whole and makes no sense.
    Malformed(u64),
}

impl From<StoreError> for JournalError {
    fn from(error: StoreError) -> JournalError {
        JournalError::Store(error)
    }
}

/// Finds what a disk tears or damages, at the speed of memory; it is no defence against a person, who
/// could write a whole journal.
fn check(bytes: &[u8]) -> Check {
    xxhash_rust::xxh3::xxh3_128(bytes).to_le_bytes()
}

/// A batch as it will lie in the journal, but for what only its place decides.
pub(crate) struct Record {
    bytes: BytesMut,
    changes: Vec<(Space, Range<usize>, Option<Range<usize>>)>,
}

/// How many bytes the record of `batch` would have.
pub(crate) fn record_bytes(batch: &Batch) -> u64 {
    (HEADER + body_bytes(batch)).next_multiple_of(BLOCK as usize) as u64
}

fn body_bytes(batch: &Batch) -> usize {
    let change = |(_, key, value): &(Space, Bytes, Option<Bytes>)| {
        7 + key.len() + value.as_ref().map_or(0, Bytes::len)
    };
    4 + batch.changes.iter().map(change).sum::<usize>()
}

impl Record {
    /// Encodes and hashes `batch`, whose keys were checked and whose record is below 2 GiB.
    pub(crate) fn encode(batch: &Batch) -> Record {
        let body = body_bytes(batch);
        let padded = (HEADER + body).next_multiple_of(BLOCK as usize);
        let mut bytes = BytesMut::with_capacity(padded);
        bytes.extend_from_slice(&[0; HEADER]);
        bytes.extend_from_slice(&(batch.changes.len() as u32).to_le_bytes());
        let mut changes = Vec::with_capacity(batch.changes.len());
        for (space, key, value) in &batch.changes {
            bytes.extend_from_slice(&[space.tag()]);
            bytes.extend_from_slice(&(key.len() as u16).to_le_bytes());
            let value_bytes = value.as_ref().map_or(REMOVED, |value| value.len() as u32);
            bytes.extend_from_slice(&value_bytes.to_le_bytes());
            let key_at = bytes.len();
            bytes.extend_from_slice(key);
            let value_at = bytes.len();
            bytes.extend_from_slice(value.as_deref().unwrap_or_default());
            let value = value.as_ref().map(|_| value_at..bytes.len());
            changes.push((*space, key_at..value_at, value));
        }
        let hash = check(&bytes[HEADER..]);
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4..8].copy_from_slice(&(body as u32).to_le_bytes());
        bytes[48..64].copy_from_slice(&hash);
        bytes.resize(padded, 0);
        Record { bytes, changes }
    }

    /// What it takes of a half.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn seal(&mut self, number: u64, durable: u64, salt: u64, before: &Check) -> Check {
        self.bytes[8..16].copy_from_slice(&number.to_le_bytes());
        self.bytes[16..24].copy_from_slice(&durable.to_le_bytes());
        self.bytes[24..32].copy_from_slice(&salt.to_le_bytes());
        self.bytes[32..48].copy_from_slice(before);
        let sealed = check(&self.bytes[..64]);
        self.bytes[64..HEADER].copy_from_slice(&sealed);
        sealed
    }

    /// Its changes, in order.
    pub(crate) fn into_changes(self) -> impl Iterator<Item = Change> {
        let bytes = self.bytes.freeze();
        self.changes
            .into_iter()
            .map(move |(space, key, value)| (space, bytes.slice(key), value.map(|value| bytes.slice(value))))
    }
}

/// A whole header.
#[derive(Debug, Clone, Copy)]
struct Header {
    body: usize,
    number: u64,
    durable: u64,
    salt: u64,
    before: Check,
    hash: Check,
    check: Check,
}

impl Header {
    fn is_withdrawn(&self, withdrawn: Option<Withdrawn>) -> bool {
        withdrawn.is_some_and(|withdrawn| self.salt == withdrawn.salt && self.number >= withdrawn.number)
    }
}

/// From batch `number` on, what the opening of this salt wrote does not count.
#[derive(Debug, Clone, Copy)]
struct Withdrawn {
    number: u64,
    salt: u64,
}

/// The header at `at`, if there is one and it is whole.
fn header(half: &[u8], at: usize) -> Option<Header> {
    let bytes: &[u8; HEADER] = half.get(at..)?.first_chunk()?;
    if bytes[..4] != MAGIC {
        return None;
    }
    let u64_at = |at: usize| bytes[at..].first_chunk().map(|bytes| u64::from_le_bytes(*bytes));
    let check_at = |at: usize| bytes[at..].first_chunk::<16>().copied();
    let header = Header {
        body: u32::from_le_bytes(*bytes[4..].first_chunk()?) as usize,
        number: u64_at(8)?,
        durable: u64_at(16)?,
        salt: u64_at(24)?,
        before: check_at(32)?,
        hash: check_at(48)?,
        check: check_at(64)?,
    };
    (check(&bytes[..64]) == header.check).then_some(header)
}

/// The record at `at`, if it is whole: its header and body.
fn record(half: &[u8], at: usize) -> Option<(Header, &[u8])> {
    let header = header(half, at)?;
    let body = half.get(at + HEADER..)?.get(..header.body)?;
    (check(body) == header.hash).then_some((header, body))
}

/// The changes that a body holds; `None` if it is not one.
fn decode(body: &[u8]) -> Option<Vec<Change>> {
    let body = Bytes::copy_from_slice(body);
    let mut at = 0;
    let mut take = |bytes: usize| {
        let end = at + bytes;
        let taken = (end <= body.len()).then(|| body.slice(at..end));
        at = end;
        taken
    };
    let count = u32::from_le_bytes(*take(4)?.first_chunk()?);
    let mut changes = Vec::new();
    for _ in 0..count {
        let head = take(7)?;
        let space = Space::of_tag(*head.first()?)?;
        let key = u16::from_le_bytes(*head[1..].first_chunk()?);
        let value = u32::from_le_bytes(*head[3..].first_chunk()?);
        let key = take(usize::from(key)).filter(|key| !key.is_empty())?;
        let value = if value == REMOVED { None } else { Some(take(value as usize)?) };
        changes.push((space, key, value));
    }
    (at == body.len()).then_some(changes)
}

/// What is in the journal and not in the table.
#[derive(Debug, Default)]
pub(crate) struct Recovered {
    /// Batches, in order.
    pub(crate) batches: Vec<Vec<Change>>,
    /// Whether they begin in the half that is not written to now, so that it is not free.
    pub(crate) in_both: bool,
}

/// An open journal. One writer at a time.
#[derive(Debug)]
pub(crate) struct Journal<F> {
    file: F,
    half_bytes: u64,
    salt: u64,
    /// Where the next record goes: 0 or 1, and the offset in that half.
    half: usize,
    at: u64,
    /// How long the file is, in whole blocks.
    len: u64,
    /// The last batch's number, here or in the table.
    last: u64,
    /// The last record's.
    check: Check,
    /// Every batch up to this number is on disk.
    durable: u64,
    /// Whether anything may have been written since the last sync.
    dirty: bool,
}

impl<F: JournalFile> Journal<F> {
    /// Opens the journal in `file`, which may be empty. `applied` is the last batch in the table. The
    /// halves' size must be what it was, a multiple of [`BLOCK`]; `salt` must be new each time.
    pub(crate) fn open(
        file: F,
        half_bytes: u64,
        applied: u64,
        salt: u64,
    ) -> Result<(Journal<F>, Recovered), JournalError> {
        let len = file.len()?.min(BLOCK + 2 * half_bytes) / BLOCK * BLOCK;
        let mut journal = Journal {
            file,
            half_bytes,
            salt,
            half: 0,
            at: 0,
            len,
            last: applied,
            check: Check::default(),
            durable: 0,
            // What an earlier process wrote may be in the system's cache alone.
            dirty: true,
        };
        let halves = [journal.read_half(0)?, journal.read_half(1)?];
        let withdrawn = journal.read_withdrawn()?;
        let walk = Walk::new(&halves, applied, withdrawn)?;
        journal.last = walk.last;
        (journal.half, journal.at, journal.check) = (walk.half, walk.at as u64, walk.check);
        let durable = halves.iter().flat_map(|half| {
            (0..half.len())
                .step_by(BLOCK as usize)
                .filter_map(|at| header(half, at))
                .map(|found| found.durable)
        });
        if durable.max().is_some_and(|durable| durable > walk.last) {
            return Err(JournalError::Lost(walk.last + 1));
        }
        // The cache may show what a failed fsync left out.
        for (half, bytes) in halves.iter().enumerate() {
            let counts = if half == walk.half { walk.at } else { walk.ended_in_other };
            if counts > 0 {
                journal.file.write(journal.offset(half), &bytes[..counts])?;
            }
        }
        journal.erase_the_disbelieved(&halves, withdrawn.is_some())?;
        if withdrawn.is_some() {
            journal.file.sync()?;
            journal.file.write(0, &[0; BLOCK as usize])?;
            journal.file.sync()?;
        }
        Ok((journal, Recovered { batches: walk.batches, in_both: walk.in_both }))
    }

    fn offset(&self, half: usize) -> u64 {
        BLOCK + half as u64 * self.half_bytes
    }

    fn read_half(&self, half: usize) -> Result<Vec<u8>, StoreError> {
        let bytes = self.len.saturating_sub(self.offset(half)).min(self.half_bytes);
        let mut into = vec![0; bytes as usize];
        self.file.read(self.offset(half), &mut into)?;
        Ok(into)
    }

    fn read_withdrawn(&self) -> Result<Option<Withdrawn>, StoreError> {
        let mut block = [0; 40];
        self.file.read(0, &mut block)?;
        let whole = block[..4] == WITHDRAWN && check(&block[..24]) == block[24..];
        let u64_at = |at: usize| block[at..].first_chunk().map(|bytes| u64::from_le_bytes(*bytes));
        let withdrawn = u64_at(8).zip(u64_at(16)).map(|(number, salt)| Withdrawn { number, salt });
        Ok(withdrawn.filter(|_| whole))
    }

    /// Erases later batches that do not count, where a reader could come to think that they do. `again`:
    /// an earlier opening may have tried, and failed to sync, so that the cache alone shows zeroes.
    fn erase_the_disbelieved(&mut self, halves: &[Vec<u8>; 2], again: bool) -> Result<(), StoreError> {
        let mut erased = false;
        for (half, at) in [(self.half, self.at), (1 - self.half, 0)] {
            let there = at < halves[half].len() as u64;
            if header(&halves[half], at as usize).map_or(again && there, |found| found.number > self.last) {
                self.file.write(self.offset(half) + at, &[0; BLOCK as usize])?;
                erased = true;
            }
        }
        if erased { self.file.sync() } else { Ok(()) }
    }

    /// The last batch's number, wherever it went.
    pub(crate) fn last(&self) -> u64 {
        self.last
    }

    /// Whether a record of `bytes` fits into the half in use.
    pub(crate) fn has_room(&self, bytes: u64) -> bool {
        self.at + bytes <= self.half_bytes
    }

    /// Goes on in the other half. The table has everything in it on disk.
    pub(crate) fn switch(&mut self) {
        (self.half, self.at) = (1 - self.half, 0);
    }

    /// Makes the file long enough for a record of `bytes` in the half in use. On an error nothing
    /// changed.
    pub(crate) fn make_room(&mut self, bytes: u64) -> Result<(), StoreError> {
        self.grow(self.offset(self.half) + self.at + bytes)
    }

    /// Writes `record` without waiting for the disk; there must be room. On an error it may be there
    /// nevertheless, or on the disk: only its withdrawal makes that sure.
    pub(crate) fn append(&mut self, record: &mut Record) -> Result<(), StoreError> {
        let at = self.offset(self.half) + self.at;
        let sealed = record.seal(self.last + 1, self.durable, self.salt, &self.check);
        self.dirty = true;
        self.file.write(at, &record.bytes)?;
        self.at += record.bytes();
        self.last += 1;
        self.check = sealed;
        Ok(())
    }

    /// Takes a number for a batch that goes to the table alone.
    pub(crate) fn skip(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    /// The table has everything up to batch `number` on disk.
    pub(crate) fn table_is_durable(&mut self, number: u64) {
        self.durable = self.durable.max(number);
    }

    /// Waits until everything appended is on disk. What went to the table alone must be there already.
    pub(crate) fn sync(&mut self) -> Result<(), StoreError> {
        if self.dirty {
            self.file.sync()?;
            self.dirty = false;
        }
        self.durable = self.last;
        Ok(())
    }

    /// After a failed append or sync: batch `number` and what is after it will not count when this is opened
    /// again.
    pub(crate) fn withdraw(&self, number: u64) -> Result<(), StoreError> {
        let mut block = [0; BLOCK as usize];
        block[..4].copy_from_slice(&WITHDRAWN);
        block[8..16].copy_from_slice(&number.to_le_bytes());
        block[16..24].copy_from_slice(&self.salt.to_le_bytes());
        let sealed = check(&block[..24]);
        block[24..40].copy_from_slice(&sealed);
        self.file.write(0, &block)?;
        self.file.sync()
    }

    /// Makes the file `end` bytes long or more, of zeroes that take room on the disk.
    fn grow(&mut self, end: u64) -> Result<(), StoreError> {
        if end <= self.len {
            return Ok(());
        }
        let step = self.len.clamp(GROWTH.start, GROWTH.end);
        let whole = BLOCK + 2 * self.half_bytes;
        let to = (self.len + step).max(end).next_multiple_of(BLOCK).min(whole);
        self.file.write(self.len, &vec![0; (to - self.len) as usize])?;
        self.len = to;
        Ok(())
    }
}

/// The reading of a journal: what counts, and where it ends.
struct Walk {
    applied: u64,
    batches: Vec<Vec<Change>>,
    last: u64,
    half: usize,
    at: usize,
    check: Check,
    in_both: bool,
    /// How far the half that it came from counts; 0 if it came from nowhere.
    ended_in_other: usize,
}

impl Walk {
    fn new(halves: &[Vec<u8>; 2], applied: u64, withdrawn: Option<Withdrawn>) -> Result<Walk, JournalError> {
        let mut walk = Walk {
            applied,
            batches: Vec::new(),
            last: applied,
            half: 0,
            at: 0,
            check: Check::default(),
            in_both: false,
            ended_in_other: 0,
        };
        let first = |half: usize| {
            let first = record(&halves[half], 0)?.0;
            (first.number <= applied + 1 && !first.is_withdrawn(withdrawn)).then_some((
                first.number,
                half,
                first.before,
            ))
        };
        let Some((_, half, before)) = first(0).max(first(1)) else { return Ok(walk) };
        (walk.half, walk.check) = (half, before);
        while walk.step(&halves[walk.half], walk.half, walk.at, withdrawn)? {}
        let (half, at) = (walk.half, walk.at);
        let begun = !walk.batches.is_empty();
        if walk.step(&halves[1 - half], 1 - half, 0, withdrawn)? {
            (walk.in_both, walk.ended_in_other) = (begun, at);
            while walk.step(&halves[walk.half], walk.half, walk.at, withdrawn)? {}
        }
        Ok(walk)
    }

    /// Takes the record at `at` of `half`, if it counts.
    fn step(
        &mut self,
        bytes: &[u8],
        half: usize,
        at: usize,
        withdrawn: Option<Withdrawn>,
    ) -> Result<bool, JournalError> {
        let Some((header, body)) = record(bytes, at) else { return Ok(false) };
        let next = header.number == self.last + 1;
        if header.before != self.check
            || header.is_withdrawn(withdrawn)
            || !(header.number <= self.applied || next)
        {
            return Ok(false);
        }
        if next {
            self.batches.push(decode(body).ok_or(JournalError::Malformed(header.number))?);
            self.last = header.number;
        }
        (self.half, self.check) = (half, header.check);
        self.at = at + (HEADER + header.body).next_multiple_of(BLOCK as usize);
        Ok(true)
    }
}

#[cfg(test)]
mod tests;
