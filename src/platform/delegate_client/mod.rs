//! Sends requests to another adapter's service: over TLS that is verified against a given authority, as a ServiceAccount that may do nothing else.
//! Knows nothing of the caller and of what the answer means.
//!
//! HTTP/1.1, a connection for each request under way: one that hangs is dropped with its request and takes no other with it.

mod tokens;

use std::{
    path::PathBuf,
    str::FromStr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use futures::future::BoxFuture;
use http::{HeaderValue, Request, StatusCode, header, uri::Authority};
use http_body_util::{BodyExt as _, Empty, LengthLimitError, Limited};
use hyper_rustls::{FixedServerNameResolver, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};

use crate::metrics_api::{Delegate, DelegateAnswer, DelegateError};

pub use tokens::{ServiceAccountTokens, Tokens};

/// Where an adapter that does not say otherwise serves.
const USUAL_PORT: u16 = 443;
/// An address that takes longer to connect to is not reached.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Connections that wait for another request, and for how long.
const MOST_IDLE: usize = 8;
const IDLE_FOR: Duration = Duration::from_secs(30);
const LARGEST_CA_FILE: usize = 1024 * 1024;

/// A service in the cluster, written `NAMESPACE/NAME` or `NAMESPACE/NAME:PORT`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ServiceAddress {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its port.
    pub port: u16,
}

impl ServiceAddress {
    /// Its name in the cluster's DNS and in its certificate, as the API server asks for it.
    pub fn host(&self) -> String {
        format!("{}.{}.svc", self.name, self.namespace)
    }
}

impl FromStr for ServiceAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (service, port) = match text.split_once(':') {
            Some((service, port)) => {
                (service, port.parse().ok().filter(|port| *port != 0).ok_or("the port is no number from 1 to 65535")?)
            }
            None => (text, USUAL_PORT),
        };
        let (namespace, name) =
            service.split_once('/').ok_or("a service is written NAMESPACE/NAME or NAMESPACE/NAME:PORT")?;
        let is_label = |label: &str| {
            let plain = |letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == '-';
            (1..=63).contains(&label.len())
                && label.chars().all(plain)
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        if !is_label(namespace) || !is_label(name) {
            return Err(
                "a namespace or the name of a service is lower case letters, digits and dashes, at most 63".to_owned()
            );
        }
        Ok(Self { namespace: namespace.to_owned(), name: name.to_owned(), port })
    }
}

/// Another adapter's service.
pub struct AdapterClient {
    name: String,
    host: String,
    dial: Authority,
    ca_file: PathBuf,
    tokens: Arc<dyn Tokens>,
    trusting: Mutex<Option<Trusting>>,
}

type Https = Client<HttpsConnector<HttpConnector>, Empty<Bytes>>;

/// A client, and the text of the authorities that it trusts.
struct Trusting {
    authorities: Vec<u8>,
    client: Https,
}

impl AdapterClient {
    /// `ca_file` holds the authorities, in PEM, one of which must have signed the service's certificate; it is read again for each
    /// request, so that a changed one counts at once.
    ///
    /// # Errors
    /// When the service's name cannot be one of a host.
    pub fn new(
        service: &ServiceAddress,
        ca_file: PathBuf,
        tokens: Arc<dyn Tokens>,
    ) -> Result<Self, http::uri::InvalidUri> {
        let host = service.host();
        let dial = Authority::from_str(&format!("{host}:{}", service.port))?;
        let name = format!("the service {}/{}", service.namespace, service.name);
        Ok(Self { name, host, dial, ca_file, tokens, trusting: Mutex::default() })
    }

    /// Connects to another address, and verifies the same name.
    #[must_use]
    pub fn at(mut self, dial: Authority) -> Self {
        self.dial = dial;
        self
    }

    async fn client(&self) -> Result<Https, String> {
        let file = self.ca_file.display();
        let text = tokio::fs::read(&self.ca_file)
            .await
            .map_err(|error| format!("its authority {file} cannot be read: {error}"))?;
        let mut trusting = self.trusting.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(current) = trusting.as_ref().filter(|current| current.authorities == text) {
            return Ok(current.client.clone());
        }
        let roots = authorities(&text).map_err(|why| format!("its authority {file} cannot be used: {why}"))?;
        let client = trust(roots, &self.host)?;
        *trusting = Some(Trusting { authorities: text, client: client.clone() });
        Ok(client)
    }

    async fn ask(&self, path_and_query: &str, most_bytes: usize) -> Result<DelegateAnswer, DelegateError> {
        let unreachable = DelegateError::Unreachable;
        let client = self.client().await.map_err(unreachable)?;
        let token = self.tokens.token().await.map_err(unreachable)?;
        let mut bearer = HeaderValue::from_str(&format!("Bearer {token}"))
            .map_err(|_| unreachable("the ServiceAccount's token is no header".to_owned()))?;
        bearer.set_sensitive(true);
        let request = Request::get(format!("https://{}{path_and_query}", self.dial))
            .header(header::HOST, &self.host)
            .header(header::ACCEPT, "application/json")
            .header(header::AUTHORIZATION, bearer)
            .header(header::USER_AGENT, concat!("projectionist/", env!("CARGO_PKG_VERSION")))
            .body(Empty::new())
            .map_err(|error| unreachable(format!("the request cannot be written: {error}")))?;
        let answer = client.request(request).await.map_err(|error| unreachable(causes(&error)))?;
        let (parts, body) = answer.into_parts();
        if parts.status == StatusCode::UNAUTHORIZED {
            self.tokens.not_taken(&token).await;
        }
        let body = Limited::new(body, most_bytes).collect().await.map_err(|error| {
            match error.downcast_ref::<LengthLimitError>() {
                Some(_) => DelegateError::TooLarge(most_bytes),
                None => unreachable(causes(error.as_ref())),
            }
        })?;
        Ok(DelegateAnswer { status: parts.status, body: body.to_bytes() })
    }
}

impl Delegate for AdapterClient {
    fn name(&self) -> &str {
        &self.name
    }

    fn get<'a>(
        &'a self,
        path_and_query: &'a str,
        most_bytes: usize,
    ) -> BoxFuture<'a, Result<DelegateAnswer, DelegateError>> {
        Box::pin(self.ask(path_and_query, most_bytes))
    }
}

fn authorities(pem: &[u8]) -> Result<RootCertStore, String> {
    if pem.len() > LARGEST_CA_FILE {
        return Err(format!("it is larger than {LARGEST_CA_FILE} bytes"));
    }
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(|_| "it is not PEM".to_owned())?;
        roots.add(certificate).map_err(|error| format!("a certificate in it is no authority: {error}"))?;
    }
    if roots.is_empty() { Err("it holds no certificate".to_owned()) } else { Ok(roots) }
}

fn trust(roots: RootCertStore, host: &str) -> Result<Https, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let host = ServerName::try_from(host.to_owned()).map_err(|error| error.to_string())?;
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
    let tls = HttpsConnectorBuilder::new().with_tls_config(config).https_only();
    let connector =
        tls.with_server_name_resolver(FixedServerNameResolver::new(host)).enable_http1().wrap_connector(tcp);
    let mut builder = Client::builder(TokioExecutor::new());
    builder.pool_timer(TokioTimer::new()).pool_max_idle_per_host(MOST_IDLE).pool_idle_timeout(IDLE_FOR);
    Ok(builder.build(connector))
}

/// An error with all that is behind it: the outermost says only that there was one.
fn causes(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_is_written_with_its_namespace_and_perhaps_its_port() {
        let address = |text: &str| text.parse::<ServiceAddress>();
        let keda = address("keda/keda-operator-metrics-apiserver").unwrap();
        assert_eq!((keda.host().as_str(), keda.port), ("keda-operator-metrics-apiserver.keda.svc", 443));
        assert_eq!(address("monitoring/adapter:6443").unwrap().port, 6443);
        for bad in [
            "",
            "adapter",
            "a/b/c",
            "a/b:",
            "a/b:0",
            "a/b:65536",
            "a/b:x",
            "A/b",
            "a/b.evil.example",
            "a/-b",
            "a/b@c",
            "a/",
            "/b",
        ] {
            assert!(address(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn authorities_are_read_whole_or_not_at_all() {
        let now = jiff::Timestamp::from_second(1_800_000_000).unwrap();
        let ca = crate::metrics_api::certificate::issue("metrics", "system", now).unwrap().ca_pem;
        assert_eq!(authorities(format!("{ca}{ca}").as_bytes()).unwrap().len(), 2);
        for bad in ["", "garbage", &ca[..ca.len() / 2], &"x".repeat(LARGEST_CA_FILE + 1)] {
            assert!(authorities(bad.as_bytes()).is_err(), "{bad:.20}");
        }
    }
}
