//! The bottom of a log: how the tombstones of [`gc`](super) go at last, and who must look because of it.
//!
//! ```text
//!   1 ……………… bottom ……………………………… floor ─────────── newest
//!   keys may be free │ tombstones, and what is pinned │ all readable
//! ```
//!
//! A tombstone keeps a key taken, so that a create that comes late loses. It cannot stay for ever: a
//! collection would list every commit that there ever was. So it is deleted once it is far below the
//! floor: by [`Burial::commits`] LSNs or [`Burial::checkpoints`] numbers, and [`Burial::ms`] after it was
//! written. Before the first of them is deleted, the new *bottom* is published; it only rises, and no key
//! above it was ever free again. From then on a create of an LSN at or below the bottom may succeed and be
//! in no history. Two defences keep a writer from acknowledging it:
//!
//! 1. *Time.* A writer that loses LSN n has a day ([`Burial::ms`]) in which its create meets a commit or
//!    a tombstone. A request does not travel for a day: clients and stores end it within minutes. Where
//!    that holds, nothing else is needed: whoever sends a create had looked at the log shortly before, or
//!    does so now by (2). The day is counted by the store's own stamps: from that of the tombstone to
//!    the newest in the same listing, of which none counts that is later than the collector's clock. So a
//!    collector's clock can only hold a tombstone back; one goes early only where an object is stamped in
//!    the future (stamps may be file times) *and* the collector's clock is there, too.
//! 2. *A second look.* A writer whose base was last seen as the head more than [`RECENT`] ago (half the
//!    default grace), or that cannot say when, because it was restarted, reads the bottom after its create
//!    and before it acknowledges: [`settle`]. One LIST. Above the bottom, the key was never free, so that
//!    the create decides as ever. Below, it decides nothing: [`PublishError::Forgotten`]. The read comes
//!    after the create and the bottom is published before a key is freed, so that a create that found a
//!    freed key always sees a bottom above it.
//!
//! *The clock assumption of (2)*: of a pause longer than a day, at least one of this machine's two clocks
//! (the steady one, which may stand still while the machine sleeps, and the wall clock, which may be set)
//! shows more than half an hour; a wall clock that went backwards counts as a pause. Only differences on
//! one machine count: no two clocks need agree. What counts as having seen the head: a pull, or a create
//! of its own that was answered (then the key was free when it was sent, and so were all after it). A commit
//! that is *read back* says nothing of when its LSN was free: an earlier try may have put it there long ago.
//! So a lost write takes a writer that sleeps for a day between its look and its create while both of its
//! clocks stand still, or a request that travels for a day.
//!
//! What a late create leaves below the bottom harms nobody: commits there are named by nothing, readers
//! that come upon one hear `Expired`, and the next collection buries it. A late *checkpoint* there could be
//! taken for the one that a fork was made from. It could only if it was derived from that very one (a
//! checkpoint derived from a later one has a later LSN than the fork), so the number after each checkpoint
//! that is kept, and number 1, are never freed.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::inventory::Inventory;
use super::{Floor, floor_of};
use crate::format::tombstone::Of;
use crate::ids::{Lsn, Seq, VolumeId, key};
use crate::publish::{Prepared, PublishError, Published};
use crate::pull::PullError;
use crate::remote::{Remote, RemoteError};

/// How long a look at the log vouches for its head: half the default grace.
pub const RECENT: Duration = Duration::from_secs(1800);

/// When tombstones go: all of it must hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Burial {
    /// A commit's: so many LSNs below the floor.
    pub(crate) commits: u64,
    /// A checkpoint's: so many numbers below the floor's.
    pub(crate) checkpoints: u64,
    /// So many milliseconds after it was written, by the store's clock.
    pub(crate) ms: i64,
}

impl Burial {
    /// 1,024 commits, 64 checkpoints and a day; longer than a day where the grace is more than half of one.
    pub(crate) fn after(grace_ms: i64) -> Burial {
        #[cfg(feature = "plants")]
        if let Some(played) = crate::plants::played() {
            let (commits, checkpoints, ms) = played.burial;
            return Burial { commits, checkpoints, ms };
        }
        Burial { commits: 1024, checkpoints: 64, ms: grace_ms.saturating_mul(2).max(86_400_000) }
    }
}

/// The tombstones that go, and the bottom below which they all are.
pub(super) fn freed(inventory: &Inventory, floor: Floor, burial: Burial) -> (Vec<Of>, Floor) {
    let ripe = inventory.store_ms.saturating_sub(burial.ms);
    let mut bottom = inventory.bottom();
    let mut freed = Vec::new();
    // From the oldest on, as far as all of them are ripe.
    for (lsn, written_ms) in inventory.buried_commits.iter().rev() {
        if lsn.0.saturating_add(burial.commits) > floor.lsn.0 || *written_ms > ripe {
            break;
        }
        bottom.lsn = bottom.lsn.max(*lsn);
        freed.push(Of::Commit(*lsn));
    }
    for (seq, written_ms) in inventory.buried_checkpoints.iter().rev() {
        if seq.0.saturating_add(burial.checkpoints) > floor.seq.0 || *written_ms > ripe {
            break;
        }
        // What a late checkpointer could pass for, where it began at one that is kept.
        let before = Seq(seq.0.saturating_sub(1));
        if before != Seq::ZERO && !inventory.checkpoints.contains_key(&before) {
            bottom.seq = bottom.seq.max(*seq);
            freed.push(Of::Checkpoint(*seq));
        }
    }
    (freed, bottom)
}

/// The bottom in force. LSNs and checkpoint numbers above it were never free again; both are 0 where
/// nothing was deleted yet. One LIST.
pub async fn bottom(remote: &dyn Remote, volume: VolumeId) -> Result<Floor, PullError> {
    let rows = remote.list(&key::bottom_prefix(volume), None, 1).await?;
    rows.first().map_or(Ok(Floor::default()), |row| Ok(floor_of(row)?))
}

/// When the newest commit of a log was last seen, and which it was. Shared by a replica and the commits
/// that it seals. Equal to every other: it is no part of a commit.
#[derive(Clone, Default)]
pub struct Confirmed(Arc<Mutex<Option<(Lsn, Moment)>>>);

impl Confirmed {
    /// At `at`, or later, no LSN after `head` was taken.
    pub(crate) fn note(&self, head: Lsn, at: Moment) {
        *self.0.lock() = Some((head, at));
    }

    /// As after a long sleep.
    #[cfg(test)]
    pub(crate) fn sleep(&self) {
        *self.0.lock() = None;
    }

    /// Whether `lsn` was free recently.
    fn vouches_for(&self, lsn: Lsn) -> bool {
        self.0.lock().is_some_and(|(head, at)| lsn > head && at.is_recent())
    }
}

impl fmt::Debug for Confirmed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Confirmed({:?})", self.0.lock().map(|(head, _)| head))
    }
}

impl PartialEq for Confirmed {
    fn eq(&self, _: &Confirmed) -> bool {
        true
    }
}

/// A moment by both of the machine's clocks.
#[cfg(not(target_arch = "wasm32"))]
#[derive(Clone, Copy)]
pub(crate) struct Moment {
    steady: std::time::Instant,
    wall: std::time::SystemTime,
    #[cfg(feature = "plants")]
    played: Option<crate::plants::Played>,
}

#[cfg(not(target_arch = "wasm32"))]
#[allow(
    clippy::disallowed_methods,
    reason = "a defence against clocks that stand still: it decides no content"
)]
impl Moment {
    pub(crate) fn now() -> Moment {
        Moment {
            steady: std::time::Instant::now(),
            wall: std::time::SystemTime::now(),
            #[cfg(feature = "plants")]
            played: crate::plants::played(),
        }
    }

    fn is_recent(self) -> bool {
        #[cfg(feature = "plants")]
        if let (Some(then), Some(now)) = (self.played, crate::plants::played()) {
            return now.now_ms.saturating_sub(then.now_ms) <= now.recent_ms;
        }
        let wall = std::time::SystemTime::now().duration_since(self.wall);
        self.steady.elapsed() <= RECENT && wall.is_ok_and(|wall| wall <= RECENT)
    }
}

/// No clocks here: nothing is recent, so that every create is looked at twice.
#[cfg(target_arch = "wasm32")]
#[derive(Clone, Copy)]
pub(crate) struct Moment;

#[cfg(target_arch = "wasm32")]
impl Moment {
    pub(crate) fn now() -> Moment {
        Moment
    }

    fn is_recent(self) -> bool {
        false
    }
}

/// What `outcome`, the log's answer to `prepared`, is worth. `created_after` is when its sending began, where
/// the create itself was answered; `None` where the log was read back.
///
/// No request where the log's head was seen recently; else one LIST.
///
/// # Errors
///
/// `outcome`'s; [`PublishError::Forgotten`] where the log cannot say any more who had the LSN;
/// [`PublishError::Unknown`] where the second look failed, after which the same commit is published again.
pub(crate) async fn settle(
    remote: &dyn Remote,
    prepared: &Prepared,
    created_after: Option<Moment>,
    outcome: Result<Published, PublishError>,
) -> Result<Published, PublishError> {
    let lsn = prepared.head.lsn;
    let decided = matches!(outcome, Ok(_) | Err(PublishError::Rejected { .. }));
    if decided && !prepared.confirmed.vouches_for(lsn) {
        match bottom(remote, prepared.head.volume).await {
            Ok(bottom) if lsn <= bottom.lsn => {
                return Err(PublishError::Forgotten { lsn, bottom: bottom.lsn });
            }
            Ok(_) => {}
            Err(PullError::Remote(source)) => return Err(PublishError::Unknown { lsn, source }),
            Err(PullError::Damaged(damaged)) => return Err(damaged.into()),
            Err(error @ (PullError::Diverged { .. } | PullError::Expired { .. })) => {
                let key = key::bottom_prefix(prepared.head.volume);
                let source = RemoteError::Unavailable { key, message: error.to_string() };
                return Err(PublishError::Unknown { lsn, source });
            }
        }
    }
    if let (Ok(_), Some(sent)) = (&outcome, created_after) {
        // The key was free when the create arrived, which is after its sending began: then it was free, too,
        // and so were all after it. What is read back may be of any earlier try, and vouches for nothing.
        prepared.confirmed.note(lsn, sent);
    }
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a look at the log vouches for: LSNs that were free then, for half an hour by both clocks.
    #[test]
    #[allow(clippy::disallowed_methods, reason = "it plays clocks that stand still or jump")]
    fn a_look_vouches_for_what_was_free_and_not_for_long() {
        let confirmed = Confirmed::default();
        assert!(!confirmed.vouches_for(Lsn(1)), "nobody has looked");
        let now = Moment::now();
        confirmed.note(Lsn(7), now);
        assert!(confirmed.vouches_for(Lsn(8)) && confirmed.vouches_for(Lsn(9)));
        assert!(!confirmed.vouches_for(Lsn(7)), "it was taken when it was looked at");
        let long = RECENT + Duration::from_secs(60);
        let slept = Moment { wall: now.wall - long, ..now };
        let jumped_back = Moment { wall: now.wall + Duration::from_secs(60), ..now };
        let waited = now.steady.checked_sub(long).map(|steady| Moment { steady, ..now });
        for moment in [Some(slept), Some(jumped_back), waited].into_iter().flatten() {
            confirmed.note(Lsn(7), moment);
            assert!(!confirmed.vouches_for(Lsn(8)));
        }
    }
}
