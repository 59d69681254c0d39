//! The peers: what they are, whether they are here, and how they come here.
//!
//! Everything is installed from package registries and only when a benchmark asks for it. A peer that
//! cannot be installed or started is left out, and the reason is printed; it never fails the run.
//!
//! | module | holds |
//! | --- | --- |
//! | [`node`] | npm's packages, Node 22, the JavaScript programs |
//! | [`postgres`] | a private PostgreSQL cluster |
//! | [`zero`] | zero-cache with its API server |
//! | [`spacetimedb`] | SpacetimeDB's server and a client of its WebSocket protocol |
//! | [`engines`] | storage engines: upstream Graft, Litestream's VFS, turbolite |

pub mod engines;
pub mod node;
pub mod postgres;
pub mod spacetimedb;
pub mod zero;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// A system that stands beside ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Peer {
    /// Yjs over y-websocket.
    YWebsocket,
    /// Zero on PostgreSQL.
    Zero,
    /// PostgreSQL alone.
    Postgres,
    /// SpacetimeDB, standalone.
    SpacetimeDb,
    /// Replicache's client, alone.
    Replicache,
    /// SQLite in the bench's own process.
    Sqlite,
    /// Upstream Graft's VFS.
    UpstreamGraft,
    /// Litestream's VFS.
    Litestream,
    /// turbolite's VFS.
    Turbolite,
}

impl Peer {
    /// All of them, in the order of the tables.
    pub const ALL: [Peer; 9] = [
        Peer::YWebsocket,
        Peer::Zero,
        Peer::Postgres,
        Peer::SpacetimeDb,
        Peer::Replicache,
        Peer::Sqlite,
        Peer::UpstreamGraft,
        Peer::Litestream,
        Peer::Turbolite,
    ];

    /// As `--peers` takes it.
    pub fn name(self) -> &'static str {
        match self {
            Peer::YWebsocket => "y-websocket",
            Peer::Zero => "zero",
            Peer::Postgres => "postgres",
            Peer::SpacetimeDb => "spacetimedb",
            Peer::Replicache => "replicache",
            Peer::Sqlite => "sqlite",
            Peer::UpstreamGraft => "upstream-graft",
            Peer::Litestream => "litestream",
            Peer::Turbolite => "turbolite",
        }
    }

    /// What its acknowledgement of a write means.
    pub fn acknowledged(self) -> &'static str {
        match self {
            Peer::YWebsocket => {
                "the protocol has no acknowledgement; the server holds documents in memory alone"
            }
            Peer::Zero => "committed in Postgres, its log fsynced, and told so by zero-cache",
            Peer::Postgres => "committed, its log fsynced (synchronous_commit=on)",
            Peer::SpacetimeDb => {
                "applied in memory; its log is fsynced later, so a crash of the machine can lose it"
            }
            Peer::Replicache => "nothing here: its mutations stay pending, in memory",
            Peer::Sqlite => {
                "committed, its log fsynced (WAL, synchronous=FULL); no network, no sandbox, no server"
            }
            Peer::UpstreamGraft => "pushed: a segment and a commit are objects in the store",
            Peer::Litestream => "committed in its local buffer; its background sync uploads within a second",
            Peer::Turbolite => "checkpointed: page groups and manifest are objects in the store",
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Peer {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Peer, anyhow::Error> {
        let found = Peer::ALL.into_iter().find(|peer| peer.name() == text);
        let names = Peer::ALL.map(Peer::name).join(", ");
        found.ok_or_else(|| anyhow::anyhow!("there is no peer `{text}`; there are {names}"))
    }
}

/// What `acknowledged` means for ours.
pub const OURS_ACKNOWLEDGED: &str = "durable: the commit is an object in the store (a directory), fsynced";

/// What may be done to get a peer.
#[derive(Debug, Clone, Copy)]
pub struct Install {
    /// Packages of npm and Debian.
    pub packages: bool,
    /// The long build of SpacetimeDB.
    pub spacetimedb: bool,
    /// The long build of turbolite.
    pub turbolite: bool,
    /// The long build of upstream Graft.
    pub upstream: bool,
}

/// Which peers can be run, and why the others cannot.
pub struct Peers {
    asked: Vec<Peer>,
    install: Install,
    looked: BTreeMap<Peer, bool>,
    node: Option<Option<node::Node>>,
}

impl Peers {
    /// Looks at nothing yet.
    pub fn new(asked: Vec<Peer>, install: Install) -> Peers {
        Peers { asked, install, looked: BTreeMap::new(), node: None }
    }

    /// Whether `peer` was asked for and is here; installs it first, if it may. The reason why it is not
    /// is printed, once.
    pub async fn has(&mut self, peer: Peer) -> bool {
        if !self.asked.contains(&peer) {
            return false;
        }
        if let Some(known) = self.looked.get(&peer) {
            return *known;
        }
        let found = match peer {
            Peer::Sqlite => Ok(()),
            Peer::YWebsocket | Peer::Replicache => self.need_node().await,
            Peer::Postgres => postgres::find_or_install(self.install).await,
            Peer::Zero => match self.need_node().await {
                Ok(()) => postgres::find_or_install(self.install).await,
                Err(error) => Err(error),
            },
            Peer::SpacetimeDb => spacetimedb::find_or_install(self.install).await,
            Peer::UpstreamGraft => engines::upstream(self.install).await.map(drop),
            Peer::Litestream => engines::litestream(self.install).await.map(drop),
            Peer::Turbolite => engines::turbolite(self.install).await.map(drop),
        };
        if let Err(error) = &found {
            skipped(peer.name(), error);
        }
        self.looked.insert(peer, found.is_ok());
        found.is_ok()
    }

    /// What may be installed.
    pub fn install(&self) -> Install {
        self.install
    }

    /// A storage engine's library or program, if it was asked for and is here or can be installed.
    pub async fn engine(&mut self, peer: Peer) -> Option<PathBuf> {
        if !self.has(peer).await {
            return None;
        }
        let found = match peer {
            Peer::UpstreamGraft => engines::upstream(self.install).await,
            Peer::Litestream => engines::litestream(self.install).await,
            Peer::Turbolite => engines::turbolite(self.install).await,
            Peer::YWebsocket
            | Peer::Zero
            | Peer::Postgres
            | Peer::SpacetimeDb
            | Peer::Replicache
            | Peer::Sqlite => return None,
        };
        found.map_err(|error| skipped(peer.name(), &error)).ok()
    }

    /// Node with the JavaScript clients, if it is here or can be installed. Otherwise the reason is
    /// printed, once.
    pub async fn node(&mut self) -> Option<node::Node> {
        if self.node.is_none() {
            let found = node::find_or_install(self.install).await;
            self.node = Some(found.map_err(|error| skipped("everything in JavaScript", &error)).ok());
        }
        self.node.clone().flatten()
    }

    async fn need_node(&mut self) -> anyhow::Result<()> {
        let found = self.node().await;
        found.map(drop).ok_or_else(|| anyhow::anyhow!("it runs on Node, which is not here (see above)"))
    }
}

/// Says that something is left out, and why.
pub fn skipped(what: &str, why: &anyhow::Error) {
    println!("skipped: {what}: {why:#}");
}
