//! The resource `Projection`: what a user writes (spec) and reads back (status), with the rules the API server checks.
//!
//! No IO and no decisions here: the types, their schema, and the names of conditions and reasons.

mod admission;
mod behavior;
mod byte_size;
mod condition;
mod duration;
mod projector;
mod read_store;
mod read_store_status;
mod rollout;
mod run_status;
mod scaling;
mod shards;
mod source;
mod spec;
mod status;
mod structural;
mod table_names;
mod worker_pod;

pub use admission::{admit, refused_behavior, unknown_field};
pub use byte_size::{ByteSize, NotAByteSize};
pub use condition::{ConditionStatus, ConditionType, Reason};
pub use duration::{HumanDuration, ParseDurationError};
pub use projector::{
    BuiltinProjector, CoalescedTypes, DocumentOperation, ElasticsearchHandlers, ExistingKind, ExistingWorkload,
    InboxSettings, PodTemplate, Projector, RedisHandlers,
};
pub use read_store::{
    Checkpoint, CheckpointLocation, CheckpointRows, CheckpointTable, DocumentLocation, DocumentPart,
    ElasticsearchCheckpoint, ElasticsearchReadStore, InboxLocation, KafkaOffsetsTable, OffsetsLocation,
    PostgresReadStore, ReadStore, ReadStoreLimits, RedisCheckpoint, RedisLayout, RedisLocation, RedisPart,
    RedisReadStore, TableLocation,
};
pub(crate) use read_store::{default_name_column, default_position_column};
pub use read_store_status::{
    ConnectionLimit, ConnectionsStatus, MemoryStatus, ReadStoreRefusal, ReadStoreState, ReadStoreStatus,
    WriteQueueStatus,
};
pub use rollout::{
    ElasticsearchAlias, OnRolloutFailure, PostgresViews, Promotion, ReaderSwitch, RedisPointer, Rollout,
    RolloutStrategy,
};
pub use run_status::{RolloutStatus, RunProgress, RunRole, RunStatus, RunWorkers, SecondsLeft};
pub use scaling::{
    Autoscaler, CatchUp, Failure, Lag, LookAhead, OnPoison, OnUnknown, Ordering, ScaleOut, Scaling, ValueTarget,
};
pub use shards::Shards;
pub use source::{
    Aggregate, AkkaProjection, AllFilter, CatchUpSubscription, CommandedStore, ConsumerGroupMember, EmmettStore,
    EventRows, EventTable, HttpConnection, KafkaConnection, KafkaEvent, KafkaEventType, KafkaIsolation, KafkaSource,
    KurrentDbSource, MartenStore, MessageDbCategory, NamedSecret, NatsEvent, NatsEventStream, NatsEventType,
    NatsSource, OffsetReset, Outbox, OutboxEvent, PersistentSubscription, PostgresSource, PrometheusSource,
    RabbitMqEvent, RabbitMqEventId, RabbitMqEventStream, RabbitMqEventType, RabbitMqSource, RedisEvent, RedisList,
    RedisSource, ReplicationSlot, ScrapeSource, ScrapedMetric, ScrapedPods, SqlQuery, StoredOffset, StreamConsumer,
    StreamGroup, StreamReference,
};
pub use spec::{CaSecretRef, ClientCertificateRef, Connection, Projection, ProjectionSpec, SecretKeyRef, Source};
pub use status::{
    BoundBy, CadenceStatus, HeadStatus, PassedOverStatus, PendingStatus, Phase, ProjectionStatus, RatesStatus,
    WorkersStatus,
};
pub use structural::Refusal;
pub use table_names::{table_part, table_parts};
pub use worker_pod::WorkerPod;

#[cfg(test)]
mod tests {
    use kube::CustomResourceExt;
    use serde_json::Value;

    use super::Projection;

    fn undescribed(path: &str, schema: &Value, found: &mut Vec<String>) {
        for (name, field) in schema["properties"].as_object().into_iter().flatten() {
            let path = format!("{path}.{name}");
            if field["description"].as_str().is_none_or(|text| text.trim().is_empty()) {
                found.push(path.clone());
            }
            undescribed(&path, field, found);
        }
        for inner in ["items", "additionalProperties"] {
            if schema[inner].is_object() {
                undescribed(&format!("{path}[]"), &schema[inner], found);
            }
        }
    }

    fn required(path: &str, schema: &Value, found: &mut Vec<String>) {
        for (name, field) in schema["properties"].as_object().into_iter().flatten() {
            let path = format!("{path}.{name}");
            let names = field["required"].as_array().into_iter().flatten().filter_map(Value::as_str);
            found.extend(names.map(|name| format!("{path}.{name}")));
            required(&path, field, found);
        }
    }

    #[test]
    fn nothing_is_asked_of_a_user_that_has_a_default() {
        let crd = serde_json::to_value(Projection::crd()).unwrap();
        let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
        let mut found = Vec::new();
        required("", &schema["properties"]["spec"], &mut found);
        let expected = [
            ".catchUp.within",
            ".lag.target",
            ".projector.builtin.elasticsearch.handlers",
            ".projector.builtin.redis.handlers",
            ".projector.existing.kind",
            ".projector.existing.name",
            ".projector.template.spec",
            ".projector.template.spec.containers",
            ".readStore.elasticsearch.connection",
            ".readStore.elasticsearch.connection.caSecretRef.name",
            ".readStore.elasticsearch.connection.clientCertificateSecretRef.name",
            ".readStore.elasticsearch.connection.secretRef",
            ".readStore.elasticsearch.connection.secretRef.name",
            ".readStore.limits.maxConnections",
            ".readStore.postgres.connection",
            ".readStore.postgres.connection.caSecretRef.name",
            ".readStore.postgres.connection.clientCertificateSecretRef.name",
            ".readStore.postgres.connection.secretRef",
            ".readStore.postgres.connection.secretRef.name",
            ".readStore.redis.connection",
            ".readStore.redis.connection.caSecretRef.name",
            ".readStore.redis.connection.clientCertificateSecretRef.name",
            ".readStore.redis.connection.secretRef",
            ".readStore.redis.connection.secretRef.name",
            ".rollout.promote.parity.query",
            ".rollout.switch.postgresView.schema",
            ".rollout.switch.postgresView.views",
            ".rollout.switch.redisPointer.key",
            ".source.kafka.connection",
            ".source.kafka.connection.caSecretRef.name",
            ".source.kafka.connection.clientCertificateSecretRef.name",
            ".source.kafka.connection.secretRef",
            ".source.kafka.connection.secretRef.name",
            ".source.kafka.topics",
            ".source.kurrentdb.catchUp.stream",
            ".source.kurrentdb.connection",
            ".source.kurrentdb.connection.caSecretRef.name",
            ".source.kurrentdb.connection.clientCertificateSecretRef.name",
            ".source.kurrentdb.connection.secretRef",
            ".source.kurrentdb.connection.secretRef.name",
            ".source.nats.connection",
            ".source.nats.connection.caSecretRef.name",
            ".source.nats.connection.clientCertificateSecretRef.name",
            ".source.nats.connection.secretRef",
            ".source.nats.connection.secretRef.name",
            ".source.nats.consumers",
            ".source.postgres.akka.entityType",
            ".source.postgres.akka.projection",
            ".source.postgres.connection",
            ".source.postgres.connection.caSecretRef.name",
            ".source.postgres.connection.clientCertificateSecretRef.name",
            ".source.postgres.connection.secretRef",
            ".source.postgres.connection.secretRef.name",
            ".source.postgres.messageDb.category",
            ".source.postgres.messageDb.consumerGroup.member",
            ".source.postgres.messageDb.consumerGroup.size",
            ".source.postgres.query.sql",
            ".source.postgres.replicationSlot.name",
            ".source.prometheus.connection",
            ".source.prometheus.connection.caSecretRef.name",
            ".source.prometheus.connection.clientCertificateSecretRef.name",
            ".source.prometheus.connection.secretRef.name",
            ".source.rabbitmq.connection",
            ".source.rabbitmq.connection.caSecretRef.name",
            ".source.rabbitmq.connection.clientCertificateSecretRef.name",
            ".source.rabbitmq.connection.secretRef",
            ".source.rabbitmq.connection.secretRef.name",
            ".source.redis.connection",
            ".source.redis.connection.caSecretRef.name",
            ".source.redis.connection.clientCertificateSecretRef.name",
            ".source.redis.connection.secretRef",
            ".source.redis.connection.secretRef.name",
            ".source.scrape.arrived.metric",
            ".source.scrape.connection.caSecretRef.name",
            ".source.scrape.connection.clientCertificateSecretRef.name",
            ".source.scrape.connection.secretRef.name",
            ".source.scrape.pending.metric",
            ".source.scrape.pods.port",
            ".source.scrape.staleness.metric",
            ".source.scrape.value.metric",
        ];
        found.sort();
        assert_eq!(found, expected);
    }

    #[test]
    fn every_field_explains_itself() {
        let crd = serde_json::to_value(Projection::crd()).unwrap();
        let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
        let mut found = Vec::new();
        for part in ["spec", "status"] {
            undescribed(part, &schema["properties"][part], &mut found);
        }
        assert!(schema["properties"]["spec"]["properties"].as_object().is_some_and(|fields| fields.len() > 5));
        assert_eq!(found, Vec::<String>::new());
    }
}
