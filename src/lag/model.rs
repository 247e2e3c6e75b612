//! The model of one projection: from the samples so far, its lag and the workers that it requires now. Combines the parts; each rule is in a file of
//! its own.

use std::time::Duration;

use super::{
    Assessment, Bounds, Cadence, Certain, Pending, Rates, Sample, Workers,
    arrivals::Arrivals,
    as_float,
    capacity::{Busy, Capacity, Interval, WARM_UP},
    faults::{self, Fault, Rewinds},
    idle::Idle,
    pattern::Pattern,
    phases::Phases,
    planning_input::PlanningInput,
    prediction::Predictions,
    progress::Progress,
    queue::{Able, Queue, rounded},
    read_store::ReadStoreWatch,
    released::Released,
    required::shards,
    shards::worth,
    start_up::StartUp,
    steadiness::Steadiness,
    trial::Trial,
    value::ValueRule,
    waiting::{Extent, Waiting},
};

/// Follows one projection from sample to sample.
#[derive(Clone, Debug)]
pub struct Model {
    pub(super) arrivals: Arrivals,
    pub(super) released: Released,
    pub(super) pattern: Pattern,
    pub(super) capacity: Capacity,
    pub(super) queue: Queue,
    pub(super) trial: Trial,
    /// Since when the waiting events have been a queue.
    pub(super) queue_since: Option<Duration>,
    /// Workers were added although no step of the checkpoint had been seen.
    pub(super) unproven: bool,
    /// Since when this number of workers has been the bottleneck, and when the rate was last learnt from their steps.
    pub(super) bottleneck: Option<(Duration, u32, Option<Duration>)>,
    pub(super) read_store: ReadStoreWatch,
    pub(super) start_up: StartUp,
    pub(super) progress: Progress,
    pub(super) rewinds: Rewinds,
    pub(super) idle: Idle,
    pub(super) phases: Phases,
    pub(super) steadiness: Steadiness,
    pub(super) predictions: Predictions,
    pub(super) value: ValueRule,
    /// The last sample, if its lag is known; `None` otherwise, since rates are learnt from two samples in a row only.
    pub(super) last: Option<Last>,
    /// Since when this number of workers has been ready.
    pub(super) ready: Option<(Duration, u32)>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Last {
    at: Duration,
    arrived: u64,
    pending: Pending,
    uncommitted: Waiting,
    held_back: u64,
    workers: Workers,
    /// The difference of `pending` and the next one says how many events were handled.
    teaches: bool,
}

/// While the oldest event is younger than this, the workers are not known to be busy: one of them may be handling that event right now.
pub(super) const QUEUED: Duration = Duration::from_secs(1);
/// Where the checkpoint moves all the time, a smaller remainder is a queue: this share of what arrives within that time.
const NO_STEPS: f64 = 0.75;
/// How long before the expected events the workers that a pattern asks for are to be ready.
const LOOK: Duration = Duration::from_secs(15);

impl Model {
    /// Starts with what an earlier run learnt: the rate per worker in events per second, the last required number of workers, and the lowest
    /// checkpoint if it was stuck there.
    pub fn remembering(per_worker: Option<f64>, required: Option<u32>, stuck_at: Option<String>) -> Self {
        Self {
            arrivals: Arrivals::default(),
            released: Released::default(),
            pattern: Pattern::default(),
            capacity: Capacity::remembering(per_worker),
            queue: Queue::default(),
            trial: Trial::default(),
            queue_since: None,
            unproven: false,
            bottleneck: None,
            read_store: ReadStoreWatch::default(),
            start_up: StartUp::default(),
            progress: Progress::remembering(stuck_at),
            rewinds: Rewinds::default(),
            idle: Idle::remembering(required == Some(0)),
            phases: Phases::default(),
            steadiness: Steadiness::remembering(required),
            predictions: Predictions::default(),
            value: ValueRule::default(),
            last: None,
            ready: None,
        }
    }

    /// Starts with the cadence that an earlier run learnt, too.
    #[must_use]
    pub fn with_cadence(self, cadence: Option<Cadence>) -> Self {
        Self { queue: Queue::remembering(cadence), ..self }
    }

    /// Takes in the required number of workers from another replica's model of the same projection. That number counts instead of this model's own.
    pub fn hear(&mut self, workers: u32) {
        self.idle.hear(workers);
        self.steadiness.hear(workers);
    }

    /// Takes in one sample.
    pub fn observe(&mut self, sample: &Sample, workers: Workers, bounds: Bounds) -> Result<Assessment, Fault> {
        if let Some(value) = sample.value {
            return self.observe_value(sample.at, value, workers, &bounds);
        }
        let pending = match faults::plausible(sample) {
            Ok(pending) => pending,
            Err(fault) => {
                self.unknown(sample, fault, &bounds);
                return Err(fault);
            }
        };
        let bounds = bounds.within(&sample.head);
        let at = sample.at;
        let usual = self.arrivals.rate().unwrap_or(0.0);
        self.released.observe(sample, &self.arrivals);
        self.arrivals.observe(at, sample.arrived);
        let clock = sample.taken.as_duration().as_secs_f64();
        self.pattern.observe(bounds.look_ahead, clock, sample.arrived);
        let stepped_back = self.rewinds.observe(at, &sample.checkpoint);
        let settled_for = self.settled_for(at, workers);
        let last = self.last.filter(|last| !stepped_back && at > last.at && sample.arrived >= last.arrived);
        let ahead_of_clock = faults::ahead_of_clock(sample);
        let staleness = match ahead_of_clock {
            Some(_) => {
                let waits = sample.certain().map_or(pending.events, Certain::events);
                Some(self.arrivals.known_for(waits).max(sample.staleness.unwrap_or_default()))
            }
            None => sample.staleness,
        };
        let uncommitted = Waiting::of(sample, pending, staleness, &self.arrivals);
        let waiting = self.queue(last, sample, uncommitted, workers, &bounds).planned(bounds.target);
        let busy = self.learn(last, sample, pending, uncommitted, workers, settled_for);
        let saturated = self.read_store.observe(at, busy);
        self.start_up.observe(at, workers.ready);
        let frozen_for = self.progress.observe(sample, uncommitted.for_a_worker(), bounds.stuck_after);
        let idle_for = self.idle.observe(at, pending.events, sample.arrived);
        let rates = Rates { arrival: self.arrivals.rate(), per_worker: self.per_worker(&bounds) };
        let jump = last.and_then(|last| faults::jump(sample.arrived - last.arrived, at - last.at, usual));
        let seen = PlanningInput {
            at,
            expected: self.pattern.expected(clock, self.start_up.typical() + LOOK),
            pending,
            waiting,
            by_shard: match self.queue.cadence() {
                // Which of the shards have what waits for certain is not known.
                _ if waiting.bound => Vec::new(),
                Some(_) => self.queue.by_shard(),
                None => sample.pending_by_shard.clone(),
            },
            teaches: sample.teaches(),
            cadence: self.queue.cadence(),
            rates,
            workers,
            settled_for,
            idle_for,
            stuck: frozen_for >= bounds.stuck_after,
            saturated,
            jump,
        };
        self.try_fewer(&seen, &bounds);
        let (required, stage) = self.require(&seen, &bounds);
        self.start_up.asked(at, required.workers, workers.ready);
        let held_back = sample.held_back;
        let teaches = sample.teaches();
        self.last = Some(Last { at, arrived: sample.arrived, pending, uncommitted, held_back, workers, teaches });
        // Events that are only possible, by an upper bound, are no risk by themselves.
        let (surely, surely_for) = match waiting.extent {
            _ if waiting.bound => (waiting.events, waiting.age),
            Extent::AtLeast => (waiting.events, staleness),
            _ => (pending.events, staleness),
        };
        let drain = drain(surely, rates, workers);
        let arrival = rates.arrival.unwrap_or(0.0);
        Ok(Assessment {
            value: None,
            pending,
            at_least: uncommitted.at_least(waiting),
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
            cadence: self.queue.cadence(),
            cadence_breaks_target: self.queue.cadence().is_some_and(|cadence| cadence.every > bounds.target),
            prediction: self.predictions.observe(at, sample.arrived, arrival, bounds.target),
        })
    }

    fn unknown(&mut self, sample: &Sample, fault: Fault, bounds: &Bounds) {
        self.last = None;
        self.capacity.interrupt();
        self.queue.interrupt();
        self.progress.observe(sample, None, bounds.stuck_after);
        if fault == Fault::NeverCommitted {
            self.idle.never_committed();
        }
    }

    pub(super) fn settled_for(&mut self, at: Duration, workers: Workers) -> Duration {
        let since = match self.ready {
            Some((since, ready)) if ready == workers.ready && since <= at => since,
            // Workers that were ready at the first sample count as warm.
            None => at.saturating_sub(WARM_UP * 2),
            _ => at,
        };
        self.ready = Some((since, workers.ready));
        at - since
    }

    /// The arrivals that the workers can handle: without those that are held back.
    pub(super) fn coming(&self) -> &Arrivals {
        self.released.of(&self.arrivals)
    }

    /// True when the rate per worker was learnt from workers that were the bottleneck, or is given by the spec.
    pub(super) fn knows_rate(&self, bounds: &Bounds) -> bool {
        self.capacity.is_confirmed() || given(bounds).is_some()
    }

    fn per_worker(&self, bounds: &Bounds) -> Option<f64> {
        self.capacity.learnt().or(given(bounds)).or(self.capacity.per_worker())
    }

    /// The uncommitted events that wait for a worker: all of them, unless the checkpoint moves in steps.
    fn queue(
        &mut self,
        last: Option<Last>,
        sample: &Sample,
        uncommitted: Waiting,
        workers: Workers,
        bounds: &Bounds,
    ) -> Waiting {
        // Events that are no longer held back reach the workers now.
        let arrived = last.map(|last| {
            (sample.arrived - last.arrived).saturating_add(last.held_back).saturating_sub(sample.held_back)
        });
        let known = self.knows_rate(bounds);
        let capacity = self.per_worker(bounds).map(|rate| rate * worth(workers.ready, shards(bounds)));
        let least = self.queue.least_each() * worth(workers.ready, shards(bounds));
        let capacity = capacity.or((least > 0.0).then_some(least));
        // A remembered rate may be far too low.
        let capacity = capacity.map(|rate| if known { rate } else { rate.max(self.queue.shown()) });
        let arrival = self.coming().rate().unwrap_or(0.0);
        let exact = |pending: Pending, waiting: Waiting| pending.exact && !waiting.bound;
        let counted = last.is_some_and(|last| exact(last.pending, last.uncommitted))
            && sample.pending.is_some_and(|pending| exact(pending, uncommitted));
        // Of an upper bound that teaches nothing only the age is known.
        let by_age = uncommitted.certain.is_some() && !sample.teaches();
        let oldest = by_age.then(|| uncommitted.age.unwrap_or(Duration::MAX));
        let able = Able { arrival, capacity, ready: workers.ready, counted, oldest };
        self.queue.observe(sample, uncommitted.events, arrived, able);
        let Some(cadence) = self.queue.cadence() else { return uncommitted };
        let events = rounded(self.queue.events()).min(uncommitted.events);
        let known = if by_age { Duration::ZERO } else { self.coming().known_for(events) };
        // An event is committed at the latest one step after it was handled.
        let age = match uncommitted.age {
            _ if events == 0 => Some(Duration::ZERO),
            Some(age) => Some(age.saturating_sub(cadence.every + self.queue.look()).max(known)),
            None => None,
        };
        Waiting { events, age, ..uncommitted }
    }

    fn learn(
        &mut self,
        last: Option<Last>,
        sample: &Sample,
        pending: Pending,
        uncommitted: Waiting,
        workers: Workers,
        settled_for: Duration,
    ) -> Option<Busy> {
        // Nothing is learnt from an upper bound whose differences say nothing of what was handled.
        let Some(last) = last.filter(|last| last.teaches && sample.teaches()) else {
            self.capacity.interrupt();
            return None;
        };
        let length = sample.at - last.at;
        let arrived = sample.arrived - last.arrived;
        // Events that arrived and do not wait were handled. Between an upper bound and a count the difference means nothing.
        let handled = (last.pending.exact == pending.exact)
            .then(|| last.pending.events.saturating_add(arrived).saturating_sub(pending.events));
        // Workers that start because this model asked for more do not disturb the others; workers that are replaced do.
        let starting = workers.rolling && self.steadiness.before().is_some_and(|asked| asked > workers.ready);
        let steady = workers.ready == last.workers.ready && (!workers.rolling || starting);
        // The oldest event was there when the interval began, so that there was always something to do.
        let queued = last.uncommitted.events > 0 && uncommitted.age.is_some_and(|age| age >= QUEUED.max(length));
        let saturated = queued && self.outlasts_a_step(sample, length, workers.ready);
        if self.queue.tells_steps() {
            self.capacity.interrupt();
            return self.learn_from_steps(sample.at, saturated && steady, workers.ready, settled_for);
        }
        self.bottleneck = None;
        self.capacity.observe(Interval {
            length,
            handled,
            steady_workers: steady.then_some(workers.ready),
            starting,
            saturated,
            step: self.queue.step(),
            settled_for,
        })
    }

    /// Learns from steps that began and ended while all workers were the bottleneck; then once a step.
    fn learn_from_steps(&mut self, at: Duration, busy: bool, workers: u32, settled_for: Duration) -> Option<Busy> {
        if !busy {
            self.bottleneck = None;
            return None;
        }
        let (since, learnt_at) = match self.bottleneck {
            Some((since, before, learnt_at)) if before == workers => (since, learnt_at),
            _ => (at, None),
        };
        let due = learnt_at.is_none_or(|last| at.saturating_sub(last) + self.queue.look() / 2 >= self.queue.step());
        let throughput = self.queue.throughput(since).filter(|_| due && self.queue.stepped());
        self.bottleneck = Some((since, workers, if throughput.is_some() { Some(at) } else { learnt_at }));
        self.capacity.learn_from_steps(throughput?, workers, settled_for)
    }

    /// True when the last steps left more events than arrive in a moment, and work for all workers.
    fn outlasts_a_step(&self, sample: &Sample, look: Duration, workers: u32) -> bool {
        let moment = match self.queue.cadence() {
            Some(_) => QUEUED.max(look),
            None => QUEUED.max(look).mul_f64(NO_STEPS),
        };
        let left = as_float(self.queue.measured_left());
        let by_shard = self.queue.measured_left_by_shard();
        let by_shard = if by_shard.is_empty() { &sample.pending_by_shard } else { &by_shard };
        left > self.coming().rate().unwrap_or(0.0) * moment.as_secs_f64() && work_for_all(by_shard, workers)
    }
}

/// The rate per worker that the spec gives, in events per second.
pub(super) fn given(bounds: &Bounds) -> Option<f64> {
    bounds.given_rate.filter(|rate| rate.is_finite() && *rate > 0.0)
}

/// True when each worker has work waiting, as far as the counts by shard show.
fn work_for_all(pending_by_shard: &[u64], workers: u32) -> bool {
    let most = pending_by_shard.iter().max().copied().unwrap_or(0);
    let with_work = pending_by_shard.iter().filter(|waiting| waiting.saturating_mul(10) >= most.max(1)).count();
    let enough = pending_by_shard.len() * 3 / 4;
    // A single worker has all shards.
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
#[path = "upper_bound_tests.rs"]
mod upper_bound;

#[cfg(test)]
#[path = "cadence_world_tests.rs"]
mod cadence_world;

#[cfg(test)]
#[path = "properties_tests.rs"]
mod properties;
