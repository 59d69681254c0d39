//! Hedging: a second, identical request where the first takes longer than most. The first answer wins.
//!
//! Object stores answer nearly always in tens of milliseconds and now and then in a second; asking
//! twice after the time that 95 of 100 requests need turns the latter into the former, for at most
//! one request in twenty. Reads of immutable objects may be sent any number of times.
//!
//! The engine has no clock: whoever wants hedging brings a [`Timer`].

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use bytes::Bytes;
use futures::future::{BoxFuture, Either, select};
use parking_lot::Mutex;

use super::plan::Range;
use crate::remote::{Remote, RemoteError};
use crate::volume::cache::Counters;

/// Answers remembered.
const SAMPLES: usize = 100;
/// Fewer answers say nothing about the slowest twentieth.
const SAMPLES_MIN: usize = 20;
/// Longer ranges take long for their length: they are neither hedged nor measured.
const HEDGED_BYTES_MAX: u64 = 1 << 20;

/// A driver's clock.
pub trait Timer: Send + Sync + fmt::Debug {
    /// Time since some fixed point; never goes back.
    fn now(&self) -> Duration;

    /// Is ready after `time`.
    fn sleep(&self, time: Duration) -> BoxFuture<'static, ()>;
}

/// After how long the second request is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Patience {
    /// After this time, always.
    Fixed(Duration),
    /// After the time in which 95 of the last 100 requests were answered, but not before `at_least`.
    /// With fewer than 20 answers so far, never.
    P95 {
        /// The least.
        at_least: Duration,
    },
}

/// Hedging, with what is known of the store's latency. Clones share it.
#[derive(Debug, Clone)]
pub struct Hedge {
    patience: Patience,
    timer: Arc<dyn Timer>,
    answers: Arc<Mutex<VecDeque<Duration>>>,
}

impl Hedge {
    /// Hedges after `patience`, by `timer`.
    pub fn new(patience: Patience, timer: Arc<dyn Timer>) -> Hedge {
        Hedge { patience, timer, answers: Arc::default() }
    }

    /// After the 95th percentile and at least 20 ms, by tokio's timer.
    #[cfg(feature = "native")]
    pub fn native() -> Hedge {
        Hedge::new(Patience::P95 { at_least: Duration::from_millis(20) }, Arc::new(TokioTimer::new()))
    }

    /// When a second request would be sent now.
    pub fn after(&self) -> Option<Duration> {
        match self.patience {
            Patience::Fixed(after) => Some(after),
            Patience::P95 { at_least } => {
                let mut answers: Vec<Duration> = self.answers.lock().iter().copied().collect();
                if answers.len() < SAMPLES_MIN {
                    return None;
                }
                answers.sort_unstable();
                let p95 = answers[(answers.len() * 95).div_ceil(100) - 1];
                Some(p95.max(at_least))
            }
        }
    }

    pub(super) fn record(&self, time: Duration) {
        let mut answers = self.answers.lock();
        if answers.len() == SAMPLES {
            answers.pop_front();
        }
        answers.push_back(time);
    }
}

/// Reads a range, twice where the first answer takes long.
pub(crate) async fn get(
    remote: &dyn Remote,
    hedge: Option<&Hedge>,
    range: &Range,
    counters: &Counters,
) -> Result<Bytes, RemoteError> {
    let send = || {
        counters.requests.fetch_add(1, Relaxed);
        remote.get_range(&range.key, range.start..range.end)
    };
    let received = |body: Result<Bytes, RemoteError>| {
        if let Ok(body) = &body {
            counters.bytes.fetch_add(body.len() as u64, Relaxed);
        }
        body
    };
    let Some(hedge) = hedge.filter(|_| range.end - range.start <= HEDGED_BYTES_MAX) else {
        return received(send().await);
    };
    let began = hedge.timer.now();
    let first = send();
    let answer = match hedge.after() {
        None => first.await,
        Some(after) => match select(first, hedge.timer.sleep(after)).await {
            Either::Left((answer, _)) => answer,
            Either::Right(((), first)) => {
                counters.hedges.fetch_add(1, Relaxed);
                match select(first, send()).await {
                    Either::Left((Ok(body), _)) => Ok(body),
                    Either::Right((Ok(body), _)) => {
                        counters.hedges_won.fetch_add(1, Relaxed);
                        Ok(body)
                    }
                    // One failed: what the other says counts.
                    Either::Left((Err(_), second)) => second.await,
                    Either::Right((Err(_), first)) => first.await,
                }
            }
        },
    };
    if answer.is_ok() {
        hedge.record(hedge.timer.now().saturating_sub(began));
    }
    received(answer)
}

/// Tokio's timer.
#[cfg(feature = "native")]
#[derive(Debug)]
pub struct TokioTimer {
    began: std::time::Instant,
}

#[cfg(feature = "native")]
impl TokioTimer {
    /// Counts from now.
    #[allow(clippy::disallowed_methods, reason = "this is the driver's clock, which others are given")]
    #[allow(clippy::new_without_default, reason = "it reads the clock")]
    pub fn new() -> TokioTimer {
        TokioTimer { began: std::time::Instant::now() }
    }
}

#[cfg(feature = "native")]
impl Timer for TokioTimer {
    fn now(&self) -> Duration {
        self.began.elapsed()
    }

    fn sleep(&self, time: Duration) -> BoxFuture<'static, ()> {
        Box::pin(async move { tokio::time::sleep(time).await })
    }
}
