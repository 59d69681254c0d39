//! A replica and its ledger, which go forward together.
//!
//! The engine knows pages; what this layer remembers of a volume is in checkpoints' states and commits'
//! payloads. Whoever writes checkpoints must hold it at exactly the commit that its replica stands at.
//!
//! Invariant: the ledger is that of the replica's base, unless a pull failed half-way: then neither is
//! used further before the next pull.

use std::sync::Arc;

use graft::VolumeId;
use graft::checkpoint::{CheckpointError, Policy, Written};
use graft::format::Damaged;
use graft::pull::PullError;
use graft::remote::Remote;
use graft::store::StoreError;
use graft::volume::{OpenError, Opened, Options, Volume};

use crate::ledger::Ledger;

/// Why a replica and its ledger could not be opened, or did not go forward.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FollowError {
    /// The volume could not be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// What others committed could not be read; nothing has moved.
    #[error(transparent)]
    Pull(#[from] PullError),
    /// A checkpoint's state or a commit's payload is none of ours: `graft volume verify` says more.
    #[error(transparent)]
    Damaged(#[from] Damaged),
    /// The local store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A replica and its ledger.
#[derive(Debug)]
pub struct Followed {
    volume: Arc<Volume>,
    ledger: Ledger,
}

impl Followed {
    /// Opens the newest state. Costs what [`Volume::open`] says.
    ///
    /// # Errors
    ///
    /// [`FollowError`].
    pub async fn open(
        remote: &dyn Remote,
        volume: VolumeId,
        options: Options,
    ) -> Result<Followed, FollowError> {
        let Opened { volume, start, heads } = Volume::open(remote, volume, options).await?;
        Ok(Followed { ledger: Ledger::open(&start, &heads)?, volume: Arc::new(volume) })
    }

    /// The replica.
    pub fn volume(&self) -> &Arc<Volume> {
        &self.volume
    }

    /// The ledger at the replica's base. What the replica itself pushed since the last pull is not in it:
    /// pull before, where that was anything but plain SQL.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Takes in what others committed; nothing while there are local commits. Costs what [`Volume::pull`]
    /// says.
    ///
    /// # Errors
    ///
    /// [`FollowError`]; pull again.
    pub async fn pull(&mut self, remote: &dyn Remote) -> Result<(), FollowError> {
        let pulled = self.volume.pull(remote).await?;
        // Aside until the replica has moved, so that the two stay together.
        let mut ledger = match &pulled.jump {
            Some(start) => Ledger::open(start, &[])?,
            None => self.ledger.clone(),
        };
        ledger.follow(&pulled.heads)?;
        if self.volume.status().ahead == 0 {
            self.volume.absorb(pulled)?;
            self.ledger = ledger;
        }
        Ok(())
    }

    /// Writes a checkpoint of the base, where `policy` says that one is due. Costs what
    /// [`graft::checkpoint::write`] says.
    ///
    /// # Errors
    ///
    /// As there. Nothing depends on it: the next writer does it.
    pub async fn checkpoint(
        &self,
        remote: &dyn Remote,
        policy: &Policy,
    ) -> Result<Option<Written>, CheckpointError> {
        if !self.volume.checkpoint_due(policy) {
            return Ok(None);
        }
        let (base, state) = (self.volume.base(), self.ledger.encode());
        graft::checkpoint::write(remote, &self.volume, &base, state).await.map(Some)
    }
}
