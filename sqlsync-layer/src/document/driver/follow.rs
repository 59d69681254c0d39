//! Following: after a pull, the pages that it changed are brought here, too, so that they can be read offline.
//!
//! Which pages changed is known commit by commit. A replica that was far behind jumps over commits to a
//! checkpoint, which names none; then whatever was here before counts as changed, and what was appended.
//!
//! Invariant: a page that was to come and could not be fetched is tried again by every later round, until it
//! is here or no page of the volume any more.

use graft::fetch::{FetchError, Fetcher};
use graft::pull::Pulled;
use graft::store::StoreError;
use graft::volume::Volume;
use graft::{PageIdx, PageSet};
use parking_lot::Mutex;

/// Pages fetched at once, so that memory does not follow what others changed.
const WINDOW_PAGES: u64 = 4096;

/// See the module.
#[derive(Debug)]
pub(super) struct Follow {
    fetcher: Fetcher,
    /// What changed and is not known to be here.
    missed: Mutex<PageSet>,
}

impl Follow {
    pub(super) fn new(fetcher: Fetcher) -> Follow {
        Follow { fetcher, missed: Mutex::default() }
    }

    /// Notes what a pull found. To be called before the volume goes where it leads.
    pub(super) fn note(&self, volume: &Volume, pulled: &Pulled) -> Result<(), StoreError> {
        let mut missed = self.missed.lock();
        for head in &pulled.heads {
            missed.union_with(&head.set.to_set());
        }
        if pulled.jump.is_some() {
            let before = volume.base();
            let mut here = PageSet::new();
            if before.pages() > 0 {
                here.insert_range(1, before.pages());
            }
            here.subtract(&volume.missing(&before, &here)?);
            missed.union_with(&here);
            if let Some(appended) = before.pages().checked_add(1) {
                missed.insert_range(appended, u32::MAX);
            }
        }
        Ok(())
    }

    /// Fetches what was noted, as the volume's base has it.
    pub(super) async fn bring(&self, volume: &Volume) -> Result<(), FetchError> {
        let base = volume.base();
        loop {
            let window = {
                let mut missed = self.missed.lock();
                missed.clip(base.pages());
                first(&missed, WINDOW_PAGES)
            };
            if window.is_empty() {
                return Ok(());
            }
            self.fetcher.keep_pages(volume, &base, &window).await?;
            self.missed.lock().subtract(&window);
        }
    }
}

/// The first `most` pages of a set.
fn first(set: &PageSet, most: u64) -> PageSet {
    let last = set.iter().take(usize::try_from(most).unwrap_or(usize::MAX)).last();
    let mut window = set.clone();
    window.clip(last.map_or(0, PageIdx::get));
    window
}
