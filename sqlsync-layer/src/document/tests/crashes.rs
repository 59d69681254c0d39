//! What the whole-system simulation found in documents, each as a test of its own.

use std::sync::atomic::{AtomicU64, AtomicUsize};

use bytes::Bytes;
use graft::checkpoint::Policy as Checkpoints;
use graft::fork::ForkError;
use graft::gc::{self, Retention};
use graft::remote::{Fault, Faulty};
use graft::store::{Batch, Durability, ReplicaStore, Space, StoreError};

use super::*;
use crate::document::replica::publishing;
use crate::document::{BranchError, Event};
use crate::transfer::checkpoint_if_due;

/// A store with room for so many more writes.
#[derive(Debug)]
struct Small {
    inner: SharedStore,
    room: AtomicUsize,
}

impl Small {
    fn of(inner: &SharedStore) -> Arc<Small> {
        Arc::new(Small { inner: inner.clone(), room: AtomicUsize::new(usize::MAX) })
    }

    fn leave_room(&self, writes: usize) {
        self.room.store(writes, Ordering::Relaxed);
    }
}

impl ReplicaStore for Small {
    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        self.inner.get(space, key)
    }
    fn scan(&self, space: Space, prefix: &[u8]) -> Result<Vec<(Bytes, Bytes)>, StoreError> {
        self.inner.scan(space, prefix)
    }
    fn write(&self, batch: Batch, durability: Durability) -> Result<(), StoreError> {
        let fits = self.room.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |room| room.checked_sub(1));
        match fits {
            Ok(_) => self.inner.write(batch, durability),
            Err(_) => Err(StoreError::Failed { dir: "small".into(), message: "no space left".into() }),
        }
    }
}

/// A document with one mutation whose rejection is final and waits.
fn rejected(world: &World, store: &SharedStore) -> Replica {
    let mut a = world.open("a", Config::default(), Some(store.clone())).unwrap();
    let mut b = world.document("b", Config::default());
    let taken = |amount| args(json!({"from": 1, "to": 2, "amount": amount}));
    a.mutate("move", taken(8), 1, 1).unwrap();
    b.mutate("move", taken(7), 1, 1).unwrap();
    world.sync(&mut b);
    world.sync(&mut a);
    assert_eq!(a.rejected().map(|(mutation, _)| mutation.seq).collect::<Vec<_>>(), [1]);
    a.take_events();
    a
}

/// Simulation, seed 129: with a full disk between the two writes of an edit, the app was told that nothing
/// was taken, and the new mutation was.
#[test]
fn an_edit_is_taken_with_its_rejected_mutation_gone_or_not_at_all() {
    for room in 0..2 {
        let world = World::deployed();
        let kept: SharedStore = Arc::new(MemoryStore::default());
        let small = Small::of(&kept);
        let mut a = rejected(&world, &(small.clone() as SharedStore));
        small.leave_room(room);
        let edited = a.edit(1, "bump", args(json!({"id": 3})), 1, 1);
        let (next, waits) = if room == 0 { (2, 1) } else { (3, 0) };
        assert_eq!(edited.is_ok(), room > 0, "{edited:?}");
        assert_eq!((a.next_seq(), a.rejected().count()), (next, waits));
        drop(a);
        let a = world.open("a", Config::default(), Some(kept)).unwrap();
        assert_eq!((a.next_seq(), a.rejected().count()), (next, waits), "after a restart, room {room}");
    }
}

/// By reading: the process ends between any two writes of a push whose commit rejects a mutation. In one
/// life or the next the app hears of it, and the mutation waits for it.
#[test]
fn a_rejection_is_heard_and_waits_wherever_the_process_ends() {
    let mut ends = 0;
    for room in 0.. {
        let world = World::deployed();
        let kept: SharedStore = Arc::new(MemoryStore::default());
        let small = Small::of(&kept);
        let mut a = world.open("a", Config::default(), Some(small.clone())).unwrap();
        let mut b = world.document("b", Config::default());
        a.mutate("move", args(json!({"from": 1, "to": 2, "amount": 8})), 1, 1).unwrap();
        b.mutate("move", args(json!({"from": 1, "to": 2, "amount": 7})), 1, 1).unwrap();
        world.sync(&mut b);
        world.pull(&mut a);
        let prepared = a.seal(world.id(), 5).unwrap().unwrap();
        let result = block_on(publish(&*world.remote, &prepared));
        small.leave_room(room);
        let ended = a.published(&prepared, result);
        let mut heard = a.take_events();
        drop(a);
        let mut a = world.open("a", Config::default(), Some(kept)).unwrap();
        world.sync(&mut a);
        heard.extend(a.take_events());
        assert!(
            heard.iter().any(|event| matches!(event, Event::Rejected { seq: 1, .. })),
            "room {room}: {heard:?}"
        );
        assert_eq!(a.rejected().count(), 1, "room {room}");
        if ended.is_ok() {
            break;
        }
        ends += 1;
    }
    assert!(ends > 1, "{ends}");
}

/// A module that cannot be fetched at the first try.
#[derive(Debug)]
struct LateModules(AtomicU64);
impl Modules for LateModules {
    fn load(&self, module: ModuleHash) -> Result<Arc<dyn Runtime>, ModuleError> {
        match self.0.fetch_add(1, Ordering::Relaxed) {
            0 => Err(ModuleError::Unavailable { module, message: "not now".into() }),
            _ => TestModules.load(module),
        }
    }
}

/// Simulation, seed 307: the deploy went on with the module's second fetch, and recorded schema 0, so that
/// whoever came next ran the migrations again.
#[test]
fn a_deploy_whose_module_cannot_be_fetched_is_not_taken() {
    let world = World::new();
    let options = Options::default();
    let opened = block_on(Volume::open(&*world.remote, VOLUME, options.clone())).unwrap();
    let fetch = Arc::new(RemoteFetch::new(world.remote.clone()));
    let modules = Arc::new(LateModules(AtomicU64::new(0)));
    let client = ClientId::new("a").unwrap();
    let mut a = Replica::open(opened, &options, fetch, modules, client, Config::default()).unwrap();
    assert!(matches!(a.deploy(MODULE, 1, 1), Err(MutateError::Blocked(_))));
    assert_eq!(a.status().ahead, 0);
    a.deploy(MODULE, 1, 1).unwrap();
    world.sync(&mut a);
    let mut b = world.document("b", Config::default());
    b.deploy(MODULE, 2, 2).unwrap();
    world.sync(&mut b);
    assert_eq!(number(&b, "select count(*) from counter"), 40, "the migrations have run once");
}

/// Simulation, seed 306: a publication was cut off, and for longer than the grace. Its fork's pin was given
/// up, and every later try used the same id again, for ever.
#[test]
fn a_publication_that_was_cut_off_for_too_long_begins_anew() {
    let mut reaped = 0;
    for requests in 0.. {
        let world = World::deployed();
        let mut a = world.document("a", Config { policy: Policy::Fork, ..Config::default() });
        let mut b = world.document("b", Config::default());
        bump(&mut a, 1);
        let wanted = dump(&a);
        bump(&mut b, 2);
        world.sync(&mut b);
        world.sync(&mut a);
        let cut = Cut { inner: world.remote.clone(), left: AtomicI64::new(requests), done: false };
        let mut publish = |child: u8, remote: &dyn Remote| {
            let name: VolumeName = format!("kept-{child}").parse().unwrap();
            let publication = a.begin_publication(1, &name, VolumeId([child; 16]), 5_000).unwrap();
            let result = block_on(publishing::publish(remote, &publication));
            a.publication_ended(&publication, &result).unwrap();
            result.map(|_| publication.volume)
        };
        let first = publish(70, &cut);
        let keep_all = Retention { keep_ms: i64::MAX / 2, keep_commits: 0, grace_ms: 0 };
        block_on(gc::collect(&*world.remote, VOLUME, keep_all, 1 << 40, &|_, _| {})).unwrap();
        let volume = match first {
            Ok(volume) => volume,
            Err(_) => match publish(71, &*world.remote) {
                Err(BranchError::Fork(ForkError::Reaped { .. })) => {
                    reaped += 1;
                    let volume = publish(72, &*world.remote).unwrap();
                    assert_eq!(volume, VolumeId([72; 16]));
                    volume
                }
                other => other.unwrap(),
            },
        };
        assert!(a.branches().is_empty(), "{requests} requests");
        let opened = block_on(Volume::open(&*world.remote, volume, Options::default())).unwrap();
        let fetch = Arc::new(RemoteFetch::new(world.remote.clone()));
        let (reader, config) = (ClientId::new("reader").unwrap(), Config::default());
        let fork = Replica::open(opened, &Options::default(), fetch, Arc::new(TestModules), reader, config);
        assert_eq!(dump(&fork.unwrap()), wanted, "{requests} requests");
        if first.is_ok() {
            break;
        }
    }
    assert!(reaped > 0, "no cut left a pin without a fork");
}

/// Simulation, seeds 184, 1191, 1240, 1369 and 4018: a power cut took page 1 out of the page cache while the
/// document was closed, and garbage collection took the commit that the document stands on. SQLite cannot
/// begin there, so the document did not open, on line or off, with all that was made in it.
#[test]
fn a_document_whose_base_was_collected_opens_and_catches_up() {
    for (theirs, plain_sql) in [
        ("create table more(x)", false),
        ("create table more(x)", true),
        ("insert into t values(1, zeroblob(9000))", false),
    ] {
        let world = World::deployed();
        let kept: SharedStore = Arc::new(MemoryStore::default());
        // It keeps no files, so that every restart loses the page cache.
        let store: SharedStore = Small::of(&kept);
        let mut b = world.document("b", Config::default());
        // A commit of page 1 alone, which goes as soon as somebody writes page 1 again.
        b.execute("pragma user_version = 5").unwrap();
        world.sync(&mut b);
        let mut a = world.open("a", Config::default(), Some(store.clone())).unwrap();
        bump(&mut a, 3);
        if plain_sql {
            a.execute("update account set balance = 5 where id = 4").unwrap();
        }
        let made = a.status().ahead;
        drop(a);

        b.execute(theirs).unwrap();
        world.sync(&mut b);
        block_on(checkpoint_if_due(&*world.remote, VOLUME, &Checkpoints { commits: 1, bytes: 0 }));
        let keep_nothing = Retention { keep_ms: 0, keep_commits: 0, grace_ms: 0 };
        for _ in 0..2 {
            block_on(gc::collect(&*world.remote, VOLUME, keep_nothing, 1 << 40, &|_, _| {})).unwrap();
        }

        let mut a = world.open("a", Config::default(), Some(store)).unwrap();
        let asked = a.query("select n from counter where id = 3", &Params::default());
        assert_eq!(asked.unwrap_err().0.code, codes::UNAVAILABLE, "{theirs}: page 1 is not gone");
        assert!(matches!(a.execute("delete from t"), Err(MutateError::Blocked(_))));
        let bumped = a.mutate("bump", args(json!({"id": 3})), 7, 8);
        assert!(matches!(bumped, Err(MutateError::Blocked(_))), "{bumped:?}");
        assert_eq!((a.status().ahead, a.next_seq(), a.pending().count()), (made, 2, 1));

        world.sync(&mut a);
        assert_eq!(number(&a, "select n from counter where id = 3"), 1, "{theirs}");
        let branched: usize = a.branches().values().map(|branch| branch.commits().len()).sum();
        let balance = number(&a, "select balance from account where id = 4");
        assert!(balance == if plain_sql && branched == 0 { 5 } else { 10 });
        assert!(!plain_sql || balance == 5 || branched > 0, "plain SQL went nowhere");
        bump(&mut a, 3);
        world.sync(&mut a);
        world.pull(&mut b);
        assert_eq!(dump(&a), dump(&b), "{theirs}");
    }
}

/// Simulation, seeds 38, 1176 and 1276: one read that was damaged on its way ended a document's live query.
#[test]
fn a_live_query_outlives_a_read_that_was_damaged_on_its_way() {
    let inner: SharedRemote = Arc::new(MemoryRemote::new());
    let faulty = Faulty::new(inner, 7);
    let world = World::with(faulty.clone());
    let mut b = world.document("b", Config::default());
    b.deploy(MODULE, 1, 1).unwrap();
    world.sync(&mut b);
    let mut a = world.document("a", Config::default());
    let (_, rows) = a.subscribe("select n from counter where id = 3", &Params::default(), None).unwrap();
    assert_eq!(rows.rows, [[Value::Integer(0)]]);
    bump(&mut b, 3);
    world.sync(&mut b);
    world.pull(&mut a);
    let before = faulty.injected();
    faulty.fail_next(Request::GetRange, Fault::Flip);
    let changed = a.refresh();
    assert!(faulty.injected() > before, "nothing was fetched");
    let rows: Vec<_> = changed.into_iter().map(|(_, rows)| rows.unwrap().rows).collect();
    assert_eq!(rows, [[[Value::Integer(1)]]]);
}

/// Simulation, seed 1097: the disk was full between the new stack and the timeline, and the process died. The
/// mutations that had gone to a branch were still taken for pending, so that the next one got a seq that the
/// log could not have next.
#[test]
fn a_branch_takes_its_mutations_out_of_the_timeline_wherever_the_process_ends() {
    let config = Config { policy: Policy::Fork, ..Config::default() };
    let mut between = 0;
    for room in 0.. {
        let world = World::deployed();
        let kept: SharedStore = Arc::new(MemoryStore::default());
        let small = Small::of(&kept);
        let mut a = world.open("a", config.clone(), Some(small.clone())).unwrap();
        let mut b = world.document("b", Config::default());
        bump(&mut a, 1);
        bump(&mut a, 2);
        bump(&mut b, 3);
        world.sync(&mut b);
        let pulled = block_on(a.volume().clone().pull(&*world.remote)).unwrap();
        small.leave_room(room);
        let mut ended = a.pulled(pulled);
        while let Ok(Progress::Left(_)) = ended {
            ended = a.step(1);
        }
        drop(a);
        let mut a = world.open("a", config.clone(), Some(kept)).unwrap();
        let (ahead, branches) = (a.status().ahead, a.branches().len());
        assert!((ahead, branches) == (2, 0) || (ahead, branches) == (0, 1), "room {room}");
        between += u32::from(ended.is_err() && branches == 1);
        assert_eq!((a.next_seq(), a.pending().count()), (ahead as u64 + 1, ahead), "room {room}");
        world.sync(&mut a);
        assert_eq!(bump(&mut a, 4), 1, "room {room}");
        world.sync(&mut a);
        assert_eq!(a.settled(), 1, "room {room}");
        world.pull(&mut b);
        assert_eq!(dump(&a), dump(&b), "room {room}");
        if ended.is_ok() {
            break;
        }
    }
    assert!(between > 0, "no end was between the new stack and the timeline");
}
