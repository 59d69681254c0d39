//! `graft serve`

use std::time::Duration;

use anyhow::bail;
use coordinator::{Config, Coordinator};
use graft::compact::Policy;

use crate::args::Serve;
use crate::{Outcome, output};

pub async fn run(args: Serve) -> anyhow::Result<Outcome> {
    let store = graft::remote::open(&args.store.store)?;
    let mut config = Config::new(store, args.listen);
    config.data = args.data;
    config.web = args.web;
    config.limits.presence.ttl_ms = args.presence_ttl * 1000;
    config.limits.disk_bytes = args.disk_bytes;
    config.remote_writes = args.allow_remote_writes;
    config.limits.upkeep.gc_every = (args.gc_interval > 0).then(|| Duration::from_secs(args.gc_interval));
    config.limits.upkeep.retention = args.keep.retention();
    config.limits.upkeep.compact =
        (args.compact_every > 0).then(|| Policy { every: args.compact_every, ..Policy::default() });
    config.limits.actor.checkpoint.commits = args.checkpoint_commits;
    config.limits.actor.checkpoint.bytes = args.checkpoint_bytes;
    let mut stop = Signals::new()?;
    let running = tokio::select! {
        running = Coordinator::start(config) => running?,
        () = stop.next() => return Ok(Outcome::Done),
    };
    output::line(&format!("listening on {}", running.url()))?;
    stop.next().await;
    tokio::select! {
        drained = running.shutdown() => {
            if !drained {
                bail!("stopped before everything accepted was durable; clients that are running resend it");
            }
            Ok(Outcome::Done)
        }
        () = stop.next() => bail!("stopped at once; clients that are running resend what was not durable"),
    }
}

/// Ctrl-C and SIGTERM.
pub struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

impl Signals {
    pub fn new() -> anyhow::Result<Signals> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Signals {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    /// Waits for one of them.
    pub async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
