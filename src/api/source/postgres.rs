//! Event logs in PostgreSQL: the kinds that can be asked for, each with its names.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{AkkaProjection, CommandedStore, EmmettStore, Outbox, ReplicationSlot, SqlQuery};
use crate::api::{
    Connection, HumanDuration,
    spec::{NAME, TABLE},
};

/// Events in a PostgreSQL database. Exactly one kind beside the connection.
#[derive(Clone, Debug, Deserialize, Eq, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("[has(self.eventTable), has(self.outbox), has(self.marten), has(self.messageDb), has(self.commanded), has(self.emmett), has(self.akka), has(self.query), has(self.replicationSlot)].exists_one(x, x)").message("spec.source.postgres must name exactly one kind of source beside the connection: eventTable, outbox, marten, messageDb, commanded, emmett, akka, query or replicationSlot"))]
pub struct PostgresSource {
    /// How to reach the database.
    pub connection: Connection,
    /// A table that events are appended to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event_table: Option<EventTable>,
    /// A table whose rows wait until they are sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outbox: Option<Outbox>,
    /// An event store of Marten 5 or newer, whose async daemon keeps how far it has come.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub marten: Option<MartenStore>,
    /// A category of a Message DB 1.2 or newer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message_db: Option<MessageDbCategory>,
    /// An EventStore of Elixir 1.2 or newer, as Commanded uses it: one of its subscriptions, or with the built-in projector its events.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub commanded: Option<CommandedStore>,
    /// An event store of Emmett 0.42 or newer: one of its processors, or with the built-in projector the events of a partition.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub emmett: Option<EmmettStore>,
    /// A projection of Akka or Pekko by slices, with its journal and its offsets in this database.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub akka: Option<AkkaProjection>,
    /// A query of your own that says what waits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub query: Option<SqlQuery>,
    /// A replication slot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replication_slot: Option<ReplicationSlot>,
}

/// An async projection or a subscription of Marten.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MartenStore {
    /// The schema with the event store's tables (`Events.DatabaseSchemaName`). Default: `public`.
    #[serde(default = "public")]
    #[schemars(length(min = 1, max = 63), regex(pattern = NAME))]
    pub schema: String,
    /// The projection's name in `mt_event_progression`, such as `Orders:All` or `Orders:V2:All`. Without a colon `:All` is added, the usual shard of
    /// version 1. Required, except with the built-in projector, which keeps its checkpoint in the read store and must not have it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = NAME))]
    pub projection: Option<String>,
    /// Only this tenant's events count, where tenants share the tables. Absent: those of all tenants.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = NAME))]
    pub tenant: Option<String>,
}

/// A category of a Message DB, read by one consumer.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MessageDbCategory {
    /// The schema of the message store. Default: `message_store`.
    #[serde(default = "message_store")]
    #[schemars(length(min = 1, max = 63), regex(pattern = NAME))]
    pub schema: String,
    /// The category whose messages are handled: the part of a stream's name before the first `-`.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[^\x00-]+$"))]
    pub category: String,
    /// The stream that the consumer writes its position to, such as `orders:position-list`: the number in `data.position` of the last message there.
    /// Absent: `spec.checkpoint` says where the global position is.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = NAME))]
    pub position_stream: Option<String>,
    /// Which member of a consumer group the consumer is: only the messages of streams that fall to it count. Absent: it reads the whole category.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub consumer_group: Option<ConsumerGroupMember>,
}

/// A member of a consumer group of Message DB, which reads the streams whose cardinal id falls to it by its hash.
#[derive(Clone, Copy, Debug, Deserialize, Eq, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.member < self.size").message("spec.source.postgres.messageDb.consumerGroup.member must be below size: members are numbered from 0"))]
pub struct ConsumerGroupMember {
    /// The member's number, from 0 on (`consumer_group_member`).
    #[schemars(range(min = 0))]
    pub member: i32,
    /// How many members the group has (`consumer_group_size`).
    #[schemars(range(min = 1))]
    pub size: i32,
}

fn public() -> String {
    "public".to_owned()
}

fn message_store() -> String {
    "message_store".to_owned()
}

/// An append-only table with a position and a time.
#[derive(Clone, Debug, Deserialize, Eq, Hash, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EventTable {
    /// The table, optionally with its schema: `events`, `store.events`, `event-store.events`. Names are taken as they are written, capitals included; a
    /// name that holds a dot or a double quote stands in double quotes: `"event.store".events`. Default: `events`.
    #[schemars(length(max = 260), regex(pattern = TABLE))]
    pub table: String,
    /// The column with the position: an integer from a sequence, growing with every append, possibly with gaps. It must be above 0 and
    /// unique over the whole table, by a unique index on this column alone; a table partitioned by something else needs one on this column and
    /// the partition key, and a single sequence that feeds the column. Default: `position`.
    #[schemars(length(min = 1, max = 63), regex(pattern = NAME))]
    pub position: String,
    /// The column with the time of the append (`timestamptz`, or `timestamp` with `timeZone`). Default: `recorded_at`.
    #[schemars(length(min = 1, max = 63), regex(pattern = NAME))]
    pub recorded_at: String,
    /// The time zone that the times in a column without one (`timestamp`) are written in, such as `UTC` or `Europe/Berlin`. Required for such a
    /// column, where the time zone of a session says nothing about it; without effect for others.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[A-Za-z][A-Za-z0-9_+/-]*$"))]
    pub time_zone: Option<String>,
    /// The column with the stream, whose events must stay in order (text, uuid, an integer or an enum). Used by the built-in projector. Default: `stream`.
    #[schemars(length(min = 1, max = 63), regex(pattern = NAME))]
    pub stream: String,
    /// The shard of an event, for workers that keep one checkpoint row for each shard: a column (`tenant`), or an SQL expression over one row
    /// (`mod(customer, 24)`). Each shard is then counted beyond its own row; an event belongs to the row whose shard is the same text. One expression without
    /// subqueries, aggregates or functions that have effects. Absent: where a Projection has several rows, the lowest stands for all, and what
    /// is pending is an upper bound. Not used by the built-in projector, whose shards are hashes of the stream.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024), extend("x-kubernetes-validations" = [{
        "rule": "!self.contains(';') && !self.contains('--') && !self.contains('/*')",
        "message": "must be one SQL expression, without semicolons and comments",
    }]))]
    pub shard: Option<String>,
    /// The column with the event's type. Used by the built-in projector. Default: `type`.
    #[serde(rename = "type")]
    #[schemars(length(min = 1, max = 63), regex(pattern = NAME))]
    pub type_: String,
    /// The column with the event's body (`jsonb`, `json`, or text that holds JSON). Used by the built-in projector. Default: `data`.
    #[schemars(length(min = 1, max = 63), regex(pattern = NAME))]
    pub data: String,
    /// How long events are kept before they are deleted, such as `720h`: with it a Projection that would lose events before it has read them
    /// says so. Absent: for ever.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retention: Option<HumanDuration>,
    /// The channel that the writer notifies (`NOTIFY`) on an append. With it lag is known at once, without it at the next poll.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63), regex(pattern = NAME))]
    pub notify_channel: Option<String>,
}

impl Default for EventTable {
    fn default() -> Self {
        Self {
            table: "events".to_owned(),
            position: "position".to_owned(),
            recorded_at: "recorded_at".to_owned(),
            time_zone: None,
            stream: "stream".to_owned(),
            shard: None,
            type_: "type".to_owned(),
            data: "data".to_owned(),
            retention: None,
            notify_channel: None,
        }
    }
}
