//! Makes local commits: `commits DIR sync|buffered`.
//!
//! For each line of its input it inserts that text as one row, in a transaction of its own, and says
//! `committed LINE` when COMMIT has returned. `DIR` is the data directory; local commits are written to
//! it with the durability that is named, and pushed nowhere. The program that `tests/tests/power_loss.rs`
//! watches, because what people run has one durability alone.

use std::io::{BufRead as _, Write as _};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use futures::executor::block_on;
use graft::fetch::RemoteFetch;
use graft::format::meta::Meta;
use graft::remote::{MemoryRemote, SharedRemote};
use graft::store::{Durability, FjallStore};
use graft::volume::{Options, Volume};
use graft::{PageSize, VolumeId, catalog};
use sqlsync_layer::vfs::Database;

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [dir, durability] = args.as_slice() else { bail!("use: commits DIR sync|buffered") };
    let locals = match durability.as_str() {
        "sync" => Durability::Sync,
        "buffered" => Durability::Buffered,
        other => bail!("`{other}` is neither sync nor buffered"),
    };
    let remote: SharedRemote = Arc::new(MemoryRemote::new());
    let id = VolumeId([1; 16]);
    let meta = Meta { page_size: PageSize::DEFAULT, parent: None };
    block_on(catalog::create(&*remote, &"watched".parse()?, id, meta))?;
    let store = FjallStore::open(Path::new(dir))?;
    let options = Options { store: Some(Arc::new(store)), locals: Some(locals), ..Options::default() };
    let volume = block_on(Volume::open(&*remote, id, options))?.volume;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let fetch = {
        let _entered = runtime.enter();
        RemoteFetch::new(remote)
    };
    let (connection, _) = Database::new(Arc::new(volume), Arc::new(fetch)).connect()?;
    connection.execute_batch("CREATE TABLE t(v)")?;
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let insert = connection.execute("INSERT INTO t VALUES (?1)", [&line]);
        insert.with_context(|| format!("row `{line}`"))?;
        println!("committed {line}");
        std::io::stdout().flush()?;
    }
    Ok(())
}
