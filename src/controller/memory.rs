//! What is remembered of a Projection between two rounds, and what one round hands on from step to step.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    apply::Memos,
    autoscaler::AutoscalerMemory,
    known::Problem,
    live::LiveObject,
    plan::{Plan, scale_out::ScaleOut},
    pod_look::PodMemory,
    rebuild::RebuildMemory,
    status::due::StatusMemory,
};
use crate::rebuild::Backlog;

/// An API server that fails for less than this is not reported: what failed is tried again.
const FAILS_UNTOLD: Duration = Duration::from_secs(10);

/// What is remembered of one Projection between two rounds; losing it costs a few writes, nothing else.
#[derive(Debug, Default)]
pub struct Memory {
    pub(super) uid: String,
    pub(super) memos: Memos,
    pub(super) scale_out: ScaleOut,
    pub(super) refusal: Option<FailedPlan>,
    /// Since when applying has failed each time.
    pub(super) failing: Option<Instant>,
    /// The hash of the operator's workload as it was last applied.
    pub(super) declared: Option<String>,
    pub(super) pods: PodMemory,
    pub(super) autoscaler: AutoscalerMemory,
    /// Since when the sampler has not known the newest spec.
    pub(super) unmeasured: Option<Instant>,
    /// The status that was written last, and when the next one is due.
    pub(super) status: StatusMemory,
    /// The version of the run that all of this but the status is about; absent where there are no runs.
    pub(super) version: Option<Arc<str>>,
    /// What is remembered of the other runs.
    pub(super) beside: HashMap<Arc<str>, Memory>,
    /// How far the version that the spec names has come.
    pub(super) rebuild: RebuildMemory,
    /// What has waited for this run.
    pub(super) backlog: Backlog,
    /// The API server says that this Projection is deleted, which the watch has not shown yet. Nothing is written for it.
    pub(super) gone: bool,
}

impl Memory {
    /// From now on the status is about the run of this version.
    pub(super) fn be_about(&mut self, version: Option<&Arc<str>>) {
        if self.version.as_ref() == version {
            return;
        }
        let known = version.and_then(|version| self.beside.remove(version)).unwrap_or_default();
        let now = Self {
            uid: self.uid.clone(),
            version: version.cloned(),
            status: std::mem::take(&mut self.status),
            beside: std::mem::take(&mut self.beside),
            rebuild: std::mem::take(&mut self.rebuild),
            ..known
        };
        let before = std::mem::replace(self, now);
        if let Some(version) = before.version.clone() {
            self.beside.insert(version, before);
        }
    }

    /// The problem, if it is lasting or has stayed for long enough to be reported.
    pub(super) fn told(&self, problem: Problem) -> Option<Problem> {
        let since = self.failing.map(|failing| failing.elapsed());
        let told = problem.lasting || since.is_some_and(|since| since >= FAILS_UNTOLD);
        if !told {
            tracing::debug!("{}: tried again", problem.message);
        }
        told.then_some(problem)
    }
}

/// A plan that could not be carried out, and until when it is not tried again unless something changes.
#[derive(Clone, Debug)]
pub(super) struct FailedPlan {
    pub(super) plan: Plan,
    pub(super) seen: Vec<Option<Arc<LiveObject>>>,
    pub(super) problem: Option<Problem>,
    pub(super) failures: u32,
    pub(super) until: Instant,
}

/// A plan that was tried, on what was seen before, and how often it had failed until then.
pub(super) struct Tried {
    pub(super) plan: Plan,
    pub(super) seen: Vec<Option<Arc<LiveObject>>>,
    pub(super) failures: u32,
}

/// What became of a plan.
#[derive(Default)]
pub(super) struct Outcome {
    pub(super) problem: Option<Problem>,
    /// When to try again.
    pub(super) retry: Option<Duration>,
    /// The plan was carried out.
    pub(super) done: bool,
}
