//! Reads the events of a PostgreSQL table, in the order of their positions and never beyond the safe head.
//!
//! The shards are hashes of the stream, and all share the order of the table.

mod rows;
mod statements;

use std::time::Duration;

use futures::{StreamExt, pin_mut};
use tokio_postgres::{Error, RowStream, Statement, types::ToSql};

use super::{
    super::{
        config::{PostgresInput, ProjectorConfig},
        error::{ProjectorError, doing, unless_pooled, within},
        event::{Event, SourceIdentity},
        postgres_errors::{database_message, may_be_a_row},
        sharding::Sharding,
    },
    EventReader, Fetch, Fetched, Horizon, Range, Unreadable,
};
use crate::{
    api::EventRows,
    clients::postgres::{ConnectionSettings, Session, connect, quote_identifier, quote_table},
    lag::Position,
    sources::postgres::event_log::{EventBody, Follower, Log, check_event_columns},
};
use rows::{event, shard_of};
use statements::statements;

/// For opening a connection.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);
/// For one statement on the source; the server's own limit is a little shorter.
const DEADLINE: Duration = Duration::from_secs(30);
/// The most events that one statement looks at in search of those of the worker's shards: this limits its time.
const WINDOW: i64 = 50_000;
/// A batch ends where its events reach this many bytes, so that a worker's memory does not depend on them. The last event may exceed it.
const MOST_BYTES: u64 = 4 << 20;

/// The log is read in the order of its index: with these plans off, the first rows come before the last have been found.
const SESSION: &str = "set default_transaction_read_only = on; set statement_timeout = '25s'; set lock_timeout = '5s'; \
     set idle_in_transaction_session_timeout = '10s'; set jit = off; set enable_seqscan = off; set enable_bitmapscan = off; \
     set enable_hashjoin = off; set enable_mergejoin = off";

/// A connection to the event source.
pub(in crate::projector) struct PostgresReader {
    session: Session,
    /// As SQL writes it.
    table: String,
    events: EventRows,
    body: EventBody,
    log: Log,
    follower: Follower,
    window: Statement,
    fetch: Statement,
    keys: Statement,
    reaches: Statement,
    max_event_bytes: i64,
    /// Between these positions there are no more than [`WINDOW`] events.
    known_window: (i64, i64),
    listens: bool,
    types: Vec<String>,
    dense_limit: u32,
    shards: u32,
}

impl PostgresReader {
    /// Connects, and checks that the table can be followed. `types` are the types of event that are wanted.
    pub(in crate::projector) async fn open(
        settings: &ConnectionSettings,
        application: &str,
        config: &ProjectorConfig,
        input: &PostgresInput,
        types: Vec<String>,
    ) -> Result<Self, ProjectorError> {
        let session = connect(settings, application, CONNECT_DEADLINE)
            .await
            .map_err(|source| ProjectorError::Connection { what: "event source", source })?;
        let session = unless_pooled("event source", settings, session)?;
        within("event source: preparing", DEADLINE, async {
            let table = &input.event_table;
            let failed = doing("event source: preparing to read");
            session.client.batch_execute(SESSION).await.map_err(&failed)?;
            let mut log = Log::check(&session.client, table, &input.events).await?;
            log.prepare(&session.client).await?;
            let body = check_event_columns(&session.client, table, &input.events).await?;
            let statements = statements(input, log.event_time(), body);
            let window = session.client.prepare(&statements.window).await.map_err(&failed)?;
            let fetch = session.client.prepare(&statements.fetch).await.map_err(&failed)?;
            let keys = session.client.prepare(&statements.keys).await.map_err(&failed)?;
            let reaches = session.client.prepare(&statements.reaches).await.map_err(&failed)?;
            if let Some(channel) = &table.notify_channel {
                let listen = format!("listen {}", quote_identifier(channel));
                session.client.batch_execute(&listen).await.map_err(&failed)?;
            }
            Ok((log, body, window, fetch, keys, reaches))
        })
        .await
        .map(|(log, body, window, fetch, keys, reaches)| Self {
            session,
            table: quote_table(&input.event_table.table),
            events: input.events.clone(),
            body,
            log,
            follower: Follower::default(),
            window,
            fetch,
            keys,
            reaches,
            max_event_bytes: i64::try_from(config.max_event_bytes).unwrap_or(i64::MAX),
            known_window: (0, 0),
            listens: input.event_table.notify_channel.is_some(),
            types,
            dense_limit: config.batch_size.saturating_mul(2).max(1_000),
            shards: input.shards,
        })
    }
}

impl EventReader for PostgresReader {
    fn sharding(&self) -> Sharding {
        Sharding::Hashed { shards: self.shards, start: 0 }
    }

    fn notifies(&self) -> bool {
        self.listens
    }

    async fn identity(&mut self) -> Result<SourceIdentity, ProjectorError> {
        const WHERE: &str = "select format('database %s, table %I.%I', current_database(), n.nspname, c.relname)
             from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace where c.oid = $1::text::regclass";
        // The same on a primary and its replicas.
        const SERVER: &str = "select system_identifier::text from pg_catalog.pg_control_system()";
        let what = "event source: reading which it is";
        within(what, DEADLINE, async {
            let client = &self.session.client;
            let row = client.query_one(WHERE, &[&self.table]).await.map_err(doing(what))?;
            let table: String = row.try_get(0).map_err(doing(what))?;
            let place = match &self.events {
                EventRows::Only(only) => format!("{table}, events with {only}"),
                EventRows::All | EventRows::AllStream { .. } => table,
            };
            let server = match client.query_one(SERVER, &[]).await {
                Ok(row) => Some(row.try_get(0).map_err(doing(what))?),
                // A database that keeps it to itself, or is only like PostgreSQL.
                Err(error) if error.as_db_error().is_some() => None,
                Err(error) => return Err(doing(what)(error)),
            };
            Ok(SourceIdentity { place, server })
        })
        .await
    }

    async fn look(&mut self, reached: &[(u32, i64)]) -> Result<Horizon, ProjectorError> {
        let checkpoint = reached.iter().map(|(_, position)| Position(*position)).max();
        let (log, client, follower) = (&self.log, &self.session.client, &mut self.follower);
        within("event source: looking at the head", DEADLINE, async {
            let look = log.look(client).await?;
            let dense_until = match follower.dense_from(&look, checkpoint) {
                Some(from) => log.dense_until(client, from, self.dense_limit).await?,
                None => None,
            };
            let safe = follower.observe(&look, dense_until).map(|safe| vec![safe.0; self.shards as usize]);
            Ok(Horizon {
                safe: safe.unwrap_or_default(),
                head: vec![look.head.0; self.shards as usize],
                blocked_by: follower.blocking(&look),
                grown: false,
            })
        })
        .await
    }

    async fn fetch(&mut self, range: &Range, limit: usize) -> Result<Fetch, ProjectorError> {
        let Some(bounds) = range.bounds() else { return Ok(Fetch::Nothing) };
        let what = "event source: reading events";
        within(what, DEADLINE, async { self.read(range, bounds, limit).await.map_err(doing(what)) }).await
    }

    async fn woken(&mut self) {
        if !self.listens {
            std::future::pending::<()>().await;
        }
        // At the end of the connection too: the next statement says why.
        if self.session.notifications.recv().await.is_none() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        while self.session.notifications.try_recv().is_ok() {}
    }
}

impl PostgresReader {
    async fn read(&mut self, range: &Range, (from, until): (i64, i64), limit: usize) -> Result<Fetch, Error> {
        let end = self.window_end(from, until).await?;
        // Sent together, and answered one after the other: a log that reaches the end afterwards did so when it was read.
        let end_only: [&(dyn ToSql + Sync); 1] = [&end];
        let (collected, reaches) = tokio::join!(
            biased;
            self.read_until(range, from, end, limit),
            self.session.client.query_one(&self.reaches, &end_only)
        );
        let reaches = reaches?.try_get::<_, bool>(0)?;
        Ok(match collected {
            _ if !reaches => Fetch::WentBack,
            Ok(Ok(fetched)) => Fetch::Events(fetched),
            Ok(Err(unreadable)) => Fetch::Unreadable(unreadable),
            Err(error) if may_be_a_row(&error) => {
                Fetch::Unreadable(self.find_unreadable(range, from, end, limit, error).await?)
            }
            Err(error) => return Err(error),
        })
    }

    async fn read_until(
        &self,
        range: &Range,
        from: i64,
        end: i64,
        limit: usize,
    ) -> Result<Result<Fetched, Unreadable>, Error> {
        let limit_sql = i64::try_from(limit).unwrap_or(i64::MAX);
        let parameters: [&(dyn ToSql + Sync); 7] =
            [&from, &end, &self.types, &range.after, &range.until, &limit_sql, &self.max_event_bytes];
        let rows = self.session.client.query_raw(&self.fetch, parameters).await?;
        self.collect(rows, limit, end).await
    }

    /// Finds the first event that a failed statement cannot have read. The events up to some position are read or not read as a whole, so
    /// that halving finds it in a few statements, whatever is wrong with it.
    async fn find_unreadable(
        &self,
        range: &Range,
        from: i64,
        end: i64,
        limit: usize,
        error: Error,
    ) -> Result<Unreadable, Error> {
        let limit_sql = i64::try_from(limit).unwrap_or(i64::MAX);
        let parameters: [&(dyn ToSql + Sync); 6] = [&from, &end, &self.types, &range.after, &range.until, &limit_sql];
        let rows = self.session.client.query(&self.keys, &parameters).await?;
        let keys = rows.iter().map(|row| Ok((row.try_get(0)?, shard_of(row)?))).collect::<Result<Vec<_>, Error>>()?;
        let (mut readable, mut unreadable, mut error) = (0, keys.len(), error);
        while unreadable - readable > 1 {
            let middle = usize::midpoint(readable, unreadable);
            let Some((last, _)) = keys.get(middle - 1) else { break };
            match self.read_until(range, from, *last, limit).await {
                Ok(_) => readable = middle,
                Err(found) if may_be_a_row(&found) => (unreadable, error) = (middle, found),
                Err(other) => return Err(other),
            }
        }
        match keys.get(unreadable.wrapping_sub(1)) {
            Some((position, shard)) => Ok(Unreadable {
                position: *position,
                shard: *shard,
                why: database_message(&error),
                stream: None,
                is_alone_there: true,
            }),
            // No row, and yet a failure: it is not about a row.
            None => Err(error),
        }
    }

    /// The position up to which one statement may look, beginning after `from`.
    async fn window_end(&mut self, from: i64, until: i64) -> Result<i64, Error> {
        let (begin, end) = self.known_window;
        if begin <= from && from < end {
            return Ok(end.min(until));
        }
        // There are no more events than positions, so that most times counting is not necessary.
        if until.saturating_sub(from) <= WINDOW {
            return Ok(until);
        }
        let row = self.session.client.query_one(&self.window, &[&from, &until, &WINDOW]).await?;
        let (count, last): (i64, Option<i64>) = (row.try_get(0)?, row.try_get(1)?);
        let end = last.filter(|_| count >= WINDOW).unwrap_or(until);
        self.known_window = (from, end);
        Ok(end)
    }

    /// Takes rows up to a limit of number and size; `end` is how far they would go. An event that is too large ends the batch before it, or is what
    /// comes of it when it is the first.
    async fn collect(&self, rows: RowStream, limit: usize, end: i64) -> Result<Result<Fetched, Unreadable>, Error> {
        pin_mut!(rows);
        let max_event_bytes = self.max_event_bytes;
        let reach = |position: i64| vec![position; self.shards as usize];
        let (mut events, mut bytes): (Vec<Event>, u64) = (Vec::new(), 0);
        while let Some(row) = rows.next().await {
            let row = row?;
            let (position, shard, size): (i64, u32, i64) = (row.try_get(0)?, shard_of(&row)?, row.try_get(6)?);
            let why = if size > max_event_bytes {
                format!(
                    "it has {size} bytes, and spec.projector.builtin.maxEventBytes allows {max_event_bytes}: raise it, and the workers' memory to six times as much"
                )
            } else {
                match event(&row, position, shard, self.body) {
                    Ok(event) => {
                        bytes = bytes.saturating_add(u64::try_from(size).unwrap_or_default());
                        events.push(event);
                        if bytes > MOST_BYTES {
                            return Ok(Ok(Fetched { events, reach: reach(position), cut: true }));
                        }
                        continue;
                    }
                    Err(why) => why,
                }
            };
            return Ok(if events.is_empty() {
                Err(Unreadable { position, shard, why, stream: row.try_get(3)?, is_alone_there: true })
            } else {
                Ok(Fetched { events, reach: reach(position - 1), cut: false })
            });
        }
        let last = events.last().filter(|_| events.len() >= limit).map(|last| last.position);
        Ok(Ok(Fetched { events, reach: reach(last.unwrap_or(end)), cut: false }))
    }
}
