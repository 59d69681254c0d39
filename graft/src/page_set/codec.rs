//! The splinter format, version 2: a set of 32-bit numbers as a tree of bytes, read from its end.
//!
//! | part     | bytes | meaning                                              |
//! |----------|------:|------------------------------------------------------|
//! | body     |   1.. | one partition of the 32-bit numbers                  |
//! | checksum |     8 | CRC-64/NVME of the body, little-endian               |
//! | magic    |     4 | `59 11 A7 E2`                                        |
//!
//! A partition holds numbers of *w* bytes: 4 at the root, one less at each level down to 1. It ends
//! in its kind; what precedes the kind is, with all numbers big-endian:
//!
//! | kind | name   | before the kind                                             |
//! |-----:|--------|-------------------------------------------------------------|
//! |    0 | empty  | nothing; only the root may be empty                         |
//! |    1 | full   | nothing; all 256^w numbers                                  |
//! |    2 | bitmap | 256^w / 8 bytes; number v is bit v % 8 of byte v / 8        |
//! |    3 | vec    | the numbers, ascending; how many less 1 (w bytes)           |
//! |    4 | run    | first and last of each run, ascending; how many less 1 (w)  |
//! |    5 | tree   | w > 1: children by first byte, an index of them, as below   |
//!
//! A tree is, in this order: the children, each a partition of numbers of w − 1 bytes; for each
//! child, the distance of its end from the end of the last one (w bytes); for each child, how many
//! numbers it and those before it hold, less 1 (w bytes); the children's first bytes (n bytes
//! ascending if n ≤ 32, nothing if n = 256, else a bitmap of 32); n less 1 (1 byte).
//!
//! [`encode`] writes the smallest form there is; at equal sizes tree, vec, bitmap, run in this
//! order. [`check`] takes any form that describes the set without contradiction, is total, takes time
//! in proportion to the bytes, and no memory. Reading checked bytes in place is [`super::encoded`]'s.

use std::ops::RangeInclusive;

use bytes::Bytes;

use super::PageSetError;

const MAGIC: [u8; 4] = [0x59, 0x11, 0xA7, 0xE2];
const FOOTER_BYTES: usize = 12;

const EMPTY: u8 = 0;
const FULL: u8 = 1;
const BITMAP: u8 = 2;
const VEC: u8 = 3;
const RUN: u8 = 4;
const TREE: u8 = 5;

/// Of a bitmap over one byte's values.
const BLOCK_BITMAP_BYTES: usize = 32;

/// A run within a partition: its first and last number.
pub(super) type Run = (u32, u32);

/// The last number that `width` bytes can hold.
pub(super) fn number_max(width: usize) -> u32 {
    u32::MAX >> (32 - 8 * width)
}

pub(super) fn damaged<T>(reason: &'static str) -> Result<T, PageSetError> {
    Err(PageSetError { reason })
}

/// Writes ascending runs that do not touch.
pub(super) fn encode(runs: impl Iterator<Item = RangeInclusive<u32>>) -> Bytes {
    let runs: Vec<Run> = runs.map(|run| (*run.start(), *run.end())).collect();
    let mut out = Vec::new();
    if runs.is_empty() {
        out.push(EMPTY);
    } else {
        let plan = Plan::of(4, runs);
        out.reserve_exact(plan.bytes as usize + FOOTER_BYTES);
        plan.write(&mut out);
    }
    let checksum = crc64_nvme(&out);
    out.extend(checksum.to_le_bytes());
    out.extend(MAGIC);
    out.into()
}

/// How one partition will be written.
struct Plan {
    width: usize,
    /// The encoded size, the kind included.
    bytes: u64,
    /// How many numbers.
    count: u64,
    form: Form,
}

enum Form {
    Full,
    Bitmap(Vec<Run>),
    Vec(Vec<Run>),
    Run(Vec<Run>),
    Tree(Vec<(u8, Plan)>),
}

impl Plan {
    /// The smallest form for `runs`, which are not empty.
    fn of(width: usize, runs: Vec<Run>) -> Plan {
        let count = runs.iter().map(|(first, last)| u64::from(last - first) + 1).sum();
        let numbers = u64::from(number_max(width)) + 1;
        if count == numbers {
            return Plan { width, bytes: 1, count, form: Form::Full };
        }
        let w = width as u64;
        let as_vec = 1 + w * (count + 1);
        let as_bitmap = 1 + numbers / 8;
        let as_run = 1 + w * (2 * runs.len() as u64 + 1);
        let flat = as_vec.min(as_bitmap).min(as_run);
        if width > 1
            && let Some((bytes, children)) = plan_children(width, &runs, flat)
        {
            return Plan { width, bytes, count, form: Form::Tree(children) };
        }
        let form = match flat {
            _ if flat == as_vec => Form::Vec(runs),
            _ if flat == as_bitmap => Form::Bitmap(runs),
            _ => Form::Run(runs),
        };
        Plan { width, bytes: flat, count, form }
    }

    fn write(&self, out: &mut Vec<u8>) {
        match &self.form {
            Form::Full => out.push(FULL),
            Form::Bitmap(runs) => {
                let from = out.len();
                out.resize(from + (number_max(self.width) as usize / 8 + 1), 0);
                set_bits(&mut out[from..], runs);
                out.push(BITMAP);
            }
            Form::Vec(runs) => {
                for number in runs.iter().flat_map(|(first, last)| *first..=*last) {
                    put(out, self.width, number);
                }
                put_less_1(out, self.width, self.count);
                out.push(VEC);
            }
            Form::Run(runs) => {
                for (first, last) in runs {
                    put(out, self.width, *first);
                    put(out, self.width, *last);
                }
                put_less_1(out, self.width, runs.len() as u64);
                out.push(RUN);
            }
            Form::Tree(children) => {
                let ends: Vec<usize> = children
                    .iter()
                    .map(|(_, child)| {
                        child.write(out);
                        out.len()
                    })
                    .collect();
                let last = out.len();
                for end in ends {
                    // A tree is smaller than its bitmap, so the distance fits.
                    put(out, self.width, (last - end) as u32);
                }
                let mut count = 0;
                for (_, child) in children {
                    count += child.count;
                    put_less_1(out, self.width, count);
                }
                match segments_bytes(children.len()) {
                    BLOCK_BITMAP_BYTES if children.len() > BLOCK_BITMAP_BYTES => {
                        let from = out.len();
                        out.resize(from + BLOCK_BITMAP_BYTES, 0);
                        for (segment, _) in children {
                            set_bits(&mut out[from..], &[(u32::from(*segment), u32::from(*segment))]);
                        }
                    }
                    0 => {}
                    _ => out.extend(children.iter().map(|(segment, _)| *segment)),
                }
                put_less_1(out, 1, children.len() as u64);
                out.push(TREE);
            }
        }
    }
}

/// The children of a tree of `runs` and its size, if that is at most `limit`.
fn plan_children(width: usize, runs: &[Run], limit: u64) -> Option<(u64, Vec<(u8, Plan)>)> {
    let shift = 8 * (width - 1);
    let mut parts: Vec<(u8, Vec<Run>)> = Vec::new();
    for (first, last) in runs {
        for segment in first >> shift..=last >> shift {
            let base = segment << shift;
            let part = (first.max(&base) - base, (last - base).min(number_max(width - 1)));
            match parts.last_mut() {
                Some((at, part_runs)) if u32::from(*at) == segment => part_runs.push(part),
                _ => parts.push((segment as u8, vec![part])),
            }
        }
    }
    let index = (parts.len() * 2 * width + segments_bytes(parts.len()) + 2) as u64;
    if index + parts.len() as u64 > limit {
        return None;
    }
    let children: Vec<(u8, Plan)> =
        parts.into_iter().map(|(segment, runs)| (segment, Plan::of(width - 1, runs))).collect();
    let bytes = index + children.iter().map(|(_, child)| child.bytes).sum::<u64>();
    (bytes <= limit).then_some((bytes, children))
}

/// How many bytes hold the first bytes of a tree's children.
fn segments_bytes(children: usize) -> usize {
    if children == 256 { 0 } else { children.min(BLOCK_BITMAP_BYTES) }
}

fn put(out: &mut Vec<u8>, width: usize, number: u32) {
    out.extend_from_slice(&number.to_be_bytes()[4 - width..]);
}

/// `count` is from 1 to 256^width.
fn put_less_1(out: &mut Vec<u8>, width: usize, count: u64) {
    put(out, width, (count - 1) as u32);
}

fn set_bits(bits: &mut [u8], runs: &[Run]) {
    for (first, last) in runs {
        for number in *first..=*last {
            bits[number as usize / 8] |= 1 << (number % 8);
        }
    }
}

/// A partition: its kind and the parts before it, each of the length that its counts tell.
#[derive(Clone, Copy)]
pub(super) enum Part<'a> {
    /// All numbers.
    Full,
    /// A bit for each number.
    Bitmap(&'a [u8]),
    /// The numbers.
    Vec(&'a [u8]),
    /// First and last of each run.
    Run(&'a [u8]),
    /// Children.
    Tree(Tree<'a>),
}

/// A tree's index, and the bytes that end in its last child.
#[derive(Clone, Copy)]
pub(super) struct Tree<'a> {
    width: usize,
    children: usize,
    segments: &'a [u8],
    counts: &'a [u8],
    distances: &'a [u8],
    bytes: &'a [u8],
}

impl<'a> Part<'a> {
    /// The partition of numbers of `width` bytes that `bytes` ends in, and the bytes before it; for a
    /// tree, those before its index, which its children end. O(1).
    pub(super) fn at_end(width: usize, bytes: &'a [u8]) -> Result<(Part<'a>, &'a [u8]), PageSetError> {
        let Some((kind, bytes)) = bytes.split_last() else {
            return damaged("a partition without a kind");
        };
        match *kind {
            FULL => Ok((Part::Full, bytes)),
            BITMAP => {
                let (rest, bits) = split_end(bytes, number_max(width) as usize / 8 + 1)?;
                Ok((Part::Bitmap(bits), rest))
            }
            VEC => read_counted(width, 1, bytes).map(|(rest, numbers)| (Part::Vec(numbers), rest)),
            RUN => read_counted(width, 2, bytes).map(|(rest, numbers)| (Part::Run(numbers), rest)),
            TREE if width > 1 => {
                let (bytes, children) = read_less_1(1, bytes)?;
                let (bytes, segments) = split_end(bytes, segments_bytes(children))?;
                let (bytes, counts) = split_end(bytes, children * width)?;
                let (bytes, distances) = split_end(bytes, children * width)?;
                Ok((Part::Tree(Tree { width, children, segments, counts, distances, bytes }), bytes))
            }
            EMPTY => damaged("an empty partition below the root"),
            _ => damaged("unknown partition kind"),
        }
    }
}

impl<'a> Tree<'a> {
    /// The place and first byte of the first child whose first byte is not below `from`.
    pub(super) fn seek(&self, from: u32) -> Option<(usize, u32)> {
        let (at, segment) = if self.segments.is_empty() {
            (from as usize, from)
        } else if self.children <= BLOCK_BITMAP_BYTES {
            let at = self.segments.partition_point(|segment| u32::from(*segment) < from);
            (at, u32::from(*self.segments.get(at)?))
        } else {
            let segment = next_bit(self.segments, u64::from(from))? as usize;
            let (before, there) = self.segments.split_at_checked(segment / 8)?;
            let below = there.first()? & !(u8::MAX << (segment % 8));
            let at = before.iter().map(|byte| byte.count_ones()).sum::<u32>() + below.count_ones();
            (at as usize, segment as u32)
        };
        (at < self.children).then_some((at, segment))
    }

    /// The place and first byte of the last child.
    pub(super) fn seek_last(&self) -> Option<(usize, u32)> {
        let segment = if self.segments.is_empty() {
            u8::MAX
        } else if self.children <= BLOCK_BITMAP_BYTES {
            *self.segments.last()?
        } else {
            let at = self.segments.iter().rposition(|byte| *byte != 0)?;
            at as u8 * 8 + self.segments.get(at)?.ilog2() as u8
        };
        Some((self.children.checked_sub(1)?, u32::from(segment)))
    }

    /// The bytes that the child at place `at` ends.
    pub(super) fn child(&self, at: usize) -> Option<&'a [u8]> {
        self.bytes.get(..self.bytes.len().checked_sub(number(self.distances, self.width, at)? as usize)?)
    }

    /// How many numbers the children before place `at` hold.
    fn count_before(&self, at: usize) -> Option<u64> {
        match at.checked_sub(1) {
            None => Some(0),
            Some(last) => Some(u64::from(number(self.counts, self.width, last)?) + 1),
        }
    }

    /// As many first bytes as children, ascending.
    fn has_segments(&self) -> bool {
        if self.segments.is_empty() || self.children <= BLOCK_BITMAP_BYTES {
            return self.segments.is_sorted_by(|a, b| a < b);
        }
        self.segments.iter().map(|byte| byte.count_ones() as usize).sum::<usize>() == self.children
    }
}

/// The body of an encoded set, where footer and checksum are right; none for the empty set.
pub(super) fn body(bytes: &[u8]) -> Result<Option<&[u8]>, PageSetError> {
    let Some((body, footer)) = split_footer(bytes) else {
        return damaged("shorter than its footer");
    };
    let (checksum, magic) = footer.split_at(8);
    if magic != MAGIC {
        return damaged("magic");
    }
    if checksum != crc64_nvme(body).to_le_bytes() {
        return damaged("checksum");
    }
    Ok((body != [EMPTY]).then_some(body))
}

/// The body of an encoded set whose footer was checked before. O(1).
pub(super) fn checked_body(bytes: &[u8]) -> Option<&[u8]> {
    split_footer(bytes).map(|(body, _)| body).filter(|body| *body != [EMPTY])
}

fn split_footer(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    bytes.split_at_checked(bytes.len().checked_sub(FOOTER_BYTES)?)
}

/// Checks the partition of numbers of `width` bytes that `bytes` ends in; answers how many numbers it
/// holds, and the bytes before it. O(bytes) in time; allocates nothing.
pub(super) fn check(width: usize, bytes: &[u8]) -> Result<(u64, &[u8]), PageSetError> {
    let (part, mut rest) = Part::at_end(width, bytes)?;
    let count = match part {
        Part::Full => u64::from(number_max(width)) + 1,
        Part::Bitmap(bits) => match bits.iter().map(|byte| u64::from(byte.count_ones())).sum() {
            0 => return damaged("an empty bitmap"),
            count => count,
        },
        Part::Vec(numbers) => {
            if !numbers.chunks_exact(width).is_sorted_by(|a, b| a < b) {
                return damaged("numbers do not ascend");
            }
            (numbers.len() / width) as u64
        }
        Part::Run(runs) => {
            let (mut count, mut before) = (0, None);
            for run in runs.chunks_exact(2 * width) {
                let (first, last) = run.split_at(width);
                let (first, last) = (get(first), get(last));
                let apart = before.is_none_or(|before: u32| before < first && before + 1 < first);
                if first > last || !apart {
                    return damaged("runs do not ascend or touch");
                }
                count += u64::from(last - first) + 1;
                before = Some(last);
            }
            count
        }
        Part::Tree(tree) => {
            if !tree.has_segments() {
                return damaged("first bytes of children");
            }
            // Children end one before the other, so they are checked from the last to the first.
            for at in (0..tree.children).rev() {
                if tree.child(at).map(<[u8]>::len) != Some(rest.len()) {
                    return damaged("children have gaps or overlap");
                }
                let (count, before) = check(width - 1, rest)?;
                let told = tree.count_before(at).and_then(|low| tree.count_before(at + 1)?.checked_sub(low));
                if told != Some(count) {
                    return damaged("children hold more or fewer numbers than the index says");
                }
                rest = before;
            }
            tree.count_before(tree.children).unwrap_or_default()
        }
    };
    Ok((count, rest))
}

/// The numbers before a count of groups of `group` numbers, and the bytes before those: the latter
/// first.
fn read_counted(width: usize, group: usize, bytes: &[u8]) -> Result<(&[u8], &[u8]), PageSetError> {
    let (bytes, count) = read_less_1(width, bytes)?;
    let Some(wanted) = count.checked_mul(group * width) else {
        return damaged("a count beyond its bytes");
    };
    split_end(bytes, wanted)
}

fn read_less_1(width: usize, bytes: &[u8]) -> Result<(&[u8], usize), PageSetError> {
    let (rest, less_1) = split_end(bytes, width)?;
    match (get(less_1) as usize).checked_add(1) {
        Some(count) => Ok((rest, count)),
        None => damaged("a count beyond its bytes"),
    }
}

fn split_end(bytes: &[u8], wanted: usize) -> Result<(&[u8], &[u8]), PageSetError> {
    match bytes.len().checked_sub(wanted) {
        Some(at) => Ok(bytes.split_at(at)),
        None => damaged("a count beyond its bytes"),
    }
}

/// A big-endian number of at most four bytes.
fn get(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0, |number, byte| number << 8 | u32::from(*byte))
}

/// The number at place `at` of numbers of `width` bytes.
pub(super) fn number(numbers: &[u8], width: usize, at: usize) -> Option<u32> {
    let from = at.checked_mul(width)?;
    numbers.get(from..from.checked_add(width)?).map(get)
}

/// The first bit set that is not below `from`.
pub(super) fn next_bit(bits: &[u8], from: u64) -> Option<u64> {
    let at = usize::try_from(from / 8).ok()?;
    let here = bits.get(at)? & (u8::MAX << (from % 8));
    if here != 0 {
        return Some(at as u64 * 8 + u64::from(here.trailing_zeros()));
    }
    let beyond = bits.get(at + 1..)?;
    let skipped = beyond.iter().position(|byte| *byte != 0)?;
    Some((at + 1 + skipped) as u64 * 8 + u64::from(beyond.get(skipped)?.trailing_zeros()))
}

/// CRC-64/NVME: reflected polynomial 9A6C9329AC4BC9B5, all ones in and out.
fn crc64_nvme(bytes: &[u8]) -> u64 {
    !bytes.iter().fold(u64::MAX, |crc, byte| CRC_TABLE[usize::from(crc as u8 ^ byte)] ^ (crc >> 8))
}

const CRC_TABLE: [u64; 256] = {
    let mut table = [0; 256];
    let mut at = 0;
    while at < 256 {
        let mut crc = at as u64;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0x9A6C_9329_AC4B_C9B5 } else { crc >> 1 };
            bit += 1;
        }
        table[at] = crc;
        at += 1;
    }
    table
};

#[cfg(test)]
pub(super) mod builder;
#[cfg(test)]
pub(super) mod tests;
