//! Events in a real Kafka: each effect once and in order, however workers, brokers and read stores end.

use std::{collections::BTreeMap, sync::OnceLock, time::Duration};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use projectionist::projector::{Input, KafkaInput};
use test_cluster::{Redis, eventually, eventually_is, kafka::Brokers};

use crate::{
    redis::{COUNTED, handled, handlers, items, number, shared},
    workshop::{APPLY, PATIENCE, RedisTarget, Workshop},
};

/// One broker for all tests that do not stop it.
pub(crate) fn broker() -> &'static Brokers {
    static BROKER: OnceLock<Result<Brokers, String>> = OnceLock::new();
    let broker = BROKER.get_or_init(|| Brokers::on_loopback(1).map_err(|error| format!("{error:#}")));
    broker.as_ref().unwrap_or_else(|error| panic!("{error}"))
}

/// Has Kafka's own client do something, beside the workers.
pub(crate) async fn ask(broker: &'static Brokers, command: &[&str]) -> String {
    let command: Vec<String> = command.iter().map(|word| (*word).to_owned()).collect();
    let asked = tokio::task::spawn_blocking(move || {
        let words: Vec<&str> = command.iter().map(String::as_str).collect();
        broker.ask(&words).unwrap()
    });
    asked.await.unwrap()
}

/// A topic with so many partitions, and a read store for what comes of it.
pub(crate) async fn open(broker: &'static Brokers, name: &str, partitions: u32, config: &str) -> Workshop {
    ask(broker, &["create", name, &partitions.to_string(), config]).await;
    let mut shop = Workshop::open(name, APPLY).await;
    shop.config.input = Input::Kafka(KafkaInput { topics: vec![name.to_owned()], ..KafkaInput::default() });
    shop.source_url = broker.addresses();
    shop
}

/// What is read, to be changed.
pub(crate) fn input(shop: &mut Workshop) -> &mut KafkaInput {
    match &mut shop.config.input {
        Input::Kafka(input) => input,
        Input::Postgres(_) | Input::KurrentDb(_) | Input::Queue(_) => panic!("the events are not in Kafka"),
    }
}

/// The next events of the type Counted, of forty streams.
pub(crate) async fn count(broker: &'static Brokers, topic: &str, events: u32, compression: &str) {
    ask(broker, &["count", topic, &events.to_string(), compression]).await;
}

/// One record; no value is a tombstone.
pub(crate) async fn put(topic: &str, partition: u32, key: &str, value: Option<&[u8]>, headers: &[(&str, &str)]) {
    let encoded = |bytes: &[u8]| BASE64_STANDARD.encode(bytes);
    let (partition, key) =
        (partition.to_string(), if key.is_empty() { "-".to_owned() } else { encoded(key.as_bytes()) });
    let value = value.map_or_else(|| "-".to_owned(), encoded);
    let headers: Vec<(&str, String)> = headers.iter().map(|(name, value)| (*name, encoded(value.as_bytes()))).collect();
    let mut command = vec!["put", topic, &partition, &key, &value];
    headers.iter().for_each(|(name, value)| command.extend([*name, value.as_str()]));
    ask(broker(), &command).await;
}

/// What Kafka's own consumer reads of a topic: the offsets of each key, in their order.
pub(crate) async fn dump(broker: &'static Brokers, topic: &str) -> BTreeMap<String, Vec<i64>> {
    let mut found: BTreeMap<String, Vec<i64>> = BTreeMap::new();
    for record in ask(broker, &["dump", topic]).await.split(',').filter(|record| !record.is_empty()) {
        let (key, offset) = record.rsplit_once('@').unwrap();
        found.entry(key.to_owned()).or_default().push(offset.parse().unwrap());
    }
    found
}

/// The read model holds what Kafka's own consumer reads: each record once, and each key's in their order.
pub(crate) async fn assert_exact(shop: &Workshop, broker: &'static Brokers, topic: &str) {
    assert_dumped(shop, dump(broker, topic).await).await;
}

async fn assert_dumped(shop: &Workshop, expected: BTreeMap<String, Vec<i64>>) {
    let events: usize = expected.values().map(Vec::len).sum();
    assert!(events > 0);
    shop.applied(i64::try_from(events).unwrap()).await;
    let rows =
        shop.store.query("select stream, array_agg(position order by seq) from applied group by stream", &[]).await;
    let found: BTreeMap<String, Vec<i64>> = rows.unwrap().iter().map(|row| (row.get(0), row.get(1))).collect();
    assert_eq!(found, expected, "each once and in order");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_effect_comes_once_and_in_order_while_workers_are_killed_and_frozen() {
    let mut shop = open(broker(), "kafka_killed", 6, "").await;
    input(&mut shop).group = Some("kafka-killed-mirror".to_owned());
    let (first, second) = (shop.start_process("a"), shop.start_process("b"));
    count(broker(), "kafka_killed", 3_000, "none").await;
    shop.shared(&[3, 3]).await;
    let load = async {
        for round in 0..60 {
            count(broker(), "kafka_killed", 150, ["none", "gzip", "snappy", "lz4", "zstd"][round % 5]).await;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let faults = async {
        for round in 0..4 {
            let killed = shop.start_process(&format!("killed-{round}"));
            shop.shared(&[2, 2, 2]).await;
            tokio::time::sleep(Duration::from_millis(rand::random_range(0..700))).await;
            // Dropped, and so killed, wherever it is.
            drop(killed);
            shop.shared(&[3, 3]).await;
        }
        first.signal("STOP");
        shop.shared(&[6]).await;
        // It goes on with what it held.
        first.signal("CONT");
        shop.shared(&[3, 3]).await;
    };
    tokio::join!(load, faults);
    assert_exact(&shop, broker(), "kafka_killed").await;
    // Other tools see it in the group.
    eventually(PATIENCE, "the group's offsets follow", || async {
        Ok::<_, anyhow::Error>(ask(broker(), &["lag", "kafka-killed-mirror", "kafka_killed"]).await == "0")
    })
    .await
    .unwrap();
    drop((first, second));
}

/// The offsets that were handled of a stream, in that order.
fn applied(redis: &Redis, stream: &str) -> Vec<i64> {
    let applied = redis.run(&format!("LRANGE applied:{stream} 0 -1")).unwrap();
    items(&applied).iter().map(|at| at.parse().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_command_comes_once_into_redis_from_partitions_that_are_added_as_well() {
    let redis = Redis::on_loopback().unwrap();
    let mut shop = open(broker(), "into_redis", 4, "").await;
    shop.redis = Some(RedisTarget { url: redis.url(), handlers: handlers(COUNTED), shared: false });
    let worker = shop.start("a");
    count(broker(), "into_redis", 500, "lz4").await;
    let expected = dump(broker(), "into_redis").await;
    let events: usize = expected.values().map(Vec::len).sum();
    handled(&redis, i64::try_from(events).unwrap()).await;
    for (stream, offsets) in expected {
        assert_eq!(applied(&redis, &stream), offsets, "{stream}: each once and in order");
    }
    // Again after the partitions have grown.
    ask(broker(), &["partitions", "into_redis", "6"]).await;
    shared(&shop, &redis, &[6]).await;
    count(broker(), "into_redis", 500, "none").await;
    let expected = dump(broker(), "into_redis").await;
    let events: usize = expected.values().map(Vec::len).sum();
    handled(&redis, i64::try_from(events).unwrap()).await;
    assert_eq!(number(&redis.run("HGET totals events").unwrap()), i64::try_from(events).unwrap(), "none twice");
    for (stream, offsets) in expected {
        let mut applied = applied(&redis, &stream);
        // A key's partition is another one since they have grown: each has an order of its own.
        let mut offsets = offsets;
        applied.sort_unstable();
        offsets.sort_unstable();
        assert_eq!(applied, offsets, "{stream}");
    }
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_aborted_has_no_effect_and_markers_and_removed_records_are_no_events() {
    let shop = open(broker(), "transactions", 2, "").await;
    let worker = shop.start("a");
    for round in 0..6 {
        let end = if round % 3 == 1 { "abort" } else { "commit" };
        ask(broker(), &["transaction", "tx", "transactions", "40", end]).await;
        count(broker(), "transactions", 10, "none").await;
    }
    assert_exact(&shop, broker(), "transactions").await;
    // What is behind an open transaction waits for its end.
    ask(broker(), &["begin", "open", "transactions", "0", "1"]).await;
    count(broker(), "transactions", 80, "none").await;
    let waits = "select count(*) from applied";
    let before: i64 = shop.ask(waits).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let in_between: i64 = shop.ask(waits).await;
    assert!(in_between < before + 80, "those of its partition wait: {before}, {in_between}");
    ask(broker(), &["end", "open", "abort"]).await;
    assert_exact(&shop, broker(), "transactions").await;
    // All is handled, markers included.
    let ends = [
        ask(broker(), &["offsets", "transactions", "0"]).await,
        ask(broker(), &["offsets", "transactions", "1"]).await,
    ];
    let ends: Vec<i64> = ends.iter().map(|ends| ends.split_once(' ').unwrap().1.parse().unwrap()).collect();
    let positions = "select array_agg(position order by part) from projectionist_checkpoints";
    eventually_is(
        PATIENCE,
        "the checkpoints are at the ends",
        |seen: &Vec<i64>| *seen == ends,
        || shop.try_ask::<Vec<i64>>(positions),
    )
    .await
    .unwrap();
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_compacted_topic_is_read_over_the_gaps() {
    let shop = open(broker(), "gaps", 1, "cleanup.policy=compact,segment.ms=100,min.cleanable.dirty.ratio=0.01").await;
    let expected = loop {
        count(broker(), "gaps", 200, "lz4").await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        let kept = dump(broker(), "gaps").await;
        let end: usize = ask(broker(), &["offsets", "gaps", "0"]).await.split_once(' ').unwrap().1.parse().unwrap();
        let records: usize = kept.values().map(Vec::len).sum();
        if records < end / 2 {
            break end;
        }
        assert!(end < 20_000, "the broker compacts nothing");
    };
    let worker = shop.start("a");
    let at = "select position from projectionist_checkpoints";
    eventually_is(
        PATIENCE,
        "the end is reached",
        |seen| *seen == i64::try_from(expected).unwrap(),
        || shop.try_ask::<i64>(at),
    )
    .await
    .unwrap();
    // The newest of each key is never removed.
    assert_eq!(shop.ask::<i64>("select count(distinct stream) from applied").await, 40);
    assert_eq!(shop.ask::<i64>("select count(*) - count(distinct position) from applied").await, 0);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_that_are_added_are_taken_up_and_read_from_their_first_record() {
    let mut shop = open(broker(), "grows", 2, "").await;
    ask(broker(), &["create", "grows-too", "1", ""]).await;
    input(&mut shop).topics.push("grows-too".to_owned());
    let (a, b) = (shop.start("a"), shop.start("b"));
    count(broker(), "grows", 100, "none").await;
    shop.applied(100).await;
    ask(broker(), &["partitions", "grows", "4"]).await;
    count(broker(), "grows", 400, "none").await;
    count(broker(), "grows-too", 100, "none").await;
    shop.applied(600).await;
    shop.shared(&[3, 2]).await;
    // Each keeps the number that it got first.
    let parts: Vec<String> = shop.ask("select array_agg(part order by shard) from projectionist_checkpoints").await;
    assert_eq!(parts, ["grows-0", "grows-1", "grows-too-0", "grows-2", "grows-3"]);
    a.stop().await;
    b.stop().await;
    // A topic that is no longer named is not forgotten in silence.
    input(&mut shop).topics.pop();
    let refused = shop.start("c").ended().await.to_string();
    assert!(refused.contains("has a checkpoint for grows-too-0"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_was_created_again_is_refused_and_not_continued() {
    let shop = open(broker(), "again", 1, "").await;
    count(broker(), "again", 30, "none").await;
    let worker = shop.start("a");
    shop.applied(30).await;
    ask(broker(), &["delete", "again"]).await;
    worker.says("503").await;
    ask(broker(), &["create", "again", "1", ""]).await;
    count(broker(), "again", 50, "none").await;
    let refused = worker.ended().await.to_string();
    assert!(refused.contains("again-0 was deleted and created again"), "{refused}");
    assert_eq!(shop.ask::<i64>("select count(*) from applied").await, 30);
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_restart_of_the_broker_it_goes_on_by_itself() {
    static OWN: OnceLock<Brokers> = OnceLock::new();
    let own = OWN.get_or_init(|| Brokers::on_loopback(1).unwrap());
    let shop = open(own, "restarts", 3, "").await;
    let worker = shop.start("a");
    count(own, "restarts", 2_000, "none").await;
    own.kill(1).unwrap();
    worker.says("503").await;
    own.start(1).unwrap();
    worker.says("200 OK").await;
    count(own, "restarts", 500, "zstd").await;
    assert_exact(&shop, own, "restarts").await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_hangs_or_is_down_holds_up_only_what_it_leads() {
    static OWN: OnceLock<Brokers> = OnceLock::new();
    let own = OWN.get_or_init(|| Brokers::on_loopback(3).unwrap());
    ask(own, &["place", "led_by_each", "1,2,3"]).await;
    // Others take over what a broker led of this one.
    ask(own, &["place", "moves", "1:2,2:3,3:1"]).await;
    let mut shop = Workshop::open("led_by_each", APPLY).await;
    let topics = vec!["led_by_each".to_owned(), "moves".to_owned()];
    shop.config.input = Input::Kafka(KafkaInput { topics, ..KafkaInput::default() });
    shop.source_url = own.addresses();
    let worker = shop.start("a");
    count(own, "led_by_each", 90, "none").await;
    assert_exact(&shop, own, "led_by_each").await;
    let handled = async |stream: &str, events: i64| {
        let count = format!("select count(*) from applied where stream = '{stream}'");
        eventually_is(PATIENCE, stream, |seen| *seen == events, || shop.try_ask::<i64>(&count)).await.unwrap();
    };
    for round in 1..=2 {
        if round == 1 {
            own.halt(3).unwrap();
        } else {
            own.kill(3).unwrap();
        }
        let put = async |topic: &str, partition: &str, key: &str| {
            let [key, value, name] = [key, "{}", "Counted"].map(|text| BASE64_STANDARD.encode(text));
            ask(own, &["put", topic, partition, &key, &value, "type", &name]).await;
        };
        put("led_by_each", "0", "first").await;
        put("led_by_each", "1", "second").await;
        handled("first", round).await;
        handled("second", round).await;
        if round == 2 {
            // Its replica on the first broker leads now.
            put("moves", "2", "moved").await;
            handled("moved", 1).await;
        }
        if round == 1 {
            own.go_on(3).unwrap();
        } else {
            own.start(3).unwrap();
        }
        let back = || async { Ok::<_, anyhow::Error>(ask(own, &["leaders", "led_by_each"]).await) };
        eventually_is(PATIENCE, "the broker leads again", |leaders| leaders == "1/1,2/1,3/1", back).await.unwrap();
        count(own, "led_by_each", 90, "none").await;
        shop.applied(90 + round * (90 + 2) + round / 2).await;
    }
    let mut expected = dump(own, "led_by_each").await;
    expected.extend(dump(own, "moves").await);
    assert_dumped(&shop, expected).await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_that_has_caught_up_does_not_wait_for_one_with_a_backlog() {
    const SLOWLY: &str = "insert into applied (position, stream, n) select :position, :stream, 0 from pg_sleep(0.01)";
    let mut shop = open(broker(), "backlog", 2, "").await;
    shop.sql.handlers = BTreeMap::from([("Counted".to_owned(), SLOWLY.to_owned())]);
    shop.config.batch_size = 20;
    for _ in 0..1_500 {
        put("backlog", 0, "busy", Some(b"{}"), &[("type", "Counted")]).await;
    }
    let worker = shop.start("a");
    let of = async |stream: &str| {
        shop.try_ask::<i64>(&format!("select count(*) from applied where stream = '{stream}'")).await
    };
    eventually_is(PATIENCE, "the backlog is begun", |count| *count > 0, || of("busy")).await.unwrap();
    put("backlog", 1, "quiet", Some(b"{}"), &[("type", "Counted")]).await;
    eventually_is(PATIENCE, "it is handled", |count| *count == 1, || of("quiet")).await.unwrap();
    let left = 1_500 - of("busy").await.unwrap();
    assert!(left > 300, "while the other has {left} left");
    worker.stop().await;
}
