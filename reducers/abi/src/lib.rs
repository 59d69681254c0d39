//! What hosts and guests of reducers share.
//!
//! A *reducer* is a function in a wasm module that turns a mutation into SQL. This crate holds the
//! values that cross the boundary, the description a module exports of itself, and the two traits
//! by which hosts meet: [`Sql`], the database a running reducer sees, and [`Runtime`], a loaded
//! module. It has no dependencies, so that a guest that uses it stays small.
//!
//! The bytes on the boundary are written down in `docs/reducer-abi.md`.

pub mod codec;

use std::fmt;

/// One SQL value.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// NULL.
    Null,
    /// INTEGER, 64 bits.
    Integer(i64),
    /// REAL. SQLite has no NaN: it stores NULL.
    Real(f64),
    /// TEXT, UTF-8.
    Text(String),
    /// BLOB.
    Blob(Vec<u8>),
}

/// The type of a reducer's parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Type {
    /// A string.
    Text,
    /// A 64-bit integer.
    Integer,
    /// A double.
    Real,
    /// `true` or `false`; crosses as 1 or 0.
    Boolean,
    /// Bytes.
    Blob,
    /// Any JSON value; crosses as its text.
    Json,
}

/// One parameter of a reducer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Param {
    /// Its name, the key in the arguments object.
    pub name: String,
    /// Its type.
    pub ty: Type,
    /// Whether null, or leaving it out, is accepted.
    pub optional: bool,
}

/// One reducer, as its module describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reducer {
    /// Its name, unique in the module.
    pub name: String,
    /// Its parameters in the order in which their values are passed.
    pub params: Vec<Param>,
    /// The first lines of its documentation; may be empty.
    pub doc: String,
}

/// What a module says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Description {
    /// Its reducers.
    pub reducers: Vec<Reducer>,
    /// Its migrations' versions, ascending, without gaps from 1.
    pub migrations: Vec<u32>,
}

impl Description {
    /// The reducer called `name`.
    pub fn reducer(&self, name: &str) -> Option<&Reducer> {
        self.reducers.iter().find(|r| r.name == name)
    }

    /// The schema version after every migration: the last one's, or 0.
    pub fn schema_version(&self) -> u32 {
        self.migrations.last().copied().unwrap_or(0)
    }
}

/// What is to be run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Entry<'a> {
    /// A reducer with one value for each parameter, already checked against the description.
    Reducer {
        /// Which.
        name: &'a str,
        /// Its arguments, in the order of its parameters.
        args: &'a [Value],
    },
    /// A migration.
    Migration {
        /// Its version.
        version: u32,
    },
}

/// One run of a module. Everything that could differ between two runs is in here.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Call<'a> {
    /// What to run.
    pub entry: Entry<'a>,
    /// Who called: the principal's name, or the client id where there is no authentication.
    pub user: &'a str,
    /// The mutation's wall clock: milliseconds since 1970-01-01 UTC.
    pub now_ms: i64,
    /// The mutation's random seed.
    pub seed: u64,
}

/// Rows that a query answered.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Rows {
    /// Column names.
    pub columns: Vec<String>,
    /// Each as long as `columns`.
    pub rows: Vec<Vec<Value>>,
}

/// The most rows that one query of a reducer may answer. A reducer that reads more belongs in SQL.
/// [`Sql::query`] should stop there rather than gather what the host will refuse.
pub const QUERY_ROWS_MAX: usize = 100_000;

/// The most bytes that the rows of one query of a reducer may take ([`Rows::byte_len`]): what guest and
/// host can both hold beside each other in a guest's 64 MiB.
pub const QUERY_BYTES_MAX: usize = 16 << 20;

impl Rows {
    /// About how many bytes these rows take on the boundary.
    pub fn byte_len(&self) -> usize {
        let columns: usize = self.columns.iter().map(|c| 4 + c.len()).sum();
        columns + self.rows.iter().flatten().map(Value::byte_len).sum::<usize>()
    }
}

impl Value {
    /// How many bytes this value takes on the boundary.
    pub fn byte_len(&self) -> usize {
        match self {
            Value::Null => 1,
            Value::Integer(_) | Value::Real(_) => 9,
            Value::Text(text) => 5 + text.len(),
            Value::Blob(bytes) => 5 + bytes.len(),
        }
    }
}

/// Why a statement failed. The reducer sees it and may go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SqlError {
    /// SQLite's extended result code, or 0 where the host refused before SQLite was asked.
    pub code: i32,
    /// What SQLite or the host said.
    pub message: String,
}

impl fmt::Display for SqlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}
impl std::error::Error for SqlError {}

/// The database that a running reducer sees: one transaction of one volume, under an authoriser.
pub trait Sql {
    /// Runs one statement that returns no rows; answers how many rows it changed.
    fn execute(&mut self, sql: &str, params: &[Value]) -> Result<u64, SqlError>;
    /// Runs one statement and answers its rows. An implementation should stop, with an error, at
    /// [`QUERY_ROWS_MAX`] rows or [`QUERY_BYTES_MAX`] bytes.
    fn query(&mut self, sql: &str, params: &[Value]) -> Result<Rows, SqlError>;
    /// A line the reducer logged. It has no effect on the outcome.
    fn log(&mut self, line: &str);
}

/// Why a run ended without success. All of its effects are to be rolled back.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Failure {
    /// The reducer returned an error: the app's own reason.
    Refused {
        /// What it said.
        message: String,
    },
    /// The module has no such reducer or migration.
    Unknown {
        /// What was asked for.
        entry: String,
    },
    /// The guest trapped (panicked, divided by zero, broke the ABI …).
    Trap {
        /// What happened, and where if it is known.
        message: String,
    },
    /// A limit was reached.
    Limit {
        /// Which limit and its value, for a person.
        message: String,
    },
}

impl Failure {
    /// A short, stable word for programs: `refused`, `unknown_reducer`, `trap`, `limit`.
    pub fn code(&self) -> &'static str {
        match self {
            Failure::Refused { .. } => "refused",
            Failure::Unknown { .. } => "unknown_reducer",
            Failure::Trap { .. } => "trap",
            Failure::Limit { .. } => "limit",
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Refused { message } | Failure::Trap { message } | Failure::Limit { message } => {
                f.write_str(message)
            }
            Failure::Unknown { entry } => write!(f, "the module has no {entry}"),
        }
    }
}
impl std::error::Error for Failure {}

/// A loaded module, ready to run. Implementations start every run with fresh memory, so that a run
/// depends on its [`Call`] and on what [`Sql`] answers and on nothing else.
pub trait Runtime: Send + Sync + fmt::Debug {
    /// What the module says of itself.
    fn description(&self) -> &Description;
    /// Runs one entry to its end.
    fn run(&self, call: &Call<'_>, sql: &mut dyn Sql) -> Result<(), Failure>;
}
