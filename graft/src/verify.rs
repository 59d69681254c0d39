//! Verification: reads everything that a volume's readable states are made of and says what is wrong.
//!
//! From the oldest readable checkpoint on: every commit's head is decoded, hashed and linked to its
//! predecessor's; the page table that the commits build is compared with the one that each checkpoint
//! stored; every frame that the newest state names is read and every page checked against its hash; and
//! every object that lies under the volume is accounted for.
//!
//! Costs one LIST for each thousand objects, one prefix read for each commit and checkpoint, and reads
//! every byte of the newest state once. Nothing is changed.
//!
//! Others may write, compact and collect meanwhile. What a collection takes looks like damage to who
//! reads it, so findings count only where the floor stood still; else everything is read again.
//!
//! A *finding* names the object. What is only garbage (an upload that was never named) is an orphan, not
//! a finding: `graft volume gc` takes it.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use futures::StreamExt as _;

use crate::chunks;
use crate::fetch::FetchError;
use crate::format::chunk::FrameRef;
use crate::format::frame;
use crate::format::pin::Pin;
use crate::format::tombstone::TOMBSTONE_BYTES;
use crate::gc::{self, Floor, GcError, list_all};
use crate::history::{Start, read_checkpoint};
use crate::ids::{Lsn, PageIdx, Seq, VolumeId, key};
use crate::page_set::PageSet;
use crate::pull::{PullError, read_head};
use crate::remote::{Listed, Remote, RemoteError};
use crate::snapshot::{Location, Snapshot};
use crate::volume::{OpenError, Options, Volume};

/// Frames read at the same time.
const CONCURRENT: usize = 16;

/// Something that is wrong with an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The object's key.
    pub key: String,
    /// What is wrong with it.
    pub what: String,
}

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// What is wrong.
    pub findings: Vec<Finding>,
    /// The newest commit.
    pub lsn: Lsn,
    /// The oldest state that was verified.
    pub from: Lsn,
    /// Commits whose hash and place in the chain were checked.
    pub commits: u64,
    /// Checkpoints whose page table was compared with the log.
    pub checkpoints: u64,
    /// Frames that were read.
    pub frames: u64,
    /// Pages whose hash was checked.
    pub pages: u64,
    /// Bytes of frames.
    pub bytes: u64,
    /// Objects that nothing names: garbage, or uploads that are still under way.
    pub orphans: Vec<String>,
}

impl Report {
    /// Whether nothing is wrong.
    pub fn is_sound(&self) -> bool {
        self.findings.is_empty()
    }
}

/// Why verification could not go on. It says nothing about the volume.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum VerifyError {
    /// The store failed; safe to try again.
    #[error(transparent)]
    Remote(#[from] RemoteError),
    /// The volume could not be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// Garbage collection took away what was being read, every time.
    #[error("garbage collection of volume {volume} went on all the while; verify it when that is done")]
    Collected {
        /// Which volume.
        volume: VolumeId,
    },
}

/// How often verification begins anew because garbage was collected meanwhile.
const ATTEMPTS_MAX: u32 = 8;

/// A step that is done, of how many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Commits of the log.
    Commits(u64, u64),
    /// Frames of the newest state.
    Frames(u64, u64),
}

/// Verifies `volume`. `progress` hears what is done; it begins anew where garbage was collected
/// meanwhile and something looks wrong.
pub async fn verify(
    remote: &dyn Remote,
    volume: VolumeId,
    progress: &(dyn Fn(Step) + Send + Sync),
) -> Result<Report, VerifyError> {
    for _ in 0..ATTEMPTS_MAX {
        let before = floor(remote, volume).await?;
        let report = attempt(remote, volume, progress).await?;
        // Where others overtook us there is nothing between the oldest state and the one that we know.
        let whole = report.from <= report.lsn;
        if whole && (report.is_sound() || floor(remote, volume).await? == before) {
            return Ok(report);
        }
    }
    Err(VerifyError::Collected { volume })
}

/// The floor, where it can be read: damage there is found on the way.
async fn floor(remote: &dyn Remote, volume: VolumeId) -> Result<Option<Floor>, VerifyError> {
    match gc::published(remote, volume).await {
        Ok(floor) => Ok(Some(floor)),
        Err(PullError::Remote(error)) => Err(error.into()),
        Err(PullError::Damaged(_) | PullError::Diverged { .. } | PullError::Expired { .. }) => Ok(None),
    }
}

async fn attempt(
    remote: &dyn Remote,
    volume: VolumeId,
    progress: &(dyn Fn(Step) + Send + Sync),
) -> Result<Report, VerifyError> {
    let mut report = Report::default();
    let options = Options { store: None, locals: None, ..Options::default() };
    let replica = match Volume::open(remote, volume, options).await {
        Ok(opened) => opened.volume,
        Err(error) => match damage_in(&error) {
            Some(finding) => {
                report.findings.push(finding);
                return Ok(report);
            }
            None => return Err(error.into()),
        },
    };
    let newest = replica.base();
    report.lsn = newest.lsn();
    history(remote, volume, &replica, &mut report, progress).await?;
    content(remote, &replica, &newest, &mut report, progress).await?;
    orphans(remote, volume, &mut report).await?;
    // An object that is gone is missed by each of its frames.
    let mut told = HashSet::new();
    report.findings.retain(|finding| told.insert((finding.key.clone(), finding.what.clone())));
    Ok(report)
}

fn damage_in(error: &OpenError) -> Option<Finding> {
    match error {
        OpenError::Pull(PullError::Damaged(damaged)) => {
            Some(Finding { key: damaged.key.clone(), what: damaged.reason.clone() })
        }
        OpenError::Pull(PullError::Diverged { volume, lsn }) => Some(Finding {
            key: key::log(*volume, *lsn),
            what: "it does not name its predecessor's hash".into(),
        }),
        _ => None,
    }
}

impl Report {
    fn finding(&mut self, key: impl Into<String>, what: impl ToString) {
        self.findings.push(Finding { key: key.into(), what: what.to_string() });
    }

    /// Notes damage; passes on what is only a store that failed.
    fn note(&mut self, error: PullError) -> Result<(), VerifyError> {
        match error {
            PullError::Damaged(damaged) => self.finding(damaged.key, damaged.reason),
            PullError::Remote(error @ RemoteError::NotFound { .. }) => {
                self.finding(error.key(), "it does not exist");
            }
            PullError::Remote(error) => return Err(error.into()),
            PullError::Diverged { volume, lsn } => {
                self.finding(key::log(volume, lsn), "it does not name its predecessor's hash");
            }
            PullError::Expired { volume, lsn } => {
                self.finding(key::log(volume, lsn), "it was collected, and a newer state needs it");
            }
        }
        Ok(())
    }

    fn fetch_failed(&mut self, key: &str, error: FetchError) -> Result<(), VerifyError> {
        match error {
            FetchError::Damaged(damaged) => self.finding(damaged.key, damaged.reason),
            FetchError::Remote(error @ RemoteError::NotFound { .. }) => {
                self.finding(error.key(), "it does not exist");
            }
            FetchError::Remote(error) => return Err(error.into()),
            error => self.finding(key, error),
        }
        Ok(())
    }
}

/// Every checkpoint that is readable and every commit since the oldest: the chain of hashes, and the
/// page tables against the log.
async fn history(
    remote: &dyn Remote,
    volume: VolumeId,
    replica: &Volume,
    report: &mut Report,
    progress: &(dyn Fn(Step) + Send + Sync),
) -> Result<(), VerifyError> {
    let floor = match gc::published(remote, volume).await {
        Ok(floor) => floor,
        Err(error) => return report.note(error),
    };
    let mut checkpoints: BTreeMap<Lsn, Vec<Start>> = BTreeMap::new();
    let mut above: Option<Seq> = None;
    for row in list_all(remote, &key::checkpoints_prefix(volume)).await? {
        let Some(seq) = row.key.rsplit('/').next().and_then(Seq::from_key_part) else {
            report.finding(row.key, "its key is not a checkpoint's");
            continue;
        };
        let lost = seq.next().max(floor.seq);
        if let Some(after) = above.replace(seq).filter(|after| *after > lost) {
            report.finding(key::checkpoint(volume, lost), format!("it is missing below {after:?}"));
        }
        if seq < floor.seq || row.bytes == TOMBSTONE_BYTES as u64 {
            continue;
        }
        match read_checkpoint(remote, volume, seq).await {
            Ok(start) => checkpoints.entry(start.lsn).or_default().push(start),
            Err(PullError::Expired { .. }) => {}
            Err(error) => report.note(error)?,
        }
    }
    if let Some(lowest) = above.filter(|lowest| *lowest > floor.seq.max(Seq(1))) {
        report.finding(
            key::checkpoint(volume, floor.seq.max(Seq(1))),
            format!("it is missing below {lowest:?}"),
        );
    }
    let first = checkpoints.first_key_value().map(|(_, starts)| starts[0].clone());
    let newest = report.lsn;
    let mut table: Option<Snapshot> = match &first {
        Some(start) if floor.seq != Seq::ZERO => {
            report.from = start.lsn;
            start
                .checkpoint
                .as_ref()
                .map(|root| Snapshot::of_checkpoint(root, &start.chunks, start.volumes.clone(), 0, 0))
        }
        // The whole log is there: the page table is built from nothing.
        _ => replica.origin(),
    };
    if let Some(table) = &table {
        report.from = table.lsn();
    }
    while let Some(at) = table.take() {
        for start in checkpoints.remove(&at.lsn()).unwrap_or_default() {
            compare(remote, replica, &at, &start, report).await?;
        }
        // Others may have written checkpoints beyond the newest commit that we know.
        let done = |lsn: Lsn| lsn.0.saturating_sub(report.from.0);
        progress(Step::Commits(done(at.lsn()), done(newest)));
        if at.lsn() >= newest {
            break;
        }
        let lsn = at.lsn().next();
        match read_head(remote, volume, lsn).await {
            Ok(head) if head.parent == at.hash() => {
                report.commits += 1;
                table = Some(at.with_commit(&head, lsn.0));
            }
            Ok(_) => report.note(PullError::Diverged { volume, lsn })?,
            Err(error) => report.note(error)?,
        }
    }
    Ok(())
}

/// The page table that the log builds against the one that was stored.
async fn compare(
    remote: &dyn Remote,
    replica: &Volume,
    built: &Snapshot,
    start: &Start,
    report: &mut Report,
) -> Result<(), VerifyError> {
    let Some(root) = &start.checkpoint else { return Ok(()) };
    report.checkpoints += 1;
    let key = key::checkpoint(root.volume, root.seq);
    let stored = Snapshot::of_checkpoint(root, &start.chunks, start.volumes.clone(), 0, 0);
    if (built.hash(), built.pages()) != (root.chain, root.pages) {
        report.finding(key, format!("it is not the state of lsn {}", root.lsn));
        return Ok(());
    }
    let all: PageSet = (1..=built.pages()).filter_map(PageIdx::new).collect();
    for snapshot in [built, &stored] {
        if let Err(error) = chunks::load(remote, replica, snapshot, &all).await {
            return report.fetch_failed(&key, error);
        }
    }
    for page in all.iter() {
        let same = match (built.location(page), stored.location(page)) {
            (Location::Zero, Location::Zero) => true,
            (Location::Frame(_, a), Location::Frame(_, b)) => (a.lsn, a.hash) == (b.lsn, b.hash),
            _ => false,
        };
        if !same {
            report.finding(&key, format!("it has another version of {page:?} than the log"));
            return Ok(());
        }
    }
    Ok(())
}

/// Every frame that the newest state names, and every page in it.
async fn content(
    remote: &dyn Remote,
    replica: &Volume,
    newest: &Snapshot,
    report: &mut Report,
    progress: &(dyn Fn(Step) + Send + Sync),
) -> Result<(), VerifyError> {
    let all: PageSet = (1..=newest.pages()).filter_map(PageIdx::new).collect();
    if let Err(error) = chunks::load(remote, replica, newest, &all).await {
        return report.fetch_failed("the page table", error);
    }
    let mut seen: HashSet<*const FrameRef> = HashSet::new();
    let mut frames: Vec<Arc<FrameRef>> = Vec::new();
    for page in all.iter() {
        if let Location::Frame(frame, _) = newest.location(page)
            && seen.insert(Arc::as_ptr(frame))
        {
            frames.push(frame.clone());
        }
    }
    let total = frames.len() as u64;
    let reads = frames.iter().map(|frame| async move {
        let range = frame.offset..frame.offset.saturating_add(u64::from(frame.bytes));
        (frame, remote.get_range(&frame.key, range).await)
    });
    let mut reads = futures::stream::iter(reads).buffer_unordered(CONCURRENT);
    while let Some((frame, read)) = reads.next().await {
        report.frames += 1;
        progress(Step::Frames(report.frames, total));
        match read {
            Ok(bytes) if bytes.len() != frame.bytes as usize => report
                .finding(&*frame.key, format!("a frame of {} bytes ends after {}", frame.bytes, bytes.len())),
            Ok(bytes) => match frame::decode(&bytes, newest.page_size(), frame.count, &frame.slots) {
                Ok(pages) => {
                    report.pages += pages.len() as u64;
                    report.bytes += bytes.len() as u64;
                }
                Err(reason) => report.finding(&*frame.key, reason),
            },
            Err(error @ RemoteError::NotFound { .. }) => report.finding(error.key(), "it does not exist"),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Objects that no readable state names. Pins are decoded on the way.
async fn orphans(remote: &dyn Remote, volume: VolumeId, report: &mut Report) -> Result<(), VerifyError> {
    for prefix in [key::forks_prefix(volume), key::pins_prefix(volume), key::readers_prefix(volume)] {
        for Listed { key, .. } in list_all(remote, &prefix).await? {
            match remote.get(&key).await {
                Ok(bytes) => {
                    if let Err(damaged) = Pin::decode(&key, &bytes) {
                        report.finding(damaged.key, damaged.reason);
                    }
                }
                Err(RemoteError::NotFound { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    match gc::unnamed(remote, volume).await {
        Ok(orphans) => report.orphans = orphans,
        // What could not be read is a finding already, or is one now.
        Err(GcError::Damaged(damaged)) if report.is_sound() => report.finding(damaged.key, damaged.reason),
        // A collection is at work: what it takes now is no orphan.
        Err(GcError::Pull(PullError::Expired { .. })) => {}
        Err(GcError::Pull(error)) if report.is_sound() => report.note(error)?,
        Err(GcError::Damaged(_) | GcError::Pull(_) | GcError::Removed { .. } | GcError::Clock { .. }) => {}
        Err(GcError::Remote(error)) => return Err(error.into()),
    }
    Ok(())
}

#[cfg(test)]
mod tests;
