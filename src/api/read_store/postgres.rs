//! Read models and checkpoints in PostgreSQL.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::api::{
    Connection,
    spec::{NAME, TABLE},
};

/// A read model in PostgreSQL.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PostgresReadStore {
    /// How to reach the database.
    pub connection: Connection,
    /// The schema of the read model. `{version}` stands for `spec.version`. Default: the user's own search path.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63), regex(pattern = NAME))]
    pub schema: Option<String>,
}

/// A table with one row a projection, or one row a shard of it.
#[derive(Clone, Debug, Deserialize, Eq, Hash, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CheckpointTable {
    /// The table, optionally with its schema. Default: `checkpoints`.
    #[serde(default = "default_checkpoint_table")]
    #[schemars(length(max = 260), regex(pattern = TABLE))]
    pub table: String,
    /// The column that tells projections apart. Default: `projection`.
    #[serde(default = "default_name_column")]
    #[schemars(length(min = 1, max = 63), regex(pattern = NAME))]
    pub name_column: String,
    /// The column with the last processed position. Default: `position`.
    #[serde(default = "default_position_column")]
    #[schemars(length(min = 1, max = 63), regex(pattern = NAME))]
    pub position_column: String,
    /// The column with a row's shard, where there is one row for each shard and `eventTable.shard` tells an event's. Default: the one other column of a unique
    /// index that has the name column and one more.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63), regex(pattern = r"^[A-Za-z_][A-Za-z0-9_$]*$"))]
    pub shard_column: Option<String>,
    /// This projection's value in the name column. Default: the Projection's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub name: Option<String>,
}

fn default_checkpoint_table() -> String {
    "checkpoints".to_owned()
}

pub(crate) fn default_name_column() -> String {
    "projection".to_owned()
}

pub(crate) fn default_position_column() -> String {
    "position".to_owned()
}

/// One projection's rows in a checkpoint table.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct TableLocation {
    /// The table, optionally with its schema.
    pub table: String,
    /// The column that tells projections apart.
    pub name_column: String,
    /// The column with the last processed position.
    pub position_column: String,
    /// This projection's value in the name column.
    pub name: String,
    /// Which rows there are.
    pub rows: CheckpointRows,
}

/// The parts of one projection's checkpoint, such as the rows in a checkpoint table.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum CheckpointRows {
    /// A stream of messages, the last of which holds the position in `data.position`. The name column holds the stream, and the position column the
    /// message's place in it.
    LastMessage,
    /// One. Where there are several, the lowest stands for all.
    One,
    /// Those of the built-in projector: so many, numbered from 0 in the column `shard`, one a hash segment.
    Numbered(u32),
    /// Those of the built-in projector for the parts that the source itself has, such as partitions: one each, with the part's name. More may come.
    Parts,
    /// One a shard.
    Keyed {
        /// The column with the shard; absent where it is to be found, and where the parts are no rows.
        column: Option<String>,
        /// The number of shards, where it is told.
        shards: Option<u32>,
    },
}
