//! OpenAPI documents: what `kubectl explain` reads, and what the aggregator would otherwise complain of for ever.

use http::HeaderMap;
use serde_json::{Value, json};

use super::{
    GROUP, VERSION,
    reply::{Answer, Document, fingerprint},
};

const LIST: &str = "io.k8s.metrics.pkg.apis.external_metrics.v1beta1.ExternalMetricValueList";
const VALUE: &str = "io.k8s.metrics.pkg.apis.external_metrics.v1beta1.ExternalMetricValue";

/// The documents.
#[derive(Clone, Debug)]
pub(super) struct OpenApi {
    v2: Document,
    v3: Document,
    v3_group: Document,
}

impl OpenApi {
    pub(super) fn new() -> Self {
        let group = v3_group();
        let path = format!("apis/{GROUP}/{VERSION}");
        let url = format!("/openapi/v3/{path}?hash={}", fingerprint(&group.to_string()));
        let mut paths = serde_json::Map::new();
        paths.insert(path, json!({"serverRelativeURL": url}));
        Self {
            v2: Document::json(&v2()),
            v3: Document::json(&json!({"paths": paths})),
            v3_group: Document::json(&group),
        }
    }

    /// `/openapi/v2`
    pub(super) fn v2(&self, request: &HeaderMap) -> Answer {
        self.v2.answer(request)
    }

    /// `/openapi/v3`
    pub(super) fn v3(&self, request: &HeaderMap) -> Answer {
        self.v3.answer(request)
    }

    /// `/openapi/v3/apis/<group>/<version>`
    pub(super) fn v3_group(&self, request: &HeaderMap) -> Answer {
        self.v3_group.answer(request)
    }
}

fn info() -> Value {
    json!({"title": "Projectionist", "version": env!("CARGO_PKG_VERSION")})
}

fn values_path() -> String {
    format!("/apis/{GROUP}/{VERSION}/namespaces/{{namespace}}/{{metric}}")
}

/// The schemas, with references that begin with `prefix`.
fn schemas(prefix: &str) -> Value {
    let kind = |kind: &str| json!([{"group": GROUP, "version": VERSION, "kind": kind}]);
    json!({
        LIST: {
            "description": "ExternalMetricValueList is a list of values for a given metric for some set of labels",
            "type": "object",
            "required": ["items"],
            "properties": {
                "apiVersion": {"type": "string", "description": "The versioned schema of this object."},
                "kind": {"type": "string", "description": "What this object is."},
                "metadata": {"type": "object", "description": "Of the list."},
                "items": {"type": "array", "description": "The values.", "items": {"$ref": format!("{prefix}{VALUE}")}},
            },
            "x-kubernetes-group-version-kind": kind("ExternalMetricValueList"),
        },
        VALUE: {
            "description": "One value of an external metric.",
            "type": "object",
            "required": ["metricName", "metricLabels", "timestamp", "value"],
            "properties": {
                "metricName": {"type": "string", "description": "The metric's name."},
                "metricLabels": {"type": "object", "description": "Labels that identify this value.", "additionalProperties": {"type": "string"}},
                "timestamp": {"type": "string", "format": "date-time", "description": "When it was measured."},
                "window": {"type": "integer", "format": "int64", "description": "The seconds over which it was computed."},
                "value": {"type": "string", "description": "The value, as a quantity."},
            },
        },
    })
}

fn v2() -> Value {
    let parameter = |name: &str, place: &str, required: bool| json!({"name": name, "in": place, "required": required, "type": "string"});
    json!({
        "swagger": "2.0",
        "info": info(),
        "paths": {
            values_path(): {"get": {
                "operationId": "listExternalMetricsV1beta1NamespacedExternalMetric",
                "description": "The values of an external metric",
                "produces": ["application/json"],
                "parameters": [parameter("namespace", "path", true), parameter("metric", "path", true), parameter("labelSelector", "query", false)],
                "responses": {"200": {"description": "OK", "schema": {"$ref": format!("#/definitions/{LIST}")}}},
            }},
        },
        "definitions": schemas("#/definitions/"),
    })
}

fn v3_group() -> Value {
    let parameter = |name: &str, place: &str, required: bool| json!({"name": name, "in": place, "required": required, "schema": {"type": "string"}});
    json!({
        "openapi": "3.0.0",
        "info": info(),
        "paths": {
            values_path(): {"get": {
                "operationId": "listExternalMetricsV1beta1NamespacedExternalMetric",
                "description": "The values of an external metric",
                "parameters": [parameter("namespace", "path", true), parameter("metric", "path", true), parameter("labelSelector", "query", false)],
                "responses": {"200": {
                    "description": "OK",
                    "content": {"application/json": {"schema": {"$ref": format!("#/components/schemas/{LIST}")}}},
                }},
            }},
        },
        "components": {"schemas": schemas("#/components/schemas/")},
    })
}
