//! What a spec says besides what is asked of the source: what makes earlier samples meaningless, limits, the answer while nothing is known, and what the
//! status repeats.

use std::time::Duration;

use crate::api::{Checkpoint, ExistingKind, OnUnknown, Projection, ReadStore, Source};

/// The parts of a spec that decide what is measured: a change makes earlier samples meaningless.
#[derive(Clone, Debug, PartialEq)]
pub struct Measures {
    source: Source,
    checkpoint: Option<Checkpoint>,
    /// Without limits.
    read_store: Option<ReadStore>,
    builtin: bool,
    shards: Option<u32>,
}

impl Measures {
    /// Those of a Projection.
    pub fn of(projection: &Projection) -> Self {
        let spec = &projection.spec;
        Self {
            source: spec.source.clone(),
            checkpoint: spec.checkpoint.clone(),
            read_store: spec.read_store.clone().map(|store| ReadStore { limits: None, ..store }),
            builtin: spec.is_builtin(),
            shards: spec.shard_count(),
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

/// What the status repeats of a spec, whether or not that can be carried out.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Stated {
    /// `spec.suspend`.
    pub suspended: bool,
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
            suspended: spec.suspend,
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
