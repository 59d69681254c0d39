//! The database as a running reducer sees it: under an authoriser.

use reducers_abi::{QUERY_BYTES_MAX, QUERY_ROWS_MAX, Rows, Sql, SqlError, Value};
use rusqlite::hooks::{AuthAction, AuthContext, Authorization};
use rusqlite::types::ValueRef;
use rusqlite::{Connection, ToSql, types::ToSqlOutput};

/// Guards `conn` while it lives.
pub(super) struct Guarded<'a> {
    conn: &'a mut Connection,
    log: &'a mut Vec<String>,
    ended: bool,
}

impl<'a> Guarded<'a> {
    /// `conn` is inside of a transaction.
    pub(super) fn new(conn: &'a mut Connection, log: &'a mut Vec<String>) -> Guarded<'a> {
        conn.authorizer(Some(authorise)).expect("SQLite takes an authoriser");
        Guarded { conn, log, ended: false }
    }

    /// Whether a statement ended the transaction.
    pub(super) fn ended(&self) -> bool {
        self.ended
    }

    fn run<T>(
        &mut self,
        statement: impl FnOnce(&Connection) -> Result<T, rusqlite::Error>,
    ) -> Result<T, SqlError> {
        if self.ended {
            return Err(refused("an earlier statement ended the transaction"));
        }
        let outcome = statement(self.conn).map_err(|error| sql_error(&error));
        self.ended = self.conn.is_autocommit();
        outcome
    }
}

impl Drop for Guarded<'_> {
    fn drop(&mut self) {
        let none: Option<fn(AuthContext<'_>) -> Authorization> = None;
        self.conn.authorizer(none).expect("SQLite gives the authoriser back");
    }
}

impl Sql for Guarded<'_> {
    fn execute(&mut self, sql: &str, params: &[Value]) -> Result<u64, SqlError> {
        self.run(|conn| {
            let mut statement = conn.prepare(sql)?;
            let changed = statement.execute(rusqlite::params_from_iter(params.iter().map(Bound)))?;
            // For anything but INSERT, UPDATE and DELETE SQLite answers the count of the last of those.
            let counts = !statement.readonly() && changes_rows(sql);
            Ok(if counts { changed as u64 } else { 0 })
        })
    }

    fn query(&mut self, sql: &str, params: &[Value]) -> Result<Rows, SqlError> {
        let mut too_big = None;
        let found = self.run(|conn| query_into(conn, sql, params, &mut too_big))?;
        match too_big {
            None => Ok(found),
            Some(message) => Err(refused(message)),
        }
    }

    fn log(&mut self, line: &str) {
        self.log.push(line.to_owned());
    }
}

/// Whether `sql` is INSERT, UPDATE, DELETE, REPLACE or WITH: all else changes no rows by itself.
fn changes_rows(sql: &str) -> bool {
    let word = sql.trim_start().split(|c: char| !c.is_ascii_alphabetic()).next().unwrap_or("");
    !["CREATE", "DROP", "ALTER", "REINDEX", "ANALYZE"].iter().any(|other| word.eq_ignore_ascii_case(other))
}

/// The rows of a query, without bounds.
pub(super) fn query(conn: &Connection, sql: &str, params: &[Value]) -> Result<Rows, rusqlite::Error> {
    collect(conn, sql, params, |_| true)
}

fn query_into(
    conn: &Connection,
    sql: &str,
    params: &[Value],
    too_big: &mut Option<&'static str>,
) -> Result<Rows, rusqlite::Error> {
    let (mut rows, mut bytes) = (0, 0);
    collect(conn, sql, params, |row| {
        rows += 1;
        bytes += row.iter().map(Value::byte_len).sum::<usize>();
        if rows > QUERY_ROWS_MAX {
            *too_big = Some("a query answered more than 100000 rows");
        } else if bytes > QUERY_BYTES_MAX {
            *too_big = Some("a query answered more than 16 MiB");
        }
        too_big.is_none()
    })
}

fn collect(
    conn: &Connection,
    sql: &str,
    params: &[Value],
    mut go_on: impl FnMut(&[Value]) -> bool,
) -> Result<Rows, rusqlite::Error> {
    let mut statement = conn.prepare(sql)?;
    let columns: Vec<String> = statement.column_names().map(str::to_owned).collect();
    let mut found = Rows { columns, rows: Vec::new() };
    let mut rows = statement.query(rusqlite::params_from_iter(params.iter().map(Bound)))?;
    while let Some(row) = rows.next()? {
        let mut values = Vec::with_capacity(found.columns.len());
        for index in 0..found.columns.len() {
            values.push(value(row.get_ref(index)?));
        }
        if !go_on(&values) {
            break;
        }
        found.rows.push(values);
    }
    Ok(found)
}

struct Bound<'a>(&'a Value);

impl ToSql for Bound<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(match self.0 {
            Value::Null => ValueRef::Null,
            Value::Integer(i) => ValueRef::Integer(*i),
            Value::Real(r) => ValueRef::Real(*r),
            Value::Text(text) => ValueRef::Text(text.as_bytes()),
            Value::Blob(bytes) => ValueRef::Blob(bytes),
        }))
    }
}

pub(super) fn value(value: ValueRef<'_>) -> Value {
    match value {
        ValueRef::Null => Value::Null,
        ValueRef::Integer(i) => Value::Integer(i),
        ValueRef::Real(r) => Value::Real(r),
        ValueRef::Text(text) => Value::Text(String::from_utf8_lossy(text).into_owned()),
        ValueRef::Blob(bytes) => Value::Blob(bytes.to_owned()),
    }
}

fn refused(message: &str) -> SqlError {
    SqlError { code: 0, message: message.to_owned() }
}

fn sql_error(error: &rusqlite::Error) -> SqlError {
    let code = error.sqlite_error().map_or(0, |error| error.extended_code);
    let message = match error {
        rusqlite::Error::SqliteFailure(_, Some(message)) => message.clone(),
        rusqlite::Error::ExecuteReturnedResults => "the statement returns rows: use query".to_owned(),
        rusqlite::Error::MultipleStatement => "one statement at a time".to_owned(),
        other => other.to_string(),
    };
    SqlError { code, message }
}

/// What no reducer may do: end or split its transaction, reach another database, change how SQLite
/// works, leave something on the connection.
fn authorise(context: AuthContext<'_>) -> Authorization {
    match context.action {
        AuthAction::Transaction { .. }
        | AuthAction::Savepoint { .. }
        | AuthAction::Attach { .. }
        | AuthAction::Detach { .. }
        | AuthAction::Pragma { .. }
        | AuthAction::CreateTempIndex { .. }
        | AuthAction::CreateTempTable { .. }
        | AuthAction::CreateTempTrigger { .. }
        | AuthAction::CreateTempView { .. } => Authorization::Deny,
        AuthAction::Function { function_name } if function_name.eq_ignore_ascii_case("load_extension") => {
            Authorization::Deny
        }
        _ => Authorization::Allow,
    }
}
