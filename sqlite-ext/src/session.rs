//! Volumes that are open in this process, and opening them.
//!
//! Connections to one volume through one data directory share one replica, as long as any of them is
//! open. A directory is held by one process at a time, which the store's lock enforces and its message
//! names. Without a directory a volume is a read replica in memory.
//!
//! A forked child has all of this in its memory, and none of the threads: what it opens is its own, on
//! threads of its own, and what it inherited it leaves alone.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use graft::catalog::{self, CatalogError};
use graft::fetch::RemoteFetch;
use graft::format::meta::Meta;
use graft::reader::Holding;
use graft::remote::SharedRemote;
use graft::store::claim::Claim;
use graft::store::{Batch, Durability, FjallStore, ReplicaStore as _, SharedStore, Space};
use graft::time::{self, At};
use graft::volume::{Options, Volume};
use graft::{LeaseId, Lsn, PageSize, VolumeId, VolumeName};
use parking_lot::Mutex;
use sqlsync_layer::vfs::{Control, Database, OpenRequest, PragmaAnswer, Pragmas, Settings, Warmth, warm};
use tokio::runtime::Runtime;

use crate::commands;
use crate::config::Config;

/// One volume as it is open here.
pub struct Session {
    pub name: VolumeName,
    pub remote: SharedRemote,
    pub volume: Arc<Volume>,
    pub data: Option<PathBuf>,
    /// The commit it stands still at.
    pub at: Option<Lsn>,
    /// Keeps that commit readable for as long as it is open here; taken in the background, and given up
    /// with the session.
    _lease: Option<Holding>,
    /// Why the store was not asked when it was opened; it goes on from what is in the directory.
    pub offline: Option<String>,
    config: Config,
}

/// A session, reached through a connection.
pub struct Open {
    pub session: Arc<Session>,
    pub database: Arc<Database>,
    pub control: Arc<Control>,
}

/// Store, volume, directory, and the commit it stands still at. A directory's volume that is open by another
/// address of its store is refused: two replicas would write over each other's commits.
type Key = (String, VolumeName, Option<PathBuf>, Option<Lsn>);

#[derive(Default)]
struct Registry {
    sessions: HashMap<Key, (Weak<Database>, Weak<Session>)>,
    stores: HashMap<PathBuf, Weak<FjallStore>>,
}

/// Pages of a past state kept in memory.
pub const CACHE_BYTES: usize = 64 << 20;

/// How long a replica that is closing is waited for; where it takes longer, opening is refused.
const CLOSING: Duration = Duration::from_secs(5);

/// What belongs to one process.
struct Process {
    number: u32,
    /// Held while a volume is opened, so that two connections open it once.
    registry: Mutex<Registry>,
    runtime: OnceLock<Result<Runtime, String>>,
    /// That of a child, in the child's memory.
    forked: OnceLock<Box<Process>>,
}

impl Process {
    fn new() -> Process {
        Process {
            number: std::process::id(),
            registry: Mutex::default(),
            runtime: OnceLock::new(),
            forked: OnceLock::new(),
        }
    }

    /// This one.
    fn get() -> &'static Process {
        static FIRST: OnceLock<Process> = OnceLock::new();
        let number = std::process::id();
        let mut process = FIRST.get_or_init(Process::new);
        while process.number != number {
            process = process.forked.get_or_init(|| Box::new(Process::new()));
        }
        process
    }
}

static LAST_ERROR: Mutex<Option<String>> = Mutex::new(None);

/// The threads that requests run on.
pub fn runtime() -> Result<&'static Runtime, String> {
    let start = || {
        let built = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        built.map_err(|error| format!("no threads to run on: {error}"))
    };
    Process::get().runtime.get_or_init(start).as_ref().map_err(Clone::clone)
}

/// What went wrong last in this process.
pub fn last_error() -> Option<String> {
    LAST_ERROR.lock().clone()
}

/// The session that a database is.
pub fn of(database: &Arc<Database>) -> Option<Arc<Session>> {
    let registry = Process::get().registry.lock();
    let found = registry.sessions.values().find(|(known, _)| known.as_ptr() == Arc::as_ptr(database));
    found?.1.upgrade()
}

/// Opens what SQLite asks for. SQLite itself says only "unable to open database file", so the reason goes
/// to stderr and to the table `graft_errors`.
pub fn open(request: &OpenRequest) -> Option<Arc<Database>> {
    match try_open(request) {
        Ok(database) => Some(database),
        Err(message) => {
            eprintln!("graft: `{}` cannot be opened: {message}", request.name);
            *LAST_ERROR.lock() = Some(message);
            None
        }
    }
}

fn try_open(request: &OpenRequest) -> Result<Arc<Database>, String> {
    let parameter =
        |name: &str| request.parameters.iter().find(|(key, _)| *key == name).map(|(_, v)| v.as_str());
    let name = request.name.parse().map_err(|error| format!("{error}"))?;
    let at = match parameter("at") {
        Some(text) => Some(parse_at(text)?),
        None => None,
    };
    let page_size = match parameter("page_size") {
        Some(text) => {
            let size = text.parse().ok().and_then(PageSize::new);
            size.ok_or_else(|| format!("page_size={text}: give a power of two from 512 to 65536"))?
        }
        None => PageSize::DEFAULT,
    };
    let config = Config::find(&request.parameters)?;
    let create = request.create && !request.read_only && at.is_none() && config.data.is_some();
    let at = at.map(|at| settle(&store_of(&config)?, &name, at)).transpose()?;
    open_volume(config, name, at, create.then_some(page_size))
}

/// A state as somebody typed it.
pub fn parse_at(text: &str) -> Result<At, String> {
    text.trim().parse().map_err(|error| format!("`{text}`: {error}; graft_log lists them"))
}

/// The commit that is meant.
fn settle(remote: &SharedRemote, name: &VolumeName, at: At) -> Result<Lsn, String> {
    if let At::Lsn(lsn) = at {
        return Ok(lsn);
    }
    let find = async {
        let id = catalog::resolve(&**remote, name).await.map_err(|error| error.to_string())?;
        time::find(&**remote, id, at).await.map_err(|error| error.told(name, at))
    };
    Ok(runtime()?.block_on(find)?.lsn)
}

/// The store that is configured.
fn store_of(config: &Config) -> Result<SharedRemote, String> {
    let url = config.store()?;
    let _entered = runtime()?.enter();
    graft::remote::open(&url).map_err(|error| error.to_string())
}

/// Opens a volume, or finds it open. `create` says the page size of one that is to be made where there is
/// none.
fn open_volume(
    config: Config,
    name: VolumeName,
    at: Option<Lsn>,
    create: Option<PageSize>,
) -> Result<Arc<Database>, String> {
    let data = match &config.data {
        Some(dir) => Some(std::path::absolute(dir).map_err(|error| format!("{}: {error}", dir.display()))?),
        None => None,
    };
    let runtime = runtime()?;
    let _entered = runtime.enter();
    let remote = store_of(&config)?;
    // A view of the past is of no directory.
    let data = data.filter(|_| at.is_none());
    let key: Key = (remote.place(), name.clone(), data.clone(), at);
    let mut registry = Process::get().registry.lock();
    registry.sessions.retain(|_, (database, _)| database.strong_count() > 0);
    if let Some(database) = registry.sessions.get(&key).and_then(|(database, _)| database.upgrade()) {
        return Ok(database);
    }
    let store = match &data {
        Some(dir) => Some(open_store(&mut registry, dir)?),
        None => None,
    };
    let siblings =
        registry.sessions.iter().filter(|(other, _)| data.is_some() && other.2 == data && **other != key);
    let siblings: Vec<Arc<Session>> = siblings.filter_map(|(_, (_, session))| session.upgrade()).collect();
    let (volume, offline) = runtime
        .block_on(replica(&remote, &name, at, create, store, config.disk_bytes, &siblings))
        .map_err(|error| error.to_string())?;
    drop(siblings);
    let volume = Arc::new(volume);
    let read_only = data.is_none();
    let session = Arc::new(Session {
        name,
        remote: remote.clone(),
        volume: volume.clone(),
        data,
        at,
        _lease: at.map(|_| hold(&remote, &volume)).transpose()?,
        offline,
        config,
    });
    let settings = Settings { read_only, pragmas: Some(session.clone()), ..Settings::default() };
    let fetch = Arc::new(RemoteFetch::new(remote));
    if session.offline.is_none() {
        // Should it fail, the first query fetches the same pages, and reports what is wrong with them.
        _ = runtime.block_on(warm(fetch.fetcher(), &volume, Warmth::Query));
    }
    let database = Database::with(volume, fetch, settings);
    registry.sessions.insert(key, (Arc::downgrade(&database), Arc::downgrade(&session)));
    Ok(database)
}

/// Keeps what a view of the past reads from garbage collection. Where no lease can be had, it is read
/// without. Must be called in tokio.
pub fn hold(remote: &SharedRemote, past: &Volume) -> Result<Holding, String> {
    let mut id = [0; 16];
    random(&mut id)?;
    Ok(Holding::begin(remote.clone(), &past.tip(), LeaseId(id)))
}

fn open_store(registry: &mut Registry, dir: &Path) -> Result<Arc<FjallStore>, String> {
    if let Some(store) = registry.stores.get(dir).and_then(Weak::upgrade) {
        return Ok(store);
    }
    let store = Arc::new(FjallStore::open(dir).map_err(|error| error.to_string())?);
    registry.stores.insert(dir.into(), Arc::downgrade(&store));
    Ok(store)
}

/// What a directory remembers of a name, so that its volume opens without the store.
fn name_key(remote: &SharedRemote, name: &VolumeName) -> Vec<u8> {
    format!("ext/{}/{name}", remote.place()).into_bytes()
}

fn remembered(store: &FjallStore, key: &[u8]) -> Option<(VolumeId, PageSize)> {
    let value = store.get(Space::Timeline, key).ok()??;
    let (id, size) = std::str::from_utf8(&value).ok()?.split_once(' ')?;
    Some((id.parse().ok()?, PageSize::new(size.parse().ok()?)?))
}

async fn replica(
    remote: &SharedRemote,
    name: &VolumeName,
    at: Option<Lsn>,
    create: Option<PageSize>,
    store: Option<Arc<FjallStore>>,
    disk_bytes: Option<u64>,
    siblings: &[Arc<Session>],
) -> Result<(Volume, Option<String>), Box<dyn std::error::Error>> {
    let key = name_key(remote, name);
    let known = store.as_ref().and_then(|store| remembered(store, &key));
    // A volume that was here before is missed, not made anew.
    let create = create.filter(|_| known.is_none());
    let resolved = match (catalog::resolve(&**remote, name).await, create) {
        (Err(CatalogError::NoSuchVolume { .. }), Some(page_size)) => {
            let mut id = [0; 16];
            random(&mut id)?;
            match catalog::create(&**remote, name, VolumeId(id), Meta { page_size, parent: None }).await {
                Ok(()) => Ok(VolumeId(id)),
                Err(CatalogError::Exists { found, .. }) => Ok(found),
                Err(error) => Err(error),
            }
        }
        (resolved, _) => resolved,
    };
    if let Some(lsn) = at {
        let at = At::Lsn(lsn);
        let opened = Volume::open_at(&**remote, resolved?, at, CACHE_BYTES).await;
        let opened = opened.map_err(|error| error.told(name, at))?;
        return Ok((opened.volume, None));
    }
    let Some(store) = store else {
        let opened = Volume::open(&**remote, resolved?, Options::default()).await?;
        return Ok((opened.volume, None));
    };
    if let (Ok(found), Some((known, _))) = (&resolved, known)
        && *found != known
    {
        return Err(format!(
            "the directory holds volume {known} under this name, the store {found}: the store was replaced; give \
             another directory"
        )
        .into());
    }
    let defaults = Options::default();
    let disk_bytes = disk_bytes.unwrap_or(defaults.disk_bytes);
    let options = Options { store: Some(store.clone() as SharedStore), disk_bytes, ..defaults };
    if let Some(id) = resolved.as_ref().ok().copied().or(known.map(|(id, _)| id)) {
        // By another address, or it would have been found.
        if let Some(open) = siblings.iter().find(|open| open.volume.id() == id) {
            return Err(format!(
                "its data directory has the same volume open by another address, as `{}` of {}; use that one, or \
                 close its connections first",
                open.name,
                open.url()
            )
            .into());
        }
        // The last connection to it may be closing at this moment.
        Claim::wait(&(store.clone() as SharedStore), id, CLOSING);
    }
    let opened = match &resolved {
        Ok(id) => Volume::open(&**remote, *id, options.clone()).await.map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    };
    match opened {
        Ok(opened) => {
            let mut batch = Batch::default();
            let (id, size) = (opened.volume.id(), opened.volume.page_size().get());
            batch.put(Space::Timeline, key, format!("{id} {size}"));
            store.write(batch, Durability::Buffered)?;
            Ok((opened.volume, None))
        }
        // The store is not there, or says nonsense; what is in the directory may be used all the same.
        Err(reason) => match known {
            Some((id, page_size)) => Ok((Volume::load(id, page_size, options)?.volume, Some(reason))),
            None => Err(reason.into()),
        },
    }
}

#[allow(clippy::disallowed_methods, reason = "a driver: it owns randomness")]
pub fn random(out: &mut [u8]) -> Result<(), String> {
    getrandom::fill(out).map_err(|error| format!("the system gives no random numbers: {error}"))
}

#[allow(clippy::disallowed_methods, reason = "a driver: it gives commits their time")]
pub fn now_ms() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

impl Session {
    /// The store's URL.
    pub fn url(&self) -> String {
        self.remote.url()
    }

    /// What may become of local commits that another writer's stand in the way of.
    pub fn ways_out(&self) -> String {
        let drop = "drop them: SELECT * FROM graft_pull('discard')";
        let Some(data) = &self.data else { return drop.to_owned() };
        format!(
            "close this volume and make one of its own of them: graft sql \"SELECT 1\" --write --on-conflict branch \
             --volume '{}' --store '{}' --data '{}'; or {drop}",
            self.name,
            self.url(),
            data.display()
        )
    }

    /// This volume at another commit, or another volume of the same store and directory.
    fn other(&self, name: VolumeName, at: Option<Lsn>) -> Result<Arc<Database>, String> {
        open_volume(self.config.clone(), name, at, None)
    }
}

impl Pragmas for Session {
    fn pragma(
        &self,
        database: &Arc<Database>,
        name: &str,
        argument: Option<&str>,
    ) -> Option<Result<PragmaAnswer, String>> {
        let argument =
            argument.map(|text| text.trim().trim_matches(['\'', '"'])).filter(|text| !text.is_empty());
        let answered = match (name, argument) {
            ("graft_open_at", None) => {
                self.other(self.name.clone(), None).map(|to| (to, self.name.to_string()))
            }
            ("graft_open_at", Some(text)) => parse_at(text).and_then(|at| {
                let lsn = settle(&self.remote, &self.name, at)?;
                self.other(self.name.clone(), Some(lsn)).map(|to| (to, format!("{} at lsn {lsn}", self.name)))
            }),
            ("graft_switch", Some(to)) => to
                .parse::<VolumeName>()
                .map_err(|error| error.to_string())
                .and_then(|name| self.other(name.clone(), None).map(|to| (to, name.to_string()))),
            ("graft_switch", None) => Err("PRAGMA graft_switch = NAME: give the volume to go on on".into()),
            _ => {
                let session = of(database)?;
                let open = Open { session, database: database.clone(), control: Control::detached() };
                return commands::pragma(&open, name, argument).map(|text| text.map(PragmaAnswer::Text));
            }
        };
        Some(answered.map(|(to, text)| PragmaAnswer::Switch { to, text }))
    }
}
