//! What a running reducer can reach.

use reducers_abi::{Call, Sql, Value};

use crate::random::Random;
use crate::row::{FromRow, Row};
use crate::{Error, time};

/// One run of a reducer or migration: its database, its caller, its clock and its random numbers.
///
/// All SQL runs inside one transaction, which ends in success when the function returns `Ok` and
/// leaves no trace otherwise. The host refuses statements that begin, end or roll back transactions,
/// ATTACH, PRAGMA and whatever else would reach beyond the volume's own tables.
pub struct Ctx<'a> {
    sql: &'a mut dyn Sql,
    user: &'a str,
    now_ms: i64,
    random: Random,
}

impl<'a> Ctx<'a> {
    pub(crate) fn new(call: &Call<'a>, sql: &'a mut dyn Sql) -> Ctx<'a> {
        Ctx { sql, user: call.user, now_ms: call.now_ms, random: Random::new(call.seed) }
    }

    /// Runs one statement that returns no rows, and answers how many rows it changed. `?` stands for
    /// the next parameter, `?1` for the first.
    ///
    /// # Errors
    ///
    /// SQLite or the host refused it; [`Error::sql_code`] says which. The run may go on.
    pub fn execute(&mut self, sql: &str, params: &[Value]) -> Result<u64, Error> {
        Ok(self.sql.execute(sql, params)?)
    }

    /// Runs one statement and answers its rows:
    /// `ctx.query::<(String, f64)>("SELECT id, position FROM tasks WHERE list = ?", params![list])?`.
    ///
    /// # Errors
    ///
    /// SQLite or the host refused it, a column is not of the type asked for, or the rows are more than
    /// the host hands over (100,000, or 16 MiB).
    pub fn query<T: FromRow>(&mut self, sql: &str, params: &[Value]) -> Result<Vec<T>, Error> {
        let found = self.sql.query(sql, params)?;
        let columns = found.columns;
        found.rows.into_iter().map(|values| T::from_row(&mut Row::new(&columns, values))).collect()
    }

    /// As [`Ctx::query`], for a statement that answers exactly one row, such as an aggregate.
    ///
    /// # Errors
    ///
    /// As for `query`, and where there is no row or more than one.
    pub fn query_one<T: FromRow>(&mut self, sql: &str, params: &[Value]) -> Result<T, Error> {
        let mut rows = self.query(sql, params)?;
        match (rows.pop(), rows.len()) {
            (Some(row), 0) => Ok(row),
            (None, _) => Err(Error::new(format!("no row where one was expected: {sql}"))),
            (Some(_), more) => Err(Error::new(format!("{} rows where one was expected: {sql}", more + 1))),
        }
    }

    /// As [`Ctx::query`], for a statement that answers one row or none, such as one by primary key.
    ///
    /// # Errors
    ///
    /// As for `query`, and where there is more than one row.
    pub fn query_optional<T: FromRow>(&mut self, sql: &str, params: &[Value]) -> Result<Option<T>, Error> {
        let mut rows = self.query(sql, params)?;
        match (rows.pop(), rows.len()) {
            (row, 0) => Ok(row),
            (_, more) => Err(Error::new(format!("{} rows where at most one was expected: {sql}", more + 1))),
        }
    }

    /// Who called: the principal's name, or the client's id where there is no authentication.
    pub fn user(&self) -> &str {
        self.user
    }

    /// The mutation's wall clock, in milliseconds since 1970-01-01 UTC. It stands still during a run
    /// and is the same on every replay; the client that made the mutation set it, so it may be wrong.
    pub fn now(&self) -> i64 {
        self.now_ms
    }

    /// [`Ctx::now`] as text: `2026-11-22T03:35:13.123Z`, which sorts by time.
    pub fn now_text(&self) -> String {
        time::iso8601(self.now_ms)
    }

    /// A random number, uniform over 64 bits; the same on every replay. See [`crate::random`].
    pub fn random(&mut self) -> u64 {
        self.random.next_u64()
    }

    /// A random number below `bound`; 0 where `bound` is 0.
    pub fn random_below(&mut self, bound: u64) -> u64 {
        self.random.below(bound)
    }

    /// A random number from 0 to below 1.
    pub fn random_unit(&mut self) -> f64 {
        self.random.unit()
    }

    /// A random identifier of 32 hex digits, for a new row's key. Where the app shows the row before
    /// the server confirmed it, an id that the caller made and passed as an argument serves as well.
    pub fn random_id(&mut self) -> String {
        self.random.id()
    }

    /// Hands a line to the host's log; [`log!`](crate::log!) formats one. No effect on the outcome.
    pub fn log(&mut self, line: &str) {
        self.sql.log(line);
    }
}

/// Logs a formatted line for whoever runs the host: `log!(ctx, "moved {id} to {position}")`.
#[macro_export]
macro_rules! log {
    ($ctx:expr, $($message:tt)+) => { $ctx.log(&::std::format!($($message)+)) };
}
