use serde_json::json;

use super::*;

const VOLUME: VolumeId = VolumeId([7; 16]);

fn id(name: &str) -> ClientId {
    ClientId::new(name).unwrap()
}

/// A session under test, with a readable record of what it did.
struct Rig {
    session: ClientSession,
}

impl Rig {
    fn new() -> Rig {
        Rig::of(ClientSession::new(id("c"), SessionConfig::default()))
    }
    fn of(session: ClientSession) -> Rig {
        Rig { session }
    }
    /// Started, opened and welcomed at `seq`; effects up to there are dropped.
    fn live(seq: u64, max_in_flight: u64) -> Rig {
        let mut rig = Rig::new();
        rig.connect(seq, max_in_flight);
        rig.effects();
        rig
    }
    fn connect(&mut self, seq: u64, max_in_flight: u64) {
        self.session.start();
        self.handle(Event::Opened);
        self.welcome(VOLUME, seq, max_in_flight);
    }
    fn reconnect(&mut self, seq: u64) {
        self.handle(Event::Timer);
        self.handle(Event::Opened);
        self.effects();
        self.welcome(VOLUME, seq, 10);
    }
    fn welcome(&mut self, volume: VolumeId, seq: u64, max_in_flight: u64) {
        self.server(ServerMessage::Welcome {
            protocol: PROTOCOL,
            volume,
            at: at(seq),
            module: None,
            max_in_flight,
        });
    }
    fn handle(&mut self, event: Event) {
        self.session.handle(event, u32::MAX);
    }
    fn server(&mut self, message: ServerMessage) {
        self.handle(Event::Frame(message.to_json()));
    }
    fn refuse(&mut self, seq: u64, code: &str) {
        self.server(ServerMessage::Refused { seq, reason: Reason::new(code, "why") });
    }
    fn close(&mut self) {
        self.handle(Event::Closed { why: "gone".into() });
    }
    fn mutate(&mut self, reducer: &str) -> Result<u64, CallError> {
        self.session.mutate(reducer.into(), Map::new(), 5, Seed(9))
    }
    fn effects(&mut self) -> Vec<Effect> {
        std::iter::from_fn(|| self.session.next_effect()).collect()
    }
    /// The messages among the effects so far.
    fn sent(&mut self) -> Vec<ClientMessage> {
        self.effects()
            .into_iter()
            .filter_map(|effect| match effect {
                Effect::Send(frame) => Some(ClientMessage::from_json(&frame).unwrap()),
                Effect::Dial | Effect::Hangup | Effect::SetTimer(_) | Effect::Notify(_) => None,
            })
            .collect()
    }
    /// The seqs of the mutations sent so far.
    fn sent_seqs(&mut self) -> Vec<u64> {
        self.sent()
            .into_iter()
            .filter_map(|message| match message {
                ClientMessage::Mutate { seq, .. } => Some(seq),
                ClientMessage::Hello { .. }
                | ClientMessage::Subscribe { .. }
                | ClientMessage::Unsubscribe { .. }
                | ClientMessage::Query { .. }
                | ClientMessage::SetPresence { .. }
                | ClientMessage::ClearPresence {}
                | ClientMessage::WatchPresence {}
                | ClientMessage::UnwatchPresence {}
                | ClientMessage::Ping { .. } => None,
            })
            .collect()
    }
    fn notices(&mut self) -> Vec<Notice> {
        self.effects()
            .into_iter()
            .filter_map(|effect| match effect {
                Effect::Notify(notice) => Some(notice),
                Effect::Dial | Effect::Hangup | Effect::SetTimer(_) | Effect::Send(_) => None,
            })
            .collect()
    }
    /// How the session ended; panics where it goes on.
    fn end(&self) -> SessionEnd {
        match &self.session.state {
            State::Ended(end) => end.clone(),
            other => panic!("not ended but {other:?}"),
        }
    }
    fn is_waiting(&self) -> bool {
        self.session.state == State::Offline { dialling: false }
    }
}

fn at(seq: u64) -> At {
    At { epoch: 0, lsn: Lsn(3), seq }
}
fn durable(seq: u64) -> ServerMessage {
    ServerMessage::Durable { seq, lsn: Lsn(4) }
}
fn snapshot(sub: u64, rows: Vec<WireRow>) -> ServerMessage {
    ServerMessage::Snapshot { sub, at: at(0), columns: vec!["n".into()], key: vec!["n".into()], rows }
}
fn delta(sub: u64, changes: Changes) -> ServerMessage {
    ServerMessage::Delta { sub, at: At { seq: 1, ..at(0) }, changes }
}
fn insert(position: u32) -> Changes {
    Changes { insert: vec![(position, vec![json!(1)])], ..Changes::default() }
}

#[test]
fn dials_greets_and_goes_live() {
    let mut rig = Rig::new();
    rig.session.start();
    assert_eq!(rig.effects(), [Effect::Notify(Notice::Status(Status::Connecting)), Effect::Dial]);
    rig.handle(Event::Opened);
    let hello = r#"{"type":"hello","protocols":[1],"client":"c"}"#;
    assert_eq!(
        rig.effects(),
        [Effect::Send(hello.into()), Effect::SetTimer(SessionConfig::default().greeting_max)]
    );
    rig.welcome(VOLUME, 0, 10);
    assert_eq!(
        rig.effects(),
        [
            Effect::Notify(Notice::Status(Status::Live { volume: VOLUME, module: None })),
            Effect::SetTimer(SessionConfig::default().keepalive)
        ]
    );
    rig.session.start();
    assert_eq!(rig.effects(), [], "starting again does nothing");
}

#[test]
fn mutations_made_offline_go_out_in_order_after_welcome() {
    let mut rig = Rig::new();
    assert_eq!((rig.mutate("a"), rig.mutate("b")), (Ok(1), Ok(2)));
    assert_eq!(rig.effects(), []);
    rig.connect(0, 10);
    assert_eq!(rig.sent_seqs(), [1, 2]);
    assert_eq!(rig.mutate("c"), Ok(3));
    assert_eq!(rig.sent_seqs(), [3]);
}

#[test]
fn kept_mutations_are_resent_until_final_and_identical() {
    let mut rig = Rig::live(0, 10);
    for reducer in ["a", "b", "c"] {
        rig.mutate(reducer).unwrap();
    }
    let first = rig.sent();
    rig.server(ServerMessage::Accepted { seq: 1, lsn: Lsn(4) });
    rig.server(durable(1));
    rig.server(ServerMessage::Accepted { seq: 2, lsn: Lsn(5) });
    assert_eq!(
        rig.notices(),
        [
            Notice::Accepted { seq: 1, lsn: Lsn(4) },
            Notice::Durable { seq: 1, lsn: Lsn(4) },
            Notice::Accepted { seq: 2, lsn: Lsn(5) }
        ]
    );
    rig.close();
    rig.reconnect(2);
    assert_eq!(rig.sent(), first[1..], "accepted is not final: 2 goes out again, and the same bytes");
    rig.server(ServerMessage::Rejected { seq: 2, lsn: Lsn(6), reason: Reason::new("sql", "no") });
    rig.server(durable(2));
    assert_eq!(
        rig.notices(),
        [Notice::Rejected { seq: 2, lsn: Lsn(6), reason: Reason::new("sql", "no") }],
        "a second final answer is dropped"
    );
    assert_eq!(rig.session.pending(), 1);
}

#[test]
fn the_window_bounds_what_is_in_flight() {
    let mut rig = Rig::live(0, 2);
    for _ in 0..5 {
        rig.mutate("a").unwrap();
    }
    assert_eq!(rig.sent_seqs(), [1, 2]);
    rig.server(durable(1));
    assert_eq!(rig.sent_seqs(), [3]);
    rig.server(durable(1));
    assert_eq!(rig.sent_seqs(), [0; 0], "a repeated answer opens no room");
    rig.close();
    rig.handle(Event::Timer);
    rig.handle(Event::Opened);
    rig.effects();
    rig.welcome(VOLUME, 3, 2);
    assert_eq!(rig.sent_seqs(), [2, 3]);
}

#[test]
fn a_window_of_nothing_is_read_as_one() {
    let mut rig = Rig::live(0, 0);
    rig.mutate("a").unwrap();
    rig.mutate("b").unwrap();
    assert_eq!(rig.sent_seqs(), [1]);
}

#[test]
fn a_continued_id_takes_its_next_seq_from_welcome() {
    let mut rig = Rig::of(ClientSession::resume(id("c"), SessionConfig::default()));
    assert_eq!(rig.mutate("a"), Err(CallError::SeqUnknown { client: id("c") }));
    rig.connect(41, 10);
    assert_eq!(rig.mutate("a"), Ok(42));
    rig.close();
    rig.reconnect(40);
    assert_eq!(rig.end(), SessionEnd::HistoryLost { settled: 41, server: 40 });
}

#[test]
fn a_server_that_forgot_what_was_final_ends_the_session() {
    let mut rig = Rig::live(0, 10);
    rig.mutate("a").unwrap();
    rig.mutate("b").unwrap();
    rig.server(durable(1));
    rig.close();
    rig.reconnect(0);
    let end = SessionEnd::HistoryLost { settled: 1, server: 0 };
    assert_eq!(rig.effects(), [Effect::Hangup, Effect::Notify(Notice::Status(Status::Ended(end.clone())))]);
    assert_eq!(rig.mutate("c"), Err(CallError::Ended(end)));
    assert_eq!(rig.session.state().pending.len(), 1, "what was not sent is not lost");
}

#[test]
fn a_server_that_knows_more_means_a_cloned_id() {
    let mut rig = Rig::new();
    rig.mutate("a").unwrap();
    rig.connect(2, 10);
    assert_eq!(rig.end(), SessionEnd::ClonedClient { client: id("c"), made: 1, server: 2 });
    assert_eq!(rig.sent_seqs(), [0; 0]);
}

#[test]
fn another_volume_under_the_name_ends_the_session() {
    let mut rig = Rig::live(0, 10);
    rig.mutate("a").unwrap();
    rig.close();
    rig.handle(Event::Timer);
    rig.handle(Event::Opened);
    rig.effects();
    let now = VolumeId([8; 16]);
    rig.welcome(now, 0, 10);
    assert_eq!(rig.end(), SessionEnd::VolumeChanged { was: VOLUME, now });
    assert_eq!(rig.sent_seqs(), [0; 0]);
}

#[test]
fn an_impossible_seq_or_version_ends_the_session() {
    let mut rig = Rig::of(ClientSession::resume(id("c"), SessionConfig::default()));
    rig.connect(u64::MAX, 10);
    assert!(matches!(rig.end(), SessionEnd::Server(reason) if reason.code == codes::BAD_MESSAGE));

    let mut rig = Rig::new();
    rig.session.start();
    rig.handle(Event::Opened);
    rig.server(ServerMessage::Welcome {
        protocol: 2,
        volume: VOLUME,
        at: at(0),
        module: None,
        max_in_flight: 1,
    });
    assert_eq!(rig.end(), SessionEnd::Protocol { chosen: 2 });
}

#[test]
fn waits_double_up_to_the_bound_and_start_over_after_progress() {
    let config = SessionConfig::default();
    let mut rig = Rig::new();
    rig.session.start();
    let mut waits = Vec::new();
    for _ in 0..12 {
        rig.effects();
        rig.close();
        let effects = rig.effects();
        let Some(Effect::SetTimer(wait)) = effects.last() else { panic!("{effects:?}") };
        waits.push(wait.as_millis());
        rig.handle(Event::Timer);
        assert!(rig.effects().contains(&Effect::Dial));
    }
    assert_eq!(&waits[..4], [100, 200, 400, 800], "the greatest random number takes nothing off");
    assert_eq!(*waits.last().unwrap(), config.backoff_max.as_millis());
    assert_eq!(backoff(&config, 0, 0), config.backoff_min / 2);
    assert_eq!(backoff(&config, u32::MAX, u32::MAX), config.backoff_max);

    // A server that welcomes and throws out again is not hammered; one that works is trusted again.
    rig.handle(Event::Opened);
    rig.welcome(VOLUME, 0, 10);
    rig.server(ServerMessage::Error { reason: Reason::new(codes::UNAVAILABLE, "store") });
    assert_eq!(rig.effects().last(), Some(&Effect::SetTimer(config.backoff_max)));
    rig.reconnect(0);
    rig.server(ServerMessage::Pong { n: 0 });
    rig.effects();
    rig.close();
    assert_eq!(rig.effects().last(), Some(&Effect::SetTimer(config.backoff_min)));
}

#[test]
fn a_first_connection_that_is_declined_ends_at_once_and_a_later_one_retries() {
    let unknown = Reason::new("unknown_volume", "no volume `x`");
    let mut rig = Rig::new();
    rig.session.start();
    rig.handle(Event::Declined(unknown.clone()));
    assert_eq!(rig.end(), SessionEnd::Declined(unknown.clone()));

    let mut rig = Rig::live(0, 10);
    rig.close();
    rig.handle(Event::Timer);
    rig.effects();
    rig.handle(Event::Declined(unknown));
    assert!(rig.is_waiting());
    let error = "no volume `x` (unknown_volume)".into();
    assert!(rig.notices().contains(&Notice::Status(Status::Offline { pending: 0, error })));
}

#[test]
fn silence_is_noticed() {
    let mut rig = Rig::new();
    rig.session.start();
    rig.handle(Event::Opened);
    rig.effects();
    rig.handle(Event::Timer);
    assert_eq!(rig.effects()[0], Effect::Hangup, "no greeting");
    assert!(rig.is_waiting());

    let mut rig = Rig::live(0, 10);
    rig.handle(Event::Timer);
    assert_eq!(rig.sent(), [ClientMessage::Ping { n: 0 }]);
    rig.server(ServerMessage::Pong { n: 0 });
    rig.handle(Event::Timer);
    assert_eq!(rig.sent(), [ClientMessage::Ping { n: 0 }], "the pong was heard");
    rig.handle(Event::Timer);
    assert_eq!(rig.effects()[0], Effect::Hangup, "nothing came back");
    assert!(rig.is_waiting());
}

#[test]
fn refusals_that_pass_are_resent_and_lasting_ones_are_told() {
    for code in [codes::SEQ_GAP, codes::TOO_MANY_IN_FLIGHT, codes::UNAVAILABLE] {
        let mut rig = Rig::live(0, 10);
        rig.mutate("a").unwrap();
        rig.effects();
        rig.refuse(1, code);
        assert!(rig.is_waiting(), "{code}");
        rig.reconnect(0);
        assert_eq!(rig.sent_seqs(), [1], "{code}");
    }

    let mut rig = Rig::live(0, 10);
    rig.mutate("a").unwrap();
    rig.mutate("b").unwrap();
    rig.effects();
    rig.refuse(1, codes::SEQ_FORGOTTEN);
    let reason = Reason::new(codes::SEQ_FORGOTTEN, "why");
    assert_eq!(rig.notices(), [Notice::Refused { seq: 1, reason }]);
    assert_eq!(rig.session.pending(), 1, "the next goes on");

    for code in [codes::SEQ_REUSED, codes::NO_MODULE, "a_code_of_the_future"] {
        let mut rig = Rig::live(0, 10);
        rig.mutate("a").unwrap();
        rig.effects();
        rig.refuse(1, code);
        let reason = Reason::new(code, "why");
        let end = SessionEnd::Refused { seq: 1, reason: reason.clone() };
        assert_eq!(
            rig.notices(),
            [Notice::Refused { seq: 1, reason }, Notice::Status(Status::Ended(end))],
            "{code}"
        );
    }
}

/// A server that shuts down still answers what it took: who hung up at its first refusal was told
/// `accepted` and, until it found the next server, nothing more.
#[test]
fn a_server_that_shuts_down_is_heard_to_its_end() {
    let mut rig = Rig::live(0, 10);
    rig.mutate("taken").unwrap();
    rig.mutate("refused").unwrap();
    rig.mutate("after it").unwrap();
    rig.effects();
    rig.refuse(2, codes::SHUTDOWN);
    rig.refuse(3, codes::SEQ_GAP);
    rig.mutate("too late").unwrap();
    assert_eq!(rig.effects(), [], "nothing is sent to it, and nobody hangs up");
    rig.server(ServerMessage::Durable { seq: 1, lsn: Lsn(1) });
    assert_eq!(rig.notices(), [Notice::Durable { seq: 1, lsn: Lsn(1) }]);
    rig.server(ServerMessage::Error { reason: Reason::new(codes::SHUTDOWN, "bye") });
    assert!(rig.is_waiting());
    rig.reconnect(1);
    assert_eq!(rig.sent_seqs(), [2, 3, 4]);

    // One that never closes is left after a while.
    rig.refuse(2, codes::SHUTDOWN);
    rig.handle(Event::Timer);
    assert_eq!(rig.effects()[0], Effect::Hangup);
    assert!(rig.is_waiting());
}

#[test]
fn error_messages_end_or_retry_by_their_code() {
    for code in [codes::SHUTDOWN, codes::UNAVAILABLE, codes::DAMAGED] {
        let mut rig = Rig::live(0, 10);
        rig.server(ServerMessage::Error { reason: Reason::new(code, "why") });
        assert!(rig.is_waiting(), "{code}");
    }
    for code in [codes::BAD_MESSAGE, codes::UNSUPPORTED, "a_code_of_the_future"] {
        let mut rig = Rig::live(0, 10);
        let reason = Reason::new(code, "why");
        rig.server(ServerMessage::Error { reason: reason.clone() });
        assert_eq!(rig.end(), SessionEnd::Server(reason), "{code}");
    }
}

#[test]
fn subscriptions_reopen_under_their_ids_and_keep_their_rows_meanwhile() {
    let mut rig = Rig::live(0, 10);
    let sub = rig.session.subscribe("SELECT n".into(), Params::default(), None).unwrap();
    let opening = rig.sent();
    rig.server(snapshot(sub, vec![vec![json!(0)]]));
    rig.server(delta(sub, insert(1)));
    assert_eq!(
        rig.notices(),
        [Notice::Snapshot { sub }, Notice::Delta { sub, at: At { seq: 1, ..at(0) }, changes: insert(1) }]
    );
    rig.close();
    assert_eq!(rig.session.rows(sub).unwrap().rows().len(), 2);
    rig.reconnect(0);
    assert_eq!(rig.sent(), opening);
    rig.server(delta(sub, insert(0)));
    assert_eq!(rig.notices(), [], "no delta counts before the new snapshot");
    rig.server(snapshot(sub, vec![]));
    assert_eq!(rig.notices(), [Notice::Snapshot { sub }]);
    assert_eq!(rig.session.rows(sub).unwrap().rows().len(), 0);
}

#[test]
fn a_delta_that_does_not_fit_opens_the_subscription_anew() {
    let mut rig = Rig::live(0, 10);
    let sub = rig.session.subscribe("SELECT n".into(), Params::default(), None).unwrap();
    rig.server(snapshot(sub, vec![]));
    rig.effects();
    let error = DeltaError::OutOfBounds { what: "insert", position: 5, rows: 1 };
    rig.server(delta(sub, insert(5)));
    let effects = rig.effects();
    let fresh = sub + 1;
    let subscribe = format!(r#"{{"type":"subscribe","sub":{fresh},"sql":"SELECT n"}}"#);
    assert_eq!(
        effects,
        [
            Effect::Send(format!(r#"{{"type":"unsubscribe","sub":{sub}}}"#)),
            Effect::Send(subscribe),
            Effect::Notify(Notice::Resubscribed { sub, error })
        ]
    );
    rig.server(delta(sub, insert(0)));
    rig.server(snapshot(sub, vec![vec![json!(3)]]));
    assert_eq!(rig.notices(), [], "what was on its way for the old id is dropped");
    rig.server(snapshot(fresh, vec![vec![json!(4)]]));
    assert_eq!(rig.notices(), [Notice::Snapshot { sub }], "the app keeps its id");
    // The server insists: the subscription is given up, not asked for for ever.
    rig.server(delta(fresh, insert(5)));
    rig.server(snapshot(fresh + 1, vec![]));
    rig.server(delta(fresh + 1, insert(5)));
    assert!(
        matches!(rig.notices().last(), Some(Notice::SubscriptionFailed { sub: 1, reason }) if reason.message.contains("did not fit"))
    );
    assert_eq!(rig.session.rows(sub), None);
}

#[test]
fn a_subscription_error_frees_it_unless_it_passes() {
    let mut rig = Rig::live(0, 10);
    let sub = rig.session.subscribe("DROP x".into(), Params::default(), None).unwrap();
    rig.effects();
    let reason = Reason::new(codes::BAD_QUERY, "not a read");
    rig.server(ServerMessage::SubscriptionError { sub, reason: reason.clone() });
    assert_eq!(rig.notices(), [Notice::SubscriptionFailed { sub, reason }]);

    let sub = rig.session.subscribe("SELECT 1".into(), Params::default(), None).unwrap();
    rig.effects();
    let reason = Reason::new(codes::UNAVAILABLE, "store");
    rig.server(ServerMessage::SubscriptionError { sub, reason });
    assert!(rig.is_waiting());
    rig.reconnect(0);
    assert_eq!(rig.sent().len(), 1, "the live one is asked for again, the failed one is not");
}

#[test]
fn unsubscribing_tells_the_server_and_ignores_what_was_on_its_way() {
    let mut rig = Rig::live(0, 10);
    let sub = rig.session.subscribe("SELECT 1".into(), Params::default(), None).unwrap();
    rig.effects();
    rig.session.unsubscribe(sub);
    assert_eq!(rig.sent(), [ClientMessage::Unsubscribe { sub }]);
    rig.server(snapshot(sub, vec![]));
    rig.server(delta(sub, insert(0)));
    rig.session.unsubscribe(sub);
    assert_eq!(rig.effects(), []);
}

#[test]
fn queries_are_asked_again_until_answered_or_forgotten() {
    let mut rig = Rig::live(0, 10);
    let ask = |rig: &mut Rig, sql: &str| rig.session.query(sql.into(), Params::default()).unwrap();
    let (a, b, c) = (ask(&mut rig, "SELECT 1"), ask(&mut rig, "SELECT 2"), ask(&mut rig, "SELECT 3"));
    let rows =
        |id| ServerMessage::Rows { id, at: at(0), columns: vec!["n".into()], rows: vec![vec![json!(1)]] };
    rig.server(rows(a));
    rig.server(rows(a));
    let answered: Vec<Notice> = rig.notices();
    assert!(matches!(&answered[..], [Notice::Answer { id, .. }] if *id == a), "{answered:?}");
    rig.session.forget_query(b);
    rig.close();
    rig.reconnect(0);
    assert_eq!(
        rig.sent(),
        [ClientMessage::Query { id: c, sql: "SELECT 3".into(), params: Params::default() }]
    );
    rig.server(ServerMessage::Rows { id: c, at: at(0), columns: vec![], rows: vec![vec![json!(1)]] });
    assert!(matches!(&rig.notices()[..], [Notice::QueryFailed { .. }]), "a ragged answer is an error");
}

#[test]
fn hostile_frames_drop_the_connection_and_never_panic() {
    let deep = "[".repeat(100_000);
    let hostile = [
        "",
        "null",
        "%s%n",
        "{}",
        r#"{"type":"evil"}"#,
        r#"{"type":"durable","seq":-1,"lsn":1}"#,
        r#"{"type":"durable","seq":99,"lsn":1}"#,
        r#"{"type":"accepted","seq":18446744073709551615,"lsn":1}"#,
        r#"{"type":"snapshot","sub":1,"epoch":0,"lsn":1,"seq":0,"columns":["a"],"key":[],"rows":[[]]}"#,
        r#"{"type":"welcome","protocol":1,"volume":"00000000000000000000000000000000","epoch":0,"lsn":0,"seq":0,"module":null,"max_in_flight":1}"#,
        &deep,
    ];
    for frame in hostile {
        let shown: String = frame.chars().take(60).collect();
        let mut rig = Rig::live(0, 10);
        rig.mutate("a").unwrap();
        rig.session.subscribe("SELECT 1".into(), Params::default(), None).unwrap();
        rig.effects();
        rig.handle(Event::Frame(frame.into()));
        assert_eq!(rig.effects().first(), Some(&Effect::Hangup), "{shown}");
        assert!(rig.is_waiting(), "{shown}");
        assert_eq!(rig.session.pending(), 1, "{shown}");
    }
    let mut rig = Rig::new();
    rig.session.start();
    rig.handle(Event::Opened);
    rig.effects();
    rig.server(durable(1));
    assert_eq!(rig.effects().first(), Some(&Effect::Hangup), "an answer before welcome");
}

#[test]
fn events_out_of_turn_change_nothing() {
    let mut rig = Rig::new();
    rig.handle(Event::Timer);
    rig.close();
    rig.handle(Event::Frame("x".into()));
    assert_eq!(rig.effects(), []);
    rig.handle(Event::Opened);
    assert_eq!(rig.effects(), [Effect::Hangup]);
    rig.session.start();
    rig.effects();
    rig.handle(Event::Timer);
    assert_eq!(rig.effects(), [], "the driver's own dial time-out counts, not this timer");
    rig.close();
    rig.effects();
    rig.close();
    assert_eq!(rig.effects(), [], "closed twice");
    rig.session.close();
    assert_eq!(rig.end(), SessionEnd::Closed);
    rig.effects();
    rig.handle(Event::Timer);
    rig.handle(Event::Frame("x".into()));
    rig.session.close();
    assert_eq!(rig.effects(), []);
}

#[test]
fn calls_are_bounded() {
    let config = SessionConfig { pending_max: 1, ..SessionConfig::default() };
    let mut rig = Rig::of(ClientSession::new(id("c"), config));
    rig.mutate("a").unwrap();
    assert_eq!(rig.mutate("b"), Err(CallError::Full { pending: 1 }));
    let long = "x".repeat(FRAME_BYTES_MAX);
    let too_long = |result: Result<u64, CallError>| matches!(result, Err(CallError::TooLong { .. }));
    assert!(too_long(rig.session.query(long.clone(), Params::default())));
    assert!(too_long(rig.session.subscribe(long.clone(), Params::default(), None)));
    let mut rig = Rig::new();
    assert!(too_long(rig.mutate(&long)));
    assert_eq!(rig.mutate("a"), Ok(1), "a refused call uses up no seq");
}

#[test]
fn a_restored_session_goes_on_where_it_was() {
    let mut rig = Rig::live(0, 10);
    for _ in 0..3 {
        rig.mutate("a").unwrap();
    }
    rig.server(durable(1));
    let kept = serde_json::to_string(&rig.session.state()).unwrap();
    let state: ClientState = serde_json::from_str(&kept).unwrap();
    let mut rig = Rig::of(ClientSession::restore(state, SessionConfig::default()).unwrap());
    assert_eq!(rig.mutate("b"), Ok(4));
    rig.connect(2, 10);
    assert_eq!(rig.sent_seqs(), [2, 3, 4]);
    rig.server(durable(2));
    rig.close();
    rig.reconnect(1);
    assert_eq!(rig.end(), SessionEnd::HistoryLost { settled: 2, server: 1 });
}

#[test]
fn a_damaged_state_is_refused() {
    let mut rig = Rig::new();
    rig.mutate("a").unwrap();
    let good = rig.session.state();
    let refused = |change: &dyn Fn(&mut ClientState)| {
        let mut state = good.clone();
        change(&mut state);
        ClientSession::restore(state, SessionConfig::default()).is_err()
    };
    assert!(!refused(&|_| {}));
    assert!(refused(&|state| state.settled = 2));
    assert!(refused(&|state| state.next_seq = Some(1)));
    assert!(refused(&|state| state.next_seq = None));
    assert!(refused(&|state| state.next_seq = Some(u64::MAX)));
    assert!(refused(&|state| state.pending.push(state.pending[0].clone())));
    assert!(refused(&|state| state.pending[0].seq = 0));
}

fn set(state: serde_json::Value) -> ClientMessage {
    ClientMessage::SetPresence { state }
}

#[test]
fn presence_is_said_again_after_each_welcome_and_before_the_ttl() {
    let mut rig = Rig::new();
    rig.session.set_presence(json!("here")).unwrap();
    rig.session.watch_presence(true);
    rig.connect(0, 10);
    let sent = rig.sent();
    assert_eq!(sent[1..], [ClientMessage::WatchPresence {}, set(json!("here"))]);
    rig.server(ServerMessage::PresenceSet { id: 7, ttl_ms: 9_000 });
    assert_eq!(rig.session.present().me, Some(7));
    assert!(rig.effects().contains(&Effect::SetTimer(Duration::from_secs(3))));
    // It is one timer: as often as it rings the server is probed too, and it has as long to answer as ever.
    for _ in 0..5 {
        rig.handle(Event::Timer);
        assert_eq!(rig.sent(), [ClientMessage::Ping { n: 0 }, set(json!("here"))]);
    }
    assert!(!rig.is_waiting());
    rig.handle(Event::Timer);
    assert!(rig.is_waiting(), "after 15 s without a word");
    assert_eq!(*rig.session.present(), Present::default(), "nobody is known while there is no connection");
    rig.reconnect(0);
    assert_eq!(rig.sent(), [ClientMessage::WatchPresence {}, set(json!("here"))]);
    rig.session.clear_presence();
    rig.session.clear_presence();
    assert_eq!(rig.sent(), [ClientMessage::ClearPresence {}]);
    rig.server(ServerMessage::PresenceSet { id: 8, ttl_ms: 9_000 });
    assert_eq!(rig.session.present().me, None, "the answer to what was said before it was cleared");
    rig.handle(Event::Timer);
    assert_eq!(rig.sent(), [ClientMessage::Ping { n: 0 }]);
}

#[test]
fn presence_beyond_the_bounds_is_not_sent_and_what_is_refused_is_not_sent_again() {
    let mut rig = Rig::live(0, 10);
    let error = rig.session.set_presence(json!("x".repeat(2000))).unwrap_err();
    assert!(matches!(&error, CallError::Presence(reason) if reason.code == codes::TOO_LARGE), "{error}");
    rig.session.set_presence(json!(1)).unwrap();
    rig.session.set_presence(json!(1)).unwrap();
    assert_eq!(rig.sent(), [set(json!(1))]);
    let reason = Reason::new(codes::TOO_LARGE, "less is more");
    rig.server(ServerMessage::PresenceError { reason: reason.clone() });
    assert_eq!(rig.notices(), [Notice::Presence]);
    assert_eq!(rig.session.present().refused, Some(reason));
    rig.close();
    rig.reconnect(0);
    assert_eq!(rig.sent(), []);
    rig.session.close();
    assert!(matches!(rig.session.set_presence(json!(1)), Err(CallError::Ended(SessionEnd::Closed))));
}

#[test]
fn a_list_is_news_once_and_only_to_who_watches() {
    let list = || ServerMessage::Presence {
        peers: vec![crate::protocol::Peer { id: 1, state: json!({}) }],
        more: 2,
    };
    let mut rig = Rig::live(0, 10);
    rig.server(list());
    assert_eq!(rig.notices(), []);
    rig.session.watch_presence(true);
    rig.session.watch_presence(true);
    assert_eq!(rig.sent(), [ClientMessage::WatchPresence {}]);
    rig.server(list());
    rig.server(list());
    assert_eq!(rig.notices(), [Notice::Presence]);
    let Present { peers, more, known, .. } = rig.session.present().clone();
    assert_eq!((peers.len(), more, known), (1, 2, true));
    rig.session.watch_presence(false);
    assert_eq!(*rig.session.present(), Present::default());
}

/// What a hello says of when the id was made.
fn said_since(effects: &[Effect]) -> Lsn {
    let hello = effects.iter().find_map(|effect| match effect {
        Effect::Send(text) => match ClientMessage::from_json(text) {
            Ok(ClientMessage::Hello { since, .. }) => Some(since),
            _ => None,
        },
        _ => None,
    });
    hello.expect("a hello")
}

/// An id that made no mutation has none that could have been forgotten, however long ago it was made.
#[test]
fn a_session_that_made_no_mutation_does_not_grow_old() {
    let mut session = ClientSession::new(id("c"), SessionConfig::default());
    let greet = |session: &mut ClientSession, lsn: u64, seq: u64| {
        session.handle(Event::Closed { why: "gone".into() }, 0);
        session.start();
        session.handle(Event::Timer, 0);
        while session.next_effect().is_some() {}
        session.handle(Event::Opened, 0);
        let said = said_since(&std::iter::from_fn(|| session.next_effect()).collect::<Vec<_>>());
        let at = At { lsn: Lsn(lsn), ..at(seq) };
        let welcome =
            ServerMessage::Welcome { protocol: PROTOCOL, volume: VOLUME, at, module: None, max_in_flight: 9 };
        session.handle(Event::Frame(welcome.to_json()), 0);
        said
    };
    assert_eq!(greet(&mut session, 5, 0), Lsn::ZERO);
    assert_eq!(greet(&mut session, 7_000, 0), Lsn::ZERO);
    session.mutate("r".into(), Map::new(), 1, Seed(1)).unwrap();
    assert_eq!(greet(&mut session, 20_000, 0), Lsn(7_000));
    assert_eq!(session.state().since, Lsn(7_000));
}

/// A mutation that was given its seq elsewhere is taken once, and only in its turn.
#[test]
fn a_mutation_given_twice_is_one() {
    let mut rig = Rig::live(0, 10);
    let given =
        |seq: u64| PendingMutation { seq, reducer: "r".into(), args: Map::new(), clock: 1, seed: Seed(1) };
    assert_eq!(rig.session.mutate_as(given(2)), Err(CallError::Gap { seq: 2, next: 1 }));
    for seq in [1, 1, 2, 1, 2, 3] {
        rig.session.mutate_as(given(seq)).unwrap();
    }
    assert_eq!(rig.session.state().pending, [given(1), given(2), given(3)]);
    let sent =
        std::iter::from_fn(|| rig.session.next_effect()).filter(|effect| matches!(effect, Effect::Send(_)));
    assert_eq!(sent.count(), 3);
}
