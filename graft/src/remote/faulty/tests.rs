use futures::executor::block_on;

use super::super::{Counting, MemoryRemote};
use super::*;

fn faulty(seed: u64) -> (Arc<MemoryRemote>, Arc<Faulty>) {
    let memory = Arc::new(MemoryRemote::new());
    (memory.clone(), Faulty::new(memory, seed))
}

fn create(remote: &Faulty, key: &str, body: &'static str) -> Result<(), RemoteError> {
    block_on(remote.create(key, Bytes::from_static(body.as_bytes())))
}

fn is_unavailable(result: Result<(), RemoteError>) -> bool {
    matches!(result, Err(RemoteError::Unavailable { .. }))
}

#[test]
fn scripted_faults_do_what_they_say() {
    let (memory, remote) = faulty(1);
    remote.fail_next(Request::Create, Fault::FailBefore);
    assert!(is_unavailable(create(&remote, "a", "1")));
    assert_eq!(memory.objects(), []);

    remote.fail_next(Request::Create, Fault::FailAfter);
    assert!(is_unavailable(create(&remote, "a", "1")));
    assert_eq!(
        memory.objects(),
        [("a".to_string(), Bytes::from_static(b"1"))],
        "the answer was lost, not the object"
    );

    remote.fail_next(Request::Create, Fault::Duplicate);
    assert!(matches!(create(&remote, "b", "2"), Err(RemoteError::AlreadyExists { .. })));
    assert_eq!(block_on(remote.get("b")).unwrap(), "2");

    remote.fail_next(Request::Get, Fault::Flip);
    let flipped = block_on(remote.get("b")).unwrap();
    assert_eq!((flipped.len(), (flipped[0] ^ b'2').count_ones()), (1, 1));
    remote.fail_next(Request::GetRange, Fault::Truncate);
    assert_eq!(block_on(remote.get_range("b", 0..1)).unwrap(), "");

    remote.fail_next(Request::List, Fault::FailBefore);
    remote.fail_next(Request::Delete, Fault::FailAfter);
    assert!(block_on(remote.list("", None, 10)).is_err());
    assert!(is_unavailable(block_on(remote.delete("b"))));
    assert_eq!(memory.objects().len(), 1, "the delete happened");
    assert_eq!(remote.injected(), 7);
    assert_eq!(block_on(remote.get("a")).unwrap(), "1", "no fault is left");
}

#[test]
fn a_delayed_create_lands_later_and_may_lose() {
    let (memory, remote) = faulty(1);
    remote.fail_next(Request::Create, Fault::Delay { requests: 3 });
    assert!(is_unavailable(create(&remote, "log/1", "late")));
    for _ in 0..2 {
        assert_eq!(block_on(remote.list("", None, 10)).unwrap(), [], "not yet");
    }
    assert_eq!(remote.in_flight(), 1);
    assert!(
        matches!(create(&remote, "log/1", "new"), Err(RemoteError::AlreadyExists { .. })),
        "it landed first"
    );
    assert_eq!(block_on(remote.get("log/1")).unwrap(), "late");

    remote.fail_next(Request::Create, Fault::Delay { requests: 5 });
    assert!(is_unavailable(create(&remote, "log/2", "late")));
    create(&remote, "log/2", "new").unwrap();
    assert_eq!(block_on(remote.land_all()).unwrap(), 0, "the late one lost");
    assert_eq!(memory.objects()[1].1, "new");
    assert_eq!(remote.in_flight(), 0);
}

/// What a late write does to what came between; tombstones and leases must live with it.
#[test]
fn delayed_and_echoed_writes_land_on_what_is_there_then() {
    let (memory, remote) = faulty(1);
    let get = |key: &str| block_on(memory.get(key)).map(|body| String::from_utf8(body.to_vec()).unwrap());
    let put = |key: &str, body: &'static str| block_on(remote.put(key, Bytes::from_static(body.as_bytes())));

    remote.fail_next(Request::Put, Fault::Delay { requests: 9 });
    assert!(is_unavailable(put("a", "early")));
    put("a", "later").unwrap();
    assert_eq!(block_on(remote.land_all()).unwrap(), 1);
    assert_eq!(get("a").unwrap(), "early", "a put that was given up undid a later one");

    remote.fail_next(Request::Create, Fault::Echo { requests: 9 });
    create(&remote, "b", "1").unwrap();
    put("b", "tombstone").unwrap();
    assert_eq!(block_on(remote.land_all()).unwrap(), 0);
    assert_eq!(get("b").unwrap(), "tombstone", "a create that is sent again meets what is there");
    remote.fail_next(Request::Create, Fault::Echo { requests: 2 });
    create(&remote, "c", "1").unwrap();
    block_on(remote.delete("c")).unwrap();
    assert!(get("c").is_err());
    block_on(remote.list("", None, 1)).unwrap();
    assert_eq!(get("c").unwrap(), "1", "and without a tombstone comes back");

    let (_, tag) = block_on(remote.get_tagged("c")).unwrap();
    remote.fail_next(Request::Update, Fault::Delay { requests: 9 });
    assert!(block_on(remote.update("c", Bytes::from_static(b"late"), &tag)).is_err());
    block_on(remote.update("c", Bytes::from_static(b"2"), &tag)).unwrap();
    assert_eq!(block_on(remote.land_all()).unwrap(), 0, "a late update is of another object");
    let (_, tag) = block_on(remote.get_tagged("c")).unwrap();
    remote.fail_next(Request::Update, Fault::Duplicate);
    let changed = block_on(remote.update("c", Bytes::from_static(b"3"), &tag));
    assert!(matches!(changed, Err(RemoteError::Changed { .. })), "by itself: {changed:?}");
    assert_eq!(get("c").unwrap(), "3");
    remote.fail_next(Request::Delete, Fault::Delay { requests: 9 });
    assert!(is_unavailable(block_on(remote.delete("c"))));
    put("c", "4").unwrap();
    block_on(remote.land_all()).unwrap();
    assert!(get("c").is_err(), "a late delete deletes what is there then");
}

#[test]
fn a_slow_request_is_overtaken() {
    let (memory, remote) = faulty(1);
    remote.fail_next(Request::Create, Fault::Slow { turns: 3 });
    let (first, second) = block_on(futures::future::join(
        remote.create("log/1", Bytes::from_static(b"slow")),
        remote.create("log/1", Bytes::from_static(b"fast")),
    ));
    assert!(matches!(first, Err(RemoteError::AlreadyExists { .. })) && second.is_ok());
    assert_eq!(block_on(memory.get("log/1")).unwrap(), "fast");
    assert_eq!(remote.injected(), 1);
}

#[test]
fn an_unreachable_store_has_no_effect_until_it_returns() {
    let memory = Arc::new(MemoryRemote::new());
    let counting = Counting::new(memory);
    let remote = Faulty::new(counting.clone(), 1);
    remote.set_unreachable(true);
    assert!(is_unavailable(create(&remote, "a", "1")));
    assert!(is_unavailable(block_on(remote.get("a")).map(drop)));
    assert!(is_unavailable(block_on(remote.list("", None, 1)).map(drop)));
    assert!(is_unavailable(block_on(remote.delete("a"))));
    assert_eq!(counting.snapshot().requests(), 0);
    remote.set_unreachable(false);
    create(&remote, "a", "1").unwrap();
}

/// The trace of 2,000 requests under every fault.
fn trace(seed: u64) -> Vec<String> {
    let memory = Arc::new(MemoryRemote::new());
    let faults = Faults {
        fail_before: 0.1,
        fail_after: 0.1,
        duplicate: 0.1,
        delay: 0.1,
        delay_requests_max: 10,
        flip: 0.1,
        truncate: 0.1,
        echo: 0.1,
        slow: 0.1,
        slow_turns_max: 3,
    };
    let remote = Faulty::with_faults(memory.clone(), seed, faults);
    let mut trace = Vec::new();
    for i in 0..500 {
        trace.push(format!("{:?}", create(&remote, &format!("k/{i}"), "a body of some bytes")));
        trace.push(format!("{:?}", block_on(remote.get(&format!("k/{}", i / 2)))));
        trace.push(format!("{:?}", block_on(remote.list("k/", None, 3))));
        trace.push(format!("{:?}", block_on(remote.get_range(&format!("k/{}", i / 2), 3..9))));
    }
    trace.push(format!("{:?} {}", memory.objects(), remote.injected()));
    trace
}

#[test]
fn equal_seeds_fail_equally_and_others_do_not() {
    assert_eq!(trace(7), trace(7));
    assert_ne!(trace(7), trace(8));
    let (_, remote) = faulty(7);
    for i in 0..100 {
        create(&remote, &format!("k/{i}"), "").unwrap();
    }
    assert_eq!(remote.injected(), 0, "without faults none is injected");
}

#[test]
fn faults_come_about_as_often_as_asked() {
    let memory = Arc::new(MemoryRemote::new());
    let remote = Faulty::with_faults(memory, 3, Faults { fail_before: 0.25, ..Faults::default() });
    let failed = (0..4000).filter(|i| create(&remote, &format!("k/{i}"), "").is_err()).count();
    assert!((900..1100).contains(&failed), "{failed} of 4000");
}
