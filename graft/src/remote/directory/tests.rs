use std::fs::FileTimes;

use futures::executor::block_on;

use super::*;

fn open(folder: &tempfile::TempDir) -> DirectoryRemote {
    DirectoryRemote::open(folder.path()).unwrap()
}

/// Names in the temporary directory.
fn leftovers(folder: &tempfile::TempDir) -> Vec<String> {
    let entries = fs::read_dir(folder.path().join(TEMPORARY)).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn threads_and_handles_racing_have_one_winner() {
    let folder = tempfile::tempdir().unwrap();
    for round in 0..20 {
        let key = format!("volumes/v/log/{round}");
        let won = std::thread::scope(|scope| {
            let race = |i: u8| {
                let (remote, key) = (open(&folder), &key);
                scope.spawn(move || block_on(remote.create(key, Bytes::from(vec![i; 5000]))).is_ok())
            };
            let racers: Vec<_> = (0..32).map(race).collect();
            racers.into_iter().map(|racer| racer.join().unwrap()).filter(|won| *won).count()
        });
        assert_eq!(won, 1, "round {round}");
        let body = block_on(open(&folder).get(&key)).unwrap();
        assert!(
            body.len() == 5000 && body.iter().all(|byte| *byte == body[0]),
            "round {round}: one body, whole"
        );
    }
    assert_eq!(leftovers(&folder), [""; 0], "winners and losers remove their temporary files");
}

#[test]
fn temporary_files_are_not_objects() {
    let folder = tempfile::tempdir().unwrap();
    let remote = open(&folder);
    block_on(remote.create("a", Bytes::new())).unwrap();
    fs::write(folder.path().join(TEMPORARY).join("half"), "half a commit").unwrap();
    let rows = block_on(remote.list("", None, 10)).unwrap();
    assert_eq!(rows.iter().map(|row| (row.key.as_str(), row.bytes)).collect::<Vec<_>>(), [("a", 0)]);
    for key in [TEMPORARY.to_string(), format!("{TEMPORARY}/half")] {
        let refused = |e: RemoteError| matches!(e, RemoteError::Refused { .. });
        assert!(block_on(remote.get(&key)).is_err_and(refused), "{key}");
        assert!(block_on(remote.create(&key, Bytes::new())).is_err_and(refused), "{key}");
        assert!(block_on(remote.delete(&key)).is_err_and(refused), "{key}");
    }
    // Elsewhere the name is a name.
    block_on(remote.create(&format!("b/{TEMPORARY}/c"), Bytes::new())).unwrap();
    assert_eq!(block_on(remote.list("b/", None, 10)).unwrap().len(), 1);
}

#[test]
fn an_open_removes_what_a_crash_left_an_hour_ago() {
    let folder = tempfile::tempdir().unwrap();
    block_on(open(&folder).create("a", Bytes::new())).unwrap();
    let temporaries = folder.path().join(TEMPORARY);
    for (name, age_s) in [("old", 4000), ("young", 1000)] {
        let file = File::create(temporaries.join(name)).unwrap();
        #[allow(clippy::disallowed_methods, reason = "the age of a file is against the real clock")]
        let then = SystemTime::now() - Duration::from_secs(age_s);
        file.set_times(FileTimes::new().set_modified(then)).unwrap();
    }
    open(&folder);
    assert_eq!(leftovers(&folder), ["young"]);
}

#[test]
fn a_directory_removed_under_us_is_made_again() {
    let folder = tempfile::tempdir().unwrap();
    let remote = open(&folder);
    block_on(remote.create("a/b/c", Bytes::new())).unwrap();
    fs::remove_dir_all(folder.path().join("a")).unwrap();
    block_on(remote.create("a/b/c", Bytes::from_static(b"again"))).unwrap();
    assert_eq!(block_on(remote.get("a/b/c")).unwrap(), "again");
}

/// A server whose store had been removed made it again, and called commits durable in a log that had
/// lost its beginning.
#[test]
fn a_root_that_was_removed_is_not_made_again() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("store");
    let remote = DirectoryRemote::open(&root).unwrap();
    assert_eq!(block_on(remote.list("", None, 10)).unwrap(), [], "one that never was is empty");
    block_on(remote.create("log/1", Bytes::new())).unwrap();
    fs::remove_dir_all(&root).unwrap();
    let gone = |error: RemoteError| {
        assert!(matches!(error, RemoteError::Unavailable { .. }), "{error}");
        assert!(error.to_string().contains("store is gone"), "{error}");
    };
    gone(block_on(remote.create("log/2", Bytes::new())).unwrap_err());
    gone(block_on(remote.get("log/1")).unwrap_err());
    gone(block_on(remote.list("log/", None, 10)).unwrap_err());
    assert!(!root.exists());
    fs::create_dir(&root).unwrap();
    block_on(remote.create("log/2", Bytes::new())).unwrap();
}

#[test]
fn a_key_below_an_object_or_above_one_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let remote = open(&folder);
    block_on(remote.create("a/b", Bytes::new())).unwrap();
    for key in ["a", "a/b/c", "a/b/c/d"] {
        let error = block_on(remote.create(key, Bytes::new())).expect_err(key);
        assert!(matches!(error, RemoteError::Refused { .. }), "{key}: {error}");
        let error = block_on(remote.get(key)).expect_err(key);
        assert!(matches!(error, RemoteError::NotFound { .. }), "{key}: {error}");
    }
    assert_eq!(block_on(remote.list("a/b/", None, 10)).unwrap(), []);
    assert_eq!(leftovers(&folder), [""; 0]);
}

/// One fsync of the file and one of its directory; strace, where it is installed, is the witness.
#[test]
fn a_create_in_a_known_directory_costs_two_fsyncs() {
    const CHILD: &str = "GRAFT_TEST_DIRECTORY";
    if let Ok(root) = std::env::var(CHILD) {
        let remote = DirectoryRemote::open(Path::new(&root)).unwrap();
        for i in 0..10 {
            block_on(remote.create(&format!("log/{i}"), Bytes::from_static(b"body"))).unwrap();
        }
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let trace = folder.path().join("trace");
    let traced = std::process::Command::new("strace")
        .args(["-f", "-e", "trace=fsync,fdatasync,link,linkat", "-o"])
        .arg(&trace)
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "remote::directory::tests::a_create_in_a_known_directory_costs_two_fsyncs"])
        .env(CHILD, folder.path().join("store"))
        .output();
    match traced {
        Err(e) if e.kind() == ErrorKind::NotFound => {
            eprintln!("not checked: strace is not installed");
            return;
        }
        output => assert!(output.unwrap().status.success()),
    }
    let text = fs::read_to_string(&trace).unwrap();
    let calls: Vec<&str> = text
        .lines()
        .filter(|line| line.contains("= 0"))
        .filter_map(|line| {
            ["fsync", "link"]
                .into_iter()
                .find(|call| line.contains(&format!("{call}(")) || line.contains(&format!("{call}at(")))
        })
        .collect();
    let links: Vec<usize> = (0..calls.len()).filter(|at| calls[*at] == "link").collect();
    assert_eq!(links.len(), 10, "{text}");
    // Each link stands between the fsync of its file and the fsync of its directory.
    assert_eq!(calls[links[0] - 1..].join(" "), ["fsync link fsync"; 10].join(" "), "{text}");
}

/// Appends a line for each of its entries, as whoever holds a lease changes it.
fn append(remote: &DirectoryRemote, entries: impl Iterator<Item = String>) {
    for entry in entries {
        loop {
            let (found, tag) = block_on(remote.get_tagged("volumes/v/owner")).unwrap();
            let body = [found.as_ref(), entry.as_bytes(), b"\n"].concat();
            match block_on(remote.update("volumes/v/owner", body.into(), &tag)) {
                Ok(_) => break,
                Err(RemoteError::Changed { .. }) => {}
                Err(other) => panic!("{other}"),
            }
        }
    }
}

/// Processes, and threads with handles of their own in each: no update is lost, and a put and a
/// delete in the middle do not let two win.
#[test]
fn updates_of_processes_and_threads_are_never_lost() {
    const CHILD: &str = "GRAFT_TEST_DIRECTORY_UPDATES";
    const PROCESSES: usize = 4;
    const THREADS: usize = 2;
    const ENTRIES: usize = 10;
    if let Ok(root) = std::env::var(CHILD) {
        let (root, process) = root.rsplit_once(':').unwrap();
        std::thread::scope(|scope| {
            for thread in 0..THREADS {
                let remote = DirectoryRemote::open(Path::new(root)).unwrap();
                scope.spawn(move || {
                    append(&remote, (0..ENTRIES).map(|i| format!("{process}.{thread}.{i}")));
                });
            }
        });
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let remote = open(&folder);
    block_on(remote.create("volumes/v/owner", Bytes::new())).unwrap();
    let children: Vec<_> = (0..PROCESSES)
        .map(|process| {
            std::process::Command::new(std::env::current_exe().unwrap())
                .args([
                    "--exact",
                    "remote::directory::tests::updates_of_processes_and_threads_are_never_lost",
                ])
                .env(CHILD, format!("{}:{process}", folder.path().display()))
                .stdout(std::process::Stdio::null())
                .spawn()
                .unwrap()
        })
        .collect();
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    let text = String::from_utf8(block_on(remote.get("volumes/v/owner")).unwrap().to_vec()).unwrap();
    let mut lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), PROCESSES * THREADS * ENTRIES, "{text}");
    lines.sort_unstable();
    lines.dedup();
    assert_eq!(lines.len(), PROCESSES * THREADS * ENTRIES, "each once: {text}");
    let left = leftovers(&folder);
    assert_eq!(left, [LOCKS], "lock files stay, temporary files go");
}

/// What stands between the look and the rename of an update.
#[test]
fn a_put_waits_for_the_lock_and_readers_do_not() {
    let folder = tempfile::tempdir().unwrap();
    let (remote, other) = (open(&folder), open(&folder));
    block_on(remote.put("a", Bytes::from_static(b"1"))).unwrap();
    let held = remote.files.lock("a").unwrap();
    let (said, hears) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            said.send("asking").unwrap();
            block_on(other.put("a", Bytes::from_static(b"2"))).unwrap();
            said.send("put").unwrap();
        });
        assert_eq!(hears.recv().unwrap(), "asking");
        let early = hears.recv_timeout(Duration::from_millis(50));
        assert!(early.is_err(), "it was put under the lock");
        assert_eq!(block_on(remote.get("a")).unwrap(), "1", "readers do not wait");
        drop(held);
        assert_eq!(hears.recv().unwrap(), "put");
    });
    assert_eq!(block_on(remote.get("a")).unwrap(), "2");
}
