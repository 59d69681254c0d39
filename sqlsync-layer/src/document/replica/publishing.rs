//! Publishing a branch: local work that found no place in the history becomes a volume of its own.
//!
//! ```text
//!   volume   1 ─ 2 ─ 3 ─ 4 ─ 5 …           won
//!                └ fork: 3' ─ 4'           the branch's commits, on the commit that they were made on
//!
//!   begin (id and name in the timeline) ─→ fork ─→ push ─→ end (the branch goes, in one batch)
//! ```
//!
//! The replica does the first and the last step, [`publish`] what lies between, against the store alone.
//! Ids of volume and commits, names and times are decided by the first step, so that [`publish`] may be
//! stopped anywhere and run again, also by another process: it finds what it did and goes on.
//!
//! Invariants: a branch is dropped only when all of it is in the fork's log; the same branch is never
//! published under two names; nothing is written to a volume that the branch did not make.

use bytes::Bytes;
use graft::catalog::{self, CatalogError};
use graft::fork::{self, ForkError};
use graft::ids::InvalidName;
use graft::publish::{PublishError, publish as publish_commit};
use graft::pull::{Entry, PullError, read_entry};
use graft::remote::Remote;
use graft::store::{Batch, StoreError};
use graft::time::At;
use graft::volume::{Change, CommitError, LocalCommit, Options, Volume};
use graft::{CommitId, Lsn, VolumeId, VolumeName};

use super::{COMMIT_BYTES, Event, Replica};
use crate::document::timeline::Planned;
use crate::payload::Payload;

/// The name of a branch's volume where nobody asks for another: `{volume}` and `{id}` (8 hex digits of
/// the new volume's id) are replaced.
pub const BRANCH_NAMES: &str = "{volume}-branch-{id}";

/// Characters that a volume's name has at most.
const NAME_MAX: usize = 100;

/// Why a branch was not published. It is kept, and what was begun is gone on with by the next try.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum BranchError {
    /// There is no such branch, or it was published already.
    #[error("there is no branch {number} here")]
    NoSuchBranch {
        /// Which.
        number: u64,
    },
    /// Another volume has the name. Nothing was made.
    #[error("the name `{name}` is taken by volume {found}; publish the branch under another")]
    NameTaken {
        /// The name.
        name: VolumeName,
        /// Whose it is.
        found: VolumeId,
    },
    /// Somebody else wrote to the fork before the branch was on it. The next try makes another fork.
    #[error(
        "somebody else wrote to volume `{name}` at lsn {lsn} before the branch was on it; publish it again under another name"
    )]
    Overtaken {
        /// The fork.
        name: VolumeName,
        /// The commit that is not the branch's.
        lsn: Lsn,
    },
    /// The volume cannot be forked there, or not now: [`ForkError::Expired`] and [`ForkError::Removed`]
    /// are final, and the branch can only be read here. After [`ForkError::Reaped`] the next try makes
    /// another fork.
    #[error(transparent)]
    Fork(ForkError),
    /// The fork could not be opened.
    #[error(transparent)]
    Open(#[from] graft::volume::OpenError),
    /// The fork's log could not be read.
    #[error(transparent)]
    Pull(#[from] PullError),
    /// A commit could not be stored, or its outcome is unknown.
    #[error(transparent)]
    Publish(PublishError),
    /// The local store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What the timeline holds does not fit the volume.
    #[error("branch {number} does not fit the commit it was made on: {reason}")]
    Damaged {
        /// Which branch.
        number: u64,
        /// What did not hold.
        reason: String,
    },
}

impl BranchError {
    /// Whether a later try of the same can succeed.
    pub fn is_passing(&self) -> bool {
        match self {
            BranchError::Fork(ForkError::Expired { .. } | ForkError::Removed { .. })
            | BranchError::NoSuchBranch { .. }
            | BranchError::NameTaken { .. }
            | BranchError::Overtaken { .. }
            | BranchError::Damaged { .. } => false,
            BranchError::Fork(_)
            | BranchError::Open(_)
            | BranchError::Pull(_)
            | BranchError::Publish(_)
            | BranchError::Store(_) => true,
        }
    }
}

/// A branch on its way to a volume of its own; made by [`Replica::begin_publication`].
#[derive(Debug, Clone)]
pub struct Publication {
    /// The branch's number.
    pub number: u64,
    /// The new volume.
    pub volume: VolumeId,
    /// Its name.
    pub name: VolumeName,
    parent: VolumeId,
    time_ms: i64,
    base: Lsn,
    commits: Vec<LocalCommit>,
}

/// The name that `pattern` gives to the branch of `volume` that becomes `child`; see [`BRANCH_NAMES`].
/// Of a long volume name only the beginning is in it.
///
/// # Errors
///
/// The name breaks the rule for names.
pub fn branch_name(pattern: &str, volume: &VolumeName, child: VolumeId) -> Result<VolumeName, InvalidName> {
    let id: String = hex::encode(child.0).chars().take(8).collect();
    let rest = pattern.replace("{id}", &id);
    let room = NAME_MAX.saturating_sub(rest.replace("{volume}", "").len());
    let cut: String = volume.as_str().chars().take(room).collect();
    rest.replace("{volume}", &cut).parse()
}

impl Replica {
    /// Decides under which id and name a branch is published, durably. `child` is fresh and random,
    /// `time_ms` the clock. A publication that was begun before is answered again, with the id and the
    /// name that it had then.
    ///
    /// # Errors
    ///
    /// [`BranchError::NoSuchBranch`] and [`BranchError::Store`].
    pub fn begin_publication(
        &mut self,
        number: u64,
        name: &VolumeName,
        child: VolumeId,
        time_ms: i64,
    ) -> Result<Publication, BranchError> {
        let branch = self.branches.get(&number).ok_or(BranchError::NoSuchBranch { number })?;
        let (base, commits) = (Lsn(branch.base), branch.commits());
        let planned = match self.planned.get(&number) {
            Some(planned) => planned.clone(),
            None => {
                let planned = Planned { number, child: child.0, name: name.as_str().into(), time_ms };
                let mut batch = Batch::default();
                self.timeline.put_planned(&mut batch, &planned);
                self.timeline.write(batch)?;
                self.planned.insert(number, planned.clone());
                planned
            }
        };
        let damaged = |error: InvalidName| BranchError::Damaged { number, reason: error.to_string() };
        Ok(Publication {
            number,
            volume: VolumeId(planned.child),
            name: planned.name.parse().map_err(damaged)?,
            parent: self.volume.id(),
            time_ms: planned.time_ms,
            base,
            commits,
        })
    }

    /// How a publication ended. With success the branch is dropped and [`Event::Published`] told; after
    /// [`BranchError::NameTaken`], [`BranchError::Overtaken`] and [`ForkError::Reaped`] (it was begun so
    /// long ago that the fork's pin was given up) the next try begins anew, with another id and name; after
    /// any other error it goes on.
    ///
    /// # Errors
    ///
    /// The local store failed: the branch is still here. Publishing it again ends it.
    pub fn publication_ended(
        &mut self,
        publication: &Publication,
        result: &Result<Lsn, BranchError>,
    ) -> Result<(), StoreError> {
        let number = publication.number;
        // Dropped or begun anew meanwhile: this one says nothing of what is here now.
        if self.planned.get(&number).is_none_or(|planned| planned.child != publication.volume.0) {
            return Ok(());
        }
        let mut batch = Batch::default();
        match result {
            Ok(lsn) => {
                self.timeline.remove_planned(&mut batch, number);
                self.timeline.remove_branch(&mut batch, number);
                self.timeline.write(batch)?;
                self.planned.remove(&number);
                self.branches.remove(&number);
                let (to, volume) = (publication.name.clone(), publication.volume);
                self.events.push_back(Event::Published { branch: number, to, volume, lsn: *lsn });
            }
            Err(
                BranchError::NameTaken { .. }
                | BranchError::Overtaken { .. }
                | BranchError::Fork(ForkError::Reaped { .. } | ForkError::Differs { .. }),
            ) => {
                self.timeline.remove_planned(&mut batch, number);
                self.timeline.write(batch)?;
                self.planned.remove(&number);
            }
            Err(_) => {}
        }
        Ok(())
    }
}

/// Forks the volume at the branch's base and puts the branch's commits on the fork; answers the fork's
/// newest commit. Eleven requests for a small branch, whatever the size of the volume. May be called any
/// number of times, also after it was stopped or failed anywhere.
///
/// # Errors
///
/// Any [`BranchError`]; tell [`Replica::publication_ended`].
pub async fn publish(remote: &dyn Remote, publication: &Publication) -> Result<Lsn, BranchError> {
    let Publication { number, volume: child, name, parent, time_ms, base, commits } = publication;
    match catalog::resolve(remote, name).await {
        Ok(found) if found == *child => {}
        Ok(found) => return Err(BranchError::NameTaken { name: name.clone(), found }),
        Err(CatalogError::NoSuchVolume { .. }) => {
            match fork::create(remote, *parent, At::Lsn(*base), *child, name).await {
                Ok(_) => {}
                Err(ForkError::Catalog(CatalogError::Exists { found, .. })) if found == *child => {}
                Err(ForkError::Catalog(CatalogError::Exists { name, found })) => {
                    return Err(BranchError::NameTaken { name, found });
                }
                Err(error) => return Err(BranchError::Fork(error)),
            }
        }
        Err(error) => return Err(BranchError::Fork(error.into())),
    }
    let in_memory = Options { store: None, locals: None, cache_bytes: 0, ..Options::default() };
    let fork = Volume::open(remote, *child, in_memory).await?.volume;
    let head = fork.base().lsn();
    let mut lsn = *base;
    for (part, commits) in (0u64..).zip(parts(commits)) {
        lsn = lsn.next();
        let id = commit_id(*child, part);
        if lsn <= head {
            // An earlier try's, or somebody else's.
            let found = match read_entry(remote, *child, lsn).await? {
                Entry::Commit(head) => head.id,
                Entry::Gone(left) => left.id,
            };
            if found != id {
                return Err(BranchError::Overtaken { name: name.clone(), lsn });
            }
            continue;
        }
        let misfit = |reason: String| BranchError::Damaged { number: *number, reason };
        for local in commits {
            let tip = fork.tip();
            if local.pages_before != tip.pages() {
                let (is, was) = (tip.pages(), local.pages_before);
                return Err(misfit(format!("there are {is} pages and it was made on {was}")));
            }
            let size = fork.page_size().bytes();
            let whole = |(page, bytes): (&graft::PageIdx, &Bytes)| {
                page.get() <= local.pages_after && bytes.len() == size
            };
            if !local.changes.iter().all(whole) {
                return Err(misfit(format!("commit {} holds pages that it cannot", local.number)));
            }
            let change = Change {
                changes: (*local.changes).clone(),
                pages: local.pages_after,
                payload: local.payload.clone(),
            };
            fork.commit(&tip, change).map_err(|error| match error {
                CommitError::Store(error) => error.into(),
                error => misfit(error.to_string()),
            })?;
        }
        let sealed = fork.seal(commits.len(), Payload::of_locals(commits), id, *time_ms)?;
        let Some(prepared) = sealed else { continue };
        match publish_commit(remote, &prepared).await {
            Ok(published) => fork.confirm(published)?,
            Err(PublishError::Rejected { lsn }) => {
                return Err(BranchError::Overtaken { name: name.clone(), lsn });
            }
            Err(error) => return Err(BranchError::Publish(error)),
        }
    }
    Ok(lsn)
}

/// The branch's commits, in parts of which each becomes one commit of the fork. The same parts each time.
fn parts(mut commits: &[LocalCommit]) -> Vec<&[LocalCommit]> {
    let mut parts = Vec::new();
    while !commits.is_empty() {
        let mut bytes = 0;
        let fitting = commits.iter().take_while(|local| {
            let fits = bytes < COMMIT_BYTES;
            bytes += local.payload.len();
            fits
        });
        let (part, rest) = commits.split_at(fitting.count());
        parts.push(part);
        commits = rest;
    }
    parts
}

/// The id of a part's commit: known again by every later try, and random as the volume's is.
fn commit_id(child: VolumeId, part: u64) -> CommitId {
    let hash = blake3::hash(&[&child.0[..], b"branch", &part.to_le_bytes()].concat());
    let mut id = [0; 16];
    id.copy_from_slice(&hash.as_bytes()[..16]);
    CommitId(id)
}
