//! Warming: the pages that nearly every query reads, in one request when a volume is opened.
//!
//! A compaction stores a database's interior pages and its schema beside each other and notes which they
//! are ([`crate::layout`]). Where the root of its checkpoint says where they lie, and they are few, opening
//! has brought them already ([`graft::history::History::early`]). Without them a query asks for one level of a b-tree after the other.

use graft::fetch::{FetchError, Fetcher};
use graft::format::chunk::ObjectKind;
use graft::snapshot::Location;
use graft::volume::Volume;
use graft::{PageIdx, PageSet, chunks};

/// How much is fetched for queries that have not been asked yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Warmth {
    /// For one query, which waits for it: up to 1 MiB of pages, and only where the page table is so small
    /// that the query's first read would bring all of it.
    Query,
    /// For many queries, beside them: up to 8 MiB, and the parts of the page table that say where they are.
    Server,
}

impl Warmth {
    /// Bytes of pages, before compression. What has more is left to the queries.
    pub fn bytes_max(self) -> u64 {
        match self {
            Warmth::Query => 1 << 20,
            Warmth::Server => 8 << 20,
        }
    }
}

/// Fetches the hot pages of `volume`'s base that still lie where a compaction put them; answers how many
/// there are. Those that were written since are left out: each would be a request of its own.
///
/// Costs one ranged GET for each 4 MiB of them, and what of the page table was not read yet: nothing that
/// the first query would not read, for [`Warmth::Query`]. No request where there was no compaction, or
/// everything is cached.
///
/// # Errors
///
/// [`FetchError`]. Nothing depends on it: a query fetches what it lacks.
pub async fn warm(fetcher: &Fetcher, volume: &Volume, warmth: Warmth) -> Result<u64, FetchError> {
    let snapshot = volume.base();
    let Some(root) = snapshot.checkpoint() else { return Ok(0) };
    let bytes = root.hot.len().saturating_mul(u64::from(volume.page_size().get()));
    let table_waits = warmth == Warmth::Query && root.table_bytes() > chunks::WHOLE_BYTES_MAX;
    if root.hot.is_empty() || bytes > warmth.bytes_max() || table_waits {
        return Ok(0);
    }
    chunks::load(&**fetcher.remote(), volume, &snapshot, &root.hot).await?;
    let compacted = |page: &PageIdx| match snapshot.location(*page) {
        Location::Frame(frame, _) => matches!(frame.object.kind, ObjectKind::CompactedSegment(_)),
        Location::Zero | Location::Local(_) | Location::Unknown(_) => false,
    };
    let pages: PageSet = root.hot.iter().filter(compacted).collect();
    fetcher.fetch_pages(volume, &snapshot, &pages).await?;
    Ok(pages.len())
}
