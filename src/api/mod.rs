//! The resource `Projection`: what a user writes (spec) and reads back (status), with the rules the API server checks.
//!
//! No IO and no decisions here: the types, their schema, and the names of conditions and reasons.

mod condition;
mod derived;
mod duration;
mod projector;
mod shards;
mod spec;
mod status;

pub use condition::{ConditionStatus, ConditionType, Reason};
pub use derived::CheckpointLocation;
pub use duration::{HumanDuration, ParseDurationError};
pub use projector::{BuiltinProjector, ExistingKind, ExistingWorkload, PodTemplate, Projector};
pub use shards::Shards;
pub use spec::{
    Autoscaler, CaSecretRef, Checkpoint, CheckpointTable, Connection, EventTable, Lag, Ordering, PostgresReadStore,
    PostgresSource, Projection, ProjectionSpec, ReadStore, Scaling, SecretKeyRef, Source,
};
pub use status::{BoundBy, HeadStatus, PendingStatus, Phase, ProjectionStatus, RatesStatus, WorkersStatus};
