//! The bytes on the boundary between host and guest, version 1. Little-endian throughout.
//!
//! `docs/reducer-abi.md` is the same text for implementers of other languages; a test reads its
//! worked examples and checks them against this module.
//!
//! | shape | bytes |
//! | --- | --- |
//! | u8, u32, u64, i32, i64 | 1, 4, 8, 4, 8; little-endian, two's complement |
//! | f64 | 8; IEEE 754 bits |
//! | str | u32 length, then that many bytes of UTF-8 |
//! | bytes | u32 length, then that many bytes |
//! | list of T | u32 count, then that many T |
//!
//! Each message has a `encode_…` and a `decode_…` function. Decoders are total: whatever the bytes,
//! they answer a value or a [`DecodeError`]; they never panic, and they allocate no more than a small
//! multiple of the input, because every length and count is checked against the bytes that remain
//! before anything is reserved. A message must end where its input ends.
//!
//! What this module does not do: it does not judge meaning. That names are well formed, that
//! migrations have no gaps, that arguments fit a reducer, is for hosts and guests to check.

mod message;
mod read;
mod value;
mod write;

#[cfg(test)]
mod tests;

pub use message::{
    DecodedCall, DecodedEntry, decode_call, decode_changes, decode_description, decode_outcome, decode_rows,
    encode_call, encode_changes, encode_description, encode_outcome, encode_rows,
};
pub use read::DecodeError;
pub use value::{canonical, decode_values, encode_values};

/// The version of this ABI. A module answers it from its export `graft_abi_version`, and
/// descriptions and calls begin with it.
pub const ABI_VERSION: u8 = 1;

/// The most values in one list of parameters or arguments: SQLite's own bound on `?NNN`.
pub const VALUES_MAX: u32 = 32_766;

/// The most columns in one result: SQLite's own hard bound.
pub const COLUMNS_MAX: u32 = 32_767;
