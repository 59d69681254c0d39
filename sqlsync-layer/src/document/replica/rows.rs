//! Row-level differences between two states of a volume, for the app that decides a conflict.
//!
//! Tables are compared by rowid, or by primary key where they have none: both sides are read in that
//! order, so memory holds one row of each and what differs. Every table is read; [`ROWS_MAX`] bounds what
//! is answered.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::sync::Arc;

use graft::fetch::Fetch;
use graft::pull::Pulled;
use graft::volume::Volume;
use reducers_abi::Value;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, Rows};

use super::Row;
use crate::protocol::{Reason, codes};
use crate::rebase::{DisputedRows, RowChange, RowChanges};
use crate::vfs::Database;

/// Differences answered at most.
const ROWS_MAX: usize = 10_000;

/// The three states of a conflict: what both began on, theirs, ours.
pub(super) struct Sides<'a> {
    pub(super) volume: &'a Arc<Volume>,
    pub(super) fetch: &'a Arc<dyn Fetch>,
    pub(super) pulled: &'a Pulled,
}

impl std::fmt::Debug for Sides<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Sides({:?}, {} commits)", self.volume, self.pulled.heads.len())
    }
}

impl Sides<'_> {
    fn between(&self, after: Volume) -> Result<RowChanges, Reason> {
        let before = Database::new(Arc::new(self.volume.aside(None, 0)), self.fetch.clone());
        let after = Database::new(Arc::new(after), self.fetch.clone());
        let failed = |error: &dyn std::fmt::Display| Reason::new(codes::UNAVAILABLE, error.to_string());
        let (before, _) = before.connect_read_only().map_err(|error| failed(&error))?;
        let (after, _) = after.connect_read_only().map_err(|error| failed(&error))?;
        row_changes(&before, &after).map_err(|error| failed(&error))
    }
}

impl DisputedRows for Sides<'_> {
    fn theirs(&self) -> Result<RowChanges, Reason> {
        self.between(self.volume.aside(Some(self.pulled), 0))
    }

    fn ours(&self) -> Result<RowChanges, Reason> {
        self.between(self.volume.aside(None, usize::MAX))
    }
}

/// How to read a table in the order of its key.
#[derive(PartialEq)]
struct Table {
    select: String,
    key_columns: usize,
}

/// What differs from `before` to `after`. A table whose columns differ counts as dropped and made anew.
pub(super) fn row_changes(before: &Connection, after: &Connection) -> rusqlite::Result<RowChanges> {
    let (old, new) = (tables(before)?, tables(after)?);
    let mut changes = RowChanges::default();
    let names: std::collections::BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    for name in names {
        match (old.get(name), new.get(name)) {
            (Some(a), Some(b)) if a == b => compare(name, a, Some(before), Some(after), &mut changes)?,
            (a, b) => {
                if let Some(a) = a {
                    compare(name, a, Some(before), None, &mut changes)?;
                }
                if let Some(b) = b {
                    compare(name, b, None, Some(after), &mut changes)?;
                }
            }
        }
    }
    Ok(changes)
}

fn tables(connection: &Connection) -> rusqlite::Result<BTreeMap<String, Table>> {
    let quote = |name: &str| format!("\"{}\"", name.replace('"', "\"\""));
    let mut list = connection.prepare(
        "SELECT name, wr FROM pragma_table_list WHERE schema = 'main' AND type = 'table' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'",
    )?;
    let found: Vec<(String, bool)> =
        list.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect::<rusqlite::Result<_>>()?;
    let mut tables = BTreeMap::new();
    for (name, without_rowid) in found {
        let mut info = connection.prepare("SELECT name, pk FROM pragma_table_info(?1)")?;
        let columns: Vec<(String, u32)> = info
            .query_map([&name], |row| Ok((row.get(0)?, row.get(1)?)))?
            .collect::<rusqlite::Result<_>>()?;
        let mut key: Vec<(u32, String)> =
            columns.iter().filter(|(_, pk)| *pk > 0).map(|(column, pk)| (*pk, quote(column))).collect();
        key.sort();
        // A column may hide the rowid's usual name.
        let rowid = ["rowid", "_rowid_", "oid"]
            .into_iter()
            .find(|alias| columns.iter().all(|(column, _)| !column.eq_ignore_ascii_case(alias)));
        let key: Vec<String> = match rowid.filter(|_| !without_rowid) {
            Some(rowid) => vec![rowid.into()],
            None if key.is_empty() => continue,
            None => key.into_iter().map(|(_, column)| column).collect(),
        };
        let select = format!("SELECT {0}, * FROM {1} ORDER BY {0}", key.join(", "), quote(&name));
        tables.insert(name, Table { select, key_columns: key.len() });
    }
    Ok(tables)
}

fn compare(
    name: &str,
    table: &Table,
    before: Option<&Connection>,
    after: Option<&Connection>,
    changes: &mut RowChanges,
) -> rusqlite::Result<()> {
    let mut old = before.map(|connection| connection.prepare(&table.select)).transpose()?;
    let mut new = after.map(|connection| connection.prepare(&table.select)).transpose()?;
    let mut old = old.as_mut().map(|statement| statement.query([])).transpose()?;
    let mut new = new.as_mut().map(|statement| statement.query([])).transpose()?;
    let keys = table.key_columns;
    let next = |rows: &mut Option<Rows<'_>>| -> rusqlite::Result<Option<Row>> {
        let Some(row) = rows.as_mut().map(Rows::next).transpose()?.flatten() else { return Ok(None) };
        let columns = row.as_ref().column_count();
        (0..columns).map(|at| row.get_ref(at).map(owned)).collect::<Result<Row, _>>().map(Some)
    };
    let (mut a, mut b) = (next(&mut old)?, next(&mut new)?);
    loop {
        let order = match (&a, &b) {
            (None, None) => return Ok(()),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(a), Some(b)) => order(&a[..keys], &b[..keys]),
        };
        let (before, after) = match order {
            Ordering::Less => (std::mem::replace(&mut a, next(&mut old)?), None),
            Ordering::Greater => (None, std::mem::replace(&mut b, next(&mut new)?)),
            Ordering::Equal => {
                let (before, after) = (a.take(), b.take());
                (a, b) = (next(&mut old)?, next(&mut new)?);
                (before, after)
            }
        };
        if before == after {
            continue;
        }
        if changes.rows.len() >= ROWS_MAX {
            changes.truncated = true;
            return Ok(());
        }
        let key = before.as_ref().or(after.as_ref()).map(|row| row[..keys].to_vec()).unwrap_or_default();
        let rest = |row: Option<Row>| row.map(|mut row| row.split_off(keys));
        changes.rows.push(RowChange { table: name.into(), key, before: rest(before), after: rest(after) });
    }
}

fn owned(value: ValueRef<'_>) -> Value {
    match value {
        ValueRef::Null => Value::Null,
        ValueRef::Integer(i) => Value::Integer(i),
        ValueRef::Real(r) => Value::Real(r),
        ValueRef::Text(text) => Value::Text(String::from_utf8_lossy(text).into_owned()),
        ValueRef::Blob(bytes) => Value::Blob(bytes.to_vec()),
    }
}

/// SQLite's order of values, text by bytes: keys under another collation may be reported as one row gone
/// and one new.
fn order(a: &[Value], b: &[Value]) -> Ordering {
    let rank = |value: &Value| match value {
        Value::Null => 0,
        Value::Integer(_) | Value::Real(_) => 1,
        Value::Text(_) => 2,
        Value::Blob(_) => 3,
    };
    let number = |value: &Value| match value {
        Value::Integer(i) => *i as f64,
        Value::Real(r) => *r,
        Value::Null | Value::Text(_) | Value::Blob(_) => 0.0,
    };
    for (a, b) in a.iter().zip(b) {
        let order = match (a, b) {
            (Value::Integer(a), Value::Integer(b)) => a.cmp(b),
            (Value::Text(a), Value::Text(b)) => a.cmp(b),
            (Value::Blob(a), Value::Blob(b)) => a.cmp(b),
            (a, b) => rank(a).cmp(&rank(b)).then_with(|| number(a).total_cmp(&number(b))),
        };
        if order != Ordering::Equal {
            return order;
        }
    }
    Ordering::Equal
}
