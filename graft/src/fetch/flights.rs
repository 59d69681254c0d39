//! What is being fetched for one volume, and sharing it.
//!
//! A *flight* is one ranged GET with what follows it: checking its frames and caching their pages. All
//! who need a frame of it hold the same flight and drive it together; it ends with the last of them,
//! so that nobody fetches for readers who left. The table holds flights weakly.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared, WeakShared};

use super::FetchError;
use super::hedge::{self, Hedge};
use super::permits::Permits;
use super::plan::{Frames, Place, Range, place};
use crate::format::Damaged;
use crate::page_set::PageSet;
use crate::remote::SharedRemote;
use crate::volume::cache::{Coming, PageCache};

type Future = BoxFuture<'static, Arc<Landed>>;

/// How a flight ended.
#[derive(Debug)]
pub(crate) struct Landed {
    failed: Option<FetchError>,
    damaged: Vec<(Place, Damaged)>,
}

impl Landed {
    /// An error, if it is one of these frames'.
    pub(crate) fn check(&self, frames: &Frames) -> Result<(), FetchError> {
        if let Some(failed) = &self.failed {
            return Err(failed.clone());
        }
        match self.damaged.iter().find(|(at, _)| frames.contains_key(at)) {
            Some((_, damaged)) => Err(damaged.clone().into()),
            None => Ok(()),
        }
    }
}

/// One request under way.
#[derive(Clone)]
pub(crate) struct Flight {
    id: u64,
    future: Shared<Future>,
    urgency: Urgency,
}

/// Whether somebody waits for a flight, and who lets it go.
#[derive(Clone)]
struct Urgency {
    urgent: Arc<AtomicBool>,
    permits: Permits,
}

impl Flight {
    /// Waits for its end.
    pub(crate) async fn land(self) -> Arc<Landed> {
        self.future.await
    }

    /// Somebody waits for it: it goes before those for whom nobody does.
    pub(crate) fn urge(&self) {
        self.urgency.permits.urge(&self.urgency.urgent);
    }

    pub(crate) fn is_new_among(&self, others: &[Flight]) -> bool {
        others.iter().all(|other| other.id != self.id)
    }
}

/// The frames under way to one volume's cache.
#[derive(Default)]
pub(crate) struct Flights {
    by_frame: HashMap<Place, (u64, WeakShared<Future>, Urgency)>,
    last: u64,
}

impl Flights {
    /// The flight that brings this frame. Not to be dropped under the table's lock: its end takes that.
    pub(crate) fn find(&self, place: &Place) -> Option<Flight> {
        let (id, future, urgency) = self.by_frame.get(place)?;
        // One that has landed left the table, unless it is just about to: its pages are cached.
        Some(Flight { id: *id, future: future.upgrade()?, urgency: urgency.clone() })
    }

    /// A new flight; `urgent` where somebody waits for it. It starts when it is first polled.
    #[allow(clippy::too_many_arguments, reason = "it owns everything that the request needs")]
    pub(crate) fn start(
        &mut self,
        remote: SharedRemote,
        cache: Arc<PageCache>,
        permits: Permits,
        hedge: Option<Hedge>,
        range: Range,
        asked: Arc<PageSet>,
        coming: Coming,
        urgent: bool,
    ) -> Flight {
        self.last += 1;
        let id = self.last;
        let places: Vec<Place> = range.frames.iter().map(|frame| place(frame)).collect();
        let leaving = Leaving { cache: Arc::downgrade(&cache), places: places.clone(), id };
        let urgency = Urgency { urgent: Arc::new(AtomicBool::new(urgent)), permits };
        let waits = urgency.clone();
        let future: Future = Box::pin(async move {
            let _leaving = leaving;
            let permit = waits.permits.acquire(range.end - range.start, &waits.urgent).await;
            let got = hedge::get(&*remote, hedge.as_ref(), &range, &cache.counters).await;
            let mut landed = Landed { failed: None, damaged: Vec::new() };
            match got {
                Err(error) => landed.failed = Some(error.into()),
                Ok(bytes) => {
                    for frame in &range.frames {
                        let coming = match coming {
                            Coming::Asked if !frame.slots.iter().any(|slot| asked.contains(slot.page)) => {
                                Coming::Ahead
                            }
                            Coming::Asked | Coming::Ahead | Coming::Kept => coming,
                        };
                        let put = cache.put_frame(frame, range.part(frame, &bytes), coming, &asked);
                        if let Err(damaged) = put {
                            landed.damaged.push((place(frame), damaged));
                        }
                    }
                }
            }
            // Its bytes are gone, and the next request's may come.
            drop(permit);
            Arc::new(landed)
        });
        let future = future.shared();
        if let Some(weak) = future.downgrade() {
            for place in places {
                self.by_frame.insert(place, (id, weak.clone(), urgency.clone()));
            }
        }
        Flight { id, future, urgency }
    }
}

/// Takes a flight out of the table when it ends or is given up.
struct Leaving {
    cache: std::sync::Weak<PageCache>,
    places: Vec<Place>,
    id: u64,
}

impl Drop for Leaving {
    fn drop(&mut self) {
        let Some(cache) = self.cache.upgrade() else { return };
        let mut flights = cache.flights.lock();
        for place in &self.places {
            if flights.by_frame.get(place).is_some_and(|(id, ..)| *id == self.id) {
                flights.by_frame.remove(place);
            }
        }
    }
}
