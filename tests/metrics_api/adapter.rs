//! A real server, with real TLS, that is another adapter and behaves as it is told.

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use futures::future::BoxFuture;
use http::{HeaderMap, Request, Response};
use http_body_util::Full;
use hyper::{
    body::{Bytes, Incoming},
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use projectionist::{
    metrics_api::{Delegate, certificate},
    platform::delegate_client::{AdapterClient, ServiceAddress, Tokens},
};
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use serde_json::{Value, json};
use tokio::{
    net::TcpListener,
    sync::watch,
    task::{JoinHandle, JoinSet},
};
use tokio_rustls::TlsAcceptor;

pub(crate) const EXTERNAL: &str = "/apis/external.metrics.k8s.io/v1beta1";
pub(crate) const CUSTOM: &str = "/apis/custom.metrics.k8s.io/v1beta2";
pub(crate) const TOKEN: &str = "a-token-of-the-delegate-account";

/// How the adapter behaves.
#[derive(Clone)]
pub(crate) enum Manners {
    /// Answers everything so.
    Says(u16, String),
    /// As an adapter should.
    Well,
    /// Takes requests and says nothing.
    Hangs,
}

/// A real server, with real TLS, that is another adapter.
pub(crate) struct Adapter {
    pub(crate) client: Arc<dyn Delegate>,
    pub(crate) manners: watch::Sender<Manners>,
    pub(crate) seen: Arc<Mutex<Vec<(String, String, HeaderMap)>>>,
    /// Requests under way.
    pub(crate) under_way: Arc<AtomicUsize>,
    pub(crate) address: SocketAddr,
    pub(crate) ca_file: PathBuf,
    pub(crate) ca: String,
    pub(crate) task: JoinHandle<()>,
    _dir: tempfile::TempDir,
}

pub(crate) struct Fixed;

impl Tokens for Fixed {
    fn token(&self) -> BoxFuture<'_, Result<String, String>> {
        Box::pin(async { Ok(TOKEN.to_owned()) })
    }

    fn not_taken<'a>(&'a self, _: &'a str) -> BoxFuture<'a, ()> {
        Box::pin(async {})
    }
}

impl Drop for Adapter {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub(crate) fn values(group_version: &str, kind: &str) -> String {
    json!({"kind": kind, "apiVersion": group_version, "metadata": {}, "items": [{"value": "42"}]}).to_string()
}

fn well(path: &str) -> (u16, String) {
    let list = |group_version: &str, names: &[(&str, bool)]| {
        let resource = |(name, namespaced): &(&str, bool)| json!({"name": name, "singularName": "", "namespaced": namespaced, "kind": "X", "verbs": ["get"]});
        let resources: Vec<Value> = names.iter().map(resource).collect();
        json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": resources})
            .to_string()
    };
    let (external, custom) = ("external.metrics.k8s.io/v1beta1", "custom.metrics.k8s.io/v1beta2");
    match path {
        // Ours are claimed, too: that must not count.
        EXTERNAL => (200, list(external, &[("s0-kafka", true), ("lag-of-theirs", true)])),
        CUSTOM => (200, list(custom, &[("pods/requests", true), ("things.example.org/theirs", true)])),
        path if path.starts_with(EXTERNAL) => (200, values(external, "ExternalMetricValueList")),
        path if path.starts_with(CUSTOM) => (200, values(custom, "MetricValueList")),
        _ => {
            (404, json!({"kind": "Status", "message": "the server could not find the requested resource"}).to_string())
        }
    }
}

impl Adapter {
    pub(crate) async fn start() -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let bundle = certificate::issue("adapter", "monitoring", jiff::Timestamp::now()).unwrap();
        let certificate = CertificateDer::from_pem_slice(bundle.cert_pem.as_bytes()).unwrap();
        let key = PrivateKeyDer::from_pem_slice(bundle.key_pem.as_bytes()).unwrap();
        let config = ServerConfig::builder().with_no_client_auth().with_single_cert(vec![certificate], key).unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let ca_file = dir.path().join("ca.crt");
        std::fs::write(&ca_file, &bundle.ca_pem).unwrap();
        let (manners, behaviour) = watch::channel(Manners::Well);
        let (seen, under_way) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicUsize::new(0)));
        let (saw, counting) = (seen.clone(), under_way.clone());
        let task = tokio::spawn(async move {
            // Gone with the listener.
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, behaviour, saw, counting) =
                    (acceptor.clone(), behaviour.clone(), saw.clone(), counting.clone());
                connections.spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let service = service_fn(move |request: Request<Incoming>| {
                        let (behaviour, saw, counting) = (behaviour.clone(), saw.clone(), counting.clone());
                        async move { answer(request, behaviour, &saw, &counting).await }
                    });
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        let service: ServiceAddress = "monitoring/adapter".parse().unwrap();
        let client = AdapterClient::new(&service, ca_file.clone(), Arc::new(Fixed)).unwrap();
        let client = Arc::new(client.at(address.to_string().parse().unwrap()));
        Self { client, manners, seen, under_way, address, ca_file, ca: bundle.ca_pem, task, _dir: dir }
    }

    /// What it was asked since the last look, discovery left out: path and query, method, headers.
    pub(crate) fn asked(&self) -> Vec<(String, String, HeaderMap)> {
        let mut all = std::mem::take(&mut *self.seen.lock().unwrap());
        all.retain(|(path, _, _)| {
            path != EXTERNAL && !path.starts_with("/apis/custom.metrics.k8s.io/v1beta")
                || path.contains("/namespaces/")
                || path.contains("/nodes/")
        });
        all
    }

    pub(crate) fn says(&self, code: u16, body: &str) {
        self.manners.send_replace(Manners::Says(code, body.to_owned()));
    }
}

/// Counts one request for as long as a client waits for it.
struct UnderWay<'a>(&'a AtomicUsize);

impl<'a> UnderWay<'a> {
    fn enter(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn answer(
    request: Request<Incoming>,
    mut behaviour: watch::Receiver<Manners>,
    seen: &Mutex<Vec<(String, String, HeaderMap)>>,
    under_way: &AtomicUsize,
) -> Result<Response<Full<Bytes>>, hyper::Error> {
    let path = request.uri().path_and_query().map(ToString::to_string).unwrap_or_default();
    seen.lock().unwrap().push((path.clone(), request.method().to_string(), request.headers().clone()));
    let _here = UnderWay::enter(under_way);
    let manners = behaviour.wait_for(|manners| !matches!(manners, Manners::Hangs)).await.map(|manners| manners.clone());
    let (code, body) = match manners {
        Ok(Manners::Says(code, body)) => (code, body),
        _ => well(request.uri().path()),
    };
    let response = Response::builder().status(code).header("content-type", "application/json");
    // What must not come through.
    let response = response.header("retry-after", "30").header("location", "https://127.0.0.1:1/elsewhere");
    Ok(response.body(Full::new(Bytes::from(body))).unwrap())
}
