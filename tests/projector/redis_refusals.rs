//! What Redis refuses: which event, command and right it is about, and that nothing of a handler is done before what is refused for all.

use serde_json::json;
use test_cluster::{Redis, eventually_is, redis::Answer};

use crate::{
    redis::{COUNTED, assert_exact, handled, handlers, items, kept, open},
    workshop::PATIENCE,
};

/// What docs/projector.md lists, beside the key and the handlers' own.
const RIGHTS: [&str; 8] = ["+eval", "+hget", "+hset", "+hdel", "+hgetall", "+hincrby", "+time", "+info"];

/// The key that all Projections use, which docs/projector.md lists as well.
const CLAIMS: &str = "~projectionist:claims";

#[tokio::test(flavor = "multi_thread")]
async fn the_rights_that_are_listed_suffice_and_without_any_of_them_nothing_is_done() {
    let redis = Redis::on_loopback().unwrap();
    let mut shop = open(
        "redis_rights",
        &redis,
        "RPUSH applied:{stream} {position} | INCRBY sum:{stream} {data.n} | SADD seen {position}",
    )
    .await;
    shop.events.append_events(20).await.unwrap();
    shop.redis.as_mut().unwrap().url = redis.url_as("cards", "pw");
    let keys = format!("~projectionist:{{shop/redis_rights}} {CLAIMS} ~applied:* ~sum:* ~seen");
    let allow = |rights: &[&str]| {
        redis.run(&format!("ACL SETUSER cards reset on >pw {keys} {} +rpush +incrby +sadd", rights.join(" "))).unwrap();
    };
    for without in RIGHTS.into_iter().filter(|right| *right != "+info") {
        // Each has a name of its own, so that it has no earlier run to forget and comes as far as it can.
        let rest: Vec<&str> = RIGHTS.into_iter().filter(|right| *right != without).collect();
        allow(&rest);
        let worker = shop.start(without);
        let said = worker.says("grant the user").await;
        assert!(said.contains("503") && said.contains("read store"), "{without}: {said}");
        drop(worker);
        assert_eq!(redis.run("EXISTS seen").unwrap(), Answer::Integer(0), "{without}");
    }
    // Nor without the key that tells which Projection writes where.
    redis
        .run(&format!(
            "ACL SETUSER cards reset on >pw {} {} +rpush +incrby +sadd",
            keys.replace(CLAIMS, ""),
            RIGHTS.join(" ")
        ))
        .unwrap();
    let worker = shop.start("claims");
    worker.says("grant the user in the Secret the key projectionist:claims").await;
    drop(worker);
    assert_eq!(redis.run("EXISTS seen").unwrap(), Answer::Integer(0));
    // One command's right is missing: it and the type of event are named, and the user's rights are no one event's failure.
    redis.run(&format!("ACL SETUSER cards reset on >pw {keys} {} +rpush +incrby", RIGHTS.join(" "))).unwrap();
    let worker = shop.start("b");
    let said = worker.says("command 3 (SADD)").await;
    assert!(said.contains("event type Counted") && said.contains("grant the user"), "{said}");
    assert_eq!(kept(&shop, &redis, "failure:"), []);
    allow(&RIGHTS);
    let seen = || async { redis.run("SCARD seen") };
    eventually_is(PATIENCE, "all are handled", |seen| *seen == Answer::Integer(20), seen).await.unwrap();
    worker.stop().await;
    let streams = shop.events.client().query("select distinct stream from events", &[]).await.unwrap();
    let mut applied = Vec::new();
    for row in streams {
        let stream: String = row.get(0);
        applied.extend(items(&redis.run(&format!("LRANGE applied:{stream} 0 -1")).unwrap()));
    }
    applied.sort_unstable();
    applied.dedup();
    assert_eq!(applied.len(), 20, "each once");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_or_channel_that_the_user_may_not_write_is_that_events_failure() {
    let redis = Redis::on_loopback().unwrap();
    let mut shop = open("redis_keys", &redis, "SET {data.key} {position} | HINCRBY totals events 1").await;
    let keys = "~projectionist:{shop/redis_keys} ~projectionist:claims ~card:* ~totals resetchannels &news";
    // Without +info, which only tells what the server evicts.
    let rights = RIGHTS[..7].join(" ");
    redis.run(&format!("ACL SETUSER cards reset on >pw {keys} {rights} +set +publish")).unwrap();
    shop.redis.as_mut().unwrap().url = redis.url_as("cards", "pw");
    shop.events.append("bad", "Counted", &json!({"key": "private"})).await.unwrap();
    shop.events.append("good", "Counted", &json!({"key": "card:1"})).await.unwrap();
    let worker = shop.start("a");
    let said = worker.says("position 1").await;
    assert!(said.contains("command 1 (SET)") && said.contains("~PATTERN") && !said.contains("private"), "{said}");
    handled(&redis, 1).await;
    redis.run("ACL SETUSER cards ~private").unwrap();
    handled(&redis, 2).await;
    worker.stop().await;
    shop.redis.as_mut().unwrap().handlers = handlers("PUBLISH {data.key} {position} | HINCRBY totals events 1");
    shop.events.append("bad", "Counted", &json!({"key": "secrets"})).await.unwrap();
    shop.events.append("good", "Counted", &json!({"key": "news"})).await.unwrap();
    let worker = shop.start("b");
    let said = worker.says("position 3").await;
    assert!(said.contains("command 1 (PUBLISH)") && said.contains("&PATTERN") && !said.contains("secrets"), "{said}");
    handled(&redis, 3).await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_published_where_the_checkpoint_cannot_be_written() {
    let redis = Redis::on_loopback().unwrap();
    let shop = open("redis_publish", &redis, "PUBLISH news {position} | HINCRBY totals events 1").await;
    let worker = shop.start("a");
    worker.says("200 OK").await;
    redis.run("CONFIG SET maxmemory 1").unwrap();
    shop.events.append_events(5).await.unwrap();
    worker.says("OOM").await;
    let calls = || redis.run("INFO commandstats").unwrap().text().contains("cmdstat_publish");
    assert!(!calls());
    redis.run("CONFIG SET maxmemory 0").unwrap();
    handled(&redis, 5).await;
    assert!(calls());
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_redis_quotes_of_an_event_is_not_told_and_the_command_is() {
    let redis = Redis::on_loopback().unwrap();
    let shop = open(
        "redis_quotes",
        &redis,
        "SET k:{stream} 1 | EXPIRE k:{stream} 100 {data.option} | HINCRBY totals events 1",
    )
    .await;
    shop.events.append("bad", "Counted", &json!({"option": "secret-value"})).await.unwrap();
    shop.events.append("good", "Counted", &json!({"option": "NX"})).await.unwrap();
    let worker = shop.start("a");
    let said = worker.says("position 1").await;
    assert!(said.contains("command 2 (EXPIRE)") && said.contains("ERR") && !said.contains("secret-value"), "{said}");
    handled(&redis, 1).await;
    let failures = kept(&shop, &redis, "failure:");
    assert!(failures.len() == 1 && !failures[0].1.contains("secret-value"), "{failures:?}");
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_whose_commands_are_too_large_lets_only_its_shard_wait() {
    let redis = Redis::on_loopback().unwrap();
    let copies = vec!["RPUSH copies {data.text}"; 20].join(" | ");
    let mut shop = open("redis_large", &redis, &format!("{copies} | {COUNTED}")).await;
    shop.config.max_event_bytes = 2 << 20;
    shop.events.append("bad", "Counted", &json!({"n": 1, "text": "x".repeat(1_000_000)})).await.unwrap();
    shop.events.append("good", "Counted", &json!({"n": 1, "text": "x"})).await.unwrap();
    let worker = shop.start("a");
    let said = worker.says("position 1").await;
    assert!(said.contains("maxEventBytes") && said.contains("command 19"), "{said}");
    handled(&redis, 1).await;
    worker.stop().await;
    shop.config.max_event_bytes = 5 << 20;
    let worker = shop.start("b");
    assert_exact(&shop, &redis).await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_field_that_no_event_has_had_is_told_with_those_there_are_until_one_has_it() {
    let redis = Redis::on_loopback().unwrap();
    let shop = open("redis_fields", &redis, "HINCRBY totals sum {data.amuont} | HINCRBY totals events 1").await;
    shop.events.append("bad", "Counted", &json!({"amount": "secret-value", "n": 1})).await.unwrap();
    let worker = shop.start("a");
    let said = worker.says("No event of this type that this worker has tried had it").await;
    let expected = "does the handler mean {data.amount} there? Fields of {data}: amount, n. Its shard waits";
    assert!(said.contains(expected) && !said.contains("secret-value"), "{said}");
    let failures = kept(&shop, &redis, "failure:");
    assert!(
        failures.len() == 1 && failures[0].1.contains("Fields of {data}: amount, n"),
        "the operator reads it: {failures:?}"
    );
    shop.events.append("good", "Counted", &json!({"amuont": 1})).await.unwrap();
    handled(&redis, 1).await;
    let said = worker.says("has no such path. Its shard waits").await;
    assert!(said.contains("{data.amuont}") && !said.contains("No event of this type"), "{said}");
    worker.stop().await;
}
