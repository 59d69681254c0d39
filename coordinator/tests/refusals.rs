//! What a coordinator refuses, how it says so, and that it goes on afterwards.

mod common;

use common::*;
use coordinator::http::Health;
use coordinator::{Config, Coordinator, StartError};
use futures::SinkExt as _;
use graft::remote::Faulty;
use sqlsync_layer::protocol::{FRAME_BYTES_MAX, ServerMessage, codes};
use tokio_tungstenite::tungstenite::{self, Message};

#[tokio::test(flavor = "multi_thread")]
async fn it_listens_on_loopback_alone() {
    let config = Config::new(memory(), "0.0.0.0:0".parse().unwrap());
    let error = Coordinator::start(config).await.unwrap_err();
    assert!(matches!(error, StartError::NotLoopback { .. }));
    assert!(error.to_string().contains("no authentication"), "{error}");

    let running = start(memory()).await;
    let taken = Coordinator::start(Config::new(memory(), running.addr())).await.unwrap_err();
    assert!(matches!(taken, StartError::Bind { .. }), "{taken}");
    assert!(running.shutdown().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_cannot_be_reached_is_said_at_the_start() {
    let store = Faulty::new(memory(), 1);
    store.set_unreachable(true);
    let error = Coordinator::start(Config::new(store, loopback(0))).await.unwrap_err();
    assert!(matches!(error, StartError::Store(_)), "{error}");
    assert!(error.to_string().contains("could not be probed"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn health_says_what_it_is() {
    let running = start(memory()).await;
    let (status, body) = get(&running, "/v1/health").await;
    let health: Health = serde_json::from_value(body).unwrap();
    assert_eq!((status, health.status.as_str(), health.volumes_open), (200, "ok", 0));
    assert_eq!(health.store, "memory:");

    let doc = include_str!("../../docs/protocol.md");
    let (_, example) = doc.split_once("```json health\n").unwrap();
    let example: Health = serde_json::from_str(example.split_once("\n```").unwrap().0).unwrap();
    assert_eq!(example.version, health.version, "the documented version is this one");
    assert!(running.shutdown().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_are_refused_with_typed_errors() {
    let running = start_with(memory(), |config| config.limits.module_bytes_max = 1000).await;
    let host = running.addr();
    let upgrade = "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==";
    let sync = |name: &str| format!("GET /v1/volumes/{name}/sync HTTP/1.1\r\nhost: {host}\r\n{upgrade}");
    let modules = |name: &str| format!("POST /v1/volumes/{name}/modules HTTP/1.1\r\nhost: {host}");
    let long = "x".repeat(101);
    for (head, body, status, code) in [
        (sync("..%2Fx"), &b""[..], 400, "bad_name"),
        (sync("%25s"), b"", 400, "bad_name"),
        (sync("%ff"), b"", 400, "bad_name"),
        (sync(".hidden"), b"", 400, "bad_name"),
        (sync(&long), b"", 400, "bad_name"),
        (sync("nowhere"), b"", 404, "unknown_volume"),
        (sync(".."), b"", 400, "bad_name"),
        // A page cannot see why its socket was declined: it asks the same address for the reason.
        (format!("GET /v1/volumes/x/sync HTTP/1.1\r\nhost: {host}"), b"", 404, "unknown_volume"),
        (format!("GET /v1/volumes/%25s/sync HTTP/1.1\r\nhost: {host}"), b"", 400, "bad_name"),
        (sync("x").replace(&host.to_string(), "evil.example"), b"", 403, "forbidden"),
        (format!("{}\r\norigin: https://evil.example", sync("x")), b"", 403, "forbidden"),
        (format!("GET /v1/health HTTP/1.1\r\nhost: {host}\r\norigin: null"), b"", 403, "forbidden"),
        (format!("GET / HTTP/1.1\r\nhost: {host}"), b"", 404, "not_found"),
        (format!("GET /v1/volumes/a/b/sync HTTP/1.1\r\nhost: {host}"), b"", 404, "not_found"),
        (format!("DELETE /v1/health HTTP/1.1\r\nhost: {host}"), b"", 405, "method_not_allowed"),
        (modules("..%2fx"), b"", 400, "bad_name"),
        (modules("new"), b"", 422, "invalid_module"),
        (modules("new"), b"<!doctype html>", 422, "invalid_module"),
        (modules("new"), b"\0asm\x01\0\0\0", 422, "invalid_module"),
        (modules("new"), &[7; 1001], 413, "too_large"),
    ] {
        let (found, answer) = request(&running, &head, body).await;
        let head = head.lines().next().unwrap();
        assert_eq!((found, answer["error"]["code"].as_str()), (status, Some(code)), "{head}: {answer}");
        assert!(answer["error"]["message"].as_str().is_some_and(|m| m.len() > 10), "{head}: {answer}");
    }
    // A refused module leaves no volume behind.
    let (status, _) = request(&running, &sync("new"), b"").await;
    assert_eq!(status, 404);
    assert!(running.shutdown().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_goes_away_is_an_error_for_those_who_need_it() {
    let store = Faulty::new(memory(), 1);
    let running = start(store.clone()).await;
    store.set_unreachable(true);
    let (status, answer) = post(&running, "/v1/volumes/todo/modules", &todo_wasm()).await;
    assert_eq!((status, answer["error"]["code"].as_str()), (503, Some("unavailable")), "{answer}");
    let refused = Raw::dial(&running, "todo").await;
    let Err(tungstenite::Error::Http(response)) = refused else { panic!("not refused") };
    assert_eq!(response.status(), 503);
    assert_eq!(get(&running, "/v1/health").await.0, 200);

    store.set_unreachable(false);
    let (status, answer) = post(&running, "/v1/volumes/todo/modules", &todo_wasm()).await;
    assert_eq!(status, 200, "{answer}");
    assert!(running.shutdown().await);
}

/// By a plain GET of the socket's address too, where a browser's page looks for the reason: it used to be
/// told that this is a WebSocket, whatever was wrong with the volume.
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_volume_says_so_to_those_who_ask_without_a_socket() {
    let store = memory();
    let running = start_todo(store.clone(), |_| {}).await;
    let (status, answer) = get(&running, "/v1/volumes/todo/sync").await;
    assert_eq!((status, answer["error"]["code"].as_str()), (400, Some("not_a_websocket")), "{answer}");
    assert!(running.shutdown().await);

    // The newest commit's key is the first of the log.
    let listed = store.list("volumes/", None, 1000).await.unwrap();
    let commit = listed.iter().map(|entry| entry.key.as_str()).find(|key| key.contains("/log/")).unwrap();
    store.delete(commit).await.unwrap();
    store.create(commit, bytes::Bytes::from_static(b"no commit")).await.unwrap();
    let running = start(store).await;
    let refused = Raw::dial(&running, "todo").await;
    let Err(tungstenite::Error::Http(response)) = refused else { panic!("not refused") };
    assert_eq!(response.status(), 500);
    let (status, answer) = get(&running, "/v1/volumes/todo/sync").await;
    assert_eq!((status, answer["error"]["code"].as_str()), (500, Some(codes::DAMAGED)), "{answer}");
    assert!(answer["error"]["message"].as_str().is_some_and(|m| m.contains(commit)), "{answer}");
    assert!(running.shutdown().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_frames_end_their_connection_with_a_reason_and_nothing_else() {
    let running = start_todo(memory(), |_| {}).await;
    let mut bystander = Raw::connect(&running, "bystander").await;
    let deep = "[".repeat(200_000);
    let long = "x".repeat(FRAME_BYTES_MAX + 1);
    for frame in ["", "null", "%s%s%n", "{\"type\":\"welcome\"}", HELLO, &deep, &long] {
        let mut raw = Raw::connect(&running, "hostile").await;
        raw.send(frame).await;
        assert_eq!(raw.refused().await, codes::BAD_MESSAGE, "{}", frame.get(..40).unwrap_or(frame));
    }
    let mut raw = Raw::connect(&running, "hostile").await;
    raw.0.send(Message::binary(vec![0; 10])).await.unwrap();
    assert_eq!(raw.refused().await, codes::BAD_MESSAGE);

    for (first, code) in [
        (r#"{"type":"ping","n":1}"#, codes::BAD_MESSAGE),
        (r#"{"type":"hello","protocols":[9],"client":"c"}"#, codes::UNSUPPORTED),
        (r#"{"type":"hello","protocols":[1],"client":"../c"}"#, codes::BAD_MESSAGE),
    ] {
        let mut raw = Raw::dial(&running, "todo").await.unwrap();
        raw.send(first).await;
        assert_eq!(raw.refused().await, code, "{first}");
    }
    bystander.send(r#"{"type":"ping","n":5}"#).await;
    assert_eq!(bystander.receive().await, ServerMessage::Pong { n: 5 });
    drop(bystander);
    assert!(running.shutdown().await);
}

/// Far beyond the limit the transport itself stops reading.
#[tokio::test(flavor = "multi_thread")]
async fn an_enormous_frame_ends_its_connection() {
    let running = start_todo(memory(), |_| {}).await;
    let mut raw = Raw::connect(&running, "huge").await;
    let sent = raw.0.send(Message::text("x".repeat(8 * FRAME_BYTES_MAX))).await;
    let ended = loop {
        match futures::StreamExt::next(&mut raw.0).await {
            None | Some(Err(_)) | Some(Ok(Message::Close(_))) => break true,
            Some(Ok(Message::Text(text))) => assert!(text.contains(codes::BAD_MESSAGE), "{text}"),
            Some(Ok(other)) => panic!("{other:?} (sent: {sent:?})"),
        }
    };
    assert!(ended);
    client(&running).await.close().await;
    assert!(running.shutdown().await);
}

/// A client that goes on sending while it is being refused still reads why: its socket is not reset under
/// its hands. (Under load, a client's mutations crossed the server's last answers, its write failed, and
/// it never read that they were durable.)
#[tokio::test(flavor = "multi_thread")]
async fn who_is_still_sending_reads_the_last_frame() {
    let running = start_todo(memory(), |_| {}).await;
    let mut raw = Raw::connect(&running, "talker").await;
    raw.send("no message").await;
    let ping = format!("{{\"type\":\"ping\",\"n\":1}}{}", " ".repeat(32 << 10));
    for _ in 0..256 {
        raw.send(&ping).await;
    }
    assert_eq!(raw.refused().await, codes::BAD_MESSAGE);
    assert!(running.shutdown().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_says_nothing_is_not_waited_for() {
    let running = start_todo(memory(), |config| {
        config.limits.session.hello_max = std::time::Duration::from_millis(50);
    })
    .await;
    let raw = Raw::dial(&running, "todo").await.unwrap();
    assert_eq!(raw.refused().await, codes::UNAVAILABLE);
    assert!(running.shutdown().await);
}
