//! A store of three layers: a journal on disk, what it says in memory, and a table below.
//!
//! ```text
//! write ──► journal (in place, fdatasync) ──► active ──► frozen ──► table
//!                                               ▲           ▲         ▲
//! get, scan ────────────────────────────────────┴───────────┴─────────┘
//! ```
//!
//! A batch is appended to the [`Journal`], synced if it is durable, and put into the *active* layer.
//! When a half of the journal is full, the active layer becomes the *frozen* one and writing goes on in
//! the other half, while a *checkpoint* in the background puts the frozen layer into the table, as one
//! batch with the number of the last batch in it. Only the last value of each key goes there, so what
//! was written and removed in between (a local commit that was pushed) never does. A batch that would
//! take more than an eighth of a half goes to the table alone, after everything before it.
//!
//! The table waits for the disk no more than what was promised needs: before a half is used anew that
//! has batches which may have been acknowledged as durable, and before a durable batch is acknowledged
//! while the journal has no longer all that the table has not on disk. So a store of buffered batches
//! never waits, and one of durable ones waits in the background.
//!
//! The table is made when it is needed first: a small replica is its journal, and a new directory costs
//! no more than that.
//!
//! Invariants: the layers, newest first, hold every batch. A half is used anew when the table has all of
//! it, on disk if any of it was promised ([`super::journal`] has the rest). A reader sees whole batches: it takes its
//! view of all layers under one lock, and a layer leaves memory only when the table has it. After a
//! failed write to the journal none succeeds until the store is opened again. A checkpoint that failed is tried
//! again when its half is needed; until then its layer stays in memory, and its batches in the journal.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Bound;
use std::sync::Arc;
use std::thread::JoinHandle;

use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard, RwLock};

use super::journal::{Change, Journal, JournalError, JournalFile, Record, Recovered, record_bytes};
use super::{Batch, Durability, KEY_BYTES_MAX, ReplicaStore, Space, StoreError};

/// A batch that would take more than this part of a half goes to the table alone.
const DIRECT: u64 = 8;

/// Changes in memory: the last one of each key.
#[derive(Debug, Default)]
pub(crate) struct Layer {
    spaces: [BTreeMap<Bytes, Option<Bytes>>; Space::ALL.len()],
}

/// `rows` with `over` laid over them, both ascending.
fn merge(rows: Vec<(Bytes, Bytes)>, over: BTreeMap<Bytes, Option<Bytes>>) -> Vec<(Bytes, Bytes)> {
    if over.is_empty() {
        return rows;
    }
    let mut merged = Vec::with_capacity(rows.len() + over.len());
    let mut rows = rows.into_iter().peekable();
    for (key, value) in over {
        while let Some(row) = rows.next_if(|(below, _)| *below < key) {
            merged.push(row);
        }
        rows.next_if(|(below, _)| *below == key);
        // Copies, because each is a view of its whole record.
        merged.extend(value.map(|value| (Bytes::copy_from_slice(&key), Bytes::copy_from_slice(&value))));
    }
    merged.extend(rows);
    merged
}

impl Layer {
    fn insert(&mut self, (space, key, value): Change) {
        self.spaces[space.index()].insert(key, value);
    }

    /// The key's value, or that it was removed; `None` where nothing is known of it.
    fn get(&self, space: Space, key: &[u8]) -> Option<Option<&Bytes>> {
        self.spaces[space.index()].get(key).map(Option::as_ref)
    }

    fn is_empty(&self) -> bool {
        self.spaces.iter().all(BTreeMap::is_empty)
    }

    /// Copies what it has below `prefix` into `over`, over what is there.
    fn copy_below(&self, space: Space, prefix: &[u8], over: &mut BTreeMap<Bytes, Option<Bytes>>) {
        let range = self.spaces[space.index()].range::<[u8], _>((Bound::Included(prefix), Bound::Unbounded));
        let below = range.take_while(|(key, _)| key.starts_with(prefix));
        over.extend(below.map(|(key, value)| (key.clone(), value.clone())));
    }

    /// Every change, by space and key.
    pub(crate) fn changes(&self) -> impl Iterator<Item = (Space, &Bytes, Option<&Bytes>)> {
        let spaces = Space::ALL.into_iter().zip(&self.spaces);
        spaces.flat_map(|(space, keys)| keys.iter().map(move |(key, value)| (space, key, value.as_ref())))
    }
}

/// What lies below the journal: ordered keys on disk, changed in atomic batches.
pub(crate) trait Table: Send + Sync + fmt::Debug + 'static {
    /// Its contents at one moment.
    type View: TableView;

    /// Its contents now.
    fn view(&self) -> Self::View;

    /// Applies a layer atomically and remembers `number`; does not wait for the disk.
    fn apply(&self, layer: &Layer, number: u64) -> Result<(), StoreError>;

    /// The number remembered last; 0 if none is.
    fn applied(&self) -> Result<u64, StoreError>;

    /// Waits until everything applied is on disk.
    fn persist(&self) -> Result<(), StoreError>;
}

/// See [`Table::view`].
pub(crate) trait TableView {
    /// The value of `key`, if it has one.
    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Bytes>, StoreError>;

    /// Every key that begins with `prefix`, ascending, with its value.
    fn scan(&self, space: Space, prefix: &[u8]) -> Result<Vec<(Bytes, Bytes)>, StoreError>;
}

/// Where the table is.
pub(crate) trait Place: Send + Sync + 'static {
    type Table: Table;

    /// The table, if it was made. What it has is on disk, and is a prefix of what was applied: what a
    /// power cut tore is put aside.
    fn find(&self) -> Result<Option<Self::Table>, StoreError>;

    /// The table that was found has all that was durable; what was put aside may go. Nothing is applied
    /// before this.
    fn believe(&self) -> Result<(), StoreError>;

    /// Where that is which was put aside, if anything was.
    fn aside(&self) -> Option<String>;

    /// Makes it. What an earlier attempt left there is replaced.
    fn make(&self) -> Result<Self::Table, StoreError>;
}

/// Runs checkpoints, one at a time.
pub(crate) trait Background: Send + Sync {
    /// Begins `job`. The one before has ended.
    fn start(&self, job: Box<dyn FnOnce() + Send>);

    /// Waits until it has ended.
    fn finish(&self);
}

/// A thread for each checkpoint.
#[derive(Debug, Default)]
pub(crate) struct Threads {
    running: Mutex<Option<JoinHandle<()>>>,
}

impl Background for Threads {
    fn start(&self, job: Box<dyn FnOnce() + Send>) {
        let spawned = std::thread::Builder::new().name("graft:checkpoint".into()).spawn(job);
        match spawned {
            Ok(running) => *self.running.lock() = Some(running),
            // The layer stays frozen, and is tried again when its half is needed.
            Err(error) => tracing::warn!(%error, "no thread for a checkpoint of the local store"),
        }
    }

    fn finish(&self) {
        let running = self.running.lock().take();
        if running.is_some_and(|running| running.join().is_err()) {
            tracing::error!("a checkpoint of the local store panicked");
        }
    }
}

struct Layers<T> {
    active: Layer,
    frozen: Option<Frozen>,
    table: Option<Arc<T>>,
}

#[derive(Clone)]
struct Frozen {
    layer: Arc<Layer>,
    /// The last batch in it.
    number: u64,
    /// Whether the checkpoint waits for the disk.
    persist: bool,
}

struct Shared<P: Place> {
    layers: RwLock<Layers<P::Table>>,
    place: P,
}

impl<P: Place> Shared<P> {
    fn table(&self) -> Result<Arc<P::Table>, StoreError> {
        if let Some(table) = &self.layers.read().table {
            return Ok(table.clone());
        }
        let table = Arc::new(self.place.make()?);
        self.layers.write().table = Some(table.clone());
        Ok(table)
    }

    /// Puts the frozen layer, if there is one, into the table.
    fn checkpoint(&self) -> Result<(), StoreError> {
        let Some(frozen) = self.layers.read().frozen.clone() else { return Ok(()) };
        let table = self.table()?;
        table.apply(&frozen.layer, frozen.number)?;
        if frozen.persist {
            table.persist()?;
        }
        self.layers.write().frozen = None;
        Ok(())
    }
}

/// Numbers of batches: `persisted <= applied <= journal.last()`.
struct Writer<F> {
    journal: Journal<F>,
    /// What the layer that was frozen last ends with, and whether its checkpoint waits for the disk;
    /// until it is known to be in the table.
    freezing: Option<(u64, bool)>,
    /// The table has everything up to here.
    applied: u64,
    /// The table has everything up to here on disk.
    persisted: u64,
    /// What the journal may have no more: `gone <= applied`.
    gone: u64,
    /// What may have been acknowledged as durable.
    promised: u64,
    /// A write failed.
    stopped: bool,
}

/// A store of journal and table.
pub(crate) struct JournaledStore<F: JournalFile, P: Place> {
    dir: String,
    /// A longer record goes to the table alone.
    direct_bytes: u64,
    writer: Mutex<Writer<F>>,
    shared: Arc<Shared<P>>,
    background: Box<dyn Background>,
}

impl<F: JournalFile, P: Place> JournaledStore<F, P> {
    /// Opens the store of `file` and `place`. `salt` must be new at each opening; `dir` is for
    /// messages.
    pub(crate) fn open(
        dir: String,
        file: F,
        half_bytes: u64,
        place: P,
        background: Box<dyn Background>,
        salt: u64,
    ) -> Result<JournaledStore<F, P>, StoreError> {
        let table = place.find()?;
        let applied = table.as_ref().map_or(Ok(0), Table::applied)?;
        let opened = Journal::open(file, half_bytes, applied, salt);
        let (journal, Recovered { batches, in_both }) = opened.map_err(|error| {
            let what = match error {
                JournalError::Store(error) => return error,
                JournalError::Lost(number) => format!("batch {number} was on disk and cannot be read"),
                JournalError::Malformed(number) => format!("batch {number} of its journal makes no sense"),
            };
            let aside = place.aside().map(|aside| format!(" (what was torn is kept in {aside})"));
            StoreError::Damaged { dir: dir.clone(), message: what + &aside.unwrap_or_default() }
        })?;
        place.believe()?;
        let mut active = Layer::default();
        batches.into_iter().flatten().for_each(|change| active.insert(change));
        let last = journal.last();
        let layers = Layers { active, frozen: None, table: table.map(Arc::new) };
        let store = JournaledStore {
            dir,
            direct_bytes: half_bytes / DIRECT,
            writer: Mutex::new(Writer {
                journal,
                freezing: None,
                applied,
                persisted: applied,
                gone: applied,
                promised: last,
                stopped: false,
            }),
            shared: Arc::new(Shared { layers: RwLock::new(layers), place }),
            background,
        };
        if in_both {
            // The other half is not free before this ends.
            store.freeze(&mut store.writer.lock(), true);
        }
        Ok(store)
    }

    /// Makes the active layer the frozen one, and begins its checkpoint. None is frozen before.
    fn freeze(&self, writer: &mut Writer<F>, persist: bool) {
        let number = writer.journal.last();
        {
            let mut layers = self.shared.layers.write();
            if layers.active.is_empty() {
                // The table has every batch.
                return;
            }
            let layer = Arc::new(std::mem::take(&mut layers.active));
            layers.frozen = Some(Frozen { layer, number, persist });
        }
        writer.freezing = Some((number, persist));
        let (shared, dir) = (self.shared.clone(), self.dir.clone());
        self.background.start(Box::new(move || {
            if let Err(error) = shared.checkpoint() {
                tracing::error!(%dir, %error, "a checkpoint of the local store failed; its journal has it still");
            }
        }));
    }

    /// Waits until no layer is frozen.
    fn settle(&self, writer: &mut Writer<F>) -> Result<(), StoreError> {
        if writer.freezing.is_some() {
            self.background.finish();
            // Does nothing, unless that failed.
            self.shared.checkpoint()?;
        }
        if let Some((number, persisted)) = writer.freezing.take() {
            writer.applied = number;
            if persisted {
                writer.persisted = number;
                writer.journal.table_is_durable(number);
            }
        }
        Ok(())
    }

    /// Waits until everything that is known to be in the table is on disk.
    fn persist(&self, writer: &mut Writer<F>) -> Result<(), StoreError> {
        if writer.persisted < writer.applied {
            self.shared.table()?.persist()?;
            writer.persisted = writer.applied;
            writer.journal.table_is_durable(writer.applied);
        }
        Ok(())
    }

    fn append(
        &self,
        writer: &mut Writer<F>,
        mut record: Record,
        durability: Durability,
    ) -> Result<(), StoreError> {
        if !writer.journal.has_room(record.bytes()) {
            self.switch(writer)?;
        }
        if durability == Durability::Sync && writer.persisted < writer.gone {
            self.persist(writer)?;
        }
        writer.journal.make_room(record.bytes())?;
        let number = writer.journal.last() + 1;
        if let Err(error) = writer.journal.append(&mut record) {
            return Err(self.stop(writer, number, &error));
        }
        if durability == Durability::Sync {
            self.sync(writer, number)?;
        }
        let mut layers = self.shared.layers.write();
        record.into_changes().for_each(|change| layers.active.insert(change));
        Ok(())
    }

    /// Goes on in the other half of the journal.
    fn switch(&self, writer: &mut Writer<F>) -> Result<(), StoreError> {
        self.settle(writer)?;
        if writer.promised > writer.persisted {
            self.persist(writer)?;
        }
        // The other half has nothing that is later.
        writer.gone = writer.applied;
        let persist = writer.promised > writer.persisted;
        self.freeze(writer, persist);
        writer.journal.switch();
        Ok(())
    }

    /// Waits for the journal's disk. If that fails, batch `withdrawn` will not be there after the next
    /// opening.
    fn sync(&self, writer: &mut Writer<F>, withdrawn: u64) -> Result<(), StoreError> {
        match writer.journal.sync() {
            Ok(()) => writer.promised = writer.journal.last(),
            Err(error) => return Err(self.stop(writer, withdrawn, &error)),
        }
        Ok(())
    }

    /// Ends all writing, and takes back batch `withdrawn`.
    fn stop(&self, writer: &mut Writer<F>, withdrawn: u64, error: &StoreError) -> StoreError {
        writer.stopped = true;
        let dir = self.dir.clone();
        match writer.journal.withdraw(withdrawn) {
            Ok(()) => StoreError::Failed { dir, message: format!("{error}; open it again before writing") },
            Err(_) => StoreError::Unknown { dir, message: error.to_string() },
        }
    }

    /// Puts a large batch into the table, after everything before it.
    fn write_to_table(
        &self,
        writer: &mut Writer<F>,
        batch: Batch,
        durability: Durability,
    ) -> Result<(), StoreError> {
        self.settle(writer)?;
        self.freeze(writer, false);
        self.settle(writer)?;
        let table = self.shared.table()?;
        let mut layer = Layer::default();
        batch.changes.into_iter().for_each(|change| layer.insert(change));
        let number = writer.journal.skip();
        let written = table.apply(&layer, number).and_then(|()| match durability {
            Durability::Sync => table.persist(),
            Durability::Buffered => Ok(()),
        });
        if let Err(error) = written {
            // The table may have it, and then its number is taken.
            writer.stopped = true;
            return Err(StoreError::Unknown { dir: self.dir.clone(), message: error.to_string() });
        }
        (writer.applied, writer.gone) = (number, number);
        if durability == Durability::Sync {
            (writer.persisted, writer.promised) = (number, number);
            writer.journal.table_is_durable(number);
        }
        Ok(())
    }

    fn writer(&self) -> Result<MutexGuard<'_, Writer<F>>, StoreError> {
        let writer = self.writer.lock();
        if writer.stopped { Err(StoreError::Stopped { dir: self.dir.clone() }) } else { Ok(writer) }
    }
}

impl<F: JournalFile, P: Place> Drop for JournaledStore<F, P> {
    fn drop(&mut self) {
        self.background.finish();
    }
}

impl<F: JournalFile, P: Place> fmt::Debug for JournaledStore<F, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JournaledStore({})", self.dir)
    }
}

impl<F: JournalFile, P: Place> ReplicaStore for JournaledStore<F, P> {
    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        if !(1..=KEY_BYTES_MAX).contains(&key.len()) {
            return Ok(None);
        }
        let view = {
            let layers = self.shared.layers.read();
            let frozen = || layers.frozen.as_ref()?.layer.get(space, key);
            if let Some(found) = layers.active.get(space, key).or_else(frozen) {
                // A copy, because the value is a view of its whole record.
                return Ok(found.map(|value| Bytes::copy_from_slice(value)));
            }
            layers.table.as_ref().map(|table| table.view())
        };
        view.map_or(Ok(None), |view| view.get(space, key))
    }

    fn scan(&self, space: Space, prefix: &[u8]) -> Result<Vec<(Bytes, Bytes)>, StoreError> {
        if prefix.len() > KEY_BYTES_MAX {
            return Ok(Vec::new());
        }
        let mut over = BTreeMap::new();
        let view = {
            let layers = self.shared.layers.read();
            let frozen = layers.frozen.as_ref().map(|frozen| &*frozen.layer);
            for layer in frozen.into_iter().chain([&layers.active]) {
                layer.copy_below(space, prefix, &mut over);
            }
            layers.table.as_ref().map(|table| table.view())
        };
        let rows = view.map_or(Ok(Vec::new()), |view| view.scan(space, prefix))?;
        Ok(merge(rows, over))
    }

    fn write(&self, batch: Batch, durability: Durability) -> Result<(), StoreError> {
        batch.check_keys(&self.dir)?;
        if batch.changes.is_empty() {
            let mut writer = self.writer()?;
            return match durability {
                Durability::Sync => {
                    if writer.persisted < writer.gone {
                        self.persist(&mut writer)?;
                    }
                    let next = writer.journal.last() + 1;
                    self.sync(&mut writer, next)
                }
                Durability::Buffered => Ok(()),
            };
        }
        if record_bytes(&batch) > self.direct_bytes {
            self.write_to_table(&mut *self.writer()?, batch, durability)
        } else {
            // Encoded and hashed before the others have to wait.
            let record = Record::encode(&batch);
            self.append(&mut *self.writer()?, record, durability)
        }
    }
}

#[cfg(test)]
mod simulated;
#[cfg(test)]
mod tests;
