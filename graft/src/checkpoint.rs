//! Writing checkpoints: a whole page table and the layer's state at one LSN, so that opening costs the
//! same however long the log is.
//!
//! Checkpoint `seq + 1` is derived from checkpoint `seq` and the commits since: chunks of the page table
//! that none of them touched are named where they are stored already, the others are read, merged and
//! stored anew. No page is read.
//!
//! Two at once are safe: a checkpoint is one conditional create of the next number. Whoever is late,
//! were it by weeks, loses it, and everything that the winner names is still there: garbage collection
//! keeps what the newest checkpoint names. No clock has a part in this; see
//! `docs/decisions/0008-checkpoints-are-a-second-log.md`.
//!
//! Invariants: a checkpoint's state is the layer's at exactly its LSN; a replica that learns of a
//! checkpoint of its own past goes on from it without a change of content.

use std::sync::Arc;

use bytes::Bytes;

use crate::chunks::{self, REWRITE_BYTES_MAX};
use crate::fetch::FetchError;
use crate::format::Damaged;
use crate::format::checkpoint::{HISTORY_MAX, NewChunk, Past, Root, STATE_BYTES_MAX, assemble};
use crate::format::chunk;
use crate::format::pin::Pin;
use crate::history::{Start, checkpoint_below, newest_checkpoint, read_checkpoint};
use crate::ids::{ChainHash, Epoch, Lsn, Seq, key};
use crate::page_set::PageSet;
use crate::pull::PullError;
use crate::remote::{Remote, RemoteError};
use crate::replan;
use crate::snapshot::{Location, RemoteChunk, Snapshot};
use crate::store::StoreError;
use crate::volume::Volume;

/// When a checkpoint is due: whichever comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// So many commits since the newest one known.
    pub commits: u64,
    /// So many bytes of their heads.
    pub bytes: u64,
}

impl Default for Policy {
    fn default() -> Policy {
        Policy { commits: 64, bytes: 4 << 20 }
    }
}

/// How writing a checkpoint ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Written {
    /// It is stored, and the replica begins there now.
    Stored {
        /// Its number.
        seq: Seq,
        /// The commit whose state it is.
        lsn: Lsn,
    },
    /// Another writer made it first. Nothing is lost: the replica goes on from that one.
    Lost {
        /// The number that went to the other.
        seq: Seq,
    },
    /// There is nothing that the newest checkpoint does not have.
    Current {
        /// The newest one; 0 for none, of a volume without commits.
        seq: Seq,
        /// Its commit.
        lsn: Lsn,
    },
}

/// Why no checkpoint was written, or it is not known. The volume is as it was.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// A part of the page table could not be read.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// The store failed on the new object: it may be there now or later. Write again: whichever it
    /// is, it will be seen.
    #[error("whether checkpoint {seq} was stored is unknown: {source}")]
    Unknown {
        /// Its number.
        seq: Seq,
        /// What the store said.
        source: RemoteError,
    },
    /// What another writer made first could not be read.
    #[error(transparent)]
    Pull(#[from] PullError),
    /// Local commits lie on the snapshot: only durable states have checkpoints.
    #[error("the snapshot holds local commits; give the volume's base")]
    NotDurable,
    /// The layer's state is longer than readers accept.
    #[error("a state of {bytes} bytes is more than a checkpoint holds")]
    StateTooLong {
        /// Its length.
        bytes: usize,
    },
}

impl From<StoreError> for CheckpointError {
    fn from(error: StoreError) -> CheckpointError {
        CheckpointError::Fetch(error.into())
    }
}
impl From<Damaged> for CheckpointError {
    fn from(damaged: Damaged) -> CheckpointError {
        CheckpointError::Fetch(damaged.into())
    }
}

/// Writes the next checkpoint of `volume`: of `snapshot`, which is its base or was, with what the layer
/// above remembers at exactly that LSN.
///
/// One request where the chunks that commits touched are in memory; ranged reads of those before it.
/// The replica begins at the new checkpoint afterwards, or at the one that another writer made.
///
/// # Errors
///
/// See [`CheckpointError`]. Any of them may be met by writing again later, and nothing depends on it.
pub async fn write(
    remote: &dyn Remote,
    volume: &Volume,
    snapshot: &Snapshot,
    state: Bytes,
) -> Result<Written, CheckpointError> {
    let before = snapshot.checkpoint().filter(|root| root.volume == volume.id());
    let current = before.map_or((Seq::ZERO, Lsn::ZERO), |root| (root.seq, root.lsn));
    if snapshot.lsn() == current.1 {
        return Ok(Written::Current { seq: current.0, lsn: current.1 });
    }
    let hot = before.map(|root| root.hot.clone()).unwrap_or_default();
    write_next(remote, volume, snapshot, state, hot).await
}

/// Writes the next checkpoint even where the newest one has the same LSN: a compaction's has other
/// locations in it. `hot` are its hot pages.
pub(crate) async fn write_next(
    remote: &dyn Remote,
    volume: &Volume,
    snapshot: &Snapshot,
    state: Bytes,
    mut hot: PageSet,
) -> Result<Written, CheckpointError> {
    let id = volume.id();
    let before = snapshot.checkpoint().filter(|root| root.volume == id);
    let newest = before.map_or(Seq::ZERO, |root| root.seq);
    hot.clip(snapshot.pages());
    if state.len() as u64 > STATE_BYTES_MAX {
        return Err(CheckpointError::StateTooLong { bytes: state.len() });
    }
    let seq = newest.next();
    let touched = snapshot.chunks().filter(|view| view.untouched().is_none());
    let unread = touched.filter_map(|view| view.base().filter(|base| base.get().is_none()));
    let mut missing = Vec::new();
    for base in unread {
        if !volume.load_stored(snapshot, base)? {
            missing.push(base.clone());
        }
    }
    if let Err(error) = chunks::read(remote, volume, snapshot, missing).await {
        // Collected meanwhile? Then the volume goes on from the newest checkpoint, and so does the next try.
        replan::elsewhere(remote, volume, snapshot, &PageSet::new(), error).await?;
        return Err(PullError::Expired { volume: id, lsn: snapshot.lsn() }.into());
    }

    let (chunks, bases) = table(snapshot)?;
    let mut history: Vec<Past> =
        before.map_or_else(Vec::new, |root| root.history.iter().copied().chain([root.past()]).collect());
    history.drain(..history.len().saturating_sub(HISTORY_MAX));
    let mut root = Root {
        volume: id,
        seq,
        lsn: snapshot.lsn(),
        chain: snapshot.hash(),
        time_ms: snapshot.time_ms(),
        pages: snapshot.pages(),
        page_size: snapshot.page_size(),
        lineage: snapshot.volumes().clone(),
        history,
        chunks: Vec::new(),
        epoch: before.map_or(Epoch::default(), |root| root.epoch),
        hot,
        state_bytes: 0,
        state_hash: [0; 16],
        hash: ChainHash::ZERO,
        encoded: Bytes::new(),
    };
    if before.is_none() {
        pin_ancestors(remote, volume, snapshot).await?;
    }
    let object = assemble(&mut root, &chunks, &state);
    let hash = root.hash;
    if let Err(source) = remote.create(&key::checkpoint(id, seq), object).await {
        // Whose it is, if it is there: ours from an unanswered try, or another writer's.
        match read_checkpoint(remote, id, seq).await {
            Ok(found) if found.checkpoint.as_ref().is_some_and(|root| root.hash == hash) => {}
            Ok(_) | Err(PullError::Expired { .. }) => {
                follow(remote, volume, snapshot).await?;
                return Ok(Written::Lost { seq });
            }
            Err(PullError::Damaged(damaged)) => return Err(damaged.into()),
            Err(PullError::Remote(_) | PullError::Diverged { .. }) => {
                return Err(CheckpointError::Unknown { seq, source });
            }
        }
    }
    let lsn = root.lsn;
    let start = Start::of(root, state);
    let keep = start.checkpoint.as_ref().is_some_and(|root| root.table_bytes() <= REWRITE_BYTES_MAX);
    for ((chunk, new), base) in start.chunks.iter().zip(&chunks).zip(&bases) {
        match (new, base) {
            (_, Some(base)) => chunk.share(base),
            (NewChunk::Fresh(_, bytes), None) => {
                let filled = chunks::fill(chunk, &start.volumes, bytes, keep);
                filled.map_err(|reason| Damaged::new(&key::checkpoint(id, seq), reason))?;
            }
            (NewChunk::Stored(_), None) => {}
        }
    }
    if let Err(error) = volume.adopt(&start, snapshot.log_bytes()) {
        // The checkpoint stands; this replica learns of it at its next try.
        tracing::warn!(volume = %id, %error, "a checkpoint could not be noted in the local store");
    }
    Ok(Written::Stored { seq, lsn })
}

/// A fork's first page table of its own names places in its ancestors: those of the checkpoint that it
/// was read from, and of the commits since. A compaction there may move what is at these places and let
/// garbage collection free them, so they are pinned, before anything names them.
async fn pin_ancestors(
    remote: &dyn Remote,
    volume: &Volume,
    snapshot: &Snapshot,
) -> Result<(), CheckpointError> {
    let child = snapshot.volumes().own();
    let from = snapshot.checkpoint();
    let ancestors = snapshot.volumes().volumes().iter().filter(|(volume, _)| *volume != child);
    for (ancestor, last) in ancestors {
        let seq = match from {
            Some(root) if root.volume == *ancestor => root.seq,
            // What is before the checkpoint's volume, the pins of that one keep.
            Some(root) if *last <= root.lsn => continue,
            Some(_) | None => Seq::ZERO,
        };
        let pin = Pin { lsn: *last, seq: Some(seq), until_ms: Pin::FOR_EVER };
        let key = key::pin(*ancestor, child, seq);
        match remote.create(&key, pin.encode(&key)).await {
            Ok(()) | Err(RemoteError::AlreadyExists { .. }) => {}
            Err(source) => return Err(FetchError::Remote(source).into()),
        }
        // A collector that listed pins before ours keeps what the fork's own pin names, the newest at or
        // below: if that is still the one that we read, it keeps what we read.
        let newest = newest_checkpoint(remote, *ancestor).await?;
        let found = checkpoint_below(remote, *ancestor, newest, |lsn, _| lsn <= *last).await?;
        let number =
            found.as_ref().and_then(|start| start.checkpoint.as_ref()).map_or(Seq::ZERO, |root| root.seq);
        if number != seq {
            if let Some(mut start) = found {
                // The next try begins there.
                start.volumes = snapshot.volumes().clone();
                volume.adopt(&start, snapshot.log_bytes()).map_err(FetchError::from)?;
            }
            return Err(PullError::Expired { volume: *ancestor, lsn: *last }.into());
        }
    }
    Ok(())
}

/// The chunks of the next checkpoint's table, and for each the one in memory that it is a copy of.
type Table = (Vec<NewChunk>, Vec<Option<Arc<RemoteChunk>>>);

fn table(snapshot: &Snapshot) -> Result<Table, CheckpointError> {
    let table_bytes = snapshot.checkpoint().map_or(0, |root| root.table_bytes());
    let (mut chunks, mut bases) = (Vec::new(), Vec::new());
    for view in snapshot.chunks() {
        if let Some(base) = view.untouched() {
            chunks.push(match base.compressed() {
                Some(bytes) if table_bytes <= REWRITE_BYTES_MAX || view.index == chunks::FIRST => {
                    NewChunk::Fresh(view.index, bytes.clone())
                }
                Some(_) | None => NewChunk::Stored(base.at),
            });
            bases.push(Some(base.clone()));
            continue;
        }
        let mut pages = Vec::new();
        for (location, page) in view.locations().zip(view.pages()) {
            match location {
                _ if page.get() > snapshot.pages() => {}
                Location::Zero => {}
                Location::Frame(frame, slot) => pages.push((&**frame, slot)),
                Location::Local(_) => return Err(CheckpointError::NotDurable),
                Location::Unknown(chunk) => {
                    let reason = format!("chunk {} was not read", chunk.at.index);
                    return Err(Damaged::new(&chunk.at.key(), reason).into());
                }
            }
        }
        if pages.is_empty() {
            continue;
        }
        let bytes = chunk::encode(view.index, snapshot.volumes(), pages.into_iter());
        let bytes = bytes.expect("a table names pages within their chunk and objects of its own volumes");
        chunks.push(NewChunk::Fresh(view.index, bytes));
        bases.push(None);
    }
    Ok((chunks, bases))
}

/// Goes on from the newest checkpoint, which another writer made, unless that is newer than the base.
async fn follow(remote: &dyn Remote, volume: &Volume, snapshot: &Snapshot) -> Result<(), CheckpointError> {
    let seq = newest_checkpoint(remote, volume.id()).await?;
    let mut start = read_checkpoint(remote, volume.id(), seq).await?;
    start.volumes = snapshot.volumes().clone();
    if let Err(error) = volume.adopt(&start, snapshot.log_bytes()) {
        tracing::warn!(volume = %volume.id(), %error, "a checkpoint could not be noted in the local store");
    }
    Ok(())
}

#[cfg(test)]
mod tests;
