//! `graft backup`: ships what another process commits to a SQLite file.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use clap::Args as ClapArgs;
use graft::catalog::CatalogError;
use graft::fetch::FetchError;
use graft::publish::PublishError;
use graft::pull::PullError;
use graft::remote::SharedRemote;
use graft::volume::OpenError;
use graft::{Lsn, VolumeName};
use serde::Serialize;
use sqlsync_layer::transfer::backup::{Backup, Ship};
use sqlsync_layer::transfer::source::Source;
use sqlsync_layer::transfer::{Progress, TransferError};

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
    /// Go on until Ctrl-C, and ship every change; where the store is away, wait for it. [default: ship what
    /// there is now]
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

/// How long a watching backup waits after the store failed: at first, and at most.
const PAUSE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

/// Times that a watching backup begins anew after the store was away because its LSN was lost: its own commit
/// may have arrived late. At any other time another writer was first, which must not be.
const LOST_MAX: u32 = 2;

pub async fn run(args: BackupArgs) -> anyhow::Result<Outcome> {
    let name: VolumeName = args.volume.parse()?;
    output::check_no_directory(&args.file)?;
    let remote = graft::remote::open(&args.store.store)?;
    let context = || format!("`{}` is not backed up to volume `{name}`", args.file.display());
    let mut identity = Identity::of(&args.file).with_context(context)?;
    let (begun, first) = begin(&args, &name, &remote).await.with_context(context)?;
    if let Some(ship) = first {
        print(&ship, args.json)?;
    }
    let mut backup = Some(begun);
    let stop = output::stop();
    tokio::pin!(stop);
    let (mut pause, mut lost, mut stopping) = (PAUSE.0, 0, false);
    loop {
        let now = Identity::of(&args.file).with_context(context)?;
        if now != identity {
            // What is open here is a file that nobody writes any more. It must be gone before another is opened.
            say!("note: `{}` is another file now; reading that", args.file.display());
            (backup, identity) = (None, now);
        }
        let done = match &mut backup {
            Some(backup) => ship(backup, &remote).await,
            None => match begin(&args, &name, &remote).await {
                // Where a volume was to be made, that was the first time.
                Ok((begun, first)) => match first {
                    Some(first) => {
                        backup = Some(begun);
                        Ok(Some(first))
                    }
                    None => ship(backup.insert(begun), &remote).await,
                },
                Err(error) => Err(error),
            },
        };
        let wait = match done {
            Ok(shipped) => {
                if let Some(ship) = shipped {
                    print(&ship, args.json)?;
                }
                if pause > PAUSE.0 {
                    say!("the backup goes on");
                }
                (pause, lost) = (PAUSE.0, 0);
                Duration::from_millis(args.interval)
            }
            Err(error) => {
                lost += u32::from(is_lost(&error));
                let own = is_lost(&error) && pause > PAUSE.0 && lost <= LOST_MAX;
                let again = args.watch && !stopping && (is_passing(&error) || own);
                if !again {
                    return Err(error).with_context(context);
                }
                // What the volume holds is not certain now. It must be gone before the file is opened again.
                backup = None;
                if pause == PAUSE.0 {
                    say!("note: {error}; trying again");
                }
                pause = (pause * 2).min(PAUSE.1);
                pause
            }
        };
        if !args.watch || stopping {
            return Ok(Outcome::Done);
        }
        tokio::select! {
            stopped = &mut stop => {
                stopped?;
                // Once more, for what was committed until now.
                stopping = true;
            }
            () = tokio::time::sleep(wait) => {}
        }
    }
}

/// Which file it is that has a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Identity {
    device: u64,
    file: u64,
}

impl Identity {
    fn of(path: &Path) -> anyhow::Result<Identity> {
        use std::os::unix::fs::MetadataExt as _;
        let found = std::fs::metadata(path).with_context(|| format!("{}", path.display()))?;
        Ok(Identity { device: found.dev(), file: found.ino() })
    }
}

/// Begins a backup, or goes on with one.
async fn begin(
    args: &BackupArgs,
    name: &VolumeName,
    remote: &SharedRemote,
) -> Result<(Backup, Option<Ship>), TransferError> {
    let source = Source::open(&args.file)?;
    let mut bar = Bar::of(format!("read {name}"), "pages");
    let mut progress = |at: Progress| bar.set(at.pages_done.into(), at.pages.into());
    let begun = Backup::start(&**remote, source, name, &mut random, now_ms(), &mut progress).await;
    bar.end();
    begun
}

async fn ship(backup: &mut Backup, remote: &SharedRemote) -> Result<Option<Ship>, TransferError> {
    if !backup.may_have_changed()? {
        return Ok(None);
    }
    backup.ship(&**remote, &mut random, now_ms(), &mut |_| {}).await
}

/// Whether another writer had the LSN.
fn is_lost(error: &TransferError) -> bool {
    matches!(error, TransferError::Publish(PublishError::Rejected { .. }))
}

/// Whether it may pass by itself: the store is away, or the file too busy.
fn is_passing(error: &TransferError) -> bool {
    match error {
        TransferError::Remote(error)
        | TransferError::Catalog(CatalogError::Remote(error))
        | TransferError::Fetch(FetchError::Remote(error))
        | TransferError::Open(
            OpenError::Catalog(CatalogError::Remote(error)) | OpenError::Pull(PullError::Remote(error)),
        )
        | TransferError::Publish(
            PublishError::Unknown { source: error, .. } | PublishError::Upload { source: error, .. },
        ) => error.is_transient(),
        TransferError::Torn { .. } => true,
        _ => false,
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
