//! `graft sql --on-conflict`: changes that another process was faster than, on one directory store.

mod common;

use std::path::PathBuf;
use std::process::Output;

use graft::{Lsn, VolumeId, key};
use serde_json::{Value, json};

use common::graft;

/// A store with one volume, and the data directories of two people.
struct Place {
    dir: tempfile::TempDir,
    volume: VolumeId,
}

impl Place {
    fn new() -> Place {
        let dir = tempfile::tempdir().unwrap();
        let mut place = Place { dir, volume: VolumeId([0; 16]) };
        // A volume that an import made: one commit.
        let file = place.path("first.db");
        let database = rusqlite::Connection::open(&file).unwrap();
        let pad = "p".repeat(3000);
        database.execute_batch("create table t(id integer primary key, v, pad)").unwrap();
        for id in 1..=8 {
            database.execute("insert into t values(?, 0, ?)", rusqlite::params![id, pad]).unwrap();
        }
        drop(database);
        let text = file.display().to_string();
        let made = place.ok(&["import", &text, "--volume", "shop", "--json"]);
        place.volume = made["id"].as_str().unwrap().parse().unwrap();
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn run(&self, args: &[&str]) -> Output {
        let store = format!("file://{}", self.path("store").display());
        graft(args).env("GRAFT_STORE", store).output().unwrap()
    }

    /// Runs a command that must succeed; its JSON.
    fn ok(&self, args: &[&str]) -> Value {
        let output = self.run(args);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{args:?}: {said}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    fn sql(&self, text: &str, data: &str, more: &[&str]) -> Output {
        let data = self.path(data).display().to_string();
        let fixed = ["sql", text, "--volume", "shop", "--write", "--json", "--data", &data];
        self.run(&[&fixed[..], more].concat())
    }

    fn rows(&self, volume: &str, text: &str) -> Value {
        self.ok(&["sql", text, "--volume", volume, "--json"])["rows"].clone()
    }

    /// Ann's change cannot be stored and stays in her directory, and Bob's is first.
    fn conflict(&self, ann: &str, bob: &str) {
        // Everything that her SQL reads is in her directory afterwards.
        let warm = self.sql("select count(*), sum(length(pad)) from t", "ann", &[]);
        assert!(warm.status.success(), "{}", String::from_utf8_lossy(&warm.stderr));
        // A directory where the next commit is to be: it can neither be stored nor be read.
        let newest = self.ok(&["volume", "info", "shop", "--json"])["lsn"].as_u64().unwrap();
        let next = self.path("store").join(key::log(self.volume, Lsn(newest + 1)));
        std::fs::create_dir(&next).unwrap();
        let kept = self.sql(ann, "ann", &[]);
        std::fs::remove_dir(&next).unwrap();
        let said = String::from_utf8_lossy(&kept.stderr).into_owned();
        assert!(!kept.status.success() && said.contains("kept in the data directory"), "{said}");
        let first = self.sql(bob, "bob", &[]);
        assert!(first.status.success(), "{}", String::from_utf8_lossy(&first.stderr));
        // Without a decision nothing runs.
        let refused = self.sql("select 1", "ann", &[]);
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success() && said.contains("--on-conflict"), "{said}");
    }
}

fn answer(output: &Output) -> Value {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {said}"))
}

#[test]
fn branch_makes_a_volume_of_what_came_too_late() {
    let place = Place::new();
    place.conflict("update t set v = 'ann' where id = 1", "update t set v = 'bob' where id = 1");
    let how = ["--on-conflict", "branch", "--branch-name", "anns"];
    let settled = place.sql("update t set v = v || '+' where id = 1", "ann", &how);
    let said = String::from_utf8_lossy(&settled.stderr).into_owned();
    assert!(said.contains("is volume `anns` now"), "{said}");
    let settled = answer(&settled);
    assert_eq!(settled["branches"][0]["volume"], json!("anns"));
    assert_eq!(settled["branches"].as_array().unwrap().len(), 1);
    let text = "select v from t where id < 3 order by id";
    assert_eq!(place.rows("anns", text), json!([["ann"], [0]]));
    // The SQL given ran on the volume itself, where Bob won.
    assert_eq!(place.rows("shop", text), json!([["bob+"], [0]]));
    // It is done: the directory holds nothing any more, and no second volume is made.
    let again = answer(&place.sql("select 1", "ann", &["--on-conflict", "branch"]));
    assert_eq!(again.get("branches"), None);
    // A name that is taken leaves the changes where they are; the next run takes the usual name.
    place.conflict("update t set v = 'ann 2' where id = 2", "update t set v = 'bob 2' where id = 2");
    let taken = place.sql("select 1", "ann", &how);
    let said = String::from_utf8_lossy(&taken.stderr).into_owned();
    assert!(!taken.status.success() && said.contains("`anns` is taken"), "{said}");
    let made = answer(&place.sql("select 1", "ann", &["--on-conflict", "branch"]));
    let name = made["branches"][0]["volume"].as_str().unwrap();
    assert!(name.starts_with("shop-branch-"), "{name}");
    assert_eq!(place.rows(name, text), json!([["bob+"], ["ann 2"]]));
    assert_eq!(place.rows("shop", text), json!([["bob+"], ["bob 2"]]));
}

#[test]
fn merge_keeps_what_nobody_touched_and_makes_a_volume_of_the_rest() {
    let place = Place::new();
    // Rows on pages of their own: these two do not meet.
    place.conflict("update t set v = 'ann' where id = 1", "update t set v = 'bob' where id = 8");
    let merged =
        place.sql("select v from t where id in (1, 8) order by id", "ann", &["--on-conflict", "merge"]);
    let said = String::from_utf8_lossy(&merged.stderr).into_owned();
    assert!(said.contains("merged 1 kept change"), "{said}");
    let merged = answer(&merged);
    assert_eq!((merged["rows"].clone(), merged.get("branches")), (json!([["ann"], ["bob"]]), None));
    assert_eq!(
        place.rows("shop", "select v from t where id in (1, 8) order by id"),
        json!([["ann"], ["bob"]])
    );
    // These two do.
    place.conflict("update t set v = 'ann 2' where id = 4", "update t set v = 'bob 2' where id = 4");
    let made = answer(&place.sql("select v from t where id = 4", "ann", &["--on-conflict", "merge"]));
    assert_eq!(made["rows"], json!([["bob 2"]]));
    let name = made["branches"][0]["volume"].as_str().unwrap();
    assert_eq!(
        place.rows(name, "select v from t where id in (1, 4) order by id"),
        json!([["ann"], ["ann 2"]])
    );
}
