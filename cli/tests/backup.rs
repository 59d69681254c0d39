//! `graft backup --watch` as a process: it outlives a store that is away, and ends where another backup
//! writes the same volume.

mod common;

use std::io::{BufRead as _, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use rusqlite::Connection;
use serde_json::Value;

use common::{fails, graft, ok};

/// A backup that watches. Killed when dropped.
struct Watching {
    child: Child,
    out: Receiver<String>,
    err: Receiver<String>,
}

/// What comes, line by line.
fn lines(from: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        BufReader::new(from).lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
    });
    receiver
}

/// The next of them, which must come.
fn next(lines: &Receiver<String>) -> String {
    lines.recv_timeout(Duration::from_secs(60)).expect("it ended, or says nothing")
}

impl Watching {
    fn start(file: &Path, store: &Path) -> Watching {
        let (file, store) = (file.to_str().unwrap(), store.to_str().unwrap());
        let args =
            ["backup", file, "--volume", "v", "--store", store, "--watch", "--interval", "5", "--json"];
        let mut child = graft(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (out, err) = (lines(child.stdout.take().unwrap()), lines(child.stderr.take().unwrap()));
        Watching { child, out, err }
    }
    /// The next commit.
    fn shipped(&self) -> Value {
        serde_json::from_str(&next(&self.out)).unwrap()
    }
    /// The next thing said that is no progress.
    fn said(&self) -> String {
        loop {
            let line = next(&self.err);
            if !line.contains(" % of ") {
                return line;
            }
        }
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn live(dir: &Path) -> (PathBuf, Connection) {
    let file = dir.join("live.db");
    let connection = Connection::open(&file).unwrap();
    connection
        .execute_batch("PRAGMA journal_mode = WAL; CREATE TABLE t(v); INSERT INTO t VALUES(1)")
        .unwrap();
    (file, connection)
}

#[test]
fn a_store_that_is_away_for_a_while_does_not_end_a_backup() {
    let dir = tempfile::tempdir().unwrap();
    let (file, connection) = live(dir.path());
    let (store, away) = (dir.path().join("store"), dir.path().join("away"));
    let mut watching = Watching::start(&file, &store);
    assert_eq!(watching.shipped()["lsn"], 1);
    std::fs::rename(&store, &away).unwrap();
    connection.execute_batch("INSERT INTO t VALUES(2)").unwrap();
    let said = watching.said();
    assert!(said.starts_with("note: ") && said.ends_with("; trying again"), "{said}");
    // What is committed meanwhile comes, too.
    connection.execute_batch("INSERT INTO t VALUES(3)").unwrap();
    std::fs::rename(&away, &store).unwrap();
    assert_eq!(watching.shipped()["lsn"], 2);
    assert_eq!(watching.said(), "the backup goes on");
    let killed = Command::new("kill").args(["-INT", &watching.child.id().to_string()]).status().unwrap();
    assert!(killed.success() && watching.child.wait().unwrap().success());
    let sum = ["sql", "SELECT sum(v) FROM t", "--volume", "v", "--store", store.to_str().unwrap(), "--json"];
    assert_eq!(ok(&sum)["rows"][0][0], 6);
}

/// A second writer of the volume is told as soon as it is met, as long as the store was there all the while.
#[test]
fn another_writer_ends_a_backup() {
    let dir = tempfile::tempdir().unwrap();
    let (file, connection) = live(dir.path());
    let store = dir.path().join("store");
    let mut watching = Watching::start(&file, &store);
    assert_eq!(watching.shipped()["lsn"], 1);
    let other = ["--volume", "v", "--store", store.to_str().unwrap(), "--write", "--json"];
    ok(&[&["sql", "INSERT INTO t VALUES(100)"][..], &other].concat());
    connection.execute_batch("INSERT INTO t VALUES(2)").unwrap();
    let said = watching.said();
    assert!(said.starts_with("error: ") && said.contains("lsn 2 went to another writer"), "{said}");
    assert_eq!(watching.child.wait().unwrap().code(), Some(1));
}

/// It went on with the file that was there before, which nobody writes any more, and said nothing.
#[test]
fn a_file_that_is_replaced_is_read_anew_and_one_that_is_gone_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let (file, connection) = live(dir.path());
    let store = dir.path().join("store");
    let mut watching = Watching::start(&file, &store);
    assert_eq!(watching.shipped()["lsn"], 1);
    let other = dir.path().join("other");
    std::fs::create_dir(&other).unwrap();
    let (restored, second) = live(&other);
    second.execute_batch("INSERT INTO t VALUES(70)").unwrap();
    drop((connection, second));
    // As whoever puts a database in another's place must: a WAL that stays is taken for its own.
    for beside in ["live.db-wal", "live.db-shm"] {
        std::fs::remove_file(dir.path().join(beside)).unwrap();
    }
    std::fs::rename(restored, &file).unwrap();
    let said = watching.said();
    assert!(said.contains("is another file now"), "{said}");
    assert_eq!(watching.shipped()["lsn"], 2);
    Connection::open(&file).unwrap().execute_batch("INSERT INTO t VALUES(500)").unwrap();
    assert_eq!(watching.shipped()["lsn"], 3);
    let sum = ["sql", "SELECT sum(v) FROM t", "--volume", "v", "--store", store.to_str().unwrap(), "--json"];
    assert_eq!(ok(&sum)["rows"][0][0], 571);
    std::fs::remove_file(&file).unwrap();
    let said = watching.said();
    assert!(said.contains("live.db") && said.contains("No such file"), "{said}");
    assert_eq!(watching.child.wait().unwrap().code(), Some(1));
}

/// A file that was stored with put was overwritten by a backup that was given the wrong name.
#[test]
fn a_volume_that_holds_a_file_takes_no_backup() {
    let dir = tempfile::tempdir().unwrap();
    let (file, _connection) = live(dir.path());
    let (store, kept) = (dir.path().join("store"), dir.path().join("kept.txt"));
    std::fs::write(&kept, "kept").unwrap();
    let store = ["--store", store.to_str().unwrap()];
    ok(&[&["volume", "put", "v", kept.to_str().unwrap(), "--json"][..], &store].concat());
    let said = fails(&[&["backup", file.to_str().unwrap(), "--volume", "v"][..], &store].concat());
    assert!(said.contains("holds no SQLite database"), "{said}");
    let out = dir.path().join("out.txt");
    ok(&[&["volume", "get", "v", out.to_str().unwrap(), "--json"][..], &store].concat());
    assert_eq!(std::fs::read(out).unwrap(), b"kept");
}
