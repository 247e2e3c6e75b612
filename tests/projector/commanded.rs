//! The events of an EventStore of Elixir as input: those of `$all`, in the order of their numbers, whichever serializer of JSON wrote them.

use std::time::Duration;

use serde_json::json;
use test_cluster::{always_is, eventually_is};

use crate::{
    event_stores::{COMMANDED, commanded_appended},
    stores::{each_once_through_a_kill, input},
    workshop::{APPLY, PATIENCE, Workshop, server},
};

/// The events that are meant, as assertions read them.
const EVENTS: &str = "create view events as
     select n.stream_version as position, s.stream_uuid as stream, convert_from(e.data, 'UTF8')::jsonb as data
     from store.stream_events n join store.events e using (event_id) join store.streams s on s.stream_id = n.original_stream_id
     where n.stream_id = 0 and e.event_type = 'Elixir.Shop.Counted'";
/// The type of those: a module of Elixir.
pub(crate) const MODULE: &str = "Elixir.Shop.Counted";

/// Lets the events be those of an event store.
pub(crate) async fn in_event_store(shop: &mut Workshop) {
    *shop.table() = input(&json!({"commanded": {"schema": "store"}}));
    let tables = format!(
        "drop table events; create schema store; set search_path to store; {COMMANDED}; reset search_path; {EVENTS}"
    );
    shop.events.client().batch_execute(&tables).await.unwrap();
    let handlers = std::mem::take(&mut shop.sql.handlers);
    shop.sql.handlers = handlers.into_values().map(|handler| (MODULE.to_owned(), handler)).collect();
}

pub(crate) fn appended(stream: &str, events: i64, type_: &str, data: &str) -> String {
    commanded_appended("store", stream, events, type_, data, "clock_timestamp()")
}

pub(crate) const BODY: &str = "convert_to(json_build_object('n', n)::text, 'UTF8')";

/// Appends so many events that are meant to forty streams, from several sessions at a time, and as many of another type.
async fn append(shop: &Workshop, database: &str, count: i64) {
    assert_eq!(count % 100, 0);
    let writers = (0..4).map(|writer| async move {
        let client = server().connect(database).await.unwrap();
        for round in 0..count / 100 {
            let stream = format!("cart-{}", (writer * 10 + round) % 40);
            let both = [appended(&stream, 25, MODULE, BODY), appended(&stream, 25, "Elixir.Shop.Seen", BODY)];
            client.batch_execute(&format!("begin; {}; commit", both.join("; "))).await.unwrap();
        }
    });
    futures::future::join_all(writers).await;
    // A link to an event is another number of the same event, and none of `$all`.
    let link = "insert into store.streams (stream_uuid) values ('links') on conflict do nothing;
         insert into store.stream_events
         select n.event_id, s.stream_id, (select count(*) from store.stream_events l where l.stream_id = s.stream_id) + 1, n.original_stream_id, n.original_stream_version
         from store.stream_events n, store.streams s where s.stream_uuid = 'links' and n.stream_id = 0 order by n.stream_version desc limit 1";
    shop.events.client().batch_execute(link).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn events_of_an_event_store_of_elixir_are_handled_once_and_no_links_to_them() {
    let mut shop = Workshop::open("commanded", APPLY).await;
    in_event_store(&mut shop).await;
    let append = async |count| append(&shop, "commanded_events", count).await;
    each_once_through_a_kill(&shop, append, "select sum(position)::bigint from events").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_append_and_deleted_streams_hold_nothing_back_and_nothing_is_passed_over() {
    let mut shop = Workshop::open("commanded_open", APPLY).await;
    in_event_store(&mut shop).await;
    let client = shop.events.client();
    client.batch_execute(&appended("cart-1", 3, MODULE, BODY)).await.unwrap();
    let worker = shop.start("a");
    shop.assert_exact(3).await;
    // The numbers 4 and 5 are drawn, and the next append waits for the row with the last number.
    let slow = server().connect("commanded_open_events").await.unwrap();
    slow.batch_execute(&format!("begin; {}", appended("cart-2", 2, MODULE, BODY))).await.unwrap();
    let other = server().connect("commanded_open_events").await.unwrap();
    let waits = tokio::spawn(async move { other.batch_execute(&appended("cart-3", 2, MODULE, BODY)).await });
    let count = || shop.try_ask::<i64>("select count(*) from applied");
    always_is(Duration::from_secs(2), "neither is there", |count| *count == 3, count).await.unwrap();
    slow.batch_execute("commit").await.unwrap();
    waits.await.unwrap().unwrap();
    shop.assert_exact(7).await;
    // The last event is deleted for good before a worker reads it: the row of `$all` keeps its number.
    let delete = "create temporary table gone as select event_id from store.stream_events n join store.streams s using (stream_id) where s.stream_uuid = 'cart-4';
         delete from store.stream_events where event_id in (select event_id from gone);
         delete from store.events where event_id in (select event_id from gone);
         delete from store.streams where stream_uuid = 'cart-4'";
    client.batch_execute(&format!("begin; {}; {delete}; commit", appended("cart-4", 2, MODULE, BODY))).await.unwrap();
    let reached = || shop.try_ask::<i64>("select min(position) from projectionist_checkpoints");
    eventually_is(PATIENCE, "all shards are at the end", |at| *at == 9, reached).await.unwrap();
    // Events of a stream that was deleted softly stay in `$all`.
    let soft = "update store.streams set deleted_at = now() where stream_uuid = 'cart-5'";
    client.batch_execute(&format!("begin; {}; {soft}; commit", appended("cart-5", 1, MODULE, BODY))).await.unwrap();
    shop.assert_exact(8).await;
    worker.says("200 OK").await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_is_no_json_text_holds_its_shard_alone_and_the_serializer_is_named() {
    let mut shop = Workshop::open("commanded_terms", APPLY).await;
    in_event_store(&mut shop).await;
    let client = shop.events.client();
    for statement in [
        appended("cart-1", 1, MODULE, BODY),
        appended("terms", 1, MODULE, r"'\x836a'::bytea"),
        appended("no text", 1, MODULE, r"'\x7bff7d'::bytea"),
        appended("terms", 1, MODULE, BODY),
    ] {
        client.batch_execute(&statement).await.unwrap();
    }
    let shards: Vec<i32> =
        futures::future::join_all(["cart-1", "terms", "no text"].map(|stream| shop.shard(stream))).await;
    assert!(shards[0] != shards[1] && shards[1] != shards[2] && shards[0] != shards[2], "{shards:?}");
    let worker = shop.start("a");
    for (position, words) in [(2, "Erlang term"), (3, "UTF-8")] {
        let told = format!(
            "select count(*) from projectionist_checkpoints where failed_position = {position} and failure like '%{words}%'"
        );
        eventually_is(PATIENCE, "it is written down", |n| *n == 1, || shop.try_ask::<i64>(&told)).await.unwrap();
    }
    client.batch_execute(&appended("cart-1", 1, MODULE, BODY)).await.unwrap();
    shop.applied(2).await;
    let answer = worker.says("cannot be read").await;
    assert!(answer.contains("503") && !answer.contains("7bff7d"), "{answer}");
    let mend = "update store.events set data = '{\"n\": 1}' where event_id in (
         select event_id from store.stream_events where stream_id = 0 and stream_version in (2, 3))";
    client.batch_execute(mend).await.unwrap();
    shop.applied(5).await;
    worker.says("200 OK").await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_in_jsonb_are_read_and_a_schema_without_event_store_is_told() {
    let mut shop = Workshop::open("commanded_jsonb", APPLY).await;
    in_event_store(&mut shop).await;
    let found = shop.table().clone();
    *shop.table() = input(&json!({"commanded": {}}));
    let worker = shop.start("a");
    worker.says("stream_events").await;
    drop(worker);
    *shop.table() = found;
    let client = shop.events.client();
    client.batch_execute("drop view events").await.unwrap();
    let jsonb = "alter table store.events alter column data type jsonb using convert_from(data, 'UTF8')::jsonb";
    client.batch_execute(jsonb).await.unwrap();
    client.batch_execute(&appended("cart-1", 5, MODULE, "jsonb_build_object('n', n)")).await.unwrap();
    let worker = shop.start("b");
    shop.applied(5).await;
    assert_eq!(shop.ask::<i64>("select sum(n)::bigint from applied").await, 15);
    shop.assert_in_order().await;
    worker.stop().await;
}
