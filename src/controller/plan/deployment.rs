//! The Deployment of the workers, without their number: that belongs to the autoscaler. See `plan_scale`.

use serde_json::{Map, json};

use super::{builtin_pods::WorkerDefaults, pods::plan_pods};
use crate::{
    controller::parts::{Desired, Owner, Part, worker_selector},
    resolve::{Environment, Pods},
};

/// The Deployment. `strict`: a rollout ends the old worker before it starts the new one.
pub fn plan_deployment(
    pods: &Pods,
    environment: &Environment,
    strict: bool,
    owner: &Owner,
    defaults: &WorkerDefaults,
) -> Desired {
    let strategy = if strict {
        json!({ "type": "Recreate" })
    } else {
        json!({ "type": "RollingUpdate", "rollingUpdate": { "maxSurge": 1, "maxUnavailable": 0 } })
    };
    let spec = json!({
        "selector": worker_selector(&owner.run),
        "strategy": strategy,
        "revisionHistoryLimit": 3,
        "template": plan_pods(pods, environment, owner, defaults),
    });
    Desired::new(Part::Deployment, owner, Map::from_iter([("spec".to_owned(), spec)]))
}
