//! A document in an app: a replica, the task that keeps it in sync, and handles on both.
//!
//! SQLite runs on tokio's blocking threads, under one lock; a rebase lets go of the lock between slices.
//! One task pushes and pulls. It is woken by local work and by the coordinator's `head` messages, and
//! else looks at the log every [`Options::poll`], or every [`Options::backstop`] while a coordinator is
//! connected. After a failure it waits, longer each time.
//!
//! | module | holds |
//! | --- | --- |
//! | `task` | the task, and what it waits for |
//! | `follow` | fetching what a pull changed |
//!
//! Invariants: no call of the app waits for the network but [`Document::open`] on a fresh directory, and
//! queries of pages that are not here; every channel is bounded.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use graft::fetch::RemoteFetch;
use graft::publish::{PublishError, publish};
use graft::pull::PullError;
use graft::remote::SharedRemote;
use graft::store::claim::Claim;
use graft::store::{SharedStore, StoreError};
use graft::volume::Volume;
use graft::{CommitId, VolumeId, VolumeName, catalog};
use parking_lot::Mutex;
use rand::Rng as _;
use reducers_abi::Rows;
use tokio::sync::{Notify, broadcast, watch};

use self::follow::Follow;
use self::task::{Told, Waits, keep_in_sync};
use super::replica::publishing::{self, BranchError, branch_name};
use super::replica::{
    self, Event, MutateError, Progress, PushError, QueryError, RebaseError, Replica, Route,
};
use super::timeline;
use crate::actor::Modules;
use crate::client::Client;
use crate::merge::Validation;
use crate::protocol::{ClientId, Reason};
use crate::rebase::{Handler, Policy};
use crate::session::client::{ClientSession, PendingMutation, SessionConfig, Status as Connection};
use crate::value::Params;

mod follow;
pub(super) mod task;

/// How long a rebase runs mutations again before the app may come in. One that is under way is finished.
const SLICE: Duration = Duration::from_millis(20);

/// How long a document that was dropped may go on with what it is at, before the same one is opened again.
const CLOSING: Duration = Duration::from_secs(5);

/// Events that an app may be behind before it misses some.
const EVENTS_MAX: usize = 1024;

/// How a document is opened and kept in sync.
#[derive(Clone)]
pub struct Options {
    /// Who puts mutations into the log.
    pub route: Route,
    /// A coordinator's address. Needed for [`Route::Coordinator`]; with [`Route::Direct`] it only says
    /// when the log has grown.
    pub coordinator: Option<String>,
    /// What to do with local work when the history moved.
    pub policy: Policy,
    /// Decides conflicts in the app's place of `policy`; only with [`Route::Direct`].
    pub handler: Option<Arc<dyn Handler>>,
    /// By which conditions a merge is judged.
    pub validation: Validation,
    /// Publishes every branch by itself as a volume of this name, as soon as the store can be reached;
    /// see [`publishing::BRANCH_NAMES`] for what is replaced in it. `None` leaves branches here, for
    /// [`Document::publish_branch`].
    pub branch_names: Option<String>,
    /// Whether every pull also fetches the pages that changed, so that they are here when offline.
    pub follow: bool,
    /// How often the log is looked at where nobody says that it has grown.
    pub poll: Duration,
    /// How often it is looked at, if that is longer, while the coordinator is connected, which says so. A
    /// coordinator itself learns some seconds later what others put straight into the bucket.
    pub backstop: Duration,
    /// Whether to sync in the background; otherwise [`Document::sync`] does.
    pub background: bool,
    /// Bytes of pages kept in memory.
    pub cache_bytes: usize,
    /// Bytes that cached pages take on disk, where there is a store.
    pub disk_bytes: u64,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            route: Route::Direct,
            coordinator: None,
            policy: Policy::Merge,
            handler: None,
            validation: Validation::READS,
            branch_names: None,
            follow: false,
            poll: Duration::from_secs(5),
            backstop: Duration::from_secs(30),
            background: true,
            cache_bytes: 64 << 20,
            disk_bytes: 16 << 30,
        }
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Options({:?}, {:?}, {:?})", self.route, self.coordinator, self.policy)
    }
}

/// Why a document was not opened, or not synced.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DocumentError {
    /// The volume's name leads nowhere, or its metadata cannot be read.
    #[error(transparent)]
    Catalog(#[from] catalog::CatalogError),
    /// The volume could not be opened.
    #[error(transparent)]
    Volume(#[from] graft::volume::OpenError),
    /// The replica could not be opened.
    #[error(transparent)]
    Replica(#[from] replica::OpenError),
    /// The local store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The log could not be read.
    #[error(transparent)]
    Pull(#[from] PullError),
    /// A push did not end.
    #[error(transparent)]
    Push(#[from] PushError),
    /// Local work could not be brought on top of what others committed.
    #[error(transparent)]
    Rebase(#[from] RebaseError),
    /// Pages that changed could not be fetched.
    #[error(transparent)]
    Fetch(#[from] graft::fetch::FetchError),
    /// The coordinator cannot be used.
    #[error(transparent)]
    Connect(#[from] crate::client::ConnectError),
    /// A branch was not published; it is still here.
    #[error(transparent)]
    Branch(#[from] BranchError),
    /// [`Options::branch_names`] does not make names.
    #[error("the pattern for names of branches cannot be used: {0}")]
    BranchNames(graft::ids::InvalidName),
    /// Mutations are to go through a coordinator, and none was named.
    #[error("Route::Coordinator needs the coordinator's address; set Options::coordinator")]
    NoCoordinator,
    /// This client id cannot go on.
    #[error("{0}")]
    Ended(Reason),
    /// Something panicked in the background, most likely the app's [`Handler`]. Local work is as it was.
    #[error("the sync panicked: {0}")]
    Panicked(String),
    /// The runtime is shutting down.
    #[error("the runtime is shutting down")]
    Runtime,
}

/// How a document stands, as an app shows it.
#[derive(Debug, Clone, PartialEq)]
pub struct DocumentStatus {
    /// Ahead and behind.
    pub standing: replica::Status,
    /// Why the last sync failed; `None` where it did not.
    pub error: Option<String>,
    /// Why this client id cannot go on, if it cannot.
    pub ended: Option<Reason>,
}

impl fmt::Display for DocumentStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.error {
            Some(error) => write!(f, "{}, offline: {error}", self.standing),
            None => self.standing.fmt(f),
        }
    }
}

type Latest = Result<Arc<Rows>, QueryError>;

/// A live query of a document.
#[derive(Debug)]
pub struct RowsOf {
    latest: watch::Receiver<Latest>,
    fresh: bool,
}

impl RowsOf {
    /// The rows now.
    ///
    /// # Errors
    ///
    /// [`QueryError`]: the query cannot be answered any more.
    pub fn now(&self) -> Latest {
        self.latest.borrow().clone()
    }

    /// The rows at first, and then each time they changed; states in between may be passed over.
    ///
    /// # Errors
    ///
    /// As [`RowsOf::now`]; also when the document was closed.
    pub async fn next(&mut self) -> Latest {
        if !std::mem::replace(&mut self.fresh, false) && self.latest.changed().await.is_err() {
            if let Err(error) = &*self.latest.borrow() {
                return Err(error.clone());
            }
            let closed = Reason::new(crate::protocol::codes::SHUTDOWN, "the document was closed");
            return Err(QueryError(closed));
        }
        self.latest.borrow_and_update().clone()
    }
}

struct Inner {
    replica: Mutex<Replica>,
    volume: Arc<Volume>,
    name: VolumeName,
    branch_names: Option<String>,
    /// Branches that cannot be published, ever: they are not tried again.
    stuck: Mutex<BTreeSet<u64>>,
    remote: SharedRemote,
    follow: Option<Follow>,
    route: Route,
    /// Mutations to be sent, and what the server says.
    client: Option<Client>,
    woken: Notify,
    status: watch::Sender<DocumentStatus>,
    events: broadcast::Sender<Event>,
    subscriptions: Mutex<BTreeMap<u64, watch::Sender<Latest>>>,
    /// One sync at a time.
    syncing: tokio::sync::Mutex<()>,
}

/// A document; clones share it. Its task ends when the last clone is dropped.
#[derive(Clone)]
pub struct Document {
    inner: Arc<Inner>,
    /// Dropped with the last clone.
    _alive: Arc<watch::Sender<()>>,
}

impl fmt::Debug for Document {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Document({}, {})", self.inner.volume.id(), *self.inner.status.borrow())
    }
}

impl Document {
    /// Opens a volume. `store` keeps pages and local work across restarts, and belongs to one document;
    /// without it nothing outlives the process. A volume that was opened with `store` before opens
    /// without the network. Must be called inside a tokio runtime.
    ///
    /// # Errors
    ///
    /// Any [`DocumentError`]; nothing is left running.
    pub async fn open(
        remote: SharedRemote,
        volume: &VolumeName,
        store: Option<SharedStore>,
        modules: Arc<dyn Modules>,
        options: Options,
    ) -> Result<Document, DocumentError> {
        if options.route == Route::Coordinator && options.coordinator.is_none() {
            return Err(DocumentError::NoCoordinator);
        }
        if let Some(pattern) = &options.branch_names {
            branch_name(pattern, volume, VolumeId([0; 16])).map_err(DocumentError::BranchNames)?;
        }
        let kept = graft::volume::Options {
            store: store.clone(),
            cache_bytes: options.cache_bytes,
            disk_bytes: options.disk_bytes,
            ..graft::volume::Options::default()
        };
        let remembered = match &store {
            Some(store) => timeline::remembered_name(store, volume)?,
            None => None,
        };
        let opened = match remembered {
            Some((id, page_size)) => {
                until_closed(store.as_ref(), id).await?;
                Volume::load(id, page_size, kept.clone())?
            }
            None => {
                let id = catalog::resolve(&*remote, volume).await?;
                until_closed(store.as_ref(), id).await?;
                let opened = Volume::open(&*remote, id, kept.clone()).await?;
                if let Some(store) = &store {
                    timeline::remember_name(store, volume, id, opened.volume.page_size())?;
                }
                opened
            }
        };
        let config = replica::Config {
            route: options.route,
            policy: options.policy,
            validation: options.validation,
            handler: options.handler.clone(),
            ..replica::Config::default()
        };
        let fetch = Arc::new(RemoteFetch::new(remote.clone()));
        let follow = options.follow.then(|| Follow::new(fetch.fetcher().clone()));
        let fresh = random_id();
        let replica = blocking(move || Replica::open(opened, &kept, fetch, modules, fresh, config)).await??;

        let mut told = None;
        let mut client = None;
        if let Some(url) = &options.coordinator {
            let session = SessionConfig { heads: true, ..SessionConfig::default() };
            let session = match options.route {
                Route::Coordinator if replica.ended().is_none() => session_of(&replica, session)?,
                // Only to hear of commits: nothing is sent straight on the bucket, nor of an id that cannot
                // go on, whose document can still be read.
                Route::Coordinator | Route::Direct => ClientSession::new(random_id(), session),
            };
            let (connected, heads) = Client::go_on(url, volume, session)?;
            told = Some(Told { heads, connection: connected.status() });
            client = Some(connected);
        }
        let status =
            DocumentStatus { standing: replica.status(), error: None, ended: replica.ended().cloned() };
        let (alive, closed) = watch::channel(());
        let inner = Arc::new(Inner {
            volume: replica.volume().clone(),
            replica: Mutex::new(replica),
            name: volume.clone(),
            branch_names: options.branch_names.clone(),
            stuck: Mutex::default(),
            remote,
            follow,
            route: options.route,
            client,
            woken: Notify::new(),
            status: watch::Sender::new(status),
            events: broadcast::Sender::new(EVENTS_MAX),
            subscriptions: Mutex::default(),
            syncing: tokio::sync::Mutex::default(),
        });
        if options.background {
            tokio::spawn(keep_in_sync(inner.clone(), closed, told, Waits::of(&options)));
        }
        Ok(Document { inner, _alive: Arc::new(alive) })
    }

    /// Runs a reducer at once and takes the mutation; answers its seq. It is on disk then, and goes into
    /// the log in the background.
    ///
    /// # Errors
    ///
    /// Any [`MutateError`]: it was not taken.
    pub async fn mutate(&self, reducer: &str, args: serde_json::Value) -> Result<u64, MutateError> {
        let serde_json::Value::Object(args) = args else {
            let reason =
                Reason::new(crate::protocol::codes::BAD_ARGUMENTS, "arguments must be a JSON object");
            return Err(MutateError::Rejected(reason));
        };
        let (reducer, clock, seed) = (reducer.to_owned(), now_ms(), rand::rng().random());
        self.with(move |replica| replica.mutate(&reducer, args, clock, seed)).await
    }

    /// Runs SQL as one transaction; answers how many rows it changed. Only with [`Route::Direct`].
    ///
    /// # Errors
    ///
    /// Any [`MutateError`]: nothing has changed.
    pub async fn execute(&self, sql: &str) -> Result<u64, MutateError> {
        let sql = sql.to_owned();
        self.with(move |replica| replica.execute(&sql)).await
    }

    /// Answers one SELECT on the local copy.
    ///
    /// # Errors
    ///
    /// [`QueryError`].
    pub async fn query(&self, sql: &str, params: Params) -> Result<Rows, QueryError> {
        let sql = sql.to_owned();
        self.with(move |replica| replica.query(&sql, &params)).await
    }

    /// Opens a live query; dropping what it answers closes it.
    ///
    /// # Errors
    ///
    /// [`QueryError`].
    pub async fn subscribe(
        &self,
        sql: &str,
        params: Params,
        key: Option<Vec<String>>,
    ) -> Result<RowsOf, QueryError> {
        let (sql, inner) = (sql.to_owned(), self.inner.clone());
        self.with(move |replica| {
            let (subscription, rows) = replica.subscribe(&sql, &params, key)?;
            let (sender, latest) = watch::channel(Ok(Arc::new(rows)));
            inner.subscriptions.lock().insert(subscription, sender);
            Ok(RowsOf { latest, fresh: true })
        })
        .await
    }

    /// Whatever else a replica can do: rejected mutations, branches, counts. `body` blocks the document.
    pub async fn with<T: Send + 'static>(&self, body: impl FnOnce(&mut Replica) -> T + Send + 'static) -> T {
        self.inner.with(body).await
    }

    /// How it stands, now and as it changes.
    pub fn status(&self) -> watch::Receiver<DocumentStatus> {
        self.inner.status.subscribe()
    }

    /// What happens to mutations. A receiver that is far behind is told that it missed some.
    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.inner.events.subscribe()
    }

    /// Pushes and pulls until the document is at the head of the log and nothing local is left that it
    /// could push itself.
    ///
    /// # Errors
    ///
    /// Any [`DocumentError`]; local work is as it was, or brought on top of what was pulled.
    pub async fn sync(&self) -> Result<(), DocumentError> {
        while self.inner.round().await? {}
        Ok(())
    }

    /// The task, with a coordinator's word that is the caller's. It ends with the sender that is answered.
    #[cfg(test)]
    pub(in crate::document) fn keep_in_sync(&self, told: Told, options: &Options) -> watch::Sender<()> {
        let (alive, closed) = watch::channel(());
        tokio::spawn(keep_in_sync(self.inner.clone(), closed, Some(told), Waits::of(options)));
        alive
    }

    /// Makes a volume called `name` of a branch: a fork at the commit that its work was made on, with
    /// that work on it. Then, and only then, the branch is dropped here. Answers the volume's name, which
    /// is another where the branch's publication was begun before under that one. May be called again
    /// after any failure or crash.
    ///
    /// # Errors
    ///
    /// Any [`BranchError`]: the branch is still here.
    pub async fn publish_branch(&self, number: u64, name: &VolumeName) -> Result<VolumeName, BranchError> {
        let _one = self.inner.syncing.lock().await;
        self.inner.publish_branch(number, name, VolumeId(rand::rng().random())).await
    }
}

impl Inner {
    /// Runs `body` on a blocking thread, and tells the app what came of it.
    async fn with<T: Send + 'static>(
        self: &Arc<Self>,
        body: impl FnOnce(&mut Replica) -> T + Send + 'static,
    ) -> T {
        let inner = self.clone();
        let ran = blocking(move || {
            let mut replica = inner.replica.lock();
            let answer = body(&mut replica);
            inner.tell(&mut replica);
            // Here, and not in who awaits this: it may be dropped, and what was taken is taken all the same.
            if replica.take_fresh() {
                inner.woken.notify_one();
            }
            parking_lot::MutexGuard::unlock_fair(replica);
            answer
        });
        match ran.await {
            Ok(answer) => answer,
            // The runtime shuts down: nobody waits for the answer.
            Err(_) => std::future::pending().await,
        }
    }

    /// Tells the app of events, changed rows and the status.
    fn tell(&self, replica: &mut Replica) {
        let mut subscriptions = self.subscriptions.lock();
        subscriptions.retain(|subscription, sender| {
            let wanted = !sender.is_closed();
            if !wanted {
                replica.unsubscribe(*subscription);
            }
            wanted
        });
        for (subscription, rows) in replica.refresh() {
            // After an error nothing follows.
            let sender = match &rows {
                Ok(_) => None,
                Err(_) => subscriptions.remove(&subscription),
            };
            if let Some(sender) = sender.as_ref().or_else(|| subscriptions.get(&subscription)) {
                drop(sender.send_replace(rows.map(Arc::new)));
            }
        }
        drop(subscriptions);
        for event in replica.take_events() {
            if self.events.send(event).is_err() {
                tracing::trace!("nobody listens to the document's events");
            }
        }
        self.status.send_if_modified(|status| {
            let (standing, ended) = (replica.status(), replica.ended().cloned());
            let changed = status.standing != standing || status.ended != ended;
            (status.standing, status.ended) = (standing, ended);
            changed
        });
    }

    /// One push and one pull. Whether there is more to push.
    async fn round(self: &Arc<Self>) -> Result<bool, DocumentError> {
        let _one = self.syncing.lock().await;
        let (id, now) = (CommitId(rand::rng().random()), now_ms());
        // Whatever became of that: what others did is to be seen.
        let sent = self.send_mutations().await;
        let prepared = self.with(move |replica| replica.seal(id, now)).await?;
        if let Some(prepared) = prepared {
            let result = publish(&*self.remote, &prepared).await;
            let ended = self.with(move |replica| replica.published(&prepared, result)).await;
            match ended {
                Ok(lsn) => tracing::debug!(%lsn, "pushed"),
                // Others were first: the pull below brings local work on top of theirs.
                Err(PushError::Publish(PublishError::Rejected { .. } | PublishError::Forgotten { .. })) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let pulled = self.volume.pull(&*self.remote).await?;
        if let Some(follow) = &self.follow {
            follow.note(&self.volume, &pulled)?;
        }
        let mut progress = self.with(move |replica| replica.pulled(pulled)).await?;
        while progress != Progress::Done {
            progress = self.with(slice).await?;
        }
        if let Some(follow) = &self.follow {
            follow.bring(&self.volume).await?;
        }
        self.publish_branches().await?;
        sent?;
        let (ended, ahead) = self.with(|replica| (replica.ended().cloned(), replica.status().ahead)).await;
        match ended {
            Some(reason) => Err(DocumentError::Ended(reason)),
            None => Ok(ahead > 0 && self.route == Route::Direct),
        }
    }

    async fn publish_branch(
        self: &Arc<Self>,
        number: u64,
        name: &VolumeName,
        child: VolumeId,
    ) -> Result<VolumeName, BranchError> {
        loop {
            let (asked, now) = (name.clone(), now_ms());
            let begun = self.with(move |replica| replica.begin_publication(number, &asked, child, now)).await;
            let publication = begun?;
            let to = publication.name.clone();
            let result = publishing::publish(&*self.remote, &publication).await;
            let told = result.clone();
            self.with(move |replica| replica.publication_ended(&publication, &told)).await?;
            match result {
                Ok(lsn) => {
                    tracing::info!(branch = number, volume = %to, %lsn, "a branch is a volume now");
                    return Ok(to);
                }
                // It was begun under another name than the one that is asked for now.
                Err(BranchError::NameTaken { .. } | BranchError::Overtaken { .. }) if to != *name => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Publishes every branch, where the app wants that.
    async fn publish_branches(self: &Arc<Self>) -> Result<(), DocumentError> {
        let Some(pattern) = &self.branch_names else { return Ok(()) };
        let branches: Vec<u64> = self.with(|replica| replica.branches().keys().copied().collect()).await;
        self.stuck.lock().retain(|number| branches.contains(number));
        for number in branches {
            if self.stuck.lock().contains(&number) {
                continue;
            }
            let child = VolumeId(rand::rng().random());
            let name = branch_name(pattern, &self.name, child).map_err(DocumentError::BranchNames)?;
            match self.publish_branch(number, &name, child).await {
                Ok(_) => {}
                Err(error) if error.is_passing() => return Err(error.into()),
                // The next round takes another name.
                Err(error @ (BranchError::NameTaken { .. } | BranchError::Overtaken { .. }))
                    if pattern.contains("{id}") =>
                {
                    return Err(error.into());
                }
                Err(error) => {
                    tracing::error!(branch = number, %error, "a branch cannot be published; it stays here");
                    self.stuck.lock().insert(number);
                }
            }
        }
        Ok(())
    }

    /// Gives mutations to the session that it does not have yet.
    async fn send_mutations(self: &Arc<Self>) -> Result<(), DocumentError> {
        let Some(client) = self.client.as_ref().filter(|_| self.route == Route::Coordinator) else {
            return Ok(());
        };
        // The round ends with why.
        if self.with(|replica| replica.ended().is_some()).await {
            return Ok(());
        }
        if let Connection::Ended(end) = &*client.status().borrow() {
            let reason = match end {
                crate::session::client::SessionEnd::Server(reason)
                | crate::session::client::SessionEnd::Declined(reason)
                | crate::session::client::SessionEnd::Refused { reason, .. } => reason.clone(),
                other => Reason::new(crate::protocol::codes::REFUSED, other.to_string()),
            };
            return Err(DocumentError::Ended(reason));
        }
        let unsent = self.with(|replica| replica.unsent()).await;
        let Some(last) = unsent.last().map(|mutation| mutation.seq) else { return Ok(()) };
        for mutation in unsent {
            let args = serde_json::from_str(&mutation.args).unwrap_or_default();
            let mutation = PendingMutation {
                seq: mutation.seq,
                reducer: mutation.reducer,
                args,
                clock: mutation.clock,
                seed: mutation.seed,
            };
            // Whoever syncs may give up between any two: the next round sends all of them again, and the
            // session knows those that it has by their seqs.
            if let Err(error) = client.send(mutation).await {
                let reason = Reason::new(crate::protocol::codes::UNAVAILABLE, error.to_string());
                return Err(DocumentError::Ended(reason));
            }
        }
        self.with(move |replica| replica.given(last)).await;
        Ok(())
    }
}

/// Goes on with a rebase for as long as the app is to wait.
#[allow(clippy::disallowed_methods, reason = "a driver: it says how long the app has waited")]
fn slice(replica: &mut Replica) -> Result<Progress, RebaseError> {
    let begun = Instant::now();
    loop {
        let progress = replica.step(1)?;
        if progress == Progress::Done || begun.elapsed() >= SLICE {
            return Ok(progress);
        }
    }
}

/// The session that goes on where the timeline stands.
fn session_of(replica: &Replica, config: SessionConfig) -> Result<ClientSession, DocumentError> {
    ClientSession::restore(replica.session_state(), config).map_err(|error| {
        DocumentError::Ended(Reason::new(crate::protocol::codes::SEQ_REUSED, error.to_string()))
    })
}

async fn blocking<T: Send + 'static>(body: impl FnOnce() -> T + Send + 'static) -> Result<T, DocumentError> {
    match tokio::task::spawn_blocking(body).await {
        Ok(answer) => Ok(answer),
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_cancelled) => Err(DocumentError::Runtime),
        },
    }
}

/// Waits for a document on the same volume of this store that was dropped and is being closed.
async fn until_closed(store: Option<&SharedStore>, volume: VolumeId) -> Result<(), DocumentError> {
    let Some(store) = store.cloned() else { return Ok(()) };
    // Where it is not, opening says so.
    blocking(move || Claim::wait(&store, volume, CLOSING)).await.map(drop)
}

fn random_id() -> ClientId {
    let id = format!("{:032x}", rand::rng().random::<u128>());
    ClientId::new(id).expect("32 hex digits keep the rule for client ids")
}

#[allow(clippy::disallowed_methods, reason = "a driver: it gives mutations and commits their time")]
fn now_ms() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}
