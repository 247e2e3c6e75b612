//! The query of rate and backlog that a team may write, served to a real HorizontalPodAutoscaler: a metrics adapter of its own that Projectionist asks
//! for what is not its own (`metricsApi.delegate`), since a group has one provider only.
//!
//! It is the best that a query can be: it knows each shard's rows and what a worker handles, and is asked afresh at each look.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context, Result};
use bench_scaling::traces::PER_WORKER;
use http_body_util::Full;
use hyper::{Request, Response, StatusCode, body::Bytes, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto::Builder,
};
use jiff::Timestamp;
use projectionist::metrics_api::certificate::issue;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use serde_json::{Value, json};
use test_cluster::{Cluster, Postgres, network::NODE_ADDRESS};
use tokio::net::TcpListener;
use tokio_postgres::Client;
use tokio_rustls::TlsAcceptor;

use crate::{NAMESPACE, cell::DATABASE, ways::QUERY_METRIC};

const SERVICE: &str = "query";
const PORT: u16 = 9_443;
/// Seconds over which arrivals are counted.
const RATE_OVER: f64 = 10.0;
/// Seconds in which what waits is to be gone.
const GONE_IN: f64 = 8.0;

/// The schema of each Projection that is asked for, and whether its checkpoint is one row.
pub type Schemas = Arc<Mutex<BTreeMap<String, (String, bool)>>>;

/// Begins to answer, for as long as the process lives. What is returned are arguments for the operator's chart.
pub async fn serve(cluster: &Cluster, server: &Postgres, schemas: Schemas) -> Result<Vec<String>> {
    let bundle = issue(SERVICE, NAMESPACE, Timestamp::now())?;
    let certificates = CertificateDer::pem_slice_iter(bundle.cert_pem.as_bytes()).collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_slice(bundle.key_pem.as_bytes())?;
    let config = rustls::ServerConfig::builder().with_no_client_auth().with_single_cert(certificates, key)?;
    let listener = TcpListener::bind((NODE_ADDRESS, PORT)).await.context("binding the query's server")?;
    let client = Arc::new(server.connect(DATABASE).await?);
    tokio::spawn(accept(listener, TlsAcceptor::from(Arc::new(config)), client, schemas));

    let metadata = json!({"name": SERVICE, "namespace": NAMESPACE});
    let reader = "bench-query-reader";
    let objects = json!({"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": {"ports": [{"name": "https", "port": 443, "targetPort": PORT}]}},
        {"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
         "metadata": {"name": SERVICE, "namespace": NAMESPACE, "labels": {"kubernetes.io/service-name": SERVICE}},
         "endpoints": [{"addresses": [NODE_ADDRESS], "conditions": {"ready": true}}],
         "ports": [{"name": "https", "port": PORT, "protocol": "TCP"}]},
        {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": reader},
         "rules": [{"apiGroups": ["external.metrics.k8s.io"], "resources": [QUERY_METRIC], "verbs": ["list"]}]},
        {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": reader},
         "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": reader},
         "subjects": [{"kind": "ServiceAccount", "name": "horizontal-pod-autoscaler", "namespace": "kube-system"}]},
    ]});
    cluster.apply(&objects.to_string())?;
    let values = json!({"metricsApi": {"delegate": {"external": {
        "service": SERVICE, "namespace": NAMESPACE, "caBundle": bundle.ca_pem, "readerClusterRole": reader,
    }}}});
    let file = cluster.instance().dir().join("delegate-values.json");
    std::fs::write(&file, values.to_string())?;
    Ok(vec![format!("--values={}", file.display())])
}

async fn accept(listener: TcpListener, acceptor: TlsAcceptor, client: Arc<Client>, schemas: Schemas) {
    while let Ok((stream, _)) = listener.accept().await {
        let (acceptor, client, schemas) = (acceptor.clone(), Arc::clone(&client), Arc::clone(&schemas));
        tokio::spawn(async move {
            let Ok(stream) = acceptor.accept(stream).await else { return };
            let answer = service_fn(move |request: Request<hyper::body::Incoming>| {
                let (client, schemas) = (Arc::clone(&client), Arc::clone(&schemas));
                async move { reply(answer(&client, &schemas, request.uri()).await) }
            });
            let _ = Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), answer).await;
        });
    }
}

fn reply(answer: Result<Value>) -> Result<Response<Full<Bytes>>, http::Error> {
    let (code, body) = match answer {
        Ok(body) => (StatusCode::OK, body),
        Err(error) => {
            let message = format!("{error:#}");
            (
                StatusCode::INTERNAL_SERVER_ERROR,
                json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 500, "message": message}),
            )
        }
    };
    Response::builder()
        .status(code)
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from(body.to_string())))
}

async fn answer(client: &Client, schemas: &Schemas, uri: &http::Uri) -> Result<Value> {
    if !uri.path().ends_with(&format!("/{QUERY_METRIC}")) {
        let resource = json!({"name": QUERY_METRIC, "singularName": "", "namespaced": true, "kind": "ExternalMetricValueList", "verbs": ["get"]});
        return Ok(json!({
            "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": "external.metrics.k8s.io/v1beta1", "resources": [resource],
        }));
    }
    let projection = selected(uri.query().unwrap_or_default()).context("labelSelector must be projection=NAME")?;
    let found = schemas.lock().unwrap_or_else(PoisonError::into_inner).get(&projection).cloned();
    let (schema, one_row) = found.with_context(|| format!("there is no cell {projection}"))?;
    let row = client.query_one(&statement(&schema, one_row), &[&RATE_OVER]).await?;
    let value = workers(row.get(0), row.get(1));
    Ok(json!({
        "kind": "ExternalMetricValueList", "apiVersion": "external.metrics.k8s.io/v1beta1", "metadata": {},
        "items": [{"metricName": QUERY_METRIC, "metricLabels": {"projection": projection}, "timestamp": Timestamp::now(),
                   "value": format!("{:.0}m", (value * 1_000.0).ceil())}],
    }))
}

/// The NAME of `labelSelector=projection=NAME`.
fn selected(query: &str) -> Option<String> {
    let selector = query.split('&').find_map(|part| part.strip_prefix("labelSelector="))?;
    let selector = percent_encoding::percent_decode_str(selector).decode_utf8().ok()?;
    selector.strip_prefix("projection=").map(ToOwned::to_owned)
}

/// Events that came in the last `$1` seconds, and those that wait.
fn statement(schema: &str, one_row: bool) -> String {
    let waiting = if one_row {
        format!("select count(*) from {schema}.events where position > (select position from {schema}.checkpoints)")
    } else {
        format!(
            "select coalesce(sum(n), 0) from {schema}.checkpoints c cross join lateral
             (select count(*) as n from {schema}.events e where e.shard = c.shard and e.position > c.position) w"
        )
    };
    format!(
        "select (select count(*) from {schema}.events where recorded_at > now() - make_interval(secs => $1))::float8, ({waiting})::float8"
    )
}

/// Workers that take what comes, and what waits within [`GONE_IN`].
fn workers(came: f64, waiting: f64) -> f64 {
    came / RATE_OVER / PER_WORKER + waiting / (PER_WORKER * GONE_IN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn asks_for_the_rate_and_the_backlog_together() {
        assert!((workers(2_300.0, 400.0) - 5.6).abs() < 1e-9);
    }

    #[test]
    fn the_selector_names_the_projection() {
        assert_eq!(selected("labelSelector=projection%3Dquery-3"), Some("query-3".to_owned()));
        assert_eq!(selected("limit=1&labelSelector=projection=x"), Some("x".to_owned()));
        assert_eq!(selected("labelSelector=app%3Dx"), None);
    }
}
