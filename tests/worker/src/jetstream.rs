//! A worker on a pull consumer of NATS JetStream, as users of the client async-nats write one: it pulls batches, and acknowledges each message when it was
//! handled. What it was given and did not handle when it ends is delivered to another after the consumer's `ack_wait`.
//!
//! Told by `NATS_URL` (without the user), `NATS_USER`, `NATS_PASSWORD`, `NATS_STREAM`, `NATS_CONSUMER`.

use anyhow::{Context, Result, anyhow};
use async_nats::{
    ConnectOptions,
    jetstream::{self, consumer::PullConsumer},
};
use futures::StreamExt as _;
use tokio::signal::unix::Signal;

use crate::record::{Record, variable};

/// Messages that one pull brings at most.
const BATCH: usize = 20;

/// Consumes until it is told to end.
///
/// # Errors
/// When the server refuses it, or the database.
pub(crate) async fn consume(server: &str, ends: &mut Signal) -> Result<()> {
    let record = Record::open().await?;
    let options = ConnectOptions::with_user_and_password(variable("NATS_USER")?, variable("NATS_PASSWORD")?);
    let client = options.connect(server).await.context("connecting to NATS")?;
    let consumer: PullConsumer = jetstream::new(client)
        .get_consumer_from_stream(variable("NATS_CONSUMER")?, variable("NATS_STREAM")?)
        .await
        .context("finding the consumer")?;
    let mut messages = consumer.stream().max_messages_per_batch(BATCH).messages().await.context("pulling messages")?;
    loop {
        let message = tokio::select! {
            biased;
            _ = ends.recv() => return Ok(()),
            message = messages.next() => message.context("the messages ended")?.context("receiving a message")?,
        };
        let number = message.info().map_err(|error| anyhow!("a message without its number: {error}"))?.stream_sequence;
        record.handle(&number.to_string()).await?;
        message.double_ack().await.map_err(|error| anyhow!("acknowledging message {number}: {error}"))?;
    }
}
