//! `graft export`: a SQLite file of a volume.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args as ClapArgs;
use graft::volume::{Options, Volume};
use graft::{Lsn, VolumeName, catalog};
use serde::Serialize;
use sqlsync_layer::transfer::export::{At, export, open_at};

use crate::args::Store;
use crate::import::Shown;
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
    /// The volume as it was after this commit. [default: the newest]
    #[arg(long, value_name = "LSN")]
    pub at: Option<u64>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

#[derive(Serialize)]
struct Line<'a> {
    volume: &'a str,
    file: String,
    lsn: Lsn,
    page_size: u32,
    pages: u32,
}

pub async fn run(args: Export) -> anyhow::Result<Outcome> {
    let name: VolumeName = args.name.parse()?;
    let remote = graft::remote::open(&args.store.store)?;
    let id = catalog::resolve(&*remote, &name).await?;
    let context = || format!("volume `{name}` was not exported");
    let volume = match args.at {
        Some(lsn) => open_at(&*remote, id, At::Lsn(Lsn(lsn))).await.with_context(context)?,
        None => Volume::open(&*remote, id, Options::default()).await.with_context(context)?.volume,
    };
    let snapshot = volume.tip();
    let mut shown = Shown::new("exported");
    export(&*remote, &volume, &snapshot, &args.file, &mut |at| shown.progress(at))
        .await
        .with_context(context)?;
    shown.end();
    let line = Line {
        volume: name.as_str(),
        file: args.file.display().to_string(),
        lsn: snapshot.lsn(),
        page_size: volume.page_size().get(),
        pages: snapshot.pages(),
    };
    if args.json {
        output::json(&line)?;
    } else {
        let size = format!("{} of {} bytes", output::count(line.pages as usize, "page"), line.page_size);
        output::line(&format!("{}: {size}, volume `{name}` at lsn {}", line.file, line.lsn))?;
    }
    Ok(Outcome::Done)
}
