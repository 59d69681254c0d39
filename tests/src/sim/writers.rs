//! Writers beside the coordinators: SQL on a replica of their own, then a push, as `graft sql --write`.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use graft::publish::{Draft, PublishError, prepare, publish};
use graft::store::SharedStore;
use graft::volume::{LocalCommit, Options, PushError, Pushed, Volume, push};
use graft::{CommitId, Lsn, PageIdx, VolumeId};
use parking_lot::Mutex;
use sqlsync_layer::payload::Payload;
use sqlsync_layer::vfs::Database;

use super::random::Random;
use super::store::{Handle, PageFetch};

/// Times that a lost write is run again, or an unknown one sent again.
const TRIES_MAX: u32 = 6;

/// What a writer remembers between runs: its disk, and what is on it and not pushed.
#[derive(Debug, Clone, Default)]
pub struct Desk(Arc<Mutex<Papers>>);

#[derive(Debug, Default)]
struct Papers {
    disk: Option<SharedStore>,
    unpushed: Vec<String>,
    sealed: BTreeMap<CommitId, Vec<String>>,
    durable: BTreeMap<CommitId, Lsn>,
    last_sealed: Option<CommitId>,
}

impl Desk {
    /// A desk with or without a disk. Without one, what was not pushed is forgotten with the process.
    pub fn new(disk: bool) -> Desk {
        let desk = Desk::default();
        if disk {
            desk.0.lock().disk = Some(Arc::new(graft::store::memory::MemoryStore::default()));
        }
        desk
    }

    /// The commits sealed since this was last asked, with what they ran; and those known to be durable.
    pub fn take(&self) -> (BTreeMap<CommitId, Vec<String>>, BTreeMap<CommitId, Lsn>) {
        let mut papers = self.0.lock();
        (std::mem::take(&mut papers.sealed), std::mem::take(&mut papers.durable))
    }

    fn sealed(&self, id: CommitId) {
        let mut papers = self.0.lock();
        let unpushed = papers.unpushed.clone();
        papers.sealed.insert(id, unpushed);
        // `push` draws one more id when nothing is left to seal.
        papers.last_sealed.get_or_insert(id);
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
    /// What it runs.
    pub sql: String,
    /// Its chance, for commit ids.
    pub random: Random,
    /// Its clock.
    pub now_ms: i64,
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
        let disk = self.desk.0.lock().disk.clone();
        if disk.is_none() {
            self.desk.0.lock().unpushed.clear();
        }
        let options = Options { store: disk, cache_bytes: 1 << 20, ..Options::default() };
        let opened = Volume::open(&self.remote, self.volume, options).await.map_err(|e| e.to_string())?;
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
            if let Err(error) = connection.execute_batch(&self.sql) {
                let why = control.take_failure().map_or_else(|| error.to_string(), |failure| failure.message);
                volume.reset().map_err(|e| e.to_string())?;
                return Err(why);
            }
            drop(connection);
            if volume.status().ahead == 0 {
                return Err("it changed nothing".into());
            }
            self.desk.0.lock().unpushed.push(self.sql.clone());
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
                Err(PushError::Publish(PublishError::Rejected { .. })) => return Ok(None),
                Err(error) if tries == TRIES_MAX => return Err(format!("gave up: {error}")),
                Err(_) => self.remote.sleep(50 << tries).await,
            }
        }
        Err("gave up".into())
    }

    async fn start_over(&mut self, volume: &Volume) -> Result<(), String> {
        volume.reset().map_err(|e| e.to_string())?;
        self.desk.0.lock().unpushed.clear();
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
        self.desk.0.lock().unpushed.push(self.sql.clone());
        let id = CommitId(self.random.bytes16());
        self.desk.sealed(id);
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
