//! From what was learnt to the answer: what the load needs, within the bounds, kept from flapping, and the sentence that explains it.

use std::time::Duration;

use super::{
    Bounds, Pending, Required, Stage, Workers,
    arrivals::ARRIVAL_TIME_CONSTANT,
    as_float,
    assessment::Rates,
    capacity::WARM_UP,
    faults::Jump,
    model::{Model, QUEUED},
    need::{Load, Need, STANDING, Why},
    read_store::Saturated,
    required::{Fit, Limit, fit, shards, top},
    sentence::{Told, sentence},
    shards::{Uneven, round_up, worth},
    useful_workers,
    waiting::Waiting,
};

/// A smaller number of workers must hold the target with so much more load than there is.
const MARGIN: f64 = 1.02;
/// And with what chance hides: so many standard deviations of events that come independently, counted for as long as the rate is averaged over.
const CHANCE: f64 = 2.0;
/// The load of so long a time must have room in a smaller number of workers.
const MARGIN_WINDOW: Duration = Duration::from_secs(15);
/// Of a rollout in which the number of ready workers has not changed for so long nothing more is expected: a worker that cannot start must not keep
/// the others for ever.
const ROLLS_AT_MOST: Duration = Duration::from_secs(300);
/// One shard is compared with the others only when events have waited for this share of the target.
const UNEVEN_FROM: f64 = 0.2;

impl Model {
    pub(super) fn require(&mut self, seen: &Seen<'_>, bounds: &Bounds) -> (Required, Stage) {
        let asked = self.steadiness.before().unwrap_or(0);
        let load = Load {
            arrival: self.arrival(seen, bounds),
            per_worker: seen.rates.per_worker,
            pending: seen.waiting.events,
            staleness: seen.waiting.age,
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
        let stage = self.phases.observe(seen.at, seen.waiting.age, bounds, suffices);
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
            certain: seen.waiting.bound.then_some(seen.waiting.events),
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
        let waits = seen.waiting.age.is_none_or(|age| age >= QUEUED);
        let recent = self.arrivals.mean(window).filter(|_| waits && seen.waiting.events > 0);
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
pub(super) struct Seen<'a> {
    pub(super) at: Duration,
    /// Events per second that the pattern of earlier hours or days expects before long.
    pub(super) expected: Option<f64>,
    pub(super) pending: Pending,
    /// What is planned with.
    pub(super) waiting: Waiting,
    pub(super) pending_by_shard: &'a [u64],
    pub(super) rates: Rates,
    pub(super) workers: Workers,
    pub(super) settled_for: Duration,
    pub(super) idle_for: Duration,
    pub(super) stuck: bool,
    pub(super) saturated: Option<Saturated>,
    pub(super) jump: Option<Jump>,
}

impl Seen<'_> {
    /// How one shard stands out, where that is known and the target is in danger.
    fn uneven(&self, load: &Load<'_>, need: Need, bounds: &Bounds) -> Option<Uneven> {
        let shards = shards(bounds).filter(|shards| *shards > 1 && self.pending_by_shard.len() == *shards as usize)?;
        let rate = self.rates.per_worker.filter(|_| need.why == Why::Rates)?;
        let waits = self.waiting.age.is_some_and(|age| age >= bounds.target.mul_f64(UNEVEN_FROM));
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
