//! Every object of a volume, damaged in every way, is found by name; a sound volume has no findings.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use futures::executor::block_on;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

use super::*;
use crate::compact::{self, ByNumber, Scope};
use crate::format::meta::Meta;
use crate::gc::{Retention, collect};
use crate::ids::{CommitId, PageSize};
use crate::remote::MemoryRemote;
use crate::volume::{Change, push};
use crate::{catalog, checkpoint};

const VOLUME: VolumeId = VolumeId([4; 16]);
const PAGE: usize = 16_384;

fn commits(remote: &MemoryRemote, count: u128, rng: &mut StdRng) {
    let options = Options { store: None, locals: None, ..Options::default() };
    let volume = block_on(Volume::open(remote, VOLUME, options)).unwrap().volume;
    for _ in 0..count {
        let mut changes = BTreeMap::new();
        for _ in 0..rng.random_range(1..25) {
            let mut bytes = vec![0; PAGE];
            rng.fill(&mut bytes[..]);
            changes.insert(PageIdx::new(rng.random_range(1..=60)).unwrap(), Bytes::from(bytes));
        }
        volume.commit(&volume.tip(), Change { changes, pages: 60, payload: Bytes::new() }).unwrap();
        block_on(push(remote, &volume, |_| Bytes::new(), || CommitId(rng.random()), 0)).unwrap();
    }
}

/// A volume with tombstones, checkpoints, a compaction, commits with and without segments.
fn volume(seed: u64) -> Arc<MemoryRemote> {
    let remote = Arc::new(MemoryRemote::new());
    let mut rng = StdRng::seed_from_u64(seed);
    let meta = Meta { page_size: PageSize::new(PAGE as u32).unwrap(), parent: None };
    block_on(catalog::create(&*remote, &"v".parse().unwrap(), VOLUME, meta)).unwrap();
    let open = || {
        let options = Options { store: None, locals: None, ..Options::default() };
        block_on(Volume::open(&*remote, VOLUME, options)).unwrap().volume
    };
    let write = |volume: &Volume| {
        block_on(checkpoint::write(&*remote, volume, &volume.base(), Bytes::from_static(b"state"))).unwrap();
    };
    commits(&remote, 5, &mut rng);
    write(&open());
    commits(&remote, 5, &mut rng);
    let volume = open();
    let moved = compact::gather(&*remote, &volume, &ByNumber, Scope::All, CommitId([1; 16]), &|_, _| {});
    let moved = block_on(moved).unwrap();
    block_on(compact::publish(&*remote, &volume, &volume.base(), &moved, Bytes::new())).unwrap();
    let retention = Retention { keep_ms: 0, keep_commits: 0, grace_ms: 0 };
    let plan = block_on(collect(&*remote, VOLUME, retention, i64::MAX, &|_, _| {})).unwrap();
    assert!(plan.doomed.len() > 5);
    commits(&remote, 3, &mut rng);
    write(&open());
    commits(&remote, 2, &mut rng);
    remote
}

fn verified(remote: &MemoryRemote) -> Report {
    block_on(verify(remote, VOLUME, &|_| {})).unwrap()
}

#[test]
fn a_sound_volume_has_no_findings_and_orphans_are_no_damage() {
    let remote = volume(1);
    let report = verified(&remote);
    assert!(report.is_sound() && report.orphans.is_empty(), "{report:?}");
    assert_eq!((report.from, report.lsn, report.commits, report.checkpoints), (Lsn(10), Lsn(15), 5, 2));
    assert!(report.pages > 50 && report.frames > 4 && report.bytes > 50 * PAGE as u64, "{report:?}");
    let stray = key::segment(VOLUME, Lsn(16), CommitId([9; 16]), 1);
    block_on(remote.create(&stray, Bytes::from_static(b"an upload"))).unwrap();
    let report = verified(&remote);
    assert!(report.is_sound());
    assert_eq!(report.orphans, [stray]);
}

/// A flipped bit, a cut and a missing object, in every object that the readable states are made of.
#[test]
fn whatever_is_damaged_is_named() {
    let sound = volume(2);
    let mut rng = StdRng::seed_from_u64(7);
    let rows = block_on(list_all(&*sound, &format!("volumes/{VOLUME}/"))).unwrap();
    let mut named = 0;
    for row in rows.iter().filter(|row| row.bytes > TOMBSTONE_BYTES as u64) {
        let whole = block_on(sound.get(&row.key)).unwrap();
        let mut flipped = whole.to_vec();
        let at = rng.random_range(0..flipped.len());
        flipped[at] ^= 1 << rng.random_range(0..8);
        let cut = whole.slice(..rng.random_range(0..whole.len()));
        for (what, bytes) in [("flipped", Some(flipped.into())), ("cut", Some(cut)), ("missing", None)] {
            match bytes {
                Some(bytes) => block_on(sound.put(&row.key, bytes)).unwrap(),
                None => block_on(sound.delete(&row.key)).unwrap(),
            }
            let report = verified(&sound);
            block_on(sound.put(&row.key, whole.clone())).unwrap();
            if report.is_sound() {
                // Only what no readable state reads may be damaged unnoticed.
                // The end of the log or of the checkpoints may be gone: it might never have been there.
                let last = what == "missing" && rows.iter().find(|r| same_folder(r, row)) == Some(row);
                let read = frames_of_newest(&sound, &row.key);
                assert!(!read || last, "{what} {} went unnoticed", row.key);
            } else {
                assert!(report.findings.iter().any(|f| f.key == row.key), "{what} {}: {report:?}", row.key);
                let gone =
                    report.findings.iter().filter(|f| f.key == row.key && f.what == "it does not exist");
                assert!(gone.count() <= 1, "{what} {} is said once: {report:?}", row.key);
                named += 1;
            }
        }
    }
    assert!(named > 20, "{named}");
    assert!(verified(&sound).is_sound(), "everything was put back");
}

fn same_folder(a: &Listed, b: &Listed) -> bool {
    let folder = |row: &Listed| row.key.rsplit_once('/').map(|(folder, _)| folder.to_string());
    folder(a) == folder(b)
}

/// Whether the newest state reads a frame of the object, or it is one that is read whole.
fn frames_of_newest(remote: &MemoryRemote, key: &str) -> bool {
    let options = Options { store: None, locals: None, ..Options::default() };
    let volume = block_on(Volume::open(remote, VOLUME, options)).unwrap().volume;
    let base = volume.base();
    let all: PageSet = (1..=base.pages()).filter_map(PageIdx::new).collect();
    block_on(chunks::load(remote, &volume, &base, &all)).unwrap();
    let live = all.iter().filter(|page| match base.location(*page) {
        Location::Frame(frame, _) => &*frame.key == key,
        _ => false,
    });
    key.contains("/checkpoints/") || (key.contains("/segments/") && live.count() > 30)
}
