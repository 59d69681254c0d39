//! Disks: local stores that outlive a process, lose what was not synced, fill up, and are lost.
//!
//! What a process wrote is there for its next life. A *power cut* takes some of the batches that were
//! written since the last [`Durability::Sync`], always the last ones: order is kept, as a journal keeps it.
//! Files, which are never synced, lose any of their last writes, in any order. A *full* disk refuses
//! every write, whole, until there is room again; it may become full in the middle of a transaction.
//!
//! Invariant: what was written with [`Durability::Sync`] is there after a power cut, but for the plant.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use graft::store::{
    Batch, ByteFile, Durability, KEY_BYTES_MAX, ReplicaStore, SharedStore, Space, StoreError,
};
use parking_lot::Mutex;

use super::random::Random;

/// Writes to files that a power cut may take.
const FILE_WRITES_MAX: usize = 32;
/// Batches that it may take where nothing is ever synced.
const BATCHES_MAX: usize = 64;

/// What becomes of a disk when the process that uses it dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Crash {
    /// The process alone died: everything that it wrote is there.
    Kept,
    /// The power failed.
    PowerCut,
    /// The machine is gone; its successor has an empty disk.
    Lost,
}

impl Crash {
    /// Mostly the disk is kept.
    pub fn random(random: &mut Random) -> Crash {
        match random.below(10) {
            0..5 => Crash::Kept,
            5..9 => Crash::PowerCut,
            _ => Crash::Lost,
        }
    }
}

/// What a key had before a batch.
type Undo = Vec<((Space, Bytes), Option<Bytes>)>;

#[derive(Debug)]
struct FileWrite {
    name: String,
    offset: u64,
    before: Vec<u8>,
    len_before: usize,
}

#[derive(Debug)]
struct State {
    random: Random,
    entries: BTreeMap<(Space, Bytes), Bytes>,
    /// Batches since the last sync, oldest first.
    unsynced: VecDeque<Undo>,
    files: BTreeMap<String, Vec<u8>>,
    file_writes: VecDeque<FileWrite>,
    /// Writes until there is no room any more.
    room: Option<u32>,
    refused: u64,
    /// The plant: a sync does not wait for the disk.
    lies: bool,
}

/// One disk. Handles to it are stores; all are the same.
#[derive(Debug, Clone)]
pub struct Disk(Arc<Mutex<State>>);

#[derive(Debug)]
struct DiskFile {
    disk: Disk,
    name: String,
}

/// What a full disk says.
pub const FULL: &str = "no space left on device";

fn full() -> StoreError {
    StoreError::Failed { dir: "simulated disk".into(), message: FULL.into() }
}

impl Disk {
    /// An empty disk; one that `lies` does not keep what it says is synced.
    pub fn new(random: Random, lies: bool) -> Disk {
        Disk(Arc::new(Mutex::new(State {
            random,
            entries: BTreeMap::new(),
            unsynced: VecDeque::new(),
            files: BTreeMap::new(),
            file_writes: VecDeque::new(),
            room: None,
            refused: 0,
            lies,
        })))
    }

    /// The disk as a process uses it.
    pub fn store(&self) -> SharedStore {
        Arc::new(self.clone())
    }

    /// After `writes` more writes there is no room, until [`Disk::free`].
    pub fn fill(&self, writes: u32) {
        self.0.lock().room = Some(writes);
    }

    /// There is room again.
    pub fn free(&self) {
        self.0.lock().room = None;
    }

    /// Writes refused so far for want of room.
    pub fn refused(&self) -> u64 {
        self.0.lock().refused
    }

    /// Its process died. Answers how many batches are gone.
    pub fn crash(&self, how: Crash) -> usize {
        let mut state = self.0.lock();
        match how {
            Crash::Kept => 0,
            Crash::Lost => {
                let gone = state.entries.len();
                state.entries.clear();
                state.unsynced.clear();
                state.files.clear();
                state.file_writes.clear();
                gone
            }
            Crash::PowerCut => state.power_cut(),
        }
    }
}

impl State {
    fn power_cut(&mut self) -> usize {
        let kept = self.random.index(self.unsynced.len() + 1);
        let gone = self.unsynced.split_off(kept);
        for undo in gone.iter().rev() {
            for (key, before) in undo.iter().rev() {
                match before {
                    Some(value) => drop(self.entries.insert(key.clone(), value.clone())),
                    None => drop(self.entries.remove(key)),
                }
            }
        }
        self.unsynced.clear();
        while let Some(write) = self.file_writes.pop_back() {
            if self.random.chance(0.5) {
                continue;
            }
            let Some(file) = self.files.get_mut(&write.name) else { continue };
            let start = write.offset as usize;
            let end = (start + write.before.len()).min(file.len());
            if start < end {
                file[start..end].copy_from_slice(&write.before[..end - start]);
            }
            // What came after it may have made the file longer.
            if self.random.chance(0.3) {
                file.truncate(write.len_before);
            }
        }
        gone.len()
    }

    fn take_room(&mut self) -> Result<(), StoreError> {
        match &mut self.room {
            None => Ok(()),
            Some(0) => {
                self.refused += 1;
                Err(full())
            }
            Some(writes) => {
                *writes -= 1;
                Ok(())
            }
        }
    }
}

impl ReplicaStore for Disk {
    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        Ok(self.0.lock().entries.get(&(space, Bytes::copy_from_slice(key))).cloned())
    }

    fn scan(&self, space: Space, prefix: &[u8]) -> Result<Vec<(Bytes, Bytes)>, StoreError> {
        let state = self.0.lock();
        let rows = state.entries.range((space, Bytes::copy_from_slice(prefix))..);
        let rows = rows.take_while(|((at, key), _)| *at == space && key.starts_with(prefix));
        Ok(rows.map(|((_, key), value)| (key.clone(), value.clone())).collect())
    }

    fn write(&self, batch: Batch, durability: Durability) -> Result<(), StoreError> {
        if let Some((_, key, _)) =
            batch.changes.iter().find(|(_, key, _)| !(1..=KEY_BYTES_MAX).contains(&key.len()))
        {
            return Err(StoreError::Key { dir: "simulated disk".into(), bytes: key.len() });
        }
        let mut state = self.0.lock();
        if !batch.changes.is_empty() {
            state.take_room()?;
        }
        let mut undo = Undo::new();
        for (space, key, value) in batch.changes {
            let key = (space, key);
            let before = match value {
                Some(value) => state.entries.insert(key.clone(), value),
                None => state.entries.remove(&key),
            };
            undo.push((key, before));
        }
        state.unsynced.push_back(undo);
        match durability {
            Durability::Sync if !state.lies => state.unsynced.clear(),
            Durability::Sync | Durability::Buffered => {
                if state.unsynced.len() > BATCHES_MAX {
                    state.unsynced.pop_front();
                }
            }
        }
        Ok(())
    }

    fn file(&self, name: &str) -> Result<Option<Arc<dyn ByteFile>>, StoreError> {
        self.0.lock().files.entry(name.into()).or_default();
        Ok(Some(Arc::new(DiskFile { disk: self.clone(), name: name.into() })))
    }
}

impl ByteFile for DiskFile {
    fn len(&self) -> Result<u64, StoreError> {
        Ok(self.disk.0.lock().files.get(&self.name).map_or(0, |bytes| bytes.len() as u64))
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> Result<usize, StoreError> {
        let state = self.disk.0.lock();
        let bytes = state.files.get(&self.name).map_or(&[][..], |bytes| &bytes[..]);
        let from = bytes.get(offset as usize..).unwrap_or_default();
        let had = from.len().min(into.len());
        into[..had].copy_from_slice(&from[..had]);
        Ok(had)
    }

    fn write(&self, offset: u64, new: &[u8]) -> Result<(), StoreError> {
        let mut state = self.disk.0.lock();
        state.take_room()?;
        let state = &mut *state;
        let file = state.files.entry(self.name.clone()).or_default();
        let (start, end, len_before) = (offset as usize, offset as usize + new.len(), file.len());
        if file.len() < end {
            file.resize(end, 0);
        }
        let before = file[start..end].to_vec();
        file[start..end].copy_from_slice(new);
        state.file_writes.push_back(FileWrite { name: self.name.clone(), offset, before, len_before });
        if state.file_writes.len() > FILE_WRITES_MAX {
            state.file_writes.pop_front();
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> Result<(), StoreError> {
        let mut state = self.disk.0.lock();
        state.take_room()?;
        state.file_writes.retain(|write| write.name != self.name);
        state.files.entry(self.name.clone()).or_default().resize(len as usize, 0);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use graft::store::conformance;

    use super::*;

    fn put(disk: &Disk, key: &'static str, durability: Durability) -> Result<(), StoreError> {
        let mut batch = Batch::default();
        batch.put(Space::Local, key, "value");
        disk.write(batch, durability)
    }

    fn keys(disk: &Disk) -> Vec<String> {
        let rows = disk.scan(Space::Local, b"").unwrap();
        rows.into_iter().map(|(key, _)| String::from_utf8(key.to_vec()).unwrap()).collect()
    }

    #[test]
    fn it_is_a_store() {
        conformance::check(&mut |_| Ok(Disk::new(Random::new(1), false).store()));
    }

    #[test]
    fn it_outlives_its_process() {
        let mut disks: BTreeMap<String, Disk> = BTreeMap::new();
        conformance::check_reopen(&mut |name| {
            let disk = disks.entry(name.into()).or_insert_with(|| Disk::new(Random::new(1), false));
            disk.crash(Crash::Kept);
            Ok(disk.store())
        });
    }

    #[test]
    fn a_power_cut_takes_a_suffix_of_what_was_not_synced() {
        let mut seen = std::collections::BTreeSet::new();
        for seed in 0..50 {
            let disk = Disk::new(Random::new(seed), false);
            put(&disk, "a", Durability::Buffered).unwrap();
            put(&disk, "b", Durability::Sync).unwrap();
            put(&disk, "c", Durability::Buffered).unwrap();
            put(&disk, "d", Durability::Buffered).unwrap();
            disk.crash(Crash::PowerCut);
            seen.insert(keys(&disk).concat());
        }
        assert_eq!(seen.into_iter().collect::<Vec<_>>(), ["ab", "abc", "abcd"]);
    }

    #[test]
    fn a_full_disk_refuses_whole_batches_until_there_is_room() {
        let disk = Disk::new(Random::new(1), false);
        disk.fill(1);
        put(&disk, "a", Durability::Sync).unwrap();
        put(&disk, "b", Durability::Sync).unwrap_err();
        disk.free();
        put(&disk, "c", Durability::Sync).unwrap();
        assert_eq!((keys(&disk).concat().as_str(), disk.refused()), ("ac", 1));
        disk.crash(Crash::Lost);
        assert!(keys(&disk).is_empty());
    }
}
