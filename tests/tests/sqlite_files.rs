//! SQLite files to volumes and back, by the command line: `graft import`, `export` and `backup`, also
//! when they, or the program whose database it is, are killed.
//!
//! The program is Debian's `sqlite3`, fed one transaction after another. `GRAFT_CRASH_SEED` chooses the
//! seed, which is printed.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use rusqlite::Connection;
use tests::places;
use tests::process::{Process, command, graft, until};

fn fill(connection: &Connection, rows: usize) {
    connection
        .execute_batch(&format!(
            "create table t(id integer primary key, v); create index i on t(v);
             with recursive n(i) as (select 1 union all select i + 1 from n where i < {rows})
             insert into t select i, randomblob(900) from n; create view w as select count(*) from t;"
        ))
        .unwrap();
}

fn text(connection: &Connection, sql: &str) -> String {
    connection.query_row(sql, [], |row| row.get(0)).unwrap()
}

const CONTENT: &str =
    "select count(*) || ' ' || sum(length(v)) || ' ' || hex(max(v)) || ' ' || hex(min(v)) from t";

#[test]
fn an_import_that_is_killed_leaves_nothing_and_runs_again() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("%s big.db");
    let source = Connection::open(&file).unwrap();
    source.execute_batch("pragma synchronous = off; pragma journal_mode = wal").unwrap();
    fill(&source, 40_000);
    let store = format!("file://{}/store", folder.path().display());
    let args = ["import", file.to_str().unwrap(), "--volume", "big", "--store", &store, "--json"];
    for wait_for in ["10 %", "50 %", "90 %"] {
        let mut importing = Process::start(command(args));
        // It may have ended by the time its progress is read; then the name is there, rightly.
        until("progress", || importing.stderr().contains(wait_for) || !importing.is_running());
        importing.kill();
        let names = graft(["volume", "ls", "--store", &store, "--json"]).json();
        if !names["volumes"].as_array().unwrap().is_empty() {
            break;
        }
        let error = graft(["sql", "select 1", "--volume", "big", "--store", &store]).error();
        assert!(error.contains("no volume `big`"), "{error}");
    }
    if graft(["volume", "info", "big", "--store", &store]).code != Some(0) {
        let imported = graft(args).json();
        assert_eq!((&imported["volume"], &imported["lsn"]), (&"big".into(), &1.into()));
    }
    let again = graft(args).error();
    assert!(again.contains("`big` exists already") && again.contains("%s big.db"), "{again}");
    let out = folder.path().join("out.db");
    let exported = graft(["export", "big", out.to_str().unwrap(), "--store", &store, "--json"]).json();
    assert_eq!(exported["lsn"], 1);
    let out = Connection::open(&out).unwrap();
    assert_eq!(text(&out, "pragma integrity_check"), "ok");
    assert_eq!(text(&out, CONTENT), text(&source, CONTENT));
    // One query, from nowhere, with nothing kept.
    let asked = graft([
        "sql",
        "select length(v) as n from t where id = 77",
        "--volume",
        "big",
        "--store",
        &store,
        "--json",
    ]);
    assert_eq!(asked.json()["rows"], serde_json::json!([[900]]));
}

/// What it had written lay there for ever, under a hidden name, as large as the database.
#[test]
fn an_export_that_is_stopped_leaves_no_file() {
    const TRIES_MAX: usize = 20;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("big.db");
    let source = Connection::open(&file).unwrap();
    source.execute_batch("pragma synchronous = off").unwrap();
    fill(&source, 40_000);
    let store = format!("file://{}/store", folder.path().display());
    graft(["import", file.to_str().unwrap(), "--volume", "big", "--store", &store, "--json"]).json();
    let out = folder.path().join("out");
    std::fs::create_dir(&out).unwrap();
    let to = out.join("out.db").display().to_string();
    let here =
        || std::fs::read_dir(&out).unwrap().map(|entry| entry.unwrap().file_name()).collect::<Vec<_>>();
    for _ in 0..TRIES_MAX {
        let mut exporting = Process::start(command(["export", "big", &to, "--store", &store]));
        until("a file", || !here().is_empty());
        exporting.terminate();
        if exporting.wait().success() {
            // It was faster.
            std::fs::remove_file(&to).unwrap();
            continue;
        }
        assert!(exporting.stderr().contains("was stopped"), "{}", exporting.stderr());
        assert!(here().is_empty(), "{:?}", here());
        return;
    }
    panic!("{TRIES_MAX} exports ended before they could be stopped");
}

#[test]
fn errors_of_import_and_export_name_the_file_and_the_next_step() {
    let folder = tempfile::tempdir().unwrap();
    let store = format!("file://{}/store", folder.path().display());
    let junk = folder.path().join("junk%n.db");
    std::fs::write(&junk, [b'x'; 3000]).unwrap();
    let junk = junk.to_str().unwrap();
    for (args, words) in [
        (&["import", junk, "--volume", "v"][..], &["junk%n.db", "not a database"][..]),
        (&["import", "/nowhere.db", "--volume", "v"], &["/nowhere.db"]),
        (&["import", junk, "--volume", "a/b"], &["`a/b` cannot name a volume"]),
        (&["import", junk, "--volume", "v", "--page-size", "1000"], &["1000", "power of two"]),
        (&["export", "v", "/tmp/never.db"], &["no volume `v`"]),
        (&["backup", junk, "--volume", "v"], &["junk%n.db"]),
    ] {
        let said = graft(args.iter().chain(&["--store", &store])).error();
        for word in words {
            assert!(said.contains(word), "{args:?} should say `{word}`, and says: {said}");
        }
    }
    let plain = folder.path().join("plain.db");
    fill(&Connection::open(&plain).unwrap(), 5);
    let plain = plain.to_str().unwrap();
    let said = graft(["backup", plain, "--volume", "v", "--store", &store]).error();
    assert!(said.contains("PRAGMA journal_mode=WAL"), "{said}");
    graft(["import", plain, "--volume", "v", "--store", &store]).expect(0);
    let out = folder.path().join("none/out.db");
    let said = graft(["export", "v", out.to_str().unwrap(), "--store", &store]).error();
    assert!(said.contains("out.db"), "{said}");
    let out = folder.path().join("out.db");
    let said = graft(["export", "v", out.to_str().unwrap(), "--at", "7", "--store", &store]).error();
    assert!(said.contains("lsn 7") && said.contains("newest is 1"), "{said}");
    assert!(!out.exists());
}

/// `sqlite3`, which acknowledges each transaction that it committed by printing its number.
struct Writer {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Writer {
    fn start(sqlite3: &Path, file: &Path) -> Writer {
        let mut child = Command::new(sqlite3)
            .args(["-batch", "-bail"])
            .arg(file)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut input = child.stdin.take().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        input.write_all(b".timeout 20000\npragma wal_autocheckpoint = 7;\n").unwrap();
        let mut writer = Writer { child, input, output };
        writer.line();
        writer
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        assert!(self.output.read_line(&mut line).unwrap() > 0, "sqlite3 ended");
        line.trim().to_owned()
    }

    /// One transfer between accounts, with its record.
    fn transfer(&mut self, rng: &mut StdRng) -> u64 {
        let (from, to) = (rng.random_range(1..=20), rng.random_range(1..=20));
        let amount = rng.random_range(1..50);
        let sql = format!(
            "begin immediate; update account set balance = balance - {amount} where id = {from};
             insert into record(seq, what) select seq + 1, hex(randomblob({})) from tally;
             update account set balance = balance + {amount} where id = {to};
             update tally set seq = seq + 1; commit; select seq from tally;\n",
            rng.random_range(1..3000)
        );
        self.input.write_all(sql.as_bytes()).unwrap();
        self.input.flush().unwrap();
        self.line().parse().unwrap()
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// The transactions in an exported state, whose invariant holds.
fn checked(file: &Path) -> u64 {
    let connection = Connection::open(file).unwrap();
    assert_eq!(text(&connection, "pragma integrity_check"), "ok");
    let one = |sql: &str| connection.query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap() as u64;
    assert_eq!(one("select sum(balance) from account"), 2000);
    let seq = one("select seq from tally");
    assert_eq!(
        (one("select count(*) from record"), one("select ifnull(max(seq), 0) from record")),
        (seq, seq)
    );
    seq
}

#[test]
fn every_state_of_a_backup_is_one_that_was_committed_whoever_is_killed() {
    let Some(sqlite3) = places::sqlite3() else { return };
    let given = std::env::var("GRAFT_CRASH_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed: u64 = given.unwrap_or_else(|| StdRng::from_os_rng().random_range(0..1_000_000));
    println!("GRAFT_CRASH_SEED={seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("bank.db");
    Connection::open(&file)
        .unwrap()
        .execute_batch(
            "pragma journal_mode = wal; create table account(id integer primary key, balance);
             create table record(seq integer primary key, what); create table tally(seq); insert into tally values(0);
             with recursive n(i) as (select 1 union all select i + 1 from n where i < 20)
             insert into account select i, 100 from n;",
        )
        .unwrap();
    let store = format!("file://{}/store", folder.path().display());
    let backup = |watch: bool| {
        let args = [
            "backup",
            file.to_str().unwrap(),
            "--volume",
            "bank",
            "--store",
            &store,
            "--json",
            "--interval",
            "3",
        ];
        command(args.into_iter().chain(watch.then_some("--watch")))
    };
    let export = |at: Option<u64>| -> u64 {
        let out: PathBuf = folder.path().join("out.db");
        let mut args =
            vec!["export".into(), "bank".into(), out.display().to_string(), "--store".into(), store.clone()];
        if let Some(lsn) = at {
            args.extend(["--at".into(), lsn.to_string()]);
        }
        graft(args).expect(0);
        checked(&out)
    };
    let mut writer = Writer::start(&sqlite3, &file);
    let mut watching = Process::start(backup(true));
    watching.line();
    let mut acknowledged = 0;
    for _ in 0..8 {
        for _ in 0..rng.random_range(1..40) {
            acknowledged = writer.transfer(&mut rng);
        }
        // However slow it is, so that there are commits to speak of.
        watching.line();
        for _ in 0..rng.random_range(0..10) {
            acknowledged = writer.transfer(&mut rng);
        }
        match rng.random_range(0..4) {
            0 => {
                writer.input.write_all(b"begin immediate; update tally set seq = 1000000;\n").unwrap();
                drop(writer);
                writer = Writer::start(&sqlite3, &file);
            }
            1 => {
                watching.kill();
                watching = Process::start(backup(true));
            }
            2 => {
                watching.kill();
                drop(writer);
                // Never ahead of what was committed; at most one commit was not acknowledged.
                let shipped = export(None);
                assert!(shipped <= acknowledged + 1, "seed {seed}: {shipped} of {acknowledged}");
                writer = Writer::start(&sqlite3, &file);
                watching = Process::start(backup(true));
            }
            _ => {}
        }
    }
    // Left alone, it ships the last transaction.
    acknowledged = writer.transfer(&mut rng);
    loop {
        watching.line();
        let shipped = export(None);
        if shipped == acknowledged {
            break;
        }
        assert!(shipped < acknowledged, "seed {seed}: {shipped} of {acknowledged}");
    }
    writer.transfer(&mut rng);
    // Asked to stop, it ships what there is first.
    watching.terminate();
    assert!(watching.wait().success(), "{}", watching.told());
    assert_eq!(export(None), acknowledged + 1, "seed {seed}");
    assert_eq!(graft(["volume", "ls", "--store", &store]).code, Some(0));
    let once = tests::process::run(backup(false)).expect(0);
    assert_eq!(once.stdout, "", "there was nothing left to ship");
    let info = graft(["volume", "info", "bank", "--store", &store, "--json"]).json();
    let newest = info["lsn"].as_u64().unwrap();
    assert!(newest > 3, "seed {seed}: {newest} commits");
    let mut before = 0;
    // All of them where they are few.
    for lsn in (1..=newest).step_by(usize::try_from(newest / 40 + 1).unwrap()) {
        let seq = export(Some(lsn));
        assert!(seq >= before, "seed {seed}: lsn {lsn} goes back from {before} to {seq}");
        before = seq;
    }
}
