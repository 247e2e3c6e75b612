//! NATS JetStream.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::api::Connection;

/// Consumers of JetStream in NATS 2.9 or newer. They keep how far they have come.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NatsSource {
    /// How to reach the server. The Secret holds a URL (`nats://user:password@host:4222`, `tls://…` for TLS; several of one cluster separated by
    /// commas) in the key `url`, `uri` or `servers`, or the keys `host`, `port`, `username`, `password`, `token` and `tls`.
    pub connection: Connection,
    /// The consumers, each with its stream. What they have before them is summed.
    #[schemars(
        length(min = 1, max = 64),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["stream", "consumer"])
    )]
    pub consumers: Vec<StreamConsumer>,
    /// The JetStream domain that the streams are in. Default: that of the server.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255), pattern(r"^[^\s.*>]+$"))]
    pub domain: Option<String>,
}

/// A consumer of a stream.
#[derive(Clone, Debug, Deserialize, Eq, Hash, JsonSchema, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct StreamConsumer {
    /// The stream's name.
    #[schemars(length(min = 1, max = 255), pattern(r"^[^\s.*>]+$"))]
    pub stream: String,
    /// The consumer's name.
    #[schemars(length(min = 1, max = 255), pattern(r"^[^\s.*>]+$"))]
    pub consumer: String,
}
