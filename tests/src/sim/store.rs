//! The object store in virtual time: requests take time, fail, land late, and come back damaged.
//!
//! A request is drawn its fate when it is first polled. The world then lets it *land* (take effect on
//! the [`MemoryRemote`]) and be *answered*, at times of their own and in either order; the future
//! is ready after the answer. A future that is dropped takes nothing back: what it sent may still land.
//!
//! Beside the objects there is an *archive*: every log entry and checkpoint that ever landed, as it was. Garbage
//! collection deletes what the oracle wants to read.
//!
//! What a consistent store never does is not here, but for the plants: a listing that is behind, a
//! read that misses an acknowledged create.
//!
//! SQLite fetches pages in the middle of a statement, where nothing can wait: [`Handle::at_once`]
//! is the same store without time, and with its failures.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::future::poll_fn;
use std::ops::Range;
use std::sync::Arc;
use std::task::{Poll, Waker};

use async_trait::async_trait;
use bytes::Bytes;
use futures::FutureExt as _;
use graft::fetch::{Fetch, FetchError, fetch};
use graft::format::tombstone::Tombstone;
use graft::remote::{Listed, MemoryRemote, Remote, RemoteError, Tag};
use graft::volume::Volume;
use graft::{PageSet, snapshot::Snapshot};
use parking_lot::Mutex;

use super::plant::Plant;
use super::random::Random;

/// Who asks.
pub type Asker = usize;

/// From here on askers may *stall*: their process stands still before a request is sent, or before its
/// answer is heard, for longer than garbage collection waits.
pub const STALLING: Asker = 1000;

/// From here on askers are collectors of garbage.
pub const COLLECTORS: Asker = 3000;

/// To these askers no read comes back damaged: they look for damage.
pub const VERIFIERS: std::ops::Range<Asker> = 2500..3000;

/// A request, numbered.
pub type RequestId = u64;

/// How often what goes wrong, as probabilities for each request.
#[derive(Debug, Clone, Copy, Default)]
pub struct Weather {
    /// Fails without effect.
    pub fail_before: f64,
    /// Takes effect; the answer is lost.
    pub fail_after: f64,
    /// A create, put, update or delete that is given up and lands up to half a minute later.
    pub late: f64,
    /// A create, put, update or delete that arrives twice; the second answer is heard.
    pub duplicate: f64,
    /// Takes seconds.
    pub slow: f64,
    /// A read comes back with one bit flipped.
    pub flip: f64,
    /// A page fetch inside SQLite fails.
    pub fetch: f64,
    /// An asker that may stall does, for up to a quarter of a minute.
    pub stall: f64,
}

/// What the store asks the world to bring about.
#[derive(Debug, Clone, Copy)]
pub enum StoreEvent {
    /// The request takes effect.
    Land(RequestId),
    /// The request is answered.
    Answer(RequestId),
    /// A planted loss.
    Lose(RequestId),
}

#[derive(Debug, Clone)]
enum Request {
    Get(String),
    GetRange(String, Range<u64>),
    Create(String, Bytes),
    Put(String, Bytes),
    GetTagged(String),
    Update(String, Bytes, Tag),
    List(String, Option<String>, usize),
    Delete(String),
    /// Not a request at all: a timer for code that runs as a future.
    Sleep(u64),
}

#[derive(Debug, Clone)]
enum Reply {
    Body(Bytes),
    Tagged(Bytes, Tag),
    Rows(Vec<Listed>),
    Done,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Fate {
    Served,
    FailBefore,
    FailAfter,
    Late,
    Duplicate,
    Flip,
}

#[derive(Debug)]
struct InFlight {
    /// Who waits for the answer.
    asker: Asker,
    /// Who sent it.
    sender: Asker,
    request: Request,
    fate: Fate,
    /// Landings to come.
    landings: u32,
    /// Landings to pass over, because they were put off.
    skip: u32,
    effect: Option<Result<Reply, RemoteError>>,
    answered: bool,
    waker: Option<Waker>,
}

#[derive(Debug)]
struct State {
    random: Random,
    weather: Weather,
    unreachable: BTreeSet<Asker>,
    now_ms: u64,
    /// Whose last request was to create a segment.
    uploaded: BTreeMap<Asker, bool>,
    next: RequestId,
    requests: BTreeMap<RequestId, InFlight>,
    schedule: Vec<(u64, StoreEvent)>,
    faults: u64,
    lost: u64,
    stalls: u64,
    /// See the module.
    archive: BTreeMap<String, Bytes>,
    /// Keys that a create was given up for and landed later.
    late: BTreeSet<String>,
    plant: Option<Plant>,
}

/// The store, as the world sees it.
#[derive(Debug, Clone)]
pub struct Bucket {
    objects: Arc<MemoryRemote>,
    state: Arc<Mutex<State>>,
}

impl Bucket {
    /// An empty store.
    pub fn new(random: Random, plant: Option<Plant>) -> Bucket {
        let state = State {
            random,
            weather: Weather::default(),
            unreachable: BTreeSet::new(),
            now_ms: 0,
            uploaded: BTreeMap::new(),
            next: 0,
            requests: BTreeMap::new(),
            schedule: Vec::new(),
            faults: 0,
            lost: 0,
            stalls: 0,
            archive: BTreeMap::new(),
            late: BTreeSet::new(),
            plant,
        };
        Bucket { objects: Arc::default(), state: Arc::new(Mutex::new(state)) }
    }

    /// What is really stored, without time and faults.
    pub fn objects(&self) -> Arc<MemoryRemote> {
        self.objects.clone()
    }

    /// The store as `asker` sees it.
    pub fn handle(&self, asker: Asker) -> Handle {
        Handle { bucket: self.clone(), asker, at_once: false }
    }

    /// From now on this weather.
    pub fn set_weather(&self, weather: Weather) {
        self.state.lock().weather = weather;
    }

    /// Cuts one asker off, or lets it through again.
    pub fn set_unreachable(&self, asker: Asker, unreachable: bool) {
        let mut state = self.state.lock();
        if unreachable {
            state.unreachable.insert(asker)
        } else {
            state.unreachable.remove(&asker)
        };
    }

    /// The time that has passed, in milliseconds.
    pub fn set_now_ms(&self, now_ms: u64) {
        self.state.lock().now_ms = now_ms;
    }

    /// Faults injected so far.
    pub fn faults(&self) -> u64 {
        self.state.lock().faults
    }

    /// How often an asker stalled so far.
    pub fn stalls(&self) -> u64 {
        self.state.lock().stalls
    }

    /// Keeps the log entries and checkpoints that are stored now; those that land later are kept as they do.
    pub fn archive_all(&self) {
        let objects = self.objects.objects().into_iter();
        let mut state = self.state.lock();
        for (key, body) in objects.filter(|(key, body)| is_kept(key) && !Tombstone::is_one(body)) {
            state.archive.entry(key).or_insert(body);
        }
    }

    /// Every log entry and checkpoint that ever landed, as it was at first.
    pub fn archive(&self) -> BTreeMap<String, Bytes> {
        self.state.lock().archive.clone()
    }

    /// Whether a create of `key` landed after it was given up, maybe after the object was deleted.
    pub fn created_late(&self, key: &str) -> bool {
        self.state.lock().late.contains(key)
    }

    /// A log entry that ever landed.
    pub fn archived(&self, key: &str) -> Option<Bytes> {
        self.state.lock().archive.get(key).cloned()
    }

    /// Whether no request is under way.
    pub fn is_quiet(&self) -> bool {
        let state = self.state.lock();
        state.requests.is_empty() && state.schedule.is_empty()
    }

    /// What is to be brought about, in how many milliseconds each; asked after every poll of a future.
    pub fn take_schedule(&self) -> Vec<(u64, StoreEvent)> {
        std::mem::take(&mut self.state.lock().schedule)
    }

    /// An asker crashed: of what it sent and has not landed, some is lost, some lands later.
    pub fn crash(&self, asker: Asker) {
        let mut state = self.state.lock();
        let state = &mut *state;
        for (id, request) in state.requests.iter_mut().filter(|(_, r)| r.asker == asker && r.landings > 0) {
            match state.random.below(3) {
                0 => request.skip = request.landings,
                1 => {
                    request.skip += 1;
                    request.landings += 1;
                    state.schedule.push((state.random.between(200, 20_000), StoreEvent::Land(*id)));
                }
                _ => {}
            }
        }
    }

    /// Brings one event about. Answers whether a future may now go on.
    pub fn happen(&self, event: StoreEvent) -> bool {
        let mut state = self.state.lock();
        match event {
            StoreEvent::Land(id) => {
                let State { requests, plant, random, schedule, archive, .. } = &mut *state;
                let Some(flying) = requests.get_mut(&id) else { return false };
                flying.landings -= 1;
                if flying.skip > 0 {
                    flying.skip -= 1;
                } else {
                    let effect = serve(&self.objects, &flying.request, *plant, flying.sender);
                    if let (Request::Create(key, body), Ok(_)) = (&flying.request, &effect)
                        && is_kept(key)
                    {
                        archive.entry(key.clone()).or_insert_with(|| body.clone());
                    }
                    if *plant == Some(Plant::StoreLoses)
                        && matches!(&flying.request, Request::Create(key, _) if key.contains("/log/"))
                        && effect.is_ok()
                        && random.chance(0.02)
                    {
                        flying.landings += 1;
                        schedule.push((random.between(50, 2_000), StoreEvent::Lose(id)));
                    }
                    flying.effect = Some(effect);
                }
                state.forget(id);
                false
            }
            StoreEvent::Lose(id) => {
                let Some(flying) = state.requests.get_mut(&id) else { return false };
                flying.landings -= 1;
                if let Request::Create(key, _) = &flying.request {
                    self.objects.delete(key).now_or_never();
                }
                state.lost += 1;
                state.forget(id);
                false
            }
            StoreEvent::Answer(id) => {
                let Some(flying) = state.requests.get_mut(&id) else { return false };
                flying.answered = true;
                let waker = flying.waker.take();
                state.forget(id);
                drop(state);
                if let Some(waker) = waker {
                    waker.wake();
                }
                true
            }
        }
    }
}

/// Whether the archive holds objects with such a key.
fn is_kept(key: &str) -> bool {
    key.contains("/log/") || key.contains("/checkpoints/")
}

/// What a request does to the objects.
fn serve(
    objects: &MemoryRemote,
    request: &Request,
    plant: Option<Plant>,
    sender: Asker,
) -> Result<Reply, RemoteError> {
    let never = || Err(unavailable("", "the memory store did not answer at once"));
    match request {
        Request::Get(key) => objects.get(key).now_or_never().map_or_else(never, |r| r.map(Reply::Body)),
        Request::GetRange(key, range) => {
            objects.get_range(key, range.clone()).now_or_never().map_or_else(never, |r| r.map(Reply::Body))
        }
        Request::Create(key, body) if plant == Some(Plant::StoreOverwrites) => {
            objects.overwrite(key, body.clone());
            Ok(Reply::Done)
        }
        Request::Update(key, body, _) if plant == Some(Plant::LeaseOverwrites) && key.ends_with("/owner") => {
            objects.overwrite(key, body.clone());
            let tagged = objects.get_tagged(key).now_or_never();
            tagged.map_or_else(never, |r| r.map(|(_, tag)| Reply::Tagged(Bytes::new(), tag)))
        }
        Request::Create(key, _)
            if plant == Some(Plant::EpochGoesOn) && sender >= COLLECTORS && key.contains("/checkpoints/") =>
        {
            Err(RemoteError::AlreadyExists { key: key.clone() })
        }
        Request::Put(key, _)
            if plant == Some(Plant::NoTombstone)
                && (key.contains("/log/") || key.contains("/checkpoints/")) =>
        {
            objects.delete(key).now_or_never().map_or_else(never, |r| r.map(|()| Reply::Done))
        }
        Request::List(prefix, _, _)
            if plant == Some(Plant::IgnoresPins)
                && sender >= COLLECTORS
                && (prefix.ends_with("/forks/") || prefix.ends_with("/pins/")) =>
        {
            Ok(Reply::Rows(Vec::new()))
        }
        Request::List(prefix, _, _)
            if plant == Some(Plant::IgnoresReaders)
                && sender >= COLLECTORS
                && prefix.ends_with("/readers/") =>
        {
            Ok(Reply::Rows(Vec::new()))
        }
        Request::Create(key, body) => {
            objects.create(key, body.clone()).now_or_never().map_or_else(never, |r| r.map(|()| Reply::Done))
        }
        Request::Put(key, body) => {
            objects.put(key, body.clone()).now_or_never().map_or_else(never, |r| r.map(|()| Reply::Done))
        }
        Request::GetTagged(key) => objects
            .get_tagged(key)
            .now_or_never()
            .map_or_else(never, |r| r.map(|(body, tag)| Reply::Tagged(body, tag))),
        Request::Update(key, body, tag) => objects
            .update(key, body.clone(), tag)
            .now_or_never()
            .map_or_else(never, |r| r.map(|tag| Reply::Tagged(Bytes::new(), tag))),
        Request::List(prefix, after, limit) => objects
            .list(prefix, after.as_deref(), *limit)
            .now_or_never()
            .map_or_else(never, |r| r.map(Reply::Rows)),
        Request::Delete(key) => {
            objects.delete(key).now_or_never().map_or_else(never, |r| r.map(|()| Reply::Done))
        }
        Request::Sleep(_) => Ok(Reply::Done),
    }
}

fn unavailable(key: &str, message: &str) -> RemoteError {
    RemoteError::Unavailable { key: key.into(), message: format!("simulated: {message}") }
}

impl Request {
    fn key(&self) -> &str {
        match self {
            Request::Get(key)
            | Request::GetRange(key, _)
            | Request::Create(key, _)
            | Request::Put(key, _)
            | Request::GetTagged(key)
            | Request::Update(key, _, _)
            | Request::Delete(key) => key,
            Request::List(prefix, _, _) => prefix,
            Request::Sleep(_) => "",
        }
    }
}

impl State {
    /// Draws what befalls a request and when.
    fn begin(&mut self, asker: Asker, request: Request) -> RequestId {
        self.next += 1;
        let id = self.next;
        let (weather, random) = (self.weather, &mut self.random);
        let pace = if random.chance(weather.slow) { 200 } else { 1 };
        let mut lands = random.between(1, 20) * pace;
        let mut answered = lands + random.between(1, 20);
        // Between a large commit's upload and its log entry everything may happen.
        let uploaded = std::mem::take(self.uploaded.entry(asker).or_default());
        let is_create = |part: &str| matches!(&request, Request::Create(key, _) if key.contains(part));
        self.uploaded.insert(asker, is_create("/segments/"));
        let exposed = uploaded && is_create("/log/") && weather.stall > 0.0;
        // Who reads everything asks often, and would never come to an end.
        let often = if VERIFIERS.contains(&asker) { 0.2 } else { 1.0 };
        let stall = if exposed { weather.stall.max(0.4) } else { weather.stall * often };
        if asker >= STALLING && random.chance(stall) {
            self.stalls += 1;
            let stall = random.between(500, 15_000);
            lands += if random.chance(0.7) { stall } else { 0 };
            answered += stall;
        }
        let (create, read) = (
            matches!(
                request,
                Request::Create(..) | Request::Put(..) | Request::Update(..) | Request::Delete(_)
            ),
            matches!(request, Request::Get(_) | Request::GetRange(..) | Request::GetTagged(_)),
        );
        let mut fate = Fate::Served;
        for (probability, candidate, fits) in [
            (weather.fail_before, Fate::FailBefore, true),
            (weather.fail_after, Fate::FailAfter, true),
            (weather.late, Fate::Late, create),
            (weather.duplicate, Fate::Duplicate, create),
            (weather.flip, Fate::Flip, read && !VERIFIERS.contains(&asker)),
        ] {
            if fits && fate == Fate::Served && random.chance(probability) {
                fate = candidate;
            }
        }
        if self.unreachable.contains(&asker) {
            fate = Fate::FailBefore;
        }
        let mut landings = 1;
        match (&request, fate) {
            (Request::Sleep(ms), _) => {
                (fate, landings) = (Fate::Served, 0);
                self.schedule.push((*ms, StoreEvent::Answer(id)));
            }
            (_, Fate::Served | Fate::FailAfter | Fate::Flip) => {
                self.schedule.push((lands, StoreEvent::Land(id)));
                self.schedule.push((answered, StoreEvent::Answer(id)));
            }
            (_, Fate::FailBefore) => {
                landings = 0;
                self.schedule.push((answered, StoreEvent::Answer(id)));
            }
            (request, Fate::Late) => {
                if let Request::Create(key, _) = request {
                    self.late.insert(key.clone());
                }
                self.schedule.push((answered, StoreEvent::Answer(id)));
                self.schedule.push((answered + random.between(1, 30_000), StoreEvent::Land(id)));
            }
            (_, Fate::Duplicate) => {
                landings = 2;
                self.schedule.push((lands, StoreEvent::Land(id)));
                self.schedule.push((lands, StoreEvent::Land(id)));
                self.schedule.push((answered, StoreEvent::Answer(id)));
            }
        }
        self.faults += u64::from(fate != Fate::Served) + u64::from(pace > 1);
        let flying = InFlight {
            asker,
            sender: asker,
            request,
            fate,
            landings,
            skip: 0,
            effect: None,
            answered: false,
            waker: None,
        };
        self.requests.insert(id, flying);
        id
    }

    /// The answer, once it is there.
    fn answer(&mut self, id: RequestId, waker: &Waker) -> Poll<Result<Reply, RemoteError>> {
        let Some(flying) = self.requests.get_mut(&id) else {
            return Poll::Ready(Err(unavailable("", "asked twice")));
        };
        if !flying.answered {
            flying.waker = Some(waker.clone());
            return Poll::Pending;
        }
        let key = flying.request.key().to_owned();
        let effect = flying.effect.clone();
        let reply = match flying.fate {
            Fate::FailBefore => Err(unavailable(&key, "request lost")),
            Fate::FailAfter => Err(unavailable(&key, "answer lost")),
            Fate::Late => Err(unavailable(&key, "timed out, still in flight")),
            Fate::Served | Fate::Duplicate if matches!(flying.request, Request::Sleep(_)) => Ok(Reply::Done),
            Fate::Served | Fate::Duplicate => {
                effect.unwrap_or_else(|| Err(unavailable(&key, "connection lost")))
            }
            Fate::Flip => match effect {
                Some(Ok(Reply::Body(body))) => Ok(Reply::Body(flip(&mut self.random, &body))),
                Some(Ok(Reply::Tagged(body, tag))) => Ok(Reply::Tagged(flip(&mut self.random, &body), tag)),
                other => other.unwrap_or_else(|| Err(unavailable(&key, "connection lost"))),
            },
        };
        Poll::Ready(reply)
    }

    /// Drops a request that nobody can ask about any more and that has landed.
    fn forget(&mut self, id: RequestId) {
        if self
            .requests
            .get(&id)
            .is_some_and(|r| r.answered && r.landings == 0 && r.waker.is_none() && r.asker == GONE)
        {
            self.requests.remove(&id);
        }
    }
}

/// The asker of requests whose future was dropped or has its answer.
const GONE: Asker = usize::MAX;

fn flip(random: &mut Random, body: &Bytes) -> Bytes {
    if body.is_empty() {
        return body.clone();
    }
    let bit = random.index(body.len() * 8);
    let mut body = body.to_vec();
    body[bit / 8] ^= 1 << (bit % 8);
    body.into()
}

/// One asker's way to the store.
#[derive(Clone)]
pub struct Handle {
    bucket: Bucket,
    asker: Asker,
    at_once: bool,
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Handle({}{})", self.asker, if self.at_once { ", at once" } else { "" })
    }
}

/// Marks a request as unheard when its future goes, so that it is dropped once it has landed.
struct Heard<'a>(&'a Bucket, Option<RequestId>);

impl Drop for Heard<'_> {
    fn drop(&mut self) {
        if let Some(id) = self.1 {
            let mut state = self.0.state.lock();
            if let Some(request) = state.requests.get_mut(&id) {
                request.asker = GONE;
                request.waker = None;
                // Nobody waits for the answer: only landings count from here.
                request.answered = true;
            }
            state.forget(id);
        }
    }
}

impl Handle {
    /// The same store for code that cannot wait.
    pub fn at_once(&self) -> Handle {
        Handle { at_once: true, ..self.clone() }
    }

    /// The time that has passed, in milliseconds.
    pub fn now_ms(&self) -> u64 {
        self.bucket.state.lock().now_ms
    }

    /// Waits in virtual time.
    pub async fn sleep(&self, ms: u64) {
        // A sleep has no other answer.
        let _done = self.request(Request::Sleep(ms)).await;
    }

    async fn request(&self, request: Request) -> Result<Reply, RemoteError> {
        if self.at_once {
            return self.now(&request);
        }
        let mut heard = Heard(&self.bucket, None);
        poll_fn(|context| {
            let mut state = self.bucket.state.lock();
            let id = match heard.1 {
                Some(id) => id,
                None => *heard.1.insert(state.begin(self.asker, request.clone())),
            };
            state.answer(id, context.waker())
        })
        .await
    }

    fn now(&self, request: &Request) -> Result<Reply, RemoteError> {
        let mut state = self.bucket.state.lock();
        let State { random, weather, unreachable, faults, plant, .. } = &mut *state;
        let fails = random.chance(weather.fetch) || unreachable.contains(&self.asker);
        let flips = random.chance(weather.flip);
        *faults += u64::from(fails) + u64::from(flips);
        if fails {
            return Err(unavailable(request.key(), "fetch failed"));
        }
        match serve(&self.bucket.objects, request, *plant, self.asker)? {
            Reply::Body(body) if flips => Ok(Reply::Body(flip(random, &body))),
            Reply::Tagged(body, tag) if flips => Ok(Reply::Tagged(flip(random, &body), tag)),
            reply => Ok(reply),
        }
    }

    async fn body(&self, request: Request) -> Result<Bytes, RemoteError> {
        let key = request.key().to_owned();
        match self.request(request).await? {
            Reply::Body(body) => Ok(body),
            Reply::Tagged(..) | Reply::Rows(_) | Reply::Done => {
                Err(unavailable(&key, "an answer of another kind"))
            }
        }
    }

    async fn tagged(&self, request: Request) -> Result<(Bytes, Tag), RemoteError> {
        let key = request.key().to_owned();
        match self.request(request).await? {
            Reply::Tagged(body, tag) => Ok((body, tag)),
            Reply::Body(_) | Reply::Rows(_) | Reply::Done => {
                Err(unavailable(&key, "an answer of another kind"))
            }
        }
    }
}

#[async_trait]
impl Remote for Handle {
    async fn get(&self, key: &str) -> Result<Bytes, RemoteError> {
        self.body(Request::Get(key.into())).await
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, RemoteError> {
        self.body(Request::GetRange(key.into(), range)).await
    }

    async fn create(&self, key: &str, body: Bytes) -> Result<(), RemoteError> {
        self.request(Request::Create(key.into(), body)).await.map(drop)
    }

    async fn put(&self, key: &str, body: Bytes) -> Result<(), RemoteError> {
        self.request(Request::Put(key.into(), body)).await.map(drop)
    }

    async fn get_tagged(&self, key: &str) -> Result<(Bytes, Tag), RemoteError> {
        self.tagged(Request::GetTagged(key.into())).await
    }

    async fn update(&self, key: &str, body: Bytes, tag: &Tag) -> Result<Tag, RemoteError> {
        self.tagged(Request::Update(key.into(), body, tag.clone())).await.map(|(_, tag)| tag)
    }

    async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Listed>, RemoteError> {
        match self.request(Request::List(prefix.into(), after.map(Into::into), limit)).await? {
            Reply::Rows(rows) => Ok(rows),
            Reply::Body(_) | Reply::Tagged(..) | Reply::Done => {
                Err(unavailable(prefix, "an answer of another kind"))
            }
        }
    }

    async fn delete(&self, key: &str) -> Result<(), RemoteError> {
        self.request(Request::Delete(key.into())).await.map(drop)
    }

    fn url(&self) -> String {
        "simulated:".into()
    }
}

/// Page fetches for SQLite: at once, or not at all.
#[derive(Debug)]
pub struct PageFetch(pub Handle);

impl Fetch for PageFetch {
    fn fetch(&self, volume: &Volume, snapshot: &Snapshot, pages: &PageSet) -> Result<(), FetchError> {
        futures::executor::block_on(fetch(&self.0.at_once(), volume, snapshot, pages))
    }
}
