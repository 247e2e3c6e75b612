//! How fast events arrive and how fast a busy worker handles them, learnt from samples.

use std::{collections::VecDeque, time::Duration};

/// Time constant of the arrival rate's exponential average: short enough to follow a burst within seconds, long enough that
/// batches of a writer do not show as bursts.
pub const ARRIVAL_TIME_CONSTANT: Duration = Duration::from_secs(10);
/// One observation of the rate per worker needs at least this long.
const SHORTEST_WINDOW: Duration = Duration::from_secs(2);
/// The rate per worker is the median of so many windows: one odd window does not move it, three new ones do.
const WINDOWS: usize = 5;

/// Events per second, as far as known.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rates {
    /// Events that arrive per second.
    pub arrival: Option<f64>,
    /// Events that one busy worker handles per second.
    pub per_worker: Option<f64>,
}

/// What happened between two samples.
#[derive(Clone, Copy, Debug)]
pub(super) struct Interval {
    pub(super) length: Duration,
    /// Events that came below the safe head.
    pub(super) arrived: u64,
    /// Events that were handled; absent where it cannot be told.
    pub(super) handled: Option<u64>,
    /// Workers that were busy throughout, if the work was limited by them: there was always more to do than they
    /// could, and none started or stopped.
    pub(super) saturated_workers: Option<u32>,
    /// Workers that were ready at the end.
    pub(super) ready_workers: u32,
}

#[derive(Clone, Debug, Default)]
pub(super) struct RateLearner {
    arrival: Option<f64>,
    windows: VecDeque<f64>,
    remembered: Option<f64>,
    open: Window,
}

#[derive(Clone, Copy, Debug, Default)]
struct Window {
    length: Duration,
    handled: u64,
    worker_seconds: f64,
}

impl RateLearner {
    /// Starts from a rate per worker that an earlier run learnt.
    pub(super) fn remembering(per_worker: Option<f64>) -> Self {
        Self { remembered: per_worker.filter(|rate| rate.is_finite() && *rate > 0.0), ..Self::default() }
    }

    pub(super) fn observe(&mut self, interval: Interval) {
        let seconds = interval.length.as_secs_f64();
        if seconds <= 0.0 {
            return;
        }
        let arriving = as_float(interval.arrived) / seconds;
        let weight = 1.0 - (-seconds / ARRIVAL_TIME_CONSTANT.as_secs_f64()).exp();
        self.arrival = Some(self.arrival.map_or(arriving, |before| before + weight * (arriving - before)));
        self.learn_per_worker(interval, seconds);
    }

    fn learn_per_worker(&mut self, interval: Interval, seconds: f64) {
        let (Some(handled), Some(workers @ 1..)) = (interval.handled, interval.saturated_workers) else {
            self.open = Window::default();
            self.raise_by_what_was_done(interval, seconds);
            return;
        };
        self.open.length += interval.length;
        self.open.handled += handled;
        self.open.worker_seconds += f64::from(workers) * seconds;
        if self.open.length >= SHORTEST_WINDOW {
            let window = std::mem::take(&mut self.open);
            // A window in which nothing was handled says that the workers are stuck, not that they are slow.
            if window.handled > 0 {
                if self.windows.len() >= WINDOWS {
                    self.windows.pop_front();
                }
                self.windows.push_back(as_float(window.handled) / window.worker_seconds);
            }
        }
    }

    /// Idle workers still show what they can do at least: what they did.
    fn raise_by_what_was_done(&mut self, interval: Interval, seconds: f64) {
        let (Some(handled), 1..) = (interval.handled, interval.ready_workers) else { return };
        if interval.length < SHORTEST_WINDOW / 2 {
            return;
        }
        let at_least = as_float(handled) / seconds / f64::from(interval.ready_workers);
        if self.rates().per_worker.is_some_and(|known| at_least > known * 1.5) {
            self.windows.clear();
            self.remembered = Some(at_least);
        }
    }

    pub(super) fn rates(&self) -> Rates {
        Rates { arrival: self.arrival, per_worker: median(&self.windows).or(self.remembered) }
    }
}

fn median(values: &VecDeque<f64>) -> Option<f64> {
    let mut sorted: Vec<f64> = values.iter().copied().collect();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied()
}

/// Counts of events stay far below 2^53, above which a float would round them.
#[allow(clippy::cast_precision_loss)]
pub(super) fn as_float(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn saturated(handled: u64, workers: u32) -> Interval {
        Interval {
            length: Duration::from_secs(2),
            arrived: 0,
            handled: Some(handled),
            saturated_workers: Some(workers),
            ready_workers: workers,
        }
    }

    #[test]
    fn learns_what_a_busy_worker_does() {
        let mut learner = RateLearner::default();
        assert_eq!(learner.rates().per_worker, None);
        learner.observe(saturated(300, 3));
        assert_eq!(learner.rates().per_worker, Some(50.0));
    }

    #[test]
    fn one_odd_window_does_not_move_it_and_three_do() {
        let mut learner = RateLearner::default();
        for _ in 0..5 {
            learner.observe(saturated(100, 1));
        }
        learner.observe(saturated(1_000, 1));
        assert_eq!(learner.rates().per_worker, Some(50.0));
        learner.observe(saturated(50, 1));
        learner.observe(saturated(50, 1));
        learner.observe(saturated(50, 1));
        assert_eq!(learner.rates().per_worker, Some(25.0));
    }

    #[test]
    fn workers_that_are_not_busy_teach_nothing_but_a_floor() {
        let mut learner = RateLearner::remembering(Some(50.0));
        learner.observe(Interval { saturated_workers: None, ..saturated(20, 4) });
        assert_eq!(learner.rates().per_worker, Some(50.0));
        learner.observe(Interval { saturated_workers: None, ..saturated(800, 4) });
        assert_eq!(learner.rates().per_worker, Some(100.0));
    }

    #[test]
    fn a_stuck_worker_is_not_a_slow_one() {
        let mut learner = RateLearner::remembering(Some(50.0));
        learner.observe(saturated(0, 4));
        assert_eq!(learner.rates().per_worker, Some(50.0));
    }

    #[test]
    fn nonsense_is_not_remembered() {
        for nonsense in [f64::NAN, f64::INFINITY, 0.0, -1.0] {
            assert_eq!(RateLearner::remembering(Some(nonsense)).rates().per_worker, None);
        }
    }
}
