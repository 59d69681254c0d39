use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::super::codec::tests::{sealed, shaped};
use super::super::codec::{builder, encode};
use super::*;

/// Every answer of `read` against `set`, which has the same pages.
fn same(read: &EncodedSet, set: &PageSet, rng: &mut SmallRng, seed: u64) {
    assert_eq!(read.len(), set.len(), "seed {seed}");
    assert_eq!(read.is_empty(), set.is_empty(), "seed {seed}");
    assert_eq!(read.first(), set.first(), "seed {seed}");
    assert_eq!(read.last(), set.last(), "seed {seed}");
    assert!(read.ranges().eq(set.ranges()), "seed {seed}: {read:?} is not {set:?}");
    assert!(read.iter().take(3_000).eq(set.iter().take(3_000)), "seed {seed}");
    assert_eq!(read.to_set(), *set, "seed {seed}");
    let runs: Vec<Run> = set.ranges().map(RangeInclusive::into_inner).collect();
    let near = |rng: &mut SmallRng| match runs.get(rng.random_range(0..runs.len().max(1))) {
        Some((first, last)) if rng.random_ratio(4, 5) => {
            let edge = if rng.random() { *first } else { *last };
            edge.saturating_add(rng.random_range(0..4)).saturating_sub(rng.random_range(0..4)).max(1)
        }
        _ => rng.random_range(1..=u32::MAX),
    };
    for _ in 0..60 {
        let page = PageIdx::new(near(rng)).expect("not 0");
        assert_eq!(read.contains(page), set.contains(page), "seed {seed}: {page:?}");
        let after = set.run_from(page.get()).map(|(first, _)| first.max(page.get()));
        assert_eq!(read.at_or_after(page.get()), after, "seed {seed}: {page:?}");
    }
    let mut others = vec![PageSet::new(), set.clone(), PageSet::from_ranges([1..=u32::MAX]), shaped(rng)];
    let mut gaps = PageSet::from_ranges([1..=u32::MAX]);
    gaps.subtract(set);
    others.push(gaps.clone());
    gaps.insert_range(near(rng), u32::MAX);
    others.push(gaps);
    others.extend((0..10).map(|_| {
        PageSet::from_ranges((0..rng.random_range(1..20)).map(|_| {
            let first = near(rng);
            first..=first.saturating_add(rng.random_range(0..3))
        }))
    }));
    for other in &others {
        assert_eq!(read.intersects(other), set.intersects(other), "seed {seed}: {set:?} and {other:?}");
    }
}

#[test]
fn in_place_it_is_the_same_set() {
    for seed in 0..300 {
        let mut rng = SmallRng::seed_from_u64(seed);
        let set = if seed == 0 { PageSet::new() } else { shaped(&mut rng) };
        // As it is stored, and as our own codec writes it.
        for bytes in [set.encode(), encode(set.ranges())] {
            let read = EncodedSet::new(bytes).expect("a set");
            same(&read, &set, &mut rng, seed);
        }
        let made = EncodedSet::from(&set);
        assert_eq!(Ok(&made), EncodedSet::new(made.bytes().clone()).as_ref(), "seed {seed}");
    }
}

/// Mutations with a right checksum: both readers refuse the same bytes for the same reason, or find the
/// same set, and every answer is that set's.
#[test]
fn hostile_bytes_are_refused_or_the_set_that_the_second_reader_finds() {
    let (mut refused, mut sets) = (0, 0);
    for seed in 0..20_000 {
        let mut rng = SmallRng::seed_from_u64(seed);
        let set = if seed % 50 == 0 {
            shaped(&mut rng)
        } else {
            PageSet::from_ranges((0..rng.random_range(0..60)).map(|_| {
                let first = rng.random::<u32>() >> rng.random_range(0..28);
                first..=first.saturating_add(rng.random_range(0..300))
            }))
        };
        let mut body = encode(set.ranges()).to_vec();
        body.truncate(body.len() - 12);
        for _ in 0..rng.random_range(1..4) {
            let len = body.len();
            let near_end = len.saturating_sub(rng.random_range(1..120).min(len.max(1)));
            match rng.random_range(0..7) {
                0 => body.truncate(rng.random_range(0..=len)),
                1 => drop(body.drain(..rng.random_range(0..=len.min(20)))),
                2 if len > 0 => body[near_end] = rng.random_range(0..8),
                3 if len > 0 => body[near_end] = rng.random(),
                4 | 5 if len > 0 => body[near_end] ^= 1 << rng.random_range(0..8),
                _ => body.extend((0..rng.random_range(0..30)).map(|_| rng.random::<u8>())),
            }
        }
        let bytes = sealed(&body);
        match (EncodedSet::new(bytes.clone().into()), builder::decode(&bytes)) {
            (Ok(read), Ok(runs)) => {
                sets += 1;
                let set = PageSet { runs: runs.into_iter().collect() };
                if seed % 5 == 0 {
                    same(&read, &set, &mut rng, seed);
                } else {
                    assert_eq!((read.to_set(), read.len()), (set.clone(), set.len()), "seed {seed}");
                    assert_eq!((read.first(), read.last()), (set.first(), set.last()), "seed {seed}");
                }
            }
            (Err(_), Err(_)) => refused += 1,
            (ours, theirs) => panic!("seed {seed}: {ours:?}, the second reader {theirs:?}"),
        }
        // Reads are total also where the bytes were never checked.
        let unchecked = EncodedSet::checked(bytes.into(), Summary { len: 1, last: None });
        let _ = unchecked.ranges().take(10_000).count();
        for page in [1, 255, 256, 70_000, u32::MAX].into_iter().filter_map(PageIdx::new) {
            let _ = (unchecked.contains(page), unchecked.at_or_after(page.get()));
        }
    }
    assert!(refused > 5_000 && sets > 500, "both must be met: {refused} refused, {sets} sets");
}

/// 25 bytes may describe four billion pages: no answer visits them.
#[test]
fn a_hostile_set_costs_its_bytes_not_its_pages() {
    let wide = EncodedSet::from(&PageSet::from_ranges([1..=u32::MAX]));
    assert!(wide.bytes().len() < 64);
    assert_eq!(wide.len(), u64::from(u32::MAX));
    assert_eq!(wide.ranges().count(), 1);
    assert!(wide.intersects(&PageSet::from_ranges([u32::MAX..=u32::MAX])));
}

#[cfg(target_pointer_width = "64")]
#[test]
fn what_splinter_rs_writes_is_read_in_place() {
    use splinter_rs::{Encodable as _, Optimizable as _, PartitionRead as _, Splinter};
    for seed in 0..60 {
        let mut rng = SmallRng::seed_from_u64(seed);
        let set = shaped(&mut rng);
        let mut theirs: Splinter = set.iter().map(PageIdx::get).collect();
        // As it came to be, after many single inserts, and at its best.
        same(&EncodedSet::new(theirs.encode_to_bytes()).expect("a set"), &set, &mut rng, seed);
        theirs.optimize();
        let read = EncodedSet::new(theirs.encode_to_bytes()).expect("a set");
        same(&read, &set, &mut rng, seed);
        assert_eq!(read.len(), theirs.cardinality() as u64, "seed {seed}");
    }
}
