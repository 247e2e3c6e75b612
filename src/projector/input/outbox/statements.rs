//! Which rows of an outbox are taken and how they are marked, as SQL; and whether the table can be worked on so.

use tokio_postgres::Client;

use super::{
    super::super::error::{ProjectorError, doing},
    MOST_BYTES,
};
use crate::{
    api::{Outbox, OutboxEvent},
    clients::postgres::{ColumnType, column_types, quote_identifier},
    measure::MeasureError,
    sources::postgres::outbox::{Checked, check, check_visible},
};

/// The types of column whose text names a row, and becomes the same value again.
const ID_TYPES: [&str; 6] = ["uuid", "smallint", "integer", "bigint", "text", "character varying"];

/// An outbox, with all that SQL needs to know of it.
pub(super) struct OutboxTable {
    /// Its name with its schema.
    pub(super) name: String,
    checked: Checked,
    event: OutboxEvent,
    created_at: String,
    id_type: String,
    has_integer_id: bool,
    /// How a row is marked as sent, as an assignment; rows are deleted where absent.
    mark: Option<String>,
}

/// What the catalog says of the table `$1` and its column `$2`: the name with its schema, and whether the column names a row.
const NAMES_A_ROW: &str = "
select format('%s.%s', n.nspname, c.relname), exists (
    select from pg_catalog.pg_index i
    join pg_catalog.pg_attribute a on a.attrelid = i.indrelid and a.attnum = i.indkey[0]
    where i.indrelid = c.oid and i.indisunique and i.indisvalid and i.indnkeyatts = 1 and i.indpred is null and i.indexprs is null
        and a.attname = $2::text and a.attnotnull)
from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace where c.oid = $1::text::regclass";

impl OutboxTable {
    /// Looks at the table and at the types of its columns. Reads no row.
    ///
    /// # Errors
    /// What does not serve, and what to do.
    pub(super) async fn check(client: &Client, outbox: &Outbox) -> Result<Self, ProjectorError> {
        let refused = |MeasureError { message, .. }| ProjectorError::Source(message);
        let unsuitable = |message: String| ProjectorError::Source(format!("outbox {}: {message}", outbox.table));
        let failed = doing("event source: looking at the outbox");
        let checked = check(client, outbox).await.map_err(refused)?;
        check_visible(client, outbox, &checked.table).await.map_err(refused)?;
        let event = outbox.event.clone().unwrap_or_default();
        let OutboxEvent { id, type_, stream, data } = &event;
        let mut columns = vec![id.as_str(), type_, stream, data];
        columns.extend(outbox.sent_at.as_deref());
        let types = column_types(client, &checked.table, &columns).await.map_err(&failed)?;
        if let Some(message) = unsuitable_column(&columns, &types) {
            return Err(unsuitable(message));
        }
        let row = client.query_one(NAMES_A_ROW, &[&checked.table, id]).await.map_err(&failed)?;
        let (name, names_a_row): (String, bool) = (row.try_get(0).map_err(&failed)?, row.try_get(1).map_err(&failed)?);
        if !names_a_row {
            return Err(unsuitable(format!(
                "column {id} must be NOT NULL and unique by an index on it alone, since it names the row (spec.source.postgres.outbox.event.id): alter table … add primary key ({id})"
            )));
        }
        let mark = outbox.sent_at.as_deref().zip(types.get(4)).map(|(column, type_)| {
            let zone = outbox.time_zone.as_deref().unwrap_or("UTC").replace('\'', "''");
            let now = match type_.sql.as_str() {
                "timestamp without time zone" => format!("pg_catalog.clock_timestamp() at time zone '{zone}'"),
                _ => "pg_catalog.clock_timestamp()".to_owned(),
            };
            format!("{} = {now}", quote_identifier(column))
        });
        let id_type = types.first().map(|id| id.sql.clone()).unwrap_or_default();
        let has_integer_id = types.first().is_some_and(ColumnType::is_integer);
        Ok(Self { name, checked, event, created_at: outbox.created_at.clone(), id_type, has_integer_id, mark })
    }

    /// In which order rows are taken, as two columns: a sequence tells the order of writers that wait for each other, and their times may not.
    fn order(&self) -> (String, String) {
        let (id, created_at) = (quote_identifier(&self.event.id), quote_identifier(&self.created_at));
        if self.has_integer_id { (id.clone(), id) } else { (created_at, id) }
    }
}

/// What is wrong with the types of the columns: those of identifier, type, stream and body, and of the mark where there is one.
fn unsuitable_column(columns: &[&str], types: &[ColumnType]) -> Option<String> {
    type Serves = fn(&ColumnType) -> bool;
    let wanted: [(&str, Serves); 5] = [
        ("uuid, an integer, text or varchar", |id| ID_TYPES.contains(&id.sql.as_str())),
        ("text, an integer or an enum", ColumnType::has_stable_text),
        ("text, uuid, an integer or an enum", ColumnType::has_stable_text),
        ("jsonb, json or text that holds JSON", ColumnType::may_hold_json),
        ("timestamptz or timestamp, since workers write there when a row was handled", |sent_at| {
            sent_at.sql.starts_with("timestamp with")
        }),
    ];
    let all = columns.iter().zip(types).zip(wanted);
    all.into_iter().find_map(|((column, found), (wanted, serves))| {
        (!serves(found)).then(|| format!("column {column} must be {wanted}, not {}", found.sql))
    })
}

/// Takes rows and locks them. `$1`: how many at most; `$2`: which not; `$3`: the types with a handler; `$4`: the bytes that one may have.
///
/// Bodies are written out after the limit, once each, and stay at the server where they are not wanted or too large, or where those before them suffice.
pub(super) fn take(table: &OutboxTable, alone: bool) -> String {
    let OutboxTable { checked, event, id_type, .. } = table;
    let Checked { table: from, time, waits, mine } = checked;
    let OutboxEvent { id, type_, stream, data } = event;
    let [id, type_, stream, data] = [id, type_, stream, data].map(|column| quote_identifier(column));
    let (first, second) = table.order();
    // Rows that another run of the one worker still holds come first: it waits for them.
    let others = if alone { "" } else { " skip locked" };
    format!(
        "with pj_taken as materialized (
             select {first} as pj_first, {second} as pj_second, {id} as pj_id, {type_}::text as pj_type, {stream}::text as pj_stream,
                 {time} as pj_time, {data} as pj_data
             from {from} where {waits} and {mine} and {id} <> all($2::text[]::{id_type}[])
             order by {first}, {second} limit $1::bigint for update{others}
         ), pj_written as materialized (
             select *, case when pj_type = any($3::text[]) then pj_data::text end as pj_body from pj_taken
         ), pj_sized as (
             select *, (coalesce(octet_length(pj_body), 0) + coalesce(octet_length(pj_stream), 0))::bigint as pj_size from pj_written
         ), pj_counted as (
             select *, sum(least(pj_size, $4::bigint)) over (order by pj_first, pj_second) - least(pj_size, $4::bigint) as pj_before,
                 count(*) over () as pj_locked
             from pj_sized
         )
         select pj_id::text, pj_type, case when pj_size <= $4::bigint then pj_stream end, pj_time,
             case when pj_size <= $4::bigint then pj_body end, pj_size, (extract(epoch from pj_time) * 1000000)::bigint, pj_locked
         from pj_counted where pj_before < {MOST_BYTES} order by pj_first, pj_second"
    )
}

/// Marks the rows `$1` as sent, or deletes them.
pub(super) fn mark(table: &OutboxTable) -> String {
    let (from, id) = (&table.checked.table, quote_identifier(&table.event.id));
    let these = format!("where {id} = any($1::text[]::{}[])", table.id_type);
    match &table.mark {
        Some(mark) => format!("update {from} set {mark} {these}"),
        None => format!("delete from {from} {these}"),
    }
}
