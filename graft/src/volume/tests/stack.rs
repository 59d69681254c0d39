//! Building another stack of local commits aside, and putting it in place.

use super::*;
use crate::checkpoint;
use crate::history::{newest_checkpoint, read_checkpoint};
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

/// The same as a local commit in the place of another.
fn instead(number: u64, pages_before: u32, change: Change) -> Placed {
    let Change { changes, pages: pages_after, payload } = change;
    Placed::Changed(LocalCommit { number, pages_before, pages_after, changes: Arc::new(changes), payload })
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
    let stack = vec![instead(seen[1], 3, page_of(5, 3, 3))];
    let graft = ours.replace_locals(lineage, &seen, pulled, stack, also).unwrap();
    assert_eq!(graft, PageSet::from_iter([page(1)]));
    assert_eq!(bytes_of(&*remote, &ours), [9, 1, 5]);
    assert_ne!(ours.tip().lineage(), lineage, "what was derived from the old stack may hold for nothing");
    assert_eq!(numbers(&ours), [seen[1]], "it has the place of the one it replaced");
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
    let lineage = ours.tip().lineage();
    let replaced = ours.replace_locals(lineage, &seen, pulled.clone(), Vec::new(), Batch::default());
    assert!(matches!(replaced, Err(ReplaceError::Stale)));
    let seen = numbers(&ours);
    ours.seal(1, Bytes::new(), CommitId([9; 16]), 5).unwrap().unwrap();
    let replaced = ours.replace_locals(lineage, &seen, pulled, Vec::new(), Batch::default());
    assert!(matches!(replaced, Err(ReplaceError::Pending)));
    assert_eq!(numbers(&ours), seen);
    assert_eq!(bytes_of(&*remote, &ours), [1, 2, 0, 8]);
}

/// What is in both stacks is not written again, and holds after a restart, also where the base has other
/// pages now than when it was made.
#[test]
fn what_is_kept_is_neither_copied_nor_stored_again() {
    let store = Arc::new(MemoryStore::default());
    let remote = created(512);
    let ours = open(&*remote, kept(&store));
    let theirs = open(&*remote, in_memory());
    write(&ours, 3, &[(1, 1), (2, 1), (3, 1)]);
    push_all(&*remote, &ours, 1).unwrap();
    catch_up(&*remote, &theirs);
    write(&ours, 3, &[(2, 2)]);
    write(&ours, 3, &[(3, 3)]);
    write(&ours, 3, &[(2, 4)]);
    write(&theirs, 5, &[(1, 9), (5, 9)]);
    push_all(&*remote, &theirs, 2).unwrap();

    let (old, seen, lineage) = (ours.locals(), numbers(&ours), ours.tip().lineage());
    let before = store.scan(Space::Local, b"").unwrap();
    let pulled = block_on(ours.pull(&*remote)).unwrap();
    let stack = vec![Placed::Kept(seen[0]), instead(seen[1], 5, page_of(7, 3, 5)), Placed::Kept(seen[2])];
    ours.replace_locals(lineage, &seen, pulled, stack, Batch::default()).unwrap();
    let new = ours.locals();
    assert!(Arc::ptr_eq(&old[0].changes, &new[0].changes) && Arc::ptr_eq(&old[2].changes, &new[2].changes));
    assert!(new.iter().all(|local| (local.pages_before, local.pages_after) == (5, 5)));
    let after = store.scan(Space::Local, b"").unwrap();
    let written: Vec<bool> = before.iter().zip(&after).map(|(a, b)| a != b).collect();
    assert_eq!((written, after.len()), (vec![false, true, false], 3));
    assert_eq!(bytes_of(&*remote, &ours), [9, 4, 7, 0, 9]);
    drop(ours);
    let ours = Volume::load(VOLUME, PageSize::new(512).unwrap(), kept(&store)).unwrap().volume;
    assert_eq!(ours.locals(), new);
    assert_eq!(bytes_of(&*remote, &ours), [9, 4, 7, 0, 9]);
    push_all(&*remote, &ours, 3).unwrap();
    catch_up(&*remote, &theirs);
    assert_eq!(bytes_of(&*remote, &theirs), [9, 4, 7, 0, 9]);
}

/// The numbers may be the same ones: what they stand on is not.
#[test]
fn a_stack_of_the_same_numbers_on_another_base_is_not_what_was_seen() {
    let store = Arc::new(MemoryStore::default());
    let (remote, ours) = diverged(&store);
    let (seen, lineage) = (numbers(&ours), ours.tip().lineage());
    let pulled = block_on(ours.pull(&*remote)).unwrap();
    let stack = || seen.iter().map(|number| Placed::Kept(*number)).collect::<Vec<_>>();
    let place = |lineage, stack| ours.replace_locals(lineage, &seen, pulled.clone(), stack, Batch::default());
    place(lineage, stack()).unwrap();
    assert_eq!(numbers(&ours), seen);
    assert!(matches!(place(lineage, stack()), Err(ReplaceError::Stale)));
    // Nor is a stack taken that names what is not there, or not in order.
    let lineage = ours.tip().lineage();
    for numbers in [[seen[1], seen[0]], [seen[0], seen[1] + 1]] {
        let stack = numbers.map(Placed::Kept).to_vec();
        assert!(matches!(place(lineage, stack), Err(ReplaceError::Stale)));
    }
    assert_eq!(bytes_of(&*remote, &ours), [9, 2, 0, 3]);
}

/// A commit that changes the page count lies on the count that it was made on, or nowhere.
#[test]
fn a_commit_that_resizes_is_not_kept_on_another_size() {
    let store = Arc::new(MemoryStore::default());
    let (remote, ours) = diverged(&store);
    let (seen, lineage) = (numbers(&ours), ours.tip().lineage());
    let theirs = open(&*remote, in_memory());
    write(&theirs, 6, &[(6, 6)]);
    push_all(&*remote, &theirs, 3).unwrap();
    let pulled = block_on(ours.pull(&*remote)).unwrap();
    let stack = seen.iter().map(|number| Placed::Kept(*number)).collect();
    let placed = ours.replace_locals(lineage, &seen, pulled, stack, Batch::default());
    assert!(matches!(placed, Err(ReplaceError::Stale)));
    assert_eq!(bytes_of(&*remote, &ours), [1, 2, 0, 3]);
}

/// Of more than 4 MiB, in parts, in the place of another such: the parts go with it.
#[test]
fn a_large_commit_replaces_a_large_one() {
    let store = Arc::new(MemoryStore::default());
    let remote = created(512);
    let ours = open(&*remote, kept(&store));
    let large = |byte: u8, pages: u32| Change {
        changes: (1..=pages).map(|idx| (page(idx), filled(512, byte))).collect(),
        pages,
        payload: Bytes::new(),
    };
    ours.commit(&ours.tip(), large(1, 30_000)).unwrap();
    let place = |change| {
        let (seen, lineage) = (numbers(&ours), ours.tip().lineage());
        let pulled = block_on(ours.pull(&*remote)).unwrap();
        let stack = vec![instead(seen[0], 0, change)];
        ours.replace_locals(lineage, &seen, pulled, stack, Batch::default()).unwrap();
        // What another process would find: this one's replica is open.
        let mut rows = Batch::default();
        for space in Space::ALL {
            for (key, value) in store.scan(space, b"").unwrap() {
                rows.put(space, key, value);
            }
        }
        let copy = Arc::new(MemoryStore::new());
        copy.write(rows, Durability::Sync).unwrap();
        Volume::load(VOLUME, PageSize::new(512).unwrap(), kept(&copy)).unwrap().volume.locals()
    };
    for (byte, pages, records) in [(2, 20_000, 4), (3, 40_000, 6), (4, 2, 1)] {
        let locals = place(large(byte, pages));
        assert_eq!((locals.len(), locals[0].pages_after), (1, pages));
        assert!(locals[0].changes.values().all(|found| *found == filled(512, byte)));
        assert_eq!(store.scan(Space::Local, b"").unwrap().len(), records, "parts of the old one are gone");
    }
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

/// Simulation, seed 1179: while a rebase ran, what it reads had been moved, so the volume aside went on
/// from the newest checkpoint, and noted that in the store of the replica, which stood before it.
#[test]
fn a_volume_aside_does_not_say_in_the_store_where_the_replica_stands() {
    for in_place in [false, true] {
        let store = Arc::new(MemoryStore::default());
        let (remote, ours) = diverged(&store);
        let theirs = open(&*remote, in_memory());
        let pulled = block_on(ours.pull(&*remote)).unwrap();
        block_on(checkpoint::write(&*remote, &theirs, &theirs.base(), Bytes::new())).unwrap();
        let aside = ours.aside(Some(&pulled), 0);
        let seq = block_on(newest_checkpoint(&*remote, VOLUME)).unwrap();
        let start = block_on(read_checkpoint(&*remote, VOLUME, seq)).unwrap();
        aside.adopt(&start, 0).unwrap();
        assert_eq!(aside.base().checkpoint().map(|root| root.lsn), Some(Lsn(2)));
        if in_place {
            let (seen, lineage) = (numbers(&ours), ours.tip().lineage());
            let stack = vec![instead(seen[0], 3, page_of(5, 3, 3))];
            ours.replace_locals(lineage, &seen, pulled, stack, Batch::default()).unwrap();
        }
        drop((aside, ours));
        let ours = Volume::load(VOLUME, PageSize::new(512).unwrap(), kept(&store)).unwrap().volume;
        let (lsn, bytes) = if in_place { (2, vec![9, 1, 5]) } else { (1, vec![1, 2, 0, 3]) };
        assert_eq!((ours.status().lsn, bytes_of(&*remote, &ours)), (Lsn(lsn), bytes), "{in_place}");
    }
}
