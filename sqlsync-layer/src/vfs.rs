//! SQLite on volumes: a VFS named `graft`, through sqlite-plugin.
//!
//! A [`Database`] is one volume opened for SQLite in this process; every connection to it is an
//! ordinary SQLite connection. SHARED pins a snapshot, so readers never wait. RESERVED takes the
//! volume's one writer, and answers BUSY_SNAPSHOT where the pinned snapshot is no longer the tip. The
//! sync at the end of COMMIT publishes one local commit of the pages whose bytes differ, and nothing
//! where none do; where it fails, COMMIT fails and SQLite rolls back.
//!
//! Read and write sets are recorded here. Page 1, which every transaction reads and SQLite rewrites
//! on every commit, never enters a set: two [marks](page1::Marks) stand for it.
//!
//! | module | holds |
//! | --- | --- |
//! | `file` | a connection's view of the volume: locks, reads, writes, sync |
//! | `spill` | the pages a transaction wrote: in memory, beyond a budget in a file |
//! | `scratch` | journals and temporary files, likewise |
//! | `host` | which SQLite is served: the one linked in, or the one that loaded an extension |
//! | [`page1`] | what is stored of page 1, what is synthesised, and the marks |
//! | [`note`] | what a local commit carries beside its pages: marks, reads, a layer's own note |
//! | [`scope`] | SQLite's clock and randomness while a mutation runs |
//! | [`mod@warm`] | the pages that every query reads, fetched at open |
//! | `hooks` | what sqlite-plugin does not pass on: the clock, and which connection a file is of |
//!
//! Invariants: a transaction that ends in rollback publishes nothing; a COMMIT that reports an error
//! has published nothing; a transaction writes one volume and no other file; no callback panics into
//! SQLite.

mod file;
mod hooks;
mod host;
pub mod note;
pub mod page1;
pub mod scope;
mod scratch;
mod spill;
#[cfg(test)]
mod tests;
pub mod warm;

use std::collections::{HashMap, HashSet};
use std::ffi::CString;
use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, OnceLock, Weak};

use bytes::Bytes;
use graft::fetch::Fetch;
use graft::store::Batch;
use graft::volume::Volume;
use graft::{PageIdx, PageSet};
use parking_lot::Mutex;
use rusqlite::hooks::{AuthAction, AuthContext, Authorization};
use rusqlite::{Connection, OpenFlags};
use sqlite_plugin::vfs::{RegisterOpts, register_static};

pub use self::note::Note;
pub use self::page1::Marks;
pub use self::warm::{Warmth, warm};

/// The VFS's name, for `file:…?vfs=graft` and `open_with_flags_and_vfs`.
pub const VFS_NAME: &str = "graft";

/// Open databases by the name that SQLite opens them under.
static DATABASES: LazyLock<Mutex<HashMap<String, Weak<Database>>>> = LazyLock::new(Mutex::default);
static NEXT_ID: AtomicU64 = AtomicU64::new(1);

/// Why a connection could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// SQLite would not register the VFS (its code).
    #[error("SQLite refused the VFS `graft` with code {0}")]
    Register(i32),
    /// SQLite could not open the database.
    #[error("the volume could not be opened as a SQLite database: {0}")]
    Sqlite(#[from] rusqlite::Error),
    /// A page that opening needs could not be read.
    #[error("the volume could not be opened as a SQLite database: {0}")]
    Volume(IoFailure),
}

/// What really happened when SQLite said "disk I/O error".
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IoFailure {
    /// What failed, and for a damaged object which.
    pub message: String,
    /// Whether stored bytes are damaged, so that trying again cannot help.
    pub damaged: bool,
}

impl fmt::Display for IoFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

fn register() -> Result<(), ConnectError> {
    static REGISTERED: LazyLock<Result<(), i32>> = LazyLock::new(|| {
        let name = CString::new(VFS_NAME).expect("the name has no NUL");
        register_static(name, file::GraftVfs, RegisterOpts { make_default: false })?;
        hooks::install(VFS_NAME, true)
    });
    REGISTERED.map_err(ConnectError::Register)
}

/// Serves the SQLite whose routines are `api`, in place of the one linked in: the VFS is registered with
/// it, and [`Database::connect`] is not for use in this process. May be called again.
///
/// # Errors
///
/// SQLite's code. `SQLITE_ERROR`: it is older than 3.39, or this process serves another one already.
///
/// # Safety
///
/// `api` is what SQLite passed to an extension's entry point, and the extension is never unloaded.
#[cfg(feature = "extension")]
#[allow(unsafe_code, reason = "SQLite's routines")]
pub unsafe fn register_with(api: *mut sqlite_plugin::sqlite3_api_routines) -> Result<(), i32> {
    static REGISTERED: Mutex<bool> = Mutex::new(false);
    let mut registered = REGISTERED.lock();
    if *registered {
        return Ok(());
    }
    // SAFETY: as the caller promises.
    let routines = unsafe { api.as_ref() }.ok_or(sqlite_plugin::vars::SQLITE_MISUSE)?;
    // SAFETY: as the caller promises.
    unsafe { host::Host::set(routines) }.ok_or(sqlite_plugin::vars::SQLITE_ERROR)?;
    let name = CString::new(VFS_NAME).map_err(|_| sqlite_plugin::vars::SQLITE_ERROR)?;
    let options = RegisterOpts { make_default: false };
    // SAFETY: as the caller promises.
    unsafe { sqlite_plugin::vfs::register_dynamic(api, name, file::GraftVfs, options) }?;
    hooks::install(VFS_NAME, false)?;
    *registered = true;
    Ok(())
}

/// Where the pages of large transactions, journals and temporary files go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spilling {
    /// Bytes of one transaction's pages, and of each journal, that are kept in memory.
    pub memory_bytes: usize,
    /// Where the rest goes, in files without a name; the system's temporary directory where `None`.
    pub dir: Option<PathBuf>,
}

impl Default for Spilling {
    /// 64 MiB in memory; 1 GiB on wasm32, where there is nothing else.
    fn default() -> Spilling {
        #[cfg(target_arch = "wasm32")]
        let memory_bytes = spill::MEMORY_ONLY_BYTES_MAX;
        #[cfg(not(target_arch = "wasm32"))]
        let memory_bytes = 64 << 20;
        Spilling { memory_bytes, dir: None }
    }
}

/// How a volume is served to SQLite.
#[derive(Clone, Default)]
pub struct Settings {
    /// What large transactions do.
    pub spilling: Arc<Spilling>,
    /// Whether SQLite is told that the file cannot be written.
    pub read_only: bool,
    /// Who answers pragmas whose names begin with `graft_`.
    pub pragmas: Option<Arc<dyn Pragmas>>,
}

/// Answers pragmas of our own.
pub trait Pragmas: Send + Sync {
    /// Answers `PRAGMA {name} = {argument}` on a connection to `database`; `name` is in lower case. `None`
    /// where there is no such pragma, an error as one line of text. May block. Called while SQLite prepares
    /// the statement, on the thread that does.
    fn pragma(
        &self,
        database: &Arc<Database>,
        name: &str,
        argument: Option<&str>,
    ) -> Option<Result<PragmaAnswer, String>>;
}

/// What a pragma answers.
#[derive(Debug, Clone)]
pub enum PragmaAnswer {
    /// One row of one text.
    Text(String),
    /// The connection goes on on another database, and the row is this text.
    Switch {
        /// The database to go on on; of the same page size.
        to: Arc<Database>,
        /// The row.
        text: String,
    },
}

/// What is taken from a file's URI beside its name.
pub const URI_PARAMETERS: [&str; 5] = ["remote", "data", "disk_bytes", "at", "page_size"];

/// What SQLite asks an [`Opener`] for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OpenRequest {
    /// The file's name.
    pub name: String,
    /// What its URI says of [`URI_PARAMETERS`].
    pub parameters: Vec<(&'static str, String)>,
    /// Whether a database that is not there is to be made.
    pub create: bool,
    /// Whether it is opened to be read only.
    pub read_only: bool,
}

/// Finds or opens the database that SQLite asks for; see [`set_opener`].
pub type Opener = fn(&OpenRequest) -> Option<Arc<Database>>;

static OPENER: OnceLock<Opener> = OnceLock::new();

/// Sets who opens every database by the name that SQLite has for it, instead of
/// [`Database::name`]. The first setting counts.
pub fn set_opener(opener: Opener) {
    let _ = OPENER.set(opener);
}

/// The database that schema `schema` of a connection is, and the connection's control; `None` where it is
/// no volume.
///
/// # Safety
///
/// `connection` is an open `sqlite3*` of the SQLite that is served, and the caller is inside a call on it.
#[allow(unsafe_code, reason = "SQLite's handles")]
pub unsafe fn database_of(
    connection: *mut std::ffi::c_void,
    schema: &std::ffi::CStr,
) -> Option<(Arc<Database>, Arc<Control>)> {
    // SAFETY: as the caller promises.
    let id = unsafe { hooks::file_of(connection.cast(), schema) }?;
    file::served(id)
}

/// One volume, open for SQLite.
pub struct Database {
    name: String,
    volume: Arc<Volume>,
    fetch: Arc<dyn Fetch>,
    settings: Settings,
    /// The connection that holds RESERVED.
    writer: Mutex<Option<u64>>,
    /// Controls of connections opened by [`Database::connect`], until SQLite opens their file.
    expected: Mutex<HashMap<u64, Arc<Control>>>,
    /// The files that are open. A path belongs to one of them: two would be one writer.
    open: Mutex<HashSet<u64>>,
}

impl fmt::Debug for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Database({}, {:?})", self.name, self.volume)
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        DATABASES.lock().remove(&self.name);
    }
}

impl Database {
    /// Makes `volume` known to SQLite under a name of its own; see [`Database::name`].
    pub fn new(volume: Arc<Volume>, fetch: Arc<dyn Fetch>) -> Arc<Database> {
        Database::with(volume, fetch, Settings::default())
    }

    /// As [`Database::new`], with settings of its own.
    pub fn with(volume: Arc<Volume>, fetch: Arc<dyn Fetch>, settings: Settings) -> Arc<Database> {
        let name = format!("volume-{}", NEXT_ID.fetch_add(1, Ordering::Relaxed));
        let database = Arc::new(Database {
            name: name.clone(),
            volume,
            fetch,
            settings,
            writer: Mutex::new(None),
            expected: Mutex::default(),
            open: Mutex::default(),
        });
        DATABASES.lock().insert(name, Arc::downgrade(&database));
        database
    }

    /// What SQLite opens it as: `Connection::open_with_flags_and_vfs(db.name(), flags, "graft")`, or
    /// `ATTACH 'file:NAME?vfs=graft'`. Works while the `Database` lives.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The volume under it.
    pub fn volume(&self) -> &Arc<Volume> {
        &self.volume
    }

    /// Who fetches for it.
    pub fn fetch(&self) -> &Arc<dyn Fetch> {
        &self.fetch
    }

    /// Whether a connection has begun to write, or waits at COMMIT.
    pub fn is_writing(&self) -> bool {
        self.writer.lock().is_some()
    }

    /// Opens a connection, and a handle on what it reads and writes.
    pub fn connect(self: &Arc<Database>) -> Result<(Connection, Arc<Control>), ConnectError> {
        self.open(OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE)
    }

    /// Opens a connection whose local commits all know what was read for them
    /// ([`Note::reads`]), so that they may merge with what others committed. Every transaction begins
    /// cold, and the reads add up over the connection's life: temporary tables and functions like
    /// `last_insert_rowid` carry what one transaction read into the next.
    pub fn connect_recorded(self: &Arc<Database>) -> Result<(Connection, Arc<Control>), ConnectError> {
        let (mut connection, control) = self.connect()?;
        control.state.lock().every = true;
        let watching = control.clone();
        connection.authorizer(Some(move |context: AuthContext<'_>| {
            if reads_allocator(&context.action) {
                watching.state.lock().allocator = true;
            }
            Authorization::Allow
        }))?;
        Ok((connection, control))
    }

    /// Opens a connection that cannot write.
    pub fn connect_read_only(self: &Arc<Database>) -> Result<(Connection, Arc<Control>), ConnectError> {
        self.open(OpenFlags::SQLITE_OPEN_READ_ONLY)
    }

    fn open(self: &Arc<Database>, flags: OpenFlags) -> Result<(Connection, Arc<Control>), ConnectError> {
        register()?;
        let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
        let control = Arc::new(Control::new(id));
        self.expected.lock().insert(id, control.clone());
        let flags = flags | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_URI;
        let opened = Connection::open_with_flags_and_vfs(format!("{}#{id}", self.name), flags, VFS_NAME);
        self.expected.lock().remove(&id);
        let ready = opened.and_then(|connection| {
            connection.pragma_update(None, "page_size", self.volume.page_size().get())?;
            Ok(connection)
        });
        match ready {
            Ok(connection) => Ok((connection, control)),
            Err(error) => {
                Err(control.take_failure().map_or(ConnectError::Sqlite(error), ConnectError::Volume))
            }
        }
    }

    /// The database and control that SQLite's path leads to: `NAME#ID`.
    fn resolve(path: &str) -> Option<(Arc<Database>, Arc<Control>)> {
        let (name, id) = path.rsplit_once('#')?;
        let id: u64 = id.parse().ok()?;
        let request = OpenRequest { name: name.into(), ..hooks::request() };
        let database = match OPENER.get() {
            Some(open) => open(&request)?,
            None => DATABASES.lock().get(name).and_then(Weak::upgrade)?,
        };
        if !database.open.lock().insert(id) {
            return None;
        }
        let control = database.expected.lock().remove(&id).unwrap_or_else(|| Arc::new(Control::new(id)));
        Some((database, control))
    }

    /// The unique path of one more connection to the database that `path` names. SQLite derives the
    /// journal's name from it, so a journal belongs to one connection.
    fn unique_path(path: &str) -> String {
        if path.contains('#') {
            path.into()
        } else {
            format!("{path}#{}", NEXT_ID.fetch_add(1, Ordering::Relaxed))
        }
    }
}

/// What a read transaction touched. Complete only where it began cold, as [`Control::record`] makes it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ReadSet {
    /// Pages read, page 1 left out.
    pub pages: PageSet,
}

/// What a commit changed.
#[derive(Debug, Clone, PartialEq)]
pub struct WriteSet {
    /// Pages that read differently afterwards, page 1 left out, pages cut off included.
    pub pages: PageSet,
    /// What it changed of page 1.
    pub marks: Marks,
}

impl WriteSet {
    /// Whether a query that read `reads` may answer differently afterwards. The allocator mark wakes
    /// nothing; the schema mark wakes everything.
    pub fn wakes(&self, reads: &ReadSet) -> bool {
        self.marks.schema || self.pages.intersects(&reads.pages)
    }
}

/// Whether a statement asks for allocator state: page counts, free pages, what lies on which page. Page
/// sets do not show that, since it is in page 1.
fn reads_allocator(action: &AuthAction<'_>) -> bool {
    const PRAGMAS: [&str; 7] = [
        "page_count",
        "freelist_count",
        "incremental_vacuum",
        "auto_vacuum",
        "max_page_count",
        "integrity_check",
        "quick_check",
    ];
    let is_one = |name: &str| PRAGMAS.iter().any(|pragma| name.eq_ignore_ascii_case(pragma));
    match action {
        AuthAction::Pragma { pragma_name, .. } => is_one(pragma_name),
        AuthAction::Read { table_name, .. } => {
            ["dbstat", "sqlite_dbpage"].iter().any(|table| table_name.eq_ignore_ascii_case(table))
                || table_name.get(..7).is_some_and(|prefix| prefix.eq_ignore_ascii_case("pragma_"))
                    && table_name.get(7..).is_some_and(is_one)
        }
        _ => false,
    }
}

/// What the next local commit of a connection takes with it.
#[derive(Debug, Clone, Default)]
struct Enclosed {
    note: Bytes,
    also: Batch,
}

#[derive(Debug, Default)]
struct ControlState {
    recording: Option<Vec<u32>>,
    cold: bool,
    /// Every transaction is recorded; see [`Database::connect_recorded`].
    every: bool,
    /// A file operation failed during the recording: what it would have read is missing.
    aborted: bool,
    /// A statement that reads allocator state was prepared on this connection.
    allocator: bool,
    enclosed: Option<Enclosed>,
    committed: Option<WriteSet>,
    failure: Option<IoFailure>,
}

/// A handle on one connection's recording.
#[derive(Debug)]
pub struct Control {
    id: u64,
    /// The process that opened the connection.
    process: u32,
    state: Mutex<ControlState>,
}

/// Why a connection that is [inherited](Control::is_inherited) is refused.
pub const INHERITED: &str =
    "this connection was opened before fork(), by the process that forked; open one in this process";

/// The number of this process; 0 where there are none.
fn process() -> u32 {
    #[cfg(target_arch = "wasm32")]
    return 0;
    #[cfg(not(target_arch = "wasm32"))]
    std::process::id()
}

impl Control {
    fn new(id: u64) -> Control {
        Control { id, process: process(), state: Mutex::default() }
    }

    /// Whether the connection came into this process by a `fork()`. The threads that work for it did not,
    /// and what it spilled is still its parent's.
    pub fn is_inherited(&self) -> bool {
        self.process != process()
    }

    /// A control of no connection, which never has anything to say.
    pub fn detached() -> Arc<Control> {
        Arc::new(Control::new(0))
    }

    /// Records the pages of the next read transaction, which begins cold: SQLite drops its cache, so
    /// that every page it uses is read here.
    pub fn record(&self) {
        let mut state = self.state.lock();
        state.recording = Some(Vec::new());
        state.aborted = false;
        state.cold = true;
    }

    /// Ends a recording and answers it.
    pub fn recorded(&self) -> ReadSet {
        let pages = self.state.lock().recording.take().unwrap_or_default();
        ReadSet { pages: pages.into_iter().filter_map(PageIdx::new).collect() }
    }

    /// What the last COMMIT on this connection published since this was last asked; `None` where it
    /// published nothing.
    pub fn take_committed(&self) -> Option<WriteSet> {
        self.state.lock().committed.take()
    }

    /// What really happened when SQLite said "disk I/O error", since this was last asked.
    pub fn take_failure(&self) -> Option<IoFailure> {
        self.state.lock().failure.take()
    }

    /// The next local commit of this connection takes `note` in its payload ([`Note::enclosed`]) and
    /// `also` into the batch that stores it.
    pub fn enclose(&self, note: Bytes, also: Batch) {
        self.state.lock().enclosed = Some(Enclosed { note, also });
    }

    /// Takes back what no commit took: the transaction changed nothing, or failed.
    pub fn take_enclosed(&self) -> Option<(Bytes, Batch)> {
        self.state.lock().enclosed.take().map(|Enclosed { note, also }| (note, also))
    }

    /// Says why SQLite gets an error that nothing has to be undone for.
    pub(crate) fn explain(&self, message: impl fmt::Display) {
        self.state.lock().failure = Some(IoFailure { message: message.to_string(), damaged: false });
    }

    pub(crate) fn fail(&self, message: impl fmt::Display, damaged: bool) {
        let mut state = self.state.lock();
        state.aborted = true;
        state.failure = Some(IoFailure { message: message.to_string(), damaged });
    }
}

impl ControlState {
    /// A read transaction begins. Answers whether it must find SQLite's cache empty.
    fn begin(&mut self) -> bool {
        if self.every {
            let reads = self.recording.get_or_insert_default();
            reads.sort_unstable();
            reads.dedup();
            self.cold = true;
        }
        std::mem::take(&mut self.cold)
    }

    /// What is known of a commit with these marks.
    fn note(&self, marks: Marks) -> Note {
        let reads = self.recording.as_ref().filter(|_| !self.aborted);
        Note {
            marks,
            reads: reads.map(|pages| pages.iter().copied().filter_map(PageIdx::new).collect()),
            reads_allocator: self.allocator,
            enclosed: self.enclosed.as_ref().map(|enclosed| enclosed.note.clone()).unwrap_or_default(),
        }
    }
}
