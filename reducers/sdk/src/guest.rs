//! The wasm side of the boundary: what `module!`'s exports do, and the host as a [`Sql`].
//!
//! Memory starts fresh for every run and is thrown away after it, so nothing here is freed.
#![allow(unsafe_code, reason = "the boundary hands over addresses; docs/reducer-abi.md says whose they are")]

use reducers_abi::codec::{self, DecodeError};
use reducers_abi::{Rows, Sql, SqlError, Value};

use crate::Module;

#[link(wasm_import_module = "graft")]
unsafe extern "C" {
    fn execute(sql: *const u8, sql_len: usize, params: *const u8, params_len: usize) -> usize;
    fn query(sql: *const u8, sql_len: usize, params: *const u8, params_len: usize) -> usize;
    fn take(out: *mut u8, len: usize);
    fn log(line: *const u8, len: usize);
    fn abort(message: *const u8, len: usize) -> !;
}

/// The host's database.
struct Host;

/// Fetches the answer of the call that just returned its length.
fn answer(len: usize) -> Vec<u8> {
    let mut bytes = vec![0u8; len];
    // SAFETY: `bytes` is `len` bytes long, and the host writes exactly that many.
    unsafe { take(bytes.as_mut_ptr(), len) };
    bytes
}

fn understood<T>(message: Result<T, DecodeError>) -> T {
    message.unwrap_or_else(|error| panic!("the host broke the ABI: {error}"))
}

impl Sql for Host {
    fn execute(&mut self, sql: &str, params: &[Value]) -> Result<u64, SqlError> {
        let params = codec::encode_values(params);
        // SAFETY: both ranges are live slices; the host only reads them, and only during the call.
        let len = unsafe { execute(sql.as_ptr(), sql.len(), params.as_ptr(), params.len()) };
        understood(codec::decode_changes(&answer(len)))
    }

    fn query(&mut self, sql: &str, params: &[Value]) -> Result<Rows, SqlError> {
        let params = codec::encode_values(params);
        // SAFETY: as in `execute`.
        let len = unsafe { query(sql.as_ptr(), sql.len(), params.as_ptr(), params.len()) };
        understood(codec::decode_rows(&answer(len)))
    }

    fn log(&mut self, line: &str) {
        // SAFETY: as in `execute`.
        unsafe { log(line.as_ptr(), line.len()) }
    }
}

/// A panic ends the run; its text goes to the host.
fn report_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let text = panic.payload_as_str().unwrap_or("(without a text)");
        let message = match panic.location() {
            Some(at) => format!("panicked at {}:{}: {text}", at.file(), at.line()),
            None => format!("panicked: {text}"),
        };
        // SAFETY: `message` is a live slice, which the host only reads. The call does not return.
        unsafe { abort(message.as_ptr(), message.len()) }
    }));
}

/// Address in the upper half, length in the lower.
fn hand_over(bytes: Vec<u8>) -> u64 {
    let bytes = bytes.leak();
    ((bytes.as_ptr() as u64) << 32) | bytes.len() as u64
}

/// `graft_abi_version`.
pub fn abi_version() -> u32 {
    u32::from(codec::ABI_VERSION)
}

/// `graft_alloc`.
pub fn alloc(len: usize) -> *mut u8 {
    vec![0u8; len].leak().as_mut_ptr()
}

/// `graft_describe`.
pub fn describe(module: &Module) -> u64 {
    report_panics();
    hand_over(codec::encode_description(&module.description()))
}

/// `graft_call`.
pub fn call(module: &Module, at: *const u8, len: usize) -> u64 {
    report_panics();
    // SAFETY: the host passes the range that it got from `graft_alloc` and filled; it does not touch
    // it again.
    let bytes = unsafe { std::slice::from_raw_parts(at, len) };
    let call = understood(codec::decode_call(bytes));
    hand_over(codec::encode_outcome(&module.run(&call.as_call(), &mut Host)))
}
