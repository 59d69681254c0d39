//! A second reader of splinters, for tests: it builds each partition's runs and puts them together,
//! where the one that is used walks the bytes in place. The two share nothing but the constants and
//! the checksum.

use super::*;

/// Reads the runs, ascending and not touching.
pub(in crate::page_set) fn decode(bytes: &[u8]) -> Result<Vec<Run>, PageSetError> {
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
