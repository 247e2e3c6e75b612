//! Offsets of Kafka's partitions in a table of PostgreSQL, as projectors keep them that commit effects and offsets in one transaction.

use std::sync::Arc;

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use crate::api::spec::{NAME, TABLE};

/// A table with one row for each partition of each topic.
#[derive(Clone, Debug, Deserialize, Eq, Hash, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.name) || has(self.nameColumn)").message("spec.checkpoint.kafkaOffsets.nameColumn is required with name: it tells in which column the name is"))]
pub struct KafkaOffsetsTable {
    /// The table, optionally with its schema. Default: `kafka_offsets`.
    #[serde(default = "default_table")]
    #[schemars(length(max = 260), regex(pattern = TABLE))]
    pub table: String,
    /// The column with the topic, a text. Default: `topic`.
    #[serde(default = "default_topic_column")]
    #[schemars(length(min = 1, max = 63), regex(pattern = NAME))]
    pub topic_column: String,
    /// The column with the partition's number, an integer. Default: `partition`.
    #[serde(default = "default_partition_column")]
    #[schemars(length(min = 1, max = 63), regex(pattern = NAME))]
    pub partition_column: String,
    /// The column with the offset, an integer; `spec.source.kafka.storedOffset` says what it means. Default: `offset`.
    #[serde(default = "default_offset_column")]
    #[schemars(length(min = 1, max = 63), regex(pattern = NAME))]
    pub offset_column: String,
    /// The column that tells projections apart. Absent: the table holds the offsets of this Projection alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63), regex(pattern = NAME))]
    pub name_column: Option<String>,
    /// This projection's value in the name column. Default: the Projection's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub name: Option<String>,
}

fn default_table() -> String {
    "kafka_offsets".to_owned()
}

fn default_topic_column() -> String {
    "topic".to_owned()
}

fn default_partition_column() -> String {
    "partition".to_owned()
}

fn default_offset_column() -> String {
    "offset".to_owned()
}

/// One projection's rows in a table of offsets.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct OffsetsLocation {
    /// The table, optionally with its schema.
    pub table: String,
    /// The column with the topic.
    pub topic_column: String,
    /// The column with the partition's number.
    pub partition_column: String,
    /// The column with the offset.
    pub offset_column: String,
    /// The column that tells projections apart, and this projection's value in it; absent where the table holds the offsets of one alone.
    pub name: Option<(String, String)>,
    /// The topics whose offsets are read.
    pub topics: Arc<[String]>,
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::api::admit;

    #[test]
    fn offsets_of_kafka_in_a_read_store_take_the_place_of_the_group_and_are_one_a_partition() {
        let kafka = |store: &str, checkpoint: &Value| {
            let connection = json!({"connection": {"secretRef": {"name": "k"}}});
            json!({
                "apiVersion": "projectionist.dev/v1alpha1", "kind": "Projection", "metadata": {"name": "orders"},
                "spec": {
                    "source": {"kafka": {"connection": {"secretRef": {"name": "k"}}, "topics": ["orders"], "storedOffset": "LastHandled"}},
                    "readStore": {store: connection},
                    "checkpoint": checkpoint,
                    "lag": {"target": "5s"},
                },
            })
        };
        for (store, checkpoint) in [
            ("postgres", json!({"kafkaOffsets": {}})),
            ("postgres", json!({"kafkaOffsets": {"nameColumn": "projection", "name": "list"}})),
            ("redis", json!({"redis": {"layout": "FieldPerShard"}})),
            ("elasticsearch", json!({"elasticsearch": {}})),
        ] {
            let spec = admit(kafka(store, &checkpoint)).unwrap().spec;
            assert!(spec.checkpoint_location("shop", "orders").is_some(), "{checkpoint}");
        }
        let one_each = "spec.checkpoint must hold an offset for each partition with spec.source.kafka";
        for (store, checkpoint, expected) in [
            ("postgres", json!({"readStore": {}}), one_each),
            ("redis", json!({"redis": {}}), one_each),
            ("redis", json!({"redis": {"layout": "Value"}}), one_each),
            (
                "redis",
                json!({"kafkaOffsets": {}}),
                "spec.readStore.postgres is required with spec.checkpoint.kafkaOffsets",
            ),
            ("postgres", json!({"kafkaOffsets": {"name": "x"}}), "spec.checkpoint.kafkaOffsets.nameColumn is required"),
        ] {
            let found = admit(kafka(store, &checkpoint)).expect_err(expected);
            assert!(found.iter().any(|refusal| refusal.to_string().starts_with(expected)), "{expected}: {found:?}");
        }
        let mut neither = kafka("postgres", &json!(null));
        neither["spec"].as_object_mut().unwrap().remove("checkpoint");
        let expected = "spec.source.kafka: either group or spec.checkpoint says how far";
        let found = admit(neither).expect_err(expected);
        assert!(found.iter().any(|refusal| refusal.to_string().starts_with(expected)), "{found:?}");
        let mut table = kafka("postgres", &json!({"kafkaOffsets": {}}));
        table["spec"]["source"] = json!({"postgres": {"connection": {"secretRef": {"name": "db"}}, "eventTable": {}}});
        let expected = "spec.source.kafka is required with spec.checkpoint.kafkaOffsets";
        let found = admit(table).expect_err(expected);
        assert!(found.iter().any(|refusal| refusal.to_string().starts_with(expected)), "{found:?}");
    }
}
