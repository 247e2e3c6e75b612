//! What a record is as an event, and what is said of one that is none.

use std::time::Duration;

use projectionist::api::KafkaEvent;
use serde_json::json;
use test_cluster::{always_is, eventually_is};

use crate::{
    kafka::{ask, broker, count, input, open, put},
    workshop::{PATIENCE, Workshop},
};

const TYPED: &[(&str, &str)] = &[("type", "Counted")];

/// What was applied, in the order of partition 0.
async fn rows(shop: &Workshop, count: i64) -> Vec<(i64, Option<String>, Option<i64>)> {
    shop.applied(count).await;
    let rows = shop.store.query("select position, stream, n from applied order by seq", &[]).await.unwrap();
    rows.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn cloud_events_in_both_modes_and_plain_json_are_events_and_the_key_is_the_stream() {
    let mut shop = open(broker(), "cloud", 1, "").await;
    let event = json!({"type": {"field": "kind"}, "data": "payload", "tombstone": "Counted"});
    input(&mut shop).event = serde_json::from_value::<KafkaEvent>(event).unwrap();
    let binary = [
        ("ce_specversion", "1.0"),
        ("ce_id", "1"),
        ("ce_type", "Counted"),
        ("ce_source", "/shop"),
        ("ce_subject", "s"),
    ];
    put("cloud", 0, "a", Some(br#"{"n": 1}"#), &binary).await;
    let structured = json!({"specversion": "1.0", "id": "2", "type": "Counted", "source": "/shop", "subject": "s", "data": {"n": 2}});
    let media = [("content-type", "application/cloudevents+json; charset=UTF-8")];
    put("cloud", 0, "", Some(structured.to_string().as_bytes()), &media).await;
    put("cloud", 0, "c", Some(br#"{"kind": "Counted", "payload": {"n": 3}}"#), &[]).await;
    put("cloud", 0, "c", Some(br#"{"kind": "Unheard"}"#), &[]).await;
    put("cloud", 0, "c", None, &[]).await;
    let worker = shop.start("a");
    let text = |text: &str| Some(text.to_owned());
    let expected = [(0, text("a"), Some(1)), (1, text("s"), Some(2)), (2, text("c"), Some(3)), (4, text("c"), None)];
    assert_eq!(rows(&shop, 4).await, expected);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_is_no_event_holds_its_partition_and_is_named_by_its_offset() {
    let mut shop = open(broker(), "odd", 3, "").await;
    shop.config.max_event_bytes = 2_000;
    for n in 0..3 {
        put("odd", n, "a", Some(br#"{"n": 1}"#), TYPED).await;
    }
    put("odd", 0, "a", Some(b"canary"), TYPED).await;
    put("odd", 1, "a", Some(&[b'x'; 3_000]), TYPED).await;
    for n in 0..3 {
        put("odd", n, "a", Some(br#"{"n": 2}"#), TYPED).await;
    }
    let worker = shop.start_process("a");
    shop.applied(4).await;
    let failures = "select array_agg(part || ' ' || failed_position || ' ' || failure order by part) from projectionist_checkpoints where failure is not null";
    let found = eventually_is(
        PATIENCE,
        "both are told",
        |found: &Vec<String>| found.len() == 2,
        || shop.try_ask::<Vec<String>>(failures),
    )
    .await
    .unwrap();
    for (failure, expected) in found.iter().zip([
        ["odd-0 2 ", "the event at offset 1 of partition 0 of topic odd cannot be read", "no JSON"],
        ["odd-1 2 ", "the event at offset 1 of partition 1 of topic odd cannot be read", "maxEventBytes allows 2000"],
    ]) {
        expected.iter().for_each(|part| assert!(failure.contains(part), "{failure}"));
    }
    let waits = || shop.try_ask::<i64>("select count(*) from applied");
    always_is(Duration::from_secs(2), "they wait", |count| *count == 4, waits).await.unwrap();
    assert!(!worker.output().contains("canary"));
    // A checkpoint that is set by hand beyond it is taken up.
    shop.store
        .batch_execute("update projectionist_checkpoints set position = 2 where part in ('odd-0', 'odd-1')")
        .await
        .unwrap();
    shop.applied(6).await;
    drop(worker);
}

#[tokio::test(flavor = "multi_thread")]
async fn records_that_were_deleted_before_they_were_handled_are_told_and_not_passed_over() {
    let shop = open(broker(), "deleted", 1, "").await;
    // What is gone before the beginning is no loss: it begins with the first that is kept.
    count(broker(), "deleted", 10, "none").await;
    ask(broker(), &["deleterecords", "deleted", "0", "4"]).await;
    let worker = shop.start("a");
    shop.applied(6).await;
    worker.stop().await;
    count(broker(), "deleted", 30, "none").await;
    ask(broker(), &["deleterecords", "deleted", "0", "25"]).await;
    let worker = shop.start("b");
    let said = worker.says("were deleted before they were handled").await;
    for part in
        ["from offset 10 to 24 of partition 0 of topic deleted", "the checkpoint of deleted-0 in the read store to 25"]
    {
        assert!(said.contains(part), "{said}");
    }
    assert_eq!(shop.ask::<i64>("select count(*) from applied").await, 6);
    shop.store.batch_execute("update projectionist_checkpoints set position = 25").await.unwrap();
    shop.applied(21).await;
    worker.says("200 OK").await;
    worker.stop().await;
}
