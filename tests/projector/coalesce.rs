//! Events that a later one of their stream supersedes are left out: what counts comes once all the same, and each stream ends as its last event says.

use std::time::Duration;

use projectionist::api::CoalescedTypes;
use serde_json::json;
use test_cluster::{Redis, eventually_is};

use crate::{
    redis::{handlers, items, kept, number},
    workshop::{APPLY, PATIENCE, Workshop},
};

const SETUP: &str = "create sequence if not exists ran; create table if not exists prices (stream text primary key, n bigint, position bigint);
     create table if not exists applied (seq bigserial, position bigint, stream text, n bigint)";
/// Slow, so that batches are cut short. The sequence counts how often it ran.
const PRICED: &str = "with ran as (select nextval('ran'), pg_sleep(0.002))
     insert into prices select :stream, (:data->>'n')::bigint, :position from ran
     on conflict (stream) do update set n = excluded.n, position = excluded.position";

fn superseding(types: &[&str]) -> Vec<CoalescedTypes> {
    vec![CoalescedTypes { types: types.iter().map(|name| (*name).to_owned()).collect() }]
}

/// Prices of few streams, among which each ninth event is one that counts.
async fn append(shop: &Workshop, count: i64) {
    let statement = "insert into events (stream, type, data)
        select 'stream-' || n * 7 % 31, case when n % 9 = 0 then 'Counted' else 'Priced' end, jsonb_build_object('n', n)
        from generate_series(1, $1::bigint) as n";
    shop.events.client().execute(statement, &[&count]).await.unwrap();
}

/// Stream, number and position of each stream's last price.
async fn last_prices(shop: &Workshop) -> Vec<(String, i64, i64)> {
    let last = "select distinct on (stream) stream, (data->>'n')::bigint, position from events where type = 'Priced' order by stream, position desc";
    let rows = shop.events.client().query(last, &[]).await.unwrap();
    rows.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect()
}

async fn count(shop: &Workshop, event_type: &str) -> i64 {
    let counted = "select count(*) from events where type = $1";
    shop.events.client().query_one(counted, &[&event_type]).await.unwrap().get(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn in_postgresql_what_counts_comes_once_and_each_stream_ends_as_its_last_event_says_while_workers_are_killed() {
    let mut shop = Workshop::open("coalesced", APPLY).await;
    shop.sql.setup = Some(SETUP.to_owned());
    shop.sql.handlers.insert("Priced".to_owned(), PRICED.to_owned());
    shop.config.coalesce = superseding(&["Priced"]);
    shop.config.batch_size = 2_000;
    append(&shop, 4_000).await;
    let first = shop.start_process("a");
    for round in 0..3 {
        let killed = shop.start_process(&format!("killed-{round}"));
        shop.shared(&[6, 6]).await;
        append(&shop, 1_000).await;
        tokio::time::sleep(Duration::from_millis(70 + 110 * round)).await;
        // Dropped, and so killed, wherever it is.
        drop(killed);
    }
    shop.applied(count(&shop, "Counted").await).await;
    let expected = last_prices(&shop).await;
    let found = || async {
        let rows = shop.store.query("select stream, n, position from prices order by stream", &[]).await?;
        Ok::<_, anyhow::Error>(rows.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect::<Vec<_>>())
    };
    let mut sorted = expected.clone();
    sorted.sort();
    eventually_is(PATIENCE, "each stream ends as its last event says", |found| *found == sorted, found).await.unwrap();
    let ids = "select count(distinct position) from applied";
    assert_eq!(shop.ask::<i64>(ids).await, count(&shop, "Counted").await, "what counts comes once");
    shop.assert_in_order().await;
    let (ran, priced) = (shop.ask::<i64>("select last_value from ran").await, count(&shop, "Priced").await);
    println!("{ran} of {priced} events that supersede one another were handled");
    assert!(ran < priced / 2, "{ran} of {priced}");
    drop(first);
}

#[tokio::test(flavor = "multi_thread")]
async fn in_redis_an_event_that_fails_is_not_passed_by_with_those_that_are_left_out() {
    let redis = Redis::on_loopback().unwrap();
    let mut shop = crate::redis::open("coalesced_redis", &redis, "RPUSH applied:{stream} {position}").await;
    let priced = handlers("SET price:{stream} {data.n}").remove("Counted").unwrap();
    shop.redis.as_mut().unwrap().handlers.insert("Priced".to_owned(), priced);
    shop.config.coalesce = superseding(&["Priced"]);
    // Both streams are in one shard.
    shop.table().shards = 1;
    redis.run("SET applied:bad no-list").unwrap();
    for (stream, event_type, n) in
        [("a", "Priced", 1), ("bad", "Counted", 2), ("a", "Priced", 3), ("bad", "Counted", 4)]
    {
        shop.events.append(stream, event_type, &json!({"n": n})).await.unwrap();
    }
    let worker = shop.start("a");
    worker.says("failed on the event at position 2").await;
    let checkpoint = kept(&shop, &redis, "position:");
    assert_eq!(checkpoint[0].1, "1", "it waits before the event that failed");
    redis.run("DEL applied:bad").unwrap();
    let applied = || async {
        Ok::<_, anyhow::Error>(redis.run("LRANGE applied:bad 0 -1").map_or_else(|_| Vec::new(), |all| items(&all)))
    };
    eventually_is(PATIENCE, "both are handled, once", |all| all == &["2", "4"], applied).await.unwrap();
    assert_eq!(number(&redis.run("GET price:a").unwrap()), 3);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_by_which_every_event_counts_are_refused_to_be_left_out() {
    let redis = Redis::on_loopback().unwrap();
    let mut shop = crate::redis::open("coalesced_refused", &redis, crate::redis::COUNTED).await;
    shop.config.coalesce = superseding(&["Counted"]);
    let message = shop.start("a").ended().await.to_string();
    assert!(message.contains("coalesce") && message.contains("command 1 (RPUSH) may depend"), "{message}");
}
