//! Hostile and mistaken clients: what is refused, how it is said, and that everyone else is served on.
//!
//! Hostile modules are in `bad_modules.rs`, damaged and unreachable stores in `bad_stores.rs`.

use serde_json::{Value as Json, json};
use sqlsync_layer::protocol::{FRAME_BYTES_MAX, ServerMessage};
use tests::places;
use tests::process::{Output, Server, command, graft, run, store};
use tests::raw::{Bystander, Raw, exchange, request};

/// What C's printf would obey, and what a shell and a file system would.
const FORMATS: &str = "%s%n%s%n%d%p %1$s `'\" ../";

/// A server with a volume `todo` that holds a list `home`.
fn serve() -> (tempfile::TempDir, Server) {
    let (dir, store) = store();
    let server = Server::start(&store);
    server.deploy("todo", "todo");
    server.mutate("todo", "create_list", json!({ "id": "home", "name": "Home" }));
    (dir, server)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn malformed_frames_end_their_connection_with_a_reason() {
    let (_dir, mut server) = serve();
    let address = server.address().to_string();
    let mut bystander = Bystander::connect(&address).await;
    let deep = format!(r#"{{"type":"mutate","seq":1,"reducer":"r","args":{}}}"#, "[".repeat(100_000));
    let long = "x".repeat(FRAME_BYTES_MAX + 1);
    let hello = r#"{"type":"hello","protocols":[1],"client":"again"}"#;
    for frame in [
        "",
        "null",
        "[]",
        "{",
        "{}",
        "\u{0}",
        FORMATS,
        hello,
        r#"{"type":"nonsense"}"#,
        r#"{"type":"welcome"}"#,
        r#"{"type":"ping"}"#,
        r#"{"type":"ping","n":-1}"#,
        r#"{"type":"ping","n":1.5}"#,
        r#"{"type":"ping","n":1,"n":2}"#,
        r#"{"type":"ping","n":1,"more":0}"#,
        r#"{"type":"ping","n":1} {"type":"ping","n":2}"#,
        r#"{"type":"ping","n":18446744073709551616}"#,
        r#"{"type":"mutate","seq":1,"reducer":"r","args":[]}"#,
        r#"{"type":"mutate","seq":1,"reducer":"r"}"#,
        r#"{"type":"mutate","seq":"1","reducer":"r","args":{}}"#,
        r#"{"type":"mutate","seq":1,"reducer":"r","args":{"n":1e999}}"#,
        r#"{"type":"mutate","seq":1,"reducer":"r","args":{},"seed":"xyz"}"#,
        r#"{"type":"mutate","seq":1,"reducer":"r","args":{},"seed":7}"#,
        r#"{"type":"mutate","seq":1,"reducer":"r","args":{},"clock":1.5}"#,
        r#"{"type":"mutate","seq":1,"reducer":"\ud800","args":{}}"#,
        r#"{"type":"subscribe","sub":1,"sql":7}"#,
        r#"{"type":"subscribe","sub":1,"sql":"SELECT 1","params":"x"}"#,
        r#"{"type":"subscribe","sub":1,"sql":"SELECT 1","key":"id"}"#,
        r#"{"type":"query","id":1}"#,
        &deep,
        &long,
    ] {
        let shown = &frame[..frame.len().min(80)];
        let mut raw = Raw::connect(&address, "todo", "hostile").await;
        raw.send(frame).await;
        assert_eq!(raw.refused(shown).await, "bad_message", "{shown}");
    }
    for bytes in [vec![], vec![0; 10], hello.as_bytes().to_vec(), vec![0xff; 1 << 20]] {
        let mut raw = Raw::connect(&address, "todo", "hostile").await;
        raw.send_binary(bytes).await;
        assert_eq!(raw.refused("a binary frame").await, "bad_message");
    }
    for (first, code) in [
        (r#"{"type":"ping","n":1}"#, "bad_message"),
        (r#"{"type":"mutate","seq":1,"reducer":"r","args":{}}"#, "bad_message"),
        (r#"{"type":"hello","protocols":[2,9],"client":"c"}"#, "unsupported_protocol"),
        (r#"{"type":"hello","protocols":[],"client":"c"}"#, "unsupported_protocol"),
        (r#"{"type":"hello","protocols":[-1],"client":"c"}"#, "bad_message"),
        (r#"{"type":"hello","protocols":[1],"client":""}"#, "bad_message"),
        (r#"{"type":"hello","protocols":[1],"client":"../c"}"#, "bad_message"),
        (r#"{"type":"hello","protocols":[1],"client":"%s%n"}"#, "bad_message"),
        (r#"{"type":"hello","protocols":[1],"client":"c","token":"x"}"#, "bad_message"),
        (r#"{"type":"hello","protocols":[1]}"#, "bad_message"),
    ] {
        let mut raw = Raw::dial(&address, "todo").await;
        raw.send(first).await;
        assert_eq!(raw.refused(first).await, code, "{first}");
    }
    bystander.check("malformed frames").await;

    // What is not even HTTP, or never ends.
    let endless = format!("GET / HTTP/1.1\r\nx: {}", "a".repeat(1 << 20));
    for bytes in [b"\0\xff\xfe\r\n\r\n".as_slice(), b"HELO\r\n\r\n", endless.as_bytes()] {
        let answer = exchange(&address, bytes).await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
    }
    bystander.check("bytes that are no HTTP").await;
    assert_eq!(server.stop(), Some(0), "{}", server.process().told());
}

/// Refusals on one connection, which goes on: each is typed and final, and costs the next nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mutations_that_cannot_run_are_rejected_with_a_code() {
    let (_dir, mut server) = serve();
    let address = server.address().to_string();
    let mut bystander = Bystander::connect(&address).await;
    let mut raw = Raw::connect(&address, "todo", "mistaken").await;
    let title = |title: Json| json!({ "id": "t", "list": "home", "title": title });
    let cases = [
        ("no_such_thing", json!({}), "unknown_reducer", "add_task"),
        ("", json!({}), "unknown_reducer", "add_task"),
        (FORMATS, json!({}), "unknown_reducer", FORMATS),
        ("graft_call", json!({}), "unknown_reducer", "graft_call"),
        ("create_tables", json!({}), "unknown_reducer", "create_tables"),
        ("add_task", json!({}), "bad_arguments", "missing argument"),
        ("add_task", json!({ "id": "t", "list": "home" }), "bad_arguments", "`title`"),
        (
            "add_task",
            json!({ "id": "t", "list": "home", "title": "t", FORMATS: 1 }),
            "bad_arguments",
            FORMATS,
        ),
        ("add_task", title(json!(null)), "bad_arguments", "string"),
        ("add_task", title(json!(7)), "bad_arguments", "string"),
        ("add_task", title(json!(["t"])), "bad_arguments", "string"),
        ("add_task", title(json!({ "$blob": "AA==" })), "bad_arguments", "string"),
        ("add_task", title(json!({ "$blob": "not base64!" })), "bad_arguments", "string"),
        ("add_task", title(json!({ "$int": "7" })), "bad_arguments", "string"),
        ("add_task", title(json!({ "$nope": "7" })), "bad_arguments", "string"),
        ("set_done", json!({ "id": "t", "done": 1 }), "bad_arguments", "boolean"),
        ("set_done", json!({ "id": "t", "done": "yes" }), "bad_arguments", "boolean"),
        ("set_done", json!({ "id": "t", "done": { "$int": "1" } }), "bad_arguments", "boolean"),
        ("move_task", json!({ "id": "t", "position": "1" }), "bad_arguments", "number"),
        (
            "move_task",
            json!({ "id": "t", "position": { "$int": "99999999999999999999" } }),
            "bad_arguments",
            "number",
        ),
        ("move_task", json!({ "id": "t", "position": { "$int": 5 } }), "bad_arguments", "number"),
        ("move_task", json!({ "id": "t", "position": { "$real": "nan" } }), "bad_arguments", "number"),
        ("move_task", json!({ "id": "t", "position": 18446744073709551615u64 }), "bad_arguments", "number"),
        ("move_task", json!({ "id": "t", "position": { "$real": "inf" } }), "refused", "finite"),
        (
            "move_task",
            json!({ "id": "t", "position": { "$real": "-inf", "more": 1 } }),
            "bad_arguments",
            "number",
        ),
        ("add_task", json!({ "id": "t", "list": FORMATS, "title": "t" }), "refused", FORMATS),
        ("rename_task", json!({ "id": FORMATS, "title": FORMATS }), "refused", FORMATS),
    ];
    for (seq, (reducer, args, code, part)) in (1u64..).zip(&cases) {
        raw.say(json!({ "type": "mutate", "seq": seq, "reducer": reducer, "args": args })).await;
        match raw.hear().await {
            ServerMessage::Rejected { seq: answered, reason, .. } => {
                assert_eq!((answered, &*reason.code), (seq, *code), "{reducer} {args}: {reason}");
                assert!(reason.message.contains(part), "{reducer} {args}: {reason}");
            }
            other => panic!("{reducer} {args}: {other:?}"),
        }
    }
    let next = cases.len() as u64 + 1;
    bystander.check("mutations that cannot run").await;

    // Seqs that are not the next one.
    let reused = json!({ "id": "other" });
    for (seq, args, code) in [
        (0, json!({}), "seq_forgotten"),
        (next + 1, json!({}), "seq_gap"),
        (u64::MAX, json!({}), "seq_gap"),
        (1, reused.clone(), "seq_reused"),
        (next - 1, reused, "seq_reused"),
    ] {
        raw.say(json!({ "type": "mutate", "seq": seq, "reducer": "delete_task", "args": args })).await;
        match raw.hear().await {
            ServerMessage::Refused { seq: answered, reason } => {
                assert_eq!((answered, &*reason.code), (seq, code), "{reason}");
            }
            other => panic!("seq {seq}: {other:?}"),
        }
    }
    // Extreme clocks and seeds are only numbers; text may hold anything but half a character.
    let wild = "\u{0}\u{1}\u{feff}\u{10ffff}\r\n\u{202e}𝄞";
    for (at, (clock, seed)) in
        [(i64::MIN, "0000000000000000"), (i64::MAX, "ffffffffffffffff")].into_iter().enumerate()
    {
        let args =
            json!({ "id": format!("{wild}{at}"), "list": "home", "title": format!("{FORMATS}{wild}") });
        let seq = next + at as u64;
        raw.say(json!({ "type": "mutate", "seq": seq, "reducer": "add_task", "args": args, "clock": clock, "seed": seed }))
            .await;
        assert!(matches!(raw.hear().await, ServerMessage::Accepted { .. }));
        assert!(matches!(raw.hear().await, ServerMessage::Durable { .. }));
    }
    let sql = "SELECT id, title FROM tasks WHERE id = ?1";
    raw.say(json!({ "type": "query", "id": 1, "sql": sql, "params": [format!("{wild}0")] })).await;
    match raw.hear().await {
        ServerMessage::Rows { rows, .. } => {
            assert_eq!(rows, [[json!(format!("{wild}0")), json!(format!("{FORMATS}{wild}"))]]);
        }
        other => panic!("{other:?}"),
    }
    bystander.check("wild text").await;
    assert_eq!(server.stop(), Some(0), "{}", server.process().told());
    assert_eq!(server.sql("todo", "PRAGMA integrity_check"), json!([["ok"]]));
}

/// Two copies of one client id: the second to use a seq is told so, and nothing of its is applied.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cloned_client_is_told_so() {
    let (_dir, server) = serve();
    let address = server.address();
    let mut bystander = Bystander::connect(address).await;
    let mut first = Raw::connect(address, "todo", "twin").await;
    let mut second = Raw::connect(address, "todo", "twin").await;
    let add = |id: &str| {
        let args = json!({ "id": id, "list": "home", "title": id });
        json!({ "type": "mutate", "seq": 1, "reducer": "add_task", "args": args })
    };
    first.say(add("mine")).await;
    assert!(matches!(first.hear().await, ServerMessage::Accepted { seq: 1, .. }));
    assert!(matches!(first.hear().await, ServerMessage::Durable { seq: 1, .. }));
    second.say(add("no, mine")).await;
    // The twin hears the answers to its id as well; then comes the refusal of its own.
    let refused = loop {
        match second.hear().await {
            ServerMessage::Refused { seq: 1, reason } => break reason,
            ServerMessage::Accepted { seq: 1, .. } | ServerMessage::Durable { seq: 1, .. } => {}
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(refused.code, "seq_reused");
    assert!(refused.message.contains("twin") && refused.message.contains("new id"), "{refused}");
    // The same mutation again is no clone: it is answered from the record.
    second.say(add("mine")).await;
    assert!(matches!(second.hear().await, ServerMessage::Durable { seq: 1, .. }));
    bystander.check("a cloned client").await;
    assert_eq!(server.query("todo", "SELECT id FROM tasks WHERE title NOT IN ('good')"), json!([["mine"]]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sql_that_is_not_one_read_is_refused() {
    let (_dir, mut server) = serve();
    let address = server.address().to_string();
    let mut bystander = Bystander::connect(&address).await;
    let mut raw = Raw::connect(&address, "todo", "asker").await;
    let mut number = 0;
    let mut ask = async |raw: &mut Raw, kind: &str, sql: &str, params: Json, key: Json| {
        number += 1;
        let id = if kind == "query" { "id" } else { "sub" };
        let mut message = json!({ "type": kind, id: number, "sql": sql });
        if !params.is_null() {
            message["params"] = params;
        }
        if !key.is_null() {
            message["key"] = key;
        }
        raw.say(message).await;
        match raw.hear().await {
            ServerMessage::QueryError { id, reason } if kind == "query" && id == number => reason,
            ServerMessage::SubscriptionError { sub, reason } if kind == "subscribe" && sub == number => {
                reason
            }
            other => panic!("{kind} {sql}: {other:?}"),
        }
    };
    let long = format!("SELECT {}1", "1+".repeat(100_000));
    for sql in [
        "",
        ";",
        "-- nothing",
        "SELECT 1; SELECT 2",
        "SELECT 1;;DELETE FROM tasks",
        "SELECT 1\0",
        "\0",
        "SELEC 1",
        FORMATS,
        "SELECT %s FROM \"%n%s\"",
        "SELECT * FROM nowhere",
        "SELECT nothing FROM tasks",
        "INSERT INTO tasks VALUES ('x', 'home', 'x', 0, 1)",
        "INSERT INTO tasks VALUES ('x', 'home', 'x', 0, 1) RETURNING id",
        "UPDATE tasks SET title = 'x'",
        "DELETE FROM tasks",
        "REPLACE INTO lists VALUES ('home', 'x')",
        "WITH x AS (SELECT 1) DELETE FROM tasks",
        "CREATE TABLE x(y)",
        "CREATE TEMP TABLE x(y)",
        "CREATE VIEW v AS SELECT 1",
        "DROP TABLE tasks",
        "ALTER TABLE tasks RENAME TO x",
        "REINDEX",
        "ANALYZE",
        "VACUUM",
        "VACUUM INTO '/tmp/x'",
        "ATTACH '/etc/passwd' AS p",
        "ATTACH ':memory:' AS m",
        "DETACH main",
        "BEGIN",
        "BEGIN IMMEDIATE",
        "COMMIT",
        "ROLLBACK",
        "SAVEPOINT x",
        "PRAGMA user_version",
        "PRAGMA user_version = 7",
        "PRAGMA writable_schema = 1",
        "PRAGMA journal_mode = OFF",
        "PRAGMA \"%s%n\"",
        "SELECT * FROM pragma_database_list",
        "SELECT load_extension('x')",
        "SELECT random()",
        "SELECT randomblob(10)",
        "SELECT last_insert_rowid()",
        "SELECT changes()",
        "SELECT sqlite_version()",
        "SELECT ?1",
        "SELECT :a",
        &long,
    ] {
        let shown = &sql[..sql.len().min(60)];
        for kind in ["query", "subscribe"] {
            let reason = ask(&mut raw, kind, sql, Json::Null, Json::Null).await;
            assert_eq!(reason.code, "bad_query", "{kind} {shown}: {reason}");
            assert!(!reason.message.is_empty() && reason.message.len() < 1000, "{shown}: {reason}");
        }
    }
    bystander.check("SQL that is no read").await;
    for sql in ["SELECT datetime('now')", "SELECT CURRENT_TIMESTAMP", "SELECT unixepoch()"] {
        let reason = ask(&mut raw, "subscribe", sql, Json::Null, Json::Null).await;
        assert_eq!(reason.code, "bad_query", "{sql}: {reason}");
    }
    let one = "SELECT ?1 AS a";
    for params in [
        json!([]),
        json!([1, 2]),
        json!({ "b": 1 }),
        json!([[1]]),
        json!([{ "$blob": "%s" }]),
        json!([{ "$int": "" }]),
        json!([{ "$int": "9223372036854775808" }]),
        json!([{ "$real": "nan" }]),
        json!([{ "$real": 1 }]),
        json!([{ "$blob": "AA==", "$int": "1" }]),
        json!([{ FORMATS: "x" }]),
        json!([18446744073709551615u64]),
    ] {
        for kind in ["query", "subscribe"] {
            let reason = ask(&mut raw, kind, one, params.clone(), Json::Null).await;
            assert_eq!(reason.code, "bad_query", "{kind} {params}: {reason}");
        }
    }
    for key in [json!(["b"]), json!([FORMATS]), json!(["a", "nothing"])] {
        let reason = ask(&mut raw, "subscribe", "SELECT 1 AS a", Json::Null, key.clone()).await;
        assert_eq!(reason.code, "bad_query", "{key}: {reason}");
    }
    // An id in use, one that never was.
    raw.say(json!({ "type": "subscribe", "sub": 1_000_000, "sql": "SELECT 1" })).await;
    assert!(matches!(raw.hear().await, ServerMessage::Snapshot { sub: 1_000_000, .. }));
    raw.say(json!({ "type": "subscribe", "sub": 1_000_000, "sql": "SELECT 2" })).await;
    raw.say(json!({ "type": "unsubscribe", "sub": 7_000_000 })).await;
    for expected in [1_000_000, 7_000_000] {
        match raw.hear().await {
            ServerMessage::SubscriptionError { sub, reason } => {
                assert_eq!((sub, &*reason.code), (expected, "bad_subscription"), "{reason}");
            }
            other => panic!("{other:?}"),
        }
    }
    bystander.check("parameters and keys that do not fit").await;

    // Answers that are too much.
    let endless = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c)";
    for (sql, codes) in [
        (format!("{endless} SELECT count(*) FROM c"), &["limit"][..]),
        (format!("{endless} SELECT x FROM c"), &["bad_query", "limit"]),
        ("SELECT zeroblob(1000000000)".into(), &["bad_query", "limit"]),
        ("SELECT hex(zeroblob(20000000))".into(), &["bad_query", "limit"]),
    ] {
        let reason = ask(&mut raw, "query", &sql, Json::Null, Json::Null).await;
        assert!(codes.contains(&&*reason.code), "{sql}: {reason}");
        bystander.check(&sql).await;
    }
    raw.say(json!({ "type": "ping", "n": 5 })).await;
    assert_eq!(raw.hear().await, ServerMessage::Pong { n: 5 });
    assert_eq!(server.query("todo", "SELECT count(*) FROM lists"), json!([[1]]), "nothing was changed");
    assert_eq!(server.stop(), Some(0), "{}", server.process().told());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_that_are_none_are_refused_everywhere() {
    let (dir, mut server) = serve();
    let address = server.address().to_string();
    let mut bystander = Bystander::connect(&address).await;
    let module = places::reducer_module("todo");
    let wasm = std::fs::read(&module).unwrap();
    let long = "x".repeat(101);
    for name in [
        "..",
        "../x",
        "..\\x",
        "%s",
        "%s%n",
        "a b",
        "",
        ".hidden",
        "a/b",
        "/etc",
        "a\nb",
        "é",
        "a\u{202e}b",
        &long,
    ] {
        let escaped: String = name.bytes().map(|byte| format!("%{byte:02x}")).collect();
        let upgrade = "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==";
        let sync = format!("GET /v1/volumes/{escaped}/sync HTTP/1.1\r\n{upgrade}");
        let deploy = format!("POST /v1/volumes/{escaped}/modules HTTP/1.1");
        for (head, body) in [(&sync, &b""[..]), (&deploy, &wasm)] {
            let (status, answer) = request(&address, head, body).await;
            let code = answer["error"]["code"].as_str();
            assert_eq!((status, code), (400, Some("bad_name")), "{name:?} {head}: {answer}");
        }
        let module = module.to_string_lossy();
        for args in [
            &["deploy", &module, "--volume", name, "--url", server.url()][..],
            &["query", "SELECT 1", "--volume", name, "--url", server.url()],
            &["sql", "SELECT 1", "--volume", name, "--store", server.store()],
            &["volume", "info", name, "--store", server.store()],
            &["volume", "log", name, "--store", server.store()],
        ] {
            let error = graft(args).error();
            assert!(error.contains("cannot name a volume"), "{args:?}: {error}");
            assert!(!error.contains(['\u{202e}', '\r']) && error.lines().count() == 1, "{args:?}: {error:?}");
        }
    }
    // Names that are fine, but nobody's.
    for name in ["nobody", "-", "_", "a.b", &long[..100]] {
        let query = [
            "query",
            "SELECT 1",
            "--connect-timeout",
            "3",
            "--url",
            server.url(),
            &format!("--volume={name}"),
        ];
        let error = graft(query).error();
        assert!(error.contains(&format!("no volume `{name}`")), "{error}");
        let error =
            graft(["sql", "SELECT 1", "--store", server.store(), &format!("--volume={name}")]).error();
        assert!(error.contains(&format!("no volume `{name}`")), "{error}");
    }
    bystander.check("names").await;
    // Nothing was created by any of them, inside of the store or beside it.
    let ls = server.stored(&["volume", "ls", "--json"]).json();
    assert_eq!(ls["volumes"].as_array().map(Vec::len), Some(1), "{ls}");
    let beside: Vec<_> =
        std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(beside, ["store"]);
    assert_eq!(server.stop(), Some(0), "{}", server.process().told());
}

/// Text that printf would obey goes through every layer as text: names, values, SQL, errors, paths.
#[test]
fn formats_are_only_text() {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("%s%n store %d").to_string_lossy().into_owned();
    let mut server = Server::start_with_data(&store, &dir.path().join("%s%n data"));
    server.deploy("todo", "todo");
    server.mutate("todo", "create_list", json!({ "id": FORMATS, "name": FORMATS }));
    let sql =
        format!("SELECT id AS \"%s%n\", title, '{}' FROM tasks WHERE list = ?1", FORMATS.replace('\'', "''"));
    let mut watch = server.watch("todo", &sql, &json!([FORMATS]).to_string());
    assert_eq!(watch.message()["columns"][0], "%s%n");
    server.mutate("todo", "add_task", json!({ "id": FORMATS, "list": FORMATS, "title": FORMATS }));
    assert_eq!(watch.change()["changes"], json!({ "insert": [[0, [FORMATS, FORMATS, FORMATS]]] }));
    let again = json!({ "id": FORMATS, "list": FORMATS, "title": FORMATS }).to_string();
    let rejected = server.graft(&["mutate", "add_task", &again, "--volume", "todo"]).expect(2);
    assert!(rejected.stderr.contains(&format!("there is a task {FORMATS} already")), "{rejected}");

    let params = json!({ "%s": 1 }).to_string();
    for args in [
        &["query", "SELECT %s%n"][..],
        &["query", "SELECT 1", "--params", "[\"%s%n\"]"],
        &["query", "SELECT :a", "--params", &params],
        &["subscribe", "SELECT * FROM \"%s%n\""],
        &["mutate", "%s%n", "%s%n"],
        &["mutate", "add_task", "{}", "--client", "%s%n"],
    ] {
        server.graft(&[args, &["--volume", "todo"]].concat()).error();
    }
    let replica = dir.path().join("%s%n replica").to_string_lossy().into_owned();
    for (sql, code) in [
        ("SELECT '%s%n%s%n', title FROM tasks", 0),
        ("PRAGMA \"%s%n\"", 0),
        ("SELECT * FROM \"%s%n\"", 1),
        ("SELECT %s%n", 1),
        ("ATTACH '%s%n' AS \"%s%n\"", 1),
        ("CREATE TABLE \"%s%n\"(x)", 1),
    ] {
        for data in [&[][..], &["--data", &replica]] {
            let output = server.stored(&[&["sql", sql, "--volume", "todo"], data].concat());
            let output = output.expect(code);
            assert!(!output.stderr.contains("panicked"), "{output}");
        }
    }
    let create = "CREATE TABLE \"%s%n\"(\"%d\" DEFAULT '%s'); INSERT INTO \"%s%n\" DEFAULT VALUES";
    server.stored(&["sql", create, "--volume", "todo", "--write"]).expect(0);
    assert_eq!(server.sql("todo", "SELECT * FROM \"%s%n\""), json!([["%s"]]));
    server.mutate("todo", "delete_task", json!({ "id": FORMATS }));
    assert_eq!(server.query("todo", "SELECT * FROM \"%s%n\""), json!([["%s"]]));
    let info = server.stored(&["volume", "info", "todo", "--json"]).json();
    assert!(info["store"].as_str().unwrap().contains("%25s%25n"), "{info}");
    assert_eq!(server.stop(), Some(0), "{}", server.process().told());
}

#[test]
fn mistakes_on_the_command_line_are_said_plainly() {
    let (dir, mut server) = serve();
    let missing = dir.path().join("missing.wasm").to_string_lossy().into_owned();
    let folder = dir.path().to_string_lossy().into_owned();
    let text = dir.path().join("text.wasm");
    std::fs::write(&text, "not a module").unwrap();
    let text = text.to_string_lossy().into_owned();
    let long = format!("{{\"x\":\"{}\"}}", "x".repeat(FRAME_BYTES_MAX / 40));
    let todo = ["--volume", "todo", "--url", server.url()];
    for (args, part) in [
        (&["deploy", &missing][..], "missing.wasm"),
        (&["deploy", &folder], &folder),
        (&["deploy", &text], "invalid_module"),
        (&["mutate", "add_task", "{"], "JSON"),
        (&["mutate", "add_task", "[]"], "an array"),
        (&["mutate", "add_task", "7"], "a number"),
        (&["mutate", "add_task", "{}", "--client", "a b"], "client id"),
        (&["mutate", "add_task", "{}", "--client", ""], "client id"),
        (&["query", "SELECT 1", "--params", "7"], "JSON"),
        (&["query", "SELECT 1", "--params", "{"], "JSON"),
        (&["query", "DELETE FROM tasks"], "bad_query"),
        (&["subscribe", "DELETE FROM tasks"], "bad_query"),
        (&["subscribe", "SELECT 1", "--key", "nothing"], "nothing"),
    ] {
        let error = server_error(args, &todo);
        assert!(error.contains(part), "{args:?}: {error}");
    }
    let output = graft([&["mutate", "add_task", &long][..], &todo].concat()).expect(2);
    assert!(output.stderr.contains("bad_arguments"), "{output}");

    let module = places::reducer_module("todo").to_string_lossy().into_owned();
    for url in [
        "",
        "nonsense",
        "http://",
        "https://127.0.0.1:1",
        "ftp://127.0.0.1",
        "127.0.0.1:4600",
        "%s",
        "http://[",
        "http://127.0.0.1:99999",
    ] {
        for args in [&["deploy", &module][..], &["mutate", "add_task", "{}"], &["query", "SELECT 1"]] {
            let output =
                graft([args, &["--volume", "todo", "--url", url, "--connect-timeout", "2"]].concat());
            let error = output.error();
            assert!(error.contains("http://127.0.0.1:4600"), "{args:?} {url}: {error}");
        }
    }
    for (args, part) in [
        (&["serve", "--listen", "0.0.0.0:0"][..], "no authentication"),
        (&["serve", "--listen", "[::]:0"], "no authentication"),
        (&["serve", "--listen", server.address()], "in use"),
        (&["serve", "--listen", "nonsense"], "--listen"),
    ] {
        let error = graft(args.iter().chain(&["--store", server.store()])).error();
        assert!(error.contains(part), "{args:?}: {error}");
    }
    // Asked for help or spoken to wrongly, it is not 2: that means a rejection.
    for (args, code) in
        [(&["--help"][..], 0), (&["mutate", "--help"], 0), (&[], 1), (&["nonsense"], 1), (&["mutate"], 1)]
    {
        graft(args).expect(code);
    }
    let mut with_environment = command(["query", "SELECT 1 AS one", "--json"]);
    with_environment.env("GRAFT_VOLUME", "todo").env("GRAFT_URL", server.url());
    assert_eq!(run(with_environment).json()["rows"], json!([[1]]));
    assert_eq!(server.stop(), Some(0), "{}", server.process().told());
}

#[track_caller]
fn server_error(args: &[&str], rest: &[&str]) -> String {
    let output: Output = graft([args, rest].concat());
    output.error()
}
