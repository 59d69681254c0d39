//! `graft export`: a SQLite file of a volume.

use std::path::PathBuf;

use anyhow::{Context as _, anyhow};
use clap::Args as ClapArgs;
use graft::time::At;
use graft::volume::Volume;
use graft::{Lsn, VolumeName, catalog};
use serde::Serialize;
use sqlsync_layer::transfer::Progress;
use sqlsync_layer::transfer::export::export;

use crate::args::Store;
use crate::moment::{Held, Moment};
use crate::progress::Bar;
use crate::{Outcome, output};

/// `graft export`
#[derive(Debug, ClapArgs)]
pub struct Export {
    /// The volume's name.
    pub name: String,
    /// The SQLite file to write. One that is there is replaced at once when the new one is whole; it must
    /// not be open anywhere.
    pub file: PathBuf,
    #[command(flatten)]
    pub store: Store,
    /// The volume as it was: an LSN, or a time like 2026-11-22T09:30:00Z. [default: the newest]
    #[arg(long, value_name = "LSN|TIME")]
    pub at: Option<Moment>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Pages kept in memory: more than are fetched at a time.
const CACHE_BYTES: usize = 64 << 20;

#[derive(Serialize)]
struct Line<'a> {
    volume: &'a str,
    file: String,
    lsn: Lsn,
    page_size: u32,
    pages: u32,
    /// Whether garbage collection kept the state while it was read.
    lease: String,
}

pub async fn run(args: Export) -> anyhow::Result<Outcome> {
    let name: VolumeName = args.name.parse()?;
    output::check_no_directory(&args.file)?;
    let remote = graft::remote::open(&args.store.store)?;
    let id = catalog::resolve(&*remote, &name).await?;
    let context = || format!("volume `{name}` was not exported");
    let at = args.at.map_or(At::Newest, |moment| moment.0);
    let opened = Volume::open_at(&*remote, id, at, CACHE_BYTES).await;
    let volume = opened.map_err(|error| anyhow!(error.told(&name, at))).with_context(context)?.volume;
    let snapshot = volume.tip();
    // Garbage collection must not take its pages half-way.
    let held = Held::begin(&remote, &snapshot);
    let mut bar = Bar::of(format!("export {name}"), "pages");
    let mut progress = |at: Progress| bar.set(at.pages_done.into(), at.pages.into());
    // Stopped, it takes what it wrote with it, and gives the lease back.
    let exported: anyhow::Result<()> = tokio::select! {
        // First, so that there is no file before it listens.
        biased;
        stopped = output::stop() => stopped.and_then(|()| Err(anyhow!("it was stopped"))),
        exported = export(&*remote, &volume, &snapshot, &args.file, &mut progress) => exported.map_err(Into::into),
    };
    let lease = held.end().await;
    exported.with_context(context)?;
    bar.end();
    let line = Line {
        volume: name.as_str(),
        file: args.file.display().to_string(),
        lsn: snapshot.lsn(),
        page_size: volume.page_size().get(),
        pages: snapshot.pages(),
        lease,
    };
    if args.json {
        output::json(&line)?;
    } else {
        let size = format!("{} of {} bytes", output::count(line.pages as usize, "page"), line.page_size);
        output::line(&format!("{}: {size}, volume `{name}` at lsn {}", line.file, line.lsn))?;
    }
    Ok(Outcome::Done)
}
