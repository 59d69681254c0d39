//! `graft volume`: what a store holds.

use anyhow::anyhow;
use graft::catalog::CatalogError;
use graft::checkpoint::Written;
use graft::format::commit::Head;
use graft::remote::Remote;
use graft::time::{At, Utc};
use graft::volume::{Opened, Options, Volume};
use graft::{CommitId, Lsn, ModuleHash, Seq, VolumeId, VolumeName, catalog};
use rand::Rng as _;
use serde::Serialize;
use serde_json::json;
use sqlsync_layer::ledger::Ledger;
use sqlsync_layer::payload::{Op, Outcome as Applied, Payload};

use crate::args::{Volume as Args, VolumeCommand};
use crate::{Outcome, output};

#[derive(Serialize)]
struct Entry {
    name: String,
    id: VolumeId,
}

#[derive(Serialize)]
struct Info {
    name: String,
    id: VolumeId,
    store: String,
    page_size: u32,
    pages: u32,
    lsn: Lsn,
    /// Of the newest commit.
    time_ms: Option<i64>,
    module: Option<ModuleHash>,
    schema: u32,
    mutations: u64,
    /// The commit of the newest checkpoint.
    checkpoint: Option<Lsn>,
    /// What it was forked from.
    parent: Option<Parent>,
}

#[derive(Serialize)]
struct Parent {
    id: VolumeId,
    lsn: Lsn,
}

#[derive(Serialize)]
struct Commit {
    lsn: Lsn,
    id: CommitId,
    time_ms: i64,
    pages: u32,
    pages_written: u64,
    segments: usize,
    mutations: usize,
    rejected: usize,
    deployed: Option<ModuleHash>,
}

pub async fn run(args: Args) -> anyhow::Result<Outcome> {
    match args.command {
        VolumeCommand::Ls { store, json } => {
            let remote = graft::remote::open(&store.store)?;
            let (mut entries, mut outcome) = (Vec::new(), Outcome::Done);
            for name in catalog::list(&*remote).await? {
                match catalog::resolve(&*remote, &name).await {
                    Ok(id) => entries.push(Entry { name: name.to_string(), id }),
                    // It was removed since it was listed.
                    Err(CatalogError::NoSuchVolume { .. }) => {}
                    // The others are there all the same.
                    Err(error @ CatalogError::Damaged(_)) => {
                        say!("error: {error}");
                        outcome = Outcome::Damaged;
                    }
                    Err(error) => return Err(error.into()),
                }
            }
            if json {
                output::json(&json!({ "volumes": entries }))?;
            } else if entries.is_empty() && outcome == Outcome::Done {
                output::line(&format!(
                    "no volumes in {}; `graft import` and `graft deploy` make one",
                    remote.url()
                ))?;
            } else {
                let rows: Vec<_> = entries.iter().map(|e| vec![json!(e.name), json!(e.id)]).collect();
                output::line(&output::table(&["name".into(), "id".into()], &rows))?;
            }
            return Ok(outcome);
        }
        VolumeCommand::Info { name, store, json } => {
            let remote = graft::remote::open(&store.store)?;
            let info = info(&*remote, &name.parse()?).await?;
            if json {
                output::json(&info)?;
            } else {
                let parent =
                    info.parent.as_ref().map(|parent| format!("{} at lsn {}", parent.id, parent.lsn));
                let module = info.module.map_or("none".into(), |module| module.to_string());
                for (what, value) in [
                    ("name", info.name),
                    ("id", info.id.to_string()),
                    ("store", info.store),
                    ("size", format!("{} pages of {} bytes", info.pages, info.page_size)),
                    ("lsn", info.lsn.to_string()),
                    ("changed", info.time_ms.map_or("never".into(), |ms| Utc(ms).to_string())),
                    ("module", module),
                    ("schema", info.schema.to_string()),
                    ("mutations", info.mutations.to_string()),
                    ("checkpoint", info.checkpoint.map_or("none".into(), |lsn| format!("lsn {lsn}"))),
                    ("fork of", parent.unwrap_or_else(|| "none".into())),
                ] {
                    output::line(&format!("{what:<10} {value}"))?;
                }
            }
        }
        VolumeCommand::Fork { name, from, at, store, json } => {
            let at = at.map_or(At::Newest, |moment| moment.0);
            fork(&name, &from, at, &store.store, json).await?;
        }
        VolumeCommand::Restore { name, from, at, store, json } => {
            fork(&name, &from, at.0, &store.store, json).await?;
        }
        VolumeCommand::Rm { name, store, json } => {
            let remote = graft::remote::open(&store.store)?;
            #[allow(clippy::disallowed_methods, reason = "a driver: it gives removals their random numbers")]
            let own = rand::rng().random();
            let objects = catalog::remove_noted(&*remote, &name.parse()?, own).await?;
            if json {
                output::json(&json!({ "removed": name, "objects": objects }))?;
            } else {
                output::line(&format!(
                    "volume `{name}` is removed, with {}",
                    output::count(objects as usize, "object")
                ))?;
            }
        }
        VolumeCommand::Checkpoint { name, store, json } => {
            let remote = graft::remote::open(&store.store)?;
            let (_, opened) = open(&*remote, &name.parse()?).await?;
            let ledger = Ledger::open(&opened.start, &opened.heads)?;
            let (volume, base) = (&opened.volume, opened.volume.base());
            let written = graft::checkpoint::write(&*remote, volume, &base, ledger.encode()).await?;
            let (outcome, seq, lsn) = match written {
                Written::Stored { seq, lsn } => ("stored", seq, Some(lsn)),
                Written::Lost { seq } => ("lost", seq, None),
                Written::Current { seq, lsn } => ("current", seq, Some(lsn)),
            };
            if json {
                output::json(&json!({ "outcome": outcome, "seq": seq, "lsn": lsn }))?;
            } else {
                output::line(&match written {
                    Written::Stored { seq, lsn } => format!("checkpoint {seq} of lsn {lsn} is stored"),
                    Written::Lost { seq } => {
                        format!("checkpoint {seq} was made by another writer at the same time")
                    }
                    Written::Current { seq: Seq::ZERO, .. } => "there are no commits yet".into(),
                    Written::Current { seq, lsn } => {
                        format!("checkpoint {seq} of lsn {lsn} has everything already")
                    }
                })?;
            }
        }
        VolumeCommand::Log { name, store, limit, json } => {
            let remote = graft::remote::open(&store.store)?;
            let id = catalog::resolve(&*remote, &name.parse()?).await?;
            let heads = graft::history::log(&*remote, id, limit.unwrap_or(usize::MAX)).await?;
            let commits: Vec<Commit> = heads.iter().map(commit).collect::<anyhow::Result<_>>()?;
            if json {
                for commit in &commits {
                    output::json(commit)?;
                }
            } else {
                output::line(&log_table(&commits))?;
            }
        }
        VolumeCommand::Compact(args) => return crate::compact::run(args).await,
        VolumeCommand::Gc(args) => return crate::gc::run(args).await,
        VolumeCommand::Verify(args) => return crate::verify::run(args).await,
        VolumeCommand::Hydrate(args) => return crate::hydrate::run(args).await,
        VolumeCommand::Put(args) => return crate::files::run_put(args).await,
        VolumeCommand::Get(args) => return crate::files::run_get(args).await,
    }
    Ok(Outcome::Done)
}

#[allow(clippy::disallowed_methods, reason = "a driver: it gives volumes their random ids")]
async fn fork(name: &str, from: &str, at: At, store: &str, json: bool) -> anyhow::Result<()> {
    let (name, from): (VolumeName, VolumeName) = (name.parse()?, from.parse()?);
    let remote = graft::remote::open(store)?;
    let parent = catalog::resolve(&*remote, &from).await?;
    let id = VolumeId(rand::rng().random());
    let made = graft::fork::create_once(&*remote, parent, at, id, &name).await;
    let lsn = made.map_err(|error| anyhow!(error.told(&from, at)))?.lsn;
    if json {
        output::json(&json!({ "name": name.as_str(), "id": id, "from": from.as_str(), "lsn": lsn }))?;
    } else {
        output::line(&format!("volume `{name}` begins as `{from}` was at lsn {lsn}"))?;
    }
    Ok(())
}

async fn open(remote: &dyn Remote, name: &VolumeName) -> anyhow::Result<(VolumeId, Opened)> {
    let id = catalog::resolve(remote, name).await?;
    Ok((id, Volume::open(remote, id, Options::default()).await?))
}

async fn info(remote: &dyn Remote, name: &VolumeName) -> anyhow::Result<Info> {
    let (id, opened) = open(remote, name).await?;
    let ledger = Ledger::open(&opened.start, &opened.heads)?;
    let status = opened.volume.status();
    Ok(Info {
        name: name.to_string(),
        id,
        store: remote.url(),
        page_size: opened.volume.page_size().get(),
        pages: status.pages,
        lsn: status.lsn,
        time_ms: (status.lsn > Lsn::ZERO).then(|| opened.volume.base().time_ms()),
        module: ledger.module(),
        schema: ledger.schema(),
        mutations: ledger.mutations(),
        checkpoint: opened.start.checkpoint.as_ref().map(|root| root.lsn),
        parent: catalog::meta(remote, id).await?.parent.map(|(id, lsn)| Parent { id, lsn }),
    })
}

fn commit(head: &Head) -> anyhow::Result<Commit> {
    let (mut mutations, mut rejected, mut deployed) = (0, 0, None);
    for record in Payload::decode(head)?.records {
        match (record.op, record.outcome) {
            (Op::Mutation(_), Applied::Applied) => mutations += 1,
            (Op::Deploy { module, .. }, Applied::Applied) => deployed = Some(module),
            (Op::Mutation(_) | Op::Deploy { .. }, Applied::Rejected(_)) => rejected += 1,
        }
    }
    Ok(Commit {
        lsn: head.lsn,
        id: head.id,
        time_ms: head.time_ms,
        pages: head.pages,
        pages_written: head.set.len(),
        segments: head.segments.len(),
        mutations,
        rejected,
        deployed,
    })
}

fn log_table(commits: &[Commit]) -> String {
    let columns = ["lsn", "time", "pages", "written", "what"].map(String::from);
    let rows: Vec<_> = commits
        .iter()
        .map(|c| {
            let mut what = Vec::new();
            if let Some(module) = c.deployed {
                what.push(format!("deploy {}", &module.to_string()[..12]));
            }
            if c.mutations > 0 {
                what.push(output::count(c.mutations, "mutation"));
            }
            if c.rejected > 0 {
                what.push(format!("{} rejected", c.rejected));
            }
            if what.is_empty() {
                what.push("SQL".into());
            }
            vec![
                json!(c.lsn),
                json!(Utc(c.time_ms).to_string()),
                json!(c.pages),
                json!(c.pages_written),
                json!(what.join(", ")),
            ]
        })
        .collect();
    output::table(&columns, &rows)
}
