//! Several workers on one queue of RabbitMQ. Each message goes to one of them, and to another one where that worker dies before it acknowledges it; so a message may
//! come twice, and a table of message identities, written in the transaction of the message's effect, makes the effect happen once: the consumer's idempotency.
//!
//! ```text
//! receive ─▶ transaction { identity new? ─▶ effect } ─▶ commit ─▶ acknowledge
//! ```
//!
//! What cannot be read goes to the queue of dead letters, since it would fail at each worker. What cannot be done just now goes back: the worker ends, and its Pod starts
//! again after a while.
//!
//! An effect that is no row (an e-mail) cannot be in the transaction. Then the identity goes along with it, for a service that knows it again.

use futures::StreamExt as _;
use lapin::{
    Channel,
    message::Delivery,
    options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions, BasicRejectOptions},
    types::FieldTable,
};
use serde::Deserialize;
use thiserror::Error;
use tokio_postgres::Client;

use crate::brokers::{self, BrokerError};

/// Messages that a worker is given ahead. More of them wait at a worker while others are idle; fewer leave it idle for a round trip each.
const PREFETCH: u16 = 10;

/// Why a worker ended. What it had goes back to the queue.
#[derive(Debug, Error)]
pub enum ConsumeError {
    /// RabbitMQ is away, or refuses.
    #[error(transparent)]
    Broker(#[from] BrokerError),
    /// RabbitMQ is away, or refuses.
    #[error("RabbitMQ: {0}")]
    RabbitMq(#[from] lapin::Error),
    /// The database is away, or refuses.
    #[error("what customers were told: {0}")]
    Database(#[from] tokio_postgres::Error),
    /// The queue was deleted, or the connection ended without a word.
    #[error("the queue {0} gives no more messages")]
    Ended(String),
}

/// What a customer is to be told.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
pub struct Notification {
    /// About which order.
    pub order: String,
    /// What.
    pub text: String,
}

/// What became of a message.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Handled {
    /// The customer was told.
    Told,
    /// The customer was told before.
    Repeated,
}

/// Tells customers.
pub struct Notifier {
    client: Client,
    /// Which worker it is.
    name: String,
}

impl Notifier {
    /// A notifier that notes what it told in this database.
    #[must_use]
    pub fn new(client: Client, name: String) -> Self {
        Self { client, name }
    }

    /// Tells a customer, unless this message was told before.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn tell(
        &mut self,
        message_id: &str,
        notification: &Notification,
    ) -> Result<Handled, tokio_postgres::Error> {
        // Here the effect is this row as well; elsewhere it is further statements of the same transaction. Another worker with the same message is waited for.
        const TELL: &str = "insert into notifications (message_id, order_id, text, told_by) values ($1, $2, $3, $4)
            on conflict (message_id) do nothing";
        let transaction = self.client.transaction().await?;
        let Notification { order, text } = notification;
        let new = transaction.execute(TELL, &[&message_id, order, text, &self.name]).await?;
        transaction.commit().await?;
        Ok(if new == 1 { Handled::Told } else { Handled::Repeated })
    }

    async fn handle(&mut self, delivery: &Delivery) -> Result<(), ConsumeError> {
        let id = delivery.properties.message_id().as_ref().map(ToString::to_string);
        let notification = serde_json::from_slice::<Notification>(&delivery.data);
        let (Some(id), Ok(notification)) = (id, notification) else {
            tracing::warn!("a message without an identity, or that is no notification, goes to the dead letters");
            // Without `requeue`.
            delivery.reject(BasicRejectOptions::default()).await?;
            return Ok(());
        };
        self.tell(&id, &notification).await?;
        delivery.ack(BasicAckOptions::default()).await?;
        Ok(())
    }
}

/// Handles messages of a queue until something fails or the future is dropped: what was received and not acknowledged then goes back to the queue when the connection
/// ends.
///
/// # Errors
/// When RabbitMQ or the database is away.
pub async fn consume(
    channel: &Channel,
    queue: &str,
    notifier: &mut Notifier,
) -> Result<std::convert::Infallible, ConsumeError> {
    brokers::declare(channel, queue).await?;
    channel.basic_qos(PREFETCH, BasicQosOptions::default()).await?;
    let tag = notifier.name.clone();
    let consume =
        channel.basic_consume(queue.into(), tag.into(), BasicConsumeOptions::default(), FieldTable::default());
    let mut deliveries = consume.await?;
    while let Some(delivery) = deliveries.next().await {
        notifier.handle(&delivery?).await?;
    }
    Err(ConsumeError::Ended(queue.to_owned()))
}
