//! Documents: apps with a replica of their own, which work on line and off and rebase what they did.
//!
//! Real are the [`Replica`] and its store; its driver is here, in virtual time: [`round`] does what the
//! task of `sqlsync_layer::document::Document` does, but stands still between its steps, and may be cut
//! off at any of them. What the document knows of itself is compared at once with its [`Papers`], which
//! know what was put into it: no mutation is on the stack twice, or gone, or out of order.
//!
//! Invariants of a document's stack, checked whenever it changed: its mutations are those that were taken
//! and have no final answer, in the order of their seqs, each once; plain SQL is on it or in a branch;
//! after a restart it is what it was.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;

use graft::fetch::Fetch;
use graft::publish::{PublishError, publish};
use graft::volume::{LocalCommit, Opened, Options};
use graft::{CommitId, Lsn, PageIdx, VolumeId, VolumeName};
use parking_lot::Mutex;
use serde_json::{Map, Value as Json};
use sqlsync_layer::actor::Modules;
use sqlsync_layer::document::replica::{self, publishing};
use sqlsync_layer::document::{
    BranchError, Config, Counts, Event, MutateError, Progress, PushError, Replica, Route,
};
use sqlsync_layer::merge::{Condition, Validation};
use sqlsync_layer::payload::{Op, Outcome, Record};
use sqlsync_layer::protocol::{ClientId, wire_rows};
use sqlsync_layer::rebase::{Dispute, Handler, Policy, Resolution};

use super::bank::{self, Ask};
use super::disks::{Crash, Disk};
use super::plant::Plant;
use super::random::Random;
use super::store::Handle;
use super::truth::{Local, Made, Seen, Told, rows_text};

/// Live queries of one document.
const SUBSCRIPTIONS: usize = 2;

/// What kind of document it is.
#[derive(Debug, Clone, Copy)]
pub struct Kind {
    /// Who puts its mutations into the log.
    pub route: Route,
    /// What becomes of them when the history moved.
    pub policy: Policy,
    /// Whether the app decides conflicts.
    pub handler: bool,
    /// Whether branches are published by themselves.
    pub publishes: bool,
    /// Bytes of pages in memory.
    pub cache_bytes: usize,
}

impl Kind {
    /// A random kind.
    pub fn draw(random: &mut Random, page_bytes: u32) -> Kind {
        let route = if random.chance(0.35) { Route::Coordinator } else { Route::Direct };
        Kind {
            route,
            policy: [Policy::Merge, Policy::Merge, Policy::Merge, Policy::Replay, Policy::Fork]
                [random.index(5)],
            handler: route == Route::Direct && random.chance(0.25),
            publishes: random.chance(0.6),
            cache_bytes: if random.chance(0.3) { 160 * page_bytes as usize } else { 4 << 20 },
        }
    }
}

/// What a branch holds.
#[derive(Debug, Clone)]
pub struct Kept {
    /// The commit that it was made on.
    pub base: Lsn,
    /// Its work, oldest first.
    pub work: Vec<Local>,
}

/// A call: a reducer's name and its arguments.
type Call = (String, Map<String, Json>);

/// What the app decided about conflicts.
#[derive(Debug)]
struct Decisions {
    random: Random,
    /// Other arguments, by seq: each may or may not have come into force.
    edits: BTreeMap<u64, Vec<Call>>,
}

/// The app as a judge of conflicts.
#[derive(Debug)]
struct Judge(Arc<Mutex<Decisions>>);

impl Handler for Judge {
    fn resolve(&self, dispute: &Dispute<'_>) -> Resolution {
        let mut decisions = self.0.lock();
        if decisions.random.chance(0.1) {
            // Looking must be possible; it may fail where a page cannot be had.
            drop((dispute.rows.theirs(), dispute.rows.ours()));
        }
        let draw = decisions.random.below(10);
        match (dispute.mutation, draw) {
            (_, 0..5) => Resolution::Default,
            (Some(mutation), 5..7) => {
                let tag = decisions.random.draw() >> 16;
                let (reducer, args) = bank::random_mutation(&mut decisions.random, tag);
                decisions.edits.entry(mutation.seq).or_default().push((reducer.clone(), args.clone()));
                Resolution::Edit { reducer, args }
            }
            (_, 7..9) => Resolution::Discard,
            (_, _) => Resolution::Branch,
        }
    }
}

/// A document and what is known of it from outside.
#[derive(Debug)]
pub struct Papers {
    /// The document, while its process lives.
    pub replica: Option<Replica>,
    decisions: Arc<Mutex<Decisions>>,
    /// Its chance.
    pub random: Random,
    /// The stack as it should be, and each local commit's print.
    stack: Vec<Local>,
    prints: Vec<u64>,
    /// Plain SQL that was ever run, by the print of its local commit.
    ran: BTreeMap<u64, Local>,
    /// What the disk went through when the last process died.
    crashed: Option<Crash>,
    /// Mutations taken, by seq, that are on the volume or on the way to it.
    pub made: BTreeMap<u64, Made>,
    /// What each sealed commit holds.
    pub sealed: BTreeMap<CommitId, Vec<Local>>,
    /// Branches that are kept here.
    pub branches: BTreeMap<u64, Kept>,
    /// Mutations whose seqs were given free when they went to a branch.
    freed: BTreeMap<u64, Vec<(u64, Made)>>,
    /// Mutations as they were before the app edited them.
    before_edits: BTreeMap<u64, Vec<Made>>,
    /// Branches that became volumes.
    pub published: BTreeMap<VolumeId, Kept>,
    /// Their numbers.
    numbers: BTreeMap<u64, VolumeId>,
    /// Branches that the app has begun to publish, or that can never be.
    begun: BTreeSet<u64>,
    stuck: BTreeSet<u64>,
    /// Rejected mutations that the app tried again, changed or gave up.
    pub dealt: BTreeSet<u64>,
    /// The newest durable commit that it stood on.
    newest: Lsn,
    /// Final answers that were given.
    pub told: BTreeMap<u64, Told>,
    /// Those that the world has not looked at.
    pub news: Vec<(u64, Told)>,
    /// What was read.
    pub seen: Vec<Seen>,
    /// Live queries: what is shown.
    subscriptions: BTreeMap<u64, (Ask, String)>,
    /// What earlier lives did.
    past: Counts,
    /// Rebases that were given up or cut off in the middle.
    pub cut: u64,
    /// What does not hold.
    pub wrong: Option<String>,
}

/// Shared by the world and the document's task.
pub type SharedPapers = Arc<Mutex<Papers>>;

/// One document.
#[derive(Debug)]
pub struct Document {
    /// Its number among those who mutate.
    pub who: usize,
    /// What kind it is.
    pub kind: Kind,
    /// Its disk.
    pub disk: Disk,
    /// Whether its volume was opened before.
    pub known: bool,
    /// How many times its process has started.
    pub life: u64,
    /// Whether it is being opened.
    pub opening: bool,
    /// Whether a round is under way, and whether another is planned.
    pub syncing: bool,
    /// See [`Document::syncing`].
    pub planned: bool,
    /// Without any network.
    pub offline: bool,
    /// Its clock, as milliseconds ahead of the world's.
    pub skew: i64,
    /// See [`Papers`].
    pub papers: SharedPapers,
}

impl fmt::Display for Document {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "document {}", self.who)
    }
}

impl Document {
    /// The same app on a machine of its own again, with an empty disk: as somebody else, since what its
    /// old self had done is not known. Answers the old papers.
    pub fn begin_anew(&mut self, who: usize, random: Random) -> SharedPapers {
        let mut new = Document::new(who, self.kind, self.disk.clone(), random);
        (new.life, new.offline) = (self.life, self.offline);
        std::mem::replace(self, new).papers
    }

    /// Document `who`, not started.
    pub fn new(who: usize, kind: Kind, disk: Disk, mut random: Random) -> Document {
        let skew = random.below(20_000) as i64 - 10_000;
        let decisions = Arc::new(Mutex::new(Decisions { random: random.fork(), edits: BTreeMap::new() }));
        let papers = Papers {
            replica: None,
            decisions,
            random,
            stack: Vec::new(),
            prints: Vec::new(),
            ran: BTreeMap::new(),
            crashed: None,
            made: BTreeMap::new(),
            sealed: BTreeMap::new(),
            branches: BTreeMap::new(),
            freed: BTreeMap::new(),
            before_edits: BTreeMap::new(),
            published: BTreeMap::new(),
            numbers: BTreeMap::new(),
            begun: BTreeSet::new(),
            stuck: BTreeSet::new(),
            dealt: BTreeSet::new(),
            newest: Lsn::ZERO,
            told: BTreeMap::new(),
            news: Vec::new(),
            seen: Vec::new(),
            subscriptions: BTreeMap::new(),
            past: Counts::default(),
            cut: 0,
            wrong: None,
        };
        Document {
            who,
            kind,
            disk,
            known: false,
            life: 0,
            opening: false,
            syncing: false,
            planned: false,
            offline: false,
            skew,
            papers: Arc::new(Mutex::new(papers)),
        }
    }

    /// How it opens the volume.
    pub fn options(&self) -> Options {
        Options { store: Some(self.disk.store()), cache_bytes: self.kind.cache_bytes, ..Options::default() }
    }

    /// Makes the document of a volume that was opened.
    pub fn open(
        &self,
        opened: Opened,
        fetch: Arc<dyn Fetch>,
        modules: Arc<dyn Modules>,
        client: ClientId,
        plant: Option<Plant>,
    ) -> Result<(), replica::OpenError> {
        let mut papers = self.papers.lock();
        let handler =
            self.kind.handler.then(|| Arc::new(Judge(papers.decisions.clone())) as Arc<dyn Handler>);
        let validation = match plant {
            Some(Plant::MergeSkipsReads) => Validation::READS.without(Condition::Reads),
            Some(Plant::MergeWritesOnly) => Validation::WRITES_ONLY,
            Some(_) | None => Validation::READS,
        };
        let (route, policy) = (self.kind.route, self.kind.policy);
        let config = Config { route, policy, validation, handler, ..Config::default() };
        let replica = Replica::open(opened, &self.options(), fetch, modules, client, config)?;
        papers.replica = Some(replica);
        papers.restarted();
        Ok(())
    }

    /// Its process is gone, or the power is. Whether there was a process.
    pub fn stop(&mut self, how: Crash) -> bool {
        let mut papers = self.papers.lock();
        self.disk.crash(how);
        if papers.crashed != Some(Crash::PowerCut) {
            papers.crashed = Some(how);
        }
        papers.subscriptions.clear();
        let replica = papers.replica.take();
        if let Some(mut replica) = replica {
            papers.past = sum(papers.past, replica.counts());
            papers.cut += u64::from(replica.cancel());
            return true;
        }
        std::mem::replace(&mut self.opening, false)
    }
}

fn sum(a: Counts, b: Counts) -> Counts {
    Counts {
        transplanted: a.transplanted + b.transplanted,
        replayed: a.replayed + b.replayed,
        confirmed: a.confirmed + b.confirmed,
        published: a.published + b.published,
        branched: a.branched + b.branched,
        rebases: a.rebases + b.rebases,
    }
}

/// Tells plain SQL apart from other plain SQL, before and after its pages were moved to another base.
fn print_of(local: &LocalCommit) -> u64 {
    let mut hasher = DefaultHasher::new();
    local.payload.hash(&mut hasher);
    for (page, bytes) in local.changes.iter().filter(|(page, _)| **page != PageIdx::FIRST) {
        (page.get(), bytes).hash(&mut hasher);
    }
    hasher.finish()
}

/// What the commits of these prints, one after the other, were before: each print's next one there.
fn aligned<'a>(
    prints: impl Iterator<Item = &'a u64>,
    mut before: impl Iterator<Item = (u64, &'a Local)> + Clone,
) -> Vec<Option<&'a Local>> {
    let next = |print: &u64| {
        let mut rest = before.clone();
        let (_, work) = rest.find(|(was, _)| was == print)?;
        before = rest;
        Some(work)
    };
    prints.map(next).collect()
}

impl Papers {
    /// What it did in all its lives.
    pub fn counts(&self) -> Counts {
        self.replica.as_ref().map_or(self.past, |replica| sum(self.past, replica.counts()))
    }

    fn wrong(&mut self, what: String) {
        self.wrong.get_or_insert(what);
    }

    /// The first thing that must hold and does not ends the run.
    fn must(&mut self, checked: Result<(), String>) {
        if let Err(what) = checked {
            self.wrong(what);
        }
    }

    /// The process has started again, on the disk that the last one left.
    fn restarted(&mut self) {
        let Some(replica) = &self.replica else { return };
        let locals = replica.volume().locals();
        let found: Vec<u64> = locals.iter().map(print_of).collect();
        let theirs: BTreeSet<u64> = replica.branches().keys().copied().collect();
        let ours: BTreeSet<u64> = self.branches.keys().copied().collect();
        let same = (found == self.prints, theirs == ours);
        let waiting = self.waiting();
        let is_cut = self.crashed.take() == Some(Crash::PowerCut);
        if is_cut {
            // What was not synced may be undone: settled work is settled again, by the log, and the app is
            // asked again about what was rejected.
            self.newest = Lsn::ZERO;
            self.dealt.retain(|seq| !waiting.contains(seq));
            self.undone(&theirs);
        } else if same != (true, true) {
            let (found, expected) = (found.len(), self.prints.len());
            self.wrong(format!(
                "after a restart it has {found} local commits and the branches {theirs:?} where {expected} and {ours:?} were"
            ));
        }
        self.look(None, is_cut);
        self.stays_dealt_with();
    }

    /// What the app dealt with does not wait for it again.
    fn stays_dealt_with(&mut self) {
        let again = self.waiting().intersection(&self.dealt).copied().next();
        if let Some(seq) = again {
            self.wrong(format!("rejected mutation {seq} waits for the app, which has dealt with it"));
        }
    }

    /// After a power cut these branches are here.
    fn undone(&mut self, branches: &BTreeSet<u64>) {
        let missing: Vec<u64> =
            self.branches.keys().copied().filter(|number| !branches.contains(number)).collect();
        for number in missing {
            self.branches.remove(&number);
            for (seq, made) in self.freed.remove(&number).unwrap_or_default() {
                if self.made.contains_key(&seq) {
                    self.wrong(format!("branch {number} is undone, and its seq {seq} was given again"));
                }
                self.made.insert(seq, made);
            }
        }
        for number in branches {
            if let Some(child) = self.numbers.get(number)
                && let Some(kept) = self.published.get(child)
            {
                self.branches.insert(*number, kept.clone());
            }
        }
        let ours: BTreeSet<u64> = self.branches.keys().copied().collect();
        if ours != *branches {
            self.wrong(format!(
                "after a power cut it has the branches {branches:?}, and can only have {ours:?}"
            ));
        }
    }

    /// The plain SQL on the stack, of which one after the other has these prints. Two may have the same, for
    /// one can bring back what another one wrote over; so a commit is first of all what it was on the stack
    /// before, which loses commits at its end where the power was cut (`is_cut`), and at its beginning else.
    fn sql_of(&self, prints: &[u64], is_cut: bool) -> Vec<Option<Local>> {
        let was =
            self.prints.iter().copied().zip(&self.stack).filter(|(_, work)| matches!(work, Local::Sql(_)));
        let mut works = match is_cut {
            true => aligned(prints.iter(), was),
            false => aligned(prints.iter().rev(), was.rev()),
        };
        if !is_cut {
            works.reverse();
        }
        works
            .into_iter()
            .zip(prints)
            .map(|(was, print)| was.or_else(|| self.ran.get(print)).cloned())
            .collect()
    }

    /// The stack may be another one: reads it, and checks that nothing is lost. `sql` was just run; the power
    /// was just cut (`is_cut`).
    fn look(&mut self, sql: Option<&str>, is_cut: bool) {
        let Some(replica) = &self.replica else { return };
        let base = replica.volume().base().lsn();
        if base < self.newest {
            let newest = self.newest;
            return self.wrong(format!("it went back from lsn {newest} to lsn {base}"));
        }
        self.newest = base;
        let locals = replica.volume().locals();
        let settled = replica.settled();
        let prints: Vec<u64> = locals.iter().map(print_of).collect();
        let records: Vec<Option<Record>> = locals.iter().map(Record::behind).collect();
        let plain: Vec<u64> = prints
            .iter()
            .zip(&records)
            .filter(|(_, record)| record.is_none())
            .map(|(print, _)| *print)
            .collect();
        let mut works = self.sql_of(&plain, is_cut);
        if let (Some(sql), Some(new)) = (sql.filter(|_| locals.len() > self.stack.len()), works.last_mut()) {
            *new = Some(Local::Sql(sql.into()));
        }
        let mut works = works.into_iter();
        let mut stack = Vec::with_capacity(locals.len());
        let mut unknown = None;
        for ((local, print), record) in locals.iter().zip(&prints).zip(records) {
            match record.map(Local::Ran).or_else(|| works.next().flatten()) {
                Some(work) => {
                    if matches!(work, Local::Sql(_)) {
                        self.ran.insert(*print, work.clone());
                    }
                    stack.push(work);
                }
                None => unknown = Some(local.number),
            }
        }
        if let Some(number) = unknown {
            self.wrong(format!("local commit {number} is nobody's: {replica:?}", replica = self.replica));
        }
        (self.stack, self.prints) = (stack, prints);
        let checked = self.each_once(settled);
        self.must(checked);
    }

    /// Every mutation that was taken and has no final answer is on the stack once, in order, as it was
    /// made or as the app edited it.
    fn each_once(&mut self, settled: u64) -> Result<(), String> {
        let mut expected =
            self.made.range(settled + 1..).map(|(seq, _)| *seq).collect::<Vec<_>>().into_iter();
        for work in &self.stack {
            let Local::Ran(Record { op: Op::Mutation(mutation), .. }) = work else { continue };
            let seq = mutation.seq;
            if expected.next() != Some(seq) {
                return Err(format!(
                    "mutation {seq} is on its stack, and should not be there (settled {settled})"
                ));
            }
            let made = self.made.get_mut(&seq).ok_or("a mutation that was never made")?;
            if !made.is(mutation) {
                // A power cut may undo an edit.
                let before = self.before_edits.entry(seq).or_default();
                if let Some(other) = before.iter().find(|other| other.is(mutation)).cloned() {
                    before.push(std::mem::replace(made, other));
                    continue;
                }
                let decisions = self.decisions.lock();
                let edit = decisions.edits.get(&seq).and_then(|edits| {
                    edits.iter().find(|(reducer, args)| {
                        *reducer == mutation.reducer
                            && serde_json::to_string(args).is_ok_and(|text| text == mutation.args)
                    })
                });
                let Some((reducer, args)) = edit.cloned() else {
                    return Err(format!("{mutation:?} is on its stack; made was {made:?}"));
                };
                before.push(made.clone());
                (made.reducer, made.args) = (reducer, args);
            }
        }
        match expected.next() {
            Some(seq) => {
                Err(format!("mutation {seq} was taken, has no final answer, and is gone from its stack"))
            }
            None => Ok(()),
        }
    }

    /// The app hears what happened.
    fn hear(&mut self, before: &[Local], prints: &[u64], base: Lsn) {
        let Some(replica) = &mut self.replica else { return };
        for event in replica.take_events() {
            match event {
                Event::Durable { seq, lsn } => self.news.push((seq, Told::Durable(lsn))),
                Event::Rejected { seq, lsn, .. } => self.news.push((seq, Told::Rejected(lsn))),
                Event::Forked { to, .. } => self.forked(to, before, prints, base),
                Event::Published { branch, volume, .. } => {
                    if let Some(kept) = self.branches.remove(&branch) {
                        self.published.insert(volume, kept);
                        if let Some(other) =
                            self.numbers.insert(branch, volume).filter(|other| *other != volume)
                        {
                            self.wrong(format!("branch {branch} was published as {other} and as {volume}"));
                        }
                    }
                }
                Event::Refused { seq, reason } => self.wrong(format!("mutation {seq} was refused: {reason}")),
                Event::Merged { .. } | Event::Replayed { .. } | Event::Redeployed { .. } => {}
            }
        }
        if let Some(reason) = self.replica.as_ref().and_then(Replica::ended).cloned() {
            self.wrong(format!("the client cannot go on: {reason}"));
        }
        for (seq, told) in self.news.clone() {
            if let Some(other) = self.told.insert(seq, told).filter(|other| *other != told) {
                self.wrong(format!("mutation {seq} ended twice: {other:?}, then {told:?}"));
            }
        }
    }

    /// Work went to a branch: which, the old stack says.
    fn forked(&mut self, number: u64, before: &[Local], prints: &[u64], base: Lsn) {
        let branch = self.replica.as_ref().and_then(|replica| replica.branch(number)).cloned();
        let Some(branch) = branch else { return self.wrong(format!("there is no branch {number}")) };
        let held: Vec<u64> = branch.commits().iter().map(print_of).collect();
        if branch.base != base.0 || !prints.starts_with(&held) {
            return self.wrong(format!("branch {number} is not the stack that was on lsn {base}"));
        }
        // Numbers are given again once their branch is gone.
        self.numbers.remove(&number);
        self.freed.remove(&number);
        self.begun.remove(&number);
        self.stuck.remove(&number);
        let work = before[..held.len()].to_vec();
        let replica = self.replica.as_ref();
        let settled = replica.map_or(0, Replica::settled);
        let locals = replica.map(|replica| replica.volume().locals()).unwrap_or_default();
        let stays: BTreeSet<u64> =
            locals.iter().filter_map(|local| seq_of(&Record::behind(local)?)).collect();
        for seq in work.iter().filter_map(Local::seq) {
            if seq > settled && !stays.contains(&seq) {
                // Its seq is free again; its work is in the branch alone.
                let made = self.made.remove(&seq).map(|made| (seq, made));
                self.freed.entry(number).or_default().extend(made);
            }
        }
        self.branches.insert(number, Kept { base, work });
    }

    /// Does something with the document, and looks at what came of it.
    fn with<T>(&mut self, sql: Option<&str>, body: impl FnOnce(&mut Replica) -> T) -> Option<T> {
        let replica = self.replica.as_mut()?;
        let base = replica.volume().base().lsn();
        let answer = body(replica);
        let (before, prints) = (self.stack.clone(), self.prints.clone());
        self.hear(&before, &prints, base);
        self.look(sql, false);
        self.refresh();
        Some(answer)
    }

    /// Live queries show what a query answers.
    fn refresh(&mut self) {
        // One whose pages cannot be had is tried again by the next call.
        const TRIES: u32 = 20;
        for last in (0..TRIES).rev() {
            self.show_changes();
            let Some(replica) = &self.replica else { return };
            let differs = self.subscriptions.values().find_map(|(ask, shown)| {
                let rows = replica.query(ask.sql(), &ask.params()).ok()?;
                let now = rows_text(&wire_rows(&rows.rows));
                (now != *shown)
                    .then(|| format!("the live query {ask:?} shows {shown}; asked now it is {now}"))
            });
            match differs {
                None => return,
                Some(what) if last == 0 => self.wrong(what),
                Some(_) => {}
            }
        }
    }

    fn show_changes(&mut self) {
        let changed = self.replica.as_mut().map(Replica::refresh).unwrap_or_default();
        for (subscription, rows) in changed {
            match (self.subscriptions.get_mut(&subscription), rows) {
                (Some((_, shown)), Ok(rows)) => *shown = rows_text(&wire_rows(&rows.rows)),
                (Some((ask, _)), Err(error)) => {
                    let what = format!("the live query {ask:?} failed: {error}");
                    self.wrong(what);
                }
                (None, _) => self.wrong(format!("there is no live query {subscription}")),
            }
        }
    }

    /// The app makes a mutation. `Ok(None)` where it was refused at once or cannot run now.
    pub fn mutate(&mut self, made: Made) -> Result<Option<u64>, String> {
        let Made { reducer, args, clock, seed, .. } = made.clone();
        let Some(answer) = self.with_new(made, |replica| replica.mutate(&reducer, args, clock, seed.0))
        else {
            return Ok(None);
        };
        taken(answer)
    }

    fn with_new(
        &mut self,
        made: Made,
        body: impl FnOnce(&mut Replica) -> Result<u64, MutateError>,
    ) -> Option<Result<u64, MutateError>> {
        let answer = body(self.replica.as_mut()?);
        if let Ok(seq) = answer
            && let Some(other) = self.made.insert(seq, made)
        {
            self.wrong(format!("seq {seq} was given to two mutations, the first {other:?}"));
        }
        self.with(None, |_| ())?;
        Some(answer)
    }

    /// The app deals with what was rejected: tries it again, changes it, or gives it up.
    pub fn deal_with_rejected(&mut self, made: Made) -> Result<Option<u64>, String> {
        let Some(replica) = &self.replica else { return Ok(None) };
        let rejected: Vec<_> = replica.rejected().map(|(mutation, _)| mutation.clone()).collect();
        if rejected.is_empty() {
            return Ok(None);
        }
        let one = rejected[self.random.index(rejected.len())].clone();
        let (clock, seed) = (made.clock, made.seed.0);
        let answer = match self.random.below(3) {
            0 => {
                let args = serde_json::from_str(&one.args).map_err(|error| error.to_string())?;
                let again = Made { reducer: one.reducer, args, ..made };
                self.with_new(again, |replica| replica.retry(one.seq, clock, seed)).map_or(Ok(None), taken)
            }
            1 => {
                let (reducer, args) = (made.reducer.clone(), made.args.clone());
                let edited =
                    self.with_new(made, |replica| replica.edit(one.seq, &reducer, args, clock, seed));
                edited.map_or(Ok(None), taken)
            }
            _ => {
                let discarded = self.with(None, |replica| replica.discard(one.seq)).unwrap_or(Ok(()));
                taken(discarded.map(|()| 0))
            }
        };
        if let Ok(Some(_)) = answer {
            self.dealt.insert(one.seq);
            self.stays_dealt_with();
        }
        // 0 is no seq: it was given up.
        answer.map(|seq| seq.filter(|seq| *seq > 0))
    }

    /// Rejected mutations that wait for the app.
    pub fn waiting(&self) -> BTreeSet<u64> {
        let replica = self.replica.iter();
        replica.flat_map(|replica| replica.rejected().map(|(mutation, _)| mutation.seq)).collect()
    }

    /// The app runs SQL. Answers what it is told.
    pub fn execute(&mut self, sql: &str) -> Result<u64, MutateError> {
        self.with(Some(sql), |replica| replica.execute(sql)).unwrap_or(Ok(0))
    }

    /// The app puts a version of the module in force.
    pub fn deploy(&mut self, version: u32, clock: i64) -> Result<(), MutateError> {
        let seed = self.random.draw();
        self.with(None, |replica| replica.deploy(bank::module(version), clock, seed)).unwrap_or(Ok(()))
    }

    /// The app gives a rebase up in the middle.
    pub fn cancel(&mut self) -> bool {
        let cancelled = self.with(None, Replica::cancel).unwrap_or(false);
        self.cut += u64::from(cancelled);
        cancelled
    }

    /// The app opens a live query, or closes one.
    pub fn subscribe_or_not(&mut self) {
        let ask = Ask::random(&mut self.random);
        let Some(replica) = &mut self.replica else { return };
        if self.subscriptions.len() >= SUBSCRIPTIONS {
            if let Some((subscription, _)) = self.subscriptions.pop_first() {
                replica.unsubscribe(subscription);
            }
        } else if let Ok((subscription, rows)) = replica.subscribe(ask.sql(), &ask.params(), ask.key()) {
            self.subscriptions.insert(subscription, (ask, rows_text(&wire_rows(&rows.rows))));
        }
    }

    /// The app reads. What it sees is checked against what always holds, and kept for the oracle.
    pub fn read(&mut self, who: usize, ask: Ask, at: u64) {
        let Some(replica) = &self.replica else { return };
        let Ok(rows) = replica.query(ask.sql(), &ask.params()) else { return };
        let rows = wire_rows(&rows.rows);
        let lsn = replica.volume().base().lsn();
        if let Err(wrong) = ask.check(&rows) {
            let stack = self.stack.len();
            self.wrong(format!("it shows on lsn {lsn} and {stack} local commits what can never be: {wrong}"));
        }
        let seen = Seen { lsn, local: self.stack.clone(), ask, who, at, rows: rows_text(&rows) };
        self.seen.push(seen);
    }

    /// Whether there are branches that may still be published.
    pub fn has_unpublished(&self) -> bool {
        self.branches.keys().any(|number| !self.stuck.contains(number))
    }

    /// Whether it has nothing to send and nothing under way.
    pub fn is_settled(&self, head: Lsn) -> bool {
        self.replica.as_ref().is_some_and(|replica| {
            let status = replica.status();
            status.ahead == 0 && !status.pushing && status.lsn == head && replica.pending().next().is_none()
        })
    }

    /// The app may drop a branch that it has not begun to publish.
    pub fn drop_some_branch(&mut self) -> Option<u64> {
        let number = self.branches.keys().copied().find(|number| !self.begun.contains(number))?;
        match self.with(None, |replica| replica.drop_branch(number))? {
            Ok(true) => {
                self.branches.remove(&number);
                Some(number)
            }
            Ok(false) => {
                self.wrong(format!("branch {number} is not there to be dropped"));
                None
            }
            // Its disk is full.
            Err(_) => None,
        }
    }
}

fn taken(answer: Result<u64, MutateError>) -> Result<Option<u64>, String> {
    match answer {
        Ok(seq) => Ok(Some(seq)),
        Err(MutateError::Rejected(_) | MutateError::Blocked(_)) => Ok(None),
        Err(error) => Err(error.to_string()),
    }
}

fn seq_of(record: &Record) -> Option<u64> {
    match &record.op {
        Op::Mutation(mutation) => Some(mutation.seq),
        Op::Deploy { .. } => None,
    }
}

impl Local {
    /// The seq of its mutation, if it is one.
    pub fn seq(&self) -> Option<u64> {
        match self {
            Local::Ran(record) => seq_of(record),
            Local::Sql(_) => None,
        }
    }

    /// Whether it had an effect.
    pub fn applied(&self) -> bool {
        match self {
            Local::Ran(record) => record.outcome == Outcome::Applied,
            Local::Sql(_) => true,
        }
    }
}

/// One round of a document's task.
#[derive(Debug)]
pub struct Round {
    /// The document.
    pub papers: SharedPapers,
    /// Its way to the store.
    pub remote: Handle,
    /// Its clock, ms since 1970.
    pub now_ms: i64,
    /// Whether it publishes its branches by itself.
    pub publishes: bool,
    /// Whether it stands still between its steps.
    pub dawdles: bool,
    /// Where it notes the forks that it made.
    pub family: super::keepers::SharedFamily,
}

const GONE: &str = "its process ended";

impl Round {
    fn with<T>(&self, body: impl FnOnce(&mut Replica) -> T) -> Result<T, String> {
        self.papers.lock().with(None, body).ok_or_else(|| GONE.into())
    }

    fn draw(&self, end: u64) -> u64 {
        self.papers.lock().random.below(end)
    }

    /// One push and one pull, as the driver does them. Answers what became of it.
    pub async fn run(self) -> Result<String, String> {
        let pushed = self.push().await?;
        let volume = self.with(|replica| replica.volume().clone())?;
        let pulled = volume.pull(&self.remote).await.map_err(|error| error.to_string())?;
        let commits = pulled.heads.len();
        let slice = 1 + self.draw(6);
        let mut progress = self.with(|replica| replica.pulled(pulled))?.map_err(|error| error.to_string())?;
        while progress != Progress::Done {
            if self.dawdles && self.draw(3) == 0 {
                let pause = 1 + self.draw(400);
                self.remote.sleep(pause).await;
            }
            progress = self.with(|replica| replica.step(slice))?.map_err(|error| error.to_string())?;
        }
        if self.publishes {
            self.publish_branches().await?;
        }
        let status = self.with(|replica| replica.status())?;
        Ok(format!("{pushed}, pulled {commits} commits: {status}"))
    }

    async fn push(&self) -> Result<String, String> {
        let id = CommitId(self.papers.lock().random.bytes16());
        let sealed =
            self.with(|replica| replica.seal(id, self.now_ms))?.map_err(|error| error.to_string())?;
        let Some(prepared) = sealed else { return Ok("nothing to push".into()) };
        {
            let mut papers = self.papers.lock();
            let work = papers.stack.iter().take(prepared.locals).cloned().collect();
            papers.sealed.entry(prepared.head.id).or_insert(work);
        }
        let result = publish(&self.remote, &prepared).await;
        match self.with(|replica| replica.published(&prepared, result))? {
            Ok(lsn) => Ok(format!("pushed lsn {lsn}")),
            Err(PushError::Publish(PublishError::Rejected { lsn })) => Ok(format!("lost lsn {lsn}")),
            // Nobody can say any more whether it is in the log: the ledger can, and what was pulled.
            Err(PushError::Publish(PublishError::Forgotten { lsn, .. })) => {
                Ok(format!("lsn {lsn} is forgotten"))
            }
            Err(error) => Err(error.to_string()),
        }
    }

    async fn publish_branches(&self) -> Result<(), String> {
        let numbers: Vec<u64> = {
            let papers = self.papers.lock();
            papers.branches.keys().copied().filter(|number| !papers.stuck.contains(number)).collect()
        };
        for number in numbers {
            let child = VolumeId(self.papers.lock().random.bytes16());
            let name: VolumeName = format!("branch-{child}").parse().map_err(|_| "not a name".to_owned())?;
            self.papers.lock().begun.insert(number);
            let begun = self.with(|replica| replica.begin_publication(number, &name, child, self.now_ms))?;
            let publication = begun.map_err(|error| error.to_string())?;
            let result = publishing::publish(&self.remote, &publication).await;
            let told = result.clone();
            let ended = self.with(|replica| replica.publication_ended(&publication, &told))?;
            ended.map_err(|error| error.to_string())?;
            match result {
                Ok(_) => {
                    let parent = Some(self.with(|replica| replica.volume().id())?);
                    let mut family = self.family.lock();
                    family.forks.push(publication.volume);
                    family.names.insert(publication.volume, (publication.name.clone(), parent));
                    *family.done.entry("branches published").or_default() += 1;
                }
                Err(error) if error.is_passing() => return Err(error.to_string()),
                Err(error @ BranchError::Fork(_)) => {
                    // The commit that it was made on is collected: it stays here.
                    self.papers.lock().stuck.insert(number);
                    return Err(error.to_string());
                }
                Err(error) => {
                    self.papers.lock().wrong(format!("branch {number} cannot be published: {error}"));
                    return Err(error.to_string());
                }
            }
        }
        Ok(())
    }
}
