//! Queries that wait for a state.

use super::*;

const COUNT: &str = "select count(*) from t";

impl Rig {
    fn ask(&mut self, request: u64, after: Option<&Token>) {
        let ask = Ask {
            sql: COUNT.into(),
            params: Default::default(),
            after: after.cloned(),
            deadline_ms: self.now_ms + 500,
        };
        self.actor.handle(Input::Ask { request: RequestId(request), ask });
        self.collect();
    }

    /// The one answer that came: its count, and its token.
    fn counted(&mut self) -> (u64, i64, Token) {
        let [(request, Ok(asked))] = &self.asked[..] else { panic!("{:?}", self.asked) };
        let counted = (*request, asked.rows[0][0].as_i64().unwrap(), asked.token.clone());
        assert_eq!(asked.columns, ["count(*)"]);
        self.asked.clear();
        counted
    }

    fn failed(&mut self) -> AskError {
        let [(_, Err(error))] = &self.asked[..] else { panic!("{:?}", self.asked) };
        let error = error.clone();
        self.asked.clear();
        error
    }

    /// 100 ms later.
    fn remind(&mut self) {
        assert_eq!(self.reminders, 1, "one reminder at a time");
        self.reminders = 0;
        self.now_ms += 100;
        self.actor.handle(Input::Reminded);
        self.settle();
    }

    fn insert(&mut self, seq: u64) {
        self.mutate(1, seq, "sql", "insert into t(v) values('x')");
    }
}

fn token(lsn: u64, tip: Option<u64>, mutation: Option<(&str, u64)>) -> Token {
    Token { volume: VOLUME, lsn: Lsn(lsn), tip, mutation: mutation.map(|(name, seq)| (client(name), seq)) }
}

#[test]
fn a_query_sees_the_tip_and_its_token_says_what_that_was() {
    let mut rig = Rig::new(memory());
    rig.ask(1, None);
    assert_eq!(rig.counted(), (1, 0, token(1, None, None)));
    rig.connect(1, "alice");
    rig.insert(1);
    rig.ask(2, Some(&token(0, None, Some(("alice", 1)))));
    let (_, rows, ahead) = rig.counted();
    assert_eq!((rows, &ahead), (1, &token(1, Some(1), None)));
    rig.settle();
    rig.ask(3, Some(&ahead));
    assert_eq!(rig.counted(), (3, 1, token(2, None, None)));
    // After a restart only the tip that was not durable when it was read cannot be vouched for.
    let mut rig = Rig::reopened(rig.remote, 2);
    rig.ask(4, Some(&token(2, None, Some(("alice", 1)))));
    assert_eq!(rig.counted().1, 1);
    rig.ask(5, Some(&ahead));
    assert!(matches!(rig.failed(), AskError::Lost { .. }));
    rig.ask(6, Some(&Token { volume: VolumeId([1; 16]), ..token(0, None, None) }));
    assert!(matches!(rig.failed(), AskError::Lost { .. }));
}

#[test]
fn a_query_waits_for_its_clients_mutation() {
    let mut rig = Rig::new(memory());
    rig.connect(1, "alice");
    rig.ask(1, Some(&token(0, None, Some(("alice", 2)))));
    rig.settle();
    rig.insert(1);
    rig.settle();
    assert_eq!(rig.asked, []);
    rig.insert(2);
    rig.flush();
    assert_eq!(rig.counted(), (1, 2, token(2, Some(1), None)));
    rig.settle();
    assert_eq!((rig.actor.metrics().replays, rig.actor.epoch), (0, 1));
}

/// Two servers of one volume: the second learns of the first one's commits because a query waits.
#[test]
fn a_query_waits_for_a_commit_of_another_server() {
    let mut rig = Rig::new(memory());
    let mut other = Rig::reopened(rig.remote.clone(), 7);
    rig.ask(1, Some(&token(2, None, Some(("alice", 1)))));
    rig.settle();
    other.connect(1, "alice");
    other.insert(1);
    other.settle();
    assert_eq!(rig.asked, []);
    rig.remind();
    assert_eq!(rig.counted(), (1, 1, token(2, None, None)));
    // It was a move forward: nothing that was read before is lost.
    assert_eq!((rig.actor.metrics().replays, rig.actor.epoch), (0, 1));
    rig.connect(1, "alice");
    rig.insert(2);
    rig.settle();
    assert_eq!(finals(&rig.messages(1)), [(2, None)]);
}

#[test]
fn a_wait_ends_at_its_deadline_and_pulls_no_more_than_each_reminder() {
    let counting = Counting::new(memory());
    let mut rig = Rig::new(counting.clone());
    counting.reset();
    for request in 0..3 {
        rig.ask(request, Some(&token(u64::MAX, None, None)));
        rig.settle();
    }
    for _ in 0..4 {
        rig.remind();
        assert_eq!(rig.asked, []);
    }
    assert_eq!(counting.reset().lists, 5);
    rig.remind();
    assert_eq!(rig.asked.len(), 3);
    assert!(rig.asked.iter().all(|(_, result)| *result == Err(AskError::NotReached)));
    assert_eq!(rig.reminders, 0, "nothing is left that waits");
}

#[test]
fn an_unreachable_store_ends_in_the_deadline_too_and_harms_no_mutation() {
    let faulty = Faulty::new(memory(), 1);
    let mut rig = Rig::new(faulty.clone());
    rig.connect(1, "alice");
    rig.insert(1);
    rig.settle();
    faulty.set_unreachable(true);
    rig.ask(1, Some(&token(9, None, None)));
    rig.settle();
    rig.messages(1);
    rig.insert(2);
    rig.flush();
    assert!(matches!(rig.messages(1)[..], [ServerMessage::Accepted { seq: 2, .. }]));
    faulty.set_unreachable(false);
    rig.settle();
    assert_eq!(finals(&rig.messages(1)), [(2, None)]);
    for _ in 0..5 {
        rig.remind();
    }
    assert_eq!(rig.failed(), AskError::NotReached);
}

#[test]
fn waiting_is_bounded_and_ends_with_the_server() {
    let mut rig = Rig::new(memory());
    for request in 0..=WAITING_MAX as u64 {
        rig.ask(request, Some(&token(9, None, None)));
    }
    assert_eq!(rig.failed(), AskError::TooMany);
    rig.actor.handle(Input::Shutdown);
    rig.settle();
    assert_eq!(rig.asked.len(), WAITING_MAX);
    assert!(rig.drained);
    rig.asked.clear();
    rig.ask(1, Some(&token(9, None, None)));
    assert!(matches!(rig.failed(), AskError::Failed(reason) if reason.code == codes::SHUTDOWN));
}

#[test]
fn it_says_how_it_stands() {
    let mut rig = Rig::new(memory());
    rig.actor.handle(Input::Inspect { request: RequestId(1) });
    rig.collect();
    let standing = Standing { volume: VOLUME, epoch: 1, lsn: Lsn(1), module: Some(module(1)), schema: 1 };
    assert_eq!(rig.standing, Some(standing));
}
