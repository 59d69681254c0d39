//! Programs under `strace`: watched, or killed at one of their calls.
//!
//! Linux alone has it. Where it is missing, or may not trace, a test is told so and skips aloud.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::places;
use crate::process::clean;

/// Calls that move bytes into files, or files to disk.
const MOVING: &str = "write,writev,pwrite64,pwritev,pwritev2,fsync,fdatasync";
/// Calls that change which files there are. Not every machine has all of them.
const NAMING: &str =
    "ftruncate,fallocate,?link,linkat,?rename,?renameat,renameat2,?unlink,unlinkat,?mkdir,mkdirat";

/// A folder, and `strace`.
#[derive(Debug)]
pub struct Strace {
    folder: tempfile::TempDir,
    strace: PathBuf,
}

impl Strace {
    /// With an empty folder. `None`, with a line that says so, where nothing can be traced.
    ///
    /// # Panics
    ///
    /// In CI, if it is not installed; or if there can be no folder.
    pub fn find() -> Option<Strace> {
        let folder = tempfile::tempdir().unwrap_or_else(|error| panic!("no temporary folder: {error}"));
        let found = Strace { folder, strace: places::strace()? };
        let said = match found.watching(Path::new("/bin/true")).output() {
            Ok(output) if output.status.success() => return Some(found),
            Ok(output) => String::from_utf8_lossy(&output.stderr).into_owned(),
            Err(error) => error.to_string(),
        };
        // A container without the right to trace.
        println!("SKIPPED: strace may not trace here: {}", said.trim());
        None
    }

    /// A path in the folder, without links, as a trace shows it.
    ///
    /// # Panics
    ///
    /// If the folder is gone.
    pub fn path(&self, name: &str) -> PathBuf {
        let folder = self.folder.path().canonicalize();
        folder.unwrap_or_else(|error| panic!("{}: {error}", self.folder.path().display())).join(name)
    }

    /// Where [`Strace::watching`] puts the trace.
    pub fn trace(&self) -> PathBuf {
        self.path("trace")
    }

    /// `program`, whose calls that write and sync are put into [`Strace::trace`]: `-f -y -xx`, with whole
    /// buffers. Arguments that are added are the program's.
    pub fn watching(&self, program: &Path) -> Command {
        let mut command = self.of();
        command.args(["-y", "-xx", "-s", "1048576", "-e", &format!("trace={MOVING}")]);
        command.arg("-o").arg(self.trace()).arg(program);
        command
    }

    /// `program`, killed when one of its threads begins its call of number `at` that writes, syncs or
    /// changes which files there are; before that does anything.
    pub fn killing(&self, program: &Path, at: usize) -> Command {
        let mut command = self.of();
        command.args(["-o", "/dev/null", "-e", &format!("trace={MOVING},{NAMING}")]);
        command.args(["-e", &format!("inject={MOVING},{NAMING}:signal=KILL:when={at}")]).arg(program);
        command
    }

    fn of(&self) -> Command {
        let mut command = Command::new(&self.strace);
        command.arg("-f").current_dir(self.folder.path());
        clean(&mut command);
        command
    }
}
