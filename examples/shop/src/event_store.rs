//! Events in a table of PostgreSQL. A writer says which version of a stream it has seen, and is refused when another has appended meanwhile: optimistic
//! concurrency, without locks between reading and writing.
//!
//! ```text
//! let stream = event_store::read(&transaction, "order-7").await?;
//! …decide by what the events say…
//! event_store::append(&transaction, "order-7", stream.version, &events).await?;   // Conflict: read again, decide again
//! ```
//!
//! Everything happens in the caller's transaction, so that an outbox, an idempotency key or a saga's step is committed with the events or not at all.

use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use thiserror::Error;
use tokio_postgres::{GenericClient, Transaction, error::SqlState};

/// An event to append.
#[derive(Clone, Debug, PartialEq)]
pub struct NewEvent {
    /// What happened, such as `OrderPlaced`.
    pub type_: String,
    /// With which details.
    pub data: Value,
}

/// An event of a stream.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredEvent {
    /// Its place among all events.
    pub position: i64,
    /// Its place in its stream, from 1.
    pub version: i64,
    /// What happened.
    pub type_: String,
    /// With which details.
    pub data: Value,
}

/// A stream as it was read.
#[derive(Clone, Debug)]
pub struct Stream {
    /// The version of its last event; 0 where there is none.
    pub version: i64,
    /// In order.
    pub events: Vec<StoredEvent>,
}

/// What became of an append.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Appended {
    /// The stream's version now.
    pub version: i64,
    /// The position of the last event: whoever waits until a read model has it can read what was written.
    pub position: i64,
}

/// Why nothing was appended, or nothing could be read.
#[derive(Debug, Error)]
pub enum StoreError {
    /// The stream is at another version than was expected. The transaction must be given up and everything be decided again.
    #[error("the stream {stream} is no longer at version {expected}")]
    Conflict {
        /// Its name.
        stream: String,
        /// What the writer had seen.
        expected: i64,
    },
    /// An event is not what its type says.
    #[error("an event cannot be written or read as JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// The database is away, or refuses.
    #[error("the event store: {0}")]
    Database(#[from] tokio_postgres::Error),
}

impl NewEvent {
    /// An event from an enum that serde writes as `{"type": …, "data": …}` (`#[serde(tag = "type", content = "data")]`).
    ///
    /// # Errors
    /// When it is written otherwise.
    pub fn of(event: &impl Serialize) -> Result<Self, StoreError> {
        #[derive(serde::Deserialize)]
        struct Written {
            #[serde(rename = "type")]
            type_: String,
            data: Value,
        }
        let Written { type_, data } = serde_json::from_value(serde_json::to_value(event)?)?;
        Ok(Self { type_, data })
    }
}

impl StoredEvent {
    /// The event as the enum that [`NewEvent::of`] took.
    ///
    /// # Errors
    /// When the enum has no such event.
    pub fn decode<E: DeserializeOwned>(&self) -> Result<E, StoreError> {
        Ok(serde_json::from_value(serde_json::json!({"type": self.type_, "data": self.data}))?)
    }
}

impl Stream {
    /// All events as the enum that [`NewEvent::of`] took.
    ///
    /// # Errors
    /// When one of them is none of it.
    pub fn decode<E: DeserializeOwned>(&self) -> Result<Vec<E>, StoreError> {
        self.events.iter().map(StoredEvent::decode).collect()
    }
}

/// Reads a stream from its beginning.
///
/// # Errors
/// When the database is away or refuses.
pub async fn read(client: &impl GenericClient, stream: &str) -> Result<Stream, StoreError> {
    const READ: &str = "select position, version, type, data from events where stream = $1 order by version";
    let rows = client.query(READ, &[&stream]).await?;
    let events = rows.iter().map(|row| StoredEvent {
        position: row.get(0),
        version: row.get(1),
        type_: row.get(2),
        data: row.get(3),
    });
    let events: Vec<StoredEvent> = events.collect();
    Ok(Stream { version: events.last().map_or(0, |event| event.version), events })
}

/// Appends events to a stream that is at the version `expected`; 0 where it must not exist yet.
///
/// A transaction in flight that appends to the same stream is waited for: it decides which of the two has a conflict.
///
/// # Errors
/// [`StoreError::Conflict`] when the stream is at another version; the transaction can then only be given up.
pub async fn append(
    transaction: &Transaction<'_>,
    stream: &str,
    expected: i64,
    events: &[NewEvent],
) -> Result<Appended, StoreError> {
    // The versions above the expected one must be free, which the table's constraint says, and the expected one must be there, or the stream would have a gap.
    const APPEND: &str = "insert into events (stream, version, type, data)
        select $1, $2 + e.n, e.type, e.data from unnest($3::text[], $4::jsonb[]) with ordinality as e (type, data, n)
        where $2 = 0 or exists (select from events where stream = $1 and version = $2)
        order by e.n returning version, position";
    let conflict = || StoreError::Conflict { stream: stream.to_owned(), expected };
    let types: Vec<&str> = events.iter().map(|event| event.type_.as_str()).collect();
    let data: Vec<&Value> = events.iter().map(|event| &event.data).collect();
    let rows = match transaction.query(APPEND, &[&stream, &expected, &types, &data]).await {
        Err(error) if error.code() == Some(&SqlState::UNIQUE_VIOLATION) => return Err(conflict()),
        rows => rows?,
    };
    let last = rows.iter().map(|row| Appended { version: row.get(0), position: row.get(1) });
    last.max_by_key(|appended| appended.version).ok_or_else(conflict)
}
