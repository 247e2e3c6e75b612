//! A request that is repeated, since its answer was lost, gets the first answer and does nothing more. Whoever asks sends the same key with it.
//!
//! ```text
//! match idempotency_key::claim(&transaction, key, &request).await? {
//!     Claim::Answered(answer) => return answer,
//!     Claim::New => {}
//! }
//! …do it in the same transaction…
//! idempotency_key::answer(&transaction, key, &answer).await?;
//! transaction.commit().await?;
//! ```
//!
//! The key is committed with what the request did. A server that dies before leaves neither, and the request can be repeated.

use std::time::Duration;

use serde_json::Value;
use thiserror::Error;
use tokio_postgres::{Client, Transaction};

/// Keys that one statement of [`prune`] deletes at most.
const BATCH: i64 = 1_000;

/// What is known of a key.
#[derive(Clone, Debug, PartialEq)]
pub enum Claim {
    /// Nothing: the request is to be done, and [`answer`] to be called in the same transaction.
    New,
    /// The request was done, and answered so.
    Answered(Value),
}

/// Why a key cannot be used.
#[derive(Debug, Error)]
pub enum KeyError {
    /// It came with another request before. Its answer would be about something else.
    #[error("the idempotency key was used for another request: choose a new one")]
    OtherRequest,
    /// The database is away, or refuses.
    #[error("idempotency keys: {0}")]
    Database(#[from] tokio_postgres::Error),
}

/// Takes a key for this transaction. While another transaction has it, this waits for that one's end.
///
/// Keys are of one client: put its name in front where clients are not to see each other's answers.
///
/// # Errors
/// When the key was used for another request, or the database is away.
pub async fn claim(transaction: &Transaction<'_>, key: &str, request: &Value) -> Result<Claim, KeyError> {
    const CLAIM: &str = "insert into idempotency_keys (key, request) values ($1, $2) on conflict (key) do nothing";
    const LOOK: &str = "select request = $2, answer from idempotency_keys where key = $1";
    loop {
        if transaction.execute(CLAIM, &[&key, request]).await? == 1 {
            return Ok(Claim::New);
        }
        // Not there when it was pruned between the two statements: then it is free.
        let Some(row) = transaction.query_opt(LOOK, &[&key, request]).await? else { continue };
        return match row.get(0) {
            true => Ok(Claim::Answered(row.get::<_, Option<Value>>(1).unwrap_or_default())),
            false => Err(KeyError::OtherRequest),
        };
    }
}

/// Notes the answer under a key that this transaction has claimed.
///
/// # Errors
/// When the database is away.
pub async fn answer(transaction: &Transaction<'_>, key: &str, answer: &Value) -> Result<(), KeyError> {
    transaction.execute("update idempotency_keys set answer = $2 where key = $1", &[&key, answer]).await?;
    Ok(())
}

/// Forgets keys that are older than `age`, which must be longer than any client repeats a request. Returns how many.
///
/// # Errors
/// When the database is away.
pub async fn prune(client: &Client, age: Duration) -> Result<u64, KeyError> {
    const PRUNE: &str = "delete from idempotency_keys where key in
        (select key from idempotency_keys where made_at < now() - make_interval(secs => $1) order by made_at limit $2)";
    let mut pruned = 0;
    // Many small transactions: one that deletes for minutes would hold up vacuum, and readers of events that wait for older transactions.
    loop {
        let deleted = client.execute(PRUNE, &[&age.as_secs_f64(), &BATCH]).await?;
        pruned += deleted;
        if deleted == 0 {
            return Ok(pruned);
        }
    }
}
