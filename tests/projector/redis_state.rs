//! What workers keep in Redis: its loss, its damage, and what it is of.

use std::time::Duration;

use serde_json::json;
use test_cluster::{Redis, always_is, eventually_is, redis::Answer};

use crate::{
    redis::{COUNTED, assert_exact, handled, handlers, items, kept, number, open, shared, state},
    workshop::PATIENCE,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_emptied_under_workers_is_told_and_built_again() {
    let redis = Redis::on_loopback().unwrap();
    let shop = open("redis_emptied", &redis, COUNTED).await;
    let workers = [shop.start_process("a"), shop.start_process("b")];
    shop.events.append_events(500).await.unwrap();
    shared(&shop, &redis, &[6, 6]).await;
    handled(&redis, 500).await;
    redis.run("FLUSHALL").unwrap();
    shop.events.append_events(100).await.unwrap();
    assert_exact(&shop, &redis).await;
    for worker in &workers {
        let told = || async { Ok::<_, anyhow::Error>(worker.output()) };
        let is_told =
            |said: &String| said.contains("is gone from") && said.contains("projectionist:{shop/redis_emptied}");
        eventually_is(PATIENCE, "the worker says it", is_told, told).await.unwrap();
    }
    let said = format!("{}{}", workers[0].output(), workers[1].output());
    assert!(said.contains("beginning at the first event"), "{said}");
    assert_eq!(kept(&shop, &redis, "position:").len(), 12);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_position_that_is_missing_is_never_taken_for_zero() {
    let redis = Redis::on_loopback().unwrap();
    let shop = open("redis_position", &redis, COUNTED).await;
    shop.events.append_events(200).await.unwrap();
    let worker = shop.start("a");
    handled(&redis, 200).await;
    worker.stop().await;
    let positions = kept(&shop, &redis, "position:");
    let (field, position) = positions.iter().find(|(_, position)| position != "0").unwrap();
    let key = state(&shop);
    // Missing when the worker starts.
    redis.run(&format!("HDEL {key} {field}")).unwrap();
    let worker = shop.start("b");
    let lacks = format!("lacks the position or the fence of shard {}", field.trim_start_matches("position:"));
    let said = worker.says(&lacks).await;
    assert!(said.contains("503") && said.contains(&format!("HSET {key} {field}")), "{said}");
    assert_eq!(number(&redis.run("HGET totals events").unwrap()), 200);
    redis.run(&format!("HSET {key} {field} {position}")).unwrap();
    shop.events.append_events(50).await.unwrap();
    assert_exact(&shop, &redis).await;
    // And while it works.
    let position = redis.run(&format!("HGET {key} {field}")).unwrap();
    redis.run(&format!("HDEL {key} {field}")).unwrap();
    shop.events.append_events(50).await.unwrap();
    worker.says(&lacks).await;
    let stays = || async { Ok::<_, anyhow::Error>(number(&redis.run(&format!("HEXISTS {key} {field}"))?)) };
    always_is(Duration::from_secs(2), "no position is made up", |there| *there == 0, stays).await.unwrap();
    redis.run(&format!("HSET {key} {field} {}", position.text())).unwrap();
    assert_exact(&shop, &redis).await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_evicts_any_key_is_refused() {
    let redis = Redis::with("maxmemory 50mb\nmaxmemory-policy allkeys-lru").unwrap();
    let shop = open("redis_evicts", &redis, COUNTED).await;
    shop.events.append_events(10).await.unwrap();
    let worker = shop.start("a");
    let said = worker.says("allkeys-lru").await;
    assert!(said.contains("noeviction") && said.contains("503"), "{said}");
    assert_eq!(redis.run("DBSIZE").unwrap(), Answer::Integer(0), "nothing is made there");
    redis.run("CONFIG SET maxmemory-policy volatile-lru").unwrap();
    assert_exact(&shop, &redis).await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_state_of_another_source_is_refused() {
    let redis = Redis::on_loopback().unwrap();
    let first = open("redis_source", &redis, COUNTED).await;
    first.events.append_events(10).await.unwrap();
    let worker = first.start("a");
    handled(&redis, 10).await;
    worker.stop().await;
    let server = kept(&first, &redis, "server");
    assert!(server.len() == 1 && server[0].1.parse::<u64>().is_ok(), "{server:?}");
    let mut other = open("redis_source_other", &redis, COUNTED).await;
    other.config.projection.clone_from(&first.config.projection);
    other.events.append_events(20).await.unwrap();
    let error = other.start("b").ended().await;
    let message = error.to_string();
    for part in
        ["redis_source_events", "redis_source_other_events", "HDEL projectionist:{shop/redis_source} source server"]
    {
        assert!(message.contains(part), "{message}");
    }
    assert_eq!(number(&redis.run("HGET totals events").unwrap()), 10);
    // The same events at another place.
    redis.run(&format!("HDEL {} source server", state(&first))).unwrap();
    let worker = other.start("c");
    handled(&redis, 20).await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_goes_on_only_with_a_handler_that_begins_as_it_did() {
    let redis = Redis::on_loopback().unwrap();
    let first = "RPUSH applied:{stream} {position} | HINCRBY totals {stream} {data.n}";
    let mut shop = open(
        "redis_changed",
        &redis,
        &format!("{first} | HSET card:{{stream}} at {{position}} | HINCRBY totals events 1"),
    )
    .await;
    redis.run("SET card:bad no-hash").unwrap();
    // Numbers of Lua cannot tell the second from the first.
    let far = "alter table events alter column position restart with 9007199254740992";
    shop.events.client().execute(far, &[]).await.unwrap();
    shop.events.append("bad", "Other", &json!({"n": 0})).await.unwrap();
    for n in 1..=2 {
        shop.events.append("bad", "Counted", &json!({"n": n})).await.unwrap();
    }
    let worker = shop.start("a");
    worker.says("position 9007199254740993").await;
    worker.stop().await;
    assert_eq!(items(&redis.run("LRANGE applied:bad 0 -1").unwrap()), ["9007199254740993"]);
    // One that begins in another way is not run in the place of what was to come.
    shop.redis.as_mut().unwrap().handlers = handlers("HINCRBY totals events 1 | RPUSH applied:{stream} {position}");
    let worker = shop.start("b");
    let said = worker.says("no longer begins with them").await;
    let begun = kept(&shop, &redis, "begun:");
    assert_eq!(begun.len(), 1);
    let advice = format!("HDEL {} {}", state(&shop), begun[0].0);
    assert!(said.contains("the first 2 commands") && said.contains(&advice), "{said}");
    worker.stop().await;
    assert_eq!(redis.run("HGET totals events").unwrap(), Answer::Nil);
    // Nor one that has fewer commands than are done.
    shop.redis.as_mut().unwrap().handlers = handlers("RPUSH applied:{stream} {position}");
    let worker = shop.start("c");
    worker.says("no longer begins with them").await;
    worker.stop().await;
    // One that begins with the same goes on behind it.
    shop.redis.as_mut().unwrap().handlers = handlers(&format!("{first} | HINCRBY totals events 1"));
    let worker = shop.start("d");
    handled(&redis, 2).await;
    worker.says("200 OK").await;
    worker.stop().await;
    let applied = items(&redis.run("LRANGE applied:bad 0 -1").unwrap());
    assert_eq!(applied, ["9007199254740993", "9007199254740994"]);
    assert_eq!(number(&redis.run("HGET totals bad").unwrap()), 3);
    assert_eq!(kept(&shop, &redis, "begun:"), []);
}
