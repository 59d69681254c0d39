//! A cursor over hostile bytes.

use std::fmt;

/// Why bytes are not the message they should be.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum DecodeError {
    /// The bytes end inside a field, or a length or count promises more than there is.
    Truncated {
        /// Which field.
        field: &'static str,
        /// Where it starts, in bytes from the start of the message.
        offset: usize,
    },
    /// A tag, flag or version has a value that this version does not know.
    Tag {
        /// Which field.
        field: &'static str,
        /// Its value.
        found: u8,
        /// Where it is.
        offset: usize,
    },
    /// A string is not UTF-8.
    Utf8 {
        /// Which field.
        field: &'static str,
        /// Where its bytes start.
        offset: usize,
    },
    /// A count is above what the format allows.
    TooMany {
        /// Which field.
        field: &'static str,
        /// The count.
        found: u32,
        /// The greatest allowed.
        max: u32,
    },
    /// Bytes follow the end of the message.
    Trailing {
        /// How many.
        bytes: usize,
    },
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DecodeError::Truncated { field, offset } => {
                write!(f, "{field} at byte {offset} goes beyond the end of the message")
            }
            DecodeError::Tag { field, found, offset } => {
                write!(f, "{field} at byte {offset} is {found}, which ABI version 1 does not know")
            }
            DecodeError::Utf8 { field, offset } => write!(f, "{field} at byte {offset} is not UTF-8"),
            DecodeError::TooMany { field, found, max } => {
                write!(f, "{field} counts {found}, and at most {max} are allowed")
            }
            DecodeError::Trailing { bytes } => write!(f, "{bytes} bytes follow the end of the message"),
        }
    }
}
impl std::error::Error for DecodeError {}

/// Reads fields from the front of a slice. Field names are for errors alone.
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader { bytes, at: 0 }
    }

    fn remaining(&self) -> usize {
        self.bytes.len() - self.at
    }

    fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], DecodeError> {
        let found = self.bytes[self.at..].first_chunk::<N>();
        let found = *found.ok_or(DecodeError::Truncated { field, offset: self.at })?;
        self.at += N;
        Ok(found)
    }

    pub(super) fn u8(&mut self, field: &'static str) -> Result<u8, DecodeError> {
        Ok(self.array::<1>(field)?[0])
    }

    pub(super) fn u32(&mut self, field: &'static str) -> Result<u32, DecodeError> {
        Ok(u32::from_le_bytes(self.array(field)?))
    }

    pub(super) fn u64(&mut self, field: &'static str) -> Result<u64, DecodeError> {
        Ok(u64::from_le_bytes(self.array(field)?))
    }

    pub(super) fn i32(&mut self, field: &'static str) -> Result<i32, DecodeError> {
        Ok(i32::from_le_bytes(self.array(field)?))
    }

    pub(super) fn i64(&mut self, field: &'static str) -> Result<i64, DecodeError> {
        Ok(i64::from_le_bytes(self.array(field)?))
    }

    pub(super) fn f64(&mut self, field: &'static str) -> Result<f64, DecodeError> {
        Ok(f64::from_le_bytes(self.array(field)?))
    }

    /// An error for the byte just read.
    pub(super) fn tag(&self, field: &'static str, found: u8) -> DecodeError {
        DecodeError::Tag { field, found, offset: self.at - 1 }
    }

    pub(super) fn bytes(&mut self, field: &'static str) -> Result<&'a [u8], DecodeError> {
        let start = self.at;
        let len = self.u32(field)? as usize;
        if len > self.remaining() {
            return Err(DecodeError::Truncated { field, offset: start });
        }
        let found = &self.bytes[self.at..self.at + len];
        self.at += len;
        Ok(found)
    }

    pub(super) fn str(&mut self, field: &'static str) -> Result<&'a str, DecodeError> {
        let start = self.at;
        let bytes = self.bytes(field)?;
        std::str::from_utf8(bytes).map_err(|_| DecodeError::Utf8 { field, offset: start + 4 })
    }

    /// A count of items of which each takes at least `item_min` bytes, so that what is reserved for
    /// them is bounded by the input.
    pub(super) fn count(
        &mut self,
        field: &'static str,
        item_min: usize,
        max: u32,
    ) -> Result<usize, DecodeError> {
        let start = self.at;
        let found = self.u32(field)?;
        if found > max {
            return Err(DecodeError::TooMany { field, found, max });
        }
        if found as usize > self.remaining() / item_min {
            return Err(DecodeError::Truncated { field, offset: start });
        }
        Ok(found as usize)
    }

    /// Ends the message.
    pub(super) fn finish(self) -> Result<(), DecodeError> {
        match self.remaining() {
            0 => Ok(()),
            bytes => Err(DecodeError::Trailing { bytes }),
        }
    }
}
