//! Keeps a reader's lease while it reads: the clock and the task that [`Lease`] does without.
//!
//! Invariants: a renewal that fails is tried again every few seconds until the lease lapses, and after
//! that, too: then it is taken anew if the floor still allows it. Whoever reads may ask
//! [`Keeper::standing`] at any time; reading goes on whatever it answers. Dropped or closed, the lease is
//! given up; a process that dies leaves one that lapses.

use std::sync::Arc;
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

/// Wall-clock time that goes on evenly: as far as the steady clock says, or, where the machine slept, the
/// wall clock. Setting the wall clock back does not move it.
#[derive(Debug, Clone, Copy)]
struct Clock {
    began_ms: i64,
    steady: Instant,
}

#[allow(clippy::disallowed_methods, reason = "a driver: it owns the lease's clock")]
impl Clock {
    fn start() -> Clock {
        Clock { began_ms: wall_ms(), steady: Instant::now() }
    }

    fn now_ms(&self) -> i64 {
        let steady = i64::try_from(self.steady.elapsed().as_millis()).unwrap_or(i64::MAX);
        self.began_ms.saturating_add(steady).max(wall_ms())
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
    /// tokio. Costs what [`Lease::take`] says, and one PUT every five minutes.
    ///
    /// # Errors
    ///
    /// [`LeaseError`]: reading goes on without one, or not at all, as the caller decides.
    pub async fn hold(remote: SharedRemote, snapshot: &Snapshot, id: LeaseId) -> Result<Keeper, LeaseError> {
        let clock = Clock::start();
        let taken = Lease::take(&*remote, snapshot, id, clock.now_ms()).await?;
        let lease = Arc::new(Mutex::new(taken));
        let (close, closed) = oneshot::channel();
        let renewing = tokio::spawn(keep(remote, lease.clone(), clock, closed));
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
        wait = match renewed.renew(&*remote, clock.now_ms()).await {
            Ok(()) => {
                *lease.lock() = renewed;
                Duration::from_millis(RENEW_MS as u64)
            }
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
