//! Replication slots.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A replication slot, which keeps how far its consumer has confirmed the write-ahead log. A slot serves one consumer at a time, and what it has not confirmed
/// is known in bytes, not in events.
#[derive(Clone, Debug, Deserialize, Eq, Hash, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ReplicationSlot {
    /// The slot's name, as `pg_replication_slots` shows it.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9_]+$"))]
    pub name: String,
}
