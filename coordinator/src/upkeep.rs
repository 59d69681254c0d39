//! Upkeep of a volume that is open: compaction and garbage collection, beside its traffic.
//!
//! After each checkpoint it is looked whether one of them is due. They run on a thread of their own, on a
//! replica of their own: mutations and readers go on, and what they publish is a checkpoint, which any
//! writer may lose. An idle volume costs nothing: garbage comes from commits alone. Only where a run has
//! given states up, a sweep comes after the grace and deletes what only they needed, also of a volume
//! that nobody has open any more. A sweep gives nothing up, so that none follows it.
//!
//! Invariants: at most one run for each volume of a coordinator; closing the volume ends it at its next
//! request, which leaves garbage at worst; two coordinators may do it at once. At most one sweep waits for
//! each volume, and at most [`SWEEPS_MAX`] run at a time; what waits ends with the coordinator, and the first run after its next start makes up for it.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use graft::compact::{Policy, Scope};
use graft::gc::{self, Retention};
use graft::remote::SharedRemote;
use graft::{CommitId, Lsn, VolumeId};
use parking_lot::Mutex;
use sqlsync_layer::upkeep::{self, Compacted, Request};
use tokio::sync::{Semaphore, oneshot};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;

use crate::clock;

/// When a coordinator compacts and collects.
#[derive(Debug, Clone, Copy)]
pub struct UpkeepLimits {
    /// When a volume is compacted; never where `None`.
    pub compact: Option<Policy>,
    /// How long between two runs of garbage collection on a volume; none where `None`.
    pub gc_every: Option<Duration>,
    /// What garbage collection keeps.
    pub retention: Retention,
}

impl Default for UpkeepLimits {
    /// The default policy; a run every six hours, with the default retention.
    fn default() -> UpkeepLimits {
        UpkeepLimits {
            compact: Some(Policy::default()),
            gc_every: Some(Duration::from_secs(6 * 3600)),
            retention: Retention::default(),
        }
    }
}

/// When each volume was collected by this process, and which are to be swept again. Outlives the volumes'
/// being open; dropped, it ends what waits.
pub(crate) struct Collected {
    last: Mutex<HashMap<VolumeId, Instant>>,
    waiting: Mutex<HashSet<VolumeId>>,
    sweeps: Mutex<JoinSet<()>>,
    /// Who may sweep: after many volumes became idle at one time, they would all be swept at one time.
    turns: Arc<Semaphore>,
}

impl Default for Collected {
    fn default() -> Collected {
        Collected {
            last: Mutex::default(),
            waiting: Mutex::default(),
            sweeps: Mutex::default(),
            turns: Arc::new(Semaphore::new(SWEEPS_MAX)),
        }
    }
}

impl Collected {
    /// Whether a run is due, which begins now.
    fn begins(&self, volume: VolumeId, every: Duration) -> bool {
        let mut last = self.last.lock();
        let due = last.get(&volume).is_none_or(|last| last.elapsed() >= every);
        if due {
            last.insert(volume, Instant::now());
        }
        due
    }

    /// Comes back for what a run has given up, after the grace. Must be called in tokio.
    fn sweep_later(self: &Arc<Self>, remote: &SharedRemote, volume: VolumeId, retention: Retention) {
        let grace = u64::try_from(retention.grace_ms).unwrap_or(0);
        if grace == 0 || !self.waiting.lock().insert(volume) {
            return;
        }
        let (collected, remote, turns) = (Arc::downgrade(self), remote.clone(), self.turns.clone());
        let mut sweeps = self.sweeps.lock();
        while sweeps.try_join_next().is_some() {}
        sweeps.spawn(async move {
            // The store's stamp of what was announced is a little later than the announcement began.
            tokio::time::sleep(Duration::from_millis(grace).saturating_add(SWEEP_AFTER)).await;
            // Nobody closes the semaphore.
            let Ok(_turn) = turns.acquire().await else { return };
            let Some(collected) = collected.upgrade() else { return };
            // What is announced from here on has a sweep of its own.
            collected.waiting.lock().remove(&volume);
            drop(collected);
            let runtime = tokio::runtime::Handle::current();
            let run = move || runtime.block_on(sweep(&remote, volume, retention));
            if let Err(error) = tokio::task::spawn_blocking(run).await {
                tracing::error!(%volume, %error, "sweeping ended badly; the next run makes up for it");
            }
        });
    }
}

/// How many sweeps run at a time, each on a thread of its own.
const SWEEPS_MAX: usize = 4;
/// How long after the grace the sweep comes: for requests under way and stamps that are whole seconds.
const SWEEP_AFTER: Duration = Duration::from_secs(2);

/// The upkeep of one open volume.
pub(crate) struct Upkeep {
    remote: SharedRemote,
    volume: VolumeId,
    limits: UpkeepLimits,
    collected: Arc<Collected>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The commit at which it was last looked whether the volume must be compacted.
    looked: Option<Lsn>,
    /// What runs; it stops when the sender is dropped.
    running: Option<(JoinHandle<()>, oneshot::Sender<()>)>,
}

impl Upkeep {
    pub(crate) fn new(
        remote: SharedRemote,
        volume: VolumeId,
        limits: UpkeepLimits,
        collected: Arc<Collected>,
    ) -> Arc<Upkeep> {
        Arc::new(Upkeep { remote, volume, limits, collected, state: Mutex::default() })
    }

    /// A checkpoint was written, or lost to another's, and the volume's newest commit is `lsn`. Must be
    /// called in tokio.
    pub(crate) fn after_checkpoint(&self, lsn: Lsn) {
        let mut state = self.state.lock();
        if state.running.as_ref().is_some_and(|(task, _)| !task.is_finished()) {
            return;
        }
        let looks = |policy: &Policy| {
            state.looked.is_none_or(|looked| lsn.0 >= looked.0.saturating_add(policy.every))
        };
        let policy = self.limits.compact.filter(looks);
        let collects = self.limits.gc_every.is_some_and(|every| self.collected.begins(self.volume, every));
        if policy.is_none() && !collects {
            return;
        }
        if policy.is_some() {
            state.looked = Some(lsn);
        }
        let (stop, stopped) = oneshot::channel();
        let collected = self.collected.clone();
        let (remote, volume, retention) = (self.remote.clone(), self.volume, self.limits.retention);
        let runtime = tokio::runtime::Handle::current();
        // Compression would hold up one of the threads that serve sockets.
        let task = tokio::task::spawn_blocking(move || {
            runtime.block_on(async move {
                let work = async {
                    if let Some(policy) = policy {
                        compact(&remote, volume, policy).await;
                    }
                    if collects {
                        collect(&remote, volume, retention, &collected).await;
                    }
                };
                tokio::select! {
                    () = work => {}
                    _ = stopped => {
                        tracing::debug!(%volume, "upkeep ended with the volume");
                        if collects {
                            // It may have announced what it did not come to delete.
                            collected.sweep_later(&remote, volume, retention);
                        }
                    }
                }
            });
        });
        state.running = Some((task, stop));
    }
}

async fn compact(remote: &SharedRemote, volume: VolumeId, policy: Policy) {
    let id = CommitId(clock::random_id());
    let request = Request { scope: Scope::Sparse, policy: Some(policy), id };
    match upkeep::compact(&**remote, volume, request, &|_, _| {}).await {
        Ok(Compacted::NotDue(how)) => tracing::debug!(%volume, ?how, "no compaction is due"),
        Ok(Compacted::Stored { seq, lsn, pages, segments, bytes }) => {
            tracing::info!(%volume, %seq, %lsn, pages, segments, bytes, "compacted");
        }
        Err(error) => tracing::warn!(%volume, %error, "not compacted; a later checkpoint tries again"),
    }
}

async fn collect(remote: &SharedRemote, volume: VolumeId, retention: Retention, collected: &Arc<Collected>) {
    match gc::collect(&**remote, volume, retention, clock::now_ms(), &|_, _| {}).await {
        Ok(plan) => {
            let (objects, bytes) = (plan.doomed.len(), plan.freed_bytes());
            tracing::info!(%volume, objects, bytes, publish = ?plan.publish, "collected");
            if plan.publish.is_some() {
                collected.sweep_later(remote, volume, retention);
            }
        }
        Err(error) => tracing::warn!(%volume, %error, "garbage collection ended early; the next run goes on"),
    }
}

/// Deletes what was announced a grace ago.
async fn sweep(remote: &SharedRemote, volume: VolumeId, retention: Retention) {
    match gc::sweep_announced(&**remote, volume, retention, clock::now_ms(), &|_, _| {}).await {
        Ok(plan) => {
            let (objects, bytes) = (plan.doomed.len(), plan.freed_bytes());
            tracing::info!(%volume, objects, bytes, "swept what was given up a grace ago");
        }
        Err(error) => tracing::warn!(%volume, %error, "sweeping ended early; the next run goes on"),
    }
}
