//! `graft volume verify`

use std::sync::Mutex;

use anyhow::Context as _;
use clap::Args as ClapArgs;
use graft::verify::{self, Report, Step};
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
                Step::Commits(_, 0) => {}
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
    output::line(&format!("volume `{name}` {found}. Read: {}", what_was_read(&report)))?;
    Ok(outcome)
}

/// What there was to read, and nothing of what there was not.
fn what_was_read(report: &Report) -> String {
    let mut parts = vec![match report.commits {
        0 if report.lsn == Lsn::ZERO && report.is_sound() => {
            "no commit, because there is none yet".to_owned()
        }
        0 if report.lsn == Lsn::ZERO => "no commit".to_owned(),
        0 => format!("the state of lsn {}", report.lsn),
        1 => format!("the commit of lsn {}", report.lsn),
        n => format!("{n} commits, lsn {} to {}", report.from.next(), report.lsn),
    }];
    if report.checkpoints > 0 {
        parts.push(output::count(report.checkpoints as usize, "checkpoint"));
    }
    if report.frames > 0 {
        let pages = output::count(report.pages as usize, "page");
        let frames = output::count(report.frames as usize, "frame");
        parts.push(format!("{pages} in {frames} ({})", size(report.bytes)));
    }
    parts.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_read_is_said_plainly() {
        let of = |from, lsn, commits, checkpoints| Report {
            from: Lsn(from),
            lsn: Lsn(lsn),
            commits,
            checkpoints,
            frames: 2,
            pages: 70,
            bytes: 2000,
            ..Report::default()
        };
        for (report, text) in [
            (Report::default(), "no commit, because there is none yet"),
            (of(31, 31, 0, 1), "the state of lsn 31; 1 checkpoint; 70 pages in 2 frames (2.0 kB)"),
            (of(5, 5, 0, 0), "the state of lsn 5; 70 pages in 2 frames (2.0 kB)"),
            (of(4, 5, 1, 0), "the commit of lsn 5; 70 pages in 2 frames (2.0 kB)"),
            (of(0, 31, 31, 2), "31 commits, lsn 1 to 31; 2 checkpoints; 70 pages in 2 frames (2.0 kB)"),
        ] {
            assert_eq!(what_was_read(&report), text);
        }
    }
}
