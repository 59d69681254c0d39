//! The bounded queue between a volume's actor and one socket.
//!
//! The actor's thread pushes and never waits. Above `bytes_soft` the pusher is told to hold rows back
//! ([`Pushed::Congested`]) and the socket's reader pauses; once the writer has emptied half of that it
//! says so ([`Popped::relieved`]). Above `bytes_max` the connection is given up.
//!
//! Beside the queue waits at most one list of who is present: a newer one takes its place in line.
//!
//! Invariant: nothing else is dropped from an open outbox, so a client never misses a delta unawares.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;
use sqlsync_layer::actor::Outgoing;
use sqlsync_layer::protocol::{Reason, ServerMessage};
use tokio::sync::{Notify, watch};

/// What became of a push.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pushed {
    /// Queued.
    Fits,
    /// Queued, and the queue is over its soft bound.
    Congested,
    /// The queue was over its hard bound: it is closed and emptied now.
    Overflow,
    /// It was closed before.
    Closed,
}

/// What the writer is to do.
#[derive(Debug)]
pub(crate) enum Popped {
    /// Send this frame; if `relieved`, the actor may send rows again.
    Frame { text: String, relieved: bool },
    /// Send this error, if any, and close.
    Close(Option<Reason>),
}

#[derive(Debug)]
enum Queued {
    Text(String),
    /// Rows that other sockets are sent too: encoded for this one only when it is its turn.
    Shared(Outgoing, usize),
}

#[derive(Debug, Default)]
struct State {
    queue: VecDeque<Queued>,
    bytes: usize,
    congested: bool,
    closed: Option<Option<Reason>>,
    /// How many were ever queued, and how many of those are gone.
    pushed: u64,
    popped: u64,
    list: Option<List>,
}

/// A list of who is present. Not counted in `bytes`: it is bounded, and there is one.
#[derive(Debug)]
struct List {
    frame: Arc<str>,
    /// It goes out once so many were popped.
    after: u64,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Outbox {
    state: Mutex<State>,
    bytes_soft: usize,
    bytes_max: usize,
    /// Wakes the writer.
    filled: Notify,
    /// Whether reading may go on; wakes the reader.
    room: watch::Sender<bool>,
    /// Whether the client's `welcome` is queued or gone.
    greeted: watch::Sender<bool>,
}

/// What an entry costs beside its text.
const ENTRY_BYTES: usize = 64;

impl Outbox {
    pub(crate) fn new(bytes_soft: usize, bytes_max: usize) -> Outbox {
        let (room, greeted) = (watch::Sender::new(true), watch::Sender::new(false));
        Outbox { state: Mutex::default(), bytes_soft, bytes_max, filled: Notify::new(), room, greeted }
    }

    pub(crate) fn push(&self, message: Outgoing) -> Pushed {
        let greets = matches!(message, Outgoing::Message(ServerMessage::Welcome { .. }));
        let queued = match message {
            Outgoing::Shared { ref body, .. } => {
                let bytes = body.len();
                Queued::Shared(message, bytes)
            }
            Outgoing::Message(message) => Queued::Text(message.to_json()),
        };
        let mut state = self.state.lock();
        if state.closed.is_some() {
            return Pushed::Closed;
        }
        state.bytes += queued.bytes();
        state.queue.push_back(queued);
        state.pushed += 1;
        let pushed = if state.bytes > self.bytes_max {
            state.queue.clear();
            state.list = None;
            state.bytes = 0;
            state.closed = Some(Some(Reason::new(
                sqlsync_layer::protocol::codes::LIMIT,
                format!(
                    "more than {} bytes were waiting for this client; read faster or subscribe to less",
                    self.bytes_max
                ),
            )));
            Pushed::Overflow
        } else if state.bytes > self.bytes_soft {
            state.congested = true;
            self.room.send_replace(false);
            Pushed::Congested
        } else {
            Pushed::Fits
        };
        drop(state);
        if greets {
            self.greeted.send_replace(true);
        }
        self.filled.notify_one();
        pushed
    }

    /// Puts a list of who is present in line, or in the place of the one that waits already.
    pub(crate) fn put_list(&self, frame: Arc<str>) {
        let mut state = self.state.lock();
        if state.closed.is_some() {
            return;
        }
        let after = state.list.as_ref().map_or(state.pushed, |list| list.after);
        state.list = Some(List { frame, after });
        drop(state);
        self.filled.notify_one();
    }

    /// Waits until the client has its `welcome`, or has it before whatever is queued from now on.
    pub(crate) async fn greeted(&self) {
        let mut greeted = self.greeted.subscribe();
        // The sender lives in `self`, so waiting cannot fail.
        drop(greeted.wait_for(|greeted| *greeted).await);
    }

    /// Whether rows are to be held back.
    pub(crate) fn is_congested(&self) -> bool {
        self.state.lock().congested
    }

    /// Ends it: what is queued still goes out, then `reason`, if any. The first reason counts.
    pub(crate) fn close(&self, reason: Option<Reason>) {
        self.state.lock().closed.get_or_insert(reason);
        self.filled.notify_one();
    }

    /// The next frame. For one writer.
    pub(crate) async fn pop(&self) -> Popped {
        loop {
            if let Some(popped) = self.try_pop() {
                return popped;
            }
            self.filled.notified().await;
        }
    }

    /// The next frame, if there is one now.
    pub(crate) fn try_pop(&self) -> Option<Popped> {
        let (queued, relieved) = {
            let mut state = self.state.lock();
            let popped = state.popped;
            if let Some(List { frame, .. }) = state.list.take_if(|list| list.after <= popped) {
                return Some(Popped::Frame { text: frame.as_ref().to_owned(), relieved: false });
            }
            let Some(queued) = state.queue.pop_front() else {
                return state.closed.clone().map(Popped::Close);
            };
            state.popped += 1;
            state.bytes -= queued.bytes();
            let relieved = state.congested && state.bytes <= self.bytes_soft / 2;
            if relieved {
                state.congested = false;
                self.room.send_replace(true);
            }
            (queued, relieved)
        };
        let text = match queued {
            Queued::Text(text) => text,
            Queued::Shared(message, _) => message.to_json(),
        };
        Some(Popped::Frame { text, relieved })
    }

    /// Waits until the socket may be read.
    pub(crate) async fn room(&self) {
        let mut room = self.room.subscribe();
        // The sender lives in `self`, so waiting cannot fail.
        drop(room.wait_for(|room| *room).await);
    }
}

impl Queued {
    fn bytes(&self) -> usize {
        ENTRY_BYTES
            + match self {
                Queued::Text(text) => text.len(),
                Queued::Shared(_, bytes) => *bytes,
            }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use graft::Lsn;
    use sqlsync_layer::protocol::{At, ServerMessage};

    use super::*;

    fn pong(n: u64) -> Outgoing {
        Outgoing::Message(ServerMessage::Pong { n })
    }
    fn rows(bytes: usize) -> Outgoing {
        let at = At { epoch: 0, lsn: Lsn(1), seq: 0 };
        Outgoing::Shared {
            kind: "delta",
            sub: 1,
            at,
            body: Arc::from(format!(r#""x":"{}""#, "x".repeat(bytes))),
        }
    }

    #[tokio::test]
    async fn frames_come_out_in_order_and_the_close_last() {
        let outbox = Outbox::new(1000, 10_000);
        assert_eq!(outbox.push(pong(1)), Pushed::Fits);
        assert_eq!(outbox.push(rows(3)), Pushed::Fits);
        let reason = Reason::new("shutdown", "bye");
        outbox.close(Some(reason.clone()));
        outbox.close(None);
        assert_eq!(outbox.push(pong(2)), Pushed::Closed);
        let Popped::Frame { text, .. } = outbox.pop().await else { panic!() };
        assert_eq!(text, r#"{"type":"pong","n":1}"#);
        let Popped::Frame { text, .. } = outbox.pop().await else { panic!() };
        assert_eq!(text, r#"{"type":"delta","sub":1,"epoch":0,"lsn":1,"seq":0,"x":"xxx"}"#);
        let Popped::Close(found) = outbox.pop().await else { panic!() };
        assert_eq!(found, Some(reason));
    }

    #[tokio::test]
    async fn a_full_queue_stops_reading_until_half_is_gone() {
        let outbox = Outbox::new(1000, 10_000);
        assert_eq!(outbox.push(rows(900)), Pushed::Fits);
        assert_eq!(outbox.push(rows(100)), Pushed::Congested);
        assert_eq!(outbox.push(pong(1)), Pushed::Congested, "acknowledgements still fit");
        assert!(outbox.is_congested());
        assert!(!*outbox.room.borrow());
        let Popped::Frame { relieved: true, .. } = outbox.pop().await else { panic!() };
        assert!(!outbox.is_congested());
        outbox.room().await;
        let Popped::Frame { relieved: false, .. } = outbox.pop().await else { panic!() };
    }

    /// However many lists come while the client does not read, one waits, where the first one was.
    #[tokio::test]
    async fn one_list_waits_in_its_place_and_it_is_the_newest() {
        let outbox = Outbox::new(1000, 10_000);
        outbox.push(pong(1));
        for n in 0..1000 {
            outbox.put_list(format!("list {n}").into());
        }
        outbox.push(pong(2));
        outbox.put_list("newest".into());
        let mut frames = Vec::new();
        while let Some(Popped::Frame { text, .. }) = outbox.try_pop() {
            frames.push(text);
        }
        assert_eq!(frames, [r#"{"type":"pong","n":1}"#, "newest", r#"{"type":"pong","n":2}"#]);
        outbox.put_list("last".into());
        outbox.close(None);
        outbox.put_list("too late".into());
        assert!(matches!(outbox.pop().await, Popped::Frame { text, .. } if text == "last"));
        assert!(matches!(outbox.pop().await, Popped::Close(None)));
    }

    #[tokio::test]
    async fn beyond_the_hard_bound_the_connection_is_given_up() {
        let outbox = Outbox::new(1000, 10_000);
        outbox.push(rows(9000));
        assert_eq!(outbox.push(rows(1000)), Pushed::Overflow);
        let Popped::Close(Some(reason)) = outbox.pop().await else { panic!() };
        assert_eq!(reason.code, "limit");
    }
}
