//! A consistent view of a SQLite file that other processes may be writing.
//!
//! A [`View`] holds a read transaction of SQLite's own. Under it, pages are read straight from the
//! files:
//!
//! - *Without a WAL* the transaction is a shared lock on the file: nobody writes it.
//! - *With a WAL*, the state at any committed frame at or after the transaction's own is the newest frame
//!   of each page up to there, or else the database file: a checkpoint copies no frame that is newer than
//!   the oldest reader, and the WAL is not restarted while a reader uses it. One case is left: where the
//!   WAL was wholly checkpointed, a reader does not use it, and it may be restarted once. That is
//!   noticed ([`View::is_torn`]), and what was read is thrown away.
//!
//! The system drops all of a process's locks on a file when the process closes *any* descriptor of it. So
//! the descriptors here stay open as long as the connection, and a file must not be opened here that is
//! open through another SQLite of the same process.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use graft::{PageIdx, PageSize};
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};

use super::wal::{Frames, Index};

/// How long to wait for a lock that a writer holds, in milliseconds.
const BUSY_MS: u64 = 10_000;
/// Looks at the WAL's index before giving up: a writer changes it in microseconds.
const LOOKS_MAX: usize = 10_000;

/// Why a file could not be read. Nothing was changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// SQLite could not read it.
    #[error("{file}: SQLite cannot read it: {source}")]
    Sqlite {
        /// The file.
        file: PathBuf,
        /// What SQLite said.
        source: rusqlite::Error,
    },
    /// The system could not.
    #[error("{file}: {source}")]
    Io {
        /// The file.
        file: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is of no use here.
    #[error("{file}: {reason}")]
    Refused {
        /// The file.
        file: PathBuf,
        /// Why, and what to do.
        reason: String,
    },
}

/// A SQLite file.
#[derive(Debug)]
pub struct Source {
    // Closed first: see above.
    connection: Connection,
    path: PathBuf,
    file: File,
    wal: Option<Wal>,
    page_size: PageSize,
}

#[derive(Debug)]
struct Wal {
    wal: File,
    shm: File,
}

impl Source {
    /// Opens the file `path`. SQLite recovers it first, if a writer died.
    pub fn open(path: &Path) -> Result<Source, SourceError> {
        let io_error = |source| SourceError::Io { file: path.into(), source };
        let file = File::open(path).map_err(io_error)?;
        let path = path.canonicalize().map_err(io_error)?;
        let sqlite = |source| SourceError::Sqlite { file: path.clone(), source };
        let flags = OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let open = |mode| Connection::open_with_flags(&path, flags | mode);
        // To recover a file, it must be writable; one that needs no recovery need not be.
        let connection = open(OpenFlags::SQLITE_OPEN_READ_WRITE)
            .or_else(|_| open(OpenFlags::SQLITE_OPEN_READ_ONLY))
            .map_err(sqlite)?;
        connection.busy_timeout(std::time::Duration::from_millis(BUSY_MS)).map_err(sqlite)?;
        // The file's owner checkpoints; we change nothing.
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true).map_err(sqlite)?;
        let schema: rusqlite::Result<i64> =
            connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0));
        schema.map_err(sqlite)?;
        let text =
            |pragma: &str| connection.query_row(pragma, [], |row| row.get::<_, rusqlite::types::Value>(0));
        let mode = match text("PRAGMA journal_mode").map_err(sqlite)? {
            rusqlite::types::Value::Text(mode) => mode,
            other => format!("{other:?}"),
        };
        let size: u32 = connection.query_row("PRAGMA page_size", [], |row| row.get(0)).map_err(sqlite)?;
        let page_size = PageSize::new(size).ok_or_else(|| SourceError::Refused {
            file: path.clone(),
            reason: format!("its pages have {size} bytes; volumes have 512 to 65536"),
        })?;
        let wal = if mode == "wal" {
            let beside = |suffix: &str| {
                let mut name = path.clone().into_os_string();
                name.push(suffix);
                let name = PathBuf::from(name);
                File::open(&name).map_err(|source| SourceError::Io { file: name, source })
            };
            Some(Wal { wal: beside("-wal")?, shm: beside("-shm")? })
        } else {
            None
        };
        Ok(Source { connection, path, file, wal, page_size })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes in each page.
    pub fn page_size(&self) -> PageSize {
        self.page_size
    }

    /// Whether it is in WAL mode.
    pub fn has_wal(&self) -> bool {
        self.wal.is_some()
    }

    /// The WAL's newest commit, without a lock; `None` without a WAL, or while it is changing.
    pub fn newest(&self) -> Result<Option<Index>, SourceError> {
        self.wal.as_ref().map_or(Ok(None), |wal| Index::read(&wal.shm).map_err(|error| self.failed(error)))
    }

    /// The same database with pages of another size, in a temporary file that vanishes with the answer.
    pub fn rebuilt(&self, page_size: PageSize) -> Result<tempfile::NamedTempFile, SourceError> {
        let file = tempfile::NamedTempFile::new().map_err(|error| self.failed(error))?;
        let sqlite = |source| SourceError::Sqlite { file: self.path.clone(), source };
        self.connection.pragma_update(None, "page_size", page_size.get()).map_err(sqlite)?;
        let name = file.path().to_string_lossy().into_owned();
        self.connection.execute("VACUUM INTO ?1", [name]).map_err(sqlite)?;
        Ok(file)
    }

    /// The newest committed state. `known` are frames that an earlier view read; the answer's go on from
    /// them where the WAL was not restarted since.
    pub fn view(&self, known: Option<&Frames>) -> Result<View<'_>, SourceError> {
        let sqlite = |source| SourceError::Sqlite { file: self.path.clone(), source };
        self.connection.execute_batch("BEGIN").map_err(sqlite)?;
        let mut view = View { source: self, pages: 0, frames: None, fresh: None, index: None };
        // The lock is taken at the first read.
        self.connection
            .query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get::<_, i64>(0))
            .map_err(sqlite)?;
        view.pages = self.connection.query_row("PRAGMA page_count", [], |row| row.get(0)).map_err(sqlite)?;
        let Some(wal) = &self.wal else { return Ok(view) };
        for _ in 0..LOOKS_MAX {
            let Some(index) = Index::read(&wal.shm).map_err(|error| self.failed(error))? else {
                std::thread::yield_now();
                continue;
            };
            if index.frames == 0 {
                view.index = Some(index);
                return Ok(view);
            }
            let known = known.filter(|frames| frames.is_of(index.salts) && frames.count() <= index.frames);
            let begun = match known {
                Some(frames) => Some(frames.clone()),
                None => Frames::begin(&wal.wal, index.salts, self.page_size.bytes())
                    .map_err(|error| self.failed(error))?,
            };
            let Some(mut frames) = begun else {
                std::thread::yield_now();
                continue;
            };
            let read = frames.extend(&wal.wal, index.frames).map_err(|error| self.failed(error))?;
            if let Some(fresh) = read {
                (view.pages, view.frames, view.index) = (index.pages, Some(frames), Some(index));
                view.fresh = Some(fresh);
                return Ok(view);
            }
            std::thread::yield_now();
        }
        let reason = "its WAL and its WAL's index do not agree; is it damaged?".into();
        Err(SourceError::Refused { file: self.path.clone(), reason })
    }

    fn failed(&self, source: io::Error) -> SourceError {
        SourceError::Io { file: self.path.clone(), source }
    }
}

/// One committed state of a file, while it lives.
#[derive(Debug)]
pub struct View<'a> {
    source: &'a Source,
    pages: u32,
    frames: Option<Frames>,
    /// The pages of frames that are not among those known.
    fresh: Option<Vec<u32>>,
    index: Option<Index>,
}

/// Which committed state of a WAL something is, and what was read of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Position {
    /// Generation and frame.
    pub index: Index,
    /// The frames up to there; none where it is frame 0.
    pub frames: Option<Frames>,
}

impl View<'_> {
    /// The file.
    pub fn path(&self) -> &Path {
        &self.source.path
    }

    /// How many pages the database has in it.
    pub fn pages(&self) -> u32 {
        self.pages
    }

    /// Which state it is; `None` without a WAL.
    pub fn position(&self) -> Option<Position> {
        Some(Position { index: self.index?, frames: self.frames.clone() })
    }

    /// The pages that may differ from the state at `since`, ascending; `None` where all may.
    pub fn changed_since(&self, since: &Position) -> Option<Vec<u32>> {
        let index = self.index?;
        if index.salts != since.index.salts || index.frames < since.index.frames {
            return None;
        }
        // With frames known at `since`, `fresh` are those after it; with none, it was at frame 0.
        let mut pages = self.fresh.clone().unwrap_or_default();
        pages.sort_unstable();
        pages.dedup();
        Some(pages)
    }

    /// Reads page `idx`. Past the end of a file that is shorter than it should be, zeroes.
    pub fn read(&self, idx: PageIdx) -> Result<Bytes, SourceError> {
        let page_bytes = self.source.page_size.bytes();
        let mut page = vec![0; page_bytes];
        let in_wal = self.frames.as_ref().and_then(|frames| frames.offset(idx.get()));
        let read = match (in_wal, &self.source.wal) {
            (Some(at), Some(wal)) => read_full(&wal.wal, &mut page, at),
            _ => read_full(&self.source.file, &mut page, (u64::from(idx.get()) - 1) * page_bytes as u64),
        };
        read.map_err(|error| self.source.failed(error))?;
        Ok(page.into())
    }

    /// Whether the WAL was restarted since the view was taken, so that what was read of it may be mixed.
    pub fn is_torn(&self) -> Result<bool, SourceError> {
        match (&self.frames, &self.source.wal) {
            (Some(frames), Some(wal)) => {
                frames.holds(&wal.wal).map(|holds| !holds).map_err(|error| self.source.failed(error))
            }
            _ => Ok(false),
        }
    }
}

fn read_full(file: &File, out: &mut [u8], at: u64) -> io::Result<()> {
    let mut done = 0;
    while done < out.len() {
        match file.read_at(&mut out[done..], at + done as u64) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

impl Drop for View<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.source.connection.execute_batch("ROLLBACK") {
            tracing::warn!(file = %self.source.path.display(), %error, "a read transaction did not end");
        }
    }
}
