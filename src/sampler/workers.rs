//! How many workers a Projection has: by the watch of its workload, or else by its status, which is written seconds later. No IO.

use kube::ResourceExt as _;

use crate::{api::Projection, lag::Workers, measure::RunKey, resolve::run_of};

/// Where the numbers of workers come from.
pub trait WatchedWorkers: Send + Sync + 'static {
    /// The workers of this run of the Projection with this UID, as a watch shows its workload. Absent where no watch of this replica shows it.
    fn counts(&self, key: &RunKey, uid: &str) -> Option<WorkerNumbers>;
}

/// The workers that there are.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct WorkerNumbers {
    /// As many are asked for.
    pub desired: u32,
    /// As many are ready.
    pub ready: u32,
    /// Some come, go or are being replaced.
    pub rolling: bool,
}

impl WorkerNumbers {
    /// The watch counts; where there is none, what the status says.
    pub(super) fn of(projection: &Projection, watched: Option<&dyn WatchedWorkers>) -> Self {
        let uid = projection.uid().unwrap_or_default();
        let seen = watched.and_then(|watched| watched.counts(&run_of(projection), &uid));
        seen.unwrap_or_else(|| Self::by_status(projection))
    }

    fn by_status(projection: &Projection) -> Self {
        let Some(workers) = projection.status.as_ref().and_then(|status| status.workers.as_ref()) else {
            return Self::default();
        };
        let count = |count: Option<i32>| count.and_then(|count| u32::try_from(count).ok()).unwrap_or(0);
        Self { desired: count(workers.desired), ready: count(workers.ready), rolling: workers.rolling }
    }

    /// As the model takes them.
    pub(super) fn workers(self) -> Workers {
        Workers { ready: self.ready, rolling: self.rolling }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    struct Watch(Option<WorkerNumbers>);

    impl WatchedWorkers for Watch {
        fn counts(&self, key: &RunKey, uid: &str) -> Option<WorkerNumbers> {
            self.0.filter(|_| key.to_string() == "shop/orders" && uid == "u-1")
        }
    }

    #[test]
    fn the_watch_counts_and_the_status_only_where_there_is_none() {
        let projection: Projection = serde_json::from_value(json!({
            "apiVersion": "projectionist.dev/v1alpha1", "kind": "Projection",
            "metadata": {"namespace": "shop", "name": "orders", "uid": "u-1"},
            "spec": {"source": {}, "lag": {"target": "5s"}},
            "status": {"workers": {"desired": 4, "ready": 2, "rolling": true, "boundBy": "None"}},
        }))
        .unwrap();
        let by_status = WorkerNumbers { desired: 4, ready: 2, rolling: true };
        let by_watch = WorkerNumbers { desired: 4, ready: 4, rolling: false };
        assert_eq!(WorkerNumbers::of(&projection, None), by_status);
        assert_eq!(WorkerNumbers::of(&projection, Some(&Watch(None))), by_status);
        assert_eq!(WorkerNumbers::of(&projection, Some(&Watch(Some(by_watch)))), by_watch);
        let mut namesake = projection;
        namesake.metadata.uid = Some("u-2".to_owned());
        assert_eq!(WorkerNumbers::of(&namesake, Some(&Watch(Some(by_watch)))), by_status, "another one's workers");
    }
}
