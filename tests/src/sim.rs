//! The whole system in one process, one thread and virtual time, from one seed.
//!
//! Real are: coordinators' [`Actor`](sqlsync_layer::actor::Actor)s with SQLite on volumes, both halves of
//! the sync session, publishing, pulling and opening. Simulated are the object store, the network, time,
//! processes and the apps. `docs/simulation.md` says what is modelled and what is not.
//!
//! | module | holds |
//! | --- | --- |
//! | [`world`] | everything together, and the loop that lets the next thing happen |
//! | [`random`], [`queue`], [`tasks`] | chance, virtual time, futures polled by hand |
//! | [`store`] | the object store with latencies and faults |
//! | [`network`] | connections: order, delay, cuts |
//! | [`coordinators`], [`clients`], [`documents`], [`writers`], [`keepers`] | who takes part |
//! | [`bank`] | the app: reducers, queries, what always holds |
//! | [`truth`] | who made, was told and was shown what |
//! | [`serial`] | serializability, judged by what was observed alone |
//! | [`oracle`] | the serial replay that all of it is compared with |
//! | [`plant`] | bugs of the world that must be found |
//! | [`symptoms`] | the kinds of what may not hold |
//! | [`leases`] | who owns the volume, and what must hold of that |
//! | [`disks`] | local stores that lose what was not synced, and fill up |
//! | [`history`] | what happened, readable |
//!
//! Invariant: a run depends on its [`Config`] and nothing else; the same config gives the same history.

pub mod bank;
pub mod clients;
pub mod coordinators;
pub mod disks;
pub mod documents;
pub mod history;
pub mod keepers;
pub mod leases;
pub mod network;
pub mod oracle;
pub mod plant;
pub mod queue;
pub mod random;
pub mod serial;
pub mod store;
pub mod symptoms;
pub mod tasks;
pub mod truth;
pub mod world;
pub mod writers;

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use self::plant::Plant;
use self::symptoms::Symptom;
use self::world::World;

/// What a run depends on.
#[derive(Debug, Clone, Copy)]
pub struct Config {
    /// Everything random comes from here.
    pub seed: u64,
    /// Events of the storm; the store's are not counted.
    pub steps: u64,
    /// A bug of the world.
    pub plant: Option<Plant>,
    /// Print the history as it happens.
    pub loud: bool,
}

impl Config {
    /// A quiet run without a plant.
    pub fn new(seed: u64, steps: u64) -> Config {
        Config { seed, steps, plant: None, loud: false }
    }
}

/// What happened in a run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Summary {
    /// The seed.
    pub seed: u64,
    /// Events, those after the storm included.
    pub steps: u64,
    /// How long it was in the world, in milliseconds.
    pub virtual_ms: u64,
    /// Coordinators that died.
    pub crashes: u64,
    /// Checkpoints that coordinators stored.
    pub checkpoints: u64,
    /// Faults of the store.
    pub faults: u64,
    /// Processes that stood still for longer than collectors wait.
    pub stalls: u64,
    /// Runs of garbage collection.
    pub collections: u64,
    /// Objects that went.
    pub deleted: u64,
    /// Compactions published.
    pub compactions: u64,
    /// And given up, because their epoch had ended.
    pub abandoned: u64,
    /// Forks made.
    pub forks: u64,
    /// Commits in them.
    pub fork_commits: u64,
    /// Commits in the log.
    pub lsns: u64,
    /// Of those, by direct writers.
    pub direct: u64,
    /// LSNs that a coordinator lost, and replayed for.
    pub lsns_lost: u64,
    /// Mutations made.
    pub made: u64,
    /// Of those, durable.
    pub durable: u64,
    /// And rejected.
    pub rejected: u64,
    /// Executions of live queries.
    pub query_runs: u64,
    /// Different sets of rows shown to clients.
    pub shown: u64,
    /// Of those, compared with the durable state that they claim to be.
    pub shown_checked: u64,
    /// Of documents and of what was read.
    pub documents: Documents,
    /// Frames that were lost, with their connections.
    pub frames_lost: u64,
    /// Coordinators that stood still.
    pub frozen: u64,
    /// Partitions.
    pub partitions: u64,
    /// Disks that lost what was not synced, or everything.
    pub power_cuts: u64,
    /// Writes refused by full disks.
    pub disk_full: u64,
    /// Ownerships of leases that began.
    pub owners: u64,
    /// Leases handed over at a shutdown.
    pub handed_over: u64,
    /// Dials that were sent on to the owner.
    pub routed: u64,
    /// Verifications of a volume at work.
    pub verified: u64,
    /// Volumes removed.
    pub removed: u64,
    /// States read under a lease.
    pub reads: u64,
    /// Equal for equal histories.
    pub fingerprint: u64,
}

/// What documents did in a run, and what was checked of reads.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Documents {
    /// How many there were.
    pub documents: u64,
    /// Commits of theirs in the log.
    pub commits: u64,
    /// Rebases put in place.
    pub rebases: u64,
    /// And those given up or cut off in the middle.
    pub cut: u64,
    /// Local commits that kept their pages.
    pub transplanted: u64,
    /// Mutations that ran again.
    pub replayed: u64,
    /// Found in the log.
    pub confirmed: u64,
    /// Branches made.
    pub branches: u64,
    /// And published.
    pub published: u64,
    /// Answers read on replicas, each compared with a serial run.
    pub reads: u64,
    /// Transactions of the check for serializability.
    pub txns: u64,
    /// And their dependencies.
    pub edges: u64,
}

impl Documents {
    fn add(&mut self, other: &Documents) {
        let Documents {
            documents,
            commits,
            rebases,
            cut,
            transplanted,
            replayed,
            confirmed,
            branches,
            published,
            reads,
            txns,
            edges,
        } = other;
        self.documents += documents;
        self.commits += commits;
        self.rebases += rebases;
        self.cut += cut;
        self.transplanted += transplanted;
        self.replayed += replayed;
        self.confirmed += confirmed;
        self.branches += branches;
        self.published += published;
        self.reads += reads;
        self.txns += txns;
        self.edges += edges;
    }
}

impl fmt::Display for Documents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} documents ({} commits, {} rebases and {} cut off: {} kept their pages, {} ran again, {} were in \
             the log; {} branches, {} published), {} reads of replicas, {} transactions with {} dependencies",
            self.documents,
            self.commits,
            self.rebases,
            self.cut,
            self.transplanted,
            self.replayed,
            self.confirmed,
            self.branches,
            self.published,
            self.reads,
            self.txns,
            self.edges
        )
    }
}

impl Summary {
    /// Adds another run.
    pub fn add(&mut self, other: &Summary) {
        let Summary {
            seed: _,
            steps,
            virtual_ms,
            crashes,
            checkpoints,
            faults,
            stalls,
            collections,
            deleted,
            compactions,
            abandoned,
            forks,
            fork_commits,
            lsns,
            direct,
            lsns_lost,
            made,
            durable,
            rejected,
            query_runs,
            shown,
            shown_checked,
            documents,
            frames_lost,
            frozen,
            partitions,
            power_cuts,
            disk_full,
            owners,
            handed_over,
            routed,
            verified,
            removed,
            reads,
            fingerprint: _,
        } = other;
        self.documents.add(documents);
        self.steps += steps;
        self.virtual_ms += virtual_ms;
        self.crashes += crashes;
        self.checkpoints += checkpoints;
        self.faults += faults;
        self.stalls += stalls;
        self.collections += collections;
        self.deleted += deleted;
        self.compactions += compactions;
        self.abandoned += abandoned;
        self.forks += forks;
        self.fork_commits += fork_commits;
        self.lsns += lsns;
        self.direct += direct;
        self.lsns_lost += lsns_lost;
        self.made += made;
        self.durable += durable;
        self.rejected += rejected;
        self.query_runs += query_runs;
        self.shown += shown;
        self.shown_checked += shown_checked;
        self.frames_lost += frames_lost;
        self.frozen += frozen;
        self.partitions += partitions;
        self.power_cuts += power_cuts;
        self.disk_full += disk_full;
        self.owners += owners;
        self.handed_over += handed_over;
        self.routed += routed;
        self.verified += verified;
        self.removed += removed;
        self.reads += reads;
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} steps, {} virtual s, {} crashes, {} checkpoints, {} store faults, {} stalls, \
             {} collections ({} objects), {} compactions ({} abandoned), {} forks ({} commits), {} lsns ({} direct), {} lost and replayed, \
             {} mutations ({} durable, {} rejected), {} live query runs, {} row sets shown ({} checked), \
             {} frames lost, {} freezes, {} partitions, {} power cuts, {} writes to full disks, \
             {} owners ({} handed over, {} dials routed), {} verified, {} removed, {} leased reads, {}",
            self.steps,
            self.virtual_ms / 1000,
            self.crashes,
            self.checkpoints,
            self.faults,
            self.stalls,
            self.collections,
            self.deleted,
            self.compactions,
            self.abandoned,
            self.forks,
            self.fork_commits,
            self.lsns,
            self.direct,
            self.lsns_lost,
            self.made,
            self.durable,
            self.rejected,
            self.query_runs,
            self.shown,
            self.shown_checked,
            self.frames_lost,
            self.frozen,
            self.partitions,
            self.power_cuts,
            self.disk_full,
            self.owners,
            self.handed_over,
            self.routed,
            self.verified,
            self.removed,
            self.reads,
            self.documents
        )
    }
}

/// A run that showed a bug.
#[derive(Debug, Clone)]
pub struct Failure {
    /// How to see it again.
    pub config: Config,
    /// At which event.
    pub step: u64,
    /// What does not hold.
    pub what: String,
    /// The last of what happened.
    pub history: Vec<String>,
}

impl Failure {
    /// What kinds of thing do not hold.
    pub fn symptoms(&self) -> Vec<Symptom> {
        symptoms::of(&self.what)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Config { seed, steps, plant, loud: _ } = self.config;
        for line in &self.history {
            writeln!(f, "{line}")?;
        }
        writeln!(f, "seed {seed}, step {}: {}", self.step, self.what)?;
        write!(f, "again: cargo xtask sim --seed {seed} --steps {steps}")?;
        plant.map_or(Ok(()), |plant| write!(f, " --plant {plant}"))
    }
}

impl std::error::Error for Failure {}

/// Runs one world to its end.
///
/// # Errors
///
/// [`Failure`]: something did not hold, or the product panicked.
pub fn run(config: Config) -> Result<Summary, Box<Failure>> {
    let failure = |step, what, history| Box::new(Failure { config, step, what, history });
    let mut world = World::new(&config).map_err(|what| failure(0, what, Vec::new()))?;
    // After a panic nothing of the world is used again but its diary.
    let lived = catch_unwind(AssertUnwindSafe(|| world.live(config.steps)));
    let panic = lived.err().map(|panic| {
        let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
        format!("a panic: {}", text.unwrap_or_else(|| "(without a text)".into()))
    });
    match world.violation.take().or(panic) {
        Some(what) => Err(failure(world.summary.steps, what, world.history.last())),
        None => Ok(Summary { fingerprint: world.history.fingerprint(), ..world.summary }),
    }
}
