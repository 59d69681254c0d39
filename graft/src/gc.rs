//! Garbage collection: deletes what no retained snapshot, fork or reader can reach.
//!
//! A run looks at what the bucket lists, decides a *floor*, publishes it, and sweeps below it:
//!
//! ```text
//!   commits      1 ………………………… floor ──────────────── newest
//!                swept, but for pins │ all readable
//! ```
//!
//! The floor is always a checkpoint: one that is older than [`Retention`] asks for. Everything that the
//! floor, a newer checkpoint or a pinned one names is kept, and so is every commit after the floor.
//!
//! Why no clock has a part in its safety:
//!
//! - *A stalled writer* prepares LSN n, others pass n, n is swept, the stalled create arrives. It meets
//!   the tombstone that was written over the key, and loses. Keys are not freed here.
//! - *A stalled checkpointer* meets the winner of its number, or that one's tombstone, and loses.
//! - *A commit's segment* goes only when the LSN that its key carries is taken: whoever stalls between
//!   its upload and its create loses that create.
//! - *A compaction's segment* that nothing names goes only when the epoch that its key carries is over.
//!   A collector ends an epoch by a checkpoint of its own; a compaction that stalled meanwhile finds
//!   its number taken, and in its place an epoch in which it may not publish.
//! - *A fork* writes its pin, then reads the floor and gives up where it is too old. We publish the floor,
//!   then list pins. Whichever comes second sees the first. A pin whose fork was never finished goes only
//!   after we have won the create of the fork's metadata.
//! - *A second collector* at the same time decides from the same rules; every step may happen twice.
//!
//! Only readers without a lease depend on time: they have [`Retention::grace_ms`] between the day that a
//! floor is published and the sweep, and are told [`Expired`](crate::fetch::FetchError) after that.
//!
//! A crash at any step leaves garbage at worst, and the next run finds it.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};

use crate::format::Damaged;
use crate::format::checkpoint::{ChunkRef, HISTORY_MAX, NewChunk, Root, assemble};
use crate::format::chunk::{self, Object, ObjectKind};
use crate::format::pin::Pin;
use crate::format::tombstone::{Of, TOMBSTONE_BYTES, Tombstone};
use crate::history::{checkpoint_below, read_checkpoint};
use crate::ids::{CommitId, Epoch, Lsn, Seq, VolumeId, key};
use crate::pull::{PullError, read_head};
use crate::remote::{Listed, Remote, RemoteError};

/// Requests under way at the same time.
const CONCURRENT: usize = 16;
const LIST_ROWS: usize = 1000;
/// Stands as the metadata of a fork that was given up, so that its maker cannot finish it any more.
pub(crate) const REAPED: &[u8] = b"GFX1 this fork was not finished in time, and its parent no longer keeps its pages";

/// What is kept readable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// Every state of the last so many milliseconds.
    pub keep_ms: i64,
    /// And every one of the last so many commits.
    pub keep_commits: u64,
    /// Milliseconds between publishing a floor and sweeping below it.
    pub grace_ms: i64,
}

impl Default for Retention {
    /// A week and a thousand commits; an hour's grace.
    fn default() -> Retention {
        Retention { keep_ms: 7 * 86_400_000, keep_commits: 1000, grace_ms: 3_600_000 }
    }
}

/// LSNs and checkpoints below it may be unreadable, but for those that are pinned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Floor {
    /// The oldest LSN that is readable for everybody.
    pub lsn: Lsn,
    /// The checkpoint of that LSN.
    pub seq: Seq,
}

/// Why an object goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// Its commit is below the floor, and no kept page lies in it. A tombstone takes its place.
    Commit,
    /// Its checkpoint is below the floor, and no kept one names a chunk in it. A tombstone takes its place.
    Checkpoint,
    /// No kept checkpoint or commit names it, and whoever uploaded it has lost.
    Segment,
    /// A newer floor is published.
    Floor,
    /// Its reader did not renew it.
    Lease,
    /// Its fork was never finished, or was removed.
    Abandoned,
}

/// An object that goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Doomed {
    /// Its key.
    pub key: String,
    /// Its length.
    pub bytes: u64,
    /// Why.
    pub why: Why,
    how: How,
}

/// How it goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    Delete,
    /// A tombstone takes its place.
    Bury(Of),
    /// The fork's metadata must be ours first.
    Reap(VolumeId),
}

/// What keeps old states.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pinned {
    /// The pin's or lease's key, which names the fork or the reader.
    pub key: String,
    /// What it keeps.
    pub pin: Pin,
}

/// What a run would do, or did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// The floor that retention asks for, where it is newer than what is published.
    pub publish: Option<Floor>,
    /// The floor that is swept below: published for longer than the grace.
    pub sweep: Floor,
    /// What goes, in the order in which it goes.
    pub doomed: Vec<Doomed>,
    /// Whether the compaction epoch is to be ended, because a compaction has left segments in it. They
    /// go in the run after.
    pub end_epoch: bool,
    /// What keeps older states.
    pub pinned: Vec<Pinned>,
    /// What could not be read, and therefore stays: `graft volume verify` says more.
    pub damaged: Vec<Damaged>,
    /// How many objects stay.
    pub kept_objects: u64,
    /// And their bytes.
    pub kept_bytes: u64,
}

impl Plan {
    /// Bytes that go, less those of the tombstones that come.
    pub fn freed_bytes(&self) -> u64 {
        let tombstones =
            self.doomed.iter().filter(|doomed| matches!(doomed.how, How::Bury(_))).count() as u64;
        let bytes: u64 = self.doomed.iter().map(|doomed| doomed.bytes).sum();
        bytes.saturating_sub(tombstones * TOMBSTONE_BYTES as u64)
    }
}

/// Why a run ended early. What it had deleted was garbage; run it again.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum GcError {
    /// The store failed; safe to try again.
    #[error(transparent)]
    Remote(#[from] RemoteError),
    /// A commit or checkpoint could not be read, so it is not known what it names. What it may name is not deleted.
    #[error(transparent)]
    Pull(#[from] PullError),
    /// It is being removed, or removing it failed half-way.
    #[error("volume {volume} is being removed; end that with `graft volume rm`")]
    Removed {
        /// Which volume.
        volume: VolumeId,
    },
    /// A pin or a part of a page table is damaged. What it may keep is not deleted: `graft volume verify` says more.
    #[error(transparent)]
    Damaged(#[from] Damaged),
}

/// What a run of [`collect`] tells while it works.
pub type Progress<'a> = &'a (dyn Fn(usize, usize) + Send + Sync);

/// The floor that is in force: the newest one published.
pub async fn published(remote: &dyn Remote, volume: VolumeId) -> Result<Floor, PullError> {
    let rows = remote.list(&key::horizon_prefix(volume), None, 1).await?;
    rows.first().map_or(Ok(Floor::default()), |row| Ok(floor_of(row)?))
}

fn floor_of(row: &Listed) -> Result<Floor, Damaged> {
    let parse = || {
        let (lsn, seq) = row.key.rsplit('/').next()?.split_once('-')?;
        Some(Floor { lsn: Lsn::from_key_part(lsn)?, seq: Seq::from_key_part(seq)? })
    };
    parse().ok_or_else(|| Damaged::new(&row.key, "its key is not a floor's"))
}

/// What a run would do now. Deletes nothing, publishes nothing. Costs one LIST for each thousand objects,
/// and reads the page tables of the checkpoints that stay.
pub async fn plan(
    remote: &dyn Remote,
    volume: VolumeId,
    retention: Retention,
    now_ms: i64,
) -> Result<Plan, GcError> {
    // Pins last: see the module's head. What is planned is swept only after planning anew.
    let publish = wanted(remote, volume, retention, now_ms).await?;
    sweep_plan(remote, volume, retention, now_ms, publish).await
}

/// Publishes the floor that `retention` asks for and sweeps below the one that was published a grace ago.
/// With a grace of 0 both are the same.
pub async fn collect(
    remote: &dyn Remote,
    volume: VolumeId,
    retention: Retention,
    now_ms: i64,
    progress: Progress<'_>,
) -> Result<Plan, GcError> {
    let publish = wanted(remote, volume, retention, now_ms).await?;
    if let Some(floor) = publish {
        match remote.create(&key::horizon(volume, floor.lsn, floor.seq), Bytes::from_static(b"floor")).await {
            Ok(()) | Err(RemoteError::AlreadyExists { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let mut plan = sweep_plan(remote, volume, retention, now_ms, publish).await?;
    let total = plan.doomed.len();
    let mut steps = futures::stream::iter(plan.doomed.iter().map(|doomed| sweep(remote, volume, doomed)))
        .buffer_unordered(CONCURRENT);
    let (mut done, mut damaged) = (0, Vec::new());
    while let Some(swept) = steps.next().await {
        match swept {
            Ok(()) => {}
            Err(GcError::Damaged(error) | GcError::Pull(PullError::Damaged(error))) => damaged.push(error),
            Err(error) => return Err(error),
        }
        done += 1;
        progress(done, total);
    }
    drop(steps);
    plan.damaged = damaged;
    if plan.end_epoch {
        end_epoch(remote, volume).await?;
    }
    Ok(plan)
}

/// Writes the newest checkpoint again, of the next epoch. Where another checkpoint is faster, the next
/// run tries again.
async fn end_epoch(remote: &dyn Remote, volume: VolumeId) -> Result<(), GcError> {
    let seq = crate::history::newest_checkpoint(remote, volume).await?;
    let start = read_checkpoint(remote, volume, seq).await?;
    let Some(newest) = start.checkpoint else { return Ok(()) };
    let mut root = Root::clone(&newest);
    root.seq = seq.next();
    root.epoch = Epoch(newest.epoch.0.saturating_add(1));
    root.history.push(newest.past());
    root.history.drain(..root.history.len().saturating_sub(HISTORY_MAX));
    let chunks: Vec<NewChunk> = newest.chunks.iter().copied().map(NewChunk::Stored).collect();
    let object = assemble(&mut root, &chunks, &start.state);
    match remote.create(&key::checkpoint(volume, root.seq), object).await {
        Ok(()) | Err(RemoteError::AlreadyExists { .. }) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

async fn sweep(remote: &dyn Remote, volume: VolumeId, doomed: &Doomed) -> Result<(), GcError> {
    let of = match doomed.how {
        How::Bury(of) => of,
        How::Delete => return Ok(remote.delete(&doomed.key).await?),
        How::Reap(child) => {
            let key = key::meta(child);
            let ours = match remote.create(&key, Bytes::from_static(REAPED)).await {
                Ok(()) => true,
                // Another collector's, or the fork was made at last: then its pin stays.
                Err(RemoteError::AlreadyExists { .. }) => remote.get(&key).await? == REAPED,
                Err(error) => return Err(error.into()),
            };
            return if ours { Ok(remote.delete(&doomed.key).await?) } else { Ok(()) };
        }
    };
    let (id, hash) = match of {
        Of::Commit(lsn) => match read_head(remote, volume, lsn).await {
            Ok(head) => (head.id, head.hash),
            Err(PullError::Expired { .. }) => return Ok(()),
            Err(error) => return Err(error.into()),
        },
        Of::Checkpoint(seq) => match read_checkpoint(remote, volume, seq).await {
            Ok(start) => match start.checkpoint {
                Some(root) => (CommitId([0; 16]), root.hash),
                None => return Ok(()),
            },
            Err(PullError::Expired { .. }) => return Ok(()),
            Err(error) => return Err(error.into()),
        },
    };
    Ok(remote.put(&doomed.key, Tombstone { of, id, hash }.encode(volume)).await?)
}

/// The newest checkpoint that is older than what is to be kept.
async fn wanted(
    remote: &dyn Remote,
    volume: VolumeId,
    retention: Retention,
    now_ms: i64,
) -> Result<Option<Floor>, GcError> {
    let published = published(remote, volume).await?;
    if published.lsn == Lsn(u64::MAX) {
        return Err(GcError::Removed { volume });
    }
    let newest_lsn = crate::history::newest_lsn(remote, volume).await?;
    let seq = crate::history::newest_checkpoint(remote, volume).await?;
    if seq == Seq::ZERO {
        return Ok(None);
    }
    let below = now_ms.saturating_sub(retention.keep_ms);
    let upto = Lsn(newest_lsn.0.saturating_sub(retention.keep_commits));
    let old = checkpoint_below(remote, volume, seq, |lsn, time_ms| time_ms <= below && lsn <= upto).await?;
    let root = old.and_then(|start| start.checkpoint);
    let floor = root.map(|root| Floor { lsn: root.lsn, seq: root.seq });
    Ok(floor.filter(|floor| *floor > published))
}

/// Everything of one volume that the store lists.
struct Inventory {
    commits: BTreeMap<Lsn, Listed>,
    checkpoints: BTreeMap<Seq, Listed>,
    segments: Vec<(Segment, Listed)>,
    floors: Vec<(Floor, Listed)>,
    pinned: Vec<(Pinned, Listed)>,
}

/// Whose a segment is, from its key alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Segment {
    Commit(Lsn),
    Compaction(Epoch),
}

fn segment_of(row: &Listed) -> Result<Segment, Damaged> {
    let parse = || {
        let name = row.key.rsplit('/').next()?;
        let (number, rest) = name.split_once('-')?;
        rest.split_once('-')?;
        match number.strip_prefix('c') {
            // `c` is a hex digit too: a commit's number has 16 digits, an epoch `c` and 8 more.
            Some(epoch) if epoch.len() == 8 => {
                u32::from_str_radix(epoch, 16).ok().map(|n| Segment::Compaction(Epoch(n)))
            }
            _ => Lsn::from_key_part(number).map(Segment::Commit),
        }
    };
    parse().ok_or_else(|| Damaged::new(&row.key, "its key is not a segment's"))
}

pub(crate) async fn list_all(remote: &dyn Remote, prefix: &str) -> Result<Vec<Listed>, RemoteError> {
    let mut all: Vec<Listed> = Vec::new();
    loop {
        let after = all.last().map(|row| row.key.clone());
        let rows = remote.list(prefix, after.as_deref(), LIST_ROWS).await?;
        let full = rows.len() == LIST_ROWS;
        all.extend(rows);
        if !full {
            return Ok(all);
        }
    }
}

impl Inventory {
    async fn take(remote: &dyn Remote, volume: VolumeId) -> Result<Inventory, GcError> {
        let number = |row: &Listed| row.key.rsplit('/').next().and_then(Lsn::from_key_part);
        let odd = |row: &Listed| Damaged::new(&row.key, "its key is not one of ours");
        let mut inventory = Inventory {
            commits: BTreeMap::new(),
            checkpoints: BTreeMap::new(),
            segments: Vec::new(),
            floors: Vec::new(),
            pinned: Vec::new(),
        };
        // Segments before the commits and checkpoints that may name them: what is listed first can only
        // be kept by what is listed later.
        for row in list_all(remote, &key::segments_prefix(volume)).await? {
            inventory.segments.push((segment_of(&row)?, row));
        }
        for row in list_all(remote, &key::log_prefix(volume)).await? {
            inventory.commits.insert(number(&row).ok_or_else(|| odd(&row))?, row);
        }
        for row in list_all(remote, &key::checkpoints_prefix(volume)).await? {
            let seq = number(&row).map(|lsn| Seq(lsn.0)).ok_or_else(|| odd(&row))?;
            inventory.checkpoints.insert(seq, row);
        }
        for row in list_all(remote, &key::horizon_prefix(volume)).await? {
            inventory.floors.push((floor_of(&row)?, row));
        }
        for prefix in [key::forks_prefix(volume), key::pins_prefix(volume), key::readers_prefix(volume)] {
            for row in list_all(remote, &prefix).await? {
                let bytes = match remote.get(&row.key).await {
                    Ok(bytes) => bytes,
                    // A fork that was given up, or a reader that ended, since it was listed.
                    Err(RemoteError::NotFound { .. }) => continue,
                    Err(error) => return Err(error.into()),
                };
                let pin = Pin::decode(&row.key, &bytes)?;
                inventory.pinned.push((Pinned { key: row.key.clone(), pin }, row));
            }
        }
        Ok(inventory)
    }

    fn newest_seq(&self) -> Seq {
        self.checkpoints.keys().next_back().copied().unwrap_or(Seq::ZERO)
    }
}

/// What must stay: objects by what they are.
#[derive(Default)]
struct Marks {
    commits: BTreeSet<Lsn>,
    checkpoints: BTreeSet<Seq>,
    segments: HashSet<String>,
}

impl Marks {
    fn object(&mut self, object: &Object) {
        match object.kind {
            ObjectKind::Commit(lsn) => {
                self.commits.insert(lsn);
            }
            ObjectKind::CommitSegment(_) | ObjectKind::CompactedSegment(_) => {
                self.segments.insert(object.key());
            }
        }
    }
}

/// Marks what the checkpoint `seq` names in its own volume; a chunk that was read before is passed over.
async fn mark_checkpoint(
    remote: &dyn Remote,
    volume: VolumeId,
    seq: Seq,
    marks: &mut Marks,
    known: &mut HashSet<(VolumeId, Seq, u64)>,
) -> Result<Option<Root>, GcError> {
    let start = match read_checkpoint(remote, volume, seq).await {
        Ok(start) => start,
        // Another collector was faster: what it deleted, nobody retains.
        Err(PullError::Expired { .. }) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let Some(root) = start.checkpoint else { return Ok(None) };
    marks.checkpoints.insert(seq);
    let fresh: Vec<ChunkRef> = root
        .chunks
        .iter()
        .filter(|chunk| known.insert((chunk.volume, chunk.seq, chunk.offset)))
        .copied()
        .collect();
    let reads = fresh.into_iter().map(|chunk| chunk_objects(remote, &root, chunk));
    let objects: Vec<(ChunkRef, Vec<Object>)> =
        futures::stream::iter(reads).buffer_unordered(CONCURRENT).try_collect().await?;
    for (chunk, objects) in objects {
        if chunk.volume == volume {
            marks.checkpoints.insert(chunk.seq);
        }
        objects.iter().filter(|object| object.volume == volume).for_each(|object| marks.object(object));
    }
    Ok(Some(Root::clone(&root)))
}

/// The fork whose pin this is, where it was never finished or is gone: its metadata is not there, long
/// after the pin.
async fn abandoned(
    remote: &dyn Remote,
    volume: VolumeId,
    pinned: &Pinned,
    row: &Listed,
    graced: i64,
) -> Result<Option<VolumeId>, GcError> {
    let forks = key::forks_prefix(volume);
    let pins = key::pins_prefix(volume);
    let rest = pinned.key.strip_prefix(&forks).or_else(|| pinned.key.strip_prefix(&pins));
    let child = rest.and_then(|rest| rest.split('/').next()?.parse::<VolumeId>().ok());
    let Some(child) = child.filter(|_| row.modified_ms <= graced) else { return Ok(None) };
    match remote.get(&key::meta(child)).await {
        Ok(meta) => Ok((meta == REAPED).then_some(child)),
        Err(RemoteError::NotFound { .. }) => Ok(Some(child)),
        Err(error) => Err(error.into()),
    }
}

/// The newest checkpoint that is there, at or below `lsn`; 0 for none. `lsns` are those known already.
async fn newest_below(
    remote: &dyn Remote,
    volume: VolumeId,
    inventory: &Inventory,
    lsn: Lsn,
    lsns: &mut BTreeMap<Seq, Lsn>,
) -> Result<Seq, GcError> {
    let live: Vec<Seq> = inventory
        .checkpoints
        .iter()
        .filter(|(_, row)| row.bytes != TOMBSTONE_BYTES as u64)
        .map(|(seq, _)| *seq)
        .collect();
    // Their LSNs ascend with their numbers.
    let (mut below, mut above) = (0, live.len());
    while below < above {
        let middle = usize::midpoint(below, above);
        let found = match lsns.get(&live[middle]) {
            Some(found) => *found,
            None => match read_checkpoint(remote, volume, live[middle]).await {
                Ok(start) => start.lsn,
                // Another collector was faster: it and what is before it is below every pin's.
                Err(PullError::Expired { .. }) => Lsn::ZERO,
                Err(error) => return Err(error.into()),
            },
        };
        lsns.insert(live[middle], found);
        if found <= lsn { below = middle + 1 } else { above = middle }
    }
    Ok(below.checked_sub(1).map_or(Seq::ZERO, |at| live[at]))
}

async fn chunk_objects(
    remote: &dyn Remote,
    root: &Root,
    at: ChunkRef,
) -> Result<(ChunkRef, Vec<Object>), GcError> {
    let end = at.offset.saturating_add(at.bytes.into());
    let bytes = remote.get_range(&at.key(), at.offset..end).await?;
    if bytes.len() != at.bytes as usize || chunk::hash(at.index, &bytes) != at.hash {
        let reason = format!("chunk {} of its page table does not match its hash", at.index);
        return Err(Damaged::new(&at.key(), reason).into());
    }
    let decoded = chunk::decode(at.index, &root.lineage, &bytes);
    let decoded = decoded.map_err(|reason| Damaged::new(&at.key(), reason))?;
    let objects: BTreeSet<Object> = decoded.frames().map(|frame| frame.object).collect();
    Ok((at, objects.into_iter().collect()))
}

/// What readable states name: those at the floor and above, and pinned ones.
struct Readable {
    marks: Marks,
    /// The newest checkpoint's.
    epoch: Epoch,
    /// The LSNs, first and last, of commits that are read one by one.
    ranges: Vec<(Lsn, Lsn)>,
}

impl Readable {
    async fn mark<'a>(
        remote: &dyn Remote,
        volume: VolumeId,
        inventory: &Inventory,
        floor: Floor,
        pins: impl Iterator<Item = &'a Pin>,
    ) -> Result<Readable, GcError> {
        let (mut marks, mut known, mut epoch) = (Marks::default(), HashSet::new(), Epoch::default());
        // By LSN, for pins: the newest checkpoints first.
        let mut lsns: BTreeMap<Seq, Lsn> = BTreeMap::new();
        for (seq, row) in inventory.checkpoints.range(floor.seq..) {
            if row.bytes == TOMBSTONE_BYTES as u64 {
                continue;
            }
            if let Some(root) = mark_checkpoint(remote, volume, *seq, &mut marks, &mut known).await? {
                // They ascend: the newest one's is in force.
                epoch = root.epoch;
                lsns.insert(*seq, root.lsn);
            }
        }
        let mut ranges: Vec<(Lsn, Lsn)> = vec![(floor.lsn.next(), Lsn(u64::MAX))];
        for pin in pins {
            let seq = match pin.seq {
                Some(seq) => seq,
                None => newest_below(remote, volume, inventory, pin.lsn, &mut lsns).await?,
            };
            let from = if seq == Seq::ZERO {
                Some(Lsn::ZERO)
            } else {
                mark_checkpoint(remote, volume, seq, &mut marks, &mut known).await?.map(|root| root.lsn)
            };
            if from.is_none() && pin.seq.is_none() {
                // Another collector is at work, and sees other checkpoints: let it finish.
                return Err(PullError::Expired { volume, lsn: pin.lsn }.into());
            }
            ranges.extend(from.map(|from| (from.next(), pin.lsn)));
        }
        Ok(Readable { marks, epoch, ranges })
    }

    fn retains(&self, lsn: Lsn) -> bool {
        self.ranges.iter().any(|(from, to)| *from <= lsn && lsn <= *to)
    }
}

/// Segments that no readable state names: what lost writers, dead compactions and crashes have left, and
/// what is being uploaded now.
pub(crate) async fn unnamed(remote: &dyn Remote, volume: VolumeId) -> Result<Vec<String>, GcError> {
    let floor = published(remote, volume).await?;
    let inventory = Inventory::take(remote, volume).await?;
    let pins = inventory.pinned.iter().map(|(pinned, _)| &pinned.pin);
    let Readable { marks, .. } = Readable::mark(remote, volume, &inventory, floor, pins).await?;
    let mut ids: BTreeMap<Lsn, CommitId> = BTreeMap::new();
    let mut unnamed = Vec::new();
    for (segment, row) in &inventory.segments {
        let named = marks.segments.contains(&row.key)
            || match segment {
                Segment::Compaction(_) => false,
                Segment::Commit(lsn) => match inventory.commits.get(lsn) {
                    None => false,
                    Some(commit) if commit.bytes == TOMBSTONE_BYTES as u64 => false,
                    Some(_) => {
                        let id = match ids.get(lsn) {
                            Some(id) => *id,
                            None => read_head(remote, volume, *lsn).await?.id,
                        };
                        ids.insert(*lsn, id);
                        row.key.contains(&format!("-{id}-"))
                    }
                },
            };
        if !named {
            unnamed.push(row.key.clone());
        }
    }
    Ok(unnamed)
}

async fn sweep_plan(
    remote: &dyn Remote,
    volume: VolumeId,
    retention: Retention,
    now_ms: i64,
    publish: Option<Floor>,
) -> Result<Plan, GcError> {
    let inventory = Inventory::take(remote, volume).await?;
    let graced = now_ms.saturating_sub(retention.grace_ms);
    let ripe =
        inventory.floors.iter().filter(|(_, row)| row.modified_ms <= graced || retention.grace_ms == 0);
    let mut floor = ripe.map(|(floor, _)| *floor).max().unwrap_or_default();
    if retention.grace_ms == 0 {
        floor = floor.max(publish.unwrap_or_default());
    }
    let mut plan = Plan { publish, sweep: floor, ..Plan::default() };

    let mut kept: Vec<&Pin> = Vec::new();
    for (pinned, row) in &inventory.pinned {
        let doomed = |why, how| Doomed { key: row.key.clone(), bytes: row.bytes, why, how };
        if let Some(child) = abandoned(remote, volume, pinned, row, graced).await? {
            plan.doomed.push(doomed(Why::Abandoned, How::Reap(child)));
        } else if pinned.pin.until_ms < now_ms {
            plan.doomed.push(doomed(Why::Lease, How::Delete));
            continue;
        } else {
            plan.pinned.push(pinned.clone());
        }
        // What an abandoned fork pins goes in the run after: its maker may be faster than we are.
        kept.push(&pinned.pin);
    }
    let readable = Readable::mark(remote, volume, &inventory, floor, kept.into_iter()).await?;
    let Readable { marks, epoch, .. } = &readable;
    let epoch = *epoch;
    let retained = |lsn: Lsn| readable.retains(lsn);

    // An LSN that is kept may have segments of those who lost it: they go, whatever keeps the LSN.
    let held: BTreeSet<Lsn> = inventory
        .segments
        .iter()
        .filter_map(|(segment, row)| match segment {
            Segment::Commit(lsn) if retained(*lsn) && !marks.segments.contains(&row.key) => Some(*lsn),
            Segment::Commit(_) | Segment::Compaction(_) => None,
        })
        .filter(|lsn| inventory.commits.get(lsn).is_some_and(|row| row.bytes != TOMBSTONE_BYTES as u64))
        .collect();
    let reads = held.into_iter().map(|lsn| async move {
        match read_head(remote, volume, lsn).await {
            Ok(head) => Ok(Some((lsn, head.id))),
            // Another collector was faster.
            Err(PullError::Expired { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    });
    let winners: Vec<Option<(Lsn, CommitId)>> =
        futures::stream::iter(reads).buffer_unordered(CONCURRENT).try_collect().await?;
    let winners: BTreeMap<Lsn, CommitId> = winners.into_iter().flatten().collect();
    let lost = |lsn: &Lsn, key: &str| winners.get(lsn).is_some_and(|id| !key.contains(&format!("-{id}-")));

    let newest = inventory.newest_seq();
    let mut unpublished: BTreeMap<&str, i64> = BTreeMap::new();
    let mut decide = |row: &Listed, goes: Option<Why>, how: How| match goes {
        Some(why) => {
            plan.doomed.push(Doomed { key: row.key.clone(), bytes: row.bytes, why, how });
        }
        None => {
            plan.kept_objects += 1;
            plan.kept_bytes += row.bytes;
        }
    };
    for (lsn, row) in &inventory.commits {
        let stays = retained(*lsn) || marks.commits.contains(lsn) || row.bytes == TOMBSTONE_BYTES as u64;
        decide(row, (!stays).then_some(Why::Commit), How::Bury(Of::Commit(*lsn)));
    }
    for (seq, row) in &inventory.checkpoints {
        let stays = *seq >= floor.seq
            || *seq == newest
            || marks.checkpoints.contains(seq)
            || row.bytes == TOMBSTONE_BYTES as u64;
        decide(row, (!stays).then_some(Why::Checkpoint), How::Bury(Of::Checkpoint(*seq)));
    }
    for (segment, row) in &inventory.segments {
        let stays = marks.segments.contains(&row.key)
            || match segment {
                Segment::Commit(lsn) => {
                    !inventory.commits.contains_key(lsn) || (retained(*lsn) && !lost(lsn, &row.key))
                }
                Segment::Compaction(begun) => *begun >= epoch,
            };
        if matches!(segment, Segment::Compaction(begun) if *begun >= epoch)
            && !marks.segments.contains(&row.key)
        {
            let id = row.key.rsplit('-').nth(1).unwrap_or_default();
            let newest = unpublished.entry(id).or_insert(i64::MIN);
            *newest = row.modified_ms.max(*newest);
        }
        decide(row, (!stays).then_some(Why::Segment), How::Delete);
    }
    for (published, row) in &inventory.floors {
        decide(row, (*published < floor).then_some(Why::Floor), How::Delete);
    }
    for (_, row) in inventory.pinned.iter().filter(|(pinned, _)| pinned.pin.until_ms >= now_ms) {
        decide(row, None, How::Delete);
    }
    // A compaction that has uploaded nothing for longer than the grace is dead.
    plan.end_epoch = newest != Seq::ZERO && unpublished.values().any(|newest| *newest <= graced);
    Ok(plan)
}

#[cfg(test)]
mod tests;
