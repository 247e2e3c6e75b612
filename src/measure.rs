//! What passes between the rooms that measure and those that act on measurements: which projection, and why there is no measurement of it.

use std::{fmt, sync::Arc};

use crate::api::Reason;

/// Namespace and name of a Projection.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct ProjectionKey {
    /// The namespace.
    pub namespace: Arc<str>,
    /// The name.
    pub name: Arc<str>,
}

impl fmt::Display for ProjectionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
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
