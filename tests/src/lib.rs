//! Cross-crate tests: the whole system by real processes, crashes, simulation, SQL logic, tidiness.
//!
//! Nobody imports this crate. Its tests lie in `tests/tests`; here is what they share.
//!
//! | where | holds |
//! | --- | --- |
//! | [`places`] | the project's folder, the programs and modules that `cargo xtask test` built, test data |
//! | [`sim`] | the whole system simulated from one seed, with its oracle |
//! | `tests/tests/tidy/main.rs` | what the documents promise about the code, checked |
//!
//! Invariant: a test that cannot run here says so in its output; it does not pass in silence.

pub mod places;
pub mod sim;

/// The README's samples, compiled: each of its Rust blocks is a doctest of this item.
#[doc = include_str!("../../README.md")]
#[cfg(doctest)]
pub struct Readme;
