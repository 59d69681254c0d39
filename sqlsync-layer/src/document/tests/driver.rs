//! Documents with their task, on tokio: in the background, offline, and from a kept directory.

use std::time::Duration;

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use graft::Lsn;
use graft::checkpoint::Policy as Checkpoints;
use graft::remote::{Answer, Counting, Faulty, Layer, Remote, RemoteError, Request};
use graft::store::Space;
use tokio::sync::watch;

use super::*;
use crate::document::driver::task::Told;
use crate::document::{Document, DocumentError, DocumentStatus, Options};
use crate::session::client::Status as Connection;
use crate::transfer::checkpoint_if_due;

fn quick() -> Options {
    Options { poll: Duration::from_millis(5), ..Options::default() }
}

async fn open(remote: &SharedRemote, store: Option<SharedStore>, options: Options) -> Document {
    let name: VolumeName = "t".parse().unwrap();
    Document::open(remote.clone(), &name, store, Arc::new(TestModules), options).await.unwrap()
}

/// Waits until the status is as wanted.
async fn until(document: &Document, wanted: impl FnMut(&DocumentStatus) -> bool) {
    let mut status = document.status();
    let reached = tokio::time::timeout(Duration::from_secs(20), status.wait_for(wanted)).await;
    reached.unwrap_or_else(|_| panic!("{document:?}")).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn documents_sync_in_the_background_and_rows_follow() {
    let world = tokio::task::spawn_blocking(World::deployed).await.unwrap();
    let (a, b) = (open(&world.remote, None, quick()).await, open(&world.remote, None, quick()).await);
    let mut events = a.events();
    let mut rows = b.subscribe("select id, v from t order by id", Params::default(), None).await.unwrap();
    assert!(rows.next().await.unwrap().rows.is_empty());
    let seq = a.mutate("sql", json!({"sql": "insert into t values(1, 'from a')"})).await.unwrap();
    assert_eq!(rows.next().await.unwrap().rows.len(), 1);
    until(&a, |status| status.standing.ahead == 0).await;
    assert!(matches!(events.recv().await.unwrap(), Event::Durable { seq: durable, .. } if durable == seq));
    assert_eq!(b.execute("update t set v = 'from b'").await, Ok(1));
    until(&b, |status| status.standing.ahead == 0).await;
    a.sync().await.unwrap();
    let seen = a.query("select v from t", Params::default()).await.unwrap();
    assert_eq!(seen.rows, [[Value::Text("from b".into())]]);
    assert!(matches!(a.mutate("bump", json!([1])).await, Err(MutateError::Rejected(_))));
}

/// A directory that was used before opens without the network, takes mutations, and sends them later.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kept_document_opens_and_works_offline_and_says_how_it_stands() {
    let faulty = Faulty::new(Arc::new(MemoryRemote::new()), 1);
    let remote: SharedRemote = faulty.clone();
    let remote_of = remote.clone();
    tokio::task::spawn_blocking(move || {
        let world = World::with(remote_of);
        let mut first = world.document("deployer", Config::default());
        first.deploy(MODULE, 1, 1).unwrap();
        world.sync(&mut first);
    })
    .await
    .unwrap();
    let store: SharedStore = Arc::new(MemoryStore::default());
    let by_hand = Options { background: false, follow: true, ..quick() };
    let a = open(&remote, Some(store.clone()), by_hand.clone()).await;
    // Everything that a pull changed is here afterwards.
    let b = open(&remote, None, by_hand.clone()).await;
    b.mutate("bump", json!({"id": 20})).await.unwrap();
    b.sync().await.unwrap();
    a.sync().await.unwrap();
    a.query("select sum(n) from counter", Params::default()).await.unwrap();
    drop(a);

    faulty.set_unreachable(true);
    let a = open(&remote, Some(store.clone()), quick()).await;
    a.mutate("bump", json!({"id": 20})).await.unwrap();
    a.mutate("bump", json!({"id": 21})).await.unwrap();
    until(&a, |status| status.error.is_some() && status.standing.ahead == 2).await;
    let shown = a.status().borrow().to_string();
    assert!(shown.starts_with("ahead 2, behind 0, offline: "), "{shown}");
    assert!(store.scan(Space::Timeline, b"").unwrap().len() >= 4);
    faulty.set_unreachable(false);
    until(&a, |status| status.error.is_none() && status.standing.ahead == 0).await;
    b.sync().await.unwrap();
    let sum = b.query("select sum(n) from counter", Params::default()).await.unwrap();
    assert_eq!(sum.rows, [[Value::Integer(3)]]);
}

/// A volume with the module in force, behind this remote.
async fn deployed(remote: &SharedRemote) {
    let remote = remote.clone();
    let deploying = tokio::task::spawn_blocking(move || {
        let world = World::with(remote);
        let mut first = world.document("deployer", Config::default());
        first.deploy(MODULE, 1, 1).unwrap();
        world.sync(&mut first);
    });
    deploying.await.unwrap();
}

/// A store whose page frames cannot be had, or nothing at all; everything else goes on.
#[derive(Debug)]
struct Shut {
    inner: SharedRemote,
    frames: AtomicBool,
    all: AtomicBool,
    refused: AtomicU32,
}

impl Shut {
    fn of(inner: &SharedRemote) -> Arc<Shut> {
        let (frames, all, refused) = Default::default();
        Arc::new(Shut { inner: inner.clone(), frames, all, refused })
    }
}

/// Two documents of one volume, the first behind a [`Shut`].
async fn shut_and_open(first: Options, second: Options) -> (Arc<Shut>, Document, Document) {
    let inner: SharedRemote = Arc::new(MemoryRemote::new());
    deployed(&inner).await;
    let shut = Shut::of(&inner);
    let a = open(&(shut.clone() as SharedRemote), None, first).await;
    (shut, a, open(&inner, None, second).await)
}

#[async_trait::async_trait]
impl Layer for Shut {
    fn inner(&self) -> &dyn Remote {
        &*self.inner
    }
    fn around<'a, T: Send + 'a>(&'a self, _: Request, key: &'a str, sent: Answer<'a, T>) -> Answer<'a, T> {
        match self.all.load(Ordering::Relaxed) {
            true => {
                Box::pin(async { Err(RemoteError::Unavailable { key: key.into(), message: "shut".into() }) })
            }
            false => sent,
        }
    }
    async fn get_range(&self, key: &str, range: std::ops::Range<u64>) -> Result<bytes::Bytes, RemoteError> {
        // A head is read from the beginning of its object.
        if self.frames.load(Ordering::Relaxed) && range.start > 0 {
            self.refused.fetch_add(1, Ordering::Relaxed);
            return Err(RemoteError::Unavailable { key: key.into(), message: "shut".into() });
        }
        self.around(Request::GetRange, key, self.inner.get_range(key, range)).await
    }
}

/// Does what `bump` does to counter 20, and takes some ten milliseconds.
const SLOW: &str = "update counter set n = n + 1 where id = (with recursive i(n) as (select 1 union all \
                    select n + 1 from i where n < 100000) select count(*) - 99980 from i)";
const SUM: &str = "select sum(n) from counter";

/// What others changed is here after a round, without a look at it, and can be read offline: also what an
/// earlier round could not fetch, and also where the round passed over so many commits that none of them says
/// what it changed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_reads_offline_what_others_changed() {
    let by_hand = Options { background: false, follow: true, ..quick() };
    let (shut, a, b) = shut_and_open(by_hand.clone(), Options { follow: false, ..by_hand }).await;
    // All of it is here once; from then on it follows.
    a.query(SUM, Params::default()).await.unwrap();
    let offline = async |expected: i64| {
        shut.all.store(true, Ordering::Relaxed);
        let sum = a.query(SUM, Params::default()).await;
        assert_eq!(sum.map(|sum| sum.rows), Ok(vec![vec![Value::Integer(expected)]]));
        shut.all.store(false, Ordering::Relaxed);
    };
    b.mutate("bump", json!({"id": 20})).await.unwrap();
    b.sync().await.unwrap();
    a.sync().await.unwrap();
    offline(1).await;

    b.mutate("bump", json!({"id": 30})).await.unwrap();
    b.sync().await.unwrap();
    shut.frames.store(true, Ordering::Relaxed);
    assert!(matches!(a.sync().await, Err(DocumentError::Fetch(_))));
    shut.frames.store(false, Ordering::Relaxed);
    b.execute("insert into t values(1, 'elsewhere')").await.unwrap();
    b.sync().await.unwrap();
    a.sync().await.unwrap();
    offline(2).await;

    for id in 0..150 {
        b.mutate("bump", json!({"id": 1 + id % 3})).await.unwrap();
        b.sync().await.unwrap();
    }
    checkpoint_if_due(&*shut.inner, VOLUME, &Checkpoints { commits: 1, bytes: 0 }).await;
    let pulled = a.with(|replica| replica.volume().clone()).await.pull(&*shut.inner).await.unwrap();
    assert!(pulled.jump.is_some(), "it is not far enough behind");
    a.sync().await.unwrap();
    offline(152).await;
}

/// While a coordinator is connected, which says when the log has grown, nobody looks at the log but when it
/// says so; where it is not, the document looks by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_document_that_is_told_does_not_poll() {
    let remote: SharedRemote = Arc::new(MemoryRemote::new());
    deployed(&remote).await;
    let b = open(&remote, None, Options { background: false, ..quick() }).await;
    let counting = Counting::new(remote.clone());
    let options = Options { poll: Duration::from_micros(10), background: false, ..Options::default() };
    let options = Options { backstop: Duration::from_secs(3600), ..options };
    let a = open(&(counting.clone() as SharedRemote), None, options.clone()).await;
    let live = Connection::Live { volume: VOLUME, module: None };
    let (heads, connection) = (watch::Sender::new(Lsn::ZERO), watch::Sender::new(live.clone()));
    let told = Told { heads: heads.subscribe(), connection: connection.subscribe() };
    let before = counting.snapshot().lists;
    let _alive = a.keep_in_sync(told, &options);
    let mut rows = a.subscribe(SUM, Params::default(), None).await.unwrap();
    rows.next().await.unwrap();
    const TOLD: u64 = 5;
    for sum in 1..=TOLD as i64 {
        // Takes longer than many polls.
        b.mutate("sql", json!({"sql": SLOW})).await.unwrap();
        b.sync().await.unwrap();
        heads.send_replace(b.status().borrow().standing.lsn);
        let shown = tokio::time::timeout(Duration::from_secs(20), rows.next()).await;
        assert_eq!(shown.unwrap().unwrap().rows, [[Value::Integer(sum)]]);
    }
    // The first round of all, and one each time it was told; two words may be one.
    let lists = counting.snapshot().lists - before;
    assert!(lists <= 1 + TOLD, "{lists} looks");

    // What happened while the connection was down is looked at, nobody being there to say it; and so is what
    // happened before it was up again.
    connection.send_replace(Connection::Connecting);
    b.mutate("bump", json!({"id": 20})).await.unwrap();
    b.sync().await.unwrap();
    let shown = tokio::time::timeout(Duration::from_secs(20), rows.next()).await;
    assert_eq!(shown.unwrap().unwrap().rows, [[Value::Integer(6)]]);
    connection.send_replace(live);
}

/// What the coordinator says of the log is in the status at once, also where the log itself cannot be read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_document_says_how_far_behind_it_is_when_it_is_told() {
    let options = Options { background: false, poll: Duration::from_secs(3600), ..Options::default() };
    let (shut, a, b) = shut_and_open(options.clone(), options.clone()).await;
    let (heads, connection) = (watch::Sender::new(Lsn::ZERO), watch::Sender::new(Connection::Connecting));
    let told = Told { heads: heads.subscribe(), connection: connection.subscribe() };
    shut.all.store(true, Ordering::Relaxed);
    a.mutate("bump", json!({"id": 1})).await.unwrap();
    let _alive = a.keep_in_sync(told, &options);
    for behind in 1..=2 {
        b.mutate("bump", json!({"id": 20})).await.unwrap();
        b.sync().await.unwrap();
        heads.send_replace(b.status().borrow().standing.lsn);
        until(&a, |status| status.standing.behind == behind && status.error.is_some()).await;
    }
    let shown = a.status().borrow().to_string();
    assert!(shown.starts_with("ahead 1, behind 2, offline: "), "{shown}");
    shut.all.store(false, Ordering::Relaxed);
    until(&a, |status| status.standing.ahead == 0 && status.error.is_none()).await;
    assert_eq!(a.status().borrow().standing.behind, 0);
}

/// A rebase lets the app in every few milliseconds, however long each mutation takes to run again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_app_comes_in_while_slow_mutations_run_again() {
    let remote: SharedRemote = Arc::new(MemoryRemote::new());
    deployed(&remote).await;
    let by_hand = Options { background: false, policy: Policy::Replay, ..quick() };
    let (a, b) = (open(&remote, None, by_hand.clone()).await, open(&remote, None, by_hand).await);
    for _ in 0..50 {
        a.mutate("sql", json!({"sql": SLOW})).await.unwrap();
    }
    b.mutate("bump", json!({"id": 20})).await.unwrap();
    b.sync().await.unwrap();
    let syncing = tokio::spawn({
        let a = a.clone();
        async move { a.sync().await }
    });
    let mut came_in = 0;
    while !syncing.is_finished() {
        came_in += u32::from(a.with(|replica| replica.status().behind > 0).await);
    }
    syncing.await.unwrap().unwrap();
    assert_eq!(a.query(SUM, Params::default()).await.unwrap().rows, [[Value::Integer(51)]]);
    println!("the app came in {came_in} times");
    assert!(came_in > 3, "{came_in}");
}

/// A live query whose pages could not be had after a round is tried again soon, although nothing else happens.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_live_query_that_lacks_pages_is_tried_again_by_itself() {
    let options = Options { background: false, poll: Duration::from_secs(3600), ..Options::default() };
    let (shut, a, b) = shut_and_open(options.clone(), options.clone()).await;
    let mut rows = a.subscribe(SUM, Params::default(), None).await.unwrap();
    rows.next().await.unwrap();
    b.mutate("bump", json!({"id": 20})).await.unwrap();
    b.sync().await.unwrap();
    shut.frames.store(true, Ordering::Relaxed);
    a.sync().await.unwrap();
    assert!(a.with(|replica| replica.has_stale()).await, "its pages were here");
    let (_heads, heads) = watch::channel(Lsn::ZERO);
    let (_connection, connection) = watch::channel(Connection::Connecting);
    let _alive = a.keep_in_sync(Told { heads, connection }, &options);
    // More often than one round asks.
    let before = shut.refused.load(Ordering::Relaxed);
    let tries = tokio::time::timeout(Duration::from_secs(20), async {
        while shut.refused.load(Ordering::Relaxed) < before + 20 {
            tokio::task::yield_now().await;
        }
    });
    tries.await.unwrap();
    shut.frames.store(false, Ordering::Relaxed);
    let shown = tokio::time::timeout(Duration::from_secs(20), rows.next()).await;
    assert_eq!(shown.unwrap().unwrap().rows, [[Value::Integer(1)]]);
}

/// Panics the first time.
struct Panics(AtomicBool);

impl Handler for Panics {
    fn resolve(&self, _: &Dispute<'_>) -> Resolution {
        assert!(self.0.swap(true, Ordering::Relaxed), "the app made a mistake");
        Resolution::Default
    }
}

/// A handler that panics ends one round of the background sync, which is told and tried again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handler_that_panics_does_not_end_the_background_sync() {
    let remote: SharedRemote = Arc::new(MemoryRemote::new());
    deployed(&remote).await;
    let handler: Arc<dyn Handler> = Arc::new(Panics(AtomicBool::new(false)));
    let b = open(&remote, None, Options { background: false, ..quick() }).await;
    let a = open(&remote, None, Options { handler: Some(handler), background: false, ..quick() }).await;
    a.mutate("bump", json!({"id": 20})).await.unwrap();
    b.mutate("bump", json!({"id": 20})).await.unwrap();
    b.sync().await.unwrap();
    let (_heads, heads) = watch::channel(Lsn::ZERO);
    let (_connection, connection) = watch::channel(Connection::Connecting);
    let mut status = a.status();
    let _alive = a.keep_in_sync(Told { heads, connection }, &quick());
    let told = |status: &DocumentStatus| {
        status.error.as_ref().is_some_and(|error| error.contains("the app made a mistake"))
    };
    tokio::time::timeout(Duration::from_secs(20), status.wait_for(told)).await.unwrap().unwrap();
    until(&a, |status| status.standing.ahead == 0 && status.error.is_none()).await;
    assert_eq!(a.query(SUM, Params::default()).await.unwrap().rows, [[Value::Integer(2)]]);
}

/// Work that is taken by [`Document::with`], such as a rejected mutation's retry, or in a future that was
/// dropped, is pushed at once, too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_way_work_is_taken_it_is_pushed_at_once() {
    let remote: SharedRemote = Arc::new(MemoryRemote::new());
    deployed(&remote).await;
    let seldom = Options { poll: Duration::from_secs(3600), ..Options::default() };
    let a = open(&remote, None, seldom).await;
    for round in 0..6 {
        // The background's round is at its end.
        a.sync().await.unwrap();
        match round % 2 {
            0 => drop(a.with(|replica| bump(replica, 1)).await),
            _ => {
                // Begun, and most often not done yet when it is dropped.
                let mut mutating = Box::pin(a.mutate("bump", json!({"id": 1})));
                drop(futures::poll!(&mut mutating));
            }
        }
        let pushed = |status: &DocumentStatus| status.standing.lsn.0 == round + 2;
        until(&a, |status| status.standing.ahead == 0 && pushed(status)).await;
    }
}

/// A live query that cannot be answered any more says so each time it is asked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_live_query_that_failed_is_not_waited_for() {
    let world = tokio::task::spawn_blocking(World::deployed).await.unwrap();
    let a = open(&world.remote, None, Options { background: false, ..quick() }).await;
    let mut rows = a.subscribe("select id from t", Params::default(), None).await.unwrap();
    rows.next().await.unwrap();
    a.execute("drop table t").await.unwrap();
    for _ in 0..2 {
        let said = tokio::time::timeout(Duration::from_secs(20), rows.next()).await.unwrap();
        assert!(said.unwrap_err().to_string().contains("no such table"));
    }
}

/// A document that was dropped is still closing when the app opens it again.
#[tokio::test]
async fn a_document_is_opened_again_while_it_closes() {
    let remote: SharedRemote = Arc::new(MemoryRemote::new());
    deployed(&remote).await;
    let store: SharedStore = Arc::new(MemoryStore::default());
    for sum in 1..=5 {
        let a = open(&remote, Some(store.clone()), quick()).await;
        a.mutate("bump", json!({"id": 20})).await.unwrap();
        assert_eq!(a.query(SUM, Params::default()).await.unwrap().rows, [[Value::Integer(sum)]]);
    }
}

/// A document whose client id cannot go on is opened and read all the same, goes on hearing of others, and says
/// why nothing is taken. Simulated: a power cut took its last mutation from the disk, and not from the log.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_document_whose_id_ended_can_still_be_read() {
    let remote: SharedRemote = Arc::new(MemoryRemote::new());
    deployed(&remote).await;
    let store: SharedStore = Arc::new(MemoryStore::default());
    let nobody = Some("http://127.0.0.1:1".into());
    let through = Options { route: Route::Coordinator, coordinator: nobody, background: false, ..quick() };
    let a = open(&remote, Some(store.clone()), through.clone()).await;
    let client = a.with(|replica| replica.client().clone()).await;
    drop(a);
    let bump_as = |client: ClientId| {
        let remote = remote.clone();
        tokio::task::spawn_blocking(move || {
            let world = World { remote, ids: std::cell::Cell::new(u64::from(rand::random::<u32>())) };
            let mut copy = world.document(client.as_str(), Config::default());
            bump(&mut copy, 20);
            world.sync(&mut copy);
        })
    };
    bump_as(client).await.unwrap();
    for sum in 1..=3 {
        let a = open(&remote, Some(store.clone()), through.clone()).await;
        assert!(
            matches!(a.sync().await, Err(DocumentError::Ended(reason)) if reason.code == codes::SEQ_REUSED)
        );
        assert_eq!(a.query(SUM, Params::default()).await.unwrap().rows, [[Value::Integer(sum)]]);
        let taken = a.mutate("bump", json!({"id": 1})).await;
        assert!(matches!(taken, Err(MutateError::Client(reason)) if reason.code == codes::SEQ_REUSED));
        drop(a);
        bump_as(ClientId::new(format!("other-{sum}")).unwrap()).await.unwrap();
    }
}
