//! One running guest: its account of limits, and the five functions it may call.
//!
//! Every address and length here comes from the guest. `range` is the only place that turns them into
//! a slice.

use std::fmt;
use std::ops::Range;
use std::ptr::NonNull;

use reducers_abi::codec::{self, DecodeError};
use reducers_abi::{Failure, Rows, Sql, SqlError};
use wasmtime::{Caller, Engine, Error, Linker, Memory, ResourceLimiter, Trap, UpdateDeadline};

use crate::HostLimits;
use crate::clock::{Ticks, ticks};

/// Why the host ended a run.
#[derive(Debug)]
enum Stop {
    /// The guest broke the ABI.
    Abi(String),
    /// The guest gave up, with its own words.
    Abort(String),
    /// A limit was reached.
    Limit(String),
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Stop::Abi(message) => write!(f, "the module broke the ABI: {message}"),
            Stop::Abort(message) | Stop::Limit(message) => f.write_str(message),
        }
    }
}
impl std::error::Error for Stop {}

fn abi(message: impl Into<String>) -> Error {
    Error::new(Stop::Abi(message.into()))
}

fn limit(message: impl Into<String>) -> Error {
    Error::new(Stop::Limit(message.into()))
}

/// An error out of wasmtime as the failure of a run.
pub(crate) fn failure(error: &Error) -> Failure {
    if let Some(stop) = error.downcast_ref::<Stop>() {
        let message = stop.to_string();
        return match stop {
            Stop::Abi(_) | Stop::Abort(_) => Failure::Trap { message },
            Stop::Limit(_) => Failure::Limit { message },
        };
    }
    match error.downcast_ref::<Trap>() {
        Some(Trap::StackOverflow) => {
            Failure::Limit { message: "the reducer recursed until its stack was used up".into() }
        }
        Some(trap) => Failure::Trap { message: format!("the reducer trapped: {trap}") },
        None => Failure::Trap { message: format!("the reducer could not run: {error}") },
    }
}

/// A failure that breaks the ABI, found outside of a host call.
pub(crate) fn broken(message: impl Into<String>) -> Failure {
    Failure::Trap { message: Stop::Abi(message.into()).to_string() }
}

/// As [`broken`], for a message that does not decode.
pub(crate) fn undecodable(what: &str, error: &DecodeError) -> Failure {
    broken(format!("its {what} is damaged: {error}"))
}

/// `start..start + len` if that lies in a memory of `size` bytes.
pub(crate) fn range(size: usize, start: u32, len: u32) -> Option<Range<usize>> {
    let start = start as usize;
    let end = start.checked_add(len as usize)?;
    (end <= size).then_some(start..end)
}

/// The caller's database, borrowed for one run.
///
/// A wasmtime store owns what it holds for ever (`T: 'static`), and a run borrows its `Sql`. So the
/// lifetime is taken off here, and put on again by the scope of [`with_sql`].
struct Borrowed(NonNull<dyn Sql>);

/// Runs `body` with a state that reaches `sql`, and takes it away again before returning.
///
/// `body` gets the state by value and must drop it: the store that holds it must not outlive `body`,
/// which it cannot, since the state is not `Send` and `body` answers something without it.
#[allow(unsafe_code, reason = "a wasmtime store cannot hold a borrow; see Borrowed")]
pub(crate) fn with_sql<R: Send + 'static>(
    sql: &mut dyn Sql,
    state: State,
    body: impl FnOnce(State) -> R,
) -> R {
    // SAFETY: only the lifetime changes. The pointer is used by `State::sql` alone, and every `State`
    // that holds it is dropped before this function returns: `body` owns it, answers `R: 'static +
    // Send`, which a `State` (not `Send`, for the pointer) cannot be part of, and this module's callers
    // keep the store in a local variable. While `body` runs, `sql` stays exclusively borrowed by this
    // call, so the pointer is unique.
    let erased: NonNull<dyn Sql> = unsafe { std::mem::transmute(NonNull::from(sql)) };
    body(State { sql: Some(Borrowed(erased)), ..state })
}

/// What a store holds for one run.
pub(crate) struct State {
    sql: Option<Borrowed>,
    /// The guest's memory, once it is instantiated.
    pub(crate) memory: Option<Memory>,
    /// The answer of the last call, until the guest takes it.
    pending: Option<Vec<u8>>,
    pub(crate) growth: Growth,
    limits: HostLimits,
    ticks: Ticks,
    /// Tick at which the run began.
    started: u64,
    /// Ticks spent in host calls.
    outside: u64,
    calls: u64,
    log_lines: usize,
    log_bytes: usize,
}

impl State {
    /// For a run that begins now.
    pub(crate) fn new(limits: HostLimits, ticks: Ticks) -> State {
        let started = ticks.now();
        State {
            sql: None,
            memory: None,
            pending: None,
            growth: Growth { memory_bytes: limits.memory_bytes },
            limits,
            ticks,
            started,
            outside: 0,
            calls: 0,
            log_lines: 0,
            log_bytes: 0,
        }
    }

    #[allow(unsafe_code, reason = "a wasmtime store cannot hold a borrow; see Borrowed")]
    fn sql(&mut self) -> Option<&mut dyn Sql> {
        // SAFETY: the pointer is valid and unique for as long as this state lives; see `with_sql`.
        // `&mut self` makes this the only reference made from it.
        self.sql.as_mut().map(|borrowed| unsafe { borrowed.0.as_mut() })
    }

    /// Ticks that the guest itself has used.
    fn own(&self) -> u64 {
        (self.ticks.now() - self.started).saturating_sub(self.outside)
    }

    /// When wasmtime should ask again, or why the run ends.
    pub(crate) fn deadline(&self) -> Result<UpdateDeadline, Error> {
        let left = ticks(self.limits.time).saturating_sub(self.own());
        if left > 0 {
            return Ok(UpdateDeadline::Continue(left));
        }
        Err(limit(format!("the reducer computed for more than {:?}", self.limits.time)))
    }

    fn count_call(&mut self) -> Result<(), Error> {
        self.calls += 1;
        if self.calls <= self.limits.calls {
            return Ok(());
        }
        Err(limit(format!("the reducer made more than {} host calls", self.limits.calls)))
    }

    /// Runs `statement` on the database, on the guest's account of calls and time.
    fn ask<T>(
        &mut self,
        statement: impl FnOnce(&mut dyn Sql) -> Result<T, SqlError>,
    ) -> Result<Result<T, SqlError>, Error> {
        self.count_call()?;
        let entered = self.ticks.now();
        let answer = match self.sql() {
            Some(sql) => statement(sql),
            None => Err(SqlError { code: 0, message: "a module describes itself without a database".into() }),
        };
        let now = self.ticks.now();
        self.outside += now - entered;
        if now - self.started > ticks(self.limits.time_total) {
            let max = self.limits.time_total;
            return Err(limit(format!("the reducer and its statements took more than {max:?}")));
        }
        Ok(answer)
    }

    fn check_rows(&self, rows: &Rows) -> Result<(), Error> {
        let (found, max) = (rows.rows.len(), self.limits.query_rows);
        if found > max {
            return Err(limit(format!("a query answered {found} rows, and at most {max} are handed over")));
        }
        let (found, max) = (rows.byte_len(), self.limits.query_bytes);
        if found > max {
            return Err(limit(format!("a query answered {found} bytes, and at most {max} are handed over")));
        }
        if let Some(row) = rows.rows.iter().find(|row| row.len() != rows.columns.len()) {
            let (found, expected) = (row.len(), rows.columns.len());
            return Err(abi(format!("the database answered a row of {found} values for {expected} columns")));
        }
        Ok(())
    }

    /// Keeps an answer for the guest to take; answers its length.
    fn leave(&mut self, answer: Vec<u8>) -> Result<u32, Error> {
        let len = u32::try_from(answer.len()).map_err(|_| limit("an answer of 4 GiB or more"))?;
        self.pending = Some(answer);
        Ok(len)
    }

    fn log(&mut self, line: &str) -> Result<(), Error> {
        self.count_call()?;
        let (lines, bytes) = (self.limits.log_lines, self.limits.log_bytes);
        let had = (self.log_lines, self.log_bytes);
        self.log_lines = self.log_lines.saturating_add(1);
        self.log_bytes = self.log_bytes.saturating_add(line.len());
        let fitted = had.0 <= lines && had.1 <= bytes;
        let fits = self.log_lines <= lines && self.log_bytes <= bytes;
        if let Some(sql) = self.sql() {
            if fits {
                sql.log(line);
            } else if fitted {
                sql.log(&format!(
                    "(a run logs at most {lines} lines and {bytes} bytes; the rest is dropped)"
                ));
            }
        }
        if !fits {
            self.log_lines = lines.saturating_add(1);
            self.log_bytes = bytes.saturating_add(1);
        }
        Ok(())
    }
}

/// Bounds what a guest may grow. Growing further ends the run, rather than answering -1, so that a guest
/// cannot act upon a limit that another host may set elsewhere.
pub(crate) struct Growth {
    memory_bytes: usize,
}

impl ResourceLimiter for Growth {
    fn memory_growing(&mut self, _: usize, desired: usize, _: Option<usize>) -> Result<bool, Error> {
        let max = self.memory_bytes;
        if desired <= max {
            return Ok(true);
        }
        Err(limit(format!("the reducer wanted {desired} bytes of memory, and at most {max} are allowed")))
    }

    fn table_growing(&mut self, _: usize, desired: usize, _: Option<usize>) -> Result<bool, Error> {
        if desired <= TABLE_ELEMENTS_MAX {
            return Ok(true);
        }
        Err(limit(format!(
            "the reducer wanted a table of {desired} elements, at most {TABLE_ELEMENTS_MAX} are allowed"
        )))
    }
}

/// Elements of a guest's table: functions it calls by address. A large Rust program has thousands.
pub(crate) const TABLE_ELEMENTS_MAX: usize = 20_000;

/// The five imports.
pub(crate) fn linker(engine: &Engine) -> Result<Linker<State>, Error> {
    let mut linker = Linker::new(engine);
    linker.func_wrap("graft", "execute", execute)?;
    linker.func_wrap("graft", "query", query)?;
    linker.func_wrap("graft", "take", take)?;
    linker.func_wrap("graft", "log", log)?;
    linker.func_wrap("graft", "abort", abort)?;
    Ok(linker)
}

/// The guest's memory beside the state.
fn parts<'a>(caller: &'a mut Caller<'_, State>) -> Result<(&'a mut [u8], &'a mut State), Error> {
    let memory = caller.data().memory.ok_or_else(|| abi("a host call from the start function"))?;
    Ok(memory.data_and_store_mut(caller))
}

fn slice<'a>(memory: &'a [u8], what: &str, start: u32, len: u32) -> Result<&'a [u8], Error> {
    let range = range(memory.len(), start, len);
    range.map(|range| &memory[range]).ok_or_else(|| {
        abi(format!("{what} at {start} of {len} bytes is outside of its memory of {}", memory.len()))
    })
}

fn text<'a>(memory: &'a [u8], what: &str, start: u32, len: u32) -> Result<&'a str, Error> {
    std::str::from_utf8(slice(memory, what, start, len)?).map_err(|_| abi(format!("{what} is not UTF-8")))
}

/// Checks a statement's size and decodes its parameters.
fn statement<'a>(
    memory: &'a [u8],
    limits: &HostLimits,
    sql: (u32, u32),
    params: (u32, u32),
) -> Result<(&'a str, Vec<reducers_abi::Value>), Error> {
    let (found, max) = (u64::from(sql.1) + u64::from(params.1), limits.statement_bytes);
    if found > max as u64 {
        return Err(limit(format!(
            "a statement and its parameters have {found} bytes, at most {max} are allowed"
        )));
    }
    let sql = text(memory, "a statement", sql.0, sql.1)?;
    let params = slice(memory, "a parameter list", params.0, params.1)?;
    let params = codec::decode_values(params).map_err(|error| abi(format!("a parameter list: {error}")))?;
    Ok((sql, params))
}

fn execute(
    mut caller: Caller<'_, State>,
    sql: u32,
    sql_len: u32,
    params: u32,
    params_len: u32,
) -> Result<u32, Error> {
    let (memory, state) = parts(&mut caller)?;
    let (sql, params) = statement(memory, &state.limits, (sql, sql_len), (params, params_len))?;
    let answer = state.ask(|db| db.execute(sql, &params))?;
    state.leave(codec::encode_changes(&answer))
}

fn query(
    mut caller: Caller<'_, State>,
    sql: u32,
    sql_len: u32,
    params: u32,
    params_len: u32,
) -> Result<u32, Error> {
    let (memory, state) = parts(&mut caller)?;
    let (sql, params) = statement(memory, &state.limits, (sql, sql_len), (params, params_len))?;
    let answer = state.ask(|db| db.query(sql, &params))?;
    if let Ok(rows) = &answer {
        state.check_rows(rows)?;
    }
    state.leave(codec::encode_rows(&answer))
}

fn take(mut caller: Caller<'_, State>, out: u32, len: u32) -> Result<(), Error> {
    let (memory, state) = parts(&mut caller)?;
    let answer = state.pending.take().ok_or_else(|| abi("take without an answer that waits"))?;
    if answer.len() != len as usize {
        return Err(abi(format!("take of {len} bytes where the answer has {}", answer.len())));
    }
    let size = memory.len();
    let range = range(size, out, len)
        .ok_or_else(|| abi(format!("take to {out} of {len} bytes is outside of its memory of {size}")))?;
    memory[range].copy_from_slice(&answer);
    Ok(())
}

fn log(mut caller: Caller<'_, State>, line: u32, len: u32) -> Result<(), Error> {
    let (memory, state) = parts(&mut caller)?;
    let line = text(memory, "a log line", line, len)?;
    state.log(line)
}

fn abort(mut caller: Caller<'_, State>, message: u32, len: u32) -> Result<(), Error> {
    let (memory, state) = parts(&mut caller)?;
    let max = u32::try_from(state.limits.message_bytes).unwrap_or(u32::MAX);
    let bytes = slice(memory, "an abort's message", message, len.min(max))?;
    Err(Error::new(Stop::Abort(String::from_utf8_lossy(bytes).into_owned())))
}
