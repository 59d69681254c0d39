//! Keeps a reader's lease while it reads: the clock and the task that [`Lease`] does without.
//!
//! Invariants: a renewal that fails is tried again every few seconds until the lease lapses, and after
//! that, too: then it is taken anew if the floor still allows it. Whoever reads may ask
//! [`Keeper::standing`] at any time; reading goes on whatever it answers. Dropped or closed, the lease is
//! given up; a process that dies leaves one that lapses.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use futures::channel::oneshot;
use futures::future::{Either, select};
use parking_lot::Mutex;
use tokio::task::JoinHandle;

use super::{Lease, LeaseError, RENEW_MS, Standing};
use crate::ids::LeaseId;
use crate::remote::SharedRemote;
use crate::snapshot::Snapshot;

/// How long after a renewal that failed it is tried again.
const RETRY: Duration = Duration::from_secs(15);

/// Wall-clock time that never goes back and never stands still: the steady clock, and on top of it whatever
/// the wall clock was ever seen ahead of that, because the machine slept or was set. A wall clock that is set
/// forward ends a lease too early; one that is set back again changes nothing.
#[derive(Debug, Clone)]
struct Clock {
    /// What the wall clock would have shown when the steady one began.
    began_ms: Arc<AtomicI64>,
    steady: Instant,
}

#[allow(clippy::disallowed_methods, reason = "a driver: it owns the lease's clock")]
impl Clock {
    fn start() -> Clock {
        Clock { began_ms: Arc::new(AtomicI64::new(wall_ms())), steady: Instant::now() }
    }

    fn now_ms(&self) -> i64 {
        let steady = i64::try_from(self.steady.elapsed().as_millis()).unwrap_or(i64::MAX);
        self.at(steady, wall_ms())
    }

    /// The time when the steady clock has gone `steady_ms` and the wall clock shows `wall_ms`.
    fn at(&self, steady_ms: i64, wall_ms: i64) -> i64 {
        let seen = wall_ms.saturating_sub(steady_ms);
        let began = self.began_ms.fetch_max(seen, Ordering::Relaxed).max(seen);
        began.saturating_add(steady_ms)
    }
}

#[allow(clippy::disallowed_methods, reason = "a driver: it owns the lease's clock")]
fn wall_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// A lease that renews itself until it is closed or dropped.
#[derive(Debug)]
pub struct Keeper {
    clock: Clock,
    lease: Arc<Mutex<Lease>>,
    renewing: JoinHandle<()>,
    /// Dropping it ends the task, which gives the lease up.
    close: Option<oneshot::Sender<()>>,
}

impl Keeper {
    /// Takes a lease on what `snapshot` reads, and keeps it. `id` is fresh and random. Must be called in
    /// tokio. Costs what [`Lease::take`] says, and one GET and one PUT every five minutes.
    ///
    /// # Errors
    ///
    /// [`LeaseError`]: reading goes on without one, or not at all, as the caller decides.
    pub async fn hold(remote: SharedRemote, snapshot: &Snapshot, id: LeaseId) -> Result<Keeper, LeaseError> {
        let clock = Clock::start();
        let taken = Lease::take(&*remote, snapshot, id, clock.now_ms()).await?;
        let lease = Arc::new(Mutex::new(taken));
        let (close, closed) = oneshot::channel();
        let renewing = tokio::spawn(keep(remote, lease.clone(), clock.clone(), closed));
        Ok(Keeper { clock, lease, renewing, close: Some(close) })
    }

    /// Where the lease stands now.
    pub fn standing(&self) -> Standing {
        self.lease.lock().standing(self.clock.now_ms())
    }

    /// Gives the lease up and waits until it is gone, or has been left to lapse.
    pub async fn close(mut self) {
        self.close = None;
        if let Err(error) = (&mut self.renewing).await {
            tracing::warn!(%error, "the keeper of a reader's lease ended; the lease lapses by itself");
        }
    }
}

/// A lease that is taken beside the reading, which does not wait for it and goes on without one. Dropped,
/// it is given up.
#[derive(Debug)]
pub struct Holding(JoinHandle<Result<Keeper, LeaseError>>);

impl Holding {
    /// Takes a lease on what `snapshot` reads, and keeps it, as [`Keeper::hold`] does. Must be called in
    /// tokio; does not wait.
    pub fn begin(remote: SharedRemote, snapshot: &Snapshot, id: LeaseId) -> Holding {
        let snapshot = snapshot.clone();
        Holding(tokio::spawn(async move {
            let held = Keeper::hold(remote, &snapshot, id).await;
            if let Err(error) = &held {
                tracing::info!(lsn = %snapshot.lsn(), %error, "a state of the past is read without a lease");
            }
            held
        }))
    }

    /// Gives it up; answers where it stood.
    ///
    /// # Errors
    ///
    /// Why there was none.
    pub async fn end(self) -> Result<Standing, LeaseError> {
        match self.0.await {
            Ok(Ok(keeper)) => {
                let standing = keeper.standing();
                keeper.close().await;
                Ok(standing)
            }
            Ok(Err(error)) => Err(error),
            // It panicked, or the runtime ends: nothing holds any more.
            Err(error) => {
                tracing::warn!(%error, "taking a reader's lease ended badly");
                Ok(Standing::Lapsed)
            }
        }
    }
}

/// Renews until `closed`, then releases.
async fn keep(
    remote: SharedRemote,
    lease: Arc<Mutex<Lease>>,
    clock: Clock,
    mut closed: oneshot::Receiver<()>,
) {
    let mut wait = Duration::from_millis(RENEW_MS as u64);
    loop {
        let waited = std::pin::pin!(tokio::time::sleep(wait));
        if let Either::Left(_) = select(&mut closed, waited).await {
            break;
        }
        let mut renewed = lease.lock().clone();
        let lapsed = renewed.standing(clock.now_ms()) == Standing::Lapsed;
        let result = renewed.renew(&*remote, clock.now_ms()).await;
        // Also where it failed: it may have turned out that the lease is gone.
        *lease.lock() = renewed.clone();
        wait = match result {
            Ok(()) => Duration::from_millis(RENEW_MS as u64),
            Err(LeaseError::Expired { volume, lsn, floor }) => {
                tracing::warn!(%volume, %lsn, %floor, "a reader's lease lapsed, and its state was given up");
                RETRY
            }
            Err(error) => {
                tracing::warn!(key = %renewed.key(), lapsed, %error, "a reader's lease was not renewed");
                RETRY
            }
        };
    }
    let held = lease.lock().clone();
    if let Err(error) = held.release(&*remote).await {
        tracing::debug!(%error, "a reader's lease was not deleted and lapses by itself");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A wall clock that is set forward and back again: time neither goes back nor stands still.
    #[test]
    fn time_goes_on_evenly_whatever_the_wall_clock_does() {
        const HOUR: i64 = 3_600_000;
        let clock = Clock { began_ms: Arc::new(AtomicI64::new(1_000)), steady: Clock::start().steady };
        assert_eq!(clock.at(0, 1_000), 1_000);
        assert_eq!(clock.at(10, 1_010), 1_010);
        assert_eq!(clock.at(20, 0), 1_020, "set back");
        assert_eq!(clock.at(30, 1_030 + HOUR), 1_030 + HOUR, "set forward, or slept");
        for passed in [1, 60_000, HOUR, 2 * HOUR] {
            assert_eq!(clock.at(30 + passed, 1_030 + passed), 1_030 + HOUR + passed, "set back again");
        }
        assert_eq!(clock.clone().at(40, 0), 1_040 + HOUR, "for all who use it");
    }
}
