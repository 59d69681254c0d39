//! What the store lists of a volume, and what each key says by itself.
//!
//! Costs one LIST for each thousand objects, at least eight, and one read for each pin and lease.

use std::collections::BTreeMap;

use super::{Floor, GcError, Pinned, floor_of};
use crate::format::Damaged;
use crate::format::pin::Pin;
use crate::format::tombstone::TOMBSTONE_BYTES;
use crate::ids::{Epoch, Lsn, Seq, VolumeId, key};
use crate::remote::{Listed, Remote, RemoteError};

const LIST_ROWS: usize = 1000;

/// Everything of one volume that the store lists.
pub(super) struct Inventory {
    /// Those that are no tombstones.
    pub(super) commits: BTreeMap<Lsn, Listed>,
    /// Tombstones of commits, newest first, and when each was written. There may be very many.
    pub(super) buried_commits: Vec<(Lsn, i64)>,
    /// Those that are no tombstones.
    pub(super) checkpoints: BTreeMap<Seq, Listed>,
    /// Tombstones of checkpoints, newest first, and when each was written.
    pub(super) buried_checkpoints: Vec<(Seq, i64)>,
    pub(super) segments: Vec<(Segment, Listed)>,
    pub(super) floors: Vec<(Floor, Listed)>,
    pub(super) bottoms: Vec<(Floor, Listed)>,
    pub(super) pinned: Vec<(Pinned, Listed)>,
    /// The newest stamp of what a run does not write before it lists, which is all but floors and bottoms
    /// (a dry run writes nothing, and must see the same), but not later than the collector's clock: a lower
    /// bound of the store's clock, by which the ages of tombstones and leases are measured. Where stamps are
    /// file times, a file may be of the future: it must not make everything else look old.
    pub(super) store_ms: i64,
}

/// Whose a segment is, from its key alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Segment {
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
    pub(super) async fn take(
        remote: &dyn Remote,
        volume: VolumeId,
        now_ms: i64,
    ) -> Result<Inventory, GcError> {
        let number = |row: &Listed| row.key.rsplit('/').next().and_then(Lsn::from_key_part);
        let odd = |row: &Listed| Damaged::new(&row.key, "its key is not one of ours");
        let mut inventory = Inventory {
            commits: BTreeMap::new(),
            buried_commits: Vec::new(),
            checkpoints: BTreeMap::new(),
            buried_checkpoints: Vec::new(),
            segments: Vec::new(),
            floors: Vec::new(),
            bottoms: Vec::new(),
            pinned: Vec::new(),
            store_ms: i64::MIN,
        };
        let buried = |row: &Listed| row.bytes == TOMBSTONE_BYTES as u64;
        // Segments before the commits and checkpoints that may name them: what is listed first can only
        // be kept by what is listed later.
        for row in list_all(remote, &key::segments_prefix(volume)).await? {
            inventory.stamp(&row);
            inventory.segments.push((segment_of(&row)?, row));
        }
        for row in list_all(remote, &key::log_prefix(volume)).await? {
            inventory.stamp(&row);
            let lsn = number(&row).ok_or_else(|| odd(&row))?;
            if buried(&row) {
                inventory.buried_commits.push((lsn, row.modified_ms));
            } else {
                inventory.commits.insert(lsn, row);
            }
        }
        for row in list_all(remote, &key::checkpoints_prefix(volume)).await? {
            let seq = number(&row).map(|lsn| Seq(lsn.0)).ok_or_else(|| odd(&row))?;
            inventory.stamp(&row);
            if buried(&row) {
                inventory.buried_checkpoints.push((seq, row.modified_ms));
            } else {
                inventory.checkpoints.insert(seq, row);
            }
        }
        for row in list_all(remote, &key::horizon_prefix(volume)).await? {
            inventory.floors.push((floor_of(&row)?, row));
        }
        for row in list_all(remote, &key::bottom_prefix(volume)).await? {
            inventory.bottoms.push((floor_of(&row)?, row));
        }
        for prefix in [key::forks_prefix(volume), key::pins_prefix(volume), key::readers_prefix(volume)] {
            for row in list_all(remote, &prefix).await? {
                inventory.stamp(&row);
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
        inventory.store_ms = inventory.store_ms.min(now_ms);
        Ok(inventory)
    }

    fn stamp(&mut self, row: &Listed) {
        self.store_ms = self.store_ms.max(row.modified_ms);
    }

    /// The bottom in force; see [`super::bottom`]. Two collectors may have published one each, of which
    /// one is higher in commits and the other in checkpoints.
    pub(super) fn bottom(&self) -> Floor {
        let highest =
            |a: Floor, b: &(Floor, Listed)| Floor { lsn: a.lsn.max(b.0.lsn), seq: a.seq.max(b.0.seq) };
        self.bottoms.iter().fold(Floor::default(), highest)
    }

    /// The newest checkpoint's number; 0 for none.
    pub(super) fn newest_seq(&self) -> Seq {
        let live = self.checkpoints.keys().next_back().copied();
        let buried = self.buried_checkpoints.first().map(|(seq, _)| *seq);
        live.max(buried).unwrap_or(Seq::ZERO)
    }

    /// Whether a commit has or had this LSN: whoever made something for it and is not that commit, has
    /// lost. The log has no gaps above its bottom, and what is below it was taken once.
    pub(super) fn is_taken(&self, lsn: Lsn) -> bool {
        let live = self.commits.keys().next_back().copied();
        let buried = self.buried_commits.first().map(|(lsn, _)| *lsn);
        live.max(buried).is_some_and(|newest| lsn <= newest)
    }
}
