//! Transactions larger than their memory budget, and what a failed or disturbed COMMIT leaves.

use futures::executor::block_on;
use graft::catalog;
use graft::fetch::RemoteFetch;
use graft::format::meta::Meta;
use graft::remote::{MemoryRemote, SharedRemote};
use graft::store::{Batch, Durability, MemoryStore, ReplicaStore, Space, StoreError};
use graft::volume::push;
use graft::{CommitId, PageSize};

use super::*;
use crate::payload::Payload;

/// A volume whose transactions keep two pages in memory, and the folder that takes the rest.
fn tiny(page_size: u32) -> (Arc<Database>, tempfile::TempDir, SharedRemote) {
    with_budget(page_size, 2)
}

fn with_budget(page_size: u32, pages: usize) -> (Arc<Database>, tempfile::TempDir, SharedRemote) {
    let folder = tempfile::tempdir().unwrap();
    let remote: SharedRemote = Arc::new(MemoryRemote::new());
    let meta = Meta { page_size: PageSize::new(page_size).unwrap(), parent: None };
    let id = VolumeId([8; 16]);
    block_on(catalog::create(&*remote, &"v".parse().unwrap(), id, meta)).unwrap();
    let volume = block_on(Volume::open(&*remote, id, Options::default())).unwrap().volume;
    let spilling =
        Spilling { memory_bytes: pages * page_size as usize, dir: Some(folder.path().to_path_buf()) };
    let settings = Settings { spilling: Arc::new(spilling), ..Settings::default() };
    let fetch = Arc::new(RemoteFetch::new(remote.clone()));
    (Database::with(Arc::new(volume), fetch, settings), folder, remote)
}

fn check(connection: &Connection) -> String {
    connection.query_row("pragma integrity_check", [], |row| row.get(0)).unwrap()
}

const MANY: &str = "with recursive n(i) as (select 1 union all select i + 1 from n where i < 400)
    insert into t(v) select hex(randomblob(500)) from n;";

#[test]
fn a_transaction_larger_than_its_budget_spills_and_commits() {
    for page_size in [512, 4096, 65536] {
        let (db, folder, remote) = tiny(page_size);
        let (a, _) = db.connect().unwrap();
        let (b, _) = db.connect().unwrap();
        a.execute_batch("pragma cache_size = 4; create table t(id integer primary key, v); begin").unwrap();
        a.execute_batch(MANY).unwrap();
        a.execute_batch("savepoint s; delete from t where id % 2; rollback to s; update t set v = v || 'x'")
            .unwrap();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "the spill file has no name");
        assert_eq!(count(&b, "select count(*) from t"), 0, "not committed yet");
        assert_eq!(count(&a, "select count(*) from t where v like '%x'"), 400);
        a.execute_batch("commit").unwrap();
        assert_eq!(count(&b, "select count(*) from t where v like '%x'"), 400);
        assert_eq!(check(&b), "ok");
        // Rolled back after it spilled: nothing of it is left.
        a.execute_batch("begin; delete from t").unwrap();
        a.execute_batch(MANY).unwrap();
        a.execute_batch("rollback").unwrap();
        assert_eq!(count(&b, "select count(*) from t where v like '%x'"), 400);
        // The pages outlive the transaction, the connection and the database: they are pushed later.
        let volume = db.volume().clone();
        drop((a, b, db));
        block_on(push(&*remote, &volume, Payload::of_locals, || CommitId([1; 16]), 1)).unwrap();
        let clone = block_on(Volume::open(&*remote, volume.id(), Options::default())).unwrap().volume;
        let clone = Database::new(Arc::new(clone), Arc::new(RemoteFetch::new(remote)));
        let (c, _) = clone.connect().unwrap();
        assert_eq!((count(&c, "select count(*) from t"), check(&c).as_str()), (400, "ok"));
    }
}

#[test]
fn vacuum_auto_vacuum_and_temporary_tables_spill_too() {
    let (db, _folder, _) = tiny(1024);
    let (a, _) = db.connect().unwrap();
    a.execute_batch(
        "pragma cache_size = 4; pragma temp_store = file; create table t(id integer primary key, v)",
    )
    .unwrap();
    a.execute_batch(MANY).unwrap();
    let before = db.volume().tip().pages();
    a.execute_batch("delete from t where id > 20; vacuum").unwrap();
    assert!(db.volume().tip().pages() < before / 2);
    for mode in ["full", "incremental"] {
        a.execute_batch(&format!("pragma auto_vacuum = {mode}; vacuum")).unwrap();
        let code: i64 = a.query_row("pragma auto_vacuum", [], |row| row.get(0)).unwrap();
        assert_eq!(code, if mode == "full" { 1 } else { 2 });
        a.execute_batch(MANY).unwrap();
        let before = db.volume().tip().pages();
        a.execute_batch("delete from t where id > 20").unwrap();
        let mut vacuum = a.prepare("pragma incremental_vacuum").unwrap();
        let mut steps = vacuum.query([]).unwrap();
        while steps.next().unwrap().is_some() {}
        drop(steps);
        drop(vacuum);
        assert!(db.volume().tip().pages() < before / 2, "{mode}");
        assert_eq!((check(&a).as_str(), count(&a, "select count(*) from t")), ("ok", 20), "{mode}");
    }
    a.execute_batch("create temp table big as select a.v from t a, t b, t c order by random()").unwrap();
    assert_eq!(count(&a, "select count(*) from big"), 8000);
    let mode: String = a.query_row("pragma locking_mode = normal", [], |row| row.get(0)).unwrap();
    assert_eq!(mode, "normal");
    assert!(a.execute_batch("pragma locking_mode = exclusive").unwrap_err().to_string().contains("refused"));
}

/// A disk that is full, or gone.
#[test]
fn where_nothing_can_be_spilled_the_transaction_fails_and_the_next_one_works() {
    let (db, folder, _) = with_budget(4096, 12);
    let (a, control) = db.connect().unwrap();
    a.execute_batch("pragma cache_size = 4; create table t(id integer primary key, v)").unwrap();
    drop(folder);
    assert!(a.execute_batch(&format!("begin; {MANY} commit;")).is_err());
    assert!(control.take_failure().unwrap().message.contains("larger than its memory budget"));
    if !a.is_autocommit() {
        a.execute_batch("rollback").unwrap();
    }
    db.connect().unwrap().0.execute_batch("insert into t values(1, 'small')").unwrap();
    assert_eq!(count(&a, "select count(*) from t"), 1);
}

/// A store whose disk fails at will.
#[derive(Debug, Default)]
struct Breaking {
    inner: MemoryStore,
    broken: std::sync::atomic::AtomicBool,
}

impl ReplicaStore for Breaking {
    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        self.inner.get(space, key)
    }
    fn scan(&self, space: Space, prefix: &[u8]) -> Result<Vec<(Bytes, Bytes)>, StoreError> {
        self.inner.scan(space, prefix)
    }
    fn write(&self, batch: Batch, durability: Durability) -> Result<(), StoreError> {
        if self.broken.load(Ordering::Relaxed) {
            return Err(StoreError::Failed { dir: "%s".into(), message: "no %s left".into() });
        }
        self.inner.write(batch, durability)
    }
}

/// Upstream kept the writer's lock: every later write was SQLITE_BUSY until a restart.
#[test]
fn a_commit_that_fails_leaves_no_lock_behind() {
    let store = Arc::new(Breaking::default());
    let options = Options { store: Some(store.clone()), ..Options::default() };
    let volume = Volume::load(VolumeId([1; 16]), PageSize::DEFAULT, options).unwrap().volume;
    let db = Database::new(Arc::new(volume), Arc::new(NothingMissing));
    let (a, control) = db.connect().unwrap();
    let (b, _) = db.connect().unwrap();
    a.execute_batch("create table t(v); insert into t values(1)").unwrap();
    for round in 0..3 {
        store.broken.store(true, Ordering::Relaxed);
        assert!(a.execute_batch("begin; insert into t values(2); commit").is_err());
        assert!(control.take_failure().unwrap().message.contains("no %s left"));
        if !a.is_autocommit() {
            a.execute_batch("rollback").unwrap();
        }
        store.broken.store(false, Ordering::Relaxed);
        assert!(!db.is_writing());
        b.execute_batch("insert into t values(3)").unwrap();
        a.execute_batch("insert into t values(4)").unwrap();
        assert_eq!(count(&b, "select count(*) from t"), 3 + 2 * round);
        assert_eq!(count(&b, "select count(*) from t where v = 2"), 0);
    }
}

/// Push and pull in the middle of a transaction: the one changes nothing for it, the other makes its
/// COMMIT fail where it moved the volume on. Either way the next transaction works.
#[test]
fn a_push_or_a_pull_in_mid_transaction_does_no_harm() {
    let (db, _folder, remote) = tiny(4096);
    let (a, _) = db.connect().unwrap();
    a.execute_batch("create table t(v)").unwrap();
    let mut id = 0u8;
    let mut publish = |db: &Arc<Database>| {
        id += 1;
        block_on(push(&*remote, db.volume(), Payload::of_locals, || CommitId([id; 16]), 1)).unwrap();
    };
    a.execute_batch("begin; insert into t values(1)").unwrap();
    publish(&db);
    a.execute_batch("commit").unwrap();
    publish(&db);
    // Another replica commits; ours pulls while a transaction is open on it.
    let other = block_on(Volume::open(&*remote, db.volume().id(), Options::default())).unwrap().volume;
    let other = Database::new(Arc::new(other), Arc::new(RemoteFetch::new(remote.clone())));
    other.connect().unwrap().0.execute_batch("insert into t values(10)").unwrap();
    publish(&other);
    a.execute_batch("begin; insert into t values(2)").unwrap();
    let pulled = block_on(db.volume().pull(&*remote)).unwrap();
    db.volume().absorb(pulled).unwrap();
    let error = a.execute_batch("commit").unwrap_err();
    assert_eq!(error.sqlite_error_code(), Some(ErrorCode::DatabaseBusy), "{error}");
    if !a.is_autocommit() {
        a.execute_batch("rollback").unwrap();
    }
    assert!(!db.is_writing());
    a.execute_batch("insert into t values(3)").unwrap();
    assert_eq!(count(&a, "select sum(v) from t"), 1 + 10 + 3);
    publish(&db);
}
