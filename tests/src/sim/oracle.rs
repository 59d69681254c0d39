//! The oracle: what is stored, replayed serially in a plain SQLite, against the volume and against
//! everything that anyone was told or shown.
//!
//! | checked | by |
//! | --- | --- |
//! | the log has no gaps and each commit names its predecessor's hash | reading every log entry |
//! | each commit is one that somebody made; an acknowledged one is there | [`Truth`] |
//! | each client's seqs are recorded once, in order, with what the client made | the payloads |
//! | every outcome is what a serial run gives | [`replay::Plain`] |
//! | each answer is recorded so | the payloads |
//! | rows shown of a durable state are the query's answer at that state | [`replay::Plain`] |
//! | what was collected has a tombstone that says what it was; what is retained is as it was | the archive |
//! | what was read on a replica is what a serial run of its local work on its commit answers | `reads` |
//! | what was read durably fits one serial order, judged without the log | [`super::serial`] |
//! | each document, at rest, equals the replay | a dump of both |
//! | each fork, opened fresh, equals the replay at its LSN and what was written to it | `family` |
//! | each checkpoint's ledger is what the log gives at its LSN | the archive |
//! | the volume, opened fresh, equals the replay and passes `integrity_check` | a dump of both |
//!
//! Rows say to which epoch and LSN they belong. Where that epoch published that LSN they are to equal
//! the answer after some record of that commit (a tip moves in batches, of which the commit holds
//! several), and the state's last seq of the receiver is to be the one that came with them.

mod dump;
mod family;
mod reads;
mod replay;

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use futures::FutureExt as _;
use futures::executor::block_on;
use graft::format::commit::Head;
use graft::format::tombstone::{Of, Tombstone};
use graft::remote::{MemoryRemote, Remote, SharedRemote};
use graft::{ChainHash, CommitId, Lsn, Seq, VolumeId, key};
use sqlsync_layer::ledger::Ledger;
use sqlsync_layer::payload::{Mutation, Op, Outcome, Payload};
use sqlsync_layer::protocol::codes;
use sqlsync_layer::vfs::Database;

use self::replay::Plain;
use super::bank;
use super::clients;
use super::keepers::Family;
use super::serial::Extent;
use super::truth::{Claim, Local, Seen, Shown, Told, Truth};

/// What a clean run holds.
#[derive(Debug, Clone, Copy, Default)]
pub struct Verdict {
    /// Commits in the log.
    pub lsns: u64,
    /// Of those, by direct writers.
    pub direct: u64,
    /// Mutations applied.
    pub applied: u64,
    /// Mutations recorded as rejected.
    pub rejected: u64,
    /// Sets of rows compared with the state that they claim.
    pub shown_checked: u64,
    /// Commits by documents.
    pub documents: u64,
    /// What the check for serializability looked at.
    pub serial: Extent,
}

/// All that a replica holds: schema and rows, a line each.
pub fn dump_of(database: &Arc<Database>) -> Result<Vec<String>, String> {
    dump::of_database(database)
}

/// Checks everything. An error says what does not hold.
///
/// `archive` is every log entry that ever landed: what is collected is judged by it.
pub fn check(
    objects: &Arc<MemoryRemote>,
    volume: VolumeId,
    truth: &Truth,
    archive: &BTreeMap<String, Bytes>,
    family: &Family,
) -> Result<Verdict, String> {
    let remote: SharedRemote = objects.clone();
    let heads = read_log(objects, archive, volume, Lsn::ZERO, ChainHash::ZERO)?;
    let mut forks = family::Forks::find(&remote, volume, family, truth)?;
    let found = dump::of_volume(&remote, volume);
    // First what needs no replay: it tells the most.
    let serial = reads::serializable(truth, &heads, &remote, volume)?;
    let mut judge = Judge::new(truth, &heads)?;
    forks.pass(Lsn::ZERO, &judge.plain)?;
    judge.reads(Lsn::ZERO)?;
    for head in &heads {
        judge.commit(head)?;
        judge.reads(head.lsn)?;
        forks.pass(head.lsn, &judge.plain)?;
    }
    judge.answers()?;
    judge.verdict.serial = serial;
    forks.check(&remote, objects, archive, family, &heads)?;
    check_ledgers(archive, &forks)?;
    let expected = dump::of_connection(judge.plain.connection())?;
    dump::compare(&expected, &found?)?;
    for document in &truth.at_rest {
        let differs = |error| format!("document {} at lsn {}: {error}", document.who, document.lsn);
        dump::compare(&expected, &document.dump).map_err(differs)?;
    }
    Ok(judge.verdict)
}

/// Whether what was read so far fits no serial order: for the report of something else that does not hold.
/// `None` also where the log cannot be read.
pub fn cycle(
    objects: &Arc<MemoryRemote>,
    volume: VolumeId,
    truth: &Truth,
    archive: &BTreeMap<String, Bytes>,
) -> Option<String> {
    let remote: SharedRemote = objects.clone();
    let heads = read_log(objects, archive, volume, Lsn::ZERO, ChainHash::ZERO).ok()?;
    reads::serializable(truth, &heads, &remote, volume)
        .err()
        .filter(|what| what.starts_with("not serializable"))
}

/// What is wrong with the log as it is stored, for the report of something else that does not hold.
pub fn damage(objects: &MemoryRemote, volume: VolumeId, archive: &BTreeMap<String, Bytes>) -> Option<String> {
    read_log(objects, archive, volume, Lsn::ZERO, ChainHash::ZERO).err()
}

/// Every log entry after `from`, oldest first: no gaps, each naming its predecessor's hash, each stored
/// as it was or as the tombstone that is left of it.
fn read_log(
    objects: &MemoryRemote,
    archive: &BTreeMap<String, Bytes>,
    volume: VolumeId,
    from: Lsn,
    mut parent: ChainHash,
) -> Result<Vec<Head>, String> {
    let mut heads: Vec<Head> = Vec::new();
    let prefix = key::log_prefix(volume);
    let remote: &dyn Remote = objects;
    let floor = block_on(graft::gc::published(remote, volume)).map_err(|error| error.to_string())?.lsn;
    let bottom = block_on(graft::gc::bottom::bottom(remote, volume)).map_err(|error| error.to_string())?.lsn;
    let entries = archive.range(prefix.clone()..).take_while(|(key, _)| key.starts_with(&prefix));
    let mut entries: Vec<_> = entries.collect();
    entries.reverse();
    for (expected, (key, body)) in (from.next().0..).zip(entries) {
        let lsn = Lsn(expected);
        if *key != key::log(volume, lsn) {
            return Err(format!("the log has {key} where lsn {lsn} should be"));
        }
        let head = Head::decode(volume, lsn, body).map_err(|error| format!("lsn {lsn}: {error:?}"))?;
        if head.parent != parent {
            return Err(format!("lsn {lsn} names {:?} as its parent, which is {parent:?}", head.parent));
        }
        let stored = match objects.get(key).now_or_never() {
            Some(Ok(stored)) => stored,
            // What collections bury is far below the floor.
            Some(Err(_)) if lsn <= bottom => {
                parent = head.hash;
                heads.push(head);
                continue;
            }
            Some(Err(_)) | None => {
                return Err(format!("lsn {lsn} is gone, and no tombstone says what it was"));
            }
        };
        if lsn <= bottom && stored != *body {
            // Its key was free again: a create that came late may have taken it, and was buried since. Whoever
            // sent that was not told that it is in the log: answers are compared with what is.
            let left = Tombstone::decode(volume, Of::Commit(lsn), &stored).is_ok();
            if !left && Head::decode(volume, lsn, &stored).is_err() {
                return Err(format!("lsn {lsn} is not what it was, and no commit"));
            }
        } else if Tombstone::is_one(&stored) {
            let left = Tombstone::decode(volume, Of::Commit(lsn), &stored);
            let left = left.map_err(|error| format!("lsn {lsn}: {error}"))?;
            if lsn > floor || (left.id, left.hash) != (head.id, head.hash) {
                return Err(format!("lsn {lsn} has a false tombstone: {left:?}; the floor is lsn {floor}"));
            }
        } else if stored != *body {
            return Err(format!("lsn {lsn} is not what it was"));
        }
        for part in (1..=head.segments.len()).filter(|_| lsn > floor) {
            let key = key::segment(volume, lsn, head.id, part as u32);
            let stored = matches!(objects.get(&key).now_or_never(), Some(Ok(_)));
            if !stored {
                return Err(format!("lsn {lsn} names the segment {key}, which is not stored"));
            }
        }
        parent = head.hash;
        heads.push(head);
    }
    Ok(heads)
}

/// Every checkpoint that ever was: its ledger is the one that the log gives, a fork's the one of its
/// ancestors' logs and its own.
fn check_ledgers(archive: &BTreeMap<String, Bytes>, forks: &family::Forks) -> Result<(), String> {
    let past = MemoryRemote::new();
    archive.iter().for_each(|(key, body)| past.overwrite(key, body.clone()));
    for volume in forks.volumes() {
        let prefix = key::checkpoints_prefix(volume);
        for (key, _) in archive.range(prefix.clone()..).take_while(|(key, _)| key.starts_with(&prefix)) {
            let seq = Seq::from_key_part(&key[prefix.len()..]).ok_or_else(|| format!("{key}?"))?;
            let start = block_on(graft::history::read_checkpoint(&past, volume, seq));
            let start = start.map_err(|error| format!("{key}: {error}"))?;
            let Some(root) = &start.checkpoint else { return Err(format!("{key} is empty")) };
            let mut expected = Ledger::default();
            for lsn in (1..=start.lsn.0).map(Lsn) {
                let entry = key::log(root.lineage.origin(lsn), lsn);
                let body = archive.get(&entry).ok_or_else(|| format!("{entry} never was"))?;
                let head = Head::decode(root.lineage.origin(lsn), lsn, body);
                let head = head.map_err(|error| format!("{entry}: {error:?}"))?;
                expected.follow(&[head]).map_err(|error| error.to_string())?;
            }
            let found = Ledger::decode(&start.state);
            if found.as_ref() != Ok(&expected) {
                let lsn = start.lsn;
                return Err(format!(
                    "{key}: its ledger is not that of lsn {lsn}: {found:?}, not {expected:?}"
                ));
            }
        }
    }
    Ok(())
}

struct Judge<'a> {
    truth: &'a Truth,
    plain: Plain,
    ids: BTreeMap<CommitId, Lsn>,
    /// The last seq recorded for each client, and how each ended.
    last: Vec<u64>,
    outcomes: Vec<BTreeMap<u64, Told>>,
    deploys: Vec<(u32, Lsn)>,
    shown: BTreeMap<Lsn, Vec<&'a Shown>>,
    seen: BTreeMap<Lsn, Vec<&'a Seen>>,
    verdict: Verdict,
}

impl<'a> Judge<'a> {
    fn new(truth: &'a Truth, heads: &[Head]) -> Result<Judge<'a>, String> {
        let mut shown: BTreeMap<Lsn, Vec<&Shown>> = BTreeMap::new();
        for rows in &truth.shown {
            shown.entry(rows.lsn).or_default().push(rows);
        }
        let mut seen: BTreeMap<Lsn, Vec<&Seen>> = BTreeMap::new();
        for rows in &truth.seen {
            seen.entry(rows.lsn).or_default().push(rows);
        }
        Ok(Judge {
            truth,
            plain: Plain::new()?,
            ids: heads.iter().map(|head| (head.id, head.lsn)).collect(),
            last: vec![0; truth.made.len()],
            outcomes: vec![BTreeMap::new(); truth.made.len()],
            deploys: Vec::new(),
            shown,
            seen,
            verdict: Verdict::default(),
        })
    }

    /// Replays one commit and compares what was shown of its states.
    fn commit(&mut self, head: &Head) -> Result<(), String> {
        let lsn = head.lsn;
        self.verdict.lsns += 1;
        let payload = Payload::decode(head).map_err(|error| format!("lsn {lsn}: {error}"))?;
        let mut claims = self.claims(head)?;
        if self.truth.lost.contains(&head.id) {
            return Err(format!("lsn {lsn} is a commit whose maker was told that the lsn went to another"));
        }
        if let Some(texts) = self.truth.direct.get(&head.id) {
            self.verdict.direct += 1;
            if !payload.records.is_empty() {
                return Err(format!("lsn {lsn} is a direct write, and records mutations"));
            }
            for text in texts {
                self.plain.direct(text).map_err(|error| format!("lsn {lsn}: direct SQL: {error}"))?;
            }
        } else if let Some(work) = self.truth.documents.get(&head.id) {
            self.verdict.documents += 1;
            self.document(lsn, work, &payload)?;
        } else if self.truth.published.contains_key(&head.id) {
            for record in &payload.records {
                self.record(lsn, &record.op, &record.outcome)?;
                self.settle_claims(&mut claims, false)?;
            }
        } else {
            return Err(format!("lsn {lsn} was made by nobody: {:?}", head.id));
        }
        self.settle_claims(&mut claims, true)?;
        match claims.first() {
            None => Ok(()),
            Some(shown) => Err(format!(
                "client {} was shown rows of {:?} that lsn {lsn} never had ({:?}): {}\nat its end they are {}",
                shown.client,
                shown.ask,
                shown.claim,
                shown.rows,
                self.plain.ask(shown.ask).unwrap_or_else(|error| error)
            )),
        }
    }

    /// What a document put into the log: its local commits, in order.
    fn document(&mut self, lsn: Lsn, work: &[Local], payload: &Payload) -> Result<(), String> {
        let mut records = payload.records.iter();
        for local in work {
            match local {
                Local::Sql(text) => {
                    self.plain
                        .direct(text)
                        .map_err(|error| format!("lsn {lsn}: a document's SQL: {error}"))?;
                }
                Local::Ran(ran) => {
                    let record = records.next().filter(|record| *record == ran);
                    let record = record.ok_or_else(|| format!("lsn {lsn} does not record {ran:?}"))?;
                    self.record(lsn, &record.op, &record.outcome)?;
                }
            }
        }
        match records.next() {
            Some(record) => Err(format!("lsn {lsn} records {record:?}, which was not on the stack")),
            None => Ok(()),
        }
    }

    /// What was shown as a state of this commit, and must therefore be one.
    fn claims(&mut self, head: &Head) -> Result<Vec<&'a Shown>, String> {
        let mut claims = Vec::new();
        for shown in self.shown.remove(&head.lsn).unwrap_or_default() {
            let must = match shown.claim {
                Claim::Exactly => true,
                Claim::At { epoch, .. } => {
                    let Some(began) = self.truth.epochs.get(&epoch) else {
                        return Err(format!(
                            "client {} was told of epoch {epoch}, which never was",
                            shown.client
                        ));
                    };
                    if shown.lsn < *began {
                        return Err(format!(
                            "epoch {epoch} began at lsn {began}, and showed lsn {}",
                            shown.lsn
                        ));
                    }
                    shown.lsn == *began || self.truth.published.get(&head.id) == Some(&epoch)
                }
            };
            if must {
                claims.push(shown);
            }
        }
        self.verdict.shown_checked += claims.len() as u64;
        Ok(claims)
    }

    /// Takes off the claims that the present state meets.
    fn settle_claims(&mut self, claims: &mut Vec<&Shown>, end: bool) -> Result<(), String> {
        let mut answers = BTreeMap::new();
        let mut unmet = Vec::with_capacity(claims.len());
        for shown in claims.drain(..) {
            let met = match shown.claim {
                Claim::Exactly => end,
                Claim::At { epoch, seq } => {
                    // What an epoch found when it began is whole commits.
                    let whole = self.truth.epochs.get(&epoch) == Some(&shown.lsn);
                    (end || !whole) && self.last[shown.client] == seq
                }
            };
            let answer = match (met, answers.get(&shown.ask)) {
                (false, _) => None,
                (true, Some(answer)) => Some(answer),
                (true, None) => {
                    let answer: String = self.plain.ask(shown.ask)?;
                    Some(&*answers.entry(shown.ask).or_insert(answer))
                }
            };
            if answer != Some(&shown.rows) {
                unmet.push(shown);
            }
        }
        *claims = unmet;
        Ok(())
    }

    fn record(&mut self, lsn: Lsn, op: &Op, recorded: &Outcome) -> Result<(), String> {
        let code = match recorded {
            Outcome::Applied => None,
            Outcome::Rejected(reason) => Some(reason.code.as_str()),
        };
        // The app's decision, which no replay makes.
        let discarded = code == Some(codes::DISCARDED);
        let replayed = match op {
            Op::Deploy { .. } if discarded => return Ok(()),
            Op::Mutation(mutation) => {
                self.sequence(lsn, mutation, code.is_none())?;
                if discarded {
                    return Ok(());
                }
                self.plain.mutation(mutation)?
            }
            Op::Deploy { module, schema, clock, seed } => {
                let version = bank::version(*module).ok_or_else(|| format!("lsn {lsn} deploys {module}"))?;
                if code.is_none() {
                    self.deploys.push((version, lsn));
                }
                self.plain.deploy(version, *schema, *clock, seed.0)?
            }
        };
        if replayed.as_deref() != code {
            return Err(format!(
                "lsn {lsn}: {op:?} is recorded as {recorded:?}; run serially it ends with {replayed:?}"
            ));
        }
        Ok(())
    }

    /// Exactly once, in order, and what the client made.
    fn sequence(&mut self, lsn: Lsn, mutation: &Mutation, applied: bool) -> Result<(), String> {
        let found = (0..self.last.len()).find(|at| clients::id(*at) == mutation.client);
        let client = found.ok_or_else(|| format!("lsn {lsn} records a stranger: {mutation:?}"))?;
        let expected = self.last[client] + 1;
        if mutation.seq != expected {
            return Err(format!("lsn {lsn} records {mutation:?} where seq {expected} should be"));
        }
        self.last[client] = expected;
        let made = self.truth.made[client].get(&mutation.seq);
        let made = made.ok_or_else(|| format!("lsn {lsn} records {mutation:?}, which was never made"))?;
        if !made.is(mutation) {
            return Err(format!("lsn {lsn} records {mutation:?}; its client made {made:?}"));
        }
        if applied {
            self.verdict.applied += 1;
        } else {
            self.verdict.rejected += 1;
        }
        let told = if applied { Told::Durable(lsn) } else { Told::Rejected(lsn) };
        self.outcomes[client].insert(mutation.seq, told);
        Ok(())
    }

    /// What clients, writers and deployers were told, against the log; and nobody waits for an answer.
    fn answers(&self) -> Result<(), String> {
        for (client, made) in self.truth.made.iter().enumerate() {
            for seq in made.keys() {
                let (told, recorded) = (self.truth.told[client].get(seq), self.outcomes[client].get(seq));
                // A document whose process died may have missed its answer, which is in the log.
                let missed = told.is_none() && self.truth.forgetful.contains(&client);
                // One whose disk was lost has lost what was not in the log.
                if recorded.is_none() && told.is_none() && self.truth.disk_lost.contains(&client) {
                    continue;
                }
                if recorded.is_none() || (told != recorded && !missed) {
                    return Err(format!(
                        "client {client} was told {told:?} of its mutation {seq}; the log says {recorded:?}"
                    ));
                }
            }
        }
        for (who, (waiting, dealt)) in &self.truth.rejected {
            for (seq, told) in &self.outcomes[*who] {
                let rejected = matches!(told, Told::Rejected(_));
                let known = waiting.contains(seq) || dealt.contains(seq);
                if rejected != known {
                    return Err(format!(
                        "the log says {told:?} of mutation {seq} of document {who}, where {waiting:?} wait as \
                         rejected and {dealt:?} were dealt with"
                    ));
                }
            }
        }
        for (id, lsn) in &self.truth.direct_durable {
            if self.ids.get(id) != Some(lsn) {
                return Err(format!("a direct write was acknowledged under lsn {lsn} and is not there"));
            }
        }
        for (version, lsn) in &self.truth.deployed {
            let found = self.deploys.iter().any(|(found, at)| found == version && at <= lsn);
            if !found {
                return Err(format!(
                    "a deploy of version {version} was acknowledged under lsn {lsn} and is not there"
                ));
            }
        }
        if let Some((lsn, _)) = self.seen.first_key_value() {
            return Err(format!("somebody read at lsn {lsn}, which the log does not have"));
        }
        match self.shown.values().flatten().find(|shown| shown.claim == Claim::Exactly) {
            Some(shown) => {
                Err(format!("a coordinator was at lsn {}, which the log does not have", shown.lsn))
            }
            None => Ok(()),
        }
    }
}
