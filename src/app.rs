//! The composition root: what the command line asks for is started with its settings; `operator` joins the parts of the operator.

mod dry_run;
mod environment;
mod operator;
mod shared;

use std::{process::ExitCode, time::Duration};

use anyhow::Context as _;
use kube::CustomResourceExt as _;

use self::environment::{
    connection, kafka_connection, kurrentdb_connection, nats_connection, rabbitmq_connection, redis_connection,
    store_connection,
};
use crate::{
    api::Projection,
    cli::{Cli, Command, ProjectorArgs, Scope, TrialArgs, UninstallArgs},
    clients,
    names::worker_env,
    platform::{
        shutdown::Shutdown,
        telemetry,
        uninstall::{self, UninstallSettings},
    },
    projector::{self, Input, ProjectorConfig, QueueInput, QueueKind, RunOptions, SourceConnection},
    simulation,
};

/// The `nice` value, from 0 to 19, of measuring and reconciling, so that answering requests comes first.
const BEHIND_ANSWERS: i32 = 5;

/// Runs what the command line says, and returns the status to exit with.
///
/// # Errors
/// When it cannot; the message says what to do.
pub fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    match cli.command {
        Command::Crd => simulation::print(&crd_yaml()?),
        Command::Simulate(args) => simulation::run(&args),
        Command::Version => simulation::print(concat!(env!("CARGO_PKG_NAME"), " ", env!("CARGO_PKG_VERSION"), "\n")),
        Command::Operator(args) => {
            telemetry::start_logging(&args.log, &clients::LOG_AT_MOST)?;
            // Threads of their own: what keeps the others busy for some milliseconds delays no answer.
            let serving = runtime(|| {})?;
            runtime(give_way)?.block_on(operator::run(*args, serving.handle().clone()))
        }
        Command::Projector(ProjectorArgs { trial: TrialArgs { filename: Some(projection), events, .. }, .. }) => {
            return Ok(runtime(|| {})?.block_on(dry_run::run(&projection, events.as_deref())));
        }
        Command::Projector(args) => {
            telemetry::start_logging(&args.log, &clients::LOG_AT_MOST)?;
            runtime(|| {})?.block_on(projector(args))
        }
        Command::Uninstall(args) => {
            telemetry::start_logging(&args.log, &clients::LOG_AT_MOST)?;
            runtime(|| {})?.block_on(remove(args))
        }
    }
    .map(|()| ExitCode::SUCCESS)
}

/// `begin` is what each of its threads does first.
fn runtime(begin: fn()) -> anyhow::Result<tokio::runtime::Runtime> {
    let mut threads = tokio::runtime::Builder::new_multi_thread();
    threads.enable_all().on_thread_start(begin).build().context("the async runtime could not start")
}

/// Gives this thread a lower priority than those that answer: an answer takes microseconds, and need not wait for a round of samples that has just
/// begun.
fn give_way() {
    if let Err(error) = rustix::process::nice(BEHIND_ANSWERS) {
        tracing::debug!("a thread keeps its priority: {error}");
    }
}

/// The CustomResourceDefinition as YAML.
///
/// # Errors
/// When it cannot be written as YAML.
pub fn crd_yaml() -> anyhow::Result<String> {
    serde_saphyr::to_string(&Projection::crd()).context("writing the CustomResourceDefinition as YAML")
}

async fn remove(args: UninstallArgs) -> anyhow::Result<()> {
    let UninstallArgs { namespace, deployment, service, api_services, watch_namespace, timeout_seconds, log: _ } = args;
    let watch_namespaces = match Scope::from_names(&watch_namespace) {
        Scope::Cluster => Vec::new(),
        Scope::Namespaces(names) => names,
    };
    let settings = UninstallSettings {
        namespace,
        deployment,
        service,
        api_services,
        watch_namespaces,
        timeout: Duration::from_secs(timeout_seconds),
    };
    let client = operator::client().await?;
    Ok(uninstall::run(client, settings).await?)
}

async fn projector(args: ProjectorArgs) -> anyhow::Result<()> {
    let ProjectorArgs { config: path, health_listen, trial: _, log: _ } = args;
    let text = tokio::fs::read_to_string(&path).await;
    let text = text.with_context(|| format!("the projector's configuration {} could not be read", path.display()))?;
    let config = ProjectorConfig::from_json(&text).with_context(|| format!("in {}", path.display()))?;
    let variable = |name: &str| {
        let value = std::env::var(name).ok().filter(|value| !value.is_empty());
        value.with_context(|| format!("the environment variable {name} is not set: the operator sets it for workers"))
    };
    let source = match config.input {
        Input::Postgres(_) => connection(worker_env::EVENT_SOURCE).map(Box::new).map(SourceConnection::Postgres),
        Input::Kafka(_) => kafka_connection(worker_env::EVENT_SOURCE).map(SourceConnection::Kafka),
        Input::KurrentDb(_) => kurrentdb_connection(worker_env::EVENT_SOURCE).map(SourceConnection::KurrentDb),
        Input::Queue(QueueInput { queue: QueueKind::Redis(_), .. }) => {
            redis_connection(worker_env::EVENT_SOURCE).map(SourceConnection::Redis)
        }
        Input::Queue(QueueInput { queue: QueueKind::Nats(_), .. }) => {
            nats_connection(worker_env::EVENT_SOURCE).map(SourceConnection::Nats)
        }
        Input::Queue(QueueInput { queue: QueueKind::RabbitMq(_), .. }) => {
            rabbitmq_connection(worker_env::EVENT_SOURCE).map(SourceConnection::RabbitMq)
        }
        Input::Queue(QueueInput { queue: QueueKind::Outbox(_), .. }) => {
            connection(worker_env::EVENT_SOURCE).map(Box::new).map(SourceConnection::Postgres)
        }
    };
    let read_store = store_connection(&config.output);
    let options = RunOptions {
        config,
        source: source.context("the event source")?,
        store: read_store.context("the read store")?,
        worker_name: variable(worker_env::WORKER)?,
        health_listen: Some(health_listen),
        give_back_after: projector::GIVE_BACK_AFTER,
    };
    let shutdown = Shutdown::on_signals().context("signals cannot be handled")?;
    Ok(projector::run(options, shutdown.asked()).await?)
}
