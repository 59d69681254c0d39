use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::FileExt as _;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use super::super::{SharedStore, conformance};
use super::*;

/// Says to a test in a child process which directory is its own.
const CHILD: &str = "GRAFT_TEST_FJALL";

fn open(dir: &Path) -> Result<SharedStore, StoreError> {
    Ok(Arc::new(FjallStore::open(dir)?))
}

#[test]
fn fjall_conforms() {
    let folder = tempfile::tempdir().unwrap();
    conformance::check(&mut |name| open(&folder.path().join(name)));
    conformance::check_reopen(&mut |name| open(&folder.path().join(name)));
}

/// Enough to fill memtables, rotate journals and compact, with what comes after a reopen.
#[test]
fn more_than_memory_reads_back_after_a_reopen() {
    let folder = tempfile::tempdir().unwrap();
    let value = |i: u32| vec![i as u8 ^ (i >> 8) as u8; 20_000];
    {
        let store = open(folder.path()).unwrap();
        for first in (0..3_000_u32).step_by(50) {
            let mut batch = Batch::default();
            for i in first..first + 50 {
                batch.put(Space::Timeline, i.to_be_bytes().to_vec(), value(i));
                if i % 3 == 0 && i >= 300 {
                    batch.remove(Space::Timeline, (i - 300).to_be_bytes().to_vec());
                }
            }
            store.write(batch, Durability::Buffered).unwrap();
        }
    }
    let store = open(folder.path()).unwrap();
    for i in 0..3_000_u32 {
        let expected = (i % 3 != 0 || i >= 2_700).then(|| value(i));
        assert!(
            store.get(Space::Timeline, &i.to_be_bytes()).unwrap().as_deref() == expected.as_deref(),
            "{i}"
        );
    }
}

#[test]
fn a_second_open_is_told_who_holds_the_directory() {
    let folder = tempfile::tempdir().unwrap();
    let store = FjallStore::open(folder.path()).unwrap();
    let error = FjallStore::open(folder.path()).expect_err("held");
    let text = error.to_string();
    assert!(matches!(error, StoreError::Locked { .. }), "{text}");
    assert!(text.contains(&format!("process {} (graft", std::process::id())), "{text}");
    assert!(text.contains(folder.path().to_str().unwrap()) && text.contains("another directory"), "{text}");
    drop(store);
    FjallStore::open(folder.path()).expect("free again");
}

/// What left the journal would else be in another directory than the journal, and neither would open.
#[test]
fn a_directory_that_was_moved_while_open_is_not_made_anew() {
    let folder = tempfile::tempdir().unwrap();
    let (dir, moved) = (folder.path().join("data"), folder.path().join("moved"));
    let write = |store: &FjallStore, i: u32| {
        let mut batch = Batch::default();
        batch.put(Space::Timeline, i.to_be_bytes().to_vec(), vec![i as u8; 1 << 20]);
        store.write(batch, Durability::Buffered)
    };
    // With a table from the beginning, and without.
    for before in [0, 40] {
        let store = FjallStore::open(&dir).unwrap();
        (0..before).for_each(|i| write(&store, i).unwrap());
        fs::rename(&dir, &moved).unwrap();
        let mut acked = before;
        let error = loop {
            match write(&store, acked) {
                Ok(()) => acked += 1,
                Err(error) => break error,
            }
            assert!(acked < before + 100, "the journal took more than it holds");
        };
        assert!(error.to_string().contains("moved"), "{error}");
        assert!(!dir.exists());
        drop(store);
        fs::rename(&moved, &dir).unwrap();
        let store = FjallStore::open(&dir).unwrap();
        for i in 0..acked {
            assert!(store.get(Space::Timeline, &i.to_be_bytes()).unwrap().is_some(), "{i} of {acked}");
        }
        drop(store);
        fs::remove_dir_all(&dir).unwrap();
    }
}

#[test]
fn unknown_formats_are_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    for (file, text, said) in [
        ("format", "graft replica 1\n", "graft replica 1"),
        ("format", "graft replica 3\n", "graft replica 3"),
        ("format", "%s\0\n", "%s\\0"),
        ("format", "", "format ``"),
        ("holiday.jpg", "", "holiday.jpg"),
    ] {
        let dir = folder.path().join(said.replace(['\\', '`', ' '], "_"));
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join(file), text).unwrap();
        fs::write(dir.join("lock"), "not ours").unwrap();
        let error = FjallStore::open(&dir).expect_err(file);
        assert!(matches!(&error, StoreError::Format { .. }), "{error}");
        assert!(error.to_string().contains(said), "{error}");
        assert_eq!(fs::read_to_string(dir.join(file)).unwrap(), text);
        assert_eq!(fs::read_to_string(dir.join("lock")).unwrap(), "not ours");
        assert!(!dir.join("journal").exists());
    }
    let error = FjallStore::open(tempfile::NamedTempFile::new().unwrap().path()).expect_err("a file");
    assert!(matches!(error, StoreError::Failed { .. }), "{error}");
}

/// Starts the named ignored test of this module in a process of its own.
fn child(test: &str, dir: &Path, wrapper: &[&str]) -> Command {
    let this = std::env::current_exe().unwrap();
    let (program, before) =
        wrapper.split_first().map_or((this.as_os_str(), &[][..]), |(program, rest)| (program.as_ref(), rest));
    let mut command = Command::new(program);
    command.args(before);
    if !wrapper.is_empty() {
        command.arg(&this);
    }
    command.args(["--exact", &format!("store::fjall::tests::{test}"), "--ignored", "--nocapture"]);
    command.env(CHILD, dir).stdin(Stdio::null());
    command
}

/// The lines that a child prints after `acked `, as they come.
fn acked(child: &mut Child) -> impl Iterator<Item = u32> + use<> {
    let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    lines.map_while(Result::ok).filter_map(|line| line.split_once("acked ")?.1.trim().parse().ok())
}

fn batch_of(round: u32) -> Batch {
    let mut batch = Batch::default();
    for space in Space::ALL {
        batch.put(space, &b"round"[..], round.to_be_bytes().to_vec());
        batch.put(space, round.to_be_bytes().to_vec(), vec![round as u8; 10_000]);
    }
    batch
}

/// The last round in the store. Every space must tell the same, with every round before it.
fn last_round(store: &dyn ReplicaStore) -> u32 {
    let of = |space| {
        let found = store.get(space, b"round").unwrap();
        found.map_or(0, |round| u32::from_be_bytes(round.as_ref().try_into().unwrap()))
    };
    let last = of(Space::State);
    for space in Space::ALL {
        assert_eq!(of(space), last, "{space:?}: batches are whole");
        assert_eq!(
            store.scan(space, b"").unwrap().len() as u32,
            if last == 0 { 0 } else { last + 1 },
            "{space:?}"
        );
    }
    last
}

#[test]
#[ignore = "a child process of the tests below"]
fn child_writes_until_killed() {
    let Some(dir) = std::env::var_os(CHILD) else { panic!("run by its parent alone") };
    let store = FjallStore::open(Path::new(&dir)).unwrap();
    for round in last_round(&store) + 1.. {
        store.write(batch_of(round), Durability::Sync).unwrap();
        println!("acked {round}");
    }
}

/// kill -9 at any moment: what was acknowledged is there, batches are whole, the lock is free. The last
/// child fills the journal twice, so that it dies while the table is at work.
#[test]
fn a_killed_process_loses_nothing_it_acknowledged() {
    let folder = tempfile::tempdir().unwrap();
    let mut before = 0;
    for rounds in [1, 5, 40, 600] {
        let mut running =
            child("child_writes_until_killed", folder.path(), &[]).stdout(Stdio::piped()).spawn().unwrap();
        let mut acks = acked(&mut running);
        let told = acks.by_ref().nth(rounds).expect("it writes until it is killed");
        let error = FjallStore::open(folder.path()).expect_err("the child holds it");
        assert!(error.to_string().contains(&format!("process {}", running.id())), "{error}");
        running.kill().unwrap();
        running.wait().unwrap();
        let told = acks.last().unwrap_or(told);
        let store = FjallStore::open(folder.path()).expect("the lock died with its holder");
        let last = last_round(&store);
        assert!(last == told || last == told + 1, "acknowledged {told}, found {last}");
        assert!(last > before);
        before = last;
    }
}

#[test]
#[ignore = "a child process of the test below"]
fn child_writes_ten_and_aborts() {
    let Some(dir) = std::env::var_os(CHILD) else { panic!("run by its parent alone") };
    let store = FjallStore::open(Path::new(&dir)).unwrap();
    for round in 1..=10 {
        store.write(batch_of(round), Durability::Sync).unwrap();
        println!("acked {round}");
    }
    // No destructor runs, so that nothing is synced late.
    std::process::abort();
}

/// Each durable write fsyncs the journal before it is acknowledged; strace, where it is installed,
/// is the witness.
#[test]
fn a_durable_write_is_an_fsync() {
    let folder = tempfile::tempdir().unwrap();
    let (dir, trace) = (folder.path().join("store"), folder.path().join("trace"));
    let strace = ["strace", "-f", "-e", "trace=fsync,fdatasync,write", "-o", trace.to_str().unwrap()];
    let traced = match child("child_writes_ten_and_aborts", &dir, &strace).output() {
        Err(e) if e.kind() == ErrorKind::NotFound => {
            eprintln!("fsync not checked: strace is not installed");
            child("child_writes_ten_and_aborts", &dir, &[]).output().unwrap();
            None
        }
        output => {
            output.unwrap();
            Some(fs::read_to_string(&trace).unwrap())
        }
    };
    assert_eq!(last_round(&FjallStore::open(&dir).unwrap()), 10, "also after an abort");
    let Some(trace) = traced else { return };
    let mut synced = false;
    let mut acks = 0;
    for line in trace.lines() {
        if line.contains("sync(") {
            synced = true;
        } else if line.contains("\"acked ") {
            assert!(synced, "acknowledged without an fsync since the last one:\n{line}");
            (synced, acks) = (false, acks + 1);
        }
    }
    assert_eq!(acks, 10, "{trace}");
}

/// A directory is new once, but a person waits for it: fjall took 93 syncs to make its own.
#[test]
fn a_new_directory_costs_few_syncs() {
    let folder = tempfile::tempdir().unwrap();
    let (dir, trace) = (folder.path().join("store"), folder.path().join("trace"));
    let strace = ["strace", "-f", "-e", "trace=fsync,fdatasync,write", "-o", trace.to_str().unwrap()];
    match child("child_writes_ten_and_aborts", &dir, &strace).output() {
        Err(e) if e.kind() == ErrorKind::NotFound => {
            eprintln!("fsyncs not counted: strace is not installed");
            return;
        }
        output => output.unwrap(),
    };
    let trace = fs::read_to_string(&trace).unwrap();
    let before = trace.lines().take_while(|line| !line.contains("\"acked "));
    // The directory's own entry and that of the one it is in, the format and its entry, the journal's entry,
    // and the first batch.
    assert_eq!(before.filter(|line| line.contains("sync(")).count(), 6, "{trace}");
    assert!(!dir.join("fjall").exists(), "what is small lies in the journal alone");
}

/// Whoever made a directory may have been killed before its entry was on disk: an acknowledged write in it
/// would go with it when the power fails.
#[test]
fn directories_that_a_killed_process_left_are_synced_before_anything_is_acknowledged() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().canonicalize().unwrap();
    for (case, made, synced) in [
        ("all", "all/a/store", &["all/a"][..]),
        ("some", "some/a", &["some", "some/a"]),
        ("none", "none", &["none", "none/a", ""]),
    ] {
        fs::create_dir_all(root.join(made)).unwrap();
        let (dir, trace) = (root.join(case).join("a/store"), root.join(format!("{case}.trace")));
        let strace =
            ["strace", "-f", "-y", "-e", "trace=fsync,fdatasync,write", "-o", trace.to_str().unwrap()];
        match child("child_writes_ten_and_aborts", &dir, &strace).output() {
            Err(e) if e.kind() == ErrorKind::NotFound => {
                eprintln!("fsyncs not looked at: strace is not installed");
                return;
            }
            output => output.unwrap(),
        };
        let trace = fs::read_to_string(&trace).unwrap();
        let before = trace.split("\"acked ").next().unwrap();
        for parent in synced {
            let parent = if parent.is_empty() { root.clone() } else { root.join(parent) };
            let call = format!("<{}>", parent.display());
            let is_synced = before.lines().any(|line| line.contains("fsync(") && line.contains(&call));
            assert!(is_synced, "{case}: {call} is not synced:\n{before}");
        }
    }
}

/// Of this process's files a child that it forks has copies, until it has become another program or ends.
#[test]
fn a_closed_directory_is_free_though_a_child_has_its_files() {
    let folder = tempfile::tempdir().unwrap();
    let store = FjallStore::open(folder.path()).unwrap();
    let inherited = store._lock.file().try_clone().unwrap();
    drop(store);
    open(folder.path()).expect("nobody holds it");
    drop(inherited);
}

fn noise(random: &mut StdRng, bytes: usize) -> Vec<u8> {
    let mut value = vec![0; bytes];
    random.fill(&mut value[..]);
    value
}

/// fjall's newest journal.
fn newest(dir: &Path) -> fs::File {
    let newest = fs::read_dir(dir.join("fjall"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter_map(|path| {
            Some((path.file_name()?.to_str()?.strip_suffix(".jnl")?.parse::<u64>().ok()?, path))
        })
        .max();
    fs::File::options().read(true).write(true).open(newest.expect("a journal").1).unwrap()
}

fn copy_of(dir: &Path) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    assert!(Command::new("cp").arg("-a").arg(dir.join(".")).arg(copy.path()).status().unwrap().success());
    copy
}

/// A power cut that loses any blocks of what fjall had not synced, in the middle too: the directory
/// opens, and what was durable is there with a prefix of the rest.
#[test]
fn a_torn_batch_of_the_table_does_not_close_the_directory() {
    for seed in 0..12 {
        let mut random = StdRng::seed_from_u64(seed);
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path()).unwrap();
        // Each batch is of one key; some go to the table alone. A durable one syncs it too.
        let mut durable = 0;
        let mut synced = 0;
        for key in 1..=8_u8 {
            let bytes = if random.random() { 100 } else { random.random_range(1 << 20..4 << 20) };
            let sync = key <= 4 && random.random();
            let mut batch = Batch::default();
            batch.put(Space::State, vec![key], noise(&mut random, bytes));
            store.write(batch, if sync { Durability::Sync } else { Durability::Buffered }).unwrap();
            if sync {
                durable = key;
            }
            if sync && folder.path().join("table").exists() {
                synced = torn::whole(&mut newest(folder.path())).unwrap();
            }
        }
        // First it is closed, for its workers change several files while they are copied.
        drop(store);
        let copy = copy_of(folder.path());
        if !copy.path().join("table").exists() {
            continue;
        }
        let jnl = newest(copy.path());
        let end = torn::whole(&mut newest(copy.path())).unwrap();
        for block in synced.div_ceil(4096)..end / 4096 {
            if random.random_ratio(1, 200) {
                jnl.write_all_at(&[0; 4096], block * 4096).unwrap();
            }
        }
        for opening in 0..2 {
            let store = open(copy.path()).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
            let there: Vec<u8> =
                store.scan(Space::State, b"").unwrap().iter().map(|(key, _)| key[0]).collect();
            let last = there.len() as u8;
            assert!(last >= durable, "seed {seed}, opening {opening}: {there:?}, {durable} was durable");
            assert_eq!(there, (1..=last).collect::<Vec<_>>(), "seed {seed}: a prefix");
            assert_eq!(torn::copies(copy.path()).unwrap(), Vec::<PathBuf>::new(), "nothing is kept of it");
            let mut batch = Batch::default();
            batch.put(Space::State, vec![last + 1], vec![0; 2 << 20]);
            store.write(batch, Durability::Sync).unwrap();
            durable = last + 1;
        }
    }
}

/// Where the journal says that what is torn had been on disk, opening is refused, each time, and a copy
/// is kept of what was cut off.
#[test]
fn damage_to_what_the_table_had_synced_is_told_and_kept() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).unwrap();
    let mut batch = Batch::default();
    batch.put(Space::State, vec![1], noise(&mut StdRng::seed_from_u64(1), 4 << 20));
    store.write(batch, Durability::Sync).unwrap();
    for key in 2..4 {
        let mut batch = Batch::default();
        batch.put(Space::State, vec![key], vec![key; 100]);
        store.write(batch, Durability::Sync).unwrap();
    }
    drop(store);
    for damage in [vec![0; 4096], vec![0xff; 1 << 16]] {
        let copy = copy_of(folder.path());
        newest(copy.path()).write_all_at(&damage, 2 << 20).unwrap();
        let mut before = fs::read(copy.path().join("fjall").join("0.jnl")).unwrap();
        let used = before.iter().rposition(|byte| *byte != 0).unwrap() + 1;
        before.truncate(used);
        for _ in 0..2 {
            let error = open(copy.path()).expect_err("batch 1 was on disk");
            let copies = torn::copies(copy.path()).unwrap();
            assert_eq!(copies.len(), 1, "{copies:?}");
            let said = error.to_string();
            assert!(
                matches!(&error, StoreError::Damaged { .. })
                    && said.contains("was on disk")
                    && said.contains(copies[0].to_str().unwrap()),
                "{said}"
            );
            let name = copies[0].file_name().unwrap().to_str().unwrap().to_owned();
            let at: usize = name.strip_prefix("torn-0-").unwrap().parse().unwrap();
            assert!(fs::read(&copies[0]).unwrap() == before[at..], "all of it is kept");
        }
    }
}

/// A journal of fjall's that it does not write to any more was synced: if it is not whole, nothing is
/// touched.
#[test]
fn a_damaged_older_journal_of_the_table_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).unwrap();
    let mut batch = Batch::default();
    batch.put(Space::State, vec![1], noise(&mut StdRng::seed_from_u64(1), 2 << 20));
    store.write(batch, Durability::Sync).unwrap();
    drop(store);
    let older = folder.path().join("fjall").join("0.jnl");
    fs::File::options().write(true).open(&older).unwrap().write_all_at(&[0; 4096], 1 << 20).unwrap();
    fs::write(folder.path().join("fjall").join("1.jnl"), vec![0; 1 << 20]).unwrap();
    let before = fs::read(&older).unwrap();
    let error = open(folder.path()).expect_err("damaged");
    assert!(
        matches!(&error, StoreError::Damaged { .. }) && error.to_string().contains("fjall/0.jnl"),
        "{error}"
    );
    assert!(fs::read(&older).unwrap() == before);
}

/// What a transaction of one row costs here. Run it alone, with `--release --ignored --nocapture`: most
/// of the time goes to checksums, which are slow otherwise.
#[test]
#[ignore = "a measurement"]
#[allow(clippy::disallowed_methods, reason = "it measures")]
fn what_a_batch_costs() {
    let target = std::env::current_exe().unwrap();
    let folder = tempfile::tempdir_in(target.parent().unwrap()).unwrap();
    for round in 0..3 {
        let begun = std::time::Instant::now();
        let store = FjallStore::open(&folder.path().join(format!("new-{round}"))).unwrap();
        println!("a new directory: {:?}", begun.elapsed());
        drop(store);
    }
    for (durability, count) in [(Durability::Sync, 2_000_u32), (Durability::Buffered, 20_000)] {
        let dir = folder.path().join(format!("{durability:?}"));
        let store = FjallStore::open(&dir).unwrap();
        for round in 0..4 {
            let begun = std::time::Instant::now();
            for i in 0..count {
                let mut batch = Batch::default();
                batch.put(
                    Space::Local,
                    (round * count + i).to_be_bytes().to_vec(),
                    vec![i as u8; 2 * 4096 + 200],
                );
                store.write(batch, durability).unwrap();
            }
            println!("{durability:?}: {:?} for each of {count}", begun.elapsed() / count);
        }
        drop(store);
        let begun = std::time::Instant::now();
        let store = FjallStore::open(&dir).unwrap();
        println!("opening it again: {:?}", begun.elapsed());
        drop(store);
        let du = Command::new("du").args(["-sm"]).arg(&dir).output().unwrap();
        println!("{}", String::from_utf8_lossy(&du.stdout));
    }
}
