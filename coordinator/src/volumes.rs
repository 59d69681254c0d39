//! Which volumes are open. They open at first use and close when nobody has used them for a while.
//!
//! Invariants: at most one worker of a volume at a time (while one drains, an open waits); a volume
//! that does not exist leaves nothing behind, whatever names are asked for.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use graft::catalog::{self, CatalogError};
use graft::fetch::{Fetcher, Metrics, RemoteFetch};
use graft::format::meta::Meta;
use graft::pull::PullError;
use graft::remote::SharedRemote;
use graft::store::SharedStore;
use graft::volume::{OpenError, Options, Volume};
use graft::{CommitId, ModuleHash, PageSize, VolumeId, VolumeName};
use parking_lot::Mutex;
use reducers_abi::Runtime;
use sqlsync_layer::actor::{
    Actor, Ask, Asked, Deployed, Input, ModuleError, Modules, Output, SessionId, Standing,
};
use sqlsync_layer::protocol::{Reason, codes};
use sqlsync_layer::vfs::{IoFailure, Warmth, warm};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use crate::http::ApiError;
use crate::modules::StoreModules;
use crate::outbox::Outbox;
use crate::presence::Hub;
use crate::upkeep::{Collected, Upkeep};
use crate::worker::{self, Machine, OpenMachine, RemoteStorage, Work};
use crate::{Limits, clock};

/// Why a volume cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OpenVolumeError {
    /// There is none of this name.
    #[error("there is no volume `{name}` in {store}; `graft deploy MODULE.wasm --volume {name}` creates it")]
    NoSuchVolume {
        /// The name.
        name: VolumeName,
        /// The store.
        store: String,
    },
    /// The store failed, or the volume's worker did; trying again may help.
    #[error("volume `{name}` cannot be opened now: {message}")]
    Unavailable {
        /// The name.
        name: VolumeName,
        /// What failed.
        message: String,
    },
    /// What is stored of it is damaged; someone must look.
    #[error("volume `{name}` is damaged: {message}")]
    Damaged {
        /// The name.
        name: VolumeName,
        /// Which object, and how.
        message: String,
    },
    /// The server is stopping.
    #[error("the server is shutting down; connect again")]
    Shutdown,
}

/// The open volumes of a coordinator.
pub(crate) struct Volumes {
    remote: SharedRemote,
    cache: Option<SharedStore>,
    modules: Arc<StoreModules>,
    limits: Limits,
    slots: Mutex<HashMap<VolumeName, Arc<Slot>>>,
    collected: Arc<Collected>,
    /// Those that are open, for [`Volumes::fetched`].
    read: Arc<Mutex<BTreeMap<VolumeName, Weak<Volume>>>>,
    sessions: AtomicU64,
    stopping: AtomicBool,
    /// Every session's task holds a clone; closed when all are gone.
    tasks: Mutex<Option<(mpsc::Sender<()>, mpsc::Receiver<()>)>>,
}

impl std::fmt::Debug for Volumes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Volumes").field("open", &self.open_count()).finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct Slot {
    /// Held while opening and closing.
    worker: tokio::sync::Mutex<Option<mpsc::Sender<Work>>>,
    use_: Arc<Use>,
    sessions: Mutex<Sessions>,
    presence: Arc<Hub>,
}

impl Slot {
    fn new(limits: &Limits) -> Arc<Slot> {
        Arc::new(Slot {
            worker: tokio::sync::Mutex::default(),
            use_: Arc::default(),
            sessions: Mutex::default(),
            presence: Hub::new(limits.presence),
        })
    }
}

/// The sessions of a volume, to end them with the server.
#[derive(Debug, Default)]
struct Sessions {
    outboxes: HashMap<SessionId, Arc<Outbox>>,
    /// Why a session that comes now is ended at once.
    ended: Option<Reason>,
}

/// Who uses a volume.
#[derive(Debug)]
struct Use {
    sessions: AtomicUsize,
    last: Mutex<Instant>,
}

impl Default for Use {
    fn default() -> Use {
        Use { sessions: AtomicUsize::new(0), last: Mutex::new(Instant::now()) }
    }
}

/// The use of an open volume by one session or request.
#[derive(Debug)]
pub(crate) struct Lease {
    slot: Arc<Slot>,
    worker: mpsc::Sender<Work>,
    _task: mpsc::Sender<()>,
}

impl Lease {
    /// Where its work goes.
    pub(crate) fn worker(&self) -> &mpsc::Sender<Work> {
        &self.worker
    }

    /// Who is connected to it.
    pub(crate) fn presence(&self) -> &Arc<Hub> {
        &self.slot.presence
    }

    /// Makes the session known to [`Volumes::shutdown`].
    pub(crate) fn register(&self, session: SessionId, outbox: Arc<Outbox>) {
        let mut sessions = self.slot.sessions.lock();
        if let Some(reason) = &sessions.ended {
            outbox.close(Some(reason.clone()));
        }
        sessions.outboxes.insert(session, outbox);
    }

    pub(crate) fn unregister(&self, session: SessionId) {
        self.slot.sessions.lock().outboxes.remove(&session);
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        *self.slot.use_.last.lock() = Instant::now();
        self.slot.use_.sessions.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Volumes {
    pub(crate) fn new(
        remote: SharedRemote,
        cache: Option<SharedStore>,
        modules: Arc<StoreModules>,
        limits: Limits,
    ) -> Arc<Volumes> {
        Arc::new(Volumes {
            remote,
            cache,
            modules,
            limits,
            slots: Mutex::default(),
            collected: Arc::default(),
            read: Arc::default(),
            sessions: AtomicU64::new(0),
            stopping: AtomicBool::new(false),
            tasks: Mutex::new(Some(mpsc::channel(1))),
        })
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.limits
    }

    pub(crate) fn store_url(&self) -> String {
        self.remote.url()
    }

    pub(crate) fn open_count(&self) -> usize {
        self.slots.lock().len()
    }

    /// What reading and fetching cost each volume that is open.
    pub(crate) fn fetched(&self) -> Vec<(VolumeName, Metrics)> {
        let mut read = self.read.lock();
        read.retain(|_, volume| volume.strong_count() > 0);
        let open = read.iter().filter_map(|(name, volume)| Some((name.clone(), volume.upgrade()?)));
        open.map(|(name, volume)| (name, volume.metrics())).collect()
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    pub(crate) fn next_session(&self) -> SessionId {
        SessionId(self.sessions.fetch_add(1, Ordering::Relaxed) + 1)
    }

    /// The volume, opened if it is not open.
    pub(crate) async fn open(&self, name: &VolumeName) -> Result<Lease, OpenVolumeError> {
        let known = self.slots.lock().get(name).cloned();
        let slot = match known {
            Some(slot) => slot,
            None => {
                self.resolve(name).await?;
                let mut slots = self.slots.lock();
                slots.entry(name.clone()).or_insert_with(|| Slot::new(&self.limits)).clone()
            }
        };
        let mut held = slot.worker.lock().await;
        let task = match &*self.tasks.lock() {
            Some((task, _)) if !self.is_stopping() => task.clone(),
            Some(_) | None => return Err(OpenVolumeError::Shutdown),
        };
        let worker = match held.clone().filter(|worker| !worker.is_closed()) {
            Some(worker) => worker,
            None => {
                let worker = self.start(name).await?;
                *held = Some(worker.clone());
                worker
            }
        };
        slot.use_.sessions.fetch_add(1, Ordering::AcqRel);
        drop(held);
        Ok(Lease { slot, worker, _task: task })
    }

    async fn resolve(&self, name: &VolumeName) -> Result<VolumeId, OpenVolumeError> {
        catalog::resolve(&*self.remote, name).await.map_err(|error| from_catalog(name, error))
    }

    async fn start(&self, name: &VolumeName) -> Result<mpsc::Sender<Work>, OpenVolumeError> {
        let id = self.resolve(name).await?;
        let options = Options {
            store: self.cache.clone(),
            // Clients resend what is not durable, so the tip lives in memory.
            locals: None,
            cache_bytes: self.limits.cache_bytes,
            disk_bytes: self.limits.disk_bytes,
        };
        let opened =
            Volume::open(&*self.remote, id, options).await.map_err(|error| from_open(name, error))?;
        let remote = self.remote.clone();
        let fetch = Arc::new(RemoteFetch::new(self.remote.clone()));
        let modules: Arc<dyn Modules> = self.modules.clone();
        let limits = self.limits.actor;
        let (fetcher, runtime) = (fetch.fetcher().clone(), tokio::runtime::Handle::current());
        let upkeep = Upkeep::new(remote.clone(), id, self.limits.upkeep, self.collected.clone());
        // Rises from one opening to the next: a tip that was lost with a process is another epoch.
        let epoch = u64::try_from(clock::now_ms()).unwrap_or(0);
        let (read, read_as) = (self.read.clone(), name.clone());
        let open: OpenMachine = Box::new(move || {
            let actor =
                Actor::open(opened, fetch, modules, limits, epoch).map_err(|error| error.failure())?;
            read.lock().insert(read_as.clone(), Arc::downgrade(actor.volume()));
            runtime.spawn(warm_up(fetcher, actor.volume().clone()));
            let storage = RemoteStorage { remote, volume: actor.volume().clone(), upkeep };
            Ok((Box::new(actor), Box::new(storage)))
        });
        tracing::info!(volume = %name, %id, "opening");
        let look_every = self.limits.look_every;
        worker::start(name.as_str(), look_every, open).await.map_err(|failure| from_failure(name, failure))
    }

    /// Stores the module, makes the volume if it is new, and puts the module in force.
    pub(crate) async fn deploy(&self, name: &VolumeName, bytes: Bytes) -> Result<Deployed, ApiError> {
        let unavailable =
            |message: String| ApiError::Volume(OpenVolumeError::Unavailable { name: name.clone(), message });
        if self.is_stopping() {
            return Err(OpenVolumeError::Shutdown.into());
        }
        let checked = {
            let (modules, bytes) = (self.modules.clone(), bytes.clone());
            tokio::task::spawn_blocking(move || modules.check(&bytes)).await
        };
        let module = match checked {
            Ok(Ok(module)) => module,
            Ok(Err(error)) => return Err(ApiError::Module { message: error.to_string() }),
            Err(panic) => {
                tracing::error!(%panic, "checking a module panicked");
                return Err(ApiError::Module { message: "the module could not be compiled".into() });
            }
        };
        self.modules.store(module, bytes).await.map_err(|error| unavailable(error.to_string()))?;
        self.create_if_new(name).await?;
        let lease = self.open(name).await?;
        let (reply, deployed) = oneshot::channel();
        let gone = || unavailable("its worker ended during the deploy; deploy again".into());
        lease.worker.send(Work::Deploy { module, reply }).await.map_err(|_| gone())?;
        let deployed = deployed.await.map_err(|_| gone())?.map_err(ApiError::Deploy)?;
        tracing::info!(volume = %name, %module, schema = deployed.schema, lsn = %deployed.lsn, "deployed");
        Ok(deployed)
    }

    /// Asks once.
    pub(crate) async fn ask(&self, name: &VolumeName, lease: &Lease, ask: Ask) -> Result<Asked, ApiError> {
        let (reply, asked) = oneshot::channel();
        Ok(request(name, lease, Work::Ask { ask, reply }, asked).await??)
    }

    /// How the volume stands.
    pub(crate) async fn inspect(
        &self,
        name: &VolumeName,
        lease: &Lease,
    ) -> Result<Standing, OpenVolumeError> {
        let (reply, standing) = oneshot::channel();
        request(name, lease, Work::Inspect { reply }, standing).await
    }

    /// The module, ready to run.
    pub(crate) async fn load(
        &self,
        name: &VolumeName,
        module: ModuleHash,
    ) -> Result<Arc<dyn Runtime>, OpenVolumeError> {
        let modules = self.modules.clone();
        let name = name.clone();
        match tokio::task::spawn_blocking(move || modules.load(module)).await {
            Ok(Ok(loaded)) => Ok(loaded),
            Ok(Err(error @ ModuleError::Invalid { .. })) => {
                Err(OpenVolumeError::Damaged { name, message: error.to_string() })
            }
            Ok(Err(error)) => Err(OpenVolumeError::Unavailable { name, message: error.to_string() }),
            Err(panic) => {
                tracing::error!(%panic, "loading a module panicked");
                Err(OpenVolumeError::Unavailable { name, message: "its module could not be loaded".into() })
            }
        }
    }

    async fn create_if_new(&self, name: &VolumeName) -> Result<(), OpenVolumeError> {
        match self.resolve(name).await {
            Ok(_) => return Ok(()),
            Err(OpenVolumeError::NoSuchVolume { .. }) => {}
            Err(error) => return Err(error),
        }
        let id = VolumeId(clock::random_id());
        let meta = Meta { page_size: PageSize::DEFAULT, parent: None };
        match catalog::create(&*self.remote, name, id, meta).await {
            Ok(()) => tracing::info!(volume = %name, %id, "created"),
            // Somebody else made it just now: as good.
            Err(CatalogError::Exists { .. }) => {}
            Err(error) => return Err(from_catalog(name, error)),
        }
        Ok(())
    }

    /// Closes volumes without sessions that nobody used for `idle`.
    async fn close_unused(&self, idle: Duration) {
        let slots: Vec<(VolumeName, Arc<Slot>)> =
            self.slots.lock().iter().map(|(name, slot)| (name.clone(), slot.clone())).collect();
        // Together, so that one volume whose store is slow does not keep the others open.
        futures::future::join_all(slots.iter().map(|(name, slot)| self.close_if_unused(name, slot, idle)))
            .await;
    }

    async fn close_if_unused(&self, name: &VolumeName, slot: &Arc<Slot>, idle: Duration) {
        let mut held = slot.worker.lock().await;
        let unused =
            slot.use_.sessions.load(Ordering::Acquire) == 0 && slot.use_.last.lock().elapsed() >= idle;
        if !unused {
            return;
        }
        if let Some(worker) = held.take() {
            drain(name, &worker, self.limits.drain_max).await;
            tracing::info!(volume = %name, "closed: unused");
        }
        // Whoever waits for `held` opens it again in this slot, so it goes only if nobody does: two
        // hold it, the map and the caller.
        let mut slots = self.slots.lock();
        if Arc::strong_count(slot) <= 2 {
            slots.remove(name);
        }
    }

    /// Ends everything. Answers whether all that was accepted is durable.
    pub(crate) async fn shutdown(&self) -> bool {
        self.stopping.store(true, Ordering::Release);
        let slots: Vec<(VolumeName, Arc<Slot>)> = self.slots.lock().drain().collect();
        let drain_max = self.limits.drain_max;
        let draining = slots.iter().map(|(name, slot)| async move {
            let worker = slot.worker.lock().await.take();
            let drained = match worker {
                Some(worker) => drain(name, &worker, drain_max).await,
                None => true,
            };
            let reason = Reason::new(codes::SHUTDOWN, OpenVolumeError::Shutdown.to_string());
            let mut sessions = slot.sessions.lock();
            for outbox in sessions.outboxes.values() {
                outbox.close(Some(reason.clone()));
            }
            sessions.ended = Some(reason);
            drained
        });
        let drained = futures::future::join_all(draining).await.into_iter().all(|drained| drained);
        let tasks = self.tasks.lock().take();
        if let Some((task, mut gone)) = tasks {
            drop(task);
            if tokio::time::timeout(Duration::from_secs(5), gone.recv()).await.is_err() {
                tracing::warn!("gave up on sessions that did not close");
            }
        }
        drained
    }
}

/// Gives work to a volume's worker and waits for its reply.
async fn request<T>(
    name: &VolumeName,
    lease: &Lease,
    work: Work,
    reply: oneshot::Receiver<T>,
) -> Result<T, OpenVolumeError> {
    let gone =
        || OpenVolumeError::Unavailable { name: name.clone(), message: "its worker ended; try again".into() };
    lease.worker.send(work).await.map_err(|_| gone())?;
    reply.await.map_err(|_| gone())
}

/// Waits until a worker has nothing that is not durable.
async fn drain(name: &VolumeName, worker: &mpsc::Sender<Work>, at_most: Duration) -> bool {
    let (drained, waiting) = oneshot::channel();
    let draining = async { worker.send(Work::Shutdown { drained }).await.is_ok() && waiting.await.is_ok() };
    match tokio::time::timeout(at_most, draining).await {
        Ok(true) => true,
        Ok(false) => {
            tracing::warn!(volume = %name, "its worker ended before it drained; clients resend");
            false
        }
        Err(_elapsed) => {
            tracing::warn!(volume = %name, ?at_most, "did not drain in time; clients resend");
            false
        }
    }
}

/// Fetches the pages that nearly every query reads, beside the first ones.
async fn warm_up(fetcher: Fetcher, volume: Arc<Volume>) {
    match warm(&fetcher, &volume, Warmth::Server).await {
        Ok(pages) => tracing::debug!(volume = %volume.id(), pages, "warm"),
        Err(error) => {
            tracing::debug!(volume = %volume.id(), %error, "not warmed; queries fetch what they lack")
        }
    }
}

/// Runs [`Volumes::close_unused`] until told to stop.
pub(crate) async fn close_idle(volumes: Arc<Volumes>, mut stopped: watch::Receiver<bool>) {
    let idle = volumes.limits.volume_idle;
    let mut ticks = tokio::time::interval((idle / 4).max(Duration::from_millis(10)));
    let stop = async { drop(stopped.wait_for(|stop| *stop).await) };
    tokio::pin!(stop);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = &mut stop => return,
        }
        volumes.close_unused(idle).await;
    }
}

impl Machine for Actor {
    fn handle(&mut self, input: Input) {
        Actor::handle(self, input);
    }
    fn flush(&mut self, now_ms: i64, id: CommitId) {
        Actor::flush(self, now_ms, id);
    }
    fn take_outputs(&mut self) -> Vec<Output> {
        Actor::take_outputs(self)
    }
}

fn from_catalog(name: &VolumeName, error: CatalogError) -> OpenVolumeError {
    let name = name.clone();
    match error {
        CatalogError::NoSuchVolume { name: _, store } => OpenVolumeError::NoSuchVolume { name, store },
        CatalogError::Damaged(damaged) => OpenVolumeError::Damaged { name, message: damaged.to_string() },
        error => OpenVolumeError::Unavailable { name, message: error.to_string() },
    }
}

fn from_failure(name: &VolumeName, failure: IoFailure) -> OpenVolumeError {
    let (name, IoFailure { message, damaged }) = (name.clone(), failure);
    if damaged {
        OpenVolumeError::Damaged { name, message }
    } else {
        OpenVolumeError::Unavailable { name, message }
    }
}

fn from_open(name: &VolumeName, error: OpenError) -> OpenVolumeError {
    match error {
        OpenError::Catalog(error) => from_catalog(name, error),
        OpenError::Pull(PullError::Damaged(damaged)) => {
            OpenVolumeError::Damaged { name: name.clone(), message: damaged.to_string() }
        }
        OpenError::Pull(error @ (PullError::Diverged { .. } | PullError::Expired { .. })) => {
            OpenVolumeError::Damaged { name: name.clone(), message: error.to_string() }
        }
        error => OpenVolumeError::Unavailable { name: name.clone(), message: error.to_string() },
    }
}
