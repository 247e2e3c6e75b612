//! Outboxes: tables whose rows wait to be sent.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::api::{
    spec::{NAME, TABLE},
    table_parts,
};

/// A transactional outbox: a table whose rows wait until a relay has sent them. The table itself says what has been done, so that no checkpoint is needed.
#[derive(Clone, Debug, Deserialize, Eq, Hash, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-validations" = [
    {
        "rule": "!has(self.sentAt) || !has(self.unsent)",
        "message": "spec.source.postgres.outbox.unsent must be absent with sentAt: either says which rows wait",
    },
    {
        "rule": "!has(self.position) || has(self.where)",
        "message": "spec.source.postgres.outbox.position must be absent without where: the server counts new rows itself",
    },
]))]
pub struct Outbox {
    /// The table, optionally with its schema, as in `eventTable.table`. Default: `outbox`.
    #[schemars(length(max = 260), regex(pattern = TABLE))]
    pub table: String,
    /// The column with the time at which a row was written (`timestamptz`, or `timestamp` with `timeZone`). Default: `created_at`.
    #[schemars(length(min = 1, max = 63), regex(pattern = NAME))]
    pub created_at: String,
    /// The time zone that the times in a column without one (`timestamp`) are written in, such as `UTC` or `Europe/Berlin`. Required for such a
    /// column; without effect for others.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[A-Za-z][A-Za-z0-9_+/-]*$"))]
    pub time_zone: Option<String>,
    /// The column that is NULL until the row is sent. Absent, and without `unsent`: rows are deleted when they are sent, so that every row waits.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63), regex(pattern = NAME))]
    pub sent_at: Option<String>,
    /// Which rows wait, where no column is NULL until then: an SQL condition over one row (`status = 'pending'`). One expression without subqueries,
    /// aggregates or functions that have effects.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024), extend("x-kubernetes-validations" = [{
        "rule": "!self.contains(';') && !self.contains('--') && !self.contains('/*')",
        "message": "must be one SQL condition, without semicolons and comments",
    }]))]
    pub unsent: Option<String>,
    /// Which rows are this Projection's, where several share the table: an SQL condition over one row that does not change when the row is sent
    /// (`topic = 'orders'`). As for `unsent`. Default: all.
    #[serde(rename = "where", skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024), extend("x-kubernetes-validations" = [{
        "rule": "!self.contains(';') && !self.contains('--') && !self.contains('/*')",
        "message": "must be one SQL condition, without semicolons and comments",
    }]))]
    pub filter: Option<String>,
    /// An integer column that a sequence fills, with an index: with `where`, new rows are counted by it. Absent: the rows that wait must
    /// tell, so that those which come and go between two polls are not seen.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63), regex(pattern = NAME))]
    pub position: Option<String>,
    /// How `projector.builtin` reads a row as an event.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event: Option<OutboxEvent>,
    /// The channel that the writer notifies (`NOTIFY`) of new rows. With it they are known at once, without it at the next poll.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63), regex(pattern = NAME))]
    pub notify_channel: Option<String>,
}

/// Which columns of an outbox hold the parts of an event.
#[derive(Clone, Debug, Deserialize, Eq, Hash, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct OutboxEvent {
    /// The column that names a row (uuid, an integer or text): never NULL, and unique by an index on it alone. Default: `id`.
    #[schemars(length(min = 1, max = 63), regex(pattern = NAME))]
    pub id: String,
    /// The column with the event's type. Default: `type`.
    #[serde(rename = "type")]
    #[schemars(length(min = 1, max = 63), regex(pattern = NAME))]
    pub type_: String,
    /// The column with the event's stream (text, uuid, an integer or an enum), such as the aggregate's identifier. Default: `stream`.
    #[schemars(length(min = 1, max = 63), regex(pattern = NAME))]
    pub stream: String,
    /// The column with the event's body (`jsonb`, `json`, or text that holds JSON). Default: `data`.
    #[schemars(length(min = 1, max = 63), regex(pattern = NAME))]
    pub data: String,
}

impl Default for OutboxEvent {
    fn default() -> Self {
        Self { id: "id".to_owned(), type_: "type".to_owned(), stream: "stream".to_owned(), data: "data".to_owned() }
    }
}

impl Default for Outbox {
    fn default() -> Self {
        Self {
            table: "outbox".to_owned(),
            created_at: "created_at".to_owned(),
            time_zone: None,
            sent_at: None,
            unsent: None,
            filter: None,
            position: None,
            event: None,
            notify_channel: None,
        }
    }
}

impl Outbox {
    /// The names of the database that it holds, each with its field.
    pub fn names(&self) -> impl Iterator<Item = (&'static str, String)> {
        let optional = [
            ("spec.source.postgres.outbox.sentAt", self.sent_at.clone()),
            ("spec.source.postgres.outbox.position", self.position.clone()),
            ("spec.source.postgres.outbox.notifyChannel", self.notify_channel.clone()),
        ];
        let table = table_parts(&self.table).into_iter().map(|part| ("spec.source.postgres.outbox.table", part));
        let event = self.event.iter().flat_map(|OutboxEvent { id, type_, stream, data }| {
            [
                ("spec.source.postgres.outbox.event.id", id.clone()),
                ("spec.source.postgres.outbox.event.type", type_.clone()),
                ("spec.source.postgres.outbox.event.stream", stream.clone()),
                ("spec.source.postgres.outbox.event.data", data.clone()),
            ]
        });
        table
            .chain(event)
            .chain([("spec.source.postgres.outbox.createdAt", self.created_at.clone())])
            .chain(optional.into_iter().filter_map(|(field, name)| Some((field, name?))))
    }
}
