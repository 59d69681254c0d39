//! Damaged, missing and unreachable stores: which object is damaged is said, nothing hangs, and what is
//! not touched is served on.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value as Json, json};
use tests::places;
use tests::process::{Output, Process, Server, command, free_port, graft, run, store, until};
use tests::raw::{Bystander, request};

/// Reads every page of the volume `sick`.
const SCAN: &str = "SELECT count(*), sum(length(title)), (SELECT count(*) FROM lists) FROM tasks";
/// Far less than a person would wait, far more than a loaded machine needs.
const BOUND: Duration = Duration::from_secs(30);

/// Copies a directory.
fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let (entry, to) = (entry.unwrap().path(), to.to_path_buf());
        let to = to.join(entry.file_name().unwrap());
        if entry.is_dir() {
            copy(&entry, &to);
        } else {
            std::fs::copy(&entry, &to).unwrap();
        }
    }
}

/// Every file below a directory, sorted.
fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found.sort();
    found
}

/// A store with the volumes `todo` (list `home`, for the bystander) and `sick`: a deploy, a list, a task,
/// and a commit so large that it has a segment.
fn make_store(dir: &Path) -> PathBuf {
    let root = dir.join("store");
    let mut server = Server::start(root.to_string_lossy());
    for volume in ["todo", "sick"] {
        server.deploy("todo", volume);
        server.mutate(volume, "create_list", json!({ "id": "home", "name": "Home" }));
        server.mutate(volume, "add_task", json!({ "id": "a", "list": "home", "title": "A" }));
    }
    let many = "WITH RECURSIVE s(v) AS (SELECT 1 UNION ALL SELECT v + 1 FROM s WHERE v < 400)
                INSERT INTO tasks SELECT 'x' || v, 'home', hex(randomblob(700)), 0, v FROM s";
    server.stored(&["sql", many, "--volume", "sick", "--write"]).expect(0);
    assert_eq!(server.stop(), Some(0));
    root
}

/// The id of `sick`: 32 hex digits, before their checksum.
fn sick(root: &Path) -> String {
    std::fs::read_to_string(root.join("names/sick")).unwrap()[..32].to_string()
}

/// The objects of `sick`, by a word for each: `meta`, `log 1` to `log 4`, `segment`.
fn objects(root: &Path) -> Vec<(String, PathBuf)> {
    let volume = root.join("volumes").join(sick(root));
    let mut logs = files(&volume.join("log"));
    logs.reverse();
    assert_eq!(logs.len(), 4);
    let segments = files(&volume.join("segments"));
    assert_eq!(segments.len(), 1);
    let logs = (1..).zip(logs).map(|(lsn, path)| (format!("log {lsn}"), path));
    let one = |name: &str, path: &Path| (name.to_string(), path.to_path_buf());
    [one("meta", &volume.join("meta"))]
        .into_iter()
        .chain(logs)
        .chain([one("segment", &segments[0])])
        .collect()
}

/// Says the error names the object.
#[track_caller]
fn names(error: &str, root: &Path, object: &Path, what: &str) {
    let key = object.strip_prefix(root).unwrap().to_string_lossy();
    assert!(error.contains(&*key), "{what}: `{key}` is not named by: {error}");
}

fn damage(path: &Path, how: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = std::fs::read(path).unwrap();
    how(&mut bytes);
    std::fs::remove_file(path).unwrap();
    std::fs::write(path, bytes).unwrap();
}

/// Every object, cut off at several lengths, flipped at many places: `sql` and `volume log` either answer
/// what they would without the damage, or name the object. Neither ever answers something else.
#[test]
fn commands_name_the_damaged_object() {
    let dir = tempfile::tempdir().unwrap();
    let good = make_store(dir.path());
    let on = |root: &Path, args: &[&str]| graft(args.iter().chain(&["--store", &*root.to_string_lossy()]));
    let scan = ["sql", SCAN, "--volume", "sick", "--json"];
    let log = ["volume", "log", "sick", "--json"];
    let (scanned, logged) = (on(&good, &scan).expect(0).stdout, on(&good, &log).expect(0).stdout);
    let mut errors = 0;
    for (name, object) in objects(&good) {
        let len = std::fs::metadata(&object).unwrap().len() as usize;
        let cuts =
            [0, 1, 10, len / 2, len - 1].map(|cut| (format!("{name} cut to {cut} of {len}"), cut, None));
        // The whole length of small objects in steps, so that header, head and frames are all hit.
        let flips = (0..8).map(|part| part * (len - 1) / 7);
        let flips = flips.map(|at| (format!("{name} flipped at {at} of {len}"), at, Some(())));
        for (what, at, flip) in cuts.into_iter().chain(flips) {
            let root = dir.path().join("damaged");
            copy(&good, &root);
            let object = root.join(object.strip_prefix(&good).unwrap());
            damage(&object, |bytes| match flip {
                None => bytes.truncate(at),
                Some(()) => bytes[at] ^= 0x10,
            });
            for (output, undamaged) in [(on(&root, &scan), &scanned), (on(&root, &log), &logged)] {
                if output.code == Some(0) {
                    assert_eq!(output.stdout, *undamaged, "{what}: {output}");
                    continue;
                }
                errors += 1;
                let error = output.error();
                names(&error, &root, &object, &what);
                assert!(error.contains("damaged"), "{what}: {error}");
            }
            // The other volume does not care.
            on(&root, &["sql", "SELECT 1", "--volume", "todo"]).expect(0);
            std::fs::remove_dir_all(&root).unwrap();
        }
        // Gone altogether.
        let root = dir.path().join("damaged");
        copy(&good, &root);
        let gone = root.join(object.strip_prefix(&good).unwrap());
        std::fs::remove_file(&gone).unwrap();
        let output = on(&root, &scan);
        // The newest commit gone is a store of yesterday: nothing can tell.
        if name == "log 4" {
            output.expect(0);
        } else {
            names(&output.error(), &root, &gone, &format!("{name} gone"));
        }
        std::fs::remove_dir_all(&root).unwrap();
    }
    assert!(errors > 90, "only {errors} of 156 answers were errors: the damage was not where it is read");

    // A name that leads nowhere.
    for id in ["", "no id", "%s%n", "../../etc", "00000000000000000000000000000000"] {
        let root = dir.path().join("damaged");
        copy(&good, &root);
        damage(&root.join("names/sick"), |bytes| *bytes = id.as_bytes().to_vec());
        let error = on(&root, &scan).error();
        assert!(error.contains("names/sick") || error.contains(id) && id.len() == 32, "{id}: {error}");
        std::fs::remove_dir_all(&root).unwrap();
    }
}

/// A server on a damaged store says what is damaged to those who need it, and serves everyone else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_says_what_is_damaged_and_serves_the_rest() {
    let dir = tempfile::tempdir().unwrap();
    let good = make_store(dir.path());
    for (number, (name, object)) in objects(&good).into_iter().enumerate() {
        let root = dir.path().join(format!("damaged-{number}"));
        copy(&good, &root);
        let object = root.join(object.strip_prefix(&good).unwrap());
        damage(&object, |bytes| match &*name {
            "segment" => bytes.iter_mut().for_each(|byte| *byte ^= 0x10),
            // In its head, which every reader needs; a frame may hold old pages alone.
            _ => bytes.truncate(40),
        });
        let mut server = Server::start(root.to_string_lossy());
        let mut bystander = Bystander::connect(server.address()).await;
        let rest = ["--volume", "sick", "--url", server.url(), "--connect-timeout", "1"];
        std::thread::scope(|scope| {
            for command in ["query", "subscribe", "mutate"] {
                let (rest, name, root, object) = (&rest, &name, &root, &object);
                let args = if command == "mutate" { &["delete_task", r#"{"id":"a"}"#][..] } else { &[SCAN] };
                // A segment that a mutation does not need does not stop it.
                if command == "mutate" && name == "segment" {
                    continue;
                }
                scope.spawn(move || {
                    let output = graft([&[command], args, rest].concat());
                    assert!(output.took < BOUND, "{name}: {output}");
                    names(&output.error(), root, object, name);
                });
            }
        });
        bystander.check(&name).await;
        let module = places::reducer_module("todo");
        let head = "POST /v1/volumes/sick/modules HTTP/1.1";
        let (status, answer) = request(server.address(), head, &std::fs::read(module).unwrap()).await;
        assert_eq!((status, answer["error"]["code"].as_str()), (500, Some("damaged")), "{name}: {answer}");
        names(&answer.to_string(), &root, &object, &name);
        assert_eq!(server.stop(), Some(0), "{name}: {}", server.process().told());
    }
}

/// Pages that a mutation needs are damaged while the volume is open: its sender is told, again and again,
/// and nothing is rejected for it. Once the object is put back, the same mutation goes through.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mutation_that_damage_holds_up_is_told_and_goes_through_once_it_is_mended() {
    let dir = tempfile::tempdir().unwrap();
    let root = make_store(dir.path());
    let (_, segment) = objects(&root).pop().unwrap();
    let mut server = Server::start(root.to_string_lossy());
    // Opens the volume by its first page, reads none of the segment's others.
    server.graft(&["query", "SELECT 1", "--volume", "sick"]).expect(0);
    let whole = std::fs::read(&segment).unwrap();
    damage(&segment, |bytes| bytes.iter_mut().for_each(|byte| *byte ^= 0x10));
    let args = json!({ "id": "late", "list": "home", "title": "L" }).to_string();
    let sent = ["mutate", "add_task", &args, "--volume", "sick", "--url", server.url(), "--json"];
    let mut mutation = Process::start(command(sent));
    let mut bystander = Bystander::connect(server.address()).await;
    until("the sender is told", || mutation.stderr().contains("damaged"));
    names(&mutation.stderr(), &root, &segment, "what the sender is told");
    assert!(mutation.is_running(), "{}", mutation.told());
    bystander.check("a mutation that is held up").await;
    std::fs::write(&segment, whole).unwrap();
    let line: Json = serde_json::from_str(&mutation.line()).unwrap();
    assert_eq!(line["status"], "durable", "{line}");
    assert_eq!(server.query("sick", "SELECT title FROM tasks WHERE id = 'late'"), json!([["L"]]));
    assert_eq!(server.stop(), Some(0), "{}", server.process().told());
    assert_eq!(server.sql("sick", "PRAGMA integrity_check"), json!([["ok"]]));
}

/// A module's object that is damaged rejects no mutation, and deploying the module again mends it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_module_is_mended_by_deploying_it_again() {
    let dir = tempfile::tempdir().unwrap();
    let root = make_store(dir.path());
    let module = files(&root.join("modules")).pop().unwrap();
    damage(&module, |bytes| bytes.truncate(100));
    let mut server = Server::start(root.to_string_lossy());
    let args = json!({ "id": "late", "list": "home", "title": "L" }).to_string();
    let sent = ["mutate", "add_task", &args, "--volume", "sick", "--url", server.url(), "--json"];
    let mut mutation = Process::start(command(sent));
    let hash = module.file_name().unwrap().to_string_lossy().into_owned();
    until("the sender is told", || mutation.stderr().contains(&hash));
    server.deploy("todo", "todo");
    let line: Json = serde_json::from_str(&mutation.line()).unwrap();
    assert_eq!(line["status"], "durable", "{line}");
    assert_eq!(server.stop(), Some(0), "{}", server.process().told());
}

/// The directory goes away under a server, and comes back: nothing is called durable meanwhile, nothing
/// is made in its place, and nothing is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_goes_away_and_comes_back_loses_nothing() {
    let (dir, store) = store();
    let root = dir.path().join("store");
    let mut server = Server::start(&store);
    server.deploy("todo", "todo");
    server.mutate("todo", "create_list", json!({ "id": "home", "name": "Home" }));
    let away = dir.path().join("away");
    std::fs::rename(&root, &away).unwrap();

    let args = json!({ "id": "a", "list": "home", "title": "A" }).to_string();
    let sent = ["mutate", "add_task", &args, "--volume", "todo", "--url", server.url(), "--json"];
    let mut mutation = Process::start(command(sent));
    // It is at the tip, and so everybody sees it; it is not durable.
    let mut watch = server.watch("todo", "SELECT id FROM tasks", "[]");
    watch.until(&json!([["a"]]));
    let (status, health) = request(server.address(), "GET /v1/health HTTP/1.1", b"").await;
    assert_eq!((status, &health["status"]), (200, &json!("ok")));
    let rest = ["--volume", "other", "--url", server.url(), "--connect-timeout", "1"];
    let module = places::reducer_module("todo");
    for args in [&["query", "SELECT 1"][..], &["deploy", &module.to_string_lossy()]] {
        let output = graft([args, &rest].concat());
        assert!(output.took < BOUND, "{output}");
        let error = output.error();
        assert!(error.contains("is gone") && error.contains(&*root.to_string_lossy()), "{error}");
    }
    assert!(mutation.is_running() && !root.exists(), "{}", mutation.told());

    std::fs::rename(&away, &root).unwrap();
    let line: Json = serde_json::from_str(&mutation.line()).unwrap();
    assert_eq!((&line["status"], &line["lsn"]), (&json!("durable"), &json!(3)));
    assert_eq!(server.stop(), Some(0), "{}", server.process().told());
    assert_eq!(server.sql("todo", "SELECT id FROM tasks"), json!([["a"]]));
    assert_eq!(server.log("todo").len(), 3);
}

#[track_caller]
fn soon_refused(output: Output, parts: &[&str]) {
    assert!(output.took < BOUND, "{output}");
    let error = output.error();
    for part in parts {
        assert!(error.contains(part), "`{part}` is not in: {error}");
    }
}

/// Stores that are none, or are not there: each command says so, soon.
#[test]
fn stores_that_cannot_be_used_are_said_soon() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "no directory").unwrap();
    let (file, below) = (file.to_string_lossy().into_owned(), format!("{}/below", file.display()));
    for (store, part) in [
        ("ftp://example.invalid/x", "ftp://example.invalid/x"),
        ("gopher:x", "gopher:x"),
        ("%s%n://x", "%s%n://x"),
        ("", "store"),
        ("memory:x", "memory:"),
        ("file://host/x", "file:///DIR"),
        ("file:x", "file:x"),
        ("s3://", "bucket"),
        ("s3://key:secret@bucket/x", "AWS_ACCESS_KEY_ID"),
        ("s3://bucket?x=1", "AWS_ENDPOINT_URL"),
        (&file, "file"),
        (&below, "file"),
    ] {
        for args in [
            &["serve", "--listen", "127.0.0.1:0"][..],
            &["sql", "SELECT 1", "--volume", "todo"],
            &["volume", "ls"],
        ] {
            // A path below a file is found out at the first request; a listing of it is empty.
            if store == below && args[0] == "volume" {
                continue;
            }
            let output = graft(args.iter().chain(&["--store", store]));
            assert!(!output.stderr.contains("secret"), "{output}");
            soon_refused(output, &[part]);
        }
    }
    // A directory that does not exist is an empty store, and reading does not make it.
    let missing = dir.path().join("missing").to_string_lossy().into_owned();
    soon_refused(
        graft(["sql", "SELECT 1", "--volume", "todo", "--store", &missing]),
        &["no volume `todo`", &missing],
    );
    assert!(!Path::new(&missing).exists());
}

/// S3 behind a port where nobody listens, and behind one that takes connections and says nothing.
#[test]
fn an_s3_store_that_cannot_be_reached_is_said_soon() {
    let closed = format!("http://127.0.0.1:{}", free_port());
    std::thread::scope(|scope| {
        for args in [
            &["serve", "--listen", "127.0.0.1:0"][..],
            &["sql", "SELECT 1", "--volume", "todo"],
            &["volume", "ls"],
            &["volume", "log", "todo"],
        ] {
            let closed = &closed;
            scope.spawn(move || {
                let mut s3 = command(args.iter().chain(&["--store", "s3://bucket/prefix"]));
                for (name, value) in [
                    ("AWS_ACCESS_KEY_ID", "id"),
                    ("AWS_SECRET_ACCESS_KEY", "hush"),
                    ("AWS_REGION", "us-east-1"),
                    ("AWS_ENDPOINT_URL", closed),
                    ("AWS_ALLOW_HTTP", "true"),
                ] {
                    s3.env(name, value);
                }
                let output = run(s3);
                assert!(!output.stderr.contains("hush"), "{output}");
                soon_refused(output, &["reachable"]);
            });
        }
    });
}
