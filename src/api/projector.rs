//! The workload of a Projection: the team's own pods, the built-in projector, or what runs already.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::ResourceRequirements;
use kube::KubeSchema;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{ByteSize, HumanDuration, WorkerPod, scaling::span};
use crate::names::search_state;

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
pub struct PodTemplate(pub Map<String, Value>);

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
    validation = Rule::new("[has(self.handlers), has(self.redis), has(self.elasticsearch)].exists_one(x, x)").message("spec.projector.builtin must have exactly one of handlers (SQL, for a read store in PostgreSQL), redis (commands, for one in Redis) and elasticsearch (documents, for one in Elasticsearch)"),
    validation = Rule::new("!has(self.setup) || has(self.handlers)").message("spec.projector.builtin.setup is SQL and has no meaning without spec.projector.builtin.handlers"),
    validation = Rule::new("!has(self.inbox) || !has(self.elasticsearch)").message("spec.projector.builtin.inbox has no meaning with elasticsearch: the versions of documents tell what is done"),
    validation = Rule::new("!has(self.coalesce) || !has(self.elasticsearch)").message("spec.projector.builtin.coalesce must be absent with elasticsearch, which writes each document once a batch without it"),
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
    /// Documents for each type of event, for a read store in Elasticsearch or OpenSearch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub elasticsearch: Option<ElasticsearchHandlers>,
    /// Groups of types of events that supersede one another: of a stream's events in a batch that follow one another and are of one group, only the last is
    /// handled. Name only types for which that leaves the read model as handling all would: events that put a value in the place of another, not those
    /// that count, add or append.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("maxItems" = 100))]
    pub coalesce: Vec<CoalescedTypes>,
    /// What is kept of the messages of a queue (`source.redis`, `source.nats`, `source.rabbitmq`, `source.postgres.outbox`) in the read store.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inbox: Option<InboxSettings>,
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

/// Types of events that supersede one another.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub struct CoalescedTypes {
    /// The types, each with a handler. Each of them makes superfluous what the one before it did, whichever of these types that is of.
    #[schemars(length(min = 1, max = 100), inner(length(min = 1, max = 1024)))]
    pub types: Vec<String>,
}

/// The notes of which messages of a queue are handled: rows of the table `projectionist_inbox` in PostgreSQL, keys that expire in Redis. Each is written in one
/// step with the message's effects, so that a message that is delivered twice has them once.
#[derive(Clone, Debug, Default, Deserialize, Eq, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct InboxSettings {
    /// For how long a message is remembered. It must be longer than any message may wait until it is delivered again, such as while no worker runs. From 1h to 87600h.
    /// Default: `168h` in PostgreSQL, `24h` in Redis, which keeps them in memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new(span!("1h", "87600h")).message("spec.projector.builtin.inbox.keepFor must be from 1h to 87600h"))]
    pub keep_for: Option<HumanDuration>,
}

/// Commands for each type of event, run against Redis in one script with the checkpoint.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RedisHandlers {
    /// For each type of event a list of commands, each a list of words: the command, the key that it writes, and further arguments. A word may hold
    /// `{position}`, `{type}`, `{stream}`, `{recorded_at}`, `{data}`, and paths in the event's body such as `{data.total}`; `{{` and `}}` are braces. With
    /// `rollout.strategy: BlueGreen` `{version}` stands for `spec.version`, and every key holds it. Whatever an event holds, it stays one argument. Events of other types are passed over. Messages of a queue have no position.
    #[schemars(schema_with = "commands")]
    pub handlers: BTreeMap<String, Vec<Vec<String>>>,
    /// Other Projections may write the same keys, where they say so as well. Without it workers claim their keys, or what their names begin with, and those of another
    /// Projection do not start. With it nothing keeps two Projections from overwriting one another's keys: they must agree on which of them writes what.
    #[serde(default)]
    pub shared: bool,
}

/// Documents that each type of event writes and deletes in Elasticsearch. Each write carries the event's position as the document's version, so that a
/// repeated event changes nothing. All events that write one document must be of one stream.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ElasticsearchHandlers {
    /// The index in which the workers keep how far they have come. It is made where it is missing. With `rollout.strategy: BlueGreen` it may hold `{version}`.
    /// Default: `projectionist-state`.
    #[serde(default = "default_state_index")]
    #[schemars(length(min = 1, max = 255), regex(pattern = r#"^[^A-Z\\/*?"<>| ,#:+_-][^A-Z\\/*?"<>| ,#:]*$"#))]
    pub state_index: String,
    /// For each type of event a list of operations, each one of `index`, `update` and `delete`. Texts may hold `{position}`, `{type}`, `{stream}`,
    /// `{recorded_at}`, `{data}`, and paths in the event's body such as `{data.total}`; `{{` and `}}` are braces. In a document a text that is one place and
    /// nothing else becomes the value there, with its type. With `rollout.strategy: BlueGreen` `{version}` stands for `spec.version` in `index`, and every `index`
    /// holds it. Events of other types are passed over.
    #[schemars(schema_with = "operations")]
    pub handlers: BTreeMap<String, Vec<DocumentOperation>>,
    /// Other Projections may write to the same indices, where they say so as well. Without it workers claim their indices, or what their names begin with, and those of
    /// another Projection do not start. With it no document may be written by two Projections: its version is a position in the source of one of them, and writes of
    /// the other with lower positions are lost.
    #[serde(default)]
    pub shared: bool,
}

fn default_state_index() -> String {
    search_state::INDEX.to_owned()
}

/// What an event does with a document.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum DocumentOperation {
    /// Writes the whole document.
    Index {
        /// The index, or an alias with one index to write to.
        index: String,
        /// The document's `_id`.
        id: String,
        /// The document's version, of a message of a queue: a whole number that grows with each change.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        version: Option<String>,
        /// The document.
        document: Map<String, Value>,
    },
    /// Changes a part of the document.
    Update {
        /// The index, or an alias of one.
        index: String,
        /// The document's `_id`.
        id: String,
        /// Its fields take the place of the document's; objects are merged.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        doc: Option<Map<String, Value>>,
        /// Fields with numbers that are added to the document's; a dot leads into an object.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        add: Option<Map<String, Value>>,
        /// The document where there is none. Without it nothing is written then.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        upsert: Option<Map<String, Value>>,
    },
    /// Deletes the document.
    Delete {
        /// The index, or an alias with one index to write to.
        index: String,
        /// The document's `_id`.
        id: String,
        /// The version that it is deleted with, of a message of a queue.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        version: Option<String>,
    },
}

impl DocumentOperation {
    /// The index, or an alias.
    pub fn index(&self) -> &str {
        match self {
            Self::Index { index, .. } | Self::Update { index, .. } | Self::Delete { index, .. } => index,
        }
    }

    /// The same, to be changed.
    pub fn index_mut(&mut self) -> &mut String {
        match self {
            Self::Index { index, .. } | Self::Update { index, .. } | Self::Delete { index, .. } => index,
        }
    }
}

/// A text with places for what an event holds.
const TEMPLATE: &str = r"^([^{}]|\{\{|\}\}|\{(position|type|stream|recorded_at|data(\.[^{}.]+)*)\})*$";
/// The same where a place in the read store is named, which may be that of a version.
const PLACE: &str = r"^([^{}]|\{\{|\}\}|\{(version|position|type|stream|recorded_at|data(\.[^{}.]+)*)\})*$";

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
                "items": { "type": "string", "maxLength": 65_536, "pattern": PLACE },
            },
        },
    })
}

// No rule in CEL: with up to 1000 types of 100 operations the API server would find it too costly. That an operation is exactly one of three is said
// by the number of its properties.
fn operations(_: &mut SchemaGenerator) -> Schema {
    let text_like = |pattern: &str, description: &str| json!({ "description": description, "type": "string", "minLength": 1, "maxLength": 8_192, "pattern": pattern });
    let text = |description: &str| text_like(TEMPLATE, description);
    let object = |description: &str| json!({ "description": description, "type": "object", "x-kubernetes-preserve-unknown-fields": true });
    let version = text(
        "Required with a queue, and absent with other sources, whose positions are the versions: a whole number in the message that grows with each change of the document, such as `{data.version}`. A message that is delivered again, or that comes after a later one, changes nothing.",
    );
    let operation = |description: &str, own: Value, required: &[&str]| {
        let mut properties =
            json!({ "index": text_like(PLACE, "The index, or an alias."), "id": text("The document's `_id`.") });
        if let (Some(all), Value::Object(own)) = (properties.as_object_mut(), own) {
            all.extend(own);
        }
        json!({ "description": description, "type": "object", "required": required, "properties": properties })
    };
    json_schema!({
        "type": "object",
        "minProperties": 1,
        "maxProperties": 1000,
        "additionalProperties": {
            "description": "Operations, done in this order.",
            "type": "array",
            "minItems": 1,
            "maxItems": 100,
            "items": {
                "description": "Exactly one of index, update and delete.",
                "type": "object",
                "minProperties": 1,
                "maxProperties": 1,
                "properties": {
                    "index": operation(
                        "Writes the whole document.",
                        json!({ "document": object("The document."), "version": version }),
                        &["index", "id", "document"],
                    ),
                    "update": operation(
                        "Changes a part of the document; at least one of doc and add.",
                        json!({
                            "doc": object("Its fields take the place of the document's; objects are merged."),
                            "add": object("Fields with numbers that are added to the document's; a dot leads into an object."),
                            "upsert": object("The document where there is none. Without it nothing is written then."),
                        }),
                        &["index", "id"],
                    ),
                    "delete": operation("Deletes the document.", json!({ "version": version }), &["index", "id"]),
                },
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
