//! Storing a whole file: one commit, streamed.

use std::io::Read;

use bytes::BytesMut;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;

use super::{FileError, check_length, first_page, length, page_of, pages_for, zeroes};
use crate::chunks;
use crate::fetch::Fetcher;
use crate::format::frame::PageHash;
use crate::ids::{CommitId, PageIdx};
use crate::page_set::PageSet;
use crate::publish::{Builder, Prepared, Segment};
use crate::remote::{RemoteError, SharedRemote};
use crate::snapshot::{Location, Snapshot};
use crate::volume::Volume;

/// Segments uploaded at the same time: each is 16 MiB of memory.
const UPLOADS: usize = 3;
/// The page table is read for so many bytes of the file at once: a multiple of every page size.
const TABLE_BYTES: u64 = 64 << 20;
/// Pages between two reports of progress, in bytes.
const REPORT_BYTES: u64 = 4 << 20;

/// Why a file was not stored. Readers see nothing of it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PutError {
    /// See there.
    #[error(transparent)]
    File(#[from] FileError),
    /// The source could not be read.
    #[error("the file could not be read at byte {at}: {source}")]
    Source {
        /// Where.
        at: u64,
        /// Why.
        source: std::io::Error,
    },
    /// The source is not as long as was said: it changed while it was read.
    #[error("the file has not the {expected} bytes it had at first; leave it alone while it is stored")]
    Length {
        /// What was said.
        expected: u64,
    },
    /// This replica holds local commits.
    #[error("the replica holds {ahead} commits that were not pushed; push or reset them first")]
    Ahead {
        /// How many.
        ahead: usize,
    },
    /// A segment could not be stored; safe to try the whole again.
    #[error("a segment could not be stored: {0}")]
    Upload(#[from] RemoteError),
}

/// How far a put is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub struct PutProgress {
    /// The file's length.
    pub bytes: u64,
    /// Bytes of it that were read.
    pub done: u64,
    /// Bytes stored, compressed.
    pub stored: u64,
}

/// A file that is stored and not yet committed.
#[derive(Debug)]
pub struct Put {
    /// What to [`publish`](crate::publish::publish): again and again until its outcome is known. `None`
    /// where the volume holds exactly this file already.
    pub prepared: Option<Prepared>,
    /// Pages that differ from what the volume held.
    pub changed: usize,
    /// How it went.
    pub progress: PutProgress,
}

/// Stores `source`, of exactly `bytes` bytes, as the whole content of `volume`, except for the commit
/// itself. Pages that the volume has already are not sent again, which costs no fetch: their hashes
/// are known. A page of zeroes is stored only where it replaces something else.
///
/// `id` is fresh and random; `now_ms` the clock. Costs one frame to see what the volume holds, and one
/// create for each 16 MiB of compressed changes. Memory: four segments and 16 bytes for each page
/// changed. When [`publish`](crate::publish::publish) says that the LSN went to another writer, pull
/// and put again.
pub async fn put(
    fetcher: &Fetcher,
    volume: &Volume,
    bytes: u64,
    source: &mut (dyn Read + Send),
    id: CommitId,
    now_ms: i64,
    progress: &mut (dyn FnMut(PutProgress) + Send),
) -> Result<Put, PutError> {
    let size = volume.page_size();
    check_length(bytes, size)?;
    let base = volume.base();
    let pages = pages_for(bytes, size);
    let Some(draft) = volume.draft(pages, id, now_ms) else {
        return Err(PutError::Ahead { ahead: volume.status().ahead.max(1) });
    };
    length(fetcher, volume, &base).await?;
    let remote = fetcher.remote();
    let mut builder = Builder::new(draft);
    let mut uploads = FuturesUnordered::new();
    let mut state = PutProgress { bytes, ..PutProgress::default() };
    let header = first_page(bytes, size);
    if differs(&base, PageIdx::FIRST, &header) {
        builder.push(PageIdx::FIRST, header);
        // Whoever asks for the length alone fetches nothing else.
        builder.end_frame();
    }
    let mut reported = 0;
    while state.done < bytes {
        if state.done.is_multiple_of(TABLE_BYTES) {
            let last = page_of((state.done + TABLE_BYTES - 1).min(bytes - 1), size);
            let window = PageSet::from_ranges([page_of(state.done, size).get()..=last.get()]);
            chunks::load(&**remote, volume, &base, &window).await.map_err(FileError::from)?;
        }
        let part = usize::try_from(bytes - state.done).unwrap_or(usize::MAX).min(size.bytes());
        let mut page = BytesMut::zeroed(size.bytes());
        source.read_exact(&mut page[..part]).map_err(|error| match error.kind() {
            std::io::ErrorKind::UnexpectedEof => PutError::Length { expected: bytes },
            _ => PutError::Source { at: state.done, source: error },
        })?;
        let (idx, page) = (page_of(state.done, size), page.freeze());
        state.done += part as u64;
        if differs(&base, idx, &page)
            && let Some(segment) = builder.push(idx, page)
        {
            state.stored += segment.1.len() as u64;
            uploads.push(upload(remote.clone(), segment));
            while uploads.len() >= UPLOADS {
                uploads.next().await.transpose()?;
            }
        }
        if state.done - reported >= REPORT_BYTES {
            reported = state.done;
            progress(state);
        }
    }
    let mut more = [0];
    match source.read(&mut more) {
        Ok(0) => {}
        Ok(_) => return Err(PutError::Length { expected: bytes }),
        Err(source) => return Err(PutError::Source { at: bytes, source }),
    }
    let changed = builder.pages();
    if changed == 0 && pages == base.pages() {
        progress(state);
        return Ok(Put { prepared: None, changed, progress: state });
    }
    let (last, prepared) = builder.finish();
    state.stored += prepared.body.len() as u64;
    if let Some(segment) = last {
        state.stored += segment.1.len() as u64;
        uploads.push(upload(remote.clone(), segment));
    }
    while let Some(uploaded) = uploads.next().await {
        uploaded?;
    }
    progress(state);
    Ok(Put { prepared: Some(prepared), changed, progress: state })
}

async fn upload(remote: SharedRemote, (key, bytes): Segment) -> Result<(), RemoteError> {
    match remote.create(&key, bytes).await {
        // Its key carries our random id: whatever is there, we wrote it.
        Ok(()) | Err(RemoteError::AlreadyExists { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Whether page `idx` of the base is something else than `page`.
fn differs(base: &Snapshot, idx: PageIdx, page: &[u8]) -> bool {
    match base.location(idx) {
        Location::Zero => !zeroes(page),
        Location::Frame(_, slot) => slot.hash != PageHash::of(idx, page),
        Location::Local(bytes) => bytes != page,
        Location::Unknown(_) => true,
    }
}
