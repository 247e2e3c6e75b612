//! Callers who want to hurt: what they get, and what everybody else gets meanwhile.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use hyper::body::Bytes;
use rustls::pki_types::{CertificateDer, pem::PemObject};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpSocket,
};

use crate::harness::{AS_ANN, METRIC, Server};

/// Answers of a server to raw bytes, until it closes or is silent for long.
pub(crate) async fn raw(server: &Server, as_ann: bool, request: &[u8]) -> String {
    let identity = as_ann.then(|| server.users.client("ann"));
    let mut stream = server.tls(identity, "http/1.1").await;
    stream.write_all(request).await.unwrap();
    let mut answer = vec![0; 64 * 1024];
    let read = tokio::time::timeout(Duration::from_secs(5), stream.read(&mut answer)).await;
    let length = read.expect("no answer within 5 s").unwrap_or(0);
    String::from_utf8_lossy(&answer[..length]).into_owned()
}

#[tokio::test]
async fn connect_upgrade_and_old_protocols_open_nothing() {
    let server = Server::start().await;
    for (request, code) in [
        ("CONNECT db:5432 HTTP/1.1\r\nHost: db:5432\r\n\r\n".to_owned(), "400"),
        ("OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), "400"),
        ("GET /../../healthz HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), "400"),
        (format!("GET {METRIC} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"), "200"),
        (format!("GET {METRIC} HTTP/1.0\r\n\r\n"), "200"),
        (format!("GET {METRIC} HTTP/1.1\r\n\r\n"), "400"),
        (format!("GET {METRIC} HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n"), "400"),
        (format!("GET {METRIC} HTTP/1.1\r\nHost: x\r\nHost: x\r\n\r\n"), "400"),
        (format!("GET {METRIC} HTTP/1.1\r\nHost: x/y\r\n\r\n"), "400"),
        ("GET /healthz HTTP/1.1\r\n\r\n".to_owned(), "400"),
        (format!("GET https://elsewhere{METRIC} HTTP/1.1\r\nHost: x\r\n\r\n"), "200"),
    ] {
        let answer = raw(&server, true, request.as_bytes()).await;
        let status = answer.split(' ').nth(1).unwrap_or_default();
        assert_eq!(status, code, "{request:.40}: {answer:.300}");
        assert!(answer.to_ascii_lowercase().contains("content-type: application/json"), "{request:.40}: {answer:.300}");
    }
}

#[tokio::test]
async fn long_names_and_paths_are_refused_without_asking_the_cluster() {
    let server = Server::start().await;
    let mut client = server.connect(Some(server.users.client("ann"))).await;
    client.get("/apis", &[]).await;
    let values = "/apis/external.metrics.k8s.io/v1beta1/namespaces";
    for path in [format!("{values}/shop/{}", "m".repeat(3_000)), format!("{values}/{}/lag", "n".repeat(300))] {
        let asked = server.cluster.asked.lock().unwrap().len();
        assert_eq!(client.get(&path, &[]).await.0, 400, "{path:.80}");
        assert_eq!(server.cluster.asked.lock().unwrap().len(), asked, "not worth a question to the cluster");
    }
    let late = format!("{METRIC}?labelSelector=a%3Db&x=%zz");
    assert_eq!(client.get(&late, &[]).await.0, 400, "a query is understood whole or refused");
}

#[tokio::test]
async fn one_address_that_takes_all_the_room_leaves_some_to_others() {
    let server = Server::start().await;
    let mut held = Vec::new();
    for _ in 0..700 {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
        held.extend(tokio::time::timeout(Duration::from_secs(2), socket.connect(server.address)).await);
    }
    let code =
        tokio::time::timeout(Duration::from_secs(120), server.get(Some(server.users.client("ann")), METRIC, &[]));
    assert_eq!(code.await.expect("others wait").0, 200);
}

#[tokio::test]
async fn idle_connections_of_the_api_servers_own_address_cost_the_aggregator_no_read() {
    let server = Arc::new(Server::start().await);
    let proxy = || Some(server.front.client("front-proxy-client"));
    let mut early = server.connect(proxy()).await;
    let mut idle = Vec::new();
    for _ in 0..200 {
        idle.push(server.tls(None, "h2").await);
    }
    assert_eq!(early.get(METRIC, AS_ANN).await.0, 200, "a connection that was there before");
    let reads = (0..300).map(|_| {
        let (server, identity) = (server.clone(), proxy());
        tokio::spawn(async move { server.get(identity, METRIC, AS_ANN).await.0 })
    });
    let reads: Vec<_> = reads.collect();
    let mut codes = BTreeMap::new();
    for read in reads {
        *codes.entry(read.await.expect("a read failed")).or_insert(0) += 1;
    }
    assert_eq!(codes, BTreeMap::from([(200, 300)]));
    assert_eq!(early.get(METRIC, AS_ANN).await.0, 200);
}

#[tokio::test]
async fn who_never_says_who_he_is_is_sent_away() {
    let server = Server::start().await;
    let (mut silent, mut probing) = (server.tls(None, "http/1.1").await, server.connect(None).await);
    let mut known = server.connect(Some(server.users.client("ann"))).await;
    assert_eq!(known.get(METRIC, &[]).await.0, 200);
    let mut answer = Vec::new();
    let silence = tokio::time::timeout(Duration::from_secs(120), silent.read_to_end(&mut answer));
    assert!(silence.await.is_ok(), "a connection without a request is still open");
    tokio::time::timeout(Duration::from_secs(120), async {
        // The end may come between two looks or between a look and a request.
        while probing.0.ready().await.is_ok() && probing.try_get("/healthz").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    })
    .await
    .expect("a connection on which no client ever identified itself is still open");
    assert_eq!(known.get(METRIC, &[]).await.0, 200, "who is known stays");
}

#[tokio::test]
async fn rapid_resets_end_the_connection_of_their_sender_and_no_other() {
    let server = Server::start().await;
    let mut other = server.connect(Some(server.users.client("ann"))).await;
    let attacker = server.tls(Some(server.users.client("ann")), "h2").await;
    let attack = tokio::spawn(async move {
        let (mut sender, connection) = h2::client::handshake(attacker).await.unwrap();
        let connection = tokio::spawn(connection);
        let mut sent = 0;
        for _ in 0..20_000 {
            let Ok(ready) = sender.clone().ready().await else { break };
            sender = ready;
            let request = http::Request::get(format!("https://metrics.system.svc{METRIC}")).body(()).unwrap();
            let Ok((_, mut stream)) = sender.send_request(request, true) else { break };
            stream.send_reset(h2::Reason::CANCEL);
            sent += 1;
        }
        // The sender is kept: this side does not end the connection.
        let end = tokio::time::timeout(Duration::from_secs(120), connection).await;
        drop(sender);
        (sent, end)
    });
    while !attack.is_finished() {
        assert_eq!(other.get(METRIC, &[]).await.0, 200, "another caller");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let (sent, end) = attack.await.unwrap();
    let end = end.unwrap_or_else(|_| panic!("the attacker's connection is still open after {sent} resets")).unwrap();
    // Whether the reason arrives before the end is chance.
    let why = end.expect_err("it ended in peace");
    let calm = why.reason() == Some(h2::Reason::ENHANCE_YOUR_CALM);
    assert!(why.is_io() || (why.is_remote() && calm), "after {sent} resets: {why}");
}

#[tokio::test]
async fn a_header_bomb_over_http2_is_refused() {
    let server = Server::start().await;
    let mut client = server.connect(Some(server.users.client("ann"))).await;
    let filler = "x".repeat(4_000);
    let names: Vec<String> = (0..64).map(|number| format!("x-filler-{number}")).collect();
    let mut request = http::Request::get(format!("https://metrics.system.svc{METRIC}"));
    for name in &names {
        request = request.header(name, &filler);
    }
    let answer = client.0.send_request(request.body(http_body_util::Full::<Bytes>::default()).unwrap()).await;
    assert!(answer.is_err() || answer.is_ok_and(|answer| answer.status() == 431));
    assert_eq!(server.get(Some(server.users.client("ann")), METRIC, &[]).await.0, 200);
}

#[tokio::test]
async fn an_older_tls_is_not_spoken() {
    let server = Server::start().await;
    for (version, spoken) in [(&rustls::version::TLS12, false), (&rustls::version::TLS13, true)] {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(server.server_ca.as_bytes()).unwrap()).unwrap();
        let config = rustls::ClientConfig::builder_with_protocol_versions(&[version]);
        let config = config.with_root_certificates(roots).with_no_client_auth();
        let stream = tokio::net::TcpStream::connect(server.address).await.unwrap();
        let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(config));
        let shaken = connector.connect("metrics.system.svc".try_into().unwrap(), stream).await;
        assert_eq!(shaken.is_ok(), spoken, "{version:?}: {:?}", shaken.err());
    }
}
