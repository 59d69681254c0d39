//! The server's side of one volume, as a state machine: inputs in, outputs out.
//!
//! One actor orders all mutations of one volume. It runs what has arrived in one SQLite transaction
//! with a savepoint per mutation, keeps the result as a local commit on the tip, and asks its driver
//! to publish one batch while the next fills. When a publication loses its LSN it asks for a pull,
//! resets to what is durable and runs every unpublished mutation again, in order.
//!
//! The driver owns sockets, clocks, randomness and the object store. It feeds [`Input`]s, calls
//! [`Actor::flush`] when it has no more of them at hand, and carries out the [`Output`]s in order
//! ([`Actor::take_outputs`]).
//! SQLite runs inside `handle` and `flush`, so an actor belongs on a thread of its own; pages that
//! are missing are fetched inside them too, through [`graft::fetch::Fetch`].
//!
//! ```text
//!   Idle ─seal→ Publishing ─won→ Idle
//!                  │  ↑ Woken
//!                  ├─unknown→ PublishLater
//!                  └─rejected→ Pulling ─reset, absorb, replay→ Idle
//!                                 │  ↑ Woken
//!                                 └─failed→ PullLater
//! ```
//!
//! A page or module that cannot be fetched blocks the batch that needs it, and no mutation is
//! rejected for it: the batch runs again after a [`Output::Wake`].
//!
//! Beside all that, whenever enough was published since the last one, it asks for a *checkpoint* of what
//! is durable: the pages' table and the ledger at exactly that LSN. One at a time; nothing depends on it.
//!
//! Invariants: `Durable` and `Rejected` go out only for what object storage holds; at most one
//! publication is in flight; seqs of a client are applied in order and once.

mod args;
mod ask;
pub(crate) mod batch;
pub(crate) mod core;
pub(crate) mod queries;
#[cfg(test)]
mod tests;
mod token;

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use graft::checkpoint::Policy;
use graft::snapshot::Snapshot;
use graft::{Lsn, ModuleHash};
use reducers_abi::Runtime;

pub use self::ask::{Ask, AskError, Asked, Standing, WAITING_MAX};
pub use self::core::{Actor, Metrics, OpenError};
pub use self::token::{NotAToken, Token};
use crate::protocol::{At, ClientId, ClientMessage, Known, Reason, SERVER_FRAME_BYTES_MAX, ServerMessage};

/// A connection, numbered by the driver; never reused.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SessionId(pub u64);

/// A request by the driver's own callers (deploy, ask, inspect), numbered by the driver.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct RequestId(pub u64);

/// What happened.
#[derive(Debug)]
pub enum Input {
    /// A connection said a valid hello (the driver's [`crate::session::server`] checked it).
    Connect {
        /// Its number.
        session: SessionId,
        /// Who.
        client: ClientId,
        /// What it says of itself. An actor that does not know of its last final seq is behind: it pulls
        /// before it welcomes.
        known: Known,
    },
    /// A connection sent a message after its hello.
    Receive {
        /// Which connection.
        session: SessionId,
        /// What it sent.
        message: ClientMessage,
        /// A seed for the mutation if the client gave none.
        seed: u64,
        /// The driver's clock, ms since 1970.
        now_ms: i64,
    },
    /// A connection ended.
    Disconnect {
        /// Which.
        session: SessionId,
    },
    /// A connection's outbound queue is full: rows for it are to be held back.
    Congested {
        /// Which.
        session: SessionId,
    },
    /// A congested connection can take messages again: it is sent fresh snapshots of what it missed.
    Relieved {
        /// Which.
        session: SessionId,
    },
    /// Put a module (already stored under `modules/`) in force and run its migrations.
    Deploy {
        /// Comes back in [`Output::Deployed`].
        request: RequestId,
        /// The module.
        module: ModuleHash,
        /// The driver's clock, ms since 1970.
        now_ms: i64,
        /// A seed for the migrations.
        seed: u64,
    },
    /// A query from outside of a session.
    Ask {
        /// Comes back in [`Output::Asked`].
        request: RequestId,
        /// The query.
        ask: Ask,
    },
    /// How does the volume stand?
    Inspect {
        /// Comes back in [`Output::Inspected`].
        request: RequestId,
    },
    /// A wait asked for by [`Output::Remind`] is over.
    Reminded,
    /// Others may have committed straight to the bucket: look at the log, unless a publication of one's own
    /// has shown since the last look that they did not, or something is under way. One LIST. To be said every
    /// few seconds while anybody is connected.
    Look,
    /// How the publication asked for by [`Output::Publish`] ended.
    Published(Result<graft::publish::Published, graft::publish::PublishError>),
    /// What the pull asked for by [`Output::Pull`] found.
    Pulled(Result<graft::pull::Pulled, graft::pull::PullError>),
    /// How the checkpoint asked for by [`Output::Checkpoint`] ended.
    Checkpointed(Result<graft::checkpoint::Written, graft::checkpoint::CheckpointError>),
    /// A wait asked for by [`Output::Wake`] is over.
    Woken,
    /// Take no new mutations; [`Output::Drained`] follows when everything accepted is durable.
    Shutdown,
}

/// What the driver is to do.
#[derive(Debug)]
pub enum Output {
    /// Send to one connection.
    Send {
        /// Which.
        session: SessionId,
        /// What.
        message: Outgoing,
    },
    /// Run [`graft::publish::publish`] and answer [`Input::Published`].
    Publish(Arc<graft::publish::Prepared>),
    /// Run [`graft::volume::Volume::pull`] and answer [`Input::Pulled`].
    Pull,
    /// Run [`graft::checkpoint::write`] with these and answer [`Input::Checkpointed`]. Nothing waits for
    /// it: it may take its time, or be dropped with the actor.
    Checkpoint {
        /// A durable state.
        snapshot: Snapshot,
        /// The ledger at exactly its LSN.
        state: Bytes,
    },
    /// Answer [`Input::Woken`] after this many milliseconds: the object store failed and is tried again.
    Wake {
        /// How long.
        after_ms: u64,
    },
    /// A deploy ended; `Ok` once it is durable.
    Deployed {
        /// Which.
        request: RequestId,
        /// The LSN and schema version, or why not.
        result: Result<Deployed, Reason>,
    },
    /// A query ended.
    Asked {
        /// Which.
        request: RequestId,
        /// Its rows, or why not.
        result: Result<Asked, AskError>,
    },
    /// How the volume stands.
    Inspected {
        /// Which.
        request: RequestId,
        /// How.
        standing: Standing,
    },
    /// Answer [`Input::Reminded`] after this many milliseconds: queries wait for a state.
    Remind {
        /// How long.
        after_ms: u64,
    },
    /// After [`Input::Shutdown`]: nothing accepted is waiting any more.
    Drained,
}

/// A deploy that is durable.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Deployed {
    /// The module in force.
    pub module: ModuleHash,
    /// The schema version after its migrations.
    pub schema: u32,
    /// The commit that holds both; the volume's head where the module was in force already.
    pub lsn: Lsn,
    /// How many migrations this deploy ran.
    pub migrations_run: u32,
}

/// A message for one connection. Row messages of a shared query carry their rows encoded once.
#[derive(Debug, Clone)]
pub enum Outgoing {
    /// Any message.
    Message(ServerMessage),
    /// A `snapshot` or `delta` whose shared part is encoded already.
    Shared {
        /// `snapshot` or `delta`.
        kind: &'static str,
        /// The receiver's own id.
        sub: u64,
        /// Where the rows are; `seq` is the receiver's.
        at: At,
        /// The rest of the JSON object's members, without braces.
        body: Arc<str>,
    },
}

impl Outgoing {
    /// One frame.
    pub fn to_json(&self) -> String {
        match self {
            Outgoing::Message(message) => message.to_json(),
            Outgoing::Shared { kind, sub, at, body } => format!(
                r#"{{"type":"{kind}","sub":{sub},"epoch":{},"lsn":{},"seq":{},{body}}}"#,
                at.epoch, at.lsn, at.seq
            ),
        }
    }

    /// Whether it carries a subscription's rows, which may be held back from a slow connection.
    pub fn is_rows(&self) -> bool {
        matches!(
            self,
            Outgoing::Shared { .. }
                | Outgoing::Message(ServerMessage::Snapshot { .. } | ServerMessage::Delta { .. })
        )
    }
}

/// Where the actor gets reducer modules: the object store behind a cache of compiled ones.
pub trait Modules: Send + Sync + fmt::Debug {
    /// The module with this hash, ready to run. Blocks where it must be fetched or compiled.
    fn load(&self, module: ModuleHash) -> Result<Arc<dyn Runtime>, ModuleError>;
}

/// Why a module cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ModuleError {
    /// Its object is missing or the store failed; trying again may help.
    #[error("module {module} could not be fetched: {message}")]
    Unavailable {
        /// Which.
        module: ModuleHash,
        /// What the store said.
        message: String,
    },
    /// Its object is damaged: it does not have the module's hash. Deploying the module again mends it.
    #[error("module {module} is damaged in the store: its bytes have another hash; deploy it again")]
    Damaged {
        /// Which.
        module: ModuleHash,
    },
    /// Its bytes are not a module that this host can run.
    #[error("module {module} cannot be run: {message}")]
    Invalid {
        /// Which.
        module: ModuleHash,
        /// What is wrong with it.
        message: String,
    },
}

/// Bounds of one volume's actor.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Mutations run in one transaction.
    pub batch_mutations_max: usize,
    /// Rows a query may answer.
    pub query_rows_max: usize,
    /// Bytes a query's rows may take.
    pub query_bytes_max: usize,
    /// Virtual machine steps a query may take (SQLite's progress handler counts them).
    pub query_steps_max: u64,
    /// The same for one mutation's SQL.
    pub mutation_steps_max: u64,
    /// Subscriptions of one connection.
    pub subscriptions_max: usize,
    /// When a checkpoint is written.
    pub checkpoint: Policy,
    /// A planted bug: a mutation that is sent again is applied again.
    #[cfg(feature = "planted")]
    pub ledger_skipped: bool,
}

impl Limits {
    /// Whether the ledger is asked if a mutation was applied already: always, but in a planted bug.
    fn asks_ledger(&self) -> bool {
        #[cfg(feature = "planted")]
        return !self.ledger_skipped;
        #[cfg(not(feature = "planted"))]
        true
    }
}

/// A client's query may answer so many bytes: JSON makes at most six of one (`\u0000`), and the frame
/// must be one that clients accept.
const QUERY_BYTES_MAX: usize = 8 << 20;
const _: () = assert!(6 * QUERY_BYTES_MAX < SERVER_FRAME_BYTES_MAX);

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            batch_mutations_max: 256,
            query_rows_max: 50_000,
            query_bytes_max: QUERY_BYTES_MAX,
            query_steps_max: 200_000_000,
            mutation_steps_max: 200_000_000,
            subscriptions_max: 256,
            checkpoint: Policy::default(),
            #[cfg(feature = "planted")]
            ledger_skipped: false,
        }
    }
}
