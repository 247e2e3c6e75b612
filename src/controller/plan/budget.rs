//! The PodDisruptionBudget: one worker at a time may be evicted, and a broken one always.

use serde_json::{Map, json};

use crate::controller::parts::{Desired, Owner, Part, worker_selector};

/// The PodDisruptionBudget.
pub fn plan_budget(owner: &Owner) -> Desired {
    let spec = json!({
        "maxUnavailable": 1,
        "selector": worker_selector(&owner.run),
        // A worker that cannot become ready must not keep a node from being drained.
        "unhealthyPodEvictionPolicy": "AlwaysAllow",
    });
    Desired::new(Part::PodDisruptionBudget, owner, Map::from_iter([("spec".to_owned(), spec)]))
}
