//! Three conflicts that page sets and replays must settle for an app: a comment on a task that was
//! deleted meanwhile, the last place of a list with a capacity, two people who claim one task.
//!
//! Real clients against coordinators on one store, with the wasm of examples/todo. Each conflict is
//! played in both orders and three ways: one after the other, both at once, and with two coordinators,
//! where what one of them had *accepted* loses its LSN to the other and is *rejected* when it is run
//! again. What must come of it: exactly one winner; the loser has the reason in words; everybody sees
//! the same; nothing else is gone.
//!
//! A random load on two coordinators whose store fails is checked against [`model::Model`] by the log.
//! `GRAFT_SCENARIO_SEED` chooses the seed, which is printed. A seed repeats the load, not the scheduling.

#![allow(clippy::disallowed_methods, reason = "a driver: it runs against real sockets by the real clock")]

mod gate;
mod model;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use coordinator::{Config, Coordinator, Running};
use gate::Gate;
use graft::remote::{Faults, Faulty, MemoryRemote, SharedRemote};
use graft::{ChainHash, Lsn, catalog};
use model::Model;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use serde_json::{Value as Json, json};
use sqlsync_layer::client::{Client, ClientConfig, ClientId, MutationError, MutationHandle, Subscription};
use sqlsync_layer::payload::{Op, Outcome, Payload};
use sqlsync_layer::protocol::codes;
use sqlsync_layer::value::Params;
use tests::places;
use tests::process::{PATIENCE, graft};

/// A volume's whole content, as [`Model::rows`] has it.
const EVERYTHING: &str = "
    SELECT 'claim' AS kind, task AS name, claimant || ' ' || name AS what FROM claims
    UNION ALL SELECT 'comment', id, task || ' ' || author_id FROM comments
    UNION ALL SELECT 'list', id, capacity FROM lists LEFT JOIN capacities ON list = id
    UNION ALL SELECT 'task', id, list FROM tasks
    ORDER BY 1, 2";

const UNSEEN: &str = "the task has a comment that you have not seen";

type Call = (&'static str, Json);

/// Two calls of which the second must be refused.
struct Conflict {
    name: &'static str,
    before: Vec<Call>,
    /// Ada's call, and what Bob hears after it.
    ada: (Call, &'static str),
    /// Bob's call, and what Ada hears after it.
    bob: (Call, &'static str),
}

fn task(id: &str) -> Call {
    ("add_task", json!({ "id": id, "list": "l", "title": id }))
}

fn conflicts() -> Vec<Conflict> {
    let full = "the list is full: 3 of 3";
    let room_for = |capacity: u32| ("set_capacity", json!({ "list": "l", "capacity": capacity }));
    let claim = |name: &str| ("claim_task", json!({ "id": "milk", "name": name }));
    let delete = ("delete_task", json!({ "id": "milk", "comments_seen": 0 }));
    let comment = json!({ "id": "c", "task": "milk", "author": "Bob", "text": "Two litres, please" });
    vec![
        Conflict {
            name: "a comment on a task that is deleted",
            before: vec![task("milk")],
            ada: (delete.clone(), "the task was deleted"),
            bob: (("add_comment", comment), UNSEEN),
        },
        Conflict {
            name: "the last place of a list",
            before: vec![room_for(3), task("milk"), task("bread")],
            ada: (task("eggs"), full),
            bob: (task("figs"), full),
        },
        Conflict {
            name: "a task where there is room no longer",
            before: vec![task("milk"), task("bread")],
            ada: (task("eggs"), "the list has 3 tasks already"),
            bob: (room_for(2), "the list is full: 2 of 2"),
        },
        Conflict {
            name: "two claims",
            before: vec![task("milk")],
            ada: (claim("Ada"), "Ada has claimed it"),
            bob: (claim("Bob"), "Bob has claimed it"),
        },
        Conflict {
            name: "a claim on a task that is deleted",
            before: vec![task("milk")],
            ada: (delete, "the task was deleted"),
            // The other way round both happen: a claim does not keep a task.
            bob: (claim("Bob"), ""),
        },
    ]
}

/// One person: a client, and the rows it sees.
struct Person {
    name: &'static str,
    client: Client,
    sees: Subscription,
}

impl Person {
    async fn at(running: &Running, name: &'static str) -> Person {
        let client = connect(running, name).await;
        let mut sees = client.subscribe(EVERYTHING, Params::default(), None).await.unwrap();
        sees.next().await.unwrap();
        Person { name, client, sees }
    }

    async fn call(&self, (reducer, args): &Call) -> MutationHandle {
        self.client.mutate(reducer, args.clone()).await.unwrap()
    }

    async fn must(&self, call: &Call) {
        assert_eq!(outcome(&self.call(call).await).await, None, "{} {call:?}", self.name);
    }

    /// Waits until it sees these rows.
    async fn sees(&mut self, wanted: &Json, what: &str) {
        let reading = async {
            while rows(&self.sees) != *wanted {
                self.sees.next().await.unwrap();
            }
        };
        let reached = tokio::time::timeout(PATIENCE, reading).await.is_ok();
        assert!(reached, "{what}: {} sees {}, not {wanted}", self.name, rows(&self.sees));
    }
}

fn rows(subscription: &Subscription) -> Json {
    subscription.rows().rows().iter().cloned().map(Json::from).collect()
}

async fn connect(running: &Running, id: &str) -> Client {
    let mut config = ClientConfig::new(running.url(), "todo");
    config.client_id = Some(ClientId::new(id).unwrap());
    config.connect_timeout = Some(PATIENCE);
    config.session.backoff_min = Duration::from_millis(5);
    config.session.backoff_max = Duration::from_millis(50);
    Client::connect(config).await.unwrap()
}

async fn start(store: SharedRemote) -> Running {
    Coordinator::start(Config::new(store, SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))).await.unwrap()
}

fn deploy(running: &Running, module: &Path) -> Json {
    let url = running.url();
    graft(["deploy", &module.to_string_lossy(), "--volume", "todo", "--url", &url, "--json"]).json()
}

fn todo() -> PathBuf {
    places::reducer_module("todo")
}

/// What a call came to: `None` for done, else the reason it was refused for.
async fn outcome(handle: &MutationHandle) -> Option<String> {
    let told = tokio::time::timeout(PATIENCE, handle.durable()).await;
    match told.unwrap_or_else(|_elapsed| panic!("no answer in {PATIENCE:?}")) {
        Ok(_) => None,
        Err(MutationError::Rejected { reason, .. }) => {
            assert_eq!(reason.code, codes::REFUSED, "{reason}");
            Some(reason.message)
        }
        Err(other) => panic!("{other:?}"),
    }
}

/// A volume with a list `l` and what the conflict needs, and the model of the same.
async fn prepare(running: &Running, conflict: &Conflict) -> Model {
    deploy(running, &todo());
    let client = connect(running, "first").await;
    let mut model = Model::default();
    for (reducer, args) in
        [&[("create_list", json!({ "id": "l", "name": "L" }))], &conflict.before[..]].concat()
    {
        client.mutate(reducer, args.clone()).await.unwrap().durable().await.unwrap();
        model.apply("first", reducer, &args).unwrap();
    }
    client.close().await;
    model
}

/// Both orders of each conflict: who is first, and what the other hears.
fn orders(conflict: &Conflict) -> [(&'static str, &Call, &'static str, &Call, &'static str); 2] {
    let (ada, bob) = (&conflict.ada, &conflict.bob);
    [("ada", &ada.0, "bob", &bob.0, ada.1), ("bob", &bob.0, "ada", &ada.0, bob.1)]
}

/// Applies the winner's call, and the loser's with its reason; answers the reason as an outcome.
fn expect(model: &mut Model, winner: (&str, &Call), loser: (&str, &Call), reason: &str) -> Option<String> {
    let (who, (reducer, args)) = winner;
    assert_eq!(model.apply(who, reducer, args), Ok(()));
    let (who, (reducer, args)) = loser;
    let refused = model.apply(who, reducer, args).err();
    assert_eq!(refused.as_deref().unwrap_or_default(), reason, "the model and the table differ");
    refused
}

/// One coordinator, and the second has not looked: refused by the coordinator, the same for both orders.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_comes_second_is_told_why() {
    for conflict in conflicts() {
        for (first, call, second, late, reason) in orders(&conflict) {
            let what = format!("{}, {first} first", conflict.name);
            let running = start(Arc::new(MemoryRemote::new())).await;
            let mut model = prepare(&running, &conflict).await;
            let (mut a, mut b) = (Person::at(&running, first).await, Person::at(&running, second).await);
            a.must(call).await;
            let told = outcome(&b.call(late).await).await;
            assert_eq!(told, expect(&mut model, (first, call), (second, late), reason), "{what}");
            for person in [&mut a, &mut b] {
                person.sees(&model.rows(), &what).await;
            }
            assert!(running.shutdown().await);
        }
    }
}

/// Both call before either hears anything: one wins, whichever, and the other has the reason for that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_at_once_exactly_one_wins() {
    for conflict in conflicts() {
        let running = start(Arc::new(MemoryRemote::new())).await;
        let mut model = prepare(&running, &conflict).await;
        let (mut ada, mut bob) = (Person::at(&running, "ada").await, Person::at(&running, "bob").await);
        let (to_ada, to_bob) = tokio::join!(ada.call(&conflict.ada.0), bob.call(&conflict.bob.0));
        let (to_ada, to_bob) = tokio::join!(outcome(&to_ada), outcome(&to_bob));
        let [ada_first, bob_first] = orders(&conflict);
        // The order is that of the log; a conflict with one harmless order has two winners in that one.
        let order = if to_bob.is_some() { ada_first } else { bob_first };
        let (first, call, second, late, reason) = order;
        let told = if second == "bob" { (to_ada, to_bob) } else { (to_bob, to_ada) };
        let refused = expect(&mut model, (first, call), (second, late), reason);
        assert_eq!(told, (None, refused), "{}", conflict.name);
        for person in [&mut ada, &mut bob] {
            person.sees(&model.rows(), conflict.name).await;
        }
        assert!(running.shutdown().await);
    }
}

/// Two coordinators on one store. The loser's cannot write to the store yet: it accepts, and its clients see the
/// effect. Meanwhile the other publishes. The first then finds its LSN taken, runs the call again, and
/// what was accepted is rejected; the effect is gone from its clients' rows, and the winner's is there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_accepted_is_rejected_when_its_lsn_is_lost() {
    for conflict in conflicts() {
        for (first, call, second, late, reason) in orders(&conflict) {
            let what = format!("{}, {first} publishes first", conflict.name);
            let store: SharedRemote = Arc::new(MemoryRemote::new());
            let gate = Gate::before(store.clone());
            let (near, far) = (start(store).await, start(gate.clone()).await);
            let mut model = prepare(&near, &conflict).await;
            let (mut winner, mut loser) = (Person::at(&near, first).await, Person::at(&far, second).await);
            loser.sees(&model.rows(), &what).await;
            let epoch = loser.sees.rows().at().epoch;

            gate.open(false);
            let mut guess = Model::default();
            for (reducer, args) in [&[("create_list", json!({ "id": "l" }))], &conflict.before[..]].concat() {
                guess.apply("first", reducer, &args).unwrap();
            }
            guess.apply(second, late.0, &late.1).unwrap();
            let handle = loser.call(late).await;
            let accepted = tokio::time::timeout(PATIENCE, handle.accepted()).await;
            assert!(matches!(accepted, Ok(Ok(_))), "{what}: not accepted: {accepted:?}");
            loser.sees(&guess.rows(), &what).await;
            winner.must(call).await;
            gate.open(true);

            let told = outcome(&handle).await;
            let refused = expect(&mut model, (first, call), (second, late), reason);
            assert_eq!(told, refused, "{what}");
            loser.sees(&model.rows(), &what).await;
            // Where both happen in the end, there is nothing to take back.
            let moved = loser.sees.rows().at().epoch > epoch;
            assert_eq!(moved, told.is_some(), "{what}: what was shown and refused is taken back");
            // The other coordinator hears of it when it publishes again.
            winner.must(&("delete_comment", json!({ "id": "none" }))).await;
            winner.sees(&model.rows(), &what).await;
            assert!(near.shutdown().await && far.shutdown().await);
        }
    }
}

/// A volume of the module's first version gets the second one's tables with everything it holds, under
/// clients that stay connected; and it opens again from the store.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_of_the_first_version_migrates() {
    const TASKS: &str = "SELECT id, list, title, done, position FROM tasks ORDER BY id";
    let store: SharedRemote = Arc::new(MemoryRemote::new());
    let running = start(store.clone()).await;
    let first = deploy(&running, &places::root().join("tests/testdata/todo-schema-1.wasm"));
    assert_eq!((&first["schema"], &first["migrations_run"]), (&json!(1), &json!(1)));
    let client = connect(&running, "old").await;
    let call = async |reducer: &str, args: Json| client.mutate(reducer, args).await.unwrap().durable().await;
    call("create_list", json!({ "id": "l", "name": "L" })).await.unwrap();
    for id in ["milk", "bread", "eggs"] {
        call("add_task", task(id).1).await.unwrap();
    }
    call("delete_task", json!({ "id": "eggs" })).await.unwrap();
    let mut sees = client.subscribe(TASKS, Params::default(), None).await.unwrap();
    sees.next().await.unwrap();
    let before = rows(&sees);
    assert_eq!(before.as_array().map(Vec::len), Some(2));
    assert!(call("claim_task", json!({ "id": "milk", "name": "Ada" })).await.is_err(), "it has no claims");

    let second = deploy(&running, &todo());
    assert_eq!((&second["schema"], &second["migrations_run"]), (&json!(2), &json!(1)));
    let asked = client.query(TASKS, Params::default()).await.unwrap();
    assert_eq!(Json::from_iter(asked.rows().iter().cloned().map(Json::from)), before);
    let names = "SELECT group_concat(name, ' ') FROM (SELECT name FROM lists)";
    assert_eq!(client.query(names, Params::default()).await.unwrap().rows(), [vec![json!("L")]]);
    // What a client of the first version sends is understood, and the second version's rules hold.
    call("set_done", json!({ "id": "milk", "done": true })).await.unwrap();
    call("delete_task", json!({ "id": "bread" })).await.unwrap();
    call("set_capacity", json!({ "list": "l", "capacity": 1 })).await.unwrap();
    call("claim_task", json!({ "id": "milk", "name": "Ada" })).await.unwrap();
    let Err(MutationError::Rejected { reason, .. }) = call("add_task", task("bread").1).await else {
        panic!("the list is full")
    };
    assert_eq!(reason.message, "the list is full: 1 of 1");
    // Of what was deleted in the first version's time nobody knows that it ever was.
    for (id, why) in [("eggs", "there is no task eggs"), ("bread", "the task was deleted")] {
        let refused = call("set_done", json!({ "id": id, "done": true })).await;
        assert_eq!(refused.unwrap_err().to_string(), format!("{why} (refused)"));
    }
    client.close().await;
    assert!(running.shutdown().await);

    let running = start(store).await;
    let mut person = Person::at(&running, "new").await;
    let expected = json!([["claim", "milk", "old Ada"], ["list", "l", 1], ["task", "milk", "l"]]);
    person.sees(&expected, "after a restart").await;
    assert!(running.shutdown().await);
}

/// A call, and what its client was told.
struct Told {
    call: Call,
    /// It was accepted before it was refused.
    turned: bool,
    outcome: Option<String>,
}

const CLIENTS: [&str; 4] = ["ada", "bob", "cem", "dot"];
/// Calls of each client.
const CALLS: usize = 200;

fn random_call(rng: &mut StdRng, name: &str, number: usize) -> Call {
    let task = format!("t{}", rng.random_range(0..8));
    let list = if rng.random() { "l" } else { "m" };
    match rng.random_range(0..22) {
        0..6 => ("add_task", json!({ "id": task, "list": list, "title": name })),
        6 => ("set_done", json!({ "id": task, "done": rng.random::<bool>() })),
        7..9 => ("delete_task", json!({ "id": task, "comments_seen": rng.random_range(0..2) })),
        9 => ("delete_task", json!({ "id": task })),
        10 => {
            let capacity = rng.random_range(0..5);
            ("set_capacity", json!({ "list": list, "capacity": (capacity > 0).then_some(capacity) }))
        }
        11..16 => {
            let id = format!("{name}-{number}");
            ("add_comment", json!({ "id": id, "task": task, "author": name, "text": "hm" }))
        }
        16 => ("delete_comment", json!({ "id": format!("{name}-{}", rng.random_range(0..=number)) })),
        17..20 => ("claim_task", json!({ "id": task, "name": name })),
        _ => ("release_task", json!({ "id": task })),
    }
}

/// Makes all its calls, several on their way at a time.
async fn load(client: Client, name: &'static str, seed: u64) -> Vec<Told> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut waiting = tokio::task::JoinSet::new();
    let mut told = BTreeMap::new();
    for number in 0..CALLS {
        let call = random_call(&mut rng, name, number);
        let handle = client.mutate(call.0, call.1.clone()).await.unwrap();
        waiting.spawn(async move {
            let accepted = handle.accepted().await.is_ok();
            let outcome = outcome(&handle).await;
            (number, Told { call, turned: accepted && outcome.is_some(), outcome })
        });
        while waiting.len() > rng.random_range(0..6) {
            told.extend(waiting.join_next().await.map(Result::unwrap));
        }
    }
    while let Some(done) = waiting.join_next().await {
        told.extend([done.unwrap()]);
    }
    client.close().await;
    told.into_values().collect()
}

/// Reads every state that a subscriber is shown, tips that are taken back among them: no list is fuller
/// than it may be, no task has two claims, no comment or claim is of a task that is not there.
async fn watch(mut person: Person, mut stop: tokio::sync::watch::Receiver<bool>) -> Person {
    loop {
        tokio::select! {
            event = person.sees.next() => drop(event.unwrap()),
            _ = stop.wait_for(|stop| *stop) => return person,
        }
        let shown = rows(&person.sees);
        let of = |kind: &str| {
            let rows = shown.as_array().unwrap().iter().filter(|row| row[0] == kind);
            rows.map(|row| (row[1].as_str().unwrap(), row[2].clone())).collect::<Vec<_>>()
        };
        let tasks: BTreeMap<_, _> = of("task").into_iter().collect();
        for (list, capacity) in of("list") {
            let count = tasks.values().filter(|of| *of == list).count() as u64;
            assert!(
                capacity.as_u64().is_none_or(|capacity| count <= capacity),
                "{list} is too full: {shown}"
            );
        }
        let claims = of("claim");
        assert!(claims.windows(2).all(|two| two[0].0 != two[1].0), "two claims: {shown}");
        assert!(claims.iter().all(|(task, _)| tasks.contains_key(task)), "{shown}");
        for (_, what) in of("comment") {
            let task = what.as_str().and_then(|what| what.split(' ').next()).unwrap();
            assert!(tasks.contains_key(task), "a comment without its task: {shown}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_the_order_and_the_faults_the_log_obeys_the_rules() {
    let given = std::env::var("GRAFT_SCENARIO_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed: u64 = given.unwrap_or_else(|| StdRng::from_os_rng().random_range(0..1_000_000));
    println!("GRAFT_SCENARIO_SEED={seed}");
    let store: SharedRemote = Arc::new(MemoryRemote::new());
    let gates = [Gate::before(store.clone()), Gate::before(store.clone())];
    let cuts = [Faulty::new(gates[0].clone(), seed), Faulty::new(gates[1].clone(), !seed)];
    let running = [start(cuts[0].clone()).await, start(cuts[1].clone()).await];
    deploy(&running[0], &todo());
    let first = connect(&running[0], "first").await;
    let lists = [
        ("create_list", json!({ "id": "l", "name": "L" })),
        ("create_list", json!({ "id": "m", "name": "M" })),
    ];
    for (reducer, args) in lists {
        first.mutate(reducer, args).await.unwrap().durable().await.unwrap();
    }
    first.close().await;

    let (done, stopped) = tokio::sync::watch::channel(false);
    let (mut loads, mut watches) = (Vec::new(), Vec::new());
    for (number, name) in CLIENTS.into_iter().enumerate() {
        let client = connect(&running[number % 2], name).await;
        loads.push(tokio::spawn(load(client, name, seed ^ (number as u64 + 1))));
    }
    for (running, name) in running.iter().zip(["watch-0", "watch-1"]) {
        watches.push(tokio::spawn(watch(Person::at(running, name).await, stopped.clone())));
    }
    for cut in &cuts {
        let faults = Faults { fail_before: 0.05, fail_after: 0.05, duplicate: 0.05, ..Faults::default() };
        cut.set_faults(faults);
    }
    let mut rng = StdRng::seed_from_u64(seed);
    while !loads.iter().all(tokio::task::JoinHandle::is_finished) {
        // Now and then a coordinator goes on alone for a while: what it accepts then loses its LSN.
        let at = rng.random_range(0..2);
        gates[at].open(false);
        tokio::time::sleep(Duration::from_millis(rng.random_range(5..60))).await;
        gates[at].open(true);
        tokio::time::sleep(Duration::from_millis(rng.random_range(1..30))).await;
    }
    let mut told: BTreeMap<&str, Vec<Told>> = BTreeMap::new();
    for (load, name) in loads.into_iter().zip(CLIENTS) {
        told.insert(name, load.await.unwrap());
    }
    for cut in &cuts {
        cut.set_faults(Faults::default());
    }
    // Each hears of the other's last commits when it publishes.
    for (running, name) in [(&running[0], "last-0"), (&running[1], "last-1"), (&running[0], "last-2")] {
        let last = connect(running, name).await;
        let nothing = json!({ "id": "none" });
        last.mutate("delete_comment", nothing).await.unwrap().durable().await.unwrap();
        last.close().await;
    }
    done.send_replace(true);

    let id = catalog::resolve(&*store, &"todo".parse().unwrap()).await.unwrap();
    let log = graft::pull::pull(&*store, id, Lsn::ZERO, ChainHash::ZERO).await.unwrap().heads;
    let mut model = Model::default();
    let (mut recorded, mut reasons) = (BTreeMap::<String, usize>::new(), BTreeMap::<String, usize>::new());
    for head in &log {
        for record in Payload::decode(head).unwrap().records {
            let Op::Mutation(mutation) = record.op else { continue };
            let client = mutation.client.as_str();
            let args: Json = serde_json::from_str(&mutation.args).unwrap();
            let outcome = match record.outcome {
                Outcome::Applied => None,
                Outcome::Rejected(reason) => Some(reason.message),
            };
            let at = format!("seed {seed}: {client} {} {args} at {:?}", mutation.reducer, head.lsn);
            assert_eq!(model.apply(client, &mutation.reducer, &args).err(), outcome, "{at}");
            let number = recorded.entry(client.to_owned()).or_default();
            if let Some(told) = told.get(client) {
                let Told { call, outcome: heard, .. } = &told[*number];
                assert_eq!((call.0, &call.1, heard), (&*mutation.reducer, &args, &outcome), "{at}");
            }
            *number += 1;
            if let Some(reason) = outcome {
                let kind = reason.replace(|c: char| c.is_ascii_digit(), "#");
                *reasons.entry(kind).or_default() += 1;
            }
        }
    }
    for name in CLIENTS {
        assert_eq!(
            recorded.get(name),
            Some(&CALLS),
            "seed {seed}: records of {name}, all of which were answered"
        );
    }
    for watch in watches {
        watch.await.unwrap().sees(&model.rows(), "in the end").await;
    }
    let turned = told.values().flatten().filter(|told| told.turned).count();
    println!("{} commits, {turned} accepted and then rejected; refused: {reasons:#?}", log.len());
    for reason in ["the task was deleted", "the list is full: # of #", "has claimed it", UNSEEN] {
        let heard = reasons.keys().any(|heard| heard.ends_with(reason));
        assert!(heard, "seed {seed}: nobody heard `{reason}`: {reasons:?}");
    }
    let [one, other] = running;
    assert!(one.shutdown().await && other.shutdown().await);
}
