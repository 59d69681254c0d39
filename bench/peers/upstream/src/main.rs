//! Upstream Graft under the storage benchmark: `bench-upstream-graft NAME PLACE`, orders on standard input;
//! `bench-upstream-graft speedtest1 PLACE LIBRARY SIZE` runs speedtest1 on it instead.

#[path = "../../../src/storage/workload.rs"]
#[allow(dead_code, reason = "the bench makes the file")]
mod workload;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow, bail};
use graft::remote::RemoteConfig;
use graft::setup::GraftConfig;
use rusqlite::{Connection, OpenFlags};

struct Upstream {
    dir: PathBuf,
    note: String,
    db: Option<Connection>,
}

/// Registers its VFS, with its state in `dir`.
fn register(dir: &Path, remote: RemoteConfig) -> anyhow::Result<()> {
    let config = GraftConfig { remote, data_dir: dir.join("data"), autosync: None };
    graft_sqlite::register_static("graft", false, config).map_err(|error| anyhow!("{error:?}"))
}

fn pragma(db: &Connection, sql: &str) -> anyhow::Result<String> {
    match db.query_row(sql, [], |row| row.get::<_, Option<String>>(0)) {
        Ok(text) => Ok(text.unwrap_or_default()),
        Err(rusqlite::Error::QueryReturnedNoRows) => Ok(String::new()),
        Err(error) => Err(anyhow::Error::new(error).context(sql.to_owned())),
    }
}

impl Upstream {
    fn start(&self) -> anyhow::Result<Connection> {
        let remote = RemoteConfig::S3Compatible { bucket: "bench".into(), prefix: Some("upstream".into()) };
        register(&self.dir, remote)?;
        Ok(Connection::open_with_flags_and_vfs("bench", OpenFlags::default(), "graft")?)
    }
}

impl workload::System for Upstream {
    fn import(&mut self, file: &Path) -> anyhow::Result<String> {
        let db = self.start()?;
        pragma(&db, &format!("pragma graft_import = '{}'", file.display()))?;
        pragma(&db, "pragma graft_push")?;
        let info = pragma(&db, "pragma graft_info")?;
        let remote = info.lines().find_map(|line| line.trim().strip_prefix("Remote: "));
        remote.map(str::to_owned).with_context(|| format!("it names no remote log: {info}"))
    }

    fn open(&mut self) -> anyhow::Result<()> {
        let db = self.start()?;
        pragma(&db, &format!("pragma graft_clone = '{}'", self.note))?;
        pragma(&db, "pragma graft_pull")?;
        self.db = Some(db);
        Ok(())
    }

    fn connection(&mut self) -> anyhow::Result<&mut Connection> {
        self.db.as_mut().context("it is not open")
    }

    fn publish(&mut self) -> anyhow::Result<()> {
        pragma(self.db.as_ref().context("it is not open")?, "pragma graft_push").map(drop)
    }
}

/// Runs the extension `library`, which is speedtest1.
#[allow(unsafe_code, reason = "a foreign library, and its arguments in the environment")]
fn speedtest(dir: &Path, library: &str, size: &str) -> anyhow::Result<()> {
    // SAFETY: this process has no other thread yet.
    unsafe { std::env::set_var("BENCH_SPEEDTEST1", format!("speedtest1 --size {size} --vfs graft speed")) };
    register(dir, RemoteConfig::Memory)?;
    let db = Connection::open_in_memory()?;
    // SAFETY: compiled by the bench from SQLite's source, for this interface.
    unsafe {
        db.load_extension_enable()?;
        db.load_extension(library, None::<&str>)?;
    }
    Ok(())
}

fn main() -> anyhow::Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let place: serde_json::Value =
        serde_json::from_str(words.get(1).context("bench-upstream-graft NAME PLACE")?)?;
    let dir = PathBuf::from(place["dir"].as_str().context("the place has no dir")?);
    let rows = place["rows"].as_u64().context("the place has no rows")?;
    let note = place["note"].as_str().unwrap_or_default().to_owned();
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["speedtest1", _, library, size] => speedtest(&dir, library, size),
        [_, _] => workload::serve(&mut Upstream { dir, note, db: None }, rows),
        _ => bail!("bench-upstream-graft NAME PLACE, or speedtest1 PLACE LIBRARY SIZE"),
    }
}
