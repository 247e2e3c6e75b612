//! Read models in a real Elasticsearch and OpenSearch: each effect once, however workers and server end.

use std::{collections::BTreeMap, sync::OnceLock};

use projectionist::projector::ElasticsearchOutput;
use serde_json::{Value, json};
use test_cluster::{
    Elasticsearch,
    elasticsearch::Distribution::{self, OpenSearch},
    eventually_is,
};

use crate::{
    killing::killed_and_frozen,
    workshop::{APPLY, PATIENCE, SearchTarget, Workshop},
};

/// One server for all tests that neither stop nor reconfigure it.
pub(crate) fn open_search() -> &'static Elasticsearch {
    static SERVER: OnceLock<Elasticsearch> = OnceLock::new();
    SERVER.get_or_init(|| Elasticsearch::on_loopback(OpenSearch, &[]).unwrap_or_else(|error| panic!("{error:#}")))
}

/// An event store, and a read model in this server whose indices begin with the name and a dash.
pub(crate) async fn open(name: &str, server: &Elasticsearch, handlers: Value) -> Workshop {
    let mut shop = Workshop::open(name, APPLY).await;
    shop.search = Some(SearchTarget {
        url: server.url(),
        authority: server.authority().map(str::to_owned),
        output: output(handlers),
    });
    shop
}

pub(crate) fn output(handlers: Value) -> ElasticsearchOutput {
    ElasticsearchOutput {
        state_index: "projectionist-state".to_owned(),
        handlers: serde_json::from_value(handlers).unwrap(),
        shared: false,
    }
}

/// Sums that show every effect that comes twice or never, what is left after deletes, and each event.
pub(crate) fn counted(name: &str) -> Value {
    let event = json!({"index": {"index": format!("{name}-events"), "id": "{position}", "document": {"stream": "{stream}", "n": "{data.n}"}}});
    let totals = format!("{name}-totals");
    let card = format!("{name}-cards");
    json!({
        "Counted": [
            {"update": {"index": totals, "id": "{stream}", "add": {"events": 1, "of.n": "{data.n}"}, "doc": {"last": "{position}"},
                "upsert": {"events": 1, "cleared": 0, "of": {"n": "{data.n}"}, "last": "{position}"}}},
            {"update": {"index": card, "id": "{stream}", "doc": {"n": "{data.n}"}, "add": {"changes": 1},
                "upsert": {"n": "{data.n}", "since": "{position}", "changes": 1}}},
            event,
        ],
        "Cleared": [
            {"delete": {"index": card, "id": "{stream}"}},
            {"update": {"index": totals, "id": "{stream}", "add": {"cleared": 1}, "doc": {"last": "{position}"},
                "upsert": {"events": 0, "cleared": 1, "of": {"n": 0}, "last": "{position}"}}},
            event,
        ],
    })
}

/// Events of which each eleventh clears what its stream has.
pub(crate) async fn append(shop: &Workshop, count: i64) {
    let statement = "insert into events (stream, type, data)
        select 'stream-' || n % 97, case when n % 11 = 0 then 'Cleared' else 'Counted' end, jsonb_build_object('n', n)
        from generate_series(1, $1::bigint) as n";
    shop.events.client().execute(statement, &[&count]).await.unwrap();
}

/// All documents of an index by their ids.
pub(crate) fn documents(server: &Elasticsearch, index: &str) -> BTreeMap<String, Value> {
    server.run("POST", &format!("/{index}/_refresh"), &Value::Null).unwrap();
    let found = server.run("GET", &format!("/{index}/_search?size=10000"), &Value::Null).unwrap();
    let hits = found["hits"]["hits"].as_array().unwrap();
    hits.iter().map(|hit| (hit["_id"].as_str().unwrap().to_owned(), hit["_source"].clone())).collect()
}

pub(crate) fn count(server: &Elasticsearch, index: &str) -> anyhow::Result<i64> {
    server.run("POST", &format!("/{index}/_refresh"), &Value::Null)?;
    let found = server.run("GET", &format!("/{index}/_count"), &Value::Null)?;
    Ok(found["count"].as_i64().unwrap_or(-1))
}

/// What `counted` makes of the events, written down here once more.
async fn expected(shop: &Workshop) -> (BTreeMap<String, Value>, BTreeMap<String, Value>, i64) {
    let query = "select stream, type, position, (data->>'n')::bigint from events order by position";
    let rows = shop.events.client().query(query, &[]).await.unwrap();
    let (mut totals, mut cards) = (BTreeMap::new(), BTreeMap::new());
    for row in &rows {
        let (stream, kind, position, n): (String, String, i64, i64) = (row.get(0), row.get(1), row.get(2), row.get(3));
        let total = totals.entry(stream.clone()).or_insert((0, 0, 0, 0));
        total.3 = position;
        if kind == "Cleared" {
            total.1 += 1;
            cards.remove(&stream);
        } else {
            (total.0, total.2) = (total.0 + 1, total.2 + n);
            let card = cards.entry(stream).or_insert((n, position, 0));
            (card.0, card.2) = (n, card.2 + 1);
        }
    }
    let totals = totals.into_iter().map(|(stream, (events, cleared, n, last))| {
        (stream, json!({"events": events, "cleared": cleared, "of": {"n": n}, "last": last}))
    });
    let cards = cards
        .into_iter()
        .map(|(stream, (n, since, changes))| (stream, json!({"n": n, "since": since, "changes": changes})));
    (totals.collect(), cards.collect(), i64::try_from(rows.len()).unwrap())
}

pub(crate) async fn assert_exact(shop: &Workshop, server: &Elasticsearch) {
    let name = shop.config.projection.trim_start_matches("shop/");
    let (totals, cards, events) = expected(shop).await;
    let seen = || async { count(server, &format!("{name}-events")) };
    eventually_is(PATIENCE, "the events are handled", |seen| *seen >= events, seen).await.unwrap();
    let done = || async {
        let documents = documents(server, &format!("{name}-totals"));
        let sum = |field: &str| documents.values().filter_map(|total| total[field].as_i64()).sum::<i64>();
        Ok::<_, anyhow::Error>(sum("events") + sum("cleared"))
    };
    eventually_is(PATIENCE, "the sums are written", |seen| *seen >= events, done).await.unwrap();
    assert_eq!(documents(server, &format!("{name}-totals")), totals, "each event once");
    assert_eq!(documents(server, &format!("{name}-cards")), cards, "and in order");
    assert_eq!(count(server, &format!("{name}-events")).unwrap(), events);
}

/// A document of the state; the projection's own where the name is empty.
pub(crate) fn kept(shop: &Workshop, server: &Elasticsearch, name: &str) -> Value {
    let id = format!("{}{name}", shop.config.projection).replace('/', "%2F");
    let (_, answer) = server.call("GET", &format!("/projectionist-state/_doc/{id}"), &Value::Null).unwrap();
    answer["_source"].clone()
}

pub(crate) fn shards(shop: &Workshop, server: &Elasticsearch) -> Vec<Value> {
    (0..shop.shards()).map(|shard| kept(shop, server, &format!(":shard:{shard}"))).collect()
}

/// How many shards each worker owns, most first.
fn holdings(shop: &Workshop, server: &Elasticsearch) -> Vec<usize> {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for shard in shards(shop, server) {
        if let Some(owner) = shard["owner"].as_str() {
            *counts.entry(owner.to_owned()).or_default() += 1;
        }
    }
    let mut counts: Vec<usize> = counts.into_values().collect();
    counts.sort_unstable_by(|a, b| b.cmp(a));
    counts
}

pub(crate) async fn shared(shop: &Workshop, server: &Elasticsearch, expected: &[usize]) {
    let seen = || async { Ok::<_, anyhow::Error>(holdings(shop, server)) };
    eventually_is(PATIENCE, "the shards are shared", |seen| seen == expected, seen).await.unwrap();
}

/// The indices of `counted`, of which that with the deleted documents forgets soon what it has deleted.
pub(crate) fn make_indices(server: &Elasticsearch, name: &str) {
    let forgetful = json!({"settings": {"index": {"gc_deletes": "1s"}}});
    server.run("PUT", &format!("/{name}-cards"), &forgetful).unwrap();
    server.run("PUT", &format!("/{name}-totals"), &json!({})).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn every_effect_comes_once_and_in_order_while_workers_are_killed_and_frozen() {
    let server = open_search();
    let name = "search_killed";
    make_indices(server, name);
    let shop = open(name, server, counted(name)).await;
    let append = async |count| append(&shop, count).await;
    let workers = killed_and_frozen(&shop, append, async |holdings| shared(&shop, server, holdings).await).await;
    assert_exact(&shop, server).await;
    drop(workers);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_elasticsearch_that_is_killed_and_starts_again_has_effects_and_checkpoints_that_agree() {
    let mut server = Elasticsearch::on_loopback(Distribution::Elasticsearch, &[]).unwrap();
    let name = "search_restarts";
    let shop = open(name, &server, counted(name)).await;
    let (first, second) = (shop.start("a"), shop.start("b"));
    let events = format!("{name}-events");
    for _ in 0..3 {
        let before = count(&server, &events).unwrap_or(0);
        append(&shop, 3_000).await;
        let seen = || async { count(&server, &events) };
        eventually_is(PATIENCE, "some are handled", |seen| *seen > before, seen).await.unwrap();
        server.restart().unwrap();
    }
    append(&shop, 100).await;
    assert_exact(&shop, &server).await;
    // One that is stopped while it joins stays on the list until its lease has run out.
    shared(&shop, &server, &[6, 6]).await;
    first.stop().await;
    second.stop().await;
    let head: i64 = shop.events.head().await.unwrap();
    let shards = shards(&shop, &server);
    assert!(shards.iter().any(|shard| shard["position"] == head), "{shards:?}");
    assert!(shards.iter().all(|shard| shard["owner"].is_null()), "all shards were given back: {shards:?}");
    assert_eq!(kept(&shop, &server, ":workers"), json!({"workers": []}));
}

#[tokio::test(flavor = "multi_thread")]
async fn values_keep_their_types_and_digits_and_whatever_an_event_holds_is_one_value() {
    let server = open_search();
    let handlers = json!({"Counted": [
        {"index": {"index": "search_values-a", "id": "{stream}", "document": {
            "text": "{data.text}", "quoted": "<{data.text}>", "all": "{data}", "position": "{position}", "type": "{type}", "fixed": [1, null, {"a": true}]}}},
        {"update": {"index": "search_values-a", "id": "{stream}", "doc": {"fixed": "{data.list}", "none": "{data.none}"}, "add": {"sum": "{data.amount}"}}},
        {"update": {"index": "search_values-a", "id": "{stream}", "add": {"sum": "{data.amount}"}}},
        {"update": {"index": "search_values-b", "id": "{stream}", "doc": {"a": 1}}},
    ]});
    server.run("PUT", "/search_values-a", &json!({"mappings": {"enabled": false}})).unwrap();
    let shop = open("search_values", server, handlers).await;
    let texts = ["", "a b", "line\r\n{\"index\":{}}\n", "{stream}", "\"quoted\" \\ 'twice'", "ünïcode"];
    for (n, text) in texts.iter().enumerate() {
        let data = json!({"text": text, "list": [n], "none": null});
        let data: Value = data;
        let statement = "insert into events (stream, type, data) values ($1, 'Counted', $2::jsonb || '{\"amount\": 12345678901234567.05}')";
        shop.events.client().execute(statement, &[&format!("s{n}"), &data]).await.unwrap();
    }
    let worker = shop.start("a");
    let seen = || async { count(server, "search_values-a") };
    eventually_is(PATIENCE, "they are handled", |seen| *seen == 6, seen).await.unwrap();
    for (n, text) in texts.iter().enumerate() {
        let (_, found) = server.call("GET", &format!("/search_values-a/_doc/s{n}"), &Value::Null).unwrap();
        let source = &found["_source"];
        assert_eq!((&source["text"], &source["quoted"]), (&json!(text), &json!(format!("<{text}>"))));
        assert_eq!((&source["position"], &source["type"]), (&json!(n + 1), &json!("Counted")));
        assert_eq!((&source["fixed"], &source["all"]["list"]), (&json!([n]), &json!([n])));
        assert!(source.get("none").is_some_and(Value::is_null), "{source}");
        assert_eq!(found["_version"], json!(n + 1), "the position is the version");
    }
    let (_, raw) = server.text("GET", "/search_values-a/_doc/s1", "").unwrap();
    assert!(raw.contains("24691357802469134.10"), "{raw}");
    let (status, _) = server.call("GET", "/search_values-b/_doc/s0", &Value::Null).unwrap();
    assert_eq!(status, 404, "an update of what is not there writes nothing");
    worker.stop().await;
}
