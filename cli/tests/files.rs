//! `graft volume put`, `get` and `hydrate` as processes: what they print, what they leave, and that
//! they go on after a kill -9.

mod common;

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

use common::{fails, graft, is_documented, ok};

/// Bytes that do not compress, the same for the same seed: xorshift.
fn bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(&state.to_le_bytes());
    }
    out.truncate(len);
    out
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn a_file_goes_in_and_comes_out_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let (store, file, out) = (dir.path().join("store"), dir.path().join("in"), dir.path().join("out"));
    let (store, file_name, out_name) = (text(&store), text(&file), text(&out));
    let mut content = bytes(1, 3_000_000);
    content[1_000_000..2_000_000].fill(0);
    std::fs::write(&file, &content).unwrap();
    let put = ["volume", "put", "blob", file_name, "--store", store, "--page-size", "1024", "--json"];
    let line = ok(&put);
    is_documented("volume-put", &line);
    assert_eq!(
        (&line["created"], &line["lsn"], &line["bytes"]),
        (&true.into(), &1.into(), &3_000_000.into())
    );
    let get = ["volume", "get", "blob", out_name, "--store", store, "--json"];
    let line = ok(&get);
    is_documented("volume-get", &line);
    assert!(std::fs::read(&out).unwrap() == content);
    assert!(!dir.path().join("out.part").exists());
    assert!(line["bytes_fetched"].as_u64().unwrap() < 2_100_000, "the hole is not fetched: {line}");

    // One byte more: its page and the length; a copy that stopped half-way goes on.
    content.push(1);
    std::fs::write(&file, &content).unwrap();
    let line = ok(&put);
    assert_eq!((&line["pages_changed"], &line["lsn"]), (&2.into(), &2.into()));
    std::fs::write(dir.path().join("out.part"), &content[..1_500_000]).unwrap();
    let line = ok(&get);
    assert!(std::fs::read(&out).unwrap() == content);
    assert!(line["bytes_written"].as_u64().unwrap() <= 1_001_500, "{line}");

    // The engine's other commands know such a volume, too.
    let info = ok(&["volume", "info", "blob", "--store", store, "--json"]);
    assert_eq!((&info["page_size"], &info["lsn"]), (&1024.into(), &2.into()));
    let error = fails(&["volume", "put", "blob", file_name, "--store", store, "--page-size", "512"]);
    assert!(error.contains("pages of 1024 bytes"), "{error}");
    let error = fails(&["volume", "put", "other", file_name, "--store", store, "--page-size", "1000"]);
    assert!(error.contains("a power of two from 512 to 65536"), "{error}");
    let error = fails(&["volume", "get", "nothing", out_name, "--store", store]);
    assert!(error.contains("no volume `nothing`"), "{error}");
    let error = fails(&["volume", "put", "blob", store, "--store", store]);
    assert!(error.contains("no plain file"), "{error}");
}

/// Killed at a tenth of the way, it goes on from there; in the end nothing is missing.
#[test]
fn hydrate_goes_on_after_a_kill_and_follows() {
    let dir = tempfile::tempdir().unwrap();
    let (store, file, data) = (dir.path().join("store"), dir.path().join("in"), dir.path().join("data"));
    let (store, file_name, data) = (text(&store), text(&file), text(&data));
    let mut content = bytes(2, 96 << 20);
    std::fs::write(&file, &content).unwrap();
    let put = ["volume", "put", "blob", file_name, "--store", store, "--json"];
    ok(&put);
    let hydrate = ["volume", "hydrate", "blob", "--store", store, "--data", data, "--json"];

    let mut child = graft(&hydrate).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stderr.take().unwrap()).read_line(&mut line).unwrap();
    assert!(line.starts_with("hydrate blob: "), "{line}");
    child.kill().unwrap();
    child.wait().unwrap();

    let pages = 1 + (96 << 20) / 4096;
    let line = ok(&hydrate);
    is_documented("volume-hydrate", &line);
    assert_eq!((&line["pages"], &line["lsn"]), (&pages.into(), &1.into()));
    let fetched = line["fetched"].as_u64().unwrap();
    assert!(fetched < pages as u64 - 2000, "the first 16 MiB were here: {line}");
    let line = ok(&hydrate);
    assert_eq!((&line["fetched"], &line["requests"]), (&0.into(), &0.into()), "all of it is here");

    let mut follow = graft(&hydrate);
    follow.args(["--follow", "--interval", "0.02"]);
    let mut child = follow.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut next = || serde_json::from_str::<Value>(&lines.next().unwrap().unwrap()).unwrap();
    assert_eq!(next()["lsn"], 1);
    content[5_000_000] ^= 1;
    std::fs::write(&file, &content).unwrap();
    ok(&put);
    let line = next();
    assert_eq!((&line["lsn"], &line["fetched"]), (&2.into(), &1.into()));
    let killed = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(killed.success() && child.wait().unwrap().success());

    let error =
        fails(&["volume", "hydrate", "blob", "--store", store, "--data", data, "--disk-bytes", "9000000"]);
    assert!(error.contains("give a larger budget"), "{error}");
}
