//! The resource `Projection`: what a user writes (spec) and reads back (status), with the rules the API server checks.
//!
//! No IO and no decisions here: the types, their schema, and the names of conditions and reasons.

mod condition;
mod derived;
mod duration;
mod shards;
mod spec;
mod status;

pub use condition::{ConditionStatus, ConditionType, Reason};
pub use derived::CheckpointLocation;
pub use duration::{HumanDuration, ParseDurationError};
pub use shards::Shards;
pub use spec::{
    Autoscaler, BuiltinProjector, CaSecretRef, Checkpoint, CheckpointTable, Connection, EventTable, ExistingKind,
    ExistingWorkload, Lag, Ordering, PodTemplate, PostgresReadStore, PostgresSource, Projection, ProjectionSpec,
    Projector, ReadStore, Scaling, SecretKeyRef, Source,
};
pub use status::{BoundBy, HeadStatus, PendingStatus, Phase, ProjectionStatus, RatesStatus, WorkersStatus};
