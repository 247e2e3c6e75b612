//! Plans one Projection and carries the plan out, unless the very same plan failed a moment ago and its retry is not due yet.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    apply::Applier,
    gather::Gathered,
    known::Problem,
    memory::{FailedPlan, Memory, Outcome, Tried},
    obstacles::{Obstacle, uncollected},
    parts::{Owner, Part},
    plan::{
        autoscaler::ServerAbilities,
        builtin_pods::WorkerDefaults,
        plan,
        scale::{ScalePlan, ScaleView},
    },
    queue::BACKOFF,
    unapplied::Unapplied,
};
use crate::{metrics::ControllerMetrics, resolve::Validated};

/// An object of a deleted Projection that Kubernetes has not garbage collected is reported after this many looks, which take about half a minute.
const LOOKS_UNTOLD: u32 = 6;

/// Carries plans out.
pub struct Executor {
    pub(super) applier: Applier,
    pub(super) workers: WorkerDefaults,
    pub(super) server: ServerAbilities,
    pub(super) metrics: Arc<ControllerMetrics>,
}

/// What the number of workers is decided from, besides the workload itself.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wish {
    /// As in [`ScaleView`].
    pub(super) required: Option<i32>,
    /// As in [`ScaleView`].
    pub(super) ceiling: Option<i32>,
}

impl Executor {
    /// What to try now; `Err` with the outcome where nothing is to be tried.
    pub(super) fn plan(
        &self,
        gathered: &Gathered,
        validated: &Validated,
        wish: Wish,
        memory: &mut Memory,
        jitter: f64,
    ) -> Result<Tried, Outcome> {
        if let Some(Obstacle { problem, retry }) = gathered.obstacle.clone() {
            return Err(Outcome { problem: Some(problem), retry, done: false });
        }
        let replicas = match &gathered.replicas {
            Ok(replicas) => *replicas,
            Err(error) => return Err(self.unapplied(error.clone(), None, &gathered.owner, memory, jitter)),
        };
        let Wish { required, ceiling } = wish;
        let view = ScaleView { replicas, required, was_suspended: gathered.previous.suspended, ceiling };
        let plan = plan(validated, view, &self.workers, self.server);
        memory.declared =
            plan.desired.iter().find(|desired| desired.part == Part::Deployment).map(|desired| desired.hash.clone());
        let seen = gathered.objects.clone();
        let Some(before) = memory.refusal.take().filter(|refusal| refusal.plan == plan && refusal.seen == seen) else {
            return Ok(Tried { plan, seen, failures: 0 });
        };
        let left = before.until.saturating_duration_since(gathered.now);
        if left.is_zero() {
            return Ok(Tried { plan, seen, failures: before.failures.saturating_add(1) });
        }
        let problem = before.problem.clone().and_then(|problem| memory.told(problem));
        memory.refusal = Some(before);
        Err(Outcome { problem, retry: Some(left), done: false })
    }

    /// Applies what is to be tried.
    pub(super) async fn apply(&self, gathered: &Gathered, tried: Tried, memory: &mut Memory, jitter: f64) -> Outcome {
        let (owner, target) = (&gathered.owner, &gathered.target);
        match self.applier.apply(owner, &tried.plan, target, &mut memory.memos).await {
            Ok(()) => {
                memory.failing = None;
                Outcome { done: true, ..Outcome::default() }
            }
            Err(error) => self.unapplied(error, Some(tried), owner, memory, jitter),
        }
    }

    /// Remembers why a plan was not applied, and when to try again.
    fn unapplied(
        &self,
        error: Unapplied,
        tried: Option<Tried>,
        owner: &Owner,
        memory: &mut Memory,
        jitter: f64,
    ) -> Outcome {
        let failures = tried.as_ref().map_or(0, |tried| tried.failures);
        let problem = match error {
            Unapplied::OwnerGone => {
                tracing::debug!("{}/{} was deleted: nothing is made for it", owner.namespace(), owner.name());
                memory.gone = true;
                return Outcome::default();
            }
            Unapplied::Problem(problem) => Some(problem),
            Unapplied::Predecessor(part) => (failures >= LOOKS_UNTOLD).then(|| uncollected(part, owner)),
        };
        if problem.is_some() {
            self.metrics.failures.inc();
            memory.failing.get_or_insert_with(Instant::now);
        }
        let wait = BACKOFF.jittered(failures, jitter);
        if let Some(Tried { plan, seen, failures }) = tried {
            let problem: Option<Problem> = problem.clone();
            memory.refusal = Some(FailedPlan { plan, seen, problem, failures, until: Instant::now() + wait });
        }
        Outcome { problem: problem.and_then(|problem| memory.told(problem)), retry: Some(wait), done: false }
    }
}

impl Tried {
    /// Workers are added by it, or brought back.
    pub(super) fn adds_workers(&self) -> bool {
        matches!(self.plan.scale, ScalePlan::Raise(1..) | ScalePlan::Set(1..))
    }
}

/// The sooner of the two times, where there is one.
pub(super) fn sooner(one: Option<Duration>, other: Option<Duration>) -> Option<Duration> {
    one.into_iter().chain(other).min()
}
