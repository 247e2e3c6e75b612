//! The metrics API on the wire: real TLS, real certificates, and callers who are not what they say.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod abuse;
mod adapter;
mod audit;
mod awaiting;
mod bad_input;
mod conformance;
mod custom;
mod delegate;
mod discovery;
mod harness;
mod identity;
mod rate;
mod read_path;
mod turnover;

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use projectionist::metrics_api::{CONNECTION_AGE, certificate};
use rcgen::ExtendedKeyUsagePurpose;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::client::TlsStream;

use harness::{AS_ANN, AS_MASTER, Authority, METRIC, Server, authorities, serving};

#[tokio::test]
async fn the_front_proxy_passes_callers_on_and_each_is_judged_by_himself() {
    let server = Server::start().await;
    let proxy = || Some(server.front.client("front-proxy-client"));
    let (code, body, headers) = server.get(proxy(), METRIC, AS_ANN).await;
    assert_eq!((code, body["items"][0]["value"].as_str()), (200, Some("7")));
    assert_eq!(headers["content-type"], "application/json");
    let (code, body, _) = server.get(proxy(), METRIC, &[("X-Remote-User", "bob")]).await;
    assert_eq!((code, body["reason"].as_str()), (403, Some("Forbidden")));
    assert!(body["message"].as_str().unwrap().contains("\"bob\" cannot list resource \"lag\""), "{body}");
    assert_eq!(server.get(proxy(), METRIC, AS_MASTER).await.0, 200);
    // The proxy speaks for callers, not for itself.
    assert_eq!(server.get(proxy(), METRIC, &[]).await.0, 401);
}

#[tokio::test]
async fn forged_headers_name_no_user() {
    let server = Server::start().await;
    let stranger = Authority::new();
    for (what, identity) in [
        ("no certificate", None),
        ("a certificate of an unknown authority with the right name", Some(stranger.client("front-proxy-client"))),
        ("the right authority and a name that is not allowed", Some(server.front.client("another-proxy"))),
        (
            "a certificate that is for servers",
            Some(server.front.sign("front-proxy-client", &[], ExtendedKeyUsagePurpose::ServerAuth)),
        ),
    ] {
        let (code, body, _) = server.get(identity, METRIC, AS_MASTER).await;
        assert_eq!((code, body["kind"].as_str()), (401, Some("Status")), "{what}");
    }
    // A user's own certificate makes him himself, whatever the headers say.
    let (code, body, _) = server.get(Some(server.users.client("bob")), METRIC, AS_MASTER).await;
    assert_eq!(code, 403);
    assert!(body["message"].as_str().unwrap().contains("\"bob\""), "{body}");
}

#[tokio::test]
async fn users_come_by_certificate_or_token_and_none_comes_without() {
    let server = Server::start().await;
    assert_eq!(server.get(Some(server.users.client("ann")), METRIC, &[]).await.0, 200);
    let master = server.users.sign("admin", &["system:masters"], ExtendedKeyUsagePurpose::ClientAuth);
    assert_eq!(server.get(Some(master), METRIC, &[]).await.0, 200);
    assert_eq!(server.get(None, METRIC, &[("Authorization", "Bearer good")]).await.0, 200);
    assert_eq!(server.get(None, METRIC, &[("Authorization", "Bearer bad")]).await.0, 401);
    for path in [METRIC, "/apis", "/apis/external.metrics.k8s.io/v1beta1", "/openapi/v2", "/nothing"] {
        assert_eq!(server.get(None, path, &[]).await.0, 401, "{path}");
    }
    for path in ["/healthz", "/livez", "/readyz"] {
        assert_eq!(server.get(None, path, &[]).await.0, 200, "{path}");
    }
}

#[tokio::test]
async fn without_an_answer_of_the_cluster_the_door_stays_shut() {
    let server = Server::start().await;
    server.cluster.down.store(true, Ordering::Relaxed);
    let (code, body, _) = server.get(Some(server.front.client("front-proxy-client")), METRIC, AS_ANN).await;
    assert_eq!(code, 500);
    assert!(!body.to_string().contains("\"7\""));
}

#[tokio::test]
async fn before_the_authorities_are_read_a_caller_is_told_to_come_back() {
    let server = Server::start().await;
    let read = server.authorities.send_replace(Arc::default());
    for (identity, headers) in [
        (Some(server.front.client("front-proxy-client")), AS_ANN),
        (Some(server.users.client("ann")), &[]),
        (None, &[]),
    ] {
        let (code, body, _) = server.get(identity, METRIC, headers).await;
        assert_eq!((code, body["kind"].as_str()), (503, Some("Status")), "{body}");
    }
    server.authorities.send_replace(read);
    assert_eq!(server.get(Some(server.front.client("front-proxy-client")), METRIC, AS_ANN).await.0, 200);
    assert_eq!(server.get(None, METRIC, &[]).await.0, 401);
}

#[tokio::test]
async fn a_rotated_authority_counts_at_once_also_on_open_connections() {
    let server = Server::start().await;
    let mut old = server.connect(Some(server.front.client("front-proxy-client"))).await;
    assert_eq!(old.get(METRIC, AS_ANN).await.0, 200);
    let rotated = Authority::new();
    server.authorities.send_replace(authorities(&rotated.pem, &server.users.pem));
    assert_eq!(old.get(METRIC, AS_ANN).await.0, 401);
    assert_eq!(server.get(Some(rotated.client("front-proxy-client")), METRIC, AS_ANN).await.0, 200);
}

#[tokio::test]
async fn a_renewed_serving_certificate_is_served_without_a_pause() {
    let server = Server::start().await;
    let mut open = server.connect(Some(server.users.client("ann"))).await;
    let seen = |stream: &TlsStream<TcpStream>| stream.get_ref().1.peer_certificates().unwrap()[0].clone().into_owned();
    let first = seen(&server.tls(None, "h2").await);
    let renewed = certificate::renew(&server.bundle, "metrics", "system", jiff::Timestamp::now()).unwrap();
    server.certificates.send_replace(Some(Arc::new(serving(&renewed))));
    assert_ne!(seen(&server.tls(None, "h2").await), first);
    assert_eq!(open.get(METRIC, &[]).await.0, 200, "open connections go on");
}

#[tokio::test]
async fn bad_requests_get_status_objects() {
    let server = Server::start().await;
    let mut client = server.connect(Some(server.users.client("ann"))).await;
    let long = format!("{METRIC}?labelSelector={}", "a%3Db%2C".repeat(6_000));
    for (path, code) in [
        ("/apis/external.metrics.k8s.io/v1beta1/namespaces/shop/unknown", 404),
        ("/apis/external.metrics.k8s.io/v1beta1/namespaces/shop/hidden", 503),
        ("/apis/external.metrics.k8s.io/v1beta1/namespaces/shop", 404),
        ("/apis/external.metrics.k8s.io/v1beta1/nonexistent", 404),
        (&format!("{METRIC}?labelSelector=%3D"), 400),
        (&format!("{METRIC}?labelSelector=%zz"), 400),
        (&format!("{METRIC}?labelSelector=a%00"), 400),
        (&long, 400),
        ("/apis/external.metrics.k8s.io/v1beta1/namespaces/%2e%2e/lag", 400),
        ("/apis/external.metrics.k8s.io/v1beta1/namespaces/shop%2flag", 400),
    ] {
        let (status, body, headers) = client.get(path, &[]).await;
        assert_eq!(
            (status, body["code"].as_u64(), body["kind"].as_str()),
            (code, Some(u64::from(code)), Some("Status")),
            "{path:.90}"
        );
        assert!(!headers.contains_key("retry-after"), "{path:.90}");
    }
    for method in ["POST", "PUT", "PATCH", "DELETE", "OPTIONS"] {
        assert_eq!(client.send(method, METRIC, &[]).await.status(), 405, "{method}");
    }
    let protobuf_only = &[("Accept", "application/vnd.kubernetes.protobuf")];
    assert_eq!(client.get(METRIC, protobuf_only).await.0, 406);
    let as_the_autoscaler = &[("Accept", "application/vnd.kubernetes.protobuf, */*")];
    assert_eq!(client.get(METRIC, as_the_autoscaler).await.0, 200);
}

#[tokio::test]
async fn headers_have_a_bound_and_others_are_served_meanwhile() {
    let server = Server::start().await;
    let [mut greedy, mut patient] = [
        server.tls(Some(server.users.client("ann")), "http/1.1").await,
        server.tls(Some(server.users.client("ann")), "http/1.1").await,
    ];
    for stream in [&mut greedy, &mut patient] {
        stream.write_all(b"GET /apis HTTP/1.1\r\nHost: x\r\n").await.unwrap();
    }
    let filler = format!("X-Filler: {}\r\n", "x".repeat(4_000));
    for _ in 0..32 {
        if greedy.write_all(filler.as_bytes()).await.is_err() {
            break;
        }
    }
    // What was sent beyond the bound may cut off the answer, but not the end.
    let mut answer = Vec::new();
    let _ = tokio::time::timeout(Duration::from_secs(120), greedy.read_to_end(&mut answer)).await.expect("still open");
    let answer = String::from_utf8_lossy(&answer);
    assert!(answer.is_empty() || answer.contains("431"), "{answer}");
    // Not for its slowness: who sent as little is waited for.
    let waited_for = tokio::time::timeout(Duration::from_millis(1), patient.read_u8()).await;
    assert!(waited_for.is_err(), "no client's headers were too long, and they ended both: {waited_for:?}");
    assert_eq!(server.get(Some(server.users.client("ann")), METRIC, &[]).await.0, 200);
}

#[tokio::test]
async fn a_client_that_never_finishes_its_headers_is_cut_off() {
    let server = Server::start().await;
    // A client that is known, so that nothing else ends its connection so soon.
    let mut slow = server.tls(Some(server.users.client("ann")), "http/1.1").await;
    slow.write_all(b"GET /apis HTTP/1.1\r\nHost: x\r\n\r\nGET /apis HTTP/1.1\r\n").await.unwrap();
    let mut answer = Vec::new();
    let end = tokio::time::timeout(CONNECTION_AGE / 2, slow.read_to_end(&mut answer)).await;
    assert!(end.is_ok(), "the connection is still open");
    assert_eq!(String::from_utf8_lossy(&answer).matches("HTTP/1.1 200").count(), 1);
}

#[tokio::test]
async fn plain_text_is_not_answered() {
    let server = Server::start().await;
    let mut plain = TcpStream::connect(server.address).await.unwrap();
    plain.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    let _ = tokio::time::timeout(Duration::from_secs(120), plain.read_to_end(&mut answer)).await;
    assert!(!String::from_utf8_lossy(&answer).contains("HTTP"), "it spoke HTTP without TLS");
}

#[tokio::test]
async fn stopping_lets_requests_end_and_then_ends() {
    let mut server = Server::start().await;
    let mut open = server.connect(Some(server.users.client("ann"))).await;
    assert_eq!(open.get(METRIC, &[]).await.0, 200);
    server.stop.take().unwrap().send(()).unwrap();
    tokio::time::timeout(Duration::from_secs(120), server.task).await.expect("the server did not stop").unwrap();
}
