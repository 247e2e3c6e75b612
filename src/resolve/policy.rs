//! What a spec says besides what is asked of the source: what makes earlier samples meaningless, limits, the answer while nothing is known, and what the
//! status repeats.

use std::{fmt, time::Duration};

use kube::ResourceExt as _;

use super::versions::filled;
use crate::{
    api::{Checkpoint, ExistingKind, OnUnknown, Projection, ProjectionSpec, ReadStore, Source},
    names::SUSPEND_ANNOTATION,
};

/// The parts of a spec that decide what is measured: a change makes earlier samples meaningless.
#[derive(Clone, Debug, PartialEq)]
pub struct Measures {
    source: Source,
    checkpoint: Option<Checkpoint>,
    /// Without limits.
    read_store: Option<ReadStore>,
    builtin: bool,
    shards: Option<u32>,
    /// Where a run has a checkpoint of its own by its name alone.
    version: Option<String>,
}

impl Measures {
    /// Those of a Projection.
    pub fn of(projection: &Projection) -> Self {
        let spec = &*filled(&projection.spec);
        Self {
            source: spec.source.clone(),
            checkpoint: spec.checkpoint.clone(),
            read_store: spec.read_store.clone().map(|store| ReadStore { limits: None, ..store }),
            builtin: spec.is_builtin(),
            shards: spec.shard_count(),
            version: spec.version_in_names().map(str::to_owned),
        }
    }
}

/// How many connections to its read store a Projection takes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ConnectionLimits {
    /// Connections of one worker.
    pub per_worker: u32,
    /// The most connections that the workers of all Projections on the read store may take together; absent where the spec names none.
    pub most: Option<u32>,
}

impl ConnectionLimits {
    /// Those of a Projection.
    pub fn of(projection: &Projection) -> Self {
        let limits = projection.spec.read_store.as_ref().and_then(|store| store.limits);
        Self {
            per_worker: limits.map_or(1, |limits| u32::try_from(limits.connections_per_worker).unwrap_or(1)),
            most: limits.and_then(|limits| u32::try_from(limits.max_connections).ok()),
        }
    }
}

/// The workers to ask for while the lag is not known, where the spec wants that: never fewer than `running`, since none is to end because something could
/// not be read.
pub fn fallback_workers(projection: &Projection, running: u32) -> Option<u32> {
    let spec = &projection.spec;
    let workers = spec.lag.fallback_workers.filter(|_| spec.lag.on_unknown == OnUnknown::Fallback)?;
    let workers = u32::try_from(workers).ok()?.max(running);
    Some(workers.min(u32::try_from(spec.scaling.most_workers()).ok()?))
}

/// What suspends a Projection.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum SuspendedBy {
    /// `spec.suspend`.
    Spec,
    /// The annotation `projectionist.dev/suspend`.
    Annotation,
}

impl SuspendedBy {
    /// What suspends this one: nothing where neither does.
    ///
    /// # Errors
    /// When the annotation is neither `true` nor `false`, since it cannot be known what was meant: what is wrong with it.
    pub(super) fn of(projection: &Projection) -> Result<Option<Self>, &'static str> {
        let of_spec = Self::of_spec(&projection.spec);
        match projection.annotations().get(SUSPEND_ANNOTATION).map(String::as_str) {
            None | Some("false") => Ok(of_spec),
            Some("true") => Ok(of_spec.or(Some(Self::Annotation))),
            Some(_) => Err("must be \"true\" or \"false\"; until then the workers stay as they are"),
        }
    }

    fn of_spec(spec: &ProjectionSpec) -> Option<Self> {
        spec.suspend.then_some(Self::Spec)
    }
}

impl fmt::Display for SuspendedBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Spec => f.write_str("spec.suspend is set"),
            Self::Annotation => write!(f, "the annotation {SUSPEND_ANNOTATION} is \"true\""),
        }
    }
}

/// What the status repeats of a spec, whether or not that can be carried out.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Stated {
    /// The version of the read model.
    pub version: Option<String>,
    /// What suspends it.
    pub suspended: Option<SuspendedBy>,
    /// The lag target.
    pub target: Duration,
    /// The table with the events, where there is one in which late events are looked for.
    pub event_table: Option<String>,
    /// It names a read store.
    pub has_read_store: bool,
}

impl Stated {
    /// That of a Projection.
    pub fn of(projection: &Projection) -> Self {
        let spec = &projection.spec;
        Self {
            version: spec.version.clone(),
            suspended: SuspendedBy::of(projection).unwrap_or_else(|_| SuspendedBy::of_spec(spec)),
            target: spec.lag.target.0,
            event_table: spec.audited_table(),
            has_read_store: spec.read_store.is_some(),
        }
    }
}

/// The workload of the team's own that a Projection scales, by kind and name.
pub fn existing_workload(projection: &Projection) -> Option<(ExistingKind, &str)> {
    let existing = projection.spec.projector.as_ref()?.existing.as_ref()?;
    Some((existing.kind, &existing.name))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn suspended(spec: bool, annotation: Option<&str>) -> Result<Option<SuspendedBy>, &'static str> {
        let annotations = annotation.map(|value| json!({ SUSPEND_ANNOTATION: value }));
        let projection = serde_json::from_value(json!({
            "apiVersion": "projectionist.dev/v1alpha1", "kind": "Projection",
            "metadata": {"name": "orders", "namespace": "shop", "annotations": annotations},
            "spec": {
                "source": {"postgres": {"connection": {"secretRef": {"name": "db"}}, "eventTable": {}}},
                "lag": {"target": "5s"}, "suspend": spec,
            },
        }));
        SuspendedBy::of(&projection.unwrap())
    }

    #[test]
    fn either_the_spec_or_the_annotation_suspends() {
        for (spec, annotation, expected) in [
            (false, None, None),
            (false, Some("false"), None),
            (false, Some("true"), Some(SuspendedBy::Annotation)),
            (true, None, Some(SuspendedBy::Spec)),
            (true, Some("false"), Some(SuspendedBy::Spec)),
            (true, Some("true"), Some(SuspendedBy::Spec)),
        ] {
            assert_eq!(suspended(spec, annotation), Ok(expected), "{spec} {annotation:?}");
        }
        for unclear in ["", "True", "yes", "1"] {
            let refused = suspended(false, Some(unclear)).unwrap_err();
            assert!(refused.starts_with("must be \"true\""), "{refused}");
        }
    }
}
