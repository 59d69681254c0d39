//! The keyed difference of two results, as deletes, inserts and updates with positions.
//!
//! Rows with equal keys on both sides are the same row (of several with one key, the nth and the
//! nth). Of the rows on both sides the longest run that kept its order stays where it is; the others
//! are deleted and inserted again. So a row that moved costs one delete and one insert, and applying
//! the changes needs no search.
//!
//! Cost: O(n log n) in the rows, where equal beginnings and ends are passed over first.

use std::collections::HashMap;

use reducers_abi::Value;

use super::key_of;
use crate::protocol::{Changes, WireRow, wire_rows};

/// What turns `old` into `new`; see [`Changes`] for how it is applied.
pub fn diff(old: &[Vec<Value>], new: &[Vec<Value>], key: &[usize]) -> Changes {
    let head = old.iter().zip(new).take_while(|(a, b)| a == b).count();
    let (old, new) = (&old[head..], &new[head..]);
    let tail = old.iter().rev().zip(new.iter().rev()).take_while(|(a, b)| a == b).count();
    let (old, new) = (&old[..old.len() - tail], &new[..new.len() - tail]);

    // Where each new row was: its key and which of that key's rows it is.
    let mut places: HashMap<(String, usize), usize> = HashMap::new();
    for (position, identity) in identities(old, key).enumerate() {
        places.insert(identity, position);
    }
    let origins: Vec<Option<usize>> =
        identities(new, key).map(|identity| places.get(&identity).copied()).collect();
    let kept = longest_increasing(&origins);

    let mut changes = Changes::default();
    let mut stays = vec![false; old.len()];
    for (position, row) in new.iter().enumerate() {
        let at = (head + position) as u32;
        match origins[position].filter(|_| kept[position]) {
            Some(origin) => {
                stays[origin] = true;
                if old[origin] != *row {
                    changes.update.push((at, wire(row)));
                }
            }
            None => changes.insert.push((at, wire(row))),
        }
    }
    changes.delete =
        (0..old.len()).filter(|origin| !stays[*origin]).map(|origin| (head + origin) as u32).collect();
    changes
}

fn wire(row: &[Value]) -> WireRow {
    wire_rows(&[row.to_vec()]).pop().unwrap_or_default()
}

/// Each row's key, as text that is equal for equal values alone, with its number among equals.
fn identities<'a>(rows: &'a [Vec<Value>], key: &'a [usize]) -> impl Iterator<Item = (String, usize)> + 'a {
    let mut seen: HashMap<String, usize> = HashMap::new();
    rows.iter().map(move |row| {
        let text = format!("{:?}", key_of(row, key));
        let count = seen.entry(text.clone()).or_default();
        *count += 1;
        (text, *count)
    })
}

/// Marks a longest run of positions whose origins increase (patience sorting).
fn longest_increasing(origins: &[Option<usize>]) -> Vec<bool> {
    // `ends[k]`: the position that ends the best run of length k + 1; `before`: its predecessor.
    let mut ends: Vec<usize> = Vec::new();
    let mut before: Vec<Option<usize>> = vec![None; origins.len()];
    for (position, origin) in origins.iter().enumerate() {
        let Some(origin) = origin else { continue };
        let length = ends.partition_point(|end| origins[*end].is_some_and(|other| other < *origin));
        before[position] = length.checked_sub(1).map(|k| ends[k]);
        if length == ends.len() {
            ends.push(position);
        } else {
            ends[length] = position;
        }
    }
    let mut kept = vec![false; origins.len()];
    let mut at = ends.last().copied();
    while let Some(position) = at {
        kept[position] = true;
        at = before[position];
    }
    kept
}
