//! Building another stack of local commits aside, and putting it in place.

use super::*;
use crate::store::{MemoryStore, ReplicaStore, SharedStore, Space};

fn kept(store: &Arc<MemoryStore>) -> Options {
    Options { store: Some(store.clone() as SharedStore), ..Options::default() }
}

fn numbers(volume: &Volume) -> Vec<u64> {
    volume.locals().iter().map(|local| local.number).collect()
}

/// Two local commits, and one commit by somebody else.
fn diverged(store: &Arc<MemoryStore>) -> (Arc<MemoryRemote>, Volume) {
    let remote = created(512);
    let ours = open(&*remote, kept(store));
    let theirs = open(&*remote, in_memory());
    write(&ours, 3, &[(1, 1), (2, 1)]);
    push_all(&*remote, &ours, 1).unwrap();
    catch_up(&*remote, &theirs);
    write(&ours, 3, &[(2, 2)]);
    write(&ours, 4, &[(4, 3)]);
    write(&theirs, 3, &[(1, 9)]);
    push_all(&*remote, &theirs, 2).unwrap();
    (remote, ours)
}

fn page_of(byte: u8, idx: u32, pages: u32) -> Change {
    Change {
        changes: BTreeMap::from([(page(idx), filled(512, byte))]),
        pages,
        payload: Bytes::from_static(b"p"),
    }
}

#[test]
fn a_volume_aside_stands_where_it_is_asked_to_and_changes_nothing() {
    let store = Arc::new(MemoryStore::default());
    let (remote, ours) = diverged(&store);
    let pulled = block_on(ours.pull(&*remote)).unwrap();
    let before = store.scan(Space::Local, b"").unwrap();
    assert_eq!(bytes_of(&*remote, &ours.aside(None, 0)), [1, 1, 0]);
    assert_eq!(bytes_of(&*remote, &ours.aside(None, 1)), [1, 2, 0]);
    assert_eq!(bytes_of(&*remote, &ours.aside(None, usize::MAX)), [1, 2, 0, 3]);
    let aside = ours.aside(Some(&pulled), 0);
    assert_eq!(bytes_of(&*remote, &aside), [9, 1, 0]);
    write(&aside, 3, &[(3, 7)]);
    assert_eq!(bytes_of(&*remote, &aside), [9, 1, 7]);
    // What it fetched is cached for both; what it committed is its own.
    assert_eq!(bytes_of(&*remote, &ours), [1, 2, 0, 3]);
    assert_eq!(store.scan(Space::Local, b"").unwrap(), before);
}

#[test]
fn a_stack_is_replaced_whole_with_what_goes_along_also_after_a_restart() {
    let store = Arc::new(MemoryStore::default());
    let (remote, ours) = diverged(&store);
    let pulled = block_on(ours.pull(&*remote)).unwrap();
    let (seen, lineage) = (numbers(&ours), ours.tip().lineage());
    let mut also = Batch::default();
    also.put(Space::Timeline, &b"k"[..], &b"v"[..]);
    let graft = ours.replace_locals(&seen, pulled, vec![page_of(5, 3, 3)], also).unwrap();
    assert_eq!(graft, PageSet::from_iter([page(1)]));
    assert_eq!(bytes_of(&*remote, &ours), [9, 1, 5]);
    assert_ne!(ours.tip().lineage(), lineage, "what was derived from the old stack may hold for nothing");
    assert!(numbers(&ours)[0] > seen[1], "numbers are not used twice");
    assert_eq!(store.get(Space::Timeline, b"k").unwrap().as_deref(), Some(&b"v"[..]));
    drop(ours);
    let ours = Volume::load(VOLUME, PageSize::new(512).unwrap(), kept(&store)).unwrap().volume;
    assert_eq!((ours.status().lsn, ours.status().ahead), (Lsn(2), 1));
    assert_eq!(bytes_of(&*remote, &ours), [9, 1, 5]);
    push_all(&*remote, &ours, 3).unwrap();
    assert_eq!(ours.status().ahead, 0);
}

#[test]
fn nothing_is_replaced_that_was_not_seen_or_may_be_in_the_log() {
    let store = Arc::new(MemoryStore::default());
    let (remote, ours) = diverged(&store);
    let pulled = block_on(ours.pull(&*remote)).unwrap();
    let seen = numbers(&ours);
    write(&ours, 4, &[(4, 8)]);
    let replaced = ours.replace_locals(&seen, pulled.clone(), Vec::new(), Batch::default());
    assert!(matches!(replaced, Err(ReplaceError::Stale)));
    let seen = numbers(&ours);
    ours.seal(1, Bytes::new(), CommitId([9; 16]), 5).unwrap().unwrap();
    let replaced = ours.replace_locals(&seen, pulled, Vec::new(), Batch::default());
    assert!(matches!(replaced, Err(ReplaceError::Pending)));
    assert_eq!(numbers(&ours), seen);
    assert_eq!(bytes_of(&*remote, &ours), [1, 2, 0, 8]);
}

/// A commit and what explains it are in the store together, or neither is.
#[test]
fn a_commit_takes_its_timeline_along() {
    let store = Arc::new(MemoryStore::default());
    let remote = created(512);
    let ours = open(&*remote, kept(&store));
    let tip = ours.tip();
    let entry = |value: &'static [u8]| {
        let mut also = Batch::default();
        also.put(Space::Timeline, &b"k"[..], value);
        also
    };
    ours.commit_with(&tip, page_of(1, 1, 1), entry(b"first")).unwrap();
    let stale = ours.commit_with(&tip, page_of(1, 1, 1), entry(b"second"));
    assert!(matches!(stale, Err(CommitError::Stale)));
    assert_eq!(store.get(Space::Timeline, b"k").unwrap().as_deref(), Some(&b"first"[..]));
    assert_eq!(store.scan(Space::Local, b"").unwrap().len(), 1);
}
