//! `graft volume compact`

use anyhow::Context as _;
use clap::Args as ClapArgs;
use graft::compact::Scope;
use graft::{CommitId, Lsn, Seq, VolumeName, catalog};
use rand::Rng as _;
use serde::Serialize;
use sqlsync_layer::upkeep::{self, Compacted, Request};
use std::sync::Mutex;

use crate::args::Store;
use crate::progress::{Bar, size};
use crate::{Outcome, output};

/// `graft volume compact`
#[derive(Debug, ClapArgs)]
pub struct Compact {
    /// The volume's name.
    pub name: String,
    #[command(flatten)]
    pub store: Store,
    /// Rewrite every page. [default: those that lie in commits, or in pieces mostly out of date]
    #[arg(long)]
    pub all: bool,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

#[derive(Serialize)]
struct Line<'a> {
    name: &'a str,
    outcome: &'static str,
    seq: Option<Seq>,
    lsn: Option<Lsn>,
    pages: u64,
    segments: u32,
    bytes: u64,
}

#[allow(clippy::disallowed_methods, reason = "a driver: it gives segments their random names")]
pub async fn run(args: Compact) -> anyhow::Result<Outcome> {
    let name: VolumeName = args.name.parse()?;
    let remote = graft::remote::open(&args.store.store)?;
    let id = catalog::resolve(&*remote, &name).await?;
    let scope = if args.all { Scope::All } else { Scope::Sparse };
    let bar = Mutex::new(Bar::of(format!("compact {name}"), "pages"));
    let progress = |done, total| {
        if let Ok(mut bar) = bar.lock() {
            bar.set(done, total);
        }
    };
    let request = Request { scope, policy: None, id: CommitId(rand::rng().random()) };
    let compacted = upkeep::compact(&*remote, id, request, &progress).await;
    if let Ok(bar) = bar.into_inner() {
        bar.end();
    }
    let compacted = compacted.with_context(|| format!("volume `{name}` was not compacted"))?;
    let line = match compacted {
        Compacted::NotDue(_) => Line {
            name: name.as_str(),
            outcome: "current",
            seq: None,
            lsn: None,
            pages: 0,
            segments: 0,
            bytes: 0,
        },
        Compacted::Stored { seq, lsn, pages, segments, bytes } => Line {
            name: name.as_str(),
            outcome: "stored",
            seq: Some(seq),
            lsn: Some(lsn),
            pages,
            segments,
            bytes,
        },
    };
    if args.json {
        output::json(&line)?;
        return Ok(Outcome::Done);
    }
    output::line(&match (line.seq, line.lsn) {
        (Some(seq), Some(lsn)) => format!(
            "{} moved into {} ({}), checkpoint {seq} of lsn {lsn}",
            output::count(line.pages as usize, "page"),
            output::count(line.segments as usize, "segment"),
            size(line.bytes)
        ),
        (_, _) => format!("volume `{name}` lies well already; --all rewrites it all the same"),
    })?;
    Ok(Outcome::Done)
}
