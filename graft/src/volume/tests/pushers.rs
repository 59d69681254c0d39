//! Several who push one replica, or change it while it is pushed.

use std::cell::Cell;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;

use super::*;
use crate::history;
use crate::ids::key;
use crate::publish::publish;
use crate::remote::{Layer, RemoteError};
use crate::store::{Batch, MemoryStore, Space};

const PAGE: usize = 65536;

fn kept_in(store: &SharedStore) -> Options {
    Options { store: Some(store.clone()), disk_bytes: 0, ..Options::default() }
}

/// A replica with one local commit, whose push takes two segments.
fn large(store: &SharedStore) -> (Arc<MemoryRemote>, Arc<Volume>) {
    let noise = |seed: u32| {
        let mut out = vec![0; PAGE];
        blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut out);
        Bytes::from(out)
    };
    let remote = created(PAGE as u32);
    let volume = open(&*remote, kept_in(store));
    let changes = (1..=300).map(|idx| (page(idx), noise(idx))).collect();
    volume.commit(&volume.tip(), Change { changes, pages: 300, payload: Bytes::new() }).unwrap();
    (remote, Arc::new(volume))
}

/// A remote where another ends the push of `volume` while its first segment is on its way, and from
/// then on nothing is read.
#[derive(Debug)]
struct Overtaken {
    inner: Arc<MemoryRemote>,
    volume: Arc<Volume>,
    happened: AtomicBool,
}

#[async_trait]
impl Layer for Overtaken {
    fn inner(&self) -> &dyn Remote {
        &*self.inner
    }
    async fn create(&self, key: &str, body: Bytes) -> Result<(), RemoteError> {
        if let Some(pending) = self.volume.pending().filter(|_| !self.happened.swap(true, Ordering::Relaxed))
        {
            self.volume.confirm(publish(&*self.inner, &pending).await.unwrap()).unwrap();
        }
        self.inner.create(key, body).await
    }
    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, RemoteError> {
        if self.happened.load(Ordering::Relaxed) {
            return Err(RemoteError::Unavailable { key: key.into(), message: "away".into() });
        }
        self.inner.get_range(key, range).await
    }
}

/// Of two that push the same commit, the slower one finds the segments gone with the push that ended.
#[test]
fn a_push_that_another_ended_is_no_damage() {
    let store: SharedStore = Arc::new(MemoryStore::new());
    let (inner, volume) = large(&store);
    let remote = Overtaken { inner, volume: volume.clone(), happened: AtomicBool::new(false) };
    assert_eq!(push_all(&remote, &volume, 1).unwrap(), Pushed::Nothing);
    assert!(remote.happened.load(Ordering::Relaxed));
    assert_eq!((volume.status().lsn, volume.status().ahead), (Lsn(1), 0));
}

/// A push whose segments the local store lost is settled all the same where the log shows how it ended.
#[test]
fn a_push_without_its_segments_is_settled_by_the_log() {
    for ours in [true, false] {
        let store: SharedStore = Arc::new(MemoryStore::new());
        let (remote, volume) = large(&store);
        let sealed = volume.seal(1, Bytes::new(), CommitId([1; 16]), 1).unwrap().unwrap();
        if ours {
            block_on(publish(&*remote, &sealed)).unwrap();
        } else {
            let other = open(&*remote, in_memory());
            write(&other, 1, &[(1, 1)]);
            push_all(&*remote, &other, 2).unwrap();
        }
        let mut batch = Batch::default();
        for (key, _) in store.scan(Space::State, &[&VOLUME.0[..], b"u"].concat()).unwrap() {
            batch.remove(Space::State, key);
        }
        store.write(batch, Durability::Sync).unwrap();
        let pushed = push_all(&*remote, &volume, 3);
        assert!(!volume.status().pending, "{pushed:?}");
        match pushed {
            Ok(pushed) => assert_eq!((pushed, volume.status().ahead), (Pushed::Durable(Lsn(1)), 0)),
            Err(PushError::Publish(PublishError::Rejected { lsn: Lsn(1) })) => {
                assert_eq!((ours, volume.status().ahead), (false, 1));
            }
            Err(error) => panic!("{error}"),
        }
    }
}

/// What another sealed meanwhile is settled, and then the rest goes out: a push that answers that there
/// was nothing leaves nothing.
#[test]
fn a_push_goes_on_where_another_was_sealed_meanwhile() {
    let remote = created(512);
    let volume = open(&*remote, in_memory());
    write(&volume, 2, &[(1, 1)]);
    write(&volume, 2, &[(2, 2)]);
    let payload = |_: &[LocalCommit]| {
        if volume.status().lsn == Lsn::ZERO {
            volume.seal(1, Bytes::new(), CommitId([9; 16]), 1).unwrap().unwrap();
        }
        Bytes::new()
    };
    assert_eq!(block_on(push(&*remote, &volume, payload, ids(1), 5)).unwrap(), Pushed::Durable(Lsn(2)));
    assert_eq!((volume.status().ahead, volume.status().pending), (0, false));
}

/// The payload of a commit is that of the pages it holds, also where local commits were dropped or
/// replaced, and as many made, while it was put together.
#[test]
fn a_payload_never_goes_out_with_the_pages_of_other_commits() {
    let one = |byte: u8| Change {
        changes: BTreeMap::from([(page(1), filled(512, byte))]),
        pages: 1,
        payload: vec![byte].into(),
    };
    for replaced in [false, true] {
        let remote = created(512);
        let volume = open(&*remote, in_memory());
        volume.commit(&volume.tip(), one(1)).unwrap();
        let tries = Cell::new(0);
        let payload = |locals: &[LocalCommit]| {
            tries.set(tries.get() + 1);
            if tries.get() == 1 && replaced {
                let (number, changes) = (locals[0].number, Arc::new(one(2).changes));
                let other =
                    LocalCommit { changes, payload: vec![2].into(), pages_before: 0, ..locals[0].clone() };
                let pulled = Pulled { from: Lsn::ZERO, jump: None, heads: Vec::new() };
                let stack = vec![Placed::Changed(other)];
                let lineage = volume.tip().lineage();
                volume.replace_locals(lineage, &[number], pulled, stack, Batch::default()).unwrap();
            } else if tries.get() == 1 {
                volume.reset().unwrap();
                volume.commit(&volume.tip(), one(2)).unwrap();
            }
            locals[0].payload.clone()
        };
        assert_eq!(block_on(push(&*remote, &volume, payload, ids(1), 5)).unwrap(), Pushed::Durable(Lsn(1)));
        assert_eq!(tries.get(), 2);
        let log = block_on(history::read(&*remote, VOLUME, None)).unwrap();
        assert_eq!(log.heads[0].payload, [2][..]);
        assert_eq!(bytes_of(&*remote, &open(&*remote, in_memory())), [2]);
        assert!(remote.objects().iter().any(|(found, _)| *found == key::log(VOLUME, Lsn(1))));
    }
}
