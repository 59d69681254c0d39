//! The actor itself: orders operations, drives publication, resets and replays.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use graft::checkpoint::{CheckpointError, Written};
use graft::fetch::Fetch;
use graft::format::Damaged;
use graft::format::commit::Head;
use graft::publish::{Prepared, PublishError, Published};
use graft::pull::{PullError, Pulled};
use graft::snapshot::graft;
use graft::store::StoreError;
use graft::volume::{Change, Opened, Volume};
use graft::{CommitId, Lsn, ModuleHash, PageIdx};

use super::ask::Asks;
use super::batch::{Blocked, Done, Writer};
use super::queries::Reader;
use super::{Deployed, Input, Limits, Modules, Outgoing, Output, RequestId, SessionId};
use crate::ledger::{Entry, Ledger, Standing, expired};
use crate::live::{LiveQueries, QueryId};
use crate::payload::{Mutation, Op, Outcome, Payload, Record};
use crate::protocol::{
    At, ClientId, ClientMessage, IN_FLIGHT_MAX, Known, PROTOCOL, Reason, Seed, ServerMessage, codes,
};
use crate::vfs::{ConnectError, Database, IoFailure, Marks, Note, WriteSet};

/// Bytes of reducers' names and arguments after which a batch takes no more operations, and a commit no
/// more batches. Every record goes into its commit's head, and no reader takes a head above 256 MiB; one
/// operation is at most a frame of 4 MiB.
const BATCH_BYTES: usize = 4 << 20;
const COMMIT_BYTES: usize = 16 << 20;

/// Failures in a row after which a coordinator looks at the log before it tries again.
const STALE_FAILURES: u32 = 3;

/// First and longest wait before the object store is tried again, in milliseconds.
const RETRY_MS: (u64, u64) = (50, 5_000);

/// Why an actor could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// SQLite could not open the volume.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// A commit's payload is damaged.
    #[error(transparent)]
    Damaged(#[from] Damaged),
}

impl OpenError {
    /// What failed, and whether it is damage.
    pub fn failure(&self) -> IoFailure {
        match self {
            OpenError::Connect(ConnectError::Volume(failure)) => {
                IoFailure { message: self.to_string(), damaged: failure.damaged }
            }
            OpenError::Connect(ConnectError::Register(_) | ConnectError::Sqlite(_)) => {
                IoFailure { message: self.to_string(), damaged: false }
            }
            OpenError::Damaged(_) => IoFailure { message: self.to_string(), damaged: true },
        }
    }
}

/// What an actor has done since it was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Metrics {
    /// Operations run, replays included.
    pub operations_run: u64,
    /// Local commits made.
    pub batches: u64,
    /// Commits published.
    pub published: u64,
    /// LSNs lost, and everything unpublished replayed.
    pub replays: u64,
    /// Executions of live queries, the first ones included.
    pub query_runs: u64,
    /// Row messages sent to subscribers.
    pub row_messages: u64,
}

/// An operation waiting to be run, and who asked for a deploy.
#[derive(Debug)]
struct Queued {
    op: Op,
    request: Option<RequestId>,
}

/// A local commit whose publication is not known.
#[derive(Debug)]
struct Unpublished {
    done: Done,
    requests: Vec<Option<RequestId>>,
}

/// Where publication stands; drawn in [`super`].
#[derive(Debug)]
enum Phase {
    Idle,
    Publishing(Arc<Prepared>),
    PublishLater(Arc<Prepared>),
    Pulling,
    PullLater,
}

#[derive(Debug)]
pub(super) struct Session {
    pub(super) client: ClientId,
    pub(super) subscriptions: BTreeMap<u64, crate::live::QueryId>,
    pub(super) congested: bool,
    /// It is told of every commit.
    pub(super) heads: bool,
    /// Subscriptions that missed rows while congested.
    pub(super) missed: BTreeSet<u64>,
}

/// A connection whose client knows more than this actor.
#[derive(Debug)]
struct Behind {
    session: SessionId,
    client: ClientId,
    known: Known,
    /// A look at the log began after it came.
    looked: bool,
}

/// The server's side of one volume; see [`super`].
pub struct Actor {
    pub(super) volume: Arc<Volume>,
    // Keeps the name that the connections' path resolves to.
    _database: Arc<Database>,
    writer: Writer,
    pub(super) reader: Reader,
    pub(super) limits: Limits,
    pub(super) epoch: u64,
    /// What object storage holds, and with every local commit on top.
    durable: Ledger,
    pub(super) tip: Ledger,
    inbox: VecDeque<Queued>,
    /// The greatest seq of each client in the inbox.
    queued: BTreeMap<ClientId, u64>,
    /// Mutations of each client without a final answer.
    in_flight: BTreeMap<ClientId, u64>,
    unpublished: Vec<Unpublished>,
    phase: Phase,
    /// A page or module is missing: nothing runs before the next `Woken`.
    blocked: bool,
    failures: u32,
    /// A [`Output::Wake`] is out: whatever else fails waits for the same one.
    waking: bool,
    /// Live queries that cannot run for now: not tried before the next `Woken`.
    pub(super) held_back: BTreeSet<QueryId>,
    /// Connections whose client knows more than this actor: welcomed after the next look at the log.
    behind: Vec<Behind>,
    /// A checkpoint is being written.
    checkpointing: bool,
    /// The last one was not: the next publication will do.
    checkpoint_failed: bool,
    /// Something was published since the last look for what others did.
    was_newest: bool,
    pub(super) shutting_down: bool,
    drained: bool,
    pub(super) sessions: BTreeMap<SessionId, Session>,
    /// The sessions of each connected client.
    clients: BTreeMap<ClientId, BTreeSet<SessionId>>,
    pub(super) live: LiveQueries<(SessionId, u64)>,
    pub(super) asks: Asks,
    /// Subscriptions whose snapshot waits until their query has run at the tip.
    pub(super) owed: BTreeSet<(SessionId, u64)>,
    outputs: Vec<Output>,
    pub(super) metrics: Metrics,
}

impl fmt::Debug for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sessions = self.sessions.len();
        write!(f, "Actor({:?}, {sessions} sessions, {:?})", self.volume, self.metrics)
    }
}

impl Actor {
    /// An actor on a volume that was just opened, local commits kept in memory alone
    /// ([`graft::volume::Options::locals`] is `None`). `epoch` must differ from that of every earlier
    /// actor of this volume, so that clients notice a tip that was lost: the clock will do.
    pub fn open(
        opened: Opened,
        fetch: Arc<dyn Fetch>,
        modules: Arc<dyn Modules>,
        limits: Limits,
        epoch: u64,
    ) -> Result<Actor, OpenError> {
        let durable = Ledger::open(&opened.start, &opened.heads)?;
        let volume = Arc::new(opened.volume);
        let database = Database::new(volume.clone(), fetch);
        Ok(Actor {
            writer: Writer::new(&database, modules, limits)?,
            reader: Reader::new(&database)?,
            volume,
            _database: database,
            limits,
            epoch,
            tip: durable.clone(),
            durable,
            inbox: VecDeque::new(),
            queued: BTreeMap::new(),
            in_flight: BTreeMap::new(),
            unpublished: Vec::new(),
            phase: Phase::Idle,
            blocked: false,
            failures: 0,
            waking: false,
            held_back: BTreeSet::new(),
            behind: Vec::new(),
            checkpointing: false,
            checkpoint_failed: false,
            was_newest: false,
            shutting_down: false,
            drained: false,
            sessions: BTreeMap::new(),
            clients: BTreeMap::new(),
            live: LiveQueries::default(),
            asks: Asks::default(),
            owed: BTreeSet::new(),
            outputs: Vec::new(),
            metrics: Metrics::default(),
        })
    }

    /// The volume it is the actor of; the driver pulls and publishes through it.
    pub fn volume(&self) -> &Arc<Volume> {
        &self.volume
    }

    /// What it has done.
    pub fn metrics(&self) -> Metrics {
        self.metrics
    }

    /// Whether it has nothing to do and nobody is connected: it may be closed.
    pub fn is_idle(&self) -> bool {
        self.sessions.is_empty() && self.behind.is_empty() && self.is_drained()
    }

    /// Takes what the driver is to do, in order.
    pub fn take_outputs(&mut self) -> Vec<Output> {
        std::mem::take(&mut self.outputs)
    }

    /// Something happened.
    pub fn handle(&mut self, input: Input) {
        match input {
            Input::Connect { session, client, known } => self.connect(session, client, known),
            Input::Receive { session, message, seed, now_ms } => self.receive(session, message, seed, now_ms),
            Input::Disconnect { session } => self.disconnect(session),
            Input::Congested { session } => {
                if let Some(session) = self.sessions.get_mut(&session) {
                    session.congested = true;
                }
            }
            Input::Relieved { session } => self.relieved(session),
            Input::Deploy { request, module, now_ms, seed } => self.deploy(request, module, now_ms, seed),
            Input::Ask { request, ask } => self.ask(request, ask),
            Input::Inspect { request } => self.inspect(request),
            Input::Reminded => self.reminded(),
            Input::Look => self.look(),
            Input::Published(result) => self.published(result),
            Input::Pulled(result) => self.pulled(result),
            Input::Checkpointed(result) => self.checkpointed(result),
            Input::Woken => self.woken(),
            Input::Shutdown => self.shutting_down = true,
        }
    }

    /// Runs what has arrived, refreshes live queries and begins the next publication. `now_ms` is the
    /// driver's clock, `id` a fresh random commit id.
    pub fn flush(&mut self, now_ms: i64, id: CommitId) {
        self.run_inbox();
        self.refresh();
        self.seal(now_ms, id);
        self.checkpoint();
        let freshen = self.settle_waiting(now_ms) || !self.behind.is_empty();
        if freshen && matches!(self.phase, Phase::Idle) {
            self.pull();
        }
        if self.shutting_down && !self.drained && self.is_drained() {
            self.drained = true;
            self.output(Output::Drained);
        }
    }

    /// Asks for a checkpoint of what is durable, if one is due.
    fn checkpoint(&mut self) {
        let waits = self.checkpointing || self.checkpoint_failed || self.shutting_down;
        if !waits && self.volume.checkpoint_due(&self.limits.checkpoint) {
            self.checkpointing = true;
            // The durable ledger is the fold up to the base: both move in one step.
            let (snapshot, state) = (self.volume.base(), self.durable.encode());
            self.output(Output::Checkpoint { snapshot, state });
        }
    }

    fn checkpointed(&mut self, result: Result<Written, CheckpointError>) {
        self.checkpointing = false;
        match result {
            Ok(written) => {
                tracing::debug!(volume = %self.volume.id(), ?written, "checkpoint");
                // The winner's may be of a commit that we do not know yet: then we would lose the same
                // number again, at once and for ever.
                self.checkpoint_failed |= matches!(written, Written::Lost { .. });
            }
            Err(error) => {
                tracing::warn!(volume = %self.volume.id(), %error, "no checkpoint; the next publication tries again");
                self.checkpoint_failed = true;
            }
        }
    }

    fn is_drained(&self) -> bool {
        self.inbox.is_empty() && self.unpublished.is_empty() && matches!(self.phase, Phase::Idle)
    }

    pub(super) fn output(&mut self, output: Output) {
        self.outputs.push(output);
    }

    pub(super) fn send(&mut self, session: SessionId, message: ServerMessage) {
        self.output(Output::Send { session, message: Outgoing::Message(message) });
    }

    fn send_to_client(&mut self, client: &ClientId, message: &ServerMessage) {
        let sessions = self.clients.get(client).into_iter().flatten();
        let sends = sessions
            .map(|session| Output::Send { session: *session, message: Outgoing::Message(message.clone()) });
        self.outputs.extend(sends);
    }

    /// The LSN that the tip's last commit has or will have.
    pub(super) fn tip_lsn(&self) -> Lsn {
        let in_flight = match &self.phase {
            Phase::Publishing(prepared) | Phase::PublishLater(prepared) => prepared.locals,
            Phase::Idle | Phase::Pulling | Phase::PullLater => 0,
        };
        let base = self.volume.base().lsn().0;
        Lsn(base + u64::from(in_flight > 0) + u64::from(self.unpublished.len() > in_flight))
    }

    /// Whether the tip holds what is not durable.
    pub(super) fn is_ahead(&self) -> bool {
        !self.unpublished.is_empty()
    }

    pub(super) fn at(&self, client: &ClientId) -> At {
        At { epoch: self.epoch, lsn: self.tip_lsn(), seq: self.tip.last_seq(client) }
    }

    fn connect(&mut self, session: SessionId, client: ClientId, known: Known) {
        if known.settled > self.durable.last_seq(&client) {
            // Another coordinator has told it more than is known here: the log comes first.
            return self.behind.push(Behind { session, client, known, looked: false });
        }
        self.welcome(session, client, known);
    }

    /// Welcomes those of whom enough is known now, and those for whom the log was looked at: what they
    /// claim is not in it.
    fn welcome_waiting(&mut self) {
        for waiting in std::mem::take(&mut self.behind) {
            if waiting.looked || waiting.known.settled <= self.durable.last_seq(&waiting.client) {
                self.welcome(waiting.session, waiting.client, waiting.known);
            } else {
                self.behind.push(waiting);
            }
        }
    }

    /// Looks for what others did, where nothing else would show it.
    fn look(&mut self) {
        let was_newest = std::mem::take(&mut self.was_newest);
        let is_idle = matches!(self.phase, Phase::Idle) && !self.is_ahead() && self.inbox.is_empty();
        if is_idle && !was_newest && !self.shutting_down {
            self.pull();
        }
    }

    /// Looks at the log. A look that began before a connection came says nothing of what it knows.
    fn pull(&mut self) {
        self.behind.iter_mut().for_each(|waiting| waiting.looked = true);
        self.phase = Phase::Pulling;
        self.output(Output::Pull);
    }

    fn welcome(&mut self, session: SessionId, client: ClientId, known: Known) {
        if self.durable.is_expired(&client, known.since, known.settled) {
            let reason = Reason::new(codes::EXPIRED, expired(&client));
            return self.send(session, ServerMessage::Error { reason });
        }
        let message = ServerMessage::Welcome {
            protocol: PROTOCOL,
            volume: self.volume.id(),
            at: self.at(&client),
            module: self.tip.module(),
            max_in_flight: IN_FLIGHT_MAX,
        };
        let subscriptions = BTreeMap::new();
        self.clients.entry(client.clone()).or_default().insert(session);
        self.sessions.insert(
            session,
            Session { client, subscriptions, congested: false, missed: BTreeSet::new(), heads: known.heads },
        );
        self.send(session, message);
    }

    /// Tells those who asked for it that the log has grown.
    fn tell_head(&mut self) {
        let lsn = self.volume.base().lsn();
        let asked: Vec<SessionId> =
            self.sessions.iter().filter(|(_, session)| session.heads).map(|(id, _)| *id).collect();
        for session in asked {
            self.send(session, ServerMessage::Head { lsn });
        }
    }

    fn disconnect(&mut self, session: SessionId) {
        self.behind.retain(|waiting| waiting.session != session);
        if let Some(gone) = self.sessions.remove(&session) {
            if let Some(sessions) = self.clients.get_mut(&gone.client) {
                sessions.remove(&session);
                if sessions.is_empty() {
                    self.clients.remove(&gone.client);
                }
            }
            for (sub, query) in gone.subscriptions {
                self.owed.remove(&(session, sub));
                self.live.leave(query, &(session, sub));
            }
        }
    }

    fn receive(&mut self, session: SessionId, message: ClientMessage, seed: u64, now_ms: i64) {
        let Some(client) = self.sessions.get(&session).map(|s| s.client.clone()) else { return };
        match message {
            ClientMessage::Hello { .. } => {
                let reason = Reason::new(codes::BAD_MESSAGE, "hello was said before on this connection");
                self.send(session, ServerMessage::Error { reason });
            }
            ClientMessage::Mutate { seq, reducer, args, clock, seed: given } => {
                let args = serde_json::Value::Object(args).to_string();
                let content = content_of(&reducer, &args, clock, given);
                let (clock, seed) = (clock.unwrap_or(now_ms), given.unwrap_or(Seed(seed)));
                let mutation = Mutation { client, seq, reducer, args, clock, seed, content };
                self.mutate(session, mutation);
            }
            ClientMessage::Subscribe { sub, sql, params, key } => {
                self.run_inbox();
                self.refresh();
                self.subscribe(session, sub, sql, params, key);
            }
            ClientMessage::Unsubscribe { sub } => self.unsubscribe(session, sub),
            ClientMessage::Query { id, sql, params } => {
                self.run_inbox();
                self.query(session, id, &sql, &params);
            }
            ClientMessage::Ping { n } => self.send(session, ServerMessage::Pong { n }),
            // The driver answers these by `crate::presence`: they are not of the volume's state.
            ClientMessage::SetPresence { .. }
            | ClientMessage::ClearPresence {}
            | ClientMessage::WatchPresence {}
            | ClientMessage::UnwatchPresence {} => {}
        }
    }

    fn mutate(&mut self, session: SessionId, mutation: Mutation) {
        let (client, seq) = (mutation.client.clone(), mutation.seq);
        let applied = self.tip.last_seq(&client);
        let queued = self.queued.get(&client).copied().unwrap_or(0).max(applied);
        if seq <= applied && self.limits.asks_ledger() {
            self.answer_known(Some(session), &mutation);
        } else if seq <= queued && self.limits.asks_ledger() {
            // Resent while its first copy waits; that one will be answered, on every connection.
        } else if seq > queued + 1 {
            self.send(session, refused(seq, codes::SEQ_GAP, gap(&client, seq, queued + 1)));
        } else if self.shutting_down {
            let message = "the server is shutting down; connect again and resend".into();
            self.send(session, refused(seq, codes::SHUTDOWN, message));
        } else if self.in_flight.get(&client).is_some_and(|count| *count >= IN_FLIGHT_MAX) {
            let message = format!("{IN_FLIGHT_MAX} mutations are without a final answer; wait for some");
            self.send(session, refused(seq, codes::TOO_MANY_IN_FLIGHT, message));
        } else {
            *self.in_flight.entry(client.clone()).or_default() += 1;
            self.queued.insert(client, seq);
            self.inbox.push_back(Queued { op: Op::Mutation(mutation), request: None });
        }
    }

    /// Answers a mutation whose seq the tip has already: what is durable finally, what is not with
    /// `accepted`, and the rest with why it is not looked at.
    fn answer_known(&mut self, session: Option<SessionId>, mutation: &Mutation) {
        let (client, seq) = (&mutation.client, mutation.seq);
        let message = match self.durable.standing(client, seq, &mutation.content) {
            Standing::Known(entry) => Some(final_answer(&entry)),
            Standing::Next | Standing::Gap { .. } => {
                match self.tip.standing(client, seq, &mutation.content) {
                    // Rejected at the tip is not final yet: its answer follows.
                    Standing::Known(entry) => (entry.outcome == Outcome::Applied)
                        .then_some(ServerMessage::Accepted { seq, lsn: entry.lsn }),
                    Standing::Reused => Some(refused(seq, codes::SEQ_REUSED, reused(client, seq))),
                    Standing::Forgotten => Some(refused(seq, codes::SEQ_FORGOTTEN, forgotten(client, seq))),
                    // Not applied: the client is to send it again, after those before it.
                    Standing::Next | Standing::Gap { .. } => {
                        let next = self.tip.last_seq(client) + 1;
                        Some(refused(seq, codes::SEQ_GAP, gap(client, seq, next)))
                    }
                }
            }
            Standing::Reused => Some(refused(seq, codes::SEQ_REUSED, reused(client, seq))),
            Standing::Forgotten => Some(refused(seq, codes::SEQ_FORGOTTEN, forgotten(client, seq))),
        };
        match (message, session) {
            (None, _) => {}
            (Some(message), Some(session)) => self.send(session, message),
            (Some(message), None) => self.send_to_client(client, &message),
        }
    }

    fn deploy(&mut self, request: RequestId, module: ModuleHash, now_ms: i64, seed: u64) {
        if self.shutting_down {
            let result = Err(Reason::new(codes::SHUTDOWN, "the server is shutting down; deploy again"));
            return self.output(Output::Deployed { request, result });
        }
        let op = Op::Deploy { module, schema: 0, clock: now_ms, seed: Seed(seed) };
        self.inbox.push_back(Queued { op, request: Some(request) });
    }

    /// Runs the inbox in batches, as far as nothing blocks.
    pub(super) fn run_inbox(&mut self) {
        let replaying = matches!(self.phase, Phase::Pulling | Phase::PullLater);
        while !self.inbox.is_empty() && !self.blocked && !replaying {
            let batch = self.next_batch();
            if !batch.is_empty() {
                self.run_batch(batch);
            }
        }
        if self.inbox.is_empty() {
            self.queued.clear();
        }
    }

    /// Takes the next operations from the inbox; those that need not run are answered here.
    fn next_batch(&mut self) -> Vec<Queued> {
        let mut batch = Vec::new();
        let mut scheduled: BTreeMap<ClientId, u64> = BTreeMap::new();
        let mut bytes = 0;
        while batch.len() < self.limits.batch_mutations_max
            && bytes < BATCH_BYTES
            && let Some(queued) = self.inbox.pop_front()
        {
            bytes += queued.op.bytes();
            match &queued.op {
                Op::Mutation(mutation) => {
                    let last = scheduled.get(&mutation.client).copied();
                    let last = last.unwrap_or_else(|| self.tip.last_seq(&mutation.client));
                    if mutation.seq == last + 1 || !self.limits.asks_ledger() {
                        scheduled.insert(mutation.client.clone(), mutation.seq);
                        batch.push(queued);
                    } else {
                        // Another coordinator has it, after a reset; or one before it was refused.
                        self.landed(&mutation.client);
                        self.answer_known(None, mutation);
                    }
                }
                Op::Deploy { module, .. } => {
                    let in_force =
                        self.durable.module() == Some(*module) && self.tip.module() == Some(*module);
                    if in_force && batch.is_empty() {
                        let (module, schema) = (*module, self.durable.schema());
                        let lsn = self.volume.base().lsn();
                        self.deployed(
                            queued.request,
                            Ok(Deployed { module, schema, lsn, migrations_run: 0 }),
                        );
                    } else {
                        batch.push(queued);
                    }
                }
            }
        }
        batch
    }

    fn run_batch(&mut self, batch: Vec<Queued>) {
        let ops: Vec<Op> = batch.iter().map(|queued| queued.op.clone()).collect();
        self.metrics.operations_run += ops.len() as u64;
        let done = self.writer.run(&ops, self.tip.module(), self.tip.schema());
        let done = done.and_then(|done| self.record(done));
        let done = match done {
            Ok(done) => done,
            Err(Blocked(failure)) => {
                let why = &failure.message;
                tracing::warn!(volume = %self.volume.id(), why, "a batch is blocked and will be tried again");
                if failure.damaged {
                    self.tell_of_damage(&ops, &failure.message);
                }
                for queued in batch.into_iter().rev() {
                    match (&queued.op, failure.damaged) {
                        (Op::Deploy { .. }, true) => {
                            let reason = Reason::new(codes::DAMAGED, &*failure.message);
                            self.deployed(queued.request, Err(reason));
                        }
                        (Op::Deploy { .. } | Op::Mutation(_), _) => self.inbox.push_front(queued),
                    }
                }
                self.blocked = true;
                return self.wake();
            }
        };
        self.metrics.batches += 1;
        if let Some(written) = &done.written {
            self.live.committed(written.clone());
        }
        let requests = batch.into_iter().map(|queued| queued.request).collect();
        self.unpublished.push(Unpublished { done, requests });
        let lsn = self.tip_lsn();
        for at in 0..self.unpublished.last().map_or(0, |last| last.done.records.len()) {
            let Some(record) = self.unpublished.last().map(|last| last.done.records[at].clone()) else {
                return;
            };
            self.tip.apply(&record, lsn);
            if let (Op::Mutation(mutation), Outcome::Applied) = (&record.op, &record.outcome) {
                self.send_to_client(&mutation.client, &ServerMessage::Accepted { seq: mutation.seq, lsn });
            }
        }
    }

    /// Those who wait for operations that damaged objects hold up are not left waiting in silence: their
    /// connections end with what is damaged. They connect again and resend, to be told again or, once it
    /// is mended, served.
    fn tell_of_damage(&mut self, ops: &[Op], message: &str) {
        let clients: BTreeSet<&ClientId> = ops
            .iter()
            .filter_map(|op| match op {
                Op::Mutation(mutation) => Some(&mutation.client),
                Op::Deploy { .. } => None,
            })
            .collect();
        let waiting = self.sessions.iter().filter(|(_, session)| clients.contains(&session.client));
        self.end_sessions(waiting.map(|(id, _)| *id).collect(), message);
    }

    /// The log itself is damaged: nobody can be served. It is tried again, and so are clients told again.
    fn tell_all_of_damage(&mut self, message: &str) {
        self.end_sessions(self.sessions.keys().copied().collect(), message);
    }

    fn end_sessions(&mut self, sessions: Vec<SessionId>, message: &str) {
        for session in sessions {
            let reason = Reason::new(codes::DAMAGED, message);
            self.send(session, ServerMessage::Error { reason });
        }
    }

    /// A batch that changed no page still has outcomes to record: an empty local commit carries them.
    fn record(&self, done: Done) -> Result<Done, Blocked> {
        if done.written.is_none() {
            let tip = self.volume.tip();
            let payload = Note::default().encode();
            let change = Change { pages: tip.pages(), payload, ..Change::default() };
            self.volume.commit(&tip, change).map_err(|error| Blocked::passing(error.to_string()))?;
        }
        Ok(done)
    }

    /// Begins a publication of every local commit, unless one is under way.
    fn seal(&mut self, now_ms: i64, id: CommitId) {
        if !matches!(self.phase, Phase::Idle) || self.unpublished.is_empty() {
            return;
        }
        let mut bytes = 0;
        let fitting = self.unpublished.iter().take_while(|batch| {
            let fits = bytes < COMMIT_BYTES;
            bytes += batch.done.records.iter().map(Record::bytes).sum::<usize>();
            fits
        });
        let count = fitting.count();
        match self.volume.seal(count, self.payload(count), id, now_ms) {
            Ok(Some(prepared)) => {
                self.phase = Phase::Publishing(prepared.clone());
                self.output(Output::Publish(prepared));
            }
            Ok(None) => {}
            Err(error) => {
                tracing::error!(volume = %self.volume.id(), %error, "a commit could not be sealed");
                self.wake();
            }
        }
    }

    /// The payload of a commit that rolls up the first `count` local commits.
    fn payload(&self, count: usize) -> Bytes {
        let mut payload = Payload::default();
        let mut marks = Marks::default();
        for Unpublished { done, .. } in &self.unpublished[..count] {
            marks = marks.union(done.written.as_ref().map_or(Marks::default(), |written| written.marks));
            payload.records.extend(done.records.iter().cloned());
        }
        payload.marks = marks.to_byte();
        payload.encode()
    }

    /// Asks to be woken, later the more often in a row the store has failed. One wait serves all.
    pub(super) fn wake(&mut self) {
        if self.waking {
            return;
        }
        self.waking = true;
        let after_ms = RETRY_MS.1.min(RETRY_MS.0 << self.failures.min(10));
        self.failures += 1;
        self.output(Output::Wake { after_ms });
    }

    fn woken(&mut self) {
        self.waking = false;
        // What fails again and again may be a page of a state so old that it was collected: then only
        // newer commits help.
        let stale = self.failures >= STALE_FAILURES && !self.is_ahead();
        self.blocked = false;
        self.held_back.clear();
        match std::mem::replace(&mut self.phase, Phase::Idle) {
            Phase::PublishLater(prepared) => {
                self.phase = Phase::Publishing(prepared.clone());
                self.output(Output::Publish(prepared));
            }
            Phase::PullLater => self.pull(),
            Phase::Idle if stale => self.pull(),
            phase @ (Phase::Idle | Phase::Publishing(_) | Phase::Pulling) => self.phase = phase,
        }
    }

    fn published(&mut self, result: Result<Published, PublishError>) {
        let Phase::Publishing(prepared) = std::mem::replace(&mut self.phase, Phase::Idle) else {
            tracing::error!(volume = %self.volume.id(), "a publication ended that was not under way");
            return;
        };
        let result = result.and_then(|published| {
            // What is durable is durable, whatever the local store says: try to note it again.
            self.volume
                .confirm(published)
                .map(|()| published)
                .map_err(|error| store_failed(&prepared, &error))
        });
        match result {
            Ok(published) => {
                self.failures = 0;
                self.checkpoint_failed = false;
                self.was_newest = true;
                self.metrics.published += 1;
                self.confirm(prepared.locals, published.lsn);
                self.durable.advance(published.lsn, prepared.head.time_ms);
                self.tip.advance(published.lsn, prepared.head.time_ms);
                self.tell_head();
                self.welcome_waiting();
            }
            Err(PublishError::Rejected { lsn }) => {
                tracing::info!(volume = %self.volume.id(), %lsn, "lost an lsn; pulling to replay");
                self.pull();
            }
            // What is forgotten, the ledger of a newer checkpoint knows: mutations that were applied are not
            // run again. It knows of no deploy, and migrations must not run twice.
            Err(PublishError::Forgotten { lsn, bottom }) => {
                tracing::info!(volume = %self.volume.id(), %lsn, %bottom, "an lsn is forgotten; pulling to replay");
                self.give_up_deploys(prepared.locals, lsn);
                self.pull();
            }
            Err(error) => {
                tracing::warn!(volume = %self.volume.id(), %error, "publishing failed and will be tried again");
                if let PublishError::Damaged(damaged) = &error {
                    self.tell_all_of_damage(&damaged.to_string());
                }
                self.phase = Phase::PublishLater(prepared);
                self.wake();
            }
        }
    }

    /// The first `locals` local commits are durable under `lsn`.
    fn confirm(&mut self, locals: usize, lsn: Lsn) {
        let durable: Vec<Unpublished> =
            self.unpublished.drain(..locals.min(self.unpublished.len())).collect();
        for Unpublished { done, requests } in durable {
            for ((record, request), migrations_run) in
                done.records.into_iter().zip(requests).zip(done.migrations)
            {
                self.durable.apply(&record, lsn);
                match (record.op, record.outcome) {
                    (Op::Mutation(mutation), outcome) => {
                        let Mutation { client, seq, content, .. } = mutation;
                        self.landed(&client);
                        let answer = final_answer(&Entry { seq, content, lsn, outcome });
                        self.send_to_client(&client, &answer);
                    }
                    (Op::Deploy { module, schema, .. }, Outcome::Applied) => {
                        self.deployed(request, Ok(Deployed { module, schema, lsn, migrations_run }));
                    }
                    (Op::Deploy { .. }, Outcome::Rejected(reason)) => self.deployed(request, Err(reason)),
                }
            }
        }
    }

    /// Whether the deploys of the first `locals` local commits happened is not known: they are not run again,
    /// and whoever asked for them is told to look.
    fn give_up_deploys(&mut self, locals: usize, lsn: Lsn) {
        let mut given_up = Vec::new();
        let sent = locals.min(self.unpublished.len());
        for Unpublished { done, requests } in &mut self.unpublished[..sent] {
            let records = std::mem::take(&mut done.records);
            let migrations = std::mem::take(&mut done.migrations);
            for ((record, request), run) in records.into_iter().zip(std::mem::take(requests)).zip(migrations)
            {
                match record.op {
                    Op::Deploy { module, .. } => given_up.push((module, request)),
                    Op::Mutation(_) => {
                        done.records.push(record);
                        done.migrations.push(run);
                        requests.push(request);
                    }
                }
            }
        }
        for (module, request) in given_up {
            tracing::warn!(volume = %self.volume.id(), %module, %lsn, "it is not known whether a deploy happened");
            let message = format!(
                "the log does not say any more whether module {module} was deployed at lsn {lsn}: look which one is in force, and deploy again if it is not"
            );
            self.deployed(request, Err(Reason::new(codes::OUTCOME_UNKNOWN, message)));
        }
    }

    fn deployed(&mut self, request: Option<RequestId>, result: Result<Deployed, Reason>) {
        if let Some(request) = request {
            self.output(Output::Deployed { request, result });
        }
    }

    /// A mutation of `client` has its final answer.
    fn landed(&mut self, client: &ClientId) {
        if let Some(count) = self.in_flight.get_mut(client) {
            *count -= 1;
            if *count == 0 {
                self.in_flight.remove(client);
            }
        }
    }

    fn pulled(&mut self, result: Result<Pulled, PullError>) {
        if let Err(error @ (PullError::Damaged(_) | PullError::Diverged { .. } | PullError::Expired { .. })) =
            &result
        {
            self.tell_all_of_damage(&error.to_string());
        }
        let replay = result.map_err(|error| error.to_string()).and_then(|pulled| {
            // A pull for waiting queries may find nothing new.
            if pulled.heads.is_empty() && pulled.jump.is_none() && self.is_ahead() {
                return Err("the lsn was lost, and the log shows no other commit".into());
            }
            let payloads: Result<Vec<Payload>, Damaged> = pulled.heads.iter().map(Payload::decode).collect();
            let payloads = payloads.map_err(|error| error.to_string())?;
            // After a jump, what lies between is in the checkpoint's ledger.
            let begins = pulled.jump.as_ref().map(|start| Ledger::open(start, &[])).transpose();
            Ok((payloads, begins.map_err(|error| error.to_string())?, pulled))
        });
        let replayed = replay.and_then(|(payloads, begins, pulled)| {
            let is_new = !pulled.heads.is_empty() || pulled.jump.is_some();
            if is_new || self.is_ahead() {
                self.reset(&payloads, begins, pulled).map_err(|error| error.to_string())?;
            }
            Ok(is_new)
        });
        match replayed {
            Ok(is_new) => {
                self.failures = 0;
                self.phase = Phase::Idle;
                if is_new {
                    self.tell_head();
                }
                self.welcome_waiting();
                self.run_inbox();
            }
            // Only waiting queries asked for it, or a look; they ask again.
            Err(error) if !self.is_ahead() && self.behind.is_empty() => {
                tracing::warn!(volume = %self.volume.id(), error, "pulling for a query failed");
                self.phase = Phase::Idle;
                self.run_inbox();
            }
            Err(error) => {
                tracing::warn!(volume = %self.volume.id(), error, "pulling failed and will be tried again");
                self.phase = Phase::PullLater;
                self.wake();
            }
        }
    }

    /// Drops every local commit, takes in what others committed, and queues what was dropped to run
    /// again before everything newer.
    fn reset(
        &mut self,
        payloads: &[Payload],
        begins: Option<Ledger>,
        pulled: Pulled,
    ) -> Result<(), StoreError> {
        let pages_before = self.volume.base().pages();
        let heads = pulled.heads.clone();
        self.volume.reset()?;
        let graft = self.volume.absorb(pulled)?;
        self.writer.forget_schema();
        self.reader.forget_schema();
        let dropped = std::mem::take(&mut self.unpublished);
        if !dropped.is_empty() {
            self.metrics.replays += 1;
            self.epoch += 1;
        }
        for written in dropped.iter().filter_map(|unpublished| unpublished.done.written.clone()) {
            self.live.committed(written);
        }
        if let Some(begins) = begins {
            self.durable = begins;
            // What changed on the way is known by the chunk, and nothing of page 1.
            let mut changed = graft;
            changed.remove(PageIdx::FIRST);
            self.live.committed(WriteSet { pages: changed, marks: Marks::BOTH });
        }
        let mut pages = pages_before;
        for (head, payload) in heads.iter().zip(payloads) {
            self.live.committed(write_set(head, payload, pages));
            pages = head.pages;
            apply_payload(&mut self.durable, payload, head.lsn);
            self.durable.advance(head.lsn, head.time_ms);
        }
        self.tip = self.durable.clone();
        for Unpublished { done, requests } in dropped.into_iter().rev() {
            for (record, request) in done.records.into_iter().zip(requests).rev() {
                if let Op::Mutation(mutation) = &record.op {
                    // It waits again: a copy that its client resends meanwhile is not to be queued, too.
                    let queued = self.queued.entry(mutation.client.clone()).or_default();
                    *queued = mutation.seq.max(*queued);
                }
                self.inbox.push_front(Queued { op: record.op, request });
            }
        }
        Ok(())
    }
}

/// What a pulled commit changed, as live queries see it.
fn write_set(head: &Head, payload: &Payload, pages_before: u32) -> WriteSet {
    let mut pages = graft(head.set.to_set(), pages_before, head.pages);
    let marks = if head.set.contains(PageIdx::FIRST) { payload.marks() } else { Marks::default() };
    pages.remove(PageIdx::FIRST);
    WriteSet { pages, marks }
}

pub(crate) fn apply_payload(ledger: &mut Ledger, payload: &Payload, lsn: Lsn) {
    for record in &payload.records {
        ledger.apply(record, lsn);
    }
}

/// What a mutation's sender is told once its outcome is durable.
fn final_answer(entry: &Entry) -> ServerMessage {
    let (seq, lsn) = (entry.seq, entry.lsn);
    match &entry.outcome {
        Outcome::Applied => ServerMessage::Durable { seq, lsn },
        Outcome::Rejected(reason) => ServerMessage::Rejected { seq, lsn, reason: reason.clone() },
    }
}

/// A mutation is not looked at.
fn refused(seq: u64, code: &str, message: String) -> ServerMessage {
    ServerMessage::Refused { seq, reason: Reason::new(code, message) }
}

fn gap(client: &ClientId, seq: u64, next: u64) -> String {
    format!("the next seq of client {client} is {next}, not {seq}")
}

fn reused(client: &ClientId, seq: u64) -> String {
    format!(
        "seq {seq} of client {client} was used for another mutation: two copies of this client id are at work; give one a new id"
    )
}

fn forgotten(client: &ClientId, seq: u64) -> String {
    format!("seq {seq} of client {client} was applied, so long ago that its outcome is not recorded any more")
}

/// The local store failed after the commit was durable: the publication is settled again later.
fn store_failed(prepared: &Prepared, error: &StoreError) -> PublishError {
    let source =
        graft::remote::RemoteError::Unavailable { key: "local store".into(), message: error.to_string() };
    PublishError::Unknown { lsn: prepared.head.lsn, source }
}

/// Tells a mutation from another under the same seq, by what the client sent.
pub(crate) fn content_of(reducer: &str, args: &str, clock: Option<i64>, seed: Option<Seed>) -> [u8; 16] {
    let mut hasher = blake3::Hasher::new();
    for part in [reducer, args] {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part.as_bytes());
    }
    hasher.update(format!("{clock:?} {seed:?}").as_bytes());
    let mut content = [0; 16];
    content.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    content
}
