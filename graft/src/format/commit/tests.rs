use rand::{Rng, SeedableRng, rngs::StdRng};

use super::*;
use crate::page_set::PageSet;

fn head(seed: u64) -> Head {
    let mut rng = StdRng::seed_from_u64(seed);
    let pages = rng.random_range(1..500u32);
    let mut set = PageSet::new();
    for _ in 0..rng.random_range(0..100) {
        set.insert(PageIdx::new(rng.random_range(1..=pages)).unwrap());
    }
    let hashes = set.iter().map(|idx| PageHash::of(idx, &[seed as u8])).collect();
    let mut frames = Vec::new();
    let mut left = set.len() as u32;
    while left > 0 {
        let pages = rng.random_range(1..=left.min(FRAME_PAGES_MAX as u32));
        frames.push(FrameEntry { segment: 0, offset: rng.random_range(0..1 << 40), bytes: 7, pages });
        left -= pages;
    }
    let payload: Vec<u8> = (0..rng.random_range(0..300)).map(|_| rng.random()).collect();
    Head {
        volume: VolumeId(rng.random()),
        lsn: Lsn(rng.random_range(1..u64::MAX)),
        id: CommitId(rng.random()),
        parent: ChainHash(rng.random()),
        hash: ChainHash::ZERO,
        time_ms: rng.random(),
        checkpoint: Lsn(0),
        pages,
        set: (&set).into(),
        hashes,
        frames,
        segments: vec![5; rng.random_range(0..3)],
        payload: payload.into(),
        encoded: Bytes::new(),
    }
}

#[test]
fn heads_come_back_equal_also_with_a_body_behind_them() {
    for seed in 0..200 {
        let mut head = head(seed);
        let mut bytes = head.encode().to_vec();
        assert_eq!(bytes.len() as u64, head.encoded.len() as u64, "seed {seed}");
        bytes.extend([9; 50]);
        assert_eq!(Head::decode(head.volume, head.lsn, &bytes).as_ref(), Ok(&head), "seed {seed}");
    }
}

/// Upstream decoded an empty or torn commit object as a valid default commit, and lost the push.
#[test]
fn a_torn_head_is_never_a_commit() {
    for seed in 0..20 {
        let mut head = head(seed);
        let bytes = head.encode();
        for cut in 0..bytes.len() {
            match Head::decode(head.volume, head.lsn, &bytes[..cut]) {
                Ok(_) => panic!("seed {seed}: cut at {cut} decodes"),
                Err(HeadError::Incomplete { need }) => {
                    assert!(
                        need > cut as u64 && need <= bytes.len() as u64,
                        "seed {seed}, cut {cut}, need {need}"
                    );
                }
                Err(HeadError::Damaged(damaged)) => {
                    assert!(
                        cut < HEADER_BYTES && damaged.key.contains("/log/"),
                        "seed {seed}, cut {cut}: {damaged}"
                    );
                }
            }
        }
    }
}

#[test]
fn a_changed_bit_anywhere_is_noticed() {
    for seed in 0..10 {
        let mut head = head(seed);
        let bytes = head.encode();
        for at in 0..bytes.len() {
            let mut flipped = bytes.to_vec();
            flipped[at] ^= 1 << (at % 8);
            assert!(Head::decode(head.volume, head.lsn, &flipped).is_err(), "seed {seed}: flip at {at}");
        }
    }
}

/// Upstream did not check a commit against the log and LSN it was asked for.
#[test]
fn a_commit_under_another_key_is_refused() {
    let mut head = head(1);
    let bytes = head.encode();
    assert!(Head::decode(head.volume, head.lsn.next(), &bytes).is_err());
    assert!(Head::decode(VolumeId([1; 16]), head.lsn, &bytes).is_err());
}

/// A head that its own hash vouches for may still lie about its parts.
#[test]
fn a_well_hashed_lie_is_refused() {
    type Lie = fn(&mut Head);
    let lies: [(&str, Lie); 4] = [
        ("pages beyond the count", |h| h.pages = h.set.last().unwrap().get() - 1),
        ("too few pages in frames", |h| h.frames[0].pages -= 1),
        ("a frame past every segment", |h| h.frames[0].segment = 9),
        ("an offset that overflows", |h| h.frames[0].offset = u64::MAX),
    ];
    for (what, lie) in lies {
        let mut head = (0..).map(head).find(|h| h.set.len() > 5 && h.frames[0].pages > 1).unwrap();
        lie(&mut head);
        let bytes = head.encode();
        assert!(matches!(Head::decode(head.volume, head.lsn, &bytes), Err(HeadError::Damaged(_))), "{what}");
    }
}

/// A head of `count` pages among twice as many.
fn wide(count: u32) -> Head {
    let mut rng = StdRng::seed_from_u64(7);
    let set: PageSet = (1..=count).filter_map(|n| PageIdx::new(2 * n - rng.random_range(0..2))).collect();
    let each = FRAME_PAGES_MAX as u32;
    let sizes = (0..count.div_ceil(each)).map(|n| each.min(count - n * each));
    Head {
        pages: 2 * count,
        hashes: set.iter().map(|page| PageHash::of(page, b"")).collect(),
        set: (&set).into(),
        frames: sizes.map(|pages| FrameEntry { segment: 0, offset: 0, bytes: 7, pages }).collect(),
        ..head(1)
    }
}

/// Write set, hashes and payload of a decoded head are parts of the bytes it was decoded from, so
/// nothing of it is allocated for each page.
#[test]
fn a_head_is_read_in_the_bytes_it_was_fetched_in() {
    let mut head = wide(3_000);
    let bytes = head.encode();
    let read = Head::decode_in_place(head.volume, head.lsn, &bytes).unwrap();
    assert_eq!(read, head);
    let within = |whole: &Bytes, part: &Bytes| {
        let (whole, part) = (whole.as_ptr_range(), part.as_ptr_range());
        assert!(whole.start <= part.start && part.end <= whole.end && part.start < part.end);
    };
    for part in [&read.encoded, read.set.bytes(), read.hashes.bytes(), &read.payload] {
        within(&bytes, part);
    }
    // A head with a large body behind it does not keep the body.
    let longer: Bytes = [&bytes[..], &vec![1; 3 * bytes.len()]].concat().into();
    let read = Head::decode_in_place(head.volume, head.lsn, &longer).unwrap();
    assert_eq!(read, head);
    assert!(!longer.as_ptr_range().contains(&read.encoded.as_ptr()));
    within(&read.encoded, read.set.bytes());
    within(&read.encoded, read.hashes.bytes());
}

/// Prints the time; `cargo test --release -p graft --lib how_long -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
#[allow(clippy::disallowed_methods, reason = "it measures time")]
fn how_long_a_head_of_60_000_pages_takes() {
    let mut head = wide(60_000);
    let bytes = head.encode();
    let start = std::time::Instant::now();
    for _ in 0..100 {
        assert!(Head::decode(head.volume, head.lsn, &bytes).is_ok());
    }
    eprintln!("{} bytes, in place: {:?} each", bytes.len(), start.elapsed() / 100);
    // What decoding did besides before sets and hashes were read in place.
    let start = std::time::Instant::now();
    for _ in 0..100 {
        let (set, hashes) = (PageSet::decode(head.set.bytes()), head.hashes.iter().collect::<Vec<_>>());
        assert!(set.is_ok() && hashes.len() == 60_000);
    }
    eprintln!("a set and a list of hashes: {:?} more", start.elapsed() / 100);
}
