//! Drives [`sqlsync_layer::presence`] for one volume: its clock, its one timer, its way to the outboxes.
//!
//! Presence does not go through the volume's worker: a commit that takes long holds up no list, and a
//! list no commit. Its answers are queued like everything else for a socket; of lists an outbox keeps one.
//!
//! Invariants: nothing here reaches the object store; a hub without sessions has no timer.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use sqlsync_layer::actor::{Outgoing, SessionId};
use sqlsync_layer::presence::{Input, Output, Presence, PresenceLimits};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::outbox::{Outbox, Pushed};

/// Who is connected to one volume.
#[derive(Debug)]
pub(crate) struct Hub {
    /// The beginning of the machine's clock.
    started: Instant,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    presence: Presence,
    /// Of the sessions that have said anything about presence.
    outboxes: HashMap<SessionId, Arc<Outbox>>,
    alarm: Option<Alarm>,
}

/// A tick to come.
#[derive(Debug)]
struct Alarm {
    at: u64,
    task: JoinHandle<()>,
}

impl Drop for Alarm {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Hub {
    pub(crate) fn new(limits: PresenceLimits) -> Arc<Hub> {
        let presence = Presence::new(limits);
        let state = Mutex::new(State { presence, outboxes: HashMap::new(), alarm: None });
        Arc::new(Hub { started: Instant::now(), state })
    }

    /// Takes what a session said. `outbox` is its own.
    pub(crate) fn say(self: &Arc<Self>, session: SessionId, input: Input, outbox: &Arc<Outbox>) {
        let mut state = self.state.lock();
        state.outboxes.entry(session).or_insert_with(|| outbox.clone());
        self.handle(&mut state, input);
    }

    /// Takes that a session is over. One that never said anything is no error.
    pub(crate) fn leave(self: &Arc<Self>, session: SessionId) {
        let mut state = self.state.lock();
        if state.outboxes.remove(&session).is_some() {
            self.handle(&mut state, Input::Leave { session });
        }
    }

    fn handle(self: &Arc<Self>, state: &mut State, input: Input) {
        state.presence.handle(input, self.now_ms());
        for output in state.presence.take_outputs() {
            match output {
                Output::Answer { session, message } => {
                    let Some(outbox) = state.outboxes.get(&session) else { continue };
                    match outbox.push(Outgoing::Message(message)) {
                        // Over its bound the session is not read, so it cannot ask for more answers.
                        Pushed::Fits | Pushed::Congested => {}
                        // Its end is on its way to `leave`.
                        Pushed::Overflow | Pushed::Closed => {}
                    }
                }
                Output::List { session, frame } => {
                    if let Some(outbox) = state.outboxes.get(&session) {
                        outbox.put_list(frame);
                    }
                }
            }
        }
        self.arm(state);
    }

    /// Sees to it that a tick comes no later than the machine wants it. One that comes early asks again.
    fn arm(self: &Arc<Self>, state: &mut State) {
        let Some(at) = state.presence.deadline() else {
            state.alarm = None;
            return;
        };
        if state.alarm.as_ref().is_some_and(|alarm| alarm.at <= at) {
            return;
        }
        let (hub, when) = (Arc::downgrade(self), self.started + Duration::from_millis(at));
        let task = tokio::spawn(async move {
            tokio::time::sleep_until(when).await;
            Hub::ring(&hub);
        });
        state.alarm = Some(Alarm { at, task });
    }

    fn ring(hub: &Weak<Hub>) {
        let Some(hub) = hub.upgrade() else { return };
        let mut state = hub.state.lock();
        // Another may have been set in its place while it waited for the lock; that one rings too.
        if state.alarm.as_ref().is_some_and(|alarm| alarm.at <= hub.now_ms()) {
            state.alarm = None;
        }
        hub.handle(&mut state, Input::Tick);
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}
