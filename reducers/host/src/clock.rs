//! Who runs, and for how long: a turnstile for runs and the thread that ticks while there are any.
//!
//! wasmtime compares an epoch counter at loop heads and function entries; the ticker advances it every
//! [`TICK`] while something runs, and sleeps once nothing has run for a second. Time is counted in
//! ticks, so a starved ticker errs in the guest's favour.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

/// The resolution of time limits.
const TICK: Duration = Duration::from_millis(10);

/// Ticks without a run after which the ticker sleeps until the next one.
const IDLE_TICKS: u32 = 100;

/// `duration` in ticks, rounded up, at least one.
pub(crate) fn ticks(duration: Duration) -> u64 {
    let ticks = duration.as_millis().div_ceil(TICK.as_millis());
    u64::try_from(ticks).unwrap_or(u64::MAX).max(1)
}

#[derive(Debug)]
struct Turns {
    running: u32,
    asleep: bool,
    stop: bool,
}

#[derive(Debug)]
struct Shared {
    turns: Mutex<Turns>,
    /// A run ended.
    free: Condvar,
    /// The ticker has to look again.
    wake: Condvar,
    ticks: AtomicU64,
}

/// Counts running guests and ticks for them. Dropping it ends the thread.
#[derive(Debug)]
pub(crate) struct Clock {
    shared: Arc<Shared>,
    concurrent_max: u32,
    thread: Option<JoinHandle<()>>,
}

impl Clock {
    /// Starts the ticker; `tick` is called for each tick.
    pub(crate) fn start(concurrent_max: u32, tick: impl Fn() + Send + 'static) -> std::io::Result<Clock> {
        let shared = Arc::new(Shared {
            turns: Mutex::new(Turns { running: 0, asleep: false, stop: false }),
            free: Condvar::new(),
            wake: Condvar::new(),
            ticks: AtomicU64::new(0),
        });
        let theirs = shared.clone();
        let thread =
            std::thread::Builder::new().name("reducer-clock".into()).spawn(move || run(&theirs, tick))?;
        Ok(Clock { shared, concurrent_max: concurrent_max.max(1), thread: Some(thread) })
    }

    /// Waits until fewer than the allowed number run, and counts as one until the turn is dropped.
    pub(crate) fn enter(&self) -> Turn<'_> {
        let mut turns = self.shared.turns.lock();
        while turns.running >= self.concurrent_max {
            self.shared.free.wait(&mut turns);
        }
        turns.running += 1;
        if turns.asleep {
            self.shared.wake.notify_one();
        }
        Turn { shared: &self.shared }
    }

    /// Ticks so far, for a guest's own account.
    pub(crate) fn reader(&self) -> Ticks {
        Ticks(self.shared.clone())
    }
}

impl Drop for Clock {
    fn drop(&mut self) {
        self.shared.turns.lock().stop = true;
        self.shared.wake.notify_one();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the reducer clock's thread panicked");
        }
    }
}

/// Reads the tick count.
#[derive(Debug, Clone)]
pub(crate) struct Ticks(Arc<Shared>);

impl Ticks {
    pub(crate) fn now(&self) -> u64 {
        self.0.ticks.load(Ordering::Relaxed)
    }
}

/// The right to run.
#[derive(Debug)]
pub(crate) struct Turn<'a> {
    shared: &'a Shared,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.shared.turns.lock().running -= 1;
        self.shared.free.notify_one();
    }
}

fn run(shared: &Shared, tick: impl Fn()) {
    let mut turns = shared.turns.lock();
    let mut idle = 0;
    while !turns.stop {
        if turns.running > 0 {
            idle = 0;
        } else {
            idle += 1;
        }
        if idle > IDLE_TICKS {
            turns.asleep = true;
            shared.wake.wait(&mut turns);
            turns.asleep = false;
            idle = 0;
        } else {
            shared.wake.wait_for(&mut turns, TICK);
            shared.ticks.fetch_add(1, Ordering::Relaxed);
            tick();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The ticker sleeps when idle and is there again for the next run.
    #[test]
    fn it_ticks_for_runs_alone() {
        let clock = Clock::start(1, || ()).unwrap();
        let reader = clock.reader();
        loop {
            let turns = clock.shared.turns.lock();
            if turns.asleep {
                break;
            }
            drop(turns);
            std::thread::yield_now();
        }
        let before = reader.now();
        let turn = clock.enter();
        while reader.now() < before + 3 {
            std::thread::yield_now();
        }
        drop(turn);
    }

    #[test]
    fn no_more_than_allowed_run_at_once() {
        let clock = Clock::start(2, || ()).unwrap();
        let most = AtomicU64::new(0);
        let now = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        let _turn = clock.enter();
                        let running = now.fetch_add(1, Ordering::SeqCst) + 1;
                        most.fetch_max(running, Ordering::SeqCst);
                        std::thread::yield_now();
                        now.fetch_sub(1, Ordering::SeqCst);
                    }
                });
            }
        });
        assert_eq!(most.load(Ordering::SeqCst), 2);
    }

    #[test]
    fn durations_round_up() {
        assert_eq!(ticks(Duration::ZERO), 1);
        assert_eq!(ticks(Duration::from_millis(11)), 2);
        assert_eq!(ticks(Duration::from_secs(5)), 500);
    }
}
