//! Checkpoints in documents of Elasticsearch 8 and OpenSearch 2: what a field can hold, and what is read.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, atomic::Ordering},
    time::Duration,
};

use projectionist::{
    api::{CheckpointLocation, CheckpointRows, DocumentLocation, DocumentPart, Reason},
    clients::elasticsearch::ConnectionSettings,
    lag::{CheckpointState, Position},
    measure::MeasureError,
    read_stores::{Checkpoint, CheckpointStore, ElasticsearchStore},
    store_health::StoreObservation,
};
use serde_json::{Value, json};
use test_cluster::elasticsearch::Distribution::{self, Elasticsearch, OpenSearch};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    time::Instant,
};

use crate::{
    certificates,
    fake::{Says, fake},
    harness::{append, declare, events, sampler_with, search_server},
    sampler::loopback,
};

pub fn search_store(url: &str) -> Arc<ElasticsearchStore> {
    let settings = settings(url);
    let settings = if settings.uses_tls() { settings.with_ca(authority().as_bytes()) } else { settings };
    Arc::new(ElasticsearchStore::new(settings.identity(), loopback()))
}

fn settings(url: &str) -> ConnectionSettings {
    ConnectionSettings::from_keys(|key| (key == "url").then_some(url)).unwrap()
}

/// That signed the certificate of the shared Elasticsearch.
fn authority() -> &'static str {
    search_server(Elasticsearch).authority().unwrap()
}

fn store(url: &str) -> CheckpointStore {
    CheckpointStore::Elasticsearch(search_store(url))
}

fn at(index: &str, id: &str, field: &str, rows: CheckpointRows) -> CheckpointLocation {
    let (index, id, part) = (index.to_owned(), id.to_owned(), DocumentPart::Field(field.to_owned()));
    CheckpointLocation::Document(DocumentLocation { index, id, part, rows })
}

fn plain(index: &str, id: &str, field: &str) -> CheckpointLocation {
    at(index, id, field, CheckpointRows::One)
}

async fn read_within(
    store: &CheckpointStore,
    location: &CheckpointLocation,
    limit: Duration,
) -> Result<Checkpoint, MeasureError> {
    store.read(&BTreeSet::from([location.clone()]), Instant::now() + limit).await.remove(location).unwrap()
}

async fn read(store: &CheckpointStore, location: &CheckpointLocation) -> Result<Checkpoint, MeasureError> {
    read_within(store, location, Duration::from_secs(60)).await
}

fn put(server: Distribution, index: &str, id: &str, document: &Value) {
    search_server(server).run("PUT", &format!("/{index}/_doc/{id}"), document).unwrap();
}

fn committed(positions: &[i64]) -> CheckpointState {
    CheckpointState::Committed(positions.iter().copied().map(Position).collect())
}

async fn states(server: Distribution) {
    let by_shard = || CheckpointRows::Keyed { column: None, shards: None };
    put(
        server,
        "states",
        "orders",
        &json!({"position": 41, "text": "17", "none": null, "deep": {"down": 5}, "shards": {"b": 5, "a": 3, "c": null}}),
    );
    put(
        server,
        "odd",
        "wrong",
        &json!({"fraction": 1.5, "negative": -1, "word": "hunter2", "list": [1], "shards": {"a": "hunter2"}}),
    );
    let store = store(&search_server(server).url());
    for (location, state) in [
        (plain("states", "orders", "position"), committed(&[41])),
        (plain("states", "orders", "text"), committed(&[17])),
        (plain("states", "orders", "deep.down"), committed(&[5])),
        (plain("states", "orders", "none"), CheckpointState::NeverCommitted),
        (plain("states", "unheard", "position"), CheckpointState::NeverCommitted),
        (at("states", "orders", "shards", by_shard()), committed(&[3, 5])),
    ] {
        let found = read(&store, &location).await.unwrap();
        assert_eq!((found.state, found.bound), (state, None), "{location:?}");
    }
    let bound = read(&store, &plain("states", "orders", "shards")).await.unwrap();
    assert!(bound.bound.unwrap().contains("eventTable.shard"));
    for (location, reason, words) in [
        (
            plain("nowhere", "orders", "position"),
            Reason::IndexNotFound,
            "index nowhere, document orders, field position",
        ),
        (plain("states", "orders", "other"), Reason::InvalidAnswer, "no such field"),
        (plain("odd", "wrong", "fraction"), Reason::InvalidAnswer, "no integer"),
        (plain("odd", "wrong", "negative"), Reason::InvalidAnswer, "negative"),
        (plain("odd", "wrong", "word"), Reason::InvalidAnswer, "no integer"),
        (plain("odd", "wrong", "list"), Reason::InvalidAnswer, "no integer"),
        (at("odd", "wrong", "shards", by_shard()), Reason::InvalidAnswer, "shard a"),
    ] {
        let unknown = read(&store, &location).await.expect_err(words);
        assert_eq!(unknown.reason, reason, "{location:?}: {}", unknown.message);
        assert!(unknown.message.contains(words) && !unknown.message.contains("hunter2"), "{}", unknown.message);
        assert!(unknown.message.contains(&search_server(server).place()), "{}", unknown.message);
    }
    // What was just written is read, without a refresh of the index.
    for position in 42..47 {
        put(server, "states", "orders", &json!({ "position": position }));
        assert_eq!(read(&store, &plain("states", "orders", "position")).await.unwrap().state, committed(&[position]));
    }
    let many: BTreeSet<CheckpointLocation> =
        (0..1_500).map(|n| plain("states", &format!("p{n}"), "position")).collect();
    let found = store.read(&many, Instant::now() + Duration::from_secs(60)).await;
    assert!(
        found.len() == 1_500
            && found.values().all(|one| one.as_ref().unwrap().state == CheckpointState::NeverCommitted)
    );
}

#[tokio::test]
async fn a_position_is_read_from_a_field_of_a_document_in_elasticsearch() {
    states(Elasticsearch).await;
}

#[tokio::test]
async fn a_position_is_read_from_a_field_of_a_document_in_opensearch() {
    states(OpenSearch).await;
}

#[tokio::test]
async fn the_role_in_the_documentation_suffices_and_is_needed() {
    put(Elasticsearch, "checkpoints", "orders", &json!({"position": 7}));
    let place = plain("checkpoints", "orders", "position");
    let server = search_server(Elasticsearch);
    let documented = store(&server.url_as("documented"));
    assert_eq!(read(&documented, &place).await.unwrap().state, committed(&[7]));
    let health = documented.health(Instant::now() + Duration::from_secs(60)).await.unwrap();
    assert!(health.missing.is_none() && health.writes.is_some(), "the role is enough for both: {health:?}");
    // What is in it for the figures is not needed for checkpoints.
    assert_eq!(read(&store(&server.url_as("reader")), &place).await.unwrap().state, committed(&[7]));
    for user in ["elsewhere", "monitor"] {
        let refused = read(&store(&server.url_as(user)), &place).await.unwrap_err();
        assert_eq!(refused.reason, Reason::PermissionDenied, "{user}: {}", refused.message);
    }
    for credential in ["reader:hunter3@", "nobody:hunter3@", ""] {
        let refused = read(&store(&server.url_with(credential)), &place).await.unwrap_err();
        assert_eq!(refused.reason, Reason::AuthenticationFailed, "{credential}: {}", refused.message);
        assert!(!refused.message.contains("hunter3"), "{}", refused.message);
    }
}

#[tokio::test]
async fn the_certificate_is_verified_and_what_speaks_no_tls_is_said_to() {
    let server = search_server(Elasticsearch);
    put(Elasticsearch, "encrypted", "orders", &json!({"position": 7}));
    let place = plain("encrypted", "orders", "position");
    let asked = async |settings: ConnectionSettings| {
        let store = ElasticsearchStore::new(settings.identity(), loopback());
        read(&CheckpointStore::Elasticsearch(Arc::new(store)), &place).await
    };
    let url = server.url();
    let right = |url: &str| settings(url).with_ca(authority().as_bytes());
    assert_eq!(asked(right(&url)).await.unwrap().state, committed(&[7]));
    let other = certificates::authority().pem();
    for (what, settings) in [
        ("an authority that signed nothing here", settings(&url).with_ca(other.as_bytes())),
        ("another name", right(&url.replace("localhost", "127.0.0.1"))),
        ("the public authorities", settings(&url)),
        ("an authority that is none", settings(&url).with_ca(b"hello")),
    ] {
        let refused = asked(settings).await.expect_err(what);
        assert_eq!(refused.reason, Reason::TlsFailed, "{what}: {}", refused.message);
        assert!(!refused.message.contains("hunter2"), "{}", refused.message);
    }
    let plain_port = answering("HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n").await;
    let refused = asked(right(&plain_port.replace("http://", "https://"))).await.unwrap_err();
    assert_eq!(refused.reason, Reason::TlsFailed, "{}", refused.message);
    assert!(refused.message.contains("Write http:// where it does not"), "{}", refused.message);
    let refused = asked(settings(&url.replace("https://", "http://"))).await.unwrap_err();
    assert!(refused.message.contains("https://"), "{}", refused.message);
}

#[tokio::test]
async fn a_rotated_password_takes_effect_without_a_restart() {
    let server = search_server(Elasticsearch);
    let (url, client) = events("search_rotation").await;
    append(&client, &["a", "a"]).await;
    put(Elasticsearch, "checkpoints", "rotated", &json!({"position": 1}));
    let mut sampler = sampler_with(&[("events", &url), ("search", &server.url_with("reader:hunter3@"))]);
    sampler.secret("authority", &json!({"ca.crt": authority()}));
    let connection = json!({"secretRef": {"name": "search"}, "caSecretRef": {"name": "authority"}});
    let read_store = json!({"elasticsearch": {"connection": connection}});
    declare(&mut sampler, "rotated", &json!({"readStore": read_store, "checkpoint": {"elasticsearch": {}}}));
    let reached = |store: &StoreObservation| store.current(std::time::Instant::now()).is_ok();
    sampler.wait_unknown("rotated", Reason::AuthenticationFailed).await;
    sampler.wait_store("refused", "rotated", |store| store.newest.is_some() && !reached(store)).await;
    sampler.secret("search", &json!({"url": server.url_as("reader")}));
    sampler.wait_pending("rotated", 1).await;
    sampler.wait_store("reached", "rotated", reached).await;
    // So does another authority: the old one's connections end, however well they work.
    sampler.secret("authority", &json!({"ca.crt": certificates::authority().pem()}));
    sampler.wait_unknown("rotated", Reason::TlsFailed).await;
}

/// A server that knows these API keys and no users, and answers that each document holds the position 1.
async fn with_api_keys(keys: Arc<Mutex<Vec<&'static str>>>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let keys = Arc::clone(&keys);
            tokio::spawn(async move {
                let mut request = vec![0; 64 << 10];
                while let Ok(length @ 1..) = stream.read(&mut request).await {
                    let request = String::from_utf8_lossy(&request[..length]).into_owned();
                    let shows = |key: &&str| request.lines().any(|line| line == format!("authorization: ApiKey {key}"));
                    let (status, body) = match keys.lock().unwrap().iter().any(shows) {
                        true if request.contains("_mget") => {
                            ("200 OK", json!({"docs": [{"found": true, "_source": {"position": 1}}]}))
                        }
                        true => ("200 OK", json!({"nodes": {}})),
                        false => ("401 Unauthorized", json!({"error": {"type": "security_exception"}})),
                    };
                    let body = body.to_string();
                    let head = format!(
                        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}",
                        body.len()
                    );
                    let _ = stream.write_all(format!("{head}\r\n\r\n{body}").as_bytes()).await;
                }
            });
        }
    });
    url
}

#[tokio::test]
async fn an_api_key_counts_before_a_user_and_a_rotated_one_takes_effect_without_a_restart() {
    let (url, client) = events("api_keys").await;
    append(&client, &["a", "a", "a"]).await;
    let keys = Arc::new(Mutex::new(vec!["b2xkOmNhbmFyeQ=="]));
    let there = with_api_keys(Arc::clone(&keys)).await;
    let mut sampler = sampler_with(&[("events", &url)]);
    let secret = |key: &str| json!({"url": there, "apiKey": key, "username": "shop", "password": "canary"});
    sampler.secret("search", &secret("b2xkOmNhbmFyeQ=="));
    let read_store = json!({"elasticsearch": {"connection": {"secretRef": {"name": "search"}}}});
    declare(&mut sampler, "orders", &json!({"readStore": read_store, "checkpoint": {"elasticsearch": {}}}));
    sampler.wait_pending("orders", 2).await;
    *keys.lock().unwrap() = vec!["bmV3OmNhbmFyeQ=="];
    let refused = sampler.wait_unknown("orders", Reason::AuthenticationFailed).await;
    assert!(!refused.message.contains("b2xk"), "{}", refused.message);
    sampler.secret("search", &secret("bmV3OmNhbmFyeQ=="));
    sampler.wait_pending("orders", 2).await;
    let reached = |store: &StoreObservation| store.current(std::time::Instant::now()).is_ok();
    sampler.wait_store("reached", "orders", reached).await;
}

#[tokio::test]
async fn events_are_counted_beyond_a_checkpoint_in_a_document() {
    let (url, client) = events("document_checkpoints").await;
    append(&client, &["a", "a", "b"]).await;
    put(Elasticsearch, "views", "started", &json!({"position": 0}));
    let mut sampler = sampler_with(&[("events", &url), ("search", &search_server(Elasticsearch).url())]);
    sampler.secret("authority", &json!({ "ca.crt": authority() }));
    let connection = json!({ "secretRef": { "name": "search" }, "caSecretRef": { "name": "authority" } });
    let spec = json!({
        "readStore": { "elasticsearch": { "connection": connection } },
        "checkpoint": { "elasticsearch": { "index": "views" } },
    });
    declare(&mut sampler, "orders", &spec);
    sampler.wait_unknown("orders", Reason::NeverCommitted).await;
    put(Elasticsearch, "views", "orders", &json!({"position": 2}));
    sampler.wait_pending("orders", 1).await;
    sampler.secret("search", &json!({ "url": "https://127.0.0.1:1" }));
    // Another address is another server: the old one is asked no more.
    sampler.wait_unknown("orders", Reason::ConnectionRefused).await;
}

/// A server that answers every request with this.
async fn answering(answer: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://u:hunter2@{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut request = [0; 4_096];
                let _ = stream.read(&mut request).await;
                let _ = stream.write_all(answer.as_bytes()).await;
                std::future::pending::<()>().await;
            });
        }
    });
    url
}

#[tokio::test]
async fn whatever_a_server_answers_instead_nothing_is_known_of_the_checkpoint() {
    let json = |status: &str, body: &str| -> &'static str {
        let text = format!(
            "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        Box::leak(text.into_boxed_str())
    };
    for (answer, reason, words) in [
        ("", Reason::TimedOut, "no whole answer in time"),
        ("SSH-2.0-OpenSSH_9.2\r\n", Reason::InvalidAnswer, "is this the URL of Elasticsearch"),
        ("HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>", Reason::InvalidAnswer, "not JSON"),
        (json("200 OK", "{\"docs\":[]}"), Reason::InvalidAnswer, "status 200"),
        (json("200 OK", "{\"docs\":[{}]}"), Reason::InvalidAnswer, "makes no sense"),
        (json("200 OK", "{\"docs\":[{\"found\":true}]}"), Reason::InvalidAnswer, "no such field"),
        (
            json("429 Too Many Requests", "{\"error\":{\"type\":\"es_rejected_execution_exception\"}}"),
            Reason::SourceFailed,
            "_cat/thread_pool",
        ),
        (json("503 Service Unavailable", "{}"), Reason::SourceFailed, "cannot answer now"),
        // As OpenSearch refuses a login, and a proxy in front of a server that is away.
        (
            "HTTP/1.1 401 Unauthorized\r\nContent-Length: 12\r\n\r\nUnauthorized",
            Reason::AuthenticationFailed,
            "API key",
        ),
        ("HTTP/1.1 502 Bad Gateway\r\nContent-Length: 6\r\n\r\n<html>", Reason::SourceFailed, "cannot answer now"),
        (json("302 Found", "{}"), Reason::InvalidAnswer, "not followed"),
    ] {
        let url = answering(answer).await;
        // Short only for the one that never answers.
        let limit = if answer.is_empty() { Duration::from_millis(500) } else { Duration::from_secs(60) };
        let unknown = read_within(&store(&url), &plain("a", "b", "c"), limit).await.expect_err(words);
        assert_eq!(unknown.reason, reason, "{answer}: {}", unknown.message);
        assert!(unknown.message.contains(words) && !unknown.message.contains("hunter2"), "{}", unknown.message);
    }
    // Loopback is asked only where the administrator allows it.
    let guarded = ElasticsearchStore::new(settings("http://127.0.0.1:9200").identity(), Arc::default());
    let guarded = CheckpointStore::Elasticsearch(Arc::new(guarded));
    let refused = read(&guarded, &plain("a", "b", "c")).await.unwrap_err();
    assert_eq!(refused.reason, Reason::AddressRefused, "{}", refused.message);
}

#[tokio::test]
async fn documents_that_are_too_large_spoil_no_other_and_are_read_once_they_are_right() {
    let store = store(&search_server(Elasticsearch).url());
    let places: Vec<_> = (0..40).map(|n| plain("large", &format!("p{n}"), "position")).collect();
    for n in [0, 7, 8, 39] {
        put(Elasticsearch, "large", &format!("p{n}"), &json!({ "position": n }));
    }
    // Neither is indexed: what they hold is only kept.
    let mapping = json!({ "mappings": { "dynamic": false } });
    search_server(Elasticsearch).run("PUT", "/larger", &mapping).unwrap();
    let long = plain("larger", "long", "position");
    let many = plain("larger", "many", "position");
    put(Elasticsearch, "larger", "long", &json!({ "position": "1".repeat(5 << 20) }));
    put(Elasticsearch, "larger", "many", &json!({ "position": vec![0; 60_000] }));
    let all: BTreeSet<CheckpointLocation> = places.iter().chain([&long, &many]).cloned().collect();
    for round in 0..3 {
        let found = store.read(&all, Instant::now() + Duration::from_secs(60)).await;
        for n in [0, 7, 8, 39] {
            let state = &found[&places[n]].as_ref().unwrap_or_else(|error| panic!("{round}: {}", error.message)).state;
            assert_eq!(*state, committed(&[i64::try_from(n).unwrap()]), "{round}");
        }
        assert_eq!(found[&places[1]].as_ref().unwrap().state, CheckpointState::NeverCommitted);
        for (place, words) in [
            (&long, "document long, field position: the answer is larger than 4 MiB"),
            (&many, "document many, field position: the answer is larger than 50000 values"),
        ] {
            let unknown = found[place].as_ref().unwrap_err();
            assert_eq!(unknown.reason, Reason::InvalidAnswer, "{round}: {}", unknown.message);
            assert!(unknown.message.contains(words), "{round}: {}", unknown.message);
        }
    }
    put(Elasticsearch, "larger", "long", &json!({ "position": 5 }));
    put(Elasticsearch, "larger", "many", &json!({ "position": 6 }));
    for last in [false, true] {
        let found = store.read(&all, Instant::now() + Duration::from_secs(60)).await;
        let right = [&long, &many].iter().filter(|place| found[**place].is_ok()).count();
        assert_eq!(right, if last { 2 } else { 1 }, "one of them is asked at each read");
    }
}

#[tokio::test]
async fn answers_without_end_in_drips_cut_off_or_too_large_are_given_up_and_take_a_bounded_amount_of_memory() {
    let head = |rest: &str| format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n{rest}\r\n\r\n").into_bytes();
    let with = |rest: &str, body: &str| [head(rest), body.as_bytes().to_vec()].concat();
    let zeros = format!("{{\"docs\":[{{\"found\":true,\"_source\":{{\"c\":[0{}]}}}}]}}", ",0".repeat(1 << 20));
    let length = |body: &str| format!("Content-Length: {}", body.len());
    let chunk = format!("10000\r\n{}\r\n", "0".repeat(1 << 16));
    for (what, says, reason, words) in [
        ("dripping", Says::Dripping(with(&length(&zeros), &zeros)), Reason::TimedOut, "no whole answer in time"),
        ("hanging in the middle", Says::Once(with(&length(&zeros), "{\"docs\":[")), Reason::TimedOut, "in time"),
        ("cut", Says::AndHangsUp(with(&length(&zeros), "{\"docs\":[")), Reason::SourceFailed, "the connection"),
        (
            "huge, as it says",
            Says::Endless { first: head("Content-Length: 9000000000"), then: vec![b'0'; 1 << 16] },
            Reason::InvalidAnswer,
            "larger than 4 MiB",
        ),
        (
            "headers without end",
            Says::Endless { first: b"HTTP/1.1 200 OK\r\n".to_vec(), then: b"X: y\r\n".repeat(1_000) },
            Reason::InvalidAnswer,
            "headers",
        ),
        (
            "values without number",
            Says::Once(with(&length(&zeros), &zeros)),
            Reason::InvalidAnswer,
            "larger than 50000 values",
        ),
        ("empty", Says::AndHangsUp(head("Content-Length: 0")), Reason::InvalidAnswer, "not JSON"),
    ] {
        let (address, _) = fake(says).await;
        // Short only for those that never come to an end.
        let limit = if reason == Reason::TimedOut { Duration::from_millis(500) } else { Duration::from_secs(60) };
        let url = format!("http://u:hunter2@{address}");
        let unknown = read_within(&store(&url), &plain("a", "b", "c"), limit).await.expect_err(what);
        assert_eq!(unknown.reason, reason, "{what}: {}", unknown.message);
        assert!(unknown.message.contains(words) && !unknown.message.contains("hunter2"), "{what}: {}", unknown.message);
    }
    let endless = Says::Endless { first: head("Transfer-Encoding: chunked"), then: chunk.into_bytes() };
    let (address, sent) = fake(endless).await;
    let unknown = read(&store(&format!("http://{address}")), &plain("a", "b", "c")).await.unwrap_err();
    assert!(unknown.message.contains("larger than 4 MiB"), "{}", unknown.message);
    let sent = sent.load(Ordering::Relaxed);
    assert!(sent < 32 << 20, "what the buffers of the connection hold comes on top: {sent}");
}
