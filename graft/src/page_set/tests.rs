use std::collections::BTreeSet;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::*;

fn page(idx: u32) -> PageIdx {
    PageIdx::new(idx).expect("not 0")
}

fn pages(set: &PageSet) -> Vec<u32> {
    set.iter().map(PageIdx::get).collect()
}

fn of(model: &BTreeSet<u32>) -> PageSet {
    model.iter().copied().map(page).collect()
}

/// The invariants in the module's header, and every read against the model.
fn check(set: &PageSet, model: &BTreeSet<u32>, seed: u64) {
    assert!(pages(set).iter().eq(model), "seed {seed}: {set:?} is not {model:?}");
    let runs: Vec<_> = set.ranges().collect();
    assert!(runs.iter().all(|run| run.start() <= run.end() && *run.start() > 0), "seed {seed}: {runs:?}");
    let apart = |pair: &[RangeInclusive<u32>]| u64::from(*pair[0].end()) + 1 < u64::from(*pair[1].start());
    assert!(runs.windows(2).all(apart), "seed {seed}: {runs:?}");
    assert_eq!(set.len(), model.len() as u64, "seed {seed}");
    assert_eq!(set.is_empty(), model.is_empty(), "seed {seed}");
    assert_eq!(set.first().map(PageIdx::get), model.first().copied(), "seed {seed}");
    assert_eq!(set.last().map(PageIdx::get), model.last().copied(), "seed {seed}");
    assert_eq!(*set, of(model), "seed {seed}: equal however it was made");
}

/// Numbers that crowd around a few places, the ends of the range among them.
fn number(rng: &mut SmallRng) -> u32 {
    let near = [1, 60, 255, 65_530, u32::MAX - 40][rng.random_range(0..5)];
    near.saturating_add(rng.random_range(0..60)).max(1)
}

fn some(rng: &mut SmallRng) -> BTreeSet<u32> {
    let mut set = BTreeSet::new();
    for _ in 0..rng.random_range(0..12) {
        let first = number(rng);
        set.extend(first..=first.saturating_add(rng.random_range(0..20)));
    }
    set
}

#[test]
fn a_page_set_is_a_set() {
    for seed in 0..300 {
        let mut rng = SmallRng::seed_from_u64(seed);
        let (mut set, mut model) = (PageSet::new(), BTreeSet::new());
        for _ in 0..60 {
            let (a, b) = (number(&mut rng), number(&mut rng));
            match rng.random_range(0..10) {
                0 | 1 => assert_eq!(set.insert(page(a)), model.insert(a), "seed {seed}"),
                2 => assert_eq!(set.remove(page(a)), model.remove(&a), "seed {seed}"),
                3 => {
                    let last = a.saturating_add(rng.random_range(0..50));
                    set.insert_range(a, last);
                    model.extend(a..=last);
                }
                4 => {
                    set.insert_range(b.max(a) - a.min(b), 0);
                    set.remove_range(a.max(2), a.max(2) - 1);
                }
                5 => {
                    set.remove_range(a.min(b), a.max(b));
                    model.retain(|p| !(a.min(b)..=a.max(b)).contains(p));
                }
                6 if rng.random_range(0..3) == 0 => {
                    set.clip(a);
                    model.retain(|p| *p <= a);
                }
                7 => {
                    let other = some(&mut rng);
                    set.union_with(&of(&other));
                    model.extend(other);
                }
                8 => {
                    let other = some(&mut rng);
                    set.subtract(&of(&other));
                    model.retain(|p| !other.contains(p));
                }
                _ => {
                    let other = some(&mut rng);
                    assert_eq!(set.intersects(&of(&other)), !model.is_disjoint(&other), "seed {seed}");
                    assert_eq!(of(&other).intersects(&set), !model.is_disjoint(&other), "seed {seed}");
                    let both: BTreeSet<u32> = model.intersection(&other).copied().collect();
                    check(&set.intersection(&of(&other)), &both, seed);
                    check(&of(&other).intersection(&set), &both, seed);
                }
            }
            assert_eq!(set.contains(page(b)), model.contains(&b), "seed {seed}");
            check(&set, &model, seed);
        }
    }
}

#[test]
fn edges_of_the_range_are_pages() {
    let mut all = PageSet::new();
    all.insert_range(0, u32::MAX);
    assert_eq!(
        (all.len(), all.first(), all.last()),
        (u64::from(u32::MAX), Some(page(1)), Some(page(u32::MAX)))
    );
    assert_eq!(all, PageSet::from_ranges([0..=u32::MAX]));
    all.remove(page(u32::MAX));
    all.remove(page(1));
    assert_eq!(all.ranges().collect::<Vec<_>>(), [2..=u32::MAX - 1]);
    all.clip(u32::MAX);
    assert_eq!(all.len(), u64::from(u32::MAX) - 2);
    all.clip(0);
    assert!(all.is_empty());
    all.insert_range(0, 0);
    all.insert_range(5, 4);
    assert!(all.is_empty());
    all.insert(page(u32::MAX));
    all.insert_range(u32::MAX, u32::MAX);
    all.remove_range(0, u32::MAX);
    assert!(all.is_empty());
}

/// 25 bytes describe almost four billion pages. Every operation on them must cost what their one
/// run costs: at a page each, this test would take days.
#[test]
fn a_hostile_set_costs_its_runs_not_its_pages() {
    let wide = PageSet::from_ranges([1..=u32::MAX]).encode();
    assert_eq!(wide.len(), 25);
    let wide = PageSet::decode(&wide).expect("decode");
    let few: PageSet = [3, 70_000, 1 << 30].map(page).into_iter().collect();
    for _ in 0..1_000 {
        assert!(wide.intersects(&few) && few.intersects(&wide));
        assert_eq!(wide.intersection(&few), few);
        let mut rest = wide.clone();
        rest.subtract(&few);
        assert_eq!(rest.len(), u64::from(u32::MAX) - 3);
        assert!(!rest.intersects(&few) && rest != wide);
        rest.union_with(&few);
        assert_eq!(rest, wide);
        let mut none = few.clone();
        none.subtract(&wide);
        assert!(none.is_empty());
        let mut clipped = wide.clone();
        clipped.clip(100);
        assert_eq!(clipped.len(), 100);
    }
    assert_eq!(format!("{wide:?}"), "{1..=4294967295}");
}
