//! The world: everything that is simulated, and the loop that lets the next thing happen.
//!
//! ```text
//!   storm: `steps` events with faults ─→ calm: faults end, everything comes to rest (bounded)
//!        ─→ one coordinator alone, one more mutation by each client ─→ rest ─→ the oracle
//! ```
//!
//! | module | holds |
//! | --- | --- |
//! | [`nodes`] | driving the coordinators' actors |
//! | [`people`] | driving the clients' sessions, and checking at once what they are told and shown |
//! | [`documents`] | driving documents and direct readers |
//! | [`leases`] | who owns the volume by whose clock |
//! | [`upkeep`] | driving those who keep house, and the last collection when all is quiet |
//! | [`wires`] | frames and the ends of connections |
//! | [`chaos`] | what goes wrong beside the store, and how much of it a seed has |
//!
//! Invariants: nothing here looks at a clock, a thread or the order of a hash map; every choice comes
//! from the seed. The first violation ends the run.

pub mod chaos;
mod documents;
mod leases;
mod nodes;
mod people;
mod upkeep;
mod wires;

use std::sync::Arc;

use bytes::Bytes;
use futures::executor::block_on;
use graft::fetch::RemoteFetch;
use graft::format::meta::Meta;
use graft::plants::{Bug, Played};
use graft::remote::{MemoryRemote, SharedRemote};
use graft::store::Durability;
use graft::volume::{Options, Volume};
use graft::{CommitId, Lsn, PageSize, VolumeId, VolumeName, catalog};
use sqlsync_layer::actor::{Actor, Input, Limits, Output, RequestId};

use self::chaos::Profile;
use self::documents::{Cast, DocumentEnded, DocumentEvent};
use super::bank::{self, Shelf};
use super::clients::Client;
use super::coordinators::{Coordinator, Ended};
use super::disks::Disk;
use super::history::History;
use super::keepers::{SharedFamily, Trade};
use super::leases::Registry;
use super::network::{ConnId, Network};
use super::oracle;
use super::plant::Plant;
use super::queue::Queue;
use super::random::Random;
use super::store::{Bucket, StoreEvent, Weather};
use super::symptoms::{ADDED, READ};
use super::tasks::Tasks;
use super::truth::{Claim, Seen, Shown, Truth, rows_text};
use super::writers::Desk;
use super::{Config, Summary};

/// The volume of every world.
pub const VOLUME: VolumeId = VolumeId([0x5E; 16]);

/// When every world begins, ms since 1970.
const EPOCH_MS: i64 = 1_700_000_000_000;

/// How long the world may take to come to rest once nothing fails any more, in virtual milliseconds.
const REST_MS: u64 = 20 * 60 * 1000;

/// How long a look at the log vouches for its head, where tombstones go.
const RECENT_MS: u64 = 10_000;

/// How long they stay: longer than a request may travel, and a process stand still between its look and
/// its create.
const BURIAL_MS: i64 = 75_000;

/// And in events.
const REST_EVENTS: u64 = 1_000_000;

/// What will happen.
#[derive(Debug)]
enum Event {
    /// The object store.
    Store(StoreEvent),
    /// A dial ends.
    Dialled { client: usize, life: u64, dial: u64 },
    /// A frame reaches the server.
    ToServer { conn: ConnId, text: String },
    /// A frame reaches the client.
    ToClient { conn: ConnId, text: String },
    /// The client learns that its connection is over.
    EndAtClient { conn: ConnId },
    /// The server learns it.
    EndAtServer { conn: ConnId },
    /// A slow client reads again.
    Relieved { conn: ConnId },
    /// A session's timer rings.
    Timer { client: usize, life: u64, timer: u64 },
    /// An app does something.
    ClientActs(usize),
    /// Somebody runs SQL beside the coordinators.
    WriterActs(usize),
    /// Somebody keeps house.
    KeeperActs(usize),
    /// Something about documents.
    Document(DocumentEvent),
    /// A client's process starts again.
    StartClient(usize),
    /// A coordinator starts.
    StartNode(usize),
    /// A coordinator has no more inputs at hand.
    Flush { node: usize, life: u64 },
    /// A coordinator's lease is to be looked after.
    LeaseTick { node: usize, life: u64, wake: u64 },
    /// A coordinator looks for what others did.
    Look { node: usize, life: u64 },
    /// A wait of a coordinator is over.
    Woken { node: usize, life: u64 },
    /// Somebody reaches the store again.
    Reachable(usize),
    /// A partition ends: these coordinators reach their clients again.
    Rejoined(Vec<usize>),
    /// There is room on somebody's disk again.
    DiskFreed(usize),
    /// A process that stood still goes on.
    Thawed(usize),
    /// Something goes wrong.
    Chaos,
}

/// Whose a task is.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Owner {
    /// A coordinator in one of its lives.
    Node(usize, u64),
    /// A direct writer.
    Writer(usize),
    /// Somebody who keeps house.
    Keeper(usize),
    /// A document in one of its lives.
    Document(usize, u64),
    /// A direct reader.
    Reader(usize),
}

/// How a task ended.
#[derive(Debug)]
enum Done {
    /// A coordinator's.
    Node(Ended),
    /// A direct writer's.
    Writer(String),
    /// A keeper's.
    Keeper(String),
    /// A document's.
    Document(DocumentEnded),
    /// A direct reader's.
    Reader(Result<Vec<Seen>, String>),
}

/// Who asks the object store on behalf of writer `at`.
fn writer_asker(at: usize) -> usize {
    1000 + at
}

/// The writer at an asker.
fn writer_at(asker: usize) -> Option<usize> {
    asker.checked_sub(1000)
}

/// What a direct writer has: mostly a disk, and mostly one that it waits for.
fn desk(random: &mut Random, plant: Option<Plant>) -> Desk {
    let lies = plant == Some(Plant::AckBeforeFsync);
    let disk = random.chance(0.6).then(|| Disk::new(random.fork(), false));
    let locals = if random.chance(0.3) { Durability::Buffered } else { Durability::Sync };
    Desk::new(disk, locals, lies)
}

/// Everything. See the module.
#[derive(Debug)]
pub struct World {
    queue: Queue<Event>,
    random: Random,
    pub(super) history: History,
    bucket: Bucket,
    objects: Arc<MemoryRemote>,
    shelf: Arc<Shelf>,
    tasks: Tasks<Owner, Done>,
    /// Whether a task may be able to go on.
    stirred: bool,
    nodes: Vec<Coordinator>,
    /// Those with a session: clients, and then the documents that go through a coordinator.
    clients: Vec<Client>,
    cast: Cast,
    writers: Vec<(Desk, bool)>,
    /// Who keeps house, and whether they are at work.
    keepers: Vec<(Trade, bool)>,
    family: SharedFamily,
    network: Network,
    registry: Registry,
    /// The lease's bytes when they were last looked at.
    lease_seen: Bytes,
    truth: Truth,
    profile: Profile,
    plant: Option<Plant>,
    /// Faults and new work happen.
    storm: bool,
    /// When they ended.
    calm_since: u64,
    /// The coordinator that is left at the end.
    alone: Option<usize>,
    epochs: u64,
    tags: u64,
    pub(super) violation: Option<String>,
    pub(super) summary: Summary,
}

impl World {
    /// A world at its beginning: a volume with the first module in force, nobody running yet.
    pub fn new(config: &Config) -> Result<World, String> {
        graft::plants::plant(match config.plant {
            Some(Plant::ReusesSegmentKeys) => Some(Bug::SharedSegmentKeys),
            Some(Plant::SkipsReadBack) => Some(Bug::NoReadBack),
            Some(_) | None => None,
        });
        graft::plants::play(None);
        let mut random = Random::new(config.seed);
        let profile = Profile::draw(&mut random).roughened(config.seed);
        let bucket = Bucket::new(random.fork(), config.plant);
        bucket.set_weather(profile.weather);
        let impure = config.plant == Some(Plant::ImpureReducer);
        let shelf = Arc::new(Shelf::new(random.fork(), profile.module_fails, impure));
        let mut nodes: Vec<Coordinator> =
            (0..profile.nodes).map(|_| Coordinator::new(&mut random, profile.page_bytes)).collect();
        for node in &mut nodes {
            node.skew_ms = random.between(0, profile.tenure.skew_ms) as i64;
        }
        let mut clients: Vec<Client> =
            (0..profile.clients).map(|at| Client::new(at, random.fork())).collect();
        let writers = (0..profile.writers).map(|_| (desk(&mut random, config.plant), false)).collect();
        let cast = Cast::draw(&mut random.fork(), profile.page_bytes, &mut clients, config.plant);
        let mutating = profile.clients + cast.documents.len();
        let truth = Truth {
            made: vec![Default::default(); mutating],
            told: vec![Default::default(); mutating],
            ..Truth::default()
        };
        let mut world = World {
            queue: Queue::default(),
            random,
            history: History::new(config.loud),
            objects: bucket.objects(),
            bucket,
            shelf,
            tasks: Tasks::default(),
            stirred: false,
            nodes,
            clients,
            cast,
            writers,
            keepers: profile.keepers.iter().map(|trade| (*trade, false)).collect(),
            family: SharedFamily::default(),
            network: Network::default(),
            registry: Registry::default(),
            lease_seen: Bytes::new(),
            truth,
            profile,
            plant: config.plant,
            storm: true,
            calm_since: 0,
            alone: None,
            epochs: 1,
            tags: 0,
            violation: None,
            summary: Summary { seed: config.seed, ..Summary::default() },
        };
        world.found()?;
        Ok(world)
    }

    /// Makes the volume and deploys the first module, before time begins.
    fn found(&mut self) -> Result<(), String> {
        let remote: SharedRemote = self.objects.clone();
        let name: VolumeName = "bank".parse().map_err(|error| format!("{error}"))?;
        let page_size = PageSize::new(self.profile.page_bytes).ok_or("not a page size")?;
        let meta = Meta { page_size, parent: None };
        block_on(catalog::create(&*remote, &name, VOLUME, meta)).map_err(|error| error.to_string())?;
        let options = Options { locals: None, ..Options::default() };
        let opened = block_on(Volume::open(&*remote, VOLUME, options)).map_err(|error| error.to_string())?;
        let fetch = Arc::new(RemoteFetch::new(remote.clone()));
        let modules = Arc::new(Shelf::new(Random::new(0), 0.0, false));
        let mut actor = Actor::open(opened, fetch, modules, Limits::default(), self.epochs)
            .map_err(|error| error.to_string())?;
        let (module, now_ms) = (bank::module(1), self.now_ms());
        actor.handle(Input::Deploy { request: RequestId(0), module, now_ms, seed: 7 });
        actor.flush(now_ms, CommitId(self.random.bytes16()));
        for output in actor.take_outputs() {
            if let Output::Publish(prepared) = output {
                self.truth.published.insert(prepared.head.id, self.epochs);
                block_on(graft::publish::publish(&*remote, &prepared)).map_err(|error| error.to_string())?;
            }
        }
        self.bucket.archive_all();
        self.truth.epochs.insert(self.epochs, Lsn::ZERO);
        for node in 0..self.nodes.len() {
            let delay = self.random.below(300);
            self.queue.after(delay, Event::StartNode(node));
        }
        self.found_documents();
        for client in 0..self.profile.clients {
            let delay = self.random.below(500);
            self.queue.after(delay, Event::StartClient(client));
            self.queue.after(delay + 1, Event::ClientActs(client));
        }
        for writer in 0..self.writers.len() {
            let delay = self.random.between(500, 5_000);
            self.queue.after(delay, Event::WriterActs(writer));
        }
        for keeper in 0..self.keepers.len() {
            let delay = self.random.between(200, self.profile.keeper_pause_ms);
            self.queue.after(delay, Event::KeeperActs(keeper));
        }
        self.queue.after(1_000, Event::Chaos);
        Ok(())
    }

    /// The world's clock, ms since 1970.
    fn now_ms(&self) -> i64 {
        EPOCH_MS + self.queue.now() as i64
    }

    fn note(&mut self, line: String) {
        self.history.note(self.queue.now(), line);
    }

    /// The first one counts.
    fn violate(&mut self, what: String) {
        self.note(format!("VIOLATION: {what}"));
        self.violation.get_or_insert(what);
    }

    /// Lives through the whole script. The oracle's verdict is in the summary or the violation.
    pub fn live(&mut self, steps: u64) {
        while self.summary.steps < steps && self.violation.is_none() {
            if !self.step() {
                return self.violate("nothing will ever happen again".into());
            }
        }
        self.calm();
        self.rest("after the storm");
        self.show_settled();
        if self.violation.is_none() {
            self.leave_one_alone();
            self.rest("with one coordinator left");
            self.show_settled();
        }
        if self.violation.is_none() {
            self.dump_documents();
        }
        if self.violation.is_none()
            && let Err(what) = self.tidy_up()
        {
            self.violate(what);
        }
        self.judge();
    }

    /// Lets the next event happen. False where there is none.
    fn step(&mut self) -> bool {
        let Some(event) = self.queue.pop() else { return false };
        if let Some(until) = self.stands_still(&event) {
            self.queue.put_off(until, event);
            return true;
        }
        self.time_passes();
        self.summary.steps += u64::from(!matches!(event, Event::Store(_)));
        match event {
            Event::Store(event) => {
                self.bucket.objects().set_now_ms(self.now_ms());
                self.stirred |= self.bucket.happen(event);
                self.look_at_lease();
            }
            Event::Dialled { client, life, dial } => self.dialled(client, life, dial),
            Event::ToServer { conn, text } => self.at_server(conn, &text),
            Event::ToClient { conn, text } => self.at_client(conn, text),
            Event::EndAtClient { conn } => self.end_at_client(conn),
            Event::EndAtServer { conn } => self.end_at_server(conn),
            Event::Relieved { conn } => self.relieved(conn),
            Event::Timer { client, life, timer } => self.timer(client, life, timer),
            Event::ClientActs(client) => self.client_acts(client),
            Event::WriterActs(writer) => self.writer_acts(writer),
            Event::KeeperActs(keeper) => self.keeper_acts(keeper),
            Event::StartClient(client) => self.start_client(client),
            Event::StartNode(node) => self.start_node(node),
            Event::Flush { node, life } => self.flush(node, life),
            Event::Woken { node, life } => self.woken(node, life),
            Event::Look { node, life } => self.look(node, life),
            Event::LeaseTick { node, life, wake } => self.lease_tick(node, life, wake),
            Event::Reachable(asker) => self.bucket.set_unreachable(asker, false),
            Event::Document(event) => self.document_event(event),
            Event::Rejoined(nodes) => nodes.into_iter().for_each(|node| self.nodes[node].isolated = false),
            Event::DiskFreed(asker) => self.free_disk(asker),
            Event::Thawed(node) => {
                self.note(format!("coordinator {node} goes on"));
                self.stirred = true;
            }
            Event::Chaos => self.chaos(),
        }
        while std::mem::take(&mut self.stirred) {
            let (now, nodes) = (self.queue.now(), &self.nodes);
            let awake = |owner| match owner {
                Owner::Node(node, _) => nodes[node].frozen_until <= now,
                Owner::Writer(_) | Owner::Keeper(_) | Owner::Document(..) | Owner::Reader(_) => true,
            };
            for (owner, done) in self.tasks.poll(awake) {
                self.stirred = true;
                match (owner, done) {
                    (Owner::Node(node, life), Done::Node(ended)) => self.node_ended(node, life, ended),
                    (Owner::Writer(writer), Done::Writer(how)) => {
                        self.writers[writer].1 = false;
                        self.note(format!("writer {writer}: {how}"));
                        if let Some(what) = self.writers[writer].0.violation() {
                            self.violate(format!("writer {writer}: {what}"));
                        }
                    }
                    (Owner::Keeper(keeper), Done::Keeper(how)) => {
                        self.keepers[keeper].1 = false;
                        if let Some(what) = self.family.lock().violation.take() {
                            self.violation.get_or_insert(what);
                        }
                        self.note(format!("{:?} {keeper}: {how}", self.keepers[keeper].0));
                    }
                    (Owner::Document(document, life), Done::Document(ended)) => {
                        self.document_ended(document, life, ended);
                    }
                    (Owner::Reader(reader), Done::Reader(how)) => self.reader_ended(reader, how),
                    (
                        Owner::Node(..)
                        | Owner::Writer(_)
                        | Owner::Keeper(_)
                        | Owner::Document(..)
                        | Owner::Reader(_),
                        Done::Node(_)
                        | Done::Writer(_)
                        | Done::Keeper(_)
                        | Done::Document(_)
                        | Done::Reader(_),
                    ) => self.violate("a task ended as another's".into()),
                }
            }
            for (delay, event) in self.bucket.take_schedule() {
                self.queue.after(delay, Event::Store(event));
            }
        }
        for (delay, event) in self.bucket.take_schedule() {
            self.queue.after(delay, Event::Store(event));
        }
        self.look_at_owners();
        true
    }

    /// Tells those who cannot see the world's clock.
    fn time_passes(&self) {
        let now_ms = self.queue.now();
        self.bucket.set_now_ms(now_ms);
        let played = Played { now_ms, recent_ms: RECENT_MS, burial: (4, 2, BURIAL_MS) };
        graft::plants::play(self.profile.buries.then_some(played));
    }

    fn spawn(&mut self, owner: Owner, task: impl Future<Output = Done> + 'static) {
        self.tasks.spawn(owner, task);
        self.stirred = true;
    }

    /// Faults end; nobody begins anything new.
    fn calm(&mut self) {
        self.note("the storm is over".into());
        self.storm = false;
        self.calm_since = self.queue.now();
        self.bucket.set_weather(Weather::default());
        self.shelf.calm();
        let keepers = (0..self.keepers.len()).map(|keeper| self.keeper_asker(keeper));
        let askers: Vec<usize> =
            (0..self.nodes.len()).chain((0..self.writers.len()).map(writer_asker)).chain(keepers).collect();
        for asker in askers {
            self.bucket.set_unreachable(asker, false);
            self.free_disk(asker);
        }
        for node in &mut self.nodes {
            node.isolated = false;
        }
        self.calm_documents();
    }

    /// Runs until nothing is under way. It must come to that.
    fn rest(&mut self, when: &str) {
        let (deadline, mut events) = (self.queue.now() + REST_MS, 0);
        while self.violation.is_none() && !self.is_at_rest() {
            events += 1;
            if self.queue.now() > deadline || events > REST_EVENTS || !self.step() {
                let why = self.unrest();
                return self.violate(format!("the world does not come to rest {when}: {why}"));
            }
        }
    }

    fn is_at_rest(&self) -> bool {
        self.network.in_flight == 0
            && self.tasks.is_empty()
            && self.clients.iter().all(|client| {
                let conn = client.conn.and_then(|conn| self.network.connections.get(&conn));
                client.is_settled() && conn.is_some_and(|conn| conn.is_healthy())
            })
            && (0..self.nodes.len()).all(|node| self.node_is_at_rest(node))
            && self.is_owned()
            && self.bucket.is_quiet()
            && self.documents_are_at_rest()
    }

    /// What is still under way, for the report.
    fn unrest(&self) -> String {
        let clients: Vec<String> = self
            .clients
            .iter()
            .enumerate()
            .filter(|(_, client)| !client.is_settled())
            .map(|(at, c)| {
                let (pending, live) = (c.session.pending(), c.live);
                format!(
                    "client {at} (live {live}, {pending} pending, {} subscriptions and {} questions unanswered)",
                    c.unanswered.len(),
                    c.questions.len()
                )
            })
            .collect();
        let nodes: Vec<String> = (0..self.nodes.len())
            .filter(|node| !self.node_is_at_rest(*node))
            .map(|node| format!("coordinator {node} {:?}", self.nodes[node].stage))
            .collect();
        let documents: Vec<String> = self
            .cast
            .documents
            .iter()
            .map(|document| format!("{:?}", document.papers.lock().replica))
            .collect();
        format!(
            "{} frames in flight, documents {documents:?}, tasks {:?}, store quiet {}, owned {}, {} {}",
            self.network.in_flight,
            self.tasks,
            self.bucket.is_quiet(),
            self.is_owned(),
            clients.join(", "),
            nodes.join(", ")
        )
    }

    /// At rest, a subscription's rows are exactly the answer at its coordinator's durable commit.
    fn show_settled(&mut self) {
        if self.violation.is_some() {
            return;
        }
        for at in 0..self.clients.len() {
            let client = &self.clients[at];
            let node = client.conn.and_then(|conn| self.network.connections.get(&conn)).map(|c| c.node.0);
            let Some(lsn) = node.and_then(|node| self.nodes[node].actor()).map(|a| a.volume().base().lsn())
            else {
                continue;
            };
            let client = &self.clients[at];
            for (sub, ask) in &client.subscriptions {
                let rows = client.session.rows(*sub).map(|rows| rows_text(rows.rows())).unwrap_or_default();
                let shown = Shown { lsn, ask: *ask, claim: Claim::Exactly, client: at, rows };
                self.truth.shown.insert(shown);
            }
        }
    }

    /// One coordinator stays; every client goes to it and makes one more mutation.
    fn leave_one_alone(&mut self) {
        let alone = self.random.index(self.nodes.len());
        self.alone = Some(alone);
        self.note(format!("coordinator {alone} is left alone"));
        for node in (0..self.nodes.len()).filter(|node| *node != alone) {
            self.crash_node(node);
        }
        for client in 0..self.profile.clients {
            self.mutate(client);
        }
        for document in 0..self.cast.documents.len() {
            self.document_mutates(document);
        }
    }

    /// For the report of a violation: what explains it. The history of a cycle says more than most of what it
    /// leads to, and so does damage in the store.
    fn what_else(&self, forks: &[VolumeId]) -> String {
        let (archive, mut added) = (self.bucket.archive(), String::new());
        if let Some(cycle) = oracle::cycle(&self.objects, VOLUME, &self.truth, &archive) {
            added.push_str(ADDED);
            added.push_str(READ);
            added.push_str(&cycle);
        }
        let remote: SharedRemote = self.objects.clone();
        let volumes = std::iter::once(VOLUME).chain(forks.iter().copied());
        let damage = oracle::damage(&self.objects, VOLUME, &archive).or_else(|| {
            volumes.into_iter().find_map(|volume| self.is_sound(&remote, volume, "as it was left").err())
        });
        if let Some(damage) = damage {
            added.push_str(ADDED);
            added.push_str("in the store ");
            added.push_str(&damage);
        }
        added
    }

    /// Lets the oracle look at what is stored.
    fn judge(&mut self) {
        for (desk, _) in &self.writers {
            let (sealed, durable) = desk.take();
            self.truth.direct.extend(sealed);
            self.truth.direct_durable.extend(durable);
            self.truth.lost.extend(desk.take_lost());
        }
        self.collect_documents();
        for node in &self.nodes {
            let metrics = node.metrics();
            self.summary.lsns_lost += metrics.replays;
            self.summary.query_runs += metrics.query_runs;
        }
        let disks = self.writers.iter().filter_map(|(desk, _)| desk.disk());
        let disks = disks.chain(self.nodes.iter().filter_map(|node| node.disk.clone()));
        self.summary.disk_full = disks.map(|disk| disk.refused()).sum();
        self.summary.faults = self.bucket.faults();
        self.summary.stalls = self.bucket.stalls();
        let family = self.family.lock().clone();
        let done = |what| family.done.get(what).copied().unwrap_or_default();
        self.summary.collections = done("collections");
        self.summary.deleted = done("deleted");
        self.summary.compactions = done("compactions");
        self.summary.abandoned = done("abandoned");
        self.summary.forks = done("forks");
        self.summary.fork_commits = done("commits in forks");
        self.summary.verified = done("verified");
        self.summary.removed = done("removed");
        self.summary.reads = done("reads under leases");
        self.summary.checkpoints += done("checkpoints");
        self.summary.virtual_ms = self.queue.now();
        self.summary.shown = self.truth.shown.len() as u64;
        if self.violation.is_some() {
            let added = self.what_else(&family.forks);
            self.violation.get_or_insert_default().push_str(&added);
            return;
        }
        match oracle::check(&self.objects, VOLUME, &self.truth, &self.bucket.archive(), &family) {
            Ok(verdict) => {
                self.summary.lsns = verdict.lsns;
                self.summary.direct = verdict.direct;
                self.summary.durable = verdict.applied;
                self.summary.rejected = verdict.rejected;
                self.summary.shown_checked = verdict.shown_checked;
                self.summary.documents.commits = verdict.documents;
                self.summary.documents.txns = verdict.serial.txns;
                self.summary.documents.edges = verdict.serial.edges;
            }
            Err(what) => self.violate(what),
        }
    }
}
