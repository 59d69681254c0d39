//! `graft volume hydrate`: everything of a volume in a data directory, once or from then on.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use graft::fetch::{FetchError, Fetcher};
use graft::hydrate::{HydrateError, Progress, follow, hydrate};
use graft::pull::PullError;
use graft::store::{FjallStore, SharedStore};
use graft::volume::{Options, Volume};
use graft::{Lsn, PageSet, VolumeId, VolumeName, catalog};
use serde::Serialize;

use crate::args::Hydrate;
use crate::progress::{Bar, size};
use crate::{Outcome, output};

/// Less has room for no page of some volumes; what they fetched would be nowhere.
const DISK_BYTES_MIN: u64 = 1 << 20;

/// Tries of one step before it is given up.
const TRIES_MAX: u32 = 6;

#[derive(Serialize)]
struct Line {
    name: String,
    id: VolumeId,
    lsn: Lsn,
    pages: u32,
    /// Pages fetched for this line.
    fetched: u64,
    /// Since the command began.
    requests: u64,
    bytes: u64,
}

pub async fn run(args: Hydrate) -> anyhow::Result<Outcome> {
    let name: VolumeName = args.name.parse()?;
    if args.disk_bytes < DISK_BYTES_MIN {
        bail!(
            "--disk-bytes {}: give {DISK_BYTES_MIN} or more, or there is no room for pages",
            args.disk_bytes
        );
    }
    let remote = graft::remote::open(&args.store.store)?;
    let id = catalog::resolve(&*remote, &name).await?;
    let store: SharedStore = Arc::new(FjallStore::open(Path::new(&args.data))?);
    let options = Options { store: Some(store), disk_bytes: args.disk_bytes, ..Options::default() };
    let volume = Volume::open(&*remote, id, options).await?.volume;
    if volume.status().ahead > 0 {
        say!("note: this replica holds local commits; it stays at its base until they are pushed");
    }
    let fetcher = Fetcher::new(remote);
    let line = |fetched| {
        let (status, metrics) = (volume.status(), volume.metrics());
        Line {
            name: name.to_string(),
            id,
            lsn: status.lsn,
            pages: status.pages,
            fetched,
            requests: metrics.requests,
            bytes: metrics.bytes,
        }
    };

    let mut bar = Bar::new(format!("hydrate {name}"));
    let page = u64::from(volume.page_size().get());
    let mut report = |progress: Progress| {
        bar.set(u64::from(progress.done) * page, u64::from(progress.pages) * page);
    };
    let mut tries = 0;
    let mut fetched = 0;
    loop {
        let mut now = 0;
        let done = hydrate(&fetcher, &volume, &volume.base(), &mut |progress| {
            now = progress.fetched;
            report(progress);
        })
        .await;
        fetched += now;
        match done {
            Ok(_) => break,
            Err(error) => wait(&error, &mut tries).await.with_context(|| format!("volume `{name}`"))?,
        }
    }
    bar.end();
    print(&line(fetched), args.json)?;
    if !args.follow {
        return Ok(Outcome::Done);
    }

    let mut missed = PageSet::new();
    let mut tries = 0;
    loop {
        tokio::select! {
            stop = tokio::signal::ctrl_c() => {
                stop.context("waiting for Ctrl-C")?;
                return Ok(Outcome::Done);
            }
            () = tokio::time::sleep(Duration::from_secs_f64(args.interval)) => {}
        }
        let mut fetched = 0;
        match follow(&fetcher, &volume, &mut missed, &mut |progress| fetched = progress.fetched).await {
            Ok(graft) if graft.is_empty() && fetched == 0 => tries = 0,
            Ok(_) => {
                tries = 0;
                print(&line(fetched), args.json)?;
            }
            Err(error) => wait(&error, &mut tries).await.with_context(|| format!("volume `{name}`"))?,
        }
    }
}

/// Waits before the next try, or says that there will be none.
async fn wait(error: &HydrateError, tries: &mut u32) -> anyhow::Result<()> {
    let transient = match error {
        HydrateError::Fetch(FetchError::Remote(error)) | HydrateError::Pull(PullError::Remote(error)) => {
            error.is_transient()
        }
        _ => false,
    };
    *tries += 1;
    if !transient || *tries >= TRIES_MAX {
        bail!("{error}");
    }
    tracing::warn!(%error, tries, "trying again");
    tokio::time::sleep(Duration::from_millis(100 << *tries)).await;
    Ok(())
}

fn print(line: &Line, json: bool) -> anyhow::Result<()> {
    if json {
        return output::json(line);
    }
    let text = format!(
        "{} is here at lsn {}: {} pages, {} fetched ({} requests, {})",
        line.name,
        line.lsn,
        line.pages,
        line.fetched,
        line.requests,
        size(line.bytes)
    );
    Ok(output::line(&text)?)
}
