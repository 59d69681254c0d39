//! The whole path by the command line: `graft serve`, two people who watch, mutations from a third
//! process, and the store looked at without a server.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use futures::FutureExt as _;
use serde_json::{Value as Json, json};
use sqlsync_layer::client::{Client, ClientConfig, MutationHandle, Status};
use tests::places;
use tests::process::{Server, Watch, graft, store};

const TASKS: &str = "SELECT id, title, done FROM tasks WHERE list = ?1 ORDER BY id";

fn keys(object: &Json) -> Vec<&str> {
    object.as_object().unwrap().keys().map(String::as_str).collect()
}

fn task(id: &str, title: &str) -> Json {
    json!({ "id": id, "list": "home", "title": title })
}

/// A server with a list `home`, at LSN 2.
fn with_list(server: &Server) {
    server.deploy("todo", "todo");
    assert_eq!(server.mutate("todo", "create_list", json!({ "id": "home", "name": "Home" })), 2);
}

fn watch(server: &Server) -> Watch {
    server.watch("todo", TASKS, r#"["home"]"#)
}

#[test]
fn two_subscribers_see_what_a_third_process_does() {
    let (_dir, store) = store();
    let mut server = Server::start(&store);
    let deployed = server.deploy("todo", "todo");
    assert_eq!(keys(&deployed), ["lsn", "migrations_run", "module", "schema", "volume"]);
    assert_eq!(deployed["module"].as_str().map(str::len), Some(64));
    let rest = (&deployed["volume"], &deployed["schema"], &deployed["lsn"], &deployed["migrations_run"]);
    assert_eq!(rest, (&json!("todo"), &json!(2), &json!(1), &json!(2)));

    let (mut alice, mut bob) = (watch(&server), watch(&server));
    let empty = json!({ "type": "snapshot", "columns": ["id", "title", "done"], "key": ["id"], "rows": [] });
    let first = alice.message();
    assert_eq!(keys(&first), ["columns", "epoch", "key", "lsn", "rows", "type"]);
    assert_eq!(first["lsn"], 1);
    assert_eq!(first["columns"], empty["columns"]);
    assert_eq!(bob.change(), empty);

    // A list is no task: nobody who watches tasks hears of it.
    assert_eq!(server.mutate("todo", "create_list", json!({ "id": "home", "name": "Home" })), 2);
    assert_eq!(server.mutate("todo", "create_list", json!({ "id": "work", "name": "Work" })), 3);
    assert_eq!(server.mutate("todo", "add_task", task("milk", "Buy milk")), 4);
    for who in [&mut alice, &mut bob] {
        let delta = who.message();
        assert_eq!(keys(&delta), ["changes", "epoch", "lsn", "type"]);
        assert_eq!((&delta["type"], &delta["lsn"]), (&json!("delta"), &json!(4)));
        assert_eq!(delta["changes"], json!({ "insert": [[0, ["milk", "Buy milk", 0]]] }));
    }
    let mut both = |changes: Json| {
        for who in [&mut alice, &mut bob] {
            assert_eq!(who.change(), json!({ "type": "delta", "changes": changes }));
        }
    };
    assert_eq!(server.mutate("todo", "add_task", task("fern", "Water the fern")), 5);
    both(json!({ "insert": [[0, ["fern", "Water the fern", 0]]] }));
    // Another list's task reaches the same pages, and yet is no message: the rows are equal.
    let other = json!({ "id": "mail", "list": "work", "title": "Write" });
    assert_eq!(server.mutate("todo", "add_task", other), 6);
    assert_eq!(server.mutate("todo", "set_done", json!({ "id": "milk", "done": true })), 7);
    both(json!({ "update": [[1, ["milk", "Buy milk", 1]]] }));

    // A rejection is recorded, printed, and changes nobody's rows.
    let empty_title = task("none", " ").to_string();
    let line = ["mutate", "add_task", &empty_title, "--volume", "todo"];
    let rejected = server.graft(&[&line[..], &["--json"]].concat()).expect(2).lines();
    let reason = json!({ "code": "refused", "message": "a task needs a title" });
    assert_eq!(rejected, [json!({ "status": "rejected", "seq": 1, "lsn": 8, "reason": reason })]);
    let rejected = server.graft(&line).expect(2);
    assert_eq!((&*rejected.stdout, &*rejected.stderr), ("", "rejected: a task needs a title (refused)\n"));

    let args = json!({ "id": "milk" }).to_string();
    let line = ["mutate", "delete_task", &args, "--volume", "todo", "--wait", "accepted", "--json"];
    assert_eq!(server.graft(&line).json(), json!({ "status": "accepted", "seq": 1, "lsn": 10 }));
    both(json!({ "delete": [1] }));
    assert_eq!(alice.rows(), json!([["fern", "Water the fern", 0]]));

    // Without --json a person can read it.
    let said = server.graft(&["query", "SELECT id, done FROM tasks ORDER BY id", "--volume", "todo"]);
    let said = said.expect(0).stdout;
    assert!(said.contains("fern  0") || said.contains("fern     0"), "{said}");
    assert!(said.contains("(2 rows, lsn 10)"), "{said}");

    for (sql, params) in [
        ("SELECT title FROM tasks WHERE list = ?1 AND done = ?2", r#"["home",0]"#),
        ("SELECT title FROM tasks WHERE list = :list AND done = $done", r#"{"list":"home","done":false}"#),
        ("SELECT title FROM tasks WHERE list = @list AND done = 0", r#"{"@list":"home"}"#),
    ] {
        let line = ["query", sql, "--volume", "todo", "--params", params, "--json"];
        let rows = json!({ "columns": ["title"], "rows": [["Water the fern"]], "lsn": 10 });
        assert_eq!(server.graft(&line).json(), rows, "{sql} {params}");
    }

    assert_eq!(server.stop(), Some(0), "{}", server.process().told());
    // Both are still there, waiting for a server.
    assert!(alice.process().is_running() && bob.process().is_running());

    // The store alone says the same.
    let answer = server.stored(&["sql", "SELECT id FROM tasks ORDER BY id", "--volume", "todo", "--json"]);
    let rows = json!({ "columns": ["id"], "rows": [["fern"], ["mail"]], "changes": 0, "lsn": 10 });
    assert_eq!(answer.json(), rows);

    let ls = server.stored(&["volume", "ls", "--json"]).json();
    let id = ls["volumes"][0]["id"].as_str().unwrap().to_string();
    assert_eq!(ls, json!({ "volumes": [{ "name": "todo", "id": id }] }));
    assert_eq!(id.len(), 32);
    let info = server.stored(&["volume", "info", "todo", "--json"]).json();
    let expected = [
        "checkpoint",
        "id",
        "lsn",
        "module",
        "mutations",
        "name",
        "page_size",
        "pages",
        "parent",
        "schema",
        "store",
        "time_ms",
    ];
    assert_eq!(keys(&info), expected);
    let place = (&info["name"], &info["id"], &info["lsn"], &info["module"], &info["page_size"]);
    assert_eq!(place, (&json!("todo"), &json!(id), &json!(10), &deployed["module"], &json!(4096)));
    assert_eq!((&info["mutations"], &info["schema"]), (&json!(7), &json!(2)));
    let log = server.log("todo");
    assert_eq!(log.len(), 10);
    for commit in &log {
        let shape = [
            "deployed",
            "id",
            "lsn",
            "mutations",
            "pages",
            "pages_written",
            "rejected",
            "segments",
            "time_ms",
        ];
        assert_eq!(keys(commit), shape);
    }
    let what = |commit: &Json| (commit["mutations"].as_u64().unwrap(), commit["rejected"].as_u64().unwrap());
    let whats: Vec<_> = log.iter().map(what).collect();
    let (one, no) = ((1, 0), (0, 1));
    assert_eq!(whats, [(0, 0), one, one, one, one, one, one, no, no, one]);
    assert_eq!(log[0]["deployed"], deployed["module"]);
    assert!(log[1..].iter().all(|commit| commit["deployed"].is_null()));
    assert!(log.is_sorted_by(|a, b| a["time_ms"].as_i64() < b["time_ms"].as_i64()), "{log:?}");
    let said = server.stored(&["volume", "log", "todo", "-n", "2"]).expect(0).stdout;
    assert!(
        said.contains("1 mutation") && said.contains("1 rejected") && said.lines().count() == 4,
        "{said}"
    );
}

#[test]
fn a_second_deploy_of_one_module_runs_no_migration() {
    let (_dir, store) = store();
    let mut server = Server::start(&store);
    let first = server.deploy("todo", "todo");
    let again = server.deploy("todo", "todo");
    assert_eq!((&first["migrations_run"], &again["migrations_run"]), (&json!(2), &json!(0)));
    assert_eq!((&again["module"], &again["schema"]), (&first["module"], &first["schema"]));
    assert_eq!(server.log("todo").len(), 1, "the second deploy needs no commit");
    // Nor after a restart.
    assert_eq!(server.stop(), Some(0));
    server.restart();
    let again = server.deploy("todo", "todo");
    assert_eq!((&again["migrations_run"], &again["lsn"]), (&json!(0), &json!(1)));
    // Another volume of the same server has its own.
    let notes = server.deploy("notes", "notes");
    assert_eq!(notes["migrations_run"], notes["schema"]);
    let ls = server.stored(&["volume", "ls", "--json"]).json();
    let names: Vec<_> = ls["volumes"].as_array().unwrap().iter().map(|v| v["name"].clone()).collect();
    assert_eq!(names, ["notes", "todo"]);
}

/// A commit straight to the store takes the coordinator's next LSN. The coordinator finds out when it
/// publishes, resets, replays, and every subscriber ends with both changes.
#[test]
fn plain_sql_beside_a_server_is_a_conflict_that_it_replays() {
    let (_dir, store) = store();
    let server = Server::start(&store);
    with_list(&server);
    assert_eq!(server.mutate("todo", "add_task", task("a", "first")), 3);
    let (mut alice, mut bob) = (watch(&server), watch(&server));
    let first = alice.message();
    assert_eq!(bob.message()["rows"], first["rows"]);

    let sql = "INSERT INTO tasks(id, list, title, done, position) VALUES ('b', 'home', 'by hand', 1, 7.5);
               UPDATE tasks SET title = 'changed by hand' WHERE id = 'a'";
    let written = server.stored(&["sql", sql, "--volume", "todo", "--write", "--json"]).json();
    assert_eq!(written, json!({ "columns": [], "rows": [], "changes": 2, "lsn": 4 }));
    // Without --write it is refused, and says so.
    let error = server.stored(&["sql", "DELETE FROM tasks", "--volume", "todo"]).error();
    assert!(error.contains("--write"), "{error}");

    // The server does not know of LSN 4 yet: it shows the mutation on the old state, as meant for 4.
    assert_eq!(server.mutate("todo", "add_task", task("c", "third")), 5);
    for who in [&mut alice, &mut bob] {
        let guess = who.message();
        assert_eq!(guess["changes"], json!({ "insert": [[1, ["c", "third", 0]]] }));
        assert_eq!((&guess["lsn"], &guess["epoch"]), (&json!(4), &first["epoch"]));
        let replayed = who.message();
        assert_eq!(
            replayed["changes"],
            json!({ "insert": [[1, ["b", "by hand", 1]]], "update": [[0, ["a", "changed by hand", 0]]] })
        );
        assert_eq!(replayed["lsn"], 5);
        assert_eq!(replayed["epoch"].as_u64(), first["epoch"].as_u64().map(|epoch| epoch + 1));
        let rows = json!([["a", "changed by hand", 0], ["b", "by hand", 1], ["c", "third", 0]]);
        assert_eq!(who.rows(), rows);
    }
    // The replay ran on the new state: the reducer found position 7.5 and went below it.
    assert_eq!(server.sql("todo", "SELECT position FROM tasks WHERE id = 'c'"), json!([[8.0]]));
    assert_eq!(server.query("todo", "SELECT position FROM tasks WHERE id = 'c'"), json!([[8.0]]));
    let whats: Vec<_> = server.log("todo").iter().map(|commit| commit["mutations"].clone()).collect();
    assert_eq!(whats, [0, 1, 1, 0, 1], "deploy, list, first, by hand, third");
    assert_eq!(server.log("todo")[3]["deployed"], Json::Null);

    // A change by hand can make a pending mutation impossible: it is rejected then, finally.
    let sql = "INSERT INTO tasks VALUES ('d', 'home', 'taken', 0, 9)";
    assert_eq!(server.stored(&["sql", sql, "--volume", "todo", "--write", "--json"]).json()["lsn"], 6);
    let args = task("d", "mine").to_string();
    let rejected = server.graft(&["mutate", "add_task", &args, "--volume", "todo", "--json"]).expect(2);
    let reason = json!({ "code": "refused", "message": "there is a task d already" });
    assert_eq!(rejected.lines(), [json!({ "status": "rejected", "seq": 1, "lsn": 7, "reason": reason })]);
    let last = json!(["d", "taken", 0]);
    let rows = json!([["a", "changed by hand", 0], ["b", "by hand", 1], ["c", "third", 0], last]);
    alice.until(&rows);
    bob.until(&rows);
}

#[test]
fn a_memory_store_serves_and_is_gone_with_its_server() {
    let mut server = Server::start("memory:");
    with_list(&server);
    let mut alice = watch(&server);
    assert_eq!(alice.message()["rows"], json!([]));
    server.mutate("todo", "add_task", task("a", "A"));
    alice.until(&json!([["a", "A", 0]]));
    assert_eq!(server.query("todo", "SELECT count(*) FROM tasks"), json!([[1]]));
    // `memory:` of another process is another store.
    let error = server.stored(&["sql", "SELECT 1", "--volume", "todo"]).error();
    assert!(error.contains("no volume `todo`"), "{error}");
    assert_eq!(server.stop(), Some(0));
}

/// What the handle knows now, without waiting and without tokio's budget for one task, which would make
/// a long series of looks come back empty-handed.
async fn now<T>(answer: impl Future<Output = T>) -> Option<T> {
    tokio::task::unconstrained(async { answer.now_or_never() }).await
}

/// Adds tasks, up to 30 on their way, until the server goes; what was durable and what only accepted.
async fn add_until_the_server_goes(
    client: Client,
    number: usize,
    told: tokio::sync::mpsc::UnboundedSender<()>,
) -> (Vec<String>, Vec<String>, Status) {
    let mut handles: Vec<(String, MutationHandle)> = Vec::new();
    let mut status = client.status();
    let mut changes = status.clone();
    let gone = async { drop(changes.wait_for(|status| !matches!(status, Status::Live { .. })).await) };
    let adding = async {
        for seq in 0.. {
            let id = format!("{number}-{seq}");
            let handle = client.mutate("add_task", task(&id, "t")).await.unwrap();
            handles.push((id, handle));
            if let Some((id, earlier)) = handles.len().checked_sub(30).map(|at| &handles[at]) {
                earlier.durable().await.unwrap_or_else(|error| panic!("{id}: {error}"));
                told.send(()).unwrap();
            }
        }
    };
    tokio::select! {
        () = gone => {}
        () = adding => panic!("the numbers ran out"),
    }
    let how = status.borrow_and_update().clone();
    let (mut durable, mut accepted) = (Vec::new(), Vec::new());
    for (id, handle) in handles {
        match (now(handle.durable()).await, now(handle.accepted()).await) {
            (Some(Ok(_)), _) => durable.push(id),
            (None, Some(Ok(_))) => accepted.push(id),
            (None, None) => {}
            other => panic!("{id}: {other:?}"),
        }
    }
    client.close().await;
    (durable, accepted, how)
}

/// SIGTERM under load: exit code 0, and what was accepted was answered and is in the store.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_loses_nothing_that_was_accepted() {
    let (_dir, store) = store();
    let mut server = Server::start(&store);
    with_list(&server);
    let (told, mut landed) = tokio::sync::mpsc::unbounded_channel();
    let mut adding = Vec::new();
    for number in 0..4 {
        let client = Client::connect(ClientConfig::new(server.url(), "todo")).await.unwrap();
        adding.push(tokio::spawn(add_until_the_server_goes(client, number, told.clone())));
    }
    for _ in 0..100 {
        landed.recv().await.unwrap();
    }
    let stopped = tokio::task::spawn_blocking(move || (server.stop(), server));
    let (code, mut server) = stopped.await.unwrap();
    assert_eq!(code, Some(0), "{}", server.process().told());

    let mut promised = Vec::new();
    for adding in adding {
        let (durable, accepted, how) = adding.await.unwrap();
        assert_eq!(accepted, [""; 0], "accepted, and not told to be durable: {how:?}");
        promised.extend(durable);
    }
    assert!(promised.len() >= 100, "{}", promised.len());
    let rows = server.sql("todo", "SELECT id FROM tasks");
    let found: BTreeSet<&str> = rows.as_array().unwrap().iter().map(|row| row[0].as_str().unwrap()).collect();
    assert_eq!(found, promised.iter().map(String::as_str).collect());
    assert_eq!(server.sql("todo", "PRAGMA integrity_check"), json!([["ok"]]));
    server.restart();
    assert_eq!(server.query("todo", "SELECT count(*) FROM tasks"), json!([[found.len()]]));
}

#[test]
fn a_subscriber_outlives_its_server() {
    let (_dir, store) = store();
    let mut server = Server::start(&store);
    with_list(&server);
    server.mutate("todo", "add_task", task("a", "A"));
    let mut alice = watch(&server);
    let first = alice.message();
    assert_eq!(first["rows"], json!([["a", "A", 0]]));
    let mut rows = vec![json!(["a", "A", 0])];
    for (round, id) in ["b", "c", "d"].into_iter().enumerate() {
        if round == 0 {
            assert_eq!(server.stop(), Some(0));
        } else {
            server.kill();
        }
        // What happened without a server, the subscriber sees as soon as there is one.
        let sql = format!("INSERT INTO tasks VALUES ('{id}', 'home', 'by hand', 0, {round})");
        server.stored(&["sql", &sql, "--volume", "todo", "--write"]).expect(0);
        rows.push(json!([id, "by hand", 0]));
        server.restart();
        let again = alice.message();
        assert_eq!((&again["type"], &again["rows"]), (&json!("snapshot"), &json!(rows)));
        assert!(again["epoch"].as_u64() > first["epoch"].as_u64());
    }
    server.mutate("todo", "delete_task", json!({ "id": "a" }));
    assert_eq!(alice.change(), json!({ "type": "delta", "changes": { "delete": [0] } }));
    let notes = alice.process().stderr();
    assert!(notes.contains("connection lost") && notes.contains("connected again"), "{notes}");
    // SIGTERM ends it well.
    alice.process().terminate();
    assert_eq!(alice.process().wait().code(), Some(0));
}

/// Flips the last byte of every commit and segment in the store: page frames, which come last.
fn damage_frames(store: &Path) {
    let mut damaged = 0;
    let mut folders = vec![store.join("volumes")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.file_name().is_some_and(|name| name != "meta") {
                let mut bytes = std::fs::read(&path).unwrap();
                *bytes.last_mut().unwrap() ^= 1;
                std::fs::write(&path, bytes).unwrap();
                damaged += 1;
            }
        }
    }
    assert!(damaged >= 3, "{damaged}");
}

/// With `--data`, pages once read are not fetched again after a restart: the store may even be damaged
/// meanwhile. Without it, the damage shows.
#[test]
fn a_data_directory_keeps_pages_across_restarts() {
    let (dir, store) = store();
    let mut server = Server::start_with_data(&store, &dir.path().join("server"));
    with_list(&server);
    server.mutate("todo", "add_task", task("a", "A"));
    let everything = "SELECT (SELECT count(*) FROM lists), id, position FROM tasks ORDER BY list, position";
    assert_eq!(server.query("todo", everything), json!([[1, "a", 1.0]]));
    let replica = dir.path().join("replica");
    let replica = replica.to_string_lossy();
    let sql = ["sql", everything, "--volume", "todo", "--json", "--data", &replica];
    assert_eq!(server.stored(&sql).json()["rows"], json!([[1, "a", 1.0]]));
    // A data directory has one user at a time.
    let taken = dir.path().join("server");
    let error = server.stored(&["sql", "SELECT 1", "--volume", "todo", "--data", &taken.to_string_lossy()]);
    let error = error.error();
    assert!(error.contains(&*taken.to_string_lossy()), "{error}");

    assert_eq!(server.stop(), Some(0));
    damage_frames(&dir.path().join("store"));
    server.restart();
    assert_eq!(server.query("todo", everything), json!([[1, "a", 1.0]]));
    assert_eq!(server.stored(&sql).json()["rows"], json!([[1, "a", 1.0]]));
    let error = graft(["sql", everything, "--volume", "todo", "--store", &store]).error();
    assert!(error.contains("damaged") && error.contains("log/"), "{error}");
}

/// A client that waits for a server finds it once it is there; one that does not is told where it looked.
#[test]
fn commands_say_which_server_they_did_not_find() {
    let url = format!("http://127.0.0.1:{}", tests::process::free_port());
    let module = places::reducer_module("todo");
    let module = module.to_string_lossy();
    for args in [
        &["mutate", "add_task", "{}"][..],
        &["query", "SELECT 1"],
        &["subscribe", "SELECT 1"],
        &["deploy", &module],
    ] {
        let rest = ["--volume", "todo", "--url", &url, "--connect-timeout", "1"];
        let output = graft(args.iter().chain(&rest));
        assert!(output.took < Duration::from_secs(20), "{output}");
        let error = output.error();
        assert!(error.contains(url.trim_start_matches("http")) && error.contains("graft serve"), "{error}");
    }
}
