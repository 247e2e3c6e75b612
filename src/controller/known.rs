//! What is known of a Projection when its status is written.

use std::{sync::Arc, time::Duration};

use super::{live::WorkerCounts, status::trouble::Trouble};
use crate::{
    api::{ReadStoreStatus, Reason, RolloutStatus, RunStatus},
    measure::MeasureError,
    rebuild::{Pace, Stage},
    resolve::SuspendedBy,
    snapshot::Measured,
    store_health::LockWait,
};

/// Why the Projection does not run as asked, as far as the cluster is concerned.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Problem {
    /// For machines.
    pub reason: Reason,
    /// For people.
    pub message: String,
    /// It will not go away by itself.
    pub lasting: bool,
}

/// The workload that runs the workers.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum WorkloadView {
    /// None is wanted: the Projection is only measured.
    NotWanted,
    /// It does not exist (yet).
    Absent,
    /// It exists.
    Present(WorkerCounts),
}

/// The read store that `spec.readStore` names.
#[derive(Clone, Debug, PartialEq)]
pub struct ReadStoreView {
    /// What is known of it.
    pub status: ReadStoreStatus,
    /// Why it is not known to be healthy; absent where it is.
    pub why: Option<MeasureError>,
    /// Who waits there for a lock, and for whose.
    pub lock_wait: Option<LockWait>,
}

/// The runs of a Projection, and which version readers see.
#[derive(Clone, Debug, PartialEq)]
pub struct RunsView {
    /// The version that the spec names.
    pub wanted: Arc<str>,
    /// How far that has come.
    pub stage: Stage,
    /// What came of asking which version readers see, and of leading them to another.
    pub led: Led,
    /// Why the annotation that asks for a rollback leads to nothing.
    pub no_rollback: Option<String>,
    /// What to remember.
    pub remember: RolloutStatus,
    /// Each run. The numbers of the one that the status is about are elsewhere in the status.
    pub runs: Vec<RunStatus>,
}

/// What came of asking which version readers see, and of leading them to another.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Led {
    /// It is known, and nothing went wrong.
    Known,
    /// It is not known.
    NotKnown((Reason, String)),
    /// They could not be led to another.
    Failed(String),
}

/// What is known now.
#[derive(Clone, Debug)]
pub struct Known<'a> {
    /// The spec's generation.
    pub generation: Option<i64>,
    /// The version of the read model that the spec names.
    pub version: Option<String>,
    /// What suspends it.
    pub suspended: Option<SuspendedBy>,
    /// It is not suspended any more, and the workload has been given its workers back, or needs none.
    pub resumed: bool,
    /// The event table, as the spec names it.
    pub event_table: String,
    /// `spec.lag.target`.
    pub target: Duration,
    /// The workload.
    pub workload: WorkloadView,
    /// What keeps workers from running, if that is known.
    pub trouble: Option<Trouble>,
    /// Pods that start; absent where the pods were not read.
    pub starting: Option<usize>,
    /// Why the workload does not run what the spec asks for, or not with all its pods.
    pub rollout: Option<(Reason, String)>,
    /// What went wrong in validating or applying.
    pub problem: Option<Problem>,
    /// Applying failed a moment ago, and will be tried again before it is reported.
    pub unapplied: bool,
    /// The measurement to act on, or why there is none.
    pub measured: Result<&'a Measured, MeasureError>,
    /// Why the newest attempt to measure failed, if it did.
    pub failure: Option<&'a MeasureError>,
    /// The read store; absent where the spec names none.
    pub read_store: Option<ReadStoreView>,
    /// Why the autoscaler that the operator makes cannot read the operator's metrics, if it cannot.
    pub metrics_not_served: Option<String>,
    /// Why the autoscaler does not scale.
    pub autoscaler_inactive: Option<String>,
    /// How fast what waits becomes less, where that has been watched.
    pub pace: Option<Pace>,
    /// The runs, where each version has one of its own.
    pub runs: Option<RunsView>,
}

/// No worker is needed; absent where that is not known.
pub(super) fn none_required(known: &Known<'_>) -> Option<bool> {
    known.measured.as_ref().ok().map(|measured| measured.assessment.required.workers == 0)
}

/// What it means that the target is kept, and that it is broken.
pub(super) fn target_words(measured: &Measured) -> (&'static str, &'static str) {
    match measured.assessment.value {
        Some(_) => {
            ("the value is no more than spec.lag.value asks for", "the value is more than spec.lag.value asks for")
        }
        None => ("no event waits longer than spec.lag.target", "the oldest event waits longer than spec.lag.target"),
    }
}

/// No event waits longer than the target; absent where that is not known. An upper bound that is longer breaks no target by itself.
pub(super) fn within_target(measured: &Measured, target: Duration) -> Option<bool> {
    let assessment = &measured.assessment;
    if let Some(value) = assessment.value {
        return Some(value.within);
    }
    let within = assessment.staleness.map(|staleness| staleness <= target);
    match assessment.at_least {
        Some(at_least) if within == Some(false) => at_least.age.filter(|age| *age > target).map(|_| false),
        _ => within,
    }
}
