//! Redis Streams and lists.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::api::Connection;

/// Streams that consumer groups read, and lists, in Redis 7.0 or newer. The groups keep how far they have come; a list holds what has not been handled.
#[derive(Clone, Debug, Deserialize, Eq, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.streams) || has(self.lists)").message("spec.source.redis must name streams or lists"))]
pub struct RedisSource {
    /// How to reach the server, or a node of a Redis Cluster. The Secret holds a URL (`redis://user:password@host:6379/0`, `rediss://…` for TLS) in the key
    /// `url` or `uri`, or the keys `host`, `port`, `username`, `password`, `database` and `tls`.
    pub connection: Connection,
    /// The streams, each with the group that reads it. What waits in them is summed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(min = 1, max = 64),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["key", "group"])
    )]
    pub streams: Vec<StreamGroup>,
    /// The lists that workers take events from. What waits in them is summed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(min = 1, max = 64),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["key"])
    )]
    pub lists: Vec<RedisList>,
    /// How `projector.builtin` reads an entry of a stream as an event.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event: Option<RedisEvent>,
}

/// Which fields of an entry hold the parts of an event.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RedisEvent {
    /// The field with the event's type. Default: `type`.
    #[serde(rename = "type", default = "type_field")]
    #[schemars(length(min = 1, max = 253))]
    pub type_: String,
    /// The field with the event's stream, as text. An entry without it has none. Default: `stream`.
    #[serde(default = "stream_field")]
    #[schemars(length(min = 1, max = 253))]
    pub stream: String,
    /// The field with the event's body, as JSON. An entry without it has none. Default: `data`.
    #[serde(default = "data_field")]
    #[schemars(length(min = 1, max = 253))]
    pub data: String,
}

impl Default for RedisEvent {
    fn default() -> Self {
        Self { type_: type_field(), stream: stream_field(), data: data_field() }
    }
}

fn type_field() -> String {
    "type".to_owned()
}

fn stream_field() -> String {
    "stream".to_owned()
}

fn data_field() -> String {
    "data".to_owned()
}

/// A list of events.
#[derive(Clone, Debug, Deserialize, Eq, Hash, JsonSchema, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RedisList {
    /// The list's key.
    #[schemars(length(min = 1, max = 512))]
    pub key: String,
    /// The list to which workers move an event while they handle it (`LMOVE`). What is in it is pending. Without one, an event that was taken is handled.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    pub processing_key: Option<String>,
    /// The list to which workers move events that failed. What is in it is in `status.parked` and is not pending.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    pub dead_letter_key: Option<String>,
}

/// A stream and one of its consumer groups.
#[derive(Clone, Debug, Deserialize, Eq, Hash, JsonSchema, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct StreamGroup {
    /// The stream's key.
    #[schemars(length(min = 1, max = 512))]
    pub key: String,
    /// The consumer group's name.
    #[schemars(length(min = 1, max = 512))]
    pub group: String,
}
