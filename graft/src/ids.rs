//! Newtypes for what the engine names, and the keys they have in the object store.
//!
//! Keys order as the design says: `log/{!lsn}` is the hex of `u64::MAX - lsn`, so a LIST returns
//! the newest commit first.

use std::fmt;
use std::str::FromStr;

/// A volume's identity: 16 random bytes, written as 32 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VolumeId(pub [u8; 16]);

/// A commit's random id. It tells a writer whether the commit that holds an LSN is its own.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CommitId(pub [u8; 16]);

/// The hash of a commit; it chains its parent's. BLAKE3, 32 bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChainHash(pub [u8; 32]);

/// SHA-256 of a reducer module's bytes: its key under `modules/`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ModuleHash(pub [u8; 32]);

/// A reader lease's random id: its key under `readers/`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseId(pub [u8; 16]);

/// Text was not the id that it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a {what}: expected {digits} hex digits")]
pub struct ParseIdError {
    text: String,
    what: &'static str,
    digits: usize,
}

macro_rules! hex_id {
    ($name:ident, $bytes:literal, $what:literal) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&hex::encode(self.0))
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), &hex::encode(self.0)[..8])
            }
        }
        impl FromStr for $name {
            type Err = ParseIdError;
            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                let mut bytes = [0; $bytes];
                hex::decode_to_slice(text, &mut bytes).map(|()| Self(bytes)).map_err(|_| ParseIdError {
                    text: text.into(),
                    what: $what,
                    digits: 2 * $bytes,
                })
            }
        }
        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                if to.is_human_readable() { to.collect_str(self) } else { self.0.serialize(to) }
            }
        }
        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                if from.is_human_readable() {
                    let text = <std::borrow::Cow<'de, str>>::deserialize(from)?;
                    text.parse().map_err(serde::de::Error::custom)
                } else {
                    <[u8; $bytes]>::deserialize(from).map(Self)
                }
            }
        }
    };
}
hex_id!(VolumeId, 16, "volume id");
hex_id!(CommitId, 16, "commit id");
hex_id!(ChainHash, 32, "chain hash");
hex_id!(ModuleHash, 32, "module hash");
hex_id!(LeaseId, 16, "lease id");

impl ChainHash {
    /// The parent of a volume's first commit.
    pub const ZERO: ChainHash = ChainHash([0; 32]);
}

/// Log sequence number: 1, 2, 3… without gaps. 0 is the empty volume, before any commit.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, serde::Serialize, serde::Deserialize,
)]
#[serde(transparent)]
pub struct Lsn(pub u64);

impl Lsn {
    /// Before the first commit.
    pub const ZERO: Lsn = Lsn(0);

    /// The LSN after this one. LSNs do not run out: 2^64 commits at 1 M/s take 580,000 years.
    #[must_use]
    pub fn next(self) -> Lsn {
        Lsn(self.0.saturating_add(1))
    }

    /// `{!lsn}`: the last part of the commit's key, newest first.
    pub fn key_part(self) -> String {
        format!("{:016x}", u64::MAX - self.0)
    }

    /// Reads a [`key_part`](Lsn::key_part) back. Only its exact form is accepted.
    pub fn from_key_part(text: &str) -> Option<Lsn> {
        let inverted = u64::from_str_radix(text, 16).ok()?;
        let lsn = Lsn(u64::MAX - inverted);
        (lsn.key_part() == text).then_some(lsn)
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
impl fmt::Debug for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "lsn {}", self.0)
    }
}

/// A checkpoint's number in its volume: 1, 2, 3… without gaps. 0 is before the first.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, serde::Serialize, serde::Deserialize,
)]
#[serde(transparent)]
pub struct Seq(pub u64);

impl Seq {
    /// Before the first checkpoint.
    pub const ZERO: Seq = Seq(0);

    /// The number after this one. They do not run out.
    #[must_use]
    pub fn next(self) -> Seq {
        Seq(self.0.saturating_add(1))
    }

    /// `{!seq}`: the last part of the checkpoint's key, newest first.
    pub fn key_part(self) -> String {
        Lsn(self.0).key_part()
    }

    /// Reads a [`key_part`](Seq::key_part) back. Only its exact form is accepted.
    pub fn from_key_part(text: &str) -> Option<Seq> {
        Lsn::from_key_part(text).map(|lsn| Seq(lsn.0))
    }
}

/// A volume's compaction epoch. Compactions of one epoch can be published while it lasts; garbage
/// collection ends it to be rid of what unpublished ones have left.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct Epoch(pub u32);

impl fmt::Display for Seq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
impl fmt::Debug for Seq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "checkpoint {}", self.0)
    }
}

/// A page's number, 1-based as in SQLite. 0 is not a page.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageIdx(std::num::NonZeroU32);

impl PageIdx {
    /// The first page.
    pub const FIRST: PageIdx = PageIdx(std::num::NonZeroU32::MIN);

    /// `None` for 0.
    pub fn new(idx: u32) -> Option<PageIdx> {
        std::num::NonZeroU32::new(idx).map(PageIdx)
    }

    /// The 1-based number.
    pub fn get(self) -> u32 {
        self.0.get()
    }
}

impl fmt::Display for PageIdx {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
impl fmt::Debug for PageIdx {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "page {}", self.0)
    }
}

/// Bytes in a page: a power of two from 512 to 65536.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct PageSize(u32);

impl PageSize {
    /// 4096 bytes.
    pub const DEFAULT: PageSize = PageSize(4096);

    /// `None` unless `bytes` is a power of two from 512 to 65536.
    pub fn new(bytes: u32) -> Option<PageSize> {
        (bytes.is_power_of_two() && (512..=65536).contains(&bytes)).then_some(PageSize(bytes))
    }

    /// The size in bytes.
    pub fn get(self) -> u32 {
        self.0
    }

    /// The size in bytes, as a length.
    pub fn bytes(self) -> usize {
        self.0 as usize
    }
}

/// What a person calls a volume: 1–100 of `A-Z a-z 0-9 - _ .`, not beginning with a dot.
///
/// The rule keeps every name one path segment in every store, in URLs and in file systems.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VolumeName(String);

/// A volume's name breaks the rule of [`VolumeName`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{name}` cannot name a volume: use 1 to 100 of the characters A-Z a-z 0-9 - _ . and do not begin with a dot"
)]
pub struct InvalidName {
    /// The name as given, its control characters escaped.
    pub name: String,
}

impl VolumeName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for VolumeName {
    type Err = InvalidName;
    fn from_str(name: &str) -> Result<Self, InvalidName> {
        let fits = (1..=100).contains(&name.len())
            && !name.starts_with('.')
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
        if fits {
            Ok(VolumeName(name.into()))
        } else {
            Err(InvalidName { name: name.escape_debug().to_string() })
        }
    }
}
impl fmt::Display for VolumeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
impl fmt::Debug for VolumeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

/// Object keys, relative to the remote's prefix.
pub mod key {
    use super::{CommitId, Epoch, LeaseId, Lsn, ModuleHash, Seq, VolumeId, VolumeName};

    /// Everything that is stored of a volume, but for its name and its pin.
    pub fn volume_prefix(vid: VolumeId) -> String {
        format!("volumes/{vid}/")
    }
    /// Written once: format version, page size, parent.
    pub fn meta(vid: VolumeId) -> String {
        format!("volumes/{vid}/meta")
    }
    /// All of a volume's commits.
    pub fn log_prefix(vid: VolumeId) -> String {
        format!("volumes/{vid}/log/")
    }
    /// One commit.
    pub fn log(vid: VolumeId, lsn: Lsn) -> String {
        format!("volumes/{vid}/log/{}", lsn.key_part())
    }
    /// A segment: its key carries the LSN and commit it was made for, and is never reused.
    pub fn segment(vid: VolumeId, lsn: Lsn, commit: CommitId, part: u32) -> String {
        #[cfg(feature = "plants")]
        let commit = if crate::plants::has(crate::plants::Bug::SharedSegmentKeys) {
            CommitId([0; 16])
        } else {
            commit
        };
        format!("volumes/{vid}/segments/{}-{commit}-{part:04x}", lsn.key_part())
    }
    /// All of a volume's segments, of commits and of checkpoints.
    pub fn segments_prefix(vid: VolumeId) -> String {
        format!("volumes/{vid}/segments/")
    }
    /// A segment that a compaction made in `epoch`. Never reused.
    pub fn compacted_segment(vid: VolumeId, epoch: Epoch, id: CommitId, part: u32) -> String {
        format!("volumes/{vid}/segments/c{:08x}-{id}-{part:04x}", epoch.0)
    }
    /// All of a volume's checkpoints.
    pub fn checkpoints_prefix(vid: VolumeId) -> String {
        format!("volumes/{vid}/checkpoints/")
    }
    /// One checkpoint. Numbered, not named by its LSN: whoever is late loses its create.
    pub fn checkpoint(vid: VolumeId, seq: Seq) -> String {
        format!("volumes/{vid}/checkpoints/{}", seq.key_part())
    }
    /// What garbage collection has announced; the newest is in force.
    pub fn horizon_prefix(vid: VolumeId) -> String {
        format!("volumes/{vid}/horizon/")
    }
    /// LSNs below `lsn` and checkpoints below `seq` may be unreadable, but for those that are pinned.
    pub fn horizon(vid: VolumeId, lsn: Lsn, seq: Seq) -> String {
        format!("volumes/{vid}/horizon/{}-{}", lsn.key_part(), seq.key_part())
    }
    /// One removal's mark that the volume takes no forks any more: a horizon above every other. `own` is
    /// that removal's number.
    pub fn closed(vid: VolumeId, own: u64) -> String {
        horizon(vid, Lsn(u64::MAX), Seq(own))
    }
    /// How the keys of all removals' marks begin. Not a prefix that can be listed: it ends within a part.
    pub fn closed_prefix(vid: VolumeId) -> String {
        format!("volumes/{vid}/horizon/{}-", Lsn(u64::MAX).key_part())
    }
    /// Where tombstones begin; the newest is in force.
    pub fn bottom_prefix(vid: VolumeId) -> String {
        format!("volumes/{vid}/bottom/")
    }
    /// Keys of commits up to `lsn` and of checkpoints up to `seq` may be free again.
    pub fn bottom(vid: VolumeId, lsn: Lsn, seq: Seq) -> String {
        format!("volumes/{vid}/bottom/{}-{}", lsn.key_part(), seq.key_part())
    }
    /// The pins of all of a volume's forks.
    pub fn forks_prefix(vid: VolumeId) -> String {
        format!("volumes/{vid}/forks/")
    }
    /// Keeps what `child` reads through `parent` from garbage collection.
    pub fn fork_pin(parent: VolumeId, child: VolumeId) -> String {
        format!("volumes/{parent}/forks/{child}")
    }
    /// What all forks' own page tables were made from.
    pub fn pins_prefix(vid: VolumeId) -> String {
        format!("volumes/{vid}/pins/")
    }
    /// What `child`'s own page tables were made from.
    pub fn child_pins_prefix(vid: VolumeId, child: VolumeId) -> String {
        format!("volumes/{vid}/pins/{child}/")
    }
    /// Keeps the checkpoint of `vid` that `child`'s own page table was made from.
    pub fn pin(vid: VolumeId, child: VolumeId, seq: Seq) -> String {
        format!("volumes/{vid}/pins/{child}/{}", seq.key_part())
    }
    /// The leases of a volume's long-lived readers.
    pub fn readers_prefix(vid: VolumeId) -> String {
        format!("volumes/{vid}/readers/")
    }
    /// One reader's lease.
    pub fn reader(vid: VolumeId, lease: LeaseId) -> String {
        format!("volumes/{vid}/readers/{lease}")
    }
    /// Human name → volume id.
    pub fn name(name: &VolumeName) -> String {
        format!("names/{name}")
    }
    /// Which volume of this name is being removed.
    pub fn removal(name: &VolumeName) -> String {
        format!("removals/{name}")
    }
    /// All names.
    pub const NAMES_PREFIX: &str = "names/";
    /// A reducer module.
    pub fn module(hash: ModuleHash) -> String {
        format!("modules/{hash}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newer_commits_sort_first() {
        let vid = VolumeId([7; 16]);
        for (older, newer) in [(1, 2), (9, 10), (255, 256), (u64::MAX - 1, u64::MAX)] {
            assert!(key::log(vid, Lsn(newer)) < key::log(vid, Lsn(older)));
        }
    }

    #[test]
    fn key_parts_round_trip_and_nothing_else_parses() {
        for lsn in [0, 1, 255, 1 << 40, u64::MAX].map(Lsn) {
            assert_eq!(Lsn::from_key_part(&lsn.key_part()), Some(lsn));
        }
        for bad in
            ["", "1", "fffffffffffffffg", "FFFFFFFFFFFFFFFE", "+ffffffffffffffe", "fffffffffffffffe.tmp"]
        {
            assert_eq!(Lsn::from_key_part(bad), None, "{bad}");
        }
    }

    #[test]
    fn names_cannot_leave_their_folder() {
        for bad in ["", "..", "../x", "a/b", "%s", "a b", ".hidden", "a\0", "é", &"x".repeat(101)] {
            assert!(bad.parse::<VolumeName>().is_err(), "{bad:?}");
        }
        for good in ["todo", "a", "A-b_c.1", &"x".repeat(100)] {
            assert_eq!(good.parse::<VolumeName>().unwrap().as_str(), good);
        }
    }

    #[test]
    fn page_sizes_are_sqlites() {
        for (bytes, fits) in [
            (0, false),
            (256, false),
            (512, true),
            (4096, true),
            (5000, false),
            (65536, true),
            (131072, false),
        ] {
            assert_eq!(PageSize::new(bytes).is_some(), fits, "{bytes}");
        }
    }
}
