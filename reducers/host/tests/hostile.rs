//! Guests that misbehave while they run: each is a failure of that run alone.

mod common;

use common::{DONE, FakeSql, Parts, escaped, go, host, limit, trap};
use reducers_abi::codec::{encode_call, encode_outcome, encode_rows, encode_values};
use reducers_abi::{Call, Entry, Failure, Rows, Sql, SqlError, Value};

/// Runs a module whose `graft_call` is `call` and that has `data` at 8192.
fn run_with(call: &'static str, data: &[u8]) -> Result<FakeSql, Failure> {
    let more = format!("(data (i32.const 8192) \"{}\")", escaped(data));
    Parts { call, more, ..Parts::default() }.run(&host())
}

fn run(call: &'static str) -> Result<FakeSql, Failure> {
    run_with(call, b"")
}

#[test]
fn a_loop_ends_at_the_time_limit() {
    let message = limit(run("(loop $l (br $l)) unreachable"));
    assert!(message.contains("500ms"), "{message}");
}

#[test]
fn a_loop_in_alloc_or_start_ends_too() {
    let parts = Parts { alloc: "(loop $l (br $l)) unreachable", ..Parts::default() };
    limit(parts.run(&host()));
    let more = "(func $start (loop $l (br $l))) (start $start)".into();
    let error = Parts { more, ..Parts::default() }.load(&host()).unwrap_err();
    assert!(error.to_string().contains("computed for more than"), "{error}");
}

/// A loop of host calls, each of which is quick.
#[test]
fn a_loop_of_host_calls_ends() {
    let call = "(loop $l
        (drop (call $execute (i32.const 0) (i32.const 0) (i32.const 8192) (i32.const 4)))
        (br $l)) unreachable";
    let message = limit(run(call));
    assert!(message.contains("1000 host calls") || message.contains("500ms"), "{message}");
    limit(run("(loop $l (call $log (i32.const 0) (i32.const 0)) (br $l)) unreachable"));
}

/// Time in host calls is not the guest's own, but it is bounded as well.
#[test]
fn slow_statements_count_against_the_total_alone() {
    struct Slow(std::time::Duration);
    impl Sql for Slow {
        #[allow(clippy::disallowed_methods, reason = "stands for a slow object store")]
        fn execute(&mut self, _: &str, _: &[Value]) -> Result<u64, SqlError> {
            std::thread::sleep(self.0);
            Ok(0)
        }
        fn query(&mut self, _: &str, _: &[Value]) -> Result<Rows, SqlError> {
            Ok(Rows::default())
        }
        fn log(&mut self, _: &str) {}
    }
    let once = Parts {
        call: "(drop (call $execute (i32.const 0) (i32.const 0) (i32.const 8192) (i32.const 4)))
            (i64.const 0x0000080000000001)",
        ..Parts::default()
    };
    let host = host();
    let module = once.load(&host).unwrap();
    // More than the time limit, half of the total.
    assert_eq!(go(&module, &mut Slow(std::time::Duration::from_millis(700))), Ok(()));
    let outcome = go(&module, &mut Slow(std::time::Duration::from_millis(1_700)));
    assert!(matches!(&outcome, Err(Failure::Limit { message }) if message.contains("1.5s")), "{outcome:?}");
    common::assert_usable(&host);
}

#[test]
fn memory_beyond_the_limit_ends_the_run() {
    let message = limit(run("(loop $l (drop (memory.grow (i32.const 1))) (br $l)) unreachable"));
    assert!(message.contains("1048576"), "{message}");
    limit(run("(drop (memory.grow (i32.const 65535))) unreachable"));
    // Within the limit it grows.
    let call = "(if (i32.eq (memory.grow (i32.const 15)) (i32.const -1)) (then unreachable))
        (i64.const 0x0000080000000001)";
    run(call).unwrap();
}

#[test]
fn a_table_beyond_the_limit_ends_the_run() {
    let parts = Parts {
        call: "(drop (table.grow $t (ref.null func) (i32.const 1000000))) unreachable",
        more: "(table $t 1 funcref)".into(),
        ..Parts::default()
    };
    limit(parts.run(&host()));
}

#[test]
fn recursion_ends_at_the_stack_limit() {
    let parts = Parts {
        call: "(call $deep (i64.const 1))",
        more: "(func $deep (param i64) (result i64)
            (i64.add (call $deep (i64.add (local.get 0) (i64.const 1))) (local.get 0)))"
            .into(),
        ..Parts::default()
    };
    assert!(limit(parts.run(&host())).contains("stack"));
}

#[test]
fn traps_say_what_happened() {
    assert!(trap(run("unreachable")).contains("unreachable"));
    let message = trap(run("(i64.div_u (i64.const 1) (i64.const 0))"));
    assert!(message.contains("divide by zero"), "{message}");
    let message = trap(run("(i64.load (i32.const 65530))"));
    assert!(message.contains("out of bounds"), "{message}");
}

#[test]
fn an_abort_brings_its_message() {
    let message =
        trap(run_with("(call $abort (i32.const 8192) (i32.const 12)) unreachable", b"no %s here \xff"));
    assert_eq!(message, "no %s here \u{fffd}");
    // A length beyond the limit is cut, one that leaves memory is refused.
    let message = trap(run("(call $abort (i32.const 65500) (i32.const -1)) unreachable"));
    assert!(message.contains("outside of its memory"), "{message}");
}

/// Addresses and lengths outside of memory, also where their sum overflows 32 bits.
#[test]
fn ranges_outside_of_memory_are_refused() {
    for call in [
        "(drop (call $execute (i32.const 65530) (i32.const 100) (i32.const 8192) (i32.const 4))) unreachable",
        "(drop (call $execute (i32.const -1) (i32.const 2) (i32.const 8192) (i32.const 4))) unreachable",
        "(drop (call $execute (i32.const 0) (i32.const 0) (i32.const -4) (i32.const 8))) unreachable",
        "(drop (call $query (i32.const -16) (i32.const 17) (i32.const 8192) (i32.const 4))) unreachable",
        "(call $log (i32.const 65536) (i32.const 1)) unreachable",
        "(call $log (i32.const -1) (i32.const -1)) unreachable",
        // The answer of `execute` has nine bytes; there are eight up to the end of memory.
        "(drop (call $execute (i32.const 0) (i32.const 0) (i32.const 8192) (i32.const 4)))
         (call $take (i32.const 65528) (i32.const 9)) unreachable",
        "(drop (call $execute (i32.const 0) (i32.const 0) (i32.const 8192) (i32.const 4)))
         (call $take (i32.const -1) (i32.const 9)) unreachable",
        // An outcome of one byte behind the end, and one far behind it.
        "(i64.const 0x0001000000000001)",
        "(i64.const 0xffffffff00000001)",
    ] {
        let message = trap(run(call));
        assert!(message.contains("outside of its memory"), "{call}: {message}");
    }
}

#[test]
fn an_allocator_that_lies_is_refused() {
    for alloc in ["(i32.const 65536)", "(i32.const -1)", "(i32.const 65535)"] {
        let message = trap(Parts { alloc, ..Parts::default() }.run(&host()));
        assert!(message.contains("graft_alloc"), "{message}");
    }
}

#[test]
fn take_must_match_what_waits() {
    let message = trap(run("(call $take (i32.const 8192) (i32.const 0)) unreachable"));
    assert!(message.contains("without an answer"), "{message}");
    let execute = "(drop (call $execute (i32.const 0) (i32.const 0) (i32.const 8192) (i32.const 4)))";
    let short: &'static str =
        format!("{execute} (call $take (i32.const 8192) (i32.const 8)) unreachable").leak();
    assert!(trap(run(short)).contains("take of 8 bytes where the answer has 9"));
    let twice = format!(
        "{execute} (call $take (i32.const 9000) (i32.const 9)) (call $take (i32.const 9000) (i32.const 9)) unreachable"
    );
    assert!(trap(run(twice.leak())).contains("without an answer"));
    // An answer nobody takes is replaced by the next, and one that is left over is dropped.
    let left = format!("{execute} {execute} (call $take (i32.const 9000) (i32.const 9)) {execute} {DONE}");
    assert_eq!(run(left.leak()).unwrap().statements.len(), 3);
}

#[test]
fn text_that_is_not_utf8_is_refused() {
    let message = trap(run_with("(call $log (i32.const 8192) (i32.const 2)) unreachable", b"\xff\xfe"));
    assert!(message.contains("not UTF-8"), "{message}");
    let call =
        "(drop (call $execute (i32.const 8192) (i32.const 2) (i32.const 9000) (i32.const 4))) unreachable";
    assert!(trap(run_with(call, b"\xff\xfe")).contains("not UTF-8"));
}

#[test]
fn damaged_parameter_lists_are_refused() {
    let call =
        "(drop (call $execute (i32.const 0) (i32.const 0) (i32.const 8192) (i32.const 4))) unreachable";
    let message = trap(run_with(call, &[9, 0, 0, 0]));
    assert!(message.contains("parameter list"), "{message}");
    assert!(trap(run_with(call, &[0xff; 4])).contains("parameter list"));
}

#[test]
fn statements_beyond_the_limit_are_refused() {
    let call =
        "(drop (call $execute (i32.const 0) (i32.const 997) (i32.const 8192) (i32.const 4))) unreachable";
    assert!(limit(run(call)).contains("1001 bytes"));
    // Both lengths at their greatest do not overflow.
    limit(run("(drop (call $query (i32.const 0) (i32.const -1) (i32.const 0) (i32.const -1))) unreachable"));
}

#[test]
fn damaged_outcomes_are_refused() {
    for (data, call) in [
        (&[7u8][..], "(i64.const 0x0000200000000001)"),
        (&[1, 255, 255, 255, 255], "(i64.const 0x0000200000000005)"),
        (&[0, 0], "(i64.const 0x0000200000000002)"),
        (&[], "(i64.const 0x0000200000000000)"),
    ] {
        let message = trap(run_with(call, data));
        assert!(message.contains("outcome is damaged"), "{message}");
    }
    limit(run("(i64.const 0x00002000ffffffff)"));
}

#[test]
fn a_refusal_is_passed_on_and_cut() {
    let refused = |text: &str| {
        let outcome = encode_outcome(&Err(Failure::Refused { message: text.into() }));
        let call: &'static str = format!("(i64.const {})", (8192u64 << 32) | outcome.len() as u64).leak();
        match run_with(call, &outcome) {
            Err(Failure::Refused { message }) => message,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(refused("no %s"), "no %s");
    // The limit of 100 bytes falls inside of the 34th three-byte letter.
    assert_eq!(refused(&"字".repeat(60)), format!("{}…", "字".repeat(33)));
}

#[test]
fn results_beyond_the_limits_end_the_run() {
    let host = host();
    let call = "(drop (call $query (i32.const 0) (i32.const 0) (i32.const 8192) (i32.const 4)))
        (i64.const 0x0000080000000001)";
    let module = Parts { call, ..Parts::default() }.load(&host).unwrap();
    let run = |rows: Vec<Vec<Value>>| {
        let rows = Rows { columns: vec!["a".into()], rows };
        go(&module, &mut FakeSql { rows, ..FakeSql::default() })
    };
    assert_eq!(run(vec![vec![Value::Integer(1)]; 10]), Ok(()));
    let outcome = run(vec![vec![Value::Integer(1)]; 11]);
    assert!(
        matches!(&outcome, Err(Failure::Limit { message }) if message.contains("11 rows")),
        "{outcome:?}"
    );
    let outcome = run(vec![vec![Value::Blob(vec![0; 2000])]]);
    assert!(matches!(&outcome, Err(Failure::Limit { message }) if message.contains("bytes")), "{outcome:?}");
}

#[test]
fn logs_are_bounded_and_say_so() {
    let log = "(call $log (i32.const 8192) (i32.const 2))";
    let call: &'static str = format!("{log} {log} {log} {log} {log} {DONE}").leak();
    let sql = run_with(call, b"hi").unwrap();
    assert_eq!(sql.lines.len(), 4);
    assert_eq!(sql.lines[..3], ["hi", "hi", "hi"]);
    assert!(sql.lines[3].contains("at most 3 lines"), "{:?}", sql.lines);
}

/// A start function runs before the memory is known, so it cannot call the host.
#[test]
fn host_calls_from_a_start_function_are_refused() {
    let more = "(func $start (call $log (i32.const 0) (i32.const 0))) (start $start)".into();
    let error = Parts { more, ..Parts::default() }.load(&host()).unwrap_err();
    assert!(error.to_string().contains("start function"), "{error}");
}

/// Memory and globals of one run are not seen by the next, although instances come from a pool.
#[test]
fn every_run_starts_fresh() {
    let host = host();
    let call = "(if (i32.load (i32.const 60000)) (then unreachable))
        (if (global.get $seen) (then unreachable))
        (i32.store (i32.const 60000) (i32.const 1))
        (global.set $seen (i32.const 1))
        (drop (memory.grow (i32.const 1)))
        (i32.store (i32.const 70000) (i32.const 1))
        (i64.const 0x0000080000000001)";
    let more = "(global $seen (mut i32) (i32.const 0))".into();
    let module = Parts { call, more, ..Parts::default() }.load(&host).unwrap();
    for _ in 0..10 {
        assert_eq!(go(&module, &mut FakeSql::default()), Ok(()));
    }
}

/// A NaN of whatever bits arrives as NULL, in SQL parameters as in anything else.
#[test]
fn nan_arrives_as_null() {
    let mut params = encode_values(&[Value::Real(1.0)]);
    params[5..].copy_from_slice(&0x7ff8_dead_beef_0001u64.to_le_bytes());
    let call = "(drop (call $execute (i32.const 0) (i32.const 0) (i32.const 8192) (i32.const 13)))
        (i64.const 0x0000080000000001)";
    let sql = run_with(call, &params).unwrap();
    assert_eq!(sql.statements, [(String::new(), vec![Value::Null])]);
}

/// The guest sees exactly the bytes of the call and of the answers.
#[test]
fn calls_and_answers_arrive_byte_for_byte() {
    let host = host();
    let entry = Entry::Reducer { name: "go", args: &[] };
    let expected = encode_call(&Call { entry, user: "u", now_ms: 1, seed: 2 });
    let rows = Rows { columns: vec!["a".into()], rows: vec![vec![Value::Text("x".into())]] };
    let answer = encode_rows(&Ok(rows.clone()));
    // Sends its call as a log line is not possible (not UTF-8), so it is passed as a parameter: a list
    // of one blob, whose header stands at 8192 and whose bytes follow it.
    let call = "(memory.copy (i32.const 8201) (local.get $at) (local.get $len))
        (i32.store (i32.const 8197) (local.get $len))
        (drop (call $execute (i32.const 0) (i32.const 0) (i32.const 8192) (i32.add (local.get $len) (i32.const 9))))
        (global.set $n (call $query (i32.const 0) (i32.const 0) (i32.const 9000) (i32.const 4)))
        (i32.store (i32.const 8197) (global.get $n))
        (call $take (i32.const 8201) (global.get $n))
        (drop (call $execute (i32.const 0) (i32.const 0) (i32.const 8192) (i32.add (global.get $n) (i32.const 9))))
        (i64.const 0x0000080000000001)";
    let more = r#"(global $n (mut i32) (i32.const 0)) (data (i32.const 8192) "\01\00\00\00\04")"#.into();
    let module = Parts { call, more, ..Parts::default() }.load(&host).unwrap();
    let mut sql = FakeSql { rows, ..FakeSql::default() };
    go(&module, &mut sql).unwrap();
    let params: Vec<&[Value]> = sql.statements.iter().map(|(_, params)| &params[..]).collect();
    assert_eq!(params, [&[Value::Blob(expected)][..], &[], &[Value::Blob(answer)]]);
}

/// More threads than runs are allowed at once: they wait, none fails.
#[test]
fn runs_beyond_the_allowed_number_wait() {
    let host = host();
    let module = Parts::default().load(&host).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..50 {
                    assert_eq!(go(&module, &mut FakeSql::default()), Ok(()));
                }
            });
        }
    });
}

/// A panic in the caller's database goes through to the caller, and the host stays usable.
#[test]
fn a_panic_of_the_database_is_the_callers() {
    struct Panics;
    impl Sql for Panics {
        fn execute(&mut self, _: &str, _: &[Value]) -> Result<u64, SqlError> {
            panic!("the database is on fire")
        }
        fn query(&mut self, _: &str, _: &[Value]) -> Result<Rows, SqlError> {
            Ok(Rows::default())
        }
        fn log(&mut self, _: &str) {}
    }
    let host = host();
    let call =
        "(drop (call $execute (i32.const 0) (i32.const 0) (i32.const 8192) (i32.const 4))) unreachable";
    let module = Parts { call, ..Parts::default() }.load(&host).unwrap();
    let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| go(&module, &mut Panics)));
    assert_eq!(panic.unwrap_err().downcast_ref::<&str>(), Some(&"the database is on fire"));
    common::assert_usable(&host);
}
