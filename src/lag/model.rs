//! One projection's model: what its samples so far say about now. Puts the parts together; each rule is in a file of its own.

use std::time::Duration;

use super::{
    Assessment, AtLeast, Bounds, Pending, Position, Rates, Sample, Workers,
    arrivals::Arrivals,
    as_float,
    capacity::{Busy, Capacity, Interval, WARM_UP},
    faults::{self, Fault, Rewinds},
    idle::Idle,
    pattern::Pattern,
    phases::Phases,
    planning::Seen,
    prediction::Predictions,
    progress::Progress,
    read_store::ReadStoreWatch,
    start_up::StartUp,
    steadiness::Steadiness,
    waiting::Waiting,
};

/// Follows one projection from sample to sample.
#[derive(Clone, Debug)]
pub struct Model {
    pub(super) arrivals: Arrivals,
    pub(super) pattern: Pattern,
    pub(super) capacity: Capacity,
    pub(super) read_store: ReadStoreWatch,
    pub(super) start_up: StartUp,
    pub(super) progress: Progress,
    pub(super) rewinds: Rewinds,
    pub(super) idle: Idle,
    pub(super) phases: Phases,
    pub(super) steadiness: Steadiness,
    pub(super) predictions: Predictions,
    /// The last sample that told the lag; gone after one that did not, since rates are learnt between neighbours only.
    pub(super) last: Option<Last>,
    /// Since when so many workers have been ready.
    pub(super) ready: Option<(Duration, u32)>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Last {
    at: Duration,
    arrived: u64,
    pending: Pending,
    waiting: Waiting,
    workers: Workers,
}

/// Below this age of the oldest event the workers are not known to be busy: it is in somebody's hands.
pub(super) const QUEUED: Duration = Duration::from_secs(1);
/// Workers that a pattern asks for are there so long before the events.
const LOOK: Duration = Duration::from_secs(15);

impl Model {
    /// Starts with what an earlier run learnt: the rate per worker in events per second, the last answer, and the lowest checkpoint if it was
    /// stuck there.
    pub fn remembering(per_worker: Option<f64>, required: Option<u32>, stuck_at: Option<Position>) -> Self {
        Self {
            arrivals: Arrivals::default(),
            pattern: Pattern::default(),
            capacity: Capacity::remembering(per_worker),
            read_store: ReadStoreWatch::default(),
            start_up: StartUp::default(),
            progress: Progress::remembering(stuck_at),
            rewinds: Rewinds::default(),
            idle: Idle::remembering(required == Some(0)),
            phases: Phases::default(),
            steadiness: Steadiness::remembering(required),
            predictions: Predictions::default(),
            last: None,
            ready: None,
        }
    }

    /// Takes in the answer of another model of the same projection, whose word counts: so many workers.
    pub fn hear(&mut self, workers: u32) {
        self.idle.hear(workers);
        self.steadiness.hear(workers);
    }

    /// Takes in one sample.
    pub fn observe(&mut self, sample: &Sample, workers: Workers, bounds: Bounds) -> Result<Assessment, Fault> {
        let pending = match faults::plausible(sample) {
            Ok(pending) => pending,
            Err(fault) => {
                self.unknown(sample, fault, &bounds);
                return Err(fault);
            }
        };
        let at = sample.at;
        let usual = self.arrivals.rate().unwrap_or(0.0);
        self.arrivals.observe(at, sample.arrived);
        let clock = sample.taken.as_duration().as_secs_f64();
        self.pattern.observe(bounds.look_ahead, clock, sample.arrived);
        let stepped_back = self.rewinds.observe(at, &sample.checkpoint);
        let settled_for = self.settled_for(at, workers);
        let last = self.last.filter(|last| !stepped_back && at > last.at && sample.arrived >= last.arrived);
        let ahead_of_clock = faults::ahead_of_clock(sample);
        let staleness = match ahead_of_clock {
            Some(_) => Some(self.arrivals.known_for(pending.events).max(sample.staleness.unwrap_or_default())),
            None => sample.staleness,
        };
        let waiting = Waiting::of(sample, pending, staleness, &self.arrivals);
        let busy = self.learn(last, sample, pending, &waiting, workers, settled_for);
        let saturated = self.read_store.observe(at, busy);
        self.start_up.observe(at, workers.ready);
        let frozen_for = self.progress.observe(sample, waiting.for_a_worker(), bounds.stuck_after);
        let idle_for = self.idle.observe(at, pending.events, sample.arrived);
        let rates = Rates { arrival: self.arrivals.rate(), per_worker: self.per_worker(&bounds) };
        let jump = last.and_then(|last| faults::jump(sample.arrived - last.arrived, at - last.at, usual));
        let seen = Seen {
            at,
            expected: self.pattern.expected(clock, self.start_up.typical() + LOOK),
            pending,
            waiting,
            pending_by_shard: &sample.pending_by_shard,
            rates,
            workers,
            settled_for,
            idle_for,
            stuck: frozen_for >= bounds.stuck_after,
            saturated,
            jump,
        };
        let (required, stage) = self.require(&seen, &bounds);
        self.start_up.asked(at, required.workers, workers.ready);
        self.last = Some(Last { at, arrived: sample.arrived, pending, waiting, workers });
        // An upper bound is no risk by itself.
        let (surely, surely_for) =
            if waiting.bound { (waiting.events, waiting.age) } else { (pending.events, staleness) };
        let drain = drain(surely, rates, workers);
        let arrival = rates.arrival.unwrap_or(0.0);
        Ok(Assessment {
            pending,
            at_least: waiting.bound.then_some(AtLeast { events: waiting.events, age: waiting.age }),
            staleness,
            rates,
            drain,
            required,
            stage,
            idle_for,
            frozen_for,
            stuck: seen.stuck,
            rewound: self.rewinds.say(at),
            ahead_of_clock,
            retention_risk: faults::retention_risk(bounds.retention, surely_for, surely, drain),
            jump,
            prediction: self.predictions.observe(at, sample.arrived, arrival, bounds.target),
        })
    }

    fn unknown(&mut self, sample: &Sample, fault: Fault, bounds: &Bounds) {
        self.last = None;
        self.capacity.interrupt();
        self.progress.observe(sample, None, bounds.stuck_after);
        if fault == Fault::NeverCommitted {
            self.idle.never_committed();
        }
    }

    fn settled_for(&mut self, at: Duration, workers: Workers) -> Duration {
        let since = match self.ready {
            Some((since, ready)) if ready == workers.ready && since <= at => since,
            // What ran before the first look is taken for warm.
            None => at.saturating_sub(WARM_UP * 2),
            _ => at,
        };
        self.ready = Some((since, workers.ready));
        at - since
    }

    fn per_worker(&self, bounds: &Bounds) -> Option<f64> {
        let given = bounds.given_rate.filter(|rate| rate.is_finite() && *rate > 0.0);
        self.capacity.per_worker().or(given)
    }

    fn learn(
        &mut self,
        last: Option<Last>,
        sample: &Sample,
        pending: Pending,
        waiting: &Waiting,
        workers: Workers,
        settled_for: Duration,
    ) -> Option<Busy> {
        // From an upper bound nothing is learnt.
        let Some(last) = last.filter(|last| !last.waiting.bound && !waiting.bound) else {
            self.capacity.interrupt();
            return None;
        };
        let length = sample.at - last.at;
        let arrived = sample.arrived - last.arrived;
        // What arrived and does not wait was handled. Across a change from a bound to a count the difference means nothing.
        let handled = (last.pending.exact == pending.exact)
            .then(|| last.pending.events.saturating_add(arrived).saturating_sub(pending.events));
        // Those that start at our word leave the others alone; those that are replaced do not.
        let starting = workers.rolling && self.steadiness.before().is_some_and(|asked| asked > workers.ready);
        let steady = workers.ready == last.workers.ready && (!workers.rolling || starting);
        // The oldest event was there when the time began, so that there was always something to do.
        let queued = last.waiting.events > 0 && waiting.age.is_some_and(|age| age >= QUEUED.max(length));
        self.capacity.observe(Interval {
            length,
            handled,
            steady_workers: steady.then_some(workers.ready),
            starting,
            saturated: queued && work_for_all(&sample.pending_by_shard, workers.ready),
            settled_for,
        })
    }
}

/// Each worker has work waiting, as far as the shards tell.
fn work_for_all(pending_by_shard: &[u64], workers: u32) -> bool {
    let most = pending_by_shard.iter().max().copied().unwrap_or(0);
    let with_work = pending_by_shard.iter().filter(|waiting| waiting.saturating_mul(10) >= most.max(1)).count();
    let enough = pending_by_shard.len() * 3 / 4;
    // A single worker has them all.
    workers <= 1 || pending_by_shard.is_empty() || (with_work >= enough && with_work >= workers as usize)
}

fn drain(pending: u64, rates: Rates, workers: Workers) -> Option<Duration> {
    if pending == 0 {
        return Some(Duration::ZERO);
    }
    let surplus = rates.per_worker? * f64::from(workers.ready) - rates.arrival?;
    (surplus > 0.0).then(|| Duration::try_from_secs_f64(as_float(pending) / surplus).ok()).flatten()
}

#[cfg(test)]
#[path = "model_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "model_world_tests.rs"]
mod world;

#[cfg(test)]
#[path = "foreign_tests.rs"]
mod foreign;

#[cfg(test)]
#[path = "bound_tests.rs"]
mod bound;

#[cfg(test)]
#[path = "properties_tests.rs"]
mod properties;
