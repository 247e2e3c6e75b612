//! Watches the pods of workloads whose own pages say what waits, each for as long as the pages are asked for. Reads only.
//!
//! Only these are watched: a cluster has many pods, and of the others only those that do not run are looked at ([`super::pod_look`]).

use std::{collections::BTreeMap, pin::pin, sync::Arc, time::Duration};

use futures::StreamExt as _;
use k8s_openapi::{api::core::v1::Pod, apimachinery::pkg::apis::meta::v1::LabelSelector};
use kube::{
    Api, Client, ResourceExt as _,
    core::{DynamicObject, Selector},
    runtime::{WatchStreamExt as _, watcher},
};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

use super::{existing::api_resource, parts::worker_labels};
use crate::{
    api::{ExistingWorkload, Reason},
    measure::MeasureError,
    platform::errors::{in_words, log_interrupted_watch},
    worker_pods::{PodStage, SeenPods, UnwatchedPods, WorkerPod, WorkerPods, Workload},
};

/// The selector of a workload that is not the operator's own is read again after this: it may be another one by then.
const SELECTOR_HOLDS: Duration = Duration::from_secs(60);
/// A workload that cannot be read is looked for again after this.
const RETRY: Duration = Duration::from_secs(5);
/// A pod whose condition `Ready` became false so long after its start has been ready before. While a pod starts it is false from the beginning.
const READY_BEFORE: jiff::SignedDuration = jiff::SignedDuration::from_secs(10);

/// The watches of pods.
pub struct PodWatches {
    client: Client,
}

impl PodWatches {
    /// Watches with `client`.
    pub fn new(client: Client) -> Self {
        Self { client }
    }
}

impl WorkerPods for PodWatches {
    fn follow(&self, workload: &Workload) -> watch::Receiver<SeenPods> {
        let (told, seen) = watch::channel(Err(UnwatchedPods::not_yet()));
        let (client, workload) = (self.client.clone(), workload.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = follow(&client, &workload, &told) => {}
                // Nothing asks the pods any more.
                () = told.closed() => {}
            }
        });
        seen
    }
}

async fn follow(client: &Client, workload: &Workload, told: &watch::Sender<SeenPods>) {
    let mut known = Known::default();
    loop {
        match &workload.existing {
            None => {
                let labels = worker_labels(&workload.run).map(|(label, value)| format!("{label}={value}"));
                known.watch(client, workload, watcher::Config::default().labels(&labels.join(",")), told).await;
            }
            Some(existing) => match selector(client, workload.namespace(), existing).await {
                Ok(selector) => {
                    let config = watcher::Config::default().labels_from(&selector);
                    let _ = timeout(SELECTOR_HOLDS, known.watch(client, workload, config, told)).await;
                }
                Err(why) => {
                    let message = format!("the pods of {} cannot be found: {why}", existing.name);
                    drop(told.send_replace(Err(MeasureError { reason: Reason::SourceFailed, message })));
                    sleep(RETRY).await;
                }
            },
        }
    }
}

/// The labels of the pods of a workload that the operator did not make.
async fn selector(client: &Client, namespace: &str, existing: &ExistingWorkload) -> Result<Selector, String> {
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, &api_resource(existing.kind));
    let object = api.get(&existing.name).await.map_err(|error| in_words(&error))?;
    let selector = object.data.pointer("/spec/selector").cloned().ok_or("it has no selector")?;
    let selector: LabelSelector = serde_json::from_value(selector).map_err(|error| error.to_string())?;
    selector.try_into().map_err(|_| "its selector cannot be read".to_owned())
}

/// The pods that the watch has shown, by name.
#[derive(Default)]
struct Known(BTreeMap<String, WorkerPod>);

impl Known {
    async fn watch(
        &mut self,
        client: &Client,
        workload: &Workload,
        config: watcher::Config,
        told: &watch::Sender<SeenPods>,
    ) {
        let api: Api<Pod> = Api::namespaced(client.clone(), workload.namespace());
        let mut events = pin!(watcher(api, config).default_backoff());
        let mut listed = BTreeMap::new();
        while let Some(event) = events.next().await {
            match event {
                Err(error) => {
                    log_interrupted_watch(&format!("the pods of {}", workload.run), &error);
                    continue;
                }
                Ok(watcher::Event::Init) => {
                    listed.clear();
                    continue;
                }
                Ok(watcher::Event::InitApply(pod)) => {
                    listed.extend(self.seen(&pod).map(|seen| (pod.name_any(), seen)));
                    continue;
                }
                Ok(watcher::Event::InitDone) => self.0 = std::mem::take(&mut listed),
                Ok(watcher::Event::Apply(pod)) => match self.seen(&pod) {
                    Some(seen) => drop(self.0.insert(pod.name_any(), seen)),
                    None => drop(self.0.remove(&pod.name_any())),
                },
                Ok(watcher::Event::Delete(pod)) => drop(self.0.remove(&pod.name_any())),
            }
            let all: Arc<[WorkerPod]> = self.0.values().cloned().collect();
            told.send_if_modified(|before| {
                let modified = before.as_ref().ok() != Some(&all);
                *before = Ok(all);
                modified
            });
        }
    }

    /// A pod as it is now. Absent when it has ended and holds nothing.
    fn seen(&self, pod: &Pod) -> Option<WorkerPod> {
        let status = pod.status.as_ref();
        if matches!(status.and_then(|status| status.phase.as_deref()), Some("Succeeded" | "Failed")) {
            return None;
        }
        let uid: Arc<str> = pod.uid().unwrap_or_default().into();
        let worked = self.0.get(&pod.name_any()).is_some_and(|seen| seen.uid == uid && seen.stage == PodStage::Working);
        let stage = match () {
            () if pod.metadata.deletion_timestamp.is_some() => PodStage::Ending,
            () if worked || has_been_ready(pod) => PodStage::Working,
            () => PodStage::Starting,
        };
        let address = status.and_then(|status| status.pod_ip.as_deref()).and_then(|address| address.parse().ok());
        Some(WorkerPod { name: pod.name_any().into(), uid, address, stage })
    }
}

/// It is ready, or was before.
fn has_been_ready(pod: &Pod) -> bool {
    let Some(status) = &pod.status else { return false };
    let Some(ready) = status.conditions.iter().flatten().find(|one| one.type_ == "Ready") else { return false };
    let since = ready.last_transition_time.as_ref().zip(status.start_time.as_ref());
    ready.status == "True" || since.is_some_and(|(changed, started)| changed.0.duration_since(started.0) > READY_BEFORE)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::{
        controller::mock_api::{Answer, Server},
        measure::RunKey,
    };

    fn pod(name: &str, ready: &str, changed: &str) -> Value {
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": "shop", "uid": format!("u-{name}"), "resourceVersion": "1"},
            "status": {
                "phase": "Running", "podIP": "10.1.2.3", "startTime": "2026-01-01T00:00:00Z",
                "conditions": [{"type": "Ready", "status": ready, "lastTransitionTime": changed}],
            },
        })
    }

    fn stage(known: &Known, pod: Value) -> Option<PodStage> {
        known.seen(&serde_json::from_value(pod).unwrap()).map(|seen| seen.stage)
    }

    #[test]
    fn a_pod_starts_until_it_was_ready_once_and_ends_when_it_is_deleted() {
        let mut known = Known::default();
        let starting = || pod("a", "False", "2026-01-01T00:00:01Z");
        assert_eq!(stage(&known, starting()), Some(PodStage::Starting));
        assert_eq!(stage(&known, pod("a", "True", "2026-01-01T00:00:05Z")), Some(PodStage::Working));
        let lost = pod("a", "False", "2026-01-01T01:00:00Z");
        assert_eq!(stage(&known, lost), Some(PodStage::Working), "not ready any more, and not seen before");
        let ready = serde_json::from_value(pod("a", "True", "2026-01-01T00:00:02Z")).unwrap();
        let seen = known.seen(&ready).unwrap();
        assert_eq!((seen.address, &*seen.uid), (Some("10.1.2.3".parse().unwrap()), "u-a"));
        known.0.insert("a".to_owned(), seen);
        assert_eq!(stage(&known, starting()), Some(PodStage::Working), "it was seen ready");
        let mut namesake = starting();
        namesake["metadata"]["uid"] = json!("another");
        assert_eq!(stage(&known, namesake), Some(PodStage::Starting));
        let mut deleted = pod("a", "True", "2026-01-01T00:00:05Z");
        deleted["metadata"]["deletionTimestamp"] = json!("2026-01-01T02:00:00Z");
        assert_eq!(stage(&known, deleted), Some(PodStage::Ending));
        let mut ended = starting();
        ended["status"]["phase"] = json!("Failed");
        assert_eq!(stage(&known, ended), None);
        assert_eq!(stage(&known, json!({"metadata": {"name": "b"}})), Some(PodStage::Starting), "not scheduled yet");
    }

    #[tokio::test]
    async fn the_pods_of_a_workload_are_found_by_its_own_selector_for_as_long_as_they_are_asked_for() {
        let (mut server, client) = Server::mocked();
        let existing = Some(ExistingWorkload { kind: crate::api::ExistingKind::StatefulSet, name: "old".to_owned() });
        let workload = Workload { run: RunKey::unversioned("shop", "orders"), existing };
        let mut seen = PodWatches::new(client).follow(&workload);
        assert_eq!(seen.borrow().as_ref().unwrap_err().reason, Reason::NotMeasuredYet);
        let two = async {
            seen.wait_for(|seen| seen.as_ref().is_ok_and(|pods| pods.len() == 2)).await.unwrap();
            seen
        };
        let (seen, asked) = server
            .during(two, |asked| {
                if asked.path() == "/apis/apps/v1/namespaces/shop/statefulsets/old" {
                    let selector = json!({"matchLabels": {"app": "old"}});
                    Answer::Object(200, json!({"metadata": {"name": "old"}, "spec": {"selector": selector}}))
                } else if asked.uri.contains("watch=true") {
                    let pod = pod("b", "True", "2026-01-01T00:00:05Z");
                    Answer::Events(vec![json!({"type": "ADDED", "object": pod})])
                } else {
                    let items = [pod("a", "True", "2026-01-01T00:00:05Z")];
                    Answer::Object(
                        200,
                        json!({"apiVersion": "v1", "kind": "PodList", "metadata": {"resourceVersion": "1"}, "items": items}),
                    )
                }
            })
            .await;
        let names: Vec<Arc<str>> = seen.borrow().as_ref().unwrap().iter().map(|pod| Arc::clone(&pod.name)).collect();
        assert_eq!(names, ["a".into(), "b".into()]);
        let lists = asked.iter().filter(|one| one.path() == "/api/v1/namespaces/shop/pods");
        assert!(lists.clone().count() >= 2 && lists.clone().all(|one| one.uri.contains("labelSelector=app%3Dold")));
        assert!(asked.iter().all(|one| !one.writes()));
    }
}
