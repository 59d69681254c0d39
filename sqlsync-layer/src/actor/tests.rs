//! The actor against a store in memory, one input at a time: no sockets, no clock, no threads.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::executor::block_on;
use graft::catalog;
use graft::fetch::RemoteFetch;
use graft::format::meta::Meta;
use graft::publish::{PublishError, publish};
use graft::remote::memory::MemoryRemote;
use graft::remote::{Counting, Fault, Faulty, Remote, Request, SharedRemote};
use graft::volume::{Options, Volume, push};
use graft::{CommitId, ModuleHash, PageSize, VolumeId, VolumeName};
use reducers_abi::{Call, Description, Entry, Failure, Param, Reducer, Runtime, Sql, Type, Value};
use serde_json::json;

use super::*;
use crate::payload::Payload;
use crate::protocol::{Changes, ServerMessage, codes};
use crate::vfs::Database;

mod asks;

/// A native module: `sql` runs any statement, `refuse` refuses, `fail_once` runs one and refuses.
#[derive(Debug)]
struct TestModule(Description);

impl TestModule {
    fn new(migrations: u32) -> TestModule {
        let text = |name: &str| Param { name: name.into(), ty: Type::Text, optional: false };
        let reducer =
            |name: &str| Reducer { name: name.into(), params: vec![text("sql")], doc: String::new() };
        let reducers = ["sql", "refuse", "both"].map(reducer).to_vec();
        TestModule(Description { reducers, migrations: (1..=migrations).collect() })
    }
}

impl Runtime for TestModule {
    fn description(&self) -> &Description {
        &self.0
    }
    fn run(&self, call: &Call<'_>, sql: &mut dyn Sql) -> Result<(), Failure> {
        let refused = |message: String| Failure::Refused { message };
        match call.entry {
            Entry::Migration { version } => {
                let text = match version {
                    1 => "create table t(id integer primary key, v)",
                    2 => {
                        "create table child(id integer primary key, t references t(id) deferrable initially deferred)"
                    }
                    3 => "create table more(x)",
                    _ => "alter table t add column w",
                };
                sql.execute(text, &[]).map(|_| ()).map_err(|e| refused(e.message))
            }
            Entry::Reducer { name, args } => {
                let [Value::Text(text)] = args else {
                    return Err(Failure::Trap { message: "arguments".into() });
                };
                if name == "refuse" {
                    return Err(refused(text.clone()));
                }
                for statement in text.split(';') {
                    sql.execute(statement, &[]).map_err(|e| refused(e.message))?;
                }
                if name == "both" { Err(refused("after writing".into())) } else { Ok(()) }
            }
        }
    }
}

#[derive(Debug)]
struct TestModules;
impl Modules for TestModules {
    fn load(&self, module: ModuleHash) -> Result<Arc<dyn Runtime>, ModuleError> {
        match module.0[0] {
            0 => Err(ModuleError::Invalid { module, message: "not wasm".into() }),
            migrations => Ok(Arc::new(TestModule::new(migrations.into()))),
        }
    }
}

fn module(migrations: u8) -> ModuleHash {
    ModuleHash([migrations; 32])
}

fn client(name: &str) -> ClientId {
    ClientId::new(name).unwrap()
}

struct Rig {
    actor: Actor,
    remote: SharedRemote,
    ids: u128,
    /// What each session was sent since it was last asked.
    sent: BTreeMap<SessionId, Vec<ServerMessage>>,
    deployed: Vec<(RequestId, Result<Deployed, Reason>)>,
    /// Publications and pulls that wait for [`Rig::carry_out`].
    waiting: Vec<Output>,
    drained: bool,
    asked: Vec<(u64, Result<Asked, AskError>)>,
    standing: Option<Standing>,
    reminders: u32,
    now_ms: i64,
}

const VOLUME: VolumeId = VolumeId([9; 16]);

fn create(remote: &dyn Remote) {
    let meta = Meta { page_size: PageSize::DEFAULT, parent: None };
    block_on(catalog::create(remote, &"t".parse::<VolumeName>().unwrap(), VOLUME, meta)).unwrap();
}

fn open_actor(remote: &SharedRemote, epoch: u64) -> Actor {
    let options = Options { locals: None, ..Options::default() };
    let opened = block_on(Volume::open(&**remote, VOLUME, options)).unwrap();
    let fetch = Arc::new(RemoteFetch::new(remote.clone()));
    Actor::open(opened, fetch, Arc::new(TestModules), Limits::default(), epoch).unwrap()
}

impl Rig {
    fn new(remote: SharedRemote) -> Rig {
        create(&*remote);
        let mut rig = Rig::reopened(remote, 1);
        rig.deploy(1, module(1));
        rig.settle();
        assert!(matches!(rig.deployed.pop(), Some((_, Ok(_)))));
        rig
    }

    fn reopened(remote: SharedRemote, epoch: u64) -> Rig {
        let actor = open_actor(&remote, epoch);
        let ids = u128::from(epoch) << 64;
        Rig {
            actor,
            remote,
            ids,
            sent: BTreeMap::new(),
            deployed: Vec::new(),
            waiting: Vec::new(),
            drained: false,
            asked: Vec::new(),
            standing: None,
            reminders: 0,
            now_ms: 2_000,
        }
    }

    fn deploy(&mut self, request: u64, module: ModuleHash) {
        self.actor.handle(Input::Deploy { request: RequestId(request), module, now_ms: 5, seed: 6 });
    }

    fn connect(&mut self, session: u64, name: &str) {
        self.actor.handle(Input::Connect {
            session: SessionId(session),
            client: client(name),
            known: Known::NOTHING,
        });
        self.collect();
        assert!(matches!(self.messages(session)[..], [ServerMessage::Welcome { .. }]));
    }

    fn receive(&mut self, session: u64, message: serde_json::Value) {
        let message = ClientMessage::from_json(&message.to_string()).unwrap();
        self.actor.handle(Input::Receive { session: SessionId(session), message, seed: 1, now_ms: 1_000 });
        self.collect();
    }

    fn mutate(&mut self, session: u64, seq: u64, reducer: &str, sql: &str) {
        self.receive(
            session,
            json!({"type": "mutate", "seq": seq, "reducer": reducer, "args": {"sql": sql}}),
        );
    }

    fn subscribe(&mut self, session: u64, sub: u64, sql: &str) {
        self.receive(session, json!({"type": "subscribe", "sub": sub, "sql": sql}));
    }

    fn flush(&mut self) {
        self.ids += 1;
        self.actor.flush(self.now_ms, CommitId(self.ids.to_be_bytes()));
        self.collect();
    }

    fn collect(&mut self) {
        for output in self.actor.take_outputs() {
            match output {
                Output::Send { session, message } => {
                    let message = ServerMessage::from_json(&message.to_json()).unwrap();
                    self.sent.entry(session).or_default().push(message);
                }
                Output::Deployed { request, result } => self.deployed.push((request, result)),
                Output::Drained => self.drained = true,
                Output::Asked { request, result } => self.asked.push((request.0, result)),
                Output::Inspected { request: _, standing } => self.standing = Some(standing),
                Output::Remind { .. } => self.reminders += 1,
                Output::Publish(_) | Output::Pull | Output::Checkpoint { .. } | Output::Wake { .. } => {
                    self.waiting.push(output);
                }
            }
        }
    }

    /// Does what the actor asked for, once.
    fn carry_out(&mut self) -> bool {
        let waiting = std::mem::take(&mut self.waiting);
        let any = !waiting.is_empty();
        for output in waiting {
            match output {
                Output::Publish(prepared) => {
                    let result = block_on(publish(&*self.remote, &prepared));
                    self.actor.handle(Input::Published(result));
                }
                Output::Pull => {
                    let result = block_on(self.actor.volume().clone().pull(&*self.remote));
                    self.actor.handle(Input::Pulled(result));
                }
                Output::Checkpoint { snapshot, state } => {
                    let volume = self.actor.volume().clone();
                    let result = block_on(graft::checkpoint::write(&*self.remote, &volume, &snapshot, state));
                    self.actor.handle(Input::Checkpointed(result));
                }
                Output::Wake { .. } => self.actor.handle(Input::Woken),
                Output::Send { .. }
                | Output::Deployed { .. }
                | Output::Asked { .. }
                | Output::Inspected { .. }
                | Output::Remind { .. }
                | Output::Drained => unreachable!("collected"),
            }
            self.collect();
        }
        any
    }

    /// Flushes and carries out until there is nothing more to do.
    fn settle(&mut self) {
        for _ in 0..100 {
            self.flush();
            if !self.carry_out() {
                return;
            }
        }
        panic!("the actor does not come to rest: {:?}", self.actor);
    }

    fn messages(&mut self, session: u64) -> Vec<ServerMessage> {
        self.sent.remove(&SessionId(session)).unwrap_or_default()
    }

    fn query(&mut self, sql: &str) -> serde_json::Value {
        self.actor.handle(Input::Connect {
            session: SessionId(999),
            client: client("asker"),
            known: Known::NOTHING,
        });
        self.receive(999, json!({"type": "query", "id": 1, "sql": sql}));
        let rows = self.messages(999).into_iter().find_map(|message| match message {
            ServerMessage::Rows { rows, .. } => Some(json!(rows)),
            ServerMessage::QueryError { reason, .. } => panic!("{sql}: {reason}"),
            _ => None,
        });
        self.actor.handle(Input::Disconnect { session: SessionId(999) });
        rows.unwrap()
    }
}

fn memory() -> SharedRemote {
    Arc::new(MemoryRemote::new())
}

/// Final answers by seq: `None` durable, `Some(code)` rejected.
fn finals(messages: &[ServerMessage]) -> Vec<(u64, Option<&str>)> {
    let finals = messages.iter().filter_map(|message| match message {
        ServerMessage::Durable { seq, .. } => Some((*seq, None)),
        ServerMessage::Rejected { seq, reason, .. } => Some((*seq, Some(reason.code.as_str()))),
        _ => None,
    });
    finals.collect()
}

/// Writes from outside, as `graft sql --write` does.
fn write_directly(remote: &SharedRemote, sql: &str) {
    let opened = block_on(Volume::open(&**remote, VOLUME, Options::default())).unwrap();
    let db = Database::new(Arc::new(opened.volume), Arc::new(RemoteFetch::new(remote.clone())));
    let (connection, _) = db.connect().unwrap();
    connection.execute_batch(sql).unwrap();
    let id = CommitId(blake3::hash(sql.as_bytes()).as_bytes()[..16].try_into().unwrap());
    block_on(push(&**remote, db.volume(), Payload::of_locals, || id, 3_000)).unwrap();
}

/// A coordinator through which nobody commits learns by a look what others did; one that finds nothing tells
/// nobody, and one after a publication, which would have lost its LSN, asks for nothing.
#[test]
fn a_look_brings_what_direct_writers_did_and_is_spared_where_a_publication_shows_it() {
    let mut rig = Rig::new(memory());
    rig.connect(1, "alice");
    rig.subscribe(1, 7, "select v from t order by id");
    rig.messages(1);
    let look = |rig: &mut Rig| {
        rig.actor.handle(Input::Look);
        rig.collect();
        let asks = rig.waiting.len();
        rig.settle();
        asks
    };
    assert_eq!(look(&mut rig), 0, "the deploy has just been published");
    assert_eq!((look(&mut rig), rig.messages(1).len()), (1, 0), "nothing is new");
    write_directly(&rig.remote.clone(), "insert into t values(1, 'direct')");
    assert_eq!(look(&mut rig), 1);
    assert!(matches!(&rig.messages(1)[..], [ServerMessage::Delta { sub: 7, .. }]));
    rig.mutate(1, 1, "sql", "insert into t values(2, 'mine')");
    rig.actor.handle(Input::Look);
    assert!(rig.waiting.is_empty(), "work waits, and its publication will show it");
    rig.settle();
    assert_eq!(finals(&rig.messages(1)), [(1, None)]);
    assert_eq!(look(&mut rig), 0);
    assert_eq!(rig.actor.metrics().replays, 0);
}

#[test]
fn a_mutation_is_accepted_then_durable_and_another_subscriber_sees_it() {
    let mut rig = Rig::new(memory());
    rig.connect(1, "alice");
    rig.connect(2, "bob");
    rig.subscribe(2, 7, "select id, v from t order by id");
    assert!(
        matches!(&rig.messages(2)[..], [ServerMessage::Snapshot { sub: 7, rows, key, .. }] if rows.is_empty() && key == &["id"])
    );
    rig.mutate(1, 1, "sql", "insert into t values(1, 'a')");
    rig.flush();
    let lsn = Lsn(2);
    assert_eq!(rig.messages(1), [ServerMessage::Accepted { seq: 1, lsn }]);
    let ServerMessage::Delta { sub: 7, at, changes } = rig.messages(2).remove(0) else { panic!("no delta") };
    assert_eq!((at.lsn, at.seq), (lsn, 0));
    assert_eq!(changes, Changes { insert: vec![(0, vec![json!(1), json!("a")])], ..Changes::default() });
    rig.carry_out();
    assert_eq!(rig.messages(1), [ServerMessage::Durable { seq: 1, lsn }]);
}

#[test]
fn one_mutations_failure_never_touches_its_neighbours() {
    let mut rig = Rig::new(memory());
    rig.deploy(2, module(2));
    rig.connect(1, "alice");
    let steps = [
        ("sql", "insert into t values(1, 'a')", None),
        ("refuse", "not today", Some(codes::REFUSED)),
        ("sql", "insert into t values(2, 'b')", None),
        ("both", "insert into t values(3, 'c')", Some(codes::REFUSED)),
        ("sql", "insert into nowhere values(1)", Some(codes::REFUSED)),
        // SQLite ends the whole transaction here.
        ("sql", "insert or rollback into t values(1, 'again')", Some(codes::SQL)),
        ("sql", "insert into child values(1, 77)", Some(codes::SQL)),
        ("sql", "insert into child values(2, 2)", None),
        ("nowhere", "", Some(codes::UNKNOWN_REDUCER)),
        ("sql", "insert into t values(9223372036854775807, 'x')", Some(codes::SQL)),
        ("sql", "begin", Some(codes::REFUSED)),
        ("sql", "insert into t values(4, 'd')", None),
    ];
    for (seq, (reducer, sql, _)) in steps.iter().enumerate() {
        rig.mutate(1, seq as u64 + 1, reducer, sql);
    }
    rig.settle();
    let expected: Vec<_> =
        steps.iter().enumerate().map(|(at, (_, _, code))| (at as u64 + 1, *code)).collect();
    assert_eq!(finals(&rig.messages(1)), expected);
    assert_eq!(rig.query("select id, v from t order by id"), json!([[1, "a"], [2, "b"], [4, "d"]]));
    assert_eq!(rig.query("select t from child"), json!([[2]]));
}

#[test]
fn a_resent_mutation_has_its_recorded_outcome_and_no_effect() {
    let remote = memory();
    let mut rig = Rig::new(remote.clone());
    rig.connect(1, "alice");
    rig.mutate(1, 1, "sql", "insert into t values(null, 'once')");
    rig.mutate(1, 1, "sql", "insert into t values(null, 'once')");
    rig.mutate(1, 2, "refuse", "no");
    rig.settle();
    assert_eq!(finals(&rig.messages(1)), [(1, None), (2, Some(codes::REFUSED))]);
    // Also by another coordinator, that has only the bucket.
    let mut rig = Rig::reopened(remote, 2);
    rig.connect(1, "alice");
    rig.mutate(1, 1, "sql", "insert into t values(null, 'once')");
    rig.mutate(1, 2, "refuse", "no");
    rig.mutate(1, 2, "refuse", "another");
    rig.mutate(1, 5, "sql", "insert into t values(null, 'gap')");
    rig.settle();
    let messages = rig.messages(1);
    assert_eq!(finals(&messages), [(1, None), (2, Some(codes::REFUSED))]);
    let refused: Vec<_> = messages
        .iter()
        .filter_map(|m| match m {
            ServerMessage::Refused { seq, reason } => Some((*seq, reason.code.as_str())),
            _ => None,
        })
        .collect();
    assert_eq!(refused, [(2, codes::SEQ_REUSED), (5, codes::SEQ_GAP)]);
    assert_eq!(rig.query("select count(*) from t"), json!([[1]]));
}

#[test]
fn a_lost_lsn_resets_replays_and_shows_both_changes() {
    let mut rig = Rig::new(memory());
    rig.connect(1, "alice");
    rig.subscribe(1, 1, "select id, v from t order by id");
    rig.messages(1);
    write_directly(&rig.remote.clone(), "insert into t values(1, 'direct')");
    rig.mutate(1, 1, "sql", "insert into t(v) values('mine')");
    rig.mutate(1, 2, "sql", "insert into t values(1, 'mine too')");
    rig.settle();
    assert_eq!(rig.actor.metrics().replays, 1);
    // The second collided only with what came from outside: it was accepted, and is rejected.
    let messages = rig.messages(1);
    let accepted = messages.iter().filter(|m| matches!(m, ServerMessage::Accepted { .. })).count();
    assert!(accepted >= 1, "{messages:?}");
    assert_eq!(finals(&messages), [(1, None), (2, Some(codes::REFUSED))]);
    assert_eq!(rig.query("select id, v from t order by id"), json!([[1, "direct"], [2, "mine"]]));
    let mut rows: Vec<Vec<serde_json::Value>> = Vec::new();
    let mut epochs = Vec::new();
    for message in messages {
        if let ServerMessage::Delta { changes, at, .. } = message {
            epochs.push(at.epoch);
            changes.delete.iter().rev().for_each(|at| drop(rows.remove(*at as usize)));
            changes.insert.into_iter().for_each(|(at, row)| rows.insert(at as usize, row));
            changes.update.into_iter().for_each(|(at, row)| rows[at as usize] = row);
        }
    }
    assert_eq!(json!(rows), json!([[1, "direct"], [2, "mine"]]));
    assert_eq!(epochs.last(), Some(&2));
}

#[test]
fn a_one_row_mutation_is_one_put_of_the_changed_leaf() {
    let counting = Counting::new(memory());
    let mut rig = Rig::new(counting.clone());
    rig.connect(1, "alice");
    rig.mutate(1, 1, "sql", "insert into t values(1, 'a')");
    rig.settle();
    counting.reset();
    rig.mutate(1, 2, "sql", "update t set v = 'b' where id = 1");
    rig.settle();
    let counts = counting.reset();
    assert_eq!((counts.requests(), counts.creates), (1, 1), "{counts:?}");
    let pulled = block_on(graft::pull::read_head(&*rig.remote, VOLUME, Lsn(3))).unwrap();
    assert_eq!(pulled.set.iter().map(|page| page.get()).collect::<Vec<_>>(), [2]);
    // Whoever opens it pays the metadata, two LISTs and one prefix read a commit, and no page; whoever
    // pulls it, one LIST and the prefix.
    counting.reset();
    let opened = block_on(Volume::open(&*rig.remote, VOLUME, Options::default())).unwrap();
    let counts = counting.reset();
    assert_eq!((counts.lists, counts.ranges, counts.gets, counts.requests()), (2, 3, 1, 6), "{counts:?}");
    rig.mutate(1, 3, "sql", "update t set v = 'c' where id = 1");
    rig.settle();
    counting.reset();
    block_on(opened.volume.pull(&*rig.remote)).unwrap();
    let counts = counting.reset();
    assert_eq!((counts.lists, counts.ranges, counts.requests()), (1, 1, 2), "{counts:?}");
}

#[test]
fn only_touched_queries_run_and_subscribers_share_one_run() {
    let mut rig = Rig::new(memory());
    rig.deploy(2, module(3));
    rig.settle();
    for session in 0..10 {
        rig.connect(session, &format!("c{session}"));
        rig.subscribe(session, 1, "select count(*) from t");
    }
    rig.subscribe(0, 2, "select count(*) from more");
    assert_eq!(rig.actor.metrics().query_runs, 2);
    rig.mutate(0, 1, "sql", "insert into t values(1, 'a')");
    rig.settle();
    assert_eq!(rig.actor.metrics().query_runs, 3);
    rig.mutate(0, 2, "sql", "insert into more values(1)");
    rig.settle();
    assert_eq!(rig.actor.metrics().query_runs, 4);
    for session in 1..10 {
        let deltas =
            rig.messages(session).into_iter().filter(|m| matches!(m, ServerMessage::Delta { .. })).count();
        assert_eq!(deltas, 1);
    }
}

#[test]
fn an_unanswered_create_is_settled_with_the_same_bytes() {
    for fault in [Fault::FailBefore, Fault::FailAfter] {
        let faulty = Faulty::new(memory(), 1);
        let mut rig = Rig::new(faulty.clone());
        rig.connect(1, "alice");
        faulty.fail_next(Request::Create, fault);
        rig.mutate(1, 1, "sql", "insert into t values(1, 'a')");
        rig.settle();
        assert_eq!(finals(&rig.messages(1)), [(1, None)], "{fault:?}");
        assert_eq!(rig.query("select count(*) from t"), json!([[1]]));
        assert_eq!(rig.actor.volume().status().lsn, Lsn(2), "{fault:?}");
    }
}

#[test]
fn an_unreachable_store_rejects_nothing() {
    let faulty = Faulty::new(memory(), 1);
    let mut rig = Rig::new(faulty.clone());
    rig.connect(1, "alice");
    rig.mutate(1, 1, "sql", "insert into t values(1, 'a')");
    rig.settle();
    rig.messages(1);
    // A coordinator with an empty cache: its pages are out of reach.
    let mut rig = Rig::reopened(faulty.clone(), 2);
    faulty.set_unreachable(true);
    rig.connect(1, "alice");
    rig.mutate(1, 2, "sql", "insert into t values(2, 'b')");
    for _ in 0..5 {
        rig.flush();
        rig.carry_out();
    }
    assert_eq!(rig.messages(1), []);
    faulty.set_unreachable(false);
    rig.settle();
    assert_eq!(finals(&rig.messages(1)), [(2, None)]);
    assert_eq!(rig.query("select count(*) from t"), json!([[2]]));
}

#[test]
fn migrations_run_once_and_a_bad_module_changes_nothing() {
    let remote = memory();
    let mut rig = Rig::new(remote.clone());
    for (request, module) in
        [(2, module(1)), (3, module(3)), (4, module(3)), (5, module(2)), (6, ModuleHash([0; 32]))]
    {
        rig.deploy(request, module);
        rig.settle();
    }
    let results: Vec<_> = std::mem::take(&mut rig.deployed).into_iter().map(|(_, result)| result).collect();
    let run: Vec<_> =
        results[..3].iter().map(|r| r.as_ref().map(|d| (d.schema, d.migrations_run)).unwrap()).collect();
    assert_eq!(run, [(1, 0), (3, 2), (3, 0)]);
    assert!(results[3].as_ref().unwrap_err().message.contains("version 3"));
    assert_eq!(results[4].as_ref().unwrap_err().code, codes::NO_MODULE);
    // Another coordinator finds the module in force.
    let mut rig = Rig::reopened(remote, 2);
    rig.connect(1, "alice");
    rig.mutate(1, 1, "sql", "insert into more values(1)");
    rig.settle();
    assert_eq!(finals(&rig.messages(1)), [(1, None)]);
}

#[test]
fn queries_that_are_not_pure_reads_are_refused() {
    let mut rig = Rig::new(memory());
    rig.connect(1, "alice");
    let bad = [
        "insert into t values(1, 1) returning id",
        "delete from t",
        "select random()",
        "select datetime('now')",
        "select current_timestamp",
        "select 1; select 2",
        "pragma user_version",
        "attach 'x' as y",
        "select * from nowhere",
        "select '%s%n' from",
        "",
    ];
    for (sub, sql) in bad.iter().enumerate() {
        rig.subscribe(1, sub as u64, sql);
        let messages = rig.messages(1);
        assert!(
            matches!(&messages[..], [ServerMessage::SubscriptionError { reason, .. }] if reason.code == codes::BAD_QUERY),
            "{sql}: {messages:?}"
        );
    }
    rig.subscribe(1, 100, "select datetime(0, 'unixepoch')");
    assert!(matches!(rig.messages(1)[..], [ServerMessage::Snapshot { .. }]));
    rig.subscribe(1, 100, "select 1");
    assert!(
        matches!(&rig.messages(1)[..], [ServerMessage::SubscriptionError { reason, .. }] if reason.code == codes::BAD_SUBSCRIPTION)
    );
}

#[test]
fn a_slow_connection_misses_deltas_and_gets_the_present_rows() {
    let mut rig = Rig::new(memory());
    rig.connect(1, "slow");
    rig.connect(2, "fast");
    for session in [1, 2] {
        rig.subscribe(session, 1, "select id from t order by id");
        rig.messages(session);
    }
    rig.actor.handle(Input::Congested { session: SessionId(1) });
    for seq in 1..=5 {
        rig.mutate(2, seq, "sql", &format!("insert into t values({seq}, '')"));
        rig.settle();
    }
    assert_eq!(rig.messages(1), []);
    rig.actor.handle(Input::Relieved { session: SessionId(1) });
    rig.collect();
    assert!(matches!(&rig.messages(1)[..], [ServerMessage::Snapshot { rows, .. }] if rows.len() == 5));
}

#[test]
fn shutdown_drains_and_loses_nothing() {
    let mut rig = Rig::new(memory());
    rig.connect(1, "alice");
    rig.mutate(1, 1, "sql", "insert into t values(1, 'a')");
    rig.actor.handle(Input::Shutdown);
    rig.flush();
    assert!(!rig.drained);
    rig.mutate(1, 2, "sql", "insert into t values(2, 'b')");
    rig.settle();
    assert!(rig.drained);
    let messages = rig.messages(1);
    assert_eq!(finals(&messages), [(1, None)]);
    assert!(
        messages.iter().any(
            |m| matches!(m, ServerMessage::Refused { seq: 2, reason } if reason.code == codes::SHUTDOWN)
        )
    );
}

/// A mutation that another coordinator applied meanwhile is not applied again by a replay.
#[test]
fn a_mutation_that_went_to_two_coordinators_is_applied_once() {
    let remote = memory();
    let mut one = Rig::new(remote.clone());
    let mut two = Rig::reopened(remote, 2);
    for rig in [&mut one, &mut two] {
        rig.connect(1, "alice");
        rig.mutate(1, 1, "sql", "insert into t values(null, 'once')");
        rig.flush();
    }
    one.settle();
    two.settle();
    assert_eq!(finals(&one.messages(1)), [(1, None)]);
    assert_eq!(finals(&two.messages(1)), [(1, None)]);
    assert_eq!(two.query("select count(*) from t"), json!([[1]]));
    two.mutate(1, 2, "sql", "insert into t values(null, 'next')");
    two.settle();
    assert_eq!(finals(&two.messages(1)), [(2, None)]);
}

/// Found by the simulation: SQLite's parser went by the schema that the reset had dropped, so the deploy
/// that was replayed was rejected with "duplicate column name: w".
#[test]
fn a_deploy_that_lost_its_lsn_migrates_again() {
    let mut rig = Rig::new(memory());
    rig.deploy(2, module(3));
    rig.settle();
    write_directly(&rig.remote.clone(), "insert into t values(1, 'direct')");
    rig.deploy(3, module(4));
    rig.settle();
    assert_eq!(rig.actor.metrics().replays, 1);
    let (_, deployed) = rig.deployed.pop().unwrap();
    assert_eq!(deployed.unwrap().migrations_run, 1);
    assert_eq!(rig.query("select w from t"), json!([[null]]));
}

/// Found by the simulation: while a lost batch waited to run again, a resent copy of its mutations was
/// queued beside it, and its client was told that the outcome is forgotten.
#[test]
fn a_mutation_resent_while_its_replay_waits_is_answered_once() {
    let faulty = Faulty::new(memory(), 1);
    let mut rig = Rig::new(faulty.clone());
    rig.connect(1, "alice");
    rig.mutate(1, 1, "sql", "insert into t(v) values('mine')");
    rig.flush();
    write_directly(&rig.remote.clone(), "insert into t values(1, 'direct')");
    rig.carry_out();
    assert!(matches!(rig.waiting[..], [Output::Pull]), "the LSN was lost");
    rig.waiting.clear();
    let pulled = block_on(rig.actor.volume().clone().pull(&*rig.remote));
    faulty.set_unreachable(true);
    rig.actor.handle(Input::Pulled(pulled));
    rig.connect(2, "alice");
    rig.mutate(2, 1, "sql", "insert into t(v) values('mine')");
    rig.flush();
    faulty.set_unreachable(false);
    rig.settle();
    let messages = rig.messages(2);
    assert_eq!(finals(&messages), [(1, None)]);
    assert!(!messages.iter().any(|m| matches!(m, ServerMessage::Refused { .. })), "{messages:?}");
    assert_eq!(rig.query("select v from t order by id"), json!([["direct"], ["mine"]]));
}

/// Found by the simulation: a statement kept from before a change of the schema was run anew by SQLite
/// with other columns than its answer named.
#[test]
fn a_kept_query_answers_with_the_columns_that_there_are_now() {
    let mut rig = Rig::new(memory());
    rig.connect(1, "alice");
    rig.mutate(1, 1, "sql", "insert into t values(1, 'a')");
    rig.settle();
    assert_eq!(rig.query("select * from t"), json!([[1, "a"]]));
    write_directly(&rig.remote.clone(), "alter table t add column w default 7");
    rig.mutate(1, 2, "sql", "insert into t values(2, 'b', 8)");
    rig.settle();
    assert_eq!(rig.query("select * from t"), json!([[1, "a", 7], [2, "b", 8]]));
}

/// Found by the simulation: while the replay after a lost LSN waited for a page, a new subscriber of a
/// live query got the rows of the state that was dropped, under the LSN and seq of the one after it.
#[test]
fn no_snapshot_is_older_than_the_tip_that_it_names() {
    let faulty = Faulty::new(memory(), 1);
    let mut rig = Rig::new(faulty.clone());
    rig.connect(1, "alice");
    rig.subscribe(1, 1, "select v from t order by id");
    rig.mutate(1, 1, "sql", "insert into t(v) values('mine')");
    rig.flush();
    write_directly(&rig.remote.clone(), "insert into t values(1, 'direct')");
    rig.carry_out();
    rig.waiting.clear();
    let pulled = block_on(rig.actor.volume().clone().pull(&*rig.remote));
    faulty.set_unreachable(true);
    rig.actor.handle(Input::Pulled(pulled));
    rig.connect(2, "bob");
    rig.subscribe(2, 1, "select v from t order by id");
    assert!(rig.messages(2).is_empty(), "it cannot be answered yet");
    faulty.set_unreachable(false);
    rig.settle();
    let rows = rig.messages(2).into_iter().map(|message| match message {
        ServerMessage::Snapshot { rows, at, .. } => (json!(rows), at.lsn),
        other => panic!("{other:?}"),
    });
    assert_eq!(rows.collect::<Vec<_>>(), [(json!([["direct"], ["mine"]]), Lsn(3))]);
}

/// A commit's head holds every record of it, and readers take no head above 256 MiB: what is accepted
/// while a publication is slow must not become one commit that nobody can read.
#[test]
fn large_mutations_go_into_several_commits() {
    let mut rig = Rig::new(memory());
    rig.connect(1, "alice");
    let large = "x".repeat(3 << 20);
    for seq in 1..=20 {
        rig.mutate(1, seq, "refuse", &large);
    }
    rig.settle();
    assert_eq!(finals(&rig.messages(1)).len(), 20);
    let all = graft::pull::pull(&*rig.remote, VOLUME, Lsn::ZERO, graft::ChainHash::ZERO);
    let heads = &block_on(all).unwrap().heads[1..];
    assert!(heads.len() >= 3, "{} commits", heads.len());
    let longest = heads.iter().map(|head| head.payload.len()).max().unwrap();
    assert!(longest <= 3 * (16 << 20), "a payload of {longest} bytes");
}

/// Nobody must read the whole log to know what was applied: it is in the checkpoint.
#[test]
fn an_actor_that_begins_at_a_checkpoint_knows_what_was_applied_before() {
    let counting = Counting::new(memory());
    let mut rig = Rig::new(counting.clone());
    rig.connect(1, "alice");
    for seq in 1..=100 {
        rig.mutate(1, seq, "sql", &format!("insert into t values({seq}, 'a')"));
        rig.settle();
    }
    let ledger = rig.actor.tip.clone();
    counting.reset();
    let mut rig = Rig::reopened(rig.remote.clone(), 2);
    let base = rig.actor.volume().base();
    let checkpoint = base.checkpoint().unwrap();
    assert_eq!((base.lsn(), checkpoint.lsn, checkpoint.seq.0), (Lsn(101), Lsn(64), 1));
    assert!(counting.reset().ranges < 1 + 37 + 5, "the root, the heads since, and SQLite's first pages");
    assert_eq!(rig.actor.tip, ledger);
    rig.connect(1, "alice");
    for seq in [1, 50, 100] {
        rig.mutate(1, seq, "sql", &format!("insert into t values({seq}, 'a')"));
        let answer = rig.messages(1);
        assert!(
            matches!(answer[..], [ServerMessage::Durable { seq: found, lsn }] if found == seq && lsn.0 == seq + 1),
            "{answer:?}"
        );
    }
    assert_eq!(rig.actor.metrics().operations_run, 0);
}

/// An actor that missed so much that it jumps must not apply again what lies between, and its
/// subscribers must see all of it.
#[test]
fn an_actor_far_behind_jumps_and_replays() {
    let remote = memory();
    let mut behind = Rig::new(remote.clone());
    behind.connect(1, "alice");
    behind.subscribe(1, 1, "select count(*) from t");
    let mut ahead = Rig::reopened(remote, 2);
    ahead.connect(1, "bob");
    ahead.connect(2, "alice");
    for seq in 1..=200 {
        ahead.mutate(1, seq, "sql", &format!("insert into t values({seq}, 'b')"));
        ahead.settle();
    }
    ahead.mutate(2, 1, "sql", "insert into t values(1000, 'a')");
    ahead.settle();
    behind.messages(1);
    // Her first mutation is known there by now, her second is new.
    behind.mutate(1, 1, "sql", "insert into t values(1000, 'a')");
    behind.mutate(1, 2, "sql", "insert into t values(1001, 'a')");
    behind.settle();
    let messages = behind.messages(1);
    assert_eq!(finals(&messages).len(), 2, "{messages:?}");
    assert!(
        messages.iter().all(|message| !matches!(message, ServerMessage::Rejected { .. })),
        "{messages:?}"
    );
    let shown = format!("{:?}", messages.last().unwrap());
    let base = behind.actor.volume().base();
    assert!(base.checkpoint().is_some_and(|root| root.lsn >= Lsn(64)), "it began at a checkpoint");
    assert_eq!(behind.actor.tip.mutations(), 202);
    assert!(messages.iter().any(|m| format!("{m:?}").contains("202")), "{shown}");
}

/// Each failure asked for a wait of its own, and each wait's end retried all of them.
#[test]
fn however_much_fails_one_wait_is_out() {
    let faulty = Faulty::new(memory(), 1);
    let mut rig = Rig::new(faulty.clone());
    rig.connect(1, "alice");
    rig.subscribe(1, 1, "select count(*) from t");
    rig.mutate(1, 1, "sql", "insert into t values(1, 'a')");
    rig.settle();
    write_directly(&(faulty.clone() as SharedRemote), "insert into t values(77, 'direct')");
    faulty.set_unreachable(true);
    rig.mutate(1, 2, "sql", "insert into t values(2, 'b')");
    for _ in 0..30 {
        rig.flush();
        let wakes = rig.waiting.iter().filter(|output| matches!(output, Output::Wake { .. })).count();
        assert!(wakes <= 1, "{wakes} waits are out");
        rig.carry_out();
    }
    faulty.set_unreachable(false);
    rig.settle();
    assert_eq!(rig.query("select id from t order by id"), json!([[1], [2], [77]]));
}

/// A coordinator learns of another's commits when it loses an LSN. A client that the other served must
/// not be told that its history is lost.
#[test]
fn a_coordinator_that_is_behind_looks_at_the_log_before_it_welcomes() {
    let remote = memory();
    let mut one = Rig::new(remote.clone());
    let mut two = Rig::reopened(remote, 2);
    one.connect(1, "alice");
    one.mutate(1, 1, "sql", "insert into t values(1, 'a')");
    one.settle();
    two.actor.handle(Input::Connect {
        session: SessionId(1),
        client: client("alice"),
        known: Known { settled: 1, ..Known::NOTHING },
    });
    two.settle();
    let messages = two.messages(1);
    assert!(matches!(messages[..], [ServerMessage::Welcome { at, .. }] if at.seq == 1), "{messages:?}");
    assert_eq!(two.query("select id from t"), json!([[1]]));
    // One that claims what no log has is welcomed as it is, and sees for itself.
    two.actor.handle(Input::Connect {
        session: SessionId(2),
        client: client("bob"),
        known: Known { settled: 9, ..Known::NOTHING },
    });
    two.settle();
    assert!(matches!(two.messages(2)[..], [ServerMessage::Welcome { at, .. }] if at.seq == 0));
}

/// A coordinator that slept until the log itself had forgotten whose its commit's LSN was: the ledger of
/// what is there now knows what was applied.
#[test]
fn a_push_that_the_log_has_forgotten_is_decided_by_the_ledger() {
    for won in [true, false] {
        let mut rig = Rig::new(memory());
        rig.connect(1, "alice");
        rig.mutate(1, 1, "sql", "insert into t values(1, 'a')");
        rig.flush();
        let waiting = std::mem::take(&mut rig.waiting);
        let [Output::Publish(prepared)] = &waiting[..] else { panic!("{waiting:?}") };
        if won {
            block_on(publish(&*rig.remote, prepared)).unwrap();
        }
        write_directly(&rig.remote, "insert into t values(2, 'b')");
        let lsn = prepared.head.lsn;
        rig.actor.handle(Input::Published(Err(PublishError::Forgotten { lsn, bottom: lsn })));
        rig.collect();
        rig.settle();
        assert_eq!(finals(&rig.messages(1)), [(1, None)], "won: {won}");
        assert_eq!(rig.query("select id, v from t order by id"), json!([[1, "a"], [2, "b"]]), "won: {won}");
    }
}

/// No ledger knows of a deploy: whether it happened is for whoever asked to find out, and it is not run again
/// over what has been deployed since.
#[test]
fn a_deploy_that_the_log_has_forgotten_is_not_run_again() {
    for won in [true, false] {
        let mut rig = Rig::new(memory());
        rig.connect(1, "alice");
        rig.mutate(1, 1, "sql", "insert into t values(1, 'a')");
        rig.deploy(2, module(2));
        rig.mutate(1, 2, "sql", "insert into t values(2, 'b')");
        rig.flush();
        let waiting = std::mem::take(&mut rig.waiting);
        let [Output::Publish(prepared)] = &waiting[..] else { panic!("{waiting:?}") };
        if won {
            block_on(publish(&*rig.remote, prepared)).unwrap();
        }
        write_directly(&rig.remote, "insert into t(id) values(3)");
        let lsn = prepared.head.lsn;
        rig.actor.handle(Input::Published(Err(PublishError::Forgotten { lsn, bottom: lsn })));
        rig.collect();
        rig.settle();
        let results = std::mem::take(&mut rig.deployed);
        let [(RequestId(2), Err(reason))] = &results[..] else { panic!("won: {won}: {results:?}") };
        assert_eq!(reason.code, codes::OUTCOME_UNKNOWN);
        assert_eq!(finals(&rig.messages(1)), [(1, None), (2, None)], "won: {won}");
        assert_eq!(rig.query("select id from t order by id"), json!([[1], [2], [3]]), "won: {won}");
        // Asked again, it is deployed, or found to be.
        rig.deploy(3, module(2));
        rig.settle();
        let (_, again) = rig.deployed.pop().unwrap();
        assert_eq!(again.unwrap().migrations_run, u32::from(!won), "won: {won}");
    }
}
