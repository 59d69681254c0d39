use rand::{Rng, SeedableRng, rngs::StdRng};

use super::*;

const PAGES: u32 = 1 << 20;
const WINDOW: u32 = 4096;

/// A reader with a cache that forgets nothing, whose fetches bring `frame` pages at a time.
struct Reader {
    leap: Leap,
    cached: PageSet,
    read: PageSet,
    faults: u32,
    ahead: PageSet,
}

impl Reader {
    fn new() -> Reader {
        Reader {
            leap: Leap::default(),
            cached: PageSet::new(),
            read: PageSet::new(),
            faults: 0,
            ahead: PageSet::new(),
        }
    }

    fn read(&mut self, page: u32, frame: u32) {
        let Some(idx) = PageIdx::new(page) else { return };
        if self.cached.contains(idx) {
            if self.read.insert(idx) {
                self.leap.hit(idx);
            }
            return;
        }
        self.read.insert(idx);
        self.faults += 1;
        let more = self.leap.fault(idx, false, WINDOW, PAGES);
        assert!(more.len() <= u64::from(WINDOW) && more.last().is_none_or(|last| last.get() <= PAGES));
        self.ahead.union_with(&more);
        self.cached.union_with(&more);
        let first = (page - 1) / frame * frame + 1;
        self.cached.insert_range(first, first + frame - 1);
    }

    fn wasted(&self) -> f64 {
        let mut unread = self.ahead.clone();
        unread.subtract(&self.read);
        unread.len() as f64 / self.ahead.len().max(1) as f64
    }
}

/// The window grows until a scan of 32,768 pages costs a dozen round trips instead of 512.
#[test]
fn a_scan_streams() {
    let mut reader = Reader::new();
    (1..=32_768).for_each(|page| reader.read(page, 64));
    // 64 | 64 + 252 | 4096 at a time.
    assert_eq!(reader.faults, 2 + (32_768 - 64 - 253_u32).div_ceil(1 + WINDOW) + 1, "{:?}", reader.leap);
    assert!(reader.wasted() < 0.13, "the last window reaches past the end: {}", reader.wasted());
}

#[test]
fn a_scan_from_the_end_streams() {
    let mut reader = Reader::new();
    (1..=32_768).rev().for_each(|page| reader.read(page, 64));
    assert!(reader.faults < 20, "{}", reader.faults);
}

#[test]
fn a_stride_is_followed_through_noise() {
    let mut rng = StdRng::seed_from_u64(1);
    let mut reader = Reader::new();
    for step in 0..3000 {
        reader.read(1 + step * 7, 1);
        if step % 8 == 7 {
            // Somewhere else and back: two differences of eleven are noise.
            reader.read(rng.random_range(500_000..PAGES), 1);
        }
    }
    let noise = 3000 / 8;
    assert!(reader.faults < noise + 60, "{} faults, {noise} of them noise", reader.faults);
}

/// Leaves of two b-trees that grew side by side: short steps of no fixed length.
#[test]
fn short_steps_forward_are_a_trend() {
    let mut rng = StdRng::seed_from_u64(2);
    let mut reader = Reader::new();
    let mut page = 1;
    while page < 30_000 {
        reader.read(page, 64);
        page += rng.random_range(1..4);
    }
    assert!(reader.faults < 40, "{}", reader.faults);
}

#[test]
fn random_reads_are_left_alone() {
    let mut rng = StdRng::seed_from_u64(3);
    let mut reader = Reader::new();
    (0..5000).for_each(|_| reader.read(rng.random_range(1..=PAGES), 1));
    assert!(reader.ahead.len() < 100, "{}", reader.ahead.len());
}

/// After the scan ends its window does not stay open: waste closes it.
#[test]
fn the_window_closes_when_a_trend_ends() {
    let mut rng = StdRng::seed_from_u64(4);
    let mut reader = Reader::new();
    (1..=20_000).for_each(|page| reader.read(page, 64));
    let scanned = reader.ahead.len();
    (0..1000).for_each(|_| reader.read(rng.random_range(100_000..PAGES), 1));
    assert!(reader.ahead.len() < scanned + 3 * u64::from(WINDOW), "{} after {scanned}", reader.ahead.len());
}

/// As a stream does it: when half of what was asked for was read, the next part is asked for, so that
/// the reader comes to pages that are here or under way.
#[test]
fn a_scan_is_kept_ahead_of() {
    let mut leap = Leap::default();
    let (mut asked, mut faults, mut after) = (PageSet::new(), 0, None::<u32>);
    for page in (1..=32_768).filter_map(PageIdx::new) {
        if asked.contains(page) {
            leap.hit(page);
            after = after.map(|left| left.saturating_sub(1));
            if after == Some(0) {
                asked.union_with(&leap.onward(WINDOW, PAGES));
                after = leap.onward_after();
            }
        } else {
            faults += 1;
            asked.insert_range(page.get(), page.get() + 63);
            asked.union_with(&leap.fault(page, false, WINDOW, PAGES));
            after = leap.onward_after();
        }
    }
    assert_eq!(faults, 2);
    // Half of the last window beyond the end, and the window after it.
    assert!(asked.len() <= 32_768 + 2 * u64::from(WINDOW), "{}", asked.len());
}

/// Any accesses, windows and page counts: no panic, no page out of bounds, no window exceeded.
#[test]
fn nothing_makes_it_panic() {
    for seed in 0..200 {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut leap = Leap::default();
        for _ in 0..300 {
            let near = [1, 2, u32::MAX - 1, u32::MAX, 1 << 31][rng.random_range(0..5)];
            let page = match rng.random_range(0..3) {
                0 => near,
                1 => near.wrapping_add(rng.random_range(0..5)).max(1),
                _ => rng.random_range(1..=u32::MAX),
            };
            let page = PageIdx::new(page).unwrap();
            if rng.random() {
                leap.hit(page);
            } else if rng.random_bool(0.3) {
                let (window, pages) = (rng.random_range(0..5000), rng.random());
                let set = leap.onward(window, pages);
                assert!(set.len() <= u64::from(window.max(1)), "seed {seed}");
                assert!(set.last().is_none_or(|last| last.get() <= pages), "seed {seed}");
                assert!(leap.onward_after().is_none_or(|after| after > 0));
            } else {
                let (window, pages) = (rng.random_range(0..5000), rng.random());
                let set = leap.fault(page, rng.random(), window, pages);
                assert!(set.len() <= u64::from(window), "seed {seed}");
                assert!(set.last().is_none_or(|last| last.get() <= pages), "seed {seed}");
            }
        }
    }
}
