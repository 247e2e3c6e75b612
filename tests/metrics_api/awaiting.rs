//! Requests that wait for a read model: who may wait, how the answers look, and that a caller who goes away waits no more.

use std::{sync::Arc, time::Duration};

use futures::future::BoxFuture;
use projectionist::metrics_api::{
    Attributes, AwaitError, AwaitQuery, Offer, ReadModels, ResourceAttributes, ServeOptions,
};
use test_cluster::eventually_is;

use crate::harness::{AS_ANN, Cluster, Constant, Server};

const PATIENCE: Duration = Duration::from_secs(120);

/// Read models by the name of the Projection.
struct Named;

impl ReadModels for Named {
    fn reached<'a>(&'a self, query: AwaitQuery<'a>) -> BoxFuture<'a, Result<String, AwaitError>> {
        Box::pin(async move {
            match query.name {
                "there" => Ok("60".to_owned()),
                "behind" => {
                    Err(AwaitError::TimedOut { message: "it is behind".to_owned(), position: Some("41".into()) })
                }
                "new" => Err(AwaitError::TimedOut { message: "it is new".to_owned(), position: None }),
                "unknown" => Err(AwaitError::Unknown("the source does not answer".to_owned())),
                "full" => Err(AwaitError::TooMany("too many wait".to_owned())),
                "odd" => Err(AwaitError::BadRequest(format!("{} and {:?}", query.position, query.timeout))),
                "never" => std::future::pending().await,
                _ => Err(AwaitError::NotFound("there is no such Projection".to_owned())),
            }
        })
    }
}

fn with_read_models(options: &mut ServeOptions<Constant, Cluster>) {
    options.read_models = Some(Arc::new(Named));
}

fn path(name: &str, query: &str) -> String {
    format!("/v1/namespaces/shop/projections/{name}/await{query}")
}

#[tokio::test]
async fn each_outcome_has_its_own_status() {
    let server = Server::with(Offer::default(), with_read_models).await;
    let mut ann = server.connect(Some(server.users.client("ann"))).await;
    let (code, body, _) = ann.get(&path("there", "?position=57&timeout=5s"), &[]).await;
    assert_eq!(code, 200, "{body}");
    let said = |field: &str| body[field].as_str().unwrap_or_default().to_owned();
    assert_eq!((said("kind"), said("apiVersion")), ("ReadModelPosition".to_owned(), "projectionist.dev/v1".to_owned()));
    assert_eq!((said("projection"), said("awaited"), said("position")), ("there".into(), "57".into(), "60".into()));
    for (name, expected, reason) in [
        ("behind", 504, "Timeout"),
        ("new", 504, "Timeout"),
        ("unknown", 503, "ServiceUnavailable"),
        ("full", 429, "TooManyRequests"),
        ("odd", 400, "BadRequest"),
        ("missing", 404, "NotFound"),
    ] {
        let (code, body, headers) = ann.get(&path(name, "?timeout=1s&position=16%2FB3"), &[]).await;
        assert_eq!((code, body["kind"].as_str(), body["reason"].as_str()), (expected, Some("Status"), Some(reason)));
        assert_eq!((body["code"].as_u64(), body["status"].as_str()), (Some(expected.into()), Some("Failure")));
        assert!(!headers.contains_key("retry-after"));
        let position = &body["details"]["causes"][0]["message"];
        assert_eq!(position.as_str(), (name == "behind").then_some("41"), "{body}");
        if name == "odd" {
            assert_eq!(body["message"], "16/B3 and Some(\"1s\")");
        }
    }
    for (query, words) in [("", "position is missing"), ("?position=1&timout=5s", "timout"), ("?position=%zz", "%")] {
        let (code, body, _) = ann.get(&path("there", query), &[]).await;
        assert_eq!(code, 400, "{body}");
        assert!(words == "%" || body["message"].as_str().unwrap().contains(words), "{body}");
    }
    assert_eq!(ann.send("POST", &path("there", "?position=57"), &[]).await.status(), 405);
    for path in ["/v1", "/v1/namespaces/shop/projections/there", "/v1/namespaces/shop/projections"] {
        assert_eq!(ann.get(path, &[]).await.0, 404, "{path}");
    }
    let without = Server::start().await;
    let answer = without.get(Some(without.users.client("ann")), &path("there", "?position=1"), &[]).await;
    assert_eq!(answer.0, 404);
}

#[tokio::test]
async fn only_who_may_get_projections_await_waits() {
    let server = Server::with(Offer::default(), with_read_models).await;
    let there = path("there", "?position=57");
    let proxy = || Some(server.front.client("front-proxy-client"));
    assert_eq!(server.get(proxy(), &there, AS_ANN).await.0, 200);
    assert_eq!(server.get(None, &there, &[("Authorization", "Bearer good")]).await.0, 200);
    for (identity, headers) in [(None, &[][..]), (None, &[("Authorization", "Bearer bad")]), (proxy(), &[])] {
        let (code, body, _) = server.get(identity, &there, headers).await;
        assert_eq!((code, body["reason"].as_str()), (401, Some("Unauthorized")));
    }
    let (code, body, _) = server.get(Some(server.users.client("bob")), &there, &[]).await;
    assert_eq!((code, body["reason"].as_str()), (403, Some("Forbidden")));
    let message = body["message"].as_str().unwrap();
    assert!(
        message.contains("cannot get resource \"projections/await\" in API group \"projectionist.dev\""),
        "{message}"
    );
    // Whether there is such a Projection is not told to those who may not ask.
    assert_eq!(server.get(Some(server.users.client("bob")), &path("missing", "?position=1"), &[]).await.0, 403);
    let asked = server.cluster.wanted.lock().unwrap().clone();
    let expected = ResourceAttributes {
        group: "projectionist.dev".to_owned(),
        version: "v1".to_owned(),
        namespace: "shop".to_owned(),
        resource: "projections".to_owned(),
        name: "there".to_owned(),
        subresource: "await".to_owned(),
    };
    assert_eq!(
        expected.clone(),
        match &asked[0] {
            Attributes::Resource(resource) => resource.clone(),
            Attributes::Path(path) => panic!("{path}"),
        }
    );
    assert!(asked.iter().all(|attributes| attributes.verb() == "get"));
    server.cluster.down.store(true, std::sync::atomic::Ordering::Relaxed);
    let carl = server.get(Some(server.users.client("carl")), &there, &[]).await;
    assert_eq!(carl.0, 500, "what the cluster does not allow is not allowed");
}

#[tokio::test]
async fn a_caller_that_goes_away_waits_no_more() {
    let server = Server::with(Offer::default(), with_read_models).await;
    let waiting = |expected: i64| {
        let gauge = server.metrics.awaiting.clone();
        eventually_is(
            PATIENCE,
            "so many wait",
            move |seen| *seen == expected,
            move || {
                let now = gauge.get();
                async move { Ok::<_, std::convert::Infallible>(now) }
            },
        )
    };
    let mut first = server.connect(Some(server.users.client("ann"))).await;
    let never = path("never", "?position=1");
    // Over HTTP/2 one request of a connection is given up, over HTTP/1 a connection is closed.
    let mut other = server.connect(Some(server.users.client("ann"))).await;
    let request = tokio::spawn(async move {
        let _ = first.try_get(&never).await;
        first
    });
    waiting(1).await.unwrap();
    request.abort();
    waiting(0).await.unwrap();
    assert_eq!(other.get(&path("there", "?position=1"), &[]).await.0, 200);

    let mut plain = server.tls(Some(server.users.client("ann")), "http/1.1").await;
    let head = format!("GET {} HTTP/1.1\r\nHost: x\r\n\r\n", path("never", "?position=1"));
    tokio::io::AsyncWriteExt::write_all(&mut plain, head.as_bytes()).await.unwrap();
    waiting(1).await.unwrap();
    drop(plain);
    waiting(0).await.unwrap();
}
