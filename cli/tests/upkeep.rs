//! `graft volume compact`, `gc` and `verify` as processes: what they print, what they leave, and that a
//! kill -9 in the middle of them costs nothing but running them again.

mod common;

use std::io::{BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use rusqlite::Connection;
use serde_json::Value;

use common::{graft, is_documented, ok, run};

/// Single-row transactions after the import.
const WRITES: u64 = 30;

/// Runs it until it says how far it is for the first time, and kills it there.
fn kill_in_the_middle(args: &[&str]) {
    let mut child = graft(args).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stderr.take().unwrap()).read_line(&mut line).unwrap();
    child.kill().unwrap();
    let status = child.wait().unwrap();
    assert!(line.contains(" % of ") && !line.contains("100 %"), "{args:?} said {line:?}");
    assert_eq!(status.code(), None, "{args:?} had ended before it was killed: {status}");
}

struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    /// A database of 30 MB that was imported, and then written to row by row.
    fn new() -> Place {
        let place = Place { dir: tempfile::tempdir().unwrap() };
        let file = place.path("in.db");
        let connection = Connection::open(&file).unwrap();
        connection
            .execute_batch(
                "CREATE TABLE t (id INTEGER PRIMARY KEY, body BLOB);
                 WITH n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 40000)
                 INSERT INTO t SELECT i, randomblob(700) FROM n;",
            )
            .unwrap();
        drop(connection);
        ok(&["import", file.to_str().unwrap(), "--volume", "shop", "--store", &place.store(), "--json"]);
        for i in 1..=WRITES {
            let sql = format!("UPDATE t SET body = randomblob(700) WHERE id = {}", i * 1000);
            ok(&["sql", &sql, "--volume", "shop", "--store", &place.store(), "--write", "--json"]);
        }
        place
    }
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
    fn store(&self) -> String {
        self.path("store").to_str().unwrap().to_owned()
    }
    fn volume(&self, command: &str, more: &[&str]) -> Value {
        let store = self.store();
        ok(&[&["volume", command, "shop", "--store", &store, "--json"], more].concat())
    }
    fn kill(&self, command: &str, more: &[&str]) {
        let store = self.store();
        kill_in_the_middle(&[&["volume", command, "shop", "--store", &store], more].concat());
    }
    /// Every byte of the database that a reader gets.
    fn content(&self, volume: &str) -> Vec<u8> {
        let out = self.path("out.db");
        ok(&["export", volume, out.to_str().unwrap(), "--store", &self.store(), "--json"]);
        std::fs::read(out).unwrap()
    }
    fn is_sound(&self) -> Value {
        let report = self.volume("verify", &[]);
        assert_eq!((&report["sound"], &report["findings"]), (&true.into(), &Value::Array(vec![])));
        report
    }
}

/// The first segment that a compaction made.
fn compacted(folder: &Path) -> PathBuf {
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            if entry.metadata().unwrap().is_dir() {
                folders.push(entry.path());
            } else if name.starts_with('c') && name.as_bytes().get(9) == Some(&b'-') {
                return entry.path();
            }
        }
    }
    panic!("no compacted segment below {}", folder.display())
}

#[test]
fn upkeep_survives_kills_and_keeps_every_byte() {
    let place = Place::new();
    let content = place.content("shop");
    ok(&["volume", "fork", "early", "--from", "shop", "--at", "1", "--store", &place.store(), "--json"]);
    let early = place.content("early");
    assert!(early != content);

    // A compaction that is killed leaves segments that nothing names.
    place.kill("compact", &[]);
    assert!(place.content("shop") == content);
    is_documented("volume-verify", &place.is_sound());

    let line = place.volume("compact", &[]);
    is_documented("volume-compact", &line);
    assert_eq!((&line["outcome"], &line["lsn"]), (&"stored".into(), &(WRITES + 1).into()));
    assert!(line["pages"].as_u64().unwrap() > 7000, "{line}");
    assert!(place.content("shop") == content);
    place.is_sound();
    assert_eq!(place.volume("compact", &[])["outcome"], "current");
    let again = place.volume("compact", &["--all"]);
    assert_eq!((&again["outcome"], &again["pages"]), (&"stored".into(), &line["pages"]));

    // Without further flags, everything is younger than what is kept.
    let kept = place.volume("gc", &[]);
    assert_eq!((&kept["publish"], &kept["objects_gone"]), (&Value::Null, &0.into()), "{kept}");

    let now = ["--keep-days", "0", "--keep-commits", "0", "--grace", "0"];
    let plan = place.volume("gc", &[&now[..], &["--dry-run"]].concat());
    is_documented("volume-gc", &plan);
    assert_eq!(plan["publish"]["lsn"], WRITES + 1);
    assert!(plan["objects_gone"].as_u64().unwrap() >= WRITES, "{plan}");
    assert!(plan["pinned"].to_string().contains("/forks/"), "{plan}");
    assert!(place.volume("gc", &[&now[..], &["--dry-run"]].concat()) == plan, "a dry run changes nothing");

    place.kill("gc", &now);
    assert!(place.content("shop") == content && place.content("early") == early);
    place.is_sound();

    place.volume("gc", &now);
    let report = place.is_sound();
    assert_eq!(report["from"], WRITES + 1);
    assert!(place.content("shop") == content && place.content("early") == early);
    let old = run(&["sql", "SELECT 1", "--volume", "shop", "--at", "5", "--store", &place.store()]);
    assert_eq!(old.status.code(), Some(1), "lsn 5 was given up");
    place.volume("gc", &now);
    assert_eq!(place.volume("gc", &now)["objects_gone"], 0, "nothing is left to do");
    assert_eq!(place.is_sound()["orphans"], Value::Array(vec![]));
}

#[test]
fn damage_is_named_and_exits_1() {
    let place = Place::new();
    place.volume("compact", &["--all"]);
    let segment = compacted(&place.path("store"));
    let mut file = std::fs::File::options().read(true).write(true).open(&segment).unwrap();
    let middle = file.metadata().unwrap().len() / 2;
    let mut byte = [0];
    file.seek(SeekFrom::Start(middle)).unwrap();
    file.read_exact(&mut byte).unwrap();
    file.seek(SeekFrom::Start(middle)).unwrap();
    file.write_all(&[byte[0] ^ 1]).unwrap();
    drop(file);

    let name = segment.file_name().unwrap().to_str().unwrap();
    let store = place.store();
    let output = run(&["volume", "verify", "shop", "--store", &store, "--json"]);
    let line: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((output.status.code(), &line["sound"]), (Some(1), &false.into()));
    let findings = line["findings"].as_array().unwrap();
    // A frame that reaches over a chunk of the page table is read, and found, once for each.
    let named = |finding: &Value| finding["key"].as_str().unwrap().ends_with(name);
    assert!(!findings.is_empty() && findings.iter().all(named), "{line}");
    let output = run(&["volume", "verify", "shop", "--store", &store]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains(name) && text.contains("is damaged: "), "{text}");
    assert!(String::from_utf8(output.stderr).unwrap().contains(" % of "), "it says how far it is");
}
