//! Readers on eight threads beside a writer, and a pusher.

use std::sync::Barrier;
use std::sync::atomic::AtomicBool;

use rand::{Rng, SeedableRng, rngs::StdRng};

use super::*;

const ACCOUNTS: i64 = 200;
const READERS: usize = 8;
const TRANSFERS: u32 = 400;

/// Every transaction moves money between accounts and writes a journal row: the sum of all accounts
/// never changes, and what a reader sees in one transaction belongs together.
#[test]
fn readers_see_whole_transactions_beside_a_writer() {
    let db = database(512);
    let (writer, _) = db.connect().unwrap();
    writer.execute_batch("create table account(id integer primary key, money, pad); create table journal(id integer primary key, sum); pragma cache_size = 10;").unwrap();
    for id in 0..ACCOUNTS {
        writer.execute("insert into account values(?1, 100, zeroblob(60))", [id]).unwrap();
    }
    let (done, start) = (AtomicBool::new(false), Barrier::new(READERS + 1));
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..READERS)
            .map(|number| {
                let (db, done, start) = (&db, &done, &start);
                scope.spawn(move || {
                    let (reader, _) = db.connect().unwrap();
                    if number % 2 == 0 {
                        reader.execute_batch("pragma cache_size = 5").unwrap();
                    }
                    start.wait();
                    let (mut rounds, mut last) = (0, 0);
                    while !done.load(Ordering::Relaxed) || rounds < 3 {
                        reader.execute_batch("begin").unwrap();
                        let sum = count(&reader, "select sum(money) from account");
                        let transfers = count(&reader, "select count(*) from journal");
                        let moved = count(&reader, "select coalesce(sum(abs(money - 100)), 0) from account");
                        let again = count(&reader, "select sum(money) from account");
                        reader.execute_batch("commit").unwrap();
                        assert_eq!((sum, again), (100 * ACCOUNTS, 100 * ACCOUNTS), "after {transfers}");
                        assert!(transfers >= last, "time went back from {last} to {transfers}");
                        assert!(moved <= 2 * 50 * transfers);
                        (rounds, last) = (rounds + 1, transfers);
                        if rounds % 20 == 0 {
                            let check: String =
                                reader.query_row("pragma quick_check", [], |row| row.get(0)).unwrap();
                            assert_eq!(check, "ok");
                        }
                    }
                    rounds
                })
            })
            .collect();
        start.wait();
        let mut rng = StdRng::seed_from_u64(1);
        for transfer in 1..=TRANSFERS {
            let (from, to) = (rng.random_range(0..ACCOUNTS), rng.random_range(0..ACCOUNTS));
            let money = rng.random_range(1..=50);
            writer.execute_batch("begin").unwrap();
            writer.execute("update account set money = money - ?1 where id = ?2", [money, from]).unwrap();
            writer.execute("update account set money = money + ?1 where id = ?2", [money, to]).unwrap();
            writer.execute("insert into journal values(null, ?1)", [money]).unwrap();
            writer.execute_batch(if transfer % 10 == 0 { "rollback" } else { "commit" }).unwrap();
        }
        done.store(true, Ordering::Relaxed);
        for reader in readers {
            assert!(reader.join().unwrap() >= 3);
        }
    });
    assert_eq!(count(&writer, "select count(*) from journal"), i64::from(TRANSFERS) * 9 / 10);
}

/// Writers on several threads: every transaction that was acknowledged counts, and no other does.
#[test]
fn writers_on_many_threads_lose_nothing() {
    let db = database(4096);
    db.connect().unwrap().0.execute_batch("create table t(n); insert into t values(0)").unwrap();
    let acknowledged = std::sync::atomic::AtomicI64::new(0);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (db, acknowledged) = (&db, &acknowledged);
            scope.spawn(move || {
                let (connection, _) = db.connect().unwrap();
                connection.busy_timeout(std::time::Duration::from_secs(20)).unwrap();
                for round in 0..50 {
                    // A deferred transaction that reads first may be told BUSY_SNAPSHOT; it begins again.
                    let begin = if (thread + round) % 2 == 0 { "begin immediate" } else { "begin" };
                    let sql = format!("{begin}; update t set n = n + (select 1 from t); commit");
                    match connection.execute_batch(&sql) {
                        Ok(()) => drop(acknowledged.fetch_add(1, Ordering::Relaxed)),
                        Err(error) => {
                            assert_eq!(error.sqlite_error_code(), Some(ErrorCode::DatabaseBusy), "{error}");
                            if !connection.is_autocommit() {
                                connection.execute_batch("rollback").unwrap();
                            }
                        }
                    }
                }
            });
        }
    });
    let (connection, _) = db.connect().unwrap();
    let acknowledged = acknowledged.into_inner();
    assert_eq!(count(&connection, "select n from t"), acknowledged);
    assert!(acknowledged >= 100, "only {acknowledged} of 200 were acknowledged");
}
