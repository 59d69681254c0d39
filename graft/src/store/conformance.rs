//! What every [`ReplicaStore`] must do, as one suite. It panics with the property that fails.

#![allow(clippy::missing_panics_doc, reason = "a test suite: panicking is its answer")]

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use super::{Batch, Durability, KEY_BYTES_MAX, ReplicaStore, SharedStore, Space, StoreError};

/// Checks everything. `open` gives a store that is empty when its argument is new, and for the
/// same argument again, after all handles are dropped, the one that was written before — or, if
/// the store does not outlive its handles, an empty one.
pub fn check(open: &mut dyn FnMut(&str) -> Result<SharedStore, StoreError>) {
    keys_and_spaces_are_apart(open("spaces").expect("open").as_ref());
    prefixes_end_where_they_should(open("prefixes").expect("open").as_ref());
    the_last_change_of_a_key_wins(open("last").expect("open").as_ref());
    misfit_keys_write_nothing(open("keys").expect("open").as_ref());
    readers_see_whole_batches(open("whole").expect("open"));
    for seed in 0..8 {
        histories_read_like_their_model(open(&format!("model-{seed}")).expect("open").as_ref(), seed);
    }
}

/// Checks that what was written is there after reopening, by the same random histories.
pub fn check_reopen(open: &mut dyn FnMut(&str) -> Result<SharedStore, StoreError>) {
    for seed in 100..104 {
        let mut history = History::new(seed);
        for round in 0..5 {
            let store = open(&format!("reopen-{seed}")).expect("open");
            history.check(store.as_ref());
            for _ in 0..30 {
                history.step(store.as_ref());
            }
            assert_eq!(Arc::strong_count(&store), 1, "round {round}: nobody else holds it");
        }
    }
}

fn put(store: &dyn ReplicaStore, space: Space, key: &[u8], value: &[u8]) {
    let mut batch = Batch::default();
    batch.put(space, Bytes::copy_from_slice(key), Bytes::copy_from_slice(value));
    store.write(batch, Durability::Sync).expect("write");
}

fn keys(store: &dyn ReplicaStore, space: Space, prefix: &[u8]) -> Vec<Vec<u8>> {
    store.scan(space, prefix).expect("scan").into_iter().map(|(key, _)| key.to_vec()).collect()
}

fn keys_and_spaces_are_apart(store: &dyn ReplicaStore) {
    for (i, space) in (0..).zip(Space::ALL) {
        put(store, space, b"key", &[i]);
        assert_eq!(store.get(space, b"key").expect("get").as_deref(), Some(&[i][..]));
    }
    for (i, space) in (0..).zip(Space::ALL) {
        assert_eq!(store.get(space, b"key").expect("get").as_deref(), Some(&[i][..]), "{space:?}");
        assert_eq!(store.get(space, b"ke").expect("get"), None);
        assert_eq!(store.get(space, b"key\0").expect("get"), None);
        assert_eq!(keys(store, space, b""), [b"key"], "{space:?}");
    }
    let mut batch = Batch::default();
    batch.remove(Space::Timeline, &b"key"[..]);
    batch.remove(Space::Timeline, &b"never"[..]);
    store.write(batch, Durability::Buffered).expect("write");
    assert_eq!(store.get(Space::Timeline, b"key").expect("get"), None);
    assert_eq!(keys(store, Space::State, b""), [b"key"], "other spaces keep theirs");
    put(store, Space::Timeline, b"empty", b"");
    assert_eq!(
        store.get(Space::Timeline, b"empty").expect("get").as_deref(),
        Some(&b""[..]),
        "a value may be empty"
    );
    let large = vec![7; 3 << 20];
    put(store, Space::Local, b"large", &large);
    assert_eq!(store.get(Space::Local, b"large").expect("get").as_deref(), Some(&large[..]));
}

fn prefixes_end_where_they_should(store: &dyn ReplicaStore) {
    let all: [&[u8]; 11] = [
        b"\0",
        b"\0\0",
        b"a",
        b"a\0",
        b"a\xfe",
        b"a\xff",
        b"a\xff\xff",
        b"a\xff\xff\x01",
        b"b",
        b"\xff",
        b"\xff\xff\xff",
    ];
    for key in all.iter().rev() {
        put(store, Space::Timeline, key, key);
    }
    // Neighbours that a scan must not run into.
    put(store, Space::Local, b"\xff\xff\xff\xff", b"");
    put(store, Space::State, b"\0", b"");
    for prefix in [
        &b""[..],
        b"\0",
        b"a",
        b"a\xff",
        b"a\xff\xff",
        b"\xff",
        b"\xff\xff",
        b"\xff\xff\xff\xff",
        b"aa",
        b"c",
    ] {
        let expected: Vec<&[u8]> = all.into_iter().filter(|key| key.starts_with(prefix)).collect();
        assert_eq!(keys(store, Space::Timeline, prefix), expected, "prefix {prefix:02x?}");
    }
    for (key, value) in store.scan(Space::Timeline, b"").expect("scan") {
        assert_eq!(key, value, "each key comes with its value");
    }
}

fn the_last_change_of_a_key_wins(store: &dyn ReplicaStore) {
    for removes_last in [false, true] {
        let mut batch = Batch::default();
        for i in 0..20_u8 {
            batch.remove(Space::State, &b"k"[..]);
            batch.put(Space::State, &b"k"[..], vec![i]);
        }
        if removes_last {
            batch.remove(Space::State, &b"k"[..]);
        }
        store.write(batch, Durability::Sync).expect("write");
        let expected = (!removes_last).then_some(&[19][..]);
        assert_eq!(store.get(Space::State, b"k").expect("get").as_deref(), expected);
    }
    store.write(Batch::default(), Durability::Sync).expect("an empty batch");
    store.write(Batch::default(), Durability::Buffered).expect("an empty batch");
}

fn misfit_keys_write_nothing(store: &dyn ReplicaStore) {
    let longest = vec![b'k'; KEY_BYTES_MAX];
    put(store, Space::State, &longest, b"fits");
    for key in [vec![], vec![b'k'; KEY_BYTES_MAX + 1]] {
        let mut batch = Batch::default();
        batch.put(Space::State, &b"before"[..], &b""[..]);
        batch.put(Space::State, key.clone(), &b""[..]);
        let error = store.write(batch, Durability::Sync).expect_err("misfit");
        assert!(matches!(error, StoreError::Key { bytes, .. } if bytes == key.len()), "{error}");
        assert_eq!(store.get(Space::State, b"before").expect("get"), None, "none of the batch");
        assert_eq!(store.get(Space::State, &key).expect("get"), None, "asking is no error");
        if !key.is_empty() {
            assert_eq!(store.scan(Space::State, &key).expect("scan"), [], "asking is no error");
        }
    }
    assert_eq!(keys(store, Space::State, b""), [longest]);
}

/// One thread rewrites forty keys at once, again and again; no scan sees a mixture.
fn readers_see_whole_batches(store: SharedStore) {
    let write = |round: u32| {
        let mut batch = Batch::default();
        for key in 0..40_u8 {
            batch.put(Space::Timeline, vec![key], round.to_be_bytes().to_vec());
        }
        store.write(batch, Durability::Buffered).expect("write");
    };
    write(0);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| (1..300).for_each(write));
        let mut last = 0;
        while !writer.is_finished() {
            let rows = store.scan(Space::Timeline, b"").expect("scan");
            assert_eq!(rows.len(), 40);
            let rounds: Vec<u32> = rows
                .iter()
                .map(|(_, value)| u32::from_be_bytes(value.as_ref().try_into().expect("4 bytes")))
                .collect();
            assert!(rounds.iter().all(|round| *round == rounds[0]), "a mixture: {rounds:?}");
            assert!(rounds[0] >= last, "time runs forward: {last}, then {}", rounds[0]);
            last = rounds[0];
        }
    });
    assert_eq!(store.get(Space::Timeline, &[39]).expect("get").as_deref(), Some(&299_u32.to_be_bytes()[..]));
}

fn histories_read_like_their_model(store: &dyn ReplicaStore, seed: u64) {
    let mut history = History::new(seed);
    for _ in 0..150 {
        history.step(store);
        history.check(store);
    }
}

/// A model and the random steps that it shares with a store.
struct History {
    seed: u64,
    random: u64,
    model: BTreeMap<(Space, Vec<u8>), Vec<u8>>,
}

impl History {
    fn new(seed: u64) -> History {
        History { seed, random: seed, model: BTreeMap::new() }
    }

    /// From 0 up to, not including, `end`.
    fn below(&mut self, end: u64) -> u64 {
        // Knuth's MMIX generator; its high bits are the good ones.
        self.random =
            self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.random >> 33) % end
    }

    fn key(&mut self) -> Vec<u8> {
        let len = 1 + self.below(3);
        (0..len).map(|_| [0, b'a', 0xFE, 0xFF][self.below(4) as usize]).collect()
    }

    /// Writes a random batch to both.
    fn step(&mut self, store: &dyn ReplicaStore) {
        let mut batch = Batch::default();
        for _ in 0..self.below(8) {
            let (space, key) = (Space::ALL[self.below(3) as usize], self.key());
            if self.below(3) == 0 {
                batch.remove(space, key.clone());
                self.model.remove(&(space, key));
            } else {
                let value = vec![self.below(256) as u8; self.below(5_000) as usize];
                batch.put(space, key.clone(), value.clone());
                self.model.insert((space, key), value);
            }
        }
        let durability = if self.below(4) == 0 { Durability::Sync } else { Durability::Buffered };
        store.write(batch, durability).expect("write");
    }

    /// Compares every space, and some prefixes and keys.
    fn check(&mut self, store: &dyn ReplicaStore) {
        for space in Space::ALL {
            let prefix = self.key();
            for prefix in [&[][..], &prefix[..1], &prefix] {
                let found = store.scan(space, prefix).expect("scan");
                let found: Vec<_> = found.iter().map(|(key, value)| (key.as_ref(), value.as_ref())).collect();
                let of_model =
                    self.model.iter().filter(|((at, key), _)| *at == space && key.starts_with(prefix));
                let expected: Vec<_> = of_model.map(|((_, key), value)| (&key[..], &value[..])).collect();
                assert!(found == expected, "seed {}: {space:?} below {prefix:02x?} differs", self.seed);
            }
            let key = self.key();
            let found = store.get(space, &key).expect("get");
            let expected = self.model.get(&(space, key.clone()));
            assert_eq!(
                found.as_deref(),
                expected.map(Vec::as_slice),
                "seed {}: {space:?} {key:02x?}",
                self.seed
            );
        }
    }
}
