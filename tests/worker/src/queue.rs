//! A consumer of a queue in RabbitMQ, as users of the client lapin write one: it competes with others, is given a few messages ahead (prefetch), and
//! acknowledges each when it was handled. What it holds when it ends goes back to the queue. A message's body is its name.
//!
//! Told by `AMQP_URL`, `QUEUE`.

use anyhow::{Context, Result};
use futures::StreamExt as _;
use lapin::{
    Connection, ConnectionProperties,
    options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions},
    types::FieldTable,
};
use tokio::signal::unix::Signal;

use crate::record::{Record, variable};

/// Messages that it is given ahead.
const PREFETCH: u16 = 10;

/// Consumes until it is told to end.
///
/// # Errors
/// When the server refuses it, or the database.
pub(crate) async fn consume(server: &str, ends: &mut Signal) -> Result<()> {
    let record = Record::open().await?;
    let connection =
        Connection::connect(server, ConnectionProperties::default()).await.context("connecting to RabbitMQ")?;
    let channel = connection.create_channel().await.context("opening a channel")?;
    channel.basic_qos(PREFETCH, BasicQosOptions::default()).await.context("asking for a prefetch")?;
    let (queue, tag) = (variable("QUEUE")?, variable("HOSTNAME")?);
    let mut messages = channel
        .basic_consume(queue.into(), tag.into(), BasicConsumeOptions::default(), FieldTable::default())
        .await
        .context("consuming the queue")?;
    loop {
        let message = tokio::select! {
            biased;
            // So that the last acknowledgement is sent.
            _ = ends.recv() => return connection.close(200, "it was told to end".into()).await.context("closing the connection"),
            message = messages.next() => message.context("the messages ended")?.context("receiving a message")?,
        };
        record.handle(&String::from_utf8_lossy(&message.data)).await?;
        message.ack(BasicAckOptions::default()).await.context("acknowledging a message")?;
    }
}
