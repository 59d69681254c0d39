//! Removals that end half-way, wherever that is, are finished by the next of the same name. Two at the same
//! time leave no fork without what it reads, whichever of them fails.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use futures::executor::block_on;
use futures::future::LocalBoxFuture;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

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
            let first = block_on(remove_noted(&killed, &named(3), 1));
            let told = format!("after {requests} requests, {arrives}");
            if first.is_ok() {
                break;
            }
            let name_is_gone = block_on(resolve(&*truth, &named(3))).is_err();
            after_the_name += u32::from(name_is_gone);
            match block_on(remove_noted(&*truth, &named(3), 2)) {
                Ok(_) => {}
                // All that was missing was its answer.
                Err(CatalogError::NoSuchVolume { .. }) if name_is_gone => {}
                Err(error) => panic!("{told}: {error}"),
            }
            assert!(is_gone(&truth, 3), "{told}: {:?}", truth.objects());
            // So its parents can go.
            for n in [2, 1] {
                block_on(remove_noted(&*truth, &named(n), 2))
                    .unwrap_or_else(|error| panic!("{told}: {error}"));
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
        if block_on(remove_noted(&killed, &named(3), 1)).is_ok() {
            break;
        }
        if block_on(resolve(&*truth, &named(3))).is_ok() {
            continue;
        }
        both += 1;
        let meta = Meta { page_size: PageSize::new(512).unwrap(), parent: None };
        block_on(create(&*truth, &named(3), id(9), meta)).unwrap();
        written(&*truth, id(9), 9);
        block_on(remove_noted(&*truth, &named(3), 2)).unwrap();
        assert!(is_gone(&truth, 3) && is_gone(&truth, 9), "{requests}: {:?}", truth.objects());
    }
    assert!(both > 5, "{both}");
}

#[test]
fn what_is_refused_leaves_everything_as_it_was() {
    let remote = store();
    let before = remote.objects();
    let error = block_on(remove_noted(&*remote, &named(2), 2)).unwrap_err();
    assert!(error.to_string().contains("v3"), "{error}");
    let error = block_on(remove_noted(&*remote, &named(7), 2)).unwrap_err();
    assert!(matches!(error, CatalogError::NoSuchVolume { .. }), "{error}");
    assert_eq!(remote.objects(), before);
    // A note that is no note is named.
    remote.overwrite(&key::removal(&named(3)), "0123");
    let error = block_on(remove_noted(&*remote, &named(3), 2)).unwrap_err();
    assert!(error.to_string().contains("removals/v3"), "{error}");
}

/// A store to one actor of several that take turns: stands still before each request. The next one can be
/// made to fail.
#[derive(Debug)]
struct Turns {
    truth: Arc<MemoryRemote>,
    /// The next request has no answer; whether it arrives.
    fails: AtomicBool,
    arrives: AtomicBool,
}

impl Turns {
    fn of(truth: &Arc<MemoryRemote>) -> Turns {
        Turns { truth: truth.clone(), fails: false.into(), arrives: false.into() }
    }

    fn fail_next(&self, arrives: bool) {
        self.arrives.store(arrives, Ordering::SeqCst);
        self.fails.store(true, Ordering::SeqCst);
    }
}

impl Layer for Turns {
    fn inner(&self) -> &dyn Remote {
        &*self.truth
    }

    fn around<'a, T: Send + 'a>(&'a self, _: Request, key: &'a str, sent: Answer<'a, T>) -> Answer<'a, T> {
        Box::pin(async move {
            let mut stood = false;
            poll_fn(|context| {
                context.waker().wake_by_ref();
                if std::mem::replace(&mut stood, true) { Poll::Ready(()) } else { Poll::Pending }
            })
            .await;
            if !self.fails.swap(false, Ordering::SeqCst) {
                return sent.await;
            }
            if self.arrives.load(Ordering::SeqCst) {
                drop(sent.await);
            }
            Err(RemoteError::Unavailable { key: key.into(), message: "no answer".into() })
        })
    }
}

/// One who takes turns.
struct Actor<'a, T> {
    work: LocalBoxFuture<'a, T>,
    done: Option<T>,
}

impl<'a, T> Actor<'a, T> {
    fn new(work: impl Future<Output = T> + 'a) -> Actor<'a, T> {
        Actor { work: Box::pin(work), done: None }
    }

    /// Goes on to its next request. Whether there is one.
    fn step(&mut self) -> bool {
        if self.done.is_none()
            && let Poll::Ready(done) = self.work.as_mut().poll(&mut Context::from_waker(Waker::noop()))
        {
            self.done = Some(done);
        }
        self.done.is_none()
    }

    fn steps(&mut self, turns: usize) -> bool {
        (0..turns).all(|_| self.step())
    }

    fn finish(&mut self) -> &T {
        while self.step() {}
        self.done.as_ref().unwrap()
    }
}

/// Volume 1, which nothing was forked from yet.
fn childless() -> Arc<MemoryRemote> {
    let remote = Arc::new(MemoryRemote::new());
    let meta = Meta { page_size: PageSize::new(512).unwrap(), parent: None };
    block_on(create(&*remote, &named(1), id(1), meta)).unwrap();
    written(&*remote, id(1), 1);
    remote
}

fn forking(remote: &Turns, n: u8) -> impl Future<Output = Result<(), crate::fork::ForkError>> + '_ {
    let name = named(n);
    async move { crate::fork::create_once(remote, id(1), At::Newest, id(n), &name).await.map(drop) }
}

/// Everything that fork `n` of [`childless`] reads is there.
fn is_readable(remote: &dyn Remote, n: u8) -> Result<(), String> {
    let opened = block_on(Volume::open(remote, id(n), Options { locals: None, ..Options::default() }));
    let fork = opened.map_err(|error| error.to_string())?.volume;
    let first = [PageIdx::FIRST].into_iter().collect();
    block_on(crate::fetch::fetch(remote, &fork, &fork.tip(), &first)).map_err(|error| error.to_string())?;
    let page = fork.read(&fork.tip(), PageIdx::FIRST).map_err(|error| error.to_string())?;
    if page[0] == 1 { Ok(()) } else { Err(format!("reads {}", page[0])) }
}

/// What removals and forks have left can be removed to the last object, whatever failed.
fn goes_whole(truth: &MemoryRemote, told: &str) {
    for n in [3, 2, 1] {
        block_on(finish_removal(truth, &named(n), id(n), 98))
            .unwrap_or_else(|error| panic!("{told}: {error}"));
        match block_on(remove_noted(truth, &named(n), 99)) {
            Ok(_) | Err(CatalogError::NoSuchVolume { .. }) => {}
            Err(error) => panic!("{told}: {error}"),
        }
    }
    assert_eq!(truth.objects(), [], "{told}");
}

/// One removal stands before any of its requests; another one fails at any of its own, and takes back what
/// it may; then comes a fork, and the first goes on. They shared one mark once: who failed opened the volume
/// which the other deleted.
#[test]
fn a_removal_that_fails_does_not_open_the_volume_to_forks_while_another_goes_on() {
    let (mut forked, mut gone) = (0, 0);
    for arrives in [false, true] {
        for before in 0.. {
            let mut failing_ended = false;
            for others in 0.. {
                let truth = childless();
                let (failing, other, forker) = (Turns::of(&truth), Turns::of(&truth), Turns::of(&truth));
                let name = named(1);
                let mut failing_removal = Actor::new(remove(&failing, &name, 1));
                let mut other_removal = Actor::new(remove(&other, &name, 2));
                let mut fork = Actor::new(forking(&forker, 2));
                failing_ended = !failing_removal.steps(before + 1);
                let other_ended = !other_removal.steps(others + 1);
                failing.fail_next(arrives);
                failing_removal.finish();
                let made = fork.finish().is_ok();
                let removed = other_removal.finish().is_ok();
                let told = format!("failed at request {before}, {arrives}, the other stood before {others}");
                if made {
                    forked += 1;
                    is_readable(&*truth, 2).unwrap_or_else(|error| panic!("{told}: {removed}: {error}"));
                }
                gone += u32::from(removed);
                goes_whole(&truth, &told);
                if other_ended {
                    break;
                }
            }
            if failing_ended {
                break;
            }
        }
    }
    assert!(forked > 30 && gone > 100, "{forked} {gone}");
}

/// The same in any order, with two forks, and with failures of both removals.
#[test]
fn removals_and_forks_in_any_order_leave_no_fork_without_what_it_reads() {
    let (mut forked, mut gone, mut refused, mut failed) = (0, 0, 0, 0);
    for seed in 0..2000 {
        let mut rng = StdRng::seed_from_u64(seed);
        let truth = childless();
        let ways: [Turns; 4] = std::array::from_fn(|_| Turns::of(&truth));
        let name = named(1);
        let mut removals =
            [Actor::new(remove(&ways[0], &name, 1)), Actor::new(remove_noted(&ways[1], &name, 2))];
        let mut forks = [2, 3].map(|n| Actor::new(forking(&ways[usize::from(n)], n)));
        let mut running = vec![0, 1, 2, 3];
        while !running.is_empty() {
            let at = rng.random_range(0..running.len());
            let actor = running[at];
            for _ in 0..rng.random_range(1..8) {
                if actor < 2 && rng.random_bool(0.04) {
                    ways[actor].fail_next(rng.random());
                }
                let goes_on = if actor < 2 { removals[actor].step() } else { forks[actor - 2].step() };
                if !goes_on {
                    running.swap_remove(at);
                    break;
                }
            }
        }
        for removal in &removals {
            match removal.done.as_ref().unwrap() {
                Ok(_) => gone += 1,
                Err(CatalogError::HasForks { .. }) => refused += 1,
                Err(_) => failed += 1,
            }
        }
        for (n, fork) in [2, 3].into_iter().zip(&forks) {
            if fork.done.as_ref().unwrap().is_ok() {
                forked += 1;
                is_readable(&*truth, n).unwrap_or_else(|error| panic!("seed {seed}: fork {n}: {error}"));
            }
        }
        goes_whole(&truth, &format!("seed {seed}"));
    }
    assert!(forked > 200 && gone > 200 && refused > 50 && failed > 50, "{forked} {gone} {refused} {failed}");
}
