//! A [`ByteFile`] on disk: cached pages, and the files that a person puts and gets.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use super::journal::JournalFile;
use super::{ByteFile, StoreError};

/// An open file.
#[derive(Debug)]
pub struct DiskFile {
    file: File,
    name: String,
}

impl DiskFile {
    /// Opens the file at `path` for reading and writing; makes it, and the directories above it, where
    /// they are not there.
    pub fn open(path: &Path) -> Result<DiskFile, StoreError> {
        let open = || {
            path.parent().map_or(Ok(()), fs::create_dir_all)?;
            File::options().read(true).write(true).create(true).truncate(false).open(path)
        };
        let name = path.display().to_string();
        match open() {
            Ok(file) => Ok(DiskFile { file, name }),
            Err(error) => Err(StoreError::Failed { dir: name, message: error.to_string() }),
        }
    }

    /// Waits until everything written is on disk.
    pub fn sync(&self) -> Result<(), StoreError> {
        self.file.sync_all().map_err(|e| self.failed(e))
    }

    fn failed(&self, error: io::Error) -> StoreError {
        StoreError::Failed { dir: self.name.clone(), message: error.to_string() }
    }
}

impl JournalFile for DiskFile {
    /// The bytes and the length; not the times, which nobody needs and which cost as much again.
    fn sync(&self) -> Result<(), StoreError> {
        self.file.sync_data().map_err(|e| self.failed(e))
    }
}

impl ByteFile for DiskFile {
    fn len(&self) -> Result<u64, StoreError> {
        self.file.metadata().map(|found| found.len()).map_err(|e| self.failed(e))
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> Result<usize, StoreError> {
        let mut had = 0;
        while had < into.len() {
            match self.file.read_at(&mut into[had..], offset + had as u64) {
                Ok(0) => break,
                Ok(more) => had += more,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(self.failed(e)),
            }
        }
        Ok(had)
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), StoreError> {
        self.file.write_all_at(bytes, offset).map_err(|e| self.failed(e))
    }

    fn set_len(&self, len: u64) -> Result<(), StoreError> {
        self.file.set_len(len).map_err(|e| self.failed(e))
    }
}
