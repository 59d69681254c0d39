//! A database's whole content as text: schema and rows.

use std::sync::Arc;

use futures::executor::block_on;
use graft::VolumeId;
use graft::fetch::RemoteFetch;
use graft::remote::SharedRemote;
use graft::volume::{Options, Volume};
use rusqlite::Connection;
use rusqlite::types::Value;
use sqlsync_layer::vfs::Database;

/// A table's definition or one of its rows, a line each.
pub type Dump = Vec<String>;

/// Opens the volume from the bucket with nothing else at hand, checks its integrity and dumps it.
pub fn of_volume(remote: &SharedRemote, volume: VolumeId) -> Result<Dump, String> {
    let opened = block_on(Volume::open(&**remote, volume, Options::default()));
    let opened = opened.map_err(|error| format!("the volume cannot be opened fresh: {error}"))?;
    let fetch = Arc::new(RemoteFetch::new(remote.clone()));
    of_database(&Database::new(Arc::new(opened.volume), fetch))
}

/// Checks a replica's integrity and dumps it.
pub fn of_database(database: &Arc<Database>) -> Result<Dump, String> {
    let (connection, control) = database.connect_read_only().map_err(|error| error.to_string())?;
    let answer: rusqlite::Result<String> =
        connection.query_row("pragma integrity_check", [], |row| row.get(0));
    match answer {
        Ok(answer) if answer == "ok" => {}
        Ok(answer) => return Err(format!("integrity_check says {answer}")),
        Err(error) => {
            let why = control.take_failure().map_or_else(|| error.to_string(), |failure| failure.message);
            return Err(format!("integrity_check failed: {why}"));
        }
    }
    of_connection(&connection)
}

/// Dumps a database.
pub fn of_connection(connection: &Connection) -> Result<Dump, String> {
    dump(connection).map_err(|error| format!("the database cannot be dumped: {error}"))
}

fn dump(connection: &Connection) -> rusqlite::Result<Dump> {
    let mut lines = Vec::new();
    let mut tables = Vec::new();
    let mut schema = connection.prepare("select type, name, sql from sqlite_schema order by type, name")?;
    let mut rows = schema.query([])?;
    while let Some(row) = rows.next()? {
        let (kind, name, sql): (String, String, Option<String>) = (row.get(0)?, row.get(1)?, row.get(2)?);
        lines.push(format!("{kind} {name}: {sql:?}"));
        if kind == "table" {
            tables.push(name);
        }
    }
    for table in tables {
        let mut statement = connection.prepare(&format!("select * from \"{table}\" order by 1"))?;
        let columns = statement.column_count();
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let values: rusqlite::Result<Vec<Value>> = (0..columns).map(|at| row.get(at)).collect();
            lines.push(format!("{table}: {:?}", values?));
        }
    }
    Ok(lines)
}

/// An error that names the first line in which they differ.
pub fn compare(expected: &Dump, found: &Dump) -> Result<(), String> {
    let longest = expected.len().max(found.len());
    match (0..longest).find(|at| expected.get(*at) != found.get(*at)) {
        None => Ok(()),
        Some(at) => Err(format!(
            "the volume differs from the serial replay in line {at}:\n  replay: {}\n  volume: {}",
            expected.get(at).map_or("(nothing)", String::as_str),
            found.get(at).map_or("(nothing)", String::as_str)
        )),
    }
}
