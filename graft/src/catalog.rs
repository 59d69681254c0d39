//! Names of volumes: creating, resolving and listing them.
//!
//! A name is one object, `names/{name}`, created once: the volume's id, a space, and 16 hex digits
//! of BLAKE3 over id and name, so that a damaged or misplaced object leads to no other volume. A
//! volume's `meta` is written before its name, so a name never leads to a volume that is not there;
//! a loser of a race for a name leaves a `meta` that nothing names.

use bytes::Bytes;

use crate::format::Damaged;
use crate::format::meta::Meta;
use crate::ids::{VolumeId, VolumeName, key};
use crate::remote::{Remote, RemoteError};

/// Why a name could not be created, resolved or listed.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum CatalogError {
    /// No volume has this name.
    #[error(
        "there is no volume `{name}` in {store}; `graft deploy` creates one, `graft volume ls` lists them"
    )]
    NoSuchVolume {
        /// The name.
        name: VolumeName,
        /// The store's URL.
        store: String,
    },
    /// The name is taken. `found` may be the caller's own from an unanswered try.
    #[error("volume `{name}` exists already")]
    Exists {
        /// The name.
        name: VolumeName,
        /// The volume it leads to.
        found: VolumeId,
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
        Ok(()) | Err(RemoteError::AlreadyExists { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    match remote.create(&key::name(name), Bytes::from(name_text(name, id))).await {
        Ok(()) => Ok(()),
        Err(RemoteError::AlreadyExists { .. }) => match resolve(remote, name).await? {
            found if found == id => Ok(()),
            found => Err(CatalogError::Exists { name: name.clone(), found }),
        },
        Err(error) => Err(error.into()),
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
    let hash = blake3::hash(format!("{id} {name}").as_bytes());
    format!("{id} {}", &hash.to_hex()[..16])
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
