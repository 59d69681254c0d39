//! Tests for a module's author, with `cargo test` and without wasm or a server.
//!
//! A [`TestDb`] is an in-memory SQLite database with a module's migrations applied. Mutations run
//! through the same list of reducers as on wasm, each in a savepoint of its own that is rolled back
//! when it fails. SQL is guarded as on a server: no transaction control, ATTACH, PRAGMA or extensions,
//! one statement at a time; and the clock and the random numbers, SQL's own included, come from the
//! mutation.
//!
//! In a test, mistakes of the test itself (SQL that does not compile, an unknown argument) panic.
//!
//! ```
//! use reducers::prelude::*;
//! use reducers::testkit::{TestDb, args};
//!
//! #[migration(1)]
//! fn create(ctx: &mut Ctx) -> Result<(), Error> {
//!     ctx.execute("CREATE TABLE seats(seat TEXT PRIMARY KEY, holder TEXT)", params![])?;
//!     Ok(())
//! }
//!
//! #[reducer]
//! fn book(ctx: &mut Ctx, seat: String) -> Result<(), Error> {
//!     let holder = ctx.user().to_owned();
//!     let taken = ctx.query_optional::<String>("SELECT holder FROM seats WHERE seat = ?", params![seat])?;
//!     ensure!(taken.is_none(), "seat {seat} is taken");
//!     ctx.execute("INSERT INTO seats VALUES (?, ?)", params![seat, holder])?;
//!     Ok(())
//! }
//!
//! reducers::module! { migrations: [create], reducers: [book] }
//!
//! fn main() {
//!     let mut db = TestDb::new(&MODULE);
//!     db.user("ada").call("book", args! { seat: "12A" }).unwrap();
//!     let refused = db.user("bob").call("book", args! { seat: "12A" }).unwrap_err();
//!     assert_eq!(refused.to_string(), "seat 12A is taken");
//!     assert_eq!(db.query::<String>("SELECT holder FROM seats", params![]), ["ada"]);
//! }
//! ```

mod functions;
mod guarded;

use std::sync::Arc;

use reducers_abi::{Call, Entry, Failure, Rows, Runtime, Value};
use rusqlite::Connection;

pub use crate::__args as args;
use crate::row::{FromRow, Row};
use crate::{Module, Native};
use functions::Moment;
use guarded::Guarded;

/// Arguments by name, as a caller's JSON object has them: `args! { id: "t1", done: true }`. A
/// parameter of type `Option` may be left out.
#[doc(hidden)]
#[macro_export]
macro_rules! __args {
    () => { &[] as &[(&str, $crate::Value)] };
    ($($name:ident : $value:expr),+ $(,)?) => {
        &[$((::core::stringify!($name), $crate::ToValue::to_value(&$value))),+] as &[(&str, $crate::Value)]
    };
}

/// An in-memory database with a module in force.
///
/// Who calls, when and with which seed stays as set until it is set again; at first it is `tester`, at
/// 2024-01-01 00:00 UTC, with seed 1. After each mutation the seed goes up by one, so that two of them
/// do not draw the same numbers.
#[derive(Debug)]
pub struct TestDb {
    conn: Connection,
    runtime: Arc<dyn Runtime>,
    moment: Moment,
    user: String,
    now_ms: i64,
    seed: u64,
    schema: u32,
    log: Vec<String>,
}

impl TestDb {
    /// A database with all of the module's migrations applied; usually of `&MODULE`.
    ///
    /// # Panics
    ///
    /// If a migration fails.
    pub fn new(module: &'static Module) -> TestDb {
        TestDb::on(Arc::new(Native::new(module)))
    }

    /// As [`TestDb::new`], of a module that something else runs: compiled to wasm, say.
    ///
    /// # Panics
    ///
    /// If a migration fails.
    pub fn on(runtime: Arc<dyn Runtime>) -> TestDb {
        let mut db = TestDb::empty(runtime);
        let to = db.runtime.description().schema_version();
        db.migrate(to);
        db
    }

    /// As [`TestDb::on`], before any migration: for a test of a migration on data of the version before.
    pub fn empty(runtime: Arc<dyn Runtime>) -> TestDb {
        let conn = Connection::open_in_memory().expect("SQLite opens a database in memory");
        let moment = Moment::default();
        functions::register(&conn, &moment).expect("SQLite takes functions");
        TestDb {
            conn,
            runtime,
            moment,
            user: "tester".into(),
            now_ms: 1_704_067_200_000,
            seed: 1,
            schema: 0,
            log: Vec::new(),
        }
    }

    /// Runs the migrations up to and with version `to` that have not run yet.
    ///
    /// # Panics
    ///
    /// If one fails.
    pub fn migrate(&mut self, to: u32) -> &mut TestDb {
        while self.schema < to {
            let version = self.schema + 1;
            if let Err(failure) = self.run(Entry::Migration { version }) {
                panic!("migration {version} failed: {failure}");
            }
            self.schema = version;
        }
        self
    }

    /// Who calls from now on.
    pub fn user(&mut self, user: &str) -> &mut TestDb {
        self.user = user.to_owned();
        self
    }

    /// The clock from now on, in milliseconds since 1970-01-01 UTC.
    pub fn now(&mut self, now_ms: i64) -> &mut TestDb {
        self.now_ms = now_ms;
        self
    }

    /// The seed of the next mutation.
    pub fn seed(&mut self, seed: u64) -> &mut TestDb {
        self.seed = seed;
        self
    }

    /// Runs a reducer with arguments by name; see [`args!`](args).
    ///
    /// # Errors
    ///
    /// The reducer refused, panicked, or is not in the module; the database is as it was before.
    ///
    /// # Panics
    ///
    /// If an argument's name is not one of the reducer's parameters, or one that is not optional is
    /// left out: a host refuses such a call before it runs.
    pub fn call(&mut self, reducer: &str, args: &[(&str, Value)]) -> Result<(), Failure> {
        let runtime = self.runtime.clone();
        let Some(described) = runtime.description().reducer(reducer) else {
            return Err(Failure::Unknown { entry: format!("reducer `{reducer}`") });
        };
        for (name, _) in args {
            let known = described.params.iter().any(|p| p.name == *name);
            assert!(known, "{reducer} has no parameter `{name}`");
        }
        let values = described.params.iter().map(|param| {
            let given = args.iter().find(|(name, _)| *name == param.name).map(|(_, value)| value.clone());
            let given = given.unwrap_or(Value::Null);
            assert!(param.optional || given != Value::Null, "{reducer} needs the argument `{}`", param.name);
            given
        });
        let values: Vec<Value> = values.collect();
        self.run(Entry::Reducer { name: reducer, args: &values })
    }

    /// Runs a reducer or migration with arguments by position, unchecked.
    ///
    /// # Errors
    ///
    /// As for [`TestDb::call`].
    pub fn run(&mut self, entry: Entry<'_>) -> Result<(), Failure> {
        let call = Call { entry, user: &self.user, now_ms: self.now_ms, seed: self.seed };
        self.seed = self.seed.wrapping_add(1);
        self.moment.set(call.now_ms, call.seed);
        batch(&self.conn, "SAVEPOINT mutation");
        let mut guarded = Guarded::new(&mut self.conn, &mut self.log);
        let mut outcome = self.runtime.run(&call, &mut guarded);
        if guarded.ended() {
            // OR ROLLBACK and its like: the savepoint is gone with everything in it.
            let message = "a statement ended the transaction".to_owned();
            return Err(outcome.err().unwrap_or(Failure::Refused { message }));
        }
        drop(guarded);
        if outcome.is_ok() {
            // Foreign keys that are checked at the end are checked here.
            outcome = self
                .conn
                .execute_batch("RELEASE mutation")
                .map_err(|error| Failure::Refused { message: error.to_string() });
        }
        if outcome.is_err() {
            batch(&self.conn, "ROLLBACK TO mutation; RELEASE mutation");
        }
        outcome
    }

    /// The rows of a query, outside of any mutation and without guard.
    ///
    /// # Panics
    ///
    /// If it fails or a column is not of the type asked for.
    pub fn query<T: FromRow>(&self, sql: &str, params: &[Value]) -> Vec<T> {
        let Rows { columns, rows } = self.rows(sql, params);
        let read = |values| T::from_row(&mut Row::new(&columns, values));
        rows.into_iter().map(|values| read(values).unwrap_or_else(|error| panic!("{sql}: {error}"))).collect()
    }

    /// The rows of a query as SQL values.
    ///
    /// # Panics
    ///
    /// If it fails.
    pub fn rows(&self, sql: &str, params: &[Value]) -> Rows {
        guarded::query(&self.conn, sql, params).unwrap_or_else(|error| panic!("{sql}: {error}"))
    }

    /// Runs statements outside of any mutation and without guard, to prepare a test's data.
    ///
    /// # Panics
    ///
    /// If one fails.
    pub fn execute_batch(&self, sql: &str) {
        batch(&self.conn, sql);
    }

    /// What was logged since the last time this was asked.
    pub fn take_log(&mut self) -> Vec<String> {
        std::mem::take(&mut self.log)
    }

    /// The whole content as text, one line for each table, index, view, trigger and row: equal content
    /// makes equal text.
    pub fn dump(&self) -> String {
        let mut dump = String::new();
        let mut line = |text: String| {
            dump.push_str(&text);
            dump.push('\n');
        };
        let schema = "SELECT type, name, sql FROM sqlite_schema WHERE sql IS NOT NULL ORDER BY name";
        for (kind, name, sql) in self.query::<(String, String, String)>(schema, &[]) {
            line(sql);
            if kind != "table" {
                continue;
            }
            let quoted = name.replace('"', "\"\"");
            let mut rows = self.rows(&format!("SELECT * FROM \"{quoted}\""), &[]).rows;
            rows.sort_by_key(|row| format!("{row:?}"));
            for row in rows {
                line(format!("{name} {row:?}"));
            }
        }
        dump
    }
}

fn batch(conn: &Connection, sql: &str) {
    if let Err(error) = conn.execute_batch(sql) {
        panic!("{sql}: {error}");
    }
}
