//! The write side in tests: an events table as users have one, and ways to fill it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::Value;
use tokio_postgres::Client;

use crate::postgres::{Postgres, quoted};

/// Announced after every statement that appended.
pub const CHANNEL: &str = "events";
/// The type of events without a chosen type.
pub const DEFAULT_TYPE: &str = "Counted";
/// How many streams [`EventStore::append_events`] spreads its events over.
const STREAMS: i64 = 100;
/// How often the steady loader appends what is due.
const TICK: Duration = Duration::from_millis(20);

/// One events table: `position, stream, type, data, recorded_at`.
#[derive(Debug)]
pub struct EventStore {
    client: Client,
    table: String,
}

impl EventStore {
    /// Creates the table `table` in an existing database.
    ///
    /// # Errors
    /// When there is one already, or the server is away.
    pub async fn create_events_table(server: &Postgres, database: &str, table: &str) -> Result<Self> {
        let store = Self::open(server, database, table).await?;
        let (name, function) = (&store.table, quoted(&format!("{table}_announce")));
        let statements = format!(
            "create table {name} (
                 position bigint generated always as identity primary key,
                 stream text not null,
                 type text not null,
                 data jsonb not null,
                 recorded_at timestamptz not null default now()
             );
             create function {function}() returns trigger language plpgsql as
                 $$ begin perform pg_notify('{CHANNEL}', ''); return null; end $$;
             create trigger announce after insert on {name} for each statement execute function {function}();"
        );
        store.client.batch_execute(&statements).await.with_context(|| format!("creating the events table {table}"))?;
        Ok(store)
    }

    /// Opens a table that is there already.
    ///
    /// # Errors
    /// When the server is away.
    pub async fn open(server: &Postgres, database: &str, table: &str) -> Result<Self> {
        Ok(Self { client: server.connect(database).await?, table: quoted(table) })
    }

    /// The connection, for whatever else a test wants to do to the table.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Appends `count` events at once, spread over a hundred streams; `data.n` counts up from 1.
    ///
    /// # Errors
    /// When the server is away.
    pub async fn append_events(&self, count: u32) -> Result<()> {
        let statement = format!(
            "insert into {} (stream, type, data)
             select 'stream-' || n % {STREAMS}, '{DEFAULT_TYPE}', jsonb_build_object('n', n) from generate_series(1, $1::bigint) as n",
            self.table
        );
        self.client
            .execute(&statement, &[&i64::from(count)])
            .await
            .with_context(|| format!("appending {count} events"))?;
        Ok(())
    }

    /// Appends one event and returns its position.
    ///
    /// # Errors
    /// When the server is away.
    pub async fn append(&self, stream: &str, kind: &str, data: &Value) -> Result<i64> {
        let statement =
            format!("insert into {} (stream, type, data) values ($1, $2, $3) returning position", self.table);
        let row = self.client.query_one(&statement, &[&stream, &kind, data]).await.context("appending an event")?;
        Ok(row.get(0))
    }

    /// Appends steadily, `rate` events a second, for `duration`; returns how many. Falling behind is made up for.
    ///
    /// # Errors
    /// When the server is away.
    pub async fn append_at(&self, rate: f64, duration: Duration) -> Result<u64> {
        let started = Instant::now();
        let mut ticks = tokio::time::interval(TICK);
        let mut appended = 0;
        loop {
            ticks.tick().await;
            let elapsed = started.elapsed().min(duration);
            let due = whole(elapsed.as_secs_f64() * rate);
            let missing = due.saturating_sub(appended);
            if missing > 0 {
                self.append_events(u32::try_from(missing).unwrap_or(u32::MAX)).await?;
                appended = due;
            }
            if elapsed == duration {
                return Ok(appended);
            }
        }
    }

    /// The last position, 0 for an empty table. In tests no other writer appends, so it is safe.
    ///
    /// # Errors
    /// When the server is away.
    pub async fn head(&self) -> Result<i64> {
        let statement = format!("select coalesce(max(position), 0) from {}", self.table);
        Ok(self.client.query_one(&statement, &[]).await.context("reading the head")?.get(0))
    }
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn whole(count: f64) -> u64 {
    count.floor().max(0.0) as u64
}
