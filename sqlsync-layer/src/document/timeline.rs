//! What a document keeps beside its volume: who it is, its mutations, its branches.
//!
//! All of it lies in [`Space::Timeline`], and changes in the same batch as the local commits it explains.
//! Numbers in keys are big-endian, values are postcard after one version byte.
//!
//! | key | value |
//! | --- | --- |
//! | `vid ‖ 'c'` | [`Me`]: client id, next seq, the LSN at which the id was made |
//! | `vid ‖ 'm' ‖ seq` | a [`Kept`] mutation without a final answer, or rejected and not yet dealt with |
//! | `vid ‖ 'b' ‖ number` | a [`Branch`]: local work that found no place in the history |
//! | `vid ‖ 'p' ‖ number` | a [`Planned`]: under which id and name the branch of that number is published |
//! | `name/` ‖ name | the volume that a name led to, and its page size, for opening it offline |
//!
//! Invariants: a mutation is here from the batch that stores its local commit until its outcome is in the
//! log (or the app dealt with its rejection); a branch is stored in the batch that takes its commits off
//! the stack, and removed, with the plan for its publication, when all of it is in another volume's log or
//! the app drops it.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use graft::store::{Batch, SharedStore, Space, StoreError};
use graft::volume::LocalCommit;
use graft::{Lsn, PageIdx, PageSize, VolumeId, VolumeName};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::payload::Mutation;
use crate::protocol::{ClientId, Reason};

const VERSION: u8 = 1;

/// Who the document is in its volume.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Me {
    pub(super) client: ClientId,
    /// The seq of the next mutation.
    pub(super) next_seq: u64,
    /// The newest commit known when the id was made: nothing of it is in the log before.
    pub(super) since: u64,
}

/// A mutation in the timeline.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Kept {
    pub(super) mutation: Mutation,
    /// `None` while it has no final answer.
    pub(super) rejected: Option<Reason>,
}

/// Local work that found no place in the history. It is kept as it was, on the commit it was made on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Branch {
    /// Its number in this document.
    pub number: u64,
    /// The commit that it was made on.
    pub base: u64,
    /// Why it could not stay.
    pub why: String,
    commits: Vec<StoredCommit>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct StoredCommit {
    number: u64,
    pages_before: u32,
    pages_after: u32,
    changes: Vec<(u32, Vec<u8>)>,
    payload: Vec<u8>,
}

/// How a branch is published: decided once, so that every try makes the same volume.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Planned {
    /// The branch's number.
    pub(super) number: u64,
    /// The new volume's id.
    pub(super) child: [u8; 16],
    /// Its name.
    pub(super) name: String,
    /// The time that its commits carry, ms since 1970.
    pub(super) time_ms: i64,
}

impl Branch {
    pub(super) fn new(number: u64, base: Lsn, why: String, commits: &[LocalCommit]) -> Branch {
        let stored = |local: &LocalCommit| StoredCommit {
            number: local.number,
            pages_before: local.pages_before,
            pages_after: local.pages_after,
            changes: local.changes.iter().map(|(page, bytes)| (page.get(), bytes.to_vec())).collect(),
            payload: local.payload.to_vec(),
        };
        Branch { number, base: base.0, why, commits: commits.iter().map(stored).collect() }
    }

    /// Its local commits, oldest first, on top of [`Branch::base`].
    pub fn commits(&self) -> Vec<LocalCommit> {
        let local = |stored: &StoredCommit| LocalCommit {
            number: stored.number,
            pages_before: stored.pages_before,
            pages_after: stored.pages_after,
            changes: Arc::new(
                stored
                    .changes
                    .iter()
                    .filter_map(|(page, bytes)| Some((PageIdx::new(*page)?, Bytes::copy_from_slice(bytes))))
                    .collect(),
            ),
            payload: Bytes::copy_from_slice(&stored.payload),
        };
        self.commits.iter().map(local).collect()
    }
}

fn encode<T: Serialize>(value: &T) -> Bytes {
    let bytes = postcard::to_extend(value, vec![VERSION]);
    bytes.expect("our own types serialise into a vector that grows").into()
}

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    let (version, body) = bytes.split_first()?;
    (*version == VERSION).then(|| postcard::from_bytes(body).ok()).flatten()
}

/// The timeline of one volume in a store, or nowhere.
#[derive(Debug, Clone)]
pub(super) struct Timeline {
    store: Option<SharedStore>,
    volume: VolumeId,
}

/// What a timeline held at open.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) me: Option<Me>,
    pub(super) kept: BTreeMap<u64, Kept>,
    pub(super) branches: BTreeMap<u64, Branch>,
    pub(super) planned: BTreeMap<u64, Planned>,
}

/// What a timeline holds cannot be read.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum TimelineError {
    /// The local store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// An entry is damaged.
    #[error(
        "the local store's timeline of volume {volume} is damaged at `{key}`; remove the data directory if it holds no unsent work"
    )]
    Damaged {
        /// Which volume.
        volume: VolumeId,
        /// Which entry, in hex.
        key: String,
    },
}

impl Timeline {
    pub(super) fn new(store: Option<SharedStore>, volume: VolumeId) -> Timeline {
        Timeline { store, volume }
    }

    fn key(&self, kind: u8, number: Option<u64>) -> Vec<u8> {
        let mut key = self.volume.0.to_vec();
        key.push(kind);
        key.extend(number.into_iter().flat_map(u64::to_be_bytes));
        key
    }

    pub(super) fn put_me(&self, batch: &mut Batch, me: &Me) {
        batch.put(Space::Timeline, self.key(b'c', None), encode(me));
    }

    pub(super) fn put_mutation(&self, batch: &mut Batch, kept: &Kept) {
        batch.put(Space::Timeline, self.key(b'm', Some(kept.mutation.seq)), encode(kept));
    }

    pub(super) fn remove_mutation(&self, batch: &mut Batch, seq: u64) {
        batch.remove(Space::Timeline, self.key(b'm', Some(seq)));
    }

    pub(super) fn put_branch(&self, batch: &mut Batch, branch: &Branch) {
        batch.put(Space::Timeline, self.key(b'b', Some(branch.number)), encode(branch));
    }

    pub(super) fn remove_branch(&self, batch: &mut Batch, number: u64) {
        batch.remove(Space::Timeline, self.key(b'b', Some(number)));
    }

    pub(super) fn put_planned(&self, batch: &mut Batch, planned: &Planned) {
        batch.put(Space::Timeline, self.key(b'p', Some(planned.number)), encode(planned));
    }

    pub(super) fn remove_planned(&self, batch: &mut Batch, number: u64) {
        batch.remove(Space::Timeline, self.key(b'p', Some(number)));
    }

    /// Writes changes that belong to no local commit.
    pub(super) fn write(&self, batch: Batch) -> Result<(), StoreError> {
        match &self.store {
            Some(store) if !batch.changes.is_empty() => store.write(batch, Default::default()),
            Some(_) | None => Ok(()),
        }
    }

    /// Reads everything back.
    pub(super) fn read(&self) -> Result<Found, TimelineError> {
        let mut found = Found::default();
        let Some(store) = &self.store else { return Ok(found) };
        for (key, value) in store.scan(Space::Timeline, &self.volume.0)? {
            let damaged = || TimelineError::Damaged { volume: self.volume, key: hex::encode(&key) };
            match key.get(self.volume.0.len()) {
                Some(b'c') => found.me = Some(decode(&value).ok_or_else(damaged)?),
                Some(b'm') => {
                    let kept: Kept = decode(&value).ok_or_else(damaged)?;
                    found.kept.insert(kept.mutation.seq, kept);
                }
                Some(b'b') => {
                    let branch: Branch = decode(&value).ok_or_else(damaged)?;
                    found.branches.insert(branch.number, branch);
                }
                Some(b'p') => {
                    let planned: Planned = decode(&value).ok_or_else(damaged)?;
                    found.planned.insert(planned.number, planned);
                }
                Some(_) | None => return Err(damaged()),
            }
        }
        Ok(found)
    }
}

/// Remembers which volume a name leads to.
pub(super) fn remember_name(
    store: &SharedStore,
    name: &VolumeName,
    volume: VolumeId,
    page_size: PageSize,
) -> Result<(), StoreError> {
    let mut batch = Batch::default();
    let value = [&volume.0[..], &page_size.get().to_le_bytes()].concat();
    batch.put(Space::Timeline, name_key(name), value);
    store.write(batch, Default::default())
}

/// The volume that a name led to when it was last opened here.
pub(super) fn remembered_name(
    store: &SharedStore,
    name: &VolumeName,
) -> Result<Option<(VolumeId, PageSize)>, StoreError> {
    let found = store.get(Space::Timeline, &name_key(name))?;
    Ok(found.and_then(|value| {
        let (volume, size) = value.split_first_chunk::<16>()?;
        let size = PageSize::new(u32::from_le_bytes(size.try_into().ok()?))?;
        Some((VolumeId(*volume), size))
    }))
}

fn name_key(name: &VolumeName) -> Vec<u8> {
    [b"name/", name.as_str().as_bytes()].concat()
}
