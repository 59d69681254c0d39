//! Volume metadata: the object `volumes/{vid}/meta`, written once. 44 bytes, little-endian.
//!
//! | offset | bytes | field       | meaning                                             |
//! |-------:|------:|-------------|-----------------------------------------------------|
//! |      0 |     4 | magic       | `GFM1`; the digit is the format version             |
//! |      4 |     4 | page size   | bytes; a power of two from 512 to 65536             |
//! |      8 |    16 | parent      | volume id that this one forks, zero where it is none |
//! |     24 |     8 | parent lsn  | the commit it forks at, zero where it is none       |
//! |     32 |    12 | checksum    | first 12 bytes of BLAKE3 over the volume's id and bytes 0..32 |

use bytes::Bytes;

use super::{Damaged, Reader, Short};
use crate::ids::{Lsn, PageSize, VolumeId, key};

const MAGIC: [u8; 4] = *b"GFM1";

/// What is fixed for a volume's whole life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Meta {
    /// Bytes in each page.
    pub page_size: PageSize,
    /// The volume and commit this one was forked from.
    pub parent: Option<(VolumeId, Lsn)>,
}

impl Meta {
    /// The bytes of `volume`'s object.
    pub fn encode(&self, volume: VolumeId) -> Bytes {
        let (parent, lsn) = self.parent.unwrap_or((VolumeId([0; 16]), Lsn::ZERO));
        let mut out = Vec::with_capacity(44);
        out.extend(MAGIC);
        out.extend(self.page_size.get().to_le_bytes());
        out.extend(parent.0);
        out.extend(lsn.0.to_le_bytes());
        out.extend(checksum(volume, &out));
        out.into()
    }

    /// Reads `volume`'s object. Safe on hostile bytes.
    pub fn decode(volume: VolumeId, bytes: &[u8]) -> Result<Meta, Damaged> {
        let key = &key::meta(volume);
        let parse = || -> Result<Result<Meta, &'static str>, Short> {
            let mut reader = Reader::new(bytes);
            let magic: [u8; 4] = reader.array("magic")?;
            if magic != MAGIC {
                return Ok(Err("its magic is not GFM1: not volume metadata, or of a newer version"));
            }
            let page_size = PageSize::new(reader.u32("page size")?);
            let parent = VolumeId(reader.array("parent")?);
            let lsn = Lsn(reader.u64("parent lsn")?);
            let found: [u8; 12] = reader.array("checksum")?;
            if bytes.len() != 44 || checksum(volume, &bytes[..32]) != found {
                return Ok(Err("its checksum does not match: it was changed, or is another volume's"));
            }
            let Some(page_size) = page_size else { return Ok(Err("its page size is not one")) };
            let parent = (parent != VolumeId([0; 16])).then_some((parent, lsn));
            Ok(Ok(Meta { page_size, parent }))
        };
        match parse() {
            Ok(Ok(meta)) => Ok(meta),
            Ok(Err(reason)) => Err(Damaged::new(key, reason)),
            Err(Short(field)) => Err(Damaged::new(key, format!("it ends before its {field}"))),
        }
    }
}

fn checksum(volume: VolumeId, bytes: &[u8]) -> [u8; 12] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&volume.0);
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
        let meta = Meta { page_size: PageSize::DEFAULT, parent: Some((VolumeId([3; 16]), Lsn(9))) };
        let volume = VolumeId([5; 16]);
        let bytes = meta.encode(volume);
        assert_eq!(Meta::decode(volume, &bytes), Ok(meta));
        assert!(Meta::decode(VolumeId([6; 16]), &bytes).is_err(), "another volume's");
        for cut in 0..bytes.len() {
            assert!(Meta::decode(volume, &bytes[..cut]).is_err(), "cut at {cut}");
        }
        for at in 0..bytes.len() {
            let mut flipped = bytes.to_vec();
            flipped[at] ^= 0x10;
            assert!(Meta::decode(volume, &flipped).is_err(), "flip at {at}");
        }
    }
}
