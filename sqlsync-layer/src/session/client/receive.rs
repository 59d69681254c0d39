//! What each of the server's messages does to a client session.

use std::time::Duration;

use super::{
    At, Changes, ClientMessage, ClientSession, DeltaError, Effect, Live, Lsn, MISFITS_MAX, ModuleHash,
    Notice, PROTOCOL, Reason, Rows, SEQ_MAX, ServerMessage, SessionEnd, State, Status, VolumeId, WireRow,
    codes,
};

/// What a code in `refused` or `error` means for the session.
enum Meaning {
    /// Passing: connect again and resend.
    Passing,
    /// The mutation was applied once; only its outcome is gone.
    Forgotten,
    /// Nothing after it can succeed.
    Fatal,
}

fn meaning(code: &str) -> Meaning {
    match code {
        // In order and within the window, a gap means that the server did not take an earlier one.
        codes::SEQ_GAP
        | codes::TOO_MANY_IN_FLIGHT
        | codes::UNAVAILABLE
        | codes::SHUTDOWN
        | codes::DAMAGED => Meaning::Passing,
        codes::SEQ_FORGOTTEN => Meaning::Forgotten,
        // Not recorded, so the server would call everything after it a gap. Codes of later versions
        // end the session too: guessing could lose a mutation.
        _other => Meaning::Fatal,
    }
}

struct Welcome {
    protocol: u32,
    volume: VolumeId,
    at: At,
    module: Option<ModuleHash>,
    max_in_flight: u64,
}

impl ClientSession {
    pub(super) fn frame(&mut self, text: &str, random: u32) {
        match &mut self.state {
            State::Greeting => {}
            State::Live(live) => live.heard = true,
            State::Idle | State::Offline { .. } | State::Ended(_) => return,
        }
        match ServerMessage::from_json(text) {
            Ok(message) => self.message(message, random),
            Err(error) => self.hang_up(format!("the server sent a {error}"), random),
        }
    }

    fn message(&mut self, message: ServerMessage, random: u32) {
        let live = matches!(self.state, State::Live(_));
        // The server's first word is `welcome` or `error`; anything else is not our protocol.
        match message {
            ServerMessage::Welcome { protocol, volume, at, module, max_in_flight } if !live => {
                self.welcome(Welcome { protocol, volume, at, module, max_in_flight });
            }
            ServerMessage::Error { reason } => self.server_error(reason, random),
            ServerMessage::Welcome { .. } => self.hang_up("the server sent a second welcome".into(), random),
            ServerMessage::Accepted { .. }
            | ServerMessage::Durable { .. }
            | ServerMessage::Rejected { .. }
            | ServerMessage::Refused { .. }
            | ServerMessage::Snapshot { .. }
            | ServerMessage::Delta { .. }
            | ServerMessage::SubscriptionError { .. }
            | ServerMessage::Rows { .. }
            | ServerMessage::QueryError { .. }
            | ServerMessage::Presence { .. }
            | ServerMessage::PresenceSet { .. }
            | ServerMessage::PresenceError { .. }
            | ServerMessage::Head { .. }
            | ServerMessage::Pong { .. }
                if !live =>
            {
                self.hang_up("the server spoke before its welcome".into(), random);
            }
            ServerMessage::Refused { seq, reason } => self.refused(seq, reason, random),
            ServerMessage::Accepted { seq, lsn } => self.accepted(seq, lsn, random),
            ServerMessage::Durable { seq, lsn } => self.settle(seq, Notice::Durable { seq, lsn }, random),
            ServerMessage::Rejected { seq, lsn, reason } => {
                self.settle(seq, Notice::Rejected { seq, lsn, reason }, random);
            }
            ServerMessage::Snapshot { sub, at, columns, key, rows } => {
                self.attempt = 0;
                self.snapshot(sub, Rows::new(columns, key, rows, at), random);
            }
            ServerMessage::Delta { sub, at, changes } => {
                self.attempt = 0;
                self.delta(sub, at, changes);
            }
            ServerMessage::SubscriptionError { sub, reason } => {
                self.subscription_error(sub, reason, random);
            }
            ServerMessage::Rows { id, at, columns, rows } => {
                self.attempt = 0;
                self.answer(id, at, columns, rows);
            }
            ServerMessage::QueryError { id, reason } => {
                self.attempt = 0;
                if self.queries.remove(&id).is_some() {
                    self.notify(Notice::QueryFailed { id, reason });
                }
            }
            ServerMessage::Presence { peers, more } => {
                self.attempt = 0;
                self.presence_listed(peers, more);
            }
            ServerMessage::PresenceSet { id, ttl_ms } => {
                self.attempt = 0;
                self.presence_set(id, ttl_ms);
            }
            ServerMessage::PresenceError { reason } => self.presence_refused(reason),
            ServerMessage::Head { lsn } => self.notify(Notice::Head { lsn }),
            ServerMessage::Pong { n: _ } => self.attempt = 0,
        }
    }

    fn welcome(&mut self, welcome: Welcome) {
        if welcome.protocol != PROTOCOL {
            return self.end(SessionEnd::Protocol { chosen: welcome.protocol });
        }
        if let Some(was) = self.volume.filter(|was| *was != welcome.volume) {
            return self.end(SessionEnd::VolumeChanged { was, now: welcome.volume });
        }
        let server = welcome.at.seq;
        if server > SEQ_MAX {
            let message = format!("the server's welcome names seq {server}, beyond any that can be made");
            return self.end(SessionEnd::Server(Reason::new(codes::BAD_MESSAGE, message)));
        }
        let next_seq = match self.next_seq {
            Some(next_seq) => next_seq,
            None => {
                self.settled = server;
                server + 1
            }
        };
        if server < self.settled {
            return self.end(SessionEnd::HistoryLost { settled: self.settled, server });
        }
        if server >= next_seq {
            let client = self.client.clone();
            return self.end(SessionEnd::ClonedClient { client, made: next_seq - 1, server });
        }
        self.next_seq = Some(next_seq);
        self.volume = Some(welcome.volume);
        if self.since == Lsn::ZERO || next_seq == 1 {
            self.since = welcome.at.lsn.max(Lsn(1));
        }
        self.state = State::Live(Live {
            sent: 0,
            in_flight: 0,
            max_in_flight: welcome.max_in_flight.max(1),
            heard: true,
            tick: self.config.keepalive,
            quiet: Duration::ZERO,
            leaving: false,
        });
        self.notify(Notice::Status(Status::Live { volume: welcome.volume, module: welcome.module }));
        self.effects.push_back(Effect::SetTimer(self.config.keepalive));
        self.send_pending();
        for (sub, subscription) in &mut self.subscriptions {
            subscription.wire = *sub;
            self.effects.push_back(Effect::Send(subscription.frame()));
        }
        for (id, query) in &self.queries {
            self.effects.push_back(Effect::Send(query.frame(*id)));
        }
        self.greet_presence();
    }

    fn server_error(&mut self, reason: Reason, random: u32) {
        match meaning(&reason.code) {
            Meaning::Passing => self.hang_up(reason.to_string(), random),
            Meaning::Forgotten | Meaning::Fatal => self.end(SessionEnd::Server(reason)),
        }
    }

    fn accepted(&mut self, seq: u64, lsn: Lsn, random: u32) {
        if self.answers_what_was_sent(seq, random) && self.pending.contains_key(&seq) {
            self.attempt = 0;
            self.notify(Notice::Accepted { seq, lsn });
        }
    }

    /// A final answer. One that comes twice (after a resend) is dropped.
    fn settle(&mut self, seq: u64, notice: Notice, random: u32) {
        if self.answers_what_was_sent(seq, random) && self.pending.remove(&seq).is_some() {
            match &mut self.state {
                State::Live(live) if seq <= live.sent => live.in_flight -= 1,
                State::Live(_) | State::Idle | State::Offline { .. } | State::Greeting | State::Ended(_) => {}
            }
            self.attempt = 0;
            self.settled = self.settled.max(seq);
            self.notify(notice);
            self.send_pending();
        }
    }

    fn refused(&mut self, seq: u64, reason: Reason, random: u32) {
        if let State::Live(live) = &mut self.state {
            // It took what came before and is still to answer it, so this side does not hang up.
            live.leaving |= reason.code == codes::SHUTDOWN;
            if live.leaving && matches!(meaning(&reason.code), Meaning::Passing) {
                return;
            }
        }
        match meaning(&reason.code) {
            Meaning::Forgotten => self.settle(seq, Notice::Refused { seq, reason }, random),
            Meaning::Passing => self.hang_up(format!("mutation {seq} was put off: {reason}"), random),
            Meaning::Fatal => {
                if self.answers_what_was_sent(seq, random) {
                    self.notify(Notice::Refused { seq, reason: reason.clone() });
                    self.end(SessionEnd::Refused { seq, reason });
                }
            }
        }
    }

    /// Whether the server speaks of a seq that it was sent; if not, the connection is given up.
    fn answers_what_was_sent(&mut self, seq: u64, random: u32) -> bool {
        let sent = match &self.state {
            State::Live(live) => live.sent.max(self.settled),
            State::Idle | State::Offline { .. } | State::Greeting | State::Ended(_) => return false,
        };
        if seq > sent {
            self.hang_up(format!("the server answered mutation {seq}, which it was not sent"), random);
        }
        seq <= sent
    }

    /// The subscription with this id on the wire. `None` for one that was closed meanwhile.
    fn by_wire(&self, wire: u64) -> Option<u64> {
        match self.subscriptions.get(&wire) {
            Some(subscription) if subscription.wire == wire => Some(wire),
            Some(_) | None => self.subscriptions.iter().find(|(_, s)| s.wire == wire).map(|(sub, _)| *sub),
        }
    }

    fn snapshot(&mut self, wire: u64, rows: Result<Rows, DeltaError>, random: u32) {
        let Some(sub) = self.by_wire(wire) else { return };
        match (rows, self.subscriptions.get_mut(&sub)) {
            (Ok(rows), Some(subscription)) => {
                subscription.rows = Some(rows);
                subscription.open = true;
                self.notify(Notice::Snapshot { sub });
            }
            (Err(error), Some(_)) => {
                self.hang_up(format!("snapshot of subscription {sub}: {error}"), random);
            }
            (Ok(_) | Err(_), None) => {}
        }
    }

    fn delta(&mut self, wire: u64, at: At, changes: Changes) {
        let Some(sub) = self.by_wire(wire) else { return };
        let fresh_wire = self.next_id;
        let Some(subscription) = self.subscriptions.get_mut(&sub) else { return };
        let Some(rows) = subscription.rows.as_mut().filter(|_| subscription.open) else { return };
        let Err(error) = rows.advance(at, &changes) else {
            subscription.misfits = 0;
            return self.notify(Notice::Delta { sub, at, changes });
        };
        subscription.misfits += 1;
        let leave = ClientMessage::Unsubscribe { sub: wire }.to_json();
        if subscription.misfits >= MISFITS_MAX {
            self.subscriptions.remove(&sub);
            self.effects.push_back(Effect::Send(leave));
            let message = format!("{MISFITS_MAX} deltas in a row did not fit the rows: {error}; report it");
            let reason = Reason::new(codes::BAD_SUBSCRIPTION, message);
            return self.notify(Notice::SubscriptionFailed { sub, reason });
        }
        // A fresh id, so that nothing still on its way for the old one can be taken for the new.
        self.next_id += 1;
        subscription.wire = fresh_wire;
        subscription.open = false;
        let enter = subscription.frame();
        self.effects.push_back(Effect::Send(leave));
        self.effects.push_back(Effect::Send(enter));
        self.notify(Notice::Resubscribed { sub, error });
    }

    fn subscription_error(&mut self, wire: u64, reason: Reason, random: u32) {
        let Some(sub) = self.by_wire(wire) else { return };
        match meaning(&reason.code) {
            // The reconnect opens it again. What is damaged for one query may be whole for all others, so
            // that does not end the connection.
            Meaning::Passing if reason.code != codes::DAMAGED => {
                self.hang_up(format!("subscription {sub}: {reason}"), random)
            }
            Meaning::Passing | Meaning::Forgotten | Meaning::Fatal => {
                self.subscriptions.remove(&sub);
                self.notify(Notice::SubscriptionFailed { sub, reason });
            }
        }
    }

    fn answer(&mut self, id: u64, at: At, columns: Vec<String>, rows: Vec<WireRow>) {
        if self.queries.remove(&id).is_none() {
            return;
        }
        match Rows::new(columns, Vec::new(), rows, at) {
            Ok(rows) => self.notify(Notice::Answer { id, rows }),
            Err(error) => {
                let reason = Reason::new(codes::BAD_MESSAGE, format!("the answer is malformed: {error}"));
                self.notify(Notice::QueryFailed { id, reason });
            }
        }
    }
}
