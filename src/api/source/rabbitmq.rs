//! Queues and streams in RabbitMQ.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::api::Connection;

/// Queues of one virtual host, classic or quorum, and streams. A queue holds what has not been handled, and a stream keeps what its consumers store, so that no
/// checkpoint is needed.
#[derive(Clone, Debug, Deserialize, Eq, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.queues) || has(self.streams)").message("spec.source.rabbitmq must name queues or streams"), validation = Rule::new("!has(self.deadLetterQueues) || !has(self.queues) || !self.deadLetterQueues.exists(queue, queue in self.queues)").message("spec.source.rabbitmq.deadLetterQueues must not name a queue of spec.source.rabbitmq.queues: what waits in one is not set aside"), validation = Rule::new("!has(self.connection.database)").message("spec.source.rabbitmq.connection.database must be absent: RabbitMQ has no databases. Name the virtual host in spec.source.rabbitmq.vhost"))]
pub struct RabbitMqSource {
    /// How to reach the management API. The Secret holds a URL (`http://user:password@host:15672`, `https://…` for TLS) in the key `url` or `uri`, or the
    /// keys `host`, `port`, `username`, `password` and `tls`. A port 5672 or 5671, which is AMQP's, stands for that of the management API.
    pub connection: Connection,
    /// The virtual host. Default: `/`.
    #[serde(default = "default_vhost")]
    #[schemars(length(min = 1, max = 255))]
    pub vhost: String,
    /// The queues. What they hold is summed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 64), inner(length(min = 1, max = 255)), extend("x-kubernetes-list-type" = "set"))]
    pub queues: Vec<String>,
    /// The streams, each with the name under which its consumer stores its offset. What is beyond the offsets is summed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(min = 1, max = 64),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["stream", "reference"])
    )]
    pub streams: Vec<StreamReference>,
    /// The queues of the same virtual host into which messages are put that failed (dead-letter queues). What they hold is in `status.parked` and is not
    /// pending.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 255)), extend("x-kubernetes-list-type" = "set"))]
    pub dead_letter_queues: Vec<String>,
}

/// A stream and one of its consumers.
#[derive(Clone, Debug, Deserialize, Eq, Hash, JsonSchema, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct StreamReference {
    /// The stream's name.
    #[schemars(length(min = 1, max = 255))]
    pub stream: String,
    /// The consumer's name (its reference), under which it stores the offset of the last event that it has handled.
    #[schemars(length(min = 1, max = 255))]
    pub reference: String,
}

fn default_vhost() -> String {
    "/".to_owned()
}
