//! Read models in a real Redis: each effect once, however workers and server end.

use std::collections::BTreeMap;

use serde_json::json;
use test_cluster::{Redis, eventually_is, redis::Answer};

use crate::workshop::{APPLY, PATIENCE, RedisTarget, Workshop};

/// What was handled of each stream in its order, and a sum that shows every effect that comes twice.
pub(crate) const COUNTED: &str =
    "RPUSH applied:{stream} {position} | HINCRBY totals {stream} {data.n} | HINCRBY totals events 1";

/// An event store, and a read model in Redis with these commands for `Counted`, written with `|` between them.
pub(crate) async fn open(name: &str, redis: &Redis, commands: &str) -> Workshop {
    let mut shop = Workshop::open(name, APPLY).await;
    shop.redis = Some(RedisTarget { url: redis.url(), handlers: handlers(commands), shared: false });
    shop
}

pub(crate) fn handlers(commands: &str) -> BTreeMap<String, Vec<Vec<String>>> {
    let words = |command: &str| command.split_whitespace().map(str::to_owned).collect();
    BTreeMap::from([("Counted".to_owned(), commands.split('|').map(words).collect())])
}

pub(crate) fn number(answer: &Answer) -> i64 {
    match answer {
        Answer::Nil => 0,
        Answer::Integer(number) => *number,
        Answer::Text(text) => text.parse().unwrap(),
        Answer::Array(_) => panic!("{answer:?}"),
    }
}

pub(crate) fn items(answer: &Answer) -> Vec<String> {
    let Answer::Array(items) = answer else { panic!("{answer:?}") };
    items.iter().map(|item| item.text().to_owned()).collect()
}

/// Waits until the counter of events says so.
pub(crate) async fn handled(redis: &Redis, events: i64) {
    let count = || async { Ok::<_, anyhow::Error>(redis.run("HGET totals events").map_or(-1, |count| number(&count))) };
    eventually_is(PATIENCE, "the events are handled", |count| *count >= events, count).await.unwrap();
}

/// The read model is what the events say: each once, and each stream's in order.
pub(crate) async fn assert_exact(shop: &Workshop, redis: &Redis) {
    let client = shop.events.client();
    let query = "select stream, array_agg(position order by position), sum((data->>'n')::bigint)::bigint from events group by stream";
    let streams = client.query(query, &[]).await.unwrap();
    let events: usize = streams.iter().map(|row| row.get::<_, Vec<i64>>(1).len()).sum();
    handled(redis, i64::try_from(events).unwrap()).await;
    assert_eq!(number(&redis.run("HGET totals events").unwrap()), i64::try_from(events).unwrap(), "none twice");
    assert!(events > 0 && !streams.is_empty());
    for row in streams {
        let (stream, positions, sum): (String, Vec<i64>, i64) = (row.get(0), row.get(1), row.get(2));
        let positions: Vec<String> = positions.iter().map(i64::to_string).collect();
        let applied = items(&redis.run(&format!("LRANGE applied:{stream} 0 -1")).unwrap());
        assert_eq!(applied, positions, "{stream}: each once and in order");
        assert_eq!(number(&redis.run(&format!("HGET totals {stream}")).unwrap()), sum, "{stream}");
    }
}

/// The key of what the workers keep.
pub(crate) fn state(shop: &Workshop) -> String {
    format!("projectionist:{{{}}}", shop.config.projection)
}

/// The fields of what the workers keep whose names begin with this, and what they hold.
pub(crate) fn kept(shop: &Workshop, redis: &Redis, kind: &str) -> Vec<(String, String)> {
    let fields = items(&redis.run(&format!("HGETALL {}", state(shop))).unwrap());
    let pairs = fields.chunks_exact(2).filter(|pair| pair[0].starts_with(kind));
    pairs.map(|pair| (pair[0].clone(), pair[1].clone())).collect()
}

/// How many shards each worker owns, most first.
fn holdings(shop: &Workshop, redis: &Redis) -> Vec<usize> {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    kept(shop, redis, "owner:").into_iter().for_each(|(_, owner)| *counts.entry(owner).or_default() += 1);
    let mut counts: Vec<usize> = counts.into_values().collect();
    counts.sort_unstable_by(|a, b| b.cmp(a));
    counts
}

pub(crate) async fn shared(shop: &Workshop, redis: &Redis, expected: &[usize]) {
    let seen = || async { Ok::<_, anyhow::Error>(holdings(shop, redis)) };
    eventually_is(PATIENCE, "the shards are shared", |seen| seen == expected, seen).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_killed_and_starts_again_has_effects_and_checkpoints_that_agree() {
    let mut redis = Redis::with("appendonly yes\nappendfsync always").unwrap();
    let shop = open("redis_restarts", &redis, COUNTED).await;
    let (first, second) = (shop.start("a"), shop.start("b"));
    for _ in 0..3 {
        shop.events.append_events(3_000).await.unwrap();
        let before = redis.run("HGET totals events").map_or(0, |count| number(&count));
        handled(&redis, before + 1).await;
        redis.restart().unwrap();
    }
    shop.events.append_events(100).await.unwrap();
    assert_exact(&shop, &redis).await;
    first.stop().await;
    second.stop().await;
    let position: i64 = shop.events.head().await.unwrap();
    let checkpoints = kept(&shop, &redis, "position:");
    assert_eq!(checkpoints.len(), 12);
    assert!(checkpoints.iter().any(|(_, checkpoint)| *checkpoint == position.to_string()), "{checkpoints:?}");
    assert_eq!(holdings(&shop, &redis), Vec::<usize>::new(), "all shards were given back");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_whose_command_fails_goes_on_after_the_commands_that_were_done() {
    let redis = Redis::on_loopback().unwrap();
    let commands = "RPUSH applied:{stream} {position} | HINCRBY totals {stream} {data.n} | HSET card:{stream} at {position} | HINCRBY totals events 1";
    let shop = open("redis_fails", &redis, commands).await;
    redis.run("SET card:bad no-hash").unwrap();
    for n in 1..=3 {
        shop.events.append("good", "Counted", &json!({"n": n})).await.unwrap();
        shop.events.append("bad", "Counted", &json!({"n": n})).await.unwrap();
    }
    let process = shop.start_process("a");
    let said = || process.readiness();
    let failed = |said: &String| said.contains("failed on the event at position 2");
    let said = eventually_is(PATIENCE, "the worker says it", failed, said).await.unwrap();
    assert!(said.contains("command 3 (HSET): WRONGTYPE") && said.contains("Counted"), "{said}");
    // The other stream goes on, and what is done of the failed event stays as it is however often it is tried again.
    handled(&redis, 3).await;
    let failures = kept(&shop, &redis, "failure:");
    assert!(
        failures.len() == 1 && failures[0].1.starts_with("2 ") && failures[0].1.contains("WRONGTYPE"),
        "{failures:?}"
    );
    assert!(!process.output().contains("another worker"), "{}", process.output());
    drop(process);
    let next = shop.start("b");
    next.says("failed on the event at position 2").await;
    assert_eq!(items(&redis.run("LRANGE applied:bad 0 -1").unwrap()), ["2"]);
    redis.run("DEL card:bad").unwrap();
    assert_exact(&shop, &redis).await;
    next.says("200 OK").await;
    for kind in ["failure:", "begun:"] {
        assert_eq!(kept(&shop, &redis, kind), [], "{kind}");
    }
    next.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_an_event_holds_is_one_argument_and_what_it_lacks_is_told() {
    let redis = Redis::on_loopback().unwrap();
    let shop = open("redis_words", &redis, "SET text:{stream} {data.text} | HINCRBY totals events 1").await;
    let texts = ["", "a b", "line\r\n*3\r\n$3\r\nDEL", "{stream}", "\"quoted\" 'twice'", "ünïcode \u{0}"];
    for (n, text) in texts.iter().enumerate() {
        // A jsonb holds no NUL.
        let text = text.replace('\u{0}', "");
        shop.events.append(&format!("s{n}"), "Counted", &json!({"text": text})).await.unwrap();
    }
    let worker = shop.start("a");
    handled(&redis, 6).await;
    for (n, text) in texts.iter().enumerate() {
        let found = redis.run(&format!("GET text:s{n}")).unwrap();
        assert_eq!(found.text(), text.replace('\u{0}', ""));
    }
    shop.events.append("lacking", "Counted", &json!({"other": "secret-value"})).await.unwrap();
    let said = worker.says("{data.text}").await;
    assert!(said.contains("position 7") && !said.contains("secret-value"), "{said}");
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_number_of_shards_and_commands_that_cannot_be_run_are_refused() {
    let redis = Redis::on_loopback().unwrap();
    let mut shop = open("redis_refused", &redis, COUNTED).await;
    let worker = shop.start("a");
    shared(&shop, &redis, &[12]).await;
    worker.stop().await;
    shop.table().shards = 24;
    let message = shop.start("b").ended().await.to_string();
    for part in ["shop/redis_refused", "12 shards", "told to use 24", "projectionist:{shop/redis_refused}"] {
        assert!(message.contains(part), "{message}");
    }
    shop.table().shards = 12;
    shop.redis.as_mut().unwrap().handlers = handlers("FLUSHALL now");
    let message = shop.start("b").ended().await.to_string();
    assert!(message.contains("Counted") && message.contains("FLUSHALL is not a command"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_memory_is_told_and_loses_nothing() {
    let redis = Redis::on_loopback().unwrap();
    let shop = open("redis_limits", &redis, COUNTED).await;
    shop.events.append_events(50).await.unwrap();
    let worker = shop.start("a");
    handled(&redis, 50).await;
    redis.run("CONFIG SET maxmemory 1").unwrap();
    shop.events.append_events(50).await.unwrap();
    let said = worker.says("OOM").await;
    assert!(said.contains("503") && said.contains("maxmemory"), "{said}");
    redis.run("CONFIG SET maxmemory 0").unwrap();
    assert_exact(&shop, &redis).await;
    worker.stop().await;
}
