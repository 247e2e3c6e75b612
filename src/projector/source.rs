//! The kinds of event source of a worker: the connection to one, and what to read there.

use std::fmt;

use super::{
    config::{
        Input, KafkaInput, KurrentDbInput, NatsConsumers, PostgresInput, ProjectorConfig, QueueInput, QueueKind,
        RabbitMqQueues, RedisStreams,
    },
    error::ProjectorError,
    input::{kafka::KafkaReader, kurrentdb::KurrentDbReader, postgres::PostgresReader, reader::Reader},
};
use crate::{
    api::Outbox,
    clients::{kafka, kurrentdb, nats, postgres::ConnectionSettings, rabbitmq, redis},
};

/// How to reach an event source.
#[derive(Clone, Debug)]
pub enum SourceConnection {
    /// PostgreSQL.
    Postgres(Box<ConnectionSettings>),
    /// Kafka.
    Kafka(kafka::Settings),
    /// KurrentDB.
    KurrentDb(kurrentdb::ConnectionSettings),
    /// Redis.
    Redis(redis::ConnectionSettings),
    /// NATS.
    Nats(nats::ConnectionSettings),
    /// RabbitMQ.
    RabbitMq(rabbitmq::ConnectionSettings),
}

/// An event source and what to read there.
pub(super) enum Source {
    Log(LogSource),
    Queue(QueueSource, Box<QueueInput>),
}

/// A source whose events have positions.
pub(super) enum LogSource {
    Postgres { settings: Box<ConnectionSettings>, input: PostgresInput },
    Kafka { settings: kafka::Settings, input: KafkaInput },
    KurrentDb { settings: kurrentdb::ConnectionSettings, input: KurrentDbInput },
}

/// A source that gives any worker any message.
pub(super) enum QueueSource {
    Redis { settings: redis::ConnectionSettings, streams: RedisStreams },
    Nats { settings: nats::ConnectionSettings, consumers: NatsConsumers },
    RabbitMq { settings: rabbitmq::ConnectionSettings, queues: RabbitMqQueues },
    Outbox { settings: Box<ConnectionSettings>, outbox: Box<Outbox> },
}

impl Source {
    /// What the configuration says with the connection to it.
    ///
    /// # Errors
    /// The connection is to another kind of source.
    pub(super) fn of(input: &Input, connection: SourceConnection) -> Result<Self, ProjectorError> {
        match (input, connection) {
            (Input::Postgres(input), SourceConnection::Postgres(settings)) => {
                Ok(Self::Log(LogSource::Postgres { settings, input: input.clone() }))
            }
            (Input::Kafka(input), SourceConnection::Kafka(settings)) => {
                Ok(Self::Log(LogSource::Kafka { settings, input: input.clone() }))
            }
            (Input::KurrentDb(input), SourceConnection::KurrentDb(settings)) => {
                Ok(Self::Log(LogSource::KurrentDb { settings, input: input.clone() }))
            }
            (Input::Queue(input), connection) => {
                let source = match (&input.queue, connection) {
                    (QueueKind::Redis(streams), SourceConnection::Redis(settings)) => {
                        QueueSource::Redis { settings, streams: streams.clone() }
                    }
                    (QueueKind::Nats(consumers), SourceConnection::Nats(settings)) => {
                        QueueSource::Nats { settings, consumers: consumers.clone() }
                    }
                    (QueueKind::RabbitMq(queues), SourceConnection::RabbitMq(settings)) => {
                        QueueSource::RabbitMq { settings, queues: queues.clone() }
                    }
                    (QueueKind::Outbox(outbox), SourceConnection::Postgres(settings)) => {
                        QueueSource::Outbox { settings, outbox: outbox.clone() }
                    }
                    _ => return Err(ProjectorError::OtherKindOfSource),
                };
                Ok(Self::Queue(source, Box::new(input.clone())))
            }
            _ => Err(ProjectorError::OtherKindOfSource),
        }
    }
}

impl LogSource {
    /// Connects, and checks that the source can be read. `types` are the types of event that are wanted.
    pub(super) async fn open(
        &self,
        application: &str,
        config: &ProjectorConfig,
        types: Vec<String>,
    ) -> Result<Reader, ProjectorError> {
        match self {
            Self::Postgres { settings, input } => {
                let reader = PostgresReader::open(settings, application, config, input, types).await?;
                Ok(Reader::Postgres(Box::new(reader)))
            }
            Self::Kafka { settings, input } => {
                let reader = KafkaReader::open(settings.clone(), input, config.max_event_bytes, types).await?;
                Ok(Reader::Kafka(Box::new(reader)))
            }
            Self::KurrentDb { settings, input } => {
                let reader = KurrentDbReader::open(settings.clone(), input, config.max_event_bytes, types).await?;
                Ok(Reader::KurrentDb(Box::new(reader)))
            }
        }
    }
}

impl fmt::Display for QueueSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Redis { settings, .. } => settings.fmt(f),
            Self::Nats { settings, .. } => settings.fmt(f),
            Self::RabbitMq { settings, .. } => settings.fmt(f),
            Self::Outbox { settings, .. } => settings.fmt(f),
        }
    }
}

impl fmt::Display for LogSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Postgres { settings, .. } => settings.fmt(f),
            Self::Kafka { settings, .. } => settings.fmt(f),
            Self::KurrentDb { settings, .. } => settings.fmt(f),
        }
    }
}
