//! Whether more workers still help, or all of them wait for the read store.
//!
//! Workers that are added to a store with spare capacity do more together. Where the throughput stays the same although the workers are half as many
//! again and have had time to warm up, each merely waits longer, and every further one slows down the other clients of the store.

use std::time::Duration;

use super::capacity::Busy;

/// To judge the read store, the number of workers must have grown by this factor.
const MORE_WORKERS: f64 = 1.5;
/// Less than this share of what the added workers should have brought is no gain.
const NO_GAIN: f64 = 0.25;
/// Time for new workers to warm up before they are judged. One that takes longer is a short mistake: once it is warm, they do better.
const SETTLED: Duration = Duration::from_secs(4);
/// This many observations in a row are needed, of the fewer workers and of the more: a single one may be odd.
const OBSERVATIONS: u32 = 2;
/// With a throughput higher by this factor, the store is no longer saturated.
const BETTER: f64 = 1.25;
/// After this long without a backlog, nothing is known any more.
const FORGET: Duration = Duration::from_secs(30);
/// After this long one step of workers is added, to see whether the store can do more now.
const TRY_AGAIN: Duration = Duration::from_secs(300);

/// Follows the throughput of all workers together.
#[derive(Clone, Debug, Default)]
pub(super) struct ReadStoreWatch {
    /// How much how few workers did, by the last of so many observations in a row.
    base: Option<(u32, f64, u32)>,
    without_gain: u32,
    saturated: Option<Saturated>,
    busy_at: Duration,
}

/// More workers than these did no more.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Saturated {
    /// This smaller number of workers did as much.
    pub(super) fewer: u32,
    /// Events per second, by any number of workers.
    pub(super) throughput: f64,
    pub(super) since: Duration,
}

impl ReadStoreWatch {
    /// Takes in a time in which the workers were the bottleneck, or that there was none.
    pub(super) fn observe(&mut self, now: Duration, busy: Option<Busy>) -> Option<Saturated> {
        if now < self.busy_at || now - self.busy_at > FORGET {
            *self = Self { busy_at: self.busy_at.min(now), ..Self::default() };
        }
        if self.saturated.is_some_and(|saturated| now.saturating_sub(saturated.since) >= TRY_AGAIN) {
            (self.saturated, self.base, self.without_gain) = (None, None, 0);
        }
        if let Some(busy) = busy {
            self.busy_at = now;
            self.judge(now, busy);
        }
        self.saturated
    }

    fn judge(&mut self, now: Duration, busy: Busy) {
        if let Some(saturated) = self.saturated {
            if busy.throughput > saturated.throughput * BETTER {
                (self.saturated, self.base, self.without_gain) = (None, None, 0);
            }
            return;
        }
        let seen =
            self.base.filter(|(workers, ..)| busy.workers == *workers).map_or(1, |(.., seen)| seen.saturating_add(1));
        let more = self.base.filter(|(workers, _, seen)| busy.workers > *workers && *seen >= OBSERVATIONS);
        let Some((workers, throughput, _)) = more else {
            // As many or fewer: what they do now is what counts, since an event may cost something else than before.
            (self.base, self.without_gain) = (Some((busy.workers, busy.throughput, seen)), 0);
            return;
        };
        let times = f64::from(busy.workers) / f64::from(workers);
        let gained = busy.throughput / throughput - 1.0;
        if gained >= (times - 1.0) / 2.0 {
            (self.base, self.without_gain) = (Some((busy.workers, busy.throughput, 1)), 0);
        } else if times >= MORE_WORKERS && gained < (times - 1.0) * NO_GAIN && busy.settled_for >= SETTLED {
            self.without_gain += 1;
            if self.without_gain >= OBSERVATIONS {
                self.saturated = Some(Saturated { fewer: workers, throughput: busy.throughput, since: now });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct World {
        watch: ReadStoreWatch,
        now: u64,
    }

    impl World {
        fn busy(&mut self, workers: u32, throughput: f64, times: u32) -> Option<Saturated> {
            let mut last = None;
            for _ in 0..times {
                self.now += 2;
                let settled_for = Duration::from_secs(20);
                let busy = Busy { workers, throughput, settled_for };
                last = self.watch.observe(Duration::from_secs(self.now), Some(busy));
            }
            last
        }
    }

    fn world() -> World {
        World { watch: ReadStoreWatch::default(), now: 100 }
    }

    #[test]
    fn workers_that_add_nothing_show_that_the_read_store_is_saturated() {
        let mut world = world();
        assert_eq!(world.busy(4, 400.0, 10), None);
        assert_eq!(world.busy(8, 420.0, 1), None, "not at once");
        assert_eq!(world.busy(8, 420.0, 1).map(|saturated| saturated.fewer), Some(4));
        assert!(world.busy(8, 430.0, 20).is_some());
        assert_eq!(world.busy(8, 600.0, 1), None, "it does better");
    }

    #[test]
    fn workers_that_do_more_do_not() {
        let mut world = world();
        for (workers, throughput) in [(1, 50.0), (2, 95.0), (4, 180.0), (8, 300.0), (16, 520.0)] {
            assert_eq!(world.busy(workers, throughput, 20), None, "{workers}");
        }
    }

    #[test]
    fn an_event_that_costs_twice_as_much_does_not() {
        let mut world = world();
        assert_eq!(world.busy(6, 300.0, 10), None);
        assert_eq!(world.busy(6, 150.0, 10), None);
        assert_eq!(world.busy(12, 300.0, 20), None);
    }

    #[test]
    fn a_single_odd_observation_of_fewer_workers_does_not() {
        let mut world = world();
        assert_eq!(world.busy(8, 289.0, 1), None);
        assert_eq!(world.busy(12, 240.0, 20), None);
    }

    #[test]
    fn it_is_forgotten_without_a_backlog_and_tried_again_after_a_while() {
        let mut world = world();
        world.busy(4, 400.0, 10);
        assert!(world.busy(8, 400.0, 5).is_some());
        let later = Duration::from_secs(world.now + 31);
        assert_eq!(world.watch.clone().observe(later, None), None);
        assert!(world.busy(8, 400.0, 140).is_some());
        assert_eq!(world.busy(8, 400.0, 15), None);
    }
}
