//! The HTTP API: what `docs/protocol.md` shows of it, and what it does.

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::*;
use coordinator::Running;
use coordinator::http::{
    ErrorBody, Health, MutateAnswer, MutateRequest, QueryAnswer, QueryRequest, VolumeInfo,
};
use graft::remote::{Faulty, SharedRemote};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use sqlsync_layer::protocol::FRAME_BYTES_MAX;

const DOC: &str = include_str!("../../docs/protocol.md");

/// The JSON examples of one kind.
fn examples(kind: &str) -> Vec<&'static str> {
    let begin = format!("```json {kind}\n");
    DOC.split(begin.as_str()).skip(1).map(|rest| rest.split_once("\n```").unwrap().0).collect()
}

/// The examples of a kind are values of `T`, with every member; so many there are.
fn check<T: DeserializeOwned + Serialize>(kind: &str, count: usize) -> Vec<T> {
    let examples = examples(kind);
    assert_eq!(examples.len(), count, "{kind}");
    let parse = |text: &str| {
        let value: T = serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"));
        let again = serde_json::to_value(&value).unwrap();
        assert_eq!(again, serde_json::from_str::<Value>(text).unwrap());
        value
    };
    examples.into_iter().map(parse).collect()
}

#[test]
fn every_documented_body_is_one() {
    check::<Health>("health", 1);
    check::<ErrorBody>("error", 1);
    check::<QueryRequest>("query-request", 1);
    check::<QueryAnswer>("query-answer", 1);
    check::<MutateRequest>("mutate-request", 1);
    check::<VolumeInfo>("volume-info", 1);
    // One of each: a new one makes this incomplete, and so reminds of the example.
    let kinds = check::<MutateAnswer>("mutate-answer", 4).into_iter().map(|answer| match answer {
        MutateAnswer::Accepted { .. } => 0,
        MutateAnswer::Durable { .. } => 1,
        MutateAnswer::Rejected { .. } => 2,
        MutateAnswer::Unknown { .. } => 3,
    });
    assert_eq!(kinds.collect::<Vec<_>>(), [0, 1, 2, 3]);
    for code in ["bad_token", "token_lost", "not_reached", "too_many_waiting"] {
        assert!(DOC.contains(&format!("`{code}`")), "{code}");
    }
}

async fn post_json(running: &Running, path: &str, body: &Value) -> (u16, Value) {
    post(running, path, body.to_string().as_bytes()).await
}

async fn mutate(running: &Running, body: Value) -> (u16, Value) {
    post_json(running, "/v1/volumes/todo/mutate", &body).await
}

async fn query(running: &Running, sql: &str, after: Option<&Value>) -> (u16, Value) {
    let mut body = json!({ "sql": sql });
    if let Some(after) = after {
        body["after"] = after.clone();
    }
    post_json(running, "/v1/volumes/todo/query", &body).await
}

fn add_task(id: &str) -> Value {
    json!({ "reducer": "add_task", "args": { "id": id, "list": "l", "title": "T" } })
}

/// As this client's `seq`, waiting until accepted.
fn accepted(mut body: Value, client: &str, seq: u64) -> Value {
    body["client"] = client.into();
    body["seq"] = seq.into();
    body["wait"] = "accepted".into();
    body
}

const TASKS: &str = "SELECT id FROM tasks ORDER BY id";

#[tokio::test(flavor = "multi_thread")]
async fn a_mutation_and_a_query_go_without_a_socket() {
    let running = start_todo(memory(), |_| {}).await;
    let (status, done) = mutate(&running, add_task("a")).await;
    assert_eq!((status, &done["status"], &done["seq"]), (200, &json!("durable"), &json!(1)), "{done}");
    assert!(done["client"].as_str().unwrap().starts_with("http-"), "{done}");
    let (status, rows) = query(&running, TASKS, Some(&done["token"])).await;
    assert_eq!((status, &rows["columns"], &rows["rows"]), (200, &json!(["id"]), &json!([["a"]])), "{rows}");
    assert_eq!(rows["lsn"], done["lsn"]);
    // Parameters, by position and by name, and values beyond JSON's own.
    for (sql, params, expected) in [
        ("SELECT ?1 + 1", json!([{ "$int": "9007199254740992" }]), json!({ "$int": "9007199254740993" })),
        ("SELECT :x", json!({ "x": true }), json!(1)),
        ("SELECT x'ff'", json!([]), json!({ "$blob": "/w==" })),
    ] {
        let body = json!({ "sql": sql, "params": params });
        let (status, rows) = post_json(&running, "/v1/volumes/todo/query", &body).await;
        assert_eq!((status, &rows["rows"][0][0]), (200, &expected), "{rows}");
    }

    let (status, said) = mutate(&running, add_task("a")).await;
    assert_eq!(
        (status, &said["status"], &said["error"]["code"]),
        (422, &json!("rejected"), &json!("refused")),
        "{said}"
    );
    assert_eq!(query(&running, TASKS, Some(&said["token"])).await.0, 200, "a rejection is a state too");

    let (status, info) = get(&running, "/v1/volumes/todo").await;
    assert_eq!(status, 200, "{info}");
    let info: VolumeInfo = serde_json::from_value(info).unwrap();
    assert_eq!((info.name.as_str(), info.schema), ("todo", 2));
    assert_eq!(Some(info.lsn.0), said["lsn"].as_u64());
    let set_done = info.reducers.iter().find(|reducer| reducer.name == "set_done").unwrap();
    let documented = check::<VolumeInfo>("volume-info", 1);
    assert_eq!(*set_done, documented[0].reducers[0], "the documented reducer is the real one");
    assert!(running.shutdown().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mutation_sent_again_has_no_second_effect() {
    let store = memory();
    let running = start_todo(store.clone(), |_| {}).await;
    let body = |id: &str, seq: u64| accepted(add_task(id), "shop", seq);
    let (status, first) = mutate(&running, body("a", 1)).await;
    assert_eq!(status, 200, "{first}");
    let (status, again) = mutate(&running, body("a", 1)).await;
    assert_eq!((status, &again["lsn"]), (200, &first["lsn"]), "{again}");
    // Ten at once: all hear of the one that was applied.
    let racing = futures::future::join_all((0..10).map(|_| mutate(&running, body("b", 2)))).await;
    assert!(racing.iter().all(|(status, answer)| *status == 200 && answer["seq"] == 2), "{racing:?}");
    assert!(running.shutdown().await);

    let running = start(store).await;
    let (status, again) = mutate(&running, body("a", 1)).await;
    assert_eq!((status, &again["status"], &again["lsn"]), (200, &json!("durable"), &first["lsn"]), "{again}");
    for (request, code) in [(body("other", 1), "seq_reused"), (body("c", 4), "seq_gap")] {
        let (status, said) = mutate(&running, request).await;
        assert_eq!((status, &said["error"]["code"]), (409, &json!(code)), "{said}");
    }
    let (_, rows) = query(&running, TASKS, None).await;
    assert_eq!(rows["rows"], json!([["a"], ["b"]]));
    assert!(running.shutdown().await);
}

/// A store that cannot be reached keeps the tip ahead; the process that held it is then dropped.
#[tokio::test(flavor = "multi_thread")]
async fn tokens_outlive_the_server_that_gave_them() {
    let inner = memory();
    let faulty = Faulty::new(inner.clone(), 1);
    let brief = |config: &mut coordinator::Config| {
        config.limits.http.after_max = Duration::from_millis(200);
        config.limits.drain_max = Duration::from_millis(50);
    };
    let impatient = |config: &mut coordinator::Config| {
        brief(config);
        config.limits.http.answer_max = Duration::from_secs(2);
    };
    let running = start_todo(faulty.clone(), impatient).await;
    let (_, durable) = mutate(&running, add_task("a")).await;
    faulty.set_unreachable(true);
    let ahead = accepted(add_task("b"), "shop", 1);
    let (status, lost) = mutate(&running, ahead.clone()).await;
    assert_eq!((status, &lost["status"]), (200, &json!("accepted")), "{lost}");
    let (_, read) = query(&running, TASKS, Some(&lost["token"])).await;
    assert_eq!(read["rows"], json!([["a"], ["b"]]));
    assert_eq!(query(&running, TASKS, Some(&read["token"])).await.0, 200);
    // Durable does not come, and the answer says what to do.
    let mut waits = ahead.clone();
    waits["wait"] = "durable".into();
    let (status, unknown) = mutate(&running, waits.clone()).await;
    assert_eq!(
        (status, &unknown["status"], &unknown["seq"], &unknown["error"]["code"]),
        (503, &json!("unknown"), &json!(1), &json!("unavailable")),
        "{unknown}"
    );
    assert!(!running.shutdown().await, "the store is away: `b` is lost with this process");

    let running = start_with(inner, brief).await;
    let (status, rows) = query(&running, TASKS, Some(&durable["token"])).await;
    assert_eq!((status, &rows["rows"]), (200, &json!([["a"]])));
    let (status, said) = query(&running, TASKS, Some(&read["token"])).await;
    assert_eq!((status, &said["error"]["code"]), (409, &json!("token_lost")), "{said}");
    let (status, said) = query(&running, TASKS, Some(&lost["token"])).await;
    assert_eq!((status, &said["error"]["code"]), (503, &json!("not_reached")), "{said}");
    assert_eq!(mutate(&running, waits).await.0, 200);
    let (status, rows) = query(&running, TASKS, Some(&lost["token"])).await;
    assert_eq!((status, &rows["rows"]), (200, &json!([["a"], ["b"]])));
    assert!(running.shutdown().await);
}

/// A query waits while the mutation that it wants to see is on its way, here through another server.
#[tokio::test(flavor = "multi_thread")]
async fn a_query_waits_for_what_it_wants_to_see() {
    let store = memory();
    let writer = start_todo(store.clone(), |_| {}).await;
    let reader = start(store).await;
    let (_, before) = query(&reader, TASKS, None).await;
    assert_eq!(before["rows"], json!([]));
    let token = before["token"].as_str().unwrap();
    let volume = token.split('.').nth(1).unwrap();
    let wanted = json!(format!("1.{volume}.0..shop:2"));
    let sent = async {
        mutate(&writer, accepted(add_task("a"), "shop", 1)).await;
        mutate(&writer, accepted(add_task("b"), "shop", 2)).await
    };
    let (seen, (status, _)) = tokio::join!(query(&reader, TASKS, Some(&wanted)), sent);
    assert_eq!(status, 200);
    assert_eq!((seen.0, &seen.1["rows"]), (200, &json!([["a"], ["b"]])), "{}", seen.1);
    assert!(writer.shutdown().await && reader.shutdown().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_bodies_are_refused_and_harm_nobody() {
    let running = start_todo(memory(), |config| {
        config.limits.http.after_max = Duration::from_millis(50);
        config.limits.actor.query_steps_max = 100_000;
    })
    .await;
    let (_, before) = query(&running, TASKS, None).await;
    let deep = format!(r#"{{"reducer":"r","args":{{"a":{}1{}}}}}"#, "[".repeat(50_000), "]".repeat(50_000));
    let long = format!(r#"{{"sql":"{}"}}"#, "x".repeat(FRAME_BYTES_MAX));
    let far = format!(r#"{{"sql":"SELECT 1","after":"1.{}.18446744073709551615.."}}"#, "0".repeat(32));
    let volume = before["token"].as_str().unwrap().split('.').nth(1).unwrap();
    let never = format!(r#"{{"sql":"SELECT 1","after":"1.{volume}.18446744073709551615.."}}"#);
    let spin = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n";
    let spin = json!({ "sql": spin }).to_string();
    let cases: &[(&str, &[u8], u16, &str)] = &[
        ("query", b"", 400, "bad_body"),
        ("query", b"null", 400, "bad_body"),
        ("query", b"sql=SELECT+1", 400, "bad_body"),
        ("query", b"\xff\xfe", 400, "bad_body"),
        ("query", b"{}", 400, "bad_body"),
        ("query", br#"{"sql":1}"#, 400, "bad_body"),
        ("query", br#"{"sql":"SELECT 1","sql":"SELECT 2"}"#, 400, "bad_body"),
        ("query", br#"{"sql":"SELECT 1","params":5}"#, 400, "bad_body"),
        ("query", br#"{"sql":"SELECT 1","more":1}"#, 400, "bad_body"),
        ("query", br#"{"sql":"SELECT 1"} trailing"#, 400, "bad_body"),
        ("query", br#"{"sql":"SELECT 1","after":""}"#, 400, "bad_token"),
        ("query", br#"{"sql":"SELECT 1","after":"%s%n"}"#, 400, "bad_token"),
        ("query", far.as_bytes(), 409, "token_lost"),
        ("query", never.as_bytes(), 503, "not_reached"),
        ("query", long.as_bytes(), 413, "too_large"),
        ("query", br#"{"sql":"DELETE FROM tasks"}"#, 422, "bad_query"),
        ("query", br#"{"sql":"SELECT 1; DELETE FROM tasks"}"#, 422, "bad_query"),
        ("query", br#"{"sql":"PRAGMA writable_schema=1"}"#, 422, "bad_query"),
        ("query", br#"{"sql":"SELECT ?1","params":[[1]]}"#, 422, "bad_query"),
        ("query", br#"{"sql":"%s%n"}"#, 422, "bad_query"),
        ("query", spin.as_bytes(), 422, "limit"),
        ("mutate", b"", 400, "bad_body"),
        ("mutate", b"[]", 400, "bad_body"),
        ("mutate", deep.as_bytes(), 400, "bad_body"),
        ("mutate", br#"{"reducer":"r","args":[]}"#, 400, "bad_body"),
        ("mutate", br#"{"reducer":"r","args":{},"client":"c"}"#, 400, "bad_body"),
        ("mutate", br#"{"reducer":"r","args":{},"seq":1}"#, 400, "bad_body"),
        ("mutate", br#"{"reducer":"r","args":{},"client":"c","seq":0}"#, 400, "bad_body"),
        ("mutate", br#"{"reducer":"r","args":{},"client":"../c","seq":1}"#, 400, "bad_body"),
        ("mutate", br#"{"reducer":"r","args":{},"client":"c","seq":-1}"#, 400, "bad_body"),
        ("mutate", br#"{"reducer":"r","args":{},"wait":"forever"}"#, 400, "bad_body"),
        ("mutate", br#"{"reducer":"r","args":{},"seed":"x"}"#, 400, "bad_body"),
        ("mutate", br#"{"reducer":"%s","args":{}}"#, 422, "unknown_reducer"),
        ("mutate", br#"{"reducer":"add_task","args":{}}"#, 422, "bad_arguments"),
        ("mutate", br#"{"reducer":"r","args":{},"client":"c","seq":9}"#, 409, "seq_gap"),
    ];
    for (route, body, status, code) in cases {
        let (found, answer) = post(&running, &format!("/v1/volumes/todo/{route}"), body).await;
        let body: String = String::from_utf8_lossy(body).chars().take(80).collect();
        let error: ErrorBody = serde_json::from_value(json!({ "error": answer["error"] })).unwrap();
        assert_eq!((found, error.error.code.as_str()), (*status, *code), "{route} {body}: {answer}");
        assert!(error.error.message.len() < 1000, "{route} {body}: {answer}");
    }
    let host = running.addr();
    for (head, status, code) in [
        ("POST /v1/volumes/nowhere/query HTTP/1.1\r\nhost: {}", 404, "unknown_volume"),
        ("POST /v1/volumes/..%2fx/mutate HTTP/1.1\r\nhost: {}", 400, "bad_name"),
        ("GET /v1/volumes/nowhere HTTP/1.1\r\nhost: {}", 404, "unknown_volume"),
        ("GET /v1/volumes/todo/query HTTP/1.1\r\nhost: {}", 405, "method_not_allowed"),
        ("POST /v1/volumes/todo/mutate HTTP/1.1\r\nhost: evil.example", 403, "forbidden"),
        (
            "POST /v1/volumes/todo/query HTTP/1.1\r\nhost: {}\r\norigin: https://evil.example",
            403,
            "forbidden",
        ),
    ] {
        let body = br#"{"sql":"SELECT 1"}"#;
        let (found, answer) = request(&running, &head.replace("{}", &host.to_string()), body).await;
        assert_eq!((found, answer["error"]["code"].as_str()), (status, Some(code)), "{head}: {answer}");
    }
    let (status, rows) = query(&running, TASKS, None).await;
    assert_eq!((status, &rows["rows"]), (200, &json!([])));
    assert!(running.shutdown().await);
}

/// A volume without a module, made straight in the store.
#[tokio::test(flavor = "multi_thread")]
async fn a_volume_without_a_module_says_so() {
    let store: SharedRemote = Arc::new(graft::remote::MemoryRemote::new());
    let meta = graft::format::meta::Meta { page_size: graft::PageSize::DEFAULT, parent: None };
    let name = "bare".parse().unwrap();
    graft::catalog::create(&*store, &name, graft::VolumeId([3; 16]), meta).await.unwrap();
    let running = start(store).await;
    let (status, info) = get(&running, "/v1/volumes/bare").await;
    assert_eq!((status, &info["module"], &info["reducers"]), (200, &Value::Null, &json!([])), "{info}");
    let body = json!({ "reducer": "add_task", "args": {} });
    let (status, said) = post_json(&running, "/v1/volumes/bare/mutate", &body).await;
    assert_eq!((status, &said["error"]["code"]), (422, &json!("no_module")), "{said}");
    assert!(running.shutdown().await);
}

/// What holds a mutation up is told at once and by name, also to who has no socket; it is not lost for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_mutation_that_damage_holds_up_is_told_without_a_socket() {
    let store = memory();
    assert!(start_todo(store.clone(), |_| {}).await.shutdown().await);
    let modules = store.list("modules/", None, 10).await.unwrap();
    let key = modules[0].key.clone();
    let whole = store.get(&key).await.unwrap();
    store.delete(&key).await.unwrap();
    store.create(&key, bytes::Bytes::from_static(b"no module")).await.unwrap();
    // No answer would come in time.
    let running =
        start_with(store.clone(), |config| config.limits.http.answer_max = Duration::from_secs(600)).await;
    let add = accepted(add_task("a"), "shop", 1);
    let (status, told) = mutate(&running, add.clone()).await;
    assert_eq!((status, &told["status"]), (503, &json!("unknown")), "{told}");
    assert_eq!(told["error"]["code"], json!(sqlsync_layer::protocol::codes::DAMAGED), "{told}");
    assert!(
        told["error"]["message"].as_str().is_some_and(|message| message.contains(&key["modules/".len()..])),
        "{told}"
    );

    store.delete(&key).await.unwrap();
    store.create(&key, whole).await.unwrap();
    let (status, done) = mutate(&running, add).await;
    assert_eq!((status, &done["status"]), (200, &json!("accepted")), "{done}");
    assert!(running.shutdown().await);
}

/// Whoever sends a mutation each to another server is told of no gap because the second has not heard of the
/// first; a gap that is one is told.
#[tokio::test(flavor = "multi_thread")]
async fn mutations_of_one_client_go_to_any_server() {
    let store = memory();
    let one = start_todo(store.clone(), |_| {}).await;
    let other = start(store).await;
    for seq in [1, 3] {
        // Both have the volume open, and each knows of what itself did.
        for (running, seq) in [(&one, seq), (&other, seq + 1)] {
            let (_, rows) = query(running, TASKS, None).await;
            assert!(rows["rows"].is_array(), "{rows}");
            let mut add = accepted(add_task(&format!("t{seq}")), "shop", seq);
            add["wait"] = "durable".into();
            let (status, done) = mutate(running, add).await;
            assert_eq!(
                (status, &done["status"], &done["seq"]),
                (200, &json!("durable"), &json!(seq)),
                "{done}"
            );
        }
    }
    let (_, rows) = query(&other, TASKS, None).await;
    assert_eq!(rows["rows"], json!([["t1"], ["t2"], ["t3"], ["t4"]]));
    for (client, seq) in [("shop", 6), ("nobody", 2)] {
        let (_, said) = mutate(&one, accepted(add_task("late"), client, seq)).await;
        assert_eq!(said["error"]["code"], json!(sqlsync_layer::protocol::codes::SEQ_GAP), "{said}");
    }
    assert!(one.shutdown().await && other.shutdown().await);
}
