//! The owner's lease of a volume: who orders its mutations, so that others send them there.
//!
//! One object, `volumes/{vid}/owner`, says who owns the volume, in which *epoch*, and until when. It is
//! created once, changed by conditional updates, and never deleted. [`Lease`] is the machine of one
//! node and one volume: events and the node's clock in, effects out; [`perform`] carries the requests
//! among them out.
//!
//! **Leases are for speed alone.** Two owners that publish at once race for each LSN, one loses, pulls
//! and goes on: nothing is lost or mixed, it is only slow. So no commit waits for a lease, and
//! nothing here is trusted with one.
//!
//! ```text
//!            Want          read: free, or lapsed           done
//!   Idle ──────────> Looking ──────────────────> Claiming ──────> Owner ⟲ renewed at a third of the time
//!    ^                │   ^ lost, unknown, created  │               │
//!    │      another's │   └─────────────────────────┘               ├─ lapsed, or another's: fenced ─> Looking
//!    │                v                                             │
//!    │             Waiting ── its time is over ──> Claiming         └─ HandOver: fenced ─> Releasing ─> Idle
//!    └────────── HandOver, anywhere (a claim under way: Abandoning, which releases what it won)
//! ```
//!
//! # What holds
//!
//! Let every two nodes' clocks differ by at most [`Config::skew_ms`] at every instant, and none go
//! back. Then **at every instant at most one node believes itself owner** ([`Lease::owns`]), whatever requests and answers
//! are lost, doubled or late: an owner stops when its own clock reaches the time that is in the store,
//! and another claims only when its own clock is beyond that time by the skew.
//!
//! With clocks that differ by more, two may believe it at once, and this is left: epochs only rise; no
//! two nodes ever own the same epoch; a node that was fenced from an epoch never owns it again; and of
//! two believers the one of the older epoch is not in the store any more, and stops at its next
//! renewal that is answered, or when its time is over by its own clock.
//!
//! A holder whose clock is far ahead does not lock others out: a record that stays as it is for its
//! whole time and twice the skew, by the clock of who looks at it, is lapsed, too.
//!
//! Not here: what an owner does with it, and where requests for others' volumes are sent.

use std::fmt;

use bytes::Bytes;

use crate::ids::VolumeId;
use crate::remote::{Remote, RemoteError, Tag};

mod record;
#[cfg(test)]
mod tests;

pub use self::record::{ADDRESS_BYTES_MAX, BadRecord, Hold, Record, TTL_MS_MAX};

/// One process that may own volumes: 16 random bytes, new at every start.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub [u8; 16]);

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeId({})", &hex::encode(self.0)[..8])
    }
}

/// Which ownership of the volume: 1, 2, 3…; each has one owner, ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(pub u64);

/// The key of a volume's lease.
pub fn owner_key(volume: VolumeId) -> String {
    format!("volumes/{volume}/owner")
}

/// How one node holds leases. Times are in milliseconds.
#[derive(Debug, Clone)]
pub struct Config {
    /// Which volume.
    pub volume: VolumeId,
    /// This process. Never that of an earlier one.
    pub node: NodeId,
    /// Where others reach it; at most [`ADDRESS_BYTES_MAX`] bytes are kept.
    pub address: String,
    /// How long a lease lasts from the sending of its last renewal; at most [`TTL_MS_MAX`]. It is
    /// renewed when a third of that is over.
    pub ttl_ms: u32,
    /// By how much two nodes' clocks may differ.
    pub skew_ms: u32,
    /// How long to wait after the store failed.
    pub retry_ms: u32,
}

/// Numbers this machine's requests; an answer to any but the latest is ignored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RequestId(pub u64);

/// What happened.
#[derive(Debug, Clone)]
pub enum Event {
    /// The node wants to own the volume, from now on.
    Want,
    /// The node does not want to own it any more; the named one may take it over at once, anybody
    /// where it is `None`.
    HandOver {
        /// Who is to own it next.
        to: Option<NodeId>,
    },
    /// Time passed. Due at the time of the latest [`Effect::Wake`]; harmless at any other.
    Tick,
    /// The answer to [`Effect::Get`].
    Read {
        /// Which.
        request: RequestId,
        /// What there is.
        found: Found,
    },
    /// The answer to [`Effect::Create`] or [`Effect::Update`].
    Written {
        /// Which.
        request: RequestId,
        /// How it went.
        answer: Written,
    },
}

/// What a read found.
#[derive(Debug, Clone)]
pub enum Found {
    /// No lease was ever given.
    Nothing,
    /// An object and its tag.
    Object(Bytes, Tag),
    /// The store did not say.
    Unknown,
}

/// How a write went.
#[derive(Debug, Clone)]
pub enum Written {
    /// Created; its tag is still to be read.
    Created,
    /// Updated; the new tag.
    Updated(Tag),
    /// Somebody else was first, or an earlier, unheard try of our own.
    Lost,
    /// It may have happened, or may happen yet.
    Unknown,
}

/// What the driver is to do, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Read the lease with its tag.
    Get {
        /// To be said in the answer.
        request: RequestId,
    },
    /// Create it.
    Create {
        /// To be said in the answer.
        request: RequestId,
        /// Its bytes.
        body: Bytes,
    },
    /// Update it.
    Update {
        /// To be said in the answer.
        request: RequestId,
        /// Its bytes.
        body: Bytes,
        /// What it must still be.
        tag: Tag,
    },
    /// Send a [`Event::Tick`] at this time of the node's clock; replaces an earlier one.
    Wake {
        /// Ms, as the clock that is passed in.
        at_ms: i64,
    },
    /// The node owns the volume now, or for longer. Ask [`Lease::owns`] at each use, though.
    Owned {
        /// This ownership.
        epoch: Epoch,
        /// It ends when the node's clock reaches this, unless it is renewed.
        until_ms: i64,
    },
    /// The node owns the volume no more; this epoch never comes back to it.
    Fenced {
        /// The ownership that ended.
        epoch: Epoch,
    },
    /// Somebody else owns it: send its mutations there.
    Elsewhere {
        /// Who.
        node: NodeId,
        /// Where.
        address: String,
        /// Their ownership.
        epoch: Epoch,
    },
    /// A hand-over is over: the lease is free, or lapses by itself.
    LetGo,
    /// The lease's object is damaged; it is looked at again, and nobody owns the volume meanwhile.
    Unreadable {
        /// What did not hold.
        reason: BadRecord,
    },
}

#[derive(Debug, Clone)]
enum State {
    /// Not wanted.
    Idle,
    /// Wanted; a read is under way.
    Looking { request: RequestId },
    /// Wanted, and another's as of `tag`; to be claimed from `until_ms` on.
    Waiting { epoch: Epoch, tag: Tag, until_ms: i64 },
    /// Wanted; the store failed, or what it holds is damaged.
    Pausing { until_ms: i64 },
    /// Wanted; this record is being written.
    Claiming { request: RequestId, record: Record },
    /// Not wanted any more, and this claim is still being written.
    Abandoning { request: RequestId, record: Record, to: Option<NodeId> },
    /// The lease is ours by `record`, which the store holds as `tag`.
    Owner { record: Record, tag: Tag, renewal: Renewal },
    /// Not owner any more; being told so to others, first by the update, then after a look.
    Releasing { request: RequestId, epoch: Epoch, to: Option<NodeId> },
}

#[derive(Debug, Clone)]
enum Renewal {
    /// Nothing is under way.
    Due { at_ms: i64 },
    /// This record is being written.
    Sent { request: RequestId, record: Record },
    /// How the last write went is being looked up.
    Checking { request: RequestId },
}

/// One node's view of one volume's lease; see the module.
#[derive(Debug, Clone)]
pub struct Lease {
    config: Config,
    state: State,
    requests: u64,
    /// The newest time that was passed in: a clock that goes back does not revive a lease.
    now_ms: i64,
    /// The newest epoch that this node was fenced from.
    fenced: Epoch,
    /// The tag of another's record and when this node first saw it.
    seen: Option<(Tag, i64)>,
}

impl Lease {
    /// Wants nothing yet.
    pub fn new(config: Config) -> Lease {
        Lease { config, state: State::Idle, requests: 0, now_ms: i64::MIN, fenced: Epoch(0), seen: None }
    }

    /// The epoch in which this node owns the volume, if it does when its clock shows `now_ms`.
    pub fn owns(&self, now_ms: i64) -> Option<Epoch> {
        match &self.state {
            State::Owner { record, .. } => {
                (self.now_ms.max(now_ms) < record.expires_ms).then_some(record.epoch)
            }
            State::Idle
            | State::Looking { .. }
            | State::Waiting { .. }
            | State::Pausing { .. }
            | State::Claiming { .. }
            | State::Abandoning { .. }
            | State::Releasing { .. } => None,
        }
    }

    /// Takes one event, with the node's clock (ms since 1970); answers what to do.
    pub fn handle(&mut self, now_ms: i64, event: Event) -> Vec<Effect> {
        self.now_ms = self.now_ms.max(now_ms);
        let mut effects = Vec::new();
        self.lapse(&mut effects);
        match event {
            Event::Want => self.want(&mut effects),
            Event::HandOver { to } => self.hand_over(to, &mut effects),
            Event::Tick => self.tick(&mut effects),
            Event::Read { request, found } => self.read(request, found, &mut effects),
            Event::Written { request, answer } => self.written(request, answer, &mut effects),
        }
        effects
    }

    /// Before anything else: an ownership whose time is over is over.
    fn lapse(&mut self, effects: &mut Vec<Effect>) {
        match &self.state {
            State::Owner { record, .. } if self.now_ms >= record.expires_ms => {
                self.fence(record.epoch, effects);
                self.look(effects);
            }
            State::Owner { .. }
            | State::Idle
            | State::Looking { .. }
            | State::Waiting { .. }
            | State::Pausing { .. }
            | State::Claiming { .. }
            | State::Abandoning { .. }
            | State::Releasing { .. } => {}
        }
    }

    fn want(&mut self, effects: &mut Vec<Effect>) {
        match &self.state {
            // What was being let go may be claimed anew: the store orders the writes.
            State::Idle | State::Abandoning { .. } | State::Releasing { .. } => self.look(effects),
            State::Looking { .. }
            | State::Waiting { .. }
            | State::Pausing { .. }
            | State::Claiming { .. }
            | State::Owner { .. } => {}
        }
    }

    fn hand_over(&mut self, to: Option<NodeId>, effects: &mut Vec<Effect>) {
        match self.state.clone() {
            State::Owner { record, tag, renewal: _ } => {
                self.fence(record.epoch, effects);
                self.release(&record, tag, to, effects);
            }
            State::Claiming { request, record } => self.state = State::Abandoning { request, record, to },
            State::Idle | State::Looking { .. } | State::Waiting { .. } | State::Pausing { .. } => {
                self.state = State::Idle;
                effects.push(Effect::LetGo);
            }
            State::Abandoning { request, record, to: _ } => {
                self.state = State::Abandoning { request, record, to };
            }
            State::Releasing { .. } => {}
        }
    }

    fn tick(&mut self, effects: &mut Vec<Effect>) {
        match self.state.clone() {
            State::Waiting { epoch, tag, until_ms } if self.now_ms >= until_ms => {
                self.claim(epoch, Some(tag), effects);
            }
            State::Pausing { until_ms } if self.now_ms >= until_ms => self.look(effects),
            State::Owner { record, tag, renewal: Renewal::Due { at_ms } } if self.now_ms >= at_ms => {
                self.renew(record, tag, effects);
            }
            State::Waiting { until_ms: at_ms, .. }
            | State::Pausing { until_ms: at_ms }
            | State::Owner { renewal: Renewal::Due { at_ms }, .. } => effects.push(Effect::Wake { at_ms }),
            State::Owner { record, renewal: Renewal::Sent { .. } | Renewal::Checking { .. }, .. } => {
                effects.push(Effect::Wake { at_ms: record.expires_ms });
            }
            State::Idle
            | State::Looking { .. }
            | State::Claiming { .. }
            | State::Abandoning { .. }
            | State::Releasing { .. } => {}
        }
    }

    fn read(&mut self, answered: RequestId, found: Found, effects: &mut Vec<Effect>) {
        match self.state.clone() {
            State::Looking { request } if request == answered => self.looked(self.decode(found), effects),
            State::Owner { record, tag, renewal: Renewal::Checking { request } } if request == answered => {
                self.checked(record, tag, found, effects);
            }
            State::Releasing { request, epoch, to } if request == answered => match self.decode(found) {
                Look::Held { record, tag } if record.node == self.config.node && record.epoch == epoch => {
                    self.release(&record, tag, to, effects);
                }
                Look::Nothing | Look::Unknown | Look::Bad(_) | Look::Held { .. } => self.let_go(effects),
            },
            // An answer that nobody waits for.
            State::Looking { .. }
            | State::Owner { .. }
            | State::Releasing { .. }
            | State::Idle
            | State::Waiting { .. }
            | State::Pausing { .. }
            | State::Claiming { .. }
            | State::Abandoning { .. } => {}
        }
    }

    fn written(&mut self, answered: RequestId, answer: Written, effects: &mut Vec<Effect>) {
        match self.state.clone() {
            State::Claiming { request, record } if request == answered => match answer {
                Written::Updated(tag) => self.own(record, tag, effects),
                Written::Created | Written::Lost | Written::Unknown => self.look(effects),
            },
            State::Abandoning { request, record, to } if request == answered => match answer {
                Written::Updated(tag) => self.release(&record, tag, to, effects),
                // It is ours, under a tag that is still to be read.
                Written::Created => {
                    let request = self.request();
                    self.state = State::Releasing { request, epoch: record.epoch, to };
                    effects.push(Effect::Get { request });
                }
                // If it lands all the same, it lapses by itself.
                Written::Lost | Written::Unknown => self.let_go(effects),
            },
            State::Owner { record: held, tag: old, renewal: Renewal::Sent { request, record } }
                if request == answered =>
            {
                match answer {
                    Written::Updated(tag) => self.own(record, tag, effects),
                    Written::Created | Written::Lost | Written::Unknown => {
                        let request = self.request();
                        effects.push(Effect::Get { request });
                        effects.push(Effect::Wake { at_ms: held.expires_ms });
                        let renewal = Renewal::Checking { request };
                        self.state = State::Owner { record: held, tag: old, renewal };
                    }
                }
            }
            State::Releasing { request, epoch, to } if request == answered => match answer {
                Written::Created | Written::Updated(_) | Written::Unknown => self.let_go(effects),
                // A renewal of our own was under way and landed first.
                Written::Lost => {
                    let request = self.request();
                    self.state = State::Releasing { request, epoch, to };
                    effects.push(Effect::Get { request });
                }
            },
            // An answer that nobody waits for.
            State::Claiming { .. }
            | State::Abandoning { .. }
            | State::Owner { .. }
            | State::Releasing { .. }
            | State::Idle
            | State::Looking { .. }
            | State::Waiting { .. }
            | State::Pausing { .. } => {}
        }
    }

    /// What a read found, when the lease is wanted and not had.
    fn looked(&mut self, look: Look, effects: &mut Vec<Effect>) {
        match look {
            Look::Nothing => self.claim(Epoch(0), None, effects),
            Look::Unknown => self.pause(effects),
            Look::Bad(reason) => {
                effects.push(Effect::Unreadable { reason });
                self.pause(effects);
            }
            Look::Held { record, tag } => match record.hold {
                Hold::Held if record.node == self.config.node => {
                    // Our own claim, whose answer was not heard; or an ownership that is over.
                    if record.epoch > self.fenced && self.now_ms < record.expires_ms {
                        self.own(record, tag, effects);
                    } else {
                        self.claim(record.epoch, Some(tag), effects);
                    }
                }
                Hold::Released { to } if to.is_none_or(|to| to == self.config.node) => {
                    self.claim(record.epoch, Some(tag), effects);
                }
                Hold::Held | Hold::Released { .. } => self.wait(record, tag, effects),
            },
        }
    }

    /// What a read found, when a renewal did not end well.
    fn checked(&mut self, held: Record, old: Tag, found: Found, effects: &mut Vec<Effect>) {
        let still_ours = |record: &Record| {
            record.node == held.node && record.epoch == held.epoch && record.hold == Hold::Held
        };
        match self.decode(found) {
            Look::Held { record, tag } if still_ours(&record) => {
                if record.expires_ms > held.expires_ms {
                    self.own(record, tag, effects);
                } else {
                    // It did not land. It may yet, and then this one loses.
                    self.renew(record, tag, effects);
                }
            }
            Look::Held { record, tag } => {
                self.fence(held.epoch, effects);
                self.looked(Look::Held { record, tag }, effects);
            }
            Look::Unknown => {
                let at_ms = self.after(self.config.retry_ms).min(held.expires_ms);
                effects.push(Effect::Wake { at_ms });
                self.state = State::Owner { record: held, tag: old, renewal: Renewal::Due { at_ms } };
            }
            Look::Nothing | Look::Bad(_) => {
                self.fence(held.epoch, effects);
                self.pause(effects);
            }
        }
    }

    fn decode(&self, found: Found) -> Look {
        match found {
            Found::Nothing => Look::Nothing,
            Found::Unknown => Look::Unknown,
            Found::Object(bytes, tag) => match Record::decode(self.config.volume, &bytes) {
                Ok(record) => Look::Held { record, tag },
                Err(reason) => Look::Bad(reason),
            },
        }
    }

    fn look(&mut self, effects: &mut Vec<Effect>) {
        let request = self.request();
        self.state = State::Looking { request };
        effects.push(Effect::Get { request });
    }

    fn pause(&mut self, effects: &mut Vec<Effect>) {
        let until_ms = self.after(self.config.retry_ms);
        self.state = State::Pausing { until_ms };
        effects.push(Effect::Wake { at_ms: until_ms });
    }

    /// Another's: until its time is over, by what it says and what we saw of it, whichever is first.
    fn wait(&mut self, record: Record, tag: Tag, effects: &mut Vec<Effect>) {
        let since_ms = match &self.seen {
            Some((seen, since_ms)) if *seen == tag => *since_ms,
            Some(_) | None => self.now_ms,
        };
        self.seen = Some((tag.clone(), since_ms));
        let skew_ms = i64::from(self.config.skew_ms);
        let said = record.expires_ms.saturating_add(skew_ms);
        let watched = since_ms.saturating_add(i64::from(record.ttl_ms)).saturating_add(2 * skew_ms);
        let until_ms = said.min(watched);
        let epoch = record.epoch;
        effects.push(Effect::Elsewhere { node: record.node, address: record.address, epoch });
        if self.now_ms >= until_ms {
            self.claim(epoch, Some(tag), effects);
            return;
        }
        self.state = State::Waiting { epoch, tag, until_ms };
        effects.push(Effect::Wake { at_ms: until_ms });
    }

    /// Writes the next epoch over what `tag` is of, or as the first.
    fn claim(&mut self, last: Epoch, tag: Option<Tag>, effects: &mut Vec<Effect>) {
        // Epochs do not run out: what says so is no record of ours.
        let Some(epoch) = last.0.max(self.fenced.0).checked_add(1).map(Epoch) else {
            effects.push(Effect::Unreadable { reason: BadRecord::Epoch });
            return self.pause(effects);
        };
        let record = self.record(epoch, 0, Hold::Held);
        let (request, body) = (self.request(), record.encode(self.config.volume));
        effects.push(match tag {
            Some(tag) => Effect::Update { request, body, tag },
            None => Effect::Create { request, body },
        });
        self.state = State::Claiming { request, record };
    }

    fn renew(&mut self, held: Record, tag: Tag, effects: &mut Vec<Effect>) {
        let record = self.record(held.epoch, held.renewal.saturating_add(1), Hold::Held);
        let (request, body) = (self.request(), record.encode(self.config.volume));
        effects.push(Effect::Update { request, body, tag: tag.clone() });
        effects.push(Effect::Wake { at_ms: held.expires_ms });
        self.state = State::Owner { record: held, tag, renewal: Renewal::Sent { request, record } };
    }

    /// The store holds `record` of ours as `tag`.
    fn own(&mut self, record: Record, tag: Tag, effects: &mut Vec<Effect>) {
        if self.now_ms >= record.expires_ms {
            // The answer came after its time, so nobody ever heard of this ownership.
            self.fenced = self.fenced.max(record.epoch);
            return self.look(effects);
        }
        let until_ms = record.expires_ms;
        effects.push(Effect::Owned { epoch: record.epoch, until_ms });
        let sent_ms = until_ms.saturating_sub(i64::from(record.ttl_ms));
        let at_ms = sent_ms.saturating_add(i64::from(record.ttl_ms / 3));
        effects.push(Effect::Wake { at_ms });
        self.state = State::Owner { record, tag, renewal: Renewal::Due { at_ms } };
    }

    fn release(&mut self, held: &Record, tag: Tag, to: Option<NodeId>, effects: &mut Vec<Effect>) {
        self.fenced = self.fenced.max(held.epoch);
        let record = self.record(held.epoch, held.renewal.saturating_add(1), Hold::Released { to });
        let (request, body) = (self.request(), record.encode(self.config.volume));
        effects.push(Effect::Update { request, body, tag });
        self.state = State::Releasing { request, epoch: held.epoch, to };
    }

    fn let_go(&mut self, effects: &mut Vec<Effect>) {
        self.state = State::Idle;
        effects.push(Effect::LetGo);
    }

    fn fence(&mut self, epoch: Epoch, effects: &mut Vec<Effect>) {
        self.fenced = self.fenced.max(epoch);
        effects.push(Effect::Fenced { epoch });
    }

    fn record(&self, epoch: Epoch, renewal: u64, hold: Hold) -> Record {
        let ttl_ms = self.config.ttl_ms.min(TTL_MS_MAX);
        let address = record::clipped(&self.config.address).to_owned();
        let expires_ms = self.after(ttl_ms);
        Record { node: self.config.node, epoch, renewal, expires_ms, ttl_ms, hold, address }
    }

    fn after(&self, ms: u32) -> i64 {
        self.now_ms.saturating_add(i64::from(ms))
    }

    fn request(&mut self) -> RequestId {
        self.requests += 1;
        RequestId(self.requests)
    }
}

/// What a read shows.
enum Look {
    Nothing,
    Unknown,
    Bad(BadRecord),
    Held { record: Record, tag: Tag },
}

/// Sends what an effect asks for and answers the event to hand back; `None` for an effect that is no
/// request. One request to the store. A driver that gives up waiting for it hands back
/// [`Found::Unknown`] or [`Written::Unknown`].
pub async fn perform(remote: &dyn Remote, volume: VolumeId, effect: &Effect) -> Option<Event> {
    let key = owner_key(volume);
    let written = |answer: Result<Written, RemoteError>| match answer {
        Ok(written) => written,
        Err(RemoteError::AlreadyExists { .. } | RemoteError::Changed { .. }) => Written::Lost,
        Err(
            error @ (RemoteError::NotFound { .. }
            | RemoteError::Unavailable { .. }
            | RemoteError::Refused { .. }),
        ) => {
            tracing::debug!(%error, "a lease was not written");
            Written::Unknown
        }
    };
    match effect {
        Effect::Get { request } => {
            let found = match remote.get_tagged(&key).await {
                Ok((bytes, tag)) => Found::Object(bytes, tag),
                Err(RemoteError::NotFound { .. }) => Found::Nothing,
                Err(error) => {
                    tracing::debug!(%error, "a lease was not read");
                    Found::Unknown
                }
            };
            Some(Event::Read { request: *request, found })
        }
        Effect::Create { request, body } => {
            let answer = written(remote.create(&key, body.clone()).await.map(|()| Written::Created));
            Some(Event::Written { request: *request, answer })
        }
        Effect::Update { request, body, tag } => {
            let answer = written(remote.update(&key, body.clone(), tag).await.map(Written::Updated));
            Some(Event::Written { request: *request, answer })
        }
        Effect::Wake { .. }
        | Effect::Owned { .. }
        | Effect::Fenced { .. }
        | Effect::Elsewhere { .. }
        | Effect::LetGo
        | Effect::Unreadable { .. } => None,
    }
}
