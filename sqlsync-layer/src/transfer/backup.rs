//! Continuous backup: each [`Backup::ship`] makes one commit of what another process committed to a WAL
//! database since the last.
//!
//! What may have changed is read from the WAL: the frames after the last state shipped. Where the WAL was
//! restarted in between (after a checkpoint), or the backup itself was, every page is read and compared
//! with the hash of what is stored; only differences are sent. The volume is thus never ahead of, nor
//! beside, a state that the database committed.
//!
//! Invariants: every commit is one committed state of the file; two backups of one volume cannot both
//! go on, because one loses its next LSN.

use graft::checkpoint::Policy;
use graft::fetch::fetch;
use graft::format::frame::PageHash;
use graft::publish::Prepared;
use graft::remote::Remote;
use graft::snapshot::{Location, Snapshot};
use graft::volume::{Options, Volume};
use graft::{ChainHash, CommitId, Lsn, PageIdx, PageSet, VolumeId, VolumeName, catalog};

use super::source::{Position, Source};
use super::{
    Ids, OnProgress, TORN_MAX, TransferError, checkpoint_if_due, collect, draft, import_source,
    publish_settled,
};
use crate::ledger::Ledger;

/// What a SQLite database begins with.
const MAGIC: &[u8] = b"SQLite format 3\0";

/// Commits between two looks at whether a checkpoint is due.
const SHIPS_BETWEEN_CHECKPOINTS: u64 = 64;

/// What is stored of each page, by its hash; `None` for one that reads as zeroes.
#[derive(Debug, Clone, Default)]
pub(crate) struct Hashes(Vec<Option<PageHash>>);

impl Hashes {
    pub(super) fn resize(&mut self, pages: u32) {
        self.0.resize(pages as usize, None);
    }

    /// Notes what page `idx` is now; whether it was another.
    pub(super) fn replace(&mut self, idx: PageIdx, page: &[u8]) -> bool {
        let zero = page.iter().all(|byte| *byte == 0);
        let hash = (!zero).then(|| PageHash::of(idx, page));
        match self.0.get_mut(idx.get() as usize - 1) {
            Some(slot) => std::mem::replace(slot, hash) != hash,
            None => true,
        }
    }

    /// Those of a snapshot, whose page table is read where it is not here.
    async fn of(remote: &dyn Remote, volume: &Volume, snapshot: &Snapshot) -> Result<Hashes, TransferError> {
        let mut all = PageSet::new();
        all.insert_range(1, snapshot.pages());
        graft::chunks::load(remote, volume, snapshot, &all).await?;
        let zero = vec![0; volume.page_size().bytes()];
        let hash = |idx: PageIdx| match snapshot.location(idx) {
            // A page that was stored as zeroes counts as one that never was.
            Location::Frame(_, slot) => Some(slot.hash).filter(|hash| *hash != PageHash::of(idx, &zero)),
            // There are no local commits here, and the table was read just now.
            Location::Zero | Location::Local(_) | Location::Unknown(_) => None,
        };
        Ok(Hashes((1..=snapshot.pages()).filter_map(PageIdx::new).map(hash).collect()))
    }
}

/// A commit made of a view.
#[derive(Debug)]
pub(crate) struct Shipped {
    pub(super) prepared: Prepared,
    pub(super) hashes: Hashes,
    pub(super) pages: u32,
    pub(super) position: Option<Position>,
}

/// One commit of a backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ship {
    /// The commit.
    pub lsn: Lsn,
    /// Its time, ms since 1970.
    pub time_ms: i64,
    /// Pages in the database.
    pub pages: u32,
    /// Pages sent.
    pub pages_written: u64,
    /// Whether every page was compared, not only those in new frames.
    pub whole: bool,
}

/// A backup of one file to one volume.
#[derive(Debug)]
pub struct Backup {
    source: Source,
    volume: VolumeId,
    head: (Lsn, ChainHash, i64),
    hashes: Hashes,
    pages: u32,
    position: Option<Position>,
}

impl Backup {
    /// Begins or goes on with the backup of `source` to the volume called `name`, which is made by an
    /// import where there is none. Answers that import's commit too.
    ///
    /// # Errors
    ///
    /// [`TransferError::NotABackup`]: the file has no WAL, or the volume is an application's, holds no database,
    /// or has other pages.
    pub async fn start(
        remote: &dyn Remote,
        source: Source,
        name: &VolumeName,
        ids: Ids<'_>,
        now_ms: i64,
        progress: OnProgress<'_>,
    ) -> Result<(Backup, Option<Ship>), TransferError> {
        let refused = |reason: String| TransferError::NotABackup { name: name.clone(), reason };
        if !source.has_wal() {
            return Err(refused(format!(
                "{} is not in WAL mode; run PRAGMA journal_mode=WAL on it once",
                source.path().display()
            )));
        }
        let volume = match catalog::resolve(remote, name).await {
            Ok(volume) => volume,
            Err(catalog::CatalogError::NoSuchVolume { .. }) => {
                let (imported, shipped) = import_source(remote, &source, name, ids, now_ms, progress).await?;
                let head = &shipped.prepared.head;
                let made = imported.lsn > Lsn::ZERO;
                let ship = made.then_some(Ship {
                    lsn: imported.lsn,
                    time_ms: head.time_ms,
                    pages: shipped.pages,
                    pages_written: head.set.len(),
                    whole: true,
                });
                let head =
                    if made { (head.lsn, head.hash, head.time_ms) } else { (Lsn::ZERO, ChainHash::ZERO, 0) };
                let Shipped { hashes, pages, position, .. } = shipped;
                let volume = imported.volume;
                return Ok((Backup { source, volume, head, hashes, pages, position }, ship));
            }
            Err(error) => return Err(error.into()),
        };
        let opened = Volume::open(remote, volume, Options::default()).await?;
        let theirs = opened.volume.page_size();
        if theirs != source.page_size() {
            let (theirs, ours) = (theirs.get(), source.page_size().get());
            return Err(refused(format!("its pages have {theirs} bytes, the file's {ours}")));
        }
        let ledger =
            Ledger::open(&opened.start, &opened.heads).map_err(|damaged| refused(damaged.to_string()))?;
        if ledger.mutations() > 0 || ledger.module().is_some() {
            return Err(refused("reducers write to it; give the backup a volume of its own".into()));
        }
        let base = opened.volume.base();
        if base.pages() > 0 {
            let first = PageSet::from_ranges([1..=1]);
            fetch(remote, &opened.volume, &base, &first).await?;
            let page = opened.volume.read(&base, PageIdx::FIRST);
            if !page.map_err(|error| refused(error.to_string()))?.starts_with(MAGIC) {
                return Err(refused(
                    "it holds no SQLite database; give the backup a volume of its own".into(),
                ));
            }
        }
        let head = (base.lsn(), base.hash(), base.time_ms());
        let hashes = Hashes::of(remote, &opened.volume, &base).await?;
        let backup = Backup { source, volume, head, hashes, pages: base.pages(), position: None };
        Ok((backup, None))
    }

    /// Whether the file may have been changed since the last [`ship`](Backup::ship). Reads 96 bytes.
    pub fn may_have_changed(&self) -> Result<bool, TransferError> {
        let newest = self.source.newest()?;
        Ok(newest.is_none() || newest != self.position.as_ref().map(|position| position.index))
    }

    /// The volume.
    pub fn volume(&self) -> VolumeId {
        self.volume
    }

    /// Makes one commit of the file's newest committed state; `None` where that is what the volume holds.
    ///
    /// # Errors
    ///
    /// After any error the backup must be started anew: what the volume holds is not certain.
    pub async fn ship(
        &mut self,
        remote: &dyn Remote,
        ids: Ids<'_>,
        now_ms: i64,
        progress: OnProgress<'_>,
    ) -> Result<Option<Ship>, TransferError> {
        for _ in 0..TORN_MAX {
            let known = self.position.as_ref().and_then(|position| position.frames.as_ref());
            let view = self.source.view(known)?;
            let changed = self.position.as_ref().and_then(|since| view.changed_since(since));
            let whole = changed.is_none();
            let changed = changed.unwrap_or_else(|| (1..=view.pages()).collect());
            // Page 1 holds the page count, so it changes with it.
            let resized = view.pages() != self.pages;
            let first = (resized && !changed.contains(&1)).then_some(1);
            let draft = draft(self.volume, Some(self.head), CommitId(ids()), now_ms);
            let mut hashes = self.hashes.clone();
            let changed = first.into_iter().chain(changed);
            let prepared = collect(remote, &view, changed, draft, &mut hashes, progress).await?;
            if view.is_torn()? {
                continue;
            }
            let (pages, position) = (view.pages(), view.position());
            drop(view);
            let ship = if prepared.head.set.is_empty() && !resized {
                None
            } else {
                let published = publish_settled(remote, &prepared).await?;
                self.head = (published.lsn, published.hash, prepared.head.time_ms);
                if published.lsn.0.is_multiple_of(SHIPS_BETWEEN_CHECKPOINTS) {
                    checkpoint_if_due(remote, self.volume, &Policy::default()).await;
                }
                Some(Ship {
                    lsn: published.lsn,
                    time_ms: prepared.head.time_ms,
                    pages,
                    pages_written: prepared.head.set.len(),
                    whole,
                })
            };
            (self.hashes, self.pages, self.position) = (hashes, pages, position);
            return Ok(ship);
        }
        Err(TransferError::Torn { file: self.source.path().into() })
    }
}
