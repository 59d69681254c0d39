//! What the world knows and no part of the product does: who made which commit, what each client made
//! and was told, which rows it was shown. The oracle compares it with the log.

use std::collections::{BTreeMap, BTreeSet};

use graft::{CommitId, Lsn};
use serde_json::{Map, Value as Json};
use sqlsync_layer::payload::{Mutation, Record};
use sqlsync_layer::protocol::{At, Seed, WireRow};

use super::bank::Ask;

/// A mutation as its client made it.
#[derive(Debug, Clone, PartialEq)]
pub struct Made {
    /// The reducer.
    pub reducer: String,
    /// Its arguments.
    pub args: Map<String, Json>,
    /// The client's clock.
    pub clock: i64,
    /// The seed.
    pub seed: Seed,
    /// When, in milliseconds since the world began.
    pub at: u64,
}

impl Made {
    /// Whether this is what was made.
    pub fn is(&self, mutation: &Mutation) -> bool {
        let args = Json::Object(self.args.clone()).to_string();
        (&self.reducer, &args, self.clock, self.seed)
            == (&mutation.reducer, &mutation.args, mutation.clock, mutation.seed)
    }
}

/// One local commit of a document: what is behind it.
#[derive(Debug, Clone, PartialEq)]
pub enum Local {
    /// A mutation, and how it ended.
    Ran(Record),
    /// Plain SQL.
    Sql(String),
}

/// What was read on a replica: a document's, or one opened to read.
#[derive(Debug, Clone, PartialEq)]
pub struct Seen {
    /// The durable commit that it stands on.
    pub lsn: Lsn,
    /// The local work on top.
    pub local: Vec<Local>,
    /// The query.
    pub ask: Ask,
    /// Who read; see [`READERS`].
    pub who: usize,
    /// When, in milliseconds since the world began.
    pub at: u64,
    /// The rows, as JSON.
    pub rows: String,
}

/// From this number on, those who see are readers straight on the bucket.
pub const READERS: usize = 1000;

/// A document at the end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AtRest {
    /// Which.
    pub who: usize,
    /// The commit that it stands on.
    pub lsn: Lsn,
    /// All that is in it, as `oracle` dumps it.
    pub dump: Vec<String>,
}

/// A final answer that a client was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    /// Durable under this LSN.
    Durable(Lsn),
    /// Rejected, recorded under this LSN.
    Rejected(Lsn),
}

/// Which state rows should be of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Claim {
    /// What the server said: a tip in an epoch, with the receiver's last applied seq.
    At {
        /// The epoch.
        epoch: u64,
        /// The receiver's last applied seq.
        seq: u64,
    },
    /// The state right after the commit, nothing else will do.
    Exactly,
}

/// Rows as text, to compare.
pub fn rows_text(rows: &[WireRow]) -> String {
    serde_json::json!(rows).to_string()
}

/// Rows that a client was shown.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Shown {
    /// Which LSN they are said to belong to.
    pub lsn: Lsn,
    /// The query.
    pub ask: Ask,
    /// The claim about the state.
    pub claim: Claim,
    /// To whom.
    pub client: usize,
    /// The rows, as JSON.
    pub rows: String,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Truth {
    /// The epoch in which a coordinator published a commit.
    pub published: BTreeMap<CommitId, u64>,
    /// The durable commit that each epoch began on.
    pub epochs: BTreeMap<u64, Lsn>,
    /// What a direct commit ran.
    pub direct: BTreeMap<CommitId, Vec<String>>,
    /// What each client made, by seq.
    pub made: Vec<BTreeMap<u64, Made>>,
    /// What each client was told, by seq.
    pub told: Vec<BTreeMap<u64, Told>>,
    /// What clients were shown. Equal ones once.
    pub shown: BTreeSet<Shown>,
    /// What each commit of a document holds.
    pub documents: BTreeMap<CommitId, Vec<Local>>,
    /// Who among those who mutate are documents: they may miss an answer, when their process dies.
    pub forgetful: BTreeSet<usize>,
    /// Of each document: rejected mutations that wait for the app at the end, and those it dealt with.
    pub rejected: BTreeMap<usize, (BTreeSet<u64>, BTreeSet<u64>)>,
    /// Documents among them whose disk is gone.
    pub disk_lost: BTreeSet<usize>,
    /// Branches of documents that became volumes: the commit they go back to, and what was put on it.
    pub branches: BTreeMap<graft::VolumeId, (Lsn, Vec<Local>)>,
    /// What was read on replicas.
    pub seen: Vec<Seen>,
    /// Documents at the end.
    pub at_rest: Vec<AtRest>,
    /// Direct commits acknowledged to their writer.
    pub direct_durable: BTreeMap<CommitId, Lsn>,
    /// Commits whose LSN went to another, as their makers were told.
    pub lost: BTreeSet<CommitId>,
    /// Deploys acknowledged: the module's version and the LSN.
    pub deployed: Vec<(u32, Lsn)>,
}

impl Truth {
    /// Notes rows that a client was shown.
    pub fn show(&mut self, client: usize, ask: Ask, at: At, rows: String) {
        let claim = Claim::At { epoch: at.epoch, seq: at.seq };
        self.shown.insert(Shown { lsn: at.lsn, ask, claim, client, rows });
    }
}
