//! The owner's lease as coordinators hold it, and what must hold of it.
//!
//! Each life of a coordinator is a node of its own, with the real machine ([`Lease`]) and a wrong clock.
//! [`Registry`] sees all of them and the store at once, which nobody in the world does.
//!
//! Checked after every event: no two believe that they own the volume, where clocks differ by no more
//! than is assumed; where they differ by more, what `graft/src/lease.rs` says is left.

use std::collections::{BTreeMap, BTreeSet};

use graft::lease::{Epoch, Lease, NodeId, Record};

/// One coordinator's part in the lease.
#[derive(Debug)]
pub struct Tenancy {
    /// The machine.
    pub lease: Lease,
    /// This life of the coordinator.
    pub node: NodeId,
    /// Who owns the volume, as far as it knows.
    pub elsewhere: Option<NodeId>,
    /// The wake-up set last; earlier ones do not ring.
    pub wake: u64,
    /// The lease was handed over, or lapses.
    pub let_go: bool,
}

/// Who owned what, ever.
#[derive(Debug, Default)]
pub struct Registry {
    owners: BTreeMap<u64, NodeId>,
    fenced: BTreeSet<(NodeId, u64)>,
    stored: Option<Record>,
    /// Whom a lease was handed to last.
    pub successor: Option<NodeId>,
}

impl Registry {
    /// A node says that it owns the volume.
    pub fn owned(&mut self, node: NodeId, epoch: Epoch) -> Result<bool, String> {
        if self.fenced.contains(&(node, epoch.0)) {
            return Err(format!("{node:?} was fenced from {epoch:?}, and owns it again"));
        }
        match self.owners.insert(epoch.0, node) {
            Some(before) if before != node => Err(format!("{before:?} and {node:?} both owned {epoch:?}")),
            before => Ok(before.is_none()),
        }
    }

    /// A node says that it does not any more.
    pub fn fenced(&mut self, node: NodeId, epoch: Epoch) {
        self.fenced.insert((node, epoch.0));
    }

    /// What the store holds now.
    pub fn stored(&mut self, record: Record) -> Result<(), String> {
        if let Some(before) = &self.stored
            && before.epoch > record.epoch
        {
            return Err(format!("the lease in the store goes back from {before:?} to {record:?}"));
        }
        if let Some(before) = &self.stored
            && before.epoch == record.epoch
            && before.node != record.node
        {
            return Err(format!("one epoch of the lease in the store has two nodes: {before:?}, {record:?}"));
        }
        self.stored = Some(record);
        Ok(())
    }

    /// Who believes to own the volume at this instant.
    pub fn believers(&self, believers: &[(NodeId, Epoch)], respected: bool) -> Result<(), String> {
        if respected && believers.len() > 1 {
            return Err(format!(
                "clocks are as good as is assumed, and {believers:?} all believe to own the volume"
            ));
        }
        let stored = self.stored.as_ref().map_or(0, |record| record.epoch.0);
        let newest = believers.iter().map(|(_, epoch)| epoch.0).max().unwrap_or_default();
        if newest > stored {
            return Err(format!("{believers:?} own what the store does not hold: its epoch is {stored}"));
        }
        let mut epochs: Vec<u64> = believers.iter().map(|(_, epoch)| epoch.0).collect();
        epochs.sort_unstable();
        epochs.dedup();
        if epochs.len() < believers.len() {
            return Err(format!("two own the same epoch: {believers:?}"));
        }
        Ok(())
    }
}
