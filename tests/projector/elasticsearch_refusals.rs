//! What Elasticsearch refuses: whose failure it is, what is told of it, and that a server with too much to do is given less.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use serde_json::{Value, json};
use test_cluster::{Elasticsearch, elasticsearch::Distribution, eventually_is};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use crate::{
    dry_run_search::rights_of_a_dry_run,
    elasticsearch::{append, assert_exact, count, counted, documents, kept, open, open_search, output, shards},
    workshop::PATIENCE,
};

const CANARY: &str = "canary-4711";

/// Waits until an index has so many documents.
async fn written(server: &Elasticsearch, index: &str, documents: i64) {
    let seen = || async { count(server, index) };
    eventually_is(PATIENCE, "they are written", |seen| *seen >= documents, seen).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_document_that_is_refused_is_its_events_failure_and_the_other_streams_go_on() {
    let server = open_search();
    let mapping = json!({"mappings": {"properties": {"n": {"type": "long"}}}});
    server.run("PUT", "/search_fails", &mapping).unwrap();
    let handlers = json!({"Counted": [
        {"update": {"index": "search_fails", "id": "{stream}", "doc": {"n": "{data.n}"}, "add": {"changes": 1}, "upsert": {"n": "{data.n}", "changes": 1}}},
        {"index": {"index": "search_fails_all", "id": "{position}", "document": {}}},
    ], "Noted": [
        {"update": {"index": "search_fails", "id": "{stream}", "add": {"changes": 1}}},
        {"index": {"index": "search_fails_all", "id": "{position}", "document": {}}},
    ]});
    let shop = open("search_fails", server, handlers).await;
    // In one batch, so that one document shows them all.
    for (kind, n) in [("Counted", json!(1)), ("Counted", json!(2)), ("Counted", json!(CANARY)), ("Noted", json!(4))] {
        shop.events.append("bad", kind, &json!({"n": n})).await.unwrap();
        shop.events.append("good", "Counted", &json!({"n": 1})).await.unwrap();
    }
    let process = shop.start_process("a");
    let said = || process.readiness();
    let failed = |said: &String| said.contains("failed on the event at position 5");
    let said = eventually_is(PATIENCE, "the worker says it", failed, said).await.unwrap();
    assert!(said.contains("operation 1 (update)") && said.contains("mapper_parsing_exception"), "{said}");
    assert!(!said.contains(CANARY) && !process.output().contains(CANARY), "{said}");
    let changes = |id: &str| documents(server, "search_fails").get(id).map(|document| document["changes"].clone());
    let good = || async { Ok::<_, anyhow::Error>(changes("good")) };
    eventually_is(PATIENCE, "the other stream goes on", |seen| *seen == Some(json!(4)), good).await.unwrap();
    assert_eq!(changes("bad"), Some(json!(2)), "what came before it is done, and once however often it is tried again");
    let failures: Vec<Value> = shards(&shop, server).into_iter().filter(|shard| !shard["failure"].is_null()).collect();
    assert!(failures.len() == 1 && failures[0]["failure"]["position"] == 5, "{failures:?}");
    assert!(!failures[0].to_string().contains(CANARY), "{failures:?}");
    drop(process);
    let worker = shop.start("b");
    worker.says("failed on the event at position 5").await;
    let mended = "update events set data = '{\"n\": 3}' where position = 5";
    shop.events.client().execute(mended, &[]).await.unwrap();
    let bad = || async { Ok::<_, anyhow::Error>(changes("bad")) };
    eventually_is(PATIENCE, "it goes on", |seen| *seen == Some(json!(4)), bad).await.unwrap();
    written(server, "search_fails_all", 8).await;
    worker.says("200 OK").await;
    assert!(shards(&shop, server).iter().all(|shard| shard["failure"].is_null()));
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_event_lacks_and_a_document_of_two_streams_are_told() {
    let server = open_search();
    let handlers = json!({
        "Counted": [{"index": {"index": "search_lacks", "id": "{stream}", "document": {"who": {"name": ["{data.who.name}"]}}}}],
        "Summed": [{"update": {"index": "search_lacks", "id": "all", "add": {"n": "{data.n}"}, "upsert": {"n": "{data.n}"}}}],
    });
    let mut shop = open("search_lacks", server, handlers).await;
    shop.search.as_mut().unwrap().output.shared = true;
    shop.events.append("lacking", "Counted", &json!({"other": CANARY})).await.unwrap();
    shop.events.append("fine", "Counted", &json!({"who": {"name": "ann"}})).await.unwrap();
    let worker = shop.start("a");
    let said = worker.says("position 1").await;
    assert!(
        said.contains("{data.who.name}") && said.contains("operation 1 (index)") && !said.contains(CANARY),
        "{said}"
    );
    written(server, "search_lacks", 1).await;
    worker.stop().await;
    shop.events.client().execute("delete from events", &[]).await.unwrap();
    for n in 0..40 {
        shop.events.append(&format!("s{n}"), "Summed", &json!({"n": 1})).await.unwrap();
    }
    let worker = shop.start("b");
    let said = worker.says("another stream writes the same document").await;
    assert!(said.contains("Strict"), "{said}");
    worker.stop().await;
    // In one shard any event may write any document.
    shop.config.projection = "shop/search_lacks_strict".to_owned();
    shop.table().shards = 1;
    server.run("DELETE", "/search_lacks", &Value::Null).unwrap();
    let worker = shop.start("c");
    let sum =
        || async { Ok::<_, anyhow::Error>(documents(server, "search_lacks").get("all").map(|all| all["n"].clone())) };
    written(server, "search_lacks", 1).await;
    eventually_is(PATIENCE, "all are added", |seen| *seen == Some(json!(40)), sum).await.unwrap();
    worker.stop().await;
}

/// Refuses as many bulk requests as `refusals` says, as a server does that has too much to do: all of it, or each of its items.
async fn busy(server: SocketAddr, refusals: Arc<AtomicUsize>, refused: Arc<AtomicUsize>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let (refusals, refused) = (Arc::clone(&refusals), Arc::clone(&refused));
            tokio::spawn(async move {
                let mut upstream = TcpStream::connect(server).await?;
                loop {
                    let (head, body) = message(&mut client).await?;
                    let is_bulk =
                        head.starts_with("POST /_bulk") && String::from_utf8_lossy(&body).contains("external");
                    let take = |left: usize| left.checked_sub(1);
                    let left = is_bulk.then(|| refusals.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take).ok());
                    let left = left.flatten();
                    let Some(left) = left else {
                        upstream.write_all(format!("{head}\r\n\r\n").as_bytes()).await?;
                        upstream.write_all(&body).await?;
                        let (head, body) = message(&mut upstream).await?;
                        client.write_all(format!("{head}\r\n\r\n").as_bytes()).await?;
                        client.write_all(&body).await?;
                        continue;
                    };
                    refused.fetch_add(1, Ordering::SeqCst);
                    let error = json!({"type": "es_rejected_execution_exception", "reason": CANARY});
                    let items =
                        String::from_utf8_lossy(&body).lines().filter(|line| line.contains("version_type")).count();
                    let (status, answer) = if left % 2 == 0 {
                        ("429 Too Many Requests", json!({"error": error, "status": 429}))
                    } else {
                        let item = json!({"index": {"status": 429, "error": error}});
                        ("200 OK", json!({"items": vec![item; items]}))
                    };
                    let answer = answer.to_string();
                    let head = format!(
                        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
                        answer.len()
                    );
                    client.write_all(format!("{head}{answer}").as_bytes()).await?;
                }
                #[allow(unreachable_code)]
                Ok::<_, std::io::Error>(())
            });
        }
    });
    url
}

/// Head and body of a message in HTTP/1.1 that says how long it is.
async fn message(stream: &mut TcpStream) -> std::io::Result<(String, Vec<u8>)> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    let head = String::from_utf8_lossy(&head).trim_end().to_owned();
    let length = head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    stream.read_exact(&mut body).await?;
    Ok((head, body))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_with_too_much_to_do_is_given_less_and_it_is_no_events_failure() {
    let server = open_search();
    let mut shop = open("search_busy", server, counted("search_busy")).await;
    let (refusals, refused) = (Arc::new(AtomicUsize::new(12)), Arc::new(AtomicUsize::new(0)));
    shop.search.as_mut().unwrap().url = busy(server.address(), Arc::clone(&refusals), Arc::clone(&refused)).await;
    append(&shop, 500).await;
    let process = shop.start_process("a");
    assert_exact(&shop, server).await;
    assert_eq!(refused.load(Ordering::SeqCst), 12);
    let output = process.output();
    assert!(!output.contains("failed on the event") && !output.contains(CANARY), "{output}");
    // One that has too much to do for ever is told.
    refusals.store(usize::MAX, Ordering::SeqCst);
    append(&shop, 100).await;
    let said = || process.readiness();
    let is_told = |said: &String| said.contains("rejects requests");
    let said = eventually_is(PATIENCE, "the worker says it", is_told, said).await.unwrap();
    assert!(said.contains("es_rejected_execution_exception") && said.contains("503"), "{said}");
    assert!(shards(&shop, server).iter().all(|shard| shard["failure"].is_null()));
    refusals.store(0, Ordering::SeqCst);
    assert_exact(&shop, server).await;
}

/// The role that docs/projector.md says to make, for these indices and with these privileges, as a line of `roles.yml`.
fn role(indices: &str, privileges: &[&str]) -> String {
    format!(
        "  indices: [{{names: ['projectionist-state'], privileges: [read, index, create_index]}}, {{names: ['{indices}'], privileges: [{}]}}]",
        privileges.join(", ")
    )
}

/// A role for a dry run with these privileges on indices of its own, and those on the real ones.
fn dry_run_role(own: &[String], real: &[&str]) -> String {
    format!(
        "  indices: [{{names: ['*-dry-run-*'], privileges: [{}]}}, {{names: ['rights*'], privileges: [{}]}}]",
        own.join(", "),
        real.join(", ")
    )
}

/// What docs/projector.md lists for the user, without its rights on the cluster.
fn documented() -> Vec<String> {
    privileges_below("PUT /_security/role/projector")
}

fn privileges_below(request: &str) -> Vec<String> {
    let page = include_str!("../../docs/projector.md");
    let line = page.lines().skip_while(|line| *line != request).nth(1).unwrap();
    let role: Value = serde_json::from_str(line).unwrap();
    let privileges = role["indices"][0]["privileges"].as_array().unwrap();
    privileges.iter().map(|privilege| privilege.as_str().unwrap().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rights_that_are_listed_suffice_and_what_is_missing_is_told() {
    let documented = documented();
    let all: Vec<&str> = documented.iter().map(String::as_str).collect();
    let tries: Vec<String> = privileges_below("PUT /_security/role/projector-dry-run");
    let tries_without = |right: &str| tries.iter().filter(|one| *one != right).cloned().collect::<Vec<_>>();
    let without = |right: &str| all.iter().copied().filter(|one| *one != right).collect::<Vec<_>>();
    assert_eq!(all, ["read", "index", "delete", "create_index"]);
    let roles = [
        ("documented", role("rights*", &all)),
        ("no-read", role("rights*", &without("read"))),
        ("no-index", role("rights*", &without("index"))),
        ("no-delete", role("rights*", &without("delete"))),
        ("no-create_index", role("rights*", &without("create_index"))),
        ("no-state", "  indices: [{names: ['rights*'], privileges: [all]}]".to_owned()),
        ("tries", dry_run_role(&tries, &["view_index_metadata"])),
        ("no-view", dry_run_role(&tries, &["read"])),
        ("no-remove", dry_run_role(&tries_without("delete_index"), &["view_index_metadata"])),
    ];
    let users: Vec<(&str, &str)> = roles.iter().map(|(user, role)| (*user, role.as_str())).collect();
    let server = Elasticsearch::on_loopback(Distribution::Elasticsearch, &users).unwrap();
    rights_of_a_dry_run(&server);
    let mut shop = open("rights", &server, counted("rights")).await;
    // By Projections of several names.
    shop.search.as_mut().unwrap().output.shared = true;
    append(&shop, 50).await;
    for (user, expected) in [
        ("no-state", "security_exception"),
        ("no-read", "security_exception"),
        ("no-index", "index rights-"),
        ("no-delete", "index rights-cards"),
        ("no-create_index", "rights-"),
    ] {
        shop.search.as_mut().unwrap().url = server.url_as(user);
        shop.config.projection = format!("shop/{user}");
        for index in ["rights-events", "rights-totals", "rights-cards"].iter().filter(|_| user != "no-create_index") {
            server.run("PUT", &format!("/{index}"), &json!({})).unwrap();
        }
        let worker = shop.start(user);
        let said = worker.says(expected).await;
        assert!(
            said.contains("503") && said.contains("docs/projector.md") || user == "no-create_index",
            "{user}: {said}"
        );
        drop(worker);
        for index in ["rights-events", "rights-totals", "rights-cards"] {
            server.call("DELETE", &format!("/{index}"), &Value::Null).unwrap();
        }
    }
    shop.config.projection = "shop/rights".to_owned();
    for (credential, expected) in
        [("documented:hunter3@", "correct the user and password"), ("", "correct the user and password")]
    {
        shop.search.as_mut().unwrap().url = server.url_with(credential);
        let worker = shop.start("c");
        let said = worker.says(expected).await;
        assert!(said.contains("503") && !said.contains("hunter"), "{said}");
        drop(worker);
    }
    shop.search.as_mut().unwrap().url = server.url_as("documented");
    let worker = shop.start("d");
    assert_exact(&shop, &server).await;
    worker.stop().await;
    // An index that an event names: only its shard waits for the right.
    let handlers = json!({"Counted": [{"index": {"index": "{data.index}", "id": "{stream}", "document": {}}}]});
    shop.search.as_mut().unwrap().output = output(handlers);
    shop.config.projection = "shop/rights-named".to_owned();
    shop.events.client().execute("delete from events", &[]).await.unwrap();
    let bad = shop.events.append("bad", "Counted", &json!({"index": CANARY})).await.unwrap();
    shop.events.append("good", "Counted", &json!({"index": "rights-good"})).await.unwrap();
    let worker = shop.start("e");
    let said = worker.says(&format!("position {bad}")).await;
    assert!(said.contains("grant the user") && !said.contains(CANARY), "{said}");
    written(&server, "rights-good", 1).await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_that_is_missing_and_not_made_is_told() {
    let server = open_search();
    let setting = |value: &str| {
        let settings = json!({"persistent": {"action.auto_create_index": value}});
        server.run("PUT", "/_cluster/settings", &settings).unwrap();
    };
    setting("-search_nowhere*,+*");
    let handlers = json!({"Counted": [{"update": {"index": "search_nowhere", "id": "{stream}", "add": {"n": 1}, "upsert": {"n": 1}}}]});
    let shop = open("search_nowhere", server, handlers).await;
    shop.events.append("s", "Counted", &json!({"n": 1})).await.unwrap();
    let worker = shop.start("a");
    let said = worker.says("position 1").await;
    assert!(said.contains("there is no such index") && said.contains("action.auto_create_index"), "{said}");
    assert!(!kept(&shop, server, ":workers").is_null());
    server.run("PUT", "/search_nowhere", &json!({})).unwrap();
    written(server, "search_nowhere", 1).await;
    worker.says("200 OK").await;
    worker.stop().await;
}
