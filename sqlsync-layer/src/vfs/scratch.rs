//! Journals and temporary files: bytes in memory, gone when closed.
//!
//! A rollback journal serves only rollback within the process: a crash leaves nothing to roll back,
//! because nothing was published. One thing in a journal concerns us: the record that names a
//! super-journal, which SQLite writes when a transaction changes more than one database file. Such a
//! transaction is refused.

/// The last eight bytes of a super-journal record: SQLite's journal magic, written alone.
const JOURNAL_MAGIC: [u8; 8] = [0xd9, 0xd5, 0x05, 0xf9, 0x20, 0xa1, 0x63, 0xd7];

/// The longest such file: they lie in memory.
const SCRATCH_BYTES_MAX: usize = 1 << 30;

/// The file would be longer than it may be.
#[derive(Debug)]
pub(super) struct Full;

/// A file in memory.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    bytes: Vec<u8>,
}

impl Scratch {
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    pub(super) fn read(&self, offset: usize, out: &mut [u8]) -> usize {
        let from = self.bytes.get(offset..).unwrap_or_default();
        let count = from.len().min(out.len());
        out[..count].copy_from_slice(&from[..count]);
        count
    }

    pub(super) fn write(&mut self, offset: usize, data: &[u8]) -> Result<(), Full> {
        let end = offset.saturating_add(data.len());
        if end > SCRATCH_BYTES_MAX {
            return Err(Full);
        }
        if self.bytes.len() < end {
            self.bytes.resize(end, 0);
        }
        self.bytes[offset..end].copy_from_slice(data);
        Ok(())
    }

    pub(super) fn truncate(&mut self, size: usize) {
        self.bytes.resize(size, 0);
    }
}

/// Whether a write to a journal ends a super-journal record.
pub(super) fn names_super_journal(offset: usize, data: &[u8]) -> bool {
    offset > 0 && data == JOURNAL_MAGIC
}
