//! Looks at an event table and says up to which position it may be read without missing an event that is still in flight.
//!
//! [`Log::look`] reads the head, then, in a later statement, who may still be writing; [`Follower`] draws the conclusion from look to look
//! (the argument is in [`crate::lag::SafeHead`]). Whatever is read or counted up to its answer must be read in a statement after
//! the look.
//!
//! A transaction that writes holds `RowExclusiveLock` on the table (or a partition of it) from before its position is handed out until it has
//! ended; one that drew a position holds the same lock on the sequence, from before the draw, also when the draw was in a savepoint that was
//! rolled back. Stronger locks do not matter: a transaction that holds one and then writes holds this one as well, and `VACUUM` or `CREATE INDEX` must not
//! look like writers. The lock is let go after the commit has become visible.
//!
//! A transaction that only deletes or updates rows holds the lock on the table as well. Where the position is `generated always as
//! identity`, every position comes from the column's own sequence, so that there only the locks on sequences count: a transaction that has not
//! drawn yet will draw a position above every head that was read before. An application that draws its positions itself and inserts them with
//! `overriding system value` in a later transaction is not seen, there or elsewhere.
//!
//! Where positions are committed in their order ([`Relation::commits_in_order`]), no writer has to be watched: all that is committed is safe.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use tokio_postgres::{Client, Error, types::Type};

mod columns;
mod error;
mod ordering;
mod positions;
mod relation;

pub use columns::{EventBody, EventTime, check_event_columns};
pub(super) use columns::{event_time, is_known_zone};
pub use error::LogError;
pub use relation::Relation;

use crate::{
    api::{EventRows, EventTable, Reason},
    clients::postgres::{
        Query, quote_identifier,
        row_security::{self, Visibility},
    },
    lag::{BlockingWriter, Position, SafeHead, SessionInfo, Writer, WriterId},
};

/// One look at a log.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct LogReading {
    /// The highest committed position; 0 while the table is empty.
    pub head: Position,
    /// Who may have been writing when the head was read.
    pub writers: Vec<Writer>,
}

/// An event table with the statements that watch it.
#[derive(Clone, Debug)]
pub struct Log {
    name: String,
    regclass: String,
    position: String,
    head: Query,
    /// Absent where none has to be watched.
    writers: Option<Query>,
    dense: Query,
    time: EventTime,
}

/// The table with its partitions and the sequences behind their columns.
const WATCHED: &str = "
with recursive log(relid) as (
    select cast($1::text as regclass)::oid
    union
    select i.inhrelid from pg_catalog.pg_inherits i join log on i.inhparent = log.relid
), sequences(relid) as (
    select d.objid
    from log
    join pg_catalog.pg_depend d on d.refobjid = log.relid and d.refclassid = 'pg_catalog.pg_class'::regclass
        and d.classid = 'pg_catalog.pg_class'::regclass and d.deptype in ('a', 'i')
    join pg_catalog.pg_class s on s.oid = d.objid and s.relkind = 'S'
    union
    select d.refobjid
    from log
    join pg_catalog.pg_attrdef a on a.adrelid = log.relid
    join pg_catalog.pg_depend d on d.objid = a.oid and d.classid = 'pg_catalog.pg_attrdef'::regclass
        and d.refclassid = 'pg_catalog.pg_class'::regclass
    join pg_catalog.pg_class s on s.oid = d.refobjid and s.relkind = 'S'
)";

/// After [`WATCHED`]: the transactions that may hold positions which are not visible yet. `$2` is the name of the position's column.
///
/// Locks on the table itself count unless every position comes from the column's own sequence (see the module): `generated always as
/// identity` in every part, no trigger that could set another position, and no subscription, which writes what another server chose.
const WRITERS: &str = r"
, drawn(always) as (
    select not exists (
        select from log
        left join pg_catalog.pg_attribute a on a.attrelid = log.relid and a.attname = $2::text and not a.attisdropped
        where a.attidentity is distinct from 'a'
    ) and not exists (
        select from log
        join pg_catalog.pg_trigger t on t.tgrelid = log.relid and t.tgenabled <> 'D' and t.tgtype & 7 = 7
    ) and not exists (select from pg_catalog.pg_subscription_rel r join log on r.srrelid = log.relid)
)
select l.virtualtransaction, max(l.pid),
    max(extract(epoch from clock_timestamp() - coalesce(a.xact_start, p.prepared)))::float8,
    max(a.application_name), max(upper(substring(a.query from '(?i)^\s*(?:(?:begin|start)[^;]*;\s*)?([a-z]+)'))),
    coalesce(bool_or(a.state like 'idle in transaction%'), false), max(p.gid)
from pg_catalog.pg_locks l
left join pg_catalog.pg_stat_activity a on a.pid = l.pid
left join lateral (
    select x.gid, x.prepared
    from pg_catalog.pg_locks t join pg_catalog.pg_prepared_xacts x on x.transaction = t.transactionid
    where l.pid is null and t.pid is null and t.locktype = 'transactionid' and t.virtualtransaction = l.virtualtransaction
) p on true
where l.locktype = 'relation' and l.granted and l.mode = 'RowExclusiveLock'
    and l.database = (select oid from pg_catalog.pg_database where datname = current_database())
    and l.relation in (
        select relid from sequences union all select relid from log where not (select always from drawn)
    )
    and l.pid is distinct from pg_backend_pid()
group by l.virtualtransaction";

impl Log {
    /// Checks that the table can be followed. What the server said holds for this moment: ask again now and then.
    ///
    /// # Errors
    /// The table or a column is missing or unsuitable, it is a view, positions are not unique and above 0 or are handed out in another order
    /// than they are written in, or row security hides the events.
    pub async fn check(client: &Client, table: &EventTable, events: &EventRows) -> Result<Self, LogError> {
        let failed = |source| LogError::Postgres { table: table.table.clone(), source };
        let refused = |reason, message| Err(LogError::Unsuitable { table: table.table.clone(), reason, message });
        let relation = Relation::new(table, events);
        let time = columns::check_measured(client, table, &relation).await?;
        let kind = "select c.relkind::text from pg_catalog.pg_class c where c.oid = cast($1::text as regclass)::oid";
        let kind = Query::new(kind, &[Type::TEXT]).row(client, &[&relation.table]).await.map_err(failed)?;
        check_kind(table, kind.try_get(0).map_err(failed)?)?;
        for part in &relation.tables {
            match row_security::visibility(client, part).await.map_err(failed)? {
                Visibility::Nothing(advice) => {
                    return refused(Reason::PermissionDenied, advice.hidden("row security hides all events"));
                }
                // An event of which a part is hidden would look like one without type.
                Visibility::Filtered(advice) if relation.tables.len() > 1 => {
                    return refused(Reason::PermissionDenied, advice.hidden("row security may hide parts of events"));
                }
                Visibility::Filtered(_) | Visibility::All => {}
            }
        }
        if relation.commits_in_order {
            return Ok(Self::new(table, &relation, time));
        }
        let objection = match positions::objection(client, table).await.map_err(failed)? {
            Some(message) => Some(message),
            None => ordering::objection(client, table).await.map_err(failed)?,
        };
        match objection {
            Some(message) => refused(Reason::PositionUnsuitable, message),
            None => Ok(Self::new(table, &relation, time)),
        }
    }

    /// How the time of an append is read.
    pub fn event_time(&self) -> &EventTime {
        &self.time
    }

    fn new(table: &EventTable, relation: &Relation, time: EventTime) -> Self {
        let Relation { table: regclass, positions, head, commits_in_order, .. } = relation;
        let position = quote_identifier(&table.position);
        let head = Query::new(format!("select {head}::bigint, pg_catalog.pg_is_in_recovery()"), &[]);
        let watch = || Query::new(format!("{WATCHED}{WRITERS}"), &[Type::TEXT, Type::TEXT]);
        let dense = Query::new(
            format!(
                "with run as (
                     select p, row_number() over (order by p) as n
                     from (select {position}::bigint as p from {positions} where {position} > $1::bigint order by {position} limit $2::bigint) s
                 )
                 select max(p) from run where n < coalesce((select min(n) from run where p <> $1::bigint + n), $2::bigint + 1)"
            ),
            &[Type::INT8, Type::INT8],
        );
        Self {
            name: table.table.clone(),
            regclass: regclass.clone(),
            position: table.position.clone(),
            head,
            writers: (!commits_in_order).then(watch),
            dense,
            time,
        }
    }

    /// Prepares by name what watches the table: see [`Query::prepare`].
    ///
    /// # Errors
    /// Those of the server.
    pub async fn prepare(&mut self, client: &Client) -> Result<(), LogError> {
        for query in [&mut self.head, &mut self.dense].into_iter().chain(self.writers.as_mut()) {
            let prepared = query.prepare(client).await;
            prepared.map_err(|source| LogError::Postgres { table: self.name.clone(), source })?;
        }
        Ok(())
    }

    /// Reads the head, and then who may have been writing meanwhile.
    ///
    /// # Errors
    /// Those of the server, and `SourceIsReplica` on a standby, which does not see the writers of its primary.
    pub async fn look(&self, client: &Client) -> Result<LogReading, LogError> {
        let failed = |source| LogError::Postgres { table: self.name.clone(), source };
        let row = self.head.row(client, &[]).await.map_err(failed)?;
        if row.try_get::<_, bool>(1).map_err(failed)? {
            return Err(LogError::Unsuitable {
                table: self.name.clone(),
                reason: Reason::SourceIsReplica,
                message: "the database is a replica, where transactions in flight on the primary cannot be seen: connect to the primary"
                    .to_owned(),
            });
        }
        let head: Option<i64> = row.try_get(0).map_err(failed)?;
        if head.is_none()
            && let Visibility::Filtered(advice) | Visibility::Nothing(advice) =
                row_security::visibility(client, &self.regclass).await.map_err(failed)?
        {
            return Err(LogError::Unsuitable {
                table: self.name.clone(),
                reason: Reason::PermissionDenied,
                message: advice.hidden(
                    "no event is visible, which does not mean that there is none: row security may hide all events",
                ),
            });
        }
        let Some(writers) = &self.writers else {
            let without_row = || LogError::Unsuitable {
                table: self.name.clone(),
                reason: Reason::StreamNotFound,
                message: "there is no stream $all: has mix event_store.init come to its end?".to_owned(),
            };
            return Ok(LogReading { head: head.map(Position).ok_or_else(without_row)?, writers: Vec::new() });
        };
        // Must be a later statement than the head's: see the module.
        let writers = writers.rows(client, &[&self.regclass, &self.position]).await.map_err(failed)?;
        let writers = writers
            .iter()
            .map(|row| {
                Ok(Writer {
                    id: WriterId(row.try_get(0)?),
                    pid: row.try_get(1)?,
                    open_for: row
                        .try_get::<_, Option<f64>>(2)?
                        .and_then(|seconds| Duration::try_from_secs_f64(seconds.max(0.0)).ok()),
                    session: SessionInfo {
                        application: row.try_get::<_, Option<String>>(3)?.filter(|name| !name.is_empty()),
                        statement: row.try_get(4)?,
                        idle: row.try_get(5)?,
                        prepared: row.try_get(6)?,
                    },
                })
            })
            .collect::<Result<_, Error>>()
            .map_err(failed)?;
        Ok(LogReading { head: Position(head.unwrap_or(0)), writers })
    }

    /// The end of the run of positions without a gap that begins right after `from`, looking at `limit` events at most. `None` when the
    /// next position is missing.
    ///
    /// # Errors
    /// Those of the server.
    pub async fn dense_until(&self, client: &Client, from: Position, limit: u32) -> Result<Option<Position>, LogError> {
        let failed = |source| LogError::Postgres { table: self.name.clone(), source };
        let row = self.dense.row(client, &[&from.0, &i64::from(limit)]).await.map_err(failed)?;
        Ok(row.try_get::<_, Option<i64>>(0).map_err(failed)?.map(Position))
    }
}

fn check_kind(table: &EventTable, relkind: &str) -> Result<(), LogError> {
    if ["r", "p"].contains(&relkind) {
        return Ok(());
    }
    Err(LogError::Unsuitable {
        table: table.table.clone(),
        reason: Reason::InvalidSpec,
        message: "spec.source.postgres.eventTable.table must be a table: through a view or a foreign table it cannot be seen who is writing"
            .to_owned(),
    })
}

/// Follows one log from look to look.
#[derive(Clone, Debug, Default)]
pub struct Follower {
    safe_head: SafeHead,
    head: Option<Position>,
    running: BTreeSet<WriterId>,
    /// The names under which a prepared transaction may have been seen before it was prepared.
    earlier_names: BTreeMap<WriterId, BTreeSet<WriterId>>,
}

impl Follower {
    /// The highest position known to be safe, once there is one.
    pub fn position(&self) -> Option<Position> {
        self.safe_head.position()
    }

    /// From where [`Log::dense_until`] should be asked before [`Self::observe`], if its answer can help: the last safe head, or else the
    /// checkpoint, a position that was found to be safe before.
    pub fn dense_from(&self, look: &LogReading, checkpoint: Option<Position>) -> Option<Position> {
        if look.writers.is_empty() || self.head.is_some_and(|before| look.head < before) {
            return None;
        }
        self.position().or(checkpoint).filter(|from| *from < look.head)
    }

    /// True when the look shows a head before the one seen last: the log was emptied or restored.
    pub fn went_back(&self, look: &LogReading) -> bool {
        self.head.is_some_and(|before| look.head < before)
    }

    /// The transaction to name while the safe head does not move: of those that must end first, the one that has been open for longest.
    pub fn blocking(&self, look: &LogReading) -> Option<BlockingWriter> {
        let named = |writer: &&Writer| self.safe_head.waits_for().is_some_and(|ids| ids.contains(&writer.id));
        let oldest = |writers: Vec<&Writer>| writers.into_iter().max_by_key(|writer| writer.open_for).cloned();
        // One that was prepared meanwhile goes by another name.
        let found = oldest(look.writers.iter().filter(named).collect());
        let Writer { pid, open_for, session, .. } = found.or_else(|| oldest(look.writers.iter().collect()))?;
        Some(BlockingWriter { pid, open_for, holds_for: Duration::ZERO, session })
    }

    /// Takes in a look, with the end of the run without a gap where that was asked for, and returns the safe head. Starts over when the
    /// log went back.
    pub fn observe(&mut self, look: &LogReading, dense_until: Option<Position>) -> Option<Position> {
        if self.went_back(look) {
            *self = Self::default();
        }
        self.head = Some(look.head);
        let writers = self.with_earlier_names(&look.writers);
        self.safe_head.observe(look.head, &writers, dense_until)
    }

    /// `PREPARE TRANSACTION` gives a writer another name, under which it goes on holding its positions. Which one it was cannot be told, so
    /// each writer that vanished when a prepared one appeared is taken to live on for as long as that does.
    fn with_earlier_names(&mut self, writers: &[Writer]) -> Vec<Writer> {
        let now: BTreeSet<WriterId> = writers.iter().map(|writer| writer.id.clone()).collect();
        let vanished: BTreeSet<WriterId> = self.running.difference(&now).cloned().collect();
        self.earlier_names.retain(|prepared, _| now.contains(prepared));
        for prepared in writers.iter().filter(|writer| writer.pid.is_none()) {
            self.earlier_names.entry(prepared.id.clone()).or_insert_with(|| vanished.clone());
        }
        let mut all = writers.to_vec();
        let mut names = now;
        for name in self.earlier_names.values().flatten() {
            if names.insert(name.clone()) {
                all.push(Writer { id: name.clone(), pid: None, open_for: None, session: SessionInfo::default() });
            }
        }
        self.running = names;
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(head: i64, writers: &[(&str, Option<i32>)]) -> LogReading {
        let writers = writers
            .iter()
            .map(|(id, pid)| Writer {
                id: WriterId((*id).to_owned()),
                pid: *pid,
                open_for: None,
                session: SessionInfo::default(),
            })
            .collect();
        LogReading { head: Position(head), writers }
    }

    #[test]
    fn a_transaction_that_is_prepared_meanwhile_still_holds_the_head() {
        let mut follower = Follower::default();
        follower.observe(&look(4, &[]), None);
        assert_eq!(follower.observe(&look(6, &[("3/7", Some(11))]), None), Some(Position(4)));
        assert_eq!(follower.observe(&look(6, &[("-1/900", None)]), None), Some(Position(4)), "prepared, not ended");
        assert_eq!(follower.observe(&look(8, &[("-1/900", None)]), None), Some(Position(4)));
        assert_eq!(follower.observe(&look(8, &[]), None), Some(Position(8)));
    }

    #[test]
    fn an_old_prepared_transaction_does_not_keep_ended_writers_alive() {
        let mut follower = Follower::default();
        follower.observe(&look(4, &[("-1/900", None)]), Some(Position(4)));
        follower.observe(&look(6, &[("-1/900", None), ("3/7", Some(11))]), Some(Position(4)));
        follower.observe(&look(6, &[("-1/900", None)]), None);
        assert!(!follower.running.contains(&WriterId("3/7".to_owned())));
    }

    #[test]
    fn a_log_that_went_back_is_followed_from_the_start() {
        let mut follower = Follower::default();
        follower.observe(&look(40, &[]), None);
        let emptied = look(0, &[("3/7", Some(11))]);
        assert!(follower.went_back(&emptied));
        assert_eq!(follower.dense_from(&emptied, Some(Position(40))), None);
        assert_eq!(follower.observe(&emptied, None), None, "nothing is known of the new log yet");
        assert_eq!(follower.observe(&look(2, &[]), None), Some(Position(2)));
    }

    #[test]
    fn asks_for_the_run_without_a_gap_only_where_it_helps() {
        let mut follower = Follower::default();
        let busy = look(9, &[("3/7", Some(11))]);
        assert_eq!(follower.dense_from(&busy, None), None, "from where?");
        assert_eq!(follower.dense_from(&busy, Some(Position(5))), Some(Position(5)));
        assert_eq!(follower.dense_from(&look(9, &[]), Some(Position(5))), None, "no writer");
        follower.observe(&look(9, &[]), None);
        assert_eq!(follower.dense_from(&busy, Some(Position(5))), None, "all is safe");
        assert_eq!(follower.dense_from(&look(12, &[("3/8", Some(11))]), Some(Position(5))), Some(Position(9)));
    }

    #[test]
    fn names_the_writer_that_is_open_for_longest_of_those_that_hold_the_head_back() {
        let mut follower = Follower::default();
        let mut busy = look(9, &[("3/7", Some(11)), ("4/1", Some(12))]);
        busy.writers[1].open_for = Some(Duration::from_secs(9));
        follower.observe(&busy, None);
        assert_eq!(follower.blocking(&busy).unwrap().pid, Some(12));
        let mut later = look(12, &[("3/7", Some(11)), ("5/1", Some(13))]);
        later.writers[1].open_for = Some(Duration::from_secs(900));
        follower.observe(&later, None);
        assert_eq!(follower.blocking(&later).unwrap().pid, Some(11), "13 began to write after 9 was seen");
    }

    #[test]
    fn what_is_no_table_is_refused() {
        let table = EventTable::default();
        assert!(check_kind(&table, "r").is_ok() && check_kind(&table, "p").is_ok());
        assert_eq!(check_kind(&table, "v").unwrap_err().reason(), Reason::InvalidSpec);
    }
}
