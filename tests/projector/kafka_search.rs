//! Events of a real Kafka in documents of a real OpenSearch.

use std::collections::BTreeMap;

use projectionist::projector::{Input, KafkaInput};
use serde_json::{Value, json};
use test_cluster::eventually_is;

use crate::{
    elasticsearch::{documents, open as open_documents, open_search},
    kafka::{ask, broker, count, dump},
    workshop::PATIENCE,
};

#[tokio::test(flavor = "multi_thread")]
async fn every_event_changes_its_document_once_and_partitions_that_are_added_are_refused() {
    let (server, name) = (open_search(), "kafka_search");
    ask(broker(), &["create", name, "4", ""]).await;
    server.run("PUT", "/kafka_search-totals", &json!({})).unwrap();
    let totals = json!({"update": {"index": "kafka_search-totals", "id": "{stream}", "add": {"events": 1}, "doc": {"last": "{position}"},
        "upsert": {"events": 1, "last": "{position}"}}});
    let mut shop = open_documents(name, server, json!({"Counted": [totals]})).await;
    shop.config.input = Input::Kafka(KafkaInput { topics: vec![name.to_owned()], ..KafkaInput::default() });
    shop.source_url = broker().addresses();
    let worker = shop.start("a");
    count(broker(), name, 400, "none").await;
    let of = |offsets: Vec<i64>| json!({"events": offsets.len(), "last": offsets.last()});
    let expected: BTreeMap<String, Value> =
        dump(broker(), name).await.into_iter().map(|(stream, offsets)| (stream, of(offsets))).collect();
    let events = |documents: &BTreeMap<String, Value>| {
        documents.values().filter_map(|document| document["events"].as_i64()).sum::<i64>()
    };
    let seen = || async { Ok::<_, anyhow::Error>(events(&documents(server, "kafka_search-totals"))) };
    eventually_is(PATIENCE, "the events are handled", |seen| *seen >= 400, seen).await.unwrap();
    assert_eq!(documents(server, "kafka_search-totals"), expected, "each once, and the last last");
    ask(broker(), &["partitions", name, "5"]).await;
    let refused = worker.ended().await.to_string();
    assert!(refused.contains("kafka_search-4 was added to the source"), "{refused}");
}
