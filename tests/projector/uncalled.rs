//! Handlers for types of event that no event has: workers tell them, and the operator reads what all of them say together.

use std::{collections::BTreeSet, sync::Arc};

use projectionist::{
    addresses::AddressRules,
    api::{CheckpointLocation, CheckpointRows, RedisLocation, RedisPart, TableLocation},
    clients::{
        postgres::{ConnectionSettings, Database},
        redis,
    },
    read_stores::{Checkpoint, CheckpointStore, RedisStore},
};
use serde_json::json;
use test_cluster::{Redis, eventually_is};
use tokio::time::Instant;

use crate::{
    elasticsearch::{append, counted, open as open_in_search, open_search},
    elasticsearch_state::checkpoint as checkpoint_in_search,
    redis::{COUNTED, kept, open as open_in_redis, state},
    workshop::{APPLY, PATIENCE, Workshop},
};

fn loopback() -> Arc<AddressRules> {
    Arc::new(AddressRules::default().allowing(["127.0.0.0/8".parse().unwrap()]))
}

/// What the operator reads.
async fn read(store: CheckpointStore, location: CheckpointLocation) -> anyhow::Result<Checkpoint> {
    let read = store.read(&BTreeSet::from([location.clone()]), Instant::now() + PATIENCE).await.remove(&location);
    read.unwrap().map_err(|error| anyhow::anyhow!(error.message))
}

async fn in_redis(shop: &Workshop, redis: &Redis) -> anyhow::Result<Checkpoint> {
    let url = redis.url();
    let settings = redis::ConnectionSettings::from_keys(|key| (key == "url").then_some(url.as_str())).unwrap();
    let store = CheckpointStore::Redis(Arc::new(RedisStore::new(settings.identity(), loopback())));
    let rows = CheckpointRows::Numbered(shop.shards());
    read(store, CheckpointLocation::Redis(RedisLocation { key: state(shop), part: RedisPart::Builtin, rows })).await
}

async fn in_postgres(shop: &Workshop) -> anyhow::Result<Checkpoint> {
    let identity = ConnectionSettings::parse(&shop.store_url).unwrap().identity();
    let store = CheckpointStore::Postgres(Arc::new(Database::new(identity, loopback())));
    let location = TableLocation {
        table: "projectionist_checkpoints".to_owned(),
        name_column: "projection".to_owned(),
        name: shop.config.projection.clone(),
        position_column: "position".to_owned(),
        rows: CheckpointRows::Numbered(shop.shards()),
    };
    read(store, CheckpointLocation::Table(location)).await
}

fn names_it(read: &Checkpoint) -> bool {
    read.uncalled == ["Cuonted"]
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_read_model_in_redis_it_is_told_once_all_workers_have_had_none_and_no_longer_when_one_comes() {
    let redis = Redis::on_loopback().unwrap();
    let mut shop = open_in_redis("redis_uncalled", &redis, COUNTED).await;
    let commands = shop.redis.as_ref().unwrap().handlers["Counted"].clone();
    shop.redis.as_mut().unwrap().handlers.insert("Cuonted".to_owned(), commands);
    let worker = shop.start_quiet_process("a");
    shop.events.append_events(1_000).await.unwrap();
    let told =
        |output: &str| output.lines().find(|line| line.contains("handlers that were never called")).map(str::to_owned);
    let found = || async { Ok::<_, anyhow::Error>(told(&worker.output())) };
    let line = eventually_is(PATIENCE, "it is logged", Option::is_some, found).await.unwrap().unwrap();
    assert!(line.contains("no event of type \"Cuonted\" has come"), "{line}");
    eventually_is(PATIENCE, "the operator reads it", names_it, || in_redis(&shop, &redis)).await.unwrap();
    // Another worker takes some of the shards: it has handled too little to say anything.
    let other = shop.start_quiet_process("b");
    let is_silent = |read: &Checkpoint| read.uncalled.is_empty();
    eventually_is(PATIENCE, "nothing is known of all", is_silent, || in_redis(&shop, &redis)).await.unwrap();
    drop(other);
    eventually_is(PATIENCE, "it is told again", names_it, || in_redis(&shop, &redis)).await.unwrap();
    shop.events.append("one", "Cuonted", &json!({"n": 1})).await.unwrap();
    eventually_is(PATIENCE, "it has come", is_silent, || in_redis(&shop, &redis)).await.unwrap();
    let notes = kept(&shop, &redis, "uncalled:");
    assert!(notes.len() == 12 && notes.iter().all(|(_, note)| note.ends_with(" []")), "{notes:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_read_model_in_postgres_the_operator_reads_it_until_one_comes() {
    let mut shop = Workshop::open("uncalled", APPLY).await;
    shop.sql.handlers.insert("Cuonted".to_owned(), APPLY.to_owned());
    let worker = shop.start("a");
    shop.events.append_events(1_000).await.unwrap();
    eventually_is(PATIENCE, "the operator reads it", names_it, || in_postgres(&shop)).await.unwrap();
    shop.events.append("one", "Cuonted", &json!({"n": 1})).await.unwrap();
    let is_silent = |read: &Checkpoint| read.uncalled.is_empty();
    eventually_is(PATIENCE, "it has come", is_silent, || in_postgres(&shop)).await.unwrap();
    // A table from before it had the column.
    worker.stop().await;
    shop.store.batch_execute("alter table projectionist_checkpoints drop column uncalled").await.unwrap();
    in_postgres(&shop).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_read_model_in_elasticsearch_the_operator_reads_it() {
    let server = open_search();
    let mut handlers = counted("uncalled_search");
    handlers["Cuonted"] = handlers["Counted"].clone();
    let shop = open_in_search("uncalled_search", server, handlers).await;
    let worker = shop.start("a");
    append(&shop, 1_000).await;
    eventually_is(PATIENCE, "the operator reads it", names_it, || checkpoint_in_search(&shop)).await.unwrap();
    worker.stop().await;
}
