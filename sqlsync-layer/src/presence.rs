//! Who is connected to a volume: a list that lives in memory for as long as it is true. Never stored.
//!
//! ```text
//!           set               set, again: the TTL starts over
//! absent ----------> present ----------+
//!    ^                  |  ^-----------+
//!    +------------------+ clear, leave, or no set within the TTL
//! ```
//!
//! A connection that sets its state is one peer, with a number given here. A client id is never at two
//! places at a time, so a new connection of one takes over the peer that an older one left behind: who
//! reconnects keeps the number, and leaves no double behind.
//!
//! Whoever watches gets the whole list, and a new one after changes, at most one in each
//! [`PresenceLimits::interval_ms`]. It is encoded once for all. A list replaces the ones before it, so a
//! driver may drop a list that it has not sent yet for a newer one: a slow reader costs one list.
//!
//! The driver ([`Presence::handle`]) brings its clock, in ms from any beginning, that never goes back;
//! it calls with [`Input::Tick`] when [`Presence::deadline`] has come, and carries out the outputs. No
//! log, no ledger, no object store is within reach here.
//!
//! Invariants: states in the list keep both bounds of [`crate::protocol`]; a peer is there only while
//! its connection is, and for at most the TTL after its last `set`; only sessions that watch are sent
//! lists; a session is never sent a list twice.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;

use crate::actor::SessionId;
use crate::protocol::{
    ClientId, ClientMessage, PRESENCE_BYTES_MAX, PRESENCE_DEPTH_MAX, Peer, Reason, ServerMessage, codes,
};

/// Bounds of a volume's presence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PresenceLimits {
    /// A peer that does not set its state again within this time is gone, in ms.
    pub ttl_ms: u64,
    /// Lists are at least this far apart, in ms.
    pub interval_ms: u64,
    /// Peers in a list; of more, only their number is told.
    pub peers_max: usize,
}

impl Default for PresenceLimits {
    /// A page that is not looked at may get to run its timers once a minute: the TTL is longer.
    fn default() -> PresenceLimits {
        PresenceLimits { ttl_ms: 90_000, interval_ms: 100, peers_max: 64 }
    }
}

/// What happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    /// The session is here, or still here.
    Set {
        /// Which.
        session: SessionId,
        /// Who said hello on it.
        client: ClientId,
        /// What the others are to see.
        state: Value,
    },
    /// The session is here no more, but may watch on.
    Clear {
        /// Which.
        session: SessionId,
    },
    /// The session wants lists.
    Watch {
        /// Which.
        session: SessionId,
    },
    /// The session wants no more lists.
    Unwatch {
        /// Which.
        session: SessionId,
    },
    /// The connection is over.
    Leave {
        /// Which.
        session: SessionId,
    },
    /// Time has passed.
    Tick,
}

impl Input {
    /// What a message means here, of a session on which `client` said hello.
    ///
    /// # Errors
    ///
    /// The message itself, if it is not about presence: it is for the volume's actor.
    pub fn of(
        session: SessionId,
        client: &ClientId,
        message: ClientMessage,
    ) -> Result<Input, Box<ClientMessage>> {
        match message {
            ClientMessage::SetPresence { state } => Ok(Input::Set { session, client: client.clone(), state }),
            ClientMessage::ClearPresence {} => Ok(Input::Clear { session }),
            ClientMessage::WatchPresence {} => Ok(Input::Watch { session }),
            ClientMessage::UnwatchPresence {} => Ok(Input::Unwatch { session }),
            other @ (ClientMessage::Hello { .. }
            | ClientMessage::Mutate { .. }
            | ClientMessage::Subscribe { .. }
            | ClientMessage::Unsubscribe { .. }
            | ClientMessage::Query { .. }
            | ClientMessage::Ping { .. }) => Err(Box::new(other)),
        }
    }
}

/// What the driver is to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Output {
    /// Send this answer.
    Answer {
        /// To whom.
        session: SessionId,
        /// `presence_set` or `presence_error`.
        message: ServerMessage,
    },
    /// Send this list, in place of any that this session was not sent yet.
    List {
        /// To whom.
        session: SessionId,
        /// A `presence` message as JSON, shared by all who get it.
        frame: Arc<str>,
    },
}

#[derive(Debug)]
struct Present {
    session: SessionId,
    client: ClientId,
    state: Value,
    /// When it is gone unless it is set again.
    until: u64,
}

/// The state machine of one volume. See the module.
#[derive(Debug)]
pub struct Presence {
    limits: PresenceLimits,
    /// By number.
    peers: BTreeMap<u64, Present>,
    next_id: u64,
    /// Rises with each change that a list would show.
    version: u64,
    /// Who watches, and the version it was sent last.
    watchers: BTreeMap<SessionId, Option<u64>>,
    /// The last list encoded, its version and when that was.
    encoded: Option<(u64, u64, Arc<str>)>,
    /// No peer is gone before this.
    expiry: Option<u64>,
    outputs: Vec<Output>,
}

impl Presence {
    /// Nobody is here.
    pub fn new(limits: PresenceLimits) -> Presence {
        Presence {
            limits,
            peers: BTreeMap::new(),
            next_id: 1,
            version: 0,
            watchers: BTreeMap::new(),
            encoded: None,
            expiry: None,
            outputs: Vec::new(),
        }
    }

    /// Takes an input at `now_ms`. What is to be done then is in [`Presence::take_outputs`].
    ///
    /// Costs O(n) of the peers and watchers; encodes a list at most once in each interval.
    pub fn handle(&mut self, input: Input, now_ms: u64) {
        self.expire(now_ms);
        match input {
            Input::Set { session, client, state } => self.set(session, client, state, now_ms),
            Input::Clear { session } => self.clear(session),
            Input::Watch { session } => {
                self.watchers.entry(session).or_insert(None);
            }
            Input::Unwatch { session } => {
                self.watchers.remove(&session);
            }
            Input::Leave { session } => {
                self.clear(session);
                self.watchers.remove(&session);
            }
            Input::Tick => {}
        }
        self.publish(now_ms);
    }

    /// Takes what is to be done, in order.
    pub fn take_outputs(&mut self) -> Vec<Output> {
        std::mem::take(&mut self.outputs)
    }

    /// When [`Input::Tick`] is to come, in the clock of `handle`. `None`: not without another input.
    pub fn deadline(&self) -> Option<u64> {
        let owed = self.watchers.values().any(|seen| *seen != Some(self.version));
        let list = owed.then(|| self.next_list_at());
        match (list, self.expiry) {
            (Some(list), Some(expiry)) => Some(list.min(expiry)),
            (list, expiry) => list.or(expiry),
        }
    }

    fn set(&mut self, session: SessionId, client: ClientId, state: Value, now_ms: u64) {
        if let Err(reason) = check(&state) {
            let message = ServerMessage::PresenceError { reason };
            return self.outputs.push(Output::Answer { session, message });
        }
        let until = now_ms.saturating_add(self.limits.ttl_ms);
        let known = self.peers.iter_mut().find(|(_, peer)| peer.client == client);
        let id = match known {
            Some((id, peer)) => {
                if peer.state != state {
                    self.version += 1;
                }
                *peer = Present { session, client, state, until };
                *id
            }
            None => {
                let id = self.next_id;
                self.next_id += 1;
                self.peers.insert(id, Present { session, client, state, until });
                self.version += 1;
                id
            }
        };
        // An earlier expiry stands: it is looked at again then.
        self.expiry.get_or_insert(until);
        let message = ServerMessage::PresenceSet { id, ttl_ms: self.limits.ttl_ms };
        self.outputs.push(Output::Answer { session, message });
    }

    fn clear(&mut self, session: SessionId) {
        self.retain(|peer| peer.session != session);
    }

    fn expire(&mut self, now_ms: u64) {
        if self.expiry.is_none_or(|expiry| now_ms < expiry) {
            return;
        }
        self.retain(|peer| peer.until > now_ms);
        self.expiry = self.peers.values().map(|peer| peer.until).min();
    }

    fn retain(&mut self, keep: impl Fn(&Present) -> bool) {
        let before = self.peers.len();
        self.peers.retain(|_, peer| keep(peer));
        if self.peers.len() < before {
            self.version += 1;
        }
    }

    fn next_list_at(&self) -> u64 {
        self.encoded.as_ref().map_or(0, |(_, at, _)| at.saturating_add(self.limits.interval_ms))
    }

    /// Sends the list to whom it is due, if one may be encoded now or stands encoded.
    fn publish(&mut self, now_ms: u64) {
        if self.watchers.values().all(|seen| *seen == Some(self.version)) {
            return;
        }
        let stands = self.encoded.as_ref().filter(|(version, ..)| *version == self.version);
        let (frame, equal) = match stands {
            Some((_, _, frame)) => (frame.clone(), None),
            None if now_ms < self.next_list_at() => return,
            None => {
                let frame: Arc<str> = self.list().to_json().into();
                // Changes that were taken back in between are no news.
                let equal =
                    self.encoded.take().filter(|(_, _, before)| *before == frame).map(|(seen, ..)| seen);
                self.encoded = Some((self.version, now_ms, frame.clone()));
                (frame, equal)
            }
        };
        for (session, seen) in &mut self.watchers {
            let knows = seen.is_some() && (*seen == Some(self.version) || *seen == equal);
            *seen = Some(self.version);
            if !knows {
                self.outputs.push(Output::List { session: *session, frame: frame.clone() });
            }
        }
    }

    fn list(&self) -> ServerMessage {
        let shown = self.peers.iter().take(self.limits.peers_max);
        let peers: Vec<Peer> = shown.map(|(id, peer)| Peer { id: *id, state: peer.state.clone() }).collect();
        let more = (self.peers.len() - peers.len()) as u64;
        ServerMessage::Presence { peers, more }
    }
}

/// Whether a state keeps the bounds.
pub(crate) fn check(state: &Value) -> Result<(), Reason> {
    if !is_within(state, PRESENCE_DEPTH_MAX) {
        let message = format!("the state has more than {PRESENCE_DEPTH_MAX} levels; send a flatter one");
        return Err(Reason::new(codes::TOO_LARGE, message));
    }
    let bytes = crate::value::json(state).len();
    if bytes > PRESENCE_BYTES_MAX {
        let message =
            format!("the state has {bytes} bytes, at most {PRESENCE_BYTES_MAX} are accepted; send less");
        return Err(Reason::new(codes::TOO_LARGE, message));
    }
    Ok(())
}

/// Whether `value` has at most `levels` levels of arrays and objects.
fn is_within(value: &Value, levels: usize) -> bool {
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => true,
        Value::Array(items) => levels > 0 && items.iter().all(|item| is_within(item, levels - 1)),
        Value::Object(members) => levels > 0 && members.values().all(|member| is_within(member, levels - 1)),
    }
}

#[cfg(test)]
mod tests;
