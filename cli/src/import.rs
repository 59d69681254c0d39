//! `graft import`: a volume of a SQLite file.

use std::path::PathBuf;

use anyhow::{Context as _, bail};
use clap::Args as ClapArgs;
use graft::{Lsn, PageSize, VolumeId, VolumeName};
use rand::Rng as _;
use serde::Serialize;
use sqlsync_layer::transfer::import;

use crate::args::Store;
use crate::progress::Bar;
use crate::{Outcome, output};

/// `graft import`
#[derive(Debug, ClapArgs)]
pub struct Import {
    /// The SQLite file. It may be in use.
    pub file: PathBuf,
    /// The new volume's name.
    #[arg(long, env = "GRAFT_VOLUME", value_name = "NAME")]
    pub volume: String,
    #[command(flatten)]
    pub store: Store,
    /// Bytes in each page of the volume: a power of two from 512 to 65536. Another size than the file's
    /// rebuilds the database in a temporary file first. [default: the file's]
    #[arg(long, value_name = "BYTES")]
    pub page_size: Option<u32>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

#[derive(Serialize)]
struct Line<'a> {
    volume: &'a str,
    id: VolumeId,
    lsn: Lsn,
    page_size: u32,
    pages: u32,
    pages_written: u32,
}

pub async fn run(args: Import) -> anyhow::Result<Outcome> {
    let name: VolumeName = args.volume.parse()?;
    let page_size = match args.page_size {
        Some(bytes) => match PageSize::new(bytes) {
            Some(size) => Some(size),
            None => bail!("--page-size {bytes}: give a power of two from 512 to 65536"),
        },
        None => None,
    };
    output::check_no_directory(&args.file)?;
    let remote = graft::remote::open(&args.store.store)?;
    let mut bar = Bar::of(format!("import {name}"), "pages");
    let imported = import(&*remote, &args.file, &name, page_size, &mut random, now_ms(), &mut |at| {
        bar.set(at.pages_done.into(), at.pages.into())
    })
    .await
    .with_context(|| format!("`{}` was not imported", args.file.display()))?;
    bar.end();
    let line = Line {
        volume: name.as_str(),
        id: imported.volume,
        lsn: imported.lsn,
        page_size: imported.page_size.get(),
        pages: imported.pages,
        pages_written: imported.pages_written,
    };
    if args.json {
        output::json(&line)?;
    } else {
        let size = format!("{} of {} bytes", output::count(line.pages as usize, "page"), line.page_size);
        output::line(&format!("volume `{name}`: {size}, lsn {}", line.lsn))?;
    }
    Ok(Outcome::Done)
}

/// Fresh random ids.
pub fn random() -> [u8; 16] {
    rand::rng().random()
}

#[allow(clippy::disallowed_methods, reason = "a driver: it gives commits their time")]
pub fn now_ms() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}
