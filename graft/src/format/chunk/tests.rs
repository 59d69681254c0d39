use rand::{Rng, SeedableRng, rngs::StdRng};

use super::*;

const OWN: VolumeId = VolumeId([2; 16]);
const PARENT: VolumeId = VolumeId([1; 16]);

fn volumes() -> Lineage {
    Lineage::of(PARENT).fork(Lsn(100), OWN)
}

/// Random frames whose pages lie in chunk `index`.
fn frames(seed: u64, index: u32) -> Vec<FrameRef> {
    let mut rng = StdRng::seed_from_u64(seed);
    let first = first_page(index).unwrap();
    let mut pages: Vec<u32> = (first..first + 256).filter(|_| rng.random_bool(0.7)).collect();
    let mut frames = Vec::new();
    while !pages.is_empty() {
        let count = rng.random_range(1..=64u32);
        let live = rng.random_range(1..=count.min(pages.len() as u32)) as usize;
        let kind = match rng.random_range(0..3) {
            0 => ObjectKind::Commit(Lsn(rng.random())),
            1 => ObjectKind::CommitSegment(Lsn(rng.random())),
            _ => ObjectKind::CompactedSegment(Epoch(rng.random())),
        };
        let object = Object {
            volume: if rng.random() { OWN } else { PARENT },
            kind,
            id: CommitId(rng.random()),
            part: rng.random(),
        };
        let slots = pages.drain(..live).zip(0u8..).map(|(page, slot)| Slot {
            page: PageIdx::new(page).unwrap(),
            lsn: Lsn(rng.random()),
            slot,
            hash: PageHash(rng.random()),
        });
        let slots = slots.collect();
        frames.push(FrameRef {
            key: object.key().into(),
            object,
            offset: rng.random_range(0..1 << 40),
            bytes: rng.random(),
            count,
            slots,
        });
    }
    frames
}

fn encoded(index: u32, frames: &[FrameRef]) -> Bytes {
    let pages = frames.iter().flat_map(|frame| frame.slots.iter().map(move |slot| (frame, slot)));
    encode(index, &volumes(), pages).unwrap()
}

#[test]
fn chunks_come_back_equal() {
    for seed in 0..100 {
        let index = if seed % 2 == 0 { 0 } else { seed as u32 * 131 };
        let frames = frames(seed, index);
        let chunk = decode(index, &volumes(), &encoded(index, &frames)).unwrap();
        let mut expected = vec![None; CHUNK_PAGES];
        for frame in &frames {
            for slot in &frame.slots {
                expected[(slot.page.get() - first_page(index).unwrap()) as usize] = Some((frame, slot));
            }
        }
        for (at, expected) in expected.into_iter().enumerate() {
            match (chunk.get(at), expected) {
                (None, None) => {}
                (Some((found, slot)), Some((frame, expected))) => {
                    assert_eq!((&**found, slot), (frame, expected), "seed {seed}, page {at}");
                }
                other => panic!("seed {seed}, page {at}: {other:?}"),
            }
        }
    }
}

/// The hash notices all; the decoder must live through what a hash vouches for, too.
#[test]
fn no_bytes_make_the_decoder_panic() {
    for seed in 0..20 {
        let frames = frames(seed, 3);
        let bytes = encoded(3, &frames);
        let right = hash(3, &bytes);
        assert_ne!(hash(4, &bytes), right, "another chunk's");
        let raw = zstd::bulk::decompress(&bytes, RAW_BYTES_MAX).unwrap();
        for cut in 0..raw.len() {
            assert!(!matches!(parse(3, &volumes(), &raw[..cut]), Ok(Ok(_))), "seed {seed}: cut at {cut}");
        }
        let mut rng = StdRng::seed_from_u64(seed);
        for _ in 0..500 {
            let mut lie = raw.clone();
            for _ in 0..rng.random_range(1..4) {
                let at = rng.random_range(0..lie.len());
                lie[at] = rng.random();
            }
            if let Ok(Ok(chunk)) = parse(3, &volumes(), &lie) {
                let first = first_page(3).unwrap();
                let pages = (0..CHUNK_PAGES).filter_map(|at| Some((at, chunk.get(at)?.1.page)));
                for (at, page) in pages {
                    assert_eq!(page.get(), first + at as u32);
                }
            }
        }
        let mut flipped = bytes.to_vec();
        for at in 0..flipped.len() {
            flipped[at] ^= 0x20;
            assert_ne!(hash(3, &flipped), right);
            let _ = decode(3, &volumes(), &flipped);
            flipped[at] ^= 0x20;
        }
    }
}

#[test]
fn a_chunk_that_names_an_unknown_volume_is_refused() {
    let frames = frames(1, 0);
    let bytes = encoded(0, &frames);
    assert!(frames.iter().any(|frame| frame.object.volume == OWN));
    assert!(decode(0, &Lineage::of(PARENT), &bytes).is_err());
}

#[test]
fn each_lsn_belongs_to_one_volume_of_a_lineage() {
    let id = |n| VolumeId([n; 16]);
    let lineage = Lineage::of(id(1)).fork(Lsn(10), id(2)).fork(Lsn(20), id(3));
    for (lsn, origin) in [(0, 1), (10, 1), (11, 2), (20, 2), (21, 3), (u64::MAX, 3)] {
        assert_eq!(lineage.origin(Lsn(lsn)), id(origin), "lsn {lsn}");
    }
    assert_eq!((lineage.own(), lineage.forked_at()), (id(3), Lsn(20)));
    // Forked below where it was forked itself: what lies between is no part of it.
    let early = lineage.fork(Lsn(5), id(4));
    assert_eq!(early.volumes(), [(id(1), Lsn(5)), (id(4), Lsn(u64::MAX))]);
    assert_eq!(Lineage::from_volumes(lineage.volumes().to_vec()), Some(lineage));
    for bad in [vec![], vec![(id(1), Lsn(3))], vec![(id(1), Lsn(3)), (id(2), Lsn(3))]] {
        assert_eq!(Lineage::from_volumes(bad), None);
    }
}
