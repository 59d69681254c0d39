//! `graft volume gc`

use std::sync::Mutex;

use anyhow::Context as _;
use clap::Args as ClapArgs;
use graft::gc::{self, Plan, Retention, Why};
use graft::{Lsn, Seq, VolumeName, catalog};
use serde::Serialize;

use crate::args::Store;
use crate::progress::{Bar, size};
use crate::{Outcome, output};

/// `graft volume gc`
#[derive(Debug, ClapArgs)]
pub struct Gc {
    /// The volume's name.
    pub name: String,
    #[command(flatten)]
    pub store: Store,
    #[command(flatten)]
    pub keep: Keep,
    /// Say what would go and why, and delete nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// What garbage collection keeps: of `graft volume gc` and of `graft serve`.
#[derive(Debug, Clone, ClapArgs)]
pub struct Keep {
    /// Keep every state of the last so many days readable.
    #[arg(long, env = "GRAFT_KEEP_DAYS", value_name = "DAYS", default_value_t = 7.0, value_parser = days)]
    pub keep_days: f64,
    /// And every one of the last so many commits.
    #[arg(long, env = "GRAFT_KEEP_COMMITS", value_name = "COUNT", default_value_t = 1000)]
    pub keep_commits: u64,
    /// Seconds between announcing which states are given up and deleting what only they need, in a later
    /// run. With 0, one run does both: for a volume that nobody reads.
    #[arg(long, env = "GRAFT_GRACE", value_name = "SECONDS", default_value_t = 3600)]
    #[arg(value_parser = clap::value_parser!(u32))]
    pub grace: u32,
}

impl Keep {
    pub fn retention(&self) -> Retention {
        Retention {
            keep_ms: (self.keep_days * 86_400_000.0) as i64,
            keep_commits: self.keep_commits,
            grace_ms: i64::from(self.grace) * 1000,
        }
    }
}

/// Up to a thousand years; fractions count.
fn days(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(days) if (0.0..=365_250.0).contains(&days) => Ok(days),
        _ => Err("give days from 0 to 365250".into()),
    }
}

#[derive(Serialize)]
struct Line<'a> {
    name: &'a str,
    dry_run: bool,
    /// What is readable from now on, where that is new.
    publish: Option<Floor>,
    /// What was swept below.
    sweep: Floor,
    objects: Vec<Object<'a>>,
    objects_gone: usize,
    bytes_freed: u64,
    objects_kept: u64,
    bytes_kept: u64,
    pinned: Vec<Pin<'a>>,
    /// Whether segments of an abandoned compaction go in the next run.
    end_epoch: bool,
}

#[derive(Serialize, Clone, Copy)]
struct Floor {
    lsn: Lsn,
    seq: Seq,
}

#[derive(Serialize)]
struct Object<'a> {
    key: &'a str,
    bytes: u64,
    why: &'static str,
}

#[derive(Serialize)]
struct Pin<'a> {
    by: &'a str,
    lsn: Lsn,
    /// `null` for ever.
    until_ms: Option<i64>,
}

pub async fn run(args: Gc) -> anyhow::Result<Outcome> {
    let name: VolumeName = args.name.parse()?;
    let remote = graft::remote::open(&args.store.store)?;
    let id = catalog::resolve(&*remote, &name).await?;
    let retention = args.keep.retention();
    let plan = if args.dry_run {
        gc::plan(&*remote, id, retention, now_ms()).await
    } else {
        let bar = Mutex::new(Bar::of(format!("gc {name}"), "objects"));
        let progress = |done: usize, total: usize| {
            if let Ok(mut bar) = bar.lock() {
                bar.set(done as u64, total as u64);
            }
        };
        let collected = gc::collect(&*remote, id, retention, now_ms(), &progress).await;
        if let Ok(bar) = bar.into_inner() {
            bar.end();
        }
        collected
    };
    let plan = plan.with_context(|| format!("volume `{name}`"))?;
    if args.json {
        output::json(&line(&name, args.dry_run, &plan))?;
    } else {
        print(&name, &args, &plan)?;
    }
    Ok(Outcome::Done)
}

fn line<'a>(name: &'a VolumeName, dry_run: bool, plan: &'a Plan) -> Line<'a> {
    let floor = |floor: gc::Floor| Floor { lsn: floor.lsn, seq: floor.seq };
    Line {
        name: name.as_str(),
        dry_run,
        publish: plan.publish.map(floor),
        sweep: floor(plan.sweep),
        objects: plan
            .doomed
            .iter()
            .map(|doomed| Object { key: &doomed.key, bytes: doomed.bytes, why: word(doomed.why) })
            .collect(),
        objects_gone: plan.doomed.len(),
        bytes_freed: plan.freed_bytes(),
        objects_kept: plan.kept_objects,
        bytes_kept: plan.kept_bytes,
        pinned: plan
            .pinned
            .iter()
            .map(|pinned| Pin {
                by: &pinned.key,
                lsn: pinned.pin.lsn,
                until_ms: (pinned.pin.until_ms != graft::format::pin::Pin::FOR_EVER)
                    .then_some(pinned.pin.until_ms),
            })
            .collect(),
        end_epoch: plan.end_epoch,
    }
}

/// What stands for a reason in JSON.
fn word(why: Why) -> &'static str {
    match why {
        Why::Commit => "commit",
        Why::Checkpoint => "checkpoint",
        Why::Segment => "segment",
        Why::Tombstone => "tombstone",
        Why::Floor => "floor",
        Why::Lease => "lease",
        Why::Abandoned => "abandoned",
    }
}

/// The same for a person.
fn reason(why: Why) -> &'static str {
    match why {
        Why::Commit => "its commit is older than what is kept, and no kept page lies in it",
        Why::Checkpoint => "it is older than what is kept, and no kept checkpoint names a part of it",
        Why::Segment => "nothing that is kept names it",
        Why::Tombstone => "what it stands for is so old that nobody can be late for it",
        Why::Floor => "a newer one is published",
        Why::Lease => "its reader did not renew it",
        Why::Abandoned => "its fork was never finished, or was removed",
    }
}

fn print(name: &VolumeName, args: &Gc, plan: &Plan) -> anyhow::Result<()> {
    if args.dry_run {
        for doomed in &plan.doomed {
            let bytes = size(doomed.bytes);
            output::line(&format!("{}  {bytes}: {}", output::printable(&doomed.key), reason(doomed.why)))?;
        }
    }
    for pinned in &plan.pinned {
        let key = output::printable(&pinned.key);
        output::line(&format!("kept by {key}: lsn {}", pinned.pin.lsn))?;
    }
    if let Some(floor) = plan.publish {
        let will = if args.dry_run { "would be given up" } else { "are given up" };
        let when = if args.keep.grace == 0 {
            String::new()
        } else {
            format!("; a run {} seconds from now or later deletes what only they need", args.keep.grace)
        };
        output::line(&format!("states below lsn {} {will}{when}", floor.lsn))?;
    }
    if plan.end_epoch {
        output::line("a compaction was abandoned; the next run deletes what it left")?;
    }
    let went = if args.dry_run { "would go" } else { "went" };
    output::line(&format!(
        "volume `{name}`: {} {went} ({}), {} stay ({})",
        output::count(plan.doomed.len(), "object"),
        size(plan.freed_bytes()),
        plan.kept_objects,
        size(plan.kept_bytes)
    ))?;
    Ok(())
}

#[allow(clippy::disallowed_methods, reason = "a driver: retention is by the wall clock")]
fn now_ms() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}
