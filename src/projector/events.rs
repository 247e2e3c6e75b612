//! Reads the events of the shards that this worker holds, in the order of their positions and never beyond the safe head.

use std::time::Duration;

use futures::{StreamExt, pin_mut};
use tokio_postgres::{Error, Row, RowStream, Statement, types::ToSql};

use super::{
    config::ProjectorConfig,
    error::{ProjectorError, database_message, may_be_a_row, within},
    mapping::{Event, JsonText},
};
use crate::{
    clients::postgres::{ConnectionSettings, Session, connect, quote_identifier, quote_table, shard_expression},
    lag::{BlockingWriter, Position},
    sources::postgres::event_log::{EventTime, Follower, Log, check_event_columns},
};

/// For opening a connection.
pub(super) const CONNECT_DEADLINE: Duration = Duration::from_secs(10);
/// For one statement on the source; the server's own limit is a little shorter.
const DEADLINE: Duration = Duration::from_secs(30);
/// The most events that one statement looks at in search of those of the worker's shards: this limits its time.
const WINDOW: i64 = 50_000;
/// A batch ends where its events reach this many bytes, so that a worker's memory does not depend on them. The last event may exceed it.
const MOST_BYTES: u64 = 4 << 20;

/// The log is read in the order of its index: with these plans off, the first rows come before the last have been found.
const SESSION: &str = "set default_transaction_read_only = on; set statement_timeout = '25s'; set lock_timeout = '5s'; \
     set idle_in_transaction_session_timeout = '10s'; set jit = off; set enable_seqscan = off; set enable_bitmapscan = off";

/// What a look at the log showed.
#[derive(Clone, Debug)]
pub(super) struct LogState {
    /// The highest position that may be read up to, once that is known.
    pub(super) safe: Option<Position>,
    /// The highest committed position.
    pub(super) head: Position,
    /// The transaction that holds the safe head back.
    pub(super) blocked_by: Option<BlockingWriter>,
}

/// Which events to read.
#[derive(Clone, Debug)]
pub(super) struct Range {
    /// For each shard, whether the worker holds it or not, the position after which to read.
    pub(super) after: Vec<i64>,
    /// For each shard the last position to read.
    pub(super) until: Vec<i64>,
}

impl Range {
    /// Nothing of any shard.
    pub(super) fn nothing(shards: u32) -> Self {
        let shards = shards as usize;
        Self { after: vec![i64::MAX; shards], until: vec![i64::MIN; shards] }
    }

    /// Adds one shard. One that has nothing to read is left out.
    pub(super) fn add(&mut self, shard: u32, after: i64, until: i64) {
        if let (Some(a), Some(u)) = (self.after.get_mut(shard as usize), self.until.get_mut(shard as usize))
            && after < until
        {
            (*a, *u) = (after, until);
        }
    }

    /// The positions before the first and at the last to look at; `None` when there is nothing to read.
    pub(super) fn bounds(&self) -> Option<(i64, i64)> {
        let (from, until) = (self.after.iter().min()?, self.until.iter().max()?);
        (from < until).then_some((*from, *until))
    }
}

/// What came of reading.
#[derive(Debug)]
pub(super) enum Fetch {
    /// There was nothing to read.
    Nothing,
    /// The log ends before the position up to which it was to be read: events were deleted since the look. They may come back, so that nothing is
    /// done with the rest.
    WentBack,
    /// Events, or none in a range that has none.
    Events(Fetched),
    /// The first event of the range that cannot be read. Nothing of the range is to be taken as read.
    Unreadable(Unreadable),
}

/// An event that cannot be read.
#[derive(Debug)]
pub(super) struct Unreadable {
    pub(super) position: i64,
    pub(super) shard: u32,
    /// Why, without anything of what the event holds.
    pub(super) why: String,
}

/// What was read.
#[derive(Debug)]
pub(super) struct Fetched {
    /// The events with a handler, in order.
    pub(super) events: Vec<Event>,
    /// The position up to which these are all.
    pub(super) reach: i64,
    /// Their bodies are so large that no more were read.
    pub(super) cut: bool,
}

/// A connection to the event source.
pub(super) struct Reader {
    session: Session,
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
}

impl Reader {
    pub(super) async fn open(
        settings: &ConnectionSettings,
        application: &str,
        config: &ProjectorConfig,
        types: Vec<String>,
    ) -> Result<Self, ProjectorError> {
        let session = connect(settings, application, CONNECT_DEADLINE)
            .await
            .map_err(|source| ProjectorError::Connection { what: "event source", source })?;
        let session = ProjectorError::unless_pooled("event source", settings, session)?;
        within("event source: preparing", DEADLINE, async {
            let table = &config.event_table;
            let failed = ProjectorError::doing("event source: preparing to read");
            session.client.batch_execute(SESSION).await.map_err(&failed)?;
            let mut log = Log::check(&session.client, table).await?;
            log.prepare(&session.client).await?;
            check_event_columns(&session.client, table).await?;
            let statements = statements(config, log.event_time());
            let window = session.client.prepare(&statements.window).await.map_err(&failed)?;
            let fetch = session.client.prepare(&statements.fetch).await.map_err(&failed)?;
            let keys = session.client.prepare(&statements.keys).await.map_err(&failed)?;
            let reaches = session.client.prepare(&statements.reaches).await.map_err(&failed)?;
            if let Some(channel) = &table.notify_channel {
                let listen = format!("listen {}", quote_identifier(channel));
                session.client.batch_execute(&listen).await.map_err(&failed)?;
            }
            Ok((log, window, fetch, keys, reaches))
        })
        .await
        .map(|(log, window, fetch, keys, reaches)| Self {
            session,
            log,
            follower: Follower::default(),
            window,
            fetch,
            keys,
            reaches,
            max_event_bytes: i64::try_from(config.max_event_bytes).unwrap_or(i64::MAX),
            known_window: (0, 0),
            listens: config.event_table.notify_channel.is_some(),
            types,
            dense_limit: config.batch_size.saturating_mul(2).max(1_000),
        })
    }

    /// True when the source notifies of new events.
    pub(super) fn listens(&self) -> bool {
        self.listens
    }

    /// Looks where the safe head is. `checkpoint` is a position that some worker has found safe before.
    pub(super) async fn look(&mut self, checkpoint: Position) -> Result<LogState, ProjectorError> {
        let (log, client, follower) = (&self.log, &self.session.client, &mut self.follower);
        within("event source: looking at the head", DEADLINE, async {
            let look = log.look(client).await?;
            let dense_until = match follower.dense_from(&look, Some(checkpoint)) {
                Some(from) => log.dense_until(client, from, self.dense_limit).await?,
                None => None,
            };
            let safe = follower.observe(&look, dense_until);
            Ok(LogState { safe, head: look.head, blocked_by: follower.blocking(&look) })
        })
        .await
    }

    /// Reads up to `limit` events. `range` must not reach beyond the safe head.
    pub(super) async fn fetch(&mut self, range: &Range, limit: usize) -> Result<Fetch, ProjectorError> {
        let Some(bounds) = range.bounds() else { return Ok(Fetch::Nothing) };
        let doing = "event source: reading events";
        within(doing, DEADLINE, async { self.read(range, bounds, limit).await.map_err(ProjectorError::doing(doing)) })
            .await
    }

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
        collect(rows, limit, end, self.max_event_bytes).await
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
            Some((position, shard)) => {
                Ok(Unreadable { position: *position, shard: *shard, why: database_message(&error) })
            }
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

    /// Returns when the source has notified of new events; never for a source that does not notify.
    pub(super) async fn woken(&mut self) {
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

/// Takes rows up to a limit of number and size; `end` is how far they would go. An event that is too large ends the batch before it, or is what
/// comes of it when it is the first.
async fn collect(
    rows: RowStream,
    limit: usize,
    end: i64,
    max_event_bytes: i64,
) -> Result<Result<Fetched, Unreadable>, Error> {
    pin_mut!(rows);
    let (mut events, mut bytes): (Vec<Event>, u64) = (Vec::new(), 0);
    while let Some(row) = rows.next().await {
        let row = row?;
        let (position, shard, size): (i64, u32, i64) = (row.try_get(0)?, shard_of(&row)?, row.try_get(6)?);
        let why = if size > max_event_bytes {
            format!(
                "it has {size} bytes, and spec.projector.builtin.maxEventBytes allows {max_event_bytes}: raise it, and the workers' memory to six times as much"
            )
        } else {
            match event(&row, position, shard) {
                Ok(event) => {
                    bytes = bytes.saturating_add(u64::try_from(size).unwrap_or_default());
                    events.push(event);
                    if bytes > MOST_BYTES {
                        return Ok(Ok(Fetched { events, reach: position, cut: true }));
                    }
                    continue;
                }
                Err(error) => database_message(&error),
            }
        };
        return Ok(if events.is_empty() {
            Err(Unreadable { position, shard, why })
        } else {
            Ok(Fetched { events, reach: position - 1, cut: false })
        });
    }
    let last = events.last().filter(|_| events.len() >= limit).map(|last| last.position);
    Ok(Ok(Fetched { events, reach: last.unwrap_or(end), cut: false }))
}

struct Statements {
    window: String,
    fetch: String,
    keys: String,
    reaches: String,
}

fn statements(config: &ProjectorConfig, time: &EventTime) -> Statements {
    let table = &config.event_table;
    let from = quote_table(&table.table);
    let position = quote_identifier(&table.position);
    let (stream, type_) = (quote_identifier(&table.stream), quote_identifier(&table.type_));
    let (recorded_at, data) = (&time.value, quote_identifier(&table.data));
    // An event without a stream must belong somewhere.
    let shard = shard_expression(&stream, config.shards);
    let window = format!(
        "select count(*), max(p)::bigint
         from (select {position} as p from {from} where {position} > $1::bigint and {position} <= $2::bigint
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
         from {from}
         cross join lateral (select {data}::text as pj_body, {stream}::text as pj_stream offset 0) pj_event
         cross join lateral (
             select (coalesce(octet_length(pj_body), 0) + coalesce(octet_length(pj_stream), 0))::bigint as pj_size offset 0
         ) pj_sizes
         {wanted}"
    );
    let keys = format!("select {position}::bigint, {shard} from {from} {wanted}");
    let reaches = format!("select exists (select from {from} where {position} >= $1::bigint)");
    Statements { window, fetch, keys, reaches }
}

fn shard_of(row: &Row) -> Result<u32, Error> {
    Ok(u32::try_from(row.try_get::<_, i32>(1)?).unwrap_or_default())
}

fn event(row: &Row, position: i64, shard: u32) -> Result<Event, Error> {
    Ok(Event {
        position,
        shard,
        event_type: row.try_get(2)?,
        stream: row.try_get(3)?,
        recorded_at: row.try_get(4)?,
        data: row.try_get::<_, Option<String>>(5)?.map(JsonText),
    })
}
