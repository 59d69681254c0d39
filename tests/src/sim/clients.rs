//! One client: the real [`ClientSession`], the app that uses it, and what survives its process.

use std::collections::BTreeMap;
use std::time::Duration;

use sqlsync_layer::protocol::ClientId;
use sqlsync_layer::session::client::{ClientSession, SessionConfig};

use super::bank::Ask;
use super::network::ConnId;
use super::random::Random;

/// Subscriptions that one client opens at most.
pub const SUBSCRIPTIONS_MAX: usize = 3;

/// One client.
#[derive(Debug)]
pub struct Client {
    /// Its protocol half.
    pub session: ClientSession,
    /// How many times its process has started.
    pub life: u64,
    /// The present connection.
    pub conn: Option<ConnId>,
    /// A dial that has not ended, numbered.
    pub dials: u64,
    /// Whether one is under way.
    pub dialling: bool,
    /// The timer set last; earlier ones do not ring.
    pub timer: u64,
    /// Whether the session says that it is live.
    pub live: bool,
    /// Open subscriptions by the session's id.
    pub subscriptions: BTreeMap<u64, Ask>,
    /// Those whose rows of the present connection have not come.
    pub unanswered: BTreeMap<u64, Ask>,
    /// Questions without an answer.
    pub questions: BTreeMap<u64, Ask>,
    /// Its clock, as milliseconds ahead of the world's.
    pub skew: i64,
    /// Its own stream of chance.
    pub random: Random,
    /// The highest seq that went out on an earlier connection (for a plant).
    pub sent: u64,
}

/// Bounds and waits, short enough for virtual minutes.
pub fn config() -> SessionConfig {
    SessionConfig {
        backoff_min: Duration::from_millis(50),
        backoff_max: Duration::from_secs(2),
        greeting_max: Duration::from_secs(3),
        keepalive: Duration::from_secs(4),
        pending_max: 400,
        heads: false,
    }
}

/// The id of client `at`.
pub fn id(at: usize) -> ClientId {
    ClientId::new(format!("client-{at}")).expect("letters, a hyphen and digits")
}

impl Client {
    /// Client number `at`, not started.
    pub fn new(at: usize, mut random: Random) -> Client {
        Client {
            session: ClientSession::new(id(at), config()),
            life: 0,
            conn: None,
            dials: 0,
            dialling: false,
            timer: 0,
            live: false,
            subscriptions: BTreeMap::new(),
            unanswered: BTreeMap::new(),
            questions: BTreeMap::new(),
            skew: random.below(20_000) as i64 - 10_000,
            random,
            sent: 0,
        }
    }

    /// Whether nothing it asked for is outstanding.
    pub fn is_settled(&self) -> bool {
        self.live
            && !self.dialling
            && self.session.pending() == 0
            && self.unanswered.is_empty()
            && self.questions.is_empty()
    }
}
