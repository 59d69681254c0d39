//! Objects as files below one directory, for a single machine and for tests of real durability.
//!
//! `create` writes a temporary file, fsyncs it, gives it its final name with `link(2)`, which fails
//! where the name is taken, fsyncs the directory and removes the temporary. So a name appears with
//! all its bytes or not at all, and one of several racing creators, in one process or many, wins.
//!
//! `put` renames the temporary file over the name, so that readers have the old file or the new one.
//! `update` reads the file, compares the hash of its bytes (the tag) and renames over it, all three
//! under an exclusive `flock(2)` on `ROOT/.graft-tmp/locks/{xx}`, `xx` from the key's hash; `put` and
//! `delete` take the same lock, so nothing can come between an update's look and its rename. `create`
//! needs none: it changes no name that exists. The kernel drops the lock of a process that dies, and
//! the lock files stay: removing one would let two processes lock two files of one name.
//!
//! Temporary files live in `ROOT/.graft-tmp`, where no key can point and no listing looks. Those a
//! crash left behind are removed by an `open` an hour or more later.
//!
//! Invariants: what `create`, `put` and `update` acknowledged, what a second `create` calls taken, what
//! makes an `update` answer "changed", and what `list` shows are on disk. The latter three matter after
//! a process was killed between link and fsync: its successor may read the object as "mine, committed"
//! and must not be wrong after a power loss.
//!
//! Costs: a write is two fsyncs, one of the file and one of the directory; the first create below
//! a directory in the life of a handle also fsyncs that directory's ancestors up to the root's
//! parent. A listing reads the names of the whole directory, whatever its limit.
//!
//! Blocking calls run on tokio's blocking pool where a runtime is, else inline, so that the same
//! remote serves a server and a simulation under `block_on`.

use std::cell::Cell;
use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read as _, Seek as _, SeekFrom, Write as _};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;

use super::{Listed, OpenRemoteError, Remote, RemoteError, Tag, check_key, check_prefix};
use crate::locked::Locked;

/// Where files are that have no name yet.
const TEMPORARY: &str = ".graft-tmp";
/// Below [`TEMPORARY`]: files that updates of a key lock.
const LOCKS: &str = "locks";
/// How old a temporary file must be before an open takes it for a crash's.
const TEMPORARY_AGE_MIN: Duration = Duration::from_secs(3600);

/// An object store in a directory. Any number of processes of one machine may share it.
#[derive(Debug)]
pub struct DirectoryRemote {
    files: Arc<Files>,
}

#[derive(Debug)]
struct Files {
    root: PathBuf,
    /// Random: tells this handle's temporary files from those of every other.
    handle: u64,
    /// Tells them from each other.
    serial: AtomicU64,
    /// Directories that this handle knows to be on disk, with all their ancestors.
    durable: Mutex<HashSet<PathBuf>>,
    /// Whether the root was there at some time in the life of this handle. If it is not any more
    /// (removed, unmounted), nothing is made in its place: a log that begins in the middle would take
    /// commits that nobody can read.
    seen: AtomicBool,
}

impl DirectoryRemote {
    /// Opens the store in `root`, which need not exist: the first `create` makes it.
    ///
    /// # Errors
    ///
    /// [`OpenRemoteError::Directory`] where `root` is something else than a directory or cannot be
    /// looked at.
    pub fn open(root: &Path) -> Result<DirectoryRemote, OpenRemoteError> {
        let failed =
            |message: String| OpenRemoteError::Directory { url: root.display().to_string(), message };
        let absolute = std::path::absolute(root).map_err(|e| failed(e.to_string()))?;
        let seen = match fs::metadata(&absolute) {
            Ok(found) if found.is_dir() => {
                remove_leftovers(&absolute.join(TEMPORARY));
                true
            }
            Ok(_) => return Err(failed("it is a file; give a directory".into())),
            Err(e) if e.kind() == ErrorKind::NotFound => false,
            Err(e) => return Err(failed(format!("{e}; give a directory that this user may write"))),
        };
        let handle = random().map_err(|e| failed(e.to_string()))?;
        let (serial, durable) = (AtomicU64::new(0), Mutex::default());
        let seen = AtomicBool::new(seen);
        Ok(DirectoryRemote { files: Arc::new(Files { root: absolute, handle, serial, durable, seen }) })
    }

    async fn run<T: Send + 'static>(
        &self,
        key: &str,
        work: impl FnOnce(&Files) -> Result<T, RemoteError> + Send + 'static,
    ) -> Result<T, RemoteError> {
        let files = self.files.clone();
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => match runtime.spawn_blocking(move || work(&files)).await {
                Ok(done) => done,
                Err(stopped) => Err(RemoteError::unavailable(key, stopped)),
            },
            Err(_no_runtime) => work(&files),
        }
    }
}

#[async_trait]
impl Remote for DirectoryRemote {
    async fn get(&self, key: &str) -> Result<Bytes, RemoteError> {
        let owned = key.to_string();
        self.run(key, move |files| files.read(&owned, 0..u64::MAX)).await
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, RemoteError> {
        let owned = key.to_string();
        self.run(key, move |files| files.read(&owned, range)).await
    }

    async fn create(&self, key: &str, body: Bytes) -> Result<(), RemoteError> {
        let owned = key.to_string();
        self.run(key, move |files| files.create(&owned, &body)).await
    }

    async fn put(&self, key: &str, body: Bytes) -> Result<(), RemoteError> {
        let owned = key.to_string();
        self.run(key, move |files| files.replace(&owned, &body, None)).await
    }

    async fn get_tagged(&self, key: &str) -> Result<(Bytes, Tag), RemoteError> {
        let body = self.get(key).await?;
        let tag = Tag::of(&body);
        Ok((body, tag))
    }

    async fn update(&self, key: &str, body: Bytes, tag: &Tag) -> Result<Tag, RemoteError> {
        let (owned, tag) = (key.to_string(), tag.clone());
        let work = move |files: &Files| {
            files.replace(&owned, &body, Some(&tag))?;
            Ok(Tag::of(&body))
        };
        self.run(key, work).await
    }

    async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Listed>, RemoteError> {
        let (owned, after) = (prefix.to_string(), after.map(str::to_string));
        self.run(prefix, move |files| files.list(&owned, after.as_deref(), limit)).await
    }

    async fn delete(&self, key: &str) -> Result<(), RemoteError> {
        let owned = key.to_string();
        self.run(key, move |files| files.delete(&owned)).await
    }

    fn url(&self) -> String {
        let root = &self.files.root;
        url::Url::from_directory_path(root).map_or_else(|()| root.display().to_string(), String::from)
    }
}

impl Files {
    fn path(&self, key: &str) -> Result<PathBuf, RemoteError> {
        check_key(key)?;
        if key.split('/').next() == Some(TEMPORARY) {
            let message = format!("`{TEMPORARY}` is kept for files that have no name yet; use another key");
            return Err(RemoteError::Refused { key: key.into(), message });
        }
        Ok(self.root.join(key))
    }

    /// The error for a root that was there and is gone.
    fn check_root(&self, key: &str) -> Result<(), RemoteError> {
        if !self.seen.load(Ordering::Acquire) || self.root.is_dir() {
            return Ok(());
        }
        let message = format!("the store's directory {} is gone; put it back", self.root.display());
        Err(RemoteError::unavailable(key, message))
    }

    fn read(&self, key: &str, range: Range<u64>) -> Result<Bytes, RemoteError> {
        let path = self.path(key)?;
        let read = || {
            let mut file = File::open(&path)?;
            let found = file.metadata()?;
            if !found.is_file() {
                return Err(ErrorKind::NotFound.into());
            }
            let end = range.end.min(found.len());
            if range.start >= end {
                return Ok(Vec::new());
            }
            let mut body = Vec::new();
            body.try_reserve_exact(usize::try_from(end - range.start).unwrap_or(usize::MAX))?;
            file.seek(SeekFrom::Start(range.start))?;
            file.take(end - range.start).read_to_end(&mut body)?;
            Ok(body)
        };
        read().map(Bytes::from).map_err(|e: io::Error| match e.kind() {
            ErrorKind::NotADirectory | ErrorKind::NotFound => {
                self.check_root(key).err().unwrap_or_else(|| RemoteError::not_found(key))
            }
            _ => failure(key, &e),
        })
    }

    /// Writes what `attempt` writes, and once more where somebody removed directories that we knew.
    fn write(
        &self,
        key: &str,
        attempt: impl Fn(&Path, &Path) -> io::Result<()>,
    ) -> Result<io::Result<()>, RemoteError> {
        let path = self.path(key)?;
        let folder = path.parent().unwrap_or(&self.root);
        self.check_root(key)?;
        Ok(match attempt(folder, &path) {
            Err(e) if e.kind() == ErrorKind::NotFound => {
                self.durable.lock().clear();
                attempt(folder, &path)
            }
            done => done,
        })
    }

    fn create(&self, key: &str, body: &[u8]) -> Result<(), RemoteError> {
        self.write(key, |folder, path| self.try_create(folder, path, body))?.map_err(|e| {
            if e.kind() == ErrorKind::AlreadyExists {
                RemoteError::already_exists(key)
            } else {
                failure(key, &e)
            }
        })
    }

    /// Puts `body` in the place of the object; given a tag, only in that of the object it is of.
    fn replace(&self, key: &str, body: &[u8], tag: Option<&Tag>) -> Result<(), RemoteError> {
        if tag.is_some() && is_missing(&self.path(key)?) {
            return Err(self.check_root(key).err().unwrap_or_else(|| RemoteError::changed(key)));
        }
        let changed = Cell::new(false);
        let attempt = |folder: &Path, path: &Path| {
            let temporary = self.temporary(folder, body)?;
            let _lock = self.lock(key)?;
            let differs = match tag.map(|tag| (tag, fs::read(path))) {
                None => false,
                Some((tag, Ok(found))) => Tag::of(&found) != *tag,
                Some((_, Err(e))) if is_not_there(&e) => true,
                Some((_, Err(e))) => return Err(e),
            };
            changed.set(differs);
            if !differs {
                fs::rename(&temporary.0, path)?;
            }
            // Also when it differs: whoever changed it may have died before its own fsync.
            sync_directory(folder)
        };
        match self.write(key, attempt)? {
            Ok(()) if changed.get() => Err(RemoteError::changed(key)),
            Ok(()) => Ok(()),
            Err(e) => Err(failure(key, &e)),
        }
    }

    /// Keeps every other update, put and delete of this key out, in all processes, while it lives.
    fn lock(&self, key: &str) -> io::Result<Locked> {
        let locks = self.root.join(TEMPORARY).join(LOCKS);
        fs::create_dir_all(&locks)?;
        let stripe = blake3::hash(key.as_bytes()).as_bytes()[0];
        let file = File::options().create(true).append(true).open(locks.join(format!("{stripe:02x}")))?;
        file.lock()?;
        Ok(Locked::of(file))
    }

    /// A file on disk with this body, without a name yet, beside an existing `folder`.
    fn temporary(&self, folder: &Path, body: &[u8]) -> io::Result<Temporary> {
        let temporaries = self.root.join(TEMPORARY);
        self.make_durable(&temporaries)?;
        self.seen.store(true, Ordering::Release);
        self.make_durable(folder)?;
        let serial = self.serial.fetch_add(1, Ordering::Relaxed);
        let temporary = Temporary(temporaries.join(format!("{:016x}-{serial}", self.handle)));
        let mut file = File::create_new(&temporary.0)?;
        file.write_all(body)?;
        file.sync_all()?;
        Ok(temporary)
    }

    fn try_create(&self, folder: &Path, path: &Path, body: &[u8]) -> io::Result<()> {
        let temporary = self.temporary(folder, body)?;
        let linked = match fs::hard_link(&temporary.0, path) {
            Err(e) if e.kind() == ErrorKind::AlreadyExists && fs::symlink_metadata(path)?.is_dir() => {
                return Err(ErrorKind::IsADirectory.into());
            }
            Err(e) if e.kind() != ErrorKind::AlreadyExists => return Err(e),
            linked => linked,
        };
        // Also when the name was taken: whoever took it may have died before its own fsync.
        sync_directory(folder)?;
        linked
    }

    /// Makes `folder` and its ancestors exist and be on disk.
    ///
    /// A directory that exists may still be lost with the power, when the process that made it was
    /// killed too soon; so what this handle has not synced itself, it syncs.
    fn make_durable(&self, folder: &Path) -> io::Result<()> {
        let unknown =
            |at: &&Path| (at.starts_with(&self.root) || !at.exists()) && !self.durable.lock().contains(*at);
        let unknown: Vec<&Path> = folder.ancestors().take_while(unknown).collect();
        if unknown.is_empty() {
            return Ok(());
        }
        fs::create_dir_all(folder).map_err(|e| match e.kind() {
            ErrorKind::AlreadyExists => ErrorKind::NotADirectory.into(),
            _ => e,
        })?;
        for made in &unknown {
            match sync_directory(made.parent().unwrap_or(made)) {
                // The root was made by somebody with more rights, who answers for it.
                Err(e) if *made == self.root && e.kind() == ErrorKind::PermissionDenied => {}
                synced => synced?,
            }
        }
        self.durable.lock().extend(unknown.into_iter().map(Path::to_path_buf));
        Ok(())
    }

    fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<Listed>, RemoteError> {
        check_prefix(prefix)?;
        self.check_root(prefix)?;
        let mut rows = Vec::new();
        self.walk(prefix, after, limit, &mut rows).map_err(|e| failure(prefix, &e))?;
        Ok(rows)
    }

    /// Adds to `rows` what lies below `prefix`, until there are `limit`.
    fn walk(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
        rows: &mut Vec<Listed>,
    ) -> io::Result<()> {
        if rows.len() >= limit {
            return Ok(());
        }
        let folder = self.root.join(prefix);
        let entries = match fs::read_dir(&folder) {
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(()),
            entries => entries?,
        };
        let mut found = Vec::new();
        for entry in entries {
            let entry = entry?;
            let Some(name) = entry.file_name().to_str().map(str::to_string) else { continue };
            let kind = entry.file_type()?;
            // A directory sorts as the keys below it compare with its siblings: by name and `/`.
            let key = match (kind.is_dir(), kind.is_file()) {
                (true, _) if prefix.is_empty() && name == TEMPORARY => continue,
                (true, _) => format!("{prefix}{name}/"),
                (false, true) => format!("{prefix}{name}"),
                (false, false) => continue,
            };
            let passed = after
                .is_some_and(|after| key.as_str() <= after && !(kind.is_dir() && after.starts_with(&key)));
            if !passed && check_key(key.trim_end_matches('/')).is_ok() {
                found.push((key, kind.is_dir()));
            }
        }
        found.sort_unstable();
        let before = rows.len();
        for (key, is_directory) in found {
            if rows.len() >= limit {
                break;
            }
            if is_directory {
                self.walk(&key, after, limit, rows)?;
                continue;
            }
            match fs::symlink_metadata(self.root.join(&key)) {
                Ok(found) => {
                    let modified_ms = modified_ms(&found)?;
                    rows.push(Listed { key, bytes: found.len(), modified_ms });
                }
                Err(e) if e.kind() == ErrorKind::NotFound => {}
                Err(e) => return Err(e),
            }
        }
        if rows.len() > before {
            sync_directory(&folder)?;
        }
        Ok(())
    }

    fn delete(&self, key: &str) -> Result<(), RemoteError> {
        let path = self.path(key)?;
        // Without this look, a delete of nothing would leave a lock file behind.
        if is_missing(&path) {
            return Ok(());
        }
        let _lock = self.lock(key).map_err(|e| failure(key, &e))?;
        let removed = match fs::remove_file(&path) {
            Err(e) if is_not_there(&e) => return Ok(()),
            removed => removed,
        };
        removed
            .and_then(|()| sync_directory(path.parent().unwrap_or(&self.root)))
            .map_err(|e| failure(key, &e))
    }
}

/// A temporary file, removed when dropped. Its body stays where `link` gave it another name.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        if let Err(e) = fs::remove_file(&self.0)
            && e.kind() != ErrorKind::NotFound
        {
            tracing::debug!(path = %self.0.display(), error = %e, "temporary file left behind");
        }
    }
}

#[allow(clippy::disallowed_methods, reason = "names of temporary files; nothing is replayed from them")]
fn random() -> Result<u64, getrandom::Error> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

fn is_not_there(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
}

/// Whether there is nothing at `path`. What else may be wrong shows when it is used.
fn is_missing(path: &Path) -> bool {
    fs::symlink_metadata(path).is_err_and(|e| is_not_there(&e))
}

/// The file's time, ms since 1970; negative before.
fn modified_ms(found: &fs::Metadata) -> io::Result<i64> {
    let ms = |span: Duration| i64::try_from(span.as_millis()).unwrap_or(i64::MAX);
    let then = found.modified()?;
    Ok(match then.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(since) => ms(since),
        Err(before) => -ms(before.duration()),
    })
}

fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

#[allow(clippy::disallowed_methods, reason = "ages of files on disk; nothing is replayed from them")]
fn remove_leftovers(temporaries: &Path) {
    let Ok(entries) = fs::read_dir(temporaries) else { return };
    let now = SystemTime::now();
    for entry in entries.flatten().filter(|entry| entry.file_name() != LOCKS) {
        let age = entry.metadata().and_then(|found| found.modified()).map(|then| now.duration_since(then));
        if matches!(age, Ok(Ok(age)) if age >= TEMPORARY_AGE_MIN) {
            drop(Temporary(entry.path()));
        }
    }
}

fn failure(key: &str, error: &io::Error) -> RemoteError {
    let key = key.to_string();
    let refused =
        |advice: &str| RemoteError::Refused { key: key.clone(), message: format!("{error}; {advice}") };
    match error.kind() {
        ErrorKind::NotFound => RemoteError::NotFound { key },
        ErrorKind::PermissionDenied => refused("let this user write the store's directory"),
        ErrorKind::ReadOnlyFilesystem => refused("the file system is mounted read-only"),
        ErrorKind::NotADirectory | ErrorKind::IsADirectory => {
            refused("one object's key cannot be a directory of another's here")
        }
        ErrorKind::Unsupported => refused("this file system has no hard links; use another"),
        _ => RemoteError::Unavailable { key, message: error.to_string() },
    }
}

#[cfg(test)]
mod tests;
