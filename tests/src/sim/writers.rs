//! Writers beside the coordinators: SQL on a replica of their own, then a push, as `graft sql --write`.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;

use bytes::Bytes;
use graft::publish::{Draft, PublishError, prepare, publish};
use graft::store::Durability;
use graft::volume::{LocalCommit, Options, PushError, Pushed, Volume, push};
use graft::{CommitId, Lsn, PageIdx, VolumeId};
use parking_lot::Mutex;
use sqlsync_layer::payload::Payload;
use sqlsync_layer::vfs::Database;

use super::disks::{self, Crash, Disk};
use super::random::Random;
use super::store::{Handle, PageFetch};

/// Times that a lost write is run again, or an unknown one sent again.
const TRIES_MAX: u32 = 6;

/// What a writer remembers between runs: its disk, and what is on it and not pushed.
#[derive(Debug, Clone, Default)]
pub struct Desk(Arc<Mutex<Papers>>);

/// Tells a local commit from any other.
type Mark = u64;

#[derive(Debug, Default)]
struct Papers {
    disk: Option<Disk>,
    /// How its local commits go to the disk, as it believes.
    locals: Durability,
    /// A bug: they do not.
    lies: bool,
    /// The local commits made and not pushed, with what each ran.
    unpushed: Vec<(Mark, String)>,
    /// Every local commit ever made.
    made: BTreeMap<Mark, String>,
    /// What its disk went through since it was looked at.
    crashed: Option<Crash>,
    sealed: BTreeMap<CommitId, Vec<String>>,
    durable: BTreeMap<CommitId, Lsn>,
    last_sealed: Option<CommitId>,
    lost: Vec<CommitId>,
    violation: Option<String>,
}

fn mark(local: &LocalCommit) -> Mark {
    let mut hasher = DefaultHasher::new();
    (local.number, local.pages_after, &local.changes).hash(&mut hasher);
    hasher.finish()
}

impl Desk {
    /// A desk with or without a disk. Without one, what was not pushed is forgotten with the process.
    /// One that `lies` takes local commits for synced that are not: a plant.
    pub fn new(disk: Option<Disk>, locals: Durability, lies: bool) -> Desk {
        Desk(Arc::new(Mutex::new(Papers { disk, locals, lies, ..Papers::default() })))
    }

    /// The disk, if it has one.
    pub fn disk(&self) -> Option<Disk> {
        self.0.lock().disk.clone()
    }

    /// Its process or its machine dies.
    pub fn crash(&self, how: Crash) {
        let mut papers = self.0.lock();
        if let Some(disk) = &papers.disk {
            disk.crash(how);
            // The worst that happened since anybody looked.
            papers.crashed = match (papers.crashed, how) {
                (Some(Crash::Lost), _) | (_, Crash::Lost) => Some(Crash::Lost),
                (Some(Crash::PowerCut), _) | (_, Crash::PowerCut) => Some(Crash::PowerCut),
                (Some(Crash::Kept) | None, Crash::Kept) => Some(Crash::Kept),
            };
        }
    }

    /// What does not hold of it, if anything.
    pub fn violation(&self) -> Option<String> {
        self.0.lock().violation.clone()
    }

    /// The commits sealed since this was last asked, with what they ran; and those known to be durable.
    pub fn take(&self) -> (BTreeMap<CommitId, Vec<String>>, BTreeMap<CommitId, Lsn>) {
        let mut papers = self.0.lock();
        (std::mem::take(&mut papers.sealed), std::mem::take(&mut papers.durable))
    }

    /// The commits whose LSN went to another, as this writer was told.
    pub fn take_lost(&self) -> Vec<CommitId> {
        std::mem::take(&mut self.0.lock().lost)
    }

    fn options(&self) -> Options {
        let papers = self.0.lock();
        let locals = if papers.lies { Durability::Buffered } else { papers.locals };
        let store = papers.disk.as_ref().map(Disk::store);
        Options { store, locals: Some(locals), cache_bytes: 1 << 20, ..Options::default() }
    }

    /// What a replica holds when it is opened must be what was acknowledged.
    fn opened(&self, volume: &Volume) -> Result<(), String> {
        let mut papers = self.0.lock();
        let papers = &mut *papers;
        let crashed = papers.crashed.take();
        let locals = volume.locals();
        let present: Vec<Mark> = locals.iter().map(mark).collect();
        if papers.disk.is_none() || crashed == Some(Crash::Lost) {
            papers.unpushed.clear();
            papers.last_sealed = None;
        }
        let there = papers.unpushed.iter().take_while(|(mark, _)| present.contains(mark)).count();
        let gone: Vec<&String> = papers.unpushed[there..].iter().map(|(_, text)| text).collect();
        let may_vanish = crashed == Some(Crash::PowerCut) && papers.locals == Durability::Buffered;
        if !gone.is_empty() && !may_vanish {
            papers.violation =
                Some(format!("after {crashed:?} local commits that were on disk are gone: {gone:?}"));
        }
        if papers.unpushed[there..].iter().any(|(mark, _)| present.contains(mark)) {
            papers.violation = Some("a power cut took a local commit and left a later one".into());
        }
        let texts: Option<Vec<(Mark, String)>> =
            present.iter().map(|mark| Some((*mark, papers.made.get(mark)?.clone()))).collect();
        match texts {
            // A power cut brings back what was pushed or dropped: it is settled again.
            Some(texts) => papers.unpushed = texts,
            None => papers.violation = Some("the disk holds a local commit that nobody made".into()),
        }
        papers.violation.clone().map_or(Ok(()), Err)
    }

    /// Notes the local commits that `text` made: one at most.
    fn ran(&self, volume: &Volume, text: &str, failed: bool) {
        let mut papers = self.0.lock();
        let papers = &mut *papers;
        let new: Vec<Mark> = volume.locals().iter().map(mark).collect();
        let new = new.get(papers.unpushed.len()..).unwrap_or_default();
        if new.len() > usize::from(!failed) {
            papers.violation = Some(format!("{text} made {} local commits; failed: {failed}", new.len()));
        }
        for mark in new {
            papers.made.insert(*mark, text.into());
            papers.unpushed.push((*mark, text.into()));
        }
    }

    /// A full disk must say so.
    fn failed(&self, refused_before: u64, why: &str) {
        let mut papers = self.0.lock();
        let refused = papers.disk.as_ref().map_or(0, Disk::refused);
        // A page that could not be had is as good a reason.
        let says_why = why.contains(disks::FULL) || why.contains("volumes/");
        if refused > refused_before && !says_why {
            papers.violation = Some(format!("the disk is full, and the writer was told: {why}"));
        }
    }

    fn dropped(&self) {
        self.0.lock().unpushed.clear();
    }

    fn sealed(&self, id: CommitId) {
        let mut papers = self.0.lock();
        let unpushed = papers.unpushed.iter().map(|(_, text)| text.clone()).collect();
        papers.sealed.insert(id, unpushed);
        // `push` draws one more id when nothing is left to seal.
        papers.last_sealed.get_or_insert(id);
    }

    /// Its LSN went to another.
    fn lost(&self) {
        let mut papers = self.0.lock();
        let lost = papers.last_sealed.take();
        papers.lost.extend(lost);
    }

    fn durable(&self, lsn: Lsn) {
        let mut papers = self.0.lock();
        if let Some(id) = papers.last_sealed.take() {
            papers.durable.insert(id, lsn);
        }
        papers.unpushed.clear();
    }
}

/// One run: how it ended, for the history.
pub struct Run {
    /// The way to the store.
    pub remote: Handle,
    /// The volume.
    pub volume: VolumeId,
    /// What it remembers.
    pub desk: Desk,
    /// What it runs, one transaction each.
    pub texts: Vec<String>,
    /// Its chance, for commit ids.
    pub random: Random,
    /// Its clock.
    pub now_ms: i64,
    /// It commits on its disk and leaves the push to its next run.
    pub later: bool,
    /// A plant: a lost commit is sent again under the next LSN as it is.
    pub blind: bool,
}

impl Run {
    /// Opens the volume, runs the SQL and pushes. Answers what became of it.
    pub async fn run(mut self) -> String {
        match self.try_run().await {
            Ok(lsn) => format!("durable at lsn {lsn}"),
            Err(why) => why,
        }
    }

    async fn try_run(&mut self) -> Result<Lsn, String> {
        let options = self.desk.options();
        let opened = Volume::open(&self.remote, self.volume, options).await.map_err(|e| e.to_string())?;
        self.desk.opened(&opened.volume)?;
        let database = Database::new(Arc::new(opened.volume), Arc::new(PageFetch(self.remote.clone())));
        let volume = database.volume().clone();
        if volume.status().ahead > 0 {
            // Left over from a run that crashed or gave up.
            if self.push(&volume).await?.is_none() {
                self.start_over(&volume).await?;
            }
            self.catch_up(&volume).await?;
        }
        for _ in 0..TRIES_MAX {
            let (connection, control) = database.connect().map_err(|e| e.to_string())?;
            for text in &self.texts {
                let refused = self.desk.disk().map_or(0, |disk| disk.refused());
                let ran = connection.execute_batch(text);
                self.desk.ran(&volume, text, ran.is_err());
                if let Err(error) = ran {
                    let why =
                        control.take_failure().map_or_else(|| error.to_string(), |failure| failure.message);
                    self.desk.failed(refused, &why);
                    // Where that fails too, the next run goes on with what is on the disk.
                    volume.reset().map_err(|e| format!("{e}, after: {why}"))?;
                    self.desk.dropped();
                    return Err(why);
                }
            }
            drop(connection);
            if volume.status().ahead == 0 {
                return Err("it changed nothing".into());
            }
            if self.later && self.desk.disk().is_some() {
                return Err("left for the next run".into());
            }
            let stale = volume.locals();
            match self.push(&volume).await? {
                Some(lsn) => return Ok(lsn),
                None => self.start_over(&volume).await?,
            }
            if self.blind {
                return self.merge_blindly(&volume, &stale).await;
            }
        }
        Err("lost every try".into())
    }

    /// Pushes everything local. `None` where it lost its LSN.
    async fn push(&mut self, volume: &Volume) -> Result<Option<Lsn>, String> {
        for tries in 1..=TRIES_MAX {
            let (desk, random) = (self.desk.clone(), &mut self.random);
            let id = || {
                let id = CommitId(random.bytes16());
                desk.sealed(id);
                id
            };
            self.desk.0.lock().last_sealed = volume.pending().map(|prepared| prepared.head.id);
            let pushed = push(&self.remote, volume, Payload::of_locals, id, self.now_ms).await;
            match pushed {
                Ok(Pushed::Durable(lsn)) => {
                    self.desk.durable(lsn);
                    return Ok(Some(lsn));
                }
                Ok(Pushed::Nothing) => return Err("nothing to push".into()),
                // Nobody can say any more whether it is in the log.
                Err(PushError::Publish(PublishError::Forgotten { .. })) => return Ok(None),
                Err(PushError::Publish(PublishError::Rejected { .. })) => {
                    self.desk.lost();
                    return Ok(None);
                }
                Err(error) if tries == TRIES_MAX => return Err(format!("gave up: {error}")),
                Err(_) => self.remote.sleep(50 << tries).await,
            }
        }
        Err("gave up".into())
    }

    async fn start_over(&mut self, volume: &Volume) -> Result<(), String> {
        volume.reset().map_err(|e| e.to_string())?;
        self.desk.dropped();
        self.catch_up(volume).await
    }

    async fn catch_up(&mut self, volume: &Volume) -> Result<(), String> {
        let pulled = volume.pull(&self.remote).await.map_err(|e| e.to_string())?;
        volume.absorb(pulled).map(drop).map_err(|e| e.to_string())
    }

    /// The plant: the stale pages on top of what others committed.
    async fn merge_blindly(&mut self, volume: &Volume, stale: &[LocalCommit]) -> Result<Lsn, String> {
        let (lsn, parent) = volume.head();
        let mut changes: BTreeMap<PageIdx, Bytes> = BTreeMap::new();
        for local in stale {
            changes.extend(local.changes.iter().map(|(page, bytes)| (*page, bytes.clone())));
        }
        let pages = volume.base().pages().max(stale.last().map_or(0, |local| local.pages_after));
        let id = CommitId(self.random.bytes16());
        self.desk.0.lock().sealed.insert(id, self.texts.clone());
        self.desk.0.lock().last_sealed = Some(id);
        let draft = Draft {
            volume: self.volume,
            lsn: lsn.next(),
            id,
            parent,
            parent_time_ms: self.now_ms,
            now_ms: self.now_ms,
            pages,
            payload: Payload::of_locals(stale),
            locals: 0,
            checkpoint: Lsn::ZERO,
        };
        let changes: Vec<(PageIdx, Bytes)> = changes.into_iter().collect();
        let published = publish(&self.remote, &prepare(draft, &changes)).await.map_err(|e| e.to_string())?;
        Ok(published.lsn)
    }
}
