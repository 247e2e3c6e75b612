//! What one worker of the built-in projector does a second, with an upsert for each event.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::Result;
use projectionist::{
    api::EventTable,
    clients::{kafka, postgres::ConnectionSettings},
    projector::{
        Input, KafkaInput, Output, PostgresInput, PostgresOutput, ProjectorConfig, RunOptions, SourceConnection,
        StoreConnection, run,
    },
};
use test_cluster::{Cluster, EventStore, Postgres, eventually_is, kafka::Brokers};

const EVENTS: u32 = 100_000;
const UPSERT: &str = "insert into totals values (:stream, (:data->>'n')::bigint, 1)
     on conflict (stream) do update set sum = totals.sum + excluded.sum, events = totals.events + 1";

pub(crate) async fn events_per_second(cluster: &Cluster) -> Result<()> {
    let server = cluster.postgres()?;
    println!("\none worker of the built-in projector, an upsert an event");
    println!("  from an event table: {:.0} events a second", from_a_table(&server).await?);
    println!("  from Kafka, 12 partitions: {:.0} events a second", from_kafka(&server).await?);
    Ok(())
}

/// From a table in the same database.
async fn from_a_table(server: &Postgres) -> Result<f64> {
    let url = server.create_database("throughput").await?;
    let events = EventStore::create_events_table(server, "throughput", "events").await?;
    events.append_events(EVENTS).await?;
    let input = Input::Postgres(PostgresInput { event_table: EventTable::default(), only: None, shards: 24 });
    let source = SourceConnection::Postgres(Box::new(ConnectionSettings::parse(&url)?));
    rate(server, "throughput", input, source).await
}

/// From a topic of a broker on the same machine.
async fn from_kafka(server: &Postgres) -> Result<f64> {
    server.create_database("throughput_kafka").await?;
    let broker = Brokers::on_loopback(1)?;
    broker.ask(&["create", "events", "12", ""])?;
    broker.ask(&["count", "events", &EVENTS.to_string(), "lz4"])?;
    let input = Input::Kafka(KafkaInput { topics: vec!["events".to_owned()], ..KafkaInput::default() });
    let addresses = broker.addresses();
    let settings = kafka::Settings::from_keys(|key| (key == "bootstrapServers").then_some(addresses.as_str()))?;
    rate(server, "throughput_kafka", input, SourceConnection::Kafka(settings)).await
}

/// Events a second from the first that is handled to the last.
async fn rate(server: &Postgres, database: &str, input: Input, source: SourceConnection) -> Result<f64> {
    let options = RunOptions {
        config: ProjectorConfig {
            projection: "bench/throughput".to_owned(),
            input,
            batch_size: 500,
            max_event_bytes: 1 << 20,
            coalesce: Vec::new(),
            output: Output::Postgres(PostgresOutput {
                schema: None,
                setup: Some(
                    "create table if not exists totals (stream text primary key, sum numeric, events bigint)"
                        .to_owned(),
                ),
                handlers: BTreeMap::from([("Counted".to_owned(), UPSERT.to_owned())]),
            }),
        },
        source,
        store: StoreConnection::Postgres(Box::new(ConnectionSettings::parse(&server.url(database))?)),
        worker_name: "bench".to_owned(),
        health_listen: None,
    };
    let client = server.connect(database).await?;
    let worker = tokio::spawn(run(options, std::future::pending()));
    let handled = || async {
        let row = client.query_one("select coalesce(sum(events), 0)::bigint from totals", &[]).await?;
        row.try_get::<_, i64>(0)
    };
    let patience = Duration::from_secs(300);
    let before = eventually_is(patience, "the worker has begun", |handled| *handled > 0, handled).await?;
    let started = Instant::now();
    let all = i64::from(EVENTS);
    eventually_is(patience, "all events are handled", |handled| *handled == all, handled).await?;
    let rate = f64::from(u32::try_from(all - before)?) / started.elapsed().as_secs_f64();
    worker.abort();
    Ok(rate)
}
