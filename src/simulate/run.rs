//! Runs the world: arrivals, work, samples, the policy's own changes, and the autoscaler's looks, tick by tick.

use std::time::Duration;

use super::{
    crew::Crew,
    deal::Deals,
    kind::{Checkpoints, Measured, WorkerKind},
    log::{Arrivals, Backlog},
    outcome::{Moment, Run},
    policy::{Policy, State},
    record::Record,
    shard::Shard,
    trace::Trace,
};
use crate::hpa::{Autoscaler, Controller, Phase, Pod, Scale, Settings};

/// What is simulated, but for the policy.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// The arrivals.
    pub trace: Trace,
    /// What waits at the beginning.
    pub backlog: Backlog,
    /// Each shard's part of the events: 24 times the same for 24 equal ones. Empty: workers compete, and there are no shards.
    pub shards: Vec<f64>,
    /// What one busy worker handles in events per second, where the trace does not contain it.
    pub per_worker: f64,
    /// From a worker's creation until it is ready.
    pub start_up: Duration,
    /// When workers commit, what is measured of it, and whether one of them is slow.
    pub kind: WorkerKind,
    /// Workers at the beginning.
    pub workers: i32,
    /// They are ready at once; else they take their start-up, too.
    pub ready_at_first: bool,
    /// No event should wait longer than this.
    pub target: Duration,
    /// Time between two samples.
    pub sampling: Duration,
    /// When the first is taken. An operator does not begin to look just when a load begins.
    pub first_sample: Duration,
    /// Time between two looks of the autoscaler.
    pub sync_period: Duration,
    /// When it looks first.
    pub phase: Duration,
    /// How the autoscaler's controller is set up.
    pub settings: Settings,
    /// The grain of the simulation. Workers start, samples are taken and the autoscaler looks at whole ticks.
    pub tick: Duration,
}

impl Scenario {
    /// With what is usual: 24 equal shards, a start-up of 2 s, one ready worker to begin with, a sample every 500 ms, a look every 15 s, the first
    /// after 7 s, and 100 events per second for each worker. The grain is 100 ms, however long the trace is.
    pub fn new(trace: Trace, target: Duration) -> Self {
        Self {
            trace,
            backlog: Backlog::default(),
            shards: vec![1.0; 24],
            per_worker: 100.0,
            start_up: Duration::from_secs(2),
            kind: WorkerKind::default(),
            workers: 1,
            ready_at_first: true,
            target,
            sampling: Duration::from_millis(500),
            first_sample: Duration::ZERO,
            sync_period: Duration::from_secs(15),
            phase: Duration::from_secs(7),
            settings: Settings::default(),
            tick: Duration::from_millis(100),
        }
    }
}

/// The real controller waits for its period after each look, which takes a moment itself: what is a whole number of periods old is already older. By
/// how much does not matter, as long as it is not nothing.
const LOOK_TAKES: Duration = Duration::from_millis(10);

/// Runs the plan to the end of its trace.
pub fn run(plan: &Scenario, policy: &mut dyn Policy) -> Run {
    let mut world = World::new(plan);
    let mut autoscaler = policy.autoscaler().map(|spec| (spec, Controller::new(plan.settings)));
    let tick = plan.tick.max(Duration::from_millis(1));
    let (mut sample_at, mut look_at) = (plan.first_sample, plan.phase);
    let mut record = Record::new(plan.trace.begins(), tick, plan.target);
    let mut now = Duration::ZERO;
    let mut measured = Measured::default();
    loop {
        let seen = world.see(now);
        // Looks do not keep to the grain: one comes within its tick.
        let looks = now + tick > look_at;
        if now >= sample_at || looks {
            measured = world.measure(now);
        }
        if now >= sample_at {
            policy.sample(&seen.state(&world, &measured, now));
            if let Some(to) = policy.scale_to(&seen.state(&world, &measured, now)) {
                world.scale(to, now);
            }
            sample_at += plan.sampling.max(tick);
        }
        if looks {
            if let Some((spec, controller)) = &mut autoscaler {
                let state = seen.state(&world, &measured, now);
                if let Some(to) = look(spec, controller, policy, &state, look_at) {
                    world.scale(to, now);
                }
            }
            look_at += plan.sync_period.max(tick) + LOOK_TAKES;
        }
        record.push(seen.moment(&world, &measured, now, policy.required()));
        if now >= plan.trace.length() {
            return record.finish();
        }
        world.work(now, tick);
        now += tick;
    }
}

fn look(
    spec: &Autoscaler,
    controller: &mut Controller,
    policy: &mut dyn Policy,
    state: &State<'_>,
    at: Duration,
) -> Option<i32> {
    let readings = policy.readings(state);
    let cpu = policy.cpu(state);
    let pod = |(index, worker): (usize, &super::Worker)| {
        let ready = worker.ready_at <= state.now;
        let base = if ready { Pod::ready(worker.ready_at) } else { Pod::starting(worker.created) };
        let cpu = cpu.get(index);
        Pod {
            started: Some(worker.created),
            phase: Phase::Running,
            cpu_request: cpu.map_or(0, |cpu| cpu.request),
            cpu: cpu.and_then(|cpu| cpu.used),
            ..base
        }
    };
    let pods: Vec<Pod> = state.workers.iter().enumerate().map(pod).collect();
    let scale = Scale { spec: state.replicas, status: state.replicas, pods: &pods };
    controller.look(spec, scale, &readings, at).scale_to
}

/// What is there, beside the policy.
struct World<'a> {
    plan: &'a Scenario,
    arrivals: Arrivals,
    deals: Deals,
    shards: Vec<Shard>,
    crew: Crew,
}

/// What is seen at one moment. The workers are seen through the world, since they change within the moment.
struct WorldState {
    arrived: u64,
    pending: u64,
    staleness: Duration,
    per_worker: f64,
    arriving: f64,
}

impl<'a> World<'a> {
    fn new(plan: &'a Scenario) -> Self {
        let weights: Vec<f64> = plan.shards.iter().copied().filter(|weight| *weight > 0.0).collect();
        // One stands for the log that workers compete for.
        let weights = if weights.is_empty() { vec![1.0] } else { weights };
        let workers = usize::try_from(plan.workers).unwrap_or(0);
        Self {
            plan,
            arrivals: Arrivals::new(&plan.trace, plan.backlog),
            deals: Deals::new(&weights),
            shards: vec![Shard::default(); weights.len()],
            crew: if plan.ready_at_first {
                Crew::ready(workers, plan.start_up, plan.kind)
            } else {
                Crew::starting(workers, plan.start_up, plan.kind)
            },
        }
    }

    fn per_worker(&self, at: Duration) -> f64 {
        self.plan.trace.at(at).per_worker.unwrap_or(self.plan.per_worker)
    }

    fn see(&mut self, now: Duration) -> WorldState {
        let seconds = now.as_secs_f64();
        let head = self.deals.deal(&mut self.shards, self.arrivals.until(seconds));
        let (mut pending, mut oldest) = (0, seconds);
        for shard in &mut self.shards {
            pending += whole(shard.pending());
            oldest = shard.oldest(&self.arrivals).unwrap_or(oldest).min(oldest);
        }
        WorldState {
            arrived: whole(head),
            pending,
            staleness: since(oldest, seconds),
            per_worker: self.per_worker(now),
            arriving: self.plan.trace.at(now).arriving,
        }
    }

    /// What is seen from outside.
    fn measure(&mut self, now: Duration) -> Measured {
        let seconds = now.as_secs_f64();
        let head = self.deals.deal(&mut self.shards, self.arrivals.until(seconds));
        let counted = matches!(self.plan.kind.checkpoints, Checkpoints::Following | Checkpoints::Shard);
        let (mut by_shard, mut checkpoints, mut oldest) = (Vec::new(), Vec::new(), seconds);
        for shard in &mut self.shards {
            checkpoints.push(whole(match self.plan.kind.checkpoints {
                Checkpoints::Following => shard.following(head),
                Checkpoints::Shard | Checkpoints::ShardUnknown => shard.row(head),
                Checkpoints::One => shard.known(head),
            }));
            if counted {
                by_shard.push(whole(shard.uncommitted()));
                oldest = shard.oldest_uncommitted(&self.arrivals).unwrap_or(oldest).min(oldest);
            }
        }
        if counted {
            let pending = by_shard.iter().sum();
            return Measured { pending, exact: true, by_shard, checkpoints, staleness: since(oldest, seconds) };
        }
        let lowest = checkpoints.iter().min().copied().unwrap_or(0);
        let pending = whole(head).saturating_sub(lowest);
        if pending > 0 {
            oldest = self.arrivals.time_of(as_float(usize::try_from(lowest).unwrap_or(usize::MAX)) + 1.0);
        }
        let one = self.plan.kind.checkpoints == Checkpoints::One;
        Measured {
            pending,
            // One row shows exactly how many events lie beyond it.
            exact: one || self.shards.len() == 1,
            by_shard: Vec::new(),
            checkpoints: if one { vec![lowest] } else { checkpoints },
            staleness: since(oldest, seconds),
        }
    }

    fn scale(&mut self, to: i32, now: Duration) {
        if to != self.crew.count() && to >= 0 {
            self.crew.scale(to, now);
        }
    }

    fn work(&mut self, now: Duration, tick: Duration) {
        let head = self.deals.deal(&mut self.shards, self.arrivals.until(now.as_secs_f64()));
        let (rate, compete) = (self.per_worker(now), self.plan.shards.is_empty());
        self.crew.fetch(&mut self.shards, compete, rate, head);
        self.deals.deal(&mut self.shards, self.arrivals.until((now + tick).as_secs_f64()));
        self.crew.work(&mut self.shards, compete, rate, tick.as_secs_f64(), now);
    }
}

impl WorldState {
    fn state<'s>(&'s self, world: &'s World<'_>, measured: &'s Measured, now: Duration) -> State<'s> {
        State {
            now,
            clock: world.plan.trace.begins() + now,
            arrived: self.arrived,
            measured,
            replicas: world.crew.count(),
            workers: world.crew.workers(),
            per_worker: self.per_worker,
            arriving: self.arriving,
        }
    }

    fn moment(&self, world: &World<'_>, measured: &Measured, now: Duration, required: Option<u32>) -> Moment {
        Moment {
            at: now,
            arriving: self.arriving,
            pending: self.pending,
            staleness: self.staleness,
            measured_pending: measured.pending,
            measured_staleness: measured.staleness,
            replicas: world.crew.count(),
            ready: u32::try_from(world.crew.ready_at(now)).unwrap_or(u32::MAX),
            required,
        }
    }
}

/// The age of what came at `oldest`, in seconds.
fn since(oldest: f64, seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds - oldest).unwrap_or(Duration::ZERO)
}

/// Counts stay far below 2^53.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn whole(events: f64) -> u64 {
    events.max(0.0) as u64
}

#[allow(clippy::cast_precision_loss)]
fn as_float(number: usize) -> f64 {
    number as f64
}

#[cfg(test)]
#[path = "run_tests.rs"]
mod tests;
