//! The plan alone: every local commit gets one step, by the default chain.

use graft::PageSet;

use super::*;

fn commit(number: u64, work: Work, reads: &[u32], writes: &[u32]) -> Arc<Pending> {
    let set = |pages: &[u32]| PageSet::from_ranges(pages.iter().map(|page| *page..=*page));
    let writes = Writes { pages: set(writes), ..Writes::default() };
    let footprint = Footprint { reads: Some(set(reads)), reads_allocator: false, writes };
    Arc::new(Pending { number, work, footprint })
}

fn writes(pages: &[u32]) -> Writes {
    commit(0, Work::Sql, &[], pages).footprint.writes.clone()
}

/// Each commit's step as a letter; replays write `new`.
fn plan(policy: Policy, settled: u64, pending: Vec<Arc<Pending>>, new: &[u32]) -> String {
    let mut plan = Rebase::new(policy, Validation::READS, false, settled, writes(&[10]), pending);
    let mut steps = String::new();
    while let Some(step) = plan.next_step() {
        steps.push(match step {
            Step::Confirmed(_) => 'c',
            Step::Transplant(_) => 't',
            Step::Replay(..) => {
                plan.replayed(&writes(new));
                'r'
            }
            Step::Branch(..) => 'b',
            Step::Ask(..) => 'a',
        });
    }
    steps
}

#[test]
fn merge_else_replay_else_branch() {
    let m = |seq| Work::Mutation { seq };
    let stack = || {
        vec![
            commit(1, m(1), &[10], &[20]), // in the log already
            commit(2, m(2), &[5], &[6]),   // nobody touched it
            commit(3, m(3), &[20], &[7]),  // read what the first wrote
            commit(4, m(4), &[7], &[8]),   // read what the third wrote before
            commit(5, m(5), &[30], &[31]), // reads what a replay writes now
            commit(6, Work::Sql, &[10], &[40]),
            commit(7, m(6), &[40], &[41]), // stood on what went to the branch
            commit(8, Work::Sql, &[50], &[51]),
            commit(9, Work::Deploy, &[10], &[52]),
        ]
    };
    assert_eq!(plan(Policy::Merge, 1, stack(), &[30]), "ctrrrbrtr");
    assert_eq!(plan(Policy::Replay, 1, stack(), &[30]), "crrrrbrbr");
    assert_eq!(plan(Policy::Fork, 1, stack(), &[30]), "cbbbbbbbb");
}

#[test]
fn the_app_is_asked_only_about_conflicts_and_its_word_counts() {
    let m = |seq| Work::Mutation { seq };
    for (resolution, work, expected) in [
        (Resolution::Default, m(1), 'r'),
        (Resolution::Discard, m(1), 'r'),
        (Resolution::Branch, m(1), 'b'),
        (Resolution::Default, Work::Sql, 'b'),
        (Resolution::Discard, Work::Sql, 'b'),
    ] {
        let pending = vec![commit(1, work, &[10], &[20]), commit(2, m(2), &[1], &[2])];
        let mut plan = Rebase::new(Policy::Merge, Validation::READS, true, 0, writes(&[10]), pending);
        assert!(matches!(plan.next_step(), Some(Step::Ask(..))));
        let step = match plan.resolved(&resolution) {
            Some(Step::Replay(..)) => 'r',
            Some(Step::Branch(..)) => 'b',
            other => panic!("{other:?}"),
        };
        assert_eq!(step, expected, "{resolution:?}, {work:?}");
        assert!(plan.resolved(&resolution).is_none(), "asked once, answered once");
        assert!(matches!(plan.next_step(), Some(Step::Transplant(_))));
        assert!(plan.next_step().is_none());
    }
}
