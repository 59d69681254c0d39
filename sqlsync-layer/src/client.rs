//! The Rust client: [`crate::session::client`] driven by tokio and a WebSocket.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use sqlsync_layer::client::{Client, ClientConfig, SubscriptionEvent};
//!
//! let client = Client::connect(ClientConfig::new("http://127.0.0.1:4600", "todo")).await?;
//! let mut tasks = client.subscribe("SELECT id, title FROM tasks ORDER BY id", Default::default(), None).await?;
//! let task = client.mutate("add_task", serde_json::json!({ "id": "t1", "list": "l1", "title": "Tea" })).await?;
//! task.durable().await?;
//! loop {
//!     match tasks.next().await? {
//!         SubscriptionEvent::Snapshot => println!("{} tasks", tasks.rows().rows().len()),
//!         SubscriptionEvent::Delta(changes) => println!("changed: {changes:?}"),
//!     }
//! }
//! # }
//! ```
//!
//! One task owns the socket, the timer, the clock and the random numbers; it holds no protocol logic.
//! A lost connection is dialled again with growing waits, mutations without a final answer are sent
//! again, and subscriptions are opened again.
//!
//! Invariants: every channel is bounded; a subscription that nobody reads costs at most two copies of
//! its rows, however much changes.

use std::fmt;
use std::time::Duration;

use graft::{Lsn, VolumeName};
use tokio::sync::{mpsc, oneshot, watch};

pub use crate::protocol::{ClientId, Reason};
pub use crate::session::client::{CallError, Present, SessionConfig, SessionEnd, Status};
use crate::session::client::{ClientSession, PendingMutation};
pub use crate::session::rows::Rows;
use crate::value::Params;

mod dial;
mod driver;
mod subscription;
#[cfg(test)]
mod tests;

use self::driver::{Command, Driver};
pub use self::subscription::{Subscription, SubscriptionEnd, SubscriptionEvent};

/// Calls that may wait for the client's task.
const COMMANDS_MAX: usize = 256;

/// Where to connect, and as whom.
#[derive(Debug, Clone)]
pub struct ClientConfig {
    /// The server: `http://HOST:PORT` or `ws://HOST:PORT`.
    pub url: String,
    /// The volume's name.
    pub volume: String,
    /// A client id to continue; a fresh random one where `None`. One id must not be in use twice at a
    /// time. What an earlier run of a continued id left unanswered is not resent.
    pub client_id: Option<ClientId>,
    /// How long [`Client::connect`] tries before it gives up; `None` tries for ever. Default 10 s.
    pub connect_timeout: Option<Duration>,
    /// Waits and bounds.
    pub session: SessionConfig,
}

impl ClientConfig {
    /// A fresh client of `volume` at `url`.
    pub fn new(url: impl Into<String>, volume: impl Into<String>) -> ClientConfig {
        ClientConfig {
            url: url.into(),
            volume: volume.into(),
            client_id: None,
            connect_timeout: Some(Duration::from_secs(10)),
            session: SessionConfig::default(),
        }
    }
}

/// Why a client did not connect.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The URL cannot be dialled.
    #[error("`{url}` is not a server's address: {message}; give one like http://127.0.0.1:4600")]
    Url {
        /// As given.
        url: String,
        /// What is wrong with it.
        message: String,
    },
    /// The volume's name breaks the rule for names.
    #[error(transparent)]
    Volume(#[from] graft::ids::InvalidName),
    /// The server declined, or ended the first connection for good.
    #[error("{0}")]
    Ended(SessionEnd),
    /// No connection came about in time.
    #[error("no connection to {url} within {after:?}: {last}; check that `graft serve` runs there")]
    TimedOut {
        /// What was dialled.
        url: String,
        /// How long it was tried.
        after: Duration,
        /// What the last try said.
        last: String,
    },
}

/// A connection to one volume. Clones share it; it ends when the last clone is dropped.
#[derive(Clone)]
pub struct Client {
    id: ClientId,
    commands: mpsc::Sender<Command>,
    status: watch::Receiver<Status>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Client({}, {:?})", self.id, *self.status.borrow())
    }
}

impl Client {
    /// Connects and waits for the server's welcome. Must be called inside a tokio runtime.
    ///
    /// Network failures are retried until [`ClientConfig::connect_timeout`]; a server that answers and
    /// declines (an unknown volume) is an error at once. Once connected, a client redials for ever.
    ///
    /// # Errors
    ///
    /// Any [`ConnectError`]; nothing is left running.
    pub async fn connect(config: ClientConfig) -> Result<Client, ConnectError> {
        let name: VolumeName = config.volume.parse()?;
        let target = dial::target(&config.url, &name)?;
        let url = target.to_string();
        let (commands, receiver) = mpsc::channel(COMMANDS_MAX);
        let (told, mut status) = watch::channel(Status::Connecting);
        let driver = Driver::new(target, config.client_id, config.session, receiver, told);
        let client = Client { id: driver.client(), commands, status: status.clone() };
        tokio::spawn(driver.run());

        let mut last = String::from("the server did not answer");
        let greeted = async {
            loop {
                match status.borrow_and_update().clone() {
                    Status::Live { .. } => return Ok(()),
                    Status::Ended(end) => return Err(ConnectError::Ended(end)),
                    Status::Offline { pending: _, error } => last = error,
                    Status::Connecting => {}
                }
                if status.changed().await.is_err() {
                    return Err(ConnectError::Ended(SessionEnd::Closed));
                }
            }
        };
        let Some(after) = config.connect_timeout else {
            greeted.await?;
            return Ok(client);
        };
        let outcome = tokio::time::timeout(after, greeted).await;
        match outcome {
            Ok(greeted) => greeted.map(|()| client),
            // Dropping `client` ends its task.
            Err(_elapsed) => Err(ConnectError::TimedOut { url, after, last }),
        }
    }

    /// Goes on with a session whose state was kept elsewhere, and does not wait for the server. Answers
    /// the newest commit that the server spoke of, too ([`SessionConfig::heads`]).
    ///
    /// # Errors
    ///
    /// [`ConnectError::Url`]; nothing is left running.
    pub(crate) fn go_on(
        url: &str,
        volume: &VolumeName,
        session: ClientSession,
    ) -> Result<(Client, watch::Receiver<Lsn>), ConnectError> {
        let target = dial::target(url, volume)?;
        let (commands, receiver) = mpsc::channel(COMMANDS_MAX);
        let (told, status) = watch::channel(Status::Connecting);
        let driver = Driver::of(target, session, receiver, told);
        let heads = driver.heads();
        let client = Client { id: driver.client(), commands, status };
        tokio::spawn(driver.run());
        Ok((client, heads))
    }

    /// Sends a mutation that was given everything elsewhere, its seq too. May be called again for one that
    /// was taken before.
    pub(crate) async fn send(&self, mutation: PendingMutation) -> Result<(), CallError> {
        self.call(|reply| Command::Send { mutation, reply }).await?
    }

    /// Who this client is.
    pub fn id(&self) -> &ClientId {
        &self.id
    }

    /// The connection's state, now and as it changes.
    pub fn status(&self) -> watch::Receiver<Status> {
        self.status.clone()
    }

    /// Takes a mutation; it is sent as soon as the connection allows. `args` is an object of the
    /// reducer's parameters, values as in [`crate::value`].
    ///
    /// # Errors
    ///
    /// Any [`CallError`]: it was not taken. What becomes of a taken one the handle says.
    pub async fn mutate(&self, reducer: &str, args: serde_json::Value) -> Result<MutationHandle, CallError> {
        let found = match args {
            serde_json::Value::Object(args) => {
                let reducer = reducer.to_owned();
                return self.call(|reply| Command::Mutate { reducer, args, reply }).await?;
            }
            serde_json::Value::Null => "null",
            serde_json::Value::Bool(_) => "a boolean",
            serde_json::Value::Number(_) => "a number",
            serde_json::Value::String(_) => "a string",
            serde_json::Value::Array(_) => "an array",
        };
        Err(CallError::Arguments { found })
    }

    /// Opens a live query. `key` names the columns that identify a row (`id`, or else the whole row,
    /// where `None`). Dropping the subscription closes it.
    ///
    /// # Errors
    ///
    /// Any [`CallError`]. SQL that the server refuses ends the subscription: see [`Subscription::next`].
    pub async fn subscribe(
        &self,
        sql: &str,
        params: Params,
        key: Option<Vec<String>>,
    ) -> Result<Subscription, CallError> {
        let sql = sql.to_owned();
        self.call(|reply| Command::Subscribe { sql, params, key, reply }).await?
    }

    /// Asks once. While offline it waits for the connection; drop the future to give up.
    ///
    /// # Errors
    ///
    /// Any [`QueryError`].
    pub async fn query(&self, sql: &str, params: Params) -> Result<Rows, QueryError> {
        let sql = sql.to_owned();
        self.call(|reply| Command::Query { sql, params, reply }).await?
    }

    /// Says that this client is here, and what the others are to see of it: any JSON within the bounds of
    /// [`crate::protocol`]. It is said again as long as the server wants it, and after each reconnect.
    ///
    /// # Errors
    ///
    /// [`CallError::Presence`]: it is beyond the bounds, and what was set before holds. [`CallError::Ended`].
    pub async fn set_presence(&self, state: serde_json::Value) -> Result<(), CallError> {
        self.call(|reply| Command::SetPresence { state: Some(state), reply }).await?
    }

    /// Says that this client is here no more.
    ///
    /// # Errors
    ///
    /// [`CallError::Ended`].
    pub async fn clear_presence(&self) -> Result<(), CallError> {
        self.call(|reply| Command::SetPresence { state: None, reply }).await?
    }

    /// Who is here, now and as it changes. The server is asked for as long as a receiver is kept; the first
    /// change after the last one is dropped ends that.
    ///
    /// # Errors
    ///
    /// [`CallError::Ended`].
    pub async fn presence(&self) -> Result<watch::Receiver<Present>, CallError> {
        self.call(|reply| Command::WatchPresence { reply }).await
    }

    /// Ends the connection and waits until its socket is closed. Mutations without a final answer are
    /// reported as [`MutationError::Closed`]; they may or may not have happened.
    pub async fn close(&self) {
        if let Ok(()) = self.call(|reply| Command::Close { reply }).await {
            tracing::debug!(client = %self.id, "closed");
        }
    }

    /// Sends a command and waits for its answer.
    async fn call<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Result<T, CallError> {
        let (reply, answer) = oneshot::channel();
        let ended = || match &*self.status.borrow() {
            Status::Ended(end) => CallError::Ended(end.clone()),
            Status::Connecting | Status::Live { .. } | Status::Offline { .. } => {
                CallError::Ended(SessionEnd::Closed)
            }
        };
        self.commands.send(command(reply)).await.map_err(|_| ended())?;
        answer.await.map_err(|_| ended())
    }
}

/// How far a mutation has come.
#[derive(Debug, Clone, PartialEq)]
enum Progress {
    Sent,
    Accepted(Lsn),
    Durable(Lsn),
    Failed(MutationError),
}

/// Why a mutation did not become durable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MutationError {
    /// It had no effect, and that is recorded in object storage. Final.
    #[error("{reason}")]
    Rejected {
        /// Why.
        reason: Reason,
        /// The commit that records it.
        lsn: Lsn,
    },
    /// The server did not look at it.
    #[error("{reason}")]
    Refused {
        /// Why.
        reason: Reason,
    },
    /// The client ended first: it may or may not have happened.
    #[error("its outcome is unknown: {0}")]
    Closed(SessionEnd),
}

/// A mutation on its way.
#[derive(Debug, Clone)]
pub struct MutationHandle {
    seq: u64,
    progress: watch::Receiver<Progress>,
}

impl MutationHandle {
    /// Its number for this client.
    pub fn seq(&self) -> u64 {
        self.seq
    }

    /// Waits until it is applied at the tip, and answers the LSN it is meant for. Until it is durable
    /// a failover may still turn it into a rejection.
    ///
    /// # Errors
    ///
    /// Any [`MutationError`].
    pub async fn accepted(&self) -> Result<Lsn, MutationError> {
        self.wait(|progress| match progress {
            Progress::Sent => None,
            Progress::Accepted(lsn) | Progress::Durable(lsn) => Some(Ok(*lsn)),
            Progress::Failed(error) => Some(Err(error.clone())),
        })
        .await
    }

    /// Waits until it is in object storage, and answers its commit.
    ///
    /// # Errors
    ///
    /// Any [`MutationError`].
    pub async fn durable(&self) -> Result<Lsn, MutationError> {
        self.wait(|progress| match progress {
            Progress::Sent | Progress::Accepted(_) => None,
            Progress::Durable(lsn) => Some(Ok(*lsn)),
            Progress::Failed(error) => Some(Err(error.clone())),
        })
        .await
    }

    async fn wait(
        &self,
        outcome: impl Fn(&Progress) -> Option<Result<Lsn, MutationError>>,
    ) -> Result<Lsn, MutationError> {
        let mut progress = self.progress.clone();
        let reached = progress.wait_for(|progress| outcome(progress).is_some()).await;
        // The driver sets `Failed` before it goes; only a panicked or aborted one goes without.
        let gone = Err(MutationError::Closed(SessionEnd::Closed));
        reached.map_or(gone.clone(), |progress| outcome(&progress).unwrap_or(gone))
    }
}

/// Why a query was not answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum QueryError {
    /// It was not taken, or the client ended first.
    #[error(transparent)]
    Call(#[from] CallError),
    /// The server could not run it.
    #[error("{0}")]
    Failed(Reason),
}
