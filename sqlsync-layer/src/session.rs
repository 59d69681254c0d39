//! Both ends of a sync connection as state machines: events in, effects out.
//!
//! | module | holds |
//! | --- | --- |
//! | [`client`] | pending mutations, subscriptions and queries across reconnects |
//! | [`server`] | hello first, version, limits; everything after it passes through |
//! | [`rows`] | a client's copy of a subscription's rows, and how a delta changes it |
//!
//! Invariants: nothing here reads a clock, a socket or a random number; drivers pass them in. Bytes
//! from the other end never cause a panic, only a typed error.
//!
//! Not here: what mutations and queries do ([`crate::actor`]); sockets ([`crate::client`], and the
//! coordinator).

pub mod client;
pub mod rows;
pub mod server;
