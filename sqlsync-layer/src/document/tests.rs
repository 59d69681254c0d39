//! Documents against a store in memory, one step at a time: no sockets, no clock, no threads.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use futures::executor::block_on;
use graft::catalog;
use graft::fetch::RemoteFetch;
use graft::format::meta::Meta;
use graft::publish::{PublishError, publish};
use graft::remote::memory::MemoryRemote;
use graft::remote::{Answer, Layer, Remote, RemoteError, Request, SharedRemote};
use graft::store::{MemoryStore, SharedStore};
use graft::volume::{Options, Volume};
use graft::{CommitId, ModuleHash, PageSize, VolumeId, VolumeName};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use reducers_abi::{Call, Description, Entry, Failure, Param, Reducer, Runtime, Sql, Type, Value};
use serde_json::json;

use super::replica::OpenError;
use super::*;
use crate::actor::{ModuleError, Modules};
use crate::merge::{Condition, Validation};
use crate::payload::Outcome;
use crate::protocol::{ClientId, codes};
use crate::rebase::{Dispute, Handler, Policy, Resolution};
use crate::value::Params;

mod crashes;
mod direct;
mod driver;
mod policies;
mod publishing;

const VOLUME: VolumeId = VolumeId([9; 16]);

/// A native module: `sql` runs statements, `refuse` refuses, `move` refuses to overdraw.
#[derive(Debug)]
struct TestModule(Description);

impl TestModule {
    fn new() -> TestModule {
        let text = |name: &str| Param { name: name.into(), ty: Type::Text, optional: false };
        let number = |name: &str| Param { name: name.into(), ty: Type::Integer, optional: false };
        let reducer = |name: &str, params| Reducer { name: name.into(), params, doc: String::new() };
        let reducers = vec![
            reducer("sql", vec![text("sql")]),
            reducer("refuse", vec![text("why")]),
            reducer("bump", vec![number("id")]),
            reducer("move", vec![number("from"), number("to"), number("amount")]),
        ];
        TestModule(Description { reducers, migrations: vec![1] })
    }
}

impl Runtime for TestModule {
    fn description(&self) -> &Description {
        &self.0
    }
    fn run(&self, call: &Call<'_>, sql: &mut dyn Sql) -> Result<(), Failure> {
        let refused = |message: String| Failure::Refused { message };
        let mut execute =
            |text: &str, params: &[Value]| sql.execute(text, params).map_err(|e| refused(e.message));
        match call.entry {
            Entry::Migration { .. } => {
                execute("create table t(id integer primary key, v)", &[])?;
                execute("create table counter(id integer primary key, n integer not null, pad text)", &[])?;
                execute(
                    "create table account(id integer primary key, balance integer not null check(balance >= 0), pad text)",
                    &[],
                )?;
                for id in 1..=40 {
                    let pad = Value::Text("p".repeat(200));
                    execute("insert into counter values(?, 0, ?)", &[Value::Integer(id), pad.clone()])?;
                    execute("insert into account values(?, 10, ?)", &[Value::Integer(id), pad])?;
                }
                Ok(())
            }
            Entry::Reducer { name: "sql", args: [Value::Text(text)] } => {
                text.split(';').try_for_each(|statement| execute(statement, &[]).map(|_| ()))
            }
            Entry::Reducer { name: "refuse", args: [Value::Text(why)] } => Err(refused(why.clone())),
            Entry::Reducer { name: "bump", args: [id] } => {
                execute("update counter set n = n + 1 where id = ?", std::slice::from_ref(id)).map(|_| ())
            }
            Entry::Reducer { name: "move", args: [from, to, amount] } => {
                execute(
                    "update account set balance = balance - ? where id = ?",
                    &[amount.clone(), from.clone()],
                )?;
                execute(
                    "update account set balance = balance + ? where id = ?",
                    &[amount.clone(), to.clone()],
                )
                .map(|_| ())
            }
            Entry::Reducer { name, args } => {
                Err(Failure::Trap { message: format!("{name}: {} arguments", args.len()) })
            }
        }
    }
}

#[derive(Debug)]
struct TestModules;
impl Modules for TestModules {
    fn load(&self, _: ModuleHash) -> Result<Arc<dyn Runtime>, ModuleError> {
        Ok(Arc::new(TestModule::new()))
    }
}

const MODULE: ModuleHash = ModuleHash([1; 32]);

/// A store that carries out so many requests and is gone then. With `done` the next one is carried out, too,
/// and not answered.
#[derive(Debug)]
struct Cut {
    inner: SharedRemote,
    left: AtomicI64,
    done: bool,
}

impl Cut {
    /// Whether this request is carried out, and whether it is answered.
    fn next(&self) -> (bool, bool) {
        let left = self.left.fetch_sub(1, Ordering::Relaxed);
        (left > 0 || (left == 0 && self.done), left > 0)
    }
}

impl Layer for Cut {
    fn inner(&self) -> &dyn Remote {
        &*self.inner
    }

    fn around<'a, T: Send + 'a>(
        &'a self,
        _request: Request,
        key: &'a str,
        sent: Answer<'a, T>,
    ) -> Answer<'a, T> {
        Box::pin(async move {
            let (carried_out, answered) = self.next();
            let gone = || RemoteError::Unavailable { key: key.into(), message: "cut off".into() };
            let result = if carried_out { sent.await } else { Err(gone()) };
            if answered { result } else { Err(gone()) }
        })
    }
}

/// One store that everybody shares, and random ids.
struct World {
    remote: SharedRemote,
    ids: std::cell::Cell<u64>,
}

impl World {
    fn new() -> World {
        World::with(Arc::new(MemoryRemote::new()))
    }

    fn with(remote: SharedRemote) -> World {
        let meta = Meta { page_size: PageSize::new(1024).unwrap(), parent: None };
        block_on(catalog::create(&*remote, &"t".parse::<VolumeName>().unwrap(), VOLUME, meta)).unwrap();
        World { remote, ids: std::cell::Cell::new(1) }
    }

    /// A world whose volume has the module in force.
    fn deployed() -> World {
        let world = World::new();
        let mut first = world.document("deployer", Config::default());
        first.deploy(MODULE, 1, 1).unwrap();
        world.sync(&mut first);
        world
    }

    fn id(&self) -> CommitId {
        self.ids.set(self.ids.get() + 1);
        CommitId(u128::from(self.ids.get()).to_be_bytes())
    }

    fn document(&self, client: &str, config: Config) -> Replica {
        self.open(client, config, None).unwrap()
    }

    fn open(&self, client: &str, config: Config, store: Option<SharedStore>) -> Result<Replica, OpenError> {
        let options = Options { store, ..Options::default() };
        let opened = block_on(Volume::open(&*self.remote, VOLUME, options.clone())).unwrap();
        let fetch = Arc::new(RemoteFetch::new(self.remote.clone()));
        let client = ClientId::new(client).unwrap();
        Replica::open(opened, &options, fetch, Arc::new(TestModules), client, config)
    }

    /// One try to push. Whether the document lost its LSN.
    fn push(&self, document: &mut Replica) -> bool {
        let Some(prepared) = document.seal(self.id(), 1_000).unwrap() else { return false };
        let result = block_on(publish(&*self.remote, &prepared));
        match document.published(&prepared, result) {
            Ok(_) => false,
            Err(PushError::Publish(PublishError::Rejected { .. })) => true,
            Err(error) => panic!("{error}"),
        }
    }

    fn begin_pull(&self, document: &mut Replica) -> Progress {
        let pulled = block_on(document.volume().clone().pull(&*self.remote)).unwrap();
        document.pulled(pulled).unwrap()
    }

    fn pull(&self, document: &mut Replica) {
        let mut progress = self.begin_pull(document);
        while progress != Progress::Done {
            progress = document.step(3).unwrap();
        }
    }

    /// Pushes and pulls until the document is at the head of the log.
    fn sync(&self, document: &mut Replica) {
        for _ in 0..100 {
            self.push(document);
            self.pull(document);
            if document.status().ahead == 0 {
                return;
            }
        }
        panic!("{document:?} does not come to rest");
    }
}

fn args(value: serde_json::Value) -> serde_json::Map<String, serde_json::Value> {
    value.as_object().unwrap().clone()
}

fn sql(document: &mut Replica, text: &str) -> Result<u64, MutateError> {
    document.mutate("sql", args(json!({"sql": text})), 7, 8)
}

fn bump(document: &mut Replica, id: i64) -> u64 {
    document.mutate("bump", args(json!({"id": id})), 7, 8).unwrap()
}

fn rows(document: &Replica, text: &str) -> Vec<Vec<Value>> {
    document.query(text, &Params::default()).unwrap().rows
}

fn number(document: &Replica, text: &str) -> i64 {
    match rows(document, text)[0][0] {
        Value::Integer(number) => number,
        ref other => panic!("{text}: {other:?}"),
    }
}

/// Everything in the database, and whether it is well-formed.
fn dump(document: &Replica) -> Vec<String> {
    let (connection, _) = document.database().connect().unwrap();
    let check: String = connection.query_row("pragma integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(check, "ok");
    ["t", "counter", "account"]
        .iter()
        .flat_map(|table| {
            rows(document, &format!("select * from {table} order by id"))
                .into_iter()
                .map(move |row| format!("{table} {row:?}"))
        })
        .collect()
}
