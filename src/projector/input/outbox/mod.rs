//! Takes rows of an outbox in PostgreSQL: locks them, and marks them as sent or deletes them when they are done.
//!
//! The locks are the lease. One transaction holds all rows in hand: it begins when they are taken and ends when the last of them is marked or given back, so
//! that rows of a worker that ends are free at once. Workers side by side pass over each other's rows (`skip locked`); one that is alone waits for them,
//! since it keeps the order. The marks are committed after the effects, in another transaction: what lies between is the inbox's to find.

mod rows;
mod statements;

use std::{collections::HashMap, time::Duration};

use tokio::time::Instant;
use tokio_postgres::{Statement, types::ToSql};

use self::{
    rows::Rows,
    statements::{OutboxTable, mark, take},
};
use super::{
    super::error::{ProjectorError, doing, unless_pooled, within},
    queue::{Delivery, Queue},
};
use crate::{
    api::Outbox,
    clients::postgres::{ConnectionSettings, Session, connect},
};

/// For opening a connection.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);
/// For one step on the source; the server's own limit is a little shorter.
const DEADLINE: Duration = Duration::from_secs(30);
/// The server ends the transaction of a worker that has not been heard of for 15 s, so that its rows are free. A worker that is alone waits a little
/// longer than that for the rows of the one before it.
const SESSION: &str = "set statement_timeout = '25s'; set lock_timeout = '20s'; set idle_in_transaction_session_timeout = '15s'; set jit = off";
/// A worker takes about as many bytes at once, so that its memory does not depend on what rows hold. One event may exceed it.
const MOST_BYTES: u64 = 4 << 20;
/// What is being done, for messages.
const TAKING: &str = "event source: taking rows of the outbox";
const MARKING: &str = "event source: marking rows of the outbox";
const ENDING: &str = "event source: ending the transaction that holds rows of the outbox";

/// A connection to the database with the outbox.
pub(in crate::projector) struct OutboxQueue {
    session: Session,
    /// The table's name with its schema, for people and for the inbox.
    table: String,
    take: Statement,
    mark: Statement,
    rows: Rows,
    max_event_bytes: i64,
    /// How many rows to take, by what they have held; 0 until it is known.
    count: usize,
    /// How many rows the open transaction holds; there is none without.
    held: usize,
    /// Rows that failed, and when they are tried again. Other workers may try them sooner.
    failed: HashMap<String, Instant>,
}

impl OutboxQueue {
    /// Connects, and checks that the table can be worked on. `types` are the types of event that are wanted; `alone`: there is one worker at a time, and it
    /// keeps the order.
    pub(in crate::projector) async fn open(
        settings: &ConnectionSettings,
        application: &str,
        outbox: &Outbox,
        max_event_bytes: u64,
        types: Vec<String>,
        alone: bool,
    ) -> Result<Self, ProjectorError> {
        let session = connect(settings, application, CONNECT_DEADLINE)
            .await
            .map_err(|source| ProjectorError::Connection { what: "event source", source })?;
        let session = unless_pooled("event source", settings, session)?;
        let (table, take, mark) = within("event source: preparing", DEADLINE, async {
            let client = &session.client;
            let failed = doing("event source: preparing to take rows of the outbox");
            client.batch_execute(SESSION).await.map_err(&failed)?;
            let table = OutboxTable::check(client, outbox).await?;
            let take = client.prepare(&take(&table, alone)).await.map_err(&failed)?;
            let mark = client.prepare(&mark(&table)).await.map_err(&failed)?;
            Ok((table.name, take, mark))
        })
        .await?;
        let max_event_bytes = i64::try_from(max_event_bytes).unwrap_or(i64::MAX);
        let rows = Rows::new(table.clone(), types, max_event_bytes);
        Ok(Self { session, table, take, mark, rows, max_event_bytes, count: 0, held: 0, failed: HashMap::new() })
    }

    async fn execute(&self, what: &'static str, sql: &str) -> Result<(), ProjectorError> {
        within(what, DEADLINE, async { self.session.client.batch_execute(sql).await.map_err(doing(what)) }).await
    }

    /// Takes note that so many rows are not in hand any more. With the last of them the transaction ends.
    async fn let_go(&mut self, count: usize) -> Result<(), ProjectorError> {
        let held = self.held;
        self.held = held.saturating_sub(count);
        if held > 0 && self.held == 0 { self.execute(ENDING, "commit").await } else { Ok(()) }
    }

    /// The rows that are not to be tried yet.
    fn resting(&mut self) -> Vec<String> {
        let now = Instant::now();
        self.failed.retain(|_, until| *until > now);
        self.failed.keys().cloned().collect()
    }
}

impl Queue for OutboxQueue {
    /// What names the row.
    type Receipt = String;

    /// The session must not be idle for as long as [`SESSION`] says.
    fn renew_every(&self) -> Duration {
        Duration::from_secs(4)
    }

    async fn fetch(&mut self, limit: usize) -> Result<Vec<Delivery<String>>, ProjectorError> {
        let resting = self.resting();
        let count = if self.count == 0 { limit } else { self.count.min(limit) };
        let most = i64::try_from(count).unwrap_or(i64::MAX);
        let (client, types) = (&self.session.client, self.rows.types());
        let parameters: [&(dyn ToSql + Sync); 4] = [&most, &resting, &types, &self.max_event_bytes];
        let taken = within(TAKING, DEADLINE, async {
            // Sent together. Read committed: a row that another worker has marked meanwhile is looked at again, and passed over.
            let (begun, rows) = tokio::join!(
                biased;
                client.batch_execute("begin isolation level read committed"),
                client.query(&self.take, &parameters)
            );
            begun.map_err(doing(TAKING))?;
            rows.map_err(doing(TAKING))
        })
        .await?;
        self.held = taken.len();
        if taken.is_empty() {
            self.execute(ENDING, "commit").await?;
            return Ok(Vec::new());
        }
        let deliveries: Vec<_> =
            taken.iter().map(|row| self.rows.delivery(row)).collect::<Result<_, _>>().map_err(doing(TAKING))?;
        let is_cut = rows::is_cut(&taken).map_err(doing(TAKING))?;
        // More are locked than are handed over where their bodies are large: next time no more than that.
        self.count = if is_cut { taken.len() } else { count.saturating_mul(2).min(limit) };
        Ok(deliveries)
    }

    async fn renew(&mut self, _: &[String]) -> Result<(), ProjectorError> {
        self.execute(TAKING, "select").await
    }

    async fn acknowledge(&mut self, done: &[String]) -> Result<(), ProjectorError> {
        let marked = within(MARKING, DEADLINE, async {
            self.session.client.execute(&self.mark, &[&done]).await.map_err(doing(MARKING))
        })
        .await?;
        if marked != done.len() as u64 {
            return Err(ProjectorError::Source(format!(
                "outbox {}: of {} rows that are handled {marked} could be marked or deleted: does a trigger, a rule or row security keep this role from it? Until then they are taken again and again, without effects",
                self.table,
                done.len()
            )));
        }
        self.let_go(done.len()).await
    }

    async fn put_back(&mut self, held: &[String], pause: Duration) -> Result<(), ProjectorError> {
        if !pause.is_zero() {
            let until = Instant::now() + pause;
            self.failed.extend(held.iter().map(|id| (id.clone(), until)));
        }
        self.let_go(held.len()).await
    }

    fn place(&self, id: &String) -> String {
        format!("row {id} of outbox {}", self.table)
    }

    async fn finish(&mut self) {
        // The connection ends with this worker, and with it whatever it has locked.
        if self.held > 0 {
            let _ = self.execute(ENDING, "rollback").await;
        }
    }
}
