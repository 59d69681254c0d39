//! A volume in memory, a client with pending mutations, and another writer.
//!
//! The other writer has deployed the to-do example's module, or a native stand-in for the part of it that
//! runs here, and filled the table of tasks. It commits straight into the store, as the client would if it
//! ever pushed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use graft::fetch::RemoteFetch;
use graft::format::meta::Meta;
use graft::publish::publish;
use graft::remote::SharedRemote;
use graft::remote::memory::MemoryRemote;
use graft::store::{MemoryStore, SharedStore};
use graft::volume::{Options, Volume};
use graft::{CommitId, ModuleHash, PageSize, VolumeId, VolumeName, catalog};
use reducers_abi::{Call, Description, Entry, Failure, Param, Reducer, Runtime, Sql, Type, Value};
use reducers_host::{Host, HostLimits};
use serde_json::{Value as Json, json};
use sqlsync_layer::actor::{ModuleError, Modules};
use sqlsync_layer::document::{Config, Counts, Progress, Replica};
use sqlsync_layer::protocol::ClientId;
use sqlsync_layer::rebase::Policy;
use sqlsync_layer::value::Params;
use tokio::runtime::Handle;

use crate::server::built;

const VOLUME: VolumeId = VolumeId([9; 16]);
/// Mutations that run again between two looks at the app; a document goes by time instead.
const SLICE: u64 = 64;

/// What runs mutations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reducers {
    /// The to-do example's module, in wasmtime under limits.
    Wasm,
    /// The same statements, called in this process.
    Native,
    /// As `Native`, but `tasks` is an ordinary table: its inner pages hold no rows.
    NativeRowid,
}

impl Reducers {
    /// As the table has it.
    pub fn name(self) -> &'static str {
        match self {
            Reducers::Wasm => "wasm",
            Reducers::Native => "native",
            Reducers::NativeRowid => "native, rowid",
        }
    }

    fn load(self) -> anyhow::Result<(ModuleHash, Arc<dyn Runtime>)> {
        match self {
            Reducers::Wasm => {
                let path = built("GRAFT_REDUCERS", "target/reducers").join("todo.wasm");
                let bytes = std::fs::read(&path).with_context(|| {
                    format!("{} cannot be read; `cargo xtask bench rebase` builds it", path.display())
                })?;
                let module = Host::new(HostLimits::default())?.load(&bytes)?;
                Ok((ModuleHash(module.hash()), module))
            }
            Reducers::Native => Ok((ModuleHash([1; 32]), Arc::new(Native::new(" WITHOUT ROWID")))),
            Reducers::NativeRowid => Ok((ModuleHash([2; 32]), Arc::new(Native::new("")))),
        }
    }
}

/// The one module that is deployed.
#[derive(Debug)]
struct One(ModuleHash, Arc<dyn Runtime>);

impl Modules for One {
    fn load(&self, module: ModuleHash) -> Result<Arc<dyn Runtime>, ModuleError> {
        if module == self.0 {
            return Ok(self.1.clone());
        }
        Err(ModuleError::Unavailable { module, message: format!("only {} is deployed", self.0) })
    }
}

/// `set_done` of the to-do example without a sandbox.
#[derive(Debug)]
struct Native {
    description: Description,
    /// How the definition of `tasks` ends.
    table: &'static str,
}

impl Native {
    fn new(table: &'static str) -> Native {
        let param = |name: &str, ty| Param { name: name.into(), ty, optional: false };
        let params = vec![param("id", Type::Text), param("done", Type::Boolean)];
        let reducer = Reducer { name: "set_done".into(), params, doc: String::new() };
        Native { description: Description { reducers: vec![reducer], migrations: vec![1] }, table }
    }
}

impl Runtime for Native {
    fn description(&self) -> &Description {
        &self.description
    }

    fn run(&self, call: &Call<'_>, sql: &mut dyn Sql) -> Result<(), Failure> {
        let mut execute = |text: &str, params: &[Value]| {
            sql.execute(text, params).map_err(|error| Failure::Refused { message: error.message })
        };
        match call.entry {
            Entry::Migration { .. } => {
                let table = format!(
                    "CREATE TABLE tasks(
                        id TEXT PRIMARY KEY NOT NULL,
                        list TEXT NOT NULL,
                        title TEXT NOT NULL,
                        done INTEGER NOT NULL DEFAULT 0 CHECK (done IN (0, 1)),
                        position REAL NOT NULL
                    ){}",
                    self.table
                );
                execute(&table, &[])?;
                execute("CREATE INDEX tasks_by_position ON tasks(list, position)", &[]).map(drop)
            }
            Entry::Reducer { name: "set_done", args: [id, done] } => {
                let changed = execute("UPDATE tasks SET done = ? WHERE id = ?", &[done.clone(), id.clone()])?;
                if changed == 1 {
                    return Ok(());
                }
                Err(Failure::Refused { message: format!("there is no task {id:?}") })
            }
            Entry::Reducer { name, args } => {
                Err(Failure::Trap { message: format!("{name}: {} arguments", args.len()) })
            }
        }
    }
}

/// See the module. Its methods block: not for a thread that drives futures.
pub struct Scene {
    remote: SharedRemote,
    runtime: Handle,
    client: Replica,
    other: Replica,
    commits: u128,
    watched: u64,
}

fn id(row: u64) -> String {
    format!("t{row:06}")
}

impl Scene {
    /// A table of `rows` tasks, none of them done; the client has nothing pending and watches the last.
    pub fn new(rows: u64, reducers: Reducers, policy: Policy) -> anyhow::Result<Scene> {
        let runtime = Handle::current();
        let remote: SharedRemote = Arc::new(MemoryRemote::new());
        let meta = Meta { page_size: PageSize::DEFAULT, parent: None };
        let name: VolumeName = "bench".parse()?;
        runtime.block_on(catalog::create(&*remote, &name, VOLUME, meta))?;
        let (module, loaded) = reducers.load()?;
        let modules = Arc::new(One(module, loaded));
        let open = |client: &str, config: Config| -> anyhow::Result<Replica> {
            let store: SharedStore = Arc::new(MemoryStore::new());
            let options = Options { store: Some(store), ..Options::default() };
            let opened = runtime.block_on(Volume::open(&*remote, VOLUME, options.clone()))?;
            let fetch = Arc::new(RemoteFetch::new(remote.clone()));
            let client = ClientId::new(client).context("a client's id")?;
            Ok(Replica::open(opened, &options, fetch, modules.clone(), client, config)?)
        };
        let mut other = open("other", Config::default())?;
        other.deploy(module, 1, 1)?;
        other.execute(&format!(
            "WITH RECURSIVE number(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM number WHERE n + 1 < {rows})
             INSERT INTO tasks(id, list, title, done, position)
             SELECT printf('t%06d', n), 'l', printf('task number %d of them', n), 0, n FROM number"
        ))?;
        let mut commits = 0;
        push(&runtime, &remote, &mut other, &mut commits)?;
        let mut client = open("client", Config { policy, ..Config::default() })?;
        let watch = format!("SELECT title FROM tasks WHERE id = '{}'", id(rows - 1));
        let (watched, _) = client.subscribe(&watch, &Params::default(), None)?;
        Ok(Scene { remote, runtime, client, other, commits, watched })
    }

    /// The client ticks these rows off, each in a mutation of its own.
    pub fn make(&mut self, rows: impl Iterator<Item = u64>) -> anyhow::Result<()> {
        for row in rows {
            let Json::Object(args) = json!({ "id": id(row), "done": true }) else {
                bail!("arguments are an object");
            };
            self.client.mutate("set_done", args, 7, 8)?;
        }
        self.client.refresh();
        Ok(())
    }

    /// The other writer ticks these rows off in one commit, and gives the last of them this title.
    pub fn change(&mut self, rows: impl IntoIterator<Item = u64>, title: &str) -> anyhow::Result<()> {
        let ids: Vec<String> = rows.into_iter().map(|row| format!("'{}'", id(row))).collect();
        let last = ids.last().context("at least one row")?;
        self.other.execute(&format!(
            "UPDATE tasks SET done = 1 WHERE id IN ({}); UPDATE tasks SET title = '{title}' WHERE id = {last}",
            ids.join(", ")
        ))?;
        push(&self.runtime, &self.remote, &mut self.other, &mut self.commits)
    }

    /// The client pulls and brings its `pending` mutations on top. How long it takes until its live query
    /// shows the change.
    pub fn rebase(&mut self, pending: u64) -> anyhow::Result<Duration> {
        let began = Instant::now();
        let volume = self.client.volume().clone();
        let pulled = self.runtime.block_on(volume.pull(&*self.remote))?;
        let mut progress = self.client.pulled(pulled)?;
        while progress != Progress::Done {
            progress = self.client.step(SLICE)?;
        }
        let shown = self.client.refresh();
        let took = began.elapsed();
        let [(watched, Ok(_))] = shown.as_slice() else {
            bail!("the live query shows {shown:?} after the rebase");
        };
        ensure!(*watched == self.watched, "another query than the client's has changed");
        let status = self.client.status();
        ensure!(status.ahead as u64 == pending, "{status} after a rebase of {pending}");
        Ok(took)
    }

    /// What the client has done.
    pub fn counts(&self) -> Counts {
        self.client.counts()
    }

    /// How many tasks the client sees done.
    pub fn done(&self) -> anyhow::Result<u64> {
        let rows = self.client.query("SELECT count(*) FROM tasks WHERE done = 1", &Params::default())?.rows;
        match rows.first().and_then(|row| row.first()) {
            Some(Value::Integer(count)) => Ok(u64::try_from(*count)?),
            other => bail!("a count answered {other:?}"),
        }
    }
}

/// Publishes everything that `replica` holds; nobody else publishes.
fn push(
    runtime: &Handle,
    remote: &SharedRemote,
    replica: &mut Replica,
    commits: &mut u128,
) -> anyhow::Result<()> {
    while replica.status().ahead > 0 {
        *commits += 1;
        let prepared = replica.seal(CommitId(commits.to_be_bytes()), 1_000)?;
        let prepared = prepared.context("there are local commits, and none to push")?;
        let result = runtime.block_on(publish(&**remote, &prepared));
        replica.published(&prepared, result)?;
    }
    Ok(())
}
