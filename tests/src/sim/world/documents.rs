//! Driving documents and direct readers: their processes, apps, rounds of sync, and what they are told.

use std::sync::Arc;

use futures::executor::block_on;
use graft::remote::Remote as _;
use graft::time::At;
use graft::volume::{OpenError, Opened, Options, Volume};
use graft::{Lsn, PageSize, key};
use sqlsync_layer::document::Route;
use sqlsync_layer::document::replica;
use sqlsync_layer::guard::{Guarded, Mode, RowLimits};
use sqlsync_layer::protocol::{Seed, wire_rows};
use sqlsync_layer::session::client::{ClientSession, SessionConfig};
use sqlsync_layer::vfs::Database;

use super::{Done, Event, Owner, VOLUME, World};
use crate::sim::bank::{self, Ask};
use crate::sim::clients::{self, Client};
use crate::sim::disks::{self, Crash, Disk};
use crate::sim::documents::{Document, Kind, Round, SharedPapers};
use crate::sim::oracle;
use crate::sim::plant::Plant;
use crate::sim::random::Random;
use crate::sim::store::{Handle, PageFetch};
use crate::sim::truth::{AtRest, Made, READERS, Seen, rows_text};

/// Local commits that a document may have before its app only reads.
const AHEAD_MAX: usize = 60;

/// Reads of one document that the oracle runs again.
const READS_MAX: usize = 150;

const ROWS: RowLimits = RowLimits { rows_max: 1_000_000, bytes_max: 1 << 30 };

/// What will happen to documents and readers.
#[derive(Debug, Clone, Copy)]
pub(super) enum DocumentEvent {
    /// A process starts.
    Start(usize),
    /// An app does something.
    Acts(usize),
    /// A look at the log is due.
    Looks(usize),
    /// Somebody says that the log has grown.
    Woken(usize),
    /// The network is back.
    Online(usize),
    /// A disk has room again.
    Freed(usize),
    /// Somebody reads straight from the bucket.
    Reads(usize),
}

/// How work that a document began has ended.
#[derive(Debug)]
pub(super) enum DocumentEnded {
    /// The volume was opened, or not.
    Opened(Box<Result<Opened, OpenError>>),
    /// A round of sync.
    Round(Result<String, String>),
}

/// The documents and readers of a world.
pub(super) struct Cast {
    pub(super) documents: Vec<Document>,
    /// Those whose disk was lost, and what was known of them.
    pub(super) lost: Vec<(usize, SharedPapers)>,
    pub(super) readers: Vec<bool>,
    /// The longest pause of an app between two doings.
    pub(super) pause_ms: u64,
    /// The longest pause between two looks at the log.
    pub(super) poll_ms: u64,
    /// How often a document loses its network, as a probability for each doing.
    pub(super) offline: f64,
    /// How often its process dies, or the power fails.
    pub(super) crash: f64,
    /// And how often its disk is full.
    pub(super) full: f64,
}

impl std::fmt::Debug for Cast {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} documents, {} readers", self.documents.len(), self.readers.len())
    }
}

impl Cast {
    /// Who there is. Those who go through a coordinator come first and get a session behind `clients`.
    pub(super) fn draw(
        random: &mut Random,
        page_bytes: u32,
        clients: &mut Vec<Client>,
        plant: Option<Plant>,
    ) -> Cast {
        let lies = plant == Some(Plant::AckBeforeFsync);
        let count = [0, 1, 2, 3, 5][random.index(5)];
        let mut kinds: Vec<Kind> = (0..count).map(|_| Kind::draw(random, page_bytes)).collect();
        kinds.sort_by_key(|kind| kind.route == Route::Direct);
        let first = clients.len();
        let mut documents = Vec::new();
        for (at, kind) in kinds.into_iter().enumerate() {
            if kind.route == Route::Coordinator {
                clients.push(Client::new(first + at, random.fork()));
            }
            let disk = Disk::new(random.fork(), lies);
            documents.push(Document::new(first + at, kind, disk, random.fork()));
        }
        Cast {
            documents,
            lost: Vec::new(),
            readers: vec![false; random.below(3) as usize],
            pause_ms: [100, 300, 1_200][random.index(3)],
            poll_ms: [300, 1_500, 6_000][random.index(3)],
            offline: [0.0, 0.01, 0.05][random.index(3)],
            crash: [0.0, 0.005, 0.03][random.index(3)],
            full: [0.0, 0.01, 0.05][random.index(3)],
        }
    }
}

/// Who asks the object store on behalf of document `at`.
fn asker(at: usize) -> usize {
    1500 + at
}

fn reader_asker(at: usize) -> usize {
    1700 + at
}

fn session_config() -> SessionConfig {
    SessionConfig { heads: true, pending_max: 10_000, ..clients::config() }
}

impl World {
    /// Time begins.
    pub(super) fn found_documents(&mut self) {
        for at in 0..self.cast.documents.len() {
            let delay = self.random.below(1_000);
            self.later(delay, DocumentEvent::Start(at));
            self.later(delay + 1, DocumentEvent::Acts(at));
            self.later(delay + 2, DocumentEvent::Looks(at));
        }
        for at in 0..self.cast.readers.len() {
            self.later(500, DocumentEvent::Reads(at));
        }
    }

    fn later(&mut self, delay: u64, event: DocumentEvent) {
        self.queue.after(delay, Event::Document(event));
    }

    pub(super) fn document_event(&mut self, event: DocumentEvent) {
        match event {
            DocumentEvent::Start(at) => self.start_document(at),
            DocumentEvent::Acts(at) => self.document_acts(at),
            DocumentEvent::Looks(at) => {
                let longest = if self.storm { self.cast.poll_ms } else { 500 };
                let pause = self.random.between(50, longest.max(50));
                self.later(pause, DocumentEvent::Looks(at));
                self.sync_document(at);
            }
            DocumentEvent::Woken(at) => self.sync_document(at),
            DocumentEvent::Online(at) => self.go_online(at),
            DocumentEvent::Freed(at) => {
                // A process that dies at a full disk died between two writes.
                if self.storm && self.random.chance(0.5) {
                    self.crash_document(at, Crash::Kept);
                }
                self.cast.documents[at].disk.free();
            }
            DocumentEvent::Reads(at) => self.reader_acts(at),
        }
    }

    /// The document whose session client `who` is.
    pub(super) fn document_of(&self, who: usize) -> Option<usize> {
        self.cast.documents.iter().position(|document| document.who == who)
    }

    fn start_document(&mut self, at: usize) {
        let document = &mut self.cast.documents[at];
        if document.opening || document.papers.lock().replica.is_some() {
            return;
        }
        let (life, options, who) = (document.life, document.options(), document.who);
        if document.known {
            let Some(page_size) = PageSize::new(self.profile.page_bytes) else { return };
            let opened = Volume::load(VOLUME, page_size, options);
            return self.document_opened(at, opened);
        }
        document.opening = true;
        let remote = self.bucket.handle(asker(at));
        self.note(format!("document {who} opens for the first time"));
        self.spawn(Owner::Document(at, life), async move {
            let opened = Volume::open(&remote, VOLUME, options).await;
            Done::Document(DocumentEnded::Opened(Box::new(opened)))
        });
    }

    fn document_opened(&mut self, at: usize, opened: Result<Opened, OpenError>) {
        let fetch = Arc::new(PageFetch(self.bucket.handle(asker(at))));
        let (shelf, plant) = (self.shelf.clone(), self.plant);
        let document = &mut self.cast.documents[at];
        document.opening = false;
        let who = document.who;
        let opened = opened.map_err(|error| (true, error.to_string())).and_then(|opened| {
            document.known = true;
            let opened = document.open(opened, fetch, shelf, clients::id(who), plant);
            opened.map_err(|error| {
                let why = error.to_string();
                // A full disk may have room later.
                let passing = matches!(error, replica::OpenError::Connect(_)) || why.contains(disks::FULL);
                (passing, why)
            })
        });
        match opened {
            Ok(()) => {
                let shown = format!("{:?}", document.papers.lock().replica);
                self.note(format!("document {who} is open: {shown}"));
                self.restart_session(at);
                self.look_at_document(at);
            }
            Err((true, why)) => {
                self.note(format!("document {who} cannot open: {why}"));
                let delay = self.random.between(100, 1_500);
                self.later(delay, DocumentEvent::Start(at));
            }
            Err((false, why)) => self.violate(format!("document {who} cannot open: {why}")),
        }
    }

    /// The session goes on where the timeline stands.
    fn restart_session(&mut self, at: usize) {
        let document = &self.cast.documents[at];
        if document.kind.route != Route::Coordinator {
            return;
        }
        let who = document.who;
        let state = document.papers.lock().replica.as_ref().map(replica::Replica::session_state);
        let Some(state) = state else { return };
        match ClientSession::restore(state, session_config()) {
            Ok(session) => {
                self.clients[who].session = session;
                self.start_client(who);
            }
            Err(error) => self.violate(format!("document {who} has no session: {error}")),
        }
    }

    /// A document's process dies, whatever it is in the middle of.
    pub(super) fn crash_document(&mut self, at: usize, how: Crash) {
        let document = &mut self.cast.documents[at];
        let (life, who) = (document.life, document.who);
        if !document.stop(how) {
            return;
        }
        (document.life, document.syncing) = (life + 1, false);
        let offline = document.offline;
        self.summary.power_cuts += u64::from(how == Crash::PowerCut);
        self.note(format!("document {who} restarts: {how:?}, offline {offline}"));
        self.bucket.crash(asker(at));
        self.tasks.cancel(Owner::Document(at, life));
        self.end_session(who, true);
        if how == Crash::Lost {
            let (anew, random) = (self.truth.made.len(), self.random.fork());
            self.note(format!("the disk of document {who} is lost; it is document {anew} now"));
            self.truth.made.push(Default::default());
            self.truth.told.push(Default::default());
            self.truth.disk_lost.insert(who);
            let papers = self.cast.documents[at].begin_anew(anew, random);
            self.cast.lost.push((who, papers));
        }
        let delay = self.random.between(1, 4_000);
        self.later(delay, DocumentEvent::Start(at));
    }

    fn end_session(&mut self, who: usize, abrupt: bool) {
        let Some(client) = self.clients.get_mut(who) else { return };
        client.live = false;
        if abrupt {
            client.life += 1;
            client.dialling = false;
        }
        if let Some(conn) = client.conn.take() {
            self.hang_up(conn, abrupt);
            if !abrupt {
                let why = "simulated: no network".into();
                self.event(who, sqlsync_layer::session::client::Event::Closed { why });
            }
        }
    }

    fn go_offline(&mut self, at: usize) {
        let document = &mut self.cast.documents[at];
        let who = document.who;
        if std::mem::replace(&mut document.offline, true) {
            return;
        }
        self.note(format!("document {who} goes offline"));
        self.bucket.set_unreachable(asker(at), true);
        self.end_session(who, false);
        let longest = [3_000, 60_000][self.random.index(2)];
        let delay = self.random.between(500, longest);
        self.later(delay, DocumentEvent::Online(at));
    }

    pub(super) fn go_online(&mut self, at: usize) {
        let document = &mut self.cast.documents[at];
        let who = document.who;
        if std::mem::replace(&mut document.offline, false) {
            self.note(format!("document {who} is online"));
            self.bucket.set_unreachable(asker(at), false);
        }
    }

    /// The app does something, and will again.
    fn document_acts(&mut self, at: usize) {
        if !self.storm {
            return;
        }
        let pause = self.random.between(10, self.cast.pause_ms);
        self.later(pause, DocumentEvent::Acts(at));
        let document = &self.cast.documents[at];
        let (papers, kind, who, now) =
            (document.papers.clone(), document.kind, document.who, self.queue.now());
        let (ahead, draw) = {
            let mut papers = papers.lock();
            let ahead = papers.replica.as_ref().map(|replica| replica.status().ahead);
            (ahead, papers.random.below(100))
        };
        // Its process is down.
        let Some(ahead) = ahead else { return };
        if self.random.chance(self.cast.offline) {
            self.go_offline(at);
        }
        // More often in the middle of something.
        let crash = self.cast.crash * if self.cast.documents[at].syncing { 4.0 } else { 1.0 };
        if self.random.chance(crash) {
            let how = match Crash::random(&mut self.random) {
                // A session's id is its client's: those who have one keep their disk.
                Crash::Lost if kind.route == Route::Coordinator => Crash::PowerCut,
                how => how,
            };
            return self.crash_document(at, how);
        }
        if self.random.chance(self.cast.full) {
            self.note(format!("the disk of document {who} is full soon"));
            self.cast.documents[at].disk.fill(self.random.below(6) as u32);
            let longest = [20, 5_000][self.random.index(2)];
            let delay = self.random.between(1, longest);
            self.later(delay, DocumentEvent::Freed(at));
        }
        match draw {
            0..45 if ahead < AHEAD_MAX => self.document_mutates(at),
            45..50 if ahead < AHEAD_MAX => (0..6).for_each(|_| self.document_mutates(at)),
            50..60 if ahead < AHEAD_MAX && kind.route == Route::Direct => {
                let sql = bank::random_local(&mut papers.lock().random);
                let ran = papers.lock().execute(&sql);
                let short: String = sql.chars().take(100).collect();
                self.note(format!("document {who} runs {short}: {ran:?}"));
            }
            60..66 => {
                let made = self.draw_mutation(at);
                let dealt = papers.lock().deal_with_rejected(made);
                self.dealt(at, dealt);
            }
            66..70 if papers.lock().cancel() => {
                self.note(format!("document {who} gives its rebase up"));
            }
            66..70 => {}
            70..74 => papers.lock().subscribe_or_not(),
            76..78 if kind.route == Route::Direct => {
                let version = self.random.between(1, u64::from(bank::VERSION_MAX)) as u32;
                let (clock, skew) = (self.now_ms(), self.cast.documents[at].skew);
                let deployed = papers.lock().deploy(version, clock + skew);
                self.note(format!("document {who} deploys version {version}: {deployed:?}"));
            }
            74..76 => {
                if let Some(number) = papers.lock().drop_some_branch() {
                    self.note(format!("document {who} drops branch {number}"));
                }
            }
            _ => {}
        }
        let mut held = papers.lock();
        if held.seen.len() < READS_MAX {
            for _ in 0..held.random.below(3) {
                let ask = Ask::random(&mut held.random);
                held.read(who, ask, now);
            }
        }
        drop(held);
        self.look_at_document(at);
    }

    fn draw_mutation(&mut self, at: usize) -> Made {
        self.tags += 1;
        let (tag, now, at_ms) = (self.tags, self.now_ms(), self.queue.now());
        let document = &self.cast.documents[at];
        let random = &mut document.papers.lock().random;
        let (reducer, args) = bank::random_mutation(random, tag);
        Made { reducer, args, clock: now + document.skew, seed: Seed(random.draw()), at: at_ms }
    }

    /// One random mutation.
    pub(super) fn document_mutates(&mut self, at: usize) {
        let made = self.draw_mutation(at);
        let papers = self.cast.documents[at].papers.clone();
        let taken = papers.lock().mutate(made);
        self.dealt(at, taken);
    }

    fn dealt(&mut self, at: usize, taken: Result<Option<u64>, String>) {
        let who = self.cast.documents[at].who;
        match taken {
            Ok(Some(seq)) => {
                let made = self.cast.documents[at].papers.lock().made.get(&seq).cloned();
                self.note(format!("document {who} makes {seq}: {made:?}"));
                self.summary.made += 1;
            }
            Ok(None) => {}
            Err(error) => self.violate(format!("document {who} cannot mutate: {error}")),
        }
        self.look_at_document(at);
    }

    /// What the document was told, and whatever does not hold of it; and what its session is to send.
    fn look_at_document(&mut self, at: usize) {
        let document = &self.cast.documents[at];
        let (who, route) = (document.who, document.kind.route);
        let (wrong, news, unsent) = {
            let mut papers = document.papers.lock();
            let unsent = match (&mut papers.replica, route) {
                (Some(replica), Route::Coordinator) => replica.take_unsent(),
                (Some(_), Route::Direct) | (None, _) => Vec::new(),
            };
            (papers.wrong.take(), std::mem::take(&mut papers.news), unsent)
        };
        if let Some(wrong) = wrong {
            self.violate(format!("document {who}: {wrong}"));
        }
        for (seq, told) in news {
            self.told(who, seq, told);
        }
        for mutation in unsent {
            let args = serde_json::from_str(&mutation.args).unwrap_or_default();
            let client = &mut self.clients[who];
            let sent = client.session.mutate(mutation.reducer, args, mutation.clock, mutation.seed);
            if sent != Ok(mutation.seq) {
                self.violate(format!("document {who} sends {}; its session says {sent:?}", mutation.seq));
            }
            self.effects(who);
        }
    }

    /// A round of sync begins, unless one is under way.
    fn sync_document(&mut self, at: usize) {
        let head = self.newest_lsn();
        let document = &self.cast.documents[at];
        let (up, settled) = {
            let papers = document.papers.lock();
            (papers.replica.is_some(), papers.is_settled(head))
        };
        if !up || document.syncing || (!self.storm && settled && !self.has_branches(at)) {
            return;
        }
        let document = &mut self.cast.documents[at];
        document.syncing = true;
        let round = Round {
            papers: document.papers.clone(),
            remote: self.bucket.handle(asker(at)),
            now_ms: super::EPOCH_MS + self.queue.now() as i64 + document.skew,
            publishes: document.kind.publishes,
            dawdles: self.storm,
            family: self.family.clone(),
        };
        let life = document.life;
        self.spawn(Owner::Document(at, life), async move {
            Done::Document(DocumentEnded::Round(round.run().await))
        });
    }

    /// Whether it has branches that it is to publish.
    fn has_branches(&self, at: usize) -> bool {
        let document = &self.cast.documents[at];
        document.kind.publishes && document.papers.lock().has_unpublished()
    }

    pub(super) fn document_ended(&mut self, at: usize, life: u64, ended: DocumentEnded) {
        if self.cast.documents[at].life != life {
            return;
        }
        match ended {
            DocumentEnded::Opened(opened) => self.document_opened(at, *opened),
            DocumentEnded::Round(how) => {
                let document = &mut self.cast.documents[at];
                document.syncing = false;
                let who = document.who;
                match how {
                    Ok(how) => self.note(format!("document {who}: {how}")),
                    Err(why) => self.note(format!("document {who} could not sync: {why}")),
                }
                self.look_at_document(at);
            }
        }
    }

    /// The newest commit that is stored.
    fn newest_lsn(&self) -> Lsn {
        let first = block_on(self.objects.list(&key::log_prefix(VOLUME), None, 1));
        let first = first.ok().and_then(|rows| rows.into_iter().next());
        first.and_then(|row| Lsn::from_key_part(row.key.rsplit('/').next()?)).unwrap_or(Lsn::ZERO)
    }

    /// Nothing fails any more.
    pub(super) fn calm_documents(&mut self) {
        for at in 0..self.cast.documents.len() {
            self.go_online(at);
            self.bucket.set_unreachable(asker(at), false);
            self.cast.documents[at].disk.free();
        }
    }

    /// Whether every document holds what the log holds, and has nothing to send.
    pub(super) fn documents_are_at_rest(&self) -> bool {
        let head = self.newest_lsn();
        (0..self.cast.documents.len())
            .all(|at| self.cast.documents[at].papers.lock().is_settled(head) && !self.has_branches(at))
    }

    /// Somebody reads straight from the bucket, the newest state or an old one.
    fn reader_acts(&mut self, at: usize) {
        if !self.storm {
            return;
        }
        let pause = self.random.between(200, 4_000);
        self.later(pause, DocumentEvent::Reads(at));
        if std::mem::replace(&mut self.cast.readers[at], true) {
            return;
        }
        let newest = self.newest_lsn();
        let past = match self.random.below(4) {
            0 => Some(At::Lsn(Lsn(newest.0.saturating_sub(self.random.below(12))))),
            1 => Some(At::TimeMs(self.now_ms() - self.random.below(5_000) as i64)),
            _ => None,
        };
        let remote = self.bucket.handle(reader_asker(at));
        let (who, now) = (READERS + at, self.queue.now());
        let asks: Vec<Ask> = (0..3).map(|_| Ask::random(&mut self.random)).chain([Ask::Woven]).collect();
        self.spawn(Owner::Reader(at), async move { Done::Reader(read(remote, past, asks, who, now).await) });
    }

    pub(super) fn reader_ended(&mut self, at: usize, how: Result<Vec<Seen>, String>) {
        self.cast.readers[at] = false;
        match how {
            Ok(seen) => {
                self.note(format!(
                    "reader {at} read {} answers at lsn {:?}",
                    seen.len(),
                    seen.first().map(|s| s.lsn)
                ));
                self.truth.seen.extend(seen);
            }
            Err(why) if why.starts_with("VIOLATION") => self.violate(format!("reader {at}: {why}")),
            Err(why) => self.note(format!("reader {at}: {why}")),
        }
    }

    /// All is at rest: what each document holds.
    pub(super) fn dump_documents(&mut self) {
        for at in 0..self.cast.documents.len() {
            let who = self.cast.documents[at].who;
            let dumped = {
                let papers = self.cast.documents[at].papers.lock();
                let Some(replica) = &papers.replica else { continue };
                let lsn = replica.volume().base().lsn();
                oracle::dump_of(replica.database()).map(|dump| AtRest { who, lsn, dump })
            };
            match dumped {
                Ok(at_rest) => self.truth.at_rest.push(at_rest),
                Err(error) => self.violate(format!("document {who}: {error}")),
            }
        }
    }

    /// Gives the truth what the documents know.
    pub(super) fn collect_documents(&mut self) {
        for document in &self.cast.documents {
            self.summary.disk_full += document.disk.refused();
        }
        let present = self.cast.documents.iter().map(|document| (document.who, document.papers.clone()));
        for (who, papers) in present.chain(self.cast.lost.iter().cloned()) {
            let papers = papers.lock();
            let counts = papers.counts();
            let summary = &mut self.summary.documents;
            summary.documents += 1;
            summary.rebases += counts.rebases;
            summary.transplanted += counts.transplanted;
            summary.replayed += counts.replayed;
            summary.confirmed += counts.confirmed;
            summary.cut += papers.cut;
            summary.branches += (papers.branches.len() + papers.published.len()) as u64;
            summary.published += papers.published.len() as u64;
            self.truth.made[who] = papers.made.clone();
            self.truth.forgetful.insert(who);
            if !self.truth.disk_lost.contains(&who) {
                self.truth.rejected.insert(who, (papers.waiting(), papers.dealt.clone()));
            }
            self.truth.documents.extend(papers.sealed.clone());
            self.truth.seen.extend(papers.seen.iter().cloned());
            let published = papers.published.iter();
            let branches = published.map(|(child, kept)| (*child, (kept.base, kept.work.clone())));
            self.truth.branches.extend(branches);
        }
        self.summary.documents.reads = self.truth.seen.len() as u64;
    }
}

/// Opens the volume, now or in the past, and asks.
async fn read(
    remote: Handle,
    past: Option<At>,
    asks: Vec<Ask>,
    who: usize,
    now: u64,
) -> Result<Vec<Seen>, String> {
    let options = Options { store: None, locals: None, cache_bytes: 1 << 20, ..Options::default() };
    let opened = match past {
        Some(past) => {
            Volume::open_at(&remote, VOLUME, past, 1 << 20).await.map_err(|error| error.to_string())?
        }
        None => Volume::open(&remote, VOLUME, options).await.map_err(|error| error.to_string())?,
    };
    let lsn = opened.volume.base().lsn();
    let database = Database::new(Arc::new(opened.volume), Arc::new(PageFetch(remote)));
    let (connection, control) = database.connect_read_only().map_err(|error| error.to_string())?;
    let guarded = Guarded::new(connection).map_err(|error| error.to_string())?;
    let mut seen = Vec::new();
    for ask in asks {
        let rows =
            guarded.within(Mode::Query, u64::MAX, |guarded| guarded.ask(ask.sql(), &ask.params(), ROWS));
        let rows = rows.map_err(|error| match control.take_failure() {
            Some(failure) => failure.message,
            // The beginning of time: no table is there.
            None if lsn == Lsn::ZERO => error.to_string(),
            None => format!("VIOLATION: {ask:?} at lsn {lsn}: {error}"),
        })?;
        let rows = wire_rows(&rows.rows);
        ask.check(&rows).map_err(|wrong| format!("VIOLATION: at lsn {lsn}: {wrong}"))?;
        seen.push(Seen { lsn, local: Vec::new(), ask, who, at: now, rows: rows_text(&rows) });
    }
    Ok(seen)
}
