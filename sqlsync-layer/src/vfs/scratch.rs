//! Journals and temporary files: in memory up to a budget, beyond it in a file without a name; gone
//! when closed.
//!
//! A rollback journal serves only rollback within the process: a crash leaves nothing to roll back,
//! because nothing was published. One thing in a journal concerns us: the record that names a
//! super-journal, which SQLite writes when a transaction changes more than one database file. Such a
//! transaction is refused.

use std::io;
use std::path::Path;

use super::spill::file::File;

/// The last eight bytes of a super-journal record: SQLite's journal magic, written alone.
const JOURNAL_MAGIC: [u8; 8] = [0xd9, 0xd5, 0x05, 0xf9, 0x20, 0xa1, 0x63, 0xd7];

/// What a journal is given at its first write.
const FIRST_BYTES: usize = 16 << 10;

/// A temporary file.
#[derive(Debug)]
pub(super) enum Scratch {
    Memory(Vec<u8>),
    Spilled { file: File, len: usize },
}

impl Default for Scratch {
    fn default() -> Scratch {
        Scratch::Memory(Vec::new())
    }
}

impl Scratch {
    pub(super) fn len(&self) -> usize {
        match self {
            Scratch::Memory(bytes) => bytes.len(),
            Scratch::Spilled { len, .. } => *len,
        }
    }

    pub(super) fn read(&self, offset: usize, out: &mut [u8]) -> io::Result<usize> {
        match self {
            Scratch::Memory(bytes) => {
                let from = bytes.get(offset..).unwrap_or_default();
                let count = from.len().min(out.len());
                out[..count].copy_from_slice(&from[..count]);
                Ok(count)
            }
            Scratch::Spilled { file, len } => {
                let count = len.saturating_sub(offset).min(out.len());
                file.read_at(&mut out[..count], offset as u64)?;
                Ok(count)
            }
        }
    }

    /// Writes; moves to a file in `dir` where it would be longer than `budget` bytes in memory.
    pub(super) fn write(
        &mut self,
        offset: usize,
        data: &[u8],
        budget: usize,
        dir: Option<&Path>,
    ) -> io::Result<()> {
        let end = offset.saturating_add(data.len());
        if let Scratch::Memory(bytes) = self {
            if end <= budget.max(bytes.len()) {
                if bytes.capacity() == 0 {
                    // The journal of a small transaction, at once.
                    bytes.reserve(FIRST_BYTES.min(budget));
                }
                if bytes.len() < end {
                    bytes.resize(end, 0);
                }
                bytes[offset..end].copy_from_slice(data);
                return Ok(());
            }
            let file = File::new(dir)?;
            file.write_at(bytes, 0)?;
            *self = Scratch::Spilled { file, len: bytes.len() };
        }
        if let Scratch::Spilled { file, len } = self {
            file.write_at(data, offset as u64)?;
            *len = end.max(*len);
        }
        Ok(())
    }

    pub(super) fn truncate(&mut self, size: usize) -> io::Result<()> {
        match self {
            Scratch::Memory(bytes) => bytes.resize(size, 0),
            Scratch::Spilled { file, len } => {
                file.set_len(size as u64)?;
                *len = size;
            }
        }
        Ok(())
    }
}

/// Whether a write to a journal ends a super-journal record.
pub(super) fn names_super_journal(offset: usize, data: &[u8]) -> bool {
    offset > 0 && data == JOURNAL_MAGIC
}
