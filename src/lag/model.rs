//! One projection's model: what its samples so far say about now. Puts the parts together; each rule is in a file of its own.

use std::time::Duration;

use super::{
    Bounds, Pending, Position, Prediction, Required, RetentionRisk, Rewound, Sample, Stage, Workers,
    arrivals::{ARRIVAL_TIME_CONSTANT, Arrivals},
    as_float,
    capacity::{Busy, Capacity, Interval, WARM_UP},
    faults::{self, Fault, Jump, Rewinds},
    idle::Idle,
    need::{Load, Need, STANDING, Why},
    pattern::Pattern,
    phases::Phases,
    prediction::Predictions,
    progress::Progress,
    read_store::{ReadStoreWatch, Saturated},
    required::{Fit, Limit, fit, shards, top},
    sentence::{Told, sentence},
    shards::{Uneven, round_up, worth},
    start_up::StartUp,
    steadiness::Steadiness,
    useful_workers,
};

/// Events per second, as far as known.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rates {
    /// Events that arrive per second.
    pub arrival: Option<f64>,
    /// Events that one busy worker handles per second.
    pub per_worker: Option<f64>,
}

/// What a sample means.
#[derive(Clone, Debug, PartialEq)]
pub struct Assessment {
    /// Events that wait.
    pub pending: Pending,
    /// Age of the oldest of them; zero when there is none, absent when unknown. Where events' times lie in the future, since when it is known here.
    pub staleness: Option<Duration>,
    /// Events per second.
    pub rates: Rates,
    /// Seconds until nothing waits, at today's rates and with the workers that are ready; absent when the backlog does not shrink
    /// or a rate is unknown.
    pub drain: Option<Duration>,
    /// How many workers hold the target.
    pub required: Required,
    /// Live, or reading a backlog.
    pub stage: Stage,
    /// How long nothing has waited or arrived.
    pub idle_for: Duration,
    /// How long the checkpoint has not moved although there is work; zero when it moves or nothing waits.
    pub frozen_for: Duration,
    /// `frozen_for` has reached the bound.
    pub stuck: bool,
    /// The checkpoint went backwards a short while ago, or goes back and forth.
    pub rewound: Option<Rewound>,
    /// How far the events' times lie ahead of the source's clock, where they tell no age.
    pub ahead_of_clock: Option<Duration>,
    /// The source deletes events before they are handled.
    pub retention_risk: Option<RetentionRisk>,
    /// Far more came at once than ever.
    pub jump: Option<Jump>,
    /// What was expected of the last seconds, and what came.
    pub prediction: Option<Prediction>,
}

/// Follows one projection from sample to sample.
#[derive(Clone, Debug)]
pub struct Model {
    arrivals: Arrivals,
    pattern: Pattern,
    capacity: Capacity,
    read_store: ReadStoreWatch,
    start_up: StartUp,
    progress: Progress,
    rewinds: Rewinds,
    idle: Idle,
    phases: Phases,
    steadiness: Steadiness,
    predictions: Predictions,
    /// The last sample that told the lag; gone after one that did not, since rates are learnt between neighbours only.
    last: Option<Last>,
    /// Since when so many workers have been ready.
    ready: Option<(Duration, u32)>,
}

#[derive(Clone, Copy, Debug)]
struct Last {
    at: Duration,
    arrived: u64,
    pending: Pending,
    workers: Workers,
}

/// Below this age of the oldest event the workers are not known to be busy: it is in somebody's hands.
const QUEUED: Duration = Duration::from_secs(1);
/// A smaller number of workers must hold the target with so much more load than there is.
const MARGIN: f64 = 1.02;
/// And with what chance hides: so many standard deviations of events that come independently, counted for as long as the rate is averaged over.
const CHANCE: f64 = 2.0;
/// The load of so long a time must have room in a smaller number of workers.
const MARGIN_WINDOW: Duration = Duration::from_secs(15);
/// Of a rollout in which the number of ready workers has not changed for so long nothing more is expected: a worker that cannot start must not keep
/// the others for ever.
const ROLLS_AT_MOST: Duration = Duration::from_secs(300);
/// Workers that a pattern asks for are there so long before the events.
const LOOK: Duration = Duration::from_secs(15);
/// One shard is compared with the others only when events have waited for this share of the target.
const UNEVEN_FROM: f64 = 0.2;

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
        let busy = self.learn(last, sample, pending, staleness, workers, settled_for);
        let saturated = self.read_store.observe(at, busy);
        self.start_up.observe(at, workers.ready);
        let frozen_for = self.progress.observe(sample, Some(pending), bounds.stuck_after);
        let idle_for = self.idle.observe(at, pending.events, sample.arrived);
        let rates = Rates { arrival: self.arrivals.rate(), per_worker: self.per_worker(&bounds) };
        let jump = last.and_then(|last| faults::jump(sample.arrived - last.arrived, at - last.at, usual));
        let seen = Seen {
            at,
            expected: self.pattern.expected(clock, self.start_up.typical() + LOOK),
            pending,
            pending_by_shard: &sample.pending_by_shard,
            staleness,
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
        self.last = Some(Last { at, arrived: sample.arrived, pending, workers });
        let drain = drain(pending, rates, workers);
        let arrival = rates.arrival.unwrap_or(0.0);
        Ok(Assessment {
            pending,
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
            retention_risk: faults::retention_risk(bounds.retention, staleness, pending.events, drain),
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
        staleness: Option<Duration>,
        workers: Workers,
        settled_for: Duration,
    ) -> Option<Busy> {
        let Some(last) = last else {
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
        let queued = last.pending.events > 0 && staleness.is_some_and(|age| age >= QUEUED.max(length));
        self.capacity.observe(Interval {
            length,
            handled,
            steady_workers: steady.then_some(workers.ready),
            starting,
            saturated: queued && work_for_all(&sample.pending_by_shard, workers.ready),
            settled_for,
        })
    }

    fn require(&mut self, seen: &Seen<'_>, bounds: &Bounds) -> (Required, Stage) {
        let asked = self.steadiness.before().unwrap_or(0);
        let load = Load {
            arrival: self.arrival(seen, bounds),
            per_worker: seen.rates.per_worker,
            pending: seen.pending.events,
            staleness: seen.staleness,
            target: bounds.target,
            stage: Stage::Live,
            ready: seen.workers.ready,
            worth: worth(seen.workers.ready, shards(bounds)),
            before: self.steadiness.before(),
            // Before any worker is ready, more of them would say no more.
            learning: self.last.is_none() || seen.workers.ready == 0 || self.capacity.is_learning(),
            start_up: self.start_up.typical(),
            coming: self.start_up.left(seen.at).map(|left| (worth(asked, shards(bounds)), left)),
            standing: STANDING,
            arrivals: &self.arrivals,
        };
        let live = load.need();
        let uneven = seen.uneven(&load, live, bounds);
        let live_fit = fit(live.workers, uneven, bounds, Stage::Live);
        let suffices = matches!(live_fit.limit, Limit::None | Limit::Min);
        let stage = self.phases.observe(seen.at, seen.staleness, bounds, suffices);
        let (need, up, down) = if stage == Stage::Live {
            let mean = self.arrivals.mean(MARGIN_WINDOW).unwrap_or(0.0);
            let measured = load.arrival.max(mean);
            let arrival = measured * MARGIN + CHANCE * (measured / ARRIVAL_TIME_CONSTANT.as_secs_f64()).sqrt();
            let cautious = Load { arrival, start_up: Duration::ZERO, standing: 0.0, ..load }.need();
            let uneven = seen.uneven(&load, cautious, bounds);
            (live, live_fit, fit(cautious.workers.max(live.workers), uneven, bounds, stage))
        } else {
            let need = Load { stage, ..load }.need();
            let uneven = seen.uneven(&load, need, bounds);
            (need, fit(need.workers, uneven, bounds, stage), fit(need.workers * MARGIN, uneven, bounds, stage))
        };
        let arrival = load.arrival;
        let idle = self.idle.enough(bounds);
        let (wanted, fit) = if idle {
            self.steadiness.force(0);
            (0, Fit { workers: 0, limit: Limit::None })
        } else {
            self.steady(seen, bounds, stage, up, down)
        };
        let (workers, limit) = within_connections(wanted, fit.limit, bounds);
        let hottest = seen.pending_by_shard.iter().max().copied().unwrap_or(0);
        let told = Told {
            workers,
            wanted,
            fit: Fit { workers: fit.workers, limit },
            need,
            arrival,
            expected: seen.expected.is_some_and(|expected| expected >= arrival && expected > 0.0),
            per_worker: seen.rates.per_worker,
            pending: seen.pending,
            idle_for: seen.idle_for,
            idle,
            stage,
            hottest_share: Some(as_float(hottest) / as_float(seen.pending.events.max(1))),
            saturated: seen.saturated,
            stuck: seen.stuck,
            rolling: seen.workers.rolling,
            jump: seen.jump,
            bounds,
        };
        (Required { workers, wanted, limit, reason: sentence(&told) }, stage)
    }

    /// The rate to plan with: while events wait, what came within a target's time counts, too.
    fn arrival(&self, seen: &Seen<'_>, bounds: &Bounds) -> f64 {
        let average = seen.rates.arrival.unwrap_or(0.0);
        let window = bounds.target.clamp(Duration::from_secs(3), Duration::from_secs(10));
        let waits = seen.staleness.is_none_or(|age| age >= QUEUED);
        let recent = self.arrivals.mean(window).filter(|_| waits && seen.pending.events > 0);
        recent.map_or(average, |recent| recent.max(average)).max(seen.expected.unwrap_or(0.0))
    }

    /// Keeps what rose for a while, and adds none where none would help.
    fn steady(&mut self, seen: &Seen<'_>, bounds: &Bounds, stage: Stage, up: Fit, down: Fit) -> (u32, Fit) {
        let before = self.steadiness.before();
        let held = before.unwrap_or(seen.workers.ready).max(bounds.min).max(1);
        let mut up = up;
        if seen.stuck || seen.saturated.is_some() {
            let short = up.workers > held || !matches!(up.limit, Limit::None | Limit::Min);
            let limit = if short && !seen.stuck { Limit::ReadStore } else { up.limit };
            up = Fit { workers: up.workers.min(held), limit };
        }
        let rolling = seen.workers.rolling && seen.settled_for < ROLLS_AT_MOST;
        let still = rolling || seen.settled_for < WARM_UP;
        let arrival = seen.rates.arrival.unwrap_or(0.0);
        let steady = self.steadiness.answer(seen.at, up.workers, down.workers.max(up.workers), still, arrival);
        let top = top(bounds, stage);
        let answer = round_up(steady, shards(bounds), top.max(1)).clamp(bounds.min.clamp(1, top), top);
        if answer != steady {
            self.steadiness.force(answer);
        }
        (answer, up)
    }
}

/// One sample, and what was learnt up to it.
struct Seen<'a> {
    at: Duration,
    /// Events per second that the pattern of earlier hours or days expects before long.
    expected: Option<f64>,
    pending: Pending,
    pending_by_shard: &'a [u64],
    staleness: Option<Duration>,
    rates: Rates,
    workers: Workers,
    settled_for: Duration,
    idle_for: Duration,
    stuck: bool,
    saturated: Option<Saturated>,
    jump: Option<Jump>,
}

impl Seen<'_> {
    /// How one shard stands out, where that is known and the target is in danger.
    fn uneven(&self, load: &Load<'_>, need: Need, bounds: &Bounds) -> Option<Uneven> {
        let shards = shards(bounds).filter(|shards| *shards > 1 && self.pending_by_shard.len() == *shards as usize)?;
        let rate = self.rates.per_worker.filter(|_| need.why == Why::Rates)?;
        let waits = self.staleness.is_some_and(|age| age >= bounds.target.mul_f64(UNEVEN_FROM));
        let hottest = as_float(self.pending_by_shard.iter().max().copied().filter(|_| waits)?);
        let all: u64 = self.pending_by_shard.iter().fold(0, |sum, shard| sum.saturating_add(*shard));
        let mean = as_float(all) / f64::from(shards);
        let excess = (hottest - mean) / (rate * need.left.min(load.left()).max(0.001));
        let even = (need.workers - excess).max(load.arrival / rate) / f64::from(shards);
        // What waits shows how what arrives is dealt out, as far as one worker can have kept up with it.
        let its_own = (load.arrival / rate * hottest / as_float(all.max(1))).min(1.0);
        let other = (even * f64::from(shards) - its_own).max(0.0) / f64::from(shards - 1);
        Some(Uneven { shards, hottest: even + excess, other: other.min(even) })
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

fn within_connections(wanted: u32, limit: Limit, bounds: &Bounds) -> (u32, Limit) {
    match bounds.connections.filter(|connections| wanted > *connections) {
        // One worker at least: without any, nothing would ever change.
        Some(connections) => {
            let most = connections.max(1);
            (useful_workers(f64::from(wanted), shards(bounds), most).min(wanted), Limit::Connections)
        }
        None => (wanted, limit),
    }
}

fn drain(pending: Pending, rates: Rates, workers: Workers) -> Option<Duration> {
    if pending.events == 0 {
        return Some(Duration::ZERO);
    }
    let surplus = rates.per_worker? * f64::from(workers.ready) - rates.arrival?;
    (surplus > 0.0).then(|| Duration::try_from_secs_f64(as_float(pending.events) / surplus).ok()).flatten()
}

#[cfg(test)]
#[path = "model_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "model_world_tests.rs"]
mod world;

#[cfg(test)]
#[path = "properties_tests.rs"]
mod properties;
