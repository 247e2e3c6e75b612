//! What waits for a worker, as far as that is known: what the model plans with, where that is not what is reported.
//!
//! Reported is what is not committed. Of that, what is held back waits for its writers and not for a worker, and where the lowest of several rows
//! stands for all of them the count is an upper bound: what quiet shards did long ago is in it. An upper bound is not a measurement; what lies beyond
//! the highest row is one.

use std::time::Duration;

use super::{Pending, Sample, arrivals::Arrivals};

/// What waits for a worker.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Waiting {
    /// Events.
    pub(super) events: u64,
    /// Age of the oldest of them; zero when there is none, absent when unknown.
    pub(super) age: Option<Duration>,
    /// No more than what waits for certain, since what is reported is an upper bound.
    pub(super) bound: bool,
}

impl Waiting {
    /// From a sample with `pending` events of which the oldest is as old as `staleness` says. The counter of arrivals has been taken in by
    /// `arrivals`.
    pub(super) fn of(sample: &Sample, pending: Pending, staleness: Option<Duration>, arrivals: &Arrivals) -> Self {
        let bound = sample.beyond_all_rows.is_some();
        let certain = sample.beyond_all_rows.unwrap_or(pending.events).min(pending.events);
        let events = certain.saturating_sub(sample.held_back);
        let age = match staleness {
            _ if events == 0 => Some(Duration::ZERO),
            // They are the newest.
            age if bound => Some(arrivals.known_for(certain)).map(|known| age.map_or(known, |age| age.min(known))),
            // The oldest has the lowest position, so that it is the last to be held back.
            age => age,
        };
        Self { events, age, bound }
    }

    /// True when events wait for a worker; absent where that is not known.
    pub(super) fn for_a_worker(&self) -> Option<bool> {
        match self.events {
            0 if self.bound => None,
            events => Some(events > 0),
        }
    }
}
