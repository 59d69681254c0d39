//! Bringing local commits on top of what others committed, in slices.
//!
//! [`Replica::pulled`] takes in what a pull found. With local commits in the way it begins a rebase: the
//! new stack grows, [`Replica::step`] by step, and the last step puts it in place of the old one in one
//! batch of the store. Between steps the app goes on with the old stack; what it adds is brought over,
//! too. Dropping the rebase ([`Replica::cancel`]), or the process, leaves the old stack.
//!
//! A commit that keeps its pages keeps its bytes and its record in the store: it is named in the new stack,
//! not copied. Only where mutations run again is the new stack also put on a volume aside, for SQLite to
//! read: all the commits since the last one that ran there at once, and then each as it runs.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use graft::PageIdx;
use graft::format::Damaged;
use graft::pull::Pulled;
use graft::store::{Batch, StoreError};
use graft::volume::{Change, LocalCommit, Placed, ReadError, ReplaceError, Volume};

use super::rows::Sides;
use super::{Event, Place, Replica, Route, Run, mutation, timeline::Branch, timeline::Kept};
use crate::actor::batch::{Blocked, Writer};
use crate::actor::core::apply_payload;
use crate::ledger::{Ledger, Standing};
use crate::merge::{Writes, needs_first, transplant};
use crate::payload::{Mutation, Op, Outcome, Payload, Record};
use crate::protocol::{Reason, codes};
use crate::rebase::{Dispute, Policy, Rebase, Resolution, Step, Work};
use crate::vfs::{ConnectError, Database, IoFailure, Marks, Note};

/// Why a rebase does not go on. The old stack is in place; what is marked so may be tried again.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RebaseError {
    /// A commit's payload is damaged.
    #[error(transparent)]
    Damaged(#[from] Damaged),
    /// The local store failed; try again.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// SQLite could not open the volume.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// A page or module could not be had; try again.
    #[error("{0}")]
    Blocked(IoFailure),
    /// A push is under way: settle it, then pull.
    #[error("a push is under way; settle it first")]
    Pushing,
}

impl From<Blocked> for RebaseError {
    fn from(Blocked(failure): Blocked) -> RebaseError {
        RebaseError::Blocked(failure)
    }
}

/// How far a rebase has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// There is nothing to rebase, or it is in place now.
    Done,
    /// So many local commits have had no step yet.
    Left(usize),
}

/// A rebase under way.
pub(super) struct Rebasing {
    plan: Rebase,
    pulled: Pulled,
    /// The ledger at the checkpoint that was jumped to.
    jumped: Option<Ledger>,
    payloads: Vec<Payload>,
    ledger: Ledger,
    /// Where mutations run again: the new base, and the new stack up to the last of them.
    aside: Arc<Volume>,
    /// What they run by, from the first of them on. The database keeps the name that the writer's path
    /// resolves to.
    writer: Option<(Writer, Arc<Database>)>,
    /// The old stack as far as it is known, its lineage, and how many of it had their step.
    old: Vec<LocalCommit>,
    lineage: u64,
    stepped: usize,
    /// The new stack so far, those at its end that are not on `aside` yet, and its page count.
    stack: Vec<Placed>,
    run: Vec<LocalCommit>,
    pages: u32,
    /// Its page 1 as stored, where it is known.
    first: Option<Bytes>,
    tip: (Option<graft::ModuleHash>, u32),
    events: VecDeque<Event>,
    transplanted: usize,
    replayed: u64,
    confirmed: u64,
    kept: Vec<Kept>,
    /// For the app that decides: the mutations of `old`.
    waiting: Vec<Mutation>,
    /// How many of the old stack the branch holds, and why.
    branch: Option<(usize, usize, String)>,
}

impl Replica {
    /// Takes in what a pull found. Where no local commit is in the way that is all; otherwise a rebase
    /// begins (in place of one under way), and [`Replica::step`] goes on with it.
    ///
    /// # Errors
    ///
    /// Any [`RebaseError`]; nothing has changed.
    pub fn pulled(&mut self, pulled: Pulled) -> Result<Progress, RebaseError> {
        self.rebase = None;
        // One that began before another was taken in says again what that one said.
        if pulled.heads.is_empty() && pulled.jump.is_none() || pulled.from != self.volume.base().lsn() {
            return Ok(Progress::Done);
        }
        if self.volume.pending().is_some() {
            return Err(RebaseError::Pushing);
        }
        self.behind = pulled.heads.len() as u64;
        let payloads: Result<Vec<Payload>, Damaged> = pulled.heads.iter().map(Payload::decode).collect();
        let payloads = payloads?;
        let jumped = pulled.jump.as_ref().map(|start| Ledger::open(start, &[])).transpose()?;
        let (lineage, old) = (self.volume.tip().lineage(), self.volume.locals());
        if old.is_empty() {
            let theirs = self.theirs(&pulled, &payloads);
            let taken = (pulled.heads.clone(), payloads);
            let newest = pulled.newest();
            self.volume.absorb(pulled)?;
            // A connection of the app's own committed at this moment: the next pull begins a rebase.
            if self.volume.base().lsn() != newest {
                return Ok(Progress::Done);
            }
            self.settle(jumped, taken.0.iter().zip(&taken.1), &theirs)?;
            return Ok(Progress::Done);
        }
        let mut ledger = jumped.clone().unwrap_or_else(|| self.ledger.clone());
        for (head, payload) in pulled.heads.iter().zip(&payloads) {
            apply_payload(&mut ledger, payload, head.lsn);
            ledger.advance(head.lsn, head.time_ms);
        }
        let (policy, asks) = match self.config.route {
            Route::Direct => (self.config.policy, self.config.handler.is_some()),
            // The server decides: here its mutations are only shown.
            Route::Coordinator if self.config.policy == Policy::Replay => (Policy::Replay, false),
            Route::Coordinator => (Policy::Merge, false),
        };
        let waiting = if asks { self.waiting_after(&ledger) } else { Vec::new() };
        self.known.follow(&old);
        let plan = Rebase::new(
            policy,
            self.config.validation,
            asks,
            ledger.last_seq(&self.me.client),
            self.theirs(&pulled, &payloads),
            self.known.pending().cloned(),
        );
        let aside = Arc::new(self.volume.aside(Some(&pulled), 0));
        self.rebase = Some(Rebasing {
            tip: (ledger.module(), ledger.schema()),
            writer: None,
            stack: Vec::with_capacity(old.len()),
            run: Vec::new(),
            pages: aside.tip().pages(),
            first: None,
            lineage,
            plan,
            pulled,
            jumped,
            payloads,
            ledger,
            aside,
            old,
            stepped: 0,
            events: VecDeque::new(),
            transplanted: 0,
            replayed: 0,
            confirmed: 0,
            kept: Vec::new(),
            waiting,
            branch: None,
        });
        Ok(Progress::Left(self.rebase.as_ref().map_or(0, |rebase| rebase.plan.left())))
    }

    /// Gives the rebase under way up; the old stack stays. What was pulled is pulled again.
    pub fn cancel(&mut self) -> bool {
        self.rebase.take().is_some()
    }

    /// Goes on with the rebase under way, running at most `replays` mutations again. The last step puts
    /// the new stack in place.
    ///
    /// # Errors
    ///
    /// Any [`RebaseError`]: the old stack is in place, and the rebase is given up.
    pub fn step(&mut self, replays: u64) -> Result<Progress, RebaseError> {
        let Some(mut rebase) = self.rebase.take() else { return Ok(Progress::Done) };
        let until = rebase.replayed + replays.max(1);
        loop {
            while let Some(step) = rebase.plan.next_step() {
                self.carry_out(&mut rebase, step)?;
                if rebase.replayed >= until {
                    let left = rebase.plan.left();
                    self.rebase = Some(rebase);
                    return Ok(Progress::Left(left));
                }
            }
            // Local commits may have been made meanwhile: they are brought over, too.
            let now = self.volume.locals();
            let grown = now.len() > rebase.old.len()
                && now.iter().map(|l| l.number).zip(&rebase.old).all(|(number, old)| number == old.number);
            if grown {
                self.known.follow(&now);
                rebase.plan.extend(self.known.pending().skip(rebase.old.len()).cloned());
                if self.config.handler.is_some() {
                    rebase.waiting = self.waiting_after(&rebase.ledger);
                }
                rebase.old = now;
                continue;
            }
            return match self.put_in_place(rebase) {
                Ok(()) => Ok(Progress::Done),
                // The stack is another one: whoever changed it, the next pull begins anew.
                Err(ReplaceError::Stale) => Ok(Progress::Done),
                Err(ReplaceError::Store(error)) => Err(error.into()),
                Err(ReplaceError::Pending) => Err(RebaseError::Pushing),
                Err(other) => {
                    Err(RebaseError::Blocked(IoFailure { message: other.to_string(), damaged: false }))
                }
            };
        }
    }

    /// Mutations that have no final answer in `ledger` either.
    fn waiting_after(&self, ledger: &Ledger) -> Vec<Mutation> {
        let settled = ledger.last_seq(&self.me.client);
        self.pending().filter(|mutation| mutation.seq > settled).cloned().collect()
    }

    fn carry_out(&self, rebase: &mut Rebasing, step: Step) -> Result<(), RebaseError> {
        let local = rebase.old[rebase.stepped].clone();
        match step {
            Step::Confirmed(pending) => {
                rebase.confirmed += 1;
                self.check_content(rebase, &local, &pending.work);
            }
            Step::Transplant(pending) => {
                let first = match needs_first(&local, self.config.validation) {
                    true => self.first_page(rebase)?,
                    false => Bytes::new(),
                };
                let moved = transplant(&local, rebase.pages, &first, self.config.validation);
                rebase.pages = moved.pages_after;
                if let Some(page) = moved.changes.get(&PageIdx::FIRST) {
                    rebase.first = Some(page.clone());
                }
                let resizes = local.pages_before != local.pages_after;
                let same = Arc::ptr_eq(&moved.changes, &local.changes)
                    && (!resizes || moved.pages_before == local.pages_before);
                rebase.stack.push(match same {
                    true => Placed::Kept(local.number),
                    false => Placed::Changed(moved.clone()),
                });
                rebase.run.push(moved);
                if pending.work == Work::Deploy
                    && let Some(Record { op: Op::Deploy { module, schema, .. }, outcome: Outcome::Applied }) =
                        Record::behind(&local)
                {
                    rebase.tip = (Some(module), schema);
                }
                rebase.transplanted += 1;
            }
            Step::Replay(..) => self.replay(rebase, &local, None)?,
            Step::Branch(_, conflict) => branch(rebase, conflict.to_string()),
            Step::Ask(pending, conflict) => {
                let record = Record::behind(&local);
                let mutation = record.as_ref().and_then(|record| match &record.op {
                    Op::Mutation(mutation) => Some(mutation),
                    Op::Deploy { .. } => None,
                });
                let sides = Sides { volume: &self.volume, fetch: &self.fetch, pulled: &rebase.pulled };
                let dispute = Dispute {
                    pending: &pending,
                    mutation,
                    conflict: &conflict,
                    theirs: rebase.plan.touched(),
                    behind: rebase.plan.left(),
                    waiting: &rebase.waiting,
                    rows: &sides,
                };
                let resolution = self
                    .config
                    .handler
                    .as_ref()
                    .map_or(Resolution::Default, |handler| handler.resolve(&dispute));
                match rebase.plan.resolved(&resolution) {
                    Some(Step::Replay(..)) => self.replay(rebase, &local, Some(&resolution))?,
                    Some(Step::Branch(pending, conflict)) => {
                        branch(rebase, conflict.to_string());
                        if pending.work != Work::Sql {
                            // Its seq is in the order: the log says that it had no effect there.
                            self.replay(rebase, &local, Some(&Resolution::Discard))?;
                        }
                    }
                    Some(Step::Confirmed(_) | Step::Transplant(_) | Step::Ask(..)) | None => {
                        let message = "the plan did not take the app's decision".into();
                        return Err(RebaseError::Blocked(IoFailure { message, damaged: false }));
                    }
                }
            }
        }
        rebase.stepped += 1;
        Ok(())
    }

    /// Runs a local commit's operation on the new stack, with what the app decided about it.
    fn replay(
        &self,
        rebase: &mut Rebasing,
        local: &LocalCommit,
        resolution: Option<&Resolution>,
    ) -> Result<(), RebaseError> {
        let Some(record) = Record::behind(local) else {
            return Err(RebaseError::Blocked(IoFailure {
                message: format!("local commit {} has no operation to run again", local.number),
                damaged: true,
            }));
        };
        let mut op = record.op.clone();
        let mut discarded = None;
        match (resolution, &mut op) {
            (Some(Resolution::Edit { reducer, args }), Op::Mutation(old)) => {
                *old = mutation(&old.client, old.seq, reducer, args.clone(), old.clock, old.seed.0);
                rebase.kept.push(Kept { mutation: old.clone(), rejected: None });
            }
            (Some(Resolution::Discard), _) => {
                discarded = Some(Reason::new(codes::DISCARDED, "the app gave it up when it conflicted"));
            }
            (Some(Resolution::Edit { .. } | Resolution::Default | Resolution::Branch) | None, _) => {}
        }
        rebase.replayed += 1;
        let run = std::mem::take(&mut rebase.run);
        rebase.aside.extend_aside(&run).map_err(|error| Blocked::passing(error.to_string()))?;
        let (writer, _) = match &mut rebase.writer {
            Some(writer) => writer,
            none => {
                let database = Database::new(rebase.aside.clone(), self.fetch.clone());
                let writer = Writer::new(&database, self.modules.clone(), self.config.limits)?;
                none.insert((writer, database))
            }
        };
        let mut place = Place { writer, volume: &rebase.aside, modules: &*self.modules, tip: rebase.tip };
        let (before_locals, before_pages) = (rebase.aside.status().ahead, rebase.aside.tip().pages());
        let run = match discarded {
            Some(reason) => {
                let record = Record { op, outcome: Outcome::Rejected(reason) };
                let note = Note { enclosed: record.enclose(), ..Note::default() };
                let tip = rebase.aside.tip();
                let change = Change { pages: tip.pages(), payload: note.encode(), ..Change::default() };
                let committed = rebase.aside.commit(&tip, change);
                committed.map_err(|error| Blocked::passing(error.to_string()))?;
                Run { record, written: None }
            }
            None => place.run(&op, &Batch::default(), Some(&Batch::default()))?,
        };
        rebase.tip = place.tip;
        let made = rebase.aside.last_local().filter(|_| rebase.aside.status().ahead == before_locals + 1);
        let made = made.ok_or_else(|| Blocked::passing("one operation did not make one local commit"))?;
        rebase.pages = made.pages_after;
        rebase.first = None;
        rebase.stack.push(Placed::Changed(LocalCommit { number: local.number, ..made }));
        let new = run.written.as_ref().map(|written| Writes {
            pages: written.pages.clone(),
            marks: written.marks,
            first: written.marks != Marks::default(),
            resized: rebase.aside.tip().pages() != before_pages,
        });
        rebase.plan.replayed(&new.unwrap_or_default());
        let (before, after) = (record.outcome, run.record.outcome.clone());
        rebase.events.push_back(match &run.record.op {
            Op::Mutation(mutation) => Event::Replayed { seq: mutation.seq, before, after },
            Op::Deploy { module, .. } => Event::Redeployed { module: *module, before, after },
        });
        Ok(())
    }

    /// The new stack's page 1; empty where it has none.
    fn first_page(&self, rebase: &mut Rebasing) -> Result<Bytes, RebaseError> {
        if let Some(first) = &rebase.first {
            return Ok(first.clone());
        }
        // No commit that is not on the volume aside yet has written it.
        let aside = &rebase.aside;
        let tip = aside.tip();
        for _ in 0..3 {
            match aside.read(&tip, PageIdx::FIRST) {
                Ok(page) => {
                    rebase.first = Some(page.clone());
                    return Ok(page);
                }
                Err(ReadError::PastEnd { .. }) => return Ok(Bytes::new()),
                Err(ReadError::Fault(pages)) => {
                    let fetched = self.fetch.fetch(aside, &tip, &pages);
                    fetched.map_err(|error| Blocked::passing(error.to_string()))?;
                }
                Err(ReadError::Store(error)) => return Err(error.into()),
                Err(other) => return Err(Blocked::passing(other.to_string()).into()),
            }
        }
        Err(Blocked::passing("page 1 was fetched and is still missing: the page cache is too small").into())
    }

    /// A mutation of ours is in the log already; as the one that we made?
    fn check_content(&self, rebase: &mut Rebasing, local: &LocalCommit, work: &Work) {
        let (Some(Record { op: Op::Mutation(own), .. }), Work::Mutation { seq }) =
            (Record::behind(local), work)
        else {
            return;
        };
        if rebase.ledger.standing(&self.me.client, *seq, &own.content) == Standing::Reused {
            let message = format!(
                "seq {seq} of client {} is in the log with other content: two copies of this client id are at work; open each in a data directory of its own",
                self.me.client
            );
            let reason = Reason::new(codes::SEQ_REUSED, message);
            rebase.events.push_back(Event::Refused { seq: *seq, reason });
        }
    }

    fn put_in_place(&mut self, rebase: Rebasing) -> Result<(), ReplaceError> {
        let seen: Vec<u64> = rebase.old.iter().map(|local| local.number).collect();
        let mut also = Batch::default();
        for kept in &rebase.kept {
            self.timeline.put_mutation(&mut also, kept);
        }
        let branch = rebase.branch.as_ref().map(|(commits, _, why)| {
            let number = self.branches.keys().next_back().map_or(1, |last| last + 1);
            Branch::new(number, self.volume.base().lsn(), why.clone(), &rebase.old[..*commits])
        });
        if let Some(branch) = &branch {
            self.timeline.put_branch(&mut also, branch);
        }
        let touched = rebase.plan.touched().clone();
        self.volume.replace_locals(rebase.lineage, &seen, rebase.pulled.clone(), rebase.stack, also)?;
        for kept in rebase.kept {
            self.kept.insert(kept.mutation.seq, kept);
        }
        self.counts.transplanted += rebase.transplanted as u64;
        self.counts.replayed += rebase.replayed;
        self.counts.confirmed += rebase.confirmed;
        self.counts.rebases += 1;
        if rebase.transplanted > 0 {
            self.events.push_back(Event::Merged { transplanted: rebase.transplanted });
        }
        for event in rebase.events {
            if let Event::Refused { reason, .. } = &event {
                self.ended.get_or_insert(reason.clone());
            }
            self.events.push_back(event);
        }
        if let (Some(branch), Some((_, count, why))) = (branch, rebase.branch) {
            self.counts.branched += count as u64;
            self.events.push_back(Event::Forked { to: branch.number, commits: count, why });
            self.branches.insert(branch.number, branch);
        }
        let commits = rebase.pulled.heads.iter().zip(&rebase.payloads);
        self.settle(rebase.jumped, commits, &touched).map_err(ReplaceError::Store)
    }

    /// The base has moved over these commits, and the stack is what it is now.
    fn settle<'a>(
        &mut self,
        jumped: Option<Ledger>,
        commits: impl Iterator<Item = (&'a graft::format::commit::Head, &'a Payload)>,
        touched: &Writes,
    ) -> Result<(), StoreError> {
        if let Some(ledger) = jumped {
            self.ledger = ledger;
        }
        for (head, payload) in commits {
            self.take_in(payload, head.lsn, head.time_ms);
        }
        self.behind = 0;
        self.known.follow(&self.volume.locals());
        self.tip = self.tip_module();
        self.live.committed(touched.to_write_set());
        self.connections.forget_schema();
        self.forget_branched()?;
        self.forget_settled()?;
        self.renew();
        self.check_client();
        Ok(())
    }

    /// Takes mutations out of the timeline that went to a branch: they are not on the stack any more, and not
    /// in the log. Also at open, where the process ended between the new stack and this.
    pub(super) fn forget_branched(&mut self) -> Result<(), StoreError> {
        let on_stack = self.known.pending().filter_map(|pending| match pending.work {
            Work::Mutation { seq } => Some(seq),
            Work::Deploy | Work::Sql => None,
        });
        // Both ascend.
        let mut on_stack = on_stack.peekable();
        let is_bare = on_stack.peek().is_none();
        let settled = self.settled();
        let mut gone: Vec<u64> = Vec::new();
        for (seq, _) in self.kept.range(settled + 1..) {
            while on_stack.next_if(|on| on < seq).is_some() {}
            if on_stack.peek() != Some(seq) {
                gone.push(*seq);
            }
        }
        drop(on_stack);
        let mut batch = Batch::default();
        for seq in &gone {
            self.kept.remove(seq);
            self.timeline.remove_mutation(&mut batch, *seq);
        }
        if is_bare && self.me.next_seq != settled + 1 && settled < self.me.next_seq && !gone.is_empty() {
            // Their seqs are in no log: the next mutation is the first that the log does not have.
            self.me.next_seq = settled + 1;
            self.timeline.put_me(&mut batch, &self.me);
        }
        self.timeline.write(batch)
    }

    /// What pulled commits changed in all.
    fn theirs(&self, pulled: &Pulled, payloads: &[Payload]) -> Writes {
        let mut pages = self.volume.base().pages();
        let mut theirs = Writes::default();
        if let Some(root) = pulled.jump.as_ref().and_then(|start| start.checkpoint.as_ref()) {
            theirs = Writes::anything(pages.max(root.pages));
            pages = root.pages;
        }
        for (head, payload) in pulled.heads.iter().zip(payloads) {
            theirs.union_with(&Writes::of_pulled(head, payload, pages, self.config.validation));
            pages = head.pages;
        }
        theirs
    }
}

/// The commit that has its step now goes to the branch, which holds the old stack up to it.
fn branch(rebase: &mut Rebasing, why: String) {
    let upto = rebase.stepped + 1;
    match &mut rebase.branch {
        Some((held, count, _)) => (*held, *count) = (upto, *count + 1),
        None => rebase.branch = Some((upto, 1, why)),
    }
}
