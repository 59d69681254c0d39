//! Driving the clients: their sessions' events and effects, their apps, and the checks that need no
//! oracle: what is called durable is stored, nothing is answered twice, no money is made.

use futures::executor::block_on;
use graft::format::commit::Head;
use graft::format::tombstone::Tombstone;
use graft::{Lsn, key};
use sqlsync_layer::payload::{Op, Outcome, Payload};
use sqlsync_layer::protocol::{ClientMessage, Seed, WireRow, codes};
use sqlsync_layer::session::client::{
    ClientSession, ClientState, Effect, Event as SessionEvent, Notice, Status,
};
use sqlsync_layer::session::rows::Rows;

use super::{DocumentEvent, Event, Owner, VOLUME, World, writer_asker};
use crate::sim::bank::{self, Ask};
use crate::sim::clients::{self, SUBSCRIPTIONS_MAX};
use crate::sim::coordinators::Stage;
use crate::sim::disks::Crash;
use crate::sim::plant::Plant;
use crate::sim::truth::{Made, Told, rows_text};
use crate::sim::writers::Run;

/// After the storm, for this long, clients may still hear of its failures: frames take their time.
const AFTERMATH_MS: u64 = 20_000;

impl World {
    /// Feeds a session and carries out what it asks for.
    pub(super) fn event(&mut self, at: usize, event: SessionEvent) {
        let client = &mut self.clients[at];
        let random = client.random.draw() as u32;
        client.session.handle(event, random);
        self.effects(at);
    }

    pub(super) fn effects(&mut self, at: usize) {
        while let Some(effect) = self.clients[at].session.next_effect() {
            match effect {
                Effect::Dial => self.dial(at),
                Effect::Hangup => {
                    let client = &mut self.clients[at];
                    (client.dialling, client.live) = (false, false);
                    if let Some(conn) = client.conn.take() {
                        self.hang_up(conn, false);
                    }
                }
                Effect::Send(text) => {
                    let text = self.renumbered(at, text);
                    if let Some(conn) = self.clients[at].conn {
                        self.send_up(conn, text);
                    }
                }
                Effect::SetTimer(wait) => {
                    let client = &mut self.clients[at];
                    client.timer += 1;
                    let (life, timer) = (client.life, client.timer);
                    let wait = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX / 2);
                    self.queue.after(wait, Event::Timer { client: at, life, timer });
                }
                Effect::Notify(notice) => self.notice(at, notice),
            }
        }
    }

    /// The plant that gives a mutation another seq when it is sent again.
    fn renumbered(&mut self, at: usize, text: String) -> String {
        if self.plant != Some(Plant::ResendRenumbers) {
            return text;
        }
        let client = &mut self.clients[at];
        match ClientMessage::from_json(&text) {
            Ok(ClientMessage::Mutate { seq, reducer, args, clock, seed }) => {
                let again = seq <= client.sent;
                client.sent = client.sent.max(seq);
                let seq = seq + u64::from(again);
                ClientMessage::Mutate { seq, reducer, args, clock, seed }.to_json()
            }
            Ok(_) | Err(_) => text,
        }
    }

    fn dial(&mut self, at: usize) {
        let client = &mut self.clients[at];
        client.dialling = true;
        client.dials += 1;
        let (life, dial) = (client.life, client.dials);
        let delay = self.random.between(2, 60);
        self.queue.after(delay, Event::Dialled { client: at, life, dial });
    }

    pub(super) fn dialled(&mut self, at: usize, life: u64, dial: u64) {
        let client = &mut self.clients[at];
        if (client.life, client.dials) != (life, dial) || !std::mem::replace(&mut client.dialling, false) {
            return;
        }
        let node = match self.alone {
            Some(alone) => alone,
            None => self.random.index(self.nodes.len()),
        };
        let node = self.route(node);
        let offline = self.document_of(at).is_some_and(|document| self.cast.documents[document].offline);
        let refused = offline || (self.storm && self.random.chance(0.1));
        let answers = !self.nodes[node].isolated && self.nodes[node].frozen_until <= self.queue.now();
        let up = answers && matches!(self.nodes[node].stage, Stage::Up(_)) && !self.nodes[node].draining;
        if refused || !up {
            return self.event(at, SessionEvent::Closed { why: "simulated: connection refused".into() });
        }
        let conn = self.network.connect((at, life), (node, self.nodes[node].life));
        self.clients[at].conn = Some(conn);
        self.note(format!("client {at} reached coordinator {node}"));
        self.event(at, SessionEvent::Opened);
    }

    pub(super) fn timer(&mut self, at: usize, life: u64, timer: u64) {
        if (self.clients[at].life, self.clients[at].timer) == (life, timer) {
            self.event(at, SessionEvent::Timer);
        }
    }

    pub(super) fn start_client(&mut self, at: usize) {
        if self.clients[at].conn.is_none() {
            self.clients[at].session.start();
            self.effects(at);
        }
    }

    /// A client's process dies; its next one goes on from what it kept.
    pub(super) fn restart_client(&mut self, at: usize) {
        if let Some(document) = self.document_of(at) {
            let how = if self.random.chance(0.5) { Crash::Kept } else { Crash::PowerCut };
            return self.crash_document(document, how);
        }
        let client = &mut self.clients[at];
        let kept = serde_json::to_string(&client.session.state());
        client.life += 1;
        (client.dialling, client.live) = (false, false);
        client.subscriptions.clear();
        client.unanswered.clear();
        client.questions.clear();
        let conn = client.conn.take();
        self.note(format!("client {at} restarts"));
        if let Some(conn) = conn {
            self.hang_up(conn, true);
        }
        let state = kept.and_then(|text| serde_json::from_str::<ClientState>(&text));
        let restored = state
            .map_err(|error| error.to_string())
            .and_then(|state| ClientSession::restore(state, clients::config()).map_err(|e| e.to_string()));
        match restored {
            Ok(session) => {
                self.clients[at].session = session;
                let delay = self.random.between(1, 2_000);
                self.queue.after(delay, Event::StartClient(at));
            }
            Err(error) => self.violate(format!("client {at} cannot go on from its own state: {error}")),
        }
    }

    /// The app does something, and will again.
    pub(super) fn client_acts(&mut self, at: usize) {
        if !self.storm {
            return;
        }
        let pause = self.clients[at].random.between(10, self.profile.pause_ms);
        self.queue.after(pause, Event::ClientActs(at));
        match self.clients[at].random.below(100) {
            0..65 => self.mutate(at),
            65..70 => (0..8).for_each(|_| self.mutate(at)),
            70..85 => self.subscribe_or_not(at),
            _ => self.ask(at),
        }
    }

    /// One random mutation.
    pub(super) fn mutate(&mut self, at: usize) {
        self.tags += 1;
        let (tag, now) = (self.tags, self.now_ms());
        let client = &mut self.clients[at];
        let (reducer, args) = bank::random_mutation(&mut client.random, tag);
        let (clock, seed) = (now + client.skew, Seed(client.random.draw()));
        let at_ms = self.queue.now();
        let made = Made { reducer: reducer.clone(), args: args.clone(), clock, seed, at: at_ms };
        match client.session.mutate(reducer, args, clock, seed) {
            Ok(seq) => {
                self.note(format!("client {at} makes {seq}: {} {:?}", made.reducer, made.args));
                self.summary.made += 1;
                if self.truth.made[at].insert(seq, made).is_some() {
                    self.violate(format!("client {at} gave seq {seq} to two mutations"));
                }
            }
            Err(error) => self.note(format!("client {at} cannot mutate: {error}")),
        }
        self.effects(at);
    }

    fn subscribe_or_not(&mut self, at: usize) {
        let client = &mut self.clients[at];
        if client.subscriptions.len() >= SUBSCRIPTIONS_MAX {
            let nth = client.random.index(client.subscriptions.len());
            if let Some(sub) = client.subscriptions.keys().nth(nth).copied() {
                client.subscriptions.remove(&sub);
                client.unanswered.remove(&sub);
                client.session.unsubscribe(sub);
            }
        } else {
            let ask = Ask::random(&mut client.random);
            match client.session.subscribe(ask.sql().into(), ask.params(), ask.key()) {
                Ok(sub) => {
                    client.subscriptions.insert(sub, ask);
                    client.unanswered.insert(sub, ask);
                }
                Err(error) => self.violate(format!("client {at} cannot subscribe: {error}")),
            }
        }
        self.effects(at);
    }

    fn ask(&mut self, at: usize) {
        let client = &mut self.clients[at];
        let ask = Ask::random(&mut client.random);
        match client.session.query(ask.sql().into(), ask.params()) {
            Ok(id) => {
                client.questions.insert(id, ask);
            }
            Err(error) => self.violate(format!("client {at} cannot ask: {error}")),
        }
        self.effects(at);
    }

    /// What an app is told.
    fn notice(&mut self, at: usize, notice: Notice) {
        match notice {
            Notice::Accepted { seq, .. } => {
                if !self.has_made(at, seq) {
                    self.violate(format!("client {at} was told of seq {seq}, which it never made"));
                }
            }
            Notice::Durable { seq, lsn } => self.told(at, seq, Told::Durable(lsn)),
            Notice::Rejected { seq, lsn, reason } => {
                self.note(format!("client {at}: {seq} was rejected: {reason:?}"));
                self.told(at, seq, Told::Rejected(lsn));
            }
            Notice::Refused { seq, reason } => {
                self.violate(format!("client {at}: mutation {seq} was refused: {reason:?}"));
            }
            Notice::Snapshot { sub } | Notice::Delta { sub, .. } => {
                let Some(ask) = self.clients[at].subscriptions.get(&sub).copied() else { return };
                self.clients[at].unanswered.remove(&sub);
                if let Some(rows) = self.clients[at].session.rows(sub).cloned() {
                    self.show(at, ask, &rows);
                }
            }
            Notice::Resubscribed { sub, error } => {
                self.violate(format!("client {at}: a delta of subscription {sub} did not fit: {error}"));
            }
            Notice::SubscriptionFailed { sub, reason } => {
                self.violate(format!("client {at}: subscription {sub} failed: {reason:?}"));
            }
            Notice::Answer { id, rows } => {
                if let Some(ask) = self.clients[at].questions.remove(&id) {
                    self.show(at, ask, &rows);
                }
            }
            Notice::QueryFailed { id, reason } => {
                self.clients[at].questions.remove(&id);
                let expected = self.storm || self.queue.now() < self.calm_since + AFTERMATH_MS;
                let flipped = reason.code == codes::DAMAGED && self.profile.weather.flip > 0.0;
                if !(flipped || reason.code == codes::UNAVAILABLE) || !expected {
                    self.violate(format!("client {at}: question {id} failed: {reason:?}"));
                }
            }
            Notice::Head { .. } => {
                if let Some(document) = self.document_of(at) {
                    let delay = self.random.between(1, 20);
                    self.queue.after(delay, Event::Document(DocumentEvent::Woken(document)));
                }
            }
            // Nobody asks.
            Notice::Presence => {}
            Notice::Status(status) => self.status(at, status),
        }
    }

    fn status(&mut self, at: usize, status: Status) {
        match status {
            Status::Live { .. } => {
                let client = &mut self.clients[at];
                client.live = true;
                client.unanswered = client.subscriptions.clone();
            }
            Status::Connecting => self.clients[at].live = false,
            Status::Offline { error, .. } => {
                self.clients[at].live = false;
                self.note(format!("client {at} is offline: {error}"));
            }
            Status::Ended(end) => self.violate(format!("the session of client {at} ended: {end}")),
        }
    }

    /// A final answer: given once, of a mutation that was made, and true already.
    pub(super) fn told(&mut self, at: usize, seq: u64, told: Told) {
        let (lsn, applied) = match told {
            Told::Durable(lsn) => (lsn, true),
            Told::Rejected(lsn) => (lsn, false),
        };
        if !self.has_made(at, seq) {
            self.violate(format!("client {at} was told of seq {seq}, which it never made"));
        }
        // A document hears it from its session and from the log, and again after a restart.
        let may_repeat = self.document_of(at).is_some();
        let before = self.truth.told[at].insert(seq, told);
        if let Some(before) = before.filter(|before| !may_repeat || *before != told) {
            self.violate(format!("client {at} was told twice how {seq} ended: {before:?}, then {told:?}"));
        }
        if !self.is_recorded(at, seq, lsn, applied) {
            self.violate(format!("client {at} was told {told:?} of {seq}, and the store does not hold that"));
        }
    }

    fn has_made(&self, at: usize, seq: u64) -> bool {
        match self.document_of(at) {
            Some(document) => self.cast.documents[document].papers.lock().made.contains_key(&seq),
            None => self.truth.made[at].contains_key(&seq),
        }
    }

    /// Whether the store holds this outcome now.
    fn is_recorded(&self, at: usize, seq: u64, lsn: Lsn, applied: bool) -> bool {
        use futures::FutureExt as _;
        use graft::remote::Remote as _;
        let log_key = key::log(VOLUME, lsn);
        let buried = || {
            let bottom = block_on(graft::gc::bottom::bottom(&*self.objects, VOLUME));
            bottom.is_ok_and(|bottom| lsn <= bottom.lsn).then(|| self.bucket.archived(&log_key))
        };
        // Below the bottom there may be nothing, or what came too late.
        let mut body = match (buried(), self.objects.get(&log_key).now_or_never()) {
            (Some(Some(before)), _) => before,
            (None, Some(Ok(body))) => body,
            (Some(None), _) | (None, Some(Err(_)) | None) => return false,
        };
        if Tombstone::is_one(&body) {
            // Collected already: what it was, we remember. The oracle compares the two.
            let Some(before) = self.bucket.archived(&log_key) else { return false };
            body = before;
        }
        let Ok(head) = Head::decode(VOLUME, lsn, &body) else { return false };
        let Ok(payload) = Payload::decode(&head) else { return false };
        let id = clients::id(at);
        payload.records.iter().any(|record| match &record.op {
            Op::Mutation(mutation) => {
                mutation.client == id
                    && mutation.seq == seq
                    && applied == (record.outcome == Outcome::Applied)
            }
            Op::Deploy { .. } => false,
        })
    }

    /// Rows that an app sees.
    fn show(&mut self, at: usize, ask: Ask, rows: &Rows) {
        let content: &[WireRow] = rows.rows();
        if let Err(wrong) = ask.check(content) {
            self.violate(format!("client {at} was shown what can never be: {wrong}"));
        }
        self.truth.show(at, ask, rows.at(), rows_text(content));
    }

    /// Somebody runs SQL beside the coordinators.
    pub(super) fn writer_acts(&mut self, at: usize) {
        if !self.storm {
            return;
        }
        let pause = self.random.between(200, self.profile.writer_pause_ms);
        self.queue.after(pause, Event::WriterActs(at));
        if self.writers[at].1 {
            return;
        }
        self.writers[at].1 = true;
        let texts = if self.profile.rough && self.random.chance(0.4) {
            bank::large_direct(&mut self.random)
        } else {
            bank::random_direct(&mut self.random)
        };
        let short: String = texts.concat().chars().take(100).collect();
        self.note(format!("writer {at} runs {short}"));
        let run = Run {
            remote: self.bucket.handle(writer_asker(at)),
            volume: VOLUME,
            desk: self.writers[at].0.clone(),
            texts,
            random: self.random.fork(),
            now_ms: self.some_clock(),
            later: self.random.chance(0.3),
            blind: self.plant == Some(Plant::BlindMerge),
        };
        self.spawn(Owner::Writer(at), async move { super::Done::Writer(run.run().await) });
    }

    /// A writer's process dies.
    pub(super) fn crash_writer(&mut self, at: usize) {
        if std::mem::replace(&mut self.writers[at].1, false) {
            self.note(format!("writer {at} crashes"));
            self.bucket.crash(writer_asker(at));
            self.tasks.cancel(Owner::Writer(at));
        }
        let how = Crash::random(&mut self.random);
        self.note(format!("the disk of writer {at}: {how:?}"));
        self.writers[at].0.crash(how);
        self.summary.power_cuts += u64::from(how != Crash::Kept && self.writers[at].0.disk().is_some());
    }
}
