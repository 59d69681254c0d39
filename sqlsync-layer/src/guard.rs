//! What SQL may do: an authoriser, a step budget and deterministic functions on a connection.
//!
//! | mode | reads | rows | schema | transactions, PRAGMA, ATTACH, temp, extensions |
//! | --- | --- | --- | --- | --- |
//! | `Internal` | yes | yes | yes | yes |
//! | `Migration` | yes | yes | yes | no |
//! | `Reducer` | yes | yes | no | no |
//! | `Query` | yes | no | no | no |
//!
//! Two argument-less pragmas pass, `data_version` and `page_size`, because FTS5 and R-tree ask them of
//! their own tables; a statement of one's own may not be a PRAGMA. Tables that tell of the file or of
//! the connection (`dbstat`, `pragma_*`) are denied, and so is EXPLAIN. Shadow tables of virtual tables
//! are read-only (SQLite's *defensive* mode), and the schema is not trusted.
//!
//! Denied in all but `Internal`, because their answer depends on more than the database: `changes`,
//! `total_changes` (state of the connection; `execute` answers the count), `sqlite_version`,
//! `sqlite_source_id`. `random` and `randomblob` answer from the mutation ([`crate::vfs::scope`]);
//! a live query may not use them, nor the clock.
//!
//! Time is bounded by counting virtual machine steps, not by a clock, so that a limit falls in the same
//! place on every run; what one step can do is bounded by the length of values and patterns.
//!
//! Invariants: nothing a reducer or a query does outlives it but the rows it wrote; a statement that
//! runs too long is interrupted.

use std::cell::RefCell;
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use reducers_abi::{Rows, SqlError, Value};
use rusqlite::config::DbConfig;
use rusqlite::fallible_iterator::FallibleIterator as _;
use rusqlite::functions::FunctionFlags;
use rusqlite::hooks::{AuthAction, AuthContext, Authorization};
use rusqlite::limits::Limit;
use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{Batch, CachedStatement, Connection, Statement, ToSql};

use crate::value::{self, Params};
use crate::vfs::scope;

/// Virtual machine instructions between two looks at the budget.
const STEPS: i32 = 1000;

/// Longest string, blob or row, in bytes, that reducers may write.
const WRITE_LENGTH_MAX: i32 = 16 << 20;

/// The same for queries. One function call is one step, and `instr` takes the square of its lengths.
const QUERY_LENGTH_MAX: i32 = 1 << 20;

/// Columns of a query. SQLite holds a row's values at once, each of up to [`QUERY_LENGTH_MAX`].
const QUERY_COLUMNS_MAX: i32 = 256;

/// Bytes of a LIKE or GLOB pattern, whose matching takes the square of it.
const PATTERN_LENGTH_MAX: i32 = 1000;

/// Texts remembered as checked before all are forgotten.
const CHECKED_MAX: usize = 1024;

/// What SQL may do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Mode {
    /// Our own statements.
    Internal,
    /// A migration.
    Migration,
    /// A reducer.
    Reducer,
    /// A query; `random` and the like are denied too.
    Query,
}

impl Mode {
    fn from_u8(byte: u8) -> Mode {
        [Mode::Internal, Mode::Migration, Mode::Reducer]
            .get(usize::from(byte))
            .copied()
            .unwrap_or(Mode::Query)
    }
}

/// A connection whose SQL is watched.
#[derive(Debug)]
pub struct Guarded {
    connection: Connection,
    mode: Arc<AtomicU8>,
    steps: Arc<AtomicU64>,
    /// Hashes of texts known to hold one statement that may run.
    checked: RefCell<HashSet<[u8; 32]>>,
}

/// Bounds of one statement's answer.
#[derive(Debug, Clone, Copy)]
pub struct RowLimits {
    /// Most rows.
    pub rows_max: usize,
    /// Most bytes of text, blobs and 8 for each other value.
    pub bytes_max: usize,
}

impl Guarded {
    /// Puts a connection under guard, in mode `Internal`. A read-only connection gets the bounds of
    /// queries, any other those of reducers.
    pub fn new(mut connection: Connection) -> Result<Guarded, rusqlite::Error> {
        let mode = Arc::new(AtomicU8::new(Mode::Internal as u8));
        let steps = Arc::new(AtomicU64::new(u64::MAX));
        connection.set_limit(Limit::SQLITE_LIMIT_ATTACHED, 0)?;
        connection.set_limit(Limit::SQLITE_LIMIT_LIKE_PATTERN_LENGTH, PATTERN_LENGTH_MAX)?;
        if connection.is_readonly(rusqlite::MAIN_DB)? {
            connection.set_limit(Limit::SQLITE_LIMIT_LENGTH, QUERY_LENGTH_MAX)?;
            connection.set_limit(Limit::SQLITE_LIMIT_COLUMN, QUERY_COLUMNS_MAX)?;
        } else {
            connection.set_limit(Limit::SQLITE_LIMIT_LENGTH, WRITE_LENGTH_MAX)?;
        }
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)?;
        connection.set_prepared_statement_cache_capacity(128);
        // Innocuous: triggers and defaults may use them, as they may SQLite's own.
        let flags = FunctionFlags::SQLITE_UTF8 | FunctionFlags::SQLITE_INNOCUOUS;
        connection.create_scalar_function("random", 0, flags, |_| Ok(random()?.cast_signed()))?;
        connection.create_scalar_function("randomblob", 1, flags, |context| {
            let bytes = context.get::<Option<i64>>(0)?.unwrap_or(0).clamp(1, i64::from(WRITE_LENGTH_MAX));
            let mut blob = Vec::with_capacity(bytes as usize + 8);
            while (blob.len() as i64) < bytes {
                blob.extend(random()?.to_le_bytes());
            }
            blob.truncate(bytes as usize);
            Ok(blob)
        })?;
        let authoriser = mode.clone();
        connection.authorizer(Some(move |context: AuthContext<'_>| {
            authorise(Mode::from_u8(authoriser.load(Ordering::Relaxed)), &context)
        }))?;
        let budget = steps.clone();
        connection.progress_handler(
            STEPS,
            Some(move || {
                let spend = |left: u64| left.checked_sub(STEPS as u64);
                budget.fetch_update(Ordering::Relaxed, Ordering::Relaxed, spend).is_err()
            }),
        )?;
        Ok(Guarded { connection, mode, steps, checked: RefCell::default() })
    }

    /// The connection, for statements of our own.
    pub fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Forgets the schema that SQLite has in memory. To be called when the volume moved under the
    /// connection: SQLite finds that out by the schema cookie, but only after it has parsed a statement,
    /// and a parser that goes by a dropped schema may refuse what is right.
    pub fn forget_schema(&self) -> Result<(), SqlError> {
        let reset = self.connection.execute_batch("PRAGMA writable_schema=RESET");
        reset.map_err(|error| sql_error(&error))
    }

    /// Runs `body` in `mode` with a budget of virtual machine steps.
    pub fn within<T>(&self, mode: Mode, steps: u64, body: impl FnOnce(&Guarded) -> T) -> T {
        // A statement is authorised when it is prepared: what one mode prepared, another must not find.
        let before = self.mode.swap(mode as u8, Ordering::Relaxed);
        if mode == Mode::Migration {
            self.connection.flush_prepared_statement_cache();
        }
        self.steps.store(steps, Ordering::Relaxed);
        let result = body(self);
        self.steps.store(u64::MAX, Ordering::Relaxed);
        self.mode.store(before, Ordering::Relaxed);
        if mode == Mode::Migration {
            self.connection.flush_prepared_statement_cache();
        }
        result
    }

    /// Runs one statement and answers its rows.
    pub fn query(&self, sql: &str, params: &[Value], limits: RowLimits) -> Result<Rows, SqlError> {
        let mut statement = self.single(sql)?;
        bind_positional(&mut statement, params)?;
        rows(&mut statement, limits)
    }

    /// Runs one statement and answers how many rows it changed.
    pub fn execute(&self, sql: &str, params: &[Value]) -> Result<u64, SqlError> {
        let mut statement = self.single(sql)?;
        bind_positional(&mut statement, params)?;
        let before = self.connection.total_changes();
        if statement.column_count() > 0 {
            // RETURNING, or a SELECT run for nothing: step through it.
            let mut rows = statement.raw_query();
            while rows.next().map_err(|error| sql_error(&error))?.is_some() {}
            drop(rows);
            return Ok(self.connection.total_changes() - before);
        }
        let changed = statement.raw_execute().map_err(|error| sql_error(&error))?;
        // Where nothing changed (DDL), SQLite answers for an earlier statement.
        Ok(if self.connection.total_changes() == before { 0 } else { changed as u64 })
    }

    /// Runs one read-only statement with parameters as a client sends them.
    pub fn ask(&self, sql: &str, params: &Params, limits: RowLimits) -> Result<Rows, SqlError> {
        let mut statement = self.single(sql)?;
        if !statement.readonly() || statement.column_count() == 0 {
            return Err(refusal("only a SELECT can be asked here"));
        }
        bind(&mut statement, params)?;
        rows(&mut statement, limits)
    }

    /// Prepares `sql`, which must hold exactly one statement.
    fn single(&self, sql: &str) -> Result<CachedStatement<'_>, SqlError> {
        // The cache prepares a text's first statement and looks no further, so texts are checked once.
        let mut checked = self.checked.borrow_mut();
        let text = *blake3::hash(sql.as_bytes()).as_bytes();
        if !checked.contains(&text) {
            if sql.contains('\0') {
                return Err(refusal("SQL ends at a NUL character; remove it, or pass it as a parameter"));
            }
            let mut batch = Batch::new(&self.connection, sql);
            let mut next = || batch.next().map_err(|error| sql_error(&error));
            let first = next()?.ok_or_else(|| refusal("there is no statement in this text"))?;
            let internal = self.mode.load(Ordering::Relaxed) == Mode::Internal as u8;
            if !internal && (first.is_explain() != 0 || is_pragma(sql)) {
                return Err(refusal("EXPLAIN and PRAGMA are not allowed here"));
            }
            drop(first);
            if next()?.is_some() {
                return Err(refusal("one statement at a time; this text holds several"));
            }
            if checked.len() >= CHECKED_MAX {
                checked.clear();
            }
            checked.insert(text);
        }
        self.connection.prepare_cached(sql).map_err(|error| sql_error(&error))
    }
}

fn random() -> Result<u64, rusqlite::Error> {
    scope::next_u64().ok_or_else(|| {
        rusqlite::Error::UserFunctionError(
            "randomness is a mutation's; there is none outside a mutation".into(),
        )
    })
}

fn refusal(message: &str) -> SqlError {
    SqlError { code: 0, message: message.into() }
}

/// What SQLite said, with its extended code.
pub(crate) fn sql_error(error: &rusqlite::Error) -> SqlError {
    match error {
        rusqlite::Error::SqliteFailure(failure, message) => SqlError {
            code: failure.extended_code,
            message: message.clone().unwrap_or_else(|| failure.to_string()),
        },
        rusqlite::Error::SqlInputError { error, msg, .. } => {
            SqlError { code: error.extended_code, message: msg.clone() }
        }
        other => SqlError { code: 0, message: other.to_string() },
    }
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

/// Whether as many parameters were given as the statement has.
fn all_bound(statement: &Statement<'_>, given: usize) -> Result<(), SqlError> {
    match statement.parameter_count() {
        expected if expected == given => Ok(()),
        expected => Err(refusal(&format!("the statement has {expected} parameters, {given} were given"))),
    }
}

fn bind_positional(statement: &mut Statement<'_>, params: &[Value]) -> Result<(), SqlError> {
    all_bound(statement, params.len())?;
    for (at, value) in params.iter().enumerate() {
        statement.raw_bind_parameter(at + 1, Bound(value)).map_err(|error| sql_error(&error))?;
    }
    Ok(())
}

fn bind(statement: &mut Statement<'_>, params: &Params) -> Result<(), SqlError> {
    let from_json = |json| value::from_json(json).map_err(|error| refusal(&error.to_string()));
    match params {
        Params::Positional(values) => {
            let values = values.iter().map(from_json).collect::<Result<Vec<_>, _>>()?;
            bind_positional(statement, &values)
        }
        Params::Named(values) => {
            for (name, json) in values {
                let index = [":", "@", "$", ""]
                    .iter()
                    .find_map(|sigil| statement.parameter_index(&format!("{sigil}{name}")).ok().flatten());
                let index =
                    index.ok_or_else(|| refusal(&format!("the statement has no parameter `{name}`")))?;
                statement
                    .raw_bind_parameter(index, Bound(&from_json(json)?))
                    .map_err(|error| sql_error(&error))?;
            }
            all_bound(statement, values.len())
        }
    }
}

fn rows(statement: &mut Statement<'_>, limits: RowLimits) -> Result<Rows, SqlError> {
    let names = |statement: &Statement<'_>| statement.column_names().map(String::from).collect();
    let mut columns: Vec<String> = names(statement);
    let mut answer: Vec<Vec<Value>> = Vec::new();
    let mut bytes = 0usize;
    let mut rows = statement.raw_query();
    let mut begun = false;
    while let Some(row) = rows.next().map_err(|error| sql_error(&error))? {
        if !std::mem::replace(&mut begun, true) {
            // The first step prepares the statement anew where the schema has changed.
            columns = names(row.as_ref());
        }
        if answer.len() >= limits.rows_max {
            return Err(refusal(&format!("the answer has more than {} rows; add a LIMIT", limits.rows_max)));
        }
        let mut values = Vec::with_capacity(columns.len());
        for column in 0..columns.len() {
            let value = match row.get_ref(column).map_err(|error| sql_error(&error))? {
                ValueRef::Null => Value::Null,
                ValueRef::Integer(i) => Value::Integer(i),
                ValueRef::Real(r) => Value::Real(r),
                ValueRef::Text(text) => Value::Text(String::from_utf8_lossy(text).into_owned()),
                ValueRef::Blob(blob) => Value::Blob(blob.into()),
            };
            bytes += match &value {
                Value::Text(text) => text.len(),
                Value::Blob(blob) => blob.len(),
                Value::Null | Value::Integer(_) | Value::Real(_) => 8,
            };
            values.push(value);
        }
        if bytes > limits.bytes_max {
            return Err(refusal(&format!(
                "the answer has more than {} bytes; ask for less",
                limits.bytes_max
            )));
        }
        answer.push(values);
    }
    drop(rows);
    if !begun {
        columns = names(statement);
    }
    Ok(Rows { columns, rows: answer })
}

/// Whether a text's first word is PRAGMA.
fn is_pragma(sql: &str) -> bool {
    let mut rest = sql.trim_start();
    loop {
        // Comments may come before it.
        rest = match (rest.strip_prefix("--"), rest.strip_prefix("/*")) {
            (Some(line), _) => line.split_once('\n').map_or("", |(_, rest)| rest).trim_start(),
            (_, Some(block)) => block.split_once("*/").map_or("", |(_, rest)| rest).trim_start(),
            (None, None) => break,
        };
    }
    rest.get(..6).is_some_and(|word| word.eq_ignore_ascii_case("pragma"))
}

/// Tables that tell of the file or the connection, not of what is in the database.
fn tells_of_the_file(table: &str) -> bool {
    let table = table.to_ascii_lowercase();
    table.starts_with("pragma_")
        || ["dbstat", "sqlite_dbpage", "sqlite_stmt", "bytecode", "tables_used"].contains(&&*table)
}

/// Functions that answer from more than the database.
fn impure(function: &str) -> bool {
    const IMPURE: [&str; 8] = [
        "changes",
        "total_changes",
        "sqlite_version",
        "sqlite_source_id",
        "sqlite_compileoption_used",
        "sqlite_compileoption_get",
        "load_extension",
        "fts3_tokenizer",
    ];
    IMPURE.iter().any(|name| function.eq_ignore_ascii_case(name))
}

/// Functions that answer from the running mutation or the connection: not for live queries.
fn of_a_mutation(function: &str) -> bool {
    ["random", "randomblob", "last_insert_rowid"].iter().any(|name| function.eq_ignore_ascii_case(name))
}

fn authorise(mode: Mode, context: &AuthContext<'_>) -> Authorization {
    use AuthAction as A;
    let temp = context.database_name.is_some_and(|name| name.eq_ignore_ascii_case("temp"));
    let allow = match (mode, &context.action) {
        (Mode::Internal, _) => true,
        (_, A::Select | A::Recursive) => true,
        (_, A::Read { table_name, .. }) => !tells_of_the_file(table_name),
        // FTS5 and R-tree ask these; a statement of one's own may not.
        (_, A::Pragma { pragma_name, pragma_value: None }) => {
            ["data_version", "page_size"].iter().any(|name| pragma_name.eq_ignore_ascii_case(name))
        }
        (Mode::Query, A::Function { function_name }) => {
            !impure(function_name) && !of_a_mutation(function_name)
        }
        (_, A::Function { function_name }) => !impure(function_name),
        (Mode::Query, _) => false,
        // ALTER TABLE renames in the temporary schema too; SQLite itself refuses other writes there.
        (Mode::Migration, A::Update { table_name, .. }) if temp => {
            ["sqlite_temp_master", "sqlite_temp_schema"].contains(table_name)
        }
        (Mode::Reducer | Mode::Migration, A::Insert { .. } | A::Update { .. } | A::Delete { .. }) => !temp,
        (
            Mode::Migration,
            A::CreateIndex { .. }
            | A::CreateTable { .. }
            | A::CreateTrigger { .. }
            | A::CreateView { .. }
            | A::CreateVtable { .. }
            | A::DropIndex { .. }
            | A::DropTable { .. }
            | A::DropTrigger { .. }
            | A::DropView { .. }
            | A::DropVtable { .. }
            | A::AlterTable { .. }
            | A::Reindex { .. }
            | A::Analyze { .. },
        ) => !temp,
        (Mode::Reducer | Mode::Migration, _) => false,
    };
    if allow { Authorization::Allow } else { Authorization::Deny }
}

#[cfg(test)]
mod tests;
