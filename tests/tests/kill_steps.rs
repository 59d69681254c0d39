//! kill -9 at every step of an operation: the program is killed while it waits for the store's answer.
//!
//! `graft` runs against a store that this process serves by HTTP, and that *holds* one request: before it
//! is carried out, or after, when only the answer is missing. There the program is killed; then with the
//! next request, until it needs no more of them. So every state that a death between two requests can
//! leave is looked at: nothing that was acknowledged is lost, the volume verifies, everything reads as it
//! must, and the operation runs again to its end. A write that was held arrives at last after all that, as
//! one may that was on its way: it changes nothing any more.

#![allow(clippy::disallowed_methods, reason = "a driver: it gives up after a real while")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use coordinator::{Config, Coordinator, Running};
use futures::future::pending;
use graft::fetch::RemoteFetch;
use graft::format::meta::Meta;
use graft::remote::{Answer, Layer, MemoryRemote, Remote, RemoteError, Request, SharedRemote};
use graft::store::FjallStore;
use graft::volume::{Options, Volume, push};
use graft::{CommitId, Lsn, PageSize, VolumeId, VolumeName, catalog, key, verify};
use parking_lot::Mutex;
use rusqlite::Connection;
use sqlsync_layer::payload::Payload;
use sqlsync_layer::vfs::Database;
use tests::places::{self, copy_folder};
use tests::process::{PATIENCE, clean, command};
use tokio::io::AsyncWriteExt as _;
use tokio::process::Child;
use tokio::sync::watch;

const VOLUME: VolumeId = VolumeId([6; 16]);
/// An operation of more requests than this is killed at about so many of them, first and last among them.
const STEPS: u64 = 20;
/// Rows that the template's data directory holds and its store does not.
const KEPT: i64 = 999;
/// The row that an operation adds.
const ADDED: i64 = 1000;
/// The row that whoever comes afterwards adds.
const LATER: i64 = 1001;

const SHELL: &str = "/usr/bin/sqlite3";
const URL: &str = "{url}";

/// Where in a request it is held.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Held {
    Before,
    After,
}

#[derive(Debug)]
struct Plan {
    at: u64,
    held: Held,
    seen: u64,
}

/// A write on its way.
#[derive(Debug, Clone)]
enum Write {
    Create(Bytes),
    Put(Bytes),
    Delete,
}

/// Holds the request of number `at`, and all that come after it.
#[derive(Debug)]
struct Holding {
    truth: Arc<MemoryRemote>,
    plan: Mutex<Plan>,
    reached: watch::Sender<Option<String>>,
    /// What was asked for and not carried out, by key.
    late: Mutex<BTreeMap<String, Write>>,
}

#[async_trait]
impl Layer for Holding {
    fn inner(&self) -> &dyn Remote {
        &*self.truth
    }

    async fn create(&self, key: &str, body: Bytes) -> Result<(), RemoteError> {
        self.late.lock().insert(key.to_owned(), Write::Create(body.clone()));
        self.around(Request::Create, key, self.truth.create(key, body)).await
    }

    async fn put(&self, key: &str, body: Bytes) -> Result<(), RemoteError> {
        self.late.lock().insert(key.to_owned(), Write::Put(body.clone()));
        self.around(Request::Put, key, self.truth.put(key, body)).await
    }

    async fn delete(&self, key: &str) -> Result<(), RemoteError> {
        self.late.lock().insert(key.to_owned(), Write::Delete);
        self.around(Request::Delete, key, self.truth.delete(key)).await
    }

    fn around<'a, T: Send + 'a>(
        &'a self,
        request: Request,
        key: &'a str,
        sent: Answer<'a, T>,
    ) -> Answer<'a, T> {
        Box::pin(async move {
            let (number, at, held) = {
                let mut plan = self.plan.lock();
                plan.seen += 1;
                (plan.seen, plan.at, plan.held)
            };
            if number < at {
                self.late.lock().remove(key);
                return sent.await;
            }
            if number == at {
                if held == Held::After {
                    self.late.lock().remove(key);
                    drop(sent.await);
                }
                self.reached.send_replace(Some(format!("{request:?} {key}")));
            }
            pending().await
        })
    }
}

/// A store behind HTTP.
struct Served {
    holding: Arc<Holding>,
    running: Running,
}

impl Served {
    async fn start(truth: Arc<MemoryRemote>, at: u64, held: Held) -> Served {
        let plan = Plan { at: u64::MAX, held, seen: 0 };
        let (reached, late) = (watch::Sender::new(None), Mutex::default());
        let holding = Holding { truth, plan: Mutex::new(plan), reached, late };
        let holding = Arc::new(holding);
        let mut config = Config::new(holding.clone(), ([127, 0, 0, 1], 0).into());
        config.remote_writes = true;
        let running = Coordinator::start(config).await.unwrap();
        // The server's own requests, at its start, are none of the operation's.
        let mut plan = holding.plan.lock();
        (plan.at, plan.seen) = (at, 0);
        drop(plan);
        Served { holding, running }
    }

    /// Starts `graft ARGS` on this store; or, where the first is [`SHELL`], SQLite's shell with the others
    /// as its input, in which [`URL`] stands for the store's. It says at each line what it has to say.
    async fn start_program(&self, args: &[String]) -> Child {
        let url = self.running.url();
        let (mut program, input) = match args.split_first() {
            Some((first, lines)) if first == SHELL => {
                let mut shell = Command::new(SHELL);
                shell.args(["-batch", "-bail"]);
                (shell, lines.join("\n").replace(URL, &url) + "\n")
            }
            _ => {
                let mut graft = command(args);
                graft.args(["--store", &url]);
                (graft, String::new())
            }
        };
        program.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        clean(&mut program);
        let mut program = tokio::process::Command::from(program);
        let mut child = program.kill_on_drop(true).spawn().unwrap();
        // Less than a pipe holds.
        child.stdin.take().unwrap().write_all(input.as_bytes()).await.unwrap();
        child
    }
}

/// Runs a program of [`Served::start_program`] to its end; what it said, and how many requests it sent.
async fn run(truth: &Arc<MemoryRemote>, args: &[String]) -> (Output, u64) {
    let served = Served::start(truth.clone(), u64::MAX, Held::Before).await;
    let output = served.start_program(args).await.wait_with_output();
    let output = tokio::time::timeout(PATIENCE, output).await.expect("it ends").unwrap();
    let seen = served.holding.plan.lock().seen;
    served.running.shutdown().await;
    (output, seen)
}

async fn ok(truth: &Arc<MemoryRemote>, args: &[String]) -> (String, u64) {
    let (output, seen) = run(truth, args).await;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{args:?}: {said}");
    (String::from_utf8(output.stdout).unwrap(), seen)
}

/// A death of a program.
struct Killed {
    /// The request that it waited for.
    request: String,
    /// The writes that the store has not seen.
    late: BTreeMap<String, Write>,
    /// What it had said by then.
    said: String,
}

impl Killed {
    /// They arrive.
    async fn arrive(self, truth: &MemoryRemote) {
        for (key, write) in self.late {
            match write {
                Write::Create(body) => drop(truth.create(&key, body).await),
                Write::Put(body) => truth.put(&key, body).await.unwrap(),
                Write::Delete => truth.delete(&key).await.unwrap(),
            }
        }
    }
}

/// Kills a program of [`Served::start_program`] while it waits for request `at`. `None` if it needed fewer.
async fn kill_at(truth: &Arc<MemoryRemote>, args: &[String], at: u64, held: Held) -> Option<Killed> {
    let served = Served::start(truth.clone(), at, held).await;
    let mut child = served.start_program(args).await;
    let mut reached = served.holding.reached.subscribe();
    let killed = tokio::select! {
        reached = reached.wait_for(Option::is_some) => reached.unwrap().clone(),
        status = child.wait() => {
            assert!(status.unwrap().success(), "{args:?} failed by itself before request {at}");
            None
        }
        () = tokio::time::sleep(PATIENCE) => panic!("{args:?} waits for something else than request {at}"),
    };
    if killed.is_some() {
        child.kill().await.unwrap();
    }
    let holding = served.holding;
    served.running.shutdown().await;
    let late = std::mem::take(&mut *holding.late.lock());
    let said = child.wait_with_output().await.unwrap().stdout;
    killed.map(|request| Killed { request, late, said: String::from_utf8(said).unwrap() })
}

/// A store with a volume, and a data directory that holds an acknowledged commit more.
struct Template {
    folder: tempfile::TempDir,
    objects: Vec<(String, Bytes)>,
}

impl Template {
    /// Forty commits; two of them too large to be one object.
    fn new() -> Template {
        let folder = tempfile::tempdir().unwrap();
        let truth = Arc::new(MemoryRemote::new());
        let remote: SharedRemote = truth.clone();
        let (name, meta): (VolumeName, _) =
            ("v".parse().unwrap(), Meta { page_size: PageSize::new(1024).unwrap(), parent: None });
        futures::executor::block_on(catalog::create(&*remote, &name, VOLUME, meta)).unwrap();
        let (volume, connection) = open(&remote, Options::default());
        connection.execute_batch("create table t(id integer primary key, v)").unwrap();
        for id in 1..=40 {
            let bytes = if id % 20 == 0 { 400_000 } else { 2000 };
            connection.execute("insert into t values(?1, randomblob(?2))", [id, bytes]).unwrap();
            let payload = |locals: &[_]| Payload::of_locals(locals);
            let ids = || CommitId([id as u8; 16]);
            futures::executor::block_on(push(&*remote, &volume, payload, ids, id)).unwrap();
        }
        let store = FjallStore::open(&folder.path().join("data")).unwrap();
        let (_, connection) = open(&remote, Options { store: Some(Arc::new(store)), ..Options::default() });
        connection.execute("insert into t values(?1, 'kept')", [KEPT]).unwrap();
        Template { folder, objects: truth.objects() }
    }

    fn store(&self) -> Arc<MemoryRemote> {
        store_of(&self.objects)
    }

    /// A fresh copy of the data directory.
    fn data(&self) -> PathBuf {
        let copy = self.folder.path().join("copy");
        if copy.exists() {
            std::fs::remove_dir_all(&copy).unwrap();
        }
        copy_folder(&self.folder.path().join("data"), &copy);
        copy
    }
}

fn store_of(objects: &[(String, Bytes)]) -> Arc<MemoryRemote> {
    let truth = Arc::new(MemoryRemote::new());
    for (key, body) in objects {
        truth.overwrite(key, body.clone());
    }
    truth
}

fn open(remote: &SharedRemote, options: Options) -> (Arc<Volume>, Connection) {
    let volume = futures::executor::block_on(Volume::open(&**remote, VOLUME, options)).unwrap().volume;
    connect(remote, volume)
}

fn connect(remote: &SharedRemote, volume: Volume) -> (Arc<Volume>, Connection) {
    let volume = Arc::new(volume);
    let database = Database::new(volume.clone(), Arc::new(RemoteFetch::new(remote.clone())));
    (volume, database.connect().unwrap().0)
}

/// The content of a volume, from nowhere: its ids and a digest of all rows. Everything in it is sound.
async fn content(truth: &Arc<MemoryRemote>, name: &str, what: &str) -> (Vec<i64>, String) {
    let remote: SharedRemote = truth.clone();
    let id = catalog::resolve(&*remote, &name.parse().unwrap()).await.unwrap();
    let report = verify::verify(&*remote, id, &|_| {}).await.unwrap();
    assert!(report.is_sound(), "{what}: {:?}", report.findings);
    let volume = Volume::open(&*remote, id, Options::default()).await.unwrap().volume;
    let read = move || {
        let (_, connection) = connect(&remote, volume);
        let check: String = connection.query_row("pragma integrity_check", [], |row| row.get(0)).unwrap();
        let mut rows = connection.prepare("select id, quote(v) from t order by id").unwrap();
        let rows = rows.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
        let rows: Vec<(i64, String)> = rows.map(Result::unwrap).collect();
        (check, rows)
    };
    let (check, rows) = tokio::task::spawn_blocking(read).await.unwrap();
    assert_eq!(check, "ok", "{what}");
    let (ids, values): (Vec<i64>, Vec<String>) = rows.into_iter().unzip();
    (ids, values.concat())
}

/// What there is of volumes.
fn stored(truth: &MemoryRemote) -> Vec<(String, Bytes)> {
    truth.objects().into_iter().filter(|(key, _)| key.starts_with("volumes/")).collect()
}

/// The requests at which an operation of `total` is killed.
fn steps(total: u64) -> impl Iterator<Item = (u64, Held)> {
    let stride = total.div_ceil(STEPS).max(1);
    let last = (total > 1 && !(total - 1).is_multiple_of(stride)).then_some(total);
    let at = (1..=total).step_by(stride as usize).chain(last);
    at.flat_map(|at| [(at, Held::Before), (at, Held::After)])
}

fn args(args: &[&str]) -> Vec<String> {
    args.iter().map(|arg| (*arg).to_owned()).collect()
}

/// What an operation that changes no content must keep, wherever it is killed: every byte. `before` runs
/// first, whole; `first` and `last` are what a try says that is not killed, and what the last one says.
async fn keeps_everything(before: &[&str], what: &[&str], first: &str, last: &str) {
    let mut template = tokio::task::spawn_blocking(Template::new).await.unwrap();
    if !before.is_empty() {
        let truth = template.store();
        ok(&truth, &args(before)).await;
        template.objects = truth.objects();
    }
    let what = args(what);
    let before = content(&template.store(), "v", "at first").await;
    let (said, total) = ok(&template.store(), &what).await;
    assert!(said.contains(first), "{what:?}: {said}");
    let mut kills = 0;
    for (at, held) in steps(total) {
        let truth = template.store();
        let Some(killed) = kill_at(&truth, &what, at, held).await else { continue };
        kills += 1;
        let told = format!("{what:?} killed with request {at} of {total}, {held:?} {}", killed.request);
        assert!(content(&truth, "v", &told).await == before, "{told}: other rows");
        ok(&truth, &what).await;
        assert!(content(&truth, "v", &told).await == before, "{told}, run again: other rows");
        let said = ok(&truth, &what).await.0;
        assert!(said.contains(last), "{told}: {said}");
        killed.arrive(&truth).await;
        assert!(content(&truth, "v", &told).await == before, "{told}, and arrived late: other rows");
    }
    println!("{what:?}: {kills} kills at {total} requests");
    assert!(total >= 4 && kills >= total.min(STEPS), "{kills} kills at {total} requests");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_checkpoint_that_is_killed_at_any_step_changes_nothing() {
    keeps_everything(&[], &["volume", "checkpoint", "v", "--json"], "\"stored\"", "\"current\"").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_compaction_that_is_killed_at_any_step_changes_nothing() {
    keeps_everything(&[], &["volume", "compact", "v", "--json"], "\"stored\"", "\"current\"").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collection_that_is_killed_at_any_step_keeps_what_is_read() {
    let now = ["volume", "gc", "v", "--keep-days", "0", "--keep-commits", "0", "--grace", "0", "--json"];
    let compact = ["volume", "compact", "v", "--all"];
    // The forty commits and the segments of two of them go.
    keeps_everything(&compact, &now, "\"objects_gone\":42", "\"objects_gone\":0").await;
}

/// A write in one go: what it needs of the store, its local commit, and the push of that. The data
/// directory holds an earlier commit that was acknowledged and not pushed.
async fn loses_nothing(sql: &str) {
    let template = tokio::task::spawn_blocking(Template::new).await.unwrap();
    let write = |sql: &str, data: &Path| {
        args(&["sql", sql, "--write", "--volume", "v", "--data", data.to_str().unwrap()])
    };
    let later = format!("insert into t values({LATER}, 'later')");
    let total = ok(&template.store(), &write(sql, &template.data())).await.1;
    let (mut kills, mut kept) = (0, 0);
    let first: Vec<i64> = (1..=40).collect();
    for (at, held) in steps(total) {
        let (truth, data) = (template.store(), template.data());
        let Some(killed) = kill_at(&truth, &write(sql, &data), at, held).await else { continue };
        kills += 1;
        let told = format!("`{sql}` killed with request {at} of {total}, {held:?} {}", killed.request);
        let (ids, _) = content(&truth, "v", &told).await;
        assert!(ids.starts_with(&first), "{told}: {ids:?}");
        // Whoever comes next on this directory pushes what is kept there, once.
        ok(&truth, &write(&later, &data)).await;
        let (ids, _) = content(&truth, "v", &told).await;
        let more: Vec<i64> = ids[first.len()..].to_vec();
        assert!(ids.starts_with(&first), "{told}: {ids:?}");
        assert!(more == [KEPT, LATER] || more == [KEPT, ADDED, LATER], "{told}: {more:?}");
        kept += u64::from(more.len() == 3);
        // Once it asks for its own LSN, its row is on disk here and goes wherever this goes.
        let newest = key::log(VOLUME, Lsn(42));
        assert!(more.len() == 3 || killed.request != format!("Create {newest}"), "{told}");
        killed.arrive(&truth).await;
        assert!(content(&truth, "v", &told).await.0 == ids, "{told}, and arrived late: other rows");
    }
    println!("`{sql}`: {kills} kills at {total} requests, {kept} of them after the local commit");
    assert!(kills >= total.min(STEPS) && kept >= 2 && kept < kills, "{kills} kills, {kept} kept");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_is_killed_at_any_step_is_whole_or_not_at_all() {
    loses_nothing(&format!("insert into t values({ADDED}, 'added')")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_push_of_segments_that_is_killed_at_any_step_is_whole_or_not_at_all() {
    loses_nothing(&format!("insert into t values({ADDED}, randomblob(600000))")).await;
}

/// The same by the extension in SQLite's own shell, where a commit is acknowledged before it is pushed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_push_of_the_extension_that_is_killed_at_any_step_loses_no_acknowledged_commit() {
    if places::sqlite3().is_none() {
        return;
    }
    let template = tokio::task::spawn_blocking(Template::new).await.unwrap();
    let write = |row: i64, data: &Path| {
        args(&[
            SHELL,
            &format!(".load {}", places::sqlite_extension().display()),
            &format!(".open 'file:v?vfs=graft&remote={URL}&data={}'", data.display()),
            &format!("insert into t values({row}, randomblob(300000));"),
            "select 'acknowledged';",
            "select * from graft_push;",
        ])
    };
    let total = ok(&template.store(), &write(ADDED, &template.data())).await.1;
    let (mut kills, mut told, first) = (0, 0, (1..=40).collect::<Vec<i64>>());
    for (at, held) in steps(total) {
        let (truth, data) = (template.store(), template.data());
        let Some(killed) = kill_at(&truth, &write(ADDED, &data), at, held).await else { continue };
        kills += 1;
        let what = format!("push killed with request {at} of {total}, {held:?} {}", killed.request);
        ok(&truth, &write(LATER, &data)).await;
        let (ids, _) = content(&truth, "v", &what).await;
        let more = ids.strip_prefix(&first[..]).unwrap_or_else(|| panic!("{what}: {ids:?}"));
        let acknowledged = killed.said.contains("acknowledged");
        told += u64::from(acknowledged);
        let expected: &[i64] = if acknowledged { &[KEPT, ADDED, LATER] } else { &[KEPT, LATER] };
        assert_eq!(more, expected, "{what}: it had said {:?}", killed.said);
        killed.arrive(&truth).await;
        assert!(content(&truth, "v", &what).await.0 == ids, "{what}, and arrived late: other rows");
    }
    println!("graft_push: {kills} kills at {total} requests, {told} of them after the commit");
    assert!(kills >= total.min(STEPS) && (2..kills).contains(&told), "{kills} kills, {told} acknowledged");
}

/// An operation that makes the volume `new` in a store that has `objects`: its name is there only with all
/// of it.
async fn makes_a_volume(objects: &[(String, Bytes)], what: &[&str], expected: &[i64]) {
    let what = args(what);
    let whole = store_of(objects);
    let total = ok(&whole, &what).await.1;
    let made_of = content(&whole, "new", "at first").await;
    assert_eq!(made_of.0, expected);
    let (mut kills, mut made) = (0, 0);
    for (at, held) in steps(total) {
        let truth = store_of(objects);
        let Some(killed) = kill_at(&truth, &what, at, held).await else { continue };
        kills += 1;
        let told = format!("{what:?} killed with request {at} of {total}, {held:?} {}", killed.request);
        if catalog::resolve(&*truth, &"new".parse().unwrap()).await.is_ok() {
            made += 1;
            let (again, _) = run(&truth, &what).await;
            let said = String::from_utf8_lossy(&again.stderr).into_owned();
            assert!(said.contains("`new` exists already"), "{told}: {said}");
        } else {
            ok(&truth, &what).await;
        }
        assert!(content(&truth, "new", &told).await == made_of, "{told}");
        killed.arrive(&truth).await;
        assert!(content(&truth, "new", &told).await == made_of, "{told}, and arrived late");
    }
    println!("{what:?}: {kills} kills at {total} requests, {made} after the name was there");
    assert!(kills >= total.min(STEPS) && (1..kills).contains(&made), "{kills} kills, {made} made");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_import_that_is_killed_at_any_step_is_whole_or_not_at_all() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("in.db");
    let source = Connection::open(&file).unwrap();
    source
        .execute_batch(
            "create table t(id integer primary key, v);
             insert into t values(1, randomblob(1000000)), (2, 'two')",
        )
        .unwrap();
    makes_a_volume(&[], &["import", file.to_str().unwrap(), "--volume", "new", "--json"], &[1, 2]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fork_that_is_killed_at_any_step_is_whole_or_not_at_all() {
    let template = tokio::task::spawn_blocking(Template::new).await.unwrap();
    let early: Vec<i64> = (1..=30).collect();
    makes_a_volume(&template.objects, &["volume", "fork", "new", "--from", "v", "--at", "30"], &early).await;
}

/// While its name is there, a volume that was to be removed is whole, whatever else is done to it. It can be
/// removed again, then and also when the name is gone: nothing is left of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removal_that_is_killed_at_any_step_leaves_the_volume_or_no_name() {
    let template = tokio::task::spawn_blocking(Template::new).await.unwrap();
    let remove = args(&["volume", "rm", "v"]);
    let total = ok(&template.store(), &remove).await.1;
    let before = content(&template.store(), "v", "at first").await;
    let (mut kills, mut whole) = (0, 0);
    // The name goes in the first few; then objects go, one like another.
    for (at, held) in (1..=total.min(14)).flat_map(|at| [(at, Held::Before), (at, Held::After)]) {
        let truth = template.store();
        let Some(killed) = kill_at(&truth, &remove, at, held).await else { continue };
        kills += 1;
        let told = format!("rm killed with request {at} of {total}, {held:?} {}", killed.request);
        if catalog::resolve(&*truth, &"v".parse().unwrap()).await.is_err() {
            ok(&truth, &remove).await;
            assert!(stored(&truth).is_empty(), "{told}, and again: {:?}", stored(&truth));
            continue;
        }
        whole += 1;
        assert!(content(&truth, "v", &told).await == before, "{told}: other rows");
        ok(&truth, &args(&["volume", "compact", "v", "--all"])).await;
        let now = ["volume", "gc", "v", "--keep-days", "0", "--keep-commits", "0", "--grace", "0"];
        drop(run(&truth, &args(&now)).await);
        drop(run(&truth, &args(&now)).await);
        assert!(content(&truth, "v", &told).await == before, "{told}, and collected: other rows");
        ok(&truth, &remove).await;
        assert!(stored(&truth).is_empty(), "{told}: {:?}", stored(&truth));
    }
    println!("rm: {kills} kills at {total} requests, {whole} before the name was gone");
    assert!(kills == 28 && (1..kills).contains(&whole), "{kills} kills, {whole} whole");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hydration_that_is_killed_at_any_step_goes_on() {
    let template = tokio::task::spawn_blocking(Template::new).await.unwrap();
    let hydrate = |data: &Path| args(&["volume", "hydrate", "v", "--json", "--data", data.to_str().unwrap()]);
    let before = template.store();
    let total = ok(&before, &hydrate(&template.data())).await.1;
    let mut kills = 0;
    for (at, held) in steps(total) {
        let (truth, data) = (template.store(), template.data());
        let Some(killed) = kill_at(&truth, &hydrate(&data), at, held).await else { continue };
        kills += 1;
        let told = format!("hydrate killed with request {at} of {total}, {held:?} {}", killed.request);
        ok(&truth, &hydrate(&data)).await;
        let said: serde_json::Value = serde_json::from_str(&ok(&truth, &hydrate(&data)).await.0).unwrap();
        assert_eq!(said["fetched"], 0, "{told}: {said}");
        assert!(stored(&truth) == stored(&before), "{told}: the store changed");
        // What was acknowledged in this directory is there still, beside what was fetched.
        let write = format!("insert into t values({LATER}, 'later')");
        ok(&truth, &args(&["sql", &write, "--write", "--volume", "v", "--data", data.to_str().unwrap()]))
            .await;
        let (ids, _) = content(&truth, "v", &told).await;
        assert_eq!(ids[40..], [KEPT, LATER], "{told}");
    }
    println!("hydrate: {kills} kills at {total} requests");
    assert!(kills >= total.min(STEPS), "{kills} kills at {total} requests");
}
