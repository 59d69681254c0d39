//! Who has a volume of a local store open.
//!
//! Two replicas of one volume in one store would give the same numbers to their local commits, and each
//! would write over what the other acknowledged. A data directory is held by one process (its lock sees
//! to that); within the process, a replica claims its volume of the store for as long as it lives.
//!
//! Invariant: at most one [`Claim`] of a store and volume exists at a time. A store is told by its place
//! in memory, which a claim keeps occupied.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::{SharedStore, StoreError};
use crate::ids::VolumeId;

type Claimed = (usize, VolumeId);

static CLAIMS: Mutex<BTreeSet<Claimed>> = Mutex::new(BTreeSet::new());
static RELEASED: Condvar = Condvar::new();

fn claimed(store: &SharedStore, volume: VolumeId) -> Claimed {
    (Arc::as_ptr(store).cast::<()>().addr(), volume)
}

/// The right to be the replica of one volume in a store. Given back when dropped.
pub struct Claim {
    store: SharedStore,
    volume: VolumeId,
}

impl fmt::Debug for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Claim({})", self.volume)
    }
}

impl Claim {
    /// Claims `volume` of `store`.
    ///
    /// # Errors
    ///
    /// [`StoreError::Claimed`] as long as another claim lives.
    pub fn new(store: SharedStore, volume: VolumeId) -> Result<Claim, StoreError> {
        if CLAIMS.lock().insert(claimed(&store, volume)) {
            Ok(Claim { store, volume })
        } else {
            Err(StoreError::Claimed { volume })
        }
    }

    /// Waits until nobody claims `volume` of `store`, for `at_most` that long: for a replica that is being
    /// closed. Whether nobody does.
    pub fn wait(store: &SharedStore, volume: VolumeId, at_most: Duration) -> bool {
        let claimed = claimed(store, volume);
        let mut claims = CLAIMS.lock();
        !RELEASED.wait_while_for(&mut claims, |claims| claims.contains(&claimed), at_most).timed_out()
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        CLAIMS.lock().remove(&claimed(&self.store, self.volume));
        RELEASED.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use bytes::Bytes;

    use super::*;
    use crate::ids::{PageIdx, PageSize};
    use crate::store::MemoryStore;
    use crate::volume::{Change, OpenError, Options, Volume};

    const VOLUME: VolumeId = VolumeId([7; 16]);

    fn load(store: &SharedStore, volume: VolumeId) -> Result<Volume, OpenError> {
        let options = Options { store: Some(store.clone()), disk_bytes: 0, ..Options::default() };
        Ok(Volume::load(volume, PageSize::new(4096).unwrap(), options)?.volume)
    }

    /// Both would have given number 1 to a local commit, and one of these would be lost.
    #[test]
    fn a_volume_has_one_replica_in_a_store() {
        let store: SharedStore = Arc::new(MemoryStore::new());
        let first = load(&store, VOLUME).unwrap();
        let page = PageIdx::new(1).unwrap();
        let changes = BTreeMap::from([(page, Bytes::from(vec![1; 4096]))]);
        first.commit(&first.tip(), Change { changes, pages: 1, payload: Bytes::new() }).unwrap();
        let error = load(&store, VOLUME).expect_err("it is open");
        assert!(matches!(&error, OpenError::Store(StoreError::Claimed { volume: VOLUME })), "{error}");
        assert!(error.to_string().contains("close it first"), "{error}");
        let _another = load(&store, VolumeId([8; 16])).expect("another volume");
        let elsewhere: SharedStore = Arc::new(MemoryStore::new());
        let _copy = load(&elsewhere, VOLUME).expect("another store");
        assert!(!Claim::wait(&store, VOLUME, Duration::ZERO));
        let closing = std::thread::spawn(move || drop(first));
        assert!(Claim::wait(&store, VOLUME, Duration::from_secs(60)), "it is being closed");
        closing.join().unwrap();
        assert_eq!(load(&store, VOLUME).unwrap().status().ahead, 1);
    }
}
