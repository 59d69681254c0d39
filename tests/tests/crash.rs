//! Durability under `kill -9`: servers are killed at random moments under load, and what was promised
//! must be there, once.
//!
//! What is checked at the end, from the store's log, from SQL and from what subscribers hold:
//! every mutation has one record, under its client's gapless seq, with the outcome and the commit that
//! its client was told; tasks are exactly those whose `add_task` was applied; the database is sound;
//! every subscriber's rows equal it.
//!
//! `GRAFT_CRASH_SEED` chooses the seed, which is printed. A seed repeats the moments and the load, not
//! the scheduling.

#![allow(clippy::disallowed_methods, reason = "a driver: it runs against real processes by the real clock")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use graft::format::commit::Head;
use graft::{ChainHash, Lsn, catalog};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use serde_json::{Value as Json, json};
use sqlsync_layer::client::{Client, ClientConfig, ClientId, MutationError, MutationHandle, Subscription};
use sqlsync_layer::payload::{Op, Outcome, Payload};
use sqlsync_layer::value::Params;
use tests::process::{PATIENCE, Server, store};

const TASKS: &str = "SELECT id, title, done FROM tasks ORDER BY id";
/// Mutations that each client has on their way.
const WINDOW: usize = 12;

fn seed() -> u64 {
    let given = std::env::var("GRAFT_CRASH_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = given.unwrap_or_else(|| StdRng::from_os_rng().random_range(0..1_000_000));
    println!("GRAFT_CRASH_SEED={seed}");
    seed
}

/// What a client did, and what it was told.
#[derive(Debug)]
struct Sent {
    reducer: &'static str,
    args: Json,
    told: Result<Lsn, MutationError>,
}

/// Sends mutations as fast as their answers allow until told to stop, then waits for the last answers.
/// `landed` counts final answers.
async fn load(
    client: Client,
    number: usize,
    seed: u64,
    stop: Arc<AtomicBool>,
    landed: Arc<AtomicU64>,
) -> Vec<Sent> {
    let mut rng = StdRng::seed_from_u64(seed ^ (number as u64 + 1));
    let mut sent: Vec<Sent> = Vec::new();
    let mut waiting: std::collections::VecDeque<(&'static str, Json, MutationHandle)> = Default::default();
    let mut tasks = 0;
    loop {
        let stopping = stop.load(Ordering::Relaxed);
        if waiting.len() >= WINDOW || (stopping && !waiting.is_empty()) {
            let (reducer, args, handle) = waiting.pop_front().unwrap();
            let told = tokio::time::timeout(PATIENCE, handle.durable()).await;
            let told = told.unwrap_or_else(|_| panic!("client {number}: no answer to {reducer} {args}"));
            landed.fetch_add(1, Ordering::Relaxed);
            sent.push(Sent { reducer, args, told });
            continue;
        }
        if stopping {
            client.close().await;
            return sent;
        }
        let mine = |rng: &mut StdRng| format!("{number}-{}", rng.random_range(0..tasks.max(1)));
        let (reducer, args) = match rng.random_range(0..10) {
            0..6 => {
                let id = format!("{number}-{tasks}");
                tasks += 1;
                ("add_task", json!({ "id": id, "list": "home", "title": format!("task {id}") }))
            }
            6 | 7 => ("set_done", json!({ "id": mine(&mut rng), "done": rng.random::<bool>() })),
            8 => ("delete_task", json!({ "id": mine(&mut rng) })),
            _ => ("add_task", json!({ "id": format!("refused-{number}"), "list": "home", "title": "" })),
        };
        let handle = client.mutate(reducer, args.clone()).await.unwrap();
        waiting.push_back((reducer, args, handle));
    }
}

async fn connect(server: &Server, id: &str) -> Client {
    let mut config = ClientConfig::new(server.url(), "todo");
    config.client_id = Some(ClientId::new(id).unwrap());
    config.connect_timeout = Some(PATIENCE);
    config.session.backoff_min = Duration::from_millis(10);
    config.session.backoff_max = Duration::from_millis(200);
    Client::connect(config).await.unwrap()
}

/// Every commit in the store, oldest first; the pull checks that they chain.
async fn log(store: &str) -> Vec<Head> {
    let remote = graft::remote::open(store).unwrap();
    let id = catalog::resolve(&*remote, &"todo".parse().unwrap()).await.unwrap();
    graft::pull::pull(&*remote, id, Lsn::ZERO, ChainHash::ZERO).await.unwrap().heads
}

/// Compares what clients were told with what the log says, and replays the log's outcomes on a model;
/// answers the rows of [`TASKS`] by it.
fn check_log(log: &[Head], told: &[Vec<Sent>]) -> Json {
    let mut next: BTreeMap<ClientId, u64> = BTreeMap::new();
    let mut tasks: BTreeMap<String, (String, u64)> = BTreeMap::new();
    for head in log {
        for record in Payload::decode(head).unwrap().records {
            let Op::Mutation(mutation) = record.op else { continue };
            let (client, seq, at) = (&mutation.client, mutation.seq, head.lsn);
            let args: Json = serde_json::from_str(&mutation.args).unwrap();
            let expected = next.entry(client.clone()).or_insert(1);
            assert_eq!(seq, *expected, "client {client} at {at:?}: doubled or missing");
            *expected += 1;
            if let Some(number) = client.as_str().strip_prefix("load-") {
                let sent = &told[number.parse::<usize>().unwrap()][usize::try_from(seq).unwrap() - 1];
                assert_eq!((&*mutation.reducer, &args), (sent.reducer, &sent.args), "{client} {seq}");
                match (&record.outcome, &sent.told) {
                    (Outcome::Applied, Ok(lsn)) => assert_eq!(*lsn, at, "{client} {seq}"),
                    (Outcome::Rejected(reason), Err(MutationError::Rejected { reason: said, lsn })) => {
                        assert_eq!((reason, at), (said, *lsn), "{client} {seq}");
                    }
                    (outcome, said) => {
                        panic!("{client} {seq} at {at:?} is {outcome:?}, its client heard {said:?}")
                    }
                }
            }
            // The model of the todo reducers: what must have been applied, and what that does.
            let id = args["id"].as_str().unwrap().to_string();
            let known = tasks.contains_key(&id);
            let possible = match &*mutation.reducer {
                "create_list" | "delete_task" => true,
                "add_task" => !known && args["title"] != "",
                "set_done" => known,
                other => panic!("nobody sends {other}"),
            };
            assert_eq!(
                record.outcome == Outcome::Applied,
                possible,
                "{client} {seq} at {at:?}: {record_outcome:?}",
                record_outcome = record.outcome
            );
            if !possible {
                continue;
            }
            match &*mutation.reducer {
                "add_task" => drop(tasks.insert(id, (args["title"].as_str().unwrap().into(), 0))),
                "set_done" => tasks.get_mut(&id).unwrap().1 = u64::from(args["done"] == true),
                "delete_task" => drop(tasks.remove(&id)),
                _ => {}
            }
        }
    }
    for (number, sent) in told.iter().enumerate() {
        let recorded = next.get(&ClientId::new(format!("load-{number}")).unwrap()).copied().unwrap_or(1) - 1;
        assert_eq!(recorded, sent.len() as u64, "records of client {number}, all of which were answered");
    }
    tasks.into_iter().map(|(id, (title, done))| json!([id, title, done])).collect::<Vec<_>>().into()
}

fn rows(subscription: &Subscription) -> Json {
    subscription.rows().rows().iter().cloned().map(Json::from).collect::<Vec<_>>().into()
}

/// Reads events until the rows are `expected`.
async fn until(subscription: &mut Subscription, expected: &Json) {
    let reading = async {
        while rows(subscription) != *expected {
            subscription.next().await.unwrap();
        }
    };
    let reached = tokio::time::timeout(PATIENCE, reading).await.is_ok();
    assert!(reached, "a subscriber ended with other rows than the database");
}

/// Reads events for ever, keeping the rows current, until told to stop.
async fn follow(
    mut subscription: Subscription,
    mut stop: tokio::sync::watch::Receiver<bool>,
) -> Subscription {
    loop {
        tokio::select! {
            event = subscription.next() => drop(event.unwrap()),
            _ = stop.wait_for(|stop| *stop) => return subscription,
        }
    }
}

/// Kills one of the servers at a random moment and starts it again, `kills` times.
///
/// Every other time it first waits until something landed since the last start; the rest may hit a
/// server that has hardly begun, or one that is just opening the volume.
fn torment(servers: &mut [Server], kills: usize, seed: u64, landed: &AtomicU64) {
    let mut rng = StdRng::seed_from_u64(seed);
    for kill in 0..kills {
        if kill % 2 == 0 {
            let (before, end) = (landed.load(Ordering::Relaxed), Instant::now() + PATIENCE);
            while landed.load(Ordering::Relaxed) < before + 20 {
                assert!(Instant::now() < end, "nothing lands any more (seed {seed}, kill {kill})");
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        // The random moment.
        std::thread::sleep(Duration::from_micros(rng.random_range(0..600_000)));
        let at = rng.random_range(0..servers.len());
        servers[at].kill();
        servers[at].restart();
    }
}

/// Runs `clients` against `servers` servers on one store while they are killed, then checks everything.
async fn survive(servers: usize, clients: usize, kills: usize) {
    let seed = seed();
    let started = Instant::now();
    let (_dir, store) = store();
    let mut running: Vec<Server> = (0..servers).map(|_| Server::start(&store)).collect();
    running[0].deploy("todo", "todo");
    running[0].mutate("todo", "create_list", json!({ "id": "home", "name": "Home" }));

    let (stop, landed) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let (done, stopped) = tokio::sync::watch::channel(false);
    let (mut loads, mut followers, mut watches) = (Vec::new(), Vec::new(), Vec::new());
    for number in 0..clients {
        let client = connect(&running[number % servers], &format!("load-{number}")).await;
        loads.push(tokio::spawn(load(client, number, seed, stop.clone(), landed.clone())));
    }
    for (number, server) in running.iter().enumerate() {
        let client = connect(server, &format!("watch-{number}")).await;
        let subscription = client.subscribe(TASKS, Params::default(), None).await.unwrap();
        followers.push((client, tokio::spawn(follow(subscription, stopped.clone()))));
        watches.push(server.watch("todo", TASKS, "[]"));
    }
    let counted = landed.clone();
    let tormented = tokio::task::spawn_blocking(move || {
        torment(&mut running, kills, seed, &counted);
        running
    });
    let mut running = tormented.await.unwrap();
    stop.store(true, Ordering::Relaxed);
    let mut told = Vec::new();
    for load in loads {
        told.push(load.await.unwrap());
    }
    // A commit by another server reaches one that has nothing to publish only when it publishes again.
    for server in &running {
        server.mutate("todo", "delete_task", json!({ "id": "none" }));
    }
    if servers > 1 {
        running[0].mutate("todo", "delete_task", json!({ "id": "none" }));
    }
    done.send_replace(true);

    let log = log(&store).await;
    let expected = check_log(&log, &told);
    for server in &running {
        assert_eq!(server.query("todo", TASKS), expected);
    }
    assert_eq!(running[0].sql("todo", TASKS), expected);
    assert_eq!(running[0].sql("todo", "PRAGMA integrity_check"), json!([["ok"]]));
    for (client, follower) in followers {
        until(&mut follower.await.unwrap(), &expected).await;
        client.close().await;
    }
    for watch in &mut watches {
        watch.until(&expected);
    }
    for server in &mut running {
        assert_eq!(server.stop(), Some(0), "{}", server.process().told());
    }
    let sent: usize = told.iter().map(Vec::len).sum();
    let rejected = told.iter().flatten().filter(|sent| sent.told.is_err()).count();
    let all: BTreeSet<_> = log.iter().map(|head| head.id).collect();
    assert_eq!(all.len(), log.len(), "a commit id twice");
    println!(
        "{kills} kills of {servers} servers in {:.1} s: {sent} mutations of {clients} clients ({rejected} rejected) in {} commits, {} tasks left",
        started.elapsed().as_secs_f64(),
        log.len(),
        expected.as_array().map_or(0, Vec::len),
    );
    assert!(sent > 20 * kills / 2 && rejected > 0, "too little happened: {sent} sent, {rejected} rejected");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_durable_survives_a_server_that_is_killed_again_and_again() {
    survive(1, 6, 30).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_durable_survives_two_servers_on_one_store_that_are_killed() {
    survive(2, 6, 16).await;
}
