//! The kinds of event sources: one file a kind of server, with the rules that the API server checks beside the fields.

mod event_rows;
mod event_stores;
mod kafka;
mod kurrentdb;
mod nats;
mod outbox;
mod postgres;
mod prometheus;
mod query;
mod rabbitmq;
mod redis;
mod replication_slot;
mod scrape;

pub use event_rows::EventRows;
pub use event_stores::{AkkaProjection, CommandedStore, EmmettStore};
pub use kafka::{
    KafkaConnection, KafkaEvent, KafkaEventType, KafkaIsolation, KafkaSource, NamedSecret, OffsetReset, StoredOffset,
};
pub use kurrentdb::{AllFilter, CatchUpSubscription, KurrentDbSource, PersistentSubscription};
pub use nats::{NatsEvent, NatsEventStream, NatsEventType, NatsSource, StreamConsumer};
pub use outbox::{Outbox, OutboxEvent};
pub use postgres::{ConsumerGroupMember, EventTable, MartenStore, MessageDbCategory, PostgresSource};
pub use prometheus::{HttpConnection, PrometheusSource};
pub use query::SqlQuery;
pub use rabbitmq::{
    RabbitMqEvent, RabbitMqEventId, RabbitMqEventStream, RabbitMqEventType, RabbitMqSource, StreamReference,
};
pub use redis::{RedisEvent, RedisList, RedisSource, StreamGroup};
pub use replication_slot::ReplicationSlot;
pub use scrape::{Aggregate, ScrapeSource, ScrapedMetric, ScrapedPods};

/// Names of fields in JSON, with dots between them.
const FIELD: &str = r"^[^.]+(\.[^.]+)*$";
