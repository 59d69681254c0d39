//! Live queries: which must re-run after a commit, and what to tell their subscribers.
//!
//! A query is executed once for each distinct (sql, params, key) and shared by its subscribers. While
//! it runs the VFS records the pages it reads; an inverted index page → queries answers which queries
//! a commit's write set touches. That is sound for phantoms too: an insert must change a page on the
//! path that the query read. A query whose result did not change sends nothing.
//!
//! This module holds the registry and knows neither SQLite nor sockets: the actor runs the queries
//! and feeds their results in.
//!
//! Invariants: every page in the index belongs to the last run's read set of its query; a query that
//! was registered at an older state than the registry's is told to re-run if a commit in between
//! touches it; a query is removed with its last subscriber.

mod diff;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use graft::PageIdx;
use reducers_abi::{Rows, Value};

pub use self::diff::diff;
use crate::protocol::{self, Changes};
use crate::value::{self, Params};
use crate::vfs::{ReadSet, WriteSet};

/// Commits remembered for queries that register at an older state.
const RECENT_MAX: usize = 64;

/// A live query in the registry; never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct QueryId(u64);

/// What makes two subscriptions one query.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Identity {
    /// The SELECT.
    pub sql: String,
    /// Its parameters, as JSON text.
    params: String,
    /// The key columns asked for.
    pub key: Option<Vec<String>>,
}

impl Identity {
    /// The identity of a subscription.
    pub fn new(sql: String, params: &Params, key: Option<Vec<String>>) -> Identity {
        Identity { sql, params: value::json(params), key }
    }
}

/// What a run of a query answered.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// Its rows.
    pub rows: Rows,
    /// Positions of the key columns.
    pub key: Vec<usize>,
    /// The pages it read.
    pub reads: ReadSet,
}

/// The named key columns do not exist.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the key column `{column}` is not in the result, which has {columns:?}")]
pub struct NoSuchKey {
    /// The name asked for.
    pub column: String,
    /// The result's columns.
    pub columns: Vec<String>,
}

/// The positions of the key columns: those asked for; else `id`; else every column.
pub fn key_columns(columns: &[String], asked: Option<&[String]>) -> Result<Vec<usize>, NoSuchKey> {
    let position = |name: &str| columns.iter().position(|column| column == name);
    match asked {
        Some(names) => names
            .iter()
            .map(|name| {
                position(name).ok_or_else(|| NoSuchKey { column: name.clone(), columns: columns.to_vec() })
            })
            .collect(),
        None => Ok(position("id").map_or_else(|| (0..columns.len()).collect(), |id| vec![id])),
    }
}

#[derive(Debug)]
struct Query<S> {
    identity: Arc<Identity>,
    params: Params,
    answer: Answer,
    subscribers: BTreeSet<S>,
    stale: bool,
}

/// The registry of one volume's live queries; `S` is a subscriber.
#[derive(Debug)]
pub struct LiveQueries<S> {
    next: u64,
    queries: BTreeMap<QueryId, Query<S>>,
    by_identity: HashMap<Arc<Identity>, QueryId>,
    by_page: HashMap<PageIdx, BTreeSet<QueryId>>,
    /// The state that the registry is at, counted in commits, and the last commits that led to it.
    state: u64,
    recent: VecDeque<WriteSet>,
}

impl<S> Default for LiveQueries<S> {
    fn default() -> Self {
        LiveQueries {
            next: 1,
            queries: BTreeMap::new(),
            by_identity: HashMap::new(),
            by_page: HashMap::new(),
            state: 0,
            recent: VecDeque::new(),
        }
    }
}

impl<S: Ord + Clone> LiveQueries<S> {
    /// The state that the registry is at: how many commits it has been told of.
    pub fn state(&self) -> u64 {
        self.state
    }

    /// The query that a subscription shares, if there is one.
    pub fn find(&self, identity: &Identity) -> Option<QueryId> {
        self.by_identity.get(identity).copied()
    }

    /// Registers a query with its first answer, which was read at `state`. It is stale at once where
    /// a commit since then touches what it read.
    pub fn register(&mut self, identity: Identity, params: Params, answer: Answer, state: u64) -> QueryId {
        let id = QueryId(self.next);
        self.next += 1;
        let missed = usize::try_from(self.state - state).unwrap_or(usize::MAX);
        let since = self.recent.len().checked_sub(missed).map(|from| self.recent.range(from..));
        let stale = since.is_none_or(|mut commits| commits.any(|commit| commit.wakes(&answer.reads)));
        let identity = Arc::new(identity);
        self.by_identity.insert(identity.clone(), id);
        self.index(id, &answer.reads);
        self.queries.insert(id, Query { identity, params, answer, subscribers: BTreeSet::new(), stale });
        id
    }

    /// Adds a subscriber.
    pub fn join(&mut self, id: QueryId, subscriber: S) {
        if let Some(query) = self.queries.get_mut(&id) {
            query.subscribers.insert(subscriber);
        }
    }

    /// Removes a subscriber, and the query with its last one.
    pub fn leave(&mut self, id: QueryId, subscriber: &S) {
        if let Some(query) = self.queries.get_mut(&id) {
            query.subscribers.remove(subscriber);
            if query.subscribers.is_empty() {
                self.remove(id);
            }
        }
    }

    /// Removes a query; answers who subscribed to it.
    pub fn remove(&mut self, id: QueryId) -> BTreeSet<S> {
        let Some(query) = self.queries.remove(&id) else { return BTreeSet::new() };
        self.by_identity.remove(&query.identity);
        self.unindex(id, &query.answer.reads);
        query.subscribers
    }

    /// A commit happened: marks what it touches as stale.
    pub fn committed(&mut self, commit: WriteSet) {
        if commit.marks.schema {
            self.queries.values_mut().for_each(|query| query.stale = true);
        } else {
            // Walk whichever side is shorter: the commit's pages or the pages that are watched.
            let touched: BTreeSet<QueryId> = if commit.pages.len() <= self.by_page.len() as u64 {
                commit.pages.iter().filter_map(|page| self.by_page.get(&page)).flatten().copied().collect()
            } else {
                let watched = self.by_page.iter().filter(|(page, _)| commit.pages.contains(**page));
                watched.flat_map(|(_, queries)| queries).copied().collect()
            };
            for id in touched {
                if let Some(query) = self.queries.get_mut(&id) {
                    query.stale = true;
                }
            }
        }
        self.state += 1;
        self.recent.push_back(commit);
        if self.recent.len() > RECENT_MAX {
            self.recent.pop_front();
        }
    }

    /// Every query.
    pub fn ids(&self) -> Vec<QueryId> {
        self.queries.keys().copied().collect()
    }

    /// The queries that must re-run.
    pub fn stale(&self) -> Vec<QueryId> {
        self.queries.iter().filter(|(_, query)| query.stale).map(|(id, _)| *id).collect()
    }

    /// Whether a query's rows are older than the tip.
    pub fn is_stale(&self, id: QueryId) -> bool {
        self.queries.get(&id).is_some_and(|query| query.stale)
    }

    /// What to run for a query.
    pub fn text(&self, id: QueryId) -> Option<(Arc<Identity>, Params)> {
        self.queries.get(&id).map(|query| (query.identity.clone(), query.params.clone()))
    }

    /// Who subscribes to a query.
    pub fn subscribers(&self, id: QueryId) -> Vec<S> {
        self.queries.get(&id).map(|query| query.subscribers.iter().cloned().collect()).unwrap_or_default()
    }

    /// A stale query was re-run. Answers what changed for its subscribers.
    pub fn refreshed(&mut self, id: QueryId, answer: Answer) -> Refreshed {
        let Some(query) = self.queries.get_mut(&id) else { return Refreshed::Same };
        query.stale = false;
        let before = std::mem::replace(&mut query.answer, answer.clone());
        if before.reads != answer.reads {
            self.unindex(id, &before.reads);
            self.index(id, &answer.reads);
        }
        if before.rows.columns != answer.rows.columns {
            return Refreshed::Replaced;
        }
        let changes = diff(&before.rows.rows, &answer.rows.rows, &answer.key);
        if changes.is_empty() { Refreshed::Same } else { Refreshed::Changed(changes) }
    }

    /// The members of a `snapshot` message that all subscribers share.
    pub fn snapshot_body(&self, id: QueryId) -> Option<Arc<str>> {
        let answer = &self.queries.get(&id)?.answer;
        let key: Vec<&String> =
            answer.key.iter().filter_map(|column| answer.rows.columns.get(*column)).collect();
        let rows = protocol::wire_rows(&answer.rows.rows);
        let body = format!(
            r#""columns":{},"key":{},"rows":{}"#,
            value::json(&answer.rows.columns),
            value::json(&key),
            value::json(&rows)
        );
        Some(body.into())
    }

    /// How many queries and how many watched pages there are.
    pub fn size(&self) -> (usize, usize) {
        (self.queries.len(), self.by_page.len())
    }

    fn index(&mut self, id: QueryId, reads: &ReadSet) {
        for page in reads.pages.iter() {
            self.by_page.entry(page).or_default().insert(id);
        }
    }

    fn unindex(&mut self, id: QueryId, reads: &ReadSet) {
        for page in reads.pages.iter() {
            if let Some(queries) = self.by_page.get_mut(&page) {
                queries.remove(&id);
                if queries.is_empty() {
                    self.by_page.remove(&page);
                }
            }
        }
    }
}

/// What a re-run changed.
#[derive(Debug, Clone, PartialEq)]
pub enum Refreshed {
    /// Nothing: the result is equal.
    Same,
    /// Rows.
    Changed(Changes),
    /// The columns: subscribers need a snapshot.
    Replaced,
}

/// The members of a `delta` message that all subscribers share.
pub fn delta_body(changes: &Changes) -> Arc<str> {
    format!(r#""changes":{}"#, value::json(changes)).into()
}

/// A row's key.
fn key_of<'a>(row: &'a [Value], key: &[usize]) -> Vec<&'a Value> {
    key.iter().filter_map(|column| row.get(*column)).collect()
}

#[cfg(test)]
mod tests;
