//! Documents with their task, on tokio: in the background, offline, and from a kept directory.

use std::time::Duration;

use graft::remote::Faulty;
use graft::store::Space;

use super::*;
use crate::document::{Document, DocumentStatus, Options};

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
