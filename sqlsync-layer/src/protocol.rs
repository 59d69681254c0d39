//! The messages of `/v1/volumes/{name}/sync`, version 1: JSON text frames, one message a frame.
//!
//! The client speaks first (`hello`), the server answers `welcome` or `error`. After that the
//! client sends mutations with gapless sequence numbers and opens subscriptions under ids it
//! chooses; the server answers each mutation with `accepted` (applied at the tip) and then
//! `durable` or `rejected` (both in object storage), and each subscription with `snapshot` and then
//! `delta`s. Who is connected ([`crate::presence`]) is told beside all that, and stored nowhere.
//!
//! Invariants: for one client, `durable`/`rejected` arrive in the order of `seq`; a `delta` applies
//! to exactly the rows that the previous message of its subscription left; rows and the client's
//! last applied `seq` travel in one message.
//!
//! Written down for implementers in `docs/protocol.md`.

use std::fmt;

use graft::{Lsn, ModuleHash, VolumeId};
use reducers_abi::Value;
use serde::{Deserialize, Serialize};

use crate::value::{self, Params};

/// The protocol version this build speaks.
pub const PROTOCOL: u32 = 1;

/// The longest frame a server accepts, in bytes.
pub const FRAME_BYTES_MAX: usize = 4 << 20;

/// The longest frame a client must be ready for, in bytes: a whole result is one frame.
pub const SERVER_FRAME_BYTES_MAX: usize = 64 << 20;

/// How many mutations a client may have sent without a final answer.
pub const IN_FLIGHT_MAX: u64 = 256;

/// The longest state of one who is present, in bytes of JSON without white space.
pub const PRESENCE_BYTES_MAX: usize = 1024;

/// How many levels of arrays and objects such a state may have, so that it fits inside other JSON.
pub const PRESENCE_DEPTH_MAX: usize = 16;

/// A client's identity: 1–64 of `A-Z a-z 0-9 - _`. Random for each device or tab; mutations are
/// exactly-once per client id.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct ClientId(String);

impl ClientId {
    /// `None` where the rule above is broken.
    pub fn new(id: impl Into<String>) -> Option<ClientId> {
        let id = id.into();
        let fits = (1..=64).contains(&id.len())
            && id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
        fits.then_some(ClientId(id))
    }
    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}
impl<'de> Deserialize<'de> for ClientId {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        ClientId::new(String::deserialize(from)?)
            .ok_or_else(|| serde::de::Error::custom("a client id is 1 to 64 of A-Z a-z 0-9 - _"))
    }
}
impl fmt::Debug for ClientId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
impl fmt::Display for ClientId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A mutation's random seed; 16 hex digits in JSON, so that no JSON reader rounds it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Seed(pub u64);
impl Serialize for Seed {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        if to.is_human_readable() {
            to.collect_str(&format_args!("{:016x}", self.0))
        } else {
            to.serialize_u64(self.0)
        }
    }
}
impl<'de> Deserialize<'de> for Seed {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        if !from.is_human_readable() {
            return u64::deserialize(from).map(Seed);
        }
        let text = String::deserialize(from)?;
        match u64::from_str_radix(&text, 16) {
            Ok(seed) if text.len() == 16 => Ok(Seed(seed)),
            _ => Err(serde::de::Error::custom("a seed is 16 hex digits")),
        }
    }
}

/// Why something was refused: a stable word for programs, a sentence for people.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Reason {
    /// One of [`codes`], stable across versions.
    pub code: String,
    /// What happened to what, and what to do next.
    pub message: String,
}

impl Reason {
    /// A reason.
    pub fn new(code: &str, message: impl Into<String>) -> Reason {
        Reason { code: code.into(), message: message.into() }
    }
}
impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.message, self.code)
    }
}

/// The words that [`Reason::code`] can be.
pub mod codes {
    /// The reducer returned an error: the app's own reason.
    pub const REFUSED: &str = "refused";
    /// The module in force has no such reducer.
    pub const UNKNOWN_REDUCER: &str = "unknown_reducer";
    /// Arguments do not fit the reducer's description.
    pub const BAD_ARGUMENTS: &str = "bad_arguments";
    /// The guest trapped.
    pub const TRAP: &str = "trap";
    /// A limit on time, memory, rows or bytes was reached.
    pub const LIMIT: &str = "limit";
    /// SQLite ended the transaction, or a deferred constraint was still violated at the end.
    pub const SQL: &str = "sql";
    /// No module has been deployed to the volume.
    pub const NO_MODULE: &str = "no_module";
    /// The seq was used before with other content: two copies of one client id are at work.
    pub const SEQ_REUSED: &str = "seq_reused";
    /// The seq is not the next one.
    pub const SEQ_GAP: &str = "seq_gap";
    /// The seq was applied so long ago that its outcome is no longer recorded.
    pub const SEQ_FORGOTTEN: &str = "seq_forgotten";
    /// A deploy was sent so long ago that the log does not say any more whether it is in force: look, and
    /// deploy again if it is not.
    pub const OUTCOME_UNKNOWN: &str = "outcome_unknown";
    /// The client was away for so long that the ledger has forgotten it: what it sent before may have been
    /// applied or not, and nobody knows. It goes on under a new client id.
    pub const EXPIRED: &str = "client_expired";
    /// The app gave the mutation up when it conflicted.
    pub const DISCARDED: &str = "discarded";
    /// More mutations without a final answer than `max_in_flight`.
    pub const TOO_MANY_IN_FLIGHT: &str = "too_many_in_flight";
    /// The SQL is not one read-only, deterministic statement.
    pub const BAD_QUERY: &str = "bad_query";
    /// The subscription id is in use, or unknown.
    pub const BAD_SUBSCRIPTION: &str = "bad_subscription";
    /// The frame is not a message of this protocol.
    pub const BAD_MESSAGE: &str = "bad_message";
    /// No common protocol version.
    pub const UNSUPPORTED: &str = "unsupported_protocol";
    /// The volume, or the object store under it, cannot be reached now.
    pub const UNAVAILABLE: &str = "unavailable";
    /// The state of one who is present is longer or deeper than is allowed.
    pub const TOO_LARGE: &str = "too_large";
    /// The server is shutting down; connect again.
    pub const SHUTDOWN: &str = "shutdown";
    /// Stored bytes are damaged; someone must look.
    pub const DAMAGED: &str = "damaged";
}

/// What a client says of itself in its hello.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Known {
    /// The last seq that it knows to be final.
    pub settled: u64,
    /// The newest commit that it knew when its id was made; 0 where it does not say.
    pub since: Lsn,
    /// Whether it wants [`ServerMessage::Head`].
    pub heads: bool,
}

impl Known {
    /// A client that knows of nothing.
    pub const NOTHING: Known = Known { settled: 0, since: Lsn::ZERO, heads: false };
}

/// What a client sends.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum ClientMessage {
    /// First message of a connection.
    Hello {
        /// Versions the client speaks.
        protocols: Vec<u32>,
        /// Who it is.
        client: ClientId,
        /// Every seq up to this one has had its final answer, from whatever server. A server that has
        /// not seen that yet looks at the log before it answers.
        #[serde(default, skip_serializing_if = "is_zero")]
        settled: u64,
        /// The newest commit at the last `welcome` before the client's first mutation: nothing of it is in
        /// the log before. A client that was away for so long that the volume has forgotten it
        /// is told so by it, and not taken for a new one.
        #[serde(default = "no_lsn", skip_serializing_if = "is_no_lsn")]
        since: Lsn,
        /// Whether to send `head` for every commit.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        heads: bool,
    },
    /// Run a reducer.
    Mutate {
        /// 1, 2, 3… without gaps for this client; resending one is harmless.
        seq: u64,
        /// Its name in the module in force.
        reducer: String,
        /// Its arguments by parameter name; values as in [`crate::value`].
        args: serde_json::Map<String, serde_json::Value>,
        /// The client's wall clock, ms since 1970; the server's where absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        clock: Option<i64>,
        /// The mutation's random seed; the server's choice where absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        seed: Option<Seed>,
    },
    /// Open a live query.
    Subscribe {
        /// The client's own id for it, unused so far on this connection.
        sub: u64,
        /// One SELECT.
        sql: String,
        /// Its parameters.
        #[serde(default, skip_serializing_if = "Params::is_empty")]
        params: Params,
        /// Columns that identify a row. Where absent: `id` if there is such a column, else the whole row.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        key: Option<Vec<String>>,
    },
    /// Close a live query.
    Unsubscribe {
        /// Which.
        sub: u64,
    },
    /// Ask once.
    Query {
        /// The client's own id for the answer.
        id: u64,
        /// One SELECT.
        sql: String,
        /// Its parameters.
        #[serde(default, skip_serializing_if = "Params::is_empty")]
        params: Params,
    },
    /// I am here; also: I am still here. Never stored.
    SetPresence {
        /// What the others are to see, at most [`PRESENCE_BYTES_MAX`] and [`PRESENCE_DEPTH_MAX`].
        state: serde_json::Value,
    },
    /// I am here no more.
    ClearPresence {},
    /// Tell me who is here, now and whenever it changes.
    WatchPresence {},
    /// Tell me no more.
    UnwatchPresence {},
    /// Are you there?
    Ping {
        /// Comes back in the pong.
        n: u64,
    },
}

fn no_lsn() -> Lsn {
    Lsn::ZERO
}
fn is_no_lsn(lsn: &Lsn) -> bool {
    *lsn == Lsn::ZERO
}
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// Result rows in the wire's value form.
pub type WireRow = Vec<serde_json::Value>;

/// What a delta does to the rows of a subscription, in this order.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Changes {
    /// Positions in the old rows, ascending; remove from the last to the first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub delete: Vec<u32>,
    /// Positions in the new rows, ascending, with their rows; insert from the first to the last.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub insert: Vec<(u32, WireRow)>,
    /// Positions in the new rows with their rows: same key, other content.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub update: Vec<(u32, WireRow)>,
}

impl Changes {
    /// No change.
    pub fn is_empty(&self) -> bool {
        self.delete.is_empty() && self.insert.is_empty() && self.update.is_empty()
    }
}

/// Where a subscription's rows stand.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct At {
    /// Rises when the tip moved other than forward (a lost LSN was replayed).
    pub epoch: u64,
    /// The LSN that the rows' last commit has or will have.
    pub lsn: Lsn,
    /// The receiving client's last applied seq in these rows.
    pub seq: u64,
}

/// One who is present.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Peer {
    /// The server's number for it while it is here.
    pub id: u64,
    /// What it says of itself.
    pub state: serde_json::Value,
}

/// What a server sends.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ServerMessage {
    /// The connection is live.
    Welcome {
        /// The version chosen.
        protocol: u32,
        /// The volume's identity.
        volume: VolumeId,
        /// Where the volume stands; `seq` is the client's last applied one.
        #[serde(flatten)]
        at: At,
        /// The module in force.
        module: Option<ModuleHash>,
        /// How many mutations may be without a final answer.
        max_in_flight: u64,
    },
    /// Ordered and applied at the tip. May still become `rejected` if the server loses the LSN.
    Accepted {
        /// Which.
        seq: u64,
        /// The LSN it is meant for.
        lsn: Lsn,
    },
    /// In object storage.
    Durable {
        /// Which.
        seq: u64,
        /// In this commit.
        lsn: Lsn,
    },
    /// Had no effect, and that is in object storage. Final.
    Rejected {
        /// Which.
        seq: u64,
        /// The commit that records it.
        lsn: Lsn,
        /// Why.
        reason: Reason,
    },
    /// The mutation was not looked at and is not recorded ([`codes::SEQ_GAP`] and the like).
    Refused {
        /// Which.
        seq: u64,
        /// Why.
        reason: Reason,
    },
    /// The whole result of a subscription; replaces what the client had.
    Snapshot {
        /// Which.
        sub: u64,
        /// Where.
        #[serde(flatten)]
        at: At,
        /// Column names.
        columns: Vec<String>,
        /// The columns that identify a row (all of them where none was named and there is no `id`).
        key: Vec<String>,
        /// All rows.
        rows: Vec<WireRow>,
    },
    /// What changed in a subscription's rows.
    Delta {
        /// Which.
        sub: u64,
        /// Where the rows are afterwards.
        #[serde(flatten)]
        at: At,
        /// What to do to them.
        changes: Changes,
    },
    /// A subscription could not be opened, or was closed by the server.
    SubscriptionError {
        /// Which; the id is free again.
        sub: u64,
        /// Why.
        reason: Reason,
    },
    /// Answer to `query`.
    Rows {
        /// Which.
        id: u64,
        /// Where.
        #[serde(flatten)]
        at: At,
        /// Column names.
        columns: Vec<String>,
        /// All rows.
        rows: Vec<WireRow>,
    },
    /// A `query` failed.
    QueryError {
        /// Which.
        id: u64,
        /// Why.
        reason: Reason,
    },
    /// Everybody who is here; replaces what the client had.
    Presence {
        /// By ascending id; those who came first where there are too many.
        peers: Vec<Peer>,
        /// How many more there are.
        #[serde(default, skip_serializing_if = "is_zero")]
        more: u64,
    },
    /// Answer to `set_presence`: it holds.
    PresenceSet {
        /// The number that the others see.
        id: u64,
        /// It is forgotten unless it is set again within this time.
        ttl_ms: u64,
    },
    /// Answer to `set_presence`: it was not taken; what was set before still holds.
    PresenceError {
        /// Why.
        reason: Reason,
    },
    /// The log has a commit that was not in it before; sent to clients whose hello asked for it. Says
    /// nothing of what is in it: pull.
    Head {
        /// The newest commit.
        lsn: Lsn,
    },
    /// Answer to `ping`.
    Pong {
        /// From the ping.
        n: u64,
    },
    /// The connection ends after this message.
    Error {
        /// Why.
        reason: Reason,
    },
}

/// A frame was not a message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("malformed message: {message}")]
pub struct MalformedMessage {
    /// What the parser said.
    pub message: String,
}

impl MalformedMessage {
    /// Keeps the beginning: the parser quotes what it did not expect, however long that was.
    fn new(error: serde_json::Error) -> MalformedMessage {
        let mut message = error.to_string();
        if let Some((cut, _)) = message.char_indices().nth(300) {
            message.truncate(cut);
            message.push('…');
        }
        MalformedMessage { message }
    }
}

impl ClientMessage {
    /// Reads one frame. Safe on hostile input.
    pub fn from_json(text: &str) -> Result<ClientMessage, MalformedMessage> {
        serde_json::from_str(text).map_err(MalformedMessage::new)
    }
    /// One frame.
    pub fn to_json(&self) -> String {
        value::json(self)
    }
}

impl ServerMessage {
    /// Reads one frame. Safe on hostile input.
    pub fn from_json(text: &str) -> Result<ServerMessage, MalformedMessage> {
        serde_json::from_str(text).map_err(MalformedMessage::new)
    }
    /// One frame.
    pub fn to_json(&self) -> String {
        value::json(self)
    }
}

/// Rows on the wire.
pub fn wire_rows(rows: &[Vec<Value>]) -> Vec<WireRow> {
    rows.iter().map(|row| row.iter().map(value::to_json).collect()).collect()
}
