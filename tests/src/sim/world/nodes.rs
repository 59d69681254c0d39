//! Driving the coordinators: start, flush, outputs, crash, shutdown.

use std::sync::Arc;

use graft::CommitId;
use graft::checkpoint::{self, Written};
use graft::publish::{PublishError, publish};
use graft::volume::Volume;
use sqlsync_layer::actor::{Actor, Input, Outgoing, Output, RequestId};
use sqlsync_layer::protocol::ServerMessage;

use super::{Done, Event, Owner, VOLUME, World};
use crate::sim::bank;
use crate::sim::coordinators::{Ended, Stage};
use crate::sim::disks::Crash;
use crate::sim::plant::Plant;
use crate::sim::store::PageFetch;

/// How often a coordinator looks for what others did.
const LOOK_MS: u64 = 2_000;

impl World {
    /// Whether the coordinator is up with nothing under way, or is not to run any more.
    pub(super) fn node_is_at_rest(&self, at: usize) -> bool {
        let node = &self.nodes[at];
        match &node.stage {
            Stage::Up(actor) => node.waits == 0 && !node.flushing && actor.volume().status().ahead == 0,
            Stage::Down => self.alone.is_some_and(|alone| alone != at),
            Stage::Opening => false,
        }
    }

    pub(super) fn start_node(&mut self, at: usize) {
        if self.alone.is_some_and(|alone| alone != at) || !matches!(self.nodes[at].stage, Stage::Down) {
            return;
        }
        let node = &mut self.nodes[at];
        node.life += 1;
        node.stage = Stage::Opening;
        let (life, options, remote) = (node.life, node.options(), self.bucket.handle(at));
        self.note(format!("coordinator {at} starts, life {life}"));
        self.spawn(Owner::Node(at, life), async move {
            Done::Node(Ended::Opened(Box::new(Volume::open(&remote, VOLUME, options).await)))
        });
    }

    pub(super) fn node_ended(&mut self, at: usize, life: u64, ended: Ended) {
        if self.nodes[at].life != life {
            return;
        }
        match ended {
            Ended::Opened(opened) => {
                let fetch = Arc::new(PageFetch(self.bucket.handle(at)));
                let (mut limits, shelf) = (self.nodes[at].limits, self.shelf.clone());
                limits.ledger_skipped = self.plant == Some(Plant::SkipsLedger);
                self.epochs += 1;
                let epoch = self.epochs << 20;
                let actor = (*opened).map_err(|error| error.to_string()).and_then(|opened| {
                    Actor::open(opened, fetch, shelf, limits, epoch).map_err(|error| error.to_string())
                });
                match actor {
                    Ok(actor) => {
                        self.note(format!("coordinator {at} is up on {:?}", actor.volume()));
                        self.nodes[at].epoch = epoch;
                        self.nodes[at].stage = Stage::Up(Box::new(actor));
                        self.collect(at);
                        self.want_lease(at);
                        self.queue.after(LOOK_MS, Event::Look { node: at, life });
                    }
                    Err(why) => {
                        self.note(format!("coordinator {at} cannot open: {why}"));
                        self.nodes[at].stop();
                        let delay = self.random.between(100, 1_500);
                        self.queue.after(delay, Event::StartNode(at));
                    }
                }
            }
            Ended::Published(id, result) => {
                if let Err(PublishError::Rejected { .. }) = &result {
                    self.truth.lost.insert(id);
                }
                match &result {
                    Ok(published) => self.note(format!("coordinator {at} published lsn {}", published.lsn)),
                    Err(error) => self.note(format!("coordinator {at}: {error}")),
                }
                self.input(at, Input::Published(result));
            }
            Ended::Pulled(result) => {
                match &result {
                    Ok(pulled) => self.note(format!(
                        "coordinator {at} pulled {} commits after lsn {}",
                        pulled.heads.len(),
                        pulled.from
                    )),
                    Err(error) => self.note(format!("coordinator {at}: {error}")),
                }
                self.input(at, Input::Pulled(result));
            }
            Ended::Checkpointed(result) => {
                match &result {
                    Ok(written) => self.note(format!("coordinator {at}: {written:?}")),
                    Err(error) => self.note(format!("coordinator {at}: {error}")),
                }
                self.summary.checkpoints += u64::from(matches!(result, Ok(Written::Stored { .. })));
                self.input(at, Input::Checkpointed(result));
            }
            Ended::Leased(event) => self.lease_event(at, event),
        }
    }

    /// Feeds an actor, carries out what it asks for, and lets it flush soon.
    pub(super) fn input(&mut self, at: usize, input: Input) {
        let Some(actor) = self.nodes[at].actor() else { return };
        actor.handle(input);
        self.collect(at);
        let node = &mut self.nodes[at];
        if !node.flushing && matches!(node.stage, Stage::Up(_)) {
            node.flushing = true;
            let (life, delay) = (node.life, self.random.below(15));
            self.queue.after(delay, Event::Flush { node: at, life });
        }
    }

    pub(super) fn flush(&mut self, at: usize, life: u64) {
        if self.nodes[at].life != life {
            return;
        }
        self.nodes[at].flushing = false;
        let (now_ms, id) = (self.now_ms() + self.nodes[at].skew_ms, CommitId(self.random.bytes16()));
        if let Some(actor) = self.nodes[at].actor() {
            actor.flush(now_ms, id);
            self.collect(at);
        }
    }

    /// Direct writers tell nobody.
    pub(super) fn look(&mut self, at: usize, life: u64) {
        if self.nodes[at].life == life && self.nodes[at].actor().is_some() {
            self.queue.after(LOOK_MS, Event::Look { node: at, life });
            self.input(at, Input::Look);
        }
    }

    pub(super) fn woken(&mut self, at: usize, life: u64) {
        if self.nodes[at].life == life {
            self.nodes[at].waits = self.nodes[at].waits.saturating_sub(1);
            self.input(at, Input::Woken);
        }
    }

    /// Carries out an actor's outputs.
    fn collect(&mut self, at: usize) {
        let epoch = self.nodes[at].epoch_now();
        let Some(actor) = self.nodes[at].actor() else { return };
        let outputs = actor.take_outputs();
        let (base, volume) = (actor.volume().base().lsn(), actor.volume().clone());
        self.truth.epochs.entry(epoch).or_insert(base);
        let life = self.nodes[at].life;
        for output in outputs {
            let remote = self.bucket.handle(at);
            match output {
                Output::Send { session, message } => {
                    let text = self.outgoing(message);
                    self.send_down(session.0, text);
                }
                Output::Publish(prepared) => {
                    self.note(format!("coordinator {at} publishes lsn {}", prepared.head.lsn));
                    self.truth.published.insert(prepared.head.id, epoch);
                    let id = prepared.head.id;
                    self.spawn(Owner::Node(at, life), async move {
                        Done::Node(Ended::Published(id, publish(&remote, &prepared).await))
                    });
                }
                Output::Pull => {
                    let volume = volume.clone();
                    self.spawn(Owner::Node(at, life), async move {
                        Done::Node(Ended::Pulled(volume.pull(&remote).await))
                    });
                }
                Output::Checkpoint { snapshot, state } => {
                    self.note(format!("coordinator {at} writes a checkpoint of lsn {}", snapshot.lsn()));
                    let volume = volume.clone();
                    self.spawn(Owner::Node(at, life), async move {
                        let written = checkpoint::write(&remote, &volume, &snapshot, state).await;
                        Done::Node(Ended::Checkpointed(written))
                    });
                }
                Output::Wake { after_ms } => {
                    self.nodes[at].waits += 1;
                    self.queue.after(after_ms, Event::Woken { node: at, life });
                }
                Output::Deployed { request, result } => {
                    self.note(format!("coordinator {at}: deploy {} ended: {result:?}", request.0));
                    if let Ok(deployed) = result
                        && let Some(version) = bank::version(deployed.module)
                    {
                        self.truth.deployed.push((version, deployed.lsn));
                    }
                }
                Output::Drained => {
                    self.note(format!("coordinator {at} has drained"));
                    self.nodes[at].drained = true;
                    self.stop_if_done(at);
                }
                Output::Asked { .. } | Output::Inspected { .. } | Output::Remind { .. } => {
                    unreachable!("nobody asks by HTTP in this world")
                }
            }
        }
    }

    /// One frame's text; a plant may turn `accepted` into `durable`.
    fn outgoing(&self, message: Outgoing) -> String {
        match message {
            Outgoing::Message(ServerMessage::Accepted { seq, lsn })
                if self.plant == Some(Plant::AckBeforePublish) =>
            {
                ServerMessage::Durable { seq, lsn }.to_json()
            }
            message @ (Outgoing::Message(_) | Outgoing::Shared { .. }) => message.to_json(),
        }
    }

    /// Deploys some version through some coordinator that is up.
    pub(super) fn deploy_somewhere(&mut self) {
        let at = self.random.index(self.nodes.len());
        let version = self.random.between(1, u64::from(bank::VERSION_MAX)) as u32;
        self.tags += 1;
        let now_ms = self.now_ms() + self.nodes[at].skew_ms;
        let (request, seed) = (RequestId(self.tags), self.random.draw());
        self.note(format!("deploy {} of version {version} at coordinator {at}", request.0));
        self.input(at, Input::Deploy { request, module: bank::module(version), now_ms, seed });
    }

    /// Asks a coordinator to shut down gracefully.
    pub(super) fn drain_node(&mut self, at: usize) {
        if self.nodes[at].actor().is_some() && !self.nodes[at].draining {
            self.note(format!("coordinator {at} is asked to shut down"));
            self.nodes[at].draining = true;
            self.hand_over_lease(at);
            self.input(at, Input::Shutdown);
        }
    }

    /// Kills a coordinator where it stands; it starts again later.
    pub(super) fn crash_node(&mut self, at: usize) {
        if matches!(self.nodes[at].stage, Stage::Down) {
            return;
        }
        let how = Crash::random(&mut self.random);
        self.note(format!("coordinator {at} crashes; its disk: {how:?}"));
        self.summary.crashes += 1;
        if let Some(disk) = &self.nodes[at].disk {
            disk.crash(how);
            self.summary.power_cuts += u64::from(how != Crash::Kept);
        }
        self.stop_node(at);
    }

    /// A shutdown is over once the actor has drained and the lease is let go.
    pub(super) fn stop_if_done(&mut self, at: usize) {
        let node = &self.nodes[at];
        if node.drained && node.tenancy.as_ref().is_none_or(|tenancy| tenancy.let_go) {
            self.stop_node(at);
        }
    }

    fn stop_node(&mut self, at: usize) {
        let life = self.nodes[at].life;
        self.bucket.crash(at);
        self.tasks.cancel(Owner::Node(at, life));
        self.nodes[at].stop();
        self.end_of_node(at, life);
        let delay = self.random.between(50, 4_000);
        self.queue.after(delay, Event::StartNode(at));
    }
}
