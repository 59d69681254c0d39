//! A fork's pin: the object `volumes/{parent}/forks/{child}`, which keeps what the child reads through
//! its parent from garbage collection. 44 bytes, little-endian.
//!
//! | offset | bytes | field    | meaning                                                       |
//! |-------:|------:|----------|---------------------------------------------------------------|
//! |      0 |     4 | magic    | `GFP1`; the digit is the format version                       |
//! |      4 |     4 | reserved | zero                                                          |
//! |      8 |     8 | lsn      | the commit it was forked at                                   |
//! |     16 |    16 | child    | the fork's volume id, equal to the object key's               |
//! |     32 |    12 | checksum | first 12 bytes of BLAKE3 over the parent's id and bytes 0..32 |

use bytes::Bytes;

use super::{Damaged, Reader, Short};
use crate::ids::{Lsn, VolumeId, key};

const MAGIC: [u8; 4] = *b"GFP1";
const PIN_BYTES: usize = 44;

/// The bytes of the pin of `child`, forked from `parent` at `lsn`.
pub fn encode(parent: VolumeId, child: VolumeId, lsn: Lsn) -> Bytes {
    let mut out = Vec::with_capacity(PIN_BYTES);
    out.extend(MAGIC);
    out.extend([0; 4]);
    out.extend(lsn.0.to_le_bytes());
    out.extend(child.0);
    out.extend(checksum(parent, &out));
    out.into()
}

/// Reads which commit of `parent` the pin of `child` keeps. Safe on hostile bytes.
pub fn decode(parent: VolumeId, child: VolumeId, bytes: &[u8]) -> Result<Lsn, Damaged> {
    let parse = || -> Result<Result<Lsn, &'static str>, Short> {
        let mut reader = Reader::new(bytes);
        let magic: [u8; 4] = reader.array("magic")?;
        reader.take(4, "reserved field")?;
        let lsn = Lsn(reader.u64("lsn")?);
        let found = VolumeId(reader.array("child")?);
        let sum: [u8; 12] = reader.array("checksum")?;
        if magic != MAGIC || bytes.len() != PIN_BYTES {
            return Ok(Err("it is no pin, or of a newer version"));
        }
        if checksum(parent, &bytes[..32]) != sum || found != child {
            return Ok(Err("its checksum does not match: it was changed, or is another fork's"));
        }
        Ok(Ok(lsn))
    };
    let damaged = |reason: String| Damaged::new(&key::fork_pin(parent, child), reason);
    match parse() {
        Ok(Ok(lsn)) => Ok(lsn),
        Ok(Err(reason)) => Err(damaged(reason.into())),
        Err(Short(field)) => Err(damaged(format!("it ends before its {field}"))),
    }
}

fn checksum(parent: VolumeId, bytes: &[u8]) -> [u8; 12] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&parent.0);
    hasher.update(bytes);
    let mut checksum = [0; 12];
    checksum.copy_from_slice(&hasher.finalize().as_bytes()[..12]);
    checksum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_changed_or_missing_byte_is_noticed() {
        let (parent, child) = (VolumeId([5; 16]), VolumeId([6; 16]));
        let bytes = encode(parent, child, Lsn(9));
        assert_eq!(decode(parent, child, &bytes), Ok(Lsn(9)));
        assert!(decode(child, child, &bytes).is_err() && decode(parent, parent, &bytes).is_err());
        for at in 0..bytes.len() {
            assert!(decode(parent, child, &bytes[..at]).is_err(), "cut at {at}");
            let mut flipped = bytes.to_vec();
            flipped[at] ^= 0x10;
            assert!(decode(parent, child, &flipped).is_err(), "flip at {at}");
        }
    }
}
