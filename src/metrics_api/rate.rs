//! The rate limit of each caller: a token bucket for each user, so that a client that sends too many requests slows only itself.
//!
//! The caller is the user for whom a request is made, not the front proxy, which passes on the requests of all users. Time comes in as an argument.

use std::{
    collections::hash_map::RandomState,
    hash::BuildHasher,
    sync::{Mutex, PoisonError},
    time::Instant,
};

use super::recent::RecentMap;

/// At most so many callers are remembered. Beyond that, those who have not asked for longest are forgotten, and start again.
const MOST_CALLERS: usize = 4096;

/// How often a caller may ask.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Rate {
    /// Requests per second in the long run. 0: no limit.
    pub per_second: u32,
    /// Requests at once, after a pause.
    pub burst: u32,
}

impl Rate {
    /// Autoscalers of 5,000 workloads read about 700 times a second, all as one user and perhaps from one replica: three times that
    /// is no autoscaler any more, and about a third of what one CPU answers.
    pub const PER_SECOND: u32 = 2_000;
    /// Four metrics of each of 5,000 autoscalers, which their controller may read at once when it starts: a refused read costs an
    /// autoscaler its round of 15 s.
    pub const BURST: u32 = 20_000;

    /// The limit of one address without an identified caller: a wrong token costs the API server a review, and every refusal costs a line of the log.
    pub(super) const OF_STRANGERS: Self = Self { per_second: 20, burst: 200 };
}

impl Default for Rate {
    fn default() -> Self {
        Self { per_second: Self::PER_SECOND, burst: Self::BURST }
    }
}

/// The result for a request.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum RateDecision {
    Granted,
    /// The caller exceeds its limit. `first` is true once for each time that the bucket runs empty, so that it can be logged without a flood.
    Refused {
        first: bool,
    },
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    tokens: f64,
    filled: Instant,
    dry: bool,
}

impl Bucket {
    fn full(rate: Rate, now: Instant) -> Self {
        Self { tokens: f64::from(rate.burst), filled: now, dry: false }
    }

    fn take(&mut self, rate: Rate, now: Instant) -> RateDecision {
        let size = f64::from(rate.burst);
        let since = now.saturating_duration_since(self.filled);
        self.tokens = (self.tokens + since.as_secs_f64() * f64::from(rate.per_second)).min(size);
        self.filled = self.filled.max(now);
        if self.tokens >= size / 2.0 {
            self.dry = false;
        }
        if self.tokens >= 1.0 {
            self.tokens -= 1.0;
            return RateDecision::Granted;
        }
        RateDecision::Refused { first: !std::mem::replace(&mut self.dry, true) }
    }
}

/// The buckets of callers that asked recently.
///
/// Callers are identified by a keyed hash of their names: a name may be long, and storing or copying it is not worth it here.
#[derive(Debug)]
pub(super) struct Callers {
    rate: Rate,
    keys: RandomState,
    buckets: Mutex<RecentMap<u64, Bucket>>,
}

impl Callers {
    pub(super) fn new(rate: Rate) -> Self {
        Self { rate, keys: RandomState::new(), buckets: Mutex::new(RecentMap::new(MOST_CALLERS)) }
    }

    /// Counts a request of the user.
    pub(super) fn take(&self, user: &str, now: Instant) -> RateDecision {
        if self.rate.per_second == 0 {
            return RateDecision::Granted;
        }
        let key = self.keys.hash_one(user);
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        buckets.get_or_insert_with(key, || Bucket::full(self.rate, now)).take(self.rate, now)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const RATE: Rate = Rate { per_second: 10, burst: 20 };

    fn granted(callers: &Callers, user: &str, now: Instant) -> usize {
        (0..1_000).filter(|_| callers.take(user, now) == RateDecision::Granted).count()
    }

    #[test]
    fn a_caller_may_ask_a_burst_at_once_and_its_rate_from_then_on() {
        let (callers, start) = (Callers::new(RATE), Instant::now());
        // Seconds since the start; how many of a thousand are granted.
        for (at, expected) in [(0.0, 20), (0.0, 0), (0.5, 5), (1.5, 10), (1.55, 0), (1.6, 1), (3_600.0, 20)] {
            let now = start + Duration::from_secs_f64(at);
            assert_eq!(granted(&callers, "wild", now), expected, "at {at} s");
        }
    }

    #[test]
    fn no_caller_pays_for_another() {
        let (callers, now) = (Callers::new(RATE), Instant::now());
        assert_eq!(granted(&callers, "wild", now), 20);
        assert_eq!(granted(&callers, "system:kube-aggregator", now), 20);
    }

    #[test]
    fn running_dry_is_told_once_until_there_was_a_rest() {
        let (callers, start) = (Callers::new(RATE), Instant::now());
        let told = |at: f64| {
            let now = start + Duration::from_secs_f64(at);
            (0..100).filter(|_| callers.take("wild", now) == RateDecision::Refused { first: true }).count()
        };
        assert_eq!([told(0.0), told(0.1), told(0.5), told(60.0)], [1, 0, 0, 1]);
    }

    #[test]
    fn time_that_stands_still_or_goes_back_grants_nothing() {
        let (callers, start) = (Callers::new(RATE), Instant::now() + Duration::from_secs(10));
        assert_eq!(granted(&callers, "wild", start), 20);
        assert_eq!(granted(&callers, "wild", start - Duration::from_secs(5)), 0);
        assert_eq!(granted(&callers, "wild", start), 0);
    }

    #[test]
    fn without_a_rate_there_is_no_bound() {
        let callers = Callers::new(Rate { per_second: 0, burst: 0 });
        assert_eq!(granted(&callers, "wild", Instant::now()), 1_000);
    }

    #[test]
    fn the_memory_is_bounded_and_a_flood_of_names_does_not_fill_anybodys_bucket() {
        let (callers, now) = (Callers::new(RATE), Instant::now());
        assert_eq!(granted(&callers, "wild", now), 20);
        for number in 0..3 * MOST_CALLERS {
            callers.take(&format!("user-{number}"), now);
            if number % 100 == 0 {
                assert_ne!(callers.take("wild", now), RateDecision::Granted, "after {number} others");
            }
        }
        let first = callers.keys.hash_one("user-0");
        assert!(callers.buckets.lock().unwrap().get(&first).is_none(), "forgotten");
    }
}
