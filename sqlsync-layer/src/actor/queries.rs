//! The actor's reading side: one-off queries, subscriptions, and refreshing live queries.
//!
//! Queries run on a connection of their own that cannot write, under the guard's `Query` mode. A live
//! query runs with its reads recorded, from a cold cache, so that its read set is complete.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::batch::forget_schema;
use super::core::Actor;
use super::{Limits, Outgoing, Output, SessionId};
use crate::guard::{Guarded, Mode, RowLimits};
use crate::live::{Answer, Identity, QueryId, Refreshed, delta_body, key_columns};
use crate::protocol::{Reason, ServerMessage, codes, wire_rows};
use crate::value::Params;
use crate::vfs::{ConnectError, Control, Database, IoFailure, scope};

/// Runs of a live query that may find damage before its subscribers are told.
const DAMAGED_TRIES: u32 = 5;

/// The connection that runs queries.
pub(crate) struct Reader {
    guarded: Guarded,
    control: Arc<Control>,
}

/// Why a query was not answered.
pub(crate) enum QueryFailure {
    /// The query's own fault.
    Refused(Reason),
    /// The world's: it may be answered later.
    Blocked(IoFailure),
}

impl QueryFailure {
    pub(crate) fn reason(self) -> Reason {
        match self {
            QueryFailure::Refused(reason) => reason,
            QueryFailure::Blocked(failure) if failure.damaged => Reason::new(codes::DAMAGED, failure.message),
            QueryFailure::Blocked(failure) => Reason::new(codes::UNAVAILABLE, failure.message),
        }
    }
}

impl Reader {
    pub(crate) fn new(database: &Arc<Database>) -> Result<Reader, ConnectError> {
        let (connection, control) = database.connect_read_only()?;
        Ok(Reader { guarded: Guarded::new(connection)?, control })
    }

    /// The volume moved other than forward.
    pub(crate) fn forget_schema(&self) {
        forget_schema(&self.guarded);
    }

    /// Runs one SELECT.
    pub(crate) fn ask(
        &self,
        mode: Mode,
        sql: &str,
        params: &Params,
        limits: &Limits,
    ) -> Result<reducers_abi::Rows, QueryFailure> {
        let rows = RowLimits { rows_max: limits.query_rows_max, bytes_max: limits.query_bytes_max };
        let _ = self.control.take_failure();
        let asked = self.guarded.within(mode, limits.query_steps_max, |g| g.ask(sql, params, rows));
        asked.map_err(|error| match self.control.take_failure() {
            Some(failure) => QueryFailure::Blocked(failure),
            None if error.code == rusqlite::ffi::SQLITE_INTERRUPT => QueryFailure::Refused(Reason::new(
                codes::LIMIT,
                format!("the query took more than {} steps", limits.query_steps_max),
            )),
            None => QueryFailure::Refused(Reason::new(codes::BAD_QUERY, error.message)),
        })
    }

    /// Runs a live query and records what it reads. Again where what it read was damaged, since that may
    /// have happened on the way, and a live query ends where stored bytes are damaged.
    pub(crate) fn ask_live(
        &self,
        identity: &Identity,
        params: &Params,
        limits: &Limits,
    ) -> Result<Answer, QueryFailure> {
        let mut tries = 1;
        loop {
            match self.ask_live_once(identity, params, limits) {
                Err(QueryFailure::Blocked(IoFailure { damaged: true, .. })) if tries < DAMAGED_TRIES => {
                    tries += 1
                }
                result => return result,
            }
        }
    }

    fn ask_live_once(
        &self,
        identity: &Identity,
        params: &Params,
        limits: &Limits,
    ) -> Result<Answer, QueryFailure> {
        let clock_reads = scope::clock_reads();
        self.control.record();
        let rows = self.ask(Mode::Query, &identity.sql, params, limits);
        let reads = self.control.recorded();
        let rows = rows?;
        let refused = |message: String| QueryFailure::Refused(Reason::new(codes::BAD_QUERY, message));
        if scope::clock_reads() != clock_reads {
            return Err(refused(
                "a live query may not depend on the clock; pass the time as a parameter".into(),
            ));
        }
        let key = key_columns(&rows.columns, identity.key.as_deref())
            .map_err(|error| refused(error.to_string()))?;
        Ok(Answer { rows, key, reads })
    }
}

impl Actor {
    pub(super) fn run_query(
        &self,
        mode: Mode,
        sql: &str,
        params: &Params,
    ) -> Result<reducers_abi::Rows, QueryFailure> {
        self.reader.ask(mode, sql, params, &self.limits)
    }

    pub(super) fn query(&mut self, session: SessionId, id: u64, sql: &str, params: &Params) {
        let Some(at) = self.sessions.get(&session).map(|s| self.at(&s.client)) else { return };
        let message = match self.run_query(Mode::Query, sql, params) {
            Ok(rows) => ServerMessage::Rows { id, at, rows: wire_rows(&rows.rows), columns: rows.columns },
            Err(failure) => ServerMessage::QueryError { id, reason: failure.reason() },
        };
        self.send(session, message);
    }

    pub(super) fn subscribe(
        &mut self,
        session: SessionId,
        sub: u64,
        sql: String,
        params: Params,
        key: Option<Vec<String>>,
    ) {
        let Some(open) = self.sessions.get(&session).map(|s| &s.subscriptions) else { return };
        if open.contains_key(&sub) {
            let reason = Reason::new(codes::BAD_SUBSCRIPTION, format!("subscription id {sub} is in use"));
            return self.send(session, ServerMessage::SubscriptionError { sub, reason });
        }
        if open.len() >= self.limits.subscriptions_max {
            let message = format!("a connection has at most {} subscriptions", self.limits.subscriptions_max);
            let reason = Reason::new(codes::LIMIT, message);
            return self.send(session, ServerMessage::SubscriptionError { sub, reason });
        }
        let identity = Identity::new(sql, &params, key);
        let query = match self.live.find(&identity) {
            Some(query) => query,
            None => {
                let state = self.live.state();
                match self.run_live(&identity, &params) {
                    Ok(answer) => self.live.register(identity, params, answer, state),
                    Err(failure) => {
                        let reason = failure.reason();
                        return self.send(session, ServerMessage::SubscriptionError { sub, reason });
                    }
                }
            }
        };
        self.live.join(query, (session, sub));
        if let Some(open) = self.sessions.get_mut(&session) {
            open.subscriptions.insert(sub, query);
        }
        self.send_snapshot(query, session, sub);
    }

    pub(super) fn unsubscribe(&mut self, session: SessionId, sub: u64) {
        let Some(open) = self.sessions.get_mut(&session) else { return };
        open.missed.remove(&sub);
        self.owed.remove(&(session, sub));
        match open.subscriptions.remove(&sub) {
            Some(query) => self.live.leave(query, &(session, sub)),
            None => {
                let reason = Reason::new(codes::BAD_SUBSCRIPTION, format!("there is no subscription {sub}"));
                self.send(session, ServerMessage::SubscriptionError { sub, reason });
            }
        }
    }

    /// Runs a live query and records what it reads.
    fn run_live(&mut self, identity: &Identity, params: &Params) -> Result<Answer, QueryFailure> {
        self.metrics.query_runs += 1;
        self.reader.ask_live(identity, params, &self.limits)
    }

    /// Re-runs the queries that commits have touched, and sends what changed.
    pub(super) fn refresh(&mut self) {
        for query in self.live.stale() {
            if self.held_back.contains(&query) {
                continue;
            }
            let Some((identity, params)) = self.live.text(query) else { continue };
            match self.run_live(&identity, &params) {
                Ok(answer) => match self.live.refreshed(query, answer) {
                    Refreshed::Same => {}
                    Refreshed::Changed(changes) => self.send_rows(query, "delta", &delta_body(&changes)),
                    Refreshed::Replaced => {
                        if let Some(body) = self.live.snapshot_body(query) {
                            self.send_rows(query, "snapshot", &body);
                        }
                    }
                },
                Err(QueryFailure::Blocked(IoFailure { message: why, damaged: false })) => {
                    tracing::warn!(volume = %self.volume.id(), why, "a live query is held back and will be tried again");
                    self.held_back.insert(query);
                    self.wake();
                }
                Err(failure) => self.close_query(query, &failure.reason()),
            }
        }
        for (session, sub) in std::mem::take(&mut self.owed) {
            let query = self.sessions.get(&session).and_then(|open| open.subscriptions.get(&sub)).copied();
            if let Some(query) = query {
                self.send_snapshot(query, session, sub);
            }
        }
    }

    /// A live query cannot go on: its subscribers are told why.
    fn close_query(&mut self, query: QueryId, reason: &Reason) {
        for (session, sub) in self.live.remove(query) {
            if let Some(open) = self.sessions.get_mut(&session) {
                open.subscriptions.remove(&sub);
                open.missed.remove(&sub);
            }
            self.owed.remove(&(session, sub));
            self.send(session, ServerMessage::SubscriptionError { sub, reason: reason.clone() });
        }
    }

    /// Sends a row message, encoded once, to every subscriber that can take it.
    fn send_rows(&mut self, query: QueryId, kind: &'static str, body: &Arc<str>) {
        for (session, sub) in self.live.subscribers(query) {
            let Some(open) = self.sessions.get_mut(&session) else { continue };
            if open.congested {
                open.missed.insert(sub);
                continue;
            }
            if self.owed.contains(&(session, sub)) {
                continue;
            }
            let at = self.sessions.get(&session).map(|s| self.at(&s.client));
            let Some(at) = at else { continue };
            self.metrics.row_messages += 1;
            let message = Outgoing::Shared { kind, sub, at, body: body.clone() };
            self.output(Output::Send { session, message });
        }
    }

    /// Sends a query's rows to one subscriber; later where they are older than the tip that they would be
    /// said to be of.
    fn send_snapshot(&mut self, query: QueryId, session: SessionId, sub: u64) {
        if self.live.is_stale(query) {
            self.owed.insert((session, sub));
            return;
        }
        let at = self.sessions.get(&session).map(|s| self.at(&s.client));
        if let (Some(body), Some(at)) = (self.live.snapshot_body(query), at) {
            self.metrics.row_messages += 1;
            let message = Outgoing::Shared { kind: "snapshot", sub, at, body };
            self.output(Output::Send { session, message });
        }
    }

    /// A connection can take rows again: it gets the present rows of what it missed.
    pub(super) fn relieved(&mut self, session: SessionId) {
        let Some(open) = self.sessions.get_mut(&session) else { return };
        open.congested = false;
        let missed = std::mem::take(&mut open.missed);
        let subscriptions: BTreeMap<u64, QueryId> = open.subscriptions.clone();
        for sub in missed {
            if let Some(query) = subscriptions.get(&sub) {
                self.send_snapshot(*query, session, sub);
            }
        }
    }
}
