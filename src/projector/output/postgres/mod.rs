//! A read model in PostgreSQL: the user's SQL for each event, effects and checkpoint in one transaction.

mod awaiting;
mod batch;
mod checkpoint;
mod dry_run;
mod functions;
mod handlers;
mod inbox;
mod members;
mod parked;
mod sql;

use std::{collections::BTreeMap, time::Duration};

use tokio_postgres::{Client, Error, Statement, types::ToSql};

use self::{
    batch::{Failed, HandlerTime, Transaction},
    checkpoint::{Rows, Tables},
    handlers::{Behind, Handlers},
    members::PostgresMembership,
    parked::{Parking, Room, SETTING_ASIDE},
};
pub(in crate::projector) use self::{dry_run::PostgresDryRun, handlers::Mapping, inbox::PostgresInbox};
pub use sql::SqlError;

use super::{
    super::{
        config::{PostgresOutput, ProjectorConfig},
        error::{ProjectorError, doing, unless_pooled},
        event::Event,
        poison::Poison,
        postgres_errors::{Failure, database_message, failure, fault_of_the_event},
        sharding::Sharding,
        uncalled,
    },
    Advance, Again, Applied, ApplyError, Held, Numbered, Poisoned, ReadModel, Replayed, SetAside,
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
    poison: Poison,
    /// Absent where nothing was ever set aside and nothing is to be.
    parking: Option<Parking>,
}

impl PostgresReadModel {
    /// Connects, makes the checkpoint table, runs the user's setup, and has the handlers prepared. `me` is this worker's name in the checkpoint table.
    pub(in crate::projector) async fn open(
        settings: &ConnectionSettings,
        application: &str,
        ProjectorConfig { projection, poison, .. }: &ProjectorConfig,
        (sql, mapping): (&PostgresOutput, &Mapping),
        sharding: &Sharding,
        me: &str,
    ) -> Result<(Self, Numbered), ProjectorError> {
        let session = open_session(settings, application).await?;
        let tables = Tables::of(projection, sql.schema.as_deref());
        let numbered = tables.create(&session.client, sharding).await?;
        let parking = Parking::open(&session.client, &tables, *poison).await?;
        set_up(&session.client, projection, sql).await?;
        let handlers = mapping.prepare(&session.client).await?;
        let advance = session.client.prepare(&tables.advance()).await.map_err(doing(COMMITTING))?;
        let mut model = Self {
            settings: settings.clone(),
            application: application.to_owned(),
            me: me.to_owned(),
            tables,
            session,
            handlers,
            advance,
            handler_time: HandlerTime::default(),
            poison: *poison,
            parking: None,
        };
        model.park_with(parking).await?;
        Ok((model, numbered))
    }

    async fn park_with(&mut self, parking: Option<Parking>) -> Result<(), ProjectorError> {
        if let Some(parking) = &parking {
            let prepared = parking.prepare(&self.session.client).await?;
            self.handlers.park_behind_with(Behind { prepared, projection: self.tables.projection.clone() });
        }
        self.parking = parking;
        Ok(())
    }

    /// Reads which streams of these shards, which are this worker's now, have parked events. Another worker may have made the table since this one began.
    async fn load_parked(&mut self, taken: &[(u32, Held)]) -> Result<(), ProjectorError> {
        if self.parking.is_none() {
            let parking = Parking::open(&self.session.client, &self.tables, self.poison).await?;
            self.park_with(parking).await?;
        }
        let Some(parking) = &mut self.parking else { return Ok(()) };
        let shards: Vec<u32> = taken.iter().map(|(shard, _)| *shard).collect();
        parking.load(&self.session.client, &shards).await.map(drop).map_err(doing(SETTING_ASIDE))
    }

    /// Begins a transaction for events that are to be parked behind others. Returns how many of them fit into it; nothing where some follow no
    /// parked event any more.
    async fn begin_parking(&mut self, events: &[Event]) -> Result<Option<usize>, ApplyError> {
        let Some(parking) = &mut self.parking else { return Ok(None) };
        let client = &self.session.client;
        let fitting = match parking.begin(client).await {
            Ok(Room::For(room)) => parking.fitting(client, events, room).await,
            Ok(Room::Busy) => {
                roll_back(client).await.map_err(ApplyError::Store)?;
                let message =
                    "others park or drop events of this projection, or a transaction that dropped some is still open"
                        .to_owned();
                // Its shard waits, and no other with it.
                return Err(ApplyError::Event { index: 0, message });
            }
            Err(error) => Err(error),
        };
        match fitting {
            Ok(Some(0)) => {
                roll_back(client).await.map_err(ApplyError::Store)?;
                Err(ApplyError::NoRoom)
            }
            Ok(Some(count)) => Ok(Some(count)),
            Ok(None) => roll_back(client).await.map(|()| None).map_err(ApplyError::Store),
            Err(error) => Err(ApplyError::Store(doing(SETTING_ASIDE)(error))),
        }
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
    let message = database_message(&error);
    match (kind, fault_of_the_event(&error)) {
        (Failure::Contention, _) => ApplyError::Contention { index, message },
        (_, Some(code)) => ApplyError::Poison { index, message, class: code.to_owned() },
        (_, None) => ApplyError::Event { index, message },
    }
}

/// The same for a failed commit after so many handlers: a deferred constraint speaks only there, and does not say about which event.
async fn commit_failed(client: &Client, count: usize, error: Error) -> ApplyError {
    match failed(client, Failed { index: 0, error }).await {
        ApplyError::Event { message, .. } | ApplyError::Poison { message, .. } if count > 1 => {
            ApplyError::OneOf { message }
        }
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
        let taken = taken.map_err(doing("read store: sharing the shards"))?;
        self.load_parked(&taken).await?;
        Ok(taken)
    }

    async fn mine(&mut self) -> Result<Vec<(u32, Held)>, ProjectorError> {
        let mine = self.tables.mine(&self.session.client, &self.me).await;
        let mine = mine.map_err(doing("read store: reading the checkpoints"))?;
        self.load_parked(&mine).await?;
        Ok(mine)
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
        let (mut events, mut transaction) = (events, Transaction::ToBegin);
        // No handler runs while others wait to park.
        let is_behind = |event: &Event| event.behind_parked.is_some();
        let parks = events.first().is_some_and(is_behind);
        let alike = events.iter().take_while(|event| is_behind(event) == parks).count();
        events = events.get(..alike).unwrap_or(events);
        if parks {
            let Some(count) = self.begin_parking(events).await? else {
                return Ok(Applied::ReadAgain(Again::NoneParked));
            };
            (events, transaction) = (events.get(..count).unwrap_or(events), Transaction::Begun);
        }
        let how = (transaction, &mut self.handler_time);
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

    fn follows_parked(&self, event: &Event) -> bool {
        self.parking.as_ref().is_some_and(|parking| parking.holds_stream_of(event))
    }

    async fn set_aside(&mut self, poisoned: &Poisoned<'_>, advance: Advance) -> Result<SetAside, ProjectorError> {
        let Some(parking) = &self.parking else {
            return Ok(SetAside::Refused("its table is not there".to_owned()));
        };
        let client = &self.session.client;
        let room = parking.begin(client).await.map_err(doing(SETTING_ASIDE))?;
        let refused = match room {
            Room::For(0) if parking.counts() => Some(SetAside::NoRoom),
            Room::For(_) => match parking.insert(client, poisoned).await {
                Ok(()) => None,
                Err(error) if failure(&error) == Failure::Connection => return Err(doing(SETTING_ASIDE)(error)),
                Err(error) => Some(SetAside::Refused(database_message(&error))),
            },
            Room::Busy => Some(SetAside::Refused("others park or drop events of this projection".to_owned())),
        };
        let refused = match refused {
            None if self.write(&Rows::of([advance])).await.map_err(doing(SETTING_ASIDE))? => None,
            None => Some(SetAside::Lost),
            Some(refused) => Some(refused),
        };
        if let Some(refused) = refused {
            return roll_back(client).await.map(|()| refused);
        }
        client.batch_execute("commit").await.map_err(doing(SETTING_ASIDE))?;
        if let Some(parking) = &mut self.parking {
            parking.note(poisoned);
        }
        Ok(SetAside::Done)
    }

    async fn replay(&mut self, held: &BTreeMap<u32, Held>) -> Result<Replayed, ProjectorError> {
        match &mut self.parking {
            Some(parking) => parking.replay(&self.session.client, (&self.handlers, &self.me), held).await,
            None => Ok(Replayed::Nothing),
        }
    }

    async fn record_failure(&mut self, shard: (u32, Held), position: i64, why: &str) -> Result<(), ProjectorError> {
        let recorded = self.tables.record_failure(&self.session.client, &self.me, shard, position, why).await;
        recorded.map_err(doing("read store: recording a failed event"))
    }

    async fn note_uncalled(&mut self, shards: &[(u32, Held)], types: &[String]) -> Result<(), ProjectorError> {
        let note = |fence| uncalled::note(fence, types);
        let noted = self.tables.note_uncalled(&self.session.client, &self.me, shards, note).await;
        noted.map_err(doing(uncalled::NOTING))
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
        // Another version has a setup of its own, which keeps no worker of this one waiting.
        let place = sql.schema.as_deref().unwrap_or_default();
        run_setup(client, &format!("{projection} {place}"), setup).await?;
    }
    // The setup may have changed it.
    client.batch_execute(&path).await.map_err(doing("read store: preparing"))
}

/// One worker of a read model at a time.
async fn run_setup(client: &Client, read_model: &str, setup: &str) -> Result<(), ProjectorError> {
    let failed = doing("read store: waiting for the setup of another worker");
    // A lock of the session and not of a transaction: the setup may hold statements that want to begin their own.
    let key = "hashtextextended('projectionist setup ' || $1::text, 0)";
    client.execute(&format!("select pg_advisory_lock({key})"), &[&read_model]).await.map_err(&failed)?;
    client.batch_execute(setup).await.map_err(|error| ProjectorError::Setup(database_message(&error)))?;
    // After the setup, in case that it changed them.
    client.batch_execute(&session_sql()).await.map_err(&failed)?;
    client.execute(&format!("select pg_advisory_unlock({key})"), &[&read_model]).await.map_err(&failed)?;
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
