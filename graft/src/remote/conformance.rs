//! What every [`Remote`] must do, as one suite that takes any of them.
//!
//! It runs here on the memory, the directory, `object_store` and the wrappers, and in the `tests`
//! crate on real S3 servers. It panics with the property that does not hold.

#![allow(clippy::missing_panics_doc, reason = "a test suite: panicking is its answer")]

use bytes::Bytes;
use futures::future::{join, join_all};

use super::{Remote, RemoteError, Tag};

/// How many creators or updaters race for one key.
const RACERS: usize = 32;

/// Checks everything on an empty `remote`. Below `root` (empty, or a key and `/`) nothing may be.
///
/// Under a multi-threaded runtime the races are real; elsewhere they are the orders that one
/// thread makes.
pub async fn check(remote: &dyn Remote, root: &str) {
    missing_objects_are_not_found(remote, root).await;
    created_objects_read_back_whole(remote, root).await;
    a_taken_key_stays_as_it_is(remote, root).await;
    one_of_racing_creators_wins(remote, root).await;
    ranges_are_short_at_the_end(remote, root).await;
    listings_are_in_key_order(remote, root).await;
    odd_characters_are_characters(remote, root).await;
    puts_replace_whatever_is_there(remote, root).await;
    updates_replace_what_was_read_and_nothing_else(remote, root).await;
    one_of_racing_updates_wins(remote, root).await;
    racing_appends_are_never_lost(remote, root).await;
    readers_see_the_old_object_or_the_new(remote, root).await;
    what_is_no_key_is_refused(remote).await;
    deleted_objects_are_gone(remote, root).await;
    large_objects_appear_whole(remote, root).await;
    super::probe(remote, "conformance").await.expect("the store is exclusive");
}

/// Unlike itself everywhere, so that a shifted or cut read cannot pass for it; from 10 bytes on also
/// unlike the body of any other salt below 1,000, so that a race shows who won it.
fn body(len: usize, salt: u32) -> Bytes {
    let byte = |i: u32| {
        let mixed = (u64::from(i) << 32 | u64::from(salt)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        ((mixed ^ (mixed >> 32)).wrapping_mul(0xD6E8_FEB8_6659_FD93) >> 56) as u8
    };
    (0..len as u32).map(byte).collect()
}

#[test]
fn bodies_differ_by_their_salt() {
    let bodies: std::collections::HashSet<Bytes> = (0..1000).map(|salt| body(10, salt)).collect();
    assert_eq!(bodies.len(), 1000);
}

/// Key and length: what a listing says, less the store's clock.
type Row = (String, u64);

fn row(key: &str, bytes: usize) -> Row {
    (key.into(), bytes as u64)
}

async fn rows(remote: &dyn Remote, prefix: &str) -> Vec<Row> {
    let rows = remote.list(prefix, None, 1_000).await.expect("list");
    rows.into_iter().map(|row| (row.key, row.bytes)).collect()
}

/// When the store says it wrote `key`.
async fn modified_ms(remote: &dyn Remote, prefix: &str, key: &str) -> i64 {
    let rows = remote.list(prefix, None, 1_000).await.expect("list");
    rows.iter().find(|row| row.key == key).expect("it is listed").modified_ms
}

async fn keys(remote: &dyn Remote, prefix: &str, after: Option<&str>, limit: usize) -> Vec<String> {
    let rows = remote.list(prefix, after, limit).await.expect("list");
    rows.into_iter().map(|row| row.key).collect()
}

async fn missing_objects_are_not_found(remote: &dyn Remote, root: &str) {
    let key = format!("{root}missing/object");
    let not_found = |e: RemoteError| matches!(&e, RemoteError::NotFound { key: k } if *k == key);
    assert!(remote.get(&key).await.is_err_and(not_found), "get");
    assert!(remote.get_range(&key, 0..10).await.is_err_and(not_found), "get_range");
    assert!(remote.get_range(&key, 3..3).await.is_err_and(not_found), "get_range of nothing");
    assert_eq!(remote.list(&format!("{root}missing/"), None, 10).await.expect("list"), []);
    remote.delete(&key).await.expect("deleting nothing is no error");
}

async fn created_objects_read_back_whole(remote: &dyn Remote, root: &str) {
    for len in [0, 1, 4096, 300_000] {
        let (key, body) = (format!("{root}whole/{len}"), body(len, 1));
        remote.create(&key, body.clone()).await.expect("create");
        assert_eq!(remote.get(&key).await.expect("get"), body, "{len} bytes");
        let listed = rows(remote, &format!("{root}whole/")).await;
        assert!(listed.contains(&row(&key, len)), "{len} bytes are listed at once: {listed:?}");
    }
}

async fn a_taken_key_stays_as_it_is(remote: &dyn Remote, root: &str) {
    let key = format!("{root}taken");
    remote.create(&key, body(100, 1)).await.expect("create");
    for again in [body(100, 1), body(100, 2), body(0, 0)] {
        let lost = remote.create(&key, again).await.expect_err("the key is taken");
        assert!(matches!(&lost, RemoteError::AlreadyExists { key: k } if *k == key), "{lost}");
        assert_eq!(remote.get(&key).await.expect("get"), body(100, 1));
    }
}

async fn one_of_racing_creators_wins(remote: &dyn Remote, root: &str) {
    for (round, len) in [(0, 10), (1, 10), (2, 10_000), (3, 400_000)] {
        let key = format!("{root}race/{round}/log");
        let results = join_all((0..RACERS as u32).map(|i| remote.create(&key, body(len, i)))).await;
        let mut winners = Vec::new();
        for (i, result) in (0_u32..).zip(results) {
            match result {
                Ok(()) => winners.push(i),
                Err(RemoteError::AlreadyExists { .. }) => {}
                // Lost too, or won and unheard; a driver would ask again.
                Err(RemoteError::Unavailable { .. }) => {}
                Err(other) => panic!("creator {i} of round {round}: {other}"),
            }
        }
        assert_eq!(winners.len(), 1, "round {round}: exactly one creator wins, not {winners:?}");
        assert_eq!(remote.get(&key).await.expect("get"), body(len, winners[0]), "round {round}");
    }
}

async fn ranges_are_short_at_the_end(remote: &dyn Remote, root: &str) {
    let (key, whole) = (format!("{root}ranges"), body(10_000, 7));
    remote.create(&key, whole.clone()).await.expect("create");
    for (start, end) in [
        (0, 1),
        (0, 4096),
        (4096, 8192),
        (9_999, 10_000),
        (9_000, 20_000),
        (0, u64::MAX),
        (10_000, 10_001),
        (50_000, 60_000),
        (5, 5),
    ] {
        let expected = whole.slice(
            (start as usize).min(10_000)..(end.min(10_000) as usize).max((start as usize).min(10_000)),
        );
        assert_eq!(remote.get_range(&key, start..end).await.expect("get_range"), expected, "{start}..{end}");
    }
    let empty = format!("{root}ranges-empty");
    remote.create(&empty, Bytes::new()).await.expect("create");
    assert_eq!(remote.get_range(&empty, 0..4096).await.expect("a torn object is short, not an error"), "");
}

async fn listings_are_in_key_order(remote: &dyn Remote, root: &str) {
    // `-` and `.` sort before `/`, `0` after it: folder order is not key order.
    let names = ["a-b", "a.b", "a/a", "a/b/c", "a/b0", "a0", "b", "ba", "c/d/e/f"];
    for (len, name) in names.iter().enumerate().rev() {
        remote.create(&format!("{root}list/{name}"), body(len, 0)).await.expect("create");
    }
    let prefix = format!("{root}list/");
    let full: Vec<String> = names.iter().map(|name| format!("{prefix}{name}")).collect();
    assert!(full.is_sorted());
    let expected: Vec<Row> = full.iter().enumerate().map(|(len, key)| row(key, len)).collect();
    assert_eq!(rows(remote, &prefix).await, expected);
    for limit in 0..=full.len() + 1 {
        let expected = &full[..limit.min(full.len())];
        assert_eq!(keys(remote, &prefix, None, limit).await, expected, "limit {limit}");
    }
    let mut cursors: Vec<String> = full.clone();
    for odd in ["", "a", "a/", "a/b", "a/b/", "a/zzz", "bb", "zz"] {
        cursors.push(format!("{prefix}{odd}"));
    }
    for after in &cursors {
        let expected: Vec<&String> = full.iter().filter(|key| *key > after).collect();
        assert_eq!(
            keys(remote, &prefix, Some(after), 100).await.iter().collect::<Vec<_>>(),
            expected,
            "after {after}"
        );
        let first: Vec<&String> = expected.into_iter().take(2).collect();
        assert_eq!(
            keys(remote, &prefix, Some(after), 2).await.iter().collect::<Vec<_>>(),
            first,
            "after {after}"
        );
    }
    assert_eq!(
        keys(remote, &format!("{prefix}a/"), None, 100).await,
        [format!("{prefix}a/a"), format!("{prefix}a/b/c"), format!("{prefix}a/b0")],
        "a prefix is whole parts"
    );
    let after = format!("{prefix}a-b");
    assert_eq!(
        keys(remote, &format!("{prefix}a/"), Some(&after), 1).await,
        [format!("{prefix}a/a")],
        "`after` may lie before the prefix"
    );
    let all = keys(remote, root, None, 10_000).await;
    assert!(all.is_sorted() && full.iter().all(|key| all.contains(key)), "the root lists everything");
}

async fn odd_characters_are_characters(remote: &dyn Remote, root: &str) {
    let mut names = [
        "%s", "%2F", "%25n", "a b", "a+b", "é", "ö-雪", "q'\"q", "$x", "a&b=c", "#1", "a;b", "x~", "(1)",
        "@", "!",
    ];
    names.sort_unstable();
    let prefix = format!("{root}odd/");
    for (salt, name) in (0..).zip(names) {
        remote.create(&format!("{prefix}{name}"), body(64, salt)).await.expect(name);
    }
    for (salt, name) in (0..).zip(names) {
        assert_eq!(remote.get(&format!("{prefix}{name}")).await.expect(name), body(64, salt), "{name}");
    }
    let full: Vec<String> = names.iter().map(|name| format!("{prefix}{name}")).collect();
    assert_eq!(keys(remote, &prefix, None, 100).await, full);
    for (at, after) in full.iter().enumerate() {
        assert_eq!(
            keys(remote, &prefix, Some(after), 1).await,
            full[at + 1..].iter().take(1).cloned().collect::<Vec<_>>(),
            "after {after}"
        );
    }
}

async fn puts_replace_whatever_is_there(remote: &dyn Remote, root: &str) {
    let (prefix, key) = (format!("{root}put/"), format!("{root}put/here"));
    let mut last_ms = i64::MIN;
    for (salt, len) in [(1, 100), (2, 300_000), (3, 0), (4, 100)] {
        remote.put(&key, body(len, salt)).await.expect("put");
        assert_eq!(remote.get(&key).await.expect("get"), body(len, salt), "put {salt}");
        assert_eq!(rows(remote, &prefix).await, [row(&key, len)], "put {salt}");
        let taken = remote.create(&key, body(1, 9)).await;
        assert!(matches!(taken, Err(RemoteError::AlreadyExists { .. })), "{taken:?}");
        let now_ms = modified_ms(remote, &prefix, &key).await;
        assert!(now_ms >= last_ms, "the store's clock goes on: {last_ms}, then {now_ms}");
        last_ms = now_ms;
    }
    remote.delete(&key).await.expect("delete");
    remote.create(&key, body(10, 5)).await.expect("create");
    remote.put(&key, body(20, 6)).await.expect("a created object can be replaced");
    assert_eq!(remote.get(&key).await.expect("get"), body(20, 6));
}

async fn updates_replace_what_was_read_and_nothing_else(remote: &dyn Remote, root: &str) {
    let (prefix, key) = (format!("{root}update/"), format!("{root}update/owner"));
    let is_changed =
        |e: &RemoteError| matches!(e, RemoteError::Changed { key: k } if *k == format!("{root}update/owner"));
    let missing = remote.get_tagged(&key).await;
    assert!(matches!(missing, Err(RemoteError::NotFound { .. })), "{missing:?}");

    remote.create(&key, body(50, 1)).await.expect("create");
    let (read, first) = remote.get_tagged(&key).await.expect("get_tagged");
    assert_eq!(read, body(50, 1));
    let (_, again) = remote.get_tagged(&key).await.expect("get_tagged");
    assert_eq!(first, again, "one object has one tag");
    // The tag also holds after it went over a wire as text.
    let carried = Tag::new(first.as_str());

    let second = remote.update(&key, body(60, 2), &carried).await.expect("nobody changed it");
    assert_eq!(remote.get(&key).await.expect("get"), body(60, 2));
    assert_eq!(rows(remote, &prefix).await, [row(&key, 60)]);
    let lost = remote.update(&key, body(70, 3), &first).await.expect_err("it was changed");
    assert!(is_changed(&lost), "{lost:?}");
    assert_eq!(remote.get(&key).await.expect("get"), body(60, 2), "the loser wrote nothing");

    let third = remote.update(&key, body(0, 0), &second).await.expect("an update's tag is the next's");
    assert_eq!(remote.get_tagged(&key).await.expect("get_tagged"), (Bytes::new(), third.clone()));
    remote.put(&key, body(80, 4)).await.expect("put");
    let lost = remote.update(&key, body(90, 5), &third).await.expect_err("a put changes it too");
    assert!(is_changed(&lost), "{lost:?}");
    assert_eq!(remote.get(&key).await.expect("get"), body(80, 4));

    let (_, fourth) = remote.get_tagged(&key).await.expect("get_tagged");
    remote.delete(&key).await.expect("delete");
    let lost = remote.update(&key, body(90, 6), &fourth).await.expect_err("it is gone");
    assert!(is_changed(&lost), "{lost:?}");
    assert_eq!(rows(remote, &prefix).await, [], "an update creates nothing");
}

async fn one_of_racing_updates_wins(remote: &dyn Remote, root: &str) {
    for (round, len) in [(0, 10), (1, 10_000), (2, 200_000)] {
        let key = format!("{root}update-race/{round}");
        remote.create(&key, body(len, 999)).await.expect("create");
        let (_, tag) = remote.get_tagged(&key).await.expect("get_tagged");
        let racers = (0..RACERS as u32).map(|i| remote.update(&key, body(len, i), &tag));
        let mut winners = Vec::new();
        for (i, result) in (0_u32..).zip(join_all(racers).await) {
            match result {
                Ok(tag) => winners.push((i, tag)),
                // As with creators.
                Err(RemoteError::Changed { .. } | RemoteError::Unavailable { .. }) => {}
                Err(other) => panic!("updater {i} of round {round}: {other}"),
            }
        }
        assert_eq!(winners.len(), 1, "round {round}: exactly one update wins, not {winners:?}");
        let (winner, tag) = winners.remove(0);
        assert_eq!(remote.get_tagged(&key).await.expect("get_tagged"), (body(len, winner), tag));
    }
}

/// What an owner's lease rests on: read, change, update; and again where it was changed meanwhile.
async fn racing_appends_are_never_lost(remote: &dyn Remote, root: &str) {
    const WRITERS: usize = 8;
    const ENTRIES: usize = 4;
    let key = format!("{root}append");
    remote.create(&key, Bytes::new()).await.expect("create");
    let append = |entry: String| {
        let key = &key;
        async move {
            // Each round that somebody loses, somebody else wins.
            for _ in 0..=4 * WRITERS * ENTRIES {
                let (found, tag) = remote.get_tagged(key).await.expect("get_tagged");
                let mut text = String::from_utf8(found.to_vec()).expect("text");
                if text.contains(&entry) {
                    return;
                }
                text.push_str(&entry);
                match remote.update(key, text.into(), &tag).await {
                    Ok(_) => return,
                    Err(RemoteError::Changed { .. } | RemoteError::Unavailable { .. }) => {}
                    Err(other) => panic!("{entry}: {other}"),
                }
            }
            panic!("{entry} lost every time");
        }
    };
    join_all((0..WRITERS).map(|writer| async move {
        for n in 0..ENTRIES {
            append(format!("{writer}.{n};")).await;
        }
    }))
    .await;
    let text = String::from_utf8(remote.get(&key).await.expect("get").to_vec()).expect("text");
    for writer in 0..WRITERS {
        let own: Vec<&str> =
            text.split_terminator(';').filter(|e| e.starts_with(&format!("{writer}."))).collect();
        let expected: Vec<String> = (0..ENTRIES).map(|n| format!("{writer}.{n}")).collect();
        assert_eq!(own, expected, "each once and in order: {text}");
    }
}

async fn readers_see_the_old_object_or_the_new(remote: &dyn Remote, root: &str) {
    let (key, old, new) = (format!("{root}replaced"), body(900_000, 1), body(1_000_000, 2));
    remote.put(&key, old.clone()).await.expect("put");
    let write = async {
        for _ in 0..3 {
            remote.put(&key, new.clone()).await.expect("put");
            remote.put(&key, old.clone()).await.expect("put");
        }
    };
    let read = async {
        for _ in 0..30 {
            let seen = remote.get(&key).await.expect("it is always there");
            assert!(seen == old || seen == new, "saw {} bytes of neither", seen.len());
        }
    };
    join(write, read).await;
    assert!(remote.get(&key).await.expect("get") == old, "the last put stands");
}

async fn what_is_no_key_is_refused(remote: &dyn Remote) {
    let long = "x".repeat(256);
    for key in ["", "/", "/a", "a/", "a//b", ".", "..", "../a", "a/../b", "a/./b", "a\0b", "a\nb", &long] {
        let refused = |e: RemoteError| matches!(e, RemoteError::Refused { .. });
        assert!(remote.create(key, Bytes::new()).await.is_err_and(refused), "create {key:?}");
        assert!(remote.put(key, Bytes::new()).await.is_err_and(refused), "put {key:?}");
        assert!(remote.get_tagged(key).await.is_err_and(refused), "get_tagged {key:?}");
        let tag = Tag::new("x");
        assert!(remote.update(key, Bytes::new(), &tag).await.is_err_and(refused), "update {key:?}");
        assert!(remote.get(key).await.is_err_and(refused), "get {key:?}");
        assert!(remote.get_range(key, 0..1).await.is_err_and(refused), "get_range {key:?}");
        assert!(remote.delete(key).await.is_err_and(refused), "delete {key:?}");
    }
    for prefix in ["a", "/", "../", "a//", "a/../"] {
        let refused = |e: RemoteError| matches!(e, RemoteError::Refused { .. });
        assert!(remote.list(prefix, None, 1).await.is_err_and(refused), "list {prefix:?}");
    }
}

async fn deleted_objects_are_gone(remote: &dyn Remote, root: &str) {
    let (key, other) = (format!("{root}gone/a"), format!("{root}gone/b"));
    remote.create(&key, body(10, 1)).await.expect("create");
    remote.create(&other, body(10, 2)).await.expect("create");
    remote.delete(&key).await.expect("delete");
    assert!(matches!(remote.get(&key).await, Err(RemoteError::NotFound { .. })));
    assert_eq!(keys(remote, &format!("{root}gone/"), None, 10).await, [other.as_str()]);
    remote.create(&key, body(10, 3)).await.expect("the key is free again");
    assert_eq!(remote.get(&key).await.expect("get"), body(10, 3));
    assert_eq!(remote.get(&other).await.expect("get"), body(10, 2));
}

async fn large_objects_appear_whole(remote: &dyn Remote, root: &str) {
    let (key, whole) = (format!("{root}large/8M"), body(8 << 20, 5));
    let look = async {
        // Reads race the create; each sees nothing or everything.
        for _ in 0..1_000 {
            match remote.get(&key).await {
                Ok(seen) => {
                    assert!(seen == whole, "saw {} of {} bytes", seen.len(), whole.len());
                    break;
                }
                Err(RemoteError::NotFound { .. }) => {}
                Err(other) => panic!("{other}"),
            }
            let listed = rows(remote, &format!("{root}large/")).await;
            assert!(listed.is_empty() || listed == [row(&key, whole.len())], "{listed:?}");
        }
    };
    let (created, ()) = join(remote.create(&key, whole.clone()), look).await;
    created.expect("create");
    assert!(remote.get(&key).await.expect("get") == whole, "8 MiB read back");
    let middle = remote.get_range(&key, (3 << 20)..(3 << 20) + 5000).await.expect("get_range");
    assert_eq!(middle, whole.slice((3 << 20)..(3 << 20) + 5000));
}
