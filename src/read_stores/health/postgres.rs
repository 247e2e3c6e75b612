//! The connections of a PostgreSQL server, against the limits that bind the user in the Secret; and who waits there for a lock.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::{Instant, timeout_at};
use tokio_postgres::{Error, Row};

use crate::{
    api::{ConnectionLimit, Reason},
    clients::postgres::{Database, Query, classify},
    measure::MeasureError,
    store_health::{Connections, LockSession, LockWait, StoreSample},
};

/// The statement may take as long as this, once the connection is ours.
const PATIENCE: Duration = Duration::from_secs(3);
/// The question about locks may take as long as this.
const LOCKS_PATIENCE: Duration = Duration::from_secs(1);

/// What processes are is shown to their own role and to members of `pg_read_all_stats`. Of the others only those count that belong to a role and a database,
/// as connections do, and as workers of parallel queries and of logical replication do, too.
const CONNECTIONS: &str = "
select count(*) filter (where a.is_ours), count(*) filter (where a.is_ours and a.usesysid = r.oid),
    count(*) filter (where a.is_ours and a.datid = d.oid), coalesce(bool_or(a.is_ours and a.is_hidden), false),
    pg_catalog.current_setting('max_connections')::bigint, case when r.rolsuper then 0 else
        pg_catalog.current_setting('superuser_reserved_connections')::bigint
        + case when coalesce(pg_catalog.pg_has_role(r.oid, pg_catalog.to_regrole('pg_use_reserved_connections')::oid, 'usage'), false) then 0
            else coalesce(pg_catalog.current_setting('reserved_connections', true)::bigint, 0) end end,
    case when r.rolsuper then -1 else r.rolconnlimit end::bigint, case when r.rolsuper then -1 else d.datconnlimit end::bigint
from (
    select datid, usesysid, backend_type is null as is_hidden, coalesce(backend_type = 'client backend', usesysid is not null and datid is not null) as is_ours
    from pg_catalog.pg_stat_activity
) a
cross join pg_catalog.pg_roles r cross join pg_catalog.pg_database d
where r.rolname = session_user and d.datname = pg_catalog.current_database()
group by r.oid, r.rolsuper, r.rolconnlimit, d.oid, d.datconnlimit";

/// The session of this database that has waited longest for a lock, for five seconds at least: shorter waits are usual. Advisory locks are left out, which
/// applications wait for on purpose, and so are those for the end of transactions as a whole. Of those in its way one that does not wait itself, if there is one.
/// Rows are locked by transactions, which are of no database, so that the session says of which it is. Everybody may see this of all sessions. `waitstart` is
/// there from PostgreSQL 14 on: of older servers nothing is told. A transaction that was prepared (`PREPARE TRANSACTION`) holds locks as process 0.
const LOCK_WAIT: &str = "
select w.pid, coalesce(w.application_name, ''), (extract(epoch from w.since) * 1000)::bigint, b.pid, coalesce(h.application_name, '')
from (
    select l.pid, a.application_name, (pg_catalog.to_jsonb(l) ->> 'waitstart')::timestamptz as since
    from pg_catalog.pg_locks l join pg_catalog.pg_stat_activity a on a.pid = l.pid
    where not l.granted and l.locktype not in ('advisory', 'virtualxid')
        and (pg_catalog.to_jsonb(l) ->> 'waitstart')::timestamptz < pg_catalog.clock_timestamp() - interval '5 seconds'
        and a.datid = (select oid from pg_catalog.pg_database where datname = pg_catalog.current_database())
    order by since, l.pid limit 1
) w
cross join lateral pg_catalog.unnest(pg_catalog.pg_blocking_pids(w.pid)) as b(pid)
left join pg_catalog.pg_stat_activity h on h.pid = b.pid
order by exists (select from pg_catalog.pg_locks o where o.pid = b.pid and not o.granted), b.pid limit 1";

pub(super) async fn health(database: &Database, deadline: Instant) -> Result<StoreSample, MeasureError> {
    let lease = database.lease(deadline).await?;
    let client = &lease.live.session.client;
    let query = Query::new(CONNECTIONS, &[]);
    let started = Instant::now();
    let asked = timeout_at(started + PATIENCE, lease.live.reading(query.row(client, &[]))).await;
    let latency = started.elapsed();
    let Ok(answer) = asked else {
        lease.abandon().await;
        return Err(database.timed_out());
    };
    let answer = answer.and_then(|row| row).and_then(|row| counted(&row));
    let waits = Query::new(LOCK_WAIT, &[]);
    let waits = timeout_at(Instant::now() + LOCKS_PATIENCE, lease.live.reading(waits.rows(client, &[]))).await;
    let in_time = waits.is_ok();
    // A server that does not tell it, or not soon, is no less healthy.
    let waits = waits.ok().and_then(|answer| answer.and_then(|rows| rows).ok());
    let lock_wait = waits.and_then(|rows| lock_wait(rows.first()?).ok());
    let sample = match answer {
        Ok(connections) => {
            Ok(StoreSample { latency, connections: Some(connections), lock_wait, ..StoreSample::default() })
        }
        Err(error) => match classify(&error) {
            (Reason::PermissionDenied, message) => {
                let missing = format!("connections: {message}: grant select on pg_catalog.pg_stat_activity");
                Ok(StoreSample { latency, missing: Some(missing.into()), lock_wait, ..StoreSample::default() })
            }
            _ => Err(database.failed(&error)),
        },
    };
    if in_time {
        lease.give_back();
    } else {
        lease.abandon().await;
    }
    sample
}

fn lock_wait(row: &Row) -> Result<LockWait, Error> {
    let session = |at: usize| Ok::<_, Error>(LockSession { pid: row.try_get(at)?, application: row.try_get(at + 1)? });
    let since: Option<i64> = row.try_get(2)?;
    let since = since.and_then(|since| Timestamp::from_millisecond(since).ok());
    Ok(LockWait { waiting: session(0)?, since, holding: session(3)? })
}

fn counted(row: &Row) -> Result<Connections, Error> {
    let number = |column| row.try_get::<_, i64>(column);
    let (server, role, database) = (number(0)?, number(1)?, number(2)?);
    let hidden: bool = row.try_get(3)?;
    let (most, reserved, of_role, of_database) = (number(4)?, number(5)?, number(6)?, number(7)?);
    Ok(tightest(
        &[
            (ConnectionLimit::Server, server, most - reserved),
            (ConnectionLimit::Role, role, of_role),
            (ConnectionLimit::Database, database, of_database),
        ],
        !hidden,
    ))
}

/// Of connections against limits (none where negative) those that leave the fewest.
fn tightest(all: &[(ConnectionLimit, i64, i64)], exact: bool) -> Connections {
    let limited = all.iter().filter(|(_, _, limit)| *limit >= 0);
    let least = limited.min_by_key(|(_, used, limit)| limit - used);
    let (limited_by, used, limit) = least.or(all.first()).copied().unwrap_or((ConnectionLimit::Server, 0, -1));
    Connections {
        used: u64::try_from(used).unwrap_or_default(),
        // A role is always shown its own processes.
        exact: exact || limited_by == ConnectionLimit::Role,
        limit: u64::try_from(limit).ok(),
        limited_by,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_counts_that_leaves_the_fewest() {
        for (role, database, limit, used, by) in [
            ((5, -1), (9, -1), 97, 40, ConnectionLimit::Server),
            ((5, 10), (9, -1), 10, 5, ConnectionLimit::Role),
            ((5, 10), (9, 10), 10, 9, ConnectionLimit::Database),
            ((5, 0), (9, 90), 0, 5, ConnectionLimit::Role),
        ] {
            let all = [
                (ConnectionLimit::Server, 40, 97),
                (ConnectionLimit::Role, role.0, role.1),
                (ConnectionLimit::Database, database.0, database.1),
            ];
            let expected = Connections { used, exact: true, limit: Some(limit), limited_by: by };
            assert_eq!(tightest(&all, true), expected);
        }
    }
}
