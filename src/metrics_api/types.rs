//! The wire types that Kubernetes' own libraries do not offer in Rust.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{ExternalValue, GROUP, VERSION};

/// `external.metrics.k8s.io/v1beta1` ExternalMetricValueList.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ExternalMetricValueList {
    kind: &'static str,
    api_version: String,
    metadata: ListMeta,
    items: Vec<ExternalMetricValue>,
}

#[derive(Debug, Serialize)]
struct ListMeta {}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ExternalMetricValue {
    metric_name: String,
    metric_labels: BTreeMap<String, String>,
    timestamp: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    window: Option<u64>,
    value: String,
}

impl ExternalMetricValueList {
    pub(super) fn of(metric: &str, values: Vec<ExternalValue>) -> Self {
        let item = |value: ExternalValue| ExternalMetricValue {
            metric_name: metric.to_owned(),
            metric_labels: value.labels,
            timestamp: value.timestamp.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
            window: value.window_seconds,
            value: value.value.to_string(),
        };
        Self {
            kind: "ExternalMetricValueList",
            api_version: format!("{GROUP}/{VERSION}"),
            metadata: ListMeta {},
            items: values.into_iter().map(item).collect(),
        }
    }
}

/// `v1` Status of a failed request.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Status {
    kind: &'static str,
    api_version: &'static str,
    metadata: ListMeta,
    status: &'static str,
    message: String,
    reason: &'static str,
    code: u16,
}

impl Status {
    pub(super) fn failure(code: u16, reason: &'static str, message: String) -> Self {
        Self { kind: "Status", api_version: "v1", metadata: ListMeta {}, status: "Failure", message, reason, code }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics_api::Quantity;

    #[test]
    fn a_value_is_written_as_the_autoscaler_reads_it() {
        let value = ExternalValue {
            labels: BTreeMap::from([("projection".to_owned(), "orders".to_owned())]),
            timestamp: "2026-01-02T03:04:05.678Z".parse().unwrap(),
            window_seconds: None,
            value: Quantity::measured(1.5).unwrap(),
        };
        assert_eq!(
            serde_json::to_value(ExternalMetricValueList::of("projection_staleness_seconds", vec![value])).unwrap(),
            serde_json::json!({
                "kind": "ExternalMetricValueList",
                "apiVersion": "external.metrics.k8s.io/v1beta1",
                "metadata": {},
                "items": [{
                    "metricName": "projection_staleness_seconds",
                    "metricLabels": {"projection": "orders"},
                    "timestamp": "2026-01-02T03:04:05Z",
                    "value": "1500m",
                }],
            })
        );
    }
}
