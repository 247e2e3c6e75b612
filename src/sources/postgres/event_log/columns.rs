//! Whether the columns of an event table have types that can serve, and how the time of an append is read. Checked
//! before any event is read, so that the message names the column.

use tokio_postgres::{Client, Error, types::Type};

use super::{LogError, Relation};
use crate::{
    api::{EventRows, EventTable, Reason},
    clients::postgres::{ColumnType, Query, column_types, quote_identifier},
};

/// How the time of an append is read, as SQL. Neither depends on the session's time zone.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct EventTime {
    /// The time as a `timestamptz`. Fails for a time so far from ours that its zone makes it one that PostgreSQL cannot hold.
    pub value: String,
    /// The same, NULL where it is infinite or outside the years 1 to 9999: no age can be told then, and computing one would fail.
    pub measurable: String,
}

/// How the body of an event is read.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum EventBody {
    /// As text, which holds JSON.
    Text,
    /// As bytes, which hold what the application's serializer makes.
    Bytes,
}

/// Checks the types of position and time, and returns how to read the time.
///
/// # Errors
/// The table or a column is missing or has a type that cannot serve; the time has no zone and the spec tells none, or one that the server does
/// not know.
pub(super) async fn check_measured(
    client: &Client,
    table: &EventTable,
    relation: &Relation,
) -> Result<EventTime, LogError> {
    let [position, recorded_at] = types_of(client, table, relation, [&table.position, &table.recorded_at]).await?;
    if !position.is_integer() {
        return Err(unsuitable(table, &table.position, "smallint, integer or bigint", &position));
    }
    match (recorded_at.sql.as_str(), &table.time_zone) {
        ("timestamp with time zone", _) => {}
        ("timestamp without time zone", Some(zone)) => check_zone(client, table, zone).await?,
        ("timestamp without time zone", None) => {
            return Err(refused(
                table,
                Reason::ColumnTypeUnsuitable,
                format!(
                    "column {} is a timestamp without time zone: set spec.source.postgres.eventTable.timeZone to the zone that its times are written in, such as UTC for now() at time zone 'utc'",
                    table.recorded_at
                ),
            ));
        }
        _ => return Err(unsuitable(table, &table.recorded_at, "timestamptz or timestamp", &recorded_at)),
    }
    Ok(event_time(
        &table.recorded_at,
        table.time_zone.as_deref().filter(|_| !recorded_at.sql.ends_with(" with time zone")),
    ))
}

/// How a time in this column is read, with the zone of one that has none.
pub(in super::super) fn event_time(column: &str, zone: Option<&str>) -> EventTime {
    let column = quote_identifier(column);
    let (type_, value) = match zone {
        None => ("timestamptz", column.clone()),
        Some(zone) => ("timestamp", format!("({column} at time zone '{}')", zone.replace('\'', "''"))),
    };
    let measurable = format!(
        "case when {column} >= {type_} '0001-01-02 00:00:00' and {column} < {type_} '9999-12-31 00:00:00' then {value} end"
    );
    EventTime { value, measurable }
}

/// Whether the server knows a time zone of this name.
///
/// # Errors
/// Those of the server.
pub(in super::super) async fn is_known_zone(client: &Client, zone: &str) -> Result<bool, Error> {
    // By its name, and not by trying it: the server takes every word with a number behind it for a zone in the notation of POSIX.
    let known = "select exists (select from pg_catalog.pg_timezone_names where lower(name) = lower($1::text))";
    Query::new(known, &[Type::TEXT]).row(client, &[&zone]).await.and_then(|row| row.try_get(0))
}

async fn check_zone(client: &Client, table: &EventTable, zone: &str) -> Result<(), LogError> {
    let failed = |source| LogError::Postgres { table: table.table.clone(), source };
    if is_known_zone(client, zone).await.map_err(failed)? {
        return Ok(());
    }
    Err(refused(
        table,
        Reason::InvalidSpec,
        format!(
            "spec.source.postgres.eventTable.timeZone: the server knows no time zone {zone}: name one of pg_timezone_names, such as UTC or Europe/Berlin"
        ),
    ))
}

/// Checks the types of the columns that only the built-in projector reads: stream, type and body. Returns how the body is read.
///
/// # Errors
/// A column is missing or has a type that cannot serve.
pub async fn check_event_columns(
    client: &Client,
    table: &EventTable,
    events: &EventRows,
) -> Result<EventBody, LogError> {
    let relation = Relation::new(table, events);
    let [stream, type_, data] = types_of(client, table, &relation, [&table.stream, &table.type_, &table.data]).await?;
    for (column, found) in [(&table.stream, &stream), (&table.type_, &type_)] {
        if !found.has_stable_text() {
            return Err(unsuitable(table, column, "text, uuid, an integer or an enum", found));
        }
    }
    match events {
        _ if data.may_hold_json() => Ok(EventBody::Text),
        // As the store makes it by default.
        EventRows::AllStream { .. } if data.sql == "bytea" => Ok(EventBody::Bytes),
        EventRows::AllStream { .. } => Err(unsuitable(table, &table.data, "bytea, jsonb, json or text", &data)),
        EventRows::All | EventRows::Only(_) => {
            Err(unsuitable(table, &table.data, "jsonb, json or text that holds JSON", &data))
        }
    }
}

async fn types_of<const N: usize>(
    client: &Client,
    table: &EventTable,
    relation: &Relation,
    columns: [&String; N],
) -> Result<[ColumnType; N], LogError> {
    let types = column_types(client, &relation.events, &columns.map(String::as_str)).await;
    let types = types.map_err(|source| LogError::Postgres { table: table.table.clone(), source })?;
    types.try_into().map_err(|_| {
        let message = "the server told the types of other columns than it was asked for".to_owned();
        refused(table, Reason::InvalidAnswer, message)
    })
}

fn unsuitable(table: &EventTable, column: &str, wanted: &str, found: &ColumnType) -> LogError {
    let message = format!("column {column} must be {wanted}, not {}", found.sql);
    refused(table, Reason::ColumnTypeUnsuitable, message)
}

fn refused(table: &EventTable, reason: Reason, message: String) -> LogError {
    LogError::Unsuitable { table: table.table.clone(), reason, message }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_without_zone_is_read_in_the_zone_that_was_told_and_never_in_the_sessions() {
        assert_eq!(event_time("at", None).value, "\"at\"");
        assert_eq!(event_time("at", Some("Europe/Berlin")).value, "(\"at\" at time zone 'Europe/Berlin')");
        assert!(event_time("at", Some("a'b")).value.contains("'a''b'"));
    }
}
