//! One Projection, once: gather → validate → plan → apply → status. Each step is elsewhere; here is their order, and what is
//! remembered of a Projection between two rounds.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use jiff::Timestamp;
use kube::runtime::reflector::{ObjectRef, Store};
use tokio::{sync::watch, time::timeout};

use super::{
    announce::announcements,
    apply::{Applier, Memos, ScaleTarget},
    conditions::metrics_not_served,
    existing::{ExistingWorkloads, Look},
    known::{Known, Problem, WorkloadView},
    live::{Live, LiveIndex},
    parts::{Owner, Part},
    plan::{Plan, plan},
    plan_autoscaler::ServerAbilities,
    plan_pods::WorkerImage,
    plan_scale::{ScalePlan, ScaleView},
    pod_look::{PodLook, PodMemory},
    queue::{Ended, backoff},
    report::Reports,
    scale_out::ScaleOut,
    status::{next_status, workers},
    urgency::{FIRST_WORD, Pace, Urgency, has_only_begun, numbers_every, urgency},
    validate::{Validated, Workload, validate},
};
use crate::{
    api::{ExistingKind, Phase, Projection, ProjectionStatus, Reason, WorkersStatus},
    metrics::ControllerMetrics,
    registration::Unserved,
    snapshot::{Measured, Observation, ProjectionKey, SharedSnapshot, Unknown},
};

/// A Projection that another one keeps from its workload is looked at again so often.
const RIVAL_EVERY: Duration = Duration::from_secs(10);
/// An API server that fails for less is not worth a word: what failed is tried again.
const FAILS_UNTOLD: Duration = Duration::from_secs(10);
/// Workers that are needed now do not wait longer than this for the word that they come.
const WORD_TIMEOUT: Duration = Duration::from_secs(1);

/// What reconciling works with.
pub struct Reconciler {
    pub(super) projections: Store<Projection>,
    pub(super) index: LiveIndex,
    pub(super) existing: ExistingWorkloads,
    pub(super) snapshot: SharedSnapshot,
    pub(super) applier: Applier,
    pub(super) reports: Reports,
    pub(super) pods: PodLook,
    pub(super) image: WorkerImage,
    pub(super) server: ServerAbilities,
    pub(super) unserved: watch::Receiver<Option<Unserved>>,
    pub(super) metrics: Arc<ControllerMetrics>,
    /// Times that decisions compare count from here.
    pub(super) began: Instant,
    pub(super) memory: Mutex<HashMap<ProjectionKey, Memory>>,
    pub(super) pace: Mutex<Pace>,
}

/// What is remembered of one Projection between two rounds; losing it costs a few writes, nothing else.
#[derive(Debug, Default)]
pub struct Memory {
    pub(super) uid: String,
    memos: Memos,
    scale_out: ScaleOut,
    refusal: Option<Refusal>,
    /// Since when applying has failed each time.
    failing: Option<Instant>,
    /// The hash of the workload that we declared last, where it is ours.
    pub(super) declared: Option<String>,
    pub(super) pods: PodMemory,
    /// When there was something to say for the first time.
    begun: Option<Instant>,
    /// When its numbers may be written, which are due.
    numbers_at: Option<Instant>,
    /// The status that we wrote last, and when: our own word is newer than the watch's.
    written: Option<(ProjectionStatus, Instant)>,
}

impl Memory {
    /// The problem, if it will stay or has stayed for long enough to be told.
    fn told(&self, problem: Problem) -> Option<Problem> {
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
struct Refusal {
    plan: Plan,
    seen: Vec<Option<Arc<Live>>>,
    problem: Problem,
    failures: u32,
    until: Instant,
}

/// What the number of workers is decided from, besides the workload itself.
#[derive(Clone, Copy)]
struct Wish<'a> {
    /// From which the status says it before it is done, where a sample says so.
    known: &'a Known<'a>,
    /// As in [`ScaleView`].
    required: Option<i32>,
    /// As in [`ScaleView`].
    was_suspended: bool,
    /// The autoscaler reads the same number, so that it will agree.
    agreed: bool,
}

/// What is there when a round begins.
struct Gathered {
    projection: Arc<Projection>,
    previous: ProjectionStatus,
}

impl Reconciler {
    /// One round. `jitter` from 0 to 1 spreads what failed together.
    pub async fn reconcile(&self, key: &ProjectionKey, jitter: f64) -> Ended {
        let mut memory = self.take_memory(key);
        let Some(gathered) = self.gather(key, &mut memory) else {
            self.existing.forget(key);
            return Ended::Settled;
        };
        let ended = self.round(key, &gathered, &mut memory, jitter).await;
        self.memory.lock().unwrap_or_else(PoisonError::into_inner).insert(key.clone(), memory);
        ended
    }

    /// Forgets everything: another replica may write until we lead again.
    pub fn forget(&self) {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.existing.clear();
    }

    fn take_memory(&self, key: &ProjectionKey) -> Memory {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner).remove(key).unwrap_or_default()
    }

    /// `None`: there is no such Projection any more, or it is going; what it made is collected with it.
    fn gather(&self, key: &ProjectionKey, memory: &mut Memory) -> Option<Gathered> {
        let projection = self.projections.get(&ObjectRef::new(&key.name).within(&key.namespace))?;
        if projection.metadata.deletion_timestamp.is_some() {
            return None;
        }
        let uid = projection.metadata.uid.clone().unwrap_or_default();
        if memory.uid != uid {
            *memory = Memory { uid, ..Memory::default() };
        }
        let written = memory.written.as_ref().map(|(status, _)| status.clone());
        let previous = written.or_else(|| projection.status.clone()).unwrap_or_default();
        Some(Gathered { projection, previous })
    }

    async fn round(&self, key: &ProjectionKey, gathered: &Gathered, memory: &mut Memory, jitter: f64) -> Ended {
        let Gathered { projection, previous } = gathered;
        let existing = projection.spec.projector.as_ref().and_then(|projector| projector.existing.as_ref());
        if existing.is_some_and(|named| matches!(self.existing.look(key, named.kind, &named.name), Look::NotYet)) {
            // Not known is not missing. The watch calls again with its first answer.
            return Ended::Settled;
        }
        let observation = self.snapshot.load().get(&key.namespace, &key.name).cloned();
        let observation = observation.filter(|observation| *observation.uid == *memory.uid);
        let now = Instant::now();
        let measured = observation.as_ref().map_or_else(
            || Err(Unknown { reason: Reason::NotMeasuredYet, message: "no sample has been taken yet".to_owned() }),
            |observation| observation.current(now),
        );
        let mut known = Known {
            generation: projection.metadata.generation,
            suspended: projection.spec.suspend,
            target: projection.spec.lag.target.0,
            workload: WorkloadView::Absent,
            trouble: None,
            starting: None,
            rollout: None,
            problem: None,
            unapplied: false,
            measured,
            failure: observation.as_ref().and_then(|observation| observation.failure.as_ref()),
            metrics_not_served: None,
            autoscaler_inactive: None,
        };
        let mut retry = None;
        let mut autoscaler = None;
        match validate(projection) {
            Err(invalid) => {
                let message = invalid.to_string();
                known.problem = Some(Problem { reason: Reason::InvalidSpec, message, lasting: true });
                known.workload = self.workload_of(key);
            }
            Ok(validated) => {
                if validated.workers.autoscaled {
                    known.metrics_not_served = metrics_not_served(self.unserved.borrow().as_ref(), previous);
                }
                known.workload = self.seen_of(key, &validated.workload);
                let wish = Wish {
                    known: &known,
                    required: required(&known.measured, observation.as_deref()),
                    was_suspended: previous.phase == Some(Phase::Suspended),
                    agreed: known.metrics_not_served.is_none(),
                };
                (known.problem, retry) = self.carry_out(key, gathered, &validated, wish, memory, jitter).await;
                known.unapplied = known.problem.is_none() && memory.failing.is_some();
                known.workload = self.seen_of(key, &validated.workload);
                if !known.suspended {
                    let again = self.look_into(key, &validated.workload, previous, memory, &mut known).await;
                    retry = retry.into_iter().chain(again).min();
                }
                let name = Part::HorizontalPodAutoscaler.object_name(&key.name);
                autoscaler = self.index.get(Part::HorizontalPodAutoscaler, &key.namespace, &name);
            }
        }
        known.autoscaler_inactive = autoscaler
            .as_ref()
            .filter(|live| live.controlled_by.as_deref() == Some(memory.uid.as_str()))
            .and_then(|live| live.autoscaler_inactive.as_deref());
        let owner = Owner { namespace: key.namespace.to_string(), name: key.name.to_string(), uid: memory.uid.clone() };
        // Part of it may have been said before it was done.
        let previous = memory.written.as_ref().map_or_else(|| previous.clone(), |(status, _)| status.clone());
        let next = next_status(&known, &previous, Timestamp::now());
        self.report(&owner, &previous, next, memory, retry).await
    }

    /// Plans and applies, unless the very same was refused a moment ago.
    async fn carry_out(
        &self,
        key: &ProjectionKey,
        gathered: &Gathered,
        validated: &Validated,
        wish: Wish<'_>,
        memory: &mut Memory,
        jitter: f64,
    ) -> (Option<Problem>, Option<Duration>) {
        let (replicas, target) = match &validated.workload {
            Workload::Existing { kind, name } => {
                if let Some(problem) = self.rival(&gathered.projection, *kind, name) {
                    return (Some(problem), Some(RIVAL_EVERY));
                }
                match self.existing.look(key, *kind, name) {
                    Look::NotYet => return (None, None),
                    Look::Missing => return (Some(missing(key, *kind, name)), None),
                    Look::Found(live) => {
                        if live.controlled_by.is_some() && live.applied_hash.is_some() {
                            return (Some(made_by_us(key, *kind, name)), None);
                        }
                        (live.workers.desired, ScaleTarget::Existing(*kind, name.clone()))
                    }
                }
            }
            Workload::MeasureOnly | Workload::Own { .. } => {
                self.existing.forget(key);
                let live = self.index.get(Part::Deployment, &key.namespace, &Part::Deployment.object_name(&key.name));
                let ours = live.filter(|live| live.controlled_by.as_deref() == Some(validated.owner.uid.as_str()));
                (ours.and_then(|live| live.workers.desired), ScaleTarget::Own)
            }
        };
        let Wish { known, required, was_suspended, agreed } = wish;
        let now = self.began.elapsed();
        let ceiling = replicas.filter(|_| agreed);
        let ceiling = ceiling.and_then(|replicas| memory.scale_out.ceiling(&validated.workers, replicas, now));
        let view = ScaleView { replicas, required, was_suspended, ceiling };
        let plan = plan(validated, view, &self.image, self.server);
        memory.declared =
            plan.desired.iter().find(|desired| desired.part == Part::Deployment).map(|desired| desired.hash.clone());
        let seen: Vec<_> = Part::ALL
            .into_iter()
            .map(|part| self.index.get(part, &key.namespace, &part.object_name(&key.name)))
            .collect();
        let before = memory.refusal.take().filter(|refusal| refusal.plan == plan && refusal.seen == seen);
        if let Some(refusal) = &before {
            let left = refusal.until.saturating_duration_since(Instant::now());
            if !left.is_zero() {
                let answer = (memory.told(refusal.problem.clone()), Some(left));
                memory.refusal = before;
                return answer;
            }
        }
        if matches!(plan.scale, ScalePlan::Raise(1..) | ScalePlan::Set(1..)) && known.measured.is_ok() {
            self.say_before_raising(&validated.owner, &gathered.previous, workers(known), memory).await;
        }
        match self.applier.apply(&validated.owner, &plan, &target, &mut memory.memos).await {
            Ok(()) => {
                memory.failing = None;
                (None, None)
            }
            Err(problem) => {
                memory.failing.get_or_insert_with(Instant::now);
                let failures = before.map_or(0, |refusal| refusal.failures.saturating_add(1));
                let wait = backoff(failures, jitter);
                self.metrics.failures.inc();
                memory.refusal =
                    Some(Refusal { plan, seen, problem: problem.clone(), failures, until: Instant::now() + wait });
                (memory.told(problem), Some(wait))
            }
        }
    }

    /// The other replicas repeat what the status says. Were the workers raised first, an autoscaler that looks at this very moment and asks
    /// another replica would take them away again.
    async fn say_before_raising(
        &self,
        owner: &Owner,
        previous: &ProjectionStatus,
        said: WorkersStatus,
        memory: &mut Memory,
    ) {
        let before = previous.workers.as_ref().and_then(|workers| workers.required);
        if before >= said.required {
            return;
        }
        let next = ProjectionStatus { workers: Some(said), ..previous.clone() };
        self.metrics.status_writes.inc();
        // The workers matter more; the whole status is written after them.
        match timeout(WORD_TIMEOUT, self.reports.write_status(owner, &next)).await {
            Ok(Ok(())) => memory.written = Some((next, Instant::now())),
            Ok(Err(error)) => {
                tracing::warn!("the status of {}/{} could not be written: {error}", owner.namespace, owner.name);
            }
            Err(_) => tracing::warn!("the status of {}/{} was not written in time", owner.namespace, owner.name),
        }
    }

    fn until_numbers(&self, memory: &mut Memory) -> Duration {
        let now = Instant::now();
        let next = || self.pace.lock().unwrap_or_else(PoisonError::into_inner).next(now);
        memory.numbers_at.get_or_insert_with(next).saturating_duration_since(now)
    }

    /// Another Projection that names the same workload and did so earlier.
    fn rival(&self, projection: &Projection, kind: ExistingKind, name: &str) -> Option<Problem> {
        let age =
            |one: &Projection| (one.metadata.creation_timestamp.clone().map(|time| time.0), one.metadata.uid.clone());
        let rival = self.projections.find(|other| {
            let existing = other.spec.projector.as_ref().and_then(|projector| projector.existing.as_ref());
            other.metadata.namespace == projection.metadata.namespace
                && existing.is_some_and(|existing| existing.kind == kind && existing.name == name)
                && age(other) < age(projection)
        })?;
        let rival = rival.metadata.name.as_deref().unwrap_or_default().to_owned();
        Some(Problem {
            reason: Reason::InvalidSpec,
            message: format!(
                "spec.projector.existing.name: the Projection {rival} scales {} {name} already",
                kind.as_str()
            ),
            lasting: true,
        })
    }

    async fn report(
        &self,
        owner: &Owner,
        previous: &ProjectionStatus,
        next: ProjectionStatus,
        memory: &mut Memory,
        retry: Option<Duration>,
    ) -> Ended {
        let again = retry.map_or(Ended::Settled, Ended::Again);
        match urgency(previous, &next) {
            Urgency::Never => return again,
            Urgency::Soon => {
                let every = numbers_every(self.projections.len());
                let since = memory.written.as_ref().map(|(_, at)| at.elapsed());
                let early = since.and_then(|since| every.checked_sub(since)).filter(|left| !left.is_zero());
                let left = early.unwrap_or_else(|| self.until_numbers(memory));
                if !left.is_zero() {
                    return Ended::Again(retry.map_or(left, |retry| retry.min(left)));
                }
            }
            Urgency::Now if has_only_begun(previous, &next) => {
                let left = FIRST_WORD.saturating_sub(memory.begun.get_or_insert_with(Instant::now).elapsed());
                if !left.is_zero() {
                    return Ended::Again(retry.map_or(left, |retry| retry.min(left)));
                }
            }
            Urgency::Now => {}
        }
        self.metrics.status_writes.inc();
        match self.reports.write_status(owner, &next).await {
            Ok(()) => {
                let events = announcements(previous, &next);
                memory.written = Some((next, Instant::now()));
                memory.numbers_at = None;
                self.reports.publish(owner, events).await;
                again
            }
            // Gone meanwhile; the watch will tell.
            Err(kube::Error::Api(status)) if status.code == 404 => Ended::Settled,
            Err(error) => {
                tracing::warn!("the status of {}/{} could not be written: {error}", owner.namespace, owner.name);
                self.metrics.failures.inc();
                Ended::Failed
            }
        }
    }
}

/// The workers that are asked for: by a fresh sample, or by what is to be done while there is none.
fn required(measured: &Result<&Measured, Unknown>, observation: Option<&Observation>) -> Option<i32> {
    let workers = match measured {
        Ok(measured) => Some(measured.assessment.required.workers),
        // Nothing will ever be committed without a worker.
        Err(unknown) if unknown.reason == Reason::NeverCommitted => Some(1),
        Err(_) => observation.and_then(|observation| observation.fallback),
    };
    workers.and_then(|workers| i32::try_from(workers).ok())
}

fn missing(key: &ProjectionKey, kind: ExistingKind, name: &str) -> Problem {
    Problem {
        reason: Reason::WorkloadNotFound,
        message: format!("spec.projector.existing: there is no {} {}/{name}", kind.as_str(), key.namespace),
        lasting: true,
    }
}

fn made_by_us(key: &ProjectionKey, kind: ExistingKind, name: &str) -> Problem {
    Problem {
        reason: Reason::InvalidSpec,
        message: format!(
            "spec.projector.existing.name: the {} {}/{name} was made for another Projection, which scales it",
            kind.as_str(),
            key.namespace
        ),
        lasting: true,
    }
}
