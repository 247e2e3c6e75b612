//! Who a caller is taken for, down to the groups that reach authorization.

use std::{sync::Arc, time::Duration};

use projectionist::metrics_api::User;
use rcgen::DnType;
use rustls::{
    ClientConfig, SignatureScheme,
    client::{ResolvesClientCert, danger::HandshakeSignatureValid},
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject},
    sign::CertifiedKey,
};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::harness::{AS_ANN, AS_MASTER, METRIC, Server, authorities};

fn asked(server: &Server) -> User {
    server.cluster.asked.lock().unwrap().last().cloned().expect("the cluster was not asked")
}

#[tokio::test]
async fn an_anonymous_caller_whom_the_proxy_passes_on_does_not_become_an_authenticated_one() {
    let server = Server::start().await;
    let mut proxy = server.connect(Some(server.front.client("front-proxy-client"))).await;
    let anonymous = &[("X-Remote-User", "system:anonymous"), ("X-Remote-Group", "system:unauthenticated")];
    assert_eq!(proxy.get(METRIC, anonymous).await.0, 403);
    assert_eq!(asked(&server).groups, ["system:unauthenticated".to_owned()].into());
    proxy.get(METRIC, &[("X-Remote-User", "system:anonymous")]).await;
    assert!(asked(&server).groups.is_empty(), "{:?}", asked(&server));
    proxy.get(METRIC, AS_ANN).await;
    assert_eq!(asked(&server).groups, ["system:authenticated".to_owned()].into());
}

#[tokio::test]
async fn everything_that_the_proxy_says_of_a_caller_reaches_authorization() {
    let server = Server::start().await;
    let mut proxy = server.connect(Some(server.front.client("front-proxy-client"))).await;
    let headers = &[
        ("X-Remote-User", "ann"),
        ("X-Remote-Uid", "u-17"),
        ("X-Remote-Group", "one"),
        ("X-Remote-Group", "two"),
        ("X-Remote-Extra-Acme.Example%2fTeam", "orders"),
    ];
    assert_eq!(proxy.get(METRIC, headers).await.0, 200);
    let user = asked(&server);
    assert_eq!(user.groups.iter().map(String::as_str).collect::<Vec<_>>(), ["one", "system:authenticated", "two"]);
    assert_eq!(user.extra["acme.example/team"], ["orders"]);
    assert_eq!(user.uid.as_deref(), Some("u-17"));
    proxy.get(METRIC, &[("X-Remote-User", "josé")]).await;
    assert_eq!(asked(&server).name, "josé");
}

#[tokio::test]
async fn what_anybody_else_says_of_a_caller_is_as_if_it_were_not_there() {
    let server = Server::start().await;
    let forged = [
        ("X-Remote-User", "admin"),
        ("X-Remote-Uid", "u-0"),
        ("X-Remote-Group", "system:masters"),
        ("X-Remote-Extra-Scopes", "all"),
    ];
    let ann = |user: User| (user.name.as_str() == "ann", user.uid, user.groups.len(), user.extra.len());
    // By her own certificate, and by her token.
    assert_eq!(server.get(Some(server.users.client("ann")), METRIC, &forged).await.0, 200);
    assert_eq!(ann(asked(&server)), (true, None, 1, 0));
    server.cluster.asked.lock().unwrap().clear();
    let with_token = [&forged[..], &[("Authorization", "Bearer good")]].concat();
    let other = METRIC.replace("/lag", "/hidden");
    assert_eq!(server.get(None, &other, &with_token).await.0, 503, "she may ask, and there is no value");
    assert_eq!(ann(asked(&server)), (true, None, 1, 0));
}

#[tokio::test]
async fn a_token_makes_its_owner_an_authenticated_user_and_is_asked_about_once() {
    let server = Server::start().await;
    let mut client = server.connect(None).await;
    for _ in 0..5 {
        assert_eq!(client.get(METRIC, &[("Authorization", "Bearer good")]).await.0, 200);
        assert_eq!(client.get(METRIC, &[("Authorization", "Bearer bad")]).await.0, 401);
    }
    assert!(asked(&server).groups.contains("system:authenticated"));
    assert_eq!(server.cluster.tokens.load(std::sync::atomic::Ordering::Relaxed), 2);
    let long = format!("Bearer {}", "x".repeat(20_000));
    assert_eq!(client.get(METRIC, &[("Authorization", &long)]).await.0, 401);
    assert_eq!(server.cluster.tokens.load(std::sync::atomic::Ordering::Relaxed), 2, "too long to be a token");
}

#[tokio::test]
async fn a_certificate_that_does_not_say_it_is_for_clients_names_no_user() {
    let server = Server::start().await;
    let silent = server.front.sign_changed("front-proxy-client", |params| params.extended_key_usages.clear());
    assert_eq!(server.get(Some(silent), METRIC, AS_MASTER).await.0, 401);
    let silent = server.users.sign_changed("ann", |params| params.extended_key_usages.clear());
    assert_eq!(server.get(Some(silent), METRIC, &[]).await.0, 401);
}

#[tokio::test]
async fn a_front_proxy_whose_certificate_an_intermediate_authority_issued_vouches() {
    let server = Server::start().await;
    let intermediate = server.front.intermediate();
    let own = CertificateDer::from_pem_slice(intermediate.pem.as_bytes()).unwrap();
    let (leaf, key) = intermediate.client("front-proxy-client");
    let with_chain = || ([leaf.clone(), vec![own.clone()]].concat(), key.clone_key());
    assert_eq!(server.get(Some(with_chain()), METRIC, AS_ANN).await.0, 200, "the chain comes with the handshake");
    assert_eq!(asked(&server).name, "ann");
    let alone = || (leaf.clone(), key.clone_key());
    assert_eq!(server.get(Some(alone()), METRIC, AS_ANN).await.0, 401, "nothing leads to the authority");
    // The bundle of the ConfigMap holds both authorities, or the intermediate one alone.
    for bundle in [format!("{}{}", server.front.pem, intermediate.pem), intermediate.pem.clone()] {
        server.authorities.send_replace(authorities(&bundle, &server.users.pem));
        assert_eq!(server.get(Some(alone()), METRIC, AS_ANN).await.0, 200);
        assert_eq!(server.get(Some(with_chain()), METRIC, AS_ANN).await.0, 200);
    }
    // An intermediate authority of users passes no user on, and a certificate for servers is no client's.
    let other = server.users.intermediate();
    let own = CertificateDer::from_pem_slice(other.pem.as_bytes()).unwrap();
    let (leaf, key) = other.client("front-proxy-client");
    server.get(Some(([leaf, vec![own.clone()]].concat(), key)), METRIC, AS_MASTER).await;
    assert_eq!(asked(&server).name, "front-proxy-client", "a user of that name, and not the proxy");
    let (leaf, key) = intermediate.sign("front-proxy-client", &[], rcgen::ExtendedKeyUsagePurpose::ServerAuth);
    assert_eq!(server.get(Some((leaf, key)), METRIC, AS_MASTER).await.0, 401);
}

#[tokio::test]
async fn expired_and_nameless_certificates_name_no_user() {
    let server = Server::start().await;
    let expired = server.users.sign_changed("ann", |params| params.not_after = rcgen::date_time_ymd(2020, 1, 1));
    assert_eq!(server.get(Some(expired), METRIC, &[]).await.0, 401);
    let early = server.users.sign_changed("ann", |params| params.not_before = rcgen::date_time_ymd(3000, 1, 1));
    assert_eq!(server.get(Some(early), METRIC, &[]).await.0, 401);
    let nameless = server.users.sign_changed("ann", |params| {
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "system:masters");
    });
    assert_eq!(server.get(Some(nameless), METRIC, &[]).await.0, 401);
}

#[tokio::test]
async fn a_certificate_that_expires_stops_counting_on_an_open_connection() {
    let server = Server::start().await;
    let soon = std::time::SystemTime::now() + Duration::from_secs(3);
    let short = server.users.sign_changed("ann", |params| params.not_after = soon.into());
    let mut client = server.connect(Some(short)).await;
    assert_eq!(client.get(METRIC, &[]).await.0, 200);
    let mut code = 200;
    for _ in 0..40 {
        tokio::time::sleep(Duration::from_millis(500)).await;
        code = client.get(METRIC, &[]).await.0;
        if code != 200 {
            break;
        }
    }
    assert_eq!(code, 401);
}

#[tokio::test]
async fn a_rotated_authority_of_users_counts_at_once_on_open_connections() {
    let server = Server::start().await;
    let mut client = server.connect(Some(server.users.client("ann"))).await;
    assert_eq!(client.get(METRIC, &[]).await.0, 200);
    let rotated = crate::harness::Authority::new();
    server.authorities.send_replace(authorities(&server.front.pem, &rotated.pem));
    assert_eq!(client.get(METRIC, &[]).await.0, 401);
    server.authorities.send_replace(authorities(&server.front.pem, &(rotated.pem.clone() + &server.users.pem)));
    assert_eq!(client.get(METRIC, &[]).await.0, 200, "both authorities count while they are exchanged");
}

/// Shows another user's certificate and signs with a key of its own.
#[derive(Debug)]
struct Thief(Arc<CertifiedKey>);

impl ResolvesClientCert for Thief {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

#[derive(Debug)]
struct AnyServer;

impl rustls::client::danger::ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ECDSA_NISTP256_SHA256]
    }
}

#[tokio::test]
async fn showing_a_certificate_without_its_key_ends_the_connection() {
    let server = Server::start().await;
    let (stolen, _) = server.front.client("front-proxy-client");
    let (_, own_key) = server.front.client("thief");
    let key = rustls::crypto::ring::default_provider().key_provider.load_private_key(own_key).unwrap();
    let mut config = ClientConfig::builder()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyServer))
        .with_client_cert_resolver(Arc::new(Thief(Arc::new(CertifiedKey::new(stolen, key)))));
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let stream = TcpStream::connect(server.address).await.unwrap();
    // In TLS 1.3 the client is done before the server has looked at its signature: the refusal comes with the first read.
    if let Ok(mut stream) =
        TlsConnector::from(Arc::new(config)).connect("metrics.system.svc".try_into().unwrap(), stream).await
    {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let request = format!(
            "GET {METRIC} HTTP/1.1\r\nHost: x\r\nX-Remote-User: admin\r\nX-Remote-Group: system:masters\r\n\r\n"
        );
        let _ = stream.write_all(request.as_bytes()).await;
        let mut answer = Vec::new();
        let error = stream.read_to_end(&mut answer).await.expect_err("the server went on");
        assert!(answer.is_empty());
        assert!(error.to_string().contains("alert"), "{error}");
    }
}
