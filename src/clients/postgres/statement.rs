//! Statements that leave nothing behind on a connection which others may use next.
//!
//! A pooler in transaction mode (pgbouncer, pgcat and the like) hands each transaction to any server connection that is free, and that connection to
//! another client afterwards, in the state in which it was left: a setting of the session would apply to the next client, and a statement prepared by
//! name would be missing here or collide there. So settings last for one transaction ([`reading`]), and a [`Query`] is sent without a name unless it
//! was [prepared](Query::prepare) on a connection that is known to serve no other client.

use std::pin::pin;

use futures::{future::maybe_done, poll};
use tokio_postgres::{
    Client, Error, Row, Statement,
    types::{ToSql, Type},
};

/// SQL with the types of its parameters.
#[derive(Clone)]
pub struct Query {
    sql: String,
    parameters: Vec<Type>,
    prepared: Option<Statement>,
}

impl std::fmt::Debug for Query {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Query").field("sql", &self.sql).field("named", &self.prepared.is_some()).finish_non_exhaustive()
    }
}

impl Query {
    /// A statement that is sent whole each time. Its result columns must have built-in types, or the client would look their types up with
    /// statements prepared by name.
    pub fn new(sql: impl Into<String>, parameters: &[Type]) -> Self {
        Self { sql: sql.into(), parameters: parameters.to_vec(), prepared: None }
    }

    /// Prepares it by name, which saves the server from parsing it each time. Only on a connection that no other client uses, and of use only on this
    /// one.
    ///
    /// # Errors
    /// Those of the server.
    pub async fn prepare(&mut self, client: &Client) -> Result<(), Error> {
        self.prepared = Some(client.prepare_typed(&self.sql, &self.parameters).await?);
        Ok(())
    }

    /// The rows of the answer. `values` are as many as there are parameters.
    ///
    /// # Errors
    /// Those of the server.
    pub async fn rows(&self, client: &Client, values: &[&(dyn ToSql + Sync)]) -> Result<Vec<Row>, Error> {
        match &self.prepared {
            Some(statement) => client.query(statement, values).await,
            None => client.query_typed(&self.sql, &self.typed(values)).await,
        }
    }

    /// The one row of the answer.
    ///
    /// # Errors
    /// Those of the server, and when there is not exactly one row.
    pub async fn row(&self, client: &Client, values: &[&(dyn ToSql + Sync)]) -> Result<Row, Error> {
        match &self.prepared {
            Some(statement) => client.query_one(statement, values).await,
            None => client.query_typed_one(&self.sql, &self.typed(values)).await,
        }
    }

    /// How many rows were changed.
    ///
    /// # Errors
    /// Those of the server.
    pub async fn execute(&self, client: &Client, values: &[&(dyn ToSql + Sync)]) -> Result<u64, Error> {
        match &self.prepared {
            Some(statement) => client.execute(statement, values).await,
            None => client.execute_typed(&self.sql, &self.typed(values)).await,
        }
    }

    fn typed<'a>(&self, values: &[&'a (dyn ToSql + Sync)]) -> Vec<(&'a (dyn ToSql + Sync), Type)> {
        values.iter().copied().zip(self.parameters.iter().cloned()).collect()
    }
}

/// Runs `work` in a read-only transaction in which `settings` hold (`name = value`, each for `set local`) and which ends with it.
///
/// The transaction's first and last words are sent along with the work's own statements, so that they cost no round trip. Where this future is
/// dropped before it ends, the connection must be closed.
///
/// # Errors
/// The outer one is the server's refusal to begin.
pub async fn reading<T, E>(
    client: &Client,
    settings: &[&str],
    work: impl Future<Output = Result<T, E>>,
) -> Result<Result<T, E>, Error> {
    transaction(client, "read committed", settings, "commit", work).await
}

/// As [`reading`], for statements that are not ours: whatever the outcome, what they set for the session or notify is undone.
///
/// # Errors
/// The outer one is the server's refusal to begin.
pub async fn reading_and_undoing<T, E>(
    client: &Client,
    settings: &[&str],
    work: impl Future<Output = Result<T, E>>,
) -> Result<Result<T, E>, Error> {
    transaction(client, "read committed", settings, "rollback", work).await
}

/// As [`reading_and_undoing`], where all statements see what was committed when the first of them began.
///
/// # Errors
/// The outer one is the server's refusal to begin.
pub async fn reading_one_moment<T, E>(
    client: &Client,
    settings: &[&str],
    work: impl Future<Output = Result<T, E>>,
) -> Result<Result<T, E>, Error> {
    transaction(client, "repeatable read", settings, "rollback", work).await
}

async fn transaction<T, E>(
    client: &Client,
    isolation: &str,
    settings: &[&str],
    end: &str,
    work: impl Future<Output = Result<T, E>>,
) -> Result<Result<T, E>, Error> {
    let mut begin = format!("begin isolation level {isolation} read only");
    settings.iter().for_each(|setting| begin.push_str(&format!("; set local {setting}")));
    let mut begun = pin!(maybe_done(client.batch_execute(&begin)));
    // A statement is on its way once its future has been polled.
    let _ = poll!(begun.as_mut());
    let outcome = work.await;
    begun.as_mut().await;
    if let Some(Err(error)) = begun.take_output() {
        return Err(error);
    }
    let mut ended = pin!(maybe_done(client.batch_execute(if outcome.is_ok() { end } else { "rollback" })));
    // Nothing depends on the answer: the transaction only read, and later statements come after it.
    let _ = poll!(ended.as_mut());
    Ok(outcome)
}
