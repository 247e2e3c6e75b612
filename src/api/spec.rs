//! What a user declares. Every rule that needs no cluster is checked by the API server: by the schema, or by a CEL rule
//! whose message names the field.

use kube::{CustomResource, KubeSchema};
use regex::Regex;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    CatchUp, Checkpoint, Failure, KafkaSource, KurrentDbSource, Lag, NatsSource, PostgresSource, ProjectionStatus,
    Projector, PrometheusSource, RabbitMqSource, ReadStore, RedisSource, Rollout, Scaling, ScrapeSource,
};

/// A rule for Projections whose versions are built side by side.
macro_rules! blue_green {
    ($rule:literal) => {
        concat!("!has(self.rollout) || !has(self.rollout.strategy) || self.rollout.strategy != 'BlueGreen' || ", $rule)
    };
}

/// A rule for Projections whose readers are led from version to version by this field of `rollout.switch`.
macro_rules! led_by {
    ($switch:literal, $rule:literal) => {
        concat!("!has(self.rollout) || !has(self.rollout.switch) || !has(self.rollout.switch.", $switch, ") || ", $rule)
    };
}

/// A Projection runs the workers that turn the events of one source into one read model, measures how far behind they
/// are, and scales them so that no event waits longer than the lag target.
#[derive(Clone, CustomResource, Debug, Deserialize, KubeSchema, PartialEq, Serialize)]
#[kube(
    group = "projectionist.dev",
    version = "v1alpha1",
    kind = "Projection",
    plural = "projections",
    singular = "projection",
    shortname = "prj",
    category = "projectionist",
    namespaced,
    status = "ProjectionStatus",
    derive = "PartialEq",
    doc = "A Projection runs the workers that turn the events of one source into one read model, measures how far behind they are, and scales them so that no event waits longer than the lag target.",
    validation = Rule::new("self.metadata.name.size() <= 52").message("metadata.name must have at most 52 characters, since the names of workers are made from it"),
    validation = Rule::new("!has(self.spec.version) || self.metadata.name.size() + self.spec.version.size() <= 51").message("spec.version and metadata.name must have at most 51 characters together, since the names of workers are made from them"),
    selectable = ".spec.readStore.postgres.connection.secretRef.name",
    selectable = ".spec.readStore.redis.connection.secretRef.name",
    selectable = ".spec.readStore.elasticsearch.connection.secretRef.name",
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Pending", type_ = "integer", json_path = ".status.pending.value"),
    printcolumn(name = "Staleness", type_ = "number", json_path = ".status.stalenessSeconds", description = "Age of the oldest unprocessed event, in seconds"),
    printcolumn(name = "Target", type_ = "string", json_path = ".spec.lag.target"),
    printcolumn(name = "Workers", type_ = "string", json_path = ".status.workers.summary", description = "ready/required"),
    printcolumn(name = "Bound-By", type_ = "string", json_path = ".status.workers.boundBy"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Version", type_ = "string", priority = 1, json_path = ".status.version"),
    printcolumn(name = "Reason", type_ = "string", priority = 1, json_path = ".status.conditions[?(@.type==\"Ready\")].reason"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[x_kube(
    validation = Rule::new("!has(self.projector) || !has(self.projector.builtin) || !has(self.projector.builtin.handlers) || (has(self.readStore) && has(self.readStore.postgres))").message("spec.readStore.postgres is required with spec.projector.builtin.handlers, which write there"),
    validation = Rule::new("!has(self.projector) || !has(self.projector.builtin) || !has(self.projector.builtin.redis) || (has(self.readStore) && has(self.readStore.redis))").message("spec.readStore.redis is required with spec.projector.builtin.redis, whose commands write there"),
    validation = Rule::new("!has(self.projector) || !has(self.projector.builtin) || !has(self.projector.builtin.elasticsearch) || (has(self.readStore) && has(self.readStore.elasticsearch))").message("spec.readStore.elasticsearch is required with spec.projector.builtin.elasticsearch, whose documents are there"),
    validation = Rule::new("!has(self.failure) || !has(self.failure.onPoison) || self.failure.onPoison == 'Pause' || (has(self.projector) && has(self.projector.builtin) && has(self.projector.builtin.handlers) && !has(self.source.redis) && !has(self.source.nats) && !has(self.source.rabbitmq) && (!has(self.source.postgres) || !has(self.source.postgres.outbox)))").message("spec.failure.onPoison must be Pause: Park and Skip are for spec.projector.builtin.handlers (SQL in a read store in PostgreSQL) and a source with positions, such as an event table, Kafka or KurrentDB with catchUp"),
    validation = Rule::new("!has(self.failure) || !has(self.failure.onPoison) || self.failure.onPoison == 'Pause' || !has(self.scaling) || !has(self.scaling.ordering) || self.scaling.ordering != 'Strict'").message("spec.failure.onPoison must be Pause with spec.scaling.ordering Strict, which promises the order of all events: one that is set aside is missed by those of other streams that follow it"),
    validation = Rule::new("!has(self.projector) || !has(self.projector.builtin) || !has(self.checkpoint)").message("spec.checkpoint must be absent with spec.projector.builtin, which keeps its own in the read store"),
    validation = Rule::new("!has(self.projector) || !has(self.projector.builtin) || ((!has(self.source.postgres) || (!has(self.source.postgres.connection.host) && !has(self.source.postgres.connection.port))) && (!has(self.source.redis) || (!has(self.source.redis.connection.host) && !has(self.source.redis.connection.port))) && (!has(self.source.nats) || (!has(self.source.nats.connection.host) && !has(self.source.nats.connection.port))) && (!has(self.source.rabbitmq) || (!has(self.source.rabbitmq.connection.host) && !has(self.source.rabbitmq.connection.port))) && (!has(self.source.kurrentdb) || (!has(self.source.kurrentdb.connection.host) && !has(self.source.kurrentdb.connection.port))) && (!has(self.readStore) || !has(self.readStore.postgres) || (!has(self.readStore.postgres.connection.host) && !has(self.readStore.postgres.connection.port))) && (!has(self.readStore) || !has(self.readStore.redis) || (!has(self.readStore.redis.connection.host) && !has(self.readStore.redis.connection.port))) && (!has(self.readStore) || !has(self.readStore.elasticsearch) || (!has(self.readStore.elasticsearch.connection.host) && !has(self.readStore.elasticsearch.connection.port))))").message("connection.host and connection.port must be absent with spec.projector.builtin, whose workers cannot see whether the Secret allows them: put host and port into the Secret"),
    validation = Rule::new("!has(self.projector) || !has(self.projector.builtin) || !has(self.source.postgres) || !has(self.source.postgres.eventTable) || !has(self.source.postgres.eventTable.shard)").message("spec.source.postgres.eventTable.shard must be absent with spec.projector.builtin, whose shards are hashes of the stream"),
    validation = Rule::new("!has(self.checkpoint) || !has(self.checkpoint.readStore) || !has(self.checkpoint.readStore.shardColumn) || !has(self.source.postgres) || !has(self.source.postgres.eventTable) || has(self.source.postgres.eventTable.shard)").message("spec.checkpoint.readStore.shardColumn needs spec.source.postgres.eventTable.shard, which tells the shard of an event"),
    validation = Rule::new("!has(self.source.postgres) || !has(self.source.postgres.eventTable) || (has(self.projector) && has(self.projector.builtin)) || has(self.checkpoint)").message("spec.checkpoint is required: an event table does not know how far a projector has come"),
    validation = Rule::new("!has(self.source.postgres) || !has(self.source.postgres.outbox) || !has(self.checkpoint)").message("spec.checkpoint must be absent with spec.source.postgres.outbox, whose table says what has been sent"),
    validation = Rule::new("!has(self.source.postgres) || !has(self.source.postgres.outbox) || !has(self.projector) || !has(self.projector.builtin) || !has(self.source.postgres.outbox.unsent)").message("spec.source.postgres.outbox.unsent must be absent with spec.projector.builtin, whose workers mark what they have handled: name the column in sentAt, or have rows deleted by naming neither"),
    validation = Rule::new("!has(self.source.postgres) || !has(self.source.postgres.outbox) || !has(self.projector) || !has(self.projector.builtin) || (has(self.scaling) && has(self.scaling.ordering) && self.scaling.ordering != 'PerKey')").message("spec.scaling.ordering must be None or Strict with spec.source.postgres.outbox and spec.projector.builtin: workers that take rows side by side keep no order by key. With Strict there is one worker, which keeps the order"),
    validation = Rule::new("!has(self.source.postgres) || !has(self.source.postgres.outbox) || !has(self.projector) || !has(self.projector.builtin) || !has(self.scaling) || !has(self.scaling.shards) || string(self.scaling.shards) == 'Auto'").message("spec.scaling.shards must be absent with spec.source.postgres.outbox and spec.projector.builtin: an outbox has no shards"),
    validation = Rule::new("!has(self.source.postgres) || !has(self.source.postgres.outbox) || !has(self.source.postgres.outbox.event) || (has(self.projector) && has(self.projector.builtin))").message("spec.source.postgres.outbox.event has no meaning without spec.projector.builtin: other relays read rows themselves"),
    validation = Rule::new("!has(self.source.postgres) || !has(self.source.postgres.marten) || !has(self.checkpoint)").message("spec.checkpoint must be absent with spec.source.postgres.marten, which keeps it in mt_event_progression"),
    validation = Rule::new("!has(self.source.postgres) || !has(self.source.postgres.messageDb) || (has(self.projector) && has(self.projector.builtin)) || has(self.source.postgres.messageDb.positionStream) != has(self.checkpoint)").message("spec.source.postgres.messageDb: either positionStream or spec.checkpoint says how far the consumer has come"),
    validation = Rule::new("!has(self.source.postgres) || !has(self.source.postgres.commanded) || !has(self.checkpoint)").message("spec.checkpoint must be absent with spec.source.postgres.commanded, which keeps it in its table subscriptions"),
    validation = Rule::new("!has(self.source.postgres) || !has(self.source.postgres.emmett) || !has(self.checkpoint)").message("spec.checkpoint must be absent with spec.source.postgres.emmett, which keeps it in emt_processors"),
    validation = Rule::new("!has(self.source.postgres) || !has(self.source.postgres.akka) || !has(self.checkpoint)").message("spec.checkpoint must be absent with spec.source.postgres.akka, which keeps it in its table of timestamp offsets"),
    validation = Rule::new("!has(self.source.postgres) || !has(self.source.postgres.query) || !has(self.checkpoint)").message("spec.checkpoint must be absent with spec.source.postgres.query, which says in its columns what waits"),
    validation = Rule::new("!has(self.source.postgres) || !has(self.source.postgres.replicationSlot) || !has(self.checkpoint)").message("spec.checkpoint must be absent with spec.source.postgres.replicationSlot, which keeps it"),
    validation = Rule::new("!has(self.source.postgres) || !has(self.source.postgres.replicationSlot) || !has(self.projector) || (has(self.scaling) && has(self.scaling.ordering) && self.scaling.ordering == 'Strict')").message("spec.scaling.ordering must be Strict with spec.source.postgres.replicationSlot: a slot serves one consumer at a time"),
    validation = Rule::new("!has(self.source.nats) || !has(self.checkpoint)").message("spec.checkpoint must be absent with spec.source.nats, whose consumers keep it"),
    validation = Rule::new("!has(self.source.prometheus) || !has(self.checkpoint)").message("spec.checkpoint must be absent with spec.source.prometheus, whose numbers say what waits"),
    validation = Rule::new("has(self.lag.value) == ((has(self.source.prometheus) && has(self.source.prometheus.value)) || (has(self.source.scrape) && has(self.source.scrape.value)))").message("spec.lag.value is required with spec.source.prometheus.value and spec.source.scrape.value, and has no meaning without one"),
    validation = Rule::new("!has(self.lag.value) || !has(self.lag.value.target) || !has(self.scaling) || !has(self.scaling.minWorkers) || self.scaling.minWorkers > 0").message("spec.scaling.minWorkers must be at least 1 with spec.lag.value.target, which multiplies the workers that are there: use averageTarget to scale to zero"),
    validation = Rule::new("!has(self.lag.value) || !has(self.lag.pendingPerWorker)").message("spec.lag.pendingPerWorker has no meaning with spec.lag.value"),
    validation = Rule::new("!has(self.source.scrape) || !has(self.checkpoint)").message("spec.checkpoint must be absent with spec.source.scrape, whose numbers say what waits"),
    validation = Rule::new("!has(self.source.scrape) || !has(self.source.scrape.pods) || has(self.projector)").message("spec.projector is required with spec.source.scrape.pods, which are its pods"),
    validation = Rule::new("!has(self.source.scrape) || !has(self.source.scrape.pods) || !has(self.scaling) || !has(self.scaling.minWorkers) || self.scaling.minWorkers > 0").message("spec.scaling.minWorkers must be at least 1 with spec.source.scrape.pods: without a worker no page tells what waits"),
    validation = Rule::new("!has(self.source.scrape) || !has(self.source.scrape.pods) || !has(self.source.scrape.value) || !has(self.lag.value) || !has(self.lag.value.target) || (has(self.source.scrape.value.aggregate) && self.source.scrape.value.aggregate != 'Sum')").message("spec.source.scrape.value.aggregate must be Max or Average with spec.source.scrape.pods and spec.lag.value.target: a sum over the pods grows with their number"),
    validation = Rule::new("!has(self.source.rabbitmq) || !has(self.checkpoint)").message("spec.checkpoint must be absent with spec.source.rabbitmq, whose queues hold what has not been handled"),
    validation = Rule::new("!has(self.source.redis) || !has(self.checkpoint)").message("spec.checkpoint must be absent with spec.source.redis, whose consumer groups keep it"),
    validation = Rule::new("!has(self.projector) || !has(self.projector.builtin) || (has(self.source.postgres) && (has(self.source.postgres.eventTable) || has(self.source.postgres.outbox) || has(self.source.postgres.marten) || has(self.source.postgres.messageDb) || has(self.source.postgres.commanded) || has(self.source.postgres.emmett))) || has(self.source.kafka) || (has(self.source.kurrentdb) && has(self.source.kurrentdb.catchUp)) || (has(self.source.redis) && has(self.source.redis.streams)) || has(self.source.nats) || (has(self.source.rabbitmq) && has(self.source.rabbitmq.queues))").message("spec.source.postgres with eventTable, outbox, marten, messageDb, commanded or emmett, spec.source.kafka, spec.source.kurrentdb with catchUp, spec.source.redis with streams, spec.source.nats, or spec.source.rabbitmq with queues is required with spec.projector.builtin, which reads these tables, topics, streams, consumers and queues"),
    validation = Rule::new("!has(self.source.redis) || !has(self.projector) || !has(self.projector.builtin) || !has(self.source.redis.lists)").message("spec.source.redis.lists must be absent with spec.projector.builtin, which reads streams"),
    validation = Rule::new("(!has(self.source.redis) && !has(self.source.nats) && !has(self.source.rabbitmq)) || !has(self.projector) || !has(self.projector.builtin) || (has(self.scaling) && has(self.scaling.ordering) && self.scaling.ordering != 'PerKey')").message("spec.scaling.ordering must be None or Strict with spec.source.redis, nats or rabbitmq and spec.projector.builtin: workers that share a queue keep no order by key. With Strict there is one worker, which keeps the order"),
    validation = Rule::new("(!has(self.source.redis) && !has(self.source.nats) && !has(self.source.rabbitmq)) || !has(self.projector) || !has(self.projector.builtin) || !has(self.scaling) || !has(self.scaling.shards) || string(self.scaling.shards) == 'Auto'").message("spec.scaling.shards must be absent with spec.source.redis, nats or rabbitmq and spec.projector.builtin: a queue, or a stream that a group or consumer reads, has no shards"),
    validation = Rule::new("!has(self.source.redis) || !has(self.source.redis.event) || (has(self.projector) && has(self.projector.builtin))").message("spec.source.redis.event has no meaning without spec.projector.builtin: other consumers read entries themselves"),
    validation = Rule::new("!has(self.source.nats) || !has(self.source.nats.event) || (has(self.projector) && has(self.projector.builtin))").message("spec.source.nats.event has no meaning without spec.projector.builtin: other workers read messages themselves"),
    validation = Rule::new("!has(self.source.rabbitmq) || !has(self.source.rabbitmq.event) || (has(self.projector) && has(self.projector.builtin))").message("spec.source.rabbitmq.event has no meaning without spec.projector.builtin: other consumers read messages themselves"),
    validation = Rule::new("!has(self.source.rabbitmq) || !has(self.source.rabbitmq.streams) || !has(self.projector) || !has(self.projector.builtin)").message("spec.source.rabbitmq.streams must be absent with spec.projector.builtin, which reads queues"),
    validation = Rule::new("!has(self.projector) || !has(self.projector.builtin) || !has(self.projector.builtin.inbox) || has(self.source.redis) || has(self.source.nats) || has(self.source.rabbitmq) || (has(self.source.postgres) && has(self.source.postgres.outbox))").message("spec.projector.builtin.inbox has no meaning without spec.source.redis, nats, rabbitmq or postgres.outbox: other sources have positions"),
    validation = Rule::new("!has(self.source.kafka) || !has(self.source.kafka.event) || (has(self.projector) && has(self.projector.builtin))").message("spec.source.kafka.event has no meaning without spec.projector.builtin: other consumers read records themselves"),
    validation = Rule::new("!has(self.source.kafka) || !has(self.source.kafka.connection.bootstrapServers) || !has(self.projector) || !has(self.projector.builtin)").message("spec.source.kafka.connection.bootstrapServers must be absent with spec.projector.builtin, whose workers cannot see whether the Secret allows them: put the servers into the Secret"),
    validation = Rule::new("!has(self.source.kafka) || !has(self.projector) || !has(self.projector.builtin) || !has(self.scaling) || !has(self.scaling.shards) || string(self.scaling.shards) == 'Auto'").message("spec.scaling.shards must be absent with spec.source.kafka and spec.projector.builtin, whose shards are the partitions"),
    validation = Rule::new("!has(self.projector) || !has(self.projector.builtin) || !has(oldSelf.projector) || !has(oldSelf.projector.builtin) || !has(oldSelf.source.kafka) || (has(self.source.kafka) && oldSelf.source.kafka.topics.all(topic, topic in self.source.kafka.topics))").message("spec.source.kafka.topics: no topic can be taken away from a built-in projector, which has checkpoints for its partitions. Delete the Projection and create it under another name to rebuild"),
    validation = Rule::new("!has(self.source.kafka) || (has(self.projector) && has(self.projector.builtin)) || has(self.source.kafka.group) != has(self.checkpoint)").message("spec.source.kafka: either group or spec.checkpoint says how far the consumers have come, and there must be exactly one of them: group where a consumer group commits to Kafka, spec.checkpoint where the offsets are stored in the read store"),
    validation = Rule::new("!has(self.source.postgres) || !has(self.source.postgres.marten) || has(self.source.postgres.marten.projection) != (has(self.projector) && has(self.projector.builtin))").message("spec.source.postgres.marten.projection is required, and must be absent with spec.projector.builtin, which keeps its own checkpoint in the read store"),
    validation = Rule::new("!has(self.source.postgres) || !has(self.source.postgres.commanded) || has(self.source.postgres.commanded.subscription) != (has(self.projector) && has(self.projector.builtin))").message("spec.source.postgres.commanded.subscription is required, and must be absent with spec.projector.builtin, which keeps its own checkpoint in the read store"),
    validation = Rule::new("!has(self.source.postgres) || !has(self.source.postgres.emmett) || has(self.source.postgres.emmett.processor) != (has(self.projector) && has(self.projector.builtin))").message("spec.source.postgres.emmett.processor is required, and must be absent with spec.projector.builtin, which keeps its own checkpoint in the read store"),
    validation = Rule::new("!has(self.projector) || !has(self.projector.builtin) || !has(self.source.postgres) || !has(self.source.postgres.commanded) || !has(self.source.postgres.commanded.stream) || self.source.postgres.commanded.stream == '$all'").message("spec.source.postgres.commanded.stream must be absent with spec.projector.builtin, which reads the events of all streams"),
    validation = Rule::new("!has(self.projector) || !has(self.projector.builtin) || !has(self.source.postgres) || !has(self.source.postgres.emmett) || !has(self.source.postgres.emmett.version) || self.source.postgres.emmett.version == 1").message("spec.source.postgres.emmett.version must be absent with spec.projector.builtin, which is no processor of Emmett: to rebuild, create the Projection under another name"),
    validation = Rule::new("!has(self.projector) || !has(self.projector.builtin) || !has(self.source.postgres) || !has(self.source.postgres.messageDb) || (!has(self.source.postgres.messageDb.positionStream) && !has(self.source.postgres.messageDb.consumerGroup))").message("spec.source.postgres.messageDb.positionStream and consumerGroup must be absent with spec.projector.builtin, which keeps its own checkpoint, and whose workers share the streams among themselves"),
    validation = Rule::new("!has(self.projector) || !has(self.projector.builtin) || !has(oldSelf.projector) || !has(oldSelf.projector.builtin) || !has(self.source.postgres) || !has(oldSelf.source.postgres) || (has(self.source.postgres.eventTable) == has(oldSelf.source.postgres.eventTable) && has(self.source.postgres.outbox) == has(oldSelf.source.postgres.outbox) && has(self.source.postgres.marten) == has(oldSelf.source.postgres.marten) && has(self.source.postgres.messageDb) == has(oldSelf.source.postgres.messageDb) && has(self.source.postgres.commanded) == has(oldSelf.source.postgres.commanded) && has(self.source.postgres.emmett) == has(oldSelf.source.postgres.emmett) && (!has(self.source.postgres.marten) || self.source.postgres.marten == oldSelf.source.postgres.marten) && (!has(self.source.postgres.messageDb) || self.source.postgres.messageDb == oldSelf.source.postgres.messageDb) && (!has(self.source.postgres.commanded) || self.source.postgres.commanded == oldSelf.source.postgres.commanded) && (!has(self.source.postgres.emmett) || self.source.postgres.emmett == oldSelf.source.postgres.emmett))").message("spec.source.postgres.marten, messageDb, commanded and emmett cannot be changed for a built-in projector: its checkpoint counts positions of these events. Delete the Projection and create it again"),
    validation = Rule::new("!has(self.source.kafka) || !has(self.checkpoint) || (!has(self.checkpoint.readStore) && (!has(self.checkpoint.redis) || (has(self.checkpoint.redis.layout) && self.checkpoint.redis.layout == 'FieldPerShard')))").message("spec.checkpoint must hold an offset for each partition with spec.source.kafka: kafkaOffsets, redis with layout FieldPerShard, or elasticsearch"),
    validation = Rule::new("!has(self.source.kafka) || !has(self.source.kafka.storedOffset) || has(self.checkpoint)").message("spec.source.kafka.storedOffset has no meaning without spec.checkpoint: what a consumer group commits is the offset that is read next"),
    validation = Rule::new("!has(self.checkpoint) || !has(self.checkpoint.kafkaOffsets) || has(self.source.kafka)").message("spec.source.kafka is required with spec.checkpoint.kafkaOffsets, whose rows are offsets of its partitions"),
    validation = Rule::new("!has(self.checkpoint) || !has(self.checkpoint.kafkaOffsets) || (has(self.readStore) && has(self.readStore.postgres))").message("spec.readStore.postgres is required with spec.checkpoint.kafkaOffsets, which is read there"),
    validation = Rule::new("!has(self.source.kurrentdb) || (has(self.projector) && has(self.projector.builtin)) || has(self.source.kurrentdb.catchUp) == has(self.checkpoint)").message("spec.checkpoint is required with spec.source.kurrentdb.catchUp, and must be absent with spec.source.kurrentdb.persistentSubscriptions, which keep it"),
    validation = Rule::new("!has(self.projector) || !has(self.projector.builtin) || !has(oldSelf.projector) || !has(oldSelf.projector.builtin) || !has(oldSelf.source.kurrentdb) || !has(oldSelf.source.kurrentdb.catchUp) || (has(self.source.kurrentdb) && has(self.source.kurrentdb.catchUp) && self.source.kurrentdb.catchUp == oldSelf.source.kurrentdb.catchUp)").message("spec.source.kurrentdb.catchUp cannot be changed for a built-in projector, whose checkpoints are positions of what it reads. Delete the Projection and create it under another name to rebuild"),
    validation = Rule::new("!has(self.checkpoint) || !has(self.checkpoint.readStore) || (has(self.readStore) && has(self.readStore.postgres))").message("spec.readStore.postgres is required with spec.checkpoint.readStore, which is read there"),
    validation = Rule::new("!has(self.checkpoint) || !has(self.checkpoint.redis) || (has(self.readStore) && has(self.readStore.redis))").message("spec.readStore.redis is required with spec.checkpoint.redis, which is read there"),
    validation = Rule::new("!has(self.checkpoint) || !has(self.checkpoint.elasticsearch) || (has(self.readStore) && has(self.readStore.elasticsearch))").message("spec.readStore.elasticsearch is required with spec.checkpoint.elasticsearch, which is read there"),
    validation = Rule::new("!has(self.checkpoint) || !has(self.checkpoint.redis) || !has(self.checkpoint.redis.layout) || self.checkpoint.redis.layout != 'KeyPerShard' || (has(self.scaling) && has(self.scaling.shards) && string(self.scaling.shards) != 'Auto')").message("spec.scaling.shards must be a number with spec.checkpoint.redis.layout KeyPerShard, whose keys are numbered from 0"),
    validation = Rule::new("!has(self.projector) || !has(self.projector.builtin) || !has(self.projector.builtin.coalesce) || !has(self.scaling) || !has(self.scaling.ordering) || self.scaling.ordering != 'Strict'").message("spec.projector.builtin.coalesce must be absent with spec.scaling.ordering Strict, which promises the order of all events: an event that is left out is missed by those of other streams that follow it"),
    validation = Rule::new("!has(self.projector) || !has(self.projector.builtin) || has(self.source.redis) || has(self.source.nats) || has(self.source.rabbitmq) || (has(self.source.postgres) && has(self.source.postgres.outbox)) || !has(self.scaling) || !has(self.scaling.ordering) || self.scaling.ordering != 'None'").message("spec.scaling.ordering must be PerKey or Strict with spec.projector.builtin, which keeps the order of each stream"),
    validation = Rule::new("!has(self.projector) || !has(self.projector.builtin) || !has(oldSelf.projector) || !has(oldSelf.projector.builtin) || (has(self.scaling) && has(self.scaling.shards) ? string(self.scaling.shards) : 'Auto') == (has(oldSelf.scaling) && has(oldSelf.scaling.shards) ? string(oldSelf.scaling.shards) : 'Auto')").message("spec.scaling.shards cannot be changed for a built-in projector: each shard has its own checkpoint. Delete the Projection and create it under another name to rebuild"),
    validation = Rule::new("!has(self.projector) || !has(self.projector.builtin) || !has(oldSelf.projector) || !has(oldSelf.projector.builtin) || ((has(self.scaling) && has(self.scaling.ordering) && self.scaling.ordering == 'Strict') == (has(oldSelf.scaling) && has(oldSelf.scaling.ordering) && oldSelf.scaling.ordering == 'Strict'))").message("spec.scaling.ordering cannot be changed to or from Strict for a built-in projector: it decides the shards, and each has its own checkpoint"),
    validation = Rule::new("!has(self.projector) || !has(self.projector.builtin) || !has(oldSelf.projector) || !has(oldSelf.projector.builtin) || !has(self.source.postgres) || !has(oldSelf.source.postgres) || !has(self.source.postgres.eventTable) || !has(oldSelf.source.postgres.eventTable) || (self.source.postgres.eventTable.table == oldSelf.source.postgres.eventTable.table && self.source.postgres.eventTable.position == oldSelf.source.postgres.eventTable.position && self.source.postgres.eventTable.stream == oldSelf.source.postgres.eventTable.stream)").message("spec.source.postgres.eventTable: table, position and stream cannot be changed for a built-in projector, whose checkpoints are positions of that table by the hash of that stream. Delete the Projection and create it under another name to rebuild"),
    validation = Rule::new("!has(self.projector) || !has(self.projector.builtin) || !has(oldSelf.projector) || !has(oldSelf.projector.builtin) || (has(self.source.postgres) == has(oldSelf.source.postgres) && has(self.source.kafka) == has(oldSelf.source.kafka) && has(self.source.redis) == has(oldSelf.source.redis) && has(self.source.nats) == has(oldSelf.source.nats) && has(self.source.rabbitmq) == has(oldSelf.source.rabbitmq) && has(self.source.kurrentdb) == has(oldSelf.source.kurrentdb))").message("spec.source cannot be changed to another kind for a built-in projector: its checkpoint and its notes are of events of that source. Delete the Projection and create it under another name to rebuild"),
    validation = Rule::new("!has(self.readStore) || !has(self.readStore.postgres) || !has(self.readStore.postgres.schema) || !self.readStore.postgres.schema.contains('{version}') || has(self.version)").message("spec.version is required where spec.readStore.postgres.schema holds {version}"),
    validation = Rule::new("!has(self.readStore) || !has(self.readStore.postgres) || !has(self.readStore.postgres.schema) || !self.readStore.postgres.schema.contains('{version}') || !has(self.version) || !has(oldSelf.version) || self.version == oldSelf.version || (has(self.rollout) && has(self.rollout.strategy) && self.rollout.strategy == 'BlueGreen')").message("spec.version cannot be changed where spec.readStore.postgres.schema holds {version}: in the schema of another version the read model begins empty, and readers see the old one. Create a Projection with spec.rollout.strategy BlueGreen to rebuild, or name a schema without {version}"),
    validation = Rule::new(blue_green!("has(self.version)")).message("spec.version is required with spec.rollout.strategy BlueGreen: its runs are told apart by it"),
    validation = Rule::new(blue_green!("has(self.rollout.switch)")).message("spec.rollout.switch is required with spec.rollout.strategy BlueGreen: it says how readers are led to a version"),
    validation = Rule::new(led_by!("postgresView", "(has(self.readStore) && has(self.readStore.postgres) && has(self.readStore.postgres.schema) && self.readStore.postgres.schema.contains('{version}'))")).message("spec.readStore.postgres.schema must hold {version} with spec.rollout.switch.postgresView: each version is built in a schema of its own"),
    validation = Rule::new(led_by!("redisPointer", "(has(self.readStore) && has(self.readStore.redis))")).message("spec.readStore.redis is required with spec.rollout.switch.redisPointer: the key is there"),
    validation = Rule::new(led_by!("elasticsearchAliases", "(has(self.readStore) && has(self.readStore.elasticsearch))")).message("spec.readStore.elasticsearch is required with spec.rollout.switch.elasticsearchAliases: the aliases are there"),
    validation = Rule::new(led_by!("postgresView", "(has(self.projector) && ((has(self.projector.builtin) && has(self.projector.builtin.handlers)) || (has(self.projector.template) && has(self.checkpoint) && has(self.checkpoint.readStore) && (!has(self.checkpoint.readStore.table) || !self.checkpoint.readStore.table.contains('.')))))")).message("spec.projector must be builtin with handlers, or template with spec.checkpoint.readStore and a table without a schema, with spec.rollout.switch.postgresView: only these have a checkpoint of their own for each version"),
    validation = Rule::new(led_by!("redisPointer", "(has(self.projector) && ((has(self.projector.builtin) && has(self.projector.builtin.redis)) || (has(self.projector.template) && has(self.checkpoint) && has(self.checkpoint.redis) && has(self.checkpoint.redis.key) && self.checkpoint.redis.key.contains('{version}'))))")).message("spec.projector must be builtin with redis, or template with a spec.checkpoint.redis.key that holds {version}, with spec.rollout.switch.redisPointer: only these have a checkpoint of their own for each version"),
    validation = Rule::new(led_by!("elasticsearchAliases", "(has(self.projector) && ((has(self.projector.builtin) && has(self.projector.builtin.elasticsearch)) || (has(self.projector.template) && has(self.checkpoint) && has(self.checkpoint.elasticsearch) && ((has(self.checkpoint.elasticsearch.index) && self.checkpoint.elasticsearch.index.contains('{version}')) || (has(self.checkpoint.elasticsearch.id) && self.checkpoint.elasticsearch.id.contains('{version}'))))))")).message("spec.projector must be builtin with elasticsearch, or template with a spec.checkpoint.elasticsearch whose index or id holds {version}, with spec.rollout.switch.elasticsearchAliases: only these have a checkpoint of their own for each version"),
    validation = Rule::new(blue_green!("(has(self.source.postgres) && (has(self.source.postgres.eventTable) || has(self.source.postgres.marten) || has(self.source.postgres.messageDb) || has(self.source.postgres.commanded) || has(self.source.postgres.emmett)))")).message("spec.source must be an event store in PostgreSQL (eventTable, marten, messageDb, commanded or emmett) with spec.rollout.strategy BlueGreen: a new version is built from the first event on. A queue or outbox has no history, and whether other logs still hold all of theirs is not checked yet"),
    validation = Rule::new("(has(self.rollout) && has(self.rollout.strategy) && self.rollout.strategy == 'BlueGreen') == (has(oldSelf.rollout) && has(oldSelf.rollout.strategy) && oldSelf.rollout.strategy == 'BlueGreen')").message("spec.rollout.strategy cannot be changed: the names of workers follow from it. Delete the Projection and create it again"),
    validation = Rule::new("!has(self.rollout) || !has(self.rollout.switch) || !has(oldSelf.rollout) || !has(oldSelf.rollout.switch) || self.rollout.switch == oldSelf.rollout.switch").message("spec.rollout.switch cannot be changed: readers name what it names"),
    validation = Rule::new(blue_green!("!has(self.readStore) || !has(self.readStore.postgres) || !has(oldSelf.readStore) || !has(oldSelf.readStore.postgres) || self.readStore.postgres.connection == oldSelf.readStore.postgres.connection")).message("spec.readStore.postgres.connection cannot be changed with spec.rollout.strategy BlueGreen: one transaction leads readers from version to version, and versions are in one database. Change the Secret that it names"),
    validation = Rule::new(blue_green!("!has(self.readStore) || !has(self.readStore.redis) || !has(oldSelf.readStore) || !has(oldSelf.readStore.redis) || self.readStore.redis.connection == oldSelf.readStore.redis.connection")).message("spec.readStore.redis.connection cannot be changed with spec.rollout.strategy BlueGreen: one key leads readers from version to version, and versions are in one database. Change the Secret that it names"),
    validation = Rule::new(blue_green!("!has(self.readStore) || !has(self.readStore.elasticsearch) || !has(oldSelf.readStore) || !has(oldSelf.readStore.elasticsearch) || self.readStore.elasticsearch.connection == oldSelf.readStore.elasticsearch.connection")).message("spec.readStore.elasticsearch.connection cannot be changed with spec.rollout.strategy BlueGreen: one call leads readers from version to version, and versions are on one server. Change the Secret that it names"),
    validation = Rule::new(blue_green!("!has(self.version) || !has(oldSelf.version) || self.version != oldSelf.version || !has(self.readStore) || !has(self.readStore.postgres) || !has(self.readStore.postgres.schema) || !has(oldSelf.readStore) || !has(oldSelf.readStore.postgres) || !has(oldSelf.readStore.postgres.schema) || self.readStore.postgres.schema == oldSelf.readStore.postgres.schema")).message("spec.readStore.postgres.schema cannot be changed with spec.rollout.strategy BlueGreen while spec.version stays: readers would see the old schema, where nothing is built any more. Name another version, too"),
    validation = Rule::new("has(self.projector) == has(oldSelf.projector) && (!has(self.projector) || (has(self.projector.template) == has(oldSelf.projector.template) && has(self.projector.builtin) == has(oldSelf.projector.builtin) && has(self.projector.existing) == has(oldSelf.projector.existing)))").message("spec.projector cannot be changed to another kind: delete the Projection and create it again"),
)]
#[serde(rename_all = "camelCase")]
pub struct ProjectionSpec {
    /// Where the events come from. Exactly one source.
    pub source: Source,
    /// Where the projector commits how far it has come. Absent with `projector.builtin`, which keeps its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<Checkpoint>,
    /// Where the read model is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub read_store: Option<ReadStore>,
    /// How far behind the projection may be.
    pub lag: Lag,
    /// How many workers there may be, and who decides.
    #[serde(default)]
    pub scaling: Scaling,
    /// How fast a backlog that breaks the lag target is to be cleared. Absent: as fast as the target itself asks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub catch_up: Option<CatchUp>,
    /// What counts as a failure, and what becomes of events that fail every time.
    #[serde(default)]
    pub failure: Failure,
    /// The kill switch: workers go to zero, measuring goes on. The annotation `projectionist.dev/suspend: "true"` does the same, and `kubectl annotate` sets it on
    /// all Projections that a label (`-l`), a read store (`--field-selector`) or a namespace (`--all`) selects.
    #[serde(default)]
    pub suspend: bool,
    /// The version of the read model, which stands for `{version}` in `readStore.postgres.schema`, and which workers get as `PROJECTION_VERSION`: a change
    /// restarts them, or with `rollout.strategy: BlueGreen` builds the new version beside the other. With that it also stands for `{version}` in the handlers of
    /// `projector.builtin.redis` and `projector.builtin.elasticsearch`, and in `checkpoint`. Lower-case letters, digits and `-`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 40), regex(pattern = VERSION))]
    #[x_kube(validation = Rule::new("self != 'unversioned'").message("spec.version must not be \"unversioned\", which stands for none"))]
    pub version: Option<String>,
    /// What a change of `version` does. Absent: workers are restarted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rollout: Option<Rollout>,
    /// The workload that turns events into read-model changes. Absent: the projection is only measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub projector: Option<Projector>,
}

impl ProjectionSpec {
    /// Whether `version` may be called so.
    pub(crate) fn may_be_version(name: &str) -> bool {
        Regex::new(VERSION).is_ok_and(|pattern| pattern.is_match(name))
    }
}

/// A part of the names of workers.
const VERSION: &str = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$";
/// What PostgreSQL takes for a name: everything but a NUL.
pub(super) const NAME: &str = r"^[^\x00]+$";
/// A name, or two with a dot between. One that holds a dot or a quote itself stands in double quotes, as in SQL: `"event.store".events`.
pub(super) const TABLE: &str = r#"^("([^"\x00]|"")+"|[^".\x00]+)(\.("([^"\x00]|"")+"|[^".\x00]+))?$"#;

/// Where the events come from. Exactly one field.
#[derive(Clone, Debug, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("[has(self.postgres), has(self.redis), has(self.kafka), has(self.kurrentdb), has(self.nats), has(self.rabbitmq), has(self.prometheus), has(self.scrape)].exists_one(x, x)").message("spec.source must name exactly one source: postgres, redis, kafka, kurrentdb, nats, rabbitmq, prometheus or scrape"))]
pub struct Source {
    /// An append-only table in PostgreSQL.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub postgres: Option<PostgresSource>,
    /// Queues in RabbitMQ.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rabbitmq: Option<RabbitMqSource>,
    /// Streams in Redis, read by consumer groups.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub redis: Option<RedisSource>,
    /// Topics in Kafka that a consumer group reads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kafka: Option<KafkaSource>,
    /// Subscriptions to streams of KurrentDB (EventStoreDB).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kurrentdb: Option<KurrentDbSource>,
    /// Streams in NATS JetStream, read by consumers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nats: Option<NatsSource>,
    /// Queries to Prometheus.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prometheus: Option<PrometheusSource>,
    /// Metrics of a page in Prometheus's text format.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scrape: Option<ScrapeSource>,
}

/// How to reach a database: what a Secret of the Projection's own namespace says, and what is given here.
#[derive(Clone, Debug, Default, Deserialize, Eq, Hash, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Connection {
    /// The Secret with the connection string, such as `postgres://user:password@host:5432/database?sslmode=verify-full` or
    /// `rediss://user:password@host:6379/0`, or with a key for each of its parts.
    pub secret_ref: SecretKeyRef,
    /// The Secret and the key that hold the certificate authority (PEM) that signed the server's certificate. Used where the connection string
    /// verifies it (`sslmode=verify-full` or `verify-ca`; with `require` it is verified as with `verify-ca`). Default: the public authorities.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_secret_ref: Option<CaSecretRef>,
    /// The Secret with the certificate that shows the server who we are: keys `tls.crt` and `tls.key` (PEM), as in a Secret of type
    /// `kubernetes.io/tls`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_certificate_secret_ref: Option<ClientCertificateRef>,
    /// The server's host name or address, in place of the Secret's key `host`. A credential goes only to the servers that its Secret names, or lists as
    /// `host:port` in its annotation `projectionist.dev/endpoints`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub host: Option<String>,
    /// The server's port, in place of the Secret's key `port`, with the same condition. Default: 5432 for PostgreSQL, 6379 for Redis, 4222 for NATS, 2113 for KurrentDB, 9200 for Elasticsearch, 15672 for RabbitMQ (15671 with TLS).
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65_535))]
    pub port: Option<i32>,
    /// The database, in place of the Secret's key `database`. Default: the one named like the user for PostgreSQL, 0 for Redis.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub database: Option<String>,
}

/// A Secret in the Projection's namespace with a certificate and its key.
#[derive(Clone, Debug, Default, Deserialize, Eq, Hash, JsonSchema, PartialEq, Serialize)]
pub struct ClientCertificateRef {
    /// The Secret's name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// One key of a Secret in the Projection's namespace, with a certificate authority.
#[derive(Clone, Debug, Deserialize, Eq, Hash, JsonSchema, PartialEq, Serialize)]
pub struct CaSecretRef {
    /// The Secret's name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// The key in the Secret. Default: `ca.crt`.
    #[serde(default = "default_ca_key")]
    #[schemars(length(min = 1, max = 253))]
    pub key: String,
}

fn default_ca_key() -> String {
    "ca.crt".to_owned()
}

/// A Secret in the Projection's namespace.
#[derive(Clone, Debug, Default, Deserialize, Eq, Hash, JsonSchema, PartialEq, Serialize)]
pub struct SecretKeyRef {
    /// The Secret's name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// The key that holds the connection string. Default: the first that is there of `url`, `uri`, `jdbc-url` and `jdbc-uri`, completed by the keys `host`,
    /// `port`, `database` or `dbname`, `username` or `user`, `password` and `sslmode` (for Redis: `url` and `uri`, and `tls` in place of `sslmode`).
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub key: Option<String>,
}
