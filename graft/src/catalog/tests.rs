//! Removals that end half-way, wherever that is, are finished by the next of the same name.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures::executor::block_on;

use super::*;
use crate::checkpoint;
use crate::ids::{CommitId, PageIdx, PageSize};
use crate::remote::layer::{Answer, Layer};
use crate::remote::{MemoryRemote, Request};
use crate::time::At;
use crate::volume::{Change, Options, Volume, push};

/// Carries out so many requests, and perhaps one more that it does not answer; none after that. As a store is
/// to a process that is killed.
#[derive(Debug)]
struct Until {
    truth: Arc<MemoryRemote>,
    left: AtomicU64,
    /// Whether the last one arrives.
    arrives: bool,
}

impl Layer for Until {
    fn inner(&self) -> &dyn Remote {
        &*self.truth
    }

    fn around<'a, T: Send + 'a>(&'a self, _: Request, key: &'a str, sent: Answer<'a, T>) -> Answer<'a, T> {
        Box::pin(async move {
            let left = self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1));
            match left {
                Ok(2..) => return sent.await,
                Ok(_) if self.arrives => drop(sent.await),
                Ok(_) | Err(_) => {}
            }
            Err(RemoteError::Unavailable { key: key.into(), message: "killed".into() })
        })
    }
}

fn id(n: u8) -> VolumeId {
    VolumeId([n; 16])
}

fn named(n: u8) -> VolumeName {
    format!("v{n}").parse().unwrap()
}

fn written(remote: &dyn Remote, volume: VolumeId, byte: u8) {
    let options = Options { store: None, locals: None, ..Options::default() };
    let opened = block_on(Volume::open(remote, volume, options)).unwrap().volume;
    let changes = [(PageIdx::FIRST, Bytes::from(vec![byte; 512]))].into();
    opened.commit(&opened.tip(), Change { changes, pages: 1, payload: Bytes::new() }).unwrap();
    block_on(push(remote, &opened, |_| Bytes::new(), || CommitId([byte; 16]), 1)).unwrap();
    let opened = block_on(Volume::open(remote, volume, Options { locals: None, ..Options::default() }));
    let opened = opened.unwrap().volume;
    block_on(checkpoint::write(remote, &opened, &opened.base(), Bytes::new())).unwrap();
}

/// Volume 1, and its fork 2 with its fork 3, each with commits and a page table of its own.
fn store() -> Arc<MemoryRemote> {
    let remote = Arc::new(MemoryRemote::new());
    let meta = Meta { page_size: PageSize::new(512).unwrap(), parent: None };
    block_on(create(&*remote, &named(1), id(1), meta)).unwrap();
    written(&*remote, id(1), 1);
    for n in [2, 3] {
        block_on(crate::fork::create(&*remote, id(n - 1), At::Newest, id(n), &named(n))).unwrap();
        written(&*remote, id(n), n);
    }
    remote
}

/// Nothing of volume `n` is left, at its ancestors neither, nor a note.
fn is_gone(remote: &MemoryRemote, n: u8) -> bool {
    let of = id(n).to_string();
    remote.objects().iter().all(|(key, _)| !key.contains(&of) && !key.starts_with("removals/"))
}

#[test]
fn a_removal_that_ended_anywhere_is_finished_by_the_next() {
    let mut after_the_name = 0;
    for arrives in [false, true] {
        for requests in 1.. {
            let truth = store();
            let killed = Until { truth: truth.clone(), left: AtomicU64::new(requests), arrives };
            let first = block_on(remove_noted(&killed, &named(3)));
            let told = format!("after {requests} requests, {arrives}");
            if first.is_ok() {
                break;
            }
            let name_is_gone = block_on(resolve(&*truth, &named(3))).is_err();
            after_the_name += u32::from(name_is_gone);
            match block_on(remove_noted(&*truth, &named(3))) {
                Ok(_) => {}
                // All that was missing was its answer.
                Err(CatalogError::NoSuchVolume { .. }) if name_is_gone => {}
                Err(error) => panic!("{told}: {error}"),
            }
            assert!(is_gone(&truth, 3), "{told}: {:?}", truth.objects());
            // So its parents can go.
            for n in [2, 1] {
                block_on(remove_noted(&*truth, &named(n))).unwrap_or_else(|error| panic!("{told}: {error}"));
            }
            assert_eq!(truth.objects(), [], "{told}");
        }
    }
    assert!(after_the_name > 10, "{after_the_name}");
}

/// A volume that has got the name since goes too, and both go whole.
#[test]
fn a_name_that_was_given_anew_is_removed_with_what_the_first_left() {
    let mut both = 0;
    for requests in 1.. {
        let truth = store();
        let killed = Until { truth: truth.clone(), left: AtomicU64::new(requests), arrives: false };
        if block_on(remove_noted(&killed, &named(3))).is_ok() {
            break;
        }
        if block_on(resolve(&*truth, &named(3))).is_ok() {
            continue;
        }
        both += 1;
        let meta = Meta { page_size: PageSize::new(512).unwrap(), parent: None };
        block_on(create(&*truth, &named(3), id(9), meta)).unwrap();
        written(&*truth, id(9), 9);
        block_on(remove_noted(&*truth, &named(3))).unwrap();
        assert!(is_gone(&truth, 3) && is_gone(&truth, 9), "{requests}: {:?}", truth.objects());
    }
    assert!(both > 5, "{both}");
}

#[test]
fn what_is_refused_leaves_everything_as_it_was() {
    let remote = store();
    let before = remote.objects();
    let error = block_on(remove_noted(&*remote, &named(2))).unwrap_err();
    assert!(error.to_string().contains("v3"), "{error}");
    let error = block_on(remove_noted(&*remote, &named(7))).unwrap_err();
    assert!(matches!(error, CatalogError::NoSuchVolume { .. }), "{error}");
    assert_eq!(remote.objects(), before);
    // A note that is no note is named.
    remote.overwrite(&key::removal(&named(3)), "0123");
    let error = block_on(remove_noted(&*remote, &named(3))).unwrap_err();
    assert!(error.to_string().contains("removals/v3"), "{error}");
}
