//! `custom.metrics.k8s.io/v1beta1`: lists of values that describe objects, with the metric as a mere name.

use schemars::JsonSchema;
use serde::Serialize;

use super::{
    ObjectValue,
    object_values::{Asked, KIND},
    offer::ApiVersion,
    types::{DescribedObject, LabelSelector, ListMeta, time},
};

/// The values of a metric of some objects.
#[derive(Debug, JsonSchema, Serialize)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "io.k8s.metrics.pkg.apis.custom_metrics.v1beta1.MetricValueList")]
pub(super) struct MetricValueList<'a> {
    /// What this object is.
    kind: &'static str,
    /// The version of its schema.
    api_version: &'static str,
    /// Of the list.
    metadata: ListMeta,
    /// The values, one for each object.
    items: Vec<MetricValue<'a>>,
}

/// The value of a metric of one object.
#[derive(Debug, JsonSchema, Serialize)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "io.k8s.metrics.pkg.apis.custom_metrics.v1beta1.MetricValue")]
struct MetricValue<'a> {
    /// The object.
    described_object: DescribedObject<'a>,
    /// The metric's name.
    metric_name: &'a str,
    /// When it was measured.
    #[schemars(extend("format" = "date-time"))]
    timestamp: String,
    /// The seconds up to the timestamp over which it was computed; absent where it is momentary.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "i64")]
    window: Option<u64>,
    /// The value, as a quantity.
    value: String,
    /// The selector of the metric's labels in the request, if there was one.
    selector: Option<&'a LabelSelector>,
}

impl<'a> MetricValueList<'a> {
    pub(super) fn of(asked: &Asked<'a>, values: &'a [ObjectValue]) -> Self {
        let item = |value: &'a ObjectValue| MetricValue {
            described_object: asked.object(&value.name),
            metric_name: asked.metric,
            timestamp: time(value.timestamp),
            window: value.window_seconds,
            value: value.value.to_string(),
            selector: asked.selector,
        };
        Self {
            kind: KIND,
            api_version: ApiVersion::CustomV1Beta1.group_version(),
            metadata: ListMeta {},
            items: values.iter().map(item).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::metrics_api::object_values::tests::{ask, object, values};

    #[test]
    fn a_value_is_written_as_the_autoscalers_client_reads_it() {
        let time = "2026-01-02T03:04:05Z";
        let written = |selector: &str| {
            ask(selector, |asked| serde_json::to_value(MetricValueList::of(asked, &values())).unwrap())
        };
        assert_eq!(
            written(""),
            json!({
                "kind": "MetricValueList",
                "apiVersion": "custom.metrics.k8s.io/v1beta1",
                "metadata": {},
                "items": [
                    {"describedObject": object("first"), "metricName": "rate", "timestamp": time, "value": "1500m", "selector": null},
                    {"describedObject": object("second"), "metricName": "rate", "timestamp": time, "window": 10, "value": "1500m", "selector": null},
                ],
            })
        );
        assert_eq!(written("a=b")["items"][1]["selector"], json!({"matchLabels": {"a": "b"}}));
    }
}
