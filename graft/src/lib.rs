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
//! | [`publish`] | turning a prepared commit into a durable log entry, or learning that it lost |
//! | [`pull`] | reading what others committed: metadata only |
//! | [`history`] | opening: the newest checkpoint and the commits since; catching up |
//! | [`chunks`] | reading parts of the page table when they are first needed |
//! | [`mod@checkpoint`] | writing a whole page table and the layer's state, so that opening stays cheap |
//! | [`mod@time`] | which commit a moment means |
//! | [`fork`] | a new volume that begins as another one was |
//! | [`volume`] | one replica of one volume: tip, local commits, push, reset |
//! | [`mod@fetch`] | bringing pages that a read faulted on into the cache |
//! | `replan` | finding pages again that were moved and deleted where they were |
//! | [`prefetch`] | what to fetch before it is asked for |
//! | [`hydrate`] | fetching everything, once or from then on |
//! | [`file`] | volumes as files: byte ranges, whole files, sparse |
//! | [`compact`] | rewriting pages into dense segments, laid out for readers |
//! | [`gc`] | deleting what no reader can reach any more |
//! | [`reader`] | leases that keep an old state readable |
//! | [`mod@verify`] | reading everything and saying what is wrong |
//! | [`catalog`] | names of volumes, creating and listing them |
//! | `locked` | a lock on a file that ends with its holder, also where a forked child has the file |
//! | [`lease`] | who owns a volume just now: for speed, never for safety |

pub mod catalog;
pub mod checkpoint;
pub mod chunks;
pub mod compact;
pub mod fetch;
pub mod file;
pub mod fork;
pub mod format;
pub mod gc;
pub mod history;
pub mod hydrate;
pub mod ids;
pub mod lease;
#[cfg(feature = "native")]
mod locked;
pub mod page_set;
#[cfg(feature = "plants")]
#[doc(hidden)]
pub mod plants;
pub mod prefetch;
pub mod publish;
pub mod pull;
pub mod reader;
pub mod remote;
mod replan;
pub mod snapshot;
pub mod store;
pub mod time;
pub mod verify;
pub mod volume;

pub use ids::{
    ChainHash, CommitId, Epoch, LeaseId, Lsn, ModuleHash, PageIdx, PageSize, Seq, VolumeId, VolumeName, key,
};
pub use page_set::PageSet;
