//! What goes wrong beside the store's weather, and how much of everything a seed has.
//!
//! Each seed draws a profile of its own, with some faults absent: a world in which everything fails
//! all the time hides what shows only when one thing fails alone.

use super::{Event, World, writer_asker};
use crate::sim::keepers::Trade;
use crate::sim::random::Random;
use crate::sim::store::Weather;

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
    /// The longest pause of an app between two doings.
    pub pause_ms: u64,
    /// The longest pause of a direct writer.
    pub writer_pause_ms: u64,
    /// Who keeps house.
    pub keepers: Vec<Trade>,
    /// The longest pause of one of them.
    pub keeper_pause_ms: u64,
    /// The longest pause between two misfortunes; none where 0.
    pub misfortune_ms: u64,
    /// Weights of the misfortunes, in the order of [`World::chaos`].
    weights: [u64; 10],
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
            stall: rate(0.1),
        };
        let (module_fails, slow_frames) = (rate(0.3), rate(0.1));
        let mut weights = [0; 10];
        for weight in &mut weights {
            *weight = [0, 1, 1, 3][random.index(4)];
        }
        // One world in four is without.
        let some = random.below(4) > 0;
        let keepers = Trade::ALL.into_iter().chain(Trade::ALL);
        let keepers = keepers.filter(|_| some && random.chance(0.6)).collect();
        Profile {
            keepers,
            keeper_pause_ms: [300, 1_000, 4_000][random.index(3)],
            nodes: random.between(1, 3) as usize,
            clients: random.between(4, 8) as usize,
            writers: random.below(3) as usize,
            page_bytes: [512, 1024, 4096][random.index(3)],
            weather,
            module_fails,
            slow_frames,
            pause_ms: [120, 400, 1_500][random.index(3)],
            writer_pause_ms: [1_000, 4_000, 15_000][random.index(3)],
            misfortune_ms: [500, 2_000, 8_000][random.index(3)],
            weights,
        }
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
            Some(1) => self.drain_node(node),
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
