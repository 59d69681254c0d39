//! The client's half of sync: what survives a connection, and what is said on each.
//!
//! ```text
//!            start            Opened             Welcome
//! Idle ----------> Offline ----------> Greeting ----------> Live
//!                   ^  | redial timer: Dial |                |
//!                   |  +--------------------+ Closed, silence, broken frame, `error`
//!                   +-------------------------<--------------+
//! any --> Ended: the app closed it, or an end that dialling again cannot mend ([`SessionEnd`])
//! ```
//!
//! Mutations are numbered 1, 2, 3… per client id and kept until they are durable, finally rejected,
//! or refused for good; after each `welcome` those still kept are sent again in order, at most
//! `max_in_flight` at a time. Subscriptions are opened again under their ids; their rows stay
//! readable meanwhile, and the new snapshot replaces them. Queries without an answer are sent again
//! too: they only read. What it says of itself is said again as well ([`Present`]).
//!
//! Invariants: a kept mutation is never dropped without a [`Notice`]; seqs never repeat with other
//! content; a server that knows less than it called durable, or another volume under the same name,
//! ends the session with a typed error and leaves the kept mutations in [`ClientSession::state`].
//!
//! The driver ([`crate::client`]) owns the socket, one timer, the clock and random numbers: it feeds
//! [`Event`]s with a random number each (for jitter), and carries out the [`Effect`]s in order. After
//! [`Effect::Hangup`] it feeds nothing more from that connection.

use std::cmp::Ordering;
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use graft::{Lsn, ModuleHash, VolumeId};
use serde::{Deserialize, Serialize};
use serde_json::Map;

use super::rows::{DeltaError, Rows};
use crate::protocol::{
    At, Changes, ClientId, ClientMessage, FRAME_BYTES_MAX, PROTOCOL, Reason, Seed, ServerMessage, WireRow,
    codes,
};
use crate::value::Params;

mod presence;
mod receive;
mod restore;
#[cfg(test)]
mod tests;

pub use presence::Present;
pub use restore::{ClientState, RestoreError};

/// Bounds and waits of a session.
#[derive(Debug, Clone, Copy)]
pub struct SessionConfig {
    /// The wait before the first redial; it doubles with each failure in a row.
    pub backoff_min: Duration,
    /// The longest wait before a redial.
    pub backoff_max: Duration,
    /// How long the server may take from the opened socket to `welcome`.
    pub greeting_max: Duration,
    /// A `ping` goes out when nothing was heard for this long; after the same again the connection is
    /// given up.
    pub keepalive: Duration,
    /// Mutations kept at most.
    pub pending_max: usize,
    /// Whether to be told of every commit ([`Notice::Head`]).
    pub heads: bool,
}

impl Default for SessionConfig {
    fn default() -> SessionConfig {
        SessionConfig {
            backoff_min: Duration::from_millis(100),
            backoff_max: Duration::from_secs(10),
            greeting_max: Duration::from_secs(10),
            keepalive: Duration::from_secs(15),
            pending_max: 100_000,
            heads: false,
        }
    }
}

/// A mutation that has no final answer yet.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PendingMutation {
    /// Its number for this client.
    pub seq: u64,
    /// The reducer's name.
    pub reducer: String,
    /// Its arguments by name.
    pub args: Map<String, serde_json::Value>,
    /// The client's wall clock when it was made, ms since 1970.
    pub clock: i64,
    /// Its random seed.
    pub seed: Seed,
}

impl PendingMutation {
    fn frame(&self) -> String {
        ClientMessage::Mutate {
            seq: self.seq,
            reducer: self.reducer.clone(),
            args: self.args.clone(),
            clock: Some(self.clock),
            seed: Some(self.seed),
        }
        .to_json()
    }
}

/// What happened to the connection.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The dialled socket is open.
    Opened,
    /// The server's HTTP answer declined the connection (a 4xx). Before the first `welcome` this ends
    /// the session; later it is retried like a lost connection.
    Declined(Reason),
    /// A text frame came.
    Frame(String),
    /// Dialling failed, or the connection broke.
    Closed {
        /// What the network said.
        why: String,
    },
    /// The timer set last ran out.
    Timer,
}

/// What the driver is to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Open a socket; answer [`Event::Opened`], [`Event::Declined`] or [`Event::Closed`].
    Dial,
    /// Close the socket, or give up dialling. No event answers.
    Hangup,
    /// Send one text frame.
    Send(String),
    /// Feed [`Event::Timer`] after this long. Replaces the timer set before.
    SetTimer(Duration),
    /// Tell the app.
    Notify(Notice),
}

/// What the app is told.
#[derive(Debug, Clone, PartialEq)]
pub enum Notice {
    /// A mutation is applied at the tip; may be told again, with another LSN, after a failover.
    Accepted {
        /// Which.
        seq: u64,
        /// The LSN it is meant for.
        lsn: Lsn,
    },
    /// A mutation is in object storage. Final.
    Durable {
        /// Which.
        seq: u64,
        /// In this commit.
        lsn: Lsn,
    },
    /// A mutation had no effect. Final.
    Rejected {
        /// Which.
        seq: u64,
        /// The commit that records it.
        lsn: Lsn,
        /// Why.
        reason: Reason,
    },
    /// The server would not look at a mutation, and sending it again cannot help. It is kept no longer
    /// where its outcome is only forgotten ([`codes::SEQ_FORGOTTEN`]); otherwise the session ends too.
    Refused {
        /// Which.
        seq: u64,
        /// Why.
        reason: Reason,
    },
    /// A subscription's rows were replaced; read them by [`ClientSession::rows`].
    Snapshot {
        /// Which.
        sub: u64,
    },
    /// A subscription's rows moved by these changes, which [`ClientSession::rows`] has already.
    Delta {
        /// Which.
        sub: u64,
        /// Where they stand now.
        at: At,
        /// How they changed.
        changes: Changes,
    },
    /// A delta did not fit the rows: the subscription is opened anew and a snapshot will follow.
    Resubscribed {
        /// Which.
        sub: u64,
        /// What did not fit.
        error: DeltaError,
    },
    /// A subscription ended; its id is free.
    SubscriptionFailed {
        /// Which.
        sub: u64,
        /// Why.
        reason: Reason,
    },
    /// The answer to a query.
    Answer {
        /// Which.
        id: u64,
        /// Column names, rows and where they stand.
        rows: Rows,
    },
    /// A query failed.
    QueryFailed {
        /// Which.
        id: u64,
        /// Why.
        reason: Reason,
    },
    /// [`ClientSession::present`] is another.
    Presence,
    /// The log has commits up to this one ([`SessionConfig::heads`]).
    Head {
        /// The newest.
        lsn: Lsn,
    },
    /// The connection's state changed.
    Status(Status),
}

/// The connection, as an app shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Status {
    /// Dialling or greeting.
    Connecting,
    /// Connected.
    Live {
        /// The volume's identity.
        volume: VolumeId,
        /// The reducer module in force.
        module: Option<ModuleHash>,
    },
    /// Waiting to dial again.
    Offline {
        /// Mutations without a final answer.
        pending: usize,
        /// Why the last connection ended.
        error: String,
    },
    /// Over, for good.
    Ended(SessionEnd),
}

/// Why a session ended for good. Kept mutations can be read from [`ClientSession::state`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SessionEnd {
    /// The app closed it.
    #[error("the client was closed")]
    Closed,
    /// The server declined the first connection.
    #[error("{0}")]
    Declined(Reason),
    /// The server ended the connection for a reason that dialling again cannot mend.
    #[error("the server ended the session: {0}")]
    Server(Reason),
    /// The server chose a protocol version that this client does not speak.
    #[error("the server chose protocol version {chosen}, this client speaks {PROTOCOL}; upgrade the older")]
    Protocol {
        /// The version chosen.
        chosen: u32,
    },
    /// The volume's name leads to another volume than before.
    #[error(
        "the volume is {now} now and was {was} before: it was replaced; pending mutations were not sent to it"
    )]
    VolumeChanged {
        /// The volume of earlier connections.
        was: VolumeId,
        /// The one that answers now.
        now: VolumeId,
    },
    /// The server has forgotten mutations that it had called final.
    #[error(
        "the server knows mutations of this client up to {server}, but had called {settled} final: the volume was reset \
         or restored; pending mutations were not sent"
    )]
    HistoryLost {
        /// The last seq with a final answer.
        settled: u64,
        /// The last seq that the server knows.
        server: u64,
    },
    /// The server knows mutations that this client never made.
    #[error(
        "the server knows mutations up to {server}, but this client made only {made}: another copy of client id \
         `{client}` is at work, or this one was restored from an old state; use a new client id"
    )]
    ClonedClient {
        /// The id in question.
        client: ClientId,
        /// The last seq made here.
        made: u64,
        /// The last seq that the server knows.
        server: u64,
    },
    /// The server refused a mutation outright, so that none after it can be applied either.
    #[error("mutation {seq} was refused: {reason}")]
    Refused {
        /// Which.
        seq: u64,
        /// Why.
        reason: Reason,
    },
}

/// Why a call by the app was not taken. Nothing has changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CallError {
    /// The session is over.
    #[error("{0}")]
    Ended(SessionEnd),
    /// The client continues an id whose next seq only the server knows; wait for the first `welcome`.
    #[error("the next seq of client `{client}` is not known before its first welcome; connect first")]
    SeqUnknown {
        /// The id in question.
        client: ClientId,
    },
    /// Too many mutations wait for their final answer.
    #[error("{pending} mutations wait for the server already; go online or wait")]
    Full {
        /// How many.
        pending: usize,
    },
    /// A mutation's arguments are not an object.
    #[error("arguments must be a JSON object of parameter names and values, not {found}")]
    Arguments {
        /// What they are.
        found: &'static str,
    },
    /// What was to be said of this client is beyond the bounds.
    #[error("{0}")]
    Presence(Reason),
    /// A mutation that was given its seq elsewhere is not the next.
    #[error("mutation {seq} was given to the session, whose next is {next}")]
    Gap {
        /// Its seq.
        seq: u64,
        /// The seq that is next.
        next: u64,
    },
    /// The message would be longer than the server accepts.
    #[error("the message has {bytes} bytes, at most {FRAME_BYTES_MAX} are accepted; send less at once")]
    TooLong {
        /// Its length as a frame.
        bytes: usize,
    },
}

#[derive(Debug, Clone, PartialEq)]
enum State {
    /// Not started.
    Idle,
    /// Waiting for the redial timer, or (`dialling`) for the socket.
    Offline { dialling: bool },
    /// `hello` is sent.
    Greeting,
    /// `welcome` has come.
    Live(Live),
    /// Over.
    Ended(SessionEnd),
}

#[derive(Debug, Clone, PartialEq)]
struct Live {
    /// The highest seq sent on this connection. Invariant: every kept seq up to it was sent.
    sent: u64,
    /// How many of those have no final answer. Invariant: at most `max_in_flight`.
    in_flight: u64,
    max_in_flight: u64,
    /// Whether anything was heard since the timer was set.
    heard: bool,
    /// What the timer was set to.
    tick: Duration,
    /// For how many ticks in a row nothing was heard, as a time.
    quiet: Duration,
    /// The server takes no more mutations and will close; it still answers those that it took.
    leaving: bool,
}

#[derive(Debug)]
struct Subscription {
    /// Its id on the wire: its own, or a fresh one after a delta that did not fit.
    wire: u64,
    sql: String,
    params: Params,
    key: Option<Vec<String>>,
    /// The last rows known; kept across reconnects.
    rows: Option<Rows>,
    /// Whether the snapshot of the present opening has come. Deltas before it are dropped.
    open: bool,
    /// Deltas that did not fit, in a row.
    misfits: u32,
}

#[derive(Debug)]
struct Query {
    sql: String,
    params: Params,
}

/// The state machine. See the module for its states.
#[derive(Debug)]
pub struct ClientSession {
    config: SessionConfig,
    client: ClientId,
    volume: Option<VolumeId>,
    /// `None` until the first `welcome` of a client that continues an id without its state.
    next_seq: Option<u64>,
    /// The highest seq with a final answer.
    settled: u64,
    /// The newest commit at the last `welcome` before this id's first mutation; 0 before.
    since: Lsn,
    pending: BTreeMap<u64, PendingMutation>,
    subscriptions: BTreeMap<u64, Subscription>,
    queries: BTreeMap<u64, Query>,
    presence: presence::Presence,
    next_id: u64,
    state: State,
    /// Connections in a row that ended without progress.
    attempt: u32,
    effects: VecDeque<Effect>,
}

/// Deltas in a row that may not fit before a subscription is given up.
const MISFITS_MAX: u32 = 3;

/// Seqs end here, so that no JSON reader rounds one and none overflows: 2^53 at 1 M/s take 285 years.
const SEQ_MAX: u64 = 1 << 53;

impl ClientSession {
    /// A session of a client id that was never used before: its first seq is 1.
    pub fn new(client: ClientId, config: SessionConfig) -> ClientSession {
        ClientSession::build(client, Some(1), config)
    }

    /// A session that continues `client` without knowing its state: the first `welcome` says which seq
    /// is next. No mutation can be made before. What an earlier run left unanswered is not resent.
    pub fn resume(client: ClientId, config: SessionConfig) -> ClientSession {
        ClientSession::build(client, None, config)
    }

    fn build(client: ClientId, next_seq: Option<u64>, config: SessionConfig) -> ClientSession {
        ClientSession {
            config,
            client,
            volume: None,
            next_seq,
            settled: 0,
            since: Lsn::ZERO,
            pending: BTreeMap::new(),
            subscriptions: BTreeMap::new(),
            queries: BTreeMap::new(),
            presence: presence::Presence::default(),
            next_id: 1,
            state: State::Idle,
            attempt: 0,
            effects: VecDeque::new(),
        }
    }

    /// Who this is.
    pub fn client(&self) -> &ClientId {
        &self.client
    }

    /// Mutations without a final answer.
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// The last rows known of a subscription. `None` before the first snapshot.
    pub fn rows(&self, sub: u64) -> Option<&Rows> {
        self.subscriptions.get(&sub)?.rows.as_ref()
    }

    /// How the session ended, if it did.
    pub fn ended(&self) -> Option<&SessionEnd> {
        match &self.state {
            State::Ended(end) => Some(end),
            State::Idle | State::Offline { .. } | State::Greeting | State::Live(_) => None,
        }
    }

    /// The next effect to carry out.
    pub fn next_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// Dials for the first time. Does nothing once started.
    pub fn start(&mut self) {
        match self.state {
            State::Idle => self.dial(),
            State::Offline { .. } | State::Greeting | State::Live(_) | State::Ended(_) => {}
        }
    }

    /// Ends the session. Kept mutations stay in [`ClientSession::state`].
    pub fn close(&mut self) {
        self.end(SessionEnd::Closed);
    }

    /// Takes a mutation and answers its seq. It is sent at once where the connection is live.
    ///
    /// # Errors
    ///
    /// Any [`CallError`]; no seq is used up.
    pub fn mutate(
        &mut self,
        reducer: String,
        args: Map<String, serde_json::Value>,
        clock: i64,
        seed: Seed,
    ) -> Result<u64, CallError> {
        self.check_open()?;
        let seq = self.upcoming()?;
        self.take(PendingMutation { seq, reducer, args, clock, seed })?;
        Ok(seq)
    }

    /// Takes a mutation that was given its seq elsewhere. One that it has taken before, under this seq, it
    /// does not take again.
    ///
    /// # Errors
    ///
    /// Any [`CallError`]; it was not taken.
    pub fn mutate_as(&mut self, mutation: PendingMutation) -> Result<(), CallError> {
        self.check_open()?;
        let (seq, next) = (mutation.seq, self.upcoming()?);
        match seq.cmp(&next) {
            Ordering::Less => Ok(()),
            Ordering::Equal => self.take(mutation),
            Ordering::Greater => Err(CallError::Gap { seq, next }),
        }
    }

    fn upcoming(&self) -> Result<u64, CallError> {
        self.next_seq.ok_or_else(|| CallError::SeqUnknown { client: self.client.clone() })
    }

    fn take(&mut self, mutation: PendingMutation) -> Result<(), CallError> {
        let seq = mutation.seq;
        if self.pending.len() >= self.config.pending_max {
            return Err(CallError::Full { pending: self.pending.len() });
        }
        let frame = mutation.frame();
        check_length(&frame)?;
        match &mut self.state {
            State::Live(live)
                if !live.leaving
                    && live.in_flight < live.max_in_flight
                    && self.pending.range(live.sent + 1..).next().is_none() =>
            {
                live.sent = seq;
                live.in_flight += 1;
                self.effects.push_back(Effect::Send(frame));
            }
            // Its turn comes with the next `welcome`, or with room in the window.
            State::Live(_) | State::Idle | State::Offline { .. } | State::Greeting | State::Ended(_) => {}
        }
        self.pending.insert(seq, mutation);
        self.next_seq = Some(seq + 1);
        Ok(())
    }

    /// Opens a live query and answers its id. Its rows come by [`Notice::Snapshot`].
    ///
    /// # Errors
    ///
    /// [`CallError::Ended`], [`CallError::TooLong`].
    pub fn subscribe(
        &mut self,
        sql: String,
        params: Params,
        key: Option<Vec<String>>,
    ) -> Result<u64, CallError> {
        self.check_open()?;
        let sub = self.next_id;
        let subscription = Subscription { wire: sub, sql, params, key, rows: None, open: false, misfits: 0 };
        let frame = subscription.frame();
        check_length(&frame)?;
        self.next_id += 1;
        self.subscriptions.insert(sub, subscription);
        self.send_if_live(frame);
        Ok(sub)
    }

    /// Closes a live query. One that is not open is no error.
    pub fn unsubscribe(&mut self, sub: u64) {
        if let Some(subscription) = self.subscriptions.remove(&sub) {
            self.send_if_live(ClientMessage::Unsubscribe { sub: subscription.wire }.to_json());
        }
    }

    /// Asks once and answers the question's id. The answer comes by [`Notice::Answer`] or
    /// [`Notice::QueryFailed`]; across a reconnect the question is asked again.
    ///
    /// # Errors
    ///
    /// [`CallError::Ended`], [`CallError::TooLong`].
    pub fn query(&mut self, sql: String, params: Params) -> Result<u64, CallError> {
        self.check_open()?;
        let id = self.next_id;
        let query = Query { sql, params };
        let frame = query.frame(id);
        check_length(&frame)?;
        self.next_id += 1;
        self.queries.insert(id, query);
        self.send_if_live(frame);
        Ok(id)
    }

    /// Nobody waits for this answer any more: it is not asked for again, and dropped when it comes.
    pub fn forget_query(&mut self, id: u64) {
        self.queries.remove(&id);
    }

    /// Takes an event. `random` is any uniform random number; it spreads redials out.
    pub fn handle(&mut self, event: Event, random: u32) {
        match event {
            Event::Opened => self.opened(random),
            Event::Declined(reason) => self.declined(reason, random),
            Event::Frame(text) => self.frame(&text, random),
            Event::Closed { why } => self.lost(why, random),
            Event::Timer => self.timer(random),
        }
    }

    fn opened(&mut self, random: u32) {
        match self.state {
            State::Offline { dialling: true } => {
                let hello = ClientMessage::Hello {
                    protocols: vec![PROTOCOL],
                    client: self.client.clone(),
                    settled: self.settled,
                    // An id that made no mutation has none that could have been forgotten.
                    since: if self.next_seq == Some(1) { Lsn::ZERO } else { self.since },
                    heads: self.config.heads,
                };
                self.state = State::Greeting;
                self.effects.push_back(Effect::Send(hello.to_json()));
                self.effects.push_back(Effect::SetTimer(self.config.greeting_max));
            }
            State::Idle | State::Offline { dialling: false } | State::Ended(_) => {
                self.effects.push_back(Effect::Hangup);
            }
            State::Greeting | State::Live(_) => {
                self.hang_up("a second connection opened over the first".into(), random);
            }
        }
    }

    fn declined(&mut self, reason: Reason, random: u32) {
        if self.volume.is_none() {
            self.end(SessionEnd::Declined(reason));
        } else {
            self.lost(reason.to_string(), random);
        }
    }

    fn timer(&mut self, random: u32) {
        match &mut self.state {
            State::Offline { dialling: false } => self.dial(),
            State::Greeting => {
                let why = format!("the server did not greet within {:?}", self.config.greeting_max);
                self.hang_up(why, random);
            }
            State::Live(live) if live.leaving && live.tick >= self.config.keepalive => {
                self.hang_up("the server was shutting down and did not close".into(), random);
            }
            State::Live(live) => {
                live.quiet = if live.heard { Duration::ZERO } else { live.quiet + live.tick };
                live.heard = false;
                if live.quiet >= self.config.keepalive {
                    let why = format!("nothing was heard for {:?}", self.config.keepalive);
                    return self.hang_up(why, random);
                }
                let refresh = self.presence.refresh().filter(|_| !live.leaving);
                live.tick =
                    refresh.map_or(self.config.keepalive, |refresh| refresh.min(self.config.keepalive));
                self.effects.push_back(Effect::Send(ClientMessage::Ping { n: self.settled }.to_json()));
                self.effects.push_back(Effect::SetTimer(live.tick));
                self.say_presence();
            }
            State::Idle | State::Offline { dialling: true } | State::Ended(_) => {}
        }
    }

    /// The connection is gone: waits, then dials again.
    fn lost(&mut self, why: String, random: u32) {
        match self.state {
            State::Offline { dialling: true } | State::Greeting | State::Live(_) => {}
            State::Idle | State::Offline { dialling: false } | State::Ended(_) => return,
        }
        self.state = State::Offline { dialling: false };
        for subscription in self.subscriptions.values_mut() {
            subscription.open = false;
            subscription.misfits = 0;
        }
        self.lose_presence();
        let wait = backoff(&self.config, self.attempt, random);
        self.attempt = self.attempt.saturating_add(1);
        self.notify(Notice::Status(Status::Offline { pending: self.pending.len(), error: why }));
        self.effects.push_back(Effect::SetTimer(wait));
    }

    /// Closes the connection from this side, then as [`ClientSession::lost`].
    fn hang_up(&mut self, why: String, random: u32) {
        self.effects.push_back(Effect::Hangup);
        self.lost(why, random);
    }

    fn dial(&mut self) {
        self.state = State::Offline { dialling: true };
        self.notify(Notice::Status(Status::Connecting));
        self.effects.push_back(Effect::Dial);
    }

    fn end(&mut self, end: SessionEnd) {
        match self.state {
            State::Ended(_) => {}
            State::Idle | State::Offline { .. } | State::Greeting | State::Live(_) => {
                self.state = State::Ended(end.clone());
                self.lose_presence();
                self.effects.push_back(Effect::Hangup);
                self.notify(Notice::Status(Status::Ended(end)));
            }
        }
    }

    fn check_open(&self) -> Result<(), CallError> {
        match &self.state {
            State::Ended(end) => Err(CallError::Ended(end.clone())),
            State::Idle | State::Offline { .. } | State::Greeting | State::Live(_) => Ok(()),
        }
    }

    fn send_if_live(&mut self, frame: String) {
        match self.state {
            State::Live(_) => self.effects.push_back(Effect::Send(frame)),
            // Sent after the next `welcome`.
            State::Idle | State::Offline { .. } | State::Greeting | State::Ended(_) => {}
        }
    }

    /// Sends kept mutations in order, as far as the window allows.
    fn send_pending(&mut self) {
        let State::Live(live) = &mut self.state else { return };
        if live.leaving {
            return;
        }
        for (seq, mutation) in self.pending.range(live.sent + 1..) {
            if live.in_flight >= live.max_in_flight {
                return;
            }
            live.sent = *seq;
            live.in_flight += 1;
            self.effects.push_back(Effect::Send(mutation.frame()));
        }
    }

    fn notify(&mut self, notice: Notice) {
        self.effects.push_back(Effect::Notify(notice));
    }
}

impl Subscription {
    fn frame(&self) -> String {
        ClientMessage::Subscribe {
            sub: self.wire,
            sql: self.sql.clone(),
            params: self.params.clone(),
            key: self.key.clone(),
        }
        .to_json()
    }
}

impl Query {
    fn frame(&self, id: u64) -> String {
        ClientMessage::Query { id, sql: self.sql.clone(), params: self.params.clone() }.to_json()
    }
}

fn check_length(frame: &str) -> Result<(), CallError> {
    if frame.len() > FRAME_BYTES_MAX { Err(CallError::TooLong { bytes: frame.len() }) } else { Ok(()) }
}

/// The wait before redial number `attempt`: `backoff_min` doubled each time up to `backoff_max`, of
/// which a random half is taken off, so that clients of a restarted server do not come all at once.
fn backoff(config: &SessionConfig, attempt: u32, random: u32) -> Duration {
    let doubled = config.backoff_min.saturating_mul(1 << attempt.min(20));
    let whole = doubled.min(config.backoff_max);
    let half = whole / 2;
    half + half.mul_f64(f64::from(random) / f64::from(u32::MAX))
}
