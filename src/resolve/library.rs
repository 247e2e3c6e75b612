//! The event tables of libraries whose schema is known, and where they keep how far a projection has come.

use super::consumers::commanded_channel;
use crate::api::{
    CheckpointLocation, CheckpointRows, CommandedStore, ConsumerGroupMember, EmmettStore, EventRows, EventTable,
    MartenStore, MessageDbCategory, TableLocation, table_part,
};

/// The event table of a library.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct LibraryTable {
    /// The table, as the library makes it.
    pub table: EventTable,
    /// Which rows are events of this projection.
    pub events: EventRows,
    /// What to say where the table or the checkpoint's is not there.
    pub expected: String,
    /// The library keeps the checkpoint in the same database.
    pub keeps_checkpoint: bool,
    /// Where the library sets events aside that failed.
    pub parked: Option<ParkedEvents>,
}

/// Events that Marten set aside, in a table of documents.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct ParkedEvents {
    /// The table, with its schema.
    pub table: String,
    /// The projection's name and its shard.
    pub projection: (String, String),
}

/// A projection of Marten, with its row in the progression where it has one.
pub(super) fn marten(store: &MartenStore) -> (LibraryTable, Option<CheckpointLocation>) {
    let MartenStore { schema, projection, tenant } = store;
    let name = projection.as_ref().map(|name| if name.contains(':') { name.clone() } else { format!("{name}:All") });
    let (table, progression) = (in_schema(schema, "mt_events"), in_schema(schema, "mt_event_progression"));
    let tenant = tenant.as_ref().map(|tenant| format!(" and tenant_id = {}", literal(tenant)));
    let of_shard = name.as_ref().and_then(|name| name.split_once(':'));
    let of_shard = of_shard.map(|(projection, shard)| (projection.to_owned(), shard.to_owned()));
    let library = LibraryTable {
        expected: format!(
            "Marten 5 or newer makes {table} and {progression}: is spec.source.postgres.marten.schema the schema of its event store (Events.DatabaseSchemaName), and has it made its tables?"
        ),
        // Archived events are not handled by the daemon.
        events: EventRows::Only(format!("is_archived is not true{}", tenant.unwrap_or_default())),
        table: EventTable {
            table,
            position: "seq_id".to_owned(),
            recorded_at: "timestamp".to_owned(),
            stream: "stream_id".to_owned(),
            ..EventTable::default()
        },
        keeps_checkpoint: name.is_some(),
        parked: of_shard
            .map(|projection| ParkedEvents { table: in_schema(schema, "mt_doc_deadletterevent"), projection }),
    };
    (library, name.map(|name| location(progression, "name", "last_seq_id", name, CheckpointRows::One)))
}

/// A category of a Message DB, with the stream of its consumer's positions where the spec names one.
pub(super) fn message_db(store: &MessageDbCategory) -> (LibraryTable, Option<CheckpointLocation>) {
    let MessageDbCategory { schema, category, position_stream, consumer_group } = store;
    let table = in_schema(schema, "messages");
    let checkpoint = position_stream
        .clone()
        .map(|stream| location(table.clone(), "stream_name", "position", stream, CheckpointRows::LastMessage));
    let quoted = format!("\"{}\"", schema.replace('"', "\"\""));
    let library = LibraryTable {
        expected: format!(
            "Message DB 1.2 or newer makes {table}: is spec.source.postgres.messageDb.schema its schema, and does the connection name its database (message_store by default)?"
        ),
        events: EventRows::Only(format!(
            "{quoted}.category(stream_name) = {}{}",
            literal(category),
            consumer_group.map(|member| of_member(&quoted, member)).unwrap_or_default()
        )),
        table: EventTable {
            table,
            position: "global_position".to_owned(),
            recorded_at: "time".to_owned(),
            time_zone: Some("UTC".to_owned()),
            stream: "stream_name".to_owned(),
            ..EventTable::default()
        },
        keeps_checkpoint: checkpoint.is_some(),
        parked: None,
    };
    (library, checkpoint)
}

/// Which streams fall to a member of a consumer group, as Message DB reads them. The cardinal id is what lies between the first `-` and the `+` after it;
/// the store's own function for it finds its other functions only with its schema in the search path.
fn of_member(schema: &str, ConsumerGroupMember { member, size }: ConsumerGroupMember) -> String {
    let id = "split_part(substring(stream_name from nullif(strpos(stream_name, '-'), 0) + 1), '+', 1)";
    format!(" and mod(@ {schema}.hash_64(({id})::varchar), {size}) = {member}")
}

/// All events of an EventStore of Elixir, in the order of the stream `$all`.
pub(super) fn commanded(store: &CommandedStore) -> LibraryTable {
    let CommandedStore { schema, subscription: _, stream: _ } = store;
    LibraryTable {
        expected: "EventStore for Elixir 1.2 or newer makes streams, stream_events and events (mix event_store.init, event_store.migrate): is spec.source.postgres.commanded.schema its schema, and does the connection name its database?".to_owned(),
        events: EventRows::AllStream { schema: schema.clone() },
        table: EventTable {
            table: in_schema(schema, "stream_events"),
            position: "stream_version".to_owned(),
            recorded_at: "created_at".to_owned(),
            stream: "stream_uuid".to_owned(),
            type_: "event_type".to_owned(),
            notify_channel: Some(commanded_channel(schema)),
            ..EventTable::default()
        },
        keeps_checkpoint: false,
        parked: None,
    }
}

/// The messages of a partition in an event store of Emmett, in the order of their positions.
pub(super) fn emmett(store: &EmmettStore) -> LibraryTable {
    let EmmettStore { schema, processor: _, version: _, partition } = store;
    let table = in_schema(schema, "emt_messages");
    LibraryTable {
        expected: format!(
            "emmett-postgresql 0.42 or newer makes {table}: is spec.source.postgres.emmett.schema its schema, and has it run its migrations?"
        ),
        // Archived messages are not handled by its processors.
        events: EventRows::Only(format!("partition = {} and is_archived = false", literal(partition))),
        table: EventTable {
            table,
            position: "global_position".to_owned(),
            recorded_at: "created".to_owned(),
            stream: "stream_id".to_owned(),
            type_: "message_type".to_owned(),
            data: "message_data".to_owned(),
            ..EventTable::default()
        },
        keeps_checkpoint: false,
        parked: None,
    }
}

fn location(table: String, name: &str, position: &str, value: String, rows: CheckpointRows) -> CheckpointLocation {
    CheckpointLocation::Table(TableLocation {
        table,
        name_column: name.to_owned(),
        position_column: position.to_owned(),
        name: value,
        rows,
    })
}

fn in_schema(schema: &str, table: &str) -> String {
    format!("{}.{table}", table_part(schema))
}

/// A text as SQL, whatever `standard_conforming_strings` says.
fn literal(text: &str) -> String {
    format!("E'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
}
