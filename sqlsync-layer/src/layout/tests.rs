use std::collections::HashMap;

use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use rusqlite::Connection;

use super::*;

/// A database file's pages.
struct File {
    size: usize,
    bytes: Vec<u8>,
    reads: HashMap<u32, u32>,
}

impl Source for File {
    fn pages(&self) -> u32 {
        (self.bytes.len() / self.size) as u32
    }
    fn page(&mut self, page: PageIdx) -> Option<Bytes> {
        *self.reads.entry(page.get()).or_default() += 1;
        let at = (page.get() as usize - 1) * self.size;
        Some(Bytes::copy_from_slice(&self.bytes[at..at + self.size]))
    }
}

fn database(size: usize, fill: impl FnOnce(&Connection)) -> File {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db");
    let db = Connection::open(&path).unwrap();
    db.pragma_update(None, "page_size", size as u32).unwrap();
    fill(&db);
    drop(db);
    File { size, bytes: std::fs::read(path).unwrap(), reads: HashMap::new() }
}

fn groups_of(file: &mut File) -> Vec<Vec<u32>> {
    let groups = SqliteLayout.groups(file);
    let numbers = |group: &Group| group.pages.iter().map(|p| p.get()).collect();
    let mut all: Vec<u32> = groups.iter().flat_map(|g| g.pages.iter().map(|p| p.get())).collect();
    all.sort_unstable();
    assert_eq!(all, (1..=file.pages()).collect::<Vec<_>>(), "every page once");
    assert!(groups.iter().enumerate().all(|(i, g)| g.hot == (i == 0)), "the bundle comes first, alone");
    groups.iter().map(numbers).collect()
}

/// The leaves of a table stand in key order although its rows were written in random order, and
/// exactly the interior pages (with the schema) are in the bundle, as SQLite's own `dbstat` has it.
#[test]
fn interior_pages_come_first_and_leaves_follow_in_key_order() {
    for size in [512, 4096, 65536] {
        let mut expected: Vec<(String, String, u32, String)> = Vec::new();
        let mut file = database(size, |db| {
            db.execute_batch(
                "create table t (id integer primary key, a int, b text); create index i on t (a);",
            )
            .unwrap();
            let mut rng = StdRng::seed_from_u64(size as u64);
            let mut insert = db.prepare("insert or ignore into t values (?, ?, ?)").unwrap();
            db.execute_batch("begin").unwrap();
            for _ in 0..20_000 {
                let (id, a): (i64, i64) = (rng.random_range(0..1_000_000), rng.random());
                insert.execute((id, a, "x".repeat(rng.random_range(0..200)))).unwrap();
            }
            db.execute_batch("commit").unwrap();
            let mut stat =
                db.prepare("select name, pagetype, pageno, path from dbstat order by path").unwrap();
            let rows = stat.query_map((), |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?, r.get(3)?))).unwrap();
            expected = rows.collect::<Result<_, _>>().unwrap();
        });
        let groups = groups_of(&mut file);
        let leaves = |table: &str| -> Vec<u32> {
            expected.iter().filter(|(n, t, ..)| n == table && t == "leaf").map(|(_, _, p, _)| *p).collect()
        };
        assert!(leaves("t").len() > 4 && leaves("i").len() > 4, "{size}: one leaf proves nothing");
        assert!(groups.contains(&leaves("t")) && groups.contains(&leaves("i")), "{size}");
        let mut bundle = groups[0].clone();
        bundle.sort_unstable();
        let mut interior: Vec<u32> = expected
            .iter()
            .filter(|(n, t, ..)| t == "internal" || n == "sqlite_schema")
            .map(|(_, _, p, _)| *p)
            .collect();
        interior.sort_unstable();
        assert_eq!(bundle, interior, "{size}");
        let read = file.reads.len();
        assert!(read <= interior.len() + expected.len() / 50 + 4, "{size}: read {read} pages");
    }
}

#[test]
fn a_wide_schema_overflow_and_free_pages_are_all_somewhere() {
    let mut file = database(1024, |db| {
        for n in 0..300 {
            db.execute_batch(&format!("create table table_number_{n} (a, b, c)")).unwrap();
        }
        db.execute_batch("create table big (x); insert into big values (zeroblob(200000));").unwrap();
        db.execute_batch(
            "create table gone (x); insert into gone values (zeroblob(100000)); drop table gone;",
        )
        .unwrap();
    });
    let groups = groups_of(&mut file);
    assert!(groups.len() > 300, "a group for each table, not {}", groups.len());
}

/// Whatever the bytes are: every page once, and an end.
#[test]
fn damaged_databases_get_some_order() {
    let whole = database(512, |db| {
        db.execute_batch("create table t (a, b); create index i on t (a);").unwrap();
        for n in 0..2000 {
            db.execute("insert into t values (?, ?)", (n, "some text")).unwrap();
        }
    });
    for seed in 0..300 {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut file = File { size: 512, bytes: whole.bytes.clone(), reads: HashMap::new() };
        for _ in 0..rng.random_range(1..2000) {
            let at = rng.random_range(0..file.bytes.len());
            file.bytes[at] = rng.random();
        }
        groups_of(&mut file);
    }
    let mut empty = File { size: 512, bytes: Vec::new(), reads: HashMap::new() };
    assert!(SqliteLayout.groups(&mut empty).is_empty());
}
