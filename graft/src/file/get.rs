//! Writing a whole file out: streamed, resumable.

use futures::{StreamExt as _, TryStreamExt as _};

use super::{FileError, FileView, groups, page_of, read_page};
use crate::chunks;
use crate::fetch::Fetcher;
use crate::format::frame::PageHash;
use crate::ids::PageIdx;
use crate::page_set::PageSet;
use crate::snapshot::Location;
use crate::store::ByteFile;

/// Bytes of the file that are fetched together.
const WINDOW_BYTES: usize = 8 << 20;
/// Windows under way at once.
const WINDOWS: usize = 3;

/// How far a get is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub struct GetProgress {
    /// The file's length.
    pub bytes: u64,
    /// Bytes of it that are in the target.
    pub done: u64,
    /// Bytes that were written: those that the target did not have.
    pub written: u64,
}

/// Makes `target` the file: whatever it held, what it holds afterwards is byte for byte the file, and
/// as long. What it held rightly is neither fetched nor written: each page of it is compared with the
/// hash that the log has. So an interrupted get goes on where it was when it is started again, and a
/// copy of an older version becomes one of this by its differences.
///
/// Pages that were never written become holes where the target ends before them. Memory: three windows
/// of 8 MiB, less where the cache is small. The target is not synced.
pub async fn get(
    fetcher: &Fetcher,
    file: &FileView<'_>,
    target: &dyn ByteFile,
    progress: &mut (dyn FnMut(GetProgress) + Send),
) -> Result<GetProgress, FileError> {
    let mut state = GetProgress { bytes: file.length, ..GetProgress::default() };
    let size = file.snapshot.page_size();
    if file.length < target.len()? {
        target.set_len(file.length)?;
    }
    if file.length > 0 {
        let last = page_of(file.length - 1, size);
        let most = (WINDOW_BYTES / size.bytes()).min(file.volume.page_cache().memory_pages() / (2 * WINDOWS));
        let first = page_of(0, size);
        let mut windows = futures::stream::iter(groups(first, last, most))
            .map(|window| async move {
                let remote = fetcher.remote();
                chunks::load(&**remote, file.volume, &file.snapshot, &window).await?;
                let differing = differing(file, target, &window)?;
                fetcher.fetch_pages(file.volume, &file.snapshot, &differing).await?;
                Ok::<_, FileError>((window, differing))
            })
            .buffered(WINDOWS);
        while let Some((window, differing)) = windows.try_next().await? {
            for page in differing.iter() {
                let bytes = read_page(fetcher, file.volume, &file.snapshot, page).await?;
                let (at, len) = place(file, page);
                target.write(at, &bytes[..len])?;
                state.written += len as u64;
            }
            state.done += window.iter().map(|page| place(file, page).1 as u64).sum::<u64>();
            progress(state);
        }
    }
    target.set_len(file.length)?;
    Ok(state)
}

/// Where page `page` of the volume lies in the file, and how many of its bytes are the file's.
fn place(file: &FileView<'_>, page: PageIdx) -> (u64, usize) {
    let size = u64::from(file.snapshot.page_size().get());
    let at = u64::from(page.get() - 2) * size;
    (at, (file.length - at).min(size) as usize)
}

/// The pages of a window that the target does not hold.
fn differing(file: &FileView<'_>, target: &dyn ByteFile, window: &PageSet) -> Result<PageSet, FileError> {
    let mut differing = PageSet::new();
    let mut page_bytes = vec![0; file.snapshot.page_size().bytes()];
    for page in window.iter() {
        let (at, len) = place(file, page);
        page_bytes.fill(0);
        let had = target.read(at, &mut page_bytes[..len])?;
        let same = match file.snapshot.location(page) {
            // Past the target's end there will be zeroes.
            Location::Zero => page_bytes[..had].iter().all(|byte| *byte == 0),
            Location::Frame(_, slot) => had == len && slot.hash == PageHash::of(page, &page_bytes),
            Location::Local(bytes) => had == len && *bytes == page_bytes,
            Location::Unknown(_) => false,
        };
        if !same {
            differing.insert(page);
        }
    }
    Ok(differing)
}
