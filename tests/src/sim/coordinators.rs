//! One coordinator: opens the volume from the bucket, drives the real [`Actor`], dies and comes back.

use graft::CommitId;
use graft::checkpoint::{CheckpointError, Policy, Written};
use graft::lease;
use graft::publish::{PublishError, Published};
use graft::pull::{PullError, Pulled};
use graft::volume::{OpenError, Opened, Options};
use sqlsync_layer::actor::{Actor, Limits, Metrics};

use super::disks::Disk;
use super::leases::Tenancy;
use super::random::Random;

/// What a coordinator is doing.
#[derive(Debug)]
pub enum Stage {
    /// Not running.
    Down,
    /// Reading the log.
    Opening,
    /// Serving. The actor is boxed because it is large.
    Up(Box<Actor>),
}

/// One coordinator.
#[derive(Debug)]
pub struct Coordinator {
    /// What it is doing.
    pub stage: Stage,
    /// How many times it has started.
    pub life: u64,
    /// The epoch that its actor began in.
    pub epoch: u64,
    /// Whether a flush is on its way.
    pub flushing: bool,
    /// Waits asked for that are not over.
    pub waits: u32,
    /// A graceful shutdown was asked for.
    pub draining: bool,
    /// It has drained, and only its lease is still to be let go.
    pub drained: bool,
    /// Its view of the owner's lease, while it runs.
    pub tenancy: Option<Tenancy>,
    /// What its actors did before the present one.
    pub past: Metrics,
    /// Pages and metadata kept across restarts, if it has a disk.
    pub disk: Option<Disk>,
    /// How far its clock is ahead of the world's, in milliseconds.
    pub skew_ms: i64,
    /// Its process stands still until then.
    pub frozen_until: u64,
    /// Its clients cannot reach it.
    pub isolated: bool,
    /// Bytes of pages in memory.
    pub cache_bytes: usize,
    /// Bounds of its actor.
    pub limits: Limits,
}

/// How work that a coordinator began has ended.
#[derive(Debug)]
pub enum Ended {
    /// The volume was opened, or not.
    Opened(Box<Result<Opened, OpenError>>),
    /// A publication of this commit.
    Published(CommitId, Result<Published, PublishError>),
    /// A pull.
    Pulled(Result<Pulled, PullError>),
    /// A checkpoint.
    Checkpointed(Result<Written, CheckpointError>),
    /// A request of the lease's machine.
    Leased(lease::Event),
}

impl Coordinator {
    /// A coordinator that is down.
    pub fn new(random: &mut Random, page_bytes: u32) -> Coordinator {
        let disk = random.chance(0.4).then(|| Disk::new(random.fork(), false));
        let batch_mutations_max = if random.chance(0.5) { random.between(1, 6) as usize } else { 256 };
        let checkpoint = Policy { commits: random.between(1, 40), ..Policy::default() };
        Coordinator {
            stage: Stage::Down,
            life: 0,
            epoch: 0,
            flushing: false,
            waits: 0,
            draining: false,
            drained: false,
            tenancy: None,
            past: Metrics::default(),
            disk,
            skew_ms: 0,
            frozen_until: 0,
            isolated: false,
            // One frame of 64 pages must fit into half of it.
            cache_bytes: if random.chance(0.5) { 160 * page_bytes as usize } else { 4 << 20 },
            limits: Limits { batch_mutations_max, checkpoint, ..Limits::default() },
        }
    }

    /// How it opens the volume.
    pub fn options(&self) -> Options {
        Options {
            store: self.disk.as_ref().map(Disk::store),
            locals: None,
            cache_bytes: self.cache_bytes,
            ..Options::default()
        }
    }

    /// The actor, where it runs.
    pub fn actor(&mut self) -> Option<&mut Actor> {
        match &mut self.stage {
            Stage::Up(actor) => Some(actor),
            Stage::Down | Stage::Opening => None,
        }
    }

    /// The actor's present epoch: each replay began a new one.
    pub fn epoch_now(&self) -> u64 {
        match &self.stage {
            Stage::Up(actor) => self.epoch + actor.metrics().replays,
            Stage::Down | Stage::Opening => self.epoch,
        }
    }

    /// Ends the present life; answers whether there was one.
    pub fn stop(&mut self) -> bool {
        let was = std::mem::replace(&mut self.stage, Stage::Down);
        (self.flushing, self.waits, self.draining) = (false, 0, false);
        (self.frozen_until, self.drained) = (0, false);
        self.tenancy = None;
        match was {
            Stage::Up(actor) => {
                self.past = sum(self.past, actor.metrics());
                true
            }
            Stage::Opening => true,
            Stage::Down => false,
        }
    }

    /// What all its actors did.
    pub fn metrics(&self) -> Metrics {
        match &self.stage {
            Stage::Up(actor) => sum(self.past, actor.metrics()),
            Stage::Down | Stage::Opening => self.past,
        }
    }
}

fn sum(a: Metrics, b: Metrics) -> Metrics {
    Metrics {
        operations_run: a.operations_run + b.operations_run,
        batches: a.batches + b.batches,
        published: a.published + b.published,
        replays: a.replays + b.replays,
        query_runs: a.query_runs + b.query_runs,
        row_messages: a.row_messages + b.row_messages,
    }
}
