//! Reconciles one Projection once: gather → validate → plan → apply → status. The steps are in other modules; this one has their order, and what is
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
    apply::Applier,
    autoscaler::Standing,
    existing::{ExistingWorkloads, Look},
    index::{CONFIRM_WITHIN, LiveIndex},
    known::{Known, Problem, WorkloadView},
    live::is_older,
    memory::{Gathered, Memory, Outcome, Refusal, Tried},
    obstacles::{made_by_us, missing, rival, uncollected},
    parts::{Owner, Part},
    plan::autoscaler::ServerAbilities,
    plan::builtin_pods::WorkerDefaults,
    plan::plan,
    plan::scale::{ScalePlan, ScaleView},
    pod_look::PodLook,
    queue::{Ended, backoff},
    scale::ScaleTarget,
    status::announce::announcements,
    status::conditions::metrics_not_served,
    status::report::{Reports, Stored, Unwritten},
    status::urgency::{
        COUNTS_EVERY, COUNTS_SETTLE, FIRST_WORD, Pace, Urgency, has_only_begun, numbers_every, urgency,
        waits_for_first_sample,
    },
    status::{next_status, workers},
    unapplied::Unapplied,
    validate::{Validated, Workload, validate},
};
use crate::{
    api::{Projection, ProjectionStatus, Reason, WorkersStatus},
    measure::{MeasureError, ProjectionKey},
    metrics::ControllerMetrics,
    platform::errors::in_words,
    platform::registration::Unserved,
    snapshot::{Measured, Observation, SharedSnapshot},
};

/// How often a Projection is reconciled again while another Projection uses its workload.
const RIVAL_EVERY: Duration = Duration::from_secs(10);
/// The least time between two corrections of a status that another client changes.
const CORRECT_EVERY: Duration = Duration::from_secs(1);
/// How long after the status has recorded the suspension the workers are removed.
const AFTER_RECORD: Duration = Duration::from_millis(20);
/// An object of a deleted Projection that Kubernetes has not garbage collected is reported after this many looks, which take about half a minute.
const LOOKS_UNTOLD: u32 = 6;
/// How long adding workers may wait until the status shows their number.
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
    pub(super) workers: WorkerDefaults,
    pub(super) server: ServerAbilities,
    pub(super) unserved: watch::Receiver<Option<Unserved>>,
    pub(super) metrics: Arc<ControllerMetrics>,
    /// The start of the controller: times that decisions compare count from here.
    pub(super) began: Instant,
    pub(super) memory: Mutex<HashMap<ProjectionKey, Memory>>,
    pub(super) pace: Mutex<Pace>,
}

/// What the number of workers is decided from, besides the workload itself.
#[derive(Clone, Copy)]
struct Wish<'a> {
    /// What is known of the Projection. If it contains a sample, the status is written from it before workers are added.
    known: &'a Known<'a>,
    /// As in [`ScaleView`].
    required: Option<i32>,
    /// As in [`ScaleView`].
    was_suspended: bool,
    /// The autoscaler works and reads the same number, so that it will agree, and later remove the workers again.
    agreed: bool,
}

impl Reconciler {
    /// Runs one round. `jitter`, from 0 to 1, spreads the retries of Projections that failed together.
    pub async fn reconcile(&self, key: &ProjectionKey, jitter: f64) -> Ended {
        let mut memory = self.take_memory(key);
        let Some(gathered) = self.gather(key, &mut memory) else {
            self.existing.forget(key);
            if memory.gone {
                self.memory.lock().unwrap_or_else(PoisonError::into_inner).insert(key.clone(), memory);
            }
            return Ended::Settled;
        };
        let ended = self.round(key, &gathered, &mut memory, jitter).await;
        let ended = self.until_confirmed(key, ended);
        self.memory.lock().unwrap_or_else(PoisonError::into_inner).insert(key.clone(), memory);
        ended
    }

    /// Forgets everything: another replica may write until this one leads again.
    pub fn forget(&self) {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.existing.clear();
    }

    fn take_memory(&self, key: &ProjectionKey) -> Memory {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner).remove(key).unwrap_or_default()
    }

    /// `None` where the Projection does not exist or is being deleted; Kubernetes deletes its objects with it.
    fn gather(&self, key: &ProjectionKey, memory: &mut Memory) -> Option<Gathered> {
        let Some(projection) = self.projections.get(&ObjectRef::new(&key.name).within(&key.namespace)) else {
            *memory = Memory::default();
            return None;
        };
        let uid = projection.metadata.uid.clone().unwrap_or_default();
        if memory.uid != uid {
            *memory = Memory { uid, ..Memory::default() };
        }
        if projection.metadata.deletion_timestamp.is_some() || memory.gone {
            return None;
        }
        let version = projection.metadata.resource_version.clone().unwrap_or_default();
        let seen = Stored { status: projection.status.clone().unwrap_or_default(), version };
        let written = memory.written.as_ref().map(|(written, _)| written.clone());
        // The watch may lag behind this replica's own write.
        let newer = written.clone().filter(|written| is_older(&seen.version, &written.version));
        let there = newer.unwrap_or(seen);
        let previous = written.map_or_else(|| there.status.clone(), |written| written.status);
        Some(Gathered { projection, previous, there })
    }

    /// Comes back to objects that an answer of the API server described and the watch does not show yet.
    fn until_confirmed(&self, key: &ProjectionKey, ended: Ended) -> Ended {
        let now = Instant::now();
        let waits = Part::ALL.into_iter().filter_map(|part| {
            let since = self.index.unconfirmed_for(part, &key.namespace, &part.object_name(&key.name), now)?;
            Some(CONFIRM_WITHIN.saturating_sub(since).max(CORRECT_EVERY))
        });
        match (ended, waits.min()) {
            (Ended::Settled, Some(wait)) => Ended::Again(wait),
            (Ended::Again(after), Some(wait)) => Ended::Again(after.min(wait)),
            (ended, _) => ended,
        }
    }

    async fn round(&self, key: &ProjectionKey, gathered: &Gathered, memory: &mut Memory, jitter: f64) -> Ended {
        let Gathered { projection, previous, there } = gathered;
        let existing = projection.spec.projector.as_ref().and_then(|projector| projector.existing.as_ref());
        if existing.is_some_and(|named| matches!(self.existing.look(key, named.kind, &named.name), Look::NotYet)) {
            // A workload that is not known yet is not missing. The watch causes another round with its first answer.
            return Ended::Settled;
        }
        let observation = self.snapshot.load().get(&key.namespace, &key.name).cloned();
        let observation = observation.filter(|observation| *observation.uid == *memory.uid);
        let now = Instant::now();
        let generation = projection.metadata.generation;
        // What was measured for an older spec may be of another table.
        let ours = observation.as_ref().filter(|seen| generation.is_none_or(|newest| seen.generation >= newest));
        let measured = ours.map_or_else(
            || Err(MeasureError { reason: Reason::NotMeasuredYet, message: "no sample has been taken yet".to_owned() }),
            |observation| observation.current(now),
        );
        memory.unmeasured = ours.is_none().then(|| memory.unmeasured.unwrap_or(now));
        let mut known = Known {
            generation,
            suspended: projection.spec.suspend,
            resumed: false,
            event_table: projection.spec.source.postgres.as_ref().map_or("", |source| &source.event_table.table),
            target: projection.spec.lag.target.0,
            workload: WorkloadView::Absent,
            trouble: None,
            starting: None,
            rollout: None,
            problem: None,
            unapplied: false,
            measured,
            failure: ours.and_then(|observation| observation.failure.as_ref()),
            metrics_not_served: None,
            autoscaler_inactive: None,
        };
        let mut retry = None;
        match validate(projection) {
            Err(invalid) => {
                let message = invalid.to_string();
                known.problem = Some(Problem { reason: Reason::InvalidSpec, message, lasting: true });
                known.workload = self.workload_of(key, &memory.uid);
            }
            Ok(validated) => {
                known.workload = self.seen_of(key, &validated.workload, &memory.uid);
                let mut works = false;
                if validated.workers.autoscaled {
                    known.metrics_not_served = metrics_not_served(self.unserved.borrow().as_ref(), previous);
                    let standing = self.autoscaler_of(key, known.workload, memory);
                    works = standing == Standing::Works && self.unserved.borrow().is_some();
                    (known.autoscaler_inactive, retry) = self.told_of_autoscaler(standing, memory);
                }
                let wish = Wish {
                    known: &known,
                    required: required(&known.measured, observation.as_deref()),
                    was_suspended: previous.suspended,
                    agreed: works && known.metrics_not_served.is_none(),
                };
                // The status records the suspension before the workers are removed, so that a crash in between does not lose it.
                let outcome = if known.suspended && !there.status.suspended && !memory.unrecordable {
                    Outcome { retry: Some(AFTER_RECORD), ..Outcome::default() }
                } else {
                    self.carry_out(key, gathered, &validated, wish, memory, jitter).await
                };
                if memory.gone {
                    return Ended::Settled;
                }
                known.resumed = outcome.done && !known.suspended;
                known.problem = outcome.problem;
                retry = retry.into_iter().chain(outcome.retry).min();
                known.unapplied = known.problem.is_none() && memory.failing.is_some();
                known.workload = self.seen_of(key, &validated.workload, &memory.uid);
                if !known.suspended {
                    let again = self.look_into(key, &validated.workload, previous, memory, &mut known).await;
                    retry = retry.into_iter().chain(again).min();
                }
            }
        }
        let owner = Owner { namespace: key.namespace.to_string(), name: key.name.to_string(), uid: memory.uid.clone() };
        // Part of the status may have been written before workers were added.
        let said =
            memory.written.as_ref().map(|(written, _)| written).filter(|said| !is_older(&said.version, &there.version));
        let (previous, there) = said.map_or((previous, there), |said| (&said.status, said));
        let next = next_status(&known, previous, Timestamp::now());
        // The sampler learns of a newer spec at the same moment, and reports at once whether what it knows still holds.
        let news = memory.unmeasured.map(|since| FIRST_WORD.saturating_sub(since.elapsed()));
        let news = news.filter(|left| !left.is_zero() && !known.suspended && known.problem.is_none());
        let unmeasured = known.measured.as_ref().is_err_and(|unknown| unknown.reason == Reason::NotMeasuredYet);
        let first = waits_for_first_sample(previous, &next, unmeasured, self.began.elapsed());
        if let Some(left) = news.or(first) {
            return Ended::Again(retry.map_or(left, |retry| retry.min(left)));
        }
        let (previous, there) = (previous.clone(), there.clone());
        self.report(&owner, &previous, &there, next, memory, retry).await
    }

    /// Plans and applies, unless the very same plan failed a moment ago and its retry is not due yet.
    async fn carry_out(
        &self,
        key: &ProjectionKey,
        gathered: &Gathered,
        validated: &Validated,
        wish: Wish<'_>,
        memory: &mut Memory,
        jitter: f64,
    ) -> Outcome {
        let refused =
            |problem: Problem, retry: Option<Duration>| Outcome { problem: Some(problem), retry, done: false };
        let (mut replicas, target) = match &validated.workload {
            Workload::Existing { kind, name } => {
                if let Some(problem) = rival(&self.projections, &gathered.projection, *kind, name) {
                    return refused(problem, Some(RIVAL_EVERY));
                }
                match self.existing.look(key, *kind, name) {
                    Look::NotYet => return Outcome::default(),
                    Look::Missing => return refused(missing(key, *kind, name), None),
                    Look::Found(live) => {
                        if live.controlled_by.is_some() && live.applied_hash.is_some() {
                            return refused(made_by_us(key, *kind, name), None);
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
        if was_suspended && !known.suspended && replicas.is_some() {
            // The live number decides whether the workers have to be brought back: the watch may not show yet that they were removed.
            match self.applier.scaling(&validated.owner, &target).replicas().await {
                Ok(now) => replicas = now,
                Err(error) => return self.unapplied(error, None, &validated.owner, memory, jitter),
            }
        }
        let now = self.began.elapsed();
        let ceiling = replicas.filter(|_| agreed);
        let ceiling = ceiling.and_then(|replicas| memory.scale_out.ceiling(&validated.workers, replicas, now));
        let view = ScaleView { replicas, required, was_suspended, ceiling };
        let plan = plan(validated, view, &self.workers, self.server);
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
                let problem = refusal.problem.clone().and_then(|problem| memory.told(problem));
                let outcome = Outcome { problem, retry: Some(left), done: false };
                memory.refusal = before;
                return outcome;
            }
        }
        if matches!(plan.scale, ScalePlan::Raise(1..) | ScalePlan::Set(1..)) && known.measured.is_ok() {
            self.say_before_raising(&validated.owner, gathered, workers(known), memory).await;
            if memory.gone {
                return Outcome::default();
            }
        }
        match self.applier.apply(&validated.owner, &plan, &target, &mut memory.memos).await {
            Ok(()) => {
                memory.failing = None;
                Outcome { done: true, ..Outcome::default() }
            }
            Err(error) => {
                let failures = before.map_or(0, |refusal| refusal.failures.saturating_add(1));
                self.unapplied(error, Some(Tried { plan, seen, failures }), &validated.owner, memory, jitter)
            }
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
                tracing::debug!("{}/{} was deleted: nothing is made for it", owner.namespace, owner.name);
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
        let wait = backoff(failures, jitter);
        if let Some(Tried { plan, seen, failures }) = tried {
            let problem = problem.clone();
            memory.refusal = Some(Refusal { plan, seen, problem, failures, until: Instant::now() + wait });
        }
        Outcome { problem: problem.and_then(|problem| memory.told(problem)), retry: Some(wait), done: false }
    }

    /// Writes the number of required workers into the status before workers are added, since the other replicas serve the number from there. If the
    /// workers were added first, an autoscaler that asks another replica at that moment would remove them again.
    async fn say_before_raising(&self, owner: &Owner, gathered: &Gathered, said: WorkersStatus, memory: &mut Memory) {
        let Gathered { previous, there, projection: _ } = gathered;
        let before = there.status.workers.as_ref().and_then(|workers| workers.required);
        if before >= said.required {
            return;
        }
        let next = ProjectionStatus { workers: Some(said), ..previous.clone() };
        self.metrics.status_writes.inc();
        // If this write fails, the workers are added all the same; the whole status is written after them.
        match timeout(WORD_TIMEOUT, self.reports.write_status(owner, &there.version, &next)).await {
            Ok(Ok(stored)) => memory.written = Some((stored, Instant::now())),
            Ok(Err(Unwritten::Gone)) => memory.gone = true,
            Ok(Err(Unwritten::Failed(error))) => {
                let why = in_words(&error);
                tracing::warn!("the status of {}/{} could not be written: {why}", owner.namespace, owner.name);
            }
            Err(_) => tracing::warn!("the status of {}/{} was not written in time", owner.namespace, owner.name),
        }
    }

    fn until_numbers(&self, memory: &mut Memory) -> Duration {
        let now = Instant::now();
        let next = || self.pace.lock().unwrap_or_else(PoisonError::into_inner).next(now);
        memory.numbers_at.get_or_insert_with(next).saturating_duration_since(now)
    }

    /// Writes the status where something is new, or another client has changed it. `there` is the status that the API server has.
    async fn report(
        &self,
        owner: &Owner,
        previous: &ProjectionStatus,
        there: &Stored,
        next: ProjectionStatus,
        memory: &mut Memory,
        retry: Option<Duration>,
    ) -> Ended {
        let again = retry.map_or(Ended::Settled, Ended::Again);
        let foreign = *previous != there.status;
        match urgency(&there.status, &next) {
            Urgency::Never => {
                if foreign {
                    // A write of this replica that had been given up has reached the API server.
                    let events = announcements(previous, &there.status);
                    memory.written = Some((there.clone(), Instant::now()));
                    self.reports.publish(owner, events).await;
                }
                return again;
            }
            Urgency::Soon | Urgency::Shortly | Urgency::Now if foreign => {
                let since = memory.written.as_ref().map(|(_, at)| at.elapsed());
                let left = since.and_then(|since| CORRECT_EVERY.checked_sub(since)).filter(|left| !left.is_zero());
                if let Some(left) = left {
                    return Ended::Again(retry.map_or(left, |retry| retry.min(left)));
                }
            }
            Urgency::Soon => {
                let every = numbers_every(self.projections.len());
                let since = memory.written.as_ref().map(|(_, at)| at.elapsed());
                let early = since.and_then(|since| every.checked_sub(since)).filter(|left| !left.is_zero());
                let left = early.unwrap_or_else(|| self.until_numbers(memory));
                if !left.is_zero() {
                    return Ended::Again(retry.map_or(left, |retry| retry.min(left)));
                }
            }
            Urgency::Shortly => {
                let since = memory.counts_since.get_or_insert_with(Instant::now).elapsed();
                let written = memory.written.as_ref().map_or(COUNTS_EVERY, |(_, at)| at.elapsed());
                let left = COUNTS_SETTLE.saturating_sub(since).max(COUNTS_EVERY.saturating_sub(written));
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
        match self.reports.write_status(owner, &there.version, &next).await {
            Ok(stored) => {
                let events = announcements(previous, &next);
                memory.written = Some((stored, Instant::now()));
                memory.numbers_at = None;
                memory.counts_since = None;
                memory.unrecordable = false;
                self.reports.publish(owner, events).await;
                again
            }
            Err(Unwritten::Gone) => {
                memory.gone = true;
                Ended::Settled
            }
            Err(Unwritten::Failed(error)) => {
                let why = in_words(&error);
                tracing::warn!("the status of {}/{} could not be written: {why}", owner.namespace, owner.name);
                self.metrics.failures.inc();
                // Where no retry can help, the workers are removed even though the status does not record the suspension.
                memory.unrecordable = matches!(&error, kube::Error::Api(status) if matches!(status.code, 403 | 422));
                Ended::Failed
            }
        }
    }
}

/// The workers to ask for: by a fresh sample, or by the fallback while there is none.
fn required(measured: &Result<&Measured, MeasureError>, observation: Option<&Observation>) -> Option<i32> {
    let workers = match measured {
        Ok(measured) => Some(measured.assessment.required.workers),
        // Nothing will ever be committed without a worker.
        Err(unknown) if unknown.reason == Reason::NeverCommitted => Some(1),
        Err(_) => observation.and_then(|observation| observation.fallback),
    };
    workers.and_then(|workers| i32::try_from(workers).ok())
}
