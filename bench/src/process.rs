//! Servers and programs of a benchmark: started in a process group of their own, and stopped with it.
//!
//! Invariants: dropping a [`Process`] stops it and everything it started, first politely, then by force;
//! a server is ready when its port answers, and one that ends instead is an error with the end of its log.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use tokio::process::{Child, Command};

/// How long a server may take until its port answers: the slowest copies a database first.
const READY_MAX: Duration = Duration::from_secs(60);
/// How long it may take to end when asked to.
const END_MAX: Duration = Duration::from_secs(5);
/// How often a foreign server, which cannot tell us, is looked at.
const LOOK: Duration = Duration::from_millis(20);

/// A running server.
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    polite: &'static str,
}

impl Process {
    /// Starts `command`; what it prints goes to `DIR/NAME.log`.
    pub fn start(name: &str, dir: &Path, mut command: Command) -> anyhow::Result<Process> {
        let log = dir.join(format!("{name}.log"));
        let file =
            std::fs::File::create(&log).with_context(|| format!("{} cannot be made", log.display()))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("{name} does not start"))?;
        Ok(Process { name: name.into(), child, log, polite: "TERM" })
    }

    /// Sends `signal` instead of TERM when it is to end.
    pub fn ended_by(mut self, signal: &'static str) -> Process {
        self.polite = signal;
        self
    }

    /// Waits until something accepts connections at `port`.
    pub async fn ready(&mut self, port: u16) -> anyhow::Result<()> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let began = Instant::now();
        while tokio::net::TcpStream::connect(address).await.is_err() {
            self.alive()?;
            if began.elapsed() > READY_MAX {
                bail!("{} does not listen on {address} after {READY_MAX:?}:\n{}", self.name, self.printed());
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }

    /// Waits until it has printed a whole line, and answers the first.
    pub async fn first_line(&mut self) -> anyhow::Result<String> {
        let began = Instant::now();
        loop {
            let text = self.printed();
            if let Some((line, _)) = text.split_once('\n') {
                return Ok(line.to_string());
            }
            self.alive()?;
            if began.elapsed() > READY_MAX {
                bail!("{} has printed nothing after {READY_MAX:?}", self.name);
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    fn alive(&mut self) -> anyhow::Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("{} ended ({status}):\n{}", self.name, self.printed()),
        }
    }

    /// The last lines of its log.
    fn printed(&self) -> String {
        let text = std::fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        let mut tail = lines[lines.len().saturating_sub(20)..].join("\n");
        if text.ends_with('\n') {
            tail.push('\n');
        }
        tail
    }

    /// Signals the whole group. That it is gone already is no error.
    fn signal(&self, signal: &str) {
        if let Some(leader) = self.child.id() {
            let group = format!("-{leader}");
            let mut kill = std::process::Command::new("kill");
            kill.args(["-s", signal, "--", &group]).stderr(Stdio::null());
            if let Err(error) = kill.status() {
                eprintln!("{} cannot be stopped: {error}; its process group is {leader}", self.name);
            }
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.signal(self.polite);
        let began = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) && began.elapsed() < END_MAX {
            std::thread::sleep(LOOK);
        }
        self.signal("KILL");
    }
}

/// A port of loopback that is free now.
pub fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

/// Runs a program to its end. Its output is shown only in the error, where it fails.
pub async fn finish(mut command: Command) -> anyhow::Result<String> {
    let shown = format!("{:?}", command.as_std());
    let output = command.stdin(Stdio::null()).kill_on_drop(true).output().await;
    let output = output.with_context(|| format!("{shown} does not start"))?;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        let printed = format!("{stdout}{}", String::from_utf8_lossy(&output.stderr));
        let lines: Vec<&str> = printed.lines().collect();
        bail!("{shown} failed ({}):\n{}", output.status, lines[lines.len().saturating_sub(12)..].join("\n"));
    }
    Ok(stdout)
}
