//! `POST /v1/volumes/{name}/mutate`: one mutation as a short session of its client.
//!
//! The volume's actor sees no difference to a socket: `hello`, `mutate`, answers. So a resend is
//! answered from the record, also when another connection of the same client sent it first.
//!
//! Invariant: once the mutation was given to the actor, the answer names its client and seq, so that
//! whoever does not learn the outcome can ask again without a second effect.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, PathRejection};
use axum::extract::{Json, Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use graft::{Lsn, VolumeId};
use sqlsync_layer::actor::{SessionId, Token};
use sqlsync_layer::protocol::{ClientId, ClientMessage, Known, Reason, ServerMessage, codes};
use tokio::sync::Semaphore;

use super::wire::{MutateAnswer, MutateRequest, Wait};
use super::{ApiError, json, name};
use crate::outbox::{Outbox, Popped};
use crate::volumes::{Lease, Volumes};
use crate::worker::Work;
use crate::{Limits, clock};

impl IntoResponse for MutateAnswer {
    fn into_response(self) -> Response {
        let status = match &self {
            MutateAnswer::Accepted { .. } | MutateAnswer::Durable { .. } => StatusCode::OK,
            MutateAnswer::Rejected { .. } => StatusCode::UNPROCESSABLE_ENTITY,
            MutateAnswer::Unknown { .. } => StatusCode::SERVICE_UNAVAILABLE,
        };
        (status, Json(self)).into_response()
    }
}

/// Runs a reducer, and waits for what the request says.
pub(super) async fn mutate(
    path: Result<Path<String>, PathRejection>,
    State(volumes): State<Arc<Volumes>>,
    body: Result<Bytes, BytesRejection>,
) -> Result<MutateAnswer, ApiError> {
    let name = name(path)?;
    let request: MutateRequest = json(body)?;
    let (client, seq) = identity(&request)?;
    let lease = volumes.open(&name).await?;
    let limits = *volumes.limits();
    let session = volumes.next_session();
    let MutateRequest { reducer, args, clock, seed, wait, .. } = request;
    let message = ClientMessage::Mutate { seq, reducer, args, clock, seed };
    let short = Short { lease, session, client, seq, wait, limits };
    // A task, so that it ends as it should even if whoever asked hangs up.
    match tokio::spawn(short.run(message)).await {
        Ok(answered) => answered,
        Err(panic) => {
            tracing::error!(%panic, "a mutation's task panicked");
            Err(ApiError::Refused(Reason::new(
                codes::UNAVAILABLE,
                "the server failed; send the mutation again",
            )))
        }
    }
}

/// The caller's client and seq, or one that nobody else has.
fn identity(request: &MutateRequest) -> Result<(ClientId, u64), ApiError> {
    let problem = match (&request.client, request.seq) {
        (Some(client), Some(seq)) if seq > 0 => return Ok((client.clone(), seq)),
        (None, None) => match ClientId::new(format!("http-{}", clock::random_name())) {
            Some(client) => return Ok((client, 1)),
            None => "the server's own client id breaks its rules",
        },
        (Some(_), Some(_)) => "`seq` counts 1, 2, 3…",
        (Some(_), None) => "`client` needs the `seq` of this mutation: 1, 2, 3… for this client",
        (None, Some(_)) => "`seq` needs the `client` that it counts for",
    };
    Err(ApiError::Request { message: problem.into() })
}

/// A session of one mutation.
struct Short {
    lease: Lease,
    session: SessionId,
    client: ClientId,
    seq: u64,
    wait: Wait,
    limits: Limits,
}

impl Short {
    async fn run(self, message: ClientMessage) -> Result<MutateAnswer, ApiError> {
        let session = self.session;
        let outbox =
            Arc::new(Outbox::new(self.limits.session.outbox_bytes, self.limits.session.outbox_bytes_max));
        self.lease.register(session, outbox.clone());
        let waited = tokio::time::timeout(self.limits.http.answer_max, self.converse(&outbox, message)).await;
        if self.lease.worker().send(Work::Disconnect { session }).await.is_err() {
            tracing::debug!("the worker ended first");
        }
        self.lease.unregister(session);
        outbox.close(None);
        waited.unwrap_or_else(|_elapsed| Ok(self.unknown(late(self.limits.http.answer_max))))
    }

    async fn converse(&self, outbox: &Arc<Outbox>, message: ClientMessage) -> Result<MutateAnswer, ApiError> {
        let answer = self.ask(outbox, message.clone(), None).await;
        let Err(ApiError::Refused(gap)) = &answer else { return answer };
        if gap.code != codes::SEQ_GAP || self.seq <= 1 {
            return answer;
        }
        // Those before it may be in commits of another server, which this one has not looked at: a session
        // would say in its hello that it has their answers.
        if self.lease.worker().send(Work::Disconnect { session: self.session }).await.is_err() {
            return Ok(self.unknown(failed()));
        }
        self.ask(outbox, message, Some(gap)).await
    }

    /// With `gap` the log is looked at before, and that is the answer where there is no welcome.
    async fn ask(
        &self,
        outbox: &Arc<Outbox>,
        message: ClientMessage,
        gap: Option<&Reason>,
    ) -> Result<MutateAnswer, ApiError> {
        let session = self.session;
        let settled = gap.map_or(0, |_| self.seq - 1);
        let connect = Work::Connect {
            session,
            client: self.client.clone(),
            known: Known { settled, ..Known::NOTHING },
            outbox: outbox.clone(),
        };
        let worker = self.lease.worker();
        if worker.send(connect).await.is_err() {
            return Ok(self.unknown(failed()));
        }
        let mut volume = VolumeId([0; 16]);
        if let Some(gap) = gap {
            // Before that the actor does not know the session.
            volume = loop {
                match outbox.pop().await {
                    Popped::Frame { text, relieved: _ } => match ServerMessage::from_json(&text) {
                        Ok(ServerMessage::Welcome { volume, .. }) => break volume,
                        Ok(ServerMessage::Error { .. }) => return Err(ApiError::Refused(gap.clone())),
                        // Of other mutations of this client.
                        Ok(_) => {}
                        Err(error) => {
                            tracing::error!(%error, "the actor sent what is not a message");
                            return Ok(self.unknown(failed()));
                        }
                    },
                    Popped::Close(reason) => return Ok(self.unknown(reason.unwrap_or_else(failed))),
                }
            };
        }
        // Never closed and always free: this cannot fail.
        let Ok(turn) = Arc::new(Semaphore::new(1)).acquire_owned().await else {
            return Ok(self.unknown(failed()));
        };
        if worker.send(Work::Receive { session, message, turn }).await.is_err() {
            return Ok(self.unknown(failed()));
        }
        loop {
            let text = match outbox.pop().await {
                Popped::Frame { text, relieved: _ } => text,
                Popped::Close(reason) => return Ok(self.unknown(reason.unwrap_or_else(failed))),
            };
            let message = ServerMessage::from_json(&text);
            match message {
                Ok(ServerMessage::Welcome { volume: found, .. }) => volume = found,
                Ok(ServerMessage::Accepted { seq, lsn })
                    if self.is_mine(seq) && self.wait == Wait::Accepted =>
                {
                    let (client, token) = (self.client.clone(), self.token(volume, None));
                    return Ok(MutateAnswer::Accepted { client, seq, lsn, token });
                }
                Ok(ServerMessage::Durable { seq, lsn }) if self.is_mine(seq) => {
                    let (client, token) = (self.client.clone(), self.token(volume, Some(lsn)));
                    return Ok(MutateAnswer::Durable { client, seq, lsn, token });
                }
                Ok(ServerMessage::Rejected { seq, lsn, reason: error }) if self.is_mine(seq) => {
                    let (client, token) = (self.client.clone(), self.token(volume, Some(lsn)));
                    return Ok(MutateAnswer::Rejected { client, seq, lsn, token, error });
                }
                Ok(ServerMessage::Refused { seq, reason }) if self.is_mine(seq) => {
                    return Err(ApiError::Refused(reason));
                }
                // It is held up, and its session ends with why.
                Ok(ServerMessage::Error { reason }) => return Ok(self.unknown(reason)),
                // Of other mutations of this client, sent on other connections.
                Ok(
                    ServerMessage::Accepted { .. }
                    | ServerMessage::Durable { .. }
                    | ServerMessage::Rejected { .. }
                    | ServerMessage::Refused { .. },
                ) => {}
                // Answers to what was not asked here.
                Ok(
                    ServerMessage::Snapshot { .. }
                    | ServerMessage::Delta { .. }
                    | ServerMessage::SubscriptionError { .. }
                    | ServerMessage::Rows { .. }
                    | ServerMessage::QueryError { .. }
                    | ServerMessage::Presence { .. }
                    | ServerMessage::PresenceSet { .. }
                    | ServerMessage::PresenceError { .. }
                    | ServerMessage::Head { .. }
                    | ServerMessage::Pong { .. },
                ) => {}
                Err(error) => {
                    tracing::error!(%error, "the actor sent what is not a message");
                    return Ok(self.unknown(failed()));
                }
            }
        }
    }

    fn is_mine(&self, seq: u64) -> bool {
        seq == self.seq
    }

    /// A final outcome is known by its commit, which every later state holds; before, by the ledger.
    fn token(&self, volume: VolumeId, durable: Option<Lsn>) -> Token {
        match durable {
            Some(lsn) => Token { volume, lsn, tip: None, mutation: None },
            None => {
                Token { volume, lsn: Lsn::ZERO, tip: None, mutation: Some((self.client.clone(), self.seq)) }
            }
        }
    }

    fn unknown(&self, error: Reason) -> MutateAnswer {
        MutateAnswer::Unknown { client: self.client.clone(), seq: self.seq, error }
    }
}

fn late(waited: Duration) -> Reason {
    let message =
        format!("no answer in {waited:?}; send it again with this client and seq to learn what became of it");
    Reason::new(codes::UNAVAILABLE, message)
}

fn failed() -> Reason {
    Reason::new(
        codes::UNAVAILABLE,
        "the volume failed and is opened anew; send it again with this client and seq",
    )
}
