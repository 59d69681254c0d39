use rand::{Rng, SeedableRng, rngs::StdRng};

use super::*;

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
        set,
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
