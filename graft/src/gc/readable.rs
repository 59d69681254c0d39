//! What readable states name: the mark phase of a collection.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use futures::{StreamExt as _, TryStreamExt as _};

use super::inventory::{Inventory, Segment};
use super::{CONCURRENT, Floor, GcError, is_buried, published};
use crate::format::Damaged;
use crate::format::checkpoint::{ChunkRef, Root};
use crate::format::chunk::{self, Object, ObjectKind};
use crate::format::pin::Pin;
use crate::history::read_checkpoint;
use crate::ids::{CommitId, Epoch, Lsn, Seq, VolumeId};
use crate::pull::{PullError, read_head};
use crate::remote::Remote;

/// What must stay: objects by what they are.
#[derive(Default)]
pub(super) struct Marks {
    pub(super) commits: BTreeSet<Lsn>,
    pub(super) checkpoints: BTreeSet<Seq>,
    pub(super) segments: HashSet<String>,
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

/// What became of marking a checkpoint.
enum Marked {
    /// It is there, and what it names is marked.
    Whole(Box<Root>),
    /// It was collected since it was listed.
    Gone,
    /// It is there, and a part of its page table was collected with an older checkpoint: nobody retained it
    /// then. Nothing is marked.
    GivenUp,
}

/// Marks what the checkpoint `seq` names in its own volume; a chunk that was read before is passed over.
async fn mark_checkpoint(
    remote: &dyn Remote,
    volume: VolumeId,
    seq: Seq,
    marks: &mut Marks,
    known: &mut HashSet<(VolumeId, Seq, u64)>,
) -> Result<Marked, GcError> {
    let start = match read_checkpoint(remote, volume, seq).await {
        Ok(start) => start,
        // Another collector was faster: what it deleted, nobody retains.
        Err(PullError::Expired { .. }) => return Ok(Marked::Gone),
        Err(error) => return Err(error.into()),
    };
    let Some(root) = start.checkpoint else { return Ok(Marked::Gone) };
    let fresh: Vec<ChunkRef> = root
        .chunks
        .iter()
        .filter(|chunk| known.insert((chunk.volume, chunk.seq, chunk.offset)))
        .copied()
        .collect();
    let reads = fresh.iter().map(|chunk| chunk_objects(remote, &root, *chunk));
    let objects: Vec<Option<(ChunkRef, Vec<Object>)>> =
        futures::stream::iter(reads).buffer_unordered(CONCURRENT).try_collect().await?;
    let Some(objects) = objects.into_iter().collect::<Option<Vec<_>>>() else {
        // Whoever else names one of them must mark it.
        for chunk in fresh {
            known.remove(&(chunk.volume, chunk.seq, chunk.offset));
        }
        return Ok(Marked::GivenUp);
    };
    marks.checkpoints.insert(seq);
    for (chunk, objects) in objects {
        if chunk.volume == volume {
            marks.checkpoints.insert(chunk.seq);
        }
        objects.iter().filter(|object| object.volume == volume).for_each(|object| marks.object(object));
    }
    Ok(Marked::Whole(Box::new(Root::clone(&root))))
}

/// The newest checkpoint that is there, at or below `lsn`; 0 for none. `lsns` are those known already.
///
/// LSNs ascend with the numbers, so it is found by halves. Below the bottom, a late checkpointer's may
/// stand in between until it is buried, and break that order: there one is read after the other, of the
/// few that something keeps.
async fn newest_below(
    remote: &dyn Remote,
    volume: VolumeId,
    inventory: &Inventory,
    lsn: Lsn,
    lsns: &mut BTreeMap<Seq, Lsn>,
) -> Result<Seq, GcError> {
    let bottom = inventory.bottom();
    let live: Vec<Seq> = inventory.checkpoints.keys().copied().collect();
    let ordered = live.partition_point(|seq| *seq <= bottom.seq);
    let (mut below, mut above) = (ordered, live.len());
    while below < above {
        let middle = usize::midpoint(below, above);
        let fits = lsn_of(remote, volume, live[middle], lsns).await? <= lsn;
        if fits { below = middle + 1 } else { above = middle }
    }
    if below > ordered {
        return Ok(live[below - 1]);
    }
    for seq in live[..ordered].iter().rev() {
        if lsn_of(remote, volume, *seq, lsns).await? <= lsn {
            return Ok(*seq);
        }
    }
    Ok(Seq::ZERO)
}

async fn lsn_of(
    remote: &dyn Remote,
    volume: VolumeId,
    seq: Seq,
    lsns: &mut BTreeMap<Seq, Lsn>,
) -> Result<Lsn, GcError> {
    if let Some(known) = lsns.get(&seq) {
        return Ok(*known);
    }
    let lsn = match read_checkpoint(remote, volume, seq).await {
        Ok(start) => start.lsn,
        // Another collector was faster: it and what is before it is below every pin's.
        Err(PullError::Expired { .. }) => Lsn::ZERO,
        Err(error) => return Err(error.into()),
    };
    lsns.insert(seq, lsn);
    Ok(lsn)
}

/// The objects that a chunk names. `None` where there is a tombstone instead of the checkpoint that held it.
async fn chunk_objects(
    remote: &dyn Remote,
    root: &Root,
    at: ChunkRef,
) -> Result<Option<(ChunkRef, Vec<Object>)>, GcError> {
    let end = at.offset.saturating_add(at.bytes.into());
    let bytes = remote.get_range(&at.key(), at.offset..end).await?;
    if bytes.len() < at.bytes as usize && is_buried(remote, &at.key()).await? {
        return Ok(None);
    }
    if bytes.len() != at.bytes as usize || chunk::hash(at.index, &bytes) != at.hash {
        let reason = format!("chunk {} of its page table does not match its hash", at.index);
        return Err(Damaged::new(&at.key(), reason).into());
    }
    let decoded = chunk::decode(at.index, &root.lineage, &bytes);
    let decoded = decoded.map_err(|reason| Damaged::new(&at.key(), reason))?;
    let objects: BTreeSet<Object> = decoded.frames().map(|frame| frame.object).collect();
    Ok(Some((at, objects.into_iter().collect())))
}

/// What readable states name: those at the floor and above, and pinned ones.
pub(super) struct Readable {
    pub(super) marks: Marks,
    /// The newest checkpoint's.
    pub(super) epoch: Epoch,
    /// The LSNs, first and last, of commits that are read one by one.
    ranges: Vec<(Lsn, Lsn)>,
}

impl Readable {
    pub(super) async fn mark<'a>(
        remote: &dyn Remote,
        volume: VolumeId,
        inventory: &Inventory,
        floor: Floor,
        pins: impl Iterator<Item = &'a Pin>,
    ) -> Result<Readable, GcError> {
        let (mut marks, mut known, mut epoch) = (Marks::default(), HashSet::new(), Epoch::default());
        // By LSN, for pins: the newest checkpoints first.
        let mut lsns: BTreeMap<Seq, Lsn> = BTreeMap::new();
        // Whether the newest one that was listed is marked. What was made since then names places of its
        // own, of newer commits, and of that one, but for those of no older one: with it, a list that is
        // old by now decides as a new one does.
        let mut sees_newest = floor.seq == Seq::ZERO;
        for (seq, _) in inventory.checkpoints.range(floor.seq..) {
            match mark_checkpoint(remote, volume, *seq, &mut marks, &mut known).await? {
                Marked::Whole(root) => {
                    // They ascend: the newest one's is in force.
                    epoch = root.epoch;
                    lsns.insert(*seq, root.lsn);
                    sees_newest = true;
                }
                Marked::Gone => sees_newest = false,
                // Another collector is at work there.
                Marked::GivenUp => return Err(PullError::Expired { volume, lsn: floor.lsn }.into()),
            }
        }
        if !sees_newest {
            // Another collector gave up all that we see, and keeps what we do not: our list is too old.
            return Err(PullError::Expired { volume, lsn: floor.lsn }.into());
        }
        let mut ranges: Vec<(Lsn, Lsn)> = vec![(floor.lsn.next(), Lsn(u64::MAX))];
        for pin in pins {
            let seq = match pin.seq {
                Some(seq) => seq,
                None => newest_below(remote, volume, inventory, pin.lsn, &mut lsns).await?,
            };
            let from = if seq == Seq::ZERO {
                Lsn::ZERO
            } else {
                match mark_checkpoint(remote, volume, seq, &mut marks, &mut known).await? {
                    Marked::Whole(root) => root.lsn,
                    Marked::Gone | Marked::GivenUp if pin.seq.is_some() => continue,
                    // A pin of a removed fork that arrived late, below the floor: that state is lost, and a
                    // newer checkpoint is none at or below the pin's commit. It keeps nothing.
                    Marked::GivenUp if inventory.checkpoints.range(seq.next()..).next().is_some() => continue,
                    // Another collector is at work, and sees other checkpoints: let it finish.
                    Marked::Gone | Marked::GivenUp => {
                        return Err(PullError::Expired { volume, lsn: pin.lsn }.into());
                    }
                }
            };
            ranges.push((from.next(), pin.lsn));
        }
        Ok(Readable { marks, epoch, ranges })
    }

    pub(super) fn retains(&self, lsn: Lsn) -> bool {
        self.ranges.iter().any(|(from, to)| *from <= lsn && lsn <= *to)
    }
}

/// Segments that no readable state names: what lost writers, dead compactions and crashes have left, and
/// what is being uploaded now.
pub(crate) async fn unnamed(remote: &dyn Remote, volume: VolumeId) -> Result<Vec<String>, GcError> {
    let floor = published(remote, volume).await?;
    // Nothing is deleted here: ages do not matter.
    let inventory = Inventory::take(remote, volume, i64::MAX).await?;
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
