//! Which rows of an event table are events: what the kinds of source with one table, or a few, come to. No part of the resource.

use serde::{Deserialize, Serialize};

/// Which rows of an event table are events, and where the rest of an event is.
#[derive(Clone, Debug, Default, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum EventRows {
    /// All rows.
    #[default]
    All,
    /// Those that meet this condition: SQL over a row.
    Only(String),
    /// Those of the stream `$all` in an EventStore of Elixir. The table is its `stream_events`, which holds their numbers; type, time, body and stream are
    /// in the tables `events` and `streams` beside it.
    AllStream {
        /// The schema of the three tables.
        schema: String,
    },
}

impl EventRows {
    /// True where there is nothing to say.
    pub fn are_all(&self) -> bool {
        *self == Self::All
    }
}
