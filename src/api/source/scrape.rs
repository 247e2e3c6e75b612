//! Metrics of a page in Prometheus's text format.

use std::collections::BTreeMap;

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::HttpConnection;

/// Metrics that a server shows on a page in Prometheus's text format: what waits (`pending`), or any number that the workers are scaled by (`value`).
#[derive(Clone, Debug, Deserialize, Eq, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.connection) != has(self.pods)").message("spec.source.scrape must have exactly one of connection (the page of one server) and pods (the pages of the projector's own pods)"),
    validation = Rule::new("has(self.pending) != has(self.value)").message("spec.source.scrape must have exactly one of pending (events that wait) and value (any number, with its target in spec.lag.value)"),
    validation = Rule::new("has(self.pending) || (!has(self.staleness) && !has(self.arrived))").message("spec.source.scrape: staleness and arrived have no meaning without pending"),
)]
pub struct ScrapeSource {
    /// How to reach the page. The URL, here or in the Secret, has its path: `http://exporter.shop:9100/metrics`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connection: Option<HttpConnection>,
    /// The pages of the projector's own pods, in place of `connection`. What they say is combined over all pods.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pods: Option<ScrapedPods>,
    /// The events that wait.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pending: Option<ScrapedMetric>,
    /// The age of the oldest of them in seconds. Absent: judged by how many wait and how fast they are handled. Not needed while nothing waits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub staleness: Option<ScrapedMetric>,
    /// The counter of events that arrived. Absent: arrivals are what `pending` rises by, so that events that come and are handled between two polls are
    /// not seen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub arrived: Option<ScrapedMetric>,
    /// Any number that says how much the workers have to do; its target is in `spec.lag.value`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<ScrapedMetric>,
}

/// Where each pod shows its page, over HTTP without TLS and credentials.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ScrapedPods {
    /// The port at which a container of each pod serves it.
    #[schemars(range(min = 1, max = 65_535))]
    pub port: i32,
    /// The page's path. Default: `/metrics`.
    #[serde(default = "default_path")]
    #[schemars(length(min = 1, max = 1024), pattern(r"^/[!-~]*$"))]
    pub path: String,
}

fn default_path() -> String {
    "/metrics".to_owned()
}

/// The series of one metric.
#[derive(Clone, Debug, Deserialize, Eq, Hash, JsonSchema, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ScrapedMetric {
    /// The metric's name, as on the page: `orders_pending`, `orders_duration_seconds_count`.
    #[schemars(length(min = 1, max = 256), pattern(r"^[a-zA-Z_:][a-zA-Z0-9_:]*$"))]
    pub metric: String,
    /// Only series with all these labels and values.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 16))]
    pub labels: BTreeMap<String, String>,
    /// What becomes of several series. Absent: a page must have exactly one, and over pods they are summed, and of `staleness` the largest counts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub aggregate: Option<Aggregate>,
}

/// What becomes of several series.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, JsonSchema, Ord, PartialEq, PartialOrd, Serialize)]
pub enum Aggregate {
    /// They are summed.
    Sum,
    /// The largest counts.
    Max,
    /// Their mean counts.
    Average,
}
