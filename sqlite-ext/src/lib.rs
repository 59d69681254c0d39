//! `libgraft_sqlite`: volumes for any language's SQLite, as a loadable extension.
//!
//! Loading it registers the VFS `graft` with the SQLite that loads it, and tables named `graft_…` with
//! every connection. `docs/sqlite.md` says how it is used.
//!
//! | module | holds |
//! | --- | --- |
//! | `host` | the functions of the SQLite that loaded us |
//! | `table` | table-valued functions, in SQLite's C interface |
//! | `commands` | what each of them, and the pragma of the same name, answers |
//! | `session` | volumes that are open in this process, and opening them |
//! | `config` | which store and which directory: URI, `graft.toml`, environment |
//!
//! The library carries a SQLite of its own, hidden, to import and export files. What reaches the host's
//! SQLite goes through pointers that it handed over, so that neither sees the other's handles.
//!
//! Invariants: it is never unloaded; no callback panics into SQLite; text that SQLite takes for a format
//! is `%s`.

mod commands;
mod config;
mod host;
mod session;
mod table;

use std::ffi::{c_char, c_int};
use std::panic::catch_unwind;

use rusqlite::ffi;
use sqlite_plugin::sqlite3_api_routines;

/// Registers the VFS and the tables. SQLite calls it for `.load libgraft_sqlite` and the like.
///
/// # Safety
///
/// For SQLite alone: the arguments of an extension's entry point.
#[unsafe(no_mangle)]
#[allow(unsafe_code, reason = "SQLite's entry point")]
pub unsafe extern "C" fn sqlite3_extension_init(
    db: *mut ffi::sqlite3,
    error: *mut *mut c_char,
    api: *mut sqlite3_api_routines,
) -> c_int {
    let done = catch_unwind(|| {
        // SAFETY: SQLite's own arguments, and we answer that we are not to be unloaded.
        let host = unsafe { host::Host::set(api) }.ok_or("it needs SQLite 3.39 or newer")?;
        // SAFETY: as above.
        unsafe { sqlsync_layer::vfs::register_with(api) }
            .map_err(|_| "this process serves another SQLite already; load it once")?;
        sqlsync_layer::vfs::set_opener(session::open);
        // SAFETY: `db` is the connection that loads us.
        unsafe { table::register(host, db) }.map_err(|_| "its tables could not be registered")?;
        // SAFETY: a function of the type that SQLite calls it by.
        unsafe { host.for_every_connection(connected) };
        Ok::<(), &str>(())
    });
    let message = match done {
        Ok(Ok(())) => return ffi::SQLITE_OK_LOAD_PERMANENTLY,
        Ok(Err(message)) => message,
        Err(_) => "it panicked",
    };
    // SAFETY: where SQLite gives a place for it, it frees the text.
    unsafe { host::set_message(api, error, &format!("graft: {message}")) };
    ffi::SQLITE_ERROR
}

/// The entry point by the library's own name, where a host looks for that.
///
/// # Safety
///
/// As [`sqlite3_extension_init`].
#[unsafe(no_mangle)]
#[allow(unsafe_code, reason = "SQLite's entry point")]
pub unsafe extern "C" fn sqlite3_graftsqlite_init(
    db: *mut ffi::sqlite3,
    error: *mut *mut c_char,
    api: *mut sqlite3_api_routines,
) -> c_int {
    // SAFETY: passed on unchanged.
    unsafe { sqlite3_extension_init(db, error, api) }
}

/// Registers the tables with a connection that is being opened, and fits it to its volume.
#[allow(unsafe_code, reason = "SQLite's callback")]
unsafe extern "C" fn connected(
    db: *mut ffi::sqlite3,
    _error: *mut *mut c_char,
    _api: *const sqlite3_api_routines,
) -> c_int {
    let Some(host) = host::Host::get() else { return ffi::SQLITE_OK };
    // SAFETY: SQLite passes the connection that it is opening.
    let ready = || unsafe {
        table::register(host, db)?;
        table::fit_page_size(host, db)
    };
    catch_unwind(|| ready().err().unwrap_or(ffi::SQLITE_OK)).unwrap_or(ffi::SQLITE_INTERNAL)
}
