//! The state of one run's namespace without what differs from run to run: UIDs, versions, times, measured numbers.

use anyhow::Result;
use kube::Api;
use kube::api::ListParams;
use kube::core::{ApiResource, DynamicObject, GroupVersionKind};
use projectionist::controller::Part;
use serde_json::{Map, Value, json};

use crate::shop::{NAME, Shop};

/// The Projection and everything made for it, by kind and name.
pub(crate) async fn state(shop: &Shop) -> Result<Value> {
    let mut all = Map::new();
    let gvk = GroupVersionKind::gvk("projectionist.dev", "v1alpha1", "Projection");
    let projections: Api<DynamicObject> =
        Api::namespaced_with(shop.client.clone(), &shop.namespace, &ApiResource::from_gvk(&gvk));
    let mut uid = Value::Null;
    if let Some(projection) = projections.get_opt(NAME).await? {
        uid = json!(projection.metadata.uid);
        let mut status = projection.data["status"].clone();
        without(&mut status, &["rates", "stalenessSeconds", "cadence"]);
        without(&mut status["workers"], &["reason"]);
        // Its figures are those of a server that others use, too.
        let read_store = status["readStore"]["state"].take();
        status["readStore"] = read_store;
        for condition in status["conditions"].as_array_mut().into_iter().flatten() {
            without(condition, &["lastTransitionTime", "message"]);
        }
        all.insert("Projection".to_owned(), json!({"generation": projection.metadata.generation, "status": status}));
    }
    for part in Part::ALL {
        let objects: Api<DynamicObject> =
            Api::namespaced_with(shop.client.clone(), &shop.namespace, &part.api_resource());
        for mut object in objects.list(&ListParams::default()).await? {
            // It covers the namespace's name as well; what it is a hash of is compared as the ConfigMap's data.
            if let Some(annotations) = object.data.pointer_mut("/spec/template/metadata/annotations") {
                without(annotations, &[projectionist::names::CONFIG_HASH_ANNOTATION]);
            }
            let metadata = object.metadata;
            let name = metadata.name.unwrap_or_default();
            if name == "kube-root-ca.crt" {
                continue;
            }
            let mut annotations = json!(metadata.annotations);
            // A hash of all that is declared, the owner's UID included.
            without(&mut annotations, &[projectionist::names::APPLIED_HASH_ANNOTATION]);
            let owned = metadata.owner_references.iter().flatten().map(|owner| json!(owner.uid) == uid);
            all.insert(
                format!("{}/{name}", part.kind()),
                json!({
                    "labels": metadata.labels, "annotations": annotations, "owned": owned.collect::<Vec<_>>(),
                    "going": metadata.deletion_timestamp.is_some(),
                    "spec": object.data.get("spec"), "data": object.data.get("data"),
                }),
            );
        }
    }
    // The namespace's name is part of labels, configuration and the like.
    let text = Value::Object(all).to_string().replace(&shop.namespace, "namespace");
    Ok(serde_json::from_str(&text)?)
}

fn without(object: &mut Value, keys: &[&str]) {
    if let Value::Object(fields) = object {
        fields.retain(|key, _| !keys.contains(&key.as_str()));
    }
}

/// The first place where two states differ.
pub(crate) fn difference(expected: &Value, found: &Value) -> Option<String> {
    differ("", expected, found)
}

fn differ(path: &str, expected: &Value, found: &Value) -> Option<String> {
    match (expected, found) {
        (Value::Object(expected), Value::Object(found)) => {
            let keys = expected.keys().chain(found.keys());
            let of = |fields: &Map<String, Value>, key: &String| fields.get(key).cloned().unwrap_or_default();
            keys.into_iter().find_map(|key| differ(&format!("{path}/{key}"), &of(expected, key), &of(found, key)))
        }
        (Value::Array(expected), Value::Array(found)) if expected.len() == found.len() => {
            let mut pairs = expected.iter().zip(found).enumerate();
            pairs.find_map(|(at, (expected, found))| differ(&format!("{path}/{at}"), expected, found))
        }
        _ => (expected != found).then(|| format!("{path} is {found} and not {expected}")),
    }
}
