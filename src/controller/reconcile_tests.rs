//! Rounds against a mocked API server: what is asked of it, and what is reported.

use std::sync::Arc;

use http::Method;
use kube::{
    Client,
    runtime::{
        reflector::{self, store::Writer},
        watcher::Event,
    },
};
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};

use super::*;
use crate::{
    api::{Phase, Projection},
    controller::{
        apply::Applier,
        existing::ExistingWorkloads,
        index::LiveIndex,
        mock_api::{Answer, Asked, Server, failure},
        plan::{autoscaler::ServerAbilities, builtin_pods::WorkerDefaults},
        status::{report::Reports, tests::measured},
        stored_specs::SpecsOfWatches,
    },
    measure::RunKey,
    metrics::ControllerMetrics,
    names::SUSPEND_ANNOTATION,
    platform::registration::Unserved,
    runs::Runs,
    snapshot::{Observation, SharedSnapshot, Snapshot},
};

#[path = "rebuild_tests.rs"]
mod rebuilds;

/// The sampler has measured that `pending` events wait, the oldest for so many seconds.
fn observed(pending: u64, staleness: f64) -> Observation {
    let mut measured = measured(pending, staleness, false);
    measured.valid_until = Instant::now() + Duration::from_secs(600);
    Observation {
        uid: "u-1".into(),
        generation: 1,
        labels: Arc::default(),
        measured: Some(Arc::new(measured)),
        fallback: None,
        read_store: None,
        failure: None,
    }
}

use rebuilds::Views;

fn projection(change: impl FnOnce(&mut Value)) -> Projection {
    let mut object = json!({
        "apiVersion": "projectionist.dev/v1alpha1", "kind": "Projection",
        "metadata": {"namespace": "shop", "name": "orders", "uid": "u-1", "resourceVersion": "7", "generation": 1},
        "spec": {
            "source": {"postgres": {"connection": {"secretRef": {"name": "db"}}, "eventTable": {}}},
            "readStore": {"postgres": {"connection": {"secretRef": {"name": "db"}}}},
            "checkpoint": {"readStore": {"table": "checkpoints"}},
            "lag": {"target": "60s"},
            "projector": {"template": {"spec": {"containers": [{"name": "worker", "image": "team:1"}]}}},
        },
    });
    change(&mut object);
    serde_json::from_value(object).unwrap()
}

/// A reconciler, what it reads, and the server that it speaks to.
struct Scene {
    server: Server,
    reconciler: Arc<Reconciler>,
    projections: Writer<Projection>,
    index: LiveIndex,
    snapshot: SharedSnapshot,
    views: Views,
    /// Ends with the scene.
    _kept: (mpsc::UnboundedReceiver<ProjectionKey>, watch::Sender<Option<Unserved>>),
}

impl Scene {
    fn with(projection: Projection) -> Self {
        let (server, client) = Server::mocked();
        let (store, mut projections) = reflector::store::<Projection>();
        projections.apply_watcher_event(&Event::Apply(projection));
        let (index, snapshot) = (LiveIndex::default(), SharedSnapshot::default());
        let (trigger, triggered) = mpsc::unbounded_channel();
        let (served, unserved) = watch::channel(Some(Unserved::new()));
        let metrics = Arc::new(ControllerMetrics::default());
        let gatherer = Gatherer {
            client: client.clone(),
            runs: Runs::new(store.clone(), Arc::new(SpecsOfWatches(index.clone()))),
            projections: store,
            index: index.clone(),
            existing: Arc::new(ExistingWorkloads::new(client.clone(), trigger)),
            snapshot: snapshot.clone(),
            unserved,
        };
        let views = Views::default();
        let applier = Applier::new(client.clone(), index.clone());
        let reconciler = Reconciler {
            gatherer,
            rebuilder: Rebuilder { readers: Arc::new(views.clone()), applier },
            executor: Executor {
                applier: Applier::new(client.clone(), index.clone()),
                workers: WorkerDefaults::default(),
                server: ServerAbilities::default(),
                metrics: Arc::clone(&metrics),
            },
            pods: PodLook::new(client.clone()),
            writer: writer(client, metrics),
            began: Instant::now(),
            memory: Mutex::default(),
        };
        let reconciler = Arc::new(reconciler);
        Self { server, reconciler, projections, index, snapshot, views, _kept: (triggered, served) }
    }

    /// One round, in which `answer` stands for the API server.
    async fn round(&mut self, answer: impl FnMut(&Asked) -> Answer) -> (Ended, Vec<Asked>) {
        let key = ProjectionKey { namespace: "shop".into(), name: "orders".into() };
        self.server.during(self.reconciler.reconcile(&key, 0.0), answer).await
    }

    /// The sampler has measured that `pending` events wait, the oldest for so many seconds.
    fn measured(&self, pending: u64, staleness: f64) {
        let observation = observed(pending, staleness);
        let namespace = Arc::new([(RunKey::unversioned("shop", "orders"), Arc::new(observation))].into());
        self.snapshot.publish(Snapshot { namespaces: [("shop".into(), namespace)].into(), ..Snapshot::default() });
    }

    /// The watch shows this object with such a status.
    fn shows(&self, part: Part, object: &Value, status: Value) {
        let mut object = object.clone();
        object["status"] = status;
        let live = LiveObject::from_object(&serde_json::from_value(object).unwrap());
        self.index.watched(part, "shop", "orders", live);
    }
}

fn writer(client: Client, metrics: Arc<ControllerMetrics>) -> StatusWriter {
    StatusWriter { reports: Reports::new(client, "replica-1"), metrics, slots: Mutex::default() }
}

/// As the API server keeps what was applied.
fn kept(body: &Value) -> Value {
    let mut kept = body.clone();
    let kind = body["kind"].as_str().unwrap_or_default().to_lowercase();
    (kept["metadata"]["uid"], kept["metadata"]["resourceVersion"]) = (json!(format!("{kind}-1")), json!("20"));
    kept
}

/// The Projection with the status that was written, one version later.
fn with_status(body: &Value) -> Value {
    let status = body.as_array().unwrap().iter().find(|one| one["path"] == "/status").unwrap()["value"].clone();
    let mut object = serde_json::to_value(projection(|_| {})).unwrap();
    (object["metadata"]["resourceVersion"], object["status"]) = (json!("8"), status);
    object
}

/// An API server in which there is only the Projection, and that takes everything.
fn willing(asked: &Asked) -> Answer {
    let path = asked.path();
    match asked.method.as_str() {
        "GET" if path.ends_with("/projections/orders") => {
            let metadata = json!({"namespace": "shop", "name": "orders", "uid": "u-1"});
            Answer::Object(
                200,
                json!({"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata", "metadata": metadata}),
            )
        }
        "GET" if path.ends_with("/pods") => {
            Answer::Object(200, json!({"apiVersion": "v1", "kind": "PodList", "metadata": {}, "items": []}))
        }
        "GET" => Answer::Object(404, failure(404, "NotFound")),
        "PATCH" if path.ends_with("/status") => Answer::Object(200, with_status(&asked.body)),
        "PATCH" => Answer::Object(201, kept(&asked.body)),
        _ => Answer::Object(201, asked.body.clone()),
    }
}

/// The last parts of the paths that were written to, but for Events.
fn written(asked: &[Asked]) -> Vec<String> {
    let writes = asked.iter().filter(|asked| asked.writes() && !asked.path().ends_with("/events"));
    writes.map(|asked| asked.path().split("/namespaces/shop/").nth(1).unwrap_or_default().to_owned()).collect()
}

/// The status that was written.
fn status(asked: &[Asked]) -> ProjectionStatus {
    let write = asked.iter().rfind(|asked| asked.path().ends_with("/status")).expect("a status");
    serde_json::from_value(with_status(&write.body)["status"].clone()).unwrap()
}

/// Status and reason of the condition Ready.
fn ready(status: &ProjectionStatus) -> (String, String) {
    let ready = status.conditions.iter().find(|condition| condition.type_ == "Ready").unwrap();
    (ready.status.clone(), ready.reason.clone())
}

#[tokio::test]
async fn a_projection_goes_from_nothing_to_ready_and_then_nothing_more_is_asked() {
    let mut scene = Scene::with(projection(|_| {}));
    let (ended, asked) = scene.round(willing).await;
    assert_eq!(
        written(&asked),
        ["deployments/orders", "poddisruptionbudgets/orders", "horizontalpodautoscalers/orders"],
        "the status waits for the first sample"
    );
    assert!(matches!(ended, Ended::Again(_)), "{ended:?}");
    let applied = |kind: &str| {
        let of_kind = |asked: &&Asked| asked.method == Method::PATCH && asked.body["kind"] == kind;
        kept(&asked.iter().find(of_kind).unwrap().body)
    };
    let counts = json!({"replicas": 2, "updatedReplicas": 2, "readyReplicas": 2});
    let mut deployment = applied("Deployment");
    deployment["spec"]["replicas"] = json!(2);
    scene.shows(Part::Deployment, &deployment, counts);
    scene.shows(Part::PodDisruptionBudget, &applied("PodDisruptionBudget"), json!({}));
    let able = json!([{"type": "AbleToScale", "status": "True"}, {"type": "ScalingActive", "status": "True"}]);
    let autoscaler = applied("HorizontalPodAutoscaler");
    scene.shows(Part::HorizontalPodAutoscaler, &autoscaler, json!({"currentReplicas": 2, "conditions": able}));
    scene.measured(4, 1.5);

    let (_, asked) = scene.round(willing).await;
    assert!(written(&asked).contains(&"projections/orders/status".to_owned()), "{asked:?}");
    let said = status(&asked);
    assert_eq!((said.phase, ready(&said)), (Some(Phase::Live), ("True".to_owned(), "AsExpected".to_owned())));

    // The watch shows the status that was written.
    let write = asked.iter().rfind(|asked| asked.path().ends_with("/status")).unwrap();
    let newest: Projection = serde_json::from_value(with_status(&write.body)).unwrap();
    scene.projections.apply_watcher_event(&Event::Apply(newest));
    let (ended, asked) = scene.round(willing).await;
    assert_eq!(asked.len(), 0, "{asked:?}");
    assert_eq!(ended, Ended::Settled);
}

#[tokio::test]
async fn what_the_api_server_forbids_is_reported_at_once_and_not_tried_again_at_once() {
    let mut scene = Scene::with(projection(|_| {}));
    let forbidding = |asked: &Asked| match asked.path().ends_with("/deployments/orders") && asked.writes() {
        true => Answer::Object(403, failure(403, "exceeded quota: workers")),
        false => willing(asked),
    };
    let (ended, asked) = scene.round(forbidding).await;
    assert_eq!(written(&asked), ["deployments/orders", "projections/orders/status"]);
    let said = status(&asked);
    assert_eq!((said.phase, ready(&said)), (Some(Phase::Failed), ("False".to_owned(), "ApplyFailed".to_owned())));
    let message = &said.conditions.iter().find(|condition| condition.type_ == "Ready").unwrap().message;
    assert!(message.contains("exceeded quota: workers"), "{message}");
    assert!(matches!(ended, Ended::Again(_)), "{ended:?}");
    let (ended, asked) = scene.round(forbidding).await;
    assert_eq!(written(&asked), [""; 0], "the same plan failed a moment ago");
    assert!(matches!(ended, Ended::Again(_)), "{ended:?}");
}

#[tokio::test]
async fn an_api_server_that_is_busy_for_a_moment_is_asked_again_and_no_failure_is_reported() {
    let mut scene = Scene::with(projection(|_| {}));
    scene.measured(4, 1.5);
    let busy = |asked: &Asked| match asked.path().ends_with("/deployments/orders") && asked.writes() {
        true => Answer::Object(429, failure(429, "TooManyRequests")),
        false => willing(asked),
    };
    let (ended, asked) = scene.round(busy).await;
    assert_eq!(written(&asked), ["deployments/orders"], "there is nothing to report yet");
    let Ended::Again(wait) = ended else { panic!("{ended:?}") };
    assert!(wait <= Duration::from_secs(2), "{wait:?}");
    tokio::time::sleep(wait).await;
    let (_, asked) = scene.round(willing).await;
    assert!(written(&asked).starts_with(&["deployments/orders".to_owned()]), "{asked:?}");
    let events: Vec<_> = asked.iter().filter(|asked| asked.path().ends_with("/events")).collect();
    assert!(events.iter().all(|event| event.body["reason"] != "ApplyFailed"), "{events:?}");
}

#[tokio::test]
async fn nothing_is_written_for_a_projection_that_was_deleted_though_the_watch_still_shows_it() {
    let mut scene = Scene::with(projection(|_| {}));
    scene.measured(4, 1.5);
    let (ended, asked) = scene.round(|_| Answer::Object(404, failure(404, "NotFound"))).await;
    assert_eq!((ended, written(&asked)), (Ended::Settled, Vec::new()));
    let (ended, asked) = scene.round(willing).await;
    assert_eq!((ended, asked.len()), (Ended::Settled, 0), "{asked:?}");
    // A namesake is another Projection.
    let namesake = projection(|object| object["metadata"]["uid"] = json!("u-2"));
    scene.projections.apply_watcher_event(&Event::Apply(namesake));
    let (_, asked) = scene.round(|_| Answer::Object(404, failure(404, "NotFound"))).await;
    assert!(!asked.is_empty());
}

#[tokio::test]
async fn a_spec_that_cannot_be_carried_out_is_told_with_its_field_and_makes_nothing() {
    let bounds = json!({"minWorkers": 9, "maxWorkers": 3});
    let mut scene = Scene::with(projection(|object| object["spec"]["scaling"] = bounds));
    let (ended, asked) = scene.round(willing).await;
    assert_eq!(written(&asked), ["projections/orders/status"]);
    let said = status(&asked);
    assert_eq!((said.phase, ready(&said).1.as_str()), (Some(Phase::Failed), "InvalidSpec"));
    let message = &said.conditions.iter().find(|condition| condition.type_ == "Ready").unwrap().message;
    assert!(message.starts_with("spec.scaling.minWorkers"), "{message}");
    assert_eq!(ended, Ended::Settled);
}

#[tokio::test]
async fn the_status_records_a_suspension_before_the_workers_are_removed() {
    let mut scene = Scene::with(projection(|object| object["spec"]["suspend"] = json!(true)));
    scene.measured(4, 1.5);
    let (ended, asked) = scene.round(willing).await;
    assert_eq!(written(&asked), ["projections/orders/status"]);
    assert!(status(&asked).suspended);
    assert!(matches!(ended, Ended::Again(_)), "{ended:?}");
}

#[tokio::test]
async fn the_annotation_suspends_as_the_spec_does_and_one_that_says_neither_changes_nothing() {
    let annotated = |value: &str| {
        let annotations = json!({SUSPEND_ANNOTATION: value});
        let scene = Scene::with(projection(|object| object["metadata"]["annotations"] = annotations.clone()));
        scene.measured(4, 1.5);
        scene
    };
    let (_, asked) = annotated("true").round(willing).await;
    let status_of = status(&asked);
    assert!(status_of.suspended);
    let ready = status_of.conditions.iter().find(|condition| condition.type_ == "Ready").map(|ready| &ready.message);
    assert!(ready.is_some_and(|message| message.contains(SUSPEND_ANNOTATION)), "{ready:?}");
    let (_, asked) = annotated("ja").round(willing).await;
    let status_of = status(&asked);
    assert!(!status_of.suspended);
    assert_eq!(written(&asked), ["projections/orders/status"], "workers stay as they are");
    let ready = status_of.conditions.iter().find(|condition| condition.type_ == "Ready").map(|ready| &ready.message);
    assert!(ready.is_some_and(|message| message.contains("must be \"true\"")), "{ready:?}");
}

#[tokio::test]
async fn workers_are_brought_back_by_the_number_that_is_there_and_not_by_the_one_that_the_watch_shows() {
    let mut scene = Scene::with(projection(|object| object["status"] = json!({"suspended": true})));
    scene.measured(4, 1.5);
    let owner = json!({"apiVersion": "projectionist.dev/v1alpha1", "kind": "Projection", "name": "orders", "uid": "u-1", "controller": true});
    let deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"namespace": "shop", "name": "orders", "uid": "deployment-1", "resourceVersion": "20", "ownerReferences": [owner]},
        "spec": {"replicas": 3},
    });
    scene.shows(Part::Deployment, &deployment, json!({"replicas": 3, "readyReplicas": 3}));
    let (_, asked) = scene
        .round(|asked| match asked.path().ends_with("/scale") {
            true => {
                let metadata = json!({"namespace": "shop", "name": "orders", "resourceVersion": "21"});
                let scale = json!({"apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": metadata});
                Answer::Object(200, with(scale, "spec", json!({"replicas": 0})))
            }
            false => willing(asked),
        })
        .await;
    let scale = asked.iter().find(|asked| asked.path().ends_with("/scale") && asked.writes()).expect("a number is set");
    assert!(scale.body["spec"]["replicas"].as_i64() >= Some(1), "{scale:?}");
    assert_eq!(scale.body["metadata"]["resourceVersion"], "21");
}

fn with(mut object: Value, field: &str, value: Value) -> Value {
    object[field] = value;
    object
}
