//! Real processes: `graft serve`, `graft subscribe`, and every other command of `graft`.
//!
//! Output is read line by line as it comes, so a test waits for what it expects and never sleeps. A
//! wait that takes longer than [`PATIENCE`] panics with everything the process printed so far.
//!
//! Invariant: a process started here has ended when its value is dropped, whatever the test did.

#![allow(clippy::disallowed_methods, reason = "a driver: it gives up after a real while")]

use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader, Read as _};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use serde_json::{Value as Json, json};

use crate::places;

/// Longer than anything takes on a loaded machine; only what is broken reaches it.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A running program.
#[derive(Debug)]
pub struct Process {
    what: String,
    child: Child,
    lines: Receiver<String>,
    seen: Vec<String>,
    stderr: Arc<Mutex<String>>,
    /// Reads stderr to its end.
    reader: Option<std::thread::JoinHandle<()>>,
}

impl Process {
    /// Starts `command`; its input is empty. Its environment has none of the variables that steer `graft`
    /// or S3 but those that `command` sets.
    ///
    /// # Panics
    ///
    /// If it cannot be started.
    pub fn start(mut command: Command) -> Process {
        let what = shown(&command);
        clean(&mut command);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{what}: {error}"));
        let (Some(stdout), Some(errors)) = (child.stdout.take(), child.stderr.take()) else {
            panic!("{what}: its output is not ours to read")
        };
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).split(b'\n').map_while(Result::ok) {
                if sender.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                    return;
                }
            }
        });
        let stderr = Arc::new(Mutex::new(String::new()));
        let kept = stderr.clone();
        let reader = std::thread::spawn(move || {
            let (mut errors, mut buffer) = (errors, [0; 4096]);
            while let Ok(read @ 1..) = errors.read(&mut buffer) {
                kept.lock().push_str(&String::from_utf8_lossy(&buffer[..read]));
            }
        });
        Process { what, child, lines, seen: Vec::new(), stderr, reader: Some(reader) }
    }

    /// The next line of its output.
    ///
    /// # Panics
    ///
    /// If it ends, or prints none in time.
    pub fn line(&mut self) -> String {
        match self.lines.recv_timeout(PATIENCE) {
            Ok(line) => {
                self.seen.push(line.clone());
                line
            }
            Err(RecvTimeoutError::Timeout) => panic!("no line within {PATIENCE:?} from {}", self.told()),
            Err(RecvTimeoutError::Disconnected) => panic!("the end instead of a line from {}", self.told()),
        }
    }

    /// What it wrote to stderr so far.
    pub fn stderr(&self) -> String {
        self.stderr.lock().clone()
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Ends it as a crash would (SIGKILL).
    pub fn kill(&mut self) {
        // Both fail only for a process that has ended already, which is what is wanted.
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }

    /// Sends SIGTERM.
    pub fn terminate(&self) {
        // The shell's own `kill`: every system has it, and it needs no unsafe call.
        let sent = Command::new("sh").args(["-c", "kill -TERM \"$0\"", &self.id().to_string()]).status();
        assert!(sent.is_ok_and(|status| status.success()), "SIGTERM could not be sent to {}", self.what);
    }

    /// Waits until it ends by itself.
    ///
    /// # Panics
    ///
    /// If it does not in time.
    pub fn wait(&mut self) -> ExitStatus {
        let end = Instant::now() + PATIENCE;
        loop {
            match self.lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(line) => self.seen.push(line),
                // Its output is closed: it has ended, or is about to.
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => panic!("no end within {PATIENCE:?} of {}", self.told()),
            }
        }
        let status = self.child.wait().unwrap_or_else(|error| panic!("{}: {error}", self.what));
        if let Some(reader) = self.reader.take() {
            assert!(reader.join().is_ok(), "reading the errors of {} panicked", self.what);
        }
        status
    }

    /// What it is and what it printed.
    pub fn told(&self) -> String {
        let printed = self.seen.join("\n");
        format!("`{}`; it printed:\n{printed}\nand to stderr:\n{}", self.what, self.stderr())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

fn shown(command: &Command) -> String {
    let mut text = command.get_program().to_string_lossy().into_owned();
    for arg in command.get_args() {
        text.push(' ');
        text.push_str(&arg.to_string_lossy());
    }
    text
}

/// How a command that ended by itself ended.
#[derive(Debug)]
pub struct Output {
    what: String,
    /// The exit code; `None` where a signal ended it.
    pub code: Option<i32>,
    /// What it printed.
    pub stdout: String,
    /// Its errors and notes.
    pub stderr: String,
    /// How long it took.
    pub took: Duration,
}

impl Output {
    /// Its output, if it ended with `code`.
    ///
    /// # Panics
    ///
    /// If it ended with another.
    #[track_caller]
    pub fn expect(self, code: i32) -> Output {
        assert_eq!(self.code, Some(code), "{self}");
        self
    }

    /// Its only line, as JSON, of a command that ended well.
    ///
    /// # Panics
    ///
    /// If it ended otherwise or printed something else.
    #[track_caller]
    pub fn json(self) -> Json {
        let mut lines = self.expect(0).lines();
        assert_eq!(lines.len(), 1, "{lines:?}");
        lines.remove(0)
    }

    /// Its lines, each as JSON.
    ///
    /// # Panics
    ///
    /// If one is not.
    #[track_caller]
    pub fn lines(&self) -> Vec<Json> {
        let parse = |line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {self}"));
        self.stdout.lines().map(parse).collect()
    }

    /// What it said went wrong, if it ended with an error and said so readably: an exit code of 1, no
    /// output, a message on stderr that is no panic and is not long.
    ///
    /// # Panics
    ///
    /// If any of that does not hold.
    #[track_caller]
    pub fn error(self) -> String {
        let output = self.expect(1);
        assert_eq!(output.stdout, "", "{output}");
        let message = output.stderr.trim();
        assert!(message.len() > 15 && message.len() < 2000, "{output}");
        assert!(!message.contains("panicked") && !message.contains("RUST_BACKTRACE"), "{output}");
        message.to_string()
    }
}

impl std::fmt::Display for Output {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Output { what, code, stdout, stderr, took } = self;
        write!(f, "`{what}` ended with {code:?} after {took:?}\nstdout:\n{stdout}\nstderr:\n{stderr}")
    }
}

/// Looks again and again until `is_so`, for what no event tells: what a process wrote to stderr.
///
/// # Panics
///
/// If it is not so in time.
pub fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < end, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The command `graft ARGS`.
pub fn command<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(places::graft_bin());
    command.args(args);
    command
}

/// Takes from `command` what steers `graft` or S3 in this process's environment, but not what it sets.
pub fn clean(command: &mut Command) {
    let set: Vec<_> = command.get_envs().map(|(name, _)| name.to_owned()).collect();
    for (name, _) in std::env::vars_os() {
        let steers = name.to_str().is_some_and(|name| {
            (name.starts_with("GRAFT_") || name.starts_with("AWS_") || name == "RUST_LOG")
                && name != "GRAFT_BIN"
        });
        if steers && !set.contains(&name) {
            command.env_remove(name);
        }
    }
}

/// Runs `graft ARGS` to its end.
///
/// # Panics
///
/// If it does not end in time.
pub fn graft<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Output {
    run(command(args))
}

/// Runs a command to its end.
///
/// # Panics
///
/// If it does not end in time.
pub fn run(command: Command) -> Output {
    let started = Instant::now();
    let mut process = Process::start(command);
    let status = process.wait();
    let mut stdout = process.seen.join("\n");
    if !stdout.is_empty() {
        stdout.push('\n');
    }
    let what = process.what.clone();
    Output { what, code: status.code(), stdout, stderr: process.stderr(), took: started.elapsed() }
}

/// A running `graft serve`.
#[derive(Debug)]
pub struct Server {
    process: Process,
    store: String,
    data: Option<PathBuf>,
    url: String,
}

impl Server {
    /// Serves `store` on a free port and waits until it is ready.
    ///
    /// # Panics
    ///
    /// If it does not come up.
    pub fn start(store: impl Into<String>) -> Server {
        Server::launch(store.into(), None, free_port())
    }

    /// The same with a directory for cached pages.
    ///
    /// # Panics
    ///
    /// If it does not come up.
    pub fn start_with_data(store: impl Into<String>, data: &Path) -> Server {
        Server::launch(store.into(), Some(data.into()), free_port())
    }

    fn launch(store: String, data: Option<PathBuf>, port: u16) -> Server {
        let mut process = Server::spawn(&store, data.as_deref(), port);
        let line = process.line();
        let url = line.strip_prefix("listening on ").unwrap_or_else(|| panic!("{}", process.told()));
        Server { url: url.to_string(), process, store, data }
    }

    fn spawn(store: &str, data: Option<&Path>, port: u16) -> Process {
        let mut command = command(["serve", "--store", store, "--listen", &format!("127.0.0.1:{port}")]);
        if let Some(data) = data {
            command.arg("--data").arg(data);
        }
        Process::start(command)
    }

    /// Where it listens: `http://127.0.0.1:PORT`.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// `127.0.0.1:PORT`.
    pub fn address(&self) -> &str {
        self.url.trim_start_matches("http://")
    }

    /// The store it serves.
    pub fn store(&self) -> &str {
        &self.store
    }

    /// The process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Ends it as a crash would.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Asks it to stop (SIGTERM) and waits; its exit code.
    ///
    /// # Panics
    ///
    /// If it does not stop in time.
    pub fn stop(&mut self) -> Option<i32> {
        self.process.terminate();
        self.process.wait().code()
    }

    /// Starts it again on the same store, data directory and port, after it ended.
    ///
    /// # Panics
    ///
    /// If it still runs or does not come up.
    pub fn restart(&mut self) {
        assert!(!self.process.is_running(), "the server still runs");
        let port = self.url.rsplit(':').next().and_then(|port| port.parse().ok());
        let port = port.unwrap_or_else(|| panic!("no port in {}", self.url));
        *self = Server::launch(self.store.clone(), self.data.clone(), port);
    }

    /// Runs `graft ARGS --url URL`.
    pub fn graft(&self, args: &[&str]) -> Output {
        graft(args.iter().chain(&["--url", self.url()]))
    }

    /// Runs `graft ARGS --store STORE`.
    pub fn stored(&self, args: &[&str]) -> Output {
        graft(args.iter().chain(&["--store", self.store()]))
    }

    /// Deploys the reducers of `example` to `volume`.
    ///
    /// # Panics
    ///
    /// If that fails.
    #[track_caller]
    pub fn deploy(&self, example: &str, volume: &str) -> Json {
        let module = places::reducer_module(example);
        self.graft(&["deploy", &module.to_string_lossy(), "--volume", volume, "--json"]).json()
    }

    /// Calls a reducer and waits until it is durable; the commit's LSN.
    ///
    /// # Panics
    ///
    /// If it is not.
    #[track_caller]
    pub fn mutate(&self, volume: &str, reducer: &str, args: Json) -> u64 {
        let args = args.to_string();
        let line = self.graft(&["mutate", reducer, &args, "--volume", volume, "--json"]).json();
        assert_eq!(line["status"], "durable", "{line}");
        line["lsn"].as_u64().unwrap_or_else(|| panic!("no lsn: {line}"))
    }

    /// Asks the server once; the rows.
    ///
    /// # Panics
    ///
    /// If it is not answered.
    #[track_caller]
    pub fn query(&self, volume: &str, sql: &str) -> Json {
        self.graft(&["query", sql, "--volume", volume, "--json"]).json()["rows"].take()
    }

    /// Reads the store without the server; the rows.
    ///
    /// # Panics
    ///
    /// If it cannot be read.
    #[track_caller]
    pub fn sql(&self, volume: &str, sql: &str) -> Json {
        self.stored(&["sql", sql, "--volume", volume, "--json"]).json()["rows"].take()
    }

    /// The volume's log from the store, oldest first, checked to be without gaps.
    ///
    /// # Panics
    ///
    /// If it has gaps or cannot be read.
    #[track_caller]
    pub fn log(&self, volume: &str) -> Vec<Json> {
        let output = self.stored(&["volume", "log", volume, "--json"]).expect(0);
        let mut log = output.lines();
        log.reverse();
        for (commit, lsn) in log.iter().zip(1..) {
            assert_eq!(commit["lsn"], json!(lsn), "a gap in the log: {output}");
        }
        log
    }

    /// Watches a query.
    pub fn watch(&self, volume: &str, sql: &str, params: &str) -> Watch {
        let args = ["subscribe", sql, "--volume", volume, "--params", params, "--json", "--url", self.url()];
        Watch { process: Process::start(command(args)), columns: Json::Null, rows: Vec::new(), epoch: 0 }
    }
}

/// A free port that the system gives to no outgoing connection, so that a server can be started on it
/// again and again: above 1024 and below where ephemeral ports usually begin.
///
/// # Panics
///
/// If there is none.
pub fn free_port() -> u16 {
    let mut rng = StdRng::from_os_rng();
    for _ in 0..1000 {
        let port = rng.random_range(10_000..32_000);
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no free port between 10000 and 32000")
}

/// A running `graft subscribe --json`, and the rows that its lines add up to.
#[derive(Debug)]
pub struct Watch {
    process: Process,
    columns: Json,
    rows: Vec<Json>,
    epoch: u64,
}

impl Watch {
    /// The next message, applied to [`Watch::rows`].
    ///
    /// # Panics
    ///
    /// If none comes, it does not fit the rows, or its epoch falls.
    #[track_caller]
    pub fn message(&mut self) -> Json {
        let line = self.process.line();
        let message: Json =
            serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {}", self.process.told()));
        if let Err(why) = self.apply(&message) {
            panic!("{why}: {}", self.process.told());
        }
        message
    }

    /// The next message, without what only the server knows: its place and epoch.
    ///
    /// # Panics
    ///
    /// As [`Watch::message`].
    #[track_caller]
    pub fn change(&mut self) -> Json {
        let mut message = self.message();
        if let Some(members) = message.as_object_mut() {
            members.retain(|name, _| name != "lsn" && name != "epoch");
        }
        message
    }

    /// Reads messages until the rows are `rows`.
    ///
    /// # Panics
    ///
    /// If they never are.
    #[track_caller]
    pub fn until(&mut self, rows: &Json) {
        while Json::from(self.rows.clone()) != *rows {
            self.message();
        }
    }

    /// The rows after the last message.
    pub fn rows(&self) -> Json {
        Json::from(self.rows.clone())
    }

    /// The process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    fn apply(&mut self, message: &Json) -> Result<(), String> {
        let epoch = message["epoch"].as_u64().ok_or("no epoch")?;
        if epoch < self.epoch {
            return Err(format!("the epoch fell from {}", self.epoch));
        }
        self.epoch = epoch;
        match message["type"].as_str() {
            Some("snapshot") => {
                self.columns = message["columns"].clone();
                self.rows = message["rows"].as_array().ok_or("no rows")?.clone();
            }
            Some("delta") => self.delta(&message["changes"])?,
            other => return Err(format!("a message of type {other:?}")),
        }
        let width = self.columns.as_array().map_or(0, Vec::len);
        match self.rows.iter().find(|row| row.as_array().is_none_or(|row| row.len() != width)) {
            Some(row) => Err(format!("{row} does not have {width} columns")),
            None => Ok(()),
        }
    }

    fn delta(&mut self, changes: &Json) -> Result<(), String> {
        let parts = changes.as_object().ok_or("no changes")?;
        if parts.is_empty() || parts.values().any(|part| part.as_array().is_none_or(Vec::is_empty)) {
            return Err("an empty change".into());
        }
        let list = |name: &str| changes[name].as_array().cloned().unwrap_or_default();
        for position in list("delete").iter().rev() {
            let at = place(position)?;
            if at >= self.rows.len() {
                return Err(format!("a delete of row {at} of {}", self.rows.len()));
            }
            self.rows.remove(at);
        }
        for insert in list("insert") {
            let at = place(&insert[0])?;
            if at > self.rows.len() {
                return Err(format!("an insert at {at} into {} rows", self.rows.len()));
            }
            self.rows.insert(at, insert[1].clone());
        }
        for update in list("update") {
            let at = place(&update[0])?;
            let rows = self.rows.len();
            *self.rows.get_mut(at).ok_or_else(|| format!("an update of row {at} of {rows}"))? =
                update[1].clone();
        }
        Ok(())
    }
}

fn place(value: &Json) -> Result<usize, String> {
    value.as_u64().and_then(|at| usize::try_from(at).ok()).ok_or_else(|| format!("{value} is no position"))
}

/// A directory store of its own: the guard that removes it, and its URL.
///
/// # Panics
///
/// If it cannot be made.
pub fn store() -> (tempfile::TempDir, String) {
    let dir = tempfile::tempdir().unwrap_or_else(|error| panic!("no temporary directory: {error}"));
    let url = format!("file://{}", dir.path().join("store").display());
    (dir, url)
}
