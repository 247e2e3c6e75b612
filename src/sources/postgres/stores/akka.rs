//! Projections of Akka and Pekko by slices, with journal and offsets stored by R2DBC.
//!
//! An event has a slice (0 to 1,023, a hash of its persistence id) and the time at which its transaction began. An instance of a projection reads a range
//! of slices in the order of these times, and stores for each event, or for the last of each persistence id in a batch, its time and sequence number. A
//! later time may be committed first, so that what lies shortly before the offset has been handled only where its sequence number is stored.

use std::collections::HashMap;

use tokio_postgres::{Client, Error, Row, types::Type};

use super::{AT_LEAST, Look, Looks, count, oldest, regclass};
use crate::{
    api::{AkkaProjection, Reason},
    clients::postgres::Query,
    lag::{Head, Note, Pending, Position},
    measure::MeasureError,
    sources::postgres::{
        counting::{Oldest, scan_limit},
        event_log::event_time,
    },
};

/// So long before an offset events are compared with the sequence numbers that are stored. Akka takes all events to be committed 10 s after their time
/// (`backtracking.behind-current-time`), and keeps the numbers for 5 minutes (`offset-store.time-window`).
const LATE: &str = "interval '20 seconds'";

/// No more events that came since shortly before the last look are counted. Where more come, in some 20 s, arrivals are counted too low, and a note says so.
const MOST_NEW: u32 = 200_000;
const MANY_NEW: &str =
    "more than 200,000 events came within some 20 s, and only so many are counted: what arrives is more than is told";

const MANY_LATE: &str = "so many events came in the 20 s before the offset that not all are compared with the stored sequence numbers: one that was committed late may be missed";

/// What to say where a table or column is not there.
pub(super) const EXPECTED: &str = "akka-persistence-r2dbc 1.0 or newer has event_journal, and akka-projection-r2dbc akka_projection_timestamp_offset_store (Pekko: projection_timestamp_offset_store): do schema, journalTable and timestampOffsetTable of spec.source.postgres.akka name them?";

/// What to add where the server was too slow.
pub(super) const WHEN_SLOW: &str = "; has the journal the index event_journal_slice_idx on (slice, entity_type, db_timestamp, seq_nr), as Akka's own script makes it?";

/// What is remembered of each entity type from poll to poll.
pub(super) type Entities = HashMap<String, Written>;

/// What was written, counted by time: shortly before a look nothing is committed late any more, and what comes after is counted again.
#[derive(Debug)]
pub(super) struct Written {
    log: u32,
    /// From which time on events are counted again, in microseconds since 1970.
    since: i64,
    /// Events after it, at the last look.
    after: u64,
    total: u64,
    /// More came than are counted.
    cut: bool,
}

impl Written {
    /// Takes in how many events there are after the time remembered, and after this one.
    fn take(&mut self, log: u32, after_before: u64, since: i64, after: u64) {
        if self.log == log {
            self.total = self.total.saturating_add(after_before.saturating_sub(self.after));
        }
        (self.log, self.since, self.after) = (log, since, after);
        self.cut = after_before >= u64::from(MOST_NEW);
    }
}

/// Looks once at all projections. `journal` and `offsets` are quoted.
///
/// # Errors
/// Those of the server.
pub(super) async fn look(
    client: &Client,
    journal: &str,
    offsets: &str,
    projections: &[&AkkaProjection],
    entities: &mut Entities,
) -> Result<Looks, Error> {
    let names: Vec<&str> = projections.iter().map(|one| one.projection.as_str()).collect();
    let types: Vec<&str> = projections.iter().map(|one| one.entity_type.as_str()).collect();
    let ranges: Vec<i32> = projections.iter().map(|one| one.ranges.unwrap_or(0)).collect();
    let since: Vec<Option<i64>> = types.iter().map(|one| entities.get(*one).map(|written| written.since)).collect();
    let limit = scan_limit(projections.len());
    let parameters = [Type::TEXT_ARRAY, Type::TEXT_ARRAY, Type::INT4_ARRAY, Type::INT8_ARRAY, Type::INT8];
    let query = Query::new(statement(journal, offsets), &parameters);
    let rows = query.rows(client, &[&names, &types, &ranges, &since, &limit]).await?;
    let mut looks = Looks { replica: false, row_security: false, looks: Vec::new() };
    let mut by_projection: Vec<Vec<&Row>> = vec![Vec::new(); projections.len()];
    let mut by_type: HashMap<&str, &Row> = HashMap::new();
    for row in &rows {
        (looks.replica, looks.row_security) = (row.try_get(0)?, row.try_get(1)?);
        let index = usize::try_from(row.try_get::<_, i64>(3)?.saturating_sub(1)).unwrap_or(usize::MAX);
        if let (Some(shards), Some(entity)) = (by_projection.get_mut(index), types.get(index)) {
            shards.push(row);
            by_type.insert(entity, row);
        }
    }
    for (entity, row) in by_type {
        let (log, after_before, after, since) = (row.try_get(2)?, count(row, 12)?, count(row, 13)?, row.try_get(14)?);
        let first = || Written { log, since, after, total: 0, cut: false };
        entities.entry(entity.to_owned()).or_insert_with(first).take(log, after_before, since, after);
    }
    entities.retain(|entity, _| types.contains(&entity.as_str()));
    for (projection, shards) in projections.iter().zip(by_projection) {
        looks.looks.push(read(projection, &shards, entities.get(&projection.entity_type))?);
    }
    Ok(looks)
}

/// A time as a number, in microseconds since 1970; NULL for one that is no date.
fn micros(time: &str) -> String {
    format!(
        "case when {time} >= timestamptz '0001-01-02 00:00:00' and {time} < timestamptz '9999-12-31 00:00:00'
             then (extract(epoch from {time}) * 1000000)::bigint end"
    )
}

/// `$1` to `$3`: projections with entity type and number of ranges (0: by the keys). `$4`: from when on arrivals are counted. `$5`: up to how many events
/// are counted for each, which its ranges share. One row for each range.
///
/// A slice begins where the instance has come whose key its last offset has; a slice without offsets where the one that is furthest behind in
/// its range has come, as Akka does when ranges change. What lies after both this and the slice's own last offset has not been handled; what lies before the latter
/// only where no higher sequence number is stored.
fn statement(journal: &str, offsets: &str) -> String {
    let secured =
        [journal, offsets].map(|table| format!("pg_catalog.row_security_active({})", regclass(table))).join(" or ");
    format!(
        "with now as materialized (select pg_catalog.clock_timestamp() - {LATE} as settled),
         asked as materialized (
             select a.projection, a.entity, a.ranges, timestamptz 'epoch' + a.since * interval '1 microsecond' as since, a.index,
                 dense_rank() over (order by a.entity) as type
             from unnest($1::text[], $2::text[], $3::int4[], $4::int8[]) with ordinality a(projection, entity, ranges, since, index)),
         slices as materialized (select s as slice from pg_catalog.generate_series(0, 1023) s),
         heads as materialized (
             select t.type, s.slice, h.at from (select distinct type, entity from asked) t cross join slices s cross join lateral (
                 select j.db_timestamp as at from {journal} j where j.slice = s.slice and j.entity_type = t.entity
                 order by j.db_timestamp desc limit 1) h),
         written as materialized (
             select t.type, c.after_before, c.after from (
                 select type, entity, least(min(a.since), min(n.settled)) as since from asked a cross join now n group by type, entity) t
             cross join now n cross join lateral (
                 select count(*) as after_before, count(*) filter (where w.at > n.settled) as after from (
                     select e.at from heads h cross join lateral (
                         select j.db_timestamp as at from {journal} j where j.slice = h.slice and j.entity_type = t.entity
                             and j.db_timestamp > t.since and j.deleted = false order by j.db_timestamp limit {MOST_NEW}) e
                     where h.type = t.type and h.at > t.since limit {MOST_NEW}) w) c),
         spread as materialized (
             select a.index, a.projection, a.entity, a.type, x.* from asked a cross join lateral (
                 with latest as materialized (
                     select s.slice, l.* from slices s left join lateral (
                         select pg_catalog.hashtextextended(o.projection_key, 0) as key, o.projection_key as name, o.timestamp_offset as at,
                             o.timestamp_consumed as consumed, o.persistence_id as id, o.seq_nr as number
                         from {offsets} o where o.slice = s.slice and o.projection_name = a.projection
                         order by o.timestamp_offset desc, o.persistence_id desc, o.seq_nr desc limit 1) l on true),
                 keys as materialized (
                     select k.name, k.consumed, k.part[2]::int as last,
                         case when k.part[1]::int <= k.part[2]::int and k.part[2]::int < 1024 then k.part[1]::int end as first
                     from (select min(l.name) as name, max(l.consumed) as consumed,
                               regexp_match(min(l.name), '(?:^|[^0-9])([0-9]{{1,4}})-([0-9]{{1,4}})$') as part
                           from latest l where a.ranges = 0 and l.key is not null group by l.key) k),
                 owned as materialized (
                     select distinct on (s.slice) s.slice, k.first * 1024 + k.last as owner
                     from keys k join slices s on s.slice between k.first and k.last order by s.slice, k.consumed desc, k.first),
                 bounds as (
                     select b.*, coalesce(b.reached, min(b.reached) over (partition by b.owner)) - {LATE} as settled from (
                         select l.slice, l.at, l.id, l.number, case when l.at is not null then max(l.at) over (partition by l.key) end as reached,
                             case when a.ranges > 0 then l.slice * a.ranges / 1024 else coalesce(o.owner, -1) end as owner
                         from latest l left join owned o on o.slice = l.slice) b)
                 select b.owner, max(b.at) as reached, max(h.at) as head, (select min(name) from keys where first is null) as odd,
                     array_agg(b.slice) filter (where h.at > b.start) as slices, array_agg(b.start) filter (where h.at > b.start) as starts,
                     array_agg(b.slice) filter (where b.at > b.settled) as recent, array_agg(b.settled) filter (where b.at > b.settled) as since,
                     array_agg(b.at) filter (where b.at > b.settled) as until, array_agg(b.id) filter (where b.at > b.settled) as ids,
                     array_agg(b.number) filter (where b.at > b.settled) as numbers
                 from (select *, coalesce(greatest(at, settled), '-infinity') as start from bounds) b
                 left join heads h on h.type = a.type and h.slice = b.slice
                 group by b.owner) x),
         shards as materialized (
             select s.*, greatest($5 / count(*) over (partition by s.index), 100) as most from spread s)
         select pg_catalog.pg_is_in_recovery(), {secured}, {log}::oid, s.index, {head}, s.reached is not null, {reached},
             c.events, s.most, l.events, o.oldest is not null, extract(epoch from pg_catalog.clock_timestamp() - ({measurable}))::float8,
             w.after_before, w.after, {settled}, s.odd, l.looked
         from shards s cross join now n join written w on w.type = s.type
         left join lateral (
             select count(*) as events, min(x.at) as first from (
                 select e.at from unnest(s.slices, s.starts) u(slice, start) cross join lateral (
                     select j.db_timestamp as at from {journal} j where j.slice = u.slice and j.entity_type = s.entity
                         and j.db_timestamp > u.start and j.deleted = false order by j.db_timestamp limit s.most) e
                 limit s.most) x) c on true
         left join lateral (
             select min(e.at) as first from unnest(s.slices, s.starts) u(slice, start) cross join lateral (
                 select j.db_timestamp as at from {journal} j where c.events >= s.most and j.slice = u.slice and j.entity_type = s.entity
                     and j.db_timestamp > u.start and j.deleted = false order by j.db_timestamp limit 1) e) f on true
         left join lateral (
             select count(*) filter (where o.stored is null and not e.last) as events, count(*) as looked,
                 min(e.at) filter (where o.stored is null and not e.last) as first from (
                 select x.* from unnest(s.recent, s.since, s.until, s.ids, s.numbers) u(slice, since, until, id, number) cross join lateral (
                     select u.slice, j.db_timestamp as at, j.persistence_id, j.seq_nr, j.persistence_id = u.id and j.seq_nr <= u.number as last
                     from {journal} j where j.slice = u.slice and j.entity_type = s.entity and j.db_timestamp > u.since and j.db_timestamp <= u.until
                         and j.deleted = false
                     order by j.db_timestamp desc limit s.most) x
                 limit s.most) e
             left join lateral (
                 select true as stored from {offsets} o where o.slice = e.slice and o.projection_name = s.projection
                     and o.timestamp_offset >= e.at and o.persistence_id = e.persistence_id and o.seq_nr >= e.seq_nr limit 1) o on not e.last) l on true
         cross join lateral (select least(c.first, f.first, l.first) as oldest) o
         order by s.index, s.owner",
        log = regclass(journal),
        head = micros("s.head"),
        reached = micros("s.reached"),
        settled = micros("n.settled"),
        measurable = event_time("oldest", None).measurable,
    )
}

/// From the rows of a projection, one for each range.
fn read(
    projection: &AkkaProjection,
    rows: &[&Row],
    written: Option<&Written>,
) -> Result<Result<Look, MeasureError>, Error> {
    let AkkaProjection { projection, ranges, .. } = projection;
    let refused = |reason, message| Ok(Err(MeasureError { reason, message }));
    let mut look = Look {
        log: 0,
        head: Head::Unnumbered,
        checkpoint: None,
        pending: Pending { events: 0, exact: true },
        counted: 0,
        by_shard: Vec::new(),
        cut: AT_LEAST,
        gaps: false,
        held_back: 0,
        blocked_by: None,
        oldest: Oldest::None,
        written: written.map_or(0, |written| written.total),
        notes: written.filter(|written| written.cut).map(|_| Note::Estimated(MANY_NEW.into())).into_iter().collect(),
    };
    let (mut heads, mut reached, mut known) = (Vec::new(), Vec::new(), false);
    for row in rows {
        if let (None, Some(key)) = (ranges, row.try_get::<_, Option<String>>(15)?) {
            return refused(
                Reason::InvalidSpec,
                format!(
                    "the key {key} of projection {projection} does not end with its first and last slice, as in carts-0-255: set spec.source.postgres.akka.ranges to the number of slice ranges"
                ),
            );
        }
        let (stored, offset): (bool, Option<i64>) = (row.try_get(5)?, row.try_get(6)?);
        if stored && offset.is_none() {
            return refused(
                Reason::InvalidAnswer,
                format!("timestamp_offset of projection {projection} is no date between the years 1 and 9999"),
            );
        }
        look.log = row.try_get(2)?;
        known |= stored;
        heads.push(Position(row.try_get::<_, Option<i64>>(4)?.unwrap_or(0)));
        reached.push(Position(offset.unwrap_or(0)));
        let (after, most, late) = (count(row, 7)?, count(row, 8)?, count(row, 9)?);
        look.by_shard.push(after.saturating_add(late));
        look.pending.events = look.pending.events.saturating_add(after).saturating_add(late);
        look.pending.exact &= after < most;
        if count(row, 16)? >= most && look.notes.is_empty() {
            look.notes.push(Note::Estimated(MANY_LATE.into()));
        }
        look.oldest = older(look.oldest, oldest(row.try_get(10)?, row.try_get(11)?));
    }
    look.head = Head::Shards(heads);
    look.checkpoint = known.then_some(reached);
    Ok(Ok(look))
}

/// The older of two; unknown where one is.
fn older(a: Oldest, b: Oldest) -> Oldest {
    match (a, b) {
        (Oldest::None, other) | (other, Oldest::None) => other,
        (Oldest::Age(a), Oldest::Age(b)) => Oldest::Age(a.max(b)),
        (Oldest::Unknown, _) | (_, Oldest::Unknown) => Oldest::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_shortly_before_a_look_is_counted_once() {
        let mut written = Written { log: 7, since: 100, after: 2, total: 0, cut: false };
        let mut look = |log, after_before, since, after| {
            written.take(log, after_before, since, after);
            written.total
        };
        assert_eq!(look(7, 2, 110, 2), 0, "the same two");
        assert_eq!(look(7, 5, 120, 1), 3, "one of them within the last seconds");
        assert_eq!(look(7, 3, 130, 3), 5, "one of the two late");
        assert_eq!(look(8, 400, 140, 400), 5, "made again");
        assert_eq!(look(8, 0, 150, 0), 5, "emptied");
        assert_eq!(look(8, 200_000, 160, 150_000), 200_005, "as many as are counted");
        assert!(written.cut);
        written.take(8, 150_010, 170, 10);
        assert!(!written.cut);
    }

    #[test]
    fn an_age_that_is_unknown_in_one_range_is_unknown_for_all() {
        assert_eq!(older(Oldest::Age(3.0), Oldest::Age(5.0)), Oldest::Age(5.0));
        assert_eq!(older(Oldest::None, Oldest::Age(5.0)), Oldest::Age(5.0));
        assert_eq!(older(Oldest::Age(5.0), Oldest::Unknown), Oldest::Unknown);
        assert_eq!(older(Oldest::None, Oldest::None), Oldest::None);
    }
}
