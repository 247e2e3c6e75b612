//! A worker from start to end: connects, sets up, works, and starts again after growing pauses when a database fails.

use std::{future::Future, net::SocketAddr, time::Duration};

use tokio::{
    sync::watch,
    time::{Instant, sleep},
};

use super::{
    checkpoint::Tables,
    config::ProjectorConfig,
    error::{ProjectorError, database_message},
    events::{CONNECT_DEADLINE, Reader},
    health::{self, Health},
    mapping::Mapping,
    members::{LEASE, Membership, View},
    worker::Worker,
};
use crate::{
    backoff::Backoff,
    clients::postgres::{ConnectionSettings, Session, connect, quote_identifier},
};

/// Pauses between attempts.
const BACKOFF: Backoff = Backoff::new(Duration::from_millis(250), Duration::from_secs(15));
/// An attempt that lasted this long did not fail at once: the pauses start again.
const LONG_LIFE: Duration = Duration::from_secs(30);
/// From the signal to stop until the batch in progress must have ended: less than the 30 s that Kubernetes grants.
const DRAIN_DEADLINE: Duration = Duration::from_secs(20);

/// What a worker needs to know.
#[derive(Clone, Debug)]
pub struct RunOptions {
    /// The work.
    pub config: ProjectorConfig,
    /// How to reach the event source.
    pub source: ConnectionSettings,
    /// How to reach the read store.
    pub store: ConnectionSettings,
    /// Distinguishes this worker from the others of the projection: the pod's name.
    pub worker_name: String,
    /// Where to serve `/healthz` and `/readyz`.
    pub health_listen: Option<SocketAddr>,
}

/// What all runs of a worker share.
struct Life {
    config: ProjectorConfig,
    mapping: Mapping,
    tables: Tables,
    source: ConnectionSettings,
    store: ConnectionSettings,
    name: String,
    application: String,
    health: Health,
}

/// Works until `shutdown` resolves; then finishes the batch in progress, gives all shards back, and returns.
///
/// # Errors
/// Where only another configuration can help: a handler that is no statement, another number of shards than the checkpoints were made for, a health
/// address that is in use. And when the batch in progress did not end in time after `shutdown`.
pub async fn run(options: RunOptions, shutdown: impl Future<Output = ()>) -> Result<(), ProjectorError> {
    let RunOptions { config, source, store, worker_name, health_listen } = options;
    config.check()?;
    let life = Life {
        mapping: Mapping::parse(&config.handlers)?,
        tables: Tables::of(&config),
        source,
        store,
        application: application_name(&config.projection),
        name: worker_name,
        health: Health::default(),
        config,
    };
    let serving = match health_listen {
        Some(address) => Some(health::serve(address, life.health.clone()).await?),
        None => None,
    };
    let (stopping, stop) = watch::channel(false);
    let told = async {
        shutdown.await;
        tracing::info!("told to stop: finishing the batch in hand");
        let _ = stopping.send(true);
        sleep(DRAIN_DEADLINE).await;
    };
    tokio::select! {
        ended = life.lives(stop) => ended,
        () = told => Err(ProjectorError::DrainTimedOut { seconds: DRAIN_DEADLINE.as_secs() }),
        () = async {
            if let Some(serving) = serving {
                serving.await;
            }
            std::future::pending::<()>().await;
        } => Ok(()),
    }
}

/// What `pg_stat_activity` shows; the server cuts it at 63 bytes.
fn application_name(projection: &str) -> String {
    format!("projectionist-projector {projection}")
}

impl Life {
    /// Works, and starts again after failures, until `stop`.
    async fn lives(&self, mut stop: watch::Receiver<bool>) -> Result<(), ProjectorError> {
        let mut failures = 0_u32;
        loop {
            let began = Instant::now();
            let error = match self.live(&mut stop).await {
                Ok(()) => return Ok(()),
                Err(error) if error.is_final() => return Err(error),
                Err(error) => error,
            };
            self.health.unready(error.to_string());
            failures = if began.elapsed() > LONG_LIFE { 1 } else { failures.saturating_add(1) };
            let pause = BACKOFF.jittered(failures - 1, rand::random());
            tracing::error!(retry_in = ?pause, "{error}");
            tokio::select! {
                () = sleep(pause) => {}
                () = stopped(&mut stop) => return Ok(()),
            }
        }
    }

    async fn live(&self, stop: &mut watch::Receiver<bool>) -> Result<(), ProjectorError> {
        let mut early_stop = stop.clone();
        let (mut worker, membership) = tokio::select! {
            begun = self.begin() => begun?,
            () = stopped(&mut early_stop) => return Ok(()),
        };
        let (views, mut seen) = watch::channel(View::default());
        tokio::select! {
            ended = worker.run(&mut seen, stop) => ended,
            error = membership.keep(&views) => Err(error),
        }
    }

    async fn begin(&self) -> Result<(Worker, Membership), ProjectorError> {
        let store = connect(&self.store, &self.application, CONNECT_DEADLINE)
            .await
            .map_err(|source| ProjectorError::Connection { what: "read store", source })?;
        let store = ProjectorError::unless_pooled("read store", &self.store, store)?;
        self.prepare(&store).await?;
        let handlers = self.mapping.prepare(&store.client).await?;
        let types = self.mapping.event_types();
        let reader = Reader::open(&self.source, &self.application, &self.config, types).await?;
        // Each run has a name of its own, so that what an earlier one left behind counts as a dead worker's.
        let me = format!("{}:{:08x}", self.name, rand::random::<u32>());
        let worker = Worker::new(
            me.clone(),
            self.tables.clone(),
            store,
            reader,
            handlers,
            self.health.clone(),
            (self.config.shards, self.config.batch_size),
        )
        .await?;
        let membership = Membership::join(&self.store, &self.application, &self.tables, &me, &self.name).await?;
        tracing::info!(projection = self.config.projection, worker = me, source = %self.source, store = %self.store, "joined");
        Ok((worker, membership))
    }

    /// Makes the checkpoint table and runs the user's setup, one worker at a time.
    async fn prepare(&self, store: &Session) -> Result<(), ProjectorError> {
        let client = &store.client;
        client.batch_execute(&self.session_sql()).await.map_err(ProjectorError::doing("read store: preparing"))?;
        self.tables.create(client, self.config.shards).await?;
        let path = match &self.config.schema {
            Some(schema) => format!("set search_path = {}", quote_identifier(schema)),
            None => "reset search_path".to_owned(),
        };
        client.batch_execute(&path).await.map_err(ProjectorError::doing("read store: preparing"))?;
        self.set_up(store).await?;
        // The setup may have changed it.
        client.batch_execute(&path).await.map_err(ProjectorError::doing("read store: preparing"))
    }

    async fn set_up(&self, store: &Session) -> Result<(), ProjectorError> {
        let Some(setup) = &self.config.setup else { return Ok(()) };
        let client = &store.client;
        let failed = ProjectorError::doing("read store: waiting for the setup of another worker");
        // A lock of the session and not of a transaction: the setup may hold statements that want to begin their own.
        let key = "hashtextextended('projectionist setup ' || $1::text, 0)";
        client
            .execute(&format!("select pg_advisory_lock({key})"), &[&self.config.projection])
            .await
            .map_err(&failed)?;
        client.batch_execute(setup).await.map_err(|error| ProjectorError::Setup(database_message(&error)))?;
        // After the setup, in case that it changed them.
        client.batch_execute(&self.session_sql()).await.map_err(&failed)?;
        client
            .execute(&format!("select pg_advisory_unlock({key})"), &[&self.config.projection])
            .await
            .map_err(&failed)?;
        Ok(())
    }

    /// A worker that is stopped or cut off in the middle of a batch must not keep its locks for longer than its lease. The last setting, which
    /// servers before version 14 lack, ends a long statement whose worker is gone.
    fn session_sql(&self) -> String {
        format!(
            "set standard_conforming_strings = on; set idle_in_transaction_session_timeout = '{}s'; \
             set tcp_keepalives_idle = 5; set tcp_keepalives_interval = 2; set tcp_keepalives_count = 3; \
             select set_config(name, '2000', false) from pg_catalog.pg_settings where name = 'client_connection_check_interval'",
            LEASE.as_secs()
        )
    }
}

async fn stopped(stop: &mut watch::Receiver<bool>) {
    // The sender lives as long as the worker.
    let _ = stop.wait_for(|stop| *stop).await;
}
