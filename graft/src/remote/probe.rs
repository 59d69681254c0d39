//! Does this store really keep a second creator out? Several S3 look-alikes do not.
//!
//! Some accept `If-None-Match: *` and ignore it; some look first and write then, and are exclusive
//! only while nobody races. So one creator is asked first, then many at once, with small and large
//! bodies; after each round a late creator must lose, and what the winner wrote must be there.
//!
//! A probe costs a bounded number of requests ([`REQUESTS_MAX`]) and is made at the first use of a
//! store: a marker object then says that it passed, when, and where. The marker's key holds a hash
//! of [`Remote::place`], so that one that was copied to another server counts for nothing.
//!
//! ```text
//! probe/{name}/{round}     while a probe runs; {name} is random
//! probe/passed-{hash}      the marker: text for people; its first line is what counts
//! ```
//!
//! Invariant: a store with a marker for its place passed every round of this version of the probe.
//! A passed probe is evidence and not proof: a store may still race once in a million.

use bytes::Bytes;
use futures::future::join_all;

use super::{Remote, RemoteError};

/// What a probe and its marker cost at most.
pub const REQUESTS_MAX: u32 = requests(&ROUNDS) + 2;

/// Raised when a probe asks for more than those before it.
const VERSION: u32 = 1;

/// Creators at once, and how many bytes each brings. Large bodies keep a careless store's window
/// between looking and writing open for longer; the largest is what a commit carries at most. All
/// creators together send 4.2 MB.
const ROUNDS: [(u32, usize); 4] = [(1, 64), (16, 64), (16, 4 << 10), (16, 256 << 10)];

/// The late creator, the look and the removal come on top of the creators.
const fn requests(rounds: &[(u32, usize)]) -> u32 {
    let (mut sum, mut round) = (0, 0);
    while round < rounds.len() {
        sum += rounds[round].0 + 3;
        round += 1;
    }
    sum
}

/// Why a store is not known to be fit for a log.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum ProbeError {
    /// A second create of one key was accepted. A log kept here would lose commits.
    #[error(
        "store `{url}` accepts a second create of one key, so two servers could both win a commit and one of \
         them be lost; use a store that honours `If-None-Match: *` (S3, R2, Ceph RGW, a local directory; see \
         docs/operations.md)"
    )]
    NotExclusive {
        /// The store.
        url: String,
    },
    /// Exclusive for creators that come one after the other, and not for those that come at once.
    #[error(
        "store `{url}` let {winners} of {creators} racing creators win one key, so two servers could both win a \
         commit and one of them be lost; use a store whose `If-None-Match: *` is atomic (S3, R2, Ceph RGW, a \
         local directory; see docs/operations.md)"
    )]
    Races {
        /// The store.
        url: String,
        /// How many were told that they created the object. One may be.
        winners: usize,
        /// How many tried at once.
        creators: usize,
    },
    /// A losing create changed the object, or the object cannot be read back.
    #[error(
        "store `{url}` does not give back what was created at `{key}`, so commits would be lost; use another \
         store (see docs/operations.md)"
    )]
    NotKept {
        /// The store.
        url: String,
        /// The probe's key; it is left there to be looked at.
        key: String,
    },
    /// Somebody else probes with this name.
    #[error("probe `{key}` exists in store `{url}`: try again with another name")]
    Taken {
        /// The store.
        url: String,
        /// The probe's key.
        key: String,
    },
    /// The store failed before it showed anything.
    #[error("store `{url}` could not be probed: {source}")]
    Failed {
        /// The store.
        url: String,
        /// What failed.
        source: RemoteError,
    },
}

/// When a store that passed was probed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Probed {
    /// At an earlier use: its marker is there. One request.
    Before,
    /// Now. [`REQUESTS_MAX`] requests at most.
    Now,
}

/// Probes a store unless its marker says that it passed before, and leaves the marker.
///
/// `name` is random and the caller's, who owns randomness; `now_ms` (ms since 1970) is for the
/// marker's reader. A store that does not pass must not hold a log.
///
/// # Errors
///
/// [`ProbeError`]; all but `Failed` and `Taken` are final for this store. No marker is left, and of
/// the probe at most one object.
pub async fn probe_once(remote: &dyn Remote, name: &str, now_ms: i64) -> Result<Probed, ProbeError> {
    let failed = |source| ProbeError::Failed { url: remote.url(), source };
    let title = format!("graft probe {VERSION}: passed\n");
    let place = remote.place();
    let key = format!("probe/passed-{}", &blake3::hash(place.as_bytes()).to_hex()[..16]);
    match remote.get(&key).await {
        Ok(marker) if marker.starts_with(title.as_bytes()) => return Ok(Probed::Before),
        Ok(_) | Err(RemoteError::NotFound { .. }) => {}
        Err(source) => return Err(failed(source)),
    }
    probe(remote, name).await?;
    let marker = format!(
        "{title}place: {place}\ntime: {now_ms} ms since 1970\nby: graft {}\n\nDelete this object to have the \
         store probed again at the next start.\n",
        env!("CARGO_PKG_VERSION")
    );
    match remote.create(&key, marker.into()).await {
        // Another server may have probed at the same time, or an older version before us.
        Ok(()) | Err(RemoteError::AlreadyExists { .. }) => Ok(Probed::Now),
        Err(source) => Err(failed(source)),
    }
}

/// Probes a store, whatever was found before; leaves nothing in one that passes.
///
/// # Errors
///
/// As [`probe_once`].
pub async fn probe(remote: &dyn Remote, name: &str) -> Result<(), ProbeError> {
    for (round, (creators, bytes)) in ROUNDS.into_iter().enumerate() {
        race(remote, format!("probe/{name}/{round}"), creators, bytes).await?;
    }
    Ok(())
}

/// One round. Of the creators one wins; a later one loses; the winner's bytes stay.
async fn race(remote: &dyn Remote, key: String, creators: u32, bytes: usize) -> Result<(), ProbeError> {
    let url = remote.url();
    let failed = |source| ProbeError::Failed { url: url.clone(), source };
    let bodies: Vec<Bytes> = (0..=creators).map(|creator| body(creator, bytes)).collect();
    let (late, racing) = match bodies.split_last() {
        Some((late, racing)) => (late, racing),
        None => return Ok(()),
    };
    let answers = join_all(racing.iter().map(|body| remote.create(&key, body.clone()))).await;
    let (mut winners, mut unheard) = (Vec::new(), None);
    for (body, answer) in racing.iter().zip(answers) {
        match answer {
            Ok(()) => winners.push(body),
            Err(RemoteError::AlreadyExists { .. }) => {}
            // It lost to one in flight (S3's 409), or its answer was lost.
            Err(source @ RemoteError::Unavailable { .. }) => unheard = Some(source),
            Err(
                source @ (RemoteError::NotFound { .. }
                | RemoteError::Changed { .. }
                | RemoteError::Refused { .. }),
            ) => return Err(failed(source)),
        }
    }
    if winners.len() > 1 {
        let (winners, creators) = (winners.len(), racing.len());
        remote.delete(&key).await.map_err(failed)?;
        return Err(ProbeError::Races { url, winners, creators });
    }
    if let (1, [], None) = (creators, winners.as_slice(), &unheard) {
        return Err(ProbeError::Taken { url, key });
    }
    let late_answer = remote.create(&key, late.clone()).await;
    let kept = remote.get(&key).await;
    match late_answer {
        Err(RemoteError::AlreadyExists { .. }) => {}
        // Without a winner the object need not have been there.
        Ok(()) => {
            remote.delete(&key).await.map_err(failed)?;
            return match (winners.first(), unheard) {
                (None, Some(source)) => Err(failed(source)),
                (Some(_), _) | (None, None) => Err(ProbeError::NotExclusive { url }),
            };
        }
        Err(source) => return Err(failed(source)),
    }
    let is_kept = |kept: &Bytes| match winners.first() {
        Some(winner) => kept == *winner,
        // Somebody won whose answer was lost on the way.
        None => bodies.contains(kept),
    };
    match kept {
        Ok(kept) if is_kept(&kept) => remote.delete(&key).await.map_err(failed),
        Ok(_) | Err(RemoteError::NotFound { .. }) => Err(ProbeError::NotKept { url, key }),
        Err(source) => Err(failed(source)),
    }
}

/// Each creator's own: its number, over and over.
fn body(creator: u32, bytes: usize) -> Bytes {
    creator.to_le_bytes().repeat(bytes / 4).into()
}

#[cfg(test)]
mod tests;
