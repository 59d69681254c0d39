//! Hostile reducer modules, deployed and called: a rejection with a reason, and everyone else is served on.
//!
//! What a module can do to its host is tested beside the host (`reducers/host/tests/hostile.rs`); here it
//! goes the whole way: HTTP, store, actor, wire.

use reducers_abi::codec::{encode_description, encode_values};
use reducers_abi::{Description, Param, Reducer, Type};
use serde_json::{Value as Json, json};
use sqlsync_layer::protocol::ServerMessage;
use tests::process::{Server, graft, store};
use tests::raw::{Bystander, Raw, request};
use tokio::time::Instant;

/// What `graft_call` answers for "done": the one byte 0 at address 2048.
const DONE: &str = "(i64.const 0x0000080000000001)";

/// A module written by hand, whose parts a test replaces.
struct Module {
    imports: &'static str,
    memory: &'static str,
    /// The body of `graft_alloc`.
    alloc: &'static str,
    migrations: Vec<u32>,
    /// The body of `graft_describe`; by default it answers a true description.
    describe: Option<&'static str>,
    /// The body of `graft_call (param $at i32) (param $len i32) (result i64)`.
    call: String,
    /// Further fields.
    more: String,
}

impl Default for Module {
    fn default() -> Module {
        Module {
            imports: "",
            memory: r#"(memory (export "memory") 1)"#,
            alloc: "(i32.const 4096)",
            migrations: vec![],
            describe: None,
            call: DONE.into(),
            more: String::new(),
        }
    }
}

impl Module {
    fn calling(call: &str) -> Module {
        Module { call: call.into(), ..Module::default() }
    }

    fn wasm(&self) -> Vec<u8> {
        let param = Param { name: "n".into(), ty: Type::Integer, optional: true };
        let go = Reducer { name: "go".into(), params: vec![param], doc: String::new() };
        let description = Description { reducers: vec![go], migrations: self.migrations.clone() };
        let description = encode_description(&description);
        let packed = format!("(i64.const {})", (1024u64 << 32) | description.len() as u64);
        let describe = self.describe.unwrap_or(&packed);
        let data = escaped(&description);
        let Module { imports, memory, alloc, call, more, .. } = self;
        let text = format!(
            r#"(module
                (import "graft" "execute" (func $execute (param i32 i32 i32 i32) (result i32)))
                (import "graft" "query" (func $query (param i32 i32 i32 i32) (result i32)))
                (import "graft" "take" (func $take (param i32 i32)))
                (import "graft" "log" (func $log (param i32 i32)))
                (import "graft" "abort" (func $abort (param i32 i32)))
                {imports}
                {memory}
                (data (i32.const 1024) "{data}")
                (data (i32.const 2048) "\00")
                {more}
                (func (export "graft_abi_version") (result i32) (i32.const 1))
                (func (export "graft_alloc") (param $len i32) (result i32) {alloc})
                (func (export "graft_describe") (result i64) {describe})
                (func (export "graft_call") (param $at i32) (param $len i32) (result i64) {call})
            )"#
        );
        wat::parse_str(&text).unwrap_or_else(|error| panic!("{error}\n{text}"))
    }
}

/// A WAT string literal of any bytes.
fn escaped(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("\\{byte:02x}")).collect()
}

/// A module whose reducer runs statements, whatever they answer, and then is done.
fn running(statements: &[&str]) -> Module {
    let none = encode_values(&[]);
    let (mut call, mut more, mut at) = (String::new(), String::new(), 8200);
    more.push_str(&format!("(data (i32.const 8192) \"{}\")", escaped(&none)));
    for sql in statements {
        more.push_str(&format!("(data (i32.const {at}) \"{}\")", escaped(sql.as_bytes())));
        let len = sql.len();
        call.push_str(&format!(
            "(drop (call $execute (i32.const {at}) (i32.const {len}) (i32.const 8192) (i32.const {})))",
            none.len()
        ));
        at += len;
    }
    call.push_str(DONE);
    Module { call, more, ..Module::default() }
}

/// A server with a volume `todo` for the bystander.
async fn serve() -> (tempfile::TempDir, Server, Bystander) {
    let (dir, store) = store();
    let server = Server::start(&store);
    server.deploy("todo", "todo");
    server.mutate("todo", "create_list", json!({ "id": "home", "name": "Home" }));
    let bystander = Bystander::connect(server.address()).await;
    (dir, server, bystander)
}

async fn deploy(server: &Server, volume: &str, wasm: &[u8]) -> (u16, Json) {
    let head = format!("POST /v1/volumes/{volume}/modules HTTP/1.1");
    request(server.address(), &head, wasm).await
}

/// Calls `go` as a new client; the reason of its rejection, or `None` where it became durable.
async fn call(server: &Server, volume: &str, client: &str) -> Option<sqlsync_layer::protocol::Reason> {
    let mut raw = Raw::connect(server.address(), volume, client).await;
    raw.say(json!({ "type": "mutate", "seq": 1, "reducer": "go", "args": {} })).await;
    loop {
        match raw.hear().await {
            ServerMessage::Accepted { seq: 1, .. } => {}
            ServerMessage::Durable { seq: 1, .. } => return None,
            ServerMessage::Rejected { seq: 1, reason, .. } => return Some(reason),
            other => panic!("{client}: {other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_module_is_not_deployed() {
    let (dir, mut server, mut bystander) = serve().await;
    let good = Module::default().wasm();
    let wasm = |text: &str| wat::parse_str(text).unwrap();
    let mut unknown_import = good.clone();
    unknown_import.truncate(good.len() / 2);
    let imports = r#"(import "wasi_snapshot_preview1" "proc_exit" (func (param i32)))"#;
    for (what, bytes) in [
        ("nothing", vec![]),
        ("text", b"<!doctype html>".to_vec()),
        ("formats", b"%s%n%s%n".to_vec()),
        ("a bare header", b"\0asm\x01\0\0\0".to_vec()),
        ("a component", b"\0asm\x0d\0\x01\0".to_vec()),
        ("half a module", unknown_import),
        ("a module of another kind", wasm("(module (func (export \"main\")))")),
        ("no memory", Module { memory: "", ..Module::default() }.wasm()),
        ("a foreign import", Module { imports, ..Module::default() }.wasm()),
        (
            "64-bit memory",
            Module { memory: r#"(memory (export "memory") i64 1)"#, ..Module::default() }.wasm(),
        ),
        (
            "4 GiB of memory",
            Module { memory: r#"(memory (export "memory") 65536)"#, ..Module::default() }.wasm(),
        ),
        ("a description nowhere", Module { describe: Some("(i64.const -1)"), ..Module::default() }.wasm()),
        ("a description that is damaged", Module { describe: Some(DONE), ..Module::default() }.wasm()),
        ("a description that traps", Module { describe: Some("unreachable"), ..Module::default() }.wasm()),
        ("migrations with a gap", Module { migrations: vec![1, 3], ..Module::default() }.wasm()),
        ("migrations from 0", Module { migrations: vec![0], ..Module::default() }.wasm()),
        (
            "a start that traps",
            Module { more: "(func $s unreachable) (start $s)".into(), ..Module::default() }.wasm(),
        ),
        (
            "endless memory at start",
            Module {
                more: "(func $s (loop $l (drop (memory.grow (i32.const 1))) (br $l))) (start $s)".into(),
                ..Module::default()
            }
            .wasm(),
        ),
    ] {
        let (status, answer) = deploy(&server, "new", &bytes).await;
        let code = answer["error"]["code"].as_str();
        assert_eq!((status, code), (422, Some("invalid_module")), "{what}: {answer}");
        let message = answer["error"]["message"].as_str().unwrap();
        assert!(message.len() > 10 && message.len() < 2000, "{what}: {message}");

        let file = dir.path().join("module.wasm");
        std::fs::write(&file, &bytes).unwrap();
        let error =
            graft(["deploy", &file.to_string_lossy(), "--volume", "new", "--url", server.url()]).error();
        assert!(error.contains("invalid_module") && error.contains("module.wasm"), "{what}: {error}");
    }
    bystander.check("modules that are none").await;
    let ls = server.stored(&["volume", "ls", "--json"]).json();
    assert_eq!(ls["volumes"].as_array().map(Vec::len), Some(1), "a refused module leaves no volume: {ls}");
    assert_eq!(server.stop(), Some(0), "{}", server.process().told());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_module_that_traps_or_lies_is_a_rejection_with_a_reason() {
    let (_dir, mut server, mut bystander) = serve().await;
    let text = "(data (i32.const 8192) \"%s%n \\ff\")";
    let deep = "(func $deep (param i64) (result i64) (i64.add (call $deep (local.get 0)) (local.get 0)))";
    let with = |call: &str, more: &str| Module { more: more.into(), ..Module::calling(call) };
    for (number, (what, code, part, module)) in [
        ("unreachable", "trap", "unreachable", Module::calling("unreachable")),
        ("a division by zero", "trap", "divide by zero", Module::calling("(i64.div_u (i64.const 1) (i64.const 0))")),
        ("an address out of bounds", "trap", "out of bounds", Module::calling("(i64.load (i32.const 65530))")),
        ("an abort", "trap", "%s%n", with("(call $abort (i32.const 8192) (i32.const 6)) unreachable", text)),
        ("an answer nowhere", "trap", "outside", Module::calling("(i64.const 0xffffffff00000001)")),
        ("an endless answer", "limit", "bytes", Module::calling("(i64.const -1)")),
        ("an empty answer", "trap", "", Module::calling("(i64.const 0)")),
        ("a wrong answer", "trap", "", with("(i64.const 0x0000200000000005)", text)),
        ("a pointer that lies", "trap", "", Module::calling(
            "(drop (call $execute (i32.const -1) (i32.const -1) (i32.const -1) (i32.const -1))) unreachable",
        )),
        ("text that is none", "trap", "UTF-8", with("(call $log (i32.const 8192) (i32.const 6)) unreachable", text)),
        ("an answer taken twice", "trap", "", Module::calling("(call $take (i32.const 0) (i32.const 9)) unreachable")),
        ("an allocator that lies", "trap", "graft_alloc", Module { alloc: "(i32.const -1)", ..Module::default() }),
        ("endless recursion", "limit", "stack", with("(call $deep (i64.const 1))", deep)),
        ("endless memory", "limit", "bytes", Module::calling(
            "(loop $l (drop (memory.grow (i32.const 16))) (br $l)) unreachable",
        )),
        ("4 GiB at once", "limit", "bytes", Module::calling("(drop (memory.grow (i32.const 65535))) unreachable")),
    ]
    .into_iter()
    .enumerate()
    {
        let (status, answer) = deploy(&server, "evil", &module.wasm()).await;
        // A lie about execute's statement is told by length first: a limit is as right as a trap.
        let codes = if what == "a pointer that lies" { &["trap", "limit"][..] } else { &[code] };
        assert_eq!(status, 200, "{what}: {answer}");
        let reason = call(&server, "evil", &format!("caller-{number}")).await;
        let reason = reason.unwrap_or_else(|| panic!("{what} was applied"));
        assert!(codes.contains(&&*reason.code), "{what}: {reason}");
        assert!(reason.message.contains(part), "{what}: {reason}");
    }
    bystander.check("traps and lies").await;
    // The volume takes a good module and goes on; the history says what was rejected.
    assert_eq!(deploy(&server, "evil", &Module::default().wasm()).await.0, 200);
    assert_eq!(call(&server, "evil", "good").await, None);
    let rejected: u64 = server.log("evil").iter().map(|commit| commit["rejected"].as_u64().unwrap()).sum();
    assert_eq!(rejected, 15);
    assert_eq!(server.stop(), Some(0), "{}", server.process().told());
}

/// Statements that a reducer may not run fail for it alone, and leave nothing behind.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_module_cannot_leave_its_transaction_or_its_database() {
    let (dir, mut server, mut bystander) = serve().await;
    let outside = dir.path().join("outside.db");
    let attach = format!("ATTACH '{}' AS o", outside.display());
    let vacuum = format!("VACUUM INTO '{}'", outside.display());
    let tables =
        Module { migrations: vec![1], ..running(&["CREATE TABLE t(x UNIQUE ON CONFLICT ROLLBACK)"]) };
    assert_eq!(deploy(&server, "evil", &tables.wasm()).await.0, 200);
    for (number, (statements, outcome)) in [
        (&["COMMIT", "ROLLBACK", "BEGIN", "SAVEPOINT x", "RELEASE operation"][..], None),
        (&["ROLLBACK TO operation", "INSERT INTO t VALUES (1)", "END"], None),
        (&[&attach, &vacuum, "DETACH main", "CREATE TABLE u(x)", "DROP TABLE t"], None),
        (&["PRAGMA writable_schema = 1", "DELETE FROM sqlite_master", "PRAGMA journal_mode = WAL"], None),
        (
            &[
                "SELECT load_extension('/x')",
                "CREATE TEMP TABLE x(y)",
                "",
                "%s%n",
                "INSERT INTO nowhere VALUES (1)",
            ],
            None,
        ),
        // Ends the transaction under everyone: it alone is rejected.
        (&["INSERT INTO t VALUES (2)", "INSERT INTO t VALUES (1)"], Some("sql")),
        (&["INSERT INTO t VALUES (3)"], None),
    ]
    .into_iter()
    .enumerate()
    {
        let module = Module { migrations: vec![1], ..running(statements) };
        let (status, answer) = deploy(&server, "evil", &module.wasm()).await;
        assert_eq!(status, 200, "{statements:?}: {answer}");
        let reason = call(&server, "evil", &format!("caller-{number}")).await;
        assert_eq!(reason.as_ref().map(|reason| &*reason.code), outcome, "{statements:?}: {reason:?}");
    }
    assert!(!outside.exists());
    assert_eq!(server.query("evil", "SELECT x FROM t ORDER BY x"), json!([[1], [3]]));
    let schema = "SELECT name FROM sqlite_master ORDER BY name";
    assert_eq!(server.query("evil", schema), json!([["sqlite_autoindex_t_1"], ["t"]]));
    bystander.check("statements that are not allowed").await;
    assert_eq!(server.stop(), Some(0), "{}", server.process().told());
    assert_eq!(server.sql("evil", "PRAGMA integrity_check"), json!([["ok"]]));
}

/// A migration that fails is a failed deploy, and the module before it stays in force.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failing_migration_changes_nothing() {
    let (_dir, mut server, mut bystander) = serve().await;
    assert_eq!(deploy(&server, "evil", &Module::default().wasm()).await.0, 200);
    let traps = Module {
        migrations: vec![1],
        more: running(&["CREATE TABLE t(x)"]).more,
        call: running(&["CREATE TABLE t(x)"]).call.replace(DONE, "unreachable"),
        ..Module::default()
    };
    let (status, answer) = deploy(&server, "evil", &traps.wasm()).await;
    assert_eq!((status, answer["error"]["code"].as_str()), (422, Some("trap")), "{answer}");
    assert_eq!(call(&server, "evil", "after").await, None, "the module before is in force");
    assert_eq!(server.query("evil", "SELECT count(*) FROM sqlite_master"), json!([[0]]));
    // Older than the schema: refused as well.
    let newer = Module { migrations: vec![1, 2], ..Module::default() };
    assert_eq!(deploy(&server, "evil", &newer.wasm()).await.0, 200);
    let (status, answer) = deploy(&server, "evil", &Module::default().wasm()).await;
    assert_eq!((status, answer["error"]["code"].as_str()), (422, Some("refused")), "{answer}");
    bystander.check("failing migrations").await;
    assert_eq!(server.stop(), Some(0), "{}", server.process().told());
}

/// Loops end at the time limit; meanwhile other volumes are served, and SIGTERM waits for the end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_module_that_never_ends_is_ended_and_holds_up_nobody_else() {
    let (_dir, mut server, mut bystander) = serve().await;
    let forever = "(loop $l (br $l)) unreachable";
    assert_eq!(deploy(&server, "evil", &Module::calling(forever).wasm()).await.0, 200);
    let start = Module { more: "(func $s (loop $l (br $l))) (start $s)".into(), ..Module::default() }.wasm();
    // Statements in a loop that the guest does not end, whatever they answer.
    let sql =
        running(&["WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT count(*) FROM c"]);
    let statement = sql.call.replace(DONE, "");
    let statements = Module { call: format!("(loop $l {statement} (br $l)) unreachable"), ..sql };
    assert_eq!(deploy(&server, "evil-sql", &statements.wasm()).await.0, 200);

    // Each is durable while the loops run: they take seconds.
    let served = async {
        for _ in 0..5 {
            bystander.check("a loop that runs").await;
        }
        Instant::now()
    };
    let looping = async { (call(&server, "evil", "caller").await, Instant::now()) };
    let (served, (loops, ended), starts, sql) = tokio::join!(
        served,
        looping,
        deploy(&server, "evil-start", &start),
        call(&server, "evil-sql", "caller"),
    );
    assert!(served < ended, "another volume waited for a loop");
    let reason = loops.expect("a loop is no success");
    assert_eq!(reason.code, "limit", "{reason}");
    assert_eq!((starts.0, starts.1["error"]["code"].as_str()), (422, Some("invalid_module")), "{}", starts.1);
    let reason = sql.expect("a loop is no success");
    assert_eq!(reason.code, "limit", "{reason}");
    assert_eq!(server.stop(), Some(0), "{}", server.process().told());
}
