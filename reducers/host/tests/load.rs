//! What is refused before it runs: modules that are no wasm, import too much, export too little, or
//! describe themselves falsely. After each refusal the host still runs good modules.

mod common;

use common::{DONE, Parts, assert_usable, go, host};
use reducers_abi::codec::encode_description;
use reducers_abi::{Call, Description, Entry, Failure, Param, Reducer, Runtime, Type};
use reducers_host::{Host, LoadError, module_hash};

/// Loads the parts with a host that must stay usable.
fn refused(parts: Parts) -> LoadError {
    let host = host();
    let error = parts.load(&host).expect_err("the module is refused");
    assert_usable(&host);
    error
}

fn bytes_refused(bytes: &[u8]) -> LoadError {
    let host = host();
    let error = host.load(bytes).expect_err("the bytes are refused");
    assert_usable(&host);
    error
}

#[test]
fn a_good_module_is_loaded_once() {
    let host = host();
    let wasm = Parts::default().wasm();
    let module = host.load(&wasm).unwrap();
    assert_eq!(module.hash(), module_hash(&wasm));
    assert_eq!(module.description().schema_version(), 1);
    assert!(module.description().reducer("go").is_some());
    let again = host.load(&wasm).unwrap();
    assert!(std::sync::Arc::ptr_eq(&module, &again), "the second load compiled again");
    assert!(host.get(module_hash(&wasm)).is_some());
    assert!(host.get([0; 32]).is_none());
    go(&module, &mut common::FakeSql::default()).unwrap();
}

/// The oldest of more modules than are kept is let go of, and works on for who holds it.
#[test]
fn the_cache_is_bounded() {
    let host = host();
    let module_of = |n: u32| Parts { more: format!("(global i32 (i32.const {n}))"), ..Parts::default() };
    let first = module_of(0).load(&host).unwrap();
    for n in 1..=4 {
        module_of(n).load(&host).unwrap();
    }
    assert!(host.get(first.hash()).is_none());
    go(&first, &mut common::FakeSql::default()).unwrap();
}

/// A module outlives the host it came from.
#[test]
fn a_module_keeps_its_engine() {
    let host = host();
    let module = Parts::default().load(&host).unwrap();
    drop(host);
    go(&module, &mut common::FakeSql::default()).unwrap();
}

#[test]
fn what_is_not_wasm_is_named() {
    for (bytes, found) in [
        (&b""[..], "empty"),
        (b"hello %s", "does not begin"),
        (b"(module)", "text format"),
        (b"\0asm\x0d\0\x01\0", "component"),
        (b"\0asm", "cut short"),
    ] {
        let error = bytes_refused(bytes);
        assert!(matches!(error, LoadError::NotWasm { .. }), "{error:?}");
        assert!(error.to_string().contains(found), "{error}");
    }
}

/// Cut anywhere or with any byte changed: refused or loaded, never a panic, and the host lives on.
#[test]
fn damaged_wasm_is_refused() {
    let host = host();
    let wasm = Parts::default().wasm();
    // The section of names at the end can go, and nothing else.
    let accepted: Vec<usize> = (8..wasm.len()).filter(|cut| host.load(&wasm[..*cut]).is_ok()).collect();
    assert!(accepted.len() <= 1, "cut at {accepted:?} of {}", wasm.len());
    for at in (8..wasm.len()).step_by(7) {
        let mut flipped = wasm.clone();
        flipped[at] ^= 0x15;
        if let Ok(module) = host.load(&flipped) {
            let _any_outcome = go(&module, &mut common::FakeSql::default());
        }
    }
    assert_usable(&host);
}

#[test]
fn a_module_beyond_the_size_limit_is_refused() {
    let more = format!("(data \"{}\")", "a".repeat(100_001));
    let error = refused(Parts { more, ..Parts::default() });
    assert!(matches!(error, LoadError::TooLarge { max: 100_000, .. }), "{error:?}");
}

#[test]
fn foreign_imports_are_named() {
    for (imports, module, name) in [
        (
            r#"(import "wasi_snapshot_preview1" "fd_write" (func (param i32 i32 i32 i32) (result i32)))"#,
            "wasi_snapshot_preview1",
            "fd_write",
        ),
        (r#"(import "env" "now" (func (result f64)))"#, "env", "now"),
        (r#"(import "graft" "clock" (func (result i64)))"#, "graft", "clock"),
    ] {
        let error = refused(Parts { imports, ..Parts::default() });
        assert_eq!(error, LoadError::Import { module: module.into(), name: name.into() });
        assert!(error.to_string().contains(&format!("`{module}.{name}`")), "{error}");
    }
    let memory = r#"(import "env" "memory" (memory 1)) (export "memory" (memory 0))"#;
    let error = refused(Parts { memory: "", imports: memory, ..Parts::default() });
    assert!(matches!(error, LoadError::Import { .. }), "{error:?}");
}

#[test]
fn imports_of_another_type_are_named() {
    let imports = r#"(import "graft" "log" (func (param i64)))"#;
    let error = refused(Parts { imports, ..Parts::default() });
    assert!(matches!(&error, LoadError::Type { name, .. } if name == "import graft.log"), "{error:?}");
}

#[test]
fn missing_exports_are_named() {
    let error = refused(Parts { memory: "(memory 1)", ..Parts::default() });
    assert_eq!(error, LoadError::Missing { name: "memory" });
    let empty = wat::parse_str(r#"(module (memory (export "memory") 1))"#).unwrap();
    assert_eq!(bytes_refused(&empty), LoadError::Missing { name: "graft_abi_version" });
    let other = wat::parse_str(
        r#"(module (memory (export "memory") 1) (func (export "graft_abi_version") (result i64) (i64.const 1)))"#,
    )
    .unwrap();
    let error = bytes_refused(&other);
    assert!(
        matches!(&error, LoadError::Type { name, .. } if name == "export graft_abi_version"),
        "{error:?}"
    );
}

#[test]
fn proposals_that_are_off_are_refused() {
    for (memory, more) in [
        (r#"(memory (export "memory") i64 1)"#, ""),
        (r#"(memory (export "memory") 1 1 shared)"#, ""),
        (r#"(memory (export "memory") 1) (memory 1)"#, ""),
        (
            r#"(memory (export "memory") 1)"#,
            "(func (param v128 v128 v128) (result v128)
                (f32x4.relaxed_madd (local.get 0) (local.get 1) (local.get 2)))",
        ),
    ] {
        let error = refused(Parts { memory, more: more.into(), ..Parts::default() });
        assert!(matches!(error, LoadError::Invalid { .. }), "{memory} {more}: {error:?}");
    }
}

#[test]
fn a_memory_that_starts_beyond_the_limit_is_refused() {
    let error = refused(Parts { memory: r#"(memory (export "memory") 17)"#, ..Parts::default() });
    assert!(
        matches!(error, LoadError::Invalid { .. } | LoadError::Describe(Failure::Limit { .. })),
        "{error:?}"
    );
}

#[test]
fn another_abi_version_is_refused() {
    let error = refused(Parts { version: "(i32.const 2)", ..Parts::default() });
    assert_eq!(error, LoadError::Version { found: 2 });
}

#[test]
fn descriptions_that_fail_are_refused() {
    let describes = |describe| refused(Parts { describe: Some(describe), ..Parts::default() });
    let error = describes("unreachable");
    assert!(matches!(error, LoadError::Describe(Failure::Trap { .. })), "{error:?}");
    let error = describes("(loop $l (br $l)) unreachable");
    assert!(matches!(error, LoadError::Describe(Failure::Limit { .. })), "{error:?}");
    // Outside of memory: at its end, and so far that address + length overflows 32 bits.
    for packed in ["(i64.const 0x0000ffff00000002)", "(i64.const 0xffffffff00000010)"] {
        let error = describes(packed);
        assert!(error.to_string().contains("outside of its memory"), "{error}");
    }
    let error = describes("(i64.const 0x00000400ffffffff)");
    assert!(matches!(error, LoadError::Describe(Failure::Limit { .. })), "{error:?}");
    let error = describes("(i64.const 0)");
    assert!(matches!(error, LoadError::Damaged(_)), "{error:?}");
    // It may not use a database, and is told so rather than stopped.
    let error = describes(
        "(drop (call $execute (i32.const 0) (i32.const 0) (i32.const 8192) (i32.const 4))) unreachable",
    );
    assert!(matches!(error, LoadError::Describe(Failure::Trap { .. })), "{error:?}");
}

#[test]
fn descriptions_that_break_a_rule_are_refused() {
    let reducer = |name: &str| Reducer { name: name.into(), params: vec![], doc: String::new() };
    let twice = Param { name: "id".into(), ty: Type::Text, optional: false };
    for (reducers, migrations) in [
        (vec![reducer("Go")], vec![]),
        (vec![reducer("go"), reducer("go")], vec![]),
        (vec![Reducer { params: vec![twice.clone(), twice], ..reducer("go") }], vec![]),
        (vec![], vec![1, 3]),
    ] {
        let description = encode_description(&Description { reducers, migrations });
        let error = refused(Parts { description, ..Parts::default() });
        assert!(matches!(error, LoadError::Description { .. }), "{error:?}");
    }
    let mut cut = encode_description(&Description { reducers: vec![reducer("go")], migrations: vec![] });
    cut.truncate(9);
    let error = refused(Parts { description: cut, ..Parts::default() });
    assert!(matches!(error, LoadError::Damaged(_)), "{error:?}");
}

/// What the description does not name is not run, whatever the module would have done with it.
#[test]
fn unknown_entries_are_refused() {
    let host = Host::new(Default::default()).unwrap();
    let module = Parts { call: DONE, ..Parts::default() }.load(&host).unwrap();
    let mut sql = common::FakeSql::default();
    let mut run = |entry| module.run(&Call { entry, user: "", now_ms: 0, seed: 0 }, &mut sql);
    assert_eq!(run(Entry::Migration { version: 1 }), Ok(()));
    let unknown = run(Entry::Migration { version: 2 }).unwrap_err();
    assert_eq!(
        (unknown.code(), unknown.to_string()),
        ("unknown_reducer", "the module has no migration 2".into())
    );
    let unknown = run(Entry::Reducer { name: "%s", args: &[] }).unwrap_err();
    assert_eq!(unknown.to_string(), "the module has no reducer `%s`");
}
