//! SQLite on a volume beside SQLite on a file: the same statements, the same answers.
//!
//! Thousands of random statements (tables, indexes, triggers, large values, savepoints, failing
//! statements, VACUUM, spilled transactions) run on both. Results, errors, page counts and contents
//! must be equal. Between them the volume is pushed, pulled by a second replica, which then writes in
//! turn, and reopened from its store after a crash. Each run prints its seed where it fails.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::executor::block_on;
use graft::fetch::RemoteFetch;
use graft::format::meta::Meta;
use graft::remote::SharedRemote;
use graft::remote::memory::MemoryRemote;
use graft::store::{Durability, MemoryStore};
use graft::volume::{Options, Pushed, Volume, push};
use graft::{CommitId, PageSize, VolumeId, VolumeName, catalog};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rusqlite::Connection;
use rusqlite::types::Value;
use sqlsync_layer::payload::Payload;
use sqlsync_layer::vfs::Database;

const VOLUME: VolumeId = VolumeId([5; 16]);
const STATEMENTS: usize = 350;

/// What a statement answered: its rows, or its error.
type Answer = Result<Vec<Vec<Value>>, String>;

fn answer(connection: &Connection, sql: &str) -> Answer {
    let run = || {
        let mut statement = connection.prepare(sql)?;
        let columns = statement.column_count();
        let mut rows = statement.query([])?;
        let mut out = Vec::new();
        while let Some(row) = rows.next()? {
            out.push((0..columns).map(|at| row.get::<_, Value>(at)).collect::<Result<Vec<_>, _>>()?);
        }
        Ok(out)
    };
    run().map_err(|error: rusqlite::Error| format!("{:?}: {error}", error.sqlite_error()))
}

/// Schema and rows of everything, in an order that does not depend on where it lies.
fn dump(connection: &Connection) -> String {
    let mut out = String::new();
    let schema = answer(connection, "select type, name, sql from sqlite_schema order by name").unwrap();
    for row in &schema {
        let _ = writeln!(out, "{row:?}");
        if let [Value::Text(kind), Value::Text(name), _] = &row[..]
            && (kind == "table" || kind == "view")
        {
            let mut rows = match answer(connection, &format!("select * from \"{name}\"")) {
                Ok(rows) => rows.iter().map(|row| format!("{row:?}")).collect(),
                // A view on what is gone.
                Err(error) => vec![error],
            };
            rows.sort_unstable();
            for row in rows {
                let _ = writeln!(out, "{row}");
            }
        }
    }
    out
}

struct Replica {
    store: Arc<MemoryStore>,
    remote: SharedRemote,
    database: Arc<Database>,
    connection: Connection,
    reader: Connection,
}

impl Replica {
    fn open(remote: &SharedRemote, store: Arc<MemoryStore>, cache_bytes: usize) -> Replica {
        let locals = Some(Durability::Buffered);
        let options = Options { store: Some(store.clone()), locals, cache_bytes, ..Options::default() };
        let volume = block_on(Volume::open(&**remote, VOLUME, options)).unwrap().volume;
        let database = Database::new(Arc::new(volume), Arc::new(RemoteFetch::new(remote.clone())));
        let (connection, _) = database.connect().unwrap();
        let (reader, _) = database.connect_read_only().unwrap();
        Replica { store, remote: remote.clone(), database, connection, reader }
    }

    /// As after the process died: what is in memory is gone.
    fn crash(self, cache_bytes: usize) -> Replica {
        let Replica { store, remote, database, connection, reader } = self;
        drop((connection, reader, database));
        Replica::open(&remote, store, cache_bytes)
    }

    fn pull(&self) {
        let pulled = block_on(self.database.volume().pull(&*self.remote)).unwrap();
        self.database.volume().absorb(pulled).unwrap();
    }
}

struct World {
    rng: StdRng,
    dir: tempfile::TempDir,
    page_size: u32,
    plain: Connection,
    replicas: Vec<Option<Replica>>,
    writer: usize,
    commits: u128,
    /// What was committed when the transaction under way began.
    committed: Option<String>,
    cache_bytes: usize,
    errors: u64,
    story: Vec<String>,
}

impl World {
    fn new(seed: u64, page_size: u32) -> World {
        let mut rng = StdRng::seed_from_u64(seed);
        let dir = tempfile::tempdir().unwrap();
        let remote: SharedRemote = Arc::new(MemoryRemote::new());
        let meta = Meta { page_size: PageSize::new(page_size).unwrap(), parent: None };
        let name: VolumeName = "model".parse().unwrap();
        block_on(catalog::create(&*remote, &name, VOLUME, meta)).unwrap();
        let cache_bytes = if rng.random_bool(0.5) { 64 << 20 } else { 130 * page_size as usize };
        let replicas = (0..2).map(|_| Some(Replica::open(&remote, Arc::default(), cache_bytes))).collect();
        let plain = open_plain(&dir, page_size);
        World {
            rng,
            dir,
            page_size,
            plain,
            replicas,
            writer: 0,
            commits: 0,
            committed: None,
            cache_bytes,
            errors: 0,
            story: Vec::new(),
        }
    }

    fn replica(&self) -> &Replica {
        self.replicas[self.writer].as_ref().unwrap()
    }

    fn both(&mut self, sql: &str) -> Answer {
        self.story.push(sql.chars().take(200).collect());
        let expected = answer(&self.plain, sql);
        let found = answer(&self.replica().connection, sql);
        assert!(found == expected, "{sql}\n  volume {}\n  file   {}", short(&found), short(&expected));
        assert_eq!(self.replica().connection.is_autocommit(), self.plain.is_autocommit(), "{sql}");
        self.errors += u64::from(expected.is_err());
        expected
    }

    /// Everything that can be compared is equal.
    fn check(&mut self) {
        for sql in [
            "pragma integrity_check",
            "pragma page_count",
            "pragma freelist_count",
            "pragma auto_vacuum",
            "pragma user_version",
            "pragma foreign_key_check",
        ] {
            let answer = self.both(sql).unwrap();
            if sql == "pragma integrity_check" {
                assert_eq!(answer, [[Value::Text("ok".into())]]);
            }
            if sql == "pragma page_count" && self.plain.is_autocommit() {
                let pages = self.replica().database.volume().status().pages;
                assert_eq!(answer, [[Value::Integer(pages.into())]], "the volume's own page count");
            }
        }
        let (found, expected) = (dump(&self.replica().connection), dump(&self.plain));
        same(&found, &expected, "the writer");
        if self.plain.is_autocommit() {
            same(&dump(&self.replica().reader), &expected, "a reader");
        }
    }

    fn push(&mut self) {
        self.story.push("-- push".into());
        let volume = self.replica().database.volume().clone();
        let remote = self.replica().remote.clone();
        let mut commits = self.commits;
        let id = || {
            commits += 1;
            CommitId(commits.to_le_bytes())
        };
        let ahead = volume.status().ahead;
        let pushed = block_on(push(&*remote, &volume, Payload::of_locals, id, 1)).unwrap();
        assert_eq!(pushed == Pushed::Nothing, ahead == 0);
        self.commits = commits;
    }

    /// The other replica pulls, reads, and is the writer from now on.
    fn hand_over(&mut self) {
        self.push();
        let other = 1 - self.writer;
        self.story.push(format!("-- replica {other} pulls"));
        let replica = self.replicas[other].as_ref().unwrap();
        replica.pull();
        same(&dump(&replica.reader), &dump(&self.plain), "the other replica");
        if self.rng.random_bool(0.5) {
            self.writer = other;
            self.story.push(format!("-- replica {other} writes"));
            // What a connection was told ends with it.
            self.reopen_plain();
            let replica = self.replicas[other].as_mut().unwrap();
            replica.connection = replica.database.connect().unwrap().0;
        }
    }

    fn reopen_plain(&mut self) {
        // Closed first: a transaction under way holds its lock.
        self.plain = Connection::open_in_memory().unwrap();
        self.plain = open_plain(&self.dir, self.page_size);
    }

    fn crash(&mut self) {
        self.story.push("-- crash".into());
        let replica = self.replicas[self.writer].take().unwrap();
        let ahead = replica.database.volume().status().ahead;
        let replica = replica.crash(self.cache_bytes);
        assert_eq!(replica.database.volume().status().ahead, ahead);
        self.replicas[self.writer] = Some(replica);
        self.reopen_plain();
    }

    fn step(&mut self) {
        match self.rng.random_range(0..1000) {
            0..=14 => self.crash(),
            15..=44 if self.plain.is_autocommit() => self.push(),
            45..=64 if self.plain.is_autocommit() => self.hand_over(),
            65..=84 => self.check(),
            85..=104 if !self.plain.is_autocommit() => {
                // Beside a transaction others read what was committed before it.
                if let Some(committed) = &self.committed {
                    same(&dump(&self.replica().reader), committed, "a reader beside the transaction");
                }
            }
            _ => {
                let before = self.plain.is_autocommit();
                let sql = self.statement();
                let remember = before && self.rng.random_bool(0.1);
                let committed = remember.then(|| dump(&self.plain));
                let _answered = self.both(&sql);
                match (before, self.plain.is_autocommit()) {
                    (true, false) => self.committed = committed,
                    (_, true) => self.committed = None,
                    (false, false) => {}
                }
            }
        }
    }

    fn value(&mut self) -> String {
        let rng = &mut self.rng;
        match rng.random_range(0..16) {
            0 => "null".into(),
            1..=5 => rng.random_range(-20..200).to_string(),
            6 => rng.random::<i64>().to_string(),
            7 => format!("{:.3}", rng.random_range(-1e6..1e6)),
            8..=11 => format!("'%s text {}'", rng.random_range(0..50)),
            12 => format!("zeroblob({})", rng.random_range(0..3000)),
            13 => format!(
                "replace(hex(zeroblob({})), '00', 'x{}')",
                rng.random_range(0..6000),
                rng.random_range(0..9)
            ),
            14 => format!("x'{:08x}'", rng.random::<u32>()),
            _ => format!("cast({} as text)", rng.random_range(0..1000)),
        }
    }

    fn table(&mut self) -> String {
        format!("t{}", self.rng.random_range(0..4))
    }

    fn condition(&mut self) -> String {
        let (from, column) = (self.rng.random_range(-10..150), ["a", "b", "c"][self.rng.random_range(0..3)]);
        match self.rng.random_range(0..7) {
            0 => "1".into(),
            1..=3 => format!("id between {from} and {}", from + self.rng.random_range(0..30)),
            4 => format!("{column} = {}", self.value()),
            5 => format!("{column} > {}", self.value()),
            _ => format!("id % {} = 0", self.rng.random_range(2..9)),
        }
    }

    fn statement(&mut self) -> String {
        let (table, column) = (self.table(), ["a", "b", "c"][self.rng.random_range(0..3)]);
        let or = ["", "", "", "or replace", "or ignore", "or fail", "or abort", "or rollback"]
            [self.rng.random_range(0..8)];
        let condition = self.condition();
        match self.rng.random_range(0..100) {
            0..=4 => {
                let constraint = [
                    "",
                    ", unique(b)",
                    ", check(c is null or length(c) < 9000)",
                    ", foreign key(a) references t0(id)",
                ][self.rng.random_range(0..4)];
                let rowid = ["", "", "", " without rowid"][self.rng.random_range(0..4)];
                let id = [
                    "id integer primary key",
                    "id integer primary key autoincrement",
                    "id primary key not null",
                ][self.rng.random_range(0..3)];
                format!("create table {table}({id}, a, b, c{constraint}){rowid}")
            }
            5 if self.rng.random_bool(0.4) => format!("drop table {table}"),
            5 => format!("delete from {table}"),
            6 => format!(
                "alter table {table} add column d{} default {}",
                self.rng.random_range(0..3),
                self.rng.random_range(0..9)
            ),
            7 => format!("alter table {table} rename to t{}", self.rng.random_range(0..4)),
            8..=9 => {
                let unique = if self.rng.random_bool(0.2) { "unique" } else { "" };
                format!("create {unique} index i{} on {table}({column})", self.rng.random_range(0..5))
            }
            10 => format!("drop index i{}", self.rng.random_range(0..5)),
            11 => format!(
                "create trigger g{} after update on {table} begin insert into t0(a) values(new.id); end",
                self.rng.random_range(0..3)
            ),
            12 => format!("drop trigger g{}", self.rng.random_range(0..3)),
            13 => format!("create view v{} as select id, {column} from {table}", self.rng.random_range(0..3)),
            14 => format!("drop view v{}", self.rng.random_range(0..3)),
            15..=30 => {
                let values = [self.value(), self.value(), self.value()].join(", ");
                let id = match self.rng.random_range(0..3) {
                    0 => self.rng.random_range(0..150).to_string(),
                    _ => "null".into(),
                };
                format!("insert {or} into {table}(id, a, b, c) values({id}, {values})")
            }
            31..=38 => {
                let (from, count) = (self.rng.random_range(0..150), self.rng.random_range(1..60));
                let value = self.value();
                format!(
                    "with recursive n(i) as (select {from} union all select i + 1 from n where i < {}) insert {or} into {table}(id, a, b, c) select i, i * 7 % 31, 'row ' || i, {value} from n",
                    from + count
                )
            }
            39 => format!(
                "insert {or} into {table}(a, b, c) select a, b, c from t{} where {condition}",
                self.rng.random_range(0..4)
            ),
            40..=51 => format!("update {or} {table} set {column} = {} where {condition}", self.value()),
            52..=59 => format!("delete from {table} where {condition}"),
            60..=67 => {
                format!("select *, typeof({column}) from {table} where {condition} order by id, {column}")
            }
            68..=70 => format!("select count(*), sum(length({column})), min(id), max({column}) from {table}"),
            71 => format!(
                "select x.id, y.a from {table} x join t{} y on x.a = y.{column} order by 1, 2 limit 50",
                self.rng.random_range(0..4)
            ),
            72..=77 => ["begin", "begin immediate", "begin exclusive"][self.rng.random_range(0..3)].into(),
            78..=82 => "commit".into(),
            83..=84 => "rollback".into(),
            85..=87 => format!("savepoint s{}", self.rng.random_range(0..3)),
            88..=89 => format!("rollback to s{}", self.rng.random_range(0..3)),
            90..=91 => format!("release s{}", self.rng.random_range(0..3)),
            92 => "vacuum".into(),
            93 => ["reindex", "analyze"][self.rng.random_range(0..2)].into(),
            94..=95 => format!("pragma incremental_vacuum({})", self.rng.random_range(0..20)),
            96 => format!("pragma auto_vacuum = {}", self.rng.random_range(0..3)),
            97 => format!("pragma cache_size = {}", [3, 10, 2000][self.rng.random_range(0..3)]),
            98 => format!("pragma foreign_keys = {}", self.rng.random_range(0..2)),
            _ => format!("pragma user_version = {}", self.rng.random_range(0..100)),
        }
    }
}

fn open_plain(dir: &tempfile::TempDir, page_size: u32) -> Connection {
    let plain = Connection::open(dir.path().join("plain.db")).unwrap();
    plain.pragma_update(None, "page_size", page_size).unwrap();
    plain.pragma_update(None, "synchronous", "off").unwrap();
    plain
}

fn short(answer: &Answer) -> String {
    format!("{answer:?}").chars().take(500).collect()
}

fn same(found: &str, expected: &str, who: &str) {
    if found != expected {
        let at = found.lines().zip(expected.lines()).find(|(found, expected)| found != expected);
        let cut = |line: &str| line.chars().take(300).collect::<String>();
        panic!(
            "{who} sees other content; {} lines instead of {}; the first that differs: {:?}",
            found.lines().count(),
            expected.lines().count(),
            at.map(|(found, expected)| (cut(found), cut(expected)))
        );
    }
}

/// Runs one seed; gives how many statements ran and how many of them failed, on both alike.
fn run(seed: u64, page_size: u32) -> (u64, u64) {
    let mut world = World::new(seed, page_size);
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let auto_vacuum = format!("pragma auto_vacuum = {}", seed % 3);
        let tables = [
            "create table t0(id integer primary key, a, b, c)",
            "create table t1(id integer primary key autoincrement, a, b unique, c)",
            "create table t2(id primary key not null, a, b, c) without rowid",
            "create table t3(id integer primary key, a references t0(id), b, c); ",
        ];
        for sql in [&auto_vacuum[..]].into_iter().chain(tables) {
            world.both(sql).unwrap();
        }
        for _ in 0..STATEMENTS {
            world.step();
        }
        if !world.plain.is_autocommit() {
            let committed = world.both("commit");
            if committed.is_err() && !world.plain.is_autocommit() {
                world.both("rollback").unwrap();
            }
        }
        world.check();
        world.hand_over();
    }));
    if let Err(panic) = outcome {
        let tail = world.story.len().saturating_sub(15);
        println!("seed {seed}, page size {page_size}, after:\n{}", world.story[tail..].join("\n"));
        std::panic::resume_unwind(panic);
    }
    (STATEMENTS as u64, world.errors)
}

/// Seeds on as many threads as there are processors.
fn run_all(seeds: std::ops::Range<u64>, page_size: u32) {
    let (next, errors) = (AtomicU64::new(seeds.start), AtomicU64::new(0));
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        return;
                    }
                    errors.fetch_add(run(seed, page_size).1, Ordering::Relaxed);
                }
            });
        }
    });
    let steps = (seeds.end - seeds.start) * STATEMENTS as u64;
    let errors = errors.into_inner();
    println!("page size {page_size}: {steps} steps, {errors} statements failed on both alike");
    // Were nearly everything an error, nearly nothing would have been tested.
    assert!(errors < steps / 2 && errors > steps / 50);
}

#[test]
fn a_volume_answers_as_a_file_does_with_pages_of_4096() {
    run_all(0..80, 4096);
}

#[test]
fn a_volume_answers_as_a_file_does_with_pages_of_512() {
    run_all(1000..1080, 512);
}

#[test]
fn a_volume_answers_as_a_file_does_with_pages_of_65536() {
    run_all(2000..2020, 65536);
}
