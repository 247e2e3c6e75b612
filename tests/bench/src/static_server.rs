//! A server that answers one constant metric behind the same aggregator: what is possible at all.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result};
use http_body_util::Full;
use hyper::{Response, body::Bytes, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto::Builder,
};
use k8s_openapi::ByteString;
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::json;
use test_cluster::network::NODE_ADDRESS;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::fixtures::Fixtures;

const GROUP: &str = "static.bench.projectionist.dev";
const PORT: u16 = 9443;

/// The running server; it ends with the process.
pub(crate) struct StaticServer {
    path: String,
}

impl StaticServer {
    /// What to GET.
    pub(crate) fn path(&self) -> &str {
        &self.path
    }
}

pub(crate) async fn start(fixtures: &Fixtures<'_>) -> Result<StaticServer> {
    let key = KeyPair::generate()?;
    let certificate = CertificateParams::new(vec!["static.bench.svc".to_owned()])?.self_signed(&key)?;
    let mut config = rustls::ServerConfig::builder().with_no_client_auth().with_single_cert(
        vec![certificate.der().clone()],
        PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
    )?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let listener = TcpListener::bind((NODE_ADDRESS, PORT)).await.context("binding the static server")?;
    tokio::spawn(serve(listener, TlsAcceptor::from(Arc::new(config))));

    let objects = [
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "static", "namespace": "bench"},
               "spec": {"ports": [{"name": "https", "port": 443, "targetPort": PORT}]}}),
        json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
               "metadata": {"name": "static", "namespace": "bench", "labels": {"kubernetes.io/service-name": "static"}},
               "endpoints": [{"addresses": [NODE_ADDRESS], "conditions": {"ready": true}}],
               "ports": [{"name": "https", "port": PORT, "protocol": "TCP"}]}),
        json!({"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService", "metadata": {"name": format!("v1.{GROUP}")},
               "spec": {"group": GROUP, "version": "v1", "groupPriorityMinimum": 10, "versionPriority": 10,
                        "service": {"name": "static", "namespace": "bench"}, "caBundle": ByteString(certificate.pem().into_bytes())}}),
    ];
    for object in objects {
        fixtures.cluster.apply(&object.to_string())?;
    }
    let path = format!("/apis/{GROUP}/v1/namespaces/bench/constant?labelSelector=projection%3Dmeasured-0");
    test_cluster::eventually(Duration::from_secs(60), "the static server is reached", || async {
        fixtures.get(&path).await.map(|_| true)
    })
    .await?;
    Ok(StaticServer { path })
}

async fn serve(listener: TcpListener, acceptor: TlsAcceptor) {
    // As large as one metric value of ours.
    let body = json!({
        "kind": "ExternalMetricValueList", "apiVersion": "external.metrics.k8s.io/v1beta1", "metadata": {},
        "items": [{"metricName": "projection_required_workers", "metricLabels": {"projection": "measured-0"},
                   "timestamp": "2026-01-02T03:04:05Z", "window": 60, "value": "1"}],
    });
    let body = Bytes::from(body.to_string());
    while let Ok((stream, _)) = listener.accept().await {
        let (acceptor, body) = (acceptor.clone(), body.clone());
        tokio::spawn(async move {
            let _ = stream.set_nodelay(true);
            let Ok(stream) = acceptor.accept(stream).await else { return };
            let answer = service_fn(move |_| {
                let body = Full::new(body.clone());
                async move { Response::builder().header("content-type", "application/json").body(body) }
            });
            let _ = Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), answer).await;
        });
    }
}
