//! The numbers of workers for the sampler, from the watches of workloads: as they are now, while the status shows them seconds later. Reads only.

use std::sync::Arc;

use super::{existing::ExistingWorkloads, index::LiveIndex, live::LiveObject, parts::Part, status::trouble::rollout};
use crate::{
    measure::RunKey,
    sampler::{WatchedWorkers, WorkerNumbers},
};

/// Of the Deployments that the operator made, which every replica watches, and of the workloads that the leader watches by name.
pub struct WorkerCountsOfWatches {
    /// The operator's own objects.
    pub index: LiveIndex,
    /// The workloads of `spec.projector.existing`.
    pub existing: Arc<ExistingWorkloads>,
}

impl WatchedWorkers for WorkerCountsOfWatches {
    fn counts(&self, key: &RunKey, uid: &str) -> Option<WorkerNumbers> {
        let own = || {
            let live =
                self.index.get(Part::Deployment, &key.projection.namespace, &Part::Deployment.object_name(key))?;
            Some(live).filter(|live| live.controlled_by.as_deref() == Some(uid))
        };
        // A Projection that names a workload may still have a Deployment that is on its way out.
        let live = self.existing.watched(&key.projection).or_else(own)?;
        numbers(&live)
    }
}

fn numbers(live: &LiveObject) -> Option<WorkerNumbers> {
    let (counts, count) = (live.workers, |count: i32| u32::try_from(count).unwrap_or(0));
    let rolling = counts.rolling || rollout("", counts, true).is_some();
    let desired = count(counts.desired.unwrap_or(0));
    (!live.deleting).then(|| WorkerNumbers { desired, ready: count(counts.ready), rolling })
}

#[cfg(test)]
mod tests {
    use kube::Client;
    use serde_json::json;
    use tokio::sync::mpsc;

    use super::*;
    use crate::controller::mock_api::Server;

    #[tokio::test]
    async fn the_workers_are_those_of_the_deployment_that_this_very_projection_controls() {
        let (_server, client): (Server, Client) = Server::mocked();
        let (trigger, _triggers) = mpsc::unbounded_channel();
        let index = LiveIndex::default();
        let existing = Arc::new(ExistingWorkloads::new(client, trigger));
        let counts = WorkerCountsOfWatches { index: index.clone(), existing };
        let key = RunKey::unversioned("shop", "orders");
        assert_eq!(counts.counts(&key, "u-1"), None, "what no watch shows is not zero");
        let shows = |ready: i32, existing: i32, version: &str| {
            let object = json!({
                "metadata": {
                    "namespace": "shop", "name": "orders", "uid": "d-1", "resourceVersion": version,
                    "ownerReferences": [{"apiVersion": "projectionist.dev/v1alpha1", "kind": "Projection", "name": "orders", "uid": "u-1", "controller": true}],
                },
                "spec": {"replicas": 3},
                "status": {"replicas": existing, "updatedReplicas": existing, "readyReplicas": ready},
            });
            index.watched(
                Part::Deployment,
                "shop",
                "orders",
                LiveObject::from_object(&serde_json::from_value(object).unwrap()),
            );
            counts.counts(&key, "u-1")
        };
        assert_eq!(shows(1, 3, "1"), Some(WorkerNumbers { desired: 3, ready: 1, rolling: true }));
        assert_eq!(shows(3, 3, "2"), Some(WorkerNumbers { desired: 3, ready: 3, rolling: false }));
        assert_eq!(counts.counts(&key, "u-2"), None, "a namesake's");
    }
}
