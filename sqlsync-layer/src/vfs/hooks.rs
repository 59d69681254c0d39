//! What sqlite-plugin does not pass on, taken from SQLite directly.
//!
//! - The VFS's clock: `xCurrentTimeInt64` answers from [`super::scope`] while a mutation runs.
//! - `localtime`: denied while a mutation runs, since its answer depends on the machine.
//! - Which connection (`sqlite3*`) a file belongs to: `SQLITE_FCNTL_PDB`. Two volumes written by one
//!   connection in one transaction must be refused, also where SQLite uses no super-journal.
//!
//! [`install`] changes the registered VFS's table once, before any file is opened through it: it puts
//! our functions in front of sqlite-plugin's and calls those from ours.
#![allow(unsafe_code, reason = "callbacks from C and a table of function pointers")]

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::sync::{LazyLock, OnceLock};

use parking_lot::Mutex;
use rusqlite::ffi::{
    SQLITE_ERROR, SQLITE_FCNTL_FILE_POINTER, SQLITE_FCNTL_PDB, SQLITE_FCNTL_VFS_POINTER, SQLITE_OK,
    SQLITE_OPEN_CREATE, SQLITE_OPEN_MAIN_DB, SQLITE_OPEN_READONLY, SQLITE_TXN_WRITE, sqlite3, sqlite3_file,
    sqlite3_int64, sqlite3_io_methods, sqlite3_vfs,
};

use super::host::Host;
use super::{OpenRequest, scope};

/// Milliseconds from the Julian epoch to 1970.
const UNIX_EPOCH_JULIAN_MS: i64 = 210_866_760_000_000;

type XOpen =
    unsafe extern "C" fn(*mut sqlite3_vfs, *const c_char, *mut sqlite3_file, c_int, *mut c_int) -> c_int;
type XTime = unsafe extern "C" fn(*mut sqlite3_vfs, *mut sqlite3_int64) -> c_int;
type XFileControl = unsafe extern "C" fn(*mut sqlite3_file, c_int, *mut c_void) -> c_int;

struct Originals {
    open: XOpen,
    time: XTime,
    methods: OnceLock<Methods>,
}
struct Methods {
    ours: sqlite3_io_methods,
    file_control: XFileControl,
}

static ORIGINALS: OnceLock<Originals> = OnceLock::new();
/// The volume file that a `sqlite3_file*` is, and the `sqlite3*` that a volume file belongs to. Both
/// pointers are used as numbers only.
static FILES: LazyLock<Mutex<HashMap<usize, u64>>> = LazyLock::new(Mutex::default);
static OWNERS: LazyLock<Mutex<HashMap<u64, usize>>> = LazyLock::new(Mutex::default);

thread_local! {
    /// The volume file that the plugin's open, running inside ours, has just opened.
    static OPENED: Cell<Option<u64>> = const { Cell::new(None) };
    /// What the open that is running on this thread was asked for.
    static REQUEST: RefCell<Option<OpenRequest>> = const { RefCell::new(None) };
}

/// What the open that is running on this thread was asked for, apart from the name.
pub(super) fn request() -> OpenRequest {
    REQUEST.take().unwrap_or_default()
}

/// The volume file that schema `schema` of a connection is.
///
/// # Safety
///
/// `db` is an open connection of the SQLite that is served, and the caller is inside a call on it.
pub(super) unsafe fn file_of(db: *mut sqlite3, schema: &CStr) -> Option<u64> {
    let mut file: *mut sqlite3_file = std::ptr::null_mut();
    // SAFETY: as the caller promises; the operation writes one pointer.
    let code = unsafe {
        (Host::get().file_control)(db, schema.as_ptr(), SQLITE_FCNTL_FILE_POINTER, (&raw mut file).cast())
    };
    if code != SQLITE_OK {
        return None;
    }
    FILES.lock().get(&file.addr()).copied()
}

/// Tells the open that is running on this thread which volume file it opened.
pub(super) fn opened(id: u64) {
    OPENED.set(Some(id));
}

/// Forgets a volume file.
pub(super) fn closed(id: u64) {
    OWNERS.lock().remove(&id);
    FILES.lock().retain(|_, file| *file != id);
}

/// Whether two volume files belong to one connection.
pub(super) fn same_connection(a: u64, b: u64) -> bool {
    let owners = OWNERS.lock();
    owners.get(&a).is_some_and(|owner| owners.get(&b) == Some(owner))
}

/// The schema of another database, with a file and no volume, that the connection of a volume file
/// writes in its present transaction. Only for use inside of a callback of that connection.
pub(super) fn other_file_written(id: u64) -> Option<String> {
    let owner = *OWNERS.lock().get(&id)?;
    let db = std::ptr::with_exposed_provenance_mut::<sqlite3>(owner);
    if db.is_null() {
        return None;
    }
    let host = Host::get();
    (0..)
        .map_while(|index| {
            // SAFETY: the callback runs inside a call on this connection, so `db` is open and its mutex is
            // ours; SQLite answers null past the last schema, else strings that live until it is detached.
            let name = unsafe { (host.db_name)(db, index) };
            (!name.is_null()).then_some(name)
        })
        .find_map(|name| {
            // SAFETY: as above; the file control answers the VFS that serves the schema, or fails.
            let (writes, file, vfs) = unsafe {
                let writes = (host.txn_state)(db, name) == SQLITE_TXN_WRITE;
                let file = (host.db_filename)(db, name);
                let mut vfs: *mut sqlite3_vfs = std::ptr::null_mut();
                (host.file_control)(db, name, SQLITE_FCNTL_VFS_POINTER, (&raw mut vfs).cast());
                (writes, file, vfs)
            };
            // SAFETY: a filename is a NUL-terminated string; a temporary database has an empty one.
            let has_file = !file.is_null() && unsafe { *file } != 0;
            // SAFETY: a registered VFS lives on; ours is told by the function that only it has.
            let ours = unsafe { vfs.as_ref() }
                .is_some_and(|vfs| vfs.xOpen.is_some_and(|open| std::ptr::fn_addr_eq(open, x_open as XOpen)));
            if !(writes && has_file) || ours {
                return None;
            }
            // SAFETY: a schema's name is a NUL-terminated string.
            Some(unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned())
        })
}

/// Puts our functions in front of the registered VFS's. `linked`: of the SQLite linked in.
pub(super) fn install(name: &str, linked: bool) -> Result<(), i32> {
    let name = CString::new(name).map_err(|_| SQLITE_ERROR)?;
    // SAFETY: the name is a NUL-terminated string; SQLite answers a VFS that lives until it is
    // unregistered (ours never is) or null.
    let vfs = unsafe { (Host::get().vfs_find)(name.as_ptr()).as_mut() }.ok_or(SQLITE_ERROR)?;
    let (Some(open), Some(time)) = (vfs.xOpen, vfs.xCurrentTimeInt64) else { return Err(SQLITE_ERROR) };
    // `install` runs once, under the registration's lock.
    let _ = ORIGINALS.set(Originals { open, time, methods: OnceLock::new() });
    vfs.xOpen = Some(x_open);
    vfs.xCurrentTimeInt64 = Some(x_current_time_int64);
    if linked {
        deny_localtime_in_scopes();
    }
    Ok(())
}

unsafe extern "C" fn x_open(
    vfs: *mut sqlite3_vfs,
    name: *const c_char,
    file: *mut sqlite3_file,
    flags: c_int,
    out_flags: *mut c_int,
) -> c_int {
    let Some(originals) = ORIGINALS.get() else { return SQLITE_ERROR };
    OPENED.set(None);
    if flags & SQLITE_OPEN_MAIN_DB != 0 && !name.is_null() {
        // SAFETY: the name of a main database, as SQLite passed it.
        let parameter = |key| unsafe { Host::get().uri_parameter(name, key) };
        let request = OpenRequest {
            parameters: super::URI_PARAMETERS
                .iter()
                .filter_map(|key| Some((*key, parameter(key)?)))
                .collect(),
            create: flags & SQLITE_OPEN_CREATE != 0,
            read_only: flags & SQLITE_OPEN_READONLY != 0,
            ..OpenRequest::default()
        };
        REQUEST.set(Some(request));
    }
    // SAFETY: SQLite's own arguments, passed on unchanged to the function it would have called.
    let code = unsafe { (originals.open)(vfs, name, file, flags, out_flags) };
    let Some(id) = OPENED.take().filter(|_| code == SQLITE_OK) else { return code };
    // SAFETY: the open succeeded, so `file` points to a file whose methods table is the plugin's,
    // which is filled and never moves.
    let (file, theirs) = unsafe { (&mut *file, &*(*file).pMethods) };
    let Some(file_control) = theirs.xFileControl else { return code };
    let methods = originals.methods.get_or_init(|| {
        // SAFETY: a table of function pointers and a version number; copying it byte by byte is
        // what C code does with it.
        let mut ours = unsafe { std::ptr::read(theirs) };
        ours.xFileControl = Some(x_file_control);
        Methods { ours, file_control }
    });
    file.pMethods = &methods.ours;
    FILES.lock().insert(std::ptr::from_mut(file).addr(), id);
    code
}

unsafe extern "C" fn x_file_control(file: *mut sqlite3_file, op: c_int, arg: *mut c_void) -> c_int {
    let Some(methods) = ORIGINALS.get().and_then(|originals| originals.methods.get()) else {
        return SQLITE_ERROR;
    };
    if op == SQLITE_FCNTL_PDB {
        // SAFETY: for this operation SQLite passes the address of its `sqlite3*`.
        let owner = unsafe { arg.cast::<*mut c_void>().as_ref() }.map_or(0, |db| db.expose_provenance());
        if let Some(id) = FILES.lock().get(&file.addr()).copied() {
            OWNERS.lock().insert(id, owner);
        }
    }
    // SAFETY: SQLite's own arguments, passed on unchanged.
    unsafe { (methods.file_control)(file, op, arg) }
}

unsafe extern "C" fn x_current_time_int64(vfs: *mut sqlite3_vfs, out: *mut sqlite3_int64) -> c_int {
    scope::count_clock_read();
    match (scope::now_ms(), ORIGINALS.get()) {
        (Some(now_ms), _) => {
            // SAFETY: SQLite passes a pointer to an integer that it owns.
            unsafe { *out = now_ms.saturating_add(UNIX_EPOCH_JULIAN_MS) };
            SQLITE_OK
        }
        // SAFETY: SQLite's own arguments, passed on unchanged.
        (None, Some(originals)) => unsafe { (originals.time)(vfs, out) },
        (None, None) => SQLITE_ERROR,
    }
}

#[cfg(not(target_arch = "wasm32"))]
fn deny_localtime_in_scopes() {
    use rusqlite::ffi::{SQLITE_TESTCTRL_LOCALTIME_FAULT, sqlite3_test_control};

    unsafe extern "C" fn localtime(time: *const c_void, out: *mut c_void) -> c_int {
        if scope::now_ms().is_some() {
            return 1;
        }
        // SAFETY: SQLite documents the arguments as `const time_t*` and `struct tm*`.
        let done = unsafe { libc::localtime_r(time.cast(), out.cast()) };
        c_int::from(done.is_null())
    }
    let callback: unsafe extern "C" fn(*const c_void, *mut c_void) -> c_int = localtime;
    // SAFETY: the operation takes an int and, for 2, a function of exactly this type.
    unsafe { sqlite3_test_control(SQLITE_TESTCTRL_LOCALTIME_FAULT, 2 as c_int, callback) };
}

/// The browser's SQLite knows no time zone.
#[cfg(target_arch = "wasm32")]
fn deny_localtime_in_scopes() {}
