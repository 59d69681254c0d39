//! Everything on a real S3 server: the remote's conformance, the probe, the whole flow with real
//! processes, and kill -9 of the coordinator and of the S3 server in mid-traffic.
//!
//! Each test starts a server of its own ([`tests::s3`]), one test at a time: one server is as much
//! as two cores carry. Where Ceph is not installed they are skipped, aloud, except in CI.

use std::collections::BTreeMap;
use std::future::Future;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use graft::remote::probe::REQUESTS_MAX;
use graft::remote::{Counting, Probed, Remote as _, RemoteError, conformance, probe_once};
use parking_lot::Mutex;
use serde_json::{Value, json};
use sqlsync_layer::client::{Client, ClientConfig, MutationError};
use tests::places;
use tests::process::{Output, Process, command, run as to_its_end};
use tests::s3::S3Server;

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.unwrap().block_on(test);
}

#[allow(clippy::disallowed_methods, reason = "figures for people, and bounds on waiting")]
fn now() -> Instant {
    Instant::now()
}

/// The same command without anything that this machine's environment says about stores.
fn clean(mut command: Command) -> Command {
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| name.starts_with("AWS_") || name.starts_with("GRAFT_")) {
            command.env_remove(name);
        }
    }
    command.stdin(Stdio::null());
    command
}

/// Runs an ignored test of this file in a process whose environment names the server.
fn child(test: &str, s3: &S3Server, changed: &[(&str, &str)]) -> String {
    let mut child = clean(Command::new(std::env::current_exe().unwrap()));
    child.args(["--exact", test, "--ignored", "--nocapture"]).envs(s3.environment());
    let output = child.envs(changed.iter().copied()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("running 1 test") && output.status.success(), "{output:?}");
    text
}

/// Nobody should believe that S3 was tested where it was not.
#[test]
fn where_ceph_is_missing_the_tests_say_so_and_fail_in_ci() {
    for (ci, passes) in [("", true), ("true", false)] {
        let mut child = clean(Command::new(std::env::current_exe().unwrap()));
        child.args(["--exact", "the_whole_flow_runs_on_s3"]).env("PATH", "/nowhere").env("CI", ci);
        let output = child.output().unwrap();
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert_eq!(output.status.success(), passes, "CI={ci}: {said}");
        assert!(
            said.contains("SKIPPED the_whole_flow_runs_on_s3: no S3 server, ceph-mon"),
            "CI={ci}: {said}"
        );
        assert!(said.contains("cargo xtask test"), "{said}");
    }
}

#[test]
fn a_bucket_conforms_and_is_probed_once() {
    let _alone = ONE_AT_A_TIME.lock();
    let begun = now();
    let Some(s3) = S3Server::start_or_skip("a_bucket_conforms_and_is_probed_once") else { return };
    println!("the server started in {:.1} s", begun.elapsed().as_secs_f64());
    run(async {
        s3.create_bucket("probed").await;
        s3.create_bucket("conforming").await;
    });
    println!("{}", child("child_probes", &s3, &[]));
    println!("{}", child("child_conforms", &s3, &[]));
    child("child_meets_what_is_wrong", &s3, &[("AWS_SECRET_ACCESS_KEY", "WRONG")]);
    child("child_meets_no_bucket", &s3, &[]);
    println!("all in {:.1} s", begun.elapsed().as_secs_f64());
}

#[test]
#[ignore = "a child process of a test here, which sets its environment"]
fn child_probes() {
    run(async {
        let remote = Counting::new(graft::remote::open("s3://probed/pre/fix").unwrap());
        let begun = now();
        assert_eq!(probe_once(remote.as_ref(), "a", 0).await.unwrap(), Probed::Now);
        println!("the probe took {:?}: {:?}", begun.elapsed(), remote.snapshot());
        assert_eq!(remote.reset().requests(), u64::from(REQUESTS_MAX));
        assert_eq!(probe_once(remote.as_ref(), "b", 0).await.unwrap(), Probed::Before);
        assert_eq!(remote.reset().requests(), 1);
        let left = remote.list("", None, 10).await.unwrap();
        assert_eq!(left.len(), 1, "the marker alone: {left:?}");
        let marker = String::from_utf8(remote.get(&left[0].key).await.unwrap().to_vec()).unwrap();
        let endpoint = std::env::var("AWS_ENDPOINT_URL").unwrap();
        assert!(marker.contains(&format!("s3://probed/pre/fix at {endpoint}\n")), "{marker}");

        let body = bytes::Bytes::from(vec![7; 1024]);
        let (mut creates, mut gets) = (Vec::new(), Vec::new());
        for i in 0..200 {
            let begun = now();
            remote.create(&format!("timed/{i}"), body.clone()).await.unwrap();
            creates.push(begun.elapsed());
            let begun = now();
            assert_eq!(remote.get(&format!("timed/{i}")).await.unwrap(), body);
            gets.push(begun.elapsed());
        }
        for (what, mut times) in [("create", creates), ("get", gets)] {
            times.sort();
            println!("{what} of 1 KiB: p50 {:?}, p99 {:?}", times[100], times[198]);
        }
    });
}

#[test]
#[ignore = "a child process of a test here, which sets its environment"]
fn child_conforms() {
    run(async {
        for url in ["s3://conforming", "s3://conforming/pre/fix", "s3://conforming/100%25/a%20b"] {
            let remote = graft::remote::open(url).unwrap();
            // The bucket's root also lists what lies below the other prefixes.
            conformance::check(remote.as_ref(), "below/").await;
        }
    });
}

#[test]
#[ignore = "a child process of a test here, which sets its environment"]
fn child_meets_what_is_wrong() {
    run(async {
        let remote = graft::remote::open("s3://probed/x").unwrap();
        for error in [
            remote.get("k").await.map(drop).expect_err("wrong secret"),
            remote.create("k", bytes::Bytes::new()).await.expect_err("wrong secret"),
            remote.list("", None, 1).await.map(drop).expect_err("wrong secret"),
        ] {
            assert!(matches!(error, RemoteError::Refused { .. }), "{error:?}");
            let text = error.to_string();
            assert!(text.contains("AWS_SECRET_ACCESS_KEY") && !text.contains("WRONG"), "{text}");
        }
    });
}

#[test]
#[ignore = "a child process of a test here, which sets its environment"]
fn child_meets_no_bucket() {
    run(async {
        let remote = graft::remote::open("s3://nowhere/x").unwrap();
        let error = probe_once(remote.as_ref(), "a", 0).await.expect_err("no bucket").to_string();
        assert!(error.contains("the bucket of `s3://nowhere/x` does not exist; create it"), "{error}");
        let error = remote.list("", None, 1).await.expect_err("no bucket").to_string();
        assert!(error.contains("the bucket of `s3://nowhere/x` does not exist; create it"), "{error}");
    });
}

fn json_line(process: &mut Process) -> Value {
    serde_json::from_str(&process.line()).unwrap()
}

/// Where the store is, and how to reach it.
struct World {
    environment: Vec<(&'static str, String)>,
    store: String,
}

impl World {
    fn graft(&self, args: &[&str]) -> Command {
        let mut command = command(args);
        command.envs(self.environment.iter().cloned()).env("GRAFT_STORE", &self.store);
        command.env("GRAFT_VOLUME", "todo");
        command
    }
    /// A coordinator that listens, at `listen`, and its URL.
    fn serve(&self, listen: &str, data: &std::path::Path) -> (Process, String) {
        let data = data.to_str().unwrap();
        let mut process = Process::start(self.graft(&["serve", "--listen", listen, "--data", data]));
        let line = process.line();
        let url = line.strip_prefix("listening on ").unwrap_or_else(|| panic!("{line}")).to_owned();
        (process, url)
    }
    fn output(&self, url: &str, args: &[&str]) -> Output {
        let mut command = self.graft(args);
        command.env("GRAFT_URL", url);
        to_its_end(command)
    }
    /// The JSON lines of a command that must succeed.
    fn json(&self, url: &str, args: &[&str]) -> Vec<Value> {
        self.output(url, &[args, &["--json"]].concat()).expect(0).lines()
    }
    fn deploy(&self, url: &str) {
        let module = places::reducer_module("todo");
        self.json(url, &["deploy", module.to_str().unwrap()]);
    }
}

fn listen(url: &str) -> &str {
    url.strip_prefix("http://").unwrap()
}

#[test]
fn the_whole_flow_runs_on_s3() {
    let _alone = ONE_AT_A_TIME.lock();
    let Some(s3) = S3Server::start_or_skip("the_whole_flow_runs_on_s3") else { return };
    run(s3.create_bucket("app"));
    let world = World { environment: s3.environment().into(), store: "s3://app/team/one".into() };
    let data = tempfile::tempdir().unwrap();
    let (server, url) = world.serve("127.0.0.1:0", data.path());
    world.deploy(&url);
    let select = "SELECT id, title FROM tasks WHERE list = ?1 ORDER BY id";
    let mut subscribe = world.graft(&["subscribe", select, "--params", "[\"l\"]", "--json"]);
    subscribe.env("GRAFT_URL", &url);
    let mut watching = Process::start(subscribe);
    assert_eq!(json_line(&mut watching)["rows"], json!([]));
    world.json(&url, &["mutate", "create_list", r#"{"id":"l","name":"L"}"#]);
    let added = world.json(&url, &["mutate", "add_task", r#"{"id":"t","list":"l","title":"Ä %s"}"#]);
    assert_eq!(added[0]["status"], "durable");
    assert_eq!(json_line(&mut watching)["changes"], json!({ "insert": [[0, ["t", "Ä %s"]]] }));
    world.output(&url, &["mutate", "add_task", r#"{"id":"u","list":"l","title":""}"#]).expect(2);

    // Straight from the bucket, also writing.
    let rows = world.json(&url, &["sql", "SELECT title FROM tasks"]);
    assert_eq!(rows[0]["rows"], json!([["Ä %s"]]));
    world.json(&url, &["sql", "UPDATE tasks SET title = 'B'", "--write"]);
    world.json(&url, &["mutate", "set_done", r#"{"id":"t","done":true}"#]);
    assert_eq!(json_line(&mut watching)["changes"], json!({ "update": [[0, ["t", "B"]]] }));
    let listed = world.json(&url, &["volume", "ls"]);
    assert_eq!(listed[0]["volumes"][0]["name"], "todo");
    let info = &world.json(&url, &["volume", "info", "todo"])[0];
    assert_eq!((&info["store"], &info["mutations"]), (&json!("s3://app/team/one"), &json!(3)));
    let newest = info["lsn"].as_u64().unwrap();
    let lsns: Vec<_> = world.json(&url, &["volume", "log", "todo"]);
    let lsns: Vec<u64> = lsns.iter().map(|commit| commit["lsn"].as_u64().unwrap()).collect();
    assert_eq!(lsns, (1..=newest).rev().collect::<Vec<_>>());

    // Another prefix of the bucket is another store.
    let other = World { environment: s3.environment().into(), store: "s3://app/team/on".into() };
    assert_eq!(other.json(&url, &["volume", "ls"])[0]["volumes"], json!([]));
    drop((watching, server));

    // Nobody there: said within bounds, with the next step.
    let pids = s3.pids();
    drop(s3);
    for pid in pids {
        assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists(), "{pid} runs on");
    }
    // Waiting has its end in `tests::process`.
    let said = world.output(&url, &["serve", "--listen", "127.0.0.1:0"]).error();
    assert!(said.contains("could not be probed") && said.contains("check that it is reachable"), "{said}");
}

const CLIENTS: usize = 4;
const WAVES: usize = 36;
const TASKS_PER_WAVE: usize = 4;
const TASKS: usize = CLIENTS * WAVES * TASKS_PER_WAVE;

/// How many tasks are made and renamed for good, told as it grows.
type Progress = tokio::sync::watch::Sender<usize>;

/// Adds tasks and renames each twice, wave after wave; waits for each wave's final answers.
async fn work(client: Client, number: usize, progress: Arc<Progress>) {
    for wave in 0..WAVES {
        let mut waiting = Vec::new();
        for task in 0..TASKS_PER_WAVE {
            let id = format!("c{number}-{wave}-{task}");
            let add = json!({ "id": id, "list": "l", "title": "new" });
            let mut steps = vec![client.mutate("add_task", add).await.unwrap()];
            for step in 1..=2 {
                let rename = json!({ "id": id, "title": format!("{step}") });
                steps.push(client.mutate("rename_task", rename).await.unwrap());
            }
            let again = json!({ "id": id, "list": "l", "title": "twice" });
            waiting.push((id, steps, client.mutate("add_task", again).await.unwrap()));
        }
        for (id, steps, again) in waiting {
            for step in steps {
                step.durable().await.unwrap_or_else(|error| panic!("{id}: {error}"));
            }
            let refused = again.durable().await;
            assert!(matches!(refused, Err(MutationError::Rejected { .. })), "{id}: {refused:?}");
            progress.send_modify(|done| *done += 1);
        }
    }
    client.close().await;
}

async fn client(url: &str) -> Client {
    let mut config = ClientConfig::new(url, "todo");
    config.session.backoff_min = Duration::from_millis(10);
    config.session.backoff_max = Duration::from_millis(200);
    Client::connect(config).await.unwrap()
}

/// The coordinator dies, the gateway dies, both die, the whole S3 server dies: each time in
/// mid-traffic, each time with mutations in flight. Nothing durable is lost, nothing is doubled.
#[test]
fn kills_of_the_coordinator_and_of_s3_lose_and_double_nothing() {
    let _alone = ONE_AT_A_TIME.lock();
    let name = "kills_of_the_coordinator_and_of_s3_lose_and_double_nothing";
    let Some(mut s3) = S3Server::start_or_skip(name) else { return };
    let begun = now();
    run(async {
        s3.create_bucket("app").await;
        let world = World { environment: s3.environment().into(), store: "s3://app/kills".into() };
        let data = tempfile::tempdir().unwrap();
        let (mut server, url) = world.serve("127.0.0.1:0", data.path());
        world.deploy(&url);
        world.json(&url, &["mutate", "create_list", r#"{"id":"l","name":"L"}"#]);
        let progress = Arc::new(Progress::new(0));
        let mut seen = progress.subscribe();
        let mut working = tokio::task::JoinSet::new();
        for number in 0..CLIENTS {
            working.spawn(work(client(&url).await, number, progress.clone()));
        }
        let probing = client(&url).await;
        let mut extra = 0;
        // A worker that fails ends its task early; then this must not wait for ever.
        let reached = async |seen: &mut tokio::sync::watch::Receiver<usize>, part: usize| {
            let enough = TASKS * part / 6;
            let waited =
                tokio::time::timeout(Duration::from_secs(180), seen.wait_for(|done| *done >= enough));
            let done = *waited.await.unwrap_or_else(|_| panic!("stuck before {enough} of {TASKS}")).unwrap();
            assert!(done < TASKS, "the traffic is over before the kill");
            println!("{:5.1} s: {done} of {TASKS} done", begun.elapsed().as_secs_f64());
        };

        reached(&mut seen, 1).await;
        server.kill();
        (server, _) = world.serve(listen(&url), data.path());

        reached(&mut seen, 2).await;
        s3.kill_gateway();
        // What is taken while the store is away is not called durable, and becomes it later.
        let rename = json!({ "id": "l", "list": "l", "title": "while the store is away" });
        let mutation = probing.mutate("add_task", rename).await.unwrap();
        mutation.accepted().await.unwrap();
        let early = tokio::time::timeout(Duration::from_millis(500), mutation.durable()).await;
        assert!(early.is_err(), "durable without a store: {early:?}");
        extra += 1;
        s3.start_gateway();
        mutation.durable().await.unwrap();
        println!("{:5.1} s: durable after the gateway's return", begun.elapsed().as_secs_f64());

        reached(&mut seen, 3).await;
        s3.kill_gateway();
        server.kill();
        s3.start_gateway();
        (server, _) = world.serve(listen(&url), data.path());

        reached(&mut seen, 4).await;
        s3.kill_all();
        s3.start_all();

        reached(&mut seen, 5).await;
        server.kill();
        // Nothing on disk either: the bucket alone carries it.
        let fresh = tempfile::tempdir().unwrap();
        let (server, _) = world.serve(listen(&url), fresh.path());
        while let Some(worked) = working.join_next().await {
            worked.unwrap();
        }
        println!("{:5.1} s: all {TASKS} done", begun.elapsed().as_secs_f64());
        probing.close().await;
        drop(server);

        let found = &world.json(&url, &["sql", "SELECT id, title FROM tasks WHERE id <> 'l'"])[0]["rows"];
        let found: BTreeMap<&str, &str> = found
            .as_array()
            .unwrap()
            .iter()
            .map(|row| (row[0].as_str().unwrap(), row[1].as_str().unwrap()))
            .collect();
        assert_eq!(found.len(), TASKS, "none is lost");
        assert!(found.values().all(|title| *title == "2"), "each was renamed in order: {found:?}");
        let info = &world.json(&url, &["volume", "info", "todo"])[0];
        assert_eq!(info["mutations"], json!(1 + 3 * TASKS + extra), "none is applied twice");
        let log = world.json(&url, &["volume", "log", "todo"]);
        let rejected: u64 = log.iter().map(|commit| commit["rejected"].as_u64().unwrap()).sum();
        assert_eq!(rejected, TASKS as u64, "nor recorded twice");
        let check = world.json(&url, &["sql", "PRAGMA integrity_check"]);
        assert_eq!(check[0]["rows"], json!([["ok"]]));
    });
    println!("all in {:.1} s", begun.elapsed().as_secs_f64());
}
