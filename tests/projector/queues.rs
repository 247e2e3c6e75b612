//! Streams in a real Redis that a group reads: each effect once, however workers and servers end, and whatever is delivered twice.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use projectionist::{
    addresses::AddressRules,
    api::{CheckpointLocation, HumanDuration, InboxLocation, StreamGroup},
    clients::postgres::{ConnectionSettings, Database},
    projector::{Input, QueueInput, QueueKind, RedisStreams},
    read_stores::CheckpointStore,
};
use test_cluster::{Redis, eventually, eventually_is, redis::Answer};
use tokio::time::Instant;

use crate::{
    killing::{SLOWLY, keeps_the_order_through_a_kill},
    redis::number,
    workshop::{PATIENCE, Workshop},
};

/// Writes down what was handled, and in which order; the position is the number that the event was given when it was appended.
pub(crate) const APPLY: &str =
    "insert into applied (position, stream, n) values ((:data->>'n')::bigint, :stream, (:data->>'n')::bigint)";
const GROUP: &str = "list";

/// Workers that read this stream of the server.
pub(crate) async fn open(redis: &Redis, name: &str, handler: &str, alone: bool) -> Workshop {
    let mut shop = Workshop::open(name, handler).await;
    let streams = vec![StreamGroup { key: name.to_owned(), group: GROUP.to_owned() }];
    shop.config.input = Input::Queue(QueueInput {
        queue: QueueKind::Redis(RedisStreams { streams, ..RedisStreams::default() }),
        keep_for: HumanDuration(Duration::from_secs(3_600)),
        alone,
    });
    shop.source_url = redis.url();
    redis.run(&format!("XGROUP CREATE {name} {GROUP} 0 MKSTREAM")).unwrap();
    shop
}

/// Appends events with these numbers, of forty streams.
pub(crate) fn append(redis: &Redis, key: &str, numbers: std::ops::Range<i64>) {
    let entries: Vec<[String; 9]> = numbers
        .map(|n| {
            let (stream, data) = (format!("o-{}", n % 40), format!("{{\"n\": {n}}}"));
            ["XADD", key, "*", "type", "Counted", "stream", &stream, "data", &data].map(str::to_owned)
        })
        .collect();
    let commands: Vec<Vec<&str>> = entries.iter().map(|words| words.iter().map(String::as_str).collect()).collect();
    let commands: Vec<&[&str]> = commands.iter().map(Vec::as_slice).collect();
    redis.run_all(&commands).unwrap();
}

/// What the group has been given and not acknowledged.
pub(crate) fn pending(redis: &Redis, key: &str) -> i64 {
    try_pending(redis, key).unwrap()
}

/// The same, while the server may be away.
pub(crate) fn try_pending(redis: &Redis, key: &str) -> anyhow::Result<i64> {
    let Answer::Array(groups) = redis.run(&format!("XINFO GROUPS {key}"))? else { panic!("no groups") };
    let Answer::Array(fields) = &groups[0] else { panic!("no group") };
    let at = fields.iter().position(|field| *field == Answer::Text("pending".to_owned())).unwrap();
    Ok(number(&fields[at + 1]))
}

/// What the operator reads of messages that could not be handled.
pub(crate) async fn failures(shop: &Workshop) -> anyhow::Result<Vec<String>> {
    let loopback = AddressRules::default().allowing(["127.0.0.0/8".parse().unwrap()]);
    let identity = ConnectionSettings::parse(&shop.store_url).unwrap().identity();
    let store = CheckpointStore::Postgres(Arc::new(Database::new(identity, Arc::new(loopback))));
    let (table, projection) = ("projectionist_inbox".to_owned(), shop.config.projection.clone());
    let location = CheckpointLocation::Inbox(InboxLocation { table, projection });
    let read = store.read(&BTreeSet::from([location.clone()]), Instant::now() + PATIENCE).await.remove(&location);
    let read = read.unwrap().map_err(|error| anyhow::anyhow!(error.message))?;
    Ok(read.failed.into_iter().map(|event| event.why).collect())
}

/// Waits until nothing is left unacknowledged.
pub(crate) async fn acknowledged(redis: &Redis, key: &str) {
    eventually(PATIENCE, "all is acknowledged", || async { Ok::<_, anyhow::Error>(pending(redis, key) == 0) })
        .await
        .unwrap();
}

/// Each number is there once.
pub(crate) async fn assert_each_once(shop: &Workshop, events: i64) {
    shop.applied(events).await;
    assert_eq!(shop.ask::<i64>("select count(distinct position) from applied").await, events);
    assert_eq!(shop.ask::<i64>("select sum(n)::bigint from applied").await, events * (events - 1) / 2);
}

/// A handler that wants a position, which messages do not have, ends the worker.
pub(crate) async fn assert_positions_are_refused(shop: &mut Workshop) {
    shop.sql.handlers =
        BTreeMap::from([("Counted".to_owned(), "insert into applied (position) values (:position)".to_owned())]);
    let refused = shop.start("a").ended().await.to_string();
    assert!(refused.contains("messages of a queue have none"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_that_is_delivered_again_changes_nothing_and_is_acknowledged() {
    let redis = Redis::on_loopback().unwrap();
    let shop = open(&redis, "queue_again", APPLY, false).await;
    let worker = shop.start("a");
    append(&redis, "queue_again", 0..300);
    assert_each_once(&shop, 300).await;
    acknowledged(&redis, "queue_again").await;
    // As a restored server would, it gives all of them once more.
    redis.run(&format!("XGROUP SETID queue_again {GROUP} 0")).unwrap();
    append(&redis, "queue_again", 300..310);
    assert_each_once(&shop, 310).await;
    acknowledged(&redis, "queue_again").await;
    assert_eq!(shop.ask::<i64>("select count(*) from applied").await, 310, "none twice");
    worker.stop().await;
    let consumers = redis.run(&format!("XINFO CONSUMERS queue_again {GROUP}")).unwrap();
    assert!(matches!(&consumers, Answer::Array(all) if all.is_empty()), "{consumers:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_that_cannot_be_handled_stays_and_is_told_while_the_others_go_on() {
    let redis = Redis::on_loopback().unwrap();
    let mut shop = open(&redis, "queue_poison", APPLY, false).await;
    shop.sql.setup = Some(
        "create table if not exists applied (seq bigserial, position bigint, stream text, n bigint constraint unlucky check (n <> 13))"
            .to_owned(),
    );
    assert_eq!(failures(&shop).await.unwrap(), Vec::<String>::new(), "before there is a table");
    redis.run("XADD queue_poison * type Counted data no-json-canary").unwrap();
    redis.run("XADD queue_poison * kind Counted").unwrap();
    redis.run("XADD queue_poison * type Other data no-json").unwrap();
    append(&redis, "queue_poison", 0..50);
    let worker = shop.start("a");
    shop.applied(49).await;
    append(&redis, "queue_poison", 50..60);
    shop.applied(59).await;
    eventually(PATIENCE, "three are left", || async { Ok::<_, anyhow::Error>(pending(&redis, "queue_poison") == 3) })
        .await
        .unwrap();
    let told: Vec<String> =
        eventually_is(PATIENCE, "all are told", |told: &Vec<String>| told.len() == 3, || failures(&shop))
            .await
            .unwrap();
    assert!(told[0].contains("no JSON") && told[0].contains("of stream queue_poison"), "{told:?}");
    assert!(told[1].contains("no field type"), "{told:?}");
    assert!(told[2].contains("unlucky"), "{told:?}");
    assert!(told.iter().all(|why| !why.contains("canary")), "{told:?}");
    // Once it can be handled, it is; nothing is told of it any more.
    shop.store.batch_execute("alter table applied drop constraint unlucky").await.unwrap();
    shop.applied(60).await;
    eventually_is(PATIENCE, "two are left", |told: &Vec<String>| told.len() == 2, || failures(&shop)).await.unwrap();
    assert_eq!(pending(&redis, "queue_poison"), 2);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_alone_keeps_the_order_through_a_kill() {
    let redis = Redis::on_loopback().unwrap();
    let shop = open(&redis, "queue_order", SLOWLY, true).await;
    append(&redis, "queue_order", 0..1_500);
    keeps_the_order_through_a_kill(&shop, 1_500).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_are_forgotten_after_a_while_and_no_sooner() {
    let redis = Redis::on_loopback().unwrap();
    let shop = open(&redis, "queue_pruned", APPLY, false).await;
    let worker = shop.start("a");
    append(&redis, "queue_pruned", 0..50);
    shop.applied(50).await;
    acknowledged(&redis, "queue_pruned").await;
    let age = "update projectionist_inbox set handled_at = now() - interval '61 minutes' where message in
         (select message from projectionist_inbox order by message limit 30)";
    shop.store.execute(age, &[]).await.unwrap();
    let kept =
        || shop.try_ask::<i64>("select count(*) from projectionist_inbox where projection = 'shop/queue_pruned'");
    eventually_is(PATIENCE, "the old ones are forgotten", |kept| *kept == 20, kept).await.unwrap();
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_that_is_missing_and_a_handler_that_asks_for_a_position_are_told() {
    let redis = Redis::on_loopback().unwrap();
    let mut shop = open(&redis, "queue_missing", APPLY, false).await;
    redis.run("DEL queue_missing").unwrap();
    let worker = shop.start("a");
    worker.says("XGROUP CREATE queue_missing list 0 MKSTREAM").await;
    redis.run(&format!("XGROUP CREATE queue_missing {GROUP} 0 MKSTREAM")).unwrap();
    worker.says("200 OK").await;
    worker.stop().await;
    assert_positions_are_refused(&mut shop).await;
}
