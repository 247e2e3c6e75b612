//! What workers of the built-in projector do a second, on servers of their own: each pair of source and read store beside a plain client that makes the same
//! writes as fast as it can, the gain of leaving superseded events out, and a scale-out under load.

mod coalesce;
mod plain;
mod scale_out;
mod stores;

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use projectionist::{
    api::{CoalescedTypes, EventRows, EventTable},
    clients::{kafka, postgres::ConnectionSettings},
    projector::{
        GIVE_BACK_AFTER, Input, KafkaInput, Output, Poison, PostgresInput, ProjectorConfig, RunOptions,
        SourceConnection, run,
    },
};
use test_cluster::{Elasticsearch, EventStore, Postgres, Redis, elasticsearch::Distribution, kafka::Brokers};
use tokio::time::sleep;

use self::stores::Store;

/// For all events of one figure.
const PATIENCE: Duration = Duration::from_secs(600);
/// Shards of what is read from tables, and partitions of the topic.
const SHARDS: u32 = 24;
/// The database with the events.
const EVENTS: &str = "events";

/// An event source.
struct Source {
    name: &'static str,
    input: Input,
    connection: SourceConnection,
}

/// Measures with so many events for each figure, and prints.
pub(crate) async fn measure(events: u32) -> Result<()> {
    let server = Postgres::on_loopback()?;
    let url = server.create_database(EVENTS).await?;
    let table = EventStore::create_events_table(&server, EVENTS, "events").await?;
    table.append_events(events).await?;
    let redis = Redis::on_loopback()?;
    let search = Elasticsearch::on_loopback(Distribution::Elasticsearch, &[])?;
    let stores = [Store::Postgres(&server), Store::Redis(&redis), Store::Search(&search)];
    let plain = plain_rates(&stores, events).await?;
    println!(
        "\none worker of the built-in projector, {events} events: events a second, and how much that is of the plain client's (goal: 0.60)"
    );
    pairs(&from_table(&url)?, &stores, &plain, events).await?;
    {
        let broker = Brokers::on_loopback(1)?;
        broker.ask(&["create", "events", "12", ""])?;
        broker.ask(&["count", "events", &events.to_string(), "lz4"])?;
        pairs(&from_kafka(&broker)?, &stores, &plain, events).await?;
    }
    coalesce::gain(&from_table(&url)?, &server, &redis, events).await?;
    // Workers must have enough to do until the end.
    let more = scale_out::EVENTS.saturating_sub(events);
    table.append_events(more).await?;
    scale_out::from_two_to_three(&from_table(&url)?, &server, events + more).await
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

async fn pairs(source: &Source, stores: &[Store<'_>], plain: &[f64], events: u32) -> Result<()> {
    for (store, plain) in stores.iter().zip(plain) {
        let name = format!("{}_{}", source.name, store.short_name());
        store.prepare(&name).await?;
        let worker = Task::start(options(&name, source, store, store.counting(&name), Vec::new())?);
        let rate = rate(|| store.counted(&name), events, store.look_every()).await?;
        drop(worker);
        println!("  from {} into {store}: {rate:.0}, {:.2} ×", source.name, rate / plain);
    }
    Ok(())
}

fn from_table(url: &str) -> Result<Source> {
    Ok(Source {
        name: "table",
        input: Input::Postgres(PostgresInput {
            event_table: EventTable::default(),
            events: EventRows::All,
            shards: SHARDS,
        }),
        connection: SourceConnection::Postgres(Box::new(ConnectionSettings::parse(url)?)),
    })
}

fn from_kafka(broker: &Brokers) -> Result<Source> {
    let addresses = broker.addresses();
    let settings = kafka::Settings::from_keys(|key| (key == "bootstrapServers").then_some(addresses.as_str()))?;
    Ok(Source {
        name: "kafka",
        input: Input::Kafka(KafkaInput { topics: vec!["events".to_owned()], ..KafkaInput::default() }),
        connection: SourceConnection::Kafka(settings),
    })
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
