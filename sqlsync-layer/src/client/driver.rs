//! The task behind a [`super::Client`]: carries out a session's effects, feeds it events.

use std::collections::{HashMap, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures::future::BoxFuture;
use futures::{FutureExt as _, SinkExt as _, StreamExt as _};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use serde_json::Map;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::{self, Message};
use url::Url;

use super::dial::{DialError, Socket, dial};
use super::subscription::{Slot, Subscription, SubscriptionEnd};
use super::{
    CallError, MutationError, MutationHandle, Progress, QueryError, SessionConfig, SessionEnd, Status,
};
use crate::protocol::{ClientId, Seed};
use crate::session::client::{ClientSession, Effect, Event, Notice, PendingMutation, Present};
use crate::session::rows::Rows;
use crate::value::Params;
use graft::Lsn;

/// How long a closing handshake may take.
const FAREWELL_MAX: Duration = Duration::from_secs(1);

/// What a handle asks of the task.
pub(super) enum Command {
    Mutate {
        reducer: String,
        args: Map<String, serde_json::Value>,
        reply: oneshot::Sender<Result<MutationHandle, CallError>>,
    },
    /// A mutation with its clock and seed given, without a handle: answers its seq.
    Send {
        mutation: PendingMutation,
        reply: oneshot::Sender<Result<(), CallError>>,
    },
    Subscribe {
        sql: String,
        params: Params,
        key: Option<Vec<String>>,
        reply: oneshot::Sender<Result<Subscription, CallError>>,
    },
    Query {
        sql: String,
        params: Params,
        reply: oneshot::Sender<Result<Rows, QueryError>>,
    },
    SetPresence {
        /// `None` to be here no more.
        state: Option<serde_json::Value>,
        reply: oneshot::Sender<Result<(), CallError>>,
    },
    WatchPresence {
        reply: oneshot::Sender<watch::Receiver<Present>>,
    },
    Close {
        reply: oneshot::Sender<()>,
    },
}

pub(super) struct Driver {
    target: Url,
    session: ClientSession,
    rng: StdRng,
    commands: mpsc::Receiver<Command>,
    told: watch::Sender<Status>,
    present: watch::Sender<Present>,
    head: watch::Sender<Lsn>,
    link: Link,
    timer: Option<Instant>,
    mutations: HashMap<u64, watch::Sender<Progress>>,
    subscriptions: HashMap<u64, Arc<Slot>>,
    queries: HashMap<u64, oneshot::Sender<Result<Rows, QueryError>>>,
    closing: Vec<oneshot::Sender<()>>,
    sweep: Arc<Notify>,
}

impl Driver {
    pub(super) fn new(
        target: Url,
        client: Option<ClientId>,
        config: SessionConfig,
        commands: mpsc::Receiver<Command>,
        told: watch::Sender<Status>,
    ) -> Driver {
        let session = match client {
            Some(client) => ClientSession::resume(client, config),
            None => ClientSession::new(random_id(&mut StdRng::from_os_rng()), config),
        };
        Driver::of(target, session, commands, told)
    }

    /// The driver of a session that was not started yet.
    pub(super) fn of(
        target: Url,
        session: ClientSession,
        commands: mpsc::Receiver<Command>,
        told: watch::Sender<Status>,
    ) -> Driver {
        let rng = StdRng::from_os_rng();
        Driver {
            target,
            session,
            rng,
            commands,
            told,
            present: watch::Sender::new(Present::default()),
            head: watch::Sender::new(Lsn::ZERO),
            link: Link::Down,
            timer: None,
            mutations: HashMap::new(),
            subscriptions: HashMap::new(),
            queries: HashMap::new(),
            closing: Vec::new(),
            sweep: Arc::default(),
        }
    }

    pub(super) fn client(&self) -> ClientId {
        self.session.client().clone()
    }

    /// The newest commit that the server spoke of.
    pub(super) fn heads(&self) -> watch::Receiver<Lsn> {
        self.head.subscribe()
    }

    /// Runs until the session ends or every handle is gone.
    pub(super) async fn run(mut self) {
        self.session.start();
        let end = loop {
            if let Some(end) = self.carry_out() {
                break end;
            }
            let timer = self.timer;
            tokio::select! {
                event = self.link.next() => {
                    let random = self.rng.random();
                    self.session.handle(event, random);
                }
                () = tokio::time::sleep_until(timer.unwrap_or_else(Instant::now)), if timer.is_some() => {
                    self.timer = None;
                    let random = self.rng.random();
                    self.session.handle(Event::Timer, random);
                }
                command = self.commands.recv() => match command {
                    Some(command) => self.command(command),
                    None => self.session.close(),
                },
                () = self.sweep.notified() => self.drop_abandoned(),
            }
        };
        tracing::debug!(client = %self.session.client(), %end, "client ended");
        for progress in self.mutations.values() {
            progress.send_replace(Progress::Failed(MutationError::Closed(end.clone())));
        }
        for slot in self.subscriptions.values() {
            slot.end(SubscriptionEnd::Closed(end.clone()));
        }
        for (_, reply) in self.queries.drain() {
            answer(reply, Err(QueryError::Call(CallError::Ended(end.clone()))));
        }
        self.link.farewell().await;
        for reply in self.closing.drain(..) {
            answer(reply, ());
        }
    }

    /// Carries out what the session wants. Answers how it ended, if it did.
    fn carry_out(&mut self) -> Option<SessionEnd> {
        let mut ended = None;
        while let Some(effect) = self.session.next_effect() {
            match effect {
                Effect::Dial => {
                    self.drop_abandoned();
                    self.timer = None;
                    self.link = Link::Dialling(dial(self.target.clone()).boxed());
                }
                Effect::Hangup if ended.is_none() => {
                    let link = std::mem::replace(&mut self.link, Link::Down);
                    // Where the session ended, `run` waits for the farewell.
                    match self.session_end() {
                        Some(_) => self.link = link,
                        None => drop(tokio::spawn(link.farewell_owned())),
                    }
                }
                Effect::Hangup => {}
                Effect::Send(frame) => self.link.send(frame),
                Effect::SetTimer(after) => self.timer = Some(Instant::now() + after),
                Effect::Notify(Notice::Status(status)) => {
                    if let Status::Ended(end) = &status {
                        ended = Some(end.clone());
                    }
                    tracing::debug!(client = %self.session.client(), ?status);
                    self.told.send_replace(status);
                }
                Effect::Notify(notice) => self.notice(notice),
            }
        }
        ended
    }

    fn session_end(&self) -> Option<SessionEnd> {
        self.session.ended().cloned()
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Mutate { reducer, args, reply } => {
                let seed = Seed(self.rng.random());
                let taken = self.session.mutate(reducer, args, now_ms(), seed).map(|seq| {
                    let (progress, receiver) = watch::channel(Progress::Sent);
                    self.mutations.insert(seq, progress);
                    MutationHandle { seq, progress: receiver }
                });
                answer(reply, taken);
            }
            Command::Send { mutation, reply } => answer(reply, self.session.mutate_as(mutation)),
            Command::Subscribe { sql, params, key, reply } => {
                let opened = self.session.subscribe(sql, params, key).map(|sub| {
                    let slot = Slot::new(self.sweep.clone());
                    self.subscriptions.insert(sub, slot.clone());
                    Subscription::new(slot)
                });
                answer(reply, opened);
            }
            Command::Query { sql, params, reply } => match self.session.query(sql, params) {
                Ok(id) => {
                    self.queries.insert(id, reply);
                }
                Err(error) => answer(reply, Err(QueryError::Call(error))),
            },
            Command::SetPresence { state, reply } => {
                let taken = match state {
                    Some(state) => self.session.set_presence(state),
                    None => {
                        self.session.clear_presence();
                        Ok(())
                    }
                };
                answer(reply, taken);
            }
            Command::WatchPresence { reply } => {
                self.session.watch_presence(true);
                answer(reply, self.present.subscribe());
            }
            Command::Close { reply } => {
                self.closing.push(reply);
                self.session.close();
            }
        }
    }

    fn notice(&mut self, notice: Notice) {
        match notice {
            Notice::Accepted { seq, lsn } => {
                if let Some(progress) = self.mutations.get(&seq) {
                    progress.send_replace(Progress::Accepted(lsn));
                }
            }
            Notice::Durable { seq, lsn } => self.finish(seq, Progress::Durable(lsn)),
            Notice::Rejected { seq, lsn, reason } => {
                self.finish(seq, Progress::Failed(MutationError::Rejected { reason, lsn }));
            }
            Notice::Refused { seq, reason } => {
                self.finish(seq, Progress::Failed(MutationError::Refused { reason }));
            }
            Notice::Snapshot { sub } => {
                if let (Some(slot), Some(rows)) = (self.subscriptions.get(&sub), self.session.rows(sub)) {
                    slot.snapshot(rows);
                }
            }
            Notice::Delta { sub, at, changes } => {
                if let (Some(slot), Some(rows)) = (self.subscriptions.get(&sub), self.session.rows(sub)) {
                    slot.delta(at, changes, rows);
                }
            }
            Notice::Resubscribed { sub, error } => {
                tracing::warn!(client = %self.session.client(), sub, %error, "delta did not fit; subscribed anew");
            }
            Notice::SubscriptionFailed { sub, reason } => {
                if let Some(slot) = self.subscriptions.remove(&sub) {
                    slot.end(SubscriptionEnd::Failed(reason));
                }
            }
            Notice::Answer { id, rows } => {
                if let Some(reply) = self.queries.remove(&id) {
                    answer(reply, Ok(rows));
                }
            }
            Notice::QueryFailed { id, reason } => {
                if let Some(reply) = self.queries.remove(&id) {
                    answer(reply, Err(QueryError::Failed(reason)));
                }
            }
            Notice::Presence => {
                self.present.send_replace(self.session.present().clone());
                if self.present.receiver_count() == 0 {
                    self.session.watch_presence(false);
                }
            }
            Notice::Head { lsn } => {
                self.head.send_replace(lsn);
            }
            Notice::Status(status) => {
                self.told.send_replace(status);
            }
        }
    }

    fn finish(&mut self, seq: u64, progress: Progress) {
        if let Some(told) = self.mutations.remove(&seq) {
            told.send_replace(progress);
        }
    }

    /// Closes what nobody waits for any more.
    fn drop_abandoned(&mut self) {
        let session = &mut self.session;
        self.subscriptions.retain(|sub, slot| {
            let keep = !slot.is_abandoned();
            if !keep {
                session.unsubscribe(*sub);
            }
            keep
        });
        self.queries.retain(|id, reply| {
            let keep = !reply.is_closed();
            if !keep {
                session.forget_query(*id);
            }
            keep
        });
    }
}

/// Answers a handle; one that is gone needs no answer.
fn answer<T>(reply: oneshot::Sender<T>, value: T) {
    if reply.send(value).is_err() {
        tracing::trace!("the caller stopped waiting");
    }
}

fn random_id(rng: &mut StdRng) -> ClientId {
    let id = format!("{:032x}", rng.random::<u128>());
    ClientId::new(id).expect("32 hex digits keep the rule for client ids")
}

#[allow(clippy::disallowed_methods, reason = "a driver: it gives the session its clock")]
fn now_ms() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

/// The socket, if there is one.
enum Link {
    Down,
    Dialling(BoxFuture<'static, Result<Socket, DialError>>),
    Up { socket: Box<Socket>, outbox: VecDeque<String>, flushed: bool },
}

impl Link {
    /// Queues a frame. Reading goes on while it waits to be written, or two full pipes would wait for
    /// each other. The queue is bounded by what the session may have unanswered.
    fn send(&mut self, frame: String) {
        match self {
            Link::Up { outbox, .. } => outbox.push_back(frame),
            Link::Down | Link::Dialling(_) => {}
        }
    }

    /// The next event from the network; never, while there is no link. Writes meanwhile. Dropping the
    /// future loses nothing.
    async fn next(&mut self) -> Event {
        std::future::poll_fn(|cx| self.poll_next(cx)).await
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Event> {
        let event = match self {
            Link::Down => return Poll::Pending,
            Link::Dialling(dialling) => match ready!(dialling.poll_unpin(cx)) {
                Ok(socket) => {
                    let socket = Box::new(socket);
                    *self = Link::Up { socket, outbox: VecDeque::new(), flushed: true };
                    return Poll::Ready(Event::Opened);
                }
                Err(DialError::Declined(reason)) => Event::Declined(reason),
                Err(DialError::Failed(why)) => Event::Closed { why },
            },
            Link::Up { socket, outbox, flushed } => {
                let written = write(socket, outbox, flushed, cx);
                match written {
                    Ok(()) => match ready!(read(socket, cx)) {
                        Ok(text) => return Poll::Ready(Event::Frame(text)),
                        Err(why) => Event::Closed { why },
                    },
                    Err(error) => Event::Closed { why: error.to_string() },
                }
            }
        };
        *self = Link::Down;
        Poll::Ready(event)
    }

    async fn farewell_owned(mut self) {
        self.farewell().await;
    }

    /// Closes the socket politely, for a short time.
    async fn farewell(&mut self) {
        if let Link::Up { socket, .. } = self {
            let closed = tokio::time::timeout(FAREWELL_MAX, async {
                socket.as_mut().close(None).await?;
                while let Some(message) = socket.next().await {
                    message?;
                }
                Ok::<(), tungstenite::Error>(())
            });
            if let Ok(Err(error)) = closed.await {
                tracing::trace!(%error, "socket was gone before it was closed");
            }
        }
        *self = Link::Down;
    }
}

/// Writes what can be written now.
fn write(
    socket: &mut Socket,
    outbox: &mut VecDeque<String>,
    flushed: &mut bool,
    cx: &mut Context<'_>,
) -> Result<(), tungstenite::Error> {
    while !outbox.is_empty() {
        match Pin::new(&mut *socket).poll_ready_unpin(cx) {
            Poll::Ready(ready) => ready?,
            Poll::Pending => break,
        }
        if let Some(frame) = outbox.pop_front() {
            socket.start_send_unpin(Message::text(frame))?;
            *flushed = false;
        }
    }
    if !*flushed {
        match socket.poll_flush_unpin(cx) {
            Poll::Ready(done) => {
                done?;
                *flushed = true;
            }
            Poll::Pending => {}
        }
    }
    Ok(())
}

/// The next text frame, or why there will be none.
fn read(socket: &mut Socket, cx: &mut Context<'_>) -> Poll<Result<String, String>> {
    loop {
        return Poll::Ready(match ready!(socket.poll_next_unpin(cx)) {
            Some(Ok(Message::Text(text))) => Ok(text.as_str().to_owned()),
            Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => continue,
            Some(Ok(Message::Binary(_))) => Err("the server sent a binary frame".into()),
            Some(Ok(Message::Close(Some(close)))) if !close.reason.is_empty() => {
                Err(format!("the server closed the connection: {}", close.reason))
            }
            Some(Ok(Message::Close(_))) | None => Err("the server closed the connection".into()),
            Some(Err(error)) => Err(error.to_string()),
        });
    }
}
