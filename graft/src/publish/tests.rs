use futures::executor::block_on;

use super::*;
use crate::remote::memory::MemoryRemote;
use crate::remote::{Fault, Faulty, Request};

const VOLUME: VolumeId = VolumeId([4; 16]);

fn commit(id: u8, now_ms: i64) -> Prepared {
    let draft = Draft {
        volume: VOLUME,
        lsn: Lsn(1),
        id: CommitId([id; 16]),
        parent: ChainHash::ZERO,
        parent_time_ms: 500,
        now_ms,
        pages: 1,
        payload: Bytes::from_static(b"payload"),
        locals: 1,
        checkpoint: Lsn::ZERO,
    };
    prepare(draft, &[(PageIdx::FIRST, vec![id; 512].into())])
}

#[test]
fn the_same_commit_may_be_published_again_and_again() {
    let remote = MemoryRemote::new();
    let ours = commit(1, 1000);
    let first = block_on(publish(&remote, &ours)).unwrap();
    assert_eq!(block_on(publish(&remote, &ours)).unwrap(), first);
    let lost = block_on(publish(&remote, &commit(2, 1000)));
    assert!(matches!(lost, Err(PublishError::Rejected { lsn: Lsn(1) })));
    assert_eq!(block_on(publish(&remote, &ours)).unwrap(), first);
}

/// A create that is on its way may land at any later time: until the LSN is seen occupied, nothing is
/// known, however often the log is read.
#[test]
fn a_create_in_flight_stays_unknown_until_it_or_another_lands() {
    for other_first in [false, true] {
        let store = std::sync::Arc::new(MemoryRemote::new());
        let remote = Faulty::new(store.clone(), 1);
        let ours = commit(1, 1000);
        remote.fail_next(Request::Create, Fault::Delay { requests: 100 });
        let unknown = block_on(publish(&*remote, &ours));
        assert!(matches!(unknown, Err(PublishError::Unknown { lsn: Lsn(1), .. })), "{unknown:?}");
        if other_first {
            block_on(publish(&*store, &commit(2, 1000))).unwrap();
        }
        block_on(remote.land_all()).unwrap();
        match block_on(publish(&*remote, &ours)) {
            Ok(published) => assert_eq!((published.hash, other_first), (ours.head.hash, false)),
            Err(PublishError::Rejected { .. }) => assert!(other_first),
            Err(error) => panic!("{error}"),
        }
    }
}

/// A writer that reads its own commit back through a bad wire was told that it had lost: the id is not
/// its own if a bit of it flips. It would have dropped, or applied twice, what is in the log.
#[test]
fn a_bit_that_flips_on_the_way_back_is_not_a_rejection() {
    let ours = commit(1, 1000);
    for bit in 0..ours.body.len() * 8 {
        let remote = MemoryRemote::new();
        let mut stored = ours.body.to_vec();
        stored[bit / 8] ^= 1 << (bit % 8);
        remote.overwrite(&key::log(VOLUME, Lsn(1)), stored);
        match block_on(publish(&remote, &ours)) {
            Err(PublishError::Damaged(damaged)) => assert!(damaged.key.contains("/log/")),
            // In the body: the pages' own hashes find that.
            Ok(_) => assert!(bit / 8 >= ours.head.encoded.len(), "bit {bit}"),
            Err(error) => panic!("bit {bit}: {error}"),
        }
    }
}

#[test]
fn what_is_no_commit_under_our_lsn_is_damage() {
    let ours = commit(1, 1000);
    let mut elsewhere = commit(1, 1000);
    elsewhere.head.lsn = Lsn(2);
    for stored in
        [Bytes::new(), ours.body.slice(..159), Bytes::from_static(&[0; 4096]), elsewhere.head.encode()]
    {
        let remote = MemoryRemote::new();
        remote.overwrite(&key::log(VOLUME, Lsn(1)), stored);
        let outcome = block_on(publish(&remote, &ours));
        assert!(matches!(outcome, Err(PublishError::Damaged(_))), "{outcome:?}");
    }
}

#[test]
fn times_ascend_whatever_the_clock_says() {
    assert_eq!(commit(1, 1000).head.time_ms, 1000);
    assert_eq!(commit(1, 500).head.time_ms, 501);
    assert_eq!(commit(1, i64::MIN).head.time_ms, 501);
}

#[test]
fn frames_beyond_the_bound_go_to_segments_and_all_of_them() {
    use rand::{Rng, SeedableRng, rngs::StdRng};
    let mut rng = StdRng::seed_from_u64(1);
    let mut draft_of = |pages: u32| {
        let pages: Vec<(PageIdx, Bytes)> = (1..=pages)
            .map(|idx| {
                let mut page = vec![0; 4096];
                rng.fill(&mut page[..]);
                (PageIdx::new(idx).unwrap(), page.into())
            })
            .collect();
        let mut draft = Draft {
            volume: VOLUME,
            lsn: Lsn(1),
            id: CommitId([1; 16]),
            parent: ChainHash::ZERO,
            parent_time_ms: 0,
            now_ms: 1,
            pages: 0,
            payload: Bytes::new(),
            locals: 1,
            checkpoint: Lsn::ZERO,
        };
        draft.pages = pages.len() as u32;
        prepare(draft, &pages)
    };
    let inline = draft_of(60);
    assert!(inline.segments.is_empty() && inline.body.len() > 60 * 4096);
    for (pages, segments) in [(70, 1), (4000, 1), (4500, 2)] {
        let large = draft_of(pages);
        assert_eq!(large.segments.len(), segments, "{pages} pages");
        assert_eq!(large.body.len(), large.head.encoded.len(), "nothing rides inside as well");
        let sizes: Vec<u64> = large.segments.iter().map(Upload::len).collect();
        assert_eq!(large.head.segments, sizes);
        for frame in &large.head.frames {
            let end = frame.offset + u64::from(frame.bytes);
            assert!(frame.segment >= 1 && end <= sizes[frame.segment as usize - 1]);
        }
        assert_eq!(Head::decode(VOLUME, Lsn(1), &large.body).as_ref(), Ok(&large.head));
    }
}
