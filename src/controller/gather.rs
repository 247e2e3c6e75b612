//! Gathers what a round decides from, each thing once: the Projection and what it asks for, its objects, its workload, what was measured. Reads only.
//!
//! Everything but one thing is in memory. The API server is asked for the number of workers where it has just been resumed: the watch
//! may not show yet that they were removed.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use kube::{
    Client,
    runtime::reflector::{ObjectRef, Store},
};
use tokio::sync::watch;

use super::{
    existing::{ExistingWorkloads, WorkloadState},
    index::{CONFIRM_WITHIN, LiveIndex},
    known::{ReadStoreView, WorkloadView},
    live::{LiveObject, is_older},
    memory::Memory,
    obstacles::{Obstacle, obstacle},
    parts::{Owner, Part},
    scale::{ScaleTarget, Scaling},
    status::report::Stored,
    unapplied::Unapplied,
};
use crate::{
    api::{Projection, ProjectionStatus, ReadStoreStatus, Reason},
    measure::{MeasureError, ProjectionKey, RunKey},
    platform::registration::Unserved,
    required_workers::RequiredWorkers,
    resolve::{Invalid, Stated, Validated, Workload, run_of, validate},
    runs::Runs,
    snapshot::{Measured, Observation, SharedSnapshot, Snapshot},
};

/// The least wait before an object is looked at again that only an answer of the API server described.
const CONFIRM_EVERY: Duration = Duration::from_secs(1);

/// Where a round reads.
pub struct Gatherer {
    pub(super) client: Client,
    pub(super) projections: Store<Projection>,
    pub(super) runs: Runs,
    pub(super) index: LiveIndex,
    pub(super) existing: Arc<ExistingWorkloads>,
    pub(super) snapshot: SharedSnapshot,
    pub(super) unserved: watch::Receiver<Option<Unserved>>,
}

/// What there is when a round begins.
pub(super) struct Gathered {
    pub(super) key: ProjectionKey,
    /// The run that objects are made for.
    pub(super) owner: Owner,
    pub(super) projection: Arc<Projection>,
    /// What the spec asks for.
    pub(super) spec: Result<Validated, Invalid>,
    /// What the status repeats of the spec.
    pub(super) stated: Stated,
    /// The status that this replica wrote last, or else the one in the cluster: the next status follows on it.
    pub(super) previous: ProjectionStatus,
    /// The status in the cluster, as far as is known.
    pub(super) there: Stored,
    /// The objects of the run's names, in the order of [`Part::ALL`]; some may belong to another owner.
    pub(super) objects: Vec<Option<Arc<LiveObject>>>,
    /// What runs the workers.
    pub(super) workload: WorkloadState,
    /// Whose number of workers is set.
    pub(super) target: ScaleTarget,
    /// Why this workload must not be scaled.
    pub(super) obstacle: Option<Obstacle>,
    /// The number of workers that is asked for; absent where there is no workload.
    pub(super) replicas: Result<Option<i32>, Unapplied>,
    /// What was measured of the run of this very Projection.
    pub(super) observation: Option<Arc<Observation>>,
    /// The read store; absent where the spec names none.
    pub(super) read_store: Option<ReadStoreView>,
    /// The APIServices that do not lead to this operator; absent while that is not known.
    pub(super) unserved: Option<Unserved>,
    /// When it was gathered.
    pub(super) now: Instant,
}

impl Gatherer {
    /// The Projection as it is written. `None` where it does not exist or is being deleted; Kubernetes deletes its objects with it.
    pub(super) fn projection(&self, key: &ProjectionKey, memory: &mut Memory) -> Option<Arc<Projection>> {
        let Some(projection) = self.projections.get(&ObjectRef::new(&key.name).within(&key.namespace)) else {
            *memory = Memory::default();
            return None;
        };
        let uid = projection.metadata.uid.clone().unwrap_or_default();
        if memory.uid != uid {
            *memory = Memory { uid, ..Memory::default() };
        }
        let stays = projection.metadata.deletion_timestamp.is_none() && !memory.gone;
        stays.then_some(projection)
    }

    /// The run of this version, as a Projection of its own; the only one where `version` is absent. `statuses` are those of the Projection.
    pub(super) async fn gather(
        &self,
        projection: &Arc<Projection>,
        runs: &[Arc<Projection>],
        version: Option<&Arc<str>>,
        (previous, there): (ProjectionStatus, Stored),
    ) -> Gathered {
        let key = &ProjectionKey::of(projection);
        let run = RunKey { projection: key.clone(), version: version.cloned() };
        let made = runs.iter().find(|one| run_of(one) == run);
        let spec = made.map_or_else(|| Err(spec_is_lost(version)), |made| validate(made));
        let projection = Arc::clone(made.unwrap_or(projection));
        let uid = projection.metadata.uid.clone().unwrap_or_default();
        let objects = self.objects(&run);
        let (workload, target) = self.workload(key, spec.as_ref().ok(), &objects, &uid);
        let (snapshot, now) = (self.snapshot.load(), Instant::now());
        let observation = snapshot.get(&run).filter(|observation| *observation.uid == *uid).cloned();
        let stated = Stated::of(&projection);
        let read_store = stated.has_read_store.then(|| read_store(&snapshot, observation.as_deref(), now));
        let obstacle = match (&workload, &target) {
            (WorkloadState::NotYet, _) | (_, ScaleTarget::Own) => None,
            (workload, ScaleTarget::Existing(kind, name)) => {
                obstacle(key, &self.projections, &projection, *kind, name, workload)
            }
        };
        let mut gathered = Gathered {
            owner: Owner { run, uid: uid.clone() },
            replicas: Ok(found(&workload).and_then(|live| live.workers.desired)),
            observation,
            read_store,
            unserved: self.unserved.borrow().clone(),
            now,
            key: key.clone(),
            stated,
            projection,
            spec,
            previous,
            there,
            objects,
            workload,
            target,
            obstacle,
        };
        if gathered.resumes() {
            let scaling = Scaling::new(self.client.clone(), &gathered.owner, &gathered.target);
            gathered.replicas = scaling.replicas().await;
        }
        gathered
    }

    /// What runs the workers now: after a write, the API server's answer is in the index.
    pub(super) fn workload_after(&self, gathered: &Gathered) -> WorkloadState {
        let (objects, uid) = (self.objects(&gathered.owner.run), &gathered.owner.uid);
        self.workload(&gathered.key, gathered.spec.as_ref().ok(), &objects, uid).0
    }

    /// How long to wait at most before another round: some object is only known by the API server's answer, and the watch has not shown it yet.
    pub(super) fn unconfirmed_wait(&self, run: &RunKey) -> Option<Duration> {
        let (namespace, now) = (&run.projection.namespace, Instant::now());
        let waits = Part::ALL.into_iter().filter_map(|part| {
            let since = self.index.unconfirmed_for(part, namespace, &part.object_name(run), now)?;
            Some(CONFIRM_WITHIN.saturating_sub(since).max(CONFIRM_EVERY))
        });
        waits.min()
    }

    fn objects(&self, run: &RunKey) -> Vec<Option<Arc<LiveObject>>> {
        Part::ALL.map(|part| self.index.get(part, &run.projection.namespace, &part.object_name(run))).into()
    }

    fn workload(
        &self,
        key: &ProjectionKey,
        spec: Option<&Validated>,
        objects: &[Option<Arc<LiveObject>>],
        uid: &str,
    ) -> (WorkloadState, ScaleTarget) {
        match spec.map(|validated| &validated.workload) {
            Some(Workload::Existing { kind, name }) => {
                (self.existing.look(key, *kind, name), ScaleTarget::Existing(*kind, name.clone()))
            }
            named => {
                if named.is_some() {
                    self.existing.forget(key);
                }
                (
                    ours(objects, Part::Deployment, uid).map_or(WorkloadState::Missing, WorkloadState::Found),
                    ScaleTarget::Own,
                )
            }
        }
    }
}

fn spec_is_lost(version: Option<&Arc<str>>) -> Invalid {
    let version = version.map_or("", |version| version);
    Invalid::Field {
        field: "status.version".to_owned(),
        problem: format!(
            "is {version}, whose spec is not stored any more: its workers stay as they are. Set spec.version to {version} again, with the spec that it had"
        ),
    }
}

/// The read store of a Projection that names one.
fn read_store(snapshot: &Snapshot, observation: Option<&Observation>, now: Instant) -> ReadStoreView {
    match observation.and_then(|observation| snapshot.read_store_of(observation)) {
        Some(store) => {
            let (lock_wait, why) = match store.current(now) {
                Ok(sample) => (sample.lock_wait.clone(), None),
                Err(why) => (None, Some(why)),
            };
            ReadStoreView { status: store.status(now), why, lock_wait }
        }
        // Most likely a Secret cannot be read.
        None => ReadStoreView {
            status: ReadStoreStatus::default(),
            lock_wait: None,
            why: Some(observation.and_then(|observation| observation.failure.clone()).unwrap_or_else(|| {
                MeasureError {
                    reason: Reason::NotMeasuredYet,
                    message: "the read store has not been asked yet".to_owned(),
                }
            })),
        },
    }
}

impl Gathered {
    /// The measurement to act on, or why there is none.
    pub(super) fn measured(&self) -> Result<&Measured, MeasureError> {
        let not_yet =
            || MeasureError { reason: Reason::NotMeasuredYet, message: "no sample has been taken yet".to_owned() };
        self.observation_of_this_spec().map_or_else(|| Err(not_yet()), |observation| observation.current(self.now))
    }

    /// The workers to ask for.
    pub(super) fn required(&self) -> Option<i32> {
        let sample = self.measured().map(|measured| measured.assessment.required.workers);
        let fallback = self.observation.as_ref().and_then(|observation| observation.fallback);
        // Only a leader reconciles.
        let now = RequiredWorkers::now(sample.map_err(|unknown| unknown.reason), None, fallback);
        now.asked_for().and_then(|workers| i32::try_from(workers).ok())
    }

    /// What was measured for an older spec may be of another table.
    pub(super) fn observation_of_this_spec(&self) -> Option<&Observation> {
        let generation = self.projection.metadata.generation;
        let observation = self.observation.as_deref();
        observation.filter(|seen| generation.is_none_or(|newest| seen.generation >= newest))
    }

    /// The autoscaler that the operator made.
    pub(super) fn autoscaler(&self) -> Option<Arc<LiveObject>> {
        ours(&self.objects, Part::HorizontalPodAutoscaler, &self.owner.uid)
    }

    /// The workload, as the status shows it.
    pub(super) fn view(&self, workload: &WorkloadState) -> WorkloadView {
        if matches!(&self.spec, Ok(Validated { workload: Workload::MeasureOnly, .. })) {
            return WorkloadView::NotWanted;
        }
        let live = found(workload).filter(|live| !live.deleting);
        live.map_or(WorkloadView::Absent, |live| WorkloadView::Present(live.workers))
    }

    /// The workload that the spec names is not known yet: its watch has only begun.
    pub(super) fn workload_is_awaited(&self) -> bool {
        matches!(self.workload, WorkloadState::NotYet)
    }

    /// It has just been resumed, and there is a workload that may have to get its workers back.
    fn resumes(&self) -> bool {
        let suspended = self.stated.suspended.is_some();
        let blocked = self.obstacle.is_some() || self.spec.is_err();
        self.previous.suspended && !suspended && !blocked && matches!(self.replicas, Ok(Some(_)))
    }
}

/// The workload, where there is one.
pub(super) fn found(workload: &WorkloadState) -> Option<&Arc<LiveObject>> {
    match workload {
        WorkloadState::Found(live) => Some(live),
        WorkloadState::NotYet | WorkloadState::Missing => None,
    }
}

/// The object of this kind, if the Projection with this UID controls it: one of a deleted namesake does not count.
fn ours(objects: &[Option<Arc<LiveObject>>], part: Part, uid: &str) -> Option<Arc<LiveObject>> {
    let position = Part::ALL.iter().position(|one| *one == part)?;
    objects.get(position)?.clone().filter(|live| live.controlled_by.as_deref() == Some(uid))
}

/// The status that the next one follows on, and the one in the cluster.
pub(super) fn statuses(projection: &Projection, memory: &Memory) -> (ProjectionStatus, Stored) {
    let version = projection.metadata.resource_version.clone().unwrap_or_default();
    let seen = Stored { status: projection.status.clone().unwrap_or_default(), version };
    let Some((written, _)) = &memory.status.written else { return (seen.status.clone(), seen) };
    // The watch may lag behind this replica's own write.
    let there = if is_older(&seen.version, &written.version) { written.clone() } else { seen };
    (written.status.clone(), there)
}
