//! Bytes of everything the engine stores. Little-endian throughout.
//!
//! | module | object |
//! | --- | --- |
//! | [`meta`] | `volumes/{vid}/meta` |
//! | [`commit`] | `volumes/{vid}/log/{!lsn}`: head, then inline frames |
//! | [`frame`] | up to 64 compressed pages, inside a commit or a segment |
//! | [`checkpoint`] | `volumes/{vid}/checkpoints/{!seq}`: root, then state and chunks |
//! | [`chunk`] | where 256 pages are, inside a checkpoint |
//! | [`pin`] | `volumes/{parent}/forks/{child}` |
//! | [`tombstone`] | what is left of a commit or checkpoint that was deleted |
//!
//! Every decoder is total: bytes from a store are hostile, a damaged object is a typed error that
//! names it, and nothing is allocated for a length that the bytes at hand do not back.

pub mod checkpoint;
pub mod chunk;
pub mod commit;
pub mod frame;
pub mod meta;
pub mod pin;
pub mod tombstone;

/// An object in the store is not what it should be. Trying again cannot help: someone must look.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("object `{key}` is damaged: {reason}; put it back from a copy of the store")]
pub struct Damaged {
    /// The object's key.
    pub key: String,
    /// What did not hold.
    pub reason: String,
}

impl Damaged {
    pub(crate) fn new(key: &str, reason: impl Into<String>) -> Damaged {
        Damaged { key: key.into(), reason: reason.into() }
    }
}

/// A cursor over bytes that may end too early.
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
}

/// The bytes ended before the field named.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Short(pub &'static str);

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader { rest: bytes }
    }

    pub(crate) fn take(&mut self, bytes: usize, field: &'static str) -> Result<&'a [u8], Short> {
        let (taken, rest) = self.rest.split_at_checked(bytes).ok_or(Short(field))?;
        self.rest = rest;
        Ok(taken)
    }

    pub(crate) fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], Short> {
        let (taken, rest) = self.rest.split_first_chunk::<N>().ok_or(Short(field))?;
        self.rest = rest;
        Ok(*taken)
    }

    pub(crate) fn u32(&mut self, field: &'static str) -> Result<u32, Short> {
        self.array(field).map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self, field: &'static str) -> Result<u64, Short> {
        self.array(field).map(u64::from_le_bytes)
    }
}
