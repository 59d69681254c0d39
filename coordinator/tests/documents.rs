//! Documents beside a coordinator: through it, and straight on its bucket.

mod common;

use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use common::{add, client, memory, start_todo};
use coordinator::{Config, Running};
use graft::ModuleHash;
use graft::remote::SharedRemote;
use reducers_abi::{Runtime, Value};
use reducers_host::{Host, HostLimits};
use serde_json::json;
use sqlsync_layer::actor::{ModuleError, Modules};
use sqlsync_layer::document::{Document, Event, MutateError, Options, Route};
use sqlsync_layer::protocol::codes;

/// The one module that these tests deploy.
#[derive(Debug)]
struct Todo(Host);

impl Modules for Todo {
    fn load(&self, module: ModuleHash) -> Result<Arc<dyn Runtime>, ModuleError> {
        let loaded = self.0.load(&common::todo_wasm());
        let loaded = loaded.map_err(|error| ModuleError::Invalid { module, message: error.to_string() })?;
        assert_eq!(loaded.hash(), module.0);
        Ok(loaded)
    }
}

fn modules() -> Arc<dyn Modules> {
    Arc::new(Todo(Host::new(HostLimits::default()).unwrap()))
}

/// Never looks at the log by itself: what it learns it was told.
fn told_only(running: &Running, route: Route) -> Options {
    let poll = Duration::from_secs(3600);
    Options { route, coordinator: Some(running.url()), poll, ..Options::default() }
}

async fn open(store: &SharedRemote, options: Options) -> Document {
    Document::open(store.clone(), &"todo".parse().unwrap(), None, modules(), options).await.unwrap()
}

fn task(id: &str, title: &str) -> serde_json::Value {
    json!({ "id": id, "list": "l", "title": title })
}

const TITLES: &str = "SELECT title FROM tasks ORDER BY title";

async fn until(document: &Document, titles: &[&str]) {
    let wanted: Vec<Vec<Value>> = titles.iter().map(|title| vec![Value::Text((*title).into())]).collect();
    let mut rows = document.subscribe(TITLES, Default::default(), None).await.unwrap();
    let reached = tokio::time::timeout(Duration::from_secs(30), async {
        while rows.next().await.unwrap().rows != wanted {}
    });
    reached.await.unwrap_or_else(|_| panic!("{document:?} shows {:?}", rows.now()));
}

/// Four ways to write, all at once: a session, a document through the coordinator, a document on the
/// bucket, and plain SQL on the bucket. Everybody ends with everything, and nobody polls.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn documents_and_sessions_share_a_volume_and_hear_of_each_other() {
    let store = memory();
    let running = start_todo(store.clone(), |_| {}).await;
    let session = client(&running).await;
    let through = open(&store, told_only(&running, Route::Coordinator)).await;
    let beside = open(&store, told_only(&running, Route::Direct)).await;
    let mut events = through.events();

    add(&session, "s", "by a session").await;
    let seq = through.mutate("add_task", task("t", "through")).await.unwrap();
    // Shown at once; final when the log has it.
    until(&through, &["by a session", "through"]).await;
    let durable = tokio::time::timeout(Duration::from_secs(30), async {
        loop {
            if let Event::Durable { seq: durable, .. } = events.recv().await.unwrap() {
                return durable;
            }
        }
    });
    assert_eq!(durable.await.unwrap(), seq);
    until(&beside, &["by a session", "through"]).await;

    beside.mutate("add_task", task("b", "beside")).await.unwrap();
    beside.execute("UPDATE tasks SET title = 'plain' WHERE id = 's'").await.unwrap();
    beside.sync().await.unwrap();
    // The coordinator learns of it with its next commit, or its next look, and tells the other document.
    add(&session, "z", "zuletzt").await;
    for document in [&through, &beside] {
        until(document, &["beside", "plain", "through", "zuletzt"]).await;
    }
    assert!(matches!(through.execute("DELETE FROM tasks").await, Err(MutateError::Route)));
    let refused = through.mutate("add_task", task("e", " ")).await;
    assert!(matches!(refused, Err(MutateError::Rejected(reason)) if reason.code == codes::REFUSED));
    session.close().await;
    running.shutdown().await;
}

/// What direct writers commit reaches who is connected to the coordinator, though nobody commits there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn direct_writers_are_seen_live_by_those_who_only_watch() {
    let store = memory();
    let soon = |config: &mut Config| config.limits.look_every = Duration::from_millis(100);
    let running = start_todo(store.clone(), soon).await;
    let session = client(&running).await;
    let mut watched = session.subscribe(TITLES, Default::default(), None).await.unwrap();
    watched.next().await.unwrap();
    assert!(watched.rows().rows().is_empty());
    let told = open(&store, told_only(&running, Route::Coordinator)).await;
    // Knows of no coordinator.
    let alone = Options { coordinator: None, ..told_only(&running, Route::Direct) };
    let writer = open(&store, alone).await;
    writer.mutate("add_task", task("b", "beside")).await.unwrap();
    let shown = tokio::time::timeout(Duration::from_secs(30), watched.next()).await;
    shown.unwrap().unwrap();
    assert_eq!(watched.rows().rows().len(), 1);
    until(&told, &["beside"]).await;
    session.close().await;
    running.shutdown().await;
}

/// What a document took while its coordinator was down is sent once it is back, and counts once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_document_outlives_its_coordinator() {
    let store = memory();
    let running = start_todo(store.clone(), |_| {}).await;
    let port = running.addr().port();
    let document = open(&store, told_only(&running, Route::Coordinator)).await;
    document.mutate("add_task", task("1", "one")).await.unwrap();
    running.shutdown().await;
    document.mutate("add_task", task("2", "two")).await.unwrap();
    document.mutate("add_task", task("3", "three")).await.unwrap();
    until(&document, &["one", "three", "two"]).await;
    let running = common::start_with(store.clone(), |config| config.listen = common::loopback(port)).await;
    let mut status = document.status();
    let settled = status.wait_for(|status| status.standing.ahead == 0);
    drop(tokio::time::timeout(Duration::from_secs(30), settled).await.unwrap().unwrap());
    let other = open(&store, told_only(&running, Route::Direct)).await;
    until(&other, &["one", "three", "two"]).await;
    running.shutdown().await;
}

/// Polls a future so many times, and drops it.
async fn polled(mut left: usize, future: impl Future) {
    let mut future = std::pin::pin!(future);
    std::future::poll_fn(|context| match left.checked_sub(1) {
        None => Poll::Ready(()),
        Some(rest) => {
            left = rest;
            future.as_mut().poll(context).map(drop)
        }
    })
    .await;
}

/// Whoever syncs may give up at any point: each mutation still goes to the coordinator, under its own seq.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sync_that_is_given_up_loses_nothing_that_was_to_be_sent() {
    let store = memory();
    let running = start_todo(store.clone(), |_| {}).await;
    let document =
        open(&store, Options { background: false, ..told_only(&running, Route::Coordinator) }).await;
    let mut titles = Vec::new();
    for polls in 0..25 {
        for one in ["a", "b", "c"] {
            let title = format!("{polls:02}{one}");
            document.mutate("add_task", task(&title, &title)).await.unwrap();
            titles.push(title);
        }
        polled(polls, document.sync()).await;
    }
    let all = async {
        while document.status().borrow().standing.ahead > 0 {
            document.sync().await.unwrap();
        }
    };
    tokio::time::timeout(Duration::from_secs(60), all).await.unwrap_or_else(|_| panic!("{document:?}"));
    let other = open(&store, told_only(&running, Route::Direct)).await;
    let titles: Vec<&str> = titles.iter().map(String::as_str).collect();
    until(&other, &titles).await;
    running.shutdown().await;
}
