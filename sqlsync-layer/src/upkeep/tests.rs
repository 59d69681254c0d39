//! What a compaction buys a reader that begins with nothing, in requests.

use std::sync::Arc;

use graft::fetch::{Ahead, Fetcher, RemoteFetch};
use graft::format::meta::Meta;
use graft::remote::{Counting, Counts, MemoryRemote, SharedRemote};
use graft::volume::{Pushed, Volume, push};
use graft::{PageSize, VolumeName, catalog};

use super::*;
use crate::payload::Payload;
use crate::vfs::{Database, Warmth, warm};

const ID: VolumeId = VolumeId([7; 16]);
const ROWS: u32 = 20_000;

async fn push_all(remote: &SharedRemote, volume: &Volume, n: u8) {
    let mut id = [n; 16];
    let pushed = push(
        &**remote,
        volume,
        Payload::of_locals,
        move || {
            id[0] = id[0].wrapping_add(1);
            CommitId(id)
        },
        1,
    )
    .await
    .unwrap();
    assert!(matches!(pushed, Pushed::Durable(_)));
}

/// A b-tree of many small pages, some 70 interior pages. Then `commits` of one row each.
async fn filled(remote: &SharedRemote, commits: u8) {
    let name: VolumeName = "v".parse().unwrap();
    let meta = Meta { page_size: PageSize::new(512).unwrap(), parent: None };
    catalog::create(&**remote, &name, ID, meta).await.unwrap();
    let volume = Arc::new(Volume::open(&**remote, ID, Options::default()).await.unwrap().volume);
    let database = Database::new(volume.clone(), Arc::new(RemoteFetch::new(remote.clone())));
    let run = async |sql: String| {
        let database = database.clone();
        let ran = tokio::task::spawn_blocking(move || database.connect().unwrap().0.execute_batch(&sql));
        ran.await.unwrap().unwrap();
    };
    run(format!(
        "CREATE TABLE t (id INTEGER PRIMARY KEY, body TEXT);
         WITH n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {ROWS})
         INSERT INTO t SELECT i, hex(randomblob(40)) FROM n;"
    ))
    .await;
    push_all(remote, &volume, 1).await;
    for i in 0..commits {
        run(format!("UPDATE t SET body = 'changed {i}' WHERE id = {}", 1 + u32::from(i) * 97)).await;
        push_all(remote, &volume, i.wrapping_mul(3).wrapping_add(20)).await;
    }
}

/// Opens cold, warms or not, asks for one row: the cost of each.
async fn cold(counting: &Arc<Counting>, remote: &SharedRemote, warmth: Option<Warmth>) -> [Counts; 3] {
    counting.reset();
    let volume = Arc::new(Volume::open(&**remote, ID, Options::default()).await.unwrap().volume);
    let open = counting.reset();
    // Exact costs: nothing ahead.
    let fetcher = Fetcher::new(remote.clone()).with_ahead(Ahead::Nothing);
    if let Some(warmth) = warmth {
        assert!(warm(&fetcher, &volume, warmth).await.unwrap() > 64, "more than one frame");
    }
    let warmed = counting.reset();
    let database = Database::new(volume, Arc::new(RemoteFetch::with(fetcher)));
    let asked = tokio::task::spawn_blocking(move || {
        let (connection, _control) = database.connect_read_only().unwrap();
        connection.query_row("SELECT length(body) FROM t WHERE id = 15000", (), |row| row.get::<_, i64>(0))
    });
    assert_eq!(asked.await.unwrap().unwrap(), 80);
    [open, warmed, counting.reset()]
}

/// Cold, after a compaction: what of the bundle the root's prefix names comes with opening, the rest
/// in one request, then the leaf in one.
#[tokio::test(flavor = "multi_thread")]
async fn a_cold_point_query_after_compaction_is_the_bundle_and_the_leaf() {
    let counting = Counting::new(Arc::new(MemoryRemote::new()));
    let remote: SharedRemote = counting.clone();
    filled(&remote, 30).await;
    let request = Request { scope: Scope::Sparse, policy: None, id: CommitId([9; 16]) };
    let compacted = compact(&*remote, ID, request, &|_, _| {}).await.unwrap();
    assert!(matches!(compacted, Compacted::Stored { lsn: Lsn(31), segments: 1, .. }), "{compacted:?}");

    let [open, _, lazy] = cold(&counting, &remote, None).await;
    // The metadata, the newest keys of the log and of the checkpoints, the root, and what is
    // known then of the bundle. And no commit is read.
    assert_eq!((open.gets, open.lists, open.ranges, open.requests()), (1, 2, 2, 5));
    for warmth in [Warmth::Query, Warmth::Server] {
        let [open, warmed, asked] = cold(&counting, &remote, Some(warmth)).await;
        assert_eq!(open.requests(), 5);
        // This table of 40 kB or more lies partly behind the root's prefix: one read. The rest of the bundle: one.
        assert!((warmed.ranges, warmed.requests()) <= (2, 2), "{warmed:?}");
        assert_eq!((asked.ranges, asked.requests()), (1, 1), "the leaf");
        assert!(warmed.requests() + asked.requests() <= lazy.requests(), "{warmed:?} {lazy:?}");
    }

    // Nothing lies badly any more, and the policy has nothing to ask for.
    counting.reset();
    let policy = Some(Policy { pages: 1, commits: 1, percent: 0, every: 1 });
    let again = compact(&*remote, ID, Request { policy, ..request }, &|_, _| {}).await.unwrap();
    assert!(matches!(again, Compacted::NotDue(Scattered { outside: 0, .. })), "{again:?}");
    assert_eq!(counting.reset().creates, 0);
}
