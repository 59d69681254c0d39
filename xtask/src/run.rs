//! One command to run: program, arguments, folder, and how its environment differs from ours.
//!
//! Invariant: [`Run`]'s text form, typed into a shell, does the same again.

use std::ffi::OsStr;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};

/// Set by the cargo that started us, for us alone. Handed on, they would steer the wrong toolchain:
/// Debian's rustc would load rustup's libraries.
const OURS_ALONE: [&str; 3] = ["LD_LIBRARY_PATH", "DYLD_FALLBACK_LIBRARY_PATH", "CARGO_MANIFEST_DIR"];

/// A command with its environment.
#[derive(Debug, Clone)]
pub struct Run {
    program: String,
    args: Vec<String>,
    dir: PathBuf,
    env: Vec<(String, String)>,
    without: Vec<String>,
}

impl Run {
    /// `program`, in the folder `dir`.
    pub fn new(dir: &Path, program: impl Into<String>) -> Run {
        Run {
            program: program.into(),
            args: Vec::new(),
            dir: dir.into(),
            env: Vec::new(),
            without: OURS_ALONE.map(String::from).into(),
        }
    }

    /// The cargo that runs us, in the folder `dir`.
    pub fn cargo<const N: usize>(dir: &Path, args: [&str; N]) -> Run {
        let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
        Run::new(dir, cargo).args(args)
    }

    /// Appends arguments.
    pub fn args<S: AsRef<str>>(mut self, args: impl IntoIterator<Item = S>) -> Run {
        self.args.extend(args.into_iter().map(|a| a.as_ref().to_string()));
        self
    }

    /// Changes the folder.
    pub fn dir(mut self, dir: &Path) -> Run {
        self.dir = dir.into();
        self
    }

    /// Sets a variable; a later value of the same name wins.
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Run {
        self.env.retain(|(n, _)| n != name);
        self.env.push((name.into(), value.as_ref().to_string_lossy().into_owned()));
        self
    }

    /// Removes an inherited variable.
    pub fn without(mut self, name: &str) -> Run {
        self.without.push(name.into());
        self
    }

    /// The command, not yet started; its input is empty.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        for name in &self.without {
            command.env_remove(name);
        }
        command.args(&self.args).current_dir(&self.dir).stdin(Stdio::null());
        command.envs(self.env.iter().map(|(n, v)| (n, v)));
        command
    }

    /// Runs it with our output; any exit code but 0 is an error that says how to repeat it.
    pub fn check(&self) -> anyhow::Result<()> {
        self.succeed(self.command())
    }

    /// Like [`Run::check`], without what it prints to its standard output.
    pub fn check_quietly(&self) -> anyhow::Result<()> {
        let mut command = self.command();
        command.stdout(Stdio::null());
        self.succeed(command)
    }

    fn succeed(&self, mut command: Command) -> anyhow::Result<()> {
        let status = command.status().with_context(|| self.cannot_start())?;
        if !status.success() {
            bail!("a command failed ({status}); to repeat it:\n  {self}");
        }
        Ok(())
    }

    /// Runs it quietly; what it printed if it succeeded, `None` if it failed or does not exist.
    pub fn output(&self) -> Option<String> {
        let output = self.command().output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// For errors of [`Command::spawn`].
    pub fn cannot_start(&self) -> String {
        format!("`{}` cannot be started; is it installed and on PATH?", self.program)
    }
}

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cd {} &&", quoted(&self.dir.to_string_lossy()))?;
        for (name, value) in &self.env {
            write!(f, " {name}={}", quoted(value))?;
        }
        // The path of rustup's own cargo says nothing to a person; the one on PATH is the same.
        let cargo = std::env::var("CARGO").is_ok_and(|c| c == self.program);
        write!(f, " {}", if cargo { "cargo".into() } else { quoted(&self.program) })?;
        for arg in &self.args {
            write!(f, " {}", quoted(arg))?;
        }
        Ok(())
    }
}

/// `text` as one word of a shell.
pub fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,+@%".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text.into()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is printed is what `sh` would read back.
    #[test]
    fn printed_commands_can_be_typed() {
        let run = Run::new(Path::new("/a b"), "echo").args(["it's", "", "x=1"]).env("A", "1 2").env("A", "3");
        assert_eq!(run.to_string(), r"cd '/a b' && A=3 echo 'it'\''s' '' x=1");
        let echoed = Run::new(Path::new("/"), "sh").args(["-c", "printf '%s' \"$0\"", "it's"]).output();
        assert_eq!(echoed.as_deref(), Some("it's"));
    }

    #[test]
    fn a_failing_command_is_an_error_that_names_it() {
        let error = Run::new(Path::new("/"), "sh").args(["-c", "exit 3"]).check().unwrap_err().to_string();
        assert!(error.contains("sh -c 'exit 3'") && error.contains('3'), "{error}");
        let error = Run::new(Path::new("/"), "no-such-program-here").check().unwrap_err().to_string();
        assert!(error.contains("no-such-program-here"), "{error}");
    }
}
