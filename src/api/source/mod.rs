//! The kinds of event sources besides PostgreSQL: one file a kind, with the rules that the API server checks beside the fields.

mod kafka;
mod nats;
mod rabbitmq;
mod redis;

pub use kafka::{KafkaConnection, KafkaIsolation, KafkaSource, NamedSecret, OffsetReset};
pub use nats::{NatsSource, StreamConsumer};
pub use rabbitmq::RabbitMqSource;
pub use redis::{RedisSource, StreamGroup};
