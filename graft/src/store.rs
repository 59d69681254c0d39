//! The local replica store: ordered keys in a few spaces, changed in atomic batches.
//!
//! One batch covers everything that must change together: a local commit, the timeline entry that
//! explains it and the volume's state. What the keys mean is the caller's: [`crate::volume`] keeps
//! volume state, cached pages and local commits; the layer above keeps its timeline.
//!
//! Invariants every implementation keeps, checked by one conformance suite: a batch is applied
//! whole or not at all, also when the process dies in the middle; a batch written with
//! [`Durability::Sync`] survives power loss once `write` returns; scans return ascending keys.
//! One process opens a data directory at a time; a second is refused with the holder's name.
//!
//! | module | holds |
//! | --- | --- |
//! | [`memory`] | maps, for tests and for replicas that need not outlive their process |
//! | `fjall` | the store in a directory: a journal, and a log-structured table below (feature `native`) |
//! | `directory` | that directory: its lock and its format (feature `native`) |
//! | `journaled` | how journal, memory and table make one store |
//! | `journal` | batches in a file that is overwritten in place |
//! | [`claim`] | which volumes of a store are open in this process |
//! | [`pages`] | cached pages in one file for each volume, beside the keys |
//! | `disk_file` | a file on disk (feature `native`) |
//! | [`conformance`] | the suite that all pass |

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

use crate::ids::VolumeId;

pub mod claim;
#[doc(hidden)]
pub mod conformance;
#[cfg(feature = "native")]
mod directory;
#[cfg(feature = "native")]
pub mod disk_file;
#[cfg(feature = "native")]
pub mod fjall;
#[cfg(feature = "native")]
mod journal;
#[cfg(feature = "native")]
mod journaled;
pub mod memory;
pub mod pages;

#[cfg(feature = "native")]
pub use disk_file::DiskFile;
#[cfg(feature = "native")]
pub use fjall::FjallStore;
pub use memory::MemoryStore;
pub use pages::ByteFile;

/// The longest key, in bytes. The shortest is 1.
pub const KEY_BYTES_MAX: usize = 65_534;

/// A key space: equal keys in two of them are two keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Space {
    /// Small records: volume state, pending pushes.
    State,
    /// Local commits that the remote does not have yet.
    Local,
    /// What the layer above keeps: its timeline.
    Timeline,
}

impl Space {
    /// Every space, in the order of their declaration.
    pub const ALL: [Space; 3] = [Space::State, Space::Local, Space::Timeline];

    /// Its place in [`Space::ALL`].
    #[cfg(feature = "native")]
    fn index(self) -> usize {
        match self {
            Space::State => 0,
            Space::Local => 1,
            Space::Timeline => 2,
        }
    }

    /// Its byte on disk: from 1, as declared.
    #[cfg(feature = "native")]
    fn tag(self) -> u8 {
        self.index() as u8 + 1
    }

    #[cfg(feature = "native")]
    fn of_tag(tag: u8) -> Option<Space> {
        Space::ALL.into_iter().find(|space| space.tag() == tag)
    }
}

/// Whether `write` waits for the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Durability {
    /// On disk (fsync) before `write` returns. The default: what is acknowledged survives power loss.
    #[default]
    Sync,
    /// In the operating system's cache: survives a crash of the process, not a power loss.
    Buffered,
}

/// Changes applied together. Later changes of one key win.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    /// In order: space, key, new value or `None` to remove.
    pub changes: Vec<(Space, Bytes, Option<Bytes>)>,
}

impl Batch {
    /// Sets `key` to `value`.
    pub fn put(&mut self, space: Space, key: impl Into<Bytes>, value: impl Into<Bytes>) {
        self.changes.push((space, key.into(), Some(value.into())));
    }

    /// Removes `key`, if it is there.
    pub fn remove(&mut self, space: Space, key: impl Into<Bytes>) {
        self.changes.push((space, key.into(), None));
    }
}

/// Why the local store failed. After any of these but [`StoreError::Damaged`], what was durable before
/// still is.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// Another process holds the data directory.
    #[error("data directory `{dir}` is in use by {holder}; stop it, or give another directory")]
    Locked {
        /// The directory.
        dir: String,
        /// Who holds it: process id and start time where they could be read.
        holder: String,
    },
    /// The directory was written by another version of this program, or is no replica's at all.
    #[error(
        "data directory `{dir}` has format `{found}`, and this version reads `{known}`; use the version that wrote it, or give an empty directory"
    )]
    Format {
        /// The directory.
        dir: String,
        /// What its format record says.
        found: String,
        /// What we would have written.
        known: String,
    },
    /// A key of a batch is empty or longer than [`KEY_BYTES_MAX`]. Nothing was written.
    #[error("local store `{dir}` cannot hold a key of {bytes} bytes: keys have 1 to 65534")]
    Key {
        /// The directory.
        dir: String,
        /// The key's length.
        bytes: usize,
    },
    /// The disk or the store's files failed. Nothing of a batch that got this answer is there, now or
    /// after the next opening.
    #[error("local store `{dir}` failed: {message}")]
    Failed {
        /// The directory.
        dir: String,
        /// What went wrong.
        message: String,
    },
    /// Writing a batch failed, and so did taking it back: it may be there after the next opening, whole.
    #[error(
        "local store `{dir}` failed: {message}; whether the last batch is kept shows when the directory is opened again"
    )]
    Unknown {
        /// The directory.
        dir: String,
        /// What went wrong.
        message: String,
    },
    /// An earlier write did not reach the disk, so no more are taken. Reading goes on.
    #[error(
        "local store `{dir}` takes no more writes, because an earlier one did not reach the disk; look at the disk, then open the directory again"
    )]
    Stopped {
        /// The directory.
        dir: String,
    },
    /// Another replica of the volume is open on this store object. Nothing was changed.
    #[error(
        "volume {volume} is open already in this process with the same local store; use that replica, or close it first"
    )]
    Claimed {
        /// Which volume.
        volume: VolumeId,
    },
    /// What was on disk is not there any more, or makes no sense. Nothing was changed but for what the
    /// message says was put aside.
    #[error(
        "local store `{dir}` is damaged: {message}; what was pushed can be fetched into an empty directory, and local commits come back from a copy of this one alone"
    )]
    Damaged {
        /// The directory.
        dir: String,
        /// What is wrong.
        message: String,
    },
}

/// A local store of one data directory.
pub trait ReplicaStore: Send + Sync + fmt::Debug {
    /// The value of `key`, if it has one.
    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Bytes>, StoreError>;

    /// Every key that begins with `prefix`, ascending, with its value.
    fn scan(&self, space: Space, prefix: &[u8]) -> Result<Vec<(Bytes, Bytes)>, StoreError>;

    /// Applies `batch` atomically. With [`Durability::Sync`], everything written before is on disk
    /// too when it returns, so an empty batch makes earlier buffered ones durable.
    fn write(&self, batch: Batch, durability: Durability) -> Result<(), StoreError>;

    /// The file called `name`, for what can be made again: cached pages. It is made where it is not
    /// there. `None` where this store keeps no files; then no pages are cached in it. `name` is of
    /// `a-z 0-9 -`.
    fn file(&self, name: &str) -> Result<Option<Arc<dyn ByteFile>>, StoreError> {
        let _ = name;
        Ok(None)
    }

    /// The same where it is there, `None` where it is not: to read from.
    fn existing_file(&self, name: &str) -> Result<Option<Arc<dyn ByteFile>>, StoreError> {
        let _ = name;
        Ok(None)
    }
}

impl Batch {
    /// The last change of each key, which is the one that counts.
    fn into_last_changes(self) -> BTreeMap<(Space, Bytes), Option<Bytes>> {
        self.changes.into_iter().map(|(space, key, value)| ((space, key), value)).collect()
    }

    fn check_keys(&self, dir: &str) -> Result<(), StoreError> {
        let misfit =
            self.changes.iter().map(|(_, key, _)| key.len()).find(|len| !(1..=KEY_BYTES_MAX).contains(len));
        misfit.map_or(Ok(()), |bytes| Err(StoreError::Key { dir: dir.into(), bytes }))
    }
}

/// A shared store.
pub type SharedStore = Arc<dyn ReplicaStore>;
