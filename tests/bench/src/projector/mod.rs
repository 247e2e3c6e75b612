//! What workers of the built-in projector do a second, on servers of their own: each pair of source and read store beside a plain client that makes the same
//! writes as fast as it can, the gain of leaving superseded events out, and a scale-out under load.

mod coalesce;
mod plain;
mod scale_out;
mod sources;
mod stores;

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use projectionist::{
    api::CoalescedTypes,
    projector::{GIVE_BACK_AFTER, Output, Poison, ProjectorConfig, RunOptions, run},
};
use test_cluster::{Elasticsearch, EventStore, Postgres, Redis, elasticsearch::Distribution};
use tokio::time::sleep;

use self::{
    sources::{EVENTS, Kind, Source, Sources},
    stores::Store,
};

/// For all events of one figure.
const PATIENCE: Duration = Duration::from_secs(600);
/// Measures with so many events for each figure, and prints.
pub(crate) async fn measure(events: u32) -> Result<()> {
    let server = Postgres::on_loopback()?;
    let redis = Redis::on_loopback()?;
    let search = Elasticsearch::on_loopback(Distribution::Elasticsearch, &[])?;
    let stores = [Store::Postgres(&server), Store::Redis(&redis), Store::Search(&search)];
    let plain = plain_rates(&stores, events).await?;
    println!(
        "\none worker of the built-in projector, {events} events: events a second, and how much that is of the plain client's (goal: 0.60)"
    );
    let mut sources = Sources::open(&server, &redis, events).await?;
    for kind in Kind::ALL {
        sources.prepare(kind).await?;
        for (store, plain) in stores.iter().zip(&plain) {
            pair(&sources, kind, store, *plain, events).await?;
        }
        sources.finish(kind)?;
    }
    let table = sources.source(Kind::Table, EVENTS).await?;
    coalesce::gain(&table, &server, &redis, events).await?;
    // Workers must have enough to do until the end.
    let more = scale_out::EVENTS.saturating_sub(events);
    EventStore::open(&server, EVENTS, "events").await?.append_events(more).await?;
    scale_out::from_two_to_three(&table, &server, events + more).await
}

/// Events a second of a plain client into each store.
async fn plain_rates(stores: &[Store<'_>], events: u32) -> Result<Vec<f64>> {
    let mut rates = Vec::new();
    println!("\na plain client that makes the same writes, 500 events at once");
    for store in stores {
        let started = Instant::now();
        plain::write(store, events).await?;
        let rate = f64::from(events) / started.elapsed().as_secs_f64();
        println!("  into {store}: {rate:.0} events a second");
        rates.push(rate);
    }
    Ok(rates)
}

async fn pair(sources: &Sources<'_>, kind: Kind, store: &Store<'_>, plain: f64, events: u32) -> Result<()> {
    let name = format!("{}_{}", kind.short_name(), store.short_name());
    store.prepare(&name).await?;
    let source = sources.source(kind, &name).await?;
    let worker = Task::start(options(&name, &source, store, store.counting(&name), Vec::new())?);
    let rate = rate(|| store.counted(&name), events, store.look_every()).await?;
    drop(worker);
    println!("  from {} into {store}: {rate:.0}, {:.2} ×", kind.name(), rate / plain);
    Ok(())
}

fn options(
    name: &str,
    source: &Source,
    store: &Store<'_>,
    output: Output,
    coalesce: Vec<CoalescedTypes>,
) -> Result<RunOptions> {
    Ok(RunOptions {
        config: ProjectorConfig {
            projection: format!("bench/{name}"),
            input: source.input.clone(),
            batch_size: 500,
            max_event_bytes: 1 << 20,
            coalesce,
            poison: Poison::default(),
            output,
        },
        source: source.connection.clone(),
        store: store.connection(name)?,
        worker_name: name.to_owned(),
        health_listen: None,
        give_back_after: GIVE_BACK_AFTER,
    })
}

/// A worker, which ends when this is dropped.
struct Task(tokio::task::JoinHandle<()>);

impl Task {
    fn start(options: RunOptions) -> Self {
        Self(tokio::spawn(async {
            if let Err(error) = run(options, std::future::pending()).await {
                println!("a worker has ended: {error}");
            }
        }))
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Events a second, from the first that is seen to be done to the last. `done` says how many are.
async fn rate<Done: Future<Output = Result<i64>> + Send>(
    done: impl Fn() -> Done + Send,
    events: u32,
    look_every: Duration,
) -> Result<f64> {
    let deadline = Instant::now() + PATIENCE;
    let mut first: Option<(Instant, i64)> = None;
    loop {
        let (now, count) = (Instant::now(), done().await.unwrap_or(0));
        if now > deadline {
            bail!("{count} of {events} events are done after {PATIENCE:?}");
        }
        match first {
            None if count >= i64::from(events) => {
                bail!("all events were done at the first look: there are too few for a rate, see --events")
            }
            None if count > 0 => first = Some((now, count)),
            Some((started, before)) if count >= i64::from(events) => {
                let (events, took) = (u32::try_from(count - before)?, started.elapsed());
                return Ok(f64::from(events) / took.as_secs_f64());
            }
            _ => {}
        }
        sleep(look_every).await;
    }
}
