//! `external.metrics.k8s.io/v1beta1`: lists of values that belong to no object.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Serialize;

use super::{
    ExternalValue,
    offer::ApiVersion,
    types::{ListMeta, time},
};

/// The values of an external metric that a label selector matches.
#[derive(Debug, JsonSchema, Serialize)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "io.k8s.metrics.pkg.apis.external_metrics.v1beta1.ExternalMetricValueList")]
pub(super) struct ExternalMetricValueList<'a> {
    /// What this object is.
    kind: &'static str,
    /// The version of its schema.
    api_version: &'static str,
    /// Of the list.
    metadata: ListMeta,
    /// The values.
    items: Vec<ExternalMetricValue<'a>>,
}

/// One value of an external metric.
#[derive(Debug, JsonSchema, Serialize)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "io.k8s.metrics.pkg.apis.external_metrics.v1beta1.ExternalMetricValue")]
struct ExternalMetricValue<'a> {
    /// The metric's name.
    metric_name: &'a str,
    /// Labels that tell this value from the others of the metric.
    metric_labels: BTreeMap<String, String>,
    /// When it was measured.
    #[schemars(extend("format" = "date-time"))]
    timestamp: String,
    /// The seconds up to the timestamp over which it was computed; absent where it is momentary.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "i64")]
    window: Option<u64>,
    /// The value, as a quantity.
    value: String,
}

impl<'a> ExternalMetricValueList<'a> {
    pub(super) const KIND: &'static str = "ExternalMetricValueList";

    pub(super) fn of(metric: &'a str, values: Vec<ExternalValue>) -> Self {
        let item = |value: ExternalValue| ExternalMetricValue {
            metric_name: metric,
            metric_labels: value.labels,
            timestamp: time(value.timestamp),
            window: value.window_seconds,
            value: value.value.to_string(),
        };
        Self {
            kind: Self::KIND,
            api_version: ApiVersion::ExternalV1Beta1.group_version(),
            metadata: ListMeta {},
            items: values.into_iter().map(item).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics_api::Quantity;

    #[test]
    fn a_value_is_written_as_the_autoscaler_reads_it() {
        let value = |window_seconds| ExternalValue {
            labels: BTreeMap::from([("thing".to_owned(), "first".to_owned())]),
            timestamp: "2026-01-02T03:04:05.678Z".parse().unwrap(),
            window_seconds,
            value: Quantity::measured(1.5).unwrap(),
        };
        let list = ExternalMetricValueList::of("staleness_seconds", vec![value(None), value(Some(10))]);
        assert_eq!(
            serde_json::to_value(list).unwrap(),
            serde_json::json!({
                "kind": "ExternalMetricValueList",
                "apiVersion": "external.metrics.k8s.io/v1beta1",
                "metadata": {},
                "items": [{
                    "metricName": "staleness_seconds",
                    "metricLabels": {"thing": "first"},
                    "timestamp": "2026-01-02T03:04:05Z",
                    "value": "1500m",
                }, {
                    "metricName": "staleness_seconds",
                    "metricLabels": {"thing": "first"},
                    "timestamp": "2026-01-02T03:04:05Z",
                    "window": 10,
                    "value": "1500m",
                }],
            })
        );
    }
}
