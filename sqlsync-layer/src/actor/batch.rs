//! One batch: operations in one SQLite transaction, a savepoint each.
//!
//! One operation's failure never affects another. Savepoints alone do not ensure that, so: an
//! operation that leaves a deferred foreign key violated is rejected before its RELEASE; and where an
//! operation made SQLite end the transaction (`OR ROLLBACK`, `RAISE(ROLLBACK)`), the batch runs again
//! with that operation rejected beforehand.
//!
//! A failure of the world (a page that cannot be fetched) rejects nothing: the batch ends with
//! [`Blocked`] and nothing of it remains.
#![allow(unsafe_code, reason = "two calls into SQLite that rusqlite does not wrap")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use graft::ModuleHash;
use reducers_abi::{
    Call, Description, Entry, Failure, QUERY_BYTES_MAX, QUERY_ROWS_MAX, Rows, Runtime, Sql, SqlError, Value,
};
use rusqlite::ffi;
use rusqlite::hooks::Action;

use super::args;
use super::{Limits, ModuleError, Modules};
use crate::guard::{Guarded, Mode, RowLimits};
use crate::payload::{Mutation, Op, Outcome, Record};
use crate::protocol::{Reason, codes};
use crate::vfs::{ConnectError, Control, Database, IoFailure, WriteSet, scope::Scope};

/// The connection that runs operations.
pub(crate) struct Writer {
    guarded: Guarded,
    control: Arc<Control>,
    modules: Arc<dyn Modules>,
    loaded: Option<(ModuleHash, Arc<dyn Runtime>)>,
    limits: Limits,
    /// A row got the greatest rowid: SQLite would give the next ones random rowids.
    rowid_max: Arc<AtomicBool>,
}

/// Operations run and committed locally.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) records: Vec<Record>,
    /// How many migrations each record ran.
    pub(crate) migrations: Vec<u32>,
    /// `None` where no page changed.
    pub(crate) written: Option<WriteSet>,
}

/// The batch cannot run now; nothing of it remains.
#[derive(Debug)]
pub(crate) struct Blocked(pub(crate) IoFailure);

impl Blocked {
    /// Trying again may help.
    pub(crate) fn passing(message: impl Into<String>) -> Blocked {
        Blocked(IoFailure { message: message.into(), damaged: false })
    }
}

const SAVEPOINT: &str = "SAVEPOINT operation";
const ROLLBACK_TO: &str = "ROLLBACK TO operation";
const RELEASE: &str = "RELEASE operation";
const COMMIT: &str = "COMMIT";

enum Stop {
    /// Operation `at` made SQLite end the transaction.
    Ended {
        at: usize,
        reason: Reason,
    },
    Blocked(Blocked),
}

impl From<Blocked> for Stop {
    fn from(blocked: Blocked) -> Stop {
        Stop::Blocked(blocked)
    }
}

impl Writer {
    pub(crate) fn new(
        database: &Arc<Database>,
        modules: Arc<dyn Modules>,
        limits: Limits,
    ) -> Result<Writer, ConnectError> {
        let (mut connection, control) = database.connect()?;
        let rowid_max = Arc::new(AtomicBool::new(false));
        let seen = rowid_max.clone();
        connection.update_hook(Some(move |action: Action, _: &str, _: &str, rowid: i64| {
            if rowid == i64::MAX && action != Action::SQLITE_DELETE {
                seen.store(true, Ordering::Relaxed);
            }
        }))?;
        let guarded = Guarded::new(connection)?;
        Ok(Writer { guarded, control, modules, loaded: None, limits, rowid_max })
    }

    /// What its connection reads and writes.
    #[cfg(all(feature = "client", not(target_arch = "wasm32")))]
    pub(crate) fn control(&self) -> &Arc<Control> {
        &self.control
    }

    /// The volume moved other than by this writer's own commits.
    pub(crate) fn forget_schema(&self) {
        forget_schema(&self.guarded);
    }

    /// Runs `ops` with `module` in force at schema version `schema`, and commits them locally.
    pub(crate) fn run(
        &mut self,
        ops: &[Op],
        module: Option<ModuleHash>,
        schema: u32,
    ) -> Result<Done, Blocked> {
        let mut culprits: BTreeMap<usize, Reason> = BTreeMap::new();
        loop {
            match self.transaction(ops, module, schema, &culprits) {
                Ok(done) => return Ok(done),
                // Each round rejects one more operation beforehand, so this ends.
                Err(Stop::Ended { at, reason }) => culprits.insert(at, reason),
                Err(Stop::Blocked(blocked)) => return Err(blocked),
            };
        }
    }

    fn transaction(
        &mut self,
        ops: &[Op],
        module: Option<ModuleHash>,
        schema: u32,
        culprits: &BTreeMap<usize, Reason>,
    ) -> Result<Done, Stop> {
        let _ = self.control.take_failure();
        let _ = self.control.take_committed();
        self.internal("BEGIN IMMEDIATE")?;
        let result = self.operations(ops, module, schema, culprits);
        let connection = self.guarded.connection();
        if result.is_err() && !connection.is_autocommit() {
            self.internal("ROLLBACK")?;
        }
        let mut done = result?;
        if done.records.iter().all(|record| matches!(record.outcome, Outcome::Rejected(_))) {
            // Rolled back to its savepoint, an operation may leave other bytes on a page that is free. They are
            // nobody's, but COMMIT would make a local commit of them, in which nothing has happened.
            self.internal("ROLLBACK")?;
            return Ok(done);
        }
        let connection = self.guarded.connection();
        let committed = connection.prepare_cached(COMMIT).and_then(|mut commit| commit.execute([]));
        if let Err(error) = committed {
            let failure =
                self.control.take_failure().map_or_else(|| Blocked::passing(error.to_string()), Blocked);
            if !self.guarded.connection().is_autocommit() {
                self.internal("ROLLBACK")?;
            }
            return Err(failure.into());
        }
        done.written = self.control.take_committed();
        Ok(done)
    }

    /// A statement of our own, kept prepared; it fails only where the world does. A reducer that uses the
    /// same text does not find it: [`Guarded`] has every text authorised in the reducer's mode first.
    fn internal(&self, sql: &str) -> Result<(), Blocked> {
        let connection = self.guarded.connection();
        let run = connection.prepare_cached(sql).and_then(|mut statement| statement.execute([]));
        run.map(drop).map_err(|error| {
            let failure = self.control.take_failure();
            failure.map_or_else(|| Blocked::passing(format!("{sql}: {error}")), Blocked)
        })
    }

    fn operations(
        &mut self,
        ops: &[Op],
        mut module: Option<ModuleHash>,
        mut schema: u32,
        culprits: &BTreeMap<usize, Reason>,
    ) -> Result<Done, Stop> {
        let mut done = Done { records: Vec::with_capacity(ops.len()), migrations: Vec::new(), written: None };
        for (at, op) in ops.iter().enumerate() {
            let mut migrations = 0;
            let (op, outcome) = match (culprits.get(&at), op) {
                (Some(reason), op) => (op.clone(), Outcome::Rejected(reason.clone())),
                (None, Op::Mutation(mutation)) => {
                    let outcome = match module {
                        None => Outcome::Rejected(no_module()),
                        Some(module) => self.mutation(at, module, mutation)?,
                    };
                    (op.clone(), outcome)
                }
                (None, Op::Deploy { module: new, clock, seed, .. }) => {
                    let (version, outcome) = self.deploy(at, *new, schema, *clock, seed.0)?;
                    if outcome == Outcome::Applied {
                        migrations = version - schema;
                        (module, schema) = (Some(*new), version);
                    }
                    (Op::Deploy { module: *new, schema: version, clock: *clock, seed: *seed }, outcome)
                }
            };
            done.records.push(Record { op, outcome });
            done.migrations.push(migrations);
        }
        Ok(done)
    }

    fn runtime(&mut self, module: ModuleHash) -> Result<Result<Arc<dyn Runtime>, Reason>, Blocked> {
        if let Some((loaded, runtime)) = &self.loaded
            && *loaded == module
        {
            return Ok(Ok(runtime.clone()));
        }
        match self.modules.load(module) {
            Ok(runtime) => {
                self.loaded = Some((module, runtime.clone()));
                Ok(Ok(runtime))
            }
            Err(error @ ModuleError::Invalid { .. }) => {
                Ok(Err(Reason::new(codes::NO_MODULE, error.to_string())))
            }
            Err(error) => Err(Blocked(IoFailure {
                message: error.to_string(),
                damaged: matches!(error, ModuleError::Damaged { .. }),
            })),
        }
    }

    fn mutation(&mut self, at: usize, module: ModuleHash, mutation: &Mutation) -> Result<Outcome, Stop> {
        let runtime = match self.runtime(module)? {
            Ok(runtime) => runtime,
            Err(reason) => return Ok(Outcome::Rejected(reason)),
        };
        let args = match arguments(runtime.description(), mutation) {
            Ok(args) => args,
            Err(reason) => return Ok(Outcome::Rejected(reason)),
        };
        let call = Call {
            entry: Entry::Reducer { name: &mutation.reducer, args: &args },
            user: mutation.client.as_str(),
            now_ms: mutation.clock,
            seed: mutation.seed.0,
        };
        self.savepoint(at, Mode::Reducer, |port| {
            let _scope = Scope::enter(call.now_ms, call.seed);
            runtime.run(&call, port)
        })
    }

    fn deploy(
        &mut self,
        at: usize,
        module: ModuleHash,
        schema: u32,
        clock: i64,
        seed: u64,
    ) -> Result<(u32, Outcome), Stop> {
        let runtime = match self.runtime(module)? {
            Ok(runtime) => runtime,
            Err(reason) => return Ok((schema, Outcome::Rejected(reason))),
        };
        let version = runtime.description().schema_version();
        if version < schema {
            let message = format!(
                "the volume's schema is at version {schema}, the module knows {version}; deploy a module that has every migration"
            );
            return Ok((schema, Outcome::Rejected(Reason::new(codes::REFUSED, message))));
        }
        let outcome = self.savepoint(at, Mode::Migration, |port| {
            for version in schema + 1..=version {
                let call = Call { entry: Entry::Migration { version }, user: "deploy", now_ms: clock, seed };
                let _scope = Scope::enter(clock, seed ^ u64::from(version));
                runtime.run(&call, port)?;
            }
            Ok(())
        })?;
        Ok((if outcome == Outcome::Applied { version } else { schema }, outcome))
    }

    /// Runs `body` in a savepoint: all of it happens or none.
    fn savepoint(
        &self,
        at: usize,
        mode: Mode,
        body: impl FnOnce(&mut Port<'_>) -> Result<(), Failure>,
    ) -> Result<Outcome, Stop> {
        self.internal(SAVEPOINT)?;
        self.reset_connection_state();
        let mut port = Port { writer: self, blocked: None, ended: None };
        let mut result = self
            .guarded
            .within(mode, self.limits.mutation_steps_max, |_| body(&mut port))
            .map_err(|failure| Reason::new(failure.code(), failure.to_string()));
        let Port { blocked, ended, .. } = port;
        if let Some(blocked) = blocked {
            return Err(blocked.into());
        }
        if let Some(said) = ended {
            let reason = Reason::new(codes::SQL, format!("SQLite ended the transaction: {said}"));
            return Err(Stop::Ended { at, reason });
        }
        if result.is_ok() && self.deferred_foreign_keys() {
            result = Err(Reason::new(codes::SQL, "a deferred foreign key is still violated at the end"));
        }
        if result.is_ok() && self.rowid_max.load(Ordering::Relaxed) {
            let message =
                "a row got rowid 9223372036854775807: SQLite would give the next rows random rowids";
            result = Err(Reason::new(codes::SQL, message));
        }
        if result.is_err() {
            self.internal(ROLLBACK_TO)?;
        }
        self.internal(RELEASE)?;
        Ok(result.map_or_else(Outcome::Rejected, |()| Outcome::Applied))
    }

    /// What a connection remembers of earlier statements must not reach the next mutation.
    fn reset_connection_state(&self) {
        self.rowid_max.store(false, Ordering::Relaxed);
        // SAFETY: the handle is open for as long as `self`, and used by this thread alone.
        unsafe { ffi::sqlite3_set_last_insert_rowid(self.guarded.connection().handle(), 0) };
    }

    /// Whether a deferred foreign key is violated now.
    fn deferred_foreign_keys(&self) -> bool {
        let (mut current, mut high) = (0, 0);
        // SAFETY: the handle is open; both pointers are to integers of ours.
        let code = unsafe {
            ffi::sqlite3_db_status(
                self.guarded.connection().handle(),
                ffi::SQLITE_DBSTATUS_DEFERRED_FKS,
                &mut current,
                &mut high,
                0,
            )
        };
        code != ffi::SQLITE_OK || current != 0
    }
}

/// Makes a connection read the schema anew.
pub(super) fn forget_schema(guarded: &Guarded) {
    if let Err(error) = guarded.forget_schema() {
        tracing::error!(%error, "SQLite would not forget its schema");
    }
}

fn no_module() -> Reason {
    Reason::new(
        codes::NO_MODULE,
        "no module has been deployed to this volume; `graft deploy` puts one in force",
    )
}

fn arguments(description: &Description, mutation: &Mutation) -> Result<Vec<Value>, Reason> {
    let Some(reducer) = description.reducer(&mutation.reducer) else {
        let known: Vec<&str> = description.reducers.iter().map(|r| r.name.as_str()).collect();
        let message =
            format!("there is no reducer `{}`; the module has {}", mutation.reducer, known.join(", "));
        return Err(Reason::new(codes::UNKNOWN_REDUCER, message));
    };
    let args = serde_json::from_str(&mutation.args).map_err(|error| {
        Reason::new(codes::BAD_ARGUMENTS, format!("the arguments are not a JSON object: {error}"))
    })?;
    args::bind(reducer, &args).map_err(|error| Reason::new(codes::BAD_ARGUMENTS, error.to_string()))
}

/// The database as a running reducer sees it.
struct Port<'a> {
    writer: &'a Writer,
    /// The world failed: whatever the reducer makes of it, the batch runs again later.
    blocked: Option<Blocked>,
    /// SQLite ended the transaction; what it said.
    ended: Option<String>,
}

impl Port<'_> {
    fn statement<T>(&mut self, run: impl FnOnce(&Guarded) -> Result<T, SqlError>) -> Result<T, SqlError> {
        if self.ended.is_some() || self.blocked.is_some() {
            return Err(SqlError { code: ffi::SQLITE_ABORT, message: "the transaction has ended".into() });
        }
        let result = run(&self.writer.guarded);
        if let Err(error) = &result {
            if let Some(failure) = self.writer.control.take_failure() {
                self.blocked = Some(Blocked(failure));
            } else if self.writer.guarded.connection().is_autocommit() {
                self.ended = Some(error.message.clone());
            }
        }
        result
    }
}

impl Sql for Port<'_> {
    fn execute(&mut self, sql: &str, params: &[Value]) -> Result<u64, SqlError> {
        self.statement(|guarded| guarded.execute(sql, params))
    }

    fn query(&mut self, sql: &str, params: &[Value]) -> Result<Rows, SqlError> {
        let limits = RowLimits { rows_max: QUERY_ROWS_MAX, bytes_max: QUERY_BYTES_MAX };
        self.statement(|guarded| guarded.query(sql, params, limits))
    }

    fn log(&mut self, line: &str) {
        tracing::debug!(line, "reducer log");
    }
}
