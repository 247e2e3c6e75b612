//! A read model in PostgreSQL of events that come from a queue: the inbox table, in which each message is noted in the transaction with its effects.
//!
//! A message that cannot be handled has a row as well, with why. It becomes the note when the message is handled.

use std::{collections::HashSet, time::Duration};

use tokio_postgres::{Client, Error, Statement};

use super::{
    super::{
        super::{
            config::PostgresOutput,
            error::{ProjectorError, doing},
            event::Event,
            postgres_errors::{Failure, database_message, failure},
        },
        ApplyError, Inbox,
    },
    batch::{self, Failed, HandlerTime, Transaction},
    checkpoint::create_schema,
    commit_failed, failed,
    handlers::{Handlers, Mapping},
    open_session, roll_back, set_up,
};
use crate::{
    api::table_part,
    clients::postgres::{ConnectionSettings, Session, quote_table},
    names::INBOX_TABLE,
};

/// So many notes are forgotten in one statement, so that it holds up nothing.
const PRUNED_AT_ONCE: u64 = 5_000;
/// What is being done, for messages.
const NOTING: &str = "read store: noting messages in the inbox";

/// A connection to the read store, with everything prepared on it.
pub(in crate::projector) struct PostgresInbox {
    session: Session,
    handlers: Handlers,
    handler_time: HandlerTime,
    projection: String,
    note: Statement,
    /// The table's name, ready for SQL.
    table: String,
    keep_for: Duration,
}

impl PostgresInbox {
    /// Connects, makes the inbox table, runs the user's setup, and has the handlers prepared. Messages are forgotten after `keep_for`.
    pub(in crate::projector) async fn open(
        settings: &ConnectionSettings,
        application: &str,
        projection: &str,
        (sql, mapping): (&PostgresOutput, &Mapping),
        keep_for: Duration,
    ) -> Result<Self, ProjectorError> {
        let session = open_session(settings, application).await?;
        let schema = sql.schema.as_deref();
        let table = quote_table(&match schema {
            Some(schema) => format!("{}.{INBOX_TABLE}", table_part(schema)),
            None => INBOX_TABLE.to_owned(),
        });
        create(&session.client, &table, schema).await.map_err(doing("read store: making the inbox table"))?;
        set_up(&session.client, projection, sql).await?;
        let handlers = mapping.prepare(&session.client).await?;
        // In the order of their names, so that two workers with the same messages wait for each other and not in a circle.
        let note = format!(
            "insert into {table} as i (projection, message)
             select $1, m from (select distinct m from unnest($2::text[]) m order by m) m
             on conflict (projection, message) do update set handled_at = now(), failure = null, failures = 0
                 where i.failure is not null
             returning message"
        );
        let note = session.client.prepare(&note).await.map_err(doing(NOTING))?;
        let (projection, handler_time) = (projection.to_owned(), HandlerTime::default());
        Ok(Self { session, handlers, handler_time, projection, note, table, keep_for })
    }

    /// Begins a transaction and notes the messages. Returns those that were not noted before.
    async fn note(&self, ids: &[String]) -> Result<HashSet<String>, Error> {
        let client = &self.session.client;
        client.batch_execute("begin isolation level read committed").await?;
        let rows = client.query(&self.note, &[&self.projection, &ids]).await?;
        rows.iter().map(|row| row.try_get(0)).collect()
    }

    /// Takes notes of this transaction back.
    async fn forget(&self, ids: &[&String]) -> Result<(), Error> {
        let forget = format!("delete from {} where projection = $1 and message = any($2::text[])", self.table);
        self.session.client.execute(&forget, &[&self.projection, &ids]).await.map(drop)
    }

    /// What a statement of the inbox's own says is no fault of an event.
    async fn refused(&self, error: Error) -> ApplyError {
        if failure(&error) != Failure::Contention {
            return ApplyError::Store(ProjectorError::Statement { doing: NOTING, source: error });
        }
        match roll_back(&self.session.client).await {
            Ok(()) => ApplyError::Contention { index: 0, message: database_message(&error) },
            Err(error) => ApplyError::Store(error),
        }
    }
}

impl Inbox for PostgresInbox {
    async fn handle(&mut self, ids: &[String], events: &[Event]) -> Result<usize, ApplyError> {
        let mut new = match self.note(ids).await {
            Ok(new) => new,
            Err(error) => return Err(self.refused(error).await),
        };
        // Of a message that is twice in one batch, the first counts.
        let places: Vec<usize> =
            ids.iter().enumerate().filter(|(_, id)| new.remove(*id)).map(|(place, _)| place).collect();
        let some: Vec<Event>;
        let new = if places.len() == events.len() {
            events
        } else {
            some = places.iter().filter_map(|place| events.get(*place)).cloned().collect();
            some.as_slice()
        };
        let place = |index: usize| places.get(index).copied().unwrap_or_default();
        let client = &self.session.client;
        let how = (Transaction::Begun, &mut self.handler_time);
        let count = match batch::run(client, &self.handlers, new, how, || false).await {
            Ok(count) => count,
            Err(Failed { index, error }) => return Err(failed(client, Failed { index: place(index), error }).await),
        };
        let left: Vec<&String> = places.iter().skip(count).filter_map(|place| ids.get(*place)).collect();
        if !left.is_empty()
            && let Err(error) = self.forget(&left).await
        {
            return Err(self.refused(error).await);
        }
        match client.batch_execute("commit").await {
            Ok(()) => Ok(places.get(count).copied().unwrap_or(ids.len())),
            Err(error) => match commit_failed(client, count, error).await {
                ApplyError::Event { index, message } => Err(ApplyError::Event { index: place(index), message }),
                ApplyError::Poison { index, message, class } => {
                    Err(ApplyError::Poison { index: place(index), message, class })
                }
                other => Err(other),
            },
        }
    }

    async fn record_failure(&mut self, id: &str, why: &str) -> Result<u32, ProjectorError> {
        let record = format!(
            "insert into {} as i (projection, message, failure, failures) values ($1, $2, $3, 1)
             on conflict (projection, message) do update
                 set handled_at = now(), failure = excluded.failure, failures = i.failures + 1 where i.failure is not null
             returning failures",
            self.table
        );
        let failed = doing("read store: recording a failed event");
        let row = self.session.client.query_opt(&record, &[&self.projection, &id, &why]).await.map_err(&failed)?;
        let times: i32 = row.map_or(Ok(0), |row| row.try_get(0)).map_err(&failed)?;
        Ok(u32::try_from(times).unwrap_or_default())
    }

    async fn prune(&mut self) -> Result<bool, ProjectorError> {
        let old = "handled_at < now() - make_interval(secs => $2)";
        let prune = format!(
            "delete from {table} where {old} and ctid = any(array(
                 select ctid from {table} where projection = $1 and {old} limit {PRUNED_AT_ONCE}))",
            table = self.table
        );
        let pruned = self.session.client.execute(&prune, &[&self.projection, &self.keep_for.as_secs_f64()]).await;
        Ok(pruned.map_err(doing("read store: pruning the inbox"))? == PRUNED_AT_ONCE)
    }
}

/// Makes schema and table where they are missing. Asks for the right to create only if something must be created.
async fn create(client: &Client, table: &str, schema: Option<&str>) -> Result<(), Error> {
    // Two workers that create the same table at once would both fail.
    client.batch_execute("begin; select pg_advisory_xact_lock(hashtextextended('projectionist tables', 0))").await?;
    create_schema(client, schema).await?;
    let is_missing = client.query_one("select to_regclass($1::text) is null", &[&table]).await?;
    if is_missing.try_get(0)? {
        let create = format!(
            "create table {table} (
                 projection text not null,
                 message text not null,
                 handled_at timestamptz not null default now(),
                 failure text,
                 failures int not null default 0,
                 primary key (projection, message)
             );
             create index on {table} (projection, handled_at)"
        );
        client.batch_execute(&create).await?;
    }
    client.batch_execute("commit").await
}
