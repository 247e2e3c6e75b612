//! The built-in projector: a worker that runs the user's SQL for each event against the read store, effects and checkpoint in
//! one transaction.
//!
//! Uses no Kubernetes API: its input is a file and two connection strings, and it shares the work with the other workers through leases in the read
//! store alone.

mod batch;
mod checkpoint;
mod config;
mod error;
mod events;
mod health;
mod mapping;
mod members;
mod run;
mod shares;
mod sql;
mod stuck;
mod worker;

pub use config::{ConfigError, DEFAULT_BATCH_SIZE, ProjectorConfig};
pub use error::ProjectorError;
pub use run::{RunOptions, run};
pub use sql::SqlError;
