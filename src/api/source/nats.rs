//! NATS JetStream.

use kube::KubeSchema;
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
    /// How `projector.builtin` reads a message as an event. Messages that are CloudEvents, binary or structured, need nothing of it but, perhaps, `stream`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event: Option<NatsEvent>,
}

/// How a message is read as an event.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NatsEvent {
    /// Where the event's type is. Default: in the header `type`.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub type_: Option<NatsEventType>,
    /// Where the event's stream is. Default: in the header `stream`; a CloudEvent without it has its `subject`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stream: Option<NatsEventStream>,
    /// The field of the message's body (JSON) with the event's body, such as `payload` or `event.data`. Default: the whole body.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = super::FIELD))]
    pub data: Option<String>,
}

/// Where an event's type is. Exactly one field.
#[derive(Clone, Debug, Default, Deserialize, Eq, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("[has(self.header), has(self.subjectToken), has(self.field), has(self.name)].exists_one(x, x)").message("spec.source.nats.event.type must have exactly one of header, subjectToken, field and name"), validation = Rule::new("!has(self.subjectToken) || self.subjectToken != 0").message("spec.source.nats.event.type.subjectToken must not be 0: the first token is 1, the last is -1"))]
pub struct NatsEventType {
    /// In the header of this name, as text.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub header: Option<String>,
    /// In this token of the subject: of `orders.o-1.placed`, 1 is `orders`, and -1 (the last) is `placed`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = -64, max = 64))]
    pub subject_token: Option<i32>,
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
#[x_kube(validation = Rule::new("has(self.header) != has(self.subjectToken)").message("spec.source.nats.event.stream must have exactly one of header and subjectToken"), validation = Rule::new("!has(self.subjectToken) || self.subjectToken != 0").message("spec.source.nats.event.stream.subjectToken must not be 0: the first token is 1, the last is -1"))]
pub struct NatsEventStream {
    /// In the header of this name, as text. A message without it has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub header: Option<String>,
    /// In this token of the subject: of `orders.o-1.placed`, 2 and -2 are `o-1`. A message whose subject has no such token has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = -64, max = 64))]
    pub subject_token: Option<i32>,
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
