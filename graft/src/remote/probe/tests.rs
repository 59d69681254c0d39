use std::sync::Arc;

use async_trait::async_trait;
use futures::executor::block_on;
use futures::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMode,
    PutMultipartOptions, PutOptions, PutPayload, PutResult,
};

use super::super::{Counting, Counts, Faulty, Layer, MemoryRemote, ObjectRemote};
use super::*;

/// How the stand-in's `create` departs from what it should do.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fault {
    /// Looks, lets others run, then writes: as `s3s-fs` does, and `moto` with large bodies.
    LooksThenWrites { from_bytes: usize },
    /// Refuses the loser, and writes its bytes all the same.
    RefusesAndWrites,
    /// Answers losers as S3 answers those that race: 409, ask again.
    Conflicts,
    /// The first answer of each key is lost on the way.
    LosesTheWinnersAnswer,
    /// Takes nothing.
    Forbids,
}

#[derive(Debug)]
struct StandIn {
    objects: MemoryRemote,
    fault: Fault,
    place: &'static str,
}

fn stand_in(fault: Fault) -> StandIn {
    StandIn { objects: MemoryRemote::new(), fault, place: "stand-in: at a" }
}

#[async_trait]
impl Layer for StandIn {
    fn inner(&self) -> &dyn Remote {
        &self.objects
    }
    async fn create(&self, key: &str, body: Bytes) -> Result<(), RemoteError> {
        let unavailable = |message: &str| RemoteError::unavailable(key, message);
        match self.fault {
            Fault::LooksThenWrites { from_bytes } if body.len() >= from_bytes => {
                if self.objects.get(key).await.is_ok() {
                    return Err(RemoteError::already_exists(key));
                }
                yield_once().await;
                self.objects.overwrite(key, body);
                Ok(())
            }
            Fault::LooksThenWrites { .. } => self.objects.create(key, body).await,
            Fault::RefusesAndWrites => {
                let answer = self.objects.create(key, body.clone()).await;
                self.objects.overwrite(key, body);
                answer
            }
            Fault::Conflicts => {
                // The late creator finds nobody in flight.
                let late = body[0] >= 16 || body[0] == 1 && body.len() == 64;
                match self.objects.create(key, body).await {
                    Err(RemoteError::AlreadyExists { .. }) if !late => Err(unavailable("409")),
                    answer => answer,
                }
            }
            Fault::LosesTheWinnersAnswer => {
                self.objects.create(key, body).await?;
                Err(unavailable("the line went dead"))
            }
            Fault::Forbids => Err(RemoteError::Refused { key: key.into(), message: "403".into() }),
        }
    }
    fn url(&self) -> String {
        "stand-in:".into()
    }
    fn place(&self) -> String {
        self.place.into()
    }
}

/// Lets the other creators run.
async fn yield_once() {
    let mut yielded = false;
    futures::future::poll_fn(|context| {
        if std::mem::replace(&mut yielded, true) {
            return std::task::Poll::Ready(());
        }
        context.waker().wake_by_ref();
        std::task::Poll::Pending
    })
    .await;
}

fn assert_says(error: &ProbeError, words: &[&str]) {
    let text = error.to_string();
    for word in words {
        assert!(text.contains(word), "`{word}` is missing: {text}");
    }
}

/// As `s3rver` and `garage` do: the header is accepted and ignored.
#[derive(Debug)]
struct DropsTheCondition(InMemory);

impl std::fmt::Display for DropsTheCondition {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "DropsTheCondition")
    }
}

#[async_trait]
impl ObjectStore for DropsTheCondition {
    async fn put_opts(
        &self,
        path: &Path,
        body: PutPayload,
        options: PutOptions,
    ) -> object_store::Result<PutResult> {
        self.0.put_opts(path, body, PutOptions { mode: PutMode::Overwrite, ..options }).await
    }
    async fn put_multipart_opts(
        &self,
        path: &Path,
        options: PutMultipartOptions,
    ) -> object_store::Result<Box<dyn MultipartUpload>> {
        self.0.put_multipart_opts(path, options).await
    }
    async fn get_opts(&self, path: &Path, options: GetOptions) -> object_store::Result<GetResult> {
        self.0.get_opts(path, options).await
    }
    fn delete_stream(
        &self,
        paths: BoxStream<'static, object_store::Result<Path>>,
    ) -> BoxStream<'static, object_store::Result<Path>> {
        self.0.delete_stream(paths)
    }
    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        self.0.list(prefix)
    }
    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> object_store::Result<ListResult> {
        self.0.list_with_delimiter(prefix).await
    }
    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> object_store::Result<()> {
        self.0.copy_opts(from, to, options).await
    }
}

#[test]
fn a_store_that_ignores_the_condition_is_refused() {
    let store = Arc::new(DropsTheCondition(InMemory::new()));
    let remote = Counting::new(Arc::new(ObjectRemote::new(store, "pre/fix", "careless:".into())));
    let error = block_on(probe_once(remote.as_ref(), "x", 0)).expect_err("it overwrites");
    assert!(matches!(error, ProbeError::NotExclusive { .. }), "{error:?}");
    assert_says(
        &error,
        &["`careless:`", "be lost", "If-None-Match: *", "Ceph RGW", "local directory", "docs/operations.md"],
    );
    assert_eq!(block_on(remote.list("", None, 10)).unwrap(), [], "the probe cleans up and leaves no marker");
    let cost = remote.snapshot();
    assert!(cost.requests() < 10 && cost.bytes_up < 1_000, "found at once: {cost:?}");
}

#[test]
fn a_store_that_looks_and_then_writes_is_refused() {
    for from_bytes in [0, 4 << 10, 256 << 10] {
        let remote = stand_in(Fault::LooksThenWrites { from_bytes });
        let error = block_on(probe_once(&remote, "x", 0)).expect_err("it races");
        assert!(matches!(error, ProbeError::Races { winners: 2..=16, creators: 16, .. }), "{error:?}");
        assert_says(&error, &["`stand-in:`", "of 16 racing creators", "atomic", "Ceph RGW"]);
        assert_eq!(remote.objects.objects(), [], "{from_bytes}");
    }
}

#[test]
fn a_store_that_writes_what_it_refuses_is_refused() {
    let remote = stand_in(Fault::RefusesAndWrites);
    let error = block_on(probe_once(&remote, "x", 0)).expect_err("it does not keep");
    assert!(matches!(&error, ProbeError::NotKept { key, .. } if key == "probe/x/0"), "{error:?}");
}

/// What a fit store may answer under a race does not count against it.
#[test]
fn conflicts_and_lost_answers_are_no_fault() {
    let remote = stand_in(Fault::Conflicts);
    assert_eq!(block_on(probe_once(&remote, "x", 0)).unwrap(), Probed::Now);
    // The winner is not known, and yet the object is one of theirs. A marker cannot be left so.
    let remote = stand_in(Fault::LosesTheWinnersAnswer);
    block_on(probe(&remote, "x")).unwrap();
    assert_eq!(remote.objects.objects(), []);
    let error = block_on(probe_once(&remote, "x", 0)).expect_err("no marker");
    assert!(matches!(error, ProbeError::Failed { .. }), "{error:?}");
}

#[test]
fn a_probe_that_cannot_be_made_says_so() {
    let error = block_on(probe_once(&stand_in(Fault::Forbids), "x", 0)).expect_err("refused");
    assert!(matches!(error, ProbeError::Failed { source: RemoteError::Refused { .. }, .. }), "{error:?}");
    let memory = Arc::new(MemoryRemote::new());
    block_on(memory.create("probe/x/0", Bytes::new())).unwrap();
    let taken = block_on(probe(memory.as_ref(), "x")).expect_err("taken");
    assert!(matches!(taken, ProbeError::Taken { .. }), "{taken}");
    let faulty = Faulty::new(memory, 1);
    faulty.set_unreachable(true);
    let failed = block_on(probe_once(faulty.as_ref(), "y", 0)).expect_err("unreachable");
    assert_says(&failed, &["could not be probed", "check that it is reachable"]);
}

/// The first use of a store costs what the module says, and every later one a single read.
#[test]
fn the_marker_remembers_for_one_place() {
    let inner = Arc::new(stand_in(Fault::LooksThenWrites { from_bytes: usize::MAX }));
    let counting = Counting::new(inner.clone());
    assert_eq!(block_on(probe_once(counting.as_ref(), "x", 1_795_316_645_678)).unwrap(), Probed::Now);
    let first = counting.reset();
    assert_eq!(
        (first.creates, first.gets, first.deletes, first.ranges, first.lists),
        (49 + 4 + 1, 4 + 1, 4, 0, 0)
    );
    assert_eq!(first.requests(), 63);
    assert_eq!(u64::from(REQUESTS_MAX), first.requests());
    assert!(first.bytes_up < 5_000_000, "{first:?}");

    let [(key, marker)] = <[_; 1]>::try_from(inner.objects.objects()).unwrap();
    let text = std::str::from_utf8(&marker).unwrap();
    for word in ["graft probe 1: passed\n", "stand-in: at a", "1795316645678 ms", env!("CARGO_PKG_VERSION")] {
        assert!(text.contains(word), "{text}");
    }
    assert_eq!(block_on(probe_once(counting.as_ref(), "y", 0)).unwrap(), Probed::Before);
    assert_eq!(counting.reset(), Counts { gets: 1, bytes_down: marker.len() as u64, ..Counts::default() });

    // The objects were copied to a server that races; its URL is the same.
    let copy = StandIn {
        objects: MemoryRemote::new(),
        fault: Fault::LooksThenWrites { from_bytes: 0 },
        place: "stand-in: at b",
    };
    copy.objects.overwrite(&key, marker);
    let error = block_on(probe_once(&copy, "z", 0)).expect_err("probed again");
    assert!(matches!(error, ProbeError::Races { .. }), "{error:?}");
    // A marker that says something else is none.
    inner.objects.overwrite(&key, "graft probe 0: passed\n");
    assert_eq!(block_on(probe_once(inner.as_ref(), "z", 0)).unwrap(), Probed::Now);
}
