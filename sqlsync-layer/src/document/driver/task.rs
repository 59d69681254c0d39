//! The task of a document: one round after another, and what it waits for between them.
//!
//! Local work wakes it, and so does the coordinator's word that the log has grown, a connection that came
//! about, and one that ended. Else it looks at the log every now and then: often where nobody says that it
//! has grown, seldom where a coordinator does. After a failure it waits, longer each time.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;

use graft::Lsn;
use tokio::sync::watch;

use super::{DocumentError, Inner, Options};
use crate::session::client::Status as Connection;

/// The first wait after a failure, and the longest.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(30));

/// How long to wait for a reason to look at the log.
#[derive(Debug, Clone, Copy)]
pub(in crate::document) struct Waits {
    poll: Duration,
    backstop: Duration,
}

impl Waits {
    pub(in crate::document) fn of(options: &Options) -> Waits {
        Waits { poll: options.poll, backstop: options.backstop.max(options.poll) }
    }

    fn after(self, outcome: Outcome, failures: u32, told: bool) -> Duration {
        match outcome {
            Outcome::More => Duration::ZERO,
            Outcome::Rest if told => self.backstop,
            Outcome::Rest => self.poll,
            Outcome::Failed => {
                let wait = RETRY.0.saturating_mul(2u32.saturating_pow(failures.min(16)));
                wait.min(self.poll).min(RETRY.1)
            }
        }
    }
}

/// How a round ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// There is more to push.
    More,
    /// Nothing is left to do.
    Rest,
    /// It failed, or a live query waits for pages that could not be had.
    Failed,
}

/// The coordinator's word, where there is a coordinator.
pub(in crate::document) struct Told {
    pub(in crate::document) heads: watch::Receiver<Lsn>,
    pub(in crate::document) connection: watch::Receiver<Connection>,
}

impl Told {
    /// Whether the coordinator would say that the log has grown.
    fn is_live(&self) -> bool {
        matches!(*self.connection.borrow(), Connection::Live { .. })
    }

    /// The log has grown; or the connection came about or ended, and what was not told meanwhile is to be
    /// looked at.
    async fn wait(&mut self, live: bool) {
        let is_other = |now: &Connection| matches!(now, Connection::Live { .. }) != live;
        let ended = tokio::select! {
            grown = self.heads.changed() => grown.is_err(),
            turned = self.connection.wait_for(is_other) => turned.is_err(),
        };
        if ended {
            std::future::pending::<()>().await;
        }
    }
}

/// Pushes and pulls until the last handle is gone.
pub(super) async fn keep_in_sync(
    inner: Arc<Inner>,
    mut closed: watch::Receiver<()>,
    mut told: Option<Told>,
    waits: Waits,
) {
    let mut failures = 0u32;
    loop {
        // What happens from here on is not in the round, and ends the wait.
        let live = told.as_ref().is_some_and(Told::is_live);
        if let Some(told) = &told {
            let head = *told.heads.borrow();
            inner.with(move |replica| replica.heard_of(head)).await;
        }
        // What an app brings along (a handler, modules, names) may panic. That ends the round and no more.
        let round = tokio::select! {
            round = AssertUnwindSafe(inner.round()).catch_unwind() => round,
            _ = closed.changed() => return,
        };
        let round = round.unwrap_or_else(|panic| Err(DocumentError::Panicked(said(&*panic))));
        let outcome = match &round {
            Ok(true) => Outcome::More,
            Ok(false) if inner.with(|replica| replica.has_stale()).await => Outcome::Failed,
            Ok(false) => Outcome::Rest,
            Err(_) => Outcome::Failed,
        };
        let wait = waits.after(outcome, failures, live);
        failures = if outcome == Outcome::Failed { failures + 1 } else { 0 };
        let error = round.err().map(|error| error.to_string());
        if let Some(error) = &error {
            tracing::warn!(volume = %inner.volume.id(), error, "a sync failed and is tried again");
        }
        let failed = error.is_some();
        inner.status.send_if_modified(|status| {
            let changed = status.error != error;
            status.error = error;
            changed
        });
        if wait.is_zero() {
            continue;
        }
        let word = async {
            match told.as_mut() {
                Some(told) => told.wait(live).await,
                None => std::future::pending().await,
            }
        };
        #[allow(clippy::disallowed_methods, reason = "a driver: it waits between looks at the log")]
        let sleep = tokio::time::sleep(wait);
        tokio::select! {
            () = sleep => {}
            // After a failure local work does not wake: it would only fail again.
            () = inner.woken.notified(), if !failed => {}
            () = word => {}
            _ = closed.changed() => return,
        }
    }
}

/// What a panic said.
fn said(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no text".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_tried_again_later_each_time_and_never_much_later() {
        let waits = Waits::of(&Options { poll: Duration::from_secs(3600), ..Options::default() });
        let after: Vec<u64> =
            (0..12).map(|failures| waits.after(Outcome::Failed, failures, true).as_millis() as u64).collect();
        assert_eq!(after[..4], [100, 200, 400, 800]);
        assert!(after.is_sorted() && after[11] == 30_000, "{after:?}");
        let waits = Waits::of(&Options::default());
        assert_eq!(waits.after(Outcome::Failed, u32::MAX, false), Duration::from_secs(5));
        assert_eq!(waits.after(Outcome::Rest, 0, false), Duration::from_secs(5));
        assert_eq!(waits.after(Outcome::Rest, 0, true), Duration::from_secs(30));
    }
}
