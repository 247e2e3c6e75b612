//! How many full workers the load needs, as a real number: what the answer is rounded and bounded from.
//!
//! An event that came at a time has to be handled by then plus the target, neither earlier nor later. So each waiting event sets a deadline, and
//! the workers have to be enough for the tightest: `workers ≥ (events up to it − what the ready ones do until new ones run) / (rate × time left
//! after that)`. Those that come later ask for the arrival rate, and a backlog that meets every deadline for going away slowly.

use std::time::Duration;

use super::{arrivals::Arrivals, as_float, phases::Stage};

/// Deadlines are planned at this share of the target: samples come late, and rates are never known exactly.
const SAFE: f64 = 0.75;
/// Events that can no longer be in time are to be handled within this share of the target: otherwise the answer would grow without bound.
const SHORTEST: f64 = 0.25;
/// How far beyond the deadlines of the waiting events is planned, in targets.
const HORIZON: f64 = 4.0;
/// Waiting for this share of the target is no reason for more workers: nothing is late, and workers come soon enough if the wait grows. So chance
/// does not cause scaling, and there is a gap between scaling out and in.
pub(super) const STANDING: f64 = 0.4;
/// While catching up, this share of the time that is left is planned with.
const PLANNED: f64 = 0.9;

/// What the need is computed from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Load<'a> {
    /// Events per second.
    pub(super) arrival: f64,
    /// Events per second and worker, once known.
    pub(super) per_worker: Option<f64>,
    pub(super) pending: u64,
    /// Age of the oldest; unknown is treated as late.
    pub(super) staleness: Option<Duration>,
    pub(super) target: Duration,
    pub(super) stage: Stage,
    /// Workers that are ready.
    pub(super) ready: u32,
    /// How many full workers they are worth, since a shard is not split.
    pub(super) worth: f64,
    /// The last answer.
    pub(super) before: Option<u32>,
    /// A worker's rate will be known in a moment.
    pub(super) learning: bool,
    /// What waits has outlasted a step of the checkpoint, or more comes than the workers were ever seen to do: it is a queue.
    pub(super) queued: bool,
    /// How long a new worker takes from being asked for to being ready.
    pub(super) start_up: Duration,
    /// What those that have been asked for already will be worth, all in all, and when they will be there.
    pub(super) coming: Option<(f64, Duration)>,
    /// The share of the target that events may wait without any more workers.
    pub(super) standing: f64,
    /// When the waiting events came.
    pub(super) arrivals: &'a Arrivals,
}

/// What is needed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Need {
    /// Full workers.
    pub(super) workers: f64,
    /// The time in which the backlog is to be cleared, in seconds.
    pub(super) left: f64,
    pub(super) why: Why,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Why {
    /// Both rates are known.
    Rates,
    /// A worker's rate is not known, and the target is in danger.
    Doubling,
    /// A worker's rate is not known, but will be in a moment.
    Learning,
    /// A worker's rate is not known, and the waiting events may be handled already and only not committed.
    Unproven,
    /// A worker's rate is not known, and all is well.
    NotLearnt,
}

impl Load<'_> {
    fn age(&self) -> f64 {
        self.staleness.unwrap_or(self.target).as_secs_f64()
    }

    /// What is left of the target for the oldest event, in seconds, but never less than a share of the target.
    pub(super) fn left(&self) -> f64 {
        let target = self.target.as_secs_f64();
        (target - self.age()).max(target * SHORTEST)
    }

    /// How many full workers hold the target.
    pub(super) fn need(&self) -> Need {
        let Some(rate) = self.per_worker else { return self.unlearnt() };
        let pending = as_float(self.pending);
        let target = self.target.as_secs_f64();
        if let Stage::CatchingUp { left } = self.stage {
            let left = (left.as_secs_f64() * PLANNED).max(target * SHORTEST);
            return Need { workers: (self.arrival + pending / left) / rate, left, why: Why::Rates };
        }
        let standing = self.arrival * target * self.standing;
        let lasting = self.arrival + (pending - standing) / (HORIZON * target);
        let tightest = self.deadlines().map(|(events, left)| self.in_time(events, left, rate)).fold(0.0, f64::max);
        Need { workers: (lasting / rate).max(tightest), left: self.left(), why: Why::Rates }
    }

    /// Full workers that handle `events` within `left` seconds. Those that are ready work at once, those that are starting from when they are ready,
    /// and those that would be asked for now after the start-up time.
    fn in_time(&self, events: f64, left: f64, rate: f64) -> f64 {
        let shortest = self.target.as_secs_f64() * SHORTEST;
        let start_up = self.start_up.as_secs_f64();
        let (coming, coming_in) = match self.coming {
            Some((worth, wait)) => (worth.max(self.worth), wait.as_secs_f64().min(start_up)),
            None => (self.worth, start_up),
        };
        let left = left.max(0.0);
        let first = self.worth * rate * coming_in.min(left);
        let enough = (events - first) / (rate * (left - coming_in).max(shortest));
        if enough <= coming {
            return enough;
        }
        let second = coming * rate * (start_up.min(left) - coming_in).max(0.0);
        ((events - first - second) / (rate * (left - start_up).max(shortest))).max(coming)
    }

    /// For each group of waiting events: how many there are up to and with it, and how many seconds it has left.
    fn deadlines(&self) -> impl Iterator<Item = (f64, f64)> + '_ {
        let safe = self.target.as_secs_f64() * SAFE;
        // Looks come after the events; the source knows how old the oldest really is.
        let known = self.arrivals.ages(self.pending).next().map_or(0.0, |(_, age)| age);
        let late = (self.age() - known).clamp(0.0, safe);
        self.arrivals.ages(self.pending).map(move |(events, age)| (events, safe - age - late))
    }

    /// As long as a queue endangers the target, double what is ready; else keep it. Those that were asked for must be ready before there are more.
    fn unlearnt(&self) -> Need {
        let ready = f64::from(self.ready.max(1));
        let limit = (self.target / 5).max(Duration::from_secs(1)).min(self.target / 2);
        let in_danger = self.pending > 0 && self.staleness.is_none_or(|age| age > limit);
        let as_they_are = f64::from(self.before.unwrap_or(self.ready));
        let (workers, why) = match in_danger {
            true if self.learning => (as_they_are, Why::Learning),
            true if !self.queued => (as_they_are, Why::Unproven),
            true => (ready * 2.0, Why::Doubling),
            false => (as_they_are, Why::NotLearnt),
        };
        Need { workers, left: self.left(), why }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TARGET: Duration = Duration::from_secs(10);

    /// Arrivals of `each_second` events, one entry a second.
    fn history(each_second: &[u64]) -> Arrivals {
        let mut arrivals = Arrivals::default();
        let mut total = 0;
        arrivals.observe(Duration::from_secs(100), 0);
        for (second, count) in (101..).zip(each_second) {
            total += count;
            arrivals.observe(Duration::from_secs(second), total);
        }
        arrivals
    }

    fn load(arrivals: &Arrivals, arrival: f64, pending: u64, age: u64) -> Load<'_> {
        Load {
            arrival,
            per_worker: Some(50.0),
            pending,
            staleness: Some(Duration::from_secs(age)),
            target: TARGET,
            stage: Stage::Live,
            ready: 0,
            worth: 0.0,
            before: None,
            learning: false,
            queued: true,
            start_up: Duration::ZERO,
            coming: None,
            standing: 0.0,
            arrivals,
        }
    }

    fn close(found: f64, expected: f64) {
        assert!((found - expected).abs() < 0.01, "{found} is not {expected}");
    }

    #[test]
    fn what_arrives_and_a_backlog_that_is_in_time_go_at_leisure() {
        let arrivals = history(&[100; 20]);
        close(load(&arrivals, 100.0, 0, 0).need().workers, 2.0);
        // (100 + 200 / (4 × 10)) / 50
        close(load(&arrivals, 100.0, 200, 1).need().workers, 2.1);
        // What waits for less than 3 s of 10 is no reason for more: 100 + (100 − 300) / 40.
        close(Load { standing: 0.3, ..load(&arrivals, 100.0, 100, 1) }.need().workers, 1.9);
    }

    #[test]
    fn the_tightest_deadline_counts() {
        // 2,000 came at once, 2 s ago: 5.5 s are left of the safe 7.5.
        let mut counts = vec![0; 10];
        counts.extend([2_000, 0, 0]);
        let arrivals = history(&counts);
        close(load(&arrivals, 0.0, 2_000, 2).need().workers, 2_000.0 / 5.5 / 50.0);
        // The source says that they are a second older than the look at which they were first seen.
        close(load(&arrivals, 0.0, 2_000, 3).need().workers, 2_000.0 / 4.5 / 50.0);
    }

    #[test]
    fn what_is_late_is_to_be_done_in_a_share_of_the_target_and_not_at_once() {
        let arrivals = history(&[0; 10]);
        close(load(&arrivals, 0.0, 1_000, 3_600).need().workers, 1_000.0 / 2.5 / 50.0);
    }

    #[test]
    fn new_workers_are_counted_on_from_when_they_will_be_there() {
        let mut counts = vec![0; 10];
        counts.extend([2_000, 0, 0]);
        let arrivals = history(&counts);
        let start_up = Duration::from_secs(2);
        // 2 s with the four that are there, then 3.5 s with all.
        let need = Load { ready: 4, worth: 4.0, start_up, ..load(&arrivals, 0.0, 2_000, 2) }.need();
        close(need.workers, (2_000.0 - 400.0) / 3.5 / 50.0);
        // Twelve have been asked for a second ago: they are enough, and nothing more is asked for.
        let coming = |workers| Some((workers, Duration::from_secs(1)));
        let starting = Load { ready: 4, worth: 4.0, start_up, coming: coming(12.0), ..load(&arrivals, 0.0, 2_000, 2) };
        close(starting.need().workers, (2_000.0 - 200.0) / 4.5 / 50.0);
        // Six are not.
        let need = Load { coming: coming(6.0), ..starting }.need();
        close(need.workers, (2_000.0 - 200.0 - 300.0) / 3.5 / 50.0);
    }

    #[test]
    fn catching_up_takes_the_time_that_is_left() {
        let arrivals = history(&[100; 20]);
        let stage = Stage::CatchingUp { left: Duration::from_secs(1_000) };
        let need = Load { stage, ..load(&arrivals, 100.0, 900_000, 9_999) }.need();
        close(need.workers, (100.0 + 900_000.0 / 900.0) / 50.0);
        let over = Load { stage: Stage::CatchingUp { left: Duration::ZERO }, ..load(&arrivals, 0.0, 1_000, 99) };
        close(over.need().workers, 1_000.0 / 2.5 / 50.0);
    }

    #[test]
    fn doubles_while_in_danger_until_a_rate_is_learnt() {
        let arrivals = history(&[100; 20]);
        let unlearnt = |age| Load { per_worker: None, ready: 2, before: Some(3), ..load(&arrivals, 100.0, 900, age) };
        assert_eq!(unlearnt(8).need(), Need { workers: 4.0, left: 2.5, why: Why::Doubling });
        let soon = Load { learning: true, ..unlearnt(8) }.need();
        assert_eq!(
            soon,
            Need { workers: 3.0, left: 2.5, why: Why::Learning },
            "a moment's patience gives the right number"
        );
        let uncommitted = Load { queued: false, ..unlearnt(8) }.need();
        assert_eq!((uncommitted.workers, uncommitted.why), (3.0, Why::Unproven), "what outlasts no step is no queue");
        assert_eq!(unlearnt(1).need(), Need { workers: 3.0, left: 9.0, why: Why::NotLearnt });
        let unknown = Load { staleness: None, ..unlearnt(1) };
        assert_eq!(unknown.need().why, Why::Doubling, "unknown is not fine");
    }
}
