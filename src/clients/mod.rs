//! Connections to the servers that hold events, checkpoints and read models: one module a kind of server, which speaks its protocol and puts its
//! errors into words. Knows nothing of Projections.

mod address;
pub mod blamed;
pub mod elasticsearch;
pub mod http;
pub mod http_settings;
mod identity;
pub mod kafka;
pub mod kurrentdb;
pub mod nats;
pub mod postgres;
pub mod prometheus;
pub mod rabbitmq;
pub mod redis;
pub mod scrape;
mod tls;
mod words;
mod written;

use crate::{measure::MeasureError, store_health::StoreName};

/// Levels of the clients' libraries that no setting may raise. With lower levels `tokio_postgres` logs every parameter, and with it the contents of events.
pub const LOG_AT_MOST: [&str; 1] = ["tokio_postgres=info"];

/// A kind of server.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum ServerKind {
    /// Elasticsearch or OpenSearch.
    Elasticsearch,
    /// NATS.
    Nats,
    /// PostgreSQL.
    Postgres,
    /// RabbitMQ, by its management API.
    RabbitMq,
    /// Redis.
    Redis,
    /// A Kafka cluster.
    Kafka,
    /// A KurrentDB (EventStoreDB) cluster.
    KurrentDb,
    /// Prometheus, or a server with its query API.
    Prometheus,
    /// A page in Prometheus's text format.
    Scrape,
    /// Such pages of a workload's pods.
    WorkerPods,
}

impl ServerKind {
    /// What the label of metrics says of a read store of this kind; `None` for servers that hold events only.
    pub fn read_store(self) -> Option<&'static str> {
        match self {
            Self::Elasticsearch => Some("elasticsearch"),
            Self::Postgres => Some("postgres"),
            Self::Redis => Some("redis"),
            Self::Nats
            | Self::RabbitMq
            | Self::Kafka
            | Self::KurrentDb
            | Self::Prometheus
            | Self::Scrape
            | Self::WorkerPods => None,
        }
    }
}

/// A server together with everything that a connection to it takes, credentials included: the same for all that may share connections. A rotated
/// password makes another one.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum Endpoint {
    /// Elasticsearch or OpenSearch.
    Elasticsearch(elasticsearch::ConnectionIdentity),
    /// A NATS server with JetStream.
    Nats(nats::ConnectionIdentity),
    /// A PostgreSQL database.
    Postgres(postgres::ConnectionIdentity),
    /// The management API of a RabbitMQ server.
    RabbitMq(rabbitmq::ConnectionIdentity),
    /// A database of a Redis server.
    Redis(redis::ConnectionIdentity),
    /// A Kafka cluster with a user.
    Kafka(kafka::Settings),
    /// A KurrentDB cluster.
    KurrentDb(kurrentdb::ConnectionIdentity),
    /// A server with Prometheus's query API.
    Prometheus(http_settings::HttpIdentity),
    /// A page in Prometheus's text format.
    Scrape(http_settings::HttpIdentity),
    /// Such pages of a workload's pods.
    WorkerPods(scrape::PodPages),
}

impl Endpoint {
    /// The server, and the database where there are several: the same text for all users. Holds no secret.
    pub fn server(&self) -> String {
        match self {
            Self::Elasticsearch(identity) => identity.settings().address(),
            Self::Nats(identity) => identity.settings().to_string(),
            Self::Postgres(identity) => identity.settings().database(),
            Self::RabbitMq(identity) => identity.settings().to_string(),
            Self::Redis(identity) => identity.settings().database(),
            Self::Kafka(settings) => settings.to_string(),
            Self::KurrentDb(identity) => identity.settings().to_string(),
            Self::Prometheus(identity) | Self::Scrape(identity) => identity.settings().to_string(),
            Self::WorkerPods(pages) => pages.to_string(),
        }
    }

    /// The read store that it is, for the labels of metrics; `None` where it holds events only.
    pub fn store_name(&self) -> Option<StoreName> {
        let (kind, server, user) = match self {
            Self::Elasticsearch(identity) => {
                (ServerKind::Elasticsearch, identity.settings().authority(), identity.settings().user())
            }
            Self::Postgres(identity) => {
                (ServerKind::Postgres, identity.settings().database(), identity.settings().user())
            }
            Self::Redis(identity) => (ServerKind::Redis, identity.settings().address(), identity.settings().user()),
            Self::Nats(_)
            | Self::RabbitMq(_)
            | Self::Kafka(_)
            | Self::KurrentDb(_)
            | Self::Prometheus(_)
            | Self::Scrape(_)
            | Self::WorkerPods(_) => {
                return None;
            }
        };
        Some(StoreName { kind: kind.read_store()?, server: server.into(), user: user.unwrap_or_default().into() })
    }
}

/// How to reach a server of one kind, as a Secret says it.
pub trait ServerSettings: Sized {
    /// The keys that are looked for in a Secret, the most telling first.
    fn keys() -> Vec<&'static str>;

    /// Reads what `value` gives for keys.
    ///
    /// # Errors
    /// `SecretKeyMissing` or `ConnectionStringInvalid`; the message names the key and shows no secret.
    fn from_keys<'a>(value: impl Fn(&str) -> Option<&'a str>) -> Result<Self, MeasureError>;

    /// Trusts this certificate authority (PEM) instead of the public ones.
    ///
    /// # Errors
    /// Why these settings never verify a certificate, and what to change.
    fn trusting(self, authority: &[u8]) -> Result<Self, &'static str>;

    /// Shows the server this certificate and its key (PEM).
    ///
    /// # Errors
    /// Why these settings never show one, and what to change.
    fn showing(self, certificate: &[u8], key: &[u8]) -> Result<Self, &'static str>;

    /// The servers that the credential goes to, as `host:port`. A host in the spec that replaces the Secret's must show here.
    fn servers(&self) -> Vec<String>;

    /// The server with these settings.
    fn endpoint(&self) -> Endpoint;
}
