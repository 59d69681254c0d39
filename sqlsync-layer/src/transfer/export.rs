//! A volume's snapshot as a file that any SQLite opens.
//!
//! The file is written under a temporary name beside its own, with true and equal change counters, and
//! synced; then what SQLite would take for its journal or WAL is removed, and it is renamed.
//!
//! Invariants: under the name asked for stands the old file or the whole new one; memory holds one batch
//! of pages beside the replica's cache.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use bytes::{Bytes, BytesMut};
use graft::fetch::{FetchError, fetch};
use graft::remote::Remote;
use graft::snapshot::Snapshot;
use graft::store::StoreError;
use graft::volume::{ReadError, Volume};
use graft::{PageIdx, PageSet};

use super::{OnProgress, Progress};
use crate::vfs::page1;

/// Bytes of pages fetched at a time: below the smallest sensible page cache.
const BATCH_BYTES: usize = 8 << 20;
/// The SQLite that the file says it was written by.
const WRITER_VERSION: u32 = 3_054_001;

/// Why a file was not written. What stood under its name before still does.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExportError {
    /// The file system refused.
    #[error("{file}: {source}")]
    Io {
        /// The file.
        file: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Pages could not be fetched.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// The local store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A page could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
}

/// Writes `snapshot` of `volume` to the file `file`, replacing what is there. Costs one ranged GET for
/// each frame that is not cached.
pub async fn export(
    remote: &dyn Remote,
    volume: &Volume,
    snapshot: &Snapshot,
    file: &Path,
    progress: OnProgress<'_>,
) -> Result<(), ExportError> {
    let failed = |source| ExportError::Io { file: file.into(), source };
    let dir = file.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let temporary = tempfile::Builder::new().prefix(".graft-export-").tempfile_in(dir).map_err(failed)?;
    let mut out = io::BufWriter::with_capacity(1 << 20, temporary.as_file());
    let page_bytes = volume.page_size().bytes();
    let batch = (BATCH_BYTES / page_bytes) as u32;
    let pages = snapshot.pages();
    let mut at = 1;
    while at <= pages {
        let last = pages.min(at.saturating_add(batch - 1));
        let mut wanted = PageSet::new();
        wanted.insert_range(at, last);
        let missing = volume.missing(snapshot, &wanted)?;
        if !missing.is_empty() {
            fetch(remote, volume, snapshot, &missing).await?;
        }
        for idx in (at..=last).filter_map(PageIdx::new) {
            let page = read(remote, volume, snapshot, idx).await?;
            out.write_all(&true_form(idx, page, snapshot)).map_err(failed)?;
        }
        progress(Progress { pages_done: last, pages });
        at = last + 1;
    }
    out.flush().map_err(failed)?;
    drop(out);
    set_mode(temporary.as_file(), file).map_err(failed)?;
    temporary.as_file().sync_all().map_err(failed)?;
    for suffix in ["-journal", "-wal", "-shm"] {
        let mut stale = file.as_os_str().to_owned();
        stale.push(suffix);
        match fs::remove_file(&stale) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(ExportError::Io { file: stale.into(), source }),
        }
    }
    temporary.persist(file).map_err(|error| failed(error.error))?;
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed)
}

/// A page that was fetched just now; once more where the cache has dropped it since.
async fn read(
    remote: &dyn Remote,
    volume: &Volume,
    snapshot: &Snapshot,
    idx: PageIdx,
) -> Result<Bytes, ExportError> {
    match volume.read(snapshot, idx) {
        Err(ReadError::Fault(pages)) => {
            fetch(remote, volume, snapshot, &pages).await?;
            Ok(volume.read(snapshot, idx)?)
        }
        read => Ok(read?),
    }
}

/// What a file holds of a page: page 1 with counters that are equal, so that SQLite trusts its page count,
/// and that grow with the volume, so that a reader of an older export sees that this is another.
fn true_form(idx: PageIdx, page: Bytes, snapshot: &Snapshot) -> Bytes {
    if idx != PageIdx::FIRST {
        return page;
    }
    let mut page = BytesMut::from(page);
    let counter = u32::try_from(snapshot.lsn().0).unwrap_or(u32::MAX).max(1);
    page1::synthesise(&mut page, counter, WRITER_VERSION);
    page.freeze()
}

/// A temporary file is its owner's alone; a database takes the mode of the one it replaces, or the usual.
fn set_mode(temporary: &File, file: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let mode = match fs::metadata(file) {
        Ok(old) => old.permissions(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => fs::Permissions::from_mode(0o644),
        Err(error) => return Err(error),
    };
    temporary.set_permissions(mode)
}
