//! Reading the past as a process: the state is kept while it is read, and where that cannot be, it is
//! read all the same, and said.

mod common;

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Stdio};

use common::{graft, ok};

/// `graft serve`, stopped with the test.
struct Served(Child, String);

impl Served {
    fn start(store: &str) -> Served {
        let mut child = graft(&["serve", "--store", store, "--listen", "127.0.0.1:0"])
            .args(["--keep-days", "0.5", "--keep-commits", "9", "--grace", "5", "--gc-interval", "60"])
            .args(["--checkpoint-commits", "8", "--checkpoint-bytes", "65536", "--compact-every", "0"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let url = line.trim().strip_prefix("listening on ").unwrap_or_else(|| panic!("{line}")).to_owned();
        Served(child, url)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

#[test]
fn the_past_is_held_while_it_is_read_or_read_without() {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store").display().to_string();
    let db = dir.path().join("db.sqlite");
    rusqlite::Connection::open(&db)
        .unwrap()
        .execute_batch("CREATE TABLE t (n); INSERT INTO t VALUES (1)")
        .unwrap();
    let out = dir.path().join("out.sqlite");
    let (db, out) = (db.to_str().unwrap(), out.to_str().unwrap());
    ok(&["import", db, "--volume", "v", "--store", &store, "--json"]);
    for n in 2..5 {
        let sql = format!("UPDATE t SET n = {n}");
        ok(&["sql", &sql, "--volume", "v", "--store", &store, "--write", "--json"]);
    }
    let leases = || {
        let volumes = std::fs::read_dir(dir.path().join("store/volumes")).unwrap();
        let readers = volumes.flatten().map(|volume| volume.path().join("readers"));
        readers.filter_map(|readers| std::fs::read_dir(readers).ok()).map(Iterator::count).sum::<usize>()
    };
    let select = ["sql", "SELECT n FROM t", "--volume", "v", "--at", "2", "--json", "--store"];
    let served = Served::start(&store);
    // The bucket itself, and a server that takes no writes.
    for (store, held) in [(&store, true), (&served.1, false)] {
        let line = ok(&[&select[..], &[store]].concat());
        assert_eq!(line["rows"][0][0], 2, "{line}");
        let export = ok(&["export", "v", out, "--at", "3", "--store", store, "--json"]);
        assert_eq!(export["lsn"], 3);
        for line in [line, export] {
            let lease = line["lease"].as_str().unwrap();
            assert_eq!(lease == "held", held, "{store}: {line}");
            assert!(held || lease.starts_with("none: no lease can be written here"), "{lease}");
        }
        assert_eq!(leases(), 0, "given up at the end");
    }
    // The newest needs none.
    let line = ok(&["sql", "SELECT n FROM t", "--volume", "v", "--store", &store, "--json"]);
    assert!(line.get("lease").is_none());
}
