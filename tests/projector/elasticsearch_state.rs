//! What workers keep in Elasticsearch: its loss, its damage, what it is of, and how the operator reads it.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use projectionist::{
    addresses::AddressRules,
    api::{CheckpointLocation, CheckpointRows, DocumentLocation, DocumentPart},
    lag::{CheckpointState, Position},
    read_stores::{Checkpoint, CheckpointStore, ElasticsearchStore},
};
use serde_json::{Value, json};
use test_cluster::{always_is, eventually_is};
use tokio::time::Instant;

use crate::{
    elasticsearch::{append, assert_exact, counted, documents, kept, open, open_search, output, shards, shared},
    workshop::{PATIENCE, Workshop},
};

fn state_of(shop: &mut Workshop, index: &str) {
    index.clone_into(&mut shop.search.as_mut().unwrap().output.state_index);
}

/// As the operator reads it.
pub(crate) async fn checkpoint(shop: &Workshop) -> anyhow::Result<Checkpoint> {
    let search = shop.search.as_ref().unwrap();
    let loopback = AddressRules::default().allowing(["127.0.0.0/8".parse().unwrap()]);
    let store = ElasticsearchStore::new(search.settings().identity(), Arc::new(loopback));
    let location = CheckpointLocation::Document(DocumentLocation {
        index: search.output.state_index.clone(),
        id: shop.config.projection.clone(),
        part: DocumentPart::Builtin,
        rows: CheckpointRows::Numbered(shop.shards()),
    });
    let store = CheckpointStore::Elasticsearch(Arc::new(store));
    let read = store.read(&BTreeSet::from([location.clone()]), Instant::now() + PATIENCE).await.remove(&location);
    read.unwrap().map_err(|error| anyhow::anyhow!(error.message))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_operator_reads_positions_and_failures_shard_by_shard() {
    let server = open_search();
    let handlers =
        json!({"Counted": [{"index": {"index": "search_read", "id": "{stream}", "document": {"n": "{data.n}"}}}]});
    let mut shop = open("search_read", server, handlers).await;
    state_of(&mut shop, "search_read_state");
    assert_eq!(checkpoint(&shop).await.unwrap().state, CheckpointState::NeverCommitted, "without an index");
    append(&shop, 100).await;
    let bad = shop.events.append("bad", "Counted", &json!({"none": 1})).await.unwrap();
    let worker = shop.start("a");
    worker.says(&format!("position {bad}")).await;
    let read = || checkpoint(&shop);
    let is_told = |read: &Checkpoint| !read.failed.is_empty();
    let found = eventually_is(PATIENCE, "the failure is read", is_told, read).await.unwrap();
    assert!(found.failed.len() == 1 && found.failed[0].position == Some(Position(bad)), "{found:?}");
    assert!(found.failed[0].why.contains("{data.n}"), "{found:?}");
    let CheckpointState::Committed(positions) = found.state else { panic!("{found:?}") };
    assert_eq!(positions.len(), 12);
    assert_eq!(positions[found.failed[0].shard as usize], Position(bad - 1));
    shop.events.client().execute("update events set data = '{\"n\": 1}' where position = $1", &[&bad]).await.unwrap();
    worker.says("200 OK").await;
    let is_done =
        |read: &Checkpoint| read.failed.is_empty() && read.state == CheckpointState::Committed(vec![Position(bad); 12]);
    eventually_is(PATIENCE, "all shards follow the head", is_done, read).await.unwrap();
    worker.stop().await;
    shop.table().shards = 24;
    let unknown = checkpoint(&shop).await.unwrap_err().to_string();
    assert!(unknown.contains("positions of 12 shards") && unknown.contains("says 24"), "{unknown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_that_is_deleted_under_workers_is_told_and_built_again_and_nothing_comes_twice() {
    let server = open_search();
    let mut shop = open("search_emptied", server, counted("search_emptied")).await;
    state_of(&mut shop, "search_emptied_state");
    let workers = [shop.start_process("a"), shop.start_process("b")];
    append(&shop, 500).await;
    assert_exact(&shop, server).await;
    server.run("DELETE", "/search_emptied_state", &Value::Null).unwrap();
    append(&shop, 100).await;
    assert_exact(&shop, server).await;
    // The first request that finds it gone says so, and who makes it again says that the workers begin again. On a busy server one of the two can be missing: the
    // refusal of a request that comes in the middle of the deletion may be about something else, and an answer that is lost is not told at all.
    let said = || async {
        let all = format!("{}{}", workers[0].output(), workers[1].output());
        let warnings = all.lines().filter(|line| line.contains("WARN") || line.contains("ERROR"));
        Ok::<_, anyhow::Error>(warnings.collect::<Vec<_>>().join("\n"))
    };
    let is_told = |said: &String| {
        let gone = said.contains("is gone from") && said.contains("index search_emptied_state");
        gone || said.contains("index_not_found_exception") || said.matches("beginning at the first event").count() >= 2
    };
    eventually_is(PATIENCE, "it is told", is_told, said).await.unwrap();
    // All has been repeated by now, or will be.
    let head: i64 = shop.events.head().await.unwrap();
    let read = || checkpoint(&shop);
    let is_done = |read: &Checkpoint| read.state == CheckpointState::Committed(vec![Position(head); 12]);
    eventually_is(PATIENCE, "all shards follow the head", is_done, read).await.unwrap();
    assert_exact(&shop, server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn positions_that_were_set_back_change_nothing_and_one_that_is_missing_is_never_made_up() {
    let server = open_search();
    let shop = open("search_back", server, counted("search_back")).await;
    append(&shop, 600).await;
    let worker = shop.start("a");
    assert_exact(&shop, server).await;
    worker.stop().await;
    let versions = documents(server, "search_back-events");
    for shard in 0..12 {
        let path = format!("/projectionist-state/_doc/shop%2Fsearch_back:shard:{shard}");
        server.run("PUT", &path, &json!({"position": 17, "fence": 3})).unwrap();
    }
    append(&shop, 60).await;
    let worker = shop.start("b");
    let head: i64 = shop.events.head().await.unwrap();
    let read = || checkpoint(&shop);
    let is_done = |read: &Checkpoint| read.state == CheckpointState::Committed(vec![Position(head); 12]);
    eventually_is(PATIENCE, "all is repeated", is_done, read).await.unwrap();
    assert_exact(&shop, server).await;
    let after = documents(server, "search_back-events");
    assert!(versions.iter().all(|(id, document)| after.get(id) == Some(document)));
    // One is missing while it works, and when a worker starts.
    server.run("DELETE", "/projectionist-state/_doc/shop%2Fsearch_back:shard:7", &Value::Null).unwrap();
    let said = worker.says("is gone from").await;
    assert!(said.contains("503") && said.contains("shop/search_back:shard:7"), "{said}");
    let stays = || async { Ok::<_, anyhow::Error>(kept(&shop, server, ":shard:7")) };
    always_is(Duration::from_secs(2), "no position is made up", |there| there.is_null(), stays).await.unwrap();
    drop(worker);
    let worker = shop.start("c");
    worker.says("is gone from").await;
    server
        .run("PUT", "/projectionist-state/_doc/shop%2Fsearch_back:shard:7", &json!({"position": head, "fence": 9}))
        .unwrap();
    append(&shop, 60).await;
    assert_exact(&shop, server).await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_state_of_another_source_another_number_of_shards_and_handlers_that_are_none_are_refused() {
    let server = open_search();
    let first = open("search_source", server, counted("search_source")).await;
    append(&first, 10).await;
    let worker = first.start("a");
    shared(&first, server, &[12]).await;
    worker.stop().await;
    let header = kept(&first, server, "");
    assert!(header["place"].as_str().unwrap().contains("search_source_events"), "{header}");
    let mut other = open("search_source_other", server, counted("search_source")).await;
    other.config.projection.clone_from(&first.config.projection);
    append(&other, 10).await;
    let message = other.start("b").ended().await.to_string();
    for part in
        ["search_source_events", "search_source_other_events", "POST /projectionist-state/_update/shop%2Fsearch_source"]
    {
        assert!(message.contains(part), "{message}");
    }
    // The same events at another place.
    let remedy = json!({"doc": {"place": null, "server": null}});
    server.run("POST", "/projectionist-state/_update/shop%2Fsearch_source", &remedy).unwrap();
    let worker = other.start("c");
    shared(&other, server, &[12]).await;
    worker.stop().await;
    other.table().shards = 24;
    let message = other.start("d").ended().await.to_string();
    for part in ["shop/search_source", "12 shards", "told to use 24", "index projectionist-state"] {
        assert!(message.contains(part), "{message}");
    }
    assert_eq!(shards(&first, server).len(), 12);
    other.search.as_mut().unwrap().output =
        output(json!({"Counted": [{"delete": {"index": "projectionist-state", "id": "{stream}"}}]}));
    let message = other.start("e").ended().await.to_string();
    assert!(message.contains("Counted") && message.contains("operation 1 writes to projectionist-state"), "{message}");
}
