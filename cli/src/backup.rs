//! `graft backup`: ships what another process commits to a SQLite file.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args as ClapArgs;
use graft::remote::SharedRemote;
use graft::{Lsn, VolumeName};
use serde::Serialize;
use sqlsync_layer::transfer::Progress;
use sqlsync_layer::transfer::backup::{Backup, Ship};
use sqlsync_layer::transfer::source::Source;

use crate::args::Store;
use crate::import::{now_ms, random};
use crate::progress::Bar;
use crate::{Outcome, output};

/// `graft backup`
#[derive(Debug, ClapArgs)]
pub struct BackupArgs {
    /// The SQLite file, in WAL mode. Other processes may write it.
    pub file: PathBuf,
    /// The volume that takes the backup: a new one, or one that this file was backed up to before.
    #[arg(long, env = "GRAFT_VOLUME", value_name = "NAME")]
    pub volume: String,
    #[command(flatten)]
    pub store: Store,
    /// Go on until Ctrl-C, and ship every change. [default: ship what there is now]
    #[arg(long)]
    pub watch: bool,
    /// Milliseconds between looks at the file, with --watch.
    #[arg(long, value_name = "MS", default_value_t = 100)]
    pub interval: u64,
    /// Print one JSON object for each commit.
    #[arg(long)]
    pub json: bool,
}

#[derive(Serialize)]
struct Line {
    lsn: Lsn,
    time_ms: i64,
    pages: u32,
    pages_written: u64,
}

pub async fn run(args: BackupArgs) -> anyhow::Result<Outcome> {
    let name: VolumeName = args.volume.parse()?;
    let remote = graft::remote::open(&args.store.store)?;
    let context = || format!("`{}` is not backed up to volume `{name}`", args.file.display());
    let source = Source::open(&args.file).with_context(context)?;
    let mut bar = Bar::of(format!("read {name}"), "pages");
    let mut progress = |at: Progress| bar.set(at.pages_done.into(), at.pages.into());
    let (mut backup, first) = Backup::start(&*remote, source, &name, &mut random, now_ms(), &mut progress)
        .await
        .with_context(context)?;
    bar.end();
    if let Some(ship) = first {
        print(&ship, args.json)?;
    }
    let stop = stop();
    tokio::pin!(stop);
    loop {
        ship(&mut backup, &remote, args.json).await.with_context(context)?;
        if !args.watch {
            return Ok(Outcome::Done);
        }
        tokio::select! {
            stopped = &mut stop => {
                stopped?;
                // What was committed until now.
                ship(&mut backup, &remote, args.json).await.with_context(context)?;
                return Ok(Outcome::Done);
            }
            () = tokio::time::sleep(Duration::from_millis(args.interval)) => {}
        }
    }
}

async fn ship(backup: &mut Backup, remote: &SharedRemote, json: bool) -> anyhow::Result<()> {
    if !backup.may_have_changed()? {
        return Ok(());
    }
    match backup.ship(&**remote, &mut random, now_ms(), &mut |_| {}).await? {
        Some(ship) => print(&ship, json),
        None => Ok(()),
    }
}

fn print(ship: &Ship, json: bool) -> anyhow::Result<()> {
    let line =
        Line { lsn: ship.lsn, time_ms: ship.time_ms, pages: ship.pages, pages_written: ship.pages_written };
    if json {
        output::json(&line)
    } else {
        let written = output::count(usize::try_from(line.pages_written)?, "page");
        Ok(output::line(&format!("lsn {}: {written} of {}", line.lsn, line.pages))?)
    }
}

/// Resolves at Ctrl-C or SIGTERM.
async fn stop() -> anyhow::Result<()> {
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::select! {
        interrupted = tokio::signal::ctrl_c() => Ok(interrupted?),
        _ = terminate.recv() => Ok(()),
    }
}
