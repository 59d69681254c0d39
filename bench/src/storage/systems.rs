//! The systems, each as the program of its own process: `bench engine NAME`.
//!
//! Ours and Litestream's are loadable extensions in the bench's SQLite, which is also the plain one; upstream
//! Graft and turbolite are programs in `peers`, for their crates bring versions of their own. A process reads its orders as [`super::workload`] says; where it works is in [`Place`].

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, bail};
use graft::fetch::RemoteFetch;
use graft::format::meta::Meta;
use graft::remote::DirectoryRemote;
use graft::store::{Durability, FjallStore};
use graft::volume::{Options, Volume, push};
use graft::{CommitId, PageSize, VolumeId, catalog};
use rusqlite::{Connection, OpenFlags};
use serde::{Deserialize, Serialize};
use sqlsync_layer::payload::Payload;
use sqlsync_layer::vfs::Database;

use super::s3::BUCKET;
use super::workload::{System, serve};

/// Where a process works; it is given as JSON.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Place {
    /// An empty folder, or one that the same system left.
    pub dir: PathBuf,
    /// The extension to load.
    pub extension: Option<PathBuf>,
    /// What [`System::import`] answered.
    pub note: String,
    /// Rows of the table.
    pub rows: u64,
}

/// Runs the program `name` to the end of its input.
pub fn run(name: &str, place: &str) -> anyhow::Result<()> {
    let place: Place = serde_json::from_str(place)?;
    let rows = place.rows;
    let mut system: Box<dyn System> = match name {
        "graft" => Box::new(Graft { place, db: None }),
        "litestream" => Box::new(Litestream { place, db: None }),
        "graft-sync" => Box::new(Local { place, durability: Durability::Sync, open: None }),
        "graft-buffered" => Box::new(Local { place, durability: Durability::Buffered, open: None }),
        "sqlite-full" => Box::new(Plain { place, synchronous: "full", db: None }),
        "sqlite-normal" => Box::new(Plain { place, synchronous: "normal", db: None }),
        other => bail!("there is no system `{other}`"),
    };
    serve(system.as_mut(), rows)
}

fn opened(db: &mut Option<Connection>) -> anyhow::Result<&mut Connection> {
    db.as_mut().context("it is not open")
}

/// Loads an extension into the process, for every later connection.
#[allow(unsafe_code, reason = "a foreign library")]
fn load(place: &Place) -> anyhow::Result<()> {
    let path = place.extension.as_ref().context("no extension was named")?;
    let db = Connection::open_in_memory()?;
    // SAFETY: the extension is the peer's own, as its registry has it; it runs in this process alone.
    unsafe {
        db.load_extension_enable()?;
        db.load_extension(path, None::<&str>)?;
    }
    // A VFS outlives the connection that brought it only if its library stays loaded.
    std::mem::forget(db);
    Ok(())
}

fn connect(uri: &str, vfs: &str) -> anyhow::Result<Connection> {
    let flags =
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_URI;
    let opened = Connection::open_with_flags_and_vfs(uri, flags, vfs);
    opened.with_context(|| format!("{uri} through {vfs}"))
}

fn pragma(db: &Connection, sql: &str) -> anyhow::Result<String> {
    let text = db.query_row(sql, [], |row| row.get::<_, Option<String>>(0));
    match text {
        Ok(text) => Ok(text.unwrap_or_default()),
        Err(rusqlite::Error::QueryReturnedNoRows) => Ok(String::new()),
        Err(error) => Err(anyhow::Error::new(error).context(sql.to_owned())),
    }
}

/// Ours, as a loadable extension.
struct Graft {
    place: Place,
    db: Option<Connection>,
}

impl Graft {
    fn uri(&self) -> String {
        let data = self.place.dir.join("data");
        let data = data.display();
        format!("file:bench?vfs=graft&remote=s3://{BUCKET}/ours&data={data}")
    }
}

impl System for Graft {
    fn import(&mut self, file: &Path) -> anyhow::Result<String> {
        load(&self.place)?;
        // The tables of an extension are on connections made after it was loaded.
        let db = Connection::open_in_memory()?;
        let sql = "select lsn from graft_import(?1, 'bench', ?2)";
        let url = format!("s3://{BUCKET}/ours");
        let lsn: i64 = db.query_row(sql, (file.to_str(), url), |row| row.get(0))?;
        Ok(format!("lsn {lsn}"))
    }

    fn open(&mut self) -> anyhow::Result<()> {
        load(&self.place)?;
        self.db = Some(connect(&self.uri(), "graft")?);
        Ok(())
    }

    fn connection(&mut self) -> anyhow::Result<&mut Connection> {
        opened(&mut self.db)
    }

    fn publish(&mut self) -> anyhow::Result<()> {
        pragma(opened(&mut self.db)?, "pragma graft_push").map(drop)
    }
}

/// Litestream's VFS. It imports by SQL in its write mode, for it takes no file.
struct Litestream {
    place: Place,
    db: Option<Connection>,
}

impl System for Litestream {
    fn import(&mut self, file: &Path) -> anyhow::Result<String> {
        load(&self.place)?;
        let db = connect("file:bench.db?vfs=litestream", "litestream")?;
        db.execute_batch(super::workload::SCHEMA)?;
        db.execute("attach ?1 as source", [format!("file:{}?vfs=unix", file.display())])?;
        db.execute_batch(
            "begin; insert into t select * from source.t; create index t_n on t(n); commit; detach source",
        )?;
        self.db = Some(db);
        Ok(String::new())
    }

    fn open(&mut self) -> anyhow::Result<()> {
        load(&self.place)?;
        self.db = Some(connect("file:bench.db?vfs=litestream", "litestream")?);
        Ok(())
    }

    fn connection(&mut self) -> anyhow::Result<&mut Connection> {
        opened(&mut self.db)
    }

    /// It publishes by itself, every second.
    fn publish(&mut self) -> anyhow::Result<()> {
        Ok(())
    }
}

/// Ours on this disk alone, linked in, its store a directory.
struct Local {
    place: Place,
    durability: Durability,
    open: Option<(Connection, Arc<Database>, Arc<DirectoryRemote>)>,
}

impl System for Local {
    fn import(&mut self, file: &Path) -> anyhow::Result<String> {
        self.open()?;
        let db = self.connection()?;
        db.execute("attach ?1 as source", [format!("file:{}?vfs=unix", file.display())])?;
        db.execute_batch(super::workload::SCHEMA)?;
        db.execute_batch(
            "begin; insert into t select * from source.t; create index t_n on t(n); commit; detach source",
        )?;
        Ok(String::new())
    }

    fn open(&mut self) -> anyhow::Result<()> {
        let remote = Arc::new(DirectoryRemote::open(&self.place.dir.join("store"))?);
        let id = VolumeId([7; 16]);
        let meta = Meta { page_size: PageSize::DEFAULT, parent: None };
        let store = Arc::new(FjallStore::open(&self.place.dir.join("data"))?);
        let options = Options { store: Some(store), locals: Some(self.durability), ..Options::default() };
        let opening = async {
            let name = "bench".parse()?;
            match catalog::resolve(&*remote, &name).await {
                Ok(_) => {}
                Err(catalog::CatalogError::NoSuchVolume { .. }) => {
                    catalog::create(&*remote, &name, id, meta).await?
                }
                Err(error) => return Err(error.into()),
            }
            anyhow::Ok(Volume::open(&*remote, id, options).await?.volume)
        };
        let volume = futures::executor::block_on(opening)?;
        let database = Database::new(Arc::new(volume), Arc::new(RemoteFetch::new(remote.clone())));
        let (db, _) = database.connect()?;
        self.open = Some((db, database, remote));
        Ok(())
    }

    fn connection(&mut self) -> anyhow::Result<&mut Connection> {
        Ok(&mut self.open.as_mut().context("it is not open")?.0)
    }

    fn publish(&mut self) -> anyhow::Result<()> {
        let (_, database, remote) = self.open.as_ref().context("it is not open")?;
        let id = || CommitId(rand::random());
        futures::executor::block_on(push(&**remote, database.volume(), Payload::of_locals, id, 0))?;
        Ok(())
    }
}

/// SQLite alone, in WAL mode.
struct Plain {
    place: Place,
    synchronous: &'static str,
    db: Option<Connection>,
}

impl System for Plain {
    fn import(&mut self, file: &Path) -> anyhow::Result<String> {
        std::fs::copy(file, self.place.dir.join("bench.db"))?;
        self.open()?;
        Ok(String::new())
    }

    fn open(&mut self) -> anyhow::Result<()> {
        let db = Connection::open(self.place.dir.join("bench.db"))?;
        db.execute_batch(&format!("pragma journal_mode = wal; pragma synchronous = {}", self.synchronous))?;
        self.db = Some(db);
        Ok(())
    }

    fn connection(&mut self) -> anyhow::Result<&mut Connection> {
        opened(&mut self.db)
    }

    fn publish(&mut self) -> anyhow::Result<()> {
        Ok(())
    }
}

/// Runs speedtest1 on the system `name`, in this process.
pub fn run_speedtest(name: &str, place: &str, library: &Path, size: &str) -> anyhow::Result<()> {
    let place: Place = serde_json::from_str(place)?;
    let arguments = |rest: &str| format!("speedtest1 --size {size} {rest}");
    let local = |durability| Local { place: place.clone(), durability, open: None };
    match name {
        "graft-sync" | "graft-buffered" => {
            let sync = name == "graft-sync";
            let mut local = local(if sync { Durability::Sync } else { Durability::Buffered });
            local.open()?;
            let (_, database, _) = local.open.as_ref().context("it is not open")?;
            super::speedtest::run_in_process(library, &arguments(&format!("--vfs graft {}", database.name())))
        }
        "sqlite-full" => super::speedtest::run_in_process(library, &arguments("--journal wal speed.db")),
        "sqlite-normal" => {
            super::speedtest::run_in_process(library, &arguments("--journal wal --nosync speed.db"))
        }
        other => bail!("there is no system `{other}`"),
    }
}
