//! SQLite's own logic tests through the VFS.
//!
//! Every file of the collection runs on a fresh volume. The shorter ones run twice more, and *move* every
//! so many records: what was committed is pushed, and the rest runs elsewhere. In the second run that is
//! another replica, cloned lazily, so that each page it reads is fetched. In the third the first move goes
//! to a fork, and a later one to a fork of that fork; what was forked from is emptied at once, by its
//! owner, and between the forks two replicas pull from each other. Nothing of the collection is part of
//! this project; where it is absent the test says so.
//!
//! The crate `sqllogictest` compares results; what it does not know of the original dialect is done
//! here: values are rendered by the types that a query expects (`I` as an integer, `R` with three
//! decimals, `T` as text), a `halt` may have conditions, results are listed one value a line and are a
//! hash wherever the script says so, whatever its `hash-threshold`.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};

use futures::executor::block_on;
use graft::catalog;
use graft::fetch::RemoteFetch;
use graft::format::meta::Meta;
use graft::remote::SharedRemote;
use graft::remote::memory::MemoryRemote;
use graft::time::At;
use graft::volume::{Options, Volume, push};
use graft::{CommitId, PageSize, VolumeId, VolumeName, fork, verify};
use parking_lot::Mutex;
use rusqlite::Connection;
use rusqlite::types::ValueRef;
use sqllogictest::{Control, DBOutput, DefaultColumnType, QueryExpect, Record, ResultMode, Runner};
use sqlsync_layer::payload::Payload;
use sqlsync_layer::vfs::Database;

const VOLUME: VolumeId = VolumeId([7; 16]);

/// The moves that go to a fork instead of to another replica of the same volume.
const FORKING: [usize; 2] = [1, 4];

/// Where a run goes on after every so many records.
#[derive(Debug, Clone, Copy)]
enum Moves {
    Never,
    /// At a new replica, which holds no page.
    ToClones(usize),
    /// At a fork, a fork of that, and between at either of two replicas.
    ToForks(usize),
}

/// One connection to one replica.
struct Seat {
    database: Arc<Database>,
    connection: Connection,
}

/// A store, and the replica that is in use.
struct Replica {
    remote: SharedRemote,
    seat: Seat,
    /// Another replica of the same volume, which lags behind.
    other: Option<Seat>,
    commits: u128,
    moves: usize,
    forks: Vec<VolumeId>,
}

impl Replica {
    fn new(page_size: u32) -> Replica {
        let remote: SharedRemote = Arc::new(MemoryRemote::new());
        let meta = Meta { page_size: PageSize::new(page_size).unwrap(), parent: None };
        let name: VolumeName = "slt".parse().unwrap();
        block_on(catalog::create(&*remote, &name, VOLUME, meta)).unwrap();
        let seat = open(&remote, VOLUME);
        Replica { remote, seat, other: None, commits: 0, moves: 0, forks: Vec::new() }
    }

    /// Whether nothing would stay behind with the connection: no transaction, no temporary table or view.
    fn may_move(&self) -> bool {
        let temporary = "select count(*) from sqlite_temp_master";
        let temporary: i64 = self.seat.connection.query_row(temporary, [], |row| row.get(0)).unwrap();
        self.seat.connection.is_autocommit() && temporary == 0
    }

    /// Pushes what is committed.
    fn push(&mut self) {
        let payload = |locals: &[_]| Payload::of_locals(locals);
        let id = || {
            self.commits += 1;
            CommitId(self.commits.to_le_bytes())
        };
        block_on(push(&*self.remote, self.seat.database.volume(), payload, id, 1)).unwrap();
    }

    /// Pushes, and goes on with a replica that holds no page yet.
    fn move_to_a_clone(&mut self) {
        self.push();
        self.seat = open(&self.remote, self.seat.database.volume().id());
    }

    /// Pushes, and goes on at a fork or at the other replica, after it has pulled.
    fn move_to_a_fork(&mut self) {
        self.push();
        self.moves += 1;
        let here = self.seat.database.volume().id();
        if FORKING.contains(&self.moves) {
            let child = VolumeId([VOLUME.0[0] + self.moves as u8; 16]);
            let name: VolumeName = format!("fork-{}", self.moves).parse().unwrap();
            block_on(fork::create(&*self.remote, here, At::Newest, child, &name)).unwrap();
            // The parent goes its own way: every page of the schema and of the tables is another one.
            let emptied = "pragma writable_schema = 1; delete from sqlite_schema; pragma writable_schema = 0;
                           vacuum; create table emptied(body); insert into emptied values(randomblob(100000));";
            self.seat.connection.execute_batch(emptied).unwrap();
            self.push();
            self.seat = open(&self.remote, child);
            self.other = None;
            self.forks.push(child);
            return;
        }
        let next = match self.other.take() {
            Some(next) => {
                let volume = next.database.volume();
                let pulled = block_on(volume.pull(&*self.remote)).unwrap();
                volume.absorb(pulled).unwrap();
                // As with any two connections of SQLite's: `CREATE TRIGGER` looks for the name in the schema
                // as this connection last saw it.
                next.connection.query_row("select count(*) from sqlite_schema", [], |_| Ok(())).unwrap();
                next
            }
            None => open(&self.remote, here),
        };
        self.other = Some(std::mem::replace(&mut self.seat, next));
    }

    /// What a parent must still be after its forks were written to, and what the forks are made of.
    fn check_forks(&mut self) -> Result<(), String> {
        self.push();
        let mut parents = vec![VOLUME];
        parents.extend(&self.forks);
        let newest = parents.pop().unwrap_or(VOLUME);
        for parent in parents {
            let tables = "select group_concat(name), (select count(*) from emptied) from sqlite_schema";
            let seat = open(&self.remote, parent);
            let found: (String, i64) = seat
                .connection
                .query_row(tables, [], |row| Ok((row.get(0)?, row.get(1)?)))
                .map_err(|e| e.to_string())?;
            if found != ("emptied".into(), 1) {
                return Err(format!("the parent {parent} holds {found:?}"));
            }
        }
        let report = block_on(verify::verify(&*self.remote, newest, &|_| {})).map_err(|e| e.to_string())?;
        if report.is_sound() { Ok(()) } else { Err(format!("{:?}", report.findings)) }
    }
}

fn open(remote: &SharedRemote, id: VolumeId) -> Seat {
    // Nothing survives a replica here, so nothing need go to a disk.
    let options = Options { cache_bytes: 8 << 20, ..Options::default() };
    let volume = block_on(Volume::open(&**remote, id, options)).unwrap().volume;
    // The runner drives futures of its own, inside of which pages are fetched: by tokio, then.
    static RUNTIME: LazyLock<tokio::runtime::Runtime> =
        LazyLock::new(|| tokio::runtime::Runtime::new().unwrap());
    let fetch = {
        let _entered = RUNTIME.enter();
        RemoteFetch::new(remote.clone())
    };
    let database = Database::new(Arc::new(volume), Arc::new(fetch));
    let (connection, _) = database.connect().unwrap();
    Seat { database, connection }
}

/// What the runner talks to. The replica and the expected types are the test's to change.
struct Sqlite {
    replica: Arc<Mutex<Replica>>,
    types: Arc<Mutex<Vec<DefaultColumnType>>>,
    /// Whether the query expects no rows.
    empty: Arc<Mutex<bool>>,
}

impl sqllogictest::DB for Sqlite {
    type Error = rusqlite::Error;
    type ColumnType = DefaultColumnType;

    fn run(&mut self, sql: &str) -> Result<DBOutput<DefaultColumnType>, rusqlite::Error> {
        let types = self.types.lock().clone();
        let connection = &self.replica.lock().seat.connection;
        if types.is_empty() {
            connection.execute_batch(sql)?;
            return Ok(DBOutput::StatementComplete(0));
        }
        let mut statement = connection.prepare(sql)?;
        let columns = statement.column_count();
        let mut rows = statement.query([])?;
        let mut out = Vec::new();
        loop {
            let row = match rows.next() {
                Ok(Some(row)) => row,
                Ok(None) => break,
                // The collection expects nothing of a sum that overflows.
                Err(error) if error.to_string() == "integer overflow" && *self.empty.lock() => break,
                Err(error) => return Err(error),
            };
            let mut line = Vec::with_capacity(columns);
            for column in 0..columns {
                let wanted = types.get(column).unwrap_or(&DefaultColumnType::Any);
                line.push(render(connection, row.get_ref(column)?, wanted)?);
            }
            out.push(line);
        }
        Ok(DBOutput::Rows { types, rows: out })
    }

    fn engine_name(&self) -> &str {
        "sqlite"
    }
}

/// As SQLite's own runner prints a value: `sqlite3_column_int`, `_double` or `_text` by the type
/// expected.
fn render(
    connection: &Connection,
    value: ValueRef<'_>,
    wanted: &DefaultColumnType,
) -> rusqlite::Result<String> {
    // SQLite's printf stops at 16 significant digits, ours does not.
    let decimals = |value: f64| match value.abs() < 1e12 {
        true => Ok(format!("{value:.3}")),
        false => connection.query_row("select printf('%.3f', ?1)", [value], |row| row.get(0)),
    };
    let text = |bytes: &[u8]| {
        let printable = |b: &u8| if (b' '..=b'~').contains(b) { char::from(*b) } else { '@' };
        if bytes.is_empty() { "(empty)".into() } else { bytes.iter().map(printable).collect::<String>() }
    };
    let number = |bytes: &[u8]| {
        let text = String::from_utf8_lossy(bytes);
        let end = text.find(|c: char| !c.is_ascii_digit() && !"+-.eE".contains(c)).unwrap_or(text.len());
        (0..=end).rev().find_map(|end| text.get(..end)?.parse::<f64>().ok()).unwrap_or(0.0)
    };
    Ok(match (value, wanted) {
        (ValueRef::Null, _) => "NULL".into(),
        (ValueRef::Integer(value), DefaultColumnType::Integer) => (value as i32).to_string(),
        (ValueRef::Real(value), DefaultColumnType::Integer) => (value as i64 as i32).to_string(),
        (ValueRef::Text(bytes) | ValueRef::Blob(bytes), DefaultColumnType::Integer) => {
            (number(bytes) as i64 as i32).to_string()
        }
        (ValueRef::Integer(value), DefaultColumnType::FloatingPoint) => decimals(value as f64)?,
        (ValueRef::Real(value), DefaultColumnType::FloatingPoint) => decimals(value)?,
        (ValueRef::Text(bytes) | ValueRef::Blob(bytes), DefaultColumnType::FloatingPoint) => {
            decimals(number(bytes))?
        }
        (ValueRef::Integer(value), DefaultColumnType::Text | DefaultColumnType::Any) => value.to_string(),
        (ValueRef::Real(value), DefaultColumnType::Text | DefaultColumnType::Any) => format!("{value:?}"),
        (ValueRef::Text(bytes) | ValueRef::Blob(bytes), DefaultColumnType::Text | DefaultColumnType::Any) => {
            text(bytes)
        }
    })
}

/// The crate's parser knows neither carriage returns nor a `halt` with conditions.
fn plain(script: &str) -> String {
    let mut out = String::with_capacity(script.len());
    let mut conditions: Vec<&str> = Vec::new();
    for line in script.lines() {
        let line = line.trim_end();
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["skipif" | "onlyif", ..] => {
                conditions.push(line);
                continue;
            }
            ["halt"] => {
                let met = conditions.drain(..).all(|condition| {
                    let mut words = condition.split_whitespace();
                    let (kind, engine) = (words.next(), words.next());
                    (kind == Some("onlyif")) == (engine == Some("sqlite"))
                });
                if met {
                    break;
                }
                continue;
            }
            _ => {}
        }
        for condition in conditions.drain(..) {
            let words: Vec<&str> = condition.split_whitespace().take(2).collect();
            let _ = writeln!(out, "{}", words.join(" "));
        }
        let _ = writeln!(out, "{line}");
    }
    out
}

/// Runs a script; gives how many records were compared.
fn run(script: &str, page_size: u32, moves: Moves) -> Result<usize, String> {
    let replica = Arc::new(Mutex::new(Replica::new(page_size)));
    let types = Arc::new(Mutex::new(Vec::new()));
    let empty = Arc::new(Mutex::new(false));
    let mut runner = Runner::new(|| {
        let database = Sqlite { replica: replica.clone(), types: types.clone(), empty: empty.clone() };
        async move { Ok(database) }
    });
    let records = sqllogictest::parse::<DefaultColumnType>(&plain(script)).map_err(|e| e.to_string())?;
    let valuewise = Record::Control(Control::ResultMode(ResultMode::ValueWise));
    runner.run(valuewise).map_err(|e| e.to_string())?;
    let mut compared = 0;
    for record in records {
        *types.lock() = match &record {
            Record::Query { expected: QueryExpect::Results { types, .. }, .. } => types.clone(),
            _ => Vec::new(),
        };
        let counts = matches!(record, Record::Statement { .. } | Record::Query { .. });
        if let Record::Query { loc, expected: QueryExpect::Results { results, .. }, .. } = &record {
            let hashed = results.iter().any(|line| line.contains(" values hashing to "));
            let threshold = if hashed { 1 } else { 0 };
            runner.run(Record::HashThreshold { loc: loc.clone(), threshold }).map_err(|e| e.to_string())?;
            *empty.lock() = results.is_empty();
        }
        if matches!(record, Record::HashThreshold { .. }) {
            continue;
        }
        runner.run(record).map_err(|e| e.to_string())?;
        if counts {
            compared += 1;
            let mut replica = replica.lock();
            match moves {
                Moves::ToClones(every) if compared % every == 0 && replica.may_move() => {
                    replica.move_to_a_clone();
                }
                Moves::ToForks(every) if compared % every == 0 && replica.may_move() => {
                    replica.move_to_a_fork();
                }
                Moves::Never | Moves::ToClones(_) | Moves::ToForks(_) => {}
            }
        }
    }
    let mut replica = replica.lock();
    if let Moves::ToForks(_) = moves {
        if replica.forks.len() < FORKING.len() {
            return Err(format!("only {} moves", replica.moves));
        }
        replica.check_forks()?;
    }
    let check: String = replica
        .seat
        .connection
        .query_row("pragma integrity_check", [], |row| row.get(0))
        .map_err(|e| e.to_string())?;
    if check == "ok" { Ok(compared) } else { Err(format!("integrity_check: {check}")) }
}

fn scripts() -> Option<Vec<PathBuf>> {
    fn collect(dir: &Path, out: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                collect(&path, out);
            } else if path.extension().is_some_and(|e| e == "test") {
                out.push(path);
            }
        }
    }
    let mut out = Vec::new();
    collect(&tests::places::sqllogictest_dir()?, &mut out);
    // The longest first, so that no thread is left alone with it at the end.
    out.sort_by_key(|path| std::cmp::Reverse(std::fs::metadata(path).unwrap().len()));
    assert!(!out.is_empty(), "the folder of sqllogictest files holds none");
    Some(out)
}

/// Runs the given scripts on as many threads as there are processors, and fails naming all that fail.
fn run_all(jobs: &[(PathBuf, u32, Moves)]) {
    let next = AtomicUsize::new(0);
    let failures = Mutex::new(Vec::new());
    let compared = AtomicUsize::new(0);
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some((path, page_size, moves)) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let script = std::fs::read_to_string(path).unwrap();
                    match run(&script, *page_size, *moves) {
                        Ok(records) => {
                            assert!(records > 0, "{}: nothing was compared", path.display());
                            compared.fetch_add(records, Ordering::Relaxed);
                        }
                        Err(error) => failures
                            .lock()
                            .push(format!("{} (page size {page_size}, {moves:?}): {error}", path.display())),
                    }
                }
            });
        }
    });
    let failures = failures.into_inner();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    println!("{} scripts, {} records compared", jobs.len(), compared.into_inner());
}

#[test]
fn every_script_passes_on_a_fresh_volume() {
    let Some(scripts) = scripts() else { return };
    let jobs: Vec<_> = scripts.into_iter().map(|path| (path, 4096, Moves::Never)).collect();
    run_all(&jobs);
}

/// Every script, on one page size or another, each with a few dozen moves, but none after fewer than `least`
/// records.
fn moving_scripts(least: usize, moves: fn(usize) -> Moves) -> Option<Vec<(PathBuf, u32, Moves)>> {
    let bytes = |path: &PathBuf| std::fs::metadata(path).unwrap().len() as usize;
    let jobs: Vec<_> = scripts()?
        .into_iter()
        .zip([512, 1024, 4096, 65536].into_iter().cycle())
        .map(|(path, page_size)| {
            let records = bytes(&path) / 100;
            (path, page_size, moves((records / 30).max(least)))
        })
        .collect();
    Some(jobs)
}

#[test]
fn scripts_pass_when_they_move_between_lazily_cloned_replicas() {
    let Some(jobs) = moving_scripts(3, Moves::ToClones) else { return };
    run_all(&jobs);
}

#[test]
fn scripts_pass_when_they_move_to_a_fork_and_to_a_fork_of_it() {
    let Some(jobs) = moving_scripts(1, Moves::ToForks) else { return };
    run_all(&jobs);
}

/// A comparison that compares nothing would pass everything above.
#[test]
fn a_wrong_expectation_fails() {
    let table = "statement ok\ncreate table t(a, b)\n\nstatement ok\ninsert into t values(1, 2), (3, 4)\n\n";
    let right = [
        "query II rowsort\nselect a, b from t\n----\n1\n2\n3\n4\n",
        "hash-threshold 3\n\nquery II rowsort\nselect a, b from t\n----\n4 values hashing to 302c28003d487124d97c242de94da856\n",
        "skipif sqlite\nhalt\n\nquery R nosort\nselect 0.5\n----\n0.500\n",
        "onlyif mssql\nquery I nosort\nselect nonsense\n----\n7\n\nquery T nosort\nselect ''\n----\n(empty)\n",
        "statement error\nselect nonsense\n",
    ];
    for script in right {
        run(&format!("{table}{script}"), 4096, Moves::Never).unwrap();
    }
    let wrong = [
        "query II rowsort\nselect a, b from t\n----\n1\n2\n3\n5\n",
        "query II rowsort\nselect a, b from t\n----\n1\n2\n",
        "hash-threshold 3\n\nquery II rowsort\nselect a, b from t\n----\n4 values hashing to 00000000000000000000000000000000\n",
        "onlyif sqlite\nquery I nosort\nselect 1\n----\n2\n",
        "onlyif mssql\nhalt\n\nquery I nosort\nselect 1\n----\n2\n",
        "query I nosort\nselect nonsense\n----\n1\n",
        "statement ok\nselect nonsense\n",
        "statement error\nselect 1\n",
    ];
    for script in wrong {
        let outcome = run(&format!("{table}{script}"), 4096, Moves::Never);
        assert!(outcome.is_err(), "passes: {script}");
    }
}
