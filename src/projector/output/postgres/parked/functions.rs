//! What people on call ask of the events that are set aside, in SQL: to have them handled again, or dropped.
//!
//! The functions only mark rows. The worker that owns the shard does the work, so that no one else writes to the read model.

use super::{super::functions::Function, statements::LOCK_KEY};

/// What both functions return.
macro_rules! signature {
    ($parameters:literal) => {
        concat!(
            $parameters,
            " returns table (shard int, \"position\" bigint, place text, stream text, type text, state text, reason text, attempts int, parked_at timestamptz)"
        )
    };
}

/// The same columns of the rows `told`.
const TELL: &str = "select t.shard, t.position, t.place, t.stream, t.type, t.state, t.reason, t.attempts, t.parked_at
    from told t order by t.position";

/// Marks events to be handled again.
pub(super) const REPLAY: Function = Function {
    name: "projectionist_replay",
    types: "text, bigint[], text, text, int, boolean, boolean, int",
    signature: signature!(
        "(projection text, event_positions bigint[] default null, event_stream text default null, event_type text default null, of_shard int default null, skipped boolean default false, dry_run boolean default false, at_most int default 1000)"
    ),
    body: replay,
    missed_by: "people on call who replay parked events",
};

/// Drops events, with a reason that is kept.
pub(super) const DROP: Function = Function {
    name: "projectionist_drop",
    types: "text, text, bigint[], text, text, int, boolean",
    signature: signature!(
        "(projection text, drop_reason text, event_positions bigint[] default null, event_stream text default null, event_type text default null, of_shard int default null, dry_run boolean default false)"
    ),
    body: drop_events,
    missed_by: "people on call who drop parked events",
};

/// An event that follows a parked one of its stream is marked only together with that one: the order of the stream holds. What could not be read has no type, and
/// nothing of it is kept that could be handled.
fn replay(table: &str) -> String {
    format!(
        "
#variable_conflict use_column
begin
    if $1 is null then
        raise exception 'projectionist_replay: name the projection as namespace/name' using errcode = 'null_value_not_allowed';
    end if;
    return query
    with chosen as (
        select p.* from {table} p
        where p.projection = $1 and (p.state = 'parked' or ($6 and p.state = 'skipped')) and p.type is not null
            and ($2 is null or p.position = any($2)) and ($3 is null or p.stream = $3)
            and ($4 is null or p.type = $4) and ($5 is null or p.shard = $5)
        order by p.position limit $8
    ), ready as (
        select c.* from chosen c where not exists (
            select from {table} o
            where o.projection = c.projection and o.shard = c.shard and o.stream = c.stream and o.position < c.position
                and o.state = 'parked' and not o.replay
                and not exists (select from chosen x where x.shard = o.shard and x.position = o.position))
    ), marked as (
        update {table} p set replay = true from ready r
        where not $7 and p.projection = r.projection and p.shard = r.shard and p.position = r.position
            and p.state in ('parked', 'skipped')
        returning p.*
    ), told as (
        select * from marked union all select * from ready where $7
    )
    {TELL};
end
"
    )
}

fn drop_events(table: &str) -> String {
    format!(
        "
#variable_conflict use_column
begin
    if $1 is null or btrim(coalesce($2, '')) = '' then
        raise exception 'projectionist_drop: name the projection as namespace/name, and why its events are dropped' using errcode = 'null_value_not_allowed';
    end if;
    if $3 is null and $4 is null and $5 is null then
        raise exception 'projectionist_drop: name the events by event_positions, event_stream or event_type' using errcode = 'null_value_not_allowed';
    end if;
    perform pg_advisory_xact_lock({LOCK_KEY});
    return query
    with chosen as (
        select p.* from {table} p
        where p.projection = $1 and p.state in ('parked', 'skipped')
            and ($3 is null or p.position = any($3)) and ($4 is null or p.stream = $4)
            and ($5 is null or p.type = $5) and ($6 is null or p.shard = $6)
    ), dropped as (
        update {table} p set state = 'dropped', replay = false, dropped_at = now(), dropped_reason = $2 from chosen c
        where not $7 and p.projection = c.projection and p.shard = c.shard and p.position = c.position
            and p.state in ('parked', 'skipped')
        returning c.*
    ), told as (
        select * from dropped union all select * from chosen where $7
    )
    {TELL};
end
"
    )
}
