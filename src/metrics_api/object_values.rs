//! What the versions of `custom.metrics.k8s.io` have in common.

use super::{
    offer::MeasuredKind,
    types::{DescribedObject, LabelSelector},
};

/// The kind of every answer.
pub(super) const KIND: &str = "MetricValueList";

/// What the values of one answer have in common.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked<'a> {
    pub(super) kind: &'a MeasuredKind,
    pub(super) namespace: &'a str,
    pub(super) metric: &'a str,
    /// The selector of the metric's labels that was asked with, if there was one.
    pub(super) selector: Option<&'a LabelSelector>,
}

impl<'a> Asked<'a> {
    pub(super) fn object(&self, name: &'a str) -> DescribedObject<'a> {
        DescribedObject { kind: &self.kind.kind, namespace: self.namespace, name, api_version: &self.kind.api_version }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::metrics_api::{ObjectValue, Quantity, Selector};

    /// Two values, of which the second was computed over some time.
    pub(crate) fn values() -> Vec<ObjectValue> {
        let value = |name: &str, window_seconds| ObjectValue {
            name: name.to_owned(),
            timestamp: "2026-01-02T03:04:05.678Z".parse().unwrap(),
            window_seconds,
            value: Quantity::measured(1.5).unwrap(),
        };
        vec![value("first", None), value("second", Some(10))]
    }

    /// Asks for the metric `rate` with a selector of its labels.
    pub(crate) fn ask<T>(selector: &str, answer: impl FnOnce(&Asked<'_>) -> T) -> T {
        let kind = MeasuredKind {
            kind: "Thing".to_owned(),
            api_version: "example.org/v1".to_owned(),
            resource: "things.example.org".to_owned(),
            metrics: vec!["rate".to_owned()],
        };
        let selector = Selector::parse(selector).unwrap().as_label_selector();
        answer(&Asked { kind: &kind, namespace: "shop", metric: "rate", selector: selector.as_ref() })
    }

    /// How an object is described.
    pub(crate) fn object(name: &str) -> Value {
        json!({"kind": "Thing", "namespace": "shop", "name": name, "apiVersion": "example.org/v1"})
    }
}
