//! The specs that runs were made with, from the watch of their ConfigMaps. Reads only.

use std::collections::HashMap;

use super::{index::LiveIndex, live::LiveObject, parts::Part};
use crate::{
    measure::ProjectionKey,
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

fn told(live: &LiveObject) -> Option<StoredSpec> {
    live.stored_spec.clone().filter(|_| !live.deleting)
}
