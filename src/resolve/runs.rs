//! Which runs a Projection has, what each is made from, and by which rules readers are led from one to another. Pure.
//!
//! With `spec.rollout.strategy: BlueGreen` each version is built by a run of its own. The spec describes the version that it names; the spec of another run is
//! kept beside its workers. A run is handed on as a Projection of its own, with the spec that it was made with, so that whatever is done for a Projection is done
//! for each of its runs.

use std::{sync::Arc, time::Duration};

use kube::ResourceExt as _;
use sha2::{Digest as _, Sha256};

use super::{policy::SuspendedBy, versions};
use crate::{
    api::{
        CheckpointLocation, OnRolloutFailure, Projection, ProjectionSpec, ProjectionStatus, RatesStatus, RunRole,
        RunStatus, TableLocation, WorkersStatus,
    },
    measure::{ProjectionKey, RunKey},
    names::{PROMOTE_ANNOTATION, ROLLBACK_ANNOTATION},
};

/// By which rules readers are led from one version to another.
#[derive(Clone, Debug, PartialEq)]
pub struct RolloutRules {
    /// The version that the spec names.
    pub wanted: Arc<str>,
    /// No event of a fresh version waits longer than this.
    pub fresh_below: Duration,
    /// For how long a version is fresh before it is promoted by itself; `None`: it is not.
    pub promote_after: Option<Duration>,
    /// What both versions must answer alike before that.
    pub parity: Option<ParityRule>,
    /// The version that the annotation promotes.
    pub promote: Option<String>,
    /// The version that the annotation leads readers back to.
    pub roll_back: Option<String>,
    /// How long the version that readers saw before is kept.
    pub keep_old: Duration,
    /// How long a version may take to be promoted.
    pub deadline: Option<Duration>,
    /// The workers of a version that has failed are removed.
    pub remove_failed: bool,
    /// No readers are led to a new version meanwhile.
    pub suspended: bool,
}

/// What two versions must answer alike.
#[derive(Clone, Debug, PartialEq)]
pub struct ParityRule {
    /// A query.
    pub query: Arc<str>,
    /// Numbers may differ by this share.
    pub tolerance: f64,
}

impl ParityRule {
    /// What tells it from another rule, in 16 hexadecimal digits.
    pub fn hash(&self) -> String {
        let digest = Sha256::new().chain_update(self.tolerance.to_bits().to_be_bytes()).chain_update(&*self.query);
        digest.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
    }
}

/// Whether each version is built by a run of its own.
pub fn has_runs(projection: &Projection) -> bool {
    projection.spec.has_runs()
}

/// The run of a Projection that serves readers: what metrics by the Projection's name, its status and its number of workers are about. Before readers were
/// led to any, the one that the spec describes. Of a run that is handed on as a Projection, that run.
pub fn run_of(projection: &Projection) -> RunKey {
    let key = ProjectionKey::of(projection);
    if !has_runs(projection) {
        return key.into();
    }
    let shown = projection.status.as_ref().and_then(|status| status.version.as_ref());
    let version = shown.or(projection.spec.version.as_ref()).map(|version| version.as_str().into());
    RunKey { projection: key, version }
}

/// The version that the spec describes, unless its run was removed since it failed.
pub fn described_version(projection: &Projection) -> Option<&str> {
    let removed = rules(projection).is_some_and(|rules| {
        let Some(status) = &projection.status else { return false };
        let failed = status.rollout.as_ref().and_then(|rollout| rollout.failed.as_deref());
        rules.remove_failed
            && status.live_version().is_some_and(|live| live != &*rules.wanted)
            && failed == Some(&*rules.wanted)
            && rules.promote.as_deref() != Some(&*rules.wanted)
    });
    projection.spec.version.as_deref().filter(|_| has_runs(projection) && !removed)
}

/// The run that the spec describes, as a Projection of its own.
pub fn described_run(projection: &Arc<Projection>) -> Option<Arc<Projection>> {
    let version = described_version(projection)?;
    Some(as_run(projection, version, None))
}

/// Whether the spec names a version again that was made with another spec, by what is stored of it: as when only `version` was set back to give another one up. What
/// readers may see is then not built again with handlers of another version. While the spec stays with a version, it may be changed in place.
pub fn comes_back_changed(projection: &Projection, stored: &str) -> bool {
    let rollout = projection.status.as_ref().and_then(|status| status.rollout.as_ref());
    let before = rollout.and_then(|rollout| rollout.described.as_deref());
    let returns = before.is_some() && before != projection.spec.version.as_deref();
    returns && serde_json::from_str::<ProjectionSpec>(stored).is_ok_and(|stored| stored != to_store(projection))
}

/// Whether this run was made with another spec than the Projection has now.
pub fn has_another_spec(run: &Projection, projection: &Projection) -> bool {
    run.spec != projection.spec
}

/// The run of an older version, as a Projection of its own; `None` where the stored spec cannot be read.
pub fn stored_run(projection: &Arc<Projection>, version: &str, stored: &str) -> Option<Arc<Projection>> {
    let spec = serde_json::from_str(stored);
    let spec: ProjectionSpec = spec
        .map_err(|error| {
            let projection = ProjectionKey::of(projection);
            tracing::warn!("the stored spec of {projection} version {version} cannot be read: its workers stay as they are: {error}");
        })
        .ok()?;
    Some(as_run(projection, version, Some(spec)))
}

/// `spec`: that of an older version.
fn as_run(projection: &Arc<Projection>, version: &str, spec: Option<ProjectionSpec>) -> Arc<Projection> {
    let serves = run_of(projection).version.as_deref() == Some(version);
    if serves && spec.is_none() && projection.status.as_ref().is_none_or(|status| status.version.is_some()) {
        return Arc::clone(projection);
    }
    let mut run = Projection::clone(projection);
    if let Some(spec) = spec {
        // The brake and the rules of rollouts are those of the Projection.
        run.spec = ProjectionSpec {
            version: Some(version.to_owned()),
            suspend: projection.spec.suspend,
            rollout: projection.spec.rollout.clone(),
            ..spec
        };
    }
    if !serves {
        run.status = Some(status_of_run(projection, version));
    }
    run.status.get_or_insert_default().version = Some(version.to_owned());
    Arc::new(run)
}

/// What the status of a Projection says of a run beside the one that serves readers, as if it were a Projection's.
fn status_of_run(projection: &Projection, version: &str) -> ProjectionStatus {
    let status = projection.status.as_ref();
    let said = status.and_then(|status| status.runs.iter().find(|run| run.version == version));
    ProjectionStatus {
        observed_generation: status.and_then(|status| status.observed_generation),
        suspended: status.is_some_and(|status| status.suspended),
        runs: status.map(|status| status.runs.clone()).unwrap_or_default(),
        workers: said.map(|run| WorkersStatus {
            required: run.workers.required,
            desired: run.workers.desired,
            ready: run.workers.ready,
            ..WorkersStatus::default()
        }),
        // What a worker does is about the same.
        rates: status
            .and_then(|status| status.rates)
            .map(|rates| RatesStatus { per_worker_per_second: rates.per_worker_per_second, ..RatesStatus::default() }),
        ..ProjectionStatus::default()
    }
}

/// The run whose version readers see, while this run builds another.
pub fn live_beside(run: &Projection) -> Option<RunKey> {
    let key = run_of(run);
    let status = run.status.as_ref()?;
    let role = |said: &&RunStatus| Some(&*said.version) == key.version.as_deref() && said.role == RunRole::Candidate;
    status.runs.iter().find(role)?;
    Some(RunKey { version: Some(status.live_version()?.into()), ..key })
}

/// The spec as it is stored beside the workers of the run that it describes; `None` where there are no runs. Of a run that was made from a stored spec, that one
/// again.
pub(super) fn spec_to_store(projection: &Projection) -> Option<String> {
    has_runs(projection).then(|| serde_json::to_string(&to_store(projection)).ok()).flatten()
}

/// Of the brake and the rules of rollouts the Projection's own count, so that a change of them changes no stored spec.
fn to_store(projection: &Projection) -> ProjectionSpec {
    ProjectionSpec { suspend: false, rollout: None, ..projection.spec.clone() }
}

/// The rules, where there are runs.
pub fn rules(projection: &Projection) -> Option<RolloutRules> {
    let spec = &projection.spec;
    let rollout = spec.rollout.as_ref().filter(|_| has_runs(projection))?;
    let annotation = |name: &str| projection.annotations().get(name).map(|value| value.trim().to_owned());
    Some(RolloutRules {
        wanted: spec.version.as_deref()?.into(),
        fresh_below: rollout
            .promote
            .as_ref()
            .and_then(|promote| promote.staleness_below)
            .map_or(spec.lag.target.0, |below| below.0),
        promote_after: rollout.promote.as_ref().map(|promote| promote.fresh_for.0),
        parity: rollout.promote.as_ref().and_then(|promote| promote.parity.as_ref()).map(|parity| ParityRule {
            query: parity.query.as_str().into(),
            tolerance: parity.tolerance.unwrap_or(0.0),
        }),
        promote: annotation(PROMOTE_ANNOTATION),
        roll_back: annotation(ROLLBACK_ANNOTATION),
        keep_old: rollout.keep_old.0,
        deadline: rollout.deadline.map(|deadline| deadline.0),
        remove_failed: rollout.on_failure == OnRolloutFailure::Remove,
        // Where it is not clear what is meant, nothing is changed.
        suspended: SuspendedBy::of(projection).map_or(true, |by| by.is_some()),
    })
}

/// The table in which the workers of this run commit how far they have come.
pub fn checkpoint_table_of(run: &Projection) -> Option<TableLocation> {
    let (namespace, name) = (run.namespace().unwrap_or_default(), run.name_any());
    match versions::filled(&run.spec).checkpoint_location(&namespace, &name)? {
        CheckpointLocation::Table(table) => Some(table),
        _ => None,
    }
}

#[cfg(test)]
#[path = "runs_tests.rs"]
mod tests;
