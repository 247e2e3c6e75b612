//! Read models and checkpoints in Redis.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::CheckpointRows;
use crate::api::Connection;

/// A read model in Redis 6.0 or newer.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RedisReadStore {
    /// How to reach the server, or a node of a Redis Cluster. The Secret holds a URL (`redis://user:password@host:6379/0`, `rediss://…` for TLS) in the key
    /// `url` or `uri`, or the keys `host`, `port`, `username`, `password`, `database` and `tls`.
    pub connection: Connection,
}

/// Where in Redis the projector commits how far it has come: integers as text.
#[derive(Clone, Debug, Deserialize, Eq, Hash, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RedisCheckpoint {
    /// The key. With the layout `KeyPerShard` what the keys begin with: the number of the shard follows, as in `checkpoint:orders:0`. Default: `checkpoints`.
    #[serde(default = "default_key")]
    #[schemars(length(min = 1, max = 512))]
    pub key: String,
    /// What the key holds, and what of it is the checkpoint. Default: `Field`.
    #[serde(default)]
    pub layout: RedisLayout,
    /// The field of the hash, with the layout `Field`. Default: the Projection's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    pub field: Option<String>,
}

/// What a key holds, and what of it is the checkpoint.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Hash, JsonSchema, PartialEq, Serialize)]
pub enum RedisLayout {
    /// A hash: one of its fields is the last processed position.
    #[default]
    Field,
    /// A text: the last processed position.
    Value,
    /// A hash: each of its fields is a shard with its last processed position.
    FieldPerShard,
    /// One key for each shard, with the shard's number at its end: a text, the last processed position. The shards are numbered from 0, as many as
    /// `scaling.shards` says.
    KeyPerShard,
}

fn default_key() -> String {
    "checkpoints".to_owned()
}

/// One projection's checkpoint in Redis.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct RedisLocation {
    /// The key, or what the keys begin with.
    pub key: String,
    /// What of it.
    pub part: RedisPart,
    /// Whether each shard is counted by itself.
    pub rows: CheckpointRows,
}

/// What of a key, or which keys, are a checkpoint.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum RedisPart {
    /// The text that the key holds.
    Value,
    /// A field of the hash.
    Field(String),
    /// All fields of the hash, each a shard.
    Fields,
    /// So many keys, numbered from 0.
    Keys(u32),
    /// What workers of the built-in projector keep in the hash: positions of shards, numbered from 0, and the events that they cannot handle.
    Builtin,
    /// What workers of the built-in projector keep in the hash of messages of a queue: no checkpoint, which the queue keeps, but those that they cannot handle.
    Inbox,
}
