//! What operations cost, as formulae: requests of each kind and bytes, exact, and flat in the length of
//! the history.
//!
//! A SQLite database in a volume is written to by one-row transactions, each pushed as a commit, with a
//! checkpoint whenever one is due and a compaction [`SINCE`] commits before the end. Then each operation
//! is measured at the store and compared with what the sizes of the objects there say it must cost. A
//! history of 1,000 commits and one of 20,000 cost the same.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::executor::block_on;
use graft::checkpoint::{self, Policy};
use graft::compact::Scope;
use graft::fetch::plan::plan;
use graft::fetch::{Ahead, Fetcher, RemoteFetch};
use graft::fork;
use graft::format::chunk::FrameRef;
use graft::format::meta::Meta;
use graft::format::{checkpoint as checkpoint_format, commit as commit_format};
use graft::remote::{Counting, Counts, MemoryRemote, Remote as _, SharedRemote};
use graft::time::At;
use graft::volume::{Options, Volume, push};
use graft::{CommitId, Lsn, PageIdx, PageSet, PageSize, VolumeId, VolumeName, catalog, key};
use rusqlite::Connection;
use sqlsync_layer::payload::Payload;
use sqlsync_layer::upkeep::{self, Compacted, Request};
use sqlsync_layer::vfs::Database;

const VOLUME: VolumeId = VolumeId([3; 16]);
const ROWS: u64 = 3000;
/// Commits after the newest checkpoint.
const SINCE: u64 = 37;

/// A store that counts, with a writer on it.
struct Shop {
    remote: Arc<Counting>,
    truth: Arc<MemoryRemote>,
    volume: Arc<Volume>,
    writer: Connection,
    rounds: u64,
}

fn open(remote: &SharedRemote) -> Arc<Volume> {
    Arc::new(block_on(Volume::open(&**remote, VOLUME, Options::default())).unwrap().volume)
}

/// Fetches what is asked for and nothing ahead.
fn exactly(remote: &SharedRemote, volume: &Arc<Volume>) -> Arc<Database> {
    let fetcher = Fetcher::new(remote.clone()).with_ahead(Ahead::Nothing).in_foreground();
    Database::new(volume.clone(), Arc::new(RemoteFetch::with(fetcher)))
}

impl Shop {
    /// `ROWS` rows whose bytes do not compress, in one commit.
    fn new() -> Shop {
        let truth = Arc::new(MemoryRemote::new());
        let remote = Counting::new(truth.clone());
        let shared: SharedRemote = remote.clone();
        let name: VolumeName = "v".parse().unwrap();
        let meta = Meta { page_size: PageSize::DEFAULT, parent: None };
        block_on(catalog::create(&*shared, &name, VOLUME, meta)).unwrap();
        let volume = open(&shared);
        let (writer, _) = exactly(&shared, &volume).connect().unwrap();
        let mut shop = Shop { remote, truth, volume, writer, rounds: 0 };
        shop.writer
            .execute_batch(&format!(
                "create table t(id integer primary key, v);
                 with recursive n(i) as (select 1 union all select i + 1 from n where i < {ROWS})
                 insert into t select i, randomblob(100) from n;"
            ))
            .unwrap();
        shop.push();
        shop
    }

    fn shared(&self) -> SharedRemote {
        self.remote.clone()
    }

    fn push(&mut self) {
        self.rounds += 1;
        let id = || CommitId(u128::from(self.rounds).to_le_bytes());
        block_on(push(&*self.remote, &self.volume, Payload::of_locals, id, self.rounds as i64)).unwrap();
    }

    /// One row of another leaf each time; a checkpoint where it is due.
    fn commit(&mut self) {
        let id = (self.rounds * 1009 % ROWS + 1) as i64;
        self.writer.execute("update t set v = randomblob(100) where id = ?1", [id]).unwrap();
        self.push();
        if self.volume.checkpoint_due(&Policy::default()) {
            let base = self.volume.base();
            block_on(checkpoint::write(&*self.remote, &self.volume, &base, "".into())).unwrap();
        }
    }

    /// `commits` more; everything lies densely, [`SINCE`] commits before the newest.
    fn history(&mut self, commits: u64) {
        for _ in SINCE..commits {
            self.commit();
        }
        let id = CommitId((u128::from(self.rounds) << 64).to_le_bytes());
        let request = Request { scope: Scope::All, policy: None, id };
        let compacted = block_on(upkeep::compact(&*self.remote, VOLUME, request, &|_, _| {})).unwrap();
        assert!(matches!(compacted, Compacted::Stored { .. }), "{compacted:?}");
        let pulled = block_on(self.volume.pull(&*self.remote)).unwrap();
        self.volume.absorb(pulled).unwrap();
        for _ in 0..SINCE {
            self.commit();
        }
        self.remote.reset();
    }

    /// The sizes of objects whose keys begin with `prefix`, in the order of their keys: newest first.
    fn sizes(&self, prefix: &str) -> Vec<u64> {
        let objects = self.truth.objects();
        objects.iter().filter(|(key, _)| key.starts_with(prefix)).map(|(_, body)| body.len() as u64).collect()
    }

    fn size(&self, key: &str) -> u64 {
        block_on(self.truth.get(key)).unwrap().len() as u64
    }

    /// What reading the newest checkpoint's prefix and the heads since brings.
    fn newest_bytes(&self) -> u64 {
        let root = self.sizes(&key::checkpoints_prefix(VOLUME))[0].min(checkpoint_format::PREFIX_BYTES);
        let heads = self.sizes(&key::log_prefix(VOLUME)).into_iter().take(SINCE as usize);
        root + heads.map(|size| size.min(commit_format::PREFIX_BYTES)).sum::<u64>()
    }
}

/// GETs of whole objects, ranged GETs, creates, LISTs, all requests.
fn requests(counts: Counts) -> [u64; 5] {
    [counts.gets, counts.ranges, counts.creates, counts.lists, counts.requests()]
}

/// The frames that `pages` lie in and their bytes.
fn frames(volume: &Volume, pages: &PageSet) -> (u64, u64) {
    let frames = plan(&volume.tip(), pages, &PageSet::new());
    (frames.len() as u64, frames.iter().map(|frame| u64::from(frame.bytes)).sum())
}

/// The ranges that frames are read in when all are asked for at once, where no object's frames are apart
/// and none has more than 4 MiB: one for each object, from its first frame to its last.
fn ranges(frames: &[Arc<FrameRef>]) -> (u64, u64) {
    let mut objects: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
    for frame in frames {
        let (first, end) = objects.entry(&frame.key).or_insert((u64::MAX, 0));
        (*first, *end) = ((*first).min(frame.offset), (*end).max(frame.offset + u64::from(frame.bytes)));
    }
    (objects.len() as u64, objects.values().map(|(first, end)| end - first).sum())
}

/// Costs of each operation on the history as it is, each checked against its formula.
fn costs(shop: &mut Shop, child: u8) -> BTreeMap<&'static str, Counts> {
    let remote = shop.shared();
    let mut costs = BTreeMap::new();

    // Opening: the metadata; the newest keys of log and checkpoints; the checkpoint's prefix; the prefix of
    // each commit since, and beside them page 1 and the interior pages, which compaction stored together.
    let volume = open(&remote);
    let cost = shop.remote.reset();
    assert_eq!(requests(cost), [1, 2 + SINCE, 0, 2, 5 + SINCE]);
    let mut hot = volume.base().checkpoint().unwrap().hot.clone();
    hot.insert(PageIdx::FIRST);
    let (count, early) = ranges(&plan(&volume.tip(), &hot, &PageSet::new()));
    assert_eq!(count, 1);
    assert_eq!(cost.bytes_down, shop.size(&key::meta(VOLUME)) + shop.newest_bytes() + early);
    assert_eq!(cost.bytes_up, 0);
    costs.insert("open", cost);

    // A point query: one GET for each frame of its path that did not come with that, the leaf's.
    let all: PageSet = (1..=volume.tip().pages()).filter_map(PageIdx::new).collect();
    let away = volume.missing(&volume.tip(), &all).unwrap();
    let (reader, control) = exactly(&remote, &volume).connect_recorded().unwrap();
    control.record();
    let asked: i64 = reader.query_row("select length(v) from t where id = 77", [], |row| row.get(0)).unwrap();
    assert_eq!(asked, 100);
    let mut path = control.recorded().pages;
    assert_eq!(path.len(), 2, "the root and a leaf");
    path.insert(PageIdx::FIRST);
    let (count, bytes) = frames(&volume, &path.intersection(&away));
    let cost = shop.remote.reset();
    assert_eq!((requests(cost), cost.bytes_down), ([0, count, 0, 0, count], bytes));
    assert!(count <= 1);
    costs.insert("point query", cost);

    // A scan by faults, from what opening brought: one GET for each other frame.
    let volume = open(&remote);
    shop.remote.reset();
    let (reader, _) = exactly(&remote, &volume).connect_read_only().unwrap();
    let sum: i64 = reader.query_row("select sum(length(v)) from t", [], |row| row.get(0)).unwrap();
    assert_eq!(sum, 100 * ROWS as i64);
    let (count, bytes) = frames(&volume, &away);
    let cost = shop.remote.reset();
    assert_eq!((requests(cost), cost.bytes_down), ([0, count, 0, 0, count], bytes));
    costs.insert("scan by faults", cost);

    // All of it at once: one GET for each object that one of these pages lies in.
    let volume = open(&remote);
    let planned = plan(&volume.tip(), &away, &PageSet::new());
    let (count, bytes) = ranges(&planned);
    shop.remote.reset();
    let fetcher = Fetcher::new(remote.clone()).with_ahead(Ahead::Nothing).in_foreground();
    block_on(fetcher.fetch_pages(&volume, &volume.tip(), &all)).unwrap();
    let cost = shop.remote.reset();
    assert_eq!((requests(cost), cost.bytes_down), ([0, count, 0, 0, count], bytes));
    assert!(count <= 1 + SINCE, "the compacted segment, and the commits since");
    costs.insert("scan at once", cost);

    // A fork: whether the name is free; the newest key; the metadata, for its page size and once more by
    // the search; the horizon. Then the pin, the metadata, the name.
    let (id, name): (_, VolumeName) = (VolumeId([child; 16]), format!("fork-{child:03}").parse().unwrap());
    block_on(fork::create(&*remote, VOLUME, At::Newest, id, &name)).unwrap();
    let cost = shop.remote.reset();
    assert_eq!(requests(cost), [3, 0, 3, 2, 8]);
    let made = [key::fork_pin(VOLUME, id), key::meta(id), key::name(&name)];
    assert_eq!(cost.bytes_up, made.iter().map(|key| shop.size(key)).sum::<u64>());
    assert_eq!(cost.bytes_down, 2 * shop.size(&key::meta(VOLUME)));
    costs.insert("fork", cost);

    // A push of one row: the commit.
    shop.remote.reset();
    shop.writer.execute("update t set v = randomblob(100) where id = 5", []).unwrap();
    shop.push();
    let cost = shop.remote.reset();
    assert_eq!(requests(cost), [0, 0, 1, 0, 1]);
    assert_eq!(cost.bytes_up, shop.sizes(&key::log_prefix(VOLUME))[0]);
    // A leaf that does not compress, and the head.
    assert!(cost.bytes_up < 4096 + 512, "{cost:?}");
    costs.insert("push of one row", cost);
    costs
}

#[test]
fn what_operations_cost_follows_from_the_sizes_of_objects_and_not_from_the_history() {
    let mut shop = Shop::new();
    shop.history(1000);
    let short = costs(&mut shop, 1);
    // Who stood still meanwhile: both newest keys, the checkpoint, the commit that it has itself, the
    // commits since.
    let behind = open(&shop.shared());
    let own = shop.sizes(&key::log_prefix(VOLUME))[0].min(commit_format::PREFIX_BYTES);
    let mut pulls = Vec::new();
    for commits in [1000, 18_000] {
        shop.history(commits);
        let at = behind.status().lsn;
        let pulled = block_on(behind.pull(&*shop.remote)).unwrap();
        let cost = shop.remote.reset();
        assert_eq!(pulled.heads.len() as u64, SINCE);
        assert_eq!(requests(cost), [0, 2 + SINCE, 0, 2, 4 + SINCE], "{commits} commits behind");
        assert_eq!(cost.bytes_down, shop.newest_bytes() + own);
        pulls.push(cost);
        if commits == 1000 {
            behind.absorb(pulled).unwrap();
            assert_eq!(behind.status().lsn, Lsn(at.0 + commits));
        }
    }
    let long = costs(&mut shop, 2);
    println!("after {} commits: {long:#?}; pulls {pulls:#?}", shop.rounds);
    let mut pairs: Vec<(&str, Counts, Counts)> =
        short.iter().map(|(what, cost)| (*what, *cost, long[what])).collect();
    pairs.push(("pull", pulls[0], pulls[1]));
    for (what, short, long) in pairs {
        assert_eq!(requests(short), requests(long), "{what}");
        // What differs is how well pages compress, and the list of earlier checkpoints.
        let (a, b) = (short.bytes_down + short.bytes_up, long.bytes_down + long.bytes_up);
        assert!(a.abs_diff(b) <= a / 50 + 4096, "{what}: {a} bytes and then {b}");
    }
}

/// With the prefetcher on, in a database that was never compacted and would come in three requests: each
/// question pays for the frames of its own pages.
#[test]
fn a_question_brings_its_own_frames_and_nothing_else() {
    let remote = Counting::new(Arc::new(MemoryRemote::new()));
    let shared: SharedRemote = remote.clone();
    let name: VolumeName = "v".parse().unwrap();
    let meta = Meta { page_size: PageSize::DEFAULT, parent: None };
    block_on(catalog::create(&*shared, &name, VOLUME, meta)).unwrap();
    let volume = open(&shared);
    let (writer, _) = exactly(&shared, &volume).connect().unwrap();
    let fill = "create table t(id integer primary key, k, v);
        with recursive n(i) as (select 1 union all select i + 1 from n where i < 20000)
        insert into t select i, i * 7919 % 20011, randomblob(150) from n;
        create index t_k on t(k);";
    writer.execute_batch(fill).unwrap();
    block_on(push(&*remote, &volume, Payload::of_locals, || CommitId([1; 16]), 1)).unwrap();
    let questions = [
        ("select length(v) from t where id = 15000", 3),
        ("select length(v) from t where k = 10000", 5),
        ("update t set v = randomblob(150) where id = 9000", 3),
        ("update t set k = 20007 where id = 12345", 6),
    ];
    for (question, frames_max) in questions {
        let volume = open(&shared);
        let base = volume.base();
        remote.reset();
        let fetcher = Fetcher::new(shared.clone()).in_foreground();
        let (reader, control) =
            Database::new(volume, Arc::new(RemoteFetch::with(fetcher))).connect_recorded().unwrap();
        control.record();
        let mut statement = reader.prepare(question).unwrap();
        let mut rows = statement.query([]).unwrap();
        while rows.next().unwrap().is_some() {}
        let mut path = control.recorded().pages;
        path.insert(PageIdx::FIRST);
        let frames = plan(&base, &path, &PageSet::new());
        let bytes: u64 = frames.iter().map(|frame| u64::from(frame.bytes)).sum();
        let cost = remote.reset();
        println!(
            "{question}: {} requests, {} bytes of {} pages",
            cost.requests(),
            cost.bytes_down,
            base.pages()
        );
        let count = frames.len() as u64;
        assert_eq!((requests(cost), cost.bytes_down), ([0, count, 0, 0, count], bytes), "{question}");
        assert!(count <= frames_max, "{question}: {count}");
    }
}
