//! What a compaction leaves, and when one is due. That content stays the same is tested with garbage
//! collection, in `gc/tests.rs`.

use super::*;

/// Two of three: pages, commits, share.
#[test]
fn a_compaction_is_due_when_two_of_three_hold() {
    let policy = Policy { pages: 10, commits: 5, percent: 50, every: 1 };
    for (stored, outside, commits, due) in [
        (0, 0, 0, false),
        (100, 9, 4, false),
        (100, 10, 4, false),
        (100, 9, 5, false),
        (100, 10, 5, true),
        (18, 10, 1, true),
        (20, 10, 1, false),
        (8, 6, 5, true),
        (8, 6, 4, false),
    ] {
        let how = Scattered { stored, outside, commits };
        assert_eq!(policy.is_due(&how), due, "{how:?}");
    }
    // Nothing is ever due where nothing is outside, whatever the policy.
    let all = Policy { pages: 0, commits: 0, percent: 0, every: 1 };
    assert!(!all.is_due(&Scattered { stored: 5, outside: 0, commits: 0 }));
}
