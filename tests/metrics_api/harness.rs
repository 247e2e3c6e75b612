//! A server with real certificates, and a client that can be anybody.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
};

use futures::future::BoxFuture;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper_util::rt::{TokioExecutor, TokioIo};
use projectionist::metrics_api::{
    ApiMetrics, Attributes, CONNECTION_AGE, ClientAuthorities, Delegates, ExternalValue, MeasuredKind, MetricValues,
    ObjectQuery, ObjectValue, Offer, Quantity, Rate, ReviewError, Reviews, Selector, ServeOptions, User, ValueError,
    certificate, server::serve, serving::ServingCertificate,
};
use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject},
};
use serde_json::Value;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{oneshot, watch},
};
use tokio_rustls::{TlsConnector, client::TlsStream};

pub(crate) const METRIC: &str = "/apis/external.metrics.k8s.io/v1beta1/namespaces/shop/lag";

/// An authority of clients and what it signs.
pub(crate) struct Authority {
    pub(crate) pem: String,
    pub(crate) issuer: Issuer<'static, KeyPair>,
}

pub(crate) type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { pem, issuer: Issuer::new(params, key) }
    }

    pub(crate) fn sign(&self, name: &str, groups: &[&str], usage: ExtendedKeyUsagePurpose) -> Identity {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        for group in groups {
            params.distinguished_name.push(DnType::OrganizationName, *group);
        }
        params.extended_key_usages = vec![usage];
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        (vec![certificate.der().clone()], PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())))
    }

    /// Signs a certificate with the fields that `change` leaves.
    pub(crate) fn sign_changed(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> Identity {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        (vec![certificate.der().clone()], PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())))
    }

    pub(crate) fn client(&self, name: &str) -> Identity {
        self.sign(name, &[], ExtendedKeyUsagePurpose::ClientAuth)
    }

    /// An authority that this one signs. Its certificates come without the chain.
    pub(crate) fn intermediate(&self) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "intermediate");
        let key = KeyPair::generate().unwrap();
        let pem = params.signed_by(&key, &self.issuer).unwrap().pem();
        Self { pem, issuer: Issuer::new(params, key) }
    }
}

pub(crate) struct Constant;

impl MetricValues for Constant {
    fn external(&self, namespace: &str, metric: &str, _: &Selector) -> Result<Vec<ExternalValue>, ValueError> {
        match (namespace, metric) {
            ("shop", "lag") => Ok(vec![ExternalValue {
                labels: BTreeMap::new(),
                timestamp: jiff::Timestamp::UNIX_EPOCH,
                window_seconds: None,
                value: Quantity::count(7),
            }]),
            ("shop", "hidden") => Err(ValueError::Unavailable("the database does not answer".to_owned())),
            _ => Err(ValueError::NotFound("there is no such metric".to_owned())),
        }
    }

    /// In the shop there are `first` (gold), `second` (gold) and `third` (tin); `hidden` is known of none of the gold ones.
    fn objects(&self, query: &ObjectQuery<'_>) -> Result<Vec<ObjectValue>, ValueError> {
        let mut values = Vec::new();
        for (name, tier, count) in [("first", "gold", 1), ("second", "gold", 2), ("third", "tin", 3)] {
            let named = query.name.is_none_or(|wanted| wanted == name);
            let label = |key: &str, wanted: &str| (key == wanted).then_some(());
            let selected = query.labels.matches_by(|key| label(key, "tier").map(|()| tier))
                && query.metric_labels.matches_by(|key| label(key, "thing").map(|()| name));
            if query.namespace != "shop" || !named || !selected {
                continue;
            }
            if query.metric == "hidden" && tier == "gold" {
                return Err(ValueError::Unavailable(format!(
                    "hidden of {name} is unknown: the database does not answer"
                )));
            }
            values.push(ObjectValue {
                name: name.to_owned(),
                timestamp: jiff::Timestamp::UNIX_EPOCH,
                window_seconds: (query.metric == "rate").then_some(10),
                value: Quantity::count(count),
            });
        }
        if values.is_empty() { Err(ValueError::NotFound("there is no such thing".to_owned())) } else { Ok(values) }
    }
}

/// Things, each with three metrics.
pub(crate) fn things() -> MeasuredKind {
    MeasuredKind {
        kind: "Thing".to_owned(),
        api_version: "example.org/v1".to_owned(),
        resource: "things.example.org".to_owned(),
        metrics: ["lag", "rate", "hidden"].map(ToOwned::to_owned).to_vec(),
    }
}

/// A cluster in which only `ann` may read and `good` is a token of hers.
#[derive(Clone, Default)]
pub(crate) struct Cluster {
    pub(crate) down: Arc<AtomicBool>,
    /// Keeps answers about access back while true.
    pub(crate) slow: Arc<AtomicBool>,
    /// Keeps each answer about access back for so many milliseconds. It is an error then, which is not cached, so that the next
    /// one is kept back, too.
    pub(crate) held_for: Arc<AtomicU64>,
    /// Whom it was asked about.
    pub(crate) asked: Arc<Mutex<Vec<User>>>,
    /// What they wanted.
    pub(crate) wanted: Arc<Mutex<Vec<Attributes>>>,
    /// Tokens that it was asked about.
    pub(crate) tokens: Arc<AtomicUsize>,
}

impl Reviews for Cluster {
    fn user_of_token<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Result<Option<User>, ReviewError>> {
        self.tokens.fetch_add(1, Ordering::Relaxed);
        let user = (token == "good").then(|| User { name: "ann".to_owned(), ..User::default() });
        Box::pin(async move { Ok(user) })
    }

    fn may<'a>(
        &'a self,
        user: &'a User,
        wanted: &'a Attributes,
    ) -> BoxFuture<'a, Result<Result<(), String>, ReviewError>> {
        self.asked.lock().unwrap().push(user.clone());
        self.wanted.lock().unwrap().push(wanted.clone());
        let held_for = std::time::Duration::from_millis(self.held_for.load(Ordering::Relaxed));
        let down = self.down.load(Ordering::Relaxed) || !held_for.is_zero();
        let may = if user.name == "ann" { Ok(()) } else { Err("no role".to_owned()) };
        let slow = self.slow.clone();
        Box::pin(async move {
            tokio::time::sleep(held_for).await;
            while slow.load(Ordering::Relaxed) {
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
            if down { Err(ReviewError("down".to_owned())) } else { Ok(may) }
        })
    }
}

pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    pub(crate) server_ca: String,
    pub(crate) front: Authority,
    pub(crate) users: Authority,
    pub(crate) cluster: Cluster,
    pub(crate) metrics: ApiMetrics,
    pub(crate) authorities: watch::Sender<Arc<ClientAuthorities>>,
    pub(crate) bundle: certificate::CertificateBundle,
    pub(crate) certificates: watch::Sender<Option<Arc<ServingCertificate>>>,
    pub(crate) stop: Option<oneshot::Sender<()>>,
    pub(crate) task: tokio::task::JoinHandle<()>,
}

pub(crate) fn authorities(front: &str, users: &str) -> Arc<ClientAuthorities> {
    let config = [
        ("client-ca-file", users),
        ("requestheader-client-ca-file", front),
        ("requestheader-allowed-names", r#"["front-proxy-client"]"#),
        ("requestheader-username-headers", r#"["X-Remote-User"]"#),
        ("requestheader-uid-headers", r#"["X-Remote-Uid"]"#),
        ("requestheader-group-headers", r#"["X-Remote-Group"]"#),
        ("requestheader-extra-headers-prefix", r#"["X-Remote-Extra-"]"#),
    ];
    let config = config.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
    Arc::new(ClientAuthorities::from_config(&config).unwrap())
}

/// With the authority behind it, as cert-manager writes it into `tls.crt` and clients do not need it.
pub(crate) fn serving(bundle: &certificate::CertificateBundle) -> ServingCertificate {
    ServingCertificate::from_pem(&format!("{}{}", bundle.cert_pem, bundle.ca_pem), &bundle.key_pem).unwrap()
}

impl Server {
    pub(crate) async fn start() -> Self {
        Self::offering(Offer { external: true, objects: Some(things()) }).await
    }

    pub(crate) async fn offering(offer: Offer) -> Self {
        Self::with(offer, |_| {}).await
    }

    /// With options that `change` has the last word on.
    pub(crate) async fn with(offer: Offer, change: impl FnOnce(&mut ServeOptions<Constant, Cluster>)) -> Self {
        Self::serving(Constant, offer, change).await
    }

    /// With values of one's own.
    pub(crate) async fn serving<V: MetricValues>(
        values: V,
        offer: Offer,
        change: impl FnOnce(&mut ServeOptions<V, Cluster>),
    ) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (front, users, cluster) = (Authority::new(), Authority::new(), Cluster::default());
        let bundle = certificate::issue("metrics", "system", jiff::Timestamp::now()).unwrap();
        let server_ca = bundle.ca_pem.clone();
        let serving = serving(&bundle);
        let (certificates, certificate) = watch::channel(Some(Arc::new(serving)));
        let (authorities_sender, authorities) = watch::channel(authorities(&front.pem, &users.pem));
        let (stop, stopped) = oneshot::channel::<()>();
        let reviews = cluster.clone();
        let metrics = ApiMetrics::default();
        let mut options = ServeOptions {
            certificate,
            authorities,
            offer,
            delegates: Delegates::default(),
            values,
            read_models: None,
            reviews,
            rate: Rate::default(),
            connection_age: CONNECTION_AGE,
            metrics: metrics.clone(),
        };
        change(&mut options);
        let task = tokio::spawn(async move {
            serve(listener, options, async move { drop(stopped.await) }).await.unwrap();
        });
        Self {
            address,
            bundle,
            server_ca,
            front,
            users,
            cluster,
            metrics,
            authorities: authorities_sender,
            certificates,
            stop: Some(stop),
            task,
        }
    }

    pub(crate) async fn tls(&self, identity: Option<Identity>, alpn: &str) -> TlsStream<TcpStream> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.server_ca.as_bytes()).unwrap()).unwrap();
        let config = ClientConfig::builder().with_root_certificates(roots);
        let mut config = match identity {
            Some((chain, key)) => config.with_client_auth_cert(chain, key).unwrap(),
            None => config.with_no_client_auth(),
        };
        config.alpn_protocols = vec![alpn.as_bytes().to_vec()];
        let stream = TcpStream::connect(self.address).await.unwrap();
        Self::handshake(config, stream).await.unwrap()
    }

    async fn handshake(config: ClientConfig, stream: TcpStream) -> std::io::Result<TlsStream<TcpStream>> {
        TlsConnector::from(Arc::new(config)).connect("metrics.system.svc".try_into().unwrap(), stream).await
    }

    pub(crate) async fn connect(&self, identity: Option<Identity>) -> Connection {
        let stream = self.tls(identity, "h2").await;
        let (sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        Connection(sender)
    }

    pub(crate) async fn get(
        &self,
        identity: Option<Identity>,
        path: &str,
        headers: &[(&str, &str)],
    ) -> (u16, Value, HeaderMap) {
        self.connect(identity).await.get(path, headers).await
    }
}

pub(crate) struct Connection(pub(crate) hyper::client::conn::http2::SendRequest<Full<Bytes>>);

impl Connection {
    /// A request that the end of the connection may overtake.
    pub(crate) async fn try_get(&mut self, path: &str) -> hyper::Result<()> {
        let request = Request::get(format!("https://metrics.system.svc{path}")).body(Full::default()).unwrap();
        self.0.send_request(request).await.map(drop)
    }

    pub(crate) async fn send(&mut self, method: &str, path: &str, headers: &[(&str, &str)]) -> Response<Bytes> {
        let mut request = Request::builder().method(method).uri(format!("https://metrics.system.svc{path}"));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = self.0.send_request(request.body(Full::default()).unwrap()).await.unwrap();
        let (parts, body) = response.into_parts();
        Response::from_parts(parts, body.collect().await.unwrap().to_bytes())
    }

    pub(crate) async fn get(&mut self, path: &str, headers: &[(&str, &str)]) -> (u16, Value, HeaderMap) {
        let response = self.send("GET", path, headers).await;
        let body = serde_json::from_slice(response.body()).unwrap_or(Value::Null);
        (response.status().as_u16(), body, response.headers().clone())
    }
}

pub(crate) const AS_ANN: &[(&str, &str)] = &[("X-Remote-User", "ann")];
pub(crate) const AS_MASTER: &[(&str, &str)] = &[("X-Remote-User", "admin"), ("X-Remote-Group", "system:masters")];
