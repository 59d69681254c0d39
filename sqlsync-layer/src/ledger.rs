//! The ledger: what makes mutations exactly-once, beside the pages and not in them.
//!
//! It holds, for each client, the last sequence applied and the outcomes of the most recent ones, and
//! for the volume the module in force and the schema version. It is a fold over the records in the
//! log's payloads: any reader of the same commits has the same ledger. A checkpoint holds it whole, so
//! that nobody must read the whole log: `SL` and the version `1`, then the [`Ledger`] in postcard
//! (<https://postcard.jamesmunns.com/wire-format>).
//!
//! Invariants: a client's seqs are applied without gaps; a seq is applied at most once; what a
//! checkpoint at an LSN holds is the fold up to exactly that LSN.

use std::collections::{BTreeMap, VecDeque};

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
        let (ledger, rest) = postcard::take_from_bytes::<Ledger>(body)
            .map_err(|error| format!("its ledger cannot be read ({error})"))?;
        let fits = |client: &Client| {
            let seqs = (1..=client.last).rev().zip(client.recent.iter().rev());
            client.recent.len() <= OUTCOMES_MAX
                && client.recent.len() as u64 <= client.last
                && seqs.into_iter().all(|(seq, entry)| entry.seq == seq)
        };
        if !rest.is_empty() || !ledger.clients.values().all(fits) {
            return Err("its ledger is none that could be".into());
        }
        Ok(ledger)
    }

    /// How many mutations were applied in the volume's whole history.
    pub fn mutations(&self) -> u64 {
        self.mutations
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
                let client = self.clients.entry(mutation.client.clone()).or_default();
                if mutation.seq != client.last + 1 {
                    tracing::error!(client = %mutation.client, seq = mutation.seq, last = client.last, %lsn, "the log records a seq out of order");
                    return;
                }
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
        let client = ClientId::new("a").unwrap();
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
}
