//! What goes wrong beside the store's weather, and how much of everything a seed has.
//!
//! Each seed draws a profile of its own, with some faults absent: a world in which everything fails
//! all the time hides what shows only when one thing fails alone.

use super::{Event, World, writer_asker, writer_at};
use crate::sim::disks::Disk;
use crate::sim::keepers::Trade;
use crate::sim::random::Random;
use crate::sim::store::Weather;

/// Clocks of writers and of those who keep house are wrong by up to so much.
pub const SKEW_MS: u64 = 1_000;

/// Which misfortune is a direct writer's, in the order of [`World::chaos`].
const WRITERS: usize = 12;

/// How much of everything there is.
#[derive(Debug, Clone)]
pub struct Profile {
    /// Coordinators.
    pub nodes: usize,
    /// Clients.
    pub clients: usize,
    /// Direct writers.
    pub writers: usize,
    /// Bytes of a page.
    pub page_bytes: u32,
    /// The store's faults.
    pub weather: Weather,
    /// Loads of a module that fail, as a probability.
    pub module_fails: f64,
    /// Frames that are late, as a probability.
    pub slow_frames: f64,
    /// Frames that are lost, each with its connection.
    pub lost_frames: f64,
    /// Mutations that arrive twice.
    pub doubled_frames: f64,
    /// How leases are held.
    pub tenure: Tenure,
    /// The longest pause of an app between two doings.
    pub pause_ms: u64,
    /// The longest pause of a direct writer.
    pub writer_pause_ms: u64,
    /// See [`Profile::roughened`].
    pub rough: bool,
    /// Tombstones are deleted, and everybody has time.
    pub buries: bool,
    /// Who keeps house.
    pub keepers: Vec<Trade>,
    /// The longest pause of one of them.
    pub keeper_pause_ms: u64,
    /// The longest pause between two misfortunes; none where 0.
    pub misfortune_ms: u64,
    /// Weights of the misfortunes, in the order of [`World::chaos`].
    weights: [u64; 13],
}

/// How coordinators hold the owner's lease.
#[derive(Debug, Clone, Copy)]
pub struct Tenure {
    /// Whether there are leases at all.
    pub held: bool,
    /// By how much they take clocks to differ, in milliseconds.
    pub assumed_ms: u32,
    /// By how much they do.
    pub skew_ms: u64,
    /// How long a lease lasts.
    pub ttl_ms: u32,
    /// Dials go to the owner, where it is known.
    pub routed: bool,
}

impl Tenure {
    fn draw(random: &mut Random) -> Tenure {
        let assumed_ms = [0, 200, 1_000][random.index(3)];
        // One world in four has clocks that are worse than is assumed.
        let skew_ms = if random.chance(0.25) { 5_000 } else { u64::from(assumed_ms) };
        Tenure {
            held: random.chance(0.8),
            assumed_ms,
            skew_ms,
            ttl_ms: [500, 2_000, 6_000][random.index(3)],
            routed: random.chance(0.6),
        }
    }

    /// Whether clocks are as good as is assumed.
    pub fn is_respected(&self) -> bool {
        self.skew_ms <= u64::from(self.assumed_ms)
    }
}

impl Profile {
    /// A random profile.
    pub fn draw(random: &mut Random) -> Profile {
        let mut rate = |most: f64| match random.below(5) {
            0 | 1 => 0.0,
            2 => most / 10.0,
            3 => most / 3.0,
            _ => most,
        };
        let weather = Weather {
            fail_before: rate(0.08),
            fail_after: rate(0.08),
            late: rate(0.06),
            duplicate: rate(0.05),
            slow: rate(0.03),
            flip: rate(0.01),
            fetch: rate(0.05),
            stall: rate(0.04),
        };
        let (module_fails, slow_frames) = (rate(0.3), rate(0.1));
        let (lost_frames, doubled_frames) = (rate(0.01), rate(0.1));
        let mut weights = [0; 13];
        for weight in &mut weights {
            *weight = [0, 1, 1, 3][random.index(4)];
        }
        // Garbage is collected and pages are moved in every world.
        let keepers = Trade::ALL.into_iter().chain(Trade::ALL);
        let mut keepers: Vec<Trade> = keepers.filter(|_| random.chance(0.4)).collect();
        for trade in [Trade::Collector, Trade::Compactor] {
            if !keepers.contains(&trade) {
                keepers.push(trade);
            }
        }
        let buries = random.chance(0.25);
        Profile {
            rough: false,
            buries,
            keepers,
            keeper_pause_ms: [300, 1_000, 4_000][random.index(3)],
            nodes: random.between(3, 4) as usize,
            clients: random.between(8, 10) as usize,
            writers: random.below(4) as usize,
            page_bytes: [512, 1024, 4096][random.index(3)],
            weather,
            module_fails,
            slow_frames,
            lost_frames,
            doubled_frames,
            tenure: Tenure::draw(random),
            pause_ms: if buries { 8_000 } else { [250, 800, 3_000][random.index(3)] },
            writer_pause_ms: [500, 1_500, 6_000][random.index(3)],
            misfortune_ms: [300, 1_000, 4_000][random.index(3)],
            weights,
        }
    }
}

/// One world in so many is rough.
const ROUGH_EVERY: u64 = 5;
/// Direct writers there.
const ROUGH_WRITERS: usize = 3;

impl Profile {
    /// One seed in five is *rough*: direct writers are many and quick and write commits too large for a log entry,
    /// whoever has uploaded stalls before it is named, collectors keep nothing and wait for nobody, and writers
    /// lose their power. That is where uploads are lost or mistaken for others', and disks are held to their word.
    #[must_use]
    pub fn roughened(mut self, seed: u64) -> Profile {
        if seed % ROUGH_EVERY != ROUGH_EVERY - 1 {
            return self;
        }
        self.rough = true;
        self.writers = self.writers.max(ROUGH_WRITERS);
        self.writer_pause_ms = self.writer_pause_ms.min(1_500);
        self.weather.stall = self.weather.stall.max(0.01);
        self.keepers.push(Trade::Collector);
        self.keeper_pause_ms = self.keeper_pause_ms.min(1_000);
        self.misfortune_ms = self.misfortune_ms.min(1_000);
        self.weights[WRITERS] = self.weights.iter().sum();
        self
    }
}

impl World {
    /// One misfortune, and later the next.
    pub(super) fn chaos(&mut self) {
        if !self.storm {
            return;
        }
        let pause = self.random.between(50, self.profile.misfortune_ms);
        self.queue.after(pause, Event::Chaos);
        let mut draw = self.random.below(self.profile.weights.iter().sum());
        let which = self.profile.weights.iter().position(|weight| {
            let hit = draw < *weight;
            draw = draw.saturating_sub(*weight);
            hit
        });
        let node = self.random.index(self.nodes.len());
        match which {
            Some(0) => self.crash_node(node),
            Some(1) => {
                let at = self.owner_or(node);
                self.drain_node(at);
            }
            Some(2) => self.misfortune_of_a_connection(World::cut),
            Some(3) => self.misfortune_of_a_connection(World::hang),
            Some(4) => self.misfortune_of_a_connection(World::congest),
            Some(5) => {
                let client = self.random.index(self.clients.len());
                self.restart_client(client);
            }
            Some(6) => self.cut_off(node),
            Some(7) => self.deploy_somewhere(),
            Some(8) if !self.keepers.is_empty() => {
                let keeper = self.random.index(self.keepers.len());
                if self.random.chance(0.5) {
                    self.crash_keeper(keeper);
                } else {
                    let asker = self.keeper_asker(keeper);
                    self.cut_off(asker);
                }
            }
            Some(9) => self.freeze(node),
            Some(10) => self.partition(),
            Some(11) => self.fill_a_disk(),
            Some(_) if !self.writers.is_empty() => {
                let writer = self.random.index(self.writers.len());
                if self.random.chance(0.5) {
                    self.crash_writer(writer);
                } else {
                    self.cut_off(writer_asker(writer));
                }
            }
            Some(_) | None => {}
        }
    }

    /// The clock of somebody who is no coordinator, ms since 1970: a little wrong.
    pub(super) fn some_clock(&mut self) -> i64 {
        let skew = self.random.between(0, 2 * SKEW_MS) as i64 - SKEW_MS as i64;
        self.now_ms() + skew
    }

    /// A coordinator's process stands still, for longer than any grace, or a moment.
    fn freeze(&mut self, node: usize) {
        let delay = self.random.between(100, 15_000);
        if self.nodes[node].actor().is_some() && self.nodes[node].frozen_until <= self.queue.now() {
            self.note(format!("coordinator {node} stands still for {delay} ms"));
            self.summary.frozen += 1;
            self.nodes[node].frozen_until = self.queue.now() + delay;
            self.queue.after(delay, Event::Thawed(node));
        }
    }

    /// When an event can be noticed, if those whom it is for stand still.
    pub(super) fn stands_still(&self, event: &Event) -> Option<u64> {
        let server = |conn| self.network.connections.get(conn).map(|c| c.node.0);
        let node = match event {
            Event::ToServer { conn, .. } | Event::EndAtServer { conn } | Event::Relieved { conn } => {
                server(conn)
            }
            Event::Flush { node, .. }
            | Event::Woken { node, .. }
            | Event::Look { node, .. }
            | Event::LeaseTick { node, .. } => Some(*node),
            Event::Store(_)
            | Event::Dialled { .. }
            | Event::ToClient { .. }
            | Event::EndAtClient { .. }
            | Event::Timer { .. }
            | Event::ClientActs(_)
            | Event::WriterActs(_)
            | Event::KeeperActs(_)
            | Event::StartClient(_)
            | Event::StartNode(_)
            | Event::Document(_)
            | Event::Reachable(_)
            | Event::Rejoined(_)
            | Event::DiskFreed(_)
            | Event::Thawed(_)
            | Event::Chaos => None,
        };
        let until = self.nodes[node?].frozen_until;
        (until > self.queue.now()).then_some(until)
    }

    /// Some coordinators are cut off from the store, from their clients, or from both.
    fn partition(&mut self) {
        let nodes: Vec<usize> = (0..self.nodes.len()).filter(|_| self.random.chance(0.5)).collect();
        let delay = self.random.between(200, 10_000);
        let (store, clients) = [(true, true), (true, false), (false, true)][self.random.index(3)];
        self.note(format!(
            "coordinators {nodes:?} are cut off: from the store {store}, from clients {clients}"
        ));
        self.summary.partitions += 1;
        if store {
            for node in &nodes {
                self.bucket.set_unreachable(*node, true);
                self.queue.after(delay, Event::Reachable(*node));
            }
        }
        if clients {
            let cut = self.network.connections.iter().filter(|(_, c)| nodes.contains(&c.node.0));
            let cut: Vec<u64> = cut.filter(|(_, c)| c.is_healthy()).map(|(conn, _)| *conn).collect();
            cut.into_iter().for_each(|conn| self.hang(conn));
            nodes.iter().for_each(|node| self.nodes[*node].isolated = true);
            self.queue.after(delay, Event::Rejoined(nodes));
        }
    }

    /// The disk of a coordinator or a writer.
    fn disk(&self, asker: usize) -> Option<Disk> {
        match writer_at(asker) {
            Some(writer) => self.writers.get(writer).and_then(|(desk, _)| desk.disk()),
            None => self.nodes.get(asker).and_then(|node| node.disk.clone()),
        }
    }

    /// Somebody's disk is full for a while, from now on or from the middle of what is written next.
    fn fill_a_disk(&mut self) {
        let askers = (0..self.nodes.len()).chain((0..self.writers.len()).map(writer_asker));
        let with: Vec<(usize, Disk)> = askers.filter_map(|asker| Some((asker, self.disk(asker)?))).collect();
        if with.is_empty() {
            return;
        }
        let (asker, disk) = &with[self.random.index(with.len())];
        self.note(format!("the disk of asker {asker} is full"));
        disk.fill(self.random.below(4) as u32);
        let delay = self.random.between(100, 6_000);
        self.queue.after(delay, Event::DiskFreed(*asker));
    }

    pub(super) fn free_disk(&mut self, asker: usize) {
        if let Some(disk) = self.disk(asker) {
            disk.free();
        }
    }

    /// Somebody cannot reach the store for a while.
    fn cut_off(&mut self, asker: usize) {
        self.note(format!("asker {asker} cannot reach the store"));
        self.bucket.set_unreachable(asker, true);
        let delay = self.random.between(100, 6_000);
        self.queue.after(delay, Event::Reachable(asker));
    }

    fn misfortune_of_a_connection(&mut self, happen: fn(&mut World, u64)) {
        let healthy: Vec<u64> =
            self.network.connections.iter().filter(|(_, c)| c.is_healthy()).map(|(conn, _)| *conn).collect();
        if !healthy.is_empty() {
            let conn = healthy[self.random.index(healthy.len())];
            happen(self, conn);
        }
    }
}
