//! Frames and the ends of connections.

use sqlsync_layer::actor::{Input, SessionId};
use sqlsync_layer::protocol::ClientMessage;
use sqlsync_layer::session::client as session;
use sqlsync_layer::session::server::Step;

use super::{Event, World};
use crate::sim::network::ConnId;
use crate::sim::plant::Plant;

/// After this long the server's pings have found a silent connection dead.
const SILENCE_MS: u64 = 8_000;

impl World {
    /// A frame from the server. Lost where the connection is cut.
    pub(super) fn send_down(&mut self, conn: ConnId, text: String) {
        let delay = self.delay();
        let loses = self.plant == Some(Plant::NetworkLosesFrame) && self.random.chance(0.005);
        let lost = self.is_lost();
        let Some(connection) = self.network.connections.get_mut(&conn) else { return };
        if connection.down.cut || !connection.open_at_server || loses {
            return;
        }
        if lost {
            return self.lose(conn);
        }
        let arrives = connection.down.busy_until.max(self.queue.now() + delay);
        connection.down.busy_until = arrives;
        self.network.in_flight += 1;
        self.queue.at(arrives, Event::ToClient { conn, text });
    }

    /// A frame from the client.
    pub(super) fn send_up(&mut self, conn: ConnId, text: String) {
        let (delay, lost, twice) = (self.delay(), self.is_lost(), self.is_doubled(&text));
        let Some(connection) = self.network.connections.get_mut(&conn) else { return };
        if connection.up.cut || !connection.open_at_client {
            return;
        }
        if lost {
            return self.lose(conn);
        }
        let arrives = connection.up.busy_until.max(self.queue.now() + delay);
        connection.up.busy_until = arrives;
        self.network.in_flight += 1;
        if twice {
            self.network.in_flight += 1;
            self.queue.at(arrives, Event::ToServer { conn, text: text.clone() });
        }
        self.queue.at(arrives, Event::ToServer { conn, text });
    }

    fn is_lost(&mut self) -> bool {
        self.storm && self.random.chance(self.profile.lost_frames)
    }

    /// A mutation may arrive twice, as if its client had sent it again.
    fn is_doubled(&mut self, text: &str) -> bool {
        self.storm
            && self.random.chance(self.profile.doubled_frames)
            && matches!(ClientMessage::from_json(text), Ok(ClientMessage::Mutate { .. }))
    }

    /// A frame is lost for good, and its connection with it: no later one arrives.
    fn lose(&mut self, conn: ConnId) {
        self.summary.frames_lost += 1;
        self.cut(conn);
    }

    /// How long a frame takes: mostly little, sometimes much.
    fn delay(&mut self) -> u64 {
        if self.storm && self.random.chance(self.profile.slow_frames) {
            self.random.between(100, 2_500)
        } else {
            self.random.between(1, 25)
        }
    }

    pub(super) fn at_server(&mut self, conn: ConnId, text: &str) {
        self.network.in_flight -= 1;
        let Some(connection) = self.network.connections.get_mut(&conn) else { return };
        if !connection.open_at_server || connection.up.lossy {
            return;
        }
        let (node, session) = (connection.node.0, SessionId(conn));
        match connection.server.frame(text) {
            Step::Connect { client, known } => {
                connection.connected = true;
                self.input(node, Input::Connect { session, client, known });
            }
            Step::Receive(message) => {
                let (seed, now_ms) = (self.random.draw(), self.now_ms() + self.nodes[node].skew_ms);
                self.input(node, Input::Receive { session, message, seed, now_ms });
            }
            Step::Close(message) => self.violate(format!("the server refused a client's frame: {message:?}")),
            Step::Drop => {}
        }
    }

    pub(super) fn at_client(&mut self, conn: ConnId, text: String) {
        self.network.in_flight -= 1;
        let Some(connection) = self.network.connections.get(&conn) else { return };
        if !connection.open_at_client || connection.down.lossy {
            return;
        }
        let client = connection.client.0;
        self.event(client, session::Event::Frame(text));
    }

    /// The connection breaks: each side may or may not get what is under way, and learns of it.
    pub(super) fn cut(&mut self, conn: ConnId) {
        let (up, down) = (self.random.chance(0.5), self.random.chance(0.5));
        let (delay_up, delay_down) = (self.random.between(1, 500), self.random.between(1, 500));
        let Some(connection) = self.network.connections.get_mut(&conn) else { return };
        (connection.up.cut, connection.down.cut) = (true, true);
        // What was lost before stays lost: what comes behind it must not arrive.
        connection.up.lossy |= up;
        connection.down.lossy |= down;
        let ends = (connection.down.busy_until + delay_down, connection.up.busy_until + delay_up);
        self.queue.at(ends.0, Event::EndAtClient { conn });
        self.queue.at(ends.1, Event::EndAtServer { conn });
    }

    /// The connection goes silent: only time-outs will tell.
    pub(super) fn hang(&mut self, conn: ConnId) {
        let Some(connection) = self.network.connections.get_mut(&conn) else { return };
        (connection.up.cut, connection.down.cut) = (true, true);
        (connection.up.lossy, connection.down.lossy) = (true, true);
        self.queue.after(SILENCE_MS, Event::EndAtServer { conn });
    }

    /// The client closes its side, or its process is gone (`abrupt`).
    pub(super) fn hang_up(&mut self, conn: ConnId, abrupt: bool) {
        let delay = self.delay();
        let Some(connection) = self.network.connections.get_mut(&conn) else { return };
        connection.open_at_client = false;
        connection.up.lossy |= abrupt;
        if !connection.up.cut {
            connection.up.cut = true;
            let ends = connection.up.busy_until.max(self.queue.now()) + delay;
            self.queue.at(ends, Event::EndAtServer { conn });
        }
        self.network.forget_closed(conn);
    }

    /// Every connection of a coordinator's life is over on the server's side.
    pub(super) fn end_of_node(&mut self, node: usize, life: u64) {
        let random = &mut self.random;
        for (conn, connection) in &mut self.network.connections {
            if connection.node != (node, life) || !connection.open_at_server {
                continue;
            }
            connection.open_at_server = false;
            connection.up.lossy = true;
            if !connection.down.cut {
                connection.down.cut = true;
                connection.down.lossy |= random.chance(0.5);
                let ends = connection.down.busy_until + random.between(1, 300);
                self.queue.at(ends, Event::EndAtClient { conn: *conn });
            }
        }
        self.network.connections.retain(|_, c| c.open_at_client || c.open_at_server);
    }

    pub(super) fn end_at_client(&mut self, conn: ConnId) {
        let Some(connection) = self.network.connections.get_mut(&conn) else { return };
        if !std::mem::replace(&mut connection.open_at_client, false) {
            return;
        }
        let client = connection.client.0;
        self.network.forget_closed(conn);
        self.clients[client].conn = None;
        self.clients[client].live = false;
        self.event(client, session::Event::Closed { why: "simulated: connection lost".into() });
    }

    pub(super) fn end_at_server(&mut self, conn: ConnId) {
        let Some(connection) = self.network.connections.get_mut(&conn) else { return };
        if !std::mem::replace(&mut connection.open_at_server, false) {
            return;
        }
        let (node, connected) = (connection.node.0, connection.connected);
        self.network.forget_closed(conn);
        if connected {
            self.input(node, Input::Disconnect { session: SessionId(conn) });
        }
    }

    /// A client reads too slowly for a while.
    pub(super) fn congest(&mut self, conn: ConnId) {
        let delay = self.random.between(50, 3_000);
        let Some(connection) = self.network.connections.get_mut(&conn) else { return };
        if connection.congested || !connection.open_at_server || !connection.connected {
            return;
        }
        connection.congested = true;
        let node = connection.node.0;
        self.queue.after(delay, Event::Relieved { conn });
        self.input(node, Input::Congested { session: SessionId(conn) });
    }

    pub(super) fn relieved(&mut self, conn: ConnId) {
        let Some(connection) = self.network.connections.get_mut(&conn) else { return };
        connection.congested = false;
        if connection.open_at_server {
            let node = connection.node.0;
            self.input(node, Input::Relieved { session: SessionId(conn) });
        }
    }
}
