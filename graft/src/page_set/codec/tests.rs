use std::path::Path;

use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use super::super::PageSet;
use super::builder::decode;
use super::*;

fn bytes_of(ranges: &[RangeInclusive<u32>]) -> Bytes {
    encode(PageSet::from_ranges(ranges.iter().cloned()).ranges())
}

/// `body` with a right checksum and magic.
pub(in crate::page_set) fn sealed(body: &[u8]) -> Vec<u8> {
    [body, &crc64_nvme(body).to_le_bytes(), &MAGIC].concat()
}

/// Sets of every shape that the format has a form for, and mixtures.
pub(in crate::page_set) fn shaped(rng: &mut SmallRng) -> PageSet {
    let mut set = PageSet::new();
    for _ in 0..rng.random_range(1..4) {
        let places =
            [0, 1, 250, 65_400, 70_000, 1 << 24, 0x00FF_FF00, 0x7FFF_0000, u32::MAX - 70_000, u32::MAX - 300];
        let from = *places.choose(rng).expect("places");
        let at = |offset: u32| from.saturating_add(offset);
        match rng.random_range(0..10) {
            0 => set.insert_range(at(0), at(rng.random_range(0..3))),
            1 => set.insert_range(at(0), at(rng.random_range(0..300_000))),
            // Whole blocks, whole low partitions.
            2 => set.insert_range(
                from & !0xFF,
                (from & !0xFF).saturating_add(256 * rng.random_range(1..300) - 1),
            ),
            3 => set.insert_range(from & !0xFFFF, (from & !0xFFFF).saturating_add((1 << 16) - 1)),
            // Half of a stretch, a sprinkling, one in each block.
            4 => (0..rng.random_range(0..3_000)).for_each(|_| {
                let offset = rng.random_range(0..6_000);
                set.insert_range(at(offset), at(offset));
            }),
            5 => (0..rng.random_range(0..200)).for_each(|_| {
                let number = rng.random();
                set.insert_range(number, number);
            }),
            6 => (0..rng.random_range(0..600)).for_each(|i| set.insert_range(at(i * 256), at(i * 256))),
            // Combs, and many runs.
            7 => (0..rng.random_range(0..2_000)).for_each(|i| set.insert_range(at(i * 2), at(i * 2))),
            8 => (0..rng.random_range(0..500)).for_each(|i| set.insert_range(at(i * 40), at(i * 40 + 30))),
            _ => (0..rng.random_range(0..300)).for_each(|i| {
                let number = (i << 16) | rng.random_range(0..4);
                set.insert_range(number, number);
            }),
        }
    }
    set
}

#[test]
fn the_checksum_is_crc64_nvme() {
    // The check value in the catalogue of CRCs.
    assert_eq!(crc64_nvme(b"123456789"), 0xAE8B_1486_0A79_9888);
}

#[test]
fn encoding_is_the_inverse_of_decoding() {
    for seed in 0..200 {
        let set = shaped(&mut SmallRng::seed_from_u64(seed));
        let bytes = encode(set.ranges());
        assert_eq!(PageSet::decode(&bytes).as_ref(), Ok(&set), "seed {seed}");
        assert!(bytes.len() <= 17 + 8 * set.ranges().len(), "seed {seed}: {} bytes", bytes.len());
    }
}

/// Reads `testdata/page_set.txt`: lines of a set's ranges, `|`, its bytes in hex.
#[test]
fn golden_bytes_stay() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/page_set.txt");
    let golden = [
        vec![],
        vec![1..=1],
        vec![u32::MAX..=u32::MAX],
        vec![1..=u32::MAX],
        vec![1..=3, 7..=7, 9..=9],
        vec![1..=100_000],
        vec![256..=511],
        vec![65_536..=131_071, 16_777_216..=33_554_431],
        (0..64).map(|i| 512 + i * 3..=512 + i * 3).collect(),
        (1..200).map(|i| i * 65_536..=i * 65_536 + i % 3).collect(),
    ];
    let mut text = String::from(
        "# Page sets and their bytes. Made by `GRAFT_BLESS=1 cargo test -p graft golden_bytes`.\n",
    );
    for ranges in &golden {
        let shown: Vec<String> = ranges.iter().map(|run| format!("{}-{}", run.start(), run.end())).collect();
        text += &format!("{} | {}\n", shown.join(" "), hex::encode(bytes_of(ranges)));
    }
    if std::env::var_os("GRAFT_BLESS").is_some() {
        std::fs::write(&path, &text).expect("write");
    }
    assert_eq!(
        std::fs::read_to_string(&path).expect("read"),
        text,
        "the format is written down; do not change it"
    );
}

/// The tables in the header are what the code does.
#[test]
fn the_header_tells_the_format() {
    let source = include_str!("../codec.rs");
    let row = |start: &str| source.lines().filter(|line| line.starts_with(start)).count();
    for (kind, name) in
        [(EMPTY, "empty"), (FULL, "full"), (BITMAP, "bitmap"), (VEC, "vec"), (RUN, "run"), (TREE, "tree")]
    {
        assert_eq!(row(&format!("//! | {kind:4} | {name:6} |")), 1, "{name}");
    }
    let magic: Vec<String> = MAGIC.iter().map(|byte| format!("{byte:02X}")).collect();
    assert_eq!(row(&format!("//! | magic    |     {} | `{}`", MAGIC.len(), magic.join(" "))), 1);
    assert_eq!(row(&format!("//! | checksum | {:5} |", FOOTER_BYTES - MAGIC.len())), 1);
}

#[test]
fn contradictions_are_refused() {
    let block = |body: &[u8]| [body, &[0, 0, 0, 0, 0, 0, 0, 0]].concat();
    for (body, reason) in [
        (vec![], "a partition without a kind"),
        (vec![6], "unknown partition kind"),
        (vec![0, 0], "an empty partition below the root"),
        (vec![FULL], "page 0"),
        (vec![0, 0, 0, 0, 0, 0, 0, 0, VEC], "page 0"),
        (vec![9, FULL], "bytes before the root"),
        (vec![0, 0, 0, 1, 0, 0, 0, 1, VEC], "a count beyond its bytes"),
        (vec![0, 0, 0, 1, 0xFF, 0xFF, 0xFF, 0xFF, VEC], "a count beyond its bytes"),
        (vec![0, 0, 0, 1, 0xFF, 0xFF, 0xFF, 0xFF, RUN], "a count beyond its bytes"),
        (vec![0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 1, VEC], "numbers do not ascend"),
        (vec![0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 0, RUN], "runs do not ascend or touch"),
        (
            vec![0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 4, 0, 0, 0, 1, RUN],
            "runs do not ascend or touch",
        ),
        (block(&[]).into_iter().chain([BITMAP]).collect(), "a count beyond its bytes"),
        // One child, full, at first byte 1: its index must say 2^24 − 1 and distance 0.
        (
            vec![FULL, 0, 0, 0, 0, 0, 0xFF, 0xFF, 0xFE, 1, 0, TREE],
            "children hold more or fewer numbers than the index says",
        ),
        (vec![FULL, 0, 0, 0, 1, 0, 0xFF, 0xFF, 0xFF, 1, 0, TREE], "children have gaps or overlap"),
        (
            vec![FULL, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0xFF, 0xFF, 0xFF, 1, 0, TREE],
            "children have gaps or overlap",
        ),
        (vec![EMPTY, 0, 0, 0, 0, 0, 0xFF, 0xFF, 0xFF, 1, 0, TREE], "an empty partition below the root"),
        (vec![9, FULL, 0, 0, 0, 0, 0, 0xFF, 0xFF, 0xFF, 1, 0, TREE], "bytes before the root"),
    ] {
        let error = PageSet::decode(&sealed(&body)).expect_err(reason);
        assert_eq!(error.reason, reason, "{body:02x?}");
    }
    let good = vec![FULL, 0, 0, 0, 0, 0, 0xFF, 0xFF, 0xFF, 1, 0, TREE];
    let set = PageSet::decode(&sealed(&good)).expect("a tree with one full child");
    assert_eq!(set.ranges().collect::<Vec<_>>(), [1 << 24..=(2 << 24) - 1]);

    let whole = bytes_of(&[1..=1]);
    for len in 0..whole.len() {
        assert!(PageSet::decode(&whole[..len]).is_err(), "cut to {len} bytes");
    }
    for bit in 0..whole.len() * 8 {
        let mut flipped = whole.to_vec();
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert!(PageSet::decode(&flipped).is_err(), "bit {bit} flipped");
    }
}

/// Mutations and cuts with a right checksum: no panic, no more memory than the bytes warrant, and
/// what decodes is a set that encodes and decodes to itself.
#[test]
fn hostile_bytes_fail_or_are_a_set() {
    let (mut refused, mut sets) = (0, 0);
    for seed in 0..20_000 {
        let mut rng = SmallRng::seed_from_u64(seed);
        // A few large seeds, many small ones, where a mutation hits structure.
        let set = if seed % 50 == 0 {
            shaped(&mut rng)
        } else {
            PageSet::from_ranges((0..rng.random_range(0..40)).map(|_| {
                let first = rng.random::<u32>() >> rng.random_range(0..28);
                first..=first.saturating_add(rng.random_range(0..300))
            }))
        };
        let mut body = encode(set.ranges()).to_vec();
        body.truncate(body.len() - FOOTER_BYTES);
        for _ in 0..rng.random_range(1..4) {
            let len = body.len();
            let near_end = len.saturating_sub(rng.random_range(1..40).min(len.max(1)));
            match rng.random_range(0..7) {
                0 => body.truncate(rng.random_range(0..=len)),
                1 => drop(body.drain(..rng.random_range(0..=len.min(20)))),
                2 if len > 0 => body[near_end] = rng.random_range(0..8),
                3 if len > 0 => body[near_end] = rng.random(),
                4 if len > 0 => body[near_end] ^= 1 << rng.random_range(0..8),
                5 => body.push(rng.random_range(0..8)),
                _ => body.extend((0..rng.random_range(0..30)).map(|_| rng.random::<u8>())),
            }
        }
        match decode(&sealed(&body)) {
            Err(_) => refused += 1,
            Ok(runs) => {
                sets += 1;
                assert!(
                    runs.capacity() <= 8 * body.len() + 8,
                    "seed {seed}: {} runs of {} bytes",
                    runs.len(),
                    body.len()
                );
                let set = PageSet::decode(&sealed(&body)).expect("decoded before");
                assert_eq!(
                    set.ranges().map(|run| (*run.start(), *run.end())).collect::<Vec<_>>(),
                    runs,
                    "seed {seed}: runs are maximal and ascend"
                );
                assert_eq!(PageSet::decode(&encode(set.ranges())), Ok(set), "seed {seed}");
            }
        }
    }
    assert!(refused > 5_000 && sets > 500, "both must be met: {refused} refused, {sets} sets");
}

/// Against the crate that defines the format; it compiles for 64-bit targets alone.
#[cfg(target_pointer_width = "64")]
mod reference {
    use splinter_rs::{Encodable, Optimizable, PartitionRead, Splinter, SplinterRef};

    use super::*;

    fn splinter(set: &PageSet) -> Splinter {
        set.iter().map(|page| page.get()).collect()
    }

    #[test]
    fn splinter_rs_reads_ours_and_we_read_its() {
        let (mut same, mut ours_bytes, mut its_bytes) = (0, 0, 0);
        for seed in 0..150 {
            let set = shaped(&mut SmallRng::seed_from_u64(seed));
            let ours = encode(set.ranges());
            assert_eq!(PageSet::decode(&set.encode()).as_ref(), Ok(&set), "seed {seed}: as it is stored");
            let read = SplinterRef::from_bytes(ours.clone()).expect("splinter-rs reads ours");
            assert!(read.iter().eq(set.iter().map(|page| page.get())), "seed {seed}");
            assert_eq!(read.cardinality() as u64, set.len(), "seed {seed}");
            assert_eq!(read.last(), set.last().map(|page| page.get()), "seed {seed}");

            // As it came to be, after many single inserts, and at its best.
            let mut theirs = splinter(&set);
            assert_eq!(PageSet::decode(&theirs.encode_to_bytes()).as_ref(), Ok(&set), "seed {seed}");
            theirs.optimize();
            let theirs = theirs.encode_to_bytes();
            assert_eq!(PageSet::decode(&theirs).as_ref(), Ok(&set), "seed {seed}");
            assert!(
                ours.len() <= theirs.len(),
                "seed {seed}: ours {} bytes, theirs {}",
                ours.len(),
                theirs.len()
            );
            same += usize::from(ours == theirs);
            (ours_bytes, its_bytes) = (ours_bytes + ours.len(), its_bytes + theirs.len());
        }
        eprintln!("{same} of 150 are the same bytes; {ours_bytes} bytes ours, {its_bytes} its");
        assert!(same >= 100, "{same} of 150");
    }

    #[test]
    fn the_forms_of_small_sets_are_splinter_rs_own() {
        for set in [
            vec![],
            vec![1..=1],
            vec![u32::MAX..=u32::MAX],
            vec![5..=5, 9..=9],
            vec![256..=511],
            vec![1..=100_000],
        ] {
            let mut theirs: Splinter = set.iter().cloned().flatten().collect();
            theirs.optimize();
            assert_eq!(bytes_of(&set), theirs.encode_to_bytes(), "{set:?}");
        }
        // Ranges that it cannot visit page by page.
        let wide = Splinter::from(1..=u32::MAX);
        assert_eq!(bytes_of(&[1..=u32::MAX]), wide.encode_to_bytes());
    }
}
