//! The bytes of `volumes/{vid}/owner`. Little-endian; safe on hostile bytes.
//!
//! | offset | bytes | field | meaning |
//! |-------:|------:|-------|---------|
//! | 0 | 4 | magic | `GFO1`; the digit is the format version |
//! | 4 | 16 | volume | the one in the key |
//! | 20 | 16 | node | who wrote it |
//! | 36 | 8 | epoch | u64, at least 1 |
//! | 44 | 8 | renewal | u64, rises with each write of an epoch, so no two records are equal |
//! | 52 | 8 | expires | i64, ms since 1970 by the node's clock |
//! | 60 | 4 | ttl | u32 ms, how long before `expires` it was sent |
//! | 64 | 1 | hold | 0 held, 1 released, 2 released to a successor |
//! | 65 | 16 | successor | a node; zeroes unless `hold` is 2 |
//! | 81 | 1 | length | of the address |
//! | 82 | n | address | UTF-8 |
//! | 82 + n | 8 | check | the first bytes of BLAKE3 of all before |

use bytes::{BufMut as _, Bytes, BytesMut};

use super::{Epoch, NodeId};
use crate::ids::VolumeId;

const MAGIC: &[u8; 4] = b"GFO1";
const FIXED: usize = 82;
const CHECK: usize = 8;

/// The longest address that is kept.
pub const ADDRESS_BYTES_MAX: usize = 255;
/// The longest lease: ten minutes. What says more is no record.
pub const TTL_MS_MAX: u32 = 600_000;

/// One state of the lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Who wrote it.
    pub node: NodeId,
    /// Which ownership.
    pub epoch: Epoch,
    /// Its how-many-th record.
    pub renewal: u64,
    /// When it is over, by the clock of `node`.
    pub expires_ms: i64,
    /// How long it was meant to last.
    pub ttl_ms: u32,
    /// Whether it is held.
    pub hold: Hold,
    /// Where `node` is reached.
    pub address: String,
}

/// Whether a lease is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hold {
    /// By its node.
    Held,
    /// By nobody; where somebody is named, they come first until `expires_ms`.
    Released {
        /// Who is to hold it next.
        to: Option<NodeId>,
    },
}

/// Why bytes are no lease of this volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BadRecord {
    /// Too short, too long, or of another format.
    #[error("it is not a lease")]
    Shape,
    /// Its check does not match.
    #[error("its checksum does not match")]
    Check,
    /// It is another volume's.
    #[error("it is another volume's lease")]
    Volume,
    /// Its epoch is 0 or the last there is.
    #[error("its epoch is none")]
    Epoch,
    /// It lasts for longer than a lease may.
    #[error("it lasts for more than ten minutes")]
    Ttl,
}

/// The part of an address that is kept.
pub(super) fn clipped(address: &str) -> &str {
    &address[..address.floor_char_boundary(ADDRESS_BYTES_MAX)]
}

impl Record {
    /// The object's bytes. An address beyond [`ADDRESS_BYTES_MAX`] is cut off.
    pub fn encode(&self, volume: VolumeId) -> Bytes {
        let address = clipped(&self.address);
        let (hold, successor) = match self.hold {
            Hold::Held => (0, [0; 16]),
            Hold::Released { to: None } => (1, [0; 16]),
            Hold::Released { to: Some(NodeId(node)) } => (2, node),
        };
        let mut out = BytesMut::with_capacity(FIXED + address.len() + CHECK);
        out.put_slice(MAGIC);
        out.put_slice(&volume.0);
        out.put_slice(&self.node.0);
        out.put_u64_le(self.epoch.0);
        out.put_u64_le(self.renewal);
        out.put_i64_le(self.expires_ms);
        out.put_u32_le(self.ttl_ms);
        out.put_u8(hold);
        out.put_slice(&successor);
        // `clipped` keeps it within a byte.
        out.put_u8(u8::try_from(address.len()).unwrap_or(u8::MAX));
        out.put_slice(address.as_bytes());
        let check = blake3::hash(&out);
        out.put_slice(&check.as_bytes()[..CHECK]);
        out.freeze()
    }

    /// Reads the object's bytes.
    ///
    /// # Errors
    ///
    /// [`BadRecord`]; never a panic, whatever the bytes.
    pub fn decode(volume: VolumeId, bytes: &[u8]) -> Result<Record, BadRecord> {
        let (body, check) = bytes.split_last_chunk::<CHECK>().ok_or(BadRecord::Shape)?;
        let (fixed, address) = body.split_first_chunk::<FIXED>().ok_or(BadRecord::Shape)?;
        if !fixed.starts_with(MAGIC) || usize::from(fixed[81]) != address.len() {
            return Err(BadRecord::Shape);
        }
        if blake3::hash(body).as_bytes()[..CHECK] != *check {
            return Err(BadRecord::Check);
        }
        if fixed[4..20] != volume.0 {
            return Err(BadRecord::Volume);
        }
        let epoch = u64::from_le_bytes(part(fixed, 36));
        if epoch == 0 || epoch == u64::MAX {
            return Err(BadRecord::Epoch);
        }
        let ttl_ms = u32::from_le_bytes(part(fixed, 60));
        if ttl_ms > TTL_MS_MAX {
            return Err(BadRecord::Ttl);
        }
        let successor: [u8; 16] = part(fixed, 65);
        let hold = match (fixed[64], successor == [0; 16]) {
            (0, true) => Hold::Held,
            (1, true) => Hold::Released { to: None },
            (2, _) => Hold::Released { to: Some(NodeId(successor)) },
            (0.., _) => return Err(BadRecord::Shape),
        };
        Ok(Record {
            node: NodeId(part(fixed, 20)),
            epoch: Epoch(epoch),
            renewal: u64::from_le_bytes(part(fixed, 44)),
            expires_ms: i64::from_le_bytes(part(fixed, 52)),
            ttl_ms,
            hold,
            address: std::str::from_utf8(address).map_err(|_| BadRecord::Shape)?.to_owned(),
        })
    }
}

/// `N` bytes of the fixed part, which are there.
fn part<const N: usize>(fixed: &[u8; FIXED], at: usize) -> [u8; N] {
    let mut part = [0; N];
    part.copy_from_slice(&fixed[at..at + N]);
    part
}
