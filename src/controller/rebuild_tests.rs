//! A read model is rebuilt beside the one that readers see: what is asked of the API server and of the read store, round by round.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use futures::future::BoxFuture;
use http::Method;
use kube::runtime::watcher::Event;
use serde_json::{Value, json};

use super::{Scene, kept, observed, willing};
use crate::{
    api::{Projection, ProjectionStatus, Reason, RunRole},
    controller::{
        live::LiveObject,
        mock_api::{Answer, Asked, failure},
        parts::Part,
        queue::Ended,
    },
    measure::{MeasureError, RunKey},
    names::{METRIC_VERSION_LABEL, PROMOTE_ANNOTATION, ROLLBACK_ANNOTATION},
    rebuild::{Compared, Comparison, LeadError, ReadersOf, SwitchReaders},
    snapshot::Snapshot,
};

#[path = "rebuild_progress_tests.rs"]
mod progress;

/// Views in memory.
#[derive(Clone, Default)]
pub(super) struct Views(Arc<std::sync::Mutex<State>>);

#[derive(Default)]
struct State {
    shown: Option<String>,
    /// Neither tells nor changes anything.
    away: bool,
    /// The new version does not fit the readers.
    unfit: bool,
    /// The answer to the next switch is lost.
    answer_lost: bool,
    /// Another operator leads them there once this one has asked so often.
    led_after: Option<(u32, String)>,
    /// What readers were led to, in order.
    led: Vec<String>,
    /// What comes of comparing two versions, and what was compared.
    compared: Option<Compared>,
    asked: Vec<Comparison>,
}

impl SwitchReaders for Views {
    fn shown<'a>(&'a self, _: &'a ReadersOf, _: Duration) -> BoxFuture<'a, Result<Option<String>, LeadError>> {
        let mut state = self.0.lock().unwrap();
        match state.led_after.take() {
            Some((0, place)) => state.shown = Some(place),
            after => state.led_after = after.map(|(left, place)| (left - 1, place)),
        }
        let shown = if state.away { Err(away()) } else { Ok(state.shown.clone()) };
        Box::pin(async move { shown })
    }

    fn switch<'a>(
        &'a self,
        _: &'a ReadersOf,
        from: Option<&'a str>,
        to: &'a str,
        _: Duration,
    ) -> BoxFuture<'a, Result<(), LeadError>> {
        let mut state = self.0.lock().unwrap();
        let done = match () {
            () if state.away => Err(away()),
            () if state.unfit => Err(LeadError::Refused(format!("the columns of {to} do not fit"))),
            () if state.shown.as_deref() == from => {
                state.shown = Some(to.to_owned());
                state.led.push(to.to_owned());
                if std::mem::take(&mut state.answer_lost) { Err(away()) } else { Ok(()) }
            }
            () if state.shown.as_deref() == Some(to) => Ok(()),
            () => Err(LeadError::Refused(format!("{:?} is shown, and not {from:?}", state.shown))),
        };
        Box::pin(async move { done })
    }

    fn compare(&self, of: Arc<Comparison>, _: Duration) -> BoxFuture<'static, Result<Compared, MeasureError>> {
        let mut state = self.0.lock().unwrap();
        state.asked.push(Comparison::clone(&of));
        let compared = state.compared.clone();
        Box::pin(async move {
            compared.ok_or_else(|| MeasureError { reason: Reason::TimedOut, message: "no answer in time".to_owned() })
        })
    }
}

fn away() -> LeadError {
    LeadError::Failed(MeasureError {
        reason: Reason::ConnectionRefused,
        message: "nothing listens at db:5432".to_owned(),
    })
}

/// A Projection of which `change` is made.
fn versioned(change: impl FnOnce(&mut Value)) -> Projection {
    super::projection(|object| {
        object["spec"]["readStore"]["postgres"]["schema"] = json!("orders_{version}");
        object["spec"]["version"] = json!("v1");
        object["spec"]["rollout"] = json!({
            "strategy": "BlueGreen", "promote": {"for": "0s"}, "keepOld": "1h",
            "switch": {"postgresView": {"schema": "orders", "views": ["summary"]}},
        });
        change(object);
    })
}

/// The cluster, as far as it answers; what is written is there, and the watches show it after each round.
struct Cluster {
    scene: Scene,
    projection: Projection,
    objects: BTreeMap<String, Value>,
    /// Every write but Events and statuses: method and path.
    writes: Vec<String>,
    events: Vec<String>,
    versions: u64,
    /// The operator restarts before each round.
    forgetful: bool,
    /// The operator ends at this write, counted from 0, before or after it is done.
    crash_at: Option<(usize, bool)>,
}

fn part_of(path: &str) -> Option<(Part, String)> {
    let (_, rest) = path.split_once("/namespaces/shop/")?;
    let (plural, name) = rest.split_once('/')?;
    let part = Part::ALL.into_iter().find(|part| part.api_resource().plural == plural)?;
    Some((part, name.to_owned()))
}

impl Cluster {
    fn with(projection: Projection) -> Self {
        let scene = Scene::with(projection.clone());
        let (objects, writes, events) = (BTreeMap::new(), Vec::new(), Vec::new());
        Self { scene, projection, objects, writes, events, versions: 100, forgetful: false, crash_at: None }
    }

    /// The Projection is changed, and the watch shows it.
    fn change(&mut self, change: impl FnOnce(&mut Value)) {
        let mut object = serde_json::to_value(&self.projection).unwrap();
        change(&mut object);
        self.versions += 1;
        object["metadata"]["resourceVersion"] = json!(self.versions.to_string());
        self.projection = serde_json::from_value(object).unwrap();
        self.scene.projections.apply_watcher_event(&Event::Apply(self.projection.clone()));
    }

    /// These versions are measured: the oldest event waits for so many seconds.
    fn measured(&self, runs: &[(&str, f64)]) {
        self.counted(&runs.iter().map(|(version, staleness)| (*version, 4, *staleness)).collect::<Vec<_>>());
    }

    /// So many events wait, the oldest for so many seconds.
    fn counted(&self, runs: &[(&str, u64, f64)]) {
        let run = |version: &str| RunKey { version: Some(version.into()), ..RunKey::unversioned("shop", "orders") };
        let all =
            runs.iter().map(|(version, pending, staleness)| (run(version), Arc::new(observed(*pending, *staleness))));
        let namespace = Arc::new(all.collect());
        self.scene
            .snapshot
            .publish(Snapshot { namespaces: [("shop".into(), namespace)].into(), ..Snapshot::default() });
    }

    fn answer(&mut self, asked: &Asked) -> Answer {
        let path = asked.path().to_owned();
        if asked.writes() && path.ends_with("/events") {
            self.events.push(asked.body["reason"].as_str().unwrap_or_default().to_owned());
            return willing(asked);
        }
        let done_writes = self.writes.len();
        let crashes = self.crash_at.filter(|(at, _)| asked.writes() && done_writes == *at);
        let answer = match crashes {
            Some((_, false)) => None,
            _ => Some(self.carry_out(asked, &path)),
        };
        match (crashes, answer) {
            (None, Some(answer)) => answer,
            _ => {
                self.crash_at = None;
                self.scene.reconciler.forget();
                Answer::Object(500, failure(500, "InternalError"))
            }
        }
    }

    fn carry_out(&mut self, asked: &Asked, path: &str) -> Answer {
        if asked.writes() {
            self.writes.push(format!("{} {}", asked.method, path.split("/shop/").nth(1).unwrap()));
        }
        if path.ends_with("/status") && asked.writes() {
            let operations = asked.body.as_array().unwrap();
            let status = operations.iter().find(|one| one["path"] == "/status").unwrap()["value"].clone();
            self.change(|object| object["status"] = status);
            return Answer::Object(200, serde_json::to_value(&self.projection).unwrap());
        }
        let Some((part, name)) = part_of(path) else { return willing(asked) };
        let there = self.objects.get(path).cloned();
        self.versions += 1;
        match asked.method.clone() {
            Method::GET => {
                there.map_or_else(|| Answer::Object(404, failure(404, "NotFound")), |it| Answer::Object(200, it))
            }
            Method::DELETE => {
                let readers = self.shown().unwrap_or_default().replace('_', "-");
                assert_ne!(name, readers, "readers use what these workers write");
                let uid = there.map(|it| it["metadata"]["uid"].as_str().unwrap_or_default().to_owned());
                self.objects.remove(path);
                self.scene.index.deleted(part, "shop", &name, &uid.unwrap_or_default(), Instant::now());
                Answer::Object(200, json!({"kind": "Status", "apiVersion": "v1", "status": "Success"}))
            }
            _ => {
                let mut object = kept(&asked.body);
                object["metadata"]["uid"] = json!(format!("{path} {}", there.map_or(self.versions, |_| 0)));
                object["metadata"]["resourceVersion"] = json!(self.versions.to_string());
                self.objects.insert(path.to_owned(), object.clone());
                Answer::Object(201, object)
            }
        }
    }

    /// Rounds until nothing is left to do but to wait for long.
    async fn settles(&mut self) {
        for _ in 0..30 {
            if self.forgetful {
                self.scene.reconciler.forget();
            }
            let ended = self.round().await;
            self.shows();
            match ended {
                Ended::Again(wait) if wait <= Duration::from_secs(6) => tokio::time::sleep(wait).await,
                Ended::Failed => tokio::time::sleep(Duration::from_millis(50)).await,
                _ => return,
            }
        }
        panic!("it does not settle: {:?}", self.writes);
    }

    /// The watches show what is there.
    fn shows(&self) {
        for (path, object) in &self.objects {
            let (part, name) = part_of(path).unwrap();
            let live = LiveObject::from_object(&serde_json::from_value(object.clone()).unwrap());
            self.scene.index.watched(part, "shop", &name, live);
        }
    }

    async fn round(&mut self) -> Ended {
        // The server of the scene is lent out while it plays with all of this.
        let (mut server, _) = crate::controller::mock_api::Server::mocked();
        std::mem::swap(&mut server, &mut self.scene.server);
        let key = crate::measure::ProjectionKey { namespace: "shop".into(), name: "orders".into() };
        let reconciler = Arc::clone(&self.scene.reconciler);
        // Not compiled for speed, a round is large: with that of a crash around it, it would fill the stack of a test.
        let round = Box::pin(reconciler.reconcile(&key, 0.0));
        let (ended, _) = server.during(round, |asked| self.answer(asked)).await;
        std::mem::swap(&mut server, &mut self.scene.server);
        ended
    }

    fn deployments(&self) -> BTreeSet<String> {
        let all = self.objects.keys().filter_map(|path| part_of(path));
        all.filter(|(part, _)| *part == Part::Deployment).map(|(_, name)| name).collect()
    }

    fn object(&self, plural: &str, name: &str) -> &Value {
        let end = format!("/namespaces/shop/{plural}/{name}");
        self.objects.iter().find(|(path, _)| path.ends_with(&end)).map(|(_, object)| object).expect(name)
    }

    fn status(&self) -> ProjectionStatus {
        self.projection.status.clone().unwrap()
    }

    /// Each run with its role.
    fn roles(&self) -> Vec<(String, RunRole)> {
        self.status().runs.into_iter().map(|run| (run.version, run.role)).collect()
    }

    fn promoted(&self) -> (String, String) {
        let status = self.status();
        let promoted = status.conditions.iter().find(|condition| condition.type_ == "Promoted").unwrap();
        (promoted.status.clone(), promoted.reason.clone())
    }

    fn shown(&self) -> Option<String> {
        self.scene.views.0.lock().unwrap().shown.clone()
    }

    fn led(&self) -> Vec<String> {
        self.scene.views.0.lock().unwrap().led.clone()
    }

    /// With the first version shown to readers.
    async fn live(change: impl FnOnce(&mut Value)) -> Self {
        let mut cluster = Self::with(versioned(change));
        cluster.measured(&[("v1", 1.0)]);
        cluster.settles().await;
        assert_eq!(cluster.shown().as_deref(), Some("orders_v1"));
        cluster
    }

    /// The spec names the second version, with something else besides.
    fn rename(&mut self, version: &str) {
        self.change(|object| {
            object["spec"]["version"] = json!(version);
            object["spec"]["scaling"] = json!({"maxWorkers": 3});
        });
    }
}

fn of(all: &[&str]) -> BTreeSet<String> {
    all.iter().map(|name| (*name).to_owned()).collect()
}

#[tokio::test]
async fn a_new_version_is_built_beside_the_one_that_readers_see_which_stays_as_it_is() {
    let mut cluster = Cluster::live(|_| {}).await;
    assert_eq!(cluster.roles(), [("v1".to_owned(), RunRole::Live)]);
    assert_eq!(cluster.events, ["Promoted"]);
    let before = cluster.object("deployments", "orders-v1").clone();
    cluster.writes.clear();
    cluster.rename("v2");
    cluster.measured(&[("v1", 1.0), ("v2", 900.0)]);
    cluster.settles().await;
    assert_eq!(cluster.deployments(), of(&["orders-v1", "orders-v2"]));
    assert_eq!(*cluster.object("deployments", "orders-v1"), before);
    assert!(
        cluster.writes.iter().all(|write| write.contains("orders-v2") || write.ends_with("/status")),
        "{:?}",
        cluster.writes
    );
    let environment = cluster.object("deployments", "orders-v2").to_string();
    assert!(environment.contains("orders_v2") && !environment.contains("orders_v1"), "{environment}");
    for (version, most) in [("v1", 10), ("v2", 3)] {
        let autoscaler = &cluster.object("horizontalpodautoscalers", &format!("orders-{version}"))["spec"];
        let selector = &autoscaler["metrics"][0]["external"]["metric"]["selector"]["matchLabels"];
        assert_eq!((&selector[METRIC_VERSION_LABEL], &autoscaler["maxReplicas"]), (&json!(version), &json!(most)));
    }
    let status = cluster.status();
    assert_eq!((status.version.as_deref(), status.staleness_seconds), (Some("v1"), Some(1.0)));
    let staleness: Vec<_> = status.runs.iter().map(|run| (&*run.version, run.role, run.staleness_seconds)).collect();
    assert_eq!(staleness, [("v1", RunRole::Live, Some(1.0)), ("v2", RunRole::Candidate, Some(900.0))]);
    assert_eq!(cluster.promoted(), ("False".to_owned(), "CatchingUp".to_owned()));
    assert_eq!(cluster.led(), ["orders_v1"]);
    // A third replaces the second, and never the first.
    cluster.rename("v3");
    cluster.settles().await;
    assert_eq!(cluster.deployments(), of(&["orders-v1", "orders-v3"]));
    assert_eq!(*cluster.object("deployments", "orders-v1"), before);
}

#[tokio::test]
async fn readers_are_led_to_a_version_that_has_caught_up_and_back_and_it_is_not_promoted_again_by_itself() {
    let mut cluster = Cluster::live(|_| {}).await;
    cluster.rename("v2");
    cluster.measured(&[("v1", 1.0), ("v2", 1.0)]);
    cluster.settles().await;
    assert_eq!(cluster.led(), ["orders_v1", "orders_v2"]);
    assert_eq!((cluster.status().version.as_deref(), cluster.promoted().0.as_str()), (Some("v2"), "True"));
    assert_eq!(cluster.roles(), [("v1".to_owned(), RunRole::Old), ("v2".to_owned(), RunRole::Live)]);
    assert_eq!(cluster.deployments(), of(&["orders-v1", "orders-v2"]), "the one before is kept");
    cluster.change(|object| {
        object["metadata"]["annotations"] = json!({ROLLBACK_ANNOTATION: "v1", PROMOTE_ANNOTATION: "v2"});
    });
    cluster.settles().await;
    cluster.settles().await;
    assert_eq!(cluster.led(), ["orders_v1", "orders_v2", "orders_v1"]);
    assert_eq!(cluster.promoted(), ("False".to_owned(), "RolledBack".to_owned()));
    assert_eq!(cluster.status().version.as_deref(), Some("v1"));
    assert_eq!(cluster.events, ["Promoted", "Promoted", "RolledBack"]);
}

#[tokio::test]
async fn what_readers_saw_before_is_removed_after_its_time_and_what_tells_of_it_last() {
    let mut cluster = Cluster::live(|object| object["spec"]["rollout"]["keepOld"] = json!("0s")).await;
    cluster.rename("v2");
    cluster.measured(&[("v1", 1.0), ("v2", 1.0)]);
    cluster.writes.clear();
    cluster.settles().await;
    let removed: Vec<&str> = cluster.writes.iter().filter_map(|write| write.strip_prefix("DELETE ")).collect();
    assert_eq!(
        removed,
        [
            "horizontalpodautoscalers/orders-v1",
            "poddisruptionbudgets/orders-v1",
            "deployments/orders-v1",
            "configmaps/orders-v1-projector"
        ]
    );
    assert_eq!(cluster.deployments(), of(&["orders-v2"]));
    assert_eq!(cluster.roles(), [("v2".to_owned(), RunRole::Live)]);
}

#[tokio::test]
async fn a_version_that_does_not_fit_readers_is_told_and_they_keep_what_they_see() {
    let mut cluster = Cluster::live(|_| {}).await;
    cluster.scene.views.0.lock().unwrap().unfit = true;
    cluster.rename("v2");
    cluster.measured(&[("v1", 1.0), ("v2", 1.0)]);
    // Also between two tries.
    for _ in 0..8 {
        cluster.round().await;
        cluster.shows();
    }
    assert_eq!(cluster.promoted(), ("False".to_owned(), "SwitchFailed".to_owned()));
    assert_eq!((cluster.led(), cluster.status().version.as_deref()), (vec!["orders_v1".to_owned()], Some("v1")));
    assert_eq!(cluster.events, ["Promoted", "SwitchFailed"]);
}

#[tokio::test]
async fn what_readers_were_led_back_to_a_moment_ago_is_not_removed() {
    let mut cluster = Cluster::live(|_| {}).await;
    cluster.rename("v2");
    cluster.measured(&[("v1", 1.0), ("v2", 1.0)]);
    cluster.settles().await;
    cluster.scene.views.0.lock().unwrap().led_after = Some((1, "orders_v1".to_owned()));
    // By the first look it is to be removed.
    cluster.change(|object| {
        object["spec"]["rollout"]["keepOld"] = json!("0s");
        object["spec"]["rollout"].as_object_mut().unwrap().remove("promote");
    });
    cluster.settles().await;
    assert_eq!(cluster.shown().as_deref(), Some("orders_v1"));
    assert_eq!(cluster.deployments(), of(&["orders-v1", "orders-v2"]));
}

#[tokio::test]
async fn nothing_is_promoted_or_removed_while_the_read_store_does_not_say_what_readers_see() {
    let mut cluster = Cluster::live(|object| object["spec"]["rollout"]["keepOld"] = json!("0s")).await;
    cluster.scene.views.0.lock().unwrap().away = true;
    cluster.rename("v2");
    cluster.measured(&[("v1", 1.0), ("v2", 1.0)]);
    cluster.settles().await;
    assert_eq!(cluster.promoted(), ("Unknown".to_owned(), "ConnectionRefused".to_owned()));
    assert_eq!((cluster.led(), cluster.status().version.as_deref()), (vec!["orders_v1".to_owned()], Some("v1")));
    assert_eq!(cluster.deployments(), of(&["orders-v1", "orders-v2"]), "both go on");
    // Views that another Projection leads are left to it.
    {
        let mut views = cluster.scene.views.0.lock().unwrap();
        (views.away, views.shown) = (false, Some("invoices_v1".to_owned()));
    }
    cluster.scene.reconciler.forget();
    cluster.settles().await;
    assert_eq!(cluster.promoted(), ("Unknown".to_owned(), "NotOwned".to_owned()));
    assert_eq!(cluster.shown().as_deref(), Some("invoices_v1"));
}

/// From nothing to the second version alone. Returns the cluster as it is then.
async fn to_the_second_version(crash_at: Option<(usize, bool)>, answers_lost: bool) -> Cluster {
    let mut cluster = Cluster::with(versioned(|object| object["spec"]["rollout"]["keepOld"] = json!("0s")));
    cluster.crash_at = crash_at;
    cluster.scene.views.0.lock().unwrap().answer_lost = answers_lost;
    cluster.measured(&[("v1", 1.0)]);
    cluster.settles().await;
    cluster.rename("v2");
    cluster.measured(&[("v1", 1.0), ("v2", 1.0)]);
    cluster.scene.views.0.lock().unwrap().answer_lost = answers_lost;
    cluster.settles().await;
    cluster
}

#[tokio::test]
async fn an_operator_that_crashes_before_or_after_any_write_comes_to_the_same() {
    let writes = to_the_second_version(None, false).await.writes;
    assert!(writes.len() > 12, "{writes:?}");
    let crashes = (0..writes.len()).flat_map(|at| [(at, false), (at, true)]);
    let writes = &writes;
    let all = crashes.map(|crash| async move {
        let cluster = to_the_second_version(Some(crash), false).await;
        let what = (crash, &writes[crash.0], &cluster.writes);
        assert_eq!(cluster.crash_at, None, "{what:?}");
        assert_eq!(cluster.led(), ["orders_v1", "orders_v2"], "{what:?}");
        assert_eq!(cluster.deployments(), of(&["orders-v2"]), "{what:?}");
        assert_eq!(cluster.roles(), [("v2".to_owned(), RunRole::Live)], "{what:?}");
    });
    futures::future::join_all(all).await;
    let mut lost = to_the_second_version(None, true).await;
    lost.settles().await;
    assert_eq!(
        (lost.led(), lost.deployments()),
        (vec!["orders_v1".to_owned(), "orders_v2".to_owned()], of(&["orders-v2"]))
    );
}
