//! A local commit is on disk before it is acknowledged: shown in a trace of the system's calls.
//!
//! A program makes one-row transactions on a volume with a data directory and says after each COMMIT that
//! it is done, under `strace`. Each row is a text that occurs nowhere else, so the trace shows the write
//! that carries it into a file below the data directory, and the one that acknowledges it. Between the
//! two that file must be synced: `fsync` or `fdatasync`, returned and successful. What is in the file by
//! then survives a power loss, as far as disk and system keep their word.
//!
//! Three programs are watched: one of ours that can be told not to sync, which shows that the test can
//! fail; SQLite's own shell with our extension; and `graft sql --write`.

#![cfg(target_os = "linux")]

use std::collections::HashMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use graft::fetch::RemoteFetch;
use graft::remote::MemoryRemote;
use graft::store::FjallStore;
use graft::volume::{Options, Volume};
use graft::{PageSize, VolumeId};
use sqlsync_layer::vfs::Database;
use tests::places;

/// Calls that move bytes into files, or files to disk.
const TRACED: &str = "write,writev,pwrite64,pwritev,pwritev2,fsync,fdatasync";

/// One call of the trace.
#[derive(Debug)]
struct Call {
    name: String,
    /// The file of its first argument.
    file: String,
    /// The rest of the line, in which bytes are hexadecimal.
    rest: String,
    /// The lines on which it began and on which it returned.
    lines: (usize, usize),
    succeeded: bool,
}

/// Reads `strace -f -y -xx`. A call that another thread's lines cut in two is put together again.
fn calls(trace: &str) -> Vec<Call> {
    let mut begun: HashMap<(&str, String), (String, usize)> = HashMap::new();
    let mut found = Vec::new();
    for (number, line) in trace.lines().enumerate() {
        let Some((thread, text)) = line.split_once(' ') else { continue };
        let text = text.trim_start();
        let (text, first) = if let Some(text) = text.strip_suffix(" <unfinished ...>") {
            let name = text.split('(').next().unwrap_or_default().to_owned();
            begun.insert((thread, name), (text.to_owned(), number));
            continue;
        } else if let Some(text) = text.strip_prefix("<... ") {
            let Some((name, rest)) = text.split_once(" resumed>") else { continue };
            let Some((text, first)) = begun.remove(&(thread, name.to_owned())) else { continue };
            (text + rest, first)
        } else {
            (text.to_owned(), number)
        };
        let Some((name, rest)) = text.split_once('(') else { continue };
        // `7</dir/file>`: the descriptor and its file.
        let file = rest.split_once('<').and_then(|(_, rest)| rest.split_once('>'));
        let Some((file, rest)) = file else { continue };
        let returned = rest.rsplit_once(" = ").map_or("-1", |(_, value)| value);
        found.push(Call {
            name: name.to_owned(),
            file: unescaped(file),
            rest: rest.to_owned(),
            lines: (first, number),
            succeeded: !returned.starts_with('-'),
        });
    }
    found
}

/// With `-xx` file names are hexadecimal, too.
fn unescaped(text: &str) -> String {
    if !text.starts_with("\\x") {
        return text.to_owned();
    }
    let bytes = text.split("\\x").skip(1).filter_map(|hex| u8::from_str_radix(hex.get(..2)?, 16).ok());
    String::from_utf8_lossy(&bytes.collect::<Vec<_>>()).into_owned()
}

/// As `-xx` prints it.
fn escaped(text: &str) -> String {
    text.bytes().map(|byte| format!("\\x{byte:02x}")).collect()
}

fn is_sync(call: &Call) -> bool {
    matches!(call.name.as_str(), "fsync" | "fdatasync")
}

/// The line on which the writing of `text` began.
fn told_at(calls: &[Call], text: &str) -> Result<usize, String> {
    let bytes = escaped(text);
    let told = calls.iter().find(|call| !is_sync(call) && call.rest.contains(&bytes));
    told.map(|call| call.lines.0).ok_or_else(|| format!("`{text}` was never written"))
}

/// How `row` became durable in `dir` before line `told`, at which it was acknowledged or given away.
///
/// # Errors
///
/// What the trace lacks, naming the files.
fn durable(calls: &[Call], dir: &Path, row: &str, told: usize) -> Result<String, String> {
    let row_bytes = escaped(row);
    let writes = |call: &&Call| !is_sync(call) && call.succeeded;
    let dir = format!("{}/", dir.display());
    let carried: Vec<&Call> = calls
        .iter()
        .filter(writes)
        .filter(|call| call.file.starts_with(&dir) && call.rest.contains(&row_bytes))
        .filter(|call| call.lines.1 < told)
        .collect();
    if carried.is_empty() {
        return Err(format!("no file below {dir} got `{row}` before it was acknowledged"));
    }
    let synced = |written: &Call| {
        calls.iter().find(|call| {
            is_sync(call)
                && call.succeeded
                && call.file == written.file
                && call.lines.0 > written.lines.1
                && call.lines.1 < told
        })
    };
    match carried.iter().find_map(|written| synced(written)) {
        Some(sync) => Ok(format!("{} of {}", sync.name, sync.file)),
        None => {
            let files: Vec<&str> = carried.iter().map(|call| call.file.as_str()).collect();
            Err(format!(
                "`{row}` was acknowledged and not synced: {files:?} had it, without fsync or fdatasync between"
            ))
        }
    }
}

/// A folder, and `strace`, which writes what it sees there.
struct Trace {
    folder: tempfile::TempDir,
    strace: PathBuf,
}

impl Trace {
    /// `None`, with a line that says so, where nothing can be traced.
    fn begin() -> Option<Trace> {
        let trace = Trace { folder: tempfile::tempdir().unwrap(), strace: places::strace()? };
        let mut trial = trace.of(Path::new("/bin/true"));
        let output = trial.output().unwrap();
        if !output.status.success() {
            // A container without the right to trace.
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            println!("SKIPPED: strace may not trace here: {}", said.trim());
            return None;
        }
        Some(trace)
    }

    /// A path in the folder without links, as the trace will show it.
    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().canonicalize().unwrap().join(name)
    }

    /// `program` under strace.
    fn of(&self, program: &Path) -> Command {
        let mut command = Command::new(&self.strace);
        // Whole buffers: a journal's entry is a page or more.
        command.args(["-f", "-y", "-xx", "-s", "1048576", "-e"]).arg(format!("trace={TRACED}"));
        command.arg("-o").arg(self.path("trace")).arg(program);
        for name in ["GRAFT_STORE", "GRAFT_DATA", "GRAFT_REMOTE", "GRAFT_VOLUME", "RUST_LOG"] {
            command.env_remove(name);
        }
        command
    }

    /// Runs it to its end on `input`; its calls.
    fn run(&self, mut command: Command, input: &str) -> Vec<Call> {
        command.current_dir(self.folder.path());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{command:?}: {} {said}", output.status);
        calls(&std::fs::read_to_string(self.path("trace")).unwrap())
    }
}

/// Texts that occur nowhere else and do not compress.
fn rows(count: u64) -> Vec<String> {
    (1..=count)
        .map(|n| {
            format!("row {n} {:032x}", u128::from(n).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835))
        })
        .collect()
}

/// Runs our own program; what became of each row.
fn commits(trace: &Trace, durability: &str) -> Vec<Result<String, String>> {
    let (rows, dir) = (rows(5), trace.path(durability));
    let mut command = trace.of(Path::new(env!("CARGO_BIN_EXE_commits")));
    command.arg(&dir).arg(durability);
    let calls = trace.run(command, &(rows.join("\n") + "\n"));
    let found = |row: &String| {
        let told = told_at(&calls, &format!("committed {row}"))?;
        durable(&calls, &dir, row, told)
    };
    rows.iter().map(found).collect()
}

#[test]
fn a_local_commit_is_synced_before_it_is_acknowledged_and_without_the_policy_it_is_not() {
    let Some(trace) = Trace::begin() else { return };
    for found in commits(&trace, "sync") {
        println!("{}", found.unwrap());
    }
    // The rows are in the file then, too: it is the sync that is missing.
    for found in commits(&trace, "buffered") {
        let missing = found.expect_err("without the policy nothing is synced");
        assert!(missing.contains("and not synced"), "{missing}");
    }
}

#[test]
fn the_extension_syncs_each_commit_before_it_returns() {
    let Some(trace) = Trace::begin() else { return };
    let Some(sqlite3) = places::sqlite3() else { return };
    let (rows, dir) = (rows(5), trace.path("data"));
    let mut script = format!(
        ".load {}\n.open 'file:v?vfs=graft&remote=file://{}&data={}'\ncreate table t(v);\n",
        places::sqlite_extension().display(),
        trace.path("store").display(),
        dir.display()
    );
    for (number, row) in rows.iter().enumerate() {
        script += &format!("insert into t values('{row}');\nselect 'committed {number}';\n");
    }
    let mut command = trace.of(&sqlite3);
    command.args(["-batch", "-bail"]);
    let calls = trace.run(command, &script);
    for (number, row) in rows.iter().enumerate() {
        let told = told_at(&calls, &format!("committed {number}\n")).unwrap();
        println!("{}", durable(&calls, &dir, row, told).unwrap());
    }
}

/// What this program acknowledges is pushed as well. Its local commit is synced all the same, and before
/// anything is sent: whoever loses the store's answer finds the change in the data directory.
#[test]
fn sql_on_the_command_line_syncs_the_local_commit() {
    let Some(trace) = Trace::begin() else { return };
    let (row, dir) = (rows(1).remove(0), trace.path("data"));
    let store = format!("file://{}", trace.path("store").display());
    let file = trace.path("in.db");
    rusqlite::Connection::open(&file).unwrap().execute_batch("create table t(v)").unwrap();
    tests::process::graft(["import", file.to_str().unwrap(), "--volume", "v", "--store", &store]).expect(0);
    let mut command = trace.of(&places::graft_bin());
    command.args(["sql", &format!("insert into t values('{row}')"), "--write", "--volume", "v"]);
    command.arg("--store").arg(&store).arg("--data").arg(&dir);
    let calls = trace.run(command, "");
    let told = told_at(&calls, "1 row changed").unwrap();
    let stored = trace.path("store");
    let in_store = |call: &&Call| !is_sync(call) && Path::new(&call.file).starts_with(&stored);
    let sent = calls.iter().filter(in_store).map(|call| call.lines.0).max();
    let sent = sent.expect("the commit was written to the store");
    assert!(sent < told);
    println!("{}", durable(&calls, &dir, &row, sent).unwrap());
}

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
    let Some(trace) = Trace::begin() else { return };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let _entered = runtime.enter();
    let rows = rows(24);
    let (mut kills, mut between, mut acknowledged) = (0, 0, 0);
    // Opening makes a few hundred calls; the commits are the last of them.
    for at in (1..).step_by(7) {
        let dir = trace.path(&format!("data-{at}"));
        let mut command = Command::new(&trace.strace);
        command.args(["-f", "-o", "/dev/null", "-e"]).arg(format!("trace={TRACED}"));
        command.arg("-e").arg(format!("inject={TRACED}:signal=KILL:when={at}"));
        command.arg(env!("CARGO_BIN_EXE_commits")).arg(&dir).arg("sync");
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

/// The reading of a trace, on lines as strace prints them.
#[test]
fn a_sync_counts_only_between_the_write_and_the_acknowledgement() {
    let file = |name: &str| format!("3<{}>", escaped(name));
    let write = |name: &str, text: &str| format!("7 write({}, \"{}\", 9) = 9\n", file(name), escaped(text));
    let row = write("/d/journal", "the row");
    let told = write("/dev/pts/0", "told\n");
    let sync = format!("7 fdatasync({}) = 0\n", file("/d/journal"));
    let halves = [
        format!("8 fdatasync({} <unfinished ...>\n", file("/d/journal")),
        "8 <... fdatasync resumed>) = 0\n".to_owned(),
    ];
    let failed = sync.replace(" = 0", " = -1 EIO (Input/output error)");
    let elsewhere = format!("7 fsync({}) = 0\n", file("/d/other"));
    let found = |parts: &[&String]| {
        let trace: String = parts.iter().map(|part| part.as_str()).collect();
        let calls = calls(&trace);
        durable(&calls, Path::new("/d"), "the row", told_at(&calls, "told\n")?)
    };
    assert_eq!(found(&[&row, &sync, &told]).unwrap(), "fdatasync of /d/journal");
    assert_eq!(found(&[&row, &halves[0], &halves[1], &told]).unwrap(), "fdatasync of /d/journal");
    for parts in [
        &[&row, &told][..],
        &[&sync, &row, &told],
        &[&row, &told, &sync],
        &[&row, &failed, &told],
        &[&row, &elsewhere, &told],
        &[&row, &halves[0], &told, &halves[1]],
        &[&halves[0], &row, &halves[1], &told],
    ] {
        assert!(found(parts).unwrap_err().contains("not synced"), "{parts:?}");
    }
    assert!(found(&[&row, &sync]).unwrap_err().contains("never written"));
    assert!(found(&[&told]).unwrap_err().contains("no file below /d/"));
}
