//! Clients of one coordinator, and of one after the other.

mod common;

use std::time::Duration;

use common::*;
use coordinator::http::Health;
use graft::remote::Faulty;
use serde_json::json;
use sqlsync_layer::client::{Client, ClientConfig, MutationError, Status, Subscription};
use sqlsync_layer::protocol::{At, ServerMessage, codes};
use sqlsync_layer::session::rows::Rows;

const TITLES: &str = "SELECT id, title FROM tasks ORDER BY id";

/// Follows a subscription until its rows are as wanted; answers how many events it took.
async fn until(subscription: &mut Subscription, wanted: impl Fn(&Rows) -> bool) -> usize {
    for event in 1.. {
        subscription.next().await.unwrap();
        if wanted(subscription.rows()) {
            return event;
        }
    }
    unreachable!("events are counted without end")
}

#[tokio::test(flavor = "multi_thread")]
async fn one_client_sees_what_another_does() {
    let running = start_todo(memory(), |_| {}).await;
    let (alice, bob) = (client(&running).await, client(&running).await);
    let mut titles = bob.subscribe(TITLES, Default::default(), None).await.unwrap();
    until(&mut titles, |rows| rows.columns() == ["id", "title"]).await;

    add(&alice, "a", "Tea").await;
    until(&mut titles, |rows| rows.rows() == [vec![json!("a"), json!("Tea")]]).await;
    let rename = alice.mutate("rename_task", json!({ "id": "a", "title": "Green tea" })).await.unwrap();
    let accepted = rename.accepted().await.unwrap();
    assert_eq!(rename.durable().await, Ok(accepted));
    until(&mut titles, |rows| rows.rows() == [vec![json!("a"), json!("Green tea")]]).await;

    let empty = alice.mutate("add_task", json!({ "id": "b", "list": "l", "title": "" })).await.unwrap();
    let Err(MutationError::Rejected { reason, .. }) = empty.durable().await else { panic!("not rejected") };
    assert_eq!(reason.code, codes::REFUSED);
    let rows = bob.query("SELECT count(*) FROM tasks", Default::default()).await.unwrap();
    assert_eq!(rows.rows(), [vec![json!(1)]]);
    assert!(running.shutdown().await);
}

/// A subscriber that does not read is sent a fresh snapshot when it does, and holds nobody up.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_read_misses_nothing_in_the_end() {
    const TASKS: usize = 100;
    let running = start_todo(memory(), |config| config.limits.session.outbox_bytes = 64 << 10).await;
    let mut slow = Raw::connect_narrow(&running, "slow").await;
    // Few rows, so that running it again is cheap; each change is a long one.
    const NEWEST: &str = "SELECT id, title FROM tasks ORDER BY id DESC LIMIT 5";
    slow.send(&format!(r#"{{"type":"subscribe","sub":1,"sql":"{NEWEST}"}}"#)).await;

    let writer = client(&running).await;
    let long = "x".repeat(60_000);
    for n in 0..TASKS {
        add(&writer, &format!("t{n:03}"), &long).await;
    }
    // Six megabytes went by. Now it reads.
    let (mut rows, mut messages, mut snapshots) = (Rows::empty(), 0, 0);
    let last = json!(format!("t{:03}", TASKS - 1));
    while rows.rows().first().is_none_or(|row| row[0] != last) {
        messages += 1;
        match slow.receive().await {
            ServerMessage::Snapshot { at, columns, key, rows: all, .. } => {
                rows = Rows::new(columns, key, all, at).unwrap();
                snapshots += 1;
            }
            ServerMessage::Delta { at, changes, .. } => rows.advance(at, &changes).unwrap(),
            other => panic!("{other:?}"),
        }
    }
    assert!(snapshots >= 2, "it fell behind, so a snapshot came in between");
    assert!(messages < TASKS, "{messages} messages for {TASKS} changes");
    let At { lsn, .. } = rows.at();
    let asked = writer.query(NEWEST, Default::default()).await.unwrap();
    assert_eq!((asked.rows(), asked.at().lsn), (rows.rows(), lsn));
    assert!(running.shutdown().await);
}

/// A client that asks and never reads is itself not read, so what waits for it is bounded; the others
/// are served as before.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_asks_and_never_reads_is_not_read() {
    let running = start_todo(memory(), |config| config.limits.session.outbox_bytes = 64 << 10).await;
    let other = client(&running).await;
    add(&other, "t", &"x".repeat(500_000)).await;
    let mut greedy = Raw::connect_narrow(&running, "greedy").await;
    // Sending stops going through once the server has stopped reading and the pipes are full.
    let padding = " ".repeat(10_000);
    let mut asked: u64 = 0;
    let stuck = loop {
        asked += 1;
        let query = format!(r#"{{"type":"query","id":{asked},"sql":"{TITLES}{padding}"}}"#);
        if tokio::time::timeout(Duration::from_secs(1), greedy.send(&query)).await.is_err() {
            break true;
        }
        if asked == 3000 {
            break false;
        }
    };
    assert!(stuck, "{asked} questions, each answered by half a megabyte, were taken");
    add(&other, "u", "fine").await;
    other.query("SELECT 1", Default::default()).await.unwrap();
    // It reads at last: every answer is there, in order.
    for id in 1..asked.min(20) {
        let ServerMessage::Rows { id: found, .. } = greedy.receive().await else { panic!() };
        assert_eq!(found, id);
    }
    drop(greedy);
    assert!(running.shutdown().await);
}

/// A shutdown lets what was accepted become durable, tells every client, and a client goes on at the
/// next server with what it still keeps.
#[tokio::test(flavor = "multi_thread")]
async fn clients_go_on_at_the_next_server() {
    let store = memory();
    let running = start_todo(store.clone(), |_| {}).await;
    let addr = running.addr();
    let client = client(&running).await;
    let mut titles = client.subscribe(TITLES, Default::default(), None).await.unwrap();
    titles.next().await.unwrap();
    add(&client, "a", "before").await;
    assert!(running.shutdown().await);

    let mut status = client.status();
    let told = status.wait_for(|status| matches!(status, Status::Offline { .. })).await.unwrap().clone();
    assert!(
        matches!(&told, Status::Offline { error, .. } if error.contains("shutdown") || error.contains("refused")),
        "{told:?}"
    );
    let offline =
        client.mutate("add_task", json!({ "id": "b", "list": "l", "title": "meanwhile" })).await.unwrap();

    let running = start_with(store, |config| config.listen = addr).await;
    offline.durable().await.unwrap();
    until(&mut titles, |rows| rows.rows().len() == 2).await;
    client.close().await;
    assert!(running.shutdown().await);
}

/// The store is gone when the server stops: what was accepted is not durable, the server says so, and
/// the client that made it brings it to the next one, where it takes effect once.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_server_could_not_store_its_client_resends() {
    let store = Faulty::new(memory(), 7);
    let running =
        start_todo(store.clone(), |config| config.limits.drain_max = Duration::from_millis(100)).await;
    let addr = running.addr();
    let client = client(&running).await;
    store.set_unreachable(true);
    let lost = client.mutate("add_task", json!({ "id": "a", "list": "l", "title": "kept" })).await.unwrap();
    lost.accepted().await.unwrap();
    assert!(!running.shutdown().await, "not everything was durable");

    store.set_unreachable(false);
    let running = start_with(store, |config| config.listen = addr).await;
    lost.durable().await.unwrap();
    let rows = client.query(TITLES, Default::default()).await.unwrap();
    assert_eq!(rows.rows(), [vec![json!("a"), json!("kept")]]);
    client.close().await;
    assert!(running.shutdown().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_volumes_close_and_open_again() {
    let running = start_todo(memory(), |config| config.limits.volume_idle = Duration::from_millis(50)).await;
    let open = async || {
        let (_, body) = get(&running, "/v1/health").await;
        serde_json::from_value::<Health>(body).unwrap().volumes_open
    };
    while open().await != 0 {
        tokio::task::yield_now().await;
    }
    let client = client(&running).await;
    add(&client, "a", "again").await;
    assert_eq!(open().await, 1);
    client.close().await;
    assert!(running.shutdown().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_volume_is_said_in_the_servers_words() {
    let running = start(memory()).await;
    let error = Client::connect(ClientConfig::new(running.url(), "nowhere")).await.unwrap_err().to_string();
    assert!(error.contains("no volume `nowhere`") && error.contains("graft deploy"), "{error}");
    assert!(running.shutdown().await);
}

/// Deploying again changes nothing; the answer says so.
#[tokio::test(flavor = "multi_thread")]
async fn deploying_twice_runs_migrations_once() {
    let running = start(memory()).await;
    let wasm = todo_wasm();
    let first = post(&running, "/v1/volumes/todo/modules", &wasm).await;
    let second = post(&running, "/v1/volumes/todo/modules", &wasm).await;
    assert_eq!((first.0, second.0), (200, 200));
    assert_eq!(first.1["module"], second.1["module"]);
    assert_eq!(first.1["lsn"], second.1["lsn"]);
    assert!(first.1["migrations_run"].as_u64() > Some(0));
    assert_eq!(second.1["migrations_run"], json!(0));
    assert!(running.shutdown().await);
}
