//! Who is present, as a client session knows it: what it says of itself, and the last list.
//!
//! A state is said when it is set, after each `welcome`, and with every tick of the session's timer, which
//! is no longer than a third of the server's TTL then.
//!
//! Invariant: the view holds what the server said on this connection, and nobody while there is none.

use std::time::Duration;

use serde_json::Value;

use super::{CallError, ClientMessage, ClientSession, Effect, Notice, Reason, State};
use crate::presence;
use crate::protocol::Peer;

/// Who is present.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Present {
    /// Those who came first, first. Their states are whatever somebody sent.
    pub peers: Vec<Peer>,
    /// How many more there are than the server names.
    pub more: u64,
    /// The number of this client among them.
    pub me: Option<u64>,
    /// Whether the server has said so on this connection.
    pub known: bool,
    /// Why the server did not take what was set last; it is not tried again.
    pub refused: Option<Reason>,
}

/// The part of a session that is about presence.
#[derive(Debug, Default)]
pub(super) struct Presence {
    state: Option<Value>,
    watching: bool,
    ttl: Option<Duration>,
    view: Present,
}

impl Presence {
    /// The longest time until the state is to be said again. `None`: there is nothing to say.
    pub(super) fn refresh(&self) -> Option<Duration> {
        // Not so short that a server could keep this side busy.
        self.state.as_ref().and(self.ttl).map(|ttl| (ttl / 3).max(Duration::from_millis(50)))
    }
}

impl ClientSession {
    /// Says that this client is here, and what the others are to see, until it is cleared. Each call is one
    /// frame, and one that changes nothing is none.
    ///
    /// # Errors
    ///
    /// [`CallError::Ended`]; [`CallError::Presence`]: it is beyond the bounds, and what was set before holds.
    pub fn set_presence(&mut self, state: Value) -> Result<(), CallError> {
        self.check_open()?;
        presence::check(&state).map_err(CallError::Presence)?;
        if self.presence.state.as_ref() != Some(&state) {
            self.presence.state = Some(state);
            self.say_presence();
        }
        Ok(())
    }

    /// Says that this client is here no more.
    pub fn clear_presence(&mut self) {
        if self.presence.state.take().is_some() {
            self.send_if_live(ClientMessage::ClearPresence {}.to_json());
            self.show_presence(|view| (view.me, view.refused) = (None, None));
        }
    }

    /// Asks to be told who is here, or no more. [`Notice::Presence`] follows, now and after each change.
    pub fn watch_presence(&mut self, watching: bool) {
        if self.presence.watching == watching {
            return;
        }
        self.presence.watching = watching;
        let message =
            if watching { ClientMessage::WatchPresence {} } else { ClientMessage::UnwatchPresence {} };
        self.send_if_live(message.to_json());
        if !watching {
            self.show_presence(|view| (view.peers, view.more, view.known) = (Vec::new(), 0, false));
        }
    }

    /// Who is here.
    pub fn present(&self) -> &Present {
        &self.presence.view
    }

    pub(super) fn say_presence(&mut self) {
        if let Some(state) = self.presence.state.clone() {
            self.send_if_live(ClientMessage::SetPresence { state }.to_json());
        }
    }

    pub(super) fn greet_presence(&mut self) {
        if self.presence.watching {
            self.send_if_live(ClientMessage::WatchPresence {}.to_json());
        }
        self.say_presence();
    }

    pub(super) fn lose_presence(&mut self) {
        self.show_presence(|view| *view = Present::default());
    }

    pub(super) fn presence_listed(&mut self, peers: Vec<Peer>, more: u64) {
        // One that comes after it was unwatched was on its way.
        if self.presence.watching {
            self.show_presence(|view| (view.peers, view.more, view.known) = (peers, more, true));
        }
    }

    pub(super) fn presence_set(&mut self, id: u64, ttl_ms: u64) {
        self.presence.ttl = Some(Duration::from_millis(ttl_ms));
        let Some(refresh) = self.presence.refresh() else { return };
        self.show_presence(|view| (view.me, view.refused) = (Some(id), None));
        if let State::Live(live) = &mut self.state
            && !live.leaving
            && refresh < live.tick
        {
            live.tick = refresh;
            self.effects.push_back(Effect::SetTimer(refresh));
        }
    }

    pub(super) fn presence_refused(&mut self, reason: Reason) {
        self.presence.state = None;
        self.show_presence(|view| view.refused = Some(reason));
    }

    fn show_presence(&mut self, change: impl FnOnce(&mut Present)) {
        let before = self.presence.view.clone();
        change(&mut self.presence.view);
        if self.presence.view != before {
            self.notify(Notice::Presence);
        }
    }
}
