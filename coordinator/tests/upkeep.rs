//! Compaction and garbage collection under load: nobody who writes or reads notices, and a kill -9 in
//! the middle costs nothing that was acknowledged.

mod common;

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use common::*;
use coordinator::Config;
use graft::compact::Policy;
use graft::gc::Retention;
use graft::ids::key;
use graft::remote::{DirectoryRemote, Layer, Remote, RemoteError, SharedRemote};
use graft::{VolumeId, VolumeName, catalog, verify};
use sqlsync_layer::protocol::ServerMessage;

/// Names the store's folder to the process that is killed.
const CHILD: &str = "GRAFT_TEST_UPKEEP_STORE";
/// Mutations by which both must have happened.
const MUTATIONS_MAX: usize = 3000;

/// Everything is due at every checkpoint, and there is one every eighth commit.
fn eager(config: &mut Config) {
    config.limits.actor.checkpoint.commits = 8;
    let upkeep = &mut config.limits.upkeep;
    upkeep.compact = Some(Policy { pages: 1, commits: 1, percent: 0, every: 1 });
    upkeep.gc_every = Some(Duration::from_millis(1));
    upkeep.retention = Retention { keep_ms: 0, keep_commits: 4, grace_ms: 0 };
}

async fn id_of(store: &SharedRemote) -> VolumeId {
    let name: VolumeName = "todo".parse().unwrap();
    catalog::resolve(&**store, &name).await.unwrap()
}

/// Whether the volume was compacted, and a floor published.
async fn was_kept_up(store: &SharedRemote, id: VolumeId) -> bool {
    let floors = store.list(&key::horizon_prefix(id), None, 1).await.unwrap();
    let segments = store.list(&key::segments_prefix(id), None, 1000).await.unwrap();
    let compacted = |key: &str| key.rsplit('/').next().is_some_and(|name| name.starts_with('c'));
    !floors.is_empty() && segments.iter().any(|row| compacted(&row.key))
}

async fn is_sound(store: &SharedRemote) {
    let report = verify::verify(&**store, id_of(store).await, &|_| {}).await.unwrap();
    assert!(report.is_sound(), "{:?}", report.findings);
}

async fn count(running: &coordinator::Running) -> i64 {
    let sql = br#"{"sql":"SELECT count(*) AS n FROM tasks"}"#;
    let (status, body) = post(running, "/v1/volumes/todo/query", sql).await;
    assert_eq!(status, 200, "{body}");
    body["rows"][0][0].as_i64().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_is_compacted_and_collected_while_it_is_used() {
    let store = memory();
    let running = start_todo(store.clone(), eager).await;
    let id = id_of(&store).await;
    let mut reader = Raw::connect(&running, "reader").await;
    reader.send(r#"{"type":"subscribe","sub":1,"sql":"SELECT id, title FROM tasks ORDER BY id"}"#).await;
    // Reads every message until the last task is in one of them.
    let reading = tokio::spawn(async move {
        loop {
            let message = reader.receive().await;
            assert!(!matches!(message, ServerMessage::Error { .. }), "{message:?}");
            if format!("{message:?}").contains("the last one") {
                return;
            }
        }
    });
    let writer = client(&running).await;
    let mut written = 0;
    loop {
        add(&writer, &format!("t{written}"), "one").await;
        written += 1;
        // Twenty more, on what upkeep left.
        if written >= 40 && written % 20 == 0 && was_kept_up(&store, id).await {
            break;
        }
        assert!(written < MUTATIONS_MAX, "after {written} mutations there was no upkeep");
    }
    for i in 0..20 {
        add(&writer, &format!("u{i}"), "two").await;
    }
    add(&writer, "v", "the last one").await;
    tokio::time::timeout(Duration::from_secs(60), reading).await.expect("the subscriber starves").unwrap();
    assert_eq!(count(&running).await, written as i64 + 21);
    writer.close().await;
    assert!(running.shutdown().await);
    is_sound(&store).await;
    // From nowhere, too.
    let running = start(store.clone()).await;
    assert_eq!(count(&running).await, written as i64 + 21);
    running.shutdown().await;
}

/// A store that says when a commit was buried, and how often a floor was published.
#[derive(Debug)]
struct Watched {
    inner: SharedRemote,
    volume_log: std::sync::OnceLock<String>,
    buried: tokio::sync::Notify,
    floors: AtomicUsize,
}

#[async_trait::async_trait]
impl Layer for Watched {
    fn inner(&self) -> &dyn Remote {
        &*self.inner
    }
    async fn create(&self, key: &str, body: Bytes) -> Result<(), RemoteError> {
        if key.contains("/horizon/") {
            self.floors.fetch_add(1, Ordering::Relaxed);
        }
        self.inner.create(key, body).await
    }
    async fn put(&self, key: &str, body: Bytes) -> Result<(), RemoteError> {
        self.inner.put(key, body).await?;
        if self.volume_log.get().is_some_and(|log| key.starts_with(log)) {
            self.buried.notify_one();
        }
        Ok(())
    }
}

/// What is announced just before a volume goes idle was deleted at its next checkpoint, which never came.
#[tokio::test(flavor = "multi_thread")]
async fn an_idle_volume_is_swept_after_the_grace() {
    const GRACE: Duration = Duration::from_millis(300);
    let folder = tempfile::tempdir().unwrap();
    // Its stamps are of a clock that goes.
    let inner: SharedRemote = Arc::new(DirectoryRemote::open(folder.path()).unwrap());
    let watched = Arc::new(Watched {
        inner,
        volume_log: Default::default(),
        buried: Default::default(),
        floors: Default::default(),
    });
    let store: SharedRemote = watched.clone();
    let rarely = |config: &mut Config| {
        eager(config);
        config.limits.upkeep.compact = None;
        config.limits.upkeep.gc_every = None;
    };
    let running = start_todo(store.clone(), rarely).await;
    let id = id_of(&store).await;
    watched.volume_log.set(key::log_prefix(id)).unwrap();
    let writer = client(&running).await;
    for i in 0..20 {
        add(&writer, &format!("t{i}"), "one").await;
    }
    writer.close().await;
    assert!(running.shutdown().await);
    // It collects once, at its first checkpoint, and then no more for a day.
    let running = start_with(store.clone(), |config| {
        rarely(config);
        config.limits.upkeep.gc_every = Some(Duration::from_secs(86_400));
        config.limits.upkeep.retention.grace_ms = GRACE.as_millis() as i64;
        config.limits.volume_idle = Duration::from_millis(50);
    })
    .await;
    let writer = client(&running).await;
    let begun = tokio::time::Instant::now();
    for i in 0..9 {
        add(&writer, &format!("u{i}"), "two").await;
    }
    writer.close().await;
    let buried = tokio::time::timeout(Duration::from_secs(60), watched.buried.notified()).await;
    buried.expect("nobody came back for what was announced");
    assert!(begun.elapsed() >= GRACE, "it was announced for as long as the grace");
    // The sweep has given up nothing more, for which another one would have to come, and so on for ever.
    assert_eq!(watched.floors.load(Ordering::Relaxed), 1);
    assert_eq!(count(&running).await, 29);
    running.shutdown().await;
    is_sound(&store).await;
}

/// Not a test by itself: the process that the next one kills.
#[tokio::test(flavor = "multi_thread")]
async fn child_that_is_killed() {
    let Some(folder) = std::env::var_os(CHILD) else { return };
    let store: SharedRemote = Arc::new(DirectoryRemote::open(folder.as_ref()).unwrap());
    let running = start_todo(store, eager).await;
    let writer = client(&running).await;
    for i in 0..MUTATIONS_MAX {
        add(&writer, &format!("t{i}"), "one").await;
        let mut out = std::io::stderr().lock();
        writeln!(out, "durable {i}").and_then(|()| out.flush()).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_in_the_middle_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let store: SharedRemote = Arc::new(DirectoryRemote::open(folder.path()).unwrap());
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["child_that_is_killed", "--exact", "--nocapture"])
        .env(CHILD, folder.path())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let mut durable = 0;
    for line in lines.by_ref() {
        if let Some(n) = line.unwrap().strip_prefix("durable ") {
            durable = n.parse::<i64>().unwrap() + 1;
            // At every eighth something is under way; where exactly is left to chance.
            if durable >= 40 && was_kept_up(&store, id_of(&store).await).await {
                break;
            }
        }
    }
    child.kill().unwrap();
    let status = child.wait().unwrap();
    assert_eq!(status.code(), None, "it ended before it was killed, after {durable} mutations: {status}");
    for line in lines {
        if let Some(n) = line.unwrap().strip_prefix("durable ") {
            durable = n.parse::<i64>().unwrap() + 1;
        }
    }
    is_sound(&store).await;
    let running = start_with(store.clone(), eager).await;
    let found = count(&running).await;
    assert!(found == durable || found == durable + 1, "{found} of {durable}");
    running.shutdown().await;
    is_sound(&store).await;
}
