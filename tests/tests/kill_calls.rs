//! kill -9 at the system's calls: a program is killed when it begins to write, to sync, or to give a file
//! its name, at one such call after another.
//!
//! That is what happens between two requests to a store, and inside of a store that is a directory:
//! `kill_steps.rs` has the requests. Nothing that was acknowledged is lost, the store verifies, and the
//! operation runs again to its end.

#![cfg(target_os = "linux")]

use std::io::Write as _;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;

use graft::fetch::RemoteFetch;
use graft::remote::MemoryRemote;
use graft::store::FjallStore;
use graft::volume::{Options, Volume};
use graft::{PageSize, VolumeId};
use rusqlite::Connection;
use sqlsync_layer::vfs::Database;
use tests::places::{self, copy_folder};
use tests::process::graft;
use tests::strace::Strace;

/// What a data directory holds: its rows, in order. `None` where there is no table yet.
fn kept(dir: &Path) -> Option<Vec<String>> {
    let store = FjallStore::open(dir).unwrap();
    let options = Options { store: Some(Arc::new(store)), ..Options::default() };
    let volume = Volume::load(VolumeId([1; 16]), PageSize::DEFAULT, options).unwrap().volume;
    let fetch = RemoteFetch::new(Arc::new(MemoryRemote::new()));
    let (connection, _) = Database::new(Arc::new(volume), Arc::new(fetch)).connect().unwrap();
    let check: String = connection.query_row("pragma integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(check, "ok");
    let mut rows = connection.prepare("select v from t order by rowid").ok()?;
    Some(rows.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect())
}

/// Each call that writes or syncs is a step of opening the directory or of a commit. The program is killed
/// when it begins the n-th of one thread, before that does anything.
#[test]
fn a_local_commit_that_is_killed_at_any_call_is_whole_or_not_at_all() {
    let Some(strace) = Strace::find() else { return };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let _entered = runtime.enter();
    let rows: Vec<String> = (0..24).map(|number| format!("row {number}")).collect();
    let (mut kills, mut between, mut acknowledged) = (0, 0, 0);
    for at in numbers() {
        let dir = strace.path(&format!("data-{at}"));
        let mut command = strace.killing(Path::new(env!("CARGO_BIN_EXE_commits")), at);
        command.arg(&dir).arg("sync");
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        // It may be gone before it has read this.
        drop(child.stdin.take().unwrap().write_all((rows.join("\n") + "\n").as_bytes()));
        let output = child.wait_with_output().unwrap();
        let told = String::from_utf8(output.stdout).unwrap();
        let told: Vec<&str> = told.lines().filter_map(|line| line.strip_prefix("committed ")).collect();
        let found = kept(&dir).unwrap_or_default();
        assert!(
            found.len() <= told.len() + 1,
            "killed at call {at}: {told:?} were told, {found:?} are there"
        );
        assert!(
            rows.starts_with(&found) && found.len() >= told.len(),
            "killed at call {at}: {found:?}, {told:?}"
        );
        if output.status.success() {
            assert_eq!(found, rows);
            break;
        }
        kills += 1;
        between += usize::from((1..rows.len()).contains(&told.len()));
        acknowledged += told.len();
    }
    println!(
        "{kills} kills, {between} of them between two commits, {acknowledged} commits were acknowledged"
    );
    assert!(between >= 3 && kills > between, "{kills} kills, {between} between two commits");
}

/// A store in a directory with the volume `v`, made of a file of 3 MB, and then written to.
struct Shop {
    strace: Strace,
}

impl Shop {
    fn open() -> Option<Shop> {
        let shop = Shop { strace: Strace::find()? };
        let source = Connection::open(shop.path("in.db")).unwrap();
        source
            .execute_batch(
                "create table t(id integer primary key, v);
                 with recursive n(i) as (select 1 union all select i + 1 from n where i < 3000)
                 insert into t select i, randomblob(1000) from n;",
            )
            .unwrap();
        shop.ok(&["import", &shop.path("in.db"), "--volume", "v"], "whole");
        shop.ok(&["sql", "insert into t values(9000, 'first')", "--write", "--volume", "v"], "whole");
        Some(shop)
    }

    fn path(&self, name: &str) -> String {
        self.strace.path(name).display().to_string()
    }

    /// A copy of the store that nobody has touched.
    fn copy(&self, name: &str) -> String {
        copy_folder(&self.strace.path("whole"), &self.strace.path(name));
        name.to_owned()
    }

    fn ok(&self, args: &[&str], store: &str) -> String {
        let store = self.path(store);
        graft(args.iter().copied().chain(["--store", store.as_str()])).expect(0).stdout
    }

    /// Whether it was killed.
    fn kill_at(&self, args: &[&str], store: &str, at: usize) -> bool {
        let mut command = self.strace.killing(&places::graft_bin(), at);
        command.args(args).args(["--store", &self.path(store)]);
        let output = command.stdin(Stdio::null()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code().is_none_or(|code| code == 0), "{args:?}, call {at}: {said}");
        !output.status.success()
    }

    /// The ids that a volume of the store holds, all of which verifies.
    fn ids(&self, volume: &str, store: &str) -> Vec<i64> {
        self.ok(&["volume", "verify", volume], store);
        let out = self.path("out.db");
        self.ok(&["export", volume, &out], store);
        let out = Connection::open(out).unwrap();
        let check: String = out.query_row("pragma integrity_check", [], |row| row.get(0)).unwrap();
        assert_eq!(check, "ok");
        let mut rows = out.prepare("select id from t where length(v) > 0 order by id").unwrap();
        rows.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
    }
}

/// Numbers of calls to kill at: each of the first, and fewer of what follows.
fn numbers() -> impl Iterator<Item = usize> {
    std::iter::successors(Some(1), |at| Some(at + 1 + at / 8))
}

/// Kills at one call after another until the program lives to its end, and at each of the last; says how
/// often.
fn at_calls(what: &str, mut killed: impl FnMut(usize) -> bool) {
    let sampled: Vec<usize> = numbers().take_while(|at| killed(*at)).collect();
    let after = sampled.last().map_or(1, |last| last + 1);
    let lived = numbers().nth(sampled.len()).unwrap_or(after);
    let kills = sampled.len() + (after..lived).take_while(|at| killed(*at)).count();
    println!("{what}: {kills} kills");
    assert!(kills >= 5, "{what}: only {kills} kills");
}

#[test]
fn an_import_into_a_directory_that_is_killed_at_any_call_runs_again() {
    let Some(shop) = Shop::open() else { return };
    let import = ["import", &shop.path("in.db"), "--volume", "new"];
    let all: Vec<i64> = (1..=3000).collect();
    at_calls("import", |at| {
        let store = shop.copy(&format!("import-{at}"));
        let killed = shop.kill_at(&import, &store, at);
        // Its name is there only with all of it.
        if !shop.ok(&["volume", "ls"], &store).contains("new") {
            shop.ok(&import, &store);
        }
        assert_eq!(shop.ids("new", &store), all, "killed at call {at}");
        killed
    });
}

#[test]
fn a_write_that_is_killed_at_any_call_is_whole_or_not_at_all() {
    let Some(shop) = Shop::open() else { return };
    let (mut with, mut without) = (0, 0);
    at_calls("sql --write", |at| {
        let store = shop.copy(&format!("write-{at}"));
        let data = shop.path(&format!("data-{at}"));
        let write = |sql: &'static str| ["sql", sql, "--write", "--volume", "v", "--data", data.as_str()];
        let killed = shop.kill_at(&write("insert into t values(9001, randomblob(400000))"), &store, at);
        // Who comes next on this directory pushes what is kept there.
        shop.ok(&write("insert into t values(9002, 'later')"), &store);
        let ids = shop.ids("v", &store);
        let more = &ids[3000..];
        assert!(more == [9000, 9002] || more == [9000, 9001, 9002], "killed at call {at}: {more:?}");
        if more.len() == 3 {
            with += 1
        } else {
            without += 1
        }
        assert!(killed || more.len() == 3, "it was acknowledged");
        killed
    });
    assert!(with >= 2 && without >= 2, "{with} with its row, {without} without");
}

#[test]
fn a_hydration_that_is_killed_at_any_call_goes_on() {
    let Some(shop) = Shop::open() else { return };
    at_calls("hydrate", |at| {
        let data = shop.path(&format!("data-{at}"));
        let hydrate = ["volume", "hydrate", "v", "--data", data.as_str()];
        let killed = shop.kill_at(&hydrate, "whole", at);
        shop.ok(&hydrate, "whole");
        // What is in the directory is what was stored, every page of it.
        let sql =
            "select count(*), sum(length(v)), (select integrity_check from pragma_integrity_check) from t";
        let rows = shop.ok(&["sql", sql, "--volume", "v", "--data", data.as_str(), "--json"], "whole");
        assert!(rows.contains("[[3001,3000005,\"ok\"]]"), "killed at call {at}: {rows}");
        killed
    });
}
