//! Histories made by hand: each anomaly is found, as what it is, and a clean history passes.

use super::*;

fn txn(who: &str, steps: Vec<Step>) -> Txn {
    Txn { who: who.into(), applied: true, steps }
}

fn append(list: u64, value: u64) -> Step {
    Step::Append { list, value }
}

fn read(list: u64, values: &[u64]) -> Step {
    Step::Read { list, values: values.to_vec() }
}

fn saw(list: u64, n: u64, last: u64) -> Step {
    Step::Saw { list, n, last }
}

/// What is found, as printed.
fn found(history: &[Txn]) -> String {
    match check(history) {
        Ok(extent) => panic!("{extent:?}: nothing was found"),
        Err(anomaly) => anomaly.to_string(),
    }
}

#[test]
fn a_serial_history_passes() {
    let history = [
        txn("a", vec![append(1, 10), append(2, 20)]),
        txn("b", vec![read(1, &[10]), append(1, 11)]),
        txn("c", vec![saw(1, 2, 11), append(2, 21)]),
        txn("d", vec![read(1, &[10, 11]), read(2, &[20, 21])]),
        // An old state may be read late: that is no strict serializability.
        txn("e", vec![read(1, &[]), read(2, &[])]),
        Txn { who: "f".into(), applied: false, steps: vec![append(1, 99)] },
    ];
    let extent = check(&history).unwrap();
    assert_eq!((extent.txns, extent.edges), (6, 8));
}

#[test]
fn what_nobody_read_is_in_no_order() {
    assert!(check(&[txn("a", vec![append(1, 1)]), txn("b", vec![append(1, 2)])]).is_ok());
    assert!(check(&[]).is_ok());
}

#[test]
fn g0_a_dirty_write() {
    let history = [
        txn("a", vec![append(1, 1), append(2, 1)]),
        txn("b", vec![append(1, 2), append(2, 2)]),
        txn("reader", vec![read(1, &[1, 2]), read(2, &[2, 1])]),
    ];
    let text = found(&history);
    assert!(text.contains("(G0, a dirty write)"), "{text}");
    assert!(text.contains("T0 -ww-> T1: T1 appended 2 to list 1 after 1"), "{text}");
    assert!(text.contains("T1 -ww-> T0: T0 appended 1 to list 2 after 2"), "{text}");
}

#[test]
fn g1a_an_aborted_read_whole_or_by_its_end() {
    let rejected = |value| Txn { who: "rejected".into(), applied: false, steps: vec![append(1, value)] };
    let text = found(&[rejected(7), txn("reader", vec![read(1, &[7])])]);
    assert!(text.contains("(G1a, an aborted read)") && text.contains("rejected: appended 7"), "{text}");
    let text = found(&[rejected(7), txn("reader", vec![saw(1, 1, 7), append(2, 1)])]);
    assert!(text.contains("(G1a, an aborted read)") && text.contains("saw 7 in list 1"), "{text}");
}

#[test]
fn g1b_an_intermediate_read() {
    let history = [
        txn("writer", vec![append(1, 1), append(1, 2)]),
        txn("early", vec![read(1, &[1])]),
        txn("late", vec![read(1, &[1, 2])]),
    ];
    let text = found(&history);
    assert!(text.contains("(G1b, an intermediate read)") && text.contains("T1, early"), "{text}");
}

#[test]
fn g1c_a_circular_information_flow() {
    let history = [txn("a", vec![append(1, 1), read(2, &[1])]), txn("b", vec![append(2, 1), read(1, &[1])])];
    let text = found(&history);
    assert!(text.contains("(G1c, a circular information flow)"), "{text}");
    assert!(text.contains("T0 -wr-> T1: T1 read 1, which T0 appended to list 1"), "{text}");
    assert!(text.contains("T1 -wr-> T0: T0 read 1, which T1 appended to list 2"), "{text}");
}

#[test]
fn g_single_read_skew() {
    let history = [
        txn("writer", vec![append(1, 1), append(2, 1)]),
        // Half of it.
        txn("reader", vec![read(1, &[1]), read(2, &[])]),
        txn("later", vec![read(2, &[1])]),
    ];
    let text = found(&history);
    assert!(text.contains("(G-single, read skew)"), "{text}");
    assert!(text.contains("T1 -rw-> T0: T0 appended 1 to list 2 first, where T1 saw nothing yet"), "{text}");
}

#[test]
fn a_lost_update_is_a_g_single_or_a_contradiction() {
    // Both saw the list empty and appended to it.
    let history = [
        txn("a", vec![read(1, &[]), append(1, 1)]),
        txn("b", vec![read(1, &[]), append(1, 2)]),
        txn("reader", vec![read(1, &[1, 2])]),
    ];
    assert!(found(&history).contains("(G-single, read skew)"));
    let gone = [txn("a", vec![append(1, 1), read(1, &[1])]), txn("b", vec![append(1, 2), read(1, &[2])])];
    assert!(found(&gone).contains("contradicting reads"));
}

#[test]
fn g2_write_skew_and_a_long_fork() {
    let history = [
        txn("a", vec![saw(1, 0, 0), append(2, 1)]),
        txn("b", vec![saw(2, 0, 0), append(1, 1)]),
        txn("reader", vec![read(1, &[1]), read(2, &[1])]),
    ];
    let text = found(&history);
    assert!(text.contains("(G2, write skew)"), "{text}");
    assert!(text.contains("T0, a: saw list 1 empty; appended 1 to list 2"), "{text}");
    assert!(text.contains("T0 -rw-> T1") && text.contains("T1 -rw-> T0"), "{text}");
    let fork = [
        txn("a", vec![append(1, 1)]),
        txn("b", vec![append(2, 1)]),
        txn("one", vec![read(1, &[1]), read(2, &[])]),
        txn("two", vec![read(1, &[]), read(2, &[1])]),
        txn("end", vec![read(1, &[1]), read(2, &[1])]),
    ];
    assert!(found(&fork).contains("(G2, write skew)"));
}

#[test]
fn reads_that_contradict_each_other() {
    let writers = [txn("a", vec![append(1, 1)]), txn("b", vec![append(1, 2)])];
    let with = |reads: Vec<Txn>| found(&writers.iter().cloned().chain(reads).collect::<Vec<_>>());
    let orders = with(vec![txn("x", vec![read(1, &[1, 2])]), txn("y", vec![read(1, &[2, 1])])]);
    assert!(orders.contains("contradicting reads"), "{orders}");
    for reads in [read(1, &[1, 1]), read(1, &[1, 5]), saw(1, 1, 5)] {
        let text = with(vec![txn("x", vec![reads])]);
        assert!(text.contains("contradicting reads"), "{text}");
    }
    let text = with(vec![txn("x", vec![read(1, &[1, 2])]), txn("y", vec![saw(1, 1, 2)])]);
    assert!(text.contains("contradicting reads"), "{text}");
    let twice = [txn("a", vec![append(1, 1)]), txn("b", vec![append(1, 1)])];
    assert!(found(&twice).contains("both appended 1"));
}

/// The shortest cycle is shown, not the whole knot.
#[test]
fn a_short_cycle_is_shown_among_many() {
    let mut history: Vec<Txn> = (1..50).map(|v| txn("chain", vec![append(1, v), append(2, v)])).collect();
    let forward: Vec<u64> = (1..50).collect();
    let mut other = forward.clone();
    other.swap(20, 21);
    history.push(txn("reader", vec![read(1, &forward), read(2, &other)]));
    let text = found(&history);
    assert_eq!(text.matches(" -ww-> ").count(), 2, "{text}");
}
