//! What is read from Kafka: topics, and who keeps how far their consumers have come.

use std::sync::Arc;

use super::{ConnectionName, invalid, postgres::checkpoint_in_read_store};
use crate::{
    api::{
        Checkpoint, CheckpointLocation, KafkaConnection, KafkaIsolation, KafkaSource, OffsetReset, ProjectionSpec,
        RedisLayout, StoredOffset,
    },
    clients::ServerKind,
    measure::{MeasureError, ProjectionKey},
};

/// Topics with their consumers.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct KafkaTopics {
    /// The topics, at least one.
    pub topics: Arc<[Arc<str>]>,
    /// Who keeps how far the consumers have come.
    pub progress: KafkaProgress,
    /// Which records the consumers read.
    pub isolation: KafkaIsolation,
    /// Consumers without an offset begin with the first record that is kept.
    pub reset_to_earliest: bool,
}

/// Who keeps how far consumers have come.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum KafkaProgress {
    /// This consumer group.
    Group(Arc<str>),
    /// The read store, whose offsets mean this.
    ReadStore(StoredOffset),
}

/// How to reach the cluster, what is read there, and the place of the checkpoint where no group keeps it.
pub(super) fn topics(
    spec: &ProjectionSpec,
    source: &KafkaSource,
    key: &ProjectionKey,
) -> Result<(ConnectionName, KafkaTopics, Option<CheckpointLocation>), MeasureError> {
    if source.topics.is_empty() {
        return Err(invalid("spec.source.kafka.topics must name at least one topic"));
    }
    let (progress, checkpoint) = match (&source.group, &spec.checkpoint) {
        // The group only mirrors what the read store holds.
        _ if spec.is_builtin() => {
            let place = checkpoint_in_read_store(spec, key)?;
            (KafkaProgress::ReadStore(StoredOffset::NextToRead), Some(place))
        }
        (Some(group), None) => (KafkaProgress::Group(group.as_str().into()), None),
        (None, Some(checkpoint)) => {
            if !has_a_place_for_each_partition(checkpoint) {
                return Err(invalid(
                    "spec.checkpoint must hold an offset for each partition with spec.source.kafka: kafkaOffsets, redis with layout FieldPerShard, or elasticsearch",
                ));
            }
            let place = checkpoint_in_read_store(spec, key)?;
            (KafkaProgress::ReadStore(source.stored_offset.unwrap_or_default()), Some(place))
        }
        _ => {
            return Err(invalid(
                "spec.source.kafka: either group or spec.checkpoint says how far the consumers have come, and there must be exactly one of them",
            ));
        }
    };
    let question = KafkaTopics {
        topics: source.topics.iter().map(|topic| Arc::from(topic.as_str())).collect(),
        progress,
        isolation: source.isolation,
        reset_to_earliest: spec.is_builtin() || source.offset_reset == Some(OffsetReset::Earliest),
    };
    Ok((connection(&source.connection, key), question, checkpoint))
}

fn has_a_place_for_each_partition(checkpoint: &Checkpoint) -> bool {
    let Checkpoint { read_store, kafka_offsets, redis, elasticsearch } = checkpoint;
    let by_field = redis.as_ref().is_some_and(|redis| redis.layout == RedisLayout::FieldPerShard);
    read_store.is_none() && (kafka_offsets.is_some() || elasticsearch.is_some() || by_field)
}

fn connection(given: &KafkaConnection, key: &ProjectionKey) -> ConnectionName {
    let mut connection = ConnectionName::new(ServerKind::Kafka, &key.namespace, &given.plain());
    connection.given.extend(given.bootstrap_servers.iter().map(|servers| ("bootstrapServers", servers.clone())));
    connection
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::{
        api::{CheckpointRows, Projection},
        resolve::{Resolved, ResolvedSource, resolve},
    };

    fn resolved(more: &Value, store: &str, checkpoint: Option<Value>) -> Result<Resolved, MeasureError> {
        let connection = json!({ "connection": { "secretRef": { "name": "k" } } });
        let mut kafka = json!({ "connection": { "secretRef": { "name": "k" } }, "topics": ["orders"] });
        for (field, value) in more.as_object().unwrap() {
            kafka[field] = value.clone();
        }
        let mut spec =
            json!({ "source": { "kafka": kafka }, "readStore": { store: connection }, "lag": { "target": "5s" } });
        if let Some(checkpoint) = checkpoint {
            spec["checkpoint"] = checkpoint;
        }
        let projection: Projection = serde_json::from_value(json!({
            "apiVersion": "projectionist.dev/v1alpha1",
            "kind": "Projection",
            "metadata": { "namespace": "shop", "name": "list" },
            "spec": spec,
        }))
        .unwrap();
        resolve(&projection)
    }

    fn progress(resolved: &Resolved) -> KafkaProgress {
        match &resolved.source {
            ResolvedSource::Kafka { question, .. } => question.progress.clone(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn either_a_group_or_a_read_store_keeps_how_far_consumers_have_come() {
        let group = resolved(&json!({ "group": "list" }), "postgres", None).unwrap();
        assert_eq!((progress(&group), group.checkpoint), (KafkaProgress::Group("list".into()), None));
        let last = json!({ "storedOffset": "LastHandled" });
        let stored = resolved(&last, "postgres", Some(json!({ "kafkaOffsets": {} }))).unwrap();
        assert_eq!(progress(&stored), KafkaProgress::ReadStore(StoredOffset::LastHandled));
        assert!(matches!(stored.checkpoint, Some(CheckpointLocation::Offsets(_))));
        for (more, checkpoint) in [
            (json!({}), None),
            (json!({ "group": null }), None),
            (json!({ "group": "list" }), Some(json!({ "kafkaOffsets": {} }))),
        ] {
            let error = resolved(&more, "postgres", checkpoint).unwrap_err();
            assert!(error.message.contains("exactly one of them"), "{error:?}");
        }
    }

    #[test]
    fn a_checkpoint_holds_an_offset_for_each_partition() {
        for (store, checkpoint) in [
            ("redis", json!({ "redis": { "layout": "FieldPerShard" } })),
            ("elasticsearch", json!({ "elasticsearch": {} })),
        ] {
            let place = resolved(&json!({}), store, Some(checkpoint)).unwrap().checkpoint.unwrap();
            assert_eq!(*place.rows(), CheckpointRows::Keyed { column: None, shards: None });
        }
        for (store, checkpoint) in [("postgres", json!({ "readStore": {} })), ("redis", json!({ "redis": {} }))] {
            let error = resolved(&json!({}), store, Some(checkpoint)).unwrap_err();
            assert!(error.message.contains("an offset for each partition"), "{error:?}");
        }
    }
}
