//! What it gains to leave superseded events out: the same events twice in one run, handled all, and the last of each stream in a batch only.

use std::time::Duration;

use anyhow::Result;
use projectionist::{
    api::{CoalescedTypes, ProjectionSpec},
    projector::Output,
};
use test_cluster::{Postgres, Redis, redis::Answer};

use super::{
    Source, Task, options, rate,
    stores::{Store, in_commands, in_sql},
};

const LAST: &str = "create table if not exists last (stream text primary key, n bigint)";
const REPLACE: &str =
    "insert into last values (:stream, (:data->>'n')::bigint) on conflict (stream) do update set n = excluded.n";
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Prints both rates and their ratio for PostgreSQL and Redis. The events are of 100 streams in turn.
pub(super) async fn gain(source: &Source, server: &Postgres, redis: &Redis, events: u32) -> Result<()> {
    println!(
        "\nevents of 100 streams that supersede one another, batches of 500: all handled, and only the last of each stream (coalesce)"
    );
    let in_sql = |_: &str| in_sql(LAST, REPLACE);
    compare(source, &Store::Postgres(server), in_sql, events).await?;
    let in_commands = |name: &str| in_commands(&[&["HSET", &format!("last:{name}"), "{stream}", "{data.n}"]]);
    compare(source, &Store::Redis(redis), in_commands, events).await
}

async fn compare(source: &Source, store: &Store<'_>, output: impl Fn(&str) -> Output, events: u32) -> Result<()> {
    let mut rates = Vec::new();
    for (way, coalesce) in [("all", Vec::new()), ("last", vec![CoalescedTypes { types: vec!["Counted".to_owned()] }])] {
        let name = format!("{way}_{}", store.short_name());
        store.prepare(&name).await?;
        let worker = Task::start(options(&name, source, store, output(&name), coalesce)?);
        rates.push(rate(|| lowest_checkpoint(store, &name), events, LOOK_EVERY).await?);
        drop(worker);
    }
    if let [all, last] = rates.as_slice() {
        println!("  {}: {all:.0} and {last:.0} events a second: {:.1} ×", store.short_name(), last / all);
    }
    Ok(())
}

/// The position up to which all shards are done.
async fn lowest_checkpoint(store: &Store<'_>, name: &str) -> Result<i64> {
    match store {
        Store::Postgres(server) => {
            let client = server.connect(name).await?;
            Ok(client.query_one("select min(position) from projectionist_checkpoints", &[]).await?.try_get(0)?)
        }
        Store::Redis(server) => {
            let fields: Vec<String> =
                (0..ProjectionSpec::BUILTIN_SHARDS).map(|shard| format!("position:{shard}")).collect();
            let Answer::Array(all) =
                server.run(&format!("HMGET projectionist:{{bench/{name}}} {}", fields.join(" ")))?
            else {
                return Ok(0);
            };
            Ok(all.iter().map(super::stores::number).min().unwrap_or(0))
        }
        Store::Search(_) => Ok(0),
    }
}
