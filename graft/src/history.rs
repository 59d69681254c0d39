//! Opening: what a replica must read to know a volume's state, however long its history is.
//!
//! ```text
//!   meta ∥ newest log key ∥ newest checkpoint key  →  its root  →  heads of the commits since ∥ page 1
//! ```
//!
//! Costs three requests side by side, one read of the root (64 KiB; a second one where root and state
//! are longer), one prefix read for each commit since, and one read beside them for what every query
//! begins with ([`History::early`]). Never the whole log. A fork that has no
//! checkpoint of its own goes on in its parent, as far as the commit it was forked at.
//!
//! Catching up: as [`crate::pull`] where little is missing, otherwise a *jump* to a newer checkpoint. What
//! was read before the store failed is not read again by the next try, so that a replica far behind comes
//! up on a store that fails often.
//!
//! Invariants: the heads answered follow each other without gaps from the checkpoint on, each naming
//! its predecessor's hash.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use bytes::Bytes;
use futures::StreamExt as _;
use parking_lot::Mutex;

use crate::catalog::{self, CatalogError};
use crate::chunks::{self, REWRITE_BYTES_MAX};
use crate::fetch::plan::{Range, frames_of, ranges};
use crate::format::Damaged;
use crate::format::checkpoint::{PREFIX_BYTES, Root, RootError, state_hash};
use crate::format::chunk::{LINEAGE_MAX, Lineage, ObjectKind};
use crate::format::commit::Head;
use crate::format::meta::Meta;
use crate::format::tombstone::{Of, TOMBSTONE_BYTES, Tombstone};
use crate::gc::{self, is_buried};
use crate::ids::{ChainHash, Lsn, PageIdx, Seq, VolumeId, key};
use crate::page_set::PageSet;
use crate::pull::{Entry, PullError, Pulled, read_entry, read_head};
use crate::remote::{Remote, RemoteError};
use crate::snapshot::{FrameRef, Location, RemoteChunk, Snapshot};

/// Heads read at the same time.
const CONCURRENT_READS: usize = 64;
/// A replica that lacks more commits than this looks for a checkpoint to jump to.
pub const JUMP_COMMITS: u64 = 128;
/// Hot pages of up to so many bytes, before compression, come with page 1.
const EARLY_BYTES_MAX: u64 = 1 << 20;
/// Times that reading begins anew because what it read was deleted meanwhile.
const TRIES_MAX: usize = 4;

/// Where a replica's history begins: a checkpoint, or the empty volume.
#[derive(Debug, Clone, PartialEq)]
pub struct Start {
    /// The commit whose state it is; 0 for the empty volume.
    pub lsn: Lsn,
    /// That commit's hash.
    pub hash: ChainHash,
    /// That commit's time, ms since 1970.
    pub time_ms: i64,
    /// What the layer above remembered at that commit; empty for the empty volume.
    pub state: Bytes,
    /// The checkpoint; none for the empty volume.
    pub checkpoint: Option<Arc<Root>>,
    pub(crate) chunks: Vec<Arc<RemoteChunk>>,
    /// The volumes that the replica is made of, of which the checkpoint's may be an ancestor.
    pub(crate) volumes: Lineage,
}

impl Start {
    /// The empty volume.
    pub fn empty(volumes: Lineage) -> Start {
        Start {
            lsn: Lsn::ZERO,
            hash: ChainHash::ZERO,
            time_ms: 0,
            state: Bytes::new(),
            checkpoint: None,
            chunks: Vec::new(),
            volumes,
        }
    }

    /// From a checkpoint's root and its state.
    pub(crate) fn of(root: Root, state: Bytes) -> Start {
        Start {
            lsn: root.lsn,
            hash: root.chain,
            time_ms: root.time_ms,
            state,
            chunks: root.chunks.iter().map(|at| Arc::new(RemoteChunk::new(*at))).collect(),
            volumes: root.lineage.clone(),
            checkpoint: Some(Arc::new(root)),
        }
    }
}

/// What a replica knows of a volume once it has read it.
#[derive(Debug, Clone)]
pub struct History {
    /// The volume's metadata.
    pub meta: Meta,
    /// Where it begins.
    pub start: Start,
    /// The commits since, oldest first.
    pub heads: Vec<Head>,
    /// Frames that were read beside the heads, as they are stored: page 1's at the checkpoint, and where
    /// that is a compaction's, those of its hot pages. Commits since may have replaced their pages. None
    /// where the root's prefix does not say where they are, or they could not be read.
    pub early: Vec<(Arc<FrameRef>, Bytes)>,
}

/// Why a volume's history could not be read.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum HistoryError {
    /// Its metadata could not be read.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// Its log or a checkpoint could not be read.
    #[error(transparent)]
    Pull(#[from] PullError),
}

impl From<RemoteError> for HistoryError {
    fn from(error: RemoteError) -> HistoryError {
        HistoryError::Pull(error.into())
    }
}
impl From<Damaged> for HistoryError {
    fn from(error: Damaged) -> HistoryError {
        HistoryError::Pull(error.into())
    }
}

/// The newest commit's LSN; 0 for a log without any. One request.
pub async fn newest_lsn(remote: &dyn Remote, volume: VolumeId) -> Result<Lsn, PullError> {
    let prefix = key::log_prefix(volume);
    let Some(row) = remote.list(&prefix, None, 1).await?.into_iter().next() else { return Ok(Lsn::ZERO) };
    let lsn = row.key.strip_prefix(&prefix).and_then(Lsn::from_key_part);
    lsn.ok_or_else(|| Damaged::new(&row.key, "its key is not a log entry's").into())
}

/// The newest checkpoint's number; 0 for none. One request.
pub async fn newest_checkpoint(remote: &dyn Remote, volume: VolumeId) -> Result<Seq, PullError> {
    let prefix = key::checkpoints_prefix(volume);
    let Some(row) = remote.list(&prefix, None, 1).await?.into_iter().next() else { return Ok(Seq::ZERO) };
    let seq = row.key.strip_prefix(&prefix).and_then(Seq::from_key_part);
    seq.ok_or_else(|| Damaged::new(&row.key, "its key is not a checkpoint's").into())
}

/// Reads a checkpoint's root and state. One request where both are within its first 64 KiB; one or two
/// more otherwise. What of the page table lies there too is read with it.
pub async fn read_checkpoint(remote: &dyn Remote, volume: VolumeId, seq: Seq) -> Result<Start, PullError> {
    let key = key::checkpoint(volume, seq);
    let mut bytes = remote.get_range(&key, 0..PREFIX_BYTES).await?;
    if Tombstone::is_one(&bytes) {
        Tombstone::decode(volume, Of::Checkpoint(seq), &bytes)?;
        return Err(PullError::Expired { volume, lsn: Lsn::ZERO });
    }
    let root = loop {
        match Root::decode(volume, seq, &bytes) {
            Ok(root) => break root,
            Err(RootError::Damaged(damaged)) => return Err(damaged.into()),
            Err(RootError::Incomplete { need }) => bytes = longer(remote, volume, &key, bytes, need).await?,
        }
    };
    let range = root.state_range();
    while (bytes.len() as u64) < range.end {
        bytes = longer(remote, volume, &key, bytes, range.end).await?;
    }
    let state = bytes.slice(range.start as usize..range.end as usize);
    if state_hash(&state) != root.state_hash {
        return Err(Damaged::new(&key, "its state does not match its hash").into());
    }
    let keep = root.table_bytes() <= REWRITE_BYTES_MAX;
    // A copy: the state must not keep the whole prefix in memory.
    let start = Start::of(root, Bytes::copy_from_slice(&state));
    for chunk in start.chunks.iter().filter(|chunk| chunk.at.volume == volume && chunk.at.seq == seq) {
        let end = chunk.at.offset.saturating_add(chunk.at.bytes.into());
        if end <= bytes.len() as u64 {
            let part = Bytes::copy_from_slice(&bytes[chunk.at.offset as usize..end as usize]);
            chunks::fill(chunk, &start.volumes, &part, keep).map_err(|reason| Damaged::new(&key, reason))?;
        }
    }
    Ok(start)
}

/// Reads on from where `bytes` end to `need`.
async fn longer(
    remote: &dyn Remote,
    volume: VolumeId,
    key: &str,
    bytes: Bytes,
    need: u64,
) -> Result<Bytes, PullError> {
    let had = bytes.len() as u64;
    let rest = remote.get_range(key, had..need).await?;
    if rest.is_empty() {
        // It may have been collected between the two requests.
        if is_buried(remote, key).await? {
            return Err(PullError::Expired { volume, lsn: Lsn::ZERO });
        }
        return Err(Damaged::new(key, format!("it ends after {had} of {need} bytes")).into());
    }
    Ok([bytes, rest].concat().into())
}

/// The newest checkpoint of `volume` at or below `upto`, searched from `newest` on through the
/// histories that checkpoints name.
pub(crate) async fn checkpoint_below(
    remote: &dyn Remote,
    volume: VolumeId,
    newest: Seq,
    fits: impl Fn(Lsn, i64) -> bool,
) -> Result<Option<Start>, PullError> {
    let mut seq = newest;
    while seq != Seq::ZERO {
        let start = match read_checkpoint(remote, volume, seq).await {
            // Named by a newer one and collected since. An older one may be pinned.
            Err(PullError::Expired { .. } | PullError::Remote(RemoteError::NotFound { .. })) => {
                seq = older_checkpoint(remote, volume, seq).await?;
                continue;
            }
            read => read?,
        };
        if fits(start.lsn, start.time_ms) {
            return Ok(Some(start));
        }
        let history = start.checkpoint.as_ref().map(|root| &root.history[..]).unwrap_or_default();
        let fitting = history.iter().rev().find(|past| fits(past.lsn, past.time_ms));
        // None of those that it names: the oldest of them names older ones, if there are any.
        let oldest = history.first().filter(|oldest| oldest.seq > Seq(1));
        seq = fitting.or(oldest).map_or(Seq::ZERO, |past| past.seq);
    }
    Ok(None)
}

/// The newest checkpoint before `seq` that was not collected; 0 for none. One request for each thousand
/// tombstones between.
async fn older_checkpoint(remote: &dyn Remote, volume: VolumeId, seq: Seq) -> Result<Seq, PullError> {
    let prefix = key::checkpoints_prefix(volume);
    let mut after = key::checkpoint(volume, seq);
    loop {
        let rows = remote.list(&prefix, Some(&after), 1000).await?;
        let full = rows.len() == 1000;
        for row in rows {
            if row.bytes != TOMBSTONE_BYTES as u64 {
                let seq = row.key.strip_prefix(&prefix).and_then(Seq::from_key_part);
                return seq.ok_or_else(|| Damaged::new(&row.key, "its key is not a checkpoint's").into());
            }
            after = row.key;
        }
        if !full {
            return Ok(Seq::ZERO);
        }
    }
}

/// The heads that catching up has read before the store failed: the next try goes on from them. Whether they
/// belong to one history is checked once all are there.
#[derive(Debug, Default)]
pub(crate) struct ReadBefore(Mutex<BTreeMap<(VolumeId, Lsn), Head>>);

impl ReadBefore {
    async fn or_read(&self, remote: &dyn Remote, volume: VolumeId, lsn: Lsn) -> Result<Head, PullError> {
        if let Some(head) = self.0.lock().get(&(volume, lsn)) {
            return Ok(head.clone());
        }
        let head = read_present(remote, volume, lsn).await?;
        self.0.lock().insert((volume, lsn), head.clone());
        Ok(head)
    }
}

/// Reads the heads after `from` up to `to`, at the same time, and checks that they follow `hash`. After a
/// failure no more requests are made; those under way are waited for, and what they bring is in `kept`.
pub(crate) async fn read_heads(
    remote: &dyn Remote,
    spans: &[(VolumeId, Lsn, Lsn)],
    hash: ChainHash,
    kept: Option<&ReadBefore>,
) -> Result<Vec<Head>, PullError> {
    // Never collected: a key that claims an LSN without end must cost no more than the first miss.
    let lsns = spans
        .iter()
        .copied()
        .flat_map(|(volume, from, to)| (from.0.saturating_add(1)..=to.0).map(move |lsn| (volume, Lsn(lsn))));
    let failed = &AtomicBool::new(false);
    let reads = lsns.take_while(|_| !failed.load(Relaxed)).map(|(volume, lsn)| async move {
        let read = match kept {
            Some(kept) => kept.or_read(remote, volume, lsn).await,
            None => read_present(remote, volume, lsn).await,
        };
        failed.fetch_or(read.is_err(), Relaxed);
        read
    });
    let read: Vec<Result<Head, PullError>> =
        futures::stream::iter(reads).buffered(CONCURRENT_READS).collect().await;
    let heads = read.into_iter().collect::<Result<Vec<Head>, PullError>>()?;
    let mut parent = hash;
    for head in &heads {
        if head.parent != parent {
            return Err(broken(remote, head.volume, head.lsn).await?);
        }
        parent = head.hash;
    }
    Ok(heads)
}

/// What it means that `lsn` does not name the hash of the commit before it, or that one does not have the
/// hash known of it: below the bottom, that a late writer's stands there, which is in no history.
async fn broken(remote: &dyn Remote, volume: VolumeId, lsn: Lsn) -> Result<PullError, PullError> {
    let bottom = gc::bottom::bottom(remote, volume).await?.lsn;
    // The one before it may be the late one.
    let expired = lsn <= bottom.next() && bottom != Lsn::ZERO;
    Ok(if expired { PullError::Expired { volume, lsn } } else { PullError::Diverged { volume, lsn } })
}

/// A head that must be there, because later ones are.
async fn read_present(remote: &dyn Remote, volume: VolumeId, lsn: Lsn) -> Result<Head, PullError> {
    match read_head(remote, volume, lsn).await {
        Err(PullError::Remote(RemoteError::NotFound { key })) => {
            // So old that not even its tombstone is left, or lost.
            if lsn < gc::published(remote, volume).await?.lsn {
                return Err(PullError::Expired { volume, lsn });
            }
            Err(Damaged::new(&key, "missing, and later commits are there").into())
        }
        read => read,
    }
}

/// Reads what is to be known of `id`: of its newest state, or of that at `upto`.
///
/// Where garbage collection deletes what is about to be read, reading begins anew, a few times.
pub async fn read(remote: &dyn Remote, id: VolumeId, upto: Option<Lsn>) -> Result<History, HistoryError> {
    let mut tries = 0;
    loop {
        tries += 1;
        match try_read(remote, id, upto).await {
            Err(HistoryError::Pull(PullError::Expired { .. })) if upto.is_none() && tries < TRIES_MAX => {}
            read => return read,
        }
    }
}

async fn try_read(remote: &dyn Remote, id: VolumeId, upto: Option<Lsn>) -> Result<History, HistoryError> {
    // Newest first: which commits of which volume lie between the start and the end.
    let mut spans: Vec<(VolumeId, Lsn, Lsn)> = Vec::new();
    // The forks passed on the way down: child, and the LSN it was forked at.
    let mut forks: Vec<(Lsn, VolumeId)> = Vec::new();
    let (mut volume, mut upto) = (id, upto);
    let mut meta: Option<Meta> = None;
    let mut start = loop {
        let metas = async { catalog::meta(remote, volume).await.map_err(HistoryError::from) };
        let (found, newest, seq) = match upto {
            None => {
                let newest = async { newest_lsn(remote, volume).await.map_err(HistoryError::from) };
                let seq = async { newest_checkpoint(remote, volume).await.map_err(HistoryError::from) };
                futures::try_join!(metas, newest, seq)?
            }
            Some(upto) => {
                let seq = async { newest_checkpoint(remote, volume).await.map_err(HistoryError::from) };
                let (found, seq) = futures::try_join!(metas, seq)?;
                (found, upto, seq)
            }
        };
        if meta.get_or_insert(found).page_size != found.page_size {
            let reason = format!("volume {volume} has another page size than its fork");
            return Err(Damaged::new(&key::meta(volume), reason).into());
        }
        let parent = found.parent;
        if forks.len() >= LINEAGE_MAX {
            return Err(Damaged::new(&key::meta(volume), "it has more ancestors than a volume can").into());
        }
        if let (Some((parent, at)), Some(bound)) = (parent, upto)
            && bound <= at
        {
            // All of it lies before the fork.
            forks.push((at, volume));
            volume = parent;
            continue;
        }
        if upto == Some(Lsn::ZERO) && parent.is_none() {
            break Start::empty(Lineage::of(volume));
        }
        let below = checkpoint_below(remote, volume, seq, |lsn, _| upto.is_none_or(|upto| lsn <= upto));
        if let Some(start) = below.await? {
            // The log was listed before the checkpoint was: it may have grown meanwhile.
            spans.push((volume, start.lsn, newest.max(start.lsn)));
            break start;
        }
        match parent {
            Some((parent, at)) => {
                spans.push((volume, at, newest.max(at)));
                forks.push((at, volume));
                (volume, upto) = (parent, Some(at));
            }
            None => {
                spans.push((volume, Lsn::ZERO, newest));
                break Start::empty(Lineage::of(volume));
            }
        }
    };
    for (at, child) in forks.into_iter().rev() {
        start.volumes = start.volumes.fork(at, child);
    }
    spans.reverse();
    let heads = read_heads(remote, &spans, start.hash, None);
    let (heads, early) = futures::join!(heads, early_frames(remote, &start));
    let heads = heads?;
    let Some(meta) = meta else {
        return Err(Damaged::new(&key::meta(id), "it could not be read").into());
    };
    if start.checkpoint.as_ref().is_some_and(|root| root.page_size != meta.page_size) {
        return Err(Damaged::new(&key::meta(id), "its page size is not that of its checkpoint").into());
    }
    Ok(History { meta, start, heads, early })
}

/// What [`History::early`] says: one ranged read at most.
async fn early_frames(remote: &dyn Remote, start: &Start) -> Vec<(Arc<FrameRef>, Bytes)> {
    let Some(range) = early_range(start) else { return Vec::new() };
    match remote.get_range(&range.key, range.start..range.end).await {
        Ok(bytes) => {
            let part = |frame: &Arc<FrameRef>| Bytes::copy_from_slice(range.part(frame, &bytes));
            range.frames.iter().map(|frame| (frame.clone(), part(frame))).collect()
        }
        // Who needs the page reads it again, and says what is wrong.
        Err(error) => {
            tracing::debug!(key = %range.key, %error, "page 1 was not read beside the heads");
            Vec::new()
        }
    }
}

fn early_range(start: &Start) -> Option<Range> {
    let root = start.checkpoint.as_ref()?;
    let snapshot = Snapshot::of_checkpoint(root, &start.chunks, start.volumes.clone(), 0, 0);
    let first: PageSet = [PageIdx::FIRST].into_iter().collect();
    let compacted = |page: &PageIdx| match snapshot.location(*page) {
        Location::Frame(frame, _) => matches!(frame.object.kind, ObjectKind::CompactedSegment(_)),
        Location::Zero | Location::Local(_) | Location::Unknown(_) => false,
    };
    let hot_bytes = root.hot.len().saturating_mul(u64::from(root.page_size.get()));
    if hot_bytes <= EARLY_BYTES_MAX {
        let mut pages: PageSet = root.hot.iter().filter(compacted).collect();
        pages.union_with(&first);
        let mut all = ranges(frames_of(&snapshot, &pages), |_| true);
        if all.len() == 1 {
            return all.pop();
        }
    }
    ranges(frames_of(&snapshot, &first), |_| true).pop()
}

/// Where a replica stands that wants to catch up.
#[derive(Debug, Clone)]
pub(crate) struct Standing {
    pub(crate) lsn: Lsn,
    pub(crate) hash: ChainHash,
    pub(crate) volumes: Lineage,
}

/// Reads what came after `from`: its heads, or a newer checkpoint and the heads since where more than
/// [`JUMP_COMMITS`] are missing or some are gone. `kept` is what earlier tries have read; it is empty after
/// any end but a failure of the store.
pub(crate) async fn catch_up(
    remote: &dyn Remote,
    from: &Standing,
    kept: &ReadBefore,
) -> Result<Pulled, PullError> {
    let caught_up = try_catch_up(remote, from, kept).await;
    if !matches!(caught_up, Err(PullError::Remote(_))) {
        kept.0.lock().clear();
    }
    caught_up
}

async fn try_catch_up(remote: &dyn Remote, from: &Standing, kept: &ReadBefore) -> Result<Pulled, PullError> {
    let volume = from.volumes.own();
    let newest = newest_lsn(remote, volume).await?.max(from.volumes.forked_at());
    if newest < from.lsn {
        return Err(PullError::Diverged { volume, lsn: newest.next() });
    }
    // Nearly always one; a replica that stands before a fork goes through its ancestors.
    let mut spans = Vec::new();
    let mut low = from.lsn;
    for (volume, last) in from.volumes.volumes() {
        if low < *last && low < newest {
            let high = newest.min(*last);
            spans.push((*volume, low, high));
            low = high;
        }
    }
    if newest.0 - from.lsn.0 <= JUMP_COMMITS {
        match read_heads(remote, &spans, from.hash, Some(kept)).await {
            // Gone already: a checkpoint has what they said.
            Err(PullError::Expired { .. }) => {}
            read => return Ok(Pulled { from: from.lsn, jump: None, heads: read? }),
        }
    }
    let seq = newest_checkpoint(remote, volume).await?;
    if seq != Seq::ZERO {
        let mut start = read_checkpoint(remote, volume, seq).await?;
        if start.lsn > from.lsn {
            continues(remote, from).await?;
            let span = (volume, start.lsn, newest.max(start.lsn));
            let heads = read_heads(remote, &[span], start.hash, Some(kept)).await?;
            start.volumes = from.volumes.clone();
            return Ok(Pulled { from: from.lsn, jump: Some(Box::new(start)), heads });
        }
    }
    let heads = read_heads(remote, &spans, from.hash, Some(kept)).await?;
    Ok(Pulled { from: from.lsn, jump: None, heads })
}

/// Whether the log is still the one that `from` is of.
async fn continues(remote: &dyn Remote, from: &Standing) -> Result<(), PullError> {
    if from.lsn == Lsn::ZERO {
        return Ok(());
    }
    let volume = from.volumes.origin(from.lsn);
    let hash = match read_entry(remote, volume, from.lsn).await {
        Ok(Entry::Commit(head)) => Some(head.hash),
        Ok(Entry::Gone(tombstone)) => Some(tombstone.hash),
        Err(PullError::Remote(RemoteError::NotFound { .. })) => None,
        Err(error) => return Err(error),
    };
    // Below the bottom nothing is left to compare with, and what is there may be a late writer's. What the
    // checkpoint names has hashes of its own, so that no page of another history is taken for one of ours.
    if hash == Some(from.hash) || from.lsn <= gc::bottom::bottom(remote, volume).await?.lsn {
        return Ok(());
    }
    match hash {
        Some(_) => Err(PullError::Diverged { volume, lsn: from.lsn }),
        None => Err(PullError::Expired { volume, lsn: from.lsn }),
    }
}

/// The newest commits of a volume's own log, newest first: at most `limit`, and as far back as they are
/// retained. One listing, and one prefix read for each.
pub async fn log(remote: &dyn Remote, volume: VolumeId, limit: usize) -> Result<Vec<Head>, PullError> {
    let newest = newest_lsn(remote, volume).await?;
    let reads = (1..=newest.0).rev().take(limit).map(|lsn| read_head(remote, volume, Lsn(lsn)));
    let mut reads = futures::stream::iter(reads).buffered(CONCURRENT_READS);
    let mut heads: Vec<Head> = Vec::new();
    while let Some(read) = reads.next().await {
        let head = match read {
            // A fork's log begins where it was forked; another's, where garbage collection has come to.
            Err(PullError::Expired { .. } | PullError::Remote(RemoteError::NotFound { .. })) => break,
            read => read?,
        };
        if let Some(later) = heads.last().filter(|later| later.parent != head.hash) {
            match broken(remote, volume, later.lsn).await? {
                // It is no part of the log any more.
                PullError::Expired { .. } => break,
                error => return Err(error),
            }
        }
        heads.push(head);
    }
    Ok(heads)
}
