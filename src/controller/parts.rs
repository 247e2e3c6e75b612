//! The objects that are made for a Projection: their kinds and names, and how a declared one is compared with what is there.
//!
//! Pure: no client, no clock.

use std::collections::BTreeMap;

use kube::core::{ApiResource, GroupVersionKind};
use serde_json::{Map, Value, json};

pub use crate::resolve::Owner;
use crate::{measure::RunKey, names};

/// One of the objects made for a Projection.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Part {
    /// The built-in projector's configuration.
    ConfigMap,
    /// The workers.
    Deployment,
    /// Keeps a drained node from taking several workers at once.
    PodDisruptionBudget,
    /// Scales the workers.
    HorizontalPodAutoscaler,
}

impl Part {
    /// All, in the order in which they are made: what others refer to comes first.
    pub const ALL: [Self; 4] =
        [Self::ConfigMap, Self::Deployment, Self::PodDisruptionBudget, Self::HorizontalPodAutoscaler];

    /// The kind, as in the object.
    pub fn kind(self) -> &'static str {
        self.names().2
    }

    /// `group/version`, as in the object.
    pub fn api_version(self) -> String {
        let (group, version, _, _) = self.names();
        if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") }
    }

    /// How the API server calls it.
    pub fn api_resource(self) -> ApiResource {
        let (group, version, kind, plural) = self.names();
        ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, kind), plural)
    }

    /// The name of the object made for this run.
    pub fn object_name(self, RunKey { projection, version }: &RunKey) -> String {
        let run = match version {
            None => projection.name.to_string(),
            Some(version) => format!("{}-{version}", projection.name),
        };
        match self {
            Self::ConfigMap => format!("{run}-projector"),
            Self::Deployment | Self::PodDisruptionBudget | Self::HorizontalPodAutoscaler => run,
        }
    }

    fn names(self) -> (&'static str, &'static str, &'static str, &'static str) {
        match self {
            Self::ConfigMap => ("", "v1", "ConfigMap", "configmaps"),
            Self::Deployment => ("apps", "v1", "Deployment", "deployments"),
            Self::PodDisruptionBudget => ("policy", "v1", "PodDisruptionBudget", "poddisruptionbudgets"),
            Self::HorizontalPodAutoscaler => {
                ("autoscaling", "v2", "HorizontalPodAutoscaler", "horizontalpodautoscalers")
            }
        }
    }
}

/// An object as the operator declares it.
#[derive(Clone, Debug, PartialEq)]
pub struct Desired {
    /// What it is.
    pub part: Part,
    /// Its name.
    pub name: String,
    /// The whole object. Holds the hash as an annotation.
    pub body: Value,
    /// A hash of the object without that annotation.
    pub hash: String,
}

impl Desired {
    /// Adds to `rest` (spec or data) what every object of the operator's has.
    pub fn new(part: Part, owner: &Owner, rest: Map<String, Value>) -> Self {
        let name = part.object_name(&owner.run);
        let mut body = json!({
            "apiVersion": part.api_version(),
            "kind": part.kind(),
            "metadata": {
                "name": name,
                "namespace": owner.namespace(),
                "labels": object_labels(owner.name()),
                "ownerReferences": [{
                    "apiVersion": format!("{}/v1alpha1", names::GROUP),
                    "kind": "Projection",
                    "name": owner.name(),
                    "uid": owner.uid,
                    "controller": true,
                    "blockOwnerDeletion": true,
                }],
            },
        });
        if let Value::Object(fields) = &mut body {
            fields.extend(rest);
        }
        let hash = format!("{:016x}", fingerprint(&body));
        body["metadata"]["annotations"] = json!({ names::APPLIED_HASH_ANNOTATION: hash });
        Self { part, name, body, hash }
    }
}

/// Labels of every object that the operator makes.
pub fn object_labels(projection: &str) -> Value {
    json!({ names::MANAGED_BY_LABEL: names::FIELD_MANAGER, names::PROJECTION_LABEL: projection })
}

/// The labels by which the workers of a run are found, none of which another run's workers have.
pub fn worker_labels(RunKey { projection, version }: &RunKey) -> [(&'static str, &str); 2] {
    [
        (names::PROJECTION_LABEL, &projection.name),
        (names::VERSION_LABEL, version.as_deref().unwrap_or(names::UNVERSIONED)),
    ]
}

/// The selector of the workers of a run.
pub fn worker_selector(run: &RunKey) -> Value {
    json!({ "matchLabels": BTreeMap::from(worker_labels(run)) })
}

/// FNV-1a over the JSON text: stable between builds, which the standard library's hashes do not promise.
pub fn fingerprint(value: &Value) -> u64 {
    value
        .to_string()
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

/// True when every field of `declared` is in `live` with the same value; what `live` has beyond belongs to others.
pub fn contains(live: &Value, declared: &Value) -> bool {
    match (live, declared) {
        (Value::Object(live), Value::Object(declared)) => declared
            .iter()
            .all(|(key, value)| live.get(key).map_or_else(|| is_empty(value), |live| contains(live, value))),
        (Value::Array(live), Value::Array(declared)) => {
            live.len() == declared.len() && live.iter().zip(declared).all(|(live, declared)| contains(live, declared))
        }
        (live, declared) => live == declared,
    }
}

/// What `live` has of the fields in `declared`: the server may have rewritten their values (0.5 CPU becomes 500m), so that the
/// same object is compared with itself later.
pub fn restrict(live: &Value, declared: &Value) -> Value {
    match (live, declared) {
        (Value::Object(live), Value::Object(declared)) => Value::Object(
            declared
                .iter()
                .filter_map(|(key, value)| live.get(key).map(|live| (key.clone(), restrict(live, value))))
                .collect(),
        ),
        (Value::Array(live), Value::Array(declared)) if live.len() == declared.len() => {
            Value::Array(live.iter().zip(declared).map(|(live, declared)| restrict(live, declared)).collect())
        }
        (live, _) => live.clone(),
    }
}

/// The server drops empty maps and lists.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Object(fields) => fields.is_empty(),
        Value::Array(items) => items.is_empty(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_add_is_no_difference_and_what_they_change_is_one() {
        let declared = json!({"spec": {"a": 1, "list": [{"name": "x"}], "none": {}}});
        assert!(contains(
            &json!({"spec": {"a": 1, "list": [{"name": "x", "default": true}]}, "status": {}}),
            &declared
        ));
        assert!(!contains(&json!({"spec": {"a": 2, "list": [{"name": "x"}]}}), &declared));
        assert!(!contains(&json!({"spec": {"a": 1, "list": [{"name": "x"}, {"name": "y"}]}}), &declared));
        assert!(!contains(&json!({"spec": {"list": [{"name": "x"}]}}), &declared));
    }

    #[test]
    fn a_rewritten_value_is_kept_as_the_server_wrote_it() {
        let declared = json!({"cpu": "0.5", "list": [1]});
        assert_eq!(
            restrict(&json!({"cpu": "500m", "list": [1], "other": 1}), &declared),
            json!({"cpu": "500m", "list": [1]})
        );
    }

    #[test]
    fn two_runs_of_one_projection_share_neither_objects_nor_workers() {
        let of =
            |version: Option<&str>| RunKey { version: version.map(Into::into), ..RunKey::unversioned("shop", "a") };
        let (only, second) = (of(None), of(Some("v2")));
        let names = |run| Part::ALL.map(|part| part.object_name(run));
        assert_eq!(names(&only), ["a-projector", "a", "a", "a"]);
        assert_eq!(names(&second), ["a-v2-projector", "a-v2", "a-v2", "a-v2"]);
        let version = |run| worker_selector(run)["matchLabels"][names::VERSION_LABEL].clone();
        assert_eq!([version(&only), version(&second)], [json!(names::UNVERSIONED), json!("v2")]);
    }

    #[test]
    fn every_object_is_owned_labelled_and_carries_its_hash() {
        let owner = Owner { run: RunKey::unversioned("shop", "orders"), uid: "u-1".to_owned() };
        let rest = Map::from_iter([("data".to_owned(), json!({"a": "b"}))]);
        let desired = Desired::new(Part::ConfigMap, &owner, rest.clone());
        assert_eq!(desired.name, "orders-projector");
        assert_eq!(desired.body["metadata"]["ownerReferences"][0]["uid"], "u-1");
        assert_eq!(desired.body["metadata"]["labels"][names::MANAGED_BY_LABEL], "projectionist");
        assert_eq!(desired.body["metadata"]["annotations"][names::APPLIED_HASH_ANNOTATION], desired.hash.as_str());
        assert_eq!(desired, Desired::new(Part::ConfigMap, &owner, rest));
    }
}
