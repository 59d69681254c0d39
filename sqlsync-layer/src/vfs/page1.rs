//! Page 1 by fields: what is stored of it, what is synthesised, and the marks that stand for it.
//!
//! | bytes | treatment |
//! |------:|-----------|
//! | 24–27 change counter, 92–95 version-valid-for, 96–99 writer version | zero as stored, synthesised on read |
//! | 28–39 page count, freelist head, freelist count | the *allocator* mark |
//! | 18, 19 write and read version | stored as 1: a database copied from one in WAL mode says 2, and a volume has no WAL |
//! | everything else | the *schema* mark |
//!
//! The synthesised counter belongs to a connection: it changes whenever the connection must drop its
//! cache, and after the connection's own commit it is the value that SQLite itself wrote, so that the
//! cache survives.
//!
//! The schema cookie (40–43) is stored as it is and read with a connection's own offset. SQLite holds
//! a cached schema for valid while the cookie is equal; but after a reset an equal cookie can stand
//! for another schema. So when the lineage of snapshots changes, the offset grows such that the
//! connection sees a cookie it has never seen. Source of the offsets: <https://sqlite.org/fileformat2.html#the_database_header>.

use std::ops::Range;

/// Bytes that SQLite rewrites on every commit.
const VOLATILE: [Range<usize>; 2] = [24..28, 92..100];
const ALLOCATOR: Range<usize> = 28..40;
const VERSIONS: Range<usize> = 18..20;

/// What of page 1 a transaction changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Marks {
    /// Page count or freelist: changed by both sides, two transactions cannot be merged.
    pub allocator: bool,
    /// The schema or another header field: every query reads it.
    pub schema: bool,
}

impl Marks {
    /// Both changed: what must be assumed where nothing is known.
    pub const BOTH: Marks = Marks { allocator: true, schema: true };

    /// As one byte: bit 0 allocator, bit 1 schema.
    pub fn to_byte(self) -> u8 {
        u8::from(self.allocator) | u8::from(self.schema) << 1
    }

    /// From [`to_byte`](Marks::to_byte); unknown bits are ignored.
    pub fn from_byte(byte: u8) -> Marks {
        Marks { allocator: byte & 1 != 0, schema: byte & 2 != 0 }
    }

    /// Either side's.
    #[must_use]
    pub fn union(self, other: Marks) -> Marks {
        Marks { allocator: self.allocator || other.allocator, schema: self.schema || other.schema }
    }
}

/// What differs between two stored forms of page 1. Pages of fewer than 100 bytes do not exist.
pub fn marks(before: &[u8], after: &[u8]) -> Marks {
    let differ = |range: Range<usize>| before.get(range.clone()) != after.get(range);
    let end = before.len().max(after.len());
    Marks { allocator: differ(ALLOCATOR), schema: differ(0..ALLOCATOR.start) || differ(ALLOCATOR.end..end) }
}

/// Makes page 1 as SQLite wrote it into its stored form.
pub fn normalise(page: &mut [u8]) {
    for range in VOLATILE {
        if let Some(bytes) = page.get_mut(range) {
            bytes.fill(0);
        }
    }
    if says_wal(page)
        && let Some(versions) = page.get_mut(VERSIONS)
    {
        versions.fill(1);
    }
}

/// Copies the allocator's unit of one page 1 into another. Pages too short to have it are left alone.
pub fn copy_allocator(from: &[u8], to: &mut [u8]) {
    if let (Some(from), Some(to)) = (from.get(ALLOCATOR), to.get_mut(ALLOCATOR)) {
        to.copy_from_slice(from);
    }
}

/// Whether the header says that the database is in WAL mode.
pub fn says_wal(page: &[u8]) -> bool {
    page.get(VERSIONS).is_some_and(|versions| versions.contains(&2))
}

/// The database's page count in the header; `None` where it holds none.
pub fn page_count(page: &[u8]) -> Option<u32> {
    Some(big_endian(page, 28)).filter(|count| *count > 0)
}

/// Sets the database's page count in the header.
pub fn set_page_count(page: &mut [u8], pages: u32) {
    if let Some(bytes) = page.get_mut(28..32) {
        bytes.copy_from_slice(&pages.to_be_bytes());
    }
}

/// What a connection sees of page 1 in place of what is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Synthesised {
    /// The change counter.
    pub counter: u32,
    /// The schema cookie.
    pub cookie: u32,
    /// The version of SQLite that wrote last.
    pub sqlite_version: u32,
}

impl Synthesised {
    /// Puts the fields into `out`, which holds page 1 from byte `from` on. SQLite begins every transaction
    /// with 16 bytes of it, so what it does not ask for is not copied.
    pub fn overlay(&self, out: &mut [u8], from: usize) {
        let fields: [(usize, u32); 4] =
            [(24, self.counter), (40, self.cookie), (92, self.counter), (96, self.sqlite_version)];
        for (at, value) in fields {
            for (byte, at) in value.to_be_bytes().into_iter().zip(at..) {
                if let Some(out) = at.checked_sub(from).and_then(|at| out.get_mut(at)) {
                    *out = byte;
                }
            }
        }
    }
}

/// Makes the stored form into what SQLite reads.
pub fn synthesise(page: &mut [u8], counter: u32, sqlite_version: u32) {
    for (at, value) in [(24, counter), (92, counter), (96, sqlite_version)] {
        if let Some(bytes) = page.get_mut(at..at + 4) {
            bytes.copy_from_slice(&value.to_be_bytes());
        }
    }
}

/// The size of the database's pages that page 1 names (bytes 16–17; 1 stands for 65536).
pub fn page_bytes(page: &[u8]) -> usize {
    match page.get(16..18).and_then(|bytes| bytes.first_chunk()).map_or(0, |bytes| u16::from_be_bytes(*bytes))
    {
        1 => 65536,
        bytes => usize::from(bytes),
    }
}

/// The schema cookie in page 1.
pub fn cookie(page: &[u8]) -> u32 {
    big_endian(page, 40)
}

/// Sets the schema cookie in page 1.
pub fn set_cookie(page: &mut [u8], cookie: u32) {
    if let Some(bytes) = page.get_mut(40..44) {
        bytes.copy_from_slice(&cookie.to_be_bytes());
    }
}

fn big_endian(page: &[u8], at: usize) -> u32 {
    page.get(at..at + 4).and_then(|bytes| bytes.first_chunk()).map_or(0, |bytes| u32::from_be_bytes(*bytes))
}

/// The change counter in page 1 as SQLite wrote it.
pub fn counter(page: &[u8]) -> u32 {
    big_endian(page, 24)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_field_raises_its_own_mark() {
        let before = vec![0u8; 512];
        for at in 0..512 {
            let mut after = before.clone();
            after[at] = 1;
            let stored = |page: &[u8]| {
                let mut page = page.to_vec();
                normalise(&mut page);
                page
            };
            let expected = match at {
                24..=27 | 92..=99 => Marks::default(),
                28..=39 => Marks { allocator: true, schema: false },
                _ => Marks { allocator: false, schema: true },
            };
            assert_eq!(marks(&stored(&before), &stored(&after)), expected, "byte {at}");
        }
    }

    #[test]
    fn what_is_synthesised_is_stripped_again() {
        let stored = vec![0u8; 512];
        let mut page = stored.clone();
        synthesise(&mut page, 77, 3_054_001);
        assert_eq!(counter(&page), 77);
        normalise(&mut page);
        assert_eq!(page, stored);
    }

    /// Any part of page 1 is that part of the whole.
    #[test]
    fn a_part_of_page_1_is_a_part_of_the_whole() {
        let stored = vec![7u8; 512];
        let mut whole = stored.clone();
        synthesise(&mut whole, 0x0102_0304, 3_054_001);
        set_cookie(&mut whole, 0x0506_0708);
        let fields = Synthesised { counter: 0x0102_0304, cookie: 0x0506_0708, sqlite_version: 3_054_001 };
        for from in 0..120 {
            for to in from..120 {
                let mut part = stored[from..to].to_vec();
                fields.overlay(&mut part, from);
                assert_eq!(part, whole[from..to], "bytes {from} to {to}");
            }
        }
    }

    #[test]
    fn a_volume_is_never_in_wal_mode() {
        for (found, wal) in [(0, false), (1, false), (2, true)] {
            let mut page = vec![0u8; 512];
            page[VERSIONS].fill(found);
            assert_eq!(says_wal(&page), wal);
            normalise(&mut page);
            assert_eq!(page[VERSIONS], [if wal { 1 } else { found }; 2]);
        }
        assert!(!says_wal(&[]));
    }
}
