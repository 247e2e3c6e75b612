//! Who may ask: users, tokens, tenants, TLS in both directions.

use std::time::Duration;

use projectionist::{api::Reason, clients::ServerSettings, lag::Sample, measure::MeasureError};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use test_cluster::{Prometheus, PrometheusOptions};

use crate::harness::{Says, ask, ask_within, fake, number, probe, probe_with, settings, target, value};

/// `hunter2`, as bcrypt writes it.
pub const USERS: &str = "basic_auth_users: {shop: $2y$04$abcdefghijklmnopqrstuuV3duMsC0HpUex6N9qapiuOHHWkwRXVm}";

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
    (certificate.signed_by(&key, by).unwrap().pem(), key.serialize_pem())
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

#[tokio::test]
async fn tls_is_verified_and_a_client_certificate_is_shown() {
    let (ours, other) = (authority(), authority());
    let (certificate, key) = signed(&ours, "localhost");
    let files = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = files.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let web = format!(
        "tls_server_config: {{cert_file: {}, key_file: {}, client_ca_file: {}, client_auth_type: RequireAndVerifyClientCert}}",
        file("crt", &certificate),
        file("key", &key),
        file("ca", &ours.pem())
    );
    let own = Prometheus::with(target(), &PrometheusOptions { web, ..PrometheusOptions::default() }).unwrap();
    let named = own.url().replace("http://127.0.0.1", "https://localhost");
    let by_address = own.url().replace("http://", "https://");
    let (mine, mine_key) = signed(&ours, "projectionist");
    let client = |url: &str, ca: &CertifiedIssuer<'static, KeyPair>| {
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
    let encrypted = crate::harness::server().url().replace("http://", "https://");
    let refused = ask_within(&mut probe(&encrypted), &value("1"), Duration::from_secs(10)).await.unwrap_err();
    assert!(matches!(refused.reason, Reason::TlsFailed | Reason::TimedOut), "{}", refused.message);
}
