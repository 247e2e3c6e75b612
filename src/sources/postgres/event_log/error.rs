//! Why an event table cannot be followed, in words that name the table, the column and what to do.

use tokio_postgres::Error;

use crate::{api::Reason, clients::postgres::classify};

/// Why a log cannot be followed.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The server refused or failed.
    #[error("event table {table}: {}", classify(.source).1)]
    Postgres {
        /// The table as the spec names it.
        table: String,
        /// The error.
        source: Error,
    },
    /// The table is there and cannot serve.
    #[error("event table {table}: {message}")]
    Unsuitable {
        /// The table as the spec names it.
        table: String,
        /// The class of failure.
        reason: Reason,
        /// What, and what to do.
        message: String,
    },
}

impl LogError {
    /// The reason for a condition.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Postgres { source, .. } => classify(source).0,
            Self::Unsuitable { reason, .. } => *reason,
        }
    }
}
