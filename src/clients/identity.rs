//! What makes two connections to servers of one kind the same.

use std::{fmt, sync::Arc};

/// All settings of a connection, credentials included: equal for connections that may be shared. Can be compared and shown as the settings are, which
/// show no secret.
#[derive(Clone, Eq, Hash, PartialEq)]
pub struct Identity<Settings>(Arc<Settings>);

impl<Settings> Identity<Settings> {
    /// That of connections with these settings.
    pub(super) fn of(settings: Settings) -> Self {
        Self(Arc::new(settings))
    }

    /// The settings that it stands for.
    pub fn settings(&self) -> &Settings {
        &self.0
    }
}

impl<Settings: fmt::Display> fmt::Debug for Identity<Settings> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({})", self.0)
    }
}
