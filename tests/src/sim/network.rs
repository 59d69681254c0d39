//! Connections: frames in order, with delay, until one is cut.
//!
//! Frames of one direction never overtake each other and are lost only with the connection: once cut,
//! what was under way in that direction may or may not arrive, and nothing sent later does. Each side
//! learns of the end at a time of its own, or (a *hang*) by silence.

use std::collections::BTreeMap;

use sqlsync_layer::session::server::ServerSession;

/// A connection, numbered; the number is also its session at the actor.
pub type ConnId = u64;

/// One direction of a connection.
#[derive(Debug, Default)]
pub struct Lane {
    /// When the last frame sent arrives.
    pub busy_until: u64,
    /// Nothing sent from now on arrives.
    pub cut: bool,
    /// What is under way is lost, too.
    pub lossy: bool,
}

/// One connection.
#[derive(Debug)]
pub struct Connection {
    /// Which client, and its how manieth life.
    pub client: (usize, u64),
    /// Which coordinator, and its how manieth life.
    pub node: (usize, u64),
    /// The server's half.
    pub server: ServerSession,
    /// Whether the actor knows the session.
    pub connected: bool,
    /// Whether each side takes the connection for open.
    pub open_at_client: bool,
    /// See [`Connection::open_at_client`].
    pub open_at_server: bool,
    /// From client to server.
    pub up: Lane,
    /// From server to client.
    pub down: Lane,
    /// Whether the actor was told that the client reads too slowly.
    pub congested: bool,
}

impl Connection {
    /// Whether frames go both ways.
    pub fn is_healthy(&self) -> bool {
        self.open_at_client && self.open_at_server && !self.up.cut && !self.down.cut && !self.congested
    }
}

/// All connections that one side at least takes for open.
#[derive(Debug, Default)]
pub struct Network {
    next: ConnId,
    /// By number.
    pub connections: BTreeMap<ConnId, Connection>,
    /// Frames and notices on their way.
    pub in_flight: u64,
}

impl Network {
    /// A new connection, open on both sides.
    pub fn connect(&mut self, client: (usize, u64), node: (usize, u64)) -> ConnId {
        self.next += 1;
        let connection = Connection {
            client,
            node,
            server: ServerSession::default(),
            connected: false,
            open_at_client: true,
            open_at_server: true,
            up: Lane::default(),
            down: Lane::default(),
            congested: false,
        };
        self.connections.insert(self.next, connection);
        self.next
    }

    /// Forgets a connection that is over on both sides.
    pub fn forget_closed(&mut self, conn: ConnId) {
        if self.connections.get(&conn).is_some_and(|c| !c.open_at_client && !c.open_at_server) {
            self.connections.remove(&conn);
        }
    }
}
