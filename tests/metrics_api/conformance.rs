//! What independent judges say of us: h2spec of our HTTP/2, and two validators of our OpenAPI documents.

use std::{
    collections::BTreeMap,
    path::Path,
    process::{Command, Output},
    sync::atomic::Ordering,
    time::Duration,
};

use serde_json::Value;
use test_cluster::binaries::Binaries;
use tokio::{io::copy_bidirectional, net::TcpListener};

use crate::harness::{METRIC, Server};

/// How long an answer is held back. h2spec's own time-out is far above it.
const HELD: Duration = Duration::from_millis(500);
const PATIENCE_SECONDS: &str = "20";

/// The parts of h2spec that run side by side, each over connections of its own.
const PARTS: [&[&str]; 4] =
    [&["generic"], &["http2/3", "http2/4", "http2/5"], &["http2/6", "http2/7"], &["http2/8", "hpack"]];

/// Cases that fail for a reason that is not ours, by what h2spec calls them, with that reason.
const DEVIATIONS: [(&str, &str); 0] = [];

/// What a report in JUnit's form says of each case: `None` where it passed.
fn verdicts(report: &str) -> BTreeMap<String, Option<String>> {
    let mut all = BTreeMap::new();
    for case in report.split("<testcase ").skip(1) {
        let attribute = |name: &str| {
            let (_, rest) = case.split_once(&format!("{name}=\"")).unwrap();
            rest.split_once('"').unwrap().0.to_owned()
        };
        let case_text = case.split("</testcase>").next().unwrap();
        let bad = ["failure", "error", "skipped"].iter().find(|kind| case_text.contains(&format!("<{kind}")));
        let verdict = bad.map(|kind| format!("{kind}: {case_text:.800}"));
        all.insert(format!("{}: {}", attribute("package"), attribute("classname")), verdict);
    }
    all
}

async fn run(program: &'static str, arguments: Vec<String>) -> Output {
    let output = tokio::task::spawn_blocking(move || {
        Command::new(Binaries::judge(program).unwrap()).args(arguments).output().unwrap()
    });
    output.await.unwrap()
}

/// Many of h2spec's cases suppose a server that is still busy with a request when the next frame, which is the bad one, arrives:
/// what a frame means for a stream that has been answered is another question. So the answer is held back until that frame is in.
/// h2spec has no identity to show: a relay of bytes gives its connections one, and knows nothing of HTTP/2.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h2spec_finds_no_fault() {
    let server: &'static Server = Box::leak(Box::new(Server::start().await));
    server.cluster.held_for.store(HELD.as_millis().try_into().unwrap(), Ordering::Relaxed);
    let relay = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = relay.local_addr().unwrap().port().to_string();
    tokio::spawn(async move {
        while let Ok((mut judge, _)) = relay.accept().await {
            tokio::spawn(async move {
                let mut ours = server.tls(Some(server.users.client("ann")), "h2").await;
                let _ = copy_bidirectional(&mut judge, &mut ours).await;
            });
        }
    });
    let scratch = tempfile::tempdir().unwrap();
    let parts = PARTS.iter().enumerate().map(|(index, part)| {
        let report = scratch.path().join(format!("{index}.xml"));
        let options = ["-S", "-h", "127.0.0.1", "-P", METRIC, "-o", PATIENCE_SECONDS, "-p", &port, "-j"];
        let arguments = part.iter().chain(&options).map(|text| (*text).to_owned());
        let arguments = arguments.chain([report.display().to_string()]).collect();
        async move {
            let output = run("h2spec", arguments).await;
            let text = String::from_utf8_lossy(&output.stdout);
            verdicts(&std::fs::read_to_string(report).unwrap_or_else(|error| panic!("{error}: {text}")))
        }
    });
    let verdicts: BTreeMap<_, _> = futures::future::join_all(parts).await.into_iter().flatten().collect();
    assert!(verdicts.len() > 140, "only {} cases ran", verdicts.len());
    let bad: BTreeMap<_, _> = verdicts.iter().filter_map(|(case, verdict)| Some((case, verdict.as_ref()?))).collect();
    let unexcused: Vec<_> = bad.iter().filter(|(case, _)| DEVIATIONS.iter().all(|(known, _)| known != *case)).collect();
    assert!(unexcused.is_empty(), "{} of {}: {unexcused:#?}", unexcused.len(), verdicts.len());
    for (case, why) in DEVIATIONS {
        assert!(bad.contains_key(&case.to_owned()), "{case} passes now: it needs no excuse ({why})");
    }
}

/// The verdict of a validator about a document that it reads from a file.
async fn judged(program: &'static str, arguments: &[&str], document: &Value, directory: &Path) -> Result<(), String> {
    let file = directory.join(format!("{program}.json"));
    std::fs::write(&file, document.to_string()).unwrap();
    let arguments = arguments.iter().map(|text| (*text).to_owned()).chain([file.display().to_string()]).collect();
    let output = run(program, arguments).await;
    let text = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    if output.status.success() && !text.contains("WARNING") { Ok(()) } else { Err(text) }
}

#[tokio::test]
async fn validators_find_no_fault_in_the_openapi_documents_and_would_say_so() {
    let server = Server::start().await;
    let mut client = server.connect(Some(server.users.client("ann"))).await;
    let scratch = tempfile::tempdir().unwrap();
    let (_, index, _) = client.get("/openapi/v3", &[]).await;
    let urls = index["paths"].as_object().unwrap().values();
    let urls: Vec<_> = urls.map(|it| it["serverRelativeURL"].as_str().unwrap().to_owned()).collect();
    assert_eq!(urls.len(), 3, "{index}");
    let (_, v2, _) = client.get("/openapi/v2", &[]).await;
    let mut documents = vec![("swagger", &["validate"][..], v2)];
    for url in urls {
        documents.push(("validate", &["-multi"][..], client.get(&url, &[]).await.1));
    }
    for (program, arguments, document) in documents {
        judged(program, arguments, &document, scratch.path()).await.unwrap_or_else(|why| panic!("{why}"));
        // A judge who finds no fault in anything proves nothing.
        for spoil in [spoil_type, spoil_reference, spoil_parameters] {
            let mut spoilt = document.clone();
            spoil(&mut spoilt);
            assert!(
                judged(program, arguments, &spoilt, scratch.path()).await.is_err(),
                "{program} likes {spoilt:.300}"
            );
        }
    }
}

/// The first schema of a document of either version.
fn first_schema(document: &mut Value) -> &mut Value {
    let place = if document["swagger"].is_string() { "/definitions" } else { "/components/schemas" };
    document.pointer_mut(place).unwrap().as_object_mut().unwrap().values_mut().next().unwrap()
}

fn spoil_type(document: &mut Value) {
    first_schema(document)["type"] = "thing".into();
}

fn spoil_reference(document: &mut Value) {
    let properties = first_schema(document)["properties"].as_object_mut().unwrap();
    properties.insert("lost".to_owned(), serde_json::json!({"$ref": "#/nowhere/Thing"}));
}

fn spoil_parameters(document: &mut Value) {
    let path = document["paths"].as_object_mut().unwrap().values_mut().next().unwrap();
    path["get"]["parameters"].as_array_mut().unwrap().retain(|parameter| parameter["in"] != "path");
}
