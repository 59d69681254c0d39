//! Reading on when what a page table names was moved and deleted: finding the same versions elsewhere.
//!
//! A snapshot names places. Compaction copies pages to better ones, and garbage collection deletes the
//! old ones once no retained checkpoint names them. A reader that still holds them finds nothing there,
//! reads the newest checkpoint, and fetches the same *versions* from where they are now: the snapshot
//! that it holds goes on, since caches know pages by version.
//!
//! Costs nothing before something is gone; then a listing, a root, and the chunks of the pages asked for.
//!
//! Invariants: no page of another version is ever put in place of one that is gone. Where a version is
//! nowhere any more, the reader is told that its snapshot expired.

use std::collections::BTreeMap;

use crate::chunks;
use crate::fetch::FetchError;
use crate::gc::is_buried;
use crate::history::{Start, checkpoint_below, newest_checkpoint, read_checkpoint};
use crate::ids::Seq;
use crate::page_set::PageSet;
use crate::pull::PullError;
use crate::remote::{Remote, RemoteError};
use crate::snapshot::{FrameRef, Location, Snapshot};
use crate::volume::Volume;

/// Times that a table is read anew because it was collected meanwhile.
const TRIES_MAX: u32 = 3;

/// The key of the object that is gone, if that is what failed: nothing has the key any more, or a
/// tombstone does, in which no frame can be found. Fails where the store does not say which: what was
/// collected would be called damaged.
async fn gone(remote: &dyn Remote, error: &FetchError) -> Result<Option<String>, RemoteError> {
    match error {
        FetchError::Remote(RemoteError::NotFound { key }) => Ok(Some(key.clone())),
        FetchError::Damaged(damaged) => match is_buried(remote, &damaged.key).await {
            Ok(is_buried) => Ok(is_buried.then(|| damaged.key.clone())),
            Err(RemoteError::NotFound { key }) => Ok(Some(key)),
            Err(error) => Err(error),
        },
        FetchError::Remote(_) | FetchError::Store(_) | FetchError::Expired { .. } => Ok(None),
    }
}

/// After a fetch of `pages` of `snapshot` failed with `error`: a snapshot that names where the same
/// versions are now.
///
/// # Errors
///
/// `error` itself where nothing is gone, or nothing could be learned about it;
/// [`FetchError::Expired`] where a version that was asked for is nowhere any more, and where `snapshot` itself
/// cannot say which version it has of one, and nobody else can any more.
pub(crate) async fn elsewhere(
    remote: &dyn Remote,
    volume: &Volume,
    snapshot: &Snapshot,
    pages: &PageSet,
    error: FetchError,
) -> Result<Snapshot, FetchError> {
    let Some(key) = gone(remote, &error).await? else { return Err(error) };
    let expired = || FetchError::Expired { key: key.clone() };
    let start = match newest(remote, volume, snapshot).await {
        Ok(Some(start)) => start,
        Ok(None) => return Err(error),
        Err(PullError::Remote(error)) => return Err(error.into()),
        Err(PullError::Damaged(damaged)) => return Err(damaged.into()),
        Err(PullError::Diverged { .. } | PullError::Expired { .. }) => return Err(expired()),
    };
    let Some(root) = &start.checkpoint else { return Err(error) };
    // Whoever takes a snapshot from now on has the new places.
    volume.adopt(&start, snapshot.log_bytes())?;
    let is_unread = |page| matches!(snapshot.location(page), Location::Unknown(_));
    let is_past = root.lsn <= snapshot.lsn();
    if pages.iter().any(is_unread) && !(is_past && volume.reseeded(snapshot).is_some()) {
        // What is found of it could not be read from it.
        return Err(expired());
    }
    if is_past {
        // It is of this snapshot's own past: all of the table can stand on it.
        let fresh = snapshot.rebased(root, &start.chunks);
        chunks::load(remote, volume, &fresh, pages).await?;
        return Ok(fresh);
    }
    let (version, lineage) = (snapshot.version(), snapshot.lineage());
    let fresh = Snapshot::of_checkpoint(root, &start.chunks, start.volumes.clone(), version, lineage);
    let missing = volume.missing(snapshot, pages)?;
    chunks::load(remote, volume, &fresh, &missing).await?;
    let mut moved = BTreeMap::new();
    for page in missing.iter() {
        let place = |frame: &FrameRef| {
            let at = frame.slots.iter().position(|slot| slot.page == page)?;
            u8::try_from(at).ok()
        };
        match (snapshot.location(page), fresh.location(page)) {
            (Location::Frame(_, then), Location::Frame(frame, now)) if then.lsn == now.lsn => {
                moved.insert(page, (frame.clone(), place(frame).ok_or_else(expired)?));
            }
            // Written after the checkpoint: its place cannot have gone.
            (Location::Frame(frame, then), _) if then.lsn > root.lsn && *frame.key != *key => {}
            (Location::Zero | Location::Local(_), _) => {}
            (Location::Frame(..) | Location::Unknown(_), _) => return Err(expired()),
        }
    }
    Ok(snapshot.moved(&moved).0)
}

/// The base of `volume`, with the parts of its page table that `pages` of it need.
pub(crate) async fn base(
    remote: &dyn Remote,
    volume: &Volume,
    pages: impl Fn(&Snapshot) -> PageSet,
) -> Result<Snapshot, FetchError> {
    let mut tries = 0;
    loop {
        let base = volume.base();
        match chunks::load(remote, volume, &base, &pages(&base)).await {
            Ok(()) => return Ok(base),
            // The table's places were collected: the volume goes on from the newest checkpoint.
            Err(error) if tries < TRIES_MAX => {
                tries += 1;
                elsewhere(remote, volume, &base, &PageSet::new(), error).await?;
            }
            Err(error) => return Err(error),
        }
    }
}

/// The newest checkpoint of the volume, if it has one that `snapshot` does not know. Of a fork without
/// one of its own, the newest of its nearest ancestor that has one, at or below where it was forked.
async fn newest(
    remote: &dyn Remote,
    volume: &Volume,
    snapshot: &Snapshot,
) -> Result<Option<Start>, PullError> {
    let seq = newest_checkpoint(remote, volume.id()).await?;
    let known = snapshot.checkpoint().filter(|root| root.volume == volume.id());
    if seq == Seq::ZERO {
        return ancestors(remote, snapshot).await;
    }
    if known.is_some_and(|known| known.seq >= seq) {
        return Ok(None);
    }
    let mut start = read_checkpoint(remote, volume.id(), seq).await?;
    start.volumes = snapshot.volumes().clone();
    Ok(Some(start))
}

async fn ancestors(remote: &dyn Remote, snapshot: &Snapshot) -> Result<Option<Start>, PullError> {
    let volumes = snapshot.volumes().volumes();
    for (ancestor, last) in volumes.iter().rev().skip(1) {
        let newest = newest_checkpoint(remote, *ancestor).await?;
        let Some(mut start) = checkpoint_below(remote, *ancestor, newest, |lsn, _| lsn <= *last).await?
        else {
            continue;
        };
        start.volumes = snapshot.volumes().clone();
        let found = start.checkpoint.as_ref().map(|root| (root.volume, root.seq));
        let known = snapshot.checkpoint().map(|root| (root.volume, root.seq));
        return Ok(Some(start).filter(|_| found != known));
    }
    Ok(None)
}

#[cfg(test)]
mod tests;
