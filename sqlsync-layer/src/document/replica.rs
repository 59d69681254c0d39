//! A document without its surroundings: volume, timeline, optimistic mutations, rebase, push.
//!
//! ```text
//!   mutate ─→ local commit + timeline entry (one batch) ─→ seal ─→ publish ─→ Durable
//!                    ↑                                        └ rejected ─→ pull
//!                    └──────── rebase: transplant, replay, branch ←───────────┘
//! ```
//!
//! It owns no clock, no randomness and no socket: its driver ([`super::Document`], or the simulation)
//! passes times, seeds and ids, publishes what [`Replica::seal`] answers and pulls. SQLite runs inside
//! its methods, and pages that are missing are fetched inside them.
//!
//! Every mutation is a transaction and a local commit of its own, begun cold and recorded, so that it has
//! a read and a write set of its own. A mutation that its reducer refuses is not taken.
//!
//! Invariants: the tip is the base and every local commit in order; each mutation without a final answer
//! is in the timeline and behind exactly one local commit; seqs are given once and without gaps; a
//! rejection is final only when the commit that records it is durable.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::Arc;

use graft::fetch::Fetch;
use graft::format::Damaged;
use graft::publish::{Prepared, PublishError, Published};
use graft::store::{Batch, StoreError};
use graft::volume::{Change, CommitError, Opened, Options, Volume};
use graft::{CommitId, Lsn, ModuleHash, VolumeId, VolumeName};
use reducers_abi::{Rows, Value};
use serde_json::{Map, Value as Json};

use self::connections::Connections;
use super::timeline::{self, Branch, Kept, Me, Planned, Timeline, TimelineError};
use crate::actor::batch::{Blocked, Writer};
use crate::actor::core::{apply_payload, content_of};
use crate::actor::queries::QueryFailure;
use crate::actor::{Limits, ModuleError, Modules};
use crate::guard::Mode;
use crate::ledger::{Entry, Ledger, Standing};
use crate::live::{Answer, Identity, LiveQueries, Refreshed};
use crate::merge::Validation;
use crate::payload::{Mutation, Op, Outcome, Payload, Record};
use crate::protocol::{ClientId, FRAME_BYTES_MAX, Reason, Seed, codes};
use crate::rebase::{Handler, Policy, Work};
use crate::session::client::{ClientState, PendingMutation};
use crate::value::Params;
use crate::vfs::{ConnectError, Database, IoFailure, Note, Settings, WriteSet};

mod connections;
mod known;
pub mod publishing;
mod rebasing;
pub use self::rebasing::{Progress, RebaseError};

/// Bytes of records that one published commit takes; what is left goes into the next.
const COMMIT_BYTES: usize = 16 << 20;

/// Bytes of one mutation's arguments and name: so that it fits a message to a coordinator, and beside
/// [`COMMIT_BYTES`] into a commit's head, which no reader takes above 256 MiB.
const MESSAGE_BYTES_MAX: usize = FRAME_BYTES_MAX - 1024;
const RECORD_BYTES_MAX: usize = 64 << 20;

/// Bytes that one byte of a name may take in JSON.
const ESCAPED_MAX: usize = 6;

/// Who puts local mutations into the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Route {
    /// This document itself, by conditional create, beside coordinators and other writers.
    #[default]
    Direct,
    /// A coordinator, to which they are sent; here they are only shown meanwhile.
    Coordinator,
}

/// How a document behaves.
#[derive(Clone)]
pub struct Config {
    /// Who puts local mutations into the log.
    pub route: Route,
    /// What to do with local work when the history moved. With [`Route::Coordinator`] the server decides
    /// what becomes of a mutation, so there it is only shown by merge or replay, and never branched.
    pub policy: Policy,
    /// By which conditions a merge is judged.
    pub validation: Validation,
    /// Decides conflicts in the app's place of `policy`; only with [`Route::Direct`].
    pub handler: Option<Arc<dyn Handler>>,
    /// Bounds of mutations and queries.
    pub limits: Limits,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            route: Route::Direct,
            policy: Policy::Merge,
            validation: Validation::READS,
            handler: None,
            limits: Limits::default(),
        }
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Config({:?}, {:?}, {:?})", self.route, self.policy, self.validation)
    }
}

/// What an app is told.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// Others committed, and local work was brought on top: so many commits kept their pages and did not
    /// run again.
    Merged {
        /// How many.
        transplanted: usize,
    },
    /// A mutation ran again.
    Replayed {
        /// Which.
        seq: u64,
        /// How it had ended before.
        before: Outcome,
        /// How it ended now.
        after: Outcome,
    },
    /// A deploy ran again. One that has no effect now is in the log as rejected, and final when it is there.
    Redeployed {
        /// Of which module.
        module: ModuleHash,
        /// How it had ended before.
        before: Outcome,
        /// How it ended now.
        after: Outcome,
    },
    /// A mutation is in object storage. Final.
    Durable {
        /// Which.
        seq: u64,
        /// In this commit.
        lsn: Lsn,
    },
    /// A mutation had no effect, and the commit that says so is durable. It waits in
    /// [`Replica::rejected`] to be retried, edited or discarded.
    Rejected {
        /// Which.
        seq: u64,
        /// Why.
        reason: Reason,
        /// The commit that records it.
        lsn: Lsn,
    },
    /// Local work found no place in the history and is kept as a branch.
    Forked {
        /// The branch's number, for [`Replica::branch`].
        to: u64,
        /// How many local commits it holds.
        commits: usize,
        /// Why.
        why: String,
    },
    /// A branch is a volume of its own now, and is not kept here any more.
    Published {
        /// The branch's number.
        branch: u64,
        /// The volume's name.
        to: VolumeName,
        /// Its id.
        volume: VolumeId,
        /// Its newest commit.
        lsn: Lsn,
    },
    /// The log has another mutation under its seq: two copies of this client id are at work.
    Refused {
        /// Which.
        seq: u64,
        /// Why.
        reason: Reason,
    },
}

/// Why a document could not be opened, or cannot go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// SQLite cannot be used in this process.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// A commit's payload is damaged.
    #[error(transparent)]
    Damaged(#[from] Damaged),
    /// The timeline cannot be read.
    #[error(transparent)]
    Timeline(#[from] TimelineError),
    /// The local store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The directory belongs to another client id.
    #[error(
        "the data directory belongs to client `{found}`, not `{asked}`; give each client its own directory"
    )]
    OtherClient {
        /// Whose it is.
        found: ClientId,
        /// Who asked.
        asked: ClientId,
    },
    /// It holds what no coordinator takes, from when it was open straight on the bucket.
    #[error(
        "{commits} local commits are plain SQL or deploys, which no coordinator takes; open the document straight on the bucket until they are in the log"
    )]
    NotForCoordinator {
        /// How many.
        commits: usize,
    },
}

/// Why a mutation, or plain SQL, was not taken. Nothing has changed.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum MutateError {
    /// The reducer refused it, or it cannot run here.
    #[error("{0}")]
    Rejected(Reason),
    /// A page or module could not be had, or the local store failed: try again.
    #[error("{0}")]
    Blocked(IoFailure),
    /// Plain SQL cannot be sent to a coordinator.
    #[error(
        "this document sends its mutations to a coordinator, which takes no plain SQL; write it as a reducer, or open the document straight on the bucket"
    )]
    Route,
    /// The SQL failed, or did not keep to one transaction.
    #[error("{0}")]
    Sql(String),
    /// This client id is used elsewhere too, or expired; see the reason.
    #[error("{0}")]
    Client(Reason),
}

/// Why a query was not answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct QueryError(pub Reason);

/// Why a push was not begun or not settled.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum PushError {
    /// The local store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The publication failed; see there. After `Rejected`, pull and rebase.
    #[error(transparent)]
    Publish(PublishError),
}

/// What a document has done since it was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Local commits that kept their pages: mutations saved from running again.
    pub transplanted: u64,
    /// Mutations that ran again.
    pub replayed: u64,
    /// Mutations found in the log while rebasing.
    pub confirmed: u64,
    /// Commits published.
    pub published: u64,
    /// Local commits sent to branches.
    pub branched: u64,
    /// Rebases put in place.
    pub rebases: u64,
}

/// How a document stands: `ahead 3, behind 2`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status {
    /// The newest durable commit taken in.
    pub lsn: Lsn,
    /// Local commits that the log does not have.
    pub ahead: usize,
    /// Commits that others made and that are not taken in yet, as far as is known.
    pub behind: u64,
    /// A push was sent whose outcome is not known.
    pub pushing: bool,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.ahead, self.behind) {
            (0, 0) => write!(f, "up to date at lsn {}", self.lsn),
            (ahead, behind) => write!(f, "ahead {ahead}, behind {behind}"),
        }
    }
}

/// See the module.
pub struct Replica {
    volume: Arc<Volume>,
    /// What its own connections write.
    own: Arc<Database>,
    /// What an app may connect to.
    database: Arc<Database>,
    fetch: Arc<dyn Fetch>,
    modules: Arc<dyn Modules>,
    connections: Connections,
    known: known::Known,
    config: Config,
    timeline: Timeline,
    me: Me,
    kept: BTreeMap<u64, Kept>,
    /// Mutations whose outcome was told and that the timeline may still hold.
    done: Vec<u64>,
    branches: BTreeMap<u64, Branch>,
    /// Publications of branches that were begun.
    planned: BTreeMap<u64, Planned>,
    ledger: Ledger,
    /// Module and schema at the tip.
    tip: (Option<ModuleHash>, u32),
    live: LiveQueries<u64>,
    next_subscription: u64,
    events: VecDeque<Event>,
    counts: Counts,
    behind: u64,
    /// The newest commit that anybody spoke of.
    heard: Lsn,
    rebase: Option<rebasing::Rebasing>,
    /// Mutations from this seq on were not given to the session yet.
    unsent: u64,
    /// Local work was taken since the driver last asked.
    fresh: bool,
    /// Why this client id cannot go on.
    ended: Option<Reason>,
}

impl fmt::Debug for Replica {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Replica({}, {:?}, {})", self.me.client, self.volume, self.status())
    }
}

/// A recorded run of one operation.
struct Run {
    record: Record,
    written: Option<WriteSet>,
}

/// Where an operation runs.
struct Place<'a> {
    writer: &'a mut Writer,
    volume: &'a Volume,
    modules: &'a dyn Modules,
    tip: (Option<ModuleHash>, u32),
}

impl Place<'_> {
    /// Runs one operation as a transaction and a local commit of its own, with its reads recorded. What
    /// is rejected makes no local commit, unless `record_rejected`. `also` goes into the same batch.
    fn run(&mut self, op: &Op, also: &Batch, record_rejected: Option<&Batch>) -> Result<Run, Blocked> {
        let mut applied = Record { op: op.clone(), outcome: Outcome::Applied };
        if let Op::Deploy { module, schema, .. } = &mut applied.op {
            match self.modules.load(*module) {
                Ok(runtime) => *schema = runtime.description().schema_version(),
                // It is rejected below.
                Err(ModuleError::Invalid { .. }) => {}
                // The local commit would record a deploy without knowing what it made of the schema.
                Err(error @ (ModuleError::Unavailable { .. } | ModuleError::Damaged { .. })) => {
                    let damaged = matches!(error, ModuleError::Damaged { .. });
                    return Err(Blocked(IoFailure { message: error.to_string(), damaged }));
                }
            }
        }
        let control = self.writer.control().clone();
        control.record();
        control.enclose(applied.enclose(), also.clone());
        let (module, schema) = self.tip;
        let done = self.writer.run(std::slice::from_ref(&applied.op), module, schema);
        let untaken = control.take_enclosed();
        let reads = control.recorded();
        let mut done = done?;
        let record = done.records.pop().ok_or_else(|| Blocked::passing("a run without a record"))?;
        let batch = match &record.outcome {
            Outcome::Applied => untaken.map(|(_, also)| also),
            Outcome::Rejected(_) => record_rejected.cloned(),
        };
        if let Some(batch) = batch {
            // It changed no page. A local commit of its own keeps its place in the order.
            let enclosed = record.enclose();
            let note = Note { reads: Some(reads.pages), reads_allocator: false, enclosed, ..Note::default() };
            let tip = self.volume.tip();
            let change = Change { pages: tip.pages(), payload: note.encode(), ..Change::default() };
            let committed = self.volume.commit_with(&tip, change, batch);
            committed.map_err(|error: CommitError| Blocked::passing(error.to_string()))?;
        }
        if let (Op::Deploy { module, schema, .. }, Outcome::Applied) = (&record.op, &record.outcome) {
            self.tip = (Some(*module), *schema);
        }
        Ok(Run { record, written: done.written })
    }
}

impl Replica {
    /// A document on a volume that was just opened, with local commits kept
    /// ([`Options::locals`] not `None`) where `options` says. `client` is who it is to be where its
    /// timeline does not say yet; an id must be random, and in use once.
    ///
    /// Needs no page of the volume: where those that SQLite begins with cannot be had, mutations and
    /// queries answer that until they can, or until a pull moved the document to where they can.
    pub fn open(
        opened: Opened,
        options: &Options,
        fetch: Arc<dyn Fetch>,
        modules: Arc<dyn Modules>,
        client: ClientId,
        config: Config,
    ) -> Result<Replica, OpenError> {
        let volume = Arc::new(opened.volume);
        let ledger = Ledger::open(&opened.start, &opened.heads)?;
        let timeline = Timeline::new(options.store.clone(), volume.id());
        let timeline::Found { me, kept, branches, planned } = timeline.read()?;
        let me = match me {
            Some(me) => me,
            None => {
                let me = Me { client, next_seq: 1, since: volume.base().lsn().0 };
                let mut batch = Batch::default();
                timeline.put_me(&mut batch, &me);
                timeline.write(batch)?;
                me
            }
        };
        let own = Database::new(volume.clone(), fetch.clone());
        let database = match config.route {
            Route::Direct => own.clone(),
            Route::Coordinator => {
                let settings = Settings { read_only: true, ..Settings::default() };
                Database::with(volume.clone(), fetch.clone(), settings)
            }
        };
        let me_next = me.next_seq;
        let mut replica = Replica {
            connections: Connections::open(&own, modules.clone(), config.limits)?,
            tip: (ledger.module(), ledger.schema()),
            own,
            database,
            fetch,
            modules,
            volume,
            known: known::Known::new(config.validation),
            config,
            timeline,
            me,
            kept,
            done: Vec::new(),
            branches,
            planned,
            ledger,
            live: LiveQueries::default(),
            next_subscription: 1,
            events: VecDeque::new(),
            counts: Counts::default(),
            behind: 0,
            heard: Lsn::ZERO,
            rebase: None,
            // What the timeline holds now, the session begins with.
            unsent: me_next,
            fresh: false,
            ended: None,
        };
        replica.known.follow(&replica.volume.locals());
        if replica.config.route == Route::Coordinator {
            let commits = replica
                .known
                .pending()
                .filter(|pending| matches!(pending.work, Work::Sql | Work::Deploy))
                .count();
            if commits > 0 {
                return Err(OpenError::NotForCoordinator { commits });
            }
        }
        replica.tip = replica.tip_module();
        replica.forget_branched()?;
        replica.forget_settled()?;
        replica.renew();
        replica.check_client();
        Ok(replica)
    }

    /// Who it is.
    pub fn client(&self) -> &ClientId {
        &self.me.client
    }

    /// The newest commit known when the client id was made.
    pub fn since(&self) -> Lsn {
        Lsn(self.me.since)
    }

    /// The seq of the next mutation.
    pub fn next_seq(&self) -> u64 {
        self.me.next_seq
    }

    /// The last seq with a final answer.
    pub fn settled(&self) -> u64 {
        self.ledger.last_seq(&self.me.client)
    }

    /// The volume; the driver pulls and publishes through it.
    pub fn volume(&self) -> &Arc<Volume> {
        &self.volume
    }

    /// The database, for connections of one's own. They read the tip; what they write is plain SQL, so that
    /// with [`Route::Coordinator`] they cannot write.
    pub fn database(&self) -> &Arc<Database> {
        &self.database
    }

    /// What it has done.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// How it stands.
    pub fn status(&self) -> Status {
        let status = self.volume.status();
        let behind = self.behind.max(self.heard.0.saturating_sub(status.lsn.0));
        Status { lsn: status.lsn, ahead: status.ahead, behind, pushing: status.pending }
    }

    /// Somebody says that the log has commits up to this one.
    pub fn heard_of(&mut self, head: Lsn) {
        self.heard = self.heard.max(head);
    }

    /// What happened, oldest first, since this was last asked.
    pub fn take_events(&mut self) -> Vec<Event> {
        self.events.drain(..).collect()
    }

    /// Why this client id cannot go on, if it cannot: it expired, or it is in use elsewhere.
    pub fn ended(&self) -> Option<&Reason> {
        self.ended.as_ref()
    }

    /// Mutations without a final answer, oldest first.
    pub fn pending(&self) -> impl Iterator<Item = &Mutation> {
        self.kept.values().filter(|kept| kept.rejected.is_none()).map(|kept| &kept.mutation)
    }

    /// A session's state that goes on where the timeline stands, for [`Route::Coordinator`]: what is pending
    /// now goes out with it, and what is made from now on comes from [`Replica::take_unsent`].
    pub fn session_state(&self) -> ClientState {
        let pending = self.pending().map(|mutation| PendingMutation {
            seq: mutation.seq,
            reducer: mutation.reducer.clone(),
            args: serde_json::from_str(&mutation.args).unwrap_or_default(),
            clock: mutation.clock,
            seed: mutation.seed,
        });
        ClientState {
            client: self.client().clone(),
            volume: Some(self.volume.id()),
            next_seq: Some(self.next_seq()),
            settled: self.settled(),
            since: self.since().max(Lsn(1)),
            pending: pending.collect(),
        }
    }

    /// Mutations that were made since this was last asked: for the session that sends them.
    pub fn take_unsent(&mut self) -> Vec<Mutation> {
        let unsent = self.unsent();
        self.unsent = self.me.next_seq;
        unsent
    }

    /// The same, for a session that may be interrupted: they are answered again until [`Replica::given`].
    pub(super) fn unsent(&self) -> Vec<Mutation> {
        self.kept.range(self.unsent..).map(|(_, kept)| kept.mutation.clone()).collect()
    }

    /// The session has every mutation up to `seq`.
    pub(super) fn given(&mut self, seq: u64) {
        self.unsent = self.unsent.max(seq + 1);
    }

    /// Whether local work was taken since this was last asked.
    pub(super) fn take_fresh(&mut self) -> bool {
        std::mem::take(&mut self.fresh)
    }

    /// Mutations whose rejection is final and that wait to be retried, edited or discarded.
    pub fn rejected(&self) -> impl Iterator<Item = (&Mutation, &Reason)> {
        let settled = self.settled();
        let rejected = self.kept.values().filter(move |kept| kept.mutation.seq <= settled);
        rejected.filter_map(|kept| Some((&kept.mutation, kept.rejected.as_ref()?)))
    }

    /// Local work that found no place in the history, by number.
    pub fn branches(&self) -> &BTreeMap<u64, Branch> {
        &self.branches
    }

    /// A branch that [`Event::Forked`] named.
    pub fn branch(&self, number: u64) -> Option<&Branch> {
        self.branches.get(&number)
    }

    /// Drops a branch for good. What was published of it already stays where it is.
    pub fn drop_branch(&mut self, number: u64) -> Result<bool, StoreError> {
        let mut batch = Batch::default();
        self.timeline.remove_planned(&mut batch, number);
        self.timeline.remove_branch(&mut batch, number);
        self.timeline.write(batch)?;
        self.planned.remove(&number);
        Ok(self.branches.remove(&number).is_some())
    }

    /// Runs a reducer at the tip and takes the mutation; answers its seq. `clock` is the wall clock (ms
    /// since 1970) and `seed` a random number: every run of it sees these two.
    ///
    /// # Errors
    ///
    /// Any [`MutateError`]: it was not taken, and has no seq.
    pub fn mutate(
        &mut self,
        reducer: &str,
        args: Map<String, Json>,
        clock: i64,
        seed: u64,
    ) -> Result<u64, MutateError> {
        self.take(None, reducer, args, clock, seed)
    }

    /// Takes a mutation, in the place of a rejected one that is dropped in the same batch.
    fn take(
        &mut self,
        instead_of: Option<u64>,
        reducer: &str,
        args: Map<String, Json>,
        clock: i64,
        seed: u64,
    ) -> Result<u64, MutateError> {
        if let Some(reason) = &self.ended {
            return Err(MutateError::Client(reason.clone()));
        }
        let seq = self.me.next_seq;
        let mutation = mutation(&self.me.client, seq, reducer, args, clock, seed);
        let most = match self.config.route {
            Route::Coordinator => MESSAGE_BYTES_MAX,
            Route::Direct => RECORD_BYTES_MAX,
        };
        let bytes = mutation.args.len().saturating_add(mutation.reducer.len().saturating_mul(ESCAPED_MAX));
        if bytes > most {
            let message =
                format!("the mutation has {bytes} bytes, at most {most} are taken; send less at once");
            return Err(MutateError::Rejected(Reason::new(codes::LIMIT, message)));
        }
        let kept = Kept { mutation: mutation.clone(), rejected: None };
        let me = Me { next_seq: seq + 1, ..self.me.clone() };
        let mut also = Batch::default();
        self.timeline.put_mutation(&mut also, &kept);
        self.timeline.put_me(&mut also, &me);
        if let Some(rejected) = instead_of {
            self.timeline.remove_mutation(&mut also, rejected);
        }
        self.apply(&Op::Mutation(mutation), &also)?;
        if let Some(rejected) = instead_of {
            self.kept.remove(&rejected);
        }
        self.kept.insert(seq, kept);
        self.me = me;
        Ok(seq)
    }

    /// Puts a module in force and runs its new migrations, as one local commit.
    ///
    /// # Errors
    ///
    /// Any [`MutateError`]: nothing has changed.
    pub fn deploy(&mut self, module: ModuleHash, clock: i64, seed: u64) -> Result<(), MutateError> {
        if self.config.route == Route::Coordinator {
            return Err(MutateError::Route);
        }
        let op = Op::Deploy { module, schema: 0, clock, seed: Seed(seed) };
        self.apply(&op, &Batch::default())
    }

    fn apply(&mut self, op: &Op, also: &Batch) -> Result<(), MutateError> {
        let blocked = |Blocked(failure): Blocked| MutateError::Blocked(failure);
        let writer = self.connections.writer().map_err(blocked)?;
        let mut place = Place { writer, volume: &self.volume, modules: &*self.modules, tip: self.tip };
        let run = place.run(op, also, None).map_err(blocked)?;
        self.tip = place.tip;
        if let Some(written) = run.written {
            self.live.committed(written);
        }
        if let Some(local) = self.volume.last_local() {
            self.known.add(&local);
        }
        match run.record.outcome {
            Outcome::Applied => {
                self.fresh = true;
                Ok(())
            }
            Outcome::Rejected(reason) => Err(MutateError::Rejected(reason)),
        }
    }

    /// Runs SQL as one transaction and one local commit; answers how many rows it changed. It has no
    /// mutation that could be run again: it merges, or else it is kept as a branch.
    ///
    /// # Errors
    ///
    /// Any [`MutateError`]: nothing has changed.
    pub fn execute(&mut self, sql: &str) -> Result<u64, MutateError> {
        if self.config.route == Route::Coordinator {
            return Err(MutateError::Route);
        }
        let connect = |error: ConnectError| MutateError::Blocked(connections::failure(error));
        // A connection of its own: temporary tables and the like carry nothing over.
        let (connection, control) = self.own.connect_recorded().map_err(connect)?;
        let failed = |error: rusqlite::Error| match control.take_failure() {
            Some(failure) => MutateError::Blocked(failure),
            None => MutateError::Sql(error.to_string()),
        };
        connection.execute_batch("BEGIN IMMEDIATE").map_err(failed)?;
        let ran = connection.execute_batch(sql);
        if let Err(error) = ran {
            let error = failed(error);
            let undone = match connection.is_autocommit() {
                true => Ok(()),
                false => connection.execute_batch("ROLLBACK").map_err(failed),
            };
            // As below: it may have ended its transaction, and begun another.
            self.plain_sql_committed(control.take_committed());
            return undone.and(Err(error));
        }
        if connection.is_autocommit() {
            // What it committed before it ended the transaction stays: it is a local commit like any other.
            self.plain_sql_committed(control.take_committed());
            return Err(MutateError::Sql(
                "the SQL ended its transaction; leave COMMIT and ROLLBACK to execute".into(),
            ));
        }
        connection.execute_batch("COMMIT").map_err(failed)?;
        let changes = connection.total_changes();
        self.plain_sql_committed(control.take_committed());
        Ok(changes)
    }

    fn plain_sql_committed(&mut self, written: Option<WriteSet>) {
        if let Some(written) = written {
            self.fresh = true;
            self.live.committed(written);
        }
    }

    /// Answers one SELECT at the tip.
    pub fn query(&self, sql: &str, params: &Params) -> Result<Rows, QueryError> {
        let reader = self.connections.reader();
        let rows = reader.and_then(|reader| reader.ask(Mode::Query, sql, params, &self.config.limits));
        rows.map_err(|failure: QueryFailure| QueryError(failure.reason()))
    }

    fn ask_live(&self, identity: &Identity, params: &Params) -> Result<Answer, QueryFailure> {
        self.connections.reader()?.ask_live(identity, params, &self.config.limits)
    }

    /// Opens a live query: its id and its rows now. [`Replica::refresh`] answers how they change.
    pub fn subscribe(
        &mut self,
        sql: &str,
        params: &Params,
        key: Option<Vec<String>>,
    ) -> Result<(u64, Rows), QueryError> {
        let identity = Identity::new(sql.into(), params, key);
        let answer = self.ask_live(&identity, params);
        let answer = answer.map_err(|failure| QueryError(failure.reason()))?;
        let rows = answer.rows.clone();
        let query = match self.live.find(&identity) {
            Some(query) => query,
            None => self.live.register(identity, params.clone(), answer, self.live.state()),
        };
        let subscription = self.next_subscription;
        self.next_subscription += 1;
        self.live.join(query, subscription);
        Ok((subscription, rows))
    }

    /// Closes a live query.
    pub fn unsubscribe(&mut self, subscription: u64) {
        for query in self.live.ids() {
            self.live.leave(query, &subscription);
        }
    }

    /// Whether a live query is behind, because what it reads could not be had.
    pub fn has_stale(&self) -> bool {
        !self.live.stale().is_empty()
    }

    /// Runs the live queries that commits have touched; answers the subscriptions whose rows changed, or
    /// that failed. One that cannot be read now is tried again by the next call.
    pub fn refresh(&mut self) -> Vec<(u64, Result<Rows, QueryError>)> {
        let mut changed = Vec::new();
        for query in self.live.stale() {
            let Some((identity, params)) = self.live.text(query) else { continue };
            match self.ask_live(&identity, &params) {
                Ok(answer) => {
                    let rows = answer.rows.clone();
                    if self.live.refreshed(query, Answer { ..answer }) != Refreshed::Same {
                        let subscribers = self.live.subscribers(query);
                        changed.extend(subscribers.into_iter().map(|one| (one, Ok(rows.clone()))));
                    }
                }
                Err(QueryFailure::Blocked(IoFailure { damaged: false, message })) => {
                    tracing::warn!(volume = %self.volume.id(), message, "a live query is tried again later");
                }
                Err(failure) => {
                    let error = QueryError(failure.reason());
                    let subscribers = self.live.remove(query);
                    changed.extend(subscribers.into_iter().map(|one| (one, Err(error.clone()))));
                }
            }
        }
        changed
    }

    /// Begins a push of local commits (all, or as many as one commit takes): the driver publishes what
    /// this answers and says how it ended by [`Replica::published`]. An earlier push whose outcome is
    /// unknown is answered again, byte for byte. `None` where there is nothing to push.
    pub fn seal(&mut self, id: CommitId, now_ms: i64) -> Result<Option<Arc<Prepared>>, StoreError> {
        if let Some(pending) = self.volume.pending() {
            return Ok(Some(pending));
        }
        if self.config.route == Route::Coordinator || self.ended.is_some() {
            return Ok(None);
        }
        let locals = self.volume.locals();
        let mut bytes = 0;
        let fitting = locals.iter().take_while(|local| {
            let fits = bytes < COMMIT_BYTES;
            bytes += local.payload.len();
            fits
        });
        let count = fitting.count();
        let prepared = self.volume.seal(count, Payload::of_locals(&locals[..count]), id, now_ms)?;
        Ok(prepared)
    }

    /// How a publication ended. After `Rejected` local commits are as they were: pull, then rebase.
    pub fn published(
        &mut self,
        prepared: &Prepared,
        result: Result<Published, PublishError>,
    ) -> Result<Lsn, PushError> {
        let published = match result {
            Ok(published) => published,
            Err(error) => {
                // What is forgotten is decided as what was lost: by the ledger, or by the pages that changed.
                if matches!(error, PublishError::Rejected { .. } | PublishError::Forgotten { .. }) {
                    self.volume.forget_pending(prepared)?;
                }
                return Err(PushError::Publish(error));
            }
        };
        self.volume.confirm(published)?;
        self.known.follow(&self.volume.locals());
        self.counts.published += 1;
        let payload = Payload::decode(&prepared.head).unwrap_or_default();
        self.take_in(&payload, published.lsn, prepared.head.time_ms);
        self.forget_settled()?;
        Ok(published.lsn)
    }

    /// A commit of the log is known now: the ledger, and what is said of our own mutations.
    fn take_in(&mut self, payload: &Payload, lsn: Lsn, time_ms: i64) {
        let mut ledger = std::mem::take(&mut self.ledger);
        apply_payload(&mut ledger, payload, lsn);
        ledger.advance(lsn, time_ms);
        self.ledger = ledger;
        for record in &payload.records {
            let Op::Mutation(mutation) = &record.op else { continue };
            if mutation.client != self.me.client {
                continue;
            }
            let seq = mutation.seq;
            match &record.outcome {
                Outcome::Applied => {
                    self.kept.remove(&seq);
                    self.done.push(seq);
                    self.events.push_back(Event::Durable { seq, lsn });
                }
                Outcome::Rejected(reason) => {
                    if let Some(kept) = self.kept.get_mut(&seq) {
                        kept.rejected = Some(reason.clone());
                    }
                    self.events.push_back(Event::Rejected { seq, reason: reason.clone(), lsn });
                }
            }
        }
    }

    /// Takes settled mutations out of the timeline; rejected ones stay until the app dealt with them.
    ///
    /// Some are settled by commits that were never looked at: a pull jumped over them to a checkpoint, or
    /// the process died before this was written. The ledger says how those ended.
    fn forget_settled(&mut self) -> Result<(), StoreError> {
        let settled = self.settled();
        let mut batch = Batch::default();
        for (seq, kept) in self.kept.range_mut(..=settled).filter(|(_, kept)| kept.rejected.is_none()) {
            match self.ledger.standing(&self.me.client, *seq, &kept.mutation.content) {
                Standing::Known(Entry { lsn, outcome: Outcome::Rejected(reason), .. }) => {
                    kept.rejected = Some(reason.clone());
                    self.events.push_back(Event::Rejected { seq: *seq, reason, lsn });
                }
                Standing::Known(Entry { lsn, outcome: Outcome::Applied, .. }) => {
                    self.done.push(*seq);
                    self.events.push_back(Event::Durable { seq: *seq, lsn });
                }
                // How it ended is not known any more.
                Standing::Forgotten | Standing::Reused | Standing::Next | Standing::Gap { .. } => {
                    self.done.push(*seq);
                }
            }
        }
        let waiting = self.kept.range(..=settled).map(|(_, kept)| kept);
        for kept in waiting.filter(|kept| kept.rejected.is_some()) {
            self.timeline.put_mutation(&mut batch, kept);
        }
        for seq in &self.done {
            self.kept.remove(seq);
            self.timeline.remove_mutation(&mut batch, *seq);
        }
        self.timeline.write(batch)?;
        self.done.clear();
        Ok(())
    }

    /// Runs a rejected mutation again as a new one; answers its seq.
    pub fn retry(&mut self, seq: u64, clock: i64, seed: u64) -> Result<u64, MutateError> {
        let (reducer, args) = self.rejected_call(seq)?;
        self.edit(seq, &reducer, args, clock, seed)
    }

    /// Runs another call in a rejected mutation's place; answers its seq. Where it is not taken, the rejected one
    /// waits still.
    pub fn edit(
        &mut self,
        seq: u64,
        reducer: &str,
        args: Map<String, Json>,
        clock: i64,
        seed: u64,
    ) -> Result<u64, MutateError> {
        self.rejected_call(seq)?;
        self.take(Some(seq), reducer, args, clock, seed)
    }

    /// Gives a rejected mutation up.
    pub fn discard(&mut self, seq: u64) -> Result<(), MutateError> {
        self.rejected_call(seq)?;
        let mut batch = Batch::default();
        self.timeline.remove_mutation(&mut batch, seq);
        let failed = |error: StoreError| IoFailure { message: error.to_string(), damaged: false };
        self.timeline.write(batch).map_err(|error| MutateError::Blocked(failed(error)))?;
        self.kept.remove(&seq);
        Ok(())
    }

    fn rejected_call(&self, seq: u64) -> Result<(String, Map<String, Json>), MutateError> {
        let found = self.rejected().find(|(mutation, _)| mutation.seq == seq);
        let Some((mutation, _)) = found else {
            let message = format!("mutation {seq} is not one that was rejected and waits to be dealt with");
            return Err(MutateError::Rejected(Reason::new(codes::REFUSED, message)));
        };
        let args = serde_json::from_str(&mutation.args).unwrap_or_default();
        Ok((mutation.reducer.clone(), args))
    }

    /// An id that made no mutation has none that could have been forgotten: it is as good as made now.
    fn renew(&mut self) {
        if self.me.next_seq == 1 {
            self.me.since = self.volume.base().lsn().0;
        }
    }

    /// Whether the ledger still stands where this client knows it to stand.
    fn check_client(&mut self) {
        let client = &self.me.client;
        let (last, next) = (self.ledger.last_seq(client), self.me.next_seq);
        let unsettled = self.kept.values().find(|kept| kept.rejected.is_none()).map(|kept| kept.mutation.seq);
        let settled = unsettled.unwrap_or(next).saturating_sub(1);
        if last >= next {
            let message = format!(
                "the log has mutations of client {client} up to {last}, and this copy made {} of them: another copy of it is at work, or this one was restored from an old state; open it in a fresh data directory",
                next - 1
            );
            self.ended = Some(Reason::new(codes::SEQ_REUSED, message));
        } else if self.ledger.is_expired(client, Lsn(self.me.since), settled) {
            self.ended = Some(Reason::new(codes::EXPIRED, crate::ledger::expired(client)));
        }
    }

    /// What is in force on top of the local commits that are known.
    fn tip_module(&self) -> (Option<ModuleHash>, u32) {
        match self.known.deployed() {
            Some((module, schema)) => (Some(module), schema),
            None => (self.ledger.module(), self.ledger.schema()),
        }
    }
}

fn mutation(
    client: &ClientId,
    seq: u64,
    reducer: &str,
    args: Map<String, Json>,
    clock: i64,
    seed: u64,
) -> Mutation {
    let args = Json::Object(args).to_string();
    let seed = Seed(seed);
    let content = content_of(reducer, &args, Some(clock), Some(seed));
    Mutation { client: client.clone(), seq, reducer: reducer.into(), args, clock, seed, content }
}

/// The values of a row, for comparisons.
type Row = Vec<Value>;

mod rows;
