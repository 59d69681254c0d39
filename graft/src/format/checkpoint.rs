//! A checkpoint: the object `volumes/{vid}/checkpoints/{!seq}`. Little-endian.
//!
//! | offset | bytes | field    | meaning                                                       |
//! |-------:|------:|----------|---------------------------------------------------------------|
//! |      0 |     4 | magic    | `GFK1`; the digit is the format version                       |
//! |      4 |     4 | pages    | the volume's page count at its LSN                            |
//! |      8 |     8 | lsn      | the commit whose state it is                                  |
//! |     16 |    16 | volume   | equal to the object key's                                     |
//! |     32 |     8 | seq      | its number, at least 1, equal to the object key's             |
//! |     40 |     8 | time     | that commit's, ms since 1970                                  |
//! |     48 |    32 | chain    | that commit's hash                                            |
//! |     80 |     4 | page size | bytes                                                        |
//! |     84 |     4 | volumes  | how many volumes the history is made of                       |
//! |     88 |     4 | history  | how many earlier checkpoints it names, at most 512            |
//! |     92 |     4 | chunks   | how many chunks                                               |
//! |     96 |     8 | state    | bytes of the state                                            |
//! |    104 |    16 | state hash | first 16 bytes of BLAKE3 over the state                     |
//! |    120 |     4 | epoch    | compactions of this epoch may still be published              |
//! |    124 |     4 | hot      | bytes of the hot set                                          |
//! |    128 |    32 | hash     | BLAKE3 of the whole root with this field left out             |
//! |    160 |       | volumes  | 24 bytes each, oldest first: id, u64 last LSN that is read of it (2^64 − 1 for the volume itself, the last) |
//! |        |       | history  | 24 bytes each, oldest first: seq, lsn, time                   |
//! |        |       | chunks   | 44 bytes each, by index: index u32, volume u32 (its place above), seq u64 and offset u64 (which checkpoint object holds it, and where), bytes u32, hash 16 |
//! |        |       | hot set  | a page set, encoded: pages that nearly every reader wants      |
//! |        |       | *body*   | the state, then the chunks that this checkpoint brought        |
//!
//! The *root* is everything before the body. A chunk that no commit touched since an earlier
//! checkpoint stays in that one's object: a checkpoint costs what changed, not what there is. The
//! state is opaque to the engine: what the layer above remembers at this LSN beside the pages.
//!
//! Invariants of a decoded root: chunk indexes ascend and lie below the page count; every chunk's
//! volume is one of its volumes; history ascends.

use bytes::{BufMut as _, Bytes, BytesMut};

use super::chunk::{self, CHUNK_BYTES_MAX, CHUNK_PAGES, LINEAGE_MAX, Lineage};
use super::{Damaged, Reader, Short};
use crate::ids::{ChainHash, Epoch, Lsn, PageSize, Seq, VolumeId, key};
use crate::page_set::PageSet;

/// The first bytes of every checkpoint.
const MAGIC: [u8; 4] = *b"GFK1";
/// Bytes of the fixed header.
pub const HEADER_BYTES: usize = 160;
/// What a reader asks for first: the whole root and its state, but for large volumes.
pub const PREFIX_BYTES: u64 = 64 << 10;
/// Earlier checkpoints that one names.
pub const HISTORY_MAX: usize = 512;
/// A state longer than this is damage, not data.
pub const STATE_BYTES_MAX: u64 = 1 << 30;
/// Nor is a hot set longer than this: it names the interior pages of terabytes.
const HOT_BYTES_MAX: u32 = 64 << 20;
const HASH_AT: usize = 128;
const VOLUME_BYTES: usize = 24;
const PAST_BYTES: usize = 24;
const CHUNK_ENTRY_BYTES: usize = 44;

/// An earlier checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Past {
    /// Its number.
    pub seq: Seq,
    /// Its commit.
    pub lsn: Lsn,
    /// That commit's time.
    pub time_ms: i64,
}

/// Where a chunk of the page table is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ChunkRef {
    /// Which chunk.
    pub index: u32,
    /// The volume whose checkpoint object holds it.
    pub volume: VolumeId,
    /// That checkpoint.
    pub seq: Seq,
    /// Its first byte in the object.
    pub offset: u64,
    /// Its compressed length.
    pub bytes: u32,
    /// See [`chunk::hash`].
    pub hash: [u8; 16],
}

impl ChunkRef {
    /// The key of the object that holds it.
    pub fn key(&self) -> String {
        key::checkpoint(self.volume, self.seq)
    }
}

/// A checkpoint without its body.
#[derive(Debug, Clone, PartialEq)]
pub struct Root {
    /// The volume.
    pub volume: VolumeId,
    /// Its number.
    pub seq: Seq,
    /// The commit whose state it is.
    pub lsn: Lsn,
    /// That commit's hash.
    pub chain: ChainHash,
    /// That commit's time, ms since 1970.
    pub time_ms: i64,
    /// The page count.
    pub pages: u32,
    /// Bytes in each page.
    pub page_size: PageSize,
    /// The volumes whose logs make the history.
    pub lineage: Lineage,
    /// Earlier checkpoints of this volume, oldest first.
    pub history: Vec<Past>,
    /// The page table, by index.
    pub chunks: Vec<ChunkRef>,
    /// Compactions that were begun in this epoch may be published on top of it.
    pub epoch: Epoch,
    /// Pages that nearly every reader wants, laid out together by a compaction.
    pub hot: PageSet,
    /// Bytes of the state, which follows the root in the object.
    pub state_bytes: u64,
    /// The first 16 bytes of BLAKE3 over the state.
    pub state_hash: [u8; 16],
    /// Its own hash; filled in by [`assemble`].
    pub hash: ChainHash,
    /// Its exact bytes; filled in by [`assemble`].
    pub encoded: Bytes,
}

/// A chunk for [`assemble`]: stored by an earlier checkpoint, or to be stored by this one.
#[derive(Debug, Clone, PartialEq)]
pub enum NewChunk {
    /// As it is.
    Stored(ChunkRef),
    /// Its index and compressed bytes.
    Fresh(u32, Bytes),
}

/// Makes a whole checkpoint object: fills in `root`'s chunks, state and hash, and answers the bytes.
/// `chunks` ascend by index.
pub fn assemble(root: &mut Root, chunks: &[NewChunk], state: &[u8]) -> Bytes {
    let hot = root.hot.encode();
    let root_bytes = HEADER_BYTES
        + hot.len()
        + VOLUME_BYTES * root.lineage.volumes().len()
        + PAST_BYTES * root.history.len()
        + CHUNK_ENTRY_BYTES * chunks.len();
    let mut offset = (root_bytes + state.len()) as u64;
    root.chunks = chunks
        .iter()
        .map(|chunk| match chunk {
            NewChunk::Stored(stored) => *stored,
            NewChunk::Fresh(index, compressed) => {
                let bytes = compressed.len() as u32;
                let hash = chunk::hash(*index, compressed);
                let at = offset;
                offset += u64::from(bytes);
                ChunkRef { index: *index, volume: root.volume, seq: root.seq, offset: at, bytes, hash }
            }
        })
        .collect();
    root.state_bytes = state.len() as u64;
    root.state_hash = state_hash(state);
    root.encode(&hot);
    debug_assert_eq!(root.encoded.len(), root_bytes);
    let mut object = BytesMut::with_capacity(offset as usize);
    object.extend_from_slice(&root.encoded);
    object.extend_from_slice(state);
    for chunk in chunks {
        if let NewChunk::Fresh(_, compressed) = chunk {
            object.extend_from_slice(compressed);
        }
    }
    object.freeze()
}

/// The first 16 bytes of BLAKE3 over a state.
pub fn state_hash(state: &[u8]) -> [u8; 16] {
    let mut hash = [0; 16];
    hash.copy_from_slice(&blake3::hash(state).as_bytes()[..16]);
    hash
}

/// Why bytes are not a root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RootError {
    /// `need` bytes from the object's start hold the root.
    Incomplete {
        /// How many bytes.
        need: u64,
    },
    /// It is not a checkpoint of this key.
    Damaged(Damaged),
}

impl Root {
    fn encode(&mut self, hot: &[u8]) {
        let mut out = BytesMut::new();
        out.extend_from_slice(&MAGIC);
        out.put_u32_le(self.pages);
        out.put_u64_le(self.lsn.0);
        out.extend_from_slice(&self.volume.0);
        out.put_u64_le(self.seq.0);
        out.put_i64_le(self.time_ms);
        out.extend_from_slice(&self.chain.0);
        out.put_u32_le(self.page_size.get());
        for count in [self.lineage.volumes().len(), self.history.len(), self.chunks.len()] {
            // Bounded by LINEAGE_MAX, HISTORY_MAX and the 2^24 chunks that there can be.
            out.put_u32_le(count as u32);
        }
        out.put_u64_le(self.state_bytes);
        out.extend_from_slice(&self.state_hash);
        out.put_u32_le(self.epoch.0);
        out.put_u32_le(hot.len() as u32);
        out.put_bytes(0, HEADER_BYTES - HASH_AT);
        for (volume, last) in self.lineage.volumes() {
            out.extend_from_slice(&volume.0);
            out.put_u64_le(last.0);
        }
        for past in &self.history {
            out.put_u64_le(past.seq.0);
            out.put_u64_le(past.lsn.0);
            out.put_i64_le(past.time_ms);
        }
        for chunk in &self.chunks {
            let volumes = self.lineage.volumes();
            let place = volumes.iter().position(|(volume, _)| *volume == chunk.volume);
            debug_assert!(place.is_some(), "a chunk of a volume outside the lineage");
            out.put_u32_le(chunk.index);
            out.put_u32_le(place.map_or(u32::MAX, |place| place as u32));
            out.put_u64_le(chunk.seq.0);
            out.put_u64_le(chunk.offset);
            out.put_u32_le(chunk.bytes);
            out.extend_from_slice(&chunk.hash);
        }
        out.extend_from_slice(hot);
        self.hash = hash_of(&out);
        out[HASH_AT..HEADER_BYTES].copy_from_slice(&self.hash.0);
        self.encoded = out.freeze();
    }

    /// Reads a root from the first bytes of the object of `volume` numbered `seq`. Safe on hostile
    /// bytes.
    ///
    /// # Errors
    ///
    /// [`RootError::Incomplete`]: the bytes end before the root does; ask for as many as it says.
    /// [`RootError::Damaged`]: no number of further bytes would make it a checkpoint of this key.
    pub fn decode(volume: VolumeId, seq: Seq, bytes: &[u8]) -> Result<Root, RootError> {
        let damaged =
            |reason: String| RootError::Damaged(Damaged::new(&key::checkpoint(volume, seq), reason));
        let short = |short: Short| damaged(format!("it ends before its {}", short.0));
        let header = Header::decode(bytes).map_err(short)?.map_err(damaged)?;
        if header.volume != volume || header.seq != seq {
            return Err(damaged(format!("it is checkpoint {} of volume {}", header.seq, header.volume)));
        }
        let need = header.root_bytes();
        let Some(root) = usize::try_from(need).ok().and_then(|need| bytes.get(..need)) else {
            return Err(RootError::Incomplete { need });
        };
        if hash_of(root) != header.hash {
            return Err(damaged("its root does not match its hash".into()));
        }
        header.tables(root).map_err(short)?.map_err(damaged)
    }

    /// Where the state is in the object.
    pub fn state_range(&self) -> std::ops::Range<u64> {
        let start = self.encoded.len() as u64;
        start..start.saturating_add(self.state_bytes)
    }

    /// The chunk `index`, if it was ever written.
    pub fn chunk(&self, index: u32) -> Option<&ChunkRef> {
        let at = self.chunks.binary_search_by_key(&index, |chunk| chunk.index).ok()?;
        self.chunks.get(at)
    }

    /// Bytes of the whole page table.
    pub fn table_bytes(&self) -> u64 {
        self.chunks.iter().map(|chunk| u64::from(chunk.bytes)).sum()
    }

    /// This checkpoint as later ones name it.
    pub fn past(&self) -> Past {
        Past { seq: self.seq, lsn: self.lsn, time_ms: self.time_ms }
    }
}

/// BLAKE3 of a root without its hash field.
fn hash_of(root: &[u8]) -> ChainHash {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&root[..HASH_AT]);
    hasher.update(&root[HEADER_BYTES..]);
    ChainHash(*hasher.finalize().as_bytes())
}

struct Header {
    pages: u32,
    lsn: Lsn,
    volume: VolumeId,
    seq: Seq,
    time_ms: i64,
    chain: ChainHash,
    page_size: u32,
    volumes: u32,
    history: u32,
    chunks: u32,
    state_bytes: u64,
    state_hash: [u8; 16],
    epoch: u32,
    hot: u32,
    hash: ChainHash,
}

impl Header {
    fn decode(bytes: &[u8]) -> Result<Result<Header, String>, Short> {
        let mut reader = Reader::new(bytes);
        let magic: [u8; 4] = reader.array("magic")?;
        if magic != MAGIC {
            return Ok(Err("its magic is not GFK1: not a checkpoint, or of a newer version".into()));
        }
        let header = Header {
            pages: reader.u32("page count")?,
            lsn: Lsn(reader.u64("lsn")?),
            volume: VolumeId(reader.array("volume")?),
            seq: Seq(reader.u64("number")?),
            time_ms: i64::from_le_bytes(reader.array("time")?),
            chain: ChainHash(reader.array("chain hash")?),
            page_size: reader.u32("page size")?,
            volumes: reader.u32("volume count")?,
            history: reader.u32("history count")?,
            chunks: reader.u32("chunk count")?,
            state_bytes: reader.u64("state length")?,
            state_hash: reader.array("state hash")?,
            epoch: reader.u32("epoch")?,
            hot: reader.u32("hot set length")?,
            hash: ChainHash(reader.array("hash")?),
        };
        let most = u32::MAX / CHUNK_PAGES as u32 + 1;
        if header.volumes as usize > LINEAGE_MAX
            || header.history as usize > HISTORY_MAX
            || header.chunks > most
            || header.state_bytes > STATE_BYTES_MAX
            || header.hot > HOT_BYTES_MAX
        {
            return Ok(Err("its counts are greater than any checkpoint's".into()));
        }
        Ok(Ok(header))
    }

    fn root_bytes(&self) -> u64 {
        HEADER_BYTES as u64
            + VOLUME_BYTES as u64 * u64::from(self.volumes)
            + PAST_BYTES as u64 * u64::from(self.history)
            + CHUNK_ENTRY_BYTES as u64 * u64::from(self.chunks)
            + u64::from(self.hot)
    }

    fn tables(&self, root: &[u8]) -> Result<Result<Root, String>, Short> {
        let Some(page_size) = PageSize::new(self.page_size) else {
            return Ok(Err("its page size is not one".into()));
        };
        let mut reader = Reader::new(&root[HEADER_BYTES..]);
        let mut volumes = Vec::with_capacity(self.volumes as usize);
        for _ in 0..self.volumes {
            volumes.push((VolumeId(reader.array("volumes")?), Lsn(reader.u64("volumes")?)));
        }
        let lineage = Lineage::from_volumes(volumes).filter(|lineage| lineage.own() == self.volume);
        let Some(lineage) = lineage else { return Ok(Err("its table of volumes is none".into())) };
        let mut history: Vec<Past> = Vec::with_capacity(self.history as usize);
        for _ in 0..self.history {
            let (seq, lsn) = (Seq(reader.u64("history")?), Lsn(reader.u64("history")?));
            let past = Past { seq, lsn, time_ms: i64::from_le_bytes(reader.array("history")?) };
            if past.seq >= self.seq || history.last().is_some_and(|last| last.seq >= past.seq) {
                return Ok(Err("its history does not ascend".into()));
            }
            history.push(past);
        }
        let mut chunks: Vec<ChunkRef> = Vec::with_capacity(self.chunks as usize);
        for _ in 0..self.chunks {
            let (index, place) = (reader.u32("chunks")?, reader.u32("chunks")? as usize);
            let (seq, offset) = (Seq(reader.u64("chunks")?), reader.u64("chunks")?);
            let (bytes, hash) = (reader.u32("chunks")?, reader.array("chunks")?);
            let Some((volume, _)) = lineage.volumes().get(place) else {
                return Ok(Err("it has a chunk of a volume that it does not name".into()));
            };
            let inside = chunk::first_page(index).is_some_and(|first| first <= self.pages);
            let fits = bytes as usize <= CHUNK_BYTES_MAX && offset.checked_add(bytes.into()).is_some();
            if !inside || !fits || chunks.last().is_some_and(|last| last.index >= index) {
                return Ok(Err("it has a chunk that cannot be one".into()));
            }
            chunks.push(ChunkRef { index, volume: *volume, seq, offset, bytes, hash });
        }
        let hot = match PageSet::decode(reader.take(self.hot as usize, "hot set")?) {
            Ok(hot) if hot.last().is_none_or(|last| last.get() <= self.pages) => hot,
            Ok(_) => return Ok(Err("its hot set has pages beyond its page count".into())),
            Err(error) => return Ok(Err(format!("its hot set: {error}"))),
        };
        Ok(Ok(Root {
            volume: self.volume,
            seq: self.seq,
            lsn: self.lsn,
            chain: self.chain,
            time_ms: self.time_ms,
            pages: self.pages,
            page_size,
            lineage,
            history,
            chunks,
            epoch: Epoch(self.epoch),
            hot,
            state_bytes: self.state_bytes,
            state_hash: self.state_hash,
            hash: self.hash,
            encoded: Bytes::copy_from_slice(root),
        }))
    }
}

#[cfg(test)]
mod tests;
