//! The statements by which events are read.

use crate::{
    api::EventTable,
    clients::postgres::{quote_identifier, shard_expression},
    projector::config::PostgresInput,
    sources::postgres::event_log::{EventBody, EventTime, Relation},
};

/// The statements over one event log.
pub(super) struct Statements {
    /// `$1` to `$3`: from, until, limit. How many positions there are, and the last of them.
    pub(super) window: String,
    /// `$1` to `$3`: from, until, types. `$4`, `$5`: after and until of each shard. `$6`: limit. `$7`: the most bytes of an event.
    pub(super) fetch: String,
    /// The first six of those. Position and shard of each event that [`Self::fetch`] reads.
    pub(super) keys: String,
    /// `$1`: whether the log goes as far as this position.
    pub(super) reaches: String,
}

/// The statements for an input whose times and bodies are read in this way.
pub(super) fn statements(input: &PostgresInput, time: &EventTime, body: EventBody) -> Statements {
    let PostgresInput { event_table: table, events, shards } = input;
    let Relation { positions, events, head, .. } = Relation::new(table, events);
    let EventTable { position, stream, type_, data, .. } = table;
    let [position, stream, type_, data] = [position, stream, type_, data].map(|column| quote_identifier(column));
    let body = match body {
        EventBody::Text => format!("{data}::text"),
        EventBody::Bytes => data,
    };
    let recorded_at = &time.value;
    // An event without a stream must belong somewhere.
    let shard = shard_expression(&stream, *shards);
    let window = format!(
        "select count(*), max(p)::bigint
         from (select {position} as p from {positions} where {position} > $1::bigint and {position} <= $2::bigint
               order by {position} limit $3::bigint) s"
    );
    // What each shard needs comes as arrays rather than as a table to join, so that reading in order can stop at the limit.
    let wanted = format!(
        "where {position} > $1::bigint and {position} <= $2::bigint and {type_}::text = any($3::text[])
             and {position} > ($4::bigint[])[{shard} + 1] and {position} <= ($5::bigint[])[{shard} + 1]
         order by {position} limit $6::bigint"
    );
    // What is too large stays at the server, which writes each body out once.
    let fetch = format!(
        "select {position}::bigint, {shard}, {type_}::text, case when pj_size <= $7::bigint then pj_stream end, ({recorded_at})::timestamptz,
             case when pj_size <= $7::bigint then pj_body end, pj_size
         from {events}
         cross join lateral (select {body} as pj_body, {stream}::text as pj_stream offset 0) pj_event
         cross join lateral (
             select (coalesce(octet_length(pj_body), 0) + coalesce(octet_length(pj_stream), 0))::bigint as pj_size offset 0
         ) pj_sizes
         {wanted}"
    );
    let keys = format!("select {position}::bigint, {shard} from {events} {wanted}");
    let reaches = format!("select coalesce({head} >= $1::bigint, false)");
    Statements { window, fetch, keys, reaches }
}
