//! Consumers of event stores that libraries make in PostgreSQL: each store keeps how far its consumers have come.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::api::spec::NAME;

/// A persistent subscription in an EventStore of Elixir (`eventstore`), as event handlers, projectors and process managers of Commanded have one.
#[derive(Clone, Debug, Deserialize, Eq, Hash, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CommandedSubscription {
    /// The schema with the event store's tables (`schema` in its configuration). Default: `public`.
    #[serde(default = "public")]
    #[schemars(length(min = 1, max = 63), regex(pattern = NAME))]
    pub schema: String,
    /// The subscription's name in `subscriptions`: that of the event handler (`name:`), with Commanded.
    #[schemars(length(min = 1, max = 253), regex(pattern = NAME))]
    pub subscription: String,
    /// The stream that is subscribed to. Default: `$all`, which has the events of all streams.
    #[serde(default = "all")]
    #[schemars(length(min = 1, max = 253), regex(pattern = NAME))]
    pub stream: String,
}

/// A processor (projection, reactor or workflow) that reads an event store of Emmett.
#[derive(Clone, Debug, Deserialize, Eq, Hash, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EmmettProcessor {
    /// The schema with the event store's tables. Default: `public`.
    #[serde(default = "public")]
    #[schemars(length(min = 1, max = 63), regex(pattern = NAME))]
    pub schema: String,
    /// The processor's name, `processor_id` in `emt_processors`.
    #[schemars(length(min = 1, max = 253), regex(pattern = NAME))]
    pub processor: String,
    /// The version of the processor, `version` in `emt_processors`. Default: 1.
    #[serde(default = "first")]
    #[schemars(range(min = 0))]
    pub version: i32,
    /// The partition that it reads. Default: `emt:default`.
    #[serde(default = "default_partition")]
    #[schemars(length(min = 1, max = 253), regex(pattern = NAME))]
    pub partition: String,
}

fn first() -> i32 {
    1
}

fn default_partition() -> String {
    "emt:default".to_owned()
}

fn public() -> String {
    "public".to_owned()
}

fn all() -> String {
    "$all".to_owned()
}
