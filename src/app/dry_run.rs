//! `projectionist projector --check` and `--dry-run`: reads the files that the command line names, and says what comes of the handlers in them.

use std::{fmt::Display, path::Path, process::ExitCode};

use anyhow::{Context as _, anyhow};

use super::environment::store_connection;
use crate::{
    api::Projection,
    names::{secret_key, worker_env},
    platform::shutdown::Shutdown,
    projector::{self, Output, ProjectorConfig, ProjectorError, StoreConnection, read_events},
    resolve::{Pods, Workload, resolve, validate},
    simulate::read_admitted,
    simulation::print,
};

/// What is tried is wrong.
const WRONG: u8 = 1;
/// It could not be tried, as with a wrong command line.
const NOT_TRIED: u8 = 2;

/// Why handlers are not known to be right.
enum Failed {
    Wrong(anyhow::Error),
    NotTried(anyhow::Error),
}

impl Failed {
    fn not_tried(why: impl Display) -> Self {
        Self::NotTried(anyhow!("{why}"))
    }
}

impl From<ProjectorError> for Failed {
    fn from(error: ProjectorError) -> Self {
        match error {
            ProjectorError::Connection { .. }
            | ProjectorError::Statement { .. }
            | ProjectorError::Store { .. }
            | ProjectorError::StateGone { .. }
            | ProjectorError::OtherStore => Self::NotTried(error.into()),
            _ => Self::Wrong(error.into()),
        }
    }
}

/// Checks the Projection in a file, or with `events` tries its handlers, and returns the status to exit with: 0 where all is well, 1 where something of it is
/// wrong, 2 where it could not be tried.
pub(super) async fn run(projection: &Path, events: Option<&Path>) -> ExitCode {
    let ended = match events {
        None => check(projection).await.map(|()| true),
        Some(events) => dry_run(projection, events).await,
    };
    let (code, error) = match ended {
        Ok(true) => return ExitCode::SUCCESS,
        Ok(false) => return ExitCode::from(WRONG),
        Err(Failed::Wrong(error)) => (WRONG, error),
        Err(Failed::NotTried(error)) => (NOT_TRIED, error),
    };
    eprintln!("projectionist: {error:#}");
    ExitCode::from(code)
}

async fn check(path: &Path) -> Result<(), Failed> {
    let config = configuration(path)?;
    let store = match &config.output {
        Output::Postgres(_) => store_of_environment(&config.output)?,
        Output::Redis(_) | Output::Elasticsearch(_) => None,
    };
    let prepared = store.is_some();
    projector::check(&config, store).await.map_err(|error| in_file(error.into(), path))?;
    let how = match (&config.output, prepared) {
        (Output::Postgres(_), true) => {
            "The setup ran and the handlers were prepared in the read store; nothing was kept."
        }
        (Output::Postgres(_), false) => {
            "The SQL was read and not prepared: set READ_STORE_URL to a PostgreSQL database that may be used for it."
        }
        (Output::Redis(_), _) => "Whether the user in the Secret may run the commands was not asked.",
        (Output::Elasticsearch(_), _) => "Whether the server takes the documents was not asked.",
    };
    let types = config.output.event_types().join(", ");
    let text = format!("{} is valid, with handlers for {types}. {how}\n", config.projection);
    print(&text).map_err(Failed::NotTried)
}

async fn dry_run(path: &Path, events: &Path) -> Result<bool, Failed> {
    let config = configuration(path)?;
    let events =
        read_events(&text_of(events)?).with_context(|| events.display().to_string()).map_err(Failed::NotTried)?;
    let store = store_of_environment(&config.output)?;
    let kept = match (&config.output, &store) {
        (Output::Postgres(_), None) => {
            return Err(Failed::not_tried(
                "READ_STORE_URL is not set: handlers in SQL are tried in a PostgreSQL database, in a transaction that is rolled back",
            ));
        }
        (Output::Postgres(_), Some(_)) => "everything was rolled back",
        (Output::Redis(_), Some(_)) => "the keys that stood for the real ones were removed",
        (Output::Elasticsearch(_), Some(_)) => "the indices that stood for the real ones were removed",
        (Output::Redis(_), None) => "READ_STORE_URL is not set, so that no command was sent",
        (Output::Elasticsearch(_), None) => "READ_STORE_URL is not set, so that no operation was sent",
    };
    let shutdown = Shutdown::on_signals().map_err(Failed::not_tried)?;
    tokio::spawn(ends_at_the_second(shutdown.asked()));
    // What is printed cannot be taken back, and a reader that is gone does not matter.
    let mut say = |line: &str| drop(print(&format!("{line}\n")));
    let tried = projector::dry_run(&config, store, &events, &|| shutdown.is_asked(), &mut say).await;
    let tried = tried.map_err(|error| in_file(error.into(), path))?;
    say(&format!("{} events: {tried}; {kept}", events.len()));
    if tried.untried > 0 {
        return Err(Failed::not_tried("told to stop before all events were tried"));
    }
    Ok(tried.all_went_well())
}

/// Says that the first signal ends it in order, and ends the process at the next Ctrl-C.
async fn ends_at_the_second(first: impl Future<Output = ()>) {
    first.await;
    eprintln!("projectionist: stopping after the event in hand; Ctrl-C again leaves what was made to try the handlers");
    if tokio::signal::ctrl_c().await.is_ok() {
        std::process::exit(NOT_TRIED.into());
    }
}

/// What workers of the Projection in this file would be told.
fn configuration(path: &Path) -> Result<ProjectorConfig, Failed> {
    let text = text_of(path)?;
    let wrong = |error: anyhow::Error| Failed::Wrong(error.context(path.display().to_string()));
    let mut projection: Projection = read_admitted(&text).map_err(|error| wrong(error.into()))?;
    // What the API server fills in.
    let metadata = &mut projection.metadata;
    metadata.namespace.get_or_insert_with(|| "default".to_owned());
    metadata.uid.get_or_insert_default();
    let validated = validate(&projection).map_err(|error| wrong(error.into()))?;
    resolve(&projection).map_err(|error| wrong(anyhow!(error.message)))?;
    let Workload::Own { pods: Pods::Builtin(builtin), .. } = validated.workload else {
        return Err(wrong(anyhow!(
            "spec.projector.builtin is missing: handlers of other workers cannot be tried here"
        )));
    };
    serde_json::from_value(builtin.configuration).map_err(|error| wrong(error.into()))
}

/// The read store that the environment names as it does for workers, if it names one.
fn store_of_environment(output: &Output) -> Result<Option<StoreConnection>, Failed> {
    let named = |key: &str| std::env::var_os(worker_env::of_key(worker_env::READ_STORE, key));
    if !secret_key::all().any(|key| named(key).is_some_and(|value| !value.is_empty())) {
        return Ok(None);
    }
    store_connection(output).map(Some).map_err(Failed::NotTried)
}

fn text_of(path: &Path) -> Result<String, Failed> {
    let text = std::fs::read_to_string(path);
    text.with_context(|| format!("{} could not be read", path.display())).map_err(Failed::NotTried)
}

fn in_file(failed: Failed, path: &Path) -> Failed {
    match failed {
        Failed::Wrong(error) => Failed::Wrong(error.context(path.display().to_string())),
        Failed::NotTried(error) => Failed::NotTried(error),
    }
}
