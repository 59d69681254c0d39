//! Damaged objects in the store: a typed error that names the object, never wrong data, never a panic.
//!
//! Every object of a store is truncated, flipped, emptied, swapped with its neighbours, or removed, one
//! at a time; then a replica is opened from it, pulled, read whole and pushed to.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use futures::executor::block_on;
use graft::catalog::{self, CatalogError};
use graft::fetch::{FetchError, RemoteFetch, fetch};
use graft::format::Damaged;
use graft::format::commit::Head;
use graft::format::meta::Meta;
use graft::publish::PublishError;
use graft::pull::PullError;
use graft::remote::memory::MemoryRemote;
use graft::remote::{Remote, RemoteError, SharedRemote};
use graft::volume::{Change, OpenError, Options, PushError, ReadError, Volume, push};
use graft::{CommitId, Lsn, PageIdx, PageSet, PageSize, VolumeId, VolumeName, key};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rusqlite::ErrorCode;
use sqlsync_layer::payload::Payload;
use sqlsync_layer::vfs::Database;

const PAGE: usize = 4096;

fn volume_id(number: u8) -> VolumeId {
    VolumeId([number; 16])
}

fn name(number: u8) -> VolumeName {
    format!("volume-{number}").parse().unwrap()
}

fn in_memory() -> Options {
    Options { locals: None, ..Options::default() }
}

fn page(idx: u32) -> PageIdx {
    PageIdx::new(idx).unwrap()
}

fn content(volume: u8, round: u32, idx: u32) -> Bytes {
    let mut bytes = vec![0; PAGE];
    StdRng::seed_from_u64(u64::from(volume) << 40 | u64::from(round) << 20 | u64::from(idx))
        .fill(&mut bytes[..]);
    bytes.into()
}

fn write(remote: &dyn Remote, number: u8, volume: &Volume, round: u32, pages: impl Iterator<Item = u32>) {
    let changes: BTreeMap<_, _> = pages.map(|idx| (page(idx), content(number, round, idx))).collect();
    volume.commit(&volume.tip(), Change { changes, pages: 120, payload: Bytes::new() }).unwrap();
    let id = || CommitId([number.wrapping_mul(50).wrapping_add(round as u8); 16]);
    block_on(push(remote, volume, |_| Bytes::new(), id, 1)).unwrap();
}

/// Two volumes of 120 pages in four commits each: one whose frames are in a segment, three with frames
/// inside.
fn store() -> Vec<(String, Bytes)> {
    let remote = MemoryRemote::new();
    for number in [1, 2] {
        let meta = Meta { page_size: PageSize::new(PAGE as u32).unwrap(), parent: None };
        block_on(catalog::create(&remote, &name(number), volume_id(number), meta)).unwrap();
        let volume = block_on(Volume::open(&remote, volume_id(number), in_memory())).unwrap().volume;
        write(&remote, number, &volume, 1, 1..=120);
        write(&remote, number, &volume, 2, 1..=3);
        write(&remote, number, &volume, 3, 60..=70);
        write(&remote, number, &volume, 4, [1, 120].into_iter());
    }
    remote.objects()
}

fn expected(number: u8, idx: u32) -> Bytes {
    let round = match idx {
        1 | 120 => 4,
        2 | 3 => 2,
        60..=70 => 3,
        _ => 1,
    };
    content(number, round, idx)
}

fn with(objects: &[(String, Bytes)], changed: &str, body: Option<Bytes>) -> Arc<MemoryRemote> {
    let remote = MemoryRemote::new();
    for (key, bytes) in objects {
        match &body {
            None if key == changed => {}
            Some(body) if key == changed => remote.overwrite(key, body.clone()),
            _ => remote.overwrite(key, bytes.clone()),
        }
    }
    Arc::new(remote)
}

/// What went wrong while volume 1 was looked up, opened and read: nothing, or the keys that the errors
/// named. Panics at data that is not what was written.
fn read_all(remote: &dyn Remote) -> Vec<String> {
    let key_of = |error: &dyn std::fmt::Display, key: &str| {
        let text = error.to_string();
        assert!(text.contains(key), "`{text}` does not name `{key}`");
        key.to_string()
    };
    let id = match block_on(catalog::resolve(remote, &name(1))) {
        Ok(id) => id,
        Err(error @ CatalogError::Damaged(_)) => {
            let CatalogError::Damaged(Damaged { key, .. }) = &error else { unreachable!() };
            return vec![key_of(&error, key)];
        }
        Err(CatalogError::NoSuchVolume { name, .. }) => return vec![key::name(&name)],
        Err(error) => panic!("{error}"),
    };
    assert_eq!(id, volume_id(1));
    let opened = match block_on(Volume::open(remote, id, in_memory())) {
        Ok(opened) => opened,
        Err(error) => {
            let key = match &error {
                OpenError::Catalog(CatalogError::Damaged(damaged)) => damaged.key.clone(),
                OpenError::Catalog(CatalogError::Remote(RemoteError::NotFound { key })) => key.clone(),
                OpenError::Pull(PullError::Damaged(damaged)) => damaged.key.clone(),
                OpenError::Pull(PullError::Diverged { lsn, .. }) => return vec![key::log(id, *lsn)],
                other => panic!("{other}"),
            };
            return vec![key_of(&error, &key)];
        }
    };
    let volume = opened.volume;
    let tip = volume.tip();
    let mut named = Vec::new();
    for idx in 1..=tip.pages() {
        let found = loop {
            match volume.read(&tip, page(idx)) {
                Ok(bytes) => break Some(bytes),
                Err(ReadError::Fault(missing)) => match block_on(fetch(remote, &volume, &tip, &missing)) {
                    Ok(()) => {}
                    Err(error) => {
                        let key = match &error {
                            FetchError::Damaged(damaged) => damaged.key.clone(),
                            FetchError::Remote(RemoteError::NotFound { key }) => key.clone(),
                            other => panic!("{other}"),
                        };
                        named.push(key_of(&error, &key));
                        break None;
                    }
                },
                Err(error) => panic!("{error}"),
            }
        };
        if let Some(found) = found {
            assert!(found == expected_at(volume.status().lsn, idx), "page {idx} is wrong");
        }
    }
    named.dedup();
    named
}

/// Pages as of an LSN: a log whose newest commit is missing is a shorter log.
fn expected_at(lsn: Lsn, idx: u32) -> Bytes {
    match (lsn.0, idx) {
        (4, _) => expected(1, idx),
        (3, 1) => content(1, 2, 1),
        (3, 120) => content(1, 1, 120),
        (3, _) => expected(1, idx),
        (lsn, _) => panic!("the volume is at lsn {lsn}"),
    }
}

/// The objects that a reader of volume 1 needs.
fn mine(objects: &[(String, Bytes)]) -> Vec<(String, Bytes)> {
    let id = volume_id(1).to_string();
    let mine = objects.iter().filter(|(key, _)| key.contains(&id) || *key == key::name(&name(1)));
    mine.cloned().collect()
}

#[test]
fn whatever_happens_to_an_object_is_found_and_named() {
    let objects = store();
    assert_eq!(read_all(&*with(&objects, "", None)), Vec::<String>::new());
    let mine = mine(&objects);
    assert_eq!(mine.len(), 1 + 1 + 4 + 1, "a name, a meta, four commits, a segment");
    let mut rng = StdRng::seed_from_u64(1);
    for (key, bytes) in &mine {
        let mut damages: Vec<(String, Bytes)> = vec![
            ("empty".into(), Bytes::new()),
            ("zeroes".into(), vec![0; bytes.len()].into()),
            ("garbage".into(), Bytes::from_static(b"<html>502 Bad Gateway</html>")),
        ];
        for _ in 0..15 {
            let cut = rng.random_range(0..bytes.len());
            damages.push((format!("cut at {cut}"), bytes.slice(..cut)));
        }
        let head = bytes.len().min(1200) * 8;
        for flip in 0..100 {
            // As many in the head as in the rest.
            let bit = rng.random_range(0..if flip % 2 == 0 { head } else { bytes.len() * 8 });
            let mut flipped = bytes.to_vec();
            flipped[bit / 8] ^= 1 << (bit % 8);
            damages.push((format!("bit {bit} flipped"), flipped.into()));
        }
        for (other, body) in &objects {
            if other != key {
                damages.push((format!("swapped with {other}"), body.clone()));
            }
        }
        for (damage, body) in damages {
            let named = read_all(&*with(&objects, key, Some(body)));
            assert_eq!(named, std::slice::from_ref(key), "{key}: {damage}");
        }
    }
}

#[test]
fn bytes_behind_an_object_change_nothing() {
    let objects = store();
    for (key, bytes) in mine(&objects) {
        if key.contains("/log/") || key.contains("/segments/") {
            let longer = [&bytes[..], &[7; 100]].concat();
            assert_eq!(read_all(&*with(&objects, &key, Some(longer.into()))), Vec::<String>::new(), "{key}");
        }
    }
}

#[test]
fn a_missing_object_is_named() {
    let objects = store();
    for (key, _) in mine(&objects) {
        let named = read_all(&*with(&objects, &key, None));
        // The newest commit alone can be missed by nobody who never saw it.
        let expected = if key == key::log(volume_id(1), Lsn(4)) { vec![] } else { vec![key.clone()] };
        assert_eq!(named, expected, "{key} is missing");
    }
}

/// Sizes and counts in a head that its hash vouches for, and that nothing backs.
#[test]
fn claims_beyond_all_bounds_are_damage() {
    let objects = store();
    let id = volume_id(1);
    let log = key::log(id, Lsn(1));
    let bytes = objects.iter().find(|(key, _)| *key == log).unwrap().1.clone();
    // Unhashed: every length field of the header at its greatest.
    for field in [96, 100, 104, 108] {
        for claim in [u32::MAX, 1 << 30, 1 << 24, 100_000] {
            let mut body = bytes.to_vec();
            body[field..field + 4].copy_from_slice(&claim.to_le_bytes());
            assert_eq!(
                read_all(&*with(&objects, &log, Some(body.into()))),
                std::slice::from_ref(&log),
                "{field}: {claim}"
            );
        }
    }
    // Hashed, as only a faulty writer makes them.
    type Lie = fn(&mut Head);
    let lies: [(&str, Lie); 7] = [
        ("a frame of 4 GiB", |head| head.frames[0].bytes = u32::MAX),
        ("a frame beyond the segment", |head| head.frames[0].offset = 1 << 60),
        ("a frame of no bytes", |head| head.frames[0].bytes = 0),
        ("a frame of another length", |head| head.frames[0].bytes -= 1),
        ("frames in each other's place", |head| {
            let (first, second) = (head.frames[0].offset, head.frames[1].offset);
            (head.frames[0].offset, head.frames[1].offset) = (second, first);
        }),
        ("another page's hash", |head| {
            let mut hashes: Vec<_> = head.hashes.iter().collect();
            hashes.swap(0, 1);
            head.hashes = hashes.into_iter().collect();
        }),
        ("pages for 16 TiB", |head| {
            head.pages = u32::MAX;
            head.set = (&PageSet::from_ranges([1..=119, u32::MAX..=u32::MAX])).into();
        }),
    ];
    for (lie, tell) in lies {
        let remote = MemoryRemote::new();
        for (key, body) in &objects {
            if !key.contains(&format!("{id}/log/")) {
                remote.overwrite(key, body.clone());
            }
        }
        let mut head = Head::decode(id, Lsn(1), &bytes).unwrap();
        tell(&mut head);
        remote.overwrite(&log, head.encode());
        let volume = block_on(Volume::open(&remote, id, in_memory())).unwrap().volume;
        let tip = volume.tip();
        let mut failures = 0;
        for idx in (1..=120).chain([u32::MAX]) {
            match volume.read(&tip, page(idx)) {
                Ok(bytes) => assert!(
                    bytes == content(1, 1, idx) || bytes.iter().all(|b| *b == 0) && idx >= 120,
                    "{lie}: page {idx}"
                ),
                Err(ReadError::PastEnd { .. }) => assert_eq!(idx, u32::MAX, "{lie}"),
                Err(ReadError::Fault(missing)) => match block_on(fetch(&remote, &volume, &tip, &missing)) {
                    Ok(()) => assert!(
                        volume.read(&tip, page(idx)).unwrap() == content(1, 1, idx),
                        "{lie}: page {idx}"
                    ),
                    Err(FetchError::Damaged(_)) => failures += 1,
                    Err(error) => panic!("{lie}: {error}"),
                },
                Err(error) => panic!("{lie}: {error}"),
            }
        }
        assert!(failures > 0, "{lie}");
    }
}

#[test]
fn garbage_in_the_folders_of_logs_and_names_is_named() {
    let objects = store();
    for garbage in ["0", "backup", "fffffffffffffff0.tmp", "a/b"] {
        let remote = with(&objects, "", None);
        let key = format!("{}{garbage}", key::log_prefix(volume_id(1)));
        remote.overwrite(&key, "x");
        assert_eq!(read_all(&*remote), [key]);
    }
    let remote = with(&objects, "", None);
    remote.overwrite("names/.hidden%s", "x");
    let error = block_on(catalog::list(&*remote)).unwrap_err();
    assert!(
        matches!(&error, CatalogError::Damaged(Damaged { key, .. }) if key == "names/.hidden%s"),
        "{error}"
    );
}

/// A bucket that was emptied and filled anew under a replica.
#[test]
fn a_replica_of_a_log_that_was_replaced_says_diverged_and_keeps_what_it_has() {
    let objects = store();
    let id = volume_id(1);
    let before = with(&objects, "", None);
    let volume = block_on(Volume::open(&*before, id, in_memory())).unwrap().volume;
    let after = MemoryRemote::new();
    let meta = Meta { page_size: PageSize::new(PAGE as u32).unwrap(), parent: None };
    block_on(catalog::create(&after, &name(1), id, meta)).unwrap();
    let other = block_on(Volume::open(&after, id, in_memory())).unwrap().volume;
    for round in 1..=6 {
        let outcome = block_on(volume.pull(&after));
        match (round, outcome) {
            (1..=4, Err(PullError::Diverged { lsn, .. })) => assert_eq!(lsn, Lsn(round)),
            // Equal in number: only a commit on top shows that it is another log.
            (5, Ok(pulled)) => assert!(pulled.heads.is_empty()),
            (6, Err(PullError::Diverged { lsn, .. })) => assert_eq!(lsn, Lsn(5)),
            (round, outcome) => panic!("round {round}: {outcome:?}"),
        }
        assert_eq!(volume.status().lsn, Lsn(4));
        write(&after, 9, &other, round as u32, [round as u32].into_iter());
    }
}

#[test]
fn an_lsn_occupied_by_garbage_refuses_a_push_and_keeps_the_work() {
    let objects = store();
    let id = volume_id(1);
    for garbage in [Bytes::new(), Bytes::from_static(b"garbage"), objects[0].1.clone(), vec![0; 5000].into()]
    {
        let remote = with(&objects, "", None);
        let volume = block_on(Volume::open(&*remote, id, in_memory())).unwrap().volume;
        let changes = BTreeMap::from([(page(5), content(1, 9, 5))]);
        volume.commit(&volume.tip(), Change { changes, pages: 120, payload: Bytes::new() }).unwrap();
        remote.overwrite(&key::log(id, Lsn(5)), garbage);
        let error = block_on(push(&*remote, &volume, |_| Bytes::new(), || CommitId([7; 16]), 1)).unwrap_err();
        assert!(
            matches!(&error, PushError::Publish(PublishError::Damaged(d)) if d.key == key::log(id, Lsn(5))),
            "{error}"
        );
        assert_eq!((volume.status().ahead, volume.status().pending), (1, true));
        // Once somebody has looked, the same push goes through.
        block_on(remote.delete(&key::log(id, Lsn(5)))).unwrap();
        block_on(push(&*remote, &volume, |_| Bytes::new(), || CommitId([8; 16]), 1)).unwrap();
        assert_eq!(volume.status().ahead, 0);
    }
}

/// Through SQLite: an I/O error whose reason names the object, and a connection that goes on.
#[test]
fn a_damaged_page_is_an_io_error_and_other_pages_stay_readable() {
    let remote = Arc::new(MemoryRemote::new());
    let id = volume_id(3);
    let meta = Meta { page_size: PageSize::new(PAGE as u32).unwrap(), parent: None };
    block_on(catalog::create(&*remote, &name(3), id, meta)).unwrap();
    let open = || {
        let shared: SharedRemote = remote.clone();
        let volume = block_on(Volume::open(&*remote, id, in_memory())).unwrap().volume;
        Database::new(Arc::new(volume), Arc::new(RemoteFetch::new(shared)))
    };
    let source = open();
    let (writer, _) = source.connect().unwrap();
    let mut commits = 0;
    let mut publish = || {
        commits += 1;
        let id = || CommitId([commits; 16]);
        block_on(push(&*remote, source.volume(), Payload::of_locals, id, 1)).unwrap();
    };
    writer.execute_batch("create table t(id integer primary key, v); with recursive n(i) as (select 1 union all select i + 1 from n where i < 300) insert into t select i, hex(zeroblob(300)) from n").unwrap();
    publish();
    writer.execute_batch("update t set v = 'last' where id = 300").unwrap();
    publish();
    let key = key::log(id, Lsn(2));
    let good = block_on(remote.get(&key)).unwrap();
    let mut bad = good.to_vec();
    let last = bad.len() - 3;
    bad[last] ^= 4;
    remote.overwrite(&key, bad);

    let database = open();
    let (connection, control) = database.connect().unwrap();
    let read =
        |id: i64| connection.query_row("select v from t where id = ?1", [id], |row| row.get::<_, String>(0));
    for _ in 0..2 {
        assert_eq!(read(5).unwrap().len(), 600);
        let error = read(300).unwrap_err();
        assert_eq!(error.sqlite_error_code(), Some(ErrorCode::SystemIoFailure), "{error}");
        let failure = control.take_failure().unwrap();
        assert!(failure.damaged && failure.message.contains(&key), "{failure}");
        let scan = connection.query_row("select sum(length(v)) from t", [], |row| row.get::<_, i64>(0));
        assert_eq!(scan.unwrap_err().sqlite_error_code(), Some(ErrorCode::SystemIoFailure));
        control.take_failure().unwrap();
        assert_eq!(read(6).unwrap().len(), 600);
    }
    // A write that needs the page ends whole; one that does not goes through.
    let error = connection.execute_batch("update t set v = 'x' where id in (1, 300)").unwrap_err();
    assert_eq!(error.sqlite_error_code(), Some(ErrorCode::SystemIoFailure));
    assert!(connection.is_autocommit());
    assert_eq!((read(1).unwrap().len(), database.volume().status().ahead), (600, 0));
    connection.execute_batch("update t set v = 'x' where id = 2").unwrap();
    assert_eq!((read(2).unwrap(), database.volume().status().ahead), ("x".into(), 1));
    // Where the object comes back (a replica of the bucket), so does the page.
    remote.overwrite(&key, good);
    assert_eq!(read(300).unwrap(), "last");
}
