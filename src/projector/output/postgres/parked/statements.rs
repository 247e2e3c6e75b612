//! The SQL about events that are set aside. `table` is the table's name, ready for SQL.

/// The lock that is held while events of the projection `$1` are parked or dropped, so that never more than allowed are parked, and none behind one that is
/// being dropped.
pub(super) const LOCK_KEY: &str = "hashtextextended('projectionist parked ' || $1::text, 0)";

/// A row whose event is parked again, since someone moved the checkpoint back, is as new.
const AS_NEW: &str = "on conflict (projection, shard, position) do update set
     event_position = excluded.event_position, place = excluded.place, stream = excluded.stream, type = excluded.type,
     recorded_at = excluded.recorded_at, data = excluded.data, state = excluded.state, reason = excluded.reason,
     error_class = excluded.error_class, attempts = excluded.attempts, first_failed_at = excluded.first_failed_at,
     parked_at = excluded.parked_at, replay = false, dropped_at = null, dropped_reason = null";

/// Whether the role may do all that parking takes. A list of rights would ask for one of them.
pub(super) const MAY_WRITE: &str =
    "select has_table_privilege(t, 'select') and has_table_privilege(t, 'insert') and has_table_privilege(t, 'update')
     and has_table_privilege(t, 'delete') from (select to_regclass($1::text) as t) s";

pub(super) fn definition(table: &str) -> String {
    // The body is text, since what is no JSON for PostgreSQL may be the very reason why an event fails.
    format!(
        "create table {table} (
             projection text not null,
             shard int not null,
             position bigint not null,
             event_position bigint,
             place text not null,
             stream text,
             type text,
             recorded_at timestamptz,
             data text,
             state text not null check (state in ('parked', 'skipped', 'dropped')),
             reason text not null,
             error_class text,
             attempts int not null default 0,
             first_failed_at timestamptz,
             parked_at timestamptz not null default now(),
             replay boolean not null default false,
             dropped_at timestamptz,
             dropped_reason text,
             primary key (projection, shard, position)
         );
         create index on {table} (projection, shard, position) where state = 'parked' or replay"
    )
}

/// Parks an event behind others of its stream. Parameters: projection, shard, position, position as handlers get it, place, stream, type, time, body.
pub(super) fn behind(table: &str) -> String {
    format!(
        "insert into {table} (projection, shard, position, event_position, place, stream, type, recorded_at, data, state, reason)
         select $1::text, s.shard, $3::bigint, $4::bigint, $5::text, $6::text, $7::text, $8::timestamptz, $9::text, 'parked',
             'behind the event at ' || coalesce((
                 select o.place from {table} o
                 where o.projection = $1 and o.shard = s.shard and o.stream = $6 and o.position < $3 and o.state = 'parked'
                 order by o.position limit 1), 'an earlier place')
         from (select $2::oid::bigint::int as shard) s
         {AS_NEW}"
    )
}

/// Sets aside an event that failed each time. Parameters as of [`behind`]; then state, reason, class of the error, attempts, and seconds since the first.
pub(super) fn set_aside(table: &str) -> String {
    format!(
        "insert into {table} (projection, shard, position, event_position, place, stream, type, recorded_at, data, state, reason,
             error_class, attempts, first_failed_at)
         values ($1, $2::oid::bigint::int, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13::oid::bigint::int,
             now() - make_interval(secs => $14))
         {AS_NEW}"
    )
}

/// The streams of shards with parked events, and whether there are events to be handled again. Parameters: projection, shards.
pub(super) fn streams(table: &str) -> String {
    format!(
        "select shard, stream, bool_or(state = 'parked'), bool_or(replay) from {table}
         where projection = $1 and shard = any($2::int[]) and (state = 'parked' or replay) group by 1, 2"
    )
}

/// How many events are parked, up to so many. Parameters: projection, the most.
pub(super) fn count(table: &str) -> String {
    format!("select count(*) from (select from {table} where projection = $1 and state = 'parked' limit $2) p")
}

/// The first event of shards that is to be handled again: none that follows one of its stream that stays parked. Parameters: projection, shards.
pub(super) fn first_marked(table: &str) -> String {
    format!(
        "select p.shard, p.position, p.event_position, p.place, p.stream, p.type, p.recorded_at, p.data
         from {table} p
         where p.projection = $1 and p.shard = any($2::int[]) and p.replay and p.type is not null and not exists (
             select from {table} o
             where o.projection = p.projection and o.shard = p.shard and o.stream = p.stream and o.position < p.position
                 and o.state = 'parked' and not o.replay)
         order by p.position limit 1"
    )
}

/// Takes out an event that is to be handled again. Parameters: projection, shard, position.
pub(super) fn take_out(table: &str) -> String {
    format!("delete from {table} where projection = $1 and shard = $2 and position = $3 and replay")
}

/// Keeps an event that failed again, and its stream with it. Parameters: projection, shard, position, stream, reason, class of the error.
pub(super) fn keep(table: &str) -> String {
    format!(
        "update {table} p set replay = false,
             attempts = case when p.position = $3 then p.attempts + 1 else p.attempts end,
             first_failed_at = case when p.position = $3 then coalesce(p.first_failed_at, now()) else p.first_failed_at end,
             reason = case when p.position = $3 then $5::text else p.reason end,
             error_class = case when p.position = $3 then $6::text else p.error_class end
         where p.projection = $1 and p.shard = $2 and p.replay and (p.position = $3 or p.stream = $4::text)"
    )
}
