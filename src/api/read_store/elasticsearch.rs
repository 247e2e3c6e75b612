//! Read models and checkpoints in Elasticsearch and OpenSearch.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::CheckpointRows;
use crate::api::Connection;

/// A read model in Elasticsearch 7 or 8, or in OpenSearch 1 or 2.
#[derive(Clone, Debug, Deserialize, Eq, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.connection.database)").message("spec.readStore.elasticsearch.connection.database must be absent: name the index in spec.checkpoint.elasticsearch.index"))]
pub struct ElasticsearchReadStore {
    /// How to reach the server. The Secret holds a URL (`https://user:password@host:9200`, `http://…` without TLS) in the key `url` or `uri`, or the keys
    /// `host`, `port`, `username`, `password` and `tls`; and `apiKey` in place of user and password.
    pub connection: Connection,
}

/// The document in which the projector commits how far it has come.
#[derive(Clone, Debug, Deserialize, Eq, Hash, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ElasticsearchCheckpoint {
    /// The index, or an alias of one. Default: `checkpoints`.
    #[serde(default = "default_index")]
    #[schemars(length(min = 1, max = 255), regex(pattern = r#"^[^A-Z\\/*?"<>| ,#:+_-][^A-Z\\/*?"<>| ,#:]*$"#))]
    pub index: String,
    /// The document's `_id`. Default: the Projection's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    pub id: Option<String>,
    /// The field with the last processed position: a whole number, or an object with a whole number for each shard. A dot leads into an object.
    /// Default: `position`.
    #[serde(default = "default_field")]
    #[schemars(length(min = 1, max = 255), regex(pattern = r"^[^*]+$"))]
    pub field: String,
}

fn default_index() -> String {
    "checkpoints".to_owned()
}

fn default_field() -> String {
    "position".to_owned()
}

/// One projection's checkpoint in a document.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct DocumentLocation {
    /// The index, or an alias of one.
    pub index: String,
    /// The document's `_id`, or what those of several begin with.
    pub id: String,
    /// What of it.
    pub part: DocumentPart,
    /// Whether each shard is counted by itself, where the field has several.
    pub rows: CheckpointRows,
}

/// What of a document, or which documents, are a checkpoint.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum DocumentPart {
    /// A field of the document.
    Field(String),
    /// What workers of the built-in projector keep: one document that tells the shards, and one for each of them with its position and the event that it cannot
    /// handle.
    Builtin,
    /// What workers of the built-in projector keep in the document of messages of a queue: no checkpoint, which the queue keeps, but those that they cannot handle.
    Inbox,
}
