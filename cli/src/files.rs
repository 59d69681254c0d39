//! `graft volume put` and `graft volume get`: plain files in volumes.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use graft::catalog::CatalogError;
use graft::fetch::Fetcher;
use graft::file::{FileView, GetProgress, PutProgress, get, put};
use graft::format::meta::Meta;
use graft::publish::{Prepared, PublishError, publish};
use graft::remote::SharedRemote;
use graft::store::DiskFile;
use graft::volume::{Options, Volume};
use graft::{CommitId, Lsn, PageSize, VolumeId, VolumeName, catalog};
use rand::Rng as _;
use serde::Serialize;

use crate::args::{VolumeGet, VolumePut};
use crate::progress::{Bar, size};
use crate::{Outcome, output};

/// Tries of a commit whose outcome is unknown, and of a file that another writer was faster with.
const TRIES_MAX: u32 = 5;

#[derive(Serialize)]
struct PutLine {
    name: String,
    id: VolumeId,
    lsn: Lsn,
    bytes: u64,
    pages_changed: usize,
    bytes_stored: u64,
    created: bool,
}

#[derive(Serialize)]
struct GetLine {
    name: String,
    id: VolumeId,
    lsn: Lsn,
    bytes: u64,
    bytes_written: u64,
    requests: u64,
    bytes_fetched: u64,
}

/// Pages are in memory for as long as they are on their way.
fn options() -> Options {
    Options { locals: None, ..Options::default() }
}

pub async fn run_put(args: VolumePut) -> anyhow::Result<Outcome> {
    let name: VolumeName = args.name.parse()?;
    let shown = args.file.display();
    let remote = graft::remote::open(&args.store.store)?;
    let (id, created) = find_or_create(&remote, &name, args.page_size).await?;
    let volume = Volume::open(&*remote, id, options()).await?.volume;
    if let Some(asked) = args.page_size
        && asked != volume.page_size().get()
    {
        bail!(
            "volume `{name}` has pages of {} bytes for good; leave --page-size out",
            volume.page_size().get()
        );
    }
    let fetcher = Fetcher::new(remote.clone());
    let mut tries = 0;
    loop {
        let mut source = File::open(&args.file).with_context(|| format!("`{shown}`"))?;
        let found = source.metadata().with_context(|| format!("`{shown}`"))?;
        if !found.is_file() {
            bail!("`{shown}` is no plain file; give one");
        }
        let mut bar = Bar::new(format!("put {name}"));
        let mut report = |progress: PutProgress| bar.set(progress.done, progress.bytes);
        let commit = CommitId(rand::rng().random());
        let stored = put(&fetcher, &volume, found.len(), &mut source, commit, now_ms(), &mut report).await;
        bar.end();
        let stored = stored.with_context(|| format!("volume `{name}`, `{shown}`"))?;
        let lsn = match &stored.prepared {
            None => volume.status().lsn,
            Some(prepared) => match commit_it(&remote, prepared).await {
                Ok(lsn) => lsn,
                Err(PublishError::Rejected { .. }) if tries < TRIES_MAX => {
                    tries += 1;
                    say!("note: another writer committed to `{name}` meanwhile; storing the file on top");
                    let pulled = volume.pull(&*remote).await?;
                    volume.absorb(pulled)?;
                    continue;
                }
                Err(error) => return Err(error).with_context(|| format!("volume `{name}`")),
            },
        };
        let line = PutLine {
            name: name.to_string(),
            id,
            lsn,
            bytes: found.len(),
            pages_changed: stored.changed,
            bytes_stored: stored.progress.stored,
            created,
        };
        if args.json {
            output::json(&line)?;
        } else {
            let what = output::count(line.pages_changed, "page");
            let (bytes, stored) = (size(line.bytes), size(line.bytes_stored));
            output::line(&format!("{name}: {bytes} at lsn {lsn}, {what} changed, {stored} stored"))?;
        }
        return Ok(Outcome::Done);
    }
}

async fn find_or_create(
    remote: &SharedRemote,
    name: &VolumeName,
    page_size: Option<u32>,
) -> anyhow::Result<(VolumeId, bool)> {
    match catalog::resolve(&**remote, name).await {
        Ok(id) => return Ok((id, false)),
        Err(CatalogError::NoSuchVolume { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    let page_size = page_size.unwrap_or(PageSize::DEFAULT.get());
    let page_size = PageSize::new(page_size)
        .with_context(|| format!("no page has {page_size} bytes; give a power of two from 512 to 65536"))?;
    let id = VolumeId(rand::rng().random());
    match catalog::create(&**remote, name, id, Meta { page_size, parent: None }).await {
        Ok(()) => Ok((id, true)),
        Err(CatalogError::Exists { found, .. }) => Ok((found, false)),
        Err(error) => Err(error.into()),
    }
}

/// Publishes until the outcome is known: the same bytes each time.
async fn commit_it(remote: &SharedRemote, prepared: &Prepared) -> Result<Lsn, PublishError> {
    let mut tries = 0;
    loop {
        match publish(&**remote, prepared).await {
            Ok(published) => return Ok(published.lsn),
            Err(PublishError::Unknown { .. } | PublishError::Upload { .. }) if tries < TRIES_MAX => {
                tries += 1;
                tokio::time::sleep(Duration::from_millis(100 << tries)).await;
            }
            Err(error) => return Err(error),
        }
    }
}

pub async fn run_get(args: VolumeGet) -> anyhow::Result<Outcome> {
    let name: VolumeName = args.name.parse()?;
    output::check_no_directory(&args.file)?;
    let remote = graft::remote::open(&args.store.store)?;
    let id = catalog::resolve(&*remote, &name).await?;
    let volume = Volume::open(&*remote, id, options()).await?.volume;
    let fetcher = Fetcher::new(remote);
    let file =
        FileView::open(&fetcher, &volume, volume.tip()).await.with_context(|| format!("volume `{name}`"))?;
    let part = part_of(&args.file)?;
    let target = DiskFile::open(&part)?;
    let mut bar = Bar::new(format!("get {name}"));
    let mut report = |progress: GetProgress| bar.set(progress.done, progress.bytes);
    let mut tries = 0;
    let mut written = 0;
    let done = loop {
        let mut now = 0;
        let got = get(&fetcher, &file, &target, &mut |progress| {
            now = progress.written;
            report(progress);
        })
        .await;
        written += now;
        match got {
            Ok(done) => break done,
            Err(graft::file::FileError::Fetch(graft::fetch::FetchError::Remote(error)))
                if error.is_transient() && tries < TRIES_MAX =>
            {
                tries += 1;
                tracing::warn!(%error, tries, "trying again");
                tokio::time::sleep(Duration::from_millis(100 << tries)).await;
            }
            Err(error) => {
                return Err(error).with_context(|| {
                    format!(
                        "volume `{name}`: what is here is kept in `{}`; get it again to go on",
                        part.display()
                    )
                });
            }
        }
    };
    bar.end();
    target.sync()?;
    std::fs::rename(&part, &args.file)
        .with_context(|| format!("the file is whole in `{}` and could not be renamed", part.display()))?;
    let metrics = volume.metrics();
    let line = GetLine {
        name: name.to_string(),
        id,
        lsn: volume.status().lsn,
        bytes: done.bytes,
        bytes_written: written,
        requests: metrics.requests,
        bytes_fetched: metrics.bytes,
    };
    if args.json {
        output::json(&line)?;
    } else {
        let (bytes, fetched) = (size(line.bytes), size(line.bytes_fetched));
        output::line(&format!("{}: {bytes} of lsn {}, {fetched} fetched", args.file.display(), line.lsn))?;
    }
    Ok(Outcome::Done)
}

/// Where a file is until it is whole.
fn part_of(file: &Path) -> anyhow::Result<PathBuf> {
    let Some(name) = file.file_name() else {
        bail!("`{}` names no file; give one", file.display());
    };
    let mut part = name.to_owned();
    part.push(".part");
    Ok(file.with_file_name(part))
}

#[allow(clippy::disallowed_methods, reason = "a driver: it gives commits their time")]
fn now_ms() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}
