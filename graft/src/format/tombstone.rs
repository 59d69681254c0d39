//! A tombstone: what garbage collection leaves under the key of a commit or a checkpoint that no
//! reader can reach any more. 96 bytes, little-endian.
//!
//! | offset | bytes | field    | meaning                                                     |
//! |-------:|------:|----------|-------------------------------------------------------------|
//! |      0 |     4 | magic    | `GFT1`; the digit is the format version                     |
//! |      4 |     4 | kind     | 1: of a commit, 2: of a checkpoint                          |
//! |      8 |     8 | number   | the commit's LSN or the checkpoint's number, the object key's |
//! |     16 |    16 | id       | the commit's id; zero for a checkpoint                      |
//! |     32 |    32 | hash     | the commit's hash; for a checkpoint that of its root        |
//! |     64 |    32 | checksum | BLAKE3 over the volume's id and bytes 0..64                 |
//!
//! A writer that stalled for days and then sends its create meets it and loses; a writer that reads
//! its own commit back finds its own id and knows that it won. So the key stays occupied long after
//! what it held is gone. [`crate::gc::bottom`] says when it is freed at last, and why that is safe.

use bytes::Bytes;

use super::{Damaged, Reader, Short};
use crate::ids::{ChainHash, CommitId, Lsn, Seq, VolumeId, key};

/// The first bytes of every tombstone.
pub const MAGIC: [u8; 4] = *b"GFT1";
/// A tombstone's length.
pub const TOMBSTONE_BYTES: usize = 96;

/// Which object it stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Of {
    /// A commit.
    Commit(Lsn),
    /// A checkpoint.
    Checkpoint(Seq),
}

impl Of {
    /// The object's key in `volume`.
    pub fn key(self, volume: VolumeId) -> String {
        match self {
            Of::Commit(lsn) => key::log(volume, lsn),
            Of::Checkpoint(seq) => key::checkpoint(volume, seq),
        }
    }

    fn parts(self) -> (u32, u64) {
        match self {
            Of::Commit(lsn) => (1, lsn.0),
            Of::Checkpoint(seq) => (2, seq.0),
        }
    }
}

/// What is left of a commit or a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tombstone {
    /// Of what.
    pub of: Of,
    /// The commit's id; zero for a checkpoint.
    pub id: CommitId,
    /// The commit's hash; for a checkpoint that of its root.
    pub hash: ChainHash,
}

impl Tombstone {
    /// Whether `bytes` begin as a tombstone does.
    pub fn is_one(bytes: &[u8]) -> bool {
        bytes.starts_with(&MAGIC)
    }

    /// The bytes of the object in `volume`.
    pub fn encode(&self, volume: VolumeId) -> Bytes {
        let (kind, number) = self.of.parts();
        let mut out = Vec::with_capacity(TOMBSTONE_BYTES);
        out.extend(MAGIC);
        out.extend(kind.to_le_bytes());
        out.extend(number.to_le_bytes());
        out.extend(self.id.0);
        out.extend(self.hash.0);
        out.extend(checksum(volume, &out));
        out.into()
    }

    /// Reads the object of `volume` that stands for `of`. Safe on hostile bytes.
    pub fn decode(volume: VolumeId, of: Of, bytes: &[u8]) -> Result<Tombstone, Damaged> {
        let parse = || -> Result<Result<Tombstone, &'static str>, Short> {
            let mut reader = Reader::new(bytes);
            let magic: [u8; 4] = reader.array("magic")?;
            let (kind, number) = (reader.u32("kind")?, reader.u64("number")?);
            let (id, hash) = (CommitId(reader.array("id")?), ChainHash(reader.array("hash")?));
            let found: [u8; 32] = reader.array("checksum")?;
            if magic != MAGIC || bytes.len() != TOMBSTONE_BYTES {
                return Ok(Err("it is no tombstone"));
            }
            if checksum(volume, &bytes[..64]) != found || (kind, number) != of.parts() {
                return Ok(Err("its checksum does not match: it was changed, or is another object's"));
            }
            Ok(Ok(Tombstone { of, id, hash }))
        };
        match parse() {
            Ok(Ok(tombstone)) => Ok(tombstone),
            Ok(Err(reason)) => Err(Damaged::new(&of.key(volume), reason)),
            Err(Short(field)) => Err(Damaged::new(&of.key(volume), format!("it ends before its {field}"))),
        }
    }
}

fn checksum(volume: VolumeId, bytes: &[u8]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&volume.0);
    hasher.update(bytes);
    *hasher.finalize().as_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_changed_or_missing_byte_is_noticed() {
        let volume = VolumeId([5; 16]);
        for of in [Of::Commit(Lsn(7)), Of::Checkpoint(Seq(7))] {
            let tombstone = Tombstone { of, id: CommitId([1; 16]), hash: ChainHash([2; 32]) };
            let bytes = tombstone.encode(volume);
            assert_eq!(bytes.len(), TOMBSTONE_BYTES);
            assert_eq!(Tombstone::decode(volume, of, &bytes), Ok(tombstone));
            assert!(Tombstone::decode(VolumeId([6; 16]), of, &bytes).is_err(), "another volume's");
            for other in [Of::Commit(Lsn(8)), Of::Checkpoint(Seq(8)), Of::Commit(Lsn(0))] {
                assert!(Tombstone::decode(volume, other, &bytes).is_err(), "another key's");
            }
            for cut in 0..bytes.len() {
                assert!(Tombstone::decode(volume, of, &bytes[..cut]).is_err(), "cut at {cut}");
            }
            for at in 0..bytes.len() {
                let mut flipped = bytes.to_vec();
                flipped[at] ^= 0x10;
                assert!(Tombstone::decode(volume, of, &flipped).is_err(), "flip at {at}");
            }
            assert!(Tombstone::decode(volume, of, &[&bytes[..], b"x"].concat()).is_err());
        }
    }
}
