//! What a user declares. Every rule that needs no cluster is checked by the API server: by the schema, or by a CEL rule
//! whose message names the field.

use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscalerBehavior;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{HumanDuration, ProjectionStatus, Projector, Shards};

/// A Projection runs the workers that turn the events of one source into one read model, measures how far behind they
/// are, and scales them so that no event waits longer than the lag target.
#[derive(Clone, CustomResource, Debug, Deserialize, KubeSchema, PartialEq, Serialize)]
#[kube(
    group = "projectionist.dev",
    version = "v1alpha1",
    kind = "Projection",
    plural = "projections",
    singular = "projection",
    shortname = "prj",
    category = "projectionist",
    namespaced,
    status = "ProjectionStatus",
    derive = "PartialEq",
    doc = "A Projection runs the workers that turn the events of one source into one read model, measures how far behind they are, and scales them so that no event waits longer than the lag target.",
    validation = Rule::new("self.metadata.name.size() <= 52").message("metadata.name must have at most 52 characters, since the names of workers are made from it"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Pending", type_ = "integer", json_path = ".status.pending.value"),
    printcolumn(name = "Staleness", type_ = "number", json_path = ".status.stalenessSeconds", description = "Age of the oldest unprocessed event, in seconds"),
    printcolumn(name = "Target", type_ = "string", json_path = ".spec.lag.target"),
    printcolumn(name = "Workers", type_ = "string", json_path = ".status.workers.summary", description = "ready/required"),
    printcolumn(name = "Bound-By", type_ = "string", json_path = ".status.workers.boundBy"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Reason", type_ = "string", priority = 1, json_path = ".status.conditions[?(@.type==\"Ready\")].reason"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[x_kube(
    validation = Rule::new("!has(self.projector) || !has(self.projector.builtin) || (has(self.readStore) && has(self.readStore.postgres))").message("spec.readStore.postgres is required with spec.projector.builtin, which writes there"),
    validation = Rule::new("!has(self.projector) || !has(self.projector.builtin) || !has(self.checkpoint)").message("spec.checkpoint must be absent with spec.projector.builtin, which keeps its own in the read store"),
    validation = Rule::new("(has(self.projector) && has(self.projector.builtin)) || has(self.checkpoint)").message("spec.checkpoint is required: an event table does not know how far a projector has come"),
    validation = Rule::new("!has(self.checkpoint) || (has(self.readStore) && has(self.readStore.postgres))").message("spec.readStore.postgres is required with spec.checkpoint.readStore, which is read there"),
    validation = Rule::new("!has(self.projector) || !has(self.projector.builtin) || !has(self.scaling) || !has(self.scaling.ordering) || self.scaling.ordering != 'None'").message("spec.scaling.ordering must be PerKey or Strict with spec.projector.builtin, which keeps the order of each stream"),
    validation = Rule::new("!has(self.projector) || !has(self.projector.builtin) || !has(oldSelf.projector) || !has(oldSelf.projector.builtin) || (has(self.scaling) && has(self.scaling.shards) ? string(self.scaling.shards) : 'Auto') == (has(oldSelf.scaling) && has(oldSelf.scaling.shards) ? string(oldSelf.scaling.shards) : 'Auto')").message("spec.scaling.shards cannot be changed for a built-in projector: each shard has its own checkpoint. Delete the Projection and create it under another name to rebuild"),
    validation = Rule::new("!has(self.projector) || !has(self.projector.builtin) || !has(oldSelf.projector) || !has(oldSelf.projector.builtin) || ((has(self.scaling) && has(self.scaling.ordering) && self.scaling.ordering == 'Strict') == (has(oldSelf.scaling) && has(oldSelf.scaling.ordering) && oldSelf.scaling.ordering == 'Strict'))").message("spec.scaling.ordering cannot be changed to or from Strict for a built-in projector: it decides the shards, and each has its own checkpoint"),
    validation = Rule::new("!has(self.projector) || !has(self.projector.builtin) || !has(oldSelf.projector) || !has(oldSelf.projector.builtin) || !has(self.source.postgres) || !has(oldSelf.source.postgres) || (self.source.postgres.eventTable.table == oldSelf.source.postgres.eventTable.table && self.source.postgres.eventTable.position == oldSelf.source.postgres.eventTable.position && self.source.postgres.eventTable.stream == oldSelf.source.postgres.eventTable.stream)").message("spec.source.postgres.eventTable: table, position and stream cannot be changed for a built-in projector, whose checkpoints are positions of that table by the hash of that stream. Delete the Projection and create it under another name to rebuild"),
    validation = Rule::new("has(self.projector) == has(oldSelf.projector) && (!has(self.projector) || (has(self.projector.template) == has(oldSelf.projector.template) && has(self.projector.builtin) == has(oldSelf.projector.builtin) && has(self.projector.existing) == has(oldSelf.projector.existing)))").message("spec.projector cannot be changed to another kind: delete the Projection and create it anew"),
)]
#[serde(rename_all = "camelCase")]
pub struct ProjectionSpec {
    /// Where the events come from. Exactly one source.
    pub source: Source,
    /// Where the projector commits how far it has come. Absent with `projector.builtin`, which keeps its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<Checkpoint>,
    /// The database that holds the read model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub read_store: Option<ReadStore>,
    /// How far behind the projection may be.
    pub lag: Lag,
    /// How many workers there may be, and who decides.
    #[serde(default)]
    pub scaling: Scaling,
    /// The kill switch: workers go to zero, measuring goes on.
    #[serde(default)]
    pub suspend: bool,
    /// The workload that turns events into read-model changes. Absent: the projection is only measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub projector: Option<Projector>,
}

/// Where the events come from. Exactly one field.
#[derive(Clone, Debug, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("[has(self.postgres)].exists_one(x, x)").message("spec.source must name exactly one source: postgres"))]
pub struct Source {
    /// An append-only table in PostgreSQL.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub postgres: Option<PostgresSource>,
}

/// Events in a PostgreSQL database.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PostgresSource {
    /// How to reach the database.
    pub connection: Connection,
    /// The table that events are appended to.
    pub event_table: EventTable,
}

/// How to reach a database: a connection string in a Secret of the Projection's own namespace.
#[derive(Clone, Debug, Deserialize, Eq, Hash, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Connection {
    /// The Secret and the key that hold the connection string, such as `postgres://user:password@host:5432/database?sslmode=verify-full`.
    pub secret_ref: SecretKeyRef,
    /// The Secret and the key that hold the certificate authority (PEM) that signed the server's certificate. Used where the connection string
    /// verifies it (`sslmode=verify-full` or `verify-ca`). Default: the public authorities.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_secret_ref: Option<CaSecretRef>,
}

/// One key of a Secret in the Projection's namespace, with a certificate authority.
#[derive(Clone, Debug, Deserialize, Eq, Hash, JsonSchema, PartialEq, Serialize)]
pub struct CaSecretRef {
    /// The Secret's name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// The key in the Secret. Default: `ca.crt`.
    #[serde(default = "default_ca_key")]
    #[schemars(length(min = 1, max = 253))]
    pub key: String,
}

fn default_ca_key() -> String {
    "ca.crt".to_owned()
}

/// One key of a Secret in the Projection's namespace.
#[derive(Clone, Debug, Deserialize, Eq, Hash, JsonSchema, PartialEq, Serialize)]
pub struct SecretKeyRef {
    /// The Secret's name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// The key in the Secret. Default: `url`.
    #[serde(default = "default_secret_key")]
    #[schemars(length(min = 1, max = 253))]
    pub key: String,
}

fn default_secret_key() -> String {
    "url".to_owned()
}

/// An append-only table with a position and a time.
#[derive(Clone, Debug, Deserialize, Eq, Hash, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EventTable {
    /// The table, optionally with its schema: `events` or `store.events`. Default: `events`.
    #[schemars(length(max = 127), regex(pattern = r"^[A-Za-z_][A-Za-z0-9_$]*(\.[A-Za-z_][A-Za-z0-9_$]*)?$"))]
    pub table: String,
    /// The column with the position: an integer from a sequence, growing with every append, possibly with gaps. It must be above 0 and
    /// unique over the whole table, by a unique index on this column alone; a table partitioned by something else needs one on this column and
    /// the partition key, and a single sequence that feeds the column. Default: `position`.
    #[schemars(length(max = 63), regex(pattern = r"^[A-Za-z_][A-Za-z0-9_$]*$"))]
    pub position: String,
    /// The column with the time of the append (`timestamptz`). Default: `recorded_at`.
    #[schemars(length(max = 63), regex(pattern = r"^[A-Za-z_][A-Za-z0-9_$]*$"))]
    pub recorded_at: String,
    /// The column with the stream, whose events must stay in order. Used by the built-in projector. Default: `stream`.
    #[schemars(length(max = 63), regex(pattern = r"^[A-Za-z_][A-Za-z0-9_$]*$"))]
    pub stream: String,
    /// The column with the event's type. Used by the built-in projector. Default: `type`.
    #[serde(rename = "type")]
    #[schemars(length(max = 63), regex(pattern = r"^[A-Za-z_][A-Za-z0-9_$]*$"))]
    pub type_: String,
    /// The column with the event's body (`json` or `jsonb`). Used by the built-in projector. Default: `data`.
    #[schemars(length(max = 63), regex(pattern = r"^[A-Za-z_][A-Za-z0-9_$]*$"))]
    pub data: String,
    /// The channel that the writer notifies (`NOTIFY`) on an append. With it lag is known at once, without it at the next poll.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63), regex(pattern = r"^[A-Za-z_][A-Za-z0-9_$]*$"))]
    pub notify_channel: Option<String>,
}

impl Default for EventTable {
    fn default() -> Self {
        Self {
            table: "events".to_owned(),
            position: "position".to_owned(),
            recorded_at: "recorded_at".to_owned(),
            stream: "stream".to_owned(),
            type_: "type".to_owned(),
            data: "data".to_owned(),
            notify_channel: None,
        }
    }
}

/// Where the projector commits how far it has come.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Checkpoint {
    /// A table in the read store.
    pub read_store: CheckpointTable,
}

/// A table with one row a projection, or one row a shard of it.
#[derive(Clone, Debug, Deserialize, Eq, Hash, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CheckpointTable {
    /// The table, optionally with its schema. Default: `checkpoints`.
    #[serde(default = "default_checkpoint_table")]
    #[schemars(length(max = 127), regex(pattern = r"^[A-Za-z_][A-Za-z0-9_$]*(\.[A-Za-z_][A-Za-z0-9_$]*)?$"))]
    pub table: String,
    /// The column that tells projections apart. Default: `projection`.
    #[serde(default = "default_name_column")]
    #[schemars(length(max = 63), regex(pattern = r"^[A-Za-z_][A-Za-z0-9_$]*$"))]
    pub name_column: String,
    /// The column with the last processed position. Default: `position`.
    #[serde(default = "default_position_column")]
    #[schemars(length(max = 63), regex(pattern = r"^[A-Za-z_][A-Za-z0-9_$]*$"))]
    pub position_column: String,
    /// This projection's value in the name column. Default: the Projection's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub name: Option<String>,
}

fn default_checkpoint_table() -> String {
    "checkpoints".to_owned()
}

pub(super) fn default_name_column() -> String {
    "projection".to_owned()
}

pub(super) fn default_position_column() -> String {
    "position".to_owned()
}

/// The database that holds the read model. Exactly one field.
#[derive(Clone, Debug, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("[has(self.postgres)].exists_one(x, x)").message("spec.readStore must name exactly one store: postgres"))]
pub struct ReadStore {
    /// A PostgreSQL database.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub postgres: Option<PostgresReadStore>,
}

/// A read model in PostgreSQL.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PostgresReadStore {
    /// How to reach the database.
    pub connection: Connection,
    /// The schema of the read model. Default: the user's own search path.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63), regex(pattern = r"^[A-Za-z_][A-Za-z0-9_$]*$"))]
    pub schema: Option<String>,
}

/// How far behind the projection may be.
#[derive(Clone, Debug, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Lag {
    /// The freshness objective: no event waits longer than this. Such as `5s`, `30s` or `10m`; 1s to 168h.
    #[x_kube(validation = Rule::new("self == '' || !self.matches('^([0-9]{1,6}h)?([0-9]{1,6}m)?([0-9]{1,8}s)?([0-9]{1,8}ms)?$') || (duration(self) >= duration('1s') && duration(self) <= duration('168h'))").message("spec.lag.target must be from 1s to 168h"))]
    pub target: HumanDuration,
    /// A second rule beside the target: one worker for so many pending events, whichever asks for more.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub pending_per_worker: Option<i64>,
}

/// How many workers there may be, and who decides.
#[derive(Clone, Debug, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.minWorkers <= (has(self.maxWorkers) ? self.maxWorkers : (self.ordering == 'Strict' ? 1 : 10))").message("spec.scaling.minWorkers must not be greater than spec.scaling.maxWorkers (10 by default, 1 with ordering Strict)"),
    validation = Rule::new("self.ordering != 'Strict' || !has(self.maxWorkers) || self.maxWorkers == 1").message("spec.scaling.maxWorkers must be 1 with spec.scaling.ordering Strict: one worker keeps the order of all events"),
)]
pub struct Scaling {
    /// Never fewer workers than this. Default: 1.
    #[serde(default = "default_min_workers")]
    #[schemars(range(min = 1, max = 10_000))]
    pub min_workers: i32,
    /// Never more workers than this. Default: 10, and 1 with `ordering: Strict`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10_000))]
    pub max_workers: Option<i32>,
    /// Which events must be handled in order. Default: `PerKey`.
    #[serde(default)]
    pub ordering: Ordering,
    /// The unit of parallelism: more workers than shards would idle. `Auto` or a number from 1 to 1024. Default: `Auto`.
    #[serde(default)]
    pub shards: Shards,
    /// Passed to the HorizontalPodAutoscaler as it is. Default: scale up at once, down after 60 s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub behavior: Option<HorizontalPodAutoscalerBehavior>,
    /// Who scales the workers between min and max. Default: `Managed`.
    #[serde(default)]
    pub autoscaler: Autoscaler,
}

fn default_min_workers() -> i32 {
    1
}

impl Scaling {
    /// The most workers there may be, where the spec does not say.
    pub const DEFAULT_MAX_WORKERS: i32 = 10;

    /// The most workers there may be.
    pub fn most_workers(&self) -> i32 {
        self.max_workers.unwrap_or(if self.ordering == Ordering::Strict { 1 } else { Self::DEFAULT_MAX_WORKERS })
    }
}

impl Default for Scaling {
    fn default() -> Self {
        Self {
            min_workers: default_min_workers(),
            max_workers: None,
            ordering: Ordering::PerKey,
            shards: Shards::Auto,
            behavior: None,
            autoscaler: Autoscaler::Managed,
        }
    }
}

/// Which events must be handled in order.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub enum Ordering {
    /// All of them: one worker.
    Strict,
    /// Those of one stream: at most one worker a shard.
    #[default]
    PerKey,
    /// None: workers compete for events.
    None,
}

/// Who scales the workers.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub enum Autoscaler {
    /// A HorizontalPodAutoscaler that the operator makes.
    #[default]
    Managed,
    /// Nobody, or an autoscaler of the team's own; the metrics are served all the same.
    None,
}
