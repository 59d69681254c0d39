//! A disk, a table and a background that fail and lose power as a test tells them to.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use super::{Background, JournalFile, Layer, Place, Table, TableView};
use crate::store::{ByteFile, Space, StoreError};

/// What a disk writes whole or not at all; inside one that was cut off anything may be.
const SECTOR: usize = 512;

pub(crate) type Rows = BTreeMap<(Space, Bytes), Bytes>;

/// A machine: a file, a table, and what they do when the power goes.
#[derive(Debug)]
pub(crate) struct Machine {
    random: StdRng,
    /// What reads see: the system's cache.
    cached: Vec<u8>,
    /// What is on the disk.
    disk: Vec<u8>,
    /// Sectors written and not yet on the disk, by where they begin: every version, the newest last.
    /// A sync that fails forgets them, and the cache goes on showing them.
    dirty: BTreeMap<usize, Vec<Vec<u8>>>,
    /// The table's versions since it was persisted last; the first one is on the disk.
    versions: Vec<(u64, Rows)>,
    table_made: bool,
    table_failed: bool,
    /// The version in `versions` whose bytes a power cut left with a hole; later ones may be whole.
    torn: Option<usize>,
    /// A torn end was cut off, and is kept until the table is believed.
    aside: bool,
    /// One in so many file and table operations fails; 0 for none.
    pub(crate) failures: u32,
    /// How many failed.
    pub(crate) failed: u32,
    /// How often a torn end was cut off.
    pub(crate) cuts: u32,
    pub(crate) fail_next_sync: bool,
}

fn failure() -> StoreError {
    StoreError::Failed { dir: "simulated".into(), message: "injected".into() }
}

impl Machine {
    pub(crate) fn new(seed: u64) -> Machine {
        Machine {
            random: StdRng::seed_from_u64(seed),
            cached: Vec::new(),
            disk: Vec::new(),
            dirty: BTreeMap::new(),
            versions: vec![(0, Rows::new())],
            table_made: false,
            table_failed: false,
            torn: None,
            aside: false,
            failures: 0,
            failed: 0,
            cuts: 0,
            fail_next_sync: false,
        }
    }

    fn fails(&mut self) -> bool {
        let fails = self.failures > 0 && self.random.random_ratio(1, self.failures);
        self.failed += u32::from(fails);
        fails
    }

    fn write(&mut self, offset: usize, bytes: &[u8]) {
        let end = offset + bytes.len();
        if self.cached.len() < end {
            self.cached.resize(end.next_multiple_of(SECTOR), 0);
        }
        self.cached[offset..end].copy_from_slice(bytes);
        for sector in (offset / SECTOR * SECTOR..end).step_by(SECTOR) {
            let now = self.cached[sector..sector + SECTOR].to_vec();
            self.dirty.entry(sector).or_default().push(now);
        }
    }

    fn put_on_disk(&mut self, sector: usize, bytes: &[u8]) {
        if self.disk.len() < sector + SECTOR {
            self.disk.resize(sector + SECTOR, 0);
        }
        self.disk[sector..sector + SECTOR].copy_from_slice(bytes);
    }

    /// Of each sector that was not synced the disk has the old bytes, some version of the new, or
    /// neither.
    fn spill(&mut self, torn: bool) {
        for (sector, versions) in std::mem::take(&mut self.dirty) {
            let old = self.disk.get(sector..sector + SECTOR).map_or(vec![0; SECTOR], <[u8]>::to_vec);
            let Some(last) = versions.last() else { continue };
            match self.random.random_range(0..4) {
                0 => {}
                1 => self.put_on_disk(sector, &last.clone()),
                2 => {
                    let which = self.random.random_range(0..versions.len());
                    self.put_on_disk(sector, &versions[which].clone());
                }
                _ if torn && versions.iter().any(|version| *version != old) => {
                    let mut torn = last.clone();
                    self.random.fill(&mut torn[..]);
                    self.put_on_disk(sector, &torn);
                }
                _ => self.put_on_disk(sector, &last.clone()),
            }
        }
    }

    /// The power goes and comes back.
    pub(crate) fn lose_power(&mut self) {
        self.spill(true);
        self.cached = self.disk.clone();
        if self.torn.is_none() {
            // A prefix is whole. What is after it is not there, or is there with a hole.
            let kept = self.random.random_range(0..self.versions.len());
            if kept + 1 < self.versions.len() && self.random.random() {
                self.torn = Some(kept + 1);
            } else {
                self.versions = vec![self.versions.swap_remove(kept)];
            }
        }
        self.table_failed = false;
    }

    /// The process ends; what it wrote stays in the system's cache.
    pub(crate) fn restart(&mut self) {
        self.table_failed = false;
    }

    /// Damages a byte of what is on the disk and in the cache.
    pub(crate) fn flip(&mut self, offset: usize) {
        self.cached[offset] ^= 1;
        self.disk[offset] ^= 1;
    }

    /// The table as it is read: the number of its last batch, and its rows.
    pub(crate) fn last_version(&self) -> &(u64, Rows) {
        self.versions.last().expect("one at least")
    }

    /// The file as it is read.
    pub(crate) fn file(&self) -> &[u8] {
        &self.cached
    }
}

/// A handle on the machine's file; also its table and the place of it.
#[derive(Debug, Clone)]
pub(crate) struct On(pub(crate) Arc<Mutex<Machine>>);

impl ByteFile for On {
    fn len(&self) -> Result<u64, StoreError> {
        Ok(self.0.lock().cached.len() as u64)
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> Result<usize, StoreError> {
        let mut machine = self.0.lock();
        if machine.fails() {
            return Err(failure());
        }
        let from = machine.cached.get(offset as usize..).unwrap_or_default();
        let had = from.len().min(into.len());
        into[..had].copy_from_slice(&from[..had]);
        Ok(had)
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), StoreError> {
        let mut machine = self.0.lock();
        if machine.fails() {
            // Part of it may have come through, but not all.
            let part = machine.random.random_range(0..bytes.len().max(1));
            machine.write(offset as usize, &bytes[..part]);
            return Err(failure());
        }
        machine.write(offset as usize, bytes);
        Ok(())
    }

    fn set_len(&self, _len: u64) -> Result<(), StoreError> {
        unreachable!("the journal never cuts its file")
    }
}

impl JournalFile for On {
    fn sync(&self) -> Result<(), StoreError> {
        let mut machine = self.0.lock();
        if std::mem::take(&mut machine.fail_next_sync) || machine.fails() {
            machine.spill(false);
            return Err(failure());
        }
        for (sector, versions) in std::mem::take(&mut machine.dirty) {
            if let Some(last) = versions.last() {
                machine.put_on_disk(sector, last);
            }
        }
        Ok(())
    }
}

impl Place for On {
    type Table = On;

    fn find(&self) -> Result<Option<On>, StoreError> {
        let mut machine = self.0.lock();
        if let Some(torn) = machine.torn {
            if machine.fails() {
                return Err(failure());
            }
            machine.versions.truncate(torn);
            machine.torn = None;
            machine.aside = true;
            machine.cuts += 1;
        }
        let last = machine.versions.len() - 1;
        machine.versions.drain(..last);
        Ok(machine.table_made.then(|| self.clone()))
    }

    fn believe(&self) -> Result<(), StoreError> {
        let mut machine = self.0.lock();
        if machine.fails() {
            return Err(failure());
        }
        machine.aside = false;
        Ok(())
    }

    fn aside(&self) -> Option<String> {
        self.0.lock().aside.then(|| "torn".into())
    }

    fn make(&self) -> Result<On, StoreError> {
        let mut machine = self.0.lock();
        if machine.fails() {
            return Err(failure());
        }
        machine.table_made = true;
        Ok(self.clone())
    }
}

impl Table for On {
    type View = View;

    fn view(&self) -> View {
        View(self.0.lock().last_version().1.clone())
    }

    fn apply(&self, layer: &Layer, number: u64) -> Result<(), StoreError> {
        let mut machine = self.0.lock();
        assert!(machine.torn.is_none() && !machine.aside, "applied to a table that is not believed");
        let fails = machine.table_failed || machine.fails();
        // A failed one may have come through.
        if !fails || (!machine.table_failed && machine.random.random()) {
            let mut rows = machine.last_version().1.clone();
            for (space, key, value) in layer.changes() {
                match value {
                    Some(value) => drop(rows.insert((space, key.clone()), value.clone())),
                    None => drop(rows.remove(&(space, key.clone()))),
                }
            }
            machine.versions.push((number, rows));
        }
        machine.table_failed |= fails;
        if fails { Err(failure()) } else { Ok(()) }
    }

    fn applied(&self) -> Result<u64, StoreError> {
        Ok(self.0.lock().last_version().0)
    }

    fn persist(&self) -> Result<(), StoreError> {
        let mut machine = self.0.lock();
        if machine.table_failed || machine.fails() {
            machine.table_failed = true;
            return Err(failure());
        }
        let last = machine.versions.len() - 1;
        machine.versions.drain(..last);
        Ok(())
    }
}

/// The table at one moment.
pub(crate) struct View(Rows);

impl TableView for View {
    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        Ok(self.0.get(&(space, Bytes::copy_from_slice(key))).cloned())
    }

    fn scan(&self, space: Space, prefix: &[u8]) -> Result<Vec<(Bytes, Bytes)>, StoreError> {
        let below = self.0.iter().filter(|((at, key), _)| *at == space && key.starts_with(prefix));
        Ok(below.map(|((_, key), value)| (key.clone(), value.clone())).collect())
    }
}

/// Runs a checkpoint when it is told to, or waited for.
#[derive(Clone, Default)]
pub(crate) struct Later(Arc<Mutex<Option<Job>>>);

type Job = Box<dyn FnOnce() + Send>;

impl Later {
    /// The process ended before it ran.
    pub(crate) fn forget(&self) {
        self.0.lock().take();
    }
}

impl Background for Later {
    fn start(&self, job: Job) {
        let before = self.0.lock().replace(job);
        assert!(before.is_none(), "one at a time");
    }

    fn finish(&self) {
        let job = self.0.lock().take();
        if let Some(job) = job {
            job();
        }
    }
}
