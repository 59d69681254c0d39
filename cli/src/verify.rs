//! `graft volume verify`

use std::sync::Mutex;

use anyhow::Context as _;
use clap::Args as ClapArgs;
use graft::verify::{self, Step};
use graft::{Lsn, VolumeName, catalog};
use serde::Serialize;

use crate::args::Store;
use crate::progress::{Bar, size};
use crate::{Outcome, output};

/// `graft volume verify`
#[derive(Debug, ClapArgs)]
pub struct Verify {
    /// The volume's name.
    pub name: String,
    #[command(flatten)]
    pub store: Store,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

#[derive(Serialize)]
struct Line<'a> {
    name: &'a str,
    sound: bool,
    findings: Vec<Finding<'a>>,
    lsn: Lsn,
    from: Lsn,
    commits: u64,
    checkpoints: u64,
    frames: u64,
    pages: u64,
    bytes: u64,
    orphans: &'a [String],
}

#[derive(Serialize)]
struct Finding<'a> {
    key: &'a str,
    what: &'a str,
}

pub async fn run(args: Verify) -> anyhow::Result<Outcome> {
    let name: VolumeName = args.name.parse()?;
    let remote = graft::remote::open(&args.store.store)?;
    let id = catalog::resolve(&*remote, &name).await?;
    let bars = Mutex::new((
        Bar::of(format!("verify {name}, the log"), "commits"),
        Bar::of(format!("verify {name}, the pages"), "frames"),
    ));
    let progress = |step| {
        if let Ok(mut bars) = bars.lock() {
            match step {
                Step::Commits(done, total) => bars.0.set(done, total),
                Step::Frames(done, total) => bars.1.set(done, total),
            }
        }
    };
    let verified = verify::verify(&*remote, id, &progress).await;
    if let Ok((log, pages)) = bars.into_inner() {
        log.end();
        pages.end();
    }
    let report = verified.with_context(|| format!("volume `{name}` could not be verified"))?;
    let outcome = if report.is_sound() { Outcome::Done } else { Outcome::Damaged };
    if args.json {
        output::json(&Line {
            name: name.as_str(),
            sound: report.is_sound(),
            findings: report
                .findings
                .iter()
                .map(|finding| Finding { key: &finding.key, what: &finding.what })
                .collect(),
            lsn: report.lsn,
            from: report.from,
            commits: report.commits,
            checkpoints: report.checkpoints,
            frames: report.frames,
            pages: report.pages,
            bytes: report.bytes,
            orphans: &report.orphans,
        })?;
        return Ok(outcome);
    }
    for finding in &report.findings {
        output::line(&format!("{}: {}", output::printable(&finding.key), output::printable(&finding.what)))?;
    }
    for orphan in &report.orphans {
        output::line(&format!("{}: nothing names it; no damage, gc takes it", output::printable(orphan)))?;
    }
    let found = match report.findings.len() {
        0 => "is sound".to_owned(),
        n => format!("is damaged: {}", output::count(n, "finding")),
    };
    output::line(&format!(
        "volume `{name}` {found}. Read: {} from lsn {} to {}, {}, {} in {} ({})",
        output::count(report.commits as usize, "commit"),
        report.from,
        report.lsn,
        output::count(report.checkpoints as usize, "checkpoint"),
        output::count(report.pages as usize, "page"),
        output::count(report.frames as usize, "frame"),
        size(report.bytes)
    ))?;
    Ok(outcome)
}
