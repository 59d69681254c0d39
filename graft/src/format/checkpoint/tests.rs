use rand::{Rng, SeedableRng, rngs::StdRng};

use super::*;
use crate::ids::PageIdx;

const OWN: VolumeId = VolumeId([2; 16]);
const PARENT: VolumeId = VolumeId([1; 16]);

fn made(seed: u64) -> (Root, Bytes, Vec<u8>) {
    let mut rng = StdRng::seed_from_u64(seed);
    let (seq, lsn) = (Seq(rng.random_range(5..1000)), Lsn(rng.random_range(101..1000)));
    let history = (1..rng.random_range(1..5))
        .map(|seq| Past { seq: Seq(seq), lsn: Lsn(seq * 3), time_ms: rng.random() })
        .collect();
    let mut root = Root {
        volume: OWN,
        seq,
        lsn,
        chain: ChainHash(rng.random()),
        time_ms: rng.random(),
        pages: 5000,
        page_size: PageSize::DEFAULT,
        lineage: Lineage::of(PARENT).fork(Lsn(100), OWN),
        history,
        chunks: Vec::new(),
        epoch: Epoch(rng.random()),
        hot: (0..rng.random_range(0..40)).filter_map(|_| PageIdx::new(rng.random_range(1..=5000))).collect(),
        state_bytes: 0,
        state_hash: [0; 16],
        hash: ChainHash::ZERO,
        encoded: Bytes::new(),
    };
    let mut chunks = Vec::new();
    for index in (0..19).filter(|_| rng.random_bool(0.6)).collect::<Vec<_>>() {
        let bytes: Vec<u8> = (0..rng.random_range(1..40)).map(|_| rng.random()).collect();
        chunks.push(match rng.random_range(0..3) {
            0 => NewChunk::Stored(ChunkRef {
                index,
                volume: if rng.random() { OWN } else { PARENT },
                seq: Seq(rng.random()),
                offset: rng.random_range(0..1 << 40),
                bytes: rng.random_range(0..10_000),
                hash: rng.random(),
            }),
            _ => NewChunk::Fresh(index, bytes.into()),
        });
    }
    let state: Vec<u8> = (0..rng.random_range(0..300)).map(|_| rng.random()).collect();
    let object = assemble(&mut root, &chunks, &state);
    for (chunk, new) in root.chunks.iter().zip(&chunks) {
        match new {
            NewChunk::Stored(stored) => assert_eq!(chunk, stored),
            NewChunk::Fresh(index, bytes) => {
                let at = chunk.offset as usize;
                assert_eq!(&object[at..at + chunk.bytes as usize], bytes);
                assert_eq!((chunk.index, chunk.seq, chunk.volume), (*index, seq, OWN));
            }
        }
    }
    (root, object, state)
}

#[test]
fn roots_come_back_equal_with_their_state_behind_them() {
    for seed in 0..100 {
        let (root, object, state) = made(seed);
        assert_eq!(Root::decode(OWN, root.seq, &object).as_ref(), Ok(&root), "seed {seed}");
        let range = root.state_range();
        assert_eq!(&object[range.start as usize..range.end as usize], state);
        assert_eq!(root.state_hash, state_hash(&state));
    }
}

#[test]
fn every_changed_or_missing_byte_of_a_root_is_noticed() {
    for seed in 0..10 {
        let (root, object, _) = made(seed);
        let bytes = root.encoded.len();
        for cut in 0..bytes {
            match Root::decode(OWN, root.seq, &object[..cut]) {
                Ok(_) => panic!("seed {seed}: cut at {cut} decodes"),
                Err(RootError::Incomplete { need }) => assert_eq!(need, bytes as u64),
                Err(RootError::Damaged(damaged)) => {
                    assert!(cut < HEADER_BYTES && damaged.key.contains("/checkpoints/"), "cut {cut}");
                }
            }
        }
        for at in 0..bytes {
            let mut flipped = object.to_vec();
            flipped[at] ^= 1 << (at % 8);
            assert!(Root::decode(OWN, root.seq, &flipped).is_err(), "seed {seed}: flip at {at}");
        }
        assert!(Root::decode(OWN, root.seq.next(), &object).is_err(), "another key's");
        assert!(Root::decode(PARENT, root.seq, &object).is_err(), "another volume's");
    }
}

/// A root that its own hash vouches for may still lie about its parts.
#[test]
fn a_well_hashed_lie_is_refused() {
    type Lie = fn(&mut Root);
    let lies: [(&str, Lie); 7] = [
        ("a chunk beyond the pages", |root| root.pages = 256 * root.chunks.last().unwrap().index),
        ("chunks that do not ascend", |root| root.chunks.swap(0, 1)),
        ("a chunk longer than any", |root| root.chunks[0].bytes = u32::MAX),
        ("an end that overflows", |root| root.chunks[0].offset = u64::MAX),
        ("a history of its future", |root| root.history[0].seq = root.seq),
        ("more history than there is", |root| root.history = vec![root.past(); HISTORY_MAX + 1]),
        ("another volume's lineage", |root| {
            root.lineage = Lineage::of(PARENT).fork(Lsn(1), VolumeId([9; 16]))
        }),
    ];
    for (what, lie) in lies {
        let roots = (0..).map(|seed| made(seed).0);
        let mut root = roots
            .filter(|root| root.chunks.len() > 3 && !root.history.is_empty())
            .find(|root| {
                root.chunks.iter().all(|chunk| chunk.volume == OWN) || what != "another volume's lineage"
            })
            .unwrap();
        if what == "another volume's lineage" {
            root.chunks.clear();
        }
        lie(&mut root);
        let hot = root.hot.encode();
        root.encode(&hot);
        let decoded = Root::decode(OWN, root.seq, &root.encoded.clone());
        assert!(matches!(decoded, Err(RootError::Damaged(_))), "{what}: {decoded:?}");
    }
}
