//! EventStore for Elixir, as Commanded uses it.
//!
//! An append adds to the version of its stream and to that of `$all`, the stream with the id 0, in the transaction that writes the events: the row's lock
//! orders writers, so that the numbers of a stream have no gaps but those that hard deletes leave, and are committed in order. A subscription
//! keeps the last number that was acknowledged, up to which all were.

use tokio_postgres::{Client, Error, Row, types::Type};

use super::{Look, Looks, count, counted, in_schema, oldest, regclass};
use crate::{
    api::Reason,
    clients::postgres::Query,
    lag::{Head, Note, Position},
    measure::MeasureError,
    resolve::CommandedSubscription,
    sources::postgres::{
        counting::{CUT, scan_limit},
        event_log::event_time,
    },
};

/// What to say where a table or column is not there.
pub(super) const EXPECTED: &str = "EventStore for Elixir 1.2 or newer makes streams, stream_events, events and subscriptions (mix event_store.init, event_store.migrate): is spec.source.postgres.commanded.schema its schema, and does the connection name its database?";

const ALL: &str = "$all";
const TABLES: [&str; 4] = ["streams", "subscriptions", "stream_events", "events"];

/// The tables that are read.
pub(super) fn tables(schema: &str) -> Vec<String> {
    TABLES.map(|table| in_schema(schema, table)).into()
}

/// Looks once at all subscriptions.
///
/// # Errors
/// Those of the server.
pub(super) async fn look(
    client: &Client,
    schema: &str,
    subscriptions: &[&CommandedSubscription],
) -> Result<Looks, Error> {
    let streams: Vec<&str> = subscriptions.iter().map(|one| one.stream.as_str()).collect();
    let names: Vec<&str> = subscriptions.iter().map(|one| one.subscription.as_str()).collect();
    let limit = scan_limit(subscriptions.len());
    let query = Query::new(statement(schema), &[Type::TEXT_ARRAY, Type::TEXT_ARRAY, Type::INT8]);
    let rows = query.rows(client, &[&streams, &names, &limit]).await?;
    let mut looks = Looks { replica: false, row_security: false, looks: Vec::new() };
    for (row, subscription) in rows.iter().zip(subscriptions) {
        (looks.replica, looks.row_security) = (row.try_get(0)?, row.try_get(1)?);
        looks.looks.push(read(row, subscription, limit)?);
    }
    Ok(looks)
}

/// `$1`, `$2`: streams and subscriptions. `$3`: up to how many events are counted for each. A subscriber holds an advisory lock of the session, whose
/// key is the subscription's id, with that of the table in all but old versions.
fn statement(schema: &str) -> String {
    let [streams, subscriptions, stream_events, events] = TABLES.map(|table| in_schema(schema, table));
    let secured = [&streams, &subscriptions, &stream_events, &events]
        .map(|table| format!("pg_catalog.row_security_active({})", regclass(table)))
        .join(" or ");
    let created_at = event_time("created_at", None).measurable;
    format!(
        "with held as materialized (
             select l.classid, l.objid, l.objsubid from pg_catalog.pg_locks l
             where l.locktype = 'advisory' and l.granted
                 and l.database = (select d.oid from pg_catalog.pg_database d where d.datname = pg_catalog.current_database()))
         select pg_catalog.pg_is_in_recovery(), {secured}, {log}::oid, s.stream_version, s.deleted_at is not null,
             n.subscription_id is not null, n.last_seen, w.events, o.age, o.found,
             exists (select from held h where case h.objsubid
                 when 2 then h.classid = {locks}::oid and h.objid::bigint
                     = case when n.subscription_id > 2147483647 then n.subscription_id % 2147483647 else n.subscription_id end
                 else h.classid = 0 and h.objid::bigint = n.subscription_id end)
         from unnest($1::text[], $2::text[]) with ordinality a(stream, name, index)
         left join {streams} s on s.stream_uuid = a.stream
         left join {subscriptions} n on n.stream_uuid = a.stream and n.subscription_name = a.name
         left join lateral (select count(*) as events from (
             select from {stream_events} e
             where e.stream_id = s.stream_id and e.stream_version > coalesce(n.last_seen, 0) and n.subscription_id is not null
             limit $3) counted) w on true
         left join lateral (
             select true as found, extract(epoch from pg_catalog.clock_timestamp() - ({created_at}))::float8 as age
             from {stream_events} e left join {events} v on v.event_id = e.event_id
             where e.stream_id = s.stream_id and e.stream_version > coalesce(n.last_seen, 0) and n.subscription_id is not null
             order by e.stream_version limit 1) o on true
         order by a.index",
        log = regclass(&streams),
        locks = regclass(&subscriptions),
    )
}

fn read(row: &Row, subscription: &CommandedSubscription, limit: i64) -> Result<Result<Look, MeasureError>, Error> {
    let version: Option<i64> = row.try_get(3)?;
    let CommandedSubscription { stream, subscription, .. } = subscription;
    if row.try_get(4)? {
        return Ok(Err(MeasureError {
            reason: Reason::StreamNotFound,
            message: format!(
                "stream {stream} is deleted (deleted_at in streams), and the event store gives no subscription its events: delete the Projection, or name another stream"
            ),
        }));
    }
    if version.is_none() && stream == ALL {
        return Ok(Err(MeasureError {
            reason: Reason::StreamNotFound,
            message: "there is no stream $all: has mix event_store.init come to its end?".to_owned(),
        }));
    }
    // A subscription may be there before the first event of its stream.
    let head = Position(version.unwrap_or(0));
    let checkpoint = Position(row.try_get::<_, Option<i64>>(6)?.unwrap_or(0));
    let subscribed: bool = row.try_get(5)?;
    let beyond = u64::try_from(head.0.saturating_sub(checkpoint.0)).unwrap_or(0);
    let events = count(row, 7)?;
    let pending = counted(events, limit, beyond);
    let held: bool = row.try_get(10)?;
    let without = pending.events > 0 && !held;
    Ok(Ok(Look {
        log: row.try_get(2)?,
        head: Head::log(head, head),
        checkpoint: subscribed.then_some(vec![checkpoint]),
        pending,
        counted: events,
        by_shard: Vec::new(),
        cut: CUT,
        // None but those that hard deletes leave.
        gaps: false,
        held_back: 0,
        blocked_by: None,
        oldest: oldest(row.try_get::<_, Option<bool>>(9)?.unwrap_or(false), row.try_get(8)?),
        written: u64::try_from(head.0).unwrap_or(0),
        notes: without.then(|| Note::NoConsumer(format!("events wait, and no process holds the lock of subscription {subscription}: no node of the application handles them").into())).into_iter().collect(),
    }))
}
