//! The built-in projector: a worker that runs what the user wrote for each event against the read store, effects and checkpoint in one step.
//!
//! One loop (`worker`) between two seams: `input` reads events, one file a kind of source, and `output` keeps effects and checkpoints, one a kind of
//! store. No pair of them has code of its own.
//!
//! Uses no Kubernetes API: what it needs is a file and two connection strings, and it shares the work with the other workers through leases in the read
//! store alone.

mod coalesce;
mod config;
mod dry_run;
mod error;
mod event;
mod health;
mod input;
mod json_template;
mod output;
mod postgres_errors;
mod postgres_values;
mod run;
mod sharding;
mod shares;
mod stuck;
mod template;
mod worker;

pub use config::{
    ConfigError, DEFAULT_BATCH_SIZE, ElasticsearchOutput, Input, KafkaInput, Output, PostgresInput, PostgresOutput,
    ProjectorConfig, RedisOutput,
};
pub use dry_run::{BadEvent, SampleEvent, Tried, check, dry_run, read_events};
pub use error::ProjectorError;
pub use output::{elasticsearch::DocumentError, postgres::SqlError, redis::CommandError};
pub use run::{RunOptions, SourceConnection, StoreConnection, check_handlers, run};
pub use template::TemplateError;
