//! Settings of the pods that run the built-in projector: where they run, and what the platform asks of them.

use std::collections::BTreeMap;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// An object of the Kubernetes API, kept as written, so that fields newer than this operator survive. The API server checks it when the
/// workers' Deployment is applied.
type AsWritten = Map<String, Value>;

/// Settings of the pods that run the built-in projector. What is absent here comes from the operator's own settings (the chart's `workers`).
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkerPod {
    /// Further labels of the pods, added to those of the operator's settings. The operator adds its own.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Annotations of the pods, added to those of the operator's settings.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// Labels that a node must have, added to those of the operator's settings.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,
    /// Taints that the pods tolerate, as in a pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "objects")]
    pub tolerations: Option<Vec<AsWritten>>,
    /// Affinity of the pods, as in a pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "object")]
    pub affinity: Option<AsWritten>,
    /// How the pods spread, as in a pod. Default: over nodes, where that is possible.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "objects")]
    pub topology_spread_constraints: Option<Vec<AsWritten>>,
    /// Secrets of the Projection's namespace to pull the image with, as in a pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "objects")]
    pub image_pull_secrets: Option<Vec<AsWritten>>,
    /// Priority class of the pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub priority_class_name: Option<String>,
    /// Runtime class of the pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub runtime_class_name: Option<String>,
    /// ServiceAccount of the pods, such as one that a platform's security rules name. Its token is not mounted: a worker does not speak to the API server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub service_account_name: Option<String>,
    /// Security context of the pods, as in a pod. It replaces the default (a user id of 65532) as a whole, so that `{}` leaves the user id to the platform; the
    /// pods never run as root, and with the seccomp profile RuntimeDefault, unless it says otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "object")]
    pub pod_security_context: Option<AsWritten>,
    /// Security context of the container, as in a container. It replaces the default (a read-only root file system) as a whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "object")]
    pub security_context: Option<AsWritten>,
}

fn object(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "object", "nullable": true, "x-kubernetes-preserve-unknown-fields": true })
}

fn objects(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "nullable": true,
        "maxItems": 64,
        "items": { "type": "object", "x-kubernetes-preserve-unknown-fields": true },
    })
}

impl WorkerPod {
    /// These settings, with what they leave out taken from `defaults`. Maps are joined key by key; everything else counts as a whole.
    #[must_use]
    pub fn or(self, defaults: &Self) -> Self {
        let defaults = defaults.clone();
        let joined = |own: BTreeMap<String, String>, mut all: BTreeMap<String, String>| {
            all.extend(own);
            all
        };
        // Destructured, so that a new field cannot be forgotten.
        let Self {
            labels,
            annotations,
            node_selector,
            tolerations,
            affinity,
            topology_spread_constraints,
            image_pull_secrets,
            priority_class_name,
            runtime_class_name,
            service_account_name,
            pod_security_context,
            security_context,
        } = self;
        Self {
            labels: joined(labels, defaults.labels),
            annotations: joined(annotations, defaults.annotations),
            node_selector: joined(node_selector, defaults.node_selector),
            tolerations: tolerations.or(defaults.tolerations),
            affinity: affinity.or(defaults.affinity),
            topology_spread_constraints: topology_spread_constraints.or(defaults.topology_spread_constraints),
            image_pull_secrets: image_pull_secrets.or(defaults.image_pull_secrets),
            priority_class_name: priority_class_name.or(defaults.priority_class_name),
            runtime_class_name: runtime_class_name.or(defaults.runtime_class_name),
            service_account_name: service_account_name.or(defaults.service_account_name),
            pod_security_context: pod_security_context.or(defaults.pod_security_context),
            security_context: security_context.or(defaults.security_context),
        }
    }
}
