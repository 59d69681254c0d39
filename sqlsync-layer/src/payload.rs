//! What a commit carries for this layer: its marks, and the operations it applied.
//!
//! The engine stores and hashes the payload and never looks inside. Bytes: `SP` and the version `1`,
//! then the [`Payload`] in postcard (<https://postcard.jamesmunns.com/wire-format>). A commit whose
//! payload does not begin so was made by something else: nothing is known of its marks and it applied
//! no mutation.

use bytes::Bytes;
use graft::format::Damaged;
use graft::format::commit::Head;
use graft::volume::LocalCommit;
use graft::{ModuleHash, key};
use serde::{Deserialize, Serialize};

use crate::protocol::{ClientId, Reason, Seed};
use crate::vfs::{Marks, Note};

const MAGIC: &[u8; 3] = b"SP1";

/// The form of an operation enclosed in a local commit's note.
const ENCLOSED: u8 = 1;

/// A commit's payload.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Payload {
    /// What the commit changed of page 1; see [`Marks::to_byte`].
    pub marks: u8,
    /// What was applied, in order.
    pub records: Vec<Record>,
}

/// One operation and how it ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// What.
    pub op: Op,
    /// How it ended.
    pub outcome: Outcome,
}

/// How an operation ended. Once recorded it is obeyed, never decided again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Outcome {
    /// Its effects are in the pages.
    Applied,
    /// It had no effect.
    Rejected(Reason),
}

/// An operation: everything that a run of it depends on, but for the database.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Op {
    /// A client's mutation.
    Mutation(Mutation),
    /// A module was put in force and its new migrations were run.
    Deploy {
        /// The module.
        module: ModuleHash,
        /// The schema version after it.
        schema: u32,
        /// Its clock, ms since 1970.
        clock: i64,
        /// Its seed.
        seed: Seed,
    },
}

/// A client's mutation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Mutation {
    /// Who.
    pub client: ClientId,
    /// The client's sequence number, from 1.
    pub seq: u64,
    /// Which reducer.
    pub reducer: String,
    /// Its arguments: a JSON object's text, keys sorted.
    pub args: String,
    /// Its clock, ms since 1970.
    pub clock: i64,
    /// Its random seed.
    pub seed: Seed,
    /// Tells it from another mutation under the same seq: the first 16 bytes of BLAKE3 over what the
    /// client sent.
    pub content: [u8; 16],
}

impl Op {
    /// About how many bytes it takes in a payload.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Op::Mutation(mutation) => 128 + mutation.reducer.len() + mutation.args.len(),
            Op::Deploy { .. } => 64,
        }
    }
}

impl Record {
    /// About how many bytes it takes in a payload.
    pub(crate) fn bytes(&self) -> usize {
        let outcome = match &self.outcome {
            Outcome::Applied => 0,
            Outcome::Rejected(reason) => reason.code.len() + reason.message.len(),
        };
        self.op.bytes() + outcome
    }
}

impl Record {
    /// What a local commit made by this operation encloses in its note
    /// ([`crate::vfs::Control::enclose`]): one version byte, then postcard.
    pub fn enclose(&self) -> Bytes {
        let bytes = postcard::to_extend(self, vec![ENCLOSED]);
        bytes.expect("our own types serialise into a vector that grows").into()
    }

    /// The operation that made a local commit; `None` for plain SQL.
    pub fn behind(local: &LocalCommit) -> Option<Record> {
        Record::enclosed_in(&Note::decode(&local.payload))
    }

    /// The same, of a note that was decoded.
    pub(crate) fn enclosed_in(note: &Note) -> Option<Record> {
        let (version, body) = note.enclosed.split_first()?;
        (*version == ENCLOSED).then(|| postcard::from_bytes(body).ok()).flatten()
    }
}

impl Payload {
    /// The bytes stored.
    pub fn encode(&self) -> Bytes {
        let bytes = postcard::to_extend(self, MAGIC.to_vec());
        bytes.expect("our own types serialise into a vector that grows").into()
    }

    /// A commit's payload. Safe on hostile bytes.
    ///
    /// # Errors
    ///
    /// [`Damaged`]: it begins as ours and does not go on so. The head's hash vouches for the bytes, so
    /// a faulty or newer writer made it.
    pub fn decode(head: &Head) -> Result<Payload, Damaged> {
        match head.payload.strip_prefix(MAGIC) {
            None => Ok(Payload { marks: Marks::BOTH.to_byte(), records: Vec::new() }),
            Some(body) => postcard::from_bytes(body).map_err(|error| Damaged {
                key: key::log(head.volume, head.lsn),
                reason: format!("its payload cannot be read ({error}); it may be of a newer version"),
            }),
        }
    }

    /// The payload of one commit that rolls up local commits: their marks, and the operations that made
    /// them, of which plain SQL has none. For [`graft::volume::push`].
    pub fn of_locals(locals: &[LocalCommit]) -> Bytes {
        let records = locals.iter().filter_map(Record::behind).collect();
        let marks =
            locals.iter().fold(Marks::default(), |all, local| all.union(Note::decode(&local.payload).marks));
        Payload { marks: marks.to_byte(), records }.encode()
    }

    /// What the commit changed of page 1.
    pub fn marks(&self) -> Marks {
        Marks::from_byte(self.marks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payloads_come_back_equal() {
        let payload = Payload {
            marks: 2,
            records: vec![
                Record {
                    op: Op::Mutation(Mutation {
                        client: ClientId::new("c-1").unwrap(),
                        seq: u64::MAX,
                        reducer: "add_task".into(),
                        args: r#"{"title":"%s"}"#.into(),
                        clock: -5,
                        seed: Seed(u64::MAX),
                        content: [7; 16],
                    }),
                    outcome: Outcome::Rejected(Reason::new("refused", "no")),
                },
                Record {
                    op: Op::Deploy { module: ModuleHash([1; 32]), schema: 3, clock: 0, seed: Seed(1) },
                    outcome: Outcome::Applied,
                },
            ],
        };
        let body = payload.encode();
        assert_eq!(postcard::from_bytes::<Payload>(&body[3..]).unwrap(), payload);
        for cut in 3..body.len() {
            assert!(postcard::from_bytes::<Payload>(&body[3..cut]).is_err(), "cut at {cut}");
        }
    }
}
