//! Volumes of pages on object storage: lazy, partial, strongly consistent replication.
//!
//! A *volume* is a sparse, versioned collection of fixed-size pages with one *log* of commits.
//! A commit is one conditional create of the log's next key, so exactly one writer wins each LSN
//! and the log is serial without locks or clocks. A *snapshot* answers "where is page P at LSN n"
//! in O(1). Reads that miss return a fault that names the pages; the driver fetches them.
//!
//! This crate knows nothing of SQLite, HTTP servers or reducers. It holds no clock and no
//! randomness: times and ids are passed in.
//!
//! | module | holds |
//! | --- | --- |
//! | [`ids`] | volume, LSN, page index, page size, hashes, keys in the store |
//! | [`page_set`] | [`PageSet`]: the set algebra everything else is built on |
//! | [`format`] | bytes of commits, frames, segments and volume metadata |
//! | [`remote`] | the object store: a trait, directory, memory, S3, fault injection |
//! | [`store`] | the local replica store: a trait, fjall, memory |
//! | [`snapshot`] | the page table and read views |
//! | [`bulk`] | a commit of any size, stored as its pages come |
//! | [`publish`] | turning a prepared commit into a durable log entry, or learning that it lost |
//! | [`pull`] | reading what others committed: metadata only |
//! | [`volume`] | one replica of one volume: tip, local commits, push, reset |
//! | [`mod@fetch`] | bringing pages that a read faulted on into the cache |
//! | [`compact`] | rewriting pages into dense segments, laid out for readers |
//! | [`catalog`] | names of volumes, creating and listing them |

pub mod bulk;
pub mod catalog;
pub mod compact;
pub mod fetch;
pub mod format;
pub mod ids;
pub mod page_set;
pub mod publish;
pub mod pull;
pub mod remote;
pub mod snapshot;
pub mod store;
pub mod volume;

pub use ids::{ChainHash, CommitId, Lsn, ModuleHash, PageIdx, PageSize, VolumeId, VolumeName, key};
pub use page_set::PageSet;
