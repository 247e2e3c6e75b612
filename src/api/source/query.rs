//! The user's own SQL.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::api::spec::NAME;

/// One query that says what waits. It runs in a read-only transaction that is rolled back, for at most 4 s, and must give exactly one row.
#[derive(Clone, Debug, Deserialize, Eq, Hash, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SqlQuery {
    /// The query (`select …`). Its columns are known by their names: `pending` (events that wait), `oldest` (`timestamptz` of the oldest of them)
    /// or `staleness_seconds` (its age), `arrived` and `handled` (counters that only grow), `head` and `checkpoint` (positions). The only column of a
    /// query is `pending`, whatever its name. NULL is unknown, and never zero.
    #[schemars(length(min = 1, max = 16_384))]
    pub sql: String,
    /// The channel that the writer notifies (`NOTIFY`) of new events. With it they are known at once, without it at the next poll.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63), regex(pattern = NAME))]
    pub notify_channel: Option<String>,
}
