//! The specs that runs were made with, from the watch of their ConfigMaps. Reads only.

use std::{collections::HashMap, sync::Arc};

use super::{index::LiveIndex, live::LiveObject, parts::Part};
use crate::{
    measure::{ProjectionKey, RunKey},
    runs::{StoredSpec, StoredSpecs},
};

/// Those of the ConfigMaps in the index.
pub struct SpecsOfWatches(pub LiveIndex);

impl StoredSpecs for SpecsOfWatches {
    fn of(&self, projection: &ProjectionKey) -> Vec<StoredSpec> {
        self.0.tell(Part::ConfigMap, |live| told(live).filter(|_| live.made_for.as_ref() == Some(projection)))
    }

    fn all(&self) -> HashMap<ProjectionKey, Vec<StoredSpec>> {
        let mut all: HashMap<ProjectionKey, Vec<StoredSpec>> = HashMap::new();
        for (key, stored) in self.0.tell(Part::ConfigMap, |live| Some((live.made_for.clone()?, told(live)?))) {
            all.entry(key).or_default().push(stored);
        }
        all
    }
}

/// What the ConfigMap of a run tells of it; one of another name tells nothing.
fn told(live: &LiveObject) -> Option<StoredSpec> {
    let stored = live.stored_spec.as_ref().filter(|_| !live.deleting)?;
    let run = RunKey { projection: live.made_for.clone()?, version: Some(Arc::clone(&stored.version)) };
    (live.name == Part::ConfigMap.object_name(&run)).then(|| stored.clone())
}

#[cfg(test)]
mod tests {
    use kube::core::DynamicObject;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_config_map_tells_the_spec_of_the_run_by_whose_name_it_is_called_and_of_no_other() {
        let told_by = |name: &str, version: &str| {
            let object: DynamicObject = serde_json::from_value(json!({
                "apiVersion": "v1", "kind": "ConfigMap",
                "metadata": {
                    "name": name, "namespace": "shop", "uid": "c-1",
                    "ownerReferences": [{
                        "apiVersion": "projectionist.dev/v1alpha1", "kind": "Projection", "name": "orders", "uid": "u-1", "controller": true,
                    }],
                },
                "data": {"spec.json": json!({"version": version}).to_string()},
            }))
            .unwrap();
            told(&LiveObject::from_object(&object)).map(|stored| stored.version.to_string())
        };
        assert_eq!(told_by("orders-v1-projector", "v1").as_deref(), Some("v1"));
        assert_eq!(told_by("orders-v1-projector", "v9"), None, "edited to be another version's");
        assert_eq!(told_by("mine", "v9"), None);
    }
}
