//! Reconciles one Projection once: gather → plan → apply → status. The steps are in other modules; this one has their order, and keeps what is
//! remembered of a Projection between two rounds.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use jiff::Timestamp;

use super::{
    autoscaler::Standing,
    carry_out::{Executor, Wish, sooner},
    gather::{Gathered, Gatherer, found, statuses},
    known::{Known, Problem, RunsView, WorkloadView},
    live::{LiveObject, is_older},
    memory::{Memory, Outcome},
    parts::Part,
    pod_look::PodLook,
    queue::Ended,
    rebuild::{Rebuilder, Rebuilt},
    status::{
        conditions::metrics_not_served,
        next_status,
        runs::run_status,
        trouble::{Looked, rollout},
        urgency::{FIRST_WORD, waits_for_first_sample},
        workers,
        writer::{StatusWriter, Written},
    },
};
use crate::{
    api::{ConditionType, ProjectionStatus, Reason, RunStatus},
    measure::ProjectionKey,
    rebuild::{Backlog, Pace},
    resolve::{Validated, Workload},
};

/// How long after the status has recorded the suspension the workers are removed.
const AFTER_RECORD: Duration = Duration::from_millis(20);

/// Whether a run is beside the one that the Projection's status is about.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Beside {
    No,
    Yes,
}

/// What reconciling works with.
pub struct Reconciler {
    pub(super) gatherer: Gatherer,
    pub(super) rebuilder: Rebuilder,
    pub(super) executor: Executor,
    pub(super) pods: PodLook,
    pub(super) writer: StatusWriter,
    /// The start of the controller: times that decisions compare count from here.
    pub(super) began: Instant,
    pub(super) memory: Mutex<HashMap<ProjectionKey, Memory>>,
}

impl Reconciler {
    /// Runs one round. `jitter`, from 0 to 1, spreads the retries of Projections that failed together.
    pub async fn reconcile(&self, key: &ProjectionKey, jitter: f64) -> Ended {
        let mut memory = self.take_memory(key);
        let Some(projection) = self.gatherer.projection(key, &mut memory) else {
            self.gatherer.existing.forget(key);
            if memory.gone {
                self.put_memory(key, memory);
            }
            return Ended::Settled;
        };
        let runs = self.gatherer.runs.of(&projection);
        let statuses = statuses(&projection, &memory);
        let snapshot = self.gatherer.snapshot.load();
        let rebuilt = self.rebuilder.step(&projection, &runs, &statuses.0, &snapshot, &mut memory.rebuild).await;
        let serving = rebuilt.as_ref().map(|rebuilt| Arc::clone(&rebuilt.serving));
        memory.be_about(serving.as_ref());
        let (mut retry, mut view) = (None, None);
        if let Some(Rebuilt { view: mut all, again, serving }) = rebuilt {
            retry = again;
            for run in all.runs.iter_mut().filter(|run| *run.version != *serving) {
                let version: Arc<str> = run.version.as_str().into();
                let gathered = self.gatherer.gather(&projection, &runs, Some(&version), statuses.clone()).await;
                let mut its = memory.beside.remove(&version).unwrap_or_default();
                let again;
                (*run, again) = self.round_beside(&gathered, run, (&mut its, &memory), jitter).await;
                memory.gone |= its.gone;
                memory.beside.insert(version, its);
                retry = sooner(sooner(retry, again), self.gatherer.unconfirmed_wait(&gathered.owner.run));
            }
            memory.beside.retain(|version, _| all.runs.iter().any(|run| run.version == **version));
            view = Some(all);
        }
        let gathered = self.gatherer.gather(&projection, &runs, serving.as_ref(), statuses).await;
        let ended = self.round(&gathered, view, &mut memory, jitter).await;
        self.put_memory(key, memory);
        match (ended, sooner(retry, self.gatherer.unconfirmed_wait(&gathered.owner.run))) {
            (Ended::Settled, Some(wait)) => Ended::Again(wait),
            (Ended::Again(after), Some(wait)) => Ended::Again(after.min(wait)),
            (ended, _) => ended,
        }
    }

    /// A round of a run beside the one that the Projection's status is about: everything but the status. Returns what the status says of it, and when to look
    /// again.
    async fn round_beside(
        &self,
        gathered: &Gathered,
        run: &RunStatus,
        (memory, of_status): (&mut Memory, &Memory),
        jitter: f64,
    ) -> (RunStatus, Option<Duration>) {
        memory.uid.clone_from(&of_status.uid);
        memory.status.unrecordable = of_status.status.unrecordable;
        memory.gone = of_status.gone;
        let pace = pace(gathered, &mut memory.backlog);
        let mut known = Known { pace, ..known(gathered) };
        let mut retry = None;
        match &gathered.spec {
            _ if memory.gone => {}
            Err(invalid) => {
                let message = invalid.to_string();
                known.problem = Some(Problem { reason: Reason::InvalidSpec, message, lasting: true });
            }
            Ok(validated) => retry = self.act(gathered, validated, &mut known, memory, Beside::Yes, jitter).await,
        }
        (run_status(run, &known, Timestamp::now()), retry)
    }

    /// Forgets everything: another replica may write until this one leads again.
    pub fn forget(&self) {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.gatherer.existing.clear();
    }

    fn take_memory(&self, key: &ProjectionKey) -> Memory {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner).remove(key).unwrap_or_default()
    }

    fn put_memory(&self, key: &ProjectionKey, memory: Memory) {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner).insert(key.clone(), memory);
    }

    async fn round(&self, gathered: &Gathered, runs: Option<RunsView>, memory: &mut Memory, jitter: f64) -> Ended {
        if gathered.workload_is_awaited() {
            // A workload that is not known yet is not missing. The watch causes another round with its first answer.
            return Ended::Settled;
        }
        let unmeasured = gathered.observation_of_this_spec().is_none();
        memory.unmeasured = unmeasured.then(|| memory.unmeasured.unwrap_or(gathered.now));
        let pace = runs.as_ref().and_then(|_| pace(gathered, &mut memory.backlog));
        let mut known = Known { runs, pace, ..known(gathered) };
        let mut retry = None;
        match &gathered.spec {
            Err(invalid) => {
                let message = invalid.to_string();
                known.problem = Some(Problem { reason: Reason::InvalidSpec, message, lasting: true });
            }
            Ok(validated) => {
                retry = self.act(gathered, validated, &mut known, memory, Beside::No, jitter).await;
                if memory.gone {
                    return Ended::Settled;
                }
            }
        }
        self.report(gathered, &known, retry, memory).await
    }

    /// Plans, applies and looks at what runs then. Adds to `known` what came of it, and returns when to look again.
    async fn act(
        &self,
        gathered: &Gathered,
        validated: &Validated,
        known: &mut Known<'_>,
        memory: &mut Memory,
        beside: Beside,
        jitter: f64,
    ) -> Option<Duration> {
        let (works, mut retry) = self.judge_autoscaler(gathered, validated, known, memory);
        let outcome = self.carry_out(gathered, validated, known, (works, beside), memory, jitter).await;
        if memory.gone {
            return None;
        }
        retry = sooner(retry, outcome.retry);
        known.resumed = outcome.done && known.suspended.is_none();
        known.problem = outcome.problem;
        known.unapplied = known.problem.is_none() && memory.failing.is_some();
        sooner(retry, self.look_at_workload(gathered, validated, memory, known).await)
    }

    /// Adds to `known` why the autoscaler does not do its work. Returns whether it does, and when to ask again.
    fn judge_autoscaler(
        &self,
        gathered: &Gathered,
        validated: &Validated,
        known: &mut Known<'_>,
        memory: &mut Memory,
    ) -> (bool, Option<Duration>) {
        if !validated.workers.autoscaled {
            return (false, None);
        }
        let pods = match known.workload {
            WorkloadView::Present(counts) => counts.existing,
            WorkloadView::NotWanted | WorkloadView::Absent => 0,
        };
        let now = self.began.elapsed();
        let standing = memory.autoscaler.judge(gathered.autoscaler().as_deref(), pods, now);
        known.metrics_not_served = metrics_not_served(gathered.unserved.as_ref(), &gathered.previous);
        let works = standing == Standing::Works && gathered.unserved.is_some() && known.metrics_not_served.is_none();
        let again;
        (known.autoscaler_inactive, again) = memory.autoscaler.told(standing, now);
        (works, again)
    }

    /// Plans and applies. `works`: the autoscaler works and reads the same number, so that it will agree, and later remove the workers again.
    async fn carry_out(
        &self,
        gathered: &Gathered,
        validated: &Validated,
        known: &Known<'_>,
        (works, beside): (bool, Beside),
        memory: &mut Memory,
        jitter: f64,
    ) -> Outcome {
        // The status records the suspension before the workers are removed, so that a crash in between does not lose it.
        if known.suspended.is_some() && !gathered.there.status.suspended && !memory.status.unrecordable {
            return Outcome { retry: Some(AFTER_RECORD), ..Outcome::default() };
        }
        let replicas = gathered.replicas.as_ref().ok().copied().flatten().filter(|_| works);
        let ceiling = replicas.and_then(|now| memory.scale_out.ceiling(&validated.workers, now, self.began.elapsed()));
        let wish = Wish { required: gathered.required(), ceiling };
        let tried = match self.executor.plan(gathered, validated, wish, memory, jitter) {
            Ok(tried) => tried,
            Err(outcome) => return outcome,
        };
        // The status tells the number of a run beside it after the round.
        if beside == Beside::No && tried.adds_workers() && known.measured.is_ok() {
            let Gathered { owner, previous, there, .. } = gathered;
            let required = workers(known);
            if !self.writer.publish_required_first(owner, previous, there, required, &mut memory.status).await {
                memory.gone = true;
                return Outcome::default();
            }
        }
        self.executor.apply(gathered, tried, memory, jitter).await
    }

    /// Adds to `known` what runs the workers after the plan was applied, how far it has come and what keeps workers from running. Returns when to look
    /// again.
    async fn look_at_workload(
        &self,
        gathered: &Gathered,
        validated: &Validated,
        memory: &mut Memory,
        known: &mut Known<'_>,
    ) -> Option<Duration> {
        let workload = self.gatherer.workload_after(gathered);
        known.workload = gathered.view(&workload);
        if known.suspended.is_some() {
            return None;
        }
        let live = found(&workload)?;
        let namespace = &gathered.key.namespace;
        let (what, declared) = match &validated.workload {
            Workload::MeasureOnly => return None,
            Workload::Existing { kind, name } => (format!("{} {namespace}/{name}", kind.as_str()), true),
            Workload::Own { .. } => {
                let name = Part::Deployment.object_name(&gathered.owner.run);
                (format!("{} {namespace}/{name}", Part::Deployment.kind()), is_declared(live, memory))
            }
        };
        known.rollout = rollout(&what, live.workers, declared);
        let said = &gathered.previous.conditions;
        let said = said.iter().find(|condition| condition.type_ == ConditionType::Ready.as_str());
        let told = said.filter(|said| said.status == "False").map(|said| said.reason.as_str());
        let Looked { trouble, starting, again } = self.pods.look(namespace, live, told, &mut memory.pods).await;
        (known.trouble, known.starting) = (trouble, starting);
        again
    }

    /// Writes the status, unless more will be known in a moment.
    async fn report(
        &self,
        gathered: &Gathered,
        known: &Known<'_>,
        retry: Option<Duration>,
        memory: &mut Memory,
    ) -> Ended {
        // Part of the status may have been written before workers were added.
        let said = memory.status.written.as_ref().map(|(written, _)| written);
        let said = said.filter(|said| !is_older(&said.version, &gathered.there.version)).cloned();
        let (previous, there) = match said {
            Some(said) => (said.status.clone(), said),
            None => (gathered.previous.clone(), gathered.there.clone()),
        };
        let next = next_status(known, &previous, Timestamp::now());
        if let Some(left) = self.until_more_is_known(known, &previous, &next, memory) {
            return Ended::Again(retry.map_or(left, |retry| retry.min(left)));
        }
        let projections = self.gatherer.projections.len();
        match self.writer.write(&gathered.owner, &previous, &there, next, &mut memory.status, projections).await {
            Written::Yes => retry.map_or(Ended::Settled, Ended::Again),
            Written::Waits(left) => Ended::Again(retry.map_or(left, |retry| retry.min(left))),
            Written::Failed => Ended::Failed,
            Written::Gone => {
                memory.gone = true;
                Ended::Settled
            }
        }
    }

    /// How long a status waits since it would only say what a sample will refute in a moment; absent where it does not wait.
    fn until_more_is_known(
        &self,
        known: &Known<'_>,
        previous: &ProjectionStatus,
        next: &ProjectionStatus,
        memory: &Memory,
    ) -> Option<Duration> {
        // The sampler learns of a newer spec at the same moment, and reports at once whether what it knows still holds.
        let news = memory.unmeasured.map(|since| FIRST_WORD.saturating_sub(since.elapsed()));
        let news = news.filter(|left| !left.is_zero() && known.suspended.is_none() && known.problem.is_none());
        let unmeasured = known.measured.as_ref().is_err_and(|unknown| unknown.reason == Reason::NotMeasuredYet);
        news.or_else(|| waits_for_first_sample(previous, next, unmeasured, self.began.elapsed()))
    }
}

/// What is known when a round begins, before anything is tried.
fn known(gathered: &Gathered) -> Known<'_> {
    let stated = &gathered.stated;
    Known {
        generation: gathered.projection.metadata.generation,
        version: gathered.owner.run.version.as_deref().map(str::to_owned).or_else(|| stated.version.clone()),
        suspended: stated.suspended,
        resumed: false,
        event_table: stated.event_table.clone().unwrap_or_default(),
        target: stated.target,
        workload: gathered.view(&gathered.workload),
        trouble: None,
        starting: None,
        rollout: None,
        problem: None,
        unapplied: false,
        measured: gathered.measured(),
        failure: gathered.observation_of_this_spec().and_then(|observation| observation.failure.as_ref()),
        read_store: gathered.read_store.clone(),
        metrics_not_served: None,
        autoscaler_inactive: None,
        pace: None,
        runs: None,
    }
}

/// Takes in what waits for this run, and returns how fast that becomes less.
fn pace(gathered: &Gathered, backlog: &mut Backlog) -> Option<Pace> {
    match gathered.measured().ok().and_then(|it| Some((it.sample.at, it.assessment.counted()?))) {
        Some((at, pending)) => backlog.observe(at, pending.events),
        None => backlog.interrupt(),
    }
    backlog.pace()
}

/// The Deployment holds what was applied last.
fn is_declared(live: &LiveObject, memory: &Memory) -> bool {
    memory.declared.is_none() || memory.declared == live.applied_hash
}

#[cfg(test)]
#[path = "reconcile_tests.rs"]
mod tests;
