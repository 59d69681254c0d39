//! What a power cut leaves of fjall's journals, made fit for fjall to read.
//!
//! A disk writes what was not synced in any order, so that a batch's end may be there and its middle
//! not. fjall refuses such a journal for ever; where it does not understand an entry, it cuts its file;
//! and a length that is nonsense it believes. So its journals are read here first, and it gets only
//! batches that are whole.
//!
//! `fjall/N.jnl` holds batches, one after the other; after the last one there may be zeroes, because the
//! file is made longer than it is needed:
//!
//! | entry | bytes |
//! |-------|-------|
//! | start | `01`, u32 count of changes, u64 fjall's number |
//! | put or removal | `02`, u8 kind, u8 compression, u64 keyspace, u16 key length, u32 value length, u32 length here, key, value |
//! | clear | `04`, u64 keyspace |
//! | end | `03`, u64 XXH3-64 of the changes' bytes, `FJL` `03` |
//!
//! Only the newest file is written to; fjall syncs one before it goes on in the next. It also syncs
//! before it moves what is in memory to its tree. So a power cut tears the newest file alone, behind all
//! that was synced, and what lies before the first torn batch is a prefix of all batches.
//!
//! Invariants: nothing is cut off that was not copied to `DIR/torn-FILE-OFFSET` first, copy and entry
//! synced; the copy stays until the journal above found, by its numbers, that nothing of it was durable.
//! An older file that is not whole is damage, and nothing is changed.

use std::fs::{self, File};
use std::io::{self, BufReader, ErrorKind, Read, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::Xxh3;

const START: u8 = 1;
const ITEM: u8 = 2;
const END: u8 = 3;
const CLEAR: u8 = 4;
const TRAILER: [u8; 4] = [b'F', b'J', b'L', 3];
/// How the copies' names begin.
const COPIES: &str = "torn-";
const PIECE: usize = 64 << 10;

/// Why fjall's journals could not be made fit.
#[derive(Debug)]
pub(super) enum TornError {
    Io(io::Error),
    /// A file that was synced is damaged behind this many bytes.
    Damaged {
        file: String,
        at: u64,
    },
}

impl From<io::Error> for TornError {
    fn from(error: io::Error) -> TornError {
        TornError::Io(error)
    }
}

/// Cuts off what is torn at the end of the newest journal in `dir/fjall`, after a copy into `dir`. Reads
/// all journals, as fjall will again.
pub(super) fn cut(dir: &Path) -> Result<(), TornError> {
    let mut journals = journals(&dir.join("fjall"))?;
    let Some((_, newest)) = journals.pop() else { return Ok(()) };
    for (number, path) in journals {
        let mut file = File::open(path)?;
        let at = whole(&mut file)?;
        if used(&mut file, at)? > at {
            return Err(TornError::Damaged { file: format!("fjall/{number}.jnl"), at });
        }
    }
    let mut file = File::options().read(true).write(true).open(&newest)?;
    let at = whole(&mut file)?;
    let end = used(&mut file, at)?;
    if end > at {
        let stem = newest.file_stem().unwrap_or_default().to_string_lossy();
        let copy = dir.join(format!("{COPIES}{stem}-{at}"));
        file.seek(SeekFrom::Start(at))?;
        let mut into = File::create(&copy)?;
        io::copy(&mut (&mut file).take(end - at), &mut into)?;
        into.sync_all()?;
        File::open(dir)?.sync_all()?;
        file.set_len(at)?;
        file.sync_all()?;
        tracing::warn!(dir = %dir.display(), bytes = end - at, "a write to the local store's table was torn; it is cut off");
    }
    Ok(())
}

/// The copies in `dir` of what was cut off.
pub(super) fn copies(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut copies = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(COPIES) {
            copies.push(entry.path());
        }
    }
    Ok(copies)
}

/// fjall's journals in the order of their numbers.
fn journals(fjall: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(fjall)? {
        let path = entry?.path();
        // Names that are no number fjall itself refuses.
        let number = path.file_name().and_then(|name| name.to_str()?.strip_suffix(".jnl")?.parse().ok());
        found.extend(number.map(|number| (number, path)));
    }
    found.sort();
    Ok(found)
}

/// Up to where `file` holds whole batches.
pub(super) fn whole(file: &mut File) -> io::Result<u64> {
    file.seek(SeekFrom::Start(0))?;
    let mut reader = BufReader::with_capacity(PIECE, file);
    let mut end = 0;
    loop {
        match batch(&mut reader) {
            Ok(Some(bytes)) => end += bytes,
            Ok(None) => return Ok(end),
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(end),
            Err(error) => return Err(error),
        }
    }
}

/// Up to where there is anything but zeroes from `at` on; `at` if there is not.
fn used(file: &mut File, at: u64) -> io::Result<u64> {
    file.seek(SeekFrom::Start(at))?;
    let (mut piece, zeroes) = (vec![0; PIECE], vec![0; PIECE]);
    let (mut position, mut end) = (at, at);
    loop {
        let had = match file.read(&mut piece) {
            Ok(0) => return Ok(end),
            Ok(had) => had,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        if piece[..had] != zeroes[..had] {
            let last = piece[..had].iter().rposition(|byte| *byte != 0).unwrap_or_default();
            end = position + last as u64 + 1;
        }
        position += had as u64;
    }
}

fn take<const N: usize>(reader: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    reader.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// How long the next batch is; `None` if it is not whole.
fn batch(reader: &mut impl Read) -> io::Result<Option<u64>> {
    if take(reader)? != [START] {
        return Ok(None);
    }
    let count = u32::from_le_bytes(take(reader)?);
    let _number: [u8; 8] = take(reader)?;
    let mut bytes = 13;
    let mut hash = Xxh3::new();
    let mut piece = vec![0; PIECE];
    for _ in 0..count {
        let tag = take(reader)?;
        hash.update(&tag);
        match tag {
            [ITEM] => {
                let head: [u8; 10] = take(reader)?;
                let (key, value, here): ([u8; 2], [u8; 4], [u8; 4]) =
                    (take(reader)?, take(reader)?, take(reader)?);
                for part in [&head[..], &key, &value, &here] {
                    hash.update(part);
                }
                let mut left = u64::from(u16::from_le_bytes(key)) + u64::from(u32::from_le_bytes(here));
                bytes += 21 + left;
                while left > 0 {
                    let some = &mut piece[..left.min(PIECE as u64) as usize];
                    reader.read_exact(some)?;
                    hash.update(some);
                    left -= some.len() as u64;
                }
            }
            [CLEAR] => {
                hash.update(&take::<8>(reader)?);
                bytes += 9;
            }
            _ => return Ok(None),
        }
    }
    let tag: [u8; 1] = take(reader)?;
    let expected = u64::from_le_bytes(take(reader)?);
    let trailer: [u8; 4] = take(reader)?;
    let is_whole = tag == [END] && trailer == TRAILER && expected == hash.digest();
    Ok(is_whole.then_some(bytes + 13))
}
