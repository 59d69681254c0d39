//! Leases of readers: what they cost, what they keep, and what ends them.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use futures::executor::block_on;

use super::*;
use crate::fetch::fetch;
use crate::format::meta::Meta;
use crate::gc::{Plan, Retention, SKEW_MS, Why, collect};
use crate::ids::{CommitId, PageIdx, PageSize};
use crate::page_set::PageSet;
use crate::remote::{Answer, Counting, Counts, Fault, Faulty, Layer, MemoryRemote, Request};
use crate::time::At;
use crate::volume::{Change, Options, Volume, push};
use crate::{catalog, checkpoint};

const VOLUME: VolumeId = VolumeId([5; 16]);
const ID: LeaseId = LeaseId([6; 16]);
const PAGE: usize = 512;
const PAGES: u32 = 40;
const BEGUN: i64 = 1_000_000_000;

fn page(idx: u32) -> PageIdx {
    PageIdx::new(idx).unwrap()
}

fn options() -> Options {
    Options { store: None, locals: None, cache_bytes: 1 << 20, ..Options::default() }
}

/// A volume whose every commit writes every page.
struct Book {
    remote: Arc<MemoryRemote>,
    writer: Volume,
    n: u8,
}

impl Book {
    fn new() -> Book {
        let remote = Arc::new(MemoryRemote::new());
        remote.set_now_ms(BEGUN);
        let meta = Meta { page_size: PageSize::new(PAGE as u32).unwrap(), parent: None };
        block_on(catalog::create(&*remote, &"v".parse().unwrap(), VOLUME, meta)).unwrap();
        let writer = block_on(Volume::open(&*remote, VOLUME, options())).unwrap().volume;
        Book { remote, writer, n: 0 }
    }

    fn commit(&mut self) {
        self.n += 1;
        let changes =
            (1..=PAGES).map(|idx| (page(idx), Bytes::from(vec![self.n; PAGE]))).collect::<BTreeMap<_, _>>();
        let change = Change { changes, pages: PAGES, payload: Bytes::new() };
        self.writer.commit(&self.writer.tip(), change).unwrap();
        let id = CommitId(u128::from(self.n).to_be_bytes());
        block_on(push(&*self.remote, &self.writer, |_| Bytes::new(), || id, i64::from(self.n))).unwrap();
    }

    fn checkpoint(&self) {
        block_on(checkpoint::write(&*self.remote, &self.writer, &self.writer.base(), Bytes::new())).unwrap();
    }

    /// Nothing is kept but the newest, by a collector whose clock shows `now_ms`.
    fn collect(&self, now_ms: i64) -> Plan {
        let retention = Retention { keep_ms: 0, keep_commits: 0, grace_ms: 0 };
        block_on(collect(&*self.remote, VOLUME, retention, now_ms, &|_, _| {})).unwrap()
    }

    /// A reader that has read nothing yet.
    fn reader(&self, lsn: u64) -> Volume {
        block_on(Volume::open_at(&*self.remote, VOLUME, At::Lsn(Lsn(lsn)), 1 << 20)).unwrap().volume
    }

    /// Whether each page reads as the commit of the reader's LSN wrote it.
    fn reads(&self, reader: &Volume) -> bool {
        let tip = reader.tip();
        let all: PageSet = (1..=PAGES).map(page).collect();
        match block_on(fetch(&*self.remote, reader, &tip, &all)) {
            Ok(_) => {
                (1..=PAGES).all(|idx| reader.read(&tip, page(idx)).unwrap()[..] == [tip.lsn().0 as u8; PAGE])
            }
            Err(_) => false,
        }
    }
}

/// A book of ten commits, checkpoints at 3 and 10; `lsn`'s reader holds a lease.
fn held(lsn: u64) -> (Book, Volume, Lease) {
    let mut book = Book::new();
    (0..3).for_each(|_| book.commit());
    book.checkpoint();
    (0..4).for_each(|_| book.commit());
    let reader = book.reader(lsn);
    let lease = block_on(Lease::take(&*book.remote, &reader.tip(), ID, BEGUN)).unwrap();
    (0..3).for_each(|_| book.commit());
    book.checkpoint();
    (book, reader, lease)
}

fn took(counts: Counts) -> (u64, u64, u64, u64) {
    (counts.puts, counts.lists, counts.deletes, counts.requests())
}

#[test]
fn a_lease_costs_one_put_and_one_list_and_two_requests_each_third_of_its_term() {
    let mut book = Book::new();
    book.commit();
    let remote = Counting::new(book.remote.clone());
    let tip = book.writer.tip();
    let mut lease = block_on(Lease::take(&*remote, &tip, ID, BEGUN)).unwrap();
    assert_eq!(took(remote.snapshot()), (1, 1, 0, 2));
    let renew_ms = BEGUN + TERM_MS / 3;
    assert_eq!(lease.standing(BEGUN), Standing::Held { renew_ms, until_ms: BEGUN + TERM_MS });
    assert!(matches!(lease.standing(renew_ms - 1), Standing::Held { .. }));
    assert_eq!(lease.standing(renew_ms), Standing::Due { until_ms: BEGUN + TERM_MS });
    let before = remote.snapshot();
    block_on(lease.renew(&*remote, renew_ms)).unwrap();
    let counts = remote.snapshot() - before;
    assert_eq!((counts.gets, counts.updates, counts.requests()), (1, 1, 2));
    assert!(matches!(lease.standing(renew_ms), Standing::Held { .. }));
    // A clock that is set back is not believed: the lease is not held for longer than it is.
    assert_eq!(lease.standing(0), lease.standing(renew_ms));
    let before = remote.snapshot();
    block_on(lease.release(&*remote)).unwrap();
    assert_eq!(took(remote.snapshot() - before), (0, 0, 1, 1));
    assert!(block_on(book.remote.list(&key::readers_prefix(VOLUME), None, 9)).unwrap().is_empty());
}

/// Retention zero, no grace: what keeps a state is the lease alone.
#[test]
fn a_held_state_stays_whole_and_goes_when_it_is_released() {
    for lsn in [1, 2, 3, 5, 7] {
        let (book, reader, lease) = held(lsn);
        let plan = book.collect(BEGUN);
        assert_eq!(plan.pinned.len(), 1);
        assert!(plan.doomed.iter().all(|doomed| doomed.why != Why::Lease));
        assert!(book.reads(&reader), "lsn {lsn}, while it is held");
        // Another that looks at the same state for the first time.
        assert!(book.reads(&book.reader(lsn)), "lsn {lsn}, opened anew while it is held");
        block_on(lease.release(&*book.remote)).unwrap();
        let plan = book.collect(BEGUN);
        assert!(plan.doomed.iter().any(|doomed| doomed.key == key::log(VOLUME, Lsn(lsn))));
        let late = block_on(Volume::open_at(&*book.remote, VOLUME, At::Lsn(Lsn(lsn)), 1 << 20));
        assert!(late.is_err(), "lsn {lsn}, after it was released");
        let report = block_on(crate::verify::verify(&*book.remote, VOLUME, &|_| {})).unwrap();
        assert!(report.is_sound(), "{:?}", report.findings);
    }
}

/// Whichever comes second sees the first: the floor is published, so the reader gives up.
#[test]
fn a_state_below_the_floor_is_refused() {
    let (book, _, lease) = held(5);
    let reader = book.reader(5);
    block_on(lease.release(&*book.remote)).unwrap();
    book.collect(BEGUN);
    let refused = block_on(Lease::take(&*book.remote, &reader.tip(), ID, BEGUN));
    assert!(matches!(refused, Err(LeaseError::Expired { lsn: Lsn(5), floor: Lsn(10), .. })), "{refused:?}");
    let left = block_on(book.remote.list(&key::readers_prefix(VOLUME), None, 9)).unwrap();
    assert!(left.is_empty(), "{left:?}");
    // The newest can always be had.
    block_on(Lease::take(&*book.remote, &book.writer.tip(), ID, BEGUN)).unwrap();
}

/// The store is away when it must be renewed: it says how long it holds yet, then that it does not.
#[test]
fn a_renewal_that_fails_lapses_and_is_taken_anew_if_nothing_was_given_up() {
    for collected in [false, true] {
        let (book, reader, mut lease) = held(5);
        let remote = Faulty::new(book.remote.clone(), 1);
        let (due, until) = (BEGUN + RENEW_MS, BEGUN + TERM_MS);
        remote.fail_next(Request::Update, Fault::FailBefore);
        let failed = block_on(lease.renew(&*remote, due));
        assert!(matches!(failed, Err(LeaseError::Remote { .. })), "{failed:?}");
        assert_eq!(lease.standing(due), Standing::Due { until_ms: until });
        // It was written, but nobody knows: it holds for longer than it says, never shorter.
        remote.fail_next(Request::Update, Fault::FailAfter);
        assert!(block_on(lease.renew(&*remote, due + 1)).is_err());
        assert_eq!(lease.standing(until - 1), Standing::Due { until_ms: until });
        assert_eq!(lease.standing(until), Standing::Lapsed);
        let now = until + TERM_MS;
        if collected {
            // Its stamp is as old as its last renewal, and the store's clock has gone on.
            book.remote.set_now_ms(now);
            book.remote.overwrite(&key::segment(VOLUME, Lsn(99), CommitId([1; 16]), 1), "upload");
            let plan = book.collect(now);
            assert!(plan.doomed.iter().any(|doomed| doomed.why == Why::Lease), "{:?}", plan.doomed);
        }
        let renewed = block_on(lease.renew(&*remote, now));
        if collected {
            assert!(matches!(renewed, Err(LeaseError::Expired { lsn: Lsn(5), .. })), "{renewed:?}");
            assert_eq!(lease.standing(now), Standing::Lapsed);
            assert!(!book.reads(&reader));
        } else {
            renewed.unwrap();
            assert!(matches!(lease.standing(now), Standing::Held { .. }));
            book.collect(now);
            assert!(book.reads(&reader));
        }
    }
}

/// A collector whose clock is far ahead has deleted it, and what it kept: the reader learns of it at the next
/// renewal, and is not told that the lease holds.
#[test]
fn a_lease_that_was_deleted_is_not_held() {
    for collected in [true, false] {
        let (book, reader, mut lease) = held(5);
        if collected {
            for _ in 0..2 {
                book.collect(BEGUN + TERM_MS + SKEW_MS + 1);
            }
            assert!(!book.reads(&reader));
        } else {
            block_on(book.remote.delete(&lease.key())).unwrap();
        }
        let now = BEGUN + RENEW_MS;
        assert!(matches!(lease.standing(now), Standing::Due { .. }));
        let renewed = block_on(lease.renew(&*book.remote, now));
        if collected {
            assert!(matches!(renewed, Err(LeaseError::Expired { lsn: Lsn(5), .. })), "{renewed:?}");
            assert_eq!(lease.standing(now), Standing::Lapsed);
        } else {
            renewed.unwrap();
            assert!(matches!(lease.standing(now), Standing::Held { .. }));
            book.collect(now);
            assert!(book.reads(&reader));
        }
    }
}

/// Nobody's clock is right: a live lease is kept, and a dead one goes.
#[test]
fn clocks_that_disagree_cost_no_reader_its_state() {
    // A collector ahead of the reader by nearly an hour, and one behind by years.
    for collector in [BEGUN + TERM_MS + SKEW_MS, 0, i64::MIN] {
        let (book, reader, _) = held(5);
        book.collect(collector);
        let plan = book.collect(BEGUN);
        assert_eq!((plan.pinned.len(), plan.sweep.lsn), (1, Lsn(10)));
        assert!(book.reads(&reader), "a collector whose clock shows {collector}");
    }
    // A reader whose clock is years behind, or ahead, of the store's, and renews as it should.
    for began in [1000, BEGUN * 1000] {
        let (book, reader, _) = held(5);
        let mut lease = block_on(Lease::take(&*book.remote, &reader.tip(), ID, began)).unwrap();
        for round in 1..9 {
            book.remote.set_now_ms(BEGUN + round * RENEW_MS);
            block_on(lease.renew(&*book.remote, began + round * RENEW_MS)).unwrap();
            let collector = began + round * RENEW_MS;
            book.collect(collector);
            assert!(book.reads(&reader), "round {round}");
        }
    }
    // Its reader died: it goes by the store's stamps, however far ahead the collector's clock is; and where
    // nothing is written, by the collector's. One that is behind only waits.
    let dead = BEGUN + TERM_MS + 1;
    for (store, collector) in [(dead, dead), (dead, i64::MAX), (BEGUN, BEGUN + TERM_MS + SKEW_MS + 1)] {
        let (book, reader, _) = held(5);
        book.remote.set_now_ms(store);
        book.remote.overwrite(&key::segment(VOLUME, Lsn(99), CommitId([1; 16]), 1), "upload");
        let plan = book.collect(collector);
        assert!(plan.doomed.iter().any(|doomed| doomed.why == Why::Lease), "{store} {collector}");
        book.collect(BEGUN);
        assert!(!book.reads(&reader));
    }
}

/// Stamps may be file times, and a file may be of the future: it does not end everybody's lease.
#[test]
fn one_stamp_of_the_future_ends_no_lease() {
    for ahead in [TERM_MS + 1, 100 * 86_400_000] {
        let (book, reader, _) = held(5);
        book.remote.set_now_ms(BEGUN + ahead);
        book.remote.overwrite(&key::segment(VOLUME, Lsn(99), CommitId([1; 16]), 1), "upload");
        let plan = book.collect(BEGUN + RENEW_MS);
        assert!(plan.doomed.iter().all(|doomed| doomed.why != Why::Lease), "{:?}", plan.doomed);
        assert!(book.reads(&reader), "a stamp that is {ahead} ms ahead");
        book.remote.set_now_ms(BEGUN);
    }
}

/// A store that others read with our help only: as a bucket's, by credentials that may not write.
#[derive(Debug)]
struct ReadOnly(Arc<MemoryRemote>);

fn refused(key: &str) -> RemoteError {
    RemoteError::Refused { key: key.into(), message: "you may not write here".into() }
}

impl Layer for ReadOnly {
    fn inner(&self) -> &dyn Remote {
        &*self.0
    }
    fn around<'a, T: Send + 'a>(
        &'a self,
        request: Request,
        key: &'a str,
        sent: Answer<'a, T>,
    ) -> Answer<'a, T> {
        match request {
            Request::Get | Request::GetRange | Request::List => sent,
            Request::Create | Request::Put | Request::Update | Request::Delete => {
                Box::pin(async move { Err(refused(key)) })
            }
        }
    }
    fn url(&self) -> String {
        "readonly:".into()
    }
}

#[test]
fn a_store_that_takes_no_writes_gives_no_lease_and_says_so() {
    let mut book = Book::new();
    book.commit();
    let remote = ReadOnly(book.remote.clone());
    let none = block_on(Lease::take(&remote, &book.writer.tip(), ID, BEGUN));
    assert!(matches!(none, Err(LeaseError::ReadOnly { .. })), "{none:?}");
}

#[cfg(feature = "native")]
mod kept {
    use super::*;
    use crate::remote::SharedRemote;

    /// Virtual time: what passes is what the keeper waits for.
    #[tokio::test(start_paused = true)]
    async fn a_keeper_renews_each_third_of_the_term_and_releases_at_its_end() {
        let mut book = Book::new();
        book.commit();
        let remote = Counting::new(book.remote.clone());
        let shared: SharedRemote = remote.clone();
        let keeper = Keeper::hold(shared, &book.writer.tip(), ID).await.unwrap();
        assert!(matches!(keeper.standing(), Standing::Held { .. }));
        let third = std::time::Duration::from_millis(RENEW_MS as u64);
        tokio::time::sleep(3 * third + third / 2).await;
        let counts = remote.snapshot();
        assert_eq!((counts.puts, counts.lists, counts.gets, counts.updates), (1, 1, 3, 3));
        assert!(book.remote.get(&key::reader(VOLUME, ID)).await.is_ok());
        keeper.close().await;
        assert_eq!(took(remote.snapshot()), (1, 1, 1, 9));
        assert!(matches!(book.remote.get(&key::reader(VOLUME, ID)).await, Err(RemoteError::NotFound { .. })));
    }

    #[tokio::test(start_paused = true)]
    async fn a_renewal_that_fails_is_tried_again_soon() {
        let mut book = Book::new();
        book.commit();
        let faulty = Faulty::new(book.remote.clone(), 1);
        let remote = Counting::new(faulty.clone());
        let keeper = Keeper::hold(remote.clone(), &book.writer.tip(), ID).await.unwrap();
        faulty.fail_next(Request::Update, Fault::FailBefore);
        tokio::time::sleep(std::time::Duration::from_millis(RENEW_MS as u64 + 20_000)).await;
        assert_eq!((remote.snapshot().puts, remote.snapshot().updates), (1, 2), "taken, failed, renewed");
        keeper.close().await;
    }
}
