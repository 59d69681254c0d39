//! Ordinary SQLite files to volumes and back: import, export, continuous backup.
//!
//! | module | holds |
//! | --- | --- |
//! | [`source`] | a consistent view of a SQLite file that another process may be writing |
//! | [`wal`] | the committed frames of a write-ahead log |
//! | [`export`](mod@export) | a volume's snapshot as a file that any SQLite opens |
//! | [`backup`] | shipping what was committed since, transaction boundary by transaction boundary |
//!
//! An import is one commit: pages stream into segments as they are read, then the log entry is made,
//! and the volume's name last of all. Before that nothing can find it; what a crash leaves are objects
//! under a random volume id that nothing names.
//!
//! What is stored of page 1 is what [`page1::normalise`] leaves: bytes 18 and 19 say 1, since a volume
//! has no WAL, and the volatile counters are zero. Pages of zeroes are not stored; they read as zeroes.
//!
//! Invariants: everything read for one commit belongs to one committed state of the file; memory holds
//! one segment and 16 bytes for each page.

pub mod backup;
pub mod export;
pub mod source;
pub mod wal;

use std::path::{Path, PathBuf};

use bytes::{Bytes, BytesMut};
use graft::catalog::{self, CatalogError};
use graft::checkpoint::Policy;
use graft::fetch::FetchError;
use graft::format::commit::PREFIX_BYTES;
use graft::format::meta::Meta;
use graft::publish::{Builder, Draft, Prepared, PublishError, Published, Segment, publish};
use graft::remote::{Remote, RemoteError};
use graft::volume::Options;
use graft::{ChainHash, CommitId, Lsn, PageIdx, PageSize, VolumeId, VolumeName};

use self::source::{Source, SourceError, View};
use crate::payload::Payload;
use crate::upkeep::Followed;
use crate::vfs::{Marks, page1};

/// A commit's head has 16 bytes and more for each page, and readers take 256 MiB.
const PAGES_MAX: u32 = 15_000_000;

/// Views of a file that were torn by a restart of its WAL, in a row, before an operation gives up.
const TORN_MAX: usize = 5;

/// A head of so many bytes is one request of everyone who opens the volume, as a checkpoint would be.
const HEAD_BYTES_CHEAP: u64 = PREFIX_BYTES;

/// How far a transfer has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Pages dealt with.
    pub pages_done: u32,
    /// Pages in all.
    pub pages: u32,
}

/// Random ids, from whoever owns randomness.
pub type Ids<'a> = &'a mut (dyn FnMut() -> [u8; 16] + Send);

/// Told how far a transfer has come, every so many pages.
pub type OnProgress<'a> = &'a mut (dyn FnMut(Progress) + Send);

/// What [`import`] made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Imported {
    /// The new volume.
    pub volume: VolumeId,
    /// Its only commit; 0 where the file held no page at all.
    pub lsn: Lsn,
    /// Pages in the database.
    pub pages: u32,
    /// Pages stored: those that are not all zeroes.
    pub pages_written: u32,
    /// Bytes in each page.
    pub page_size: PageSize,
}

/// Why an import or a backup did not happen. No volume is visible that was not visible before.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TransferError {
    /// The file could not be read.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The volume could not be created or found.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// The pages could not be stored.
    #[error(transparent)]
    Remote(#[from] RemoteError),
    /// It has more pages than the head of one commit can name.
    #[error(
        "{file}: {pages} pages are too many for one commit, which takes {PAGES_MAX}; give larger pages (--page-size)"
    )]
    TooLarge {
        /// The file.
        file: PathBuf,
        /// Its pages.
        pages: u32,
    },
    /// The commit could not be made.
    #[error(transparent)]
    Publish(#[from] PublishError),
    /// The volume's page table could not be read.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// The volume could not be opened.
    #[error(transparent)]
    Open(#[from] graft::volume::OpenError),
    /// The file's WAL was restarted under every view taken of it.
    #[error("{file}: its WAL was restarted {TORN_MAX} times while it was read; try again when it is quieter")]
    Torn {
        /// The file.
        file: PathBuf,
    },
    /// It is no volume that a backup may write to.
    #[error("volume `{name}` cannot take a backup: {reason}")]
    NotABackup {
        /// The volume.
        name: VolumeName,
        /// Why.
        reason: String,
    },
}

/// Makes a new volume called `name` of the SQLite file `file`, in one pass.
///
/// The file may be in use, in WAL mode or not: what is imported is its newest committed state. With
/// another `page_size` than the file's the database is rebuilt by SQLite in a temporary file first
/// (`VACUUM INTO`), as large as itself. Costs one request for every 16 MiB of compressed pages and four
/// more.
///
/// # Errors
///
/// [`TransferError`]; in particular [`CatalogError::Exists`] where the name is taken, which is looked at
/// before anything is read, and again at the end.
pub async fn import(
    remote: &dyn Remote,
    file: &Path,
    name: &VolumeName,
    page_size: Option<PageSize>,
    ids: Ids<'_>,
    now_ms: i64,
    progress: OnProgress<'_>,
) -> Result<Imported, TransferError> {
    match catalog::resolve(remote, name).await {
        Ok(found) => return Err(CatalogError::Exists { name: name.clone(), found }.into()),
        Err(CatalogError::NoSuchVolume { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    let mut source = Source::open(file)?;
    let rebuilt;
    if page_size.is_some_and(|size| size != source.page_size()) {
        let size = page_size.unwrap_or(PageSize::DEFAULT);
        rebuilt = source.rebuilt(size)?;
        source = Source::open(rebuilt.path())?;
    }
    let (imported, _) = import_source(remote, &source, name, ids, now_ms, progress).await?;
    Ok(imported)
}

/// As [`import`], of an open source. Answers also what a backup goes on from.
pub(crate) async fn import_source(
    remote: &dyn Remote,
    source: &Source,
    name: &VolumeName,
    ids: Ids<'_>,
    now_ms: i64,
    progress: OnProgress<'_>,
) -> Result<(Imported, backup::Shipped), TransferError> {
    let volume = VolumeId(ids());
    let page_size = source.page_size();
    let meta = Meta { page_size, parent: None };
    let mut tries = 0;
    let shipped = loop {
        // A fresh id for each try: its segments' keys must never hold another try's bytes.
        let draft = draft(volume, None, CommitId(ids()), now_ms);
        let view = source.view(None)?;
        let mut hashes = backup::Hashes::default();
        let prepared = collect(remote, &view, 1..=view.pages(), draft, &mut hashes, progress).await?;
        if view.is_torn()? {
            tries += 1;
            if tries == TORN_MAX {
                return Err(TransferError::Torn { file: source.path().into() });
            }
            continue;
        }
        break backup::Shipped { prepared, hashes, pages: view.pages(), position: view.position() };
    };
    let mut imported = Imported { volume, lsn: Lsn::ZERO, pages: shipped.pages, pages_written: 0, page_size };
    if shipped.pages > 0 {
        imported.lsn = publish_settled(remote, &shipped.prepared).await?.lsn;
        imported.pages_written = shipped.prepared.head.set.len() as u32;
    }
    catalog::create(remote, name, volume, meta).await?;
    if shipped.prepared.head.encoded.len() as u64 > HEAD_BYTES_CHEAP {
        // Otherwise everyone who opens the volume reads 16 bytes for each page.
        checkpoint_if_due(remote, volume, &Policy { commits: 1, bytes: 0 }).await;
    }
    Ok((imported, shipped))
}

/// Writes a checkpoint of a volume's newest commit where `policy` says that one is due, so that opening it
/// stays cheap. Nothing depends on it: where it fails, that is logged, and another is written later.
pub async fn checkpoint_if_due(remote: &dyn Remote, volume: VolumeId, policy: &Policy) {
    let written = async {
        let followed = Followed::open(remote, volume, Options::default()).await;
        let followed = followed.map_err(|error| error.to_string())?;
        followed.checkpoint(remote, policy).await.map_err(|error| error.to_string())
    };
    if let Err(error) = written.await {
        tracing::warn!(%volume, error, "no checkpoint was written");
    }
}

fn draft(volume: VolumeId, parent: Option<(Lsn, ChainHash, i64)>, id: CommitId, now_ms: i64) -> Draft {
    let (lsn, hash, time_ms) = parent.unwrap_or((Lsn::ZERO, ChainHash::ZERO, 0));
    Draft {
        volume,
        lsn: lsn.next(),
        id,
        parent: hash,
        parent_time_ms: time_ms,
        now_ms,
        pages: 0,
        payload: Payload { marks: Marks::BOTH.to_byte(), records: Vec::new() }.encode(),
        locals: 0,
        checkpoint: Lsn::ZERO,
    }
}

/// Puts those of `pages` whose content is another than `hashes` says into a commit, and notes theirs.
async fn collect(
    remote: &dyn Remote,
    view: &View<'_>,
    pages: impl Iterator<Item = u32>,
    draft: Draft,
    hashes: &mut backup::Hashes,
    progress: OnProgress<'_>,
) -> Result<Prepared, TransferError> {
    const PAGES_BETWEEN_REPORTS: u32 = 1024;
    if view.pages() > PAGES_MAX {
        return Err(TransferError::TooLarge { file: view.path().into(), pages: view.pages() });
    }
    let mut builder = Builder::new(Draft { pages: view.pages(), ..draft });
    hashes.resize(view.pages());
    for (done, at) in (0..).zip(pages) {
        let Some(idx) = PageIdx::new(at).filter(|idx| idx.get() <= view.pages()) else { continue };
        let page = stored_form(idx, view.read(idx)?, view.pages());
        if hashes.replace(idx, &page) {
            store(remote, builder.push(idx, page)).await?;
        }
        if at % PAGES_BETWEEN_REPORTS == 0 || at == view.pages() {
            progress(Progress { pages_done: done + 1, pages: view.pages() });
        }
    }
    let (last, prepared) = builder.finish();
    store(remote, last).await?;
    Ok(prepared)
}

async fn store(remote: &dyn Remote, segment: Option<Segment>) -> Result<(), TransferError> {
    let Some((key, bytes)) = segment else { return Ok(()) };
    match remote.create(&key, bytes).await {
        // Its key carries our random id: whatever is there, we wrote it.
        Ok(()) | Err(RemoteError::AlreadyExists { .. }) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// A page of a SQLite file as a volume of `pages` pages stores it.
fn stored_form(idx: PageIdx, page: Bytes, pages: u32) -> Bytes {
    if idx != PageIdx::FIRST {
        return page;
    }
    let mut page = BytesMut::from(page);
    page1::normalise(&mut page);
    // SQLite trusts the count only where the counters are equal, which they always are on a volume.
    page1::set_page_count(&mut page, pages);
    page.freeze()
}

/// Publishes, again and again with the same bytes while the outcome is unknown; gives up after a few.
async fn publish_settled(remote: &dyn Remote, prepared: &Prepared) -> Result<Published, PublishError> {
    const TRIES_MAX: usize = 5;
    let mut tries = 0;
    loop {
        match publish(remote, prepared).await {
            Err(PublishError::Unknown { .. } | PublishError::Upload { .. }) if tries < TRIES_MAX => {
                tries += 1
            }
            settled => return settled,
        }
    }
}

#[cfg(test)]
mod tests;
