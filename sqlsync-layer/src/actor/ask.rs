//! Queries from outside of a session, which may wait for a state that a [`Token`] names.
//!
//! A query whose token is not reached waits in the actor and is looked at after everything that
//! happens. What it waits for may be in a commit of another server, so while any waits and nothing of
//! ours is unpublished (a publication would find out) the log is pulled, at most every
//! [`FRESHEN_MS`].
//!
//! Invariants: a query is answered once; it waits no longer than its deadline and a reminder.

use graft::{Lsn, ModuleHash, VolumeId};

use super::core::Actor;
use super::queries::QueryFailure;
use super::{Output, RequestId, Token};
use crate::guard::Mode;
use crate::protocol::{Reason, WireRow, codes, wire_rows};
use crate::value::Params;

/// How often the log is pulled, and deadlines are looked at, while queries wait.
const FRESHEN_MS: u64 = 100;

/// Queries that may wait at one volume.
pub const WAITING_MAX: usize = 256;

/// A query from outside of a session.
#[derive(Debug, Clone, PartialEq)]
pub struct Ask {
    /// One SELECT.
    pub sql: String,
    /// Its parameters.
    pub params: Params,
    /// The state that it is to see, or a later one.
    pub after: Option<Token>,
    /// When it gives up waiting for that state, ms since 1970 by the driver's clock.
    pub deadline_ms: i64,
}

/// Its answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Asked {
    /// Column names.
    pub columns: Vec<String>,
    /// All rows.
    pub rows: Vec<WireRow>,
    /// The commit that the newest change in the rows is in, or is meant for.
    pub lsn: Lsn,
    /// The epoch of the tip it ran on.
    pub epoch: u64,
    /// The state it ran on.
    pub token: Token,
}

/// Why a query was not answered. It changed nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AskError {
    /// The state is gone and does not come back.
    #[error(
        "the state that the token names is gone: {why}; query without it, or with the token of your last mutation"
    )]
    Lost {
        /// What happened to it.
        why: String,
    },
    /// The deadline passed first.
    #[error(
        "the state that the token names was not reached in time; try again, and if the token is of a mutation, send that again"
    )]
    NotReached,
    /// Too many queries wait already.
    #[error("{WAITING_MAX} queries wait for states that this volume has not reached; try again later")]
    TooMany,
    /// The query's own fault, or the store's.
    #[error("{}", .0.message)]
    Failed(Reason),
}

/// How a volume stands at its tip.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// The volume's identity.
    pub volume: VolumeId,
    /// The tip's epoch.
    pub epoch: u64,
    /// The commit that the tip's newest change is in, or is meant for.
    pub lsn: Lsn,
    /// The module in force.
    pub module: Option<ModuleHash>,
    /// The version of the last migration that ran.
    pub schema: u32,
}

/// A query that waits.
#[derive(Debug)]
pub(super) struct Waiting {
    request: RequestId,
    ask: Ask,
}

/// What waits, and what is done about it.
#[derive(Debug, Default)]
pub(super) struct Asks {
    waiting: Vec<Waiting>,
    /// A [`Output::Remind`] is out.
    reminding: bool,
    /// The log was looked at since the last reminder.
    freshened: bool,
}

/// Whether the tip holds what a token names.
enum Reach {
    Reached,
    NotYet,
    Lost(String),
}

impl Actor {
    pub(super) fn ask(&mut self, request: RequestId, ask: Ask) {
        self.run_inbox();
        match self.reach(ask.after.as_ref()) {
            Reach::Reached => self.answer(request, &ask),
            Reach::Lost(why) => self.asked(request, Err(AskError::Lost { why })),
            Reach::NotYet if self.shutting_down => self.asked(request, Err(shutting_down())),
            Reach::NotYet if self.asks.waiting.len() >= WAITING_MAX => {
                self.asked(request, Err(AskError::TooMany));
            }
            Reach::NotYet => self.asks.waiting.push(Waiting { request, ask }),
        }
    }

    pub(super) fn inspect(&mut self, request: RequestId) {
        let (volume, epoch, lsn) = (self.volume.id(), self.epoch, self.tip_lsn());
        let standing = Standing { volume, epoch, lsn, module: self.tip.module(), schema: self.tip.schema() };
        self.output(Output::Inspected { request, standing });
    }

    pub(super) fn reminded(&mut self) {
        self.asks.reminding = false;
        self.asks.freshened = false;
    }

    /// Answers the waiting queries whose state is reached, gone, or too late. Answers whether a pull
    /// may bring what the rest waits for.
    pub(super) fn settle_waiting(&mut self, now_ms: i64) -> bool {
        for Waiting { request, ask } in std::mem::take(&mut self.asks.waiting) {
            match self.reach(ask.after.as_ref()) {
                Reach::Reached => self.answer(request, &ask),
                Reach::Lost(why) => self.asked(request, Err(AskError::Lost { why })),
                Reach::NotYet if self.shutting_down => self.asked(request, Err(shutting_down())),
                Reach::NotYet if now_ms >= ask.deadline_ms => self.asked(request, Err(AskError::NotReached)),
                Reach::NotYet => self.asks.waiting.push(Waiting { request, ask }),
            }
        }
        if self.asks.waiting.is_empty() {
            return false;
        }
        if !self.asks.reminding {
            self.asks.reminding = true;
            self.output(Output::Remind { after_ms: FRESHEN_MS });
        }
        !std::mem::replace(&mut self.asks.freshened, true)
    }

    fn reach(&self, after: Option<&Token>) -> Reach {
        let Some(token) = after else { return Reach::Reached };
        if token.volume != self.volume.id() {
            return Reach::Lost("it is of another volume, or the volume was replaced".into());
        }
        if token.tip.is_some_and(|epoch| epoch != self.epoch) {
            return Reach::Lost(
                "it was not durable when it was read, and the tip has moved back since".into(),
            );
        }
        let mutation = token.mutation.as_ref();
        let applied = mutation.is_none_or(|(client, seq)| self.tip.last_seq(client) >= *seq);
        if applied && self.volume.base().lsn() >= token.lsn { Reach::Reached } else { Reach::NotYet }
    }

    fn answer(&mut self, request: RequestId, ask: &Ask) {
        let asked = self.run_query(Mode::Query, &ask.sql, &ask.params);
        let asked = asked.map_err(QueryFailure::reason).map_err(AskError::Failed).map(|rows| Asked {
            rows: wire_rows(&rows.rows),
            columns: rows.columns,
            lsn: self.tip_lsn(),
            epoch: self.epoch,
            token: Token {
                volume: self.volume.id(),
                lsn: self.volume.base().lsn(),
                tip: self.is_ahead().then_some(self.epoch),
                mutation: None,
            },
        });
        self.asked(request, asked);
    }

    fn asked(&mut self, request: RequestId, result: Result<Asked, AskError>) {
        self.output(Output::Asked { request, result });
    }
}

fn shutting_down() -> AskError {
    AskError::Failed(Reason::new(codes::SHUTDOWN, "the server is shutting down; query again"))
}
