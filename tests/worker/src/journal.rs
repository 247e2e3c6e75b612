//! A consumer of an event store in PostgreSQL whose tables say how far it has come: it takes a few events, handles each, and says that they are done. Told to
//! end, it finishes what it has taken. What the tables are is in the statements alone.
//!
//! Told by `TAKE`, a statement that gives the names of events which no other consumer has taken, at most `$1`; `DONE`, one that is told the names of those
//! which were handled, `$1`; and `RECORD_URL`.

use std::time::Duration;

use anyhow::{Context, Result};
use tokio::{signal::unix::Signal, time::sleep};
use tokio_postgres::NoTls;

use crate::record::{Record, variable};
use crate::stream::is_told;

/// Events that it takes at most.
const BATCH: i32 = 10;
/// How long it waits when there was none.
const REST: Duration = Duration::from_millis(200);

/// Consumes until it is told to end.
///
/// # Errors
/// When the database is away or refuses a statement.
pub(crate) async fn consume(take: &str, ends: &mut Signal) -> Result<()> {
    let record = Record::open().await?;
    let (client, connection) =
        tokio_postgres::connect(&variable("RECORD_URL")?, NoTls).await.context("connecting to the database")?;
    // The client reports what happens to its connection.
    tokio::spawn(connection);
    let take = client.prepare(take).await.context("TAKE")?;
    let done = client.prepare(&variable("DONE")?).await.context("DONE")?;
    while !is_told(ends).await {
        let rows = client.query(&take, &[&BATCH]).await.context("taking events")?;
        let names: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
        for name in &names {
            record.handle(name).await?;
        }
        if names.is_empty() {
            tokio::select! {
                _ = ends.recv() => return Ok(()),
                () = sleep(REST) => {}
            }
        } else {
            client.query(&done, &[&names]).await.context("saying what is done")?;
        }
    }
    Ok(())
}
