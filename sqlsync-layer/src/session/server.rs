//! The server's half of one connection: what comes before the volume's actor.
//!
//! ```text
//! Greeting -hello-> Ready -…-> Ready -bad frame-> Ended
//!     \---------- anything else ----------------> Ended
//! ```
//!
//! The first frame must be a `hello` with a protocol version that this build speaks; after it every
//! well-formed message passes through: to [`crate::presence`] what is about that, everything else to
//! [`crate::actor`]. A frame that is too long, malformed, or
//! out of turn ends the connection with an `error` that says what was wrong with it.

use crate::protocol::{
    ClientId, ClientMessage, FRAME_BYTES_MAX, Known, PROTOCOL, Reason, ServerMessage, codes,
};

/// One connection, as the server sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ServerSession {
    /// Nothing valid has been said yet.
    #[default]
    Greeting,
    /// The hello was good.
    Ready,
    /// An `error` was sent; nothing more is read.
    Ended,
}

/// What the driver is to do with a frame.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// Connect this client to the volume's actor, which answers with `welcome`.
    Connect {
        /// Who it is.
        client: ClientId,
        /// What it says of itself.
        known: Known,
    },
    /// Give the message to the actor; what is about presence, to [`crate::presence`].
    Receive(ClientMessage),
    /// Send this `error` and close.
    Close(ServerMessage),
    /// The connection has ended already; drop the frame.
    Drop,
}

impl ServerSession {
    /// Takes one text frame. Safe on hostile input.
    pub fn frame(&mut self, text: &str) -> Step {
        if *self == ServerSession::Ended {
            return Step::Drop;
        }
        if text.len() > FRAME_BYTES_MAX {
            return self.oversized();
        }
        let message = match ClientMessage::from_json(text) {
            Ok(message) => message,
            Err(error) => return self.close(Reason::new(codes::BAD_MESSAGE, error.to_string())),
        };
        match (&self, message) {
            (ServerSession::Greeting, ClientMessage::Hello { protocols, client, settled, since, heads }) => {
                if !protocols.contains(&PROTOCOL) {
                    return self.close(Reason::new(
                        codes::UNSUPPORTED,
                        format!(
                            "the client speaks protocol versions {protocols:?}, this server speaks [{PROTOCOL}]; \
                             upgrade the older of the two"
                        ),
                    ));
                }
                *self = ServerSession::Ready;
                Step::Connect { client, known: Known { settled, since, heads } }
            }
            (ServerSession::Ready, ClientMessage::Hello { .. }) => self.out_of_turn("a second `hello`"),
            (ServerSession::Greeting, other) => {
                self.out_of_turn(&format!("`{}` before `hello`", kind(&other)))
            }
            (ServerSession::Ready, message) => Step::Receive(message),
            (ServerSession::Ended, _unread) => Step::Drop,
        }
    }

    /// Takes a frame that is not text.
    pub fn binary(&mut self) -> Step {
        match self {
            ServerSession::Greeting | ServerSession::Ready => self
                .close(Reason::new(codes::BAD_MESSAGE, "a binary frame; messages are JSON in text frames")),
            ServerSession::Ended => Step::Drop,
        }
    }

    /// Takes a frame that the transport refused to read because it is longer than [`FRAME_BYTES_MAX`].
    pub fn oversized(&mut self) -> Step {
        match self {
            ServerSession::Greeting | ServerSession::Ready => self.close(Reason::new(
                codes::BAD_MESSAGE,
                format!("a frame longer than {FRAME_BYTES_MAX} bytes; send less at once"),
            )),
            ServerSession::Ended => Step::Drop,
        }
    }

    fn out_of_turn(&mut self, what: &str) -> Step {
        self.close(Reason::new(
            codes::BAD_MESSAGE,
            format!("{what}; a connection begins with exactly one `hello`"),
        ))
    }

    fn close(&mut self, reason: Reason) -> Step {
        *self = ServerSession::Ended;
        Step::Close(ServerMessage::Error { reason })
    }
}

/// The message's `type`.
fn kind(message: &ClientMessage) -> &'static str {
    match message {
        ClientMessage::Hello { .. } => "hello",
        ClientMessage::Mutate { .. } => "mutate",
        ClientMessage::Subscribe { .. } => "subscribe",
        ClientMessage::Unsubscribe { .. } => "unsubscribe",
        ClientMessage::Query { .. } => "query",
        ClientMessage::SetPresence { .. } => "set_presence",
        ClientMessage::ClearPresence {} => "clear_presence",
        ClientMessage::WatchPresence {} => "watch_presence",
        ClientMessage::UnwatchPresence {} => "unwatch_presence",
        ClientMessage::Ping { .. } => "ping",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HELLO: &str = r#"{"type":"hello","protocols":[1,7],"client":"c"}"#;

    fn code(step: &Step) -> &str {
        match step {
            Step::Close(ServerMessage::Error { reason }) => &reason.code,
            other => panic!("expected a close, got {other:?}"),
        }
    }

    #[test]
    fn hello_connects_and_messages_pass_through() {
        let mut session = ServerSession::default();
        assert_eq!(
            session.frame(HELLO),
            Step::Connect { client: ClientId::new("c").unwrap(), known: Known::NOTHING }
        );
        assert_eq!(session.frame(r#"{"type":"ping","n":3}"#), Step::Receive(ClientMessage::Ping { n: 3 }));
        assert_eq!(session, ServerSession::Ready);
    }

    #[test]
    fn hello_must_come_first_and_once() {
        let mut session = ServerSession::default();
        let step = session.frame(r#"{"type":"ping","n":3}"#);
        assert_eq!(code(&step), codes::BAD_MESSAGE);
        assert!(format!("{step:?}").contains("`ping` before `hello`"));
        assert_eq!(session.frame(HELLO), Step::Drop);

        let mut session = ServerSession::default();
        session.frame(HELLO);
        assert_eq!(code(&session.frame(HELLO)), codes::BAD_MESSAGE);
        assert_eq!(session, ServerSession::Ended);
    }

    #[test]
    fn no_common_version_is_unsupported() {
        for protocols in ["[]", "[2,3]"] {
            let mut session = ServerSession::default();
            let hello = format!(r#"{{"type":"hello","protocols":{protocols},"client":"c"}}"#);
            assert_eq!(code(&session.frame(&hello)), codes::UNSUPPORTED);
        }
    }

    #[test]
    fn hostile_frames_end_the_connection_with_a_reason() {
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        let args_deep = format!(
            r#"{{"type":"mutate","seq":1,"reducer":"r","args":{{"a":{}1{}}}}}"#,
            "[".repeat(50_000),
            "]".repeat(50_000)
        );
        let long = format!(r#"{{"type":"ping","n":1{}}}"#, " ".repeat(FRAME_BYTES_MAX));
        let hostile = [
            "",
            "{}",
            "null",
            "[1]",
            "\u{0}",
            "%s%n",
            r#"{"type":"hello"}"#,
            r#"{"type":"nope"}"#,
            r#"{"type":"hello","protocols":[1],"client":"../x"}"#,
            r#"{"type":"hello","protocols":[1],"client":""}"#,
            r#"{"type":"hello","protocols":[-1],"client":"c"}"#,
            r#"{"type":"mutate","seq":-1,"reducer":"r","args":{}}"#,
            r#"{"type":"mutate","seq":1,"reducer":"r","args":[]}"#,
            r#"{"type":"mutate","seq":1,"reducer":"r","args":{},"seed":"xyz"}"#,
            r#"{"type":"mutate","seq":1,"reducer":"r","args":{},"more":1}"#,
            r#"{"type":"mutate","seq":18446744073709551616,"reducer":"r","args":{}}"#,
            r#"{"type":"ping","n":1}{"type":"ping","n":2}"#,
            r#"{"type":"set_presence"}"#,
            r#"{"type":"set_presence","state":{},"ttl":1}"#,
            r#"{"type":"watch_presence","all":true}"#,
            &deep,
            &args_deep,
            &long,
        ];
        for frame in hostile {
            for greeted in [false, true] {
                let mut session = ServerSession::default();
                if greeted {
                    session.frame(HELLO);
                }
                let step = session.frame(frame);
                let shown: String = frame.chars().take(80).collect();
                assert_eq!(code(&step), codes::BAD_MESSAGE, "{shown}");
                assert_eq!(session, ServerSession::Ended, "{shown}");
            }
        }
        let mut session = ServerSession::default();
        assert_eq!(code(&session.binary()), codes::BAD_MESSAGE);
        assert_eq!(session.binary(), Step::Drop);
        assert_eq!(session.oversized(), Step::Drop);
    }
}
