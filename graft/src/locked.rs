//! A locked file (`flock(2)`) that nobody holds any more once it is dropped.
//!
//! The lock is the open file's, and a forked child has that too: one that is just being started for another
//! program, or one that goes on as a worker of this one, for as long as it lives. So closing the file does
//! not end the lock, and it is ended by hand, in the process that took it.

use std::fs::File;

/// A file whose lock is held.
#[derive(Debug)]
pub(crate) struct Locked {
    file: File,
    /// The process that took the lock.
    process: u32,
}

impl Locked {
    /// `file` is locked already.
    pub(crate) fn of(file: File) -> Locked {
        Locked { file, process: std::process::id() }
    }

    /// The file.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        if self.process != std::process::id() {
            return;
        }
        if let Err(error) = self.file.unlock() {
            tracing::warn!(%error, "a lock that a forked process may still hold was not ended");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_ends_with_its_holder_though_another_has_the_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().lock().unwrap();
        let locked = Locked::of(file.reopen().unwrap());
        drop(locked);
        let again = file.reopen().unwrap();
        assert!(again.try_lock().is_err(), "an unlock of another open file ends nothing");
        // As a forked child has it.
        let inherited = file.as_file().try_clone().unwrap();
        drop(Locked::of(file.into_file()));
        again.try_lock().expect("it is free");
        drop(inherited);
    }

    #[test]
    fn a_forked_child_does_not_end_its_parents_lock() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().lock().unwrap();
        let inherited = file.as_file().try_clone().unwrap();
        drop(Locked { file: inherited, process: std::process::id() ^ 1 });
        assert!(file.reopen().unwrap().try_lock().is_err(), "it is held");
    }
}
