//! Modes of SQLite in which a volume could not keep its word.

use super::*;

fn attached(mode: &str, databases: &[(&str, &Arc<Database>)]) -> Connection {
    let a = Connection::open_in_memory().unwrap();
    for (name, db) in databases {
        a.execute_batch(&format!("attach 'file:{}?vfs=graft' as {name}", db.name())).unwrap();
    }
    // The main database is no volume, so the VFS is not asked.
    a.execute_batch(mode).unwrap();
    a
}

#[test]
fn journal_mode_answers_what_is_in_force() {
    let db = database(4096);
    let (a, _) = db.connect().unwrap();
    for asked in ["", "= wal", "= memory", "= off", "= truncate", "= persist", "('wal')", "= nonsense"] {
        let mode: String =
            a.query_row(&format!("pragma journal_mode {asked}"), [], |row| row.get(0)).unwrap();
        assert_eq!(mode, "delete", "{asked}");
    }
    a.execute_batch("create table t(v); begin; insert into t values(1); rollback").unwrap();
    assert_eq!(count(&a, "select count(*) from t"), 0);
}

/// SQLite takes any number for `synchronous`, modulo 8: with `8` no transaction was ever synced, and so
/// none was published, while every COMMIT succeeded.
#[test]
fn every_way_to_say_synchronous_off_is_refused() {
    let db = database(4096);
    let (a, _) = db.connect().unwrap();
    let (b, _) = db.connect().unwrap();
    a.execute_batch("create table t(v)").unwrap();
    let mut rows = 0;
    let levels = [
        "off", "0", "no", "false", "8", "16", "256", "00", "0x0", "-0", "+0", "OFF", "'off'", "banana", "4",
        "7",
    ];
    for level in
        levels.into_iter().chain(["normal", "full", "extra", "1", "2", "3", "on", "ON", "yes", "true"])
    {
        let refused = a.execute_batch(&format!("pragma synchronous = {level}")).is_err();
        assert_eq!(refused, levels.contains(&level), "{level}");
        a.execute_batch("insert into t values(1)").unwrap();
        rows += 1;
        assert_eq!(count(&b, "select count(*) from t"), rows, "after synchronous = {level}");
    }
}

/// In exclusive mode SQLite raises the change counter once, and never unlocks: every transaction but
/// the first was acknowledged and published nothing.
#[test]
fn exclusive_locking_loses_no_commit_in_silence() {
    let db = database(4096);
    db.connect().unwrap().0.execute_batch("create table t(v)").unwrap();
    let a = attached("pragma locking_mode = exclusive", &[("v", &db)]);
    let mut acknowledged = 0;
    for _ in 0..3 {
        match a.execute_batch("insert into v.t values(1)") {
            Ok(()) => acknowledged += 1,
            Err(error) => assert_eq!(error.sqlite_error_code(), Some(ErrorCode::SystemIoFailure), "{error}"),
        }
    }
    let (b, _) = db.connect().unwrap();
    assert_eq!(count(&b, "select count(*) from t"), acknowledged);
    drop(a);
    b.execute_batch("insert into t values(2)").unwrap();
}

/// Without a journal file SQLite makes no super-journal either, and the first volume was published
/// when the second failed.
#[test]
fn two_volumes_in_one_transaction_are_refused_in_every_journal_mode() {
    for mode in ["delete", "truncate", "persist", "memory", "off"] {
        let (one, two) = (database(4096), database(4096));
        for db in [&one, &two] {
            db.connect().unwrap().0.execute_batch("create table t(v)").unwrap();
        }
        let a = attached(&format!("pragma journal_mode = {mode}"), &[("one", &one), ("two", &two)]);
        for round in 0..2 {
            let rows = |db: &Arc<Database>| count(&db.connect().unwrap().0, "select count(*) from t");
            let both = "begin; insert into one.t values(1); insert into two.t values(2); commit";
            assert!(a.execute_batch(both).is_err(), "{mode}, round {round}");
            if !a.is_autocommit() {
                a.execute_batch("rollback").unwrap();
            }
            assert_eq!((rows(&one), rows(&two)), (round, round), "{mode}, round {round}");
            a.execute_batch("insert into one.t values(3)").unwrap();
            a.execute_batch("insert into two.t select v from one.t limit 1").unwrap();
            assert_eq!((rows(&one), rows(&two)), (round + 1, round + 1), "{mode}, round {round}");
        }
    }
}

/// Two files with one identity were one writer: each published over the other.
#[test]
fn a_connections_own_file_cannot_be_opened_twice() {
    let db = database(4096);
    let (a, _) = db.connect().unwrap();
    a.execute_batch("create table t(v)").unwrap();
    let path: String = a.query_row("select file from pragma_database_list", [], |row| row.get(0)).unwrap();
    assert!(path.starts_with(db.name()));
    let error = a.execute("attach ?1 as again", [&path]).unwrap_err();
    assert_eq!(error.sqlite_error_code(), Some(ErrorCode::CannotOpen), "{error}");
    // By its name it is one more connection, which waits like any other.
    a.execute_batch(&format!(
        "attach 'file:{}?vfs=graft' as again; insert into again.t values(1)",
        db.name()
    ))
    .unwrap();
    assert_eq!(count(&a, "select count(*) from main.t"), 1);
}
