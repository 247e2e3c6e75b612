//! A read model in PostgreSQL: the user's SQL for each event, effects and checkpoint in one transaction.

mod awaiting;
mod batch;
mod checkpoint;
mod dry_run;
mod functions;
mod handlers;
mod inbox;
mod members;
mod sql;

use std::time::Duration;

use tokio_postgres::{Client, Error, Statement, types::ToSql};

use self::{
    batch::{Failed, HandlerTime, Transaction},
    checkpoint::{Rows, Tables},
    handlers::Handlers,
    members::PostgresMembership,
};
pub(in crate::projector) use self::{dry_run::PostgresDryRun, handlers::Mapping, inbox::PostgresInbox};
pub use sql::SqlError;

use super::{
    super::{
        config::PostgresOutput,
        error::{ProjectorError, doing, unless_pooled},
        event::Event,
        postgres_errors::{Failure, database_message, failure},
        sharding::Sharding,
    },
    Advance, Again, Applied, ApplyError, Held, Numbered, ReadModel,
};
use crate::clients::postgres::{ConnectionSettings, Session, connect, quote_identifier};

/// For opening a connection.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);
/// What is being done, for messages.
const COMMITTING: &str = "read store: committing a checkpoint";

/// A connection to the read store, with everything prepared on it.
pub(in crate::projector) struct PostgresReadModel {
    settings: ConnectionSettings,
    application: String,
    me: String,
    tables: Tables,
    session: Session,
    handlers: Handlers,
    advance: Statement,
    handler_time: HandlerTime,
}

impl PostgresReadModel {
    /// Connects, makes the checkpoint table, runs the user's setup, and has the handlers prepared. `me` is this worker's name in the checkpoint table.
    pub(in crate::projector) async fn open(
        settings: &ConnectionSettings,
        application: &str,
        projection: &str,
        (sql, mapping): (&PostgresOutput, &Mapping),
        sharding: &Sharding,
        me: &str,
    ) -> Result<(Self, Numbered), ProjectorError> {
        let session = open_session(settings, application).await?;
        let tables = Tables::of(projection, sql.schema.as_deref());
        let numbered = tables.create(&session.client, sharding).await?;
        set_up(&session.client, projection, sql).await?;
        let handlers = mapping.prepare(&session.client).await?;
        let advance = session.client.prepare(&tables.advance()).await.map_err(doing(COMMITTING))?;
        let model = Self {
            settings: settings.clone(),
            application: application.to_owned(),
            me: me.to_owned(),
            tables,
            session,
            handlers,
            advance,
            handler_time: HandlerTime::default(),
        };
        Ok((model, numbered))
    }

    async fn write(&self, rows: &Rows) -> Result<bool, Error> {
        let values: [&(dyn ToSql + Sync); 6] =
            [&self.tables.projection, &self.me, &rows.shards, &rows.fences, &rows.before, &rows.positions];
        let written = self.session.client.execute(&self.advance, &values).await?;
        Ok(usize::try_from(written) == Ok(rows.len()))
    }
}

/// Leaves the transaction after a failure, and says what it means.
async fn failed(client: &Client, Failed { index, error }: Failed) -> ApplyError {
    let kind = failure(&error);
    if kind == Failure::Connection {
        return ApplyError::Store(ProjectorError::Statement {
            doing: "read store: running the handlers",
            source: error,
        });
    }
    if let Err(error) = roll_back(client).await {
        return ApplyError::Store(error);
    }
    match kind {
        Failure::Contention => ApplyError::Contention { index, message: database_message(&error) },
        _ => ApplyError::Event { index, message: database_message(&error) },
    }
}

/// The same for a failed commit after so many handlers: a deferred constraint speaks only there, and does not say about which event.
async fn commit_failed(client: &Client, count: usize, error: Error) -> ApplyError {
    match failed(client, Failed { index: 0, error }).await {
        ApplyError::Event { message, .. } if count > 1 => ApplyError::OneOf { message },
        failed => failed,
    }
}

async fn roll_back(client: &Client) -> Result<(), ProjectorError> {
    client.batch_execute("rollback").await.map_err(doing("read store: rolling back"))
}

impl ReadModel for PostgresReadModel {
    type Membership = PostgresMembership;

    async fn join(&self, name: &str) -> Result<PostgresMembership, ProjectorError> {
        PostgresMembership::join(&self.settings, &self.application, &self.tables, &self.me, name).await
    }

    async fn take(&mut self, shards: &[u32]) -> Result<Vec<(u32, Held)>, ProjectorError> {
        let taken = self.tables.take(&self.session.client, &self.me, shards).await;
        taken.map_err(doing("read store: sharing the shards"))
    }

    async fn mine(&mut self) -> Result<Vec<(u32, Held)>, ProjectorError> {
        let mine = self.tables.mine(&self.session.client, &self.me).await;
        mine.map_err(doing("read store: reading the checkpoints"))
    }

    async fn release(&mut self, shards: &[(u32, Held)]) -> Result<(), ProjectorError> {
        let released = self.tables.release(&self.session.client, &self.me, shards).await;
        released.map_err(doing("read store: giving shards back"))
    }

    async fn leave(&mut self) -> Result<(), ProjectorError> {
        let left = members::leave(&self.session.client, &self.tables, &self.me).await;
        left.map_err(doing("read store: leaving the workers"))
    }

    async fn apply(
        &mut self,
        events: &[Event],
        advances: &(dyn Fn(usize) -> Vec<Advance> + Sync),
        hurry: &(dyn Fn() -> bool + Sync),
    ) -> Result<Applied, ApplyError> {
        let how = (Transaction::ToBegin, &mut self.handler_time);
        let count = match batch::run(&self.session.client, &self.handlers, events, how, hurry).await {
            Ok(count) => count,
            Err(why) => return Err(failed(&self.session.client, why).await),
        };
        let written = match self.write(&Rows::of(advances(count))).await {
            Ok(true) => self.session.client.batch_execute("commit").await.map(|()| true),
            other => other,
        };
        match written {
            Ok(true) => Ok(Applied::Committed(count)),
            Ok(false) => {
                let rolled_back = roll_back(&self.session.client).await;
                rolled_back.map(|()| Applied::ReadAgain(Again::Lost)).map_err(ApplyError::Store)
            }
            Err(error) => Err(commit_failed(&self.session.client, count, error).await),
        }
    }

    async fn advance(&mut self, advances: &[Advance]) -> Result<bool, ProjectorError> {
        self.write(&Rows::of(advances.iter().copied())).await.map_err(doing(COMMITTING))
    }

    async fn record_failure(&mut self, shard: (u32, Held), position: i64, why: &str) -> Result<(), ProjectorError> {
        let recorded = self.tables.record_failure(&self.session.client, &self.me, shard, position, why).await;
        recorded.map_err(doing("read store: recording a failed event"))
    }
}

/// Connects, with the settings of a worker's session.
async fn open_session(settings: &ConnectionSettings, application: &str) -> Result<Session, ProjectorError> {
    let session = connect(settings, application, CONNECT_DEADLINE)
        .await
        .map_err(|source| ProjectorError::Connection { what: "read store", source })?;
    let session = unless_pooled("read store", settings, session)?;
    session.client.batch_execute(&session_sql()).await.map_err(doing("read store: preparing"))?;
    Ok(session)
}

/// Makes the read model's schema the one that handlers write to, and runs the user's setup there.
async fn set_up(client: &Client, projection: &str, sql: &PostgresOutput) -> Result<(), ProjectorError> {
    let path = match &sql.schema {
        Some(schema) => format!("set search_path = {}", quote_identifier(schema)),
        None => "reset search_path".to_owned(),
    };
    client.batch_execute(&path).await.map_err(doing("read store: preparing"))?;
    if let Some(setup) = &sql.setup {
        run_setup(client, projection, setup).await?;
    }
    // The setup may have changed it.
    client.batch_execute(&path).await.map_err(doing("read store: preparing"))
}

/// One worker at a time.
async fn run_setup(client: &Client, projection: &str, setup: &str) -> Result<(), ProjectorError> {
    let failed = doing("read store: waiting for the setup of another worker");
    // A lock of the session and not of a transaction: the setup may hold statements that want to begin their own.
    let key = "hashtextextended('projectionist setup ' || $1::text, 0)";
    client.execute(&format!("select pg_advisory_lock({key})"), &[&projection]).await.map_err(&failed)?;
    client.batch_execute(setup).await.map_err(|error| ProjectorError::Setup(database_message(&error)))?;
    // After the setup, in case that it changed them.
    client.batch_execute(&session_sql()).await.map_err(&failed)?;
    client.execute(&format!("select pg_advisory_unlock({key})"), &[&projection]).await.map_err(&failed)?;
    Ok(())
}

/// A worker that is stopped or cut off in the middle of a batch must not keep its locks for longer than its lease. The last setting, which
/// servers before version 14 lack, ends a long statement whose worker is gone.
fn session_sql() -> String {
    format!(
        "set standard_conforming_strings = on; set idle_in_transaction_session_timeout = '{}s'; \
         set tcp_keepalives_idle = 5; set tcp_keepalives_interval = 2; set tcp_keepalives_count = 3; \
         select set_config(name, '2000', false) from pg_catalog.pg_settings where name = 'client_connection_check_interval'",
        members::LEASE.as_secs()
    )
}
