use rand::{Rng, SeedableRng, rngs::StdRng};

use super::*;

const MIB: u64 = 1 << 20;
const ROOM: u64 = 16 << 30;

/// A volume of frames of 256 KiB and a reader whose cache forgets nothing. What a miss brings around
/// it is here for the next read.
struct Reader {
    spread: Spread,
    frames: Vec<State>,
    away: u64,
    reads: u64,
    misses: u32,
    used: u64,
    brought: u64,
}

#[derive(Clone, Copy, PartialEq)]
enum State {
    Away,
    Ahead,
    Read,
}

const FRAME: u64 = MIB / 4;

impl Reader {
    fn of(bytes: u64) -> Reader {
        let frames = vec![State::Away; (bytes / FRAME) as usize];
        let away = frames.len() as u64;
        Reader { spread: Spread::default(), frames, away, reads: 0, misses: 0, used: 0, brought: 0 }
    }

    fn read(&mut self, at: usize, room: u64) {
        let before = self.reads;
        self.reads += 1;
        match std::mem::replace(&mut self.frames[at], State::Read) {
            State::Read => return,
            State::Ahead => return self.used += 1,
            State::Away => (self.misses, self.away) = (self.misses + 1, self.away - 1),
        }
        if !self.spread.miss(before, false) {
            return;
        }
        let left = self.away * FRAME;
        let mut step = self.spread.step(Standing { left, room, used: self.used });
        self.brought += step;
        for distance in 1..self.frames.len() {
            if step == 0 {
                return;
            }
            for beside in [at.checked_sub(distance), at.checked_add(distance)].into_iter().flatten() {
                if step > 0 && self.frames.get(beside) == Some(&State::Away) {
                    self.frames[beside] = State::Ahead;
                    self.away -= 1;
                    step = step.saturating_sub(FRAME);
                }
            }
        }
    }
}

/// A hundred rows of a million: nine or ten misses, not a hundred.
#[test]
fn a_hundred_random_reads_of_130_mib_cost_few_round_trips() {
    for seed in 0..50 {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut reader = Reader::of(130 * MIB);
        (0..100).for_each(|_| reader.read(rng.random_range(0..520), ROOM));
        assert!(reader.misses <= 10, "seed {seed}: {}", reader.misses);
        assert!(reader.brought <= 130 * MIB);
    }
}

#[test]
fn a_question_pays_for_what_it_reads() {
    for bytes in [4 * MIB, 16 * MIB, 1 << 30] {
        let mut reader = Reader::of(bytes);
        (0..7).for_each(|n| reader.read(n * 2, ROOM));
        assert_eq!((reader.misses, reader.brought), (7, 0));
        reader.read(15, ROOM);
        assert_eq!(reader.brought, (64 * MIB).min(bytes - 8 * FRAME));
    }
}

#[test]
fn a_small_volume_comes_whole_with_the_eighth_miss() {
    let mut rng = StdRng::seed_from_u64(1);
    let mut reader = Reader::of(16 * MIB);
    (0..100).for_each(|_| reader.read(rng.random_range(0..64), ROOM));
    assert_eq!(reader.misses, 8);
}

#[test]
fn a_small_volume_comes_whole_with_the_second_miss_of_a_scan() {
    let mut spread = Spread::default();
    assert!(!spread.miss(0, true) && spread.miss(64, true));
    let standing = Standing { left: 16 * MIB, room: ROOM, used: 63 };
    assert_eq!(spread.step(standing), 16 * MIB);
    let mut spread = Spread::default();
    assert!(!spread.miss(0, true) && spread.miss(64, true));
    assert_eq!(spread.step(Standing { left: 1 << 30, ..standing }), 0, "the trend has its own window");
    let mut spread = Spread::default();
    assert!((0..7).all(|n| !spread.miss(n * 5, true)), "a few pages one after another are no scan");
}

/// Of 100 GiB a quarter of one GiB is no help, and that is seen.
#[test]
fn what_does_not_pay_ends() {
    let mut rng = StdRng::seed_from_u64(2);
    let mut reader = Reader::of(100 << 30);
    (0..1000).for_each(|_| reader.read(rng.random_range(0..400 << 10), ROOM));
    let bound = UNPROVEN_BYTES_MAX + reader.used * EARNED_BYTES;
    assert!(reader.brought <= bound, "{} MiB, {} used", reader.brought / MIB, reader.used);
    assert!(reader.used < 50, "{}", reader.used);
}

/// A cache of 64 MiB is not flushed for it.
#[test]
fn half_of_the_room_is_the_bound() {
    let mut rng = StdRng::seed_from_u64(3);
    let mut reader = Reader::of(1 << 30);
    for _ in 0..100 {
        reader.read(rng.random_range(0..4096), 64 * MIB);
        assert!(reader.brought <= 32 * MIB + reader.used * EARNED_BYTES, "{}", reader.brought / MIB);
    }
}

/// A server that answers nearly all from its cache is not driven to fetch everything.
#[test]
fn misses_far_apart_stay_alone() {
    let mut reader = Reader::of(1 << 30);
    for round in 0..100 {
        reader.read(round * 40, ROOM);
        (0..300).for_each(|_| reader.read(0, ROOM));
    }
    assert_eq!((reader.misses, reader.brought), (100, 0));
}

/// Any numbers: no panic, never more than there is or fits.
#[test]
fn nothing_makes_it_panic() {
    for seed in 0..200 {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut spread = Spread::default();
        for _ in 0..300 {
            let number = |rng: &mut StdRng| rng.random::<u64>() >> rng.random_range(0..64);
            if spread.miss(number(&mut rng), rng.random()) {
                let at = Standing { left: number(&mut rng), room: number(&mut rng), used: number(&mut rng) };
                let step = spread.step(at);
                assert!(step <= at.left && step <= UNPROVEN_BYTES_MAX.min(at.room / 2), "seed {seed}");
            }
        }
    }
}
