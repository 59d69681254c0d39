//! A live query in the app's hands.

use std::collections::VecDeque;
use std::sync::Arc;

use graft::Lsn;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::SessionEnd;
use crate::protocol::{At, Changes, Reason};
use crate::session::rows::Rows;

/// Deltas kept for a reader; more are folded into a snapshot.
const DELTAS_MAX: usize = 64;

/// What happened to the rows. [`Subscription::rows`] has it already.
#[derive(Debug, Clone, PartialEq)]
pub enum SubscriptionEvent {
    /// They were replaced: the first rows, those after a reconnect, or those of a reader that fell
    /// behind.
    Snapshot,
    /// They changed so.
    Delta(Changes),
}

/// Why a subscription ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SubscriptionEnd {
    /// The server ended it, or would not open it.
    #[error("{0}")]
    Failed(Reason),
    /// The client ended.
    #[error(transparent)]
    Closed(SessionEnd),
}

/// What waits for the reader.
#[derive(Debug)]
enum Waiting {
    Deltas(VecDeque<(At, Changes)>),
    /// Rows to start over from; later deltas go right into them.
    Snapshot(Box<Rows>),
}

#[derive(Debug)]
struct State {
    waiting: Waiting,
    end: Option<SubscriptionEnd>,
    abandoned: bool,
}

/// What the driver and the reader share of one subscription.
#[derive(Debug)]
pub(super) struct Slot {
    state: Mutex<State>,
    /// Wakes the reader.
    changed: Notify,
    /// Wakes the driver when the reader goes.
    sweep: Arc<Notify>,
}

impl Slot {
    pub(super) fn new(sweep: Arc<Notify>) -> Arc<Slot> {
        let waiting = Waiting::Deltas(VecDeque::new());
        let state = Mutex::new(State { waiting, end: None, abandoned: false });
        Arc::new(Slot { state, changed: Notify::new(), sweep })
    }

    /// The rows were replaced by `rows`.
    pub(super) fn snapshot(&self, rows: &Rows) {
        self.state.lock().waiting = Waiting::Snapshot(Box::new(rows.clone()));
        self.changed.notify_one();
    }

    /// The rows became `rows` by `changes`.
    pub(super) fn delta(&self, at: At, changes: Changes, rows: &Rows) {
        let mut state = self.state.lock();
        let fits = match &mut state.waiting {
            Waiting::Deltas(deltas) if deltas.len() < DELTAS_MAX => {
                deltas.push_back((at, changes));
                true
            }
            Waiting::Deltas(_) => false,
            Waiting::Snapshot(waiting) => waiting.advance(at, &changes).is_ok(),
        };
        if !fits {
            state.waiting = Waiting::Snapshot(Box::new(rows.clone()));
        }
        drop(state);
        self.changed.notify_one();
    }

    pub(super) fn end(&self, end: SubscriptionEnd) {
        self.state.lock().end.get_or_insert(end);
        self.changed.notify_one();
    }

    /// Whether the reader is gone.
    pub(super) fn is_abandoned(&self) -> bool {
        self.state.lock().abandoned
    }
}

/// A live query: its rows, and what happens to them. Dropping it closes it.
#[derive(Debug)]
pub struct Subscription {
    slot: Arc<Slot>,
    rows: Rows,
}

impl Subscription {
    pub(super) fn new(slot: Arc<Slot>) -> Subscription {
        Subscription { slot, rows: Rows::empty() }
    }

    /// The rows after the last event of [`Subscription::next`]; none before the first.
    pub fn rows(&self) -> &Rows {
        &self.rows
    }

    /// The LSN that the rows' last commit has or will have.
    pub fn lsn(&self) -> Lsn {
        self.rows.at().lsn
    }

    /// Waits for the next event and applies it to [`Subscription::rows`]. May be dropped and called
    /// again without losing one.
    ///
    /// # Errors
    ///
    /// [`SubscriptionEnd`] once every event before it was read.
    pub async fn next(&mut self) -> Result<SubscriptionEvent, SubscriptionEnd> {
        loop {
            if let Some(event) = self.try_next() {
                return event;
            }
            self.slot.changed.notified().await;
        }
    }

    fn try_next(&mut self) -> Option<Result<SubscriptionEvent, SubscriptionEnd>> {
        let mut state = self.slot.state.lock();
        if let Waiting::Deltas(deltas) = &mut state.waiting {
            let Some((at, changes)) = deltas.pop_front() else {
                return state.end.clone().map(Err);
            };
            return match self.rows.advance(at, &changes) {
                Ok(()) => Some(Ok(SubscriptionEvent::Delta(changes))),
                // The session applied it to equal rows, so it fits; if it ever did not, say so.
                Err(error) => {
                    let reason = Reason::new(crate::protocol::codes::BAD_SUBSCRIPTION, error.to_string());
                    Some(Err(SubscriptionEnd::Failed(reason)))
                }
            };
        }
        match std::mem::replace(&mut state.waiting, Waiting::Deltas(VecDeque::new())) {
            Waiting::Snapshot(rows) => {
                self.rows = *rows;
                Some(Ok(SubscriptionEvent::Snapshot))
            }
            Waiting::Deltas(_) => None,
        }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.slot.state.lock().abandoned = true;
        self.slot.sweep.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A reader that never reads costs one copy of the rows, not one delta for each change, and finds
    /// the right rows when it reads at last.
    #[test]
    fn unread_deltas_fold_into_a_snapshot() {
        let slot = Slot::new(Arc::default());
        let mut subscription = Subscription::new(slot.clone());
        let at = |seq| At { epoch: 0, lsn: Lsn(1), seq };
        let mut rows = Rows::new(vec!["n".into()], vec![], vec![], at(0)).unwrap();
        slot.snapshot(&rows);
        assert_eq!(subscription.try_next(), Some(Ok(SubscriptionEvent::Snapshot)));
        let step = |rows: &mut Rows, n: u32| {
            let changes = Changes { insert: vec![(n, vec![json!(n)])], ..Changes::default() };
            rows.advance(at(n.into()), &changes).unwrap();
            slot.delta(at(n.into()), changes, rows);
        };
        for n in 0..10 {
            step(&mut rows, n);
        }
        for _ in 0..10 {
            assert!(matches!(subscription.try_next(), Some(Ok(SubscriptionEvent::Delta(_)))));
        }
        assert_eq!(subscription.rows(), &rows);
        for n in 10..1000 {
            step(&mut rows, n);
            match &slot.state.lock().waiting {
                Waiting::Deltas(deltas) => assert!(deltas.len() <= DELTAS_MAX),
                Waiting::Snapshot(waiting) => assert_eq!(**waiting, rows),
            }
        }
        slot.end(SubscriptionEnd::Closed(SessionEnd::Closed));
        assert_eq!(subscription.try_next(), Some(Ok(SubscriptionEvent::Snapshot)));
        assert_eq!(subscription.rows(), &rows);
        assert_eq!(
            subscription.try_next(),
            Some(Err(SubscriptionEnd::Closed(SessionEnd::Closed))),
            "the end comes after everything before it"
        );
    }
}
