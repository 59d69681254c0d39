//! Driving those who keep house; and, when all is quiet, the last checkpoint, the last collection and
//! what must hold after it.

use std::sync::Arc;

use futures::executor::block_on;
use graft::catalog::{self, CatalogError};
use graft::fetch::RemoteFetch;
use graft::gc::{self, Retention};
use graft::remote::{Counting, Remote as _, SharedRemote};
use graft::verify::verify;
use graft::volume::{Options, Pushed, Volume, push};
use graft::{CommitId, VolumeId, checkpoint, key};
use sqlsync_layer::ledger::Ledger;
use sqlsync_layer::payload::Payload;
use sqlsync_layer::vfs::Database;

use super::chaos::SKEW_MS;
use super::{Done, Event, Owner, VOLUME, World};
use crate::sim::keepers::{Job, Trade, write_note};
use crate::sim::store::{COLLECTORS, VERIFIERS};

/// Requests that opening may cost once there is a checkpoint of the newest commit, for each volume that
/// a fork goes back to.
const OPENING_MAX: u64 = 8;

impl World {
    /// Who asks the object store on behalf of a keeper.
    pub(super) fn keeper_asker(&self, at: usize) -> usize {
        match self.keepers[at].0 {
            Trade::Collector => COLLECTORS + at,
            Trade::Compactor | Trade::Checkpointer | Trade::Forker | Trade::Remover => 2000 + at,
            Trade::Verifier | Trade::Reader => VERIFIERS.start + at,
        }
    }

    /// A keeper begins a job, unless the last one is not done.
    pub(super) fn keeper_acts(&mut self, at: usize) {
        if !self.storm {
            return;
        }
        let pause = self.random.between(200, self.profile.keeper_pause_ms);
        self.queue.after(pause, Event::KeeperActs(at));
        if std::mem::replace(&mut self.keepers[at].1, true) {
            return;
        }
        let job = Job {
            trade: self.keepers[at].0,
            remote: self.bucket.handle(self.keeper_asker(at)),
            volume: VOLUME,
            family: self.family.clone(),
            random: self.random.fork(),
            now_ms: self.some_clock(),
            plant: self.plant,
            keeps_nothing: self.profile.rough,
        };
        self.spawn(Owner::Keeper(at), async move { Done::Keeper(job.run().await) });
    }

    /// A keeper's process dies.
    pub(super) fn crash_keeper(&mut self, at: usize) {
        if std::mem::replace(&mut self.keepers[at].1, false) {
            self.note(format!("{:?} {at} crashes", self.keepers[at].0));
            self.bucket.crash(self.keeper_asker(at));
            self.tasks.cancel(Owner::Keeper(at));
        }
    }

    /// Everything is at rest: the volume and its forks are sound, get a last checkpoint, and are swept as
    /// clean as they may be. Then they must be sound still, hold nothing that nobody names, and be cheap
    /// to open.
    pub(super) fn tidy_up(&mut self) -> Result<(), String> {
        self.objects.set_now_ms(self.now_ms());
        let remote: SharedRemote = self.objects.clone();
        self.finish_removals()?;
        let forks = self.family.lock().forks.clone();
        let volumes: Vec<VolumeId> = std::iter::once(VOLUME).chain(forks.iter().copied()).collect();
        for volume in &volumes {
            self.is_sound(&remote, *volume, "before the last collection")?;
        }
        for fork in &forks {
            self.write_last_note(&remote, *fork)?;
        }
        for volume in &volumes {
            let options = Options { locals: None, ..Options::default() };
            let opened = block_on(Volume::open(&*remote, *volume, options)).map_err(|e| e.to_string())?;
            let ledger = Ledger::open(&opened.start, &opened.heads).map_err(|e| e.to_string())?;
            let (replica, state) = (opened.volume, ledger.encode());
            block_on(checkpoint::write(&*remote, &replica, &replica.base(), state))
                .map_err(|error| format!("{volume}: the last checkpoint: {error}"))?;
        }
        self.bucket.archive_all();
        // Later than everything that was ever written, by any clock.
        let now_ms = self.now_ms() + 10 * SKEW_MS as i64;
        let nothing = Retention { keep_ms: 0, keep_commits: 0, grace_ms: 0 };
        let collector = self.bucket.handle(COLLECTORS).at_once();
        // Children first: what is theirs alone is not their parents' business.
        for run in 0..3 {
            for volume in volumes.iter().rev() {
                let planned = block_on(gc::plan(&collector, *volume, nothing, now_ms));
                let planned = planned.map_err(|error| format!("{volume}: a dry run: {error}"))?;
                self.objects.set_now_ms(now_ms);
                let done = block_on(gc::collect(&collector, *volume, nothing, now_ms, &|_, _| {}));
                let done = done.map_err(|error| format!("{volume}: the last collection: {error}"))?;
                if planned.doomed != done.doomed {
                    return Err(format!("{volume}: a dry run said {planned:?}; the run did {done:?}"));
                }
                self.note(format!("last collection {run}: {} objects of {volume}", done.doomed.len()));
            }
        }
        for volume in &volumes {
            let orphans = self.is_sound(&remote, *volume, "after the last collection")?;
            if !orphans.is_empty() {
                return Err(format!("{volume}: garbage that no collection takes: {orphans:?}"));
            }
        }
        self.opens_cheaply(&remote, VOLUME, 1)?;
        let depth = volumes.len() as u64;
        forks.iter().try_for_each(|fork| self.opens_cheaply(&remote, *fork, depth))
    }

    /// Removals that failed on their way go on, and what crashed ones have closed for ever is opened as
    /// docs/operations.md says. What is removed cannot be opened.
    fn finish_removals(&mut self) -> Result<(), String> {
        let family = self.family.lock().clone();
        for volume in &family.leaving {
            let (name, _) = &family.names[volume];
            let own = self.family.lock().next_removal();
            match block_on(catalog::finish_removal(&*self.objects, name, *volume, own)) {
                Ok(_) => self.family.lock().removed.push(*volume),
                Err(CatalogError::HasForks { .. }) => {}
                Err(error) => return Err(format!("{volume} cannot be removed: {error}")),
            }
        }
        // A removal that crashed may have left its mark on a volume that another one then found to have forks.
        for volume in &family.forks {
            let rows = block_on(self.objects.list(&key::horizon_prefix(*volume), None, 1000));
            let marks = key::closed_prefix(*volume);
            let rows = rows.map_err(|error| error.to_string())?;
            for row in rows.into_iter().filter(|row| row.key.starts_with(&marks)) {
                self.note(format!("{} was left", row.key));
                block_on(self.objects.delete(&row.key)).map_err(|error| error.to_string())?;
            }
        }
        for volume in self.family.lock().removed.iter() {
            let options = Options { locals: None, ..Options::default() };
            let opens = block_on(Volume::open(&*self.objects, *volume, options)).is_ok();
            // Its metadata may have been under way from a try that was given up. No name leads to it.
            if opens && !self.bucket.created_late(&key::meta(*volume)) {
                return Err(format!("{volume} was removed, and opens"));
            }
        }
        Ok(())
    }

    /// Verifies a volume; answers its orphans.
    pub(super) fn is_sound(
        &self,
        remote: &SharedRemote,
        volume: VolumeId,
        when: &str,
    ) -> Result<Vec<String>, String> {
        let report = block_on(verify(&**remote, volume, &|_| {}));
        let report = report.map_err(|error| format!("{volume} cannot be verified {when}: {error}"))?;
        match report.findings.first() {
            None => Ok(report.orphans),
            Some(finding) => Err(format!("{volume} {when}: {}: {}", finding.key, finding.what)),
        }
    }

    /// So that what crashed writers have left in a fork can be seen to be garbage.
    fn write_last_note(&mut self, remote: &SharedRemote, fork: VolumeId) -> Result<(), String> {
        let options = Options { locals: None, ..Options::default() };
        let opened = block_on(Volume::open(&**remote, fork, options)).map_err(|error| error.to_string())?;
        let database = Database::new(Arc::new(opened.volume), Arc::new(RemoteFetch::new(remote.clone())));
        let note = format!("{:016x}", self.random.draw());
        write_note(&database, &note, "").map_err(|error| format!("a last note in {fork}: {error}"))?;
        let id = CommitId(self.random.bytes16());
        self.family.lock().notes.insert(id, vec![note]);
        let pushed = push(&**remote, database.volume(), Payload::of_locals, || id, self.now_ms());
        match block_on(pushed) {
            Ok(Pushed::Durable(lsn)) => self.family.lock().durable.push((fork, lsn, id)),
            other => return Err(format!("a last note in {fork}: {other:?}")),
        }
        self.bucket.archive_all();
        Ok(())
    }

    fn opens_cheaply(&self, remote: &SharedRemote, volume: VolumeId, depth: u64) -> Result<(), String> {
        let counting = Counting::new(remote.clone());
        let options = Options { locals: None, ..Options::default() };
        block_on(Volume::open(&*counting, volume, options)).map_err(|error| error.to_string())?;
        let requests = counting.snapshot().requests();
        if requests > OPENING_MAX * depth {
            return Err(format!("opening {volume} cost {requests} requests: {:?}", counting.snapshot()));
        }
        Ok(())
    }
}
