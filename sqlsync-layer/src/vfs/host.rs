//! Which SQLite we serve: the one linked in, or in an extension the one that loaded us.
//!
//! The few functions that the VFS itself calls are kept here as pointers. An extension carries a
//! SQLite of its own beside (to import and export files), whose functions must never be called with a
//! handle of the host's.
#![allow(unsafe_code, reason = "SQLite's functions")]

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::sync::OnceLock;

use rusqlite::ffi;

/// SQLite's functions that the VFS calls.
#[derive(Clone, Copy)]
pub(super) struct Host {
    pub vfs_find: unsafe extern "C" fn(*const c_char) -> *mut ffi::sqlite3_vfs,
    pub db_name: unsafe extern "C" fn(*mut ffi::sqlite3, c_int) -> *const c_char,
    pub db_filename: unsafe extern "C" fn(*mut ffi::sqlite3, *const c_char) -> *const c_char,
    pub txn_state: unsafe extern "C" fn(*mut ffi::sqlite3, *const c_char) -> c_int,
    pub file_control: unsafe extern "C" fn(*mut ffi::sqlite3, *const c_char, c_int, *mut c_void) -> c_int,
    pub uri_parameter: unsafe extern "C" fn(*const c_char, *const c_char) -> *const c_char,
    pub libversion_number: unsafe extern "C" fn() -> c_int,
}

static HOST: OnceLock<Host> = OnceLock::new();

impl Host {
    /// The SQLite linked in.
    fn linked() -> Host {
        Host {
            vfs_find: ffi::sqlite3_vfs_find,
            db_name: ffi::sqlite3_db_name,
            db_filename: ffi::sqlite3_db_filename,
            txn_state: ffi::sqlite3_txn_state,
            file_control: ffi::sqlite3_file_control,
            uri_parameter: ffi::sqlite3_uri_parameter,
            libversion_number: ffi::sqlite3_libversion_number,
        }
    }

    /// The SQLite in force; from the first look the one linked in, unless another was set.
    pub(super) fn get() -> &'static Host {
        HOST.get_or_init(Host::linked)
    }

    /// Serves the SQLite whose routines are `api`. `None` where one is missing (it is too old), or where
    /// another SQLite is served already.
    ///
    /// # Safety
    ///
    /// `api` is what SQLite passed to an extension's entry point.
    #[cfg(feature = "extension")]
    #[allow(
        clippy::missing_transmute_annotations,
        reason = "both sides are what the field and the header say"
    )]
    pub(super) unsafe fn set(api: &sqlite_plugin::sqlite3_api_routines) -> Option<()> {
        use std::mem::transmute as as_ours;
        // SAFETY: sqlite-plugin's and rusqlite's bindings declare the same functions of the same C header;
        // only the names of the opaque types differ.
        let host = unsafe {
            Host {
                vfs_find: as_ours(api.vfs_find?),
                db_name: as_ours(api.db_name?),
                db_filename: as_ours(api.db_filename?),
                txn_state: as_ours(api.txn_state?),
                file_control: as_ours(api.file_control?),
                uri_parameter: api.uri_parameter?,
                libversion_number: api.libversion_number?,
            }
        };
        HOST.set(host).ok()
    }

    /// Its version, as `3054001`.
    pub(super) fn version(&self) -> u32 {
        // SAFETY: no arguments, no state.
        unsafe { (self.libversion_number)() }.unsigned_abs()
    }

    /// A parameter of the URI that a file is opened by.
    ///
    /// # Safety
    ///
    /// `file` is the name that SQLite passed to `xOpen` for a main database.
    pub(super) unsafe fn uri_parameter(&self, file: *const c_char, name: &str) -> Option<String> {
        let name = CString::new(name).ok()?;
        // SAFETY: `file` is SQLite's own, as the caller promises; `name` is NUL-terminated.
        let value = unsafe { (self.uri_parameter)(file, name.as_ptr()) };
        if value.is_null() {
            return None;
        }
        // SAFETY: the answer is NUL-terminated and lives as long as `file`.
        Some(unsafe { CStr::from_ptr(value) }.to_string_lossy().into_owned())
    }
}
