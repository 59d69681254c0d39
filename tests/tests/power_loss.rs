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
use std::path::Path;
use std::process::{Command, Stdio};

use tests::places;
use tests::strace::Strace;

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

/// Runs a program that is watched to its end on `input`; its calls.
fn run(strace: &Strace, mut command: Command, input: &str) -> Vec<Call> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{command:?}: {} {said}", output.status);
    calls(&std::fs::read_to_string(strace.trace()).unwrap())
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
fn commits(strace: &Strace, durability: &str) -> Vec<Result<String, String>> {
    let (rows, dir) = (rows(5), strace.path(durability));
    let mut command = strace.watching(Path::new(env!("CARGO_BIN_EXE_commits")));
    command.arg(&dir).arg(durability);
    let calls = run(strace, command, &(rows.join("\n") + "\n"));
    let found = |row: &String| {
        let told = told_at(&calls, &format!("committed {row}"))?;
        durable(&calls, &dir, row, told)
    };
    rows.iter().map(found).collect()
}

#[test]
fn a_local_commit_is_synced_before_it_is_acknowledged_and_without_the_policy_it_is_not() {
    let Some(strace) = Strace::find() else { return };
    for found in commits(&strace, "sync") {
        println!("{}", found.unwrap());
    }
    // The rows are in the file then, too: it is the sync that is missing.
    for found in commits(&strace, "buffered") {
        let missing = found.expect_err("without the policy nothing is synced");
        assert!(missing.contains("and not synced"), "{missing}");
    }
}

#[test]
fn the_extension_syncs_each_commit_before_it_returns() {
    let Some(strace) = Strace::find() else { return };
    let Some(sqlite3) = places::sqlite3() else { return };
    let (rows, dir) = (rows(5), strace.path("data"));
    let mut script = format!(
        ".load {}\n.open 'file:v?vfs=graft&remote=file://{}&data={}'\ncreate table t(v);\n",
        places::sqlite_extension().display(),
        strace.path("store").display(),
        dir.display()
    );
    for (number, row) in rows.iter().enumerate() {
        script += &format!("insert into t values('{row}');\nselect 'committed {number}';\n");
    }
    let mut command = strace.watching(&sqlite3);
    command.args(["-batch", "-bail"]);
    let calls = run(&strace, command, &script);
    for (number, row) in rows.iter().enumerate() {
        let told = told_at(&calls, &format!("committed {number}\n")).unwrap();
        // It says so at once, and not at its end.
        if let Some(next) = rows.get(number + 1) {
            let next = told_at(&calls, next).unwrap();
            assert!(
                told < next,
                "{number} was acknowledged at line {told}, after the next was written at {next}"
            );
        }
        println!("{}", durable(&calls, &dir, row, told).unwrap());
    }
}

/// What this program acknowledges is pushed as well. Its local commit is synced all the same, and before
/// anything is sent: whoever loses the store's answer finds the change in the data directory.
#[test]
fn sql_on_the_command_line_syncs_the_local_commit() {
    let Some(strace) = Strace::find() else { return };
    let (row, dir) = (rows(1).remove(0), strace.path("data"));
    let store = format!("file://{}", strace.path("store").display());
    let file = strace.path("in.db");
    rusqlite::Connection::open(&file).unwrap().execute_batch("create table t(v)").unwrap();
    tests::process::graft(["import", file.to_str().unwrap(), "--volume", "v", "--store", &store]).expect(0);
    let mut command = strace.watching(&places::graft_bin());
    command.args(["sql", &format!("insert into t values('{row}')"), "--write", "--volume", "v"]);
    command.arg("--store").arg(&store).arg("--data").arg(&dir);
    let calls = run(&strace, command, "");
    let told = told_at(&calls, "1 row changed").unwrap();
    let stored = strace.path("store");
    let in_store = |call: &&Call| !is_sync(call) && Path::new(&call.file).starts_with(&stored);
    let sent = calls.iter().filter(in_store).map(|call| call.lines.0).max();
    let sent = sent.expect("the commit was written to the store");
    assert!(sent < told);
    println!("{}", durable(&calls, &dir, &row, sent).unwrap());
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
