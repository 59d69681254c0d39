//! Names of volumes: creating, resolving and listing them.
//!
//! A name is one object, `names/{name}`, created once: the volume's id, a space, and 16 hex digits
//! of BLAKE3 over id and name, so that a damaged or misplaced object leads to no other volume. A
//! volume's `meta` is written before its name, so a name never leads to a volume that is not there;
//! a loser of a race for a name leaves a `meta` that nothing names. Removing goes the other way: the
//! name first, the `meta` last. What is to be removed is noted under `removals/{name}` before, so that
//! a second removal of that name finishes one that was killed.
//!
//! While a volume is being removed it takes no forks. Every removal says so by a mark of its own
//! ([`key::closed`]), and looks for forks after that: a removal that fails before it has deleted anything of
//! the volume takes back its own mark, and no other's, so that the volume stays closed while another one goes
//! on. Who has begun to delete leaves its mark where it fails. All marks go after the metadata, without which
//! nothing can be forked.

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};

use crate::format::Damaged;
use crate::format::meta::Meta;
use crate::gc;
use crate::ids::{Lsn, VolumeId, VolumeName, key};
use crate::remote::{Remote, RemoteError};

/// Why a name could not be created, resolved or listed.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum CatalogError {
    /// No volume has this name.
    #[error(
        "there is no volume `{name}` in {store}; `graft volume ls` lists them, `graft import` and `graft deploy` make one"
    )]
    NoSuchVolume {
        /// The name.
        name: VolumeName,
        /// The store's URL.
        store: String,
    },
    /// The name is taken. `found` may be the caller's own from an unanswered try.
    #[error("volume `{name}` exists already; give another name")]
    Exists {
        /// The name.
        name: VolumeName,
        /// The volume it leads to.
        found: VolumeId,
    },
    /// The volume has forks, which read through it.
    #[error("volume `{name}` has forks that read through it: {}; remove them first", .forks.join(", "))]
    HasForks {
        /// The volume.
        name: VolumeName,
        /// The forks' names; the id of one that has no name.
        forks: Vec<String>,
    },
    /// The object that holds the name or the metadata is damaged.
    #[error(transparent)]
    Damaged(#[from] Damaged),
    /// The store failed; safe to try again.
    #[error(transparent)]
    Remote(#[from] RemoteError),
}

/// Creates a volume called `name`. `id` is a fresh random one. Two requests.
pub async fn create(
    remote: &dyn Remote,
    name: &VolumeName,
    id: VolumeId,
    meta: Meta,
) -> Result<(), CatalogError> {
    match remote.create(&key::meta(id), meta.encode(id)).await {
        Ok(()) => {}
        // Ours from an unanswered try, or garbage collection's, which took a fork for abandoned.
        Err(RemoteError::AlreadyExists { .. }) => {
            if self::meta(remote, id).await? != meta {
                return Err(Damaged::new(&key::meta(id), "it is another volume's").into());
            }
        }
        Err(error) => return Err(error.into()),
    }
    self::name(remote, name, id).await
}

/// Names the volume `id`, whose metadata is stored. One request, two where the name is there already.
pub(crate) async fn name(remote: &dyn Remote, name: &VolumeName, id: VolumeId) -> Result<(), CatalogError> {
    match remote.create(&key::name(name), Bytes::from(name_text(name, id))).await {
        Ok(()) => Ok(()),
        Err(RemoteError::AlreadyExists { .. }) => match resolve(remote, name).await? {
            found if found == id => Ok(()),
            found => Err(CatalogError::Exists { name: name.clone(), found }),
        },
        Err(error) => Err(error.into()),
    }
}

/// Objects deleted at the same time.
const CONCURRENT_DELETES: usize = 32;

/// Removes the volume called `name` with everything that is stored of it; answers how many objects that
/// were. Nobody may write to it meanwhile: what they commit goes, too.
///
/// `own` is a fresh random number, for each call another: two removals of one volume at the same time must
/// not have the same, nor a second try that of the first, whose last request may still be on its way.
///
/// One request for each object, and a few. The name goes first: where it fails half-way, what is left is
/// garbage that nothing names.
///
/// # Errors
///
/// [`CatalogError::HasForks`] names the forks that read through it. Nothing has changed then.
pub async fn remove(remote: &dyn Remote, name: &VolumeName, own: u64) -> Result<u64, CatalogError> {
    let id = resolve(remote, name).await?;
    refuse_forks(remote, name, id).await?;
    let begun = async {
        close(remote, name, id, own).await?;
        let parent = meta(remote, id).await?.parent;
        remote.delete(&key::name(name)).await?;
        Ok(parent)
    };
    match begun.await {
        Ok(parent) => purge(remote, id, parent, own).await,
        Err(error) => Err(reopened(remote, id, own, error).await),
    }
}

/// Marks `id` as closed, and makes sure that nothing was forked from it before.
async fn close(remote: &dyn Remote, name: &VolumeName, id: VolumeId, own: u64) -> Result<(), CatalogError> {
    match remote.create(&key::closed(id, own), Bytes::new()).await {
        // Ours from an unanswered try.
        Ok(()) | Err(RemoteError::AlreadyExists { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    // A fork that is being made now either has pinned before the mark was there, or sees it and gives up.
    refuse_forks(remote, name, id).await
}

/// Takes back the mark of a removal that `error` has ended before anything was deleted but the name. Answers
/// why it failed: where the mark may be left, that is no refusal that has changed nothing.
async fn reopened(remote: &dyn Remote, id: VolumeId, own: u64, error: CatalogError) -> CatalogError {
    let mark = key::closed(id, own);
    let Err(left) = remote.delete(&mark).await else { return error };
    tracing::warn!(
        volume = %id, %mark, %error,
        "the mark of a removal that failed may be left: nothing can be forked from the volume, and nothing of \
         it collected, until it is removed or that object is deleted"
    );
    left.into()
}

/// [`remove`], for whoever may be killed and remembers nothing: what is being removed is noted under
/// its name until all of it is gone. Where a removal of that name ended half-way, this finishes it
/// first, also where no volume has the name any more. Answers how many objects went.
///
/// Four requests more than [`remove`], and one for each ancestor. `own` is as [`remove`]'s.
///
/// # Errors
///
/// As [`remove`]'s. [`CatalogError::NoSuchVolume`] where nothing is left of a removal either.
pub async fn remove_noted(remote: &dyn Remote, name: &VolumeName, own: u64) -> Result<u64, CatalogError> {
    let note = key::removal(name);
    let left = match remote.get(&note).await {
        Ok(bytes) => Some(parse_note(&note, name, &bytes)?),
        Err(RemoteError::NotFound { .. }) => None,
        Err(error) => return Err(error.into()),
    };
    let found = match resolve(remote, name).await {
        Ok(found) => Some(found),
        Err(CatalogError::NoSuchVolume { .. }) if left.is_some() => None,
        Err(error) => return Err(error),
    };
    let mut removed = 0;
    if let Some((left, ancestors)) = left.filter(|(left, _)| found != Some(*left)) {
        removed += finish_removal(remote, name, left, own).await?;
        // Where its metadata was gone already, this could not be known: who its ancestors are.
        for ancestor in ancestors {
            unpin(remote, ancestor, left).await?;
            remote.delete(&key::fork_pin(ancestor, left)).await?;
        }
    }
    if let Some(found) = found {
        let mut ids = vec![found];
        while let Some((parent, _)) = meta(remote, ids[ids.len() - 1]).await?.parent {
            ids.push(parent);
        }
        remote.put(&note, Bytes::from(note_text(name, &ids))).await?;
        match remove(remote, name, own).await {
            Ok(objects) => removed += objects,
            Err(error @ CatalogError::HasForks { .. }) => {
                // It lives on. A note that is left where this fails does no harm: the name comes first.
                remote.delete(&note).await?;
                return Err(error);
            }
            Err(error) => return Err(error),
        }
    }
    remote.delete(&note).await?;
    Ok(removed)
}

/// What the note of a removal holds: a volume and its ancestors, nearest first, and a hash as of a name.
fn note_text(name: &VolumeName, ids: &[VolumeId]) -> String {
    let ids = ids.iter().map(VolumeId::to_string).collect::<Vec<_>>().join(" ");
    let hash = blake3::hash(format!("{ids} {name}").as_bytes());
    format!("{ids} {}", &hash.to_hex()[..16])
}

/// Reads a [`note_text`], the object `key`, back.
fn parse_note(key: &str, name: &VolumeName, bytes: &[u8]) -> Result<(VolumeId, Vec<VolumeId>), Damaged> {
    let ids = || {
        let (ids, _) = std::str::from_utf8(bytes).ok()?.rsplit_once(' ')?;
        let ids = ids.split(' ').map(|id| id.parse().ok()).collect::<Option<Vec<VolumeId>>>()?;
        (note_text(name, &ids).as_bytes() == bytes).then_some(ids)
    };
    let ids = ids().and_then(|ids| ids.split_first().map(|(id, ancestors)| (*id, ancestors.to_vec())));
    ids.ok_or_else(|| Damaged { key: key.into(), reason: "it is no note of a removal; delete it".into() })
}

/// Goes on with a [`remove`] that failed half-way: `id` is the volume that `name` led to. Safe to repeat;
/// costs what is left to do. `own` is as [`remove`]'s.
///
/// # Errors
///
/// As [`remove`]'s.
pub async fn finish_removal(
    remote: &dyn Remote,
    name: &VolumeName,
    id: VolumeId,
    own: u64,
) -> Result<u64, CatalogError> {
    match resolve(remote, name).await {
        Ok(found) if found == id => return remove(remote, name, own).await,
        // Another volume has the name by now.
        Ok(_) | Err(CatalogError::NoSuchVolume { .. }) => {}
        Err(error) => return Err(error),
    }
    let parent = match remote.get(&key::meta(id)).await {
        Ok(bytes) if bytes == gc::REAPED => None,
        Ok(bytes) => Some(Meta::decode(id, &bytes)?.parent),
        Err(RemoteError::NotFound { .. }) => None,
        Err(error) => return Err(error.into()),
    };
    let Some(parent) = parent else {
        // What else may be left are its pins, which its ancestors' collections take.
        delete_marks(remote, id, own).await?;
        return Ok(0);
    };
    match close(remote, name, id, own).await {
        Ok(()) => purge(remote, id, parent, own).await,
        Err(error) => Err(reopened(remote, id, own, error).await),
    }
}

/// Deletes everything of a volume that has no name any more and takes no forks.
async fn purge(
    remote: &dyn Remote,
    id: VolumeId,
    parent: Option<(VolumeId, Lsn)>,
    own: u64,
) -> Result<u64, CatalogError> {
    let marks = key::closed_prefix(id);
    let mut removed = 1;
    let prefix = key::volume_prefix(id);
    let last = key::meta(id);
    loop {
        let rows = remote.list(&prefix, None, 1000).await?;
        let keys: Vec<String> = rows
            .into_iter()
            .map(|row| row.key)
            .filter(|key| *key != last && !key.starts_with(&marks))
            .collect();
        if keys.is_empty() {
            break;
        }
        removed += keys.len() as u64;
        let deletes = keys.into_iter().map(|key| delete(remote, key));
        futures::stream::iter(deletes).buffer_unordered(CONCURRENT_DELETES).try_collect::<()>().await?;
    }
    // Not sooner than the metadata: a forker looks for a mark, and then for that.
    remote.delete(&last).await?;
    delete_marks(remote, id, own).await?;
    // Only now: until here its ancestors keep what it reads.
    let mut ancestor = parent;
    while let Some((volume, _)) = ancestor {
        removed += unpin(remote, volume, id).await?;
        ancestor = self::meta(remote, volume).await?.parent;
    }
    if let Some((parent, _)) = parent {
        remote.delete(&key::fork_pin(parent, id)).await?;
        removed += 1;
    }
    Ok(removed + 1)
}

/// Deletes the pins by which `child` keeps what it reads of `ancestor`; answers how many.
async fn unpin(remote: &dyn Remote, ancestor: VolumeId, child: VolumeId) -> Result<u64, RemoteError> {
    let pins = gc::list_all(remote, &key::child_pins_prefix(ancestor, child)).await?;
    for pin in &pins {
        remote.delete(&pin.key).await?;
    }
    Ok(pins.len() as u64)
}

/// Deletes the marks of all removals of `id`, whose metadata is gone; the one that `own` has left, last.
async fn delete_marks(remote: &dyn Remote, id: VolumeId, own: u64) -> Result<(), RemoteError> {
    let last = key::closed(id, own);
    // Nothing else is left there.
    for row in gc::list_all(remote, &key::horizon_prefix(id)).await? {
        if row.key != last {
            remote.delete(&row.key).await?;
        }
    }
    remote.delete(&last).await
}

async fn delete(remote: &dyn Remote, key: String) -> Result<(), RemoteError> {
    remote.delete(&key).await
}

async fn refuse_forks(remote: &dyn Remote, name: &VolumeName, id: VolumeId) -> Result<(), CatalogError> {
    let forks = forks(remote, id).await?;
    if forks.is_empty() {
        return Ok(());
    }
    let mut named = Vec::new();
    for other in list(remote).await? {
        let found = match resolve(remote, &other).await {
            Ok(found) => found,
            // It was removed since it was listed.
            Err(CatalogError::NoSuchVolume { .. }) => continue,
            Err(error) => return Err(error),
        };
        if forks.contains(&found) {
            named.push((found, other.to_string()));
        }
    }
    let mut shown: Vec<String> = named.iter().map(|(_, name)| name.clone()).collect();
    let nameless = forks.iter().filter(|fork| named.iter().all(|(found, _)| found != *fork));
    shown.extend(nameless.map(VolumeId::to_string));
    Err(CatalogError::HasForks { name: name.clone(), forks: shown })
}

/// The volumes that were forked from `id`'s own log. One request for each thousand.
pub async fn forks(remote: &dyn Remote, id: VolumeId) -> Result<Vec<VolumeId>, CatalogError> {
    const ROWS: usize = 1000;
    let prefix = key::forks_prefix(id);
    let mut forks = Vec::new();
    let mut after: Option<String> = None;
    loop {
        let rows = remote.list(&prefix, after.as_deref(), ROWS).await?;
        let full = rows.len() == ROWS;
        after = rows.last().map(|row| row.key.clone());
        for row in rows {
            let fork = row.key.strip_prefix(&prefix).and_then(|fork| fork.parse().ok());
            forks.push(fork.ok_or_else(|| Damaged::new(&row.key, "its key is not a fork's pin"))?);
        }
        if !full {
            return Ok(forks);
        }
    }
}

/// The volume called `name`. One request.
pub async fn resolve(remote: &dyn Remote, name: &VolumeName) -> Result<VolumeId, CatalogError> {
    let key = key::name(name);
    let bytes = match remote.get(&key).await {
        Ok(bytes) => bytes,
        Err(RemoteError::NotFound { .. }) => {
            return Err(CatalogError::NoSuchVolume { name: name.clone(), store: remote.url() });
        }
        Err(error) => return Err(error.into()),
    };
    let id = || {
        let id: VolumeId = std::str::from_utf8(&bytes).ok()?.split(' ').next()?.parse().ok()?;
        (name_text(name, id).as_bytes() == bytes).then_some(id)
    };
    id().ok_or_else(|| Damaged { key, reason: "it does not hold this name's volume id".into() }.into())
}

/// What the object of `name` holds.
fn name_text(name: &VolumeName, id: VolumeId) -> String {
    note_text(name, &[id])
}

/// A volume's metadata. One request.
pub async fn meta(remote: &dyn Remote, id: VolumeId) -> Result<Meta, CatalogError> {
    Ok(Meta::decode(id, &remote.get(&key::meta(id)).await?)?)
}

/// All names, ascending. One request for each thousand, and no more.
pub async fn list(remote: &dyn Remote) -> Result<Vec<VolumeName>, CatalogError> {
    const ROWS: usize = 1000;
    let mut names = Vec::new();
    let mut after: Option<String> = None;
    loop {
        let rows = remote.list(key::NAMES_PREFIX, after.as_deref(), ROWS).await?;
        let full = rows.len() == ROWS;
        after = rows.last().map(|row| row.key.clone());
        for row in rows {
            let name = row.key.strip_prefix(key::NAMES_PREFIX).and_then(|name| name.parse().ok());
            let reason = "its key is not a volume's name".into();
            names.push(name.ok_or(Damaged { key: row.key, reason })?);
        }
        if !full {
            return Ok(names);
        }
    }
}

#[cfg(test)]
mod tests;
