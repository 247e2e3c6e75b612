//! Queues into a real Redis: each command once, however workers and servers end, and whatever is delivered twice.

use std::{collections::BTreeSet, sync::Arc};

use projectionist::{
    addresses::AddressRules,
    api::{CheckpointLocation, CheckpointRows, RedisLocation, RedisPart},
    clients::redis::ConnectionSettings,
    read_stores::{CheckpointStore, RedisStore},
};
use test_cluster::{Nats, Redis, eventually, eventually_is};
use tokio::time::Instant;

use crate::{
    nats_queues, outbox, queues,
    queues_into_redis_kept::delivered_again,
    redis::{handled, handlers, items, number},
    workshop::{PATIENCE, RedisTarget, Workshop, server},
};

/// What was handled, and sums that show every command that is run twice.
pub(crate) const COUNTED: &str = "RPUSH applied {data.n} | HINCRBY totals {stream} {data.n} | HINCRBY totals events 1";

/// Lets the read model be in Redis, with these commands for `Counted`.
pub(crate) fn into_redis(shop: &mut Workshop, redis: &Redis, commands: &str) {
    shop.redis = Some(RedisTarget { url: redis.url(), handlers: handlers(commands), shared: false });
}

/// Workers that read a stream of the server that the read model is in.
pub(crate) async fn open(redis: &Redis, name: &str, commands: &str, alone: bool) -> Workshop {
    let mut shop = queues::open(redis, name, "", alone).await;
    into_redis(&mut shop, redis, commands);
    shop
}

/// Each of the numbers below `events` is there once, of forty streams.
pub(crate) async fn assert_each_once(redis: &Redis, events: i64) {
    handled(redis, events).await;
    let mut applied: Vec<i64> =
        items(&redis.run("LRANGE applied 0 -1").unwrap()).iter().map(|n| n.parse().unwrap()).collect();
    applied.sort_unstable();
    assert_eq!(applied, (0..events).collect::<Vec<_>>(), "each once");
    assert_eq!(number(&redis.run("HGET totals events").unwrap()), events, "none twice");
    for stream in 0..40.min(events) {
        let sum: i64 = (stream..events).step_by(40).sum();
        assert_eq!(number(&redis.run(&format!("HGET totals o-{stream}")).unwrap()), sum, "o-{stream}");
    }
}

/// What the operator reads of messages that could not be handled.
pub(crate) async fn failures(shop: &Workshop, redis: &Redis) -> anyhow::Result<Vec<String>> {
    let loopback = AddressRules::default().allowing(["127.0.0.0/8".parse().unwrap()]);
    let url = redis.url();
    let settings = ConnectionSettings::from_keys(|key| (key == "url").then_some(url.as_str())).unwrap();
    let store = CheckpointStore::Redis(Arc::new(RedisStore::new(settings.identity(), Arc::new(loopback))));
    let key = format!("projectionist:{{{}}}:failed", shop.config.projection);
    let location = CheckpointLocation::Redis(RedisLocation { key, part: RedisPart::Inbox, rows: CheckpointRows::One });
    let read = store.read(&BTreeSet::from([location.clone()]), Instant::now() + PATIENCE).await.remove(&location);
    let read = read.unwrap().map_err(|error| anyhow::anyhow!(error.message))?;
    Ok(read.failed.into_iter().map(|event| event.why).collect())
}

/// Waits until the operator reads of so many messages that they could not be handled.
async fn told(shop: &Workshop, redis: &Redis, messages: usize) -> Vec<String> {
    let is_so = |told: &Vec<String>| told.len() == messages;
    eventually_is(PATIENCE, "all are told", is_so, || failures(shop, redis)).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_of_jetstream_that_are_delivered_again_change_nothing() {
    let nats = Nats::on_loopback().unwrap();
    let redis = Redis::on_loopback().unwrap();
    let name = "into_redis_nats";
    let (mut shop, context, consumer) = nats_queues::open(&nats, name, "", false).await;
    into_redis(&mut shop, &redis, COUNTED);
    let worker = shop.start("a");
    nats_queues::append(&context, name, 0..300).await;
    nats_queues::held(&consumer, 0).await;
    assert_each_once(&redis, 300).await;
    // A consumer that is made again gives all of them once more.
    let stream = context.get_stream(name).await.unwrap();
    stream.delete_consumer(nats_queues::CONSUMER).await.unwrap();
    let consumer = stream.create_consumer(nats_queues::durable()).await.unwrap();
    nats_queues::append(&context, name, 300..310).await;
    handled(&redis, 310).await;
    nats_queues::held(&consumer, 0).await;
    assert_each_once(&redis, 310).await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_of_an_outbox_whose_marks_are_lost_change_nothing() {
    let redis = Redis::on_loopback().unwrap();
    let mut at = outbox::Shop::marked(server(), "into_redis_outbox", false).await;
    into_redis(&mut at.shop, &redis, COUNTED);
    let worker = at.shop.start("a");
    at.append(0..300).await;
    at.left(0).await;
    assert_each_once(&redis, 300).await;
    // As if workers had ended between script and mark.
    at.source.execute("update outbox set sent_at = null", &[]).await.unwrap();
    at.append(300..310).await;
    at.left(0).await;
    assert_each_once(&redis, 310).await;
    // A server without memory does nothing by halves.
    redis.run("CONFIG SET maxmemory 1").unwrap();
    at.append(310..330).await;
    let said = worker.says("OOM").await;
    assert!(said.contains("503") && said.contains("maxmemory"), "{said}");
    assert_each_once(&redis, 310).await;
    redis.run("CONFIG SET maxmemory 0").unwrap();
    at.left(0).await;
    assert_each_once(&redis, 330).await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_whose_command_fails_goes_on_after_those_that_were_done_while_the_others_go_on() {
    let redis = Redis::on_loopback().unwrap();
    let key = "into_redis_poison";
    let first = "RPUSH applied {data.n} | HINCRBY totals {stream} {data.n}";
    let mut shop =
        open(&redis, key, &format!("{first} | HSET card:{{data.n}} at {{stream}} | HINCRBY totals events 1"), false)
            .await;
    redis.run("SET card:13 no-hash").unwrap();
    assert_eq!(failures(&shop, &redis).await.unwrap(), Vec::<String>::new(), "before any has failed");
    redis.run(&format!("XADD {key} * type Counted data no-json-canary")).unwrap();
    redis.run(&format!("XADD {key} * type Counted stream s data {{\"other\":\"canary\"}}")).unwrap();
    redis.run(&format!("XADD {key} * type Other data no-json")).unwrap();
    queues::append(&redis, key, 0..50);
    let worker = shop.start("a");
    handled(&redis, 49).await;
    queues::append(&redis, key, 50..60);
    handled(&redis, 59).await;
    let why = told(&shop, &redis, 3).await;
    for words in ["no JSON", "{data.n}", "command 3 (HSET): WRONGTYPE"] {
        let is_there = |why: &String| why.contains(words) && why.contains(&format!("of stream {key}"));
        assert!(why.iter().any(is_there), "{words}: {why:?}");
    }
    assert!(why.iter().all(|why| !why.contains("canary")), "{why:?}");
    eventually(PATIENCE, "three are left", || async { anyhow::Ok(queues::pending(&redis, key) == 3) }).await.unwrap();
    worker.stop().await;
    // A handler that begins in another way is not run in the place of what was to come.
    shop.redis.as_mut().unwrap().handlers = handlers("HINCRBY totals events 1 | RPUSH applied {data.n}");
    let worker = shop.start("b");
    let is_told = |why: &Vec<String>| {
        why.iter().any(|why| why.contains("the first 2 commands") && why.contains("DEL \"projectionist:{shop/"))
    };
    eventually_is(PATIENCE, "it is told", is_told, || failures(&shop, &redis)).await.unwrap();
    worker.stop().await;
    assert_eq!(number(&redis.run("HGET totals events").unwrap()), 59);
    // One that begins with the same goes on behind it, however often it has been tried.
    redis.run("DEL card:13").unwrap();
    shop.redis.as_mut().unwrap().handlers = handlers(&format!("{first} | HINCRBY totals events 1"));
    let worker = shop.start("c");
    assert_each_once(&redis, 60).await;
    told(&shop, &redis, 2).await;
    assert_eq!(queues::pending(&redis, key), 2);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_is_handled_is_acknowledged_whatever_its_handler_has_become() {
    let redis = Redis::on_loopback().unwrap();
    let key = "into_redis_handled";
    let mut shop = open(&redis, key, COUNTED, true).await;
    queues::append(&redis, key, 0..20);
    let worker = shop.start("a");
    queues::acknowledged(&redis, key).await;
    assert_each_once(&redis, 20).await;
    worker.stop().await;
    shop.redis.as_mut().unwrap().handlers = handlers("SET {data.missing} 1 | HINCRBY totals events 1");
    let worker = shop.start("b");
    delivered_again(&redis, key).await;
    assert_each_once(&redis, 20).await;
    assert_eq!(failures(&shop, &redis).await.unwrap(), Vec::<String>::new());
    worker.stop().await;
}
