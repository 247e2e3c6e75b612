//! Queues into a real OpenSearch: each document is as its highest version says, in whatever order messages come, and however often.

use std::{collections::BTreeSet, sync::Arc};

use projectionist::{
    addresses::AddressRules,
    api::{CheckpointLocation, CheckpointRows, DocumentLocation, DocumentPart},
    read_stores::{CheckpointStore, ElasticsearchStore},
};
use serde_json::{Value, json};
use test_cluster::{Elasticsearch, Redis, eventually, eventually_is};
use tokio::time::Instant;

use crate::{
    elasticsearch::{open_search, output},
    queues,
    queues_into_redis_kept::delivered_again,
    workshop::{PATIENCE, SearchTarget, Workshop},
};

/// Workers that read a stream of this Redis.
async fn open(redis: &Redis, server: &Elasticsearch, name: &str, handlers: Value) -> Workshop {
    let mut shop = queues::open(redis, name, "", false).await;
    let mut output = output(handlers);
    output.state_index = format!("{name}_state");
    shop.search = Some(SearchTarget { url: server.url(), authority: server.authority().map(str::to_owned), output });
    shop
}

/// What the operator reads of messages that could not be handled.
async fn failures(shop: &Workshop) -> anyhow::Result<Vec<String>> {
    let search = shop.search.as_ref().unwrap();
    let loopback = AddressRules::default().allowing(["127.0.0.0/8".parse().unwrap()]);
    let store = ElasticsearchStore::new(search.settings().identity(), Arc::new(loopback));
    let location = CheckpointLocation::Document(DocumentLocation {
        index: search.output.state_index.clone(),
        id: format!("{}:failed", shop.config.projection),
        part: DocumentPart::Inbox,
        rows: CheckpointRows::One,
    });
    let store = CheckpointStore::Elasticsearch(Arc::new(store));
    let read = store.read(&BTreeSet::from([location.clone()]), Instant::now() + PATIENCE).await.remove(&location);
    let read = read.unwrap().map_err(|error| anyhow::anyhow!(error.message))?;
    Ok(read.failed.into_iter().map(|event| event.why).collect())
}

/// The documents of an index as they are, each with its id, version and the number of the operation that wrote it.
fn written(server: &Elasticsearch, index: &str) -> anyhow::Result<BTreeSet<(String, i64, i64, i64)>> {
    server.run("POST", &format!("/{index}/_refresh"), &Value::Null)?;
    let found = server.run(
        "GET",
        &format!("/{index}/_search?size=1000&version=true&seq_no_primary_term=true"),
        &Value::Null,
    )?;
    let hits = found["hits"]["hits"].as_array().cloned().unwrap_or_default();
    let number = |value: &Value| value.as_i64().unwrap_or(-1);
    let one = |hit: &Value| {
        let id = hit["_id"].as_str().unwrap_or_default().to_owned();
        (id, number(&hit["_source"]["n"]), number(&hit["_version"]), number(&hit["_seq_no"]))
    };
    Ok(hits.iter().map(one).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn each_document_is_as_its_highest_version_says_whatever_comes_again() {
    let (redis, server, name) = (Redis::on_loopback().unwrap(), open_search(), "queue_search");
    let card =
        json!({"index": {"index": name, "id": "{stream}", "version": "{data.n}", "document": {"n": "{data.n}"}}});
    let gone = json!({"delete": {"index": name, "id": "{stream}", "version": "{data.version}"}});
    let shop = open(&redis, server, name, json!({"Counted": [card], "Cleared": [gone]})).await;
    let workers = [shop.start("a"), shop.start("b")];
    queues::append(&redis, name, 0..2_000);
    queues::acknowledged(&redis, name).await;
    let is_complete = || async {
        let found: BTreeSet<(String, i64, i64)> =
            written(server, name)?.into_iter().map(|(id, n, version, _)| (id, n, version)).collect();
        let expected = (0..40).map(|stream| (format!("o-{stream}"), 1_960 + stream, 1_960 + stream)).collect();
        anyhow::Ok(found == expected)
    };
    eventually(PATIENCE, "each is as its last message says", is_complete).await.unwrap();
    // All of them once more, and an older delete: nothing is written.
    let before = written(server, name).unwrap();
    redis.run(&format!("XADD {name} * type Cleared stream o-7 data {{\"version\":1966}}")).unwrap();
    delivered_again(&redis, name).await;
    assert_eq!(written(server, name).unwrap(), before);
    redis.run(&format!("XADD {name} * type Cleared stream o-7 data {{\"version\":1968}}")).unwrap();
    let is_deleted = || async { anyhow::Ok(written(server, name)?.len() == 39) };
    eventually(PATIENCE, "a newer one deletes", is_deleted).await.unwrap();
    for worker in workers {
        worker.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_whose_document_is_refused_stays_and_is_told_while_the_others_go_on() {
    let (redis, server, name) = (Redis::on_loopback().unwrap(), open_search(), "queue_search_poison");
    let card = json!({"index": {
        "index": format!("{name}-{{data.kind}}"), "id": "{data.n}", "version": "{data.n}", "document": {"n": "{data.n}"},
    }});
    let mut shop = open(&redis, server, name, json!({"Counted": [card]})).await;
    shop.config.batch_size = 10;
    assert_eq!(failures(&shop).await.unwrap(), Vec::<String>::new(), "without an index");
    server.run("PUT", &format!("/{name}-strict"), &json!({"mappings": {"dynamic": "strict"}})).unwrap();
    let append = |n: &str, kind: &str| {
        redis.run(&format!("XADD {name} * type Counted data {{\"n\":{n},\"kind\":\"{kind}\"}}")).unwrap();
    };
    append("1", "good");
    append("2", "strict");
    append("\"canary\"", "good");
    (3..30).for_each(|n| append(&n.to_string(), "good"));
    let worker = shop.start("a");
    let good = || async { anyhow::Ok(written(server, &format!("{name}-good")).map_or(0, |all| all.len())) };
    eventually_is(PATIENCE, "the others are handled", |count| *count == 28, good).await.unwrap();
    let both = |why: &Vec<String>| why.len() == 2;
    let why = eventually_is(PATIENCE, "both are told", both, || failures(&shop)).await.unwrap();
    for words in ["strict_dynamic_mapping_exception", "its version is no whole number"] {
        assert!(why.iter().any(|why| why.contains(words)), "{words}: {why:?}");
    }
    assert!(why.iter().all(|why| !why.contains("canary")), "{why:?}");
    assert_eq!(queues::pending(&redis, name), 2);
    // Once it can be handled, it is; nothing is told of it any more.
    let mapping = json!({"properties": {"n": {"type": "long"}}});
    server.run("PUT", &format!("/{name}-strict/_mapping"), &mapping).unwrap();
    let one = |why: &Vec<String>| why.len() == 1;
    eventually_is(PATIENCE, "one is left", one, || failures(&shop)).await.unwrap();
    assert_eq!(written(server, &format!("{name}-strict")).unwrap().len(), 1);
    worker.stop().await;
}
