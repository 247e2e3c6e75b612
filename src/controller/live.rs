//! What the cluster holds of one object made for a Projection, in a compact form. Pure.

use std::sync::Arc;

use kube::core::DynamicObject;
use serde_json::{Value, json};

use crate::{field_managers::managers_of, measure::ProjectionKey, names, runs::StoredSpec};

/// One object, as far as the operator needs it.
#[derive(Clone, Debug, PartialEq)]
pub struct LiveObject {
    /// The object's name.
    pub name: String,
    /// The object's UID.
    pub uid: String,
    /// The version that the API server gave it.
    pub resource_version: String,
    /// The UID of the Projection that controls it, if one does.
    pub controlled_by: Option<String>,
    /// The Projection to reconcile when it changes: its controller, or else the one in its label.
    pub made_for: Option<ProjectionKey>,
    /// It is being deleted.
    pub deleting: bool,
    /// The hash of what the operator last applied.
    pub applied_hash: Option<String>,
    /// Metadata, spec and data as JSON text: parsed only when there is something to compare.
    pub body: Box<str>,
    /// Of a workload: its number of workers.
    pub workers: WorkerCounts,
    /// The field managers that own `spec.replicas`.
    pub replica_managers: Vec<String>,
    /// Of a workload: the cluster's message about why it refuses to create its pods, if it does.
    pub refused: Option<String>,
    /// Of an autoscaler: its message about why it does not scale, if it does not.
    pub autoscaler_inactive: Option<String>,
    /// Of a ConfigMap: the spec of the run that it was made for, if it holds one.
    pub stored_spec: Option<StoredSpec>,
    /// Of an autoscaler: what its controller said last of the number of workers; absent where no controller has looked at it yet.
    pub autoscaler_sees: Option<i32>,
}

/// The numbers of a workload.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct WorkerCounts {
    /// `spec.replicas`.
    pub desired: Option<i32>,
    /// Ready pods.
    pub ready: i32,
    /// Pods are being replaced, started or stopped.
    pub rolling: bool,
    /// Pods that exist, whether ready or not.
    pub existing: i32,
    /// Pods that run an older pod template than the one in the spec.
    pub outdated: i32,
    /// The workload's controller has not looked at the newest spec yet.
    pub unobserved: bool,
    /// `spec.paused` of a Deployment.
    pub paused: bool,
    /// The Deployment's rollout made no progress within `spec.progressDeadlineSeconds`.
    pub stalled: bool,
}

impl LiveObject {
    /// Reads an object as the API server gave it.
    pub fn from_object(object: &DynamicObject) -> Self {
        let metadata = &object.metadata;
        let owner = metadata.owner_references.iter().flatten().find(|owner| owner.controller == Some(true));
        let annotations = metadata.annotations.clone().unwrap_or_default();
        let data = &object.data;
        let body = json!({
            "metadata": {
                "name": metadata.name, "namespace": metadata.namespace, "labels": metadata.labels,
                "annotations": annotations, "ownerReferences": metadata.owner_references,
            },
            "spec": data.get("spec"),
            "data": data.get("data"),
        });
        Self {
            name: metadata.name.clone().unwrap_or_default(),
            uid: metadata.uid.clone().unwrap_or_default(),
            resource_version: metadata.resource_version.clone().unwrap_or_default(),
            controlled_by: owner.map(|owner| owner.uid.clone()),
            made_for: made_for(object),
            deleting: metadata.deletion_timestamp.is_some(),
            applied_hash: annotations.get(names::APPLIED_HASH_ANNOTATION).cloned(),
            body: body.to_string().into_boxed_str(),
            workers: counts(data, metadata.generation),
            replica_managers: replica_managers(object),
            refused: condition_of(data, "ReplicaFailure", "True").map(|(_, message)| message),
            autoscaler_inactive: autoscaler_inactive(data),
            stored_spec: owner.and_then(|owner| stored_spec(data, &owner.uid)),
            autoscaler_sees: autoscaler_sees(data),
        }
    }

    /// Metadata, spec and data.
    pub fn parsed(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or(Value::Null)
    }

    /// True when the two are equal but for the version that the API server gave them.
    pub(super) fn looks_like(&self, other: &Self) -> bool {
        let Self {
            name: _,
            uid,
            resource_version: _,
            controlled_by,
            made_for,
            deleting,
            applied_hash,
            body,
            workers,
            replica_managers,
            refused,
            autoscaler_inactive,
            stored_spec: _,
            autoscaler_sees,
        } = self;
        *uid == other.uid
            && *controlled_by == other.controlled_by
            && *made_for == other.made_for
            && *deleting == other.deleting
            && *applied_hash == other.applied_hash
            && *body == other.body
            && *workers == other.workers
            && *replica_managers == other.replica_managers
            && *refused == other.refused
            && *autoscaler_inactive == other.autoscaler_inactive
            && *autoscaler_sees == other.autoscaler_sees
    }

    /// True where this state is older than the other, of the same object or a namesake.
    pub(super) fn is_older_than(&self, other: &Self) -> bool {
        is_older(&self.resource_version, &other.resource_version)
    }
}

/// Compares two versions of objects of one kind. They count upwards; where they cannot be read, the first is not taken for the older one.
pub fn is_older(version: &str, other: &str) -> bool {
    match (version.parse::<u64>(), other.parse::<u64>()) {
        (Ok(mine), Ok(theirs)) => mine < theirs,
        _ => false,
    }
}

/// It is part of the body, too.
fn stored_spec(data: &Value, uid: &str) -> Option<StoredSpec> {
    let spec = data.get("data")?.get(names::STORED_SPEC_KEY)?.as_str()?;
    let version = serde_json::from_str::<Value>(spec).ok()?.get("version")?.as_str()?.into();
    Some(StoredSpec { version, uid: uid.into(), spec: Arc::from(spec) })
}

fn counts(data: &Value, generation: Option<i64>) -> WorkerCounts {
    let number = |path: &str| data.pointer(path).and_then(Value::as_i64).and_then(|number| i32::try_from(number).ok());
    let status = |field: &str| number(&format!("/status/{field}")).unwrap_or(0);
    let desired = number("/spec/replicas");
    let observed = data.pointer("/status/observedGeneration").and_then(Value::as_i64);
    let wanted = desired.unwrap_or(0);
    let existing = status("replicas");
    let unobserved = observed < generation;
    let reason = condition_of(data, "Progressing", "False").map(|(reason, _)| reason);
    WorkerCounts {
        desired,
        ready: status("readyReplicas"),
        rolling: unobserved
            || existing != wanted
            || status("updatedReplicas") < wanted
            || status("unavailableReplicas") > 0
            || status("readyReplicas") < wanted,
        existing,
        outdated: if replaces_pods(data) { (existing - status("updatedReplicas")).max(0) } else { 0 },
        unobserved,
        paused: data.pointer("/spec/paused") == Some(&Value::Bool(true)),
        stalled: reason.is_some_and(|reason| reason == "ProgressDeadlineExceeded"),
    }
}

/// False for a StatefulSet that keeps older pods because its spec says so (`OnDelete`, a partition), or that has none.
fn replaces_pods(data: &Value) -> bool {
    let text = |path: &str| data.pointer(path).and_then(Value::as_str);
    let partition = data.pointer("/spec/updateStrategy/rollingUpdate/partition").and_then(Value::as_i64);
    let all_new = text("/status/updateRevision").is_some_and(|new| text("/status/currentRevision") == Some(new));
    text("/spec/updateStrategy/type") != Some("OnDelete") && partition.unwrap_or(0) == 0 && !all_new
}

/// Reason and message of the status condition of this type, if it has this status.
fn condition_of(data: &Value, type_: &str, status: &str) -> Option<(String, String)> {
    let conditions = data.pointer("/status/conditions")?.as_array()?;
    let text = |condition: &Value, key: &str| condition.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let found = conditions.iter().find(|one| text(one, "type") == type_ && text(one, "status") == status)?;
    Some((text(found, "reason"), text(found, "message")))
}

fn replica_managers(object: &DynamicObject) -> Vec<String> {
    managers_of(&object.metadata, "/f:spec/f:replicas").flatten().map(ToOwned::to_owned).collect()
}

fn autoscaler_inactive(data: &Value) -> Option<String> {
    // At zero workers, which suspending causes, it is disabled by design.
    let inactive = condition_of(data, "ScalingActive", "False").filter(|(reason, _)| reason != "ScalingDisabled");
    let (reason, message) = condition_of(data, "AbleToScale", "False").or(inactive)?;
    Some(format!("{reason}: {message}"))
}

/// Only an autoscaler that its controller has looked at has conditions.
fn autoscaler_sees(data: &Value) -> Option<i32> {
    let conditions = data.pointer("/status/conditions")?.as_array()?;
    let able = conditions.iter().any(|one| one.get("type").is_some_and(|type_| type_ == "AbleToScale"));
    let current = data.pointer("/status/currentReplicas").and_then(Value::as_i64).unwrap_or(0);
    able.then(|| i32::try_from(current).unwrap_or(i32::MAX))
}

/// The Projection that an object was made for: by its controller, or else by its label.
pub fn made_for(object: &DynamicObject) -> Option<ProjectionKey> {
    let metadata = &object.metadata;
    let namespace = metadata.namespace.as_deref()?;
    let owner = metadata.owner_references.iter().flatten().find(|owner| {
        owner.controller == Some(true) && owner.kind == "Projection" && owner.api_version.starts_with(names::GROUP)
    });
    let label = || metadata.labels.as_ref().and_then(|labels| labels.get(names::PROJECTION_LABEL));
    let name = owner.map(|owner| &owner.name).or_else(label)?;
    Some(ProjectionKey { namespace: namespace.into(), name: name.as_str().into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(json: Value) -> DynamicObject {
        serde_json::from_value(json).unwrap()
    }

    fn deployment(version: &str, ready: i32) -> DynamicObject {
        object(json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {
                "name": "orders", "namespace": "shop", "uid": "d-1", "resourceVersion": version, "generation": 3,
                "ownerReferences": [{"apiVersion": "projectionist.dev/v1alpha1", "kind": "Projection", "name": "orders", "uid": "u-1", "controller": true}],
                "managedFields": [
                    {"manager": "projectionist", "operation": "Apply", "fieldsV1": {"f:spec": {"f:selector": {}}}},
                    {"manager": "kube-controller-manager", "operation": "Update", "subresource": "scale", "fieldsV1": {"f:spec": {"f:replicas": {}}}},
                ],
            },
            "spec": {"replicas": 2},
            "status": {"observedGeneration": 3, "replicas": 2, "updatedReplicas": 2, "readyReplicas": ready, "unavailableReplicas": 2 - ready},
        }))
    }

    #[test]
    fn reads_what_matters_of_a_deployment() {
        let live = LiveObject::from_object(&deployment("10", 2));
        assert_eq!(live.controlled_by.as_deref(), Some("u-1"));
        assert_eq!(live.workers, WorkerCounts { desired: Some(2), ready: 2, existing: 2, ..WorkerCounts::default() });
        assert_eq!(live.replica_managers, ["kube-controller-manager"]);
        assert!(LiveObject::from_object(&deployment("10", 1)).workers.rolling);
        assert_eq!(made_for(&deployment("10", 2)).unwrap().to_string(), "shop/orders");
    }

    #[test]
    fn an_autoscaler_that_cannot_scale_says_why_and_a_sleeping_one_nothing() {
        let autoscaler = |reason: &str| {
            LiveObject::from_object(&object(json!({
                "metadata": {"name": "orders", "namespace": "shop"},
                "status": {"conditions": [{"type": "ScalingActive", "status": "False", "reason": reason, "message": "no metric"}]},
            })))
        };
        let inactive = autoscaler("FailedGetExternalMetric").autoscaler_inactive;
        assert_eq!(inactive.as_deref(), Some("FailedGetExternalMetric: no metric"));
        assert_eq!(autoscaler("ScalingDisabled").autoscaler_inactive, None);
    }
}
