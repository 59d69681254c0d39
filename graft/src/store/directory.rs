//! The data directory: who holds it, and what is in it.
//!
//! ```text
//! DIR/lock     locked while open; says who holds it
//! DIR/format   `graft replica 2`, written before anything else
//! DIR/journal  batches, newest last; see `journal`
//! DIR/table    empty; there once `fjall` is whole
//! DIR/fjall/   what the journal had to make room of: fjall's own files
//! DIR/torn-*   what was cut off a journal of fjall's; see `fjall::torn`
//! DIR/files/   what can be made again: cached pages, one file for each volume
//! ```
//!
//! Invariant: a directory whose format we do not know is not touched.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read as _, Seek as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::{ByteFile as _, DiskFile, StoreError};
use crate::locked::Locked;

/// What `DIR/format` holds. The digit changes when the layout of this directory does.
const FORMAT: &str = "graft replica 2\n";

/// Makes `dir`, which is an absolute path, and its ancestors, each entry on disk before the next is made.
///
/// Whoever made the deepest one that is there may have been killed before its entry was on disk. So that one
/// is synced too, until there is a format in `dir`, which is written after this.
pub(super) fn make(dir: &Path) -> io::Result<()> {
    if dir.join("format").exists() {
        return Ok(());
    }
    let missing: Vec<&Path> = dir.ancestors().take_while(|dir| !dir.exists()).collect();
    let deepest = missing.last().map_or(Some(dir), |top| top.parent());
    if let Some(parent) = deepest.and_then(Path::parent) {
        match File::open(parent) {
            Ok(parent) => parent.sync_all()?,
            // Nothing of ours is made where we may not even look.
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {}
            Err(error) => return Err(error),
        }
    }
    for dir in missing.into_iter().rev() {
        match fs::create_dir(dir) {
            Ok(()) => {}
            // Another process was faster, or it was there and could not be seen.
            Err(error) if error.kind() == ErrorKind::AlreadyExists && dir.is_dir() => {}
            Err(error) => return Err(error),
        }
        dir.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())?;
    }
    Ok(())
}

/// Takes the lock of `dir`. What is in the file stays until [`sign`].
pub(super) fn lock(dir: &Path, name: &str) -> Result<Locked, StoreError> {
    let failed = |e: io::Error| StoreError::Failed { dir: name.into(), message: format!("lock: {e}") };
    let options = File::options().read(true).write(true).create(true).truncate(false).open(dir.join("lock"));
    let file = options.map_err(failed)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(fs::TryLockError::WouldBlock) => {
            let mut holder = String::new();
            // Who holds it is for the message alone; that it is held is certain.
            if file.take(200).read_to_string(&mut holder).is_err() || holder.is_empty() {
                holder = "another process".into();
            }
            return Err(StoreError::Locked { dir: name.into(), holder });
        }
        Err(fs::TryLockError::Error(e)) => return Err(failed(e)),
    }
    Ok(Locked::of(file))
}

/// Which file it is, whatever its name is now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Identity {
    device: u64,
    file: u64,
}

impl Identity {
    /// That of an open file.
    pub(super) fn of(file: &File) -> io::Result<Identity> {
        Ok(Identity::from(&file.metadata()?))
    }

    fn from(found: &fs::Metadata) -> Identity {
        Identity { device: found.dev(), file: found.ino() }
    }

    /// Whether it is what stands at `path`.
    pub(super) fn is_at(self, path: &Path) -> io::Result<bool> {
        match fs::metadata(path) {
            Ok(found) => Ok(Identity::from(&found) == self),
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// Writes down in the lock who we are. The directory is known to be ours.
pub(super) fn sign(mut file: &File, name: &str) -> Result<(), StoreError> {
    let failed = |e: io::Error| StoreError::Failed { dir: name.into(), message: format!("lock: {e}") };
    // The program alone: arguments may hold secrets.
    let program = std::env::args_os().next().map(PathBuf::from);
    let program =
        program.as_deref().and_then(Path::file_name).unwrap_or_default().to_string_lossy().into_owned();
    let holder = format!("process {} ({program})", std::process::id());
    file.set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| file.write_all(holder.as_bytes()))
        .map_err(failed)
}

/// Refuses a directory of another format; marks an empty one as ours.
pub(super) fn check_format(dir: &Path, name: &str) -> Result<(), StoreError> {
    let failed = |e: io::Error| StoreError::Failed { dir: name.into(), message: format!("format: {e}") };
    let path = dir.join("format");
    let found = match fs::read(&path) {
        Ok(found) if found == FORMAT.as_bytes() => return Ok(()),
        Ok(found) => {
            String::from_utf8_lossy(&found[..found.len().min(100)]).trim_end().escape_debug().to_string()
        }
        Err(e) if e.kind() == ErrorKind::NotFound => {
            let mut others = fs::read_dir(dir).map_err(failed)?;
            let foreign = others.find_map(|entry| {
                let name = entry.ok()?.file_name();
                (name != "lock" && name != "format.new").then(|| name.to_string_lossy().into_owned())
            });
            match foreign {
                None => return write_format(dir, &path).map_err(failed),
                Some(file) => format!("none, but a file `{}`", file.escape_debug()),
            }
        }
        Err(e) => return Err(failed(e)),
    };
    Err(StoreError::Format { dir: name.into(), found, known: FORMAT.trim_end().into() })
}

fn write_format(dir: &Path, path: &Path) -> io::Result<()> {
    let new = dir.join("format.new");
    let mut file = File::create(&new)?;
    file.write_all(FORMAT.as_bytes())?;
    file.sync_all()?;
    fs::rename(new, path)?;
    File::open(dir)?.sync_all()
}

/// Makes the empty file `path`, on disk.
pub(super) fn mark(path: &Path) -> io::Result<()> {
    File::create(path)?.sync_all()?;
    path.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all())
}

/// Opens the file at `path` and makes it where it is not there, with its entry in the directory on
/// disk: what is synced in a file that nobody finds is lost.
pub(super) fn open_file(path: &Path, name: &str) -> Result<DiskFile, StoreError> {
    let failed = |e: io::Error| StoreError::Failed { dir: name.into(), message: e.to_string() };
    let file = DiskFile::open(path)?;
    // As long as nothing is in it, an earlier process may have ended before this.
    if file.is_empty()? {
        let dir = path.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all());
        dir.map_err(failed)?;
    }
    Ok(file)
}
