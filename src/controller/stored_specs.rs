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
