//! Runs handlers in a schema of their own, in one transaction that is never committed.

use tokio_postgres::Error;

use super::{
    super::super::{
        config::PostgresOutput,
        error::{ProjectorError, doing},
        event::Event,
        postgres_errors::{Failure, database_message, failure},
    },
    super::{Done, DryRun, DryRunError},
    CONNECT_DEADLINE, Mapping,
    handlers::Handlers,
    sql,
};
use crate::clients::postgres::{ConnectionSettings, Session, connect, quote_identifier};

/// What `pg_stat_activity` shows.
const APPLICATION: &str = "projectionist-dry-run";
const PREPARING: &str = "read store: preparing a schema to try the handlers in";
const TRYING: &str = "read store: trying the handlers";
/// What others hold is not waited for long, and nothing is held for long.
const BOUNDS: &str = "set local lock_timeout = '10s'; set local statement_timeout = '60s'; set local idle_in_transaction_session_timeout = '60s'; \
     set local standard_conforming_strings = on";

/// A transaction in which handlers are tried. It ends with its connection, and leaves nothing.
pub(in crate::projector) struct PostgresDryRun {
    session: Session,
    handlers: Handlers,
}

impl PostgresDryRun {
    /// Connects, makes a schema, runs the user's setup in it, and has the handlers prepared.
    pub(in crate::projector) async fn open(
        settings: &ConnectionSettings,
        sql: &PostgresOutput,
        mapping: &Mapping,
    ) -> Result<Self, ProjectorError> {
        if let Some(word) = sql.setup.as_deref().and_then(sql::ends_transaction) {
            return Err(ProjectorError::Setup(format!(
                "{word} ends the transaction in which it is tried: leave it out, workers run the setup as one script"
            )));
        }
        let session = connect(settings, APPLICATION, CONNECT_DEADLINE)
            .await
            .map_err(|source| ProjectorError::Connection { what: "read store", source })?;
        let client = &session.client;
        let preparing = || doing(PREPARING);
        client.batch_execute("begin isolation level read committed").await.map_err(preparing())?;
        client.batch_execute(BOUNDS).await.map_err(preparing())?;
        let row = client.query_one("select current_setting('search_path')", &[]).await.map_err(preparing())?;
        // What the setup does not make is found where workers find it.
        let usual = match &sql.schema {
            Some(schema) => quote_identifier(schema),
            None => row.try_get(0).map_err(preparing())?,
        };
        let scratch = quote_identifier(&format!("projectionist_dry_run_{:016x}", rand::random::<u64>()));
        let path = if usual.is_empty() { scratch.clone() } else { format!("{scratch}, {usual}") };
        let path = format!("set local search_path = {path}");
        client.batch_execute(&format!("create schema {scratch}; {path}")).await.map_err(preparing())?;
        if let Some(setup) = &sql.setup {
            let transaction = "select txid_current_if_assigned()";
            let before = client.query_one(transaction, &[]).await.map_err(preparing())?;
            client.batch_execute(setup).await.map_err(|error| ProjectorError::Setup(words(&error)))?;
            let after = client.query_one(transaction, &[]).await.map_err(preparing())?;
            let id = |row: &tokio_postgres::Row| row.try_get::<_, Option<i64>>(0).map_err(preparing());
            if id(&before)? != id(&after)? {
                return Err(ProjectorError::Setup(format!(
                    "it ended the transaction in which it is tried, so that what it did stays: look at it, and drop the schema {scratch}"
                )));
            }
            client.batch_execute(&path).await.map_err(preparing())?;
        }
        let handlers = mapping.prepare(client).await?;
        Ok(Self { session, handlers })
    }

    /// What a failed statement means.
    async fn failed(&self, error: Error) -> DryRunError {
        if failure(&error) == Failure::Connection {
            return DryRunError::Store(ProjectorError::Statement { doing: TRYING, source: error });
        }
        match self.session.client.batch_execute("rollback to savepoint tried").await {
            Ok(()) => DryRunError::Event(words(&error)),
            Err(error) => DryRunError::Store(ProjectorError::Statement { doing: TRYING, source: error }),
        }
    }
}

impl DryRun for PostgresDryRun {
    async fn handle(&mut self, event: &Event) -> Result<Option<Done>, DryRunError> {
        let Some((statement, values)) = self.handlers.bind(event) else { return Ok(None) };
        let client = &self.session.client;
        let begun = client.batch_execute("savepoint tried").await;
        begun.map_err(|error| DryRunError::Store(doing(TRYING)(error)))?;
        match client.execute_raw(statement, values).await {
            Ok(rows) => Ok(Some(Done {
                summary: if rows == 1 { "1 row".to_owned() } else { format!("{rows} rows") },
                lines: Vec::new(),
            })),
            Err(error) => Err(self.failed(error).await),
        }
    }

    /// Constraints that are deferred speak at the commit.
    async fn finish(&mut self) -> Result<Vec<String>, DryRunError> {
        let client = &self.session.client;
        let begun = client.batch_execute("savepoint tried").await;
        begun.map_err(|error| DryRunError::Store(doing(TRYING)(error)))?;
        let checked = client.batch_execute("set constraints all immediate").await;
        if let Err(error) = checked {
            return Err(self.failed(error).await);
        }
        client.batch_execute("rollback").await.map_err(|error| DryRunError::Store(doing(TRYING)(error)))?;
        Ok(Vec::new())
    }
}

/// All that the database says: unlike in a worker's log the events are the caller's own, on the caller's screen.
fn words(error: &Error) -> String {
    let Some(answer) = error.as_db_error() else { return database_message(error) };
    let mut words = format!("{} (SQLSTATE {})", answer.message(), answer.code().code());
    for more in [answer.detail(), answer.hint()].into_iter().flatten() {
        words.push_str(&format!("; {more}"));
    }
    words
}
