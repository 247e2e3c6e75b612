//! Learns how many events one busy worker handles per second, from times in which the workers were the bottleneck.

use std::{collections::VecDeque, time::Duration};

use super::as_float;

/// One observation needs at least this long, and at least two commits: over a shorter time a worker that commits in batches seems idle at one look
/// and twice as fast at the next.
pub(super) const SHORTEST_WINDOW: Duration = Duration::from_millis(1_500);
/// What idle workers handled is a lower bound only when it is measured over this long.
const FLOOR_WINDOW: Duration = Duration::from_secs(4);
/// A window that is still open after this time may never be complete.
const PATIENCE: Duration = Duration::from_secs(4);
/// Workers that commit in steps are observed for one step, so that each of them has committed once; this share of it is enough, since looks come
/// late.
const WHOLE_STEP: f64 = 0.85;
/// The longest step to wait for.
const LONGEST_STEP: Duration = Duration::from_secs(40);
/// The rate is the median of this many windows: one odd window does not move it.
const WINDOWS: usize = 5;
/// Two windows in a row that agree with each other and differ by this factor from the rate are a change, not chance: events have become cheaper or
/// dearer.
const CHANGED: f64 = 1.25;
/// A fall of the rate below this share of the known one is doubted.
const HALF: f64 = 0.5;
/// Workers that started less than this long ago are slow for other reasons: empty caches, shards that change hands.
pub(super) const WARM_UP: Duration = Duration::from_secs(5);

/// What happened between two samples.
#[derive(Clone, Copy, Debug)]
pub(super) struct Interval {
    pub(super) length: Duration,
    /// Events that were handled; absent where that is not known.
    pub(super) handled: Option<u64>,
    /// Workers that were ready, if their number did not change and none is being replaced.
    pub(super) steady_workers: Option<u32>,
    /// More workers are starting.
    pub(super) starting: bool,
    /// There was always more to do than the workers could.
    pub(super) saturated: bool,
    /// The time from one step of a worker's checkpoint to its next.
    pub(super) step: Duration,
    /// How long this number of workers has been ready.
    pub(super) settled_for: Duration,
}

/// A time in which the workers were the bottleneck.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Busy {
    /// Workers that were ready.
    pub(super) workers: u32,
    /// Events that they handled together per second.
    pub(super) throughput: f64,
    /// How long this number of workers has been ready.
    pub(super) settled_for: Duration,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Capacity {
    windows: VecDeque<f64>,
    remembered: Option<f64>,
    open: Option<Window>,
    idle: Option<Window>,
    /// Whether the rate fell by more than half. Such a rate is used while there is a queue; after a time without a queue only once it was seen again.
    fell: Fell,
}

#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
enum Fell {
    #[default]
    No,
    /// The rate fell, and the queue is still there.
    Queued,
    /// The rate fell, and there was a time without a queue since.
    Over,
}

#[derive(Clone, Copy, Debug)]
struct Window {
    workers: u32,
    length: Duration,
    handled: u64,
    commits: u32,
    /// The length, and the events handled, up to and including the first commit.
    until_first: Duration,
    with_first: u64,
    /// The time from one step of a worker's checkpoint to its next.
    step: Duration,
    /// At some look nothing had been committed since the one before.
    gaps: bool,
}

impl Window {
    fn of(workers: u32) -> Self {
        let none = Duration::ZERO;
        Self {
            workers,
            length: none,
            handled: 0,
            commits: 0,
            until_first: none,
            with_first: 0,
            step: none,
            gaps: false,
        }
    }

    fn add(&mut self, length: Duration, handled: u64) {
        self.length += length;
        self.handled = self.handled.saturating_add(handled);
        if handled == 0 {
            self.gaps = true;
            return;
        }
        self.commits += 1;
        if self.commits == 1 {
            (self.until_first, self.with_first) = (self.length, self.handled);
        }
    }

    /// Events per second. Measured from commit to commit where there are fewer commits than looks: the events of a batch belong to the time before
    /// its commit.
    fn throughput(&self) -> f64 {
        let (handled, length) = if self.gaps {
            (self.handled - self.with_first, self.length.saturating_sub(self.until_first))
        } else {
            (self.handled, self.length)
        };
        as_float(handled) / length.as_secs_f64().max(0.001)
    }
}

impl Capacity {
    /// Starts from a rate per worker that an earlier run learnt.
    pub(super) fn remembering(per_worker: Option<f64>) -> Self {
        Self { remembered: per_worker.filter(|rate| rate.is_finite() && *rate > 0.0), ..Self::default() }
    }

    /// Events that one busy worker handles per second, once known.
    pub(super) fn per_worker(&self) -> Option<f64> {
        median(&self.windows).or(self.remembered)
    }

    /// The same, if it was learnt in this run.
    pub(super) fn learnt(&self) -> Option<f64> {
        median(&self.windows)
    }

    /// True when the rate was learnt from workers that were the bottleneck. What an earlier run learnt does not count, nor a rate that fell by more
    /// than half and was not seen again.
    pub(super) fn is_confirmed(&self) -> bool {
        !self.windows.is_empty() && self.fell != Fell::Over
    }

    /// Takes in that workers that were not the bottleneck did `rate` events per second each: a remembered rate well below that was wrong.
    pub(super) fn at_least(&mut self, rate: f64) {
        if self.windows.is_empty() && self.remembered.is_some_and(|remembered| rate > remembered * CHANGED) {
            self.forget_remembered();
        }
    }

    /// Takes in the events per second of workers that commit in steps, each measured from one step to the next, while they were the bottleneck.
    pub(super) fn learn_from_steps(&mut self, throughput: f64, workers: u32, settled_for: Duration) -> Option<Busy> {
        let rate = throughput / f64::from(workers.max(1));
        if !(rate.is_finite() && rate > 0.0) {
            return None;
        }
        self.learn(rate);
        Some(Busy { workers, throughput, settled_for })
    }

    /// Forgets what an earlier run learnt.
    pub(super) fn forget_remembered(&mut self) {
        self.remembered = None;
    }

    /// True while the first window is open and should soon be complete.
    pub(super) fn is_learning(&self) -> bool {
        self.open.is_some_and(|open| open.length < PATIENCE + open.step * 2)
    }

    /// Forgets the open windows: the next interval does not follow on the last.
    pub(super) fn interrupt(&mut self) {
        self.open = None;
        self.idle = None;
    }

    /// Takes in an interval; returns the busy time that it completes, if any.
    pub(super) fn observe(&mut self, interval: Interval) -> Option<Busy> {
        let (Some(handled), Some(workers @ 1..)) = (interval.handled, interval.steady_workers) else {
            self.interrupt();
            return None;
        };
        if interval.saturated {
            self.idle = None;
            self.busy(interval, handled, workers)
        } else {
            self.open = None;
            self.idle(interval, handled, workers);
            None
        }
    }

    fn busy(&mut self, interval: Interval, handled: u64, workers: u32) -> Option<Busy> {
        let mut window = self.open.take().filter(|open| open.workers == workers).unwrap_or(Window::of(workers));
        window.add(interval.length, handled);
        window.step = interval.step.min(LONGEST_STEP);
        // From its first commit on, each worker must have committed once more.
        let whole = !window.gaps || window.length - window.until_first >= window.step.mul_f64(WHOLE_STEP);
        // A window is closed at a commit only. A time in which nothing was handled means that the workers are stuck, not that they are slow.
        if window.length < SHORTEST_WINDOW || window.commits < 2 || handled == 0 || !whole {
            self.open = Some(window);
            return None;
        }
        let throughput = window.throughput();
        let rate = throughput / f64::from(workers);
        let cold = interval.settled_for < WARM_UP;
        if !cold || self.per_worker().is_none_or(|known| rate > known) {
            self.learn(rate);
        }
        Some(Busy { workers, throughput, settled_for: interval.settled_for })
    }

    fn learn(&mut self, rate: f64) {
        let before = self.learnt();
        self.take_in(rate);
        let (Some(before), Some(now)) = (before, self.learnt()) else { return };
        self.fell = match self.fell {
            Fell::Over if rate < before * CHANGED && rate * CHANGED > before => Fell::No,
            _ if now < before * HALF => Fell::Queued,
            fell => fell,
        };
    }

    fn take_in(&mut self, rate: f64) {
        let Some(known) = self.per_worker() else {
            self.windows.push_back(rate);
            return;
        };
        let apart = |a: f64, b: f64| a.max(b) / a.min(b) >= CHANGED;
        let last = self.windows.back().copied();
        if let Some(last) = last.filter(|last| apart(*last, known) && apart(rate, known) && !apart(*last, rate)) {
            self.windows = VecDeque::from([last]);
        }
        if self.windows.len() >= WINDOWS {
            self.windows.pop_front();
        }
        self.windows.push_back(rate);
    }

    /// What idle workers handled is a lower bound for what they can do, and never the rate.
    fn idle(&mut self, interval: Interval, handled: u64, workers: u32) {
        if self.fell == Fell::Queued {
            self.fell = Fell::Over;
        }
        // Workers that are starting may already work.
        if interval.starting || interval.settled_for < Duration::from_secs(2) {
            self.idle = None;
            return;
        }
        let mut window = self.idle.take().filter(|idle| idle.workers == workers).unwrap_or(Window::of(workers));
        window.add(interval.length, handled);
        if window.length < FLOOR_WINDOW {
            self.idle = Some(window);
            return;
        }
        let at_least = window.throughput() / f64::from(workers);
        if window.gaps {
            return;
        }
        self.at_least(at_least);
        if median(&self.windows).is_some_and(|known| at_least > known * 1.05) {
            self.windows = VecDeque::from([at_least]);
        }
    }
}

/// The median; of the two values in the middle, the upper one.
fn median(values: &VecDeque<f64>) -> Option<f64> {
    let mut sorted: Vec<f64> = values.iter().copied().collect();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn second(handled: u64, workers: u32) -> Interval {
        Interval {
            length: Duration::from_secs(1),
            handled: Some(handled),
            steady_workers: Some(workers),
            starting: false,
            saturated: true,
            step: Duration::ZERO,
            settled_for: Duration::from_secs(60),
        }
    }

    fn after(capacity: &mut Capacity, intervals: &[Interval]) -> Option<f64> {
        for interval in intervals {
            capacity.observe(*interval);
        }
        capacity.per_worker()
    }

    #[test]
    fn learns_what_a_busy_worker_does() {
        let mut capacity = Capacity::default();
        assert_eq!(after(&mut capacity, &[second(150, 3)]), None);
        assert_eq!(after(&mut capacity, &[second(150, 3)]), Some(50.0));
    }

    #[test]
    fn one_odd_window_does_not_move_it_and_two_that_agree_do() {
        let mut capacity = Capacity::default();
        after(&mut capacity, &[second(50, 1); 20]);
        assert_eq!(after(&mut capacity, &[second(500, 1); 2]), Some(50.0));
        after(&mut capacity, &[second(50, 1); 20]);
        assert_eq!(after(&mut capacity, &[second(25, 1); 2]), Some(50.0));
        assert_eq!(after(&mut capacity, &[second(25, 1); 2]), Some(25.0));
    }

    #[test]
    fn a_worker_that_commits_in_batches_is_neither_idle_nor_twice_as_fast() {
        for pattern in [[100, 0], [0, 100]] {
            let mut capacity = Capacity::default();
            for round in 0..20 {
                capacity.observe(second(pattern[round % 2], 1));
                assert!(capacity.per_worker().is_none_or(|rate| (rate - 50.0).abs() < 1.0), "{round}");
            }
            assert!(capacity.per_worker().is_some());
        }
    }

    #[test]
    fn a_cold_start_is_no_change() {
        let mut capacity = Capacity::remembering(Some(50.0));
        let cold = Interval { settled_for: Duration::from_secs(3), ..second(40, 4) };
        assert_eq!(after(&mut capacity, &[cold; 10]), Some(50.0));
        let fast = Interval { settled_for: Duration::from_secs(3), ..second(400, 4) };
        assert!(after(&mut capacity, &[fast; 10]) > Some(50.0), "faster is no cold start");
    }

    #[test]
    fn workers_that_are_not_busy_teach_nothing_but_a_floor() {
        let mut capacity = Capacity::default();
        after(&mut capacity, &[second(200, 4); 2]);
        let idle = |handled| Interval { saturated: false, ..second(handled, 4) };
        assert_eq!(after(&mut capacity, &[idle(10); 20]), Some(50.0));
        assert_eq!(after(&mut capacity, &[idle(400); 4]), Some(100.0));
        let starting = Interval { starting: true, ..idle(4_000) };
        assert_eq!(after(&mut capacity, &[starting; 20]), Some(100.0), "those that start may have done it");
        let mut capacity = Capacity::remembering(Some(50.0));
        assert_eq!(after(&mut capacity, &[idle(10); 20]), Some(50.0));
        assert_eq!(after(&mut capacity, &[idle(400); 4]), None, "what was remembered is wrong, and a floor is no rate");
    }

    #[test]
    fn a_stuck_worker_is_not_a_slow_one() {
        let mut capacity = Capacity::remembering(Some(50.0));
        assert_eq!(after(&mut capacity, &[second(0, 4); 60]), Some(50.0));
    }

    #[test]
    fn a_rollout_teaches_nothing() {
        let mut capacity = Capacity::remembering(Some(50.0));
        let rolling = Interval { steady_workers: None, ..second(20, 4) };
        assert_eq!(after(&mut capacity, &[rolling; 60]), Some(50.0));
    }

    #[test]
    fn nonsense_is_not_remembered() {
        for nonsense in [f64::NAN, f64::INFINITY, 0.0, -1.0] {
            assert_eq!(Capacity::remembering(Some(nonsense)).per_worker(), None);
        }
    }
}
