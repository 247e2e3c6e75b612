//! Who may ask: users, tokens, tenants, TLS in both directions.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use projectionist::{api::Reason, clients::ServerSettings, lag::Sample, measure::MeasureError};
use serde_json::json;
use test_cluster::{Prometheus, PrometheusOptions};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use crate::{
    certificates::{Authority, Files, authority, signed},
    harness::{Says, ask, ask_within, fake, number, probe, probe_with, server, settings, target, value},
    sampler::Running,
};

/// `hunter2`, as bcrypt writes it.
pub const USERS: &str = "basic_auth_users: {shop: $2y$04$abcdefghijklmnopqrstuuV3duMsC0HpUex6N9qapiuOHHWkwRXVm}";

/// A server with TLS that shows these files' certificate, and takes no client without one of their authority. It reads them again for each connection.
pub fn with_tls(files: &Files) -> Prometheus {
    let web = format!(
        "tls_server_config: {{cert_file: {}, key_file: {}, client_ca_file: {}, client_auth_type: RequireAndVerifyClientCert}}",
        files.path("crt"),
        files.path("key"),
        files.path("ca")
    );
    Prometheus::with(target(), &PrometheusOptions { web, ..PrometheusOptions::default() }).unwrap()
}

#[tokio::test]
async fn a_user_and_a_password_suffice_and_a_wrong_one_is_refused_in_words() {
    let options = PrometheusOptions { web: USERS.to_owned(), ..PrometheusOptions::default() };
    let own = Prometheus::with(target(), &options).unwrap();
    let url = own.url();
    let with = async |pairs: &[(&str, &str)]| {
        let pairs = [&[("url", url.as_str())], pairs].concat();
        ask(&mut probe_with(&settings(&pairs)), &value("1")).await
    };
    assert_eq!(with(&[("username", "shop"), ("password", "hunter2")]).await.unwrap().value, Some(1.0));
    for pairs in [&[][..], &[("username", "shop"), ("password", "hunter3")], &[("token", "hunter2")]] {
        let refused = with(pairs).await.unwrap_err();
        assert_eq!(refused.reason, Reason::AuthenticationFailed, "{}", refused.message);
        assert!(!refused.message.contains("hunter"), "{}", refused.message);
    }
}

#[tokio::test]
async fn a_token_and_a_tenant_are_sent_as_headers() {
    let (url, counts) = fake(Says::Once(number("7"))).await;
    let mut question = value("x");
    question.tenant = Some("shop".into());
    let settings = settings(&[("url", &format!("{url}/prefix/")), ("token", "hunter2")]);
    assert_eq!(ask(&mut probe_with(&settings), &question).await.unwrap().value, Some(7.0));
    let request = counts.last.lock().unwrap().clone();
    assert!(request.starts_with("GET /prefix/api/v1/query?query=x&timeout="), "{request}");
    for header in ["authorization: Bearer hunter2\r\n", "x-scope-orgid: shop\r\n"] {
        assert!(request.contains(header), "{request}");
    }
}

/// What a request was: its method and path, without the query.
type Asked = Arc<Mutex<Vec<String>>>;

/// A proxy before a server, which passes on what one of these headers allows and is to the path `/api/v1/query`, and refuses the rest.
async fn gate(server: SocketAddr, allowed: &'static [&'static str]) -> (String, Asked) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let asked = Asked::default();
    let log = Arc::clone(&asked);
    tokio::spawn(async move {
        loop {
            let (mut near, _) = listener.accept().await.unwrap();
            let log = Arc::clone(&log);
            tokio::spawn(async move {
                let mut request = Vec::new();
                let whole = |request: &[u8]| {
                    let text = String::from_utf8_lossy(request);
                    let (head, body) = text.split_once("\r\n\r\n")?;
                    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
                    let length = length.map_or(0, |length| length.parse().unwrap());
                    (body.len() >= length).then(|| (head.to_owned(), body.to_owned()))
                };
                let (head, body) = loop {
                    if let Some(whole) = whole(&request) {
                        break whole;
                    }
                    if near.read_buf(&mut request).await.unwrap() == 0 {
                        return;
                    }
                };
                let (path, _) = head.split_once(['?', '\r']).unwrap();
                let path = path.trim_end_matches(" HTTP/1.1").to_owned();
                log.lock().unwrap().push(path.clone());
                let refused = |status| format!("HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: 0\r\n\r\n");
                let answer = if !head.lines().any(|line| allowed.contains(&line)) {
                    refused("401 Unauthorized").into_bytes()
                } else if !["GET /api/v1/query", "POST /api/v1/query"].contains(&path.as_str()) {
                    refused("403 Forbidden").into_bytes()
                } else {
                    let mut far = TcpStream::connect(server).await.unwrap();
                    far.write_all(format!("{head}\r\nconnection: close\r\n\r\n{body}").as_bytes()).await.unwrap();
                    let mut answer = Vec::new();
                    far.read_to_end(&mut answer).await.unwrap();
                    answer
                };
                let _ = near.write_all(&answer).await;
            });
        }
    });
    (url, asked)
}

#[tokio::test]
async fn the_right_to_ask_for_queries_suffices_and_nothing_else_is_asked() {
    let page = include_str!("../../docs/sources/prometheus.md");
    assert!(page.contains("`GET` and `POST` on `/api/v1/query`, and nothing else"), "the page lists it");
    // shop:hunter2
    let (url, asked) =
        gate(server().address(), &["authorization: Basic c2hvcDpodW50ZXIy", "authorization: Bearer hunter2"]).await;
    let mut sampler = Running::start();
    sampler.secret("user", &json!({ "url": url, "username": "shop", "password": "hunter2" }));
    sampler.secret("token", &json!({ "url": url, "token": "hunter2" }));
    sampler.secret("wrong", &json!({ "url": url, "token": "hunter3" }));
    sampler.secret("elsewhere", &json!({ "url": format!("{url}/tenants"), "token": "hunter2" }));
    let long = vec!["1"; 1_000].join(" + ");
    let mut declare = |name: &str, secret: &str, queries: serde_json::Value, lag: serde_json::Value| {
        let mut source = queries;
        source["connection"] = json!({ "secretRef": { "name": secret } });
        sampler.declare_spec(name, &json!({ "source": { "prometheus": source }, "lag": lag }));
    };
    let lag = || json!({ "target": "5s" });
    let all = json!({ "pending": "3 + 4", "staleness": "12", "arrived": "100" });
    declare("user", "user", all.clone(), lag());
    declare("token", "token", all, lag());
    declare("long", "token", json!({ "pending": long }), lag());
    let target = json!({ "target": "5s", "value": { "averageTarget": 100 } });
    declare("value", "token", json!({ "value": "250" }), target);
    declare("wrong", "wrong", json!({ "pending": "1" }), lag());
    declare("elsewhere", "elsewhere", json!({ "pending": "1" }), lag());
    for (name, events) in [("user", 7), ("token", 7), ("long", 1_000)] {
        sampler.wait_pending(name, events).await;
    }
    sampler.wait_measured("a value", "value", |it| it.sample.value == Some(250.0)).await;
    sampler.wait_unknown("wrong", Reason::AuthenticationFailed).await;
    let refused = sampler.wait_unknown("elsewhere", Reason::PermissionDenied).await;
    assert!(refused.message.contains("may not ask this query"), "{}", refused.message);
    let mut asked = asked.lock().unwrap().clone();
    asked.sort_unstable();
    asked.dedup();
    assert_eq!(asked, ["GET /api/v1/query", "GET /tenants/api/v1/query", "POST /api/v1/query"]);
}

#[tokio::test]
async fn tls_is_verified_and_a_client_certificate_is_shown() {
    let (ours, other) = (authority(), authority());
    let files = Files::signed(&ours);
    let own = with_tls(&files);
    let named = own.url().replace("http://127.0.0.1", "https://localhost");
    let by_address = own.url().replace("http://", "https://");
    let (mine, mine_key) = signed(&ours, "projectionist");
    let client = |url: &str, ca: &Authority| {
        let settings = settings(&[("url", url)]).trusting(ca.pem().as_bytes()).unwrap();
        settings.showing(mine.as_bytes(), mine_key.as_bytes()).unwrap()
    };
    let asked = async |settings| -> Result<Sample, MeasureError> { ask(&mut probe_with(&settings), &value("1")).await };
    assert_eq!(asked(client(&named, &ours)).await.unwrap().value, Some(1.0), "TLS in both directions");
    for (what, settings) in [
        ("an authority that signed nothing here", client(&named, &other)),
        ("another name", client(&by_address, &ours)),
        ("the public authorities", settings(&[("url", &named)])),
        ("no client certificate", settings(&[("url", &named)]).trusting(ours.pem().as_bytes()).unwrap()),
    ] {
        let refused = asked(settings).await.unwrap_err();
        assert_eq!(refused.reason, Reason::TlsFailed, "{what}: {}", refused.message);
    }
    assert!(settings(&[("url", "http://host")]).trusting(ours.pem().as_bytes()).is_err());
    let encrypted = server().url().replace("http://", "https://");
    let refused = ask_within(&mut probe(&encrypted), &value("1"), Duration::from_secs(10)).await.unwrap_err();
    assert!(matches!(refused.reason, Reason::TlsFailed | Reason::TimedOut), "{}", refused.message);
}
