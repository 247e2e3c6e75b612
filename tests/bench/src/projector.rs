//! What one worker of the built-in projector does a second, with an upsert for each event.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::Result;
use projectionist::{
    api::EventTable,
    clients::postgres::ConnectionSettings,
    projector::{
        Input, Output, PostgresInput, PostgresOutput, ProjectorConfig, RunOptions, SourceConnection, StoreConnection,
        run,
    },
};
use test_cluster::{Cluster, EventStore, eventually_is};

const EVENTS: u32 = 100_000;
const UPSERT: &str = "insert into totals values (:stream, (:data->>'n')::bigint, 1)
     on conflict (stream) do update set sum = totals.sum + excluded.sum, events = totals.events + 1";

pub(crate) async fn events_per_second(cluster: &Cluster) -> Result<()> {
    let server = cluster.postgres()?;
    let url = server.create_database("throughput").await?;
    let events = EventStore::create_events_table(&server, "throughput", "events").await?;
    events.append_events(EVENTS).await?;
    let options = RunOptions {
        config: ProjectorConfig {
            projection: "bench/throughput".to_owned(),
            input: Input::Postgres(PostgresInput { event_table: EventTable::default(), only: None, shards: 24 }),
            batch_size: 500,
            max_event_bytes: 1 << 20,
            output: Output::Postgres(PostgresOutput {
                schema: None,
                setup: Some("create table totals (stream text primary key, sum numeric, events bigint)".to_owned()),
                handlers: BTreeMap::from([("Counted".to_owned(), UPSERT.to_owned())]),
            }),
        },
        source: SourceConnection::Postgres(Box::new(ConnectionSettings::parse(&url)?)),
        store: StoreConnection::Postgres(Box::new(ConnectionSettings::parse(&url)?)),
        worker_name: "bench".to_owned(),
        health_listen: None,
    };
    let worker = tokio::spawn(run(options, std::future::pending()));
    let handled = || async {
        let row = events.client().query_one("select coalesce(sum(events), 0)::bigint from totals", &[]).await?;
        row.try_get::<_, i64>(0)
    };
    let patience = Duration::from_secs(300);
    let before = eventually_is(patience, "the worker has begun", |handled| *handled > 0, handled).await?;
    let started = Instant::now();
    let all = i64::from(EVENTS);
    eventually_is(patience, "all events are handled", |handled| *handled == all, handled).await?;
    let rate = f64::from(u32::try_from(all - before)?) / started.elapsed().as_secs_f64();
    worker.abort();
    println!("\none worker of the built-in projector, an upsert an event\n  {rate:.0} events a second");
    Ok(())
}
