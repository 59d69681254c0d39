use std::collections::{BTreeMap, BTreeSet};

use rand::{Rng, SeedableRng, rngs::StdRng};

use super::*;
use crate::ids::VolumeId;

fn page(idx: u32) -> PageIdx {
    PageIdx::new(idx).unwrap()
}

fn byte_at(snapshot: &Snapshot, idx: u32) -> Option<u8> {
    match snapshot.location(page(idx)) {
        Location::Zero => None,
        Location::Local(bytes) => Some(bytes[0]),
        Location::Frame(..) | Location::Unknown(_) => panic!("no frames here"),
    }
}

/// Page counts around which the tree gets another level, and the greatest there is.
const HEIGHTS: [u32; 5] = [256, 4096, 65_536, 1 << 28, u32::MAX];

/// Page tables of any history equal a map, and older ones stay as they were.
#[test]
fn snapshots_read_like_their_model_for_ever() {
    for seed in 0..200 {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut model: BTreeMap<u32, u8> = BTreeMap::new();
        let mut taken =
            vec![(Snapshot::empty(PageSize::DEFAULT, Lineage::of(VolumeId([1; 16]))), model.clone())];
        for version in 1..30 {
            let last = taken.last().unwrap().0.clone();
            let pages = match rng.random_range(0..6) {
                0 => rng.random_range(0..1200),
                1 => rng.random_range(250..260),
                2 => HEIGHTS[rng.random_range(0..HEIGHTS.len())].saturating_add(rng.random_range(0..3)),
                _ => last.pages(),
            };
            let cut = pages.min(last.pages());
            model.retain(|idx, _| *idx <= cut);
            let mut changes = BTreeMap::new();
            for _ in 0..if pages == 0 { 0 } else { rng.random_range(0..20) } {
                let least = if rng.random() { 1 } else { pages.saturating_sub(600).max(1) };
                let (idx, byte) = (rng.random_range(least..=pages), rng.random());
                changes.insert(page(idx), Bytes::from(vec![byte]));
                model.insert(idx, byte);
            }
            let next = last.with_local(changes.iter().map(|(idx, bytes)| (*idx, bytes)), pages, version);
            taken.push((next, model.clone()));
        }
        for (snapshot, model) in &taken {
            let written = taken.iter().flat_map(|(_, model)| model.keys().copied());
            for idx in (1..=1300).chain(written) {
                assert_eq!(
                    byte_at(snapshot, idx),
                    model.get(&idx).copied(),
                    "seed {seed}, page {idx}, {snapshot:?}"
                );
            }
            let (first, last) = (rng.random_range(0..6), rng.random_range(3..1 << 24));
            let chunk = |idx: &u32| (idx - 1) / CHUNK_PAGES as u32;
            let expected: BTreeSet<u32> =
                model.keys().map(chunk).filter(|index| (first..=last).contains(index)).collect();
            let mut found: Vec<u32> = snapshot.chunks_between(first, last).map(|view| view.index).collect();
            assert!(found.is_sorted(), "seed {seed}, {snapshot:?}: {found:?}");
            found.retain(|index| expected.contains(index));
            assert!(found.into_iter().eq(expected), "seed {seed}, {snapshot:?}, chunks {first} to {last}");
        }
    }
}

#[test]
fn a_graft_is_what_was_written_and_what_was_cut_off() {
    let set = PageSet::from_ranges([2..=3]);
    assert_eq!(graft(set.clone(), 5, 9), set);
    assert_eq!(graft(set, 9, 5), PageSet::from_ranges([2..=3, 6..=9]));
    assert_eq!(graft(PageSet::new(), u32::MAX, u32::MAX), PageSet::new());
}
