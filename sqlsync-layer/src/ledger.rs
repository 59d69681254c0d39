//! The ledger: what makes mutations exactly-once, beside the pages and not in them.
//!
//! It holds, for each client, the last sequence applied and the outcomes of the most recent ones, and
//! for the volume the module in force and the schema version. It is a fold over the records in the
//! log's payloads: any reader of the same commits has the same ledger. A checkpoint holds it whole, so
//! that nobody must read the whole log: `SL` and the version `1`, then the [`Ledger`] in postcard
//! (<https://postcard.jamesmunns.com/wire-format>).
//!
//! *Expiry.* A client that has written nothing for [`RETAIN_MS`] of the log's own time and
//! [`RETAIN_LSNS`] commits is forgotten. Both are read from the commits ([`Ledger::advance`]), never
//! from a clock of the reader's, so every reader forgets the same clients at the same commit. A client
//! that comes back later is told so ([`Ledger::is_expired`]): it says the newest commit that it knew when
//! its id was made (`since`) and the last seq that it knows to be final (`settled`), and where the ledger
//! knows nothing of it and has forgotten clients since then, whether its mutations were applied cannot
//! be known any more.
//!
//! Invariants: a client's seqs are applied without gaps; a seq is applied at most once; the ledger of a
//! commit depends on the commits up to it and nothing else, and is what a checkpoint at its LSN holds.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use graft::format::Damaged;
use graft::format::commit::Head;
use graft::history::Start;
use graft::{Lsn, ModuleHash};
use serde::{Deserialize, Serialize};

use crate::payload::{Op, Outcome, Payload, Record};
use crate::protocol::{ClientId, IN_FLIGHT_MAX};

/// Outcomes remembered for each client: twice what it may have without a final answer.
const OUTCOMES_MAX: usize = 2 * IN_FLIGHT_MAX as usize;

const MAGIC: &[u8; 3] = b"SL1";
/// How long a client is remembered after its last mutation, by the times of commits: 30 days.
pub const RETAIN_MS: i64 = 30 * 24 * 3_600_000;

/// And for how many commits at least, so that one commit with a wrong time (a writer's clock far ahead)
/// does not forget everybody.
pub const RETAIN_LSNS: u64 = 10_000;

/// What a client says of when it was made may be so many commits ahead of the log: a `welcome` names the
/// tip, of which one commit may be in flight and one not begun, and both may come to nothing.
const SINCE_SLACK: u64 = 2;

/// Times of commits are remembered this far apart.
const TICK_MS: i64 = 3_600_000;

/// What is said to a client that expired.
pub fn expired(client: &ClientId) -> String {
    format!(
        "client {client} was away for so long that the volume has forgotten it; whether its last mutations were applied is not known any more: check, and go on under a new client id"
    )
}

/// A recorded outcome.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// The client's sequence number.
    pub seq: u64,
    /// Tells the mutation from another under the same seq.
    pub content: [u8; 16],
    /// The commit that records it.
    pub lsn: Lsn,
    /// How it ended.
    pub outcome: Outcome,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct Client {
    last: u64,
    recent: VecDeque<Entry>,
}

/// What stands in the way of a mutation's seq, or does not.
#[derive(Debug, Clone, PartialEq)]
pub enum Standing {
    /// It is the client's next.
    Next,
    /// It was applied before, as the same mutation; this is how it ended.
    Known(Entry),
    /// Its seq was used for another mutation.
    Reused,
    /// It was applied so long ago that its outcome is not recorded any more.
    Forgotten,
    /// Seqs before it are missing.
    Gap {
        /// The seq that is next.
        next: u64,
    },
}

/// See the module.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Ledger {
    clients: BTreeMap<ClientId, Client>,
    /// The clients by the commit of their last mutation.
    #[serde(skip)]
    by_age: BTreeSet<(Lsn, ClientId)>,
    /// Commits and their times, about [`TICK_MS`] apart, as far back as clients are remembered.
    ticks: VecDeque<(Lsn, i64)>,
    /// The greatest commit that held the last mutation of a client forgotten since.
    horizon: Lsn,
    module: Option<ModuleHash>,
    schema: u32,
    mutations: u64,
}

impl Ledger {
    /// The ledger of a volume that was opened: what the checkpoint that it begins at holds, and the
    /// records since.
    ///
    /// # Errors
    ///
    /// [`Damaged`]: the checkpoint's state or a commit's payload is no ledger of ours.
    pub fn open(start: &Start, heads: &[Head]) -> Result<Ledger, Damaged> {
        let mut ledger = match &start.checkpoint {
            None => Ledger::default(),
            Some(root) => Ledger::decode(&start.state)
                .map_err(|reason| Damaged { key: graft::key::checkpoint(root.volume, root.seq), reason })?,
        };
        ledger.follow(heads)?;
        Ok(ledger)
    }

    /// Adds the records of commits that follow.
    ///
    /// # Errors
    ///
    /// [`Damaged`]: a payload cannot be read; those before it are added.
    pub fn follow(&mut self, heads: &[Head]) -> Result<(), Damaged> {
        for head in heads {
            for record in &Payload::decode(head)?.records {
                self.apply(record, head.lsn);
            }
            self.advance(head.lsn, head.time_ms);
        }
        Ok(())
    }

    /// What a checkpoint holds of it.
    pub fn encode(&self) -> Bytes {
        let bytes = postcard::to_extend(self, MAGIC.to_vec());
        bytes.expect("our own types serialise into a vector that grows").into()
    }

    /// Reads it back. A checkpoint of a volume that was never opened by this layer holds no ledger, and
    /// reads as an empty one. Safe on hostile bytes.
    ///
    /// # Errors
    ///
    /// What did not hold, as text for [`Damaged`].
    pub fn decode(state: &[u8]) -> Result<Ledger, String> {
        if state.is_empty() {
            return Ok(Ledger::default());
        }
        let body = state.strip_prefix(MAGIC).ok_or("its state is no ledger, or of a newer version")?;
        let (mut ledger, rest) = postcard::take_from_bytes::<Ledger>(body)
            .map_err(|error| format!("its ledger cannot be read ({error})"))?;
        let fits = |client: &Client| {
            let seqs = (1..=client.last).rev().zip(client.recent.iter().rev());
            !client.recent.is_empty()
                && client.recent.len() <= OUTCOMES_MAX
                && client.recent.len() as u64 <= client.last
                && seqs.into_iter().all(|(seq, entry)| entry.seq == seq)
        };
        if !rest.is_empty() || !ledger.clients.values().all(fits) {
            return Err("its ledger is none that could be".into());
        }
        // It follows from the clients, and is not stored.
        let age = |(id, client): (&ClientId, &Client)| Some((client.recent.back()?.lsn, id.clone()));
        ledger.by_age = ledger.clients.iter().filter_map(age).collect();
        Ok(ledger)
    }

    /// How many mutations were applied in the volume's whole history.
    pub fn mutations(&self) -> u64 {
        self.mutations
    }

    /// A commit's records were applied: forgets clients that are long gone by its time. O(1), and
    /// O(log clients) for each one forgotten.
    pub fn advance(&mut self, lsn: Lsn, time_ms: i64) {
        if self.ticks.back().is_none_or(|(_, last)| time_ms.saturating_sub(*last) >= TICK_MS) {
            self.ticks.push_back((lsn, time_ms));
        }
        // The newest tick that is old enough says how far back nothing needs to be remembered.
        let old = |tick: &&(Lsn, i64)| tick.1 <= time_ms.saturating_sub(RETAIN_MS);
        let Some((aged, _)) = self.ticks.iter().take_while(old).last().copied() else { return };
        while self.ticks.front().is_some_and(|(lsn, _)| *lsn < aged) {
            self.ticks.pop_front();
        }
        let keep_after = aged.min(Lsn(lsn.0.saturating_sub(RETAIN_LSNS)));
        while let Some((last, client)) = self.by_age.first().cloned() {
            if last > keep_after {
                break;
            }
            self.by_age.pop_first();
            self.clients.remove(&client);
            self.horizon = self.horizon.max(last);
        }
    }

    /// Whether `client` may have been forgotten: nothing is known of it, though it says that mutations up
    /// to `settled` are final, or clients have been forgotten that were last heard of after `since`, or just before.
    pub fn is_expired(&self, client: &ClientId, since: Lsn, settled: u64) -> bool {
        !self.clients.contains_key(client)
            && self.horizon > Lsn::ZERO
            && (settled > 0 || (since > Lsn::ZERO && since.0 <= self.horizon.0.saturating_add(SINCE_SLACK)))
    }

    /// How many clients are remembered.
    pub fn clients(&self) -> usize {
        self.clients.len()
    }

    /// The module in force.
    pub fn module(&self) -> Option<ModuleHash> {
        self.module
    }

    /// The version of the last migration run.
    pub fn schema(&self) -> u32 {
        self.schema
    }

    /// The last seq applied for `client`; 0 for none.
    pub fn last_seq(&self, client: &ClientId) -> u64 {
        self.clients.get(client).map_or(0, |client| client.last)
    }

    /// How a mutation of `client` under `seq` stands.
    pub fn standing(&self, client: &ClientId, seq: u64, content: &[u8; 16]) -> Standing {
        let next = self.last_seq(client) + 1;
        if seq == next {
            return Standing::Next;
        }
        if seq > next {
            return Standing::Gap { next };
        }
        let recent =
            self.clients.get(client).and_then(|client| client.recent.iter().find(|entry| entry.seq == seq));
        match recent {
            None => Standing::Forgotten,
            Some(entry) if entry.content == *content => Standing::Known(entry.clone()),
            Some(_) => Standing::Reused,
        }
    }

    /// Adds one record, in the order of the log. A seq that is not the client's next changes nothing:
    /// writers that obey [`standing`](Ledger::standing) never record one.
    pub fn apply(&mut self, record: &Record, lsn: Lsn) {
        match &record.op {
            Op::Mutation(mutation) => {
                let last = self.last_seq(&mutation.client);
                if mutation.seq != last + 1 {
                    tracing::error!(client = %mutation.client, seq = mutation.seq, last, %lsn, "the log records a seq out of order");
                    return;
                }
                let client = self.clients.entry(mutation.client.clone()).or_default();
                if let Some(last) = client.recent.back() {
                    self.by_age.remove(&(last.lsn, mutation.client.clone()));
                }
                self.by_age.insert((lsn, mutation.client.clone()));
                client.last = mutation.seq;
                self.mutations += u64::from(record.outcome == Outcome::Applied);
                client.recent.push_back(Entry {
                    seq: mutation.seq,
                    content: mutation.content,
                    lsn,
                    outcome: record.outcome.clone(),
                });
                if client.recent.len() > OUTCOMES_MAX {
                    client.recent.pop_front();
                }
            }
            Op::Deploy { module, schema, .. } => {
                if record.outcome == Outcome::Applied {
                    self.module = Some(*module);
                    self.schema = *schema;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::payload::Mutation;
    use crate::protocol::Seed;

    fn record(seq: u64) -> Record {
        record_of("a", seq)
    }

    fn record_of(client: &str, seq: u64) -> Record {
        let client = ClientId::new(client).unwrap();
        let content = [seq as u8; 16];
        let mutation = Mutation {
            client,
            seq,
            reducer: "r".into(),
            args: "{}".into(),
            clock: 0,
            seed: Seed(0),
            content,
        };
        Record { op: Op::Mutation(mutation), outcome: Outcome::Applied }
    }

    /// Simulation, seed 1097: it left a client without mutations, and the checkpoint's ledger was none.
    #[test]
    fn a_seq_out_of_order_changes_nothing() {
        let mut ledger = Ledger::default();
        ledger.apply(&record(1), Lsn(1));
        let before = ledger.clone();
        ledger.apply(&record(3), Lsn(2));
        ledger.apply(&record_of("b", 4), Lsn(2));
        assert_eq!(ledger, before);
        assert_eq!(Ledger::decode(&ledger.encode()), Ok(before));
    }

    #[test]
    fn a_seq_stands_in_exactly_one_way() {
        let (mut ledger, client) = (Ledger::default(), ClientId::new("a").unwrap());
        assert_eq!(ledger.standing(&client, 1, &[1; 16]), Standing::Next);
        let count = OUTCOMES_MAX as u64 + 10;
        for seq in 1..=count {
            ledger.apply(&record(seq), Lsn(seq));
        }
        assert_eq!(ledger.last_seq(&client), count);
        assert_eq!(ledger.standing(&client, count + 1, &[0; 16]), Standing::Next);
        assert_eq!(ledger.standing(&client, count + 2, &[0; 16]), Standing::Gap { next: count + 1 });
        assert_eq!(ledger.standing(&client, count, &[0; 16]), Standing::Reused);
        assert!(
            matches!(ledger.standing(&client, count, &[count as u8; 16]), Standing::Known(entry) if entry.lsn == Lsn(count))
        );
        assert_eq!(ledger.standing(&client, 10, &[10; 16]), Standing::Forgotten);
        assert!(matches!(ledger.standing(&client, 11, &[11; 16]), Standing::Known(_)));
    }

    #[test]
    fn a_ledger_comes_back_equal_and_nothing_else_does() {
        let mut ledger = Ledger::default();
        assert_eq!(Ledger::decode(&ledger.encode()), Ok(ledger.clone()));
        assert_eq!(Ledger::decode(b""), Ok(Ledger::default()));
        for seq in 1..=OUTCOMES_MAX as u64 + 3 {
            ledger.apply(&record(seq), Lsn(seq));
        }
        let op =
            Op::Deploy { module: ModuleHash([1; 32]), schema: 3, clock: 0, seed: crate::protocol::Seed(1) };
        ledger.apply(&Record { op, outcome: Outcome::Applied }, Lsn(600));
        assert_eq!(ledger.mutations(), OUTCOMES_MAX as u64 + 3);
        let bytes = ledger.encode();
        assert_eq!(Ledger::decode(&bytes), Ok(ledger));
        for cut in 1..bytes.len() {
            assert!(Ledger::decode(&bytes[..cut]).is_err(), "cut at {cut}");
        }
        assert!(Ledger::decode(&[&bytes[..], b"x"].concat()).is_err());
        // A root's hash vouches for the state; whatever else comes must not panic.
        for at in 0..bytes.len() {
            let mut flipped = bytes.to_vec();
            flipped[at] ^= 0x81;
            let _ = Ledger::decode(&flipped);
        }
    }

    #[test]
    fn a_record_out_of_order_is_passed_over() {
        let mut ledger = Ledger::default();
        ledger.apply(&record(1), Lsn(1));
        let before = ledger.clone();
        ledger.apply(&record(1), Lsn(2));
        ledger.apply(&record(3), Lsn(2));
        assert_eq!(ledger, before);
    }

    /// One mutation of a client that then goes away, and others that go on.
    #[test]
    fn clients_long_gone_are_forgotten_by_the_logs_own_time_and_told_so() {
        let gone = ClientId::new("gone").unwrap();
        let run = |step_ms: i64, commits: u64| {
            let mut ledger = Ledger::default();
            ledger.apply(&record_of("gone", 1), Lsn(5));
            ledger.advance(Lsn(5), 0);
            for at in 1..=commits {
                ledger.apply(&record_of("stays", at), Lsn(5 + at));
                ledger.advance(Lsn(5 + at), at as i64 * step_ms);
            }
            ledger
        };
        let step = 2 * RETAIN_MS / RETAIN_LSNS as i64;
        // Long by time and by commits.
        let ledger = run(step, RETAIN_LSNS + 10);
        assert_eq!((ledger.clients(), ledger.last_seq(&gone)), (1, 0));
        // It made seq 1 when it knew commit 4, and never heard how it ended.
        assert!(ledger.is_expired(&gone, Lsn(4), 0));
        assert!(ledger.is_expired(&gone, Lsn(0), 1));
        // A client made since is new, and so is one that never said anything before.
        assert!(!ledger.is_expired(&ClientId::new("new").unwrap(), Lsn(5 + 3), 0));
        assert!(!ledger.is_expired(&ClientId::new("new").unwrap(), Lsn(0), 0));
        assert!(!ledger.is_expired(&ClientId::new("stays").unwrap(), Lsn(1), 7));
        // Long by time alone, and by commits alone.
        for ledger in [run(RETAIN_MS, 100), run(1, RETAIN_LSNS + 10)] {
            assert_eq!((ledger.clients(), ledger.last_seq(&gone)), (2, 1));
            assert!(!ledger.is_expired(&gone, Lsn(4), 1));
        }
        // What it costs to know times is bounded.
        assert!(run(TICK_MS / 2, 40_000).ticks.len() <= (RETAIN_MS / TICK_MS) as usize + 2);
    }
}
