//! The configuration of a worker of the built-in projector: the file that the operator mounts.
//!
//! No connection string is part of it: those come by the environment, from a Secret, and this comes from a ConfigMap, which users with access to the
//! namespace may read.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};

use super::{coalesce, poison::Poison};
use crate::api::{
    BuiltinProjector, ByteSize, CatchUpSubscription, CoalescedTypes, DocumentOperation, EventRows, EventTable, Failure,
    HumanDuration, KafkaEvent, KafkaIsolation, NatsEvent, OnPoison, Outbox, RabbitMqEvent, RedisEvent, Shards,
    StreamConsumer, StreamGroup,
};

/// How many events one transaction handles at most, where the Projection does not say.
pub const DEFAULT_BATCH_SIZE: u32 = 500;
/// How large an event may be, where the Projection does not say.
pub const DEFAULT_MAX_EVENT_BYTES: u64 = 1 << 20;
/// PostgreSQL holds no larger value.
const LARGEST_EVENT: u64 = 1 << 30;
/// For how long it is remembered which messages of a queue were handled, where the Projection does not say.
pub const DEFAULT_KEEPING: Duration = Duration::from_secs(7 * 24 * 3_600);
/// The same in a read store in Redis, whose memory the notes take.
pub const DEFAULT_KEEPING_IN_REDIS: Duration = Duration::from_secs(24 * 3_600);
const SHORTEST_KEEPING: Duration = Duration::from_secs(3_600);
/// The largest batch that may be asked for, as in the resource's schema.
const LARGEST_BATCH: u32 = 10_000;

/// One projection's work. Written by the operator as JSON under [`crate::names::PROJECTOR_CONFIG_KEY`].
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ProjectorConfig {
    /// `namespace/name` of the Projection: its name in the checkpoint table.
    pub projection: String,
    /// Where the events are.
    pub input: Input,
    /// How many events one transaction handles at most.
    pub batch_size: u32,
    /// An event whose body and stream come to more bytes is not read: its shard waits there.
    pub max_event_bytes: u64,
    /// Types of events of which only the last of a stream is handled.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub coalesce: Vec<CoalescedTypes>,
    /// What becomes of events that fail every time.
    #[serde(default, skip_serializing_if = "Poison::is_default")]
    pub poison: Poison,
    /// Where the read model is, and what to do there for each type of event.
    pub output: Output,
}

/// Where the events are: one variant a kind of source.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Input {
    /// In PostgreSQL.
    Postgres(PostgresInput),
    /// In Kafka.
    Kafka(KafkaInput),
    /// In KurrentDB.
    #[serde(rename = "kurrentdb")]
    KurrentDb(KurrentDbInput),
    /// In a queue, which has no positions.
    Queue(QueueInput),
}

/// An event table in PostgreSQL.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PostgresInput {
    /// The table.
    pub event_table: EventTable,
    /// Which of its rows are events; all where absent.
    #[serde(default, skip_serializing_if = "EventRows::are_all")]
    pub events: EventRows,
    /// How many shards the streams are hashed to.
    pub shards: u32,
}

/// Topics in Kafka. Their partitions are the shards.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct KafkaInput {
    /// The topics.
    pub topics: Vec<String>,
    /// The consumer group to which the offsets are committed, for other tools to see.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// Which records are read.
    #[serde(default)]
    pub isolation: KafkaIsolation,
    /// How a record is read as an event.
    #[serde(default)]
    pub event: KafkaEvent,
}

/// A stream, a category or `$all` of KurrentDB.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct KurrentDbInput {
    /// What is read.
    pub subscription: CatchUpSubscription,
    /// How many shards the streams are hashed to.
    pub shards: u32,
}

/// A queue, of which any worker may be given any message.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct QueueInput {
    /// Which.
    pub queue: QueueKind,
    /// For how long it is remembered which messages were handled.
    pub keep_for: HumanDuration,
    /// There is one worker at a time, which keeps the order of messages as far as all of them can be handled.
    pub alone: bool,
}

/// The kinds of queue.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum QueueKind {
    /// Streams in Redis.
    Redis(RedisStreams),
    /// Consumers of NATS JetStream.
    Nats(NatsConsumers),
    /// Queues in RabbitMQ.
    #[serde(rename = "rabbitmq")]
    RabbitMq(RabbitMqQueues),
    /// An outbox in PostgreSQL.
    Outbox(Box<Outbox>),
}

impl QueueKind {
    /// The rule that is broken, with the field that it is about.
    fn broken_rule(&self) -> Option<(&'static str, &'static str)> {
        let (field, rule, holds) = match self {
            Self::Redis(redis) => {
                ("streams", "must name at least one stream with its group", !redis.streams.is_empty())
            }
            Self::Nats(nats) => ("consumers", "must name at least one consumer", !nats.consumers.is_empty()),
            Self::RabbitMq(rabbitmq) => ("queues", "must name at least one queue", !rabbitmq.queues.is_empty()),
            Self::Outbox(outbox) => (
                "outbox.unsent",
                "must be absent: what is handled is marked in sentAt, or deleted",
                outbox.unsent.is_none(),
            ),
        };
        (!holds).then_some((field, rule))
    }
}

/// Streams in Redis, each read by a consumer group.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RedisStreams {
    /// The streams with their groups.
    pub streams: Vec<StreamGroup>,
    /// How an entry is read as an event.
    #[serde(default)]
    pub event: RedisEvent,
}

/// Consumers of NATS JetStream.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NatsConsumers {
    /// The consumers, each with its stream.
    pub consumers: Vec<StreamConsumer>,
    /// The JetStream domain that the streams are in; that of the server where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// How a message is read as an event.
    #[serde(default)]
    pub event: NatsEvent,
}

/// Queues in RabbitMQ.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RabbitMqQueues {
    /// The virtual host.
    pub vhost: String,
    /// The queues.
    pub queues: Vec<String>,
    /// How a message is read as an event.
    #[serde(default)]
    pub event: RabbitMqEvent,
}

/// Where the read model is, and what to do there for each type of event.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Output {
    /// In PostgreSQL.
    Postgres(PostgresOutput),
    /// In Redis.
    Redis(RedisOutput),
    /// In Elasticsearch or OpenSearch.
    Elasticsearch(ElasticsearchOutput),
}

impl Output {
    /// The types of events that have a handler.
    pub fn event_types(&self) -> Vec<&str> {
        fn of<Handler>(handlers: &BTreeMap<String, Handler>) -> Vec<&str> {
            handlers.keys().map(String::as_str).collect()
        }
        match self {
            Self::Postgres(output) => of(&output.handlers),
            Self::Redis(output) => of(&output.handlers),
            Self::Elasticsearch(output) => of(&output.handlers),
        }
    }
}

/// A read model in PostgreSQL.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PostgresOutput {
    /// The read model's schema; the user's own search path where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schema: Option<String>,
    /// SQL that makes the read model's tables.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub setup: Option<String>,
    /// One SQL statement for each type of event.
    pub handlers: BTreeMap<String, String>,
}

/// A read model in Redis.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RedisOutput {
    /// For each type of event a list of commands, each a list of words.
    pub handlers: BTreeMap<String, Vec<Vec<String>>>,
    /// Other Projections that say so as well may write the same keys.
    #[serde(default, skip_serializing_if = "is_false")]
    pub shared: bool,
}

/// A read model in Elasticsearch or OpenSearch.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ElasticsearchOutput {
    /// The index in which the workers keep how far they have come.
    pub state_index: String,
    /// For each type of event a list of operations.
    pub handlers: BTreeMap<String, Vec<DocumentOperation>>,
    /// Other Projections that say so as well may write to the same indices.
    #[serde(default, skip_serializing_if = "is_false")]
    pub shared: bool,
}

/// So that a configuration that does not say it is as it was, and rolls no workers.
// The signature is serde's.
#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_false(value: &bool) -> bool {
    !value
}

/// Why a configuration cannot be used.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ConfigError {
    /// The file is not what the operator writes.
    #[error(
        "the projector's configuration cannot be read: {0}. Do the operator and the worker's image have the same version?"
    )]
    Unreadable(String),
    /// What is to be coalesced makes no sense.
    #[error("coalesce {0}")]
    Coalesce(String),
    /// A value makes no sense.
    #[error("the projector's configuration: {field} {rule}")]
    Invalid {
        /// The field.
        field: &'static str,
        /// What it must be.
        rule: &'static str,
    },
}

impl ProjectorConfig {
    /// The configuration for a Projection with this built-in projector.
    pub fn new(
        projection: String,
        input: Input,
        output: Output,
        (projector, failure): (&BuiltinProjector, &Failure),
    ) -> Self {
        Self {
            projection,
            input,
            output,
            poison: Poison::of(failure),
            batch_size: projector.batch_size.unwrap_or(DEFAULT_BATCH_SIZE),
            max_event_bytes: projector.max_event_bytes.as_ref().map_or(DEFAULT_MAX_EVENT_BYTES, ByteSize::bytes),
            coalesce: projector.coalesce.clone(),
        }
    }

    /// Reads the file's text.
    ///
    /// # Errors
    /// When it is not JSON of this shape or a value is out of its range.
    pub fn from_json(text: &str) -> Result<Self, ConfigError> {
        let config: Self = serde_json::from_str(text).map_err(|error| ConfigError::Unreadable(error.to_string()))?;
        config.check()?;
        Ok(config)
    }

    /// Holds when every value is within its range.
    ///
    /// # Errors
    /// Names the field that is not.
    pub fn check(&self) -> Result<(), ConfigError> {
        let has_shards = match &self.input {
            Input::Postgres(PostgresInput { shards, .. }) | Input::KurrentDb(KurrentDbInput { shards, .. }) => {
                (1..=Shards::MOST).contains(shards)
            }
            Input::Kafka(_) | Input::Queue(_) => true,
        };
        let has_topics = match &self.input {
            Input::Postgres(_) | Input::KurrentDb(_) | Input::Queue(_) => true,
            Input::Kafka(input) => !input.topics.is_empty(),
        };
        let coalesces_documents = matches!(self.output, Output::Elasticsearch(_)) && !self.coalesce.is_empty();
        let is_queue = matches!(self.input, Input::Queue(_));
        let is_kept = match &self.input {
            Input::Postgres(_) | Input::Kafka(_) | Input::KurrentDb(_) => true,
            Input::Queue(QueueInput { queue, keep_for, alone: _ }) => {
                if let Some((field, rule)) = queue.broken_rule() {
                    return Err(ConfigError::Invalid { field, rule });
                }
                keep_for.0 >= SHORTEST_KEEPING
            }
        };
        let rules = [
            (
                "projection",
                "must be namespace/name",
                self.projection.split('/').filter(|part| !part.is_empty()).count() == 2,
            ),
            ("shards", "must be from 1 to 1024", has_shards),
            ("topics", "must name at least one topic", has_topics),
            ("keepFor", "must be at least 1h", is_kept),
            ("batchSize", "must be from 1 to 10000", (1..=LARGEST_BATCH).contains(&self.batch_size)),
            ("maxEventBytes", "must be from 1Ki to 1Gi", (1_024..=LARGEST_EVENT).contains(&self.max_event_bytes)),
            (
                "coalesce",
                "must be absent with elasticsearch, which writes each document once a batch without it",
                !coalesces_documents,
            ),
            (
                "coalesce",
                "must be absent where events come from a queue, which keeps no order",
                !is_queue || self.coalesce.is_empty(),
            ),
            (
                "poison",
                "must be Pause but for a source with positions and a read store in PostgreSQL",
                self.poison.on_poison == OnPoison::Pause || (!is_queue && matches!(self.output, Output::Postgres(_))),
            ),
            ("poison.maxParked", "must be at least 1", self.poison.max_parked >= 1),
            ("handlers", "must name at least one type of event", !self.output.event_types().is_empty()),
        ];
        if let Some((field, rule, _)) = rules.into_iter().find(|(_, _, holds)| !holds) {
            return Err(ConfigError::Invalid { field, rule });
        }
        coalesce::check(&self.coalesce, &self.output.event_types()).map_err(ConfigError::Coalesce)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(shards: u32) -> Input {
        Input::Postgres(PostgresInput { event_table: EventTable::default(), events: EventRows::All, shards })
    }

    fn config() -> ProjectorConfig {
        ProjectorConfig {
            projection: "shop/orders".to_owned(),
            input: table(24),
            batch_size: DEFAULT_BATCH_SIZE,
            max_event_bytes: DEFAULT_MAX_EVENT_BYTES,
            coalesce: Vec::new(),
            poison: Poison::default(),
            output: Output::Postgres(PostgresOutput {
                handlers: BTreeMap::from([("OrderPlaced".to_owned(), "select 1".to_owned())]),
                ..PostgresOutput::default()
            }),
        }
    }

    #[test]
    fn what_the_operator_writes_the_worker_reads() {
        let text = serde_json::to_string(&config()).unwrap();
        assert!(text.contains("\"eventTable\":{") && text.contains("\"batchSize\":500"), "{text}");
        assert_eq!(ProjectorConfig::from_json(&text), Ok(config()));
    }

    #[test]
    fn commands_for_redis_survive_the_way_to_the_worker() {
        let handlers = BTreeMap::from([("Placed".to_owned(), vec![vec!["SET".to_owned(), "{stream}".to_owned()]])]);
        let config = ProjectorConfig { output: Output::Redis(RedisOutput { handlers, shared: false }), ..config() };
        let text = serde_json::to_string(&config).unwrap();
        assert!(text.contains(r#""output":{"redis":{"handlers":{"Placed":[["SET","{stream}"]]}}}"#), "{text}");
        assert_eq!(ProjectorConfig::from_json(&text), Ok(config));
    }

    #[test]
    fn consumers_of_nats_survive_the_way_to_the_worker() {
        let json = r#"{"consumers":[{"stream":"orders","consumer":"list"}],"event":{"type":{"subjectToken":-1}}}"#;
        let input = Input::Queue(QueueInput {
            queue: QueueKind::Nats(serde_json::from_str(json).unwrap()),
            keep_for: HumanDuration(DEFAULT_KEEPING),
            alone: false,
        });
        let config = ProjectorConfig { input, ..config() };
        let text = serde_json::to_string(&config).unwrap();
        assert!(text.contains(&format!(r#""queue":{{"nats":{json}}}"#)), "{text}");
        assert_eq!(ProjectorConfig::from_json(&text), Ok(config));
    }

    #[test]
    fn queues_of_rabbitmq_survive_the_way_to_the_worker() {
        let json = r#"{"vhost":"/","queues":["orders"],"event":{"id":{"header":"event-id"}}}"#;
        let queue = QueueKind::RabbitMq(serde_json::from_str(json).unwrap());
        let input = Input::Queue(QueueInput { queue, keep_for: HumanDuration(DEFAULT_KEEPING), alone: true });
        let config = ProjectorConfig { input, ..config() };
        let text = serde_json::to_string(&config).unwrap();
        assert!(text.contains(&format!(r#""queue":{{"rabbitmq":{json}}}"#)), "{text}");
        assert_eq!(ProjectorConfig::from_json(&text), Ok(config));
    }

    #[test]
    fn documents_for_elasticsearch_survive_the_way_to_the_worker() {
        let json = r#"{"index":{"index":"orders","id":"{stream}","document":{"total":"{data.total}"}}}"#;
        let handlers = BTreeMap::from([("Placed".to_owned(), vec![serde_json::from_str(json).unwrap()])]);
        let output = ElasticsearchOutput { state_index: "state".to_owned(), handlers, shared: false };
        let config = ProjectorConfig { output: Output::Elasticsearch(output), ..config() };
        let text = serde_json::to_string(&config).unwrap();
        assert!(
            text.contains(&format!(r#""elasticsearch":{{"stateIndex":"state","handlers":{{"Placed":[{json}]}}}}"#)),
            "{text}"
        );
        assert_eq!(ProjectorConfig::from_json(&text), Ok(config));
    }

    #[test]
    fn a_value_out_of_range_is_refused_by_its_name() {
        for (broken, field) in [
            (ProjectorConfig { projection: "orders".to_owned(), ..config() }, "projection"),
            (ProjectorConfig { input: table(0), ..config() }, "shards"),
            (ProjectorConfig { input: table(1025), ..config() }, "shards"),
            (ProjectorConfig { input: Input::Kafka(KafkaInput::default()), ..config() }, "topics"),
            (ProjectorConfig { batch_size: 0, ..config() }, "batchSize"),
            (ProjectorConfig { max_event_bytes: 1_023, ..config() }, "maxEventBytes"),
            (ProjectorConfig { output: Output::Redis(RedisOutput::default()), ..config() }, "handlers"),
        ] {
            assert!(broken.check().unwrap_err().to_string().contains(field), "{broken:?}");
        }
    }
}
