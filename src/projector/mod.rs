//! The built-in projector: a worker that runs what the user wrote for each event against the read store, effects and checkpoint in one step.
//!
//! One loop (`worker`) between two seams: `input` reads events, one file a kind of source, and `output` keeps effects and checkpoints, one a kind of
//! store. Queues, which have no positions, have a smaller loop (`queue_worker`) into stores that keep an inbox. No pair of them has code of its own.
//!
//! Uses no Kubernetes API: what it needs is a file and two connection strings, and it shares the work with the other workers through leases in the read
//! store alone.

mod batch_size;
mod coalesce;
mod config;
mod dry_run;
mod error;
mod event;
mod fields_seen;
mod health;
mod input;
mod json_template;
mod output;
mod poison;
mod postgres_errors;
mod postgres_values;
mod queue_worker;
mod run;
mod sharding;
mod shares;
mod source;
mod stuck;
mod template;
mod uncalled;
mod worker;

pub use config::{
    ConfigError, DEFAULT_BATCH_SIZE, DEFAULT_KEEPING, DEFAULT_KEEPING_IN_REDIS, ElasticsearchOutput, Input, KafkaInput,
    KurrentDbInput, NatsConsumers, Output, PostgresInput, PostgresOutput, ProjectorConfig, QueueInput, QueueKind,
    RabbitMqQueues, RedisOutput, RedisStreams,
};
pub use dry_run::{BadEvent, SampleEvent, Tried, check, dry_run, read_events};
pub use error::{PlaceOfAnother, ProjectorError};
pub use output::{
    elasticsearch::DocumentError,
    postgres::SqlError,
    redis::{CommandError, written_by},
};
pub use poison::Poison;
pub use run::{GIVE_BACK_AFTER, RunOptions, StoreConnection, check_handlers, check_input, run};
pub use source::SourceConnection;
pub use template::TemplateError;
