//! Cross-crate tests: the whole system by real processes, crashes, simulation, SQL logic, tidiness.
//!
//! Nobody imports this crate. Its tests lie in `tests/tests`; here is what they share.
//!
//! | where | holds |
//! | --- | --- |
//! | [`places`] | the project's folder, the programs and modules that `cargo xtask test` built, test data |
//! | [`process`] | `graft serve`, `graft subscribe` and the rest as real processes |
//! | [`s3`] | a real S3 server on loopback, started and stopped by the test |
//! | [`strace`] | programs under strace: watched, or killed at one of their calls |
//! | [`raw`] | HTTP and frames by hand, and whether a server is still well |
//! | `tests/tests/end_to_end.rs` | the whole path by the command line |
//! | `tests/tests/crash.rs` | durability under `kill -9` |
//! | `tests/tests/kill_steps.rs` | `kill -9` at every request of every operation on a store |
//! | `tests/tests/kill_calls.rs` | `kill -9` at the calls that write, sync and name files |
//! | `tests/tests/power_loss.rs` | a local commit is synced before it is acknowledged, in a trace |
//! | `tests/tests/s3.rs` | the whole path on a real S3 server, and `kill -9` of both |
//! | `tests/tests/bad_input.rs`, `bad_modules.rs`, `bad_stores.rs` | hostile clients, modules and stores |
//! | `tests/tests/sqlite_files.rs` | SQLite files imported, exported and backed up, under `kill -9` |
//! | `tests/tests/sqlite_ext.rs` | the loadable extension in Debian's `sqlite3` and Python |
//! | `tests/tests/costs.rs` | requests and bytes of operations, as formulae |
//! | `tests/tests/storage_regressions.rs` | what sinks other storage engines |
//! | `tests/tests/scenarios/main.rs` | three hard conflicts in the todo example, in every order |
//! | `tests/tests/demo.rs` | what `cargo xtask demo` shows |
//! | [`sim`] | the whole system simulated from one seed, with its oracle |
//! | `tests/tests/tidy/main.rs` | what the documents promise about the code, checked |
//!
//! Invariant: a test that cannot run here says so in its output; it does not pass in silence.

pub mod places;
pub mod process;
pub mod raw;
pub mod s3;
pub mod sim;
pub mod strace;

/// The README's samples, compiled: each of its Rust blocks is a doctest of this item.
#[doc = include_str!("../../README.md")]
#[cfg(doctest)]
pub struct Readme;
