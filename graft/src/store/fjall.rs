//! The store in a directory: a journal, and a table in fjall below it.
//!
//! The journal ([`super::journal`]) is what a durable write waits for, one `fdatasync` of blocks that
//! are overwritten in place. The table takes over what the journal has to make room of
//! ([`super::journaled`]): fjall, a log-structured store, with all spaces in one tree of its own. A
//! key there is the space's byte and the key; the byte 0 alone is the number of the last batch.
//!
//! Reads go through a snapshot, always: what a fjall keyspace reads by itself is the newest entry
//! of each key, so a scan beside a writer sees half of its batch (it did, in the conformance suite).
//!
//! Many volumes share one store, so its memory is bounded: see the constants, and the journal's size.
//!
//! Invariants: the lock outlives the database; the table is written to only when `DIR/table` is there,
//! so that one whose making was cut off is made again; fjall is given only journals whose every batch is
//! whole ([`torn`]).

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode, Readable as _};

use super::journaled::{JournaledStore, Layer, Place, Table, TableView, Threads};
use super::{Batch, ByteFile, DiskFile, Durability, ReplicaStore, Space, StoreError, directory};
use crate::locked::Locked;

mod torn;

use torn::TornError;

/// What a half of the journal takes. Its changes are in memory too, twice at most.
const HALF_BYTES: u64 = 8 << 20;
/// Blocks read from disk that are kept.
const CACHE_BYTES: u64 = 32 << 20;
/// What writes may take in fjall's memory before they move to its tree.
const MEMTABLE_BYTES: u64 = 8 << 20;
/// fjall's journals are dropped when what they hold has moved to the tree; at the latest at this size.
const JOURNALS_BYTES_MAX: u64 = 64 << 20;
/// Threads that move memtables to the tree and compact it.
const WORKERS: usize = 1;
/// Open files kept.
const FILES_MAX: usize = 64;
/// Where the table keeps the number of its last batch: before every space.
const NUMBER: [u8; 1] = [0];

/// A replica store in a directory, held by this process alone until dropped.
pub struct FjallStore {
    // Dropped in this order: the lock last.
    store: JournaledStore<DiskFile, FjallPlace>,
    files: PathBuf,
    _lock: Locked,
}

impl FjallStore {
    /// Opens the store in `dir`, which is made if it is not there. What was written since the table's
    /// last checkpoint is read from the journal: 16 MiB at most.
    ///
    /// # Errors
    ///
    /// - [`StoreError::Locked`]: another open holds it, in this process or another one, which the
    ///   error names.
    /// - [`StoreError::Format`]: it holds something that we do not read. Nothing was changed.
    /// - [`StoreError::Damaged`]: batches that were on disk are not there any more.
    /// - [`StoreError::Failed`]: the disk failed, or fjall's part of it is damaged.
    pub fn open(dir: &Path) -> Result<FjallStore, StoreError> {
        let name = dir.display().to_string();
        let failed = |e: io::Error| StoreError::Failed { dir: name.clone(), message: e.to_string() };
        let dir = std::path::absolute(dir).map_err(failed)?;
        directory::make(&dir).map_err(failed)?;
        let lock = directory::lock(&dir, &name)?;
        directory::check_format(&dir, &name)?;
        directory::sign(lock.file(), &name)?;
        let salt = salt().map_err(|e| StoreError::Failed { dir: name.clone(), message: e.to_string() })?;
        let journal = directory::open_file(&dir.join("journal"), &name)?;
        let held = directory::Identity::of(lock.file()).map_err(failed)?;
        let place = FjallPlace { dir: dir.clone(), name: name.clone(), held };
        let background = Box::<Threads>::default();
        let store = JournaledStore::open(name, journal, HALF_BYTES, place, background, salt)?;
        Ok(FjallStore { store, files: dir.join("files"), _lock: lock })
    }
}

#[allow(clippy::disallowed_methods, reason = "it tells openings apart; nothing is replayed from it")]
fn salt() -> Result<u64, getrandom::Error> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

impl std::fmt::Debug for FjallStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "FjallStore({:?})", self.store)
    }
}

impl ReplicaStore for FjallStore {
    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        self.store.get(space, key)
    }

    fn scan(&self, space: Space, prefix: &[u8]) -> Result<Vec<(Bytes, Bytes)>, StoreError> {
        self.store.scan(space, prefix)
    }

    fn write(&self, batch: Batch, durability: Durability) -> Result<(), StoreError> {
        self.store.write(batch, durability)
    }

    fn file(&self, name: &str) -> Result<Option<Arc<dyn ByteFile>>, StoreError> {
        Ok(Some(Arc::new(DiskFile::open(&self.files.join(name))?)))
    }

    fn existing_file(&self, name: &str) -> Result<Option<Arc<dyn ByteFile>>, StoreError> {
        if self.files.join(name).exists() { self.file(name) } else { Ok(None) }
    }
}

/// Where fjall's files are.
#[derive(Clone)]
pub(crate) struct FjallPlace {
    dir: PathBuf,
    name: String,
    /// The lock of the directory that is open.
    held: directory::Identity,
}

impl FjallPlace {
    /// Refuses where the directory was moved or replaced. fjall finds its files by their names: what left the
    /// journal would lie in another directory than the journal, and in one that may be another process's.
    fn check(&self) -> Result<(), StoreError> {
        if self.held.is_at(&self.dir.join("lock")).map_err(|error| self.failed(&error))? {
            return Ok(());
        }
        let message =
            "it was moved, removed or replaced while it is open; put it back, then try again".into();
        Err(StoreError::Failed { dir: self.name.clone(), message })
    }

    fn failed(&self, error: &io::Error) -> StoreError {
        StoreError::Failed { dir: self.name.clone(), message: error.to_string() }
    }

    fn open(&self) -> Result<FjallTable, StoreError> {
        let failed = |e: fjall::Error| failure(&self.name, &e);
        let database = Database::builder(self.dir.join("fjall"))
            .worker_threads(WORKERS)
            .cache_size(CACHE_BYTES)
            .max_journaling_size(JOURNALS_BYTES_MAX)
            .max_cached_files(Some(FILES_MAX))
            .open()
            .map_err(failed)?;
        let options = || KeyspaceCreateOptions::default().max_memtable_size(MEMTABLE_BYTES);
        let keys = database.keyspace("replica", options).map_err(failed)?;
        Ok(FjallTable { keys, database, place: self.clone() })
    }
}

impl Place for FjallPlace {
    type Table = FjallTable;

    fn find(&self) -> Result<Option<FjallTable>, StoreError> {
        match self.dir.join("table").try_exists() {
            Ok(true) => {}
            Ok(false) => return Ok(None),
            Err(error) => return Err(self.failed(&error)),
        }
        torn::cut(&self.dir).map_err(|error| match error {
            TornError::Io(error) => self.failed(&error),
            TornError::Damaged { file, at } => StoreError::Damaged {
                dir: self.name.clone(),
                message: format!("`{file}` was on disk and cannot be read behind byte {at}"),
            },
        })?;
        self.open().map(Some)
    }

    fn believe(&self) -> Result<(), StoreError> {
        let remove = || {
            let copies = torn::copies(&self.dir)?;
            copies.iter().try_for_each(fs::remove_file)
        };
        remove().map_err(|error| self.failed(&error))
    }

    fn aside(&self) -> Option<String> {
        // It is for the message alone.
        let copies = torn::copies(&self.dir).unwrap_or_default();
        let names: Vec<_> = copies.iter().map(|copy| copy.display().to_string()).collect();
        (!names.is_empty()).then(|| names.join(", "))
    }

    fn make(&self) -> Result<FjallTable, StoreError> {
        self.check()?;
        match fs::remove_dir_all(self.dir.join("fjall")) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(self.failed(&error)),
            Ok(()) | Err(_) => {}
        }
        let table = self.open()?;
        directory::mark(&self.dir.join("table")).map_err(|error| self.failed(&error))?;
        Ok(table)
    }
}

/// A table in fjall.
pub(crate) struct FjallTable {
    keys: Keyspace,
    database: Database,
    place: FjallPlace,
}

impl std::fmt::Debug for FjallTable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "FjallTable({})", self.place.name)
    }
}

fn key_in(space: Space, key: &[u8]) -> Vec<u8> {
    [&[space.tag()], key].concat()
}

impl Table for FjallTable {
    type View = FjallView;

    fn view(&self) -> FjallView {
        FjallView {
            keys: self.keys.clone(),
            snapshot: self.database.snapshot(),
            name: self.place.name.clone(),
        }
    }

    fn apply(&self, layer: &Layer, number: u64) -> Result<(), StoreError> {
        self.place.check()?;
        // Each key once: all changes of a batch have one number in fjall, so that of two to one key
        // either could win.
        let mut batch = self.database.batch().durability(Some(PersistMode::Buffer));
        for (space, key, value) in layer.changes() {
            let key = key_in(space, key);
            match value {
                Some(value) => batch.insert(&self.keys, key, value.as_ref()),
                None => batch.remove(&self.keys, key),
            }
        }
        batch.insert(&self.keys, NUMBER, number.to_le_bytes());
        batch.commit().map_err(|e| failure(&self.place.name, &e))
    }

    fn applied(&self) -> Result<u64, StoreError> {
        let number =
            self.database.snapshot().get(&self.keys, NUMBER).map_err(|e| failure(&self.place.name, &e))?;
        let Some(number) = number else { return Ok(0) };
        let number = <[u8; 8]>::try_from(&*number).map(u64::from_le_bytes);
        number.map_err(|_| StoreError::Damaged {
            dir: self.place.name.clone(),
            message: "the number of its table's last batch has not 8 bytes".into(),
        })
    }

    fn persist(&self) -> Result<(), StoreError> {
        self.database.persist(PersistMode::SyncAll).map_err(|e| failure(&self.place.name, &e))
    }
}

/// A snapshot of the table.
pub(crate) struct FjallView {
    keys: Keyspace,
    snapshot: fjall::Snapshot,
    name: String,
}

impl TableView for FjallView {
    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        let value = self.snapshot.get(&self.keys, key_in(space, key)).map_err(|e| failure(&self.name, &e))?;
        Ok(value.map(|value| Bytes::copy_from_slice(&value)))
    }

    fn scan(&self, space: Space, prefix: &[u8]) -> Result<Vec<(Bytes, Bytes)>, StoreError> {
        let rows = self.snapshot.prefix(&self.keys, key_in(space, prefix)).map(|row| {
            let (key, value) = row.into_inner()?;
            // Copies, because a slice of fjall's keeps the whole block that it lies in.
            Ok((Bytes::copy_from_slice(key.get(1..).unwrap_or_default()), Bytes::copy_from_slice(&value)))
        });
        rows.collect::<fjall::Result<_>>().map_err(|e| failure(&self.name, &e))
    }
}

fn failure(dir: &str, error: &fjall::Error) -> StoreError {
    let message = match error {
        fjall::Error::Locked => {
            return StoreError::Locked {
                dir: dir.into(),
                holder: "another user of its fjall database".into(),
            };
        }
        fjall::Error::Poisoned => {
            "an earlier write failed, so no more are taken; look at the disk, then restart".into()
        }
        fjall::Error::Io(e) => e.to_string(),
        other => other.to_string(),
    };
    StoreError::Failed { dir: dir.into(), message }
}

#[cfg(test)]
mod tests;
