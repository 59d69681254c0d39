//! The functions of the SQLite that loaded us.
#![allow(unsafe_code, reason = "SQLite's functions")]
#![allow(clippy::missing_transmute_annotations, reason = "both sides are what the field and the header say")]

use std::ffi::{CString, c_char, c_int, c_void};
use std::mem::transmute as as_ours;
use std::sync::OnceLock;

use rusqlite::ffi;
use sqlite_plugin::sqlite3_api_routines;

/// What a connection's opening calls; SQLite declares it without arguments.
pub type Connected =
    unsafe extern "C" fn(*mut ffi::sqlite3, *mut *mut c_char, *const sqlite3_api_routines) -> c_int;
type Mprintf = unsafe extern "C" fn(*const c_char, ...) -> *mut c_char;

/// SQLite's functions that tables need.
#[derive(Clone, Copy)]
pub struct Host {
    pub create_module: unsafe extern "C" fn(
        *mut ffi::sqlite3,
        *const c_char,
        *const ffi::sqlite3_module,
        *mut c_void,
        Option<unsafe extern "C" fn(*mut c_void)>,
    ) -> c_int,
    pub declare_vtab: unsafe extern "C" fn(*mut ffi::sqlite3, *const c_char) -> c_int,
    pub result_int64: unsafe extern "C" fn(*mut ffi::sqlite3_context, i64),
    pub result_null: unsafe extern "C" fn(*mut ffi::sqlite3_context),
    pub result_text: unsafe extern "C" fn(
        *mut ffi::sqlite3_context,
        *const c_char,
        c_int,
        Option<unsafe extern "C" fn(*mut c_void)>,
    ),
    pub value_text: unsafe extern "C" fn(*mut ffi::sqlite3_value) -> *const u8,
    pub value_bytes: unsafe extern "C" fn(*mut ffi::sqlite3_value) -> c_int,
    pub libversion: unsafe extern "C" fn() -> *const c_char,
    exec: unsafe extern "C" fn(
        *mut ffi::sqlite3,
        *const c_char,
        Option<unsafe extern "C" fn(*mut c_void, c_int, *mut *mut c_char, *mut *mut c_char) -> c_int>,
        *mut c_void,
        *mut *mut c_char,
    ) -> c_int,
    free: unsafe extern "C" fn(*mut c_void),
    mprintf: Mprintf,
    auto_extension: unsafe extern "C" fn(Option<Connected>) -> c_int,
}

static HOST: OnceLock<Host> = OnceLock::new();

impl Host {
    /// The SQLite that loaded us.
    pub fn get() -> Option<&'static Host> {
        HOST.get()
    }

    /// Takes the functions over; `None` where one is missing.
    ///
    /// # Safety
    ///
    /// `api` is what SQLite passed to the extension's entry point.
    pub unsafe fn set(api: *const sqlite3_api_routines) -> Option<&'static Host> {
        // SAFETY: as the caller promises; the table lives as long as the process.
        let api = unsafe { api.as_ref() }?;
        // SAFETY: sqlite-plugin's and rusqlite's bindings declare the same functions of the same C header;
        // only the names of the opaque types differ.
        let host = unsafe {
            Host {
                create_module: as_ours(api.create_module_v2?),
                declare_vtab: as_ours(api.declare_vtab?),
                result_int64: as_ours(api.result_int64?),
                result_null: as_ours(api.result_null?),
                result_text: as_ours(api.result_text?),
                value_text: as_ours(api.value_text?),
                value_bytes: as_ours(api.value_bytes?),
                libversion: api.libversion?,
                exec: as_ours(api.exec?),
                free: api.free?,
                mprintf: api.mprintf?,
                auto_extension: as_ours(api.auto_extension?),
            }
        };
        Some(HOST.get_or_init(|| host))
    }

    /// Has `connected` called for every connection that is opened from now on.
    ///
    /// # Safety
    ///
    /// `connected` lives for ever.
    pub unsafe fn for_every_connection(&self, connected: Connected) {
        // SAFETY: SQLite calls it with these three arguments, whatever its declaration says. It fails only
        // for lack of memory; then new connections have no tables.
        unsafe { (self.auto_extension)(Some(connected)) };
    }

    /// Runs SQL whose rows nobody needs; SQLite's code where it fails.
    ///
    /// # Safety
    ///
    /// `db` is an open connection of this SQLite.
    pub unsafe fn run(&self, db: *mut ffi::sqlite3, sql: &str) -> Result<(), c_int> {
        let sql = CString::new(sql).map_err(|_| ffi::SQLITE_ERROR)?;
        // SAFETY: as the caller promises; no callback, and no place for a message.
        match unsafe { (self.exec)(db, sql.as_ptr(), None, std::ptr::null_mut(), std::ptr::null_mut()) } {
            ffi::SQLITE_OK => Ok(()),
            code => Err(code),
        }
    }

    /// `text` in memory of SQLite's.
    pub fn text(&self, text: &str) -> *mut c_char {
        let text = CString::new(text.replace('\0', " ")).unwrap_or_default();
        // SAFETY: a constant format with one string.
        unsafe { (self.mprintf)(c"%s".as_ptr(), text.as_ptr()) }
    }

    /// Replaces a message that SQLite will free.
    ///
    /// # Safety
    ///
    /// `place` is null, or holds null or memory of SQLite's.
    pub unsafe fn replace_message(&self, place: *mut *mut c_char, text: &str) {
        // SAFETY: as the caller promises.
        if let Some(place) = unsafe { place.as_mut() } {
            // SAFETY: as the caller promises; freeing null does nothing.
            unsafe { (self.free)((*place).cast()) };
            *place = self.text(text);
        }
    }
}

/// Leaves a message where the entry point failed, also where the rest of the functions are missing.
///
/// # Safety
///
/// The arguments of the extension's entry point.
pub unsafe fn set_message(api: *const sqlite3_api_routines, place: *mut *mut c_char, text: &str) {
    // SAFETY: as the caller promises.
    let (api, place) = unsafe { (api.as_ref(), place.as_mut()) };
    if let (Some(mprintf), Some(place), Ok(text)) =
        (api.and_then(|api| api.mprintf), place, CString::new(text))
    {
        // SAFETY: a constant format with one string.
        *place = unsafe { mprintf(c"%s".as_ptr(), text.as_ptr()) };
    }
}
