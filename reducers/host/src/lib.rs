//! Runs reducer modules in wasmtime, under limits.
//!
//! A [`Host`] compiles a module's bytes once ([`Host::load`]) and refuses what it cannot run: bytes
//! that are not wasm, imports other than `graft.*`, missing exports, another ABI version, a description
//! that makes no sense. What it answers is a [`WasmModule`], which is a [`Runtime`]: each run gets a
//! fresh instance with fresh memory, the caller's [`Sql`](reducers_abi::Sql) behind the host calls, and
//! [`HostLimits`].
//!
//! Guests are hostile here. Every address and length a guest names is checked, every message it sends
//! is decoded by a total decoder, and whatever goes wrong is a [`LoadError`] or a
//! [`Failure`](reducers_abi::Failure) of that run alone: the host and its other modules stay usable.
//!
//! Invariants: a run's effects depend on its [`Call`](reducers_abi::Call) and the answers of its `Sql`
//! only. There is no WASI, no clock, no randomness; NaNs are canonical; relaxed SIMD and threads are
//! off. Only the time limits depend on the machine, which is why recorded outcomes are obeyed and not
//! decided again. The guest is never re-entered: host calls leave their answer pending and the guest
//! takes it.
//!
//! The bytes are in `docs/reducer-abi.md`. Which SQL a reducer may run is not decided here but by the
//! `Sql` it is given.

mod clock;
mod description;
mod error;
mod guest;
mod host;
mod limits;
mod module;

pub use error::{HostError, LoadError};
pub use host::{Host, module_hash};
pub use limits::HostLimits;
pub use module::WasmModule;
pub use reducers_abi::Runtime;
