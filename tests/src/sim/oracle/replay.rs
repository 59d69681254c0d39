//! A plain SQLite that runs the log's records one after another, each in a transaction of its own.
//!
//! It shares with the product the app's reducers, the guard (whose `random` is the mutation's) and
//! nothing else: no volume, no savepoints, no batches.

use reducers_abi::{Call, Entry, Rows, Runtime as _, Sql, SqlError, Value};
use rusqlite::Connection;
use rusqlite::backup::Backup;
use sqlsync_layer::guard::{Guarded, Mode, RowLimits};
use sqlsync_layer::payload::{Mutation, Op, Outcome, Record};
use sqlsync_layer::protocol::{codes, wire_rows};
use sqlsync_layer::vfs::scope::Scope;

use crate::sim::bank::{self, Ask, Bank};
use crate::sim::truth::{Local, rows_text};

const ROWS: RowLimits = RowLimits { rows_max: 1_000_000, bytes_max: 1 << 30 };

/// See the module.
#[derive(Debug)]
pub struct Plain {
    guarded: Guarded,
    module: Option<Bank>,
    schema: u32,
}

/// The database as a reducer sees it: once SQLite has ended the transaction, nothing more runs.
struct Port<'a>(&'a Guarded);

impl Port<'_> {
    fn check(&self) -> Result<(), SqlError> {
        if self.0.connection().is_autocommit() {
            return Err(SqlError { code: 4, message: "the transaction has ended".into() });
        }
        Ok(())
    }
}

impl Sql for Port<'_> {
    fn execute(&mut self, sql: &str, params: &[Value]) -> Result<u64, SqlError> {
        self.check()?;
        self.0.execute(sql, params)
    }

    fn query(&mut self, sql: &str, params: &[Value]) -> Result<Rows, SqlError> {
        self.check()?;
        self.0.query(sql, params, ROWS)
    }

    fn log(&mut self, _line: &str) {}
}

impl Plain {
    /// An empty database.
    pub fn new() -> Result<Plain, String> {
        let guarded =
            Connection::open_in_memory().and_then(Guarded::new).map_err(|error| error.to_string())?;
        Ok(Plain { guarded, module: None, schema: 0 })
    }

    /// A database of its own with the same content.
    pub fn copy(&self) -> Result<Plain, String> {
        let copied = || {
            let mut copy = Connection::open_in_memory()?;
            Backup::new(self.connection(), &mut copy)?.step(-1)?;
            Guarded::new(copy)
        };
        let guarded =
            copied().map_err(|error: rusqlite::Error| format!("the replay cannot be copied: {error}"))?;
        let module = self.module.as_ref().map(|_| Bank::new(self.schema, false));
        Ok(Plain { guarded, module, schema: self.schema })
    }

    /// Runs a document's local commit; it must end as it did there.
    pub fn local(&mut self, local: &Local) -> Result<(), String> {
        match local {
            Local::Sql(text) => self.direct(text),
            Local::Ran(Record { op, outcome }) => {
                let code = match outcome {
                    Outcome::Applied => None,
                    // The app's decision: it had no effect, whatever it would have done.
                    Outcome::Rejected(reason) if reason.code == codes::DISCARDED => return Ok(()),
                    Outcome::Rejected(reason) => Some(reason.code.clone()),
                };
                let replayed = match op {
                    Op::Mutation(mutation) => self.mutation(mutation)?,
                    Op::Deploy { module, schema, clock, seed } => {
                        let version = bank::version(*module).ok_or_else(|| format!("{module}?"))?;
                        self.deploy(version, *schema, *clock, seed.0)?
                    }
                };
                if replayed == code {
                    return Ok(());
                }
                Err(format!("{op:?} ended as {outcome:?}; run serially it ends with {replayed:?}"))
            }
        }
    }

    /// The connection, to read from.
    pub fn connection(&self) -> &Connection {
        self.guarded.connection()
    }

    /// Runs what a direct writer ran.
    pub fn direct(&self, text: &str) -> Result<(), String> {
        if text == bank::VACUUM {
            // The guard allows no second database, which VACUUM uses; content is the same without.
            return Ok(());
        }
        self.connection().execute_batch(text).map_err(|error| error.to_string())
    }

    /// Runs a mutation. Answers the code of its rejection, `None` where it is applied.
    pub fn mutation(&self, mutation: &Mutation) -> Result<Option<String>, String> {
        let rejected = |code: &str| Ok(Some(code.to_owned()));
        let Some(module) = &self.module else { return rejected(codes::NO_MODULE) };
        let Some(reducer) = module.description().reducer(&mutation.reducer) else {
            return rejected(codes::UNKNOWN_REDUCER);
        };
        let args = serde_json::from_str(&mutation.args).map_err(|error| error.to_string())?;
        let Some(args) = bank::bind(reducer, &args) else { return rejected(codes::BAD_ARGUMENTS) };
        let entry = Entry::Reducer { name: &mutation.reducer, args: &args };
        let (user, now_ms, seed) = (mutation.client.as_str(), mutation.clock, mutation.seed.0);
        let call = Call { entry, user, now_ms, seed };
        self.transaction(|guarded| {
            let failed = guarded.within(Mode::Reducer, u64::MAX, |guarded| {
                let _scope = Scope::enter(now_ms, seed);
                module.run(&call, &mut Port(guarded))
            });
            failed.map_err(|failure| failure.code().to_owned())
        })
    }

    /// Puts a version in force. `recorded` is the schema version that the log gives it.
    pub fn deploy(
        &mut self,
        version: u32,
        recorded: u32,
        now_ms: i64,
        seed: u64,
    ) -> Result<Option<String>, String> {
        if version < self.schema {
            return Ok(Some(codes::REFUSED.into()));
        }
        let module = Bank::new(version, false);
        let schema = self.schema;
        let code = self.transaction(|guarded| {
            for version in schema + 1..=version {
                let call = Call { entry: Entry::Migration { version }, user: "deploy", now_ms, seed };
                let ran = guarded.within(Mode::Migration, u64::MAX, |guarded| {
                    let _scope = Scope::enter(now_ms, seed ^ u64::from(version));
                    module.run(&call, &mut Port(guarded))
                });
                ran.map_err(|failure| failure.code().to_owned())?;
            }
            Ok(())
        })?;
        if code.is_none() {
            if recorded != version {
                return Err(format!("version {version} is recorded with schema {recorded}"));
            }
            (self.module, self.schema) = (Some(module), version);
        }
        Ok(code)
    }

    /// A query's answer as JSON text.
    pub fn ask(&self, ask: Ask) -> Result<String, String> {
        let answer = self.guarded.within(Mode::Query, u64::MAX, |g| g.ask(ask.sql(), &ask.params(), ROWS));
        let rows = answer.map_err(|error| format!("{ask:?}: {error}"))?;
        Ok(rows_text(&wire_rows(&rows.rows)))
    }

    /// Commits what `body` does, or nothing where it fails or SQLite ends the transaction.
    fn transaction(
        &self,
        body: impl FnOnce(&Guarded) -> Result<(), String>,
    ) -> Result<Option<String>, String> {
        let connection = self.connection();
        let internal = |sql: &str| connection.execute_batch(sql).map_err(|error| format!("{sql}: {error}"));
        internal("BEGIN IMMEDIATE")?;
        let result = body(&self.guarded);
        if connection.is_autocommit() {
            return Ok(Some(codes::SQL.into()));
        }
        match result {
            Err(code) => internal("ROLLBACK").map(|()| Some(code)),
            // A deferred constraint is checked here.
            Ok(()) if connection.execute_batch("COMMIT").is_err() => {
                internal("ROLLBACK").map(|()| Some(codes::SQL.into()))
            }
            Ok(()) => Ok(None),
        }
    }
}
