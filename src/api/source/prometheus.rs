//! Queries to Prometheus, and how to reach a server over HTTP.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use crate::api::{CaSecretRef, ClientCertificateRef, SecretKeyRef};

/// Queries in PromQL, each with one number as its result: what waits (`pending`), or any number that the workers are scaled by (`value`).
#[derive(Clone, Debug, Deserialize, Eq, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.pending) != has(self.value)").message("spec.source.prometheus must have exactly one of pending (events that wait) and value (any number, with its target in spec.lag.value)"),
    validation = Rule::new("has(self.pending) || (!has(self.staleness) && !has(self.arrived))").message("spec.source.prometheus: staleness and arrived have no meaning without pending"),
)]
pub struct PrometheusSource {
    /// How to reach the server. Without a Secret, `url` says it: `http://prometheus.monitoring:9090`, or with a path before `/api/v1`.
    pub connection: HttpConnection,
    /// The tenant, sent as the header `X-Scope-OrgID`, for servers that have tenants (Mimir, Cortex, Thanos).
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 150), pattern(r"^[!-~]+$"))]
    pub tenant: Option<String>,
    /// The events that wait, such as `sum(orders_queue_length)`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 4096))]
    pub pending: Option<String>,
    /// The age of the oldest of them in seconds, such as `time() - min(orders_oldest_timestamp_seconds)`. Absent: judged by how many wait and how fast they are
    /// handled. Not asked for while nothing waits.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 4096))]
    pub staleness: Option<String>,
    /// The counter of events that arrived, such as `sum(orders_appended_total)`. Absent: arrivals are what `pending` rises by, so that events that come and are
    /// handled between two polls are not seen.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 4096))]
    pub arrived: Option<String>,
    /// Any number that says how much the workers have to do, such as `sum(rate(http_requests_total[1m]))`; its target is in `spec.lag.value`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 4096))]
    pub value: Option<String>,
}

/// How to reach a server over HTTP: a URL without credentials, or a Secret that holds the URL together with its credentials.
#[derive(Clone, Debug, Default, Deserialize, Eq, Hash, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.url) != has(self.secretRef)").message("connection must have exactly one of url and secretRef: a credential goes only to the server that its Secret names"))]
pub struct HttpConnection {
    /// The URL, `http://…` or `https://…`, without user and password.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 8, max = 2048), pattern(r"^https?://[^@\s]+$"))]
    pub url: Option<String>,
    /// The Secret with the key `url` and, as far as the server asks for them, `username` and `password`, or `token` (bearer).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<SecretKeyRef>,
    /// The Secret and the key that hold the certificate authority (PEM) that signed the server's certificate. Default: the public authorities.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_secret_ref: Option<CaSecretRef>,
    /// The Secret with the certificate that shows the server who we are: keys `tls.crt` and `tls.key` (PEM).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_certificate_secret_ref: Option<ClientCertificateRef>,
}
