//! One test for each merge condition: it holds, and fails once the condition is left out.

use std::sync::Arc;

use graft::fetch::{Fetch, FetchError};
use graft::snapshot::Snapshot;
use graft::volume::{Options, Volume};
use graft::{PageSize, VolumeId};
use rusqlite::Connection;

use super::*;
use crate::vfs::Database;

/// Nothing here is remote.
#[derive(Debug)]
pub(super) struct NoFetch;
impl Fetch for NoFetch {
    fn fetch(&self, _: &Volume, _: &Snapshot, pages: &PageSet) -> Result<(), FetchError> {
        panic!("every page is local, and {pages:?} were asked for");
    }
}

pub(super) fn database(volume: Volume) -> Arc<Database> {
    Database::new(Arc::new(volume), Arc::new(NoFetch))
}

/// A volume that holds what `sql` makes.
pub(super) fn base(page_size: u32, sql: &str) -> Volume {
    let size = PageSize::new(page_size).unwrap();
    let volume = Volume::load(VolumeId([7; 16]), size, Options::default()).unwrap().volume;
    let db = database(volume.aside(None, 0));
    let (connection, _) = db.connect().unwrap();
    connection.execute_batch(sql).unwrap();
    drop(connection);
    db.volume().aside(None, usize::MAX)
}

/// Runs one recorded transaction on a copy of `on`; answers the copy, and the commit it made.
pub(super) fn run(on: &Volume, sql: &str) -> (Arc<Database>, Option<LocalCommit>) {
    let db = database(on.aside(None, usize::MAX));
    let before = db.volume().status().ahead;
    let (connection, _) = db.connect_recorded().unwrap();
    connection.execute_batch(&format!("BEGIN IMMEDIATE; {sql}; COMMIT")).unwrap();
    drop(connection);
    let mut locals = db.volume().locals();
    assert!(locals.len() <= before + 1, "one transaction, one commit");
    let local = if locals.len() > before { locals.pop() } else { None };
    (db, local)
}

/// Puts `own` on what `theirs` made, whatever the verdict.
pub(super) fn put(theirs: &Volume, own: &LocalCommit) -> Arc<Database> {
    let merged = theirs.aside(None, usize::MAX);
    let tip = merged.tip();
    let first = merged.read(&tip, PageIdx::FIRST).unwrap();
    merged.extend_aside(&[transplant(own, tip.pages(), &first, Validation::READS)]).unwrap();
    database(merged)
}

pub(super) fn integrity(connection: &Connection) -> String {
    let check = connection.query_row("pragma integrity_check", [], |row| row.get::<_, String>(0));
    check.unwrap_or_else(|error| error.to_string())
}

/// Every row of every table, as text.
pub(super) fn content(connection: &Connection) -> Result<Vec<String>, rusqlite::Error> {
    let mut out = Vec::new();
    let mut tables = connection.prepare("select name from sqlite_schema where type = 'table' order by 1")?;
    let tables = tables.query_map([], |row| row.get::<_, String>(0))?.collect::<Result<Vec<_>, _>>()?;
    for table in tables {
        let mut statement = connection.prepare(&format!("select rowid, * from \"{table}\" order by 1"))?;
        let columns = statement.column_count();
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let values: Result<Vec<String>, _> =
                (0..columns).map(|at| row.get_ref(at).map(|value| format!("{value:?}"))).collect();
            out.push(format!("{table}: {}", values?.join(" ")));
        }
    }
    Ok(out)
}

/// What came of two transactions from one state, the second put on the first by page.
struct Outcome2 {
    with: Result<(), Conflict>,
    without: Result<(), Conflict>,
    integrity: String,
    equals_serial: bool,
}

/// Judges `own` on `theirs` with every condition and without one, and merges regardless.
fn judge(base: &Volume, theirs: &str, own: &str, condition: Condition) -> Outcome2 {
    let (their_db, their) = run(base, theirs);
    let (_, own_commit) = run(base, own);
    judge_commits(&their_db, &their.unwrap(), &own_commit.unwrap(), own, condition)
}

fn judge_commits(
    their_db: &Arc<Database>,
    their: &LocalCommit,
    own: &LocalCommit,
    own_sql: &str,
    condition: Condition,
) -> Outcome2 {
    let verdict_by = |validation: Validation| {
        let theirs = Writes::of_local(their, validation);
        verdict(&Footprint::of_local(own, validation), &theirs, validation)
    };
    let merged = put(their_db.volume(), own);
    let (connection, _) = merged.connect().unwrap();
    let (serial, _) = run(their_db.volume(), own_sql);
    let serial = content(&serial.connect().unwrap().0).unwrap();
    Outcome2 {
        with: verdict_by(Validation::READS),
        without: verdict_by(Validation::READS.without(condition)),
        integrity: integrity(&connection),
        equals_serial: content(&connection).is_ok_and(|content| content == serial),
    }
}

const ROWS: &str = "create table t(id integer primary key, v); create table u(id integer primary key, v);
    with recursive n(i) as (select 1 union all select i + 1 from n where i < 40)
    insert into t select i, printf('%060d', i) from n;
    with recursive n(i) as (select 1 union all select i + 1 from n where i < 40)
    insert into u select i, printf('%060d', i) from n;";

#[test]
fn disjoint_transactions_merge_into_what_running_them_serially_gives() {
    let base = base(512, ROWS);
    let outcome = judge(
        &base,
        "update t set v = 'x' where id = 3",
        "update u set v = 'y' where id = 30",
        Condition::Reads,
    );
    assert_eq!((outcome.with, outcome.integrity.as_str(), outcome.equals_serial), (Ok(()), "ok", true));
    // One side may allocate.
    let grow = "insert into t(v) values(printf('%0400d', 1)), (printf('%0400d', 1))";
    for (theirs, own) in
        [(grow, "update u set v = 'y' where id = 3"), ("update u set v = 'y' where id = 3", grow)]
    {
        let outcome = judge(&base, theirs, own, Condition::Reads);
        assert_eq!((outcome.with, outcome.integrity.as_str(), outcome.equals_serial), (Ok(()), "ok", true));
    }
}

/// They append and split the last leaf, which writes its parent and a new leaf, not the leaf itself; we
/// append a smaller row to that leaf.
#[test]
fn a_split_that_does_not_write_the_split_leaf_is_seen_by_our_reads() {
    let mut seen = false;
    for length in (100..400).step_by(20) {
        let base = base(512, ROWS);
        let theirs = format!("insert into t(v) values(printf('%0{length}d', 7))");
        let outcome = judge(&base, &theirs, "insert into t(v) values(1)", Condition::Reads);
        if outcome.without.is_ok() {
            seen = true;
            assert!(matches!(outcome.with, Err(Conflict::Read(_))), "{:?}", outcome.with);
            assert!(outcome.integrity != "ok" || !outcome.equals_serial, "length {length}");
        }
    }
    assert!(seen, "no length made the split that this test is about");
}

/// A connection whose cache is warm does not read again what it decides by.
#[test]
fn reads_that_a_warm_cache_hid_are_unknown_and_conflict() {
    let base = base(512, ROWS);
    let db = database(base.aside(None, usize::MAX));
    let (connection, _) = db.connect().unwrap();
    let own_sql = "update u set v = (select max(v) from t) where id = 1";
    connection.execute_batch("select sum(length(v)) from t").unwrap();
    connection.execute_batch(own_sql).unwrap();
    let own = db.volume().locals().pop().unwrap();
    let (their_db, their) = run(&base, "update t set v = 'zzz' where id = 9");
    let outcome = judge_commits(&their_db, &their.unwrap(), &own, own_sql, Condition::Complete);
    assert_eq!(outcome.with, Err(Conflict::Unrecorded));
    assert_eq!((outcome.without, outcome.equals_serial), (Ok(()), false));
}

/// What a transaction read that fell to pieces on a failed read is not known.
#[test]
fn an_aborted_read_makes_the_reads_unknown() {
    let base = base(512, ROWS);
    let db = database(base.aside(None, usize::MAX));
    let (connection, control) = db.connect_recorded().unwrap();
    control.fail("a page could not be fetched", false);
    connection.execute_batch("update u set v = 1 where id = 1").unwrap();
    let own = db.volume().locals().pop().unwrap();
    assert_eq!(Footprint::of_local(&own, Validation::READS).reads, None);
}

/// `mmap_size` would let SQLite read pages behind the VFS's back.
#[test]
fn mmap_hides_no_reads() {
    let base = base(512, ROWS);
    let reads = |pragma: &str| {
        let db = database(base.aside(None, usize::MAX));
        let (connection, _) = db.connect_recorded().unwrap();
        connection.execute_batch(pragma).unwrap();
        connection.execute_batch("update u set v = (select max(v) from t) where id = 1").unwrap();
        Footprint::of_local(&db.volume().locals().pop().unwrap(), Validation::READS).reads
    };
    assert_eq!(reads("pragma mmap_size = 1000000000"), reads("pragma cache_size = 100"));
}

/// They free pages, and we take new ones: no page in common, and the free ones would be lost.
#[test]
fn two_changes_of_the_allocator_do_not_merge() {
    let base = base(512, ROWS);
    let free = "delete from t where id between 10 and 30";
    let grow = "insert into u(id, v) values(1000, printf('%0900d', 1))";
    for (theirs, own) in [(free, grow), (grow, free)] {
        let outcome = judge(&base, theirs, own, Condition::Allocator);
        assert_eq!(outcome.with, Err(Conflict::Allocator));
        assert_eq!(outcome.without, Ok(()));
        assert_ne!(outcome.integrity, "ok");
    }
}

/// Their index is built from rows that they read, and ours are not among them.
#[test]
fn a_schema_change_by_them_conflicts_with_everything() {
    let base = base(512, ROWS);
    let outcome =
        judge(&base, "create index i on t(v)", "update t set v = 'new' where id = 3", Condition::Schema);
    assert_eq!(outcome.with, Err(Conflict::Schema));
    assert_eq!(outcome.without, Ok(()));
    assert_ne!(outcome.integrity, "ok");
    // Ours after theirs is fine: they ran before it.
    let outcome = judge(&base, "update t set v = 'new' where id = 3", "create table w(x)", Condition::Schema);
    assert_eq!((outcome.with, outcome.integrity.as_str(), outcome.equals_serial), (Ok(()), "ok", true));
}

#[test]
fn what_reads_allocator_state_does_not_merge() {
    let base = base(512, ROWS);
    let theirs = "insert into t(id, v) values(1000, printf('%0900d', 1))";
    for own in [
        "update u set v = (select page_count from pragma_page_count) where id = 1",
        "pragma page_count; update u set v = 1 where id = 1",
        "select integrity_check from pragma_integrity_check; update u set v = 1 where id = 1",
    ] {
        let outcome = judge(&base, theirs, own, Condition::AllocatorReads);
        assert_eq!(outcome.with, Err(Conflict::AllocatorRead), "{own}");
    }
    let outcome = judge(
        &base,
        theirs,
        "update u set v = (select page_count from pragma_page_count) where id = 1",
        Condition::AllocatorReads,
    );
    assert_eq!((outcome.without, outcome.equals_serial), (Ok(()), false));
}

/// Pages of a volume without SQLite: (before, after) counts and the pages written.
fn plain(before: u32, after: u32, pages: &[u32], reads: &[u32]) -> LocalCommit {
    let page = |n: &u32| PageIdx::new(*n).unwrap();
    let note = Note { reads: Some(reads.iter().map(page).collect()), ..Note::default() };
    LocalCommit {
        number: 1,
        pages_before: before,
        pages_after: after,
        changes: Arc::new(pages.iter().map(|n| (page(n), Bytes::from_static(b"page"))).collect()),
        payload: note.encode(),
    }
}

#[test]
fn pages_cut_off_count_as_written() {
    let (theirs, own) = (plain(60, 50, &[2], &[]), plain(60, 60, &[55], &[]));
    let by = |validation: Validation| {
        verdict(&Footprint::of_local(&own, validation), &Writes::of_local(&theirs, validation), validation)
    };
    assert!(matches!(by(Validation::READS), Err(Conflict::Written(pages)) if pages.len() == 1));
    assert_eq!(by(Validation::READS.without(Condition::Truncation)), Ok(()));
    // And then the page written would be lost.
    assert!(!transplant(&own, 50, &[], Validation::READS).changes.contains_key(&PageIdx::new(55).unwrap()));
}

/// A spilled transaction reads back pages that it added and gave up again: they were never theirs.
#[test]
fn pages_that_came_and_went_conflict_with_nothing() {
    let (theirs, own) = (plain(50, 60, &[55], &[]), plain(50, 50, &[3], &[3, 55]));
    let by = |validation: Validation| {
        verdict(&Footprint::of_local(&own, validation), &Writes::of_local(&theirs, validation), validation)
    };
    assert_eq!(by(Validation::READS), Ok(()));
    assert!(matches!(by(Validation::READS.without(Condition::Clip)), Err(Conflict::Read(_))));
}

/// Snapshot isolation: each reads what the other writes, and both stay.
#[test]
fn the_write_only_policy_admits_write_skew_and_nothing_more() {
    let validation = Validation::WRITES_ONLY;
    let by = |theirs: &LocalCommit, own: &LocalCommit| {
        verdict(&Footprint::of_local(own, validation), &Writes::of_local(theirs, validation), validation)
    };
    assert_eq!(by(&plain(9, 9, &[2], &[3]), &plain(9, 9, &[3], &[2])), Ok(()));
    assert!(by(&plain(9, 9, &[2], &[]), &plain(9, 9, &[2], &[])).is_err());
    assert!(by(&plain(9, 9, &[1], &[]), &plain(9, 9, &[1], &[])).is_err());
    assert!(by(&plain(9, 10, &[10], &[]), &plain(9, 11, &[11], &[])).is_err());
}

#[test]
fn what_nobody_else_changed_merges_whatever_is_known_of_it() {
    let (_, own) = run(&base(512, ROWS), "pragma page_count; update u set v = 1 where id = 1");
    let footprint = Footprint::of_local(&own.unwrap(), Validation::READS);
    assert_eq!(verdict(&footprint, &Writes::default(), Validation::READS), Ok(()));
}

/// How many of 200 transactions merge with one of ten such statements, on a table of 3,000 rows with
/// scattered ids.
fn merges(definition: &str, own: impl Fn(u64) -> String) -> usize {
    let on = base(
        1024,
        &format!(
            "{definition}; with recursive n(i) as (select 1 union all select i + 1 from n where i < 3000)
             insert into t(id, v) select i * 7919 % 100003 * 10, printf('%030d', i) from n;"
        ),
    );
    let commit = |sql: String| run(&on, &sql).1.unwrap();
    let merges = |at: &u64| {
        let theirs: Vec<String> = (1..=10).map(|other| own(at / 20 * 10 + 1_000 + other)).collect();
        let theirs = Writes::of_local(&commit(theirs.join("; ")), Validation::READS);
        let own = Footprint::of_local(&commit(own(*at)), Validation::READS);
        verdict(&own, &theirs, Validation::READS).is_ok()
    };
    (0..200).filter(merges).count()
}

/// What `docs/consistency.md` says of tables: changes merge best where inner pages hold no rows, inserts
/// where they do not all go to the end. A random integer key has both.
#[test]
fn how_well_a_table_merges_depends_on_where_its_rows_lie() {
    let without = "create table t(id primary key, v) without rowid";
    let ordinary = "create table t(id unique, v)";
    let random_key = "create table t(id integer primary key, v)";
    let change =
        |at: u64| format!("update t set v = 'x' where id = {}", (at * 131 % 3000 + 1) * 7919 % 100_003 * 10);
    let insert =
        |at: u64| format!("insert into t(id, v) values({}, 'x')", at * 15_485_863 % 100_003 * 10 + 1);
    let changes = [without, ordinary, random_key].map(|table| merges(table, change));
    let inserts = [without, ordinary, random_key].map(|table| merges(table, insert));
    println!("changes: {changes:?}; inserts: {inserts:?}");
    assert!(changes[1] > changes[0] && changes[2] > changes[0], "{changes:?}");
    assert!(inserts[0] > 30 && inserts[1] == 0 && inserts[2] > 30, "{inserts:?}");
}
