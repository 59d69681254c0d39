//! Table-valued functions in SQLite's C interface: each command is one, `SELECT * FROM graft_status`.
//!
//! A command's arguments are hidden columns, then comes one more, `schema`: which of the connection's
//! databases is meant (`main` unless said otherwise), as with SQLite's own pragma functions. A command
//! runs when its rows are first asked for.
#![allow(unsafe_code, reason = "SQLite's C interface")]

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};

use rusqlite::ffi;
use sqlsync_layer::vfs::{INHERITED, database_of};

use crate::commands::{COMMANDS, Command, Value};
use crate::host::Host;
use crate::session;

static MODULE: ffi::sqlite3_module = ffi::sqlite3_module {
    iVersion: 1,
    // None: the tables exist by their names alone.
    xCreate: None,
    xConnect: Some(connect),
    xBestIndex: Some(best_index),
    xDisconnect: Some(disconnect),
    xDestroy: None,
    xOpen: Some(open),
    xClose: Some(close),
    xFilter: Some(filter),
    xNext: Some(next),
    xEof: Some(eof),
    xColumn: Some(column),
    xRowid: Some(rowid),
    xUpdate: None,
    xBegin: None,
    xSync: None,
    xCommit: None,
    xRollback: None,
    xFindFunction: None,
    xRename: None,
    xSavepoint: None,
    xRelease: None,
    xRollbackTo: None,
    xShadowName: None,
    xIntegrity: None,
};

#[repr(C)]
struct Table {
    // First: SQLite knows it by this.
    base: ffi::sqlite3_vtab,
    db: *mut ffi::sqlite3,
    command: &'static Command,
}

#[repr(C)]
struct Cursor {
    // First: SQLite knows it by this.
    base: ffi::sqlite3_vtab_cursor,
    rows: Vec<Vec<Value>>,
    arguments: Vec<Option<String>>,
    at: usize,
}

/// Registers every command with a connection.
///
/// # Safety
///
/// `db` is an open connection of the SQLite that `host` is.
pub unsafe fn register(host: &Host, db: *mut ffi::sqlite3) -> Result<(), c_int> {
    for command in COMMANDS {
        let name = CString::new(command.name).map_err(|_| ffi::SQLITE_ERROR)?;
        let data = std::ptr::from_ref(command).cast_mut().cast::<c_void>();
        // SAFETY: the module and the command are statics; SQLite copies the name.
        let code = unsafe { (host.create_module)(db, name.as_ptr(), &raw const MODULE, data, None) };
        if code != ffi::SQLITE_OK {
            return Err(code);
        }
    }
    Ok(())
}

/// Tells a connection that opened a volume without pages how large they are to be: SQLite would make them as
/// large as it is used to.
///
/// # Safety
///
/// `db` is an open connection of the SQLite that `host` is, and nothing runs on it.
pub unsafe fn fit_page_size(host: &Host, db: *mut ffi::sqlite3) -> Result<(), c_int> {
    // SAFETY: as the caller promises.
    let Ok(Some(open)) = (unsafe { session_of(db, c"main") }) else { return Ok(()) };
    let volume = &open.session.volume;
    if volume.tip().pages() > 0 {
        return Ok(());
    }
    // SAFETY: as the caller promises.
    unsafe { host.run(db, &format!("PRAGMA main.page_size = {}", volume.page_size().get())) }
}

/// Runs a callback's body; a panic in it becomes SQLITE_INTERNAL.
fn guard(body: impl FnOnce() -> c_int) -> c_int {
    catch_unwind(AssertUnwindSafe(body)).unwrap_or(ffi::SQLITE_INTERNAL)
}

unsafe extern "C" fn connect(
    db: *mut ffi::sqlite3,
    data: *mut c_void,
    _argc: c_int,
    _argv: *const *const c_char,
    out: *mut *mut ffi::sqlite3_vtab,
    _error: *mut *mut c_char,
) -> c_int {
    guard(|| {
        let Some(host) = Host::get() else { return ffi::SQLITE_ERROR };
        // SAFETY: the pointer that `register` gave, to a static.
        let Some(command) = (unsafe { data.cast::<Command>().as_ref() }) else { return ffi::SQLITE_ERROR };
        let hidden = command.arguments.iter().chain(&["schema"]).map(|name| format!("\"{name}\" HIDDEN"));
        let columns: Vec<String> =
            command.columns.iter().map(|name| format!("\"{name}\"")).chain(hidden).collect();
        let Ok(sql) = CString::new(format!("CREATE TABLE x({})", columns.join(", "))) else {
            return ffi::SQLITE_ERROR;
        };
        // SAFETY: SQLite's own connection, in its own call.
        let code = unsafe { (host.declare_vtab)(db, sql.as_ptr()) };
        if code == ffi::SQLITE_OK {
            // SAFETY: all of its fields may be zero.
            let base = unsafe { std::mem::zeroed() };
            let table = Box::into_raw(Box::new(Table { base, db, command }));
            // SAFETY: SQLite's place for the answer; the table begins with what it takes it for.
            unsafe { *out = table.cast() };
        }
        code
    })
}

unsafe extern "C" fn disconnect(table: *mut ffi::sqlite3_vtab) -> c_int {
    // SAFETY: the box that `connect` made; SQLite gives it back once.
    guard(|| unsafe {
        drop(Box::from_raw(table.cast::<Table>()));
        ffi::SQLITE_OK
    })
}

/// Every hidden column that is compared with `=` becomes an argument; a bit of `idxNum` says which.
unsafe extern "C" fn best_index(table: *mut ffi::sqlite3_vtab, info: *mut ffi::sqlite3_index_info) -> c_int {
    guard(|| {
        // SAFETY: SQLite's own arguments; the table is one of ours.
        let (Some(table), Some(info)) = (unsafe { table.cast::<Table>().as_ref() }, unsafe { info.as_mut() })
        else {
            return ffi::SQLITE_ERROR;
        };
        let count = usize::try_from(info.nConstraint).unwrap_or(0);
        if count == 0 {
            info.estimatedCost = 1000.0;
            return ffi::SQLITE_OK;
        }
        // SAFETY: both arrays have `nConstraint` entries.
        let (constraints, usage) = unsafe {
            (
                std::slice::from_raw_parts(info.aConstraint, count),
                std::slice::from_raw_parts_mut(info.aConstraintUsage, count),
            )
        };
        let first = table.command.columns.len();
        let mut found: Vec<(usize, usize)> = Vec::new();
        for (at, constraint) in constraints.iter().enumerate() {
            let Some(hidden) = usize::try_from(constraint.iColumn).ok().and_then(|at| at.checked_sub(first))
            else {
                continue;
            };
            if c_int::from(constraint.op) != ffi::SQLITE_INDEX_CONSTRAINT_EQ {
                continue;
            }
            if constraint.usable == 0 {
                // Another order of joins makes it usable.
                return ffi::SQLITE_CONSTRAINT;
            }
            found.push((hidden, at));
        }
        found.sort_unstable();
        found.dedup_by_key(|(hidden, _)| *hidden);
        info.idxNum = 0;
        for (index, (hidden, at)) in found.into_iter().enumerate() {
            usage[at].argvIndex = index as c_int + 1;
            usage[at].omit = 1;
            info.idxNum |= 1 << hidden;
        }
        info.estimatedCost = 10.0;
        ffi::SQLITE_OK
    })
}

unsafe extern "C" fn open(_table: *mut ffi::sqlite3_vtab, out: *mut *mut ffi::sqlite3_vtab_cursor) -> c_int {
    guard(|| {
        // SAFETY: all of its fields may be zero; SQLite fills them.
        let base = unsafe { std::mem::zeroed() };
        let cursor = Cursor { base, rows: Vec::new(), arguments: Vec::new(), at: 0 };
        // SAFETY: SQLite's place for the answer; the cursor begins with what it takes it for.
        unsafe { *out = Box::into_raw(Box::new(cursor)).cast() };
        ffi::SQLITE_OK
    })
}

unsafe extern "C" fn close(cursor: *mut ffi::sqlite3_vtab_cursor) -> c_int {
    // SAFETY: the box that `open` made; SQLite gives it back once.
    guard(|| unsafe {
        drop(Box::from_raw(cursor.cast::<Cursor>()));
        ffi::SQLITE_OK
    })
}

unsafe extern "C" fn filter(
    cursor: *mut ffi::sqlite3_vtab_cursor,
    given: c_int,
    _text: *const c_char,
    argc: c_int,
    argv: *mut *mut ffi::sqlite3_value,
) -> c_int {
    guard(|| {
        // SAFETY: SQLite's own arguments; cursor and table are ours.
        let Some(cursor) = (unsafe { cursor.cast::<Cursor>().as_mut() }) else { return ffi::SQLITE_ERROR };
        // SAFETY: as above.
        let Some(table) = (unsafe { cursor.base.pVtab.cast::<Table>().as_mut() }) else {
            return ffi::SQLITE_ERROR;
        };
        let Some(host) = Host::get() else { return ffi::SQLITE_ERROR };
        let mut values = (0..usize::try_from(argc).unwrap_or(0)).map(|at| {
            // SAFETY: `argc` values, each valid during this call.
            unsafe { text_of(host, *argv.add(at)) }
        });
        let arguments = table.command.arguments.len();
        let mut all: Vec<Option<String>> = (0..=arguments)
            .map(|at| if given & (1 << at) != 0 { values.next().flatten() } else { None })
            .collect();
        let schema = CString::new(all.pop().flatten().unwrap_or_else(|| "main".into()));
        // SAFETY: this runs inside a call on the table's connection.
        let session = schema.map_or(Ok(None), |schema| unsafe { session_of(table.db, &schema) });
        match session.and_then(|session| (table.command.run)(session.as_ref(), &all)) {
            Ok(rows) => {
                (cursor.rows, cursor.arguments, cursor.at) = (rows, all, 0);
                ffi::SQLITE_OK
            }
            Err(message) => {
                // SAFETY: the field is SQLite's to free.
                unsafe { host.replace_message(&raw mut table.base.zErrMsg, &message) };
                ffi::SQLITE_ERROR
            }
        }
    })
}

/// # Safety
///
/// As for [`database_of`].
unsafe fn session_of(db: *mut ffi::sqlite3, schema: &CStr) -> Result<Option<session::Open>, String> {
    // SAFETY: as the caller promises.
    let Some((database, control)) = (unsafe { database_of(db.cast(), schema) }) else { return Ok(None) };
    if control.is_inherited() {
        return Err(INHERITED.into());
    }
    Ok(session::of(&database).map(|session| session::Open { session, database, control }))
}

/// # Safety
///
/// `value` is valid.
unsafe fn text_of(host: &Host, value: *mut ffi::sqlite3_value) -> Option<String> {
    // SAFETY: as the caller promises; the text is valid until the value is used again.
    unsafe {
        let text = (host.value_text)(value);
        let bytes = usize::try_from((host.value_bytes)(value)).ok()?;
        (!text.is_null())
            .then(|| String::from_utf8_lossy(std::slice::from_raw_parts(text, bytes)).into_owned())
    }
}

unsafe extern "C" fn next(cursor: *mut ffi::sqlite3_vtab_cursor) -> c_int {
    // SAFETY: one of our cursors.
    guard(|| unsafe {
        (*cursor.cast::<Cursor>()).at += 1;
        ffi::SQLITE_OK
    })
}

unsafe extern "C" fn eof(cursor: *mut ffi::sqlite3_vtab_cursor) -> c_int {
    // SAFETY: one of our cursors.
    guard(|| unsafe {
        let cursor = &*cursor.cast::<Cursor>();
        c_int::from(cursor.at >= cursor.rows.len())
    })
}

unsafe extern "C" fn column(
    cursor: *mut ffi::sqlite3_vtab_cursor,
    context: *mut ffi::sqlite3_context,
    at: c_int,
) -> c_int {
    guard(|| {
        let Some(host) = Host::get() else { return ffi::SQLITE_ERROR };
        // SAFETY: one of our cursors.
        let cursor = unsafe { &*cursor.cast::<Cursor>() };
        let (Some(row), Ok(at)) = (cursor.rows.get(cursor.at), usize::try_from(at)) else {
            return ffi::SQLITE_ERROR;
        };
        let argument = || cursor.arguments.get(at - row.len())?.clone().map(Value::Text);
        let value = row.get(at).cloned().or_else(argument).unwrap_or(Value::Null);
        // SAFETY: SQLite's context; it copies the text (the destructor -1 says so).
        unsafe {
            match value {
                Value::Null => (host.result_null)(context),
                Value::Integer(value) => (host.result_int64)(context, value),
                Value::Text(text) => (host.result_text)(
                    context,
                    text.as_ptr().cast(),
                    c_int::try_from(text.len()).unwrap_or(c_int::MAX),
                    ffi::SQLITE_TRANSIENT(),
                ),
            }
        }
        ffi::SQLITE_OK
    })
}

unsafe extern "C" fn rowid(cursor: *mut ffi::sqlite3_vtab_cursor, out: *mut i64) -> c_int {
    // SAFETY: one of our cursors, and SQLite's place for the answer.
    guard(|| unsafe {
        *out = (*cursor.cast::<Cursor>()).at as i64 + 1;
        ffi::SQLITE_OK
    })
}
