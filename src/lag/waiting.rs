//! What waits for a worker, as far as that is known: what the model plans with, where that is not what is reported.
//!
//! Reported is what is not committed. Of that, what is held back waits for its writers and not for a worker, and where the count is an upper bound
//! some of it may have been handled long ago, or be no events at all. An upper bound is not a measurement. Of each source that has no more than a
//! bound it is known how much of it waits for certain ([`Certain`]), and one rule holds for all:
//!
//! - What waits for certain is planned with.
//! - What else an upper bound counts is planned with only while the oldest event that waits for certain waits too long, or for an unknown time: then
//!   something is behind, and the bound says how much that may be. Where the certain events are the newest, their age says nothing of others, and the
//!   bound is never planned with.
//! - Once the oldest that waits for certain is young again, or nothing waits for certain, the bound keeps no worker.
//! - A bound whose differences count events, such as the rest of a scan that was cut where positions have no gaps, is nearly a count, and planned
//!   with like one.
//! - Of a lower bound, as many are planned with as came while the oldest has waited.

use std::time::Duration;

use super::{AtLeast, Certain, Pending, Sample, arrivals::Arrivals, need::STANDING, sample::as_float};

/// What kind of number the events that wait are.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Extent {
    /// A count.
    Exact,
    /// An upper bound.
    AtMost,
    /// An upper bound that is nearly a count.
    Nearly,
    /// A lower bound.
    AtLeast,
}

/// What waits for a worker.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Waiting {
    /// Events.
    pub(super) events: u64,
    /// Age of the oldest of them; zero when there is none, absent when unknown.
    pub(super) age: Option<Duration>,
    /// No more than what waits for certain, since what is reported is an upper bound.
    pub(super) bound: bool,
    /// Where `events` is a bound and the oldest events wait for certain: so many of them.
    pub(super) certain: Option<u64>,
    /// What kind of number `events` is.
    pub(super) extent: Extent,
}

impl Waiting {
    /// From a sample with `pending` events of which the oldest is as old as `staleness` says. The counter of arrivals has been taken in by
    /// `arrivals`.
    pub(super) fn of(sample: &Sample, pending: Pending, staleness: Option<Duration>, arrivals: &Arrivals) -> Self {
        let certain = sample.certain();
        let readable = pending.events.saturating_sub(sample.held_back);
        let events = match certain {
            Some(Certain::Newest(newest)) => newest.min(pending.events).saturating_sub(sample.held_back),
            Some(Certain::AtLeast(_)) => readable.max(came_within(staleness, arrivals)),
            Some(Certain::Oldest(_) | Certain::Unknown) | None => readable,
        };
        let bound = matches!(certain, Some(Certain::Newest(_)));
        let age = match (staleness, certain) {
            _ if events == 0 => Some(Duration::ZERO),
            (_, Some(Certain::Unknown)) => None,
            (age, Some(Certain::Newest(newest))) => {
                let known = arrivals.known_for(newest.min(pending.events));
                Some(age.map_or(known, |age| age.min(known)))
            }
            // The oldest has the lowest position, so that it is the last to be held back.
            (age, _) => age,
        };
        let extent = match certain {
            None => Extent::Exact,
            Some(Certain::AtLeast(_)) => Extent::AtLeast,
            Some(Certain::Oldest(_) | Certain::Unknown) if sample.tells_rates => Extent::Nearly,
            Some(_) => Extent::AtMost,
        };
        let certain = certain.filter(|_| !bound).map(|certain| certain.events().min(readable));
        Self { events, age, bound, certain, extent }
    }

    /// What is planned with: of an upper bound only what waits for certain, unless the oldest of it has waited for a share of the target at which
    /// the target is in danger.
    pub(super) fn planned(self, target: Duration) -> Self {
        let well = self.age.is_some_and(|age| age < target.mul_f64(STANDING));
        match self.certain.filter(|_| well && self.extent == Extent::AtMost) {
            Some(certain) => Self { events: self.events.min(certain), bound: true, ..self },
            None => self,
        }
    }

    /// What waits for certain, where what is reported is a bound. `planned`: what was made of it.
    pub(super) fn at_least(self, planned: Self) -> Option<AtLeast> {
        match self.certain {
            Some(events) => Some(AtLeast { events, age: self.age }),
            None => planned.bound.then_some(AtLeast { events: planned.events, age: planned.age }),
        }
    }

    /// True when events wait for a worker; absent where that is not known.
    pub(super) fn for_a_worker(&self) -> Option<bool> {
        match self.events {
            0 if self.bound => None,
            events => Some(events > 0),
        }
    }
}

/// So many events came while the oldest has waited, at the rate at which they come now.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn came_within(age: Option<Duration>, arrivals: &Arrivals) -> u64 {
    let came = arrivals.rate().unwrap_or(0.0) * age.unwrap_or_default().as_secs_f64();
    // Neither negative nor beyond what a counter holds.
    came.clamp(0.0, as_float(u64::MAX >> 12)) as u64
}
