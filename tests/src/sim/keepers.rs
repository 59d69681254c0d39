//! Who keeps house: collectors of garbage, compactors, checkpointers, and people who fork the volume and
//! work in the forks. Each job is one future over a store that fails and at which they stall.

use std::collections::BTreeMap;
use std::sync::Arc;

use graft::catalog::{self, CatalogError};
use graft::checkpoint;
use graft::compact::{self, CompactError, Scope};
use graft::fetch::{FetchError, fetch};
use graft::fork::{self, ForkError};
use graft::gc::{self, Retention};
use graft::reader::{Lease, Standing};
use graft::remote::{Remote as _, RemoteError};
use graft::time::At;
use graft::verify;
use graft::volume::{Opened, Options, Pushed, Volume, push};
use graft::{CommitId, LeaseId, Lsn, PageIdx, PageSet, VolumeId, VolumeName, key};
use parking_lot::Mutex;
use sqlsync_layer::layout::SqliteLayout;
use sqlsync_layer::ledger::Ledger;
use sqlsync_layer::payload::Payload;
use sqlsync_layer::vfs::Database;

use super::plant::Plant;
use super::random::Random;
use super::store::{Handle, PageFetch};

/// Times that a publication or a push is tried.
const TRIES_MAX: u32 = 4;
/// Forks that one world may have.
const FORKS_MAX: usize = 6;

/// What somebody does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trade {
    /// Collects garbage, or says what would go.
    Collector,
    /// Rewrites pages into dense segments.
    Compactor,
    /// Writes checkpoints beside the coordinators'.
    Checkpointer,
    /// Forks the volume or a fork of it, and works in the forks.
    Forker,
    /// Verifies a volume while everybody works in it.
    Verifier,
    /// Removes forks, whoever is in them.
    Remover,
    /// Reads an old state for long, under a lease.
    Reader,
}

impl Trade {
    /// All of them.
    pub const ALL: [Trade; 7] = [
        Trade::Collector,
        Trade::Compactor,
        Trade::Checkpointer,
        Trade::Forker,
        Trade::Verifier,
        Trade::Remover,
        Trade::Reader,
    ];
}

/// What forkers know, and the oracle compares with the store.
#[derive(Debug, Default, Clone)]
pub struct Family {
    /// Forks that were acknowledged.
    pub forks: Vec<VolumeId>,
    /// The name of each fork ever made, and the volume whose own log it goes back to.
    pub names: BTreeMap<VolumeId, (VolumeName, Option<VolumeId>)>,
    /// Forks that are being removed, or whose removal did not end.
    pub leaving: Vec<VolumeId>,
    /// Forks that were removed.
    pub removed: Vec<VolumeId>,
    /// How many removals were begun or gone on with; each has its number as its own.
    pub removals: u64,
    /// What a keeper saw that can never be.
    pub violation: Option<String>,
    /// Those whose making ended in an error: they may exist.
    pub doubtful: Vec<(VolumeId, VolumeName)>,
    /// What each commit to a fork wrote, whether it won or not.
    pub notes: BTreeMap<CommitId, Vec<String>>,
    /// Commits to forks that were acknowledged.
    pub durable: Vec<(VolumeId, Lsn, CommitId)>,
    /// How many jobs of each kind ended well.
    pub done: BTreeMap<&'static str, u64>,
}

impl Family {
    /// A number for one removal alone.
    pub fn next_removal(&mut self) -> u64 {
        self.removals += 1;
        self.removals
    }
}

/// The family, shared by its members.
pub type SharedFamily = Arc<Mutex<Family>>;

/// One job.
#[derive(Debug)]
pub struct Job {
    /// What is to be done.
    pub trade: Trade,
    /// The way to the store.
    pub remote: Handle,
    /// The volume that everything comes from.
    pub volume: VolumeId,
    /// Who was forked and what was written there.
    pub family: SharedFamily,
    /// Its chance.
    pub random: Random,
    /// Its clock, ms since 1970.
    pub now_ms: i64,
    /// Its collections keep nothing, and wait for nobody.
    pub keeps_nothing: bool,
    /// A bug.
    pub plant: Option<Plant>,
}

fn text(error: impl ToString) -> String {
    error.to_string()
}

/// What a collector of these worlds keeps: little.
fn retention(random: &mut Random) -> Retention {
    Retention {
        keep_ms: [0, 500, 2_000, 8_000][random.index(4)],
        keep_commits: [0, 3, 20][random.index(3)],
        grace_ms: [200, 1_000, 4_000][random.index(3)],
    }
}

impl Job {
    /// Does it. Answers what became of it.
    pub async fn run(mut self) -> String {
        let ended = match self.trade {
            Trade::Collector => self.collect().await,
            Trade::Compactor => self.compact().await,
            Trade::Checkpointer => self.checkpoint().await,
            Trade::Forker if self.random.chance(0.4) => self.fork().await,
            Trade::Forker => self.work_in_a_fork().await,
            Trade::Verifier => self.verify().await,
            Trade::Remover => self.remove().await,
            Trade::Reader => self.read().await,
        };
        ended.unwrap_or_else(|why| format!("failed: {why}"))
    }

    fn done(&self, what: &'static str) {
        *self.family.lock().done.entry(what).or_default() += 1;
    }

    /// The volume or, less often, a fork of it.
    fn some_volume(&mut self) -> VolumeId {
        let family = self.family.lock();
        if family.forks.is_empty() || self.random.chance(0.7) {
            return self.volume;
        }
        family.forks[self.random.index(family.forks.len())]
    }

    async fn open(&self, volume: VolumeId) -> Result<(Opened, Ledger), String> {
        let options = Options { store: None, locals: None, cache_bytes: 1 << 20, ..Options::default() };
        let opened = Volume::open(&self.remote, volume, options).await.map_err(text)?;
        let ledger = Ledger::open(&opened.start, &opened.heads).map_err(text)?;
        Ok((opened, ledger))
    }

    async fn collect(&mut self) -> Result<String, String> {
        let (volume, mut retention) = (self.some_volume(), retention(&mut self.random));
        if self.keeps_nothing {
            retention = Retention { keep_ms: 0, keep_commits: 0, grace_ms: 200 };
        }
        if self.plant == Some(Plant::SweepsUploads) {
            let forks = self.family.lock().forks.clone();
            for _ in 0..10 {
                for volume in std::iter::once(self.volume).chain(forks.iter().copied()) {
                    self.sweep_uploads(volume).await?;
                }
            }
        }
        if self.random.chance(0.1) {
            let plan = gc::plan(&self.remote, volume, retention, self.now_ms).await.map_err(text)?;
            return Ok(format!("would delete {} objects of {volume}", plan.doomed.len()));
        }
        let plan = gc::collect(&self.remote, volume, retention, self.now_ms, &|_, _| {}).await;
        let plan = plan.map_err(text)?;
        self.done("collections");
        let (doomed, floor) = (plan.doomed.len(), plan.sweep.lsn);
        *self.family.lock().done.entry("deleted").or_default() += doomed as u64;
        Ok(format!("deleted {doomed} objects of {volume} below lsn {floor}; epoch ended: {}", plan.end_epoch))
    }

    /// The plant: what is not named is taken for garbage, whoever may be about to name it.
    async fn sweep_uploads(&self, volume: VolumeId) -> Result<(), String> {
        let log = self.remote.list(&key::log_prefix(volume), None, 1).await.map_err(text)?;
        let newest = log.first().and_then(|row| Lsn::from_key_part(row.key.rsplit('/').next()?));
        let segments = self.remote.list(&key::segments_prefix(volume), None, 1000).await.map_err(text)?;
        for row in segments {
            let name = row.key.rsplit('/').next().and_then(|name| name.split('-').next());
            if name.and_then(Lsn::from_key_part) > newest {
                self.remote.delete(&row.key).await.map_err(text)?;
            }
        }
        Ok(())
    }

    async fn compact(&mut self) -> Result<String, String> {
        let volume = self.some_volume();
        let (opened, mut ledger) = self.open(volume).await?;
        let scope = if self.random.chance(0.3) { Scope::All } else { Scope::Sparse };
        let id = CommitId(self.random.bytes16());
        let mut moved = compact::gather(&self.remote, &opened.volume, &SqliteLayout, scope, id, &|_, _| {})
            .await
            .map_err(text)?;
        if moved.pages() == 0 {
            return Ok(format!("{volume} lies well"));
        }
        if self.random.chance(0.5) {
            // It stands still for longer than any collector waits.
            self.remote.sleep(self.random.between(100, 20_000)).await;
        }
        for tries in 1..=TRIES_MAX {
            let replica = &opened.volume;
            if self.plant == Some(Plant::OtherEpoch) {
                moved = moved.in_the_epoch_of(replica);
            }
            match compact::publish(&self.remote, replica, &replica.base(), &moved, ledger.encode()).await {
                Ok(checkpoint::Written::Lost { .. }) | Err(CompactError::Checkpoint(_)) => {}
                Ok(written) => {
                    self.done("compactions");
                    return Ok(format!("moved {} pages of {volume}: {written:?}", moved.pages()));
                }
                Err(CompactError::Abandoned) => {
                    self.done("abandoned");
                    return Ok(format!("a compaction of {volume} took too long"));
                }
                Err(error) if tries == TRIES_MAX => return Err(text(error)),
                Err(_) => self.remote.sleep(100).await,
            }
            let pulled = replica.pull(&self.remote).await.map_err(text)?;
            if let Some(start) = &pulled.jump {
                ledger = Ledger::open(start, &[]).map_err(text)?;
            }
            ledger.follow(&pulled.heads).map_err(text)?;
            replica.absorb(pulled).map_err(text)?;
        }
        Err("others were faster every time".into())
    }

    async fn checkpoint(&mut self) -> Result<String, String> {
        let volume = self.some_volume();
        let (opened, mut ledger) = self.open(volume).await?;
        let snapshot = opened.volume.base();
        if self.random.chance(0.5) {
            self.remote.sleep(self.random.between(100, 20_000)).await;
        }
        if self.plant == Some(Plant::StateOfTheTip) {
            ledger = self.open(volume).await?.1;
        }
        let state = ledger.encode();
        let written =
            checkpoint::write(&self.remote, &opened.volume, &snapshot, state).await.map_err(text)?;
        if let checkpoint::Written::Stored { .. } = written {
            self.done("checkpoints");
        }
        Ok(format!("checkpoint of {volume}: {written:?}"))
    }

    async fn fork(&mut self) -> Result<String, String> {
        if self.family.lock().forks.len() >= FORKS_MAX {
            return self.work_in_a_fork().await;
        }
        let parent = self.some_volume();
        let at = match self.random.below(4) {
            0 => {
                let newest = graft::history::newest_lsn(&self.remote, parent).await.map_err(text)?;
                At::Lsn(Lsn(newest.0.saturating_sub(self.random.below(8))))
            }
            1 => At::TimeMs(self.now_ms - self.random.below(4_000) as i64),
            _ => At::Newest,
        };
        let name: VolumeName = format!("fork-{}", VolumeId(self.random.bytes16())).parse().map_err(text)?;
        let mut tried: Vec<VolumeId> = Vec::new();
        let mut last = String::new();
        for _ in 0..TRIES_MAX {
            // Fresh for each try, as `fork::create` asks for.
            let child = VolumeId(self.random.bytes16());
            tried.push(child);
            match fork::create(&self.remote, parent, at, child, &name).await {
                Ok(found) => return self.forked(child, Some(found.origin), &name),
                // An earlier try of ours was heard at last.
                Err(ForkError::Catalog(CatalogError::Exists { found, .. })) if tried.contains(&found) => {
                    return self.forked(found, None, &name);
                }
                Err(error @ (ForkError::Expired { .. } | ForkError::At(_))) => {
                    self.done("forks refused");
                    last = text(error);
                    break;
                }
                Err(error) => last = text(error),
            }
            self.remote.sleep(self.random.between(10, 3_000)).await;
        }
        self.family.lock().doubtful.extend(tried.into_iter().map(|child| (child, name.clone())));
        Err(format!("no fork of {parent}: {last}"))
    }

    /// `origin` is the volume whose own log it goes back to, where that is known.
    fn forked(&self, child: VolumeId, origin: Option<VolumeId>, name: &VolumeName) -> Result<String, String> {
        let mut family = self.family.lock();
        family.forks.push(child);
        family.names.insert(child, (name.clone(), origin));
        drop(family);
        self.done("forks");
        Ok(format!("{child} is a fork of {origin:?}"))
    }

    /// Reads everything and finds nothing wrong, whatever goes on meanwhile.
    async fn verify(&mut self) -> Result<String, String> {
        let volume = self.some_volume();
        let report = verify::verify(&self.remote, volume, &|_| {}).await.map_err(text)?;
        let mut family = self.family.lock();
        if let Some(finding) = report.findings.first()
            && (volume == self.volume || family.forks.contains(&volume))
        {
            let what = format!("{volume} at lsn {}: {}: {}", report.lsn, finding.key, finding.what);
            family.violation.get_or_insert(format!("a false alarm in {what}"));
            return Err(what);
        }
        *family.done.entry("verified").or_default() += 1;
        Ok(format!("verified {volume} from lsn {} to {}: {} pages", report.from, report.lsn, report.pages))
    }

    /// Stays on an old state for long. Under a lease every page of it can be read, whatever is collected.
    async fn read(&mut self) -> Result<String, String> {
        let volume = self.some_volume();
        let newest = graft::history::newest_lsn(&self.remote, volume).await.map_err(text)?;
        let at = At::Lsn(Lsn(newest.0.saturating_sub(self.random.below(12)).max(1)));
        let id = LeaseId(self.random.bytes16());
        let started = self.remote.now_ms();
        // A cache of one page: every look reads everything.
        let opened = Volume::open_at(&self.remote, volume, at, 1).await.map_err(text)?;
        let (snapshot, replica) = (opened.volume.base(), opened.volume);
        let now_ms = |remote: &Handle| self.now_ms + (remote.now_ms() - started) as i64;
        let mut lease = Lease::take(&self.remote, &snapshot, id, now_ms(&self.remote)).await.map_err(text)?;
        let all: PageSet = (1..=snapshot.pages()).filter_map(PageIdx::new).collect();
        let looks = self.random.between(2, 6);
        for look in 1..=looks {
            self.remote.sleep(self.random.between(200, 12_000)).await;
            if self.random.chance(0.3) && lease.renew(&self.remote, now_ms(&self.remote)).await.is_err() {
                // It holds until its term is over.
                self.done("renewals that failed");
            }
            let read = fetch(&self.remote, &replica, &snapshot, &all).await;
            let held =
                matches!(lease.standing(now_ms(&self.remote)), Standing::Held { .. } | Standing::Due { .. });
            let passing =
                |error: &FetchError| matches!(error, FetchError::Remote(RemoteError::Unavailable { .. }));
            let failed = read.err().map(|error| (passing(&error), text(error)));
            match failed {
                Some((false, why)) if held && self.is_kept(volume) => {
                    let what = format!("{volume} at lsn {}, under a lease: {why}", snapshot.lsn());
                    self.family.lock().violation.get_or_insert(what.clone());
                    return Err(what);
                }
                Some((_, why)) => return Err(format!("look {look} at {volume}: {why}")),
                None => self.done("reads under leases"),
            }
        }
        if self.random.chance(0.8) {
            lease.release(&self.remote).await.map_err(text)?;
        }
        Ok(format!("read lsn {} of {volume} {looks} times", snapshot.lsn()))
    }

    /// Whether nobody removes a volume.
    fn is_kept(&self, volume: VolumeId) -> bool {
        volume == self.volume || self.family.lock().forks.contains(&volume)
    }

    /// Removes a fork, or goes on where a removal has failed.
    async fn remove(&mut self) -> Result<String, String> {
        let (volume, name, again) = {
            let mut family = self.family.lock();
            let again = !family.leaving.is_empty() && self.random.chance(0.7);
            let from: Vec<VolumeId> = if again { &family.leaving } else { &family.forks }.clone();
            // Documents keep their branches.
            let from: Vec<VolumeId> =
                from.into_iter().filter(|fork| family.names.contains_key(fork)).collect();
            if from.is_empty() {
                return Ok("there is nothing to remove".into());
            }
            let volume = from[self.random.index(from.len())];
            let name = family.names[&volume].0.clone();
            if !again {
                family.forks.retain(|fork| *fork != volume);
                family.leaving.push(volume);
            }
            (volume, name, again)
        };
        let children = self.children(volume);
        let own = self.family.lock().next_removal();
        let ended = if again {
            catalog::finish_removal(&self.remote, &name, volume, own).await
        } else {
            catalog::remove(&self.remote, &name, own).await
        };
        let still = self.children(volume);
        let mut family = self.family.lock();
        match ended {
            Ok(objects) => {
                if let Some(child) = children.iter().find(|child| still.contains(child)) {
                    family.violation = Some(format!("{volume} was removed, and {child} reads through it"));
                }
                family.leaving.retain(|other| *other != volume);
                family.removed.push(volume);
                *family.done.entry("removed").or_default() += 1;
                Ok(format!("removed {volume}: {objects} objects"))
            }
            Err(error @ CatalogError::HasForks { .. }) if !again => {
                family.leaving.retain(|other| *other != volume);
                family.forks.push(volume);
                Ok(format!("{volume} stays: {error}"))
            }
            Err(error) => Err(format!("{volume} is not removed: {error}")),
        }
    }

    /// The forks of a volume that nobody removes.
    fn children(&self, volume: VolumeId) -> Vec<VolumeId> {
        let family = self.family.lock();
        let is_child =
            |fork: &&VolumeId| family.names.get(fork).is_some_and(|(_, parent)| *parent == Some(volume));
        family.forks.iter().filter(is_child).copied().collect()
    }

    async fn work_in_a_fork(&mut self) -> Result<String, String> {
        let child = {
            let family = self.family.lock();
            if family.forks.is_empty() {
                return Ok("there is no fork yet".into());
            }
            family.forks[self.random.index(family.forks.len())]
        };
        let (opened, _) = self.open(child).await?;
        let database = Database::new(Arc::new(opened.volume), Arc::new(PageFetch(self.remote.clone())));
        let note = format!("{:016x}", self.random.draw());
        // Some are too large for a log entry.
        let words = if self.random.chance(0.4) { 40_000 } else { 0 };
        let mut bytes = self.random.fork();
        let noise: String = (0..words).map(|_| format!("{:016x}", bytes.draw())).collect();
        let lsn = write_note(&database, &note, &noise)?;
        let (volume, fresh) = (database.volume().clone(), CommitId(self.random.bytes16()));
        self.family.lock().notes.insert(fresh, vec![note]);
        for _ in 0..TRIES_MAX {
            let pushed = push(&self.remote, &volume, Payload::of_locals, || fresh, self.now_ms).await;
            match pushed {
                Ok(Pushed::Durable(lsn)) => {
                    let mut family = self.family.lock();
                    family.durable.push((child, lsn, fresh));
                    *family.done.entry("commits in forks").or_default() += 1;
                    return Ok(format!("lsn {lsn} of the fork {child}"));
                }
                Ok(Pushed::Nothing) => return Err("nothing to push".into()),
                Err(graft::volume::PushError::Publish(graft::publish::PublishError::Rejected { .. })) => {
                    return Ok(format!("lost lsn {} of {child}", lsn.next()));
                }
                Err(_) => self.remote.sleep(self.random.between(10, 3_000)).await,
            }
        }
        Err(format!("gave up a write to {child}"))
    }
}

/// Writes one note and dirties pages that the fork has from its parent. Answers what it was written on.
pub fn write_note(database: &Arc<Database>, note: &str, noise: &str) -> Result<Lsn, String> {
    let lsn = database.volume().base().lsn();
    let (connection, control) = database.connect().map_err(text)?;
    let sql = format!(
        "begin; create table if not exists heirs(id integer primary key, what text); \
         insert into heirs(what) values('{noise}'); insert into heirs(what) values('{note}'); commit; \
         delete from heirs where length(what) <> 16;"
    );
    let failed = |error: rusqlite::Error| {
        control.take_failure().map_or_else(|| error.to_string(), |failure| failure.message)
    };
    connection.execute_batch(&sql).map_err(failed)?;
    let tables = "select count(*) from sqlite_schema where name = 'accounts'";
    let accounts: i64 = connection.query_row(tables, [], |row| row.get(0)).map_err(failed)?;
    if accounts > 0 {
        connection.execute_batch("update accounts set balance = balance;").map_err(failed)?;
    }
    Ok(lsn)
}
