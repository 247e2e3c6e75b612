//! Tries handlers before they are applied: checks them, and runs them with events of a file without an effect that lasts.

mod events;

use std::{collections::BTreeMap, fmt};

pub use events::{BadEvent, SampleEvent, read_events};

use super::{
    config::{Input, Output, ProjectorConfig},
    error::ProjectorError,
    event::Event,
    output::{
        DryRun, DryRunError,
        elasticsearch::{Documents, SearchDryRun},
        postgres::{Mapping, PostgresDryRun},
        redis::{Commands, RedisDryRun},
    },
    run::{StoreConnection, check_handlers},
};

/// What came of the events of a file.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Tried {
    /// Their handlers ran.
    pub handled: usize,
    /// Of a type without a handler.
    pub without_handler: usize,
    /// Their handlers failed, or they cannot be handled.
    pub failed: usize,
    /// Not tried, since one before them in their stream failed.
    pub waiting: usize,
    /// Not tried, since it was asked to stop.
    pub untried: usize,
    /// What the store says of all together, when they would be committed, was a refusal.
    pub refused_at_end: bool,
}

impl Tried {
    /// Workers would have gone on beyond all of them.
    pub fn all_went_well(&self) -> bool {
        self.failed == 0 && self.waiting == 0 && self.untried == 0 && !self.refused_at_end
    }
}

impl fmt::Display for Tried {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { handled, without_handler, failed, waiting, untried, refused_at_end } = self;
        write!(
            f,
            "{handled} handled, {without_handler} without a handler, {failed} failed, {waiting} wait behind those"
        )?;
        if *untried > 0 {
            write!(f, ", {untried} not tried")?;
        }
        if *refused_at_end { f.write_str(", refused at the commit") } else { Ok(()) }
    }
}

/// Checks the handlers, and where `store` is given has them prepared there.
///
/// # Errors
/// Names what is wrong, or why the store could not be asked.
pub async fn check(config: &ProjectorConfig, store: Option<StoreConnection>) -> Result<(), ProjectorError> {
    config.check()?;
    check_handlers(&config.output, &config.coalesce)?;
    match (&config.output, store) {
        (Output::Postgres(sql), None) => Mapping::parse(&sql.handlers).map(drop),
        (Output::Postgres(sql), Some(StoreConnection::Postgres(settings))) => {
            PostgresDryRun::open(&settings, sql, &Mapping::parse(&sql.handlers)?).await.map(drop)
        }
        (Output::Redis(output), None) => Commands::parse(output).map(drop),
        (Output::Elasticsearch(output), None) => Documents::parse(output).map(drop),
        (_, Some(_)) => Err(ProjectorError::OtherStore),
    }
}

/// Runs the handlers with these events, one by one, and says of each what was done, a line each. Nothing of it lasts. Without `store`, handlers for Redis and
/// Elasticsearch are only filled and shown. `stop` is asked before each event whether to leave the rest out.
///
/// # Errors
/// Why they could not be tried.
pub async fn dry_run(
    config: &ProjectorConfig,
    store: Option<StoreConnection>,
    events: &[SampleEvent],
    stop: &(dyn Fn() -> bool + Sync),
    say: &mut (dyn FnMut(&str) + Send),
) -> Result<Tried, ProjectorError> {
    config.check()?;
    check_handlers(&config.output, &config.coalesce)?;
    match (&config.output, store) {
        (Output::Postgres(sql), Some(StoreConnection::Postgres(settings))) => {
            let mapping = Mapping::parse(&sql.handlers)?;
            let store = PostgresDryRun::open(&settings, sql, &mapping).await?;
            all(store, config, events, stop, say).await
        }
        (Output::Redis(output), None) => {
            all(RedisDryRun::new(config, Commands::parse(output)?, None), config, events, stop, say).await
        }
        (Output::Redis(output), Some(StoreConnection::Redis(settings))) => {
            all(RedisDryRun::new(config, Commands::parse(output)?, Some(settings)), config, events, stop, say).await
        }
        (Output::Elasticsearch(output), None) => {
            all(SearchDryRun::new(config, Documents::parse(output)?, None), config, events, stop, say).await
        }
        (Output::Elasticsearch(output), Some(StoreConnection::Elasticsearch(settings))) => {
            all(SearchDryRun::new(config, Documents::parse(output)?, Some(&settings)), config, events, stop, say).await
        }
        (Output::Postgres(_) | Output::Redis(_) | Output::Elasticsearch(_), _) => Err(ProjectorError::OtherStore),
    }
}

async fn all<D: DryRun>(
    mut store: D,
    config: &ProjectorConfig,
    events: &[SampleEvent],
    stop: &(dyn Fn() -> bool + Sync),
    say: &mut (dyn FnMut(&str) + Send),
) -> Result<Tried, ProjectorError> {
    let tried = each(&mut store, config, events, stop, say).await;
    match (tried, store.remove().await) {
        (tried, Ok(())) => tried,
        (Ok(tried), Err(left)) => {
            say(&format!("{} events: {tried}; not everything was removed", events.len()));
            Err(left)
        }
        (Err(error), Err(left)) => {
            say(&left.to_string());
            Err(error)
        }
    }
}

async fn each<D: DryRun>(
    store: &mut D,
    config: &ProjectorConfig,
    events: &[SampleEvent],
    stop: &(dyn Fn() -> bool + Sync),
    say: &mut (dyn FnMut(&str) + Send),
) -> Result<Tried, ProjectorError> {
    store.begin().await?;
    let mut tried = Tried::default();
    // Messages of a queue do not wait behind others.
    let is_in_order = !matches!(config.input, Input::Queue(_));
    // The line of the first that failed in each stream.
    let mut held: BTreeMap<&str, usize> = BTreeMap::new();
    for (done, SampleEvent { line, event }) in events.iter().enumerate() {
        if stop() {
            tried.untried = events.len() - done;
            break;
        }
        let stream = event.stream.as_deref();
        let named = named(*line, event);
        if let Some(behind) = stream.and_then(|stream| held.get(stream)) {
            tried.waiting += 1;
            say(&format!("{named}: not tried, it waits behind line {behind} in its stream"));
            continue;
        }
        let outcome = match too_large(event, config.max_event_bytes) {
            Some(why) => Err(DryRunError::Event(why)),
            None => store.handle(event).await,
        };
        match outcome {
            Ok(None) => {
                tried.without_handler += 1;
                say(&format!("{named}: no handler"));
            }
            Ok(Some(done)) => {
                tried.handled += 1;
                say(&format!("{named}: {}", done.summary));
                done.lines.iter().for_each(|line| say(&format!("    {line}")));
            }
            Err(DryRunError::Event(why)) => {
                tried.failed += 1;
                held.extend(stream.filter(|_| is_in_order).map(|stream| (stream, *line)));
                say(&format!("{named}: failed: {why}"));
            }
            Err(DryRunError::Store(error)) => return Err(error),
        }
    }
    match store.finish().await {
        Ok(lines) => lines.iter().for_each(|line| say(line)),
        Err(DryRunError::Event(why)) => {
            tried.refused_at_end = true;
            say(&format!("at the commit: failed: {why}"));
        }
        Err(DryRunError::Store(error)) => return Err(error),
    }
    Ok(tried)
}

fn named(line: usize, event: &Event) -> String {
    let stream = event.stream.as_ref().map(|stream| format!(" of {stream}")).unwrap_or_default();
    format!("line {line}: {}{stream} at position {}", event.event_type, event.position)
}

/// As workers judge it.
fn too_large(event: &Event, most: u64) -> Option<String> {
    let bytes = event.data.as_ref().map_or(0, |data| data.0.len()) + event.stream.as_ref().map_or(0, String::len);
    (u64::try_from(bytes).unwrap_or(u64::MAX) > most)
        .then(|| format!("it has {bytes} bytes, and spec.projector.builtin.maxEventBytes allows {most}"))
}
