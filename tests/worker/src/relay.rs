//! A relay of an outbox in PostgreSQL, as teams write one: in one transaction it takes some rows that wait and that no other relay holds (`for update skip
//! locked`), sends them one by one, and marks or deletes those that were sent. Several share the table. What one holds that is killed waits again.
//!
//! Told by `OUTBOX`, a table with the column `id`; `SENT_AT`, the column that says when a row was sent, and without which rows are deleted; and
//! `RECORD_URL`.

use std::time::Duration;

use anyhow::{Context, Result};
use tokio::{signal::unix::Signal, time::sleep};
use tokio_postgres::NoTls;

use crate::record::{Record, variable};
use crate::stream::is_told;

/// Rows that it takes at most.
const BATCH: i64 = 10;
/// How long it waits when no row does.
const REST: Duration = Duration::from_millis(200);

/// Sends rows until it is told to end.
///
/// # Errors
/// When the database is away or refuses a statement.
pub(crate) async fn send(table: &str, ends: &mut Signal) -> Result<()> {
    let record = Record::open().await?;
    let (mut client, connection) =
        tokio_postgres::connect(&variable("RECORD_URL")?, NoTls).await.context("connecting to the database")?;
    // The client reports what happens to its connection.
    tokio::spawn(connection);
    let (waits, sent) = match std::env::var("SENT_AT") {
        Ok(column) => (format!("where {column} is null"), format!("update {table} set {column} = clock_timestamp()")),
        Err(_) => (String::new(), format!("delete from {table}")),
    };
    let take = format!("select id from {table} {waits} order by id limit $1 for update skip locked");
    let take = client.prepare(&take).await.with_context(|| take.clone())?;
    let sent = client.prepare(&format!("{sent} where id = any($1)")).await?;
    let mut told = false;
    while !told {
        let transaction = client.transaction().await?;
        let rows = transaction.query(&take, &[&BATCH]).await.context("taking rows")?;
        let mut done: Vec<i64> = Vec::new();
        for row in &rows {
            let id: i64 = row.get(0);
            record.handle(&id.to_string()).await?;
            done.push(id);
            told = is_told(ends).await;
            if told {
                break;
            }
        }
        transaction.execute(&sent, &[&done]).await.context("marking what was sent")?;
        transaction.commit().await.context("committing")?;
        if rows.is_empty() {
            tokio::select! {
                _ = ends.recv() => return Ok(()),
                () = sleep(REST) => {}
            }
        }
    }
    Ok(())
}
