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
    /// keys `host`, `port`, `username`, `password` and `tls`. A port 5672 or 5671, which is AMQP's, stands for that of the management API. The workers of
    /// `projector.builtin` speak AMQP with that host, at port 5672 (5671 with TLS), or the one in the key `amqp-port`.
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
    /// How `projector.builtin` reads a message of a queue as an event.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event: Option<RabbitMqEvent>,
}

/// How a message is read as an event.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RabbitMqEvent {
    /// Where that is which names the event among all others, for ever. An event is handled once by it, whichever of the queues it comes by and however often.
    /// Default: the property `message-id`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<RabbitMqEventId>,
    /// Where the event's type is. Default: in the property `type`, or else in the header of that name.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub type_: Option<RabbitMqEventType>,
    /// Where the event's stream is. Default: in the header `stream`; a CloudEvent without it has its `subject`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stream: Option<RabbitMqEventStream>,
    /// The field of the message's body (JSON) with the event's body, such as `payload` or `event.data`. Default: the whole body.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = super::FIELD))]
    pub data: Option<String>,
}

/// Where that is which names an event. Exactly one field.
#[derive(Clone, Debug, Default, Deserialize, Eq, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.header) != has(self.field)").message("spec.source.rabbitmq.event.id must have exactly one of header and field"))]
pub struct RabbitMqEventId {
    /// In the header of this name, a text or a whole number.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub header: Option<String>,
    /// In this field of the body (JSON), such as `id` or `event.id`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = super::FIELD))]
    pub field: Option<String>,
}

/// Where an event's type is. Exactly one field.
#[derive(Clone, Debug, Default, Deserialize, Eq, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("[has(self.header), has(self.routingKeyToken), has(self.field), has(self.name)].exists_one(x, x)").message("spec.source.rabbitmq.event.type must have exactly one of header, routingKeyToken, field and name"), validation = Rule::new("!has(self.routingKeyToken) || self.routingKeyToken != 0").message("spec.source.rabbitmq.event.type.routingKeyToken must not be 0: the first token is 1, the last is -1"))]
pub struct RabbitMqEventType {
    /// In the header of this name, as text.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub header: Option<String>,
    /// In this token of the routing key: of `orders.o-1.placed`, 1 is `orders`, and -1 (the last) is `placed`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = -64, max = 64))]
    pub routing_key_token: Option<i32>,
    /// In this field of the body (JSON), such as `type` or `event.name`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = super::FIELD))]
    pub field: Option<String>,
    /// All messages are of this type.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub name: Option<String>,
}

/// Where an event's stream is. Exactly one field.
#[derive(Clone, Debug, Default, Deserialize, Eq, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.header) != has(self.routingKeyToken)").message("spec.source.rabbitmq.event.stream must have exactly one of header and routingKeyToken"), validation = Rule::new("!has(self.routingKeyToken) || self.routingKeyToken != 0").message("spec.source.rabbitmq.event.stream.routingKeyToken must not be 0: the first token is 1, the last is -1"))]
pub struct RabbitMqEventStream {
    /// In the header of this name, as text. A message without it has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub header: Option<String>,
    /// In this token of the routing key: of `orders.o-1.placed`, 2 and -2 are `o-1`. A message whose routing key has no such token has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = -64, max = 64))]
    pub routing_key_token: Option<i32>,
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
