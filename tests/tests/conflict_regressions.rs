//! What went wrong with conflicts in SQLSync and in upstream Graft, each as a test of ours.
//!
//! Documents without surroundings, on a store in memory. `docs/consistency.md` lists these and those that
//! lie beside the code.

use std::sync::Arc;

use futures::executor::block_on;
use graft::fetch::RemoteFetch;
use graft::format::meta::Meta;
use graft::publish::{PublishError, publish};
use graft::remote::SharedRemote;
use graft::remote::memory::MemoryRemote;
use graft::store::{Batch, Durability, MemoryStore, ReplicaStore, SharedStore, Space, StoreError};
use graft::volume::{Options, Volume};
use graft::{CommitId, ModuleHash, PageSize, VolumeId, catalog};
use parking_lot::Mutex;
use reducers_abi::{Call, Description, Entry, Failure, Param, Reducer, Runtime, Sql, Type, Value};
use serde_json::json;
use sqlsync_layer::actor::{ModuleError, Modules};
use sqlsync_layer::document::{Config, Event, Progress, PushError, Replica};
use sqlsync_layer::protocol::ClientId;
use sqlsync_layer::rebase::Policy;
use sqlsync_layer::value::Params;

/// A native module: `set` writes what its version says, `half` writes and then refuses.
#[derive(Debug)]
struct Versioned(i64, Description);

impl Runtime for Versioned {
    fn description(&self) -> &Description {
        &self.1
    }
    fn run(&self, call: &Call<'_>, sql: &mut dyn Sql) -> Result<(), Failure> {
        let refused = |message: String| Failure::Refused { message };
        let mut execute = |text: &str, params: &[Value]| {
            sql.execute(text, params).map(|_| ()).map_err(|error| refused(error.message))
        };
        match call.entry {
            Entry::Migration { .. } => {
                execute("create table t(id integer primary key, version integer, pad)", &[])?;
                (1..=40).try_for_each(|id| {
                    let pad = Value::Text("p".repeat(200));
                    execute("insert into t values(?, 0, ?)", &[Value::Integer(id), pad])
                })
            }
            Entry::Reducer { name: "set", args: [id] } => {
                let version = Value::Integer(self.0);
                execute("update t set version = version + ? where id = ?", &[version, id.clone()])
            }
            Entry::Reducer { name: "half", args: [id] } => {
                execute("update t set version = 1000 where id = ?", std::slice::from_ref(id))?;
                Err(refused("after its write".into()))
            }
            Entry::Reducer { name, .. } => Err(Failure::Trap { message: name.into() }),
        }
    }
}

/// The module of hash `[n; 32]` is version n. Those in `away` cannot be had.
#[derive(Debug, Default)]
struct Shelf {
    away: Mutex<Vec<u8>>,
}

impl Modules for Shelf {
    fn load(&self, module: ModuleHash) -> Result<Arc<dyn Runtime>, ModuleError> {
        let version = module.0[0];
        if self.away.lock().contains(&version) {
            return Err(ModuleError::Unavailable { module, message: "it is away".into() });
        }
        let reducer = |name: &str| Reducer {
            name: name.into(),
            params: vec![Param { name: "id".into(), ty: Type::Integer, optional: false }],
            doc: String::new(),
        };
        let description =
            Description { reducers: vec![reducer("set"), reducer("half")], migrations: vec![1] };
        Ok(Arc::new(Versioned(version.into(), description)))
    }
}

fn module(version: u8) -> ModuleHash {
    ModuleHash([version; 32])
}

struct World {
    remote: SharedRemote,
    shelf: Arc<Shelf>,
    ids: std::cell::Cell<u128>,
}

impl World {
    /// A store with volumes of these ids, each with its module in force.
    fn new(volumes: &[(u8, u8)]) -> World {
        let remote: SharedRemote = Arc::new(MemoryRemote::new());
        let world = World { remote, shelf: Arc::default(), ids: 1.into() };
        for (volume, version) in volumes {
            let meta = Meta { page_size: PageSize::new(1024).unwrap(), parent: None };
            let name = format!("v{volume}").parse().unwrap();
            block_on(catalog::create(&*world.remote, &name, VolumeId([*volume; 16]), meta)).unwrap();
            let mut first = world.open(*volume, "deployer", None, Config::default());
            first.deploy(module(*version), 1, 1).unwrap();
            world.sync(&mut first);
        }
        world
    }

    fn open(&self, volume: u8, client: &str, store: Option<SharedStore>, config: Config) -> Replica {
        let options = Options { store, ..Options::default() };
        let opened = block_on(Volume::open(&*self.remote, VolumeId([volume; 16]), options.clone())).unwrap();
        let fetch = Arc::new(RemoteFetch::new(self.remote.clone()));
        let client = ClientId::new(client).unwrap();
        Replica::open(opened, &options, fetch, self.shelf.clone(), client, config).unwrap()
    }

    fn id(&self) -> CommitId {
        self.ids.set(self.ids.get() + 1);
        CommitId(self.ids.get().to_be_bytes())
    }

    fn push(&self, document: &mut Replica) {
        let Some(prepared) = document.seal(self.id(), 1_000).unwrap() else { return };
        let result = block_on(publish(&*self.remote, &prepared));
        match document.published(&prepared, result) {
            Ok(_) | Err(PushError::Publish(PublishError::Rejected { .. })) => {}
            Err(error) => panic!("{error}"),
        }
    }

    /// Whether all of it was taken in.
    fn pull(&self, document: &mut Replica) -> Result<(), String> {
        let pulled = block_on(document.volume().clone().pull(&*self.remote)).unwrap();
        let mut progress = document.pulled(pulled).map_err(|error| error.to_string())?;
        while progress != Progress::Done {
            progress = document.step(4).map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    fn sync(&self, document: &mut Replica) {
        for _ in 0..20 {
            self.push(document);
            self.pull(document).unwrap();
            if document.status().ahead == 0 {
                return;
            }
        }
        panic!("{document:?} does not come to rest");
    }
}

fn call(document: &mut Replica, reducer: &str, id: i64) -> Result<u64, String> {
    let args = json!({ "id": id }).as_object().unwrap().clone();
    document.mutate(reducer, args, 7, 8).map_err(|error| error.to_string())
}

fn version(document: &Replica, id: i64) -> i64 {
    let text = format!("select version from t where id = {id}");
    match document.query(&text, &Params::default()).unwrap().rows[0][0] {
        Value::Integer(version) => version,
        ref other => panic!("{other:?}"),
    }
}

fn replaying() -> Config {
    Config { policy: Policy::Replay, ..Config::default() }
}

/// SQLSync: a conflict at rebase was an error once; then nothing was pending any more, and the next sync
/// "succeeded".
#[test]
fn a_rebase_that_cannot_go_on_says_so_each_time_and_what_is_pending_stays_shown() {
    let world = World::new(&[(1, 1)]);
    let mut a = world.open(1, "a", None, replaying());
    let mut b = world.open(1, "b", None, Config::default());
    let seq = call(&mut a, "set", 5).unwrap();
    // It is to run again on what b made, and its reducer cannot be had just now.
    b.deploy(module(3), 1, 1).unwrap();
    call(&mut b, "set", 5).unwrap();
    world.sync(&mut b);
    world.push(&mut a);
    world.shelf.away.lock().push(3);
    for _ in 0..3 {
        let error = world.pull(&mut a).unwrap_err();
        assert!(error.contains("away"), "{error}");
        assert_eq!(a.pending().map(|mutation| mutation.seq).collect::<Vec<_>>(), [seq]);
        assert_eq!((a.status().ahead, version(&a, 5)), (1, 1), "what it did is still to be seen");
    }
    assert!(a.branches().is_empty() && a.rejected().count() == 0);
    world.shelf.away.lock().clear();
    world.sync(&mut a);
    assert_eq!((a.pending().count(), version(&a, 5)), (0, 6));
    let durable = |event: &Event| matches!(event, Event::Durable { seq: it, .. } if *it == seq);
    assert_eq!(a.take_events().iter().filter(|event| durable(event)).count(), 1);
}

/// SQLSync: a request that a reducer did not wait for ran inside the next mutation. Here nothing of a
/// mutation that failed is left for the next, at its first run or when it runs again.
#[test]
fn what_a_failed_mutation_began_never_runs_in_the_next() {
    let world = World::new(&[(1, 1)]);
    let mut a = world.open(1, "a", None, replaying());
    let mut b = world.open(1, "b", None, Config::default());
    for id in 1..=3 {
        assert!(call(&mut a, "half", id).unwrap_err().contains("after its write"));
        call(&mut a, "set", 10 + id).unwrap();
    }
    call(&mut b, "set", 40).unwrap();
    world.sync(&mut b);
    world.sync(&mut a);
    assert_eq!(a.counts().replayed, 3);
    for document in [&a, &world.open(1, "reader", None, Config::default())] {
        let versions: Vec<i64> = [1, 2, 3, 11, 12, 13, 40].map(|id| version(document, id)).into();
        assert_eq!(versions, [0, 0, 0, 1, 1, 1, 1]);
    }
}

/// SQLSync: the reducer of the first client won for every document of the server, and for ever. Here each
/// volume has its own, and one deployed later is what pending mutations run again with.
#[test]
fn the_first_clients_reducer_does_not_win_for_everyone() {
    let world = World::new(&[(1, 1), (2, 5)]);
    let mut one = world.open(1, "a", None, replaying());
    let mut two = world.open(2, "a", None, Config::default());
    call(&mut one, "set", 1).unwrap();
    call(&mut two, "set", 1).unwrap();
    assert_eq!((version(&one, 1), version(&two, 1)), (1, 5));
    let mut deployer = world.open(1, "b", None, Config::default());
    deployer.deploy(module(7), 1, 1).unwrap();
    world.sync(&mut deployer);
    world.sync(&mut one);
    world.sync(&mut two);
    assert_eq!((version(&one, 1), version(&two, 1)), (7, 5));
    call(&mut one, "set", 1).unwrap();
    assert_eq!(version(&one, 1), 14);
}

/// Upstream Graft: any local change blocked pull entirely.
#[test]
fn a_local_change_does_not_block_a_pull() {
    let world = World::new(&[(1, 1)]);
    let mut a = world.open(1, "a", None, Config::default());
    let mut b = world.open(1, "b", None, Config::default());
    call(&mut a, "set", 1).unwrap();
    for round in 1..=3 {
        call(&mut b, "set", 40).unwrap();
        world.sync(&mut b);
        world.pull(&mut a).unwrap();
        let status = a.status();
        assert_eq!((status.lsn, status.ahead, status.behind), (b.status().lsn, 1, 0));
        assert_eq!((version(&a, 1), version(&a, 40)), (1, round));
    }
}

/// A store whose disk is apart from what is written: a power cut leaves what was synced.
#[derive(Debug, Default)]
struct Powered {
    now: MemoryStore,
    /// Written and not synced yet.
    loose: Mutex<Vec<Batch>>,
    disk: Arc<MemoryStore>,
}

impl ReplicaStore for Powered {
    fn get(&self, space: Space, key: &[u8]) -> Result<Option<bytes::Bytes>, StoreError> {
        self.now.get(space, key)
    }
    fn scan(&self, space: Space, prefix: &[u8]) -> Result<Vec<(bytes::Bytes, bytes::Bytes)>, StoreError> {
        self.now.scan(space, prefix)
    }
    fn write(&self, batch: Batch, durability: Durability) -> Result<(), StoreError> {
        let mut loose = self.loose.lock();
        loose.push(batch.clone());
        if durability == Durability::Sync {
            for batch in loose.drain(..) {
                self.disk.write(batch, Durability::Sync)?;
            }
        }
        self.now.write(batch, durability)
    }
}

/// Upstream Graft: local commits and the record of a push under way were never synced. After a power loss
/// the writer's own commit, which had landed, looked like somebody else's, and its work was lost or done
/// twice.
#[test]
fn a_push_under_way_survives_a_power_loss_and_is_not_done_twice() {
    for landed in [true, false] {
        let world = World::new(&[(1, 1)]);
        let powered = Arc::new(Powered::default());
        let mut a = world.open(1, "a", Some(powered.clone()), replaying());
        let seq = call(&mut a, "set", 1).unwrap();
        let prepared = a.seal(world.id(), 5).unwrap().unwrap();
        if landed {
            block_on(publish(&*world.remote, &prepared)).unwrap();
        }
        // The power goes before the answer; others go on.
        drop(a);
        let mut b = world.open(1, "b", None, Config::default());
        call(&mut b, "set", 1).unwrap();
        world.sync(&mut b);
        let mut a = world.open(1, "a", Some(powered.disk.clone()), replaying());
        assert!(a.status().pushing, "landed {landed}");
        assert_eq!(a.pending().map(|mutation| mutation.seq).collect::<Vec<_>>(), [seq]);
        world.sync(&mut a);
        assert_eq!(version(&a, 1), 2, "landed {landed}");
        assert_eq!((a.branches().len(), a.rejected().count(), a.next_seq()), (0, 0, seq + 1));
        // Where it landed it is known to be its own, and nothing ran again.
        assert_eq!(a.counts().replayed, u64::from(!landed));
    }
}
