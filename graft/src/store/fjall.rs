//! Spaces as trees of one fjall database on disk.
//!
//! ```text
//! DIR/lock     locked while open; says who holds it
//! DIR/format   `graft replica 1`, written before anything else
//! DIR/fjall/   fjall's: one journal, and one tree for each space
//! DIR/files/   what can be made again: cached pages, one file for each volume
//! ```
//!
//! fjall alone does not wait for the disk. A batch goes to its journal whole, with a checksum, and
//! half a batch at the journal's end is dropped by recovery; [`Durability::Sync`] then fsyncs the
//! journal (`PersistMode::SyncAll`) before the batch becomes visible and `write` returns. So a
//! durable write costs one fsync, whatever its size; writers queue for the journal.
//!
//! Reads go through a snapshot, always: what a fjall keyspace reads by itself is the newest entry
//! of each key, so a scan beside a writer sees half of its batch (it did, in the conformance suite).
//!
//! Many volumes share one store, so its memory is bounded: see the constants.
//!
//! Invariants: the lock outlives the database; a directory whose format we do not know is not
//! touched.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode, Readable as _};

use super::{Batch, ByteFile, DiskFile, Durability, KEY_BYTES_MAX, ReplicaStore, Space, StoreError};

/// What `DIR/format` holds. The digit changes when the layout of this directory does.
const FORMAT: &str = "graft replica 1\n";
/// Blocks read from disk that are kept, for all spaces together.
const CACHE_BYTES: u64 = 32 << 20;
/// What a space's writes may take in memory before they move to its tree.
const MEMTABLE_BYTES: u64 = 8 << 20;
/// Journals are dropped when what they hold has moved to the trees; at the latest at this size.
const JOURNALS_BYTES_MAX: u64 = 64 << 20;
/// Threads that move memtables to trees and compact those.
const WORKERS: usize = 1;
/// Open files kept.
const FILES_MAX: usize = 64;

/// A replica store in a directory, held by this process alone until dropped.
pub struct FjallStore {
    // Dropped in this order: the lock last.
    spaces: [Keyspace; Space::ALL.len()],
    database: Database,
    dir: String,
    files: PathBuf,
    _lock: File,
}

impl FjallStore {
    /// Opens the store in `dir`, which is made if it is not there.
    ///
    /// # Errors
    ///
    /// - [`StoreError::Locked`]: another open holds it, in this process or another one, which the
    ///   error names.
    /// - [`StoreError::Format`]: it holds something that we do not read. Nothing was changed.
    /// - [`StoreError::Failed`]: the disk failed, or what is there is damaged.
    pub fn open(dir: &Path) -> Result<FjallStore, StoreError> {
        let name = dir.display().to_string();
        let failed = |e: io::Error| StoreError::Failed { dir: name.clone(), message: e.to_string() };
        let dir = std::path::absolute(dir).map_err(failed)?;
        make_directory(&dir).map_err(failed)?;
        let lock = lock(&dir, &name)?;
        check_format(&dir, &name)?;

        let failed = |e: fjall::Error| failure(&name, &e);
        let database = Database::builder(dir.join("fjall"))
            .worker_threads(WORKERS)
            .cache_size(CACHE_BYTES)
            .max_journaling_size(JOURNALS_BYTES_MAX)
            .max_cached_files(Some(FILES_MAX))
            .open()
            .map_err(failed)?;
        let options = || KeyspaceCreateOptions::default().max_memtable_size(MEMTABLE_BYTES);
        let open = |space: Space| database.keyspace(space.name(), options).map_err(failed);
        let [state, pages, local, timeline] = Space::ALL;
        let spaces = [open(state)?, open(pages)?, open(local)?, open(timeline)?];
        Ok(FjallStore { spaces, database, dir: name, files: dir.join("files"), _lock: lock })
    }

    fn space(&self, space: Space) -> &Keyspace {
        let [state, pages, local, timeline] = &self.spaces;
        match space {
            Space::State => state,
            Space::Pages => pages,
            Space::Local => local,
            Space::Timeline => timeline,
        }
    }
}

impl std::fmt::Debug for FjallStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "FjallStore({})", self.dir)
    }
}

impl ReplicaStore for FjallStore {
    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        // fjall panics on what it cannot hold.
        if !(1..=KEY_BYTES_MAX).contains(&key.len()) {
            return Ok(None);
        }
        let value =
            self.database.snapshot().get(self.space(space), key).map_err(|e| failure(&self.dir, &e))?;
        Ok(value.map(|value| Bytes::copy_from_slice(&value)))
    }

    fn scan(&self, space: Space, prefix: &[u8]) -> Result<Vec<(Bytes, Bytes)>, StoreError> {
        if prefix.len() > KEY_BYTES_MAX {
            return Ok(Vec::new());
        }
        let rows = self.database.snapshot().prefix(self.space(space), prefix).map(|row| {
            let (key, value) = row.into_inner()?;
            // Copies, because a slice of fjall's keeps the whole block that it lies in.
            Ok((Bytes::copy_from_slice(&key), Bytes::copy_from_slice(&value)))
        });
        rows.collect::<fjall::Result<_>>().map_err(|e| failure(&self.dir, &e))
    }

    fn write(&self, batch: Batch, durability: Durability) -> Result<(), StoreError> {
        batch.check_keys(&self.dir)?;
        let mode = match durability {
            Durability::Sync => PersistMode::SyncAll,
            Durability::Buffered => PersistMode::Buffer,
        };
        let done = if batch.changes.is_empty() {
            self.database.persist(mode)
        } else {
            let mut changes = self.database.batch().durability(Some(mode));
            // All changes of a batch have one number in fjall, so that of two to one key either
            // could win; hence only the last.
            for ((space, key), value) in batch.into_last_changes() {
                match value {
                    Some(value) => changes.insert(self.space(space), key.as_ref(), value.as_ref()),
                    None => changes.remove(self.space(space), key.as_ref()),
                }
            }
            changes.commit()
        };
        done.map_err(|e| failure(&self.dir, &e))
    }

    fn file(&self, name: &str) -> Result<Option<Arc<dyn ByteFile>>, StoreError> {
        Ok(Some(Arc::new(DiskFile::open(&self.files.join(name))?)))
    }

    fn existing_file(&self, name: &str) -> Result<Option<Arc<dyn ByteFile>>, StoreError> {
        if self.files.join(name).exists() { self.file(name) } else { Ok(None) }
    }
}

/// Makes `dir` and its ancestors, each entry on disk.
fn make_directory(dir: &Path) -> io::Result<()> {
    let missing: Vec<&Path> = dir.ancestors().take_while(|dir| !dir.exists()).collect();
    fs::create_dir_all(dir)?;
    missing.into_iter().filter_map(Path::parent).try_for_each(|parent| File::open(parent)?.sync_all())
}

/// Takes the lock of `dir` and writes down who we are.
fn lock(dir: &Path, name: &str) -> Result<File, StoreError> {
    let failed = |e: io::Error| StoreError::Failed { dir: name.into(), message: format!("lock: {e}") };
    let options = File::options().read(true).write(true).create(true).truncate(false).open(dir.join("lock"));
    let mut file = options.map_err(failed)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(fs::TryLockError::WouldBlock) => {
            let mut holder = String::new();
            // Who holds it is for the message alone; that it is held is certain.
            if file.take(200).read_to_string(&mut holder).is_err() || holder.is_empty() {
                holder = "another process".into();
            }
            return Err(StoreError::Locked { dir: name.into(), holder });
        }
        Err(fs::TryLockError::Error(e)) => return Err(failed(e)),
    }
    // The program alone: arguments may hold secrets.
    let program = std::env::args_os().next().map(PathBuf::from);
    let program =
        program.as_deref().and_then(Path::file_name).unwrap_or_default().to_string_lossy().into_owned();
    let holder = format!("process {} ({program})", std::process::id());
    file.set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| file.write_all(holder.as_bytes()))
        .map_err(failed)?;
    Ok(file)
}

/// Refuses a directory of another format; marks an empty one as ours.
fn check_format(dir: &Path, name: &str) -> Result<(), StoreError> {
    let failed = |e: io::Error| StoreError::Failed { dir: name.into(), message: format!("format: {e}") };
    let path = dir.join("format");
    let found = match fs::read(&path) {
        Ok(found) if found == FORMAT.as_bytes() => return Ok(()),
        Ok(found) => {
            String::from_utf8_lossy(&found[..found.len().min(100)]).trim_end().escape_debug().to_string()
        }
        Err(e) if e.kind() == ErrorKind::NotFound => {
            let mut others = fs::read_dir(dir).map_err(failed)?;
            let foreign = others.find_map(|entry| {
                let name = entry.ok()?.file_name();
                (name != "lock" && name != "format.new").then(|| name.to_string_lossy().into_owned())
            });
            match foreign {
                None => return write_format(dir, &path).map_err(failed),
                Some(file) => format!("none, but a file `{}`", file.escape_debug()),
            }
        }
        Err(e) => return Err(failed(e)),
    };
    Err(StoreError::Format { dir: name.into(), found, known: FORMAT.trim_end().into() })
}

fn write_format(dir: &Path, path: &Path) -> io::Result<()> {
    let new = dir.join("format.new");
    let mut file = File::create(&new)?;
    file.write_all(FORMAT.as_bytes())?;
    file.sync_all()?;
    fs::rename(new, path)?;
    File::open(dir)?.sync_all()
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
