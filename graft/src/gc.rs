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
//!   the tombstone that was written over the key, and loses. Tombstones go only far below the floor and
//!   long after; who comes later still is kept from acknowledging by a second look: see [`bottom`].
//! - *A stalled checkpointer* meets the winner of its number, or that one's tombstone, and loses; [`bottom`]
//!   says why it harms nobody where even that is gone.
//! - *A commit's segment* goes only when the LSN that its key carries is taken: whoever stalls between
//!   its upload and its create loses that create.
//! - *A compaction's segment* that nothing names goes only when the epoch that its key carries is over.
//!   A collector ends an epoch by a checkpoint of its own; a compaction that stalled meanwhile finds
//!   its number taken, and in its place an epoch in which it may not publish.
//! - *A fork* writes its pin, then reads the floor and gives up where it is too old. We publish the floor,
//!   then list pins. Whichever comes second sees the first. A pin whose fork was never finished goes only
//!   after we have won the create of the fork's metadata.
//! - *A second collector* at the same time decides from the same rules; every step may happen twice.
//!   One whose listing is so old that others gave up every checkpoint in it does not know what newer ones
//!   name, and decides nothing.
//!
//! Readers depend on time: one without a lease has [`Retention::grace_ms`] between the moment that a
//! floor is published, by the store's stamp, and the sweep, by the clock of the collector that sweeps: less
//! by as much as that one is ahead. What a run publishes is swept by a later run, and a collector that finds
//! itself more than [`SKEW_MS`] ahead of the stamp of what it has just published sweeps nothing
//! ([`GcError::Clock`]); one that publishes nothing finds nothing of it. One with a lease has as long as it renews it ([`crate::reader`]); they are
//! told [`Expired`](crate::fetch::FetchError) after that. A lease has lapsed where the store's own stamps,
//! as far as they are not later than our clock, say that it was not renewed for its term, or where it ended
//! more than [`SKEW_MS`] ago by our clock.
//!
//! A crash at any step leaves garbage at worst, and the next run finds it.
//!
//! | module | holds |
//! | --- | --- |
//! | [`bottom`] | when tombstones go, and what writers do about it |
//! | `inventory` | what the store lists |
//! | `readable` | what readable states name |

pub mod bottom;
mod inventory;
mod readable;

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};

use self::bottom::Burial;
pub(crate) use self::inventory::list_all;
use self::inventory::{Inventory, Segment};
use self::readable::Readable;
pub(crate) use self::readable::unnamed;
use crate::format::Damaged;
use crate::format::checkpoint::{HISTORY_MAX, NewChunk, Root, assemble};
use crate::format::meta::Meta;
use crate::format::pin::Pin;
use crate::format::tombstone::{Of, TOMBSTONE_BYTES, Tombstone};
use crate::history::{checkpoint_below, read_checkpoint};
use crate::ids::{CommitId, Epoch, Lsn, Seq, VolumeId, key};
use crate::pull::{PullError, read_head};
use crate::reader::TERM_MS;
use crate::remote::{Listed, Remote, RemoteError};

/// Requests under way at the same time.
const CONCURRENT: usize = 16;
/// How far a reader's clock and a collector's may be apart, and a collector's ahead of the store's.
pub const SKEW_MS: i64 = 3_600_000;
/// Stands as the metadata of a fork that was given up, so that its maker cannot finish it any more.
pub(crate) const REAPED: &[u8] =
    b"GFX1 this fork was not finished in time, and its parent no longer keeps its pages";

/// Whether `meta` stands where a fork's metadata would, because the fork was given up.
pub(crate) fn is_reaped(meta: &[u8]) -> bool {
    meta == REAPED
}

/// Whether a tombstone is under `key`: an object that ends too soon may have been collected since its
/// beginning was read. One request.
pub(crate) async fn is_buried(remote: &dyn Remote, key: &str) -> Result<bool, RemoteError> {
    Ok(Tombstone::is_one(&remote.get_range(key, 0..TOMBSTONE_BYTES as u64).await?))
}

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

impl Floor {
    /// The volume is being removed: any removal's mark ([`key::closed`]) is this floor.
    pub const CLOSED: Floor = Floor { lsn: Lsn(u64::MAX), seq: Seq(u64::MAX) };
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
    /// It is a tombstone far below the floor.
    Tombstone,
    /// A newer floor or bottom is published.
    Floor,
    /// Its reader did not renew it.
    Lease,
    /// Its fork was never finished, or was removed, or was made elsewhere.
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
    /// The bottom that is published before the first tombstone goes, where any does. See [`mod@bottom`].
    pub bottom: Option<Floor>,
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
    /// This machine's clock is so far ahead that readers would not have the grace. Only a floor was published.
    #[error(
        "volume {volume}: this machine's clock is {ahead_ms} ms ahead of the store's, so that states would be \
         deleted before their time; set it right, then collect again"
    )]
    Clock {
        /// Which volume.
        volume: VolumeId,
        /// By how much.
        ahead_ms: i64,
    },
    /// A pin or a part of a page table is damaged. What it may keep is not deleted: `graft volume verify` says more.
    #[error(transparent)]
    Damaged(#[from] Damaged),
}

/// What a run of [`collect`] tells while it works.
pub type Progress<'a> = &'a (dyn Fn(usize, usize) + Send + Sync);

/// The floor that is in force: the newest one published; [`Floor::CLOSED`] while the volume is being removed.
pub async fn published(remote: &dyn Remote, volume: VolumeId) -> Result<Floor, PullError> {
    let rows = remote.list(&key::horizon_prefix(volume), None, 1).await?;
    rows.first().map_or(Ok(Floor::default()), |row| Ok(floor_of(row)?))
}

fn floor_of(row: &Listed) -> Result<Floor, Damaged> {
    let parse = || {
        let (lsn, seq) = row.key.rsplit('/').next()?.split_once('-')?;
        let floor = Floor { lsn: Lsn::from_key_part(lsn)?, seq: Seq::from_key_part(seq)? };
        // What stands there instead of a checkpoint is the removal's number.
        Some(if floor.lsn == Floor::CLOSED.lsn { Floor::CLOSED } else { floor })
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
    plan_burying(remote, volume, retention, Burial::after(retention.grace_ms), now_ms).await
}

async fn plan_burying(
    remote: &dyn Remote,
    volume: VolumeId,
    retention: Retention,
    burial: Burial,
    now_ms: i64,
) -> Result<Plan, GcError> {
    // Pins last: see the module's head. What is planned is swept only after planning anew.
    let publish = wanted(remote, volume, retention, now_ms).await?;
    sweep_plan(remote, volume, retention, burial, now_ms, publish).await
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
    collect_burying(remote, volume, retention, Burial::after(retention.grace_ms), now_ms, progress).await
}

/// As [`collect`], but publishes no floor: deletes what earlier runs have announced, and announces nothing
/// that another run would have to come back for. Of a volume without floors it reads one LIST.
pub async fn sweep_announced(
    remote: &dyn Remote,
    volume: VolumeId,
    retention: Retention,
    now_ms: i64,
    progress: Progress<'_>,
) -> Result<Plan, GcError> {
    let published = published(remote, volume).await?;
    if published == Floor::CLOSED {
        return Err(GcError::Removed { volume });
    }
    if published == Floor::default() {
        return Ok(Plan::default());
    }
    let plan = sweep_plan(remote, volume, retention, Burial::after(retention.grace_ms), now_ms, None).await?;
    carry_out(remote, volume, plan, progress).await
}

async fn collect_burying(
    remote: &dyn Remote,
    volume: VolumeId,
    retention: Retention,
    burial: Burial,
    now_ms: i64,
    progress: Progress<'_>,
) -> Result<Plan, GcError> {
    let publish = wanted(remote, volume, retention, now_ms).await?;
    if let Some(floor) = publish {
        announce(remote, key::horizon(volume, floor.lsn, floor.seq), b"floor").await?;
    }
    let plan = sweep_plan(remote, volume, retention, burial, now_ms, publish).await?;
    carry_out(remote, volume, plan, progress).await
}

async fn announce(remote: &dyn Remote, key: String, what: &'static [u8]) -> Result<(), GcError> {
    match remote.create(&key, Bytes::from_static(what)).await {
        Ok(()) | Err(RemoteError::AlreadyExists { .. }) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Does what `plan` says.
async fn carry_out(
    remote: &dyn Remote,
    volume: VolumeId,
    mut plan: Plan,
    progress: Progress<'_>,
) -> Result<Plan, GcError> {
    // Before the first key is freed: see the module.
    if let Some(bottom) = plan.bottom {
        announce(remote, key::bottom(volume, bottom.lsn, bottom.seq), b"bottom").await?;
    }
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
            Err(PullError::Expired { .. } | PullError::Remote(RemoteError::NotFound { .. })) => return Ok(()),
            Err(error) => return Err(error.into()),
        },
        Of::Checkpoint(seq) => match read_checkpoint(remote, volume, seq).await {
            Ok(start) => match start.checkpoint {
                Some(root) => (CommitId([0; 16]), root.hash),
                None => return Ok(()),
            },
            Err(PullError::Expired { .. } | PullError::Remote(RemoteError::NotFound { .. })) => return Ok(()),
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
    if published == Floor::CLOSED {
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

/// How the pin of a fork goes, where the fork was never finished or is gone: its metadata is not there, long
/// after the pin. And where a first try wrote this pin and another one, which meant a state of another volume,
/// finished the fork: its metadata names that volume, is never replaced, and nothing reads through this pin.
async fn abandoned(
    remote: &dyn Remote,
    volume: VolumeId,
    pinned: &Pinned,
    row: &Listed,
    graced: i64,
) -> Result<Option<How>, GcError> {
    let forks = key::forks_prefix(volume);
    let pins = key::pins_prefix(volume);
    let of_fork = pinned.key.strip_prefix(&forks);
    let rest = of_fork.or_else(|| pinned.key.strip_prefix(&pins));
    let child = rest.and_then(|rest| rest.split('/').next()?.parse::<VolumeId>().ok());
    let Some(child) = child.filter(|_| row.modified_ms <= graced) else { return Ok(None) };
    match remote.get(&key::meta(child)).await {
        Ok(meta) if meta == REAPED => Ok(Some(How::Reap(child))),
        Ok(meta) if of_fork.is_some() => match Meta::decode(child, &meta) {
            Ok(Meta { parent: Some((origin, _)), .. }) if origin != volume => Ok(Some(How::Delete)),
            // The child's own verification reports damage; what it may keep stays.
            Ok(_) | Err(_) => Ok(None),
        },
        Ok(_) => Ok(None),
        Err(RemoteError::NotFound { .. }) => Ok(Some(How::Reap(child))),
        Err(error) => Err(error.into()),
    }
}

/// Whether a reader's lease has lapsed: see the module's head.
fn has_lapsed(pin: &Pin, row: &Listed, store_ms: i64, now_ms: i64) -> bool {
    pin.until_ms != Pin::FOR_EVER
        && (store_ms.saturating_sub(row.modified_ms) > TERM_MS
            || pin.until_ms.saturating_add(SKEW_MS) < now_ms)
}

async fn sweep_plan(
    remote: &dyn Remote,
    volume: VolumeId,
    retention: Retention,
    burial: Burial,
    now_ms: i64,
    publish: Option<Floor>,
) -> Result<Plan, GcError> {
    let inventory = Inventory::take(remote, volume, now_ms).await?;
    // A removal may begin between the look at the floor and this listing, and be refused after it: its mark
    // is above everything, and must not be taken for a floor.
    if inventory.floors.iter().any(|(floor, _)| *floor == Floor::CLOSED) {
        return Err(GcError::Removed { volume });
    }
    let graced = now_ms.saturating_sub(retention.grace_ms);
    let new = |floor: Floor| publish == Some(floor);
    if retention.grace_ms > 0
        && let Some((_, row)) = inventory.floors.iter().find(|(floor, _)| new(*floor))
    {
        let ahead_ms = now_ms.saturating_sub(row.modified_ms);
        if ahead_ms > SKEW_MS {
            return Err(GcError::Clock { volume, ahead_ms });
        }
    }
    let ripe = inventory
        .floors
        .iter()
        .filter(|(floor, row)| retention.grace_ms == 0 || (row.modified_ms <= graced && !new(*floor)));
    let mut floor = ripe.map(|(floor, _)| *floor).max().unwrap_or_default();
    if retention.grace_ms == 0 {
        floor = floor.max(publish.unwrap_or_default());
    }
    let mut plan = Plan { publish, sweep: floor, ..Plan::default() };

    let mut kept: Vec<&Pin> = Vec::new();
    for (pinned, row) in &inventory.pinned {
        let doomed = |why, how| Doomed { key: row.key.clone(), bytes: row.bytes, why, how };
        if let Some(how) = abandoned(remote, volume, pinned, row, graced).await? {
            plan.doomed.push(doomed(Why::Abandoned, how));
        } else if has_lapsed(&pinned.pin, row, inventory.store_ms, now_ms) {
            plan.doomed.push(doomed(Why::Lease, How::Delete));
            continue;
        } else {
            plan.kept_objects += 1;
            plan.kept_bytes += row.bytes;
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
        .filter(|lsn| inventory.commits.contains_key(lsn))
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
        let stays = retained(*lsn) || marks.commits.contains(lsn);
        decide(row, (!stays).then_some(Why::Commit), How::Bury(Of::Commit(*lsn)));
    }
    for (seq, row) in &inventory.checkpoints {
        let stays = *seq >= floor.seq || *seq == newest || marks.checkpoints.contains(seq);
        decide(row, (!stays).then_some(Why::Checkpoint), How::Bury(Of::Checkpoint(*seq)));
    }
    for (segment, row) in &inventory.segments {
        let stays = marks.segments.contains(&row.key)
            || match segment {
                Segment::Commit(lsn) => !inventory.is_taken(*lsn) || (retained(*lsn) && !lost(lsn, &row.key)),
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
    let (freed, bottom) = bottom::freed(&inventory, floor, burial);
    for of in &freed {
        let (key, bytes) = (of.key(volume), TOMBSTONE_BYTES as u64);
        plan.doomed.push(Doomed { key, bytes, why: Why::Tombstone, how: How::Delete });
    }
    let in_force = inventory.bottoms.iter().map(|(bottom, _)| *bottom).max().unwrap_or_default();
    plan.bottom = (bottom > in_force).then_some(bottom);
    for (published, row) in &inventory.bottoms {
        if *published < bottom {
            let key = row.key.clone();
            plan.doomed.push(Doomed { key, bytes: row.bytes, why: Why::Floor, how: How::Delete });
        } else {
            plan.kept_objects += 1;
            plan.kept_bytes += row.bytes;
        }
    }
    let buried = inventory.buried_commits.len() + inventory.buried_checkpoints.len() - freed.len();
    plan.kept_objects += buried as u64;
    plan.kept_bytes += (buried * TOMBSTONE_BYTES) as u64;
    // A compaction that has uploaded nothing for longer than the grace is dead.
    plan.end_epoch = newest != Seq::ZERO && unpublished.values().any(|newest| *newest <= graced);
    Ok(plan)
}

#[cfg(test)]
mod tests;
