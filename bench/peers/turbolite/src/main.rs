//! turbolite under the storage benchmark: `bench-turbolite NAME PLACE`, orders on standard input.
//!
//! It is given what it recommends: pages of 64 KiB, a file imported by its own importer, which groups the
//! pages by b-tree, no page cache in SQLite, and the query's plan before each query. Durable means that
//! the WAL was checkpointed, for that is when turbolite uploads.

#[path = "../../../src/storage/workload.rs"]
#[allow(dead_code, reason = "the bench makes the file")]
mod workload;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use rusqlite::{Connection, OpenFlags};
use turbolite::tiered::{
    TurboliteConfig, TurboliteVfs, import_sqlite_file, parse_eqp_output, push_planned_accesses, register,
};

const BUCKET: &str = "bench";
const PREFIX: &str = "turbolite";

struct Turbolite {
    dir: PathBuf,
    runtime: tokio::runtime::Runtime,
    db: Option<Connection>,
}

impl Turbolite {
    fn backend(&self) -> anyhow::Result<Arc<hadb_storage_s3::S3Storage>> {
        let endpoint = std::env::var("AWS_ENDPOINT_URL").context("AWS_ENDPOINT_URL is not set")?;
        let storage = self.runtime.block_on(hadb_storage_s3::S3Storage::from_env(BUCKET, Some(&endpoint)))?;
        Ok(Arc::new(storage.with_prefix(PREFIX)))
    }

    fn config(&self) -> TurboliteConfig {
        TurboliteConfig { cache_dir: self.dir.join("cache"), ..TurboliteConfig::default() }
    }
}

impl workload::System for Turbolite {
    fn import(&mut self, file: &Path) -> anyhow::Result<String> {
        let storage = self.backend()?;
        import_sqlite_file(&self.config(), storage, self.runtime.handle().clone(), file)?;
        Ok(String::new())
    }

    fn open(&mut self) -> anyhow::Result<()> {
        let vfs = TurboliteVfs::with_backend(self.config(), self.backend()?, self.runtime.handle().clone())?;
        register("turbolite", vfs)?;
        let db = Connection::open_with_flags_and_vfs("bench.db", OpenFlags::default(), "turbolite")?;
        db.execute_batch("pragma cache_size = 0")?;
        self.db = Some(db);
        Ok(())
    }

    fn connection(&mut self) -> anyhow::Result<&mut Connection> {
        self.db.as_mut().context("it is not open")
    }

    fn publish(&mut self) -> anyhow::Result<()> {
        let db = self.db.as_ref().context("it is not open")?;
        let busy: i64 = db.query_row("pragma wal_checkpoint(truncate)", [], |row| row.get(0))?;
        anyhow::ensure!(busy == 0, "the checkpoint was busy");
        Ok(())
    }

    fn foresee(&mut self, sql: &str) -> anyhow::Result<()> {
        let db = self.db.as_ref().context("it is not open")?;
        let mut explain = db.prepare(&format!("explain query plan {sql}"))?;
        let unknown = vec![1; explain.parameter_count()];
        let rows = explain.query_map(rusqlite::params_from_iter(unknown), |row| row.get::<_, String>(3))?;
        let plan = rows.collect::<Result<Vec<_>, _>>()?.join("\n");
        push_planned_accesses(parse_eqp_output(&plan));
        Ok(())
    }
}

fn main() -> anyhow::Result<()> {
    let place = std::env::args().nth(2).context("bench-turbolite NAME PLACE")?;
    let field = |name: &str| {
        let rest = place.split_once(&format!("\"{name}\":")).map(|(_, rest)| rest);
        rest.and_then(|rest| rest.split([',', '}']).next()).map(|text| text.trim_matches('"').to_owned())
    };
    let dir = PathBuf::from(field("dir").context("the place has no dir")?);
    let rows = field("rows").context("the place has no rows")?.parse()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build()?;
    workload::serve(&mut Turbolite { dir, runtime, db: None }, rows)
}
