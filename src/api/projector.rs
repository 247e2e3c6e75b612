//! The workload of a Projection: the team's own pods, the built-in projector, or what runs already.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::ResourceRequirements;
use kube::KubeSchema;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use super::{ByteSize, WorkerPod};

/// The workload that turns events into read-model changes. Exactly one field.
#[derive(Clone, Debug, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("[has(self.template), has(self.builtin), has(self.existing)].exists_one(x, x)").message("spec.projector must have exactly one of template, builtin and existing"))]
pub struct Projector {
    /// Pods of the team's own image. The operator adds connection strings and names as environment variables.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub template: Option<PodTemplate>,
    /// The built-in projector: SQL for each type of event, no image to write.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub builtin: Option<BuiltinProjector>,
    /// A workload that runs already. Only its scale is touched.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub existing: Option<ExistingWorkload>,
}

/// A pod template, as in a Deployment. Kept as written, so that fields newer than this operator survive.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct PodTemplate(pub serde_json::Map<String, serde_json::Value>);

impl JsonSchema for PodTemplate {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "PodTemplate".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "object",
            "required": ["spec"],
            "properties": {
                "metadata": {
                    "description": "Labels and annotations of the pods. The operator adds its own labels.",
                    "type": "object",
                    "properties": {
                        "labels": { "description": "Further labels.", "type": "object", "additionalProperties": { "type": "string" } },
                        "annotations": { "description": "Annotations.", "type": "object", "additionalProperties": { "type": "string" } },
                    },
                },
                "spec": {
                    "description": "The pods, as in Deployment.spec.template.spec.",
                    "type": "object",
                    "required": ["containers"],
                    "x-kubernetes-preserve-unknown-fields": true,
                    "properties": {
                        "containers": {
                            "description": "The containers. Each gets PROJECTION_NAME, EVENT_SOURCE_URL, READ_STORE_URL and so on in its environment.",
                            "type": "array",
                            "minItems": 1,
                            "items": {
                                "type": "object",
                                "required": ["name", "image"],
                                "x-kubernetes-preserve-unknown-fields": true,
                                "properties": {
                                    "name": { "description": "The container's name.", "type": "string", "minLength": 1 },
                                    "image": { "description": "The container's image.", "type": "string", "minLength": 1 },
                                },
                            },
                        },
                    },
                },
            },
        })
    }

    fn inline_schema() -> bool {
        true
    }
}

/// What to do in the read store for each type of event, in one step with the checkpoint.
#[derive(Clone, Debug, Default, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.handlers) != has(self.redis)").message("spec.projector.builtin must have exactly one of handlers (SQL, for a read store in PostgreSQL) and redis (commands, for one in Redis)"),
    validation = Rule::new("!has(self.setup) || has(self.handlers)").message("spec.projector.builtin.setup is SQL and has no meaning without spec.projector.builtin.handlers"),
)]
pub struct BuiltinProjector {
    /// SQL that makes the read model's tables; run at the start of every worker, so it must be repeatable (`create table if not exists`).
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 65_536))]
    pub setup: Option<String>,
    /// One SQL statement for each type of event, for a read store in PostgreSQL. `:position :type :stream :recorded_at :data` are bound as
    /// parameters. Events of other types are passed over.
    // Not `on`: YAML 1.1, which kubectl reads, takes that key for the boolean true.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("minProperties" = 1, "maxProperties" = 1000))]
    pub handlers: BTreeMap<String, String>,
    /// Commands for each type of event, for a read store in Redis.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub redis: Option<RedisHandlers>,
    /// How many events one transaction handles at most. Default: 500.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<i32>", range(min = 1, max = 10_000))]
    pub batch_size: Option<u32>,
    /// The largest event that a worker reads, in bytes of its body and stream as text, such as `1Mi`. The shard of a larger one waits there, and the
    /// others go on. A worker may need six times as much memory. From 1Ki to 1Gi. Default: `1Mi`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_event_bytes: Option<ByteSize>,
    /// Where and how the workers' pods run. What is absent comes from the operator's own settings.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<WorkerPod>,
    /// What each worker asks of its node. Default: that of the operator's own settings, or requests of 50m CPU and 32Mi, a limit of 128Mi memory.
    // A schema of one's own is required unless there is a default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "resources")]
    pub resources: Option<ResourceRequirements>,
}

/// Commands for each type of event, run against Redis in one script with the checkpoint.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
pub struct RedisHandlers {
    /// For each type of event a list of commands, each a list of words: the command, the key that it writes, and further arguments. A word may hold
    /// `{position}`, `{type}`, `{stream}`, `{recorded_at}`, `{data}`, and paths in the event's body such as `{data.total}`; `{{` and `}}` are braces.
    /// Whatever an event holds, it stays one argument. Events of other types are passed over.
    #[schemars(schema_with = "commands")]
    pub handlers: BTreeMap<String, Vec<Vec<String>>>,
}

/// A text with places for what an event holds.
const TEMPLATE: &str = r"^([^{}]|\{\{|\}\}|\{(position|type|stream|recorded_at|data(\.[^{}.]+)*)\})*$";

fn commands(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "minProperties": 1,
        "maxProperties": 1000,
        "additionalProperties": {
            "description": "Commands, run in this order.",
            "type": "array",
            "minItems": 1,
            "maxItems": 100,
            "items": {
                "description": "A command, the key that it writes, and further arguments.",
                "type": "array",
                "minItems": 2,
                "maxItems": 1000,
                "items": { "type": "string", "maxLength": 65_536, "pattern": TEMPLATE },
            },
        },
    })
}

/// A quantity as Kubernetes reads it. Source: the grammar in `k8s.io/apimachinery/pkg/api/resource`.
const QUANTITY: &str =
    r"^[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([KMGTPE]i|[numkMGTPE]|[eE][+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+))?$";

fn resources(_: &mut SchemaGenerator) -> Schema {
    let quantities = |description: &str| {
        json_schema!({
            "description": description,
            "type": "object",
            "additionalProperties": { "x-kubernetes-int-or-string": true, "pattern": QUANTITY },
        })
    };
    json_schema!({
        "type": "object",
        "nullable": true,
        "properties": {
            "requests": quantities("What is set aside for each worker, such as `cpu: 100m` and `memory: 64Mi`."),
            "limits": quantities("The most that each worker gets."),
        },
    })
}

/// A workload that is there already.
#[derive(Clone, Debug, Deserialize, Eq, Hash, JsonSchema, PartialEq, Serialize)]
pub struct ExistingWorkload {
    /// What it is.
    pub kind: ExistingKind,
    /// Its name, in the Projection's namespace.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// The kinds of workload that can be scaled in place.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, JsonSchema, PartialEq, Serialize)]
pub enum ExistingKind {
    /// apps/v1 Deployment.
    Deployment,
    /// apps/v1 StatefulSet.
    StatefulSet,
}

impl ExistingKind {
    /// The kind's name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Deployment => "Deployment",
            Self::StatefulSet => "StatefulSet",
        }
    }
}
