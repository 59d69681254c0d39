//! What a person is told who asked for something that is not there, or that cannot be: the name that they
//! know it by, times that they can read, and the next step.

mod common;

use std::path::Path;

use common::{fails, ok};

/// A store with the volume `shop`, of three commits.
fn store(dir: &Path) -> String {
    let (db, store) = (dir.join("in.db"), dir.join("store"));
    let connection = rusqlite::Connection::open(&db).unwrap();
    connection.execute_batch("CREATE TABLE t(v); INSERT INTO t VALUES(0)").unwrap();
    drop(connection);
    let store = store.to_str().unwrap().to_owned();
    ok(&["import", db.to_str().unwrap(), "--volume", "shop", "--store", &store, "--json"]);
    for n in 1..=2 {
        let sql = format!("UPDATE t SET v = {n}");
        ok(&["sql", &sql, "--volume", "shop", "--store", &store, "--write", "--json"]);
    }
    store
}

/// The id, which nobody asked by.
fn id(store: &str) -> String {
    ok(&["volume", "info", "shop", "--store", store, "--json"])["id"].as_str().unwrap().to_owned()
}

#[test]
fn a_state_that_is_not_there_is_told_by_name_and_time() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    let (store, id) = (store.as_str(), id(&store));
    let out = dir.path().join("out.db");
    let told = |at: &str, words: &[&str]| {
        for command in [
            &["volume", "fork", "new", "--from", "shop"][..],
            &["volume", "restore", "new", "--from", "shop"],
            &["sql", "SELECT 1", "--volume", "shop"],
            &["export", "shop", out.to_str().unwrap()],
        ] {
            let said = fails(&[command, &["--at", at, "--store", store]].concat());
            for word in [&["volume `shop`"], words].concat() {
                assert!(said.contains(word), "{command:?} at {at} should say `{word}`: {said}");
            }
            assert!(!said.contains(&id), "{command:?} at {at}: {said}");
        }
    };
    told("9", &["no lsn 9 yet", "newest is 3"]);
    told("2020-02-03T04:05:06+01:00", &["2020-02-03 03:05:06.000 UTC", "graft volume log shop"]);
    let said = fails(&["volume", "fork", "new", "--from", "shop", "--at", "soon", "--store", store]);
    assert!(said.contains("'soon' for '--at") && said.contains("LSN like 42"), "{said}");
}

#[test]
fn a_state_that_was_given_up_is_told_so() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    let (store, id) = (store.as_str(), id(&store));
    let volume = |what: &str| ["volume", what, "shop", "--store"].map(str::to_owned);
    let run = |what: &str, more: &[&str]| {
        let args = volume(what);
        let args: Vec<&str> = args.iter().map(String::as_str).chain([store, "--json"]).collect();
        ok(&[&args, more].concat())
    };
    run("compact", &["--all"]);
    for _ in 0..2 {
        run("gc", &["--keep-days", "0", "--keep-commits", "0", "--grace", "0"]);
    }
    for command in [
        &["volume", "fork", "new", "--from", "shop"][..],
        &["sql", "SELECT 1", "--volume", "shop"],
        &["export", "shop", "out.db"],
    ] {
        let said = fails(&[command, &["--at", "2", "--store", store]].concat());
        assert!(said.contains("volume `shop` does not keep lsn 2 any more"), "{command:?}: {said}");
        assert!(!said.contains(&id), "{said}");
    }
    // What is kept can be forked, and verification says in words what it read.
    ok(&["volume", "fork", "new", "--from", "shop", "--at", "3", "--store", store, "--json"]);
    for (name, words) in [
        ("shop", "Read: the state of lsn 3; 1 checkpoint; "),
        ("new", "Read: the state of lsn 3; 2 pages in "),
    ] {
        let output = common::run(&["volume", "verify", name, "--store", store]);
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(said.contains(words), "{said}");
    }
}

#[test]
fn a_directory_in_place_of_a_file_is_refused_before_anything_is_done() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    let place = dir.path().join("a folder");
    std::fs::create_dir(&place).unwrap();
    let place = place.to_str().unwrap();
    for command in [
        &["import", place, "--volume", "x"][..],
        &["backup", place, "--volume", "x"],
        &["export", "shop", place],
        &["volume", "get", "shop", place],
    ] {
        let said = fails(&[command, &["--store", &store]].concat());
        assert!(said.contains("a folder` is a directory; give a file"), "{command:?}: {said}");
    }
    assert_eq!(std::fs::read_dir(place).unwrap().count(), 0);
}

/// It said that the volume is here, where it had found no room for a page.
#[test]
fn a_hydration_without_room_for_a_page_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    let data = dir.path().join("data");
    let args = ["volume", "hydrate", "shop", "--store", &store, "--data", data.to_str().unwrap()];
    let said = fails(&[&args[..], &["--disk-bytes", "1000"]].concat());
    assert!(said.contains("give 1048576 or more"), "{said}");
}

/// Killed after the name was gone: the same command again takes the rest.
#[test]
fn a_removal_that_was_killed_is_finished_by_the_same_command() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    let at = Path::new(&store);
    std::fs::create_dir(at.join("removals")).unwrap();
    std::fs::rename(at.join("names/shop"), at.join("removals/shop")).unwrap();
    let removed = ok(&["volume", "rm", "shop", "--store", &store, "--json"]);
    assert!(removed["objects"].as_u64().unwrap() > 3, "{removed}");
    let mut folders: Vec<_> = ["names", "removals", "volumes"].map(|folder| at.join(folder)).into();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { folders.push(path) } else { panic!("{} is left", path.display()) }
        }
    }
    let said = fails(&["volume", "rm", "shop", "--store", &store]);
    assert!(said.contains("no volume `shop`"), "{said}");
}

/// It hid every other volume of the store.
#[test]
fn a_damaged_name_is_told_beside_the_volumes_that_are_there() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    ok(&["volume", "fork", "other", "--from", "shop", "--store", &store, "--json"]);
    std::fs::write(Path::new(&store).join("names/other"), "").unwrap();
    let output = common::run(&["volume", "ls", "--store", &store, "--json"]);
    let line: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((line["volumes"][0]["name"].as_str(), line["volumes"].get(1)), (Some("shop"), None));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(1) && said.contains("names/other"), "{said}");
}

#[test]
fn a_fork_says_what_it_is_of() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    ok(&["volume", "fork", "new", "--from", "shop", "--at", "2", "--store", &store, "--json"]);
    let info = |name| ok(&["volume", "info", name, "--store", &store, "--json"]);
    assert_eq!(info("new")["parent"], serde_json::json!({ "id": id(&store), "lsn": 2 }));
    assert_eq!(info("shop")["parent"], serde_json::Value::Null);
}
