//! A worker that takes events from a list in Redis, as users of the client library write one: it moves one to the list of work in progress (`BLMOVE`), handles
//! it, and removes it there. An event's text is its name.
//!
//! Told by `REDIS_URL`, `LIST`, `PROCESSING_LIST`; with `REDIS_CLUSTER` that is a node of a cluster, to which the client library finds its way.

use std::time::Duration;

use anyhow::{Context, Result};
use redis::{AsyncCommands, AsyncConnectionConfig, Client, Direction, cluster::ClusterClientBuilder};
use tokio::signal::unix::Signal;

use crate::record::{Record, variable};
use crate::stream::is_told;

/// How long it waits for an event, in seconds.
const BLOCK: f64 = 0.5;
/// How long the server may take over an answer, which includes that wait.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);

/// Takes events until it is told to end.
///
/// # Errors
/// When the server is away or refuses a command, or the database.
pub(crate) async fn consume(list: &str, ends: &mut Signal) -> Result<()> {
    let url = variable("REDIS_URL")?;
    if std::env::var_os("REDIS_CLUSTER").is_some() {
        let builder = ClusterClientBuilder::new(vec![url]).response_timeout(ANSWER_WITHIN);
        let cluster = builder.build().context("REDIS_URL")?.get_async_connection().await;
        return take(cluster.context("connecting to the cluster")?, list, ends).await;
    }
    let client = Client::open(url).context("REDIS_URL")?;
    let config = AsyncConnectionConfig::new().set_response_timeout(Some(ANSWER_WITHIN));
    let server = client.get_multiplexed_async_connection_with_config(&config).await.context("connecting to Redis")?;
    take(server, list, ends).await
}

async fn take(mut server: impl AsyncCommands, list: &str, ends: &mut Signal) -> Result<()> {
    let record = Record::open().await?;
    let busy = variable("PROCESSING_LIST")?;
    while !is_told(ends).await {
        let taken: Option<String> =
            server.blmove(list, &busy, Direction::Right, Direction::Left, BLOCK).await.context("taking an event")?;
        let Some(event) = taken else { continue };
        record.handle(&event).await?;
        let _: i64 = server.lrem(&busy, 1, &event).await.with_context(|| format!("removing the event {event}"))?;
    }
    Ok(())
}
