//! What a replica keeps in its local store, and reading it back.
//!
//! | space | key | value |
//! | --- | --- | --- |
//! | state | `vid ‖ 's'` | the checkpoint that it begins at: volume, number, root and state |
//! | state | `vid ‖ 'v'` | of a fork: the volumes that it is made of |
//! | state | `vid ‖ 'h' ‖ lsn` (big-endian) | the head of a commit since |
//! | state | `vid ‖ 'c' ‖ hash` | a chunk of that checkpoint's page table |
//! | state | `vid ‖ 'p'` | the pending push: the commit's bytes, and its segments' lengths and hashes |
//! | state | `vid ‖ 'u' ‖ part` (big-endian) | the pending push's segments, each in parts of up to 4 MiB |
//! | state | `vid ‖ 'l'` | the local commit whose parts are being written: its number, and how many there may be |
//! | local | `vid ‖ number` (big-endian) | a local commit; one that leaves the page count alone lies on whatever count is below it |
//!
//! A local commit or a pending push's own value of more than 512 KiB lies in parts of up to 4 MiB, under
//! `"part" ‖ vid ‖ number ‖ part` or `vid ‖ 'q' ‖ part`; its own value is then their length in
//! all, and is written last. So no more than a part is copied at a time, and what decides is a batch so
//! small that the store can take it back where the disk fails: an error is then no commit. Segments are
//! written as they are made, before the value that says that they are there. What a seal or a commit
//! that stopped in between left of its parts, it removes itself where it can; else the next one does, or
//! the next opening.
//!
//! Cached pages are in a file of their own: see [`crate::store::pages`].
//!
//! Invariants: a local commit is written with the replica's durability before it is acknowledged;
//! every byte of the pending push is written before anything is sent, so that whoever goes on with it
//! sends the same; confirming removes the pending push and its
//! local commits and adds the head in one batch, so a crash repeats the settling or finds it done.

use std::collections::{BTreeMap, HashSet};
use std::ops::Range;
use std::sync::Arc;

use bytes::{BufMut as _, Bytes, BytesMut};
use xxhash_rust::xxh3::{Xxh3, xxh3_128};

use super::stack::moved_onto;
use super::{LocalCommit, OpenError, Prepared, State, Volume, stack};
use crate::format::checkpoint::{ChunkRef, Root, state_hash};
use crate::format::chunk::Lineage;
use crate::format::commit::Head;
use crate::format::{Reader, Short};
use crate::gc::bottom::Confirmed;
use crate::history::Start;
use crate::ids::{Lsn, PageIdx, Seq, VolumeId};
use crate::publish::{Builder, Draft, Segment, SegmentSource, Upload};
use crate::snapshot::Snapshot;
use crate::store::{Batch, Durability, ReplicaStore, SharedStore, Space, StoreError};

fn head_prefix(vid: VolumeId) -> Vec<u8> {
    [&vid.0[..], b"h"].concat()
}
fn head_key(vid: VolumeId, lsn: Lsn) -> Vec<u8> {
    [&vid.0[..], b"h", &lsn.0.to_be_bytes()].concat()
}
fn pending_key(vid: VolumeId) -> Vec<u8> {
    [&vid.0[..], b"p"].concat()
}
fn pending_part_key(vid: VolumeId, part: u32) -> Vec<u8> {
    [&vid.0[..], b"q", &part.to_be_bytes()].concat()
}
fn unfinished_key(vid: VolumeId) -> Vec<u8> {
    [&vid.0[..], b"l"].concat()
}
fn segment_part_key(vid: VolumeId, part: u32) -> Vec<u8> {
    [&vid.0[..], b"u", &part.to_be_bytes()].concat()
}
fn local_part_key(vid: VolumeId, number: u64, part: u32) -> Vec<u8> {
    // Not below the volume's own prefix, so that listing its local commits does not read their parts.
    [b"part", &vid.0[..], &number.to_be_bytes(), &part.to_be_bytes()].concat()
}
fn local_key(vid: VolumeId, number: u64) -> Vec<u8> {
    [&vid.0[..], &number.to_be_bytes()].concat()
}
fn start_key(vid: VolumeId) -> Vec<u8> {
    [&vid.0[..], b"s"].concat()
}
fn volumes_key(vid: VolumeId) -> Vec<u8> {
    [&vid.0[..], b"v"].concat()
}
fn chunk_prefix(vid: VolumeId) -> Vec<u8> {
    [&vid.0[..], b"c"].concat()
}
fn chunk_key(vid: VolumeId, hash: &[u8; 16]) -> Vec<u8> {
    [&vid.0[..], b"c", &hash[..]].concat()
}

/// Whether the store holds anything of this volume's log or local commits.
pub(super) fn holds(store: Option<&dyn ReplicaStore>, vid: VolumeId) -> Result<bool, StoreError> {
    let Some(store) = store else { return Ok(false) };
    Ok(store.get(Space::State, &start_key(vid))?.is_some()
        || !store.scan(Space::State, &head_prefix(vid))?.is_empty()
        || !store.scan(Space::Local, &vid.0)?.is_empty())
}

/// A value of more bytes lies in parts.
///
/// Half of what a store on disk takes into its journal: a larger batch goes to its table, and there a
/// durable batch whose sync failed may be found after the next opening.
const WHOLE_BYTES: usize = 512 << 10;

/// The most bytes of a part.
const PART_BYTES: usize = 4 << 20;

/// How many parts a value of `bytes` lies in; 0 for one that lies under its key alone.
fn parts(bytes: usize) -> u32 {
    if bytes <= WHOLE_BYTES { 0 } else { bytes.div_ceil(PART_BYTES) as u32 }
}

/// A value that goes to the store part by part, as it is made.
struct Parted<'a, K: Fn(u32) -> Vec<u8>> {
    store: &'a dyn ReplicaStore,
    space: Space,
    part_key: K,
    part: u32,
    total: usize,
    bytes: BytesMut,
    /// Whether it lies under its key alone.
    whole: bool,
}

impl<K: Fn(u32) -> Vec<u8>> Parted<'_, K> {
    fn put(&mut self, mut bytes: &[u8]) -> Result<(), StoreError> {
        self.total += bytes.len();
        while self.bytes.len() + bytes.len() > PART_BYTES {
            let (now, later) = bytes.split_at(PART_BYTES - self.bytes.len());
            self.bytes.extend_from_slice(now);
            bytes = later;
            self.flush()?;
        }
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    fn flush(&mut self) -> Result<(), StoreError> {
        let mut batch = Batch::default();
        batch.put(self.space, (self.part_key)(self.part), self.bytes.split().freeze());
        self.part += 1;
        self.store.write(batch, Durability::Buffered)
    }

    /// Writes what is left, and puts `key` into `batch`: with it, the value is there.
    fn end(mut self, batch: &mut Batch, key: Vec<u8>) -> Result<(), StoreError> {
        if self.whole {
            batch.put(self.space, key, self.bytes.freeze());
        } else {
            if !self.bytes.is_empty() {
                self.flush()?;
            }
            batch.put(self.space, key, (self.total as u64).to_le_bytes().to_vec());
        }
        Ok(())
    }
}

/// The whole of a value that may lie in parts; `None` where one is missing.
fn joined(
    store: &dyn ReplicaStore,
    space: Space,
    value: Bytes,
    part_key: impl Fn(u32) -> Vec<u8>,
) -> Result<Option<Bytes>, StoreError> {
    let Ok(total) = <[u8; 8]>::try_from(&value[..]) else { return Ok(Some(value)) };
    let total = u64::from_le_bytes(total) as usize;
    let mut whole = BytesMut::new();
    for part in 0..parts(total) {
        // Grown by what is there: the length is not to be believed before.
        let Some(bytes) = store.get(space, &part_key(part))? else { return Ok(None) };
        whole.extend_from_slice(&bytes);
    }
    Ok(Some(whole.freeze()).filter(|whole| whole.len() == total))
}

/// What was written of a local commit's parts, and the note that it was.
fn remove_parts(batch: &mut Batch, vid: VolumeId, number: u64, parts: Range<u32>) {
    for part in parts {
        batch.remove(Space::Local, local_part_key(vid, number, part));
    }
    batch.remove(Space::State, unfinished_key(vid));
}

fn remove_local(batch: &mut Batch, vid: VolumeId, local: &LocalCommit) {
    batch.remove(Space::Local, local_key(vid, local.number));
    for part in 0..parts(local_bytes(local)) {
        batch.remove(Space::Local, local_part_key(vid, local.number, part));
    }
}

/// What a push has left in the store beside its own value.
#[derive(Debug, Default)]
pub(super) struct Kept {
    /// Parts of segments that may be there: all below this number.
    parts: u32,
    /// Parts of its own value that may be there: all below this number.
    own: u32,
}

impl Kept {
    /// Whether any parts may be there.
    pub(super) fn any(&self) -> bool {
        self.parts > 0 || self.own > 0
    }
}

/// What a local commit that was not made left in the store.
#[derive(Debug, Default)]
pub(super) struct Unfinished {
    /// Parts that may be there under the number of the next one: all below this number.
    parts: u32,
}

/// A segment of the pending push, in the store.
#[derive(Debug)]
struct StoredSegment {
    store: SharedStore,
    volume: VolumeId,
    /// Its first part, and its length.
    first: u32,
    len: u64,
}

/// How many parts a segment of `len` bytes lies in.
fn segment_parts(len: u64) -> u32 {
    len.div_ceil(PART_BYTES as u64) as u32
}

impl SegmentSource for StoredSegment {
    fn load(&self, _part: u32) -> Result<Bytes, StoreError> {
        let get = |part| self.store.get(Space::State, &segment_part_key(self.volume, part));
        let parts = segment_parts(self.len);
        if parts == 1 {
            return Ok(get(self.first)?.unwrap_or_default());
        }
        // The writer bounds a segment; a length that lies is found when the bytes end.
        let mut whole = BytesMut::with_capacity((parts as usize).min(8) * PART_BYTES);
        for part in self.first..self.first.saturating_add(parts) {
            let Some(bytes) = get(part)? else { break };
            whole.extend_from_slice(&bytes);
        }
        Ok(whole.freeze())
    }
}

fn remove_pending_parts(batch: &mut Batch, vid: VolumeId, kept: &Kept, prepared: Option<&Prepared>) {
    batch.remove(Space::State, pending_key(vid));
    for part in 0..kept.own.max(parts(prepared.map_or(0, pending_bytes))) {
        batch.remove(Space::State, pending_part_key(vid, part));
    }
    for part in 0..kept.parts {
        batch.remove(Space::State, segment_part_key(vid, part));
    }
}

impl Volume {
    /// A value of `bytes` bytes.
    fn parted<'a, K: Fn(u32) -> Vec<u8>>(
        store: &'a dyn ReplicaStore,
        space: Space,
        part_key: K,
        bytes: usize,
    ) -> Parted<'a, K> {
        let whole = parts(bytes) == 0;
        let bytes = BytesMut::with_capacity(bytes.min(PART_BYTES));
        Parted { store, space, part_key, part: 0, total: 0, bytes, whole }
    }

    fn store(&self) -> Option<&dyn ReplicaStore> {
        self.options.store.as_deref()
    }

    /// The store and the durability of local commits, where they are kept at all.
    pub(super) fn local_store(&self) -> Option<(&dyn ReplicaStore, Durability)> {
        Some((self.store()?, self.options.locals?))
    }

    /// A chunk's compressed bytes, as they were stored; not checked.
    pub(crate) fn stored_chunk(&self, at: &ChunkRef) -> Result<Option<Bytes>, StoreError> {
        let Some(store) = self.store() else { return Ok(None) };
        store.get(Space::State, &chunk_key(self.id, &at.hash))
    }

    /// Keeps chunks that were read. They can be read again: a store that fails loses nothing.
    pub(crate) fn keep_chunks(&self, chunks: &[(ChunkRef, Bytes)]) {
        let Some(store) = self.store() else { return };
        let mut batch = Batch::default();
        for (at, bytes) in chunks {
            batch.put(Space::State, chunk_key(self.id, &at.hash), bytes.clone());
        }
        if let Err(error) = store.write(batch, Durability::Buffered) {
            tracing::warn!(volume = %self.id, %error, "a part of the page table could not be kept");
        }
    }

    /// The replica begins at `start` now: heads before it and chunks that it does not name go.
    fn put_start(&self, batch: &mut Batch, before: &Snapshot, start: &Start) -> Result<(), StoreError> {
        let Some(store) = self.store() else { return Ok(()) };
        match &start.checkpoint {
            None => batch.remove(Space::State, start_key(self.id)),
            Some(root) => batch.put(Space::State, start_key(self.id), encode_start(root, &start.state)),
        }
        match start.volumes.volumes() {
            [] | [_] => batch.remove(Space::State, volumes_key(self.id)),
            more => batch.put(Space::State, volumes_key(self.id), encode_volumes(more)),
        }
        let since = before.checkpoint().map_or(Lsn::ZERO, |root| root.lsn);
        for lsn in since.0.saturating_add(1)..=start.lsn.0.min(before.lsn().0) {
            batch.remove(Space::State, head_key(self.id, Lsn(lsn)));
        }
        let named: HashSet<[u8; 16]> = start.chunks.iter().map(|chunk| chunk.at.hash).collect();
        for (key, _) in store.scan(Space::State, &chunk_prefix(self.id))? {
            if key.last_chunk::<16>().is_none_or(|hash| !named.contains(hash)) {
                batch.remove(Space::State, key);
            }
        }
        for chunk in &start.chunks {
            if let Some(bytes) = chunk.compressed() {
                batch.put(Space::State, chunk_key(self.id, &chunk.at.hash), bytes.clone());
            }
        }
        Ok(())
    }

    /// See [`Volume::adopt`].
    pub(super) fn store_start(&self, before: &Snapshot, start: &Start) -> Result<(), StoreError> {
        let Some(store) = self.store() else { return Ok(()) };
        let mut batch = Batch::default();
        self.put_start(&mut batch, before, start)?;
        store.write(batch, Durability::Buffered)
    }

    pub(super) fn store_pulled(
        &self,
        before: &Snapshot,
        jump: Option<&Start>,
        heads: &[Head],
    ) -> Result<(), StoreError> {
        let Some(store) = self.store() else { return Ok(()) };
        let mut batch = Batch::default();
        self.put_pulled(&mut batch, before, jump, heads)?;
        store.write(batch, Durability::Buffered)
    }

    fn put_pulled(
        &self,
        batch: &mut Batch,
        before: &Snapshot,
        jump: Option<&Start>,
        heads: &[Head],
    ) -> Result<(), StoreError> {
        if let Some(start) = jump {
            self.put_start(batch, before, start)?;
            // Those after the jump's checkpoint that were here are not of what is stored now, either.
            for lsn in start.lsn.0.saturating_add(1)..=before.lsn().0 {
                batch.remove(Space::State, head_key(self.id, Lsn(lsn)));
            }
        }
        for head in heads {
            batch.put(Space::State, head_key(self.id, head.lsn), head.encoded.clone());
        }
        Ok(())
    }

    /// Stores a local commit, and what the layer above stores with it. Its number is that of the one
    /// before which failed, if one did: what that left goes in the same batch.
    pub(super) fn store_local(
        &self,
        unfinished: &mut Unfinished,
        local: &LocalCommit,
        mut batch: Batch,
    ) -> Result<(), StoreError> {
        let Some((store, durability)) = self.local_store() else { return Ok(()) };
        let own = parts(local_bytes(local));
        unfinished.parts = unfinished.parts.max(own);
        let written = self.store_parts(store, unfinished, local, &mut batch);
        if let Err(error) = written {
            // At best: what stays, the next commit or the next opening removes.
            let mut batch = Batch::default();
            remove_parts(&mut batch, self.id, local.number, 0..unfinished.parts);
            match store.write(batch, Durability::Buffered) {
                Ok(()) => *unfinished = Unfinished::default(),
                Err(left) => tracing::debug!(volume = %self.id, error = %left, "parts are left for later"),
            }
            return Err(error);
        }
        if unfinished.parts > 0 {
            remove_parts(&mut batch, self.id, local.number, own..unfinished.parts);
        }
        // Where this fails the parts stay: it may be there after all.
        store.write(batch, durability)?;
        *unfinished = Unfinished::default();
        Ok(())
    }

    /// Writes a local commit's parts, if it has any, and puts its own value into `batch`.
    fn store_parts(
        &self,
        store: &dyn ReplicaStore,
        unfinished: &Unfinished,
        local: &LocalCommit,
        batch: &mut Batch,
    ) -> Result<(), StoreError> {
        if parts(local_bytes(local)) > 0 {
            let mut note = Batch::default();
            let value = encode_unfinished(local.number, unfinished.parts);
            note.put(Space::State, unfinished_key(self.id), value);
            store.write(note, Durability::Buffered)?;
        }
        let part_key = |part| local_part_key(self.id, local.number, part);
        let mut parted = Volume::parted(store, Space::Local, part_key, local_bytes(local));
        encode_local(local, |bytes| parted.put(bytes))?;
        parted.end(batch, local_key(self.id, local.number))
    }

    /// Makes the commit of `draft` and `changes`; its segments go to the store as they are made. They
    /// count once [`store_pending`](Volume::store_pending) has named them.
    pub(super) fn prepare_stored(
        &self,
        kept: &mut Kept,
        draft: Draft,
        changes: BTreeMap<PageIdx, Bytes>,
    ) -> Result<Prepared, StoreError> {
        let mut builder = Builder::new(draft);
        let (mut uploads, mut next) = (Vec::new(), 0);
        for (page, bytes) in changes {
            if let Some(segment) = builder.push(page, bytes) {
                uploads.push(self.store_segment(kept, &mut next, uploads.len(), segment)?);
            }
        }
        let (last, mut prepared) = builder.finish();
        if let Some(segment) = last {
            uploads.push(self.store_segment(kept, &mut next, uploads.len(), segment)?);
        }
        prepared.segments = uploads;
        Ok(prepared)
    }

    /// Stores one more segment, its parts from `next` on.
    fn store_segment(
        &self,
        kept: &mut Kept,
        next: &mut u32,
        before: usize,
        segment: Segment,
    ) -> Result<Upload, StoreError> {
        let upload = Upload::here(before as u32 + 1, segment);
        let Some(store) = &self.options.store else { return Ok(upload) };
        let (first, bytes) = (*next, upload.bytes()?);
        *next += segment_parts(upload.len());
        kept.parts = kept.parts.max(*next);
        for (part, start) in (first..*next).zip((0..).step_by(PART_BYTES)) {
            let mut batch = Batch::default();
            let bytes = bytes.slice(start..bytes.len().min(start + PART_BYTES));
            batch.put(Space::State, segment_part_key(self.id, part), bytes);
            store.write(batch, Durability::Buffered)?;
        }
        let source = StoredSegment { store: store.clone(), volume: self.id, first, len: upload.len() };
        Ok(upload.elsewhere(Arc::new(source)))
    }

    /// On disk before anything is sent, however durable local commits are: a power cut that kept them
    /// and not this would make our own commit in the log look like another writer's.
    pub(super) fn store_pending(&self, kept: &mut Kept, prepared: &Prepared) -> Result<(), StoreError> {
        let Some((store, _)) = self.local_store() else { return Ok(()) };
        kept.own = kept.own.max(parts(pending_bytes(prepared)));
        let mut parted = Volume::parted(
            store,
            Space::State,
            |part| pending_part_key(self.id, part),
            pending_bytes(prepared),
        );
        encode_pending(prepared, |bytes| parted.put(bytes))?;
        let mut batch = Batch::default();
        parted.end(&mut batch, pending_key(self.id))?;
        store.write(batch, Durability::Sync)
    }

    pub(super) fn remove_pending(
        &self,
        kept: &mut Kept,
        prepared: Option<&Prepared>,
    ) -> Result<(), StoreError> {
        let Some((store, durability)) = self.local_store() else { return Ok(()) };
        let mut batch = Batch::default();
        remove_pending_parts(&mut batch, self.id, kept, prepared);
        store.write(batch, durability)?;
        *kept = Kept::default();
        Ok(())
    }

    pub(super) fn store_confirmed(
        &self,
        kept: &mut Kept,
        prepared: &Prepared,
        locals: &[Arc<LocalCommit>],
    ) -> Result<(), StoreError> {
        let Some(store) = self.store() else { return Ok(()) };
        let mut batch = Batch::default();
        batch.put(Space::State, head_key(self.id, prepared.head.lsn), prepared.head.encoded.clone());
        if self.options.locals.is_some() {
            remove_pending_parts(&mut batch, self.id, kept, Some(prepared));
            for local in locals {
                remove_local(&mut batch, self.id, local);
            }
        }
        // Losing this batch to a power cut is harmless: the pending push is settled once more.
        store.write(batch, Durability::Buffered)?;
        *kept = Kept::default();
        Ok(())
    }

    pub(super) fn store_reset(
        &self,
        kept: &mut Kept,
        locals: &[Arc<LocalCommit>],
        pending: Option<&Prepared>,
    ) -> Result<(), StoreError> {
        let Some((store, durability)) = self.local_store() else { return Ok(()) };
        let mut batch = Batch::default();
        remove_pending_parts(&mut batch, self.id, kept, pending);
        for local in locals {
            remove_local(&mut batch, self.id, local);
        }
        store.write(batch, durability)?;
        *kept = Kept::default();
        Ok(())
    }

    /// Stores one stack of local commits in place of another, what was pulled under it, and what the
    /// layer above stores with them: one batch. Of the stacks it gets `old`, what is gone, and `new`, of
    /// which some may take a number of those; what is in both stays as it is stored.
    pub(super) fn store_replaced(
        &self,
        before: &Snapshot,
        jump: Option<&Start>,
        heads: &[Head],
        old: &[Arc<LocalCommit>],
        new: &[&LocalCommit],
        mut batch: Batch,
    ) -> Result<(), StoreError> {
        let Some((store, durability)) = self.local_store() else {
            return self.store_pulled(before, jump, heads);
        };
        self.put_pulled(&mut batch, before, jump, heads)?;
        for local in old {
            remove_local(&mut batch, self.id, local);
        }
        for local in new {
            // Parts go into the batch, too: under this number there may be others, which hold until then.
            let mut bytes = BytesMut::with_capacity(local_bytes(local));
            encode_local(local, |part| {
                bytes.extend_from_slice(part);
                Ok(())
            })?;
            let bytes = bytes.freeze();
            let key = local_key(self.id, local.number);
            if parts(bytes.len()) == 0 {
                batch.put(Space::Local, key, bytes);
                continue;
            }
            for (part, at) in (0..parts(bytes.len())).zip((0..bytes.len()).step_by(PART_BYTES)) {
                let part_key = local_part_key(self.id, local.number, part);
                batch.put(Space::Local, part_key, bytes.slice(at..bytes.len().min(at + PART_BYTES)));
            }
            batch.put(Space::Local, key, (bytes.len() as u64).to_le_bytes().to_vec());
        }
        store.write(batch, durability)
    }

    /// Fills a fresh replica's state from the store: where it begins, and the heads since.
    pub(super) fn restore(&self) -> Result<(Start, Vec<Head>), OpenError> {
        let mut start = Start::empty(Lineage::of(self.id));
        let mut heads = Vec::new();
        let Some(store) = self.store() else { return Ok((start, heads)) };
        let mut kept = self.sealing.lock();
        let mut state = self.state.lock();
        let damaged = |reason: &str| OpenError::Local { volume: self.id, reason: reason.into() };
        let volumes = store.get(Space::State, &volumes_key(self.id))?;
        let volumes = volumes.map(|value| decode_volumes(&value).ok_or_else(|| damaged("its ancestors")));
        if let Some(value) = store.get(Space::State, &start_key(self.id))? {
            start = decode_start(&value).ok_or_else(|| damaged("its checkpoint"))?;
        }
        start.volumes = volumes.transpose()?.unwrap_or_else(|| Lineage::of(self.id));
        let version = state.next_version();
        let empty = || Snapshot::empty(self.page_size, start.volumes.clone());
        state.base = match &start.checkpoint {
            None => empty(),
            Some(root) => Snapshot::of_checkpoint(root, &start.chunks, start.volumes.clone(), version, 0),
        };
        if state.base.page_size() != self.page_size {
            return Err(damaged("its checkpoint has another page size"));
        }
        for (key, value) in store.scan(Space::State, &head_prefix(self.id))? {
            heads.push(self.restore_head(&mut state, &key, &value)?);
        }
        state.tip = state.base.clone();
        let mut locals = store.scan(Space::Local, &self.id.0)?;
        // Parts are read with the commits that they are of.
        locals.retain(|(key, _)| key.len() == local_key(self.id, 0).len());
        if self.options.locals.is_none() {
            // This replica would move the base on under them.
            let unpushed = OpenError::Unpushed { volume: self.id, locals: locals.len() };
            return if locals.is_empty() { Ok((start, heads)) } else { Err(unpushed) };
        }
        let mut pages = state.base.pages();
        for (key, value) in locals {
            let number = key.last_chunk::<8>().map_or(0, |number| u64::from_be_bytes(*number));
            let value = joined(store, Space::Local, value, |part| local_part_key(self.id, number, part))?;
            let local = value.and_then(|value| decode_local(&value, self.page_size.bytes()));
            let local = local.ok_or_else(|| damaged("a local commit"))?;
            // One that was kept when the base moved under it is stored with the page count of before.
            let local = moved_onto(&local, pages)
                .ok_or_else(|| damaged("a local commit does not follow what is before it"))?;
            pages = local.pages_after;
            state.numbers = local.number;
            state.locals.push(local.into());
        }
        if let Some(value) = store.get(Space::State, &pending_key(self.id))? {
            let value = joined(store, Space::State, value, |part| pending_part_key(self.id, part))?;
            let lsn = state.base.lsn().next();
            let pending = value.and_then(|value| decode_pending(self, lsn, &value));
            let pending = pending.ok_or_else(|| damaged("the pending push"))?;
            if pending.locals > state.locals.len() {
                return Err(damaged("the pending push rolls up more local commits than there are"));
            }
            state.pending = Some(pending.into());
        }
        self.sweep_push(&mut kept, store, state.pending.as_deref())?;
        self.sweep_locals(store, &state.locals)?;
        let version = state.next_version();
        state.tip = stack(&state.base, &state.locals, version);
        Ok((start, heads))
    }

    /// Removes what a local commit that stopped half-way left of its parts.
    fn sweep_locals(&self, store: &dyn ReplicaStore, locals: &[Arc<LocalCommit>]) -> Result<(), StoreError> {
        let Some(value) = store.get(Space::State, &unfinished_key(self.id))? else { return Ok(()) };
        let mut batch = Batch::default();
        let (number, written) = decode_unfinished(&value).unwrap_or_default();
        let made = locals.iter().find(|local| local.number == number);
        let own = made.map_or(0, |local| parts(local_bytes(local)));
        remove_parts(&mut batch, self.id, number, own..written);
        store.write(batch, Durability::Buffered)
    }

    /// Removes what seals that stopped half-way left of their parts: all in one batch, so that none is
    /// left behind a gap.
    fn sweep_push(
        &self,
        kept: &mut Kept,
        store: &dyn ReplicaStore,
        pending: Option<&Prepared>,
    ) -> Result<(), StoreError> {
        let named = pending.map_or(0, |p| p.segments.iter().map(|s| segment_parts(s.len())).sum());
        let own = pending.map_or(0, |p| parts(pending_bytes(p)));
        *kept = Kept { parts: named, own };
        let mut batch = Batch::default();
        let segments = (named..).map(|part| segment_part_key(self.id, part));
        remove_while_there(store, &mut batch, segments)?;
        remove_while_there(store, &mut batch, (own..).map(|part| pending_part_key(self.id, part)))?;
        if batch.changes.is_empty() { Ok(()) } else { store.write(batch, Durability::Buffered) }
    }

    fn restore_head(&self, state: &mut State, key: &[u8], value: &[u8]) -> Result<Head, OpenError> {
        let damaged = |reason: String| OpenError::Local { volume: self.id, reason };
        let lsn = key.last_chunk::<8>().map(|bytes| Lsn(u64::from_be_bytes(*bytes)));
        let lsn = lsn.filter(|lsn| *lsn == state.base.lsn().next());
        let lsn = lsn.ok_or_else(|| damaged(format!("no head of lsn {}", state.base.lsn().next())))?;
        let head = Head::decode(state.base.volumes().origin(lsn), lsn, value)
            .map_err(|_| damaged(format!("the head of lsn {lsn}")))?;
        if head.parent != state.base.hash() {
            return Err(damaged(format!("the head of lsn {lsn} does not follow its predecessor")));
        }
        let version = state.next_version();
        state.base = state.base.with_commit(&head, version);
        Ok(head)
    }
}

/// Puts the removal of the first of `keys` into `batch`, up to one that is not there.
fn remove_while_there(
    store: &dyn ReplicaStore,
    batch: &mut Batch,
    keys: impl Iterator<Item = Vec<u8>>,
) -> Result<(), StoreError> {
    for key in keys {
        if store.get(Space::State, &key)?.is_none() {
            break;
        }
        batch.remove(Space::State, key);
    }
    Ok(())
}

/// number u64, parts u32.
fn encode_unfinished(number: u64, parts: u32) -> Bytes {
    [&number.to_le_bytes()[..], &parts.to_le_bytes()].concat().into()
}

fn decode_unfinished(bytes: &[u8]) -> Option<(u64, u32)> {
    let (number, parts) = bytes.split_first_chunk::<8>()?;
    Some((u64::from_le_bytes(*number), u32::from_le_bytes(parts.try_into().ok()?)))
}

/// volume, number u64, then root and state as they are in the checkpoint object.
fn encode_start(root: &Root, state: &Bytes) -> Bytes {
    let mut out = BytesMut::new();
    out.extend_from_slice(&root.volume.0);
    out.put_u64_le(root.seq.0);
    out.extend_from_slice(&root.encoded);
    out.extend_from_slice(state);
    out.freeze()
}

fn decode_start(bytes: &[u8]) -> Option<Start> {
    let (volume, rest) = bytes.split_first_chunk::<16>()?;
    let (seq, rest) = rest.split_first_chunk::<8>()?;
    let root = Root::decode(VolumeId(*volume), Seq(u64::from_le_bytes(*seq)), rest).ok()?;
    let state = Bytes::copy_from_slice(rest.get(root.encoded.len()..)?);
    let whole = state.len() as u64 == root.state_bytes && state_hash(&state) == root.state_hash;
    whole.then(|| Start::of(root, state))
}

/// For each volume its id and the last LSN read of it, u64; last, 16 bytes of BLAKE3 over all before.
fn encode_volumes(volumes: &[(VolumeId, Lsn)]) -> Bytes {
    let mut out = BytesMut::new();
    for (volume, last) in volumes {
        out.extend_from_slice(&volume.0);
        out.put_u64_le(last.0);
    }
    let hash = blake3::hash(&out);
    out.extend_from_slice(&hash.as_bytes()[..16]);
    out.freeze()
}

fn decode_volumes(bytes: &[u8]) -> Option<Lineage> {
    let (body, checksum) = bytes.split_last_chunk::<16>()?;
    if blake3::hash(body).as_bytes()[..16] != *checksum || !body.len().is_multiple_of(24) {
        return None;
    }
    let volumes = body.chunks_exact(24).map(|entry| {
        let (volume, last) = entry.split_first_chunk::<16>()?;
        Some((VolumeId(*volume), Lsn(u64::from_le_bytes(*last.first_chunk::<8>()?))))
    });
    Lineage::from_volumes(volumes.collect::<Option<_>>()?)
}

/// number u64, pages before u32, pages after u32, payload length u32, changes u32, payload, then for
/// each change its page u32 and bytes; last, 16 bytes of XXH3-128 over all before: it finds what a disk
/// damaged, and is made at every commit, where a cryptographic hash would be most of the work.
fn encode_local(
    local: &LocalCommit,
    mut out: impl FnMut(&[u8]) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    let mut hasher = Xxh3::new();
    let mut put = |bytes: &[u8]| {
        hasher.update(bytes);
        out(bytes)
    };
    put(&local.number.to_le_bytes())?;
    put(&local.pages_before.to_le_bytes())?;
    put(&local.pages_after.to_le_bytes())?;
    put(&(local.payload.len() as u32).to_le_bytes())?;
    put(&(local.changes.len() as u32).to_le_bytes())?;
    put(&local.payload)?;
    for (page, bytes) in local.changes.iter() {
        put(&page.get().to_le_bytes())?;
        put(bytes)?;
    }
    out(&hasher.digest128().to_le_bytes())
}

/// How many bytes [`encode_local`] makes.
fn local_bytes(local: &LocalCommit) -> usize {
    let pages: usize = local.changes.values().map(|bytes| 4 + bytes.len()).sum();
    24 + local.payload.len() + pages + 16
}

/// The answer's pages are views of `bytes`.
fn decode_local(bytes: &Bytes, page_size: usize) -> Option<LocalCommit> {
    let (body, checksum) = bytes.split_last_chunk::<16>()?;
    if xxh3_128(body).to_le_bytes() != *checksum {
        return None;
    }
    let mut reader = Reader::new(body);
    let mut parse = || -> Result<Option<LocalCommit>, Short> {
        let number = reader.u64("number")?;
        let (pages_before, pages_after) = (reader.u32("pages")?, reader.u32("pages")?);
        let (payload, changes) = (reader.u32("payload")?, reader.u32("changes")?);
        let payload = bytes.slice_ref(reader.take(payload as usize, "payload")?);
        let mut pages = BTreeMap::new();
        for _ in 0..changes {
            let Some(page) = PageIdx::new(reader.u32("page")?) else { return Ok(None) };
            pages.insert(page, bytes.slice_ref(reader.take(page_size, "page")?));
        }
        Ok(Some(LocalCommit { number, pages_before, pages_after, changes: Arc::new(pages), payload }))
    };
    parse().ok().flatten()
}

/// locals u32, body length u32, segments u32, body; then for each segment its length u64 and the first
/// 16 bytes of its BLAKE3. The head is the body's first part.
fn encode_pending(
    prepared: &Prepared,
    mut out: impl FnMut(&[u8]) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    out(&(prepared.locals as u32).to_le_bytes())?;
    out(&(prepared.body.len() as u32).to_le_bytes())?;
    out(&(prepared.segments.len() as u32).to_le_bytes())?;
    out(&prepared.body)?;
    for segment in &prepared.segments {
        out(&segment.len().to_le_bytes())?;
        out(&segment.hash())?;
    }
    Ok(())
}

/// How many bytes [`encode_pending`] makes.
fn pending_bytes(prepared: &Prepared) -> usize {
    12 + prepared.body.len() + 24 * prepared.segments.len()
}

/// The answer's segments stay in the volume's store.
fn decode_pending(volume: &Volume, lsn: Lsn, value: &Bytes) -> Option<Prepared> {
    let store = volume.options.store.as_ref()?;
    let mut reader = Reader::new(value);
    let mut parse = || -> Result<Option<Prepared>, Short> {
        let (locals, body, segments) = (reader.u32("locals")?, reader.u32("body")?, reader.u32("segments")?);
        let body = value.slice_ref(reader.take(body as usize, "body")?);
        let Ok(head) = Head::decode_in_place(volume.id, lsn, &body) else { return Ok(None) };
        // Nobody knows how long ago it was made.
        let confirmed = Confirmed::default();
        let mut prepared = Prepared { head, body, segments: Vec::new(), locals: locals as usize, confirmed };
        let mut first = 0u32;
        for part in 0..segments {
            let (len, hash) = (reader.u64("segment")?, reader.array("segment")?);
            if prepared.head.segments.get(part as usize) != Some(&len) {
                return Ok(None);
            }
            let source = StoredSegment { store: store.clone(), volume: volume.id, first, len };
            first = first.saturating_add(segment_parts(len));
            let upload = Upload::recorded(&prepared.head, part + 1, len, hash, Arc::new(source));
            prepared.segments.push(upload);
        }
        let whole = prepared.segments.len() == prepared.head.segments.len();
        Ok(Some(prepared).filter(|prepared| whole && pending_bytes(prepared) == value.len()))
    };
    parse().ok().flatten()
}
