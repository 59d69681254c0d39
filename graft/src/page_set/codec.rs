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
//! order. [`decode`] takes any form that describes the set without contradiction, is total, and
//! takes time and memory in proportion to the bytes: at most four runs for each.

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
type Run = (u32, u32);

/// The last number that `width` bytes can hold.
fn number_max(width: usize) -> u32 {
    u32::MAX >> (32 - 8 * width)
}

fn damaged<T>(reason: &'static str) -> Result<T, PageSetError> {
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

/// Reads the runs, ascending and not touching.
pub(super) fn decode(bytes: &[u8]) -> Result<Vec<Run>, PageSetError> {
    let Some((body, footer)) = bytes.len().checked_sub(FOOTER_BYTES).map(|at| bytes.split_at(at)) else {
        return damaged("shorter than its footer");
    };
    let (checksum, magic) = footer.split_at(8);
    if magic != MAGIC {
        return damaged("magic");
    }
    if checksum != crc64_nvme(body).to_le_bytes() {
        return damaged("checksum");
    }
    if body == [EMPTY] {
        return Ok(Vec::new());
    }
    let mut runs = Vec::new();
    let rest = read_partition(4, body, 0, &mut runs)?;
    if !rest.is_empty() {
        return damaged("bytes before the root");
    }
    match runs.first() {
        Some((0, _)) => damaged("page 0"),
        _ => Ok(runs),
    }
}

/// Reads the partition that `bytes` ends in, adds its numbers, each plus `base`, to `runs`, and
/// gives the bytes before it.
fn read_partition<'a>(
    width: usize,
    bytes: &'a [u8],
    base: u32,
    runs: &mut Vec<Run>,
) -> Result<&'a [u8], PageSetError> {
    let Some((kind, bytes)) = bytes.split_last() else {
        return damaged("a partition without a kind");
    };
    match *kind {
        FULL => {
            push(runs, base, base + number_max(width));
            Ok(bytes)
        }
        BITMAP => {
            let (rest, bits) = split_end(bytes, number_max(width) as usize / 8 + 1)?;
            if bits.iter().all(|byte| *byte == 0) {
                return damaged("an empty bitmap");
            }
            read_bits(bits, |number| push(runs, base + number, base + number));
            Ok(rest)
        }
        VEC => {
            let (rest, numbers) = read_counted(width, 1, bytes)?;
            let mut before = None;
            for number in numbers {
                if before.is_some_and(|before| number <= before) {
                    return damaged("numbers do not ascend");
                }
                push(runs, base + number, base + number);
                before = Some(number);
            }
            Ok(rest)
        }
        RUN => {
            let (rest, mut numbers) = read_counted(width, 2, bytes)?;
            let mut before: Option<u32> = None;
            while let (Some(first), Some(last)) = (numbers.next(), numbers.next()) {
                let apart = before.is_none_or(|before| before < first && before + 1 < first);
                if first > last || !apart {
                    return damaged("runs do not ascend or touch");
                }
                push(runs, base + first, base + last);
                before = Some(last);
            }
            Ok(rest)
        }
        TREE if width > 1 => read_tree(width, bytes, base, runs),
        EMPTY => damaged("an empty partition below the root"),
        _ => damaged("unknown partition kind"),
    }
}

fn read_tree<'a>(
    width: usize,
    bytes: &'a [u8],
    base: u32,
    runs: &mut Vec<Run>,
) -> Result<&'a [u8], PageSetError> {
    let (bytes, children) = read_less_1(1, bytes)?;
    let (bytes, segments) = split_end(bytes, segments_bytes(children))?;
    let segments = read_segments(children, segments)?;
    let (bytes, counts) = split_end(bytes, children * width)?;
    let (mut rest, distances) = split_end(bytes, children * width)?;
    // Children end one before the other, so they are read from the last to the first; the runs of
    // each are put in order at the end.
    let end = rest.len();
    let mut parts = Vec::with_capacity(children);
    let entries = segments.iter().zip(distances.chunks_exact(width)).rev();
    for (segment, distance) in entries {
        if end.checked_sub(get(distance) as usize) != Some(rest.len()) {
            return damaged("children have gaps or overlap");
        }
        let mut part = Vec::new();
        rest = read_partition(width - 1, rest, base + (u32::from(*segment) << (8 * (width - 1))), &mut part)?;
        parts.push(part);
    }
    let mut count = 0;
    for (part, told) in parts.into_iter().rev().zip(counts.chunks_exact(width)) {
        for (first, last) in part {
            count += u64::from(last - first) + 1;
            push(runs, first, last);
        }
        if count != u64::from(get(told)) + 1 {
            return damaged("children hold more or fewer numbers than the index says");
        }
    }
    Ok(rest)
}

/// The first bytes of `children` children, ascending.
fn read_segments(children: usize, bytes: &[u8]) -> Result<Vec<u8>, PageSetError> {
    let segments: Vec<u8> = match bytes.len() {
        0 => (0..=u8::MAX).collect(),
        _ if children <= BLOCK_BITMAP_BYTES => bytes.to_vec(),
        _ => {
            let mut segments = Vec::with_capacity(children);
            read_bits(bytes, |segment| segments.push(segment as u8));
            segments
        }
    };
    if segments.len() != children || !segments.is_sorted_by(|a, b| a < b) {
        return damaged("first bytes of children");
    }
    Ok(segments)
}

/// The numbers before a count of groups of `group` numbers, and the bytes before those.
fn read_counted(
    width: usize,
    group: usize,
    bytes: &[u8],
) -> Result<(&[u8], impl Iterator<Item = u32> + '_), PageSetError> {
    let (bytes, count) = read_less_1(width, bytes)?;
    let Some(wanted) = count.checked_mul(group * width) else {
        return damaged("a count beyond its bytes");
    };
    let (rest, numbers) = split_end(bytes, wanted)?;
    Ok((rest, numbers.chunks_exact(width).map(get)))
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

fn read_bits(bytes: &[u8], mut each: impl FnMut(u32)) {
    for (at, byte) in bytes.iter().enumerate() {
        let mut left = *byte;
        while left != 0 {
            each(at as u32 * 8 + left.trailing_zeros());
            left &= left - 1;
        }
    }
}

/// Adds a run that begins after all others end, merging it with the last where they touch.
fn push(runs: &mut Vec<Run>, first: u32, last: u32) {
    match runs.last_mut() {
        Some((_, end)) if end.checked_add(1) == Some(first) => *end = last,
        _ => runs.push((first, last)),
    }
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
mod tests;
