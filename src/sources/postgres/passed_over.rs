//! What one projection has passed over, where it outlives the task that measures: a new password, another spec, a restart of the operator.

use std::sync::{Arc, Mutex, PoisonError};

use crate::lag::PassedOver;

/// Holds what is told of one projection's late events. Clones share it; equal when they are the same one, whatever it holds.
#[derive(Clone, Debug, Default)]
pub struct PassedOverMemory(Arc<Mutex<PassedOver>>);

impl PassedOverMemory {
    /// One that holds what was told before.
    pub fn new(told: PassedOver) -> Self {
        Self(Arc::new(Mutex::new(told)))
    }

    /// What was told last.
    pub fn load(&self) -> PassedOver {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Replaces what was told last.
    pub fn store(&self, told: PassedOver) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = told;
    }
}

impl PartialEq for PassedOverMemory {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for PassedOverMemory {}
