//! Who may read, and over which connection.

use std::sync::Arc;

use projectionist::{addresses::AddressRules, api::Reason, sources::kurrentdb::KurrentDbProbe};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::{
    RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::WebPkiClientVerifier,
};
use tokio_rustls::TlsAcceptor;

use crate::{
    harness::{ago, ask, ask_within, at, exactly, probe, probe_of, settings, stream},
    server::Fake,
};

#[tokio::test]
async fn a_wrong_password_is_refused_in_words_and_so_is_none() {
    let fake = Fake::start().await;
    fake.database(|database| database.append("orders", 3, ago(60)));
    fake.require_login("shop", "hunter2");
    assert_eq!(ask(&mut probe(&fake), &stream("orders"), Some(&at(Some(0)))).await.unwrap().pending, exactly(2));
    for (login, reason) in [("shop:hunter3@", Reason::AuthenticationFailed), ("", Reason::PermissionDenied)] {
        let mut probe = probe_of(settings(&format!("esdb://{login}{}?tls=false", fake.at)));
        let refused = ask(&mut probe, &stream("orders"), Some(&at(Some(0)))).await.unwrap_err();
        assert_eq!(refused.reason, reason, "{}", refused.message);
        assert!(refused.message.contains("Secret") && !refused.message.contains("hunter3"), "{}", refused.message);
    }
}

#[tokio::test]
async fn the_operators_own_machine_is_not_asked() {
    let fake = Fake::start().await;
    let settings = settings(&format!("esdb://shop:hunter2@{}?tls=false", fake.at));
    let mut probe = KurrentDbProbe::new(settings, Arc::new(AddressRules::default()), std::time::Instant::now());
    let refused = ask(&mut probe, &stream("orders"), Some(&at(Some(0)))).await.unwrap_err();
    assert_eq!((refused.reason, fake.connections()), (Reason::AddressRefused, 0), "{}", refused.message);
}

fn authority() -> CertifiedIssuer<'static, KeyPair> {
    let mut authority = CertificateParams::default();
    authority.distinguished_name.push(DnType::CommonName, "authority");
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(authority, KeyPair::generate().unwrap()).unwrap()
}

fn signed(by: &CertifiedIssuer<'static, KeyPair>, name: &str) -> (String, String) {
    let key = KeyPair::generate().unwrap();
    let mut certificate = CertificateParams::new(vec![name.to_owned()]).unwrap();
    certificate.distinguished_name.push(DnType::CommonName, name);
    let certificate = certificate.signed_by(&key, by).unwrap();
    (certificate.pem(), key.serialize_pem())
}

/// A server that shows a certificate for `localhost`, asks for one of the same authority, and offers these protocols.
fn acceptor(authority: &CertifiedIssuer<'static, KeyPair>, protocols: &[&[u8]]) -> TlsAcceptor {
    let (certificate, key) = signed(authority, "localhost");
    let der = |pem: &str| CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(der(&authority.pem())).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider)).build().unwrap();
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![der(&certificate)], PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap())
        .unwrap();
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    TlsAcceptor::from(Arc::new(config))
}

#[tokio::test]
async fn tls_is_verified_a_client_certificate_is_shown_and_http_2_agreed_on() {
    let (ours, other) = (authority(), authority());
    let fake = Fake::with_tls(Some(acceptor(&ours, &[b"h2", b"http/1.1"]))).await;
    fake.database(|database| database.append("orders", 3, ago(60)));
    let port = fake.at.port();
    let named = format!("esdb://shop:hunter2@localhost:{port}");
    let (mine, mine_key) = signed(&ours, "projectionist");
    let client = |url: &str, ca: &CertifiedIssuer<'static, KeyPair>| {
        settings(url).with_ca(ca.pem().as_bytes()).with_client_certificate(mine.as_bytes(), mine_key.as_bytes())
    };
    let orders = stream("orders");
    let right = ask(&mut probe_of(client(&named, &ours)), &orders, Some(&at(Some(0)))).await.unwrap();
    assert_eq!(right.pending, exactly(2));
    for (what, settings) in [
        ("an authority that signed nothing here", client(&named, &other)),
        ("another name", client(&format!("esdb://shop:hunter2@127.0.0.1:{port}"), &ours)),
        ("the public authorities", settings(&named)),
        ("no client certificate", settings(&named).with_ca(ours.pem().as_bytes())),
        ("an authority that is none", settings(&named).with_ca(b"hello")),
    ] {
        let refused = ask(&mut probe_of(settings), &orders, Some(&at(Some(0)))).await.expect_err(what);
        assert_eq!(refused.reason, Reason::TlsFailed, "{what}: {}", refused.message);
    }
    let plain = Fake::start().await;
    let encrypted = settings(&format!("esdb://shop:hunter2@localhost:{}", plain.at.port()));
    let short = std::time::Duration::from_secs(5);
    let refused = ask_within(&mut probe_of(encrypted), &orders, Some(&at(Some(0))), short).await.unwrap_err();
    assert_eq!(refused.reason, Reason::TlsFailed, "{}", refused.message);
    assert!(refused.message.contains("tls=false"), "{}", refused.message);
    let old = Fake::with_tls(Some(acceptor(&ours, &[]))).await;
    let named = format!("esdb://shop:hunter2@localhost:{}", old.at.port());
    let refused = ask(&mut probe_of(client(&named, &ours)), &orders, Some(&at(Some(0)))).await.unwrap_err();
    assert_eq!(refused.reason, Reason::InvalidAnswer);
    assert!(refused.message.contains("no HTTP/2 was agreed on"), "{}", refused.message);
}
