//! The server: orders mutations, commits them to volumes, pushes live queries.
//!
//! | module | holds |
//! | --- | --- |
//! | [`http`](mod@http) | routes, queries and mutations without a socket, errors as typed JSON |
//! | `origin` | who may talk to a server without authentication |
//! | `web` | the static files of an app's page |
//! | `sync` | one WebSocket: frames in, frames out, back-pressure |
//! | `outbox` | the bounded queue in front of a socket |
//! | `presence` | who is connected to a volume: the timer and the outboxes |
//! | `volumes` | which volumes are open; opening and closing them |
//! | `worker` | the thread of one volume's actor |
//! | `upkeep` | compaction and garbage collection of open volumes |
//! | `modules` | reducer modules from the object store |
//!
//! ```text
//! socket ─ sync ─ bounded channel ─> worker thread: Actor ─ outputs ─┬─> outbox ─> socket
//!                        ^                                           └─> tokio: publish, pull, wake
//!                        └────────────── Published, Pulled, Woken ────────┘
//! ```
//!
//! Invariants: an actor never waits for a socket, and a socket never makes memory grow: its outbox is
//! bounded, and it is not read while the outbox is over its bound. What an actor holds and object
//! storage does not is lost with the process; clients resend it.
//!
//! There is no authentication yet, so [`Coordinator::start`] refuses to listen on anything but
//! loopback, and requests from pages of other origins are refused.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::serve::ListenerExt as _;
use graft::remote::SharedRemote;
use reducers_host::{Host, HostLimits};
pub use sqlsync_layer::presence::PresenceLimits;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

mod clock;
pub mod http;
mod modules;
mod origin;
mod outbox;
mod presence;
mod sync;
mod upkeep;
mod volumes;
mod web;
mod worker;

use self::modules::StoreModules;
pub use self::upkeep::UpkeepLimits;
use self::volumes::Volumes;
use self::web::Web;

/// Bounds of a coordinator.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Of each volume's actor.
    pub actor: sqlsync_layer::actor::Limits,
    /// Of each run of a reducer.
    pub host: HostLimits,
    /// Bytes of an uploaded module.
    pub module_bytes_max: usize,
    /// Bytes of pages that each open volume keeps in memory.
    pub cache_bytes: usize,
    /// Bytes that each volume's cached pages take in the directory, where there is one.
    pub disk_bytes: u64,
    /// A volume without sessions is closed after this long.
    pub volume_idle: Duration,
    /// How long what direct writers commit may stay unseen where somebody is connected and nobody else commits.
    /// One LIST each time.
    pub look_every: Duration,
    /// How long shutting down waits for what was accepted to become durable.
    pub drain_max: Duration,
    /// Of each connection.
    pub session: SessionLimits,
    /// Of each HTTP request.
    pub http: HttpLimits,
    /// Of each volume's list of who is connected.
    pub presence: PresenceLimits,
    /// When volumes are compacted and collected.
    pub upkeep: UpkeepLimits,
}

/// Bounds of one HTTP request.
#[derive(Debug, Clone, Copy)]
pub struct HttpLimits {
    /// How long a query waits for the state that its token names.
    pub after_max: Duration,
    /// How long a mutation waits for its answer.
    pub answer_max: Duration,
}

/// Bounds of one connection.
#[derive(Debug, Clone, Copy)]
pub struct SessionLimits {
    /// How long a client may take to say hello.
    pub hello_max: Duration,
    /// How often an idle socket is pinged.
    pub ping_every: Duration,
    /// A socket from which nothing came for this long, not even a pong, is closed.
    pub silence_max: Duration,
    /// Bytes waiting for a socket above which it is not read and gets no more rows.
    pub outbox_bytes: usize,
    /// Bytes waiting for a socket above which it is given up.
    pub outbox_bytes_max: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            actor: sqlsync_layer::actor::Limits::default(),
            host: HostLimits::default(),
            module_bytes_max: 32 << 20,
            cache_bytes: 64 << 20,
            disk_bytes: 16 << 30,
            volume_idle: Duration::from_secs(300),
            look_every: Duration::from_secs(5),
            drain_max: Duration::from_secs(20),
            session: SessionLimits {
                hello_max: Duration::from_secs(10),
                ping_every: Duration::from_secs(20),
                silence_max: Duration::from_secs(60),
                outbox_bytes: 1 << 20,
                outbox_bytes_max: 256 << 20,
            },
            http: HttpLimits { after_max: Duration::from_secs(5), answer_max: Duration::from_secs(30) },
            presence: PresenceLimits::default(),
            upkeep: UpkeepLimits::default(),
        }
    }
}

/// What a coordinator runs on.
#[derive(Debug, Clone)]
pub struct Config {
    /// The object store that holds everything.
    pub store: SharedRemote,
    /// Where to listen; port 0 picks one. Loopback only.
    pub listen: SocketAddr,
    /// A directory for a cache of pages that survives restarts; memory alone where `None`.
    pub data: Option<PathBuf>,
    /// A directory of static files to serve at `/`; none where `None`.
    pub web: Option<PathBuf>,
    /// Whether clients may write the store's objects through this server, as with the bucket's
    /// credentials; reading them is always allowed.
    pub remote_writes: bool,
    /// Bounds.
    pub limits: Limits,
}

impl Config {
    /// The default bounds, no data directory, no page.
    pub fn new(store: SharedRemote, listen: SocketAddr) -> Config {
        Config { store, listen, data: None, web: None, remote_writes: false, limits: Limits::default() }
    }
}

/// Why a coordinator did not start. Nothing is left running.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// Anyone who reaches the address could read and write every volume.
    #[error(
        "will not listen on {listen}: there is no authentication yet, so only loopback is allowed; use 127.0.0.1:{}",
        .listen.port()
    )]
    NotLoopback {
        /// The address asked for.
        listen: SocketAddr,
    },
    /// The address cannot be had.
    #[error(
        "cannot listen on {listen}: {source}; is another `graft serve` running? --listen 127.0.0.1:0 picks a free port"
    )]
    Bind {
        /// The address asked for.
        listen: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// The store is not one that a log can be kept in, or it cannot be reached.
    #[error(transparent)]
    Store(#[from] graft::remote::probe::ProbeError),
    /// The data directory cannot be used.
    #[error(transparent)]
    Data(#[from] graft::store::StoreError),
    /// The page's directory is not there, or holds no `index.html`.
    #[error("no page in {}: {source}; build it first, it must hold index.html", .dir.display())]
    Web {
        /// The directory asked for.
        dir: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The wasm engine did not start.
    #[error(transparent)]
    Host(#[from] reducers_host::HostError),
}

/// The server; see the crate.
#[derive(Debug)]
pub struct Coordinator;

impl Coordinator {
    /// Probes the store, listens and serves. Must be called in a multi-threaded tokio runtime.
    ///
    /// # Errors
    ///
    /// Any [`StartError`].
    pub async fn start(config: Config) -> Result<Running, StartError> {
        let Config { store, listen, data, web, remote_writes, limits } = config;
        if !listen.ip().is_loopback() {
            return Err(StartError::NotLoopback { listen });
        }
        let web =
            web.map(|dir| Web::open(&dir).map_err(|source| StartError::Web { dir, source })).transpose()?;
        let listener =
            TcpListener::bind(listen).await.map_err(|source| StartError::Bind { listen, source })?;
        let addr = listener.local_addr().map_err(|source| StartError::Bind { listen, source })?;
        let probed = graft::remote::probe_once(&*store, &clock::random_name(), clock::now_ms()).await?;
        tracing::debug!(store = %store.url(), ?probed, "the store keeps a second creator out");
        let cache = data.map(|dir| modules::open_data(&dir)).transpose()?;
        let host = Host::new(limits.host)?;
        let modules = Arc::new(StoreModules::new(store.clone(), host));
        let objects = http::objects::router(store.clone(), remote_writes);
        let volumes = Volumes::new(store, cache, modules, limits);

        let (stop, stopped) = watch::channel(false);
        let idle = tokio::spawn(volumes::close_idle(volumes.clone(), stopped.clone()));
        let router = http::router(volumes.clone(), web, objects);
        // Messages are small and somebody waits for each.
        let listener = listener.tap_io(|stream| {
            if let Err(error) = stream.set_nodelay(true) {
                tracing::debug!(%error, "a connection without TCP_NODELAY");
            }
        });
        let mut until = stopped;
        let serving = axum::serve(listener, router).with_graceful_shutdown(async move {
            // An error means that `Running` is gone: stop as well.
            drop(until.wait_for(|stop| *stop).await);
        });
        let server = tokio::spawn(async move {
            if let Err(error) = serving.await {
                tracing::error!(%error, "the listener failed");
            }
        });
        tracing::info!(%addr, "listening");
        Ok(Running { addr, stop, server, idle, volumes })
    }
}

/// A coordinator that serves. Dropping it stops it without waiting for anything.
#[derive(Debug)]
pub struct Running {
    addr: SocketAddr,
    stop: watch::Sender<bool>,
    server: JoinHandle<()>,
    idle: JoinHandle<()>,
    volumes: Arc<Volumes>,
}

impl Running {
    /// The address it listens on.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The URL clients use.
    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Stops: no new connections and mutations, then waits (up to [`Limits::drain_max`]) until what was
    /// accepted is durable, then tells every client and closes. Answers whether everything was durable.
    pub async fn shutdown(self) -> bool {
        let Running { addr, stop, mut server, idle, volumes } = self;
        tracing::info!(%addr, "shutting down");
        stop.send_replace(true);
        idle.abort();
        let drained = volumes.shutdown().await;
        // What is left are HTTP requests that were under way.
        if tokio::time::timeout(Duration::from_secs(5), &mut server).await.is_err() {
            tracing::warn!(%addr, "gave up on requests under way");
            server.abort();
        }
        tracing::info!(%addr, drained, "stopped");
        drained
    }
}
