//! Messages to brokers, committed with the events that they tell of. A broker is no part of a database's transaction: what is sent before the commit may tell
//! of what never happened, and what is sent after it may be lost with the process. So the transaction writes a row, and a relay sends it afterwards.
//!
//! ```text
//! event_store::append(&transaction, …).await?;
//! outbox::put(&transaction, &message).await?;
//! transaction.commit().await?;
//! ```
//!
//! Each message is sent at least once, and those of a key in order: a relay that dies between sending and marking sends the same rows again, from the first of
//! them. Consumers tell a repeated message by its id. There is one relay at a time, since two would overtake each other; a second one waits, and takes over when the
//! first ends. So its Projection says `ordering: Strict`.

use std::time::Duration;

use serde_json::Value;
use thiserror::Error;
use tokio::time::sleep;
use tokio_postgres::{Client, Transaction};

/// Rows that are sent together, and sent again together when the relay dies.
const BATCH: i64 = 100;
/// How long the relay rests when nothing waits.
const REST: Duration = Duration::from_millis(50);
/// How often a relay that waits for its turn looks.
const TURN: Duration = Duration::from_millis(200);
/// The advisory lock of the relay whose turn it is: its database knows no other lock of this number.
const LOCK: i64 = 0x6f75_7462_6f78;

/// Where a message goes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Destination {
    /// A topic in Kafka.
    Kafka,
    /// A queue in RabbitMQ.
    RabbitMq,
}

/// A message.
#[derive(Clone, Debug, PartialEq)]
pub struct Message {
    /// Its identity, the same whenever it is sent.
    pub id: String,
    /// Which broker.
    pub destination: Destination,
    /// The topic or the queue.
    pub address: String,
    /// Messages of one key stay in order.
    pub key: String,
    /// What it tells, such as `OrderPlaced`.
    pub type_: String,
    /// With which details.
    pub body: Value,
}

/// Sends messages.
pub trait Publisher {
    /// Why they could not be sent.
    type Error: std::error::Error + Send + Sync + 'static;

    /// Sends messages in this order, and returns when the brokers have confirmed that they keep all of them.
    fn publish(&mut self, messages: &[Message]) -> impl Future<Output = Result<(), Self::Error>> + Send;
}

/// Why the relay ended.
#[derive(Debug, Error)]
pub enum RelayError<E> {
    /// The database is away, or refuses. The lock went with the connection.
    #[error("the outbox: {0}")]
    Database(#[from] tokio_postgres::Error),
    /// A broker is away, or refuses. Nothing was marked as sent.
    #[error("sending what is in the outbox: {0}")]
    Publish(E),
}

impl Destination {
    fn as_str(self) -> &'static str {
        match self {
            Self::Kafka => "kafka",
            Self::RabbitMq => "rabbitmq",
        }
    }

    /// The table allows no third.
    fn from_column(column: &str) -> Self {
        if column == "kafka" { Self::Kafka } else { Self::RabbitMq }
    }
}

/// Puts a message into the outbox. It is sent once the transaction is committed.
///
/// # Errors
/// When the database is away, or a message of this id is there.
pub async fn put(transaction: &Transaction<'_>, message: &Message) -> Result<(), tokio_postgres::Error> {
    const PUT: &str =
        "insert into outbox (message_id, destination, address, key, type, body) values ($1, $2, $3, $4, $5, $6)";
    let Message { id, destination, address, key, type_, body } = message;
    transaction.execute(PUT, &[id, &destination.as_str(), address, key, type_, body]).await?;
    Ok(())
}

/// Waits until no other relay has its turn. The turn ends with the connection.
///
/// # Errors
/// When the database is away.
pub async fn wait_for_turn(client: &Client) -> Result<(), tokio_postgres::Error> {
    while !client.query_one("select pg_try_advisory_lock($1)", &[&LOCK]).await?.get::<_, bool>(0) {
        sleep(TURN).await;
    }
    Ok(())
}

/// Sends the messages that wait longest and marks them as sent. Returns how many.
///
/// # Errors
/// When the database or a broker is away. What was not marked is sent again.
pub async fn relay_batch<P: Publisher>(client: &Client, publisher: &mut P) -> Result<usize, RelayError<P::Error>> {
    // No transaction is open while brokers are waited for. A row that is committed later, with a smaller id, is of another key: those of one key were written one after the other.
    const WAITING: &str = "select id, message_id, destination, address, key, type, body from outbox where sent_at is null order by id limit $1";
    let rows = client.query(WAITING, &[&BATCH]).await?;
    if rows.is_empty() {
        return Ok(0);
    }
    let message = |row: &tokio_postgres::Row| Message {
        id: row.get(1),
        destination: Destination::from_column(row.get(2)),
        address: row.get(3),
        key: row.get(4),
        type_: row.get(5),
        body: row.get(6),
    };
    let messages: Vec<Message> = rows.iter().map(message).collect();
    publisher.publish(&messages).await.map_err(RelayError::Publish)?;
    let sent: Vec<i64> = rows.iter().map(|row| row.get(0)).collect();
    client.execute("update outbox set sent_at = clock_timestamp() where id = any($1)", &[&sent]).await?;
    Ok(messages.len())
}

/// Sends what waits, for as long as nothing fails.
///
/// # Errors
/// When the database or a broker is away: connect again, and wait for the next turn.
pub async fn relay<P: Publisher>(
    client: &Client,
    publisher: &mut P,
) -> Result<std::convert::Infallible, RelayError<P::Error>> {
    loop {
        if relay_batch(client, publisher).await? == 0 {
            sleep(REST).await;
        }
    }
}
