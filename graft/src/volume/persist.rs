//! What a replica keeps in its local store, and reading it back.
//!
//! | space | key | value |
//! | --- | --- | --- |
//! | state | `vid ‖ 'h' ‖ lsn` (big-endian) | a pulled or pushed commit's head |
//! | state | `vid ‖ 'p'` | the pending push: every byte that was or will be sent |
//! | local | `vid ‖ number` (big-endian) | a local commit |
//! | pages | `vid ‖ page ‖ lsn` (big-endian) | a cached durable page |
//!
//! Invariants: a local commit is written with the replica's durability before it is acknowledged;
//! the pending push is written before anything is sent; confirming removes the pending push and its
//! local commits and adds the head in one batch, so a crash repeats the settling or finds it done.

use std::collections::BTreeMap;

use bytes::{BufMut as _, Bytes, BytesMut};

use super::{LocalCommit, OpenError, Prepared, State, Volume};
use crate::format::commit::Head;
use crate::format::{Reader, Short};
use crate::ids::{Lsn, PageIdx, VolumeId};
use crate::snapshot::FrameRef;
use crate::store::{Batch, Durability, ReplicaStore, Space, StoreError};

fn head_prefix(vid: VolumeId) -> Vec<u8> {
    [&vid.0[..], b"h"].concat()
}
fn head_key(vid: VolumeId, lsn: Lsn) -> Vec<u8> {
    [&vid.0[..], b"h", &lsn.0.to_be_bytes()].concat()
}
fn pending_key(vid: VolumeId) -> Vec<u8> {
    [&vid.0[..], b"p"].concat()
}
fn local_key(vid: VolumeId, number: u64) -> Vec<u8> {
    [&vid.0[..], &number.to_be_bytes()].concat()
}
fn page_key(vid: VolumeId, page: PageIdx, lsn: Lsn) -> Vec<u8> {
    [&vid.0[..], &page.get().to_be_bytes(), &lsn.0.to_be_bytes()].concat()
}

impl Volume {
    fn store(&self) -> Option<&dyn ReplicaStore> {
        self.options.store.as_deref()
    }

    /// The store and the durability of local commits, where they are kept at all.
    fn local_store(&self) -> Option<(&dyn ReplicaStore, Durability)> {
        Some((self.store()?, self.options.locals?))
    }

    pub(super) fn stored_page(&self, page: PageIdx, lsn: Lsn) -> Result<Option<Bytes>, StoreError> {
        match self.store() {
            None => Ok(None),
            Some(store) => {
                let found = store.get(Space::Pages, &page_key(self.id, page, lsn))?;
                Ok(found.filter(|bytes| bytes.len() == self.page_size.bytes()))
            }
        }
    }

    pub(super) fn store_pages(&self, frame: &FrameRef, pages: &[Bytes]) -> Result<(), StoreError> {
        let Some(store) = self.store() else { return Ok(()) };
        let mut batch = Batch::default();
        for (page, bytes) in frame.pages.iter().zip(pages) {
            batch.put(Space::Pages, page_key(self.id, *page, frame.lsn), bytes.clone());
        }
        store.write(batch, Durability::Buffered)
    }

    pub(super) fn store_heads(&self, heads: &[Head]) -> Result<(), StoreError> {
        let Some(store) = self.store() else { return Ok(()) };
        let mut batch = Batch::default();
        for head in heads {
            batch.put(Space::State, head_key(self.id, head.lsn), head.encoded.clone());
        }
        store.write(batch, Durability::Buffered)
    }

    /// Stores a local commit, and what the layer above stores with it.
    pub(super) fn store_local(&self, local: &LocalCommit, mut batch: Batch) -> Result<(), StoreError> {
        let Some((store, durability)) = self.local_store() else { return Ok(()) };
        batch.put(Space::Local, local_key(self.id, local.number), encode_local(local));
        store.write(batch, durability)
    }

    pub(super) fn store_pending(&self, prepared: &Prepared) -> Result<(), StoreError> {
        let Some((store, durability)) = self.local_store() else { return Ok(()) };
        let mut batch = Batch::default();
        batch.put(Space::State, pending_key(self.id), encode_pending(prepared));
        store.write(batch, durability)
    }

    pub(super) fn remove_pending(&self) -> Result<(), StoreError> {
        let Some((store, durability)) = self.local_store() else { return Ok(()) };
        let mut batch = Batch::default();
        batch.remove(Space::State, pending_key(self.id));
        store.write(batch, durability)
    }

    pub(super) fn store_confirmed(
        &self,
        prepared: &Prepared,
        locals: &[LocalCommit],
        changes: &BTreeMap<PageIdx, Bytes>,
    ) -> Result<(), StoreError> {
        let Some(store) = self.store() else { return Ok(()) };
        let mut batch = Batch::default();
        batch.put(Space::State, head_key(self.id, prepared.head.lsn), prepared.head.encoded.clone());
        if self.options.locals.is_some() {
            batch.remove(Space::State, pending_key(self.id));
            for local in locals {
                batch.remove(Space::Local, local_key(self.id, local.number));
            }
        }
        for (page, bytes) in changes {
            batch.put(Space::Pages, page_key(self.id, *page, prepared.head.lsn), bytes.clone());
        }
        // Losing this batch to a power cut is harmless: the pending push is settled once more.
        store.write(batch, Durability::Buffered)
    }

    pub(super) fn store_reset(&self, locals: &[LocalCommit]) -> Result<(), StoreError> {
        let Some((store, durability)) = self.local_store() else { return Ok(()) };
        let mut batch = Batch::default();
        batch.remove(Space::State, pending_key(self.id));
        for local in locals {
            batch.remove(Space::Local, local_key(self.id, local.number));
        }
        store.write(batch, durability)
    }

    /// Stores one stack of local commits in place of another, the heads under it, and what the layer
    /// above stores with them: one batch.
    pub(super) fn store_replaced(
        &self,
        heads: &[Head],
        old: &[LocalCommit],
        new: &[LocalCommit],
        mut batch: Batch,
    ) -> Result<(), StoreError> {
        let Some((store, durability)) = self.local_store() else { return self.store_heads(heads) };
        for head in heads {
            batch.put(Space::State, head_key(self.id, head.lsn), head.encoded.clone());
        }
        for local in old {
            batch.remove(Space::Local, local_key(self.id, local.number));
        }
        for local in new {
            batch.put(Space::Local, local_key(self.id, local.number), encode_local(local));
        }
        store.write(batch, durability)
    }

    /// Fills a fresh replica's state from the store.
    pub(super) fn restore(&self) -> Result<Vec<Head>, OpenError> {
        let mut heads = Vec::new();
        let Some(store) = self.store() else { return Ok(heads) };
        let mut state = self.state.lock();
        for (key, value) in store.scan(Space::State, &head_prefix(self.id))? {
            heads.push(self.restore_head(&mut state, &key, &value)?);
        }
        state.tip = state.base.clone();
        let damaged = |reason: &str| OpenError::Local { volume: self.id, reason: reason.into() };
        let locals = store.scan(Space::Local, &self.id.0)?;
        if self.options.locals.is_none() {
            // This replica would move the base on under them.
            let unpushed = OpenError::Unpushed { volume: self.id, locals: locals.len() };
            return if locals.is_empty() { Ok(heads) } else { Err(unpushed) };
        }
        let mut pages = state.base.pages();
        for (_, value) in locals {
            let local =
                decode_local(&value, self.page_size.bytes()).ok_or_else(|| damaged("a local commit"))?;
            if local.pages_before != pages {
                return Err(damaged("a local commit does not follow what is before it"));
            }
            pages = local.pages_after;
            state.numbers = local.number;
            state.locals.push(local);
        }
        if let Some(value) = store.get(Space::State, &pending_key(self.id))? {
            let pending = decode_pending(self.id, state.base.lsn().next(), &value);
            let pending = pending.ok_or_else(|| damaged("the pending push"))?;
            if pending.locals > state.locals.len() {
                return Err(damaged("the pending push rolls up more local commits than there are"));
            }
            state.pending = Some(pending.into());
        }
        let version = state.next_version();
        state.tip = state.stack(version);
        Ok(heads)
    }

    fn restore_head(&self, state: &mut State, key: &[u8], value: &[u8]) -> Result<Head, OpenError> {
        let damaged = |reason: String| OpenError::Local { volume: self.id, reason };
        let lsn = key.last_chunk::<8>().map(|bytes| Lsn(u64::from_be_bytes(*bytes)));
        let lsn = lsn.filter(|lsn| *lsn == state.base.lsn().next());
        let lsn = lsn.ok_or_else(|| damaged(format!("no head of lsn {}", state.base.lsn().next())))?;
        let head =
            Head::decode(self.id, lsn, value).map_err(|_| damaged(format!("the head of lsn {lsn}")))?;
        if head.parent != state.hash {
            return Err(damaged(format!("the head of lsn {lsn} does not follow its predecessor")));
        }
        let version = state.next_version();
        state.base = state.base.with_commit(&head, version);
        state.hash = head.hash;
        state.time_ms = head.time_ms;
        Ok(head)
    }
}

/// number u64, pages before u32, pages after u32, payload length u32, changes u32, payload, then for
/// each change its page u32 and bytes; last, 16 bytes of BLAKE3 over all before.
fn encode_local(local: &LocalCommit) -> Bytes {
    let mut out = BytesMut::new();
    out.put_u64_le(local.number);
    out.put_u32_le(local.pages_before);
    out.put_u32_le(local.pages_after);
    out.put_u32_le(local.payload.len() as u32);
    out.put_u32_le(local.changes.len() as u32);
    out.extend_from_slice(&local.payload);
    for (page, bytes) in &local.changes {
        out.put_u32_le(page.get());
        out.extend_from_slice(bytes);
    }
    let hash = blake3::hash(&out);
    out.extend_from_slice(&hash.as_bytes()[..16]);
    out.freeze()
}

fn decode_local(bytes: &[u8], page_size: usize) -> Option<LocalCommit> {
    let (body, checksum) = bytes.split_last_chunk::<16>()?;
    if blake3::hash(body).as_bytes()[..16] != *checksum {
        return None;
    }
    let mut reader = Reader::new(body);
    let mut parse = || -> Result<Option<LocalCommit>, Short> {
        let number = reader.u64("number")?;
        let (pages_before, pages_after) = (reader.u32("pages")?, reader.u32("pages")?);
        let (payload, changes) = (reader.u32("payload")?, reader.u32("changes")?);
        let payload = Bytes::copy_from_slice(reader.take(payload as usize, "payload")?);
        let mut local =
            LocalCommit { number, pages_before, pages_after, changes: Default::default(), payload };
        for _ in 0..changes {
            let Some(page) = PageIdx::new(reader.u32("page")?) else { return Ok(None) };
            local.changes.insert(page, Bytes::copy_from_slice(reader.take(page_size, "page")?));
        }
        Ok(Some(local))
    };
    parse().ok().flatten()
}

/// locals u32, body length u32, segments u32, body; then for each segment key length u32, length u32,
/// key, bytes. The head is the body's first part.
fn encode_pending(prepared: &Prepared) -> Bytes {
    let mut out = BytesMut::new();
    out.put_u32_le(prepared.locals as u32);
    out.put_u32_le(prepared.body.len() as u32);
    out.put_u32_le(prepared.segments.len() as u32);
    out.extend_from_slice(&prepared.body);
    for (key, bytes) in &prepared.segments {
        out.put_u32_le(key.len() as u32);
        out.put_u32_le(bytes.len() as u32);
        out.extend_from_slice(key.as_bytes());
        out.extend_from_slice(bytes);
    }
    out.freeze()
}

fn decode_pending(volume: VolumeId, lsn: Lsn, bytes: &[u8]) -> Option<Prepared> {
    let mut reader = Reader::new(bytes);
    let mut parse = || -> Result<Option<Prepared>, Short> {
        let (locals, body, segments) = (reader.u32("locals")?, reader.u32("body")?, reader.u32("segments")?);
        let body = Bytes::copy_from_slice(reader.take(body as usize, "body")?);
        let Ok(head) = Head::decode(volume, lsn, &body) else { return Ok(None) };
        let mut prepared = Prepared { head, body, segments: Vec::new(), locals: locals as usize };
        for _ in 0..segments {
            let (key, bytes) = (reader.u32("key")?, reader.u32("segment")?);
            let Ok(key) = std::str::from_utf8(reader.take(key as usize, "key")?) else { return Ok(None) };
            let bytes = Bytes::copy_from_slice(reader.take(bytes as usize, "segment")?);
            prepared.segments.push((key.into(), bytes));
        }
        Ok(Some(prepared))
    };
    parse().ok().flatten()
}
