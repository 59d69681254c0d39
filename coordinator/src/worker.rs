//! The thread of one volume's actor.
//!
//! SQLite runs inside the actor, so it has a thread of its own. The thread takes what is at hand from
//! one bounded channel, lets the actor flush, and carries out its outputs: messages go to outboxes,
//! publications, pulls and waits to tokio, whose results come back through the same channel. So one
//! batch is published while the next fills.
//!
//! Invariants: the thread never waits for a socket; a message's outputs are in the outbox before its
//! [`Turn`] is given back, so that a reader that waits for turns sees how full the outbox is; a panic
//! ends this volume alone: its sessions are told `unavailable` and the next use opens it anew.

use std::any::Any;
use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use graft::checkpoint::{CheckpointError, Written};
use graft::publish::{Prepared, PublishError, Published};
use graft::pull::{PullError, Pulled};
use graft::remote::SharedRemote;
use graft::snapshot::Snapshot;
use graft::volume::Volume;
use graft::{CommitId, ModuleHash};
use rand::Rng as _;
use rand::rngs::StdRng;
use sqlsync_layer::actor::{Ask, AskError, Asked, Deployed, Input, Output, RequestId, SessionId, Standing};
use sqlsync_layer::protocol::{ClientId, ClientMessage, Known, Reason, codes};
use sqlsync_layer::vfs::IoFailure;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};

use crate::clock;
use crate::outbox::{Outbox, Pushed};
use crate::upkeep::Upkeep;

/// Work waiting for one volume; senders wait beyond it.
const WORK_MAX: usize = 1024;

/// Work taken before the actor flushes.
const TAKE_MAX: usize = 512;

/// A session's share of the thread, given back when its message was handled and answered.
pub(crate) type Turn = OwnedSemaphorePermit;

/// What a worker is asked to do.
#[derive(Debug)]
pub(crate) enum Work {
    Connect {
        session: SessionId,
        client: ClientId,
        /// What it says of itself.
        known: Known,
        outbox: Arc<Outbox>,
    },
    Receive {
        session: SessionId,
        message: ClientMessage,
        turn: Turn,
    },
    Disconnect {
        session: SessionId,
    },
    /// The outbox has room again.
    Relieved {
        session: SessionId,
    },
    Deploy {
        module: ModuleHash,
        reply: oneshot::Sender<Result<Deployed, Reason>>,
    },
    Ask {
        ask: Ask,
        reply: oneshot::Sender<Result<Asked, AskError>>,
    },
    Inspect {
        reply: oneshot::Sender<Standing>,
    },
    Published(Result<Published, PublishError>),
    Pulled(Result<Pulled, PullError>),
    Checkpointed(Result<Written, CheckpointError>),
    Woken,
    Reminded,
    /// Others may have committed.
    Look,
    /// Take no more mutations; answer when everything accepted is durable.
    Shutdown {
        drained: oneshot::Sender<()>,
    },
}

/// The actor as the worker drives it.
pub(crate) trait Machine {
    fn handle(&mut self, input: Input);
    fn flush(&mut self, now_ms: i64, id: CommitId);
    fn take_outputs(&mut self) -> Vec<Output>;
}

/// Makes the machine on its thread, and says what its publications and pulls go to.
pub(crate) type OpenMachine =
    Box<dyn FnOnce() -> Result<(Box<dyn Machine>, Box<dyn Storage>), IoFailure> + Send>;

/// What publications, pulls and checkpoints go to.
pub(crate) trait Storage {
    fn publish(&self, prepared: Arc<Prepared>) -> BoxFuture<'static, Result<Published, PublishError>>;
    fn pull(&self) -> BoxFuture<'static, Result<Pulled, PullError>>;
    fn checkpoint(
        &self,
        snapshot: Snapshot,
        state: Bytes,
    ) -> BoxFuture<'static, Result<Written, CheckpointError>>;
}

/// [`Storage`] of one volume in the object store.
pub(crate) struct RemoteStorage {
    pub(crate) remote: SharedRemote,
    pub(crate) volume: Arc<Volume>,
    pub(crate) upkeep: Arc<Upkeep>,
}

impl Storage for RemoteStorage {
    fn publish(&self, prepared: Arc<Prepared>) -> BoxFuture<'static, Result<Published, PublishError>> {
        let remote = self.remote.clone();
        Box::pin(async move { graft::publish::publish(&*remote, &prepared).await })
    }
    fn pull(&self) -> BoxFuture<'static, Result<Pulled, PullError>> {
        let (remote, volume) = (self.remote.clone(), self.volume.clone());
        Box::pin(async move { volume.pull(&*remote).await })
    }
    fn checkpoint(
        &self,
        snapshot: Snapshot,
        state: Bytes,
    ) -> BoxFuture<'static, Result<Written, CheckpointError>> {
        let (remote, volume) = (self.remote.clone(), self.volume.clone());
        let upkeep = self.upkeep.clone();
        Box::pin(async move {
            let written = graft::checkpoint::write(&*remote, &volume, &snapshot, state).await;
            if written.is_ok() {
                upkeep.after_checkpoint(snapshot.lsn());
            }
            written
        })
    }
}

/// Starts a worker and waits until its machine is open. The thread ends when the sender and its clones
/// are dropped. `look_every` is [`crate::Limits::look_every`].
pub(crate) async fn start(
    name: &str,
    look_every: Duration,
    open: OpenMachine,
) -> Result<mpsc::Sender<Work>, IoFailure> {
    let passing = |message: String| IoFailure { message, damaged: false };
    let (sender, receiver) = mpsc::channel(WORK_MAX);
    let (ready, opened) = oneshot::channel();
    let runtime = Handle::current();
    let (weak, volume) = (sender.downgrade(), name.to_owned());
    let thread = std::thread::Builder::new().name(format!("volume {name}")).spawn(move || {
        let _span = tracing::info_span!("volume", name = volume).entered();
        let (machine, storage) = match std::panic::catch_unwind(AssertUnwindSafe(open)) {
            Ok(Ok(opened)) => opened,
            Ok(Err(failure)) => return tell(ready, Err(failure)),
            Err(panic) => {
                let message = format!("it panicked while opening: {}", text(&*panic));
                return tell(ready, Err(passing(message)));
            }
        };
        tell(ready, Ok(()));
        let mut worker = Worker {
            machine,
            storage,
            runtime,
            receiver,
            sender: weak,
            rng: clock::rng(),
            sessions: HashMap::new(),
            deploys: HashMap::new(),
            asks: HashMap::new(),
            inspections: HashMap::new(),
            requests: 0,
            drained: Vec::new(),
            look_every,
            looks: false,
        };
        let ran = std::panic::catch_unwind(AssertUnwindSafe(|| worker.run()));
        if let Err(panic) = ran {
            tracing::error!(panic = text(&*panic), "the actor panicked; its sessions are closed");
            worker.abandon();
        }
        tracing::debug!("worker ended");
    });
    if let Err(error) = thread {
        return Err(passing(format!("no thread for it: {error}")));
    }
    match opened.await {
        Ok(Ok(())) => Ok(sender),
        Ok(Err(failure)) => Err(failure),
        Err(_) => Err(passing("its thread ended while opening".into())),
    }
}

struct Worker {
    machine: Box<dyn Machine>,
    storage: Box<dyn Storage>,
    runtime: Handle,
    receiver: mpsc::Receiver<Work>,
    /// Weak, so that the channel closes when everyone else has gone.
    sender: mpsc::WeakSender<Work>,
    rng: StdRng,
    sessions: HashMap<SessionId, Arc<Outbox>>,
    deploys: HashMap<RequestId, oneshot::Sender<Result<Deployed, Reason>>>,
    asks: HashMap<RequestId, oneshot::Sender<Result<Asked, AskError>>>,
    inspections: HashMap<RequestId, oneshot::Sender<Standing>>,
    requests: u64,
    drained: Vec<oneshot::Sender<()>>,
    look_every: Duration,
    /// A [`Work::Look`] is to come.
    looks: bool,
}

impl Worker {
    fn run(&mut self) {
        let mut turns = Vec::new();
        while let Some(work) = self.receiver.blocking_recv() {
            self.take(work, &mut turns);
            for _ in 1..TAKE_MAX {
                match self.receiver.try_recv() {
                    Ok(work) => self.take(work, &mut turns),
                    Err(mpsc::error::TryRecvError::Empty | mpsc::error::TryRecvError::Disconnected) => break,
                }
            }
            let id = CommitId(self.rng.random());
            self.machine.flush(clock::now_ms(), id);
            self.carry_out();
            turns.clear();
        }
    }

    fn take(&mut self, work: Work, turns: &mut Vec<Turn>) {
        let input = match work {
            Work::Connect { session, client, known, outbox } => {
                tracing::info!(session = session.0, %client, "connected");
                self.sessions.insert(session, outbox);
                self.look_later();
                Input::Connect { session, client, known }
            }
            Work::Receive { session, message, turn } => {
                turns.push(turn);
                Input::Receive { session, message, seed: self.rng.random(), now_ms: clock::now_ms() }
            }
            Work::Disconnect { session } => {
                if self.sessions.remove(&session).is_none() {
                    return;
                }
                tracing::info!(session = session.0, "disconnected");
                Input::Disconnect { session }
            }
            Work::Relieved { session } => {
                // Full again meanwhile: another one will follow.
                if self.sessions.get(&session).is_none_or(|outbox| outbox.is_congested()) {
                    return;
                }
                Input::Relieved { session }
            }
            Work::Deploy { module, reply } => {
                let request = self.next_request();
                self.deploys.insert(request, reply);
                Input::Deploy { request, module, now_ms: clock::now_ms(), seed: self.rng.random() }
            }
            Work::Ask { ask, reply } => {
                let request = self.next_request();
                self.asks.insert(request, reply);
                Input::Ask { request, ask }
            }
            Work::Inspect { reply } => {
                let request = self.next_request();
                self.inspections.insert(request, reply);
                Input::Inspect { request }
            }
            Work::Published(result) => Input::Published(result),
            Work::Pulled(result) => Input::Pulled(result),
            Work::Checkpointed(result) => Input::Checkpointed(result),
            Work::Woken => Input::Woken,
            Work::Reminded => Input::Reminded,
            Work::Look => {
                self.looks = false;
                self.look_later();
                Input::Look
            }
            Work::Shutdown { drained } => {
                self.drained.push(drained);
                Input::Shutdown
            }
        };
        self.machine.handle(input);
    }

    fn next_request(&mut self) -> RequestId {
        self.requests += 1;
        RequestId(self.requests)
    }

    /// Carries out outputs until there are none.
    fn carry_out(&mut self) {
        loop {
            let outputs = self.machine.take_outputs();
            if outputs.is_empty() {
                return;
            }
            for output in outputs {
                self.output(output);
            }
        }
    }

    fn output(&mut self, output: Output) {
        match output {
            Output::Send { session, message } => {
                let Some(outbox) = self.sessions.get(&session) else { return };
                match outbox.push(message) {
                    Pushed::Fits => {}
                    Pushed::Congested => self.machine.handle(Input::Congested { session }),
                    Pushed::Overflow => {
                        tracing::warn!(session = session.0, "gave up a client that does not read");
                        self.sessions.remove(&session);
                        self.machine.handle(Input::Disconnect { session });
                    }
                    // Its socket is gone; `Disconnect` is on its way.
                    Pushed::Closed => {}
                }
            }
            Output::Publish(prepared) => {
                let publishing = self.storage.publish(prepared);
                self.report(async { Work::Published(publishing.await) });
            }
            Output::Pull => {
                tracing::debug!("pulling");
                let pulling = self.storage.pull();
                self.report(async { Work::Pulled(pulling.await) });
            }
            Output::Checkpoint { snapshot, state } => {
                let writing = self.storage.checkpoint(snapshot, state);
                self.report(async { Work::Checkpointed(writing.await) });
            }
            Output::Wake { after_ms } => self.report(async move {
                tokio::time::sleep(Duration::from_millis(after_ms)).await;
                Work::Woken
            }),
            Output::Deployed { request, result } => {
                if let Some(reply) = self.deploys.remove(&request) {
                    tell(reply, result);
                }
            }
            Output::Asked { request, result } => {
                if let Some(reply) = self.asks.remove(&request) {
                    tell(reply, result);
                }
            }
            Output::Inspected { request, standing } => {
                if let Some(reply) = self.inspections.remove(&request) {
                    tell(reply, standing);
                }
            }
            Output::Remind { after_ms } => self.report(async move {
                tokio::time::sleep(Duration::from_millis(after_ms)).await;
                Work::Reminded
            }),
            Output::Drained => {
                for drained in self.drained.drain(..) {
                    tell(drained, ());
                }
            }
        }
    }

    /// While anybody is connected, the log is looked at now and then: direct writers tell nobody.
    fn look_later(&mut self) {
        if self.sessions.is_empty() || std::mem::replace(&mut self.looks, true) {
            return;
        }
        let after = self.look_every;
        self.report(async move {
            tokio::time::sleep(after).await;
            Work::Look
        });
    }

    /// Runs a task whose result is work for this worker, if it still runs then.
    fn report(&self, task: impl Future<Output = Work> + Send + 'static) {
        let sender = self.sender.clone();
        self.runtime.spawn(async move {
            let work = task.await;
            if let Some(sender) = sender.upgrade()
                && sender.send(work).await.is_err()
            {
                tracing::debug!("a result came after its worker ended");
            }
        });
    }

    /// After a panic: ends every session. Dropping the replies tells the others.
    fn abandon(&mut self) {
        let reason = Reason::new(codes::UNAVAILABLE, "the volume failed and is opened anew; connect again");
        for outbox in self.sessions.values() {
            outbox.close(Some(reason.clone()));
        }
    }
}

/// Answers somebody who may have stopped waiting.
fn tell<T>(reply: oneshot::Sender<T>, value: T) {
    if reply.send(value).is_err() {
        tracing::debug!("the caller stopped waiting");
    }
}

/// What a panic said.
fn text(panic: &(dyn Any + Send)) -> &str {
    let literal = panic.downcast_ref::<&str>().copied();
    literal.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("(no message)")
}

#[cfg(test)]
mod tests;
