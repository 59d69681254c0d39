//! Cross-crate tests: the whole system by real processes, crashes, simulation, SQL logic, tidiness.
//!
//! Nobody imports this crate. Its tests lie in `tests/tests`; here is what they share.
//!
//! | where | holds |
//! | --- | --- |
//! | [`places`] | the project's folder, the programs and modules that `cargo xtask test` built, test data |
//! | [`s3`] | a real S3 server on loopback, started and stopped by the test |
//! | `tests/tests/tidy/main.rs` | what the documents promise about the code, checked |
//!
//! Invariant: a test that cannot run here says so in its output; it does not pass in silence.

pub mod places;
pub mod s3;

/// The README's samples, compiled: each of its Rust blocks is a doctest of this item.
#[doc = include_str!("../../README.md")]
#[cfg(doctest)]
pub struct Readme;
