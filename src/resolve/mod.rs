//! What a Projection's spec means: which server to ask for what, and where the checkpoint is. Pure.
//!
//! Nothing else reads a spec: the sampler reads a [`Resolved`] and [`Bounds`](crate::lag::Bounds), the controller a [`Validated`], so that defaults and bounds
//! are applied in one place.

mod bounds;
mod connection;
mod consumers;
mod derived;
mod kafka;
mod kurrentdb;
mod library;
mod numbers;
mod policy;
mod positions;
mod postgres;
mod readers;
mod runs;
mod scrape;
mod versions;
mod workload;

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use kube::ResourceExt as _;

pub use bounds::bounds;
pub use connection::{ConnectionName, SecretName};
pub use consumers::{CommandedSubscription, EmmettProcessor, StoreConsumer};
pub use kafka::{KafkaProgress, KafkaTopics};
pub use kurrentdb::KurrentDbSubscriptions;
pub use library::{LibraryTable, ParkedEvents};
pub use numbers::Numbers;
pub use policy::{ConnectionLimits, Measures, Stated, SuspendedBy, existing_workload, fallback_workers};
pub use positions::{Place, PositionKind};
pub use postgres::PostgresQuestion;
pub use readers::{LedAlias, LedBy, led_by, place_of, version_in};
pub use runs::{
    ParityRule, RolloutRules, checkpoint_table_of, comes_back_changed, described_run, described_version,
    has_another_spec, has_runs, live_beside, rules, run_of, stored_run,
};
pub use scrape::AskedMetric;
pub use workload::{BuiltinPods, Environment, Invalid, Owner, Pods, Validated, WorkerBounds, Workload, validate};

use crate::{
    api::{
        CheckpointLocation, NatsSource, Projection, ProjectionSpec, PrometheusSource, ReadStore, Reason, RedisList,
        StreamConsumer, StreamGroup, StreamReference,
    },
    clients::ServerKind,
    measure::{MeasureError, ProjectionKey, RunKey},
    store_health::StoreName,
};

/// What measuring one Projection takes.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Resolved {
    /// Which run of which Projection.
    pub key: RunKey,
    /// Its UID.
    pub uid: Arc<str>,
    /// The generation of its spec.
    pub generation: i64,
    /// The lag target.
    pub target: Duration,
    /// Where the events are, and what is asked there.
    pub source: ResolvedSource,
    /// The read store that its workers write to.
    pub read_store: Option<ResolvedStore>,
    /// Where in the read store the checkpoint is; absent where the source itself keeps it.
    pub checkpoint: Option<CheckpointLocation>,
    /// Where the checkpoint is in the database with the events, and not in the read store: what to say when it is not there.
    pub checkpoint_in_source: Option<Arc<str>>,
}

/// A read store.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ResolvedStore {
    /// The server.
    pub connection: ConnectionName,
    /// The field of the spec that describes the connection to it.
    pub field: &'static str,
}

impl ResolvedStore {
    /// How it is called while its address cannot be read; `None` for servers that are no read store.
    pub fn untold_name(&self) -> Option<StoreName> {
        let server = self.connection.secret.as_ref().map_or_else(|| self.field.to_owned(), ToString::to_string);
        Some(StoreName { kind: self.connection.server.read_store()?, server: server.into(), user: "".into() })
    }
}

/// A source with what is asked there: one variant a kind.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum ResolvedSource {
    /// Events in a PostgreSQL database.
    Postgres {
        /// The database.
        connection: ConnectionName,
        /// What is asked there.
        question: PostgresQuestion,
    },
    /// Queues in RabbitMQ, which hold what has not been handled.
    RabbitMq {
        /// The management API.
        connection: ConnectionName,
        /// The virtual host.
        vhost: String,
        /// The queues, none twice. At least one queue or one stream.
        queues: Vec<String>,
        /// The streams, each with the reference of its consumer, none twice.
        streams: Vec<StreamReference>,
        /// Those with messages that failed, none twice.
        dead_letter_queues: Vec<String>,
    },
    /// Streams in Redis, whose consumer groups keep the checkpoint.
    Redis {
        /// The server.
        connection: ConnectionName,
        /// Each stream with its group, none twice.
        streams: Vec<StreamGroup>,
        /// Each list, none twice. There is a stream or a list.
        lists: Vec<RedisList>,
    },
    /// Topics in Kafka.
    Kafka {
        /// The cluster.
        connection: ConnectionName,
        /// The topics, and who keeps how far their consumers have come.
        question: KafkaTopics,
    },
    /// Subscriptions to streams of KurrentDB.
    KurrentDb {
        /// The cluster.
        connection: ConnectionName,
        /// What is read.
        subscriptions: KurrentDbSubscriptions,
    },
    /// Consumers of NATS JetStream, which keep the checkpoint.
    Nats {
        /// The server.
        connection: ConnectionName,
        /// Each consumer with its stream, at least one, none twice.
        consumers: Vec<StreamConsumer>,
        /// The JetStream domain.
        domain: Option<String>,
    },
    /// Queries to Prometheus.
    Prometheus {
        /// The server.
        connection: ConnectionName,
        /// The tenant, for servers that have tenants.
        tenant: Option<Arc<str>>,
        /// The queries, in PromQL.
        queries: Numbers<Arc<str>>,
    },
    /// Metrics of a page in Prometheus's text format.
    Scrape {
        /// The page.
        connection: ConnectionName,
        /// The metrics.
        metrics: Numbers<AskedMetric>,
    },
}

impl ResolvedSource {
    /// The server, and the field of the spec that describes the connection to it.
    pub fn connection(&self) -> (&ConnectionName, &'static str) {
        match self {
            Self::Postgres { connection, .. } => (connection, "spec.source.postgres.connection"),
            Self::RabbitMq { connection, .. } => (connection, "spec.source.rabbitmq.connection"),
            Self::Redis { connection, .. } => (connection, "spec.source.redis.connection"),
            Self::Kafka { connection, .. } => (connection, "spec.source.kafka.connection"),
            Self::KurrentDb { connection, .. } => (connection, "spec.source.kurrentdb.connection"),
            Self::Nats { connection, .. } => (connection, "spec.source.nats.connection"),
            Self::Prometheus { connection, .. } => (connection, "spec.source.prometheus.connection"),
            Self::Scrape { connection, .. } if connection.server == ServerKind::WorkerPods => {
                (connection, "spec.source.scrape.pods")
            }
            Self::Scrape { connection, .. } => (connection, "spec.source.scrape.connection"),
        }
    }
}

impl Resolved {
    /// All connections that are needed.
    pub fn connections(&self) -> impl Iterator<Item = &ConnectionName> {
        std::iter::once(self.source.connection().0).chain(self.read_store.iter().map(|store| &store.connection))
    }
}

/// What measuring this Projection takes.
///
/// # Errors
/// `InvalidSpec` where the API server's rules were not in force when it was written.
pub fn resolve(projection: &Projection) -> Result<Resolved, MeasureError> {
    let key = ProjectionKey::of(projection);
    versions::check(&projection.spec).map_err(|(field, problem)| invalid(&format!("{field} {problem}")))?;
    let spec = &*versions::filled(&projection.spec);
    let (source, checkpoint) = source(spec, &key)?;
    let checkpoint_in_source = match &source {
        ResolvedSource::Postgres { question, .. } => question.keeps_checkpoint().map(Arc::from),
        _ => None,
    };
    if let Some(message) = spec.overlong_name() {
        return Err(invalid(&message));
    }
    Ok(Resolved {
        uid: projection.uid().unwrap_or_default().into(),
        generation: projection.metadata.generation.unwrap_or_default(),
        target: spec.lag.target.0,
        source,
        read_store: read_store(spec, &key.namespace),
        checkpoint,
        checkpoint_in_source,
        key: run_of(projection),
    })
}

fn read_store(spec: &ProjectionSpec, namespace: &Arc<str>) -> Option<ResolvedStore> {
    let store = spec.read_store.as_ref()?;
    let server = match store {
        ReadStore { redis: Some(_), .. } => ServerKind::Redis,
        ReadStore { elasticsearch: Some(_), .. } => ServerKind::Elasticsearch,
        _ => ServerKind::Postgres,
    };
    let (connection, _, field) = store.connection()?;
    Some(ResolvedStore { connection: ConnectionName::new(server, namespace, connection), field })
}

/// The source, and the place of the checkpoint where the source does not keep it.
fn source(
    spec: &ProjectionSpec,
    key: &ProjectionKey,
) -> Result<(ResolvedSource, Option<CheckpointLocation>), MeasureError> {
    if let Some(redis) = &spec.source.redis {
        let connection = ConnectionName::new(ServerKind::Redis, &key.namespace, &redis.connection);
        let streams: BTreeSet<&StreamGroup> = redis.streams.iter().collect();
        let lists: BTreeSet<&RedisList> = redis.lists.iter().collect();
        if streams.is_empty() && lists.is_empty() {
            return Err(invalid("spec.source.redis must name streams, each with its group, or lists"));
        }
        let lists = lists.into_iter().cloned().collect();
        let streams = streams.into_iter().cloned().collect();
        return Ok((ResolvedSource::Redis { connection, streams, lists }, inbox(spec, key)));
    }
    if let Some(rabbitmq) = &spec.source.rabbitmq {
        let connection = ConnectionName::new(ServerKind::RabbitMq, &key.namespace, &rabbitmq.connection);
        let queues: BTreeSet<&String> = rabbitmq.queues.iter().collect();
        let streams: BTreeSet<&StreamReference> = rabbitmq.streams.iter().collect();
        if queues.is_empty() && streams.is_empty() {
            return Err(invalid(
                "spec.source.rabbitmq must name queues, or streams with the references of their consumers",
            ));
        }
        let streams = streams.into_iter().cloned().collect();
        let (vhost, queues) = (rabbitmq.vhost.clone(), queues.into_iter().cloned().collect());
        let dead_letter_queues: BTreeSet<&String> = rabbitmq.dead_letter_queues.iter().collect();
        let dead_letter_queues = dead_letter_queues.into_iter().cloned().collect();
        return Ok((
            ResolvedSource::RabbitMq { connection, vhost, queues, streams, dead_letter_queues },
            inbox(spec, key),
        ));
    }
    if let Some(kafka) = &spec.source.kafka {
        let (connection, question, checkpoint) = kafka::topics(spec, kafka, key)?;
        return Ok((ResolvedSource::Kafka { connection, question }, checkpoint));
    }
    if let Some(nats) = &spec.source.nats {
        return self::nats(spec, nats, key);
    }
    if let Some(prometheus) = &spec.source.prometheus {
        return self::prometheus(spec, prometheus, key);
    }
    if let Some(source) = &spec.source.scrape {
        return scrape::scrape(spec, source, key);
    }
    if let Some(kurrentdb) = &spec.source.kurrentdb {
        let connection = ConnectionName::new(ServerKind::KurrentDb, &key.namespace, &kurrentdb.connection);
        let (subscriptions, checkpoint) = kurrentdb::subscriptions(spec, kurrentdb, key)?;
        return Ok((ResolvedSource::KurrentDb { connection, subscriptions }, checkpoint));
    }
    let Some(source) = &spec.source.postgres else {
        return Err(invalid("spec.source is missing: name one source, such as spec.source.postgres"));
    };
    let connection = ConnectionName::new(ServerKind::Postgres, &key.namespace, &source.connection);
    let (question, checkpoint) = postgres::question(spec, source, key)?;
    Ok((ResolvedSource::Postgres { connection, question }, checkpoint))
}

/// A queue itself keeps how far its workers have come; what the built-in projector could not handle is in its inbox.
fn inbox(spec: &ProjectionSpec, key: &ProjectionKey) -> Option<CheckpointLocation> {
    spec.is_builtin().then(|| spec.checkpoint_location(&key.namespace, &key.name)).flatten()
}

fn prometheus(
    spec: &ProjectionSpec,
    source: &PrometheusSource,
    key: &ProjectionKey,
) -> Result<(ResolvedSource, Option<CheckpointLocation>), MeasureError> {
    let PrometheusSource { connection, tenant, pending, staleness, arrived, value } = source;
    let connection = ConnectionName::over_http(ServerKind::Prometheus, &key.namespace, connection);
    let text = |query: &Option<String>| query.as_deref().map(Arc::from);
    let queries = Numbers::of(text(pending), text(staleness), text(arrived), text(value)).ok_or_else(|| {
        invalid("spec.source.prometheus must have exactly one of pending and value, and staleness and arrived only beside pending")
    })?;
    has_target(spec, &queries)?;
    let tenant = tenant.as_deref().map(Arc::from);
    Ok((ResolvedSource::Prometheus { connection, tenant, queries }, None))
}

/// A value has a target, and nothing else has one.
fn has_target<Q>(spec: &ProjectionSpec, numbers: &Numbers<Q>) -> Result<(), MeasureError> {
    if numbers.is_value() == spec.lag.value.is_some() {
        return Ok(());
    }
    Err(invalid("spec.lag.value is required where the source tells a value, and has no meaning without it"))
}

fn nats(
    spec: &ProjectionSpec,
    source: &NatsSource,
    key: &ProjectionKey,
) -> Result<(ResolvedSource, Option<CheckpointLocation>), MeasureError> {
    let connection = ConnectionName::new(ServerKind::Nats, &key.namespace, &source.connection);
    let consumers: BTreeSet<&StreamConsumer> = source.consumers.iter().collect();
    if consumers.is_empty() {
        return Err(invalid("spec.source.nats.consumers is empty: name the consumers, each with its stream"));
    }
    if source.connection.database.is_some() {
        return Err(invalid("spec.source.nats.connection.database must be absent: NATS has no databases"));
    }
    // Each name is one part of a subject.
    let is_part = |name: &String| !name.is_empty() && !name.contains(|c: char| ".*>".contains(c) || c.is_whitespace());
    let mut names = consumers.iter().flat_map(|one| [&one.stream, &one.consumer]).chain(&source.domain);
    if !names.all(is_part) {
        return Err(invalid(
            "spec.source.nats: names of streams, consumers and domains are not empty and hold no blanks and none of . * >",
        ));
    }
    let (consumers, domain) = (consumers.into_iter().cloned().collect(), source.domain.clone());
    Ok((ResolvedSource::Nats { connection, consumers, domain }, inbox(spec, key)))
}

fn invalid(message: &str) -> MeasureError {
    MeasureError { reason: Reason::InvalidSpec, message: message.to_owned() }
}
