//! What holds for whatever samples come, in whatever order.

use proptest::prelude::*;

use super::*;
use crate::lag::{CatchUp, CheckpointState, Head, Position, Required};

#[derive(Clone, Debug)]
struct Step {
    gap: u64,
    backwards: bool,
    arrived: u64,
    handled: u64,
    rewind: bool,
    pending_known: bool,
    committed: bool,
    staleness: Option<u64>,
    ahead: u64,
    ready: u32,
    rolling: bool,
    shards: Vec<u64>,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let counts = prop_oneof![Just(0), 0..200_u64, 0..100_000_u64, Just(u64::MAX / 4)];
    let step = (
        (prop_oneof![1..3_000_u64, 1..100_000_u64], prop::bool::weighted(0.05), counts.clone(), counts),
        (prop::bool::weighted(0.05), prop::bool::weighted(0.95), prop::bool::weighted(0.95)),
        (prop::option::weighted(0.9, 0..30_000_u64), prop_oneof![Just(0), Just(40_u64)]),
        (0..40_u32, prop::bool::weighted(0.2), prop::collection::vec(0..10_000_u64, 0..=24)),
    );
    let step = step.prop_map(
        |((gap, backwards, arrived, handled), (rewind, pending_known, committed), (staleness, ahead), workers)| {
            let (ready, rolling, shards) = workers;
            Step {
                gap,
                backwards,
                arrived,
                handled,
                rewind,
                pending_known,
                committed,
                staleness,
                ahead,
                ready,
                rolling,
                shards,
            }
        },
    );
    prop::collection::vec(step, 1..120)
}

fn bounds() -> impl Strategy<Value = Bounds> {
    let some = |most: u32| prop::option::of(0..most);
    ((0..5_u32, 1..40_u32, some(40), some(30)), any::<bool>(), prop::option::of((1..600_u64, 1..60_u32)), some(400))
        .prop_map(|((min, max, shards, connections), strict, catch_up, rate)| Bounds {
            target: Duration::from_secs(5),
            min,
            max,
            shards,
            strict,
            stuck_after: Duration::from_secs(60),
            idle_for: Duration::from_secs(30),
            catch_up: catch_up.map(|(within, max)| CatchUp { within: Duration::from_secs(within), max }),
            given_rate: rate.map(f64::from),
            connections,
            throttled: None,
            strain: strict.then_some(crate::lag::Strain::Writes),
            retention: Some(Duration::from_secs(120)),
            look_ahead: strict.then_some(crate::lag::LookAhead::Hourly),
            value: None,
        })
}

struct Replay {
    model: Model,
    at: u64,
    head: u64,
    done: u64,
}

impl Replay {
    fn new() -> Self {
        Self { model: Model::remembering(None, None, None), at: 1_000_000, head: 1, done: 0 }
    }

    fn step(&mut self, step: &Step, bounds: Bounds) -> Result<Assessment, Fault> {
        self.at = if step.backwards { self.at.saturating_sub(step.gap) } else { self.at + step.gap };
        self.head = self.head.saturating_add(step.arrived);
        self.done = self.done.saturating_add(step.handled).min(self.head);
        if step.rewind {
            self.done /= 2;
        }
        let position = |count: u64| Position(i64::try_from(count).unwrap_or(i64::MAX));
        let sample = Sample {
            pending_by_shard: step.shards.clone(),
            staleness: step.staleness.map(Duration::from_millis),
            ahead_of_clock: Duration::from_secs(step.ahead),
            ..Sample::new(
                Duration::from_millis(self.at),
                Head::log(position(self.head), position(self.head)),
                match step.committed {
                    true => CheckpointState::Committed(vec![position(self.done)]),
                    false => CheckpointState::NeverCommitted,
                },
                step.pending_known.then_some(Pending { events: self.head - self.done, exact: true }),
                self.head,
            )
        };
        self.model.observe(&sample, Workers { ready: step.ready, rolling: step.rolling }, bounds)
    }
}

fn allowed(bounds: &Bounds) -> u32 {
    let max = bounds.catch_up.map_or(bounds.max, |catch_up| catch_up.max.max(bounds.max));
    let shards = bounds.shards.filter(|shards| *shards > 0).unwrap_or(u32::MAX);
    let most = if bounds.strict { 1 } else { max.min(shards) };
    most.min(bounds.connections.unwrap_or(u32::MAX).max(1))
}

proptest! {
    #[test]
    fn never_outside_the_bounds_and_never_a_panic(steps in steps(), bounds in bounds()) {
        let mut replay = Replay::new();
        for step in &steps {
            let Ok(assessment) = replay.step(step, bounds) else { continue };
            let Required { workers, wanted, .. } = assessment.required;
            prop_assert!(workers <= allowed(&bounds), "{workers} of {}", allowed(&bounds));
            prop_assert!(workers <= wanted);
            if workers == 0 {
                prop_assert!(bounds.min == 0 && assessment.pending.events == 0);
                prop_assert!(assessment.idle_for >= bounds.idle_for);
            }
            if bounds.connections.is_none() && bounds.catch_up.is_none() {
                prop_assert!(workers >= bounds.min.min(allowed(&bounds)));
            }
            prop_assert!(assessment.rates.arrival.is_none_or(|rate| rate.is_finite() && rate >= 0.0));
            prop_assert!(assessment.rates.per_worker.is_none_or(|rate| rate.is_finite() && rate > 0.0));
            prop_assert!(!assessment.required.reason.is_empty());
        }
    }

    #[test]
    fn what_rose_does_not_fall_within_a_minute(steps in steps(), bounds in bounds()) {
        // Bounds that are the same all the time force nothing; going to sleep is a rule of its own.
        let bounds = Bounds { min: bounds.min.max(1), catch_up: None, ..bounds };
        let mut replay = Replay::new();
        let (mut rose_at, mut before) = (None, None);
        for step in steps.iter().map(|step| Step { backwards: false, ..step.clone() }) {
            let Ok(assessment) = replay.step(&step, bounds) else { continue };
            let workers = assessment.required.workers;
            if let Some(before) = before {
                if workers > before {
                    rose_at = Some(replay.at);
                } else if workers < before {
                    prop_assert!(rose_at.is_none_or(|rose_at| replay.at >= rose_at + 60_000));
                }
            }
            before = Some(workers);
        }
    }

    #[test]
    fn more_that_waits_never_asks_for_fewer(
        arrived in 0..2_000_u64,
        waiting in 0..20_000_u64,
        more in 1..20_000_u64,
        age in 0..30_u64,
        rate in 1..500_u32,
        ready in 0..24_u32,
    ) {
        let needed = |waiting: u64| {
            let mut replay = Replay::new();
            let bounds = Bounds {
                target: Duration::from_secs(5),
                min: 0,
                max: 24,
                shards: Some(24),
                strict: false,
                stuck_after: Duration::from_secs(60),
                idle_for: Duration::from_secs(30),
                catch_up: None,
                given_rate: Some(f64::from(rate)),
                connections: None,
                strain: None,
                throttled: None,
                retention: None,
look_ahead: None,
value: None,
            };
            let step = |arrived, staleness| Step {
                gap: 1_000,
                backwards: false,
                arrived,
                handled: 0,
                rewind: false,
                pending_known: true,
                committed: true,
                staleness: Some(staleness),
                ahead: 0,
                ready,
                rolling: false,
                shards: Vec::new(),
            };
            replay.step(&step(waiting, age * 1_000), bounds).unwrap();
            replay.step(&step(arrived, (age + 1) * 1_000), bounds).unwrap().required.workers
        };
        prop_assert!(needed(waiting) <= needed(waiting + more));
    }
}
