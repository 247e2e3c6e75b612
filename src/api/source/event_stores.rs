//! Event stores that libraries make in PostgreSQL, each with the consumer whose progress it keeps. The built-in projector reads the events of some itself.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::api::spec::NAME;

/// An EventStore of Elixir (`eventstore`), with one of its persistent subscriptions, as event handlers, projectors and process managers of Commanded have one.
#[derive(Clone, Debug, Deserialize, Eq, Hash, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CommandedStore {
    /// The schema with the event store's tables (`schema` in its configuration). Default: `public`.
    #[serde(default = "public")]
    #[schemars(length(min = 1, max = 63), regex(pattern = NAME))]
    pub schema: String,
    /// The subscription's name in `subscriptions`: that of the event handler (`name:`), with Commanded. Required, except with the built-in projector, which
    /// keeps its checkpoint in the read store and must not have it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = NAME))]
    pub subscription: Option<String>,
    /// The stream that is subscribed to. Default: `$all`, which has the events of all streams. The built-in projector reads no other.
    #[serde(default = "all_streams")]
    #[schemars(length(min = 1, max = 253), regex(pattern = NAME))]
    pub stream: String,
}

impl CommandedStore {
    /// The stream that has the events of all streams.
    pub const ALL_STREAMS: &str = "$all";
}

/// An event store of Emmett, with one of the processors (projection, reactor or workflow) that read it.
#[derive(Clone, Debug, Deserialize, Eq, Hash, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EmmettStore {
    /// The schema with the event store's tables. Default: `public`.
    #[serde(default = "public")]
    #[schemars(length(min = 1, max = 63), regex(pattern = NAME))]
    pub schema: String,
    /// The processor's name, `processor_id` in `emt_processors`. Required, except with the built-in projector, which keeps its checkpoint in the read store
    /// and must not have it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = NAME))]
    pub processor: Option<String>,
    /// The version of the processor, `version` in `emt_processors`. Default: 1. It must be absent with the built-in projector.
    #[serde(default = "first")]
    #[schemars(range(min = 0))]
    pub version: i32,
    /// The partition that is read. Default: `emt:default`.
    #[serde(default = "default_partition")]
    #[schemars(length(min = 1, max = 253), regex(pattern = NAME))]
    pub partition: String,
}

impl EmmettStore {
    /// The version of a processor whose definition names none.
    pub const FIRST_VERSION: i32 = 1;
}

/// A projection of Akka or Pekko by slices, whose offsets are stored with R2DBC beside the journal that it reads.
#[derive(Clone, Debug, Deserialize, Eq, Hash, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AkkaProjection {
    /// The schema with the journal and the offsets. Default: `public`.
    #[serde(default = "public")]
    #[schemars(length(min = 1, max = 63), regex(pattern = NAME))]
    pub schema: String,
    /// The journal's table, `journal.table` in the configuration. Default: `event_journal`.
    #[serde(default = "event_journal")]
    #[schemars(length(min = 1, max = 63), regex(pattern = NAME))]
    pub journal_table: String,
    /// The table with the offsets, `offset-store.timestamp-offset-table` in the configuration. Default: `akka_projection_timestamp_offset_store`; with
    /// Pekko it is `projection_timestamp_offset_store`.
    #[serde(default = "akka_offsets")]
    #[schemars(length(min = 1, max = 63), regex(pattern = NAME))]
    pub timestamp_offset_table: String,
    /// The projection's name: the first part of its `ProjectionId`, `projection_name` in the table of offsets.
    #[schemars(length(min = 1, max = 255), regex(pattern = NAME))]
    pub projection: String,
    /// The entity type whose events it reads by slices, `entity_type` in the journal.
    #[schemars(length(min = 1, max = 255), regex(pattern = NAME))]
    pub entity_type: String,
    /// How many ranges the 1,024 slices are split into, one for each instance of the projection, as in `sliceRanges`: a divisor of 1,024. Absent: the
    /// ranges are read from the keys of the offsets (the second part of the `ProjectionId`), which end with the first and the last slice, as in
    /// `carts-0-255`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1024), extend("x-kubernetes-validations" = [{
        "rule": "self > 0 && 1024 % self == 0",
        "message": "must be a divisor of 1024, the number of slices",
    }]))]
    pub ranges: Option<i32>,
}

fn event_journal() -> String {
    "event_journal".to_owned()
}

fn akka_offsets() -> String {
    "akka_projection_timestamp_offset_store".to_owned()
}

fn first() -> i32 {
    EmmettStore::FIRST_VERSION
}

fn default_partition() -> String {
    "emt:default".to_owned()
}

fn public() -> String {
    "public".to_owned()
}

fn all_streams() -> String {
    CommandedStore::ALL_STREAMS.to_owned()
}
