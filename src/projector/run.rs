//! A worker from start to end: connects, sets up, works, and starts again after growing pauses when a database fails.

use std::{fmt, future::Future, net::SocketAddr, sync::OnceLock, time::Duration};

use tokio::{
    sync::watch,
    time::{Instant, sleep},
};

use super::{
    coalesce::Coalesce,
    config::{Input, Output, PostgresOutput, ProjectorConfig, QueueInput, RedisStreams},
    error::ProjectorError,
    health::{self, Health},
    input::{
        EventReader as _, nats::NatsQueue, outbox::OutboxQueue, queue::Queue, rabbitmq::RabbitMqQueue,
        redis::RedisQueue,
    },
    output::{
        Membership, Numbered, ReadModel, View,
        claims::Unnamed,
        elasticsearch::{self as search_output, Documents, SearchInbox, SearchReadModel},
        inbox::AnyInbox,
        postgres::{Mapping, PostgresInbox, PostgresReadModel},
        redis::{self as redis_output, Commands, RedisInbox, RedisReadModel, check_overwrites},
    },
    queue_worker::QueueWorker,
    sharding::Sharding,
    source::{LogSource, QueueSource, Source, SourceConnection},
    uncalled::UncalledHandlers,
    worker::{Batching, Ended, Worker},
};
use crate::{
    api::CoalescedTypes,
    backoff::Backoff,
    clients::{elasticsearch, postgres::ConnectionSettings, redis},
};

/// Pauses between attempts.
const BACKOFF: Backoff = Backoff::new(Duration::from_millis(250), Duration::from_secs(15));
/// An attempt that lasted this long did not fail at once: the pauses start again.
const LONG_LIFE: Duration = Duration::from_secs(30);
/// From the signal to stop until the batch in progress must have ended: less than the 30 s that Kubernetes grants.
const DRAIN_DEADLINE: Duration = Duration::from_secs(20);

/// How often a worker looks whether its Projection still has the places that its handlers name.
const LOOK_AT_CLAIMS_EVERY: Duration = Duration::from_secs(60);
/// After this long a worker gives back the places that its handlers no longer name: by then workers with the handlers of before have gone, as far as a rollout goes on.
pub const GIVE_BACK_AFTER: Duration = Duration::from_secs(600);

/// What a worker needs to know.
#[derive(Clone, Debug)]
pub struct RunOptions {
    /// The work.
    pub config: ProjectorConfig,
    /// How to reach the event source: of the kind that the configuration says.
    pub source: SourceConnection,
    /// How to reach the read store: of the kind that the configuration says.
    pub store: StoreConnection,
    /// Distinguishes this worker from the others of the projection: the pod's name.
    pub worker_name: String,
    /// Where to serve `/healthz` and `/readyz`.
    pub health_listen: Option<SocketAddr>,
    /// After this long, [`GIVE_BACK_AFTER`] but in tests, the worker gives back places that its Projection has claimed and its handlers do not name.
    pub give_back_after: Duration,
}

/// How to reach a read store.
#[derive(Clone, Debug)]
pub enum StoreConnection {
    /// PostgreSQL.
    Postgres(Box<ConnectionSettings>),
    /// Redis.
    Redis(redis::ConnectionSettings),
    /// Elasticsearch or OpenSearch.
    Elasticsearch(elasticsearch::ConnectionSettings),
}

/// A read store and what to do there, understood.
enum Target {
    Postgres { settings: Box<ConnectionSettings>, sql: PostgresOutput, mapping: Mapping },
    Redis { settings: redis::ConnectionSettings, commands: Commands },
    Elasticsearch { settings: elasticsearch::ConnectionSettings, documents: Documents },
}

/// What all runs of a worker share.
struct Life {
    config: ProjectorConfig,
    target: Target,
    source: Source,
    name: String,
    application: String,
    health: Health,
    /// Since when the Projection has had what the handlers name.
    claimed: OnceLock<Instant>,
    give_back_after: Duration,
}

/// Works until `shutdown` resolves; then finishes the batch in progress, gives all shards back, and returns.
///
/// # Errors
/// Where only another configuration can help: a handler that is no statement, another number of shards than the checkpoints were made for, a health
/// address that is in use. And when the batch in progress did not end in time after `shutdown`.
pub async fn run(options: RunOptions, shutdown: impl Future<Output = ()>) -> Result<(), ProjectorError> {
    let RunOptions { config, source, store, worker_name, health_listen, give_back_after } = options;
    config.check()?;
    check_handlers(&config.output, &config.coalesce)?;
    check_input(&config.input, &config.output)?;
    let life = Life {
        target: Target::of(&config.output, store)?,
        source: Source::of(&config.input, source)?,
        application: application_name(&config.projection),
        name: worker_name,
        health: Health::default(),
        config,
        claimed: OnceLock::new(),
        give_back_after,
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
        () = life.keeps_claims() => Ok(()),
        () = async {
            if let Some(serving) = serving {
                serving.await;
            }
            std::future::pending::<()>().await;
        } => Ok(()),
    }
}

/// Checks the handlers as far as that can be done without a server, before a worker is started with them.
///
/// # Errors
/// Names the type of event whose handler is wrong, and why.
pub fn check_handlers(output: &Output, coalesce: &[CoalescedTypes]) -> Result<(), ProjectorError> {
    match output {
        // The server reads SQL.
        Output::Postgres(_) => Ok(()),
        Output::Redis(output) => {
            Commands::parse(output)?;
            check_overwrites(&output.handlers, coalesce).map_err(ProjectorError::Coalesce)
        }
        Output::Elasticsearch(output) => Documents::parse(output).map(drop),
    }
}

/// Checks that the handlers ask for nothing that events from there lack, and name no version where a position is one.
///
/// # Errors
/// Names the type of event whose handler does.
pub fn check_input(input: &Input, output: &Output) -> Result<(), ProjectorError> {
    let has_positions = !matches!(input, Input::Queue(_));
    if let Output::Elasticsearch(output) = output {
        Documents::parse(output)?.check_versions(has_positions)?;
    }
    if has_positions {
        return Ok(());
    }
    // What cannot be read is told when it is run.
    let asks = match output {
        Output::Postgres(output) => {
            let mapping = Mapping::parse(&output.handlers).ok();
            mapping.and_then(|mapping| Some((mapping.asks_for_position()?.to_owned(), ":position")))
        }
        Output::Redis(output) => {
            let commands = Commands::parse(output).ok();
            commands.and_then(|commands| Some((commands.asks_for_position()?.to_owned(), "{position}")))
        }
        Output::Elasticsearch(output) => {
            let documents = Documents::parse(output).ok();
            documents.and_then(|documents| Some((documents.asks_for_position()?.to_owned(), "{position}")))
        }
    };
    asks.map_or(Ok(()), |(event_type, place)| Err(ProjectorError::NoPosition { event_type, place }))
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
                Ok(Ended::Stopped) => return Ok(()),
                Ok(Ended::Grown) => {
                    tracing::info!("the source has more parts: beginning again with them");
                    continue;
                }
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

    /// Claims the places that the handlers name, once in the life of this process, before anything is written of an event. So a lost connection costs no worker what
    /// it has. A read model whose places are not known claims nothing.
    async fn claim_first(&self) -> Result<(), ProjectorError> {
        if self.claimed.get().is_none() {
            self.claim(Unnamed::Kept).await?;
            let _ = self.claimed.set(Instant::now());
        }
        Ok(())
    }

    async fn claim(&self, unnamed: Unnamed) -> Result<(), ProjectorError> {
        let projection = &self.config.projection;
        match &self.target {
            Target::Postgres { .. } => Ok(()),
            Target::Redis { settings, commands } => redis_output::claim(settings, projection, commands, unnamed).await,
            Target::Elasticsearch { settings, documents } => {
                search_output::claim(settings, projection, documents, unnamed).await
            }
        }
    }

    /// Claims again what a worker with other handlers has given back, and gives back, once, what the handlers no longer name. Works on whatever has become of the claims.
    async fn keeps_claims(&self) {
        let mut is_given_back = false;
        loop {
            sleep(if is_given_back { LOOK_AT_CLAIMS_EVERY } else { LOOK_AT_CLAIMS_EVERY.min(self.give_back_after) })
                .await;
            let Some(since) = self.claimed.get() else { continue };
            let gives_back = !is_given_back && since.elapsed() >= self.give_back_after;
            match self.claim(if gives_back { Unnamed::GivenBack } else { Unnamed::Kept }).await {
                Ok(()) => is_given_back |= gives_back,
                Err(error) => {
                    tracing::warn!(
                        "this worker goes on, though its Projection may not have what it writes to: {error}"
                    );
                }
            }
        }
    }

    /// One run, with a name of its own, so that what an earlier one left behind counts as a dead worker's.
    async fn live(&self, stop: &mut watch::Receiver<bool>) -> Result<Ended, ProjectorError> {
        let me = &format!("{}:{:08x}", self.name, rand::random::<u32>());
        let (application, config) = (&self.application, &self.config);
        let source = match &self.source {
            Source::Log(source) => source,
            Source::Queue(QueueSource::Redis { settings, streams: RedisStreams { streams, event } }, input) => {
                let queue = async |types| {
                    let (settings, who) = (settings.clone(), (me.as_str(), input.alone));
                    RedisQueue::open(settings, (streams, event), config.max_event_bytes, types, who).await
                };
                return self.work_on_queue(queue, input, me, stop).await;
            }
            Source::Queue(QueueSource::Nats { settings, consumers }, input) => {
                let queue = async |types| {
                    NatsQueue::open(settings.clone(), consumers, config.max_event_bytes, types, input.alone).await
                };
                return self.work_on_queue(queue, input, me, stop).await;
            }
            Source::Queue(QueueSource::RabbitMq { settings, queues }, input) => {
                let queue = async |types| {
                    RabbitMqQueue::open(settings.clone(), queues, config.max_event_bytes, types, input.alone).await
                };
                return self.work_on_queue(queue, input, me, stop).await;
            }
            Source::Queue(QueueSource::Outbox { settings, outbox }, input) => {
                let queue = async |types| {
                    OutboxQueue::open(settings, application, outbox, config.max_event_bytes, types, input.alone).await
                };
                return self.work_on_queue(queue, input, me, stop).await;
            }
        };
        match &self.target {
            Target::Postgres { settings, sql, mapping } => {
                let open = async |sharding: &Sharding| {
                    PostgresReadModel::open(settings, application, config, (sql, mapping), sharding, me).await
                };
                self.work(source, open, (mapping.event_types(), me), stop).await
            }
            Target::Redis { settings, commands } => {
                let open = async |sharding: &Sharding| {
                    RedisReadModel::open(settings, config, commands.clone(), sharding, me).await
                };
                self.work(source, open, (commands.event_types(), me), stop).await
            }
            Target::Elasticsearch { settings, documents } => {
                let open = async |sharding: &Sharding| {
                    SearchReadModel::open(settings, config, documents.clone(), sharding, me).await
                };
                self.work(source, open, (documents.event_types(), me), stop).await
            }
        }
    }

    /// Works on the queue that `open` opens for these types of event.
    async fn work_on_queue<Q: Queue>(
        &self,
        open: impl AsyncFnOnce(Vec<String>) -> Result<Q, ProjectorError>,
        input: &QueueInput,
        me: &str,
        stop: &mut watch::Receiver<bool>,
    ) -> Result<Ended, ProjectorError> {
        let begin = async {
            let (inbox, types) = self.inbox(input.keep_for.0).await?;
            self.claim_first().await?;
            let uncalled = UncalledHandlers::new(types.clone());
            let queue = open(types).await?;
            tracing::info!(projection = self.config.projection, worker = me, store = %self.target, "joined");
            Ok::<_, ProjectorError>((queue, inbox, uncalled))
        };
        let mut early_stop = stop.clone();
        let (queue, inbox, uncalled) = tokio::select! {
            begun = begin => begun?,
            () = stopped(&mut early_stop) => return Ok(Ended::Stopped),
        };
        QueueWorker::new(queue, inbox, self.health.clone(), uncalled, self.config.batch_size).run(stop).await?;
        Ok(Ended::Stopped)
    }

    /// Opens the read store for messages, which are remembered for so long; and the types of event that have a handler.
    async fn inbox(&self, keep_for: Duration) -> Result<(AnyInbox, Vec<String>), ProjectorError> {
        let Self { application, config, .. } = self;
        Ok(match &self.target {
            Target::Postgres { settings, sql, mapping } => {
                let (projection, handlers) = (&config.projection, (sql, mapping));
                let inbox = PostgresInbox::open(settings, application, projection, handlers, keep_for).await?;
                (AnyInbox::Postgres(Box::new(inbox)), mapping.event_types())
            }
            Target::Redis { settings, commands } => {
                let inbox = RedisInbox::open(settings, config, commands.clone(), keep_for).await?;
                (AnyInbox::Redis(Box::new(inbox)), commands.event_types())
            }
            Target::Elasticsearch { settings, documents } => {
                let inbox = SearchInbox::open(settings, config, documents.clone()).await?;
                (AnyInbox::Elasticsearch(Box::new(inbox)), documents.event_types())
            }
        })
    }

    /// Works with the read model that `open` opens for the source's shards.
    async fn work<M: ReadModel>(
        &self,
        source: &LogSource,
        open: impl AsyncFnOnce(&Sharding) -> Result<(M, Numbered), ProjectorError>,
        (types, me): (Vec<String>, &str),
        stop: &mut watch::Receiver<bool>,
    ) -> Result<Ended, ProjectorError> {
        let Self { application, config, name, .. } = self;
        let uncalled = UncalledHandlers::new(types.clone());
        let begin = async {
            let mut reader = source.open(application, config, types).await?;
            let (mut model, Numbered { shards, parts }) = open(&reader.sharding()).await?;
            if !parts.is_empty() {
                reader.number(&parts);
            }
            model.of_source(&mut reader).await?;
            self.claim_first().await?;
            let membership = model.join(name).await?;
            tracing::info!(projection = config.projection, worker = me, %source, store = %self.target, "joined");
            Ok::<_, ProjectorError>((model, reader, membership, shards))
        };
        let mut early_stop = stop.clone();
        let (model, reader, membership, shards) = tokio::select! {
            begun = begin => begun?,
            () = stopped(&mut early_stop) => return Ok(Ended::Stopped),
        };
        let batching = Batching {
            shards,
            batch_size: config.batch_size,
            coalesce: Coalesce::new(&config.coalesce),
            poison: config.poison,
            uncalled,
        };
        let mut worker = Worker::new(me.to_owned(), reader, model, self.health.clone(), batching);
        let (views, mut seen) = watch::channel(View::default());
        tokio::select! {
            ended = worker.run(&mut seen, stop) => ended,
            error = membership.keep(&views) => Err(error),
        }
    }
}

impl Target {
    fn of(output: &Output, store: StoreConnection) -> Result<Self, ProjectorError> {
        match (output, store) {
            (Output::Postgres(sql), StoreConnection::Postgres(settings)) => {
                Ok(Self::Postgres { settings, sql: sql.clone(), mapping: Mapping::parse(&sql.handlers)? })
            }
            (Output::Redis(output), StoreConnection::Redis(settings)) => {
                Ok(Self::Redis { settings, commands: Commands::parse(output)? })
            }
            (Output::Elasticsearch(output), StoreConnection::Elasticsearch(settings)) => {
                Ok(Self::Elasticsearch { settings, documents: Documents::parse(output)? })
            }
            _ => Err(ProjectorError::OtherStore),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Postgres { settings, .. } => settings.fmt(f),
            Self::Redis { settings, .. } => settings.fmt(f),
            Self::Elasticsearch { settings, .. } => settings.fmt(f),
        }
    }
}

async fn stopped(stop: &mut watch::Receiver<bool>) {
    // The sender lives as long as the worker.
    let _ = stop.wait_for(|stop| *stop).await;
}
