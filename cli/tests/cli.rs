//! The program as a person and a script use it: real processes, and the shapes in `docs/cli.md`.

mod common;

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Output, Stdio};

use serde_json::Value;

use common::{example, graft, wasm};

/// A process and the lines it prints. Killed when dropped.
struct Running {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Running {
    fn start(command: &mut Command) -> Running {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Running { child, lines }
    }
    fn line(&mut self) -> String {
        let mut line = String::new();
        assert!(self.lines.read_line(&mut line).unwrap() > 0, "the process ended");
        line.trim_end().to_owned()
    }
    fn signal(&self, signal: &str) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args([signal, &id]).status().unwrap().success());
    }
    /// Waits for the end; answers the exit code and what was printed last.
    fn end(mut self) -> (Option<i32>, String) {
        let status = self.child.wait().unwrap();
        let mut rest = String::new();
        std::io::Read::read_to_string(&mut self.lines, &mut rest).unwrap();
        (status.code(), rest)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|status| status.is_none()) {
            self.child.kill().unwrap();
            self.child.wait().unwrap();
        }
    }
}

struct Server {
    process: Running,
    url: String,
    store: String,
}

impl Server {
    fn start(store: &Path) -> Server {
        Server::start_with(store, &[])
    }
    fn start_with(store: &Path, more: &[&str]) -> Server {
        let store = format!("file://{}", store.display());
        let mut process =
            Running::start(graft(&["serve", "--store", &store, "--listen", "127.0.0.1:0"]).args(more));
        let line = process.line();
        let url = line.strip_prefix("listening on ").unwrap_or_else(|| panic!("{line}")).to_owned();
        assert!(url.starts_with("http://127.0.0.1:"), "{url}");
        Server { process, url, store }
    }
    fn client(&self) -> Command {
        let mut command = graft(&[]);
        command.env("GRAFT_URL", &self.url).env("GRAFT_VOLUME", "todo").env("GRAFT_STORE", &self.store);
        command
    }
    fn run(&self, args: &[&str]) -> Output {
        self.client().args(args).output().unwrap()
    }
    /// Runs a command that must succeed; its stdout.
    fn ok(&self, args: &[&str]) -> String {
        let output = self.run(args);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{args:?}: {said}");
        String::from_utf8(output.stdout).unwrap()
    }
    /// Runs a command that must fail with `code`; what it said.
    fn fails(&self, code: i32, args: &[&str]) -> String {
        let output = self.run(args);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{args:?}: {said}");
        said
    }
}

/// The members of JSON, each with its members: what a script relies on. Elements of a list count as
/// one, and rows are opaque.
fn shape(value: &Value) -> Value {
    match value {
        Value::Object(members) => members
            .iter()
            .map(|(name, value)| {
                let opaque = matches!(name.as_str(), "rows" | "changes");
                (name.clone(), if opaque { Value::Bool(true) } else { shape(value) })
            })
            .collect::<serde_json::Map<_, _>>()
            .into(),
        Value::Array(elements) => elements.first().map(shape).into_iter().collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => Value::Null,
    }
}

/// Checks that a line printed has the documented shape, and answers it.
#[track_caller]
fn documented(tag: &str, line: &str) -> Value {
    let example = example(tag);
    let found: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{tag}: {e}: {line}"));
    assert_eq!(shape(&found), shape(&example), "{tag}: {line}");
    found
}

#[test]
fn every_command_does_what_its_page_says() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir.path().join("store"));
    let wasm = wasm("todo");
    let deployed = documented("deploy", &server.ok(&["deploy", wasm.to_str().unwrap(), "--json"]));
    assert_eq!(deployed["volume"], "todo");

    let mut watching = Running::start(server.client().args([
        "subscribe",
        "SELECT id, title FROM tasks WHERE list = ?1 ORDER BY id",
        "--params",
        "[\"l\"]",
        "--json",
    ]));
    let snapshot = documented("subscribe-snapshot", &watching.line());
    assert_eq!(snapshot["rows"], serde_json::json!([]));

    let list =
        documented("mutate", &server.ok(&["mutate", "create_list", r#"{"id":"l","name":"L"}"#, "--json"]));
    assert_eq!(list["status"], "durable");
    let add = r#"{"id":"t1","list":"l","title":"Buy %s"}"#;
    documented("mutate-accepted", &server.ok(&["mutate", "add_task", add, "--wait", "accepted", "--json"]));
    let delta = documented("subscribe-delta", &watching.line());
    assert_eq!(delta["changes"], serde_json::json!({ "insert": [[0, ["t1", "Buy %s"]]] }));

    let empty = r#"{"id":"t2","list":"l","title":""}"#;
    let output = server.run(&["mutate", "add_task", empty, "--json"]);
    assert_eq!(output.status.code(), Some(2));
    let rejected = documented("mutate-rejected", std::str::from_utf8(&output.stdout).unwrap());
    assert_eq!(rejected["reason"]["code"], "refused");
    let said = server.fails(2, &["mutate", "add_task", empty]);
    assert!(said.starts_with("rejected: ") && said.contains("(refused)"), "{said}");

    let query = "SELECT count(*) AS n FROM tasks WHERE list = :list";
    let asked = server.ok(&["query", query, "--params", r#"{"list":"l"}"#, "--json"]);
    assert_eq!(documented("query", &asked)["rows"], serde_json::json!([[1]]));
    assert!(
        server
            .ok(&["query", "SELECT id, title FROM tasks"])
            .starts_with("id  title\n--  ------\nt1  Buy %s\n(1 row, lsn ")
    );

    // Straight from the store, beside the server: the next mutation goes on top, and everybody sees both.
    let sql = "UPDATE tasks SET title = 'Renamed'; SELECT count(*) AS n FROM tasks";
    let wrote = documented("sql", &server.ok(&["sql", sql, "--write", "--json"]));
    assert_eq!((&wrote["changes"], &wrote["rows"]), (&1.into(), &serde_json::json!([[1]])));
    server.ok(&["mutate", "set_done", r#"{"id":"t1","done":true}"#]);
    let delta = documented("subscribe-delta", &watching.line());
    assert_eq!(delta["changes"], serde_json::json!({ "update": [[0, ["t1", "Renamed"]]] }));
    let kept = server.ok(&["sql", "SELECT title, done FROM tasks", "--json"]);
    assert_eq!(documented("sql", &kept)["rows"], serde_json::json!([["Renamed", 1]]));

    // A script that fails commits nothing, now or with a later run on the same directory.
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().to_str().unwrap();
    let half = "UPDATE tasks SET title = 'Half'; UPDATE nowhere SET x = 1";
    server.fails(1, &["sql", half, "--write", "--data", data]);
    let whole = "UPDATE tasks SET done = 0; SELECT title FROM tasks";
    let wrote = documented("sql", &server.ok(&["sql", whole, "--write", "--data", data, "--json"]));
    assert_eq!(wrote["rows"], serde_json::json!([["Renamed"]]));

    assert_eq!(
        documented("volume-ls", &server.ok(&["volume", "ls", "--json"]))["volumes"][0]["name"],
        "todo"
    );
    let info = documented("volume-info", &server.ok(&["volume", "info", "todo", "--json"]));
    assert_eq!((&info["module"], &info["schema"]), (&deployed["module"], &deployed["schema"]));
    let log = server.ok(&["volume", "log", "todo", "--json"]);
    let lsns: Vec<Value> = log.lines().map(|line| documented("volume-log", line)["lsn"].clone()).collect();
    let newest = info["lsn"].as_u64().unwrap();
    assert_eq!(lsns, (1..=newest).rev().map(Value::from).collect::<Vec<_>>());
    assert_eq!(server.ok(&["volume", "log", "todo", "-n", "2", "--json"]).lines().count(), 2);

    // Checkpoints, the past, forks.
    let written = documented("volume-checkpoint", &server.ok(&["volume", "checkpoint", "todo", "--json"]));
    assert_eq!((&written["outcome"], written["lsn"].as_u64()), (&Value::from("stored"), Some(newest)));
    let again = server.ok(&["volume", "checkpoint", "todo", "--json"]);
    assert_eq!(documented("volume-checkpoint", &again)["outcome"], "current");
    let info = documented("volume-info", &server.ok(&["volume", "info", "todo", "--json"]));
    assert_eq!((info["checkpoint"].as_u64(), info["lsn"].as_u64()), (Some(newest), Some(newest)));
    let count = |volume: &str, at: &str| {
        let sql = "select count(*) as n from tasks";
        let line = server.ok(&["sql", sql, "--volume", volume, "--at", at, "--json"]);
        documented("sql-at", &line)["rows"][0][0].as_u64().unwrap()
    };
    let (first, last) = (count("todo", "1"), count("todo", &newest.to_string()));
    assert!(first < last, "{first} tasks at first, {last} at last");
    assert_eq!(count("todo", "2126-01-01"), last);
    let fork = server.ok(&["volume", "fork", "trial", "--from", "todo", "--json"]);
    assert_eq!(documented("volume-fork", &fork)["lsn"].as_u64(), Some(newest));
    server.ok(&["sql", "delete from tasks", "--volume", "trial", "--write"]);
    let newest_trial = (newest + 1).to_string();
    assert_eq!((count("trial", &newest_trial), count("todo", &newest.to_string())), (0, last));
    let restored = server.ok(&["volume", "restore", "earlier", "--from", "trial", "--at", "1", "--json"]);
    assert_eq!(documented("volume-fork", &restored)["lsn"], 1);
    assert_eq!(count("earlier", "1"), first);
    let refused = server.run(&["volume", "rm", "todo"]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("earlier, trial"), "{said}");
    for volume in ["trial", "earlier"] {
        let removed = documented("volume-rm", &server.ok(&["volume", "rm", volume, "--json"]));
        assert_eq!(removed["removed"], volume);
    }

    watching.signal("-INT");
    assert_eq!(watching.end().0, Some(0), "Ctrl-C ends a subscription well");
    server.process.signal("-TERM");
    assert_eq!(server.process.end(), (Some(0), String::new()), "one line is all that it prints");
}

#[test]
fn files_go_in_and_out_as_their_page_says() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let ok = |args: &[&str]| {
        let output = graft(args).env("GRAFT_STORE", path("store")).output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let live = rusqlite::Connection::open(path("live.db")).unwrap();
    live.execute_batch("PRAGMA journal_mode = WAL; CREATE TABLE t(v); INSERT INTO t VALUES('%s')").unwrap();
    let made = ok(&["import", &path("live.db"), "--volume", "shop", "--page-size", "512", "--json"]);
    assert_eq!(documented("import", &made)["page_size"], 512);
    let line = ok(&["export", "shop", &path("out.db"), "--json"]);
    assert_eq!(documented("export", &line)["lsn"], 1);
    let out = rusqlite::Connection::open(path("out.db")).unwrap();
    let found: String = out.query_row("SELECT v FROM t", [], |row| row.get(0)).unwrap();
    assert_eq!(found, "%s");
    let backup = ["backup", &path("live.db"), "--volume", "kept", "--json"];
    assert_eq!(documented("backup", &ok(&backup))["lsn"], 1);
    assert_eq!(ok(&backup), "", "nothing changed");
    live.execute_batch("INSERT INTO t VALUES('more')").unwrap();
    let second = documented("backup", &ok(&backup));
    assert_eq!((&second["lsn"], &second["pages_written"]), (&2.into(), &1.into()));
    assert!(ok(&["export", "kept", &path("past.db"), "--at", "1"]).contains("volume `kept` at lsn 1"));
}

/// The first server is killed outright; the second takes over its store and its data directory.
#[test]
fn a_subscription_goes_on_at_the_next_server() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let data = ["--data", data.to_str().unwrap()];
    let server = Server::start_with(&dir.path().join("store"), &data);
    server.ok(&["deploy", wasm("todo").to_str().unwrap()]);
    let mut watching = Running::start(server.client().args(["subscribe", "SELECT id FROM lists", "--json"]));
    documented("subscribe-snapshot", &watching.line());
    server.process.signal("-KILL");
    let (url, store) = (server.url.clone(), server.store.clone());
    drop(server);

    let listen = url.strip_prefix("http://").unwrap();
    let mut process = Running::start(graft(&["serve", "--store", &store, "--listen", listen]).args(data));
    assert_eq!(process.line(), format!("listening on {url}"));
    let server = Server { process, url, store };
    documented("subscribe-snapshot", &watching.line());
    // A client id goes on across processes: its seqs follow each other.
    for seq in 1..=3 {
        let args = format!(r#"{{"id":"l{seq}","name":"L"}}"#);
        let said = server.ok(&["mutate", "create_list", &args, "--client", "me", "--json"]);
        assert_eq!(documented("mutate", &said)["seq"], seq);
        documented("subscribe-delta", &watching.line());
    }
}

/// Who knows only the server's address reads the volume page by page, and writes where that is allowed.
#[test]
fn a_server_can_stand_for_its_store() {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    let list = r#"{"id":"l","name":"L"}"#;
    let read = ["sql", "SELECT id FROM lists", "--json"];
    let write = ["sql", "INSERT INTO lists (id, name) VALUES ('m', 'M')", "--write"];
    {
        let server = Server::start(&store);
        server.ok(&["deploy", wasm("todo").to_str().unwrap()]);
        server.ok(&["mutate", "create_list", list]);
        let through = |args: &[&str]| server.ok(&[args, &["--store", &server.url]].concat());
        assert_eq!(through(&read), server.ok(&read));
        assert!(through(&["volume", "ls"]).contains("todo"));
        let said = server.fails(1, &[&write[..], &["--store", &server.url]].concat());
        assert!(said.contains("--allow-remote-writes"), "{said}");
    }
    let server = Server::start_with(&store, &["--allow-remote-writes"]);
    server.ok(&[&write[..], &["--store", &server.url]].concat());
    assert!(server.ok(&read).contains(r#"[["l"],["m"]]"#), "the bucket has it");
    // The server itself goes on after the commit that went past it.
    server.ok(&["mutate", "create_list", r#"{"id":"n","name":"N"}"#]);
    let rows = server.ok(&["query", "SELECT count(*) AS n FROM lists", "--json"]);
    assert!(rows.contains("[[3]]"), "{rows}");
}

#[test]
fn errors_name_the_thing_and_the_next_step() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir.path().join("store"));
    let not_wasm = dir.path().join("%s.wasm");
    std::fs::write(&not_wasm, "hello").unwrap();
    let not_wasm = not_wasm.to_str().unwrap();
    for (args, words) in [
        (&["query", "SELECT 1"][..], &["no volume `todo`", "graft deploy"][..]),
        (&["query", "SELECT 1", "--volume", "../x"], &["`../x` cannot name a volume"]),
        (&["query", "SELECT 1", "--volume", "%s%n"], &["`%s%n` cannot name a volume"]),
        (&["query", "SELECT 1", "--params", "5"], &["`5`", "JSON array"]),
        (&["mutate", "add", "{"], &["`{`", "not JSON"]),
        (&["deploy", "/nowhere.wasm"], &["`/nowhere.wasm`", "cargo build"]),
        (&["deploy", not_wasm], &["%s.wasm", "not a core wasm module"]),
        (&["deploy", not_wasm, "--volume", "../x"], &["`../x` cannot name a volume"]),
        (&["sql", "SELECT 1"], &["no volume `todo`"]),
        (&["sql", "SELECT 1", "--store", "gopher://x"], &["`gopher://x`", "s3://"]),
        (&["volume", "info", "a/b"], &["`a/b` cannot name a volume"]),
        (&["query", "SELECT 1", "--url", "nonsense"], &["`nonsense`", "http://127.0.0.1:4600"]),
        (
            &["query", "SELECT 1", "--url", "http://127.0.0.1:1", "--connect-timeout", "0"],
            &["127.0.0.1:1", "graft serve"],
        ),
        (&["deploy", not_wasm, "--url", "http://127.0.0.1:1"], &["127.0.0.1:1", "graft serve"]),
        (&["query"], &["Usage"]),
        (&["mutate", "x", "{}", "--client", "a b"], &["`a b` is not a client id"]),
        (&["serve", "--listen", "0.0.0.0:0"], &["0.0.0.0:0", "no authentication"]),
        (&["serve", "--store", "s3://"], &["s3://"]),
    ] {
        let said = server.fails(1, args);
        for word in words {
            assert!(said.contains(word), "{args:?} should say `{word}`, and says: {said}");
        }
        if args != ["query"] {
            assert!(said.starts_with("error: ") && said.trim_end().lines().count() <= 2, "{args:?}: {said}");
        }
    }

    server.ok(&["deploy", wasm("todo").to_str().unwrap()]);
    for (args, words) in [
        (&["query", "SELECT * FROM nowhere"][..], &["SELECT * FROM nowhere", "no such table"][..]),
        (&["subscribe", "DELETE FROM tasks"], &["DELETE FROM tasks", "bad_query"]),
        (&["sql", "DELETE FROM tasks"], &["--write"]),
        (&["sql", "SELEC", "--write"], &["syntax error"]),
        (&["sql", "BEGIN; DELETE FROM tasks", "--write"], &["COMMIT"]),
    ] {
        let said = server.fails(1, args);
        for word in words {
            assert!(said.contains(word), "{args:?} should say `{word}`, and says: {said}");
        }
    }
    let said = server.fails(2, &["mutate", "no_such_reducer", "{}"]);
    assert!(said.contains("no_such_reducer") && said.contains("add_task"), "{said}");
}
