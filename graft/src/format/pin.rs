//! A pin: a state that garbage collection must leave readable. 80 bytes, little-endian.
//!
//! | key | whose |
//! | --- | --- |
//! | `volumes/{vid}/forks/{child}` | a fork, which reads what is before it through `vid` |
//! | `volumes/{vid}/pins/{child}/{!seq}` | a fork's own page table, which was made from this checkpoint of `vid` |
//! | `volumes/{vid}/readers/{lease}` | a long-lived reader |
//!
//! | offset | bytes | field    | meaning                                                            |
//! |-------:|------:|----------|--------------------------------------------------------------------|
//! |      0 |     4 | magic    | `GFP1`; the digit is the format version                            |
//! |      4 |     4 | reserved | zero                                                               |
//! |      8 |     8 | lsn      | the state that is read                                             |
//! |     16 |     8 | seq      | the checkpoint that it is read from; 0: from the volume's first commit; 2^64 − 1: from the newest one at or below the LSN, whichever that is |
//! |     24 |     8 | until    | ms since 1970 at which it lapses; 2^63 − 1 for a fork's, which do not |
//! |     32 |    16 | reserved | zero                                                               |
//! |     48 |    32 | checksum | BLAKE3 over the object's key and bytes 0..48                       |
//!
//! Who has a page table already names the checkpoint it comes from: a compaction may make another one of
//! the same LSN with other places, and what must stay are the places that this reader knows.
//!
//! [`crate::reader`] writes leases; [`crate::gc`] says when one has lapsed.

use bytes::Bytes;

use super::{Damaged, Reader, Short};
use crate::ids::{Lsn, Seq};

const MAGIC: [u8; 4] = *b"GFP1";
const BODY_BYTES: usize = 48;
const NEWEST: u64 = u64::MAX;
/// A pin's length.
pub const PIN_BYTES: usize = 80;

/// A state that garbage collection must leave readable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pin {
    /// The state that is read.
    pub lsn: Lsn,
    /// The checkpoint that it is read from, [`Seq::ZERO`] for none: from the volume's first commit.
    /// `None` for whichever is the newest at or below the LSN.
    pub seq: Option<Seq>,
    /// When it lapses, ms since 1970; [`Pin::FOR_EVER`] for a fork.
    pub until_ms: i64,
}

impl Pin {
    /// It does not lapse.
    pub const FOR_EVER: i64 = i64::MAX;

    /// The bytes of the object `key`.
    pub fn encode(&self, key: &str) -> Bytes {
        let mut out = Vec::with_capacity(PIN_BYTES);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&self.lsn.0.to_le_bytes());
        out.extend_from_slice(&self.seq.map_or(NEWEST, |seq| seq.0).to_le_bytes());
        out.extend_from_slice(&self.until_ms.to_le_bytes());
        out.extend_from_slice(&[0; 16]);
        let checksum = checksum(key, &out);
        out.extend_from_slice(&checksum);
        out.into()
    }

    /// Reads the object `key`. Safe on hostile bytes.
    ///
    /// # Errors
    ///
    /// [`Damaged`]: it is no pin, or another object's.
    pub fn decode(key: &str, bytes: &[u8]) -> Result<Pin, Damaged> {
        let parse = || -> Result<Result<Pin, &'static str>, Short> {
            let mut reader = Reader::new(bytes);
            let magic: [u8; 4] = reader.array("magic")?;
            if magic != MAGIC {
                return Ok(Err("its magic is not GFP1: not a pin, or of a newer version"));
            }
            reader.take(4, "reserved field")?;
            let pin = Pin {
                lsn: Lsn(reader.u64("lsn")?),
                seq: Some(reader.u64("checkpoint")?).filter(|seq| *seq != NEWEST).map(Seq),
                until_ms: i64::from_le_bytes(reader.array("end")?),
            };
            reader.take(16, "reserved field")?;
            let found: [u8; 32] = reader.array("checksum")?;
            if bytes.len() != PIN_BYTES || checksum(key, &bytes[..BODY_BYTES]) != found {
                return Ok(Err("its checksum does not match: it was changed, or is another's"));
            }
            Ok(Ok(pin))
        };
        match parse() {
            Ok(Ok(pin)) => Ok(pin),
            Ok(Err(reason)) => Err(Damaged::new(key, reason)),
            Err(Short(field)) => Err(Damaged::new(key, format!("it ends before its {field}"))),
        }
    }
}

fn checksum(key: &str, body: &[u8]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(key.as_bytes());
    hasher.update(body);
    *hasher.finalize().as_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_changed_or_missing_byte_is_noticed() {
        let newest = Pin { lsn: Lsn(7), seq: None, until_ms: 3 };
        assert_eq!(Pin::decode("k", &newest.encode("k")), Ok(newest));
        let pin = Pin { lsn: Lsn(7), seq: Some(Seq(3)), until_ms: Pin::FOR_EVER };
        let bytes = pin.encode("volumes/a/forks/b");
        assert_eq!(bytes.len(), PIN_BYTES);
        assert_eq!(Pin::decode("volumes/a/forks/b", &bytes), Ok(pin));
        assert!(Pin::decode("volumes/a/forks/c", &bytes).is_err(), "another's");
        for cut in 0..bytes.len() {
            assert!(Pin::decode("volumes/a/forks/b", &bytes[..cut]).is_err(), "cut at {cut}");
        }
        for at in 0..bytes.len() {
            let mut flipped = bytes.to_vec();
            flipped[at] ^= 0x10;
            assert!(Pin::decode("volumes/a/forks/b", &flipped).is_err(), "flip at {at}");
        }
    }
}
