//! The composition root: what the command line asks for is started with its settings; `operator` joins the parts of the operator.

mod dry_run;
mod operator;
mod shared;

use std::{collections::BTreeMap, process::ExitCode, time::Duration};

use anyhow::Context as _;
use kube::CustomResourceExt as _;

use crate::{
    api::Projection,
    cli::{Cli, Command, ProjectorArgs, Scope, TrialArgs, UninstallArgs},
    clients::{self, kafka, postgres::ConnectionSettings, redis},
    names::{secret_key, worker_env},
    platform::{
        shutdown::Shutdown,
        telemetry,
        uninstall::{self, UninstallSettings},
    },
    projector::{self, Input, Output, ProjectorConfig, RunOptions, SourceConnection, StoreConnection},
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
    };
    let store = match config.output {
        Output::Postgres(_) => connection(worker_env::READ_STORE).map(Box::new).map(StoreConnection::Postgres),
        Output::Redis(_) => redis_connection(worker_env::READ_STORE).map(StoreConnection::Redis),
    };
    let options = RunOptions {
        config,
        source: source.context("the event source")?,
        store: store.context("the read store")?,
        worker_name: variable(worker_env::WORKER)?,
        health_listen: Some(health_listen),
    };
    let shutdown = Shutdown::on_signals().context("signals cannot be handled")?;
    Ok(projector::run(options, shutdown.asked()).await?)
}

/// What the environment says about a connection to PostgreSQL: see [`worker_env`].
fn connection(prefix: &str) -> anyhow::Result<ConnectionSettings> {
    let environment = Environment::read(prefix, secret_key::all());
    let settings = ConnectionSettings::from_keys(|key| environment.key(key)).with_context(|| said_by(prefix))?;
    Ok(environment.complete(settings, ConnectionSettings::with_ca, ConnectionSettings::with_client_certificate))
}

/// The same of a connection to Redis.
fn redis_connection(prefix: &str) -> anyhow::Result<redis::ConnectionSettings> {
    use redis::ConnectionSettings as Settings;
    let environment = Environment::read(prefix, secret_key::REDIS);
    let settings = Settings::from_keys(|key| environment.key(key)).map_err(|error| anyhow::anyhow!(error.message));
    let settings = settings.with_context(|| said_by(prefix))?;
    Ok(environment.complete(settings, Settings::with_ca, Settings::with_client_certificate))
}

/// The same of a connection to Kafka.
fn kafka_connection(prefix: &str) -> anyhow::Result<kafka::Settings> {
    use kafka::Settings;
    let environment = Environment::read(prefix, secret_key::KAFKA);
    let settings = Settings::from_keys(|key| environment.key(key)).with_context(|| said_by(prefix))?;
    let with_ca = |settings: Settings, ca: &[u8]| settings.with_ca(ca.to_vec());
    let with_client = |settings: Settings, certificate: &[u8], key: &[u8]| {
        settings.with_client_certificate(certificate.to_vec(), key.to_vec())
    };
    Ok(environment.complete(settings, with_ca, with_client))
}

fn said_by(prefix: &str) -> String {
    format!("read from the environment variables {prefix}…, which the operator sets for workers")
}

/// What a Secret says, as it arrives in a worker's environment.
struct Environment {
    keys: BTreeMap<&'static str, String>,
    ca: Option<String>,
    client: Option<(String, String)>,
}

impl Environment {
    fn read(prefix: &str, keys: impl IntoIterator<Item = &'static str>) -> Self {
        let named = |name: &str| std::env::var(format!("{prefix}{name}")).ok().filter(|value| !value.is_empty());
        let of_key = |key| Some((key, std::env::var(worker_env::of_key(prefix, key)).ok()?));
        Self {
            keys: keys.into_iter().filter_map(of_key).collect(),
            ca: named(worker_env::CA),
            client: named(worker_env::CLIENT_CERTIFICATE).zip(named(worker_env::CLIENT_KEY)),
        }
    }

    fn key(&self, key: &str) -> Option<&str> {
        self.keys.get(key).map(String::as_str)
    }

    /// Adds the certificates to settings that were read from the keys.
    fn complete<S>(
        &self,
        mut settings: S,
        with_ca: fn(S, &[u8]) -> S,
        with_client_certificate: fn(S, &[u8], &[u8]) -> S,
    ) -> S {
        if let Some(ca) = &self.ca {
            settings = with_ca(settings, ca.as_bytes());
        }
        if let Some((certificate, key)) = &self.client {
            settings = with_client_certificate(settings, certificate.as_bytes(), key.as_bytes());
        }
        settings
    }
}
