//! Small modules written by hand, and a database that only remembers.
#![allow(dead_code, reason = "each test file uses its part")]

use std::sync::Arc;
use std::time::Duration;

use reducers_abi::codec::encode_description;
use reducers_abi::{Call, Description, Entry, Failure, Reducer, Rows, Runtime, Sql, SqlError, Value};
use reducers_host::{Host, HostLimits, LoadError, WasmModule};

/// Answers canned results and remembers what it was asked.
#[derive(Debug, Default)]
pub struct FakeSql {
    pub statements: Vec<(String, Vec<Value>)>,
    pub lines: Vec<String>,
    pub rows: Rows,
}

impl Sql for FakeSql {
    fn execute(&mut self, sql: &str, params: &[Value]) -> Result<u64, SqlError> {
        self.statements.push((sql.to_owned(), params.to_vec()));
        Ok(self.statements.len() as u64)
    }
    fn query(&mut self, sql: &str, params: &[Value]) -> Result<Rows, SqlError> {
        self.statements.push((sql.to_owned(), params.to_vec()));
        Ok(self.rows.clone())
    }
    fn log(&mut self, line: &str) {
        self.lines.push(line.to_owned());
    }
}

/// A WAT string literal of any bytes.
pub fn escaped(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("\\{b:02x}")).collect()
}

/// A module's parts, each of which a test may replace.
pub struct Parts {
    /// More imports.
    pub imports: &'static str,
    pub memory: &'static str,
    pub version: &'static str,
    pub alloc: &'static str,
    /// The description's bytes, at address 1024.
    pub description: Vec<u8>,
    /// The body of `graft_describe`; by default it answers `description`.
    pub describe: Option<&'static str>,
    /// The body of `graft_call (param $at i32) (param $len i32) (result i64)`.
    pub call: &'static str,
    /// Further fields: globals, functions, data. 8192 and above are free.
    pub more: String,
}

/// What `graft_call` answers for "done": the one byte 0 at address 2048.
pub const DONE: &str = "(i64.const 0x0000080000000001)";

impl Default for Parts {
    fn default() -> Parts {
        let go = Reducer { name: "go".into(), params: vec![], doc: String::new() };
        Parts {
            imports: "",
            memory: r#"(memory (export "memory") 1)"#,
            version: "(i32.const 1)",
            alloc: "(i32.const 4096)",
            description: encode_description(&Description { reducers: vec![go], migrations: vec![1] }),
            describe: None,
            call: DONE,
            more: String::new(),
        }
    }
}

impl Parts {
    pub fn wasm(&self) -> Vec<u8> {
        let Parts { imports, memory, version, alloc, description, call, more, .. } = self;
        let packed = format!("(i64.const {})", (1024u64 << 32) | description.len() as u64);
        let describe = self.describe.unwrap_or(&packed);
        let data = escaped(description);
        let text = format!(
            r#"(module
                (import "graft" "execute" (func $execute (param i32 i32 i32 i32) (result i32)))
                (import "graft" "query" (func $query (param i32 i32 i32 i32) (result i32)))
                (import "graft" "take" (func $take (param i32 i32)))
                (import "graft" "log" (func $log (param i32 i32)))
                (import "graft" "abort" (func $abort (param i32 i32)))
                {imports}
                {memory}
                (data (i32.const 1024) "{data}")
                (data (i32.const 2048) "\00")
                {more}
                (func (export "graft_abi_version") (result i32) {version})
                (func (export "graft_alloc") (param $len i32) (result i32) {alloc})
                (func (export "graft_describe") (result i64) {describe})
                (func (export "graft_call") (param $at i32) (param $len i32) (result i64) {call})
            )"#
        );
        wat::parse_str(&text).unwrap_or_else(|error| panic!("{error}\n{text}"))
    }

    pub fn load(&self, host: &Host) -> Result<Arc<WasmModule>, LoadError> {
        host.load(&self.wasm())
    }

    /// Loads and runs the reducer `go`; afterwards the host must still run a good module.
    pub fn run(&self, host: &Host) -> Result<FakeSql, Failure> {
        let module = self.load(host).expect("the module loads");
        let mut sql = FakeSql::default();
        let outcome = go(&module, &mut sql);
        assert_usable(host);
        outcome.map(|()| sql)
    }
}

pub fn go(module: &WasmModule, sql: &mut dyn Sql) -> Result<(), Failure> {
    let entry = Entry::Reducer { name: "go", args: &[] };
    module.run(&Call { entry, user: "u", now_ms: 1, seed: 2 }, sql)
}

/// A good module loads and runs.
pub fn assert_usable(host: &Host) {
    let module = Parts::default().load(host).expect("a good module still loads");
    assert_eq!(go(&module, &mut FakeSql::default()), Ok(()));
}

/// A host with short limits, so that tests of limits are quick.
pub fn host() -> Host {
    Host::new(HostLimits {
        memory_bytes: 1 << 20,
        // Long enough for a machine that is busy with other tests.
        time: Duration::from_millis(500),
        time_total: Duration::from_millis(1_500),
        calls: 1_000,
        query_rows: 10,
        query_bytes: 1_000,
        statement_bytes: 1_000,
        log_lines: 3,
        log_bytes: 1_000,
        message_bytes: 100,
        module_bytes: 100_000,
        description_bytes: 10_000,
        concurrent_runs: 2,
        cached_modules: 4,
        ..HostLimits::default()
    })
    .expect("a host")
}

pub fn trap(outcome: Result<FakeSql, Failure>) -> String {
    match outcome {
        Err(Failure::Trap { message }) => message,
        other => panic!("expected a trap, found {other:?}"),
    }
}

pub fn limit(outcome: Result<FakeSql, Failure>) -> String {
    match outcome {
        Err(Failure::Limit { message }) => message,
        other => panic!("expected a limit, found {other:?}"),
    }
}
