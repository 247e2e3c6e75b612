//! What consumers of messages write down: a row for each message that was handled, in the table `handled (event text, worker text)` of a PostgreSQL
//! database. The row comes before the acknowledgement, so that a message that is handled twice has two rows.

use std::time::Duration;

use anyhow::{Context, Result};
use tokio::time::sleep;
use tokio_postgres::{Client, NoTls, Statement};

/// A variable that must be set.
pub(crate) fn variable(name: &str) -> Result<String> {
    std::env::var(name).with_context(|| format!("{name} is not set"))
}

/// The table, and how long each message takes.
pub(crate) struct Record {
    client: Client,
    insert: Statement,
    worker: String,
    cost: Duration,
}

impl Record {
    /// As `RECORD_URL`, `COST_MS` and `HOSTNAME`, which is the pod's name, say.
    pub(crate) async fn open() -> Result<Self> {
        let (client, connection) =
            tokio_postgres::connect(&variable("RECORD_URL")?, NoTls).await.context("connecting to the database")?;
        // The client reports what happens to its connection.
        tokio::spawn(connection);
        let insert = client.prepare("insert into handled (event, worker) values ($1, $2)").await?;
        let cost = Duration::from_millis(variable("COST_MS")?.parse().context("COST_MS")?);
        Ok(Self { client, insert, worker: variable("HOSTNAME")?, cost })
    }

    /// Takes its time over a message, then writes it down.
    pub(crate) async fn handle(&self, event: &str) -> Result<()> {
        sleep(self.cost).await;
        let written = self.client.execute(&self.insert, &[&event, &self.worker]).await;
        written.map(drop).with_context(|| format!("writing down {event}"))
    }
}
