//! SQLite on graft volumes, reducers, replay, live queries and the sync protocol.
//!
//! | module | holds |
//! | --- | --- |
//! | [`payload`] | what a commit carries: marks, mutations, outcomes |
//! | [`ledger`] | exactly once: each client's last seq and recent outcomes |
//! | [`guard`] | what the SQL of reducers and queries may do |
//! | [`merge`] | may a local commit keep its pages on top of what others committed? |
//! | [`rebase`] | what becomes of each local commit when the history moved: keep, run again, branch |
//! | `document` | native documents: offline, optimistic, synced beside others (feature `client`) |
//! | [`live`] | live queries: which must re-run, and keyed deltas |
//! | [`value`] | SQL values to and from JSON without loss |
//! | [`protocol`] | the messages of `/v1/volumes/{name}/sync` |
//! | [`presence`] | who is connected, for a while and stored nowhere |
//! | [`session`] | both ends of a connection as state machines, without sockets or clocks |
//! | [`actor`] | the server's side of one volume: batches, ledger, replay, live queries |
//! | `transfer` | ordinary SQLite files to volumes and back; continuous backup (Unix) |
//! | [`layout`] | how compaction lays out a SQLite database's pages |
//! | [`vfs`] | SQLite on volumes: connections, read and write sets |
//! | [`client`] | the Rust client over tokio-tungstenite (feature `client`) |

pub mod actor;
#[cfg(all(feature = "client", not(target_arch = "wasm32")))]
pub mod client;
#[cfg(all(feature = "client", not(target_arch = "wasm32")))]
pub mod document;
pub mod guard;
pub mod layout;
pub mod ledger;
pub mod live;
pub mod merge;
pub mod payload;
pub mod presence;
pub mod protocol;
pub mod rebase;
pub mod session;
#[cfg(unix)]
pub mod transfer;
pub mod value;
pub mod vfs;
