//! The example modules as wasm: the same calls leave the same database as their source run natively.

use std::sync::Arc;

use reducers::Native;
use reducers::random::Random;
use reducers::testkit::TestDb;
use reducers_abi::{Call, Entry, Failure, Rows, Runtime, Sql, SqlError, Value};
use reducers_host::{Host, HostLimits};

/// The wasm of an example, as `cargo xtask build` leaves it.
fn wasm(name: &str) -> Vec<u8> {
    std::fs::read(tests::places::reducer_module(name)).unwrap()
}

fn pair(name: &str, module: &'static reducers::Module) -> (TestDb, TestDb) {
    let host = Host::new(HostLimits::default()).unwrap();
    let loaded = host.load(&wasm(name)).unwrap();
    assert_eq!(
        loaded.description(),
        &module.description(),
        "{name}.wasm is of another source: build it again"
    );
    (TestDb::on(loaded), TestDb::on(Arc::new(Native::new(module))))
}

fn text(text: &str) -> Value {
    Value::Text(text.to_owned())
}

/// A thousand random calls, good and bad: each ends the same way on both sides, and leaves the same.
#[test]
fn todo_on_wasm_equals_todo_natively() {
    for seed in 0..5 {
        let mut random = Random::new(seed);
        let (mut wasm, mut native) = pair("todo", &todo_reducer::MODULE);
        let mut refused = 0;
        for step in 0..200 {
            let id = |random: &mut Random, kind: &str| text(&format!("{kind}{}", random.below(12)));
            let titles = ["Äpfel", "", "  ", "%s", "'; DROP TABLE tasks", "\0", "字"];
            let title = text(titles[random.below(titles.len() as u64) as usize]);
            let (name, args) = match random.below(16) {
                0 => ("create_list", vec![id(&mut random, "l"), title]),
                1..=3 => ("add_task", vec![id(&mut random, "t"), id(&mut random, "l"), title]),
                4 => ("set_done", vec![id(&mut random, "t"), Value::Integer(random.below(2) as i64)]),
                5 => ("rename_task", vec![id(&mut random, "t"), title]),
                6 => {
                    let positions = [1.5, -0.0, 1e300, f64::INFINITY, f64::NAN];
                    let position = Value::Real(positions[random.below(5) as usize]);
                    ("move_task", vec![id(&mut random, "t"), position])
                }
                7 => {
                    let seen = [Value::Null, Value::Integer(0), Value::Integer(i64::MIN)];
                    ("delete_task", vec![id(&mut random, "t"), seen[random.below(3) as usize].clone()])
                }
                8 => {
                    let capacities = [Value::Null, Value::Integer(-1), Value::Integer(0), Value::Integer(3)];
                    let capacity = capacities[random.below(4) as usize].clone();
                    ("set_capacity", vec![id(&mut random, "l"), capacity])
                }
                9..=11 => {
                    let args = vec![id(&mut random, "c"), id(&mut random, "t"), title.clone(), title];
                    ("add_comment", args)
                }
                12 => ("delete_comment", vec![id(&mut random, "c")]),
                13 => ("claim_task", vec![id(&mut random, "t"), title]),
                14 => ("release_task", vec![id(&mut random, "t"), Value::Null]),
                _ => ("delete_list", vec![id(&mut random, "l")]),
            };
            let outcome = wasm.run(Entry::Reducer { name, args: &args });
            refused += usize::from(outcome.is_err());
            let natively = native.run(Entry::Reducer { name, args: &args });
            assert_eq!(outcome, natively, "seed {seed}, step {step}, {name} {args:?}");
        }
        assert_eq!(wasm.dump(), native.dump(), "seed {seed}");
        assert!((20..190).contains(&refused), "seed {seed}: {refused} of 200 were refused");
    }
}

#[test]
fn notes_on_wasm_equal_notes_natively() {
    let (mut wasm, mut native) = pair("notes", &notes_reducer::MODULE);
    for db in [&mut wasm, &mut native] {
        let mut run = |name, args: &[Value]| db.run(Entry::Reducer { name, args });
        run("create_note", &[Value::Null, text("without an id")]).unwrap();
        run("create_note", &[text("n"), text("one")]).unwrap();
        run("edit_note", &[text("n"), text("two")]).unwrap();
        let long = "x".repeat(65_537);
        assert!(run("edit_note", &[text("n"), text(&long)]).is_err());
    }
    assert_eq!(wasm.dump(), native.dump());
    assert!(wasm.dump().contains("without an id"), "{}", wasm.dump());
}

/// An argument that does not fit is refused by the guest in words, also on wasm.
#[test]
fn wasm_refuses_wrong_arguments_in_words() {
    let (mut wasm, _) = pair("todo", &todo_reducer::MODULE);
    let outcome = wasm.run(Entry::Reducer { name: "delete_list", args: &[Value::Integer(1)] });
    assert_eq!(
        outcome,
        Err(Failure::Refused { message: "argument `id`: expected text, found an integer".into() })
    );
    let outcome = wasm.run(Entry::Reducer { name: "delete_list", args: &[] });
    assert_eq!(outcome.unwrap_err().to_string(), "delete_list takes 1 arguments, and 0 were given");
}

/// Answers queries with more columns than a result can have, which the guest cannot read.
struct Wide;

impl Sql for Wide {
    fn execute(&mut self, _: &str, _: &[Value]) -> Result<u64, SqlError> {
        Ok(0)
    }
    fn query(&mut self, _: &str, _: &[Value]) -> Result<Rows, SqlError> {
        Ok(Rows { columns: vec![String::new(); 40_000], rows: Vec::new() })
    }
    fn log(&mut self, _: &str) {}
}

/// A panic in Rust arrives with its text and place; an argument larger than memory is a limit. Neither
/// hurts the next run.
#[test]
fn wasm_that_panics_or_runs_out_of_memory_says_so() {
    let host = Host::new(HostLimits::default()).unwrap();
    let todo = host.load(&wasm("todo")).unwrap();
    let run = |title: &Value| {
        let args = [text("t"), text("l"), title.clone()];
        let entry = Entry::Reducer { name: "add_task", args: &args };
        todo.run(&Call { entry, user: "u", now_ms: 0, seed: 0 }, &mut Wide)
    };
    let Err(Failure::Trap { message }) = run(&text("x")) else { panic!("the guest should panic") };
    assert!(message.starts_with("panicked at ") && message.contains("guest.rs:"), "{message}");
    assert!(message.contains("column count counts 40000"), "{message}");
    let Err(Failure::Limit { message }) = run(&text(&"x".repeat(70 << 20))) else { panic!("it cannot fit") };
    assert!(message.contains("memory"), "{message}");

    let mut db = TestDb::on(todo);
    db.run(Entry::Reducer { name: "create_list", args: &[text("l"), text("still there")] }).unwrap();
}

/// What a browser has to load. Measured: 74 KiB and 44 KiB.
#[test]
fn the_examples_are_small() {
    for name in ["todo", "notes"] {
        let bytes = wasm(name).len();
        assert!(bytes < 100_000, "{name}.wasm has {bytes} bytes");
    }
}
