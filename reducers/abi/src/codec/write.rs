//! Appends fields to a buffer.

/// A length that crosses the boundary.
///
/// # Panics
///
/// If `len` is 2^32 or more: guests have 32-bit memory and hosts bound what they send, so that is a
/// bug on our side, never a matter of input.
fn len_u32(len: usize) -> u32 {
    u32::try_from(len).expect("messages on the boundary are shorter than 4 GiB")
}

pub(super) fn str(out: &mut Vec<u8>, text: &str) {
    bytes(out, text.as_bytes());
}

pub(super) fn bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    count(out, bytes.len());
    out.extend_from_slice(bytes);
}

pub(super) fn count(out: &mut Vec<u8>, count: usize) {
    out.extend_from_slice(&len_u32(count).to_le_bytes());
}
