//! What every system is made to do: the same rows, the same SQL, in a process of its own.
//!
//! The program of a system reads orders from its standard input, one on a line, and answers each with one
//! line of JSON ([`serve`]). Only what the order names is timed. The rows are a function of their ids, so
//! every answer is checked. `peers/turbolite` compiles this very file against the SQLite of its own crate.
//!
//! | order | does |
//! | --- | --- |
//! | `import FILE` | makes a database of the SQLite file, and publishes it |
//! | `open` | everything that the system does before a first query: load, connect, pull |
//! | `point SEED` | one row by its id |
//! | `random COUNT SEED` | rows by random ids, one after another |
//! | `scan` | every row |
//! | `update COUNT SEED` | one-row updates, each published before the next |
//! | `insert COUNT` | one-row transactions into a table of their own, none published |
//! | `publish` | makes all that is committed durable where the system says that it is |
//! | `memory` | the most memory that the process ever had, in bytes |

use std::io::{BufRead as _, Write as _};
use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, bail};
use rusqlite::Connection;

/// Bytes of a row's text.
pub const BODY_BYTES: usize = 100;
/// The tables. The text of an updated row is [`updated`].
pub const SCHEMA: &str = "create table t(id integer primary key, n integer, body text);
    create table log(id integer primary key, body text);";

const BY_ID: &str = "select body from t where id = ?1";
const SCAN: &str = "select count(*), sum(length(body)), sum(n) from t";

/// A scrambled `value`: the same on every machine.
pub fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The indexed number of row `id`.
pub fn number(id: u64) -> i64 {
    (mix(id) >> 33) as i64
}

/// The text of row `id`: letters that compress to about three quarters.
pub fn body(id: u64) -> String {
    const LETTERS: &[u8; 64] = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_";
    let letter = |at: u64| char::from(LETTERS[(mix(id.wrapping_mul(128) + at) & 63) as usize]);
    (0..BODY_BYTES as u64).map(letter).collect()
}

/// The text of row `id` after its update.
pub fn updated(id: u64) -> String {
    body(!id)
}

/// Makes a SQLite file of `rows` rows with pages of `page_bytes`.
pub fn make_file(path: &Path, rows: u64, page_bytes: u32) -> anyhow::Result<()> {
    let mut db = Connection::open(path)?;
    db.execute_batch(&format!("pragma page_size = {page_bytes}; pragma journal_mode = off; {SCHEMA}"))?;
    let all = db.transaction()?;
    {
        let mut insert = all.prepare("insert into t values(?1, ?2, ?3)")?;
        for id in 1..=rows {
            insert.execute((id as i64, number(id), body(id)))?;
        }
    }
    all.execute_batch("create index t_n on t(n)")?;
    Ok(all.commit()?)
}

/// A system that keeps SQLite databases.
pub trait System {
    /// Makes a database of `file` and publishes it; answers what [`System::open`] elsewhere must know.
    fn import(&mut self, file: &Path) -> anyhow::Result<String>;
    /// Everything before a first query.
    fn open(&mut self) -> anyhow::Result<()>;
    /// The open connection.
    fn connection(&mut self) -> anyhow::Result<&mut Connection>;
    /// Makes what is committed durable, wherever this system says that it is.
    fn publish(&mut self) -> anyhow::Result<()>;
    /// Told before a query runs.
    fn foresee(&mut self, _sql: &str) -> anyhow::Result<()> {
        Ok(())
    }
}

/// Answers orders until the input ends.
pub fn serve(system: &mut dyn System, rows: u64) -> anyhow::Result<()> {
    let stdin = std::io::stdin();
    let mut stdout = std::io::stdout();
    for line in stdin.lock().lines() {
        let line = line?;
        let words: Vec<&str> = line.split(' ').collect();
        let answer = match order(system, rows, &words) {
            Ok(answer) => answer,
            Err(error) => format!("{{\"error\":{}}}", quoted(&format!("{line}: {error:#}"))),
        };
        writeln!(stdout, "{answer}")?;
        stdout.flush()?;
    }
    Ok(())
}

fn order(system: &mut dyn System, rows: u64, words: &[&str]) -> anyhow::Result<String> {
    let value = |at: usize| -> anyhow::Result<u64> {
        Ok(words.get(at).context("the order lacks a number")?.parse()?)
    };
    let began = Instant::now();
    let mut note = String::new();
    let mut number = 0;
    match words {
        ["import", file] => note = system.import(Path::new(file))?,
        ["open"] => system.open()?,
        ["point", _] => random(system, rows, 1, value(1)?)?,
        ["random", _, _] => random(system, rows, value(1)?, value(2)?)?,
        ["scan"] => scan(system, rows)?,
        ["update", _, _] => update(system, rows, value(1)?, value(2)?)?,
        ["insert", _] => insert(system, value(1)?)?,
        ["publish"] => system.publish()?,
        ["memory"] => number = memory_peak()?,
        _ => bail!("there is no such order"),
    }
    let ms = began.elapsed().as_secs_f64() * 1e3;
    Ok(format!("{{\"ms\":{ms},\"number\":{number},\"note\":{}}}", quoted(&note)))
}

/// A JSON string.
fn quoted(text: &str) -> String {
    let mut out = String::from('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c < ' ' => out.push_str(&format!("\\u{:04x}", c as u32)),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

fn chosen(rows: u64, seed: u64, at: u64) -> u64 {
    mix(seed.wrapping_mul(1 << 32) + at) % rows + 1
}

fn random(system: &mut dyn System, rows: u64, count: u64, seed: u64) -> anyhow::Result<()> {
    system.foresee(BY_ID)?;
    let db = system.connection()?;
    let mut select = db.prepare(BY_ID)?;
    for at in 0..count {
        let id = chosen(rows, seed, at);
        let found: String = select.query_row([id as i64], |row| row.get(0))?;
        if found != body(id) && found != updated(id) {
            bail!("row {id} reads {found:?}");
        }
    }
    Ok(())
}

fn scan(system: &mut dyn System, rows: u64) -> anyhow::Result<()> {
    system.foresee(SCAN)?;
    let db = system.connection()?;
    let all = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?));
    let found: (i64, i64, i64) = db.query_row(SCAN, [], all)?;
    let expected = (rows as i64, (rows as usize * BODY_BYTES) as i64, (1..=rows).map(number).sum());
    if found != expected {
        bail!("the rows add up to {found:?}, not to {expected:?}");
    }
    Ok(())
}

fn update(system: &mut dyn System, rows: u64, count: u64, seed: u64) -> anyhow::Result<()> {
    for at in 0..count {
        let id = chosen(rows, seed, at);
        let db = system.connection()?;
        let mut statement = db.prepare("update t set body = ?2 where id = ?1")?;
        if statement.execute((id as i64, updated(id)))? != 1 {
            bail!("row {id} is not there");
        }
        drop(statement);
        system.publish()?;
    }
    Ok(())
}

fn insert(system: &mut dyn System, count: u64) -> anyhow::Result<()> {
    let db = system.connection()?;
    let mut statement = db.prepare("insert into log(body) values(?1)")?;
    for id in 0..count {
        statement.execute([body(id)])?;
    }
    Ok(())
}

fn memory_peak() -> anyhow::Result<u64> {
    let text = std::fs::read_to_string("/proc/self/status")?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kib * 1024)
}
