use std::sync::Mutex;

use graft::Lsn;
use sqlsync_layer::actor::Outgoing;
use sqlsync_layer::protocol::{At, Known, ServerMessage};
use tokio::sync::Semaphore;

use super::*;
use crate::outbox::Popped;

/// What a machine was given, in order.
type Seen = Arc<Mutex<Vec<String>>>;

/// A machine that answers pings, floods on query 1 and panics on query 2.
struct Fake {
    seen: Seen,
    outputs: Vec<Output>,
}

impl Machine for Fake {
    fn handle(&mut self, input: Input) {
        self.seen.lock().unwrap().push(kind(&input).into());
        match input {
            Input::Receive { session, message: ClientMessage::Ping { n }, .. } => {
                let message = Outgoing::Message(ServerMessage::Pong { n });
                self.outputs.push(Output::Send { session, message });
            }
            Input::Receive { session, message: ClientMessage::Query { id: 1, .. }, .. } => {
                let at = At { epoch: 0, lsn: Lsn(1), seq: 0 };
                let body = Arc::from(format!(r#""x":"{}""#, "x".repeat(600)));
                let message = Outgoing::Shared { kind: "snapshot", sub: 1, at, body };
                self.outputs.push(Output::Send { session, message });
            }
            Input::Receive { message: ClientMessage::Query { .. }, .. } => panic!("asked to"),
            Input::Deploy { request, .. } => {
                let result = Err(Reason::new("sql", "migration 1 failed"));
                self.outputs.push(Output::Deployed { request, result });
            }
            Input::Woken => self.outputs.push(Output::Drained),
            Input::Shutdown => self.outputs.push(Output::Wake { after_ms: 1 }),
            Input::Connect { .. }
            | Input::Receive { .. }
            | Input::Disconnect { .. }
            | Input::Congested { .. }
            | Input::Relieved { .. }
            | Input::Ask { .. }
            | Input::Inspect { .. }
            | Input::Reminded
            | Input::Look
            | Input::Published(_)
            | Input::Pulled(_)
            | Input::Checkpointed(_) => {}
        }
    }
    fn flush(&mut self, now_ms: i64, _id: CommitId) {
        assert!(now_ms > 0);
    }
    fn take_outputs(&mut self) -> Vec<Output> {
        std::mem::take(&mut self.outputs)
    }
}

fn kind(input: &Input) -> &'static str {
    match input {
        Input::Connect { .. } => "connect",
        Input::Receive { .. } => "receive",
        Input::Disconnect { .. } => "disconnect",
        Input::Congested { .. } => "congested",
        Input::Relieved { .. } => "relieved",
        Input::Deploy { .. } => "deploy",
        Input::Published(_) => "published",
        Input::Pulled(_) => "pulled",
        Input::Checkpointed(_) => "checkpointed",
        Input::Ask { .. } => "ask",
        Input::Inspect { .. } => "inspect",
        Input::Reminded => "reminded",
        Input::Look => "look",
        Input::Woken => "woken",
        Input::Shutdown => "shutdown",
    }
}

struct NoStorage;
impl Storage for NoStorage {
    fn publish(&self, _: Arc<Prepared>) -> BoxFuture<'static, Result<Published, PublishError>> {
        unreachable!("the fake publishes nothing")
    }
    fn pull(&self) -> BoxFuture<'static, Result<Pulled, PullError>> {
        unreachable!("the fake pulls nothing")
    }
    fn checkpoint(&self, _: Snapshot, _: Bytes) -> BoxFuture<'static, Result<Written, CheckpointError>> {
        unreachable!("the fake writes no checkpoints")
    }
}

struct Rig {
    worker: mpsc::Sender<Work>,
    outbox: Arc<Outbox>,
    seen: Seen,
    turns: Arc<Semaphore>,
}

const SESSION: SessionId = SessionId(1);

impl Rig {
    async fn new(bytes_soft: usize, bytes_max: usize) -> Rig {
        let seen = Seen::default();
        let fake = Fake { seen: seen.clone(), outputs: Vec::new() };
        let worker =
            start("t", Duration::MAX, Box::new(|| Ok((Box::new(fake), Box::new(NoStorage))))).await.unwrap();
        let outbox = Arc::new(Outbox::new(bytes_soft, bytes_max));
        let client = ClientId::new("c").unwrap();
        let rig = Rig { worker, outbox, seen, turns: Arc::new(Semaphore::new(1)) };
        let outbox = rig.outbox.clone();
        rig.worker
            .send(Work::Connect { session: SESSION, client, known: Known::NOTHING, outbox })
            .await
            .unwrap();
        rig
    }
    /// Sends a message and waits until it was handled and its answers queued.
    async fn receive(&self, message: ClientMessage) {
        let turn = self.turns.clone().acquire_owned().await.unwrap();
        self.worker.send(Work::Receive { session: SESSION, message, turn }).await.unwrap();
        drop(self.turns.acquire().await.unwrap());
    }
    async fn frame(&self) -> (String, bool) {
        match self.outbox.pop().await {
            Popped::Frame { text, relieved } => (text, relieved),
            Popped::Close(reason) => panic!("closed: {reason:?}"),
        }
    }
    fn seen(&self) -> Vec<String> {
        self.seen.lock().unwrap().clone()
    }
}

fn query(id: u64) -> ClientMessage {
    ClientMessage::Query { id, sql: "SELECT 1".into(), params: Default::default() }
}

#[tokio::test]
async fn answers_reach_the_outbox_before_the_turn_is_given_back() {
    let rig = Rig::new(10_000, 100_000).await;
    rig.receive(ClientMessage::Ping { n: 7 }).await;
    // No waiting here: what `receive` waited for is enough.
    assert_eq!(futures::FutureExt::now_or_never(rig.frame()).unwrap().0, r#"{"type":"pong","n":7}"#);
}

#[tokio::test]
async fn a_full_outbox_is_told_to_the_machine_and_so_is_its_relief() {
    let rig = Rig::new(1000, 10_000).await;
    rig.receive(query(1)).await;
    assert!(!rig.outbox.is_congested());
    rig.receive(query(1)).await;
    assert!(rig.outbox.is_congested());
    assert_eq!(rig.seen(), ["connect", "receive", "receive", "congested"]);
    // A relief that is out of date is not passed on.
    rig.worker.send(Work::Relieved { session: SESSION }).await.unwrap();
    let (reply, deployed) = oneshot::channel();
    rig.worker.send(Work::Deploy { module: ModuleHash([1; 32]), reply }).await.unwrap();
    deployed.await.unwrap().unwrap_err();
    let (_, relieved) = rig.frame().await;
    assert!(!relieved);
    let (_, relieved) = rig.frame().await;
    assert!(relieved);
    rig.worker.send(Work::Relieved { session: SESSION }).await.unwrap();
    rig.receive(ClientMessage::Ping { n: 1 }).await;
    assert_eq!(rig.seen()[4..], ["deploy", "relieved", "receive"]);
}

#[tokio::test]
async fn a_client_that_overflows_is_disconnected() {
    let rig = Rig::new(1000, 1500).await;
    rig.receive(query(1)).await;
    rig.receive(query(1)).await;
    rig.receive(query(1)).await;
    assert!(rig.seen().contains(&"disconnect".to_owned()));
    assert!(matches!(rig.outbox.pop().await, Popped::Close(Some(reason)) if reason.code == codes::LIMIT));
    // Its own disconnect, which follows, is not told twice.
    rig.worker.send(Work::Disconnect { session: SESSION }).await.unwrap();
    rig.receive(ClientMessage::Ping { n: 1 }).await;
    assert_eq!(rig.seen().iter().filter(|seen| *seen == "disconnect").count(), 1);
}

#[tokio::test]
async fn deploys_and_shutdowns_are_answered() {
    let rig = Rig::new(1000, 10_000).await;
    let (reply, deployed) = oneshot::channel();
    rig.worker.send(Work::Deploy { module: ModuleHash([1; 32]), reply }).await.unwrap();
    assert_eq!(deployed.await.unwrap().unwrap_err().code, "sql");
    let (drained, waiting) = oneshot::channel();
    rig.worker.send(Work::Shutdown { drained }).await.unwrap();
    waiting.await.unwrap();
    assert_eq!(rig.seen()[1..], ["deploy", "shutdown", "woken"]);
}

/// The process and every other volume go on; this volume's clients are told to come again.
#[tokio::test]
async fn a_panic_closes_the_sessions_and_the_channel() {
    let rig = Rig::new(1000, 10_000).await;
    rig.receive(query(2)).await;
    assert!(
        matches!(rig.outbox.pop().await, Popped::Close(Some(reason)) if reason.code == codes::UNAVAILABLE)
    );
    rig.worker.closed().await;
}

#[tokio::test]
async fn a_machine_that_does_not_open_is_an_error() {
    let failure = IoFailure { message: "page 7".into(), damaged: true };
    let told = failure.clone();
    let refused = start("t", Duration::MAX, Box::new(move || Err(told))).await.unwrap_err();
    assert_eq!(refused, failure);
    let panicked = start("t", Duration::MAX, Box::new(|| panic!("no %s"))).await.unwrap_err();
    assert!(panicked.message.contains("no %s") && !panicked.damaged, "{panicked}");
}

/// Nothing keeps the thread alive once its users have gone.
#[tokio::test]
async fn the_thread_ends_with_its_last_user() {
    let rig = Rig::new(1000, 10_000).await;
    let weak = Arc::downgrade(&rig.seen);
    let (drained, waiting) = oneshot::channel();
    rig.worker.send(Work::Shutdown { drained }).await.unwrap();
    waiting.await.unwrap();
    let outbox = Arc::downgrade(&rig.outbox);
    let worker = rig.worker.downgrade();
    drop(rig);
    while weak.upgrade().is_some() || outbox.upgrade().is_some() {
        tokio::task::yield_now().await;
    }
    assert!(worker.upgrade().is_none());
}
