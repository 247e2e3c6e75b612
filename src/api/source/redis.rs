//! Redis Streams.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::api::Connection;

/// Streams in Redis 7.0 or newer that consumer groups read. The groups keep how far they have come.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RedisSource {
    /// How to reach the server. The Secret holds a URL (`redis://user:password@host:6379/0`, `rediss://…` for TLS) in the key `url` or `uri`, or the keys
    /// `host`, `port`, `username`, `password`, `database` and `tls`.
    pub connection: Connection,
    /// The streams, each with the group that reads it. What waits in them is summed.
    #[schemars(
        length(min = 1, max = 64),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["key", "group"])
    )]
    pub streams: Vec<StreamGroup>,
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
