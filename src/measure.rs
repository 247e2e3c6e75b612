//! What passes between the rooms that measure and those that act on measurements: which run of which projection, and why there is no measurement of it.

use std::{fmt, sync::Arc};

use kube::ResourceExt as _;

use crate::api::{Projection, Reason};

/// Namespace and name of a Projection.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct ProjectionKey {
    /// The namespace.
    pub namespace: Arc<str>,
    /// The name.
    pub name: Arc<str>,
}

impl ProjectionKey {
    /// The key of this Projection.
    pub fn of(projection: &Projection) -> Self {
        Self { namespace: projection.namespace().unwrap_or_default().into(), name: projection.name_any().into() }
    }
}

impl fmt::Display for ProjectionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// One version of one projection: what is measured and planned for, and what owns workers. Two runs of one projection stand side by side while its read
/// model is rebuilt.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct RunKey {
    /// The Projection whose run it is.
    pub projection: ProjectionKey,
    /// The version of the read model that the run writes; absent for a Projection that names none.
    pub version: Option<Arc<str>>,
}

impl RunKey {
    /// The run without a version of the Projection `namespace`/`name`.
    pub fn unversioned(namespace: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> Self {
        ProjectionKey { namespace: namespace.into(), name: name.into() }.into()
    }
}

impl From<ProjectionKey> for RunKey {
    /// The run without a version.
    fn from(projection: ProjectionKey) -> Self {
        Self { projection, version: None }
    }
}

impl fmt::Display for RunKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.version {
            None => self.projection.fmt(f),
            Some(version) => write!(f, "{} version {version}", self.projection),
        }
    }
}

/// Why a projection's lag is unknown, in the words of a condition.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct MeasureError {
    /// For machines.
    pub reason: Reason,
    /// For people: what, where, and what to do. Holds no secret.
    pub message: String,
}

impl MeasureError {
    /// The same, with what it is about before the message: a server, a field of the spec, a stream.
    #[must_use]
    pub fn about(&self, what: impl fmt::Display) -> Self {
        Self { reason: self.reason, message: format!("{what}: {}", self.message) }
    }
}
