//! A program that runs beside us, with its output read line by line.
//!
//! Invariant: when a [`Process`] is dropped, its program has ended.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

/// A running program.
pub struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `program` in a process group of its own; what it writes to stderr goes to the file `log`.
    pub fn start(program: &Path, args: &[&str], log: &Path) -> anyhow::Result<Process> {
        let file = File::create(log).with_context(|| format!("{} cannot be written", log.display()))?;
        let child = Command::new(program)
            .args(args)
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(file)
            .spawn()
            .with_context(|| format!("{} cannot be started", program.display()))?;
        Ok(Process { child, log: log.into() })
    }

    /// Calls `on_line` from a thread for each line of its output, and with `None` at the end.
    pub fn read_lines(&mut self, on_line: impl Fn(Option<String>) + Send + 'static) -> anyhow::Result<()> {
        let stdout = self.child.stdout.take().context("its output is being read already")?;
        std::thread::spawn(move || {
            // A line that is not UTF-8 ends the reading like the end of the output does.
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                on_line(Some(line));
            }
            on_line(None);
        });
        Ok(())
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        self.child.try_wait().context("its state cannot be read")
    }

    /// Asks it to stop (SIGINT) and waits.
    ///
    /// # Errors
    ///
    /// It had ended before, took longer than `patience` (then it is killed), or ended with an error.
    /// The message holds what it wrote to stderr.
    pub fn stop_gracefully(mut self, patience: Duration) -> anyhow::Result<()> {
        let pid = self.child.id().to_string();
        if self.ended()?.is_none() {
            // The shell's own `kill`: every system has it, and it needs no unsafe call.
            let asked = Command::new("sh").args(["-c", "kill -INT \"$0\"", &pid]).status();
            asked.context("`kill` cannot be run")?;
        }
        let end = Instant::now() + patience;
        loop {
            match self.ended()? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => bail!("it ended with {status} and said:\n{}", self.said()),
                None if Instant::now() > end => {
                    bail!("it did not stop and was killed; it said:\n{}", self.said())
                }
                // The standard library cannot wait for a child with a time limit.
                None => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_else(|e| format!("({}: {e})", self.log.display()))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only for a program that has ended already, which is what we want.
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    fn start(script: &str, name: &str) -> Process {
        let log = std::env::temp_dir().join(format!("xtask-process-{}-{name}", std::process::id()));
        Process::start(Path::new("/bin/sh"), &["-c", script], &log).unwrap()
    }

    #[test]
    fn lines_are_read_and_the_end_is_told() {
        let (sender, lines) = channel();
        let mut process = start("echo one; echo two", "lines");
        process.read_lines(move |line| sender.send(line).unwrap()).unwrap();
        let read: Vec<_> = lines.iter().collect();
        assert_eq!(read, [Some("one".to_string()), Some("two".to_string()), None]);
        let log = process.log.clone();
        process.stop_gracefully(Duration::from_secs(60)).unwrap();
        std::fs::remove_file(log).unwrap();
    }

    /// SIGINT, not SIGKILL: the program gets to finish, and its exit code counts.
    #[test]
    fn stopping_lets_the_program_finish() {
        for (code, name) in [(0, "good"), (3, "bad")] {
            let (sender, lines) = channel();
            let script = format!("trap 'echo bye; exit {code}' INT; echo up; while :; do sleep 0.02; done");
            let mut process = start(&script, name);
            process.read_lines(move |line| sender.send(line).unwrap()).unwrap();
            assert_eq!(lines.recv().unwrap().as_deref(), Some("up"));
            let log = process.log.clone();
            let stopped = process.stop_gracefully(Duration::from_secs(60));
            assert_eq!(stopped.is_ok(), code == 0);
            assert_eq!(lines.recv().unwrap().as_deref(), Some("bye"));
            std::fs::remove_file(log).unwrap();
        }
    }
}
