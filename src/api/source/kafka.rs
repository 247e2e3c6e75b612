//! Topics in Kafka.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::api::{CaSecretRef, ClientCertificateRef};

/// Topics in Kafka 0.11 or newer, read by one consumer group, which keeps how far it has come, or by consumers that store their offsets in the read store.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct KafkaSource {
    /// How to reach the cluster.
    pub connection: KafkaConnection,
    /// The topics. What waits in all their partitions is summed.
    #[schemars(length(min = 1, max = 64), inner(length(min = 1, max = 249), regex(pattern = r"^[a-zA-Z0-9._-]+$")), extend("x-kubernetes-list-type" = "set"))]
    pub topics: Vec<String>,
    /// The consumer group that commits how far the projection has come. The operator asks for its offsets and never joins it. Absent where consumers store
    /// their offsets in the read store (`spec.checkpoint`).
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255))]
    pub group: Option<String>,
    /// What an offset in the read store means. Default: `NextToRead`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stored_offset: Option<StoredOffset>,
    /// Which records the consumers read: their `isolation.level`. Default: `ReadCommitted`.
    #[serde(default)]
    pub isolation: KafkaIsolation,
    /// `Earliest` where consumers without a committed offset begin with the first record that is kept (`auto.offset.reset=earliest`): then what waits is known
    /// before the first commit. Absent: a group that has never committed is unknown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offset_reset: Option<OffsetReset>,
    /// How `projector.builtin` reads a record as an event. Records that are CloudEvents, binary or structured, need nothing of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event: Option<KafkaEvent>,
}

/// How a record is read as an event. Its stream is the key.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct KafkaEvent {
    /// Where the event's type is. Default: in the header `type`.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub type_: Option<KafkaEventType>,
    /// The field of the value (JSON) with the event's body, such as `payload` or `event.data`. Default: the whole value.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = super::FIELD))]
    pub data: Option<String>,
    /// The type of records without a value (tombstones). Default: that of the header or the name; where the type is in a field, such a record cannot be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub tombstone: Option<String>,
}

/// Where an event's type is. Exactly one field.
#[derive(Clone, Debug, Default, Deserialize, Eq, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("[has(self.header), has(self.field), has(self.name)].exists_one(x, x)").message("spec.source.kafka.event.type must have exactly one of header, field and name"))]
pub struct KafkaEventType {
    /// In the header of this name, as text.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub header: Option<String>,
    /// In this field of the value (JSON), such as `type` or `event.name`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = super::FIELD))]
    pub field: Option<String>,
    /// All records are of this type.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub name: Option<String>,
}

/// Which records consumers read.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub enum KafkaIsolation {
    /// Those of committed transactions, up to the first transaction that is still open.
    #[default]
    ReadCommitted,
    /// All.
    ReadUncommitted,
}

/// Where consumers begin that have no committed offset.
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub enum OffsetReset {
    /// With the first record that is kept.
    Earliest,
}

/// What an offset in a read store means.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Hash, JsonSchema, Ord, PartialEq, PartialOrd, Serialize)]
pub enum StoredOffset {
    /// The record that is read next, as in the offsets that a consumer group commits: one more than that of the last record that was handled.
    #[default]
    NextToRead,
    /// The last record that was handled.
    LastHandled,
}

/// How to reach a Kafka cluster.
#[derive(Clone, Debug, Deserialize, Eq, Hash, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct KafkaConnection {
    /// The Secret with the keys `bootstrapServers` (`host:port,host:port`), `securityProtocol` (`PLAINTEXT`, `SSL`, `SASL_PLAINTEXT` or `SASL_SSL`), `saslMechanism`
    /// (`PLAIN`, `SCRAM-SHA-256`, `SCRAM-SHA-512` or `OAUTHBEARER`), `username` and `password`, or `token`. Kafka's own names of these settings (`bootstrap.servers`) do as well.
    pub secret_ref: NamedSecret,
    /// The Secret and the key that hold the certificate authority (PEM) that signed the brokers' certificates; with it TLS is used. Default: the public authorities.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_secret_ref: Option<CaSecretRef>,
    /// The Secret with the certificate that shows brokers who we are: keys `tls.crt` and `tls.key` (PEM), as in a Secret of type `kubernetes.io/tls`; with it TLS is
    /// used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_certificate_secret_ref: Option<ClientCertificateRef>,
    /// Brokers to begin with (`host:port,host:port`), in place of the Secret's key `bootstrapServers`. Those that the Secret does not name must
    /// be listed in its annotation `projectionist.dev/endpoints`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 2048))]
    pub bootstrap_servers: Option<String>,
}

/// A Secret in the Projection's namespace.
#[derive(Clone, Debug, Deserialize, Eq, Hash, JsonSchema, PartialEq, Serialize)]
pub struct NamedSecret {
    /// The Secret's name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::KafkaIsolation;
    use crate::api::admit;

    #[test]
    fn topics_in_kafka_need_no_checkpoint_and_no_read_store() {
        let kafka = || {
            json!({
                "apiVersion": "projectionist.dev/v1alpha1", "kind": "Projection", "metadata": {"name": "orders"},
                "spec": {
                    "source": {"kafka": {"connection": {"secretRef": {"name": "k"}}, "topics": ["orders"], "group": "list"}},
                    "lag": {"target": "5s"},
                },
            })
        };
        let source = admit(kafka()).unwrap().spec.source.kafka.unwrap();
        assert_eq!((source.isolation, source.offset_reset), (KafkaIsolation::ReadCommitted, None));
        let postgres = json!({"connection": {"secretRef": {"name": "db"}}, "eventTable": {}});
        for (pointer, name, value, expected) in [
            ("/spec/source", "postgres", postgres, "spec.source must name exactly one source"),
            (
                "/spec",
                "checkpoint",
                json!({"kafkaOffsets": {}}),
                "spec.source.kafka: either group or spec.checkpoint says",
            ),
            (
                "/spec/source/kafka",
                "storedOffset",
                json!("NextToRead"),
                "spec.source.kafka.storedOffset has no meaning",
            ),
            (
                "/spec",
                "projector",
                json!({"builtin": {"handlers": {"Ordered": "select 1"}}}),
                "spec.readStore.postgres is required with spec.projector.builtin.handlers",
            ),
            (
                "/spec/source/kafka",
                "event",
                json!({"type": {"header": "type"}}),
                "spec.source.kafka.event has no meaning without spec.projector.builtin",
            ),
            ("/spec/source/kafka", "topics", json!([]), "spec.source.kafka.topics must have at least 1 items"),
            ("/spec/source/kafka", "topics", json!(["a topic"]), "spec.source.kafka.topics[0]"),
            ("/spec/source/kafka", "isolation", json!("Snapshot"), "spec.source.kafka.isolation"),
            ("/spec/source/kafka", "offsetReset", json!("Latest"), "spec.source.kafka.offsetReset"),
        ] {
            let mut object = kafka();
            object.pointer_mut(pointer).unwrap()[name] = value;
            let found = admit(object).expect_err(expected);
            assert!(found.iter().any(|refusal| refusal.to_string().starts_with(expected)), "{expected}: {found:?}");
        }
    }

    #[test]
    fn the_built_in_projector_reads_topics_whose_servers_are_in_the_secret() {
        let kafka = || {
            json!({
                "apiVersion": "projectionist.dev/v1alpha1", "kind": "Projection", "metadata": {"name": "orders"},
                "spec": {
                    "source": {"kafka": {"connection": {"secretRef": {"name": "k"}}, "topics": ["orders"]}},
                    "readStore": {"postgres": {"connection": {"secretRef": {"name": "db"}}}},
                    "projector": {"builtin": {"handlers": {"Ordered": "select 1"}}},
                    "lag": {"target": "5s"},
                },
            })
        };
        for (pointer, name, value) in [
            ("/spec/source/kafka", "group", json!("list")),
            (
                "/spec/source/kafka",
                "event",
                json!({"type": {"field": "event.type"}, "data": "payload", "tombstone": "Gone"}),
            ),
            ("/spec/source/kafka", "event", json!({"type": {"name": "Changed"}})),
        ] {
            let mut object = kafka();
            object.pointer_mut(pointer).unwrap()[name] = value;
            admit(object).unwrap();
        }
        for (pointer, name, value, expected) in [
            (
                "/spec",
                "checkpoint",
                json!({"kafkaOffsets": {}}),
                "spec.checkpoint must be absent with spec.projector.builtin",
            ),
            (
                "/spec",
                "scaling",
                json!({"shards": 6}),
                "spec.scaling.shards must be absent with spec.source.kafka and spec.projector.builtin",
            ),
            (
                "/spec/source/kafka/connection",
                "bootstrapServers",
                json!("other:9092"),
                "spec.source.kafka.connection.bootstrapServers must be absent with spec.projector.builtin",
            ),
            (
                "/spec/source/kafka",
                "storedOffset",
                json!("LastHandled"),
                "spec.source.kafka.storedOffset has no meaning",
            ),
            ("/spec/source/kafka", "event", json!({"type": {}}), "spec.source.kafka.event.type must have exactly one"),
            ("/spec/source/kafka", "event", json!({"data": "a..b"}), "spec.source.kafka.event.data"),
        ] {
            let mut object = kafka();
            object.pointer_mut(pointer).unwrap()[name] = value;
            let found = admit(object).expect_err(expected);
            assert!(found.iter().any(|refusal| refusal.to_string().contains(expected)), "{expected}: {found:?}");
        }
    }
}
