//! Volumes whose pages are elsewhere.

use futures::executor::block_on;
use graft::fetch::RemoteFetch;
use graft::format::meta::Meta;
use graft::remote::{Counting, Fault, Faulty, MemoryRemote, Remote, Request, SharedRemote};
use graft::volume::push;
use graft::{CommitId, catalog};

use super::*;
use crate::payload::Payload;

const VOLUME: VolumeId = VolumeId([8; 16]);

fn created(page_size: u32) -> Arc<MemoryRemote> {
    let remote = Arc::new(MemoryRemote::new());
    let meta = Meta { page_size: PageSize::new(page_size).unwrap(), parent: None };
    block_on(catalog::create(&*remote, &"v".parse().unwrap(), VOLUME, meta)).unwrap();
    remote
}

fn open(remote: &SharedRemote) -> Arc<Database> {
    let volume = block_on(Volume::open(&**remote, VOLUME, Options::default())).unwrap().volume;
    Database::new(Arc::new(volume), Arc::new(RemoteFetch::new(remote.clone())))
}

fn publish(remote: &dyn Remote, db: &Database) {
    let lsn = db.volume().status().lsn.0 as u128;
    let id = || CommitId((lsn + 1).to_le_bytes());
    block_on(push(remote, db.volume(), Payload::of_locals, id, 1)).unwrap();
}

fn pull(remote: &dyn Remote, db: &Database) {
    let pulled = block_on(db.volume().pull(remote)).unwrap();
    db.volume().absorb(pulled).unwrap();
}

/// 200 rows over some 30 leaves.
const FILL: &str = "create table t(id integer primary key, v); with recursive n(i) as (select 1 union all select i+1 from n where i < 200) insert into t select i, hex(zeroblob(300)) from n;";

#[test]
fn a_cold_point_query_fetches_its_path_and_no_more() {
    let store = created(4096);
    let remote = Counting::new(store.clone());
    let shared: SharedRemote = remote.clone();
    let a = open(&(store.clone() as SharedRemote));
    let (writer, _) = a.connect().unwrap();
    writer.execute_batch(FILL).unwrap();
    publish(&*store, &a);
    // Each in a commit, and so in a frame, of its own: page 1 and a leaf from the first push, then two.
    for id in [1, 200] {
        writer.execute("update t set v = 'x' where id = ?1", [id]).unwrap();
        publish(&*store, &a);
    }
    let b = open(&shared);
    remote.reset();
    let (reader, control) = b.connect().unwrap();
    // The header, at open: page 1, whose frame brings its 63 neighbours.
    let opened = remote.reset();
    assert_eq!((opened.ranges, opened.requests()), (1, 1));
    control.record();
    assert_eq!(count(&reader, "select length(v) from t where id = 100"), 600);
    assert_eq!(control.recorded().pages.len(), 2, "the root and a leaf");
    assert_eq!(remote.reset().requests(), 0);
    assert_eq!(count(&reader, "select length(v) from t where id = 1"), 1);
    assert_eq!(remote.reset().requests(), 1, "one leaf lies in another commit");
    assert_eq!(count(&reader, "select length(v) from t where id = 1"), 1);
    assert_eq!(count(&reader, "select sum(length(v)) from t"), 198 * 600 + 2);
    assert_eq!(remote.reset().requests(), 1, "the last leaf");
    writer.execute("update t set v = 'yy' where id = 1", []).unwrap();
    publish(&*store, &a);
    pull(&*remote, &b);
    remote.reset();
    assert_eq!(count(&reader, "select sum(length(v)) from t"), 198 * 600 + 3);
    assert_eq!(remote.reset().requests(), 1, "what did not change stays");
}

#[test]
fn two_thousand_one_row_commits_open_and_read() {
    let store = created(512);
    let shared: SharedRemote = store.clone();
    let a = open(&shared);
    let (writer, _) = a.connect().unwrap();
    writer.execute_batch("create table t(id integer primary key, v)").unwrap();
    publish(&*store, &a);
    for id in 1..2000 {
        writer.execute("insert into t values(?1, ?1 * 2)", [id]).unwrap();
        publish(&*store, &a);
    }
    let counting = Counting::new(store);
    let b = open(&(counting.clone() as SharedRemote));
    assert_eq!(b.volume().status().lsn.0, 2000);
    // Metadata, the newest keys of log and checkpoints, the heads: nobody wrote a checkpoint.
    assert_eq!(counting.reset().requests(), 1 + 2 + 2000);
    let (reader, _) = b.connect().unwrap();
    assert_eq!(count(&reader, "select sum(v) from t"), 1999 * 2000);
    let check: String = reader.query_row("pragma integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(check, "ok");
    // A page is fetched once, from the commit that last wrote it.
    assert!(counting.reset().ranges <= u64::from(b.volume().status().pages));
}

#[test]
fn a_failed_fetch_is_an_io_error_and_the_next_one_works() {
    let store = created(4096);
    let a = open(&(store.clone() as SharedRemote));
    a.connect().unwrap().0.execute_batch(FILL).unwrap();
    publish(&*store, &a);
    let (writer, _) = a.connect().unwrap();
    writer.execute("update t set v = 'x' where id = 200", []).unwrap();
    publish(&*store, &a);
    let faulty = Faulty::new(store, 1);
    let b = open(&(faulty.clone() as SharedRemote));
    let (reader, control) = b.connect().unwrap();
    let (second, _) = b.connect().unwrap();
    for fault in [Fault::FailBefore, Fault::FailAfter, Fault::Truncate, Fault::Flip] {
        faulty.fail_next(Request::GetRange, fault);
        let error = reader.query_row("select v from t where id = 200", [], |_| Ok(())).unwrap_err();
        assert_eq!(error.sqlite_error_code(), Some(ErrorCode::SystemIoFailure), "{fault:?}: {error}");
        let failure = control.take_failure().unwrap();
        assert!(failure.message.contains("/log/"), "{fault:?}: {failure}");
        assert_eq!(failure.damaged, matches!(fault, Fault::Truncate | Fault::Flip), "{fault:?}");
        assert_eq!(control.take_failure(), None);
        assert_eq!(count(&second, "select count(*) from t where id < 50"), 49);
        assert_eq!(count(&reader, "select length(v) from t where id = 5"), 600);
    }
    // In a write: the transaction ends, nothing is published, the lock is free.
    faulty.fail_next(Request::GetRange, Fault::FailBefore);
    let error = reader
        .execute_batch(
            "begin; update t set v = 'y' where id = 1; update t set v = 'y' where id = 200; commit",
        )
        .unwrap_err();
    assert_eq!(error.sqlite_error_code(), Some(ErrorCode::SystemIoFailure));
    assert_eq!(b.volume().status().ahead, 0);
    if !reader.is_autocommit() {
        reader.execute_batch("rollback").unwrap();
    }
    second.execute_batch("update t set v = 'z' where id = 200").unwrap();
    assert_eq!(count(&reader, "select length(v) from t where id = 200"), 1);
    assert_eq!(count(&reader, "select length(v) from t where id = 1"), 600);
}

/// Panics at its nth fetch, otherwise does as it is told.
#[derive(Debug)]
struct Panics {
    inner: RemoteFetch,
    at: std::sync::atomic::AtomicI32,
}
impl Fetch for Panics {
    fn fetch(&self, volume: &Volume, snapshot: &Snapshot, pages: &PageSet) -> Result<(), FetchError> {
        let left = self.at.fetch_sub(1, Ordering::Relaxed);
        assert!(left != 0, "a fetch that panics");
        self.inner.fetch(volume, snapshot, pages)
    }
}

#[test]
fn a_panic_in_a_fetch_is_an_error_and_no_abort() {
    let store = created(512);
    let shared: SharedRemote = store.clone();
    let a = open(&shared);
    a.connect().unwrap().0.execute_batch(FILL).unwrap();
    publish(&*store, &a);
    for at in 0..4 {
        let options = Options { cache_bytes: 64 * 1024, ..Options::default() };
        let volume = block_on(Volume::open(&*store, VOLUME, options)).unwrap().volume;
        let fetch = Panics { inner: RemoteFetch::new(shared.clone()), at: at.into() };
        let b = Database::new(Arc::new(volume), Arc::new(fetch));
        let mut failures = 0;
        for _ in 0..2 {
            let outcome = b.connect().map_err(|e| e.to_string()).and_then(|(reader, control)| {
                let sum =
                    reader.query_row("select sum(id) from t where v > ''", [], |row| row.get::<_, i64>(0));
                sum.map_err(|_| control.take_failure().map(|failure| failure.message).unwrap_or_default())
            });
            match outcome {
                Ok(sum) => assert_eq!(sum, 200 * 201 / 2),
                Err(error) => {
                    failures += 1;
                    assert!(at == 0 || error.contains("panicked"), "fetch {at}: {error}");
                }
            }
        }
        assert_eq!(failures, 1, "fetch {at}");
    }
}

/// The tip moved on between a transaction that changed nothing and its end; the connection then took
/// its old pages for those of the new tip.
#[test]
fn a_commit_that_publishes_nothing_does_not_adopt_a_tip_it_has_not_read() {
    let store = created(4096);
    let shared: SharedRemote = store.clone();
    let (a, b) = (open(&shared), open(&shared));
    let (writer, _) = a.connect().unwrap();
    writer.execute_batch("create table t(v); insert into t values('a')").unwrap();
    publish(&*store, &a);
    pull(&*store, &b);
    let (reader, _) = b.connect().unwrap();
    reader.execute_batch("begin immediate; update t set v = 'b'; update t set v = 'a'").unwrap();
    writer.execute_batch("update t set v = 'c'").unwrap();
    publish(&*store, &a);
    pull(&*store, &b);
    reader.execute_batch("commit").unwrap();
    assert_eq!(count(&reader, "select v = 'c' from t"), 1);
}

/// Upstream: a push or pull in mid-transaction made COMMIT fail and left the writer's lock behind.
#[test]
fn a_push_in_mid_transaction_disturbs_nothing() {
    let store = created(4096);
    let shared: SharedRemote = store.clone();
    let a = open(&shared);
    let (writer, _) = a.connect().unwrap();
    let (reader, _) = a.connect().unwrap();
    writer.execute_batch("create table t(v); insert into t values(1)").unwrap();
    reader.execute_batch("begin; select * from t").unwrap();
    writer.execute_batch("begin; insert into t values(2)").unwrap();
    publish(&*store, &a);
    assert_eq!(count(&reader, "select count(*) from t"), 1);
    writer.execute_batch("insert into t values(3); commit").unwrap();
    assert_eq!(a.volume().status().ahead, 1);
    assert_eq!(count(&reader, "select count(*) from t"), 1);
    reader.execute_batch("commit").unwrap();
    assert_eq!(count(&reader, "select count(*) from t"), 3);
    publish(&*store, &a);
    let (newcomer, _) = open(&shared).connect().unwrap();
    assert_eq!(count(&newcomer, "select sum(v) from t"), 6);
    // A pull in mid-transaction: COMMIT says so, and the next transaction works.
    let other = open(&shared);
    other.connect().unwrap().0.execute_batch("insert into t values(4)").unwrap();
    publish(&*store, &other);
    writer.execute_batch("begin; insert into t values(5)").unwrap();
    pull(&*store, &a);
    let error = writer.execute_batch("commit").unwrap_err();
    assert_eq!(error.sqlite_error_code(), Some(ErrorCode::DatabaseBusy), "{error}");
    reader.execute_batch("insert into t values(6)").unwrap();
    assert_eq!(count(&writer, "select sum(v) from t"), 16);
}
