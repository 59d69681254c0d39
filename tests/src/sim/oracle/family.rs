//! The forks: each is what the replay was at the commit it goes back to, and then what was written to it.
//!
//! A document's branch that became a volume begins with the branch's work, as one commit. People who work
//! in forks write *notes* to a table of their own, and write pages of the app's tables again without a
//! change. So a fork's expected content is a dump of the replay, and of that work, and a list of notes.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use futures::executor::block_on;
use graft::format::commit::Head;
use graft::remote::{MemoryRemote, SharedRemote};
use graft::{ChainHash, Lsn, VolumeId, catalog};
use rusqlite::types::Value;

use super::{Plain, dump, read_log};
use crate::sim::keepers::Family;
use crate::sim::truth::{Local, Truth};

/// The forks and where each begins.
#[derive(Debug)]
pub struct Forks {
    root: VolumeId,
    parents: BTreeMap<VolumeId, (VolumeId, Lsn)>,
    /// Also of volumes whose removal has begun, and waits for the forks that read through them.
    all_parents: BTreeMap<VolumeId, (VolumeId, Lsn)>,
    /// Branches of documents among them, and what was put on each.
    branches: BTreeMap<VolumeId, Vec<Local>>,
    /// What each fork began as: the replay where it goes back to, and inherited branches' work.
    states: BTreeMap<VolumeId, Option<dump::Dump>>,
}

impl Forks {
    /// Reads the forks' metadata: of every fork that was acknowledged, and of those of doubtful outcome
    /// that have a name.
    pub fn find(
        remote: &SharedRemote,
        root: VolumeId,
        family: &Family,
        truth: &Truth,
    ) -> Result<Forks, String> {
        let mut parents = BTreeMap::new();
        let doubtful = family.doubtful.iter().filter(|(child, name)| {
            matches!(block_on(catalog::resolve(&**remote, name)), Ok(found) if found == *child)
        });
        for child in family.forks.iter().chain(doubtful.map(|(child, _)| child)) {
            let meta =
                block_on(catalog::meta(&**remote, *child)).map_err(|e| format!("fork {child}: {e}"))?;
            let parent = meta.parent.ok_or_else(|| format!("fork {child} has no parent"))?;
            if let Some((base, _)) = truth.branches.get(child).filter(|(base, _)| (root, *base) != parent) {
                return Err(format!("a branch made on lsn {base} was published on {parent:?}"));
            }
            parents.insert(*child, parent);
        }
        // Of those that were removed since, nothing is there.
        let states = parents.keys().map(|child| (*child, None)).collect();
        let mut all_parents = parents.clone();
        while let Some(missing) = all_parents
            .values()
            .map(|(parent, _)| *parent)
            .find(|parent| *parent != root && !all_parents.contains_key(parent))
        {
            let meta = block_on(catalog::meta(&**remote, missing)).map_err(|e| format!("{missing}: {e}"))?;
            all_parents.insert(missing, meta.parent.ok_or_else(|| format!("{missing} has no parent"))?);
        }
        let branches = truth.branches.iter().filter(|(child, _)| all_parents.contains_key(child));
        let branches = branches.map(|(child, (_, work))| (*child, work.clone())).collect();
        Ok(Forks { root, parents, all_parents, branches, states })
    }

    /// The root and its forks.
    pub fn volumes(&self) -> impl Iterator<Item = VolumeId> {
        std::iter::once(self.root).chain(self.parents.keys().copied())
    }

    /// The root's commit that a fork goes back to; of the root itself, its last.
    pub fn base(&self, child: VolumeId) -> Result<Lsn, String> {
        let mut at = (child, Lsn(u64::MAX));
        while at.0 != self.root {
            let (parent, lsn) = self.all_parents.get(&at.0).ok_or_else(|| format!("{} is no fork", at.0))?;
            at = (*parent, at.1.min(*lsn));
        }
        Ok(at.1)
    }

    /// The work of branches that `child` holds: its own, and its ancestors' up to where it left them.
    fn work(&self, child: VolumeId) -> Result<Vec<&Local>, String> {
        let (mut at, mut upto, mut parts) = (child, Lsn(u64::MAX), Vec::new());
        while at != self.root {
            let (parent, base) = self.all_parents.get(&at).ok_or_else(|| format!("{at} is no fork"))?;
            if let Some(work) = self.branches.get(&at).filter(|_| upto > *base) {
                parts.push(work);
            }
            (at, upto) = (*parent, upto.min(*base));
        }
        Ok(parts.into_iter().rev().flatten().collect())
    }

    /// The replay has come to `lsn`.
    pub fn pass(&mut self, lsn: Lsn, replay: &Plain) -> Result<(), String> {
        for child in self.parents.keys().copied().collect::<Vec<_>>() {
            if self.base(child)? != lsn {
                continue;
            }
            let work = self.work(child)?;
            let state = if work.is_empty() {
                dump::of_connection(replay.connection())?
            } else {
                let mut copy = replay.copy()?;
                for local in work {
                    copy.local(local).map_err(|error| format!("the branch {child} of lsn {lsn}: {error}"))?;
                }
                dump::of_connection(copy.connection())?
            };
            self.states.insert(child, Some(state));
        }
        Ok(())
    }

    /// What was written to `child` up to `upto`, its ancestors' included; and the hash there.
    fn notes(
        &self,
        objects: &MemoryRemote,
        archive: &BTreeMap<String, Bytes>,
        family: &Family,
        heads: &[Head],
        (child, upto): (VolumeId, Lsn),
    ) -> Result<(Vec<String>, ChainHash), String> {
        if child == self.root {
            let head = heads.iter().take_while(|head| head.lsn <= upto).last();
            return Ok((Vec::new(), head.map_or(ChainHash::ZERO, |head| head.hash)));
        }
        let (parent, lsn) =
            self.all_parents.get(&child).copied().ok_or_else(|| format!("{child} is no fork"))?;
        let from = (parent, lsn.min(upto));
        let (mut notes, mut hash) = self.notes(objects, archive, family, heads, from)?;
        let own = read_log(objects, archive, child, lsn, hash).map_err(|e| format!("fork {child}: {e}"))?;
        for (fork, lsn, id) in &family.durable {
            if *fork == child && !own.iter().any(|head| head.lsn == *lsn && head.id == *id) {
                return Err(format!("lsn {lsn} of fork {child} was acknowledged and is not there"));
            }
        }
        for head in own.iter().filter(|head| head.lsn <= upto) {
            if head.lsn == lsn.next() && self.branches.contains_key(&child) {
                hash = head.hash;
                continue;
            }
            let made = family.notes.get(&head.id);
            notes.extend(made.ok_or_else(|| format!("fork {child}: lsn {} is nobody's", head.lsn))?.clone());
            hash = head.hash;
        }
        Ok((notes, hash))
    }

    /// Opens every fork from the bucket alone and compares it.
    pub fn check(
        &self,
        remote: &SharedRemote,
        objects: &Arc<MemoryRemote>,
        archive: &BTreeMap<String, Bytes>,
        family: &Family,
        heads: &[Head],
    ) -> Result<(), String> {
        for child in self.parents.keys() {
            let base = self.base(*child)?;
            let expected = self.states.get(child).and_then(Option::as_ref);
            let expected =
                expected.ok_or_else(|| format!("fork {child} goes back to lsn {base}, which never was"))?;
            let (notes, _) = self.notes(objects, archive, family, heads, (*child, Lsn(u64::MAX)))?;
            let found = dump::of_volume(remote, *child).map_err(|error| format!("fork {child}: {error}"))?;
            let (own, inherited): (Vec<String>, Vec<String>) = found
                .into_iter()
                .partition(|line| line.starts_with("heirs: ") || line.starts_with("table heirs: "));
            let differs = |error| format!("fork {child} of lsn {base}: {error}");
            dump::compare(expected, &inherited).map_err(differs)?;
            let texts: Vec<String> = own.into_iter().filter(|line| line.starts_with("heirs: ")).collect();
            let line = |note: &String| format!(", {:?}]", Value::Text(note.clone()));
            let same = texts.len() == notes.len()
                && texts.iter().zip(&notes).all(|(text, note)| text.ends_with(&line(note)));
            if !same {
                return Err(format!(
                    "fork {child} of lsn {base} holds {texts:?} where {notes:?} were written"
                ));
            }
        }
        Ok(())
    }
}
