//! One WebSocket of `/v1/volumes/{name}/sync`.
//!
//! Two tasks share a socket. The reader takes frames through [`ServerSession`] to the volume's worker,
//! and what they say of presence to the volume's hub; it waits while the outbox is over its bound and while too many of its messages are unhandled, so a
//! client that asks and never reads stops being read. The writer sends what the outbox holds, and
//! pings. Whoever ends first ends the other.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::ws::{CloseFrame, Message, WebSocket, close_code};
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt as _, StreamExt as _};
use graft::VolumeName;
use sqlsync_layer::actor::SessionId;
use sqlsync_layer::presence;
use sqlsync_layer::protocol::{ClientId, ClientMessage, Reason, ServerMessage, codes};
use sqlsync_layer::session::server::{ServerSession, Step};
use tokio::sync::{Semaphore, mpsc};
use tokio_tungstenite::tungstenite;
use tracing::Instrument as _;

use crate::SessionLimits;
use crate::outbox::{Outbox, Popped};
use crate::presence::Hub;
use crate::volumes::Lease;
use crate::worker::Work;

/// Turns of one session: its messages that may wait for the actor.
const TURNS: u32 = 64;

/// What a message that answers rows takes of them.
const TURNS_OF_ROWS: u32 = 16;

/// How long the last frames may take.
const FAREWELL_MAX: Duration = Duration::from_secs(5);

/// How long a client may take to close after its last frame.
const LINGER_MAX: Duration = Duration::from_secs(2);

/// Serves one socket to its end.
pub(crate) async fn serve(
    socket: WebSocket,
    session: SessionId,
    name: VolumeName,
    lease: Lease,
    limits: SessionLimits,
) {
    let span =
        tracing::info_span!("session", volume = %name, session = session.0, client = tracing::field::Empty);
    async {
        let (sink, stream) = socket.split();
        let outbox = Arc::new(Outbox::new(limits.outbox_bytes, limits.outbox_bytes_max));
        lease.register(session, outbox.clone());
        let writer = Writer { sink, session, outbox: outbox.clone(), worker: lease.worker().clone() };
        let mut writing = tokio::spawn(writer.run(limits.ping_every).in_current_span());
        let mut reader = Reader {
            stream,
            session,
            outbox: outbox.clone(),
            worker: lease.worker().clone(),
            protocol: ServerSession::default(),
            hub: lease.presence().clone(),
            turns: Arc::new(Semaphore::new(TURNS as usize)),
            client: None,
            limits,
        };
        let ended = tokio::select! {
            reason = reader.run() => reason,
            _ = &mut writing => None,
        };
        lease.presence().leave(session);
        if reader.client.is_some() && reader.worker.send(Work::Disconnect { session }).await.is_err() {
            tracing::debug!("the worker ended first");
        }
        lease.unregister(session);
        outbox.close(ended);
        let farewell = async {
            if !writing.is_finished() && tokio::time::timeout(FAREWELL_MAX, &mut writing).await.is_err() {
                tracing::debug!("the client does not take its last frames");
                writing.abort();
            }
        };
        // A socket that is closed with bytes unread is reset, and a client that is sending then may
        // never read what it was told last. So what it still sends is read, and dropped.
        let lingering = async {
            let unread = async { while let Some(Ok(_)) = reader.stream.next().await {} };
            if tokio::time::timeout(LINGER_MAX, unread).await.is_err() {
                tracing::debug!("the client does not close");
            }
        };
        tokio::join!(farewell, lingering);
    }
    .instrument(span)
    .await;
}

struct Reader {
    stream: SplitStream<WebSocket>,
    session: SessionId,
    outbox: Arc<Outbox>,
    worker: mpsc::Sender<Work>,
    protocol: ServerSession,
    hub: Arc<Hub>,
    turns: Arc<Semaphore>,
    /// Who said hello.
    client: Option<ClientId>,
    limits: SessionLimits,
}

/// What came from a socket.
enum Incoming {
    Text(String),
    Binary,
    Oversized,
    /// A ping, a pong.
    Alive,
    Gone,
    Silent,
}

impl Reader {
    /// Reads until the connection is over. Answers what the client is to be told, if anything.
    async fn run(&mut self) -> Option<Reason> {
        loop {
            let patience = match self.client {
                Some(_) => self.limits.silence_max,
                None => self.limits.hello_max,
            };
            if tokio::time::timeout(patience, self.outbox.room()).await.is_err() {
                tracing::info!("gave up a client that does not read");
                return Some(Reason::new(codes::LIMIT, "nothing was read for too long; connect again"));
            }
            let step = match self.incoming(patience).await {
                Incoming::Text(text) => self.protocol.frame(&text),
                Incoming::Binary => self.protocol.binary(),
                Incoming::Oversized => self.protocol.oversized(),
                Incoming::Alive => continue,
                Incoming::Gone => return None,
                Incoming::Silent => {
                    let message = format!("nothing was heard for {patience:?}; connect again");
                    return Some(Reason::new(codes::UNAVAILABLE, message));
                }
            };
            let work = match step {
                Step::Connect { client, known } => {
                    self.client = Some(client.clone());
                    tracing::Span::current().record("client", client.as_str());
                    Work::Connect { session: self.session, client, known, outbox: self.outbox.clone() }
                }
                Step::Receive(message) => {
                    let message = match self.presence(message) {
                        Ok(input) => {
                            if tokio::time::timeout(patience, self.outbox.greeted()).await.is_err() {
                                let message =
                                    format!("the volume did not greet in {patience:?}; connect again");
                                return Some(Reason::new(codes::UNAVAILABLE, message));
                            }
                            self.hub.say(self.session, input, &self.outbox);
                            continue;
                        }
                        Err(message) => *message,
                    };
                    let turns = match &message {
                        ClientMessage::Subscribe { .. } | ClientMessage::Query { .. } => TURNS_OF_ROWS,
                        ClientMessage::Hello { .. }
                        | ClientMessage::Mutate { .. }
                        | ClientMessage::Unsubscribe { .. }
                        | ClientMessage::SetPresence { .. }
                        | ClientMessage::ClearPresence {}
                        | ClientMessage::WatchPresence {}
                        | ClientMessage::UnwatchPresence {}
                        | ClientMessage::Ping { .. } => 1,
                    };
                    // The semaphore is never closed, so this waits and never fails.
                    let Ok(turn) = self.turns.clone().acquire_many_owned(turns).await else { return None };
                    Work::Receive { session: self.session, message, turn }
                }
                Step::Close(ServerMessage::Error { reason }) => {
                    tracing::info!(code = reason.code, message = reason.message, "closed");
                    return Some(reason);
                }
                Step::Close(_) | Step::Drop => return None,
            };
            if self.worker.send(work).await.is_err() {
                return Some(Reason::new(
                    codes::UNAVAILABLE,
                    "the volume failed and is opened anew; connect again",
                ));
            }
        }
    }

    /// What a message says of presence; or the message, for the worker.
    fn presence(&self, message: ClientMessage) -> Result<presence::Input, Box<ClientMessage>> {
        match &self.client {
            Some(client) => presence::Input::of(self.session, client, message),
            None => Err(Box::new(message)),
        }
    }

    async fn incoming(&mut self, patience: Duration) -> Incoming {
        match tokio::time::timeout(patience, self.stream.next()).await {
            Err(_elapsed) => Incoming::Silent,
            Ok(None) => Incoming::Gone,
            Ok(Some(Ok(Message::Text(text)))) => Incoming::Text(text.as_str().to_owned()),
            Ok(Some(Ok(Message::Binary(_)))) => Incoming::Binary,
            Ok(Some(Ok(Message::Ping(_) | Message::Pong(_)))) => Incoming::Alive,
            Ok(Some(Ok(Message::Close(_)))) => Incoming::Gone,
            Ok(Some(Err(error))) => {
                let inner = error.into_inner();
                match inner.downcast_ref::<tungstenite::Error>() {
                    Some(tungstenite::Error::Capacity(_)) => Incoming::Oversized,
                    Some(_) | None => {
                        tracing::debug!(error = %inner, "socket failed");
                        Incoming::Gone
                    }
                }
            }
        }
    }
}

struct Writer {
    sink: SplitSink<WebSocket, Message>,
    session: SessionId,
    outbox: Arc<Outbox>,
    worker: mpsc::Sender<Work>,
}

impl Writer {
    /// Writes until the outbox is closed or the socket fails.
    async fn run(mut self, ping_every: Duration) {
        let mut pings = tokio::time::interval_at(tokio::time::Instant::now() + ping_every, ping_every);
        loop {
            let mut next = tokio::select! {
                popped = self.outbox.pop() => Some(popped),
                _ = pings.tick() => {
                    if !self.feed(Message::Ping(Default::default())).await {
                        return;
                    }
                    None
                }
            };
            // Everything that waits goes out together.
            while let Some(popped) = next {
                match popped {
                    Popped::Frame { text, relieved } => {
                        if !self.feed(Message::text(text)).await {
                            return;
                        }
                        if relieved {
                            self.relieved().await;
                        }
                    }
                    Popped::Close(reason) => return self.farewell(reason).await,
                }
                next = self.outbox.try_pop();
            }
            if !self.flush().await {
                return;
            }
        }
    }

    async fn relieved(&self) {
        if self.worker.send(Work::Relieved { session: self.session }).await.is_err() {
            tracing::debug!("the worker ended first");
        }
    }

    /// Writes into the socket's buffer. Answers whether the socket still works.
    async fn feed(&mut self, message: Message) -> bool {
        let fed = self.sink.feed(message).await;
        fed.inspect_err(|error| tracing::debug!(%error, "socket failed")).is_ok()
    }

    async fn flush(&mut self) -> bool {
        let flushed = self.sink.flush().await;
        flushed.inspect_err(|error| tracing::debug!(%error, "socket failed")).is_ok()
    }

    async fn farewell(&mut self, reason: Option<Reason>) {
        let code = match &reason {
            None => close_code::NORMAL,
            Some(reason) if reason.code == codes::SHUTDOWN => close_code::AWAY,
            Some(_) => close_code::POLICY,
        };
        if let Some(reason) = reason
            && !self.feed(Message::text(ServerMessage::Error { reason }.to_json())).await
        {
            return;
        }
        let close = CloseFrame { code, reason: Default::default() };
        if self.feed(Message::Close(Some(close))).await
            && self.flush().await
            && let Err(error) = self.sink.close().await
        {
            tracing::debug!(%error, "socket was gone before it was closed");
        }
    }
}
