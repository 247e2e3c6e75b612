//! Malformed requests, each answered by what is wrong with it, cheaply.

use std::time::Duration;

use hyper::body::Bytes;
use tokio::io::AsyncWriteExt;

use crate::{
    abuse::raw,
    harness::{Connection, METRIC, Server},
};

const EXTERNAL: &str = "/apis/external.metrics.k8s.io/v1beta1";
const CUSTOM: &str = "/apis/custom.metrics.k8s.io/v1beta2";
/// What the network itself may hold of a body that is not read, and then some.
const UNREAD: usize = 64 << 20;

async fn ann(server: &Server) -> Connection {
    server.connect(Some(server.users.client("ann"))).await
}

/// Expects a Status object of this code and reason.
async fn refused(client: &mut Connection, path: &str, headers: &[(&str, &str)], code: u16, reason: &str) {
    let (status, body, headers) = client.get(path, headers).await;
    assert_eq!((status, body["reason"].as_str()), (code, Some(reason)), "{path:.90}: {body}");
    assert_eq!((body["kind"].as_str(), body["apiVersion"].as_str()), (Some("Status"), Some("v1")), "{path:.90}");
    assert_eq!(
        (body["code"].as_u64(), body["status"].as_str()),
        (Some(u64::from(code)), Some("Failure")),
        "{path:.90}"
    );
    assert!(!body["message"].as_str().unwrap_or_default().is_empty(), "{path:.90}");
    assert_eq!(headers["content-type"], "application/json", "{path:.90}");
    assert!(!headers.contains_key("retry-after"), "{path:.90}");
}

#[tokio::test]
async fn what_does_not_exist_is_not_found() {
    let server = Server::start().await;
    let mut client = ann(&server).await;
    for path in [
        format!("{EXTERNAL}/namespaces/shop/unknown"),
        format!("{EXTERNAL}/namespaces/nowhere/lag"),
        format!("{EXTERNAL}/namespaces/nowhere/unknown"),
        format!("{CUSTOM}/namespaces/shop/things.example.org/first/unknown"),
        format!("{CUSTOM}/namespaces/nowhere/things.example.org/first/lag"),
        format!("{CUSTOM}/namespaces/nowhere/things.example.org/*/lag"),
        format!("{CUSTOM}/namespaces/shop/others.example.org/first/lag"),
        // Decoded once: what is still encoded then is no name that exists.
        format!("{EXTERNAL}/namespaces/shop/%252e%252e"),
        format!("{EXTERNAL}/namespaces/shop/lag;v=2"),
        format!("{EXTERNAL}/namespaces/shop//lag"),
        format!("/{EXTERNAL}/namespaces/shop/lag"),
    ] {
        refused(&mut client, &path, &[], 404, "NotFound").await;
    }
}

#[tokio::test]
async fn what_cannot_be_read_is_a_bad_request() {
    let server = Server::start().await;
    let mut client = ann(&server).await;
    for segment in ["%00", "lag%00", "%2e%2e", "..", "%2e", "a%2fb", "%c0%af", "%ff", "%zz", "%", "%2", "a%0d%0ab"] {
        for within in [format!("{EXTERNAL}/namespaces"), format!("{CUSTOM}/namespaces/shop/things.example.org")] {
            refused(&mut client, &format!("{within}/{segment}/lag"), &[], 400, "BadRequest").await;
        }
    }
    let object = format!("{CUSTOM}/namespaces/shop/things.example.org/*/lag");
    for selector in
        ["%3D", "a%3D%3D%3Db", "a%20in", "a%20in%20(", "a%3Eb", "!", "a%2C", "%2Ca", "a%00", "%zz", "a%FF", "-%3Da"]
    {
        for query in [format!("{METRIC}?labelSelector={selector}"), format!("{object}?metricLabelSelector={selector}")]
        {
            refused(&mut client, &query, &[], 400, "BadRequest").await;
        }
    }
    refused(&mut client, &format!("{METRIC}?{}", "a=b&".repeat(10_000)), &[], 400, "BadRequest").await;
    refused(&mut client, &format!("{METRIC}?labelSelector={}", "a,".repeat(65)), &[], 400, "BadRequest").await;
}

#[tokio::test]
async fn a_selector_of_a_mebibyte_is_refused_over_either_protocol_and_no_other_client_notices() {
    let server = Server::start().await;
    let selector = "a%3Db%2C".repeat((1 << 20) / 8);
    let request = format!("GET {METRIC}?labelSelector={selector} HTTP/1.1\r\nHost: x\r\n\r\n");
    let identity = Some(server.users.client("ann"));
    let mut stream = server.tls(identity, "http/1.1").await;
    // It may hang up before it has all of it.
    let sent = stream.write_all(request.as_bytes()).await;
    let mut answer = Vec::new();
    let read = tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut answer);
    let read = tokio::time::timeout(Duration::from_secs(120), read).await.expect("the connection is still open");
    let answer = String::from_utf8_lossy(&answer);
    let status = answer.split(' ').nth(1).unwrap_or_default();
    assert!(matches!(status, "414" | "431") || sent.is_err() || read.is_err(), "{answer:.300}");
    assert!(!answer.contains("items"));

    let (mut sender, connection) = {
        let stream = server.tls(Some(server.users.client("ann")), "h2").await;
        h2::client::handshake(stream).await.unwrap()
    };
    tokio::spawn(connection);
    let uri = format!("https://metrics.system.svc{METRIC}?labelSelector={}", &selector[..60_000]);
    let long = http::Request::get(uri).body(()).unwrap();
    let answer = sender.send_request(long, true).unwrap().0.await.unwrap();
    assert_eq!(answer.status(), 400, "short enough for the protocol, and refused by us");
    // No more than 64 KiB can be a path in this client; the rest is other fields, which count alike.
    let mut request = http::Request::get(format!("https://metrics.system.svc{METRIC}"));
    for number in 0..16 {
        request = request.header(format!("x-selector-{number}"), &selector[..65_536]);
    }
    let answer = sender.send_request(request.body(()).unwrap(), true).unwrap().0.await;
    assert!(answer.is_err() || answer.is_ok_and(|answer| answer.status() == 431));
    assert_eq!(ann(&server).await.get(METRIC, &[]).await.0, 200);
}

#[tokio::test]
async fn only_json_is_offered_and_who_takes_something_else_is_told_so_in_json() {
    let server = Server::start().await;
    let mut client = ann(&server).await;
    for accept in [
        "application/vnd.kubernetes.protobuf",
        "text/html",
        "application/yaml",
        "application/cbor, text/plain;q=0.5",
        "application/json;as=Table;v=v1;g=meta.k8s.io",
        "application/json;q=0",
        "\u{e9}",
    ] {
        for path in [METRIC, EXTERNAL, "/apis"] {
            refused(&mut client, path, &[("Accept", accept)], 406, "NotAcceptable").await;
        }
    }
    for accept in [
        "application/vnd.kubernetes.protobuf, */*",
        "application/json;as=Table;v=v1;g=meta.k8s.io,application/json",
        "application/json;q=0.1, text/html",
        "application/*",
        "*/*",
    ] {
        assert_eq!(client.get(METRIC, &[("Accept", accept)]).await.0, 200, "{accept}");
    }
}

#[tokio::test]
async fn metrics_are_only_read_and_only_by_their_method() {
    let server = Server::start().await;
    let mut client = ann(&server).await;
    for method in ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "HEAD", "PROPFIND"] {
        let answer = client.send(method, METRIC, &[]).await;
        assert_eq!((answer.status().as_u16(), &answer.headers()["allow"]), (405, &"GET".parse().unwrap()), "{method}");
        // Who may not read is not told what else he might try.
        assert_eq!(server.connect(None).await.send(method, METRIC, &[]).await.status(), 401, "{method}");
    }
}

#[tokio::test]
async fn what_is_no_http_of_the_agreed_kind_is_refused() {
    let server = Server::start().await;
    for (request, code) in [
        (format!("GET {METRIC}\0 HTTP/1.1\r\nHost: x\r\n\r\n").into_bytes(), "400"),
        (format!("GET {METRIC} HTTP/1.1\r\nHost: x\r\nX: \0\r\n\r\n").into_bytes(), "400"),
        (format!("GET {METRIC} HTTP/7.3\r\nHost: x\r\n\r\n").into_bytes(), "400"),
        (format!("GET {METRIC}\r\n\r\n").into_bytes(), "400"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), "400"),
        (format!("GET {METRIC} HTTP/1.0\r\n\r\n").into_bytes(), "200"),
    ] {
        let answer = raw(&server, true, &request).await;
        let status = answer.split(' ').nth(1).unwrap_or_default();
        assert!(status == code || (code == "400" && answer.is_empty()), "{:?}: {answer:.300}", request.escape_ascii());
    }
}

#[tokio::test]
async fn a_body_of_a_gibibyte_is_not_read() {
    let server = Server::start().await;
    for (method, identity, code) in [("POST", Some("ann"), "405"), ("POST", None, "401"), ("GET", Some("ann"), "200")] {
        let identity = identity.map(|name| server.users.client(name));
        let mut stream = server.tls(identity, "http/1.1").await;
        let head = format!("{method} {METRIC} HTTP/1.1\r\nHost: x\r\nContent-Length: 1073741824\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = vec![0; 4_096];
        let read = tokio::io::AsyncReadExt::read(&mut stream, &mut answer);
        let read = tokio::time::timeout(Duration::from_secs(60), read).await.expect("it waits for the body").unwrap();
        let answer = String::from_utf8_lossy(&answer[..read]);
        assert!(answer.starts_with(&format!("HTTP/1.1 {code}")), "{method}: {answer:.200}");
        let (part, mut sent) = (vec![b'x'; 64 << 10], 0);
        let pour = async {
            while sent < 1 << 30 && stream.write_all(&part).await.is_ok() {
                sent += part.len();
            }
        };
        // Hanging up and never taking it are both fine.
        let _ = tokio::time::timeout(Duration::from_secs(5), pour).await;
        assert!(sent < UNREAD, "{method}: {sent} bytes were taken");
    }
}

#[tokio::test]
async fn a_body_of_a_gibibyte_over_http2_is_not_read_and_the_connection_goes_on() {
    let server = Server::start().await;
    let stream = server.tls(Some(server.users.client("ann")), "h2").await;
    let (sender, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    let mut sender = sender.ready().await.unwrap();
    let request = |method| {
        http::Request::builder().method(method).uri(format!("https://metrics.system.svc{METRIC}")).body(()).unwrap()
    };
    let (answer, mut body) = sender.send_request(request("POST"), false).unwrap();
    assert_eq!(answer.await.unwrap().status(), 405);
    let mut sent = 0;
    let pour = async {
        while sent < 1 << 30 {
            body.reserve_capacity(64 << 10);
            let Some(Ok(room)) = std::future::poll_fn(|context| body.poll_capacity(context)).await else { break };
            if body.send_data(Bytes::from(vec![b'x'; room]), false).is_err() {
                break;
            }
            sent += room;
        }
    };
    let _ = tokio::time::timeout(Duration::from_secs(5), pour).await;
    assert!(sent < UNREAD, "{sent} bytes were taken");
    let answer = sender.ready().await.unwrap().send_request(request("GET"), true).unwrap().0.await.unwrap();
    assert_eq!(answer.status(), 200);
}
