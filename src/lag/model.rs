//! One projection's model: what its samples so far say about now.

use std::time::Duration;

use super::{
    CheckpointState, Pending, Position, Rates, Required, Sample,
    rates::{Interval, RateLearner, as_float},
    required::{Load, Range, required},
};

/// What the spec asks for, as far as the model needs it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Bounds {
    /// No event waits longer than this.
    pub target: Duration,
    /// Fewest workers.
    pub min: u32,
    /// Most workers.
    pub max: u32,
    /// The unit of parallelism, where it is known and limits it.
    pub shards: Option<u32>,
    /// All events in one order.
    pub strict: bool,
    /// A checkpoint that does not move for so long while there is work is stuck.
    pub stuck_after: Duration,
}

/// The workers, as the cluster reports them.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Workers {
    /// Ready now.
    pub ready: u32,
    /// Some are being replaced or started.
    pub rolling: bool,
}

/// What a sample means.
#[derive(Clone, Debug, PartialEq)]
pub struct Assessment {
    /// Events that wait.
    pub pending: Pending,
    /// Age of the oldest of them; zero when there is none, absent when unknown.
    pub staleness: Option<Duration>,
    /// Events per second.
    pub rates: Rates,
    /// Seconds until nothing waits, at today's rates and with the workers that are ready; absent when the backlog does not shrink
    /// or a rate is unknown.
    pub drain: Option<Duration>,
    /// How many workers hold the target.
    pub required: Required,
    /// How long the checkpoint has not moved although there is work; zero when it moves or nothing waits.
    pub frozen_for: Duration,
    /// `frozen_for` has reached the bound.
    pub stuck: bool,
    /// The checkpoint went backwards since the last sample, from where to where.
    pub rewound: Option<(Position, Position)>,
}

/// Why a sample does not tell the lag.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Fault {
    /// There is no checkpoint: pending cannot be told from "nothing done yet" or "nothing to do".
    #[error("no checkpoint has been committed yet")]
    NeverCommitted,
    /// A source that was restored or replaced silently skips events.
    #[error(
        "the checkpoint {checkpoint} is beyond the source's head {head}: was the source restored or replaced? Events would be skipped silently"
    )]
    CheckpointBeyondHead {
        /// The furthest shard's checkpoint.
        checkpoint: Position,
        /// The raw head.
        head: Position,
    },
    /// The probe could not tell what is pending.
    #[error("the source did not tell how many events are pending")]
    PendingUnknown,
}

/// Follows one projection from sample to sample.
#[derive(Clone, Debug)]
pub struct Model {
    learner: RateLearner,
    last: Option<Last>,
    required: Option<u32>,
    moved_at: Option<Duration>,
}

#[derive(Clone, Debug)]
struct Last {
    at: Duration,
    arrived: u64,
    pending: Pending,
    checkpoint: CheckpointState,
    staleness: Option<Duration>,
    workers: Workers,
}

/// Below this age of the oldest event the workers are not known to be busy: it is in somebody's hands.
const QUEUED: Duration = Duration::from_secs(1);

impl Model {
    /// Starts with what an earlier run learnt: the rate per worker in events per second and the last answer.
    pub fn remembering(per_worker: Option<f64>, required: Option<u32>) -> Self {
        Self { learner: RateLearner::remembering(per_worker), last: None, required, moved_at: None }
    }

    /// Takes in one sample.
    pub fn observe(&mut self, sample: &Sample, workers: Workers, bounds: Bounds) -> Result<Assessment, Fault> {
        let pending = match plausible(sample) {
            Ok(pending) => pending,
            Err(fault) => {
                self.last = None;
                self.moved_at = None;
                return Err(fault);
            }
        };
        let rewound = self.rewound(sample);
        let restarted = rewound.is_some()
            || self.last.as_ref().is_some_and(|last| sample.at <= last.at || sample.arrived < last.arrived);
        if let Some(last) = self.last.as_ref().filter(|_| !restarted) {
            self.learner.observe(interval(last, sample, pending, workers));
        }
        let frozen_for = self.frozen_for(sample, pending);
        let stuck = frozen_for >= bounds.stuck_after;
        let rates = self.learner.rates();
        let required = required(
            Load {
                rates,
                pending,
                staleness: sample.staleness,
                target: bounds.target,
                ready: workers.ready,
                before: self.required,
                stuck,
                rolling: workers.rolling,
            },
            Range { min: bounds.min, max: bounds.max, shards: bounds.shards, strict: bounds.strict },
        );
        self.required = Some(required.workers);
        self.last = Some(Last {
            at: sample.at,
            arrived: sample.arrived,
            pending,
            checkpoint: sample.checkpoint.clone(),
            staleness: sample.staleness,
            workers,
        });
        Ok(Assessment {
            pending,
            staleness: sample.staleness,
            rates,
            drain: drain(pending, rates, workers),
            required,
            frozen_for,
            stuck,
            rewound,
        })
    }

    fn rewound(&self, sample: &Sample) -> Option<(Position, Position)> {
        let before = self.last.as_ref()?.checkpoint.lowest()?;
        let now = sample.checkpoint.lowest()?;
        (now < before).then_some((before, now))
    }

    fn frozen_for(&mut self, sample: &Sample, pending: Pending) -> Duration {
        let moved = self.last.as_ref().is_none_or(|last| last.checkpoint != sample.checkpoint) || pending.events == 0;
        if moved {
            self.moved_at = Some(sample.at);
        }
        self.moved_at.map_or(Duration::ZERO, |moved_at| sample.at.saturating_sub(moved_at))
    }
}

fn plausible(sample: &Sample) -> Result<Pending, Fault> {
    match sample.checkpoint.highest() {
        None => Err(Fault::NeverCommitted),
        Some(checkpoint) if checkpoint > sample.head.raw => {
            Err(Fault::CheckpointBeyondHead { checkpoint, head: sample.head.raw })
        }
        Some(_) => sample.pending.ok_or(Fault::PendingUnknown),
    }
}

fn interval(last: &Last, sample: &Sample, pending: Pending, workers: Workers) -> Interval {
    let arrived = sample.arrived - last.arrived;
    // What arrived and does not wait was handled. Across a change from a bound to a count the difference means nothing.
    let handled =
        (last.pending.exact == pending.exact).then(|| (last.pending.events + arrived).saturating_sub(pending.events));
    let queued = |staleness: Option<Duration>| staleness.is_some_and(|age| age >= QUEUED);
    let steady = !workers.rolling && !last.workers.rolling && workers.ready == last.workers.ready;
    let saturated = steady && queued(last.staleness) && queued(sample.staleness);
    let shards_with_work = sample.pending_by_shard.iter().filter(|waiting| **waiting > 0).count();
    let busy = if sample.pending_by_shard.is_empty() {
        workers.ready
    } else {
        workers.ready.min(u32::try_from(shards_with_work).unwrap_or(u32::MAX))
    };
    Interval {
        length: sample.at.saturating_sub(last.at),
        arrived,
        handled,
        saturated_workers: saturated.then_some(busy),
        ready_workers: workers.ready,
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
mod tests {
    use super::*;
    use crate::lag::{Head, Limit};

    const BOUNDS: Bounds = Bounds {
        target: Duration::from_secs(10),
        min: 1,
        max: 10,
        shards: None,
        strict: false,
        stuck_after: Duration::from_secs(300),
    };

    /// A source and its workers, second by second: positions are counts here.
    struct World {
        now: u64,
        head: u64,
        done: u64,
        workers: u32,
        model: Model,
    }

    impl World {
        fn new(workers: u32) -> Self {
            Self { now: 0, head: 0, done: 0, workers, model: Model::remembering(None, None) }
        }

        fn sample(&self) -> Sample {
            let pending = self.head - self.done;
            Sample {
                at: Duration::from_secs(self.now),
                taken: jiff::Timestamp::UNIX_EPOCH,
                head: Head { raw: position(self.head), safe: position(self.head) },
                checkpoint: CheckpointState::Committed(vec![position(self.done)]),
                pending: Some(Pending { events: pending, exact: true }),
                pending_by_shard: Vec::new(),
                arrived: self.head,
                staleness: Some(Duration::from_secs(pending / 100)),
                ahead_of_clock: Duration::ZERO,
                blocked_by: None,
            }
        }

        fn second(&mut self, arrived: u64, each_does: u64) -> Assessment {
            self.now += 1;
            self.head += arrived;
            self.done = self.head.min(self.done + each_does * u64::from(self.workers));
            let workers = Workers { ready: self.workers, rolling: false };
            self.model.observe(&self.sample(), workers, BOUNDS).unwrap()
        }
    }

    fn position(at: u64) -> Position {
        Position(i64::try_from(at).unwrap())
    }

    #[test]
    fn learns_from_a_backlog_and_then_asks_for_what_the_load_needs() {
        let mut world = World::new(1);
        for _ in 0..10 {
            world.second(300, 50);
        }
        let assessment = world.second(300, 50);
        assert_eq!(assessment.rates.per_worker, Some(50.0));
        // 300/s arrive, and the backlog goes in what is left: more than the 6 workers that would merely keep up.
        assert_eq!((assessment.required.workers, assessment.required.limit), (10, Limit::Max));
        world.workers = 10;
        for _ in 0..60 {
            world.second(300, 50);
        }
        let assessment = world.second(300, 50);
        assert_eq!(assessment.pending.events, 0);
        assert_eq!(assessment.required.workers, 8, "300/s with a margin of a fifth at 50/s each");
    }

    #[test]
    fn workers_that_wait_for_events_do_not_look_slow() {
        let mut world = World::new(1);
        for _ in 0..10 {
            world.second(300, 50);
        }
        world.workers = 10;
        for _ in 0..300 {
            world.second(20, 50);
        }
        let assessment = world.second(20, 50);
        assert_eq!(assessment.rates.per_worker, Some(50.0));
        assert_eq!(assessment.required.workers, 1);
    }

    #[test]
    fn a_checkpoint_that_does_not_move_is_stuck_after_the_bound_and_not_before() {
        let mut world = World::new(1);
        world.second(100, 50);
        for _ in 0..299 {
            assert!(!world.second(1, 0).stuck);
        }
        let assessment = world.second(1, 0);
        assert!(assessment.stuck);
        assert_eq!(assessment.frozen_for, Duration::from_secs(300));
        assert!(!world.second(1, 50).stuck);
    }

    #[test]
    fn a_checkpoint_beyond_the_head_is_a_fault_and_not_zero() {
        let mut world = World::new(1);
        world.second(100, 100);
        let mut sample = world.sample();
        sample.head = Head { raw: position(40), safe: position(40) };
        let fault = world.model.observe(&sample, Workers::default(), BOUNDS).unwrap_err();
        assert_eq!(fault, Fault::CheckpointBeyondHead { checkpoint: position(100), head: position(40) });
    }

    #[test]
    fn never_committed_is_a_fault_and_not_zero() {
        let mut world = World::new(1);
        let sample = Sample { checkpoint: CheckpointState::NeverCommitted, pending: None, ..world.sample() };
        assert_eq!(world.model.observe(&sample, Workers::default(), BOUNDS), Err(Fault::NeverCommitted));
    }

    #[test]
    fn a_rewound_checkpoint_is_told_and_teaches_no_rate() {
        let mut world = World::new(1);
        for _ in 0..10 {
            world.second(300, 50);
        }
        let known = world.second(300, 50).rates.per_worker;
        world.done = 0;
        let assessment = world.second(300, 0);
        assert_eq!(assessment.rewound, Some((position(550), position(0))));
        assert_eq!(assessment.rates.per_worker, known);
    }

    #[test]
    fn drain_time_is_unknown_while_the_backlog_does_not_shrink() {
        let mut world = World::new(1);
        for _ in 0..10 {
            world.second(300, 50);
        }
        assert_eq!(world.second(300, 50).drain, None);
        world.workers = 20;
        let assessment = world.second(300, 50);
        let seconds = assessment.drain.unwrap().as_secs_f64();
        let expected = as_float(assessment.pending.events) / (1000.0 - assessment.rates.arrival.unwrap());
        assert!((seconds - expected).abs() < 1e-6, "{seconds} {expected}");
        while world.head > world.done {
            world.second(0, 50);
        }
        assert_eq!(world.second(0, 50).drain, Some(Duration::ZERO));
    }
}
