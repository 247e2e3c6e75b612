//! The messages of a partition in an event store of Emmett as input, in the order of their positions, whatever transactions draw and commit them.

use std::time::Duration;

use serde_json::json;
use test_cluster::always_is;

use crate::{
    event_stores::{EMMETT, emmett_appended},
    stores::{each_once_through_a_kill, input},
    workshop::{APPLY, Workshop, server},
};

/// What a worker asks for where it is missing: Emmett makes no index that begins with the position and is unique.
pub(crate) const INDEX: &str =
    "create unique index on \"store\".\"emt_messages\" (\"global_position\", \"is_archived\", \"partition\")";

/// Lets the events be those of an event store, whose messages as they are meant are the view `events`.
pub(crate) async fn in_event_store(shop: &mut Workshop) {
    *shop.table() = input(&json!({"emmett": {"schema": "store"}}));
    let view = "create view events as select global_position as position, stream_id as stream, message_data as data from store.emt_messages
         where partition = 'emt:default' and not is_archived";
    let tables = format!(
        "drop table events; create schema store; set search_path to store; {EMMETT}; reset search_path; {view}"
    );
    shop.events.client().batch_execute(&tables).await.unwrap();
}

/// `kept` is the values of partition and `is_archived`.
pub(crate) fn appended(stream: &str, messages: i64, kept: &str) -> String {
    emmett_appended("store", stream, messages, kept, "jsonb_build_object('n', n)")
}

pub(crate) const MEANT: &str = "'emt:default', false";

#[tokio::test(flavor = "multi_thread")]
async fn messages_of_a_partition_are_handled_once_but_neither_archived_ones_nor_those_of_other_partitions() {
    let mut shop = Workshop::open("emmett", APPLY).await;
    in_event_store(&mut shop).await;
    shop.events.client().batch_execute(INDEX).await.unwrap();
    // Several sessions, each with streams of its own, so that positions are committed out of order.
    let append = async |count: i64| {
        assert_eq!(count % 100, 0);
        let writers = (0..4).map(|writer| async move {
            let client = server().connect("emmett_events").await.unwrap();
            for round in 0..count / 100 {
                let stream = format!("cart-{}", writer * 10 + round % 10);
                let all = [
                    appended(&format!("other-{writer}"), 2, "'other', false"),
                    appended(&stream, 10, MEANT),
                    appended(&format!("archived-{writer}"), 2, "'emt:default', true"),
                    appended(&stream, 15, MEANT),
                ];
                client.batch_execute(&format!("begin; {}; commit", all.join("; "))).await.unwrap();
            }
        });
        futures::future::join_all(writers).await;
    };
    each_once_through_a_kill(&shop, append, "select sum(position)::bigint from events").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_commits_late_is_waited_for_and_handled_in_the_order_of_its_stream() {
    let mut shop = Workshop::open("emmett_late", APPLY).await;
    in_event_store(&mut shop).await;
    let client = shop.events.client();
    client.batch_execute(&appended("cart-1", 1, MEANT)).await.unwrap();
    let worker = shop.start("a");
    worker.says(INDEX).await;
    client.batch_execute(INDEX).await.unwrap();
    shop.assert_exact(1).await;
    let slow = server().connect("emmett_late_events").await.unwrap();
    slow.batch_execute(&format!("begin; {}", appended("cart-2", 1, MEANT))).await.unwrap();
    client.batch_execute(&appended("cart-1", 1, MEANT)).await.unwrap();
    let count = || shop.try_ask::<i64>("select count(*) from applied");
    always_is(Duration::from_secs(2), "the later message waits", |count| *count == 1, count).await.unwrap();
    slow.batch_execute("commit").await.unwrap();
    shop.assert_exact(3).await;
    // A transaction that writes no message holds nothing back, as it does for Emmett's own consumers.
    slow.batch_execute("begin; select pg_current_xact_id()").await.unwrap();
    client.batch_execute(&appended("cart-1", 1, MEANT)).await.unwrap();
    shop.assert_exact(4).await;
    // It is older than the one that has written the message before in this stream: transactions come in another order than the stream.
    slow.batch_execute(&format!("{}; commit", appended("cart-1", 1, MEANT))).await.unwrap();
    shop.assert_exact(5).await;
    // A position that is never used does not stop it for good.
    slow.batch_execute(&format!("begin; {}; rollback", appended("cart-3", 3, MEANT))).await.unwrap();
    client.batch_execute(&appended("cart-3", 1, MEANT)).await.unwrap();
    shop.assert_exact(6).await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_that_are_archived_before_they_are_read_are_left_out() {
    let mut shop = Workshop::open("emmett_archived", APPLY).await;
    in_event_store(&mut shop).await;
    let client = shop.events.client();
    client.batch_execute(INDEX).await.unwrap();
    client.batch_execute(&appended("cart-1", 4, MEANT)).await.unwrap();
    let archive = "update store.emt_messages set is_archived = true where global_position > 2";
    client.batch_execute(archive).await.unwrap();
    let worker = shop.start("a");
    shop.assert_exact(2).await;
    client.batch_execute(&appended("cart-2", 1, MEANT)).await.unwrap();
    shop.assert_exact(3).await;
    assert_eq!(shop.ask::<i64>("select max(position) from applied").await, 5);
    worker.stop().await;
}
