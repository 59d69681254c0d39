//! Reading chunks of a page table, when a page of theirs is first asked for.
//!
//! Costs one ranged GET for each run of chunks that lie near each other in one checkpoint object. A
//! table of up to 1 MiB is read whole at its first miss.
//!
//! Invariants: what is filled in was checked against the hash in the checkpoint's root.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};

use crate::fetch::FetchError;
use crate::format::chunk::Lineage;
use crate::format::{Damaged, chunk};
use crate::page_set::PageSet;
use crate::remote::Remote;
use crate::snapshot::{Location, RemoteChunk, Snapshot};
use crate::store::StoreError;
use crate::volume::Volume;

/// A table of so many bytes is read whole.
pub const WHOLE_BYTES_MAX: u64 = 1 << 20;
/// A table of so many bytes is stored whole in every checkpoint, so that a root's prefix holds it.
pub(crate) const REWRITE_BYTES_MAX: u64 = 48 << 10;
/// The chunk of page 1, which every checkpoint has near its root: who opens the volume reads both with it.
pub(crate) const FIRST: u32 = 0;
/// Chunks are read together over so many bytes that nobody asked for.
const GAP_BYTES: u64 = 16 << 10;
/// Ranges read at the same time.
const CONCURRENT: usize = 16;

/// Reads the chunks that `pages` of `snapshot` need and that are not here. Nothing where there are none.
pub async fn load(
    remote: &dyn Remote,
    volume: &Volume,
    snapshot: &Snapshot,
    pages: &PageSet,
) -> Result<(), FetchError> {
    read(remote, volume, snapshot, volume.unloaded(snapshot, pages)?).await
}

/// Reads `chunks` of `snapshot`.
pub(crate) async fn read(
    remote: &dyn Remote,
    volume: &Volume,
    snapshot: &Snapshot,
    chunks: Vec<Arc<RemoteChunk>>,
) -> Result<(), FetchError> {
    let mut objects: BTreeMap<String, Vec<Arc<RemoteChunk>>> = BTreeMap::new();
    for chunk in chunks {
        objects.entry(chunk.at.key()).or_default().push(chunk);
    }
    let mut runs: Vec<(String, Vec<Arc<RemoteChunk>>)> = Vec::new();
    for (key, mut chunks) in objects {
        chunks.sort_by_key(|chunk| chunk.at.offset);
        for chunk in chunks {
            match runs.last_mut() {
                Some((open, run)) if *open == key && near(run, &chunk) => run.push(chunk),
                _ => runs.push((key.clone(), vec![chunk])),
            }
        }
    }
    let keep = keeps_bytes(snapshot);
    let reads = runs.into_iter().map(|(key, run)| async move {
        let start = run.first().map_or(0, |chunk| chunk.at.offset);
        let end = run.iter().map(end).max().unwrap_or(start);
        let bytes = remote.get_range(&key, start..end).await?;
        let mut found = Vec::with_capacity(run.len());
        for chunk in run {
            let from = (chunk.at.offset - start) as usize;
            let part = bytes.get(from..from + chunk.at.bytes as usize).ok_or_else(|| {
                Damaged::new(&key, format!("it ends before chunk {} of its page table", chunk.at.index))
            })?;
            let part = Bytes::copy_from_slice(part);
            fill(&chunk, snapshot.volumes(), &part, keep).map_err(|reason| Damaged::new(&key, reason))?;
            found.push((chunk.at, part));
        }
        volume.keep_chunks(&found);
        Ok::<(), FetchError>(())
    });
    futures::stream::iter(reads).buffer_unordered(CONCURRENT).try_collect().await
}

fn end(chunk: &Arc<RemoteChunk>) -> u64 {
    chunk.at.offset.saturating_add(chunk.at.bytes.into())
}

fn near(run: &[Arc<RemoteChunk>], next: &RemoteChunk) -> bool {
    run.iter().map(end).max().is_some_and(|end| next.at.offset <= end.saturating_add(GAP_BYTES))
}

fn keeps_bytes(snapshot: &Snapshot) -> bool {
    snapshot.checkpoint().is_some_and(|root| root.table_bytes() <= REWRITE_BYTES_MAX)
}

/// Checks and decodes a chunk's stored bytes, and fills it in.
pub(crate) fn fill(chunk: &RemoteChunk, volumes: &Lineage, bytes: &Bytes, keep: bool) -> Result<(), String> {
    let index = chunk.at.index;
    if bytes.len() != chunk.at.bytes as usize || chunk::hash(index, bytes) != chunk.at.hash {
        return Err(format!("chunk {index} of its page table does not match its hash"));
    }
    let decoded = chunk::decode(index, volumes, bytes)?;
    chunk.fill(decoded, (keep || index == FIRST).then(|| bytes.clone()));
    Ok(())
}

impl Volume {
    /// The chunks that must be read before it can be said where `pages` are; all of them where the table
    /// is small. What the local store has is filled in here.
    pub fn unloaded(
        &self,
        snapshot: &Snapshot,
        pages: &PageSet,
    ) -> Result<Vec<Arc<RemoteChunk>>, StoreError> {
        let mut chunks: BTreeMap<u32, Arc<RemoteChunk>> = BTreeMap::new();
        let per_chunk = chunk::CHUNK_PAGES as u32;
        for range in pages.ranges() {
            let (first, last) = ((range.start() - 1) / per_chunk, (range.end() - 1) / per_chunk);
            for view in snapshot.chunks_between(first, last) {
                if let Some(base) = view.base().filter(|base| base.get().is_none()) {
                    let asked = view.pages().any(|page| {
                        pages.contains(page) && matches!(snapshot.location(page), Location::Unknown(_))
                    });
                    if asked && !self.load_stored(snapshot, base)? {
                        chunks.insert(view.index, base.clone());
                    }
                }
            }
        }
        let whole = snapshot.checkpoint().is_some_and(|root| root.table_bytes() <= WHOLE_BYTES_MAX);
        if whole && !chunks.is_empty() {
            for view in snapshot.chunks() {
                if let Some(base) = view.base().filter(|base| base.get().is_none())
                    && !chunks.contains_key(&view.index)
                    && !self.load_stored(snapshot, base)?
                {
                    chunks.insert(view.index, base.clone());
                }
            }
        }
        Ok(chunks.into_values().collect())
    }

    /// Fills a chunk in from the local store, where that has it.
    pub(crate) fn load_stored(&self, snapshot: &Snapshot, chunk: &RemoteChunk) -> Result<bool, StoreError> {
        if chunk.get().is_some() {
            return Ok(true);
        }
        let Some(bytes) = self.stored_chunk(&chunk.at)? else { return Ok(false) };
        // Damaged here means: not here.
        Ok(fill(chunk, snapshot.volumes(), &bytes, keeps_bytes(snapshot)).is_ok())
    }
}
