//! One projection's model: what its samples so far say about now.

use std::time::Duration;

use super::{
    CheckpointState, Pending, Position, Rates, Required, Sample,
    rates::{Interval, RateLearner, as_float},
    required::{Load, Range, required},
};

/// What the spec asks for, as far as the model needs it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bounds {
    /// No event waits longer than this.
    pub target: Duration,
    /// Fewest workers; with 0 there is none once nothing has waited for [`Bounds::idle_for`].
    pub min: u32,
    /// Most workers.
    pub max: u32,
    /// The unit of parallelism, where it is known and limits it.
    pub shards: Option<u32>,
    /// All events in one order.
    pub strict: bool,
    /// A checkpoint that does not move for so long while there is work is stuck.
    pub stuck_after: Duration,
    /// Quiet for so long before the last worker goes away, where [`Bounds::min`] is 0.
    pub idle_for: Duration,
    /// How fast a backlog that breaks the target is to be cleared, where the spec says.
    pub catch_up: Option<CatchUp>,
    /// Events that one worker handles per second, as the spec says: used until it is learnt.
    pub given_rate: Option<f64>,
    /// The most workers that this projection's share of the read store's connections allows.
    pub connections: Option<u32>,
    /// How long the source keeps events.
    pub retention: Option<Duration>,
}

/// How fast a backlog that breaks the target is to be cleared.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct CatchUp {
    /// In so much time, counted from when the target was broken.
    pub within: Duration,
    /// Never more workers than this meanwhile.
    pub max: u32,
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
    /// The last sample that told the lag; gone after one that did not, since rates are learnt between neighbours only.
    last: Option<Last>,
    required: Option<u32>,
    /// Outlives samples that tell no lag: what is unknown has not moved.
    watched: Option<Watched>,
    /// Where the checkpoint was stuck before the process was started anew, until the first one is seen.
    stuck_at: Option<Position>,
}

/// A checkpoint and for how long it has been seen not to move while there was work. A sum, and no point in time, so that a clock that begins
/// anew takes nothing away.
#[derive(Clone, Debug)]
struct Watched {
    checkpoint: CheckpointState,
    /// Events were seen to wait. Before that nothing asks it to move, not even during a time without samples.
    waited_for: bool,
    seen_at: Duration,
    frozen_for: Duration,
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
    /// Starts with what an earlier run learnt: the rate per worker in events per second, the last answer, and the lowest checkpoint if it was
    /// stuck there.
    pub fn remembering(per_worker: Option<f64>, required: Option<u32>, stuck_at: Option<Position>) -> Self {
        Self { learner: RateLearner::remembering(per_worker), last: None, required, watched: None, stuck_at }
    }

    /// Takes in one sample.
    pub fn observe(&mut self, sample: &Sample, workers: Workers, bounds: Bounds) -> Result<Assessment, Fault> {
        let pending = match plausible(sample) {
            Ok(pending) => pending,
            Err(fault) => {
                self.last = None;
                self.watch(sample, None, bounds);
                return Err(fault);
            }
        };
        let rewound = self.rewound(sample);
        let restarted = rewound.is_some()
            || self.last.as_ref().is_some_and(|last| sample.at <= last.at || sample.arrived < last.arrived);
        if let Some(last) = self.last.as_ref().filter(|_| !restarted) {
            self.learner.observe(interval(last, sample, pending, workers));
        }
        let frozen_for = self.watch(sample, Some(pending), bounds);
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

    /// Follows the checkpoint, and returns how long it has not moved although there is work. Only another checkpoint or the knowledge that
    /// nothing waits ends that time; a sample that tells neither, or none at all, lets it go on.
    fn watch(&mut self, sample: &Sample, pending: Option<Pending>, bounds: Bounds) -> Duration {
        let Some(lowest) = sample.checkpoint.lowest() else { return Duration::ZERO };
        let stuck_before = self.stuck_at.take() == Some(lowest);
        let same = self.watched.take().filter(|before| before.checkpoint == sample.checkpoint);
        let waits = pending.map(|pending| pending.events > 0);
        let frozen_for = match &same {
            _ if waits == Some(false) => Duration::ZERO,
            Some(before) if before.waited_for => before.frozen_for + sample.at.saturating_sub(before.seen_at),
            // For how long nobody remembers, but that it was long enough.
            None if stuck_before => bounds.stuck_after,
            _ => Duration::ZERO,
        };
        let waited_for = waits.unwrap_or_else(|| stuck_before || same.is_some_and(|before| before.waited_for));
        let checkpoint = sample.checkpoint.clone();
        self.watched = Some(Watched { checkpoint, waited_for, seen_at: sample.at, frozen_for });
        frozen_for
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
#[path = "model_tests.rs"]
mod tests;
