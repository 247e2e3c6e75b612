//! Emmett's event store.
//!
//! Positions come from a sequence, so that a later one may be committed first. Consumers therefore read what was written by transactions below the oldest
//! one that runs on the server, in the order of transaction and position; what is above waits and is held back. Version 0.42 keeps the position alone
//! and goes on after it, later versions keep the pair `transaction:position`. Each is counted by its own rule.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use tokio_postgres::{Client, Error, Row, types::Type};

use super::{AT_LEAST, Look, Looks, count, counted, in_schema, regclass};
use crate::{
    api::Reason,
    clients::postgres::Query,
    lag::{BlockingWriter, Head, Note, Position, SessionInfo},
    measure::MeasureError,
    resolve::EmmettProcessor,
    sources::postgres::{
        counting::{CUT, Oldest, has_gaps, scan_limit},
        event_log::event_time,
    },
};

/// No more messages that running transactions, or later ones, wrote are counted at a look: beyond them arrivals are counted late.
const MOST_ABOVE: i64 = 200_000;

/// What to say where a table or column is not there.
pub(super) const EXPECTED: &str = "emmett-postgresql 0.42 or newer makes emt_messages and emt_processors: is spec.source.postgres.emmett.schema its schema, and has it run its migrations?";

/// What to add where the server was too slow.
pub(super) const WHEN_SLOW: &str = "; Emmett 0.42 makes no index that helps its consumers or this: create index on emt_messages (global_position), and on emt_messages (transaction_id, global_position)";

const TABLES: [&str; 2] = ["emt_messages", "emt_processors"];

/// The tables that are read.
pub(super) fn tables(schema: &str) -> Vec<String> {
    TABLES.map(|table| in_schema(schema, table)).into()
}

/// What is remembered of each partition from poll to poll.
pub(super) type Partitions = HashMap<String, Written>;

/// What was written, counted by transactions: below the oldest that runs nothing changes any more, and what is above is counted at each poll.
#[derive(Debug)]
pub(super) struct Written {
    log: u32,
    /// The oldest transaction that ran, and since when.
    oldest_running: String,
    since: Instant,
    /// Messages that transactions from there on had written.
    above: u64,
    total: u64,
}

impl Written {
    /// Takes in the oldest transaction that runs, how many messages those from the one remembered on have written, and those from this one on.
    fn take(&mut self, log: u32, oldest_running: &str, since_before: u64, since_now: u64) {
        if self.log == log {
            self.total = self.total.saturating_add(since_before.saturating_sub(self.above));
        }
        if self.oldest_running != oldest_running {
            (self.oldest_running, self.since) = (oldest_running.to_owned(), Instant::now());
        }
        (self.log, self.above) = (log, since_now);
    }
}

/// Looks once at all processors.
///
/// # Errors
/// Those of the server.
pub(super) async fn look(
    client: &Client,
    schema: &str,
    processors: &[&EmmettProcessor],
    partitions: &mut Partitions,
) -> Result<Looks, Error> {
    let names: Vec<&str> = processors.iter().map(|one| one.processor.as_str()).collect();
    let parts: Vec<&str> = processors.iter().map(|one| one.partition.as_str()).collect();
    let versions: Vec<i32> = processors.iter().map(|one| one.version).collect();
    let seen = |part: &&str| partitions.get(*part).map(|written| written.oldest_running.clone());
    let seen: Vec<Option<String>> = parts.iter().map(seen).collect();
    let limit = scan_limit(processors.len());
    let types = [Type::TEXT_ARRAY, Type::TEXT_ARRAY, Type::INT4_ARRAY, Type::TEXT_ARRAY, Type::INT8];
    let rows = Query::new(statement(schema), &types).rows(client, &[&names, &parts, &versions, &seen, &limit]).await?;
    let firsts: HashMap<&str, &Row> = parts.iter().copied().zip(&rows).collect();
    for (part, row) in firsts {
        let (log, oldest_running): (u32, String) = (row.try_get(2)?, row.try_get(3)?);
        let (since_before, since_now) = (count(row, 6)?, count(row, 7)?);
        let first = || Written {
            log,
            oldest_running: oldest_running.clone(),
            since: Instant::now(),
            above: since_now,
            total: 0,
        };
        let written = partitions.entry(part.to_owned()).or_insert_with(first);
        written.take(log, &oldest_running, since_before, since_now);
    }
    partitions.retain(|part, _| parts.contains(&part.as_str()));
    let mut looks = Looks { replica: false, row_security: false, looks: Vec::new() };
    for (row, processor) in rows.iter().zip(processors) {
        (looks.replica, looks.row_security) = (row.try_get(0)?, row.try_get(1)?);
        looks.looks.push(read(row, processor, limit, partitions.get(&processor.partition))?);
    }
    Ok(looks)
}

/// `$1` to `$3`: processors with partition and version. `$4`: the oldest running transaction at the last look. `$5`: up to how many messages are counted
/// for each. Archived messages are not read any more, and still tell how far the partition reaches. The two forms of a checkpoint are two scans, each by its own index, of which one never runs.
fn statement(schema: &str) -> String {
    let [messages, processors] = TABLES.map(|table| in_schema(schema, table));
    let secured = TABLES
        .map(|table| format!("pg_catalog.row_security_active({})", regclass(&in_schema(schema, table))))
        .join(" or ");
    let created = event_time("created", None).measurable;
    let waiting = format!(
        "select m.transaction_id as tx, m.global_position as position, extract(epoch from pg_catalog.clock_timestamp() - ({created}))::float8 as age
         from {messages} m where m.partition = r.partition and m.is_archived = false"
    );
    format!(
        "with now as materialized (
             select pg_catalog.pg_snapshot_xmin(s) as oldest, pg_catalog.pg_snapshot_xmax(s) as next from pg_catalog.pg_current_snapshot() s),
         asked as materialized (
             select a.index, a.partition, a.seen, p.processor_id is not null as known, p.last_processed_checkpoint as checkpoint
             from unnest($1::text[], $2::text[], $3::int4[], $4::text[]) with ordinality a(processor, partition, version, seen, index)
             left join {processors} p on p.processor_id = a.processor and p.partition = a.partition and p.version = a.version),
         r as materialized (
             select a.*, case when a.checkpoint ~ '^[0-9]{{1,20}}:[0-9]{{1,19}}$' then
                     least(split_part(a.checkpoint, ':', 1)::numeric, 18446744073709551615)::text::xid8 end as transaction,
                 case when a.checkpoint ~ '^([0-9]{{1,20}}:)?[0-9]{{1,19}}$' then
                     least(substring(a.checkpoint from '[0-9]+$')::numeric, 9223372036854775807)::bigint end as position
             from asked a),
         parts as materialized (
             select d.partition, n.oldest, h.raw, s.safe, c.since_before, c.since_now
             from (select partition, min(seen) as seen from asked group by partition) d cross join now n
             left join lateral (select max(m.global_position) as raw from {messages} m where m.partition = d.partition) h on true
             left join lateral (select max(m.global_position) as safe from {messages} m
                 where m.partition = d.partition and m.transaction_id < n.oldest) s on true
             left join lateral (
                 select count(*) as since_before, count(*) filter (where l.transaction_id >= n.oldest) as since_now from (
                     select m.transaction_id from {messages} m
                     where m.partition = d.partition and m.is_archived = false and m.transaction_id >= coalesce(d.seen::xid8, n.oldest)
                     order by m.transaction_id limit {MOST_ABOVE}) l) c on true),
         writer as materialized (
             select l.pid, extract(epoch from pg_catalog.clock_timestamp() - coalesce(a.xact_start, x.prepared))::float8 as open_for,
                 a.application_name, upper(substring(a.query from '(?i)^\\s*(?:(?:begin|start)[^;]*;\\s*)?([a-z]+)')) as statement,
                 coalesce(a.state like 'idle in transaction%', false) as idle, x.gid
             from now n join pg_catalog.pg_locks l on l.locktype = 'transactionid' and l.granted and l.transactionid = n.oldest::xid
             left join pg_catalog.pg_stat_activity a on a.pid = l.pid
             left join pg_catalog.pg_prepared_xacts x on l.pid is null and x.transaction = l.transactionid
             limit 1)
         select pg_catalog.pg_is_in_recovery(), {secured}, {log}::oid, t.oldest::text, t.raw, t.safe, t.since_before, t.since_now,
             r.known, r.checkpoint, r.position, w.events, w.held, w.future, w.timed, w.age,
             b.pid, b.open_for, b.application_name, b.statement, b.idle, b.gid, w.last
         from r join parts t on t.partition = r.partition cross join now n left join writer b on true
         left join lateral (
             select count(*) as events, count(*) filter (where x.tx >= n.oldest) as held, count(*) filter (where x.tx >= n.next) as future,
                 count(x.age) as timed, max(x.age) as age, max(x.position) as last
             from (
                 ({waiting} and r.transaction is null and m.global_position > r.position order by m.global_position limit $5)
                 union all
                 ({waiting} and r.transaction is not null and (m.transaction_id, m.global_position) > (r.transaction, r.position)
                     order by m.transaction_id, m.global_position limit $5)
             ) x) w on true
         order by r.index",
        log = regclass(&messages),
    )
}

fn read(
    row: &Row,
    processor: &EmmettProcessor,
    limit: i64,
    written: Option<&Written>,
) -> Result<Result<Look, MeasureError>, Error> {
    let known: bool = row.try_get(8)?;
    let position: Option<i64> = row.try_get(10)?;
    if known && position.is_none() {
        return Ok(Err(MeasureError {
            reason: Reason::InvalidAnswer,
            message: format!(
                "emt_processors.last_processed_checkpoint of processor {} is neither a position nor transaction:position: is its version of Emmett older or newer than those that the documentation names?",
                processor.processor
            ),
        }));
    }
    let raw = row.try_get::<_, Option<i64>>(4)?.unwrap_or(0);
    let safe = row.try_get::<_, Option<i64>>(5)?.unwrap_or(0);
    let beyond = u64::try_from(raw.saturating_sub(position.unwrap_or(0))).unwrap_or(0);
    // In the order of transactions a lower position may come later, so that the distance of positions says nothing.
    let by_transaction = row.try_get::<_, Option<&str>>(9)?.is_some_and(|checkpoint| checkpoint.contains(':'));
    let (beyond, cut) = if by_transaction { (0, AT_LEAST) } else { (beyond, CUT) };
    let (events, held_back, future, timed) = (count(row, 11)?, count(row, 12)?, count(row, 13)?, count(row, 14)?);
    // Other partitions draw from the same sequence.
    let spanned = row.try_get::<_, Option<i64>>(22)?.unwrap_or(0).saturating_sub(position.unwrap_or(0));
    let gaps = has_gaps(spanned, i64::try_from(events).unwrap_or(i64::MAX));
    let oldest = match row.try_get(15)? {
        _ if events == 0 => Oldest::None,
        Some(age) if timed == events => Oldest::Age(age),
        _ => Oldest::Unknown,
    };
    let blocked_by = if held_back > 0 { writer(row, written.map(|written| written.since.elapsed()))? } else { None };
    Ok(Ok(Look {
        log: row.try_get(2)?,
        head: Head::log(Position(raw), Position(safe)),
        checkpoint: position.map(|position| vec![Position(position)]),
        pending: counted(events, limit, beyond),
        counted: events,
        by_shard: Vec::new(),
        cut,
        gaps,
        held_back,
        blocked_by,
        oldest,
        written: written.map_or(0, |written| written.total),
        notes: (future > 0).then(|| Note::DeliveryStopped(RESTORED.into())).into_iter().collect(),
    }))
}

const RESTORED: &str = "events wait whose transaction_id the server has not reached: were they copied or restored from another server (pg_dump)? Emmett reads none of them before it has; set their transaction_id again";

fn writer(row: &Row, holds_for: Option<Duration>) -> Result<Option<BlockingWriter>, Error> {
    let (pid, prepared): (Option<i32>, Option<String>) = (row.try_get(16)?, row.try_get(21)?);
    if pid.is_none() && prepared.is_none() {
        return Ok(None);
    }
    let open_for: Option<f64> = row.try_get(17)?;
    Ok(Some(BlockingWriter {
        pid,
        open_for: open_for.and_then(|seconds| Duration::try_from_secs_f64(seconds.max(0.0)).ok()),
        holds_for: holds_for.unwrap_or_default(),
        session: SessionInfo {
            application: row.try_get::<_, Option<String>>(18)?.filter(|name| !name.is_empty()),
            statement: row.try_get(19)?,
            idle: row.try_get::<_, Option<bool>>(20)?.unwrap_or(false),
            prepared,
        },
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_running_transactions_have_written_is_counted_once() {
        let mut written =
            Written { log: 7, oldest_running: "100".to_owned(), since: Instant::now(), above: 2, total: 0 };
        let mut look = |log, oldest: &str, before, now| {
            written.take(log, oldest, before, now);
            written.total
        };
        assert_eq!(look(7, "100", 2, 2), 0, "the same two");
        assert_eq!(look(7, "100", 5, 5), 3);
        assert_eq!(look(7, "140", 9, 1), 7, "all but one are below the oldest that runs now");
        assert_eq!(look(7, "140", 1, 1), 7);
        assert_eq!(look(8, "150", 400, 400), 7, "made again");
        assert_eq!(look(8, "150", 0, 0), 7, "emptied");
    }
}
