use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::time::Duration;

use rusqlite::MAIN_DB;
use rusqlite::backup::{Backup, StepResult};

use super::*;

fn text(connection: &Connection, sql: &str) -> String {
    connection.query_row(sql, [], |row| row.get(0)).unwrap()
}

fn pages(set: &PageSet) -> Vec<u32> {
    set.iter().map(|page| page.get()).collect()
}

/// SQLite cuts a file only after the sync that commits it: what was cut off was not published, and
/// nobody learnt that those pages are gone.
#[test]
fn a_commit_that_shortens_the_database_shortens_the_volume() {
    for mode in ["incremental", "full"] {
        let db = database(4096);
        let (a, control) = db.connect().unwrap();
        let (b, _) = db.connect().unwrap();
        a.execute_batch(&format!(
            "pragma auto_vacuum = {mode}; create table t(id integer primary key, v blob);"
        ))
        .unwrap();
        a.execute_batch("with recursive n(i) as (select 1 union all select i+1 from n where i < 40) insert into t select i, randomblob(3500) from n").unwrap();
        let full = db.volume().status().pages;
        assert_eq!(count(&b, "select count(*) from t"), 40);
        control.take_committed();
        a.execute_batch("delete from t where id > 10").unwrap();
        if mode == "incremental" {
            assert_eq!(db.volume().status().pages, full);
            control.take_committed();
            // A row for each page it frees.
            let mut vacuum = a.prepare("pragma incremental_vacuum").unwrap();
            let mut rows = vacuum.query([]).unwrap();
            while rows.next().unwrap().is_some() {}
        }
        let after = db.volume().status().pages;
        assert_eq!(i64::from(after), count(&a, "pragma page_count"));
        assert!(after + 25 < full, "{mode}: {full} pages became {after}");
        let written = control.take_committed().unwrap();
        assert!(written.marks.allocator);
        for cut in after + 1..=full {
            assert!(written.pages.contains(PageIdx::new(cut).unwrap()), "{mode}: page {cut} was cut off");
        }
        assert_eq!(written.pages.last().unwrap().get(), full);
        // The stored pages stop there too.
        assert!(
            db.volume().locals().iter().all(|l| l.changes.keys().all(|page| page.get() <= l.pages_after))
        );
        for connection in [&a, &b, &db.connect().unwrap().0] {
            assert_eq!(count(connection, "select count(*) from t"), 10);
            assert_eq!(text(connection, "pragma integrity_check"), "ok");
        }
        a.execute_batch("insert into t select id + 100, v from t").unwrap();
        assert_eq!(text(&b, "pragma integrity_check"), "ok");
    }
    let db = database(512);
    let (a, _) = db.connect().unwrap();
    a.execute_batch("create table t(v blob); insert into t values(zeroblob(100000)); delete from t").unwrap();
    assert!(db.volume().status().pages > 190);
    a.execute_batch("vacuum").unwrap();
    assert_eq!(db.volume().status().pages, 2);
}

/// A change counter derived from the LSN, or from how many commits there are, repeats after a reset.
#[test]
fn an_equal_counter_never_hides_other_content() {
    let db = database(4096);
    let (a, _) = db.connect().unwrap();
    let (b, _) = db.connect().unwrap();
    let mut naive = Vec::new();
    for value in 1..=5 {
        db.volume().reset().unwrap();
        a.execute_batch(&format!(
            "create table t(id integer primary key, v); insert into t values(1, {value})"
        ))
        .unwrap();
        let status = db.volume().status();
        naive.push((status.lsn, status.ahead, status.pages));
        // The cache of `b` holds the page as it was before the reset.
        assert_eq!(count(&b, "select v from t where id = 1"), value);
        assert_eq!(count(&a, "select v from t where id = 1"), value);
    }
    assert!(naive.windows(2).all(|pair| pair[0] == pair[1]), "the histories differ: {naive:?}");
}

/// While the own connection's commits empty its cache, a backup begins again at each and never ends.
#[test]
fn a_stepped_backup_ends_while_its_own_connection_commits() {
    let db = database(4096);
    let (a, _) = db.connect().unwrap();
    a.execute_batch("create table t(id integer primary key, v); with recursive n(i) as (select 1 union all select i+1 from n where i < 200) insert into t select i, zeroblob(2000) from n;").unwrap();
    let mut copy = Connection::open_in_memory().unwrap();
    let mut steps = 0;
    {
        let backup = Backup::new(&a, &mut copy).unwrap();
        while backup.step(5).unwrap() != StepResult::Done {
            steps += 1;
            assert!(steps < 200, "the backup began again each time");
            a.execute("update t set v = ?1 where id = ?2", (steps, steps)).unwrap();
        }
    }
    assert!(steps > 15);
    for check in ["select sum(v) from t where typeof(v) = 'integer'", "select count(*) from t"] {
        assert_eq!(count(&copy, check), count(&a, check), "{check}");
    }
    assert_eq!(text(&copy, "pragma integrity_check"), "ok");
}

/// A database in WAL mode says so in its header; a volume has no WAL, and would never open again.
#[test]
fn a_backup_from_a_database_in_wal_mode_can_be_read() {
    let dir = tempfile::tempdir().unwrap();
    let from = Connection::open(dir.path().join("wal.db")).unwrap();
    assert_eq!(text(&from, "pragma journal_mode = wal"), "wal");
    from.execute_batch("create table t(v); insert into t values(5)").unwrap();
    let db = database(4096);
    let (mut a, _) = db.connect().unwrap();
    {
        let backup = Backup::new(&from, &mut a).unwrap();
        backup.run_to_completion(100, Duration::ZERO, None).unwrap();
    }
    for connection in [&a, &db.connect().unwrap().0] {
        assert_eq!(count(connection, "select v from t"), 5);
    }
    a.execute_batch("insert into t values(6)").unwrap();
    assert_eq!(count(&a, "select sum(v) from t"), 11);
}

#[test]
fn savepoints_nest_and_roll_back_also_when_they_spill() {
    let db = database(1024);
    let (a, _) = db.connect().unwrap();
    a.execute_batch("pragma cache_size = 5; create table t(id integer primary key, v)").unwrap();
    let ahead = db.volume().status().ahead;
    let fill = |from: u32, byte: &str| {
        a.execute_batch(&format!("with recursive n(i) as (select {from} union all select i+1 from n where i < {from} + 49) insert or replace into t select i, replace(hex(zeroblob(300)), '0', '{byte}') from n")).unwrap();
    };
    a.execute_batch("begin; savepoint one").unwrap();
    fill(1, "a");
    a.execute_batch("savepoint two").unwrap();
    fill(1, "b");
    a.execute_batch("savepoint three").unwrap();
    fill(51, "c");
    a.execute_batch("rollback to two").unwrap();
    assert_eq!(count(&a, "select count(*) from t where v like 'a%'"), 50);
    fill(101, "d");
    a.execute_batch("release two; savepoint four; delete from t; rollback to four; release one; commit")
        .unwrap();
    let (b, _) = db.connect().unwrap();
    assert_eq!(text(&b, "select group_concat(distinct substr(v, 1, 1)) from t"), "a,d");
    assert_eq!(count(&b, "select count(*) from t"), 100);
    assert_eq!(text(&b, "pragma integrity_check"), "ok");
    assert_eq!(db.volume().status().ahead, ahead + 1);
    a.execute_batch("savepoint all_; delete from t; rollback to all_; release all_").unwrap();
    assert_eq!(db.volume().status().ahead, ahead + 1, "nothing was left to publish");
}

#[test]
fn a_spilled_transaction_that_commits_is_one_local_commit() {
    let db = database(4096);
    let (a, control) = db.connect().unwrap();
    a.execute_batch("pragma cache_size = 5; create table t(v)").unwrap();
    let ahead = db.volume().status().ahead;
    control.take_committed();
    a.execute_batch("begin; with recursive n(i) as (select 1 union all select i+1 from n where i < 100) insert into t select randomblob(4000) from n; delete from t where rowid > 60; commit").unwrap();
    assert_eq!(db.volume().status().ahead, ahead + 1);
    assert!(control.take_committed().unwrap().pages.len() > 60);
    assert_eq!(count(&db.connect().unwrap().0, "select count(*) from t"), 60);
}

#[test]
fn blobs_are_read_and_written_in_place() {
    let db = database(512);
    let (a, control) = db.connect().unwrap();
    a.execute_batch(
        "create table t(id integer primary key, v blob); insert into t values(1, zeroblob(100000))",
    )
    .unwrap();
    control.take_committed();
    {
        let mut blob = a.blob_open(MAIN_DB, "t", "v", 1, false).unwrap();
        blob.seek(SeekFrom::Start(50_000)).unwrap();
        blob.write_all(b"in the middle").unwrap();
        blob.close().unwrap();
    }
    let written = control.take_committed().unwrap();
    assert!(written.pages.len() <= 2, "{:?}", pages(&written.pages));
    let (b, _) = db.connect().unwrap();
    let mut blob = b.blob_open(MAIN_DB, "t", "v", 1, true).unwrap();
    blob.seek(SeekFrom::Start(49_999)).unwrap();
    let mut found = [0; 15];
    blob.read_exact(&mut found).unwrap();
    assert_eq!(&found, b"\0in the middle\0");
}

/// sqlite-plugin passes some text on as a printf format; upstream crashed on a name with `%s`.
#[test]
fn percent_signs_are_text_everywhere() {
    let db = database(4096);
    let (a, _) = db.connect().unwrap();
    let odd = "%s%n%p%%x";
    a.execute_batch(&format!("create table \"{odd}\"(\"{odd}\"); insert into \"{odd}\" values('{odd}')"))
        .unwrap();
    assert_eq!(text(&a, &format!("select \"{odd}\" from \"{odd}\"")), odd);
    for pragma in
        ["user_version", "journal_mode", "table_info", "cache_size", "foreign_key_check", "nonsense"]
    {
        // Whatever they answer, they answer.
        let _ = a.execute_batch(&format!("pragma {pragma} = '{odd}'; pragma {pragma}('{odd}')"));
    }
    for pragma in ["synchronous", "page_size"] {
        let error = a.execute_batch(&format!("pragma {pragma} = '{odd}'")).unwrap_err().to_string();
        assert!(error.contains(odd), "{error}");
    }
    assert!(a.execute_batch(&format!("attach '{odd}' as x")).is_err());
    assert!(a.execute_batch(&format!("select * from \"no {odd}\"")).unwrap_err().to_string().contains(odd));
    assert_eq!(count(&a, &format!("select count(*) from \"{odd}\"")), 1);
}

#[test]
fn a_read_only_connection_reads_and_refuses_to_write() {
    let db = database(4096);
    let (a, _) = db.connect().unwrap();
    a.execute_batch("create table t(v); insert into t values(1)").unwrap();
    let (b, _) = db.connect_read_only().unwrap();
    for sql in ["insert into t values(2)", "create table u(x)", "vacuum", "pragma user_version = 3"] {
        let error = b.execute_batch(sql).unwrap_err();
        assert_eq!(error.sqlite_error_code(), Some(ErrorCode::ReadOnly), "{sql}: {error}");
    }
    a.execute_batch("insert into t values(2)").unwrap();
    assert_eq!(count(&b, "select sum(v) from t"), 3);
    assert_eq!(db.volume().status().ahead, 3);
}

#[test]
fn a_reader_keeps_its_snapshot_while_a_writer_commits_a_hundred_times() {
    let db = database(512);
    let (a, _) = db.connect().unwrap();
    let (b, _) = db.connect().unwrap();
    a.execute_batch("create table t(id integer primary key, v); insert into t values(0, 'first')").unwrap();
    b.execute_batch("begin; select * from t").unwrap();
    // The statement stands still in the middle of its rows, too.
    let mut walking = b.prepare("select id from t order by id").unwrap();
    let mut rows = walking.query([]).unwrap();
    assert!(rows.next().unwrap().is_some());
    for i in 1..=100 {
        a.execute("insert into t values(?1, zeroblob(400))", [i]).unwrap();
        a.execute("update t set v = ?1 where id = 0", [i]).unwrap();
        if i == 50 {
            a.execute_batch("vacuum").unwrap();
        }
        assert_eq!((count(&b, "select count(*) from t"), text(&b, "select v from t")), (1, "first".into()));
    }
    assert!(rows.next().unwrap().is_none());
    drop(rows);
    b.execute_batch("commit").unwrap();
    assert_eq!(count(&b, "select count(*) from t"), 101);
    assert_eq!(count(&b, "select v from t where id = 0"), 100);
}

#[test]
fn reads_beside_a_write_transaction_of_the_same_thread_see_what_is_committed() {
    let db = database(4096);
    let (a, _) = db.connect().unwrap();
    let (b, _) = db.connect().unwrap();
    a.execute_batch("pragma cache_size = 3; create table t(v); insert into t values(1); begin; ").unwrap();
    for round in 2..50 {
        a.execute("insert into t values(?1)", [round]).unwrap();
        a.execute("insert into t values(zeroblob(9000))", []).unwrap();
        assert_eq!(count(&b, "select count(*) from t"), 1);
        assert_eq!(count(&a, "select count(*) from t"), 2 * round - 1);
    }
    a.execute_batch("commit").unwrap();
    assert_eq!(count(&b, "select count(*) from t"), 97);
}

#[test]
fn an_attached_volume_can_be_joined() {
    let (one, two) = (database(4096), database(512));
    two.connect()
        .unwrap()
        .0
        .execute_batch("create table u(id, w); insert into u values(1, 'x'), (2, 'y')")
        .unwrap();
    let (a, _) = one.connect().unwrap();
    a.execute_batch("create table t(id, v); insert into t values(1, 'p'), (2, 'q')").unwrap();
    a.execute_batch(&format!("attach 'file:{}?vfs=graft' as two", two.name())).unwrap();
    let joined = "select group_concat(v || w, ' ') from t join two.u using (id)";
    assert_eq!(text(&a, joined), "px qy");
    two.connect().unwrap().0.execute_batch("update u set w = 'z' where id = 1").unwrap();
    assert_eq!(text(&a, joined), "pz qy");
    // From an ordinary database as well.
    let plain = Connection::open_in_memory().unwrap();
    plain.execute_batch(&format!("attach 'file:{}?vfs=graft' as v; create table t(v)", two.name())).unwrap();
    plain.execute_batch("insert into t select w from v.u").unwrap();
    assert_eq!(text(&plain, "select group_concat(v) from t"), "z,y");
}

#[test]
fn a_schema_change_reaches_other_connections_and_their_statements() {
    let db = database(4096);
    let (a, _) = db.connect().unwrap();
    let (b, _) = db.connect().unwrap();
    a.execute_batch("create table t(v); insert into t values(1)").unwrap();
    let mut statement = b.prepare("select * from t").unwrap();
    assert_eq!(statement.query_row([], |row| row.get::<_, i64>(0)).unwrap(), 1);
    a.execute_batch("alter table t add column w default 7").unwrap();
    assert_eq!(statement.query_row([], |row| row.get::<_, i64>("w")).unwrap(), 7);
    a.execute_batch("drop table t").unwrap();
    assert!(statement.query_row([], |row| row.get::<_, i64>(0)).is_err());
}

/// The volume's half would be published and the file's could still fail: SQLite commits the files of a
/// transaction one after another where one of them has no rollback journal.
#[test]
fn a_transaction_that_writes_a_volume_and_a_file_is_refused_whole() {
    for mode in ["wal", "memory", "delete"] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("plain.db");
        let plain = Connection::open(&path).unwrap();
        plain.execute_batch(&format!("pragma journal_mode = {mode}; create table f(v)")).unwrap();
        let db = database(4096);
        let (a, _) = db.connect().unwrap();
        a.execute_batch("create table t(v)").unwrap();
        a.execute_batch(&format!("attach 'file:{}?vfs=unix' as plain", path.display())).unwrap();
        a.execute_batch(&format!("pragma plain.journal_mode = {mode}")).unwrap();
        a.execute_batch("begin; insert into t values(1); insert into plain.f values(2); commit;")
            .unwrap_err();
        if !a.is_autocommit() {
            a.execute_batch("rollback").unwrap();
        }
        assert_eq!(count(&a, "select count(*) from t"), 0, "{mode}");
        // One at a time, and one that is only read, is fine.
        a.execute_batch("insert into plain.f values(3); insert into t select v from plain.f where v = 3;")
            .unwrap();
        assert_eq!(count(&a, "select count(*) from t"), 1, "{mode}");
    }
}

/// VACUUM and backups copy another page size byte for byte; half of the database would be cut off.
#[test]
fn a_database_of_other_pages_cannot_be_copied_into_a_volume() {
    let db = database(4096);
    db.connect()
        .unwrap()
        .0
        .execute_batch("create table t(v); insert into t values(zeroblob(100000));")
        .unwrap();
    let before = db.volume().tip().version();
    let main = Connection::open_in_memory().unwrap();
    main.execute_batch("pragma page_size = 8192").unwrap();
    main.execute_batch(&format!("attach 'file:{}?vfs=graft' as v", db.name())).unwrap();
    let vacuumed = main.execute_batch("vacuum v");
    let (a, _) = db.connect().unwrap();
    let check: String = a.query_row("pragma integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!((check.as_str(), count(&a, "select length(v) from t")), ("ok", 100_000));
    assert!(vacuumed.is_err());
    assert_eq!(db.volume().tip().version(), before);
}
