use graft::PageSet;
use rand::{Rng, SeedableRng, rngs::StdRng};

use super::*;
use crate::vfs::Marks;

fn pages(pages: &[u32]) -> PageSet {
    pages.iter().filter_map(|page| PageIdx::new(*page)).collect()
}
fn answer(reads: &[u32], rows: &[(i64, &str)]) -> Answer {
    let rows = rows.iter().map(|(id, v)| vec![Value::Integer(*id), Value::Text((*v).into())]).collect();
    let rows = Rows { columns: vec!["id".into(), "v".into()], rows };
    Answer { rows, key: vec![0], reads: ReadSet { pages: pages(reads) } }
}
fn commit(written: &[u32]) -> WriteSet {
    WriteSet { pages: pages(written), marks: Marks { allocator: true, schema: false } }
}
fn identity(sql: &str) -> Identity {
    Identity::new(sql.into(), &Params::default(), None)
}

#[test]
fn only_queries_whose_pages_were_touched_are_stale() {
    let mut live: LiveQueries<u8> = LiveQueries::default();
    let a = live.register(identity("a"), Params::default(), answer(&[2, 3], &[]), 0);
    let b = live.register(identity("b"), Params::default(), answer(&[3, 4], &[]), 0);
    live.committed(commit(&[9]));
    assert_eq!(live.stale(), []);
    live.committed(commit(&[4]));
    assert_eq!(live.stale(), [b]);
    live.refreshed(b, answer(&[5], &[]));
    live.committed(commit(&[4]));
    assert_eq!(live.stale(), []);
    live.committed(WriteSet { pages: PageSet::new(), marks: Marks { allocator: false, schema: true } });
    assert_eq!(live.stale(), [a, b]);
}

/// A query that ran before a commit and registers after it must not miss the commit.
#[test]
fn a_query_registered_between_two_commits_misses_neither() {
    let mut live: LiveQueries<u8> = LiveQueries::default();
    let ran_at = live.state();
    live.committed(commit(&[7]));
    let touched = live.register(identity("a"), Params::default(), answer(&[7], &[]), ran_at);
    let untouched = live.register(identity("b"), Params::default(), answer(&[8], &[]), ran_at);
    assert_eq!(live.stale(), [touched]);
    live.refreshed(touched, answer(&[7], &[]));
    live.committed(commit(&[8]));
    assert_eq!(live.stale(), [untouched]);
    // So long ago that the commits since are not all remembered: it must re-run.
    for _ in 0..RECENT_MAX {
        live.committed(commit(&[100]));
    }
    let late = live.register(identity("c"), Params::default(), answer(&[50], &[]), ran_at);
    assert!(live.stale().contains(&late));
}

#[test]
fn equal_results_send_nothing_and_a_query_goes_with_its_last_subscriber() {
    let mut live: LiveQueries<u8> = LiveQueries::default();
    let a = live.register(identity("a"), Params::default(), answer(&[2], &[(1, "x")]), 0);
    live.join(a, 1);
    live.join(a, 2);
    live.committed(commit(&[2]));
    assert_eq!(live.refreshed(a, answer(&[2], &[(1, "x")])), Refreshed::Same);
    assert!(matches!(live.refreshed(a, answer(&[2], &[(1, "y")])), Refreshed::Changed(_)));
    live.leave(a, &1);
    assert_eq!(live.find(&identity("a")), Some(a));
    live.leave(a, &2);
    assert_eq!((live.find(&identity("a")), live.size()), (None, (0, 0)));
}

/// Applies changes as `protocol::Changes` says a client does.
fn apply(rows: &mut Vec<crate::protocol::WireRow>, changes: &Changes) {
    for at in changes.delete.iter().rev() {
        rows.remove(*at as usize);
    }
    for (at, row) in &changes.insert {
        rows.insert(*at as usize, row.clone());
    }
    for (at, row) in &changes.update {
        rows[*at as usize] = row.clone();
    }
}

#[test]
fn a_difference_turns_the_old_rows_into_the_new() {
    for seed in 0..3000 {
        let mut rng = StdRng::seed_from_u64(seed);
        // Few keys, so that keys repeat, move and change their content.
        let mut rows = || -> Vec<Vec<Value>> {
            let count = rng.random_range(0..12);
            (0..count)
                .map(|_| vec![Value::Integer(rng.random_range(0..8)), Value::Integer(rng.random_range(0..3))])
                .collect()
        };
        let (old, new) = (rows(), rows());
        for key in [vec![0], vec![0, 1]] {
            let mut wire = protocol::wire_rows(&old);
            let changes = diff(&old, &new, &key);
            apply(&mut wire, &changes);
            assert_eq!(wire, protocol::wire_rows(&new), "seed {seed}, key {key:?}, {changes:?}");
            assert_eq!(changes.is_empty(), old == new, "seed {seed}");
        }
    }
}

#[test]
fn a_small_change_is_a_small_difference() {
    let row = |id: i64, v: i64| vec![Value::Integer(id), Value::Integer(v)];
    let old: Vec<_> = (0..100).map(|i| row(i, 0)).collect();
    let mut new = old.clone();
    let moved = new.remove(10);
    new.insert(60, moved);
    new[30] = row(31, 7);
    new.remove(80);
    let changes = diff(&old, &new, &[0]);
    assert_eq!((changes.delete.len(), changes.insert.len(), changes.update.len()), (2, 1, 1));
}
