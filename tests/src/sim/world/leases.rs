//! Driving the coordinators' leases: wanted at the start, looked after by a wrong clock, handed over at a
//! graceful shutdown, gone with the process. Nothing else in the world asks who owns the volume but the
//! clients' way to it.

use futures::FutureExt as _;
use graft::lease::{self, Config, Effect, Lease, NodeId, Record, owner_key};
use graft::remote::Remote as _;

use super::{Done, Event, Owner, VOLUME, World};
use crate::sim::coordinators::{Ended, Stage};
use crate::sim::leases::Tenancy;
use crate::sim::plant::Plant;

impl World {
    /// A coordinator's clock, ms since 1970.
    fn node_clock(&self, at: usize) -> i64 {
        self.now_ms() + self.nodes[at].skew_ms
    }

    /// A coordinator that is up wants to own the volume.
    pub(super) fn want_lease(&mut self, at: usize) {
        let tenure = self.profile.tenure;
        if !tenure.held {
            return;
        }
        let node = NodeId(self.random.bytes16());
        let config = Config {
            volume: VOLUME,
            node,
            address: format!("coordinator {at}"),
            ttl_ms: tenure.ttl_ms,
            skew_ms: tenure.assumed_ms,
            retry_ms: 200,
        };
        let lease = Lease::new(config);
        self.nodes[at].tenancy = Some(Tenancy { lease, node, elsewhere: None, wake: 0, let_go: false });
        self.lease_event(at, lease::Event::Want);
    }

    /// Half of the time the coordinator that owns the volume, if one does: else hardly anything is handed over.
    pub(super) fn owner_or(&mut self, node: usize) -> usize {
        let owns = |at: &usize| {
            let tenancy = self.nodes[*at].tenancy.as_ref();
            tenancy.is_some_and(|tenancy| tenancy.lease.owns(self.node_clock(*at)).is_some())
        };
        let owner = (0..self.nodes.len()).find(owns);
        owner.filter(|_| self.random.chance(0.5)).unwrap_or(node)
    }

    /// A coordinator shuts down: somebody else may own the volume at once.
    pub(super) fn hand_over_lease(&mut self, at: usize) {
        let others = (0..self.nodes.len()).filter(|other| *other != at && !self.nodes[*other].draining);
        let others: Vec<NodeId> =
            others.filter_map(|other| self.nodes[other].tenancy.as_ref().map(|t| t.node)).collect();
        let to = match others.len() {
            0 => None,
            _ if self.random.chance(0.3) => None,
            len => Some(others[self.random.index(len)]),
        };
        self.registry.successor = to;
        self.lease_event(at, lease::Event::HandOver { to });
    }

    pub(super) fn lease_tick(&mut self, at: usize, life: u64, wake: u64) {
        if self.nodes[at].life == life && self.nodes[at].tenancy.as_ref().is_some_and(|t| t.wake == wake) {
            self.lease_event(at, lease::Event::Tick);
        }
    }

    /// Feeds a machine and carries out what it asks for.
    pub(super) fn lease_event(&mut self, at: usize, event: lease::Event) {
        let now = self.node_clock(at);
        let life = self.nodes[at].life;
        let ignores = self.plant == Some(Plant::OwnerIgnoresClock);
        let Some(tenancy) = &mut self.nodes[at].tenancy else { return };
        let node = tenancy.node;
        if ignores && tenancy.lease.owns(i64::MIN).is_some() && matches!(event, lease::Event::Tick) {
            return;
        }
        for effect in tenancy.lease.handle(now, event) {
            match effect {
                Effect::Get { .. } | Effect::Create { .. } | Effect::Update { .. } => {
                    let remote = self.bucket.handle(at);
                    self.spawn(Owner::Node(at, life), async move {
                        let event = lease::perform(&remote, VOLUME, &effect).await;
                        Done::Node(Ended::Leased(event.unwrap_or(lease::Event::Tick)))
                    });
                }
                Effect::Wake { at_ms } => {
                    let Some(tenancy) = &mut self.nodes[at].tenancy else { return };
                    tenancy.wake += 1;
                    let wake = tenancy.wake;
                    let delay = u64::try_from(at_ms.saturating_sub(now)).unwrap_or_default();
                    self.queue.after(delay.max(1), Event::LeaseTick { node: at, life, wake });
                }
                Effect::Owned { epoch, .. } => {
                    self.set_elsewhere(at, None);
                    match self.registry.owned(node, epoch) {
                        Ok(true) => {
                            self.note(format!("coordinator {at} owns the volume, {epoch:?}"));
                            self.summary.owners += 1;
                            let handed = self.registry.successor.take() == Some(node);
                            self.summary.handed_over += u64::from(handed);
                        }
                        Ok(false) => {}
                        Err(what) => self.violate(what),
                    }
                }
                Effect::Fenced { epoch } => {
                    self.note(format!("coordinator {at} is fenced from {epoch:?}"));
                    self.registry.fenced(node, epoch);
                }
                Effect::Elsewhere { node: owner, .. } => self.set_elsewhere(at, Some(owner)),
                Effect::LetGo => {
                    if let Some(tenancy) = &mut self.nodes[at].tenancy {
                        tenancy.let_go = true;
                    }
                    self.stop_if_done(at);
                }
                Effect::Unreadable { reason } => {
                    self.note(format!("coordinator {at} cannot read the lease: {reason}"));
                }
            }
        }
    }

    fn set_elsewhere(&mut self, at: usize, owner: Option<NodeId>) {
        if let Some(tenancy) = &mut self.nodes[at].tenancy {
            tenancy.elsewhere = owner;
        }
    }

    /// Whether a coordinator believes at this instant that it owns the volume.
    fn owns(&self, at: usize) -> Option<(NodeId, lease::Epoch)> {
        let tenancy = self.nodes[at].tenancy.as_ref()?;
        // The plant's owner goes by what its clock showed when it last heard anything.
        let ignores = self.plant == Some(Plant::OwnerIgnoresClock);
        let now = if ignores { i64::MIN } else { self.node_clock(at) };
        Some((tenancy.node, tenancy.lease.owns(now)?))
    }

    /// Where a client that reached coordinator `at` is sent.
    pub(super) fn route(&mut self, at: usize) -> usize {
        if !self.profile.tenure.routed || self.owns(at).is_some() {
            return at;
        }
        let owner = self.nodes[at].tenancy.as_ref().and_then(|tenancy| tenancy.elsewhere);
        let known = |node: &usize| self.nodes[*node].tenancy.as_ref().map(|t| t.node) == owner;
        match owner.and_then(|_| (0..self.nodes.len()).find(known)) {
            Some(owner) => {
                self.summary.routed += u64::from(self.owns(owner).is_some());
                owner
            }
            None => at,
        }
    }

    /// After the store changed: epochs only rise.
    pub(super) fn look_at_lease(&mut self) {
        let Some(Ok(bytes)) = self.objects.get(&owner_key(VOLUME)).now_or_never() else { return };
        if self.lease_seen == bytes {
            return;
        }
        let checked = match Record::decode(VOLUME, &bytes) {
            Ok(record) => self.registry.stored(record),
            Err(reason) => Err(format!("the lease in the store: {reason}")),
        };
        self.lease_seen = bytes;
        if let Err(what) = checked {
            self.violate(what);
        }
    }

    /// At every instant: who believes to own the volume.
    pub(super) fn look_at_owners(&mut self) {
        let believers: Vec<_> = (0..self.nodes.len()).filter_map(|at| self.owns(at)).collect();
        if let Err(what) = self.registry.believers(&believers, self.profile.tenure.is_respected()) {
            self.violate(what);
        }
    }

    /// Whether somebody owns the volume, where anybody may.
    pub(super) fn is_owned(&self) -> bool {
        let wanted = |at: &usize| matches!(self.nodes[*at].stage, Stage::Up(_));
        !self.profile.tenure.held
            || !(0..self.nodes.len()).any(|at| wanted(&at))
            || (0..self.nodes.len()).any(|at| self.owns(at).is_some())
    }
}
