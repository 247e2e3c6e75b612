//! Events of KurrentDB, as a fake of its published API holds them: each effect once and in order, however workers and server end.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicI64, Ordering},
    time::Duration,
};

use projectionist::{
    api::{AllFilter, CatchUpSubscription},
    projector::{Input, KurrentDbInput},
};
use serde_json::{Value, json};
use test_cluster::{Redis, eventually_is};

use crate::{
    elasticsearch::{documents, open_search, output},
    killing::killed_and_frozen,
    kurrentdb_server::{
        database::Database,
        server::{Fake, Instead},
    },
    redis,
    workshop::{APPLY, PATIENCE, RedisTarget, SearchTarget, Workshop},
};

/// A read store for what comes of this stream, category or `$all`.
pub(crate) async fn open(fake: &Fake, name: &str, stream: &str, filter: Option<AllFilter>) -> Workshop {
    let mut shop = Workshop::open(name, APPLY).await;
    let subscription = CatchUpSubscription { stream: stream.to_owned(), filter };
    shop.config.input = Input::KurrentDb(KurrentDbInput { subscription, shards: 12 });
    shop.source_url = format!("kurrentdb://shop:hunter2@{}?tls=false", fake.at);
    shop
}

/// Appends so many events of the type Counted to forty streams, and others that are not meant.
pub(crate) fn append(database: &mut Database, count: i64) {
    let now = jiff::Timestamp::now();
    for n in 1..=count {
        let stream = format!("cart-{}", n % 40);
        database.put(&stream, "Counted", json!({"n": n}).to_string().as_bytes(), true, now);
        if n % 3 == 0 {
            database.put(&stream, "Seen", b"no JSON", false, now);
            database.put("$stats", "$statsCollected", b"{}", true, now);
        }
    }
}

/// Each server of a cluster is away for a while when it starts again.
async fn restart(fake: &Fake) {
    fake.instead(Instead::Head(200, vec![("content-type", "application/grpc"), ("grpc-status", "14")]));
    fake.close_connections();
    tokio::time::sleep(Duration::from_millis(300)).await;
    fake.instead(Instead::Answers);
}

/// The read model holds these positions of each stream: each once, and in their order.
pub(crate) async fn assert_applied(shop: &Workshop, expected: BTreeMap<String, Vec<i64>>) {
    let events: usize = expected.values().map(Vec::len).sum();
    assert!(events > 0);
    shop.applied(i64::try_from(events).unwrap()).await;
    let rows =
        shop.store.query("select stream, array_agg(position order by seq) from applied group by stream", &[]).await;
    let found: BTreeMap<String, Vec<i64>> = rows.unwrap().iter().map(|row| (row.get(0), row.get(1))).collect();
    assert_eq!(found, expected, "each once and in order");
}

/// No checkpoint is at a position that no read of `$all` can begin at.
pub(crate) async fn assert_at_events(shop: &Workshop, fake: &Fake) {
    let positions: Vec<i64> = shop.ask("select array_agg(position) from projectionist_checkpoints").await;
    let odd: Vec<&i64> =
        positions.iter().filter(|at| **at >= 0 && !fake.database(|database| database.is_place(**at))).collect();
    assert!(odd.is_empty(), "{odd:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_effect_of_all_comes_once_and_in_order_while_workers_are_killed_and_frozen_and_the_server_restarts() {
    let fake = Fake::start().await;
    let shop = open(&fake, "kurrentdb_all", "$all", None).await;
    let rounds = AtomicI64::new(0);
    let append = async |count: i64| {
        fake.database(|database| append(database, count));
        if rounds.fetch_add(1, Ordering::Relaxed) % 20 == 10 {
            restart(&fake).await;
        }
    };
    let shared = async |holdings: &[usize]| {
        let holdings: Vec<i64> = holdings.iter().map(|count| i64::try_from(*count).unwrap()).collect();
        shop.shared(&holdings).await;
        assert_at_events(&shop, &fake).await;
    };
    let workers = killed_and_frozen(&shop, append, shared).await;
    assert_applied(&shop, fake.database(|database| database.commits("Counted"))).await;
    drop(workers);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_event_of_a_stream_goes_on_behind_the_commands_that_were_done_by_a_worker_that_has_left() {
    let (redis, fake) = (Redis::on_loopback().unwrap(), Fake::start().await);
    let mut shop = open(&fake, "kurrentdb_begun", "order-1", None).await;
    let first = "HINCRBY totals events 1";
    let commands = redis::handlers(&format!("{first} | HSET card:{{stream}} at {{position}}"));
    shop.redis = Some(RedisTarget { url: redis.url(), handlers: commands, shared: false });
    redis.run("SET card:order-1 no-hash").unwrap();
    fake.database(append_elsewhere);
    let worker = shop.start("a");
    worker.says("revision 0 of stream order-1").await;
    worker.stop().await;
    assert_eq!(redis::kept(&shop, &redis, "begun:").len(), 1, "how far it has come is kept");
    shop.redis.as_mut().unwrap().handlers =
        redis::handlers(&format!("{first} | RPUSH applied:{{stream}} {{position}}"));
    let worker = shop.start("b");
    let applied = || async { redis.run("LLEN applied:order-1").map(|length| redis::number(&length)) };
    eventually_is(PATIENCE, "the event is handled", |count| *count == 1, applied).await.unwrap();
    worker.stop().await;
    assert_eq!(redis::number(&redis.run("HGET totals events").unwrap()), 1, "no command runs twice");
}

fn append_elsewhere(database: &mut Database) {
    database.put("order-1", "Counted", b"{\"n\": 1}", true, jiff::Timestamp::now());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_event_of_a_stream_has_revision_0_and_changes_its_document_in_elasticsearch_once() {
    let (server, fake) = (open_search(), Fake::start().await);
    let mut shop = open(&fake, "kurrentdb_search", "order-1", None).await;
    server.run("PUT", "/kurrentdb_search-totals", &json!({})).unwrap();
    let total = json!({"update": {"index": "kurrentdb_search-totals", "id": "{stream}", "add": {"events": 1}, "doc": {"last": "{position}"},
        "upsert": {"events": 1, "last": "{position}"}}});
    let event = json!({"index": {"index": "kurrentdb_search-totals", "id": "event-{position}", "document": {"events": 0, "last": "{position}"}}});
    shop.search = Some(SearchTarget {
        url: server.url(),
        authority: server.authority().map(str::to_owned),
        output: output(json!({"Counted": [total, event]})),
    });
    let seen = || async { Ok::<_, anyhow::Error>(documents(server, "kurrentdb_search-totals")) };
    for round in 1..=3_i64 {
        // Each time another worker, of which the one before is killed.
        let worker = shop.start_process(&format!("killed-{round}"));
        fake.database(append_elsewhere);
        let last = round - 1;
        let done = |documents: &BTreeMap<String, Value>| documents.contains_key(&format!("event-{last}"));
        let found = eventually_is(PATIENCE, "the event is handled", done, seen).await.unwrap();
        assert_eq!(found["order-1"], json!({"events": round, "last": last}));
        drop(worker);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_filter_is_the_servers_and_events_without_a_handler_are_passed_over() {
    let fake = Fake::start().await;
    let filter =
        AllFilter { stream_prefixes: vec!["order-".to_owned()], event_type_prefixes: Vec::new(), system_events: None };
    let shop = open(&fake, "kurrentdb_filter", "$all", Some(filter)).await;
    fake.database(|database| append(database, 300));
    fake.database(append_elsewhere);
    let worker = shop.start("a");
    let expected = || {
        fake.database(|database| {
            BTreeMap::from([("order-1".to_owned(), database.commits("Counted")["order-1"].clone())])
        })
    };
    assert_applied(&shop, expected()).await;
    // Those that are left out are passed as well, so that the projection has caught up.
    fake.database(|database| append(database, 300));
    let end = fake.database(|database| database.put("cart-1", "Seen", b"{}", true, jiff::Timestamp::now()));
    let reached = || shop.try_ask::<i64>("select min(position) from projectionist_checkpoints");
    let end = i64::try_from(end).unwrap();
    eventually_is(PATIENCE, "all shards are at the end", |at| *at == end, reached).await.unwrap();
    fake.database(append_elsewhere);
    assert_applied(&shop, expected()).await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn where_the_server_searches_for_too_long_all_is_read_and_what_is_meant_is_handled() {
    let fake = Fake::start().await;
    let filter =
        AllFilter { event_type_prefixes: vec!["Count".to_owned()], stream_prefixes: Vec::new(), system_events: None };
    let shop = open(&fake, "kurrentdb_sparse", "$all", Some(filter)).await;
    fake.database(|database| {
        for n in 0..30 {
            database.append_sized(&format!("seen-{n}"), "Seen", 500, jiff::Timestamp::now(), 50);
            append_elsewhere(database);
        }
    });
    fake.search_for_ever();
    let worker = shop.start("a");
    assert_applied(&shop, fake.database(|database| database.commits("Counted"))).await;
    worker.stop().await;
    assert_at_events(&shop, &fake).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn large_events_come_in_pages_and_in_their_order() {
    let fake = Fake::start().await;
    let mut shop = open(&fake, "kurrentdb_large", "$all", None).await;
    shop.config.max_event_bytes = 8 << 20;
    let body = json!({"n": 1, "text": "x".repeat(5 << 20)}).to_string();
    fake.database(|database| {
        for n in 0..8 {
            database.put(&format!("cart-{}", n % 2), "Counted", body.as_bytes(), true, jiff::Timestamp::now());
        }
    });
    let worker = shop.start("a");
    assert_applied(&shop, fake.database(|database| database.commits("Counted"))).await;
    worker.stop().await;
    assert_at_events(&shop, &fake).await;
}
