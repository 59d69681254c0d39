//! Who is connected: told to those who asked, by the real server, and stored nowhere.

mod common;

use std::time::Duration;

use common::*;
use coordinator::{Limits, Running};
use graft::remote::{Counting, Faulty};
use serde_json::{Value, json};
use sqlsync_layer::client::Present;
use sqlsync_layer::protocol::{PRESENCE_BYTES_MAX, ServerMessage, codes};

const WATCH: &str = r#"{"type":"watch_presence"}"#;

fn set(state: &Value) -> String {
    json!({ "type": "set_presence", "state": state }).to_string()
}

/// Sets a state and waits for the answer; lists that come before it are passed over.
async fn present(raw: &mut Raw, state: Value) -> u64 {
    raw.send(&set(&state)).await;
    loop {
        match raw.receive().await {
            ServerMessage::PresenceSet { id, .. } => return id,
            ServerMessage::Presence { .. } => {}
            other => panic!("{other:?}"),
        }
    }
}

/// Reads lists until one holds exactly these states, by the peers' numbers. Answers how many it read.
async fn sees(raw: &mut Raw, wanted: &[Value]) -> usize {
    for read in 1.. {
        match raw.receive().await {
            ServerMessage::Presence { peers, more: 0 } => {
                if peers.iter().map(|peer| &peer.state).eq(wanted) {
                    return read;
                }
            }
            ServerMessage::PresenceSet { .. } => {}
            other => panic!("{other:?}"),
        }
    }
    unreachable!("messages are counted without end")
}

async fn lsn(running: &Running) -> Value {
    get(running, "/v1/volumes/todo").await.1["lsn"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn two_see_each_other_until_one_is_gone_and_nothing_is_stored() {
    let store = Counting::new(memory());
    // However slow the machine is, what is counted is presence alone.
    let running = start_todo(store.clone(), |config| config.limits.look_every = Duration::MAX).await;
    let mut ada = Raw::connect(&running, "ada").await;
    let mut bob = Raw::connect(&running, "bob").await;
    let mut deaf = Raw::connect(&running, "deaf").await;
    let (before, counted) = (lsn(&running).await, store.snapshot());

    ada.send(WATCH).await;
    sees(&mut ada, &[]).await;
    let a = present(&mut ada, json!({ "name": "Ada" })).await;
    let b = present(&mut bob, json!({ "name": "Bob" })).await;
    assert_ne!(a, b);
    sees(&mut ada, &[json!({ "name": "Ada" }), json!({ "name": "Bob" })]).await;
    bob.send(WATCH).await;
    sees(&mut bob, &[json!({ "name": "Ada" }), json!({ "name": "Bob" })]).await;
    assert_eq!(present(&mut bob, json!({ "name": "Robert" })).await, b, "the same peer");
    sees(&mut ada, &[json!({ "name": "Ada" }), json!({ "name": "Robert" })]).await;

    // The socket breaks without a farewell.
    drop(bob);
    sees(&mut ada, &[json!({ "name": "Ada" })]).await;
    ada.send(r#"{"type":"clear_presence"}"#).await;
    sees(&mut ada, &[]).await;

    // Who did not ask was told nothing, and who asks no more is told nothing more.
    deaf.send(r#"{"type":"ping","n":1}"#).await;
    assert_eq!(deaf.receive().await, ServerMessage::Pong { n: 1 });
    ada.send(r#"{"type":"unwatch_presence"}"#).await;
    ada.send(r#"{"type":"ping","n":2}"#).await;
    assert_eq!(ada.receive().await, ServerMessage::Pong { n: 2 });

    assert_eq!((store.snapshot() - counted).requests(), 0, "presence touches no object store");
    assert_eq!(lsn(&running).await, before);
    assert!(running.shutdown().await);
}

/// Presence needs nothing of the object store, nor of the actor that waits for it.
#[tokio::test(flavor = "multi_thread")]
async fn people_see_each_other_while_the_store_cannot_be_reached() {
    let store = Faulty::new(memory(), 1);
    let running = start_todo(store.clone(), |_| {}).await;
    let mut ada = Raw::connect(&running, "ada").await;
    let mut bob = Raw::connect(&running, "bob").await;
    store.set_unreachable(true);
    // Accepted, and not durable before the store is back.
    let add = r#"{"type":"mutate","seq":1,"reducer":"add_task","args":{"id":"t","list":"l","title":"x"}}"#;
    ada.send(add).await;
    assert!(matches!(ada.receive().await, ServerMessage::Accepted { .. }));
    ada.send(WATCH).await;
    present(&mut bob, json!("bob")).await;
    sees(&mut ada, &[json!("bob")]).await;
    store.set_unreachable(false);
    assert!(matches!(ada.receive().await, ServerMessage::Durable { .. }));
    assert!(running.shutdown().await);
}

/// Says it is here once, and lives on without saying it again.
#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_say_it_again_is_gone_after_the_ttl() {
    let running = start_todo(memory(), |config| config.limits.presence.ttl_ms = 200).await;
    let mut ada = Raw::connect(&running, "ada").await;
    let mut bob = Raw::connect(&running, "bob").await;
    ada.send(WATCH).await;
    bob.send(&set(&json!("bob"))).await;
    assert!(matches!(bob.receive().await, ServerMessage::PresenceSet { ttl_ms: 200, .. }));
    sees(&mut ada, &[json!("bob")]).await;
    let seen = tokio::time::Instant::now();
    sees(&mut ada, &[]).await;
    assert!(seen.elapsed() < Duration::from_secs(60), "by the TTL, not when the socket falls silent");
    // Its connection is whole, and it may come back.
    present(&mut bob, json!("again")).await;
    sees(&mut ada, &[json!("again")]).await;
    assert!(running.shutdown().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_beyond_the_bounds_is_refused_and_the_connection_goes_on() {
    let running = start_todo(memory(), |_| {}).await;
    let mut ada = Raw::connect(&running, "ada").await;
    present(&mut ada, json!("short")).await;
    let deep = (0..100).fold(json!(1), |inside, _| json!([inside]));
    for state in [json!("x".repeat(PRESENCE_BYTES_MAX)), json!("x".repeat(1 << 20)), deep] {
        ada.send(&set(&state)).await;
        let ServerMessage::PresenceError { reason } = ada.receive().await else { panic!() };
        assert_eq!(reason.code, codes::TOO_LARGE);
    }
    ada.send(WATCH).await;
    sees(&mut ada, &[json!("short")]).await;
    assert!(running.shutdown().await);
}

/// The whole conversation in one go: presence comes after the `welcome`, whatever the volume is doing.
#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_wait_for_the_welcome_still_gets_it_first() {
    let running = start_todo(memory(), |_| {}).await;
    for _ in 0..20 {
        let mut raw = Raw::dial(&running, "todo").await.unwrap();
        raw.send(HELLO).await;
        raw.send(WATCH).await;
        raw.send(&set(&json!(1))).await;
        let first = raw.receive().await;
        assert!(matches!(first, ServerMessage::Welcome { .. }), "{first:?}");
        sees(&mut raw, &[json!(1)]).await;
    }
    assert!(running.shutdown().await);
}

/// Ten megabytes of lists go by while one watcher does not read. What it reads then is what was in the
/// pipe, and the newest.
#[tokio::test(flavor = "multi_thread")]
async fn a_watcher_that_does_not_read_costs_one_list() {
    const CHANGES: usize = 600;
    let running = start_todo(memory(), |config| config.limits.presence.interval_ms = 0).await;
    let mut crowd = Vec::new();
    for n in 0..20 {
        let mut raw = Raw::connect(&running, &format!("crowd-{n}")).await;
        present(&mut raw, json!("x".repeat(1000))).await;
        crowd.push(raw);
    }
    let mut slow = Raw::connect_narrow(&running, "slow").await;
    slow.send(WATCH).await;
    let mut writer = Raw::connect(&running, "writer").await;
    for n in 0..=CHANGES {
        present(&mut writer, json!(n)).await;
    }
    let mut wanted = vec![json!("x".repeat(1000)); crowd.len()];
    wanted.push(json!(CHANGES));
    let read = sees(&mut slow, &wanted).await;
    assert!(read < CHANGES / 2, "{read} lists for {CHANGES} changes");
    assert!(running.shutdown().await);
}

/// The Rust client says it again by itself, for several TTLs and to the next server.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_stays_present_for_as_long_as_it_lives() {
    let store = memory();
    let running = start_todo(store.clone(), |config| config.limits.presence.ttl_ms = 2000).await;
    let addr = running.addr();
    let (ada, bob) = (client(&running).await, client(&running).await);
    let mut present = ada.presence().await.unwrap();
    ada.set_presence(json!("ada")).await.unwrap();
    let me = present.wait_for(|present| present.me.is_some()).await.unwrap().me;
    bob.set_presence(json!("bob")).await.unwrap();
    let states = |present: &Present| present.peers.iter().map(|p| p.state.clone()).collect::<Vec<_>>();
    present.wait_for(|present| states(present) == ["ada", "bob"]).await.unwrap();
    // Two that say it once come and go; meanwhile the others are never gone.
    for n in 0..2 {
        let mut once = Raw::connect(&running, &format!("once-{n}")).await;
        once.send(&set(&json!(n))).await;
        present.wait_for(|present| states(present) == [json!("ada"), json!("bob"), json!(n)]).await.unwrap();
        present.wait_for(|present| states(present) == ["ada", "bob"]).await.unwrap();
    }
    assert_eq!(present.borrow().me, me);
    assert_eq!(present.borrow().peers.first().map(|peer| peer.id), me, "it was never gone");

    assert!(running.shutdown().await);
    present.wait_for(|present| *present == Present::default()).await.unwrap();
    let running = start_with(store, |config| config.listen = addr).await;
    present.wait_for(|present| present.peers.len() == 2 && present.me.is_some()).await.unwrap();
    bob.close().await;
    present.wait_for(|present| states(present) == ["ada"]).await.unwrap();
    ada.clear_presence().await.unwrap();
    present.wait_for(|present| present.known && present.peers.is_empty()).await.unwrap();
    ada.close().await;
    assert!(running.shutdown().await);
}

/// A page in the background may get to run its timers once a minute.
#[test]
fn the_ttl_is_longer_than_a_page_in_the_background_sleeps() {
    let Limits { presence, session, .. } = Limits::default();
    assert!(presence.ttl_ms > 60_000);
    assert!(session.silence_max <= Duration::from_millis(presence.ttl_ms), "a dead socket is gone before");
}
