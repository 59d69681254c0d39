//! Every example in `docs/protocol.md` is a message of the protocol, and every message has an example.

use std::collections::BTreeSet;

use serde_json::Value;
use sqlsync_layer::actor::Deployed;
use sqlsync_layer::presence::PresenceLimits;
use sqlsync_layer::protocol::{
    ClientMessage, PRESENCE_BYTES_MAX, PRESENCE_DEPTH_MAX, Reason, ServerMessage, codes,
};

const DOC: &str = include_str!("../../docs/protocol.md");

/// The fenced JSON examples: what they claim to be, and their text.
fn examples() -> Vec<(&'static str, &'static str)> {
    DOC.split("```json ")
        .skip(1)
        .map(|block| {
            let (kind, rest) = block.split_once('\n').expect("an info line");
            let (text, _) = rest.split_once("\n```").expect("an end");
            (kind, text)
        })
        .collect()
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

#[test]
fn every_example_is_what_it_says_it_is() {
    for (kind, text) in examples() {
        // Written again it is the same JSON, so it has no member that the types do not know.
        let again = match kind {
            "client" => ClientMessage::from_json(text).map(|m| m.to_json()).map_err(|e| e.to_string()),
            "server" => ServerMessage::from_json(text).map(|m| m.to_json()).map_err(|e| e.to_string()),
            "deployed" => serde_json::from_str::<Deployed>(text)
                .map(|d| serde_json::to_string(&d).unwrap())
                .map_err(|e| e.to_string()),
            "error" => serde_json::from_value::<Reason>(json(text)["error"].clone())
                .map(|reason| serde_json::json!({ "error": reason }).to_string())
                .map_err(|e| e.to_string()),
            // Their types are the coordinator's, whose tests parse them.
            "health" | "query-request" | "query-answer" | "mutate-request" | "mutate-answer"
            | "volume-info" => Ok(text.to_owned()),
            other => panic!("an example of `{other}`"),
        };
        let again = again.unwrap_or_else(|error| panic!("{error}: {text}"));
        assert_eq!(json(&again), json(text));
    }
}

#[test]
fn every_message_has_an_example() {
    let shown: BTreeSet<(String, String)> = examples()
        .into_iter()
        .filter(|(kind, _)| matches!(*kind, "client" | "server"))
        .map(|(kind, text)| (kind.to_owned(), json(text)["type"].as_str().unwrap().to_owned()))
        .collect();
    // A new message makes these matches incomplete, and so reminds of the example.
    let client = |message: &ClientMessage| match message {
        ClientMessage::Hello { .. }
        | ClientMessage::Mutate { .. }
        | ClientMessage::Subscribe { .. }
        | ClientMessage::Unsubscribe { .. }
        | ClientMessage::Query { .. }
        | ClientMessage::SetPresence { .. }
        | ClientMessage::ClearPresence {}
        | ClientMessage::WatchPresence {}
        | ClientMessage::UnwatchPresence {}
        | ClientMessage::Ping { .. } => 10,
    };
    let server = |message: &ServerMessage| match message {
        ServerMessage::Welcome { .. }
        | ServerMessage::Accepted { .. }
        | ServerMessage::Durable { .. }
        | ServerMessage::Rejected { .. }
        | ServerMessage::Refused { .. }
        | ServerMessage::Snapshot { .. }
        | ServerMessage::Delta { .. }
        | ServerMessage::SubscriptionError { .. }
        | ServerMessage::Rows { .. }
        | ServerMessage::QueryError { .. }
        | ServerMessage::Presence { .. }
        | ServerMessage::PresenceSet { .. }
        | ServerMessage::PresenceError { .. }
        | ServerMessage::Head { .. }
        | ServerMessage::Pong { .. }
        | ServerMessage::Error { .. } => 16,
    };
    let count = |kind: &str| shown.iter().filter(|(shown, _)| shown == kind).count();
    assert_eq!(count("client"), client(&ClientMessage::Ping { n: 0 }), "{shown:?}");
    assert_eq!(count("server"), server(&ServerMessage::Pong { n: 0 }), "{shown:?}");
}

#[test]
fn the_bounds_of_presence_are_the_codes() {
    let PresenceLimits { ttl_ms, interval_ms, peers_max } = PresenceLimits::default();
    for said in [
        format!("at most {PRESENCE_BYTES_MAX} bytes (without white space)"),
        format!("and {PRESENCE_DEPTH_MAX} levels of arrays and objects"),
        format!("\"ttl_ms\":{ttl_ms}"),
        format!("At most {peers_max} peers are named"),
    ] {
        assert!(DOC.contains(&said), "docs/protocol.md does not say: {said}");
    }
    assert!(DOC.contains("at most ten times in a second") && interval_ms == 100);
}

#[test]
fn every_code_is_explained() {
    for code in [
        codes::REFUSED,
        codes::UNKNOWN_REDUCER,
        codes::BAD_ARGUMENTS,
        codes::TRAP,
        codes::LIMIT,
        codes::SQL,
        codes::NO_MODULE,
        codes::SEQ_REUSED,
        codes::SEQ_GAP,
        codes::SEQ_FORGOTTEN,
        codes::EXPIRED,
        codes::DISCARDED,
        codes::TOO_MANY_IN_FLIGHT,
        codes::BAD_QUERY,
        codes::BAD_SUBSCRIPTION,
        codes::BAD_MESSAGE,
        codes::UNSUPPORTED,
        codes::UNAVAILABLE,
        codes::TOO_LARGE,
        codes::SHUTDOWN,
        codes::DAMAGED,
    ] {
        assert!(DOC.contains(&format!("`{code}`")), "docs/protocol.md does not explain `{code}`");
    }
}
