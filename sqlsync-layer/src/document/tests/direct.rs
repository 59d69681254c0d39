//! Direct writers: any number of documents and plain SQL on one bucket, and beside a coordinator.

use std::collections::BTreeMap;

use super::*;
use crate::actor::{Actor, Input, Limits, Output, SessionId};
use crate::payload::Payload;
use crate::protocol::{ClientMessage, Known, ServerMessage};
use crate::session::client::{ClientSession, ClientState};
use graft::Lsn;

#[test]
fn what_is_done_offline_arrives_and_both_sides_converge() {
    let world = World::deployed();
    let (mut a, mut b) = (world.document("a", Config::default()), world.document("b", Config::default()));
    sql(&mut a, "insert into t values(1, 'from a')").unwrap();
    bump(&mut a, 3);
    sql(&mut b, "insert into t values(2, 'from b')").unwrap();
    assert_eq!(a.status().to_string(), "ahead 2, behind 0");
    assert_eq!(number(&a, "select count(*) from t"), 1);
    for document in [&mut a, &mut b] {
        world.sync(document);
    }
    world.sync(&mut a);
    assert_eq!(dump(&a), dump(&b));
    assert_eq!(number(&a, "select count(*) from t"), 2);
    let durable = |document: &mut Replica| -> Vec<u64> {
        let events = document.take_events().into_iter();
        events.filter_map(|e| if let Event::Durable { seq, .. } = e { Some(seq) } else { None }).collect()
    };
    assert_eq!((durable(&mut a), durable(&mut b)), (vec![1, 2], vec![1]));
    assert_eq!((a.pending().count(), a.next_seq(), a.settled()), (0, 3, 2));
    assert_eq!(a.status().to_string(), format!("up to date at lsn {}", a.status().lsn));
}

#[test]
fn a_document_goes_on_after_a_restart_where_it_was() {
    let world = World::deployed();
    let store: SharedStore = Arc::new(MemoryStore::default());
    let mut a = world.open("a", Config::default(), Some(store.clone())).unwrap();
    bump(&mut a, 1);
    a.execute("insert into t values(5, 'plain')").unwrap();
    bump(&mut a, 2);
    drop(a);
    let mut b = world.document("b", Config::default());
    bump(&mut b, 30);
    world.sync(&mut b);

    // The id given is only for a fresh directory.
    let mut a = world.open("other", Config::default(), Some(store.clone())).unwrap();
    assert_eq!(a.client().as_str(), "a");
    assert_eq!((a.pending().count(), a.next_seq(), a.status().ahead), (2, 3, 3));
    assert_eq!(number(&a, "select sum(n) from counter"), 2);
    world.sync(&mut a);
    assert_eq!(number(&a, "select sum(n) from counter"), 3);
    drop(a);
    let a = world.open("a", Config::default(), Some(store)).unwrap();
    assert_eq!((a.pending().count(), a.next_seq(), a.settled()), (0, 3, 2));
}

/// The bytes were stored and the answer was lost, or the process died before it heard: the same bytes go
/// out again, and nothing is done twice.
#[test]
fn a_push_whose_answer_was_lost_is_settled_once_also_after_a_restart() {
    for restart in [false, true] {
        let world = World::deployed();
        let store: SharedStore = Arc::new(MemoryStore::default());
        let mut a = world.open("a", Config::default(), Some(store.clone())).unwrap();
        bump(&mut a, 1);
        let prepared = a.seal(world.id(), 5).unwrap().unwrap();
        block_on(publish(&*world.remote, &prepared)).unwrap();
        let mut b = world.document("b", Config::default());
        bump(&mut b, 1);
        world.sync(&mut b);
        if restart {
            drop(a);
            a = world.open("a", Config::default(), Some(store)).unwrap();
        }
        assert!(a.status().pushing);
        bump(&mut a, 1);
        world.sync(&mut a);
        assert_eq!(number(&a, "select n from counter where id = 1"), 3);
        world.sync(&mut b);
        assert_eq!(dump(&a), dump(&b));
    }
}

/// A directory copied to two machines is one client id at work twice: said so, and nothing is done twice.
#[test]
fn a_copied_directory_is_told_so() {
    let world = World::deployed();
    let store: SharedStore = Arc::new(MemoryStore::default());
    drop(world.open("a", Config::default(), Some(store.clone())).unwrap());
    let copy: SharedStore = Arc::new(MemoryStore::default());
    let mut batch = graft::store::Batch::default();
    for space in graft::store::Space::ALL {
        for (key, value) in store.scan(space, b"").unwrap() {
            batch.put(space, key, value);
        }
    }
    copy.write(batch, Default::default()).unwrap();
    let mut one = world.open("a", Config::default(), Some(store)).unwrap();
    let mut two = world.open("a", Config::default(), Some(copy)).unwrap();
    bump(&mut one, 1);
    world.sync(&mut one);
    sql(&mut two, "insert into t values(1, 'other')").unwrap();
    assert!(world.push(&mut two));
    world.pull(&mut two);
    assert_eq!(two.ended().unwrap().code, codes::SEQ_REUSED);
    assert!(matches!(sql(&mut two, "insert into t values(2, 2)"), Err(MutateError::Client(_))));
    assert_eq!(number(&one, "select sum(n) from counter"), 1);
}

#[test]
fn live_queries_see_local_work_at_once_and_others_after_a_pull() {
    let world = World::deployed();
    let (mut a, mut b) = (world.document("a", Config::default()), world.document("b", Config::default()));
    let (sub, first) = a.subscribe("select id, v from t order by id", &Params::default(), None).unwrap();
    assert!(first.rows.is_empty());
    sql(&mut a, "insert into t values(1, 'mine')").unwrap();
    let seen = a.refresh();
    assert!(matches!(&seen[..], [(one, Ok(rows))] if *one == sub && rows.rows.len() == 1));
    bump(&mut a, 1);
    assert!(a.refresh().is_empty(), "a commit that it did not read wakes nothing");
    sql(&mut b, "insert into t values(2, 'theirs')").unwrap();
    world.sync(&mut b);
    world.sync(&mut a);
    assert!(matches!(&a.refresh()[..], [(_, Ok(rows))] if rows.rows.len() == 2));
    a.unsubscribe(sub);
    sql(&mut a, "insert into t values(3, 'mine')").unwrap();
    assert!(a.refresh().is_empty());
}

/// A coordinator's actor, with its store and one session.
struct Server {
    actor: Actor,
    waiting: Vec<Output>,
    finals: BTreeMap<u64, bool>,
}

impl Server {
    fn open(world: &World, epoch: u64) -> Server {
        let options = Options { locals: None, ..Options::default() };
        let opened = block_on(Volume::open(&*world.remote, VOLUME, options)).unwrap();
        let fetch = Arc::new(RemoteFetch::new(world.remote.clone()));
        let mut actor = Actor::open(opened, fetch, Arc::new(TestModules), Limits::default(), epoch).unwrap();
        let client = ClientId::new("session").unwrap();
        actor.handle(Input::Connect { session: SessionId(1), client, known: Known::NOTHING });
        Server { actor, waiting: Vec::new(), finals: BTreeMap::new() }
    }

    fn mutate(&mut self, seq: u64, reducer: &str, args: serde_json::Value) {
        let message = json!({"type": "mutate", "seq": seq, "reducer": reducer, "args": args});
        let message = ClientMessage::from_json(&message.to_string()).unwrap();
        self.actor.handle(Input::Receive { session: SessionId(1), message, seed: 1, now_ms: 5 });
    }

    /// Carries out what it wants, once.
    fn turn(&mut self, world: &World) -> bool {
        for output in std::mem::take(&mut self.waiting) {
            match output {
                Output::Publish(prepared) => {
                    let result = block_on(publish(&*world.remote, &prepared));
                    self.actor.handle(Input::Published(result));
                }
                Output::Pull => {
                    let pulled = block_on(self.actor.volume().clone().pull(&*world.remote));
                    self.actor.handle(Input::Pulled(pulled));
                }
                Output::Wake { .. } => self.actor.handle(Input::Woken),
                other => panic!("{other:?}"),
            }
        }
        self.actor.flush(2_000, world.id());
        for output in self.actor.take_outputs() {
            match output {
                Output::Publish(_) | Output::Pull | Output::Wake { .. } => self.waiting.push(output),
                Output::Send { message, .. } => match ServerMessage::from_json(&message.to_json()).unwrap() {
                    ServerMessage::Durable { seq, .. } => {
                        self.finals.insert(seq, true);
                    }
                    ServerMessage::Rejected { seq, .. } => {
                        self.finals.insert(seq, false);
                    }
                    ServerMessage::Welcome { .. } | ServerMessage::Accepted { .. } => {}
                    other => panic!("{other:?}"),
                },
                other => panic!("{other:?}"),
            }
        }
        !self.waiting.is_empty()
    }
}

/// SQLSync's server ran what had arrived only once nothing more came for a while, so that steady traffic kept
/// all of it from being applied. Here each look at what arrived ends with a commit of it.
#[test]
fn a_stream_of_mutations_does_not_keep_the_first_of_them_waiting() {
    let world = World::deployed();
    let mut server = Server::open(&world, 1);
    for seq in 1..=50 {
        server.mutate(seq, "bump", json!({"id": 1 + seq % 40}));
        server.turn(&world);
        let waiting = seq - server.finals.len() as u64;
        assert!(waiting <= 2, "{waiting} of {seq} wait: {:?}", server.actor);
    }
}

/// A coordinator, two documents and a plain SQL writer on one bucket: every bump counts exactly once, and
/// all end equal.
#[test]
fn a_coordinator_documents_and_plain_sql_commit_beside_each_other_exactly_once() {
    let mut saved = 0;
    for seed in 0..25 {
        let mut rng = StdRng::seed_from_u64(seed);
        let world = World::deployed();
        let mut server = Server::open(&world, 1 + seed);
        let mut documents = [world.document("a", Config::default()), world.document("b", Config::default())];
        let mut writer = world.document("sql", Config::default());
        let (mut made, mut branched, mut asked) = (0, 0, 0);
        for step in 0..60 {
            let id: i64 = rng.random_range(1..=40);
            match rng.random_range(0..10) {
                0..=2 => {
                    bump(&mut documents[rng.random_range(0..2)], id);
                    made += 1;
                }
                3 | 4 => {
                    asked += 1;
                    server.mutate(asked, "bump", json!({"id": id}));
                    made += 1;
                }
                5 => {
                    let changed = writer.execute(&format!("update counter set n = n + 1 where id = {id}"));
                    assert_eq!(changed, Ok(1), "seed {seed}, step {step}");
                    made += 1;
                }
                6 => {
                    server.turn(&world);
                }
                7 => {
                    let document = &mut documents[rng.random_range(0..2)];
                    if world.push(document) {
                        world.pull(document);
                    }
                }
                8 => {
                    // A pull while a push waits for its answer is for later.
                    let document = &mut documents[rng.random_range(0..2)];
                    world.pull(document);
                }
                _ => {
                    world.push(&mut writer);
                    world.pull(&mut writer);
                }
            }
        }
        for _ in 0..100 {
            let busy = server.turn(&world);
            for document in documents.iter_mut().chain([&mut writer]) {
                world.push(document);
                world.pull(document);
            }
            if !busy && documents.iter().chain([&writer]).all(|document| document.status().ahead == 0) {
                break;
            }
        }
        for event in writer.take_events() {
            if let Event::Forked { commits, .. } = event {
                branched += commits as i64;
            }
        }
        assert_eq!(server.finals.len() as u64, asked, "seed {seed}: {:?} {:?}", server.actor, server.waiting);
        assert!(server.finals.values().all(|durable| *durable), "seed {seed}");
        for document in documents.iter_mut().chain([&mut writer]) {
            world.sync(document);
            assert_eq!(number(document, "select sum(n) from counter") + branched, made, "seed {seed}");
            saved += document.counts().transplanted;
        }
        assert_eq!(dump(&documents[0]), dump(&documents[1]), "seed {seed}");
        assert_eq!(dump(&documents[0]), dump(&writer), "seed {seed}");
    }
    println!("{saved} mutations were saved from running again");
    assert!(saved > 50, "{saved}");
}

/// A document and a session that come back after the volume has forgotten them are told so, and what they
/// resend is not applied again. Others are new.
#[test]
fn who_comes_back_after_the_ledger_forgot_them_is_told_so() {
    use crate::ledger::{RETAIN_LSNS, RETAIN_MS};
    use graft::volume::{Change, push};

    let world = World::deployed();
    let store: SharedStore = Arc::new(MemoryStore::default());
    let mut a = world.open("a", Config::default(), Some(store.clone())).unwrap();
    bump(&mut a, 1);
    // It is in the log, and the document never heard: it has the push still pending.
    let prepared = a.seal(world.id(), 1_000).unwrap().unwrap();
    block_on(publish(&*world.remote, &prepared)).unwrap();
    drop(a);
    // These have only read until now: there is nothing of theirs that could have been forgotten.
    let kept: SharedStore = Arc::new(MemoryStore::default());
    drop(world.open("kept", Config::default(), Some(kept.clone())).unwrap());
    let mut reader = world.document("reader", Config::default());

    let options = Options { locals: None, ..Options::default() };
    let volume = block_on(Volume::open(&*world.remote, VOLUME, options)).unwrap().volume;
    let step = 2 * RETAIN_MS / RETAIN_LSNS as i64;
    for at in 1..=RETAIN_LSNS as i64 + 5 {
        let tip = volume.tip();
        volume.commit(&tip, Change { pages: tip.pages(), ..Change::default() }).unwrap();
        let empty = |_: &[graft::volume::LocalCommit]| Payload::default().encode();
        block_on(push(&*world.remote, &volume, empty, || world.id(), at * step)).unwrap();
    }

    let mut a = world.open("a", Config::default(), Some(store)).unwrap();
    assert!(world.push(&mut a) || a.ended().is_none());
    world.pull(&mut a);
    let ended = a.ended().cloned();
    assert_eq!(ended.map(|reason| reason.code).as_deref(), Some(codes::EXPIRED));
    assert_eq!(a.seal(world.id(), 1).unwrap(), None, "nothing of it goes out again");

    let mut kept = world.open("kept", Config::default(), Some(kept)).unwrap();
    for reader in [&mut reader, &mut kept] {
        world.pull(reader);
        assert_eq!(reader.ended(), None);
        let seq = bump(reader, 2);
        world.sync(reader);
        assert!(
            reader
                .take_events()
                .iter()
                .any(|event| matches!(event, Event::Durable { seq: one, .. } if *one == seq))
        );
    }

    let mut server = Server::open(&world, 9);
    let mut told = |session: u64, known: Known| {
        let client = ClientId::new(if known == Known::NOTHING { "new" } else { "a" }).unwrap();
        server.actor.handle(Input::Connect { session: SessionId(session), client, known });
        let outputs = server.actor.take_outputs();
        let message = outputs.into_iter().rev().find_map(|output| match output {
            Output::Send { message, .. } => Some(ServerMessage::from_json(&message.to_json()).unwrap()),
            _ => None,
        });
        match message {
            Some(ServerMessage::Error { reason }) => reason.code,
            Some(ServerMessage::Welcome { .. }) => "welcome".into(),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(told(2, Known { since: Lsn(1), ..Known::NOTHING }), codes::EXPIRED);
    assert_eq!(told(3, Known::NOTHING), "welcome");
}

/// A pull that was overtaken by another one says the same again. Simulated: whoever synced gave up while the
/// document was busy, and synced again.
#[test]
fn what_is_pulled_twice_is_told_once() {
    let world = World::deployed();
    let mut a = world.document("a", Config { route: Route::Coordinator, ..Config::default() });
    // Who puts it into the log in its place.
    let mut through = world.document("a", Config::default());
    assert_eq!((bump(&mut a, 1), bump(&mut through, 1)), (1, 1));
    world.sync(&mut through);
    let pull = || block_on(a.volume().pull(&*world.remote)).unwrap();
    let (first, second, third) = (pull(), pull(), pull());
    for pulled in [first, second] {
        let mut progress = a.pulled(pulled).unwrap();
        while progress != Progress::Done {
            progress = a.step(1).unwrap();
        }
    }
    bump(&mut a, 2);
    assert_eq!(a.pulled(third).unwrap(), Progress::Done);
    let durable = a.take_events().into_iter().filter(|event| matches!(event, Event::Durable { .. }));
    assert_eq!(durable.count(), 1);
    assert_eq!((a.settled(), a.status().ahead), (1, 1));
}

/// A mutation goes to a coordinator in one message, and its record into the head of one commit. What neither
/// holds would be shown here and stop everything after it.
#[test]
fn a_mutation_that_no_message_holds_is_not_taken() {
    let world = World::deployed();
    let insert = |bytes: usize| format!("insert into t values({bytes}, '{}')", "x".repeat(bytes));
    let most = crate::protocol::FRAME_BYTES_MAX;
    for (route, refused, taken) in [(Route::Coordinator, most, most - 4096), (Route::Direct, 64 << 20, most)]
    {
        let mut a = world.document("a", Config { route, ..Config::default() });
        let answer = sql(&mut a, &insert(refused));
        assert!(matches!(answer, Err(MutateError::Rejected(reason)) if reason.code == codes::LIMIT));
        assert_eq!((a.next_seq(), a.status().ahead), (1, 0));
        sql(&mut a, &insert(taken)).unwrap();
        world.push(&mut a);
        assert_eq!(number(&a, "select id from t order by id desc"), taken as i64);
        if route == Route::Coordinator {
            // The session takes it as it is.
            let config = crate::session::client::SessionConfig::default();
            let ClientState { pending, .. } = a.session_state();
            let mut session = ClientSession::new(a.client().clone(), config);
            session.mutate_as(pending[0].clone()).unwrap();
        }
    }
}

/// SQL that ends its transaction leaves what it committed; live queries are told of it, whatever comes after.
#[test]
fn sql_that_commits_by_itself_and_fails_then_is_seen_by_live_queries() {
    let world = World::deployed();
    let mut a = world.document("a", Config::default());
    let (subscription, _) = a.subscribe("select id from t", &Params::default(), None).unwrap();
    for failing in ["commit; begin; nonsense", "commit; nonsense"] {
        a.execute("delete from t").unwrap();
        a.refresh();
        let sql = format!("insert into t values(1, 'one'); {failing}");
        assert!(matches!(a.execute(&sql), Err(MutateError::Sql(_))));
        assert_eq!(number(&a, "select count(*) from t"), 1);
        let changed = a.refresh();
        assert!(matches!(&changed[..], [(one, Ok(rows))] if *one == subscription && rows.rows.len() == 1));
    }
}

/// What a deploy had made of the schema may be gone with it.
#[test]
fn a_deploy_that_runs_again_is_told_with_both_outcomes() {
    let world = World::new();
    let (mut a, mut b) = (world.document("a", Config::default()), world.document("b", Config::default()));
    a.deploy(MODULE, 1, 1).unwrap();
    b.execute("create table counter(mine)").unwrap();
    world.sync(&mut b);
    world.sync(&mut a);
    let events = a.take_events();
    let told = events.iter().find_map(|event| match event {
        Event::Redeployed { module, before: Outcome::Applied, after: Outcome::Rejected(reason) } => {
            Some((*module, reason.message.clone()))
        }
        _ => None,
    });
    let (module, why) = told.unwrap_or_else(|| panic!("{events:?}"));
    assert!(module == MODULE && why.contains("counter already exists"), "{why}");
}

/// Plain SQL in a document of a coordinator's would be ahead for ever.
#[test]
fn plain_sql_is_in_no_document_of_a_coordinator() {
    let world = World::deployed();
    let store: SharedStore = Arc::new(MemoryStore::new());
    let open = |route| world.open("a", Config { route, ..Config::default() }, Some(store.clone()));
    let mut a = open(Route::Direct).unwrap();
    bump(&mut a, 1);
    a.execute("update counter set n = 7 where id = 2").unwrap();
    drop(a);
    let refused = open(Route::Coordinator).err();
    assert!(matches!(refused, Some(OpenError::NotForCoordinator { commits: 1 })), "{refused:?}");
    let mut a = open(Route::Direct).unwrap();
    world.sync(&mut a);
    drop(a);
    let a = open(Route::Coordinator).unwrap();
    let (connection, _) = a.database().connect().unwrap();
    assert_eq!(connection.query_row("select n from counter where id = 2", [], |row| row.get(0)), Ok(7));
    let refused = connection.execute("update counter set n = 8", []).unwrap_err();
    assert!(refused.to_string().contains("readonly"), "{refused}");
}

/// Simulation, seed 55016: what a mutation writes to a page that was free is not undone with it, for SQLite
/// does not care; the local commit of that page said that the mutation had been applied.
#[test]
fn a_rejected_mutation_that_wrote_to_free_pages_is_no_local_commit() {
    let world = World::deployed();
    let (mut a, mut b) = (world.document("a", Config::default()), world.document("b", Config::default()));
    let text = |letter: char| format!("replace(hex(zeroblob(4000)), '0', '{letter}')");
    a.execute(&format!("insert into t values(1, {})", text('x'))).unwrap();
    a.execute("delete from t").unwrap();
    world.sync(&mut a);
    world.sync(&mut b);
    let writes = |id: i64| {
        let sql = format!("insert into t values(2, {}); insert into counter values({id}, 0, '')", text('y'));
        args(json!({ "sql": sql }))
    };
    let refused = a.mutate("sql", writes(1), 1, 1);
    assert!(matches!(refused, Err(MutateError::Rejected(_))), "{refused:?}");
    assert_eq!((a.status().ahead, a.pending().count()), (0, 0));
    // The same where it was applied at first, and is not when it runs again.
    let seq = a.mutate("sql", writes(100), 2, 2).unwrap();
    b.execute("insert into counter values(100, 0, '')").unwrap();
    world.sync(&mut b);
    world.sync(&mut a);
    let events = a.take_events();
    let is_rejected = |event: &Event| matches!(event, Event::Rejected { seq: told, .. } if *told == seq);
    assert!(events.iter().any(is_rejected), "{events:?}");
    assert_eq!(dump(&a), dump(&b));
}
