//! From what was learnt to the required number of workers: what the load needs, within the bounds and kept from flapping, with the sentence that
//! explains it.

use std::time::Duration;

use super::{
    Bounds, Required, Stage,
    arrivals::{ARRIVAL_TIME_CONSTANT, Arrivals},
    as_float,
    capacity::{SHORTEST_WINDOW, WARM_UP},
    model::{Model, QUEUED},
    need::{Load, Need, STANDING, Why},
    planning_input::PlanningInput,
    required::{Fit, Limit, fit, shards, top},
    sentence::{Told, sentence},
    shards::{round_up, worth},
    trial::Looked,
    useful_workers,
};

/// A smaller number of workers must hold the target at this many times the present load.
const MARGIN: f64 = 1.02;
/// The margin for chance, too: this many standard deviations of independent arrivals, counted over the time constant of the average rate.
const CHANCE: f64 = 2.0;
/// A smaller number of workers must also suffice for the average load of this time.
const MARGIN_WINDOW: Duration = Duration::from_secs(15);
/// A rollout in which the number of ready workers has not changed for this long no longer blocks removing workers: a worker that cannot start must
/// not keep the others for ever.
const ROLLS_AT_MOST: Duration = Duration::from_secs(300);
/// The operator waits for the rate to be learnt until the oldest event has waited for this share of the target.
const PATIENT: f64 = 0.7;
/// How long the operator waits at least for a first step of the checkpoint.
const FIRST_STEP: Duration = Duration::from_secs(10);
/// A queue that is still there after this many times the time in which the workers would have cleared it shows that they do less than was thought.
const REFUTED: f64 = 4.0;

/// How many workers a model asks for before the read store's connections bound their number, and what the number follows from.
struct Planned {
    need: Need,
    /// Events per second.
    arrival: f64,
    wanted: u32,
    fit: Fit,
    /// Nothing has arrived for so long that no worker is needed.
    idle: bool,
    stage: Stage,
}

impl Model {
    /// The workers that are required now, and what they are required for.
    pub(super) fn require(&mut self, seen: &PlanningInput, bounds: &Bounds) -> (Required, Stage) {
        let load = self.load(seen, bounds, self.released.of(&self.arrivals));
        let surely = self.surely_enough(seen, &load, bounds).unwrap_or(f64::INFINITY);
        let most = self.most(seen, &load, bounds).min(surely);
        let within = |need: Need| Need { workers: need.workers.min(most), ..need };
        let live = within(load.need());
        self.unproven |= live.why == Why::Doubling && !self.queue.knows_steps();
        let uneven = seen.uneven(&load, live, bounds);
        let live_fit = fit(live.workers, uneven, bounds, Stage::Live);
        let suffices = matches!(live_fit.limit, Limit::None | Limit::Min);
        if suffices && !self.knows_rate(bounds) && self.refuted(seen, &load) {
            self.capacity.forget_remembered();
        }
        let stage = self.phases.observe(seen.at, seen.waiting.age, bounds, suffices);
        let (need, up, down) = if stage == Stage::Live {
            let cautious = self.not_below(within(self.with_margin(load).need()), surely, bounds);
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
        (Planned { need, arrival, wanted, fit, idle, stage }.required(seen, bounds), stage)
    }

    /// What the workers have to do, and what is known of them. `arrivals`: what has come for them.
    fn load<'a>(&self, seen: &PlanningInput, bounds: &Bounds, arrivals: &'a Arrivals) -> Load<'a> {
        let asked = self.steadiness.before().unwrap_or(0);
        Load {
            arrival: self.arrival(seen, bounds),
            per_worker: seen.rates.per_worker,
            pending: seen.waiting.events,
            staleness: seen.waiting.age,
            target: bounds.target,
            stage: Stage::Live,
            ready: seen.workers.ready,
            worth: worth(seen.workers.ready, shards(bounds)),
            before: self.steadiness.before(),
            // While no worker is ready, adding workers would not show their rate.
            learning: self.last.is_none()
                || seen.workers.ready == 0
                || self.capacity.is_learning()
                || self.learns_from_steps(seen, bounds),
            queued: self.is_queue(seen, bounds),
            start_up: self.start_up.typical(),
            coming: self.start_up.left(seen.at).map(|left| (worth(asked, shards(bounds)), left)),
            standing: STANDING,
            arrivals,
        }
    }

    /// The load that a smaller number of workers must suffice for.
    fn with_margin<'a>(&self, load: Load<'a>) -> Load<'a> {
        let measured = load.arrival.max(self.coming().mean(MARGIN_WINDOW).unwrap_or(0.0));
        let arrival = measured * MARGIN + CHANCE * (measured / ARRIVAL_TIME_CONSTANT.as_secs_f64()).sqrt();
        Load { arrival, start_up: Duration::ZERO, standing: 0.0, ..load }
    }

    /// The most full workers to ask for: the number that is being tried, and that of [`Self::unconfirmed`].
    fn most(&self, seen: &PlanningInput, load: &Load<'_>, bounds: &Bounds) -> f64 {
        let tried = self.trial.most(load.arrival).unwrap_or(f64::INFINITY);
        tried.min(self.unconfirmed(seen, load, bounds).unwrap_or(f64::INFINITY))
    }

    /// Tries fewer workers where their number does not come from a learnt rate.
    pub(super) fn try_fewer(&mut self, seen: &PlanningInput, bounds: &Bounds) {
        let arrival = self.coming().rate().unwrap_or(0.0);
        let brief = seen.waiting.age.is_some_and(|age| age < QUEUED.max(self.queue.look() * 2) + self.queue.look());
        self.queue_since =
            self.is_queue(seen, bounds).then(|| self.queue_since.map_or(seen.at, |since| since.min(seen.at)));
        let step = self.queue.step();
        let danger =
            seen.waiting.age.is_none_or(|age| age >= bounds.target.mul_f64(STANDING)) && self.is_queue(seen, bounds);
        let ready = worth(seen.workers.ready, shards(bounds));
        let whole_step = self.queue.stepped() && seen.settled_for >= WARM_UP.max(step);
        if whole_step && self.queue.outlasts_a_step(arrival) && arrival < self.queue.least_each() * ready {
            self.queue.forget_least_each();
        }
        let proven = self.trial.observe(Looked {
            at: seen.at,
            known: self.knows_rate(bounds),
            // Where no events arrive, no step has to confirm the number.
            calm: seen.nothing_to_do()
                || (brief && self.queue.knows_steps() && self.queue.calm(arrival))
                // However much an upper bound counts, the oldest that waits for certain has only come.
                || (brief && seen.waiting.certain.is_some()),
            danger,
            workers: self.steadiness.before().unwrap_or(seen.workers.ready),
            ready: seen.workers.ready,
            rolling: seen.workers.rolling,
            settled_for: seen.settled_for,
            arrival,
            step,
            notice: self.queue.look() * 2 + step + SHORTEST_WINDOW + self.start_up.typical(),
            target: bounds.target,
            least: bounds.min,
            shards: shards(bounds),
        });
        if let Some(at_least) = proven {
            self.capacity.at_least(at_least);
        }
    }

    /// True when by the rate per worker, which was not learnt in this run, the queue would have gone long ago. Where one worker alone is behind, since a
    /// shard of its own is hot, the others have too little to do to teach a rate that would correct it.
    fn refuted(&self, seen: &PlanningInput, load: &Load<'_>) -> bool {
        let in_danger = seen.waiting.age.is_some_and(|age| age >= load.target.mul_f64(STANDING));
        let (Some(rate), Some(since), true) = (load.per_worker, self.queue_since, in_danger && seen.teaches) else {
            return false;
        };
        let surplus = rate * load.worth - load.arrival;
        let stood = seen.settled_for.min(seen.at.saturating_sub(since)).saturating_sub(WARM_UP);
        let clears = as_float(seen.waiting.events) / surplus;
        // One whose checkpoint rests has another trouble.
        surplus > 0.0 && stood.as_secs_f64() > clears * REFUTED && self.queue.deepest_moves(seen.at)
    }

    /// The most workers while no rate is confirmed: a rate that an earlier run learnt adds no worker where there is no queue, nor while the rate is
    /// being learnt and the target is not in danger.
    fn unconfirmed(&self, seen: &PlanningInput, load: &Load<'_>, bounds: &Bounds) -> Option<f64> {
        let known = self.knows_rate(bounds);
        let danger = seen.waiting.age.is_none_or(|age| age >= bounds.target.mul_f64(STANDING));
        let holds = !known && (!load.queued || (load.learning && !danger));
        let before = self.steadiness.before().unwrap_or(seen.workers.ready).max(1);
        holds.then(|| worth(before, shards(bounds)))
    }

    /// The number of full workers that certainly suffices where no rate was learnt from workers that were the bottleneck: enough even if each does no
    /// more than steps of the checkpoint have shown.
    fn surely_enough(&self, seen: &PlanningInput, load: &Load<'_>, bounds: &Bounds) -> Option<f64> {
        let known = self.knows_rate(bounds);
        let least = self.queue.least_each();
        let told = !known && !seen.waiting.bound && seen.cadence.is_some() && least > 0.0;
        let mean = self.coming().mean(MARGIN_WINDOW).unwrap_or(0.0);
        let arrival = load.arrival.max(mean) * MARGIN;
        told.then(|| Load { arrival, per_worker: Some(least), standing: 0.0, ..*load }.need().workers.max(1.0))
    }

    /// A rate that an earlier run learnt removes no worker by itself: it may be far too high. Fewer workers are tried step by step.
    fn not_below(&self, need: Need, surely: f64, bounds: &Bounds) -> Need {
        let known = self.knows_rate(bounds);
        let before = self.steadiness.before().filter(|_| !known).map_or(0.0, |before| worth(before, shards(bounds)));
        let least =
            before.min(surely).min(self.trial.most(self.coming().rate().unwrap_or(0.0)).unwrap_or(f64::INFINITY));
        Need { workers: need.workers.max(least), ..need }
    }

    /// True when the next two steps of the checkpoint will show a worker's rate, in time for the target.
    fn learns_from_steps(&self, seen: &PlanningInput, bounds: &Bounds) -> bool {
        let in_time = seen.waiting.age.is_some_and(|age| age < bounds.target.mul_f64(PATIENT));
        let since = self.queue_since.unwrap_or(seen.at);
        let two_steps = self.queue.step() * 2 + self.queue.look() * 2;
        in_time
            && !seen.waiting.bound
            && seen.teaches
            && seen.cadence.is_some_and(|cadence| cadence.every < bounds.target / 2)
            && seen.at.saturating_sub(since) < two_steps
    }

    /// True when the waiting events are a queue, and not merely not committed yet. Before a step was seen, the two cannot be told apart: then workers
    /// are added once, and not before half of the target has passed.
    fn is_queue(&self, seen: &PlanningInput, bounds: &Bounds) -> bool {
        let arrival = self.coming().rate().unwrap_or(0.0);
        let by_age = !seen.teaches && seen.waiting.certain.is_some();
        if by_age {
            // Where counts say nothing, the age does: what a step of the checkpoint leaves and is so old is a queue, whatever its number. Shards that
            // go from one worker to another wait for up to two steps.
            let two_steps = (self.queue.step() + self.queue.look()) * 2;
            let patience = (bounds.target / 2).max(two_steps);
            let old = seen.waiting.age.is_none_or(|age| age >= patience);
            return old && self.queue.stepped() && seen.settled_for >= two_steps;
        }
        if !self.queue.knows_steps() {
            let half_gone = seen.waiting.age.is_none_or(|age| age >= (bounds.target / 2).max(FIRST_STEP));
            return half_gone && (!self.unproven || self.queue.outgrown(arrival, seen.workers.ready));
        }
        self.queue.outlasts_a_step(arrival) || self.queue.outgrown(arrival, seen.workers.ready)
    }

    /// The arrival rate to plan with, in events per second: while events wait, the average over the target's time (3 to 10 s) counts, too.
    fn arrival(&self, seen: &PlanningInput, bounds: &Bounds) -> f64 {
        let average = self.coming().rate().unwrap_or(0.0);
        let window = bounds.target.clamp(Duration::from_secs(3), Duration::from_secs(10));
        let waits = seen.waiting.age.is_none_or(|age| age >= QUEUED);
        let recent = self.coming().mean(window).filter(|_| waits && seen.waiting.events > 0);
        recent.map_or(average, |recent| recent.max(average)).max(seen.expected.unwrap_or(0.0))
    }

    /// Keeps a number that rose for a while, and adds no worker where none would help.
    fn steady(&mut self, seen: &PlanningInput, bounds: &Bounds, stage: Stage, up: Fit, down: Fit) -> (u32, Fit) {
        let held = self.steadiness.held(seen.workers.ready, bounds.min);
        let mut up = up;
        if seen.stuck || seen.saturated.is_some() || bounds.strain.is_some() {
            let bound = seen.saturated.is_some() && !matches!(up.limit, Limit::None | Limit::Min);
            let short = up.workers > held || bound;
            let limit = if short && !seen.stuck { Limit::ReadStore } else { up.limit };
            up = Fit { workers: up.workers.min(held), limit };
        }
        let rolling = seen.workers.rolling && seen.settled_for < ROLLS_AT_MOST;
        // Nor may workers be removed before it is known how many events arrive.
        let still = rolling || seen.settled_for < WARM_UP || self.coming().begins();
        let arrival = self.coming().rate().unwrap_or(0.0);
        let steady = self.steadiness.answer(seen.at, up.workers, down.workers.max(up.workers), still, arrival);
        let top = top(bounds, stage);
        let answer = round_up(steady, shards(bounds), top.max(1)).clamp(bounds.min.clamp(1, top), top);
        if answer != steady {
            self.steadiness.force(answer);
        }
        (answer, up)
    }
}

impl Planned {
    /// The number within the read store's connections, with the sentence that explains it.
    fn required(self, seen: &PlanningInput, bounds: &Bounds) -> Required {
        let Self { need, arrival, wanted, fit, idle, stage } = self;
        let throttled = bounds.throttled.filter(|throttled| throttled.most < wanted);
        // What it may not have anyway leaves the connections to others.
        let (allowed, limit) = throttled.map_or((wanted, fit.limit), |it| (it.most, Limit::LiveVersion));
        let (workers, limit) = within_connections(allowed, limit, bounds);
        let hottest = seen.by_shard.iter().max().copied().unwrap_or(0);
        let told = Told {
            workers,
            wanted,
            fit: Fit { workers: fit.workers, limit },
            need,
            arrival,
            expected: seen.expected.is_some_and(|expected| expected >= arrival && expected > 0.0),
            per_worker: seen.rates.per_worker,
            pending: seen.pending,
            cadence: seen.cadence,
            waiting: seen.waiting.events,
            certain: seen.waiting.certain.or(seen.waiting.bound.then_some(seen.waiting.events)),
            by_certain: seen.waiting.bound,
            extent: seen.waiting.extent,
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
        Required { workers, wanted: allowed, limit, throttled, reason: sentence(&told) }
    }
}

pub(super) fn within_connections(wanted: u32, limit: Limit, bounds: &Bounds) -> (u32, Limit) {
    match bounds.connections.filter(|connections| wanted > *connections) {
        // At least one worker: without any, nothing would ever change.
        Some(connections) => {
            let most = connections.max(1);
            (useful_workers(f64::from(wanted), shards(bounds), most).min(wanted), Limit::Connections)
        }
        None => (wanted, limit),
    }
}
