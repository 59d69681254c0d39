use std::collections::BTreeMap;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use serde_json::json;

use super::*;

const LIMITS: PresenceLimits = PresenceLimits { ttl_ms: 1000, interval_ms: 100, peers_max: 3 };

fn set(session: u64, client: &str, state: Value) -> Input {
    Input::Set { session: SessionId(session), client: ClientId::new(client).unwrap(), state }
}

fn watch(session: u64) -> Input {
    Input::Watch { session: SessionId(session) }
}

fn leave(session: u64) -> Input {
    Input::Leave { session: SessionId(session) }
}

/// A machine, and what came out of it since the last look.
struct Rig(Presence);

impl Rig {
    fn new() -> Rig {
        Rig(Presence::new(LIMITS))
    }

    fn at(&mut self, now_ms: u64, input: Input) -> Vec<Output> {
        self.0.handle(input, now_ms);
        self.0.take_outputs()
    }

    /// The lists alone, as (session, states).
    fn lists(&mut self, now_ms: u64, input: Input) -> Vec<(u64, Value)> {
        lists(&self.at(now_ms, input))
    }
}

fn lists(outputs: &[Output]) -> Vec<(u64, Value)> {
    let list = |output: &Output| match output {
        Output::Answer { .. } => None,
        Output::List { session, frame } => {
            let ServerMessage::Presence { peers, more } = ServerMessage::from_json(frame).unwrap() else {
                panic!("{frame}")
            };
            let states: Vec<Value> = peers.into_iter().map(|peer| peer.state).collect();
            Some((session.0, if more == 0 { json!(states) } else { json!([states, more]) }))
        }
    };
    outputs.iter().filter_map(list).collect()
}

fn answer(outputs: &[Output]) -> &ServerMessage {
    match outputs {
        [Output::Answer { message, .. }, ..] => message,
        other => panic!("no answer but {other:?}"),
    }
}

#[test]
fn who_watches_hears_of_everybody_and_nobody_else_does() {
    let mut rig = Rig::new();
    assert_eq!(rig.lists(0, watch(1)), [(1, json!([]))], "the first list comes at once");
    let outputs = rig.at(200, set(2, "b", json!("B")));
    assert_eq!(answer(&outputs), &ServerMessage::PresenceSet { id: 1, ttl_ms: 1000 });
    assert_eq!(lists(&outputs), [(1, json!(["B"]))]);
    assert_eq!(rig.lists(400, set(1, "a", json!("A"))), [(1, json!(["B", "A"]))]);
    assert_eq!(rig.lists(600, Input::Clear { session: SessionId(2) }), [(1, json!(["A"]))]);
    assert_eq!(rig.lists(800, Input::Unwatch { session: SessionId(1) }), []);
    assert_eq!(rig.lists(1000, set(2, "b", json!("B"))), []);
}

#[test]
fn saying_the_same_again_keeps_a_peer_and_wakes_nobody() {
    let mut rig = Rig::new();
    rig.at(0, watch(1));
    rig.at(200, set(2, "b", json!({ "x": 1 })));
    for now in [1100, 2000, 2900] {
        assert_eq!(rig.lists(now, set(2, "b", json!({ "x": 1 }))), [], "at {now}");
    }
    assert_eq!(rig.0.deadline(), Some(3000), "the last look at who may be gone was at 2000");
    assert_eq!(rig.lists(3000, Input::Tick), []);
    assert_eq!(rig.0.deadline(), Some(3900));
    assert_eq!(rig.lists(3899, Input::Tick), []);
    assert_eq!(rig.lists(3900, Input::Tick), [(1, json!([]))]);
    assert_eq!(rig.0.deadline(), None, "nothing is waited for when nobody is here");
}

#[test]
fn a_peer_goes_with_its_connection() {
    let mut rig = Rig::new();
    rig.at(0, watch(1));
    rig.at(200, set(2, "b", json!(2)));
    assert_eq!(rig.lists(400, leave(2)), [(1, json!([]))]);
    assert_eq!(rig.lists(600, leave(1)), []);
    assert_eq!(rig.lists(800, set(3, "c", json!(3))), [], "who has left is sent nothing");
}

/// The old socket may be noticed to be dead long after the new one is there.
#[test]
fn a_client_that_connects_again_is_one_peer_and_keeps_its_number() {
    let mut rig = Rig::new();
    rig.at(0, watch(1));
    rig.at(200, set(2, "b", json!("old")));
    let outputs = rig.at(400, set(3, "b", json!("new")));
    assert_eq!(answer(&outputs), &ServerMessage::PresenceSet { id: 1, ttl_ms: 1000 });
    assert_eq!(lists(&outputs), [(1, json!(["new"]))]);
    assert_eq!(rig.lists(600, leave(2)), [], "the peer is no longer the old connection's");
    assert_eq!(rig.lists(800, leave(3)), [(1, json!([]))]);
}

#[test]
fn changes_are_gathered_and_a_list_stands_for_all_of_them() {
    let mut rig = Rig::new();
    rig.at(0, watch(1));
    for n in 0..50 {
        assert_eq!(rig.lists(n, set(2, "b", json!(n))), [], "at {n}");
    }
    assert_eq!(rig.0.deadline(), Some(100));
    assert_eq!(rig.lists(100, Input::Tick), [(1, json!([49]))]);
    // Who comes in between gets the list that stands, without another being encoded.
    assert_eq!(rig.lists(101, watch(3)), [(3, json!([49]))]);
    assert_eq!(rig.lists(102, watch(3)), [], "watching twice is watching once");
    assert_eq!(rig.lists(103, set(2, "b", json!("next"))), []);
    assert_eq!(rig.lists(104, watch(4)), [], "the list that stands is not true any more");
    let due = [(1, json!(["next"])), (3, json!(["next"])), (4, json!(["next"]))];
    assert_eq!(rig.lists(200, Input::Tick), due);
}

#[test]
fn a_list_is_bounded_and_says_how_many_it_leaves_out() {
    let mut rig = Rig::new();
    for n in 1..=5 {
        rig.at(0, set(n, &format!("c{n}"), json!(n)));
    }
    assert_eq!(rig.lists(0, watch(9)), [(9, json!([[1, 2, 3], 2]))]);
    assert_eq!(rig.lists(100, leave(1)), [(9, json!([[2, 3, 4], 1]))]);
}

#[test]
fn a_state_beyond_the_bounds_is_refused_and_the_one_before_holds() {
    let longest = "x".repeat(PRESENCE_BYTES_MAX - 2);
    let nested = |levels: usize| (0..levels).fold(json!(1), |inside, _| json!([inside]));
    let mut rig = Rig::new();
    rig.at(0, watch(1));
    for good in [json!(longest), nested(PRESENCE_DEPTH_MAX), json!(null), json!({ "a": 1.5e300 })] {
        let outputs = rig.at(0, set(2, "b", good.clone()));
        assert!(matches!(answer(&outputs), ServerMessage::PresenceSet { .. }), "{good}");
    }
    rig.at(200, set(2, "b", json!("good")));
    let long = json!(format!("{longest}x"));
    for bad in [long, json!("\u{1}".repeat(200)), nested(PRESENCE_DEPTH_MAX + 1), json!({ "a": nested(100) })]
    {
        let outputs = rig.at(400, set(2, "b", bad.clone()));
        let ServerMessage::PresenceError { reason } = answer(&outputs) else { panic!("{bad}") };
        assert_eq!(reason.code, codes::TOO_LARGE);
        assert_eq!(lists(&outputs), []);
    }
    assert_eq!(rig.lists(500, watch(3)), [(3, json!(["good"]))]);
}

/// Whatever happens in whatever order: once it is quiet, every watcher was sent what is true; lists are
/// encoded no faster than allowed; and the machine asks to be woken only when there is reason to.
#[test]
fn watchers_agree_with_a_model() {
    for seed in 0..200 {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut rig = Presence::new(PresenceLimits { peers_max: 100, ..LIMITS });
        // Of each client: which session holds it, its state, and until when.
        let mut model: BTreeMap<String, (u64, Value, u64)> = BTreeMap::new();
        let mut seen: BTreeMap<u64, Vec<String>> = BTreeMap::new();
        let (mut now, mut encoded): (u64, Option<u64>) = (0, None);
        for step in 0..300 {
            now += rng.random_range(0..60);
            // Two sessions to each client: one before and one after a reconnect.
            let session = rng.random_range(0..8);
            let client = format!("c{}", session / 2);
            let input = match rng.random_range(0..10) {
                0..4 => {
                    let state = json!(rng.random_range(0..4));
                    model.insert(client.clone(), (session, state.clone(), now + LIMITS.ttl_ms));
                    set(session, &client, state)
                }
                4 => {
                    model.retain(|_, (holder, ..)| *holder != session);
                    Input::Clear { session: SessionId(session) }
                }
                5 => {
                    model.retain(|_, (holder, ..)| *holder != session);
                    seen.remove(&session);
                    leave(session)
                }
                6 => {
                    seen.entry(session).or_default();
                    watch(session)
                }
                7 => {
                    seen.remove(&session);
                    Input::Unwatch { session: SessionId(session) }
                }
                _ => Input::Tick,
            };
            let quiet = rng.random_bool(0.1);
            let mut inputs = vec![input];
            loop {
                for input in inputs.drain(..) {
                    rig.handle(input, now);
                }
                if let Some((_, at, _)) = &rig.encoded {
                    let apart = encoded.is_none_or(|last| *at == last || *at >= last + LIMITS.interval_ms);
                    assert!(apart, "seed {seed}, step {step}: encoded too soon");
                    encoded = Some(*at);
                }
                for output in rig.take_outputs() {
                    let Output::List { session, frame } = output else { continue };
                    let lists = seen.get_mut(&session.0);
                    let lists = lists.unwrap_or_else(|| panic!("seed {seed}: {session:?} does not watch"));
                    assert_ne!(lists.last().map(String::as_str), Some(&*frame), "seed {seed}, step {step}");
                    lists.push(frame.to_string());
                }
                // Until it is quiet, time goes on to each deadline that a list may be behind.
                let next = rig.deadline().filter(|at| quiet && *at <= now + LIMITS.interval_ms);
                let Some(at) = next else { break };
                assert!(at > now, "seed {seed}, step {step}: it is called again at once");
                now = at;
                inputs.push(Input::Tick);
            }
            model.retain(|_, (_, _, until)| *until > now);
            if quiet {
                let mut wanted: Vec<String> = model.values().map(|(_, state, _)| state.to_string()).collect();
                wanted.sort();
                for (session, lists) in &seen {
                    let list = lists.last().unwrap_or_else(|| panic!("seed {seed}: {session} has no list"));
                    let ServerMessage::Presence { peers, more: 0 } = ServerMessage::from_json(list).unwrap()
                    else {
                        panic!("{list}")
                    };
                    let mut found: Vec<String> = peers.iter().map(|peer| peer.state.to_string()).collect();
                    found.sort();
                    assert_eq!(found, wanted, "seed {seed}, step {step}, session {session}");
                }
            }
        }
    }
}
