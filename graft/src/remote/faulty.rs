//! A remote that fails on purpose, the same way for the same seed and the same order of requests.
//!
//! What a network and a store can do to a client is here: requests lost on the way, answers lost
//! on the way back, a write delivered twice at once or again much later, a write that lands long
//! after the client gave up, requests overtaken by others, reads that come back damaged or cut, a
//! store that cannot be reached. What a consistent store
//! never does is not here: a listing that is behind, a read that misses an acknowledged create.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;

use super::{Listed, Remote, RemoteError, Request, SharedRemote, Tag};

/// One way in which one request goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The request never reaches the store: `Unavailable`, no effect.
    FailBefore,
    /// The store acts, the answer is lost: `Unavailable`, with the effect.
    FailAfter,
    /// A write or delete reaches the store twice; the client hears the second answer: of a create
    /// `AlreadyExists`, of an update `Changed`.
    Duplicate,
    /// A write or delete fails with `Unavailable` and reaches the store when this many further
    /// requests have been made. A create or update may lose then, as any other; a put or a delete
    /// undoes what came between.
    Delay {
        /// Requests until it lands, at least 1.
        requests: u32,
    },
    /// A write or delete is served and answered as it should be, and reaches the store a second time
    /// when this many further requests have been made: what a proxy sent again. A create then meets
    /// its own object, or, where that was deleted meanwhile, makes it anew; a put undoes what came
    /// between.
    Echo {
        /// Requests until it lands again, at least 1.
        requests: u32,
    },
    /// The request reaches the store after whatever else runs has had this many turns, so that
    /// requests sent later overtake it. The rest is as it should be.
    Slow {
        /// Turns of the executor.
        turns: u32,
    },
    /// A read comes back with one bit flipped.
    Flip,
    /// A read comes back short: torn off on the way, and nobody noticed.
    Truncate,
}

impl Fault {
    /// Whether a request of this kind can go wrong in this way.
    pub fn fits(self, request: Request) -> bool {
        match self {
            Fault::FailBefore | Fault::FailAfter | Fault::Slow { .. } => true,
            Fault::Duplicate | Fault::Delay { .. } | Fault::Echo { .. } => match request {
                Request::Create | Request::Put | Request::Update | Request::Delete => true,
                Request::Get | Request::GetRange | Request::List => false,
            },
            Fault::Flip | Fault::Truncate => match request {
                Request::Get | Request::GetRange => true,
                Request::Create | Request::Put | Request::Update | Request::List | Request::Delete => false,
            },
        }
    }
}

/// How often each fault happens, as a probability for each request that it [fits](Fault::fits).
/// All 0 by default. At most one fault happens to a request: the first that is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Faults {
    /// [`Fault::FailBefore`]
    pub fail_before: f64,
    /// [`Fault::FailAfter`]
    pub fail_after: f64,
    /// [`Fault::Duplicate`]
    pub duplicate: f64,
    /// [`Fault::Delay`], of 1 to `delay_requests_max` requests
    pub delay: f64,
    /// The longest delay, also of an echo; 0 counts as 1.
    pub delay_requests_max: u32,
    /// [`Fault::Echo`], of 1 to `delay_requests_max` requests
    pub echo: f64,
    /// [`Fault::Slow`], of 1 to `slow_turns_max` turns
    pub slow: f64,
    /// The longest that a request is held up; 0 counts as 1.
    pub slow_turns_max: u32,
    /// [`Fault::Flip`]
    pub flip: f64,
    /// [`Fault::Truncate`]
    pub truncate: f64,
}

/// Wraps a remote and makes its requests fail.
#[derive(Debug)]
pub struct Faulty {
    inner: SharedRemote,
    plan: Mutex<Plan>,
}

#[derive(Debug)]
struct Plan {
    faults: Faults,
    random: SplitMix,
    unreachable: bool,
    scripted: VecDeque<(Request, Fault)>,
    /// What is on its way: requests still to wait, and what lands then.
    delayed: Vec<(u32, Write)>,
    injected: u64,
}

/// A request that changes something, to be sent once more or later.
#[derive(Debug, Clone)]
enum Write {
    Create(String, Bytes),
    Put(String, Bytes),
    Update(String, Bytes, Tag),
    Delete(String),
}

/// What a write answers: the new tag, of an update.
type Written = Result<Option<Tag>, RemoteError>;

impl Write {
    fn request(&self) -> Request {
        match self {
            Write::Create(..) => Request::Create,
            Write::Put(..) => Request::Put,
            Write::Update(..) => Request::Update,
            Write::Delete(_) => Request::Delete,
        }
    }

    fn key(&self) -> &str {
        match self {
            Write::Create(key, _) | Write::Put(key, _) | Write::Update(key, _, _) | Write::Delete(key) => key,
        }
    }

    async fn send(&self, remote: &dyn Remote) -> Written {
        match self.clone() {
            Write::Create(key, body) => remote.create(&key, body).await.map(|()| None),
            Write::Put(key, body) => remote.put(&key, body).await.map(|()| None),
            Write::Update(key, body, tag) => remote.update(&key, body, &tag).await.map(Some),
            Write::Delete(key) => remote.delete(&key).await.map(|()| None),
        }
    }
}

/// What befalls one request.
enum Fate {
    Unreachable,
    Served(Option<Fault>),
}

impl Faulty {
    /// Injects nothing until told to. Equal seeds, faults and orders of requests fail equally.
    pub fn new(inner: SharedRemote, seed: u64) -> Arc<Faulty> {
        Faulty::with_faults(inner, seed, Faults::default())
    }

    /// Injects `faults` from the start.
    pub fn with_faults(inner: SharedRemote, seed: u64, faults: Faults) -> Arc<Faulty> {
        let plan = Plan {
            faults,
            random: SplitMix(seed),
            unreachable: false,
            scripted: VecDeque::new(),
            delayed: Vec::new(),
            injected: 0,
        };
        Arc::new(Faulty { inner, plan: Mutex::new(plan) })
    }

    /// From now on these probabilities.
    pub fn set_faults(&self, faults: Faults) {
        self.plan.lock().faults = faults;
    }

    /// The next request of this kind goes wrong like this; further calls queue up behind it.
    ///
    /// # Panics
    ///
    /// If the fault does not [fit](Fault::fits): a mistake of the test.
    pub fn fail_next(&self, request: Request, fault: Fault) {
        assert!(fault.fits(request), "{fault:?} cannot happen to {request:?}");
        self.plan.lock().scripted.push_back((request, fault));
    }

    /// While `true`, every request fails without effect. Delayed writes still land.
    pub fn set_unreachable(&self, unreachable: bool) {
        self.plan.lock().unreachable = unreachable;
    }

    /// How many faults were injected so far, requests while unreachable not counted.
    pub fn injected(&self) -> u64 {
        self.plan.lock().injected
    }

    /// How many delayed writes have not landed yet.
    pub fn in_flight(&self) -> usize {
        self.plan.lock().delayed.len()
    }

    /// Lets every delayed write land now, in the order they were sent. Gives how many won.
    ///
    /// # Errors
    ///
    /// What the remote inside answers, other than `AlreadyExists` and `Changed`.
    pub async fn land_all(&self) -> Result<usize, RemoteError> {
        let delayed = std::mem::take(&mut self.plan.lock().delayed);
        self.land(delayed.into_iter().map(|(_, write)| write).collect()).await
    }

    async fn land(&self, due: Vec<Write>) -> Result<usize, RemoteError> {
        let mut won = 0;
        for write in due {
            match write.send(self.inner.as_ref()).await {
                Ok(_) => won += 1,
                Err(RemoteError::AlreadyExists { .. } | RemoteError::Changed { .. }) => {}
                Err(failed) => return Err(failed),
            }
        }
        Ok(won)
    }

    /// Counts a request, lets what is due land and decides what happens to it.
    async fn admit(&self, request: Request, key: &str) -> Result<Option<Fault>, RemoteError> {
        let (fate, due) = {
            let mut plan = self.plan.lock();
            let due = plan.due();
            (plan.draw(request), due)
        };
        self.land(due).await?;
        match fate {
            Fate::Unreachable => Err(RemoteError::unavailable(key, "injected: store unreachable")),
            Fate::Served(Some(Fault::FailBefore)) => {
                Err(RemoteError::unavailable(key, "injected: request lost"))
            }
            Fate::Served(Some(Fault::Slow { turns })) => {
                wait(turns).await;
                Ok(None)
            }
            Fate::Served(fault) => Ok(fault),
        }
    }

    /// Sends what changes something, as its fate will have it.
    async fn write(&self, write: Write) -> Written {
        let fault = self.admit(write.request(), write.key()).await?;
        let inner = self.inner.as_ref();
        match fault {
            Some(Fault::FailAfter) => {
                // Whatever it was, the client never hears it.
                let _unheard = write.send(inner).await;
                Err(answer_lost(write.key()))
            }
            Some(Fault::Duplicate) => {
                write.send(inner).await?;
                write.send(inner).await
            }
            Some(Fault::Delay { requests }) => {
                let error = RemoteError::unavailable(write.key(), "injected: timed out, still in flight");
                self.plan.lock().delayed.push((requests.max(1), write));
                Err(error)
            }
            Some(Fault::Echo { requests }) => {
                let answer = write.send(inner).await;
                self.plan.lock().delayed.push((requests.max(1), write));
                answer
            }
            None | Some(Fault::FailBefore | Fault::Slow { .. } | Fault::Flip | Fault::Truncate) => {
                write.send(inner).await
            }
        }
    }

    fn damage(&self, key: &str, body: Bytes, fault: Option<Fault>) -> Result<Bytes, RemoteError> {
        match fault {
            None => Ok(body),
            Some(Fault::Flip) if body.is_empty() => Ok(body),
            Some(Fault::Flip) => {
                let bit = self.plan.lock().random.below(body.len() as u64 * 8) as usize;
                let mut body = body.to_vec();
                body[bit / 8] ^= 1 << (bit % 8);
                Ok(body.into())
            }
            Some(Fault::Truncate) => {
                let keep = self.plan.lock().random.below(body.len().max(1) as u64) as usize;
                Ok(body.slice(..keep))
            }
            Some(
                Fault::FailBefore
                | Fault::FailAfter
                | Fault::Duplicate
                | Fault::Delay { .. }
                | Fault::Echo { .. }
                | Fault::Slow { .. },
            ) => Err(answer_lost(key)),
        }
    }
}

impl Plan {
    /// Takes the delayed writes that land before this request.
    fn due(&mut self) -> Vec<Write> {
        for (wait, _) in &mut self.delayed {
            *wait = wait.saturating_sub(1);
        }
        self.delayed.extract_if(.., |(wait, _)| *wait == 0).map(|(_, write)| write).collect()
    }

    fn draw(&mut self, request: Request) -> Fate {
        if self.unreachable {
            return Fate::Unreachable;
        }
        if let Some(at) = self.scripted.iter().position(|(kind, _)| *kind == request) {
            let fault = self.scripted.remove(at).map(|(_, fault)| fault);
            self.injected += 1;
            return Fate::Served(fault);
        }
        let faults = self.faults;
        let odds = [
            (faults.fail_before, Fault::FailBefore),
            (faults.fail_after, Fault::FailAfter),
            (faults.duplicate, Fault::Duplicate),
            (faults.delay, Fault::Delay { requests: faults.delay_requests_max.max(1) }),
            (faults.flip, Fault::Flip),
            (faults.truncate, Fault::Truncate),
            (faults.echo, Fault::Echo { requests: faults.delay_requests_max.max(1) }),
            (faults.slow, Fault::Slow { turns: faults.slow_turns_max.max(1) }),
        ];
        for (probability, fault) in odds {
            if fault.fits(request) && probability > 0.0 && self.random.unit() < probability {
                self.injected += 1;
                return Fate::Served(Some(match fault {
                    Fault::Delay { requests } => {
                        Fault::Delay { requests: 1 + self.random.below(u64::from(requests)) as u32 }
                    }
                    Fault::Echo { requests } => {
                        Fault::Echo { requests: 1 + self.random.below(u64::from(requests)) as u32 }
                    }
                    Fault::Slow { turns } => {
                        Fault::Slow { turns: 1 + self.random.below(u64::from(turns)) as u32 }
                    }
                    other => other,
                }));
            }
        }
        Fate::Served(None)
    }
}

/// Ready after this many polls: whatever else the executor has is polled between.
async fn wait(turns: u32) {
    let mut left = turns;
    std::future::poll_fn(|context| {
        if left == 0 {
            return std::task::Poll::Ready(());
        }
        left -= 1;
        context.waker().wake_by_ref();
        std::task::Poll::Pending
    })
    .await;
}

fn answer_lost(key: &str) -> RemoteError {
    RemoteError::unavailable(key, "injected: answer lost")
}

#[async_trait]
impl Remote for Faulty {
    async fn get(&self, key: &str) -> Result<Bytes, RemoteError> {
        let fault = self.admit(Request::Get, key).await?;
        let body = self.inner.get(key).await?;
        self.damage(key, body, fault)
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, RemoteError> {
        let fault = self.admit(Request::GetRange, key).await?;
        let body = self.inner.get_range(key, range).await?;
        self.damage(key, body, fault)
    }

    async fn create(&self, key: &str, body: Bytes) -> Result<(), RemoteError> {
        self.write(Write::Create(key.into(), body)).await.map(drop)
    }

    async fn put(&self, key: &str, body: Bytes) -> Result<(), RemoteError> {
        self.write(Write::Put(key.into(), body)).await.map(drop)
    }

    async fn get_tagged(&self, key: &str) -> Result<(Bytes, Tag), RemoteError> {
        let fault = self.admit(Request::Get, key).await?;
        let (body, tag) = self.inner.get_tagged(key).await?;
        Ok((self.damage(key, body, fault)?, tag))
    }

    async fn update(&self, key: &str, body: Bytes, tag: &Tag) -> Result<Tag, RemoteError> {
        let written = self.write(Write::Update(key.into(), body, tag.clone())).await?;
        written.ok_or_else(|| RemoteError::unavailable(key, "an update without a tag"))
    }

    async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Listed>, RemoteError> {
        let fault = self.admit(Request::List, prefix).await?;
        let rows = self.inner.list(prefix, after, limit).await?;
        if fault.is_some() { Err(answer_lost(prefix)) } else { Ok(rows) }
    }

    async fn delete(&self, key: &str) -> Result<(), RemoteError> {
        self.write(Write::Delete(key.into())).await.map(drop)
    }

    fn url(&self) -> String {
        self.inner.url()
    }

    fn place(&self) -> String {
        self.inner.place()
    }
}

/// Steele, Lea and Flood's SplitMix64 (OOPSLA 2014): small, and the same on every platform.
#[derive(Debug)]
struct SplitMix(u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// From 0 up to, not including, 1.
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// From 0 up to, not including, `end`, which is not 0.
    fn below(&mut self, end: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(end)) >> 64) as u64
    }
}

#[cfg(test)]
mod tests;
