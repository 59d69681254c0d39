//! SQL's own clock and random numbers, from the mutation.
//!
//! `random()` and `randomblob()` are replaced. Of the date functions, `'now'` (and a missing time
//! value, which means the same) is replaced by the mutation's clock before SQLite's own functions are
//! asked, on a second connection. `localtime` and `utc` are refused: they depend on the machine.
//!
//! A server draws other random numbers from the same seed: what is promised is that one mutation always
//! draws the same.

use std::sync::Arc;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rusqlite::functions::{Context, FunctionFlags};
use rusqlite::types::Value;
use rusqlite::{Connection, Error, Result};

use crate::random::Random;
use crate::time::iso8601;

/// The running mutation's clock and generator.
#[derive(Debug, Clone)]
pub(super) struct Moment(Arc<Mutex<(i64, Random)>>);

impl Default for Moment {
    fn default() -> Moment {
        Moment(Arc::new(Mutex::new((0, Random::new(0)))))
    }
}

impl Moment {
    /// A mutation begins.
    pub(super) fn set(&self, now_ms: i64, seed: u64) {
        // Not the same numbers as the reducer's own.
        *self.lock() = (now_ms, Random::new(!seed));
    }

    /// A panic while it was held leaves nothing half done: it is two plain values.
    fn lock(&self) -> MutexGuard<'_, (i64, Random)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> String {
        iso8601(self.lock().0)
    }
}

/// The longest `randomblob`, as SQLite bounds blobs by default.
const BLOB_BYTES_MAX: i64 = 1_000_000_000;

/// Replaces the functions of `conn`.
pub(super) fn register(conn: &Connection, moment: &Moment) -> Result<()> {
    let utf8 = FunctionFlags::SQLITE_UTF8;
    let m = moment.clone();
    conn.create_scalar_function(c"random", 0, utf8, move |_| Ok(m.lock().1.next_u64() as i64))?;
    let m = moment.clone();
    conn.create_scalar_function(c"randomblob", 1, utf8, move |call| {
        let len = call.get::<Option<i64>>(0)?.unwrap_or(0).max(1);
        if len > BLOB_BYTES_MAX {
            return Err(Error::UserFunctionError("string or blob too big".into()));
        }
        let mut random = m.lock();
        let mut bytes = Vec::with_capacity(len as usize);
        while bytes.len() < len as usize {
            let left = len as usize - bytes.len();
            bytes.extend(random.1.next_u64().to_le_bytes().into_iter().take(left));
        }
        Ok(bytes)
    })?;

    // SQLite's own functions, on a connection where they are not replaced.
    let own = Arc::new(Mutex::new(Connection::open_in_memory()?));
    let flags = utf8 | FunctionFlags::SQLITE_DETERMINISTIC;
    for (name, times) in [
        (c"date", 0..1),
        (c"time", 0..1),
        (c"datetime", 0..1),
        (c"julianday", 0..1),
        (c"unixepoch", 0..1),
        (c"strftime", 1..2),
        (c"timediff", 0..2),
    ] {
        let (m, own) = (moment.clone(), own.clone());
        let text = name.to_str().map_err(|error| Error::UserFunctionError(error.into()))?;
        conn.create_scalar_function(name, -1, flags, move |call| {
            let mut args = arguments(call)?;
            if args.len() == times.start {
                args.push(Value::Text("now".into()));
            }
            for (index, arg) in args.iter_mut().enumerate() {
                let Value::Text(word) = arg else { continue };
                let word = word.trim().to_ascii_lowercase();
                if times.contains(&index) && word == "now" {
                    *arg = Value::Text(m.now());
                }
                if index >= times.end && (word == "localtime" || word == "utc") {
                    return Err(Error::UserFunctionError(
                        format!("{text}: '{word}' depends on the machine").into(),
                    ));
                }
            }
            let marks = vec!["?"; args.len()].join(",");
            let own = own.lock().unwrap_or_else(PoisonError::into_inner);
            own.query_row(&format!("SELECT {text}({marks})"), rusqlite::params_from_iter(args), |row| {
                row.get::<_, Value>(0)
            })
        })?;
    }
    for (name, from, to) in [(c"current_date", 0, 10), (c"current_time", 11, 19)] {
        let m = moment.clone();
        conn.create_scalar_function(name, 0, flags, move |_| Ok(m.now()[from..to].to_owned()))?;
    }
    let m = moment.clone();
    conn.create_scalar_function(c"current_timestamp", 0, flags, move |_| {
        let now = m.now();
        Ok(format!("{} {}", &now[..10], &now[11..19]))
    })
}

fn arguments(call: &Context<'_>) -> Result<Vec<Value>> {
    (0..call.len()).map(|index| call.get::<Value>(index)).collect()
}
