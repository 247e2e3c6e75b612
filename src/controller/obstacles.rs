//! What keeps a Projection from its workload, in the words of a condition: another Projection, or an object that is missing or in the way. Pure.

use std::time::Duration;

use kube::runtime::reflector::Store;

use super::{
    existing::WorkloadState,
    known::Problem,
    parts::{Owner, Part},
};
use crate::{
    api::{ExistingKind, Projection, Reason},
    measure::ProjectionKey,
    resolve::existing_workload,
};

/// How often a Projection is reconciled again while another Projection uses its workload.
const RIVAL_EVERY: Duration = Duration::from_secs(10);

/// Why a workload must not be scaled.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Obstacle {
    pub(super) problem: Problem,
    /// When to look again, where no watch reports that it has changed.
    pub(super) retry: Option<Duration>,
}

/// What keeps this Projection from the workload that it names, if anything does.
pub(super) fn obstacle(
    key: &ProjectionKey,
    projections: &Store<Projection>,
    projection: &Projection,
    kind: ExistingKind,
    name: &str,
    workload: &WorkloadState,
) -> Option<Obstacle> {
    if let Some(problem) = rival(projections, projection, kind, name) {
        return Some(Obstacle { problem, retry: Some(RIVAL_EVERY) });
    }
    let problem = match workload {
        WorkloadState::Missing => missing(key, kind, name),
        WorkloadState::Found(live) if live.controlled_by.is_some() && live.applied_hash.is_some() => {
            made_by_us(key, kind, name)
        }
        WorkloadState::NotYet | WorkloadState::Found(_) => return None,
    };
    Some(Obstacle { problem, retry: None })
}

/// Another Projection that names the same workload and did so earlier.
fn rival(projections: &Store<Projection>, projection: &Projection, kind: ExistingKind, name: &str) -> Option<Problem> {
    let age = |one: &Projection| (one.metadata.creation_timestamp.clone().map(|time| time.0), one.metadata.uid.clone());
    let rival = projections.find(|other| {
        other.metadata.namespace == projection.metadata.namespace
            && existing_workload(other) == Some((kind, name))
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

pub(super) fn uncollected(part: Part, owner: &Owner) -> Problem {
    Problem {
        reason: Reason::ApplyFailed,
        message: format!(
            "the {} {}/{} belongs to a deleted Projection of the same name and has not been garbage-collected yet",
            part.kind(),
            owner.namespace(),
            part.object_name(&owner.run)
        ),
        lasting: false,
    }
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
