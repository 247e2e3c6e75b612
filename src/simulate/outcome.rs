//! The result of a simulation: replicas and lag over time, and a few numbers that show how good that was.

use std::time::Duration;

use serde::Serialize;

/// What was at one moment.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Moment {
    /// Since the trace began.
    pub at: Duration,
    /// Events per second that arrive.
    pub arriving: f64,
    /// Events that are not wholly handled.
    pub pending: u64,
    /// Age of the oldest of them.
    pub staleness: Duration,
    /// Events beyond the checkpoints, as they were measured last: more, where workers do not commit each event.
    pub measured_pending: u64,
    /// Age of the oldest of these.
    pub measured_staleness: Duration,
    /// What the scale asks for.
    pub replicas: i32,
    /// Workers that are ready.
    pub ready: u32,
    /// What the policy asks for, where it says.
    pub required: Option<u32>,
}

/// A whole simulation.
#[derive(Clone, Debug, PartialEq)]
pub struct Run {
    pub(super) begins: Duration,
    pub(super) target: Duration,
    pub(super) moments: Vec<Moment>,
    pub(super) changes: Vec<(Duration, i32, i32)>,
    pub(super) score: Score,
}

/// How good it was.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Score {
    /// Seconds in which the oldest event was older than the target.
    pub out_of_target_seconds: f64,
    /// The part of the time that this is, from 0 to 1.
    pub out_of_target: f64,
    /// The integral of staleness beyond the target, in seconds times seconds.
    pub lateness: f64,
    /// The highest staleness, in seconds.
    pub worst_staleness_seconds: f64,
    /// The integral of workers that were paid for, ready or not.
    pub worker_seconds: f64,
    /// The most of them.
    pub most_workers: i32,
    /// How often the number of workers was changed.
    pub changes: usize,
    /// How often within a minute of another change it was changed the other way.
    pub reversals: usize,
}

impl Run {
    /// When the trace begins, as its own times count. Other times of a run count from there.
    pub fn begins(&self) -> Duration {
        self.begins
    }

    /// Each tick, in order; at least one. Of a long run one stands for a stretch of ticks: with the time of the first and the highest of each value
    /// (of ready workers the fewest), so that nothing that was bad is lost. The last is always the end.
    pub fn moments(&self) -> &[Moment] {
        &self.moments
    }

    /// No event should have waited longer than this.
    pub fn target(&self) -> Duration {
        self.target
    }

    /// When the number of workers changed, from how many to how many: the first hundred thousand times.
    pub fn changes(&self) -> Vec<(Duration, i32, i32)> {
        self.changes.clone()
    }

    /// The numbers.
    pub fn score(&self) -> Score {
        self.score
    }
}

impl Moment {
    /// A stretch of time in one: the highest of all, and the fewest ready workers.
    pub(super) fn merge(&mut self, later: &Self) {
        self.arriving = self.arriving.max(later.arriving);
        self.pending = self.pending.max(later.pending);
        self.staleness = self.staleness.max(later.staleness);
        self.measured_pending = self.measured_pending.max(later.measured_pending);
        self.measured_staleness = self.measured_staleness.max(later.measured_staleness);
        self.replicas = self.replicas.max(later.replicas);
        self.ready = self.ready.min(later.ready);
        self.required = self.required.max(later.required);
    }
}
