//! What keeps a Projection from its workload, in the words of a condition: another Projection, or an object that is missing or in the way. Pure.

use kube::runtime::reflector::Store;

use super::{
    known::Problem,
    parts::{Owner, Part},
};
use crate::{
    api::{ExistingKind, Projection, Reason},
    measure::ProjectionKey,
};

/// Another Projection that names the same workload and did so earlier.
pub(super) fn rival(
    projections: &Store<Projection>,
    projection: &Projection,
    kind: ExistingKind,
    name: &str,
) -> Option<Problem> {
    let age = |one: &Projection| (one.metadata.creation_timestamp.clone().map(|time| time.0), one.metadata.uid.clone());
    let rival = projections.find(|other| {
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

pub(super) fn uncollected(part: Part, owner: &Owner) -> Problem {
    Problem {
        reason: Reason::ApplyFailed,
        message: format!(
            "the {} {}/{} belongs to a deleted Projection of the same name and has not been garbage-collected yet",
            part.kind(),
            owner.namespace,
            part.object_name(&owner.name)
        ),
        lasting: false,
    }
}

pub(super) fn missing(key: &ProjectionKey, kind: ExistingKind, name: &str) -> Problem {
    Problem {
        reason: Reason::WorkloadNotFound,
        message: format!("spec.projector.existing: there is no {} {}/{name}", kind.as_str(), key.namespace),
        lasting: true,
    }
}

pub(super) fn made_by_us(key: &ProjectionKey, kind: ExistingKind, name: &str) -> Problem {
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
