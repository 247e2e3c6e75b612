//! Another adapter behind the same API: asked for what is not ours, and never in the way of what is.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use futures::future::join_all;
use projectionist::{
    metrics_api::{
        Delegate, Delegates, Offer, certificate,
        delegate::{DelegatedLabels, GroupLabels, Outcome},
    },
    platform::delegate_client::{AdapterClient, ServiceAddress},
};
use serde_json::{Value, json};

use crate::adapter::{Adapter, CUSTOM, EXTERNAL, Fixed, Manners, TOKEN, values};
use crate::harness::{AS_ANN, AS_MASTER, Connection, METRIC, Server, things};

const THEIRS: &str = "/apis/external.metrics.k8s.io/v1beta1/namespaces/shop/s0-kafka";

/// Ours, with the adapter behind both groups. External metrics whose names begin with `lag` are ours.
async fn before(adapter: &Adapter) -> Server {
    let delegates = Delegates {
        external: Some(adapter.client.clone()),
        custom: Some(adapter.client.clone()),
        reserved: "lag".to_owned(),
    };
    Server::with(Offer { external: true, objects: Some(things()) }, |options| options.delegates = delegates).await
}

async fn ann(server: &Server) -> Connection {
    server.connect(Some(server.front.client("front-proxy-client"))).await
}

/// Ours is answered, whatever the adapter does.
async fn ours_is_there(server: &Server) {
    let mut client = ann(server).await;
    let (code, body, _) = client.get(METRIC, AS_ANN).await;
    assert_eq!((code, &body["items"][0]["value"]), (200, &json!("7")));
    let objects = format!("{CUSTOM}/namespaces/shop/things.example.org/*/lag");
    assert_eq!(client.get(&objects, AS_ANN).await.0, 200);
    for path in ["/apis", EXTERNAL, CUSTOM, "/openapi/v2"] {
        assert_eq!(client.get(path, AS_MASTER).await.0, 200, "{path}");
    }
}

async fn until<F: Future<Output = bool>>(what: &str, mut is: impl FnMut() -> F) {
    for _ in 0..600 {
        if is().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("it never came about that {what}");
}

#[tokio::test]
async fn what_is_not_ours_is_asked_of_the_adapter_under_the_operators_own_name() {
    let adapter = Adapter::start().await;
    let server = before(&adapter).await;
    let mut client = ann(&server).await;
    let custom = format!(
        "{CUSTOM}/namespaces/shop/pods/*/requests?labelSelector=app%3D%3Dshop&metricLabelSelector=verb&timeout=9s"
    );
    for (path, passed_on) in [
        (THEIRS.to_owned(), THEIRS.to_owned()),
        (
            format!("{THEIRS}/?labelSelector=scaledobject+in+(a,b)&limit=1&pretty=true"),
            format!("{THEIRS}?labelSelector=scaledobject%20in%20%28a%2Cb%29"),
        ),
        // However the caller spells it, the adapter reads what was judged.
        (format!("{EXTERNAL}/namespaces/shop/%73%30-kafka"), THEIRS.to_owned()),
        (custom, format!("{CUSTOM}/namespaces/shop/pods/*/requests?labelSelector=app%3Dshop&metricLabelSelector=verb")),
        (format!("{CUSTOM}/nodes/first/load"), format!("{CUSTOM}/nodes/first/load")),
        (format!("{CUSTOM}/namespaces/shop/metrics/load"), format!("{CUSTOM}/namespaces/shop/metrics/load")),
    ] {
        let (code, body, headers) = client.get(&path, AS_ANN).await;
        assert_eq!((code, &body["items"][0]["value"]), (200, &json!("42")), "{path}");
        assert_eq!(headers["content-type"], "application/json");
        let asked = adapter.asked();
        let [(path, method, sent)] = asked.as_slice() else { panic!("{asked:?}") };
        assert_eq!((path, method.as_str()), (&passed_on, "GET"));
        assert_eq!(sent["authorization"], format!("Bearer {TOKEN}"));
        assert_eq!(sent["host"], "adapter.monitoring.svc");
        assert!(!sent.keys().any(|name| name.as_str().starts_with("x-")), "no user is passed on: {sent:?}");
    }
    let count = DelegatedLabels { group: "external.metrics.k8s.io", outcome: Outcome::Answered };
    assert_eq!(server.metrics.delegates.requests.get_or_create(&count).get(), 3);
}

#[tokio::test]
async fn what_is_ours_stays_ours_whether_there_is_such_a_metric_or_not() {
    let adapter = Adapter::start().await;
    let server = before(&adapter).await;
    let mut client = ann(&server).await;
    for (path, expected) in [
        (METRIC.to_owned(), 200),
        (format!("{EXTERNAL}/namespaces/shop/lag-of-theirs"), 404),
        (format!("{CUSTOM}/namespaces/shop/things.example.org/*/lag"), 200),
        (format!("{CUSTOM}/namespaces/shop/things.example.org/first/theirs"), 404),
        // Of neither: no metric, or one that no role can grant.
        (format!("{EXTERNAL}/nonexistent"), 404),
        (format!("{EXTERNAL}/namespaces/shop/status"), 404),
        (format!("{CUSTOM}/namespaces/shop/pods/first"), 404),
        (format!("{CUSTOM}/namespaces/shop/status/first/load"), 404),
        (format!("{THEIRS}?labelSelector=%zz"), 400),
        (format!("{THEIRS}?labelSelector=%3D"), 400),
        (format!("{EXTERNAL}/namespaces/%2e%2e/s0-kafka"), 400),
    ] {
        assert_eq!(client.get(&path, AS_MASTER).await.0, expected, "{path}");
    }
    for method in ["POST", "DELETE", "HEAD"] {
        assert_eq!(client.send(method, THEIRS, AS_ANN).await.status(), 405, "{method}");
    }
    assert!(adapter.asked().is_empty());
}

#[tokio::test]
async fn who_may_not_read_it_is_refused_here_and_the_adapter_hears_nothing() {
    let adapter = Adapter::start().await;
    let server = before(&adapter).await;
    let mut client = ann(&server).await;
    let (code, body, _) = client.get(THEIRS, &[("X-Remote-User", "bob")]).await;
    assert_eq!(code, 403);
    assert!(body["message"].as_str().unwrap().contains("\"bob\" cannot list resource \"s0-kafka\""), "{body}");
    assert_eq!(server.get(None, THEIRS, AS_MASTER).await.0, 401);
    server.cluster.down.store(true, Ordering::Relaxed);
    assert_eq!(client.get(THEIRS, &[("X-Remote-User", "carl")]).await.0, 500, "no answer is not a yes");
    assert!(adapter.asked().is_empty());
}

#[tokio::test]
async fn what_an_adapter_answers_badly_is_an_error_that_names_it() {
    let adapter = Adapter::start().await;
    let server = before(&adapter).await;
    let mut client = ann(&server).await;
    let status = |message: &str| json!({"kind": "Status", "apiVersion": "v1", "message": message}).to_string();
    let large = format!("{{\"kind\":\"{}\"}}", "x".repeat(1024 * 1024));
    let other = values("custom.metrics.k8s.io/v1beta1", "MetricValueList");
    for (said, body, code, words) in [
        (404, status("no metric of that name"), 404, "no metric of that name"),
        (400, status("no such selector"), 400, "no such selector"),
        (500, status("the scaler failed"), 503, "500 Internal Server Error: the scaler failed"),
        (429, String::new(), 503, "429 Too Many Requests"),
        (302, String::new(), 503, "redirects are not followed"),
        (401, status("Unauthorized"), 503, "ServiceAccount"),
        (403, status("forbidden"), 503, "ServiceAccount"),
        (200, "<html>".to_owned(), 503, "no object"),
        (200, other, 503, "instead of values"),
        (200, large, 503, "larger than 1048576 bytes"),
    ] {
        adapter.says(said, &body);
        let (answered, body, headers) = client.get(THEIRS, AS_ANN).await;
        assert_eq!((answered, &body["kind"], &body["code"]), (code, &json!("Status"), &json!(code)), "{said}");
        let message = body["message"].as_str().unwrap();
        assert!(message.contains("the service monitoring/adapter") && message.contains(words), "{said}: {message}");
        assert!(!headers.contains_key("retry-after") && !headers.contains_key("location"), "{headers:?}");
        assert!(!message.contains(TOKEN));
    }
    assert_eq!(adapter.asked().len(), 10, "each was asked once");
    ours_is_there(&server).await;
}

#[tokio::test]
async fn an_adapter_that_no_authority_vouches_for_is_told_nothing() {
    let adapter = Adapter::start().await;
    let stranger = certificate::issue("adapter", "monitoring", jiff::Timestamp::now()).unwrap();
    std::fs::write(&adapter.ca_file, &stranger.ca_pem).unwrap();
    let server = before(&adapter).await;
    let mut client = ann(&server).await;
    let (code, body, _) = client.get(THEIRS, AS_ANN).await;
    let message = body["message"].as_str().unwrap();
    assert!(code == 503 && message.contains("certificate"), "{code} {message}");
    assert!(adapter.seen.lock().unwrap().is_empty(), "it got a request, and with it the token");
    std::fs::write(&adapter.ca_file, "garbage").unwrap();
    assert_eq!(client.get(THEIRS, AS_ANN).await.0, 503);
    // A rotated authority counts without a restart, once the failures are forgotten.
    std::fs::write(&adapter.ca_file, &adapter.ca).unwrap();
    let there = || async { ann(&server).await.get(THEIRS, AS_ANN).await.0 == 200 };
    until("the right authority is found", there).await;
}

#[tokio::test]
async fn a_certificate_of_another_name_is_not_the_adapters() {
    let adapter = Adapter::start().await;
    let elsewhere: ServiceAddress = "monitoring/another".parse().unwrap();
    let client = AdapterClient::new(&elsewhere, adapter.ca_file.clone(), Arc::new(Fixed)).unwrap();
    adapter.client.get(EXTERNAL, 1024).await.unwrap();
    let refused =
        client.at(adapter.address.to_string().parse().unwrap()).get(EXTERNAL, 1024).await.unwrap_err().to_string();
    assert!(refused.contains("certificate") && refused.contains("not valid for name"), "{refused}");
}

#[tokio::test]
async fn a_hanging_adapter_costs_its_own_callers_some_seconds_and_others_nothing() {
    let adapter = Adapter::start().await;
    let server = before(&adapter).await;
    adapter.manners.send_replace(Manners::Hangs);
    let mut client = ann(&server).await;
    let theirs = |client: &Connection| {
        let mut client = Connection(client.0.clone());
        async move { client.get(THEIRS, AS_ANN).await }
    };
    // Ours is answered while theirs waits, on the very connection. A slow machine may need another try.
    let mut meanwhile = false;
    for _ in 0..10 {
        let waiting = tokio::spawn(theirs(&client));
        while !waiting.is_finished() && adapter.under_way.load(Ordering::Relaxed) == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let (code, body, _) = client.get(METRIC, AS_ANN).await;
        assert_eq!((code, &body["items"][0]["value"]), (200, &json!("7")));
        meanwhile = !waiting.is_finished();
        if meanwhile {
            break;
        }
    }
    assert!(meanwhile, "ours waited until theirs was over");
    ours_is_there(&server).await;
    // Of many at once, only so many wait; the rest hears at once that they would. Two may take the places of the first that gave up.
    let answers = join_all((0..200).map(|_| theirs(&client))).await;
    let of = |code: u16| answers.iter().filter(|(answered, _, _)| *answered == code).count();
    assert!((1..=66).contains(&of(504)) && of(504) + of(503) == 200, "{} late, {} refused", of(504), of(503));
    let late = answers.iter().find(|(code, _, _)| *code == 504).unwrap();
    assert!(late.1["message"].as_str().unwrap().contains("monitoring/adapter did not answer within 5 s"), "{late:?}");
    assert_eq!(late.1["reason"], "Timeout");

    // Now it is left alone for a while, and then asked again.
    adapter.asked();
    let (code, body, _) = client.get(THEIRS, AS_ANN).await;
    assert!(code == 503 && body["message"].as_str().unwrap().contains("left alone"), "{code} {body}");
    adapter.manners.send_replace(Manners::Well);
    until("it is asked again", || async { ann(&server).await.get(THEIRS, AS_ANN).await.0 == 200 }).await;
}

#[tokio::test]
async fn discovery_holds_what_both_have_and_what_was_there_stays_while_the_adapter_is_gone() {
    let adapter = Adapter::start().await;
    let server = before(&adapter).await;
    let names = |path: &'static str| {
        let server = &server;
        async move {
            let (_, list, _) = ann(server).await.get(path, AS_MASTER).await;
            let name = |resource: &Value| resource["name"].as_str().unwrap().to_owned();
            list["resources"].as_array().unwrap().iter().map(name).collect::<Vec<_>>()
        }
    };
    let custom = ["things.example.org/lag", "things.example.org/rate", "things.example.org/hidden", "pods/requests"];
    until("both are listed", || async { names(EXTERNAL).await.len() == 2 && names(CUSTOM).await.len() == 4 }).await;
    assert_eq!(names(EXTERNAL).await, ["externalmetrics", "s0-kafka"], "what it calls by our names is not its own");
    assert_eq!(names(CUSTOM).await, custom);
    let older = names("/apis/custom.metrics.k8s.io/v1beta1").await;
    assert_eq!(older, custom[..3], "it does not know this version");
    let at = server.metrics.delegates.listed.get_or_create(&GroupLabels { group: "external.metrics.k8s.io" }).get();
    assert!(at > 1_700_000_000, "when it was listed is told: {at}");

    adapter.says(200, "<html>");
    let failing = || async { adapter.seen.lock().unwrap().iter().filter(|(path, _, _)| path == EXTERNAL).count() >= 2 };
    until("it was asked again and answered with garbage", failing).await;
    assert_eq!(names(EXTERNAL).await, ["externalmetrics", "s0-kafka"]);
    assert_eq!(names(CUSTOM).await, custom);
    ours_is_there(&server).await;
}

#[tokio::test]
async fn an_adapter_that_is_not_there_is_named_and_then_left_alone() {
    let adapter = Adapter::start().await;
    let server = before(&adapter).await;
    adapter.task.abort();
    let mut client = ann(&server).await;
    let refused = || async { ann(&server).await.get(THEIRS, AS_ANN).await.0 == 503 };
    until("nothing listens", refused).await;
    let mut messages = Vec::new();
    for _ in 0..8 {
        let (code, body, _) = client.get(THEIRS, AS_ANN).await;
        assert_eq!((code, &body["reason"]), (503, &json!("ServiceUnavailable")));
        messages.push(body["message"].as_str().unwrap().to_owned());
    }
    assert!(messages.iter().all(|message| message.contains("the service monitoring/adapter")), "{messages:?}");
    assert!(messages.last().unwrap().contains("left alone"), "{messages:?}");
    ours_is_there(&server).await;
}
