//! A connection's view of its volume: SQLite's file operations.
//!
//! ```text
//!   Unlocked ─Shared→ a snapshot is pinned ─Reserved→ the volume's writer is ours, the snapshot is the tip
//!      ↑                                                  │ writes are buffered
//!      └────────────── Unlocked ──────────────────────────┴─ sync → one local commit
//! ```
//!
//! A commit and a rollback both sync. They are told apart by page 1: before it commits, SQLite
//! raises the change counter in it; a rollback of a spilled transaction writes the old one back. So a
//! sync whose buffered page 1 does not carry another counter than this connection read publishes
//! nothing.
//!
//! SQLite cuts a file that became shorter only after that sync, so what a commit cuts off is known by
//! the page count in its page 1.
//!
//! Two modes of SQLite that would get past all this can only be seen by what they do, where they were
//! set by a pragma on a main database that is no volume: with `locking_mode=EXCLUSIVE` a second
//! transaction writes without having unlocked, and without raising the counter; it is refused. Without
//! a journal file nothing says which files a transaction changes; then every file that holds RESERVED
//! counts as changed.
//!
//! A connection that came into this process by a `fork()` is refused whatever it asks, and closing it only
//! forgets it: the replica, its threads and what was spilled are the parent's.
//!
//! Once a sync has failed, what SQLite writes to undo it is discarded until it unlocks: nothing was
//! published, so there is nothing to undo.

use std::borrow::Cow;
use std::cell::LazyCell;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Weak};

use bytes::{Bytes, BytesMut};
use graft::fetch::FetchError;
use graft::snapshot::Snapshot;
use graft::volume::{Change, CommitError, ReadError};
use graft::{PageIdx, PageSet};
use parking_lot::Mutex;
use sqlite_plugin::flags::{AccessFlags, LockLevel, OpenKind, OpenOpts};
use sqlite_plugin::vars;
use sqlite_plugin::vfs::{Pragma, PragmaErr, Vfs, VfsHandle, VfsResult};

use super::host::Host;
use super::page1::{self, Marks, Synthesised};
use super::scratch::{Scratch, names_super_journal};
use super::spill::Dirty;
use super::{Control, Database, INHERITED, PragmaAnswer, Spilling, WriteSet, hooks};

/// Reads of one page that may fault before the read fails: a fetch that succeeded and still left the
/// page missing can only be a cache too small for one frame.
const FETCHES_MAX: usize = 3;

/// How the names of our own pragmas begin.
const OUR_PRAGMAS: &str = "graft_";

/// The levels at which SQLite syncs.
const SYNCHRONOUS: [&str; 9] = ["normal", "full", "extra", "1", "2", "3", "on", "yes", "true"];

/// Write transactions in progress: connection file → its journal was opened (it changes something).
static WRITERS: Mutex<BTreeMap<u64, bool>> = Mutex::new(BTreeMap::new());

/// Every open volume file: the database and the control of its connection.
static SERVED: Mutex<BTreeMap<u64, Served>> = Mutex::new(BTreeMap::new());

type Served = (Weak<Database>, Arc<Control>);

/// What volume file `id` is served from.
pub(super) fn served(id: u64) -> Option<(Arc<Database>, Arc<Control>)> {
    let (database, control) = SERVED.lock().get(&id)?.clone();
    Some((database.upgrade()?, control))
}

pub(super) struct GraftVfs;

pub(super) enum Handle {
    Volume(Box<VolumeFile>),
    /// A journal of this connection.
    Journal(Scratch, Arc<Spilling>, Option<Arc<Control>>),
    Scratch(Scratch, Arc<Spilling>),
}

impl VfsHandle for Handle {
    fn readonly(&self) -> bool {
        match self {
            Handle::Volume(file) => file.database.settings.read_only,
            Handle::Journal(..) | Handle::Scratch(..) => false,
        }
    }
    fn in_memory(&self) -> bool {
        false
    }
}

/// The main database file of one connection.
pub(super) struct VolumeFile {
    database: Arc<Database>,
    control: Arc<Control>,
    lock: LockLevel,
    /// Pinned by SHARED.
    snapshot: Option<Snapshot>,
    /// The snapshot that SQLite's cache holds pages of, and the counter it knows it by.
    cached_version: Option<u64>,
    counter: u32,
    /// What is added to the stored schema cookie, the greatest that SQLite saw, and for which lineage.
    cookie_offset: u32,
    cookie_seen: u32,
    lineage: Option<u64>,
    /// The write transaction's pages and page count.
    dirty: Dirty,
    pages: Option<u32>,
    /// The lowest page count in this transaction: pages of the snapshot beyond it are cut off.
    low: u32,
    discard: bool,
    /// A commit was published under this lock.
    published: bool,
}

/// Refuses a connection that came into this process by a `fork()`.
fn own(handle: &Handle, code: i32) -> VfsResult<()> {
    let control = match handle {
        Handle::Volume(file) => &file.control,
        Handle::Journal(_, _, Some(control)) => control,
        Handle::Journal(_, _, None) | Handle::Scratch(..) => return Ok(()),
    };
    if control.is_inherited() {
        control.fail(INHERITED, false);
        return Err(code);
    }
    Ok(())
}

/// Runs a callback's body; a panic in it becomes SQLITE_INTERNAL.
fn guard<T>(body: impl FnOnce() -> VfsResult<T>) -> VfsResult<T> {
    catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|_| {
        tracing::error!("a VFS callback panicked; the statement fails with SQLITE_INTERNAL");
        Err(vars::SQLITE_INTERNAL)
    })
}

impl Vfs for GraftVfs {
    type Handle = Handle;

    fn canonical_path<'a>(&self, path: Cow<'a, str>) -> VfsResult<Cow<'a, str>> {
        guard(|| Ok(Database::unique_path(&path).into()))
    }

    fn open(&self, path: Option<&str>, opts: OpenOpts) -> VfsResult<Handle> {
        guard(|| match opts.kind() {
            OpenKind::MainDb => {
                let (database, control) = path.and_then(Database::resolve).ok_or(vars::SQLITE_CANTOPEN)?;
                hooks::opened(control.id);
                Ok(Handle::Volume(Box::new(VolumeFile::new(database, control))))
            }
            OpenKind::MainJournal => {
                let id = path.and_then(journal_of);
                if let Some(id) = id
                    && let Some(changes) = WRITERS.lock().get_mut(&id)
                {
                    *changes = true;
                }
                let served = id.and_then(served);
                let spilling = served.as_ref().map(|(database, _)| database.settings.spilling.clone());
                let control = served.map(|(_, control)| control);
                Ok(Handle::Journal(Scratch::default(), spilling.unwrap_or_default(), control))
            }
            // More than one database changes in this transaction, and a volume is one of them.
            OpenKind::SuperJournal => {
                if let Some((_, control)) = path.and_then(super_journal_of).and_then(served) {
                    let why = "this transaction writes a volume and another database; write one at a time";
                    control.explain(why);
                }
                Err(vars::SQLITE_CANTOPEN)
            }
            OpenKind::Wal => Err(vars::SQLITE_CANTOPEN),
            OpenKind::TempDb
            | OpenKind::TempJournal
            | OpenKind::TransientDb
            | OpenKind::SubJournal
            | OpenKind::Unknown => Ok(Handle::Scratch(Scratch::default(), Arc::default())),
        })
    }

    fn delete(&self, _path: &str) -> VfsResult<()> {
        Ok(())
    }

    /// Nothing that SQLite asks about here (a hot journal, a WAL) outlives its connection.
    fn access(&self, _path: &str, _flags: AccessFlags) -> VfsResult<bool> {
        Ok(false)
    }

    fn file_size(&self, handle: &mut Handle) -> VfsResult<usize> {
        guard(|| match handle {
            Handle::Volume(file) => Ok(file.size_pages() as usize * file.page_bytes()),
            Handle::Journal(scratch, ..) | Handle::Scratch(scratch, _) => Ok(scratch.len()),
        })
    }

    fn truncate(&self, handle: &mut Handle, size: usize) -> VfsResult<()> {
        guard(|| {
            own(handle, vars::SQLITE_IOERR_TRUNCATE)?;
            match handle {
                Handle::Volume(file) => file.truncate(size),
                Handle::Journal(scratch, ..) | Handle::Scratch(scratch, _) => {
                    scratch.truncate(size).map_err(|_| vars::SQLITE_IOERR_TRUNCATE)
                }
            }
        })
    }

    fn write(&self, handle: &mut Handle, offset: usize, data: &[u8]) -> VfsResult<usize> {
        guard(|| {
            own(handle, vars::SQLITE_IOERR_WRITE)?;
            match handle {
                Handle::Volume(file) => file.write(offset, data)?,
                Handle::Journal(..) if names_super_journal(offset, data) => {
                    return Err(vars::SQLITE_IOERR_WRITE);
                }
                Handle::Journal(scratch, spilling, control) => {
                    let (budget, dir) = (spilling.memory_bytes, spilling.dir.as_deref());
                    scratch.write(offset, data, budget, dir).map_err(|error| {
                        if let Some(control) = control {
                            control.fail(unspilled(&error), false);
                        }
                        spill_failed(&error)
                    })?;
                }
                Handle::Scratch(scratch, spilling) => {
                    let (budget, dir) = (spilling.memory_bytes, spilling.dir.as_deref());
                    scratch.write(offset, data, budget, dir).map_err(|error| spill_failed(&error))?;
                }
            }
            Ok(data.len())
        })
    }

    fn read(&self, handle: &mut Handle, offset: usize, data: &mut [u8]) -> VfsResult<usize> {
        guard(|| match handle {
            Handle::Volume(file) => file.read(offset, data),
            Handle::Journal(scratch, ..) | Handle::Scratch(scratch, _) => {
                scratch.read(offset, data).map_err(|_| vars::SQLITE_IOERR_READ)
            }
        })
    }

    fn lock(&self, handle: &mut Handle, level: LockLevel) -> VfsResult<()> {
        guard(|| {
            own(handle, vars::SQLITE_IOERR_LOCK)?;
            match handle {
                Handle::Volume(file) => file.lock(level),
                Handle::Journal(..) | Handle::Scratch(..) => Ok(()),
            }
        })
    }

    fn unlock(&self, handle: &mut Handle, level: LockLevel) -> VfsResult<()> {
        guard(|| {
            if let Handle::Volume(file) = handle
                && !file.control.is_inherited()
            {
                file.unlock(level);
            }
            Ok(())
        })
    }

    fn check_reserved_lock(&self, handle: &mut Handle) -> VfsResult<bool> {
        guard(|| match handle {
            Handle::Volume(file) => Ok(file.database.writer.lock().is_some()),
            Handle::Journal(..) | Handle::Scratch(..) => Ok(false),
        })
    }

    fn sync(&self, handle: &mut Handle) -> VfsResult<()> {
        guard(|| {
            own(handle, vars::SQLITE_IOERR_FSYNC)?;
            match handle {
                Handle::Volume(file) => file.sync(),
                Handle::Journal(..) | Handle::Scratch(..) => Ok(()),
            }
        })
    }

    fn close(&self, handle: Handle) -> VfsResult<()> {
        guard(|| {
            let inherited = match &handle {
                Handle::Volume(file) => file.control.is_inherited(),
                Handle::Journal(_, _, control) => {
                    control.as_ref().is_some_and(|control| control.is_inherited())
                }
                Handle::Scratch(..) => false,
            };
            if inherited {
                if let Handle::Volume(file) = &handle {
                    hooks::closed(file.control.id);
                    SERVED.lock().remove(&file.control.id);
                }
                // Not even the last one to have it closes a replica that is the parent's.
                std::mem::forget(handle);
                return Ok(());
            }
            if let Handle::Volume(mut file) = handle {
                file.unlock(LockLevel::Unlocked);
                hooks::closed(file.control.id);
                SERVED.lock().remove(&file.control.id);
                file.database.open.lock().remove(&file.control.id);
            }
            Ok(())
        })
    }

    fn pragma(&self, handle: &mut Handle, pragma: Pragma<'_>) -> Result<Option<String>, PragmaErr> {
        let Handle::Volume(file) = handle else { return Err(PragmaErr::NotFound) };
        if file.control.is_inherited() {
            return Err(PragmaErr::Fail(vars::SQLITE_IOERR, Some(INHERITED.into())));
        }
        catch_unwind(AssertUnwindSafe(|| file.pragma(&pragma)))
            .unwrap_or(Err(PragmaErr::Fail(vars::SQLITE_INTERNAL, None)))
    }

    /// Small, so that SQLite never journals (and so never writes) a page's neighbours.
    fn sector_size(&self, _handle: &mut Handle) -> VfsResult<i32> {
        Ok(512)
    }

    /// No claim of atomic writes: they would let SQLite skip the journal, and with it rollback.
    fn device_characteristics(&self, _handle: &mut Handle) -> VfsResult<i32> {
        Ok(vars::SQLITE_IOCAP_POWERSAFE_OVERWRITE)
    }
}

/// The volume file whose journal has this path: `NAME#ID-journal`.
fn journal_of(path: &str) -> Option<u64> {
    path.strip_suffix("-journal")?.rsplit_once('#')?.1.parse().ok()
}

/// The volume file of schema `main` in the connection whose super-journal has this path: `NAME#ID-mj…`.
fn super_journal_of(path: &str) -> Option<u64> {
    path.rsplit_once("-mj")?.0.rsplit_once('#')?.1.parse().ok()
}

fn unspilled(error: &std::io::Error) -> String {
    format!("this transaction is larger than its memory budget, and spilling it failed: {error}")
}

/// The code for a spill file that could not be written.
fn spill_failed(error: &std::io::Error) -> i32 {
    match error.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => vars::SQLITE_FULL,
        _ => vars::SQLITE_IOERR_WRITE,
    }
}

/// Text that sqlite-plugin passes to printf as its format.
fn escape_format(text: &str) -> String {
    text.replace('%', "%%")
}

impl VolumeFile {
    fn new(database: Arc<Database>, control: Arc<Control>) -> VolumeFile {
        SERVED.lock().insert(control.id, (Arc::downgrade(&database), control.clone()));
        VolumeFile {
            database,
            control,
            lock: LockLevel::Unlocked,
            snapshot: None,
            cached_version: None,
            counter: 0,
            cookie_offset: 0,
            cookie_seen: 0,
            lineage: None,
            dirty: Dirty::default(),
            pages: None,
            low: u32::MAX,
            discard: false,
            published: false,
        }
    }

    fn page_bytes(&self) -> usize {
        self.database.volume.page_size().bytes()
    }

    /// The pinned snapshot; the tip where nothing is pinned (SQLite looks at the header at open).
    fn view(&self) -> Snapshot {
        self.snapshot.clone().unwrap_or_else(|| self.database.volume.tip())
    }

    fn size_pages(&self) -> u32 {
        match (self.pages, &self.snapshot) {
            (Some(pages), _) => pages,
            (None, Some(snapshot)) => snapshot.pages(),
            (None, None) => self.database.volume.tip().pages(),
        }
    }

    fn read(&mut self, offset: usize, out: &mut [u8]) -> VfsResult<usize> {
        let page_bytes = self.page_bytes();
        let size = self.size_pages();
        let mut done = 0;
        while done < out.len() {
            let (at, within) = ((offset + done) / page_bytes, (offset + done) % page_bytes);
            let idx = u32::try_from(at + 1).ok().and_then(PageIdx::new).ok_or(vars::SQLITE_IOERR_READ)?;
            if idx.get() > size {
                break;
            }
            let (page, fields) = self.page(idx)?;
            let count = (page_bytes - within).min(out.len() - done);
            let out = &mut out[done..done + count];
            out.copy_from_slice(&page[within..within + count]);
            if let Some(fields) = fields {
                fields.overlay(out, within);
            }
            done += count;
        }
        Ok(done)
    }

    /// A page; of page 1 as it is stored, also what SQLite is to see in place of some of it.
    fn page(&mut self, idx: PageIdx) -> VfsResult<(Bytes, Option<Synthesised>)> {
        if idx != PageIdx::FIRST
            && let Some(reads) = &mut self.control.state.lock().recording
            && reads.last() != Some(&idx.get())
        {
            reads.push(idx.get());
        }
        if let Some(page) = self.written(idx, vars::SQLITE_IOERR_READ)? {
            return Ok((page, None));
        }
        if idx.get() > self.low {
            return Ok((BytesMut::zeroed(self.page_bytes()).freeze(), None));
        }
        let snapshot = self.view();
        let page = self.fetched(&snapshot, idx)?;
        if idx != PageIdx::FIRST {
            return Ok((page, None));
        }
        let stored = page1::cookie(&page);
        if self.lineage.replace(snapshot.lineage()).is_some_and(|lineage| lineage != snapshot.lineage()) {
            self.cookie_offset = self.cookie_seen.wrapping_add(1).wrapping_sub(stored);
        }
        let cookie = stored.wrapping_add(self.cookie_offset);
        self.cookie_seen = self.cookie_seen.max(cookie);
        let fields = Synthesised { counter: self.counter, cookie, sqlite_version: Host::get().version() };
        Ok((page, Some(fields)))
    }

    fn fetched(&self, snapshot: &Snapshot, idx: PageIdx) -> VfsResult<Bytes> {
        let volume = &self.database.volume;
        for _ in 0..FETCHES_MAX {
            match volume.read(snapshot, idx) {
                Ok(page) => return Ok(page),
                // In a read transaction that was open at a fork(): nobody would fetch it.
                Err(ReadError::Fault(_)) if self.control.is_inherited() => {
                    return Err(self.failed(vars::SQLITE_IOERR_READ, INHERITED));
                }
                Err(ReadError::Fault(pages)) => {
                    let fetch = || self.database.fetch.fetch(volume, snapshot, &pages);
                    catch_unwind(AssertUnwindSafe(fetch))
                        .map_err(|_| {
                            self.failed(vars::SQLITE_IOERR_READ, format!("fetching {pages:?} panicked"))
                        })?
                        .map_err(|error| {
                            let damaged = matches!(error, FetchError::Damaged(_));
                            self.failed_as(vars::SQLITE_IOERR_READ, error, damaged)
                        })?;
                }
                // Past the end of a sparse snapshot reads as zeroes.
                Err(ReadError::PastEnd { .. }) => return Ok(BytesMut::zeroed(self.page_bytes()).freeze()),
                Err(error) => return Err(self.failed(vars::SQLITE_IOERR_READ, error)),
            }
        }
        Err(self.failed(
            vars::SQLITE_IOERR_READ,
            format!("{idx:?} was fetched and is still missing: the page cache is too small"),
        ))
    }

    /// Page `idx` as this transaction wrote it.
    fn written(&self, idx: PageIdx, code: i32) -> VfsResult<Option<Bytes>> {
        self.dirty.get(idx).map_err(|error| self.failed(code, format!("the spill file: {error}")))
    }

    fn failed(&self, code: i32, error: impl std::fmt::Display) -> i32 {
        self.failed_as(code, error, false)
    }

    fn failed_as(&self, code: i32, error: impl std::fmt::Display, damaged: bool) -> i32 {
        tracing::warn!(volume = %self.database.volume.id(), %error, code, "a file operation failed");
        self.control.fail(error, damaged);
        code
    }

    fn lock(&mut self, level: LockLevel) -> VfsResult<()> {
        if self.lock == LockLevel::Unlocked && level >= LockLevel::Shared {
            let snapshot = self.database.volume.tip();
            let cold = self.control.state.lock().begin();
            if cold || self.cached_version != Some(snapshot.version()) {
                self.counter = self.counter.wrapping_add(1);
                self.cached_version = Some(snapshot.version());
            }
            self.snapshot = Some(snapshot);
            self.lock = LockLevel::Shared;
        }
        if self.lock == LockLevel::Shared && level >= LockLevel::Reserved {
            if self.database.settings.read_only {
                return Err(vars::SQLITE_READONLY);
            }
            let mut writer = self.database.writer.lock();
            if writer.is_some_and(|id| id != self.control.id) {
                return Err(vars::SQLITE_BUSY);
            }
            let pinned = self.snapshot.as_ref().map(Snapshot::version);
            if pinned != Some(self.database.volume.tip().version()) {
                return Err(vars::SQLITE_BUSY_SNAPSHOT);
            }
            *writer = Some(self.control.id);
            WRITERS.lock().insert(self.control.id, false);
        }
        self.lock = self.lock.max(level);
        Ok(())
    }

    fn unlock(&mut self, level: LockLevel) {
        if self.lock >= LockLevel::Reserved && level < LockLevel::Reserved {
            self.forget_writes();
            self.discard = false;
            self.published = false;
            WRITERS.lock().remove(&self.control.id);
            let mut writer = self.database.writer.lock();
            if *writer == Some(self.control.id) {
                *writer = None;
            }
        }
        if level == LockLevel::Unlocked {
            self.snapshot = None;
        }
        self.lock = level;
    }

    fn forget_writes(&mut self) {
        self.dirty.clear();
        self.pages = None;
        self.low = u32::MAX;
    }

    fn write(&mut self, offset: usize, data: &[u8]) -> VfsResult<()> {
        if self.discard {
            return Ok(());
        }
        if self.published {
            let error = "locking_mode=EXCLUSIVE cannot be used on a volume; set it back to NORMAL on every attached database";
            return Err(self.failed(vars::SQLITE_IOERR_WRITE, error));
        }
        let page_bytes = self.page_bytes();
        if data.len() != page_bytes || !offset.is_multiple_of(page_bytes) {
            let error = format!(
                "the volume's pages have {page_bytes} bytes, SQLite wrote {}; open it anew, and set PRAGMA page_size={page_bytes} first (PRAGMA SCHEMA.page_size where it is attached)",
                data.len()
            );
            return Err(self.failed(vars::SQLITE_IOERR_WRITE, error));
        }
        let idx = u32::try_from(offset / page_bytes + 1).ok().and_then(PageIdx::new);
        let idx = idx.ok_or(vars::SQLITE_FULL)?;
        let spilling = &self.database.settings.spilling;
        let kept = self.dirty.insert(idx, data, spilling.memory_bytes, spilling.dir.as_deref());
        kept.map_err(|error| {
            let code = spill_failed(&error);
            self.failed(code, unspilled(&error))
        })?;
        self.pages = Some(self.size_pages().max(idx.get()));
        Ok(())
    }

    fn truncate(&mut self, size: usize) -> VfsResult<()> {
        if self.discard {
            return Ok(());
        }
        let pages =
            u32::try_from(size.div_ceil(self.page_bytes())).map_err(|_| vars::SQLITE_IOERR_TRUNCATE)?;
        self.dirty.truncate(pages);
        self.low = self.low.min(pages);
        self.pages = Some(pages);
        Ok(())
    }

    fn sync(&mut self) -> VfsResult<()> {
        let Some(pages) = self.pages else { return Ok(()) };
        if self.discard {
            return Ok(());
        }
        let Some(snapshot) = self.snapshot.clone() else {
            return Err(self.failed(vars::SQLITE_IOERR_FSYNC, "SQLite wrote without a lock"));
        };
        let first = self.written(PageIdx::FIRST, vars::SQLITE_IOERR_FSYNC)?;
        let counter = first.as_ref().map(|page| page1::counter(page));
        // The end of a rollback (see above): what was spilled is as it was before.
        let cookie = first.as_ref().map(|page| page1::cookie(page));
        let Some(counter) = counter.filter(|counter| snapshot.pages() == 0 || *counter != self.counter)
        else {
            return Ok(());
        };
        if snapshot.pages() == 0 {
            // SQLite began a database of its own: there is no stored cookie to offset.
            self.cookie_offset = 0;
            self.lineage = Some(snapshot.lineage());
        }
        let first = first.as_ref();
        let named = first.map_or(self.page_bytes(), |page| page1::page_bytes(page));
        if named != self.page_bytes() {
            // VACUUM and backups copy a database of other pages byte by byte, and its count with it.
            let own = self.page_bytes();
            let error = format!("the volume's pages have {own} bytes, what was copied into it has {named}");
            self.forget_writes();
            self.discard = true;
            return Err(self.failed(vars::SQLITE_IOERR_FSYNC, error));
        }
        // What SQLite holds of page 1 is not what is stored where it wrote a WAL's version numbers.
        let kept = first.is_none_or(|page| !page1::says_wal(page));
        let pages = first.and_then(|page| page1::page_count(page)).map_or(pages, |count| count.min(pages));
        let published = self.publish(&snapshot, pages);
        self.forget_writes();
        match published {
            Ok(after) => {
                self.cookie_seen = self.cookie_seen.max(cookie.unwrap_or(0));
                self.counter = counter;
                self.cached_version = kept.then_some(after.version());
                self.snapshot = Some(after);
                self.published = true;
                Ok(())
            }
            Err(code) => {
                self.discard = true;
                Err(code)
            }
        }
    }

    /// Makes one local commit of what differs from `snapshot`; none where nothing does. Answers the
    /// snapshot that holds what SQLite wrote. Not the tip: that may have moved on since.
    fn publish(&mut self, snapshot: &Snapshot, pages: u32) -> VfsResult<Snapshot> {
        if let Some(other) = self.other_volume() {
            return Err(self.failed(
                vars::SQLITE_IOERR_FSYNC,
                format!(
                    "this transaction writes two volumes ({} and connection {other}); write one at a time",
                    self.database.name
                ),
            ));
        }
        let (change, written) = self.change(snapshot, pages)?;
        if change.is_some()
            && let Some(schema) = hooks::other_file_written(self.control.id)
        {
            let error = format!(
                "this transaction also writes the file of `{schema}`, which is no volume; write one at a time"
            );
            return Err(self.failed(vars::SQLITE_IOERR_FSYNC, error));
        }
        let Some(change) = change else { return Ok(snapshot.clone()) };
        let also = self.control.state.lock().enclosed.as_ref().map(|enclosed| enclosed.also.clone());
        match self.database.volume.commit_with(snapshot, change, also.unwrap_or_default()) {
            Ok(after) => {
                let mut state = self.control.state.lock();
                state.committed = Some(written);
                state.enclosed = None;
                Ok(after)
            }
            Err(error @ CommitError::Stale) => Err(self.failed(vars::SQLITE_BUSY_SNAPSHOT, error)),
            Err(error) => Err(self.failed(vars::SQLITE_IOERR_FSYNC, error)),
        }
    }

    /// Another volume that this connection's transaction changes.
    fn other_volume(&self) -> Option<u64> {
        let writers = WRITERS.lock();
        let journaled = writers.get(&self.control.id).copied().unwrap_or(false);
        let changing =
            writers.iter().filter(|(id, changes)| (**changes || !journaled) && **id != self.control.id);
        changing.map(|(id, _)| *id).find(|id| hooks::same_connection(*id, self.control.id))
    }

    /// What was written, as a change of `snapshot`, if it changes anything. Nothing is kept of it here.
    fn change(&mut self, snapshot: &Snapshot, pages: u32) -> VfsResult<(Option<Change>, WriteSet)> {
        let database = self.database.clone();
        let volume = &database.volume;
        let mut change = Change { pages, ..Change::default() };
        let mut marks = Marks::default();
        let mut written = std::mem::take(&mut self.dirty).into_pages().map_err(|error| {
            self.failed(vars::SQLITE_IOERR_FSYNC, format!("mapping the spill file: {error}"))
        })?;
        // Cut off and grown again without being written: reads as zeroes.
        let regrown = (self.low.saturating_add(1)..=pages.min(snapshot.pages())).filter_map(PageIdx::new);
        let zero = LazyCell::new(|| BytesMut::zeroed(volume.page_size().bytes()).freeze());
        for idx in regrown {
            written.entry(idx).or_insert_with(|| zero.clone());
        }
        for (idx, page) in written.into_iter().filter(|(idx, _)| idx.get() <= pages) {
            // A page that is not here cannot be compared without a fetch: it counts as changed.
            let before = if idx.get() > snapshot.pages() {
                None
            } else {
                match volume.read(snapshot, idx) {
                    Ok(before) => Some(before),
                    Err(ReadError::Fault(_)) if idx == PageIdx::FIRST => Some(self.fetched(snapshot, idx)?),
                    Err(ReadError::Fault(_)) => None,
                    Err(error) => return Err(self.failed(vars::SQLITE_IOERR_FSYNC, error)),
                }
            };
            if idx == PageIdx::FIRST {
                let mut stored = BytesMut::from(&page[..]);
                page1::normalise(&mut stored);
                let cookie = page1::cookie(&stored);
                page1::set_cookie(&mut stored, cookie.wrapping_sub(self.cookie_offset));
                marks = page1::marks(before.as_deref().unwrap_or_default(), &stored);
                if before.as_deref() != Some(&stored[..]) {
                    change.changes.insert(idx, stored.freeze());
                }
            } else if before.as_ref() != Some(&page) {
                change.changes.insert(idx, page);
            } else if let Some(reads) = &mut self.control.state.lock().recording {
                // It is as it was, so it is not written; but what it was is depended on. SQLite takes a
                // free page without reading it.
                reads.push(idx.get());
            }
        }
        let mut written: PageSet = change.changes.keys().copied().collect();
        written.remove(PageIdx::FIRST);
        let written = graft::snapshot::graft(written, snapshot.pages(), pages);
        let changed = !change.changes.is_empty() || pages != snapshot.pages();
        change.payload = self.control.state.lock().note(marks).encode();
        Ok((changed.then_some(change), WriteSet { pages: written, marks }))
    }

    /// Makes this a connection to another volume, or to another view of its own. SQLite sees it as a
    /// database that someone else changed: it drops its cache and reads the schema again.
    fn switch(&mut self, to: Arc<Database>) -> Result<(), String> {
        if self.lock != LockLevel::Unlocked {
            return Err("a transaction is open on this connection; end it first".into());
        }
        if to.volume.page_size() != self.database.volume.page_size() {
            return Err(format!(
                "its pages have {} bytes, those of the volume open here {}; open it as a database of its own",
                to.volume.page_size().get(),
                self.database.volume.page_size().get()
            ));
        }
        self.database.open.lock().remove(&self.control.id);
        to.open.lock().insert(self.control.id);
        SERVED.lock().insert(self.control.id, (Arc::downgrade(&to), self.control.clone()));
        self.database = to;
        self.cached_version = None;
        // No lineage of the other's is one of its.
        self.lineage = Some(u64::MAX);
        Ok(())
    }

    fn pragma(&mut self, pragma: &Pragma<'_>) -> Result<Option<String>, PragmaErr> {
        let refuse =
            |message: String| Err(PragmaErr::Fail(vars::SQLITE_ERROR, Some(escape_format(&message))));
        let ours =
            pragma.name.get(..OUR_PRAGMAS.len()).is_some_and(|at| at.eq_ignore_ascii_case(OUR_PRAGMAS));
        if ours && let Some(pragmas) = self.database.settings.pragmas.clone() {
            let answer = pragmas.pragma(&self.database, &pragma.name.to_ascii_lowercase(), pragma.arg);
            return match answer {
                None => Err(PragmaErr::NotFound),
                Some(Err(message)) => refuse(message),
                Some(Ok(PragmaAnswer::Text(text))) => Ok(Some(escape_format(&text))),
                Some(Ok(PragmaAnswer::Switch { to, text })) => match self.switch(to) {
                    Ok(()) => Ok(Some(escape_format(&text))),
                    Err(message) => refuse(message),
                },
            };
        }
        let arg = pragma.arg.map(|arg| arg.trim_matches(['\'', '"', ' ']).to_ascii_lowercase());
        match (pragma.name.to_ascii_lowercase().as_str(), arg.as_deref()) {
            // A volume needs none of SQLite's modes: it answers with the one in force.
            ("journal_mode", _) => Ok(Some("delete".into())),
            // SQLite takes any number here, modulo 8, so that 8 and 256 mean OFF as well.
            ("synchronous", Some(level)) if !SYNCHRONOUS.contains(&level) => refuse(format!(
                "synchronous={level} is refused: a volume publishes a transaction when SQLite syncs it; give NORMAL, FULL or EXTRA"
            )),
            ("locking_mode", Some("exclusive")) => refuse(
                "locking_mode=EXCLUSIVE is refused: a volume's readers never wait, so it would gain nothing"
                    .into(),
            ),
            ("page_size", Some(size)) if size.parse() != Ok(self.page_bytes()) => refuse(format!(
                "page_size={size} is refused: this volume's pages have {} bytes, fixed when it was created",
                self.page_bytes()
            )),
            _ => Err(PragmaErr::NotFound),
        }
    }
}
