//! What of a session outlives a process, and starting from it.

use super::{
    ClientId, ClientSession, Deserialize, Lsn, PendingMutation, SEQ_MAX, Serialize, SessionConfig, VolumeId,
};

/// What must be kept so that a client id goes on exactly once after a restart.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClientState {
    /// Who.
    pub client: ClientId,
    /// The volume it spoke to; `None` before the first `welcome`.
    pub volume: Option<VolumeId>,
    /// The seq of the next mutation; `None` where only the server knows it.
    pub next_seq: Option<u64>,
    /// The highest seq with a final answer.
    pub settled: u64,
    /// The newest commit at the last `welcome` before its first mutation; 0 before.
    #[serde(default = "no_lsn")]
    pub since: Lsn,
    /// Mutations without a final answer, by ascending seq.
    pub pending: Vec<PendingMutation>,
}

fn no_lsn() -> Lsn {
    Lsn::ZERO
}

/// Why a stored state cannot be continued: it is not one that a session ever had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RestoreError {
    /// Seqs do not ascend from 1 to below the next one.
    #[error("stored state of client `{client}` is damaged: pending seq {seq} is out of order")]
    Order {
        /// Whose.
        client: ClientId,
        /// The first seq that is wrong.
        seq: u64,
    },
    /// The next seq is not beyond the settled ones, or so large that it cannot be.
    #[error(
        "stored state of client `{client}` is damaged: next seq {next} is not beyond settled seq {settled}, or impossible"
    )]
    NextSeq {
        /// Whose.
        client: ClientId,
        /// What it says is next.
        next: u64,
        /// What it says is settled.
        settled: u64,
    },
}

impl ClientSession {
    /// What to keep. Taken after every call and event, it loses nothing that the app was told.
    pub fn state(&self) -> ClientState {
        ClientState {
            client: self.client.clone(),
            volume: self.volume,
            next_seq: self.next_seq,
            settled: self.settled,
            since: self.since,
            pending: self.pending.values().cloned().collect(),
        }
    }

    /// A session that goes on where `state` was taken; pending mutations go out after `welcome`.
    ///
    /// # Errors
    ///
    /// [`RestoreError`] where the state contradicts itself.
    pub fn restore(state: ClientState, config: SessionConfig) -> Result<ClientSession, RestoreError> {
        let ClientState { client, volume, next_seq, settled, since, pending } = state;
        let next = next_seq.unwrap_or(SEQ_MAX);
        if next <= settled || next > SEQ_MAX {
            return Err(RestoreError::NextSeq { client, next, settled });
        }
        let mut before = 0;
        for mutation in &pending {
            if mutation.seq <= before || mutation.seq >= next || next_seq.is_none() {
                return Err(RestoreError::Order { client, seq: mutation.seq });
            }
            before = mutation.seq;
        }
        let mut session = ClientSession::build(client, next_seq, config);
        session.volume = volume;
        session.settled = settled;
        session.since = since;
        session.pending = pending.into_iter().map(|mutation| (mutation.seq, mutation)).collect();
        Ok(session)
    }
}
